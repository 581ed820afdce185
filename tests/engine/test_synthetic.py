"""The learnable set: rows by class, gradients, the valid range, and what a finished set holds."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_condense.condensed.decoders import Frame, decoder_class
from hf_condense.condensed.decoders.patches import form_of_factor
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.source.whitening import Whitening
from tests.support.draws import normal

MEAN, STD = torch.tensor([0.3, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.4])


noise = partial(normal, dtype=torch.float32)


def make_set(
    labels: list[int], *, size: int = 4, factor: int = 1, clip: bool = True, **options: object
) -> SyntheticSet:
    storage, expand = form_of_factor(factor)
    decoder = decoder_class(storage)((3, size, size), expand, Frame(MEAN, STD, clip))
    return SyntheticSet({"images": noise(len(labels), 3, size, size)}, torch.tensor(labels), decoder, **options)


class TestRoundRobin:
    @given(st.lists(st.integers(0, 4), max_size=20))
    def test_prefixes_are_balanced_and_rows_of_a_class_keep_their_order(self, labels: list[int]) -> None:
        order = round_robin(labels)
        assert sorted(order) == list(range(len(labels)))
        for n in range(len(labels) + 1):  # every prefix is as balanced as it can be
            prefix = [labels[i] for i in order[:n]]
            for label in set(labels):
                largest = max(prefix.count(other) for other in set(labels))
                assert prefix.count(label) >= min(largest - 1, labels.count(label))
        for label in set(labels):  # rows of one class keep their order
            rows = [i for i in order if labels[i] == label]
            assert rows == sorted(rows)


class TestSyntheticSet:
    def test_images_of_some_classes_come_in_the_order_of_the_classes(self) -> None:
        synthetic = make_set([0, 0, 2, 5, 5, 5])
        images, labels = synthetic.of([5, 0])
        assert labels.tolist() == [5, 5, 5, 0, 0]
        assert torch.equal(images, synthetic.stored["images"][[3, 4, 5, 0, 1]])
        all_images, all_labels = synthetic.of([0, 2, 5])
        assert torch.equal(all_images, synthetic.stored["images"])
        assert all_labels.tolist() == [0, 0, 2, 5, 5, 5]

    def test_gradient_reaches_only_the_images_of_the_classes(self) -> None:
        synthetic = make_set([0, 0, 1], factor=2)
        images, labels = synthetic.of([1])
        assert (len(images), labels.tolist()) == (4, [1, 1, 1, 1])
        images.sum().backward()
        assert [bool(g.any()) for g in synthetic.stored["images"].grad] == [False, False, True]

    def test_rows_by_number_come_with_their_labels_and_targets(self) -> None:
        logits = noise(12, 6, seed=1)
        synthetic = make_set([0, 2, 5], factor=2, soft_labels=logits)
        rows = torch.tensor([11, 0, 5, 0])
        images, labels = synthetic.at(rows)
        assert torch.equal(images, synthetic.all()[0][rows])
        assert labels.tolist() == [5, 0, 2, 0]
        torch.testing.assert_close(synthetic.targets_at(rows, 2.0), (logits[rows] / 2).softmax(1))
        assert torch.equal(make_set([0, 2, 5], factor=2).targets_at(rows), labels)
        for classes in ([2, 0], [5], [0, 2, 5]):
            of_classes = torch.cat([torch.tensor(synthetic.rows[c]) for c in classes])
            assert torch.equal(synthetic.of(classes)[0], synthetic.at(of_classes)[0])

    def test_no_numbers_mean_all_rows(self) -> None:
        synthetic = make_set([0, 2], factor=2, soft_labels=noise(8, 3, seed=1))
        assert torch.equal(synthetic.at(None)[0], synthetic.all()[0])
        assert synthetic.at(None)[1].tolist() == [0] * 4 + [2] * 4
        assert torch.equal(synthetic.targets_at(None), synthetic.soft_labels.softmax(1))

    def test_gradient_reaches_only_the_drawn_rows_and_their_labels(self) -> None:
        synthetic = make_set([0, 0, 1], soft_labels=noise(3, 2, seed=1).requires_grad_())
        rows = torch.tensor([1])
        (synthetic.at(rows)[0].sum() + synthetic.targets_at(rows)[:, 0].sum()).backward()
        for tensor in (synthetic.stored["images"], synthetic.soft_labels):
            assert [bool(g.any()) for g in tensor.grad] == [False, True, False]

    def test_labels_out_of_order_raise_value_error(self) -> None:
        with pytest.raises(ValueError, match="sorted by class"):
            make_set([1, 0])

    def test_projection_clips_to_valid_pixels_and_changes_no_others(self) -> None:
        synthetic = make_set([0, 1], clip=True)
        with torch.no_grad():
            synthetic.stored["images"].mul_(10)
        before = synthetic.stored["images"].detach().clone()
        synthetic.project_()
        pixels = synthetic.stored["images"].detach() * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)
        expected = (before * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(pixels, expected)
        inside = (expected > 0) & (expected < 1)
        assert inside.any()
        assert torch.equal(synthetic.stored["images"][inside], before[inside])
        assert synthetic.stored["images"].requires_grad
        assert synthetic.stored["images"].is_leaf

    def test_projection_leaves_free_images_unchanged(self) -> None:
        synthetic = make_set([0, 1], clip=False)
        with torch.no_grad():
            synthetic.stored["images"].mul_(10)
        before = synthetic.stored["images"].detach().clone()
        synthetic.project_()
        assert torch.equal(synthetic.stored["images"], before)
        pixels = synthetic.finished().images
        assert float(pixels.min()) < 0
        assert float(pixels.max()) > 1

    def test_projection_keeps_nan(self) -> None:
        synthetic = make_set([0])
        with torch.no_grad():
            synthetic.stored["images"][0, 0, 0, 0] = torch.nan
        synthetic.project_()
        assert bool(synthetic.stored["images"][0, 0, 0, 0].isnan())

    def test_finished_images_are_exactly_within_the_valid_range(self) -> None:
        synthetic = make_set([0, 0, 1, 1], size=16)
        with torch.no_grad():
            synthetic.stored["images"].mul_(10)
        synthetic.project_()
        tensors = synthetic.finished()
        assert (float(tensors.images.min()), float(tensors.images.max())) == (0, 1)
        assert not tensors.images.requires_grad
        assert tensors.labels.tolist() == [0, 0, 1, 1]

    def test_finished_set_holds_all_optional_tensors(self) -> None:
        logits = noise(8, 3, seed=1)
        synthetic = make_set(
            [0, 1],
            factor=2,
            soft_labels=logits.clone().requires_grad_(),
            student_lr=torch.tensor(0.25),
            whitening=Whitening(torch.eye(48), torch.ones(48)),
        )
        tensors = synthetic.finished()
        assert torch.equal(tensors.soft_labels, logits)
        assert float(tensors.student_lr) == 0.25
        assert set(tensors.optional()) == {"soft_labels", "student_lr", "zca_matrix", "zca_mean"}
        assert (tensors.decoder.name, tensors.decoder.expand) == ("patches", 4)
        images, labels = tensors.decoded()
        assert (len(images), labels.tolist()) == (8, [0, 0, 0, 0, 1, 1, 1, 1])

    def test_finished_numbers_are_rounded_to_the_type(self) -> None:
        synthetic = make_set([0, 1])
        synthetic.project_()
        whole, half = synthetic.finished(), synthetic.finished(torch.float16)
        assert whole.images.dtype == torch.float32
        assert torch.equal(half.images, whole.images.half())
        assert not torch.equal(half.decoded()[0], whole.decoded()[0])
        assert half.decoded()[0].dtype == torch.float32

    def test_numbers_beyond_the_type_raise_value_error(self) -> None:
        synthetic = make_set([0], clip=False)
        with torch.no_grad():
            synthetic.stored["images"][0, 0, 0, 0] = -1e6
        with pytest.raises(OverflowError, match=r"images has numbers up to 200,000, and float16 holds .* up to 65,504"):
            synthetic.finished(torch.float16)
        assert float(synthetic.finished().images.min()) < -1e5

    def test_state_is_restored_bit_for_bit(self) -> None:
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
            assert id(parameter) == leaves[name], "an optimiser holds the leaf, which must stay the same object"

    def test_fixed_soft_labels_are_not_parameters(self) -> None:
        assert list(make_set([0], soft_labels=torch.zeros(1, 2)).parameters()) == ["images"]


def test_condensed_tensors_have_no_optional_tensors_by_default() -> None:
    tensors = CondensedTensors.of_images(noise(2, 1, 4, 4), torch.tensor([0, 1]))
    assert tensors.optional() == {}
    assert torch.equal(tensors.decoded()[0], tensors.images)


def test_all_classes_in_another_order_come_in_that_order() -> None:
    synthetic = make_set([0, 0, 2, 5])
    images, labels = synthetic.of([5, 0, 2])
    assert labels.tolist() == [5, 0, 0, 2]
    assert torch.equal(images, synthetic.stored["images"][[3, 0, 1, 2]])
