"""Real splits that are published beside a condensed one: every row unchanged, as Parquet, and counted for the card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import embed_table_storage

from hf_condense.base.checks import listed
from hf_condense.condensed.files.names import is_split, shard_file
from hf_condense.condensed.files.parquet import ROW_GROUP
from hf_condense.condensed.rows import VIEW_COLUMNS

_SHARD_BYTES = 500_000_000
_ALL = "all"  # `datasets` keeps this name, in any case of its letters, for all splits together

logger = logging.getLogger("hf_condense")


def write_splits(
    splits: Mapping[str, datasets.Dataset], features: datasets.Features, folder: Path
) -> dict[str, dict[str, int]]:
    """Write splits as Parquet shards with the columns of a condensed set; the shards hold the bytes of the images.

    Args:
        splits: Split name to rows, which have at least the columns of the condensed set.
        features: Features of the condensed set.
        folder: Where the shards are written, named as by `shard_file`.

    Returns:
        Split name to `num_rows` and `num_bytes`, for the facts.

    Raises:
        TypeError: If a split is not a `Dataset`.
        ValueError: If a name cannot be that of a split, or the columns do not suit.
    """
    aligned = {name: _align(name, ds, features) for name, ds in splits.items()}
    return {name: _write_shards(name, ds, features, folder) for name, ds in aligned.items()}


def _align(name: str, ds: datasets.Dataset, features: datasets.Features) -> datasets.Dataset:
    """Return the rows in the columns of the condensed set, because all splits of a config have the same columns."""
    if not is_split(name):
        raise ValueError(
            f"extra_splits: {name!r} should be words of letters, digits and '_', joined by dots, and not 'train', "
            "which is the condensed split"
        )
    if name.lower() == _ALL:
        raise ValueError(
            f"extra_splits: {name!r} is what datasets.load_dataset calls all splits together, and it reads no split of "
            "this name; choose another one, such as 'test'"
        )
    if not isinstance(ds, datasets.Dataset):
        raise TypeError(f"extra_splits: {name!r} should be a datasets.Dataset; got {type(ds).__name__}")
    for column, feature in features.items():
        if column not in ds.features and column not in VIEW_COLUMNS:
            raise ValueError(
                f"extra_splits: {name!r} has no column {column!r}, which the condensed set has; its columns are "
                f"{listed(ds.column_names)}"
            )
        if not _suits(column, ds.features.get(column), feature):
            raise ValueError(
                f"extra_splits: column {column!r} of {name!r} should be {feature}, as in the condensed set; "
                f"got {ds.features.get(column)}"
            )
    if not len(ds):
        raise ValueError(f"extra_splits: {name!r} has no rows")
    if dropped := [column for column in ds.column_names if column not in features]:
        logger.warning("columns of split %r that the condensed set lacks are left out: %s", name, ", ".join(dropped))
    return ds.with_format("arrow", columns=[column for column in features if column in ds.column_names])


def _suits(column: str, feature: object, expected: object) -> bool:
    """Return whether a column of a split can stand below that of the condensed set; soft labels may be missing."""
    images = isinstance(feature, datasets.Image) and isinstance(expected, datasets.Image)
    return feature == expected or images or (column in VIEW_COLUMNS and feature is None)


def _write_shards(name: str, ds: datasets.Dataset, features: datasets.Features, folder: Path) -> dict[str, int]:
    """Write the rows of a split, with one row group in memory at a time; equal rows give equal bytes."""
    groups = (_as_stored(rows, features.arrow_schema) for rows in ds.iter(ROW_GROUP))
    shards: list[Path] = []
    for first in groups:
        shards.append(folder / f"{name}-{len(shards)}")
        with pq.ParquetWriter(shards[-1], first.schema, compression="none", use_dictionary=False) as writer:
            size = 0
            for group in chain([first], groups):
                writer.write_table(group)
                if (size := size + group.nbytes) >= _SHARD_BYTES:
                    break
    for i, shard in enumerate(shards):
        shards[i] = shard.rename(folder / shard_file(name, i, len(shards)))
    return {"num_rows": len(ds), "num_bytes": sum(shard.stat().st_size for shard in shards)}


def _as_stored(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows as they are stored: with the bytes of the images, and NaN for soft labels that they lack."""
    present = set(rows.column_names)
    columns = [rows[field.name] if field.name in present else _missing(len(rows), field.type) for field in schema]
    return embed_table_storage(pa.table(columns, schema=schema))


def _missing(n: int, kind: pa.DataType) -> pa.Array:
    """Return lists of NaN (or of -1 for integers): older readers of Parquet cannot tell the length of null lists."""
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_missing(n * kind.list_size, kind.value_type), kind.list_size)
    return pa.array(np.full(n, np.nan if pa.types.is_floating(kind) else -1, kind.to_pandas_dtype()))
