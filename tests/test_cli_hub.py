"""The command line and the Hub: publish, look, evaluate."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from PIL import Image

from hf_condense import condense_dataset, list_condensed, load_condensed
from tests.support.condensed_sets import assert_same, make_coreset, make_set, real_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two sets; dm_ipc2 is the default."""
    make_set().save_condensed(tmp_path / "sets")
    make_coreset().save_condensed(tmp_path / "sets")
    return tmp_path / "sets"


def test_push_prints_where_the_set_is(hub, program, folder, tmp_path):
    repo = hub.repo()
    code, out, err = program("push", folder, repo, "--message", "Mine", "--license", "mit")
    assert (code, err) == (0, "")
    (newest, _) = HfApi().list_repo_commits(repo, repo_type="dataset")
    assert newest.title == "Mine"
    assert out.splitlines() == [
        f"Published dm_ipc2: {hub.url}/datasets/{repo}",
        f"Load it:  hf_condense.load_condensed('{repo}', 'dm_ipc2', revision='{newest.commit_id}')",
    ]
    assert_same(load_condensed(repo), make_set())
    assert not HfApi().dataset_info(repo).private
    assert program("push", folder / "herding_ipc2", repo, "--set-default", "--page")[0] == 0
    assert_same(load_condensed(repo), make_coreset())
    code, out, _ = program("page", repo, "--out", tmp_path / "page.html")
    assert (code, out.split(" (")[0]) == (0, f"Wrote {tmp_path / 'page.html'}")
    published = HfApi().hf_hub_download(repo, "page.html", repo_type="dataset")
    assert Path(published).read_text("utf-8") == (tmp_path / "page.html").read_text("utf-8")


def test_push_keeps_the_names_that_sets_have_in_their_folder(hub, program, tmp_path):
    repo = hub.repo()
    for seed in (1, 2):
        make_set(seed=seed).save_condensed(tmp_path, f"seed{seed}")
    assert program("push", tmp_path, repo, "--name", "seed2")[0] == 0
    make_set(seed=1).save_condensed(tmp_path / "alone", "seed1")
    assert program("push", tmp_path / "alone", repo)[0] == 0
    assert list_condensed(repo) == ["seed1", "seed2"]


def test_push_says_that_nothing_has_changed(hub, program, folder):
    repo = hub.repo()
    assert program("push", folder, repo)[1].startswith("Published dm_ipc2: ")
    newest = HfApi().dataset_info(repo).sha
    code, out, _ = program("push", folder, repo)
    assert (code, HfApi().dataset_info(repo).sha) == (0, newest)
    assert out.splitlines()[0].startswith("Nothing to publish, the repository has this already: dm_ipc2: ")
    assert f"revision='{newest}')" in out


def test_push_replaces_the_text_of_the_owner_only_on_request(hub, program, folder):
    def text() -> str:
        return Path(HfApi().hf_hub_download(repo, "README.md", repo_type="dataset")).read_text("utf-8")

    repo = hub.repo()
    assert program("push", folder, repo)[0] == 0
    edited = text().replace("\n# ", "\nBeloved words.\n\n# ", 1)
    assert "Beloved words." in edited
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=repo, repo_type="dataset")
    assert program("push", folder, repo, "--name", "herding_ipc2")[0] == 0
    assert "Beloved words." in text()
    assert program("push", folder, repo, "--name", "herding_ipc2", "--replace-card")[0] == 0
    assert "Beloved words." not in text()
    assert list_condensed(repo) == ["dm_ipc2", "herding_ipc2"]


def test_hint_to_push_again_repeats_what_was_asked_for(hub, program, toy: Dataset, tmp_path, monkeypatch):
    toy.to_parquet(tmp_path / "toys" / "train.parquet")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    run = ("run", tmp_path / "toys", "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "out")
    code, _, err = program(*run, "--push", hub.repo(), "--private", "--overwrite")
    assert code == 1
    assert re.search(r"Not published. To try again:  hf-condense push \S+ \S+ --private --overwrite\n", err), err


def test_push_takes_one_set_to_a_branch_or_a_pull_request(hub, program, folder):
    repo = hub.repo()
    assert program("push", folder, repo, "--name", "herding_ipc2", "--private")[0] == 0
    assert HfApi().dataset_info(repo).private
    assert list_condensed(repo) == ["herding_ipc2"]
    assert program("push", folder, repo, "--revision", "more")[0] == 0
    assert list_condensed(repo, revision="more") == ["dm_ipc2", "herding_ipc2"]
    code, out, _ = program("push", folder, repo, "--create-pr")
    assert (code, out) == (0, f"Published dm_ipc2: {hub.url}/datasets/{repo}/discussions/1\n")
    assert list_condensed(repo) == ["herding_ipc2"]


def test_show_reads_from_the_hub_and_saves_a_picture(hub, program, folder, tmp_path):
    repo = hub.repo()
    first = make_set().push_to_hub(repo).oid
    make_coreset().push_to_hub(repo, set_default=True)
    code, out, _ = program("show", repo, "--preview", tmp_path / "picture.png")
    assert code == 0
    assert "herding_ipc2: 4 rows" in out
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 2 * 8
    assert "dm_ipc2: 4 rows" in program("show", repo, "--name", "dm_ipc2")[1]
    assert "dm_ipc2: 4 rows" in program("show", repo, "--revision", first)[1]


def test_show_names_the_other_sets_of_a_repository(hub, program):
    repo = hub.repo()
    first = make_set().push_to_hub(repo).oid
    assert "Other sets" not in program("show", repo)[1]
    make_coreset().push_to_hub(repo)
    assert "Other sets here, for --name: herding_ipc2\n" in program("show", repo)[1]
    assert "Other sets here, for --name: dm_ipc2\n" in program("show", repo, "--name", "herding_ipc2")[1]
    assert "Other sets" not in program("show", repo, "--revision", first)[1]
    with hub.stopped():
        assert "Other sets here, for --name: herding_ipc2\n" in program("show", repo)[1]


def test_combine_takes_any_set_and_revision_of_a_repository(hub, program, tmp_path, monkeypatch):
    repo = hub.repo()
    first = make_set().push_to_hub(repo).oid
    make_set(seed=1).push_to_hub(repo, overwrite=True)
    make_set(ipc=1).push_to_hub(repo)
    out = ("--out", tmp_path / "out", "--name", "both")

    def seeds_and_ipc(*places: str) -> list[tuple[int, object]]:
        code, printed, err = program("combine", *places, *out, "--overwrite")
        assert (code, err) == (0, "")
        assert f"Saved {tmp_path / 'out' / 'both'}." in printed
        recipes = load_condensed(tmp_path / "out", "both").recipe.part_recipes
        return [(recipe.seed, recipe.ipc) for recipe in recipes]

    assert seeds_and_ipc(f"{repo}/dm_ipc1", repo) == [(0, 1), (1, 2)]
    assert seeds_and_ipc(f"{repo}@{first}", f"{repo}@main/dm_ipc2") == [(0, 2), (1, 2)]
    monkeypatch.chdir(tmp_path)
    make_set(seed=5).save_condensed(repo)
    make_set(seed=7).save_condensed(repo, "other")
    assert seeds_and_ipc(f"{repo}/other", f"{repo}/dm_ipc2") == [(7, 2), (5, 2)]
    code, _, err = program("combine", f"{repo}/dm_ipc3", repo, *out)
    assert code == 1
    assert "has no condensed set named 'dm_ipc3'. It has: dm_ipc2, other" in err
    Path(repo, "README.md").write_text("# A card without metadata\n", encoding="utf-8")
    code, _, err = program("combine", repo, repo, *out)
    assert code == 1
    assert f"several condensed sets: dm_ipc2, other; pass one of them as {repo}/NAME" in err
    code, _, err = program("combine", repo, repo, "--out", tmp_path, "--name", "test")
    assert (code, err[:25]) == (1, "error: config name 'test'")


def test_commands_read_the_revision_of_a_dataset_that_is_named(hub, program, toy: Dataset, tmp_path):
    def commit(train: int, test: int) -> str:
        operations = []
        for split, rows in (("train", toy.select(range(train))), ("test", toy.select(range(36 - test, 36)))):
            rows.to_parquet(tmp_path / f"{split}.parquet")
            content = (tmp_path / f"{split}.parquet").read_bytes()
            operations.append(CommitOperationAdd(f"{split}.parquet", content))
        return HfApi().create_commit(repo, operations, commit_message="rows", repo_type="dataset").oid

    HfApi().create_repo(repo := hub.repo("rows"), repo_type="dataset")
    first, _ = commit(24, 6), commit(12, 3)
    out = tmp_path / "out"
    run = ("run", repo, "--method", "random", "--ipc", 1, "--quiet", "--out", out)
    code, printed, _ = program(*run, "--dataset-revision", first)
    assert code == 0
    assert load_condensed(out).recipe.source["num_examples"] == 24
    assert f"--source {repo} --source-revision {first}" in printed
    read = []
    quick = ("--network", "convnet-w8", "--epochs", 1, "--max-updates", 1, "--seeds", 1, "--quiet")

    def stop(train, test, *, source=None, **_):
        read.append((len(train), len(test), None if source is None else len(source)))
        raise ValueError("seen enough")

    with pytest.MonkeyPatch.context() as watched:
        watched.setattr("hf_condense.evaluate", stop)
        for options in (
            ("--source", repo),
            ("--source", repo, "--source-revision", first),
            ("--source", repo, "--test", repo, "--test-revision", first),
            ("--test", repo, "--test-revision", first, "--baseline", "none"),
        ):
            assert program("eval", out, *options, *quick)[2] == "error: seen enough\n"
        program("eval", repo, "--revision", first, "--source", repo, *quick)
    assert read == [(3, 3, 12), (3, 6, 24), (3, 6, 12), (3, 6, None), (24, 3, 12)]
    sizes = []
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr("hf_condense.write_page", lambda *_, source, **__: sizes.append(len(source)) or out)
        for options in ((), ("--source-revision", first)):
            program("page", out, "--source", repo, *options)
    assert sizes == [12, 24]


def test_eval_reads_the_revision_of_the_set_that_is_named(hub, program, toy: Dataset, tmp_path):
    toy.to_parquet(tmp_path / "toys" / "test.parquet")
    repo = hub.repo()
    first = condense_dataset(toy, "random", 1, progress=False).push_to_hub(repo, "mine").oid
    condense_dataset(toy, "random", 2, progress=False).push_to_hub(repo, "mine", overwrite=True)
    quick = ("--network", "convnet-w8", "--epochs", 1, "--max-updates", 1, "--seeds", 1, "--quiet")
    evaluation = ("eval", repo, "--test", tmp_path / "toys", "--baseline", "none", *quick)
    assert "random_ipc2" in program(*evaluation)[1]
    assert "random_ipc1" in program(*evaluation, "--revision", first)[1]


def test_push_publishes_other_splits_and_the_text_of_the_commit(hub, program, folder, tmp_path):
    real_rows(5).select_columns(["image", "label"]).to_parquet(tmp_path / "pets" / "test.parquet")
    repo = hub.repo()
    push = ("push", folder, repo, "--description", "For the tests.")
    assert program(*push, "--extra-split", f"test={tmp_path / 'pets'}")[0] == 0
    newest = HfApi().list_repo_commits(repo, repo_type="dataset")[0]
    assert newest.message == "For the tests."
    assert len(load_dataset(repo, "dm_ipc2", split="test")) == 5
    assert_same(load_condensed(repo), make_set())
    copy = snapshot_download(repo, repo_type="dataset", local_dir=tmp_path / "copy")
    code, _, err = program("push", copy, hub.repo())
    assert (code, f"note: test, which {copy} has beside the set, is left out" in err) == (0, True)
    code, _, err = program(*push, "--extra-split", f"dev={tmp_path / 'pets'}")
    assert code == 1
    assert "has no split 'dev'; its splits: test; choose one by --extra-split" in err


def test_run_publishes_what_it_saved(hub, program, toy: Dataset, tmp_path):
    toy.to_parquet(tmp_path / "toys" / "train.parquet")
    run = ("run", tmp_path / "toys", "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "out")
    repo = hub.repo()
    code, out, err = program(*run, "--push", repo, "--private")
    assert (code, err) == (0, "")
    assert f"Published random_ipc1: {hub.url}/datasets/{repo}\n" in out
    assert HfApi().dataset_info(repo).private
    assert_same(load_condensed(repo), load_condensed(tmp_path / "out"))
    code, _, err = program(*run, "--seed", 1, "--push", repo)
    assert code == 1
    again = re.search(r"Not published. To try again:  hf-condense push (\S+) (\S+)\n", err)
    assert load_condensed(again[1]).recipe.seed == 1
    assert "error: alice/pets" in err
    assert "already holds another recipe (rows, seed differ)" in err
    assert "pass another --name, or --overwrite to replace it" in err
    assert program("push", *again.groups(), "--overwrite")[0] == 0
    assert load_condensed(repo).recipe.seed == 1


def test_an_impossible_repository_is_refused_before_anything_is_loaded(program, toy, tmp_path):
    code, _, err = program("run", tmp_path / "nothing", "--push", "a/b/c")
    assert code == 1
    assert "not the name of a repository" in err


def test_push_refuses_an_impossible_repository_before_the_set_is_loaded(program, tmp_path):
    code, _, err = program("push", tmp_path / "nothing", "a/b/c")
    assert code == 1
    assert "not the name of a repository" in err


def test_show_prints_the_sizes_of_a_set_on_the_hub_under_any_name(hub, program):
    repo = hub.repo()
    make_set().push_to_hub(repo, "mine")
    sizes = {
        path.rfilename.rpartition(".")[2]: path.size
        for path in HfApi().dataset_info(repo, files_metadata=True).siblings
        if path.rfilename.startswith("mine/")
    }
    for more in ((), ("--name", "mine"), ("--revision", "main")):
        code, out, _ = program("show", repo, *more)
        assert code == 0
        assert f"{sizes['safetensors']:,} B" in out
        assert f"{sizes['parquet']:,} B" in out


def test_eval_offers_coresets_and_reads_from_the_hub(hub, program, toy: Dataset, tmp_path):
    for split, rows in (("train", toy.select(range(24))), ("test", toy.select(range(24, 36)))):
        rows.to_parquet(tmp_path / "toys" / f"{split}.parquet")
    repo = hub.repo()
    quick = ("--network", "convnet-w8", "--epochs", 1, "--max-updates", 1, "--seeds", 1, "--quiet")
    run = ("run", tmp_path / "toys", "--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "out")
    assert program(*run, "--push", repo)[0] == 0
    code, out, _ = program("eval", repo, "--source", tmp_path / "toys", "--baseline", "none", *quick)
    assert code == 0
    assert "random_ipc1" in out
    code, _, err = program("eval", repo, "--source", tmp_path / "toys", "--baseline", "hearding", *quick)
    assert code == 1
    assert re.fullmatch(
        r"error: baselines should be one of .*'kcenter'.*; got 'hearding'; did you mean 'herding'\?\n", err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "alice/nothing"], "no folder and no dataset repository on the Hub is called 'alice/nothing'"),
        (["push", "{folder}", "bob/pets"], "no write access to bob/pets: check the token"),
        (["push", "{folder}", "alice/pets", "--name", "dm_ipc3"], "has no condensed set named 'dm_ipc3'"),
        (["push", "alice/pets", "alice/other"], "no folder 'alice/pets'"),
    ],
)
def test_an_error_of_the_user_is_printed_in_one_line(hub, program, folder, arguments, message):
    code, _, err = program(*(argument.format(folder=folder) for argument in arguments))
    assert code == 1
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert message in err


def test_run_without_the_hub_takes_a_cached_dataset_and_names_a_missing_one_at_once(hub, program, tmp_path):
    make_coreset().push_to_hub(repo := hub.repo())
    run = ("--method", "random", "--ipc", 1, "--quiet", "--out", tmp_path / "out")
    assert program("run", repo, *run)[0] == 0
    with hub.stopped():
        assert program("run", repo, *run)[0] == 0
        started = time.perf_counter()
        code, _, err = program("run", "alice/nothing", *run)
        assert time.perf_counter() - started < 5
    assert (code, err) == (
        1,
        "error: cannot load 'alice/nothing': there is no folder 'alice/nothing' here, and the Hub cannot be reached, "
        "and no such dataset is cached\n",
    )


def test_eval_takes_a_cached_dataset_without_a_connection(hub, toy, tmp_path):
    repo = hub.repo()
    toy.push_to_hub(repo)
    load_dataset(repo, split="train")
    toy.to_parquet(tmp_path / "test" / "train.parquet")
    network = ("--network", "convnet-w4-d1", "--recipe", "dc", "--baseline", "none", "--label-column", "label")
    short = ("--seeds", "1", "--epochs", "1", "--quiet")
    test = ("--test", str(tmp_path / "test"), "--test-split", "train", "--source", repo)
    words = ["eval", repo, *test, *network, *short]
    command = [sys.executable, "-c", "from hf_condense.cli import main; main()", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "convnet-w4" in process.stdout
    other = [*command[:4], "alice/nothing", *command[5:]]
    process = subprocess.run(other, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert "the set is not among the cached files" in process.stderr
