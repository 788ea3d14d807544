"""From a plan to a self-contained C99 project: model, weights, kernels, start-up code, linker scripts, test vectors.

Everything the project needs lies in its folder; it builds with GCC or Clang and ``make``, without Python. What the model may read or
write is fixed here: one arena, a scratch buffer where its gaps are too small, constant tables in flash, calls at planned offsets.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from textwrap import dedent

import numpy as np
from jaxtyping import Int8

from lilliput import __version__
from lilliput.errors import ConfigError, DataError, UnsupportedOpError
from lilliput.mcu.boards import BOARDS, linker_script, makefile
from lilliput.mcu.calls import Declarations, InferenceCalls
from lilliput.mcu.firmware import Firmware
from lilliput.mcu.plan import Plan

RUNTIME = files("lilliput.mcu") / "runtime"
_DEFAULT_BOARDS = {"cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}


def emit_c(
    plan: Plan,
    directory: str | os.PathLike[str],
    target: str = "cortex-m4",
    vectors: Int8[np.ndarray, "n ..."] | None = None,
) -> Firmware:
    """Write the C project of a plan.

    Args:
        plan: what to compute, where its tensors lie.
        directory: made by this call; it must not exist yet, or be empty.
        target: ``cortex-m4``, ``cortex-m7``, or a board's name: what the project's own ``make`` builds for. The sources are
            the same for every target.
        vectors: int8 inputs whose outputs, by the integer interpreter, go along as the project's self-test; 4 seeded ones if None.
    Raises:
        ConfigError: the directory holds something, or the target is unknown.
        UnsupportedOpError: the network has more than one output.
        DataError: vectors that are not int8 or have another shape than the input.
    """
    directory = Path(directory)
    board = default_board(target)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"{directory} exists and is not an empty folder: firmware is never written over; give a new path"
        )
    graph = plan.qgraph
    if len(graph.outputs) != 1:
        raise UnsupportedOpError(
            f"C generation takes networks with one output; '{graph.name}' has {len(graph.outputs)}"
        )
    vectors = _vectors(plan, vectors)

    # Written beside the target and renamed, so that a half-written project never looks whole.
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        code = InferenceCalls(plan, Declarations())
        write_text(work / "model.h", _model_h(plan))
        write_text(work / "model.c", _model_c(plan, code))
        write_text(work / "weights.h", code.declarations.weights_h())
        write_text(work / "weights.c", code.declarations.weights_c())
        shutil.copytree(str(RUNTIME / "nn"), work / "nn", ignore=shutil.ignore_patterns("ll_train*"))
        templates = shutil.ignore_patterns("board.ld", "Makefile", "train_*")
        shutil.copytree(str(RUNTIME / "port"), work / "port", ignore=templates)
        for chip in (each for each in BOARDS.values() if not each.is_host):
            script = linker_script(chip, sram_bytes=plan.sram_bytes_limit, flash_bytes=plan.flash_bytes_limit)
            write_text(work / "link" / f"{chip.name}.ld", script)
        write_text(work / "Makefile", makefile(board))
        (work / "vectors").mkdir()
        (work / "vectors" / "input.bin").write_bytes(vectors.tobytes())
        (work / "vectors" / "expected.bin").write_bytes(np.asarray(plan.whole.run(vectors)).tobytes())
        write_text(work / "README.md", _readme(plan, board, len(vectors)))
        work.chmod(0o755)
        if directory.exists():
            directory.rmdir()
        os.rename(work, directory)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Firmware(directory)


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


def _vectors(plan: Plan, vectors: np.ndarray | None) -> np.ndarray:
    shape = plan.qgraph.tensors[plan.qgraph.input].shape
    if vectors is None:
        return np.random.default_rng(0).integers(-128, 128, (4, *shape), dtype=np.int8)
    if vectors.dtype != np.int8 or vectors.shape[1:] != shape or len(vectors) == 0:
        raise DataError(
            f"vectors are {vectors.dtype}{list(vectors.shape)}; must be int8[n, {', '.join(map(str, shape))}] with n >= 1"
        )
    return vectors


def _model_h(plan: Plan) -> str:
    graph = plan.qgraph
    source, result = graph.tensors[graph.input], graph.tensors[graph.outputs[0]]
    return dedent(f"""\
        /* {graph.name}: an int8 network, generated by Lilliput {__version__}.
         *
         * {_use(plan)} Real value = scale * (code - zero point).
         */
        #ifndef LL_MODEL_H
        #define LL_MODEL_H

        #include <stdint.h>

        #define LL_MODEL_INPUT_BYTES {source.bytes}u /* {_layout(source.shape)} */
        #define LL_MODEL_INPUT_SCALE {source.scale!r}
        #define LL_MODEL_INPUT_ZERO_POINT ({source.zero_point})
        #define LL_MODEL_OUTPUT_BYTES {result.bytes}u /* {_layout(result.shape)} */
        #define LL_MODEL_OUTPUT_SCALE {result.scale!r}
        #define LL_MODEL_OUTPUT_ZERO_POINT ({result.zero_point})

        #define LL_MODEL_MACS {plan.macs}u
        #define LL_MODEL_ARENA_BYTES {plan.arena_bytes}u
        #define LL_MODEL_SCRATCH_BYTES {plan.scratch_bytes}u
        #define LL_MODEL_STACK_BYTES {plan.stack_bytes}u /* what the linker script sets aside; see README.md */

        extern int8_t ll_arena[];
        {_input_c(plan)}
        const int8_t *ll_model_output(void);
        void ll_model_run(void);

        #endif
        """)


_RESIDENT = (
    "Write LL_MODEL_INPUT_BYTES codes to ll_model_input(), call ll_model_run(), read ll_model_output().",
    " * The input buffer is part of the arena: fill it again before each run.",
)
_STREAMED = (
    "Write ll_model_read(), call ll_model_run(), read ll_model_output(). The image is never in memory as a whole:",
    " * ll_model_run() asks for parts of it.",
)
_READ = (
    "/* Yours: copy a part of the image, its rows one after the other without gaps, to where the model wants it. */",
    "void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to);",
)


def _use(plan: Plan) -> str:
    return "\n        ".join(_STREAMED if plan.streams_input else _RESIDENT)


def _input_c(plan: Plan) -> str:
    if not plan.streams_input:
        return "int8_t *ll_model_input(void);"
    _, width, channels = plan.qgraph.tensors[plan.qgraph.input].shape
    sizes = (
        "#define LL_MODEL_STREAMS_INPUT 1",
        f"#define LL_MODEL_INPUT_WIDTH {width}u",
        f"#define LL_MODEL_INPUT_CHANNELS {channels}u",
    )
    return "\n        ".join((*sizes, *_READ))


def _layout(shape: tuple[int, ...]) -> str:
    axes = {3: "height x width x channel", 1: "features"}.get(len(shape), "axes")
    return f"{' x '.join(map(str, shape))}: {axes}"


def _model_c(plan: Plan, code: InferenceCalls) -> str:
    graph = plan.qgraph
    lines = ['#include "model.h"', "", '#include "nn/ll_nn.h"', '#include "weights.h"', ""]
    lines.append("/* Both in .bss; aligned for word access, though no kernel needs its tensors aligned. */")
    lines.append("int8_t ll_arena[LL_MODEL_ARENA_BYTES] __attribute__((aligned(8)));")
    if plan.scratch_bytes:
        lines.append("int8_t ll_scratch[LL_MODEL_SCRATCH_BYTES] __attribute__((aligned(8)));")
    lines += code.declarations.structs_c()
    if not plan.streams_input:
        lines += ["", f"int8_t *ll_model_input(void) {{ return ll_arena + {plan.offsets[graph.input]}; }}"]
    lines += ["", f"const int8_t *ll_model_output(void) {{ return ll_arena + {plan.offsets[graph.outputs[0]]}; }}", ""]
    lines.append("void ll_model_run(void) {")
    for name, statement in code.calls:
        lines += [f"    {statement}", f"    LL_STEP({json.dumps(name)});"]
    return "\n".join([*lines, "}", ""])


def _readme(plan: Plan, board: str, count: int) -> str:
    graph = plan.qgraph
    source = graph.tensors[graph.input]
    limits = []
    if plan.sram_bytes_limit is not None:
        limits.append(f"{plan.sram_bytes_limit:,} bytes of SRAM")
    if plan.flash_bytes_limit is not None:
        limits.append(f"{plan.flash_bytes_limit:,} bytes of flash")
    enforced = f"The linker scripts allow {' and '.join(limits)} and refuse an image that needs more." if limits else ""
    return "\n".join(
        [
            f"# {graph.name}: int8 firmware",
            "",
            f"Generated by Lilliput {__version__}. C99, no heap, no operating system, no library beyond the compiler's own.",
            "",
            "| what | bytes |",
            "|---|---:|",
            f"| arena (activations, {'the image never as a whole' if plan.streams_input else 'input included'}) | {plan.arena_bytes:,} |",
            f"| scratch of the kernels | {plan.scratch_bytes:,} |",
            f"| stack set aside | {plan.stack_bytes:,} |",
            f"| multiply-accumulates per inference | {plan.macs:,} |",
            f"| of these for halos of patches | {max(0, plan.halo_macs):,} |",
            "",
            enforced,
            "",
            "```sh",
            f"make            # arm-none-eabi-gcc, for {board}",
            f"make run        # in QEMU: {count} vectors, compared byte by byte with vectors/expected.bin",
            "make host-run   # the same on this computer",
            "```",
            "",
            "## In your own program",
            "",
            "Compile `model.c`, `weights.c` and `nn/*.c`; include `model.h`:",
            "",
            "```c",
            *(
                [*_READ, "", "ll_model_run();"]
                if plan.streams_input
                else [
                    f"memcpy(ll_model_input(), codes, LL_MODEL_INPUT_BYTES); /* {_layout(source.shape)} */",
                    "ll_model_run();",
                ]
            ),
            "const int8_t *result = ll_model_output(); /* LL_MODEL_OUTPUT_BYTES codes */",
            "```",
            "",
            f"An input code is `round(real / {source.scale!r}) + ({source.zero_point})`, clamped to -128..127.",
            "",
            "| folder | what |",
            "|---|---|",
            "| `model.c`, `model.h` | the calls, the arena, the sizes |",
            "| `weights.c` | constant tables; they stay in flash |",
            "| `nn/` | the kernels: portable C with paths for the DSP instructions of Cortex-M4 and M7 |",
            "| `port/` | start-up code, stack painting, semihosting, the self-test's `main` |",
            "| `link/` | one linker script a board |",
            "| `vectors/` | inputs and the integer interpreter's outputs |",
            "",
        ]
    )


def write_text(path: Path, text: str) -> None:
    """A file of a project, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
