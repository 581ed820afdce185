"""Storage forms: what they store, how many rows that gives, and that nobody else knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hf_condense
from hf_condense.condensed.decoders import DECODERS, PIXELS, Frame, decoder_class
from hf_condense.condensed.decoders.patches import Patches, factor_of_form, form_of_factor, storage_of_factor
from hf_condense.condensed.decoders.pixels import Pixels
from hf_condense.condensed.tensors import CondensedTensors
from tests.reference import decode as textbook
from tests.support.half_size import HalfSize

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])
FORMS = [(Pixels, 1), (Patches, 4), (Patches, 9), (HalfSize, 4)]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def decode(images: Tensor, factor: int, frame: Frame = PIXELS) -> Tensor:
    """Decode images with a factor >= 2."""
    return Patches(images.shape[1:], factor**2, frame).decode({"images": images})


@given(
    factor=st.integers(2, 4),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_patches_equal_the_textbook(factor: int, height: int, width: int, channels: int, seed: int) -> None:
    images = noise(2, channels, height, width, seed=seed, dtype=torch.float64)
    mean, std = MEAN[:channels].double(), STD[:channels].double()
    decoded = decode(images, factor, Frame(mean, std))
    assert decoded.shape == (2 * factor**2, channels, height, width)
    grey = ((0.5 - mean) / std).tolist()
    torch.testing.assert_close(decoded, textbook.decode(images, factor, grey), atol=1e-6, rtol=0)


def test_patches_of_an_image_are_neighbours_row_by_row() -> None:
    quarters = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    images = torch.stack([quarters, quarters + 10])[:, None]  # (2, 1, 4, 4), every patch of one value
    assert [float(row.unique()) for row in decode(images, 2)] == [0, 1, 2, 3, 10, 11, 12, 13]


def test_pixels_are_the_images_themselves() -> None:
    images = noise(2, 3, 5, 5)
    assert Pixels((3, 5, 5), 1).decode({"images": images}) is images


def test_patches_are_filled_with_mid_grey_where_the_factor_does_not_divide() -> None:
    black = torch.zeros(1, 1, 5, 5)  # patches of 3 x 3; one row and one column are filled
    decoded = decode(black, 2)
    assert float(decoded[0].abs().max()) == 0  # the first patch lies inside
    assert torch.equal(decoded[3, 0, -1], torch.full((5,), 0.5))
    frame = Frame(torch.tensor([0.25]), torch.tensor([0.125]))
    assert torch.equal(decode(black, 2, frame)[3, 0, -1], torch.full((5,), 2.0))


@pytest.mark.parametrize(("factor", "side"), [(2, 4), (2, 5), (3, 4)])
def test_patches_pass_gradcheck(factor: int, side: int) -> None:
    images = noise(1, 2, side, side, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decode(x, factor), (images,))


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_some_rows_equal_those_of_all_rows(cls: type, expand: int) -> None:
    decoder = cls((3, 6, 6), expand, Frame(MEAN, STD))
    labels = torch.zeros(decoder.rows(2), dtype=torch.int64)
    stored = decoder.start(noise(decoder.rows(2), 3, 6, 6), labels)
    rows = torch.tensor([decoder.rows(2) - 1, 0])
    assert torch.equal(decoder.decode(stored, rows), decoder.decode(stored)[rows])


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_start_and_layout_agree_on_what_is_stored_and_keep_the_budget(cls: type, expand: int) -> None:
    decoder = cls((3, 6, 6), expand)
    labels = torch.zeros(decoder.rows(2), dtype=torch.int64)
    stored = decoder.start(torch.rand(decoder.rows(2), 3, 6, 6), labels)
    layout = decoder.layout(decoder.entries(2), 1)
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == {
        n: shape for n, (_, shape) in layout.items()
    }
    learned = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert learned <= 2 * 3 * 6 * 6
    assert decoder.decode(stored).shape == (decoder.rows(2), 3, 6, 6)


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_decoded_rows_are_within_the_valid_range_after_projection(cls: type, expand: int) -> None:
    decoder = cls((3, 6, 6), expand, Frame(MEAN, STD, clip=True))
    labels = torch.zeros(decoder.rows(1), dtype=torch.int64)
    stored = decoder.start(10 * noise(decoder.rows(1), 3, 6, 6), labels)
    decoder.project_(stored)
    pixels = decoder.decode(stored) * STD[:, None, None] + MEAN[:, None, None]
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_exported_tensors_decode_to_the_same_pixels(cls: type, expand: int) -> None:
    frame = Frame(MEAN, STD, clip=True)
    decoder = cls((3, 6, 6), expand, frame)
    labels = torch.zeros(decoder.rows(1), dtype=torch.int64)
    stored = decoder.start(noise(decoder.rows(1), 3, 6, 6), labels)
    decoder.project_(stored)
    exported, reader = decoder.export(stored, frame.to_pixels)
    tensors = CondensedTensors(exported, torch.zeros(decoder.entries(1), dtype=torch.int64), reader)
    wanted = decoder.decode(stored) * STD[:, None, None] + MEAN[:, None, None]
    torch.testing.assert_close(tensors.decoded()[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_factor_and_form_are_each_others_inverse(factor: int) -> None:
    assert factor_of_form(*form_of_factor(factor)) == factor
    assert storage_of_factor(factor, (1, 28, 28)) == form_of_factor(factor)


@pytest.mark.parametrize(
    ("storage", "expand", "message"),
    [
        ("pixels", 4, r"storage='pixels' decodes an image into itself, so expand should be 1; got 4"),
        ("patches", 1, r"expand should be one of 4, 9, 16; got 1"),
        ("patches", 6, r"expand should be one of 4, 9, 16; got 6"),
        ("patches", 25, r"expand should be one of 4, 9, 16; got 25"),
    ],
)
def test_expand_that_a_form_does_not_have_raises_value_error(storage: str, expand: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder_class(storage).settle_expand(expand, (3, 8, 8))


def test_unknown_form_raises_value_error_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"storage should be one of 'pixels', 'patches'; got 'pixel'; did you mean"):
        decoder_class("pixel")


def test_images_of_a_form_that_stores_none_raise_attribute_error() -> None:
    tensors = CondensedTensors({"small": torch.zeros(4, 1, 2, 2)}, torch.zeros(4), HalfSize((1, 4, 4), 4))
    with pytest.raises(AttributeError, match=r"stores small \(storage 'half'\), not images"):
        _ = tensors.images


def test_only_decoders_compute_with_the_factor() -> None:
    package = Path(hf_condense.__file__).parent
    pattern = re.compile(r"factor\s*\*\*\s*2|factor\s*\*\s*\w*factor|isqrt")
    lines = [
        f"{path.relative_to(package)}:{number}"
        for path in package.rglob("*.py")
        if "decoders" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line) and not line.lstrip().startswith(("#", '"'))
    ]
    assert lines == []


def test_every_form_says_what_it_is_called() -> None:
    for name, cls in DECODERS.items():
        assert cls.name == name
        assert len((cls.__doc__ or "").strip()) > 10
