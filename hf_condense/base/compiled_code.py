"""Compiling networks, and torch's own cache of compiled code, which a killed process may leave unfinished."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from hf_condense.base.errors import CannotRunError

# What the loader of Linux says about a library whose compiler was killed. One that lacks only its last part may crash
# the process instead.
_UNFINISHED = re.compile(
    r"(?:ImportError|OSError): (?P<path>/[^\n:]+\.so): (?:file too short|invalid ELF header|cannot read file data"
    r"|ELF file version does not match|object file has no (?:loadable segments|dynamic section))"
)

Network = TypeVar("Network", bound=Callable[..., Any])


def compiled_if(wanted: bool, network: Network) -> Network:
    """Return a network, or a function that runs one, compiled for the shapes that it gets if this is wanted."""
    return cast(Network, torch.compile(network, dynamic=False)) if wanted else network


@contextmanager
def removes_unfinished_code() -> Iterator[None]:
    """Remove a file of torch's cache that a killed compiler left unfinished, when a block fails because of it.

    Otherwise the same code would fail in every later process. As a decorator, it does the same for every call.

    Raises:
        CannotRunError: If a file was removed; the message names it, and says that the same call works now.
    """
    try:
        yield
    except Exception as error:
        path = _unfinished(error)
        if path is None:
            raise
        path.unlink(missing_ok=True)
        raise CannotRunError(
            f"compiled code in torch's cache was unfinished, because the process that compiled it was killed; {path} "
            "was removed, so that the same call works now"
        ) from error


def _unfinished(error: Exception) -> Path | None:
    """Return the file in torch's cache that an error calls unfinished, or None if it is about something else."""
    match = _UNFINISHED.search(f"{type(error).__name__}: {error}")
    if match is None:
        return None
    path = Path(match["path"]).resolve()
    root = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    is_torchs = any(folder.name.startswith("torchinductor_") for folder in path.parents)
    return path if is_torchs or (root and path.is_relative_to(Path(root).resolve())) else None
