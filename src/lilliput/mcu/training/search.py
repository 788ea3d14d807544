"""What to train in the memory there is: the choice with the largest contribution whose compiled step fits.

Source: Lin et al. 2022 (arXiv:2206.15472), section 3.2; exact search, and memory as planned instead of estimated, are ours.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lilliput.errors import ConfigError
from lilliput.evidence.budget import Budget
from lilliput.mcu.plan import DEFAULT_STACK_BYTES
from lilliput.mcu.training.contribution import Contribution
from lilliput.mcu.training.evolution import Evolved, evolve
from lilliput.mcu.training.knapsack import Choice, Menu, Solution, solve
from lilliput.mcu.training.memory_report import MemoryReport
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.step_bounds import FLASH, PREFIX, DepthBounds, Steps
from lilliput.mcu.training.train_step import compile_training
from lilliput.mcu.training.update_plan import LayerUpdate, UpdatePlan, select_channels, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph

METHODS = ("knapsack", "evolution")
NO_LIMIT = 2**62


def search_update(
    qgraph: QuantizedGraph,
    contribution: Contribution,
    *,
    sram: str | int | None = None,
    flash: str | int | None = None,
    method: str = "knapsack",
    optimizer: SGD | None = None,
    num_classes: int | None = None,
    input: str = "resident",
    schedule: str = "auto",
    stack_bytes: int = DEFAULT_STACK_BYTES,
    samples: int = 5000,
    seed: int = 0,
) -> UpdatePlan:
    """The update plan with the largest sum of contributions among those whose step fits.

    "knapsack" is exact: no other choice of a bias depth, layers and measured shares that ``compile_training`` would place within the budget
    has a larger sum. Where the search stops before that is proved, the plan's ``objective_bound`` is above its ``objective``: no choice
    exceeds the former. "evolution" is the published way, and promises nothing.

    Args:
        qgraph: an int8 network that ends in a linear layer.
        contribution: of its layers; see :func:`lilliput.mcu.training.contribution.contribution`.
        sram: most bytes for arena, trained parameters, state and stack, as ``"256KB"`` or a number; no limit if None.
        flash: most bytes of constants, likewise.
        method: "knapsack" or "evolution".
        optimizer: how masters are kept, which says what a trained weight takes; int16 masters if None.
        num_classes: of a new head; ``None`` keeps the network's own.
        input: ``"resident"`` or ``"stream"``, of the frozen part.
        schedule: of the frozen part: ``"auto"``, ``"whole"`` or ``"smallest"``.
        stack_bytes: to set aside.
        samples: that evolution looks at.
        seed: of evolution.
    Raises:
        BudgetError: not even the head alone fits; names the bound, the operation that binds, and what would fit.
        ConfigError: an option out of range, or contributions of another network.
    """
    if method not in METHODS:
        raise ConfigError(f"method='{method}': must be one of {', '.join(METHODS)}")
    if schedule not in ("auto", "whole", "smallest"):
        raise ConfigError(f"schedule='{schedule}': must be 'auto', 'whole' or 'smallest'")
    limits = tuple(NO_LIMIT if each is None else Budget.parse(each) for each in (sram, flash))
    search = _Search(qgraph, contribution, limits, optimizer or SGD(lr=0.01), num_classes, input, schedule, stack_bytes)
    found: Choice | None = None
    if method == "knapsack":
        solution = search.solve()
        if solution is not None:
            found, objective, bound = solution.choice, solution.gain, solution.gain_bound
    else:
        evolved = search.evolve(samples, seed)
        if evolved is not None:
            found, objective, bound = evolved.choice, evolved.gain, None
    # Where nothing was found, not even the head alone fits: compiling that says why.
    plan = UpdatePlan.head_only(qgraph) if found is None else search.plan(found)
    report = search.compile(plan)
    assert found is not None
    return UpdatePlan(
        plan.bias_depth,
        plan.layers,
        method=f"{method} of {contribution.method}",
        objective=objective,
        objective_bound=bound,
        sram_bytes=report.sram_bytes,
        flash_bytes=report.flash_bytes,
    )


class _TighterBounds(Exception):  # noqa: N818
    """A frozen part has been planned in tiles for the first time: menus know more than when the search began."""


class _Search:
    def __init__(
        self,
        qgraph: QuantizedGraph,
        contribution: Contribution,
        limits: tuple[int, ...],
        optimizer: SGD,
        num_classes: int | None,
        input: str,
        schedule: str,
        stack_bytes: int,
    ) -> None:
        self.qgraph, self.optimizer, self.num_classes = qgraph, optimizer, num_classes
        self.sram_bytes, self.flash_bytes = limits
        self.input, self.schedule, self.stack_bytes = input, schedule, stack_bytes
        reach = len(contribution.layers)
        layers = weighted_layers(qgraph)
        self.layers = layers[len(layers) - reach :]
        if tuple(op.name for op in self.layers) != contribution.layers:
            raise ConfigError(
                f"contributions are of layers {', '.join(contribution.layers)}; the last {reach} of '{qgraph.name}' are "
                f"{', '.join(op.name for op in self.layers)}; measure them on this network"
            )
        self.channels = [
            [
                (),
                *(
                    select_channels(op, ratio, contribution.criterion, contribution.seed)
                    for ratio in contribution.ratios
                ),
            ]
            for op in self.layers
        ]
        self.steps = Steps(qgraph, optimizer, num_classes=num_classes, input=input, stack_bytes=stack_bytes)
        self.bounds: list[DepthBounds] = []
        self.menus = [self._menu(contribution, depth) for depth in range(reach + 1)]
        self.tiled: dict[str, int] = {}
        """Bytes of frozen parts in the smallest tiles, by the tensor at the cut; planned when first asked for, since it takes long."""

    def _menu(self, contribution: Contribution, depth: int) -> Menu:
        at = self.steps.bounds(depth, self.schedule)
        self.bounds.append(at)
        limit = np.full(len(at.bytes), self.sram_bytes, dtype=np.int64)
        limit[FLASH] = self.flash_bytes
        first = len(self.layers) - depth
        none = np.zeros(len(limit), dtype=np.int64)
        return Menu(
            depth=depth,
            gain=contribution.bias[depth],
            room_bytes=limit - at.bytes,
            gains=tuple(np.array([0.0, *gains]) for gains in contribution.weights[first:]),
            option_bytes=tuple(
                np.stack([none, *(at.added(op, channels) for channels in options[1:])])
                for op, options in zip(self.layers[first:], self.channels[first:], strict=True)
            ),
        )

    def plan(self, choice: Choice) -> UpdatePlan:
        """A choice as a plan."""
        first = len(self.layers) - len(choice.options)
        taken = zip(self.layers[first:], self.channels[first:], choice.options, strict=True)
        return UpdatePlan(
            len(choice.options), tuple(LayerUpdate(op.name, options[option]) for op, options, option in taken if option)
        )

    def solve(self) -> Solution | None:
        """The exact search, begun again whenever a menu turns out to have less room: as often as there are places to cut, at most."""
        while True:
            try:
                return solve(self.menus, self.excess_bytes)
            except _TighterBounds:
                continue

    def evolve(self, samples: int, seed: int) -> Evolved | None:
        """The published search, likewise."""
        while True:
            try:
                return evolve(self.menus, self.excess_bytes, samples=samples, seed=seed)
            except _TighterBounds:
                continue

    def excess_bytes(self, choice: Choice) -> int:
        """How far the compiled step is over, in the memory where it is over most; tiles are tried where the frozen part binds."""
        over = self._over(choice, "whole" if self.schedule == "auto" else self.schedule)
        if over > 0 and self.schedule == "auto":
            over = self._over(choice, "smallest")
        return over

    def _over(self, choice: Choice, schedule: str) -> int:
        report = self.steps.report(self.plan(choice), schedule)
        over = max(report.sram_bytes - self.sram_bytes, report.flash_bytes - self.flash_bytes)
        between = self.bounds[choice.menu].between
        if schedule == "smallest" and between not in self.tiled:
            self.tiled[between] = report.prefix_arena_bytes
            self._tighten(between)
            if over > 0 and (self.menus[choice.menu].left_bytes(choice.options) < 0).any():
                raise _TighterBounds
        return over

    def _tighten(self, between: str) -> None:
        for index, at in enumerate(self.bounds):
            if at.between == between:
                room = self.menus[index].room_bytes.copy()
                room[PREFIX] -= self.tiled[between] - at.prefix_bytes
                self.menus[index] = replace(self.menus[index], room_bytes=room)

    def compile(self, plan: UpdatePlan) -> MemoryReport:
        """What ``compile_training`` makes of a plan within the limits.

        Raises:
            BudgetError: it does not fit.
        """
        step = compile_training(
            self.qgraph,
            plan,
            num_classes=self.num_classes,
            optimizer=self.optimizer,
            sram=None if self.sram_bytes == NO_LIMIT else self.sram_bytes,
            flash=None if self.flash_bytes == NO_LIMIT else self.flash_bytes,
            input=self.input,
            schedule=self.schedule,
            stack_bytes=self.stack_bytes,
        )
        return step.memory_report()
