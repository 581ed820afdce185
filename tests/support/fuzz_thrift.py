"""Thrift's compact protocol with its types, so that a Parquet footer can be read, changed and written again.

A value is a pair [kind, content]; the content of a struct is {field: value}, of a list [kind of the items, contents].
Whatever the kinds and contents were changed to, they can be written.
"""

from __future__ import annotations

from typing import Any

TRUE, FALSE, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


def read(data: bytes, at: int = 0, kind: int = STRUCT) -> tuple[Any, int]:
    """Return the content of a well-formed value of a kind, and where it ends."""
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BYTE:
        return data[at], at + 1
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    if kind in INTEGERS:
        raw, at = _varint(data, at)
        return raw >> 1 ^ -(raw & 1), at
    if kind == BINARY:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    return _read_list(data, at) if kind in LISTS else _read_struct(data, at)


def _read_list(data: bytes, at: int) -> tuple[Any, int]:
    """Return the kind of a list's items and the items, and where it ends."""
    count, kind, at = data[at] >> 4, data[at] & 15, at + 1
    if count == 15:
        count, at = _varint(data, at)
    items = []
    for _ in range(count):
        item, at = read(data, at, BYTE if kind in (TRUE, FALSE) else kind)
        items.append(item)
    return [kind, items], at


def _read_struct(data: bytes, at: int) -> tuple[Any, int]:
    """Return the fields of a struct, each a pair [kind, content], and where it ends."""
    fields, number = {}, 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            raw, at = _varint(data, at)
            number = raw >> 1 ^ -(raw & 1)
        content, at = read(data, at, head & 15)
        fields[number] = [head & 15, content]
    return fields, at + 1


def write(content: Any, kind: int = STRUCT) -> bytes:
    """Return the bytes of a value; content that does not suit its kind is written as if it were empty."""
    number = content if isinstance(content, int) else 0
    if kind in (TRUE, FALSE):
        return b""
    if kind == BYTE:
        return bytes([number & 255])
    if kind == DOUBLE:
        return (_bytes(content) + bytes(8))[:8]
    if kind in INTEGERS:
        return _as_varint(number << 1 if number >= 0 else (-number << 1) - 1)
    if kind in LISTS:
        of, items = content if isinstance(content, list) and len(content) == 2 else [BYTE, []]
        of, items = _kind(of), items if isinstance(items, list) else []
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + _as_varint(len(items))
        return head + b"".join(write(item, BYTE if of in (TRUE, FALSE) else of) for item in items)
    if kind == STRUCT:
        fields = content if isinstance(content, dict) else {}
        return b"".join(_field(field, value) for field, value in fields.items()) + b"\0"
    return _as_varint(len(_bytes(content))) + _bytes(content)


def _field(field: int, value: Any) -> bytes:
    """Write a field with its number in full."""
    kind, content = value if isinstance(value, list) and len(value) == 2 else [BINARY, value]
    kind = _kind(kind)
    if kind in (TRUE, FALSE):
        kind = TRUE if content else FALSE
    return bytes([kind]) + write(int(field), INTEGERS[0]) + write(content, kind)


def _kind(value: Any) -> int:
    """Return a kind that fits four bits, whether Thrift has it or not."""
    return value & 15 if isinstance(value, int) else BINARY


def _bytes(content: Any) -> bytes:
    """Return content as bytes."""
    return content if isinstance(content, bytes) else str(content).encode(errors="replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Parse an unsigned integer."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    """Write an unsigned integer."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes(written) + bytes([value])
