"""Hypothesis strategies that change the files of a condensed set: as bytes, and as what the bytes mean."""

from __future__ import annotations

import base64
import binascii
import copy
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import yaml
from hypothesis import strategies as st

from tests.support import fuzz_thrift

Draw = Callable[[st.SearchStrategy[Any]], Any]

MAX_BYTES = 1 << 21  # that a file is blown up to
TOKENS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 30,
    b"[" * 40,
    b"]" * 40,
    b'{"a":',
    b"null",
    b"true",
    b"\\ud800",
    b"\xff\xfe",
    b"\0",
    b"PAR1",
    b"\n---\n",
    b"<<: *a",
    b"&a ",
    b"*a",
    b"!!python/name:os.system ",
    b"? ",
    b"- ",
    b"|\n",
    b"{}",
    b"%YAML 9.9\n",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"<!-- hf_condense:start -->",
    b"<!-- hf_condense:end -->",
    bytes(8),
    b"\xff" * 8,
    b"\x7f",
    b"\x80\x80\x80\x80\x10",
    (1 << 62).to_bytes(8, "little"),
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    8,
    16,
    255,
    256,
    4096,
    4097,
    65_536,
    1 << 20,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    1 << 40,
    1 << 53,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    -(1 << 63),
    (1 << 64) - 1,
    1 << 64,
    1 << 70,
    0.0,
    -0.0,
    0.5,
    1.0,
    -1e-300,
    1e-320,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
)
TEXTS = (
    "",
    "a",
    "0",
    "1",
    "2",
    "cat",
    "image",
    "label",
    "soft_label",
    "synthetic",
    "coreset",
    "free",
    "valid",
    "F16",
    "I16",
    "U8",
    "F32",
    "I32",
    "I64",
    "Image",
    "ClassLabel",
    "Value",
    "Audio",
    "List",
    "int8",
    "int64",
    "float16",
    "float32",
    "pixels",
    "patches",
    "dct",
    "siren",
    "string",
    "large_string",
    "bool",
    "RGB",
    "RGBA",
    "../../x",
    "/etc/passwd",
    "x" * 5000,
    "\0",
    "\n",
    "\ud800",
    "e\u0301",
    "\u2028",
    "| <b> [x](y) `",
    "\ufeff",
    "__metadata__",
    "__class__",
    "_type",
    "hf_condense",
    "default",
    "config_name",
    "data_files",
    "bytes",
    "path",
)
how_often = st.sampled_from((1, 1, 1, 2, 3))
scalars = st.sampled_from((None, True, False, *NUMBERS, *TEXTS)) | st.integers(-9, 300) | st.text(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3),
    max_leaves=6,
)
raw_values = st.sampled_from(NUMBERS[:26]) | st.integers(-3, 40) | st.binary(max_size=9) | st.sampled_from(TOKENS)


@st.composite
def changed_bytes(draw: Draw, data: bytes) -> bytes:
    """Flip, cut, put in, take out, repeat and blow up, one to three times."""
    for _ in range(draw(how_often)):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):  # both ends hold headers
            at = min(at % 700, len(data)) if draw(st.booleans()) else max(len(data) - at % 4000, 0)
        end = min(at + draw(st.integers(0, 40)), len(data))
        how = draw(st.sampled_from(("flip", "set", "cut", "put", "take", "repeat", "blow up")))
        if how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif how == "set":
            token = draw(st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=8))
            data = data[:at] + token + data[at + len(token) :]
        elif how == "cut":
            data = data[:at] if draw(st.booleans()) else data[at:]
        elif how == "put":
            data = data[:at] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + data[at:]
        elif how == "take":
            data = data[:at] + data[end:]
        elif how == "repeat":
            data = data[:end] + data[at:end] + data[end:]
        elif how == "blow up" and at < end:
            times = min(1 << draw(st.integers(1, 20)), MAX_BYTES // (end - at))
            data = data[:at] + data[at:end] * times + data[end:]
    return data


@st.composite
def changed_tree(draw: Draw, tree: Any, replacements: st.SearchStrategy[Any] = values) -> Any:
    """Replace, take out, repeat, exchange and rename values of nested dicts and lists, one to three times."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(how_often)):
        spots = _spots(tree)
        if not spots:
            break
        holder, key = draw(st.sampled_from(spots))
        how = draw(st.sampled_from(("replace", "replace", "take", "repeat", "exchange", "rename")))
        if how == "replace":
            holder[key] = draw(replacements)
        elif how == "take":
            del holder[key]
        elif how == "exchange":
            other, other_key = draw(st.sampled_from(spots))
            holder[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(holder[key])
        elif isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * (draw(st.integers(1, 6)) if how == "repeat" else 1)
        else:
            name = draw(st.integers(0, 16)) if isinstance(key, int) else draw(st.sampled_from(TEXTS))
            holder[name] = copy.deepcopy(holder[key]) if how == "repeat" else holder.pop(key)
    return tree


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    """Return every container and key or index below a value."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [spot for key in keys for spot in ((tree, key), *_spots(tree[key]))]


@st.composite
def changed_json(draw: Draw, text: bytes) -> bytes:
    """Change what JSON means, and now and then how it is written."""
    written = json.dumps(draw(changed_tree(json.loads(text)))).encode()
    return draw(changed_bytes(written)) if draw(st.integers(0, 9)) == 0 else written


@st.composite
def changed_header(draw: Draw, data: bytes) -> bytes:
    """Change the header of a safetensors file; the tensors stay."""
    size = int.from_bytes(data[:8], "little")
    text = draw(changed_json(data[8 : 8 + size]))
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@st.composite
def changed_numbers(draw: Draw, data: bytes) -> bytes:
    """Change numbers of the tensors in a safetensors file, one to three; the header stays."""
    tensors = safetensors.numpy.load(data)
    for _ in range(draw(how_often)):
        values = tensors[draw(st.sampled_from(sorted(tensors)))].reshape(-1)
        at, number = draw(st.integers(0, values.size - 1)), draw(st.sampled_from(NUMBERS) | st.integers(-3, 40))
        if values.dtype.kind in "iu":
            bits = 8 * values.itemsize
            number = (int(number) if math.isfinite(number) else 0) % (1 << bits)
            negative = values.dtype.kind == "i" and number >> bits - 1
            values[at] = number - (1 << bits if negative else 0)
        else:
            with np.errstate(over="ignore"):
                values[at] = float(number)
    size = 8 + int.from_bytes(data[:8], "little")
    names = json.loads(data[8:size])
    names.pop("__metadata__")
    parts = sorted((entry["data_offsets"], tensors[name].tobytes()) for name, entry in names.items())
    return data[:size] + b"".join(part for _, part in parts)


@st.composite
def changed_footer(draw: Draw, data: bytes) -> bytes:
    """Change the footer of a Parquet file: sizes, types, schema, and the Arrow schema and features inside."""
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = fuzz_thrift.read(data, end)
    if draw(st.booleans()):
        footer = draw(changed_tree(footer, raw_values))
    else:
        for entry in footer[5][1][1]:  # the metadata by key
            name, value = entry[1][1], entry[2][1]
            if name == b"huggingface":
                entry[2][1] = draw(changed_json(value))
            elif draw(st.booleans()):
                entry[2][1] = base64.b64encode(draw(changed_bytes(_decoded(value))))
    written = fuzz_thrift.write(footer)
    return data[:end] + written + len(written).to_bytes(4, "little") + b"PAR1"


def _decoded(value: bytes) -> bytes:
    """Return what base64 holds."""
    try:
        return base64.b64decode(value)
    except binascii.Error:
        return value


_flat_types = st.sampled_from(
    [
        pa.null(),
        pa.bool_(),
        pa.int8(),
        pa.uint64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.binary(3),
        pa.binary(1 << 24),
        pa.date32(),
        pa.timestamp("ns", "UTC"),
        pa.duration("us"),
        pa.time64("ns"),
        pa.decimal128(9, 2),
        pa.decimal256(60, 2),
        pa.dictionary(pa.int8(), pa.string()),
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    ]
)
_types = st.recursive(
    _flat_types,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
        st.tuples(inner, st.sampled_from([1, 2, 300, 1 << 22])).map(lambda both: pa.list_(*both)),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda kinds: pa.struct([(f"f{i}", kind) for i, kind in enumerate(kinds)])
        ),
    ),
    max_leaves=4,
)


@st.composite
def changed_table(draw: Draw, data: bytes) -> bytes:
    """Write the rows as another writer would, with other columns, types, numbers of rows and ways of packing."""
    table = pq.read_table(io.BytesIO(data))
    types = _types.filter(lambda kind: _bits(kind) * 4 < 1 << 30)  # four rows, or the machine is what is tried
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(types)
        column = pa.array([_filled(kind) if draw(st.booleans()) else None] * table.num_rows, kind)
        name = draw(st.sampled_from(("more", "note", "image", "label", "soft_label", "")))
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    if draw(st.integers(0, 3)) == 0:
        table = table.slice(0, draw(st.integers(0, table.num_rows)))
    if draw(st.integers(0, 3)) == 0:
        table = table.replace_schema_metadata()
    options = {
        "compression": draw(st.sampled_from(("none", "none", "none", "zstd", "snappy"))),
        "use_dictionary": draw(st.integers(0, 5)) == 0,
        "write_statistics": draw(st.integers(0, 5)) == 0,
        "data_page_version": draw(st.sampled_from(("1.0", "1.0", "1.0", "2.0"))),
        "row_group_size": draw(st.sampled_from((1, 3, 100))),
        "store_schema": draw(st.integers(0, 5)) > 0,
    }
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer, **options)
    except (pa.ArrowException, MemoryError):
        return data  # a type that Parquet has not
    return buffer.getvalue()


def _bits(kind: pa.DataType) -> int:
    """Return how many bits a null of a type takes in memory, at least."""
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _bits(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_bits(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_map(kind):
        return _bits(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _bits(kind.value_type)
    return kind.bit_width if isinstance(kind, pa.FixedSizeBinaryType) else 64


def _filled(kind: pa.DataType) -> Any:
    """Return a value of a type, None where that is simplest."""
    if pa.types.is_map(kind):
        return [("k", _filled(kind.item_type))]
    if pa.types.is_fixed_size_list(kind):
        return [_filled(kind.value_type)] * kind.list_size if kind.list_size < 1000 else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_filled(kind.value_type)]
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _filled(kind.field(i).type) for i in range(kind.num_fields)}
    return "/etc/x" if pa.types.is_string(kind) else 1 if pa.types.is_integer(kind) else None


@st.composite
def changed_card(draw: Draw, card: bytes) -> bytes:
    """Change what the metadata of a card means, and now and then how the whole is written."""
    _, metadata, text = card.split(b"---\n", 2)
    changed = yaml.safe_dump(draw(changed_tree(yaml.safe_load(metadata))), allow_unicode=draw(st.booleans()))
    written = b"---\n" + changed.encode(errors="surrogatepass") + b"---\n" + text
    return draw(changed_bytes(written)) if draw(st.booleans()) else written
