"""Condensed sets in a folder, which holds the same files as a repository on the Hub."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from hf_condense.base.checks import check_text, listed
from hf_condense.base.errors import CondensedFormatError, did_you_mean
from hf_condense.base.files import abandoned, file_in_the_way, temporary_prefix
from hf_condense.base.paths import local_path, named_folder
from hf_condense.base.processes import is_main_process
from hf_condense.condensed.card.render import check_card, default_config, render
from hf_condense.condensed.files.facts import (
    Facts,
    kept_sets,
    read_facts,
    read_sets,
    refuse_damaged,
    refuse_replacing,
)
from hf_condense.condensed.files.names import (
    FACTS,
    MAX_README_BYTES,
    README,
    check_name,
    is_name,
    is_of_set,
    is_repository_name,
)
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.files.untrusted import read_bytes
from hf_condense.condensed.rows import Parts

logger = logging.getLogger("hf_condense")

_MAX_PLACES = 8  # in a message
_DEPTHS = ("*/*.*", "*/*/*.*")  # where data lie: in splits or classes, or in classes of splits
_DATA_ENDINGS = {".arrow", ".parquet", ".jpg", ".jpeg", ".png", ".webp"}
_PATTERN = re.compile(r"\[.+\]|::")  # brackets around something, or a chain of file systems
_SCRATCH = "hf_condense"  # temporary folders are named after it
_BACKUPS = "old"  # in a temporary folder


def save(parts: Parts, folder: str | Path, *, name: str | None = None, overwrite: bool = False) -> Path:
    """Write a set into a folder of sets; see `CondensedDataset.save_condensed`.

    Of several processes only the main one writes. The others do not wait for it, so that it makes no difference whether
    a script calls this in all of them or in the main one alone.

    Args:
        parts: The set.
        folder: The folder of sets, created if missing; `~` stands for the home folder.
        name: Name of the set in the folder. None: that of the recipe.
        overwrite: Replace another set of this name, and remove other files `train-*.parquet` from its folder.

    Returns:
        The folder of this set.

    Raises:
        ValueError: If the name is not usable, or the set cannot be written exactly.
        FileExistsError: If another set, or something else, is stored under the name and may not be replaced; or if
            the folder is that of a set, or has a set whose name differs in case only.
        OSError: If writing failed; the earlier files are untouched.
    """
    folder = local_path(folder)
    name = check_name(parts.recipe.config_name if name is None else name)
    if not is_main_process():
        return folder / name
    _refuse_place(folder, name)
    files, facts = pack(parts)
    old = _stored_facts(folder / name, damaged_is_none=overwrite)
    if not overwrite:
        _refuse_replacing(folder, name, old, facts)
    elif not (folder / name / FACTS).exists():
        _refuse_strays(folder, name)
    _warn_of_other_data(folder)
    _warn_of_pattern(folder)
    facts = facts.with_extra_splits_of(old, name).with_accuracies_of(old).with_licences_of(old)
    if old is not None and facts.repeats(old):
        facts = old
    own = {f"{name}/{file}": data for file, data in {**files, FACTS: facts.to_bytes()}.items()}
    target = folder / name
    new = own if old is None and not overwrite else ()
    while True:
        sets = read_sets(_others(folder, name), folder.joinpath)
        refuse_damaged(str(folder), sets.damaged, name)
        others = sets.facts
        before = others if old is None else {**others, name: old}
        card = render({**others, name: facts}, read_card(folder), before=before)
        try:
            removed = _strays(folder, name, own) if overwrite else ()
            write_files(folder, {**own, README: card.encode()}, new=new, removed=removed)
        except FileExistsError:
            if not (new and target.is_dir()):
                raise
            _wait_for(target / FACTS)  # another process is saving a set under this name
            _refuse_replacing(folder, name, _stored_facts(target, damaged_is_none=False), facts)
            return target
        if _others(folder, name) == list(others):  # else another process has changed the folder meanwhile
            break
        new = ()
    return target


def remove(folder: Path, name: str) -> None:
    """Remove a set from a folder of sets, and from its card; see `remove_condensed`."""
    target = folder / name
    by_hand = f"remove {target} by hand, and {README} beside it if that describes no other data"
    refuse_removal(str(folder), name, list_sets(folder), by_hand)
    facts = _stored_facts(target, damaged_is_none=True)
    splits = () if facts is None else facts.extra_splits
    is_link = target.is_symlink()  # to a set that lies elsewhere, and stays there
    while others := _others(folder, name):
        kept = kept_sets(str(folder), read_sets(others, folder.joinpath), by_hand)
        card = render(kept, read_card(folder), before=kept if facts is None else {**kept, name: facts})
        files = [] if is_link or not target.is_dir() else [file.name for file in target.iterdir() if file.is_file()]
        own = sorted(f"{name}/{file}" for file in files if is_of_set(file, splits))
        write_files(folder, {README: card.encode()}, removed=own)
        if is_link:
            target.unlink(missing_ok=True)
        else:
            _remove_if_empty(target)
        if list_sets(folder) == others:  # else another process has saved or removed a set meanwhile
            return


def refuse_removal(where: str, name: str, names: Collection[str], instead: str) -> None:
    """Raise unless a place has a set of this name and others beside it.

    Raises:
        ValueError: If it is not so; the message says what to do instead with the only set.
        CondensedFormatError: If there are no sets.
    """
    choose(where, sorted(names), name, None)
    if len(names) == 1:
        raise ValueError(f"{name!r} is the only set in {where}, and a card needs one; nothing was changed: {instead}")


def _others(folder: Path, name: str) -> list[str]:
    """Return the names of the sets in a folder without one, sorted."""
    return [other for other in list_sets(folder) if other != name]


def _refuse_strays(folder: Path, name: str) -> None:
    """Raise if there are files that would be taken for rows of a set, but no set that they could be of."""
    if strays := _strays(folder, name, ()):
        raise FileExistsError(
            f"{folder} has no set named {name!r}, but files that would be read with its rows: {listed(strays, 3)}; "
            "move them, or save under another config_name="
        )


def _strays(folder: Path, name: str, files: Collection[str]) -> list[str]:
    """Return the files in the folder of a set that `load_dataset` would read with its own rows."""
    found = (path.relative_to(folder).as_posix() for path in (folder / name).glob("train-*.parquet"))
    return sorted(file for file in found if file not in files)


def is_repository(path_or_repo: str | Path) -> bool:
    """Return whether a text names a repository on the Hub; what exists here comes first, a `Path` is a folder."""
    return is_repository_name(path_or_repo) and not local_path(path_or_repo).exists()


def refuse_revision(path_or_repo: str | Path, revision: str | None) -> None:
    """Raise if a folder is given a revision, which only repositories have, or the revision is no text."""
    check_text("revision", revision)
    if revision is not None and not is_repository(path_or_repo):
        raise ValueError(f"revision={revision!r} is for repositories; {path_or_repo} is a folder of this machine")


def list_sets(folder: Path) -> list[str]:
    """Return the names of the sets in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if is_name(entry.name) and (entry / FACTS).is_file())


def _warn_of_other_data(folder: Path) -> None:
    """Warn if a folder has data but no sets: once it has a set, `load_dataset` reads the sets alone."""
    if list_sets(folder):
        return
    files = (path.relative_to(folder) for depth in _DEPTHS for path in folder.glob(depth))
    data = (
        file
        for file in files
        if file.suffix.lower() in _DATA_ENDINGS
        and not file.parts[0].startswith(".")
        and not (len(file.parts) > 1 and is_of_set(file.name, ()))  # another process may be writing a set
    )
    if (found := next(data, None)) is not None:
        logger.warning(
            "%s has other data, such as %s; once a set is saved there, load_dataset reads sets and no longer these, "
            "not even as an 'imagefolder'. To undo that, remove the folder of the set, and %s or "
            "what this adds to it",
            folder,
            found,
            README,
        )


def _warn_of_pattern(folder: Path) -> None:
    """Warn if `load_dataset` takes the path of a folder for something else."""
    if (match := _PATTERN.search(str(folder.absolute()))) is not None:
        logger.warning(
            "load_dataset takes the %s in %s for a pattern and finds no data there; load_condensed reads the set",
            "'::'" if match[0] == "::" else "brackets",
            folder.absolute(),
        )


def check_level(folder: Path) -> None:
    """Raise if a folder holds no sets but its subfolders do, so one of these is probably meant.

    Raises:
        CondensedFormatError: If that is so; the message names the subfolders.
    """
    if (folder / FACTS).exists() or list_sets(folder):
        return
    if places := sorted({str(facts.parent.parent) for facts in folder.glob(f"*/*/{FACTS}")}):
        names = listed(places, _MAX_PLACES, quoted=False)
        raise CondensedFormatError(f"{folder} has no condensed set, but its subfolders have; pass one: {names}")


def resolve_folder(path_or_repo: str | Path) -> Path:
    """Return a path as an existing folder.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = local_path(path_or_repo)
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else f"looked for {folder.absolute()}"
        raise FileNotFoundError(
            f"no folder {str(path_or_repo)!r} ({reason}); pass a folder that save_condensed wrote, or a Hub repository "
            "'user/name'"
        )
    return folder


def pick(path: str | Path, name: str | None) -> Path:
    """Return the folder of one set: the set of this name, else the card's default, else the only set.

    Raises:
        ValueError: If there is no set of this name, or if there are several and no default.
        FileNotFoundError: If there is no such folder.
        CondensedFormatError: If the folder holds no set, or its card cannot be read.
    """
    folder = resolve_folder(path)
    if (folder / FACTS).exists():
        own = named_folder(folder).name
        if name not in (None, own):
            raise ValueError(f"{folder} is the folder of one set, {own!r}; got name={name!r}")
        return folder
    check_level(folder)
    names = list_sets(folder)
    default = default_config(read_card(folder)) if name is None and len(names) > 1 else None
    return folder / choose(str(folder), names, name, default)


def refuse_no_sets(where: str, names: Collection[str]) -> None:
    """Raise `CondensedFormatError` if a folder or repository, which messages call `where`, has no sets."""
    if not names:
        raise CondensedFormatError(
            f"{where} has no condensed set (no */{FACTS}). Is it a plain dataset? Use datasets.load_dataset, or "
            "datasets.load_from_disk for what save_to_disk wrote."
        )


def choose(where: str, names: list[str], name: str | None, default: str | None) -> str:
    """Return the name of one set: the one that was asked for, else the card's default, else the only one.

    Args:
        where: Folder or repository, for messages.
        names: The sets in it.
        name: The set that was asked for, or None.
        default: The card's default, or None.

    Raises:
        ValueError: If there is no set of this name, or if there are several and no default.
        CondensedFormatError: If there are no sets.
    """
    refuse_no_sets(where, names)
    if name is None and len(names) > 1:
        name = default
        if name not in names:
            raise ValueError(f"{where} holds several condensed sets: {', '.join(names)}; pass one of them as name=")
    if name is None:
        return names[0]
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"{where} has no condensed set named {name!r}. It has: {', '.join(names)}{hint}")
    return name


def read_card(folder: Path, where: str | None = None) -> str | None:
    """Return the text of the card in a folder, or None if there is no card.

    Args:
        folder: The folder.
        where: What messages call the card. Default: its path.

    Raises:
        CondensedFormatError: If the card is too large, or is not UTF-8 text with metadata that can be read.
    """
    if not (folder / README).exists():
        return None
    where = where or str(folder / README)
    try:
        card = read_bytes(folder / README, MAX_README_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CondensedFormatError(f"{where}: not UTF-8 text: {error}") from None
    check_card(card, where)
    return card


def _stored_facts(target: Path, *, damaged_is_none: bool) -> Facts | None:
    """Return the facts of the set in its folder, or None if there is no set."""
    try:
        return read_facts(target) if (target / FACTS).exists() else None
    except CondensedFormatError:
        if damaged_is_none:
            return None
        raise


def refuse_set(folder: Path) -> None:
    """Raise `FileExistsError` if a folder is that of a set: a set inside it would not be found."""
    if (folder / FACTS).exists():
        raise FileExistsError(
            f"{folder} is the folder of one set, and a set inside it would not be found; save to "
            f"{folder.absolute().parent}, the folder of sets"
        )


def _wait_for(file: Path) -> None:
    """Wait until there is a file, for two seconds at most."""
    end = time.monotonic() + 2
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)


def _refuse_place(folder: Path, name: str) -> None:
    """Raise `FileExistsError` if a folder is that of a set, or a new name differs from another one in case only."""
    refuse_set(folder)
    others = list_sets(folder)
    if name not in others and (alike := [other for other in others if other.lower() == name.lower()]):
        raise FileExistsError(
            f"{folder} already holds {alike[0]!r}, which some systems do not tell from {name!r}; pass another "
            "config_name="
        )


def _refuse_replacing(folder: Path, name: str, old: Facts | None, facts: Facts) -> None:
    """Raise unless the same set, or nothing, is stored under a name in a folder."""
    target = folder / name
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    advice = "save to another folder, pass another config_name=, or pass overwrite=True to replace it"
    refuse_replacing(str(folder), name, old, facts, occupied=occupied, advice=advice)


def write_files(
    folder: Path, files: Mapping[str, bytes], *, new: Collection[str] = (), removed: Collection[str] = ()
) -> None:
    """Write files below a folder so that either all are new or all are as they were.

    Only a process that is killed in the moment in which it replaces them can leave some of both; the earlier ones then
    stay in a hidden folder, which the next write names in a warning.

    Args:
        folder: Created if missing.
        files: Content by path below the folder; a file that has this content already is left alone.
        new: Those of the paths under which no other file may be by now.
        removed: Paths below the folder of files that are removed.

    Raises:
        FileExistsError: If there is a file under one of `new`, such as that of a process that was faster; the earlier
            files are untouched.
        OSError: If writing failed; the earlier files are untouched.
    """
    changed = {path: data for path, data in files.items() if path in new or not _holds(folder / path, data)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with tempfile.TemporaryDirectory(prefix=temporary_prefix(folder / _SCRATCH), dir=folder) as scratch:
            written, old = ([Path(scratch, kind, path) for path in changed] for kind in ("new", _BACKUPS))
            for source, data in zip(written, changed.values(), strict=True):
                source.parent.mkdir(parents=True, exist_ok=True)
                _write_through(source, data)
            with ExitStack() as undo:
                for path in removed:
                    _remove(Path(scratch, _BACKUPS, path), folder / path, undo)
                for source, backup, path in zip(written, old, changed, strict=True):
                    if path in new:
                        _add(source, folder / path, undo)
                    else:
                        _replace(source, backup, folder / path, undo)
                undo.pop_all()
    except OSError as error:
        reason = file_in_the_way(error, folder) or error.strerror or error
        raise OSError(error.errno, f"could not change {folder}: {reason}; the earlier files are untouched") from error


def _sweep(folder: Path) -> None:
    """Remove what killed processes left while they wrote below a folder, but no file that was there before."""
    for scratch in abandoned(folder / _SCRATCH):
        if (scratch / _BACKUPS).exists():
            logger.warning(
                "a process was killed while it replaced files in %s; the earlier ones are in %s: move them back, or "
                "remove them",
                folder,
                scratch / _BACKUPS,
            )
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has stored it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _add(source: Path, target: Path, undo: ExitStack) -> None:
    """Move `source` to `target`, or raise `FileExistsError` if there is a file, and register how to undo this."""
    _make_folder_of(target, undo)
    try:
        os.link(source, target)  # whole at once, and never over another file
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(source, target)
    undo.callback(target.unlink, missing_ok=True)


def _make_folder_of(target: Path, undo: ExitStack) -> None:
    """Make the folder of a file, unless it is there, and register how to undo this."""
    if not target.parent.exists():
        target.parent.mkdir(exist_ok=True)
        undo.callback(_remove_if_empty, target.parent)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another process may have written into it
        folder.rmdir()


def _replace(source: Path, backup: Path, target: Path, undo: ExitStack) -> None:
    """Move `source` to `target`, keep the earlier file as `backup`, and register how to undo this."""
    _make_folder_of(target, undo)
    if target.exists():
        backup.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(target, backup)
        shutil.copymode(target, source)
        undo.callback(os.replace, backup, target)
    else:
        undo.callback(target.unlink, missing_ok=True)
    os.replace(source, target)


def _remove(backup: Path, target: Path, undo: ExitStack) -> None:
    """Move a file to `backup`, from where it is removed with the other ones, and register how to undo this."""
    backup.parent.mkdir(parents=True, exist_ok=True)
    os.replace(target, backup)
    undo.callback(os.replace, backup, target)


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a file already has this content."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
