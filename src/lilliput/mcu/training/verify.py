"""What a legal training program is, checked after every pass: order, shapes, and that no weight moves before its last reader."""

from __future__ import annotations

from math import prod

from lilliput.errors import GraphError
from lilliput.mcu.training import graph as t

_ROLES: dict[type[t.Op], tuple[tuple[t.Role, ...], tuple[t.Role, ...]]] = {
    t.ConvSum: (("activation",), ("sum",)),
    t.Requantize: (("sum",), ("activation", "mask")),
    t.Conv: (("activation",), ("activation", "mask")),
    t.Add: (("activation", "activation"), ("activation", "mask")),
    t.Mean: (("activation",), ("activation", "mask")),
    t.Keep: (("activation",), ("activation",)),
    t.Loss: (("sum",), ("gradient",)),
    t.MaskGradient: (("gradient", "mask"), ("gradient",)),
    t.ScaleGradient: (("gradient", "mask"), ("gradient",)),
    t.ConvInputGradient: (("gradient",), ("gradient",)),
    t.ConvWeightGradient: (("gradient", "activation"), ("parameter gradient",)),
    t.BiasGradient: (("gradient",), ("parameter gradient",)),
    t.WeightStep: (("parameter gradient",), ()),
    t.BiasStep: (("parameter gradient",), ()),
    t.ConvWeightStep: (("gradient", "activation"), ()),
    t.BiasGradientStep: (("gradient",), ()),
    t.AddGradients: (("gradient", "gradient"), ("gradient",)),
    t.PoolGradient: (("gradient",), ("gradient",)),
}
"""Roles of what an operation reads and makes; masks, always last, may be absent."""


def verify(program: t.Program) -> None:
    """Check the whole program.

    Raises:
        GraphError: the first broken rule, naming the operation. It is a fault of ours.
    """
    made = {program.input}
    moved: dict[str, str] = {}
    for op in program.ops:
        where = f"training program '{program.name}': '{op.name}' ({op.kind})"
        for name in op.inputs:
            _require(name in made and name in program.buffers, f"{where} reads '{name}' before it is made")
        for name in op.outputs:
            _require(name not in made and name in program.buffers, f"{where} makes '{name}' twice, or it has no buffer")
            made.add(name)
        for name in (*op.uses, *op.updates):
            _require(name in program.parameters, f"{where} uses '{name}', which is no parameter")
            _require(name not in moved, f"{where} uses '{name}' after '{moved.get(name)}' has moved it")
        moved.update(dict.fromkeys(op.updates, op.name))
        _verify_roles(op, program, where)
        _verify_shapes(op, program, where)
    _require(
        sum(isinstance(op, t.Loss) for op in program.ops) == 1, f"training program '{program.name}' needs one loss"
    )
    _require(program.logits in made, f"training program '{program.name}' does not make its logits")
    left = set(program.parameters) - set(moved)
    _require(not left, f"training program '{program.name}' never moves {sorted(left)}")


def _verify_roles(op: t.Op, program: t.Program, where: str) -> None:
    if isinstance(op, t.Infer):
        kinds = {program.buffers[name].role for name in (*op.inputs, *op.outputs)}
        _require(kinds == {"activation"}, f"{where} is for activations; it has {sorted(kinds)}")
        return
    for names, roles in zip((op.inputs, op.outputs), _ROLES[type(op)], strict=True):
        found = tuple(program.buffers[name].role for name in names)
        least = len(roles) - (roles[-1:] == ("mask",) and not isinstance(op, t.MaskGradient))
        _require(
            found == roles[: len(found)] and least <= len(found) <= len(roles),
            f"{where} has buffers {list(found)}; takes {list(roles)}",
        )


def _verify_shapes(op: t.Op, program: t.Program, where: str) -> None:
    elements = [program.buffers[name].elements for name in op.inputs]
    made = [program.buffers[name].elements for name in op.outputs]
    layer: t.Layer | None = getattr(op, "layer", None)
    if layer is not None:
        x, y = prod(layer.input_shape), prod(layer.output_shape)
        if isinstance(op, (t.Conv, t.ConvSum)):
            _require(elements == [x] and made[0] == y, f"{where} is {elements} -> {made}; its layer is {x} -> {y}")
        elif isinstance(op, t.ConvInputGradient):
            _require((elements, made) == ([y], [x]), f"{where} is {elements} -> {made}; its layer is {x} -> {y}")
        elif isinstance(op, t.ScaleGradient):
            _require(
                elements[0] in (y, layer.output_shape[2]) and made == [y], f"{where} is {elements} -> {made}, not {y}"
            )
        elif isinstance(op, (t.ConvWeightGradient, t.ConvWeightStep)):
            kept = x // layer.input_shape[2] * len(layer.channels)
            _require(
                elements == [y, kept if op.is_kept else x], f"{where} reads {elements}; its layer needs {y} and {kept}"
            )
    elif isinstance(op, t.AddGradients):
        _require(len({*elements, *made}) == 1, f"{where} adds {elements} to {made}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)
