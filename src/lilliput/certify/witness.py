"""Lower bounds: the norm of the Jacobian's rows at points of the region, and the point where it is largest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lilliput.certify.interval import dual_norm
from lilliput.certify.network import Activation, Network, sum_of
from lilliput.certify.preactivation import rows_per_chunk
from lilliput.certify.region import Norm, Region


@dataclass(frozen=True)
class Witness:
    """The largest norm found for each (domain, row), and where."""

    norm: Float[Tensor, "domains rows"]
    point: Float[Tensor, "domains rows inputs"]

    def better(self, other: Witness) -> Witness:
        """The larger of two, entry by entry."""
        wins = other.norm > self.norm
        return Witness(torch.where(wins, other.norm, self.norm), torch.where(wins[..., None], other.point, self.point))


def jacobian_at(
    network: Network,
    points: Float[Tensor, "points inputs"],
    rows: Float[Tensor, "points rows outputs"],
) -> tuple[Float[Tensor, "points rows inputs"], Bool[Tensor, "points rows"]]:
    """The rows' gradients at points, and whether each is one.

    A gate exactly at a kink spoils the rows whose gradient reaches it, unless its input does not change around the point: a dead unit, one
    that only dead ones feed, a max pool over ReLUs that are all off. Then its slope multiplies a gradient of 0.
    """
    lead = rows.shape[:2]
    _, before = network.run(points.reshape(-1, *network.shapes[network.input]))
    g: dict[str, Tensor] = {network.output: rows.reshape(-1, *network.shapes[network.output])}
    is_smooth = torch.ones(lead, dtype=torch.bool, device=points.device)
    moves: list[Tensor] | None = None
    for step in reversed(network.steps):
        outer = g.pop(step.name, None)
        if outer is None:
            continue
        if isinstance(step, Activation):
            z = before[step.index]
            outer = outer.reshape(*lead, -1)
            is_at_kink = step.gate.is_at_kink(z)
            if bool(is_at_kink.any()):
                moves = _moves(network, before) if moves is None else moves
                is_reached = (is_at_kink & moves[step.index])[:, None] & (outer != 0)
                is_smooth &= ~is_reached.any(-1)
            _add(g, step.source, (outer * step.gate.slope(z)[:, None]).reshape(-1, *network.shapes[step.source]))
            continue
        for name, linear in step.terms:
            _add(g, name, linear.transpose(outer))
    x = g.get(network.input)
    return (rows.new_zeros(*lead, network.inputs) if x is None else x.reshape(*lead, -1)), is_smooth


def _moves(network: Network, before: list[Tensor]) -> list[Tensor]:
    """Whether each gate's input changes along one direction in general position, (points, units)."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(network.inputs, generator=generator, dtype=torch.float64).to(before[0])
    shape = network.shapes[network.input]
    tangents = {network.input: direction.reshape(1, *shape).expand(len(before[0]), *shape)}
    moves: list[Tensor] = []
    for step in network.steps:
        if isinstance(step, Activation):
            z, dz = before[step.index], tangents[step.source]
            moves.append(dz.flatten(1) != 0)
            tangents[step.name] = (step.gate.slope(z) * dz.flatten(1)).reshape(dz.shape)
        else:
            tangents[step.name] = sum_of([linear.apply(tangents[name]) for name, linear in step.terms])
    return moves


def _add(values: dict[str, Tensor], name: str, more: Tensor) -> None:
    values[name] = more if name not in values else values[name] + more


def norm_at(network: Network, points: Tensor, rows: Tensor, norm: Norm) -> Tensor:
    """Dual norm of each row's gradient at each point, (points, rows); 0 where there is none, so that it never counts as found."""
    parts = []
    at_once = rows_per_chunk(network, rows.shape[1])
    for start in range(0, len(points), at_once):
        some = slice(start, start + at_once)
        jacobian, is_smooth = jacobian_at(network, points[some], rows[some])
        size = dual_norm(jacobian.abs(), norm, rigorous=False)
        parts.append(torch.where(is_smooth & size.isfinite(), size, 0.0))
    return torch.cat(parts)


def search(
    network: Network,
    region: Region,
    rows: Float[Tensor, "domains rows outputs"],
    *,
    samples: int = 64,
    rounds: int = 6,
    seed: int = 0,
) -> Witness:
    """Centre, random points and corners; then hill climbing from the best, with steps that shrink and coordinates thrown to the edge.

    Args:
        samples: points drawn in each domain.
        rounds: of hill climbing; in each, every (domain, row) tries a few neighbours of its best point.
        seed: of every random choice.
    """
    generator = torch.Generator().manual_seed(seed)
    domains, count, inputs = len(rows), rows.shape[1], network.inputs
    numbers = torch.arange(domains, device=rows.device)
    points = torch.cat([region.centre[None], region.draw(samples, generator)])
    each_point = rows.expand(len(points), *rows.shape).flatten(0, 1)
    found = norm_at(network, points.reshape(-1, inputs), each_point, region.norm)
    size, which = found.reshape(len(points), domains, count).max(0)
    best = Witness(size, points[which, numbers[:, None]])
    each_row = rows.reshape(-1, 1, rows.shape[-1])
    edges = Region(
        region.centre.repeat_interleave(count, 0), region.eps, region.norm,
        region.lower.repeat_interleave(count, 0), region.upper.repeat_interleave(count, 0),
    )  # fmt: skip
    tries = 4
    for step in range(rounds if network.gates and region.eps > 0 else 0):
        here = best.point.reshape(1, -1, inputs).expand(tries, -1, -1)
        corner = edges.corners(tries, generator)
        share = 0.5 ** (step + 1)
        thrown = torch.rand(here.shape, generator=generator, dtype=torch.float64).to(here.device) < share
        there = edges.nearest(torch.where(thrown, corner, here))
        size = norm_at(network, there.reshape(-1, inputs), each_row.repeat(tries, 1, 1), region.norm)
        size, which = size.reshape(tries, -1).max(0)
        point = there[which, torch.arange(len(which), device=which.device)]
        best = best.better(Witness(size.reshape(domains, count), point.reshape(domains, count, inputs)))
    return best
