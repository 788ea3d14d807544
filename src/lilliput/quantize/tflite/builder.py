"""Write a flatbuffer: a tree of tables, vectors and texts laid out front to back.

The usual builders write back to front, so that whatever is pointed to exists first. Here the tree is known beforehand, so each part is
laid down where it is met and the slots that point to it are filled in then.

Source: the FlatBuffers internals document; the layout is ours.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped


@dataclass(frozen=True)
class Scalar:
    """A number inside a table; ``code`` is its letter in the ``struct`` module."""

    code: str
    value: int | float


@dataclass(frozen=True, eq=False)
class Numbers:
    """A vector of numbers, little-endian; its first lies at a multiple of ``alignment`` bytes."""

    values: Shaped[np.ndarray, " count"]
    alignment: int = 0


@dataclass(frozen=True)
class Text:
    """A text, UTF-8."""

    value: str


@dataclass(frozen=True)
class Tables:
    """A vector of tables."""

    items: Sequence[Fields]


Field = Scalar | Numbers | Text | Tables | Mapping[int, "Field"]
Fields = Mapping[int, "Field"]
"""A table: its fields by number."""


def flatbuffer(root: Fields, identifier: bytes) -> bytes:
    """The bytes of a file.

    Args:
        root: the table at its head.
        identifier: four letters that say its kind.
    """
    out = bytearray(struct.pack("<I4s", 0, identifier))
    waiting: deque[tuple[int, Field]] = deque([(0, root)])
    while waiting:
        slot, part = waiting.popleft()
        if isinstance(part, Numbers):
            at = _numbers(out, part)
        elif isinstance(part, Text):
            encoded = part.value.encode("utf-8")
            at = _pad(out, 4)
            out += struct.pack("<I", len(encoded)) + encoded + b"\0"
        elif isinstance(part, Tables):
            at = _pad(out, 4)
            out += struct.pack("<I", len(part.items)) + bytes(4 * len(part.items))
            waiting.extend((at + 4 + 4 * index, item) for index, item in enumerate(part.items))
        else:
            assert isinstance(part, Mapping)
            at = _table(out, part, waiting)
        struct.pack_into("<I", out, slot, at - slot)
    return bytes(out)


def _numbers(out: bytearray, part: Numbers) -> int:
    values = np.ascontiguousarray(part.values)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    at = _pad(out, max(4, values.itemsize, part.alignment), before=4)
    out += struct.pack("<I", len(values)) + values.tobytes()
    return at


def _table(out: bytearray, fields: Fields, waiting: deque[tuple[int, Field]]) -> int:
    """A list of fields, then the table, wide fields first so that nothing lies between them."""
    sizes = {
        number: struct.calcsize(field.code) if isinstance(field, Scalar) else 4 for number, field in fields.items()
    }
    order = sorted(fields, key=lambda number: -sizes[number])
    count = max(fields, default=-1) + 1
    list_bytes = 4 + 2 * count
    _pad(out, 2)
    # The table's first field follows its 4 bytes back to the list; 8-byte numbers there want a multiple of 8.
    while (len(out) + list_bytes) % 8 != 4:
        out += b"\0\0"
    places, end = {}, 4
    for number in order:
        places[number] = end
        end += sizes[number]
    listed = [places.get(number, 0) for number in range(count)]
    out += struct.pack(f"<HH{count}H", list_bytes, end, *listed)
    at = len(out)
    out += struct.pack("<i", list_bytes)
    for number in order:
        field = fields[number]
        if isinstance(field, Scalar):
            out += struct.pack(f"<{field.code}", field.value)
        else:
            waiting.append((len(out), field))
            out += bytes(4)
    return at


def _pad(out: bytearray, alignment: int, before: int = 0) -> int:
    """Move to where ``before`` more bytes end at a multiple of the alignment."""
    out += bytes(-(len(out) + before) % alignment)
    return len(out)
