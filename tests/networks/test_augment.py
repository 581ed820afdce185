"""Augmentation against its definition, and what makes it siamese."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_condense.base.rng import keyed_generator
from hf_condense.networks import augment
from hf_condense.networks.augment import FAMILIES, Augmentation, Transform
from tests.reference import augment as textbook
from tests.support.counted_calls import CountedCalls
from tests.support.pretend_device import pretend_device

EVERYTHING = "_".join(FAMILIES)
SHAPES = [(1, 8, 8), (3, 8, 8), (3, 7, 10), (2, 9, 6)]  # one channel and more, even and odd, tall and wide


def images(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=keyed_generator("images"), dtype=torch.float64)


def draw(strategy: str, groups: int, *key: str | int, mode: str = "single") -> Transform:
    augmentation = Augmentation.parse(strategy, mode)
    assert augmentation is not None
    return augmentation.draw(groups, keyed_generator("draw", *key))


def whole(u: float, low: int, high: int) -> int:
    """Uniform whole number between low and high, both included."""
    return low + math.floor(u * (high - low + 1))


def expected(name: str, image: Tensor, parameters: list[float]) -> Tensor:
    """One image by the textbook, from the parameters of one group."""
    _, h, w = image.shape
    if name == "crop":
        reach = [math.floor(0.125 * side + 0.5) for side in (h, w)]
        return textbook.crop(image, *(whole(u, -r, r) for u, r in zip(parameters, reach, strict=True)))
    if name == "cutout":  # a square with an even side may also stand half outside on the far border
        odd = [math.floor(0.5 * side + 0.5) % 2 for side in (h, w)]
        return textbook.cutout(image, *(whole(u, 0, s - o) for u, s, o in zip(parameters, (h, w), odd, strict=True)))
    return getattr(textbook, name)(image, *parameters)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_equals_its_definition(name: str, shape: tuple[int, ...]) -> None:
    x = images(5, *shape)
    transform = draw(name, 5, name)
    out = transform(x, torch.arange(5))
    truth = torch.stack([expected(name, x[i], transform.parameters[name][i].tolist()) for i in range(5)])
    if name in ("crop", "cutout", "flip"):
        assert torch.equal(out, truth)
    else:
        torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
    assert not torch.equal(out, x)


def test_all_applies_the_families_in_the_order_given() -> None:
    x = images(4, 3, 8, 8)
    for order in (FAMILIES, tuple(reversed(FAMILIES))):
        transform = draw("_".join(order), 4, mode="all")
        truth = []
        for i, image in enumerate(x):
            for name in order:
                image = expected(name, image, transform.parameters[name][i].tolist())
            truth.append(image)
        torch.testing.assert_close(transform(x, torch.arange(4)), torch.stack(truth), rtol=1e-9, atol=1e-9)


def test_single_applies_the_one_family_that_each_group_drew() -> None:
    x = images(30, 2, 6, 6)
    transform = draw(EVERYTHING, 30)
    assert transform.choice is not None
    drawn = [FAMILIES[i] for i in transform.choice.tolist()]
    assert set(drawn) == set(FAMILIES)
    out = transform(x, torch.arange(30))
    for i, name in enumerate(drawn):
        truth = expected(name, x[i], transform.parameters[name][i].tolist())
        torch.testing.assert_close(out[i], truth, rtol=1e-9, atol=1e-9)


def test_single_uses_every_family_equally_often() -> None:
    choice = draw(EVERYTHING, 60_000).choice
    assert choice is not None
    share = torch.bincount(choice) / 60_000
    assert torch.allclose(share, torch.full((6,), 1 / 6), atol=0.01)


@pytest.mark.parametrize("mode", ["single", "all"])
def test_siamese_rows_of_a_group_share_one_transform_whatever_the_batch(mode: str) -> None:
    transform = draw(EVERYTHING, 5, mode=mode)
    x = images(5, 3, 8, 8)
    one_each = transform(x, torch.arange(5))
    group = torch.tensor([3, 0, 0, 4, 1, 2, 3, 3, 0, 4])
    torch.testing.assert_close(transform(x[group], group), one_each[group], rtol=1e-12, atol=1e-12)
    for c in range(5):
        alone = transform(x[c : c + 1].expand(3, -1, -1, -1), torch.full((3,), c))
        torch.testing.assert_close(alone, one_each[c : c + 1].expand(3, -1, -1, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["single", "all"])
def test_gradient_is_that_of_finite_differences(mode: str) -> None:
    transform = draw(EVERYTHING, 8, "gradient", mode=mode)
    group = torch.tensor([0, 5, 2, 2, 7])
    x = images(5, 1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: transform(t, group), (x,))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_of_every_family_is_that_of_finite_differences(name: str) -> None:
    transform = draw(name, 3, "gradient")
    assert torch.autograd.gradcheck(
        lambda t: transform(t, torch.tensor([0, 1, 2])), (images(3, 2, 3, 4).requires_grad_(),)
    )


def test_constants_fill_their_ranges_evenly() -> None:
    p = draw(EVERYTHING, 20_000).parameters
    turn = math.radians(15)
    ranges = {
        "brightness": (p["color"][:, 0], -0.5, 0.5),
        "saturation": (p["color"][:, 1], 0.0, 2.0),
        "contrast": (p["color"][:, 2], 0.5, 1.5),
        "scale down": (p["scale"][:, 0], 1 / 1.2, 1.2),
        "scale across": (p["scale"][:, 1], 1 / 1.2, 1.2),
        "angle": (p["rotate"][:, 0], -turn, turn),
    }
    for what, (values, low, high) in ranges.items():
        assert low <= values.min() < low + 0.01 * (high - low), what
        assert high - 0.01 * (high - low) < values.max() <= high, what
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.01 * (high - low)), what
    assert float(p["flip"].float().mean()) == pytest.approx(0.5, abs=0.02)
    everything = torch.cat([values.float() for values in p.values()], dim=1)
    correlation = torch.corrcoef(everything.T) - torch.eye(everything.shape[1])
    assert correlation.abs().max() < 0.05


@pytest.mark.parametrize(("side", "reach"), [(28, 4), (32, 4), (64, 8)])
def test_crop_shifts_by_every_whole_number_up_to_an_eighth(side: int, reach: int) -> None:
    dot = torch.zeros(2000, 1, side, side)
    dot[:, :, side // 2, side // 2] = 1
    out = draw("crop", 2000)(dot, torch.arange(2000))
    rows, columns = out[:, 0].nonzero()[:, 1:].unbind(1)
    assert set((rows - side // 2).tolist()) == set(range(-reach, reach + 1))
    assert set((columns - side // 2).tolist()) == set(range(-reach, reach + 1))
    assert bool((out.sum((1, 2, 3)) == 1).all())


def by_sorting(transform: Transform, x: Tensor, group: Tensor) -> Tensor:
    """What a transform gives, with all rows of a family at a time."""
    assert transform.choice is not None
    order = transform.choice[group].argsort(stable=True)
    counts = transform.choice[group].bincount(minlength=len(transform.families)).tolist()
    parts = zip(transform.families, x.index_select(0, order).split(counts), group[order].split(counts), strict=True)
    transformed = [transform._apply(name, part, own) for name, part, own in parts if len(part)]
    return torch.cat(transformed).index_select(0, order.argsort())


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same images with other strides."""
    return {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "one grey channel for all": x[:, :1].expand_as(x),
    }[layout]


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "one grey channel for all"])
@pytest.mark.parametrize("lengths", [[16] * 10, [40, 2, 30, 50, 12, 18, 60, 3, 20, 33], [9] * 10, [1, 300, 5]], ids=str)
def test_rows_in_any_order_have_the_bits_of_sorted_rows(lengths: list[int], layout: str) -> None:
    transform, group = draw(EVERYTHING, 10), torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    x = in_layout(images(len(group), 3, 9, 8).float(), layout).requires_grad_()
    out, truth = transform(x, group), by_sorting(transform, x, group)
    assert torch.equal(out, truth)
    gradients = [torch.autograd.grad((transformed**3).sum(), x)[0] for transformed in (out, truth)]
    assert torch.equal(*gradients)


def test_a_single_row_of_a_large_image_has_the_bits_of_sorted_rows() -> None:
    """Several threads share the mean of one large image, but each of many images has a thread of its own."""
    threads, group = torch.get_num_threads(), torch.tensor([0] * 30 + [1] * 30 + [2])
    x = images(len(group), 3, 128, 128).float()
    torch.set_num_threads(2)
    try:
        for seed in range(4):  # rounding often agrees
            transform = replace(draw("color_crop", 3, seed), choice=torch.tensor([0, 1, 0]))
            assert torch.equal(transform(x, group), by_sorting(transform, x, group))
    finally:
        torch.set_num_threads(threads)


def test_long_runs_on_a_cpu_are_not_copied_to_be_sorted() -> None:
    transform, group = draw(EVERYTHING, 10), torch.arange(10).repeat_interleave(20)
    with CountedCalls() as calls:
        transform(images(200, 3, 8, 8), group)
    assert calls.names["index_select"] == 0
    assert calls.names["cat"] == 1
    with pretend_device() as counts:
        transform(images(200, 3, 8, 8).to(torch.device("cuda", 0)), group)
    assert counts.launches["index_select"] == 2, "on a GPU, a family is applied once"


def test_rows_of_one_family_are_not_copied() -> None:
    for transform in (draw("flip", 5), replace(draw(EVERYTHING, 5), choice=torch.full((5,), 3))):
        with CountedCalls() as calls:
            transform(images(5, 3, 8, 8), torch.arange(5))
        assert calls.names["index_select"] + calls.names["cat"] == 0


def test_no_rows_have_no_transform() -> None:
    for mode in ("single", "all"):
        out = draw(EVERYTHING, 3, mode=mode)(images(0, 3, 8, 8), torch.empty(0, dtype=torch.long))
        assert out.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("side", [28, 32, 64])
def test_crop_is_exact_in_float32_and_fills_with_zeros(side: int) -> None:
    x = images(8, 1, side, side).float() + 10
    transform = draw("crop", 8)
    out = transform(x, torch.arange(8))
    for i in range(8):
        assert torch.equal(out[i], expected("crop", x[i], transform.parameters["crop"][i].tolist()))


def test_cutout_reaches_every_place_and_is_half_a_side_wide() -> None:
    holes = draw("cutout", 4000)(torch.ones(4000, 1, 32, 32), torch.arange(4000)) == 0
    assert bool(holes.any(0).all())
    height, width = holes.any(3).sum(2), holes.any(2).sum(2)
    assert (int(height.max()), int(width.max())) == (16, 16)
    assert (int(height.min()), int(width.min())) == (8, 8)  # its middle is never outside


def test_extreme_draws_stay_within_the_image() -> None:
    transform = draw("crop_cutout", 2, mode="all")
    edges = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # 1 is what rounding up could give
    transform = replace(transform, parameters={**transform.parameters, "crop": edges, "cutout": edges})
    out = transform(torch.ones(2, 1, 16, 16), torch.arange(2))
    assert torch.isfinite(out).all()
    assert out[0, 0, 2:4, 4:].eq(1).all()
    assert out[0, 0, :4, :4].eq(0).all()
    assert out[1, 0, :12, :14].eq(1).all()
    assert out[1, 0, 12:, 12:].eq(0).all()


def test_what_is_drawn_depends_on_nothing_but_the_number_of_groups() -> None:
    generators = [keyed_generator("same") for _ in range(4)]
    one = Augmentation(("flip",)).draw(7, generators[0])
    two = Augmentation(FAMILIES, "all").draw(7, generators[1])
    three = Augmentation(FAMILIES).draw(7, generators[2])
    three(images(7, 3, 64, 64), torch.arange(7))
    more = Augmentation(FAMILIES).draw(9, generators[3])
    for name in FAMILIES:
        assert torch.equal(one.parameters[name], two.parameters[name])
        assert torch.equal(one.parameters[name], three.parameters[name])
        assert torch.equal(one.parameters[name], more.parameters[name][:7])
    after = [torch.rand(3, generator=generator) for generator in generators[:3]]
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


def test_the_same_key_gives_the_same_bits_and_another_gives_others() -> None:
    x, group = images(6, 3, 8, 8).float(), torch.arange(6)
    first = draw(EVERYTHING, 6, 1, mode="all")(x, group)
    assert torch.equal(first, draw(EVERYTHING, 6, 1, mode="all")(x, group))
    assert not torch.equal(first, draw(EVERYTHING, 6, 2, mode="all")(x, group))


def test_positions_are_made_once_and_those_of_inference_mode_can_be_differentiated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    augment._grid.cache_clear()
    x, transform, group = images(2, 3, 8, 8), draw("crop_scale_rotate", 2, mode="all"), torch.arange(2)
    with torch.inference_mode():
        first = transform(x, group)
    monkeypatch.setattr(torch, "arange", None)
    out = transform(x.requires_grad_(), group)
    assert torch.equal(out, first)
    out.square().sum().backward()
    assert float(x.grad.abs().max()) > 0


def test_images_are_left_as_they_were_and_keep_type_and_shape() -> None:
    for dtype in (torch.float32, torch.float64):
        x = images(12, 3, 8, 8).to(dtype)
        before = x.clone()
        out = draw(EVERYTHING, 12)(x, torch.arange(12))
        assert torch.equal(x, before)
        assert (out.dtype, out.shape) == (dtype, x.shape)
    assert draw(EVERYTHING, 3)(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)).shape == (0, 3, 8, 8)


def test_saturation_leaves_grey_images_alone() -> None:
    x = images(4, 1, 8, 8)
    transform = draw("color", 4)
    neutral = transform.parameters["color"].clone()
    neutral[:, 0], neutral[:, 2] = 0, 1
    transform = replace(transform, parameters={**transform.parameters, "color": neutral})
    torch.testing.assert_close(transform(x, torch.arange(4)), x)


@pytest.mark.parametrize("strategy", [None, "none"])
def test_no_strategy_is_no_augmentation(strategy: str | None) -> None:
    assert Augmentation.parse(strategy) is None


@pytest.mark.parametrize(
    ("strategy", "mode", "message"),
    [
        ("flip_rotat", "single", r"unknown augmentation 'rotat'; known: color, .*; did you mean 'rotate'\?"),
        ("flip_flip", "single", "each once"),
        ("flip_", "single", "unknown augmentation ''"),
        ("", "single", "unknown augmentation ''; known: color, .*, or 'none' alone"),
        ("flip", "one", "should be one of 'single', 'all'; got 'one'"),
    ],
)
def test_bad_strategies_raise_value_error(strategy: str, mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation.parse(strategy, mode)


def test_no_families_raise_value_error() -> None:
    with pytest.raises(ValueError, match="one or more families"):
        Augmentation(())


@pytest.mark.parametrize("rows", [torch.zeros(3, dtype=torch.long), torch.zeros(4, 1, dtype=torch.long)], ids=str)
def test_groups_that_do_not_fit_the_rows_raise_value_error(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="one group per row"):
        draw("flip", 2)(torch.zeros(4, 3, 8, 8), rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["single", "all"])
def test_a_gpu_gives_what_a_cpu_gives(mode: str) -> None:
    x, group, transform = images(12, 3, 9, 8), torch.arange(12) % 5, draw(EVERYTHING, 5, mode=mode)
    truth = transform(x, group)
    torch.testing.assert_close(transform(x.cuda(), group).cpu(), truth)
    torch.testing.assert_close(transform(x.cuda(), group.cuda()).cpu(), truth)
