"""A set is published in one commit, and what others made is not touched."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import CommitInfo, CommitOperationAdd, DatasetCard, HfApi, constants

from hf_condense import (
    CondensedDataset,
    CondensedFormatError,
    combine_condensed,
    condense_dataset,
    list_condensed,
    load_condensed,
    remove_condensed,
)
from hf_condense.condensed.card.render import config_names, default_config
from hf_condense.condensed.card.template import END, START
from tests.support.condensed_sets import assert_same, files_below, make_coreset, make_set, raw, real_rows

ROOT = Path(__file__).resolve().parents[2]
MINE = "---\nlicense: cc-by-4.0\nlanguage: fr\n---\n# Mes images\n\nUn texte.\n"


def commit(repo: str, files: dict[str, str | bytes]) -> str:
    """Commit files as their owner would, without hf_condense."""
    HfApi().create_repo(repo, repo_type="dataset", exist_ok=True)
    content = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    operations = [CommitOperationAdd(path, data) for path, data in content.items()]
    return HfApi().create_commit(repo, operations, commit_message="mine", repo_type="dataset").oid


def titles(repo: str, **options) -> list[str]:
    """Return the titles of the commits, newest first."""
    return [commit.title for commit in HfApi().list_repo_commits(repo, repo_type="dataset", **options)]


def paths(repo: str, **options) -> set[str]:
    return set(HfApi().list_repo_files(repo, repo_type="dataset", **options)) - {".gitattributes"}


def card(repo: str, **options) -> DatasetCard:
    return DatasetCard.load(HfApi().hf_hub_download(repo, "README.md", repo_type="dataset", **options))


@pytest.mark.parametrize("make", [make_set, make_coreset], ids=["synthetic", "coreset"])
def test_push_stores_every_file_in_one_commit(hub, tmp_path, make):
    small, repo = make(), hub.repo()
    info = small.push_to_hub(repo)
    assert isinstance(info, CommitInfo)
    name = small.recipe.config_name
    assert titles(repo)[0] == info.commit_message == f"Upload {name}"
    assert titles(repo)[1:] == ["initial commit"]
    assert info.oid == HfApi().dataset_info(repo).sha
    assert info.repo_url.repo_id == repo
    small.save_condensed(tmp_path)
    saved = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert paths(repo) == saved
    for path in saved - {"README.md"}:
        download = HfApi().hf_hub_download(repo, path, repo_type="dataset")
        assert Path(download).read_bytes() == (tmp_path / path).read_bytes()
    assert f'"{repo}"' in str(card(repo))


def test_pushing_the_same_set_again_makes_no_commit(hub):
    small, repo = make_set(soft=True, factor=2), hub.repo()
    first = small.push_to_hub(repo, commit_message="one")
    again = small.push_to_hub(repo, commit_message="two")
    assert (again.oid, again.commit_url, again.pr_url) == (first.oid, first.commit_url, None)
    assert load_condensed(repo).push_to_hub(repo, create_pr=True).oid == first.oid
    assert titles(repo)[0] == "one"
    assert len(titles(repo)) == 2


def test_pushing_a_set_that_was_made_again_makes_no_commit_unless_it_was_measured(hub):
    repo = hub.repo()
    first = make_set().push_to_hub(repo, extra_splits={"test": real_rows(4)}).oid
    again = {"created_at": "2027-01-01T00:00:00Z", "runtime": {"device": "cpu", "seconds": 9.0}}
    for options in ({}, {"overwrite": True}, {"extra_splits": {"test": real_rows(4)}}):
        assert make_set(**again).push_to_hub(repo, **options).oid == first
    measured = [{"set": "dm_ipc2", "mean": 0.5, "seconds": 1.0}]
    second = make_set(**again, evaluation=measured).push_to_hub(repo).oid
    assert second != first
    assert load_condensed(repo).recipe.evaluation == measured
    assert make_set(evaluation=[{**measured[0], "seconds": 2.0}]).push_to_hub(repo).oid == second
    assert make_set(**again).push_to_hub(repo).oid == second, "made again and not measured again"


def test_script_that_runs_twice_makes_one_commit(hub, toy):
    repo = hub.repo()
    options = {"ipc": 1, "steps": 1, "network": "convnet-w4", "batch_real": 2, "progress": False}
    commits = {condense_dataset(toy, "dm", **options).push_to_hub(repo).oid for _ in range(2)}
    assert len(commits) == 1


def test_several_sets_share_a_repository(hub):
    repo = hub.repo()
    first, second = make_set(), make_coreset()
    first.push_to_hub(repo)
    second.push_to_hub(repo)
    assert list_condensed(repo) == ["dm_ipc2", "herding_ipc2"]
    assert default_config(str(card(repo))) == "dm_ipc2"
    assert raw(load_dataset(repo, split="train")) == raw(first)
    assert raw(load_dataset(repo, "herding_ipc2", split="train")) == raw(second)
    streamed = load_dataset(repo, "herding_ipc2", split="train", streaming=True)
    assert [row["id"] for row in streamed] == second["id"][:]
    second.push_to_hub(repo, set_default=True)
    assert default_config(str(card(repo))) == "herding_ipc2"
    first.push_to_hub(repo, "mine", license="mit")
    assert default_config(str(card(repo))) == "herding_ipc2"
    assert list_condensed(repo) == ["dm_ipc2", "herding_ipc2", "mine"]


def test_text_metadata_and_harmless_files_of_the_owner_are_kept(hub):
    repo = hub.repo()
    commit(repo, {"README.md": MINE, "LICENSE": "free", "notes.md": "notes"})
    make_set().push_to_hub(repo)
    readme = card(repo)
    assert readme.text.startswith(f"# Mes images\n\nUn texte.\n\n{START}\n")
    assert (readme.data.license, readme.data.language) == ("cc-by-4.0", "fr")
    make_set(ipc=1).push_to_hub(repo, license="mit")
    assert card(repo).data.license == "mit"
    assert "Un texte." in card(repo).text
    make_set(ipc=1).push_to_hub(repo, replace_card=True)
    assert "Un texte." not in card(repo).text
    assert sorted(config_names(str(card(repo)))) == ["dm_ipc1", "dm_ipc2"]
    assert default_config(str(card(repo))) == "dm_ipc2"
    assert {"LICENSE", "notes.md"} < paths(repo)


def test_new_card_that_would_no_longer_list_the_data_of_an_owner_is_refused(hub):
    repo = hub.repo()
    real_rows().select_columns(["image", "label"]).push_to_hub(repo)
    make_set().push_to_hub(repo)
    before = str(card(repo))
    with pytest.raises(FileExistsError, match=r"holds other data .*; nothing was changed"):
        make_set(ipc=1).push_to_hub(repo, replace_card=True)
    assert str(card(repo)) == before


def test_plain_dataset_in_the_same_repository_is_kept(hub):
    repo = hub.repo()
    rows = real_rows().select_columns(["image", "label"])
    rows.push_to_hub(repo)
    rows.select([0]).push_to_hub(repo, "few")
    make_set().push_to_hub(repo)
    make_set(ipc=1).push_to_hub(repo)
    assert config_names(str(card(repo))) == ["default", "few", "dm_ipc2", "dm_ipc1"]
    assert raw(load_dataset(repo, split="train")) == raw(rows)
    assert len(load_dataset(repo, "few", split="train")) == 1
    assert raw(load_dataset(repo, "dm_ipc2", split="train")) == raw(make_set())
    with pytest.raises(FileExistsError, match=r"already holds something else under the name 'few'.*overwrite=True"):
        make_set().push_to_hub(repo, "few")


@pytest.mark.parametrize(
    "files",
    [{"rows.csv": "a,b\n1,2\n"}, {"README.md": MINE, "cats/1.png": b"png"}, {"a.txt": "", "b.json": "{}"}],
    ids=["table", "images", "several"],
)
def test_foreign_repository_is_refused_and_unchanged(hub, files):
    repo = hub.repo()
    before = commit(repo, files)
    with pytest.raises(
        FileExistsError, match=r"holds other data \((rows.csv|cats/1.png|a.txt and 1 more)\).*their own"
    ):
        make_set().push_to_hub(repo, overwrite=True)
    assert HfApi().dataset_info(repo).sha == before


def test_another_set_of_the_same_name_is_refused(hub):
    repo = hub.repo()
    before = make_set().push_to_hub(repo).oid
    with pytest.raises(FileExistsError, match=r"holds another recipe \(seed differs\) under the name 'dm_ipc2'"):
        make_set(seed=1).push_to_hub(repo)
    other = make_set()
    other.synthetic.images.mul_(0.5)
    with pytest.raises(FileExistsError, match="other tensors of the same recipe"):
        other.push_to_hub(repo)
    assert HfApi().dataset_info(repo).sha == before
    measured = make_set(evaluation=[])
    assert measured.push_to_hub(repo).oid == before
    make_set(seed=1).push_to_hub(repo, overwrite=True)
    assert_same(load_condensed(repo), make_set(seed=1))


def test_damaged_set_blocks_every_push_that_does_not_replace_it(hub):
    repo = hub.repo()
    make_set().push_to_hub(repo)
    commit(repo, {"dm_ipc2/condense_config.json": "{}"})
    for small in (make_set(), make_set(ipc=1)):
        with pytest.raises(ValueError, match=r"dm_ipc2/condense_config\.json: format should be"):
            small.push_to_hub(repo)
    make_set().push_to_hub(repo, overwrite=True)
    assert_same(load_condensed(repo), make_set())


def test_damaged_sets_of_a_repository_can_be_removed_one_by_one(hub, caplog):
    repo = hub.repo()
    make_set(ipc=1).push_to_hub(repo)
    make_set().push_to_hub(repo)
    commit(repo, {"a/condense_config.json": "{", "b/condense_config.json": "{"})
    remove_condensed(repo, "a")
    assert f"the new card of {repo} leaves out sets that cannot be read" in caplog.text
    assert "b/condense_config.json" in caplog.text
    assert list_condensed(repo) == ["b", "dm_ipc1", "dm_ipc2"]
    remove_condensed(repo, "b")
    make_set(ipc=3).push_to_hub(repo)
    assert list_condensed(repo) == ["dm_ipc1", "dm_ipc2", "dm_ipc3"]


def test_damaged_card_is_named_by_its_repository(hub):
    repo = hub.repo()
    make_set().push_to_hub(repo)
    commit(repo, {"README.md": "---\nmine: &a [1]\nyours: *a\n---\n"})
    for call in (load_condensed, make_set(ipc=1).push_to_hub, lambda place: remove_condensed(place, "dm_ipc2")):
        with pytest.raises(CondensedFormatError, match=f"README.md of {repo}: metadata with YAML aliases"):
            call(repo)
    make_set().push_to_hub(repo, replace_card=True, overwrite=True)
    assert_same(load_condensed(repo), make_set())


def test_branches_and_pull_requests_leave_main_unchanged(hub):
    repo = hub.repo()
    make_set(ipc=1).push_to_hub(repo, private=True)
    with pytest.raises(FileNotFoundError, match="no dataset repository on the Hub is called"):
        load_condensed(repo, token=False)
    main = HfApi().dataset_info(repo).sha
    small = make_set()
    assert small.push_to_hub(repo, revision="more", commit_description="why").pr_url is None
    assert_same(load_condensed(repo, "dm_ipc2", revision="more"), small)
    newest = HfApi().list_repo_commits(repo, repo_type="dataset", revision="more")[0]
    assert (newest.title, newest.message) == ("Upload dm_ipc2", "why")
    opened = small.push_to_hub(repo, create_pr=True)
    assert opened.pr_num == 1
    assert_same(load_condensed(repo, "dm_ipc2", revision="refs/pr/1"), small)
    make_set(ipc=3).push_to_hub(repo, revision="refs/pr/1")
    assert list_condensed(repo, revision="refs/pr/1") == ["dm_ipc1", "dm_ipc2", "dm_ipc3"]
    assert HfApi().dataset_info(repo).sha == main
    with pytest.raises(ValueError, match="revision should be a branch to push to; got the commit"):
        small.push_to_hub(repo, revision=main)
    with pytest.raises(FileNotFoundError, match="has no revision 'refs/pr/7'"):
        small.push_to_hub(repo, revision="refs/pr/7")


def test_refused_push_leaves_no_new_branch(hub):
    repo = hub.repo()
    make_set().push_to_hub(repo)
    with pytest.raises(FileExistsError, match="nothing was changed"):
        make_set(seed=1).push_to_hub(repo, "dm_ipc2", revision="more")
    assert [branch.name for branch in HfApi().list_repo_refs(repo, repo_type="dataset").branches] == ["main"]
    make_set().push_to_hub(repo, revision="more")  # it is on main already, so the branch is all that is new
    assert_same(load_condensed(repo, revision="more"), make_set())
    assert HfApi().dataset_info(repo, revision="more").sha == HfApi().dataset_info(repo).sha


def test_stranger_can_open_a_pull_request(hub):
    repo = hub.repo()
    make_set(ipc=1).push_to_hub(repo)
    assert make_set().push_to_hub(repo, token=hub.stranger_token, create_pr=True).pr_num == 1
    assert list_condensed(repo, revision="refs/pr/1") == ["dm_ipc1", "dm_ipc2"]


def test_name_without_a_user_belongs_to_the_user_of_the_token(hub):
    name = hub.repo().partition("/")[2]
    assert make_set().push_to_hub(name).repo_url.repo_id == f"alice/{name}"
    assert list_condensed(f"alice/{name}") == ["dm_ipc2"]


def test_keywords_come_in_the_order_of_datasets():
    theirs = list(inspect.signature(Dataset.push_to_hub).parameters)
    ours = list(inspect.signature(CondensedDataset.push_to_hub).parameters)
    assert ours == [*theirs, "license", "replace_card", "overwrite", "extra_splits", "page"]


@pytest.mark.parametrize(
    "keyword",
    [
        {"split": "test"},
        {"data_dir": "data"},
        {"max_shard_size": "1MB"},
        {"num_shards": 2},
        {"embed_external_files": False},
        {"num_proc": 2},
    ],
    ids=lambda keyword: next(iter(keyword)),
)
def test_keywords_without_sense_are_refused_by_name(keyword):
    with pytest.raises(ValueError, match=f"^{next(iter(keyword))}=.*leave {next(iter(keyword))} out"):
        make_set().push_to_hub("alice/pets", **keyword)


@pytest.mark.parametrize("name", ["../up", "a/b", "train", "my_test", ""])
def test_unusable_config_names_raise_value_error(name):
    with pytest.raises(ValueError, match=r"config name .* should be 1 to 64 letters"):
        make_set().push_to_hub("alice/pets", name)


@pytest.mark.parametrize("repo", ["a/b/c", "alice/..", "buckets/alice/x"])
def test_impossible_repository_names_raise_value_error(hub, repo):
    with pytest.raises(ValueError, match="not the name of a repository"):
        make_set().push_to_hub(repo)


def test_dict_pushed_by_datasets_has_no_condensed_set(hub):
    repo = hub.repo()
    DatasetDict(train=make_set()).push_to_hub(repo)
    assert list_condensed(repo) == []
    with pytest.raises(ValueError, match=r"has no condensed set .*datasets.load_dataset"):
        load_condensed(repo)


TOGETHER = """
import os, sys
from pathlib import Path
from hf_condense.base.processes import get_accelerator
from tests.support.condensed_sets import make_set
get_accelerator()  # it also leaves the group at exit
small = make_set(source={"made by": os.environ["RANK"]})
for name, repo in (("pushed", sys.argv[1]), ("refused", "bob/pets")):
    try:
        answer = small.push_to_hub(repo).oid
    except (OSError, RuntimeError) as error:
        answer = f"{type(error).__name__}: {error}"
    Path(sys.argv[2], name + os.environ["RANK"]).write_text(answer)
"""


def test_main_process_pushes_and_every_process_gets_its_answer(hub, tmp_path):
    repo = hub.repo()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [*launcher, sys.executable, "-c", TOGETHER, repo, str(tmp_path)]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    answers = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert answers["pushed0"] == answers["pushed1"] == HfApi().dataset_info(repo).sha
    assert load_condensed(repo).recipe.source == {"made by": "0"}
    assert answers["refused0"].startswith("PermissionError: no write access to bob/pets")
    assert answers["refused1"] == answers["refused0"]


def test_text_between_the_markers_is_replaced_and_text_below_is_kept(hub):
    repo = hub.repo()
    make_set().push_to_hub(repo)
    text = str(card(repo)).replace(END, f"{END}\n\nBelow.").replace("## Load", "## Gone")
    commit(repo, {"README.md": text})
    make_set().push_to_hub(repo)
    assert str(card(repo)).endswith("Below.\n")
    assert "## Load" in str(card(repo))


def test_source_has_the_name_that_its_repository_has(hub, tmp_path):
    """`datasets` keeps the name in snake case, which would be another repository."""
    source = hub.repo("MyToyDigits")
    real_rows().to_parquet(tmp_path / "rows.parquet")
    commit(source, {"README.md": MINE, "data/train-00000.parquet": (tmp_path / "rows.parquet").read_bytes()})
    small = condense_dataset(load_dataset(source, split="train"), "random", ipc=1, progress=False)
    assert small.recipe.source["name"] == source


def test_licence_is_read_from_the_card_of_the_source(hub, tmp_path):
    """`load_dataset` does not hand it on, so it is looked up; a source that is gone is no reason not to push."""
    source = hub.repo("source")
    real_rows().to_parquet(tmp_path / "rows.parquet")
    commit(source, {"README.md": MINE, "data/train-00000.parquet": (tmp_path / "rows.parquet").read_bytes()})
    rows = load_dataset(source, split="train")
    small, repo = condense_dataset(rows, "random", ipc=1, progress=False), hub.repo()
    assert (small.recipe.source["name"], small.recipe.source["license"]) == (source, None)
    first = small.push_to_hub(repo)
    assert card(repo).data.license == "cc-by-4.0"
    assert load_condensed(repo).recipe.source["license"] == "cc-by-4.0"
    assert small.push_to_hub(repo).oid == first.oid
    lost = copy.copy(small)
    lost.recipe = replace(small.recipe, source={**small.recipe.source, "name": hub.repo("gone")})
    other = hub.repo()
    lost.push_to_hub(other)
    assert card(other).data.get("license") is None


def test_private_set_is_not_pushed_to_a_public_repository(hub):
    repo = hub.repo()
    first = make_set().push_to_hub(repo).oid
    with pytest.raises(ValueError, match=rf"{repo} is there and public; nothing was changed: make it private at \S+/"):
        make_set(ipc=1).push_to_hub(repo, private=True)
    assert HfApi().dataset_info(repo).sha == first
    other = hub.repo()
    for ipc in (1, 2):
        make_set(ipc=ipc).push_to_hub(other, private=True)
    assert HfApi().dataset_info(other).private
    assert list_condensed(other) == ["dm_ipc1", "dm_ipc2"]


def test_set_made_again_after_the_card_of_its_source_was_edited_keeps_its_accuracies(hub, tmp_path):
    source, repo = hub.repo("source"), hub.repo()
    real_rows().to_parquet(tmp_path / "rows.parquet")
    commit(source, {"README.md": MINE, "data/train-00000.parquet": (tmp_path / "rows.parquet").read_bytes()})
    measured = [{"set": "random_ipc1", "mean": 0.5, "seconds": 1.0}]
    revisions = set()
    for text in (MINE, MINE + "One more line.\n"):
        commit(source, {"README.md": text})
        rows = load_dataset(source, split="train")
        small = condense_dataset(rows, "random", ipc=1, progress=False)
        revisions.add(small.recipe.source["revision"])
        if text == MINE:
            small.recipe = replace(small.recipe, evaluation=measured)
        small.push_to_hub(repo)
    assert len(revisions) == 2
    assert load_condensed(repo).recipe.evaluation == measured


def publish_rows(tmp_path, licence: str) -> str:
    """Publish a plain dataset as its owner would, and return its repository."""
    source = f"alice/source-{licence}-{tmp_path.name}"
    real_rows().to_parquet(tmp_path / "rows.parquet")
    text = f"---\nlicense: {licence}\n---\n"
    commit(source, {"README.md": text, "data/train-00000.parquet": (tmp_path / "rows.parquet").read_bytes()})
    return source


def parts_of(*sources: str) -> CondensedDataset:
    """Return a combined set with one part of each source, whose licences are not known yet."""
    facts = [{"name": source, "revision": None, "license": None, "num_examples": 8} for source in sources]
    return combine_condensed([make_set(seed=seed, source=source) for seed, source in enumerate(facts)])


def test_licences_of_the_sources_of_all_parts_are_read(hub, tmp_path):
    sources, repo = [publish_rows(tmp_path, licence) for licence in ("mit", "cc-by-4.0")], hub.repo()
    parts_of(*sources).push_to_hub(repo)
    assert card(repo).data.license == ["mit", "cc-by-4.0"]
    for number, licence in enumerate(("mit", "cc-by-4.0"), 1):
        assert f"combined_ipc4, part {number}: its source states the licence {licence}." in str(card(repo))
    del hub.requests[:]
    parts_of(sources[0], sources[0]).push_to_hub(repo := hub.repo())
    assert len([request for request in hub.requests if f"GET /datasets/{sources[0]}/" in str(request)]) == 1
    assert card(repo).data.license == "mit"
    assert str(card(repo)).count("its source states the licence mit.") == 2
    assert "not known here" not in str(card(repo))


@pytest.mark.parametrize("parts", [1, 2])
def test_licence_that_was_read_stays_while_the_source_cannot_be_read(hub, tmp_path, parts):
    def make() -> CondensedDataset:
        return parts_of(*sources) if parts > 1 else make_set(source={"name": sources[0], "license": None})

    sources = [publish_rows(tmp_path, licence) for licence in ("mit", "cc-by-4.0")]
    first = make().push_to_hub(repo := hub.repo()).oid
    make().save_condensed(copied := tmp_path / "copied")
    licensed = load_condensed(repo)
    licensed.save_condensed(copied)
    before = files_below(copied)
    for source in sources:
        HfApi().delete_repo(source, repo_type="dataset")
    assert make().push_to_hub(repo).oid == first
    assert "not known here" not in str(card(repo))
    make().save_condensed(copied)
    assert files_below(copied) == before


def test_push_writes_nothing_into_the_cache_of_the_hub(hub, tmp_path, monkeypatch):
    source = publish_rows(tmp_path, "mit")
    repo = hub.repo()
    with monkeypatch.context() as read_only:
        read_only.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "rows.parquet" / "hub"))  # cannot be made
        for ipc in (1, 2):
            make_set(ipc=ipc, source={"name": source, "license": None}).push_to_hub(repo, page=True)
    assert list_condensed(repo) == ["dm_ipc1", "dm_ipc2"]
    assert card(repo).data.license == "mit"


def test_card_is_replaced_beside_our_page(hub):
    repo = "alice/paged"
    make_set().push_to_hub(repo, page=True)
    make_set().push_to_hub(repo, replace_card=True)
    assert "page.html" in HfApi().list_repo_files(repo, repo_type="dataset")


@pytest.mark.parametrize(
    ("license", "error", "message"),
    [
        ("MIT License", ValueError, "license should be a name that the Hub has.*'MIT License'; did you mean 'mit'"),
        ("CC-BY-4.0", ValueError, "did you mean 'cc-by-4.0'"),
        ("", ValueError, "license should be a name that the Hub has"),
        (5, TypeError, "license should be text; got 5"),
    ],
)
def test_licence_that_the_hub_would_refuse_leaves_no_repository(license, error, message, hub):
    with pytest.raises(error, match=message):
        make_set().push_to_hub("alice/unlicensed", license=license)
    assert not HfApi().repo_exists("alice/unlicensed", repo_type="dataset")


def test_licence_with_a_name_that_is_new_on_the_hub_is_pushed(hub):
    make_set().push_to_hub("alice/newer", license="brand-new-1.0")
    assert DatasetCard.load("alice/newer").data.license == "brand-new-1.0"
