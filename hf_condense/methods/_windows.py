"""Windows: the parts of experts' trajectories along which students are trained, and where they start."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.methods._recordings import Recordings
from hf_condense.methods._student_options import TrajectoryConfig

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Window:
    """A part of an expert's trajectory.

    Attributes:
        points: Snapshots from the start of the window to its end. float32 (expert_span + 1, P), on the CPU.
        device: Where the student is trained. Only what is asked for is copied to it.
    """

    points: Tensor
    device: torch.device = _CPU

    @cached_property
    def start(self) -> Tensor:
        """The weights at which the student starts: (P,), on the device."""
        return to_device(self.points[0], self.device)

    @cached_property
    def end(self) -> Tensor:
        """The expert's weights at the end of the window: (P,), on the device."""
        return to_device(self.points[-1], self.device)

    @cached_property
    def displacement(self) -> Tensor:
        """The difference between the expert's weights at the end and at the start: (P,), on the device."""
        return to_device(self.points[-1] - self.points[0], self.device)


def random_window(run: Run, experts: Recordings, config: TrajectoryConfig, draw: int) -> Window:
    """Return a random window of a random expert.

    Args:
        run: The run.
        experts: The recorded experts.
        config: How long windows are, and where they may start.
        draw: Number of the draw: its key, and the step of the run for which the window is drawn.

    Raises:
        ValueError: If the expert does not move in the window.
    """
    generator = run.rng("window", draw)
    expert = int(torch.randint(len(experts), (), generator=generator))
    starts = latest_start_in(config, draw) - config.min_start
    start = config.min_start + int(torch.randint(starts, (), generator=generator))
    points = experts.window(expert, start, config.expert_span + 1)
    if not float((points[-1] - points[0]).square().sum()):
        raise ValueError(
            f"expert {expert} does not move from snapshot {start} to snapshot {start + config.expert_span}, so "
            f"nothing can be matched; a larger lr_expert (now {config.lr_expert}) usually helps"
        )
    return Window(points, run.device)


def check_windows(config: TrajectoryConfig) -> None:
    """Raise for lengths and starts of windows that contradict each other.

    Raises:
        ValueError: If a window is longer than a trajectory, or has nowhere to start.
    """
    if config.expert_span >= config.snapshots:
        raise ValueError(
            f"expert_span={config.expert_span} needs at least {config.expert_span + 1} snapshots of an expert; "
            f"got snapshots={config.snapshots}"
        )
    if config.first_max_start and config.max_start and config.first_max_start > config.max_start:
        raise ValueError(
            f"first_max_start={config.first_max_start} should be at most max_start={config.max_start}, to which "
            "the latest start grows (a preset may have set either)"
        )
    last = config.snapshots - config.expert_span
    for name, start in (("max_start", config.max_start), ("first_max_start", config.first_max_start)):
        if start and start > last:
            logger.warning(
                "%s=%d is beyond the last window, which starts below %d (snapshots=%d, expert_span=%d), and is cut; "
                "a preset may have set it",
                name,
                start,
                last,
                config.snapshots,
                config.expert_span,
            )
    if config.expansion_steps is not None and config.first_max_start is None:
        raise ValueError(
            f"expansion_steps={config.expansion_steps} has no effect without first_max_start, from which the latest "
            "start grows; pass that too, or expansion_steps=None (a preset may have set it)"
        )
    first = latest_start_in(config, 0)
    if config.min_start >= first:
        raise ValueError(
            f"min_start={config.min_start} should be below the latest start of a window, {first} in the first step "
            f"(snapshots={config.snapshots}, expert_span={config.expert_span}, max_start={config.max_start}, "
            f"first_max_start={config.first_max_start})"
        )


def latest_start_in(config: TrajectoryConfig, t: int) -> int:
    """Return the latest start of a window in step `t`, exclusive, as the options say."""
    starts = config.snapshots - config.expert_span
    last = min(starts, config.max_start or starts)
    growing = config.expansion_steps or max(1, config.steps // 2)
    return latest_start(min(config.first_max_start or last, last), last, growing, t)


def latest_start(first: int, last: int, steps: int, t: int) -> int:
    """Return the latest start of a window in a step, exclusive: it grows evenly from the first value to the last.

    Args:
        first: Latest start in step 0.
        last: Latest start from step `steps` on, at least `first`.
        steps: Number of steps, >= 1.
        t: The step.

    References:
        Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024,
        section 3.2 (arXiv:2310.05773).

    Example:
        >>> [latest_start(10, 20, 100, t) for t in (0, 9, 10, 99, 100, 500)]
        [10, 10, 11, 19, 20, 20]
    """
    return min(first + (last - first) * t // steps, last)
