"""What a build's report says of certified radii: how far test images may be changed before the class could."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lilliput.errors import LilliputError
from lilliput.evidence import Evidence, EvidenceTable, Figure, Section, Text, charts
from lilliput.evidence.numbers import grouped

if TYPE_CHECKING:
    from lilliput.certify import Network
    from lilliput.data import ImageData
    from lilliput.graph import Graph

_METHOD = "zonotope"
_SECONDS = 45.0
"""Of the processor, for all images together: how many they are for does not hang on what else the machine does."""
_EVALUATIONS = 5
"""Lipschitz constants that the search for one radius takes, about."""
_SYMBOLS_AN_INPUT = 4
"""Passes that each constant takes for each element of the input, about: forward and back, with the undecided gates' symbols."""
_IMAGES_AT_ONCE = 2
_TOLERANCE = 0.05
_MAX_EPS = 0.25
_NAME = "radius.certified.median"


def certify_sample(graph: Graph, data: ImageData, images: int, seed: int) -> dict[str, Any]:
    """Radii of a seeded sample of test images, or why there are none: ``{"radii": [...], "why": "..."}``."""
    try:
        return _certified(graph, data, images, seed)
    except LilliputError as error:  # a certificate is an extra: what cannot be bounded can still be built
        return {"radii": [], "why": str(error)}


def _certified(graph: Graph, data: ImageData, images: int, seed: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from lilliput.certify import certified_radius, lower
    from lilliput.certify.zonotope import is_affordable

    pixels, labels = data.test.tensors()
    sample = np.random.default_rng(seed).permutation(len(labels))[:images]
    begin = time.process_time()
    network = lower(graph)
    if not is_affordable(network, network.inputs):
        return {"radii": [], "why": f"its {network.inputs:,} inputs are too many for zonotopes of its layers"}
    needed = _EVALUATIONS * _seconds_of_a_bound(network)
    if needed > _SECONDS:
        return {
            "radii": [],
            "why": f"one image would take about {needed:,.0f} CPU-s, and a build allows {_SECONDS:g} for all of them",
        }
    radii: list[float] = []
    while len(radii) < len(sample):
        spent = time.process_time() - begin
        # The first one alone says how many the rest of the time is for.
        at_once = int((_SECONDS - spent) / spent * len(radii)) if radii else 1
        some = sample[len(radii) :][: min(at_once, _IMAGES_AT_ONCE)]
        if not len(some):
            break
        found = certified_radius(
            graph, pixels[some], labels[some], clip=(0, 1), max_eps=_MAX_EPS, method=_METHOD, tolerance=_TOLERANCE
        )
        radii += torch.as_tensor(found).tolist()
    return {"radii": radii, "why": "" if len(radii) == len(sample) else f"{_SECONDS:g} CPU-s were over"}


def _seconds_of_a_bound(network: Network) -> float:
    """Of one image: as many passes as the zonotopes have symbols, about."""
    import torch

    rows = torch.zeros(64, *network.shapes[network.input], dtype=network.dtype)
    with torch.no_grad():
        network.run(rows)
        begin = time.process_time()
        network.run(rows)
    return (time.process_time() - begin) / len(rows) * network.inputs * _SYMBOLS_AN_INPUT


def radius_evidence(found: dict[str, Any], name: str) -> list[Evidence]:
    """The median, where there is one."""
    import statistics

    if not found["radii"]:
        return []
    return [
        Evidence(
            _NAME,
            statistics.median(found["radii"]),
            "of the pixel range",
            "proved",
            n=len(found["radii"]),
            source=f"l_inf, method {_METHOD}, float network; a seeded sample of the test split of {name}, wrong ones count as 0",
        )
    ]


def certified_section(found: dict[str, Any]) -> Section:
    """A histogram of the radii, or the reason why there is none."""
    title = "Certified radii"
    radii: list[float] = found["radii"]
    if not radii:
        return Section("certified", title, "", [Text(f"No radius was certified: {found['why']}.")])
    zeros = sum(radius == 0 for radius in radii)
    stopped = f" More were asked for; {found['why']}." if found["why"] else ""
    figure = Figure(
        charts.histogram(radii, "certified l_inf radius, in shares of the pixel range"),
        "How far an image may change",
        f"{len(radii)} test images, {zeros} of them with radius 0; the largest is {grouped(max(radii))}",
        f"{len(radii)} test images by method `{_METHOD}`, {zeros} of them with radius 0 (a wrong class, or nothing certified).{stopped}",
    )
    return Section(
        "certified",
        title,
        "No change of all pixels by up to the radius gives another class. Proved of the float network, in exact arithmetic; "
        "the int8 network differs from it by its rounding.",
        [figure, EvidenceTable("The figure", [_NAME])],
    )
