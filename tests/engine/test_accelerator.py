"""The caller's accelerator is after a call as it was before it, and `evaluate` takes any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset

from hf_condense import condense_dataset, evaluate
from hf_condense.condensed.scores import Evaluation
from tests.engine.test_tracking import Notebook

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


def test_evaluation_takes_an_accelerator_of_any_precision(toy: Dataset) -> None:
    small = condense_dataset(toy, "random", ipc=1, progress=False)
    exact = score(small, toy).scores[0].accuracies
    AcceleratorState._reset_state(reset_partial_state=True)  # it has one precision for all
    half = Accelerator(cpu=True, mixed_precision="fp16")
    assert score(small, toy, accelerator=half).scores[0].accuracies == exact
    with pytest.raises(RuntimeError, match=r"fp16.* scaled.*; use 'bf16' or 'no'"):
        condense_dataset(toy, "dm", accelerator=half, **QUICK)
