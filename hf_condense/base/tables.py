"""Tables as text: aligned columns for terminals, and markdown."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest

_LEAST = 16  # characters that folding leaves of a column
_HIDDEN = frozenset({"Cc", "Cf", "Zl", "Zp"})  # controls, formats such as the direction of writing, line breaks
_NO_WIDTH = frozenset({"Mn", "Me", "Cf"})  # marks that stand on other characters, and formats
_JOINERS = "\u200c\u200d"  # formats that words of some languages, and some emoji, are written with


def visible(text: str) -> str:
    r"""Return a text with controls written as escapes: a text of unknown origin could otherwise command a terminal.

    Example:
        >>> print(visible("red \x1b[31m, katt\u202eo"))
        red \x1b[31m, katt\u202eo
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    """Return a character, or its escape if it does not show."""
    if char in _JOINERS or unicodedata.category(char) not in _HIDDEN:
        return char
    return char.encode("unicode_escape").decode()


def plain_table(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), width: int | None = None) -> str:
    """Return rows as lines whose columns are aligned and two spaces apart; controls are written as escapes.

    Args:
        rows: Cells, the same number in every row; a heading is a row like the others.
        right: Indices of the columns that are aligned to the right; the others are aligned to the left.
        width: Characters of a line. If the table is wider, cells that are aligned to the left are folded into several
            lines, those of the widest column first. None: nothing is folded.

    Example:
        >>> print(plain_table([["name", "rows"], ["random", "10"]], right={1}))
        name    rows
        random    10
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    if width is not None:
        rows = _folded(rows, {*range(len(rows[0]))} - {*right}, width)
    widths = _widths(rows)
    lines = []
    for row in rows:
        columns = enumerate(zip(row, widths, strict=True))
        cells = [_padded(cell, width, right=i in right) for i, (cell, width) in columns]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _padded(cell: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - _columns(cell))
    return blanks + cell if right else cell + blanks


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters take two, accents of others none."""
    if text.isascii():
        return len(text)
    accents = sum(unicodedata.category(char) in _NO_WIDTH for char in text)
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text) - accents


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of the widest cell of every column."""
    return [max(map(_columns, column)) for column in zip(*rows, strict=True)]


def _folded(rows: Sequence[Sequence[str]], columns: Collection[int], width: int) -> list[Sequence[str]]:
    """Return the lines of a table whose cells in some columns are folded so that it is as narrow as asked."""
    widths = _widths(rows)
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    for i in sorted(columns, key=lambda i: -widths[i]):
        narrow = min(widths[i], max(_LEAST, widths[i] - max(excess, 0)))
        excess -= widths[i] - narrow
        widths[i] = narrow
    lines: list[Sequence[str]] = []
    for row in rows:
        pieces = [_pieces(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines += zip_longest(*pieces, fillvalue="")
    return lines


def _pieces(text: str, width: int) -> list[str]:
    """Return a text in pieces, cut behind a blank, or else behind a hyphen or an underscore, where that is possible."""
    pieces = []
    whole, width = width, _fitting(text, width)
    while len(text) > width:
        blank = text.rfind(" ", 0, width)
        cut = (blank if blank >= width // 2 else max(text.rfind(mark, 0, width) for mark in " _-")) + 1 or width
        pieces.append(text[:cut].rstrip())
        text = text[cut:]
        width = _fitting(text, whole)
    return [*pieces, text]


def _fitting(text: str, width: int) -> int:
    """Return how many of the first characters of a text fit into columns of a terminal, at least 1."""
    if text.isascii():
        return width
    return max(1, next((n - 1 for n in range(1, len(text) + 1) if _columns(text[:n]) > width), len(text)))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table; the cells are written as they are, so text of unknown origin is escaped before.

    Args:
        head: Headings of the columns.
        rows: Cells, one for each column.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
