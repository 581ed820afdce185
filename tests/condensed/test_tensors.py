"""The exact tensors of a set: when two sets are equal, and pixels as 8-bit numbers."""

from dataclasses import replace

import pytest
import torch

from hf_condense.condensed.tensors import CondensedTensors, are_alone, eight_bit_pixels


def test_sets_are_equal_if_all_their_tensors_are() -> None:
    tensors = CondensedTensors.of_images(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]))
    assert tensors.equals(replace(tensors, stored={"images": tensors.images.clone()}))
    labelled = replace(tensors, soft_labels=torch.zeros(3, 2))
    assert not tensors.equals(labelled)
    assert not labelled.equals(tensors)
    assert not labelled.equals(replace(labelled, soft_labels=torch.ones(3, 2)))
    assert not tensors.equals(replace(tensors, stored={"images": torch.nextafter(tensors.images, torch.tensor(2.0))}))


def test_pixels_are_the_nearest_8_bit_numbers() -> None:
    pixels = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 2.0])
    assert eight_bit_pixels(pixels).tolist() == [0, 0, 0, 1, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(eight_bit_pixels(every.float() / 255), every)


@pytest.mark.parametrize(("labels", "alone"), [([0, 2, 1], True), ([0, 1, 0], False), ([3], True)])
def test_images_are_alone_if_no_class_has_two(labels: list[int], alone: bool) -> None:
    assert are_alone(torch.tensor(labels)) == alone
