"""Pictures of sets show the pixels as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hf_condense.condensed.preview import Panel, comparison, grid


def test_rows_are_classes_cut_or_filled_to_one_length():
    images = torch.arange(6).reshape(6, 1, 1, 1).expand(6, 3, 56, 56) / 10
    picture = grid(images, torch.tensor([1, 0, 1, 1, 5, 1]), per_class=3)
    assert picture.mode == "RGB"
    assert picture.size == (3 * 58 + 2, 3 * 58 + 2)
    pixels = np.asarray(picture)[2::58, 2::58, 0][:3, :3] / 255
    assert np.abs(pixels - [[0.1, 1, 1], [0, 0.2, 0.3], [0.4, 1, 1]]).max() < 0.5001 / 255


@pytest.mark.parametrize(("side", "scale"), [(1, 56), (8, 7), (28, 2), (32, 2), (56, 1), (224, 1)])
def test_small_images_are_enlarged_by_whole_factors(side, scale):
    image = torch.linspace(-0.5, 1.5, 3 * side * side).reshape(1, 3, side, side)
    picture = grid(image.expand(2, -1, -1, -1), torch.tensor([7, 7]), per_class=2)
    assert picture.size == (2 * (side * scale + 2) + 2, side * scale + 4)
    pixels = np.asarray(picture)[2:-2, 2 : side * scale + 2] / 255  # (H, W, C)
    blocks = pixels.reshape(side, scale, side, scale, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert np.abs(blocks[:, 0, :, 0] - image[0].clamp(0, 1).permute(1, 2, 0).numpy()).max() < 0.5001 / 255


def test_grey_images_and_images_without_labels_make_a_picture():
    picture = grid(torch.zeros(5, 1, 56, 56), per_class=2)
    assert picture.size == (2 * 58 + 2, 3 * 58 + 2)
    assert np.asarray(picture)[30, 30].tolist() == [0, 0, 0]


def test_max_classes_limits_the_rows():
    assert grid(torch.rand(9, 3, 56, 56), torch.arange(9), per_class=1, max_classes=4).size == (60, 4 * 58 + 2)


def test_a_row_is_as_long_as_that_of_the_largest_class_that_is_shown():
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    assert grid(torch.rand(6, 3, 56, 56), labels).size == (3 * 58 + 2, 3 * 58 + 2)
    assert grid(torch.rand(6, 3, 56, 56), labels, max_classes=2).size == (2 * 58 + 2, 2 * 58 + 2)


def test_pictures_stand_side_by_side_below_their_texts():
    left, right = Image.new("RGB", (584, 400), "red"), Image.new("L", (300, 90), 0)
    panels = [Panel("condensed", "90 %", left), Panel("random rows of the same size", "60.0 ± 1.0 %", right)]
    pixels = np.asarray(comparison(panels))
    red = (pixels == [255, 0, 0]).all(axis=2)
    top, first = np.argwhere(red)[0]
    assert red.sum() == 584 * 400
    assert (pixels[:top] < 128).any(), "the texts are drawn"
    assert (pixels[:, first + 584 : first + 584 + 48] == 255).all(), "the pictures are apart"
    black = (pixels[top:] == 0).all(axis=2)
    assert black.sum() == 600 * 180, "small pictures are enlarged by a whole factor"


def test_a_note_is_broken_into_lines_that_fit():
    panel = Panel("one", "two", Image.new("RGB", (584, 60), "red"))
    short, long = comparison([panel], "a note"), comparison([panel], "a note of many words " * 12)
    assert short.width == long.width
    assert long.height > short.height + 40
    edge = np.asarray(long)[:, -36:]
    assert (edge == 255).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"got \(3, 8, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, r"N >= 1"),
        ({"images": torch.zeros(2, 2, 8, 8)}, "C of 1 or 3"),
        ({"images": torch.zeros(2, 3, 8, 8), "labels": torch.zeros(3)}, r"\(2,\), one for each"),
        ({"images": torch.zeros(2, 3, 8, 8), "per_class": 0}, "per_class should be at least 1; got 0"),
    ],
)
def test_arguments_that_make_no_picture_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        grid(**arguments)
    with pytest.raises(ValueError, match="at least one"):
        comparison([])
