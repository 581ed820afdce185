"""Checks of what a caller passed: each says what was wrong, what was given and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real

from hf_condense.base.errors import did_you_mean


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """Return a value as an `int` if it is an integer (NumPy's included, bool not) and not below a bound.

    Args:
        name: What the caller knows the value by.
        value: What was passed.
        least: Smallest value allowed.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is too small.

    Example:
        >>> integer("seeds", 3, least=1)
        3
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} should be an integer; got {value!r} ({type(value).__name__})")
    if least is not None and value < least:
        raise ValueError(f"{name} should be at least {least}; got {value}")
    return int(value)


def number(name: str, value: object, *, least: float | None = None, above: float | None = None) -> float:
    """Return a value as a `float` if it is a real number (bool not) within its bounds.

    Args:
        name: What the caller knows the value by.
        value: What was passed.
        least: Smallest value allowed.
        above: The value must be larger than this.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} should be a number; got {value!r} ({type(value).__name__})")
    given = float(value)
    if least is not None and not given >= least:
        raise ValueError(f"{name} should be at least {least}; got {value!r}")
    if above is not None and not given > above:
        raise ValueError(f"{name} should be larger than {above}; got {value!r}")
    return given


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raise `ValueError` unless a value is one of those that are known; the message lists them.

    Example:
        >>> one_of("pixel_range", "valid", ["valid", "free"])
    """
    choices = list(known)
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
        raise ValueError(f"{name} should be one of {listed}; got {value!r}{hint}")
