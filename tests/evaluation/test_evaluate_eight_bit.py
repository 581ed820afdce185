"""The 8-bit images of a set are measured beside its floats, network by network."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Image
from PIL import Image as Pictures

from hf_condense.condensed.tensors import round_robin
from tests.support.short_evaluations import rows_of, run, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainings(monkeypatch):
    return watch_trainings(monkeypatch)


def test_rows_are_those_of_load_dataset(toy, trainings):
    images = torch.linspace(-0.5, 1.5, 3 * 3 * 64).reshape(3, 3, 8, 8)
    small = synthetic(
        toy,
        factor=2,
        images=images,
        recipe_changes={"pixel_range": "free", "mean": [0.1, 0.2, 0.3]},
        soft_labels=torch.randn(12, 3, generator=torch.Generator().manual_seed(0)),
        student_lr=torch.tensor(0.5),
    )
    result = run(small, toy, seeds=2, eight_bit=True)
    names = ["dm_ipc1_f2", "dm_ipc1_f2 (8-bit)", "dm_ipc1_f2 (hard labels)", "random"]
    assert list(rows_of(result))[:4] == names
    (floats, recipe, *_), (view, viewed, *_) = trainings[0], trainings[2]
    order = round_robin(small.synthetic.decoded()[1].tolist())
    stored = small.cast_column("image", Image(decode=False))["image"][:]
    pixels = np.stack([np.asarray(Pictures.open(io.BytesIO(cell["bytes"]))) for cell in stored])
    view_pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    expected = (view_pixels - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / torch.tensor(0.25)
    torch.testing.assert_close(view.images[order], expected)
    assert torch.equal(view.labels, floats.labels)
    assert view.temperature == floats.temperature
    assert (recipe, recipe.lr) == (viewed, 0.5)


def test_networks_and_draws_are_paired(toy, trainings):
    small = synthetic(toy, recipe_changes={"pixel_range": "free"})
    result = run(small, toy, seeds=[3, 5], eight_bit=True, recipe="dsa", epochs=3)
    floats, view = result.scores[:2]
    assert floats.seeds == view.seeds == (3, 5)
    assert (floats.rows, floats.updates, floats.augment) == (view.rows, view.updates, view.augment)
    for one, other in zip(trainings[:2], trainings[2:4], strict=True):
        assert one.key == other.key
        assert torch.equal(one.before, other.before)
    alone = run(small, toy, seeds=[3, 5], recipe="dsa", epochs=3)
    assert alone.scores[0].accuracies == floats.accuracies
    assert alone.scores[1].accuracies == result.scores[2].accuracies


def test_a_set_that_is_8_bit_already_scores_the_same(toy):
    small = synthetic(toy)
    exact = replace(small.synthetic, stored={"images": (small.synthetic.images * 255).round() / 255})
    floats, view = run(type(small).from_parts(small, exact, small.recipe, toy), toy, seeds=2, eight_bit=True).scores[:2]
    assert view.accuracies == floats.accuracies


def test_real_rows_get_no_second_row(toy, small):
    assert list(rows_of(run(small, toy, seeds=1, eight_bit=True))) == ["random_ipc2", "random"]


@pytest.mark.parametrize("as_tensors", [False, True], ids=["dataset", "tensors"])
def test_set_that_is_not_condensed_is_refused(toy, as_tensors):
    train = (torch.rand(3, 3, 8, 8), torch.arange(3)) if as_tensors else toy.select(range(3))
    with pytest.raises(ValueError, match=r"eight_bit is for a condensed set.*: leave out eight_bit=True"):
        run(train, toy, source=toy, seeds=1, eight_bit=True, baselines=())
