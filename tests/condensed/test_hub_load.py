"""A set is loaded from the Hub exactly, at one commit, and from the cache when there is no connection."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hf_condense import CondensedFormatError, list_condensed, load_condensed, write_page
from tests.support.condensed_sets import assert_same, make_coreset, make_set

ROOT = Path(__file__).resolve().parents[2]


def commit(repo: str, files: dict[str, bytes], gone: tuple[str, ...] = ()) -> str:
    """Commit files as anyone could, without hf_condense."""
    HfApi().create_repo(repo, repo_type="dataset", exist_ok=True)
    added = [CommitOperationAdd(path, data) for path, data in files.items()]
    operations = [*added, *map(CommitOperationDelete, gone)]
    return HfApi().create_commit(repo, operations, commit_message="other", repo_type="dataset").oid


def downloads(hub) -> set[str]:
    """Return the files that a client asked for at a commit, and so did not have."""
    matches = (re.search(r"/resolve/[0-9a-f]{40}/(.+)", request.path) for request in hub.requests)
    return {match[1] for match in matches if match}


@pytest.fixture
def pets(hub) -> str:
    """A repository with a synthetic set, its default, and a coreset."""
    repo = hub.repo()
    make_set(soft=True, student=True).push_to_hub(repo)
    make_coreset().push_to_hub(repo)
    return repo


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_and_recipe_come_back_exactly(hub, factor, channels):
    small, repo = make_set(factor=factor, image_shape=[channels, 8, 6], pixel_range="free", zca=True), hub.repo()
    small.push_to_hub(repo)
    assert_same(load_condensed(repo), small)


def test_set_is_loaded_by_name_by_default_or_as_the_only_one(hub, pets):
    assert_same(load_condensed(pets), make_set(soft=True, student=True))
    assert_same(load_condensed(pets, "herding_ipc2"), make_coreset())
    commit(pets, {"README.md": b"# A card without metadata\n"})
    with pytest.raises(ValueError, match=r"several condensed sets: dm_ipc2, herding_ipc2; pass one of them as name="):
        load_condensed(pets)
    assert_same(load_condensed(pets, "herding_ipc2"), make_coreset())
    commit(pets, {}, gone=("herding_ipc2/",))
    assert_same(load_condensed(pets), make_set(soft=True, student=True))


@pytest.mark.parametrize("name", ["dm_ipc3", "../dm_ipc2", "dm_ipc2/", ".", "/etc", "", "a" * 65])
def test_unknown_name_raises_value_error(pets, name):
    with pytest.raises(ValueError, match=r"has no condensed set named .* It has: dm_ipc2, herding_ipc2"):
        load_condensed(pets, name)


def test_only_the_needed_files_are_downloaded(hub, pets, tmp_path):
    del hub.requests[:]
    load_condensed(pets, cache_dir=tmp_path)
    assert downloads(hub) == {"dm_ipc2/condense_config.json", "dm_ipc2/condensed.safetensors"}
    del hub.requests[:]
    load_condensed(pets, cache_dir=tmp_path)
    assert downloads(hub) == set()
    load_condensed(pets, "herding_ipc2", cache_dir=tmp_path)
    files = ("condense_config.json", "condensed.safetensors", "train-00000-of-00001.parquet")
    assert downloads(hub) == {f"herding_ipc2/{file}" for file in files}


def test_tilde_stands_for_the_home_folder_in_cache_dir(hub, pets, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    load_condensed(pets, cache_dir="~/kept")
    assert list((tmp_path / "kept").rglob("condensed.safetensors"))


def test_all_files_are_of_one_commit(hub, pets):
    fault = hub.fault(r"^GET .*condense_config\.json", call=lambda: make_set(seed=1).push_to_hub(pets, overwrite=True))
    assert_same(load_condensed(pets, cache_dir=hub.home / "other"), make_set(soft=True, student=True))
    assert fault.times == 0
    assert_same(load_condensed(pets), make_set(seed=1))


def test_pinned_revision_always_loads_the_same_set(hub):
    repo = hub.repo()
    first = make_set().push_to_hub(repo).oid
    make_set(seed=1).push_to_hub(repo, overwrite=True)
    HfApi().create_tag(repo, tag="v1", revision=first, repo_type="dataset")
    for revision in (first, "v1"):
        assert_same(load_condensed(repo, revision=revision), make_set())
    with pytest.raises(FileNotFoundError, match="has no revision 'v2'; pass an existing branch, tag or commit"):
        load_condensed(repo, revision="v2")


def test_cached_card_decides_without_a_connection(hub, pets):
    load_condensed(pets)
    load_condensed(pets, "herding_ipc2")  # cached later, and not the default
    with hub.stopped():
        assert_same(load_condensed(pets), make_set(soft=True, student=True))
        assert_same(load_condensed(pets, "herding_ipc2"), make_coreset())
    make_set(seed=1).push_to_hub(pets, overwrite=True)
    assert_same(load_condensed(pets, local_files_only=True), make_set(soft=True, student=True))
    assert_same(load_condensed(pets), make_set(seed=1))
    assert_same(load_condensed(pets, local_files_only=True), make_set(seed=1))


def test_set_that_is_not_cached_raises_without_a_connection(hub, pets):
    nothing = (
        f"no folder is called '{pets}', the repository {pets} cannot be reached, and the set is not among the cached"
    )
    with pytest.raises(FileNotFoundError, match=nothing):
        load_condensed(pets, local_files_only=True, cache_dir=hub.home / "other")
    load_condensed(pets, cache_dir=hub.home / "other")
    with pytest.raises(FileNotFoundError, match=nothing):
        load_condensed(pets, "herding_ipc2", local_files_only=True, cache_dir=hub.home / "other")


def test_offline_environment_loads_only_cached_sets(hub, pets, tmp_path):
    load_condensed(pets)
    code = f"""
from hf_condense import list_condensed, load_condensed, write_page
print(load_condensed({pets!r}).recipe.config_name, list_condensed({pets!r}))
print(write_page({pets!r}, {str(tmp_path / "page.html")!r}).stat().st_size > 1000)
for ask in (lambda: load_condensed({pets!r}, "herding_ipc2"), lambda: list_condensed("alice/nothing")):
    try:
        ask()
    except OSError as error:
        print(type(error).__name__, error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    *shown, second, third = process.stdout.splitlines()
    assert shown == ["dm_ipc2 ['dm_ipc2']", "True"]
    nothing = (
        f"FileNotFoundError no folder is called '{pets}', the repository {pets} cannot be reached, and the set is not"
    )
    assert second.startswith(nothing)
    assert third.startswith(
        "ConnectionError no folder is called 'alice/nothing', and the Hub is not asked while HF_HUB_OFFLINE"
    )


OFFLINE = {
    "stopped": lambda hub: (hub.stopped(), {}),
    "local_files_only": lambda hub: (contextlib.nullcontext(), {"local_files_only": True}),
}


@pytest.mark.parametrize("offline", OFFLINE.values(), ids=OFFLINE.keys())
@pytest.mark.parametrize("first", [make_set, make_coreset], ids=["synthetic", "coreset"])
def test_set_of_an_earlier_commit_is_loaded_without_a_connection(hub, caplog, offline, first):
    repo, name = hub.repo(), first().recipe.config_name
    commit_of_first = first().push_to_hub(repo).oid
    load_condensed(repo)
    make_set(ipc=1).push_to_hub(repo)
    load_condensed(repo, "dm_ipc1")
    connection, options = offline(hub)
    with connection:
        for chosen in (name, None):  # the first set is the default of the card as well
            caplog.clear()
            assert_same(load_condensed(repo, chosen, **options), first())
            assert f"the set {name!r} is that of the cached commit {commit_of_first}" in caplog.text
        caplog.clear()
        assert_same(load_condensed(repo, "dm_ipc1", **options), make_set(ipc=1))
        assert not caplog.records
        for unknown, revision in (("dm_ipc7", None), (name, "main"), (name, "0" * 40)):
            with pytest.raises(FileNotFoundError, match="is not among the cached files"):
                load_condensed(repo, unknown, revision=revision, **options)


def test_the_last_cached_version_of_a_set_is_loaded_without_a_connection(hub):
    repo = hub.repo()
    for seed in (0, 1):
        make_set(seed=seed).push_to_hub(repo, overwrite=True)
        load_condensed(repo)
    HfApi().create_branch(repo, branch="other", repo_type="dataset")
    make_set(seed=2).push_to_hub(repo, overwrite=True, revision="other")
    load_condensed(repo, revision="other")
    make_set(ipc=1).push_to_hub(repo)
    load_condensed(repo, "dm_ipc1")
    assert_same(load_condensed(repo, "dm_ipc2", local_files_only=True), make_set(seed=1))


@pytest.mark.parametrize("offline", OFFLINE.values(), ids=OFFLINE.keys())
def test_sets_that_are_cached_are_listed_and_shown_without_a_connection(hub, tmp_path, caplog, offline):
    repo, cache, file = hub.repo(), tmp_path / "cache", tmp_path / "page.html"
    make_set().push_to_hub(repo)
    make_coreset().push_to_hub(repo)
    load_condensed(repo, cache_dir=cache)
    connection, options = offline(hub)
    options = {**options, "cache_dir": cache}
    with connection:
        assert list_condensed(repo, **options) == ["dm_ipc2"]
        assert f"{repo} is not asked or cannot be reached: it may have other sets than those" in caplog.text
    assert list_condensed(repo, cache_dir=cache) == ["dm_ipc2", "herding_ipc2"]
    write_page(repo, file, cache_dir=cache)
    online = file.read_text("utf-8")
    make_set(ipc=1).push_to_hub(repo)
    load_condensed(repo, "dm_ipc1", cache_dir=cache)
    connection, _ = offline(hub)
    with connection:
        assert list_condensed(repo, **options) == ["dm_ipc1", "dm_ipc2", "herding_ipc2"]
        write_page(repo, file, **options)
        assert all(name in file.read_text("utf-8") for name in ("dm_ipc1", "dm_ipc2", "herding_ipc2"))
        for action in (list_condensed, lambda repo, **options: write_page(repo, file, **options)):
            with pytest.raises((FileNotFoundError, ConnectionError), match=r"no folder is called .* be reached"):
                action(repo, **{**options, "cache_dir": tmp_path / "empty"})
    assert "dm_ipc1" not in online


def test_damaged_file_in_the_cache_is_downloaded_again_on_request(hub, pets):
    load_condensed(pets)
    (tensors,) = (hub.home / "hub").rglob("condensed.safetensors")
    tensors.resolve().write_bytes(b"\0" * tensors.stat().st_size)
    with pytest.raises(CondensedFormatError, match=r"does not match its sha256; it is damaged .*: fetch it again"):
        load_condensed(pets)
    with hub.stopped(), pytest.raises(ConnectionError, match="cannot be reached"):
        load_condensed(pets, force_download=True)
    assert_same(load_condensed(pets, force_download=True), make_set(soft=True, student=True))
    assert_same(load_condensed(pets, local_files_only=True), make_set(soft=True, student=True))
    with pytest.raises(ValueError, match="leave out one of them"):
        load_condensed(pets, force_download=True, local_files_only=True)


@pytest.mark.parametrize("action", [load_condensed, list_condensed])
def test_missing_folder_is_named_at_once_if_the_hub_is_out_of_reach(hub, action):
    with hub.stopped():
        started = time.perf_counter()
        with pytest.raises(OSError, match=r"no folder is called 'runs/dm'.* cannot be reached"):
            action("runs/dm")
        assert time.perf_counter() - started < 5
    with pytest.raises(FileNotFoundError, match="no folder and no dataset repository on the Hub is called 'runs/dm'"):
        action("runs/dm")


def test_repository_whose_owner_is_also_a_folder_is_loaded(hub, pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(pets).parent.mkdir()
    assert list_condensed(pets) == ["dm_ipc2", "herding_ipc2"]
    assert_same(load_condensed(pets), make_set(soft=True, student=True))
    with hub.stopped():
        assert_same(load_condensed(pets), make_set(soft=True, student=True))


def test_existing_folder_comes_before_a_repository(hub, pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_set(seed=5).save_condensed(pets)
    assert_same(load_condensed(pets), make_set(seed=5))
    assert list_condensed(pets) == ["dm_ipc2"]
    Path("alice/file").touch()
    with pytest.raises(FileNotFoundError, match=r"no folder 'alice/file' \(it is a file\); pass a folder"):
        load_condensed("alice/file")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*/none'.* or a Hub repository 'user/name'"):
        load_condensed(Path(pets).parent / "none")
    with pytest.raises(
        FileNotFoundError, match=r"no folder and no dataset repository on the Hub is called 'alice/none'"
    ):
        load_condensed("alice/none")


def test_list_condensed_names_only_sets(hub, pets):
    assert list_condensed(pets) == ["dm_ipc2", "herding_ipc2"]
    first = HfApi().list_repo_commits(pets, repo_type="dataset")[1].commit_id
    assert list_condensed(pets, revision=first) == ["dm_ipc2"]
    assert list_condensed(pets, token=hub.stranger_token) == ["dm_ipc2", "herding_ipc2"]
    commit(pets, {"nested/deep/condense_config.json": b"", "-x/condense_config.json": b"", "condense_config.json": b""})
    assert list_condensed(pets) == ["dm_ipc2", "herding_ipc2"]
    commit(empty := hub.repo(), {"a.csv": b"a\n"})
    assert list_condensed(empty) == []
    with pytest.raises(FileNotFoundError, match="no dataset repository on the Hub is called 'alice/nobody'"):
        list_condensed("alice/nobody")


def test_plain_dataset_raises_and_names_load_dataset(hub):
    commit(repo := hub.repo(), {"a.csv": b"a\n"})
    with pytest.raises(CondensedFormatError, match=r"has no file README.md at main: .* use datasets.load_dataset"):
        load_condensed(repo)
    commit(repo, {"README.md": b"# Mine\n"})
    with pytest.raises(CondensedFormatError, match=r"has no condensed set .*Use datasets.load_dataset"):
        load_condensed(repo)


def test_damaged_and_missing_tensors_are_refused(hub, pets):
    tensors = Path(HfApi().hf_hub_download(pets, "dm_ipc2/condensed.safetensors", repo_type="dataset")).read_bytes()
    commit(pets, {"dm_ipc2/condensed.safetensors": tensors[:-1] + b"\0"})
    with pytest.raises(CondensedFormatError, match=r"condensed\.safetensors: does not match its sha256"):
        load_condensed(pets)
    commit(pets, {}, gone=("dm_ipc2/condensed.safetensors",))
    with pytest.raises(CondensedFormatError, match=r"has no file dm_ipc2/condensed.safetensors at \w+: .*incomplete"):
        load_condensed(pets)


def test_newer_format_raises_and_says_upgrade(hub, pets):
    facts = Path(HfApi().hf_hub_download(pets, "dm_ipc2/condense_config.json", repo_type="dataset")).read_text()
    commit(
        pets, {"dm_ipc2/condense_config.json": facts.replace('"format_version": "1"', '"format_version": "4"').encode()}
    )
    newer = "format_version '4': this hf_condense reads 1, 2 and 3; upgrade hf_condense"
    with pytest.raises(CondensedFormatError, match=newer):
        load_condensed(pets)
    with pytest.raises(CondensedFormatError, match=newer):
        make_set(ipc=1).push_to_hub(pets)


@pytest.mark.parametrize(("path", "limit"), [("README.md", 1 << 20), ("dm_ipc2/condense_config.json", 1 << 23)])
def test_files_that_are_too_large_are_not_downloaded(hub, pets, path, limit):
    commit(pets, {path: b" " * (limit + 1)})
    with pytest.raises(CondensedFormatError, match=f"{path}: {limit + 1:,} bytes; at most {limit:,} are read"):
        load_condensed(pets, cache_dir=hub.home / "other")
    assert not list((hub.home / "other").rglob(Path(path).name))


def test_unreadable_card_raises_unless_a_name_is_given(hub, pets):
    commit(pets, {"README.md": b"---\na: &a {b: 1}\nc: {<<: *a}\n---\n"})
    for action in (lambda: load_condensed(pets), lambda: make_set(ipc=1).push_to_hub(pets)):
        with pytest.raises(CondensedFormatError, match=rf"README\.md of {pets}: metadata with YAML aliases"):
            action()
    assert_same(load_condensed(pets, "herding_ipc2"), make_coreset())
