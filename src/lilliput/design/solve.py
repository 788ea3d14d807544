"""A structure for a budget: the door of the room, and the choice of what runs tile by tile.

Where memory binds, schedules that run the first layers tile by tile (MCUNetV2) are judged by their relaxation, and the best few are
searched like the whole network (``search.py``), halos charged.

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165); Lin et al. 2021, MCUNetV2 (arXiv:2110.15352) for patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np

from lilliput.design.design import Design
from lilliput.design.evaluate import RESOURCES, Problem
from lilliput.design.feasibility import least_growth
from lilliput.design.geometry import Patches
from lilliput.design.score import penalty_kind, stage_weights
from lilliput.design.search import KEPT, Promise, Refusal, promise, search
from lilliput.design.space import SearchSpace
from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget

_FEW_SHAKES = 6
_GRIDS = (2, 3, 4)
_SCHEDULES_SOLVED = 3
_FAR_FROM_FITTING = 1.5
_MEMORY_BINDS_FROM = 0.95


def solve(
    space: SearchSpace,
    budget: Budget,
    *,
    rho: float | int = 0.3,
    alpha: Sequence[float | int] | None = None,
    depth_penalty: str = "paper",
    penalty_weight: float | int = 10.0,
    patches: Patches | str | None = "auto",
    image: str = "resident",
    seed: int = 0,
    time_limit: float | int | None = None,
    n_jobs: int | None = None,
) -> Design:
    """The structure of a space with the largest objective found within a budget.

    Args:
        space: what to choose from.
        budget: ceilings on ``macs`` and ``params`` as the space's counter counts them, and on what the network needs on a chip at int8:
            ``flash_bytes`` of constants, ``sram_bytes`` of activations and kernels' working memory.
        rho: largest effectiveness allowed at the end of any resolution stage; it is what keeps networks from being deep and thin.
        alpha: a weight for each resolution stage; ``None`` is 8 for the last and 1 for the others.
        depth_penalty: ``"paper"``, ``"reference"`` or ``"all"`` (see ``depth_penalty`` in ``score.py``).
        penalty_weight: of the depth penalty in the objective.
        patches: a schedule that runs the first layers tile by tile; ``None`` for none; ``"auto"`` to choose where memory binds.
        image: under patches, whether the whole input stays in memory (``"resident"``) or comes in tile by tile (``"stream"``).
        seed: of starts, roundings and shakes.
        time_limit: CPU seconds after which a search returns the best so far, if there is one; with ``patches="auto"`` there may be five.
        n_jobs: how many schedules to try at once, by joblib; ``None`` is its own default, 1 unless ``joblib.parallel_config`` says more.
    Raises:
        BudgetError: no member keeps to the budget; names what binds and the factor by which all budgets would have to grow.
        ConfigError: an option outside what is allowed.
    """
    problem = _problem(space, budget, rho, alpha, depth_penalty, penalty_weight, image)
    if time_limit is not None and time_limit <= 0:
        raise ConfigError(f"time_limit={time_limit}: must be above 0 seconds, or None")
    if patches is None or isinstance(patches, Patches):
        if patches is not None:
            space.check_patches(patches)
        return _solved(search(problem.with_patches(patches), seed, time_limit))
    if patches != "auto":
        raise ConfigError(f"patches={patches!r}: must be 'auto', None, or a Patches(grid=..., blocks=...)")
    whole = search(problem, seed, time_limit)
    sram = problem.resources[RESOURCES.index("sram_bytes")]
    if not np.isfinite(sram):
        return _solved(whole)
    if isinstance(whole, Design) and whole.needs["sram_bytes"][0] < _MEMORY_BINDS_FROM * sram:
        return whole  # patches only add work: where memory is left over they cannot help
    if isinstance(whole, Refusal) and not _fits_with_more_memory(problem):
        return _solved(whole)
    patched, seconds = _with_patches(problem, seed, time_limit, n_jobs)
    found = [whole, *patched]
    designs = [each for each in found if isinstance(each, Design)]
    if designs:
        best = max(designs, key=lambda design: design.objective)
        if best is not whole:
            designs.append(again := _solved(search(best.problem, seed, time_limit)))
            best = again if again.objective > best.objective else best
        refused = [each.cpu_seconds for each in found if isinstance(each, Refusal)]
        return replace(best, cpu_seconds=seconds + sum(refused) + sum(each.cpu_seconds for each in designs))
    return _solved(min((each for each in found if isinstance(each, Refusal)), key=lambda each: each.factor))


def _solved(found: Design | Refusal) -> Design:
    if isinstance(found, Refusal):
        raise BudgetError(found.message)
    return found


def _fits_with_more_memory(problem: Problem) -> bool:
    """Whether memory is what keeps a network from fitting: of everything else patches only need more."""
    resources = (
        inf if name == "sram_bytes" else limit for name, limit in zip(RESOURCES, problem.resources, strict=True)
    )
    return least_growth(replace(problem, resources=tuple(resources))).value <= KEPT


def _with_patches(
    problem: Problem, seed: int, time_limit: float | int | None, n_jobs: int | None
) -> tuple[list[Design | Refusal], float]:
    """The most promising schedules, solved; judged by what the relaxation says of each. With the CPU seconds of the judging."""
    from joblib import Parallel, delayed

    sides = problem.space.sides

    def promises(schedules: list[Patches]) -> dict[Patches, Promise]:
        each = Parallel(n_jobs=n_jobs)(delayed(promise)(problem.with_patches(one), seed) for one in schedules)
        return dict(zip(schedules, each, strict=True))

    grids = {
        blocks: [grid for grid in _GRIDS if grid <= sides[blocks + 1]] for blocks in range(1, problem.space.depth + 1)
    }
    # The finest tiles need the least memory: where even they are far from fitting, coarser ones need not be asked.
    known = promises([Patches(grid=each[-1], blocks=blocks) for blocks, each in grids.items() if each])
    near = [one for one, each in known.items() if each.fits or each.value > -np.log(_FAR_FROM_FITTING)]
    known |= promises([Patches(grid=grid, blocks=one.blocks) for one in near for grid in grids[one.blocks][:-1]])
    order = sorted(known, key=lambda one: (known[one].fits, known[one].value), reverse=True)
    chosen = order[: _SCHEDULES_SOLVED if order and known[order[0]].fits else 1]
    solved = Parallel(n_jobs=n_jobs)(
        delayed(search)(problem.with_patches(one), seed, time_limit, _FEW_SHAKES) for one in chosen
    )
    return solved, sum(each.cpu_seconds for each in known.values())


def _problem(
    space: SearchSpace,
    budget: Budget,
    rho: float | int,
    alpha: Sequence[float | int] | None,
    depth_penalty: str,
    penalty_weight: float | int,
    image: str,
) -> Problem:
    if not 0 < rho < np.inf:
        raise ConfigError(f"rho={rho}: must be above 0; try rho=0.3")
    if not 0 <= penalty_weight < np.inf:
        raise ConfigError(f"penalty_weight={penalty_weight}: must be at least 0; try penalty_weight=10")
    if image not in ("resident", "stream"):
        raise ConfigError(f"image={image!r}: must be resident or stream")
    ceilings = (getattr(budget, name) for name in RESOURCES)
    return Problem(
        space=space,
        resources=tuple(np.inf if ceiling is None else float(ceiling) for ceiling in ceilings),
        rho=float(rho),
        alpha=stage_weights(alpha, len(space.stage_ends)),
        depth_penalty=penalty_kind(depth_penalty),
        penalty_weight=float(penalty_weight),
        image=image,
    )
