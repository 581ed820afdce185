"""Whether JSON values have the type that a hint of Python says."""

from __future__ import annotations

import types
import typing
from typing import Any


def is_a(value: Any, hint: Any) -> bool:
    """Return whether a JSON value fits a type hint of scalars, lists, dicts and unions.

    Example:
        >>> is_a({"cat": [1, 2]}, dict[str, list[int]]), is_a(True, int | None)
        (True, False)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(is_a(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(is_a(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(k, str) and is_a(v, args[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def spelled(hint: Any) -> str:
    """Return a type hint as text for an error message.

    Example:
        >>> spelled(int), spelled(dict[str, int] | None)
        ('int', 'dict[str, int] | None')
    """
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
