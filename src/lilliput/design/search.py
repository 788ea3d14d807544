"""One schedule's program, searched: relaxation, randomised rounding, exhaustive local search.

1. Phase one (``feasibility.py``): the factor by which all budgets would have to grow for the relaxation to be kept. Above 1, nothing fits.
2. The relaxation, solved for patterns of kernels from several starts (``relaxation.py``).
3. The best few are rounded at random, the best roundings improved by every move of one or two variables (``local_search.py``), and the
   best of all is shaken and improved again a few times. A space small enough is looked at whole instead (``exhaustive.py``).

Equal arguments give equal results: the amount of work is fixed, and a ``time_limit`` only cuts it short.

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165) for the program; the paper's own code searches by evolution, this search is ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Int64

from lilliput.design.design import Design
from lilliput.design.evaluate import RESOURCES, Problem, evaluate, is_feasible, merit
from lilliput.design.exhaustive import MOST_ROWS, best_of_all
from lilliput.design.feasibility import least_growth
from lilliput.design.local_search import Moves, randomised_rounding
from lilliput.design.relaxation import Program, Relaxed, variable_bounds

SHAKES = 40
KEPT = 1e-6
"""Excess in logarithms below which a constraint counts as kept."""
_PATTERNS = 32
_ROUNDINGS = 4000
_ROUNDED_FROM = 6
_CLIMBS = 5
_TRIES = 8
_PROMISE_PROGRAMS = 14


@dataclass(frozen=True)
class Refusal:
    """Why nothing fits."""

    message: str
    factor: float
    """By which all budgets would have to grow for the nearest network found."""
    cpu_seconds: float


@dataclass(frozen=True)
class Promise:
    """What the relaxation says of a schedule: whether it can be kept and its value, or how near it comes."""

    fits: bool
    value: float
    cpu_seconds: float


def search(problem: Problem, seed: int, time_limit: float | int | None, shakes: int = SHAKES) -> Design | Refusal:
    """One schedule, solved."""
    started = time.process_time()
    rng = np.random.default_rng(seed)

    def is_late() -> bool:
        return time_limit is not None and time.process_time() - started > time_limit

    nearest = least_growth(problem)
    relaxed = [] if nearest.value > KEPT else _relaxations(problem, nearest, rng, is_late)
    if problem.space.count_upper_bound() <= MOST_ROWS:
        member, best = best_of_all(problem)
        if is_feasible(best):
            return _design(problem, member, best, relaxed, seed, started, False, is_exhaustive=True)
        return _refusal(problem, member, nearest, started)
    moves = Moves(problem)
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
        return _refusal(problem, member, nearest, started)
    for turn in range(shakes):
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


def promise(problem: Problem, seed: int) -> Promise:
    """A quick judgement of one schedule."""
    started = time.process_time()
    nearest = least_growth(problem, _PROMISE_PROGRAMS)
    if nearest.value > KEPT:
        return Promise(False, -nearest.value, time.process_time() - started)
    rng = np.random.default_rng(seed)
    found = _relaxations(problem, nearest, rng, lambda: False, patterns=4, starts=0)
    return Promise(True, max((row.value for row in found), default=-np.inf), time.process_time() - started)


def _start(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """A random point within the bounds; depths of at most a dozen, as deeper ones are far from most budgets."""
    low, high = variable_bounds(problem.space).T.copy()
    first_depth = 1 + 2 * problem.space.depth
    high[first_depth:] = np.minimum(high[first_depth:], np.log(12))
    return rng.uniform(low, high)


def _relaxations(
    problem: Problem,
    nearest: Relaxed,
    rng: np.random.Generator,
    is_late: Callable[[], bool],
    patterns: int = _PATTERNS,
    starts: int = 4,
) -> list[Relaxed]:
    """Local optima of the relaxation, best first."""
    choices = list(product(*problem.space.allowed_kernels))
    largest = choices[-1]
    if len(choices) > patterns:
        chosen = rng.choice(len(choices), patterns - 1, replace=False)
        choices = [choices[index] for index in sorted(chosen)] + [largest]
    if nearest.kernels not in choices:
        choices.insert(0, nearest.kernels)  # the one that is known to fit
    found: list[Relaxed] = []
    start = nearest.x
    for pattern in reversed(choices):
        if is_late() and found:
            break
        result = Program(problem, pattern, start).maximise()
        if result.excess < KEPT:
            found.append(result)
            start = max(found, key=lambda row: row.value).x
    found.sort(key=lambda row: -row.value)
    for row in found[:3]:
        for _ in range(starts):
            if is_late():
                break
            result = Program(problem, row.kernels, _start(problem, rng)).maximise()
            if result.excess < KEPT:
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
    relaxed = Program(problem, kernels, start).maximise(60, fixed_layers=True)
    members = randomised_rounding(problem, relaxed, _ROUNDINGS // 8, rng)
    return members[int(merit(problem, members).argmax())]


def _design(
    problem: Problem,
    member: np.ndarray,
    best: float,
    relaxed: list[Relaxed],
    seed: int,
    started: float,
    is_late: bool,
    is_exhaustive: bool = False,
) -> Design:
    # The relaxation from the member itself, its kernels fixed: a start that the member's value can only rise from.
    m = problem.space.depth
    kernels = tuple(int(kernel) for kernel in member[1 + 2 * m : 1 + 3 * m])
    start = np.log(np.delete(member, np.s_[1 + 2 * m : 1 + 3 * m]).astype(np.float64))
    polished = Program(problem, kernels, start).maximise()
    values = [row.value for row in [*relaxed, polished] if row.excess < KEPT]
    return Design(
        structure=problem.space.structure(member),
        problem=problem,
        objective=best,
        relaxation=max([best, *values]),
        seed=seed,
        cpu_seconds=time.process_time() - started,
        is_cut_short=is_late,
        is_exhaustive=is_exhaustive,
    )


def _refusal(problem: Problem, member: np.ndarray, nearest: Relaxed, started: float) -> Refusal:
    """What the nearest member needs, and what that means for the budgets."""
    needs = evaluate(problem, member[None]).needs[0]
    rows = [
        (name, float(need), ceiling, ",.0f")
        for name, need, ceiling in zip(RESOURCES, needs, problem.resources, strict=False)
        if np.isfinite(ceiling)
    ]
    rows.append(("rho", float(needs[len(RESOURCES) :].max()), problem.rho, ".4g"))
    factor = max(need / ceiling for _, need, ceiling, _ in rows)
    worst = [row for row in rows if row[1] / row[2] > factor / 1.005]
    words = " and ".join(
        f"{name} ({need:{form}} needed, {ceiling:{form}} allowed)" for name, need, ceiling, form in worst
    )
    schedule = "" if problem.patches is None else f" with {problem.patches}"
    in_reals = (
        f"the relaxation needs a factor of {np.exp(nearest.least):.3f}"
        if nearest.least > KEPT
        else "the relaxation fits, whole numbers of channels and blocks do not"
    )
    message = (
        f"no network of the space fits{schedule}: binding {'is' if len(worst) == 1 else 'are'} {words}; all budgets would have to grow "
        f"by a factor of {_rounded_up(factor)}; the nearest network found would then fit ({in_reals})"
    )
    return Refusal(message, factor, time.process_time() - started)


def _rounded_up(factor: float) -> str:
    return f"{np.ceil(1000 * factor) / 1000:.3f}"
