"""Storage forms: what they store, how many rows that gives, and that nobody else knows."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hf_condense
from hf_condense.condensed.decoders import DECODERS, PIXELS, Decoder, Frame, Origin, dct, decoder_class, siren
from hf_condense.condensed.decoders.dct import Dct
from hf_condense.condensed.decoders.patches import (
    Patches,
    allowed_factors,
    factor_of_form,
    form_of_factor,
    storage_of_factor,
)
from hf_condense.condensed.decoders.pixels import Pixels
from hf_condense.condensed.decoders.siren import Siren
from hf_condense.condensed.tensors import CondensedTensors
from tests.reference import decode as textbook
from tests.support.draws import normal
from tests.support.half_size import HalfSize

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])
FORMS = [(Pixels, 1), (Patches, 4), (Patches, 9), (HalfSize, 4), (Dct, 5), (Siren, 3)]


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit networks in a few steps: what these tests say holds however good a fit is."""
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 30)


noise = partial(normal, dtype=torch.float32)


def decode(images: Tensor, factor: int, frame: Frame = PIXELS) -> Tensor:
    """Decode images with a factor >= 2."""
    return Patches(images.shape[1:], factor**2, frame).decode({"images": images})


def started(form: Decoder, budgets: dict[int, int]) -> tuple[dict[str, Tensor], Tensor]:
    """Return what a form stores of noise, in classes of these budgets of images, and the labels of the entries."""
    rows = {c: noise(form.rows(budget), *form.image_shape, seed=c) for c, budget in budgets.items()}
    labels = torch.tensor([c for c in rows for _ in range(len(rows[c]))])
    origin = Origin(lambda c: iter(rows[c].split(4)), torch.Generator().manual_seed(0))
    entries = torch.tensor([c for c, budget in budgets.items() for _ in range(form.entries(budget))])
    return form.start(torch.cat(list(rows.values())), labels, origin), entries


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


@pytest.mark.parametrize(("factor", "height", "width"), [(2, 8, 8), (2, 6, 10), (3, 9, 12)])
def test_patches_start_from_real_rows_that_are_shrunk_once(factor: int, height: int, width: int) -> None:
    """Every patch is one row, in order, and each row is shrunk by itself; the decoder enlarges it again."""
    real = noise(2 * factor**2, 3, height, width)
    small = [shrunk(row, (height // factor, width // factor)) for row in real]
    form, labels = Patches((3, height, width), factor**2), torch.zeros(len(real), dtype=torch.int64)
    stored = form.start(real, labels, Origin(lambda c: iter([real]), torch.Generator()))
    for i, patch in enumerate(small):
        image, place = divmod(i, factor**2)
        top, left = (place // factor) * (height // factor), (place % factor) * (width // factor)
        cut = stored["images"][image, :, top : top + height // factor, left : left + width // factor]
        torch.testing.assert_close(cut, patch, atol=1e-6, rtol=1e-5)
    enlarged = [F.interpolate(p[None], (height, width), mode="bilinear", align_corners=False)[0] for p in small]
    torch.testing.assert_close(form.decode(stored), torch.stack(enlarged), atol=1e-6, rtol=1e-5)


def shrunk(row: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink a row (C, H, W) to whole parts of its sides by triangles as wide as two pixels of the result."""
    down, across = (triangles(len_in, len_out) for len_in, len_out in zip(row.shape[1:], size, strict=True))
    return torch.stack([down @ channel.double() @ across.T for channel in row]).float()


def triangles(long: int, short: int) -> Tensor:
    """Return the weights (short, long) of the pixels of a side in those of a shorter one."""
    scale = long / short
    weights = torch.zeros(short, long, dtype=torch.float64)
    for i in range(short):
        for j in range(long):
            weights[i, j] = max(0.0, 1 - abs((i + 0.5) * scale - (j + 0.5)) / scale)
        weights[i] /= weights[i].sum()
    return weights


def test_patches_of_rows_that_the_factor_does_not_divide_lose_the_padding() -> None:
    real = noise(4, 1, 5, 5)
    stored = Patches((1, 5, 5), 4).start(
        real, torch.zeros(4, dtype=torch.int64), Origin(lambda c: iter([real]), torch.Generator())
    )
    images = stored["images"]
    small = [F.interpolate(row[None], (3, 3), mode="bilinear", antialias=True)[0] for row in real]
    assert images.shape == (1, 1, 5, 5)
    torch.testing.assert_close(images[0, :, :3, :3], small[0])
    torch.testing.assert_close(images[0, :, :3, 3:], small[1][:, :, :2])
    torch.testing.assert_close(images[0, :, 3:, :3], small[2][:, :2])
    torch.testing.assert_close(images[0, :, 3:, 3:], small[3][:, :2, :2])


@pytest.mark.parametrize("side", [4, 5, 9, 28])
def test_factors_whose_patches_would_be_all_padding_are_refused(side: int) -> None:
    for factor in range(2, side // 2 + 1):
        decoded = decode(torch.zeros(1, 1, side, side), factor)
        has_padding_alone = any(bool((row > 0.49).all()) for row in decoded)
        assert (factor not in allowed_factors((1, side, side))) == has_padding_alone, factor
    with pytest.raises(ValueError, match=r"none outside the image; expand should be one of 4, 9; got 16"):
        Patches.settle_expand(16, (3, 9, 9), 1)


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
def test_some_rows_equal_those_of_all_rows(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand, Frame(MEAN, STD))
    stored, _ = started(form, {0: 2, 3: 1})
    last = form.rows(3) - 1
    rows = torch.tensor([last, 0, form.rows(2), 0])
    torch.testing.assert_close(form.decode(stored, rows), form.decode(stored)[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_start_and_layout_agree_on_what_is_stored_and_keep_the_budget(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand)
    stored, entries = started(form, {0: 2, 1: 1, 4: 3})
    layout = form.layout(form.entries(6), 3)
    types = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}
    assert {name: (types[tensor.dtype], list(tensor.shape)) for name, tensor in stored.items()} == layout
    learned = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert learned <= 6 * 3 * 6 * 6
    assert form.decode(stored).shape == (form.rows(6), 3, 6, 6)
    form.check_stored(stored, entries)


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_start_from_noise_stores_one_noise_image_for_each_entry(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand)
    real = noise(7, 3, 6, 6, seed=1)
    origin = Origin(lambda c: iter([real]), torch.Generator().manual_seed(0))
    images, labels = noise(form.entries(2), 3, 6, 6), torch.zeros(form.entries(2), dtype=torch.int64)
    stored = form.start_from_noise(images, labels, origin)
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == {
        name: shape for name, (_, shape) in form.layout(form.entries(2), 1).items()
    }
    assert form.decode(stored).shape == (form.rows(2), 3, 6, 6)


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_decoded_rows_are_within_the_valid_range_after_projection(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand, Frame(MEAN, STD, clip=True))
    stored, _ = started(form, {0: 1})
    form.project_({name: tensor.mul_(10) for name, tensor in stored.items() if tensor.is_floating_point()})
    pixels = form.decode(stored) * STD[:, None, None] + MEAN[:, None, None]
    assert float(pixels.min()) == pytest.approx(0, abs=1e-6)
    assert float(pixels.max()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "frame", [Frame(MEAN, STD), Frame(MEAN[0], STD[0]), Frame(MEAN.expand(5, 3), STD.expand(5, 3))]
)
def test_clipping_is_by_the_smaller_and_the_larger_number(frame: Frame) -> None:
    images = (3 * noise(5, 3, 4, 6)).requires_grad_()
    expected = torch.maximum(torch.minimum(images, frame.value(1)), frame.value(0))
    clipped, in_place = frame.clip_images(images), images.detach().clone()
    frame.clip_images_(in_place)
    assert torch.equal(clipped, expected)
    assert torch.equal(in_place, expected)
    of_clipped, of_expected = (
        torch.autograd.grad((result * noise(5, 3, 4, 6, seed=1)).sum(), images)[0] for result in (clipped, expected)
    )
    assert torch.equal(of_clipped, of_expected)
    assert 0 < float((of_clipped == 0).float().mean()) < 1


@pytest.mark.parametrize("cls", [Dct, Siren])
def test_constants_of_decoding_are_made_once(cls: type[Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    form = cls((3, 6, 6), 3, Frame(MEAN, STD))
    stored, _ = started(form, {0: 1})
    first = form.decode(stored)
    monkeypatch.setattr(Frame, "value", None)
    monkeypatch.setattr("hf_condense.condensed.decoders.dct.cosines", None)
    monkeypatch.setattr(torch, "meshgrid", None)
    assert torch.equal(form.decode(stored), first)


@pytest.mark.parametrize("cls", [Dct, Siren])
def test_form_that_was_first_decoded_in_inference_mode_can_be_learned(cls: type[Decoder]) -> None:
    form = cls((3, 6, 6), 3, Frame(MEAN, STD))
    stored, _ = started(form, {0: 1})
    for cached in (dct._matrices, siren._coordinates):
        cached.cache_clear()
    with torch.inference_mode():
        form.decode(stored)
    learned = next(tensor.requires_grad_() for tensor in stored.values() if tensor.is_floating_point())
    form.decode(stored).square().sum().backward()
    assert float(learned.grad.abs().max()) > 0


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_decoded_rows_without_clipping_leave_the_valid_range(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand, Frame(MEAN, STD, clip=False))
    stored, _ = started(form, {0: 1})
    form.project_({name: tensor.mul_(10) for name, tensor in stored.items() if tensor.is_floating_point()})
    pixels = form.decode(stored) * STD[:, None, None] + MEAN[:, None, None]
    assert float(pixels.min()) < -0.1
    assert float(pixels.max()) > 1.1


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_exported_tensors_decode_to_the_same_pixels(cls: type[Decoder], expand: int) -> None:
    frame = Frame(MEAN, STD, clip=True)
    form = cls((3, 6, 6), expand, frame)
    stored, entries = started(form, {0: 1, 2: 2})
    form.project_(stored)
    exported, reader = form.export(stored, frame.to_pixels)
    tensors = CondensedTensors(exported, entries, reader)
    expected = form.decode(stored) * STD[:, None, None] + MEAN[:, None, None]
    torch.testing.assert_close(tensors.decoded()[0], expected, atol=1e-6, rtol=0)
    assert tensors.row_labels.tolist() == [0] * form.rows(1) + [2] * form.rows(2)


@pytest.mark.parametrize(("cls", "expand"), FORMS)
def test_gradient_of_some_rows_reaches_no_others(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand)
    stored, _ = started(form, {0: 2, 1: 1})
    learned = {name: tensor.requires_grad_() for name, tensor in stored.items() if tensor.is_floating_point()}
    rows = torch.arange(form.rows_per_entry)  # all rows of the first entry
    form.decode(stored, rows).square().sum().backward()
    for tensor in learned.values():
        moved = tensor.grad.flatten(1).abs().amax(1)
        assert float(moved[0]) > 0
        assert float(moved[1:].max()) == 0


# Networks of all rows are drawn together; test_siren compares fits that start from the same draws.
@pytest.mark.parametrize(("cls", "expand"), [form for form in FORMS if form[0] is not Siren])
def test_rows_of_a_class_do_not_depend_on_the_other_classes(cls: type[Decoder], expand: int) -> None:
    form = cls((3, 6, 6), expand)
    alone, together = started(form, {1: 2})[0], started(form, {0: 1, 1: 2})[0]
    torch.testing.assert_close(form.decode(together)[form.rows(1) :], form.decode(alone), atol=1e-6, rtol=0)


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
        ("dct", 193, r"keeps 192 numbers for each image of the budget, so expand should be in 1..192; got 193"),
        ("siren", 10, r"8x8 images as networks of at least 21 weights, so expand should be in 1..9; got 10"),
    ],
)
def test_expand_that_a_form_does_not_have_raises_value_error(storage: str, expand: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder_class(storage).settle_expand(expand, (3, 8, 8), 1)


def test_unknown_form_raises_value_error_with_the_nearest_name() -> None:
    with pytest.raises(
        ValueError, match=r"storage should be one of 'pixels', 'patches', 'dct', 'siren'; got 'pixel'; did you mean"
    ):
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


def test_noise_keeps_its_variance_in_few_frequencies() -> None:
    form, labels = Dct((3, 8, 8), 16), torch.zeros(200, dtype=torch.int64)
    origin = Origin(lambda c: iter([noise(50, 3, 8, 8, seed=1)]), torch.Generator())
    decoded = form.decode(form.start_from_noise(noise(200, 3, 8, 8), labels, origin))
    assert float(decoded.std()) == pytest.approx(1, rel=0.05)


def test_networks_are_not_fitted_to_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    form, labels = Siren((3, 8, 8), 2), torch.zeros(5, dtype=torch.int64)
    monkeypatch.setattr(Siren, "_fitted", lambda *arguments: pytest.fail("networks were fitted"))
    starts = [
        form.start_from_noise(noise(5, 3, 8, 8), labels, Origin(lambda c: (), torch.Generator().manual_seed(seed)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0]["weights"], starts[1]["weights"])
    assert not torch.equal(starts[0]["weights"], starts[2]["weights"])


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 2, 40)])
def test_images_below_four_pixels_are_not_cut_into_patches(shape):
    with pytest.raises(ValueError, match=r"at least 4x4 pixels; got \d+x\d+\. Pass storage='pixels'"):
        Patches.settle_expand(None, shape, 1)
