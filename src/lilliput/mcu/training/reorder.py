"""Bring each step forward: directly after the gradient it needs, so that the gradient is used at once instead of kept to the end.

With many trained layers that is most of the memory of a backward pass. It is legal because ``autodiff`` writes a layer's weight gradient
after its input gradient, the last operation that must see the weights of the forward pass; data flow alone does not show that edge, so the
verifier checks it: no parameter is read after it has moved.

Source: Lin et al. 2022 (arXiv:2206.15472), section 3.3, operator reordering.
"""

from __future__ import annotations

from lilliput.mcu.training import graph as t
from lilliput.mcu.training.dead_code import with_ops


def reorder(program: t.Program) -> t.Program:
    """Each step right after the operation that makes its gradient."""
    steps = {op.inputs[0]: op for op in program.ops if op.updates}
    order: list[t.Op] = []
    for op in program.ops:
        if not op.updates:
            order.append(op)
            order.extend(steps[name] for name in op.outputs if name in steps)
    return with_ops(program, tuple(order))
