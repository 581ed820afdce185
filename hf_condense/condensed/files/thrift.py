"""A bounded parser of Thrift's compact protocol, in which Parquet writes its footer and page headers."""

from __future__ import annotations

from typing import Any

from hf_condense.base.errors import CondensedFormatError

_MAX_DEPTH = 8
_MAX_ITEMS = 4096  # in one list
_MAX_VALUES = 1 << 20  # in all; in memory each may take a hundred times as much as in the file
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


def read_struct(data: bytes, position: int) -> tuple[dict[int, Any], int]:
    """Parse a struct.

    Args:
        data: Content of the file.
        position: Where the struct begins.

    Returns:
        The values by field number, text as bytes, and the position behind the struct.

    Raises:
        CondensedFormatError: If this is not a struct, does not end, nests too deep, or holds too many values.
    """
    return _Reader(data).struct(position, _MAX_DEPTH)


class _Reader:
    """Parses the parts of one struct, and counts its values."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.values = 0

    def struct(self, position: int, depth: int) -> tuple[dict[int, Any], int]:
        fields: dict[int, Any] = {}
        number = 0
        while kind := _byte(self.data, position):
            position += 1
            if kind >> 4:
                number += kind >> 4
            else:
                number, position = _integer(self.data, position)
            kind &= 15
            if kind in (_TRUE, _FALSE):
                fields[number] = kind == _TRUE
            else:
                fields[number], position = self.value(position, kind, depth)
        return fields, position + 1

    def value(self, position: int, kind: int, depth: int) -> tuple[Any, int]:
        data = self.data
        self.values += 1
        if self.values > _MAX_VALUES:
            raise CondensedFormatError(f"a header has more than {_MAX_VALUES:,} values")
        if not depth:
            raise CondensedFormatError(f"a header nests deeper than {_MAX_DEPTH}")
        if kind in _INTEGERS:
            return _integer(data, position)
        if kind == _BYTE:
            return _byte(data, position), position + 1
        if kind == _DOUBLE:
            return data[position : position + 8], position + 8
        if kind == _BINARY:
            length, position = _varint(data, position)
            return data[position : position + length], position + length
        if kind in _LISTS:
            return self.list(position, depth - 1)
        if kind == _STRUCT:
            return self.struct(position, depth - 1)
        raise CondensedFormatError(f"a header has a field of unknown kind {kind}")

    def list(self, position: int, depth: int) -> tuple[list[Any], int]:
        head = _byte(self.data, position)
        position += 1
        count, kind = head >> 4, head & 15
        if count == 15:
            count, position = _varint(self.data, position)
        if count > _MAX_ITEMS:
            raise CondensedFormatError(f"a header has a list of {count:,} items; at most {_MAX_ITEMS:,} are read")
        items = []
        for _ in range(count):
            item, position = self.value(position, _BYTE if kind in (_TRUE, _FALSE) else kind, depth)
            items.append(item)
        return items, position


def _byte(data: bytes, position: int) -> int:
    if not 0 <= position < len(data):
        raise CondensedFormatError("a header does not end")
    return data[position]


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """Parse a signed integer, written in zigzag order: 0, -1, 1, -2, ..."""
    raw, position = _varint(data, position)
    return raw >> 1 ^ -(raw & 1), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Parse an unsigned integer of at most 70 bits: seven bits per byte, low bits first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(data, position)
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise CondensedFormatError("an integer in a header does not end")
