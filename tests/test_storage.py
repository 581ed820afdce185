"""Sets on disk: exact, the same bytes every time, whole whatever fails, and safe to read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_condense.condensed import CondensedDataset, decoded_rows
from hf_condense.errors import CondensedFormatError
from hf_condense.packing import FACTS, PARQUET, TENSORS, pack
from hf_condense.safe_parquet import from_parquet, to_parquet
from hf_condense.safe_read import parse_json
from hf_condense.storage import check_name, list_sets, load_condensed
from tests.condensed_sets import make_coreset, make_recipe, make_set, make_tensors, real_rows

ROOT = Path(__file__).resolve().parents[1]


def raw(ds: datasets.Dataset) -> dict:
    """Return the rows with pictures as bytes."""
    images = [name for name, feature in ds.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        ds = ds.cast_column(name, datasets.Image(decode=False))
    return ds.with_format(None).to_dict()


def assert_same(first: CondensedDataset, second: CondensedDataset) -> None:
    """Check that two sets are equal to the bit."""
    content = [
        {"images": t.images, "labels": t.labels, **t.optional()} for t in (first.synthetic, second.synthetic)
    ]  # fmt: skip
    assert content[0].keys() == content[1].keys()
    for name, tensor in content[0].items():
        assert tensor.dtype == content[1][name].dtype
        assert torch.equal(tensor, content[1][name])
    assert first.synthetic.factor == second.synthetic.factor
    assert first.recipe == second.recipe
    assert first.features == second.features
    assert list(first.features) == list(second.features)
    assert raw(first) == raw(second)


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_clean(code: str, tmp_path: Path, **environment: str) -> str:
    """Run code in a fresh interpreter that has nothing of this one's."""
    known = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], cwd=ROOT, env=known,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
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
        class_names=names, label_values=values, image_shape=shape, factor=factor, ipc=ipc,
        seed=draw(st.integers(0, 2**63 - 1)), pixel_range=draw(st.sampled_from(["valid", "free"])),
        image_column=draw(st.sampled_from(["image", "img / bild"])),
    )  # fmt: skip
    tensors = make_tensors(recipe, soft=draw(st.booleans()), student=draw(st.booleans()), zca=draw(st.booleans()))
    if tensors.soft_labels is not None:
        recipe = replace(recipe, temperature=4.0)
    return CondensedDataset.from_parts(decoded_rows(tensors, recipe), tensors, recipe)


@given(condensed_sets())
@settings(max_examples=40, deadline=None)
def test_what_is_loaded_is_what_was_saved(made):
    with tempfile.TemporaryDirectory() as folder:
        target = made.save_condensed(folder)
        assert target == Path(folder) / made.recipe.config_name
        assert_same(load_condensed(folder), made)
        assert_same(load_condensed(target), made)


@pytest.mark.parametrize(
    "feature",
    [ClassLabel(names=["cat", "dog"]), Value("int8"), Value("uint16"), Value("int64")],
    ids=["classes", "int8", "uint16", "int64"],
)
@pytest.mark.parametrize("image", [datasets.Image(), datasets.Image(mode="RGB"), datasets.Image(decode=False)])
def test_features_of_the_source_come_back(tmp_path, feature, image):
    made = make_set(features=Features({"label": feature, "image": image}))
    made.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), made)


@pytest.mark.parametrize("text", ["string", "large_string"])
def test_text_and_boolean_labels_come_back(tmp_path, text):
    words = Features({"image": datasets.Image(), "label": Value(text)})
    for made in (
        make_set(features=words, label_values=["chat", "chien"]),
        make_set(label_values=[False, True], ipc=3),
    ):
        made.save_condensed(tmp_path)
        assert_same(load_condensed(tmp_path, made.recipe.config_name), made)


def test_coresets_come_back_with_every_column(tmp_path):
    made = make_coreset()
    made.save_condensed(tmp_path)
    back = load_condensed(tmp_path)
    assert_same(back, made)
    assert back.source is None
    assert list(back.features) == ["id", "image", "label", "note", "boxes", "good", "wave"]


def test_a_long_coreset_comes_back(tmp_path):
    made = make_coreset(real_rows(300), ipc=150)
    made.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), made)


def test_a_coreset_of_picture_files_holds_their_bytes(tmp_path):
    ds = real_rows()
    paths = []
    for i, image in enumerate(ds.cast_column("image", datasets.Image(decode=False))["image"]):
        paths.append(str(tmp_path / f"{i}.png"))
        Path(paths[-1]).write_bytes(image["bytes"])
    files = datasets.Dataset.from_dict({"image": paths, "label": list(ds["label"])}).cast(
        Features({"image": datasets.Image(), "label": ds.features["label"]})
    )
    made = make_coreset(files)
    made.save_condensed(tmp_path / "sets")
    expected = [list(row["image"].convert("RGB").tobytes()) for row in made]
    for path in paths:
        Path(path).unlink()
    assert [list(row["image"].convert("RGB").tobytes()) for row in load_condensed(tmp_path / "sets")] == expected


@pytest.mark.parametrize("formatting", [lambda ds: ds.with_format("torch"), lambda ds: ds.with_transform(dict)])
def test_formatting_is_not_saved(tmp_path, formatting):
    made = make_set()
    formatting(made).save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), made)


def test_plain_load_dataset_in_a_process_without_hf_condense(tmp_path):
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
    for made, (columns, kinds, rows) in zip((learned, real), named, strict=True):
        content = raw(made)
        soft = content.get("soft_label", [None] * len(made))
        expected = [[i["bytes"].hex(), c, s] for i, c, s in zip(content["image"], content["label"], soft, strict=True)]
        assert columns == list(made.features)
        assert kinds == json.loads(json.dumps(made.features.to_dict()))
        assert rows == expected


def test_the_same_bytes_in_every_process(tmp_path):
    code = """
from tests.condensed_sets import make_coreset, make_set
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
    assert len(first) == 7
    assert first == second
    for name in ("dm_ipc2_f2", "herding_ipc2"):
        load_condensed(tmp_path / "1", name).save_condensed(tmp_path / "again")
    assert files_below(tmp_path / "again") == first


def test_the_layout(tmp_path):
    make_set(soft=True, student=True, zca=True).save_condensed(tmp_path)
    assert set(files_below(tmp_path)) == {
        "README.md", "dm_ipc2/train-00000-of-00001.parquet", "dm_ipc2/condensed.safetensors",
        "dm_ipc2/condense_config.json",
    }  # fmt: skip
    data = (tmp_path / "dm_ipc2" / TENSORS).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"hf_condense": "1"}
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} == {
        "images": ("F32", [4, 3, 8, 8]), "labels": ("I64", [4]), "soft_labels": ("F32", [4, 2]),
        "student_lr": ("F32", []), "zca_matrix": ("F32", [192, 192]), "zca_mean": ("F32", [192]),
    }  # fmt: skip
    facts = json.loads((tmp_path / "dm_ipc2" / FACTS).read_text())
    assert (facts["format"], facts["format_version"]) == ("hf_condense", "1")
    assert facts["sha256"] == {
        name: hashlib.sha256((tmp_path / "dm_ipc2" / name).read_bytes()).hexdigest() for name in (PARQUET, TENSORS)
    }


def test_how_far_the_pictures_are_from_the_floats_is_measured(tmp_path):
    made = make_set(pixel_range="free")
    images = made.synthetic.images
    facts = json.loads((made.save_condensed(tmp_path) / FACTS).read_text())
    clipped = ((images < 0) | (images > 1)).double().mean()
    assert facts["png"]["clipped_fraction"] == pytest.approx(float(clipped))
    excess = max(float(images.max()) - 1, -float(images.min()))
    assert facts["png"]["max_abs_error"] == pytest.approx(excess, rel=1e-5)
    inside = json.loads((make_set(ipc=3).save_condensed(tmp_path) / FACTS).read_text())["png"]
    assert inside["clipped_fraction"] == 0
    assert 0 < inside["max_abs_error"] <= 0.5 / 255 + 1e-6
    assert json.loads((make_coreset().save_condensed(tmp_path) / FACTS).read_text())["png"] is None


# Several sets in a folder


def test_the_first_set_stays_the_default(tmp_path):
    for ipc in (2, 1, 3):
        make_set(ipc=ipc).save_condensed(tmp_path)
    assert list_sets(tmp_path) == ["dm_ipc1", "dm_ipc2", "dm_ipc3"]
    assert load_condensed(tmp_path).recipe.ipc == 2
    assert load_condensed(str(tmp_path), "dm_ipc3").recipe.ipc == 3
    with pytest.raises(ValueError, match=r"no condensed set named 'dm_ipc4'. It has: dm_ipc1, dm_ipc2, dm_ipc3"):
        load_condensed(tmp_path, "dm_ipc4")


@pytest.mark.parametrize("text", [None, "", "# Mine\n", "---\nlicense: mit\n---\n"])
def test_several_sets_and_no_default(tmp_path, text):
    for ipc in (1, 2):
        make_set(ipc=ipc).save_condensed(tmp_path)
    (tmp_path / "README.md").unlink()
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"several condensed sets: dm_ipc1, dm_ipc2. Pass one as 'name'"):
        load_condensed(tmp_path)
    assert load_condensed(tmp_path, "dm_ipc1").recipe.ipc == 1


def test_the_folder_of_one_set(tmp_path):
    target = make_set().save_condensed(tmp_path)
    assert load_condensed(target, "dm_ipc2").recipe.ipc == 2
    with pytest.raises(ValueError, match="folder of one set, 'dm_ipc2'; got name='dm_ipc1'"):
        load_condensed(target, "dm_ipc1")


@pytest.mark.parametrize("name", ["../dm_ipc2", "/etc", "dm_ipc2/", ".", ".."])
def test_a_name_is_never_a_path(tmp_path, name):
    make_set().save_condensed(tmp_path)
    with pytest.raises(ValueError, match="no condensed set named"):
        load_condensed(tmp_path, name)


def test_a_missing_folder_and_a_foreign_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'.*save_condensed"):
        load_condensed(tmp_path / "nowhere")
    with pytest.raises(CondensedFormatError, match=r"no condensed set .*datasets.load_dataset"):
        load_condensed(tmp_path)


def test_an_identical_set_changes_nothing(tmp_path):
    target = make_set().save_condensed(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_set().save_condensed(tmp_path) == target
    load_condensed(tmp_path).save_condensed(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_another_set_of_the_same_name_is_refused(tmp_path):
    make_set().save_condensed(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(FileExistsError, match=r"another recipe \(seed, steps differ\).*overwrite=True"):
        make_set(seed=1, steps=20).save_condensed(tmp_path)
    other = make_set()
    other.synthetic.images.mul_(0.5)
    with pytest.raises(FileExistsError, match="other tensors of the same recipe"):
        other.save_condensed(tmp_path)
    assert files_below(tmp_path) == before
    make_set(seed=1, steps=20).save_condensed(tmp_path, overwrite=True)
    assert_same(load_condensed(tmp_path), make_set(seed=1, steps=20))


def test_new_measurements_of_the_same_set_are_taken(tmp_path):
    make_set().save_condensed(tmp_path)
    measured = make_set(evaluation=[{"mean": 0.5}], runtime={"seconds": 9.0}, created_at="2027-01-01T00:00:00Z")
    measured.save_condensed(tmp_path)
    assert load_condensed(tmp_path).recipe.evaluation == [{"mean": 0.5}]


def test_something_else_of_the_same_name_is_kept(tmp_path):
    (tmp_path / "dm_ipc2").mkdir()
    (tmp_path / "dm_ipc2" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        make_set().save_condensed(tmp_path)
    make_set().save_condensed(tmp_path, overwrite=True)
    assert (tmp_path / "dm_ipc2" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "x" * 65, "train", "test_dm", "dm.eval", "data"])
def test_names_that_are_paths_or_splits_are_refused(name):
    with pytest.raises(ValueError, match="config name"):
        check_name(name)


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON values only"):
        make_set(evaluation=[{"std": float("nan")}]).save_condensed(tmp_path)
    with pytest.raises(ValueError, match="JSON values only"):
        make_set(options={"lr": object()}).save_condensed(tmp_path)
    with pytest.raises(ValueError, match="readers take 1,048,576"):
        make_set(options={"long": "x" * (1 << 20)}).save_condensed(tmp_path)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ipc": 3}, "class 'cat' has 2 images; ipc is 3"),
        ({"image_shape": [3, 8, 9]}, r"images should be F32 \[4, 3, 8, 9\]"),
        ({"factor": 2}, "the tensors have factor 1, the recipe has 2"),
        ({"kind": "coreset", "rows": [1, 2]}, "2 rows for 4 images"),
        ({"mean": [0.5]}, "one mean"),
    ],
)
def test_parts_that_contradict_each_other_are_not_saved(tmp_path, changes, match):
    made = make_set()
    with pytest.raises(ValueError, match=match):
        CondensedDataset.from_parts(made, made.synthetic, make_recipe(**changes)).save_condensed(tmp_path)
    assert files_below(tmp_path) == {}


# Whatever fails, the earlier set is whole


class FailingCall:
    """Stands in for a function of `os` and fails at one of its calls, as a full disk does."""

    def __init__(self, real, at: int) -> None:
        self.real, self.left = real, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("there", [False, True], ids=["new", "over"])
def test_no_space_left_leaves_the_earlier_set_whole(tmp_path, monkeypatch, call, at, there):
    folder = tmp_path / "sets"
    folder.mkdir()
    if there:
        make_set().save_condensed(folder)
    before = files_below(folder)
    monkeypatch.setattr(os, call, FailingCall(getattr(os, call), at))
    with pytest.raises(OSError, match=r"could not save to .*No space left on device; .* untouched") as caught:
        make_set(seed=1, source={"name": "other"}).save_condensed(folder, overwrite=True)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert files_below(folder) == before
    assert [path.name for path in folder.iterdir()] == (["dm_ipc2", "README.md"] if there else []) or there
    if there:
        assert_same(load_condensed(folder), make_set())
    make_set(seed=1).save_condensed(folder, overwrite=True)
    assert_same(load_condensed(folder), make_set(seed=1))


def test_an_interrupt_leaves_the_earlier_set_whole(tmp_path, monkeypatch):
    make_set().save_condensed(tmp_path)
    before = files_below(tmp_path)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_set(seed=1).save_condensed(tmp_path, overwrite=True)
    assert files_below(tmp_path) == before


# Nothing that is read is trusted


@pytest.fixture(scope="module")
def packed() -> dict[str, dict[str, bytes]]:
    return {"synthetic": pack(make_set(soft=True, student=True, pixel_range="free")), "coreset": pack(make_coreset())}


def lay(folder: Path, files: dict[str, bytes], *, sealed: bool = True, **facts) -> Path:
    """Write the files of a set; sealed: with the hashes that their author would have written."""
    folder.mkdir(exist_ok=True)
    changed = json.loads(files[FACTS])
    if sealed:
        changed["sha256"] = {name: hashlib.sha256(files[name]).hexdigest() for name in (PARQUET, TENSORS)}
    changed.update(facts)
    for name, data in {**files, FACTS: json.dumps(changed).encode()}.items():
        (folder / name).write_bytes(data)
    return folder


def with_header(data: bytes, change) -> bytes:
    """Return a safetensors file whose header was changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(change(header) or header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(("kind", "file"), [("synthetic", TENSORS), ("coreset", TENSORS), ("coreset", PARQUET)])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_damage_is_noticed(packed, kind, file, data):
    files = dict(packed[kind])
    content = bytearray(files[file])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(content) - 1))
    for damaged in (bytes(content), bytes(content[:cut]), bytes(content) + b"x"):
        with tempfile.TemporaryDirectory() as folder:
            lay(Path(folder), {**files, file: damaged}, sealed=False)
            with pytest.raises(CondensedFormatError, match="does not match its sha256"):
                load_condensed(folder)


@pytest.mark.parametrize(("kind", "file"), [("synthetic", TENSORS), ("coreset", PARQUET)])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_change_is_refused_or_loads(packed, kind, file, data):
    files = dict(packed[kind])
    content = bytearray(files[file])
    length = 600 if file == TENSORS else 3000  # the header is in front, the footer at the end
    span = range(length) if file == TENSORS else range(len(content) - length, len(content))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.sampled_from(span))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        lay(Path(folder), {**files, file: bytes(content)})
        try:
            back = load_condensed(folder)
        except CondensedFormatError:
            return
        assert len(back) == 4


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_json_is_refused_or_loads(packed, data):
    files = dict(packed["synthetic"])
    text = bytearray(files[FACTS])
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 8))] = data.draw(
        st.binary(max_size=8) | st.sampled_from([b"NaN", b"1e999"])
    )
    with tempfile.TemporaryDirectory() as folder:
        lay(Path(folder), files)
        (Path(folder) / FACTS).write_bytes(text)
        try:
            load_condensed(folder)
        except CondensedFormatError:
            return


HEADERS = {
    "claims 2^62 bytes": lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
    "of 2 MiB": lambda data: (2 << 20).to_bytes(8, "little") + b" " * (2 << 20) + data[8:],
    "cut in its length": lambda data: data[:5],
    "empty": lambda data: b"",
    "not JSON": lambda data: data[:8] + b"x" + data[9:],
    "300 tensors": lambda data: with_header(
        data, lambda h: {**h, **{f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300)}}
    ),
    "a tensor that is a path": lambda data: with_header(data, lambda h: {**h, "../../etc/x": h["student_lr"]}),
    "no images": lambda data: with_header(data, lambda h: {k: v for k, v in h.items() if k != "images"}),
    "a shape of 2^40 by 0": lambda data: with_header(data, lambda h: h["images"].update(shape=[0, 1 << 40])),
    "a huge count": lambda data: with_header(data, lambda h: h["images"].update(shape=[1 << 60, 3, 8, 8])),
    "a shape of text": lambda data: with_header(data, lambda h: h["images"].update(shape="4388")),
    "a count that is a bool": lambda data: with_header(data, lambda h: h["images"].update(shape=[True, 3, 8, 8])),
    "half floats": lambda data: with_header(data, lambda h: h["images"].update(dtype="F16")),
    "offsets of text": lambda data: with_header(data, lambda h: h["labels"].update(data_offsets=["0", "32"])),
    "offsets below zero": lambda data: with_header(data, lambda h: h["labels"].update(data_offsets=[-32, 0])),
    "an overlap": lambda data: with_header(data, lambda h: h["student_lr"].update(data_offsets=[0, 4])),
    "trailing bytes": lambda data: data + b"\0",
    "two metadata keys": lambda data: with_header(data, lambda h: h["__metadata__"].update(more="x")),
    "no metadata": lambda data: with_header(data, lambda h: {k: v for k, v in h.items() if k != "__metadata__"}),
    "an entry of text": lambda data: with_header(data, lambda h: {**h, "images": "x"}),
    "deep nesting": lambda data: (10_000).to_bytes(8, "little") + b"[" * 10_000,
    "a key twice": lambda data: (18).to_bytes(8, "little") + b'{"a": 1, "a": 234}' + data,
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS.keys())
def test_crafted_headers_are_refused(packed, tmp_path, change):
    files = packed["synthetic"]
    with pytest.raises(CondensedFormatError, match=r"condensed\.safetensors: "):
        load_condensed(lay(tmp_path, {**files, TENSORS: change(files[TENSORS])}))


VALUES = {
    "labels out of range": (
        "labels",
        torch.tensor([0, 0, 1, 2]),
        r"labels range over \[0, 2\] but there are 2 classes",
    ),
    "negative labels": ("labels", torch.tensor([-1, 0, 1, 1]), r"labels range over \[-1, 1\]"),
    "unsorted labels": ("labels", torch.tensor([0, 1, 0, 1]), "sorted by class"),
    "other counts": ("labels", torch.tensor([0, 1, 1, 1]), r"class '\w+' has \d images; ipc is 2"),
    "NaN pixels": ("images", torch.full((4, 3, 8, 8), torch.nan), "images holds NaN or infinite values"),
    "infinite soft labels": ("soft_labels", torch.full((4, 2), torch.inf), "soft_labels holds NaN or infinite values"),
}


@pytest.mark.parametrize(("name", "value", "match"), VALUES.values(), ids=VALUES.keys())
def test_values_that_make_no_sense_are_refused(packed, tmp_path, name, value, match):
    from safetensors.torch import load, save

    files = packed["synthetic"]
    tensors = {**load(files[TENSORS]), name: value}
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(lay(tmp_path, {**files, TENSORS: save(tensors, metadata={"hf_condense": "1"})}))


def recipe_with(**changes):
    """Return facts whose recipe was changed."""
    return lambda facts: {"recipe": {**facts["recipe"], **changes}}


FACT_CHANGES = {
    "another format": (lambda facts: {"format": "other"}, "format should be 'hf_condense'"),
    "a newer version": (lambda facts: {"format_version": "2"}, "format_version '2': .* reads 1; upgrade hf_condense"),
    "a version of nonsense": (lambda facts: {"format_version": [1]}, "format_version"),
    "no recipe": (lambda facts: {"recipe": None}, "recipe should be an object"),
    "no hashes": (lambda facts: {"sha256": 1}, "sha256 should be an object"),
    "hashes of text": (lambda facts: {"sha256": {TENSORS: "x"}}, "does not match its sha256"),
    "features of a file": (lambda facts: {"features": {"image": {"_type": "Audio"}, "label": {}}}, "does not suit"),
    "another column": (lambda facts: {"features": {**facts["features"], "more": {}}}, "features should be"),
    "image feature of text": (lambda facts: {"features": {**facts["features"], "image": "x"}}, "does not suit"),
    "an odd mode": (
        lambda facts: {"features": {**facts["features"], "image": {"_type": "Image", "mode": "../x"}}}, "does not suit",
    ),
    "an odd dtype": (
        lambda facts: {"features": {**facts["features"], "label": {"_type": "Value", "dtype": "int64[x]"}}}, "suit",
    ),
    "a missing field": (lambda facts: {"recipe": {"method": "dm"}}, "recipe: missing"),
    "a field of another type": (recipe_with(seed="0"), "recipe: seed should be int"),
    "an empty shape": (recipe_with(image_shape=[]), "image_shape"),
    "a huge side": (recipe_with(image_shape=[3, 1 << 40, 8]), "image_shape"),
    "a huge factor": (recipe_with(factor=9), "factor"),
    "no ipc": (recipe_with(ipc={}), "ipc"),
    "an unknown class": (recipe_with(ipc={"cow": 2}), "ipc should name classes"),
    "no std": (recipe_with(std=[0, 1, 1]), "std"),
    "equal class names": (recipe_with(class_names=["cat", "cat"]), "should differ"),
    "labels that do not fit": (recipe_with(label_values=["a", "b"]), "does not suit"),
    "labels of two kinds": (recipe_with(label_values=[0, "b"]), "does not suit"),
    "a coreset without rows": (recipe_with(kind="coreset"), "rows should be given"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "match"), FACT_CHANGES.values(), ids=FACT_CHANGES.keys())
def test_crafted_facts_are_refused(packed, tmp_path, change, match):
    files = packed["synthetic"]
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(lay(tmp_path, files, **change(json.loads(files[FACTS]))))


def test_labels_that_the_column_cannot_hold_are_refused(packed, tmp_path):
    files = packed["synthetic"]
    facts = json.loads(files[FACTS])
    recipe = {**facts["recipe"], "label_values": [0, 300]}
    features = {**facts["features"], "label": {"_type": "Value", "dtype": "int8"}}
    with pytest.raises(CondensedFormatError):
        load_condensed(lay(tmp_path, files, recipe=recipe, features=features))


def test_unknown_facts_and_recipe_fields_are_kept_or_passed_over(packed, tmp_path):
    files = packed["synthetic"]
    recipe = {**json.loads(files[FACTS])["recipe"], "mood": ["good"]}
    back = load_condensed(lay(tmp_path / "one", files, recipe=recipe, more={"x": 1}))
    assert back.recipe.extra == {"mood": ["good"]}
    back.save_condensed(tmp_path / "two")
    assert load_condensed(tmp_path / "two").recipe == back.recipe


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"1", b"{", b"\xff{}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}',
        b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"9" * 30 + b"}", b'{"a": ' + b"[" * 100_000, b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", b'{"\\udfff": 1}',
    ],
)  # fmt: skip
def test_json_that_readers_disagree_on_is_refused(text):
    with pytest.raises(CondensedFormatError, match=r"^x\.json: "):
        parse_json(text, "x.json")


def test_missing_large_and_odd_files_are_refused(packed, tmp_path):
    folder = lay(tmp_path / "set", packed["synthetic"])
    (folder / TENSORS).unlink()
    with pytest.raises(CondensedFormatError, match=r"condensed\.safetensors: missing"):
        load_condensed(folder)
    os.mkfifo(folder / TENSORS)
    with pytest.raises(CondensedFormatError, match="not a regular file"):
        load_condensed(folder)
    with (folder / FACTS).open("ab") as file:
        file.truncate(1 << 40)  # a sparse file: no space is taken
    with pytest.raises(CondensedFormatError, match="at most 1,048,576 are read"):
        load_condensed(folder)


# Parquet, which only coresets are read from


def real_table(rows: int = 4, **columns) -> pa.Table:
    """Return a table such as a coreset's."""
    image = pa.array([{"bytes": b"x", "path": None}] * rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table({"image": image, "label": [0] * rows, **columns})


def written(table: pa.Table, **options) -> bytes:
    """Return a table as other writers write it."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


POOLS = []  # kept for ever: Arrow may still free into a pool after the test


def peak_bytes(action) -> int:
    """Return how much memory Arrow took at most during an action."""
    pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        action()
    finally:
        pa.set_memory_pool(before)
    return pool.max_memory()


def null_bomb(values: int) -> bytes:
    """Return a file whose one list holds so many nulls, which take no bytes."""
    array = pa.ListArray.from_arrays([0, values], pa.nulls(values, pa.int64()))
    return written(pa.table({"x": array}), compression="none", use_dictionary=False, write_statistics=False)


PLAIN = {"compression": "none", "use_dictionary": False}
BOMBS = {
    "dictionary": lambda: written(pa.table({"x": ["a" * (1 << 16)] * 300}), compression="zstd"),
    "dictionary, not compressed": lambda: written(pa.table({"x": ["a" * 1000] * 300}), compression="none"),
    "compression": lambda: written(
        pa.table({"x": ["a" * (1 << 20)] + [""] * 299}), compression="zstd", use_dictionary=False
    ),
    "prefixes": lambda: written(
        pa.table({"x": ["a" * (1 << 16)] * 300}), **PLAIN, column_encoding={"x": "DELTA_BYTE_ARRAY"}
    ),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_files_that_unfold_are_refused_before_memory_is_taken(bomb):
    data = bomb()

    def read():
        with pytest.raises(CondensedFormatError, match=r"x: a (column chunk|page)"):
            from_parquet(data, 300, "x")

    assert peak_bytes(lambda: pq.read_table(io.BytesIO(data))) > 250_000
    assert peak_bytes(read) < 100_000


def test_a_list_of_very_many_nulls_is_refused():
    data = null_bomb(1 << 22)
    assert len(data) < 2000
    with pytest.raises(CondensedFormatError, match=r"4,194,304 values in"):
        from_parquet(data, 1, "x")
    assert from_parquet(null_bomb(1 << 12), 1, "x").num_rows == 1


def test_other_wrong_files_are_refused():
    good = to_parquet(real_table())
    assert from_parquet(good, 4, "x").equals(real_table())
    for data, match in (
        (good, "holds 4 rows; the set has 5"),
        (b"PAR1" + good[4:-12] + good[-8:], "x: "),
        (b"", "no Parquet file"),
        (b"PAR1" * 4, "no Parquet file"),
        (good[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1", "no Parquet file"),
        (to_parquet(pa.table({f"c{i}": [0] * 5 for i in range(1100)})), "more than 1,024 columns"),
    ):
        with pytest.raises(CondensedFormatError, match=match):
            from_parquet(data, 5, "x")


def nested(array: pa.Array) -> list[pa.Array]:
    """Return an array as it is and one level deeper in each way."""
    return [
        array,
        pa.StructArray.from_arrays([array], ["inner"]),
        pa.ListArray.from_arrays([0, 1], array),
        pa.LargeListArray.from_arrays([0, 1], array),
        pa.FixedSizeListArray.from_arrays(array, 1),
        pa.MapArray.from_arrays([0, 1], pa.array(["k"]), array),
    ]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_file_that_is_only_named_is_refused_however_deep(depth):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    hidden, held, nothing = (
        pa.array([value], kind)
        for value in ({"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": "x.png"}, None)
    )
    for array in nested(hidden) if depth == 1 else [deep for one in nested(hidden) for deep in nested(one)]:
        with pytest.raises(CondensedFormatError, match="'x' names local files"):
            from_parquet(to_parquet(pa.table({"x": array})), 1, "file")
    for array in [*nested(held), *nested(nothing)]:
        from_parquet(to_parquet(pa.table({"x": array})), 1, "file")


CORESETS = {
    "an image without bytes": (lambda t: ("image", pa.nulls(4, t["image"].type)), "has no bytes"),
    "another label": (lambda t: ("label", pa.array([0, 0, 0, 1])), "labels are not those"),
    "a null label": (lambda t: ("label", pa.array([0, 1, 0, None])), "labels are not those"),
    "an image of text": (lambda t: ("image", pa.array(["/etc/passwd"] * 4)), "should hold images"),
    "a path": (
        lambda t: ("image", pa.array([{"bytes": None, "path": "/etc/passwd"}] * 4, t["image"].type)), "local files",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "match"), CORESETS.values(), ids=CORESETS.keys())
def test_crafted_coresets_are_refused(packed, tmp_path, change, match):
    files = packed["coreset"]
    table = pq.read_table(io.BytesIO(files[PARQUET]))
    name, column = change(table)
    at = table.column_names.index(name)
    changed = table.set_column(at, name, column)
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(lay(tmp_path, {**files, PARQUET: to_parquet(changed)}))


@pytest.mark.parametrize("metadata", [b"{", b'{"info": {"features": {"image": {"_type": "system"}}}}', b'{"info": 1}'])
def test_features_that_cannot_be_read_are_refused(packed, tmp_path, metadata):
    files = packed["coreset"]
    table = pq.read_table(io.BytesIO(files[PARQUET])).replace_schema_metadata({b"huggingface": metadata})
    with pytest.raises(CondensedFormatError, match=r"train-00000-of-00001\.parquet: "):
        load_condensed(lay(tmp_path, {**files, PARQUET: to_parquet(table)}))
