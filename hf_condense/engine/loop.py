"""The loop that runs every method: backward, reduce, step, project, report progress, checkpoint, resume, call back."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from hf_condense.base.errors import NonFiniteLossError, plain_text
from hf_condense.base.memory import is_out_of_memory
from hf_condense.base.processes import broadcast_object, from_main, reduce, share_tensors, together
from hf_condense.base.progress import progress_bar
from hf_condense.base.rng import seeded_globals
from hf_condense.engine.build import smaller_plan
from hf_condense.engine.checkpoint import Checkpoint, load_optimiser, optimiser_tensors
from hf_condense.engine.method import Loss, Method, check_returned
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.flat import gradient_of

logger = logging.getLogger("hf_condense")

_CHECK_EVERY = 20  # steps on a GPU, where a check waits until all queued work is done

Callback = Callable[[Run, int, float], None]
"""A function that is called after every update with the run, the number of steps done, and the loss of that step."""


@dataclass(frozen=True)
class Saving:
    """Where and how often checkpoints are written.

    There is one checkpoint at most: the next one replaces it.

    Attributes:
        folder: Folder of the checkpoint; None writes none.
        every: Steps between two checkpoints.
        identity: The facts that identify the run.
        resumed: The checkpoint to resume from, or None to start from the beginning.
        started: When the call began, by `time.perf_counter`.
        workers: Workers of a process, and processes, for which `method="auto"` chose the settings; None if it did not.
    """

    folder: Path | None
    every: int
    identity: dict[str, Any]
    resumed: Checkpoint | None = None
    started: float = field(default_factory=time.perf_counter)
    workers: tuple[int, int] | None = None

    @property
    def earlier_seconds(self) -> float:
        """How long the run had taken when the checkpoint to resume from was written."""
        return 0.0 if self.resumed is None else self.resumed.seconds

    @property
    def postponed(self) -> str:
        """What is done first when a signal asks the run to end."""
        if self.folder is None:
            return "this step is finished first"
        return "this step is finished first, and its checkpoint written"

    def remains(self, done: int, steps: int) -> str:
        """Say what an interruption after some steps leaves behind, and how to go on."""
        if self.folder is None:
            lost = "the only step done is" if done == 1 else f"the {done} steps done so far are"
            return (
                f"{lost} lost, because there was no folder for checkpoints. With checkpoint_dir=, a run goes on from "
                "where it was interrupted"
            )
        return (
            f"the checkpoint of step {done} of {steps} is in {self.folder}. To go on from there, run the same again "
            "with the same checkpoint_dir="
        )


def optimise(run: Run, method: Method[Any], steps: int, saving: Saving, callbacks: Sequence[Callback] = ()) -> None:
    """Learn `run.synthetic` in place.

    Args:
        run: The run. The method makes its synthetic set here.
        method: The method.
        steps: Total number of updates of the images, including those before a resumed checkpoint.
        saving: Where checkpoints are written.
        callbacks: Called after every update.

    Raises:
        NonFiniteLossError: If a loss, gradient or update is NaN or infinite. The last checkpoint is kept.
        RunInterrupted: If a signal asks the run to end. The step is finished and its checkpoint written before.
        MemoryError: If a step does not fit into memory, however it is cut. The last checkpoint is kept.
        ValueError: If the checkpoint is beyond `steps`, a step has no loss, or a learned tensor is in no group of the
            optimiser.
    """
    if saving.resumed is not None and saving.resumed.step > steps:
        raise ValueError(
            f"the checkpoint in {saving.folder} is at step {saving.resumed.step}, beyond steps={steps}; pass at least "
            "as many steps to go on with that run; to start this one, pass another checkpoint_dir=, or remove the file"
        )
    if saving.resumed is not None:
        run.interrupts.remains = saving.remains(saving.resumed.step, steps)
    # All processes must use one plan, although their free memory differs.
    run.plan = broadcast_object(run.accelerator, run.plan)
    method.prepare(run)
    try:
        run.synthetic = method.initialise(run)
    except Exception as error:
        if is_out_of_memory(error):
            remedy = "a smaller ipc, expand or image_size needs less"
            raise MemoryError(f"the set that learning starts from does not fit into memory: {remedy}") from error
        raise
    check_returned("initialise", method.info.name, run.synthetic, SyntheticSet)
    is_read = bool(callbacks) or run.device.type == "cpu"
    optimisation = _Optimisation(run, method, saving, check_every=1 if is_read else _CHECK_EVERY)
    start = optimisation.resume() if saving.resumed is not None else 0
    bar = progress_bar(steps, "Condensing", "step", shown=run.shows_progress, initial=start)
    with bar, run.interrupts.postponed(saving.postponed):
        for t in range(start, steps):
            value = optimisation.step(t)
            done = t + 1
            bar.update()
            bar.set_postfix(loss=f"{value:.4g}", refresh=False)
            if callbacks:
                optimisation.call(callbacks, done, value)
            ends = optimisation.is_interrupted
            is_kept = True
            if saving.folder is not None and (ends or done % saving.every == 0 or done == steps):
                is_kept = optimisation.save(done)
            if ends or done == steps:
                lost = f"the checkpoint of step {done} of {steps} could not be written"
                run.interrupts.remains = saving.remains(done, steps) if is_kept else lost
            if ends:
                optimisation.check()
                raise run.interrupts.error()
        optimisation.check()
    with seeded_globals(run.seed, "finish", devices=[run.device]):
        method.finish(run)


class _Values(Sequence[float]):
    """The values of the objective by step. What is still on a device is fetched when somebody asks for a value."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self._fetched, self._pending = list(values), list[Tensor]()

    def append(self, value: Tensor) -> None:
        """Add the value of a step, without fetching it: ()."""
        self._pending.append(value)

    def fetched(self) -> list[float]:
        """Return all values. A GPU is waited for if some of them are still there."""
        if self._pending:
            self._fetched += torch.stack(self._pending).tolist()
            self._pending = []
        return self._fetched

    def __len__(self) -> int:
        return len(self._fetched) + len(self._pending)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        return self.fetched()[index]


class _Optimisation:
    """The learned tensors of a run, their optimiser, and the values of the objective so far.

    Args:
        run: The run, whose synthetic set has been initialised.
        method: The method.
        saving: Where checkpoints are written.
        check_every: Steps after which it is checked that everything is finite.
    """

    def __init__(self, run: Run, method: Method[Any], saving: Saving, check_every: int) -> None:
        self.run, self.method, self.saving, self.check_every = run, method, saving, check_every
        self.auxiliary = method.auxiliary(run)
        check_returned("auxiliary", method.info.name, self.auxiliary, dict)
        self.learned = [*run.synthetic.parameters().values(), *self.auxiliary.values()]
        for tensor in self.learned:
            tensor.requires_grad_(True)
        self.optimiser = method.optimiser(run)
        check_returned("optimiser", method.info.name, self.optimiser, torch.optim.Optimizer)
        self.values = _Values()
        self._are_finite: list[Tensor] = []  # whether everything was finite, in the steps that were not checked yet
        self._latest: float | None = None
        self._signal_somewhere = False
        self._yielded = 0  # losses of this process in the last step
        self._last_saved = 0 if saving.resumed is None else saving.resumed.step  # 0: no checkpoint was written
        self._check_groups()
        # Rounding may differ from process to process, so all start from the tensors of the main one.
        share_tensors(run.accelerator, (*run.synthetic.state().values(), *self.auxiliary.values()))

    @property
    def is_interrupted(self) -> bool:
        """Whether the run should end after this step. All processes agree, as of their last exchange."""
        if self.run.accelerator.num_processes > 1:
            return self._signal_somewhere
        return self.run.interrupts.signal is not None

    def step(self, t: int) -> float:
        """Update every learned tensor once and let the method follow.

        Returns:
            The value of the objective in the last step that was checked.
        """
        run = self.run
        total = None
        while total is None:
            # Seeded anew whenever the step is repeated.
            with seeded_globals(run.seed, "step", t, devices=[run.device]):
                total = self._exchanged(self._differentiated(t), t)
                if total is not None:
                    self._apply(t, total)
            if total is None:
                self._cut_smaller(t)
        if self._latest is None or len(self._are_finite) >= self.check_every:
            self.check()
            self._latest = self.values[-1]
        return self._latest

    def _differentiated(self, t: int) -> Tensor | None:
        """Compute the gradients of a step and return this process's value, or None if memory was not enough."""
        run, method = self.run, self.method
        for tensor in self.learned:
            # Zeros, not None: a tensor that no chunk of this process reaches may be reached by another process.
            tensor.grad = torch.zeros_like(tensor)
        total, self._yielded = torch.zeros((), device=run.device), 0
        losses: object = None
        try:
            losses = method.losses(run, t)
            if not isinstance(losses, Iterable):
                raise TypeError(f"{_expected_losses(method.info.name)}; got {type(losses).__name__}")
            for item in losses:
                self._yielded += 1
                loss, value = _checked_loss(item, method.info.name)
                # With `inputs`, no gradients accumulate in the matched network.
                loss.backward(inputs=self.learned)
                total += value.detach().reshape(())  # a value of shape (1,) is one number, too
        except Exception as error:
            if is_out_of_memory(error):
                return None
            raise
        finally:
            if isinstance(losses, Generator):
                losses.close()  # else what it has changed for the time of a loss would stay until an error is forgotten
        return total

    def _apply(self, t: int, total: Tensor) -> None:
        """Update the learned tensors and let the method follow. This cannot be repeated."""
        try:
            self._update(t, total)
            self.method.after_update(self.run, t)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._memory_error(t) from error
            raise

    def _cut_smaller(self, t: int) -> None:
        """Replace the plan by a smaller one, after a step that did not fit into memory."""
        run = self.run
        plan = smaller_plan(run, self.method)
        if plan is None:
            raise self._memory_error(t)
        logger.warning(
            "step %d does not fit into memory and is repeated, cut as %s instead of %s; from here on, the result "
            "differs by rounding, and by the draws of dropout if there is any, from that of a run with enough memory",
            t,
            plan,
            run.plan,
        )
        run.plan = plan
        gc.collect()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()

    def _memory_error(self, t: int) -> MemoryError:
        if self.run.network_facts.batch_statistics:
            advice = (
                "networks with batch norm need whole batches at once; a network with another norm can be cut smaller"
            )
        else:
            advice = "a lower max_memory cuts steps into smaller parts; " if self.method.cuts else ""
            advice += self.method.memory_remedy
        return MemoryError(
            f"step {t} does not fit into memory, cut as {self.run.plan}; {self._kept()}. "
            f"{advice[0].upper()}{advice[1:]}"
        )

    def _update(self, t: int, total: Tensor) -> None:
        """Combine the gradients of all processes, and update the learned tensors."""
        run, method = self.run, self.method
        for tensor in self.learned:
            tensor.grad = reduce(run.accelerator, gradient_of(tensor))
        method.adjust_gradients(run)
        self.values.append(total)
        factor = method.rate(t, self.values)
        for group in self.optimiser.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        if factor:  # at a rate of zero, a step would still mix the gradient into momentum, which moves later steps
            self.optimiser.step()
            run.synthetic.project_()
        # What a skipped update would have used may be infinite: then it is skipped for that.
        used = [total, *map(gradient_of, self.learned)] if factor else []
        finite = [torch.isfinite(tensor).all() for tensor in (*used, *self.learned)]
        self._are_finite.append(torch.stack(finite).all())

    def check(self) -> None:
        """Raise `NonFiniteLossError` if something was not finite in a step so far. This waits for a GPU."""
        if not self._are_finite:
            return
        are_finite = torch.stack(self._are_finite).tolist()
        self._are_finite = []
        if not all(are_finite):
            step = len(self.values) - len(are_finite) + are_finite.index(False)
            raise NonFiniteLossError(
                f"the loss, its gradient or the update is not finite at step {step} (loss {self.values[step]}); "
                f"{self._kept()}. A smaller learning rate, {self.method.rate_advice(self.run)}, usually helps"
            )

    def _exchanged(self, total: Tensor | None, t: int) -> Tensor | None:
        """Return the value of the objective over all processes, and learn whether one of them has got a signal.

        Args:
            total: The value in this process, or None if memory was not enough.
            t: The step.

        Returns:
            The value, or None if memory was not enough in one of the processes.

        Raises:
            MemoryError: If memory was not enough and the others wait for this process in the middle of the step.
            ValueError: If no process had a loss.
        """
        run = self.run
        if run.accelerator.num_processes == 1:
            return self._of_losses(total, self._yielded)
        if total is None and self.method.exchanges_in_losses:
            raise self._memory_error(t)
        flags = [run.interrupts.signal is not None, total is None, self._yielded]
        value = torch.zeros((), device=run.device) if total is None else total
        exchanged = torch.stack([value, *value.new_tensor(flags)])
        value, signals, shortages, yielded = reduce(run.accelerator, exchanged)
        self._signal_somewhere = bool(signals)
        return self._of_losses(None if bool(shortages) else value, yielded)

    def _of_losses(self, value: Tensor | None, yielded: int | Tensor) -> Tensor | None:
        """Return the value of a step. Raise if it had no loss: real rows would pass for learned ones."""
        if value is not None and not yielded:
            raise ValueError(f"{_expected_losses(self.method.info.name)}; they yielded nothing")
        return value

    def call(self, callbacks: Sequence[Callback], done: int, value: float) -> None:
        """Call the callbacks in every process, one of which may take long or fail; an error leaves a checkpoint."""

        def each() -> None:
            for callback in callbacks:
                callback(self.run, done, value)

        try:
            together(self.run.accelerator, each)
        except Exception:
            if self.saving.folder is not None:  # so that the same run without the error can go on from here
                self.save(done)
            raise

    def save(self, done: int) -> bool:
        """Write a checkpoint from the main process; the others wait.

        A checkpoint that cannot be written, because the disk or the memory is full or another run has its own in that
        place, is worth a warning only: the set in memory is whole, and the next checkpoint may succeed.

        Args:
            done: Steps that are done.

        Returns:
            Whether it was written.
        """
        self.check()
        is_written = from_main(self.run.accelerator, partial(self._write, done))
        if is_written:
            self._last_saved = done
        return is_written

    def _write(self, done: int) -> bool:
        run, saving = self.run, self.saving
        groups = {
            "synthetic": run.synthetic.state(),
            "auxiliary": self.auxiliary,
            "optimiser": optimiser_tensors(self.optimiser),
            "method": self.method.state(run),
            "history": {"values": torch.tensor(self.values.fetched(), dtype=torch.float64)},
        }
        tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        processes = run.accelerator.num_processes
        seconds = saving.earlier_seconds + time.perf_counter() - saving.started
        checkpoint = Checkpoint(done, saving.identity, run.plan, tensors, processes, seconds, saving.workers)
        assert saving.folder is not None
        try:
            checkpoint.write(saving.folder)
        except Exception as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            logger.warning(
                "the checkpoint of step %d was not written, and the run goes on: %s", done, plain_text(error)
            )
            return False
        logger.info("step %d, loss %.4g: wrote the checkpoint", done, self.values[-1])
        return True

    @torch.no_grad()
    def resume(self) -> int:
        """Restore the checkpoint and return the number of steps that it has done."""
        run, checkpoint = self.run, self.saving.resumed
        assert checkpoint is not None
        run.synthetic.load_state({name: t.to(run.device) for name, t in checkpoint.group("synthetic").items()})
        for name, tensor in checkpoint.group("auxiliary").items():
            self.auxiliary[name].copy_(tensor)
        load_optimiser(self.optimiser, checkpoint.group("optimiser"))
        self.method.load_state(run, checkpoint.group("method"))
        self.values = _Values(checkpoint.group("history")["values"].tolist())
        checkpoint.tensors.clear()  # all is copied; a large set need not be in memory twice
        logger.info("resuming at step %d", checkpoint.step)
        return checkpoint.step

    def _check_groups(self) -> None:
        """Raise `ValueError` unless the optimiser steps every learned tensor: nobody would notice a forgotten one."""
        stepped = {id(tensor) for group in self.optimiser.param_groups for tensor in group["params"]}
        named = {**self.run.synthetic.parameters(), **self.auxiliary}
        if missing := [name for name, tensor in named.items() if id(tensor) not in stepped]:
            raise ValueError(
                f"the optimiser of {self.method.info.name!r} has no group with {', '.join(missing)}; "
                "every learned tensor should be in one"
            )

    def _kept(self) -> str:
        """Say which checkpoint remains if the run ends now."""
        if self._last_saved:
            return f"the checkpoint of step {self._last_saved} in {self.saving.folder} is kept"
        return "no checkpoint had been written"


def _expected_losses(method: str) -> str:
    return f"the losses of {method!r} should yield Loss(loss, value), each a tensor with one number"


def _checked_loss(item: object, method: str) -> Loss:
    """Return what a method yielded as a `Loss`; raise if it is something else, or leads to no gradient."""
    expected = _expected_losses(method)
    if not (isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, Tensor) for part in item)):
        got = type(item).__name__
        if isinstance(item, tuple):
            got += f" of {', '.join(type(part).__name__ for part in item)}"
        raise TypeError(f"{expected}; got {got}")
    loss = Loss(*item)
    if loss.loss.numel() != 1 or loss.value.numel() != 1:
        raise ValueError(f"{expected}; got shapes {tuple(loss.loss.shape)} and {tuple(loss.value.shape)}")
    if not loss.loss.requires_grad:
        raise ValueError(
            f"{expected}; this loss has no graph that leads to what is learned: compute it from the rows that "
            "run.synthetic.of(classes) returns, outside torch.no_grad()"
        )
    return loss
