"""From an operation of a training program to the call of a C kernel: which function, its parameters, its arguments.

A kernel is called as ``function(&params, inputs..., outputs..., scratch, exponents..., others...)`` and returns the exponent of a gradient
that it makes. Layers are structs of their own, shared by all operations on them. What each kernel does is written in
``runtime/nn/ll_train.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lilliput.errors import UnsupportedOpError
from lilliput.mcu.kernel_call import ConstantTable, array_c, check_sizes, struct_c, window_fields
from lilliput.mcu.lowering import lower as lower_inference
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.arithmetic import LARGEST_MASTER, MASTER_FRACTION_BITS
from lilliput.mcu.training.in_place import is_by_plane
from lilliput.mcu.training.scratch import scratch_bytes

# A sum is doubled before it is rescaled the quick way, and shifted by at most so many bits (ll_rescale_plain).
_LARGEST_PLAIN_SUM = 2**30
_LARGEST_PLAIN_SHIFT = 22

_RULES_C = {
    "int16": "LL_TRAIN_Q7_8",
    "int8": "LL_TRAIN_CHANCE",
    "nearest": "LL_TRAIN_NEAREST",
    "truncate": "LL_TRAIN_TRUNCATE",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingCall:
    """One call of a training kernel, as C generation writes it."""

    function: str
    params_type: str
    params: str
    """Initializer of the constant parameter struct; it names constants and, by its ``@layer@``, the layer's struct."""
    constants: tuple[ConstantTable, ...] = ()
    buffers: tuple[str | None, ...]
    """Buffers passed, in order; ``None``: a mask that nobody asks for."""
    scratch_bytes: int = 0
    exponents: tuple[str, ...] = ()
    """Gradients whose exponents are passed."""
    others: tuple[str, ...] = ()
    """C expressions passed last."""
    makes_exponent: str | None = None
    """The gradient whose exponent is returned."""
    layer: t.Layer | None = None


@dataclass(frozen=True)
class Parameters:
    """Where trained tensors lie: the words of ``ll_params`` at which their masters begin."""

    first_word: Mapping[str, int] = field(default_factory=dict)

    def address(self, name: str | None, c_type: str) -> str:
        """As a C expression."""
        return "NULL" if name is None else f"({c_type} *)(ll_params + {self.first_word[name]})"


def lower(op: t.Op, program: t.Program, symbol: str) -> TrainingCall:
    """The kernel call of an operation after all passes.

    Args:
        symbol: a C identifier of this call; its constants' names start with it.
    Raises:
        UnsupportedOpError: an operation that fusion should have merged with its neighbour, or a size beyond the kernels'.
    """
    rule = _RULES.get(type(op))
    if rule is None:
        raise UnsupportedOpError(f"no C kernel for '{op.name}' ({op.kind}) by itself; emit the program after fusion")
    return rule(op, program, symbol)


def layer_struct(
    layer: t.Layer, program: t.Program, parameters: Parameters, symbol: str
) -> tuple[str, list[ConstantTable]]:
    """Initializer of a layer's ``ll_train_layer``, and its constants."""
    out = layer.output_shape[2]
    check_sizes(layer.qop, *layer.input_shape, *layer.output_shape, *layer.kernel, *layer.stride, *layer.dilation)
    is_all_trained = bool(layer.channels) and layer.trains_all_channels
    tables = []
    if not is_all_trained:
        tables.append(ConstantTable(f"{symbol}_weights", "int8_t", layer.weight.reshape(-1)))
    if layer.bias_parameter is None:
        tables.append(ConstantTable(f"{symbol}_biases", "int32_t", layer.bias))
    if layer.channels:
        tables.append(ConstantTable(f"{symbol}_selected", "uint16_t", np.array(layer.channels, dtype=np.uint16)))
    names = {table.name for table in tables}

    def named(suffix: str) -> str:
        return f"{symbol}_{suffix}" if f"{symbol}_{suffix}" in names else "NULL"

    weight, bias = (
        None if name is None else program.parameters[name] for name in (layer.weight_parameter, layer.bias_parameter)
    )
    top, left, _, _ = layer.padding
    fields: dict[str, object] = {
        "weights": named("weights"),
        "masters": parameters.address(layer.weight_parameter, "void"),
        "biases": named("biases"),
        "bias_masters": parameters.address(layer.bias_parameter, "int32_t"),
        "channels": named("selected"),
        "selected": len(layer.channels),
        "master_bytes": 0 if weight is None else weight.initial.itemsize,
        "bias_bits": 0 if bias is None else bias.fraction_bits,
        "in_zero_point": layer.input_zero_point,
    }
    fields |= dict(zip(("in_h", "in_w", "in_c"), layer.input_shape, strict=True))
    fields |= dict(zip(("out_h", "out_w", "out_c"), (*layer.output_shape[:2], out), strict=True))
    fields |= window_fields(layer.kernel, layer.stride, layer.dilation, top, left) | {"groups": layer.groups}
    return struct_c(fields), tables


# --- forward


def _conv(op: t.Conv, program: t.Program, symbol: str) -> TrainingCall:
    scaling, layer = op.scaling, op.layer
    multiplier, shift = (np.broadcast_to(each, len(layer.weight)) for each in (scaling.multiplier, scaling.shift))
    is_plain = _largest_sum(layer, program) < _LARGEST_PLAIN_SUM
    is_plain = is_plain and bool(((shift <= -1) & (shift >= -_LARGEST_PLAIN_SHIFT)).all())
    scales = np.stack([multiplier, -shift if is_plain else shift], axis=1).reshape(-1).astype(np.int32)
    fields = {
        "layer": "&@layer@",
        "scales": f"{symbol}_scales",
        "zero_point": scaling.zero_point,
        "lower": scaling.clamp.lower,
        "upper": scaling.clamp.upper,
        "is_plain": int(is_plain),
    }
    return TrainingCall(
        function="ll_train_depthwise" if is_by_plane(layer) else "ll_train_conv",
        params_type="ll_train_conv_params",
        params=struct_c(fields),
        constants=(ConstantTable(f"{symbol}_scales", "int32_t", scales),),
        buffers=(*op.inputs, op.outputs[0], _mask(op)),
        scratch_bytes=scratch_bytes(op, program),
        layer=layer,
    )


def _largest_sum(layer: t.Layer, program: t.Program) -> int:
    """Bound of the sums' magnitudes, whatever the trained numbers become."""
    magnitude = np.abs(layer.weight.astype(np.int64))
    if layer.channels:
        magnitude.reshape(-1)[layer.selection] = LARGEST_MASTER >> MASTER_FRACTION_BITS
    bias = np.abs(layer.bias.astype(np.int64))
    if layer.bias_parameter is not None:
        bias[:] = 2 ** (30 - program.parameters[layer.bias_parameter].fraction_bits)
    return int((255 * magnitude.reshape(len(bias), -1).sum(axis=1) + bias).max())


def _conv_sum(op: t.ConvSum, program: t.Program, symbol: str) -> TrainingCall:
    return _on_layer(op, program, "ll_train_conv_sum")


def _add(op: t.Add, program: t.Program, symbol: str) -> TrainingCall:
    return _masked_inference(op, program, symbol, "ll_train_add")


def _mean(op: t.Mean, program: t.Program, symbol: str) -> TrainingCall:
    return _masked_inference(op, program, symbol, "ll_train_mean")


def _masked_inference(op: t.Add | t.Mean, program: t.Program, symbol: str, function: str) -> TrainingCall:
    call = lower_inference(op.qop, program.tensors, symbol=symbol)
    return TrainingCall(
        function=function,
        params_type=call.params_type,
        params=call.params,
        buffers=(*op.inputs, op.outputs[0], _mask(op)),
    )


def _mask(op: t.Op) -> str | None:
    return op.outputs[1] if len(op.outputs) == 2 else None


def _keep(op: t.Keep, program: t.Program, symbol: str) -> TrainingCall:
    height, width, channels = op.input_shape
    check_sizes_of(op, height, width, channels)
    fields = {
        "pixels": height * width,
        "channels": channels,
        "selection": f"{symbol}_selected",
        "selected": len(op.channels),
    }
    table = ConstantTable(f"{symbol}_selected", "uint16_t", np.array(op.channels, dtype=np.uint16))
    return TrainingCall(
        function="ll_train_keep",
        params_type="ll_train_keep_params",
        params=struct_c(fields),
        constants=(table,),
        buffers=(*op.inputs, *op.outputs),
    )


def _loss(op: t.Loss, program: t.Program, symbol: str) -> TrainingCall:
    fields = {
        "classes": program.buffers[op.inputs[0]].elements,
        "multiplier": op.multiplier,
        "shift": op.shift,
        "bits": op.bits,
    }
    return TrainingCall(
        function="ll_train_loss",
        params_type="ll_train_loss_params",
        params=struct_c(fields),
        buffers=(*op.inputs, *op.outputs),
        others=("label", "&loss"),
        makes_exponent=op.outputs[0],
    )


# --- gradients of activations


def _mask_gradient(op: t.MaskGradient, program: t.Program, symbol: str) -> TrainingCall:
    return _on_gradient(op, op.inputs, "ll_train_mask_gradient", "ll_train_mask_params", _spread(op, program))


def _scale_gradient(op: t.ScaleGradient, program: t.Program, symbol: str) -> TrainingCall:
    fields = _spread(op, program) | {
        "factors": f"{symbol}_factors",
        "factor_exponent": op.factor_exponent,
        "bits": op.bits,
    }
    gradient, *masks = op.inputs
    table = ConstantTable(f"{symbol}_factors", "int32_t", op.factor)
    buffers = (gradient, masks[0] if masks else None)
    return _on_gradient(op, buffers, "ll_train_scale_gradient", "ll_train_scale_params", fields, (table,))


def _spread(op: t.MaskGradient | t.ScaleGradient, program: t.Program) -> dict[str, object]:
    """Sizes of what is made, and whether the gradient read is one pixel that stands for all."""
    made = program.buffers[op.outputs[0]]
    channels = made.shape[-1]
    pixels = made.elements // channels
    is_repeated = pixels > 1 and program.buffers[op.inputs[0]].elements == channels
    return {"pixels": pixels, "channels": channels, "is_repeated": int(is_repeated)}


def _add_gradients(op: t.AddGradients, program: t.Program, symbol: str) -> TrainingCall:
    fields = {
        "factor": array_c(list(op.factors)),
        "factor_exponent": array_c(list(op.factor_exponents)),
        "count": program.buffers[op.outputs[0]].elements,
    }
    return TrainingCall(
        function="ll_train_add_gradients",
        params_type="ll_train_sum_params",
        params=struct_c(fields),
        buffers=(*op.inputs, *op.outputs),
        exponents=op.inputs,
        makes_exponent=op.outputs[0],
    )


def _pool_dx(op: t.PoolGradient, program: t.Program, symbol: str) -> TrainingCall:
    sizes = (*op.input_shape, *op.output_shape[:2], *op.kernel, *op.stride, *op.padding[:2])
    check_sizes_of(op, *sizes)
    names = ("in_h", "in_w", "channels", "out_h", "out_w", "kernel_h", "kernel_w", "stride_h", "stride_w")
    fields: dict[str, object] = dict(zip((*names, "pad_top", "pad_left"), sizes, strict=True))
    tables = tuple(
        ConstantTable(f"{symbol}_{axis}", "uint16_t", np.array(weights, dtype=np.uint16))
        for axis, weights in (("rows", op.row_weights), ("columns", op.column_weights))
    )
    fields |= {"row_weights": f"{symbol}_rows", "column_weights": f"{symbol}_columns"}
    return _on_gradient(op, op.inputs, "ll_train_pool_dx", "ll_train_pool_params", fields, tables)


def _on_gradient(
    op: t.Op,
    inputs: tuple[str | None, ...],
    function: str,
    params_type: str,
    fields: Mapping[str, object],
    constants: tuple[ConstantTable, ...] = (),
) -> TrainingCall:
    """From one gradient, the first input, to another."""
    return TrainingCall(
        function=function,
        params_type=params_type,
        params=struct_c(fields),
        constants=constants,
        buffers=(*inputs, *op.outputs),
        exponents=op.inputs[:1],
        makes_exponent=op.outputs[0],
    )


def _conv_dx(op: t.ConvInputGradient, program: t.Program, symbol: str) -> TrainingCall:
    return _on_layer(op, program, "ll_train_depthwise_dx" if is_by_plane(op.layer) else "ll_train_conv_dx")


def _on_layer(op: t.ConvSum | t.ConvInputGradient, program: t.Program, function: str) -> TrainingCall:
    """The layer's own struct is the parameters."""
    is_gradient = isinstance(op, t.ConvInputGradient)
    return TrainingCall(
        function=function,
        params_type="ll_train_layer",
        params="@layer@",
        buffers=(*op.inputs, *op.outputs),
        scratch_bytes=scratch_bytes(op, program),
        exponents=op.inputs if is_gradient else (),
        makes_exponent=op.outputs[0] if is_gradient else None,
        layer=op.layer,
    )


# --- gradients of parameters, and steps


def _conv_dw(op: t.ConvWeightGradient, program: t.Program, symbol: str) -> TrainingCall:
    fields = {"layer": "&@layer@", "sum_shift": op.sum_shift, "is_kept": int(op.is_kept)}
    return TrainingCall(
        function="ll_train_conv_dw",
        params_type="ll_train_weight_params",
        params=struct_c(fields),
        buffers=(*op.inputs, *op.outputs),
        scratch_bytes=scratch_bytes(op, program),
        exponents=op.inputs[:1],
        makes_exponent=op.outputs[0],
        layer=op.layer,
    )


def _conv_dw_step(op: t.ConvWeightStep, program: t.Program, symbol: str) -> TrainingCall:
    fields = {"sum_shift": op.sum_shift, "is_kept": int(op.is_kept)}
    return _weights_move(op, program, symbol, "ll_train_conv_dw_step", fields)


def _weight_step(op: t.WeightStep, program: t.Program, symbol: str) -> TrainingCall:
    return _weights_move(op, program, symbol, "ll_train_weight_step", {})


def _weights_move(
    op: t.ConvWeightStep | t.WeightStep, program: t.Program, symbol: str, function: str, fields: Mapping[str, object]
) -> TrainingCall:
    common: dict[str, object] = {"layer": "&@layer@", "factors": f"{symbol}_factors", "rule": _RULES_C[op.rule]}
    return _step(op, program, symbol, function, "ll_train_weight_params", common | dict(fields))


def _bias_gradient(op: t.BiasGradient, program: t.Program, symbol: str) -> TrainingCall:
    return TrainingCall(
        function="ll_train_bias_gradient",
        params_type="ll_train_bias_params",
        params=struct_c({"layer": "&@layer@", "sum_shift": op.sum_shift}),
        buffers=(*op.inputs, *op.outputs),
        exponents=op.inputs,
        makes_exponent=op.outputs[0],
        layer=op.layer,
    )


def _bias_gradient_step(op: t.BiasGradientStep, program: t.Program, symbol: str) -> TrainingCall:
    return _biases_move(op, program, symbol, "ll_train_bias_gradient_step", {"sum_shift": op.sum_shift})


def _bias_step(op: t.BiasStep, program: t.Program, symbol: str) -> TrainingCall:
    return _biases_move(op, program, symbol, "ll_train_bias_step", {})


def _biases_move(
    op: t.BiasGradientStep | t.BiasStep, program: t.Program, symbol: str, function: str, fields: Mapping[str, object]
) -> TrainingCall:
    common: dict[str, object] = {"layer": "&@layer@", "factors": f"{symbol}_factors", "truncates": int(op.truncates)}
    return _step(op, program, symbol, function, "ll_train_bias_params", common | dict(fields))


def _step(
    op: t.ConvWeightStep | t.WeightStep | t.BiasGradientStep | t.BiasStep,
    program: t.Program,
    symbol: str,
    function: str,
    params_type: str,
    fields: Mapping[str, object],
) -> TrainingCall:
    factors = np.stack([op.factors.mantissa, op.factors.exponent], axis=1).reshape(-1).astype(np.int32)
    return TrainingCall(
        function=function,
        params_type=params_type,
        params=struct_c(fields),
        constants=(ConstantTable(f"{symbol}_factors", "int32_t", factors),),
        buffers=op.inputs,
        scratch_bytes=scratch_bytes(op, program),
        exponents=op.inputs[:1],
        others=("&ll_state",),
        layer=op.layer,
    )


def check_sizes_of(op: t.Op, *sizes: int) -> None:
    """The kernels hold sizes in 16 bits and count with signs."""
    if max(sizes) >= 2**15:
        raise UnsupportedOpError(
            f"'{op.name}' ({op.kind}) has a size of {max(sizes):,}; the kernels take up to 32,767; use smaller images"
        )


_RULES: dict[type[t.Op], Callable[[Any, t.Program, str], TrainingCall]] = {
    t.Conv: _conv,
    t.ConvSum: _conv_sum,
    t.Add: _add,
    t.Mean: _mean,
    t.Keep: _keep,
    t.Loss: _loss,
    t.MaskGradient: _mask_gradient,
    t.ScaleGradient: _scale_gradient,
    t.ConvInputGradient: _conv_dx,
    t.ConvWeightGradient: _conv_dw,
    t.BiasGradient: _bias_gradient,
    t.WeightStep: _weight_step,
    t.BiasStep: _bias_step,
    t.ConvWeightStep: _conv_dw_step,
    t.BiasGradientStep: _bias_gradient_step,
    t.AddGradients: _add_gradients,
    t.PoolGradient: _pool_dx,
}
