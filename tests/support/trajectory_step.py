"""A trajectory method at one step, taken apart in float64: its objective, and what the textbook needs to repeat it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.condensed.decoders import Frame
from hf_condense.engine.run import Run
from hf_condense.methods._student import TrajectoryMethod, Window
from tests.reference.trajectory import Step
from tests.support.observed_step import objective_of_step

QUICK = {"experts": 2, "snapshots": 6, "snapshot_every": 2, "lr_expert": 0.1, "cache": False}


class Student(NamedTuple):
    """A method at one step, in float64."""

    run: Run
    method: Any
    window: Window
    t: int

    def objective(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective's value, and its gradient by what is learned, summed over what the method yields."""
        learned = self.run.synthetic.parameters()
        for tensor in learned.values():
            tensor.grad = torch.zeros_like(tensor)
        value = torch.zeros((), dtype=torch.float64)
        for loss, reported in self.method.losses(self.run, self.t):
            loss.backward(inputs=list(learned.values()))
            value += reported
        return value, {name: tensor.grad.clone() for name, tensor in learned.items()}

    def step(self, draw: int, n: int) -> Step:
        """Return the rows and targets of a student's step, each row decoded, augmented and labelled on its own."""
        run, method = self.run, self.method
        rows, labels = run.synthetic.of(run.classes)
        targets = F.one_hot(labels, run.num_classes).double()
        if run.synthetic.soft_labels is not None:
            targets = (run.synthetic.soft_labels.double() / method.config.temperature).softmax(1)
        batch = method.batch(run, draw, n)
        kept = range(len(rows)) if batch.chosen is None else batch.chosen.nonzero()[:, 0].tolist()
        found = []
        for i in kept:
            row = rows[i : i + 1]
            if method.augmentation is not None:
                drawn = method.augmentation.draw(len(rows), run.rng("augment", draw, n))
                row = drawn(row, torch.tensor([i]))
            found.append((row[0], targets[i]))
        return found


def in_float64(tensor: Tensor, learned: bool = True) -> Tensor:
    """Return a leaf of the same values in float64."""
    return tensor.detach().double().requires_grad_(learned)


def student(method: type[TrajectoryMethod[Any]], t: int = 2, ipc: Any = 2, **options: Any) -> Student:
    """Run a method on a toy up to step `t`, and hand it over in float64."""
    run, made, _, _ = objective_of_step(method, {**QUICK, **options}, t, ipc)
    synthetic, frame = run.synthetic, run.synthetic.decoder.frame
    synthetic.decoder = synthetic.decoder.in_frame(Frame(frame.mean.double(), frame.std.double(), frame.clip))
    synthetic.stored = {name: in_float64(tensor) for name, tensor in synthetic.stored.items()}
    if synthetic.soft_labels is not None:
        synthetic.soft_labels = in_float64(synthetic.soft_labels, synthetic.soft_labels.requires_grad)
    if synthetic.student_lr is not None:
        synthetic.student_lr = in_float64(synthetic.student_lr)
    made._averages = {name: tensor.detach().clone() for name, tensor in synthetic.stored.items()}
    window = type(made).window

    def in_double(run: Run, draw: int) -> Window:
        return Window(window(made, run, draw).points.double())

    made.window = in_double
    return Student(run, made, made.window(run, getattr(made, "_begun", t)), t)
