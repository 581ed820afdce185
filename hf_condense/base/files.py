"""Files that callers name, written in one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_condense.base.cache import atomic_file
from hf_condense.base.paths import local_path


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
        OSError: If the disk is full, or the file cannot be made; the message says what to do.
    """
    path = local_path(file)
    if path.exists() and not path.is_file():
        yield path
        return
    with atomic_file(path.resolve()) as work:
        yield work
