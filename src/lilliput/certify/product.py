"""The product of the layers' norms: the oldest and loosest bound, kept as the baseline that every other one is measured against."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.certify.linear_map import LinearMap
from lilliput.certify.network import Activation, Network
from lilliput.certify.region import DUAL, Norm


def product_bound(
    network: Network, rows: Float[Tensor, "domains rows outputs"], norm: Norm
) -> Float[Tensor, "domains rows"]:
    """Bound of each row's dual norm anywhere at all, from operator norms.

    Gradients are carried back exactly until the first gate; from there only their dual norm is kept. Where branches meet, norms add.
    """
    lead = rows.shape[:2]
    exact: dict[str, Tensor] = {network.output: rows.reshape(-1, *network.shapes[network.output])}
    bound: dict[str, Tensor] = {}
    dual = float(DUAL[norm])

    def length(g: Tensor) -> Tensor:
        return torch.linalg.vector_norm(g.flatten(1), ord=dual, dim=1)

    known: dict[int, Tensor] = {}

    def operator_norm(linear: LinearMap) -> Tensor:
        # |W^T g| in the dual norm grows by at most the norm of W in the primal one.
        return known.setdefault(id(linear), linear.norm(norm, rows))

    for step in reversed(network.steps):
        g, size = exact.pop(step.name, None), bound.pop(step.name, None)
        if isinstance(step, Activation):
            total = _sum(None if g is None else length(g), size)
            if total is not None:
                _add(bound, step.source, total * step.gate.steepest)
            continue
        for name, linear in step.terms:
            if g is not None:
                _add(exact, name, linear.transpose(g))
            if size is not None:
                _add(bound, name, size * operator_norm(linear))
    g, size = exact.get(network.input), bound.get(network.input)
    total = _sum(None if g is None else length(g), size)
    return (rows.new_zeros(lead.numel()) if total is None else total).reshape(lead)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _add(values: dict[str, Tensor], name: str, more: Tensor) -> None:
    values[name] = more if name not in values else values[name] + more
