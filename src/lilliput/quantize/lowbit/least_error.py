"""Splits that minimise the final quantization error.

k-means minimises distances to centres, but a cluster's error comes from its *range*: a few outliers in one cluster leave it wide. Here
the boundaries themselves are moved for the squared error after quantization, as it will be stored: several starts, the k-means split
among them; merging two clusters and halving another; then each boundary in turn toward its neighbours by smaller and smaller shares of
the way. The result is never worse than k-means on any set. It costs some forty quantizations.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.quantize.lowbit.config import Granularity
from lilliput.quantize.lowbit.granularity import per_set

_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
_DEVIATIONS = (0.7, 1.0, 1.5, 2.0, 3.0)

Cuts = Float[Tensor, "set_rows groups cuts"]


def least_error_cuts(
    weight: Float[Tensor, "rows columns"],
    kmeans: Cuts,
    squared_error: Callable[[Cuts], Float[Tensor, "rows columns"]],
    granularity: Granularity,
    group_size: int,
) -> Cuts:
    """Boundaries with less squared error than any that were tried.

    Args:
        weight: what is quantized.
        kmeans: boundaries of the k-means split, one set for each that is clustered together.
        squared_error: of each weight, for given boundaries.
        granularity: of the clusters.
        group_size: of the clusters.
    """

    def of_sets(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        return per_set(values, granularity, group_size, function)

    def cost(cuts: Tensor) -> Tensor:
        return of_sets(lambda sets: sets.double().sum(dim=1, keepdim=True), squared_error(cuts))

    lower = of_sets(lambda sets: sets.amin(dim=1, keepdim=True), weight).double()
    upper = of_sets(lambda sets: sets.amax(dim=1, keepdim=True), weight).double()
    best, best_cost = kmeans, cost(kmeans)

    def consider(cuts: Tensor) -> None:
        nonlocal best, best_cost
        cuts_cost = cost(cuts)
        better = cuts_cost < best_cost
        best, best_cost = torch.where(better, cuts, best), torch.where(better, cuts_cost, best_cost)

    count = kmeans.shape[2]
    consider(lower + (upper - lower) * torch.arange(1, count + 1, device=weight.device) / (count + 1))
    mean = of_sets(lambda sets: sets.double().mean(dim=1, keepdim=True), weight)
    deviation = of_sets(lambda sets: sets.double().std(dim=1, correction=0, keepdim=True), weight)
    for width in _DEVIATIONS if count > 1 else ():
        consider(mean + deviation * torch.linspace(-width, width, count, dtype=torch.float64, device=weight.device))
    for removed in range(count):
        # Two clusters become one and another is cut in half: a step that moving one boundary at a time can't make.
        for halved in range(count):
            edges = torch.cat([lower, best[..., :removed], best[..., removed + 1 :], upper], dim=2)
            middle = (edges[..., halved : halved + 1] + edges[..., halved + 1 : halved + 2]) / 2
            consider(torch.cat([edges[..., 1 : halved + 1], middle, edges[..., halved + 1 : -1]], dim=2))
    for share in _SHARES:
        for index in range(count):
            for toward in (-1, 1):
                edges = torch.cat([lower, best, upper], dim=2)
                moved = best.clone()
                moved[..., index] += share * (edges[..., index + 1 + toward] - edges[..., index + 1])
                consider(moved)
    return best
