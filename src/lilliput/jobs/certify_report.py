"""The report of a certificate, as sections of data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence import EvidenceTable, Figure, Run, Section, Table, Text, charts
from lilliput.evidence.numbers import grouped

if TYPE_CHECKING:
    import torch

    from lilliput.jobs.certify import Certified, CertifyConfig

_MOST_ROWS = 20
_MOST_CELLS = 32
_EXACT = 1e-9
"""Relative gap that is rounding and no more."""


def write(run: Run, config: CertifyConfig, made: Certified) -> None:
    """Write the run's report."""
    upper, lower = max(made.upper), max(made.lower)
    steepest = made.labels[made.upper.index(upper)]
    share = (upper - lower) / upper if upper else 0.0
    met = f"{grouped(lower)} was met, so the bound is at most {share:.1%} too large"
    if share <= _EXACT:
        met = "a point meets it, so the bound is exact"
    sections = [_bounds(run, config, made), _neurons(made)]
    kept = ""
    if made.radius is not None:
        sections.insert(1, _radius(config, made, made.radius))
        if made.radius["certified"] > 0:
            kept = f"; no change of up to {grouped(made.radius['certified'])} takes it out of class '{made.radius['class']}'"
    picture = _elements(made, steepest)
    if picture is not None:
        sections.append(picture)
    run.write_report(
        sections,
        title=f"{made.subject.name} around {made.where}",
        verdict=f"proved: within l_{config.norm} distance {config.eps} no output changes faster than {grouped(upper)} per unit of input; "
        f"{met}{kept}",
        holds=True,
        highlights=[
            "lipschitz.upper",
            "lipschitz.lower",
            "radius.certified" if made.radius else "lipschitz.gap",
            "bound.seconds",
        ],
    )


def _bounds(run: Run, config: CertifyConfig, made: Certified) -> Section:
    order = sorted(range(len(made.upper)), key=lambda row: -made.upper[row])[:_MOST_ROWS]
    # Rounding can put a bound that is exact a hair below the point that meets it.
    rows = {made.labels[row]: (min(made.lower[row], made.upper[row]), made.upper[row]) for row in order}
    left = f"the {len(order)} largest of {len(made.upper)}" if len(order) < len(made.upper) else "all"
    blocks: list[Figure | EvidenceTable | Table] = [
        Figure(
            charts.intervals(rows, "local Lipschitz constant, per unit of input"),
            "Each output between its bounds",
            "; ".join(f"{name}: {grouped(low)} to {grouped(high)}" for name, (low, high) in rows.items()),
            f"The constant lies between the gradient met at a point of the ball and the proved bound; {left}.",
        )
    ]
    if len(made.trace) > 1:
        curves = {"upper": [(t[0], t[1]) for t in made.trace], "lower": [(t[0], t[2]) for t in made.trace]}
        blocks.append(
            Figure(
                charts.lines(curves, "seconds", "bound of the steepest output"),
                "The bound against time",
                f"From {grouped(made.trace[0][1])} to {grouped(made.trace[-1][1])} in {made.trace[-1][0]:.1f} s",
            )
        )
    steps = [[round(t[0], 3), t[1], t[2], int(t[3])] for t in _thinned(made.trace)]
    blocks.append(Table("Bound against time", ["seconds", "upper", "lower", "open domains"], steps))
    blocks.append(EvidenceTable("The figures", list(run.evidence)))
    return Section(
        "bounds",
        "Local Lipschitz constants",
        f"Norm: l_{config.norm}, radius {config.eps}, around {made.where}, method `{config.method}` (status: {made.status}). "
        f"A proved bound holds for every point of the ball, in exact arithmetic with the stored weights.{_further(run, config, made)}",
        blocks,
    )


def _further(run: Run, config: CertifyConfig, made: Certified) -> str:
    """How to go on, where there is something to go on from."""
    if not run.artifact("checkpoint.zip").exists():
        return ""
    spent = made.trace[-1][0]
    return f" `--continues {config.out} --time {2 * max(spent, config.time):.0f}` and another `--out` goes on after {spent:.0f} s."


def _radius(config: CertifyConfig, made: Certified, found: dict[str, Any]) -> Section:
    radius, (name, loosest) = found["certified"], found["loosest"]
    words = (
        f"Within l_{config.norm} distance {grouped(radius)} of {made.where} the network gives no other class than '{found['class']}': "
        "proved in exact arithmetic with the stored weights, from how much each margin can lose on the way."
    )
    if radius == 0:
        words = (
            f"No radius could be certified: two classes tie at {made.where}, or the bounds are too loose for any step."
        )
    elif radius >= found["most"] * (1 - 1e-6):
        words += " The search ends there."
    if found["is_time_over"]:
        words += f" The {config.time:g} s were over, so a longer search may show more."
    bars = {config.method: radius, name: loosest}
    figure = Figure(
        charts.columns(bars, "certified radius, units of input"),
        "Beside the oldest method",
        "; ".join(f"{method}: {grouped(value)}" for method, value in bars.items()),
        f"Method `{name}` multiplies the layers' operator norms.",
    )
    return Section(
        "radius",
        "Certified radius",
        words,
        [figure, EvidenceTable("The figures", ["radius.certified", f"radius.{name}"])],
    )


def _thinned(trace: list[list[float]]) -> list[list[float]]:
    if len(trace) <= _MOST_ROWS:
        return trace
    return [trace[round(index * (len(trace) - 1) / (_MOST_ROWS - 1))] for index in range(_MOST_ROWS)]


def _neurons(made: Certified) -> Section:
    intro = (
        f"{made.undecided:,} of {made.units:,} neurons may be on either side of a kink somewhere in the ball, "
        "or have a slope that varies; the others are as good as linear there."
    )
    if not made.neurons:
        return Section(
            "neurons", "Undecided neurons", intro, [Text("The network is linear in the ball, so its bound is exact.")]
        )
    intervals = {name: (low, high) for name, low, high in made.neurons}
    figure = Figure(
        charts.intervals(intervals, "what enters the gate"),
        "The widest of them",
        "; ".join(f"{name}: {grouped(low)} to {grouped(high)}" for name, low, high in made.neurons),
        "By CROWN over the ball. Splitting these is what refines a bound.",
    )
    return Section("neurons", "Undecided neurons", intro, [figure])


def _elements(made: Certified, steepest: str) -> Section | None:
    lower, upper = made.elements
    if lower.dim() != 3 or min(lower.shape[1:]) < 2:
        return None
    panels = {"least": _picture(lower), "greatest": _picture(upper)}
    of_both_signs = int(((lower < 0) & (upper > 0)).sum())
    figure = Figure(
        charts.heat_map(panels),
        f"Slope of '{steepest}' in each pixel",
        f"{of_both_signs} of {lower.numel()} elements may have either sign",
        "Bounds over the whole ball; for several channels or large images, the element of the largest size at each place.",
    )
    words = "Where least and greatest have one colour, the output is proved to rise (or fall) with that pixel."
    return Section("elements", "Element by element", words, [figure])


def _picture(values: torch.Tensor) -> list[list[float]]:
    """(channel, row, column) to a grid of at most so many cells a side, by the element of the largest size."""
    from torch.nn.functional import max_pool2d

    side = -(-max(values.shape[1:]) // _MOST_CELLS)
    high, low = (sign * max_pool2d(sign * values[None], side, ceil_mode=True)[0] for sign in (1, -1))
    high, low = high.amax(0), low.amin(0)
    grid: list[list[float]] = high.where(high >= -low, low).tolist()
    return grid
