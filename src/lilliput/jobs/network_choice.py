"""Which network a build trains: the design with the largest objective within what the chip leaves for a model, planned for real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from lilliput.errors import BudgetError
from lilliput.evidence import Budget, Cost

if TYPE_CHECKING:
    from lilliput.data import ImageData
    from lilliput.design import Design
    from lilliput.jobs.build import BuildConfig

    Chooser = Callable[[ImageData, Budget], Design]

_MOST_PLANS = 4
_GROWTH = 1.3
_MOST_GROWN = 14
_GLANCE_SECONDS = 0.2


@dataclass(frozen=True)
class Chosen:
    """The chosen network, as it can be kept in a file."""

    design: str
    """``Design.to_json``."""
    macs: int
    params: int
    image_size: int
    planned: dict[str, int]
    """Bytes of SRAM and flash when planned in full, code and stack included."""
    candidates: list[dict[str, Any]]
    """What was solved for, and what came of it."""

    def found(self) -> Design:
        """The design."""
        from lilliput.design import Design

        return Design.from_json(self.design)


def choose_network(config: BuildConfig, data: ImageData, chooser: Chooser | None = None) -> Chosen:
    """Solve, then quantize and plan what was found as the trained network will be; where that needs more than predicted, solve for less.

    Raises:
        BudgetError: no network fits; names a budget that would do.
    """
    from lilliput.design import Design
    from lilliput.design.chip import CHIP_RHOS
    from lilliput.jobs.deployment import deployed_cost, overhead

    budget = config.budget()
    if chooser is not None:
        found = chooser(data, budget)
        planned = deployed_cost(found, budget)
        if not planned <= budget:
            raise BudgetError(f"the chooser's {found.structure} does not fit: {_excess(planned, budget)}")
        return _chosen(found, planned, [])
    rhos = CHIP_RHOS if config.rho is None else (config.rho,)
    extra, left = overhead(), budget
    candidates: list[dict[str, Any]] = []
    for attempt in range(1, 1 + _MOST_PLANS):
        results = _solve(config, data, _for_the_model(left, extra, config), rhos)
        designs = [each for _, each in results if isinstance(each, Design)]
        candidates += [_row(label, each) for label, each in results]
        if not designs:
            refusal = next(each for _, each in results if isinstance(each, BudgetError))
            raise BudgetError(_nothing_fits(config, data, refusal))
        found = max(designs, key=lambda each: each.objective)
        planned = deployed_cost(found, budget)
        if planned <= budget:
            return _chosen(found, planned, candidates)
        over = planned.excess(budget)
        less = {name: getattr(left, name) - attempt * (need - ceiling) for name, (need, ceiling) in over.items()}
        if any(amount <= getattr(extra, name, 0) for name, amount in less.items()):
            break
        left = replace(left, **less)
    refusals = [each for _, each in results if isinstance(each, BudgetError)]
    if refusals:  # what does not fit whole nearly fitted in patches
        raise BudgetError(_nothing_fits(config, data, refusals[0]))
    raise BudgetError(
        f"{found.structure} was predicted to fit, but planned in full it does not: {_excess(planned, budget)}"
    )


def _solve(
    config: BuildConfig,
    data: ImageData,
    budget: Budget,
    rhos: Sequence[float],
    seconds: float | None = None,
) -> list[tuple[str, Design | BudgetError]]:
    """Each resolution at the least rho, and the first stride pattern for it, at which anything fits; a label for each that was tried.

    Where nothing fits, and something would with more SRAM, all once more with the first layers in patches.
    """
    from lilliput.design import Design

    def anything(results: list[tuple[str, Design | BudgetError]]) -> bool:
        return any(isinstance(each, Design) for _, each in results)

    results = _attempts(config, data, budget, rhos, seconds, patches=None)
    if not anything(results) and budget.sram_bytes is not None:
        roomier = replace(budget, sram_bytes=16 * budget.sram_bytes)
        if anything(_attempts(config, data, roomier, rhos[-1:], _GLANCE_SECONDS, patches=None)):
            results += _attempts(config, data, budget, rhos, seconds, patches="auto")
    return results


def _attempts(
    config: BuildConfig,
    data: ImageData,
    budget: Budget,
    rhos: Sequence[float],
    seconds: float | None,
    patches: str | None,
) -> list[tuple[str, Design | BudgetError]]:
    from lilliput.design import Design, Request, chip_spaces, sweep
    from lilliput.design.chip import chip_strides, resolutions

    channels, side, _ = data.input_shape
    sizes = resolutions(side) if config.resolution == "auto" else (side,)
    results: list[tuple[str, Design | BudgetError]] = []
    for rho, strides in product(rhos, chip_strides(side)):
        requests = [
            Request(space=space, budget=budget, rho=rho, patches=patches, seed=config.seed, time_limit=seconds)
            for space in chip_spaces(sizes, strides, channels, len(data.class_names))
        ]
        found = sweep(requests, n_jobs=1 if len(requests) == 1 else -1)
        tiles = "" if patches is None else ", in patches"
        labels = [
            f"{each.space.image_size}x{each.space.image_size}, strides {strides}, rho {rho:g}{tiles}"
            for each in requests
        ]
        results += zip(labels, found, strict=True)
        if any(isinstance(each, Design) for each in found):
            break
    return results


def _for_the_model(budget: Budget, extra: Cost, config: BuildConfig) -> Budget:
    """What is left when code, stack and variables have taken theirs."""
    fields = {}
    for name, flag in (("sram_bytes", "sram"), ("flash_bytes", "flash")):
        ceiling, taken = getattr(budget, name), getattr(extra, name)
        if ceiling <= taken:
            raise BudgetError(
                f"--{flag} {getattr(config, flag)} is {ceiling:,} bytes, of which code, stack and variables take {taken:,}: "
                f"nothing is left for a network; try --{flag} {2 * taken}"
            )
        fields[name] = ceiling - taken
    return replace(budget, **fields)


def _nothing_fits(config: BuildConfig, data: ImageData, refusal: BudgetError) -> str:
    """The solver's words, and the nearest larger budget at which it does find something."""
    from lilliput.design import Design
    from lilliput.design.chip import CHIP_RHOS
    from lilliput.jobs.deployment import overhead

    extra, factor = overhead(), 1.0
    budget, rho = config.budget(), config.rho or CHIP_RHOS[-1]
    for _ in range(_MOST_GROWN):
        factor *= _GROWTH
        grown = Budget(
            macs=_grown(budget.macs, factor),
            sram_bytes=_grown(budget.sram_bytes, factor, extra.sram_bytes),
            flash_bytes=_grown(budget.flash_bytes, factor, extra.flash_bytes),
        )
        found = [
            each
            for _, each in _attempts(config, data, _for_the_model(grown, extra, config), (rho,), _GLANCE_SECONDS, None)
        ]
        designs = [each for each in found if isinstance(each, Design)]
        if designs:
            need = designs[0].chip_cost()
            flags = {
                "sram": (need.sram_bytes + extra.sram_bytes, budget.sram_bytes),
                "flash": (need.flash_bytes + extra.flash_bytes, budget.flash_bytes),
                "macs": (need.macs, budget.macs),
            }
            retry = " ".join(
                f"--{name} {amount}" for name, (amount, ceiling) in flags.items() if amount > (ceiling or 0)
            )
            return f"{refusal}; try {retry}, or a smaller image size"
    return f"{refusal}; try a smaller image size"


def _grown(ceiling: int | None, factor: float, fixed: int = 0) -> int | None:
    """A ceiling whose part for the model is so many times as large."""
    return None if ceiling is None else max(round((ceiling - fixed) * factor), 1) + fixed


def _chosen(found: Design, planned: Cost, candidates: list[dict[str, Any]]) -> Chosen:
    sizes = {"sram_bytes": planned.sram_bytes, "flash_bytes": planned.flash_bytes}
    return Chosen(found.to_json(), planned.macs, planned.params, found.space.image_size, sizes, candidates)


def _row(label: str, result: Design | BudgetError) -> dict[str, Any]:
    if isinstance(result, BudgetError):
        return {"label": label, "result": str(result)}
    chip = result.chip_cost()
    costs = {"macs": chip.macs, "params": chip.params, "sram_bytes": chip.sram_bytes, "flash_bytes": chip.flash_bytes}
    return {"label": label, "result": str(result.structure), "objective": round(result.objective, 1), **costs}


def _excess(cost: Cost, budget: Budget) -> str:
    return ", ".join(f"{name} {need:,}, {ceiling:,} allowed" for name, (need, ceiling) in cost.excess(budget).items())
