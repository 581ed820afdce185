"""Condensing gives the same set whatever state torch is in, and leaves that state as it was."""

from __future__ import annotations

import pytest
import torch

from hf_condense import CondensedDataset
from hf_condense.testing import quick_method, toy_dataset
from tests.support.torch_states import STATES, in_state

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel")).remove_columns("note")
METHODS = ("dm", "dc", "mtt", "rded", "herding")


@pytest.fixture(scope="module")
def plain() -> dict[str, CondensedDataset]:
    return {method: quick_method(method).condense(TOY, cache=False) for method in METHODS}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("method", METHODS)
def test_state_of_torch_changes_no_bit(method: str, state: str, plain: dict[str, CondensedDataset]) -> None:
    with in_state(state):
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
        small = quick_method(method).condense(TOY, cache=False)
        after = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
    assert after == before
    for name, tensor in plain[method].synthetic.all().items():
        assert torch.equal(small.synthetic.all()[name], tensor), name
