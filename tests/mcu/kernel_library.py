"""The kernels and their cases as a shared library on this computer, and what running a case shows."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcu.kernel_cases import Case, constants_c
from mcu.kernel_project import KERNELS

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-fPIC", "-DLL_COUNT_MACS")
MARGIN = 64
CANARY = 0x5A

PROBES = """
#include "ll_arith.h"
int32_t probe_rescale(int32_t x, int32_t multiplier, int32_t shift);
int32_t probe_rescale(int32_t x, int32_t multiplier, int32_t shift) { return ll_rescale(x, multiplier, shift); }
int32_t probe_plain(int32_t x, int32_t multiplier, int32_t right, int32_t zero_point);
int32_t probe_plain(int32_t x, int32_t multiplier, int32_t right, int32_t zero_point) {
    return ll_rescale_plain(2 * x, multiplier, right, ll_plain_offset(zero_point, right));
}
"""


@dataclass(frozen=True)
class Seen:
    """What one run of a case left behind."""

    output: np.ndarray
    macs: int
    stayed_inside: bool
    """Nothing around output and scratch was written, nor inputs that the output does not lie on."""


class Library:
    """Loaded kernels."""

    def __init__(self, path: Path) -> None:
        self.handle = ctypes.CDLL(str(path))
        self.macs = ctypes.c_uint64.in_dll(self.handle, "ll_macs")

    def run(self, case: Case) -> Seen:
        """The case, with every buffer between canaries and at an odd address."""
        shape = case.tensors[case.output_name].shape
        inputs = [_guarded(max(x.size, case.overlaid_bytes(index))) for index, x in enumerate(case.inputs)]
        for buffer, x in zip(inputs, case.inputs, strict=True):
            buffer[MARGIN + 1 : MARGIN + 1 + x.size] = x.ravel()
        own = case.overlay is None
        output = _guarded(int(np.prod(shape))) if own else inputs[case.overlay]
        scratch = np.full(case.call.scratch_bytes + 2 * MARGIN, CANARY, dtype=np.int8)
        before = [buffer.copy() for buffer in (*inputs, output, scratch)]
        self.macs.value = 0
        pointers = (ctypes.c_void_p * len(inputs))(*(buffer.ctypes.data + MARGIN + 1 for buffer in inputs))
        getattr(self.handle, case.symbol)(
            pointers, ctypes.c_void_p(output.ctypes.data + MARGIN + 1), ctypes.c_void_p(scratch.ctypes.data + MARGIN)
        )
        size = int(np.prod(shape))
        result = output[MARGIN + 1 : MARGIN + 1 + size].reshape(shape).copy()
        output[MARGIN + 1 : MARGIN + 1 + size] = before[-2][MARGIN + 1 : MARGIN + 1 + size]
        scratch[MARGIN : MARGIN + case.call.scratch_bytes] = CANARY
        after = (*inputs, output, scratch)
        return Seen(result, self.macs.value, all((a == b).all() for a, b in zip(before, after, strict=True)))


def _guarded(size: int) -> np.ndarray:
    return np.full(size + 2 * MARGIN + 1, CANARY, dtype=np.int8)


def compile_cases(directory: Path, cases: list[Case]) -> Path:
    """The cases' constants and calls, once for all libraries: unoptimised, as there is nothing to gain."""
    (directory / "cases.c").write_text(constants_c(cases) + PROBES)
    _cc("-O0", "-I", str(KERNELS), "-c", str(directory / "cases.c"), "-o", str(directory / "cases.o"))
    return directory / "cases.o"


def compile_library(
    directory: Path, cases_object: Path, *, file: str = "", original: str = "", patched: str = ""
) -> Library:
    """The kernels, after one text replacement in one of their files if asked for, linked with the cases.

    Unoptimised, because it is made many times; the sanitized and the emulated builds are the optimised ones.
    """
    shutil.copytree(KERNELS, directory)
    if file:
        text = (directory / file).read_text()
        assert original in text, f"{file} no longer contains {original!r}"
        (directory / file).write_text(text.replace(original, patched))
    sources = [str(path) for path in sorted(directory.glob("*.c"))]
    _cc("-O0", "-shared", *sources, str(cases_object), "-o", str(directory / "kernels.so"))
    return Library(directory / "kernels.so")


def _cc(*arguments: str) -> None:
    done = subprocess.run(["cc", *WARNINGS, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
