"""Bring each step forward to where it is legal: directly after the gradient it needs, once the last reader of the old weights has run.

The input gradient of a layer must see the weights of the forward pass, so a weight's step waits for it (an edge that data flow alone does
not show). A gradient that is used at once need not be kept: with many trained layers that is most of the memory of a backward pass.

Source: Lin et al. 2022 (arXiv:2206.15472), section 3.3, operator reordering.
"""

from __future__ import annotations

from lilliput.mcu.training import graph as t
from lilliput.mcu.training.dead_code import with_ops


def reorder(program: t.Program) -> t.Program:
    """Each step right after the operation that makes its gradient, or after the last operation that reads the parameter it moves.

    A weight gradient itself waits for its layer's input gradient, so that the two can become one operation with the step.
    """
    waiting = [op for op in program.ops if op.updates]
    last_use = {name: op.name for op in program.ops for name in op.uses}
    delayed = _behind_input_gradient(program)
    done: set[str] = {program.input}
    order: list[t.Op] = []

    def run(op: t.Op) -> None:
        order.append(op)
        done.update((op.name, *op.outputs))
        for weight_gradient in delayed.get(op.name, ()):
            run(weight_gradient)
        for step in [each for each in waiting if done.issuperset(each.inputs)]:
            if step in waiting and all(last_use.get(name) in (None, *done) for name in step.updates):
                waiting.remove(step)
                run(step)

    held = {op.name for ops in delayed.values() for op in ops}
    for op in program.ops:
        if not op.updates and op.name not in held:
            run(op)
    return with_ops(program, tuple(order))


def _behind_input_gradient(program: t.Program) -> dict[str, list[t.Op]]:
    """Weight gradients by the input-gradient operation that they wait for."""
    readers = {op.layer.name: op.name for op in program.ops if isinstance(op, t.ConvInputGradient)}
    found: dict[str, list[t.Op]] = {}
    for op in program.ops:
        if isinstance(op, t.ConvWeightGradient) and op.layer.name in readers:
            found.setdefault(readers[op.layer.name], []).append(op)
    return found
