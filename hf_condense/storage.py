"""Condensed sets on disk: what is written is what a Hub repository holds, what is read is checked first."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from hf_condense import card
from hf_condense.condensed import CondensedDataset
from hf_condense.errors import CondensedFormatError, nearest
from hf_condense.packing import FACTS, TENSORS, pack, read_facts, unpack
from hf_condense.safe_read import parse_json, read_bytes

README = "README.md"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SPLIT_WORDS = frozenset({"train", "test", "validation", "valid", "dev", "eval", "data"})
_MAX_README_BYTES = 1 << 20
_PROVENANCE = frozenset({"created_at", "runtime", "evaluation"})  # may differ between two makings of the same set


def save(made: CondensedDataset, folder: Path, *, name: str | None = None, overwrite: bool = False) -> Path:
    """Write a set into a folder of sets; see `CondensedDataset.save_condensed`.

    Args:
        made: The set.
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
    name = check_name(name or made.recipe.config_name)
    files = pack(made)
    target = folder / name
    if target.exists() and not overwrite:
        _refuse_another(target, files)
    sets = {other: read_facts(folder / other) for other in list_sets(folder) if other != name}
    sets[name] = parse_json(files[FACTS], FACTS)
    text = card.render(sets, _read_card(folder))
    write_files(folder, {**{f"{name}/{file}": data for file, data in files.items()}, README: text.encode()})
    return target


def load_condensed(
    path_or_repo: str | Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> CondensedDataset:
    """Load a condensed set exactly as it was made: float pixels, labels, recipe, rows.

    Nothing that is read is trusted: no code is run, no path from inside a file is followed, sizes are checked before
    memory is taken.

    Args:
        path_or_repo: A folder of sets, or the folder of one set.
        name: Which set. None: the default of the card, else the only one there is.
        revision: Branch, tag or commit of a Hub repository.
        token: Token for a Hub repository.
        cache_dir: Where files of a Hub repository are kept.
        local_files_only: Do not ask the Hub for files that are not yet kept.

    Returns:
        The set; a synthetic set's rows are made from its tensors, a coreset's are those that were stored.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no set of this name, or several and no default.
        CondensedFormatError: If a file is damaged, unsafe, foreign or of a newer format.
    """
    folder = _resolve_folder(path_or_repo)
    return unpack(_pick(folder, name))


def list_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name) and (entry / FACTS).is_file())


def check_name(name: str) -> str:
    """Return a config name that is safe as a folder and is not read as a split.

    Raises:
        ValueError: If it is not.
    """
    if not _NAME.fullmatch(name) or _SPLIT_WORDS & set(re.split(r"[._-]", name)):
        raise ValueError(
            f"config name {name!r} should be 1 to 64 letters, digits, '.', '_', '-', begin with a letter or digit, and "
            f"have no part that names a split ({', '.join(sorted(_SPLIT_WORDS))})"
        )
    return name


def _resolve_folder(path_or_repo: str | Path) -> Path:
    """Return the folder that holds the files."""
    folder = Path(path_or_repo).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(path_or_repo)!r} (looked for {folder.absolute()}); pass a folder that save_condensed wrote"
        )
    return folder


def _pick(folder: Path, name: str | None) -> Path:
    """Return the folder of one set: the one that was named, else the card's default, else the only one."""
    if (folder / FACTS).exists():
        if name not in (None, folder.name):
            raise ValueError(f"{folder} is the folder of one set, {folder.name!r}; got name={name!r}")
        return folder
    names = list_sets(folder)
    if not names:
        raise CondensedFormatError(
            f"{folder} has no condensed set (no */{FACTS}). Is it a plain dataset? Use datasets.load_dataset."
        )
    if name is None and len(names) > 1:
        name = card.default_config(_read_card(folder) or "")
        if name not in names:
            raise ValueError(f"{folder} holds several condensed sets: {', '.join(names)}. Pass one as 'name'.")
    chosen = names[0] if name is None else name
    if chosen not in names:
        hint = nearest(chosen, names)
        raise ValueError(f"{folder} has no condensed set named {chosen!r}. It has: {', '.join(names)}{hint}")
    return folder / chosen


def _read_card(folder: Path) -> str | None:
    """Return the text of the card, if there is one."""
    if not (folder / README).exists():
        return None
    try:
        return read_bytes(folder / README, _MAX_README_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CondensedFormatError(f"{folder / README}: no UTF-8 text: {error}") from None


def _refuse_another(target: Path, files: Mapping[str, bytes]) -> None:
    """Raise unless what is in the folder of a set is the same set, or nothing."""
    if not (target / FACTS).exists():
        if not target.is_dir() or any(target.iterdir()):
            raise FileExistsError(f"{target} holds something else; save to another folder, or pass overwrite=True")
        return
    there, here = read_facts(target), parse_json(files[FACTS], FACTS)
    known = [
        {key: value for key, value in facts["recipe"].items() if key not in _PROVENANCE} for facts in (there, here)
    ]
    differing = sorted(key for key in known[0].keys() | known[1].keys() if known[0].get(key) != known[1].get(key))
    if differing or there["sha256"].get(TENSORS) != here["sha256"][TENSORS]:
        reason = f"another recipe ({', '.join(differing)} differ)" if differing else "other tensors of the same recipe"
        raise FileExistsError(
            f"{target} already holds a set with {reason}; save to another folder, or pass overwrite=True"
        )


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
