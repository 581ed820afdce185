"""Parquet files of coresets: files that unfold to more than their size, and files that name others, are refused."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.files.parquet import from_parquet, to_parquet
from tests.support import fuzz_thrift


def real_table(rows: int = 4, **columns) -> pa.Table:
    """Return a table such as a coreset's."""
    image = pa.array([{"bytes": b"x", "path": None}] * rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table({"image": image, "label": [0] * rows, **columns})


def written(table: pa.Table, **options) -> bytes:
    """Return a table as Parquet, with options of other writers."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


POOLS = []  # never emptied, because Arrow may still free into a pool after the test


def peak_bytes(action) -> int:
    """Return the most memory that Arrow took during an action."""
    pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        action()
    finally:
        pa.set_memory_pool(before)
    return pool.max_memory()


def null_bomb(values: int) -> bytes:
    """Return a file with one list of this many nulls, which take no bytes."""
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


def test_list_of_very_many_nulls_is_refused():
    data = null_bomb(1 << 22)
    assert len(data) < 2000
    with pytest.raises(CondensedFormatError, match=r"4,194,304 values in"):
        from_parquet(data, 1, "x")
    assert from_parquet(null_bomb(1 << 12), 1, "x").num_rows == 1


def refused(data: bytes, rows: int) -> str:
    """Return why a file is refused, or nothing."""
    try:
        from_parquet(data, rows, "x")
    except CondensedFormatError as error:
        return str(error)
    return ""


def unreadable(data: bytes) -> str:
    """Return why Arrow cannot read a file at all: an older one reads no nulls among lists of a fixed size."""
    try:
        pq.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        return f"x: not readable as Parquet: {error}"
    return "readable"


FIXED = {
    "binary": lambda size: pa.binary(size),
    "many columns": lambda size: pa.struct({f"c{i}": pa.binary(size // 8) for i in range(8)}),
    "list": lambda size: pa.list_(pa.float64(), size // 8),
    "binary in lists": lambda size: pa.list_(pa.list_(pa.binary(size // 4), 2), 2),
    "list in a list": lambda size: pa.list_(pa.list_(pa.int8(), size)),
    "list in a map": lambda size: pa.map_(pa.string(), pa.struct({"a": pa.list_(pa.int8(), size)})),
}


@pytest.mark.parametrize("kind", FIXED.values(), ids=FIXED.keys())
def test_nulls_of_a_large_fixed_size_are_refused_before_memory_is_taken(kind):
    def stored(size: int) -> bytes:
        value = {pa.lib.Type_LIST: [None], pa.lib.Type_MAP: [("k", {"a": None})]}.get(kind(size).id)
        return to_parquet(pa.table({"x": pa.array([value] * 4, kind(size))}))

    bomb, ordinary = stored(1 << 25), stored(1 << 10)
    assert len(bomb) < 4000
    assert peak_bytes(lambda: refused(bomb, 4)) < 100_000
    assert refused(ordinary, 4) in ("", unreadable(ordinary))


def with_footer(data: bytes, change) -> bytes:
    """Return a file whose footer was changed by a function of its columns' metadata."""
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = fuzz_thrift.read(data, end)
    _, (_, groups) = footer[4]
    _, (_, chunks) = groups[0][1]
    columns = [column for _, column in (chunk[3] for chunk in chunks)]
    body = change(data[:end], columns)
    written = fuzz_thrift.write(footer)
    return body + written + len(written).to_bytes(4, "little") + b"PAR1"


def test_columns_that_share_their_bytes_are_refused():
    def share(body: bytes, columns: list) -> bytes:
        for column in columns[1:]:
            column.update({number: columns[0][number] for number in (5, 6, 7, 9)})
        return body[: columns[0][9][1] + columns[0][7][1]]

    bomb = with_footer(to_parquet(pa.table({f"c{i}": ["a" * 10_000] for i in range(300)})), share)
    assert len(bomb) < 100_000
    assert peak_bytes(lambda: pq.read_table(io.BytesIO(bomb))) > 3_000_000
    with pytest.raises(CondensedFormatError, match=r"x: a column chunk lies at 4 to 10,0\d\d, not in 10,0\d\d to"):
        from_parquet(bomb, 1, "x")


def test_very_many_pages_are_refused():
    """A page without values takes 20 bytes only, but as much time as any other."""

    def split(body: bytes, columns: list) -> bytes:
        (column,) = columns
        start, size = column[9][1], column[7][1]
        none = {1: [5, 0], 2: [5, 0], 3: [5, 0]}
        empty = fuzz_thrift.write({**none, 5: [12, {**none, 4: [5, 3]}]})
        for field in (6, 7):
            column[field][1] = size + 5000 * len(empty)
        return body[:start] + empty * 5000 + body[start : start + size]

    data = to_parquet(pa.table({"x": [1]}))
    assert from_parquet(with_footer(data, lambda body, columns: body), 1, "x").num_rows == 1
    with pytest.raises(CondensedFormatError, match=r"x: a column chunk of [\d,]+ bytes in too many pages"):
        from_parquet(with_footer(data, split), 1, "x")


def test_files_that_are_not_plain_parquet_are_refused():
    good = to_parquet(real_table())
    assert from_parquet(good, 4, "x").equals(real_table())
    for data, match in (
        (good, "holds 4 rows; the set has 5"),
        (b"PAR1" + good[4:-12] + good[-8:], "x: "),
        (b"", "not a Parquet file"),
        (b"PAR1" * 4, "not a Parquet file"),
        (good[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1", "not a Parquet file"),
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
def test_file_that_is_only_named_is_refused_at_any_depth(depth):
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
