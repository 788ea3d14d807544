"""The methods by name: each takes the same problem and returns the same kind of bounds. A new one is a function and a row in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.certify.interval import Interval, gradient_intervals
from lilliput.certify.jacobian import Rule, bound_jacobian
from lilliput.certify.network import Network
from lilliput.certify.preactivation import preactivations
from lilliput.certify.product import product_bound
from lilliput.certify.region import DUAL, Region
from lilliput.certify.witness import Witness


@dataclass(frozen=True)
class Problem:
    """Bound the dual norm of the rows' gradients over each domain of the region."""

    network: Network
    region: Region
    rows: Float[Tensor, "domains rows outputs"]
    alpha_steps: int = 20
    time_limit: float = 30.0
    seed: int = 0
    rigorous: bool = False


@dataclass(frozen=True)
class Answer:
    """Upper bounds for each (domain, row); a method that finds points, or works for long, says so too."""

    norm: Float[Tensor, "domains rows"]
    jacobian: Callable[[], Interval]
    """Intervals of the rows' elements, (domains, rows, n); computed when asked for."""
    status: str = "bounded"
    witness: Witness | None = None
    trace: list[tuple[float, float, float, int]] = field(default_factory=list)
    """(seconds, upper, lower, open domains), oldest first."""


def product(problem: Problem) -> Answer:
    """Product of the layers' operator norms."""
    norm = product_bound(problem.network, problem.rows, problem.region.norm)

    def jacobian() -> Interval:
        # Every dual norm is at least the largest element.
        size = norm[..., None].expand(*norm.shape, problem.network.inputs)
        return -size, size

    return Answer(norm, jacobian)


def ibp(problem: Problem) -> Answer:
    """Interval arithmetic, forward and backward (Fast-Lip's constants)."""
    known = preactivations(problem.network, problem.region, method="ibp")
    _, (lower, upper) = gradient_intervals(problem.network, known.slopes(problem.network), problem.rows)
    most = torch.maximum(lower.abs(), upper.abs())
    norm = torch.linalg.vector_norm(most, ord=float(DUAL[problem.region.norm]), dim=-1)
    return Answer(_no_more_than_product(problem, norm), lambda: (lower, upper))


def _no_more_than_product(problem: Problem, norm: Tensor) -> Tensor:
    """In l_2 the product can be the smaller one: it keeps singular values, of which element-wise bounds know nothing."""
    if problem.region.norm != "2":
        return norm
    return torch.minimum(norm, product_bound(problem.network, problem.rows, "2"))


def _propagated(rule: Rule) -> Callable[[Problem], Answer]:
    def method(problem: Problem) -> Answer:
        network, rows, norm = problem.network, problem.rows, problem.region.norm
        slopes = preactivations(network, problem.region).slopes(network)
        bounds = bound_jacobian(network, slopes, rows, norm, rule=rule)

        def jacobian() -> Interval:
            return bound_jacobian(network, slopes, rows, norm, rule=rule, within=bounds, tight_elements=True).jacobian

        return Answer(_no_more_than_product(problem, bounds.norm), jacobian)

    return method


METHODS: dict[str, Callable[[Problem], Answer]] = {
    "product": product,
    "ibp": ibp,
    "recurjac": _propagated("constant"),
    "crown": _propagated("chord"),
}
"""Name to function, loosest first."""
