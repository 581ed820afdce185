"""TESLA: trajectory matching, where necessary in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import Loss, MethodInfo, Preset
from hf_condense.engine.task import Task
from hf_condense.methods._images import ADVICE_FOR_DIGITS_AND_EXPERTS
from hf_condense.methods._student_presets import paper_row
from hf_condense.methods.mtt import StudentMatching, TrajectoryMatching, distance_ratio, paper_table, student_rate

if TYPE_CHECKING:
    from hf_condense.engine.run import Run


def _paper(task: Task) -> dict[str, Any]:
    """Return MTT's table with more steps and the experts' labels; one row has another image rate and later starts."""
    values = {**paper_table(task), "steps": 10_000, "soft_labels": "teacher", "labels_from": "experts"}
    if paper_row(task) == ("few classes", 1):
        values |= {"max_start": 5, "lr_img": 1000.0}
    return values


class ConstantMemoryMatching(StudentMatching):
    """Trajectory matching in constant memory (TESLA).

    References:
        Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023, section 3.2
        (arXiv:2211.10586).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="tesla",
        title="Trajectory matching in constant memory (TESLA)",
        kind="synthetic",
        summary="Matches trajectories as MTT does; where memory is short, with one student step in it at a time.",
        paper="Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
        authors="Justin Cui, Ruochen Wang, Si Si and Cho-Jui Hsieh",
        venue="ICML",
        year=2023,
        link="https://arxiv.org/abs/2211.10586",
        cost="experts once; a student's steps, twice where memory is short, and a double backward of each",
    )
    presets: ClassVar[dict[str, Preset]] = {
        **TrajectoryMatching.presets,
        "paper": Preset(
            "10,000 steps, labels of the experts, given once (the authors' code labels anew in every step); otherwise "
            f"MTT's table, as there (ICML 2023). {ADVICE_FOR_DIGITS_AND_EXPERTS}",
            _paper,
        ),
    }

    @property
    def passes(self) -> int:
        """A step may keep the graphs of all steps of the student."""
        return self.config.student_steps

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the losses of the student's steps, one after the other.

        The weights along the rollout count as constants, so the objective depends on the images through the gradients
        of the steps alone.

        References:
            Cui et al., ICML 2023, section 3.2.
        """
        window = self.window(run, t)

        def objective(displacement: Tensor) -> Tensor:
            # Seen from the start of the window, the student starts at zero and should reach the expert's displacement.
            return distance_ratio(displacement, torch.zeros_like(displacement), window.displacement)

        yield from self.rollout(run, t, window, student_rate(run), objective)
