"""`plain_torch` gives a block the state in which torch starts, and takes nothing away from the caller."""

from __future__ import annotations

import pytest
import torch

from hf_condense.base.torch_state import plain_torch
from tests.support.torch_states import STATES, default_dtype, in_state


def state() -> tuple[object, ...]:
    """Return everything that `plain_torch` may change."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_autocast_enabled("cpu"),
    )


PLAIN = (True, False, torch.float32, torch.device("cpu"), False)


@pytest.mark.parametrize("name", STATES)
def test_a_block_has_the_state_in_which_torch_starts_and_the_caller_keeps_theirs(name: str) -> None:
    with in_state(name):
        before = state()
        with plain_torch():
            assert state() == PLAIN
            weight = torch.ones(3, 2, requires_grad=True)
            (torch.eye(3) @ weight).square().sum().backward()
            assert torch.equal(weight.grad, torch.full((3, 2), 2.0))
        assert state() == before
    assert state() == PLAIN


@pytest.mark.parametrize("name", STATES)
def test_an_error_in_the_block_leaves_the_callers_state(name: str) -> None:
    with in_state(name):
        before = state()
        with pytest.raises(KeyError), plain_torch():
            raise KeyError
        assert state() == before


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matrix_products_are_exact_in_a_block_and_the_caller_keeps_their_setting(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        with plain_torch():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 brought the setting")
def test_matrix_products_are_exact_in_a_block_although_backends_differ_in_the_callers_settings() -> None:
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        with plain_torch():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


def test_a_decorated_function_runs_plainly_on_every_call() -> None:
    @plain_torch()
    def dtype_of_one() -> torch.dtype:
        return torch.ones(()).dtype

    for dtype in (torch.float64, torch.float16):
        with default_dtype(dtype):
            assert dtype_of_one() == torch.float32
            assert torch.ones(()).dtype == dtype


def test_blocks_may_be_nested() -> None:
    with torch.device("meta"), plain_torch(), plain_torch():
        assert state() == PLAIN
