"""A condensed set as files: equal sets are packed to equal bytes, and unpacking checks everything."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
from datasets.table import embed_table_storage

from hf_condense._version import __version__
from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.files.facts import WHITENED, EightBitError, Facts, check_size
from hf_condense.condensed.files.names import FACTS, PARQUET, PREVIEW, TENSORS
from hf_condense.condensed.files.parquet import from_parquet, to_parquet
from hf_condense.condensed.files.untrusted import (
    FORMAT,
    MAX_FILE_BYTES,
    check_file_size,
    check_tensors,
    parse_json,
    parse_tensors,
    read_bytes,
)
from hf_condense.condensed.preview import first_images
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import VIEW_COLUMNS, Parts, decoded_rows, eight_bit, row_features
from hf_condense.condensed.tensors import CondensedTensors, are_alone

_PREVIEW_SIDE = 1000  # the picture is scaled down to at most this many pixels along a side
_PREVIEW_IMAGES = 10  # the picture shows at most this many images along a side
_LABEL_DTYPES = {  # dtypes that a label column may have, by the type of its values
    int: frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    str: frozenset({"string", "large_string"}),
    bool: frozenset({"bool"}),
}


class Packed(NamedTuple):
    """A set as it is written.

    Attributes:
        files: Picture, Parquet, safetensors and JSON by file name, in the order in which they should be written.
        facts: What the JSON file says.
    """

    files: dict[str, bytes]
    facts: Facts


@plain_torch()
def pack(parts: Parts) -> Packed:
    """Return the files of a set; equal sets give equal bytes, in every process.

    Args:
        parts: The set.

    Raises:
        ValueError: If recipe, tensors and rows contradict each other, hold what the format cannot, or take more bytes
            than readers accept.
    """
    recipe, tensors = Recipe.from_dict(as_read("recipe", parts.recipe.to_dict())), parts.tensors
    check_tensors(tensors, recipe)
    table, version = stored_table(parts.rows), recipe.format_version
    exact = safetensors.torch.save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.all().items()},
        metadata={FORMAT: version},  # one key only: with more, their order, so the bytes, differs by process
    )
    check_file_size(TENSORS, len(exact))
    parquet = to_parquet(table)
    if recipe.kind == "coreset":  # the exact images of other sets are tensors, and this file is not read
        check_file_size(PARQUET, len(parquet))
    values = {
        "format": FORMAT,
        "format_version": version,
        "hf_condense_version": __version__,
        "recipe": recipe.to_dict(),
        "features": as_read("features", parts.rows.features.to_dict()),
        "num_rows": table.num_rows,
        "parquet_bytes": len(parquet),
        "tensor_bytes": len(exact),
        "preview": PREVIEW,
        "png": _eight_bit_error(tensors)._asdict() if recipe.kind != "coreset" else None,
        "sha256": {file: hashlib.sha256(data).hexdigest() for file, data in ((PARQUET, parquet), (TENSORS, exact))},
    }
    if tensors.zca_matrix is not None:
        values[WHITENED] = True
    facts = Facts(recipe, values)
    _check_as_read(parts, facts, parquet)
    return Packed({PREVIEW: _preview(tensors), PARQUET: parquet, TENSORS: exact, FACTS: facts.to_bytes()}, facts)


@plain_torch()
def unpack(folder: Path, facts: Facts) -> Parts:
    """Read the set whose files are in a folder, exactly.

    Args:
        folder: The folder of the set itself.
        facts: What its `condense_config.json` says: `read_facts(folder)`.

    Raises:
        CondensedFormatError: If a file is missing, damaged, unsafe, foreign or of a newer format.
    """
    recipe = facts.recipe
    try:
        tensors = read_tensors(folder, facts)
        if recipe.kind == "coreset":
            rows = _coreset_rows(_verified(folder / PARQUET, facts), tensors, recipe)
        else:
            rows = decoded_rows(tensors, recipe, stored_features(facts))
        return Parts(rows, tensors, recipe)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:  # the last three: labels beyond a dtype
        raise CondensedFormatError(f"{folder}: {error}") from None


@plain_torch()
def read_tensors(folder: Path, facts: Facts) -> CondensedTensors:
    """Read the exact tensors of the set whose files are in a folder.

    Args:
        folder: The folder of the set itself.
        facts: What its `condense_config.json` says.

    Raises:
        CondensedFormatError: If the file is missing, damaged, unsafe or foreign.
    """
    return parse_tensors(_verified(folder / TENSORS, facts), facts.recipe, TENSORS)


def _check_as_read(parts: Parts, facts: Facts, parquet: bytes) -> None:
    """Raise `ValueError` unless readers of a set get the columns that its rows have."""
    recipe, tensors, features = facts.recipe, parts.tensors, parts.rows.features
    if recipe.kind == "coreset":
        read = _coreset_rows(parquet, tensors, recipe).features
    else:
        read = row_features(recipe, stored_features(facts), soft_labels=tensors.soft_labels is not None)
    if list(read.items()) != list(features.items()):
        raise ValueError(f"the rows have the columns {features}, and would be read with {read}")


def _verified(path: Path, facts: Facts) -> bytes:
    """Read a file once and compare its hash, so that the bytes that are used are those that were hashed."""
    data = read_bytes(path, MAX_FILE_BYTES)
    if hashlib.sha256(data).hexdigest() != facts.sha256.get(path.name):
        raise CondensedFormatError(
            f"{path.name}: does not match its sha256; it is damaged or belongs to another set: fetch it again"
        )
    return data


def as_read(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return a value of `condense_config.json` as a reader will get it, who refuses what is no strict JSON."""
    try:
        text = json.dumps({key: value}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {key} should hold JSON values only, and finite numbers; {error}") from None
    check_size(text.encode(), f"the {key}")
    read: dict[str, Any] = parse_json(text.encode(), key)[key]
    return read


def stored_table(rows: datasets.Dataset) -> pa.Table:
    """Return the rows as they are stored: without formatting, and with the bytes of files that rows only name."""
    table = rows.with_format("arrow")[:]
    return embed_table_storage(table.replace_schema_metadata(rows.features.arrow_schema.metadata))


def _preview(tensors: CondensedTensors) -> bytes:
    """Draw the first images of the first classes as PNG."""
    one_each = are_alone(tensors.row_labels)
    picture = first_images(tensors, max_classes=_PREVIEW_IMAGES ** (1 + one_each))
    picture.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _eight_bit_error(tensors: CondensedTensors) -> EightBitError:
    clipped, values, largest = 0, 0, 0.0
    for pixels, coded in eight_bit(tensors):  # (n, C, H, W) twice
        clipped += int(((pixels < 0) | (pixels > 1)).sum())
        values += pixels.numel()
        largest = max(largest, float((pixels - coded / 255).abs().max()))
    return EightBitError(clipped / values, largest)


def stored_features(facts: Facts) -> datasets.Features:
    """Rebuild the features of the image and the label column, which may only be of a few kinds."""
    recipe, described = facts.recipe, facts.features
    columns = {recipe.image_column, recipe.label_column}
    if described.keys() - {*VIEW_COLUMNS} != columns - {*VIEW_COLUMNS} or len(columns) != 2:
        names = f"{list(described)!r:.80}"
        raise CondensedFormatError(f"{FACTS}: features should be those of {sorted(columns)}; got {names}")
    features = {}
    for name, description in described.items():
        if name in columns:
            entries = description if isinstance(description, dict) else {}
            is_image = name == recipe.image_column
            feature = _described_image(entries) if is_image else _described_label(entries, recipe)
            if feature is None:
                raise CondensedFormatError(
                    f"{FACTS}: the feature of {name!r:.80} does not suit it: {description!r:.80}"
                )
            features[name] = feature
    return datasets.Features(features)


def _described_image(described: dict[str, Any]) -> datasets.Image | None:
    """Return the image feature that is described, or None if the description is none of an image."""
    # Whatever the mode is, `row_features` replaces one that does not suit; earlier versions wrote that of the source.
    mode, decode = described.get("mode"), described.get("decode", True)
    valid = (mode is None or isinstance(mode, str)) and isinstance(decode, bool)
    return datasets.Image(mode=mode, decode=decode) if valid and described.get("_type") == "Image" else None


def _described_label(described: dict[str, Any], recipe: Recipe) -> datasets.ClassLabel | datasets.Value | None:
    """Return the label feature that is described, or None if it cannot hold the recipe's label values."""
    kinds = {type(value) for value in recipe.label_values}
    if described.get("_type") == "ClassLabel":
        suits = recipe.label_values == list(range(len(recipe.label_values))) and kinds == {int}
        return datasets.ClassLabel(names=recipe.class_names) if suits else None
    dtype = described.get("dtype")
    suits = len(kinds) == 1 and isinstance(dtype, str) and dtype in _LABEL_DTYPES[kinds.pop()]
    return datasets.Value(dtype) if suits and described.get("_type") == "Value" else None


def _coreset_rows(data: bytes, tensors: CondensedTensors, recipe: Recipe) -> datasets.Dataset:
    """Read the real rows of a coreset and check them against its tensors."""
    table = from_parquet(data, len(tensors.labels), PARQUET)
    try:
        rows = rows_of_table(table)
    except Exception as error:  # features of another writer; their parser documents no errors
        raise CondensedFormatError(f"{PARQUET}: features cannot be read: {error!s:.200}") from None
    if not isinstance(rows.features.get(recipe.image_column), datasets.Image):
        raise CondensedFormatError(f"{PARQUET}: column {recipe.image_column!r:.80} should hold images")
    if pc.struct_field(table[recipe.image_column], "bytes").null_count:
        raise CondensedFormatError(f"{PARQUET}: an image of {recipe.image_column!r:.80} has no bytes")
    if recipe.label_column not in rows.features:
        raise CondensedFormatError(f"{PARQUET}: column {recipe.label_column!r:.80} is missing")
    index = {value: i for i, value in enumerate(recipe.label_values)}
    labels = [index.get(value, -1) for value in table[recipe.label_column].to_pylist()]
    if sorted(labels) != tensors.labels.tolist():
        raise CondensedFormatError(f"{PARQUET}: the labels are not those of {TENSORS}")
    return rows


def rows_of_table(table: pa.Table) -> datasets.Dataset:
    """Return a table that was read from Parquet as rows, with the features that its metadata describes.

    Parquet has no dates and times in seconds, nor days in milliseconds, so such columns come in other units.
    """
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features")
    for field in datasets.Features.from_dict(described).arrow_schema if described else ():
        i = table.schema.get_field_index(field.name)
        if i >= 0 and field.type != table.schema.types[i] and _differ_in_units(field.type, table.schema.types[i]):
            table = table.set_column(i, field, table.column(i).cast(field.type))
    return datasets.Dataset(table)


def _differ_in_units(first: pa.DataType, second: pa.DataType) -> bool:
    """Return whether two types are equal but for the units of dates and times, at any depth."""
    if first.num_fields != second.num_fields or (first.id != second.id and not pa.types.is_temporal(first)):
        return False
    if not first.num_fields:
        return bool(first == second) or bool(pa.types.is_temporal(first) and pa.types.is_temporal(second))
    return all(_differ_in_units(first.field(i).type, second.field(i).type) for i in range(first.num_fields))
