"""Parquet files, which only coresets are read from: small ones that unfold and ones that name files are refused."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_condense.errors import CondensedFormatError
from hf_condense.safe_parquet import from_parquet, to_parquet


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
