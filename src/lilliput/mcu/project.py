"""The folder of a C project: kernels, start-up code, linker scripts and a Makefile; it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from lilliput.errors import ConfigError
from lilliput.mcu.boards import BOARDS, linker_script, makefile

RUNTIME = files("lilliput.mcu") / "runtime"
_DEFAULT_BOARDS = {"cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}
_MAINS = {"main.c": "train_main.c", "host_main.c": "train_host_main.c"}
"""Main programs, and what stands in their place where the model learns."""


@contextmanager
def new_project(
    directory: Path, board: str, *, trains: bool, sram_bytes: int | None, flash_bytes: int | None
) -> Iterator[Path]:
    """A folder to write the model into, with all else in it already; on the way out it becomes ``directory``, or goes after an error.

    Args:
        directory: it must not exist yet, or be empty.
        board: what the project's own ``make`` builds for.
        trains: with the kernels of training, and main programs that learn from samples.
        sram_bytes: what the linker scripts allow, if it is less than the board has; ``flash_bytes`` likewise.
    Raises:
        ConfigError: the directory holds something.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"{directory} exists and is not an empty folder: firmware is never written over; give a new path"
        )
    # Written beside the target and renamed, so that a half-written project never looks whole.
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        kernels = shutil.ignore_patterns(*([] if trains else ["ll_train*"]))
        shutil.copytree(str(RUNTIME / "nn"), work / "nn", ignore=kernels)
        mains = (*_MAINS, *_MAINS.values()) if trains else ("train_*",)
        others = shutil.ignore_patterns("board.ld", "Makefile", *mains)
        shutil.copytree(str(RUNTIME / "port"), work / "port", ignore=others)
        for name, learner in _MAINS.items() if trains else ():
            shutil.copyfile(str(RUNTIME / "port" / learner), work / "port" / name)
        for chip in (each for each in BOARDS.values() if not each.is_host):
            write_text(
                work / "link" / f"{chip.name}.ld", linker_script(chip, sram_bytes=sram_bytes, flash_bytes=flash_bytes)
            )
        write_text(work / "Makefile", makefile(board))
        (work / "vectors").mkdir()
        yield work
        work.chmod(0o755)
        if directory.exists():
            directory.rmdir()
        os.rename(work, directory)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def default_board(target: str) -> str:
    """The board that a processor or board name stands for.

    Raises:
        ConfigError: it is neither.
    """
    board = _DEFAULT_BOARDS.get(target, target)
    if board not in BOARDS or BOARDS[board].is_host:
        allowed = [*_DEFAULT_BOARDS, *(name for name, each in BOARDS.items() if not each.is_host)]
        raise ConfigError(f"target={target!r}: must be one of {', '.join(allowed)}; try target='cortex-m4'")
    return board


def write_text(path: Path, text: str) -> None:
    """A file of a project, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
