"""Datasets that commands read: from the Hub, from a folder, or from one that `save_to_disk` wrote."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.paths import local_path, named_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_split(
    name: str, config: str | None, split: str, option: str | None = None, revision: str | None = None
) -> Dataset | DatasetDict:
    """Load one split of a dataset; see `load_splits` and `choose_split`."""
    return choose_split(load_splits(name, config, revision), name, split, option)


def load_splits(name: str, config: str | None, revision: str | None = None) -> Dataset | DatasetDict:
    """Load a dataset from the Hub, from a folder, or from a folder that `save_to_disk` wrote.

    Args:
        name: Id on the Hub, or folder.
        config: One of its configurations, or None; a folder that `save_to_disk` wrote has none.
        revision: Branch, tag or commit of a dataset on the Hub, or None.
    """
    from datasets import load_from_disk

    name = os.path.expanduser(name)
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; pass the folder that it is in, or the id of a dataset on the Hub")
    if not Path(name).exists() and _is_path(name):
        raise ValueError(f"there is no folder or file {name!r}")
    try:
        if is_saved(name):
            loaded: Any = load_from_disk(name)
        else:
            loaded = _load_dataset(name, config, revision)
    except Exception as error:  # Whatever a loader raises, the message should name the dataset.
        missing = "" if Path(name).exists() else f"there is no folder {name!r} here, and "
        raise ValueError(f"cannot load {name!r}: {missing}{error}{_cause(error)}") from error
    whole: Dataset | DatasetDict = loaded
    return whole


def _cause(error: BaseException) -> str:
    """Return what first went wrong in a loader, which the text of the error that `datasets` raises does not say."""
    from datasets.exceptions import DatasetGenerationError

    if not isinstance(error, DatasetGenerationError):
        return ""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    return f" ({type(first).__name__}: {first})"


def choose_split(loaded: Dataset | DatasetDict, name: str, split: str, option: str | None) -> Dataset | DatasetDict:
    """Return one split of a dataset that was loaded; what is a single split is returned as it is.

    `option` is the option of the command line that names the split, if there is one.
    """
    from datasets import DatasetDict

    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        hint = f"; choose one by {option}" if option else ""
        raise ValueError(f"{name!r} has no split {split!r}; its splits: {', '.join(loaded)}{hint}")
    return loaded[split]


def refuse_config(option: str, config: str | None, *places: str) -> None:
    """Refuse a configuration if all datasets that it is for are folders that `save_to_disk` wrote: they have none."""
    if config is not None and places and all(map(is_saved, places)):
        raise click.UsageError(
            f"{option} {config}: save_to_disk wrote {places[0]!r}, so it has no configurations; leave out {option}"
        )


def refuse_revision(option: str, revision: str | None, place: str) -> None:
    """Refuse a revision of a folder: only repositories have some."""
    if revision is not None and local_path(place).exists():
        raise click.UsageError(f"{option} {revision} is for datasets on the Hub; {place!r} is a folder of this machine")


def refuse_split(option: str, split: str, place: str) -> None:
    """Refuse the name of a split for a folder that `Dataset.save_to_disk` wrote: it has no splits."""
    if is_one_split(place):
        raise click.UsageError(f"{option} {split}: {place!r} holds a single split, so there is none to choose")


def is_saved(place: str) -> bool:
    """Return whether a place is a folder that `save_to_disk` wrote."""
    return any((local_path(place) / mark).is_file() for mark in ("dataset_dict.json", "state.json"))


def is_one_split(place: str) -> bool:
    """Return whether a place is a folder that `Dataset.save_to_disk` wrote: then any split asked for is its own."""
    return (local_path(place) / "state.json").is_file()


def _is_path(name: str) -> bool:
    """Return whether a name looks like a path of this machine, and cannot be an id on the Hub or an address."""
    has_levels = name.count("/") > 1 and "://" not in name
    return Path(name).is_absolute() or name.startswith(".") or "\\" in name or has_levels


def _load_dataset(name: str, config: str | None, revision: str | None) -> Any:
    """Call `load_dataset`; if the Hub does not answer, only for what is cached, as it would ask for half a minute."""
    import datasets

    from hf_condense.condensed.hub.repository import is_out_of_reach

    if Path(name).exists() or "://" in name or not is_out_of_reach(name):
        return datasets.load_dataset(name, config, revision=revision)
    offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        return datasets.load_dataset(name, config, revision=revision)
    except ConnectionError as error:
        raise ConnectionError("the Hub cannot be reached, and no such dataset is cached") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def folder_of_set(path_or_repo: str, name: str | None, revision: str | None) -> Path:
    """Return where the files of a set that was just loaded are; those of a repository are kept from then."""
    from hf_condense.condensed.folder import is_repository, pick
    from hf_condense.condensed.hub.repository import download

    if is_repository(path_or_repo):
        return download(path_or_repo, name, revision=revision, local_files_only=True)[0]
    return pick(path_or_repo, name)


def other_sets(path_or_repo: str, shown: Path) -> list[str]:
    """Return the names of the sets in a folder or repository beside the one that is shown, whose folder is given."""
    from hf_condense import list_condensed
    from hf_condense.condensed.folder import is_repository

    # Those of a repository are of the same commit; what is shown may be cached, and the Hub out of reach.
    commit = shown.parent.name if is_repository(path_or_repo) else None
    with suppress(OSError, CondensedFormatError):
        return [name for name in list_condensed(path_or_repo, revision=commit) if name != named_folder(shown).name]
    return []
