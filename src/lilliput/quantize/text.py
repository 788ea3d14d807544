"""An integer graph as text: one line an operation, for people and for tests."""

from __future__ import annotations

from lilliput.quantize.qgraph import (
    AvgPool2d,
    Clamp,
    Concat,
    Conv2d,
    Crop,
    Lookup,
    MaxPool2d,
    Pad,
    Paste,
    QOp,
    QuantizedGraph,
    UpsampleNearest,
)


def to_text(graph: QuantizedGraph) -> str:
    """All operations in running order, with shapes, scales and sizes; weights are not listed."""
    lines = [
        f"integer graph {graph.name}: {len(graph.ops)} operations, {graph.macs:,} MACs, "
        f"{graph.weight_bytes:,} bytes of weights and biases",
        f"input {_tensor(graph, graph.input)}",
    ]
    lines += [_line(graph, op) for op in graph.ops]
    lines += [f"output {name}" for name in graph.outputs]
    return "\n".join(lines)


def _line(graph: QuantizedGraph, op: QOp) -> str:
    source = f"  # {op.source}" if op.source else ""
    return f"{type(op).__name__}({', '.join((*op.inputs, *_details(op)))}) -> {_tensor(graph, op.name)}{source}"


def _tensor(graph: QuantizedGraph, name: str) -> str:
    tensor = graph.tensors[name]
    shape = ", ".join(map(str, tensor.shape))
    return f"{name}: int8[{shape}] scale={tensor.scale:.6g} zero_point={tensor.zero_point}"


def _details(op: QOp) -> list[str]:
    details: list[str] = []
    if isinstance(op, Conv2d):
        details += [f"kernel={_by(op.weight.shape[1:3])}", f"stride={_by(op.stride)}", f"padding={_by(op.padding)}"]
        details += [f"dilation={_by(op.dilation)}"] if op.dilation != (1, 1) else []
        details += [f"groups={op.groups}"] if op.groups != 1 else []
    if isinstance(op, (AvgPool2d, MaxPool2d)):
        details += [f"kernel={_by(op.kernel)}", f"stride={_by(op.stride)}", f"padding={_by(op.padding)}"]
    if isinstance(op, Lookup):
        details.append(f"function='{op.function}'")
    if isinstance(op, Concat):
        details.append(f"axis={op.axis}")
    if isinstance(op, Pad):
        details.append(f"padding={_by(op.padding)}")
    if isinstance(op, (Crop, Paste)):
        details.append(f"at=({op.top}, {op.left})")
    if isinstance(op, UpsampleNearest):
        details.append(f"factor={_by(op.factor)}")
    clamp = getattr(op, "clamp", Clamp())
    if clamp != Clamp():
        details.append(f"clamp=[{clamp.lower}, {clamp.upper}]")
    return details


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
