"""Which results may be written over an operand that nobody needs any more, and which are only other names for one.

An elementwise kernel reads each number before it writes one of the same width at the same place. A depthwise convolution, forward or
transposed, goes by four channels from copies of their planes (its working memory): in (height, width, channel) order the places of
one channel never hold another's, so the result may lie over the operand wherever it is no larger. When a running shift grows, the channels
already written are shifted and the others, still operands, are not. What inference's kernels allow is asked of ``mcu.access``. The rest
reads windows and writes apart.
"""

from __future__ import annotations

from lilliput.mcu.access import can_run_in_place
from lilliput.mcu.training import graph as t
from lilliput.quantize import qgraph as q


def hosts(op: t.Op, program: t.Program) -> tuple[str, ...]:
    """Inputs that the first output may overwrite, best first; one that is smaller becomes its first bytes."""
    if isinstance(op, (t.MaskGradient, t.ScaleGradient)):
        gradient, made = program.buffers[op.inputs[0]], program.buffers[op.outputs[0]]
        return (gradient.name,) if gradient.elements == made.elements else ()  # not where one pixel is repeated
    if isinstance(op, (t.AddGradients, t.Add)):
        return op.inputs
    if isinstance(op, t.Mean):
        return op.inputs  # channel by channel: a channel's first code is read before its mean takes the place
    if isinstance(op, (t.Conv, t.ConvInputGradient)) and is_by_plane(op.layer):
        operand, made = program.buffers[op.inputs[0]], program.buffers[op.outputs[0]]
        return (operand.name,) if made.elements <= operand.elements else ()
    if isinstance(op, t.Infer) and can_run_in_place(op.qop, program.tensors):
        return op.inputs if isinstance(op.qop, q.Add) else op.inputs[:1]
    return ()


def is_by_plane(layer: t.Layer) -> bool:
    """Whether the depthwise kernels run a layer: one output channel an input channel, from copies of the planes."""
    return layer.is_depthwise and layer.output_shape[2] == layer.input_shape[2]


def is_alias(op: t.Op) -> bool:
    """Whether the output is the input's bytes under another shape, so that there is nothing to do."""
    return isinstance(op, t.Infer) and isinstance(op.qop, q.Reshape)
