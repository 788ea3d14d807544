"""Instructions per multiply-accumulate of our int8 kernels on an emulated Cortex-M4, beside CMSIS-NN's.

    python benchmarks/mcu_kernels.py [--json FILE] [--toolchain gcc-qemu] [--no-portable]

Every row is a network of one layer that goes the whole way: planned, written as C, built, run. Its output is compared with the integer
interpreter before its count is believed. CMSIS-NN's figures are not measured here: they are constants, measured once with the same compiler
and emulator (gcc 12.2 -O3, QEMU 7.2, mps2-an386) on layers of these shapes in the MLPerf Tiny models. Instructions are not cycles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lilliput.mcu import Firmware, plan
from lilliput.quantize.qgraph import Add, Conv2d, Linear, QTensor, QuantizedGraph

BOARD = "mps2-an386"
FIRST_BAR = 1.3
"""Most that ours may take, as a multiple of CMSIS-NN's."""


@dataclass(frozen=True)
class Shape:
    """One layer, and what CMSIS-NN takes for it: instructions per MAC, or per element for an addition."""

    name: str
    cmsis_nn: float | None
    input: tuple[int, ...]
    out: int
    kernel: int = 0
    stride: int = 1
    is_depthwise: bool = False


SHAPES = (
    Shape("conv 3x3, 3 -> 8, stride 2, 96x96", 6.15, (96, 96, 3), 8, 3, 2),
    Shape("conv 3x3, 3 -> 16, 32x32", 4.82, (32, 32, 3), 16, 3),
    Shape("conv 3x3, 16 -> 16, 32x32", 2.33, (32, 32, 16), 16, 3),
    Shape("conv 3x3, 64 -> 64, 8x8", 1.76, (8, 8, 64), 64, 3),
    Shape("depthwise 3x3, 8, 48x48", 8.3, (48, 48, 8), 8, 3, is_depthwise=True),
    Shape("depthwise 3x3, 16, 48x48, stride 2", 8.3, (48, 48, 16), 16, 3, 2, is_depthwise=True),
    Shape("depthwise 3x3, 64, 12x12", 8.3, (12, 12, 64), 64, 3, is_depthwise=True),
    Shape("depthwise 3x3, 128, 6x6", 8.3, (6, 6, 128), 128, 3, is_depthwise=True),
    Shape("depthwise 5x5, 32, 24x24", None, (24, 24, 32), 32, 5, is_depthwise=True),
    Shape("depthwise 5x5, 32, 24x24, stride 2", None, (24, 24, 32), 32, 5, 2, is_depthwise=True),
    Shape("depthwise 5x5, 96, 6x6", None, (6, 6, 96), 96, 5, is_depthwise=True),
    Shape("depthwise 7x7, 32, 24x24", None, (24, 24, 32), 32, 7, is_depthwise=True),
    Shape("depthwise 7x7, 32, 24x24, stride 2", None, (24, 24, 32), 32, 7, 2, is_depthwise=True),
    Shape("depthwise 7x7, 96, 6x6", None, (6, 6, 96), 96, 7, is_depthwise=True),
    Shape("conv 1x1, 8 -> 16, 48x48", 6.63, (48, 48, 8), 16, 1),
    Shape("conv 1x1, 16 -> 32, 24x24", 3.96, (24, 24, 16), 32, 1),
    Shape("conv 1x1, 32 -> 64, 12x12", 2.7, (12, 12, 32), 64, 1),
    Shape("conv 1x1, 64 -> 128, 6x6", 2.1, (6, 6, 64), 128, 1),
    Shape("fully connected, 640 -> 128", 2.0, (640,), 128),
    Shape("fully connected, 128 -> 128", 2.0, (128,), 128),
    Shape("fully connected, 64 -> 10", 2.0, (64,), 10),
    Shape("add, 16x16x16, per element", 81.0, (16, 16, 16), 0),
)
"""Where CMSIS-NN's figure is a range over shapes (depthwise 8.3 to 9.9, fully connected 2.0 to 2.3), the lower end is taken."""


@dataclass(frozen=True)
class Row:
    """A measured layer."""

    name: str
    ours: float
    cmsis_nn: float | None
    """``None``: no figure at hand."""
    ratio: float | None
    portable: float | None
    """Ours compiled without DSP instructions, on the same chip."""
    kernel: str
    scratch_bytes: int
    instructions: float
    counted_on: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--toolchain", default="auto", help="auto, gcc-qemu, zig-unicorn, ...")
    parser.add_argument("--no-portable", action="store_true", help="leave the portable C out")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    print(f"{'layer':<38}{'ours':>8}{'CMSIS-NN':>10}{'ratio':>7}{'portable':>10}  kernel")
    rows = []
    for row in measure(arguments.toolchain, arguments.only, not arguments.no_portable):
        rows.append(row)
        portable = f"{row.portable:>10.2f}" if row.portable is not None else f"{'':>10}"
        peer = f"{row.cmsis_nn:>10.2f}{row.ratio:>7.2f}" if row.cmsis_nn else f"{'':>17}"
        print(f"{row.name:<38}{row.ours:>8.2f}{peer}{portable}  {row.kernel}", flush=True)
    if not rows:
        raise SystemExit(f"no layer's name contains {arguments.only!r}")
    ratios = [row.ratio for row in rows if row.ratio is not None]
    if ratios:
        print(
            f"\nratio: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f} (bar {FIRST_BAR}); below 1 is fewer instructions"
        )
    print(f"counted on {rows[0].counted_on}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if max(ratios, default=0.0) > FIRST_BAR:
        raise SystemExit(1)


def measure(toolchain: str = "auto", only: str = "", with_portable: bool = True) -> Iterator[Row]:
    """One row a shape; the outputs are compared with the integer interpreter first."""
    for index, shape in enumerate(shape for shape in SHAPES if only in shape.name):
        graph = network(shape, np.random.default_rng(index))
        planned = plan(graph)
        with tempfile.TemporaryDirectory() as directory:
            firmware = planned.emit_c(Path(directory) / "dsp")
            count, counted_on = instructions(firmware, graph, toolchain)
            portable = None
            if with_portable:
                without = planned.emit_c(Path(directory) / "portable")
                header = without.directory / "nn" / "ll_arith.h"
                header.write_text("#define LL_PORTABLE\n" + header.read_text())
                portable = instructions(without, graph, toolchain)[0]
            calls = (firmware.directory / "model.c").read_text().split("void ll_model_run(void) {")[1]
        work = planned.macs or graph.tensors["y"].bytes
        kernel = calls.split("(")[0].strip()
        yield Row(
            shape.name,
            ours=count / work,
            cmsis_nn=shape.cmsis_nn,
            ratio=count / work / shape.cmsis_nn if shape.cmsis_nn else None,
            portable=portable / work if portable is not None else None,
            kernel=kernel,
            scratch_bytes=planned.scratch_bytes,
            instructions=count,
            counted_on=counted_on,
        )


def instructions(firmware: Firmware, graph: QuantizedGraph, toolchain: str) -> tuple[float, str]:
    x = np.random.default_rng(0).integers(-128, 128, (1, *graph.tensors["x"].shape), dtype=np.int8)
    receipt = firmware.run(x, board=BOARD, toolchain=toolchain)
    expected = graph.run(x)
    assert np.array_equal(receipt.output.reshape(-1), np.asarray(expected).reshape(-1)), (
        "wrong output: the count means nothing"
    )
    assert receipt.instructions is not None
    return receipt.instructions, f"{receipt.counted_on}; compiled by {receipt.toolchain}"


def network(shape: Shape, rng: np.random.Generator) -> QuantizedGraph:
    """One layer with weights drawn evenly and factors as trained layers have them (below one half, outputs over the whole range)."""
    x = QTensor("x", shape.input, 0.02, -3)
    if shape.out == 0:
        add = Add(name="y", inputs=("x", "x"), multiplier=(2**30, 2**30, 1518500250), shift=(0, 0, -18))
        return QuantizedGraph("one_layer", "x", ("y",), {"x": x, "y": QTensor("y", shape.input, 0.03, 4)}, (add,))
    window = (
        int(np.prod(shape.input))
        if shape.kernel == 0
        else shape.kernel**2 * (1 if shape.is_depthwise else shape.input[2])
    )
    layer = {
        "bias": rng.integers(-2000, 2000, shape.out).astype(np.int32),
        "weight_scale": np.full(shape.out, 0.01),
        "multiplier": rng.integers(2**30, 2**31, shape.out).astype(np.int32),
        "shift": np.full(shape.out, -round(np.log2(74 * 74 * np.sqrt(window) / 60)), dtype=np.int32),
    }
    if shape.kernel == 0:
        weight = rng.integers(-127, 128, (shape.out, *shape.input)).astype(np.int8)
        linear = Linear(name="y", inputs=("x",), weight=weight, **layer)
        return QuantizedGraph("one_layer", "x", ("y",), {"x": x, "y": QTensor("y", (shape.out,), 0.05, 4)}, (linear,))
    height, width, channels = shape.input
    padding = (shape.kernel // 2,) * 4
    sizes = tuple((size + 2 * padding[0] - shape.kernel) // shape.stride + 1 for size in (height, width))
    groups = channels if shape.is_depthwise else 1
    weight = rng.integers(-127, 128, (shape.out, shape.kernel, shape.kernel, channels // groups)).astype(np.int8)
    op = Conv2d(
        name="y", inputs=("x",), weight=weight, stride=(shape.stride,) * 2, padding=padding, groups=groups, **layer
    )
    return QuantizedGraph("one_layer", "x", ("y",), {"x": x, "y": QTensor("y", (*sizes, shape.out), 0.05, 4)}, (op,))


if __name__ == "__main__":
    main()
