"""What can be saved is known before a set is made: it depends on the recipe and on the columns of the source."""

from __future__ import annotations

import os
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.features.features import require_storage_embed

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.names import PARQUET, TENSORS, check_name
from hf_condense.condensed.files.packing import as_read, rows_of_table, stored_features, stored_table
from hf_condense.condensed.files.parquet import check_paths, from_parquet, to_parquet
from hf_condense.condensed.files.untrusted import check_decoded_size, check_file_size, tensor_file_bytes
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import row_features

_RESERVE = 1 << 16  # bytes of condense_config.json for what is known only when a set is made and measured
_BATCH = 10_000  # rows that are looked at together


def check_writable(recipe: Recipe, source: datasets.Dataset, classes: int | None = None) -> None:
    """Raise unless a set of this recipe can be saved and read again, so that no work is lost.

    Args:
        recipe: How the set is going to be made, without what is known only afterwards.
        source: The real training set.
        classes: Number of classes that have rows. Default: all.

    Raises:
        ValueError: If the name of the set cannot be that of a folder, the recipe holds more than JSON or readers
            accept, the tensors take more than readers accept, or a column has a name or a type that a set cannot have.
    """
    check_name(recipe.config_name)
    classes = len(recipe.class_names) if classes is None else classes
    budgets = recipe.ipc.values() if isinstance(recipe.ipc, dict) else [recipe.ipc] * classes
    entries = sum(map(recipe.decoder.entries, budgets))
    try:
        check_decoded_size(recipe, entries)
    except CondensedFormatError as error:
        raise ValueError(f"readers would refuse the set: {error}") from None
    check_file_size(TENSORS, tensor_file_bytes(recipe, entries))
    if recipe.kind == "coreset":
        recipe = replace(recipe, rows=[len(source) - 1] * sum(budgets))  # no row number has more digits
        features = source.features
    else:
        features = row_features(recipe, source.features, soft_labels=recipe.temperature is not None)
    read = as_read("recipe", recipe.to_dict())
    described = as_read("features", features.to_dict())
    facts = Facts(Recipe.from_dict(read), {"recipe": read, "features": described, "reserve": " " * _RESERVE})
    facts.to_bytes()
    if recipe.kind == "coreset":
        _check_rows(source, recipe.image_column)
    else:
        read_features = row_features(recipe, stored_features(facts), soft_labels=recipe.temperature is not None)
        if list(read_features.items()) != list(features.items()):
            raise ValueError(
                f"the rows of the set would have the columns {features}, and be read with {read_features}; cast "
                "the image column to a plain Image, and the label column to a plain ClassLabel or Value"
            )


def _check_rows(source: datasets.Dataset, image_column: str) -> None:
    """Raise `ValueError` unless rows of the source come back from the Parquet file of a coreset."""
    try:
        data = to_parquet(stored_table(source.select([0])))
        read = rows_of_table(from_parquet(data, 1, PARQUET)).features
        if list(read.items()) != list(source.features.items()):
            raise ValueError(f"{source.features} would be read as {read}")
        _check_nested(source, image_column)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise ValueError(
            f"a coreset keeps every column of its rows, and those of the source cannot be saved: {error}; remove or "
            "cast the column"
        ) from error


def _check_nested(source: datasets.Dataset, image_column: str) -> None:
    """Raise `ValueError` if a column apart from the pictures names files that are missing or not stored with it."""
    schema = source.features.arrow_schema
    names = [field.name for field in schema if field.type.num_fields and field.name != image_column]
    if not names:
        return
    files = [name for name in names if require_storage_embed(source.features[name])]
    for batch in source.select_columns(names).with_format("arrow").iter(_BATCH):
        check_paths(batch.drop_columns(files))
        for name in files:
            _check_files(name, batch.column(name))


def _check_files(name: str, column: pa.ChunkedArray) -> None:
    """Raise `ValueError` if a column names a local file that is missing, whose bytes would be stored."""
    if not pa.types.is_struct(column.type):
        return
    for cell in column.filter(pc.is_null(pc.struct_field(column, "bytes"))).to_pylist():
        path = cell["path"] if cell else None
        if path is not None and "://" not in path and not os.path.exists(path):
            raise ValueError(f"column {name!r} names the file {path!r}, which is missing")
