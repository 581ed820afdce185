"""Results that print as a table, and give it to notebooks, markdown, JSON and pandas."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_condense.base.tables import plain_table
from hf_condense.condensed.card.markdown import escape, table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: Its heading.
        cells: One text for every row.
        right: Whether it is aligned to the right where the letters have one width.
    """

    head: str
    cells: tuple[str, ...]
    right: bool = True


class Tabular(ABC):
    """A result that can be seen as a table."""

    @abstractmethod
    def columns(self) -> list[Column]:
        """Return the table, as it is printed."""

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
        return table([escape(cell) for cell in head], rows)

    def __str__(self) -> str:
        right = {i for i, column in enumerate(self.columns()) if column.right}
        return plain_table(self._lines(), right=right)

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        head, *rows = self._lines()
        labels = "".join(f"<th>{html.escape(label)}</th>" for label in head)
        body = ("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{labels}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def _lines(self) -> list[tuple[str, ...]]:
        """Return the headings and then the rows."""
        columns = self.columns()
        return [tuple(c.head for c in columns), *zip(*(c.cells for c in columns), strict=True)]
