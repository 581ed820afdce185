"""Rules about devices: how they round, whether compiling a network pays, and how tensors get there."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

CompileOption = Literal["auto"] | bool

# Compiling takes about ten seconds for each shape of batch, and saves almost half of the time of a training pass (on
# two cores). It pays from about this many bytes of activations: those of 75,000 images of 32 x 32 at width 32.
_COMPILE_PAYS_BYTES = 3e10


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its own device, or on the CPU if the device has no float64 (Apple's MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def convolution_precision(device: torch.device) -> str:
    """Return how a device rounds the products of convolutions in float32: `"float32"` or `"tf32"` (10 bits)."""
    if device.type != "cuda":
        return "float32"
    convolutions: Any = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(convolutions, "fp32_precision"):  # torch 2.9 and later
        return "tf32" if convolutions.fp32_precision == "tf32" else "float32"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "float32"


def device_facts(device: torch.device) -> dict[str, str]:
    """Return what a cache key says about the device that networks are trained on: whatever changes their weights."""
    facts = {"device": device.type}
    # A CPU rounds in one way alone.
    return facts if device.type == "cpu" else {**facts, "convolutions": convolution_precision(device)}


def compiling_pays(work: float, device: torch.device, shapes: int = 1) -> bool:
    """Return whether compiling a network takes less time than it saves. This is a rule for CPUs; elsewhere, never.

    Args:
        work: Bytes of activations that all its forwards compute together.
        device: The device it runs on.
        shapes: Number of different batch shapes; code is compiled for each of them.
    """
    return device.type == "cpu" and work >= shapes * _COMPILE_PAYS_BYTES and has_compiler()


def has_compiler() -> bool:
    """Return whether torch can compile code for a CPU: it needs g++, and the headers of Python, which it includes."""
    return shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A copy from the CPU to a CUDA device does not wait for what is queued there.

    Only pinned memory can be copied without waiting, so the tensor is copied into such memory first.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
