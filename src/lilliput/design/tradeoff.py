"""What more or less of each budget would buy: the objective against one ceiling at a time, the others as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lilliput.design.design import Design
from lilliput.design.evaluate import RESOURCES
from lilliput.design.sweep import Request, sweep
from lilliput.evidence import Budget

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)


@dataclass(frozen=True)
class TradeOff:
    """Objectives along one budget."""

    name: str
    """``macs``, ``params``, ``flash_bytes``, ``sram_bytes`` or ``rho``."""
    points: tuple[tuple[float, float | None], ...]
    """Factor of the ceiling, and the objective reached; ``None`` where nothing fits."""


def trade_offs(
    design: Design,
    factors: Sequence[float] = FACTORS,
    *,
    names: Sequence[str] | None = None,
    time_limit: float | int | None = 1,
    n_jobs: int | None = None,
) -> tuple[TradeOff, ...]:
    """Solve again with each ceiling of a design changed by factors, one at a time; its patches are kept.

    Args:
        names: the budgets to change; all that have a ceiling if ``None``.
        time_limit: CPU seconds for each solve.
        n_jobs: as in ``sweep``.
    """
    given = dict(design.needs)
    chosen = [name for name in given if names is None or name in names]
    wanted = [(name, factor) for name in chosen for factor in factors]
    requests = [_request(design, name, factor, time_limit) for name, factor in wanted]
    found = sweep(requests, n_jobs=n_jobs)
    rows = {key: each.objective if isinstance(each, Design) else None for key, each in zip(wanted, found, strict=True)}
    return tuple(TradeOff(name, tuple((float(factor), rows[name, factor]) for factor in factors)) for name in chosen)


def _request(design: Design, name: str, factor: float, time_limit: float | int | None) -> Request:
    problem = design.problem
    ceilings = {key: ceiling for key, (_, ceiling) in design.needs.items()}
    ceilings[name] *= factor
    return Request(
        space=problem.space,
        budget=Budget(**{key: max(1, round(ceilings[key])) for key in RESOURCES if key in ceilings}),
        rho=ceilings["rho"],
        alpha=problem.alpha,
        depth_penalty=problem.depth_penalty,
        penalty_weight=problem.penalty_weight,
        patches=problem.patches,
        image=problem.image,
        seed=design.seed,
        time_limit=time_limit,
    )
