"""Lower bounds for ``benchmarks/certify.py``, by means of their own: torch's gradients at random points, and hill climbing."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from certify_networks import Trained

POINTS = 10_000


def sampled(trained: Trained) -> Tensor:
    """The largest l_1 gradient norm of each output that was met, by torch's own gradients: a lower bound of its constant, (outputs,)."""
    model = copy.deepcopy(trained.model).double()
    generator = torch.Generator().manual_seed(0)
    centre, eps = trained.centre.double(), trained.subject.eps

    def drawn(count: int) -> Tensor:
        unit = 2 * torch.rand((count, *centre.shape), generator=generator, dtype=torch.float64) - 1
        unit[::3] = unit[::3].sign()
        return centre + eps * unit

    best, point = _norms(model, drawn(1)), centre.expand(1, *centre.shape)
    for _ in range(POINTS // 1000):
        points = drawn(1000)
        sizes = _norms(model, points)
        top, which = sizes.max(0)
        point = torch.where(_as(top > best[0], point), points[which], point)
        best = torch.maximum(best, top[None])
    outputs, tries = best.shape[1], 8
    for step in range(60):  # coordinates thrown to a corner, fewer and fewer of them
        corners = drawn(3 * tries * outputs)[::3]
        thrown = torch.rand(corners.shape, generator=generator, dtype=torch.float64) < 0.5 ** (1 + step / 6)
        there = torch.where(thrown, corners, point.repeat(tries, *(1,) * centre.dim()))
        own = torch.arange(outputs).repeat(tries)
        sizes = _norms(model, there, own).reshape(tries, outputs)
        top, which = sizes.max(0)
        chosen = there.reshape(tries, outputs, *centre.shape)[which, torch.arange(outputs)]
        point = torch.where(_as(top > best[0], point), chosen, point)
        best = torch.maximum(best, top[None])
    return best[0]


def _as(which: Tensor, points: Tensor) -> Tensor:
    return which.reshape(-1, *(1,) * (points.dim() - 1))


def _norms(model: nn.Module, points: Tensor, own: Tensor | None = None) -> Tensor:
    """(points, outputs); with ``own``, of one output for each point, (points,)."""
    points = points.detach().requires_grad_()
    outputs = model(points)
    if own is not None:
        outputs = outputs.gather(1, own[:, None])
    sums = outputs.sum(0)
    slopes = [torch.autograd.grad(each, points, retain_graph=True)[0].flatten(1).abs().sum(1) for each in sums]
    return slopes[0] if own is not None else torch.stack(slopes, 1)
