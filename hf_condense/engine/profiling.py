"""Where the time of a run goes: a callback that profiles some steps, and a short table."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hf_condense.base.tables import plain_table
from hf_condense.engine.run import Run

_STEPS = 10  # that are profiled, after the first one, which may compile
_ROWS = 10  # operations in the table


class StepProfile:
    """A callback that profiles some steps after the first one with `torch.profiler`. `report` says what it has seen."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._ends: list[tuple[int, float]] = []  # step and time of the first and of the last step
        self._profile: Any = None
        self._profiled = 0

    def __call__(self, run: Run, done: int, loss: float) -> None:
        """Start or stop the profile when it is time."""
        self._ends = [*self._ends[:1], (done, time.perf_counter())]
        if self._profile is None:
            devices = [ProfilerActivity.CUDA] if run.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *devices])
            self._profile.start()
        elif self._profiled < _STEPS:
            self._profiled += 1
            if self._profiled == _STEPS:
                self._profile.stop()

    def report(self) -> str:
        """Return the times of the run's parts, and the operations that took most of the profiled steps."""
        finished = time.perf_counter()
        if self._profile is None:
            return f"Profile: {finished - self._started:.1f} s. This method has no steps."
        if self._profiled < _STEPS:
            self._profile.stop()
        (first, begun), (last, ended) = self._ends[0], self._ends[-1]
        parts = [("PART OF THE RUN", "SECONDS"), ("until the first step is done", f"{begun - self._started:.1f}")]
        if last > first:
            each = 1000 * (ended - begun) / (last - first)
            parts.append((f"{last - first} more steps, {each:.1f} ms each", f"{ended - begun:.1f}"))
        parts.append(("after the last step", f"{finished - ended:.1f}"))
        text = plain_table(parts, right={1})
        return f"{text}\n\n{self._operations()}" if self._profiled else text

    def _operations(self) -> str:
        """Return the table of operations: their own time, on the GPU if there is one."""
        name = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        events = sorted(self._profile.key_averages(), key=lambda event: getattr(event, name), reverse=True)
        total = max(1.0, sum(getattr(event, name) for event in events))
        rows = [
            (
                event.key[:50],
                f"{event.count / self._profiled:.0f}",
                f"{getattr(event, name) / 1000 / self._profiled:.2f}",
                f"{getattr(event, name) / total:.0%}",
            )
            for event in events[:_ROWS]
        ]
        return plain_table([("OPERATION", "CALLS PER STEP", "MS PER STEP", "SHARE"), *rows], right={1, 2, 3})
