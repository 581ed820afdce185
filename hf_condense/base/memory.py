"""Memory: how much of it a step may use, what a graph keeps, and which errors say that it was not enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil
import torch
from torch import Tensor

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
