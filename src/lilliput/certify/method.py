"""The methods by name: each takes the same problem and returns the same kind of bounds. A new one is a function and a row in the table."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lilliput.certify.alpha import alpha
from lilliput.certify.bab import bab
from lilliput.certify.exact import exact
from lilliput.certify.interval import Interval, dual_norm, gradient_intervals
from lilliput.certify.preactivation import preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.product import product_bound
from lilliput.certify.propagated import no_more_than_product, propagated


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
    norm = dual_norm(most, problem.region.norm, problem.network.rigorous)
    return Answer(no_more_than_product(problem, norm), lambda: (lower, upper))


METHODS: dict[str, Callable[[Problem], Answer]] = {
    "product": product,
    "ibp": ibp,
    "recurjac": propagated("constant"),
    "zonotope": propagated("zonotope"),
    "crown": propagated("chord"),
    "alpha": alpha,
    "bab": bab,
    "exact": exact,
}
"""Name to function, loosest first; of recurjac and zonotope either may be."""

REFINING = ("bab", "exact")
"""Methods that go on until a time, and can be taken up again."""

UNCOUNTED: dict[str, str] = {
    "zonotope": "its symbols are carried in floating point, and what rounding adds to them is not charged",
    "bab": "it drops parts of the region by linear programs, which are solved in floating point",
    "exact": "it drops activation patterns by linear programs, which are solved in floating point",
}
"""Methods that cannot count rounding, and why."""

__all__ = ["METHODS", "REFINING", "UNCOUNTED", "Answer", "Problem"]
