"""Check the values that callers pass; each error says what was wrong, what was given and what would be right."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from hf_condense.base.errors import did_you_mean

if TYPE_CHECKING:
    from hf_condense.base.devices import CompileOption

MAX_SIDE = 4096  # pixels; images of sets and of sources have at most this height and width

P = ParamSpec("P")
R = TypeVar("R")


def names_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that, if it is called with an unknown argument, names the one that may have been meant.

    Example:
        >>> @names_arguments
        ... def train(networks="all"): ...
        >>> train(network="mlp")
        Traceback (most recent call last):
        TypeError: train has no argument 'network'; did you mean 'networks'?
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in parameters:
                raise TypeError(f"{function.__name__} has no argument {name!r}{did_you_mean(name, parameters)}")
        return function(*args, **kwargs)

    return call


def boolean(name: str, value: object) -> bool:
    """Return a value as a `bool` if it is a truth value of Python or NumPy.

    Text such as `"no"` counts as true in Python, so it would do the opposite of what it says.

    Args:
        name: The name by which the caller knows the value.
        value: The value that was passed.

    Raises:
        TypeError: If it is not a truth value.

    Example:
        >>> boolean("cache", False)
        False
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} should be True or False; got {value!r} ({type(value).__name__})")
    return bool(value)


def check_path(name: str, value: object) -> None:
    """Raise if a value is not a path: text that is not empty, or an object such as a `Path`.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is empty text, which would stand for the current folder.

    Example:
        >>> check_path("folder", "~/sets")
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} should be a path, as text or a Path; got {value!r:.80} ({type(value).__name__})")
    if value == "":
        raise ValueError(f"{name} should be a path; got empty text, where '.' would name the current folder")


def check_text(name: str, value: object) -> None:
    """Raise `TypeError` unless a value is text or None.

    Example:
        >>> check_text("revision", "main")
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} should be text; got {value!r:.80} ({type(value).__name__})")


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """Return a value as an `int` if it is an integer (of Python or NumPy, but not a bool) and large enough.

    Args:
        name: The name by which the caller knows the value.
        value: The value that was passed.
        least: Smallest value allowed.

    Raises:
        TypeError: If it is not an integer.
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


def seed_value(name: str, value: object) -> int:
    """Return a seed as an `int` if files can hold it: an integer of 64 bits without a sign.

    Args:
        name: The name by which the caller knows the seed.
        value: The value that was passed.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.

    Example:
        >>> seed_value("seed", 2**64 - 1) == 2**64 - 1
        True
    """
    seed = integer(name, value, least=0)
    if seed >= 2**64:
        raise ValueError(f"{name} should be in 0..2**64 - 1; got {value}")
    return seed


def number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return a value as a `float` if it is a real number (but not a bool) within its bounds; NaN is never within.

    Args:
        name: The name by which the caller knows the value.
        value: The value that was passed.
        least: Smallest value allowed.
        above: The value must be larger than this.
        most: Largest value allowed.
        below: The value must be smaller than this.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.

    Example:
        >>> number("momentum", 0.9, least=0, below=1)
        0.9
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} should be a number; got {value!r} ({type(value).__name__})")
    real = float(value)
    bounds = {
        "at least": (least, operator.ge),
        "larger than": (above, operator.gt),
        "at most": (most, operator.le),
        "smaller than": (below, operator.lt),
    }
    for relation, (bound, holds) in bounds.items():
        if bound is not None and not holds(real, bound):
            raise ValueError(f"{name} should be {relation} {bound}; got {value!r}")
    return real


_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def byte_count(name: str, value: object) -> int:
    """Return a number of bytes, >= 1, that is given as an integer or as text such as `"4GiB"` or `"500 MB"`.

    Args:
        name: The name by which the caller knows the value.
        value: The value that was passed.

    Raises:
        TypeError: If it is neither an integer nor text.
        ValueError: If the text is no number of bytes, or the number is below 1.

    Example:
        >>> byte_count("max_memory", "1.5 KiB")
        1536
    """
    if not isinstance(value, str):
        return integer(name, value, least=1)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[KMGT]I?)?)B?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{name} should be a number of bytes, such as 4000000000, '4GB' or '4GiB'; got {value!r}")
    return integer(name, int(float(match[1]) * _BYTES[match[2].upper()]), least=1)


def byte_text(count: float) -> str:
    """Return a number of bytes as text with a fitting unit, in the form that `byte_count` reads.

    Example:
        >>> byte_text(512), byte_text(1536), byte_text(4 * 2**30)
        ('512 B', '1.5 KiB', '4.0 GiB')
    """
    power = next(i for i in range(5) if count < 1024 ** (i + 1) or i == 4)
    return f"{count / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def listed(names: Iterable[object], most: int = 10, *, quoted: bool = True) -> str:
    """Return names for a message, the first ones alone if there are many.

    Args:
        names: The names.
        most: Names to show, at most; >= 1.
        quoted: Whether each stands in quotation marks, if it is text.

    Example:
        >>> listed(["cat", "dog", "eel"], 2)
        "'cat', 'dog' and 1 more"
    """
    texts = [repr(name) if quoted else str(name) for name in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def one_of(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise `ValueError` if a value is not one of the choices; the message lists them.

    Example:
        >>> one_of("pixel_range", "valid", ["valid", "free"])
    """
    choices = list(choices)
    if value not in choices:
        hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
        raise ValueError(f"{name} should be one of {listed(choices, len(choices))}; got {value!r}{hint}")


def compile_option(value: object) -> CompileOption:
    """Return the caller's choice whether to compile networks: True, False or `"auto"`.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> compile_option("auto"), compile_option(1)
        ('auto', True)
    """
    if value not in (True, False, "auto"):
        raise ValueError(f"compile should be True, False or 'auto'; got {value!r}")
    return "auto" if value == "auto" else bool(value)
