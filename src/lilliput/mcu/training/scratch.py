"""Working memory of the training kernels, as ``runtime/nn/ll_train_*.c`` say at their top."""

from __future__ import annotations

from math import prod

from lilliput.mcu.lowering import scratch_bytes as inference_scratch_bytes
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.in_place import is_alias, is_by_plane

PANEL_QUADS = 32
"""Four words for two output channels and one place of the kernel, in a panel that does not hold all of them (``ll_train_dx.c``)."""
_WORD = 4


def scratch_bytes(op: t.Op, program: t.Program) -> int:
    """Of one operation; a multiple of a word."""
    if isinstance(op, t.Infer):
        return 0 if is_alias(op) else -(-inference_scratch_bytes(op.qop, program.tensors) // _WORD) * _WORD
    if isinstance(op, (t.Conv, t.ConvSum)):
        return _forward(op.layer)
    if isinstance(op, t.ConvInputGradient):
        return _input_gradient(op.layer)
    if isinstance(op, t.ConvWeightGradient):
        return _weight_gradient(op.layer)
    if isinstance(op, t.ConvWeightStep):
        return weight_step_scratch_bytes(op.layer, op.rule)
    return 0


def weight_step_scratch_bytes(layer: t.Layer, rule: str) -> int:
    """Of a weight gradient whose step follows at once; stochastic rounding draws for all output channels together."""
    return _weight_gradient(layer) + (_WORD * layer.output_shape[2] if rule == "int8" else 0)


def _forward(layer: t.Layer) -> int:
    taps = prod(layer.kernel)
    if is_by_plane(layer):
        return _WORD * (2 * taps + prod(layer.input_shape[:2]))
    if layer.pixels == 1:
        return 0
    return _WORD * taps * (4 + 8 * -(-layer.weight.shape[3] // 4))


def _input_gradient(layer: t.Layer) -> int:
    taps = prod(layer.kernel)
    if is_by_plane(layer):
        return 2 * _WORD * (taps + layer.pixels)
    whole = taps * -(-(layer.output_shape[2] // layer.groups) // 2)
    in_parts = prod(layer.input_shape[:2]) + taps * max(1, PANEL_QUADS // taps)
    return 4 * _WORD * min(whole, in_parts)


def _weight_gradient(layer: t.Layer) -> int:
    if is_by_plane(layer):
        return 0
    return 4 * _WORD * -(-layer.pixels // 2)
