"""Splits beside a condensed one: published in the same commit, with every row unchanged."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, get_dataset_split_names, load_dataset
from huggingface_hub import DatasetCard, HfApi

from hf_condense import load_condensed
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.hub import publish
from hf_condense.condensed.hub import splits as splits_module
from tests.support.card_sets import facts_of
from tests.support.condensed_sets import assert_same, make_coreset, make_set, raw, real_rows


def files(repo: str) -> list[str]:
    return sorted(path for path in HfApi().list_repo_files(repo, repo_type="dataset") if path.endswith(".parquet"))


def labelled(n: int) -> Dataset:
    return real_rows(n).select_columns(["image", "label"])


def test_extra_splits_are_in_the_same_config_and_commit(hub):
    small, rows, repo = make_coreset(), real_rows(7, image_type="JPEG"), hub.repo()
    small.push_to_hub(repo, extra_splits={"test": rows, "validation": rows.select([3, 1])})
    assert len(HfApi().list_repo_commits(repo, repo_type="dataset")) == 2
    assert get_dataset_split_names(repo, "herding_ipc2") == ["train", "test", "validation"]
    assert raw(load_dataset(repo, "herding_ipc2", split="test")) == raw(rows)
    assert raw(load_dataset(repo, split="validation")) == raw(rows.select([3, 1]))
    assert raw(load_dataset(repo, split="train")) == raw(small)
    assert [row["id"] for row in load_dataset(repo, split="test", streaming=True)] == rows["id"][:]
    assert_same(load_condensed(repo), small)
    info = DatasetCard.load(HfApi().hf_hub_download(repo, "README.md", repo_type="dataset")).data.dataset_info
    assert {split["name"]: split["num_examples"] for split in info[0]["splits"]} == {
        "train": 4,
        "test": 7,
        "validation": 2,
    }


def test_extra_splits_stay_until_others_or_none_are_given(hub):
    repo = hub.repo()
    first = make_set().push_to_hub(repo, extra_splits={"test": labelled(5)}).oid
    assert make_set().push_to_hub(repo).oid == first
    assert make_set().push_to_hub(repo, extra_splits={"test": labelled(5)}).oid == first
    make_set(ipc=1).push_to_hub(repo)
    assert len(load_dataset(repo, "dm_ipc2", split="test")) == 5
    make_set().push_to_hub(repo, extra_splits={"dev": labelled(3)})
    assert get_dataset_split_names(repo, "dm_ipc2") == ["train", "dev"]
    make_set(seed=1).push_to_hub(repo, overwrite=True)
    assert len(load_dataset(repo, "dm_ipc2", split="dev")) == 3
    make_set(seed=1).push_to_hub(repo, extra_splits={})
    assert files(repo) == [f"dm_ipc{ipc}/train-00000-of-00001.parquet" for ipc in (1, 2)]
    assert get_dataset_split_names(repo, "dm_ipc2") == ["train"]


@pytest.mark.parametrize("name", ["all_rows", "test.all", "TRAIN", "default", "null", "1", "tést", "_"])
def test_other_unusual_names_of_splits_are_read_by_load_dataset(hub, name):
    make_set().push_to_hub(repo := hub.repo(), extra_splits={name: labelled(5)})
    assert raw(load_dataset(repo)[name]) == raw(labelled(5))
    assert len(load_dataset(repo, split=f"{name}[:2]")) == 2
    assert len(list(load_dataset(repo, split=name, streaming=True))) == 5


def test_split_called_all_of_an_earlier_version_can_be_removed(hub, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(splits_module, "_ALL", "")
        make_set().push_to_hub(repo := hub.repo(), extra_splits={"all": labelled(5)})
    make_set(ipc=1).push_to_hub(repo)
    make_set().push_to_hub(repo, extra_splits={})
    assert get_dataset_split_names(repo, "dm_ipc2") == ["train"]
    assert load_dataset(repo, "dm_ipc2", split="train").num_rows == 4


def test_set_with_other_columns_removes_the_extra_splits(hub, caplog):
    repo = hub.repo()
    make_set().push_to_hub(repo, extra_splits={"test": labelled(5)})
    with caplog.at_level(logging.WARNING, "hf_condense"):
        make_set(soft=True).push_to_hub(repo, overwrite=True)
    assert "the splits test beside 'dm_ipc2' lack the columns of the new set and are removed" in caplog.text
    assert get_dataset_split_names(repo) == ["train"]


def test_extra_splits_that_others_replace_are_named(hub, caplog):
    repo = hub.repo()
    make_set().push_to_hub(repo, extra_splits={"test": labelled(5), "more": labelled(3)})
    make_set().push_to_hub(repo, extra_splits={"test": labelled(6)})
    assert "the extra splits of 'dm_ipc2' are replaced, and 'more' is removed" in caplog.text
    assert get_dataset_split_names(repo) == ["train", "test"]
    caplog.clear()
    make_set().push_to_hub(repo, extra_splits={})
    assert "are replaced" not in caplog.text


def test_many_rows_are_cut_into_shards(hub, monkeypatch):
    monkeypatch.setattr(splits_module, "_SHARD_BYTES", 40_000)
    repo = hub.repo()
    make_set().push_to_hub(repo, extra_splits={"test": labelled(450)})
    shards = [path for path in files(repo) if "test" in path]
    assert shards[0] == f"dm_ipc2/test-00000-of-{len(shards):05d}.parquet"
    assert len(shards) == 3
    assert raw(load_dataset(repo, split="test")) == raw(labelled(450))
    make_set().push_to_hub(repo, extra_splits={"test": labelled(8)})
    assert files(repo) == [f"dm_ipc2/{split}-00000-of-00001.parquet" for split in ("test", "train")]
    assert len(load_dataset(repo, split="test")) == 8


def test_shards_hold_the_bytes_of_image_files(hub, tmp_path):
    real_rows(2)[0]["image"].save(tmp_path / "a.png")
    rows = Dataset.from_dict({"image": [str(tmp_path / "a.png")], "label": [1]})
    rows = rows.cast_column("image", Image()).cast_column("label", ClassLabel(names=["cat", "dog"]))
    make_set().push_to_hub(repo := hub.repo(), extra_splits={"test": rows})
    (stored,) = raw(load_dataset(repo, split="test"))["image"]
    assert stored == {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}


def test_rows_of_extra_splits_have_the_columns_of_the_set(hub, caplog):
    repo, small = hub.repo(), make_set(soft=True)
    rows = DatasetDict(test=real_rows(4).with_format("numpy").select([3, 2]))
    with caplog.at_level(logging.WARNING, "hf_condense"):
        small.push_to_hub(repo, extra_splits=rows)
    assert "split 'test' that the condensed set lacks are left out: id, note, boxes, good, wave" in caplog.text
    loaded = load_dataset(repo, split="test")
    assert list(loaded.features) == ["image", "label", "soft_label"]
    assert np.isnan(loaded["soft_label"][:]).all()
    assert np.shape(loaded["soft_label"][:]) == (2, 2)
    assert raw(loaded.remove_columns("soft_label")) == raw(labelled(4).select([3, 2]))


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("train", lambda ds: ds, ValueError, "'train' should be words of letters, .*, and not 'train'"),
        ("../x", lambda ds: ds, ValueError, "'../x' should be words of letters"),
        ("all", lambda ds: ds, ValueError, "'all' is what datasets.load_dataset calls all splits together"),
        ("All", lambda ds: ds, ValueError, "'All' is what datasets.load_dataset calls all splits together"),
        ("test", lambda ds: ds.to_iterable_dataset(), TypeError, "should be a datasets.Dataset; got IterableDataset"),
        (
            "test",
            lambda ds: ds.remove_columns("label"),
            ValueError,
            "'test' has no column 'label', which the condensed set has; its columns are 'image'$",
        ),
        ("test", lambda ds: ds.cast_column("label", Value("int8")), ValueError, r"got Value\('int8'\)"),
        (
            "test",
            lambda ds: ds.cast_column("label", ClassLabel(names=["dog", "cat"])),
            ValueError,
            "as in the condensed",
        ),
        ("test", lambda ds: ds.select([]), ValueError, "'test' has no rows"),
    ],
)
def test_unsuitable_extra_splits_raise(name, change, error, message):
    with pytest.raises(error, match=f"extra_splits: .*{message}"):
        make_set().push_to_hub("alice/pets", extra_splits={name: change(labelled(4))})


@pytest.mark.parametrize(
    "described",
    [
        [],
        {"train": {"num_rows": 1, "num_bytes": 1}},
        {"../test": {"num_rows": 1, "num_bytes": 1}},
        {"te|st": {"num_rows": 1, "num_bytes": 1}},
        {"test": {"num_rows": -1, "num_bytes": 1}},
        {"test": {"num_rows": True, "num_bytes": 1}},
        {"test": {"num_rows": 1}},
        {"test": 3},
    ],
)
def test_damaged_facts_about_extra_splits_raise(described):
    facts = facts_of(make_set(), extra_splits=described)
    with pytest.raises(CondensedFormatError, match="extra_splits"):
        _ = facts.extra_splits


def test_splits_that_are_not_given_by_name_are_refused_before_the_set_is_packed(monkeypatch):
    monkeypatch.setattr(publish, "pack", lambda parts: pytest.fail("packed"))
    with pytest.raises(TypeError, match=r"such as \{'test': ds\['test'\]\}; got a Dataset"):
        make_set().push_to_hub("alice/pets", extra_splits=labelled(3))
