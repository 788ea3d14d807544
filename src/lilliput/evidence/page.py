"""Draws a run's report as one HTML page that needs nothing else: no scripts, no fonts, no fetches, light and dark.

The job's sections come first, as they are in ``report.json``; two more follow that every run has: where the time went, and
how each figure was obtained.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lilliput.errors import ConfigError, DataError
from lilliput.evidence.evidence import Evidence, How
from lilliput.evidence.figures import time_by_step
from lilliput.evidence.numbers import amount, grouped, percent
from lilliput.evidence.sections import (
    Bars,
    Block,
    Cell,
    EvidenceTable,
    Figure,
    Images,
    Section,
    Table,
    Text,
    Tile,
)
from lilliput.evidence.svg import embed, natural_width

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

    from lilliput.evidence.run import Run

_MEANING = {
    How.COUNTED: "follows from the network's graph alone; exact",
    How.MEASURED: "observed, over n inputs or repeats",
    How.EMULATED: "executed on a simulated chip: the instructions are exact, their time on silicon is not known",
    How.PROVED: "a sound bound: no input can break it",
}
_SMALL_PIXELS = 96
_SHORT_CHARACTERS = 22
"""A column of cells as short as this does not wrap."""


def render_report(run: Run) -> str:
    """The page of a run's report, as HTML text; the same run gives the same text.

    Raises:
        DataError: the run has no report, or its report shows evidence that it does not hold.
    """
    if run.report is None:
        raise DataError(f"{run.path}: has no report.json, so there is no page to draw")
    report, evidence = run.report, run.evidence
    missing = [name for name in report.evidence_names() if name not in evidence]
    if missing:
        raise DataError(f"{run.path}: the report shows '{missing[0]}', which evidence.json does not hold")
    sections = [*report.sections, *_closing_sections(run, taken={section.id for section in report.sections})]
    return _template().render(
        report=report,
        run=run,
        highlights=[_figure_row(evidence[name]) for name in report.highlights],
        sections=[{"section": section, "blocks": _views(section, evidence)} for section in sections],
    )


def _closing_sections(run: Run, taken: set[str]) -> Iterator[Section]:
    seconds = {step.name: step.seconds for step in run.steps.values()}
    if seconds and sum(seconds.values()) > 0 and "time" not in taken:
        longest = max(seconds, key=lambda name: seconds[name])
        alt = ", ".join(f"{name} {amount(spent, 'seconds')}" for name, spent in seconds.items())
        yield Section(
            "time",
            "Where the time went",
            f"{amount(run.seconds, 'seconds')} in all, on {run.platform['cpus']} processors; `{longest}` took the longest.",
            [Figure(time_by_step(seconds), "Time by step", alt)],
        )
    used = [how for how in How if any(each.how == how for each in run.evidence.values())]
    config = list(_flat(run.config))
    surroundings: list[Sequence[Cell]] = [
        ["seed", "none" if run.seed is None else str(run.seed)],
        ["started", run.started],
        ["took", amount(run.seconds, "seconds")],
        ["attempts", run.attempts],
        ["lilliput", run.lilliput_version],
        *([name, version] for name, version in run.versions.items()),
        ["system", run.platform["system"]],
        ["architecture", run.platform["machine"]],
        ["processors", run.platform["cpus"]],
    ]
    blocks: list[Block] = []
    if run.evidence:
        blocks.append(EvidenceTable("Every figure of this run", list(run.evidence)))
        blocks.append(Table("What the words mean", ["how", "meaning"], [[str(how), _MEANING[how]] for how in used]))
    blocks.append(Table("Seed, versions and platform", ["what", "value"], surroundings))
    if config:
        blocks.append(Table("Config", ["field", "value"], config))
    title = "How each figure was obtained"
    yield Section("provenance" if "provenance" not in taken else "provenance-of-run", title, "", blocks)


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[list[Cell]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield [
                above + name,
                value if isinstance(value, str | bool) or value is None else json.dumps(value, ensure_ascii=False),
            ]


def _views(section: Section, evidence: Mapping[str, Evidence]) -> list[dict[str, Any]]:
    views = []
    for number, block in enumerate(section.blocks, start=1):
        view = _view(block, f"{section.id}-{number}", evidence)
        views.append({"id": f"{section.id}-{number}"} | view)
    return views


def _view(block: Block, block_id: str, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    """What the template needs of one block."""
    if isinstance(block, Text):
        return {"kind": "text", "paragraphs": re.split(r"\n\s*\n", block.text.strip())}
    if isinstance(block, Table):
        classes = [_column_class([row[index] for row in block.rows]) for index in range(len(block.columns))]
        rows = [[_cell(cell) for cell in row] for row in block.rows]
        return {"kind": "table", "caption": block.caption, "columns": block.columns, "classes": classes, "rows": rows}
    if isinstance(block, Figure):
        width = round(natural_width(block.svg))
        drawing = _markup(embed(block.svg, f"fig-{block_id}", block.title, block.alt))
        return {
            "kind": "figure",
            "title": block.title,
            "caption": block.caption,
            "svg": drawing,
            "width": width,
            "narrow": width <= 480,
        }
    if isinstance(block, Bars):
        return {"kind": "bars", "caption": block.caption, "bars": _bar_rows(block)}
    if isinstance(block, Images):
        return {
            "kind": "images",
            "caption": block.caption,
            "tiles": [_tile(tile, n) for n, tile in enumerate(block.tiles, start=1)],
        }
    if isinstance(block, EvidenceTable):
        rows_ = [_figure_row(evidence[name]) for name in block.names]
        present = {name for row in rows_ for name in ("n", "spread", "source", "detail") if row[name] is not None}
        return {"kind": "evidence", "caption": block.caption, "rows": rows_, "present": present}
    raise ConfigError(f"a {type(block).__name__} is no block of a report; see lilliput.evidence.sections")


def _figure_row(each: Evidence) -> dict[str, Any]:
    detail = each.detail
    if detail is not None and not isinstance(detail, str):
        detail = json.dumps(detail, ensure_ascii=False)
    value = amount(each.value, each.unit)
    number, _, unit = (value, "", "") if isinstance(each.value, str) else value.partition(" ")
    return {
        "name": each.name,
        "label": each.name.replace("_", " ").replace(".", ", "),
        "value": value,
        "number": number,
        "unit": unit,
        "exact": str(each.value),
        "how": str(each.how),
        "n": None if each.n is None else grouped(each.n),
        "spread": None
        if each.spread is None
        else percent(each.spread)
        if each.unit == "share"
        else grouped(each.spread),
        "source": each.source,
        "detail": detail,
    }


def _bar_rows(block: Bars) -> list[dict[str, Any]]:
    """Bars share the scale on which a ceiling is 1; without any ceiling, the scale on which the longest is."""
    shares = [None if bar.ceiling is None else bar.value / bar.ceiling for bar in block.bars]
    known = [share for share in shares if share is not None]
    right = max([1.0, *known])
    longest = max((bar.value for bar in block.bars), default=0.0) or 1.0
    rows = []
    for bar, share in zip(block.bars, shares, strict=True):
        if bar.ceiling is None or share is None:
            # Beside bars that have a ceiling it has no scale, so it is told as a number alone.
            width = None if known else 100 * bar.value / longest
            rows.append(
                {"label": bar.label, "said": amount(bar.value, bar.unit), "over": "", "width": width, "mark": None}
            )
            continue
        said = f"{grouped(bar.value)} of {amount(bar.ceiling, bar.unit)}, {percent(share)}"
        over = f"over by {amount(bar.value - bar.ceiling, bar.unit)}" if share > 1 else ""
        rows.append({"label": bar.label, "said": said, "over": over, "width": 100 * share / right, "mark": 100 / right})
    return rows


def _tile(tile: Tile, number: int) -> dict[str, Any]:
    both = bool(tile.truth and tile.prediction)
    wrong = both and tile.truth != tile.prediction
    said = f"{tile.prediction}, is {tile.truth}" if wrong else tile.prediction or tile.truth
    facts = [
        f"is {tile.truth}" if tile.truth else "",
        f"network says {tile.prediction}" if tile.prediction else "",
        tile.caption,
    ]
    alt = f"Image {number}" + "".join(f", {fact}" for fact in facts if fact)
    return {
        "src": _markup(tile.src),  # checked by Tile; base64 needs no escapes
        "alt": alt,
        "said": said,
        "caption": tile.caption,
        "wrong": wrong,
        "right": both and not wrong,
        "pixelated": _is_small(tile.src),
    }


def _is_small(address: str) -> bool:
    """Whether a PNG is so small that it is shown enlarged, with its pixels as squares."""
    if not address.startswith("data:image/png;base64,"):
        return False
    header = base64.b64decode(address.split(",", 1)[1][:32])
    return len(header) == 24 and max(struct.unpack(">II", header[16:24])) < _SMALL_PIXELS


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else amount(cell)


def _column_class(column: Sequence[Cell]) -> str:
    if _is_numeric(column):
        return "number"
    return "short" if all(len(_cell(cell)) <= _SHORT_CHARACTERS for cell in column) else ""


def _is_numeric(column: Sequence[Cell]) -> bool:
    """Numbers, or text that is one with a unit: ``98.8%``, ``11,204 bytes``, ``-3``."""
    told = [cell for cell in column if cell is not None and cell != ""]
    looks = [
        re.fullmatch(r"[-+−±]?[0-9][0-9,. ]*(e-?[0-9]+)?(%| [A-Za-z/]+)?", cell) is not None if isinstance(cell, str)
        else not isinstance(cell, bool)
        for cell in told
    ]  # fmt: skip
    return bool(looks) and all(looks)


def _prose(text: str) -> Markup:
    """Plain text, escaped, with words between backticks set as code."""
    from markupsafe import escape

    return _markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


def _markup(html: str) -> Markup:
    from markupsafe import Markup

    return Markup(html)  # only for text that was escaped or checked above


@cache
def _template() -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    room = files("lilliput.evidence")
    environment = Environment(
        loader=FunctionLoader(lambda name: room.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    return environment.get_template("page.html.j2")
