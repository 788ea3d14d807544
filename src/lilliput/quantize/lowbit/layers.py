"""Layers whose weight is packed: dequantize, then compute as the original would; linear ones multiply without dequantizing where they can.

``weight`` is the dequantized tensor, made anew at each read: code that reaches into a layer (a tied decoder, a fused path of torch) sees
what the layer computes with.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.quantize.lowbit.matmul import Kernel, can_compute, is_compiled, kernel_name, linear
from lilliput.quantize.lowbit.stored import StoredWeight

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding
"""What can be quantized, once attention shows its projections."""


class QuantizedLayer(nn.Module):
    """A layer with a packed weight."""

    packed: StoredWeight
    bias: nn.Parameter | None

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, float32."""
        return self.packed.dequantize()

    def weight_as(self, x: Tensor) -> Tensor:
        """The dequantized weight in the type of an input."""
        return self.packed.dequantize().to(x.dtype)


class QuantizedLinear(QuantizedLayer):
    """``nn.Linear`` with a packed weight."""

    kernel: Kernel = "auto"
    """What multiplies; :meth:`QuantizedModel.use_kernel` sets it for all layers."""

    def __init__(self, layer: nn.Linear, packed: StoredWeight) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed, self.bias = packed, copied(layer.bias)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """``x @ weight.T + bias``; by the two kernels, the same up to the order of sums."""
        packed, bias = self.packed, self.bias
        if is_compiled(self.kernel) and can_compute(x, packed, bias):
            return linear(x, packed, bias)
        return F.linear(x, self.weight_as(x), bias)

    def extra_repr(self) -> str:
        """As torch prints a linear layer, and which kernel multiplies."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, kernel={kernel_name(self.kernel)}"


class _QuantizedConv(QuantizedLayer):
    def __init__(self, layer: nn.Conv1d | nn.Conv2d, packed: StoredWeight) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode, self.groups = layer.padding, layer.padding_mode, layer.groups
        # Left, right, top, bottom as F.pad takes them: only modes other than zeros need them.
        self.reversed_padding = list(layer._reversed_padding_repeated_twice)
        self.packed, self.bias = packed, copied(layer.bias)

    def _padded(self, x: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
        if self.padding_mode == "zeros":
            return x, self.padding
        return F.pad(x, self.reversed_padding, mode=self.padding_mode), (0,) * len(self.kernel_size)

    def extra_repr(self) -> str:
        """As torch prints a convolution."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, groups={self.groups}"


class QuantizedConv1d(_QuantizedConv):
    """``nn.Conv1d`` with a packed weight."""

    def forward(self, x: Float[Tensor, "*batch channel length"]) -> Float[Tensor, "*batch out out_length"]:
        """The convolution."""
        x, padding = self._padded(x)
        return F.conv1d(x, self.weight_as(x), self.bias, self.stride, padding, self.dilation, self.groups)


class QuantizedConv2d(_QuantizedConv):
    """``nn.Conv2d`` with a packed weight."""

    def forward(
        self, x: Float[Tensor, "*batch channel height width"]
    ) -> Float[Tensor, "*batch out out_height out_width"]:
        """The convolution."""
        x, padding = self._padded(x)
        return F.conv2d(x, self.weight_as(x), self.bias, self.stride, padding, self.dilation, self.groups)


class QuantizedEmbedding(QuantizedLayer):
    """``nn.Embedding`` with a packed weight."""

    def __init__(self, layer: nn.Embedding, packed: StoredWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = (
            layer.num_embeddings,
            layer.embedding_dim,
            layer.padding_idx,
        )
        self.dtype = layer.weight.dtype
        self.packed, self.bias = packed, None

    def forward(self, indices: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """The embedding of each index."""
        return F.embedding(indices, self.packed.dequantize().to(self.dtype))

    def extra_repr(self) -> str:
        """As torch prints an embedding."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def quantized_layer(layer: Layer, packed: StoredWeight) -> QuantizedLayer:
    """The layer with its weight replaced."""
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer, packed)
    if isinstance(layer, nn.Conv1d):
        return QuantizedConv1d(layer, packed)
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, packed)
    return QuantizedEmbedding(layer, packed)


def copied(parameter: Tensor | None) -> nn.Parameter | None:
    """A parameter of its own with the same values: training one network does not move the other."""
    return None if parameter is None else nn.Parameter(torch.clone(parameter.detach()), parameter.requires_grad)
