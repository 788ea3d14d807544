"""Every structure of a tiny space: where all can be looked at, nothing is left to prove."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from lilliput.design.evaluate import Problem, merit

MOST_ROWS = 2_000_000
"""Largest space, by the bounds of its numbers, that is looked at whole: a few seconds."""
_CHUNK = 200_000


def best_of_all(problem: Problem) -> tuple[Int64[np.ndarray, "variable"], float]:
    """The member with the largest merit, and that merit."""
    space, m, step = problem.space, problem.space.depth, problem.space.channel_step
    low, high = space.stem_range
    outs = np.arange(step, space.out_max + 1, step)
    most_mid = int(space.mid_limits(outs)[1].max())
    choices = [
        np.arange(low, high + 1, step),
        *[outs] * m,
        *[np.arange(step, most_mid + 1, step)] * m,
        *[np.array(kernels) for kernels in space.allowed_kernels],
        *[np.arange(1, limit + 1) for limit in space.layer_limits],
    ]
    shape = tuple(len(each) for each in choices)
    best, best_merit = np.array([each[0] for each in choices], dtype=np.int64), -np.inf
    for first in range(0, int(np.prod(shape)), _CHUNK):
        indices = np.unravel_index(np.arange(first, min(first + _CHUNK, int(np.prod(shape)))), shape)
        members = np.stack([each[index] for each, index in zip(choices, indices, strict=True)], axis=1).astype(np.int64)
        merits = merit(problem, members)
        index = int(merits.argmax())
        if merits[index] > best_merit:
            best, best_merit = members[index], float(merits[index])
    return best, best_merit
