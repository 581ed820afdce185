"""Text of unknown origin, written so that markdown and HTML show it as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hf_condense.base.tables import markdown_table

_SPECIAL = str.maketrans({char: f"&#{ord(char)};" for char in "&<>|[]`*~\\$"})
_EMPHASIS = re.compile(r"(?<!\w)_+")  # inside a word, or after one, an underscore begins nothing


def escape(value: object) -> str:
    """Return a value as text on one line that markdown and HTML take as it is, also inside a table.

    Example:
        >>> escape("a|b")
        'a&#124;b'
    """
    return _EMPHASIS.sub(lambda lines: "&#95;" * len(lines[0]), " ".join(str(value).split()).translate(_SPECIAL))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a markdown table whose cells are escaped; the head is written as it is.

    Example:
        >>> print(table(["a", "b"], [[1, "<i>"]]))
        | a | b |
        | --- | --- |
        | 1 | &#60;i&#62; |
    """
    return markdown_table(head, ([escape(cell) for cell in row] for row in rows))


def bullets(lines: Iterable[str]) -> str:
    """Return lines as the items of a list."""
    return "\n".join(f"- {line}" for line in lines)


def paragraphs(*texts: str) -> str:
    """Return texts with an empty line between them; empty ones are left out."""
    return "\n\n".join(text for text in texts if text)
