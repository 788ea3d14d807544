"""Bytes that a training program takes beside its arena: trained parameters and words of state in memory, constants in flash."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lilliput.mcu.training import graph as t
from lilliput.mcu.training.parameter_image import HEADER_WORDS
from lilliput.quantize import qgraph as q

if TYPE_CHECKING:
    from lilliput.mcu.training.train_step import TrainStep

WORD_BYTES = 4


def arena_bytes(step: TrainStep) -> int:
    """The larger of the two parts' arenas, which share one place."""
    return max(prefix_bytes(step), step.placement.arena_bytes)


def prefix_bytes(step: TrainStep) -> int:
    """Of the frozen part, the working memory that its arena has no room for included."""
    if step.prefix is None:
        return 0
    return (
        prefix_scratch_offset(step) + step.prefix.scratch_bytes
        if step.prefix.scratch_bytes
        else step.prefix.arena_bytes
    )


def prefix_scratch_offset(step: TrainStep) -> int:
    """Where that working memory begins: at a word."""
    return 0 if step.prefix is None else -(-step.prefix.arena_bytes // WORD_BYTES) * WORD_BYTES


def state_bytes(program: t.Program) -> int:
    """What the firmware keeps beside arena and trained tensors: header and checksum that these are saved with, gaps to whole words between
    them, and the random stream's state, the rate, and the class that the last sample was taken for."""
    gaps = sum(-parameter.bytes % WORD_BYTES for parameter in program.parameters.values())
    return gaps + WORD_BYTES * (HEADER_WORDS + 1 + 3)


def flash_bytes(program: t.Program) -> int:
    """Constants of the suffix.

    Frozen weights once, plain; the codes trained weights start with; biases; multipliers and shifts; factors of gradients and steps;
    lists of selected channels. Where all weights of a layer are trained, nothing of it is frozen.
    """
    arrays: list[np.ndarray] = []
    total = 0
    for layer in _layers(program):
        if not (layer.channels and layer.trains_all_channels):
            arrays.append(layer.weight)
        total += len(layer.selection) if layer.channels else 0
        total += 2 * len(layer.channels) * (not layer.trains_all_channels)
        arrays.append(layer.bias)
    tables: set[bytes] = set()
    for op in program.ops:
        if isinstance(op, (t.Conv, t.Requantize)):
            arrays += [op.scaling.multiplier, op.scaling.shift]
        elif isinstance(op, t.ScaleGradient):
            arrays.append(op.factor)
        elif isinstance(op, (t.WeightStep, t.BiasStep, t.ConvWeightStep, t.BiasGradientStep)):
            arrays += [op.factors.mantissa, op.factors.exponent]
        elif isinstance(op, t.Infer) and isinstance(op.qop, (q.Conv2d, q.Linear)):
            arrays += [op.qop.weight, op.qop.bias, op.qop.multiplier, op.qop.shift]
        elif isinstance(op, t.Infer) and isinstance(op.qop, q.Lookup):
            tables.add(op.qop.table.tobytes())
    return total + sum(array.nbytes for array in arrays) + 256 * len(tables)


def _layers(program: t.Program) -> Iterable[t.Layer]:
    """Each layer that runs on training kernels, once."""
    found = {op.layer.name: op.layer for op in program.ops if isinstance(op, (t.Conv, t.ConvSum))}
    return found.values()
