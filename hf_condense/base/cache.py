"""The cache under `$HF_HOME/condense`: decoded sources, features, experts, evaluations; keyed by content."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import psutil

logger = logging.getLogger("hf_condense")

_ABANDONED_SECONDS = 86_400  # without a change; longer than anything that is written goes untouched


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of cached thing; it need not exist."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "condense" / kind


def cache_enabled(wanted: bool) -> bool:
    """Tell whether to cache: the caller wants it and `datasets` has not switched caching off."""
    return wanted and datasets.is_caching_enabled()


def content_key(**facts: Any) -> str:
    """Return a key that is equal for equal facts (JSON values), on every machine."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside `target`, then put it in place at once.

    If another process was faster, its folder stays. If anything fails, nothing is left behind; what a killed process
    left is removed by the next one that fills `target`.

    Raises:
        OSError: With a plain message if no space is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    work = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    try:
        with explained_disk_errors(target):
            yield work
        try:
            os.replace(work, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside `target`, then put it in place at once.

    The earlier file stays whole until then, and whatever happens. What a killed process left is removed first.

    Raises:
        OSError: With a plain message if no space is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    handle, name = tempfile.mkstemp(prefix=_prefix(target), dir=target.parent)
    os.close(handle)
    work = Path(name)
    try:
        with explained_disk_errors(target):
            yield work
            with work.open("rb+") as file:
                os.fsync(file.fileno())
        os.chmod(work, 0o666 & ~_umask())
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    """Return how the temporary names beside `target` begin: they say which process writes there."""
    return f".{target.name}-{_machine()}-{os.getpid()}-"


def _machine() -> str:
    """Return a name for where process numbers are unique: the host and, on Linux, the container."""
    try:
        numbering = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        numbering = 0
    return hashlib.blake2b(f"{platform.node()} {numbering}".encode(), digest_size=4).hexdigest()


def _sweep(target: Path) -> None:
    """Remove what processes that were killed while they wrote `target` left beside it."""
    ours = re.compile(rf"\.{re.escape(target.name)}-([0-9a-f]{{8}})-([0-9]{{1,9}})-[a-z0-9_]{{8}}")
    for entry in target.parent.iterdir():
        if (match := ours.fullmatch(entry.name)) and _is_abandoned(entry, match[1], int(match[2])):
            logger.info("removing %s, which a killed process left behind", entry)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):  # gone by now, or another user's
                    entry.unlink()


def _is_abandoned(entry: Path, machine: str, process: int) -> bool:
    """Tell whether no process can still be writing: the one that did is gone or, out of sight, quiet for a day."""
    if machine == _machine() and not psutil.pid_exists(process):
        return True
    try:
        last = max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))
    except OSError:  # its writer is at work, or another sweeper is
        return False
    return time.time() - last > _ABANDONED_SECONDS


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def explained_disk_errors(target: Path) -> Iterator[None]:
    """Add to a full disk's error what was being written and that the earlier file is whole."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(target.parent).free / 2**20
            raise OSError(
                error.errno,
                f"no space left while writing {target} ({free:.0f} MiB free); what was there before is whole. "
                "Free some space, or choose another place (HF_HOME moves the cache, cache=False goes without)",
            ) from error
        raise


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
