"""Why a training step was refused: the bound, what binds, and what would fit instead, each way tried before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lilliput.errors import LilliputError
from lilliput.mcu.tiling import Schedule
from lilliput.mcu.training.memory_report import MemoryReport
from lilliput.mcu.training.resolution import at_resolution
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph

if TYPE_CHECKING:
    from lilliput.mcu.training.train_step import TrainStep

Compile = Callable[[QuantizedGraph, UpdatePlan, str | Schedule], "TrainStep"]
"""The same compilation without limits, of another network, plan or schedule."""

_SIZE_STEP = 16
"""Images are proposed in multiples of it: a network halves its maps four or five times."""
_LEAST_SIZE = 32


def refusal(step: TrainStep, report: MemoryReport, schedule: str | Schedule, compile_again: Compile) -> str:
    """The message of a ``BudgetError``."""
    name, sram, flash = step.qgraph.name, step.sram_bytes_limit, step.flash_bytes_limit
    if sram is None or report.sram_bytes <= sram:
        return (
            f"training '{name}' has {report.flash_bytes:,} bytes of constants > flash {flash:,}; code comes on top; "
            f"try flash={report.flash_bytes + 32 * 1024} or fewer channels"
        )
    binding = report.binding
    module = f", module {binding.source!r}" if binding.source else ""
    fixes = [f"sram={report.sram_bytes}", *_ways(step, schedule, sram, compile_again)]
    return (
        f"training '{name}' with {_scheme(step.update)} needs at least {report.lower_bound_bytes:,} bytes of SRAM, "
        f"{report.sram_bytes:,} as placed (arena {report.arena_bytes:,} + trained {report.trained_bytes:,} + state {report.state_bytes:,} "
        f"+ stack {report.stack_bytes:,}) > sram {sram:,}, at '{binding.name}' ({binding.kind}{module}, {binding.part}, "
        f"{binding.live_bytes:,} bytes alive); try {' or '.join(fixes)}"
    )


def _ways(step: TrainStep, schedule: str | Schedule, sram: int, compile_again: Compile) -> Iterator[str]:
    """What was tried and fits."""

    def needs(network: QuantizedGraph, update: UpdatePlan, way: str | Schedule) -> int:
        try:
            return compile_again(network, update, way).sram_bytes
        except LilliputError:  # a smaller image may leave tiles of padding alone: then it is no way out
            return sram + 1

    exhausted = schedule in ("auto", "smallest")
    way = "smallest" if exhausted else schedule
    if not exhausted and step.prefix is not None and (least := needs(step.qgraph, step.update, "smallest")) <= sram:
        yield f"schedule='auto' (needs at least {least:,})"
    image = step.qgraph.tensors[step.qgraph.input].shape
    for height, width in _smaller(image):
        network = at_resolution(step.qgraph, height, width)
        if network is None:
            break
        if (least := needs(network, step.update, way)) <= sram:
            yield f"an image of {height}x{width} (needs {least:,})"
            break
    for smaller in _smaller_schemes(step.qgraph, step.update):
        if (least := needs(step.qgraph, smaller, way)) <= sram:
            yield f"{_scheme(smaller)} (needs {least:,})"
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
