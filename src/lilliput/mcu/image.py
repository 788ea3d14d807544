"""Compile and link an emitted project for one board, once: the result is kept in ``DIR/build`` under a hash of all that went into it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lilliput.errors import BudgetError, DataError, ToolchainError
from lilliput.mcu import object_cache
from lilliput.mcu.boards import Board, find_board, linker_script
from lilliput.mcu.toolchain import Tool, Toolchain

COMMON_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-fno-math-errno", "-I.", "-Inn", "-Iport")
# The host is not what is measured, and -O3 would take eight times as long to compile for it.
HOST_FLAGS = ("-O2",)
TARGET_FLAGS = (
    "-O3",
    "-ffreestanding",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-common",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-Iport/freestanding",
)
PROFILE_FLAGS = ("-DLL_PROFILE",)
UNDEFINED_FLAGS = ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=undefined")


@dataclass(frozen=True)
class Image:
    """A linked project: an ELF image for a board, or a program for the host."""

    path: Path
    objects: Mapping[str, list[Path]]
    """The object files by part: weights, kernels, model, runtime."""


def build_image(
    directory: Path,
    board: Board,
    toolchain: Toolchain,
    *,
    sanitize: bool = False,
    profile: bool = False,
) -> Image:
    """Compile and link the project in a directory, or find that it already is.

    Args:
        directory: an emitted project; its ``link/<board>.ld`` holds the image to the budget.
        sanitize: host only; undefined behaviour (and, where the compiler is GCC or Clang, an access outside an array) ends the run.
        profile: boards only; each step of the model is followed by a reading of the clock. The kernels are the same objects; the image is
            held to the board alone, as the readings take room that the budget does not foresee.
    Raises:
        BudgetError: the image does not fit; the message says which memory and by how many bytes.
        ToolchainError: the compiler or linker refuses; the message holds its first error.
        DataError: the directory holds no emitted project.
    """
    sources = _sources(directory, board, profile)
    compiler = toolchain.compiler
    compile_flags, link_flags = _flags(board, compiler, sanitize)
    script = "" if board.is_host else (directory / "link" / f"{board.name}.ld").read_text()
    if profile:
        script = linker_script(board, sram_bytes=None, flash_bytes=None)
    key = _key(directory, [*compile_flags, *link_flags, str(compiler), *compiler.command, script])
    kind = "-sanitize" if sanitize else "-profile" if profile else ""
    home = directory / "build" / f"{board.name}-{compiler.name}{kind}"
    objects = {part: [home / _object_name(path) for path in paths] for part, paths in sources.items()}
    image = Image(home / ("image.elf" if not board.is_host else "image"), objects)
    if _is_built(image, key):
        return image
    partial = home.with_name(f"{home.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        command = [*compiler.c_command, *compile_flags]
        _compile(directory, partial, sources, command, board, toolchain, hooks=PROFILE_FLAGS if profile else ())
        if script:
            (partial / "board.ld").write_text(script)
        _link(directory, partial, image.path.name, sources, [*compiler.c_command, *link_flags], board, toolchain)
        (partial / "key.json").write_text(json.dumps(key))
        shutil.rmtree(home, ignore_errors=True)
        try:
            partial.rename(home)
        except OSError:  # another process may have built it meanwhile
            if not _is_built(image, key):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return image


def build_library(directory: Path, toolchain: Toolchain, flags: tuple[str, ...]) -> Path:
    """A training project as a shared library of this computer, or find that it already is.

    Args:
        directory: an emitted project.
        toolchain: the host's.
        flags: for the compiler, besides the project's own.
    Raises:
        ToolchainError: the compiler or linker refuses.
    """
    board, compiler = find_board("host"), toolchain.compiler
    sources = _sources(directory, board, profile=False) | {"runtime": [Path("port") / "train_library.c"]}
    checks = ["-fno-sanitize=all"] if compiler.name == "zig" else []
    command = [*compiler.c_command, *COMMON_FLAGS, *flags, *checks, "-fPIC"]
    key = _key(directory, [*command, str(compiler)])
    home = (
        directory / "build" / f"library-{compiler.name}-{hashlib.sha256(chr(0).join(flags).encode()).hexdigest()[:8]}"
    )
    image = Image(home / "library.so", {})
    if _is_built(image, key):
        return image.path
    partial = home.with_name(f"{home.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _compile(directory, partial, sources, command, board, toolchain, hooks=())
        _link(directory, partial, image.path.name, sources, [*compiler.c_command, *checks, "-shared"], board, toolchain)
        (partial / "key.json").write_text(json.dumps(key))
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return image.path


def _sources(directory: Path, board: Board, profile: bool) -> dict[str, list[Path]]:
    port = ["host_main.c"] if board.is_host else ["startup.c", "semihosting.c", "libc.c", "main.c"]
    port += ["profile.c"] if profile else []
    sources = {
        "weights": [Path("weights.c")],
        "model": [Path("model.c")],
        "kernels": sorted(path.relative_to(directory) for path in (directory / "nn").glob("*.c")),
        "runtime": [Path("port") / name for name in port],
    }
    needed = [path for paths in sources.values() for path in paths]
    needed += [] if board.is_host else [Path("link") / f"{board.name}.ld"]
    missing = [str(path) for path in needed if not (directory / path).is_file()]
    if missing:
        raise DataError(
            f"{directory} is not an emitted project: it has no {', '.join(missing)}; write one with Plan.emit_c"
        )
    return sources


def _flags(board: Board, compiler: Tool, sanitize: bool) -> tuple[list[str], list[str]]:
    """For compiling one file, and for linking them all."""
    if board.is_host:
        checks = [*UNDEFINED_FLAGS, *(["-fsanitize=address"] if compiler.name == "cc" else [])] if sanitize else []
        if compiler.name == "zig" and not sanitize:
            checks = ["-fno-sanitize=all"]
        return [*COMMON_FLAGS, *HOST_FLAGS, *checks], checks
    if compiler.name == "gcc":
        return (
            [*COMMON_FLAGS, *TARGET_FLAGS, *board.gcc_flags],
            [*board.gcc_flags, "-nostdlib", "-Wl,--gc-sections", "-lgcc"],
        )
    return (
        [*COMMON_FLAGS, *TARGET_FLAGS, *board.zig_flags, "-fno-sanitize=all"],
        [*board.zig_flags, "-nostdlib", "-fno-sanitize=all", "-Wl,--gc-sections"],
    )


def _key(directory: Path, settings: list[str]) -> dict[str, str]:
    """What a build depends on: every source and header, the flags, the linker script, the compiler's version."""
    names = sorted(path for pattern in ("*.[ch]", "nn/*.[ch]", "port/**/*.[ch]") for path in directory.glob(pattern))
    key = {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    return {**key, "settings": hashlib.sha256("\0".join(settings).encode()).hexdigest()}


def _is_built(image: Image, key: dict[str, str]) -> bool:
    record = image.path.with_name("key.json")
    return image.path.exists() and record.exists() and json.loads(record.read_text()) == key


def _object_name(source: Path) -> str:
    return "_".join(source.with_suffix(".o").parts)


def _compile(
    directory: Path,
    partial: Path,
    sources: Mapping[str, list[Path]],
    command: list[str],
    board: Board,
    toolchain: Toolchain,
    hooks: tuple[str, ...],
) -> None:
    """``hooks`` are flags for everything but the kernels."""
    kernels = set(sources["kernels"])

    def one(source: Path) -> tuple[Path, str | None]:
        output = partial.resolve() / _object_name(source)
        key = object_cache.cache_key(directory, source, command, str(toolchain.compiler)) if source in kernels else None
        if key is not None and object_cache.fetch(key, output):
            return source, None
        # Run in the project with relative names: nothing of this computer's paths ends up in an image.
        flags = () if source in kernels else hooks
        done = _call([*command, *flags, "-c", str(source), "-o", str(output)], directory)
        if done.returncode != 0:
            return source, _first_error(done.stderr)
        if key is not None:
            object_cache.keep(key, output)
        return source, None

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for source, fault in pool.map(one, [path for paths in sources.values() for path in paths]):
            if fault is not None:
                where = f"board {board.name} ({toolchain})"
                raise ToolchainError(f"{directory / source} does not compile for {where}: {fault}")


def _link(
    directory: Path,
    partial: Path,
    name: str,
    sources: Mapping[str, list[Path]],
    command: list[str],
    board: Board,
    toolchain: Toolchain,
) -> None:
    objects = [_object_name(path) for paths in sources.values() for path in paths]
    libraries = [flag for flag in command if flag.startswith("-l")]
    arguments = [flag for flag in command if not flag.startswith("-l")]
    if not board.is_host:
        arguments += ["-T", "board.ld"]
        if toolchain.compiler.name == "gcc":
            arguments.append("-Wl,-Map=image.map")
    done = _call([*arguments, *objects, *libraries, "-o", name], partial)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if "overflowed by" in line]
    # GNU: region `RAM' overflowed by 8 bytes. LLVM: section '.bss' will not fit in region 'RAM': overflowed by 8 bytes.
    over = [
        (int(m[2]), m[1], line)
        for line in lines
        if (m := re.search(r"region [`'](\w+)'.*overflowed by (\d+) bytes", line))
    ]
    if not over:
        raise ToolchainError(
            f"{directory} does not link for board {board.name} ({toolchain}): {_first_error(done.stderr)}"
        )
    script = (partial / "board.ld").read_text()
    told = []
    for region in dict.fromkeys(region for _, region, _ in over):
        excess, _, line = max(row for row in over if row[1] == region)
        length = re.search(rf"{region}\s.*LENGTH = (\d+)", script)
        limit = int(length[1]) if length else 0
        memory, own = ("sram", board.sram_bytes) if region == "RAM" else ("flash", board.flash_bytes)
        whose = f"all that {board.name} has" if limit >= own // 8 * 8 else f"the budget; {board.name} has {own:,}"
        told.append(
            f"{memory} is {excess:,} bytes short: needs {limit + excess:,} bytes, limit {limit:,} ({whose}); "
            f"linker: {line.split(': ', 1)[-1]}"
        )
    raise BudgetError(
        f"{directory.name} does not fit board {board.name} ({toolchain}): {'; '.join(told)}; "
        "raise the limit, choose a larger board, or a smaller network"
    )


def _call(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=directory, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise ToolchainError(f"{command[0]} could not be started: {error}") from error


def _first_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line.lower() or "undefined" in line), lines[-1] if lines else "no message"
    )
