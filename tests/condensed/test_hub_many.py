"""Many processes use one repository at once, and none of them notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi

from hf_condense import list_condensed, load_condensed
from hf_condense.condensed.card.render import config_names, default_config
from tests.support.condensed_sets import assert_same, make_set, raw
from tests.support.hub_crowd import PROCESSES

ROOT = Path(__file__).resolve().parents[2]


def titles(repo: str) -> dict[str, str]:
    """Return hash and title of the commits, newest first, without the one that made the repository."""
    commits = HfApi().list_repo_commits(repo, repo_type="dataset")
    return {commit.commit_id: commit.title for commit in commits[:-1]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the crowd is forked, so that it starts at once")
def test_six_processes_at_once_lose_no_set(hub):
    repo, another = hub.repo(), hub.repo()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.hub_crowd", repo, another]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    crowd = json.loads(process.stdout)
    assert not [answer["error"] for answer in crowd if "error" in answer]

    names = [f"dm_ipc{number}" for number in range(1, PROCESSES + 1)]
    assert list_condensed(repo) == names
    assert titles(repo).keys() == {answer["own"] for answer in crowd}
    assert sorted(titles(repo).values()) == [f"Upload {name}" for name in names]
    card = str(DatasetCard.load(HfApi().hf_hub_download(repo, "README.md", repo_type="dataset")))
    assert sorted(config_names(card)) == names
    assert card.count("default: true") == 1
    first = list(titles(repo).values())[-1].removeprefix("Upload ")
    assert {default_config(card)} == {answer["default"] for answer in crowd} == {first}
    for name in names:
        small = make_set(ipc=int(name.removeprefix("dm_ipc")))
        assert_same(load_condensed(repo, name), small)
        assert raw(load_dataset(repo, name, split="train")) == raw(small)

    assert list(titles(another).values()) == ["Upload dm_ipc2"], "the same set is committed once"
    assert titles(another).keys() == {answer["same"] for answer in crowd}
    assert_same(load_condensed(another), make_set())
