"""Results that print as a table, and give it to notebooks, markdown, JSON and pandas."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_condense.base.markdown import escape, table
from hf_condense.base.tables import plain_table, visible

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 80  # characters of a line, as far as the numbers leave room


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: Its heading.
        cells: One text for every row.
        right: Whether it is aligned to the right where the letters have one width.
        may_leave: Whether it is a line below the table if several rows have the same cell.
    """

    head: str
    cells: tuple[str, ...]
    right: bool = True
    may_leave: bool = False

    @property
    def leaves(self) -> bool:
        """Whether the column is a line below the table."""
        return self.may_leave and len(self.cells) > 1 and len(set(self.cells)) == 1


class Tabular(ABC):
    """A result that can be seen as a table."""

    @abstractmethod
    def columns(self) -> list[Column]:
        """Return the columns of the table, with those that all rows have in common."""

    @abstractmethod
    def to_records(self) -> list[dict[str, Any]]:
        """Return one dict of JSON values per row."""

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame of the records.

        Raises:
            ImportError: If pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self.to_records())

    def to_json(self) -> str:
        """Return the records as JSON text."""
        return json.dumps(self.to_records(), indent=2, ensure_ascii=False)

    def to_markdown(self) -> str:
        """Return the table as markdown; names of classes and networks are escaped."""
        head, *rows = self._lines()
        text = table([escape(cell) for cell in head], rows)
        return f"{text}\n\n{escape(common)}" if (common := self._common()) else text

    def __str__(self) -> str:
        right = {i for i, column in enumerate(self._shown()) if column.right}
        text = plain_table(self._lines(), right=right, width=_WIDTH)
        return f"{text}\n{visible(common)}" if (common := self._common()) else text

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        head, *rows = self._lines()
        labels = "".join(f"<th>{html.escape(label)}</th>" for label in head)
        body = ("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        text = f"<table><thead><tr>{labels}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        return f"{text}<p>{html.escape(common)}</p>" if (common := self._common()) else text

    def _shown(self) -> list[Column]:
        """Return the columns that stand in the table."""
        return [column for column in self.columns() if not column.leaves]

    def _common(self) -> str:
        """Return what all rows have in common, for the line below the table; "" if there is nothing."""
        facts = ", ".join(f"{column.head} {column.cells[0]}" for column in self.columns() if column.leaves)
        return f"all rows: {facts}" if facts else ""

    def _lines(self) -> list[tuple[str, ...]]:
        """Return the headings and then the rows."""
        columns = self._shown()
        return [tuple(c.head for c in columns), *zip(*(c.cells for c in columns), strict=True)]
