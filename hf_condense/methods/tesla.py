"""TESLA: trajectory matching at constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from hf_condense.engine.method import Loss, MethodInfo, Preset
from hf_condense.engine.task import Task
from hf_condense.methods.mtt import (
    StudentMatching,
    TrajectoryMatching,
    distance_ratio,
    paper_row,
    paper_table,
    student_rate,
)

if TYPE_CHECKING:
    from hf_condense.engine.run import Run


def _tesla_paper(task: Task) -> dict[str, object]:
    """MTT's table but for length and labels; for one image a class of few classes, a larger rate and later starts."""
    values = {**paper_table(task), "steps": 10_000, "soft_labels": "teacher"}
    if paper_row(task) == ("few classes", 1):
        values |= {"max_start": 5, "lr_img": 1000.0}
    return values


class ConstantMemoryMatching(StudentMatching):
    """Trajectory matching at constant memory (TESLA)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="tesla",
        title="Trajectory matching at constant memory (TESLA)",
        kind="synthetic",
        summary="Matches trajectories as MTT does, one student step in memory at a time, whatever their number.",
        paper="Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
        authors="Justin Cui, Ruochen Wang, Si Si and Cho-Jui Hsieh",
        venue="ICML",
        year=2023,
        link="https://arxiv.org/abs/2211.10586",
        cost="experts once; a student's steps twice, the second time with a double backward of each",
    )
    presets: ClassVar[dict[str, Preset]] = {
        **TrajectoryMatching.presets,
        "paper": Preset(
            "10,000 steps, labels of a teacher; otherwise MTT's table, as in the authors' code (ICML 2023).",
            _tesla_paper,
        ),
    }

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the steps of the rollout one after the other.

        The weights along the rollout count as given, so that an objective of where it ends depends on the images
        through the gradients of the steps alone, and on each of them with the same weights.

        Reference:
            Cui et al., ICML 2023, section 3.2.
        """
        window = self.window(run, t)
        rate = student_rate(run)
        yield from self.rollout(run, t, window, rate, lambda u: distance_ratio(u, 0 * u, window.displacement))
