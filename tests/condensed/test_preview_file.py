"""The picture beside a set: what it shows, and that nothing takes it for data."""

from __future__ import annotations

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_condense.condensed.files.names import PREVIEW
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.folder import list_sets
from hf_condense.condensed.loading import load_condensed
from tests.support.condensed_sets import make_coreset, make_set

CELL = 56 + 2  # pixels of an enlarged image of 8 x 8, and the gap


def picture(small) -> Image.Image:
    return Image.open(io.BytesIO(pack(small.parts).files[PREVIEW]))


def named(classes: int, **changes):
    names = [f"c{i}" for i in range(classes)]
    return make_set(class_names=names, label_values=list(range(classes)), **changes)


@pytest.mark.parametrize(
    ("small", "columns", "rows"),
    [
        (named(3, ipc=2), 2, 3),
        (named(3, ipc=12), 10, 3),
        (named(12, ipc=2), 2, 10),
        (named(3, ipc=1, factor=2), 4, 3),
        (named(2, ipc={"c1": 3}), 3, 1),
        (named(3, ipc=1), 3, 1),
        (named(12, ipc=1), 10, 2),
    ],
    ids=["whole", "many images", "many classes", "decoded", "absent class", "one each", "one each of many"],
)
def test_classes_are_rows_unless_they_have_one_image(small, columns, rows):
    assert picture(small).size == (columns * CELL + 2, rows * CELL + 2)


def test_picture_shows_the_images_of_the_set():
    small = named(3, ipc=2)
    pixels = np.asarray(picture(small))[2:58:7, 2:58:7].transpose(2, 0, 1) / 255
    assert np.abs(pixels - small.synthetic.images[0].numpy()).max() <= 1 / 255


def test_large_picture_is_scaled_down():
    small = make_set(image_shape=[3, 200, 100], ipc=10)
    assert max(picture(small).size) == 1000


def test_coresets_and_grey_sets_have_a_picture():
    assert picture(make_coreset()).size == (2 * CELL + 2, 2 * CELL + 2)
    assert picture(make_set(image_shape=[1, 8, 8])).size == (2 * CELL + 2, 2 * CELL + 2)


def test_equal_sets_have_equal_pictures():
    assert pack(make_set().parts).files[PREVIEW] == pack(make_set().parts).files[PREVIEW]
    other = make_set()
    other.synthetic.images.copy_(torch.flip(other.synthetic.images, [0]))
    assert pack(other.parts).files[PREVIEW] != pack(make_set().parts).files[PREVIEW]


@pytest.mark.parametrize("card", [True, False], ids=["with the card", "without"])
def test_loaders_do_not_take_the_picture_for_data(tmp_path, card):
    small = make_set()
    target = small.save_condensed(tmp_path)
    assert (target / PREVIEW).is_file()
    if not card:
        (tmp_path / "README.md").unlink()
    for folder in (tmp_path, target):
        loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.column_names == ["image", "label"]
        assert len(loaded) == len(small)
    assert list_sets(tmp_path) == ["dm_ipc2"]
    assert load_condensed(tmp_path).recipe == small.recipe
