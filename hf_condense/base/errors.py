"""The errors that callers may want to tell apart from a plain ValueError or TypeError."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CondensedFormatError(ValueError):
    """A stored condensed set is damaged, unsafe, foreign or of a newer format; the message says which and where."""


class NonFiniteLossError(ArithmeticError):
    """A loss or a gradient became NaN or infinite; the message names the step, and checkpoints are kept."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name closest to `name`, or nothing if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
