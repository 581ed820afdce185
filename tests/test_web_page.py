"""The page of a folder or a repository: written at once or not at all, and with the nearest real images on request."""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from PIL import Image

from hf_condense import condense_dataset
from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.paths import cache_folder
from hf_condense.condensed.page.render import MARK
from hf_condense.web_page import write_page
from tests.condensed.test_page import Reader, measured
from tests.support.condensed_sets import make_coreset, make_set
from tests.support.torch_states import STATES, in_state
from tests.support.watched_bars import watch_decoding


@pytest.mark.parametrize("state", STATES)
def test_page_is_the_same_whatever_state_torch_is_in(state, tmp_path):
    measured(make_set()).save_condensed(tmp_path)
    expected = write_page(tmp_path, tmp_path / "page.html").read_bytes()
    with in_state(state):
        assert write_page(tmp_path, tmp_path / "other.html").read_bytes() == expected


def test_page_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    make_set().save_condensed(tmp_path)
    page = write_page(tmp_path, tmp_path / "page.html")
    expected = page.read_bytes()
    monkeypatch.setattr(type(page), "write_text", half_written)
    with pytest.raises(OSError, match="no space"):
        write_page(tmp_path, page)
    assert page.read_bytes() == expected


def half_written(path, text, *args, **options):
    path.write_bytes(text[:99].encode())
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_page_of_a_folder_shows_every_set_and_says_which_is_the_default(tmp_path):
    for small in (make_coreset(), measured(make_set())):
        small.save_condensed(tmp_path / "sets")
    path = write_page(tmp_path / "sets", tmp_path / "new" / "page.html")
    page = Reader(path.read_text(encoding="utf-8"))
    assert [article["id"] for article in page.all("article")] == ["dm_ipc2", "herding_ipc2"]
    is_default = ["when no name is given" in text for text in page.texts["article"]]
    assert is_default == [False, True]  # the first one that was saved
    alone = write_page(tmp_path / "sets" / "dm_ipc2", tmp_path / "alone.html").read_text(encoding="utf-8")
    assert [article["id"] for article in Reader(alone).all("article")] == ["dm_ipc2"]


@pytest.mark.parametrize("name", ["README.md", "dm_ipc2/condensed.safetensors"])
def test_file_that_is_no_page_is_refused_and_kept(name, tmp_path):
    make_set().save_condensed(tmp_path)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(FileExistsError, match=r"hf_condense did not write it.* choose another path") as error:
        write_page(tmp_path, tmp_path / name)
    assert name in str(error.value)
    assert (tmp_path / name).read_bytes() == before


def test_earlier_page_and_an_empty_file_are_replaced_and_the_page_of_somebody_else_is_not(tmp_path):
    make_set(ipc=1).save_condensed(tmp_path)
    page = tmp_path / "page.html"
    page.touch()
    earlier = write_page(tmp_path, page).read_text(encoding="utf-8")
    make_coreset().save_condensed(tmp_path)
    assert MARK in earlier != write_page(tmp_path, page).read_text(encoding="utf-8")
    page.write_text("<!doctype html><p>mine</p>", encoding="utf-8")
    with pytest.raises(FileExistsError, match="hf_condense did not write it"):
        write_page(tmp_path, page)


def test_damaged_tensors_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(CondensedFormatError, match="no condensed set"):
        write_page(tmp_path, tmp_path / "page.html")
    target = make_set().save_condensed(tmp_path)
    (target / "condensed.safetensors").write_bytes(b"strange")
    with pytest.raises(CondensedFormatError, match="sha256"):
        write_page(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_revision_of_a_folder_is_refused(tmp_path):
    make_set().save_condensed(tmp_path)
    with pytest.raises(ValueError, match="revision='main' is for repositories"):
        write_page(tmp_path, tmp_path / "page.html", revision="main")


def test_a_push_adds_a_page_on_request_and_later_pushes_renew_it(hub, tmp_path):
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

    def published() -> str:
        with open(hf_hub_download("alice/sets", "page.html", repo_type="dataset"), encoding="utf-8") as file:
            return file.read()

    make_set().push_to_hub("alice/sets")
    assert "page.html" not in HfApi().list_repo_files("alice/sets", repo_type="dataset")
    first = make_set().push_to_hub("alice/sets", page=True)
    assert MARK in published()
    assert make_set().push_to_hub("alice/sets", page=True).oid == first.oid, "nothing changed"
    make_coreset().push_to_hub("alice/sets")
    assert re.findall(r'<article id="(\w+)"', published()) == ["dm_ipc2", "herding_ipc2"]
    assert "load_condensed(&quot;alice/sets&quot;, &quot;dm_ipc2&quot;)" in published()
    assert write_page("alice/sets", tmp_path / "page.html").read_text(encoding="utf-8") == published()
    HfApi().create_commit(
        "alice/sets",
        [CommitOperationAdd("page.html", b"<p>mine</p>")],
        commit_message="mine",
        repo_type="dataset",
    )
    make_set(method="dance").push_to_hub("alice/sets")
    assert published() == "<p>mine</p>", "a page of somebody else is left alone"
    with pytest.raises(FileExistsError, match=r"page\.html that hf_condense did not write"):
        make_set(method="mtt").push_to_hub("alice/sets", page=True)


def test_each_learned_image_stands_above_the_real_image_nearest_to_it(toy, tmp_path):
    small = condense_dataset(toy, "dm", 2, steps=2, network="convnet-w4-d1", progress=False, compile=False)
    small.save_condensed(tmp_path)
    condense_dataset(toy, "random", 2, progress=False).save_condensed(tmp_path)
    page = Reader(write_page(tmp_path, tmp_path / "page.html", source=toy).read_text(encoding="utf-8"))
    drawn = [image for image in page.all("img") if "nearest to" in image["alt"]]
    assert len(drawn) == len(small), "none for real rows"
    real = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in toy["image"]]).double() / 255
    labels = small.synthetic.row_labels
    order = [row for c in range(3) for row in (labels == c).nonzero().flatten().tolist()]
    for row, image in zip(order, drawn, strict=True):
        distances = (real - small.synthetic.decoded()[0][row].double()).square().flatten(1).mean(1).sqrt()
        assert image["alt"].endswith(f", distance {distances.min():.4f}")
        assert (pixels_of(image) == (real[distances.argmin()] * 255).round().byte().permute(1, 2, 0).numpy()).all()
    assert "nearest to" not in write_page(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")


def pixels_of(image: dict[str, str | None]) -> np.ndarray:
    data = str(image["src"]).removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture)


def test_source_that_is_no_dataset_or_has_no_images_is_refused(toy, tmp_path):
    make_set().save_condensed(tmp_path)
    with pytest.raises(TypeError, match=r"source should be a datasets\.Dataset; got str"):
        write_page(tmp_path, tmp_path / "page.html", source="mnist")
    with pytest.raises(ValueError, match="source: "):
        write_page(tmp_path, tmp_path / "page.html", source=toy.remove_columns("image"))
    assert not (tmp_path / "page.html").exists()


def test_folder_of_one_set_has_its_name_also_as_a_point(tmp_path, monkeypatch):
    monkeypatch.chdir(make_set().save_condensed(tmp_path))
    page = Reader(write_page(".", tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.texts["h2"] == ["dm_ipc2"]


def test_set_of_another_source_is_shown_without_real_images(toy, tmp_path, caplog):
    condense_dataset(toy, "dm", 1, steps=1, network="convnet-w4-d1", progress=False, compile=False).save_condensed(
        tmp_path
    )
    path = write_page(tmp_path, tmp_path / "page.html", source=toy.select(range(30)))
    assert "nearest to" not in path.read_text(encoding="utf-8")
    assert "dm_ipc1 was made from other images than those of source" in caplog.text


def test_set_whose_columns_the_source_lacks_is_shown_without_real_images(toy, tmp_path, caplog):
    options = {"steps": 1, "network": "convnet-w4-d1", "progress": False, "compile": False}
    small = condense_dataset(toy, "dm", 1, **options)
    small.save_condensed(tmp_path)
    expected = write_page(tmp_path, tmp_path / "page.html", source=toy).read_text(encoding="utf-8").count("nearest to")
    other = (
        toy.select(range(30)).rename_column("label", "kind").cast_column("note", ClassLabel(names=list(toy["note"])))
    )
    condense_dataset(other, "dance", 1, label_column="kind", **options).save_condensed(tmp_path)
    source = toy.cast_column(
        "note", ClassLabel(names=list(toy["note"]))
    )  # without a column "kind", two may be the label
    page = write_page(tmp_path, tmp_path / "page.html", source=source).read_text(encoding="utf-8")
    assert page.count("nearest to") == expected > 0
    assert "source does not suit dance_ipc1, so no real images are shown below its own: source: " in caplog.text
    assert "dm_ipc1" not in caplog.text
    with pytest.raises(ValueError, match="source: "):
        write_page(tmp_path / "dance_ipc1", tmp_path / "page.html", source=source)


def test_real_images_are_cached_and_progress_is_shown_only_on_request(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    options = {"steps": 1, "network": "convnet-w4-d1", "cache": False, "progress": False, "compile": False}
    condense_dataset(toy, "dm", 1, **options).save_condensed(tmp_path / "sets")
    shown = watch_decoding(monkeypatch)
    bare = write_page(tmp_path / "sets", tmp_path / "bare.html", source=toy, cache=False, progress=False)
    assert shown == [False]
    assert not cache_folder("sources").exists()
    kept = write_page(tmp_path / "sets", tmp_path / "kept.html", source=toy)
    assert shown == [False, True]
    assert list(cache_folder("sources").iterdir())
    assert "nearest to" in kept.read_text(encoding="utf-8")
    assert bare.read_bytes() == kept.read_bytes()


def test_folder_in_place_of_the_page_is_refused(tmp_path):
    make_set().save_condensed(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"is a folder; name a file for the page, such as .*\.html"):
        write_page(tmp_path, tmp_path)


def test_card_beside_a_single_set_is_not_read(tmp_path):
    make_set().save_condensed(tmp_path / "sets")
    (set_folder,) = [path for path in (tmp_path / "sets").iterdir() if path.is_dir()]
    shutil.copytree(set_folder, tmp_path / "other" / "mine")
    (tmp_path / "other" / "README.md").write_text("---\na: [\n---\n")
    page = write_page(tmp_path / "other" / "mine", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "This set is loaded when no name is given" in page
