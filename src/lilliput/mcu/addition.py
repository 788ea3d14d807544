"""Parameters of a sum of two tensors: its own kernel's, and those of the layers that end in one."""

from __future__ import annotations

from lilliput.mcu.kernel_call import Tensors, array_c, struct_c
from lilliput.quantize.qgraph import Add


def add_params(op: Add, tensors: Tensors, *, first: str, count: int) -> str:
    """With the named input first: a sum commutes."""
    order = (0, 1) if op.inputs[0] == first else (1, 0)
    zero_points = [tensors[op.inputs[i]].zero_point for i in order] + [tensors[op.name].zero_point]
    multipliers, shifts = ([each[i] for i in (*order, 2)] for each in (op.multiplier, op.shift))
    # The kernel's quick way, which every addition takes whose factors are made by the specification.
    halves = [i for i in (0, 1) if (multipliers[i], shifts[i]) == (2**30, 0) and -30 <= shifts[1 - i] <= 0]
    half = halves[0] if halves and -22 <= shifts[2] <= -1 else -1
    return struct_c(
        {
            "zero_point": array_c(zero_points),
            "multiplier": array_c(multipliers),
            "shift": array_c(shifts),
            "lower": op.clamp.lower,
            "upper": op.clamp.upper,
            "half": half,
            "count": count,
        }
    )
