"""A firmware project whose "model" runs one kernel case: the first two input bytes say which, the output is the case's output."""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import dedent

import numpy as np

from lilliput.mcu.boards import BOARDS, PORT, linker_script
from lilliput.mcu.firmware import Firmware
from mcu.kernel_cases import Case, constants_c

KERNELS = Path(str(PORT)).parent / "nn"


def write_project(directory: Path, cases: list[Case]) -> Firmware:
    """Everything but the compiler: inputs are constants in flash, copied first where a case runs over one of them."""
    shutil.copytree(KERNELS, directory / "nn")
    shutil.copytree(Path(str(PORT)), directory / "port", ignore=shutil.ignore_patterns("board.ld", "Makefile"))
    (directory / "link").mkdir()
    for board in BOARDS.values():
        if not board.is_host:
            script = linker_script(board, sram_bytes=None, flash_bytes=None)
            (directory / "link" / f"{board.name}.ld").write_text(script)
    width = max(case.expected().size for case in cases)
    scratch = max(8, *(case.call.scratch_bytes for case in cases))
    arena = max(16, width, *(case.inputs[case.overlay].size for case in cases if case.overlay is not None))
    (directory / "model.h").write_text(
        dedent(f"""\
        #include <stdint.h>
        #define LL_MODEL_INPUT_BYTES 2u
        #define LL_MODEL_OUTPUT_BYTES {width}u
        #define LL_MODEL_STACK_BYTES 2048u
        int8_t *ll_model_input(void);
        const int8_t *ll_model_output(void);
        void ll_model_run(void);
        """)
    )
    (directory / "weights.c").write_text("typedef int not_empty;\n")
    lines = [
        constants_c(cases),
        '#include "model.h"',
        f"int8_t ll_arena[{arena}] __attribute__((aligned(8)));",
        f"int8_t ll_scratch[{scratch}] __attribute__((aligned(8)));",
        "static uint8_t number[2];",
        "int8_t *ll_model_input(void) { return (int8_t *)number; }",
        "const int8_t *ll_model_output(void) { return ll_arena; }",
        "void *memcpy(void *restrict, const void *restrict, size_t);",
    ]
    for case in cases:
        for index, x in enumerate(case.inputs):
            numbers = ", ".join(map(str, x.ravel().tolist()))
            lines.append(f"static const int8_t {case.symbol}_input{index}[] = {{{numbers}}};")
    lines.append("void ll_model_run(void) {")
    lines.append("    switch (number[0] | number[1] << 8) {")
    for number, case in enumerate(cases):
        pointers = [f"(int8_t *){case.symbol}_input{i}" for i in range(len(case.inputs))]
        lines.append(f"    case {number}: {{")
        if case.overlay is not None:
            lines.append(
                f"        memcpy(ll_arena, {case.symbol}_input{case.overlay}, {case.inputs[case.overlay].size});"
            )
            pointers[case.overlay] = "ll_arena"
        lines.append(f"        int8_t *const inputs[] = {{{', '.join(pointers)}}};")
        lines.append(f"        {case.symbol}(inputs, ll_arena, ll_scratch);")
        lines += ["        break;", "    }"]
    lines += ["    }", "}", ""]
    (directory / "model.c").write_text("\n".join(lines))
    return Firmware(directory)


def numbers(cases: list[Case]) -> np.ndarray:
    """The inputs that run every case once."""
    return np.arange(len(cases), dtype="<u2").view(np.int8).reshape(-1, 2)
