"""Facts of small sets, from which cards are rendered: a set with every kind of measurement, and a coreset."""

from __future__ import annotations

from collections.abc import Mapping

from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.scores import Evaluation, Score
from tests.support.condensed_sets import make_coreset, make_set

NEAREST = {
    "synthetic": {"min": 0.05, "median": 0.1, "max": 0.2},
    "real": {"min": 0.04, "median": 0.15, "max": 0.3},
    "rows": 100,
}


def facts_of(small: CondensedDataset, **changes) -> Facts:
    """Return the facts of a set as they are stored, with some values changed or, if None, removed."""
    values = {**pack(small.parts).facts.values, **changes}
    return Facts.from_values({name: value for name, value in values.items() if value is not None})


def score(name: str, *accuracies: float, **changes) -> Score:
    """Return the accuracies of a set in a table."""
    values = {"rows": 16, "network": "convnet-w32", "recipe": "dc", "augment": None, "epochs": 300, "updates": 300}
    seeds = tuple(range(len(accuracies)))
    return Score(set=name, accuracies=accuracies, seeds=seeds, seconds=1.5, **{**values, **changes})


def measured_set(**changes) -> CondensedDataset:
    """Return a learned set with every kind of measurement."""
    small = make_set(
        soft=True,
        factor=2,
        ipc={"cat": 1, "dog": 3},
        pixel_range="free",
        options={"lr": 0.1, "a": [1]},
        steps=1000,
        nearest=NEAREST,
        source={"name": "someone/pets", "license": "MIT", "num_examples": 20_000},
        **changes,
    )
    name = small.recipe.config_name
    scores = (
        score(name, 0.5, 0.75),
        score(f"{name} (8-bit)", 0.5, 0.74),
        score("random", 0.25, 0.5),
        score("random x4", 0.375, 0.5),
        score("random as patches4", 0.375, 0.53125),
        score("herding", 0.3125, 0.4375),
        score("full", 0.9, rows=20_000, epochs=3.5, updates=1000),
        score(name, 0.4, network="convnet", augment="flip"),
    )
    return small.with_evaluation(Evaluation(scores))


def card_sets() -> Mapping[str, Facts]:
    """Return the facts of two sets: a measured set with a split beside it, and a coreset."""
    learned = facts_of(measured_set()).with_extra_splits({"test": {"num_rows": 4000, "num_bytes": 123_456}})
    return {"dm_ipc1-3_f2": learned, "herding_ipc2": facts_of(make_coreset())}
