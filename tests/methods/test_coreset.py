"""Herding and k-center against brute force."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_condense import condense_dataset
from hf_condense.base.paths import cache_folder
from hf_condense.engine.registry import get_method
from hf_condense.engine.settings import settle
from hf_condense.engine.task import Task
from hf_condense.methods.herding import herding
from hf_condense.methods.kcenter import k_center
from hf_condense.networks.factory import network_factory
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.reference import coreset as reference
from tests.support.counted_calls import CountedCalls


def points(seed: int, n: int, width: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 12), width=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_herding_equals_trying_every_row(seed: int, n: int, width: int) -> None:
    rows = points(seed, n, width)
    selection = herding(rows, n).tolist()
    for k in range(1, n):
        expected = reference.herding(rows.numpy(), k)
        gap = np.linalg.norm(rows.mean(0) - rows[selection[:k]].mean(0))
        assert gap == pytest.approx(np.linalg.norm(rows.mean(0) - rows[expected].mean(0)), abs=1e-9)
    assert sorted(selection) == list(range(n)), "a selection of all rows should hold each row once"


def test_herding_begins_with_the_row_nearest_to_the_mean() -> None:
    rows = points(3, 50, 6)
    nearest = (rows - rows.mean(0)).norm(dim=1).argmin()
    assert herding(rows, 1).item() == nearest


@given(seed=st.integers(0, 10_000), total=st.integers(3, 9), n=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_k_center_is_within_twice_the_optimum(seed: int, total: int, n: int) -> None:
    rows = points(seed, total, 2)
    selection = k_center(rows, n).tolist()
    assert reference.radius(rows.numpy(), selection) <= 2 * reference.best_radius(rows.numpy(), n) + 1e-12


@pytest.mark.parametrize("rule", [herding, k_center])
def test_prefix_equals_the_selection_of_fewer_rows(rule) -> None:
    rows = points(1, 30, 5)
    assert rule(rows, 20)[:7].tolist() == rule(rows, 7).tolist()


def herding_with_doubled_rows(rows: torch.Tensor, n: int) -> list[int]:
    mean, total, chosen = rows.mean(0), torch.zeros_like(rows[0]), []
    for k in range(1, n + 1):
        values = rows.square().sum(1) - 2 * rows @ (k * mean - total)
        values[chosen] = torch.inf
        chosen.append(int(values.argmin()))
        total += rows[chosen[-1]]
    return chosen


def test_doubling_the_vector_in_place_of_all_rows_gives_the_same_bits() -> None:
    for seed in range(5):
        rows = points(seed, 60, 1)[torch.randint(60, (400,), generator=torch.Generator().manual_seed(seed))]
        rows = torch.cat([rows, rows.flip(0)], 1)  # many ties, which rounding decides
        assert herding(rows, 30).tolist() == herding_with_doubled_rows(rows, 30)


@pytest.mark.parametrize(("rule", "copies"), [(herding, 0), (k_center, 1)])
def test_a_pick_copies_the_rows_as_rarely_as_possible(rule, copies: int) -> None:
    rows, sizes = points(1, 50, 7), []
    for n in (3, 8):
        with CountedCalls() as calls:
            rule(rows, n)
        sizes.append(calls.sizes[rows.numel()])
    assert sizes[1] - sizes[0] == 5 * copies


@pytest.mark.parametrize("rule", [herding, k_center])
def test_duplicates_are_chosen_once_each(rule) -> None:
    rows = torch.ones(6, 3)
    assert sorted(rule(rows, 6).tolist()) == list(range(6))


@pytest.mark.parametrize("rule", [herding, k_center])
def test_rows_far_from_the_origin_are_distinguished(rule) -> None:
    rows = points(2, 40, 3)
    assert rule(rows, 8).tolist() == rule(rows + 1000, 8).tolist()


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_features_come_from_a_narrow_network_unless_the_caller_names_one(method: str) -> None:
    task = Task(10, 10, (1, 28, 28))
    assert settle(get_method(method), None, {}, task).network == "convnet-w32"
    assert settle(get_method(method), None, {"network": "convnet"}, task).network == "convnet"


def test_the_recipe_says_which_network_gave_the_features_and_for_how_long_it_was_trained() -> None:
    options = {"feature_updates": 1, "cache": False, "progress": False, "label_column": "label"}
    recipe = condense_dataset(toy_dataset().remove_columns("note"), "herding", 2, **options).recipe
    assert recipe.network == "convnet-w32"
    assert recipe.options["feature_updates"] == 1


@given(seed=st.integers(0, 10_000), total=st.integers(3, 12))
@settings(max_examples=30, deadline=None)
def test_k_center_equals_the_greedy_rule(seed: int, total: int) -> None:
    rows = points(seed, total, 3)
    assert k_center(rows, total).tolist() == reference.k_center(rows.numpy(), total)


@pytest.mark.parametrize(("method", "rule"), [("herding", herding), ("kcenter", k_center)])
def test_pixels_as_features_are_normalised_pixels(method: str, rule) -> None:
    ds = toy_dataset(names=("cat", "dog", "eel"))
    small = condense_dataset(ds, method, 3, features="pixels", progress=False, cache=False)
    source = load_source(ds, cache=False, progress=False)
    expected = []
    for c in source.classes:
        positions = torch.tensor(list(source.positions(c)))
        expected += source.rows[positions[rule(source.at(positions).flatten(1), 3)]].tolist()
    assert small.recipe.rows == expected


TRAINED = {"feature_updates": 3, "feature_batch": 5, "progress": False}


@pytest.mark.parametrize("network", [None, "convnet-w8-d1-bn"])
@pytest.mark.parametrize(("method", "rule"), [("herding", herding), ("kcenter", k_center)])
def test_features_by_default_are_embeddings_of_a_network_trained_on_the_source(
    method: str, rule, network: str | None
) -> None:
    """Train the network by hand, and choose by its embeddings."""
    ds = toy_dataset(names=("cat", "dog", "eel"), rows=24)
    small = condense_dataset(ds, method, 9, network=network, seed=2, cache=False, **TRAINED)
    source = load_source(ds, cache=False, progress=False)
    factory = network_factory(network or "convnet-w32", channels=3, image_size=(8, 8), num_classes=3)
    net = factory.build(2, "features")
    recipe = dataclasses.replace(RECIPES["dc"], batch_size=5)
    whole = TrainingSet(source.at(torch.arange(72)), source.labels, 3)
    train_network(net, whole, recipe, 2, "features", max_updates=3)
    with torch.no_grad():
        features = net.eval().embed(source.at(torch.arange(72)))
    chosen = [rule(features[list(source.positions(c))], 9) + source.positions(c).start for c in source.classes]
    assert small.recipe.rows == source.rows[torch.cat(chosen)].tolist()


def test_features_of_other_networks_and_images_are_cached_apart(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))

    def files_after(method: str, rows: int = 12, **options) -> int:
        ds = toy_dataset(names=("cat", "dog", "eel"), rows=rows)
        condense_dataset(ds, method, 2, **{**TRAINED, "network": "convnet-w4-d1", "cache": True, **options})
        return len(list(cache_folder("features").glob("*.safetensors")))

    assert files_after("herding") == 1
    assert files_after("kcenter") == 1, "both methods should share the features"
    changes = (
        {"feature_updates": 4},
        {"feature_batch": 6},
        {"seed": 1},
        {"network": "convnet-w5-d1"},
        {"rows": 13},
        {"image_size": (8, 12)},
    )
    assert [files_after("herding", **change) for change in changes] == [2, 3, 4, 5, 6, 7]


def test_classes_draw_rows_of_their_own() -> None:
    rows = torch.tensor(quick_method("random").condense(toy_dataset(), 3).recipe.rows)
    numbers = rows.reshape(3, 3) // 3  # toy rows go through the classes in turn
    assert len({tuple(part) for part in numbers.tolist()}) > 1, "of three classes"
