"""Interval arithmetic through the network, forward for activations and backward for gradients: the cheapest sound bounds.

An interval is a pair of tensors. Through a linear map ``W``, middle and radius go separately: ``W m`` and ``|W| r``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lilliput.certify.charges import GradientCharges, ValueCharges
from lilliput.certify.linear_map import LinearMap
from lilliput.certify.network import Activation, Affine, Network
from lilliput.certify.region import DUAL, Norm, Region
from lilliput.certify.rounding import length

Interval = tuple[Tensor, Tensor]
"""Lower and upper bounds, of one shape."""


def intersect(a: Interval, b: Interval) -> Interval:
    """What is in both. Rounding can make two true intervals miss each other by a hair; then their hull is kept, never an empty one."""
    lower, upper = torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


def through(linear: LinearMap, x: Interval) -> Interval:
    """Interval of ``W x``."""
    middle, radius = linear.apply((x[0] + x[1]) / 2), linear.apply((x[1] - x[0]) / 2, absolute=True)
    return middle - radius, middle + radius


def through_transpose(linear: LinearMap, g: Interval) -> Interval:
    """Interval of ``W^T g``."""
    middle, radius = linear.transpose((g[0] + g[1]) / 2), linear.transpose((g[1] - g[0]) / 2, absolute=True)
    return middle - radius, middle + radius


def affine_interval(step: Affine, values: dict[str, Interval], charges: ValueCharges | None = None) -> Interval:
    """Interval of an affine step's value; with charges, one that counts rounding and adds the step to them."""
    lower, upper = through(step.terms[0][1], values[step.terms[0][0]])
    for name, linear in step.terms[1:]:
        more = through(linear, values[name])
        lower, upper = lower + more[0], upper + more[1]
    value = (lower, upper) if step.bias is None else (lower + step.bias, upper + step.bias)
    return value if charges is None else charges.affine(step, values, value)


def value_interval(
    network: Network, region: Region, known: Sequence[Interval] = (), charges: ValueCharges | None = None
) -> Interval:
    """Interval of the outputs over each domain's region, (domains, outputs).

    Args:
        known: what the first gates' inputs are in, (domains, units) each.
        charges: to which the affine steps are added; where rounding counts and none are given, they serve this interval alone.
    """
    if charges is None and network.rigorous:
        charges = ValueCharges(network, region)
    shape = network.shapes[network.input]
    values: dict[str, Interval] = {network.input: (region.lower.reshape(-1, *shape), region.upper.reshape(-1, *shape))}
    for step in network.steps:
        if isinstance(step, Activation):
            lower, upper = values[step.source]
            z = known[step.index] if step.index < len(known) else (lower.flatten(1), upper.flatten(1))
            range_ = step.gate.output_range(*z)
            range_ = range_ if charges is None else charges.gate_range(step, range_)
            values[step.name] = range_[0].reshape(lower.shape), range_[1].reshape(lower.shape)
        else:
            values[step.name] = affine_interval(step, values, charges)
    lower, upper = values[network.output]
    return lower.flatten(1), upper.flatten(1)


def dual_norm(most: Tensor, norm: Norm, rigorous: bool) -> Tensor:
    """Of a row's elements, from their largest absolute values (..., n); surely no less, where that is asked for."""
    if rigorous:
        return length(most, DUAL[norm])
    if DUAL[norm] == "1":
        return most.sum(-1)  # a sixth of what vector_norm takes for it
    return torch.linalg.vector_norm(most, ord=float(DUAL[norm]), dim=-1)


def scaled(slope: Interval, g: Interval) -> Interval:
    """Interval of ``d g`` for d and g anywhere in theirs."""
    corners = [d * e for d in slope for e in g]
    least, greatest = corners[0], corners[0]
    for each in corners[1:]:
        least, greatest = torch.minimum(least, each), torch.maximum(greatest, each)
    return least, greatest


def gradient_intervals(
    network: Network,
    slopes: list[Interval],
    rows: Tensor,
    cut: Callable[[Activation, Interval], Interval] = lambda step, g: g,
    charges: GradientCharges | None = None,
) -> tuple[tuple[Interval, ...], Interval]:
    """Intervals of the gradient behind each gate, and of the Jacobian's rows.

    Args:
        slopes: range of each gate's derivative, (domains, units).
        rows: combinations of the outputs, (domains, rows, outputs).
        cut: may tighten the gradient behind a gate, (domains, rows, units), before it is used further; gates come last first.
        charges: to which the steps are added; where rounding counts and none are given, they serve these intervals alone.
    Returns:
        For each gate the gradient with respect to its value (domains, rows, units); with respect to the input (domains, rows, n).
    """
    if charges is None and network.rigorous:
        charges = GradientCharges(network, rows)
    lead = rows.shape[:2]
    flat = rows.reshape(-1, *network.shapes[network.output])
    values: dict[str, Interval] = {network.output: (flat, flat)}
    behind: dict[int, Interval] = {}
    for step in reversed(network.steps):
        g = values.pop(step.name, None)
        if isinstance(step, Activation):
            units = network.units(step.index)
            if g is None:  # nothing reads it on the way to the output
                g = (flat.new_zeros(len(flat), units),) * 2
            outer = cut(step, (g[0].reshape(*lead, units), g[1].reshape(*lead, units)))
            behind[step.index] = outer
            inner = scaled((slopes[step.index][0][:, None], slopes[step.index][1][:, None]), outer)
            if charges is not None:
                inner = charges.gate(step, slopes[step.index], outer, inner)
            shape = (len(flat), *network.shapes[step.source])
            _add(values, step.source, (inner[0].reshape(shape), inner[1].reshape(shape)))
        elif g is not None:
            for place, (name, linear) in enumerate(step.terms):
                more = through_transpose(linear, g)
                _add(values, name, more if charges is None else charges.affine(step, place, linear, g, more))
    zero = flat.new_zeros(len(flat), network.inputs)
    x = values.get(network.input, (zero, zero))
    return tuple(behind[index] for index in range(len(behind))), (x[0].reshape(*lead, -1), x[1].reshape(*lead, -1))


def _add(values: dict[str, Interval], name: str, more: Interval) -> None:
    old = values.get(name)
    values[name] = more if old is None else (old[0] + more[0], old[1] + more[1])
