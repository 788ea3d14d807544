"""Which tensors hold bytes of their own, and which are other names for bytes of another: reshapes, and whole rows of an image."""

from __future__ import annotations

from dataclasses import dataclass

from lilliput.quantize.qgraph import Crop, QOp, QuantizedGraph, Reshape


@dataclass(frozen=True)
class View:
    """Where a tensor's bytes lie."""

    buffer: str
    """The tensor that owns them."""
    offset_bytes: int


def is_view(op: QOp, graph: QuantizedGraph, *, streams_input: bool = False) -> bool:
    """Whether there is nothing to do: the output is bytes of the input. A part of an image that is not in memory has to be read."""
    if isinstance(op, Crop):
        is_read = streams_input and op.inputs[0] == graph.input
        return not is_read and is_one_run(graph.tensors[op.name].shape, graph.tensors[op.inputs[0]].shape)
    return isinstance(op, Reshape)


def is_one_run(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a part of an image lies in one run of bytes: whole rows, or some of one row."""
    return part[1] == whole[1] or part[0] == 1


def first_byte(top: int, left: int, whole: tuple[int, ...]) -> int:
    """Of a pixel, within an image of this (height, width, channel)."""
    return (top * whole[1] + left) * whole[2]


def views(graph: QuantizedGraph, *, streams_input: bool = False) -> dict[str, View]:
    """For each tensor where its bytes lie."""
    found = {graph.input: View(graph.input, 0)}
    for op in graph.ops:
        if is_view(op, graph, streams_input=streams_input):
            source = found[op.inputs[0]]
            start = first_byte(op.top, op.left, graph.tensors[op.inputs[0]].shape) if isinstance(op, Crop) else 0
            found[op.name] = View(source.buffer, source.offset_bytes + start)
        else:
            found[op.name] = View(op.name, 0)
    return found
