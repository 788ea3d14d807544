"""Objective and costs of many structures of a space at once, in numpy; agrees with ``score`` row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from lilliput.design.score import MOST_VARIANCE
from lilliput.design.space import SearchSpace

MACS, PARAMS = 0, 1
"""Columns of ``Evaluation.needs``; those of rho, stage by stage, follow."""

_NEXT_TO_NOTHING = 1e-9  # where there is no ceiling the share used is 0
_FAR = 1e30
"""Below every objective."""


@dataclass(frozen=True)
class Problem:
    """What to maximise and what to keep to; ceilings of infinity where there is none."""

    space: SearchSpace
    macs: float
    params: float
    rho: float
    alpha: tuple[float, ...]
    depth_penalty: str
    penalty_weight: float

    @property
    def ceilings(self) -> Float[np.ndarray, "budget"]:
        """MACs, parameters, and rho of each stage."""
        return np.array([self.macs, self.params] + [self.rho] * len(self.alpha))

    @property
    def penalised(self) -> slice:
        """The super blocks whose depths the penalty compares."""
        return slice(1, None) if self.depth_penalty == "paper" else slice(2, None)


@dataclass(frozen=True)
class Evaluation:
    """Of each member: the objective, and what it needs of each budget."""

    objective: Float[np.ndarray, "member"]
    needs: Float[np.ndarray, "member budget"]


def evaluate(problem: Problem, members: Int64[np.ndarray, "member variable"]) -> Evaluation:
    """Objective and needs of rows of a space."""
    space, m = problem.space, problem.space.depth
    numbers = members.T.astype(np.float64)
    widths, bottlenecks = numbers[: 1 + m], numbers[1 + m : 1 + 2 * m]
    kernels, layers = numbers[1 + 2 * m : 1 + 3 * m], numbers[1 + 3 * m :]
    taps = 9 * space.channels
    area = (space.image_size // space.strides[0]) ** 2
    macs, params = area * (taps + 3) * widths[0], (taps + 2) * widths[0]
    for index in range(m):
        i, o, b, extra = widths[index], widths[index + 1], bottlenecks[index], layers[index] - 1
        stride, pixels = space.strides[index + 1], space.input_sides[index] ** 2
        middle = b * b * kernels[index] ** 2
        shortcut = i * o
        at_output = middle + 3 * b + o * (b + 3) + shortcut + 3 * o + extra * (2 * o * b + middle + 6 * b + 3 * o)
        macs = macs + pixels * (i * b + 3 * b + (i if stride == 2 else 0.0)) + pixels // stride**2 * at_output
        params = (
            params + i * b + middle + o * b + 4 * b + shortcut + 4 * o + extra * (2 * o * b + middle + 4 * b + 2 * o)
        )
    log_widths, log_inner = np.log(widths), np.log(bottlenecks) + np.log(kernels)
    sums = log_widths[:-1] + (layers - 1) * log_widths[1:] + 2 * layers * log_inner
    total = np.log(taps) + np.concatenate([np.zeros((1, len(members))), np.cumsum(sums, axis=0)])
    depth = 1 + 3 * np.concatenate([np.zeros((1, len(members))), np.cumsum(layers, axis=0)])
    ends = list(space.stage_ends)
    features = log_widths[ends] + 2 * np.log(np.array(space.stage_sides, dtype=float))[:, None]
    entropy = np.array(problem.alpha) @ (features * total[ends] / 2)
    rho = depth[ends] / np.exp(total[ends] / depth[ends])
    objective = entropy - problem.penalty_weight * _penalty(problem, layers)
    return Evaluation(objective, np.concatenate([macs[None], params[None], rho]).T)


def is_feasible(merit: float) -> bool:
    """Whether a merit is that of a member that keeps to every budget."""
    return merit > -_FAR


def merit(problem: Problem, members: Int64[np.ndarray, "member variable"]) -> Float[np.ndarray, "member"]:
    """The objective of a member that keeps to every budget; of others, far below and falling with the distance; outside the space, -inf."""
    values = np.full(len(members), -np.inf)
    legal = problem.space.contains(members)
    found = evaluate(problem, members[legal])
    excess = np.log(np.maximum(found.needs / problem.ceilings, _NEXT_TO_NOTHING)).max(axis=1)
    values[legal] = np.where(excess <= 0, found.objective, -_FAR * (1 + np.maximum(excess, 0)))
    return values


def _penalty(problem: Problem, layers: Float[np.ndarray, "block member"]) -> Float[np.ndarray, "member"]:
    compared = layers[problem.penalised]
    if not len(compared):
        return np.ones(layers.shape[1])
    spread = compared.var(axis=0)
    return np.exp(np.minimum(spread if problem.depth_penalty == "paper" else np.sqrt(spread), MOST_VARIANCE))
