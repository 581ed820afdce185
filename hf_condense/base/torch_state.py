"""The state of torch that computations rely on, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from hf_condense.base.devices import convolution_precision

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Give a block the state in which torch starts, and restore the caller's state afterwards.

    Inside the block gradients are recorded, inference mode and autocast are off, floats are float32 by default,
    tensors are made on the CPU by default, and matrix products of float32 are not rounded to TF32 or bfloat16. As a
    decorator, it does the same for every call of a function.

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
        stack.enter_context(_exact_products())
        yield


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """Compute convolutions of float32 on a CUDA device in float32 inside a block, where torch would round to TF32.

    A second derivative that is computed later must be computed inside the block too. Afterwards, the settings of cuDNN
    are what they amounted to before.
    """
    if convolution_precision(device) == "float32":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...]
    exact: str | bool
    if hasattr(getattr(cudnn, "conv", None), "fp32_precision"):  # torch 2.9 and later
        # Both together, because torch refuses to say whether cuDNN may round if they differ.
        places, name, exact = (cudnn.conv, cudnn.rnn), "fp32_precision", "ieee"
    else:
        places, name, exact = (cudnn,), "allow_tf32", False
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Compute matrix products of float32 in float32 inside a block: distances are differences of large products."""
    # Since torch 2.9 each backend has a setting of its own, besides the one for all of them.
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    settings = {backend: backend.fp32_precision for backend in backends if hasattr(backend, "fp32_precision")}
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # what the caller has set differs between the backends
        overall = None
    if overall == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if overall is not None:
            torch.set_float32_matmul_precision(overall)
        for backend, precision in settings.items():
            backend.fp32_precision = precision
