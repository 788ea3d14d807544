"""A structure found for a budget: how good it is, what it needs, its network, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lilliput.design.count import chip_cost, exact_cost
from lilliput.design.evaluate import RESOURCES, Problem, evaluate
from lilliput.design.geometry import Patches
from lilliput.design.score import Score, score
from lilliput.design.space import SearchSpace
from lilliput.design.structure import Structure
from lilliput.errors import DataError
from lilliput.evidence import Cost

if TYPE_CHECKING:
    from torch import nn

_FORMAT = "lilliput.design"
_FORMAT_VERSION = 1
_BINDING_FROM = 0.99


@dataclass(frozen=True)
class Design:
    """A structure found for a budget. Made by ``solve``; goes to JSON and back."""

    structure: Structure
    problem: Problem
    """What was asked for: space, ceilings, weights, patches."""
    objective: float
    relaxation: float
    """The best value of the relaxed program over all starts: a multi-start value, which no proof holds to be the optimum."""
    seed: int
    cpu_seconds: float
    is_cut_short: bool = False
    """Whether the time limit ended the search."""
    is_exhaustive: bool = False
    """Whether every member of the space was looked at, so that none is better."""

    @property
    def space(self) -> SearchSpace:
        """What it was chosen from."""
        return self.problem.space

    @property
    def patches(self) -> Patches | None:
        """Which layers run tile by tile; ``None`` where none do."""
        return self.problem.patches

    @property
    def gap(self) -> float:
        """How far the objective is below the relaxation, as a share of the relaxation."""
        return (self.relaxation - self.objective) / abs(self.relaxation)

    @cached_property
    def score(self) -> Score:
        """Entropy and effectiveness, stage by stage."""
        return score(self.structure, self.space.image_size, self.problem.alpha)

    @cached_property
    def needs(self) -> dict[str, tuple[float, float]]:
        """Of each budget that was given: what the structure needs, and the ceiling. Counted by the space's counter."""
        found = evaluate(self.problem, self.space.member(self.structure)[None]).needs[0]
        pairs = [*zip(RESOURCES, found, self.problem.resources, strict=False)]
        pairs.append(("rho", found[len(RESOURCES) :].max(), self.problem.rho))
        return {name: (float(need), float(ceiling)) for name, need, ceiling in pairs if np.isfinite(ceiling)}

    @property
    def binding(self) -> tuple[str, ...]:
        """The budgets of which at least 99 % are used."""
        return tuple(name for name, (need, ceiling) in self.needs.items() if need >= _BINDING_FROM * ceiling)

    def cost(self, num_classes: int | None = None) -> Cost:
        """What the built network costs, as ``lilliput.graph`` counts it; the space's classes if no others are given."""
        return exact_cost(self.structure, self.space.image_size, num_classes or self.space.num_classes)

    def chip_cost(self, num_classes: int | None = None) -> Cost:
        """What it needs on a microcontroller at int8, patches included: constants in flash, activations and kernels' memory in SRAM."""
        classes = num_classes or self.space.num_classes
        return chip_cost(self.structure, self.space.image_size, classes, self.patches, self.problem.image)

    def build(self, num_classes: int | None = None) -> nn.Module:
        """The network, with random weights; with the space's classes if no others are given."""
        return self.structure.build(num_classes or self.space.num_classes)

    def table(self) -> str:
        """Super block by super block, then budgets: for people."""
        rows = [("super block", "stride", "input", "kernel", "mid", "out", "blocks")]
        rows.append(
            ("stem", str(self.space.strides[0]), f"{self.space.image_size}", "3", "", str(self.structure.stem), "")
        )
        for index, (block, side) in enumerate(zip(self.structure.blocks, self.space.input_sides, strict=True), start=1):
            mid = str(block.mid) if block.kind.has_mid else ""
            cells = (str(block.stride), str(side), str(block.kernel), mid, str(block.out), str(block.layers))
            rows.append((f"{index} {block.kind.name}", *cells))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if index == 0 else text.rjust(width)
                for index, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append("")
        for name, (need, ceiling) in self.needs.items():
            form = ".4f" if name == "rho" else ",.0f"
            lines.append(f"{name:<11} {need:>15{form}} of {ceiling:{form}} ({need / ceiling:.1%})")
        lines.append(f"{'objective':<11} {self.objective:>15,.1f}, {self.gap:.2%} below the best relaxation found")
        if self.patches is not None:
            lines.append(f"{'patches':<11} {self.patches!s:>15}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Text that ``from_json`` reads."""
        problem = self.problem
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _FORMAT_VERSION,
                "space": self.space.to_plain(),
                "structure": self.structure.to_plain(),
                "budget": {
                    name: ceiling
                    for name, ceiling in zip((*RESOURCES, "rho"), (*problem.resources, problem.rho), strict=True)
                    if np.isfinite(ceiling)
                },
                "alpha": list(problem.alpha),
                "depth_penalty": problem.depth_penalty,
                "penalty_weight": problem.penalty_weight,
                "patches": None if problem.patches is None else vars(problem.patches),
                "image": problem.image,
                "objective": self.objective,
                "relaxation": self.relaxation,
                "seed": self.seed,
                "cpu_seconds": round(self.cpu_seconds, 3),
                "is_cut_short": self.is_cut_short,
                "is_exhaustive": self.is_exhaustive,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Design:
        """The design that ``to_json`` wrote.

        Raises:
            DataError: not such a text, or one whose objective is not that of its structure.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise DataError(f"design: not JSON ({error}); it must be what to_json() writes") from None
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise DataError(f'design: JSON without "format": "{_FORMAT}"; it must be what to_json() writes')
        if data.get("version") != _FORMAT_VERSION:
            raise DataError(
                f"design: format version {data.get('version')!r}; this release reads version {_FORMAT_VERSION}"
            )
        try:
            budget: dict[str, Any] = data["budget"]
            problem = Problem(
                space=SearchSpace.from_plain(data["space"]),
                resources=tuple(budget.get(name, np.inf) for name in RESOURCES),
                rho=budget.get("rho", np.inf),
                alpha=tuple(float(weight) for weight in data["alpha"]),
                depth_penalty=data["depth_penalty"],
                penalty_weight=data["penalty_weight"],
                patches=None if data["patches"] is None else Patches(**data["patches"]),
                image=data["image"],
            )
            fields = {
                name: data[name]
                for name in ("objective", "relaxation", "seed", "cpu_seconds", "is_cut_short", "is_exhaustive")
            }
            design = cls(Structure.from_plain(data["structure"]), problem, **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"design: damaged ({type(error).__name__}: {error}); write it again with to_json()"
            ) from None
        found = float(evaluate(problem, problem.space.member(design.structure)[None]).objective[0])
        if not abs(found - design.objective) <= 1e-9 * max(1.0, abs(found)):
            raise DataError(
                f"design: says objective={design.objective}, but its structure has {found}; it was changed by hand"
            )
        return design
