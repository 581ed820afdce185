"""The accelerator that the processes of a run share, and the values that they exchange."""

from __future__ import annotations

import atexit
import os
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")


def get_accelerator(accelerator: Accelerator | None = None) -> Accelerator:
    """Return the accelerator to run on: the one given, else the one that exists already, else a new one.

    Raises:
        RuntimeError: If several processes were launched but do not know of each other, so that each would act as the
            main one; or if a mixed precision other than bf16 is asked for.
    """
    # Importing accelerate takes longer than importing this whole package.
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if accelerator is None:
        cpu_group = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
        joined = bool(AcceleratorState._shared_state)
        if cpu_group and not joined:
            # Default arguments in this module keep the group alive that exists when the module is imported. So it is
            # imported here, before there is a group.
            from torch.distributed import nn as _functions  # noqa: F401

            atexit.register(_leave_group)
        accelerator = Accelerator() if joined or not cpu_group else Accelerator(cpu=True)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}; on CPUs, make the "
            "accelerator before anything else with Accelerator(cpu=True), or leave it to condense_dataset"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise RuntimeError(
            f"mixed_precision={accelerator.mixed_precision!r} needs losses that are scaled, which condensing does not "
            "do; use 'bf16' or 'no'"
        )
    return accelerator


def _leave_group() -> None:
    """End the threads of a group of CPU processes; a thread that outlives the interpreter may abort the process."""
    if torch.distributed.is_initialized():
        # Destroying the group waits for its threads without letting other Python code run. A thread that has yet to
        # free the tensors of the last exchange needs Python for that, and would be waited for without end.
        time.sleep(0.1)
        torch.distributed.destroy_process_group()


def broadcast(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Return the tensor of the main process, in every process."""
    if accelerator.num_processes == 1:
        return tensor
    from accelerate.utils import broadcast as send

    received: Tensor = send(tensor)
    return received


def broadcast_object(accelerator: Accelerator, value: Value) -> Value:
    """Return the object of the main process, in every process. It must be picklable."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    received: list[Value] = broadcast_object_list([value])
    return received[0]


def gather_objects(accelerator: Accelerator, value: Value) -> list[Value]:
    """Return the objects of all processes in the order of their ranks, in every process. They must be picklable."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    gathered: list[Value] = gather_object([value])
    return gathered


def reduce(accelerator: Accelerator, tensor: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return the sum or the mean of a tensor over all processes, in every process, without a graph."""
    if accelerator.num_processes == 1:
        return tensor
    reduced: Any = accelerator.reduce(tensor, reduction=reduction)
    result: Tensor = reduced
    return result
