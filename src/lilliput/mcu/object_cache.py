"""Compiled kernels, kept by the hash of everything they depend on.

The kernels' sources are the same in every emitted project, so each is compiled once for a compiler and its flags and then copied. The
cache lies in ``$XDG_CACHE_HOME/lilliput/objects`` (``~/.cache`` where that is not set); removing it costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def cache_key(directory: Path, source: Path, command: Sequence[str], compiler: str) -> str:
    """Hash of a kernel's source, the headers beside it, and the compiler with its version and flags."""
    digest = hashlib.sha256("\0".join([compiler, *command, str(source)]).encode())
    for path in [directory / source, *sorted((directory / source).parent.glob("*.h"))]:
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def fetch(key: str, target: Path) -> bool:
    """Copy a kept object to the target; False where there is none."""
    try:
        shutil.copyfile(_home() / f"{key}.o", target)
    except OSError:
        return False
    return True


def keep(key: str, source: Path) -> None:
    """Keep a compiled object. A cache that cannot be written (a read-only home, a full disk) only costs the next build its time."""
    home = _home()
    partial = home / f"{key}.{os.getpid()}.partial"
    try:
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        os.replace(partial, home / f"{key}.o")  # whole or not there at all
    except OSError:
        with suppress(OSError):
            partial.unlink()


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lilliput" / "objects"
