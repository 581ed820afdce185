"""Where the time of a run goes: a callback that profiles some steps, and a short table."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hf_condense.base.tables import plain_table
from hf_condense.engine.run import Run

_STEPS = 10  # that are profiled, after the first one, which may compile
_ROWS = 10  # operations in the table


class StepProfile:
    """A callback that profiles some steps after the first one with `torch.profiler`. `report` says what it has seen."""

    def __init__(self) -> None:
        # Torch's profiler logs to stderr, for example that CUDA is missing; it reads this when it is first used.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._started = time.perf_counter()
        self._on_gpu = False
        self._ends: list[tuple[int, float]] = []  # step and time of the first and of the last step
        self._profile: Any = None  # of the step that is running
        self._steps: list[Any] = []  # operations of every profiled step

    def __call__(self, run: Run, done: int, loss: float) -> None:
        """End the profile of a step and start that of the next, so that nothing but steps is in it."""
        self._ends = [*self._ends[:1], (done, time.perf_counter())]
        if self._profile is not None:
            self._profile.stop()
            self._steps.append(self._profile.key_averages())
            self._profile = None
        if len(self._steps) < _STEPS:
            self._on_gpu = run.device.type == "cuda"
            devices = [ProfilerActivity.CUDA] if self._on_gpu else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *devices])
            self._profile.start()

    def report(self) -> str:
        """Return the times of the run's parts, and the operations that took most of the profiled steps."""
        finished = time.perf_counter()
        if not self._ends:
            return f"Profile: {finished - self._started:.1f} s. This method has no steps."
        if self._profile is not None:
            self._profile.stop()
        (first, begun), (last, ended) = self._ends[0], self._ends[-1]
        parts = [("PART OF THE RUN", "SECONDS"), ("until the first step is done", f"{begun - self._started:.1f}")]
        if last > first:
            each = 1000 * (ended - begun) / (last - first)
            parts.append((f"{last - first} more steps, {each:.1f} ms each", f"{ended - begun:.1f}"))
        parts.append(("after the last step", f"{finished - ended:.1f}"))
        text = plain_table(parts, right={1})
        return f"{text}\n\n{self._operations()}" if self._steps else text

    def _operations(self) -> str:
        """Return the table of operations: their own time, on the GPU if the run is there."""
        name = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        calls, times = Counter[str](), Counter[str]()  # by operation; microseconds
        for event in (event for step in self._steps for event in step):
            calls[event.key] += event.count
            times[event.key] += getattr(event, name)
        total, steps = max(1.0, times.total()), len(self._steps)
        rows = [
            (key[:50], f"{calls[key] / steps:.0f}", f"{spent / 1000 / steps:.2f}", f"{spent / total:.0%}")
            for key, spent in times.most_common(_ROWS)
        ]
        return plain_table([("OPERATION", "CALLS PER STEP", "MS PER STEP", "SHARE"), *rows], right={1, 2, 3})
