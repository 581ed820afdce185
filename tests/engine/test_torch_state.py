"""Condensing gives the same set whatever state torch is in, and leaves that state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from hf_condense import CondensedDataset
from hf_condense.testing import quick_bench, toy_dataset

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel")).remove_columns("note")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def states() -> dict[str, AbstractContextManager[object]]:
    return {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "float64": default_dtype(torch.float64),
        "bfloat16": default_dtype(torch.bfloat16),
        "meta": torch.device("meta"),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, CondensedDataset]:
    return {method: quick_bench(method).condense(TOY) for method in ("dm", "dc", "mtt", "herding")}


@pytest.mark.parametrize("state", states())
@pytest.mark.parametrize("method", ["dm", "dc", "mtt", "herding"])
def test_state_of_torch_changes_no_bit(method: str, state: str, plain: dict[str, CondensedDataset]) -> None:
    with states()[state]:
        small = quick_bench(method).condense(TOY)
        assert torch.is_grad_enabled() is (state not in ("no_grad", "inference_mode"))
        expected = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(state, torch.float32)
        assert torch.get_default_dtype() is expected, "the caller's state should be there again"
    for name, tensor in plain[method].synthetic.all().items():
        assert torch.equal(small.synthetic.all()[name], tensor), name
