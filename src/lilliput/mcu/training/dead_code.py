"""Keep what the steps and the logits need; drop the rest.

Which parameters are trained was never an argument of ``autodiff``: a gradient that no step asks for is dead code, and so are the masks and
kept channels that only it would have read. Everything below the deepest trained bias goes away this way.
"""

from __future__ import annotations

from dataclasses import replace

from lilliput.mcu.training import graph as t


def remove_dead_code(program: t.Program) -> t.Program:
    """The operations from which a step, the loss or the logits can be reached; outputs beyond the first only where somebody reads them."""
    needed = {program.logits}
    kept: list[t.Op] = []
    for op in reversed(program.ops):
        if not (op.updates or isinstance(op, t.Loss) or needed.intersection(op.outputs)):
            continue
        outputs = op.outputs[:1] + tuple(name for name in op.outputs[1:] if name in needed)
        kept.append(op if outputs == op.outputs else replace(op, outputs=outputs))
        needed.update(op.inputs)
    return with_ops(program, tuple(reversed(kept)))


def with_ops(program: t.Program, ops: tuple[t.Op, ...]) -> t.Program:
    """The program with other operations, and only the buffers they name."""
    names = {program.input, *(name for op in ops for name in (*op.inputs, *op.outputs))}
    buffers = {name: buffer for name, buffer in program.buffers.items() if name in names}
    return replace(program, ops=ops, buffers=buffers)
