"""From real numbers to whole ones: randomised rounding, then every move of one or two variables until none is better."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Int64

from lilliput.design.evaluate import Problem, merit
from lilliput.design.relaxation import Relaxed

_CHANNEL_STEPS = (1, 2, 4, 8, 16, 32)
_LAYER_STEPS = (1, 2, 3)
_FLIP_CHANCE = 0.3


def randomised_rounding(
    problem: Problem, relaxed: Relaxed, count: int, rng: np.random.Generator
) -> Int64[np.ndarray, "member variable"]:
    """Members near a relaxed optimum: each number up or down at random in proportion to how near, a little noise in most."""
    space, m = problem.space, problem.space.depth
    noise = np.linspace(0.0, 0.05, count)[:, None] * rng.standard_normal((count, 1 + 3 * m))
    numbers = np.exp(relaxed.x + noise)
    steps = np.array([space.channel_step] * (1 + 2 * m) + [1] * m)
    numbers = steps * np.floor(numbers / steps + rng.random(numbers.shape))
    kernels = np.broadcast_to(np.array(relaxed.kernels, dtype=np.float64), (count, m))
    return space.rounded(np.concatenate([numbers[:, : 1 + 2 * m], kernels, numbers[:, 1 + 2 * m :]], axis=1))


class Moves:
    """All moves of one or two variables: channels by 1 to 32 steps, layers by 1 to 3, another kernel."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        space, m = problem.space, problem.space.depth
        self.variables = 1 + 4 * m
        widths = range(1 + 2 * m if space.block.has_mid else 1 + m)
        channel_moves = [
            (variable, sign * step * space.channel_step)
            for variable in widths
            for step in _CHANNEL_STEPS
            for sign in (1, -1)
        ]
        layer_moves = [
            (variable, sign * step)
            for variable in range(1 + 3 * m, 1 + 4 * m)
            for step in _LAYER_STEPS
            for sign in (1, -1)
        ]
        # Which kernel a flip leads to depends on the one there is: only its place in the list of the others is fixed.
        self._flips = [
            (block, other) for block, allowed in enumerate(space.allowed_kernels) for other in range(len(allowed) - 1)
        ]
        fixed = channel_moves + layer_moves
        self._where = np.array([row[0] for row in fixed] + [1 + 2 * m + block for block, _ in self._flips])
        self._fixed = np.array([row[1] for row in fixed], dtype=np.int64)
        pairs = [(a, b) for a, b in combinations(range(len(self._where)), 2) if self._where[a] != self._where[b]]
        self._pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def neighbours(self, member: Int64[np.ndarray, "variable"]) -> Int64[np.ndarray, "member variable"]:
        """Every row one move away; some are no members of the space."""
        m = self.problem.space.depth
        flips = []
        for block, other in self._flips:
            kernel = member[1 + 2 * m + block]
            flips.append([k for k in self.problem.space.allowed_kernels[block] if k != kernel][other] - kernel)
        amounts = np.concatenate([self._fixed, np.array(flips, dtype=np.int64)])
        single = np.zeros((len(amounts), self.variables), dtype=np.int64)
        single[np.arange(len(amounts)), self._where] = amounts
        return member + np.concatenate([single, single[self._pairs[:, 0]] + single[self._pairs[:, 1]]])

    def climb(
        self, member: Int64[np.ndarray, "variable"], sweeps: int = 200
    ) -> tuple[Int64[np.ndarray, "variable"], float]:
        """The best neighbour again and again until none is better; with its merit."""
        best = float(merit(self.problem, member[None])[0])
        for _ in range(sweeps):
            neighbours = self.neighbours(member)
            merits = merit(self.problem, neighbours)
            index = int(merits.argmax())
            if not merits[index] > best:
                break
            member, best = neighbours[index], float(merits[index])
        return member, best

    def shaken(self, member: Int64[np.ndarray, "variable"], rng: np.random.Generator) -> Int64[np.ndarray, "variable"]:
        """A member a few random moves away."""
        m = self.problem.space.depth
        numbers = member.astype(np.float64)
        numbers[: 1 + 2 * m] *= np.exp(0.15 * rng.standard_normal(1 + 2 * m))
        numbers[1 + 3 * m :] += rng.integers(-2, 3, m)
        for block, allowed in enumerate(self.problem.space.allowed_kernels):
            if rng.random() < _FLIP_CHANCE:
                numbers[1 + 2 * m + block] = rng.choice(allowed)
        return self.problem.space.rounded(numbers[None])[0]
