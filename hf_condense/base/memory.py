"""Memory: how much of it a step may use, what a graph keeps, and which errors say that it was not enough."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor


class _GroupFiles(NamedTuple):
    """Where Linux shows the memory of control groups.

    Attributes:
        controller: What stands before the path of the group in `/proc/self/cgroup`.
        top: Folder of the uppermost group that this process sees.
        limit: File with the most bytes that a group may use.
        used: File with the bytes that it uses.
        cached: Name in `memory.stat` of those bytes that are copies of files and are not in use.
    """

    controller: str
    top: str
    limit: str
    used: str
    cached: str


_CONTROL_GROUPS = (
    _GroupFiles("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),  # version 2
    _GroupFiles(
        "memory",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",  # with that of the groups below, as the bytes in use are
    ),
)
_most_memory: ContextVar[int | None] = ContextVar("most_memory", default=None)


@contextmanager
def limited_memory(most: int | None) -> Iterator[None]:
    """Let steps inside a block use that many bytes, whatever is free; None changes nothing."""
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
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _room_of_container(root: Path = Path("/")) -> int:
    """Return how many bytes the control groups of Linux leave this process, or very many without a limit.

    A limit holds for all groups below it: that of a job, for example, for each of its tasks. So the smallest counts.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:  # lines such as "4:memory:/slurm/job_7" (version 1) and "0::/system.slice" (version 2)
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        paths = {name: path for _, names, path in lines for name in names.split(",")}
    except (OSError, ValueError):
        paths = {}
    rooms = [
        _room_of_group(folder, files)
        for files in _CONTROL_GROUPS
        for folder in _folders(root / files.top, paths.get(files.controller, "/"))
    ]
    return min(rooms)


def _folders(top: Path, path: str) -> Iterator[Path]:
    """Yield the folder of the uppermost control group, and of each one on the way from there to a path."""
    yield top
    names = [name for name in path.split("/") if name]
    if ".." not in names:  # else the group is outside of what this process sees
        for name in names:
            top /= name
            yield top


def _room_of_group(folder: Path, files: _GroupFiles) -> int:
    """Return how many bytes the limit of a control group leaves, or very many without a limit that can be read."""
    try:
        most = int((folder / files.limit).read_text())  # "max" is no number
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = int((folder / files.used).read_text()) - int(facts[files.cached])  # what is cached can be freed
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
        words in str(error) for words in ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
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
