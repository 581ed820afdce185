"""Paths that callers pass, and where the cache is."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Return a path whose leading `~` or `~user` is replaced by the home folder, as in a shell.

    The name of a user that this machine does not have stays as it is, as in a shell.

    Example:
        >>> local_path("~/sets") == Path.home() / "sets"
        True
    """
    return Path(os.path.expanduser(path))


def named_folder(folder: Path) -> Path:
    """Return the absolute path of a folder, which ends with its own name, also for `.` and for `..`.

    Example:
        >>> named_folder(Path(".")) == Path.cwd()
        True
    """
    absolute = folder.absolute()
    return absolute.resolve() if absolute.name == ".." else absolute


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of cached files, for example `"sources"`; it need not exist."""
    import datasets  # slow, and the help of the command line needs this module

    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "condense" / kind
