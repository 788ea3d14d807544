"""What a report says, as data: sections made of a few kinds of block, written to ``report.json`` and drawn by the page.

A job describes its report with these and never writes HTML, so a room adds its sections without touching the page, and a report can be
drawn again later from its run directory. All text is plain: the page escapes it, and sets words between backticks as code.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lilliput.errors import ConfigError, DataError
from lilliput.evidence.evidence import plain_number
from lilliput.evidence.svg import check_svg

if TYPE_CHECKING:
    import numpy as np

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Text:
    """Paragraphs, with an empty line between them."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under column titles; the first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """Text, numbers, truth values. Numbers are grouped in thousands and set to the right; ``None`` shows as a dash."""

    def __post_init__(self) -> None:
        _require(len(self.columns) > 0, f"table '{self.caption}' has no columns; give at least one")
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(tuple(plain_number(cell) for cell in row) for row in self.rows))
        for index, row in enumerate(self.rows):
            given, columns = len(row), len(self.columns)
            _require(given == columns, f"table '{self.caption}', row {index}: {given} cells for {columns} columns")
            for cell in row:
                allowed = cell is None or isinstance(cell, str) or _is_number(cell)
                wanted = "text, a finite number, a truth value or None"
                _require(allowed, f"table '{self.caption}', row {index}: {cell!r} must be {wanted}")


@dataclass(frozen=True)
class Figure:
    """A drawing, from :mod:`lilliput.evidence.figures` or elsewhere."""

    svg: str
    """Without scripts and without references to anything outside itself."""
    title: str
    alt: str
    """What a reader who cannot see it should learn from it."""
    caption: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.title.strip()), "a figure has no title; say what it shows in a few words")
        _require(
            bool(self.alt.strip()), f"figure '{self.title}' has no alt text; say what a reader should learn from it"
        )
        check_svg(self.svg, f"figure '{self.title}'")


@dataclass(frozen=True)
class Bar:
    """One cost beside its ceiling."""

    label: str
    value: Any
    """A number from 0."""
    ceiling: Any = None
    """A number above 0, or None where there is no ceiling."""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain_number(self.value))
        object.__setattr__(self, "ceiling", plain_number(self.ceiling))
        _require(
            _is_number(self.value) and self.value >= 0,
            f"bar '{self.label}': value={self.value} must be finite and 0 or above",
        )
        _require(
            self.ceiling is None or self.ceiling > 0, f"bar '{self.label}': ceiling={self.ceiling} must be above 0"
        )


@dataclass(frozen=True)
class Bars:
    """Costs against a budget, one bar each."""

    caption: str
    bars: Sequence[Bar]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bars", tuple(self.bars))


@dataclass(frozen=True)
class Tile:
    """One image of a gallery."""

    src: str
    """The image itself, as a ``data:image/png;base64,`` address."""
    truth: str = ""
    prediction: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        whole = re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}", self.src) is not None
        _require(whole, f"image {self.src[:40]!r}: must be a data:image/png;base64 address; use Images.of(arrays)")


@dataclass(frozen=True)
class Images:
    """A gallery: images with the truth and what the network said."""

    caption: str
    tiles: Sequence[Tile]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiles", tuple(self.tiles))

    @classmethod
    def of(
        cls,
        caption: str,
        images: np.ndarray,
        truth: Sequence[str] | None = None,
        prediction: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
    ) -> Images:
        """A gallery from uint8 arrays: (n, height, width), or with 1 or 3 channels at the end.

        Raises:
            DataError: another dtype or shape, or as many texts as do not match the images.
        """
        shape, dtype = tuple(images.shape), str(images.dtype)
        if (
            dtype != "uint8"
            or len(shape) not in (3, 4)
            or (len(shape) == 4 and shape[3] not in (1, 3))
            or 0 in shape[1:]
        ):
            raise DataError(
                f"gallery '{caption}': images are {dtype} {shape}; must be uint8 (n, height, width) or (n, height, width, 1 or 3)"
            )
        texts: list[Sequence[str]] = []
        for name, given in (("truth", truth), ("prediction", prediction), ("captions", captions)):
            if given is not None and len(given) != len(images):
                raise DataError(
                    f"gallery '{caption}': {len(given)} entries in {name} for {len(images)} images; give one each"
                )
            texts.append([""] * len(images) if given is None else [str(text) for text in given])
        return cls(
            caption, tuple(Tile(_png_address(image), *said) for image, *said in zip(images, *texts, strict=True))
        )


@dataclass(frozen=True)
class EvidenceTable:
    """Figures of the run, by name, with how each was obtained."""

    caption: str
    names: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))


Block = Text | Table | Figure | Bars | Images | EvidenceTable
_KINDS: dict[str, type] = {
    "text": Text,
    "table": Table,
    "figure": Figure,
    "bars": Bars,
    "images": Images,
    "evidence": EvidenceTable,
}


@dataclass(frozen=True)
class Section:
    """A part of a report under a heading."""

    id: str
    """Lower case, for links: ``confusion``, ``memory-map``."""
    title: str
    intro: str = ""
    blocks: Sequence[Block] = ()

    def __post_init__(self) -> None:
        good = re.fullmatch(r"[a-z][a-z0-9-]*", self.id) is not None
        _require(good, f"section id {self.id!r}: must be a-z, 0-9 and hyphens; try 'memory-map'")
        _require(bool(self.title.strip()), f"section '{self.id}' has no title; give one")
        object.__setattr__(self, "blocks", tuple(self.blocks))


@dataclass(frozen=True)
class Report:
    """A whole report: a verdict, a few figures worth a glance, and sections."""

    title: str
    sections: Sequence[Section]
    verdict: str = ""
    """One line that answers the question the job was run for: ``fits: 11,204 of 16,384 bytes SRAM``."""
    holds: bool | None = None
    """Whether the verdict is the good one; None where it is neither."""
    highlights: Sequence[str] = ()
    """Names of the evidence shown under the verdict, at most about five."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(self.sections))
        object.__setattr__(self, "highlights", tuple(self.highlights))
        ids = [section.id for section in self.sections]
        for section_id in ids:
            _require(
                ids.count(section_id) == 1,
                f"report '{self.title}': two sections have the id '{section_id}'; rename one",
            )

    def evidence_names(self) -> list[str]:
        """Every name of evidence the report shows."""
        tables = [block for section in self.sections for block in section.blocks if isinstance(block, EvidenceTable)]
        return [*self.highlights, *(name for table in tables for name in table.names)]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        sections = [dataclasses.asdict(section) for section in self.sections]
        for document, section in zip(sections, self.sections, strict=True):
            document["blocks"] = [{"kind": _kind(block)} | dataclasses.asdict(block) for block in section.blocks]
        return {"$schema": "urn:lilliput:report:1"} | dataclasses.asdict(self) | {"sections": sections}

    @classmethod
    def from_json(cls, document: Any, source: str = "report.json") -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            DataError: a part is missing, unknown or of the wrong kind; names the source.
        """
        try:
            fields = dict(document)
            schema = fields.pop("$schema", None)
            if schema != "urn:lilliput:report:1":
                raise DataError(f"its $schema is {schema!r}; this version reads 'urn:lilliput:report:1'")
            sections = []
            for section in fields.pop("sections"):
                blocks = [_block(block) for block in section["blocks"]]
                sections.append(Section(**{**section, "blocks": blocks}))
            return cls(**fields, sections=sections)
        except (KeyError, TypeError, AttributeError, ConfigError, DataError) as error:
            raise DataError(f"{source}: is not a report: {error}") from error


def _block(document: Mapping[str, Any]) -> Block:
    fields = dict(document)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise DataError(f"a block has the kind {kind!r}; known are {', '.join(_KINDS)}")
    if kind == "bars":
        fields["bars"] = [Bar(**bar) for bar in fields["bars"]]
    if kind == "images":
        fields["tiles"] = [Tile(**tile) for tile in fields["tiles"]]
    return _KINDS[kind](**fields)


def _kind(block: Block) -> str:
    return next(kind for kind, block_type in _KINDS.items() if type(block) is block_type)


def _png_address(image: np.ndarray) -> str:
    from PIL import Image

    pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
