"""The C kernels of ``matmul.c``, compiled once for this machine.

The library lies in ``$XDG_CACHE_HOME/lilliput/kernels`` (``~/.cache`` where that is not set) under the hash of its sources, the compiler
and everything that the compiler predefines for this processor; removing it costs the second that compiling takes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from ctypes import c_char_p, c_int, c_int64, c_void_p
from pathlib import Path

from lilliput.errors import ToolchainError

_SOURCES = ("matmul.c", "matmul_tile.h")
_FLAGS = ("-O3", "-march=native")
_LINK_FLAGS = ("-fPIC", "-shared", "-pthread")


class Native:
    """The functions of the library; arrays are addresses of contiguous float32 or uint8."""

    def __init__(self, path: Path, compiler: str) -> None:
        library = ctypes.CDLL(str(path))
        self.lanes, self.order = library.lilliput_lanes, library.lilliput_order
        self.decode, self.product = library.lilliput_decode, library.lilliput_product
        self.lanes.argtypes, self.lanes.restype = [c_void_p], c_int64
        self.needs_sums = library.lilliput_needs_sums
        self.needs_sums.argtypes, self.needs_sums.restype = [c_void_p], c_int
        self.order.argtypes, self.order.restype = [c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p], None
        self.decode.argtypes, self.decode.restype = [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int], c_int
        self.product.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int64]
        self.product.restype = c_int
        library.lilliput_instructions.restype = c_char_p
        self.name = f"c ({compiler}, {library.lilliput_instructions().decode()})"


def native() -> Native:
    """The library, compiled if it has not been.

    Raises:
        ToolchainError: no C compiler, or it fails (holds what it says).
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise ToolchainError(
            f"kernel='c': {loaded}; `sudo apt-get install gcc libc6-dev` or `pip install ziglang`, or use kernel='torch'"
        )
    return loaded


def native_or_reason() -> Native | str:
    """The library, or why there is none, in a few words."""
    return _load()


@functools.cache
def _load() -> Native | str:
    if sys.platform == "win32":
        return "not on Windows"
    compilers = _compilers()
    if not compilers:
        return "no C compiler found"
    reason = ""
    for name, command in compilers.items():
        try:
            return Native(_library(command), name)
        except subprocess.CalledProcessError as error:
            reason = f"{name} fails: {' '.join(error.stderr.split())[:300]}"
        except OSError as error:
            reason = f"{name} fails: {error}"
    return reason


def _compilers() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            found[name] = (path,)
    if importlib.util.find_spec("ziglang") is not None:
        found["zig"] = (sys.executable, "-m", "ziglang", "cc")
    return found


def _library(command: tuple[str, ...]) -> Path:
    """Path of the compiled library, from the cache where it is there."""
    # All that -march=native stands for, and the compiler's version, are macros: two processors that share a home share no library.
    macros = _run((*command, *_FLAGS, "-dM", "-E", "-x", "c", os.devnull))
    digest = hashlib.sha256("\0".join((*command, *_FLAGS, *_LINK_FLAGS, macros)).encode())
    for source in _SOURCES:
        digest.update((Path(__file__).parent / source).read_bytes())
    name = f"lowbit-{digest.hexdigest()[:32]}.so"
    kept = _home() / name
    if kept.is_file():
        return kept
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=".compiling-", dir=kept.parent))
    except OSError:  # a home that can't be written to: compile for this process alone
        return _compiled(command, Path(tempfile.mkdtemp(prefix="lilliput-")) / name)
    try:
        os.replace(_compiled(command, working / name), kept)  # whole or not there at all
    finally:
        shutil.rmtree(working)
    return kept


def _compiled(command: tuple[str, ...], target: Path) -> Path:
    _run((*command, *_FLAGS, *_LINK_FLAGS, str(Path(__file__).parent / _SOURCES[0]), "-o", str(target)))
    return target


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lilliput" / "kernels"


def _run(command: tuple[str, ...]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
