"""Writing Parquet so that its size on disk bounds its size in memory, and reading only Parquet that keeps this rule.

Compression, dictionaries and run lengths let a file of 286 bytes unfold to 314 MB, and the sizes in the footer are not
to be trusted. So rows are written plain, and before a file is read its footer and every page header are checked to say
the same. They are parsed here: pyarrow's own view of a crafted footer can end the process.
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
from hf_condense.condensed.thrift import read_struct

_ROW_GROUP, _MAX_GROUPS = 100, 100  # rows that a viewer or a stream fetches at once; more of them in a long set
_MAX_FOOTER_BYTES = 1 << 20
_MAX_FIELDS = 1024  # columns, nested ones counted
_FREE_VALUES = 1 << 20  # nulls take no bytes: this many values may, beyond one for each byte of the file
_FREE_BYTES = 1 << 24  # but nulls of a fixed size take memory: this much may be taken beyond the size of the file
_PAGE_BYTES = 4096  # of a page in a chunk of several, on average, at least: each takes time
_DATA_PAGE, _PLAIN, _UNCOMPRESSED = 0, 0, 0


def to_parquet(table: pa.Table) -> bytes:
    """Write a table as plain Parquet: no compression, no dictionary; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table.combine_chunks(),
        buffer,
        row_group_size=max(_ROW_GROUP, math.ceil(table.num_rows / _MAX_GROUPS)),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        data_page_version="1.0",
    )
    return buffer.getvalue()


def from_parquet(data: bytes, rows: int, where: str) -> pa.Table:
    """Read a plain Parquet file of a known number of rows; no value makes a later reader open a local file.

    Args:
        data: The file.
        rows: How many rows it should hold.
        where: Name of the file, for messages.

    Raises:
        CondensedFormatError: If it is damaged, not plain, of another length, or holds a file by its path only.
    """
    try:
        counts = _check_layout(data, rows)
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_sizes(file.schema_arrow, rows, counts, len(data))
        table = file.read()
        table.validate(full=True)
        if table.num_rows != rows:
            raise CondensedFormatError(f"holds {table.num_rows:,} rows; the set has {rows:,}")
        for name, column in zip(table.column_names, table.columns, strict=True):
            if any(_holds_path(chunk) for chunk in column.chunks):
                raise CondensedFormatError(f"column {name!r:.80} names local files instead of holding their bytes")
    except CondensedFormatError as error:
        raise CondensedFormatError(f"{where}: {error}") from None
    except Exception as error:  # pyarrow documents no errors for damaged files
        raise CondensedFormatError(f"{where}: not readable as Parquet: {error!s:.200}") from None
    return table


def _check_layout(data: bytes, rows: int) -> list[int]:
    """Return the number of values by column, nested ones counted; raise unless the rows are right and all is plain."""
    length = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - length
    if data[:4] != b"PAR1" or data[-4:] != b"PAR1" or end < 4 or length > _MAX_FOOTER_BYTES:
        raise CondensedFormatError(f"no Parquet file with a footer of at most {_MAX_FOOTER_BYTES:,} bytes")
    footer, _ = read_struct(data, end)
    groups = _structs(footer.get(4))
    found = sum(_number(group.get(3)) for group in groups)
    if footer.get(3) != rows or found != rows:
        raise CondensedFormatError(f"holds {found:,} rows; the set has {rows:,}")
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
    """Raise if columns of fixed-size items, whose nulls take no bytes in the file, may take too much memory."""
    leaves = (leaf for kind in schema.types for leaf in _leaves(kind))
    taken = sum(
        width * (count if repeated else rows) // 8 for (width, repeated), count in zip(leaves, counts, strict=True)
    )
    if taken > _FREE_BYTES + size:
        raise CondensedFormatError(f"fixed-size columns that may take {taken:,} bytes in a file of {size:,}")


def _leaves(kind: pa.DataType, items: int = 1, repeated: bool = False) -> Iterator[tuple[int, bool]]:
    """Yield the bits of an entry, and whether a row may have many, for each column that Parquet makes of a type."""
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
        raise CondensedFormatError(f"a column of type {kind!s:.80} is not read")
    else:
        fixed = pa.types.is_primitive(kind) or isinstance(kind, pa.FixedSizeBinaryType)
        yield items * (kind.bit_width if fixed else 64), repeated


def _check_chunk(data: bytes, start: int, end: int, chunk: dict[int, Any]) -> tuple[int, int]:
    """Return values and end of a column chunk; raise unless it lies between the last one and `end`, in plain pages."""
    column = chunk.get(3)
    if not isinstance(column, dict) or chunk.keys() - {2, 3}:
        raise CondensedFormatError("a column chunk is encrypted, in another file, or of an unknown kind")
    if column.keys() & {8, 10, 11, 12, 14, 15}:
        raise CondensedFormatError("a column chunk has a dictionary, an index or statistics")
    codec, values, size, position = (_number(column.get(field)) for field in (4, 5, 7, 9))
    if codec != _UNCOMPRESSED:
        raise CondensedFormatError("a column chunk is compressed")
    stop, seen, pages = position + size, 0, 0
    if not start <= position <= stop <= end:  # one after the other: shared bytes would be read again and again
        raise CondensedFormatError(f"a column chunk lies at {position:,} to {stop:,}, not in {start:,} to {end:,}")
    while position < stop:
        header, position = read_struct(data, position)
        page = header.get(5)
        if not isinstance(page, dict) or (header.get(1), page.get(2)) != (_DATA_PAGE, _PLAIN):
            raise CondensedFormatError("a page is not plain")
        if header.get(2) != header.get(3):
            raise CondensedFormatError("a page is compressed")
        position += _number(header.get(3))
        seen += _number(page.get(1))
        if (pages := pages + 1) > 1 + size // _PAGE_BYTES:
            raise CondensedFormatError(f"a column chunk of {size:,} bytes in too many pages")
    if (position, seen) != (stop, values):
        raise CondensedFormatError(f"a column chunk holds {seen:,} of {values:,} values")
    return values, stop


def _structs(value: Any) -> list[dict[int, Any]]:
    """Return a list of structs."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CondensedFormatError("the footer is not that of a Parquet file")
    return value


def _number(value: Any) -> int:
    """Return a number that is not negative."""
    if type(value) is not int or value < 0:
        raise CondensedFormatError(f"a size in a header should be a number >= 0; got {value!r:.40}")
    return value


def _holds_path(array: pa.Array) -> bool:
    """Tell whether a picture, sound or other file, however deep, has a path but no bytes."""
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
