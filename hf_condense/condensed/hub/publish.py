"""Publishing a condensed set on the Hub: everything in one commit, and nothing that others made is touched."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_condense.base.checks import listed
from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.processes import current_state, in_main_process
from hf_condense.condensed.card.licences import check_licence
from hf_condense.condensed.card.render import config_names, default_config, render, stated_licence
from hf_condense.condensed.files.facts import (
    Facts,
    Sets,
    kept_sets,
    read_sets,
    refuse_damaged,
    refuse_replacing,
    with_licences,
)
from hf_condense.condensed.files.names import (
    FACTS,
    PAGE,
    README,
    TENSORS,
    check_name,
    check_repository,
    is_of_set,
    is_repository_name,
    shard_split,
)
from hf_condense.condensed.files.packing import pack, read_tensors
from hf_condense.condensed.folder import read_card, refuse_removal
from hf_condense.condensed.hub.errors import readable_errors, with_retries
from hf_condense.condensed.hub.repository import MAIN, Repository, client, set_names
from hf_condense.condensed.hub.splits import write_splits
from hf_condense.condensed.page.render import MARK, Shown, render_page
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import Parts
from hf_condense.condensed.tensors import CondensedTensors

Files = Mapping[str, bytes | Path]  # content, or where it is, by path

Value = TypeVar("Value")

logger = logging.getLogger("hf_condense")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_GATEWAY_ERRORS = (500, 502, 504)  # a proxy lost the answer; the Hub may have done what it was asked for
_PULL_REQUEST = "refs/pr/"
# Files that no reader of the repository takes for data.
_HARMLESS = re.compile(r"\.[^/]*|[^/]*\.md|(?:LICEN[CS]E|COPYING|NOTICE)[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class Publication:
    """How a set is published; the options are those of `CondensedDataset.push_to_hub`."""

    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None
    set_default: bool = False
    license: str | None = None
    replace_card: bool = False
    overwrite: bool = False
    extra_splits: Mapping[str, datasets.Dataset] | None = None
    page: bool = False


class _NewSet(NamedTuple):
    """The set that is published.

    Attributes:
        name: Its name in the repository.
        files: Its files by name, with those of the splits beside it.
        facts: Its facts, without the splits beside it.
        tensors: Its exact tensors.
        splits: Sizes of the splits beside it, for the facts. None: the published splits stay.
    """

    name: str
    files: Files
    facts: Facts
    tensors: CondensedTensors
    splits: dict[str, dict[str, int]] | None


class _Contents(NamedTuple):
    """What a repository holds at the commit that is pushed on.

    Attributes:
        repository: The repository at that commit.
        files: What the Hub says of every file, by path.
        card: Text of the card, or None.
        sets: Facts of the condensed sets by name, without damaged ones.
        damaged: Why the other ones cannot be read, by name.
        missing_branch: The branch that is pushed to if it is not there yet; it starts at this commit.
    """

    repository: Repository
    files: dict[str, RepoFile]
    card: str | None
    sets: dict[str, Facts]
    damaged: dict[str, str]
    missing_branch: str | None


def push(parts: Parts, repo_id: str, config_name: str | None, how: Publication) -> CommitInfo:
    """Publish a set in one commit; see `CondensedDataset.push_to_hub`.

    In a distributed run the main process pushes, and every process gets its answer.

    Args:
        parts: The set.
        repo_id: Dataset repository, `"user/name"`; created if missing.
        config_name: Name of the set in the repository. None: that of the recipe.
        how: All other options.

    Raises:
        TypeError: If the splits beside the set are not given by name.
        ValueError: If a name or value is not usable, the set cannot be written exactly, or a private repository is
            asked for and a public one is there.
        FileExistsError: If the repository holds another set of this name, or other data, that may not be touched.
        CondensedFormatError: If the card or another set in the repository cannot be read.
        PermissionError, FileNotFoundError, ConnectionError: See `readable_errors`.
    """
    check_repository(repo_id)
    name = check_name(parts.recipe.config_name if config_name is None else config_name)
    _refuse_commit(how.revision)
    check_licence(how.license)
    if how.extra_splits is not None and not isinstance(how.extra_splits, Mapping):
        raise TypeError(
            "extra_splits should be rows by the name of their split, such as {'test': ds['test']}; got a "
            f"{type(how.extra_splits).__name__}"
        )
    return _in_main_process(lambda: _push(parts, repo_id, name, how))


def _push(parts: Parts, repo_id: str, name: str, how: Publication) -> CommitInfo:
    """Publish a set from this process."""
    api = client(how.token)
    with tempfile.TemporaryDirectory(prefix="hf_condense-") as scratch:
        # What is read is kept here too: a machine that pushes need not let its cache be written to.
        cache, shard_folder = Path(scratch, "cache"), Path(scratch, "splits")
        shard_folder.mkdir()
        files, facts = pack(parts._replace(recipe=_with_licences(parts.recipe, api, cache)))
        splits = write_splits(how.extra_splits or {}, parts.rows.features, shard_folder)
        shards = {path.name: path for path in sorted(shard_folder.iterdir())}
        new_splits = None if how.extra_splits is None else splits
        new = _NewSet(name, {**files, **shards}, facts, parts.tensors, new_splits)
        with readable_errors(repo_id, how.revision, pushing=True):
            repo_id = with_retries(
                lambda: api.create_repo(repo_id, private=how.private, repo_type="dataset", exist_ok=True).repo_id
            )
            if how.private:
                with_retries(lambda: _refuse_public(api, repo_id))
            return with_retries(lambda: _commit(_contents(api, repo_id, how, cache), new, how))


def _refuse_public(api: HfApi, repo_id: str) -> None:
    """Raise if a repository that should be private is public: it was so before, and a push does not change that."""
    if not api.dataset_info(repo_id, expand=["private"]).private:
        raise ValueError(
            f"private=True is for a new repository, and {repo_id} is there and public; nothing was changed: make it "
            f"private at {api.endpoint}/datasets/{repo_id}/settings, push to another one, or leave out private=True"
        )


def _with_licences(recipe: Recipe, api: HfApi, cache: Path) -> Recipe:
    """Return a recipe with the licences that the cards of its sources state, because `load_dataset` drops them."""
    read: dict[tuple[str, str], Any] = {}  # by repository and revision: parts often share them

    def licence_of(source: Mapping[str, Any]) -> Any:
        revision = source.get("revision") or MAIN
        if source.get("license") or not is_repository_name(source.get("name")) or not isinstance(revision, str):
            return None
        key = source["name"], revision
        if key not in read:
            read[key] = _stated_licence(Repository(api, *key), cache)
        return read[key]

    return with_licences(recipe, [licence_of(part.source) for part in recipe.part_recipes])


def _stated_licence(source: Repository, cache: Path) -> Any:
    """Return what the card of a source states, or None if it cannot be read."""
    try:
        if not source.is_cached_commit():
            source = replace(source, cache_dir=cache)
        return stated_licence(read_card(source.fetch(README).parent))
    except (HTTPError, CondensedFormatError, OSError, ValueError) as error:  # private, damaged, ...
        logger.info("the card of the source %s cannot be read: %s", source.name, error)
        return None


def remove(repo_id: str, name: str, *, token: str | bool | None, revision: str | None) -> CommitInfo:
    """Remove a set from a repository in one commit; see `remove_condensed`."""
    _refuse_commit(revision)
    how = Publication(token=token, revision=revision, commit_message=f"Remove {name}", overwrite=True)
    instead = "delete the repository, or the folder of the set and its entries on the card"
    was_there = False

    def attempt(cache: Path) -> CommitInfo:
        nonlocal was_there
        contents = _contents(api, repo_id, how, cache)
        names = set_names(contents.files)
        if was_there and name not in names:  # an earlier attempt has removed it, and its answer was lost
            return _store(contents, [], [], how)
        refuse_removal(repo_id, name, names, instead)
        was_there = True
        return _commit_without(contents, name, how, instead)

    def commit() -> CommitInfo:
        with (
            tempfile.TemporaryDirectory(prefix="hf_condense-") as scratch,
            readable_errors(repo_id, revision, pushing=True),
        ):
            with_retries(lambda: api.dataset_info(repo_id, revision=revision or MAIN))  # no branch is made for this
            return with_retries(lambda: attempt(Path(scratch)))

    api = client(token)
    return _in_main_process(commit)


def _refuse_commit(revision: str | None) -> None:
    """Raise `ValueError` if a revision that should be written to is a commit."""
    if revision is not None and _COMMIT.fullmatch(revision):
        raise ValueError(f"revision should be a branch to push to; got the commit {revision}")


def _commit_without(contents: _Contents, name: str, how: Publication, instead: str) -> CommitInfo:
    """Remove a set from what the repository holds, in one commit; files in its folder that are not its own stay."""
    others = Sets(_without(contents.sets, name), _without(contents.damaged, name))
    sets = kept_sets(contents.repository.name, others, instead)
    default = default_config(contents.card)
    card = render(
        sets,
        contents.card,
        before=contents.sets,
        default=None if default == name else default,
        place=contents.repository.name,
    )
    page = {PAGE: _page(contents, {}, sets, default_config(card))} if _needs_page(contents, how) else {}
    own = contents.sets.get(name)
    splits = () if own is None else own.extra_splits
    stale = [
        path for path in contents.files if path.startswith(f"{name}/") and is_of_set(path[len(name) + 1 :], splits)
    ]
    return _store(contents, _additions({**page, README: card.encode()}), stale, how)


def _without(sets: Mapping[str, Value], name: str) -> dict[str, Value]:
    return {other: value for other, value in sets.items() if other != name}


def _contents(api: HfApi, repo_id: str, how: Publication, cache: Path) -> _Contents:
    """Return what the repository holds now; files of it that are read are kept in a folder of their own.

    Args:
        api: The client.
        repo_id: The repository.
        how: How a set is published or removed.
        cache: The folder.

    Raises:
        FileExistsError: If it holds data that nobody could read any more after the push.
        CondensedFormatError: If its card cannot be read.
    """
    commit, missing_branch = _commit_to_push_on(api, repo_id, how)
    repository = Repository(api, repo_id, commit, cache)
    files = repository.files()
    card = _card(repository, files, how)
    _refuse_foreign(repo_id, files, None if how.replace_card else card)

    def folder_of(name: str) -> Path:
        path = f"{name}/{FACTS}"
        return repository.fetch(path, files[path].size).parent

    sets = read_sets(set_names(files), folder_of)
    return _Contents(repository, files, card, sets.facts, sets.damaged, missing_branch)


def _card(repository: Repository, files: Mapping[str, RepoFile], how: Publication) -> str | None:
    """Return the text of a repository's card, or None if there is none, or a damaged one that is replaced."""
    if README not in files:
        return None
    try:
        return read_card(repository.fetch(README, files[README].size).parent, f"{README} of {repository.name}")
    except CondensedFormatError:
        if how.replace_card:
            return None
        raise


def _commit_to_push_on(api: HfApi, repo_id: str, how: Publication) -> tuple[str, str | None]:
    """Return the latest commit of the branch that is pushed to, or that of main and the branch if it is missing."""
    branch = how.revision or MAIN
    try:
        return str(api.dataset_info(repo_id, revision=branch).sha), None
    except RevisionNotFoundError:
        if branch == MAIN or branch.startswith(_PULL_REQUEST) or how.create_pr:
            raise
        return str(api.dataset_info(repo_id, revision=MAIN).sha), branch


def _refuse_foreign(repo_id: str, files: Mapping[str, RepoFile], card: str | None) -> None:
    """Raise if there is other data whose layout only `datasets` knows: with `configs:` it would no longer be read."""
    if config_names(card):
        return
    sets = tuple(f"{name}/" for name in set_names(files))
    others = [path for path in files if not path.startswith(sets) and path != PAGE]
    foreign = sorted(path for path in others if not _HARMLESS.fullmatch(path))
    if foreign:
        raise FileExistsError(
            f"{repo_id} holds other data ({listed(foreign, 1, quoted=False)}) and no card that lists it under "
            "`configs:`; nothing was changed: list that data there, or keep sets in a repository of their own"
        )


def _commit(contents: _Contents, new: _NewSet, how: Publication) -> CommitInfo:
    """Add a set to what the repository holds, in one commit, or in none if everything is there already."""
    damaged = _without(contents.damaged, new.name) if how.overwrite else contents.damaged
    refuse_damaged(contents.repository.name, damaged, new.name)
    if not how.overwrite:
        _refuse_replacing(contents, new)
    old = contents.sets.get(new.name)
    if new.splits is None:
        facts = new.facts.with_extra_splits_of(old, new.name)
    else:
        facts = new.facts.with_extra_splits(new.splits)
        _warn_of_lost_splits(old, new)
    facts = facts.with_accuracies_of(old).with_licences_of(old)
    if old is not None and facts.repeats(old):
        facts = old
    additions = _additions(_files_to_store(contents, new, facts, how))
    stale = _stale_files(contents, new, facts, {addition.path_in_repo for addition in additions})
    return _store(contents, additions, stale, replace(how, commit_message=how.commit_message or f"Upload {new.name}"))


def _warn_of_lost_splits(old: Facts | None, new: _NewSet) -> None:
    """Warn if a push replaces splits beside the set by others; whoever wants none says so by `{}`."""
    if old is not None and new.splits and (lost := old.extra_splits.keys() - new.splits.keys()):
        logger.warning(
            "the extra splits of %r are replaced, and %s removed; pass all of them in one push to keep them",
            new.name,
            f"{listed(sorted(lost))} {'is' if len(lost) == 1 else 'are'}",
        )


def _store(contents: _Contents, additions: list[CommitOperationAdd], stale: list[str], how: Publication) -> CommitInfo:
    """Commit files that are not there yet, and the removal of stale ones; if there are neither, do nothing.

    A missing branch is made here, after all checks: a push that is refused leaves none behind.
    """
    changed = [addition for addition in additions if not _is_stored(addition, contents.files)]
    repository = contents.repository
    if branch := contents.missing_branch:
        repository.api.create_branch(
            repository.name, branch=branch, revision=repository.revision, repo_type="dataset", exist_ok=True
        )
    if not changed and not stale:
        url = f"{repository.api.endpoint}/datasets/{repository.name}/commit/{repository.revision}"
        return CommitInfo(commit_url=url, commit_message="", commit_description="", oid=repository.revision)
    try:
        return repository.api.create_commit(
            repository.name,
            [*changed, *map(CommitOperationDelete, stale)],
            commit_message=str(how.commit_message),
            commit_description=how.commit_description or "",
            repo_type="dataset",
            revision=how.revision,
            create_pr=how.create_pr,
            parent_commit=repository.revision,
        )
    except HTTPError as error:
        answered = isinstance(error, HfHubHTTPError) and error.response.status_code not in _GATEWAY_ERRORS
        if answered or not how.create_pr:
            raise
        page = f"{repository.api.endpoint}/datasets/{repository.name}/discussions"
        raise ConnectionError(  # not to be retried, because that would open a second pull request
            f"the answer was lost ({error!s:.200}), so the pull request may have been opened; look at {page}"
        ) from None


def _refuse_replacing(contents: _Contents, new: _NewSet) -> None:
    """Raise unless the same set, or nothing, is published under the name."""
    in_card = new.name in config_names(contents.card)
    refuse_replacing(
        contents.repository.name,
        new.name,
        contents.sets.get(new.name),
        new.facts,
        occupied=in_card or any(path.startswith(f"{new.name}/") for path in contents.files),
        advice="nothing was changed: pass another config_name=, or overwrite=True to replace it",
    )


def _files_to_store(contents: _Contents, new: _NewSet, facts: Facts, how: Publication) -> Files:
    """Return what the set's folder, the card and the page, if there is one, should hold, by path."""
    sets = {**contents.sets, new.name: facts}
    card = render(
        sets,
        None if how.replace_card else contents.card,
        before=contents.sets,
        default=new.name if how.set_default else default_config(contents.card),
        license=how.license,
        place=contents.repository.name,
    )
    files = {**new.files, FACTS: facts.to_bytes()}
    own = {new.name: Shown(sets[new.name], new.tensors)}
    page = {PAGE: _page(contents, own, sets, default_config(card))} if _needs_page(contents, how) else {}
    return {**{f"{new.name}/{file}": data for file, data in files.items()}, **page, README: card.encode()}


def _needs_page(contents: _Contents, how: Publication) -> bool:
    """Return whether a page is written: it was asked for, or there is one, which should show the new set, too.

    Raises:
        FileExistsError: If there is a page that somebody else made, and `overwrite` is False.
    """
    if PAGE not in contents.files:
        return how.page
    ours = MARK in contents.repository.fetch(PAGE, contents.files[PAGE].size).read_text("utf-8", errors="replace")
    if how.page and not ours and not how.overwrite:
        raise FileExistsError(
            f"{contents.repository.name} already holds a {PAGE} that hf_condense did not write; nothing was changed: "
            "leave out page=True, or pass overwrite=True to replace it"
        )
    return how.page or ours


def _page(contents: _Contents, own: Mapping[str, Shown], sets: Mapping[str, Facts], default: str | None) -> bytes:
    """Return the page of all sets; the tensors of those that are not at hand, `own`, are fetched."""
    shown = dict(own)
    for name in sets.keys() - shown.keys():
        path = f"{name}/{TENSORS}"
        if path not in contents.files:
            raise CondensedFormatError(f"{contents.repository.name} has no file {path}, so the page cannot show it")
        folder = contents.repository.fetch(path, contents.files[path].size).parent
        shown[name] = Shown(sets[name], read_tensors(folder, sets[name]))
    return render_page(shown, default=default, place=contents.repository.name).encode()


def _additions(files: Files) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, str(data) if isinstance(data, Path) else data) for path, data in files.items()]


def _stale_files(contents: _Contents, new: _NewSet, facts: Facts, written: set[str]) -> list[str]:
    """Return the published shards that must go: of splits that are written anew, or that the set had and has no longer.

    Other shards in the folder of the set, which an owner may have put there, stay.
    """
    old = contents.sets.get(new.name)
    gone = {*(old.extra_splits if old is not None else ())} - {*facts.extra_splits}
    go = {"train", *(new.splits or {}), *gone}
    stale = []
    for path in sorted(contents.files.keys() - written):
        folder, _, file = path.partition("/")
        split = shard_split(file) if folder == new.name else None
        if split in go:
            stale.append(path)
    return stale


def _is_stored(addition: CommitOperationAdd, files: Mapping[str, RepoFile]) -> bool:
    """Return whether a file is published already, by the size and the hash that the Hub says."""
    entry = files.get(addition.path_in_repo)
    if entry is None or entry.size != addition.upload_info.size:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == addition.upload_info.sha256.hex())
    with addition.as_file() as file:
        blob = hashlib.sha1(b"blob %d\0" % entry.size + file.read())  # git names files by this hash
    return bool(entry.blob_id == blob.hexdigest())


def _in_main_process(action: Callable[[], CommitInfo]) -> CommitInfo:
    """Run an action in the main process of a distributed run; the other processes wait and return its answer."""
    if current_state() is None:
        return action()

    def fields() -> dict[str, Any]:  # of the answer, which itself cannot be sent to another process
        commit = action()
        names = ("commit_url", "commit_message", "commit_description", "oid", "pr_url")
        return {name: getattr(commit, name) for name in names}

    return CommitInfo(**in_main_process(fields))
