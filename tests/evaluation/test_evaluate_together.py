"""The networks of a set are trained together where that pays, and the table is that of one network after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import hf_condense.evaluation.trials as trials
from hf_condense.networks import network_stack
from hf_condense.networks.training_recipe import TrainingRecipe
from tests.support.short_evaluations import run, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stacks(monkeypatch) -> list[list[int]]:
    """Let networks be trained together on a CPU; the list gets the seeds of every stack."""
    seeds: list[list[int]] = []
    original = trials.train_stack

    def watched(stack, sets, recipe, keys, *args):
        seeds.append([key[-1] for key in keys])
        return original(stack, sets, recipe, keys, *args)

    monkeypatch.setattr(trials, "train_stack", watched)
    monkeypatch.setattr(network_stack, "_SLOWER_TOGETHER", set())
    return seeds


@pytest.fixture
def bars(monkeypatch) -> list[Bar]:
    """The progress bars of evaluations."""
    bars: list[Bar] = []

    @contextmanager
    def progress_bar(total: int, *args: str, shown: bool) -> Iterator[Bar]:
        bars.append(Bar(total))
        yield bars[-1]

    monkeypatch.setattr(trials, "progress_bar", progress_bar)
    return bars


class Bar:
    """Counts updates as a progress bar does, and keeps what it says."""

    def __init__(self, total: int) -> None:
        self.total, self.n, self.texts = total, 0, []

    def update(self, n: int) -> None:
        self.n += n

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.texts.append(text)


def alone(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(network_stack, "_SLOWER_TOGETHER", {"cpu"})
        return run(*args, **options)


def assert_same(result, expected) -> None:
    assert len(result.scores) == len(expected.scores)
    for score, other in zip(result.scores, expected.scores, strict=True):
        assert (score.set, score.seeds, score.updates) == (other.set, other.seeds, other.updates)
        assert score.accuracies == other.accuracies
        assert np.array_equal(score.predictions, other.predictions)
        assert score.seconds > 0


def test_table_of_networks_trained_together_is_that_of_one_after_the_other(toy, stacks, monkeypatch):
    small = synthetic(toy, soft_labels=torch.eye(3), recipe_changes={"temperature": 2.0})
    options = {"recipe": "dsa", "seeds": 3, "epochs": 4, "baselines": ("random", "full"), "cache": False}
    result = run(small, toy, **options)
    assert stacks == [[0, 1, 2]] * 4
    assert len({tuple(p) for p in result.scores[-1].predictions.tolist()}) > 1, "the networks should differ"
    assert_same(result, alone(monkeypatch, small, toy, **options))
    assert len(stacks) == 4


def test_networks_that_are_cached_are_not_trained_again(toy, small, stacks, bars):
    options = {"baselines": ("full",), "epochs": 3, "seed": 7}
    first = run(small, toy, seeds=[2], **options)
    result = run(small, toy, seeds=[1, 2, 3], **options)
    assert stacks == [[1, 2, 3], [1, 3]]
    assert [result.score("full").accuracies[1]] == [*first.score("full").accuracies]
    again = run(small, toy, seeds=[3, 2, 1], **options)
    assert stacks[2:] == [[3, 2, 1]], "all networks of the whole set are cached, each in a file of its own"
    assert again.score("full").accuracies == result.score("full").accuracies[::-1]
    assert all(bar.n == bar.total > 0 for bar in bars)


def test_networks_that_do_not_fit_into_memory_are_trained_half_at_a_time(toy, small, stacks, bars, monkeypatch, caplog):
    watched = trials.train_stack

    def narrow(stack, sets, *args):
        if len(sets) > 2:
            args[-1]()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return watched(stack, sets, *args)

    monkeypatch.setattr(trials, "train_stack", narrow)
    options = {"seeds": 5, "baselines": (), "cache": False}
    with caplog.at_level(logging.WARNING, "hf_condense"):
        result = run(small, toy, **options)
    assert stacks == [[0, 1], [3, 4]], "the network of seed 2 is left over"
    assert "5 networks together do not fit into memory; half of them are trained at a time" in caplog.text
    assert bars[0].n == bars[0].total
    assert bars[0].texts[0].endswith("seeds 0, 1, 2, 3, 4")
    assert bars[0].texts[3].endswith("seed 2")
    assert_same(result, alone(monkeypatch, small, toy, **options))


def test_a_single_network_that_does_not_fit_into_memory_is_told_with_what_to_do(toy, small, monkeypatch):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trials, "train_network", fail)
    message = r"convnet-w8, trained on 'random_ipc2' with 6 rows of 3x8x8 in an update.*batch_size=3"
    for options in ({}, {"lr": "search"}):
        with pytest.raises(MemoryError, match=message) as caught:
            run(small, toy, seeds=1, **options)
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_error_that_is_not_of_memory_ends_the_evaluation(toy, small, stacks, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(trials, "train_stack", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(small, toy, seeds=2, baselines=())


def test_processes_share_the_networks_and_train_their_shares_together(toy, small, stacks, monkeypatch):
    def two_processes(accelerator, jobs, work):
        return {**work(range(0, jobs, 2)), **work(range(1, jobs, 2))}

    monkeypatch.setattr(trials, "shared_out", two_processes)
    result = run(small, toy, seeds=5, cache=False)
    assert stacks == [[0, 2, 4], [1, 3], [1, 3], [0, 2, 4]]
    assert_same(result, alone(monkeypatch, small, toy, seeds=5, cache=False))


def dropping(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * height * width, num_classes))


@pytest.mark.parametrize(
    "options",
    [{"networks": dropping}, {"recipe": TrainingRecipe("flat", epochs=2, flatness=0.05)}, {"seeds": [3]}],
)
def test_networks_that_need_a_training_of_their_own_are_trained_alone(toy, small, stacks, options, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    options = {"seeds": 2, "epochs": None, "max_updates": 2, "baselines": (), **options}
    (score,) = run(small, toy, **options).scores
    assert [training.key[-1] for training in trainings] == [*score.seeds]
    assert not stacks


def test_seconds_of_networks_trained_together_are_shared_out(toy, small, stacks, monkeypatch):
    clock = count(step=12)
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    options = {"seeds": 3, "epochs": 1, "baselines": (), "cache": False}
    together, one = run(small, toy, **options), run(small, toy, **{**options, "seeds": 1})
    assert stacks == [[0, 1, 2]]
    assert (together.scores[0].seconds, one.scores[0].seconds) == (12, 12)
