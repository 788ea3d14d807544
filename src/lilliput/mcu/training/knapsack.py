"""The best choice of biases and weights within memory, exactly: a multiple-choice knapsack whose scales are a real memory planner.

For each bias depth there is a menu: of every layer within it none, or one of some shares of its weights, each with a gain. Gains add up.
Memory does not: it is the most bytes alive at one of many points of a training step, found by planning. Two things are asked of it:

- for every point of the step a *lower bound* that is additive: room that the menu leaves, less bytes of each option taken;
- an oracle, the planner itself, that says how many bytes a whole choice is over.

Choices are looked at in the order of their gain: a node of the search has the first layers decided, and its bound is its gain plus what
knapsacks over the rest can still add: dynamic programs over the tightest points and over a weighted sum of all. The first whole choice
that the oracle accepts is therefore the best of all that it would accept. This is proved by the lower bounds alone: the oracle may be
anything that never reports fewer bytes than they do. It need be neither additive nor monotone.

Source: formulation from Lin et al. 2022 (arXiv:2206.15472), section 3.2, who search it by evolution; exact solution and its proof are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import count

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import linprog

CELLS = 4096
"""Steps of a dynamic program's byte axis. Coarser cells loosen the bound, never the result."""
MOST_TABLES = 2
"""Points of a menu that get a dynamic program of their own, beside the one of them all; each rules nodes out."""
MOST_NODES = 50_000
"""Partial choices that are looked at before the search settles for a good one, and says so."""
BEAM_WIDTH = 64
"""Partial choices that are kept at each layer by the search for a good one."""


@dataclass(frozen=True, eq=False)
class Menu:
    """All that may be chosen under one bias depth."""

    depth: int
    gain: float
    """Of the biases."""
    room_bytes: Int64[np.ndarray, " point"]
    """What the limit leaves at each point at most, whatever the options. Points may be bytes of several memories."""
    gains: tuple[Float64[np.ndarray, " option"], ...]
    """For each layer the gain of each option; option 0 is to leave its weights alone, for 0."""
    option_bytes: tuple[Int64[np.ndarray, "option point"], ...]
    """For each layer and option the bytes it adds at each point, at least; option 0 adds none."""

    def left_bytes(self, options: Sequence[int]) -> Int64[np.ndarray, " point"]:
        """What a whole choice leaves at each point at most; below 0 it cannot fit."""
        chosen = (table[option] for table, option in zip(self.option_bytes, options, strict=True))
        return self.room_bytes - sum(chosen, np.zeros_like(self.room_bytes))

    def total_gain(self, options: Sequence[int]) -> float:
        """Of a whole choice."""
        return self.gain + sum(float(table[option]) for table, option in zip(self.gains, options, strict=True))


@dataclass(frozen=True)
class Choice:
    """A menu and one option for each of its layers."""

    menu: int
    """Index among the menus."""
    options: tuple[int, ...]


@dataclass(frozen=True)
class Solution:
    """The choice found, and how good any other could be."""

    choice: Choice
    gain: float
    gain_bound: float
    """No choice that the oracle accepts has a larger gain."""
    planned: int
    """Whole choices that were given to the oracle."""

    @property
    def is_optimal(self) -> bool:
        """Whether that is proved."""
        return self.gain >= self.gain_bound


def solve(
    menus: Sequence[Menu],
    excess_bytes: Callable[[Choice], int],
    *,
    most_planned: int = 200,
    most_nodes: int = MOST_NODES,
) -> Solution | None:
    """The choice with the largest gain among those that the oracle accepts.

    Args:
        menus: in any order; one choice is made from one of them.
        excess_bytes: the oracle: how many bytes a choice is over; 0 or less accepts it. Never accepts what the lower bounds refuse.
        most_planned: the oracle is asked about so many choices in the order of their gain; after that room is lowered by what the
            last one was over, until one is accepted, and the bound says what may have been missed.
        most_nodes: partial choices are looked at so many times, likewise.
    Returns:
        None where no choice is accepted.
    """
    search = _Search(menus, most_nodes)
    planned, over = 0, 0
    for choice, gain in search.in_order_of_gain():
        planned += 1
        over = excess_bytes(choice)
        if over <= 0:
            return Solution(choice, gain, gain, planned)
        if planned >= most_planned:
            break
    if search.is_exhausted:
        return None
    return _good_one(menus, search, excess_bytes, over, planned)


def _good_one(
    menus: Sequence[Menu], search: _Search, excess_bytes: Callable[[Choice], int], over: int, planned: int
) -> Solution | None:
    """A choice that the oracle accepts, by lowering the room until it does; at worst the best of the biases alone."""
    margin = 0
    while True:
        margin += max(over, 1)
        found = _Search(menus, 0, margin).beam()
        if found is None:
            break
        choice, planned = found, planned + 1
        over = excess_bytes(choice)
        if over <= 0:
            gain = menus[choice.menu].total_gain(choice.options)
            return Solution(choice, gain, max(search.bound, gain), planned)
    for index in sorted(range(len(menus)), key=lambda index: -menus[index].gain):
        choice, planned = Choice(index, (0,) * len(menus[index].gains)), planned + 1
        if excess_bytes(choice) <= 0:
            return Solution(choice, menus[index].gain, max(search.bound, menus[index].gain), planned)
    return None


Partial = tuple[float, tuple[int, ...], float, Int64[np.ndarray, " point"]]
"""Bound of all completions, options of the first layers in the order of decision, their gain, bytes left at each point."""


_Table = tuple[Float64[np.ndarray, " point"], float, Float64[np.ndarray, "level cell"]]
"""Weights of points, weighted bytes a cell, and the most gain that layers from a level on add within so many cells."""


class _Search:
    """Best first over partial choices of all menus at once."""

    def __init__(self, menus: Sequence[Menu], most_nodes: int, margin_bytes: int = 0) -> None:
        ready = (_Open(index, menu, margin_bytes) for index, menu in enumerate(menus))
        self.open = [menu for menu in ready if not menu.is_empty]
        self.most_nodes = most_nodes
        self.bound = -np.inf
        """No choice that has not been handed out has a larger gain."""
        self.is_exhausted = False

    def in_order_of_gain(self) -> Iterator[tuple[Choice, float]]:
        """Whole choices with their gains, largest first, of those that the lower bounds allow."""
        serial = count()
        heap: list[tuple[float, int, int, _Open, tuple[int, ...], float, Int64[np.ndarray, " point"]]] = []
        for menu in self.open:
            bound, taken, gain, room = menu.start
            heappush(heap, (-bound, 0, next(serial), menu, taken, gain, room))
        for _ in range(self.most_nodes):
            if not heap:
                self.is_exhausted, self.bound = True, -np.inf
                return
            negative, _, _, menu, taken, gain, room = heappop(heap)
            self.bound = -negative
            if len(taken) == len(menu.order):
                yield menu.choice(taken), gain
                continue
            for bound, longer, total, left in menu.extended(taken, gain, room):
                # Longer ones first among equals: a whole choice is reached without widening.
                heappush(heap, (-bound, -len(longer), next(serial), menu, longer, total, left))

    def beam(self) -> Choice | None:
        """A good choice that the lower bounds allow: at each layer the partial choices with the largest bounds go on."""
        best, best_gain = None, -np.inf
        for menu in sorted(self.open, key=lambda menu: -menu.start[0]):
            if menu.start[0] <= best_gain:
                break
            front = [menu.start]
            for _ in menu.order:
                longer = [each for _, taken, gain, room in front for each in menu.extended(taken, gain, room)]
                front = sorted(longer, key=lambda each: (-each[0], each[1]))[:BEAM_WIDTH]
            if front[0][2] > best_gain:
                best, best_gain = menu.choice(front[0][1]), front[0][2]
        return best


class _Open:
    """A menu made ready: points that can rule anything out, layers in the order of decision, tables for bounds."""

    def __init__(self, index: int, menu: Menu, margin_bytes: int) -> None:
        self.index, self.menu = index, menu
        room = menu.room_bytes - margin_bytes
        self.is_empty = bool((room < 0).any())
        points = _binding_points(room, menu.option_bytes)
        self.room = room[points]
        self.option_bytes = [table[:, points] for table in menu.option_bytes]
        # Layers with most at stake first: bounds part early.
        self.order = sorted(range(len(menu.gains)), key=lambda layer: -float(menu.gains[layer].max()))

    @cached_property
    def start(self) -> Partial:
        """Nothing decided."""
        return self.bound(0, self.menu.gain, self.room), (), self.menu.gain, self.room

    def extended(self, taken: tuple[int, ...], gain: float, room: Int64[np.ndarray, " point"]) -> Iterator[Partial]:
        """With each option of the next layer that leaves no point below zero.

        Also with those that gain nothing: the oracle may accept a choice and refuse the one that has less.
        """
        layer = self.order[len(taken)]
        for option in range(len(self.menu.gains[layer])):
            left = room - self.option_bytes[layer][option]
            if (left >= 0).all():
                total = gain + float(self.menu.gains[layer][option])
                yield self.bound(len(taken) + 1, total, left), (*taken, option), total, left

    @cached_property
    def tables(self) -> list[_Table]:
        """Of the tightest points, and of the mix of all that is hardest to satisfy."""
        mixes = [np.eye(len(self.room))[point] for point in range(min(MOST_TABLES, len(self.room)))]
        if len(self.room) > 1:
            mixes.append(self._hardest_mix())
        return [self._table(mix) for mix in mixes]

    def _hardest_mix(self) -> Float64[np.ndarray, " point"]:
        """Weights of points by which their weighted sum alone bounds the gain as all of them do, if options could be taken in part.

        They are the dual prices of the linear program.
        """
        gains = np.concatenate([table[1:] for table in self.menu.gains])
        of_points = np.concatenate([table[1:] for table in self.option_bytes]).T
        layers = np.repeat(np.arange(len(self.order)), [len(table) - 1 for table in self.menu.gains])
        of_layers = layers == np.arange(len(self.order))[:, None]
        unit = np.maximum(self.room, 1)  # so that the solver sees numbers near 1
        program = linprog(
            -gains,
            A_ub=np.concatenate([of_points / unit[:, None], of_layers]),
            b_ub=np.concatenate([self.room / unit, np.ones(len(self.order))]),
            bounds=(0, None),
        )
        # Whatever the weights, the bound holds; so a solver that gives up costs time alone.
        prices = np.maximum(-program.ineqlin.marginals[: len(unit)], 0) if program.status == 0 else np.ones(len(unit))
        return (prices if prices.any() else np.ones(len(unit))) / unit

    def _table(self, mix: Float64[np.ndarray, " point"]) -> _Table:
        """A knapsack over a weighted sum of points."""
        cell = max(float(mix @ self.room) / CELLS, 1e-12)
        cells = CELLS + 1
        table = np.zeros((len(self.order) + 1, cells))
        for level in range(len(self.order) - 1, -1, -1):
            layer = self.order[level]
            for option in range(len(self.menu.gains[layer])):
                # Rounded down: what truly fits also fits in cells.
                weight = int(mix @ self.option_bytes[layer][option] / cell)
                if weight < cells:
                    reached = table[level + 1, : cells - weight] + self.menu.gains[layer][option]
                    np.maximum(table[level, weight:], reached, out=table[level, weight:])
        return mix, cell, table

    def bound(self, level: int, gain: float, room: Int64[np.ndarray, " point"]) -> float:
        """No completion gains more."""
        rest = self.free[level]
        for mix, cell, table in self.tables:
            rest = min(rest, float(table[level, min(int(float(mix @ room) / cell + 1e-9), CELLS)]))
        return gain + rest

    @cached_property
    def free(self) -> list[float]:
        """What the layers from a level on would add if memory were no matter."""
        best = [max(float(self.menu.gains[layer].max()), 0.0) for layer in self.order]
        return [*np.cumsum(best[::-1])[::-1].tolist(), 0.0]

    def choice(self, taken: Sequence[int]) -> Choice:
        options = dict(zip(self.order, taken, strict=True))
        return Choice(self.index, tuple(options[layer] for layer in range(len(self.order))))


def _binding_points(
    room: Int64[np.ndarray, " point"], option_bytes: Sequence[Int64[np.ndarray, "option point"]]
) -> list[int]:
    """Points that some choice would not fit in, tightest first, without those that another is stricter than."""
    wanted = sum((table.max(axis=0) for table in option_bytes), np.zeros_like(room))
    columns = np.concatenate([np.zeros((1, len(room)), dtype=np.int64), *option_bytes])
    chosen: list[int] = []
    for point in sorted(np.flatnonzero(wanted > room).tolist(), key=lambda point: (room[point] - wanted[point], point)):
        if not any(room[p] <= room[point] and (columns[:, p] >= columns[:, point]).all() for p in chosen):
            chosen.append(point)
    return chosen
