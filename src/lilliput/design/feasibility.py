"""Phase one: by what factor all budgets would have to grow for the relaxation to be kept.

With depths and kernels held the program is convex, so its answer is the least there is; as long as which results are written over their
inputs is held too, and then once more with only what is certain of that. Over depths and kernels it is searched: from one block everywhere,
one more in a super block or another kernel in one, as long as that helps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lilliput.design.evaluate import Problem
from lilliput.design.relaxation import Program, Relaxed, variable_bounds

_MOST_PROGRAMS = 60
_ROOM_TO_SPARE = -0.05  # from here it does not matter how much
_HELPS = 1e-4
_REORDERED = 2


def least_growth(problem: Problem, most_programs: int = _MOST_PROGRAMS) -> Relaxed:
    """The point nearest to all budgets; its ``value`` is the logarithm of the factor, at or below 0 where they can be kept."""
    allowed = problem.space.allowed_kernels
    patterns = dict.fromkeys(
        tuple(kernels[0] if index < cut else kernels[-1] for index, kernels in enumerate(allowed))
        for cut in (0, len(allowed), *range(1, len(allowed)))
    )
    depths = np.ones(problem.space.depth)
    seen: dict[tuple[tuple[int, ...], tuple[float, ...]], Relaxed] = {}

    def grow(kernels: tuple[int, ...], layers: np.ndarray, start: np.ndarray | None) -> Relaxed:
        key = (kernels, tuple(layers))
        if key not in seen:
            x = _middle(problem) if start is None else start.copy()
            x[1 + 2 * problem.space.depth :] = np.log(layers)
            found = Program(problem, kernels, x, is_convex=True).least_growth(fixed_layers=True)
            # The order of a block's branches that was best at the start may not be at the end.
            for _ in range(_REORDERED):
                again = Program(problem, kernels, found.x, is_convex=True).least_growth(fixed_layers=True)
                if not _rank(again) < _rank(found):
                    break
                found = again
            seen[key] = found
        return seen[key]

    best = min((grow(pattern, depths, None) for pattern in patterns), key=_rank)
    while best.value > _ROOM_TO_SPARE and len(seen) < most_programs:
        layers = np.rint(np.exp(best.x[1 + 2 * problem.space.depth :]))
        neighbours = []
        for index in range(problem.space.depth):
            if len(seen) >= most_programs:
                break
            if layers[index] < problem.space.layer_limits[index]:
                deeper = layers.copy()
                deeper[index] += 1
                neighbours.append(grow(best.kernels, deeper, best.x))
            for kernel in allowed[index]:
                if kernel != best.kernels[index]:
                    kernels = (*best.kernels[:index], kernel, *best.kernels[index + 1 :])
                    neighbours.append(grow(kernels, layers, best.x))
        found = min(neighbours, key=_rank, default=best)
        if not found.value < best.value - _HELPS:
            break
        best = found
    if best.value <= 0:
        return best
    outer = Program(problem, best.kernels, best.x, is_outer=True).least_growth(fixed_layers=True)
    return replace(best, least=min(best.value, outer.value))


def _rank(found: Relaxed) -> tuple[bool, float]:
    """Where the space's own constraints are not kept, the solver has failed, and the value says nothing."""
    return found.excess > 1e-5, found.value


def _middle(problem: Problem) -> np.ndarray:
    """Widths a third of the way up their ranges, in logarithms, one block everywhere."""
    m = problem.space.depth
    low, high = variable_bounds(problem.space).T
    return low + 0.3 * (high - low) * (np.arange(1 + 3 * m) <= 2 * m)
