"""A condensed set as the three files of its config: packed to equal bytes for equal sets, unpacked with every check."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from datasets.table import embed_table_storage

from hf_condense._version import __version__
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.facts import FACTS, PARQUET, PREVIEW, TENSORS, read_facts, write_facts
from hf_condense.condensed.parquet import from_parquet, to_parquet
from hf_condense.condensed.preview import first_images, grid
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import SOFT_LABEL_COLUMN, Parts, decoded_rows, eight_bit
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.condensed.untrusted import (
    FORMAT,
    MAX_FILE_BYTES,
    check_tensors,
    parse_json,
    parse_tensors,
    read_bytes,
)

_PREVIEW_SIDE = 1000  # pixels of the picture, at most
_PREVIEW_IMAGES = 10  # along a side of it, at most
_VALUES = {  # what a label column may hold, by the type of its values
    int: frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    str: frozenset({"string", "large_string"}),
    bool: frozenset({"bool"}),
}


def pack(parts: Parts) -> dict[str, bytes]:
    """Return the files of a set by name; equal sets give equal bytes, in every process.

    Args:
        parts: The set.

    Returns:
        Picture, Parquet, safetensors and JSON, in the order in which they should be written.

    Raises:
        ValueError: If recipe, tensors and rows contradict each other, or hold what the format cannot.
    """
    recipe, tensors = _checked_recipe(parts.recipe), parts.tensors
    check_tensors(tensors, recipe)
    table = _stored_table(parts.rows)
    exact = safetensors.torch.save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.all().items()},
        metadata={
            FORMAT: recipe.decoder.format_version
        },  # one key only: with more, their order, so the bytes, differs by process
    )
    parquet = to_parquet(table)
    if recipe.kind == "coreset":
        _coreset_rows(parquet, tensors, recipe)
    facts = {
        "format": FORMAT,
        "format_version": recipe.decoder.format_version,
        "hf_condense_version": __version__,
        "recipe": recipe.to_dict(),
        "features": parts.rows.features.to_dict(),
        "num_rows": table.num_rows,
        "parquet_bytes": len(parquet),
        "tensor_bytes": len(exact),
        "preview": PREVIEW,
        "png": _eight_bit_error(tensors) if recipe.kind == "synthetic" else None,
        "sha256": {file: hashlib.sha256(data).hexdigest() for file, data in ((PARQUET, parquet), (TENSORS, exact))},
    }
    return {PREVIEW: _preview(tensors), PARQUET: parquet, TENSORS: exact, FACTS: write_facts(facts)}


def unpack(folder: Path) -> Parts:
    """Read the set whose files are in this very folder, exactly.

    Raises:
        CondensedFormatError: If a file is missing, damaged, unsafe, foreign or of a newer format.
    """
    facts = read_facts(folder)
    try:
        recipe = Recipe.from_dict(facts["recipe"])
        tensors = parse_tensors(_verified(folder / TENSORS, facts), recipe, TENSORS)
        if recipe.kind == "coreset":
            rows = _coreset_rows(_verified(folder / PARQUET, facts), tensors, recipe)
        else:
            rows = decoded_rows(tensors, recipe, _stored_features(facts, recipe))
        return Parts(rows, tensors, recipe)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:  # the last three: labels beyond a dtype
        raise CondensedFormatError(f"{folder}: {error}") from None


def _verified(path: Path, facts: dict[str, Any]) -> bytes:
    """Read a file and compare its hash: what was hashed is what is used."""
    data = read_bytes(path, MAX_FILE_BYTES)
    if hashlib.sha256(data).hexdigest() != facts["sha256"].get(path.name):
        raise CondensedFormatError(
            f"{path.name}: does not match its sha256: damaged, or of another set; fetch it again"
        )
    return data


def _checked_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe as a reader will get it."""
    try:
        text = json.dumps(recipe.to_dict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe should hold JSON values only, and finite numbers; {error}") from None
    return Recipe.from_dict(parse_json(text.encode(), "recipe"))


def _stored_table(rows: datasets.Dataset) -> pa.Table:
    """Return the rows as they are stored: files that rows only name are read in, formatting is left out."""
    table = rows.with_format("arrow")[:]
    return embed_table_storage(table.replace_schema_metadata(rows.features.arrow_schema.metadata)).combine_chunks()


def _preview(tensors: CondensedTensors) -> bytes:
    """Draw the first images of the first classes as PNG: a row for each class, or rows of ten if each has one image."""
    most = int(tensors.row_labels.bincount().max())
    if most == 1:
        first = torch.arange(min(_PREVIEW_IMAGES**2, tensors.num_rows))
        picture = grid(tensors.decoded(first)[0], per_class=min(_PREVIEW_IMAGES, tensors.num_rows))
    else:
        picture = first_images(tensors, min(_PREVIEW_IMAGES, most), max_classes=_PREVIEW_IMAGES)
    picture.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _eight_bit_error(tensors: CondensedTensors) -> dict[str, float]:
    """Measure how far the 8-bit images are from the floats."""
    clipped, values, worst = 0, 0, 0.0
    for pixels, coded in eight_bit(tensors):
        clipped += int(((pixels < 0) | (pixels > 1)).sum())
        values += pixels.numel()
        worst = max(worst, float((pixels - coded / 255).abs().max()))
    return {"clipped_fraction": clipped / values, "max_abs_error": worst}


def _stored_features(facts: dict[str, Any], recipe: Recipe) -> datasets.Features:
    """Rebuild the features of image and label column from the few kinds that there are."""
    stored: dict[str, Any] = facts["features"]
    wanted = {recipe.image_column, recipe.label_column}
    if stored.keys() - {SOFT_LABEL_COLUMN} != wanted - {SOFT_LABEL_COLUMN} or len(wanted) != 2:
        raise CondensedFormatError(f"{FACTS}: features should be those of {sorted(wanted)}; got {list(stored)!r:.80}")
    features = {}
    for name, feature in stored.items():
        if name in wanted:
            described = feature if isinstance(feature, dict) else {}
            build = _image_feature if name == recipe.image_column else _label_feature
            if (built := build(described, recipe)) is None:
                raise CondensedFormatError(f"{FACTS}: the feature of {name!r:.80} does not suit it: {feature!r:.80}")
            features[name] = built
    return datasets.Features(features)


def _image_feature(described: dict[str, Any], recipe: Recipe) -> datasets.Image | None:
    """Return the image feature that is described, if it is one."""
    mode, decoded = described.get("mode"), described.get("decode", True)
    known = mode in (None, "1", "L", "LA", "P", "RGB", "RGBA") and isinstance(decoded, bool)
    return datasets.Image(mode=mode, decode=decoded) if known and described.get("_type") == "Image" else None


def _label_feature(described: dict[str, Any], recipe: Recipe) -> datasets.ClassLabel | datasets.Value | None:
    """Return the label feature that is described, if the recipe's label values suit it."""
    kinds = {type(value) for value in recipe.label_values}
    if described.get("_type") == "ClassLabel":
        suits = recipe.label_values == list(range(len(recipe.label_values))) and kinds == {int}
        return datasets.ClassLabel(names=recipe.class_names) if suits else None
    dtype = described.get("dtype")
    suits = len(kinds) == 1 and isinstance(dtype, str) and dtype in _VALUES[kinds.pop()]
    return datasets.Value(dtype) if suits and described.get("_type") == "Value" else None


def _coreset_rows(data: bytes, tensors: CondensedTensors, recipe: Recipe) -> datasets.Dataset:
    """Read the real rows of a coreset and check them against its tensors."""
    table = from_parquet(data, len(tensors.labels), PARQUET)
    try:
        rows = datasets.Dataset(table)
    except Exception as error:  # features of another writer: their parser documents no errors
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
        raise CondensedFormatError(f"{PARQUET}: labels are not those of {TENSORS}")
    return rows
