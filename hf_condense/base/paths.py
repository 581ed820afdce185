"""Paths that callers pass."""

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
