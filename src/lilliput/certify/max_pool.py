"""A max pool as a tree of pairwise maxima, ``max(a, b) = b + relu(a - b)``, so that only ReLU gates are left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lilliput.certify.gate import relu
from lilliput.certify.linear_map import LinearMap, Positive, Shape
from lilliput.graph import Node

if TYPE_CHECKING:
    from lilliput.certify.network import Lowering


class Pairs(LinearMap):
    """What the gates of one level read: ``a - b`` where both exist, 0 elsewhere; (channels, >= 2 h, places) to (channels, h, places)."""

    def __init__(self, both: Tensor, inputs: Shape) -> None:
        self.both = both
        self.inputs, self.outputs = inputs, (inputs[0], *both.shape)

    @property
    def roundings(self) -> int:
        """See :class:`LinearMap`."""
        return 2

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        last = 2 * len(self.both)
        a, b = x[:, :, 0:last:2], x[:, :, 1:last:2]
        return (a + b if absolute else a - b) * self.both

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        g = g * self.both
        x = g.new_zeros((len(g), *self.inputs))
        last = 2 * len(self.both)
        x[:, :, 0:last:2], x[:, :, 1:last:2] = g, g if absolute else -g
        return x


def lower_max_pool(low: Lowering, node: Node) -> None:
    """Add the tree's steps. A window's places outside the image don't exist: a maximum with one of them is the other."""
    x = node.inputs[0]
    index, exists = _windows(low.shape(x)[1:], low.shape(node.name)[1:], node, low.graph.device())
    channels, (candidates, places) = low.shape(x)[0], index.shape

    def gather(t: Tensor) -> Tensor:
        return t.flatten(2)[:, :, index.flatten()].reshape(len(t), t.shape[1], candidates, places) * exists

    shape: Shape = (channels, candidates, places)
    value = low.affine(f"{node.name}.windows", [(x, Positive(gather, low.shape(x), shape))])
    level = 0
    while shape[1] > 1:
        half = shape[1] // 2
        a, b = exists[0 : 2 * half : 2], exists[1 : 2 * half : 2]
        both = (a & b).to(low.dtype)
        # Where one of the two does not exist the gate reads -1, so it is off and passes nothing on.
        z = low.affine(f"{node.name}.{level}.difference", [(value, Pairs(both, shape))], (both - 1).unsqueeze(0))
        r = low.activation(f"{node.name}.{level}.relu", z, relu())
        rest = shape[1] - 2 * half
        after: Shape = (channels, half + rest, places)
        take = Positive(lambda t, b=b, half=half: _second(t, b, half), shape, after)  # type: ignore[misc]
        add = Positive(lambda t, rest=rest: F.pad(t, (0, 0, 0, rest)), low.shapes[r], after)  # type: ignore[misc]
        exists = torch.cat([a | b, exists[2 * half :]])
        value, shape, level = low.affine(f"{node.name}.{level}.max", [(value, take), (r, add)]), after, level + 1
    low.affine(
        node.name, [(value, Positive(lambda t: t.reshape(len(t), *low.shape(node.name)), shape, low.shape(node.name)))]
    )


def _second(t: Tensor, b: Tensor, half: int) -> Tensor:
    """b where it exists, else a (which is 0 where it does not exist either); the odd one out goes on as it is."""
    return torch.cat([torch.where(b, t[:, :, 1 : 2 * half : 2], t[:, :, 0 : 2 * half : 2]), t[:, :, 2 * half :]], dim=2)


def _windows(inputs: Shape, outputs: Shape, node: Node, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat input index of each (kernel place, output place), and whether it lies in the image."""
    index = torch.zeros((1, 1), dtype=torch.long, device=device)
    exists = torch.ones((1, 1), dtype=torch.bool, device=device)
    for axis, (size, out) in enumerate(zip(inputs, outputs, strict=True)):
        steps = torch.arange(node["kernel"][axis], device=device) * node["dilation"][axis] - node["padding"][axis]
        at = steps[:, None] + torch.arange(out, device=device) * node["stride"][axis]
        inside = (at >= 0) & (at < size)
        at = at.clamp(0, size - 1)
        merge = (len(index) * len(at), index.shape[1] * out)
        index = (index[:, None, :, None] * size + at[None, :, None, :]).reshape(merge)
        exists = (exists[:, None, :, None] & inside[None, :, None, :]).reshape(merge)
    return index, exists
