"""Bounds by one linear propagation, in which the refining methods start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lilliput.certify.coupling import Coupling
from lilliput.certify.interval import Interval
from lilliput.certify.jacobian import JacobianBounds, Rule, bound_jacobian
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.product import product_bound


def propagated(rule: Rule) -> Callable[[Problem], Answer]:
    """The method of that rule."""

    def method(problem: Problem) -> Answer:
        masks = preactivations(problem.network, problem.region, method="zonotope" if rule == "zonotope" else "crown")
        return answer_from(problem, masks, rule)[0]

    return method


def answer_from(
    problem: Problem, masks: Preactivations, rule: Rule = "chord", within: JacobianBounds | None = None
) -> tuple[Answer, JacobianBounds]:
    """The answer that bounds of the gates' inputs give, and the bounds of the Jacobian that it is made of."""
    network, rows, norm = problem.network, problem.rows, problem.region.norm
    bounds = bound_jacobian(
        network, masks.slopes(network), rows, norm, rule=rule, within=within, coupling=_coupling(problem, masks, rule)
    )
    answer = Answer(no_more_than_product(problem, bounds.norm), lambda: elements(problem, masks, bounds, rule))
    return answer, bounds


def elements(problem: Problem, masks: Preactivations, bounds: JacobianBounds, rule: Rule = "chord") -> Interval:
    """Every element of the Jacobian as tight as the rule makes it, from bounds of it that hold."""
    network = problem.network
    return bound_jacobian(
        network, masks.slopes(network), problem.rows, problem.region.norm, rule=rule, within=bounds, tight_elements=True,
        coupling=_coupling(problem, masks, rule),
    ).jacobian  # fmt: skip


def _coupling(problem: Problem, masks: Preactivations, rule: Rule) -> Coupling | None:
    return Coupling.of(problem.network, problem.region, masks) if rule == "chord" else None


def no_more_than_product(problem: Problem, norm: Tensor) -> Tensor:
    """In l_2 the product can be the smaller one: it keeps singular values, of which element-wise bounds know nothing."""
    if problem.region.norm != "2":
        return norm
    return torch.minimum(norm, product_bound(problem.network, problem.rows, "2"))
