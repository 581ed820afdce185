"""An evaluation gives the same accuracies whatever state the caller's torch is in."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from hf_condense.condensed.dataset import CondensedDataset
from tests.support.short_evaluations import run, synthetic, watch_trainings
from tests.support.torch_states import STATES, in_state

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = {"recipe": "idc", "baselines": ("random", "full", "herding"), "seeds": 2, "epochs": 6, "cache": False}


class Outcome(NamedTuple):
    """What an evaluation gives: accuracies by contender, and the weights of every network."""

    accuracies: dict[str, tuple[float, ...]]
    weights: list[torch.Tensor]


def outcome(train, test, **options) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        trainings = watch_trainings(patch)
        scores = run(train, test, **{**ALL, **options}).scores
    return Outcome({score.set: score.accuracies for score in scores}, [training.after for training in trainings])


def assert_equal(first: Outcome, second: Outcome) -> None:
    assert first.accuracies == second.accuracies
    assert len(first.weights) == len(second.weights) == 2 * len(first.accuracies)
    for one, other in zip(first.weights, second.weights, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def soft(toy) -> CondensedDataset:
    """A set with everything that an evaluation computes with: soft labels and a learned rate, in patches."""
    torch.manual_seed(0)
    labels = torch.randn(12, 3)
    return synthetic(
        toy, factor=2, soft_labels=labels, student_lr=torch.tensor(0.02), recipe_changes={"temperature": 2.0}
    )


@pytest.fixture(scope="module")
def expected(toy, soft) -> Outcome:
    return outcome(soft, toy, eight_bit=True)


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_torch_changes_no_accuracy(toy, soft, expected, state):
    with in_state(state):
        other = outcome(soft, toy, eight_bit=True)
    assert_equal(other, expected)


@pytest.mark.parametrize("state", ["inference_mode", "float64", "meta"])
def test_the_state_of_torch_changes_no_accuracy_of_plain_rows(toy, state):
    train = toy.select(range(6))
    plain = outcome(train, toy, source=toy)
    with in_state(state):
        other = outcome(train, toy, source=toy)
    assert_equal(other, plain)


def test_tensors_made_in_inference_mode_are_trained_on(toy, soft, expected):
    with torch.inference_mode():
        labels, rate, images = (
            t.clone() for t in (soft.synthetic.soft_labels, soft.synthetic.student_lr, soft.synthetic.images)
        )
    frozen = synthetic(
        toy, factor=2, images=images, soft_labels=labels, student_lr=rate, recipe_changes={"temperature": 2.0}
    )
    assert frozen.synthetic.images.is_inference()
    assert_equal(outcome(frozen, toy, eight_bit=True), expected)


def test_a_network_of_the_users_is_made_in_float32(toy, small):
    dtypes = []

    def linear(channels, num_classes, image_size):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 64, num_classes))
        dtypes.append(net[1].weight.dtype)
        return net

    with in_state("float64"):
        run(small, toy, networks=linear, seeds=1, baselines=())
    assert set(dtypes) == {torch.float32}
