"""Randomness under keys: every draw has its own key, so neither the order nor the number of processes matters."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
        devices: Devices that the code may draw on; the generators of the CUDA devices among them are seeded as well.
    """
    cuda = [d.index if d.index is not None else torch.cuda.current_device() for d in devices if d.type == "cuda"]
    seed = key_seed(*key)
    with (
        _GLOBAL_GENERATORS,
        torch.random.fork_rng(devices=cuda),
        torch.autograd.set_multithreading_enabled(False),
    ):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
