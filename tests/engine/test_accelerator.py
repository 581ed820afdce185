"""The caller's accelerator and Accelerate's state are after a call as they were before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset

from hf_condense import condense_dataset, evaluate
from hf_condense.condensed.scores import Evaluation
from hf_condense.engine.run import Run
from tests.engine.test_tracking import Notebook
from tests.support.engine_methods import Stop, stop_after

pytestmark = pytest.mark.usefixtures("no_state", "one_thread")


@pytest.fixture
def no_state() -> Iterator[None]:
    """Start without any state of Accelerate, and leave none."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


QUICK: dict[str, Any] = {"network": "convnet-w4-d1", "steps": 1, "batch_real": 2, "ipc": 1, "progress": False}


def score(small: Dataset, test: Dataset, **options: Any) -> Evaluation:
    return evaluate(small, test, networks="convnet-w4-d1", epochs=1, seeds=1, baselines=(), progress=False, **options)


def test_gradient_accumulation_of_an_accelerator_stays(toy: Dataset) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    before = dict(accelerator.gradient_state.plugin_kwargs)
    score(condense_dataset(toy, "dm", log_with=Notebook(), **QUICK), toy)
    assert accelerator.gradient_accumulation_steps == 4
    assert accelerator.gradient_state.plugin_kwargs == before


@pytest.mark.parametrize("fails", [False, True])
def test_state_that_a_call_has_made_ends_with_it(toy: Dataset, fails: bool) -> None:
    with pytest.raises(Stop) if fails else nullcontext():
        condense_dataset(toy, "dm", callbacks=[stop_after(1)] if fails else [], **QUICK)
    assert not AcceleratorState._shared_state
    assert not PartialState._shared_state
    small = condense_dataset(toy, "random", ipc=1, progress=False)
    score(small, toy)
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


def test_call_that_is_refused_before_it_makes_a_state_says_why(toy: Dataset) -> None:
    with pytest.raises(ValueError, match="seed should be at least 0; got -1"):
        score(toy, toy, seed=-1)
    assert not PartialState._shared_state


def test_state_that_a_caller_has_made_stays(toy: Dataset) -> None:
    PartialState(cpu=True)
    small = condense_dataset(toy, "random", ipc=1, progress=False)
    assert PartialState._shared_state
    assert not AcceleratorState._shared_state
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    score(small, toy)
    assert accelerator.mixed_precision == "bf16"
    assert AcceleratorState._shared_state


def test_call_within_a_call_keeps_the_state_and_a_run_outlives_it(toy: Dataset) -> None:
    small, runs = condense_dataset(toy, "random", ipc=1, progress=False), []

    def note(run: Run, done: int, loss: float) -> None:
        runs.append(run)
        score(small, toy)
        assert AcceleratorState._shared_state

    notebook = Notebook()
    condense_dataset(toy, "dm", callbacks=[note], log_with=notebook, **QUICK)
    assert (sorted(notebook.scalars), notebook.finished) == ([1], 1)
    assert (runs[0].device.type, runs[0].accelerator.mixed_precision) == ("cpu", "no")
    assert runs[0].synthetic.finished() is not None


def test_evaluation_takes_an_accelerator_of_any_precision(toy: Dataset) -> None:
    small = condense_dataset(toy, "random", ipc=1, progress=False)
    exact = score(small, toy).scores[0].accuracies
    half = Accelerator(cpu=True, mixed_precision="fp16")
    assert score(small, toy, accelerator=half).scores[0].accuracies == exact
    with pytest.raises(RuntimeError, match=r"fp16.* scaled.*; use 'bf16' or 'no'"):
        condense_dataset(toy, "dm", accelerator=half, **QUICK)
