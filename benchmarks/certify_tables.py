"""What ``benchmarks/certify.py`` measured of a network, the bars it must keep, and its tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from certify_networks import Subject

PAIRS = {"crown": ("no alpha",), "alpha": ("alpha", "alpha once")}
"""Ours, and the modes of the peer that do the same."""
FEWEST_TIMES = 10
"""The claim: no looser, and this many times less CPU."""
SAME = 1e-5
"""Relative: the peer computes in float32."""
BARS = {
    ("784-20-20-10", "crown"): 0.1,
    ("784-256-256-10", "crown"): 1.0,
    ("cnn 28x28", "crown"): 2.0,
    ("16-32x4-10", "alpha"): 4.0,
    ("784-20x4-10", "alpha"): 4.0,
}
"""Most CPU seconds of the bounds of all outputs."""
LEAST_RADII = 5.0
"""Times the radii of the product of norms, at the median."""
MOST_MEGABYTES = 800
"""Of ours on the networks of ``MEMORY``."""


@dataclass(frozen=True)
class Figure:
    """What one method said of one network."""

    method: str
    per_output: list[float] = field(default_factory=list)
    seconds: float = math.nan
    """CPU, for the bounds of all outputs."""
    call_seconds: float = math.nan
    status: str = ""
    """How it ended; of the peer, why it failed."""

    @property
    def bound(self) -> float:
        """The largest."""
        return max(self.per_output, default=math.nan)


@dataclass(frozen=True)
class Radii:
    """Certified l_inf radii of images that the network was not trained on, wrong ones left out."""

    images: int
    median: float
    times_product: float
    """Median of the ratios to the radii that the product of norms certifies."""
    seconds: float
    """CPU, an image."""


@dataclass(frozen=True)
class Row:
    """A network with all figures."""

    subject: Subject
    accuracy: float | None
    sampled: list[float]
    ours: dict[str, Figure]
    peer: dict[str, Figure]
    megabytes: dict[str, float]
    """Peak of a process that computes one bound, by method."""
    batch_share: float | None
    """CPU seconds of 32 centres in one call, over those of 32 calls."""
    radii: Radii | None

    def failures(self) -> Iterator[str]:
        """Bounds that a point exceeds, and bars that are missed."""
        for figure in self.ours.values():
            for output, (bound, met) in enumerate(zip(figure.per_output, self.sampled, strict=False)):
                if met > bound * (1 + 1e-9):
                    yield f"{self.subject.name}, {figure.method}, output {output}: {met!r} was met, above the bound {bound!r}"
        for (name, method), most in BARS.items():
            if name == self.subject.name and self.ours[method].seconds > most:
                yield f"{name}, {method}: {self.ours[method].seconds:.2f} CPU s; the bar is {most}"
        if self.megabytes.get("crown", 0.0) > MOST_MEGABYTES:
            yield f"{self.subject.name}, crown: {self.megabytes['crown']:.0f} MB; the bar is {MOST_MEGABYTES}"
        if self.batch_share is not None and self.batch_share > 0.25:
            yield f"{self.subject.name}: 32 centres in one call take {self.batch_share:.2f} of 32 calls; the bar is 0.25"
        if self.radii is not None and self.radii.times_product < LEAST_RADII:
            yield f"{self.subject.name}: radii {self.radii.times_product:.1f} times the product's; the bar is {LEAST_RADII}"


def table(row: Row) -> str:
    """One network, as Markdown."""
    subject = row.subject
    accuracy = "untrained" if row.accuracy is None else f"{subject.data}, {row.accuracy:.1%} right"
    lines = [
        f"**{subject.name}** ({accuracy}; eps {subject.eps:.4g}; met by sampling: {max(row.sampled):.4f})",
        "",
        "| method | bound | CPU s, bound | CPU s, call | memory | how it ended |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for whose, figures in (("", row.ours), ("auto_LiRPA, ", row.peer)):
        for name, figure in figures.items():
            memory = f"{row.megabytes[name]:,.0f} MB" if name in row.megabytes else ""
            cells = [_number(figure.bound, ".4f"), _number(figure.seconds, ".4f"), _number(figure.call_seconds, ".4f")]
            lines.append(f"| {whose}{name} | {' | '.join(cells)} | {memory} | {figure.status} |")
    if not row.peer:
        for name, seconds in (("no alpha", subject.cited.no_alpha_seconds), ("alpha", subject.cited.alpha_seconds)):
            if seconds is not None:
                cited = f"cited, {subject.cited.version}, other weights"
                lines.append(f"| auto_LiRPA, {name} | | {seconds} | | {subject.cited.note} | {cited} |")
    if row.batch_share is not None:
        lines += ["", f"32 centres in one call take {row.batch_share:.3f} of the CPU time of 32 calls."]
    if row.radii is not None:
        found = row.radii
        lines.append(
            f"Certified radii of {found.images} images: median {found.median:.4f}, {found.times_product:.1f} times the product's, "
            f"{found.seconds:.4f} CPU s an image."
        )
    return "\n".join([*lines, ""])


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


@dataclass(frozen=True)
class Comparison:
    """Ours against one mode of the peer, on one network."""

    name: str
    looser: int
    """Outputs of which our bound is the larger one."""
    bound_ratio: float
    """Ours over theirs, of the largest."""
    times: float
    """Their CPU seconds over ours, for the bounds."""
    call_times: float
    cheapest: str
    """The quickest of our methods that is no looser."""
    cheapest_times: float

    @property
    def holds(self) -> bool:
        return self.looser == 0 and self.times >= FEWEST_TIMES


def compared(row: Row, method: str, mode: str) -> Comparison | None:
    """``None`` where the peer has no bound."""
    ours, peer = row.ours[method], row.peer.get(mode)
    if peer is None or not peer.per_output:
        return None
    tight = [each for each in row.ours.values() if each.seconds > 0 and each.bound <= peer.bound * (1 + SAME)]
    cheapest = min(tight, key=lambda each: each.seconds, default=Figure("none"))
    return Comparison(
        row.subject.name,
        sum(a > b * (1 + SAME) for a, b in zip(ours.per_output, peer.per_output, strict=True)),
        ours.bound / peer.bound,
        peer.seconds / ours.seconds,
        peer.seconds / ours.call_seconds,
        cheapest.method,
        peer.seconds / cheapest.seconds,
    )


def summary(rows: list[Row]) -> str:
    """Ratios to the peer, and where the claim does not hold."""
    lines = []
    for method, modes in PAIRS.items():
        for mode in modes:
            found = [each for row in rows if (each := compared(row, method, mode)) is not None]
            if not found:
                continue
            lines += [
                f"**{method} beside auto_LiRPA's {mode}**",
                "",
                "| network | bound, ours over theirs | outputs looser | CPU, theirs over ours: bound | call | "
                "quickest of ours that is no looser | theirs over it |",
                "|---|---:|---:|---:|---:|---|---:|",
            ]
            for each in found:
                lines.append(
                    f"| {each.name} | {each.bound_ratio:.5f} | {each.looser} | {each.times:.1f} | {each.call_times:.1f} | "
                    f"{each.cheapest} | {_number(each.cheapest_times, '.1f')} |"
                )
            bounds, times, calls = (
                statistics.geometric_mean(getattr(each, name) for each in found)
                for name in ("bound_ratio", "times", "call_times")
            )
            lines.append(f"| geometric mean | {bounds:.5f} | | {times:.1f} | {calls:.1f} | | |")
            missed = [
                f"{each.name} ({'looser' if each.looser else f'{each.times:.1f} times'})"
                for each in found
                if not each.holds
            ]
            claim = f"No looser in any output and at least {FEWEST_TIMES} times less CPU for the bounds"
            lines += ["", f"{claim}: {len(found) - len(missed)} of {len(found)}; not {', '.join(missed)}." if missed
                      else f"{claim}: all {len(found)}.", ""]  # fmt: skip
            fails = [
                f"{row.subject.name}: {row.peer[mode].status}"
                for row in rows
                if row.peer and not row.peer[mode].per_output
            ]
            lines += [f"It fails on {'; '.join(fails)}.", ""] if fails else []
    return "\n".join(lines)
