"""Randomness that is addressed, not carried: every draw has a key, so order and process count do not matter."""

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
        *key: The address of a draw, for example `(seed, "real", step, "cat")`. Text and integers only;
            `1` and `"1"` are different keys.

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
            raise TypeError(f"a key is made of text and integers; got {part!r} ({type(part).__name__})")
        text = f"{'s' if isinstance(part, str) else 'i'}{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def keyed_generator(*key: Key) -> torch.Generator:
    """Return a CPU generator seeded by `key` (see `key_seed`).

    Draws are always made on the CPU and moved, so that every device sees the same numbers.
    """
    return torch.Generator().manual_seed(key_seed(*key))


@contextmanager
def seeded_globals(*key: Key, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Run code that only knows the global generators (layer initialisation, dropout) under a key.

    The global generators are left as they were found. One thread at a time.

    Args:
        *key: The address of the draws, as in `key_seed`.
        devices: CUDA devices whose generator the code may use as well.
    """
    cuda = [d.index if d.index is not None else torch.cuda.current_device() for d in devices if d.type == "cuda"]
    seed = key_seed(*key)
    with _GLOBAL_GENERATORS, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
