"""The state of torch that computations rely on, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Give a block the state in which torch starts, and restore the caller's state afterwards.

    Inside the block gradients are recorded, inference mode and autocast are off, floats are float32 by default, and
    tensors are made on the CPU by default. As a decorator, it does the same for every call of a function.

    Example:
        >>> with torch.inference_mode(), torch.device("meta"), plain_torch():
        ...     weight = torch.ones(2, requires_grad=True)
        ...     (3 * weight).sum().backward()
        >>> weight.grad
        tensor([3., 3.])
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # A default device makes every call of torch a little slower, so it is only set where there is another one.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
