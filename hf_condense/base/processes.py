"""The accelerator that the processes of a run share, and the values that they exchange."""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from hf_condense.base.errors import CannotRunError

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")

# How long processes wait for one that decodes, records or writes. The group that Accelerate makes on GPUs gives up
# after ten minutes.
_HOST_TIMEOUT = timedelta(days=7)
_host_group: tuple[Any, Any] | None = None  # the group of all processes, and the one for waits

# What wraps models and optimisers in place of the plain processes that share out classes and networks here.
_PLUGINS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


def new_accelerator(**options: Any) -> Accelerator:
    """Make an accelerator. One that exists already keeps its gradient accumulation, which all of them share.

    Args:
        **options: Arguments of `accelerate.Accelerator`.
    """
    from accelerate import Accelerator
    from accelerate.state import GradientState
    from accelerate.utils import GradientAccumulationPlugin

    plugin = GradientAccumulationPlugin(**GradientState().plugin_kwargs)
    return Accelerator(gradient_accumulation_plugin=plugin, **options)


def get_accelerator(accelerator: Accelerator | None = None, *, any_precision: bool = False) -> Accelerator:
    """Return the accelerator to run on: the one given, else the one that exists already, else a new one.

    Args:
        accelerator: The one that the caller gives, or None.
        any_precision: Whether its mixed precision does not matter, because nothing runs under its autocast.

    Raises:
        TypeError: If what the caller gives is no accelerator.
        CannotRunError: If several processes were launched but do not know of each other, so that each would act as the
            main one; if a mixed precision other than bf16 is asked for and would matter; or if the accelerator has a
            plugin that splits models.
    """
    # Importing accelerate takes longer than importing this whole package.
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if accelerator is not None and not isinstance(accelerator, Accelerator):
        raise TypeError(
            "accelerator should be an accelerate.Accelerator, such as Accelerator(cpu=True) for the CPU; "
            f"got {accelerator!r:.80} ({type(accelerator).__name__})"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator is None:
        cpu_group = launched > 1 and not torch.cuda.is_available()
        joined = bool(AcceleratorState._shared_state)
        if cpu_group and not joined:
            # Default arguments in this module keep the group alive that exists when the module is imported. So it is
            # imported here, before there is a group.
            from torch.distributed import nn as _functions  # noqa: F401

            atexit.register(_leave_group)
        accelerator = new_accelerator(cpu=cpu_group and not joined)
    if accelerator.num_processes != launched:
        raise CannotRunError(
            f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}; on CPUs, make the "
            "accelerator before anything else with Accelerator(cpu=True), or pass none"
        )
    if (kind := str(accelerator.distributed_type.value)) in _PLUGINS:
        raise CannotRunError(
            f"the accelerator is set up for {kind}, which splits a model that it trains; condensing shares out classes "
            "and networks instead. Launch plain processes (`accelerate launch --multi_gpu`, or torchrun) without a "
            "plugin, or pass Accelerator() without one"
        )
    if not any_precision and accelerator.mixed_precision not in ("no", "bf16"):
        raise CannotRunError(
            f"mixed_precision={accelerator.mixed_precision!r} needs losses that are scaled, which condensing does not "
            "do; use 'bf16' or 'no'"
        )
    return accelerator


def _leave_group(group: Any = None) -> None:
    """End the threads of a group of CPU processes; a thread that outlives the interpreter may abort the process.

    Args:
        group: The group; None stands for all groups.
    """
    if torch.distributed.is_initialized():
        # Destroying the group waits for its threads without letting other Python code run. A thread that has yet to
        # free the tensors of the last exchange needs Python for that, and would be waited for without end.
        time.sleep(0.1)
        with suppress(ValueError):  # the group is gone, because the one that it belonged to has been replaced
            torch.distributed.destroy_process_group(group)


def broadcast(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Return the tensor of the main process, in every process."""
    if accelerator.num_processes == 1:
        return tensor
    from accelerate.utils import broadcast as send

    received: Tensor = send(tensor)
    return received


@torch.no_grad()
def share_tensors(accelerator: Accelerator, tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            tensor.copy_(broadcast(accelerator, tensor.detach().clone()))


def broadcast_object(accelerator: Accelerator, value: Value) -> Value:
    """Return the object of the main process, in every process. It must be picklable."""
    if accelerator.num_processes == 1:
        return value
    values: list[Value] = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=_hosts())
    return values[0]


def together(accelerator: Accelerator, work: Callable[[], Value]) -> list[Value]:
    """Call a function in every process and return the results of all, in the order of the processes.

    The processes wait for each other for as long as the work takes.

    Args:
        accelerator: The processes.
        work: What each process does. It may not exchange anything with the others. Its result must be picklable.

    Raises:
        Exception: What the function raised, if it failed in this process; else what it raised in the first process in
            which it failed.
    """
    if accelerator.num_processes == 1:
        return [work()]
    group, mine = _hosts(), _Outcome.of(work)
    outcomes: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(outcomes, mine.portable(), group=group)
    if mine.failure is not None:
        raise mine.failure
    return [outcome.result(process) for process, outcome in enumerate(outcomes)]


def from_main(accelerator: Accelerator, make: Callable[[], Value]) -> Value:
    """Return, in every process, what a function returns in the main process. The others only wait for it.

    Args:
        accelerator: The processes.
        make: What the main process does. It may not exchange anything with the others. Its result must be picklable.

    Raises:
        Exception: What the function raised in the main process.
    """
    if accelerator.num_processes == 1:
        return make()
    group = _hosts()
    if accelerator.is_main_process:
        mine = _Outcome.of(make)
        torch.distributed.broadcast_object_list([mine.portable()], src=0, group=group)
        if mine.failure is not None:
            raise mine.failure
        return mine.result(0)
    outcomes = [None]
    torch.distributed.broadcast_object_list(outcomes, src=0, group=group)
    received: _Outcome[Value] | None = outcomes[0]
    assert received is not None
    return received.result(0)


def current_state() -> Any:
    """Return Accelerate's state of the processes of this program, or None if there is none."""
    # Importing accelerate is slow; if nobody has imported it, there is no state.
    module = sys.modules.get("accelerate.state")
    return module.PartialState() if module is not None and module.PartialState._shared_state else None


def is_main_process() -> bool:
    """Return whether this is the main process, as far as this program knows of other ones."""
    state = current_state()
    return state is None or bool(state.is_main_process)


def in_main_process(make: Callable[[], Value]) -> Value:
    """Return what a function returns in the main process of this program, as `from_main` does.

    If there are other processes, all of them must call this; without a distributed state there are none.

    Args:
        make: What the main process does. It may not exchange anything with the others. Its result must be picklable.

    Raises:
        Exception: What the function raised in the main process.
    """
    state = current_state()
    return make() if state is None else from_main(state, make)


def shared_out(accelerator: Accelerator, jobs: int, work: Callable[[range], dict[int, Value]]) -> dict[int, Value]:
    """Divide numbered jobs among the processes, and return the results of all, by number, in every process.

    Args:
        accelerator: The processes.
        jobs: How many jobs there are.
        work: Does the jobs of some numbers and returns their results by number, as in `together`.

    Raises:
        Exception: As `together` does.
    """
    share = range(accelerator.process_index, jobs, accelerator.num_processes)
    parts = together(accelerator, lambda: work(share))
    return {number: result for part in parts for number, result in part.items()}


def main_first(accelerator: Accelerator, work: Callable[[], Value]) -> Value:
    """Call a function in the main process, then in the others, which find in the cache what it has left there.

    Args:
        accelerator: The processes.
        work: What each process does. It may not exchange anything with the others.

    Returns:
        The result of this process.

    Raises:
        Exception: What the function raised in this process or, if it did not fail here, in another one.
    """
    results: list[Value] = []

    def work_once() -> None:
        if not results:
            results.append(work())

    from_main(accelerator, work_once)
    together(accelerator, work_once)
    return results[0]


def reduce(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, in every process, without a graph; of one process, the tensor."""
    if accelerator.num_processes == 1:
        return tensor
    reduced: Any = accelerator.reduce(tensor, reduction="sum")
    result: Tensor = reduced
    return result


@dataclass(frozen=True)
class _Outcome(Generic[Value]):
    """What a function has returned, or the exception that it has raised."""

    value: Value | None = None
    failure: Exception | None = None

    @classmethod
    def of(cls, function: Callable[[], Value]) -> _Outcome[Value]:
        """Call a function."""
        try:
            return cls(function())
        except Exception as error:
            return cls(failure=error)

    def portable(self) -> _Outcome[Value]:
        """Return what can be sent to another process: some exceptions cannot be pickled."""
        try:
            pickle.loads(pickle.dumps(self.failure))
        except Exception:
            return _Outcome(failure=RuntimeError(f"{type(self.failure).__name__}: {self.failure}"))
        return self

    def result(self, process: int) -> Value:
        """Return what the function returned in a process, or raise what it raised there."""
        if self.failure is not None:
            raise self.failure from RuntimeError(f"process {process} failed")
        return cast("Value", self.value)


def _hosts() -> Any:
    """Return the group in which processes wait for each other's work. All of them must ask for it at the same time."""
    global _host_group
    world = torch.distributed.group.WORLD
    if _host_group is None or _host_group[0] is not world:
        _host_group = world, torch.distributed.new_group(backend="gloo", timeout=_HOST_TIMEOUT)
        atexit.register(_leave_hosts)
    return _host_group[1]


def _leave_hosts() -> None:
    """End the threads of the group for waits. They end with its last reference, so none may remain here."""
    global _host_group
    if _host_group is not None:
        hosts, _host_group = _host_group[1], None
        _leave_group(hosts)
