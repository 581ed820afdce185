"""The stand-in Hub answers the real clients as the Hub does; without this, the tests of our own code mean nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
    whoami,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.condensed_sets import raw, real_rows


@pytest.fixture
def api(hub):
    """A client that writes as alice."""
    return HfApi()


@pytest.fixture
def repo(hub, api) -> str:
    """A public repository with a small file and a large one."""
    name = hub.repo()
    api.create_repo(name, repo_type="dataset")
    commit(api, name, {"notes.txt": b"one", "a/b/weights.bin": bytes(range(256)) * 8})
    return name


def commit(api: HfApi, repo: str, files: dict[str, bytes], **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="change", repo_type="dataset", **options)


def content(repo: str, path: str, **options) -> bytes:
    return Path(hf_hub_download(repo, path, repo_type="dataset", **options)).read_bytes()


def commits(api: HfApi, repo: str, **options) -> int:
    return len(api.list_repo_commits(repo, repo_type="dataset", **options))


def status(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


class TestRepositories:
    def test_token_tells_who_asks(self, hub):
        assert whoami()["name"] == "alice"
        assert whoami(token=hub.stranger_token)["name"] == "bob"
        assert whoami(token=hub.read_token)["auth"]["accessToken"]["role"] == "read"
        with pytest.raises(HfHubHTTPError) as refused:
            whoami(token="tok_nobody")
        assert status(refused) == 401

    def test_second_repository_of_a_name_is_refused(self, hub, api):
        name = hub.repo()
        assert api.create_repo(name, repo_type="dataset").repo_id == name
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_repo(name, repo_type="dataset")
        assert status(refused) == 409
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        assert api.create_repo(name.split("/")[1] + "x", repo_type="dataset").repo_id == name + "x"
        assert api.create_repo(hub.repo(owner="lab"), repo_type="dataset").repo_id.startswith("lab/")
        api.delete_repo(name, repo_type="dataset")
        with pytest.raises(RepositoryNotFoundError):
            api.dataset_info(name)

    def test_read_tokens_strangers_and_the_anonymous_cannot_write(self, hub, repo):
        for token, expected in ((hub.read_token, 403), (hub.stranger_token, 403), (False, 401)):
            writer = HfApi(token=token)
            with pytest.raises(HfHubHTTPError) as refused:
                writer.create_repo(hub.repo(), repo_type="dataset")
            assert status(refused) == expected
            with pytest.raises(HfHubHTTPError) as refused:
                commit(writer, repo, {"notes.txt": b"two"})
            assert status(refused) == expected
        assert content(repo, "notes.txt", token=False) == b"one"

    def test_private_repository_is_missing_for_others(self, hub, api):
        name = hub.repo()
        api.create_repo(name, repo_type="dataset", private=True)
        commit(api, name, {"notes.txt": b"secret"})
        assert api.dataset_info(name).private
        assert content(name, "notes.txt", token=hub.read_token) == b"secret"
        for token in (False, hub.stranger_token):
            with pytest.raises(RepositoryNotFoundError):
                HfApi().dataset_info(name, token=token)
            with pytest.raises(RepositoryNotFoundError):
                hf_hub_download(name, "notes.txt", repo_type="dataset", token=token, cache_dir=hub.home / "other")


class TestCommits:
    def test_files_come_back_and_unchanged_ones_are_not_sent_again(self, hub, api, repo):
        assert content(repo, "notes.txt") == b"one"
        assert content(repo, "a/b/weights.bin") == bytes(range(256)) * 8
        before = commits(api, repo)
        commit(api, repo, {"notes.txt": b"one", "a/b/weights.bin": bytes(range(256)) * 8})
        assert commits(api, repo) == before
        del hub.requests[:]
        commit(api, repo, {"notes.txt": b"two", "c/weights.bin": bytes(range(256)) * 8})
        assert commits(api, repo) == before + 1
        assert "PUT" not in {request.method for request in hub.requests}

    def test_files_and_folders_are_deleted(self, api, repo):
        gone = [CommitOperationDelete("notes.txt"), CommitOperationDelete("a/", is_folder=True)]
        api.create_commit(repo, [*gone, CommitOperationAdd("new.txt", b"")], commit_message="tidy", repo_type="dataset")
        assert [path for path in api.list_repo_files(repo, repo_type="dataset") if path[0] != "."] == ["new.txt"]
        with pytest.raises(HfHubHTTPError) as refused:
            api.delete_file("none.txt", repo, repo_type="dataset")
        assert status(refused) == 404

    def test_commit_on_an_old_state_is_refused(self, api, repo):
        parent = api.dataset_info(repo).sha
        commit(api, repo, {"notes.txt": b"two"}, parent_commit=parent)
        with pytest.raises(HfHubHTTPError) as refused:
            commit(api, repo, {"notes.txt": b"three"}, parent_commit=parent)
        assert status(refused) == 412
        assert content(repo, "notes.txt") == b"two"

    def test_card_that_the_hub_would_refuse_is_refused(self, hub, api, repo):
        assert hub.server
        for card in ("---\nlicense: [mit\n---\n", "---\nlicense: The MIT License\n---\n"):
            with pytest.raises((ValueError, BadRequestError), match=r"YAML|'license' cannot be"):
                commit(api, repo, {"README.md": card.encode()})
        commit(api, repo, {"README.md": b"---\nlicense: mit\n---\nText"})
        assert DatasetCard.load(repo).data.license == "mit"


class TestRevisions:
    def test_branch_tag_and_hash_name_the_same_commit(self, api, repo):
        first = api.dataset_info(repo).sha
        api.create_tag(repo, tag="v1", repo_type="dataset")
        api.create_branch(repo, branch="try/out", repo_type="dataset")
        commit(api, repo, {"notes.txt": b"branch"}, revision="try/out")
        commit(api, repo, {"notes.txt": b"main"})
        expected = {"v1": b"one", first: b"one", first[:9]: b"one", "try/out": b"branch", "main": b"main"}
        assert {revision: content(repo, "notes.txt", revision=revision) for revision in expected} == expected
        refs = api.list_repo_refs(repo, repo_type="dataset")
        assert {ref.name for ref in refs.branches} == {"main", "try/out"}
        assert {ref.name for ref in refs.tags} == {"v1"}
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_branch(repo, branch="try/out", repo_type="dataset")
        assert status(refused) == 409
        for ask in (api.dataset_info, lambda name, revision: content(name, "notes.txt", revision=revision)):
            with pytest.raises(RevisionNotFoundError):
                ask(repo, revision="none")

    def test_read_token_cannot_open_a_pull_request(self, hub, repo):
        assert hub.server
        for propose in (
            lambda api: api.create_pull_request(repo, title="mine", repo_type="dataset"),
            lambda api: commit(api, repo, {"more.bin": b"more"}, create_pr=True),
        ):
            with pytest.raises(HfHubHTTPError) as refused:
                propose(HfApi(token=hub.read_token))
            assert status(refused) == 403

    def test_pull_request_of_a_stranger_is_merged_by_the_owner(self, hub, api, repo):
        proposed = commit(HfApi(token=hub.stranger_token), repo, {"more.bin": b"more"}, create_pr=True)
        assert (proposed.pr_num, proposed.pr_revision) == (1, "refs/pr/1")
        assert content(repo, "more.bin", revision="refs/pr/1") == b"more"
        with pytest.raises(EntryNotFoundError):
            content(repo, "more.bin")
        api.merge_pull_request(repo, 1, repo_type="dataset")
        assert (content(repo, "more.bin"), content(repo, "notes.txt")) == (b"more", b"one")
        assert api.get_discussion_details(repo, 1, repo_type="dataset").status == "merged"

    def test_merge_keeps_later_commits(self, hub, api, repo):
        assert hub.server
        commit(api, repo, {"more.bin": b"more"}, create_pr=True)
        commit(api, repo, {"notes.txt": b"two"})
        api.merge_pull_request(repo, 1, repo_type="dataset")
        assert (content(repo, "more.bin"), content(repo, "notes.txt")) == (b"more", b"two")


class TestReading:
    def test_long_lists_are_split_into_pages(self, hub, api, repo):
        commit(api, repo, {f"many/{i:02}.txt": b"%d" % i for i in range(9)})
        hub.server.page_size = 2
        files = {entry.path for entry in api.list_repo_tree(repo, recursive=True, repo_type="dataset")}
        assert {"a", "a/b", "a/b/weights.bin", "many", "many/08.txt", "notes.txt"} <= files
        assert len(list(api.list_repo_tree(repo, "many", repo_type="dataset"))) == 9
        assert sum("cursor" in request.path for request in hub.requests) > 5
        (info,) = api.get_paths_info(repo, ["a/b/weights.bin", "none"], repo_type="dataset")
        assert (info.size, info.lfs.size) == (2048, 2048)
        with pytest.raises(EntryNotFoundError):
            list(api.list_repo_tree(repo, "none", repo_type="dataset"))

    def test_range_request_returns_part_of_a_file(self, hub, repo):
        files = HfFileSystem()
        weights = f"datasets/{repo}/a/b/weights.bin"
        assert files.cat_file(weights, start=3, end=6) == bytes([3, 4, 5])
        with files.open(weights, block_size=256) as opened:
            opened.seek(-2, 2)
            assert opened.read() == bytes([254, 255])
        assert files.glob(f"datasets/{repo}/**/*.bin") == [weights]

    def test_snapshot_fetches_each_file_once(self, hub, repo):
        folder = snapshot_download(repo, repo_type="dataset")
        assert (Path(folder) / "a/b/weights.bin").stat().st_size == 2048
        del hub.requests[:]
        assert snapshot_download(repo, repo_type="dataset") == folder
        assert not [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
        with hub.stopped():
            assert snapshot_download(repo, repo_type="dataset", local_files_only=True) == folder
            with pytest.raises(LocalEntryNotFoundError):
                snapshot_download(hub.repo(), repo_type="dataset", local_files_only=True)
        assert snapshot_download(repo, repo_type="dataset") == folder


class TestDatasets:
    @pytest.fixture
    def rows(self) -> datasets.Dataset:
        return real_rows().select_columns(["image", "label", "note"])

    def test_pushed_rows_are_loaded_again(self, hub, api, rows):
        name = hub.repo()
        rows.push_to_hub(name, "small")
        before = commits(api, name)
        rows.select(range(4)).push_to_hub(name, "smaller")
        assert commits(api, name) == before + 1
        assert raw(datasets.load_dataset(name, "small", split="train")) == raw(rows)
        streamed = datasets.load_dataset(name, "smaller", split="train", streaming=True)
        assert [row["note"] for row in streamed] == rows["note"][:4]
        with pytest.raises(ValueError, match=r"none.*small.*smaller"):
            datasets.load_dataset(name, "none")

    def test_push_to_a_branch_of_a_private_repository_leaves_main_alone(self, hub, rows):
        name = hub.repo()
        rows.push_to_hub(name, private=True)
        rows.select(range(2)).push_to_hub(name, revision="half")
        with pytest.raises(datasets.exceptions.DatasetNotFoundError):
            datasets.load_dataset(name, token=hub.stranger_token)
        assert len(datasets.load_dataset(name, split="train", revision="half")) == 2
        assert len(datasets.load_dataset(name, split="train")) == len(rows)

    def test_another_process_finds_the_server_by_the_environment(self, hub, rows):
        name = hub.repo()
        rows.push_to_hub(name)
        code = f"import datasets; print(datasets.load_dataset({name!r}, split='train', streaming=True).features.keys())"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "'image', 'label', 'note'" in run.stdout, run.stderr


class TestFaults:
    def test_upload_succeeds_after_two_refusals(self, hub, api, repo):
        fault = hub.fault("^PUT /lfs/", times=2, status=503)
        commit(api, repo, {"late.bin": b"late"})
        assert fault.times == 0
        assert [request.status for request in hub.requests if request.method == "PUT"][-3:] == [503, 503, 200]
        assert content(repo, "late.bin") == b"late"

    def test_download_resumes_where_it_was_cut(self, hub, api, repo):
        data = bytes(range(256)) * 50_000  # more than one read of the client
        commit(api, repo, {"big.bin": data})
        hub.fault("^GET /cdn/", cut=11_000_000)
        with contextlib.suppress(HTTPError):  # older clients need a second call
            content(repo, "big.bin")
        assert content(repo, "big.bin") == data
        assert [request.status for request in hub.requests if request.path.startswith("/cdn/")][-2:] == [200, 206]

    @pytest.mark.parametrize("cut", [0, 1000, 10_000])
    def test_cut_upload_stores_nothing(self, hub, api, repo, cut):
        hub.fault("^POST .*/commit/", cut=cut)
        before = commits(api, repo)
        with pytest.raises(Exception, match=r"(?i)disconnect|reset|broken pipe|closed"):
            commit(api, repo, {"notes.txt": bytes(3000)})
        assert commits(api, repo) == before
        commit(api, repo, {"notes.txt": bytes(3000)})

    def test_commit_whose_answer_is_lost_is_stored(self, hub, api, repo):
        hub.fault("^POST .*/commit/", lose_answer=True)
        before = commits(api, repo)
        with pytest.raises(Exception, match=r"(?i)disconnect|reset"):
            commit(api, repo, {"notes.txt": b"two"})
        assert commits(api, repo) == before + 1

    def test_faults_answer_with_their_status_delay_and_call(self, hub, api, repo):
        for code in (401, 403, 404, 409, 412):
            hub.fault("^POST .*/commit/", status=code)
            with pytest.raises(HfHubHTTPError) as refused:
                commit(api, repo, {"notes.txt": b"two"})
            assert status(refused) == code
        hub.fault("^POST .*/commit/", call=lambda: commit(HfApi(), repo, {"notes.txt": b"rival"}))
        with pytest.raises(HfHubHTTPError) as refused:
            commit(api, repo, {"notes.txt": b"two"}, parent_commit=api.dataset_info(repo).sha)
        assert status(refused) == 412
        hub.fault("^GET /api/whoami", delay=0.3)
        start = time.monotonic()
        whoami()
        assert time.monotonic() - start >= 0.3

    def test_stopped_server_refuses_connections_and_comes_back(self, hub, api, repo):
        assert whoami()["name"] == "alice"
        with hub.stopped(), pytest.raises(Exception, match=r"(?i)refused|connect|reset"):
            whoami()
        assert whoami()["name"] == "alice"
