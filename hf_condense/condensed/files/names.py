"""The names of sets, of their files and of splits."""

from __future__ import annotations

import re
from collections.abc import Collection

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

TENSORS, FACTS, PREVIEW, README = "condensed.safetensors", "condense_config.json", "preview.png", "README.md"
PAGE = "page.html"
MAX_README_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT = re.compile(r"\w{1,64}(\.\w{1,64})*")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
_OWN_FILES = frozenset({README.lower(), FACTS, PAGE})  # of the folder of sets, or of a set
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # Windows has no files or folders of these names
_SPLIT_WORDS = frozenset({"train", "test", "validation", "valid", "dev", "eval", "data"})


def is_name(name: str) -> bool:
    """Return whether a name can be that of a set: one folder, never a path."""
    return _NAME.fullmatch(name) is not None


def is_of_set(file: str, splits: Collection[str]) -> bool:
    """Return whether a file in the folder of a set is one of its own.

    Args:
        file: Name of the file.
        splits: Splits that the set has beside its rows.
    """
    return file in (TENSORS, FACTS, PREVIEW) or shard_split(file) in ("train", *splits)


def check_name(name: str) -> str:
    """Return a config name if it is safe as a folder and cannot be mistaken for a split.

    Raises:
        TypeError: If it is not text.
        ValueError: If it is not usable.
    """
    if not isinstance(name, str):
        raise TypeError(f"config_name should be text; got {name!r:.80} ({type(name).__name__})")
    if name == "default":  # beside another one that is marked as default, load_dataset would read no set at all
        raise ValueError("config name 'default' is what load_dataset calls a set without a name; choose another one")
    if not is_name(name) or _SPLIT_WORDS & set(re.split(r"[._-]", name)):
        raise ValueError(
            f"config name {name!r} should be 1 to 64 letters, digits, '.', '_' or '-', begin with a letter or digit, "
            f"and have no part that names a split ({', '.join(sorted(_SPLIT_WORDS))})"
        )
    if name.lower() in _OWN_FILES:
        raise ValueError(f"config name {name!r} is that of a file beside the sets; choose another one")
    if name.endswith(".") or _DEVICES.fullmatch(name):
        raise ValueError(f"config name {name!r} cannot be that of a folder on Windows; choose another one")
    return name


def shard_file(split: str, index: int, count: int) -> str:
    """Return the name of one of the `count` Parquet files of a split, as `datasets` names them."""
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


def shard_split(file: str) -> str | None:
    """Return the split that a file named as by `shard_file` is part of, or None for any other file."""
    match = _SHARD.fullmatch(file)
    return match[1] if match else None


PARQUET = shard_file("train", 0, 1)


def is_repository_name(name: object) -> bool:
    """Return whether a value has the form of a repository on the Hub, `"user/name"`."""
    if not isinstance(name, str) or _REPOSITORY.fullmatch(name) is None:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:  # such as for the folder `runs/cifar--10`
        return False
    return True


def check_repository(name: str) -> None:
    """Raise `ValueError` unless one can push to a repository of this name: `"user/name"`, or `"name"` of one's own."""
    if not isinstance(name, str):
        raise TypeError(f"repo_id should be text, such as 'user/name'; got {name!r:.80} ({type(name).__name__})")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = str(error).partition(" Use `repo_type`")[0]
        raise ValueError(f"{name!r:.80} is not the name of a repository, such as 'user/name': {reason:.300}") from None


def is_split(name: object) -> bool:
    """Return whether a value may be the name of a split beside the condensed one."""
    return isinstance(name, str) and name != "train" and _SPLIT.fullmatch(name) is not None
