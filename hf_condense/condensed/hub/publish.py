"""Publishing a condensed set on the Hub: everything in one commit, nothing of others touched."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed import folder as storage
from hf_condense.condensed.card import render as card
from hf_condense.condensed.facts import EXTRA_SPLITS, FACTS, README, extra_splits, read_facts, shard_split, write_facts
from hf_condense.condensed.hub.errors import patiently, plain_words
from hf_condense.condensed.hub.repository import MAIN, Repository, client, set_names
from hf_condense.condensed.hub.splits import write_splits
from hf_condense.condensed.packing import pack
from hf_condense.condensed.rows import Parts
from hf_condense.condensed.untrusted import parse_json

logger = logging.getLogger("hf_condense")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PULL_REQUEST = "refs/pr/"
_HARMLESS = re.compile(r"\.[^/]*|[^/]*\.md|(?:LICEN[CS]E|COPYING|NOTICE)[^/]*", re.IGNORECASE)  # no data, whoever reads


@dataclass(frozen=True)
class Publication:
    """How a set is published; see `CondensedDataset.push_to_hub`."""

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


def push(parts: Parts, repo_id: str, config_name: str | None, how: Publication) -> CommitInfo:
    """Publish a set in one commit; see `CondensedDataset.push_to_hub`.

    Of several processes of a distributed run the main one pushes, and all get its answer.

    Args:
        parts: The set.
        repo_id: Dataset repository, `"user/name"`; created if missing.
        config_name: Name of the set there. None: that of the recipe.
        how: Everything else.

    Raises:
        ValueError: If a name or value is not usable, or the set cannot be written exactly.
        FileExistsError: If another set, or other data, is there and may not be touched.
        CondensedFormatError: If the card or another set there cannot be read.
        PermissionError, FileNotFoundError, ConnectionError: See `plain_words`.
    """
    name = storage.check_name(parts.recipe.config_name if config_name is None else config_name)
    if how.revision is not None and _COMMIT.fullmatch(how.revision):
        raise ValueError(f"revision should be a branch to push to; got the commit {how.revision}")
    return _in_main_process(lambda: _push(parts, repo_id, name, how))


def _push(parts: Parts, repo_id: str, name: str, how: Publication) -> CommitInfo:
    """Publish a set from this process."""
    api = client(how.token)
    files: dict[str, bytes | Path] = {**pack(_licensed(parts, api))}
    with tempfile.TemporaryDirectory(prefix="hf_condense-") as place:
        described = write_splits(how.extra_splits or {}, parts.rows.features, Path(place))
        files |= {path.name: path for path in sorted(Path(place).iterdir())}
        with plain_words(repo_id, how.revision, pushing=True):
            repo_id = patiently(
                lambda: api.create_repo(repo_id, private=how.private, repo_type="dataset", exist_ok=True).repo_id
            )
            return patiently(lambda: _commit(_head(api, repo_id, how), name, files, described, how))


def _licensed(parts: Parts, api: HfApi) -> Parts:
    """Return the set with the licence that the card of its source states, which `load_dataset` does not hand on."""
    source = parts.recipe.source
    if source.get("license") or not _REPO.fullmatch(str(source.get("name"))):
        return parts
    try:
        readme = Repository(api, source["name"], source.get("revision") or MAIN).fetch(README)
        stated = card.stated_licence(storage.read_card(readme.parent) or "")
    except (HTTPError, CondensedFormatError, OSError) as error:  # gone, private, out of reach or damaged
        logger.info("the card of the source %s cannot be read: %s", source["name"], error)
        return parts
    return parts._replace(recipe=replace(parts.recipe, source={**source, "license": stated}))


def _head(api: HfApi, repo_id: str, how: Publication) -> Repository:
    """Return the repository at the commit that is pushed on; a missing branch is made."""
    branch = how.revision or MAIN
    try:
        commit = api.dataset_info(repo_id, revision=branch).sha
    except RevisionNotFoundError:
        if branch.startswith(_PULL_REQUEST) or how.create_pr:
            raise
        api.create_branch(repo_id, branch=branch, repo_type="dataset", exist_ok=True)
        commit = api.dataset_info(repo_id, revision=branch).sha
    return Repository(api, repo_id, str(commit))


def _commit(
    head: Repository, name: str, files: Mapping[str, bytes | Path], described: dict[str, Any], how: Publication
) -> CommitInfo:
    """Add a set to what is there, in one commit, or in none if all is there."""
    there = head.files()
    wanted, facts = _wanted(head, there, name, files, described, how)
    additions = [
        CommitOperationAdd(path, str(data) if isinstance(data, Path) else data) for path, data in wanted.items()
    ]
    changed = [addition for addition in additions if not _same(addition, there.get(addition.path_in_repo))]
    rewritten, kept = {"train", *described}, {"train", *extra_splits(facts)}
    stale = [
        CommitOperationDelete(path)
        for path in sorted(there.keys() - wanted.keys())
        if (split := _split_of(path, name)) is not None and (split in rewritten or split not in kept)
    ]
    message, description = how.commit_message or f"Upload {name}", how.commit_description or ""
    if not changed and not stale:
        url = f"{head.api.endpoint}/datasets/{head.name}/commit/{head.revision}"
        return CommitInfo(commit_url=url, commit_message=message, commit_description=description, oid=head.revision)
    try:
        return head.api.create_commit(
            head.name,
            [*changed, *stale],
            commit_message=message,
            commit_description=description,
            repo_type="dataset",
            revision=how.revision,
            create_pr=how.create_pr,
            parent_commit=head.revision,
        )
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError) or not how.create_pr:
            raise
        page = f"{head.api.endpoint}/datasets/{head.name}/discussions"
        raise ConnectionError(  # not to be tried again: that would open a second one
            f"the answer was lost ({error!s:.200}), so the pull request may have been opened; look at {page}"
        ) from None


def _wanted(
    head: Repository,
    there: Mapping[str, RepoFile],
    name: str,
    files: Mapping[str, bytes | Path],
    described: dict[str, Any],
    how: Publication,
) -> tuple[dict[str, bytes | Path], dict[str, Any]]:
    """Return what the set's folder and the card should hold, by path, and the facts of the set."""
    readme = storage.read_card(head.fetch(README, there[README].size).parent) if README in there else None
    _refuse_foreign(head.name, there, readme)
    sets = _sets(head, there, skipped=name if how.overwrite else None)
    facts = parse_json(bytes(files[FACTS]), FACTS)
    if not how.overwrite:
        _refuse_another(head.name, name, there, readme, sets.get(name), facts)
    if splits := _kept_splits(sets.get(name), facts) if how.extra_splits is None else described:
        facts[EXTRA_SPLITS] = splits
    text = card.render(
        {**sets, name: facts},
        None if how.replace_card else readme,
        default=name if how.set_default else card.default_config(readme or ""),
        license=how.license,
        place=head.name,
    )
    own = {f"{name}/{file}": data for file, data in {**files, FACTS: write_facts(facts)}.items()}
    return {**own, README: text.encode()}, facts


def _sets(head: Repository, there: Mapping[str, RepoFile], skipped: str | None) -> dict[str, dict[str, Any]]:
    """Return the facts of the sets that are there; one that is going to be replaced may be damaged."""
    found = {}
    for name in set_names(there):
        path = f"{name}/{FACTS}"
        try:
            found[name] = read_facts(head.fetch(path, there[path].size).parent)
        except CondensedFormatError:
            if name != skipped:
                raise
    return found


def _refuse_foreign(repo_id: str, there: Mapping[str, RepoFile], readme: str | None) -> None:
    """Raise if other data is there whose layout only `datasets` knows: with `configs:` it would no longer be read."""
    if readme is not None and card.config_names(readme):
        return
    sets = tuple(f"{name}/" for name in set_names(there))
    foreign = sorted(path for path in there if not path.startswith(sets) and not _HARMLESS.fullmatch(path))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise FileExistsError(
            f"{repo_id} holds other data ({foreign[0]}{more}) and no card that lists it under `configs:`; nothing was "
            "changed: push to a repository of its own"
        )


def _refuse_another(
    repo_id: str,
    name: str,
    there: Mapping[str, RepoFile],
    readme: str | None,
    before: dict[str, Any] | None,
    facts: dict[str, Any],
) -> None:
    """Raise unless what is there under a name is the same set, or nothing."""
    if before is not None:
        reason = storage.difference(before, facts)
    else:
        taken = any(path.startswith(f"{name}/") for path in there) or name in card.config_names(readme or "")
        reason = "something else" if taken else None
    if reason:
        raise FileExistsError(
            f"{repo_id} already holds {reason} under the name {name!r}; nothing was changed: pass another config_name= "
            "or overwrite=True to replace it"
        )


def _kept_splits(before: dict[str, Any] | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the splits beside a set that stay as they are: those that still have its columns."""
    if before is None or before["features"] != facts["features"]:
        return {}
    return {name: before[EXTRA_SPLITS][name] for name in extra_splits(before)}


def _split_of(path: str, name: str) -> str | None:
    """Return the split that a file of a set is part of, or None."""
    folder, _, file = path.partition("/")
    return shard_split(file) if folder == name else None


def _same(addition: CommitOperationAdd, there: RepoFile | None) -> bool:
    """Tell whether a file is there already, by what the Hub knows of it."""
    if there is None or there.size != addition.upload_info.size:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == addition.upload_info.sha256.hex())
    with addition.as_file() as file:
        blob = hashlib.sha1(b"blob %d\0" % there.size + file.read())  # how git names a file
    return bool(there.blob_id == blob.hexdigest())


def _in_main_process(action: Callable[[], CommitInfo]) -> CommitInfo:
    """Run an action in the main process of a distributed run; the others wait and get its answer."""
    accelerate = sys.modules.get("accelerate.state")  # who never imported it, which takes long, has no state in it
    if accelerate is None or not accelerate.PartialState._shared_state:
        return action()
    from accelerate.utils import broadcast_object_list

    state = accelerate.PartialState()
    known: list[Any] = [None, "it was stopped"]  # the fields of the answer, what went wrong
    try:
        if state.is_main_process:
            made = action()
            fields = ("commit_url", "commit_message", "commit_description", "oid", "pr_url")
            known = [{name: getattr(made, name) for name in fields}, None]
    except Exception as error:
        known = [None, str(error)]
        raise
    finally:
        known = broadcast_object_list(known)
    if known[1] is not None:
        raise RuntimeError(f"the main process could not push: {known[1]}")
    return CommitInfo(**known[0])
