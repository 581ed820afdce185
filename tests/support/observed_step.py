"""A method stopped at one step: its run, its objective and its gradient there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hf_condense.engine import registry
from hf_condense.engine.method import Method
from hf_condense.engine.run import Run
from hf_condense.testing import quick_method, toy_dataset


class Observed(NamedTuple):
    """A run at one step; what it learns, images or what stands for them and labels, is as it was before the update."""

    run: Run
    method: Method[Any]
    value: float
    gradient: torch.Tensor


def objective_of_step(method: type[Method[Any]], options: dict[str, Any], t: int, ipc: Any = 2) -> Observed:
    """Run a method on toy data up to step `t` and return its objective there."""
    observed: dict[str, Any] = {}

    class Spy(method):  # type: ignore[misc, valid-type]
        def losses(self, run, step):
            if step == t:
                observed["learned"] = {
                    name: tensor.detach().clone() for name, tensor in run.synthetic.parameters().items()
                }
            yield from super().losses(run, step)

        def adjust_gradients(self, run):
            self.exact = next(iter(run.synthetic.learned().values())).grad.clone()  # as the objective has it
            super().adjust_gradients(run)

        def after_update(self, run, step):
            if step == t:
                observed.update(run=run, method=self, gradient=self.exact)
                return
            super().after_update(run, step)

    registry.register_method(Spy, "spy")
    try:
        values: list[float] = []
        quick_method("spy", steps=t + 1, callbacks=[lambda run, done, loss: values.append(loss)], **options).condense(
            toy_dataset((0, 1, 2), rows=12), ipc
        )
    finally:
        registry.unregister_method("spy")
    run = observed["run"]
    for name, tensor in observed["learned"].items():
        run.synthetic.parameters()[name].data = tensor
    return Observed(run, observed["method"], values[-1], observed["gradient"])


def augmented_rows(run: Run, method: Any, draw: int) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Return the real and the drawn synthetic rows of a step by class, augmented one class at a time."""
    real, synthetic = {}, {}
    for c in run.classes:
        real[c] = run.real_batch([c], method.config.batch_real, draw)[0]
        synthetic[c] = run.synthetic.at(method.row_numbers(run, [c], draw))[0]
        if method.augmentation is not None:
            transform = method.augmentation.draw(run.num_classes, run.rng("augment", draw))
            real[c] = transform(real[c], torch.full((len(real[c]),), c))
            synthetic[c] = transform(synthetic[c], torch.full((len(synthetic[c]),), c))
    return real, synthetic
