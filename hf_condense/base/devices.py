"""Rules about devices: how much memory a step may use, and whether compiling a network pays."""

from __future__ import annotations

import shutil
from typing import Literal

import psutil
import torch
from torch import Tensor

CompileOption = Literal["auto"] | bool

# Compiling takes about ten seconds for each shape of batch, and saves almost half of the time of a training pass (on
# two cores). It pays from about this many bytes of activations: those of 75,000 images of 32 x 32 at width 32.
_COMPILE_PAYS_BYTES = 3e10


def memory_budget(device: torch.device) -> int:
    """Return how many bytes a step may use: half of the free memory, rounded down to a power of two."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    return 1 << max(20, (free // 2).bit_length() - 1)


def compiling_pays(work: float, device: torch.device, shapes: int = 1) -> bool:
    """Return whether compiling a network takes less time than it saves. This is a rule for CPUs; elsewhere, never.

    Args:
        work: Bytes of activations that all its forwards compute together.
        device: The device it runs on.
        shapes: Number of different batch shapes; code is compiled for each of them.
    """
    return device.type == "cpu" and work >= shapes * _COMPILE_PAYS_BYTES and shutil.which("g++") is not None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A copy from the CPU to a CUDA device does not wait for what is queued there.

    Only pinned memory can be copied without waiting, so that the tensor is copied into such memory first.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
