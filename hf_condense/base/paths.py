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


def folder_name(folder: Path) -> str:
    """Return the name of a folder, also of `.` and of `..`, whose names are those of other folders.

    Example:
        >>> folder_name(Path("sets/digits/.."))
        'sets'
    """
    return os.path.basename(os.path.abspath(folder))


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of cached files, for example `"sources"`; it need not exist."""
    import datasets  # slow, and the help of the command line needs this module

    return Path(datasets.config.HF_CACHE_HOME).expanduser() / "condense" / kind
