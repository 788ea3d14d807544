"""The published way to choose what is trained: evolution over bias depth, layers and shares.

Its constants were never published; those here are ours. It is kept to compare with: ``knapsack`` finds what this approaches.

Source: Lin et al. 2022 (arXiv:2206.15472), section 3.2.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lilliput.mcu.training.knapsack import Choice, Menu

POPULATION = 64
PARENTS = 16
"""The best so many of a population breed."""
MUTATION = 0.1
"""Chance of each layer to draw a new option, and of the depth to move."""
CROSSOVER = 0.5
"""Share of children that have two parents; others are mutated copies of one."""
TRIES = 50
"""Draws for a child that fits before the smallest choice stands in."""


@dataclass(frozen=True)
class Evolved:
    """What evolution found."""

    choice: Choice
    gain: float
    history: tuple[float, ...]
    """Best gain after each sample."""


def evolve(
    menus: Sequence[Menu],
    excess_bytes: Callable[[Choice], int],
    *,
    samples: int = 5000,
    seed: int = 0,
) -> Evolved | None:
    """The best of so many samples that fit.

    Args:
        menus: as :func:`lilliput.mcu.training.knapsack.solve` takes them, of growing depth; the layers of a menu are the last of the next.
        excess_bytes: the memory planner; asked only of those that would be the best so far and that the lower bounds allow.
        samples: how many choices are looked at.
        seed: of all that is random.
    Returns:
        None where not one fits.
    """
    return _Evolution(menus, excess_bytes, random.Random(seed)).run(samples)


class _Evolution:
    def __init__(self, menus: Sequence[Menu], excess_bytes: Callable[[Choice], int], rng: random.Random) -> None:
        self.menus, self.excess_bytes, self.rng = menus, excess_bytes, rng
        self.best: Choice | None = None
        self.best_gain = -np.inf
        self.history: list[float] = []
        self.refused: set[Choice] = set()

    def run(self, samples: int) -> Evolved | None:
        for index in sorted(range(len(self.menus)), key=lambda index: self.menus[index].depth):
            if len(self.history) < samples:  # depths alone: the smallest that there are
                self.look(Choice(index, (0,) * len(self.menus[index].gains)))
        population = [(self.best_gain, self.best)] if self.best is not None else []
        while len(self.history) < samples and population:
            children = []
            for _ in range(min(POPULATION, samples - len(self.history))):
                child = self.child([choice for _, choice in population])
                gain = self.look(child)
                if gain is not None:
                    children.append((gain, child))
            population = sorted({*population, *children}, key=lambda each: (-each[0], each[1].menu, each[1].options))
            del population[PARENTS:]
        return None if self.best is None else Evolved(self.best, self.best_gain, tuple(self.history))

    def look(self, choice: Choice) -> float | None:
        """Its gain, if it fits; counts as a sample."""
        gain: float | None = None
        if choice not in self.refused and self.is_allowed(choice):
            gain = self.menus[choice.menu].total_gain(choice.options)
            if gain > self.best_gain:
                if self.excess_bytes(choice) <= 0:
                    self.best, self.best_gain = choice, gain
                else:
                    self.refused.add(choice)
                    gain = None
        self.history.append(self.best_gain)
        return gain

    def is_allowed(self, choice: Choice) -> bool:
        return bool((self.menus[choice.menu].left_bytes(choice.options) >= 0).all())

    def child(self, parents: Sequence[Choice]) -> Choice:
        for _ in range(TRIES):
            first = self.rng.choice(parents)
            if self.rng.random() < CROSSOVER:
                first = self.crossed(first, self.rng.choice(parents))
            child = self.mutated(first)
            if self.is_allowed(child):
                return child
        return parents[0]

    def crossed(self, first: Choice, second: Choice) -> Choice:
        """The first's depth; each layer's option from either, counted from the end."""
        options = [
            second.options[-place]
            if place <= len(second.options) and self.rng.random() < 0.5
            else first.options[-place]
            for place in range(len(first.options), 0, -1)
        ]
        return Choice(first.menu, tuple(options))

    def mutated(self, choice: Choice) -> Choice:
        menu, options = choice.menu, choice.options
        if self.rng.random() < MUTATION:
            menu = self.rng.randrange(len(self.menus))
            count = len(self.menus[menu].gains)
            options = (
                options[len(options) - count :] if count <= len(options) else (0,) * (count - len(options)) + options
            )
        gains = self.menus[menu].gains
        return Choice(
            menu,
            tuple(
                self.rng.randrange(len(gains[layer])) if self.rng.random() < MUTATION else option
                for layer, option in enumerate(options)
            ),
        )
