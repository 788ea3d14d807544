"""Why a training step was refused: the bound, what binds, and what would fit instead, each way tried before it is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lilliput.errors import LilliputError
from lilliput.mcu.tiling import Schedule
from lilliput.mcu.training.memory_report import MemoryReport
from lilliput.mcu.training.resolution import at_resolution
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph

if TYPE_CHECKING:
    from lilliput.mcu.training.train_step import Compilation, TrainStep

_SIZE_STEP = 16
"""Images are proposed in multiples of it: a network halves its maps four or five times."""
_LEAST_SIZE = 32
_CODE_BYTES = 32 * 1024
"""Room for kernels and start-up code in the flash size that is proposed."""


def too_much_sram(
    step: TrainStep, report: MemoryReport, sram: int, schedule: str | Schedule, compilation: Compilation
) -> str:
    """The message of a ``BudgetError``.

    Args:
        step: the one that needs least.
        report: of it.
        sram: bytes allowed.
        schedule: as it was asked for.
        compilation: for trying others.
    """
    binding = report.binding
    module = f", module {binding.source!r}" if binding.source else ""
    fixes = [f"sram={report.sram_bytes}", *_ways(step, schedule, sram, compilation)]
    return (
        f"training '{step.qgraph.name}' with {_scheme(step.update)} needs at least {report.lower_bound_bytes:,} bytes of SRAM, "
        f"{report.sram_bytes:,} as placed (arena {report.arena_bytes:,} + trained {report.trained_bytes:,} + state {report.state_bytes:,} "
        f"+ stack {report.stack_bytes:,}) > sram {sram:,}, at '{binding.name}' ({binding.kind}{module}, {binding.part}, "
        f"{binding.live_bytes:,} bytes alive); try {' or '.join(fixes)}"
    )


def too_much_flash(step: TrainStep, report: MemoryReport, flash: int) -> str:
    """The message of a ``BudgetError``."""
    return (
        f"training '{step.qgraph.name}' has {report.flash_bytes:,} bytes of constants > flash {flash:,}; code comes on top; "
        f"try flash={report.flash_bytes + _CODE_BYTES} or a network with fewer channels"
    )


def _ways(step: TrainStep, schedule: str | Schedule, sram: int, compilation: Compilation) -> Iterator[str]:
    """What was tried and fits."""

    def fitting(network: QuantizedGraph, update: UpdatePlan, way: str | Schedule) -> MemoryReport | None:
        try:
            report = compilation.step(network, update, way, sram).memory_report()
        except LilliputError:  # too large, or too small for the tiles asked for: no way out either way
            return None
        return report if report.sram_bytes <= sram else None

    if schedule not in ("auto", "smallest") and (found := fitting(step.qgraph, step.update, "auto")):
        yield f"schedule='auto' (needs {found.sram_bytes:,}, with {found.schedule})"
    way = "auto" if schedule == "smallest" else schedule
    for height, width in _smaller(step.qgraph.tensors[step.qgraph.input].shape):
        network = at_resolution(step.qgraph, height, width)
        if network is not None and (found := fitting(network, step.update, way)):
            yield f"an image of {height}x{width} (needs {found.sram_bytes:,})"
            break
    for smaller in _smaller_schemes(step.qgraph, step.update):
        if found := fitting(step.qgraph, smaller, way):
            yield f"{_scheme(smaller)} (needs {found.sram_bytes:,})"
            break


def _smaller(image: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    if len(image) == 3:
        for height in range((image[0] - 1) // _SIZE_STEP * _SIZE_STEP, _LEAST_SIZE - 1, -_SIZE_STEP):
            yield height, max(1, round(height * image[1] / image[0]))


def _smaller_schemes(qgraph: QuantizedGraph, update: UpdatePlan) -> Iterator[UpdatePlan]:
    """The deepest trained weights left out, one layer after the other; biases then only as deep as the weights; at last the head alone."""
    layers = weighted_layers(qgraph)
    numbers = {op.name: number for number, op in enumerate(layers)}
    for first in range(len(update.layers)):
        remaining = update.layers[first:]
        depth = len(layers) - numbers[remaining[0].op]
        if depth < update.bias_depth or first > 0:
            yield replace(UpdatePlan(depth, remaining), method=update.method)
    if update.bias_depth > 0:
        yield UpdatePlan.head_only(qgraph)


def _scheme(update: UpdatePlan) -> str:
    if update.bias_depth == 0:
        return "the head alone"
    return f"the last {update.bias_depth} biases and weights of {len(update.layers)} layers"
