"""Reading condensed sets on the Hub: listing them, and downloading one at a single commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.file_download import REGEX_COMMIT_HASH, repo_folder_name
from huggingface_hub.hf_api import RepoFile

from hf_condense._version import __version__
from hf_condense.base.checks import check_path
from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.paths import local_path
from hf_condense.condensed.card.render import default_config
from hf_condense.condensed.files.facts import Facts, read_facts
from hf_condense.condensed.files.names import FACTS, MAX_README_BYTES, PARQUET, README, TENSORS, is_name
from hf_condense.condensed.files.untrusted import MAX_FILE_BYTES, MAX_JSON_BYTES
from hf_condense.condensed.folder import choose, list_sets, read_card
from hf_condense.condensed.hub.errors import readable_errors, with_retries

MAIN = "main"
_USER_AGENT: dict[str, Any] = {"library_name": "hf_condense", "library_version": __version__}
_PATIENCE = 5.0  # seconds
_MAX_FILES = 50_000  # a repository with more files is not listed
_LIMITS = {README: MAX_README_BYTES, FACTS: MAX_JSON_BYTES}  # bytes; any other file may have MAX_FILE_BYTES
_INCOMPLETE = "the condensed set is incomplete"

logger = logging.getLogger("hf_condense")


@dataclass(frozen=True)
class Repository:
    """A dataset repository at a branch, tag or commit, and where its files are cached.

    Attributes:
        api: The client.
        name: `"user/name"`.
        revision: Branch, tag or commit.
        cache_dir: Where files are cached. None: the Hub's own cache.
        local_files_only: Whether only cached files are used.
        force_download: Whether files are downloaded even if they are cached.
    """

    api: HfApi
    name: str
    revision: str
    cache_dir: Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def fetch(self, path: str, size: int | None = None) -> Path:
        """Return a file's path in the cache, downloaded if it is missing there.

        Args:
            path: Path in the repository.
            size: Its size in bytes, if the caller has it; None: ask the Hub.

        Raises:
            CondensedFormatError: If the file is larger than what is read; it is not downloaded.
        """
        options: dict[str, Any] = {
            "repo_type": "dataset",
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
            "force_download": self.force_download,
            "token": self.api.token,
            **_USER_AGENT,
        }
        # This is the function, not the client's method of the same name, which in huggingface_hub 1.0 ignores dry_run.
        size = size or hf_hub_download(self.name, path, dry_run=True, **options).file_size or 0
        if size > (limit := _LIMITS.get(path.rpartition("/")[2], MAX_FILE_BYTES)):
            raise CondensedFormatError(f"{self.name}/{path}: {size:,} bytes; at most {limit:,} are read")
        return Path(hf_hub_download(self.name, path, **options))

    def require_answer(self) -> None:
        """Ask the Hub for the repository, twice if there is no answer, and pass on the client's error.

        Requests for files are repeated for half a minute where there is no answer, which is too long if the name is
        only that of a folder that is missing.
        """
        with_retries(
            lambda: self.api.dataset_info(self.name, revision=self.revision, timeout=_PATIENCE, expand=["sha"]),
            max_failures=1,
        )

    def is_out_of_reach(self) -> bool:
        """Return whether the Hub does not answer at all, or is not to be asked."""
        try:
            self.require_answer()
        except OfflineModeIsEnabled:
            return True
        except HTTPError as error:
            return not isinstance(error, HfHubHTTPError)
        return False

    def is_cached_commit(self) -> bool:
        """Return whether the revision is a commit whose card is cached; the Hub need not be asked for such files."""
        if not REGEX_COMMIT_HASH.match(self.revision):
            return False
        card = try_to_load_from_cache(self.name, README, self.cache_dir, self.revision, repo_type="dataset")
        return isinstance(card, str)

    def cached_commits(self) -> list[str]:
        """Return the commits of which files are cached, the last one that was added first.

        Those to which a branch or tag is known to point are left out.
        """
        cache = Path(self.cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.name, repo_type="dataset"))
        named = {ref.read_text().strip() for ref in (cache / "refs").rglob("*") if ref.is_file()}
        folders = [folder for folder in (cache / "snapshots").glob("*") if folder.name not in named]
        return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)]

    def require(self, path: str, otherwise: str) -> Path:
        """Download a required file; `otherwise` completes the error message if it is missing."""
        try:
            return self.fetch(path)
        except RemoteEntryNotFoundError:
            raise CondensedFormatError(f"{self.name} has no file {path} at {self.revision}: {otherwise}") from None

    def files(self) -> dict[str, RepoFile]:
        """Return what the Hub says of every file, by path.

        Raises:
            CondensedFormatError: If there are too many files.
        """
        entries = self.api.list_repo_tree(self.name, recursive=True, revision=self.revision, repo_type="dataset")
        items = list(islice(entries, _MAX_FILES + 1))
        if len(items) > _MAX_FILES:
            raise CondensedFormatError(
                f"{self.name} has more than {_MAX_FILES:,} files; a repository of sets has fewer"
            )
        return {entry.path: entry for entry in items if isinstance(entry, RepoFile)}


def download(
    repo_id: str,
    name: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, Facts]:
    """Download the files of one set, all of the same commit, unless they are cached.

    Args:
        repo_id: Dataset repository, `"user/name"`.
        name: Name of the set. None: the default of the card, else the only set.
        revision: Branch, tag or commit. None: the main branch.
        token: Token to read with. None: the one of this machine.
        cache_dir: Where files are cached. None: the Hub's own cache.
        local_files_only: Use the cached card and files only.
        force_download: Download the files even if they are cached.

    Returns:
        The folder of the set, and its facts. A synthetic set's Parquet file, which is not needed, is not downloaded.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: See `readable_errors`.
        ValueError: If there is no set of this name, or if there are several and no default.
        CondensedFormatError: If there are no sets, or a file cannot be used.
    """
    branch = _branch(repo_id, revision, token, cache_dir, local_files_only)
    with readable_errors(repo_id, revision):
        if force_download:
            branch.require_answer()
            branch = replace(branch, force_download=True)
            return with_retries(lambda: _download(branch, name))
        if not (local_files_only or branch.is_cached_commit()) and branch.is_out_of_reach():
            branch = replace(branch, local_files_only=True)
        try:
            return with_retries(lambda: _download(branch, name))
        except LocalEntryNotFoundError:
            if revision is not None or (cached := _cached_set(branch, name)) is None:
                raise
            return cached


def download_all(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> dict[str, tuple[Path, Facts]]:
    """Download the files of every set, all of the same commit, unless they are cached; see `list_names` and `download`.

    Returns:
        The folder of each set and its facts, by name.
    """
    branch = _branch(repo_id, revision, token, cache_dir, local_files_only)
    with readable_errors(repo_id, revision):
        if (folders := _cached_instead(branch, revision is None)) is not None:
            return {name: (folder, read_facts(folder)) for name, folder in folders.items()}
        return with_retries(lambda: _download_all(branch))


def is_out_of_reach(repo_id: str) -> bool:
    """Return whether the Hub does not answer when it is asked for a dataset repository, or is not to be asked."""
    return Repository(client(None), repo_id, MAIN).is_out_of_reach()


def list_names(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> list[str]:
    """Return the names of the sets in a repository, sorted; if the Hub is out of reach, of those that are cached.

    Args:
        repo_id: Dataset repository, `"user/name"`.
        revision: Branch, tag or commit. None: the main branch.
        token: Token to read with. None: the one of this machine.
        cache_dir: Where files are cached. None: the Hub's own cache.
        local_files_only: Look at cached files only.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: See `readable_errors`.
    """
    branch = _branch(repo_id, revision, token, cache_dir, local_files_only)
    with readable_errors(repo_id, revision):
        if (folders := _cached_instead(branch, revision is None)) is not None:
            return list(folders)
        return set_names(branch.files())


def _branch(
    repo_id: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Repository:
    """Return a repository at a branch, tag or commit; None: the main branch."""
    if cache_dir is not None:
        check_path("cache_dir", cache_dir)
    cache = None if cache_dir is None else local_path(cache_dir)
    return Repository(client(token), repo_id, revision or MAIN, cache, local_files_only)


def _download(branch: Repository, name: str | None) -> tuple[Path, Facts]:
    """Download one set at the commit that the card is of."""
    readme = branch.require(README, "it holds no condensed sets; for a plain dataset use datasets.load_dataset")
    commit = replace(branch, revision=readme.parent.name)
    default = default_config(read_card(readme.parent, f"{README} of {branch.name}")) if name is None else None
    if (folder := _facts_folder(commit, name or default)) is None:
        names = list_sets(readme.parent) if commit.local_files_only else set_names(commit.files())
        name = choose(commit.name, names, name, default)
        folder = commit.require(f"{name}/{FACTS}", _INCOMPLETE).parent
    facts = read_facts(folder)
    for file in (TENSORS, PARQUET) if facts.recipe.kind == "coreset" else (TENSORS,):
        commit.require(f"{folder.name}/{file}", _INCOMPLETE)
    return folder, facts


def _cached_set(branch: Repository, name: str | None) -> tuple[Path, Facts] | None:
    """Return a set that is cached of an earlier commit, or None.

    When another set is pushed and loaded, the branch moves to a commit of which only that other set is cached.
    """
    local = replace(branch, local_files_only=True)
    if name is None:
        with suppress(LocalEntryNotFoundError):
            name = default_config(read_card(local.fetch(README).parent, f"{README} of {local.name}"))
    for commit in branch.cached_commits():
        with suppress(LocalEntryNotFoundError):
            folder, facts = _download(replace(local, revision=commit), name)
            logger.warning(
                "%s cannot be reached; the set %r is that of the cached commit %s, and the branch has moved since",
                branch.name,
                folder.name,
                commit,
            )
            return folder, facts
    return None


def _download_all(branch: Repository) -> dict[str, tuple[Path, Facts]]:
    """Download every set, all of the commit that the first one is of."""
    sets: dict[str, tuple[Path, Facts]] = {}
    for name in set_names(branch.files()):
        sets[name] = folder, _ = _download(branch, name)
        branch = replace(branch, revision=folder.parent.name)
    return sets


def _cached_instead(branch: Repository, with_earlier: bool) -> dict[str, Path] | None:
    """Return the folders of the cached sets, by name, if the Hub is not asked or does not answer; None if it answers.

    Args:
        branch: The repository.
        with_earlier: Whether sets that are not cached of its commit may be of other commits, the last ones first.

    Raises:
        LocalEntryNotFoundError: If the Hub is not to be asked, and no set is cached.
        HTTPError, OfflineModeIsEnabled: If it does not answer, and no set is cached; or if it refuses.
    """
    reason: Exception = LocalEntryNotFoundError(f"no set of {branch.name} is cached")
    if not branch.local_files_only:
        try:
            branch.require_answer()
            return None
        except HfHubHTTPError:
            raise
        except (HTTPError, OfflineModeIsEnabled) as error:
            reason = error
    if not (folders := _cached_folders(replace(branch, local_files_only=True), with_earlier)):
        raise reason
    logger.warning("%s is not asked or cannot be reached: it may have other sets than those cached here", branch.name)
    return folders


def _cached_folders(branch: Repository, with_earlier: bool) -> dict[str, Path]:
    """Return the folders of the sets that are cached, by name, sorted; see `_cached_instead`."""
    folders: dict[str, Path] = {}
    for commit in [branch.revision, *(branch.cached_commits() if with_earlier else [])]:
        with suppress(LocalEntryNotFoundError):
            root = replace(branch, revision=commit).fetch(README).parent
            for name in list_sets(root):
                if (root / name / TENSORS).is_file():
                    folders.setdefault(name, root / name)
    return dict(sorted(folders.items()))


def _facts_folder(commit: Repository, name: str | None) -> Path | None:
    """Download the facts of a set and return its folder, or None if there is no such set."""
    if name is None or not is_name(name):
        return None
    try:
        return commit.fetch(f"{name}/{FACTS}").parent
    except RemoteEntryNotFoundError:
        return None


def set_names(files: Mapping[str, RepoFile]) -> list[str]:
    """Return the names of the sets among the files of a repository, sorted."""
    folders = (path.removesuffix(f"/{FACTS}") for path in files if path.endswith(f"/{FACTS}"))
    return sorted(filter(is_name, folders))


def client(token: str | bool | None) -> HfApi:
    """Return a client of the Hub that names this library in its requests."""
    return HfApi(token=token, **_USER_AGENT)
