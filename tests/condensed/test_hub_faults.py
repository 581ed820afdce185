"""What goes wrong on the way to the Hub, and what a user sees of it: nothing, or one error that says what to do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants

from hf_condense import list_condensed, load_condensed
from tests.support.condensed_sets import assert_same, make_set

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = make_set(ipc=1), make_set()
BROKEN = {
    "503 twice": {"status": 503, "times": 2},
    "cut": {"cut": 10},
    "no answer": {"lose_answer": True},
}
SENT = {
    "create": "^POST /api/repos/create",
    "look": "^GET .*/revision/",
    "list": "^GET .*/tree/",
    "card": "^GET .*README.md",
    "check": "^POST /api/validate-yaml",
    "announce": "^POST .*/preupload/",
    "batch": "^POST .*/objects/batch",
    "upload": "^PUT /lfs/",
    "verify": "^POST /lfs/.*/verify",
    "commit": "^POST .*/commit/",
}
FETCHED = {
    "look": "^HEAD .*README.md",
    "card": "^GET .*README.md",
    "look at facts": "^HEAD .*condense_config.json",
    "facts": "^GET .*condense_config.json",
    "look at tensors": "^HEAD .*condensed.safetensors",
    "tensors": "^GET /cdn/",
}
AGAIN = "no commit was made; make the same call again later"


@pytest.fixture
def no_pauses(monkeypatch):
    """Tries follow each other at once; the pauses that there would be are returned, in seconds."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def repo(hub) -> str:
    """A repository with one set."""
    name = hub.repo()
    FIRST.push_to_hub(name)
    return name


def commits(repo: str) -> list[str]:
    return [commit.title for commit in HfApi().list_repo_commits(repo, repo_type="dataset")]


def puts(hub) -> list[int]:
    """Return how each upload of a large file ended."""
    return [request.status for request in hub.requests if request.method == "PUT"]


def large_files(repo: str) -> list[str]:
    tree = HfApi().list_repo_tree(repo, recursive=True, repo_type="dataset")
    return [entry.path for entry in tree if getattr(entry, "lfs", None)]


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("match", SENT.values(), ids=SENT)
def test_push_succeeds_despite_one_fault(hub, repo, no_pauses, match, fault):
    hit = hub.fault(match, **fault)
    SECOND.push_to_hub(repo)
    assert hit.times == 0
    assert commits(repo) == ["Upload dm_ipc2", "Upload dm_ipc1", "initial commit"]
    assert_same(load_condensed(repo, "dm_ipc1"), FIRST)
    assert_same(load_condensed(repo, "dm_ipc2"), SECOND)


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("match", FETCHED.values(), ids=FETCHED)
def test_load_succeeds_despite_one_fault(hub, repo, no_pauses, match, fault):
    hit = hub.fault(match, **{**fault, "times": 1})
    assert_same(load_condensed(repo), FIRST)
    assert hit.times == 0


def test_pauses_between_tries_are_short(hub, repo):
    hub.fault(SENT["upload"], times=2, status=503)
    start = time.monotonic()
    SECOND.push_to_hub(repo)
    assert puts(hub).count(503) == 2
    assert time.monotonic() - start < 20
    hub.fault(SENT["upload"], cut=200)
    make_set(seed=1).push_to_hub(repo, overwrite=True)
    assert time.monotonic() - start < 30


def test_slow_answers_only_take_time(hub, repo, monkeypatch):
    hub.fault("", times=1000, delay=0.1)
    SECOND.push_to_hub(repo)
    assert_same(load_condensed(repo, "dm_ipc2"), SECOND)
    hub.server.faults.clear()
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.fault(FETCHED["tensors"], delay=1.0)  # longer than the client waits
    assert_same(load_condensed(repo), FIRST)


@pytest.mark.parametrize("status", [409, 412])
def test_conflict_is_retried(hub, repo, no_pauses, status):
    hub.fault(SENT["commit"], times=3, status=status)
    SECOND.push_to_hub(repo)
    assert [request.status for request in hub.requests if "/commit/" in request.path][-4:] == [status] * 3 + [200]
    hub.fault(SENT["commit"], times=1000, status=status)
    with pytest.raises(ConnectionError, match=f"others keep committing to {repo}; {AGAIN}"):
        make_set(seed=1).push_to_hub(repo, "other")
    assert commits(repo)[0] == "Upload dm_ipc2"


def test_push_behind_a_rival_commit_keeps_both_sets(hub, repo, no_pauses):
    hub.fault(SENT["commit"], call=lambda: make_set(ipc=3).push_to_hub(repo))
    SECOND.push_to_hub(repo)
    assert list_condensed(repo) == ["dm_ipc1", "dm_ipc2", "dm_ipc3"]
    assert 412 in [request.status for request in hub.requests]
    hub.fault(SENT["commit"], call=lambda: make_set(ipc=4).push_to_hub(repo))
    same = make_set(ipc=4).push_to_hub(repo)
    assert (same.oid, commits(repo)[0]) == (HfApi().dataset_info(repo).sha, "Upload dm_ipc4")
    hub.fault(SENT["commit"], call=lambda: make_set(ipc=5, seed=1).push_to_hub(repo))
    with pytest.raises(FileExistsError, match=r"already holds .* under the name 'dm_ipc5'; nothing was changed"):
        make_set(ipc=5).push_to_hub(repo)


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"status": 503}, r"http://.* could not answer \(503\)"), ({"cut": 10}, r"the connection to http://.* failed")],
    ids=["busy", "cut"],
)
def test_interrupted_upload_is_completed_by_the_same_call(hub, repo, no_pauses, fault, message):
    def break_the_rest():
        hub.fault(SENT["upload"], times=1000, **fault)

    del hub.requests[:]
    hub.fault(SENT["upload"], call=break_the_rest)  # the first file arrives
    with pytest.raises(ConnectionError, match=f"{message}.*; {AGAIN}"):
        SECOND.push_to_hub(repo)
    assert sum(no_pauses) < 300  # of several files at a time, so the user waits two minutes
    assert commits(repo)[0] == "Upload dm_ipc1"
    hub.server.faults.clear()
    SECOND.push_to_hub(repo)
    assert puts(hub).count(200) == sum(path.startswith("dm_ipc2/") for path in large_files(repo))
    assert_same(load_condensed(repo, "dm_ipc2"), SECOND)


def test_killed_upload_is_completed_by_the_same_call(hub, repo):
    code = f"from tests.support.condensed_sets import make_set; make_set().push_to_hub({repo!r})"
    hub.fault(SENT["commit"], status=503, call=lambda: started.kill())
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as started:
        assert started.wait() == -signal.SIGKILL
    assert commits(repo)[0] == "Upload dm_ipc1"
    del hub.requests[:]
    SECOND.push_to_hub(repo)
    assert not puts(hub)
    assert_same(load_condensed(repo, "dm_ipc2"), SECOND)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("tok_read", r"no write access to {repo}: check the token \(a read token cannot push\)"),
        ("tok_bob", r"no write access to {repo}: .*create_pr=True"),
        ("tok_nobody", r"pushing to {repo} needs a valid token with write access: run `hf auth login`, set HF_TOKEN"),
        (False, r"pushing to {repo} needs a valid token with write access: run `hf auth login`, set HF_TOKEN"),
    ],
    ids=["read", "stranger", "invalid", "none"],
)
def test_push_with_an_insufficient_token_raises_permission_error(hub, repo, token, message):
    for place in (repo, hub.repo()):
        with pytest.raises(PermissionError, match=message.format(repo=place)):
            SECOND.push_to_hub(place, token=token)
    assert commits(repo)[0] == "Upload dm_ipc1"


def test_pull_request_with_a_read_token_raises_permission_error(hub, repo):
    assert hub.server
    with pytest.raises(PermissionError, match=r"no write access to .*a read token cannot push"):
        SECOND.push_to_hub(repo, token=hub.read_token, create_pr=True)
    assert not HfApi().list_repo_refs(repo, include_pull_requests=True, repo_type="dataset").pull_requests


@pytest.mark.parametrize("step", ["announce", "batch", "upload", "commit"])
@pytest.mark.parametrize(("status", "message"), [(401, "needs a valid token"), (403, "no write access")])
def test_token_revoked_during_a_push_raises_permission_error(hub, repo, step, status, message):
    hub.fault(SENT[step], status=status)
    with pytest.raises(PermissionError, match=message):
        SECOND.push_to_hub(repo)
    assert commits(repo)[0] == "Upload dm_ipc1"


def test_private_repository_is_missing_without_a_suitable_token(hub):
    private = hub.repo()
    FIRST.push_to_hub(private, private=True)
    assert_same(load_condensed(private, token=hub.read_token, cache_dir=hub.home / "mine"), FIRST)
    for token in (False, hub.stranger_token):
        for ask in (load_condensed, list_condensed):
            with pytest.raises(FileNotFoundError, match=rf"{private}.*if the repository is private, log in with"):
                ask(private, token=token)
    with pytest.raises(PermissionError, match=r"the token is not valid; log in again, or check HF_TOKEN"):
        load_condensed(private, token="tok_nobody")


@pytest.mark.parametrize("revision", ["refs/pr/7", "none"])
def test_missing_revision_raises_file_not_found_error(hub, repo, revision):
    with pytest.raises(FileNotFoundError, match=f"{repo} has no revision '{revision}'; pass an existing branch"):
        SECOND.push_to_hub(repo, revision=revision, create_pr=True)
    with pytest.raises(FileNotFoundError, match=f"{repo} has no revision '{revision}'; pass an existing branch"):
        load_condensed(repo, revision=revision)


def test_server_that_is_gone_raises_unless_the_set_is_cached(hub, repo, no_pauses):
    cache = hub.home / "cache"
    load_condensed(repo, cache_dir=cache)
    with hub.stopped():
        with pytest.raises(ConnectionError, match=f"the connection to http://.* failed .*refused.*; {AGAIN}"):
            SECOND.push_to_hub(repo)
        with pytest.raises(ConnectionError, match=r"http://.* cannot be reached: .*refused"):
            list_condensed(repo)
        with pytest.raises(FileNotFoundError, match="cannot be reached, and the set is not among the cached files"):
            load_condensed(repo)
        assert_same(load_condensed(repo, cache_dir=cache), FIRST)
        assert_same(load_condensed(repo, cache_dir=cache, local_files_only=True), FIRST)
    SECOND.push_to_hub(repo)
    assert list_condensed(repo) == ["dm_ipc1", "dm_ipc2"]


def test_server_without_xet_is_used_or_explained(hub, repo, monkeypatch):
    assert hub.server
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    message = ""
    try:
        SECOND.push_to_hub(repo)  # the oldest clients ask the server whether it speaks Xet
        assert_same(load_condensed(repo, "dm_ipc2"), SECOND)
    except ConnectionError as error:
        message = str(error)
        assert_same(load_condensed(repo), FIRST)
    newer = tuple(map(int, huggingface_hub.__version__.split(".")[:2])) >= (2, 0)
    advice = "does not speak Xet, set HF_HUB_DISABLE_XET=1 before Python starts; no commit was made"
    assert advice in message or not newer
