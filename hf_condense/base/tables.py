"""Tables as text: aligned columns for terminals, and markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def plain_table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Return rows as lines whose columns are aligned and two spaces apart.

    Args:
        rows: Cells, the same number in every row; a heading is a row like the others.
        right: Indices of the columns that are aligned to the right; the others are aligned to the left.

    Example:
        >>> print(plain_table([["name", "rows"], ["random", "10"]], right={1}))
        name    rows
        random    10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        columns = enumerate(zip(row, widths, strict=True))
        cells = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in columns]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


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
