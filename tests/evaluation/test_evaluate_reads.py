"""An evaluation reads every dataset once, and coreset baselines choose the rows that condensing would."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from datasets import Dataset

from hf_condense import condense_dataset
from hf_condense.evaluation.selection import Selection
from hf_condense.source.load import load_source
from tests.support.short_evaluations import rows_of, run, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = ("random", "full", "herding", "kcenter")


@pytest.fixture
def passes(monkeypatch) -> Counter[int]:
    """Passes over the encoded pictures of a dataset, by its number of rows."""
    counter: Counter[int] = Counter()
    original = Dataset.iter

    def counted(self, *args, **options):
        counter[len(self)] += 1
        return original(self, *args, **options)

    monkeypatch.setattr(Dataset, "iter", counted)
    return counter


def passes_of_a_second_run(passes: Counter[int], train, test, **options) -> dict[int, int]:
    """Evaluate twice: decoded images are cached after the first time, so a pass of the second one is a read."""
    run(train, test, seeds=1, epochs=1, **options)
    passes.clear()
    run(train, test, seeds=1, epochs=1, **options)
    return dict(passes)


def test_a_plain_set_its_test_and_its_source_are_read_once_each(toy, passes):
    train, test = toy.select(range(9)), toy.select(range(24))
    assert passes_of_a_second_run(passes, train, test, source=toy, baselines=ALL) == {9: 1, 24: 1, 36: 1}


def test_the_source_of_a_condensed_set_is_read_once(toy, small, passes):
    assert passes_of_a_second_run(passes, small, toy.select(range(24)), baselines=ALL) == {24: 1, 36: 1}


def test_one_dataset_in_three_roles_is_read_once(toy, passes):
    assert passes_of_a_second_run(passes, toy, toy, source=toy, baselines=ALL) == {36: 1}


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_a_coreset_baseline_has_the_rows_that_condensing_gives(toy, monkeypatch, method):
    trainings = watch_trainings(monkeypatch)
    small = synthetic(toy, recipe_changes={"mean": [0.1, 0.2, 0.3], "pixel_range": "free"})
    run(small, toy, seeds=1, epochs=1, seed=4, baselines=("full", method), cache=False)
    coreset = condense_dataset(
        toy, method, ipc=1, network="convnet-w8-d1", seed=4, progress=False, cache=False, compile=False
    )
    source = load_source(toy, cache=False, progress=False)
    positions = [source.rows.tolist().index(row) for row in coreset.recipe.rows]
    pixels = source.images[torch.tensor(positions)].float() / 255
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / 0.25
    torch.testing.assert_close(trainings[2].data.images, expected)


def test_a_coreset_that_asks_for_more_rows_than_a_class_has_is_refused(toy, small):
    source = toy.filter(lambda row: row["note"] not in {f"cross number {n}" for n in range(1, 12)})
    message = "'herding' should choose 2 rows of class 'cross', but source has 1 to choose from; leave it out"
    with pytest.raises(ValueError, match=message):
        run(small, toy, source=source, baselines="herding")


def test_a_network_that_cannot_be_built_is_refused_before_coresets_are_chosen(toy, small, monkeypatch):
    def choose(self: Selection, method: str, rows_per_class: dict[int, int]) -> torch.Tensor:
        raise AssertionError("too early")

    monkeypatch.setattr(Selection, "positions", choose)
    with pytest.raises(ValueError, match="pooling"):
        run(small, toy, networks=["convnet-w8-d1", "convnet-w8-d9"], baselines="herding")


def test_a_set_of_some_classes_is_compared_with_rows_of_these(toy):
    train = toy.filter(lambda row: row["label"] != 1).select(range(4))
    scores = rows_of(run(train, train, source=toy, seeds=1, baselines=("random", "herding")))
    assert {name: score.rows for name, score in scores.items()} == {"train": 4, "random": 4, "herding": 4}
