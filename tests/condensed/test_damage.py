"""Nothing that is read from a set on disk is trusted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.facts import FACTS, PARQUET, TENSORS
from hf_condense.condensed.loading import load_condensed
from hf_condense.condensed.packing import pack
from hf_condense.condensed.parquet import to_parquet
from hf_condense.condensed.untrusted import parse_json
from tests.support.condensed_sets import make_coreset, make_set


@pytest.fixture(scope="module")
def packed() -> dict[str, dict[str, bytes]]:
    return {
        "synthetic": pack(make_set(soft=True, student=True, pixel_range="free").parts).files,
        "coreset": pack(make_coreset().parts).files,
    }


def write_set(folder: Path, files: dict[str, bytes], *, rehash: bool = True, **facts) -> Path:
    """Write the files of a set, with the hashes that a forger would write unless `rehash` is False."""
    folder.mkdir(exist_ok=True)
    changed = json.loads(files[FACTS])
    if rehash:
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
def test_changed_bytes_do_not_match_their_hash(packed, kind, file, data):
    files = dict(packed[kind])
    content = bytearray(files[file])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(content) - 1))
    for damaged in (bytes(content), bytes(content[:cut]), bytes(content) + b"x"):
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), {**files, file: damaged}, rehash=False)
            with pytest.raises(CondensedFormatError, match="does not match its sha256"):
                load_condensed(folder)


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
        load_condensed(write_set(tmp_path, {**files, TENSORS: change(files[TENSORS])}))


VALUES = {
    "labels out of range": (
        "labels",
        torch.tensor([0, 0, 1, 2]),
        r"labels range over \[0, 2\] but there are 2 classes",
    ),
    "negative labels": ("labels", torch.tensor([-1, 0, 1, 1]), r"labels range over \[-1, 1\]"),
    "unsorted labels": ("labels", torch.tensor([0, 1, 0, 1]), "sorted by class"),
    "other counts": ("labels", torch.tensor([0, 1, 1, 1]), r"class '\w+' has \d entries; its ipc of 2 holds 2"),
    "NaN pixels": ("images", torch.full((4, 3, 8, 8), torch.nan), "images holds NaN or infinite values"),
    "infinite soft labels": ("soft_labels", torch.full((4, 2), torch.inf), "soft_labels holds NaN or infinite values"),
}


@pytest.mark.parametrize(("name", "value", "match"), VALUES.values(), ids=VALUES.keys())
def test_tensors_without_sense_are_refused(packed, tmp_path, name, value, match):
    from safetensors.torch import load, save

    files = packed["synthetic"]
    tensors = {**load(files[TENSORS]), name: value}
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(write_set(tmp_path, {**files, TENSORS: save(tensors, metadata={"hf_condense": "1"})}))


def recipe_with(**changes):
    """Return facts whose recipe was changed."""
    return lambda facts: {"recipe": {**facts["recipe"], **changes}}


FACT_CHANGES = {
    "another format": (lambda facts: {"format": "other"}, "format should be 'hf_condense'"),
    "a newer version": (
        lambda facts: {"format_version": "3"},
        "format_version '3': .* reads 1 and 2; upgrade hf_condense",
    ),
    "a version that its form does not have": (
        lambda facts: {"format_version": "2"},
        "storage 'pixels' has format_version '1'; got '2'",
    ),
    "a version of nonsense": (lambda facts: {"format_version": [1]}, "format_version"),
    "no recipe": (lambda facts: {"recipe": None}, "recipe should be an object"),
    "no hashes": (lambda facts: {"sha256": 1}, "sha256 should be an object"),
    "hashes of text": (lambda facts: {"sha256": {TENSORS: "x"}}, "does not match its sha256"),
    "features of a file": (lambda facts: {"features": {"image": {"_type": "Audio"}, "label": {}}}, "does not suit"),
    "another column": (lambda facts: {"features": {**facts["features"], "more": {}}}, "features should be"),
    "image feature of text": (lambda facts: {"features": {**facts["features"], "image": "x"}}, "does not suit"),
    "an odd mode": (
        lambda facts: {"features": {**facts["features"], "image": {"_type": "Image", "mode": ["RGB"]}}},
        "does not suit",
    ),
    "an odd dtype": (
        lambda facts: {"features": {**facts["features"], "label": {"_type": "Value", "dtype": "int64[x]"}}},
        "suit",
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
}


@pytest.mark.parametrize(("change", "match"), FACT_CHANGES.values(), ids=FACT_CHANGES.keys())
def test_crafted_facts_are_refused(packed, tmp_path, change, match):
    files = packed["synthetic"]
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(write_set(tmp_path, files, **change(json.loads(files[FACTS]))))


def test_labels_that_the_column_cannot_hold_are_refused(packed, tmp_path):
    files = packed["synthetic"]
    facts = json.loads(files[FACTS])
    recipe = {**facts["recipe"], "label_values": [0, 300]}
    features = {**facts["features"], "label": {"_type": "Value", "dtype": "int8"}}
    with pytest.raises(CondensedFormatError):
        load_condensed(write_set(tmp_path, files, recipe=recipe, features=features))


def test_unknown_recipe_fields_are_kept_and_unknown_facts_ignored(packed, tmp_path):
    files = packed["synthetic"]
    recipe = {**json.loads(files[FACTS])["recipe"], "mood": ["good"]}
    back = load_condensed(write_set(tmp_path / "one", files, recipe=recipe, more={"x": 1}))
    assert back.recipe.extra == {"mood": ["good"]}
    back.save_condensed(tmp_path / "two")
    assert load_condensed(tmp_path / "two").recipe == back.recipe


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b"\xff{}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"9" * 30 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"\\udfff": 1}',
    ],
)
def test_json_that_readers_disagree_on_is_refused(text):
    with pytest.raises(CondensedFormatError, match=r"^x\.json: "):
        parse_json(text, "x.json")


def test_missing_large_and_irregular_files_are_refused(packed, tmp_path):
    folder = write_set(tmp_path / "set", packed["synthetic"])
    (folder / TENSORS).unlink()
    with pytest.raises(CondensedFormatError, match=r"condensed\.safetensors: missing"):
        load_condensed(folder)
    os.mkfifo(folder / TENSORS)
    with pytest.raises(CondensedFormatError, match="not a regular file"):
        load_condensed(folder)
    with (folder / FACTS).open("ab") as file:
        file.truncate(1 << 40)  # a sparse file: no space is taken
    with pytest.raises(CondensedFormatError, match="at most 8,388,608 are read"):
        load_condensed(folder)


CORESETS = {
    "an image without bytes": (lambda t: ("image", pa.nulls(4, t["image"].type)), "has no bytes"),
    "another label": (lambda t: ("label", pa.array([0, 0, 0, 1])), "labels are not those"),
    "a null label": (lambda t: ("label", pa.array([0, 1, 0, None])), "labels are not those"),
    "an image of text": (lambda t: ("image", pa.array(["/etc/passwd"] * 4)), "should hold images"),
    "a path": (
        lambda t: ("image", pa.array([{"bytes": None, "path": "/etc/passwd"}] * 4, t["image"].type)),
        "local files",
    ),
}


@pytest.mark.parametrize(("change", "match"), CORESETS.values(), ids=CORESETS.keys())
def test_crafted_coresets_are_refused(packed, tmp_path, change, match):
    files = packed["coreset"]
    table = pq.read_table(io.BytesIO(files[PARQUET]))
    name, column = change(table)
    at = table.column_names.index(name)
    changed = table.set_column(at, name, column)
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(write_set(tmp_path, {**files, PARQUET: to_parquet(changed)}))


@pytest.mark.parametrize("metadata", [b"{", b'{"info": {"features": {"image": {"_type": "system"}}}}', b'{"info": 1}'])
def test_features_that_cannot_be_read_are_refused(packed, tmp_path, metadata):
    files = packed["coreset"]
    table = pq.read_table(io.BytesIO(files[PARQUET])).replace_schema_metadata({b"huggingface": metadata})
    with pytest.raises(CondensedFormatError, match=r"train-00000-of-00001\.parquet: "):
        load_condensed(write_set(tmp_path, {**files, PARQUET: to_parquet(table)}))
