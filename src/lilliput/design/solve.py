"""A structure for a budget: relaxation, randomised rounding, exhaustive local search.

1. Phase one: the factor by which all budgets would have to grow for the relaxation to be kept. Above 1, nothing fits.
2. The relaxation, solved for patterns of kernels from several starts (``relaxation.py``).
3. The best few are rounded at random, the best roundings improved by every move of one or two variables (``local_search.py``), and the
   best of all is shaken and improved again a few times.

Equal arguments give equal results: the amount of work is fixed, and a ``time_limit`` only cuts it short.

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165) for the program; the paper's own code searches by evolution, this solver is ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from lilliput.design.evaluate import Problem, evaluate, is_feasible, merit
from lilliput.design.local_search import Moves, randomised_rounding
from lilliput.design.relaxation import Program, Relaxed
from lilliput.design.score import Score, penalty_kind, score, stage_weights
from lilliput.design.space import SearchSpace
from lilliput.design.structure import Structure
from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget

if TYPE_CHECKING:
    from torch import nn

_PATTERNS = 32
_ROUNDINGS = 4000
_ROUNDED_FROM = 6
_CLIMBS = 5
_SHAKES = 40
_TRIES = 8
_BINDING_FROM = 0.99
_NAMES = ("macs", "params")


@dataclass(frozen=True)
class Design:
    """A structure found for a budget, and how good it is."""

    structure: Structure
    space: SearchSpace
    objective: float
    relaxation: float
    """The best value of the relaxed program over all starts: a multi-start value, which no proof holds to be the optimum."""
    score: Score
    needs: dict[str, tuple[float, float]]
    """Of each budget that was given: what the structure needs, and the ceiling."""
    seed: int
    cpu_seconds: float
    is_cut_short: bool
    """Whether the time limit ended the search."""

    @property
    def gap(self) -> float:
        """How far the objective is below the relaxation, as a share of the relaxation."""
        return (self.relaxation - self.objective) / abs(self.relaxation)

    @property
    def binding(self) -> tuple[str, ...]:
        """The budgets of which at least 99 % are used."""
        return tuple(name for name, (need, ceiling) in self.needs.items() if need >= _BINDING_FROM * ceiling)

    def build(self, num_classes: int) -> nn.Module:
        """The network, with random weights."""
        from lilliput.design.network import BottleneckNet

        return BottleneckNet(self.structure, num_classes)


def solve(
    space: SearchSpace,
    budget: Budget,
    *,
    rho: float | int = 0.3,
    alpha: Sequence[float | int] | None = None,
    depth_penalty: str = "paper",
    penalty_weight: float | int = 10.0,
    seed: int = 0,
    time_limit: float | int | None = None,
) -> Design:
    """The structure of a space with the largest objective found within a budget.

    Args:
        space: what to choose from.
        budget: ceilings on ``macs`` and ``params`` as the reference counts them (see ``Score``).
        rho: largest effectiveness allowed at the end of any resolution stage; it is what keeps networks from being deep and thin.
        alpha: a weight for each resolution stage; ``None`` is 8 for the last and 1 for the others.
        depth_penalty: ``"paper"`` or ``"reference"`` (see ``depth_penalty`` in ``score.py``).
        penalty_weight: of the depth penalty in the objective.
        seed: of starts, roundings and shakes.
        time_limit: CPU seconds after which the best so far is returned, if there is one.
    Raises:
        BudgetError: no member keeps to the budget; names what binds and the factor by which all budgets would have to grow.
        ConfigError: an option outside what is allowed.
    """
    started = time.process_time()
    problem = _problem(space, budget, rho, alpha, depth_penalty, penalty_weight)
    if time_limit is not None and time_limit <= 0:
        raise ConfigError(f"time_limit={time_limit}: must be above 0 seconds, or None")
    rng = np.random.default_rng(seed)
    moves = Moves(problem)

    def is_late() -> bool:
        return time_limit is not None and time.process_time() - started > time_limit

    nearest = _phase_one(problem, rng)
    relaxed = [] if nearest.value > 1e-6 else _relaxations(problem, nearest, rng, is_late)
    pool = _roundings(problem, relaxed or [nearest], rng)
    member, best = moves.climb(pool[0])
    for start in pool[1:_CLIMBS]:
        if is_late() and is_feasible(best):
            break
        member, best = max((member, best), moves.climb(start), key=lambda pair: pair[1])
    for _ in range(_TRIES if relaxed else 0):  # the relaxation fits and no rounding does: worth a second look
        if is_feasible(best):
            break
        member, best = max((member, best), moves.climb(_redepthed(problem, member, rng)), key=lambda pair: pair[1])
    if not is_feasible(best):
        raise BudgetError(_nothing_fits(problem, member))
    for turn in range(_SHAKES):
        if is_late():
            break
        if turn % 3 == 0:  # from a relaxed optimum again: what has been found so far may lie in a poor basin
            row = relaxed[int(rng.integers(min(len(relaxed), _ROUNDED_FROM)))] if relaxed else nearest
            start = _redepthed(problem, randomised_rounding(problem, row, 1, rng)[0], rng)
        elif turn % 3 == 1:
            start = _redepthed(problem, member, rng)
        else:
            start = moves.shaken(member, rng)
        member, best = max((member, best), moves.climb(start), key=lambda pair: pair[1])
    return _design(problem, member, best, relaxed, seed, started, is_late())


def _problem(
    space: SearchSpace,
    budget: Budget,
    rho: float | int,
    alpha: Sequence[float | int] | None,
    depth_penalty: str,
    penalty_weight: float | int,
) -> Problem:
    for name in ("flash_bytes", "sram_bytes"):
        if getattr(budget, name) is not None:
            raise ConfigError(
                f"budget {name}={getattr(budget, name):,}: solve takes macs and params; try Budget(macs=..., params=...)"
            )
    if not 0 < rho < np.inf:
        raise ConfigError(f"rho={rho}: must be above 0; try rho=0.3")
    if not 0 <= penalty_weight < np.inf:
        raise ConfigError(f"penalty_weight={penalty_weight}: must be at least 0; try penalty_weight=10")
    return Problem(
        space=space,
        macs=np.inf if budget.macs is None else float(budget.macs),
        params=np.inf if budget.params is None else float(budget.params),
        rho=float(rho),
        alpha=stage_weights(alpha, len(space.stage_ends)),
        depth_penalty=penalty_kind(depth_penalty),
        penalty_weight=float(penalty_weight),
    )


def _start(program: Program, rng: np.random.Generator) -> np.ndarray:
    """A random point within the bounds; depths of at most a dozen, as deeper ones are far from most budgets."""
    low, high = program.bounds.T
    high = high.copy()
    first_depth = 1 + 2 * program.problem.space.depth
    high[first_depth:] = np.minimum(high[first_depth:], np.log(12))
    return rng.uniform(low, high)


def _phase_one(problem: Problem, rng: np.random.Generator) -> Relaxed:
    """The relaxed point that is nearest to the budgets; kernels all small, all large, or small before large."""
    allowed = problem.space.allowed_kernels
    patterns = [
        tuple(kernels[0] if index < cut else kernels[-1] for index, kernels in enumerate(allowed))
        for cut in range(len(allowed) + 1)
    ]
    best: Relaxed | None = None
    for pattern in reversed(patterns):
        program = Program(problem, pattern)
        for _ in range(2):
            found = program.least_growth(_start(program, rng))
            if found.excess < 1e-5 and (best is None or found.value < best.value):
                best = found
        if best is not None and best.value < -0.05:
            break  # room to spare: no need to know how much
    if best is None:
        raise AssertionError("the constraints of a space alone can always be kept")
    return best


def _relaxations(
    problem: Problem, nearest: Relaxed, rng: np.random.Generator, is_late: Callable[[], bool]
) -> list[Relaxed]:
    """Local optima of the relaxation, best first."""
    patterns = list(product(*problem.space.allowed_kernels))
    largest = patterns[-1]
    if len(patterns) > _PATTERNS:
        chosen = rng.choice(len(patterns), _PATTERNS - 1, replace=False)
        patterns = [patterns[index] for index in sorted(chosen)] + [largest]
    found: list[Relaxed] = []
    start = nearest.x
    for pattern in reversed(patterns):
        if is_late():
            break
        result = Program(problem, pattern).maximise(start)
        if result.excess < 1e-6:
            found.append(result)
            start = max(found, key=lambda row: row.value).x
    found.sort(key=lambda row: -row.value)
    for row in found[:3]:
        program = Program(problem, row.kernels)
        for _ in range(4):
            if is_late():
                break
            result = program.maximise(_start(program, rng))
            if result.excess < 1e-6:
                found.append(result)
    return sorted(found, key=lambda row: -row.value)


def _roundings(
    problem: Problem, relaxed: list[Relaxed], rng: np.random.Generator
) -> list[Int64[np.ndarray, "variable"]]:
    """The best roundings, best first, one of each relaxed optimum before a second of any."""
    distinct = list({row.kernels: row for row in reversed(relaxed)}.values())
    distinct = sorted(distinct, key=lambda row: -row.value)[:_ROUNDED_FROM]
    best: list[tuple[float, Int64[np.ndarray, "variable"]]] = []
    for row in distinct:
        members = randomised_rounding(problem, row, _ROUNDINGS // len(distinct), rng)
        merits = merit(problem, members)
        index = int(merits.argmax())
        best.append((float(merits[index]), members[index]))
    return [member for _, member in sorted(best, key=lambda pair: -pair[0])]


def _redepthed(problem: Problem, member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The best rounding of the relaxation with other depths nearby, held, and the member's kernels."""
    space, m = problem.space, problem.space.depth
    changes = rng.integers(-2, 3, m) * (rng.random(m) < 0.5)
    depths = np.clip(member[1 + 3 * m :] + changes, 1, np.array(space.layer_limits))
    start = np.log(np.concatenate([member[: 1 + 2 * m], depths]).astype(np.float64))
    kernels = tuple(int(kernel) for kernel in member[1 + 2 * m : 1 + 3 * m])
    relaxed = Program(problem, kernels).maximise(start, 60, fixed_layers=True)
    members = randomised_rounding(problem, relaxed, _ROUNDINGS // 8, rng)
    return members[int(merit(problem, members).argmax())]


def _design(
    problem: Problem, member: np.ndarray, best: float, relaxed: list[Relaxed], seed: int, started: float, is_late: bool
) -> Design:
    space, m = problem.space, problem.space.depth
    # The relaxation from the member itself, its kernels fixed: a start that the member's value can only rise from.
    kernels = tuple(int(kernel) for kernel in member[1 + 2 * m : 1 + 3 * m])
    start = np.log(np.delete(member, np.s_[1 + 2 * m : 1 + 3 * m]).astype(np.float64))
    polished = Program(problem, kernels).maximise(start)
    values = [row.value for row in [*relaxed, polished] if row.excess < 1e-6]
    structure = space.structure(member)
    result = score(structure, space.image_size, problem.alpha)
    needs = {
        name: (float(need), float(ceiling))
        for name, need, ceiling in (
            ("macs", result.macs, problem.macs),
            ("params", result.params, problem.params),
            ("rho", result.rho, problem.rho),
        )
        if np.isfinite(ceiling)
    }
    seconds = time.process_time() - started
    return Design(structure, space, best, max([best, *values]), result, needs, seed, seconds, is_late)


def _nothing_fits(problem: Problem, member: np.ndarray) -> str:
    """What the nearest member needs, and what that means for the budgets."""
    needs = evaluate(problem, member[None]).needs[0]
    macs, params, rho = float(needs[0]), float(needs[1]), float(needs[2:].max())
    rows = [
        ("macs", macs, problem.macs, ",.0f"),
        ("params", params, problem.params, ",.0f"),
        ("rho", rho, problem.rho, ".4g"),
    ]
    factor = max(need / ceiling for _, need, ceiling, _ in rows)
    worst = [row for row in rows if row[1] / row[2] > factor / 1.005]
    words = " and ".join(
        f"{name} ({need:{form}} needed, {ceiling:{form}} allowed)" for name, need, ceiling, form in worst
    )
    rounded_up = np.ceil(1000 * factor) / 1000
    return (
        f"no network of the space fits: binding {'is' if len(worst) == 1 else 'are'} {words}; all budgets would have to grow by a factor "
        f"of {rounded_up:.3f}; the nearest network found would then fit"
    )
