"""What one training step takes on a chip: sparse against full, steps in their place against after all gradients, ours beside PyTorch.

    python benchmarks/mcu_training.py [--image 96] [--steps 2] [--board mps2-an500] [--json FILE]

The network is MobileNetV2 with width 0.35 in the shape that on-device training was published with (51 convolutions before the head, 10
classes); weights are seeded, since memory and instructions do not depend on them. Each row is compiled; where it fits the budget it is
written as C, built and run on the emulated chip, whose trained weights must have the interpreter's digest before a count is believed.
PyTorch trains every layer of the same network in float32, one image a step, in a process of its own, in the same run. Its whole process and
its tensors are both printed, for neither alone is a fair comparison. Instructions are not cycles.

Scheme: Lin et al. 2022 (arXiv:2206.15472), published configuration of 49 KB for this network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lilliput.errors import BudgetError
from lilliput.evidence import Budget
from lilliput.jobs.pytorch_memory import PytorchMemory, measure
from lilliput.mcu.training import SGD, UpdatePlan, compile_training
from lilliput.mcu.training.update_plan import weighted_layers
from lilliput.quantize import QuantizedGraph, quantize_int8

CLASSES = 10
# Expanded channels (none where the first layer is the depthwise one), stride, channels.
BLOCKS = (
    (None, 1, 8), (48, 2, 8), (48, 1, 8), (48, 2, 16), (96, 1, 16), (96, 1, 16), (96, 2, 24), (144, 1, 24), (144, 1, 24), (144, 1, 24),
    (144, 1, 32), (192, 1, 32), (192, 1, 32), (192, 2, 56), (336, 1, 56), (336, 1, 56), (336, 1, 112),
)  # fmt: skip
BIAS_DEPTH = 16
RATIOS = {36: 1, 39: 1, 41: 1 / 4, 42: 1 / 8, 45: 1 / 8, 48: 1 / 8, 49: 1 / 8}
"""By layer number; a ratio of 0 in the published file is a layer that is not updated."""


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs: int, expanded: int | None, stride: int, outputs: int) -> None:
        super().__init__()
        width = expanded or inputs
        layers: list[nn.Module] = [nn.Conv2d(inputs, width, 1), nn.ReLU6()] if expanded else []
        layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.ReLU6(), nn.Conv2d(width, outputs, 1)]
        self.body = nn.Sequential(*layers)
        self.has_skip = stride == 1 and inputs == outputs and expanded is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the input where shapes allow."""
        return x + self.body(x) if self.has_skip else self.body(x)


def network(side: int) -> QuantizedGraph:
    """Seeded and quantized."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6()]
    channels = 16
    for expanded, stride, outputs in BLOCKS:
        layers.append(Block(channels, expanded, stride, outputs))
        channels = outputs
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)).eval()
    return quantize_int8(model, torch.rand(4, 3, side, side))


@dataclass(frozen=True)
class Row:
    """One choice of what is trained."""

    name: str
    sram_planned_bytes: int
    arena_bytes: int
    training_arena_bytes: int
    """Of the part that is trained, forward and backward, without the frozen part before it, which runs in the same memory."""
    trained_bytes: int
    lower_bound_bytes: int
    flash_constant_bytes: int
    sram_bytes: int | None = None
    """Linked, painted stack included; ``None`` where the plan exceeds the budget and nothing was run."""
    flash_bytes: int | None = None
    instructions: float | None = None
    """Of one step, mean."""

    def __str__(self) -> str:
        ran = "over the budget: not run" if self.sram_bytes is None else ""
        if self.sram_bytes is not None and self.instructions is not None:
            ran = f"{self.sram_bytes:>11,} {self.flash_bytes:>11,} {self.instructions:>15,.0f}"
        figures = (self.sram_planned_bytes, self.arena_bytes, self.training_arena_bytes, self.trained_bytes)
        return f"{self.name:<46} " + " ".join(f"{each:>11,}" for each in figures) + f" {ran}"


def measured(name: str, qgraph: QuantizedGraph, plan: UpdatePlan, reorder: bool, options: argparse.Namespace) -> Row:
    """Compile one choice; run it where it fits."""
    made = {"optimizer": SGD(0.01), "reorder": reorder, "seed": 0}
    limit = Budget.parse(options.sram)
    try:
        step = compile_training(qgraph, plan, sram=limit, **made)
    except BudgetError:
        step = compile_training(qgraph, plan, schedule="whole", **made)
    report = step.memory_report()
    planned = (
        report.sram_bytes,
        report.arena_bytes,
        report.suffix_arena_bytes,
        report.trained_bytes,
        report.lower_bound_bytes,
        report.flash_bytes,
    )
    if report.sram_bytes > limit:
        return Row(name, *planned)
    shape = qgraph.tensors[qgraph.input].shape
    x = np.random.default_rng(0).integers(-128, 128, (options.steps, *shape), dtype=np.int8)
    y = np.arange(options.steps) % CLASSES
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        firmware = step.emit_c(Path(folder) / "firmware", target=options.board, x=x[:1], y=y[:1])
        receipt = firmware.run(x, y, options.board, timeout_seconds=1800.0)
    if receipt.weights_digest != step.simulate(x, y).weights_digest:
        raise SystemExit(f"{name}: the chip's weights are not the interpreter's; its counts are worth nothing")
    return Row(name, *planned, receipt.sram_bytes, receipt.flash_bytes, receipt.instructions)


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, default=96, help="side of the input in pixels")
    parser.add_argument("--steps", type=int, default=2, help="steps to take on the chip")
    parser.add_argument("--sram", default="256KB", help="what must be kept to for a row to be run")
    parser.add_argument("--board", default="mps2-an500")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    qgraph = network(options.image)
    layers = weighted_layers(qgraph)
    sparse = UpdatePlan.from_ratios(qgraph, BIAS_DEPTH, {layers[number].name: each for number, each in RATIOS.items()})
    choices = (
        ("head alone", UpdatePlan.head_only(qgraph), True),
        ("sparse, published scheme of 49 KB", sparse, True),
        ("the same, steps after all gradients", sparse, False),
        (f"all {len(layers)} layers", UpdatePlan.full(qgraph), True),
        (f"all {len(layers)} layers, steps after all gradients", UpdatePlan.full(qgraph), False),
    )
    print(f"MobileNetV2-0.35 at {options.image}x{options.image}, {qgraph.macs:,} MACs; bytes; {options.board}")
    titles = ("SRAM planned", "arena", "its trained", "weights", "SRAM ran", "flash", "instructions")
    print(f"{'trained':<46} " + " ".join(f"{each:>11}" for each in titles))
    rows = []
    for choice in choices:
        rows.append(measured(*choice[:1], qgraph, *choice[1:], options))
        print(rows[-1], flush=True)
    theirs = measure(qgraph, CLASSES)
    _beside(rows[1], theirs)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"ours": [asdict(row) for row in rows], "pytorch": asdict(theirs)}, indent=1) + "\n"
        )


def _beside(ours: Row, theirs: PytorchMemory) -> None:
    taken = ours.sram_bytes or ours.sram_planned_bytes
    above = theirs.high_water_bytes - theirs.after_import_bytes
    print(
        f"\nPyTorch {theirs.version}, all layers, float32, batch 1, plain SGD; beside ours, sparse, {taken:,} bytes of SRAM in all:"
    )
    for name, amount in (
        ("process, high water", theirs.high_water_bytes),
        ("process, above what its import takes", above),
        ("tensors: saved for backward, parameters, gradients", theirs.tensor_bytes),
        ("tensors saved for backward alone", theirs.saved_bytes),
    ):
        print(f"  {name:<52} {amount:>13,} {amount / taken:>9,.1f} times ours")


if __name__ == "__main__":
    main()
