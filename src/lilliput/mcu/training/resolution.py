"""The same network on a smaller image: shapes anew, weights as they are."""

from __future__ import annotations

from dataclasses import replace

from lilliput.errors import GraphError
from lilliput.quantize import qgraph as q
from lilliput.quantize.arithmetic import mean_multiplier
from lilliput.quantize.verify import output_shape


def at_resolution(qgraph: q.QuantizedGraph, height: int, width: int) -> q.QuantizedGraph | None:
    """The network on an image of another size; ``None`` where it has a layer that fits one size only.

    Scales are those of the size it was quantized at, so this says what the network would take, not what it would find.
    """
    shape = qgraph.tensors[qgraph.input].shape
    if len(shape) != 3:
        return None
    tensors = {qgraph.input: replace(qgraph.tensors[qgraph.input], shape=(height, width, shape[2]))}
    ops: list[q.QOp] = []
    try:
        for op in qgraph.ops:
            before, inputs = qgraph.tensors[op.inputs[0]].shape, [tensors[name] for name in op.inputs]
            x, y = inputs[0].shape, qgraph.tensors[op.name]
            if isinstance(op, q.Mean):
                multiplier, shift = mean_multiplier(inputs[0].scale, y.scale, x[0] * x[1])
                op = replace(op, multiplier=multiplier, shift=shift)
            elif isinstance(op, q.AvgPool2d) and op.kernel == before[:2]:
                op = replace(op, kernel=(x[0], x[1]), stride=(x[0], x[1]))
            ops.append(op)
            tensors[op.name] = replace(y, shape=output_shape(op, inputs, y.shape))
        return q.QuantizedGraph(qgraph.name, qgraph.input, qgraph.outputs, tensors, tuple(ops))
    except GraphError:
        return None
