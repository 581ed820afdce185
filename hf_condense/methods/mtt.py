"""MTT: make a student that is trained on the synthetic set end where an expert ended."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_condense.engine.forms import few_images, is_large_set
from hf_condense.engine.method import Loss, MethodInfo, Preset
from hf_condense.engine.options import option
from hf_condense.engine.task import Task
from hf_condense.methods._images import ADVICE_FOR_DIGITS_AND_EXPERTS
from hf_condense.methods._student import TrajectoryMethod, in_exact_convolutions, summed_with_graph
from hf_condense.methods._student_options import TrajectoryConfig
from hf_condense.methods._student_presets import (
    default_values,
    long_windows,
    paper_batch,
    paper_row,
    short_run,
    student_form,
)
from hf_condense.networks.augment import ALL_FAMILIES
from hf_condense.source.whitening import LARGEST_WHITENED

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet

_LEAST_RATE = 1e-5  # lower bound of the student's learned rate

# The table of the authors' code: options by kind of task and images per class. The kinds stand for CIFAR-10, CIFAR-100
# (both have images of 32 pixels) and Tiny ImageNet (64 pixels).
_PAPER: dict[tuple[str, int], tuple[int, int, int, float, float, float, bool, int | None]] = {
    #                    student_steps, expert_span, max_start, lr_img, lr_student, lr_lr,   zca, batch_syn
    ("few classes",   1): (         50,           2,         2,    100,       0.01,  1e-7,  True,      None),
    ("few classes",  10): (         30,           2,        20,    100,      0.001,  1e-5,  True,      None),
    ("few classes",  50): (         30,           2,        40,   1000,      0.001,  1e-5, False,      None),
    ("many classes",  1): (         20,           3,        20,   1000,       0.01,  1e-5,  True,      None),
    ("many classes", 10): (         20,           2,        20,   1000,       0.01,  1e-5, False,      None),
    ("many classes", 50): (         80,           2,        40,   1000,       0.01,  1e-5,  True,       125),
    ("large",         1): (         10,           2,        10,    1e4,       0.01,  1e-4, False,      None),
    ("large",        10): (         20,           2,        40,    1e4,       0.01,  1e-4, False,       200),
    ("large",        50): (         20,           2,        40,    1e4,       0.01,  1e-4, False,       300),
}  # fmt: skip


def distance_ratio(reached: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance from the student's end to the expert's end, relative to the expert's own distance.

    Args:
        reached: Weights at which the student ended. (P,).
        start: Weights at which the student and the expert started. (P,).
        target: Weights at which the expert ended. (P,).

    Returns:
        A scalar, ().

    References:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, equation 2
        (arXiv:2203.11932).

    Example:
        >>> start, target = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0])
        >>> float(distance_ratio(torch.tensor([1.0, 0.0]), start, target))
        0.25
    """
    return (reached - target).square().sum() / (start - target).square().sum()


@dataclass(frozen=True)
class TrajectoryMatchingConfig(TrajectoryConfig):
    """Options of MTT."""

    lr_student: float = option(
        0.01, "Initial learning rate of the student, which is learned and stored with the set.", gt=0
    )
    lr_lr: float = option(1e-5, "Learning rate of the student's learning rate; 0 keeps the initial value.", ge=0)


def paper_table(task: Task) -> dict[str, Any]:
    """Return the options of the paper's table for the row that is nearest to a task."""
    steps, span, starts, lr_img, lr_student, lr_lr, zca, batch = _PAPER[paper_row(task)]
    return {
        "steps": 5000,
        "student_steps": steps,
        "expert_span": span,
        "max_start": starts,
        "lr_img": lr_img,
        "lr_student": lr_student,
        "lr_lr": lr_lr,
        "zca": zca and math.prod(task.image_shape) <= LARGEST_WHITENED,
        "batch_syn": paper_batch(batch, task),
        "experts": 100,
        "snapshots": 51,
        "augment_expert": ALL_FAMILIES,
        "pixel_range": "free",
    }


def _default(task: Task) -> dict[str, Any]:
    return default_values(short_run(task), task)


def _quick(task: Task) -> dict[str, Any]:
    if few_images(task):
        return {**short_run(task), **student_form(task), **long_windows(task, steps=150)}
    # In a form of many rows, more steps on fewer rows do better, and so does a window as short as what the student
    # can follow; for digits, also smaller updates of the images and more steps of the student. Fifty images per class
    # do better with smaller updates, too.
    changes: dict[str, Any] = {}
    if task.storage == "dct":
        changes = {"expert_span": 2, "lr_img": 250.0 if is_large_set(task) else 1000.0}
        if task.image_shape[0] == 1:
            changes |= {"lr_img": 200.0, "student_steps": 12}
    return {**short_run(task), **student_form(task, rows=1), **changes}


def student_rate(run: Run) -> Tensor:
    """Return the learned learning rate of the student: ()."""
    rate = run.synthetic.student_lr
    assert rate is not None
    return rate


class StudentMatching(TrajectoryMethod[TrajectoryMatchingConfig]):
    """Base class of MTT and TESLA: the student's learning rate is learned with the images."""

    Config = TrajectoryMatchingConfig

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the first images and the student's initial learning rate."""
        synthetic = super().initialise(run)
        synthetic.student_lr = torch.tensor(float(self.config.lr_student), device=run.device)
        return synthetic

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        """Return the optimiser of the images and, in a group of its own, of the student's learning rate."""
        optimiser = super().optimiser(run)
        optimiser.add_param_group({"params": [student_rate(run)], "lr": self.config.lr_lr})
        return optimiser

    def after_update(self, run: Run, t: int) -> None:
        """Keep the student's learning rate positive."""
        super().after_update(run, t)
        with torch.no_grad():
            student_rate(run).clamp_(min=min(_LEAST_RATE, self.config.lr_student))


class TrajectoryMatching(StudentMatching):
    """Matching training trajectories (MTT).

    References:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, equation 2
        (arXiv:2203.11932); see `distance_ratio`.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="mtt",
        title="Matching Training Trajectories",
        kind="synthetic",
        summary="Trains a student on the synthetic set for many steps and brings it to where an expert ended.",
        paper="Dataset Distillation by Matching Training Trajectories",
        authors="George Cazenavette, Tongzhou Wang, Antonio Torralba, Alexei A. Efros and Jun-Yan Zhu",
        venue="CVPR",
        year=2022,
        link="https://arxiv.org/abs/2203.11932",
        cost="experts once; a student's steps, all kept in memory, and a double backward through them",
    )
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset(
            "`quick` at width 128, with pixels, at most 500 in a step, 50 experts and twice the steps; not measured.",
            _default,
        ),
        "paper": Preset(
            "100 experts of 50 epochs, 5,000 steps; options by classes, ipc and image size, as in the authors' table "
            f"(CVPR 2022). {ADVICE_FOR_DIGITS_AND_EXPERTS}",
            paper_table,
        ),
        "quick": Preset(
            "150 to 400 steps at width 32, some 20 short experts, falling rates; up to 50 images per class in "
            "frequencies: minutes.",
            _quick,
        ),
    }

    memory_remedy: ClassVar[str] = (
        "fewer student_steps, or a smaller batch_syn, network or image_size, needs less, as does the method 'tesla', "
        "which keeps one step at a time if it must"
    )

    @property
    def passes(self) -> int:
        """The steps of the student, whose graphs are all kept."""
        return self.config.student_steps

    @property
    def cuts(self) -> tuple[str, ...]:
        """None: the graphs of all student steps are in memory together, however a step is cut."""
        return ()

    @in_exact_convolutions
    def losses(self, run: Run, t: int) -> Generator[Loss, None, None]:
        """Yield this process's share of the distance ratio, with the graph of all student steps."""
        window = self.window(run, t)
        rate, student = student_rate(run), window.start.clone().requires_grad_()
        for n in range(self.config.student_steps):
            batch = self.batch(run, t, n)
            parts = [self.chunk_gradient(run, student, batch, classes) for classes in run.chunks()]
            # A process without a chunk adds zeros with a graph to the images, to take part in the backward pass.
            share = torch.stack(parts).sum(0) if parts else torch.zeros_like(student) + run.synthetic.zero()
            student = student - rate * summed_with_graph(run, share)
        loss = distance_ratio(student, window.start, window.end) / run.accelerator.num_processes
        yield Loss(loss, loss.detach())
