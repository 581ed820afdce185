"""Files and folders: written in one step, with errors that say what to do, and without what killed processes leave."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hf_condense.base.paths import cache_folder, local_path

logger = logging.getLogger("hf_condense")

# A file that another machine is still writing changes more often than once a day.
_ABANDONED_SECONDS = 86_400


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
        OSError: If the disk is full, or the file cannot be made; the message says what to do.
    """
    with explained_access(target):
        work = _new_path_beside(target)
        work.touch(exist_ok=False)
        mode = stat.S_IMODE(work.stat().st_mode)
    try:
        with explained_disk_errors(target):
            yield work
            with work.open("rb+") as file:
                os.fsync(file.fileno())
        with explained_access(target):
            os.chmod(work, mode)  # some libraries replace the file by one that only its owner may read
            os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def output_file(file: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name and put it in its place when it is whole; until then an earlier one stays.

    Its folder is made if it is missing. What a link leads to is replaced, not the link. What is no regular file, such
    as `/dev/stdout`, is written to as it is.

    Args:
        file: The file to write; a leading `~` is the home folder.

    Yields:
        The path to write to, whose name need not end as that of the file does.

    Raises:
        OSError: If the disk is full, the file cannot be made or is a folder; the message says what to do.
    """
    path = local_path(file)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        yield path
        return
    with atomic_file(path.resolve()) as work:
        yield work


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside `target`, then rename it to `target` in one step.

    If another process has put its folder there first, that one stays. If anything fails, nothing is left behind. If
    the process is killed, the next one that fills `target` removes what is left. Its permissions follow the umask
    and the parent folder.

    Args:
        target: The folder to make; its parent is made if it is missing.

    Yields:
        The temporary folder.

    Raises:
        OSError: If the disk is full, or the folder cannot be made; the message says what to do.
    """
    with explained_access(target):
        work = _new_path_beside(target)
        work.mkdir()
    try:
        with explained_disk_errors(target):
            yield work
        with explained_access(target):
            try:
                os.replace(work, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_readable(file: Path) -> None:
    """Raise unless a file can be opened to read it: the reader of tensors does not say why it cannot.

    Raises:
        OSError: If not; the message says what to do.
    """
    with explained_access(file):
        file.open("rb").close()


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU to a file, in one step.

    Raises:
        OSError: If the disk is full, or the file cannot be made; the message says what to do.
    """
    with atomic_file(file) as work:
        try:
            save_file(tensors, work)
        except SafetensorError as error:  # no OSError, although it tells of one
            number = re.search(r"(?:os error |code: )(\d+)", str(error))  # the second form is that of safetensors 0.4
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, to make room for a new one.

    Raises:
        OSError: If it can neither be removed nor be replaced, because it belongs to another user; the message says
            what to do.
    """
    with explained_access(folder):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it as well
        if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def folder_size(folder: Path) -> int:
    """Return the size of all files in a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def temporary_prefix(target: Path) -> str:
    """Return how the names of temporary files beside `target` begin; they name the process that writes there."""
    return f".{target.name}-{_machine()}-{os.getpid()}-"


def abandoned(target: Path) -> list[Path]:
    """Return the temporary files and folders of processes that were killed while they wrote `target`."""
    temporary_name = re.compile(rf"\.{re.escape(target.name)}-([0-9a-f]{{8}})-([0-9]{{1,9}})-[a-z0-9_]{{8}}")
    return [
        entry
        for entry in target.parent.iterdir()
        if (match := temporary_name.fullmatch(entry.name)) and _is_abandoned(entry, match[1], int(match[2]))
    ]


def _new_path_beside(target: Path) -> Path:
    """Make the folder of `target`, remove what killed processes left there, and return a new name beside `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    return target.with_name(f"{temporary_prefix(target)}{secrets.token_hex(4)}")


def _machine() -> str:
    """Return a short hash of the host and, on Linux, of the container, within which process numbers are unique."""
    try:
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        container = 0
    return hashlib.blake2b(f"{platform.node()} {container}".encode(), digest_size=4).hexdigest()


def _sweep(target: Path) -> None:
    """Remove what killed processes left while they wrote `target`."""
    for entry in abandoned(target):
        logger.info("removing %s, which a killed process left behind", entry)
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):  # another process has removed it, or it belongs to another user
                entry.unlink()


def _is_abandoned(entry: Path, machine: str, process: int) -> bool:
    """Return whether the writer is dead, as far as is known here, or has written nothing for a day."""
    if machine == _machine() and not psutil.pid_exists(process):
        return True
    try:
        last_change = max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))
    except OSError:  # a file vanished meanwhile, so another process is at work there
        return False
    return time.time() - last_change > _ABANDONED_SECONDS


@contextmanager
def explained_disk_errors(target: Path) -> Iterator[None]:
    """Re-raise the error of a full disk with the path that was written; the previous file is intact."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_nearest_folder(target)).free / 2**20
            raise OSError(
                error.errno,
                f"no space left while writing {target} ({free:.0f} MiB free); what was there before is whole. "
                f"Free some space, or {_other_place(target)}",
            ) from error
        raise


@contextmanager
def explained_access(target: Path) -> Iterator[None]:
    """Re-raise an error of the file system, such as one of permissions, with what to do about it."""
    try:
        with explained_disk_errors(target):
            yield
    except OSError as error:
        if error.errno is None or error.filename is None:  # it is explained already
            raise
        place = f"the cache, {target}," if cache_folder("") in target.parents else str(target)
        reason, remedy = file_in_the_way(error, target), ""
        if reason is None:
            reason = os.strerror(error.errno)
            if error.errno in (errno.EACCES, errno.EPERM):
                reason, remedy = f"{reason}: {error.filename}", "ask its owner for access, or "
        what = reason if reason.startswith(f"{place} is ") else f"{place} cannot be read or written ({reason})"
        message = f"{what}; {remedy}{_other_place(target)}"
        raise OSError(error.errno, message) from error


def file_in_the_way(error: OSError, folder: Path) -> str | None:
    """Say which file stands where a folder is needed, if an error of the file system came of that; else return None."""
    if error.errno not in (errno.EEXIST, errno.ENOTDIR):
        return None
    file = next((path for path in (folder, *folder.parents) if os.path.isfile(path)), None)
    return None if file is None else f"{file} is a file, and a folder is needed"


def _other_place(target: Path) -> str:
    """Say how to have a file elsewhere, as the end of a sentence."""
    if cache_folder("") not in target.parents:
        return "choose another place"
    return "use another cache (set HF_HOME, or pass cache=False)"


def check_place(folder: Path) -> None:
    """Raise unless files can be written to a folder, or to the one in which it would be made.

    Raises:
        OSError: If not; the message says what to do.
    """
    with explained_access(folder):
        nearest = folder if os.path.exists(folder) else _nearest_folder(folder)
        tempfile.TemporaryFile(dir=nearest).close()


def _nearest_folder(path: Path) -> Path:
    """Return the innermost folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if os.path.exists(parent))
