"""DD-Ranking's scores: what a set is worth apart from its labels, and apart from augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import datasets

from hf_condense.base.checks import number
from hf_condense.condensed.scores import HARD_LABELS, Difference, Evaluation, Score
from hf_condense.condensed.scores.tabular import Column, Tabular
from hf_condense.evaluation.evaluate import evaluate
from hf_condense.evaluation.request import training_recipe
from hf_condense.evaluation.subject import has_soft_labels
from hf_condense.evaluation.tensor_sets import TensorSet
from hf_condense.networks.augment import ALL_FAMILIES
from hf_condense.networks.factory import NetworkSpec
from hf_condense.networks.training_recipe import TrainingRecipe


@dataclass(frozen=True)
class RankingScores(Tabular):
    """DD-Ranking's scores of a set, from accuracies that are fractions; prints as a table, in per cent.

    Attributes:
        hlr: Hard-label recovery: how far networks that are trained on the set with hard labels stay behind those that
            are trained on the whole source. Lower is better.
        ior: Improvement over random rows, under the set's own kind of labels. Higher is better.
        lrs: Label-robust score, in [0, 1]: `ior` and `hlr` in one number, which is .27 where both are zero.
        ars: Augmentation-robust score, in [0, 1]: the improvement over random rows with and without augmentation in one
            number, which is .27 where it is zero.
        evaluation: The accuracies with augmentation.
        plain_evaluation: The accuracies without augmentation.

    Example:
        >>> score = Score("dm_ipc1", 10, "convnet", "dsa", None, 300, 300, (0.5, 0.75), (0, 1), 4.2)
        >>> hlr = Difference("full", "dm_ipc1", "convnet", 0.2, (0.1, 0.3), 2)
        >>> ior = Difference("dm_ipc1", "random", "convnet", 0.1, (0.0, 0.2), 2)
        >>> table = Evaluation((score,))
        >>> print(RankingScores(hlr, ior, lrs=0.2482, ars=0.3137, evaluation=table, plain_evaluation=table))
        score  % (95 %)                   meaning
        HLR    +20.00 (+10.00 to +30.00)  full - dm_ipc1; lower is better
        IOR    +10.00 (+0.00 to +20.00)   dm_ipc1 - random
        LRS    24.82                      of IOR and HLR; 26.89 where both are zero
        ARS    31.37                      of IOR with and without augmentation; 26.89
                                          where it is zero
    """

    hlr: Difference
    ior: Difference
    lrs: float
    ars: float
    evaluation: Evaluation
    plain_evaluation: Evaluation

    def to_records(self) -> list[dict[str, Any]]:
        """Return one dict per score: `score`, `value` (a fraction), `low` and `high` of its 95 % interval or None."""
        records: list[dict[str, Any]] = []
        for name, gap in (("HLR", self.hlr), ("IOR", self.ior)):
            low, high = gap.interval or (None, None)
            records.append({"score": name, "value": gap.mean, "low": low, "high": high})
        for name, value in (("LRS", self.lrs), ("ARS", self.ars)):
            records.append({"score": name, "value": value, "low": None, "high": None})
        return records

    def columns(self) -> list[Column]:
        """Return the table, as it is printed."""
        rows = [
            ("HLR", str(self.hlr), f"{self.hlr.set} - {self.hlr.baseline}; lower is better"),
            ("IOR", str(self.ior), f"{self.ior.set} - {self.ior.baseline}"),
            ("LRS", f"{100 * self.lrs:.2f}", "of IOR and HLR; 26.89 where both are zero"),
            ("ARS", f"{100 * self.ars:.2f}", "of IOR with and without augmentation; 26.89 where it is zero"),
        ]
        names, values, meanings = zip(*rows, strict=True)
        return [
            Column("score", names, right=False),
            Column("% (95 %)", values, right=False),
            Column("meaning", meanings, right=False),
        ]


def dd_ranking(
    train: datasets.Dataset | TensorSet,
    test: datasets.Dataset,
    *,
    network: NetworkSpec = "convnet",
    recipe: str | TrainingRecipe = "dsa",
    lr: str | float | list[float] | None = "search",
    full_accuracy: float | None = None,
    weight: float = 0.5,
    **options: Any,
) -> RankingScores:
    """Return DD-Ranking's scores of a set: HLR, IOR, LRS and ARS.

    With accuracies as fractions, alpha = weight * IOR - (1 - weight) * HLR, LRS = (e^alpha - 1/e) / (e - 1/e), and ARS
    is the same of weight * (improvement over random rows with augmentation) + (1 - weight) * (that without it).

    The authors' program differs in two points: its accuracies are per cent, so LRS and ARS leave [0, 1]; and it
    chooses epochs and learning rates on the test set. Here the last epoch counts, and rates are chosen on held-out
    training rows.

    Networks without augmentation see whole rows as they are: besides the families of augmentation, CutMix and random
    crops are off. Views that have soft labels of their own are part of the set, and stay.

    Args:
        train: The set, as `evaluate` takes it. If it has soft labels, the same teacher must label the random
            rows: pass `teacher=`, unless the set was just made and still has its teacher in memory.
        test: Real images.
        network: The kind of network, one.
        recipe: How networks are trained; it must have an augmentation.
        lr: Learning rates, as `evaluate` takes them. Default: `"search"`, which needs the source.
        full_accuracy: Accuracy of networks that are trained on the whole source with hard labels, a fraction. Default:
            it is measured, with as many updates as the set takes, which is less than a large source needs.
        weight: Weight of the first term of both scores, in [0, 1].
        **options: Other arguments of `evaluate`, such as `source`, `seeds`, `max_updates` and `teacher`, but for
            `networks` and `baselines`; `ipc` may be one number.

    Returns:
        The four scores, which print as a table in per cent, and both tables of accuracies that they come from.

    Raises:
        TypeError: If an argument has the wrong type, is none of `evaluate`, or asks for several networks or sets.
        ValueError: If the recipe has no augmentation, the set has soft labels and there is no teacher, or for any
            reason for which `evaluate` raises it.

    References:
        Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025, section 3 (arXiv:2505.13300).

    Example:
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.testing import toy_dataset
        >>> ds = toy_dataset(names=("cat", "dog", "eel")).train_test_split(12, seed=0)
        >>> small = condense_dataset(ds["train"], "random", ipc=1, progress=False)
        >>> scores = dd_ranking(small, ds["test"], network="convnet-w4", lr=None, epochs=1, seeds=2, progress=False)
        >>> 0 < scores.lrs < 1
        True
    """
    weight = number("weight", weight, least=0, most=1)
    if full_accuracy is not None:
        full_accuracy = number("full_accuracy", full_accuracy, least=0, most=1)
    _refuse_several(network, options)
    augment = options.pop("augment", None)
    unaugmented = _without_augmentation(training_recipe(recipe, None, augment))
    # Under the caller's name; `evaluate` adds what differs from the published recipe of this name.
    unaugmented = replace(unaugmented, name=recipe if isinstance(recipe, str) else recipe.name)
    soft = _has_soft_labels(train, options)
    shared: dict[str, Any] = {"networks": [network], "lr": lr, **options}
    baselines = ["random"] if full_accuracy is not None else ["random", "full"]
    evaluation = evaluate(train, test, recipe=recipe, augment=augment, baselines=baselines, **shared)
    plain = evaluate(train, test, recipe=unaugmented, baselines="random", **shared)
    return _ranking(evaluation, plain, full_accuracy, weight, soft=soft)


def _ranking(
    evaluation: Evaluation, plain: Evaluation, full_accuracy: float | None, weight: float, *, soft: bool
) -> RankingScores:
    """Return the scores of a set.

    Args:
        evaluation: Accuracies with augmentation.
        plain: Accuracies without augmentation.
        full_accuracy: Accuracy on the whole source; None: that in `evaluation`.
        weight: Weight of the first term.
        soft: Whether the set has soft labels.
    """
    own = evaluation.scores[0]
    random, hard = "random", own
    if soft:
        random = next(score.set for score in evaluation.scores if score.set.startswith("random ("))
        hard = next(score for score in evaluation.scores if score.set.endswith(HARD_LABELS))
    full = evaluation.score("full") if full_accuracy is None else _constant(hard, full_accuracy)
    hlr, ior = full.over(hard), own.over(evaluation.score(random))
    plain_ior = plain.scores[0].over(plain.score(random))
    return RankingScores(
        hlr=hlr,
        ior=ior,
        lrs=exponential_score(weight * ior.mean - (1 - weight) * hlr.mean),
        ars=exponential_score(weight * ior.mean + (1 - weight) * plain_ior.mean),
        evaluation=evaluation,
        plain_evaluation=plain,
    )


def _refuse_several(network: NetworkSpec, options: Mapping[str, Any]) -> None:
    """Refuse what would make tables of several networks or sets, of which only the first would be scored."""
    for name in ("networks", "baselines"):
        if name in options:
            raise TypeError(f"dd_ranking scores one network and one set; pass network=, and leave {name} out")
    ipc = options.get("ipc")
    if isinstance(network, str) and network == "all":
        raise ValueError("dd_ranking scores one network, such as 'convnet'; got network='all'")
    if ipc is not None and not isinstance(ipc, Integral):
        raise TypeError(f"dd_ranking scores one set, so ipc should be one number of images per class; got {ipc!r}")


def _without_augmentation(training: TrainingRecipe) -> TrainingRecipe:
    """Return how networks are trained on whole rows as they are.

    Raises:
        ValueError: If that is how they are trained anyway.
    """
    if not (training.augmentations() or training.cutmix_probability or training.view_area):
        raise ValueError(
            "dd_ranking compares training with and without augmentation, but the recipe has none; pass recipe='dsa' or "
            f"augment={ALL_FAMILIES!r}"
        )
    return replace(training, augment="none", cutmix_probability=0.0, view_area=None)


def _has_soft_labels(train: datasets.Dataset | TensorSet, options: Mapping[str, Any]) -> bool:
    """Return whether networks are trained on the soft labels of a teacher.

    Raises:
        ValueError: If they are, and the teacher is not at hand to label random rows.
    """
    soft = has_soft_labels(train) or bool(options.get("relabel"))
    if soft and options.get("teacher") is None and getattr(train, "labeller", None) is None:
        raise ValueError(
            "the set has soft labels, so random rows must be labelled by the same teacher; pass teacher=Teacher(...)"
        )
    return soft


def exponential_score(value: float) -> float:
    """Map [-1, 1] to [0, 1], exponentially.

    Example:
        >>> [round(exponential_score(value), 3) for value in (-1, -0.5, 0, 0.1, 1)]
        [0.0, 0.102, 0.269, 0.314, 1.0]
    """
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def _constant(score: Score, accuracy: float) -> Score:
    """Return a score of the same conditions whose networks all have one accuracy."""
    return replace(score, set="full", accuracies=(accuracy,) * score.n, predictions=None)
