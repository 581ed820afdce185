"""Randomness under keys: every draw has its own key, so neither the order nor the number of processes matters."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Key = str | int

_GLOBAL_GENERATORS = threading.RLock()


def key_seed(*key: Key) -> int:
    """Turn a key into a seed that is the same on every machine and in every process.

    Args:
        *key: The address of a draw, for example `(seed, "real", step, "cat")`. Each part is text or an integer; `1`
            and `"1"` are different keys.

    Returns:
        An integer in [0, 2**63).

    Raises:
        TypeError: If a part is neither text nor an integer.

    Example:
        >>> key_seed(0, "real", 1) == key_seed(0, "real", 1), key_seed(0, "1") == key_seed(0, 1)
        (True, False)
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        if not isinstance(part, (str, int)) or isinstance(part, bool):
            raise TypeError(f"the parts of a key should be text and integers; got {part!r} ({type(part).__name__})")
        text = f"{'s' if isinstance(part, str) else 'i'}{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def keyed_generator(*key: Key) -> torch.Generator:
    """Return a CPU generator seeded by a key (see `key_seed`).

    Draw on the CPU and move the numbers, so that every device sees the same ones.
    """
    return torch.Generator().manual_seed(key_seed(*key))


@contextmanager
def seeded_globals(*key: Key, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Seed the global generators by a key, for code that knows no others (layer initialisation, dropout).

    Afterwards the global generators are as they were before. Only one thread at a time can enter. Inside, backward
    passes run in the thread that calls them, on GPUs too: a thread of their own could not enter a second block.

    Args:
        *key: The address of the draws, as for `key_seed`.
        devices: Devices that the code may draw on. Their generators are seeded as well as that of the CPU.
    """
    seed = key_seed(*key)
    with _GLOBAL_GENERATORS, torch.autograd.set_multithreading_enabled(False):
        generators = [torch.default_generator, *map(global_generator, devices)]
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def global_generator(device: torch.device) -> torch.Generator:
    """Return the generator that draws on a device use when none is given."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    backend: Any = torch.get_device_module(device)  # torch.cuda, torch.xpu, ...
    index = backend.current_device() if device.index is None else device.index
    generator: torch.Generator = backend.default_generators[index]
    return generator
