"""The graph as a drawing: one row a node, from top to bottom in running order, skips as arcs on the right.

The colours are CSS variables with fallbacks, so a page can give the drawing its own light and dark tones.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lilliput.graph.graph import Graph, Node, Op

ROW, BOX, WIDTH, LEFT = 40, 28, 430, 12  # pixels

_FAMILY = {
    **dict.fromkeys((Op.CONV, Op.LINEAR, Op.MATMUL, Op.EMBEDDING), "weights"),
    **dict.fromkeys((Op.ADD, Op.SUB, Op.MUL, Op.CONCAT), "join"),
    **dict.fromkeys((Op.MAX_POOL, Op.AVG_POOL, Op.ADAPTIVE_AVG_POOL, Op.MEAN), "pool"),
}
_COLOURS = {"weights": "#4477aa", "join": "#cc6677", "pool": "#ddaa33", "other": "#888888"}


def draw(graph: Graph, hide: Iterable[Op] = ()) -> str:
    """A standalone SVG of the graph.

    Args:
        graph: any graph; a hundred nodes still read well.
        hide: kinds to leave out, their readers joined to what they read (batch norm and activations, say).
    Returns:
        SVG text with a title and a description for screen readers; its width is about 600 pixels, 40 a row high.
    """
    hidden = set(hide)
    stands_for: dict[str, str] = {}
    rows: list[tuple[str, str, str, str, tuple[str, ...]]] = []  # name, label, note, family, inputs
    for name in graph.inputs:
        stands_for[name] = name
        rows.append((name, f"input {name}", _shape(graph, name), "other", ()))
    for node in graph.nodes:
        inputs = tuple(stands_for[name] for name in graph.activations(node))
        if node.op in hidden and node.name not in graph.outputs:
            stands_for[node.name] = inputs[0]
            continue
        stands_for[node.name] = node.name
        rows.append((node.name, _label(graph, node), _note(graph, node), _FAMILY.get(node.op, "other"), inputs))

    at = {name: index for index, (name, *_) in enumerate(rows)}
    skips = sorted(
        ((at[source], at[name]) for name, *_, inputs in rows for source in inputs if at[name] - at[source] > 1),
        key=lambda span: span[1] - span[0],
    )
    lanes = _lanes(skips)
    width = LEFT + WIDTH + 24 + 14 * (1 + max(lanes.values(), default=0)) + 8
    height = ROW * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>Network {escape(graph.name)}</title>",
        f"<desc>{len(graph.nodes)} nodes in running order from top to bottom; {len(skips)} connections skip rows.</desc>",
    ]
    ink = "var(--ink, #222)"
    for name, *_, inputs in rows:
        for source in inputs:
            if at[name] - at[source] == 1:  # the next row
                parts.append(
                    f'<path d="M{LEFT + 24} {at[source] * ROW + 4 + BOX}V{at[name] * ROW + 4}" stroke="{ink}" fill="none"/>'
                )
    for start, stop in skips:
        x, reach = LEFT + WIDTH, LEFT + WIDTH + 24 + 14 * lanes[start, stop]
        top, bottom = start * ROW + 4 + BOX / 2 + 6, stop * ROW + 4 + BOX / 2 - 6
        path = f"M{x} {top}C{reach} {top} {reach} {top} {reach} {top + 12}V{bottom - 12}C{reach} {bottom} {reach} {bottom} {x} {bottom}"
        parts.append(f'<path d="{path}" stroke="{ink}" stroke-opacity="0.6" fill="none"/>')
    for index, (_, label, note, family, _inputs) in enumerate(rows):
        y = index * ROW + 4
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{BOX}" rx="4" fill="{_COLOURS[family]}" fill-opacity="0.14" '
            f'stroke="{_COLOURS[family]}"/>'
            f'<text x="{LEFT + 10}" y="{y + 18}" fill="{ink}">{escape(_fitted(label, note))}</text>'
            f'<text x="{LEFT + WIDTH - 10}" y="{y + 18}" fill="{ink}" fill-opacity="0.75" text-anchor="end">{escape(note)}</text>'
        )
    return "".join(parts) + "</svg>"


def _lanes(skips: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """A lane for each arc so that arcs which overlap don't run on top of each other; short arcs come first, inside."""
    lanes: dict[tuple[int, int], int] = {}
    for start, stop in skips:
        taken = {lane for (a, b), lane in lanes.items() if a < stop and start < b}
        lanes.setdefault((start, stop), next(lane for lane in range(len(lanes) + 1) if lane not in taken))
    return lanes


def _shape(graph: Graph, name: str) -> str:
    return "×".join(str(size) for size in graph.shape(name)[1:]) or "scalar"


def _label(graph: Graph, node: Node) -> str:
    kind = str(node.op).replace("_", " ")
    if node.op is Op.CONV:
        weight = graph.shape(node.inputs[1])
        depthwise = node["groups"] > 1 and weight[1] == 1
        window = "×".join(str(size) for size in weight[2:])
        kind = f"{'depthwise ' if depthwise else ''}conv {window}"
        kind += f" stride {node['stride'][0]}" if max(node["stride"]) > 1 else ""
    return f"{kind} · {node.source}" if node.source else kind


def _fitted(label: str, note: str) -> str:
    """The label, its module path cut from the left where it would run into the note."""
    room = int((WIDTH - 36) / 6.6) - len(note)  # 6.6 pixels: the mean width of a character at 12 pixels
    if len(label) <= room:
        return label
    kind, _, path = label.partition(" · ")
    return f"{kind} · …{path[-max(room - len(kind) - 4, 4) :]}"


def _note(graph: Graph, node: Node) -> str:
    params = sum(graph.weights[name].numel() for name in node.inputs if name in graph.parameters)
    return f"{params:,} params → {_shape(graph, node.name)}" if params else f"→ {_shape(graph, node.name)}"
