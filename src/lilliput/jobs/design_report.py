"""What a report says of a design: its shape, its entropy, its budget, and what more or less of each budget would buy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lilliput.evidence import Bar, Bars, EvidenceTable, Figure, Run, Section, Table, Text, charts

if TYPE_CHECKING:
    from lilliput.design import Design, TradeOff

_WORDS = {
    "macs": ("multiply-accumulates", "MACs"),
    "params": ("parameters", ""),
    "flash_bytes": ("flash", "bytes"),
    "sram_bytes": ("SRAM", "bytes"),
    "rho": ("effectiveness rho", ""),
}


def write(run: Run, design: Design, curves: Sequence[TradeOff]) -> None:
    """Write the report of a design run."""
    shape = design_section(design)
    blocks = [*shape.blocks, EvidenceTable("What it costs, and how good it is", list(run.evidence))]
    sections = [Section(shape.id, shape.title, shape.intro, blocks)]
    if curves:
        sections.append(trade_off_section(curves))
    macs, chip = design.cost().macs, design.chip_cost()
    binding = ", ".join(_WORDS[name][0] for name in design.binding) or "none of the budgets"
    names = ["objective", "gap", "cost.macs", "cost.params"]
    if any(name in design.needs for name in ("sram_bytes", "flash_bytes")):
        names += ["chip.sram", "chip.flash"]
    run.write_report(
        sections,
        title=f"{design.structure} at {design.space.image_size}x{design.space.image_size}",
        verdict=f"found: {macs:,} MACs, {design.cost().params:,} parameters, {chip.sram_bytes:,} bytes of SRAM at int8; "
        f"objective {design.objective:,.1f}, {design.gap:.2%} below the best relaxation found; {binding} used to 99 % or more",
        holds=True,
        highlights=names,
    )


def design_section(design: Design) -> Section:
    """The staircase of widths and depths, entropy by stage, and the budget's use."""
    structure, space = design.structure, design.space
    treads = [charts.Tread("stem", 1, structure.stem, note=f"{space.sides[1]}px")]
    rows: list[list[Any]] = [["stem", space.image_size, space.strides[0], 3, None, structure.stem, 1]]
    for index, (block, side) in enumerate(zip(structure.blocks, space.input_sides, strict=True), start=1):
        inner = block.mid if block.kind.has_mid else 0
        layers = block.layers * len(block.kind.convs)
        out_side = -(-side // block.stride)
        treads.append(charts.Tread(f"{index}: k{block.kernel}", layers, block.out, inner, f"{out_side}px"))
        rows.append(
            [f"{index} {block.kind.name}", side, block.stride, block.kernel, inner or None, block.out, block.layers]
        )
    stages = design.score.stages
    blocks: list[Any] = [
        Figure(
            charts.staircase(treads),
            "Widths and depths",
            "; ".join(f"{row[0]}: {row[-1]} blocks of {row[-2]} channels" for row in rows),
            "Each step is a super block: as wide as it has convolutions, as high as it has channels.",
        ),
        Table("Super blocks", ["super block", "input side", "stride", "kernel", "mid", "out", "blocks"], rows),
        Figure(
            charts.columns({f"{stage.side}x{stage.side}": round(stage.entropy, 1) for stage in stages}, "entropy of each stage"),
            "Entropy by resolution stage",
            ", ".join(f"{stage.side}x{stage.side}: {stage.entropy:,.1f}" for stage in stages),
            f"Weights {', '.join(f'{weight:g}' for weight in design.problem.alpha)}; their sum is {design.score.entropy:,.1f}, the depth "
            f"penalty takes {design.score.entropy - design.objective:,.1f}.",
        ),
        Table(
            "Resolution stages",
            ["stage", "channels", "convolutions so far", "entropy", "rho"],
            [
                [f"{s.side}x{s.side}", s.channels, s.layers, round(s.entropy, 1), round(s.rho, 4)] for s in stages
            ],
        ),
        Bars(
            "Budget and use",
            [Bar(_WORDS[name][0], _short(need), _short(ceiling), _WORDS[name][1]) for name, (need, ceiling) in design.needs.items()],
        ),
    ]  # fmt: skip
    if design.patches is not None:
        blocks.append(
            Text(f"The first layers run tile by tile: {design.patches}. Halos are charged in multiply-accumulates.")
        )
    proof = (
        "Every member of the space was looked at: none is better."
        if design.is_exhaustive
        else f"The relaxation's value, {design.relaxation:,.1f}, is the best of several starts and no proven bound."
    )
    return Section(
        "design",
        "The design",
        f"`{structure}` was chosen by mathematical programming (DeepMAD, arXiv:2303.02165): the largest entropy found within the "
        f"budget, {design.gap:.2%} below the best relaxation. {proof} Entropy stands for what a network can learn; it is not accuracy.",
        blocks,
    )


def trade_off_section(curves: Sequence[TradeOff]) -> Section:
    """Objective against each budget."""
    series = {
        _WORDS[curve.name][0]: [(factor, value) for factor, value in curve.points if value is not None]
        for curve in curves
    }
    today = next(
        (value for curve in curves for factor, value in curve.points if factor == 1 and value is not None), None
    )
    rows = [
        [_WORDS[curve.name][0], *("nothing fits" if value is None else round(value, 1) for _, value in curve.points)]
        for curve in curves
    ]
    factors = [f"x{factor:g}" for factor, _ in curves[0].points]
    return Section(
        "trade-offs",
        "What more or less would buy",
        "Each budget alone made smaller or larger, the others as they are, solved again in a second each.",
        [
            Figure(
                charts.lines(
                    series,
                    "factor of the budget",
                    "objective",
                    x_scale="log",
                    mark=None if today is None else (1, today),
                ),
                "Objective against each budget",
                "; ".join(f"{row[0]}: {', '.join(map(str, row[1:]))}" for row in rows),
                "The steeper a line, the more that budget is worth; a flat one does not bind. The ring is this design's budget.",
            ),
            Table("Objectives", ["budget", *factors], rows),
        ],
    )


def _short(value: float) -> int | float:
    """Counts whole, ratios to four digits."""
    return round(value) if value >= 100 else round(value, 4)
