"""The exact constant of a piecewise linear network: every activation pattern that the region meets, depth first.

Once the gates in front of a layer are fixed, that layer's inputs are affine in x, so whether a gate can lie on one of its pieces is a
linear program. Its largest slack also gives a point inside. When every gate is fixed the Jacobian is one matrix and its norm is exact;
branches whose CROWN bound does not exceed what was found are not entered.

Patterns are left out only when their linear program is infeasible by more than a margin. One that is feasible by less than the margin
(a face, or a solver that gives up) counts for the upper bound and not for the lower one: the upper bound stays sound, and the two differ
where a network has such faces (many gates that meet in one point).

Source: LipMIP (Jordan and Dimakis 2020, arXiv:2003.01219) for the problem; enumeration of regions as in Serra et al. 2018
(arXiv:1711.02114). Ours differs: bounds of the Jacobian for all rows prune, and every split tightens the later layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from lilliput.certify.gate import Gate
from lilliput.certify.jacobian import JacobianBounds, bound_jacobian
from lilliput.certify.network import Activation, Network
from lilliput.certify.preactivation import Preactivations, preactivations
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.propagated import answer_from
from lilliput.certify.region import Region
from lilliput.certify.witness import Witness, norm_at, search
from lilliput.errors import ConfigError

Array = NDArray[np.float64]
CLOSED = 1e-10
"""Relative difference below which a bound counts as reached."""
_CUTS = 40
"""Planes that may be laid around an l_2 ball, for one linear program."""


def margin_of(network: Network) -> float:
    """How far from feasible, in radii of the region, a linear program must be before its pattern is left out."""
    return 1e-8 if network.dtype == torch.float64 else 1e-4


def exact(problem: Problem) -> Answer:
    """Enumerate the activation patterns of each domain.

    Raises:
        ConfigError: a gate that is not piecewise linear.
    """
    network, region, rows = problem.network, problem.region, problem.rows
    if not network.is_piecewise_linear:
        name = next(step.name for step in network.gates if not step.gate.is_piecewise_linear)
        raise ConfigError(f"method='exact' needs piecewise linear gates, and '{name}' is smooth; use method='crown'")
    started = time.perf_counter()
    masks = preactivations(network, region)
    start, bounds = answer_from(problem, masks)
    if region.eps == 0 or not network.gates:
        return start
    found = search(network, region, rows, seed=problem.seed)
    upper, is_over = start.norm.clone(), False
    for domain in range(len(rows)):
        here = slice(domain, domain + 1)
        patterns = Patterns(network, region.take(here), rows[here])
        share = (problem.time_limit - (time.perf_counter() - started)) / (len(rows) - domain)
        best = Witness(found.norm[here], found.point[here])
        most, best = patterns.explore(masks.take(here), bounds.take(here), best, time.perf_counter() + share)
        is_over |= patterns.is_over
        upper[domain] = torch.minimum(upper[domain], most)
        found.norm[here], found.point[here] = best.norm, best.point
    is_closed = bool((upper <= found.norm * (1 + 10 * CLOSED)).all())
    status = "exact" if is_closed else "time_limit" if is_over else "bounded"
    trace = [(time.perf_counter() - started, float(upper.amax(1).max()), float(found.norm.amax(1).max()), 0)]
    return Answer(upper, start.jacobian, status, found, trace)


@dataclass
class _Node:
    """A part of the region: masks, the planes that cut it out, and a point inside if one is known."""

    masks: Preactivations
    bounds: JacobianBounds
    planes: tuple[Array, Array]
    """Rows A and offsets b of ``A y + b >= 0``, in radii from the centre; rows have length 1."""
    gate: int
    """Gates before this one are fixed."""
    given: Tensor
    """Units of the gate whose plane is not yet among the planes although a split fixed them, (units,)."""
    point: Array | None
    slack: float


class Patterns:
    """The activation patterns of one domain."""

    def __init__(self, network: Network, region: Region, rows: Tensor) -> None:
        self.network, self.region, self.rows = network, region, rows
        self.margin = margin_of(network)
        self.is_over = False
        self.programs = 0
        self.leaves = 0

    def explore(
        self,
        masks: Preactivations,
        bounds: JacobianBounds,
        best: Witness,
        deadline: float,
        splits: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Witness]:
        """Upper bound of each row, (rows,), and the best points; the rows' largest norm where time sufficed.

        Args:
            masks: bounds of the gates' inputs, of one domain.
            bounds: of the Jacobian under those masks.
            best: what was found already; branches that cannot exceed it are not entered.
            deadline: on ``time.perf_counter``'s clock.
            splits: for each gate, which of its units the masks fix by assumption, (1, units): there the plane itself must be met.
        """
        n = self.network.inputs
        self.splits = splits
        given = self._given(0)
        root = _Node(masks, bounds, (np.zeros((0, n)), np.zeros(0)), 0, given, np.zeros(n), 1.0)
        stack, done = [root], torch.zeros_like(best.norm[0])
        while stack:
            node = stack.pop()
            if bool((node.bounds.norm[0] <= best.norm[0] * (1 + CLOSED)).all()):
                done = torch.maximum(done, node.bounds.norm[0])
                continue
            if time.perf_counter() > deadline:
                self.is_over = True
                done = torch.stack([done, *(each.bounds.norm[0] for each in (node, *stack))]).amax(0)
                break
            children = self._children(node)
            if children is None:
                self.leaves += 1
                done = torch.maximum(done, node.bounds.norm[0])
                best = self._with_point(node, best)
            else:
                stack += sorted(children, key=lambda each: float(each.bounds.norm.max()))
        return done, best

    def _given(self, gate: int) -> Tensor:
        if self.splits is None or gate >= len(self.splits):
            return torch.zeros(0, dtype=torch.bool)
        return self.splits[gate][0]

    def _with_point(self, node: _Node, best: Witness) -> Witness:
        if node.point is None or node.slack <= self.margin:
            return best
        x = self.region.nearest(self.region.centre + self.region.eps * torch.as_tensor(node.point)[None].to(self.rows))
        norm = norm_at(self.network, x, self.rows, self.region.norm)
        return best.better(Witness(norm, x[:, None].expand(*norm.shape, -1)))

    def _children(self, node: _Node) -> list[_Node] | None:
        """The node's parts on each piece of its next gate; None where every gate is fixed."""
        slopes = node.masks.slopes(self.network)
        while node.gate < len(slopes):
            least, greatest = slopes[node.gate]
            is_open = least[0] < greatest[0]
            if bool(node.given.any()):
                units = node.given.nonzero().squeeze(1)
                cuts = self._planes(node, slopes, units, [self._interval(node, int(unit)) for unit in units])
                node.given = torch.zeros_like(node.given)
                if cuts is not None:
                    node.planes = (np.concatenate([node.planes[0], cuts[0]]), np.concatenate([node.planes[1], cuts[1]]))
                    node.point, node.slack = None, 0.0
                    if not self._is_met(node):
                        return []
            if bool(is_open.any()):
                return self._split(node, slopes, is_open)
            node.gate += 1
            node.given = self._given(node.gate)
        return None

    def _interval(self, node: _Node, unit: int) -> tuple[float, float]:
        lower, upper = float(node.masks.lower[node.gate][0, unit]), float(node.masks.upper[node.gate][0, unit])
        knots = [knot.at for knot in self.network.gates[node.gate].gate.knots]
        return (
            max((knot for knot in knots if knot <= lower), default=-math.inf),
            min((knot for knot in knots if knot >= upper), default=math.inf),
        )

    def _split(self, node: _Node, slopes: list[tuple[Tensor, Tensor]], is_open: Tensor) -> list[_Node]:
        gate = self.network.gates[node.gate].gate
        score = torch.where(is_open, node.bounds.area(slopes)[node.gate][0].sum(0), -1.0)
        unit = int(score.argmax())
        lower, upper = float(node.masks.lower[node.gate][0, unit]), float(node.masks.upper[node.gate][0, unit])
        row = torch.tensor([unit])
        parts: list[tuple[Preactivations, tuple[Array, Array], Array | None, float]] = []
        for low, high in pieces(gate, lower, upper):
            planes, point, slack = node.planes, node.point, node.slack
            cuts = self._planes(node, slopes, row, [(low, high)])
            if cuts is not None:
                if _is_face(cuts, planes):
                    continue
                planes = (np.concatenate([planes[0], cuts[0]]), np.concatenate([planes[1], cuts[1]]))
                if point is not None:
                    slack = min(slack, float((cuts[0] @ point + cuts[1]).min()))
                if point is None or slack <= 100 * self.margin:
                    trial = _Node(node.masks, node.bounds, planes, node.gate, node.given, None, 0.0)
                    if not self._is_met(trial):
                        continue
                    point, slack = trial.point, trial.slack
            parts.append((fixed(node.masks, node.gate, row, low, high), planes, point, slack))
            if cuts is None:
                break  # a constant on a knot: neither slope changes anything
        if not parts:
            return []
        together = Preactivations(
            tuple(torch.cat(each) for each in zip(*(part[0].lower for part in parts), strict=True)),
            tuple(torch.cat(each) for each in zip(*(part[0].upper for part in parts), strict=True)),
        )
        copies = torch.zeros(len(parts), dtype=torch.long)
        masks = preactivations(self.network, self.region.take(copies), within=together)
        empty = is_empty(masks, together, self.network)
        bounds = bound_jacobian(
            self.network,
            masks.slopes(self.network),
            self.rows[copies],
            self.region.norm,
            within=node.bounds.take(copies),
        )
        children = []
        for index, (_, planes, point, slack) in enumerate(parts):
            if not bool(empty[index]):
                here = slice(index, index + 1)
                children.append(_Node(masks.take(here), bounds.take(here), planes, node.gate, node.given, point, slack))
        return children

    def _planes(
        self, node: _Node, slopes: list[tuple[Tensor, Tensor]], units: Tensor, intervals: list[tuple[float, float]]
    ) -> tuple[Array, Array] | None:
        """Planes that keep units of the node's gate in their intervals; None where there are none, or no unit depends on x."""
        A, b = affine_rows(self.network, self.region, node.gate, units, slopes, node.masks)
        rows, offsets = [], []
        for a, value, (low, high) in zip(A, b, intervals, strict=True):
            length = float(np.linalg.norm(a))
            if length == 0.0 and low <= value <= high:
                continue
            length = max(length, 1e-300)
            if math.isfinite(low):
                rows.append(a / length)
                offsets.append((value - low) / length)
            if math.isfinite(high):
                rows.append(-a / length)
                offsets.append((high - value) / length)
        return (np.array(rows), np.clip(np.array(offsets), -1e6, 1e6)) if rows else None

    def _is_met(self, node: _Node) -> bool:
        """Whether some point meets the planes, as far as is known; sets the node's point and slack."""
        self.programs += 1
        slack, node.point = deepest(self.region, *node.planes)
        node.slack = slack if math.isfinite(slack) else 0.0
        return not slack < -self.margin


def _is_face(cuts: tuple[Array, Array], planes: tuple[Array, Array]) -> bool:
    """Whether a cut is the other side of a plane that is there already, as where two pools compare the same two values."""
    if not len(planes[1]):
        return False
    is_opposite = np.abs(cuts[0][:, None] + planes[0][None]).max(-1) < 1e-12
    return bool((is_opposite & (np.abs(cuts[1][:, None] + planes[1][None]) < 1e-12)).any())


def pieces(gate: Gate, lower: float, upper: float) -> Iterator[tuple[float, float]]:
    """The gate's linear pieces that meet [lower, upper], as intervals between knots."""
    edges = [-math.inf, *(knot.at for knot in gate.knots), math.inf]
    for low, high in pairwise(edges):
        if low <= upper and lower <= high and low < high:
            yield low, high


def fixed(masks: Preactivations, gate: int, units: Tensor, low: float, high: float) -> Preactivations:
    """The masks with one unit of a gate (one for each domain) kept between two knots, with no gap that float64 could tell."""
    lower, upper = list(masks.lower), list(masks.upper)
    domains = torch.arange(len(units))
    kind = torch.finfo(lower[gate].dtype)
    lower[gate], upper[gate] = lower[gate].clone(), upper[gate].clone()
    if math.isfinite(low):
        least = low + max(abs(low) * kind.eps, kind.tiny)
        lower[gate][domains, units] = lower[gate][domains, units].clamp(min=least)
    if math.isfinite(high):
        most = high - max(abs(high) * kind.eps, kind.tiny)
        upper[gate][domains, units] = upper[gate][domains, units].clamp(max=most)
    return Preactivations(tuple(lower), tuple(upper))


def is_empty(masks: Preactivations, within: Preactivations, network: Network) -> Tensor:
    """Domains (domains,) that no point lies in: bounds that miss the assumed ones by more than rounding."""
    tolerance = 1e-9 if network.dtype == torch.float64 else 1e-3
    empty = torch.zeros(len(masks), dtype=torch.bool, device=network.device)
    for lower, upper, low, high in zip(masks.lower, masks.upper, within.lower, within.upper, strict=True):
        slack = tolerance * (1 + low.abs() + high.abs())
        empty |= ((lower < low - slack) | (upper > high + slack)).any(1)
    return empty


def affine_rows(
    network: Network,
    region: Region,
    gate: int,
    units: Tensor,
    slopes: list[tuple[Tensor, Tensor]],
    masks: Preactivations,
) -> tuple[Array, Array]:
    """Some inputs of a gate as affine functions of the step from the centre, in radii: (units, n) and (units,). Earlier gates are fixed."""
    source = network.gates[gate].source
    start = region.centre.new_zeros(len(units), network.units(gate))
    start[torch.arange(len(units)), units] = 1.0
    coefficients = {source: start}
    value = start.new_zeros(len(units))
    for step in reversed(network.steps):
        A = coefficients.pop(step.name, None)
        if A is None:
            continue
        if isinstance(step, Activation):
            k = slopes[step.index][0][0]
            middle = (masks.lower[step.index] + masks.upper[step.index])[0] / 2
            value = value + A @ (step.gate.value(middle[None])[0] - k * middle)
            _add(coefficients, step.source, A * k)
            continue
        shaped = A.reshape(-1, *network.shapes[step.name])
        if step.bias is not None:
            value = value + (shaped * step.bias).flatten(1).sum(1)
        for name, linear in step.terms:
            _add(coefficients, name, linear.transpose(shaped).flatten(1))
    A = coefficients.get(network.input, start.new_zeros(len(units), network.inputs))
    value = value + A @ region.centre[0]
    return (A * region.eps).double().cpu().numpy(), value.double().cpu().numpy()


def _add(values: dict[str, Tensor], name: str, more: Tensor) -> None:
    values[name] = more if name not in values else values[name] + more


def deepest(region: Region, A: Array, b: Array) -> tuple[float, Array | None]:
    """Largest s with ``A y + b >= s`` at a y of the region (one domain; y in radii from the centre), and the y.

    An l_2 ball is approached from outside, plane by plane; a slack without a point means that the ball may not be reached. A solver that
    fails gives an infinite slack: nothing is known.
    """
    n = A.shape[1]
    centre = region.centre[0].double().cpu().numpy()
    low = (region.lower[0].double().cpu().numpy() - centre) / region.eps
    high = (region.upper[0].double().cpu().numpy() - centre) / region.eps
    extra = n if region.norm == "1" else 0
    cost = np.zeros(n + extra + 1)
    cost[-1] = -1.0
    rows = [np.hstack([-A, np.zeros((len(A), extra)), np.ones((len(A), 1))])]
    limits = [b]
    box = [*zip(low, high, strict=True), *[(0.0, 1.0)] * extra, (None, 1.0)]
    if extra:
        eye = np.eye(n)
        rows += [np.hstack([sign * eye, -eye, np.zeros((n, 1))]) for sign in (1, -1)]
        rows.append(np.hstack([np.zeros(n), np.ones(n), [0.0]])[None])
        limits += [np.zeros(2 * n), np.ones(1)]
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    slack = math.inf
    for _ in range(_CUTS if region.norm == "2" else 1):
        result = linprog(
            cost, A_ub=np.vstack(rows), b_ub=np.concatenate(limits), bounds=box, method="highs-ds", options=options
        )
        if result.status != 0 or result.x is None or not np.isfinite(result.x).all():
            return math.inf, None
        slack, y = float(result.x[-1]), result.x[:n]
        length = float(np.linalg.norm(y))
        if region.norm != "2" or length <= 1:
            return slack, y
        # The point pulled onto the ball may be good enough already.
        pulled = float((A @ y / length + b).min()) if len(A) else 1.0
        if pulled > max(0.25 * slack, 1e-6):
            return pulled, y / length
        if slack < 0:
            return slack, None
        rows.append(np.hstack([y / length, [0.0]])[None])
        limits.append(np.ones(1))
    return slack, None
