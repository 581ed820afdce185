"""A trajectory method at one step, taken apart in float64: its objective, and what the textbook needs to repeat it."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.condensed.decoders import Frame
from hf_condense.engine.run import Run
from hf_condense.methods._student import TrajectoryMethod
from hf_condense.methods._windows import Window
from tests.reference.trajectory import Step
from tests.support.observed_step import objective_of_step

QUICK = {"experts": 2, "snapshots": 6, "snapshot_every": 2, "lr_expert": 0.1, "cache": False}


class ObservedMethod(NamedTuple):
    """A trajectory method at one step, in float64."""

    run: Run
    method: Any
    window: Window
    t: int

    def objective(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective's value and its gradients by learned tensor, summed over the losses of the method."""
        learned = self.run.synthetic.parameters()
        for tensor in learned.values():
            tensor.grad = torch.zeros_like(tensor)
        value = torch.zeros((), dtype=torch.float64)
        for loss, reported in self.method.losses(self.run, self.t):
            loss.backward(inputs=list(learned.values()))
            value += reported
        return value, {name: tensor.grad.clone() for name, tensor in learned.items()}

    def step(self, draw: int, n: int) -> Step:
        """Return the rows and targets of a student's step; each row is augmented and labelled on its own."""
        run, method = self.run, self.method
        rows, labels = run.synthetic.of(run.classes)
        targets = F.one_hot(labels, run.num_classes).double()
        if run.synthetic.soft_labels is not None:
            targets = (run.synthetic.soft_labels.double() / method.config.temperature).softmax(1)
        batch = method.batch(run, draw, n)
        numbers = range(len(rows)) if batch.mask is None else batch.mask.nonzero()[:, 0].tolist()
        step = []
        for i in numbers:
            row = rows[i : i + 1]
            if method.augmentation is not None:
                transform = method.augmentation.draw(len(rows), run.rng("augment", draw, n))
                row = transform(row, torch.tensor([i]))
            step.append((row[0], targets[i]))
        return step


def float64_leaf(tensor: Tensor, learned: bool = True) -> Tensor:
    """Return a leaf with the same values in float64."""
    return tensor.detach().double().requires_grad_(learned)


def observe(method: type[TrajectoryMethod[Any]], t: int = 2, ipc: Any = 2, **options: Any) -> ObservedMethod:
    """Run a method on toy data up to step `t`, and return it in float64."""
    with patch("hf_condense.condensed.decoders.siren._FIT_STEPS", 20):
        run, instance, _, _ = objective_of_step(method, {**QUICK, **options}, t, ipc)
    synthetic, frame = run.synthetic, run.synthetic.decoder.frame
    synthetic.decoder = synthetic.decoder.in_frame(Frame(frame.mean.double(), frame.std.double(), frame.clip))
    synthetic.stored.update({name: float64_leaf(tensor) for name, tensor in synthetic.learned().items()})
    if synthetic.soft_labels is not None:
        synthetic.soft_labels = float64_leaf(synthetic.soft_labels, synthetic.soft_labels.requires_grad)
    if synthetic.student_lr is not None:
        synthetic.student_lr = float64_leaf(synthetic.student_lr)
    instance._averages = {name: tensor.detach().clone() for name, tensor in synthetic.learned().items()}
    window = type(instance).window

    def window_in_float64(run: Run, draw: int) -> Window:
        return Window(window(instance, run, draw).points.double())

    instance.window = window_in_float64
    return ObservedMethod(run, instance, instance.window(run, getattr(instance, "_start_step", t)), t)
