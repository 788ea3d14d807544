"""The MLPerf Tiny reference models on an emulated Cortex-M4: memory and instructions beside CMSIS-NN, TensorFlow Lite Micro, TinyEngine.

    python benchmarks/mcu_models.py [--data DIR] [--ops] [--only NAME] [--toolchain gcc-qemu] [--json FILE]

Each model is read from its own .tflite file, planned, written as C, built and run; its output bytes are compared with the integer
interpreter before a count is believed. The peers' figures are cited, not measured here: CMSIS-NN's were counted with the same compiler and
emulator (gcc 12.2 -O3, QEMU 7.2, mps2-an386) on the same files, their text and stack taken from that image; TensorFlow Lite Micro's is the
arena that it reports for the file on x86-64, where its own records are larger than on 32 bits. Instructions are not cycles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lilliput.errors import LilliputError
from lilliput.mcu import Plan, Receipt, Step, load_tflite, plan
from lilliput.quantize.qgraph import Conv2d

BOARD = "mps2-an386"
BAR = 1.1
"""Most instructions that ours may take, as a multiple of CMSIS-NN's."""


@dataclass(frozen=True)
class Model:
    """A published file, and what is cited for it."""

    title: str
    file: str
    cmsis_nn_instructions: int
    cmsis_nn_scratch_bytes: int
    cmsis_nn_stack_bytes: int
    cmsis_nn_flash_bytes: int
    tflm_arena_bytes: int
    arena_bytes: int
    """What our plan must not exceed."""


MODELS = (
    Model("visual wake words, MobileNetV1-0.25 at 96", "vww_96_int8", 24_730_000, 1_024, 820, 304_292, 103_680, 46_080),
    Model("image classification, ResNet-8", "pretrainedResnet_quant", 29_870_000, 2_304, 828, 110_860, 55_984, 32_768),
    Model("keyword spotting, DS-CNN", "kws_ref_model", 7_840_000, 256, 828, 59_852, 24_272, 8_490),
    Model("anomaly detection, autoencoder", "ad01_int8", 580_000, 0, 436, 282_212, 3_984, 768),
)

TINYENGINE = (
    "TinyEngine: its published figure at hand is for another network, mcunet-vww1 (11.579 M MACs): 43.36 M instructions (3.74 a MAC), "
    "93,992 B of arena and buffers, 596 B of stack. That file is not at hand, so there is no figure of ours beside it."
)


@dataclass(frozen=True)
class Row:
    """A measured model."""

    model: Model
    macs: int
    instructions: float
    resolution_instructions: int
    arena_bytes: int
    scratch_bytes: int
    stack_bytes: int
    sram_bytes: int
    flash_bytes: int
    ops: Mapping[str, tuple[str, int, float]]
    """By the tensor it makes: the operation's kind, its multiply-accumulates, its instructions."""
    counted_on: str

    @property
    def ratio(self) -> float:
        """Instructions, ours over CMSIS-NN's."""
        return self.instructions / self.model.cmsis_nn_instructions

    def failures(self) -> Iterator[str]:
        """Which bars it misses."""
        if self.ratio > BAR:
            yield f"{self.model.file}: {self.ratio:.2f} of CMSIS-NN's instructions; the bar is {BAR}"
        if self.arena_bytes > self.model.arena_bytes:
            yield f"{self.model.file}: arena of {self.arena_bytes:,} B; the bar is {self.model.arena_bytes:,}"
        if self.sram_bytes > self.model.tflm_arena_bytes:
            yield f"{self.model.file}: {self.sram_bytes:,} B of SRAM; the bar is {self.model.tflm_arena_bytes:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mlperf-tiny"), help="folder with the files")
    parser.add_argument("--ops", action="store_true", help="also a row for each operation")
    parser.add_argument("--only", default="", help="models whose file name contains this")
    parser.add_argument("--toolchain", default="auto", help="auto, gcc-qemu, zig-unicorn, ...")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows = []
    try:
        for model in (model for model in MODELS if arguments.only in model.file):
            row = measure(model, arguments.data, arguments.toolchain)
            rows.append(row)
            print(table(row), flush=True)
            if arguments.ops:
                print(op_table(row), flush=True)
    except LilliputError as error:
        raise SystemExit(str(error)) from error
    if not rows:
        raise SystemExit(f"no model's file name contains {arguments.only!r}")
    print(f"{TINYENGINE}\n\nCounted on {rows[0].counted_on}.")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    failures = [failure for row in rows for failure in row.failures()]
    if failures:
        raise SystemExit("\n".join(failures))


def measure(model: Model, data: Path, toolchain: str = "auto") -> Row:
    """Plan, build and run one model on two seeded inputs; its bytes are compared with the integer interpreter's."""
    graph = load_tflite(data / f"{model.file}.tflite")
    planned = plan(graph)
    x = np.random.default_rng(0).integers(-128, 128, (2, *graph.tensors[graph.input].shape), dtype=np.int8)
    with tempfile.TemporaryDirectory() as directory:
        firmware = planned.emit_c(Path(directory) / model.file)
        receipt = firmware.run(x, board=BOARD, toolchain=toolchain, profile=True)
    expected = np.asarray(graph.run(x))
    assert np.array_equal(receipt.output.reshape(-1), expected.reshape(-1)), "wrong output: the counts mean nothing"
    return _row(model, planned, receipt)


def _row(model: Model, planned: Plan, receipt: Receipt) -> Row:
    assert receipt.instructions is not None  # only the host counts nothing
    assert receipt.resolution_instructions is not None
    assert receipt.arena_bytes is not None
    assert receipt.stack_bytes is not None
    assert receipt.sram_bytes is not None
    assert receipt.flash_bytes is not None
    counted = {step.output: step for step in planned.steps if not step.is_alias}
    return Row(
        model,
        planned.macs,
        receipt.instructions,
        receipt.resolution_instructions,
        receipt.arena_bytes,
        receipt.scratch_bytes or 0,
        receipt.stack_bytes,
        receipt.sram_bytes,
        receipt.flash_bytes,
        {
            name: (_kind(counted[name]), counted[name].macs, instructions)
            for name, instructions in receipt.op_instructions.items()
        },
        f"{receipt.counted_on}; compiled by {receipt.toolchain}",
    )


def table(row: Row) -> str:
    """Ours beside the cited figures, as Markdown."""
    model = row.model
    lines = [
        ("instructions", row.instructions, model.cmsis_nn_instructions, "CMSIS-NN"),
        ("arena B", row.arena_bytes, model.tflm_arena_bytes, "TFLM"),
        ("scratch B apart from the arena", row.scratch_bytes, model.cmsis_nn_scratch_bytes, "CMSIS-NN"),
        ("stack B, painted", row.stack_bytes, model.cmsis_nn_stack_bytes, "CMSIS-NN"),
        ("SRAM B, all of it", row.sram_bytes, model.tflm_arena_bytes, "TFLM, arena alone"),
        ("flash B", row.flash_bytes, model.cmsis_nn_flash_bytes, "CMSIS-NN, text"),
    ]
    text = [f"**{model.title}** (`{model.file}`, {row.macs:,} MACs)", ""]
    text += ["| | ours | cited | whose | ratio |", "|---|---:|---:|---|---:|"]
    for name, ours, cited, whose in lines:
        text.append(f"| {name} | {ours:,.0f} | {cited:,} | {whose} | {f'{ours / cited:.2f}' if cited else ''} |")
        if name == "instructions":
            a, b = ours / row.macs, cited / row.macs
            text.append(f"| instructions a MAC | {a:.2f} | {b:.2f} | {whose} | {a / b:.2f} |")
    return "\n".join([*text, ""])


def op_table(row: Row) -> str:
    """A line an operation, as Markdown."""
    text = ["| operation | output | MACs | instructions | a MAC | share |", "|---|---|---:|---:|---:|---:|"]
    for name, (kind, macs, instructions) in row.ops.items():
        per_mac = f"{instructions / macs:.2f}" if macs else ""
        text.append(
            f"| {kind} | {name} | {macs:,} | {instructions:,.0f} | {per_mac} | {instructions / row.instructions:.1%} |"
        )
    total = sum(instructions for *_, instructions in row.ops.values())
    text.append(
        f"| all operations | | {row.macs:,} | {total:,.0f} | {total / row.macs:.2f} | {total / row.instructions:.1%} |"
    )
    return "\n".join([*text, ""])


def _kind(step: Step) -> str:
    op = step.op
    if not isinstance(op, Conv2d):
        return type(op).__name__
    height, width = op.weight.shape[1:3]
    stride = f", stride {op.stride[0]}" if max(op.stride) > 1 else ""
    return (
        f"{'depthwise' if op.is_depthwise else 'conv'} {height}x{width}{stride}{' and add' if step.fused_add else ''}"
    )


if __name__ == "__main__":
    main()
