"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed over it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of the old one when all is written, and is removed where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a power cut, sees the old content or the new and nothing between."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with the line ends as given, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Write indented JSON, whole or not at all; keys keep their order.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory survive a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a directory; its renames are journalled
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files that a killed process left in a run directory."""
    for place in (directory, directory / "figures"):
        for leftover in place.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
