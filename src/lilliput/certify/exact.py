"""The exact constant of a piecewise linear network: every activation pattern that the region meets, largest bound first.

Once the gates in front of a layer are fixed, that layer's inputs are affine in x, so whether a gate can lie on one of its pieces is a
linear program, whose solution is a point inside. When every gate is fixed the Jacobian is one matrix and its norm is exact; patterns whose
CROWN bound does not exceed what was found are not entered, and cost no linear program.

Only patterns with interior points count: by Rademacher's theorem the constant is the supremum over points where the network is
differentiable, and a face has the gradients of the regions around it. A pattern is left out where its linear program is infeasible by more
than ``margin_of``, or where whole numbers prove that its interior is empty (``lilliput.certify.flatness``): many gates that meet in a
point, gates that are copies of each other, or a plane that only touches the region. One that is feasible by less than the margin without
such a proof counts for the upper bound and not for the lower one, so the upper bound stays sound.

Source: LipMIP (Jordan and Dimakis 2020, arXiv:2003.01219) for the problem; enumeration of regions as in Serra et al. 2018
(arXiv:1711.02114). Ours differs: bounds of the Jacobian prune, every split tightens the later layers, and degenerate patterns are decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lilliput.certify.checkpoint import filled, named_leaves
from lilliput.certify.domain import MOST_CUTS, MOST_INPUTS, is_empty
from lilliput.certify.flatness import Side, WholeNetwork
from lilliput.certify.frontier import CLOSED, Frontier, Tensors
from lilliput.certify.gate import Gate
from lilliput.certify.halfspace import HalfSpaces
from lilliput.certify.jacobian import JacobianBounds, bound_jacobian, joined
from lilliput.certify.network import Network
from lilliput.certify.polyhedron import Array, Planes, affine_inputs, box, crossed, deepest, margin_of
from lilliput.certify.preactivation import Preactivations, preactivations, stacked
from lilliput.certify.problem import Answer, Problem
from lilliput.certify.refining import refine
from lilliput.certify.region import Region, joined_regions
from lilliput.certify.witness import Witness, norm_at
from lilliput.errors import ConfigError

_TOGETHER = 32
"""Cells whose parts are bounded in one batch."""
_INSIDE = 1e-6
"""Slack from which a known point shows that a cell is met, without a linear program."""


def exact(problem: Problem) -> Answer:
    """Enumerate the activation patterns of each domain.

    Raises:
        ConfigError: a gate that is not piecewise linear.
    """
    network = problem.network
    if not network.is_piecewise_linear:
        name = next(step.name for step in network.gates if not step.gate.is_piecewise_linear)
        raise ConfigError(f"method='exact' needs piecewise linear gates, and '{name}' is smooth; use method='crown'")

    def begin(region: Region, rows: Tensor, masks: Preactivations, bounds: JacobianBounds, best: Witness) -> Patterns:
        return Patterns(network, region, rows, [Cell(region, torch.arange(rows.shape[1]), masks, bounds)], best)

    return refine(problem, begin, every_row=True)


@dataclass
class Cell:
    """A part of one domain for some of its rows: masks, the planes that cut it out, and a point inside if one is known."""

    region: Region
    which: Tensor
    """Numbers of the rows, (r,)."""
    masks: Preactivations
    bounds: JacobianBounds
    """Of those rows, (1, r)."""
    given: tuple[Tensor, ...] | None = None
    """For each gate, the units that a split has fixed, (1, units): there the plane itself must be met."""
    planes: Planes | None = None
    gate: int = 0
    """Gates before this one are fixed; given units of this one and earlier ones are among the planes."""
    has_given: bool = False
    """Whether those of this gate are."""
    settled: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    """Units (gate, unit) whose input is constant at a kink: whichever slope they have multiplies a gradient of 0."""
    point: Array | None = None
    is_met: bool = False


class Patterns(Frontier[Cell]):
    """The activation patterns of one domain."""

    def __init__(
        self,
        network: Network,
        region: Region,
        rows: Tensor,
        cells: list[Cell],
        best: Witness,
        *,
        largest_only: bool = False,
    ) -> None:
        """Of one domain.

        Args:
            region: the domain's.
            rows: (1, rows, outputs).
            cells: parts of the domain.
            best: what was found already; cells that cannot exceed it are not entered.
            largest_only: give up on rows that cannot exceed what was found for any row; their bounds stay above their norm.
        """
        super().__init__(best)
        self.network, self.region, self.rows, self.largest_only = network, region, rows, largest_only
        self.margin = margin_of(network)
        self.whole = WholeNetwork(network)
        for cell in cells:
            cell.planes = cell.planes or Planes.none(self.network.inputs)
            if not len(cell.planes) and cell.point is None:
                low, high = box(cell.region)
                # The middle of a box that the data's range has cut can lie outside of a ball; the centre never does.
                cell.point = (low + high) / 2 if self.region.norm == "inf" else 0 * low
                cell.is_met = True
            self._push(cell)
        self.first = cells[0]

    def is_open(self) -> bool:
        """Whether there are cells left."""
        return bool(self.heap)

    def upper(self) -> Tensor:
        """Upper bound of each row."""
        upper = self.done.clone()
        for _, _, cell in self.heap:
            upper[cell.which] = torch.maximum(upper[cell.which], cell.bounds.norm[0])
        return upper

    def _goal(self) -> Tensor:
        goal = self.best.norm[0]
        return (goal.max().expand_as(goal) if self.largest_only else goal) * (1 + CLOSED)

    def _push(self, cell: Cell) -> None:
        """Queue, or count as done where no row can exceed what was found."""
        ratio = float((cell.bounds.norm[0] / self._goal()[cell.which].clamp(min=1e-300)).max())
        if ratio <= 1:
            self._close(cell)
        else:
            self.queue(-ratio, cell)

    def _close(self, cell: Cell, rows: Tensor | slice = slice(None)) -> None:
        which = cell.which[rows]
        self.done[which] = torch.maximum(self.done[which], cell.bounds.norm[0, rows])

    def packed(self, parts: Sequence[Cell]) -> Tensors:
        """Cells of the whole domain's region, as ``exact`` makes them: what they have unlike many of is laid end to end."""
        if not parts:
            return {}
        planes = [part.planes or Planes.none(self.network.inputs) for part in parts]
        sides = [(side.gate, side.unit, side.sign) for each in planes for side in each.sides]
        at = [side.at for each in planes for side in each.sides]
        settled = [(index, *unit) for index, part in enumerate(parts) for unit in sorted(part.settled)]
        none = np.full(self.network.inputs, np.nan)
        return {
            "lengths": torch.tensor([[len(part.which), len(each)] for part, each in zip(parts, planes, strict=True)]),
            "which": torch.cat([part.which for part in parts]),
            "A": torch.from_numpy(np.concatenate([each.A for each in planes])),
            "b": torch.from_numpy(np.concatenate([each.b for each in planes])),
            "sides": torch.tensor(sides, dtype=torch.int64).reshape(-1, 3),
            "at": torch.tensor(at, dtype=torch.float64),
            "gate": torch.tensor([[part.gate, part.has_given, part.is_met] for part in parts]),
            "settled": torch.tensor(settled, dtype=torch.int64).reshape(-1, 3),
            "point": torch.from_numpy(np.stack([none if part.point is None else part.point for part in parts])),
        } | {
            **named_leaves("masks", stacked([part.masks for part in parts])),
            **named_leaves("bounds", joined([part.bounds.by_row() for part in parts])),
        }

    def unpacked(self, tensors: Tensors) -> list[Cell]:
        """The same cells."""
        masks = filled(self.first.masks, "masks", tensors, any_length=True)
        bounds = filled(self.first.bounds.by_row(), "bounds", tensors, any_length=True)
        A, b, points = (tensors[name].cpu().numpy() for name in ("A", "b", "point"))
        sides = [
            Side(gate, unit, at, sign)
            for (gate, unit, sign), at in zip(tensors["sides"].tolist(), tensors["at"].tolist(), strict=True)
        ]
        settled: list[set[tuple[int, int]]] = [set() for _ in points]
        for index, gate, unit in tensors["settled"].tolist():
            settled[index].add((gate, unit))
        cells, row, plane = [], 0, 0
        for index, (count, planes) in enumerate(tensors["lengths"].tolist()):
            rows, some = slice(row, row + count), slice(plane, plane + planes)
            gate, has_given, is_met = tensors["gate"][index].tolist()
            cells.append(
                Cell(
                    self.region,
                    tensors["which"][rows],
                    masks.take(slice(index, index + 1)),
                    bounds.take(rows).by_row(),
                    None,
                    Planes(A[some], b[some], tuple(sides[some])),
                    gate,
                    bool(has_given),
                    frozenset(settled[index]),
                    None if np.isnan(points[index]).any() else points[index],
                    bool(is_met),
                )
            )
            row, plane = row + count, plane + planes
        return cells

    def step(self, deadline: float) -> None:
        """Take the cells with the largest bounds; drop those that are not met, and split the rest."""
        cells: list[Cell] = []
        goal = self._goal()
        while self.heap and len(cells) < _TOGETHER:
            # A copy, for what is learnt of a cell must not outlast a step that is undone.
            cell = self._of_open_rows(replace(self.take()), goal)
            if cell is not None and (cell.is_met or self._meet(cell)):
                cells.append(cell)
        self._measure(cells)
        for count in {len(cell.which) for cell in cells}:
            self._split([cell for cell in cells if len(cell.which) == count])

    def _of_open_rows(self, cell: Cell, goal: Tensor) -> Cell | None:
        """The cell without the rows that cannot exceed what was found."""
        is_open = cell.bounds.norm[0] > goal[cell.which]
        if bool(is_open.all()):
            return cell
        self._close(cell, ~is_open)
        if not bool(is_open.any()):
            return None
        return replace(cell, which=cell.which[is_open], bounds=cell.bounds.take_rows(is_open))

    def _meet(self, cell: Cell) -> bool:
        """Whether the cell has an interior point, as far as is known; finds one."""
        assert cell.planes is not None
        found = deepest(cell.region, cell.planes)
        if found.slack < -self.margin:
            return False
        if found.slack <= self.margin:  # or the solver gave up on an infinite one, which whole numbers cannot help
            edges = torch.from_numpy(found.edges)
            if self.whole.is_flat(cell.region, cell.masks, cell.planes.sides, found.weights, edges):
                return False
            cell.point = None
        else:
            cell.point = found.point
        cell.is_met = True
        return True

    def _measure(self, cells: list[Cell]) -> None:
        """Norms at the cells' points, for the lower bound."""
        points = [cell.point for cell in cells if cell.point is not None]
        if not points:
            return
        y = torch.stack([torch.as_tensor(point) for point in points]).to(self.rows)
        x = self.region.nearest((self.region.centre + self.region.eps * y)[:, None])[:, 0]
        norm = norm_at(self.network, x, self.rows.expand(len(x), *self.rows.shape[1:]), self.region.norm)
        most, index = norm.max(0)
        self.best = self.best.better(Witness(most[None], x[index][None]))

    def _split(self, cells: list[Cell]) -> None:
        """Each cell's parts on the pieces of its first open gate, or the end of it where all gates are fixed."""
        together = stacked([cell.masks for cell in cells])
        slopes = together.slopes(self.network)
        scores = joined([cell.bounds for cell in cells]).area(slopes)
        chosen: list[tuple[Cell, int]] = []
        for index, cell in enumerate(cells):
            unit = self._first_open(cell, index, slopes, scores)
            if unit is None:
                if cell.is_met:
                    self._close(cell)
            elif cell.is_met:
                chosen.append((cell, unit))
            else:  # planes that were given have come in; they may leave nothing
                self._push(cell)
        parts: list[Cell] = []
        for gate in sorted({cell.gate for cell, _ in chosen}):
            same = [(cell, unit) for cell, unit in chosen if cell.gate == gate]
            parts += self._pieces(gate, [cell for cell, _ in same], torch.tensor([unit for _, unit in same]))
        if parts:
            self._bound(parts)

    def _first_open(
        self, cell: Cell, index: int, slopes: list[tuple[Tensor, Tensor]], scores: tuple[Tensor, ...]
    ) -> int | None:
        while cell.gate < len(slopes):
            if not cell.has_given:
                self._add_given(cell)
            least, greatest = slopes[cell.gate]
            is_open = least[index] < greatest[index]
            for gate, unit in cell.settled:
                if gate == cell.gate:
                    is_open = is_open & (torch.arange(len(is_open)) != unit)
            if bool(is_open.any()):
                return int(torch.where(is_open, scores[cell.gate][index].sum(0), -1.0).argmax())
            cell.gate, cell.has_given = cell.gate + 1, False
        return None

    def _add_given(self, cell: Cell) -> None:
        """Planes of the gate's units that a split has fixed; earlier gates are fixed by now."""
        cell.has_given = True
        if cell.given is None:
            return
        units = cell.given[cell.gate][0].nonzero().squeeze(1)
        if not len(units):
            return
        masks = cell.masks.take(torch.zeros(len(units), dtype=torch.long))
        inputs = affine_inputs(self.network, self.region, cell.gate, units, masks.slopes(self.network), masks)
        knots = [knot.at for knot in self.network.gates[cell.gate].gate.knots]
        assert cell.planes is not None
        for index, unit in enumerate(units.tolist()):
            lower, upper = float(masks.lower[cell.gate][0, unit]), float(masks.upper[cell.gate][0, unit])
            low = max((knot for knot in knots if knot <= lower), default=-math.inf)
            high = min((knot for knot in knots if knot >= upper), default=math.inf)
            at = low if math.isfinite(low) else high
            if not (inputs.is_noise(index, at) and self._is_constant(cell, unit, at)):
                cell.planes = cell.planes.and_also(inputs.planes(index, cell.gate, unit, low, high))
        cell.is_met = False

    def _is_constant(self, cell: Cell, unit: int, at: float) -> bool:
        # Where the network is too large for whole numbers, no proof will be built on the planes that are left out here.
        return not self.whole.is_small or self.whole.is_constant(cell.masks, Side(cell.gate, unit, at, 1))

    def _pieces(self, gate: int, cells: list[Cell], units: Tensor) -> list[Cell]:
        masks = stacked([cell.masks for cell in cells])
        inputs = affine_inputs(self.network, self.region, gate, units, masks.slopes(self.network), masks)
        kind = self.network.gates[gate].gate
        parts: list[Cell] = []
        for index, (cell, unit) in enumerate(zip(cells, units.tolist(), strict=True)):
            lower, upper = float(cell.masks.lower[gate][0, unit]), float(cell.masks.upper[gate][0, unit])
            at = next((knot.at for knot in kind.knots if lower <= knot.at <= upper), math.inf)
            if inputs.is_noise(index, at) and self._is_constant(cell, unit, at):
                self._push(replace(cell, settled=cell.settled | {(gate, unit)}))
                continue
            for low, high in pieces(kind, lower, upper):
                parts.append(self._part(cell, gate, unit, inputs.planes(index, gate, unit, low, high), low, high))
        return parts

    def _part(self, cell: Cell, gate: int, unit: int, cut: Planes, low: float, high: float) -> Cell:
        assert cell.planes is not None
        planes, point = cell.planes.and_also(cut), cell.point
        if point is not None and planes.slack(point) <= _INSIDE:
            misses = cut.A @ point + cut.b
            point = crossed(cell.region, planes, point, len(cell.planes) + int(misses.argmin()))
        masks = fixed(cell.masks, gate, torch.tensor([unit]), low, high)
        return replace(cell, masks=masks, planes=planes, point=point, is_met=point is not None)

    def _clipped(self, part: Cell) -> Region:
        """The part's region with its newest planes as half-spaces."""
        assert part.planes is not None
        if self.network.inputs > MOST_INPUTS:
            return part.region
        H = part.planes.A[::-1][:MOST_CUTS] / self.region.eps
        like = self.region.centre
        cuts = HalfSpaces.none(1, MOST_CUTS, like)
        cuts.H[0, : len(H)] = torch.from_numpy(H.copy()).to(like)
        cuts.h[0, : len(H)] = torch.from_numpy(part.planes.b[::-1][:MOST_CUTS].copy()).to(like)
        cuts.h[0, : len(H)] -= cuts.H[0, : len(H)] @ like[0]
        return replace(part.region, cuts=cuts)

    def _bound(self, parts: list[Cell]) -> None:
        """Bounds of all parts in one batch; those that masks alone show to be empty are dropped."""
        together = stacked([part.masks for part in parts])
        region = joined_regions([self._clipped(part) for part in parts])
        masks = preactivations(self.network, region, within=together)
        empty = is_empty(masks, together, self.network).tolist()
        rows = torch.stack([self.rows[0, part.which] for part in parts])
        within = joined([part.bounds for part in parts])
        bounds = bound_jacobian(self.network, masks.slopes(self.network), rows, self.region.norm, within=within)
        for index, part in enumerate(parts):
            if not empty[index]:
                here = slice(index, index + 1)
                part.masks, part.bounds = masks.take(here), bounds.take(here)
                self._push(part)


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
