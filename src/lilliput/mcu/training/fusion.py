"""Pairs of operations that become one kernel, so that what lies between them is never stored.

====================================  ========================  ======================================================================
pair                                  becomes                   because
====================================  ========================  ======================================================================
conv_sum, requantize                  conv                      a sum is rescaled, compared with the clamp and written at once
mask_gradient, scale_gradient         scale_gradient            0 * factor = 0
conv_dw, weight_step                  conv_dw_step              each weight's gradient is complete before the next is begun
bias_gradient, bias_step              bias_gradient_step        likewise
conv, add, mean without mask          infer                     with nothing to train and no mask they are inference's own operations
====================================  ========================  ======================================================================

A step fuses only where it directly follows its gradient: what lies between could still read the old weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lilliput.mcu.training import graph as t
from lilliput.mcu.training.dead_code import with_ops


def fuse(program: t.Program) -> t.Program:
    """Every pair of the table, then operations without mask and parameters as inference's."""
    ops = list(program.ops)
    for merge in (_conv, _masked_scale, _weight_step, _bias_step):
        ops = _merged(ops, merge)
    return with_ops(program, tuple(_as_inference(op) for op in ops))


def _merged(ops: list[t.Op], merge: Callable[[t.Op, t.Op], t.Op | None]) -> list[t.Op]:
    """Adjacent pairs merged where nobody else reads what is between them."""
    readers: dict[str, int] = {}
    for op in ops:
        for name in op.inputs:
            readers[name] = readers.get(name, 0) + 1
    result: list[t.Op] = []
    for op in ops:
        is_pair = result and result[-1].outputs and result[-1].outputs[0] in op.inputs
        single = is_pair and readers[result[-1].outputs[0]] == 1
        merged = merge(result[-1], op) if single else None
        if merged is None:
            result.append(op)
        else:
            result[-1] = merged
    return result


def _conv(first: t.Op, second: t.Op) -> t.Op | None:
    if isinstance(first, t.ConvSum) and isinstance(second, t.Requantize):
        return t.Conv(
            name=second.name, inputs=first.inputs, outputs=second.outputs, layer=first.layer, scaling=second.scaling
        )
    return None


def _masked_scale(first: t.Op, second: t.Op) -> t.Op | None:
    if isinstance(first, t.MaskGradient) and isinstance(second, t.ScaleGradient):
        return replace(second, inputs=first.inputs)
    return None


def _weight_step(first: t.Op, second: t.Op) -> t.Op | None:
    if isinstance(first, t.ConvWeightGradient) and isinstance(second, t.WeightStep):
        return t.ConvWeightStep(
            name=second.name,
            inputs=first.inputs,
            outputs=(),
            layer=first.layer,
            factors=second.factors,
            rule=second.rule,
            sum_shift=first.sum_shift,
            is_kept=first.is_kept,
        )
    return None


def _bias_step(first: t.Op, second: t.Op) -> t.Op | None:
    if isinstance(first, t.BiasGradient) and isinstance(second, t.BiasStep):
        return t.BiasGradientStep(
            name=second.name,
            inputs=first.inputs,
            outputs=(),
            layer=first.layer,
            factors=second.factors,
            truncates=second.truncates,
            sum_shift=first.sum_shift,
        )
    return None


def _as_inference(op: t.Op) -> t.Op:
    if isinstance(op, t.Conv) and len(op.outputs) == 1 and not op.uses:
        return t.Infer(name=op.name, inputs=op.inputs, outputs=op.outputs, qop=op.layer.qop)
    if isinstance(op, (t.Add, t.Mean)) and len(op.outputs) == 1:
        return t.Infer(name=op.name, inputs=op.inputs, outputs=op.outputs, qop=op.qop)
    return op
