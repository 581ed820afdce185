"""Cosine coefficients: an exact projection onto the places that matter most for a class."""

from __future__ import annotations

import itertools
import math
import resource
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_condense.condensed.decoders import PIXELS, Frame, Origin
from hf_condense.condensed.decoders.dct import Dct
from tests.reference import dct as textbook
from tests.support.draws import normal

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])


def origin_of(rows: dict[int, Tensor]) -> Origin:
    """Return an origin whose classes have these rows, in batches of two."""

    def rows_of(c: int) -> Iterator[Tensor]:
        yield from rows[c].split(2)

    return Origin(rows_of, torch.Generator())


def started(form: Dct, rows: dict[int, Tensor], counts: dict[int, int]) -> tuple[dict[str, Tensor], Tensor]:
    """Return what the form stores of the first rows of every class, and these rows."""
    first = torch.cat([rows[c][:n] for c, n in counts.items()])
    labels = torch.tensor([c for c, n in counts.items() for _ in range(n)])
    return form.start(first, labels, origin_of(rows)), first


@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 6)),
    expand=st.integers(1, 4),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_dct_equals_the_textbook(shape: tuple[int, int, int], expand: int, counts: list[int], seed: int) -> None:
    form = Dct(shape, min(expand, math.prod(shape)))
    rows = {2 * c: normal(n + 2, *shape, seed=seed + c) for c, n in enumerate(counts)}
    stored, first = started(form, rows, dict(zip(rows, counts, strict=True)))
    places = [textbook.best_places(rows[c], form.kept) for c in rows]
    assert stored["places"].tolist() == places
    assert stored["counts"].tolist() == counts
    by_row = [places[i] for i, n in enumerate(counts) for _ in range(n)]
    coefficients = [textbook.stored(row, at) for row, at in zip(first, by_row, strict=True)]
    torch.testing.assert_close(stored["coefficients"], torch.tensor(coefficients, dtype=torch.float64))
    decoded = [textbook.decode(values, at, shape) for values, at in zip(coefficients, by_row, strict=True)]
    torch.testing.assert_close(form.decode(stored), torch.stack(decoded))


@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 7, 4), (3, 1, 6)])
def test_all_coefficients_have_the_length_of_the_image_and_give_it_back(shape: tuple[int, int, int]) -> None:
    form, images = Dct(shape, 1), normal(4, *shape).float()
    lengths = [values.flatten(1).norm(dim=1) for values in (images, form.transform(images))]
    torch.testing.assert_close(*lengths)
    stored, first = started(form, {0: images}, {0: 3})
    torch.testing.assert_close(form.decode(stored), first, atol=1e-5, rtol=0)


def test_start_projects_rows_at_right_angles() -> None:
    form, rows = Dct((3, 6, 5), 4), {0: normal(9, 3, 6, 5), 1: normal(9, 3, 6, 5, seed=1) + 1}
    stored, first = started(form, rows, {0: 2, 1: 3})
    decoded = form.decode(stored)
    again = form.start(decoded, torch.tensor([0, 0, 1, 1, 1]), origin_of(rows))
    torch.testing.assert_close(again["coefficients"], stored["coefficients"])
    torch.testing.assert_close(form.decode(again), decoded)
    other = form.decode({**stored, "coefficients": normal(5, form.kept, seed=2)})
    products = ((first - decoded) * other).flatten(1).sum(1)
    torch.testing.assert_close(products, torch.zeros(5, dtype=torch.float64))
    assert float((first - decoded).square().sum()) > 1, "something should be lost"


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 1, 3)])
def test_no_other_places_lose_less_of_the_rows_of_a_class(shape: tuple[int, int, int]) -> None:
    form, rows = Dct(shape, 3), normal(6, *shape) * torch.arange(1, shape[2] + 1)
    stored, _ = started(form, {0: rows}, {0: 6})

    def error(places: tuple[int, ...]) -> float:
        at = torch.tensor([places])
        coefficients = form.transform(rows).flatten(1)[:, at[0]]
        decoded = form.decode({"coefficients": coefficients, "places": at, "counts": torch.tensor([6])})
        return float((decoded - rows).square().mean())

    errors = {places: error(places) for places in itertools.combinations(range(math.prod(shape)), form.kept)}
    assert errors[tuple(stored["places"][0].tolist())] == min(errors.values())
    assert min(errors.values()) < max(errors.values())


def test_equal_places_are_taken_in_rising_order() -> None:
    """Rows of a constant value leave every other place at zero."""
    form = Dct((1, 3, 3), 3)
    stored, _ = started(form, {0: torch.zeros(2, 1, 3, 3)}, {0: 1})
    assert stored["places"].tolist() == [[0, 1, 2]]


def test_constant_image_has_its_brightness_in_the_first_coefficient_alone() -> None:
    form = Dct((3, 4, 6), 1)
    grey = form.transform(torch.full((1, 3, 4, 6), 0.5, dtype=torch.float64)).flatten()
    assert float(grey[0]) == pytest.approx(0.5 * math.sqrt(3 * 4 * 6))
    assert float(grey[1:].abs().max()) < 1e-12
    colour = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)[None, :, None, None].expand(1, 3, 4, 6)
    spectrum = form.transform(colour)[0]
    expected = torch.tensor([1 / math.sqrt(3), 1 / math.sqrt(2), 1 / math.sqrt(6)], dtype=torch.float64)
    torch.testing.assert_close(spectrum[:, 0, 0], expected * math.sqrt(4 * 6))
    assert float(spectrum.flatten(1)[:, 1:].abs().max()) < 1e-12


def test_gradient_of_clipped_pixels_is_zero() -> None:
    form = Dct((3, 4, 5), 2, Frame(MEAN, STD))
    stored, _ = started(form, {0: 2 * normal(4, 3, 4, 5).float()}, {0: 4})
    coefficients = stored["coefficients"].requires_grad_()
    images, weights = form.decode({**stored, "coefficients": coefficients}), normal(4, 3, 4, 5, seed=3).float()
    inside = (images > form.frame.value(0)) & (images < form.frame.value(1))
    assert 0 < float(inside.float().mean()) < 1
    pixels = images.detach() * STD[:, None, None] + MEAN[:, None, None]
    assert float(pixels.min()) == pytest.approx(0, abs=1e-6)
    assert float(pixels.max()) == pytest.approx(1, abs=1e-6)
    (images * weights).sum().backward()
    expected = form.transform(weights * inside).flatten(1)[:, stored["places"][0].long()]
    torch.testing.assert_close(coefficients.grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frame", [PIXELS, Frame(MEAN.double(), STD.double())])
def test_decode_passes_gradcheck_twice(frame: Frame) -> None:
    form = Dct((3, 3, 4), 6, frame)
    stored, _ = started(form, {0: normal(3, 3, 3, 4), 4: normal(3, 3, 3, 4, seed=1)}, {0: 2, 4: 1})

    def decode(coefficients: Tensor) -> Tensor:
        return form.decode({**stored, "coefficients": coefficients}, torch.tensor([2, 0])).square()

    assert torch.autograd.gradcheck(decode, stored["coefficients"].requires_grad_())
    assert torch.autograd.gradgradcheck(decode, stored["coefficients"])


def test_rate_makes_up_for_the_rows_that_a_mean_runs_over() -> None:
    """The gradient of a mean over rows, times the rate, moves each row as far as in pixels."""
    assert Dct((3, 8, 8), 12).rate(0.5) == 6.0


@pytest.mark.parametrize(
    ("expand", "shape", "message"),
    [
        (0, (3, 8, 8), r"storage='dct' keeps 192 numbers for each image of the budget, so expand should be in 1..192"),
        (193, (3, 8, 8), r"expand should be in 1..192; got 193"),
    ],
)
def test_expand_that_leaves_no_coefficient_raises_value_error(
    expand: int, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Dct.settle_expand(expand, shape, 1)
    with pytest.raises(ValueError, match=r"expand of storage 'dct' should be in 1..192"):
        Dct(shape, expand)


def test_default_expand_fits_colour_grey_and_tiny_images() -> None:
    shapes = [(3, 32, 32), (1, 28, 28), (1, 2, 2)]
    assert [Dct.settle_expand(None, shape, 1) for shape in shapes] == [16, 8, 4]
    assert [Dct.settle_expand(None, shape, 3) for shape in shapes] == [16, 8, 4]
    for ipc in (4, 5, 50):
        assert [Dct.settle_expand(None, shape, ipc) for shape in shapes] == [8, 8, 4]
    assert [Dct.settle_expand(None, (3, 2, 2), ipc) for ipc in (1, 4)] == [12, 8]


VALUES = {
    "a place below zero": ({"places": [[-1, 2], [0, 3]]}, r"different positions in 0\.\.11, in rising order"),
    "a place outside": ({"places": [[0, 12], [0, 3]]}, "different positions"),
    "a place twice": ({"places": [[2, 2], [0, 3]]}, "different positions"),
    "places that fall": ({"places": [[0, 2], [3, 0]]}, "different positions"),
    "places at the ends of int32": ({"places": [[-(2**31), 2**31 - 1], [0, 3]]}, "different positions"),
    "no count": ({"counts": [0, 3]}, r"the rows of each class, \[1, 2\]; got \[0, 3\]"),
    "a count below zero": ({"counts": [-1, 4]}, "rows of each class"),
    "counts that add up to less": ({"counts": [1, 1]}, "rows of each class"),
    "counts of other classes": ({"counts": [2, 1]}, "rows of each class"),
    "a count that overflows": ({"counts": [2**31 - 1, 2**31 - 1]}, "rows of each class"),
}


@pytest.mark.parametrize(("change", "message"), VALUES.values(), ids=VALUES.keys())
def test_stored_values_without_sense_raise_value_error(change: dict[str, list], message: str) -> None:
    stored = {"places": [[0, 2], [0, 3]], "counts": [1, 2], **change}
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in stored.items()}
    form, labels = Dct((3, 2, 2), 6), torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match=message):
        form.check_stored({"coefficients": torch.zeros(3, 2), **tensors}, labels)


def test_stored_values_of_start_are_accepted() -> None:
    form = Dct((3, 2, 2), 6)
    stored, _ = started(form, {0: normal(2, 3, 2, 2), 2: normal(3, 3, 2, 2)}, {0: 1, 2: 2})
    form.check_stored(stored, torch.tensor([0, 2, 2]))


def test_classes_are_read_once_however_often_the_memo_is_used() -> None:
    rows, reads = {0: normal(5, 1, 6, 6)}, []

    def rows_of(c: int) -> Iterator[Tensor]:
        reads.append(c)
        yield from rows[c].split(2)

    origin = Origin(rows_of, torch.Generator())
    form, labels = Dct((1, 6, 6), 4), torch.zeros(2, dtype=torch.int64)
    first, second = (form.start(rows[0][i : i + 2], labels, origin) for i in (0, 2))
    assert reads == [0]
    assert torch.equal(first["places"], second["places"])


def test_some_rows_need_memory_for_these_rows_only() -> None:
    """Of a million rows, two are decoded: the places of all of them would take 8 GB."""
    form, rows = Dct((1, 32, 32), 1), 1_000_000
    stored = {
        "coefficients": torch.zeros(1, 1024).expand(rows, -1),
        "places": torch.arange(1024, dtype=torch.int32)[None],
        "counts": torch.tensor([rows], dtype=torch.int32),
    }
    before = peak_memory()
    assert form.decode(stored, torch.tensor([3, 999_999])).shape == (2, 1, 32, 32)
    assert peak_memory() - before < 500 * 2**20


def peak_memory() -> int:
    """Return the most memory that this process has used so far, in bytes; macOS counts bytes and Linux KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
