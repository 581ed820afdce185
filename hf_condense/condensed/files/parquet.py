"""Plain Parquet: written so that its size on disk bounds its size in memory, and read only if it keeps this rule.

Coresets of strangers are read from Parquet, so every file may be crafted to fill the memory, to keep the processor busy
or to name files of the reader. Compression, dictionaries and run lengths let a file of 286 bytes unfold to 314 MB, and
nulls take no bytes at all. So rows are written plain, and before a file is read, its footer and all page headers are
checked: they must say that everything is plain, lies within the file without overlap, and adds up. They are parsed by
`thrift.py`, because pyarrow's own view of a crafted footer can end the process.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.files.thrift import read_struct
from hf_condense.condensed.files.untrusted import MAX_JSON_BYTES, check_amount

ROW_GROUP = 100
"""Rows that a viewer or a stream fetches at once; of a long set more."""

_MAX_GROUPS = 100
_MAX_FOOTER_BYTES = 4 * MAX_JSON_BYTES  # the footer describes the features twice, once of them in base64
_MAX_FIELDS = 1024  # columns, including nested ones
_MAX_CHUNKS = 30_000  # of columns in row groups; the footer takes up to 30 values for each
_FREE_VALUES = 1 << 20  # nulls take no bytes, so a file may hold this many values beyond one for each of its bytes
_FREE_BYTES = 1 << 24  # nulls of a fixed size take memory, so columns may take this much beyond the size of the file
_PAGE_BYTES = 4096  # every page takes time, so the pages of a chunk must have at least this size on average
_DATA_PAGE, _PLAIN, _UNCOMPRESSED = 0, 0, 0


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as plain Parquet, without compression and dictionaries; equal tables give equal bytes."""
    buffer = io.BytesIO()
    size = max(ROW_GROUP, math.ceil(table.num_rows / _most_groups(table.schema)))
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "data_page_version": "1.0"}
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        for start in range(0, max(1, table.num_rows), size):
            # A row group at a time, because one chunk of a column may hold at most 2 GiB of pictures.
            writer.write_table(table.slice(start, size).combine_chunks(), row_group_size=size)
    return buffer.getvalue()


def _most_groups(schema: pa.Schema) -> int:
    """Return how many row groups a file may have, so that its footer stays within what is read."""
    columns = sum(1 for kind in schema.types for _ in _leaves(kind))
    return max(1, min(_MAX_GROUPS, _MAX_CHUNKS // max(1, columns)))


def from_parquet(data: bytes, rows: int, where: str) -> pa.Table:
    """Return the table in a plain Parquet file; none of its values makes a later reader open a local file.

    Args:
        data: Content of the file.
        rows: Number of rows that it should hold.
        where: Name of the file, for messages.

    Raises:
        CondensedFormatError: If the file is damaged, not plain, of another length, or names a file without its bytes.
    """
    try:
        counts = _check_layout(data, rows)
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_sizes(file.schema_arrow, rows, counts, len(data))
        _check_metadata(file.schema_arrow)
        table = file.read()
        table.validate(full=True)
        if table.num_rows != rows:
            raise CondensedFormatError(f"holds {table.num_rows:,} rows; the set has {rows:,}")
        check_paths(table)
    except CondensedFormatError as error:
        raise CondensedFormatError(f"{where}: {error}") from None
    except Exception as error:  # pyarrow documents no errors for damaged files
        raise CondensedFormatError(f"{where}: not readable as Parquet: {error!s:.200}") from None
    return table


def check_paths(table: pa.Table) -> None:
    """Raise `CondensedFormatError` if a later reader of a table would open a local file that it names."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if any(_holds_path(chunk) for chunk in column.chunks):
            raise CondensedFormatError(f"column {name!r:.80} names local files instead of holding their bytes")


def _check_layout(data: bytes, rows: int) -> list[int]:
    """Return the number of values of every column, including nested ones.

    Raises:
        CondensedFormatError: If the number of rows is not the expected one, or anything is not plain.
    """
    length = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - length
    if data[:4] != b"PAR1" or data[-4:] != b"PAR1" or end < 4 or length > _MAX_FOOTER_BYTES:
        raise CondensedFormatError(f"not a Parquet file with a footer of at most {_MAX_FOOTER_BYTES:,} bytes")
    footer, _ = read_struct(data, end)
    groups = _structs(footer.get(4))
    group_rows = sum(_number(group.get(3)) for group in groups)
    if footer.get(3) != rows or group_rows != rows:
        raise CondensedFormatError(f"holds {group_rows:,} rows; the set has {rows:,}")
    if len(_structs(footer.get(2))) > _MAX_FIELDS:
        raise CondensedFormatError(f"more than {_MAX_FIELDS:,} columns")
    start = 4
    values: list[list[int]] = []
    for group in groups:
        values.append([])
        for chunk in _structs(group.get(1)):
            count, start = _check_chunk(data, start, end, chunk)
            values[-1].append(count)
    counts = [sum(column) for column in zip(*values, strict=True)]
    if sum(counts) > _FREE_VALUES + len(data):
        raise CondensedFormatError(f"{sum(counts):,} values in {len(data):,} bytes")
    return counts


def _check_sizes(schema: pa.Schema, rows: int, counts: list[int], size: int) -> None:
    """Raise if columns of a fixed size, whose nulls take no bytes in the file, may take too much memory."""
    leaves = (leaf for kind in schema.types for leaf in _leaves(kind))
    memory = sum(
        width * (count if repeated else rows) // 8 for (width, repeated), count in zip(leaves, counts, strict=True)
    )
    if memory > _FREE_BYTES + size:
        raise CondensedFormatError(f"columns of a fixed size may take {memory:,} bytes, in a file of {size:,}")


def _check_metadata(schema: pa.Schema) -> None:
    """Raise if the description of the features, which `datasets` parses, may take too much memory."""
    for text in (schema.metadata or {}).values():
        try:
            check_amount(text)
        except ValueError as error:
            raise CondensedFormatError(f"the features are described in {error}") from None


def _leaves(kind: pa.DataType, items: int = 1, repeated: bool = False) -> Iterator[tuple[int, bool]]:
    """Yield, for each column that Parquet makes of a type, the bits of an entry and whether a row may have many."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type, items, repeated)
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _leaves(kind.field(i).type, items, repeated)
    elif pa.types.is_fixed_size_list(kind):
        yield from _leaves(kind.value_type, items * kind.list_size, repeated)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(kind.value_type, items, True)
    elif pa.types.is_map(kind):
        yield from _leaves(kind.key_type, items, True)
        yield from _leaves(kind.item_type, items, True)
    elif kind.num_fields:
        raise CondensedFormatError(f"columns of type {kind!s:.80} are not read")
    else:
        fixed = pa.types.is_primitive(kind) or isinstance(kind, pa.FixedSizeBinaryType)
        yield items * (kind.bit_width if fixed else 64), repeated


def _check_chunk(data: bytes, start: int, end: int, chunk: dict[int, Any]) -> tuple[int, int]:
    """Return the number of values and the end of a column chunk.

    Args:
        data: Content of the file.
        start: End of the chunk before.
        end: Begin of the footer.
        chunk: What the footer says of the chunk, by field number.

    Raises:
        CondensedFormatError: If the chunk does not lie between `start` and `end`, or is not made of plain pages.
    """
    column = chunk.get(3)
    if not isinstance(column, dict) or chunk.keys() - {2, 3}:
        raise CondensedFormatError("a column chunk is encrypted, in another file, or of an unknown kind")
    if column.keys() & {8, 10, 11, 12, 14, 15}:
        raise CondensedFormatError("a column chunk has a dictionary, an index or statistics")
    codec, values, size, position = (_number(column.get(field)) for field in (4, 5, 7, 9))
    if codec != _UNCOMPRESSED:
        raise CondensedFormatError("a column chunk is compressed")
    stop = position + size
    if not start <= position <= stop <= end:  # chunks that share bytes would read them again and again
        raise CondensedFormatError(f"a column chunk lies at {position:,} to {stop:,}, not in {start:,} to {end:,}")
    page_values, position = _check_pages(data, position, stop)
    if (position, page_values) != (stop, values):
        raise CondensedFormatError(f"a column chunk holds {page_values:,} of {values:,} values")
    return values, stop


def _check_pages(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Return the number of values in the pages of a chunk, and the end of its last page; raise unless all are plain."""
    position, values, pages, size = start, 0, 0, stop - start
    while position < stop:
        header, position = read_struct(data, position)
        page = header.get(5)
        if not isinstance(page, dict) or (header.get(1), page.get(2)) != (_DATA_PAGE, _PLAIN):
            raise CondensedFormatError("a page is not plain")
        if header.get(2) != header.get(3):
            raise CondensedFormatError("a page is compressed")
        position += _number(header.get(3))
        values += _number(page.get(1))
        if (pages := pages + 1) > 1 + size // _PAGE_BYTES:
            raise CondensedFormatError(f"a column chunk of {size:,} bytes in too many pages")
    return values, position


def _structs(value: Any) -> list[dict[int, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CondensedFormatError("the footer is not that of a Parquet file")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CondensedFormatError(f"a size in a header should be a number >= 0; got {value!r:.40}")
    return value


def _holds_path(array: pa.Array) -> bool:
    """Return whether an image, a sound or another file, at any depth, has a path but no bytes."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _holds_path(array.storage)
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        fields = dict(zip(names, array.flatten(), strict=True))
        if {"bytes", "path"} <= fields.keys() and pc.any(
            pc.and_(fields["path"].is_valid(), fields["bytes"].is_null())
        ).as_py():
            return True
        return any(_holds_path(field) for field in fields.values())
    nested = isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.MapArray))
    return nested and _holds_path(array.values)
