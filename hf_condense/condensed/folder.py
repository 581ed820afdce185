"""Condensed sets on disk: what is written is what a Hub repository holds, what is read is checked first."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hf_condense.base.errors import CondensedFormatError, did_you_mean
from hf_condense.condensed.card import render as card
from hf_condense.condensed.facts import FACTS, MAX_README_BYTES, README, TENSORS, read_facts
from hf_condense.condensed.packing import pack
from hf_condense.condensed.rows import Parts
from hf_condense.condensed.untrusted import parse_json, read_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT_WORDS = frozenset({"train", "test", "validation", "valid", "dev", "eval", "data"})
# May differ between two makings of the same set.
_PROVENANCE = frozenset({"created_at", "runtime", "evaluation", "nearest"})


def save(parts: Parts, folder: Path, *, name: str | None = None, overwrite: bool = False) -> Path:
    """Write a set into a folder of sets; see `CondensedDataset.save_condensed`.

    Args:
        parts: The set.
        folder: The folder of sets, created if missing.
        name: Config name; None: that of the recipe.
        overwrite: Replace a set of this name that differs.

    Returns:
        The folder of this set.

    Raises:
        ValueError: If the name is not usable, or the set cannot be written exactly.
        FileExistsError: If another set, or something else, is there and may not be replaced.
        OSError: If writing failed; what was there before is untouched.
    """
    name = check_name(name or parts.recipe.config_name)
    files = pack(parts)
    target = folder / name
    if target.exists() and not overwrite:
        _refuse_another(target, parse_json(files[FACTS], FACTS))
    sets = {other: read_facts(folder / other) for other in list_sets(folder) if other != name}
    sets[name] = parse_json(files[FACTS], FACTS)
    text = card.render(sets, read_card(folder))
    write_files(folder, {**{f"{name}/{file}": data for file, data in files.items()}, README: text.encode()})
    return target


def is_repository(path_or_repo: str | Path) -> bool:
    """Tell whether a text names a repository on the Hub; a folder that exists comes first, a `Path` is a folder."""
    named = isinstance(path_or_repo, str) and _REPO.fullmatch(path_or_repo) is not None
    return named and not Path(path_or_repo).expanduser().is_dir()


def list_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if is_name(entry.name) and (entry / FACTS).is_file())


def is_name(name: str) -> bool:
    """Tell whether a name can be that of a set: one folder, never a path."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return a config name that is safe as a folder and is not read as a split.

    Raises:
        ValueError: If it is not.
    """
    if not is_name(name) or _SPLIT_WORDS & set(re.split(r"[._-]", name)):
        raise ValueError(
            f"config name {name!r} should be 1 to 64 letters, digits, '.', '_', '-', begin with a letter or digit, and "
            f"have no part that names a split ({', '.join(sorted(_SPLIT_WORDS))})"
        )
    return name


def resolve_folder(path_or_repo: str | Path) -> Path:
    """Return the folder that holds the files.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(path_or_repo).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(path_or_repo)!r} (looked for {folder.absolute()}); pass a folder that save_condensed "
            "wrote, or a Hub repository 'user/name'"
        )
    return folder


def pick(folder: Path, name: str | None) -> Path:
    """Return the folder of one set: the one that was named, else the card's default, else the only one."""
    if (folder / FACTS).exists():
        if name not in (None, folder.name):
            raise ValueError(f"{folder} is the folder of one set, {folder.name!r}; got name={name!r}")
        return folder
    names = list_sets(folder)
    default = card.default_config(read_card(folder) or "") if name is None and len(names) > 1 else None
    return folder / choose(str(folder), names, name, default)


def choose(where: str, names: list[str], name: str | None, default: str | None) -> str:
    """Return one of the sets that are there: the one that was named, else the card's default, else the only one.

    Raises:
        ValueError: If there is no such set, or no default among several.
        CondensedFormatError: If there is none at all.
    """
    if not names:
        raise CondensedFormatError(
            f"{where} has no condensed set (no */{FACTS}). Is it a plain dataset? Use datasets.load_dataset."
        )
    if name is None and len(names) > 1:
        name = default
        if name not in names:
            raise ValueError(f"{where} holds several condensed sets: {', '.join(names)}. Pass one as 'name'.")
    chosen = names[0] if name is None else name
    if chosen not in names:
        hint = did_you_mean(chosen, names)
        raise ValueError(f"{where} has no condensed set named {chosen!r}. It has: {', '.join(names)}{hint}")
    return chosen


def read_card(folder: Path) -> str | None:
    """Return the text of the card in a folder, if there is one.

    Raises:
        CondensedFormatError: If it is too large, or no text.
    """
    if not (folder / README).exists():
        return None
    try:
        return read_bytes(folder / README, MAX_README_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CondensedFormatError(f"{folder / README}: no UTF-8 text: {error}") from None


def _refuse_another(target: Path, here: Mapping[str, Any]) -> None:
    """Raise unless what is in the folder of a set is the same set, or nothing."""
    if not (target / FACTS).exists():
        if not target.is_dir() or any(target.iterdir()):
            raise FileExistsError(f"{target} holds something else; save to another folder, or pass overwrite=True")
    elif reason := difference(read_facts(target), here):
        raise FileExistsError(
            f"{target} already holds a set with {reason}; save to another folder, or pass overwrite=True"
        )


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Say how the facts of one set differ from another's, None if they are of the same set."""
    known = [
        {key: _unlicensed(value) for key, value in facts["recipe"].items() if key not in _PROVENANCE}
        for facts in (there, here)
    ]
    differing = sorted(key for key in known[0].keys() | known[1].keys() if known[0].get(key) != known[1].get(key))
    if differing:
        return f"another recipe ({', '.join(differing)} differ)"
    return None if there["sha256"].get(TENSORS) == here["sha256"][TENSORS] else "other tensors of the same recipe"


def _unlicensed(value: Any) -> Any:
    """Return a value of a recipe without a licence, which may become known later."""
    return {key: kept for key, kept in value.items() if key != "license"} if isinstance(value, dict) else value


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder so that either all are new or all are as they were.

    Raises:
        OSError: If it failed; what was there before is untouched.
    """
    changed = {path: data for path, data in files.items() if not _holds(folder / path, data)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".hf_condense-", dir=folder) as place:
            new, old = ([Path(place, f"{kind}{i}") for i in range(len(changed))] for kind in ("new", "old"))
            for fresh, data in zip(new, changed.values(), strict=True):
                _write_through(fresh, data)
            with ExitStack() as undo:
                for fresh, kept, path in zip(new, old, changed, strict=True):
                    _replace(fresh, kept, folder / path, undo)
                undo.pop_all()
    except OSError as error:
        reason = f"could not save to {folder}: {error.strerror or error}; what was there before is untouched"
        raise OSError(error.errno, reason) from error


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(fresh: Path, kept: Path, target: Path, undo: ExitStack) -> None:
    """Put `fresh` in the place of `target`, and note how to take it back."""
    if not target.parent.exists():
        target.parent.mkdir()
        undo.callback(target.parent.rmdir)
    if target.exists():
        shutil.copy2(target, kept)
        undo.callback(os.replace, kept, target)
    else:
        undo.callback(target.unlink, missing_ok=True)
    os.replace(fresh, target)


def _holds(path: Path, data: bytes) -> bool:
    """Tell whether a file already has this content."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
