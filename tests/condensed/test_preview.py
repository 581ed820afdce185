"""Pictures of sets show the pixels as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hf_condense.condensed.preview import comparison, grid


def test_rows_are_classes_cut_or_filled_to_one_length():
    images = torch.arange(6).reshape(6, 1, 1, 1).expand(6, 3, 56, 56) / 10
    picture = grid(images, torch.tensor([1, 0, 1, 1, 5, 1]), per_class=3)
    assert picture.mode == "RGB"
    assert picture.size == (3 * 58 + 2, 3 * 58 + 2)
    pixels = np.asarray(picture)[2::58, 2::58, 0][:3, :3] / 255
    assert np.abs(pixels - [[0.1, 1, 1], [0, 0.2, 0.3], [0.4, 1, 1]]).max() < 1 / 255


@pytest.mark.parametrize(("side", "scale"), [(1, 56), (8, 7), (28, 2), (32, 2), (56, 1), (224, 1)])
def test_small_images_are_enlarged_by_whole_factors(side, scale):
    image = torch.linspace(-0.5, 1.5, 3 * side * side).reshape(1, 3, side, side)
    picture = grid(image, torch.tensor([7]), per_class=2)
    assert picture.size == (2 * (side * scale + 2) + 2, side * scale + 4)
    pixels = np.asarray(picture)[2:-2, 2 : side * scale + 2] / 255  # (H, W, C)
    blocks = pixels.reshape(side, scale, side, scale, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert np.abs(blocks[:, 0, :, 0] - image[0].clamp(0, 1).permute(1, 2, 0).numpy()).max() < 1 / 255


def test_grey_images_and_images_without_labels_make_a_picture():
    picture = grid(torch.zeros(5, 1, 56, 56), per_class=2)
    assert picture.size == (2 * 58 + 2, 3 * 58 + 2)
    assert np.asarray(picture)[30, 30].tolist() == [0, 0, 0]


def test_max_classes_limits_the_rows():
    assert grid(torch.rand(9, 3, 56, 56), torch.arange(9), per_class=1, max_classes=4).size == (60, 4 * 58 + 2)


def test_pictures_stand_side_by_side_below_their_captions():
    left, right = Image.new("RGB", (60, 40), "red"), Image.new("L", (10, 90), 0)
    picture = comparison([("condensed", left), ("random rows of the same size", right)])
    pixels = np.asarray(picture)
    head = picture.height - 90
    assert 0 < head < 40
    assert (pixels[head : head + 40, :60] == [255, 0, 0]).all()
    assert (pixels[:head] < 128).any(), "the captions are drawn"
    assert (pixels[head:, 60:70] == 255).all(), "the pictures are apart"
    assert picture.width > 60 + 10 + 60, "a long caption gets its room"
    assert (pixels == 0).all(axis=2).any(axis=0).sum() >= 10


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"got \(3, 8, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, r"N >= 1"),
        ({"images": torch.zeros(2, 2, 8, 8)}, "C of 1 or 3"),
        ({"images": torch.zeros(2, 3, 8, 8), "labels": torch.zeros(3)}, r"\(2,\), one for each"),
        ({"images": torch.zeros(2, 3, 8, 8), "per_class": 0}, "got 0 and 100"),
    ],
)
def test_arguments_that_make_no_picture_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        grid(**arguments)
    with pytest.raises(ValueError, match="at least one"):
        comparison([])
