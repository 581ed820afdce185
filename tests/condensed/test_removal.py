"""A set is removed with what the card says of it, so that every reader still finds the others."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import HfApi

from hf_condense import list_condensed, load_condensed, remove_condensed
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed import folder as folder_module
from hf_condense.condensed.card.render import config_names
from hf_condense.condensed.files.names import FACTS
from hf_condense.condensed.folder import read_card
from tests.support.condensed_sets import assert_same, files_below, make_set


def three_sets(folder: Path) -> None:
    for ipc in (1, 2, 3):
        make_set(ipc=ipc).save_condensed(folder)


def test_the_others_are_read_as_before_and_the_first_of_them_is_the_new_default(tmp_path: Path) -> None:
    three_sets(tmp_path)
    remove_condensed(tmp_path, "dm_ipc1")
    assert list_condensed(tmp_path) == config_names(read_card(tmp_path)) == ["dm_ipc2", "dm_ipc3"]
    assert not (tmp_path / "dm_ipc1").exists()
    assert load_condensed(tmp_path).recipe.ipc == 2
    assert get_dataset_config_names(str(tmp_path)) == ["dm_ipc2", "dm_ipc3"]
    assert len(load_dataset(str(tmp_path), split="train")) == len(make_set(ipc=2))
    assert_same(load_condensed(tmp_path, "dm_ipc3"), make_set(ipc=3))


def test_the_card_is_that_of_a_folder_that_never_had_the_set(tmp_path: Path) -> None:
    for ipc in (2, 1):
        make_set(ipc=ipc).save_condensed(tmp_path / "some")
    make_set(ipc=2).save_condensed(tmp_path / "one")
    remove_condensed(tmp_path / "some", "dm_ipc1")
    assert files_below(tmp_path / "some") == files_below(tmp_path / "one")


def test_text_of_the_owner_and_other_files_in_the_folder_of_the_set_stay(tmp_path: Path) -> None:
    three_sets(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    mine = ["mine-00000-of-00001.parquet", "notes.txt"]
    for name in mine:
        (tmp_path / "dm_ipc2" / name).write_text("mine")
    remove_condensed(str(tmp_path), "dm_ipc2")
    assert "My own words." in card.read_text()
    assert sorted(path.name for path in (tmp_path / "dm_ipc2").iterdir()) == mine


def test_set_that_is_a_link_leaves_the_folder_and_stays_where_it_lies(tmp_path: Path) -> None:
    three_sets(tmp_path / "far")
    make_set(ipc=1).save_condensed(tmp_path / "near")
    (tmp_path / "near" / "dm_ipc3").symlink_to(tmp_path / "far" / "dm_ipc3", target_is_directory=True)
    remove_condensed(tmp_path / "near", "dm_ipc3")
    assert list_condensed(tmp_path / "near") == ["dm_ipc1"]
    assert not (tmp_path / "near" / "dm_ipc3").is_symlink()
    assert_same(load_condensed(tmp_path / "far", "dm_ipc3"), make_set(ipc=3))


def test_set_that_is_saved_meanwhile_is_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_sets(tmp_path)
    write = folder_module.write_files

    def late(folder: Path, files: Mapping[str, bytes], **options: Any) -> None:
        monkeypatch.setattr(folder_module, "write_files", write)
        make_set(ipc=4).save_condensed(tmp_path)
        write(folder, files, **options)

    monkeypatch.setattr(folder_module, "write_files", late)
    remove_condensed(tmp_path, "dm_ipc2")
    assert list_condensed(tmp_path) == sorted(config_names(read_card(tmp_path))) == ["dm_ipc1", "dm_ipc3", "dm_ipc4"]


def test_set_that_is_removed_while_another_is_saved_is_not_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_sets(tmp_path)
    write = folder_module.write_files

    def late(folder: Path, files: Mapping[str, bytes], **options: Any) -> None:
        monkeypatch.setattr(folder_module, "write_files", write)
        remove_condensed(tmp_path, "dm_ipc2")
        write(folder, files, **options)

    monkeypatch.setattr(folder_module, "write_files", late)
    make_set(ipc=4).save_condensed(tmp_path)
    assert list_condensed(tmp_path) == sorted(config_names(read_card(tmp_path))) == ["dm_ipc1", "dm_ipc3", "dm_ipc4"]


def test_damaged_set_can_be_removed(tmp_path: Path) -> None:
    three_sets(tmp_path)
    (tmp_path / "dm_ipc2" / FACTS).write_text("{")
    remove_condensed(tmp_path, "dm_ipc2")
    assert list_condensed(tmp_path) == config_names(read_card(tmp_path)) == ["dm_ipc1", "dm_ipc3"]


def test_damaged_sets_can_be_removed_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    three_sets(tmp_path)
    for name in ("dm_ipc1", "dm_ipc2"):
        (tmp_path / name / FACTS).write_text("{")
    with pytest.raises(CondensedFormatError, match=r"nothing was changed: .*dm_ipc1/.*dm_ipc2/"):
        make_set(ipc=4).save_condensed(tmp_path)
    remove_condensed(tmp_path, "dm_ipc1")
    assert "leaves out sets that cannot be read" in caplog.text
    assert "dm_ipc2" in caplog.text
    assert list_condensed(tmp_path) == ["dm_ipc2", "dm_ipc3"]
    assert config_names(read_card(tmp_path)) == ["dm_ipc3"]
    remove_condensed(tmp_path, "dm_ipc2")
    assert list_condensed(tmp_path) == config_names(read_card(tmp_path)) == ["dm_ipc3"]


def test_set_that_is_restored_comes_back_to_the_card(tmp_path: Path) -> None:
    three_sets(tmp_path)
    facts = (tmp_path / "dm_ipc2" / FACTS).read_bytes()
    (tmp_path / "dm_ipc2" / FACTS).write_text("{")
    remove_condensed(tmp_path, "dm_ipc1")
    (tmp_path / "dm_ipc2" / FACTS).write_bytes(facts)
    make_set(ipc=3).save_condensed(tmp_path)
    assert sorted(config_names(read_card(tmp_path))) == ["dm_ipc2", "dm_ipc3"]


def test_last_set_that_can_be_read_is_not_removed(tmp_path: Path) -> None:
    three_sets(tmp_path)
    for name in ("dm_ipc1", "dm_ipc2"):
        (tmp_path / name / FACTS).write_text("{")
    before = files_below(tmp_path)
    with pytest.raises(CondensedFormatError, match=r"none of the other sets in .* can be read.*by hand"):
        remove_condensed(tmp_path, "dm_ipc3")
    assert files_below(tmp_path) == before


def test_set_whose_files_were_deleted_by_hand_leaves_the_card_with_the_next_one(tmp_path: Path) -> None:
    three_sets(tmp_path)
    shutil.rmtree(tmp_path / "dm_ipc1")
    remove_condensed(tmp_path, "dm_ipc2")
    assert config_names(read_card(tmp_path)) == ["dm_ipc3"]


def test_what_cannot_be_removed_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    three_sets(tmp_path / "some")
    make_set().save_condensed(tmp_path / "one")
    before = files_below(tmp_path)
    for place, name, error, message in (
        ("some", "dm_ipc4", ValueError, r"no condensed set named 'dm_ipc4'. It has: dm_ipc1, dm_ipc2, dm_ipc3"),
        ("one", make_set().recipe.config_name, ValueError, "is the only set in .*nothing was changed"),
        ("some/dm_ipc1", "dm_ipc1", ValueError, "is the folder of one set; pass the folder of sets"),
        ("none", "dm_ipc1", FileNotFoundError, "no folder"),
    ):
        with pytest.raises(error, match=message):
            remove_condensed(tmp_path / place, name)
    with pytest.raises(ValueError, match="is for repositories"):
        remove_condensed(tmp_path / "some", "dm_ipc1", revision="main")
    with pytest.raises(CondensedFormatError, match="has no condensed set, but its subfolders have; pass one"):
        remove_condensed(tmp_path, "dm_ipc1")
    with pytest.raises(TypeError, match=r"name should be the name of a set; got None \(NoneType\)"):
        remove_condensed(tmp_path / "some", None)  # type: ignore[arg-type]
    assert files_below(tmp_path) == before


def test_folder_stays_as_it_was_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_sets(tmp_path)
    before = files_below(tmp_path)

    def fail(source: Path, backup: Path, target: Path, undo: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "_replace", fail)
    with pytest.raises(OSError, match="the earlier files are untouched"):
        remove_condensed(tmp_path, "dm_ipc1")
    assert files_below(tmp_path) == before


def test_published_set_is_removed_in_one_commit_with_its_rows_on_card_and_page(hub) -> None:
    repo = hub.repo()
    for ipc in (1, 2):
        make_set(ipc=ipc).push_to_hub(repo, page=True)
    remove_condensed(repo, "dm_ipc1")
    commits = HfApi().list_repo_commits(repo, repo_type="dataset")
    assert [commit.title for commit in commits][:2] == ["Remove dm_ipc1", "Upload dm_ipc2"]
    assert list_condensed(repo) == ["dm_ipc2"]
    assert_same(load_condensed(repo), make_set(ipc=2))
    assert len(load_dataset(repo, split="train")) == len(make_set(ipc=2))
    for file in ("README.md", "page.html"):
        text = Path(HfApi().hf_hub_download(repo, file, repo_type="dataset")).read_text()
        assert "dm_ipc1" not in text, file
        assert "dm_ipc2" in text, file
    assert_same(load_condensed(repo, "dm_ipc1", revision=commits[1].commit_id), make_set(ipc=1))


def test_commit_whose_answer_was_lost_is_not_made_twice(hub) -> None:
    repo = hub.repo()
    for ipc in (1, 2):
        make_set(ipc=ipc).push_to_hub(repo)
    hub.fault("^POST .*/commit/", lose_answer=True)
    remove_condensed(repo, "dm_ipc1")
    assert list_condensed(repo) == ["dm_ipc2"]
    titles = [commit.title for commit in HfApi().list_repo_commits(repo, repo_type="dataset")]
    assert titles.count("Remove dm_ipc1") == 1


def test_only_set_unknown_set_and_missing_branch_of_a_repository_are_refused(hub) -> None:
    repo = hub.repo()
    make_set(ipc=1).push_to_hub(repo)
    with pytest.raises(ValueError, match=r"'dm_ipc1' is the only set in .*delete the repository"):
        remove_condensed(repo, "dm_ipc1")
    make_set(ipc=2).push_to_hub(repo)
    with pytest.raises(ValueError, match="no condensed set named 'dm_ipc3'"):
        remove_condensed(repo, "dm_ipc3")
    with pytest.raises(ValueError, match="revision should be a branch to push to; got the commit"):
        remove_condensed(repo, "dm_ipc1", revision="0" * 40)
    with pytest.raises(FileNotFoundError, match="mine"):
        remove_condensed(repo, "dm_ipc1", revision="mine")
    assert list_condensed(repo) == ["dm_ipc1", "dm_ipc2"]
    assert [branch.name for branch in HfApi().list_repo_refs(repo, repo_type="dataset").branches] == ["main"]


def test_command_says_what_is_left(tmp_path: Path, program) -> None:
    three_sets(tmp_path)
    assert program("remove", tmp_path, "dm_ipc2") == (0, f"Removed dm_ipc2. {tmp_path} has: dm_ipc1, dm_ipc3.\n", "")
