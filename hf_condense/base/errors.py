"""The exceptions of this library, and the hint that other error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CondensedFormatError(ValueError):
    """A stored set is damaged, unsafe, of a newer format or not a condensed set; the message says which and where."""


class NonFiniteLossError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the step. Checkpoints stay where they are."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, where x is the choice closest to `name`, or `""` if none is close."""
    matches = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
