"""Measured accuracies: what `evaluate` returns, and what recipes and cards keep of it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_condense.base.intervals import mean_interval
from hf_condense.base.words import decimals
from hf_condense.condensed.scores.class_scores import ClassScores, per_cent
from hf_condense.condensed.scores.tabular import Column, Tabular

if TYPE_CHECKING:
    import pandas as pd

EIGHT_BIT = " (8-bit)"  # stands behind the name of a set where its 8-bit images were measured, not its floats
HARD_LABELS = " (hard labels)"  # the same, where it was measured with the class of each image in place of soft labels
RELABELLED = " (relabelled)"  # the same, where a teacher labelled the images of every update
SOFT_LABELS = " (soft labels)"  # the same, where real rows were measured with the labels of a teacher


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
        lr: Learning rate at the start; None if it was not recorded.
        ipc: Images per class that the evaluated set was cut down to; None if it was used whole.
        predictions: The class that every network predicted for every test row, in the order of the rows. int32 (n, N),
            or None if they are not known.
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
    lr: float | None = None
    ipc: int | None = None
    predictions: NDArray[np.int32] | None = field(default=None, compare=False, repr=False)

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

    def over(self, baseline: Score) -> Difference:
        """Return how much better the networks are than those trained on a baseline, paired by seed.

        Raises:
            ValueError: If the seeds differ.
        """
        if self.seeds != baseline.seeds:
            raise ValueError(
                f"differences are paired by seed; {self.set!r} has {self.seeds}, {baseline.set!r} has {baseline.seeds}"
            )
        gaps = [a - b for a, b in zip(self.accuracies, baseline.accuracies, strict=True)]
        return Difference(self.set, baseline.set, self.network, statistics.fmean(gaps), mean_interval(gaps), self.n)


@dataclass(frozen=True)
class Difference:
    """How much better networks of one kind are after training on one set than on another; prints in points.

    Network and baseline of a pair start from the same weights. The interval covers the luck of weights, of training
    and of rows that are drawn anew; it does not cover that of condensing again.

    Attributes:
        set: What the networks were trained on.
        baseline: What those were trained on that they are compared with.
        network: Canonical name of the network.
        mean: Mean of the differences of accuracies, a fraction.
        interval: Lower and upper end of its 95 % confidence interval (Student's t); None for a single network.
        n: Number of pairs.

    Example:
        >>> print(Difference("dm_ipc1", "random", "convnet", 0.25, (0.2, 0.3), 5))
        +25.00 (+20.00 to +30.00)
    """

    set: str
    baseline: str
    network: str
    mean: float
    interval: tuple[float, float] | None
    n: int

    def __str__(self) -> str:
        mean = decimals(100 * self.mean, 2, "+")
        if self.interval is None:
            return mean
        low, high = (decimals(100 * end, 2, "+") for end in self.interval)
        return f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Evaluation(Tabular):
    """Accuracies of a set beside those of its baselines; prints as a table, in per cent.

    What several rows have in common, such as the network, the learning rate `lr` and the number `n` of networks, stands
    in a line below the table.

    The column `points over random` is the difference from random rows and its 95 % confidence interval, paired by
    seed (see `Difference`).

    Attributes:
        scores: One score for every network and set.
        class_names: Names of all classes; none if they are not known.
        labels: Class of every test row, in the order of the rows. int32 (N,), or None if they are not known.
        run: Identifies the run that made the evaluated set; None if it is not known.

    Example:
        >>> score = Score("dm_ipc1", 10, "convnet", "dc", None, 300, 300, (0.5, 0.75), (0, 1), 4.2)
        >>> print(Evaluation((score,)))
        set      rows  network  recipe    accuracy %  n  updates  seconds
        dm_ipc1    10  convnet  dc      62.50 ± 17.68  2      300      4.2
    """

    scores: tuple[Score, ...]
    class_names: tuple[str, ...] = ()
    labels: NDArray[np.int32] | None = field(default=None, compare=False, repr=False)
    run: str | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> Evaluation:
        """Return an evaluation from what `to_records` or the JSON of `to_json` holds, without predictions.

        Raises:
            ValueError: If a record lacks a value, or its accuracies.

        Example:
            >>> score = Score("dm_ipc1", 10, "convnet", "dc", None, 300, 300, (0.5, 0.75), (0, 1), 4.2)
            >>> Evaluation.from_records(Evaluation((score,)).to_records()).scores == (score,)
            True
        """
        names = {f.name for f in dataclasses.fields(Score)} - {"predictions"}
        scores = []
        for record in records:
            values: dict[str, Any] = {
                name: tuple(v) if isinstance(v, list) else v for name, v in record.items() if name in names
            }
            if missing := sorted(names - values.keys() - {"lr", "ipc"}):
                raise ValueError(f"a record of an evaluation should have {', '.join(missing)}; got {record!r:.200}")
            scores.append(Score(**values))
        return cls(tuple(scores))

    def score(self, set: str | None = None, *, network: str | None = None, ipc: int | None = None) -> Score:
        """Return one score.

        Args:
            set: What the networks were trained on. Default: the evaluated set.
            network: Canonical name of the network. Default: the first.
            ipc: Images per class that the set was cut down to. Default: the first of the scores.

        Raises:
            ValueError: If there is no such score; the message lists what there is.
        """
        first = self.scores[0]
        name, network = set or first.set, network or first.network
        for score in self.scores:
            if (score.set, score.network) == (name, network) and (ipc in (None, score.ipc) or score.ipc is None):
                return score
        listed = "; ".join(dict.fromkeys(_address(score) for score in self.scores))
        asked = f"{name!r} with network {network!r}" + ("" if ipc is None else f" and ipc {ipc}")
        raise ValueError(f"there is no score of {asked}; there are {listed}")

    def by_class(self, set: str | None = None, *, network: str | None = None, ipc: int | None = None) -> ClassScores:
        """Return accuracy by class and the confusion matrix of one score; the arguments are those of `score`.

        Raises:
            ValueError: If there is no such score, or its predictions are not known.
        """
        score = self.score(set, network=network, ipc=ipc)
        if score.predictions is None or self.labels is None:
            raise ValueError(
                "accuracy by class needs what evaluate returned itself; this evaluation was read from records, which "
                "hold no predictions"
            )
        k = len(self.class_names)
        cells = self.labels.astype(np.int64) * k
        tables = [np.bincount(cells + row, minlength=k * k).reshape(k, k) for row in score.predictions]
        return ClassScores(score.set, score.network, self.class_names, np.stack(tables))

    def differences(self, baseline: str = "random") -> list[Difference]:
        """Return the difference of every score from that of a baseline, with the same network, training and ipc.

        Args:
            baseline: What the others are compared with, as the column `set` names it.

        Returns:
            One difference for each score that has a baseline to compare with, in the order of the scores.
        """
        return [gap for gap in self._differences(baseline) if gap is not None]

    def _differences(self, baseline: str) -> list[Difference | None]:
        """Return for every score its difference from the baseline, None if there is none."""
        references = {_conditions(score): score for score in self.scores if score.set == baseline}
        # The whole source is not cut down with the set: it has no ipc.
        pairs = [
            (score, references.get(_conditions(score)) or references.get((*_conditions(score)[:-1], None)))
            for score in self.scores
        ]
        return [
            score.over(other) if other is not None and other is not score and other.seeds == score.seeds else None
            for score, other in pairs
        ]

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dict of JSON values per row; accuracies are fractions, and `std` is None for a single network.

        Records of a set that was cut down have `ipc`, its images per class.
        """
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
                **({} if s.lr is None else {"lr": s.lr}),
                **({} if s.ipc is None else {"ipc": s.ipc}),
            }
            for s in self.scores
        ]

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with set, network, recipe, mean, std, n, seconds, updates, epochs, ipc and lr.

        Accuracies are fractions, and so is `over_random` with the ends `low` and `high` of its 95 % interval.

        Raises:
            ImportError: If pandas is not installed.
        """
        import pandas as pd

        columns = ["set", "network", "recipe", "mean", "std", "n", "seconds", "updates", "epochs", "ipc", "lr"]
        frame = pd.DataFrame(self.to_records(), columns=columns).astype(
            {"std": "float64", "lr": "float64", "ipc": "Int64"}
        )
        gaps = self._differences("random")
        ends = [(None, None) if gap is None else (gap.interval or (None, None)) for gap in gaps]
        frame["over_random"] = pd.Series([gap and gap.mean for gap in gaps], dtype="float64")
        for i, name in enumerate(("low", "high")):
            frame[name] = pd.Series([end[i] for end in ends], dtype="float64")
        return frame

    def columns(self) -> list[Column]:
        """Return the columns of the table, but for what is known of no row."""
        scores = self.scores
        gaps = self._differences("random")
        over = Column("points over random (95 %)", tuple("" if gap is None else str(gap) for gap in gaps))
        ipc = Column("ipc", tuple("" if s.ipc is None else str(s.ipc) for s in scores), may_leave=True)
        rates = Column("lr", tuple("" if s.lr is None else f"{s.lr:.3g}" for s in scores), may_leave=True)
        return [
            Column("set", tuple(s.set for s in scores), right=False),
            *([ipc] if any(ipc.cells) else []),
            Column("rows", tuple(f"{s.rows:,}" for s in scores)),
            Column("network", tuple(s.network for s in scores), right=False, may_leave=True),
            Column("recipe", tuple(s.recipe for s in scores), right=False, may_leave=True),
            *([rates] if any(rates.cells) else []),
            Column("accuracy %", tuple(per_cent(s.mean, s.std) for s in scores)),
            *([over] if any(over.cells) else []),
            Column("n", tuple(str(s.n) for s in scores), may_leave=True),
            Column("updates", tuple(f"{s.updates:,}" for s in scores), may_leave=True),
            Column("seconds", tuple(f"{s.seconds:.1f}" for s in scores)),
        ]


def gathered(scores: list[Score]) -> Score:
    """Return one score from those of single networks that differ only in the seed."""
    predictions = [score.predictions for score in scores]
    return dataclasses.replace(
        scores[0],
        accuracies=tuple(a for score in scores for a in score.accuracies),
        seeds=tuple(s for score in scores for s in score.seeds),
        seconds=sum(score.seconds for score in scores),
        predictions=None if any(p is None for p in predictions) else np.concatenate(predictions),  # type: ignore[arg-type]
    )


def _conditions(score: Score) -> tuple[Any, ...]:
    """Return what two scores must share to be compared."""
    return (score.network, score.recipe, score.augment, score.ipc)


def _address(score: Score) -> str:
    """Write what `Evaluation.score` needs to find a score."""
    return f"{score.set!r} with {score.network!r}" + ("" if score.ipc is None else f" and ipc {score.ipc}")
