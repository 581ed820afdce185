"""Nothing that is read from a set on disk is trusted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.files import untrusted
from hf_condense.condensed.files.names import FACTS, PARQUET, TENSORS
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.files.parquet import to_parquet
from hf_condense.condensed.files.untrusted import parse_json
from hf_condense.condensed.loading import load_condensed
from hf_condense.condensed.recipe_checks import check_amounts
from tests.support.condensed_sets import make_coreset, make_recipe, make_set


@pytest.fixture(scope="module")
def packed() -> dict[str, dict[str, bytes]]:
    return {
        "synthetic": pack(make_set(soft=True, student=True, pixel_range="free").parts).files,
        "coreset": pack(make_coreset().parts).files,
        "dct": pack(make_set(storage="dct", expand=16, ipc={"cat": 1, "dog": 2}).parts).files,
        "siren": pack(make_set(storage="siren", expand=2, ipc=1).parts).files,
        "halves": pack(make_set(storage="dct", expand=16, ipc=1, store_dtype="float16").parts).files,
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


@pytest.mark.parametrize(
    ("kind", "file"),
    [("synthetic", TENSORS), ("coreset", TENSORS), ("coreset", PARQUET), ("dct", TENSORS), ("siren", TENSORS)],
)
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


def places(*changes: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """Return a function that sets (class, position, value) of places."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        for row, column, value in changes:
            tensor[row, column] = value
        return tensor

    return change


def numbers(*values: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.tensor(values, dtype=tensor.dtype)


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    """Return a function that sets the last number of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


# A set of 16 and 32 rows with 12 coefficients each, at 12 of 192 places.
FORM_VALUES = {
    "a place below zero": ("dct", "places", places((0, 0, -1)), r"different positions in 0\.\.191, in rising order"),
    "a place outside": ("dct", "places", places((1, 11, 192)), "different positions"),
    "the largest place": ("dct", "places", places((1, 11, 2**31 - 1)), "different positions"),
    "the smallest place": ("dct", "places", places((0, 0, -(2**31))), "different positions"),
    "a place twice": ("dct", "places", lambda t: t[:, [0, 0, *range(2, 12)]], "different positions"),
    "places that fall": ("dct", "places", lambda t: t.flip(1), "different positions"),
    "places of another type": ("dct", "places", lambda t: t.long(), r"places should be I32 \[2, 12\]"),
    "places of floats": ("dct", "places", lambda t: t.float(), r"places should be I32 \[2, 12\]"),
    "places of one class": ("dct", "places", lambda t: t[:1], r"places should be I32 \[2, 12\]"),
    "too few places": ("dct", "places", lambda t: t[:, :11], r"places should be I32 \[2, 12\]"),
    "counts of other classes": ("dct", "counts", numbers(32, 16), r"\[16, 32\]; got \[32, 16\]"),
    "counts that add up to less": ("dct", "counts", numbers(16, 31), "counts should be the rows of each class"),
    "counts that add up to more": ("dct", "counts", numbers(16, 33), "counts should be the rows of each class"),
    "no rows of a class": ("dct", "counts", numbers(0, 48), "counts should be the rows of each class"),
    "a count below zero": ("dct", "counts", numbers(-16, 64), "counts should be the rows of each class"),
    "counts that overflow": ("dct", "counts", numbers(2**31 - 1, 2**31 - 1), "counts should be the rows of each class"),
    "three counts": ("dct", "counts", numbers(16, 16, 16), r"counts should be I32 \[2\]"),
    "NaN coefficients": ("dct", "coefficients", spoilt(torch.nan), "coefficients holds NaN or infinite values"),
    "infinite coefficients": ("dct", "coefficients", spoilt(-torch.inf), "coefficients holds NaN or infinite values"),
    "half coefficients": ("dct", "coefficients", lambda t: t.half(), r"coefficients should be F32 \[48, 12\]"),
    "double coefficients": ("dct", "coefficients", lambda t: t.double(), r"coefficients should be F32 \[48, 12\]"),
    "too few coefficients": ("dct", "coefficients", lambda t: t[:, :11], r"coefficients should be F32 \[48, 12\]"),
    "too few rows": ("dct", "coefficients", lambda t: t[:47], r"coefficients should be F32 \[48, 12\]"),
    "NaN weights": ("siren", "weights", spoilt(torch.nan), "weights holds NaN or infinite values"),
    "half weights": ("siren", "weights", lambda t: t.half(), r"weights should be F32 \[4, 81\]"),
    "weights of another width": ("siren", "weights", lambda t: t[:, :63], r"weights should be F32 \[4, 81\]"),
    "whole coefficients in half precision": (
        "halves",
        "coefficients",
        lambda t: t.float(),
        r"coefficients should be F16 \[32, 12\]",
    ),
    "brain floats": ("halves", "coefficients", lambda t: t.bfloat16(), r"coefficients should be F16 \[32, 12\]"),
    "infinite halves": ("halves", "coefficients", spoilt(torch.inf), "coefficients holds NaN or infinite values"),
}


@pytest.mark.parametrize(("kind", "name", "change", "match"), FORM_VALUES.values(), ids=FORM_VALUES.keys())
def test_tensors_that_a_form_cannot_decode_are_refused(packed, tmp_path, kind, name, change, match):
    from safetensors.torch import load, save

    files = packed[kind]
    tensors = load(files[TENSORS])
    load_condensed(write_set(tmp_path / "whole", files))
    tensors[name] = change(tensors[name]).contiguous()
    changed = {**files, TENSORS: save(tensors, metadata={"hf_condense": "2"})}
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(write_set(tmp_path / "changed", changed))


FORM_FACTS = {
    "dct with an expand of zero": ("dct", {"expand": 0}, "expand"),
    "dct with an expand below zero": ("dct", {"expand": -16}, "expand"),
    "dct with more rows than numbers": ("dct", {"expand": 193}, "expand of storage 'dct' should be in 1..192"),
    "dct with a huge expand": ("dct", {"expand": 1 << 62}, "expand of storage 'dct' should be in 1..192"),
    "dct with an expand of text": ("dct", {"expand": "16"}, "expand should be int"),
    "dct with another expand": ("dct", {"expand": 8}, r"coefficients should be F32 \[48, 24\]"),
    "dct with other budgets": ("dct", {"ipc": {"cat": 2, "dog": 1}}, r"class 'cat' has 16 entries; its ipc of 2"),
    "dct of one class": ("dct", {"ipc": {"cat": 3}}, r"(counts|places) should be I32 \[1"),
    "dct of a larger image": ("dct", {"image_shape": [3, 8, 16]}, r"coefficients should be F32 \[48, 24\]"),
    "siren with more rows than networks fit": ("siren", {"expand": 10}, "expand of storage 'siren' is out of range"),
    "siren with an expand of zero": ("siren", {"expand": 0}, "expand"),
    "bytes in an unknown form": ("synthetic", {"storage": "wavelets", "store_dtype": "uint8"}, "storage"),
    "siren as dct": ("siren", {"storage": "dct"}, "missing coefficients, counts, places"),
    "dct as siren": ("dct", {"storage": "siren", "expand": 2}, "missing weights"),
    "dct as pixels": ("dct", {"storage": "pixels", "expand": 1}, r"format_version"),
    "whole numbers said to be halves": ("dct", {"store_dtype": "float16"}, r"coefficients should be F16 \[48, 12\]"),
    "halves said to be whole numbers": ("halves", {"store_dtype": "float32"}, r"should be F32 \[32, 12\]"),
    "an unknown store_dtype": ("dct", {"store_dtype": "float8"}, "store_dtype should be float32, float16 or uint8"),
    "frequencies in 8 bits": ("dct", {"store_dtype": "uint8"}, "store_dtype uint8 should be that of images"),
    "a store_dtype that is no text": ("dct", {"store_dtype": 16}, "store_dtype should be str"),
}


@pytest.mark.parametrize(("kind", "changes", "match"), FORM_FACTS.values(), ids=FORM_FACTS.keys())
def test_recipes_that_do_not_fit_the_form_are_refused(packed, tmp_path, kind, changes, match):
    files = packed[kind]
    recipe = {**json.loads(files[FACTS])["recipe"], **changes}
    with pytest.raises(CondensedFormatError, match=match):
        load_condensed(write_set(tmp_path, files, recipe=recipe))


@pytest.mark.parametrize("version", ["1", "3"])
@pytest.mark.parametrize("kind", ["dct", "halves"])
def test_versions_that_a_form_does_not_have_are_refused(packed, tmp_path, kind, version):
    files = packed[kind]
    with pytest.raises(CondensedFormatError, match="format_version"):
        load_condensed(write_set(tmp_path / "facts", files, format_version=version))
    header = with_header(files[TENSORS], lambda h: h["__metadata__"].update(hf_condense=version))
    with pytest.raises(CondensedFormatError, match="format_version"):
        load_condensed(write_set(tmp_path / "header", {**files, TENSORS: header}))


def test_pixels_in_half_precision_have_the_second_version(packed, tmp_path):
    """A reader of the first version knows their form, but not their type."""
    files = pack(make_set(store_dtype="float16").parts).files
    assert load_condensed(write_set(tmp_path / "two", files)).synthetic.images.dtype == torch.float16
    header = with_header(files[TENSORS], lambda h: h["__metadata__"].update(hf_condense="1"))
    with pytest.raises(CondensedFormatError, match="has format_version '2'; got '1'"):
        load_condensed(write_set(tmp_path / "one", {**files, TENSORS: header}, format_version="1"))


def test_writer_refuses_what_a_reader_would(packed):
    small = make_set(storage="dct", expand=16, ipc=1)
    small.synthetic.stored["counts"][0] = 15
    with pytest.raises(CondensedFormatError, match="counts should be the rows of each class"):
        pack(small.parts)


def recipe_with(**changes):
    """Return facts whose recipe was changed."""
    return lambda facts: {"recipe": {**facts["recipe"], **changes}}


FACT_CHANGES = {
    "another format": (lambda facts: {"format": "other"}, "format should be 'hf_condense'"),
    "a newer version": (
        lambda facts: {"format_version": "4"},
        "format_version '4': .* reads 1, 2 and 3; upgrade hf_condense",
    ),
    "a version that its form does not have": (
        lambda facts: {"format_version": "2"},
        "storage 'pixels' in float32 has format_version '1'; got '2'",
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
    with pytest.raises(CondensedFormatError, match=r"300|int8|out of"):
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


def test_empty_tensors_of_labels_that_the_recipe_does_not_have_are_refused(packed, tmp_path):
    files = dict(packed["synthetic"])

    def with_views(header):
        end = max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)
        rows = header["labels"]["shape"][0]
        for name, dtype, last in (("values", "F16", 0), ("classes", "I16", 0), ("crops", "I16", 5)):
            header[f"soft_label_{name}"] = {"dtype": dtype, "shape": [rows, 0, last], "data_offsets": [end, end]}

    files[TENSORS] = with_header(files[TENSORS], with_views)
    with pytest.raises(CondensedFormatError, match="label"):
        load_condensed(write_set(tmp_path / "set", files))


def test_numbers_too_large_to_be_decoded_raise_format_error(packed, tmp_path: Path) -> None:
    files = dict(packed["siren"])
    tensors = safetensors.torch.load(files[TENSORS])
    tensors["weights"] = torch.full_like(tensors["weights"], 3e38)  # the sine of infinity is no number
    size = int.from_bytes(files[TENSORS][:8], "little")
    metadata = json.loads(files[TENSORS][8 : 8 + size])["__metadata__"]
    files[TENSORS] = safetensors.torch.save(tensors, metadata=metadata)
    with pytest.raises(CondensedFormatError, match="NaN or infinity"):
        load_condensed(write_set(tmp_path / "set", files))


def test_networks_that_are_too_large_to_be_decoded_raise_format_error(packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hf_condense.condensed.files.untrusted._MAX_ROW_BYTES", 4 * 3 * 8 * 8 - 1)
    with pytest.raises(
        CondensedFormatError, match=r"takes tensors of .* to decode a row .* accept 767\. A larger expand"
    ):
        load_condensed(write_set(tmp_path / "set", packed["siren"]))


def test_set_that_decodes_into_too_many_bytes_raises_format_error(packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hf_condense.condensed.files.untrusted._MAX_DECODED_BYTES", 4 * 3 * 8 * 8 * 48 - 1)
    with pytest.raises(CondensedFormatError, match=r"decodes into 36\.0 KiB .* at most 36\.0 KiB are read"):
        load_condensed(write_set(tmp_path / "set", packed["dct"]))


def test_coreset_of_negative_rows_is_refused() -> None:
    check_amounts(1, ["cat", "dog"], "coreset", [0, 5], "pixels")
    with pytest.raises(CondensedFormatError, match="rows should be given for a coreset, and be >= 0"):
        check_amounts(1, ["cat", "dog"], "coreset", [0, -1], "pixels")


@pytest.mark.parametrize("missing", ["zca_matrix", "zca_mean"])
def test_half_of_a_whitening_is_refused(missing: str, tmp_path: Path) -> None:
    from safetensors.torch import load, save

    files = pack(make_set(zca=True, pixel_range="free").parts).files
    tensors = load(files[TENSORS])
    del tensors[missing]
    with pytest.raises(CondensedFormatError, match="zca_matrix and zca_mean belong together; one is missing"):
        load_condensed(write_set(tmp_path, {**files, TENSORS: save(tensors, metadata={"hf_condense": "1"})}))


def test_tensors_may_be_listed_in_any_order(packed: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    files = packed["synthetic"]
    turned = with_header(files[TENSORS], lambda header: dict(reversed(header.items())))
    assert turned != files[TENSORS]
    first, second = (
        load_condensed(write_set(tmp_path / name, {**files, TENSORS: data})).synthetic.all()
        for name, data in (("first", files[TENSORS]), ("second", turned))
    )
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_size_of_a_set_counts_all_rows_that_an_image_decodes_into(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(factor=2)
    size = 4 * 5 * 4 * 3 * 8 * 8  # five images of four rows in float32
    monkeypatch.setattr(untrusted, "_MAX_DECODED_BYTES", size)
    untrusted.check_decoded_size(recipe, 5)
    monkeypatch.setattr(untrusted, "_MAX_DECODED_BYTES", size - 1)
    with pytest.raises(CondensedFormatError, match="the set decodes into"):
        untrusted.check_decoded_size(recipe, 5)
