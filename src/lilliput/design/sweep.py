"""Many independent solves: budgets to compare, resolutions, stride patterns; on one core, all cores, or a cluster.

The engine is joblib's: ``n_jobs`` runs them on this machine; within ``joblib.parallel_config(backend="ray")`` or ``"dask"`` they run where
that backend runs things. Each solve is a pure function of its request, so every engine gives equal results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lilliput.design.design import Design
from lilliput.design.geometry import Patches
from lilliput.design.solve import solve
from lilliput.design.space import SearchSpace
from lilliput.errors import BudgetError
from lilliput.evidence import Budget


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of one ``solve``."""

    space: SearchSpace
    budget: Budget
    rho: float | int = 0.3
    alpha: Sequence[float | int] | None = None
    depth_penalty: str = "paper"
    penalty_weight: float | int = 10.0
    patches: Patches | str | None = "auto"
    image: str = "resident"
    seed: int = 0
    time_limit: float | int | None = None

    def solve(self) -> Design | BudgetError:
        """The design, or the error that says why there is none: one budget too tight must not end a sweep."""
        options: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("space", "budget")
        }
        try:
            return solve(self.space, self.budget, **options)
        except BudgetError as error:
            return error


def sweep(requests: Iterable[Request], n_jobs: int | None = None) -> tuple[Design | BudgetError, ...]:
    """Solve each request; results in their order.

    Args:
        n_jobs: processes; -1 for one a core; ``None`` is joblib's default, 1 unless ``joblib.parallel_config`` says otherwise.
    """
    from joblib import Parallel, delayed

    return tuple(Parallel(n_jobs=n_jobs)(delayed(Request.solve)(request) for request in requests))
