"""Every C kernel against an independent numpy reference, byte for byte: on this computer, under sanitizers, on the emulated chip."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest

from lilliput.errors import ToolchainError
from lilliput.mcu.access import can_run_in_place
from lilliput.mcu.boards import find_board
from lilliput.mcu.firmware import Firmware
from lilliput.mcu.lowering import lower
from lilliput.mcu.toolchain import find_toolchain
from lilliput.quantize.qgraph import AvgPool2d, Conv2d, QTensor
from mcu.kernel_cases import FAMILIES, Case, all_cases, conv
from mcu.kernel_library import Library, Seen, compile_cases, compile_library
from mcu.kernel_project import numbers, write_project

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler `cc` on this computer")

FUNCTIONS = (
    *("ll_conv", "ll_conv_1x1", "ll_conv_add", "ll_conv_1x1_add", "ll_linear"),
    *("ll_depthwise", "ll_depthwise_3x3", "ll_depthwise_5x5", "ll_depthwise_7x7"),
    *("ll_add", "ll_mul", "ll_avg_pool", "ll_max_pool", "ll_mean", "ll_softmax", "ll_lookup"),
    *("ll_pad", "ll_copy", "ll_upsample_nearest", *(f"ll_concat_{count}" for count in range(1, 9))),
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases(seed=0, count=25)


@pytest.fixture(scope="module")
def cases_object(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cases(tmp_path_factory.mktemp("cases"), cases)


@pytest.fixture(scope="module")
def library(cases_object: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return compile_library(tmp_path_factory.mktemp("kernels") / "nn", cases_object)


@pytest.fixture(scope="module")
def seen(cases: list[Case], library: Library) -> list[tuple[Case, Seen]]:
    return [(case, library.run(case)) for case in cases]


def wrong(seen: list[tuple[Case, Seen]]) -> list[str]:
    return [case.label for case, result in seen if not np.array_equal(result.output, case.expected())]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_kernel_gives_the_bytes_of_the_reference(function: str, seen: list[tuple[Case, Seen]]) -> None:
    mine = [(case, result) for case, result in seen if case.call.function == function]
    assert len(mine) >= 2
    assert wrong(mine) == []


def test_the_cases_reach_every_way_through_the_kernels(cases: list[Case]) -> None:
    params = [(case.call.function, case.call.params) for case in cases]
    for function in ("ll_conv", "ll_conv_1x1", "ll_linear"):
        for paired in (0, 1):
            assert any(f == function and f".is_paired = {paired}" in p for f, p in params), (function, paired)
    squares = tuple(f"ll_depthwise_{taps}x{taps}" for taps in (3, 5, 7))
    ways = {
        (case.call.function, case.op.stride[1], case.tensors["y"].shape[1] % 4)
        for case in cases
        if case.call.function in squares
    }
    assert ways == {(function, stride, rest) for function in squares for stride in (1, 2) for rest in range(4)}
    for function in ("ll_conv", "ll_conv_1x1", "ll_linear", "ll_depthwise", *squares, "ll_mul"):
        for plain in (0, 1):
            assert any(f == function and f".is_plain_scale = {plain}" in p for f, p in params), (function, plain)
    for function in ("ll_conv", "ll_linear"):  # sums are begun by one quad, then taken two by two
        quick = [case for case in cases if case.call.function == function and is_quick(case)]
        quads = {-(-case.op.weight[0].size // 4) for case in quick}
        assert 1 in quads
        assert {each % 2 for each in quads - {1}} == {0, 1}
    for half in (-1, 0, 1):
        assert any(f == "ll_add" and f".half = {half}" in p for f, p in params), half
    assert any((case.op.shift > 0).any() for case in cases if "conv" in case.call.function)
    saturated = [
        np.isin(case.expected(), (case.op.clamp.lower, case.op.clamp.upper)).any()
        for case in cases
        if hasattr(case.op, "clamp")
    ]
    assert 0.2 < np.mean(saturated) < 0.99


def is_quick(case: Case) -> bool:
    """Blocks of four channels with paired weights and a plain scale."""
    groups = getattr(case.op, "groups", 1)
    marks = (".is_paired = 1", ".is_plain_scale = 1")
    return len(case.op.weight) // groups >= 4 and all(mark in case.call.params for mark in marks)


def test_kernels_write_only_output_and_scratch(seen: list[tuple[Case, Seen]]) -> None:
    assert [case.label for case, result in seen if not result.stayed_inside] == []


def test_instrumented_kernels_count_the_macs_that_lowering_states(seen: list[tuple[Case, Seen]]) -> None:
    assert [case.label for case, result in seen if result.macs != case.call.macs] == []
    assert sum(result.macs for _, result in seen) > 100_000


def test_in_place_and_fused_runs_are_among_the_cases_of_every_kernel_that_allows_them(cases: list[Case]) -> None:
    def functions(words: str) -> set[str]:
        return {case.call.function for case in cases if words in case.label}

    assert functions("in place") >= {
        "ll_conv_1x1",
        "ll_depthwise",
        "ll_depthwise_3x3",
        "ll_depthwise_5x5",
        "ll_depthwise_7x7",
        "ll_add",
        "ll_mul",
        "ll_avg_pool",
        "ll_max_pool",
    }
    assert functions("in place") >= {"ll_mean", "ll_softmax", "ll_lookup", "ll_copy", "ll_conv", "ll_linear"}
    assert functions("in place of the second") == {"ll_add"}
    assert functions("fused add over its skip") == {"ll_conv_add", "ll_conv_1x1_add"}


@pytest.mark.parametrize(
    ("file", "original", "patched"),
    [
        pytest.param("ll_arith.h", "    x += x >> 31;\n", "", id="ties of the quick rescaling go up, not away from zero"),
        pytest.param("ll_arith.h", "+ (INT64_C(1) << 30)) >> 31", ") >> 31", id="the general rescaling rounds down"),
        pytest.param("ll_conv.c", "ll_widen_value(codes, p->in_zero_point", "ll_widen_value(codes, 0", id="convolutions pad with 0"),
        pytest.param("ll_depthwise.c", "r.end; to++) *to = p->in_zero_point", "r.end; to++) *to = 0", id="depthwise pads its sides with 0"),
        pytest.param("ll_conv.c", "is_single ? 0 : pixels - 2 - done", "done", id="longer results go forward over their input"),
        pytest.param("ll_conv.c", "out_x * p->stride_w", "out_x * (p->stride_w + 1)", id="convolutions step one too far"),
        pytest.param("ll_depthwise.c", "y++, top += p->stride_h", "y++, top += p->stride_h + (y == 1)", id="depthwise steps too far, once"),
        pytest.param("ll_depthwise.c", "slot == ring.first ? filter : turned", "filter", id="square filters do not turn with their rows"),
        pytest.param("ll_pool.c", "sum - count / 2", "sum + count / 2", id="negative averages round up"),
        pytest.param("ll_add.c", "p->zero_point[half_index]", "p->zero_point[0]", id="additions mix up zero points"),
    ],
)  # fmt: skip
def test_a_broken_kernel_is_caught(
    file: str, original: str, patched: str, cases: list[Case], cases_object: Path, tmp_path: Path
) -> None:
    broken = compile_library(tmp_path / "nn", cases_object, file=file, original=original, patched=patched)
    assert wrong([(case, broken.run(case)) for case in cases]) != []


@pytest.mark.parametrize("shift", [0, -1, -2, -7, -22, -31, 3])
def test_rescaling_is_two_roundings_with_ties_up_and_then_away_from_zero(shift: int, library: Library) -> None:
    """Expected values by exact fractions; factors that are powers of two make every other value a tie."""
    for multiplier in (2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1):
        for x in (*range(-9, 10), -(2**20) - 1, 2**20 - 3, 2**26 + 1, -(2**26) - 3):
            once = floor(Fraction(x * 2 ** max(shift, 0) * multiplier, 2**31) + Fraction(1, 2))
            halves = Fraction(abs(once), 2 ** max(-shift, 0)) + Fraction(1, 2)
            expected = floor(halves) * (1 if once >= 0 else -1)
            assert library.handle.probe_rescale(x, multiplier, ctypes.c_int32(shift)) == expected, (
                x,
                multiplier,
                shift,
            )
            if -22 <= shift <= -1:
                for zero_point in (-128, 0, 127):
                    code = min(127, max(-128, expected + zero_point))
                    assert library.handle.probe_plain(x, multiplier, -shift, zero_point) == code, (x, multiplier, shift)


def test_a_kernel_that_may_not_run_in_place_gives_other_bytes_there(tmp_path: Path) -> None:
    """The rule is not only safe but needed: where it says no, running over the input goes wrong nearly always."""
    rng = np.random.default_rng(5)
    forbidden = []
    for case in [case for family in FAMILIES for _ in range(60) for case in family(rng)]:
        # Grouped convolutions are refused without a closer look; a maximum often survives what is overwritten.
        is_judged = isinstance(case.op, AvgPool2d) or (
            isinstance(case.op, Conv2d) and (case.op.is_depthwise or case.op.groups == 1)
        )
        fits = case.tensors[case.op.name].bytes <= case.tensors[case.op.inputs[0]].bytes
        if is_judged and fits and not can_run_in_place(case.op, case.tensors):
            forbidden.append(
                replace(case, inputs=[rng.integers(-128, 128, case.inputs[0].shape, dtype=np.int8)], overlay=0)
            )
    for index, case in enumerate(forbidden):
        case.symbol, case.call = f"case{index}", lower(case.op, case.tensors, symbol=f"case{index}")
    library = compile_library(tmp_path / "nn", compile_cases(tmp_path, forbidden))
    different = len(wrong([(case, library.run(case)) for case in forbidden]))
    assert len(forbidden) > 50
    assert different > 0.85 * len(forbidden)  # in the rest a clamp or saturation hides the difference


def test_kernels_are_free_of_undefined_behaviour_and_of_accesses_outside_arrays(tmp_path: Path) -> None:
    cases = all_cases(seed=1, count=5)
    receipt = write_project(tmp_path / "project", cases).run(numbers(cases), board="host", sanitize=True)
    assert_outputs(receipt.output, cases)


@pytest.fixture(scope="module")
def chip_cases() -> list[Case]:
    return all_cases(seed=2, count=3)


@pytest.fixture(scope="module")
def chip(chip_cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    return write_project(tmp_path_factory.mktemp("chip") / "project", chip_cases)


@pytest.mark.parametrize(("board", "toolchain"), [("mps2-an386", "gcc-qemu"), ("mps2-an386", "zig-unicorn")])
def test_the_dsp_instructions_give_the_same_bytes_on_an_emulated_chip(
    board: str, toolchain: str, chip: Firmware, chip_cases: list[Case]
) -> None:
    needs(board, toolchain)
    assert_outputs(chip.run(numbers(chip_cases), board=board, toolchain=toolchain).output, chip_cases)


def test_the_portable_c_gives_the_same_bytes_on_an_emulated_chip_with_more_instructions(
    chip: Firmware, chip_cases: list[Case], tmp_path: Path
) -> None:
    needs("mps2-an386")
    portable = write_project(tmp_path / "portable", chip_cases)
    header = portable.directory / "nn" / "ll_arith.h"
    header.write_text("#define LL_PORTABLE\n" + header.read_text())
    slow, fast = (firmware.run(numbers(chip_cases)) for firmware in (portable, chip))
    assert_outputs(slow.output, chip_cases)
    assert slow.instructions > fast.instructions


def assert_outputs(output: np.ndarray, cases: list[Case]) -> None:
    differing = [
        case.label
        for case, row in zip(cases, output, strict=True)
        if not np.array_equal(row[: case.expected().size], case.expected().ravel())
    ]
    assert differing == []


def needs(board: str, toolchain: str = "auto") -> None:
    try:
        find_toolchain(find_board(board), toolchain)
    except ToolchainError as error:
        pytest.skip(str(error))


def test_the_largest_sums_that_pairs_allow_are_exact(tmp_path: Path) -> None:
    """516 weights of 127 just stay below the bound; all codes at their ends drive the sums there."""
    rng = np.random.default_rng(0)
    cases = []
    for inner, paired in ((516, 1), (520, 0)):
        for code in (-128, 127):
            case = conv(rng, (1, 2, inner), 8, (1, 1))
            weight = np.full((8, 1, 1, inner), 127, dtype=np.int8)
            weight[1::2] *= -1
            tensors = {**case.tensors, "x": QTensor("x", (1, 2, inner), 1.0, 0)}
            factor = {
                "multiplier": np.full(8, 2**30, np.int32),
                "shift": np.full(8, -16, np.int32),
                "bias": np.zeros(8, np.int32),
            }
            case = replace(
                case,
                op=replace(case.op, weight=weight, **factor),
                tensors=tensors,
                inputs=[np.full((1, 2, inner), code, np.int8)],
            )
            cases.append(case.lowered(f"case{len(cases)}"))
            assert f".is_paired = {paired}" in cases[-1].call.params
    library = compile_library(tmp_path / "nn", compile_cases(tmp_path, cases))
    assert wrong([(case, library.run(case)) for case in cases]) == []
    assert len({case.expected().tobytes() for case in cases}) > 1
