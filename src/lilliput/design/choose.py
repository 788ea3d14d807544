"""The largest member of a family that fits a budget, by exact measurement of few and a cheap bound on all.

Multiply-accumulates times parameters stand for capacity: of the members that fit, the one with the most is taken. The product keeps
the choice from wide shallow nets (many multiply-accumulates, few parameters) and from narrow deep ones. That is a rule of thumb, not a
proof of accuracy. Counting by forward hooks gives each member's multiply-accumulates and parameters
exactly and its memory from below; only members that this cannot rule out are measured, largest first, until one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lilliput.errors import BudgetError
from lilliput.evidence import Budget, Cost
from lilliput.graph import trace


@runtime_checkable
class Spec(Protocol):
    """A member of any family: a name (``str``) and a network."""

    def build(self) -> nn.Module:
        """The network, with random weights."""


Measure = Callable[[nn.Module, tuple[int, ...]], Cost]
"""What a network costs on input of a shape (without the batch)."""


@dataclass(frozen=True)
class Candidate:
    """A member that was looked at: its name, its cost (a lower bound unless measured), and whether it fits."""

    name: str
    cost: Cost
    is_measured: bool
    fits: bool


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the field it was chosen from."""

    spec: Spec
    cost: Cost
    candidates: tuple[Candidate, ...]


def graph_cost(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Exact cost of the traced graph at 8 bits, activations in place where they can be."""
    graph = trace(model.eval(), torch.zeros(1, *input_shape))
    cost = graph.cost()
    return Cost(
        params=cost.params,
        macs=cost.macs,
        flash_bytes=cost.flash_bytes,
        sram_bytes=graph.live_memory(inplace=True).peak_bytes,
    )


def choose(
    family: Iterable[Spec],
    input_shape: tuple[int, ...],
    budget: Budget,
    measure: Measure = graph_cost,
    overhead: Cost | None = None,
) -> Choice:
    """The member with the largest capacity (multiply-accumulates times parameters) among those within the budget.

    Args:
        family: specs; each is built, so tens to hundreds.
        input_shape: (channel, height, width).
        budget: ceilings on what ``measure`` returns.
        measure: exact cost of a member as it will be deployed; it may add to the graph's cost but never be below it.
        overhead: bytes of flash and SRAM that ``measure`` adds to every member at least; it rules out more without measuring.
    Raises:
        BudgetError: no member fits; the message holds the needs of the one that comes closest.
    """
    bounds = sorted(
        ((_lower_bound(spec, input_shape, overhead or Cost()), index, spec) for index, spec in enumerate(family)),
        key=lambda row: (-row[0].macs * row[0].params, row[1]),
    )
    candidates: list[Candidate] = []
    for bound, _, spec in bounds:
        if not bound <= budget:
            candidates.append(Candidate(str(spec), bound, is_measured=False, fits=False))
            continue
        cost = measure(spec.build().eval(), input_shape)
        fits = cost <= budget
        candidates.append(Candidate(str(spec), cost, is_measured=True, fits=fits))
        if fits:
            return Choice(spec, cost, tuple(candidates))
    raise BudgetError(_nothing_fits([(bound, spec) for bound, _, spec in bounds], input_shape, budget, measure))


def _lower_bound(spec: Spec, input_shape: tuple[int, ...], overhead: Cost) -> Cost:
    """Parameters and multiply-accumulates exactly; of memory, the largest input and output of one layer together.

    A depthwise convolution may run in place, so it counts with the larger of the two.
    """
    macs = peak = 0
    model = spec.build().eval()

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, peak
        source, result = args[0].numel(), output.numel()
        if isinstance(module, nn.Conv2d):
            macs += result * prod(module.weight.shape[1:])
            peak = max(peak, max(source, result) if module.groups == module.in_channels > 1 else source + result)
        elif isinstance(module, nn.Linear):
            macs += result * module.in_features
            peak = max(peak, source + result)

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(
            torch.zeros(1, *input_shape)
        )  # real numbers: shape-only evaluation on torch's meta device is ten times slower
    for handle in handles:
        handle.remove()
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(
        params=params, macs=macs, flash_bytes=params + overhead.flash_bytes, sram_bytes=peak + overhead.sram_bytes
    )


def _nothing_fits(
    bounds: list[tuple[Cost, Spec]], input_shape: tuple[int, ...], budget: Budget, measure: Measure
) -> str:
    """How far the budget is from the members that come closest by their bounds; those few are measured."""

    def shortage(cost: Cost) -> float:
        return max((need / ceiling for need, ceiling in cost.excess(budget).values()), default=1.0)

    nearest = sorted(bounds, key=lambda row: (shortage(row[0]), row[0].sram_bytes + row[0].flash_bytes))[:6]
    measured = [(measure(spec.build().eval(), input_shape), spec) for _, spec in nearest]
    cost, spec = min(measured, key=lambda row: shortage(row[0]))
    words = {"sram_bytes": "bytes of SRAM", "flash_bytes": "bytes of flash", "macs": "MACs", "params": "parameters"}
    broken = "; ".join(
        f"{need:,} {words[name]}, {ceiling:,} allowed" for name, (need, ceiling) in cost.excess(budget).items()
    )
    flags = {"sram_bytes": "--sram", "flash_bytes": "--flash", "macs": "--macs", "params": "--params"}
    retry = " ".join(f"{flags[name]} {need}" for name, (need, _) in cost.excess(budget).items())
    return (
        f"no network of the family fits: of {len(bounds)} members on {'x'.join(map(str, input_shape))} inputs the smallest that "
        f"would do, {spec}, needs {broken}; try {retry}, or a smaller image size"
    )
