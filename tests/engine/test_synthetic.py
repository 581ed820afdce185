"""The learnable set and multi-formation decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_condense.condensed.tensors import PAD_VALUE, CondensedTensors, decode, round_robin
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.source.whitening import Whitening
from tests.reference import decode as textbook

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_set(labels: list[int], *, size: int = 4, **options: object) -> SyntheticSet:
    return SyntheticSet(noise(len(labels), 3, size, size), torch.tensor(labels), MEAN, STD, **options)


class TestDecode:
    @given(
        factor=st.integers(1, 4),
        height=st.integers(4, 9),
        width=st.integers(4, 9),
        channels=st.sampled_from([1, 3]),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=20, deadline=None)
    def test_equals_the_textbook(self, factor: int, height: int, width: int, channels: int, seed: int) -> None:
        images = noise(2, channels, height, width, seed=seed, dtype=torch.float64)
        pad = [0.1, -0.7, 2.0][:channels]
        made = decode(images, factor, torch.tensor(pad))
        assert made.shape == (2 * factor**2, channels, height, width)
        # The pad passes through float32 on its way in.
        torch.testing.assert_close(made, textbook.decode(images, factor, pad), atol=1e-6, rtol=0)

    def test_patches_are_neighbours_row_by_row(self) -> None:
        quarters = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
        images = torch.stack([quarters, quarters + 10])[:, None]  # (2, 1, 4, 4), every patch of one value
        values = [float(picture.unique()) for picture in decode(images, 2)]
        assert values == [0, 1, 2, 3, 10, 11, 12, 13]

    def test_factor_one_is_the_images_themselves(self) -> None:
        images = noise(2, 3, 5, 5)
        assert decode(images, 1) is images

    def test_fills_with_the_pad_where_the_factor_does_not_divide(self) -> None:
        decoded = decode(torch.zeros(1, 1, 5, 5), 2, pad=8.0)  # patches of 3 x 3; one row and one column are filled
        assert float(decoded[0].abs().max()) == 0  # the first patch lies inside
        assert torch.equal(decoded[3, 0, -1], torch.full((5,), 8.0))
        assert torch.equal(decode(torch.zeros(1, 1, 5, 5), 2)[3, 0, -1], torch.full((5,), PAD_VALUE))

    @pytest.mark.parametrize(("factor", "side"), [(2, 4), (2, 5), (3, 4)])
    def test_gradient(self, factor: int, side: int) -> None:
        images = noise(1, 2, side, side, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: decode(x, factor, torch.tensor([0.1, 0.9])), (images,))

    def test_pads_with_mid_grey_in_normalised_space(self) -> None:
        made = make_set([0, 1], size=5, factor=2)
        in_pixels = decode(made.images * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1), 2)
        back = made.decode(made.images) * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)
        torch.testing.assert_close(back, in_pixels)


class TestRoundRobin:
    @given(st.lists(st.integers(0, 4), max_size=20))
    def test_deals_classes_out_in_turn(self, labels: list[int]) -> None:
        order = round_robin(labels)
        assert sorted(order) == list(range(len(labels)))
        for n in range(len(labels) + 1):  # as balanced as a prefix can be
            taken = [labels[i] for i in order[:n]]
            for label in set(labels):
                fair = max(taken.count(other) for other in set(labels))
                assert taken.count(label) >= min(fair - 1, labels.count(label))
        for label in set(labels):  # rows of one class keep their order
            own = [i for i in order if labels[i] == label]
            assert own == sorted(own)


class TestSyntheticSet:
    def test_gives_the_images_of_some_classes_in_the_order_asked_for(self) -> None:
        made = make_set([0, 0, 2, 5, 5, 5])
        images, labels = made.of([5, 0])
        assert labels.tolist() == [5, 5, 5, 0, 0]
        assert torch.equal(images, made.images[[3, 4, 5, 0, 1]])
        everything, all_labels = made.of([0, 2, 5])
        assert torch.equal(everything, made.images)
        assert all_labels.tolist() == [0, 0, 2, 5, 5, 5]

    def test_gradient_reaches_the_chosen_images_alone(self) -> None:
        made = make_set([0, 0, 1], factor=2)
        images, labels = made.of([1])
        assert (len(images), labels.tolist()) == (4, [1, 1, 1, 1])
        images.sum().backward()
        assert [bool(g.any()) for g in made.images.grad] == [False, False, True]

    def test_refuses_labels_out_of_order(self) -> None:
        with pytest.raises(ValueError, match="sorted by class"):
            make_set([1, 0])

    def test_clamps_to_the_valid_pixels_and_no_further(self) -> None:
        made = make_set([0, 1], clamped=True)
        with torch.no_grad():
            made.images.mul_(10)
        before = made.images.detach().clone()
        made.clamp_()
        pixels = made.images.detach() * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)
        wanted = (before * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(pixels, wanted)
        inside = (wanted > 0) & (wanted < 1)
        assert inside.any()
        assert torch.equal(made.images[inside], before[inside])
        assert made.images.requires_grad
        assert made.images.is_leaf

    def test_free_images_are_left_alone(self) -> None:
        made = make_set([0, 1], clamped=False)
        with torch.no_grad():
            made.images.mul_(10)
        before = made.images.detach().clone()
        made.clamp_()
        assert torch.equal(made.images, before)
        pixels = made.finished().images
        assert float(pixels.min()) < 0
        assert float(pixels.max()) > 1

    def test_not_a_number_is_not_clamped_away(self) -> None:
        made = make_set([0])
        with torch.no_grad():
            made.images[0, 0, 0, 0] = torch.nan
        made.clamp_()
        assert bool(made.images[0, 0, 0, 0].isnan())

    def test_finished_is_exactly_within_the_valid_range(self) -> None:
        made = make_set([0, 0, 1, 1], size=16)
        with torch.no_grad():
            made.images.mul_(10)
        made.clamp_()
        done = made.finished()
        assert (float(done.images.min()), float(done.images.max())) == (0, 1)
        assert not done.images.requires_grad
        assert done.labels.tolist() == [0, 0, 1, 1]

    def test_finished_keeps_whatever_was_learned_or_fixed(self) -> None:
        logits = noise(8, 3, seed=1)
        made = make_set(
            [0, 1],
            factor=2,
            soft_labels=logits.clone().requires_grad_(),
            extras={"student_lr": torch.tensor(0.25)},
            whitening=Whitening(torch.eye(48), torch.ones(48)),
        )
        done = made.finished()
        assert torch.equal(done.soft_labels, logits)
        assert float(done.student_lr) == 0.25
        assert set(done.optional()) == {"soft_labels", "student_lr", "zca_matrix", "zca_mean"}
        assert done.factor == 2
        images, labels = done.decoded()
        assert (len(images), labels.tolist()) == (8, [0, 0, 0, 0, 1, 1, 1, 1])

    def test_state_comes_back_bit_for_bit(self) -> None:
        def fresh() -> SyntheticSet:
            soft = torch.zeros(2, 3, requires_grad=True)
            return make_set([0, 1], soft_labels=soft, extras={"student_lr": torch.tensor(0.1, requires_grad=True)})

        trained, other = fresh(), fresh()
        with torch.no_grad():
            for parameter in trained.parameters().values():
                parameter.add_(0.123)
        leaves = {name: id(parameter) for name, parameter in other.parameters().items()}
        other.load_state(trained.state())
        assert set(trained.state()) == {"images", "student_lr", "soft_labels"}
        for name, parameter in other.parameters().items():
            assert torch.equal(parameter, trained.parameters()[name])
            assert parameter.requires_grad
            assert id(parameter) == leaves[name], "an optimiser holds on to the leaf, which must stay the same"

    def test_fixed_soft_labels_are_no_parameter(self) -> None:
        assert list(make_set([0], soft_labels=torch.zeros(1, 2)).parameters()) == ["images"]


def test_condensed_tensors_have_no_optional_ones_by_default() -> None:
    tensors = CondensedTensors(noise(2, 1, 4, 4), torch.tensor([0, 1]))
    assert tensors.optional() == {}
    assert torch.equal(tensors.decoded()[0], tensors.images)
