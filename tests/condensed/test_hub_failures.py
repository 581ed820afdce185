"""Failures that another try does not mend: endless conflicts, lost answers, missing tokens."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi

from hf_condense import load_condensed
from hf_condense.condensed.hub import errors as hub_errors
from tests.support.condensed_sets import make_set


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Nobody else is at work on this Hub, so nothing is won by waiting."""
    monkeypatch.setattr(hub_errors, "_LONGEST_PAUSE", 0.01)


def titles(repo: str) -> list[str]:
    return [commit.title for commit in HfApi().list_repo_commits(repo, repo_type="dataset")]


@pytest.mark.parametrize("how", [{"cut": 1}, {"lose_answer": True}], ids=["cut", "lost"])
def test_lost_answer_to_a_pull_request_raises_and_opens_no_second_one(hub, how):
    repo = hub.repo()
    make_set(ipc=1).push_to_hub(repo)
    fault = hub.fault(r"^POST .*/commit/", **how)
    with pytest.raises(ConnectionError, match=r"may have been opened; look at .*/discussions"):
        make_set().push_to_hub(repo, create_pr=True)
    assert fault.times == 0
    refs = HfApi().list_repo_refs(repo, repo_type="dataset", include_pull_requests=True)
    assert len(refs.pull_requests) == ("lose_answer" in how)


@pytest.mark.parametrize("status", [409, 412])
def test_endless_conflicts_raise_connection_error_and_change_nothing(hub, status, monkeypatch):
    monkeypatch.setattr(hub_errors, "_MAX_CONFLICTS", 3)
    repo = hub.repo()
    fault = hub.fault(r"^POST .*/commit/", times=100, status=status)
    with pytest.raises(ConnectionError, match=f"others keep committing to {repo}; no commit was made; make the"):
        make_set().push_to_hub(repo)
    assert 100 - fault.times == 4
    fault.times = 0
    make_set().push_to_hub(repo)
    assert titles(repo) == ["Upload dm_ipc2", "initial commit"]


def test_server_that_stays_busy_raises_connection_error_after_five_tries(hub):
    repo = hub.repo()
    fault = hub.fault(r"^POST .*/commit/", times=100, status=503)
    with pytest.raises(
        ConnectionError, match=rf"{hub.url} could not answer \(503\); no commit was made; make the same call again"
    ):
        make_set().push_to_hub(repo)
    assert 100 - fault.times == 5
    assert titles(repo) == ["initial commit"]


def test_push_without_a_token_raises_permission_error(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="no token was found: run `hf auth login`, or set HF_TOKEN"):
        make_set().push_to_hub(hub.repo(), token=True)
    with pytest.raises(PermissionError, match="needs a valid token with write access"):
        make_set().push_to_hub(hub.repo())


def test_gated_repository_raises_permission_error(hub):
    make_set().push_to_hub(repo := hub.repo())
    hub.fault(r"README\.md", times=9, status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(PermissionError, match=f"{repo} is gated: log in, and ask for access on its page {hub.url}"):
        load_condensed(repo)
