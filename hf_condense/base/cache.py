"""The cache under `$HF_HOME/condense`: decoded sources, features, experts, evaluations; keyed by content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hf_condense.base.errors import plain_text
from hf_condense.base.files import check_readable, explained_access, write_tensors
from hf_condense.base.paths import cache_folder

logger = logging.getLogger("hf_condense")


def cache_enabled(cache: bool) -> bool:
    """Return whether to use the cache: the caller asks for it, and caching is not disabled in `datasets`."""
    return cache and datasets.is_caching_enabled()


def content_key(**facts: Any) -> str:
    """Return a key that is the same for equal facts (JSON values) on every machine."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached_tensors(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a cached file, which is written first if it is missing or damaged.

    If it cannot be written, because the disk is full or the folder belongs to somebody else, a warning says so: what
    was made is not lost.

    Args:
        file: A `.safetensors` file in the cache.
        make: Function that returns the tensors, on the CPU.

    Raises:
        OSError: If there is a file that cannot be read; the message says what to do.
    """
    if file.is_file():
        try:
            check_readable(file)
            return load_file(file)
        except SafetensorError as error:
            logger.warning("%s in the cache is damaged (%s), so it is made again", file, error)
            with explained_access(file):
                file.unlink(missing_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    try:
        write_tensors(file, tensors)
    except OSError as error:
        logger.warning("%s. What was computed is used, but not cached", plain_text(error))
        return tensors
    logger.info("cached %s in %s (%.1f MB)", ", ".join(tensors), file, file.stat().st_size / 1e6)
    return load_file(file)


def cached_or_made(
    kind: str, key: str, make: Callable[[], dict[str, Tensor]], *, enabled: bool = True
) -> dict[str, Tensor]:
    """Return tensors from the cache, where they are put first if need be; or just make them, if it is not to be used.

    Args:
        kind: The kind of cached files, for example `"networks"`.
        key: Their `content_key`.
        make: Function that returns the tensors, on the CPU.
        enabled: Whether the caller asks for the cache; it is not used, either, if caching is disabled in `datasets`.

    Raises:
        OSError: If there is a file that cannot be read; the message says what to do.
    """
    if not cache_enabled(enabled):
        return make()
    return cached_tensors(cache_folder(kind) / f"{key}.safetensors", make)
