"""States of torch in which a caller may be: gradients off, another default dtype, another default device, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        # torch 2.6 keeps a default device of None, which its get_default_device() cannot read.
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)


_STATES: dict[str, Callable[[], list[AbstractContextManager[object]]]] = {
    "no_grad": lambda: [torch.no_grad()],
    "inference_mode": lambda: [torch.inference_mode()],
    "float64": lambda: [default_dtype(torch.float64)],
    "bfloat16": lambda: [default_dtype(torch.bfloat16)],
    "float16": lambda: [default_dtype(torch.float16)],
    "meta": lambda: [default_device("meta")],
    "with meta": lambda: [torch.device("meta")],
    "meta twice": lambda: [default_device("meta"), torch.device("meta")],
    "autocast": lambda: [torch.autocast("cpu", dtype=torch.bfloat16)],
    "all": lambda: [
        default_device("meta"),
        torch.inference_mode(),
        default_dtype(torch.float64),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ],
}
STATES = tuple(_STATES)


def in_state(name: str) -> ExitStack:
    """Put torch into one of `STATES`; leaving the stack puts it back."""
    stack = ExitStack()
    for manager in _STATES[name]():
        stack.enter_context(manager)
    return stack
