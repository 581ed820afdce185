"""Accuracy per class, and the confusion matrix."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_condense.base.words import decimals
from hf_condense.condensed.scores.tabular import Column, Tabular

if TYPE_CHECKING:
    import pandas as pd

_MOST = 3  # mistakes that are printed for a class


@dataclass(frozen=True)
class ClassScores(Tabular):
    """Accuracies of networks by class; prints as a table, in per cent.

    Attributes:
        set: What the networks were trained on.
        network: Canonical name of the network.
        class_names: Names of all classes.
        confusion: Confusion matrix of every network: how many test rows of a class (second axis) it (first axis)
            predicted to be of a class (third axis). int64 (n, K, K).

    Example:
        >>> counts = np.array([[[8, 2], [1, 9]], [[10, 0], [3, 7]]])
        >>> print(ClassScores("dm_ipc1", "convnet", ("cat", "dog"), counts))
        class  rows    accuracy %  taken for
        cat      10  90.00 ± 14.14  dog 10.0 %
        dog      10  80.00 ± 14.14  cat 20.0 %
    """

    set: str
    network: str
    class_names: tuple[str, ...]
    confusion: NDArray[np.int64] = field(compare=False, repr=False)

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Accuracy of every network on every class, fractions; NaN for a class without test rows. float64 (n, K)."""
        rows = self.confusion.sum(2)
        right = np.diagonal(self.confusion, axis1=1, axis2=2)
        return np.where(rows > 0, right / np.maximum(rows, 1), np.nan)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of a class's test rows (first axis) that are predicted as a class (second axis), over all networks.

        The rows of classes without test rows are NaN. float64 (K, K).
        """
        counts = self.confusion.sum(0)
        rows = counts.sum(1, keepdims=True)
        return np.where(rows > 0, counts / np.maximum(rows, 1), np.nan)

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dict per class with test rows; accuracies and shares are fractions.

        `taken_for` gives the share of the class's rows that is confused with each other class, largest first.
        """
        accuracies, shares, rows = self.accuracies, self.shares, self.confusion[0].sum(1)
        records = []
        for c in np.flatnonzero(rows):
            values = accuracies[:, c].tolist()
            others = [k for k in np.argsort(-shares[c], kind="stable") if k != c and shares[c, k] > 0]
            records.append(
                {
                    "class": self.class_names[c],
                    "rows": int(rows[c]),
                    "mean": statistics.fmean(values),
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "n": len(values),
                    "taken_for": {self.class_names[k]: float(shares[c, k]) for k in others},
                }
            )
        return records

    def to_pandas(self) -> pd.DataFrame:
        """Return the confusion matrix as shares: a row for every true class, a column for every predicted class.

        Raises:
            ImportError: If pandas is not installed.
        """
        import pandas as pd

        index = pd.Index(self.class_names, name="class")
        return pd.DataFrame(self.shares, index=index, columns=pd.Index(self.class_names, name="taken for"))

    def columns(self) -> list[Column]:
        """Return the table, as it is printed."""
        records = self.to_records()
        return [
            Column("class", tuple(r["class"] for r in records), right=False),
            Column("rows", tuple(f"{r['rows']:,}" for r in records)),
            Column("accuracy %", tuple(per_cent(r["mean"], r["std"]) for r in records)),
            Column("taken for", tuple(_mistakes(r["taken_for"]) for r in records), right=False),
        ]


def per_cent(mean: float, std: object = None, *, digits: int = 2) -> str:
    """Return a fraction in per cent, with its standard deviation if there is one."""
    spread = f" ± {100 * std:.{digits}f}" if isinstance(std, (int, float)) else ""
    return f"{decimals(100 * mean, digits)}{spread}"


def _mistakes(shares: dict[str, float]) -> str:
    """Write the classes that a class is most often confused with."""
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in list(shares.items())[:_MOST])
