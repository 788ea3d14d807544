"""SVG that is small, safe to set into a page, and readable on light and dark ground.

Figures are drawn by matplotlib in placeholder colours, which become the page's CSS variables here; outside a page each falls
back to a tone that shows on white and on black. The same input gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lilliput.errors import ConfigError
from lilliput.evidence.numbers import Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

INK, MUTED, RULE = "#010101", "#010102", "#010103"
ACCENT, GOOD, BAD = "#010104", "#010105", "#010106"
HUES = ("#010107", "#010108", "#010109", "#01010a", "#01010b", "#01010c")
_THEME = {
    INK: "var(--ink, #767676)",
    MUTED: "var(--muted, #767676)",
    RULE: "var(--rule, #9a9a9a)",
    ACCENT: "var(--accent, #3b82c4)",
    GOOD: "var(--good, #2e9563)",
    BAD: "var(--bad, #d2553f)",
} | {
    hue: f"var(--hue-{number}, {tone})"
    for number, (hue, tone) in enumerate(
        zip(HUES, ("#3b82c4", "#c7832b", "#2e9563", "#a66bbf", "#c9587a", "#4f9aa3"), strict=True), start=1
    )
}
_STYLE: Any = {
    "svg.hashsalt": "lilliput",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so text is measured alike everywhere
    "font.size": 11,
    "figure.dpi": 72,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.parse_math": False,  # a class may be called "$5 note"
}
_FORBIDDEN = {"script", "foreignobject", "style", "iframe", "animate", "set", "handler", "a"}


@contextmanager
def canvas(width: Number, height: Number) -> Iterator[Drawing]:
    """An empty drawing of so many CSS pixels; the user's own matplotlib settings play no part and are left as they were."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Drawing(figsize=(width / 72, height / 72))


def to_svg(drawing: Drawing) -> str:
    """The drawing as themed SVG, the same bytes for the same drawing."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(drawing).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = _parsed(file.getvalue())
    for unwanted in [child for child in root if child.tag == "metadata"]:
        root.remove(unwanted)
    _drop_default_style(root)
    _name_ids(root, prefix="")
    _compact(root)
    width, height = (root.attrib.pop(side).removesuffix("pt") for side in ("width", "height"))
    root.attrib.update(width=_short(width), height=_short(height), style="font-family: system-ui, sans-serif")
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", re.sub("|".join(_THEME), lambda match: _THEME[match[0]], element.attrib["style"]))
    return ElementTree.tostring(root, encoding="unicode")


def embed(svg: str, prefix: str, title: str, alt: str) -> str:
    """SVG to set into an HTML page: ids made unique by the prefix, named and described for those who cannot see it."""
    root = _parsed(svg)
    _name_ids(root, prefix)
    for heading in [child for child in root if child.tag in ("title", "desc")]:
        root.remove(heading)
    described = (ElementTree.Element("title", id=f"{prefix}-title"), ElementTree.Element("desc", id=f"{prefix}-desc"))
    described[0].text, described[1].text = title, alt
    root[:0] = described
    root.attrib.pop("xmlns", None)  # HTML knows what svg is
    root.attrib.update({"role": "img", "aria-labelledby": f"{prefix}-title {prefix}-desc"})
    return ElementTree.tostring(root, encoding="unicode")


def natural_width(svg: str) -> float:
    """Width in CSS pixels at which the drawing's text has its own size."""
    root = _parsed(svg)
    for text in (root.get("width", ""), (root.get("viewBox") or "0 0").replace(",", " ").split()[2:3]):
        match = re.match(r"[0-9.]+", text if isinstance(text, str) else "".join(text))
        if match is not None and not str(text).endswith("%"):
            return float(match[0])
    return 440.0


def check_svg(svg: str, what: str) -> None:
    """Refuse a drawing that runs code, fetches something, or would restyle the page around it.

    Raises:
        ConfigError: names the drawing and the part.
    """
    try:
        root = _parsed(svg)
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"{what} is not SVG: {error}") from None
    if root.tag != "svg":
        raise ConfigError(f"{what} is not SVG: it begins with <{root.tag}>; must begin with <svg>")
    for element in root.iter():
        if str(element.tag).lower() in _FORBIDDEN:
            raise ConfigError(
                f"{what} holds <{element.tag}>, which a page does not take from a drawing; use attributes and shapes"
            )
        for name, value in element.attrib.items():
            fetches = name in ("href", "src") and re.match(r"#|data:image/(png|jpeg);base64,", value) is None
            if (
                fetches
                or name.lower().startswith("on")
                or re.search(r"url\(\s*['\"]?(?!#)|@import|javascript:", value, re.IGNORECASE)
            ):
                raise ConfigError(
                    f"{what} holds {name}={value[:60]!r}: a drawing may refer to its own parts (#id) only"
                )


def _parsed(svg: str) -> ElementTree.Element:
    """The tree, with plain tag and attribute names instead of namespaces."""
    svg = re.sub(r"<!DOCTYPE[^>\[]*>", "", svg, count=1)
    if "<!DOCTYPE" in svg or "<!ENTITY" in svg:
        raise ValueError("it declares entities")
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    root.set("xmlns", "http://www.w3.org/2000/svg")
    return root


def _name_ids(root: ElementTree.Element, prefix: str) -> None:
    """Number the ids that something refers to, behind a prefix, and drop the others."""
    texts = [value for element in root.iter() for name, value in element.attrib.items() if name != "id"]
    used = dict.fromkeys(found for text in texts for found in re.findall(r"^#(.+)$|url\(#([^)]+)\)", text))
    wanted = {first or second for first, second in used}
    names = [element.attrib["id"] for element in root.iter() if element.attrib.get("id") in wanted]
    renamed = {
        name: f"{prefix}-{number}" if prefix else f"i{number}" for number, name in enumerate(dict.fromkeys(names))
    }
    for element in root.iter():
        element_id = element.attrib.pop("id", None)
        if element_id in renamed:
            element.set("id", renamed[element_id])
        for name, value in element.attrib.items():
            if name == "href" and value[1:] in renamed:
                element.set(name, "#" + renamed[value[1:]])
            elif "url(#" in value:
                element.set(name, re.sub(r"url\(#([^)]+)\)", lambda at: f"url(#{renamed.get(at[1], at[1])})", value))


def _drop_default_style(root: ElementTree.Element) -> None:
    """Matplotlib's one style sheet sets joins and caps; as a style sheet it would reach the whole page."""
    for definitions in root.findall("defs"):
        for sheet in definitions.findall("style"):
            definitions.remove(sheet)
        if len(definitions) == 0:
            root.remove(definitions)
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})


def _compact(root: ElementTree.Element) -> None:
    """Fewer bytes for the same picture: no empty groups, two decimals, the page's font."""
    root[:] = _without_idle(root)
    for element in root.iter():
        if element.tag != "text":
            element.text = None
        element.tail = None
        for name, value in list(element.attrib.items()):
            if name in ("d", "points", "x", "y", "transform", "width", "height"):
                value = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: _short(number[0]), value.replace("\n", ""))
                value = re.sub(r"\s*([A-Za-z])\s+", r"\1", value).strip() if name == "d" else value
            if name == "style":
                value = re.sub(r"\s*font-family:[^;]*;?|\s*stroke-linejoin: (miter|round);?", "", value)
                value = re.sub(r"font: ([0-9.]+px) '[^;]*", r"font-size: \1", value).strip("; ")
            if name == "transform":
                value = re.sub(r"rotate\(-?0 [^)]*\)", "", value).strip()
            if value:
                element.set(name, value)
            else:
                del element.attrib[name]


def _without_idle(parent: ElementTree.Element) -> list[ElementTree.Element]:
    """The children, with groups that only group replaced by what they hold and shapes without fill or stroke left out."""
    kept: list[ElementTree.Element] = []
    for child in parent:
        child[:] = _without_idle(child)
        is_unseen = child.tag == "path" and child.get("style") == "fill: none" and "id" not in child.attrib
        is_group = child.tag == "g" and not child.attrib
        kept.extend([] if is_unseen else child if is_group else [child])
    return kept


def _short(number: str) -> str:
    rounded = f"{float(number):.2f}".rstrip("0").rstrip(".")
    return "0" if rounded in ("-0", "") else rounded
