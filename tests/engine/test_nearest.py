"""The check for copies finds them, and measures the same distances as a slow loop."""

from __future__ import annotations

import logging

import pytest
import torch

import hf_condense.engine.nearest
from hf_condense import condense_dataset, load_condensed
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.recipe import Recipe
from hf_condense.engine.nearest import nearest_real
from hf_condense.source.load import load_source
from tests.support.condensed_sets import make_recipe
from tests.support.pretend_device import pretend_device

DISTANCES = {
    "synthetic": {"min": 0.1, "median": 0.2, "max": 0.3},
    "real": {"min": 0.0, "median": 0.2, "max": 0.2},
    "rows": 3,
}


@pytest.fixture(scope="module")
def source(toy):
    return load_source(toy, cache=False, progress=False)


def distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the distance of every pair, from the definition."""
    return (first[:, None] - second[None]).square().flatten(2).mean(2).sqrt()


def summary(nearest: torch.Tensor) -> dict:
    ordered = nearest.double().sort().values
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return pytest.approx({"min": float(ordered[0]), "median": float(middle), "max": float(ordered[-1])}, abs=6e-5)


def test_copies_have_distance_zero(source):
    nearest = nearest_real(source.images[[0, 7, 20, 35]] / 255, source)
    assert nearest["synthetic"] == {"min": 0.0, "median": 0.0, "max": 0.0}
    assert nearest["real"]["min"] > 0
    assert nearest["rows"] == len(source)


def test_images_shifted_by_an_eighth_have_that_distance(source):
    copies = source.images[[3, 4]] / 255
    shifted = torch.where(copies > 0.5, copies - 0.125, copies + 0.125)  # every value by an eighth
    nearest = nearest_real(torch.cat([copies, shifted[:1]]), source)
    assert nearest["synthetic"]["min"] == 0
    assert nearest["synthetic"]["max"] == pytest.approx(0.125, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 1000, 2**23])
def test_distances_do_not_depend_on_the_chunk_size(source, monkeypatch, chunk):
    monkeypatch.setattr(hf_condense.engine.nearest, "_CHUNK_BYTES", 4 * chunk)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    nearest = nearest_real(images, source)
    real = source.images / 255
    between_real = distances(real, real)
    between_real.fill_diagonal_(torch.inf)
    assert nearest["synthetic"] == summary(distances(images, real).min(1).values)
    assert nearest["real"] == summary(between_real.min(1).values)


def test_duplicate_real_rows_have_distance_zero(toy):
    with_duplicate = load_source(toy.select([*range(36), 5]), cache=False, progress=False)
    assert nearest_real(with_duplicate.images[:1] / 255, with_duplicate)["real"]["min"] == 0


def test_sample_of_real_rows_follows_the_seed(source, monkeypatch):
    monkeypatch.setattr(hf_condense.engine.nearest, "_SAMPLE", 4)
    first, again, other = (nearest_real(source.images[:1] / 255, source, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["rows"] == 4
    assert first["real"] != other["real"]


def test_source_that_is_too_large_gives_none_and_logs_why(source, monkeypatch, caplog):
    monkeypatch.setattr(hf_condense.engine.nearest, "_MOST_PRODUCTS", {"cpu": 38 * 36 * 192 - 1})
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        assert nearest_real(source.images[:2] / 255, source) is None
    assert "not compared with the nearest source images" in caplog.text
    assert nearest_real(source.images[:1] / 255, source) is not None


def test_source_that_is_too_large_for_a_cpu_is_compared_on_a_gpu(source, monkeypatch):
    monkeypatch.setattr(hf_condense.engine.nearest, "_MOST_PRODUCTS", {"cpu": 0, "other": 10**9})
    assert nearest_real(source.images[:2] / 255, source) is None
    with pretend_device():
        distances = nearest_real(source.images[:2] / 255, source.to("cuda:0"))
    assert distances["synthetic"]["max"] == 0


def test_single_row_gives_none_and_the_log_says_why(toy, caplog):
    single_row = load_source(toy.select([0]), cache=False, progress=False)
    with caplog.at_level(logging.INFO, "hf_condense"):
        assert nearest_real(single_row.images / 255, single_row) is None
    assert "the source has a single row" in caplog.text


def test_recipes_of_learned_sets_hold_distances_and_those_of_coresets_do_not(toy):
    learned = condense_dataset(
        toy, "dm", ipc=1, steps=1, network="convnet-w4-d1", factor=2, lr_img=1e-9, progress=False
    )
    source = load_source(toy, cache=False, progress=False)
    assert learned.recipe.nearest == nearest_real(learned.synthetic.decoded()[0], source, 0)
    assert learned.recipe.nearest["synthetic"]["max"] > 0, "decoded images are compared, not stored ones"
    assert condense_dataset(toy, "random", ipc=1, progress=False).recipe.nearest is None


def test_comparison_that_does_not_fit_into_memory_loses_no_set(toy, tmp_path, monkeypatch, caplog):
    def exhausted(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("hf_condense.engine.finish.nearest_of_set", exhausted)
    small = condense_dataset(toy, "dm", ipc=1, steps=1, network="convnet-w4-d1", progress=False)
    assert small.recipe.nearest is None
    assert "images were not compared with the nearest source images: out of memory" in caplog.text
    small.save_condensed(tmp_path)
    assert load_condensed(tmp_path).synthetic.equals(small.synthetic)


def test_comparison_that_fails_otherwise_is_an_error(toy, monkeypatch):
    def broken(*args):
        raise RuntimeError("something else")

    monkeypatch.setattr("hf_condense.engine.finish.nearest_of_set", broken)
    with pytest.raises(RuntimeError, match="something else"):
        condense_dataset(toy, "dm", ipc=1, steps=1, network="convnet-w4-d1", progress=False)


def test_recipe_keeps_distances_and_does_without():
    values = make_recipe(nearest=DISTANCES).to_dict()
    assert Recipe.from_dict(values).nearest == DISTANCES
    assert Recipe.from_dict({key: value for key, value in values.items() if key != "nearest"}).nearest is None


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {**DISTANCES, "rows": 0},
        {**DISTANCES, "rows": "3"},
        {**DISTANCES, "real": {}},
        {**DISTANCES, "real": {"min": 0.1, "median": "0.2", "max": 0.3}},
        {**DISTANCES, "real": {"min": 0.3, "median": 0.2, "max": 0.3}},
        {**DISTANCES, "synthetic": {"min": -0.1, "median": 0.2, "max": 0.3}},
        {**DISTANCES, "synthetic": None},
        [1],
    ],
)
def test_recipe_refuses_anything_but_distances(broken):
    with pytest.raises(CondensedFormatError, match="nearest should"):
        Recipe.from_dict({**make_recipe().to_dict(), "nearest": broken})
