"""Coordinate networks: the textbook's values, the published sizes, and fits that are cached."""

from __future__ import annotations

import math

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_condense.base.paths import cache_folder
from hf_condense.condensed.decoders import PIXELS, Frame, Origin
from hf_condense.condensed.decoders.siren import Siren, _size
from hf_condense.engine.checkpoint import load_optimiser, optimiser_tensors
from tests.reference import siren as textbook
from tests.support.draws import normal

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])


def origin(seed: int = 0, *, cache: bool = False) -> Origin:
    return Origin(lambda c: (), torch.Generator().manual_seed(seed), cache=cache)


def smooth(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return images of one slow wave for each channel, of size 1: (n, C, H, W)."""
    channels, height, width = shape
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    slopes = normal(n, channels, 3, 1, 1, seed=seed).float()
    return torch.sin(slopes[:, :, 0] * y + slopes[:, :, 1] * x + slopes[:, :, 2])


@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(5, 9), st.integers(5, 9)),
    share=st.floats(0, 1),
    n=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_siren_equals_the_textbook(shape: tuple[int, int, int], share: float, n: int, seed: int) -> None:
    most = math.prod(shape) // textbook.size(shape, 2)
    form = Siren(shape, 1 + round(share * (most - 1)))
    weights = normal(n, textbook.size(shape, form.width), seed=seed) / 10
    expected = torch.stack([textbook.image(row, shape, form.width) for row in weights])
    torch.testing.assert_close(form.decode({"weights": weights}), expected)


@pytest.mark.parametrize("shape", [(3, 64, 2), (1, 2, 64)])
def test_large_images_have_three_hidden_layers_and_equal_the_textbook(shape: tuple[int, int, int]) -> None:
    form = Siren(shape, 2)
    weights = normal(1, textbook.size(shape, form.width)) / 10
    assert form.layout(1, 1) == {"weights": ("F32", list(weights.shape))}
    torch.testing.assert_close(form.decode({"weights": weights})[0], textbook.image(weights[0], shape, form.width))


@pytest.mark.parametrize(("width", "weights"), [(6, 81), (10, 173), (15, 333), (20, 543), (30, 1113)])
def test_networks_of_a_width_have_the_published_number_of_weights(width: int, weights: int) -> None:
    assert _size((3, 32, 32), width) == textbook.size((3, 32, 32), width) == weights


@pytest.mark.parametrize(("expand", "width"), [(37, 6), (17, 10), (9, 15)])
def test_networks_of_published_widths_share_the_budget_of_an_image(expand: int, width: int) -> None:
    assert Siren((3, 32, 32), expand).width == width


@given(shape=st.tuples(st.sampled_from([1, 3]), st.integers(5, 70), st.integers(5, 70)), share=st.floats(0, 1))
def test_width_is_the_largest_that_keeps_the_budget(shape: tuple[int, int, int], share: float) -> None:
    most = math.prod(shape) // textbook.size(shape, 2)
    expand = 1 + round(share * (most - 1))
    form = Siren(shape, Siren.settle_expand(expand, shape, 1))
    assert form.layout(7, 1)["weights"][1] == [7, textbook.size(shape, form.width)]
    assert expand * textbook.size(shape, form.width) <= math.prod(shape)
    assert expand * textbook.size(shape, form.width + 1) > math.prod(shape)
    with pytest.raises(ValueError, match=rf"expand should be in 1\.\.{most}; got {most + 1}"):
        Siren.settle_expand(most + 1, shape, 1)
    with pytest.raises(ValueError, match="expand of storage 'siren' is out of range"):
        Siren(shape, most + 1)


def test_default_expand_gives_width_six_and_twenty_for_large_images() -> None:
    for shape, width in (((3, 32, 32), 6), ((1, 28, 28), 6), ((3, 64, 64), 20), ((3, 5, 5), 3)):
        expand = Siren.settle_expand(None, shape, 1)
        assert Siren(shape, expand).width >= width
        assert expand == max(1, math.prod(shape) // textbook.size(shape, 20 if shape[1] >= 64 else 6))


def test_network_of_zeros_gives_its_last_bias() -> None:
    form, weights = Siren((3, 6, 7), 3), torch.zeros(2, 33)
    weights[:, -3:] = torch.tensor([[0.1, 0.2, 0.3], [-1.0, 0.0, 1.0]])
    assert torch.equal(form.decode({"weights": weights}), weights[:, -3:, None, None].expand(2, 3, 6, 7))


@pytest.mark.parametrize(("side", "width", "hidden", "frequency"), [(32, 15, 2, 10), (64, 19, 3, 40)])
def test_fresh_weights_lie_within_the_bounds_of_the_paper(side: int, width: int, hidden: int, frequency: int) -> None:
    form = Siren((3, side, side), {32: 9, 64: 14}[side])
    assert form.width == width
    fresh = form._fresh(1000, torch.Generator().manual_seed(0))
    inner, inner_bias = math.sqrt(6 / width) / frequency, 1 / math.sqrt(width)
    bounds = [(2 * width, 1 / 2), (width, 1 / math.sqrt(2))]  # numbers of a part and their bound: matrix and bias
    bounds += [(width**2, inner), (width, inner_bias)] * (hidden - 1) + [(3 * width, inner), (3, inner_bias)]
    for part, (_, bound) in zip(fresh.split([count for count, _ in bounds], 1), bounds, strict=True):
        assert 0.99 * bound < float(part.abs().max()) <= bound
        assert float(part.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("frame", [PIXELS, Frame(MEAN.double(), STD.double())])
def test_decode_passes_gradcheck_twice(frame: Frame) -> None:
    form = Siren((3, 3, 4), 1, frame)
    weights = (form._fresh(3, torch.Generator().manual_seed(0)).double() / 4).requires_grad_()

    def decode(weights: Tensor) -> Tensor:
        return form.decode({"weights": weights}, torch.tensor([2, 0]))[:, :, ::2, ::3]

    assert torch.autograd.gradcheck(decode, weights)
    assert torch.autograd.gradgradcheck(decode, weights)


def test_gradient_of_clipped_pixels_is_zero() -> None:
    form = Siren((1, 6, 7), 1, Frame(torch.tensor(0.5), torch.tensor(0.25)))
    weights = torch.zeros(2, form.layout(2, 1)["weights"][1][1])
    weights[:, -1] = torch.tensor([5.0, 1.0])  # a constant image above white, and one of light grey
    weights.requires_grad_()
    images = form.decode({"weights": weights})
    assert images.detach().flatten(1).unique(dim=1).flatten().tolist() == [2.0, 1.0]
    images.sum().backward()
    assert float(weights.grad[0].abs().max()) == 0
    assert float(weights.grad[1, -1]) == 6 * 7


@pytest.mark.parametrize(("expand", "share", "most"), [(1, 1 / 1000, 1e-3), (8, 1 / 20, 0.1)])
def test_fit_follows_smooth_images(expand: int, share: float, most: float) -> None:
    form = Siren((3, 16, 16), expand)  # of widths 24 and 6
    real = smooth(6, form.image_shape)
    fitted = form.start(real, torch.zeros(6), origin())["weights"]
    assert not fitted.requires_grad
    before = (form.decode({"weights": form._fresh(6, origin().generator)}) - real).square().mean((1, 2, 3))
    after = (form.decode({"weights": fitted}) - real).square().mean((1, 2, 3))
    assert float(after.mean()) < share * float(before.mean())
    assert float(after.max()) < most


def test_weights_take_steps_of_adam_and_what_a_method_adds_takes_steps_of_sgd() -> None:
    """Between the steps, the optimiser is saved and restored, as a resumed run does."""
    starts = (normal(3, 5), normal(4, seed=1), normal(2, seed=2))
    form, rates = Siren((1, 8, 8), 2), (0.1, 0.5, 0.2)

    def made(weights: Tensor, added: Tensor, labels: Tensor) -> torch.optim.Optimizer:
        optimiser = form.optimiser([{"params": [weights], "lr": rates[0]}], momentum=0.9)
        optimiser.add_param_group({"params": [added], "lr": rates[1]})
        optimiser.add_param_group({"params": [labels], "lr": rates[2], "momentum": 0.3})
        return optimiser

    mine, plain = ([start.clone().requires_grad_() for start in starts] for _ in range(2))
    plain_optimisers = [
        torch.optim.Adam([plain[0]], rates[0], betas=(0.5, 0.99)),
        torch.optim.SGD([plain[1]], rates[1], momentum=0.9),
        torch.optim.SGD([plain[2]], rates[2], momentum=0.3),
    ]
    optimiser = made(*mine)
    for step in range(4):
        for first, second in zip(mine, plain, strict=True):
            first.grad = normal(*first.shape, seed=10 + step)
            second.grad = first.grad.clone()
        optimiser.step()
        for one in plain_optimisers:
            one.step()
        for first, second in zip(mine, plain, strict=True):
            torch.testing.assert_close(first, second)
        saved = optimiser_tensors(optimiser)
        optimiser = made(*mine)
        load_optimiser(optimiser, saved)


def test_fit_is_that_of_adam_at_a_falling_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 8)
    form = Siren((3, 8, 8), 4)
    real, fresh = smooth(2, form.image_shape), form._fresh(2, torch.Generator().manual_seed(0))
    plain = fresh.clone().requires_grad_()
    optimiser = torch.optim.Adam([plain])
    for rate in (0.02, 0.0175, 0.015, 0.0125, 0.01, 0.0075, 0.005, 0.0025):
        images = form.decode({"weights": plain})
        optimiser.zero_grad()
        (images - real).square().mean((1, 2, 3)).sum().backward()
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    torch.testing.assert_close(form._fitted(fresh, real, False), plain.detach(), rtol=0, atol=1e-4)


def test_fit_of_a_row_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 20)
    form = Siren((3, 8, 8), 4)
    real, fresh = smooth(5, form.image_shape), form._fresh(5, torch.Generator().manual_seed(0))
    together = form._fitted(fresh, real, False)
    for i in range(5):
        torch.testing.assert_close(form._fitted(fresh[i : i + 1], real[i : i + 1], False)[0], together[i])
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_ROWS", 2)
    torch.testing.assert_close(form._fitted(fresh, real, False), together)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make fits short, and return the number of rows of each one that runs."""
    rows: list[int] = []
    fit = Siren._fit

    def counted(form: Siren, start: Tensor, images: Tensor, bar: object) -> Tensor:
        rows.append(len(images))
        return fit(form, start, images, bar)

    monkeypatch.setattr(Siren, "_fit", counted)
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 3)
    return rows


def test_second_fit_reads_the_file_of_the_first(fits: list[int]) -> None:
    form, real, labels = Siren((1, 8, 8), 2), smooth(3, (1, 8, 8), seed=1), torch.zeros(3)
    first, second = (form.start(real, labels, origin(cache=True))["weights"] for _ in range(2))
    assert fits == [3]
    assert torch.equal(first, second)
    assert torch.equal(form.start(real, labels, origin())["weights"], first), "without a cache, the same is fitted"
    assert fits == [3, 3]
    form.start(real + 0.01, labels, origin(cache=True))
    form.start(real, labels, origin(seed=1, cache=True))
    assert fits == [3, 3, 3, 3], "other rows and other draws should be fitted again"


@pytest.mark.parametrize(
    ("name", "value"), [("torch.__version__", "9.9.9"), ("hf_condense.condensed.decoders.siren.CACHE_VERSION", -1)]
)
def test_fits_of_another_version_are_not_read(
    name: str, value: object, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    form, real, labels = Siren((1, 8, 8), 2), smooth(3, (1, 8, 8), seed=4), torch.zeros(3)
    form.start(real, labels, origin(cache=True))
    before = len(fits)
    monkeypatch.setattr(name, value)
    form.start(real, labels, origin(cache=True))
    assert len(fits) == before + 1


def test_disabled_caching_of_datasets_is_obeyed(fits: list[int]) -> None:
    form, real, labels = Siren((1, 8, 8), 2), smooth(3, (1, 8, 8), seed=2), torch.zeros(3)
    before = set(cache_folder("siren").glob("*"))
    datasets.disable_caching()
    try:
        for _ in range(2):
            form.start(real, labels, origin(cache=True))
    finally:
        datasets.enable_caching()
    assert fits == [3, 3]
    assert set(cache_folder("siren").glob("*")) == before


def test_interrupted_fit_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    form, real, labels = Siren((1, 8, 8), 2), smooth(3, (1, 8, 8), seed=3), torch.zeros(3)
    before = set(cache_folder("siren").glob("*"))

    def interrupted(*arguments: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Siren, "_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        form.start(real, labels, origin(cache=True))
    assert set(cache_folder("siren").glob("*")) == before


def test_fits_are_cut_by_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    form, sizes, original = Siren((3, 8, 8), 2), [], Siren._fit

    def fit(self: Siren, start: Tensor, images: Tensor, bar: object) -> Tensor:
        sizes.append(len(images))
        return original(self, start, images, bar)

    monkeypatch.setattr(Siren, "_fit", fit)
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 2)
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_BYTES", 2 * form.row_bytes())
    form.start(smooth(5, (3, 8, 8)), torch.zeros(5, dtype=torch.int64), origin())
    assert sizes == [2, 2, 1]


def test_image_too_small_for_a_network_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"needs images of at least \d+ numbers; .* have 9\. Pass storage='pixels'"):
        Siren.settle_expand(None, (1, 3, 3), 1)


@pytest.mark.parametrize("form", [Siren((3, 32, 32), 37), Siren((3, 32, 32), 1), Siren((1, 64, 48), 2)])
def test_bytes_of_decoding_are_those_of_the_widest_layer(form: Siren, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    multiply = torch.baddbmm

    def measured(*tensors: Tensor) -> Tensor:
        values = multiply(*tensors)
        sizes.append(values.nbytes // 2)
        return values

    monkeypatch.setattr(torch, "baddbmm", measured)
    form.decode({"weights": form._fresh(2, torch.Generator().manual_seed(0))})
    assert max(sizes) == form.decoding_bytes()
