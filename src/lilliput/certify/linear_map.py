"""Linear maps that know their transpose and their absolute value, without ever being a matrix.

Bound propagation needs four products of each linear layer: ``W x`` (tangents, and the coefficients of gradients), ``W^T g`` (gradients, and
the coefficients of activations), and the same two with ``|W|`` (interval arithmetic). Tensors have one leading axis; rows, domains and
centres have been merged into it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, ...]
_MANY_GROUPS = 8
_PLACES_A_TAP = 12


class LinearMap(ABC):
    """A linear map from tensors of shape ``inputs`` to tensors of shape ``outputs``."""

    inputs: Shape
    outputs: Shape

    @abstractmethod
    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """``W x``, or ``|W| x``: (N, *inputs) to (N, *outputs)."""

    @property
    def roundings(self) -> int:
        """How many there are at most on the way from the stored weights to one element of a product with the map or its transpose."""
        return max(prod(self.inputs), prod(self.outputs)) + 4

    @abstractmethod
    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """``W^T g``, or ``|W|^T g``: (N, *outputs) to (N, *inputs)."""

    def norm(self, order: str, like: Tensor) -> Tensor:
        """Operator norm from l_order to l_order, or an upper bound of it: for "2" the root of the other two's product."""
        if order == "inf":
            return self.apply(like.new_ones((1, *self.inputs)), absolute=True).max()
        if order == "1":
            return self.transpose(like.new_ones((1, *self.outputs)), absolute=True).max()
        return (self.norm("inf", like) * self.norm("1", like)).sqrt()


class Matrix(LinearMap):
    """A matrix on the last axis."""

    def __init__(self, weight: Tensor, inputs: Shape) -> None:
        self.weight = weight
        self.inputs, self.outputs = inputs, (*inputs[:-1], weight.shape[0])

    @cached_property
    def magnitude(self) -> Tensor:
        """``|W|``."""
        return self.weight.abs()

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return x @ (self.magnitude if absolute else self.weight).T

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return g @ (self.magnitude if absolute else self.weight)

    @property
    def roundings(self) -> int:
        """See :class:`LinearMap`."""
        return max(self.weight.shape) + 4

    def norm(self, order: str, like: Tensor) -> Tensor:
        """Exact for "2" as well."""
        return torch.linalg.matrix_norm(self.weight, 2) if order == "2" else super().norm(order, like)


class Convolution(LinearMap):
    """A convolution over one or two axes with any stride, padding, dilation and groups."""

    def __init__(
        self, weight: Tensor, inputs: Shape, outputs: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
    ) -> None:
        self.weight = weight
        self.inputs, self.outputs = inputs, outputs
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.folded_roundings = 0
        # Input rows that no window reaches get a zero gradient; conv_transpose leaves them out unless told.
        self.unreached = tuple(
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                inputs[1:], outputs[1:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        )

    @cached_property
    def magnitude(self) -> Tensor:
        """``|W|``."""
        return self.weight.abs()

    @property
    def roundings(self) -> int:
        """See :class:`LinearMap`."""
        return max(self.weight.shape[:2]) * prod(self.weight.shape[2:]) + 4 + self.folded_roundings

    @cached_property
    def matrices(self) -> Tensor | None:
        """One for each group, (groups, its inputs, its outputs), where that is the quicker form: many groups, small images.

        torch convolves groups one by one in float64. A matrix takes (places / taps) times the products, at ten times the speed or more.
        """
        per_group, places = self.inputs[0] // self.groups, prod(self.inputs[1:])
        if self.groups < _MANY_GROUPS or places > _PLACES_A_TAP * prod(self.weight.shape[2:]):
            return None
        size = per_group * places
        units = torch.eye(size, dtype=self.weight.dtype, device=self.weight.device)
        images = self._convolved(
            units.reshape(size, per_group, *self.inputs[1:]).repeat(1, self.groups, *(1,) * (len(self.inputs) - 1))
        )
        return images.reshape(size, self.groups, -1).transpose(0, 1).contiguous()

    def scaled(self, factor: Tensor) -> Convolution | None:
        """The convolution times a factor for each of its channels, folded from a batch norm; none where a product underflows."""
        factor = factor.reshape(-1, *(1,) * (self.weight.dim() - 1))
        weight = self.weight * factor
        if bool(((weight.abs() < torch.finfo(weight.dtype).tiny) & (self.weight != 0) & (factor != 0)).any()):
            return None
        result = type(self)(weight, self.inputs, self.outputs, self.stride, self.padding, self.dilation, self.groups)
        result.folded_roundings = 12
        return result

    def _grouped(self, x: Tensor, matrices: Tensor, outputs: Shape) -> Tensor:
        groups = x.reshape(len(x), *matrices.shape[:2]).transpose(0, 1)
        return (groups @ matrices).transpose(0, 1).reshape(len(x), *outputs)

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        if self.matrices is not None:
            return self._grouped(x, self.matrices.abs() if absolute else self.matrices, self.outputs)
        return self._convolved(x, absolute)

    def _convolved(self, x: Tensor, absolute: bool = False) -> Tensor:
        convolve = F.conv1d if self.weight.dim() == 3 else F.conv2d
        weight = self.magnitude if absolute else self.weight
        return convolve(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        if self.matrices is not None:
            matrices = self.matrices.transpose(1, 2)
            return self._grouped(g, matrices.abs() if absolute else matrices, self.inputs)
        convolve = F.conv_transpose1d if self.weight.dim() == 3 else F.conv_transpose2d
        weight = self.magnitude if absolute else self.weight
        # torch wants its output padding below the stride or the dilation; what is beyond is padded by hand.
        inside = tuple(
            min(u, max(s, d) - 1) for u, s, d in zip(self.unreached, self.stride, self.dilation, strict=True)
        )
        x = convolve(g, weight, None, self.stride, self.padding, inside, self.groups, self.dilation)
        rest = [u - i for u, i in zip(self.unreached, inside, strict=True)]
        return F.pad(x, [edge for r in reversed(rest) for edge in (0, r)]) if any(rest) else x


class SummedConvolution(Convolution):
    """One in float32 whose every element is a plain sum of products: torch has no fast transforms, which round otherwise, in float64."""

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return self._wide.apply(x.double(), absolute).to(x.dtype)

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return self._wide.transpose(g.double(), absolute).to(g.dtype)

    @cached_property
    def _wide(self) -> Convolution:
        return Convolution(
            self.weight.double(), self.inputs, self.outputs, self.stride, self.padding, self.dilation, self.groups
        )


class Scale(LinearMap):
    """A factor for each element; it broadcasts to the input, and never makes it larger."""

    def __init__(self, factor: Tensor, inputs: Shape) -> None:
        self.factor = factor
        self.inputs = self.outputs = inputs

    @property
    def roundings(self) -> int:
        """One, and those of a factor folded from a batch norm."""
        return 12

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return x * (self.factor.abs() if absolute else self.factor)

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return self.apply(g, absolute)

    def norm(self, order: str, like: Tensor) -> Tensor:
        """Exact for every order."""
        return self.factor.abs().max()


class Identity(LinearMap):
    """The same tensor, perhaps under another shape."""

    def __init__(self, inputs: Shape, outputs: Shape) -> None:
        self.inputs, self.outputs = inputs, outputs

    @property
    def roundings(self) -> int:
        """None."""
        return 0

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return x.reshape(len(x), *self.outputs)

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return g.reshape(len(g), *self.inputs)


class Positive(LinearMap):
    """A linear map without negative entries, given by the function that applies it: data movement, sums, averages.

    Its transpose is the function's vector-Jacobian product, so the two cannot disagree.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], inputs: Shape, outputs: Shape) -> None:
        self.function = function
        self.inputs, self.outputs = inputs, outputs

    def apply(self, x: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        return self.function(x)

    def transpose(self, g: Tensor, absolute: bool = False) -> Tensor:
        """See :class:`LinearMap`."""
        pull_back = torch.func.vjp(self.function, g.new_zeros((len(g), *self.inputs)))[1]
        (x,) = pull_back(g)
        return x
