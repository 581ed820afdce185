"""Text of unknown origin, written so that markdown and HTML show it as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SPECIAL = str.maketrans({char: f"&#{ord(char)};" for char in "&<>|[]`*~"})


def escape(value: object) -> str:
    """Write a value so that markdown and HTML take it as text on one line, also inside a table.

    Example:
        >>> escape("a|b")
        'a&#124;b'
    """
    return " ".join(str(value).split()).translate(_SPECIAL)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a markdown table; every cell is text.

    Example:
        >>> print(table(["a", "b"], [[1, 2]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def listed(lines: Iterable[str]) -> str:
    """Write lines as the items of a list."""
    return "\n".join(f"- {line}" for line in lines)
