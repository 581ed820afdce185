"""Condensed sets on the Hub: fetched at one commit, listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_condense._version import __version__
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed import folder as storage
from hf_condense.condensed.card import render as card
from hf_condense.condensed.facts import FACTS, MAX_README_BYTES, PARQUET, README, TENSORS, read_facts
from hf_condense.condensed.hub.errors import patiently, plain_words
from hf_condense.condensed.untrusted import MAX_FILE_BYTES, MAX_JSON_BYTES

MAIN = "main"
_WHO: dict[str, Any] = {"library_name": "hf_condense", "library_version": __version__}  # for the user agent
_MAX_FILES = 50_000  # of a repository that are looked through
_LIMITS = {README: MAX_README_BYTES, FACTS: MAX_JSON_BYTES}  # bytes; any other file may have MAX_FILE_BYTES


@dataclass(frozen=True)
class Repository:
    """A dataset repository at a branch, tag or commit, and where its files are kept here."""

    api: HfApi
    name: str
    revision: str
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def fetch(self, path: str, size: int | None = None) -> Path:
        """Download a file unless it is kept already; one above the size that is read is refused before."""
        where: dict[str, Any] = {
            "repo_type": "dataset",
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
            "token": self.api.token,
            **_WHO,
        }
        # The function, not the method of the same name: that of huggingface_hub 1.0 forgets about dry_run.
        told = size or hf_hub_download(self.name, path, dry_run=True, **where).file_size or 0
        if told > (limit := _LIMITS.get(path.rpartition("/")[2], MAX_FILE_BYTES)):
            raise CondensedFormatError(f"{self.name}/{path}: {told:,} bytes; at most {limit:,} are read")
        return Path(hf_hub_download(self.name, path, **where))

    def require(self, path: str, otherwise: str) -> Path:
        """Download a file that cannot be missing; `otherwise` says what it means if it is."""
        try:
            return self.fetch(path)
        except RemoteEntryNotFoundError:
            raise CondensedFormatError(f"{self.name} has no file {path} at {self.revision}: {otherwise}") from None

    def files(self) -> dict[str, RepoFile]:
        """Return what is known of every file, by path."""
        entries = self.api.list_repo_tree(self.name, recursive=True, revision=self.revision, repo_type="dataset")
        found = list(islice(entries, _MAX_FILES + 1))
        if len(found) > _MAX_FILES:
            raise CondensedFormatError(f"{self.name} has more than {_MAX_FILES:,} files; that is no repository of sets")
        return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def download(
    repo_id: str,
    name: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch the files of one set, all of one commit, as far as they are not kept here yet.

    Args:
        repo_id: Dataset repository, `"user/name"`.
        name: Which set. None: the default of the card, else the only one there is.
        revision: Branch, tag or commit. None: the main branch.
        token: Token to read with. None: the one of this machine.
        cache_dir: Where files are kept. None: the Hub's own cache.
        local_files_only: Take what is kept, by the card that is kept.

    Returns:
        The folder of the set; a synthetic set's Parquet file, which is not needed, is not in it.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: See `plain_words`.
        ValueError: If there is no set of this name, or several and no default.
        CondensedFormatError: If there is none at all, or a file cannot be used.
    """
    branch = Repository(client(token), repo_id, revision or MAIN, cache_dir, local_files_only)
    with plain_words(repo_id, revision):
        return patiently(lambda: _download(branch, name))


def _download(branch: Repository, name: str | None) -> Path:
    """Fetch one set at the commit that the card is of."""
    readme = branch.require(README, "it holds no condensed sets; for a plain dataset use datasets.load_dataset")
    at = replace(branch, revision=readme.parent.name)
    default = card.default_config(storage.read_card(readme.parent) or "") if name is None else None
    if (folder := _facts_folder(at, name or default)) is None:
        names = storage.list_sets(readme.parent) if at.local_files_only else set_names(at.files())
        chosen = storage.choose(at.name, names, name, default)
        folder = at.require(f"{chosen}/{FACTS}", "the condensed set is not whole").parent
    kind = read_facts(folder)["recipe"]["kind"]
    for file in (TENSORS, PARQUET) if kind == "coreset" else (TENSORS,):
        at.require(f"{folder.name}/{file}", "the condensed set is not whole")
    return folder


def _facts_folder(at: Repository, name: str | None) -> Path | None:
    """Fetch the facts of a set and return its folder, or None if there is no such set."""
    if name is None or not storage.is_name(name):
        return None
    try:
        return at.fetch(f"{name}/{FACTS}").parent
    except RemoteEntryNotFoundError:
        return None


def set_names(files: Mapping[str, RepoFile]) -> list[str]:
    """Return the names of the sets among the files of a repository, sorted."""
    folders = (path.removesuffix(f"/{FACTS}") for path in files if path.endswith(f"/{FACTS}"))
    return sorted(filter(storage.is_name, folders))


def client(token: str | bool | None) -> HfApi:
    """Return a client that says who asks."""
    return HfApi(token=token, **_WHO)
