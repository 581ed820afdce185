"""Report a run to the trackers of Accelerate, such as TensorBoard: scalars of its steps and pictures of its set."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_condense.base.paths import local_path
from hf_condense.base.processes import new_accelerator
from hf_condense.condensed.preview import first_images
from hf_condense.engine.loop import Callback
from hf_condense.engine.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")

_PROJECT = "hf_condense"
_REPORTS = 1000  # of scalars in a whole run, at most
_PER_CLASS, _MOST_CLASSES = 5, 10  # images in a picture


def tracker_host(log_with: Any, logging_dir: str | Path) -> Accelerator | None:
    """Return an accelerator that holds the trackers which the caller asks for, or None without any.

    Args:
        log_with: What `accelerate.Accelerator(log_with=)` takes: the name of a tracker, a tracker, a list of these, or
            None.
        logging_dir: Folder of the trackers that write files.

    Raises:
        ValueError: If a tracker is unknown, or a package that it needs is not installed.
    """
    if log_with is None:
        return None
    names = list(log_with) if isinstance(log_with, Sequence) and not isinstance(log_with, str) else [log_with]
    try:
        # One of its own: the trackers of the caller's accelerator belong to the caller.
        with warnings.catch_warnings():  # of packages that are not installed, which raise below
            warnings.simplefilter("ignore")
            host = new_accelerator(log_with=names, project_dir=str(local_path(logging_dir)))
    except ValueError as error:
        raise ValueError(f"log_with names {_unknown(names)}, which Accelerate does not know: {error}") from error
    missing = [repr(str(name)) for name in names if str(name) not in map(str, host.log_with)]
    if missing and "all" not in map(str, names):
        raise ValueError(f"log_with names {', '.join(missing)}, whose package is not installed; install it with pip")
    return host


def _unknown(trackers: Sequence[Any]) -> str:
    """Return the names of the trackers that Accelerate does not know."""
    from accelerate.tracking import GeneralTracker
    from accelerate.utils import LoggerType

    known = {str(tracker) for tracker in LoggerType}
    return ", ".join(repr(t) for t in trackers if str(t) not in known and not isinstance(t, GeneralTracker))


@contextmanager
def tracked(host: Accelerator | None, facts: Mapping[str, Any], steps: int, every: int) -> Iterator[list[Callback]]:
    """Start trackers, and finish them at the end of the block, whatever happens.

    Args:
        host: What `tracker_host` returned.
        facts: What the trackers note at the start.
        steps: Number of steps of the run.
        every: Steps between two pictures.

    Yields:
        The callbacks that report the run.
    """
    if host is None:
        yield []
        return
    plain = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in facts.items()}
    host.init_trackers(_PROJECT, plain)
    try:
        yield [_Report(host, steps, every)]
    finally:
        for tracker in host.trackers:
            try:
                tracker.finish()
            except Exception as error:  # whatever it raises: the set should not be lost
                logger.warning("the tracker %r could not finish: %s", tracker.name, error)


@dataclass
class _Report:
    """A callback that reports steps to trackers; only the main process does.

    Attributes:
        host: The accelerator that holds the trackers.
        steps: Number of steps of the run.
        every: Steps between two pictures.
    """

    host: Accelerator
    steps: int
    every: int
    _last: tuple[int, float] | None = field(default=None, init=False)  # step and time of the last report
    _has_failed: bool = field(default=False, init=False)

    def __call__(self, run: Run, done: int, loss: float) -> None:
        """Report a step. If a tracker fails, the run goes on, and a warning says so once."""
        try:
            self._report(run, done, loss)
        except Exception as error:  # whatever it raises: the set should not be lost
            if not self._has_failed:
                logger.warning("a tracker could not take the report of step %d: %s", done, error)
            self._has_failed = True

    def _report(self, run: Run, done: int, loss: float) -> None:
        is_first, is_last = self._last is None, done == self.steps
        if is_first or is_last or done % math.ceil(self.steps / _REPORTS) == 0:
            self._log_scalars(done, loss)
        if run.accelerator.is_main_process and (is_first or is_last or done % self.every == 0):
            self._log_picture(run, done)

    def _log_scalars(self, done: int, loss: float) -> None:
        now, scalars = time.perf_counter(), {"loss": loss}
        if self._last is not None:
            scalars["steps_per_second"] = (done - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = done, now
        self.host.log(scalars, step=done)

    def _log_picture(self, run: Run, done: int) -> None:
        picture = first_images(run.synthetic.finished(), _PER_CLASS, max_classes=_MOST_CLASSES)
        pixels = np.asarray(picture.convert("RGB"))[None]  # (1, H, W, 3)
        for tracker in self.host.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"images": pixels}, step=done, **options)
