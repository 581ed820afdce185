"""The one loop that every method runs in: backward, reduce, step, clamp, progress, checkpoint, resume, callbacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_condense.base.errors import NonFiniteLossError
from hf_condense.base.progress import progress_bar
from hf_condense.base.rng import seeded_globals
from hf_condense.engine.checkpoint import Checkpoint, load_optimiser, optimiser_tensors
from hf_condense.engine.method import Method
from hf_condense.engine.plan import Plan
from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

Callback = Callable[[Run, int, float], None]
"""Called after every update with the run, the number of steps done, and the loss of that step."""


@dataclass(frozen=True)
class Saving:
    """Where and how often checkpoints are written.

    Attributes:
        folder: Where; None writes none.
        every: Steps between two checkpoints.
        identity: What makes the run this run.
        resumed: The checkpoint to go on from, or None to start anew.
    """

    folder: Path | None
    every: int
    identity: dict[str, Any]
    resumed: Checkpoint | None = None


def optimise(run: Run, method: Method[Any], steps: int, saving: Saving, callbacks: Sequence[Callback] = ()) -> None:
    """Learn `run.synthetic` in place.

    Args:
        run: The run; its synthetic set is made here, by the method.
        method: What is minimised.
        steps: Updates of the images in all, those of a resumed checkpoint included.
        saving: Where checkpoints go.
        callbacks: Called after every update.

    Raises:
        NonFiniteLossError: If a loss, gradient or update is NaN or infinite. The last checkpoint is kept.
        ValueError: If the checkpoint is beyond `steps`.
    """
    found = saving.resumed
    if found is not None and found.step > steps:
        raise ValueError(f"the checkpoint stands at step {found.step}, beyond steps={steps}; ask for more steps")
    run.plan = _agreed(run)
    run.synthetic = method.initialise(run)
    for parameter in run.synthetic.parameters().values():
        parameter.requires_grad_(True)
    method.prepare(run)
    optimiser = method.optimiser(run)
    start = _resume(run, method, optimiser, found) if found is not None else 0
    shown = run.progress and run.accelerator.is_local_main_process
    with progress_bar(steps, "Condensing", "step", shown=shown, initial=start) as bar:
        for t in range(start, steps):
            with seeded_globals(run.seed, "step", t, devices=[run.device]):
                loss = _step(run, method, optimiser, t, saving)
                method.after_update(run, t)
            done = t + 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            for callback in callbacks:
                callback(run, done, loss)
            if saving.folder is not None and (done % saving.every == 0 or done == steps):
                _save(run, method, optimiser, done, saving)
    with seeded_globals(run.seed, "finish", devices=[run.device]):
        method.finish(run)


def _step(run: Run, method: Method[Any], optimiser: torch.optim.Optimizer, t: int, saving: Saving) -> float:
    """Update the synthetic set once and return the objective."""
    learned = list(run.synthetic.parameters().values())
    for parameter in learned:
        # Zeros, not None: what no chunk of this process reaches may be reached by another's.
        parameter.grad = torch.zeros_like(parameter)
    total = torch.zeros((), device=run.device)
    for loss, reported in method.losses(run, t):
        # Naming the inputs keeps gradients out of the matched network.
        loss.backward(inputs=learned)
        total += reported.detach()
    total = _reduce(run, method, learned, total)
    for group in optimiser.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * method.rate(t)
    optimiser.step()
    run.synthetic.clamp_()
    gradients = [p.grad for p in learned if p.grad is not None]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (total, *gradients, *learned)):
        raise NonFiniteLossError(_non_finite_message(t, float(total), saving))
    return float(total)


def _reduce(run: Run, method: Method[Any], learned: list[Tensor], total: Tensor) -> Tensor:
    """Combine gradients and objective over processes; every process then takes the same step."""
    if run.accelerator.num_processes == 1:
        return total
    for parameter in learned:
        parameter.grad = run.accelerator.reduce(parameter.grad, reduction=method.reduction)
    reduced: Tensor = run.accelerator.reduce(total, reduction=method.reduction)
    return reduced


def _agreed(run: Run) -> Plan:
    """Return the main process's plan: free memory differs between processes, but all must cut in the same way."""
    if run.accelerator.num_processes == 1:
        return run.plan
    from accelerate.utils import broadcast_object_list

    plans: list[Plan] = broadcast_object_list([run.plan])
    return plans[0]


def _non_finite_message(t: int, total: float, saving: Saving) -> str:
    """Say at which step it happened and what is left."""
    last = max(t - t % saving.every, saving.resumed.step if saving.resumed else 0)
    kept = (
        f"the checkpoint of step {last} in {saving.folder} is kept"
        if saving.folder is not None and last
        else "no checkpoint had been written"
    )
    return (
        f"the loss, its gradient or the update is not finite at step {t} (loss {total}); {kept}. "
        "A smaller learning rate, such as lr_img, usually helps"
    )


def _save(run: Run, method: Method[Any], optimiser: torch.optim.Optimizer, done: int, saving: Saving) -> None:
    """Write a checkpoint; only the main process does."""
    if run.accelerator.is_main_process and saving.folder is not None:
        groups = {
            "synthetic": run.synthetic.state(),
            "optimiser": optimiser_tensors(optimiser),
            "method": method.state(run),
        }
        tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        Checkpoint(done, saving.identity, run.plan, tensors).write(saving.folder)
    run.accelerator.wait_for_everyone()


def _resume(run: Run, method: Method[Any], optimiser: torch.optim.Optimizer, found: Checkpoint) -> int:
    """Take up a checkpoint and return the number of steps that are done."""
    run.synthetic.load_state({name: tensor.to(run.device) for name, tensor in found.group("synthetic").items()})
    load_optimiser(optimiser, found.group("optimiser"))
    method.load_state(run, found.group("method"))
    logger.info("resuming at step %d", found.step)
    return found.step
