"""Read tables of a flatbuffer from bytes that nobody vouches for.

A flatbuffer is a file of offsets: a table begins with the (signed) way back to its list of fields, that list says where in the table each
field lies, and a field is a number or the way forward to a vector, a text or another table. Nothing here trusts any of them: every read is
checked against the end of the file, and a file may be read through at most :data:`READS` times over, so that offsets which all lead to
one place cost no more than an honest file. Recursion is the caller's: who follows no cycle meets none.

Source: the FlatBuffers internals document; the checks are ours.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lilliput.errors import DataError

READS = 16
"""How often the bytes of a file may be read over; weights that a few layers share are read by each."""

_FORMS = {code: struct.Struct(f"<{code}") for code in "?bBhHiIqQf"}


class File:
    """The bytes, and how many may still be read."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what = data, what
        self.allowance = READS * len(data) + 2**20

    def spend(self, count: int) -> None:
        """Account for work in proportion to ``count`` bytes.

        Raises:
            DataError: the file asks for more than any honest file of its length.
        """
        self.allowance -= count
        if self.allowance < 0:
            raise self.damaged(f"its offsets overlap: reading it takes more than {READS} times its bytes")

    def damaged(self, how: str) -> DataError:
        """The error for a file that is not what it should be."""
        return DataError(f"{self.what}: {how} ({len(self.data):,} bytes); copy the file or convert the model again")

    def number(self, code: str, at: int) -> Any:
        """The number at a place, by its letter in the ``struct`` module."""
        form = _FORMS[code]
        if not 0 <= at <= len(self.data) - form.size:
            raise self.damaged(f"an offset leads to byte {at:,}, outside the file")
        return form.unpack_from(self.data, at)[0]

    def span(self, at: int, item_bytes: int) -> tuple[int, int]:
        """First byte and length of the vector at a place."""
        count, first = self.number("I", at), at + 4
        if count * item_bytes > len(self.data) - first:
            raise self.damaged(f"a vector of {count:,} items at byte {at:,} leads outside the file")
        self.spend(4 + count * item_bytes)
        return first, count


class Table:
    """One table: its fields by number, each with the value it has where the file leaves it out."""

    def __init__(self, file: File, at: int) -> None:
        self.file, self.at = file, at
        fields_at = at - file.number("i", at)
        list_bytes = file.number("H", fields_at)
        if list_bytes < 4 or list_bytes > len(file.data) - fields_at:
            raise file.damaged(f"the table at byte {at:,} has a list of fields of {list_bytes} bytes")
        file.spend(16 + list_bytes)
        self._fields = struct.unpack_from(f"<{list_bytes // 2 - 2}H", file.data, fields_at + 4)

    def has(self, field: int) -> bool:
        """Whether the file gives the field."""
        return self._place(field) is not None

    def integer(self, field: int, code: str, default: int = 0) -> int:
        """An integer field, by its letter in the ``struct`` module."""
        at = self._place(field)
        return default if at is None else int(self.file.number(code, at))

    def scalar(self, field: int, default: float = 0.0) -> float:
        """A float32 field."""
        at = self._place(field)
        return default if at is None else float(self.file.number("f", at))

    def flag(self, field: int) -> bool:
        """A boolean field."""
        return self.integer(field, "B") != 0

    def table(self, field: int) -> Table | None:
        """A field that is a table."""
        at = self._target(field)
        return None if at is None else Table(self.file, at)

    def tables(self, field: int) -> list[Table]:
        """A field that is a vector of tables."""
        at = self._target(field)
        if at is None:
            return []
        first, count = self.file.span(at, 4)
        offsets = struct.unpack_from(f"<{count}I", self.file.data, first)
        return [Table(self.file, first + 4 * index + offset) for index, offset in enumerate(offsets)]

    def numbers(self, field: int, dtype: str) -> Shaped[np.ndarray, " count"]:
        """A field that is a vector of numbers; a view of the file, not a copy."""
        at = self._target(field)
        if at is None:
            return np.zeros(0, dtype=dtype)
        first, count = self.file.span(at, np.dtype(dtype).itemsize)
        return np.frombuffer(self.file.data, dtype=dtype, count=count, offset=first)

    def text(self, field: int, longest: int = 200) -> str:
        """A field that is a text, cut to so many bytes."""
        at = self._target(field)
        if at is None:
            return ""
        count, first = self.file.number("I", at), at + 4
        if count > len(self.file.data) - first:
            raise self.file.damaged(f"a text of {count:,} bytes at byte {at:,} leads outside the file")
        return self.file.data[first : first + min(count, longest)].decode("utf-8", "replace")

    def _place(self, field: int) -> int | None:
        offset = self._fields[field] if field < len(self._fields) else 0
        return self.at + offset if offset else None

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + int(self.file.number("I", place))


def root(data: bytes, identifier: bytes, what: str) -> Table:
    """The table at the head of a file.

    Args:
        data: the whole file.
        identifier: the four letters that say its kind.
        what: the file's name, for messages.
    Raises:
        DataError: another kind of file, or one cut short.
    """
    file = File(data, what)
    if data[4:8] != identifier:
        found = data[4:8].decode("latin-1") if len(data) >= 8 else ""
        raise file.damaged(f"bytes 4 to 7 are {found!r}, must be {identifier.decode()!r}")
    return Table(file, file.number("I", 0))
