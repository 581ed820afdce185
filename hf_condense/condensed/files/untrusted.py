"""Read files of strangers: every name, size and number is checked before memory is allocated for it."""

from __future__ import annotations

import json
import math
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hf_condense.base.checks import byte_text
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.decoders.base import Layout
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.condensed.views import CLASSES, CROP_NUMBERS, CROPS, VALUES, ViewLabels

FORMAT = "hf_condense"
# Version 2 has storage forms other than pixels and patches. Version 3 has 8-bit images, soft labels of views, and parts
# with normalisations of their own.
FORMAT_VERSIONS = ("1", "2", "3")
MAX_JSON_BYTES = 1 << 23
MAX_FILE_BYTES = 1 << 35
_MAX_DECODED_BYTES = 1 << 37  # of all images of a set in float32; a small file may describe many
_MAX_ROW_BYTES = 1 << 30  # of the largest tensor while a row is decoded
_MAX_HEADER_BYTES = 1 << 20
_WRITTEN_HEADER_BYTES = 1 << 12  # more than the header of any set that is written has, with a learned rate
_MAX_TENSORS = 32
# In memory a value takes up to 60 bytes beyond its text, and an object or a list up to 250 bytes.
_MAX_VALUES, _MAX_CONTAINERS = 1 << 20, 1 << 17
_MAX_DEPTH = 32
_MAX_DIGITS = 20  # of an integer, which is enough for any 64-bit number
_TYPES = {  # how safetensors files call them
    torch.float32: "F32",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}
ITEM_BYTES = {name: dtype.itemsize for dtype, name in _TYPES.items()}
"""Bytes of a number, by what safetensors files call its type."""


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        CondensedFormatError: If the file is missing, larger, or not regular (reading a pipe could block for ever).
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise CondensedFormatError(f"{path}: missing; the condensed set is incomplete") from None
    if not stat.S_ISREG(status.st_mode):
        raise CondensedFormatError(f"{path}: not a regular file")
    if status.st_size > limit:
        raise CondensedFormatError(f"{path}: {status.st_size:,} bytes; at most {limit:,} are read")
    with path.open("rb") as file:
        return file.read(status.st_size)


def check_version(version: object, where: str) -> None:
    """Raise `CondensedFormatError` unless this library reads a format version; for a newer one, advise to upgrade."""
    if version in FORMAT_VERSIONS:
        return
    *older, newest = FORMAT_VERSIONS
    newer = isinstance(version, str) and version.isdecimal() and int(version[:_MAX_DIGITS]) > int(newest)
    advice = "; upgrade hf_condense" if newer else ""
    raise CondensedFormatError(
        f"{where}: format_version {version!r:.40}: this hf_condense reads {', '.join(older)} and {newest}{advice}"
    )


def check_amount(data: bytes) -> None:
    """Raise `ValueError` for JSON text that would take far more memory than its own size.

    Values are counted by their commas, objects and lists by their brackets, both also where those stand inside text.
    """
    containers = data.count(b"{") + data.count(b"[")
    for count, most, what in (
        (len(data), MAX_JSON_BYTES, "bytes"),
        (data.count(b",") + containers, _MAX_VALUES, "values"),
        (containers, _MAX_CONTAINERS, "objects and lists"),
    ):
        if count > most:
            raise ValueError(f"{count:,} {what}; readers accept {most:,}")


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object strictly: without NaN, infinity, huge integers, duplicate keys and deep nesting.

    Args:
        data: The bytes.
        where: Name of the file, for the error message.

    Raises:
        CondensedFormatError: If the bytes are anything else.
    """
    try:
        check_amount(data)
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_number,
        )
        _check_values(value, _MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise CondensedFormatError(f"{where}: not the JSON that hf_condense writes: {error!s:.200}") from None
    if not isinstance(value, dict):
        raise CondensedFormatError(f"{where}: should hold a JSON object; got {type(value).__name__}")
    return value


def parse_tensors(data: bytes, recipe: Recipe, where: str = "condensed.safetensors") -> CondensedTensors:
    """Read the exact tensors from the bytes of a safetensors file, after a check of its header.

    Args:
        data: The bytes.
        recipe: The recipe of the set.
        where: Name of the file, for the error message.

    Raises:
        CondensedFormatError: If names, types, shapes, offsets or values do not fit the recipe.
    """
    try:
        _check_header(data, recipe)
        loaded = safetensors.torch.load(data)
        decoder = recipe.decoder
        names = decoder.layout(1, 1).keys()
        stored = {name: loaded.pop(name) for name in names}
        values, classes, crops = (loaded.pop(name, None) for name in (VALUES, CLASSES, CROPS))
        view_labels = None
        if values is not None and classes is not None and crops is not None:
            view_labels = ViewLabels(values, classes, crops, len(recipe.class_names))
        tensors = CondensedTensors(stored, loaded.pop("labels"), decoder, **loaded, view_labels=view_labels)
        check_tensors(tensors, recipe)
        tensors = replace(tensors, decoder=recipe.tensor_decoder)
    except (CondensedFormatError, safetensors.SafetensorError) as error:
        raise CondensedFormatError(f"{where}: {error}") from None
    return tensors


def check_tensors(tensors: CondensedTensors, recipe: Recipe) -> None:
    """Raise `CondensedFormatError` unless shapes, types and values fit the recipe. Writers call this as well."""
    form = (tensors.decoder.name, tensors.decoder.expand)
    if form != (recipe.storage, recipe.expand):
        raise CondensedFormatError(
            f"the tensors are stored as {form[0]!r} with expand {form[1]}; the recipe says {recipe.storage!r} with "
            f"expand {recipe.expand}"
        )
    layout = _layout(recipe, len(tensors.labels))
    for name, tensor in tensors.all().items():
        dtype, shape = layout[name]
        if _TYPES.get(tensor.dtype) != dtype or list(tensor.shape) != shape:
            raise CondensedFormatError(
                f"{name} should be {dtype} {shape}; got {tensor.dtype} {list(tensor.shape)} for image_shape "
                f"{recipe.image_shape}, storage {recipe.storage!r} with expand {recipe.expand}, "
                f"{len(recipe.class_names)} classes"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CondensedFormatError(f"{name} holds NaN or infinite values")
    try:
        tensors.decoder.check_stored(tensors.stored, tensors.labels)
        if tensors.view_labels is not None:
            tensors.view_labels.check((recipe.image_shape[1], recipe.image_shape[2]))
    except ValueError as error:
        raise CondensedFormatError(str(error)) from None
    if (tensors.view_labels is None) != (recipe.label_views is None):
        raise CondensedFormatError(
            f"the soft labels of views, {VALUES}, {CLASSES} and {CROPS}, belong to a recipe with label_views; one is "
            "missing"
        )
    if (tensors.zca_matrix is None) != (tensors.zca_mean is None):
        raise CondensedFormatError("zca_matrix and zca_mean belong together; one is missing")
    if recipe.rows is not None and len(recipe.rows) != len(tensors.labels):
        raise CondensedFormatError(f"the recipe lists {len(recipe.rows)} rows for {len(tensors.labels)} images")
    _check_labels(tensors.labels, recipe)


def _check_labels(labels: Tensor, recipe: Recipe) -> None:
    """Raise unless labels are in range and sorted, and each class has the entries that its `ipc` holds."""
    low, high, classes = int(labels.min()), int(labels.max()), len(recipe.class_names)
    if low < 0 or high >= classes:
        raise CondensedFormatError(f"labels range over [{low}, {high}] but there are {classes} classes")
    if bool((labels[1:] < labels[:-1]).any()):
        raise CondensedFormatError("labels should be sorted by class")
    counts = {recipe.class_names[i]: n for i, n in enumerate(torch.bincount(labels).tolist()) if n}
    budgets = {name: recipe.budget(name) for name in (recipe.ipc if isinstance(recipe.ipc, dict) else counts)}
    entries = {name: recipe.decoder.entries(budget) for name, budget in budgets.items()}
    if wrong := {name for name in {*counts, *entries} if counts.get(name) != entries.get(name)}:
        name = min(wrong)
        raise CondensedFormatError(
            f"class {name!r:.80} has {counts.get(name, 0)} entries; its ipc of {budgets.get(name, 0)} holds "
            f"{entries.get(name, 0)}"
        )


def _layout(recipe: Recipe, entries: int) -> Layout:
    """Return dtype and shape of every tensor that a set with this number of entries may hold."""
    decoder, pixels = recipe.decoder, math.prod(recipe.image_shape)
    stored = decoder.layout(entries, recipe.number_of_classes(entries))
    views = [entries * decoder.rows_per_entry, recipe.label_views or 0]
    return {
        **{name: (_stored_type(kind, recipe), shape) for name, (kind, shape) in stored.items()},
        "labels": ("I64", [entries]),
        "soft_labels": ("F32", [entries * decoder.rows_per_entry, len(recipe.class_names)]),
        VALUES: ("F16", [*views, recipe.label_top or 0]),
        CLASSES: ("I16", [*views, recipe.label_top or 0]),
        CROPS: ("I16", [*views, CROP_NUMBERS]),
        "student_lr": ("F32", []),
        "zca_matrix": ("F32", [pixels, pixels]),
        "zca_mean": ("F32", [pixels]),
    }


def _stored_type(kind: str, recipe: Recipe) -> str:
    """Return the type of a stored tensor in the file: floating-point numbers may be stored in fewer bits."""
    return _TYPES[getattr(torch, recipe.store_dtype)] if kind == "F32" else kind


def _check_header(data: bytes, recipe: Recipe) -> None:
    """Raise unless the header describes known tensors that fill the rest of the file without gaps or overlaps."""
    header, size = _read_header(data, recipe)
    entries = _count_entries(header)
    check_decoded_size(recipe, entries)
    layout = _layout(recipe, entries)
    required = {"labels", *recipe.decoder.layout(1, 1)}
    if missing := required - header.keys():
        raise CondensedFormatError(f"missing {', '.join(sorted(missing))}")
    spans = []
    for name, entry in header.items():
        if name not in layout:
            raise CondensedFormatError(f"unknown tensor {name!r:.80}; known are {', '.join(layout)}")
        dtype, shape = layout[name]
        if 0 in shape:
            raise CondensedFormatError(f"{name} belongs to a recipe with label_views, which this one has not")
        if not isinstance(entry, dict) or (entry.get("dtype"), entry.get("shape")) != (dtype, shape):
            raise CondensedFormatError(f"{name} should be {dtype} {shape}; got {entry!r:.120}")
        offsets = entry.get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(isinstance(at, int) for at in offsets):
            raise CondensedFormatError(f"{name} should have two offsets; got {offsets!r:.80}")
        spans.append((*offsets, math.prod(shape) * ITEM_BYTES[dtype]))
    _check_spans(spans, len(data) - 8 - size)


def check_decoded_size(recipe: Recipe, entries: int) -> None:
    """Raise `CondensedFormatError` if decoding takes more memory than readers accept. Writers call this as well."""
    decoded = 4 * entries * recipe.decoder.rows_per_entry * math.prod(recipe.image_shape)
    if decoded > _MAX_DECODED_BYTES:
        raise CondensedFormatError(
            f"ipc {recipe.ipc_text}: the set decodes into {byte_text(decoded)} of float32 images; at most "
            f"{byte_text(_MAX_DECODED_BYTES)} are read. A smaller ipc takes less"
        )
    if (one_row := recipe.decoder.decoding_bytes()) > _MAX_ROW_BYTES:
        raise CondensedFormatError(
            f"storage {recipe.storage!r} with expand={recipe.expand} takes tensors of {one_row:,} bytes to decode a "
            f"row of shape {recipe.image_shape}; readers accept {_MAX_ROW_BYTES:,}. A larger expand takes less"
        )


def check_file_size(file: str, size: int) -> None:
    """Raise `CondensedFormatError` if a file has more bytes than readers accept. It is for writers."""
    if size > MAX_FILE_BYTES:
        raise CondensedFormatError(
            f"{file} would have {size:,} bytes; readers accept {MAX_FILE_BYTES:,}. A smaller ipc or smaller images "
            "take less, and so do learned images in 16 or 8 bits (store_dtype)"
        )


def tensor_file_bytes(recipe: Recipe, entries: int) -> int:
    """Return how many bytes the tensors of a set are going to take in a file, at most; its header is estimated.

    Args:
        recipe: The recipe of the set, as it is known before the set is made.
        entries: Number of its entries.
    """
    layout = _layout(recipe, entries)
    names = {"labels", *recipe.decoder.layout(1, 1)}
    if recipe.label_views is not None:
        names |= {VALUES, CLASSES, CROPS}
    elif recipe.temperature is not None:
        names.add("soft_labels")
    if recipe.options.get("zca") is True:
        names |= {"zca_matrix", "zca_mean"}
    numbers = sum(ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in (layout[name] for name in names))
    return _WRITTEN_HEADER_BYTES + numbers


def _read_header(data: bytes, recipe: Recipe) -> tuple[dict[str, Any], int]:
    """Return the entries of the header without its metadata, and its size in bytes."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise CondensedFormatError(
            f"header of {size:,} bytes in a file of {len(data):,}; at most {_MAX_HEADER_BYTES:,}"
        )
    header = parse_json(data[8 : 8 + size], "header")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {FORMAT}:
        raise CondensedFormatError(f"metadata should be exactly {{{FORMAT!r}: version}}; got {metadata!r:.80}")
    check_version(metadata[FORMAT], "header")
    if metadata[FORMAT] != recipe.format_version:
        raise CondensedFormatError(
            f"header: format_version {metadata[FORMAT]!r:.40}; storage {recipe.storage!r} in {recipe.store_dtype} has "
            f"version {recipe.format_version}"
        )
    if len(header) > _MAX_TENSORS:
        raise CondensedFormatError(f"{len(header)} tensors; at most {_MAX_TENSORS}")
    return header, size


def _check_spans(spans: list[tuple[int, int, int]], end: int) -> None:
    """Raise unless the tensors, as (begin, stop, length), are contiguous from 0 to `end`."""
    position = 0
    for begin, stop, length in sorted(spans):
        if (begin, stop) != (position, position + length):
            raise CondensedFormatError(
                f"a tensor of {length:,} bytes should begin at {position:,}; got {begin:,} to {stop:,}"
            )
        position = stop
    if position != end:
        raise CondensedFormatError(f"tensors take {position:,} bytes of {end:,}")


def _count_entries(header: dict[str, Any]) -> int:
    """Return the number of entries that the header claims, one for each label."""
    entry = header.get("labels")
    shape = entry.get("shape") if isinstance(entry, dict) else None
    count = shape[0] if isinstance(shape, list) and shape else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise CondensedFormatError(f"labels should have shape (N,) with N >= 1; got {entry!r:.120}")
    return count


def _check_values(value: Any, depth: int) -> None:
    """Raise `ValueError` for nesting beyond `depth` and for text that is not valid Unicode."""
    if depth < 0:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _check_values(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth - 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs and refuse duplicate keys, because readers disagree on which value counts."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key comes twice")
    return values


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.20} is not finite")
    return number
