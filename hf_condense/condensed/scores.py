"""Measured accuracies: what `evaluate` returns, and what recipes and cards keep of it."""

from __future__ import annotations

import dataclasses
import html
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_condense.base.tables import plain_table

if TYPE_CHECKING:
    import pandas as pd

EIGHT_BIT = " (8-bit)"  # stands behind the name of a set where its 8-bit images were measured, not its floats
_HEAD = ("set", "rows", "network", "recipe", "accuracy %", "n", "updates", "seconds")
_NUMBERS = frozenset({1, 4, 5, 6, 7})  # columns that are aligned to the right


@dataclass(frozen=True)
class Score:
    """The test accuracies that networks of one kind reached after training on one set.

    Attributes:
        set: What the networks were trained on.
        rows: Number of images in the set.
        network: Canonical name of the network.
        recipe: Name of the training recipe.
        augment: Families of augmentation that were used, or None.
        epochs: Passes over the images.
        updates: Updates of one network.
        accuracies: Test accuracy of every network after its last epoch, fractions in [0, 1].
        seeds: Seed of every network.
        seconds: Time that training and testing all networks took.
    """

    set: str
    rows: int
    network: str
    recipe: str
    augment: str | None
    epochs: float
    updates: int
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean accuracy, a fraction."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Standard deviation of the accuracies (ddof 1); None for a single network."""
        return statistics.stdev(self.accuracies) if self.n > 1 else None

    @property
    def n(self) -> int:
        """Number of networks."""
        return len(self.accuracies)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of a set beside those of its baselines; prints as a table, in per cent.

    Attributes:
        scores: One score for every network and set.

    Example:
        >>> score = Score("dm_ipc1", 10, "convnet", "dc", None, 300, 300, (0.5, 0.75), (0, 1), 4.2)
        >>> print(Evaluation((score,)))
        set      rows  network  recipe    accuracy %  n  updates  seconds
        dm_ipc1    10  convnet  dc      62.50 ± 17.68  2      300      4.2
    """

    scores: tuple[Score, ...]

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dict of JSON values per row; accuracies are fractions, and `std` is None for a single network."""
        return [
            {
                "set": s.set,
                "rows": s.rows,
                "network": s.network,
                "recipe": s.recipe,
                "augment": s.augment,
                "mean": s.mean,
                "std": s.std,
                "n": s.n,
                "seconds": round(s.seconds, 3),
                "updates": s.updates,
                "epochs": s.epochs,
                "accuracies": list(s.accuracies),
                "seeds": list(s.seeds),
            }
            for s in self.scores
        ]

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> Evaluation:
        """Return the table whose rows `to_records` returned; other keys of a row are left out.

        Example:
            >>> score = Score("dm_ipc1", 10, "convnet", "dc", None, 300, 300, (0.5, 0.75), (0, 1), 4.2)
            >>> Evaluation.from_records(Evaluation((score,)).to_records()) == Evaluation((score,))
            True
        """
        names = [field.name for field in dataclasses.fields(Score)]
        rows = ({name: record[name] for name in names} for record in records)
        return cls(
            tuple(
                Score(**{**row, "accuracies": tuple(row["accuracies"]), "seeds": tuple(row["seeds"])}) for row in rows
            )
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with set, network, recipe, mean, std, n, seconds, updates and epochs.

        Accuracies are fractions.

        Raises:
            ImportError: If pandas is not installed.
        """
        import pandas as pd

        columns = ["set", "network", "recipe", "mean", "std", "n", "seconds", "updates", "epochs"]
        return pd.DataFrame(self.to_records(), columns=columns).astype({"std": "float64"})

    def __str__(self) -> str:
        return plain_table([_HEAD, *map(_cells, self.scores)], right=_NUMBERS)

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        head = "".join(f"<th>{html.escape(label)}</th>" for label in _HEAD)
        body = (
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(score)) + "</tr>"
            for score in self.scores
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def gathered(scores: list[Score]) -> Score:
    """Return one score from those of single networks that differ only in the seed."""
    return dataclasses.replace(
        scores[0],
        accuracies=tuple(a for score in scores for a in score.accuracies),
        seeds=tuple(s for score in scores for s in score.seeds),
        seconds=sum(score.seconds for score in scores),
    )


def _cells(score: Score) -> tuple[str, ...]:
    spread = "" if score.std is None else f" ± {100 * score.std:.2f}"
    return (
        score.set,
        f"{score.rows:,}",
        score.network,
        score.recipe,
        f"{100 * score.mean:.2f}{spread}",
        str(score.n),
        f"{score.updates:,}",
        f"{score.seconds:.1f}",
    )
