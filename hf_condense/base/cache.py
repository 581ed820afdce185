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

# A file that another machine is still writing changes more often than once a day.
_ABANDONED_SECONDS = 86_400


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of cached files, for example `"sources"`; it need not exist."""
    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "condense" / kind


def cache_enabled(cache: bool) -> bool:
    """Return whether to use the cache: the caller asks for it, and caching is not disabled in `datasets`."""
    return cache and datasets.is_caching_enabled()


def content_key(**facts: Any) -> str:
    """Return a key that is the same for equal facts (JSON values) on every machine."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside `target`, then rename it to `target` in one step.

    If another process has put its folder there first, that one stays. If anything fails, nothing is left behind. If
    the process is killed, the next one that fills `target` removes what is left.

    Args:
        target: The folder to make; its parent is made if it is missing.

    Yields:
        The temporary folder.

    Raises:
        OSError: If the disk is full; the message says what to do.
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
    """Write a file under a temporary name beside `target`, then rename it to `target` in one step.

    Until then an earlier file stays as it is, whatever happens. If the process is killed, the next one that writes
    `target` removes what is left.

    Args:
        target: The file to write; its folder is made if it is missing.

    Yields:
        The temporary file, which exists and is empty.

    Raises:
        OSError: If the disk is full; the message says what to do.
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
    """Return the start of the temporary names beside `target`, which names the process that writes there."""
    return f".{target.name}-{_machine()}-{os.getpid()}-"


def _machine() -> str:
    """Return a short hash of the host and, on Linux, of the container, within which process numbers are unique."""
    try:
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        container = 0
    return hashlib.blake2b(f"{platform.node()} {container}".encode(), digest_size=4).hexdigest()


def _sweep(target: Path) -> None:
    """Remove the temporary files and folders of processes that were killed while they wrote `target`."""
    temporary_name = re.compile(rf"\.{re.escape(target.name)}-([0-9a-f]{{8}})-([0-9]{{1,9}})-[a-z0-9_]{{8}}")
    for entry in target.parent.iterdir():
        if (match := temporary_name.fullmatch(entry.name)) and _is_abandoned(entry, match[1], int(match[2])):
            logger.info("removing %s, which a killed process left behind", entry)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):  # another process has removed it, or it belongs to another user
                    entry.unlink()


def _is_abandoned(entry: Path, machine: str, process: int) -> bool:
    """Return whether the writer is dead or, if it runs on another machine, idle for a day."""
    if machine == _machine() and not psutil.pid_exists(process):
        return True
    try:
        last_change = max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))
    except OSError:  # a file vanished meanwhile, so another process is at work there
        return False
    return time.time() - last_change > _ABANDONED_SECONDS


def _umask() -> int:
    """Return the umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def explained_disk_errors(target: Path) -> Iterator[None]:
    """Re-raise the error of a full disk with the path that was written; the previous file is intact."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(target.parent).free / 2**20
            raise OSError(
                error.errno,
                f"no space left while writing {target} ({free:.0f} MiB free); what was there before is whole. "
                "Free some space, or choose another place (HF_HOME moves the cache, cache=False does not use it)",
            ) from error
        raise


def folder_size(folder: Path) -> int:
    """Return the size of all files in a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
