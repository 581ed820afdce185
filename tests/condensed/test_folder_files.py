"""Sets on disk: they come back exactly, and are the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.names import FACTS, PARQUET, TENSORS
from hf_condense.condensed.loading import load_condensed
from hf_condense.condensed.rows import decoded_rows
from tests.support.condensed_sets import (
    assert_same,
    files_below,
    make_coreset,
    make_recipe,
    make_set,
    make_tensors,
    raw,
    real_rows,
)

ROOT = Path(__file__).resolve().parents[2]


def run_clean(code: str, tmp_path: Path, **environment: str) -> str:
    """Run code in a fresh interpreter that has nothing of this one's."""
    variables = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@st.composite
def condensed_sets(draw) -> CondensedDataset:
    """Draw sets of every kind that the format knows."""
    classes = draw(st.integers(1, 3))
    names = [f"klasse {i} | é" for i in range(classes)]
    factor = draw(st.sampled_from([1, 1, 2, 3]))
    shape = [draw(st.sampled_from([1, 3])), *(draw(st.integers(max(factor, 1), 7)) for _ in range(2))]
    ipc = draw(st.integers(1, 3) | st.dictionaries(st.sampled_from(names), st.integers(1, 3), min_size=1))
    values = draw(
        st.sampled_from([list(range(classes)), [f"v{i}" for i in range(classes)], [7 * i - 3 for i in range(classes)]])
    )
    recipe = make_recipe(
        class_names=names,
        label_values=values,
        image_shape=shape,
        factor=factor,
        ipc=ipc,
        seed=draw(st.integers(0, 2**63 - 1)),
        pixel_range=draw(st.sampled_from(["valid", "free"])),
        image_column=draw(st.sampled_from(["image", "img / bild"])),
    )
    tensors = make_tensors(recipe, soft=draw(st.booleans()), student=draw(st.booleans()), zca=draw(st.booleans()))
    if tensors.soft_labels is not None:
        recipe = replace(recipe, temperature=4.0)
    return CondensedDataset.from_parts(decoded_rows(tensors, recipe), tensors, recipe)


@given(condensed_sets())
@settings(max_examples=40, deadline=None)
def test_loaded_set_equals_the_saved_set(small):
    with tempfile.TemporaryDirectory() as folder:
        target = small.save_condensed(folder)
        assert target == Path(folder) / small.recipe.config_name
        assert_same(load_condensed(folder), small)
        assert_same(load_condensed(target), small)


@pytest.mark.parametrize(
    "feature",
    [ClassLabel(names=["cat", "dog"]), Value("int8"), Value("uint16"), Value("int64")],
    ids=["classes", "int8", "uint16", "int64"],
)
@pytest.mark.parametrize("image", [datasets.Image(), datasets.Image(mode="RGB"), datasets.Image(decode=False)])
def test_features_of_the_source_come_back(tmp_path, feature, image):
    small = make_set(features=Features({"label": feature, "image": image}))
    small.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), small)


@pytest.mark.parametrize("text", ["string", "large_string"])
def test_text_and_boolean_labels_come_back(tmp_path, text):
    words = Features({"image": datasets.Image(), "label": Value(text)})
    for small in (
        make_set(features=words, label_values=["chat", "chien"]),
        make_set(label_values=[False, True], ipc=3),
    ):
        small.save_condensed(tmp_path)
        assert_same(load_condensed(tmp_path, small.recipe.config_name), small)


def test_coresets_come_back_with_every_column(tmp_path):
    small = make_coreset()
    small.save_condensed(tmp_path)
    back = load_condensed(tmp_path)
    assert_same(back, small)
    assert back.source is None
    assert list(back.features) == ["id", "image", "label", "note", "boxes", "good", "wave"]


def test_coreset_of_several_row_groups_comes_back(tmp_path):
    small = make_coreset(real_rows(300), ipc=150)
    small.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), small)


def test_coreset_of_image_files_holds_their_bytes(tmp_path):
    ds = real_rows()
    paths = []
    for i, image in enumerate(ds.cast_column("image", datasets.Image(decode=False))["image"]):
        paths.append(str(tmp_path / f"{i}.png"))
        Path(paths[-1]).write_bytes(image["bytes"])
    files = datasets.Dataset.from_dict({"image": paths, "label": list(ds["label"])}).cast(
        Features({"image": datasets.Image(), "label": ds.features["label"]})
    )
    small = make_coreset(files)
    small.save_condensed(tmp_path / "sets")
    expected = [list(row["image"].convert("RGB").tobytes()) for row in small]
    for path in paths:
        Path(path).unlink()
    assert [list(row["image"].convert("RGB").tobytes()) for row in load_condensed(tmp_path / "sets")] == expected


@pytest.mark.parametrize("formatting", [lambda ds: ds.with_format("torch"), lambda ds: ds.with_transform(dict)])
def test_formatting_is_not_saved(tmp_path, formatting):
    small = make_set()
    formatting(small).save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), small)


def test_load_dataset_reads_sets_in_a_process_without_hf_condense(tmp_path):
    sets = tmp_path / "sets"
    learned, real = make_set(soft=True), make_coreset()
    learned.save_condensed(sets)
    real.save_condensed(sets)
    (sets / "preview.png").write_bytes(b"stray files change nothing")
    (sets / "results.json").write_text("{}")
    code = f"""
import json, sys, datasets
found = []
for name in (None, "dm_ipc2", "herding_ipc2"):
    ds = datasets.load_dataset({str(sets)!r}, name, split="train")
    ds[0]
    kinds = ds.features.to_dict()
    ds = ds.cast_column("image", datasets.Image(decode=False))
    rows = [[row["image"]["bytes"].hex(), row["label"], row.get("soft_label")] for row in ds]
    found.append([list(kinds), kinds, rows])
assert "hf_condense" not in sys.modules
print(json.dumps(found))
"""
    default, *named = json.loads(run_clean(code, tmp_path).splitlines()[-1])
    assert default == named[0]
    for small, (columns, kinds, rows) in zip((learned, real), named, strict=True):
        content = raw(small)
        soft = content.get("soft_label", [None] * len(small))
        expected = [[i["bytes"].hex(), c, s] for i, c, s in zip(content["image"], content["label"], soft, strict=True)]
        assert columns == list(small.features)
        assert kinds == json.loads(json.dumps(small.features.to_dict()))
        assert rows == expected


def test_every_process_writes_the_same_bytes(tmp_path):
    code = """
from tests.support.condensed_sets import make_coreset, make_set
for made in (make_set(soft=True, student=True, zca=True, factor=2, pixel_range="free"), make_coreset()):
    made.save_condensed(FOLDER)
"""
    with ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(run_clean, f"FOLDER = {str(tmp_path / seed)!r}{code}", tmp_path, PYTHONHASHSEED=seed)
            for seed in "12"
        ]
        for call in calls:
            call.result()
    first, second = (files_below(tmp_path / seed) for seed in "12")
    assert len(first) == 9
    assert first == second
    for name in ("dm_ipc2_f2", "herding_ipc2"):
        load_condensed(tmp_path / "1", name).save_condensed(tmp_path / "again")
    assert files_below(tmp_path / "again") == first


def test_saved_files_have_the_documented_names_and_types(tmp_path):
    make_set(soft=True, student=True, zca=True).save_condensed(tmp_path)
    assert set(files_below(tmp_path)) == {
        "README.md",
        "dm_ipc2/preview.png",
        "dm_ipc2/train-00000-of-00001.parquet",
        "dm_ipc2/condensed.safetensors",
        "dm_ipc2/condense_config.json",
    }
    data = (tmp_path / "dm_ipc2" / TENSORS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"hf_condense": "1"}
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} == {
        "images": ("F32", [4, 3, 8, 8]),
        "labels": ("I64", [4]),
        "soft_labels": ("F32", [4, 2]),
        "student_lr": ("F32", []),
        "zca_matrix": ("F32", [192, 192]),
        "zca_mean": ("F32", [192]),
    }
    facts = json.loads((tmp_path / "dm_ipc2" / FACTS).read_text())
    assert (facts["format"], facts["format_version"]) == ("hf_condense", "1")
    assert facts["sha256"] == {
        name: hashlib.sha256((tmp_path / "dm_ipc2" / name).read_bytes()).hexdigest() for name in (PARQUET, TENSORS)
    }


def test_distance_of_the_8_bit_images_from_the_floats_is_stored(tmp_path):
    small = make_set(pixel_range="free")
    images = small.synthetic.images
    facts = json.loads((small.save_condensed(tmp_path) / FACTS).read_text())
    clipped = ((images < 0) | (images > 1)).double().mean()
    assert facts["png"]["clipped_fraction"] == pytest.approx(float(clipped))
    excess = max(float(images.max()) - 1, -float(images.min()))
    assert facts["png"]["max_abs_error"] == pytest.approx(excess, rel=1e-5)
    inside = json.loads((make_set(ipc=3).save_condensed(tmp_path) / FACTS).read_text())["png"]
    assert inside["clipped_fraction"] == 0
    assert 0 < inside["max_abs_error"] <= 0.5 / 255 + 1e-6
    assert json.loads((make_coreset().save_condensed(tmp_path) / FACTS).read_text())["png"] is None
