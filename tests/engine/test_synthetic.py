"""The learnable set: rows by class, gradients, the valid range, and what a finished set holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_condense.condensed.decoders import Frame, decoder_class
from hf_condense.condensed.decoders.patches import form_of_factor
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.source.whitening import Whitening

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_set(
    labels: list[int], *, size: int = 4, factor: int = 1, clip: bool = True, **options: object
) -> SyntheticSet:
    storage, expand = form_of_factor(factor)
    decoder = decoder_class(storage)((3, size, size), expand, Frame(MEAN, STD, clip))
    return SyntheticSet({"images": noise(len(labels), 3, size, size)}, torch.tensor(labels), decoder, **options)


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
        assert torch.equal(images, made.stored["images"][[3, 4, 5, 0, 1]])
        everything, all_labels = made.of([0, 2, 5])
        assert torch.equal(everything, made.stored["images"])
        assert all_labels.tolist() == [0, 0, 2, 5, 5, 5]

    def test_gradient_reaches_the_chosen_images_alone(self) -> None:
        made = make_set([0, 0, 1], factor=2)
        images, labels = made.of([1])
        assert (len(images), labels.tolist()) == (4, [1, 1, 1, 1])
        images.sum().backward()
        assert [bool(g.any()) for g in made.stored["images"].grad] == [False, False, True]

    def test_refuses_labels_out_of_order(self) -> None:
        with pytest.raises(ValueError, match="sorted by class"):
            make_set([1, 0])

    def test_clamps_to_the_valid_pixels_and_no_further(self) -> None:
        made = make_set([0, 1], clip=True)
        with torch.no_grad():
            made.stored["images"].mul_(10)
        before = made.stored["images"].detach().clone()
        made.project_()
        pixels = made.stored["images"].detach() * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)
        wanted = (before * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(pixels, wanted)
        inside = (wanted > 0) & (wanted < 1)
        assert inside.any()
        assert torch.equal(made.stored["images"][inside], before[inside])
        assert made.stored["images"].requires_grad
        assert made.stored["images"].is_leaf

    def test_free_images_are_left_alone(self) -> None:
        made = make_set([0, 1], clip=False)
        with torch.no_grad():
            made.stored["images"].mul_(10)
        before = made.stored["images"].detach().clone()
        made.project_()
        assert torch.equal(made.stored["images"], before)
        pixels = made.finished().images
        assert float(pixels.min()) < 0
        assert float(pixels.max()) > 1

    def test_not_a_number_is_not_clamped_away(self) -> None:
        made = make_set([0])
        with torch.no_grad():
            made.stored["images"][0, 0, 0, 0] = torch.nan
        made.project_()
        assert bool(made.stored["images"][0, 0, 0, 0].isnan())

    def test_finished_is_exactly_within_the_valid_range(self) -> None:
        made = make_set([0, 0, 1, 1], size=16)
        with torch.no_grad():
            made.stored["images"].mul_(10)
        made.project_()
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
            student_lr=torch.tensor(0.25),
            whitening=Whitening(torch.eye(48), torch.ones(48)),
        )
        done = made.finished()
        assert torch.equal(done.soft_labels, logits)
        assert float(done.student_lr) == 0.25
        assert set(done.optional()) == {"soft_labels", "student_lr", "zca_matrix", "zca_mean"}
        assert (done.decoder.name, done.decoder.expand) == ("patches", 4)
        images, labels = done.decoded()
        assert (len(images), labels.tolist()) == (8, [0, 0, 0, 0, 1, 1, 1, 1])

    def test_state_comes_back_bit_for_bit(self) -> None:
        def fresh() -> SyntheticSet:
            soft = torch.zeros(2, 3, requires_grad=True)
            return make_set([0, 1], soft_labels=soft, student_lr=torch.tensor(0.1, requires_grad=True))

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
    tensors = CondensedTensors.of_images(noise(2, 1, 4, 4), torch.tensor([0, 1]))
    assert tensors.optional() == {}
    assert torch.equal(tensors.decoded()[0], tensors.images)
