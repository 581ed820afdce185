"""Signals that ask a run to end: it ends where nothing is lost that could be kept, and says how to go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from hf_condense.base.errors import RunInterrupted

_DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
# A launcher of several processes passes on to them what the terminal has sent to them already.
_RELAY_SECONDS = 1.0


class Interrupts:
    """SIGINT and SIGTERM during a run. As a context manager, it handles them and restores the handlers afterwards.

    The first signal raises `RunInterrupted`: at once, or inside `postponed` where the block says so. The second signal
    ends the process at once, as if there were no handlers. Only the main thread can handle signals; in other threads
    nothing happens. A program that has handlers of its own keeps them.

    Attributes:
        signal: Number of the signal that has arrived, or None.
        remains: What an interruption leaves behind and how to go on, for its message.

    Example:
        >>> done = []
        >>> try:
        ...     with Interrupts("2 steps are done") as interrupts, interrupts.postponed():
        ...         while interrupts.signal is None:
        ...             done.append(len(done))
        ...             if len(done) == 2:
        ...                 signal.raise_signal(signal.SIGTERM)
        ... except RunInterrupted as error:
        ...     print(error, done)
        interrupted by SIGTERM; 2 steps are done [0, 1]
    """

    def __init__(self, remains: str = "") -> None:
        self.signal: int | None = None
        self.remains = remains
        self._postpones = ""
        self._arrival = 0.0
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) == default:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    @contextmanager
    def postponed(self, what: str = "this step is finished first") -> Iterator[None]:
        """Let a block decide when it ends. At its end, a signal that has arrived raises `RunInterrupted`.

        Args:
            what: What the block still does when a signal arrives. This is printed to standard error at once, so
                that nobody sends a second signal because nothing seems to happen.
        """
        self._postpones = what
        try:
            yield
        finally:
            self._postpones = ""
        if self.signal is not None:
            raise self.error()

    def error(self) -> RunInterrupted:
        """Return the exception that an interruption raises now."""
        name = "a signal to another process" if self.signal is None else signal.Signals(self.signal).name
        message = f"interrupted by {name}"
        return RunInterrupted(f"{message}; {self.remains}" if self.remains else message, self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.signal is None:
            self.signal, self._arrival = number, time.monotonic()
            if not self._postpones:
                raise self.error()
            # Written past Python's buffers, which the signal may have interrupted while they were written to.
            second = "a second signal ends" if not _relay_seconds() else "a second signal, a second later, ends"
            text = f"\n{signal.Signals(number).name}: {self._postpones}; {second} the run at once\n"
            with suppress(OSError):
                os.write(2, text.encode())
        elif time.monotonic() - self._arrival >= _relay_seconds():
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def _relay_seconds() -> float:
    """Return how long after a signal a second one may come from a launcher."""
    return _RELAY_SECONDS if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.0
