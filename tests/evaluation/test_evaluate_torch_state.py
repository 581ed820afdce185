"""An evaluation gives the same accuracies whatever state the caller's torch is in."""

from __future__ import annotations

import pytest
import torch

from hf_condense.condensed.dataset import CondensedDataset
from tests.support.short_evaluations import run, synthetic
from tests.support.torch_states import STATES, in_state

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = {"recipe": "idc", "baselines": ("random", "full", "herding"), "seeds": 2, "epochs": 6, "cache": False}


def accuracies(train, test, **options) -> dict[str, tuple[float, ...]]:
    return {score.set: score.accuracies for score in run(train, test, **{**ALL, **options}).scores}


@pytest.fixture(scope="module")
def soft(toy) -> CondensedDataset:
    """A set with everything that an evaluation computes with: soft labels and a learned rate, in patches."""
    torch.manual_seed(0)
    labels = torch.randn(12, 3)
    return synthetic(
        toy, factor=2, soft_labels=labels, student_lr=torch.tensor(0.02), recipe_changes={"temperature": 2.0}
    )


@pytest.fixture(scope="module")
def expected(toy, soft) -> dict[str, tuple[float, ...]]:
    return accuracies(soft, toy, eight_bit=True)


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_torch_changes_no_accuracy(toy, soft, expected, state):
    with in_state(state):
        assert accuracies(soft, toy, eight_bit=True) == expected


@pytest.mark.parametrize("state", ["inference_mode", "float64", "meta"])
def test_the_state_of_torch_changes_no_accuracy_of_plain_rows(toy, state):
    train = toy.select(range(6))
    plain = accuracies(train, toy, source=toy)
    with in_state(state):
        assert accuracies(train, toy, source=toy) == plain


def test_tensors_made_in_inference_mode_are_trained_on(toy, soft, expected):
    with torch.inference_mode():
        labels, rate, images = (
            t.clone() for t in (soft.synthetic.soft_labels, soft.synthetic.student_lr, soft.synthetic.images)
        )
    frozen = synthetic(
        toy, factor=2, images=images, soft_labels=labels, student_lr=rate, recipe_changes={"temperature": 2.0}
    )
    assert frozen.synthetic.images.is_inference()
    assert accuracies(frozen, toy, eight_bit=True) == expected


def test_a_network_of_the_users_is_made_in_float32(toy, small):
    dtypes = []

    def linear(channels, num_classes, image_size):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 64, num_classes))
        dtypes.append(net[1].weight.dtype)
        return net

    with in_state("float64"):
        run(small, toy, networks=linear, seeds=1, baselines=())
    assert set(dtypes) == {torch.float32}
