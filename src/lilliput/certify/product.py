"""The product of the layers' norms: the oldest and loosest bound, kept as the baseline that every other one is measured against."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.certify.linear_map import LinearMap, Matrix
from lilliput.certify.network import Activation, Network
from lilliput.certify.region import DUAL, Norm
from lilliput.certify.rounding import gamma, length, spectral_norm, tiny


def product_bound(
    network: Network, rows: Float[Tensor, "domains rows outputs"], norm: Norm
) -> Float[Tensor, "domains rows"]:
    """Bound of each row's dual norm anywhere at all, from operator norms.

    Gradients are carried back exactly until the first gate; from there only their dual norm is kept. Where branches meet, norms add.
    """
    lead = rows.shape[:2]
    exact: dict[str, Tensor] = {network.output: rows.reshape(-1, *network.shapes[network.output])}
    bound: dict[str, Tensor] = {}
    missed: dict[str, Tensor] = {}
    """Where rounding counts, how far those can be from exact."""
    count = Counted(network) if network.rigorous else None
    floor = 0.0 if count is None else tiny(network.dtype)
    if count is not None:
        missed[network.output] = torch.zeros_like(exact[network.output])

    def size_of(g: Tensor, error: Tensor | None) -> Tensor:
        if error is None:
            return torch.linalg.vector_norm(g.flatten(1), ord=float(DUAL[norm]), dim=1)
        return length((g.abs() + error).flatten(1), DUAL[norm])

    known: dict[int, Tensor] = {}

    def operator_norm(linear: LinearMap) -> Tensor:
        # |W^T g| in the dual norm grows by at most the norm of W in the primal one.
        if id(linear) not in known:
            known[id(linear)] = linear.norm(norm, rows) if count is None else count.operator_norm(linear, norm, rows)
        return known[id(linear)]

    for step in reversed(network.steps):
        g, error, size = (values.pop(step.name, None) for values in (exact, missed, bound))
        if isinstance(step, Activation):
            total = _sum(None if g is None else size_of(g, error), size)
            if total is not None:
                _add(bound, step.source, total * step.gate.steepest + floor)
            continue
        for name, linear in step.terms:
            if g is not None:
                _add(exact, name, linear.transpose(g))
                if count is not None and error is not None:
                    _add(missed, name, count.error(linear, g, error))
            if size is not None:
                _add(bound, name, size * operator_norm(linear) + floor)
    g, error, size = (values.get(network.input) for values in (exact, missed, bound))
    total = _sum(None if g is None else size_of(g, error), size)
    if total is None:
        total = rows.new_zeros(lead.numel())
    return (total if count is None else total * count.growth).reshape(lead)


class Counted:
    """Rounding of the product."""

    def __init__(self, network: Network) -> None:
        self.dtype = network.dtype
        self.extra = 16 + 4 * network.terms
        self.growth = 1 + gamma(self.extra, self.dtype)
        """For the product's own multiplications and sums."""

    def error(self, linear: LinearMap, g: Tensor, error: Tensor) -> Tensor:
        """How far ``W^T g`` can be from exact, where g can be that far already."""
        roundings = linear.roundings + self.extra
        change = error + gamma(roundings, self.dtype) * (g.abs() + error)
        return linear.transpose(change, absolute=True) * self.growth + 8 * roundings * tiny(self.dtype)

    def operator_norm(self, linear: LinearMap, order: str, like: Tensor) -> Tensor:
        """At least the operator norm."""
        if order == "2" and isinstance(linear, Matrix):
            return spectral_norm(linear.weight)
        roundings = 2 * linear.roundings + 8
        return linear.norm(order, like) * (1 + gamma(roundings, self.dtype)) + (roundings * tiny(self.dtype)) ** 0.5


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _add(values: dict[str, Tensor], name: str, more: Tensor) -> None:
    values[name] = more if name not in values else values[name] + more
