"""The nearest-real-image check finds copies, and measures what a slow loop measures."""

from __future__ import annotations

import logging

import pytest
import torch

import hf_condense.engine.copies
from hf_condense import condense_dataset
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.recipe import Recipe
from hf_condense.engine.copies import nearest_real
from hf_condense.source.class_source import load_source
from tests.support.condensed_sets import make_recipe

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


def test_copies_are_at_no_distance(source):
    found = nearest_real(source.images[[0, 7, 20, 35]] / 255, source)
    assert found["synthetic"] == {"min": 0.0, "median": 0.0, "max": 0.0}
    assert found["real"]["min"] > 0
    assert found["rows"] == len(source)


def test_a_known_distance(source):
    copies = source.images[[3, 4]] / 255
    shifted = torch.where(copies > 0.5, copies - 0.125, copies + 0.125)  # every value by an eighth
    found = nearest_real(torch.cat([copies, shifted[:1]]), source)
    assert found["synthetic"]["min"] == 0
    assert found["synthetic"]["max"] == pytest.approx(0.125, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 1000, 2**23])
def test_chunks_change_nothing(source, monkeypatch, chunk):
    monkeypatch.setattr(hf_condense.engine.copies, "_CHUNK_BYTES", 4 * chunk)
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    found = nearest_real(images, source)
    real = source.images / 255
    apart = distances(real, real)
    apart.fill_diagonal_(torch.inf)
    assert found["synthetic"] == summary(distances(images, real).min(1).values)
    assert found["real"] == summary(apart.min(1).values)


def test_twins_among_the_real_rows_are_seen(toy):
    twice = load_source(toy.select([*range(36), 5]), cache=False, progress=False)
    assert nearest_real(twice.images[:1] / 255, twice)["real"]["min"] == 0


def test_the_sample_follows_the_seed(source, monkeypatch):
    monkeypatch.setattr(hf_condense.engine.copies, "_SAMPLE", 4)
    first, again, other = (nearest_real(source.images[:1] / 255, source, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["rows"] == 4
    assert first["real"] != other["real"]


def test_a_source_that_is_too_large_is_left_out(source, monkeypatch, caplog):
    monkeypatch.setattr(hf_condense.engine.copies, "_MOST_PRODUCTS", 38 * 36 * 192 - 1)
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        assert nearest_real(source.images[:2] / 255, source) is None
    assert "not compared with the nearest source images" in caplog.text
    assert nearest_real(source.images[:1] / 255, source) is not None


def test_a_single_row_has_no_other(toy):
    alone = load_source(toy.select([0]), cache=False, progress=False)
    assert nearest_real(alone.images / 255, alone) is None


def test_learned_sets_carry_the_check_and_coresets_do_not(toy):
    learned = condense_dataset(
        toy, "dm", ipc=1, steps=1, network="convnet-w4-d1", factor=2, lr_img=1e-9, progress=False
    )
    source = load_source(toy, cache=False, progress=False)
    assert learned.recipe.nearest == nearest_real(learned.synthetic.decoded()[0], source, 0)
    assert learned.recipe.nearest["synthetic"]["max"] > 0, "decoded images are compared, not stored ones"
    assert condense_dataset(toy, "random", ipc=1, progress=False).recipe.nearest is None


def test_a_recipe_takes_only_distances():
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
def test_a_recipe_refuses_anything_else(broken):
    with pytest.raises(CondensedFormatError, match="nearest should"):
        Recipe.from_dict({**make_recipe().to_dict(), "nearest": broken})
