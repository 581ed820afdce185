"""Rules about devices: how much memory a step may use, what a graph keeps, and whether compiling a network pays."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

CompileOption = Literal["auto"] | bool

# Compiling takes about ten seconds for each shape of batch, and saves almost half of the time of a training pass (on
# two cores). It pays from about this many bytes of activations: those of 75,000 images of 32 x 32 at width 32.
_COMPILE_PAYS_BYTES = 3e10


_most_memory: ContextVar[int | None] = ContextVar("most_memory", default=None)


@contextmanager
def limited_memory(most: int | None) -> Iterator[None]:
    """Let steps inside a block use so many bytes, whatever is free; None changes nothing."""
    token = _most_memory.set(_most_memory.get() if most is None else most)
    try:
        yield
    finally:
        _most_memory.reset(token)


def free_memory(device: torch.device) -> int:
    """Return how many bytes are free, with those that torch keeps for later tensors; or what `limited_memory` allows.

    A second run in a process therefore finds as much as the first one, and gets the same plan.
    """
    if (most := _most_memory.get()) is not None:
        return most
    if device.type != "cuda":
        return min(int(psutil.virtual_memory().available), _room_of_container())
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _room_of_container(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes a container leaves this process, or very many without a limit that can be read.

    Args:
        root: Where Linux shows the control group (version 2) that this process sees as the top.
    """
    try:
        most = int((root / "memory.max").read_text())  # "max" is no number
        facts = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        used = int((root / "memory.current").read_text()) - int(facts["inactive_file"])  # what is cached can be freed
    except (OSError, ValueError, KeyError):
        return sys.maxsize
    return max(0, most - used)


def memory_budget(device: torch.device) -> int:
    """Return how many bytes a step may use: half of the free memory, rounded down to a power of two.

    Inside `limited_memory`, it is the number that was given there.
    """
    if (most := _most_memory.get()) is not None:
        return most
    return 1 << max(20, (free_memory(device) // 2).bit_length() - 1)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory, of a device or of the machine, was not enough."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def graph_bytes(compute: Callable[[], object], others: Iterable[Tensor] = ()) -> int:
    """Return how many bytes a computation keeps for its backward pass.

    Args:
        compute: The computation.
        others: Tensors, such as weights, whose bytes do not count.
    """
    fixed = {tensor.untyped_storage().data_ptr() for tensor in others}
    saved: dict[int, torch.UntypedStorage] = {}  # As long as a storage is held, no other one gets its address.

    def save(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda packed: packed):
        compute()
    return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in fixed)


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
