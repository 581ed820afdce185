"""Reading what strangers wrote: every name, size and number is checked before memory is taken for it."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.tensors import CondensedTensors

FORMAT = "hf_condense"
FORMAT_VERSION = "1"
MAX_JSON_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 35
_MAX_HEADER_BYTES = 1 << 20
_MAX_TENSORS = 32
_MAX_DEPTH = 32
_MAX_DIGITS = 20  # of an integer: more than any 64-bit number has
_ITEM_BYTES = {"F32": 4, "I64": 8}


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        CondensedFormatError: If it is missing, larger, or not a regular file (a pipe would block for ever).
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise CondensedFormatError(f"{path}: missing; the condensed set is not whole") from None
    if not stat.S_ISREG(status.st_mode):
        raise CondensedFormatError(f"{path}: not a regular file")
    if status.st_size > limit:
        raise CondensedFormatError(f"{path}: {status.st_size:,} bytes; at most {limit:,} are read")
    with path.open("rb") as file:
        return file.read(status.st_size)


def check_version(version: object, where: str) -> None:
    """Raise `CondensedFormatError` unless this library reads the format version; a newer one says upgrade."""
    if version == FORMAT_VERSION:
        return
    newer = isinstance(version, str) and version.isdecimal() and int(version[:_MAX_DIGITS]) > int(FORMAT_VERSION)
    advice = "; upgrade hf_condense" if newer else ""
    raise CondensedFormatError(
        f"{where}: format_version {version!r:.40}: this hf_condense reads {FORMAT_VERSION}{advice}"
    )


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no NaN or infinity, no huge integers, no key twice, no deep nesting.

    Raises:
        CondensedFormatError: If it is anything else; `where` names the file in the message.
    """
    try:
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
    """Read the exact tensors from the bytes of a safetensors file whose header is first checked by hand.

    Raises:
        CondensedFormatError: If names, types, shapes, offsets or values are not those of a set with this recipe.
    """
    try:
        _check_header(data, recipe)
        tensors = safetensors.torch.load(data)
        found = CondensedTensors(factor=recipe.factor, **tensors)
        check_tensors(found, recipe)
    except (CondensedFormatError, safetensors.SafetensorError) as error:
        raise CondensedFormatError(f"{where}: {error}") from None
    return found


def check_tensors(tensors: CondensedTensors, recipe: Recipe) -> None:
    """Raise `CondensedFormatError` unless shapes, types and values fit the recipe; used before writing as well."""
    found = {"images": tensors.images, "labels": tensors.labels, **tensors.optional()}
    expected = _layout(recipe, len(tensors.images))
    for name, tensor in found.items():
        dtype, shape = expected[name]
        if {torch.float32: "F32", torch.int64: "I64"}.get(tensor.dtype) != dtype or list(tensor.shape) != shape:
            raise CondensedFormatError(
                f"{name} should be {dtype} {shape}; got {tensor.dtype} {list(tensor.shape)} for image_shape "
                f"{recipe.image_shape}, factor {recipe.factor}, {len(recipe.class_names)} classes"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CondensedFormatError(f"{name} holds NaN or infinite values")
    if tensors.factor != recipe.factor:
        raise CondensedFormatError(f"the tensors have factor {tensors.factor}, the recipe has {recipe.factor}")
    if (tensors.zca_matrix is None) != (tensors.zca_mean is None):
        raise CondensedFormatError("zca_matrix and zca_mean belong together; one is missing")
    if recipe.rows is not None and len(recipe.rows) != len(tensors.images):
        raise CondensedFormatError(f"the recipe lists {len(recipe.rows)} rows for {len(tensors.images)} images")
    _check_labels(tensors.labels, recipe)


def _check_labels(labels: Tensor, recipe: Recipe) -> None:
    """Raise unless labels are in range, sorted, and as many a class as `ipc` says."""
    low, high, classes = int(labels.min()), int(labels.max()), len(recipe.class_names)
    if low < 0 or high >= classes:
        raise CondensedFormatError(f"labels range over [{low}, {high}] but there are {classes} classes")
    if bool((labels[1:] < labels[:-1]).any()):
        raise CondensedFormatError("labels should be sorted by class")
    counts = {recipe.class_names[i]: n for i, n in enumerate(torch.bincount(labels).tolist()) if n}
    wanted = recipe.ipc if isinstance(recipe.ipc, dict) else dict.fromkeys(counts, recipe.ipc)
    if wrong := {name for name in {*counts, *wanted} if counts.get(name) != wanted.get(name)}:
        name = min(wrong)
        raise CondensedFormatError(f"class {name!r:.80} has {counts.get(name, 0)} images; ipc is {wanted.get(name, 0)}")


def _layout(recipe: Recipe, n: int) -> dict[str, tuple[str, list[int]]]:
    """Return type and shape of every tensor that a set of `n` stored images may hold."""
    pixels = math.prod(recipe.image_shape)
    return {
        "images": ("F32", [n, *recipe.image_shape]),
        "labels": ("I64", [n]),
        "soft_labels": ("F32", [n * recipe.factor**2, len(recipe.class_names)]),
        "student_lr": ("F32", []),
        "zca_matrix": ("F32", [pixels, pixels]),
        "zca_mean": ("F32", [pixels]),
    }


def _check_header(data: bytes, recipe: Recipe) -> None:
    """Raise unless the header describes known tensors that fill the rest of the file without gap or overlap."""
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
    if len(header) > _MAX_TENSORS:
        raise CondensedFormatError(f"{len(header)} tensors; at most {_MAX_TENSORS}")
    expected = _layout(recipe, _stored_images(header))
    if missing := {"images", "labels"} - header.keys():
        raise CondensedFormatError(f"missing {', '.join(sorted(missing))}")
    spans = []
    for name, entry in header.items():
        if name not in expected:
            raise CondensedFormatError(f"unknown tensor {name!r:.80}; known are {', '.join(expected)}")
        dtype, shape = expected[name]
        if not isinstance(entry, dict) or (entry.get("dtype"), entry.get("shape")) != (dtype, shape):
            raise CondensedFormatError(f"{name} should be {dtype} {shape}; got {entry!r:.120}")
        offsets = entry.get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(isinstance(at, int) for at in offsets):
            raise CondensedFormatError(f"{name} should have two offsets; got {offsets!r:.80}")
        spans.append((*offsets, math.prod(shape) * _ITEM_BYTES[dtype]))
    end = 0
    for begin, stop, length in sorted(spans):
        if (begin, stop) != (end, end + length):
            raise CondensedFormatError(
                f"a tensor of {length:,} bytes should begin at {end:,}; got {begin:,} to {stop:,}"
            )
        end = stop
    if end != len(data) - 8 - size:
        raise CondensedFormatError(f"tensors take {end:,} bytes of {len(data) - 8 - size:,}")


def _stored_images(header: dict[str, Any]) -> int:
    """Return the number of images that a header claims."""
    entry = header.get("images")
    shape = entry.get("shape") if isinstance(entry, dict) else None
    n = shape[0] if isinstance(shape, list) and shape else None
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise CondensedFormatError(f"images should have shape (N, C, H, W) with N >= 1; got {entry!r:.120}")
    return n


def _check_values(value: Any, depth: int) -> None:
    """Raise `ValueError` for nesting beyond `depth` and for text that is no Unicode."""
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
    """Build an object, refusing a key that comes twice: readers disagree on which one counts."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key comes twice")
    return values


def _refuse(text: str) -> NoReturn:
    """Refuse NaN and infinities."""
    raise ValueError(f"{text} is no JSON number")


def _integer(text: str) -> int:
    """Parse an integer of a sane length."""
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    """Parse a finite number."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.20} is not finite")
    return number
