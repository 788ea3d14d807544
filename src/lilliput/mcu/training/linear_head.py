"""A last convolution that sees a single pixel is a linear layer by another name: TensorFlow Lite files write heads that way."""

from __future__ import annotations

from dataclasses import replace

from lilliput.quantize.qgraph import Conv2d, Linear, QOp, QuantizedGraph, Reshape, Softmax


def with_linear_head(qgraph: QuantizedGraph) -> QuantizedGraph:
    """The network with its last layer as a :class:`Linear` on a vector of features, where that is only a matter of names.

    What comes after it (a softmax, reshapes) is dropped: training reads the layer's own sums. A network whose last layer is linear
    already, or truly a convolution, is returned as it is.
    """
    last = next((index for index in reversed(range(len(qgraph.ops))) if _is_weighted(qgraph.ops[index])), None)
    if last is None or not _is_pointwise_on_a_pixel(qgraph, qgraph.ops[last]):
        return qgraph
    if not all(isinstance(op, (Reshape, Softmax)) for op in qgraph.ops[last + 1 :]):
        return qgraph
    conv = qgraph.ops[last]
    assert isinstance(conv, Conv2d)
    tensors, ops = dict(qgraph.tensors), list(qgraph.ops[:last])
    vector = f"{conv.name}.vector"
    tensors[vector] = replace(tensors[conv.inputs[0]], name=vector, shape=(conv.weight.shape[3],))
    ops.append(Reshape(name=vector, inputs=conv.inputs, source=conv.source))
    tensors[conv.name] = replace(tensors[conv.name], shape=(conv.weight.shape[0],))
    ops.append(
        Linear(
            name=conv.name,
            inputs=(vector,),
            source=conv.source,
            weight=conv.weight.reshape(len(conv.weight), -1),
            bias=conv.bias,
            weight_scale=conv.weight_scale,
            multiplier=conv.multiplier,
            shift=conv.shift,
            clamp=conv.clamp,
        )
    )
    names = {qgraph.input, *(op.name for op in ops)}
    kept = {name: tensor for name, tensor in tensors.items() if name in names}
    return QuantizedGraph(qgraph.name, qgraph.input, (conv.name,), kept, tuple(ops))


def _is_weighted(op: QOp) -> bool:
    return isinstance(op, (Conv2d, Linear))


def _is_pointwise_on_a_pixel(qgraph: QuantizedGraph, op: QOp) -> bool:
    if not isinstance(op, Conv2d) or op.groups != 1 or op.weight.shape[1:3] != (1, 1) or any(op.padding):
        return False
    return qgraph.tensors[op.inputs[0]].shape[:2] == (1, 1)
