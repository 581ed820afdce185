"""The exceptions of this library, and the hint that other error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CondensedFormatError(ValueError):
    """A stored set is damaged, unsafe, of a newer format or not a condensed set; the message says which and where."""


class NonFiniteLossError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the step. Checkpoints stay where they are."""


class CannotRunError(RuntimeError):
    """What a run needs besides its arguments is not as it should be; the message says what is wrong and what to do."""


class RunInterrupted(KeyboardInterrupt):
    """A signal, such as that of Ctrl-C, has ended a run; the message says what is kept and how to go on.

    A script that does not catch it ends with status 1, as with any error. The status that shells expect is 128 plus the
    signal: `except RunInterrupted as error: sys.exit(128 + (error.signal or signal.SIGINT))`.

    Attributes:
        signal: Number of the signal; None if it was sent to another process of the run.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, where x is the choice closest to `name`, or `""` if none is close.

    A choice in other letters, upper or lower, is close, too, and one that begins with the name and an underscore:
    `lr_img` is what `lr` may stand for.
    """
    names = list(choices)
    matches = [c for c in names if c.lower() == name.lower()] or difflib.get_close_matches(name, names, n=1)
    matches = matches or [c for c in names if c.startswith(f"{name}_")]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def plain_text(error: Exception) -> str:
    """Return the text of an error, without the number that Python puts before those of the system.

    Example:
        >>> plain_text(OSError(28, "no space left while writing here"))
        'no space left while writing here'
    """
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)
