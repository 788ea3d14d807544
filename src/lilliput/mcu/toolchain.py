"""Find what compiles and runs an emitted project: a compiler and an emulator, each from two sources.

GCC and QEMU come from the system's package manager (root); Zig and Unicorn come from PyPI (no root). Any compiler goes with any emulator:
the image is the same kind of ELF file. On the host a C compiler is enough.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from lilliput.errors import ConfigError, ToolchainError
from lilliput.mcu.boards import Board

APT_LINE = "sudo apt-get install --no-install-recommends gcc-arm-none-eabi qemu-system-arm"
APT_HOST_LINE = "sudo apt-get install --no-install-recommends gcc libc6-dev"
PIP_LINE = "pip install 'lilliput[mcu]'"

# In order of preference for "auto".
BOARD_TOOLCHAINS = ("gcc-qemu", "zig-unicorn", "gcc-unicorn", "zig-qemu")
HOST_TOOLCHAINS = ("host-cc", "host-zig")


@dataclass(frozen=True)
class Tool:
    """A compiler or emulator that is installed: how to call it, and what it says it is."""

    name: str
    """``gcc``, ``zig``, ``cc``, ``qemu``, ``unicorn`` or ``native``."""
    command: tuple[str, ...]
    version: str

    @property
    def c_command(self) -> tuple[str, ...]:
        """How to call it as a C compiler."""
        return (*self.command, "cc") if self.name == "zig" else self.command

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@dataclass(frozen=True)
class Toolchain:
    """A compiler and what runs its output."""

    name: str
    """``gcc-qemu``, ``zig-unicorn``, ``gcc-unicorn``, ``zig-qemu``, ``host-cc`` or ``host-zig``."""
    compiler: Tool
    emulator: Tool

    def __str__(self) -> str:
        return f"{self.name} ({self.compiler}, {self.emulator})"


@dataclass(frozen=True)
class ToolStatus:
    """One row of what is installed and what is not, for people."""

    name: str
    purpose: str
    version: str | None
    """``None`` when it is missing."""
    command: str
    install: str
    """The line that installs it."""

    @property
    def is_installed(self) -> bool:
        """Whether it was found."""
        return self.version is not None


def probe() -> tuple[ToolStatus, ...]:
    """Every tool this room can use, found or not, with its version and the line that installs it."""
    rows = []
    for name, (purpose, install) in _PURPOSES.items():
        tool = find_tool(name)
        command = " ".join(tool.command) if tool else ""
        rows.append(ToolStatus(name, purpose, tool.version if tool else None, command, install))
    return tuple(rows)


def find_toolchain(board: Board, prefer: str = "auto") -> Toolchain:
    """The first complete toolchain for a board, or the one that is preferred by name.

    Raises:
        ConfigError: no such toolchain for this board.
        ToolchainError: not installed; the message says which part and holds the lines that install it.
    """
    names: tuple[str, ...] = HOST_TOOLCHAINS if board.is_host else BOARD_TOOLCHAINS
    if prefer != "auto":
        if prefer not in names:
            raise ConfigError(
                f"toolchain={prefer!r} for board {board.name!r}: must be one of auto, {', '.join(names)}; try toolchain='auto'"
            )
        names = (prefer,)
    missing: dict[str, None] = {}
    for name in names:
        wanted = _parts(name)
        tools = [find_tool(part) for part in wanted]
        if tools[0] is not None and tools[1] is not None:
            return Toolchain(name, tools[0], tools[1])
        missing |= {_TITLES[part]: None for part, tool in zip(wanted, tools, strict=True) if tool is None}
    raise ToolchainError(
        f"board {board.name!r} needs a C compiler{'' if board.is_host else ' and an emulator'} "
        f"(toolchain={prefer!r}); not found: {', '.join(missing)}; install one of: "
        f"`{APT_HOST_LINE if board.is_host else APT_LINE}` (needs root) or `{PIP_LINE}` (no root)"
    )


_TITLES = {
    "gcc": "arm-none-eabi-gcc",
    "qemu": "qemu-system-arm",
    "zig": "ziglang (Python package)",
    "unicorn": "unicorn (Python package)",
    "cc": "cc",
}

_PURPOSES = {
    "gcc": ("compiles for the Cortex-M boards", APT_LINE),
    "qemu": ("emulates the Cortex-M boards", APT_LINE),
    "zig": ("compiles for the boards and the host, without root", PIP_LINE),
    "unicorn": ("emulates the Cortex-M boards, without root", PIP_LINE),
    "cc": ("compiles for the host", APT_HOST_LINE),
}


def _parts(toolchain: str) -> tuple[str, str]:
    first, second = toolchain.split("-")
    return (second, "native") if first == "host" else (first, second)


def find_tool(name: str) -> Tool | None:
    """The installed tool of that name (gcc, zig, cc, qemu, unicorn), or ``None``."""
    if name == "native":
        return Tool("native", (), "")
    if name in ("zig", "unicorn"):
        package = {"zig": "ziglang", "unicorn": "unicorn"}[name]
        if importlib.util.find_spec(package) is None:
            return None
        command = (sys.executable, "-m", "ziglang") if name == "zig" else (sys.executable,)
        return Tool(name, command, importlib.metadata.version(package))
    candidates = {"gcc": ("arm-none-eabi-gcc",), "qemu": ("qemu-system-arm",), "cc": ("cc", "gcc", "clang")}[name]
    for program in candidates:
        path = shutil.which(program)
        if path is not None:
            return Tool(name, (path,), _version(path, os.stat(path).st_mtime_ns))
    return None


@functools.cache
def _version(program: str, modified_ns: int) -> str:
    """The number in ``--version``, or its first line; asked once while the program stays as it is."""
    try:
        lines = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{program} is installed but `{program} --version` fails: {error}") from error
    first = lines[0] if lines else ""
    number = re.search(r"\d+\.\d+(\.\d+)*", re.sub(r"\([^)]*\)", "", first))
    return number[0] if number else first
