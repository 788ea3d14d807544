"""Quantize the weights of any network to a few bits, without data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lilliput.errors import ConfigError, DataError, LilliputError
from lilliput.quantize.lowbit.config import Method
from lilliput.quantize.lowbit.granularity import columns_per_set
from lilliput.quantize.lowbit.ladders import Encoded, Ladders, row_blocks
from lilliput.quantize.lowbit.layers import QuantizedLayer, QuantizedLinear, quantized_layer
from lilliput.quantize.lowbit.matmul import Kernel, check_kernel
from lilliput.quantize.lowbit.rebuild import Plan, Surgery, chosen, inventory, storage_key
from lilliput.quantize.lowbit.stored import StoredWeight, pack


class QuantizedModel(nn.Module):
    """A network whose weights are packed; called as the original is.

    ``module`` is the network itself, for attributes and methods of its own.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.module = module
        self.plan = plan
        """Which attention modules became layers, and which batch norms were folded."""
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        return self.module(*args, **kwargs)

    def use_kernel(self, kernel: Kernel) -> QuantizedModel:
        """Choose what multiplies in linear layers; returns the model.

        Args:
            kernel: 'c': compiled kernels for float32 inputs on a CPU where no gradient is asked for; 'torch': dequantize, then multiply,
                as everything else does; 'auto', the default: 'c' where there is a C compiler. ``print(model)`` says which it is.
        Raises:
            ConfigError: another word.
            ToolchainError: 'c', and nothing compiles it (says what is missing).
        """
        check_kernel(kernel)
        for layer in self.quantized_layers.values():
            if isinstance(layer, QuantizedLinear):
                layer.kernel = kernel
        return self

    @property
    def quantized_layers(self) -> dict[str, QuantizedLayer]:
        """Every packed layer by its first path."""
        return {path: layer for path, layer in self.module.named_modules() if isinstance(layer, QuantizedLayer)}

    @property
    def stored_weights(self) -> dict[str, StoredWeight]:
        """Every packed weight by the path of the first layer that has it: tied weights once."""
        result: dict[str, StoredWeight] = {}
        for path, layer in self.quantized_layers.items():
            if all(layer.packed is not stored for stored in result.values()):
                result[path] = layer.packed
        return result

    @property
    def quantized_weight_count(self) -> int:
        """Weights that are packed, tied ones once."""
        return sum(math.prod(stored.layout.shape) for stored in self.stored_weights.values())

    def stored_bits_per_weight(self) -> float:
        """Bits of codes, indices, steps, starts and tables, as they lie in a file, for each quantized weight.

        Biases and whatever stayed in floating point are not in it; :meth:`stored_bytes` counts everything.
        """
        return 8 * sum(stored.byte_count for stored in self.stored_weights.values()) / self.quantized_weight_count

    def extra_repr(self) -> str:
        """One line of ``print(model)``."""
        return f"{self.quantized_weight_count:,} weights at {self.stored_bits_per_weight():.3f} bits"


def quantize(model: nn.Module, config: Method) -> QuantizedModel:
    """A copy of a network with the weights of its layers quantized.

    Deterministic and without data. Layers that share a weight share its packed form. The model itself is not changed, and shares no memory
    with the copy.

    Args:
        model: any module with Linear, Conv1d, Conv2d, Embedding or MultiheadAttention layers; floating point.
        config: a method: SplitConfig, RoundToNearest, LookupTable or HalfQuadratic.
    Raises:
        ConfigError: no layer to quantize, or the config does not fit one (names the layer).
        DataError: a weight is NaN, infinite, empty or not floating point (names the layer).
    """
    surgery = Surgery(model, config)
    packed: dict[tuple[Any, ...], StoredWeight] = {}
    paths = list(chosen(surgery, config))
    if not paths:
        raise ConfigError(
            f"no layer to quantize: {inventory(model, surgery)}; the config takes {', '.join(config.layers)}"
        )
    for path, layer in paths:
        key = storage_key(layer.weight)
        if key not in packed:
            weight = checked(layer.weight, path)
            try:
                encoded = encode(weight, config)
            except LilliputError as error:
                raise type(error)(f"layer '{path}': {error}") from None
            packed[key] = pack(encoded, config.storage, tuple(weight.shape))
        surgery.replace(path, quantized_layer(layer, packed[key]))
    return QuantizedModel(surgery.finish(), surgery.plan)


def encode(weight: Float[Tensor, "rows *rest"], method: Method) -> Encoded:
    """Symbols and ladders of a weight, rows first; a block of rows at a time where rows have nothing in common.

    Weights are scaled by a power of two first, which changes no digit, so that steps and starts use the range of float16.
    """
    matrix = weight.detach().flatten(1)
    gain = _gain(matrix)
    if "tensor" in (method.granularity, getattr(method, "clusters", None)):
        encoded = method.encode(matrix.float() / gain, gain)
        return replace(encoded, ladders=replace(encoded.ladders, gain=gain))
    parts = [method.encode(matrix[block].float() / gain, gain) for block in row_blocks(*matrix.shape)]
    width = columns_per_set(method.granularity, method.group_size, matrix.shape[1])
    return Encoded(torch.cat([part.symbols for part in parts]), _stacked([part.ladders for part in parts], gain), width)


def scaled(weight: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows columns"]:
    """The weight as a float32 matrix whose largest entry has size 2**13 to 2**14, as methods take it."""
    matrix = weight.detach().flatten(1)
    return matrix.float() / _gain(matrix)


def checked(weight: Tensor, path: str) -> Tensor:
    """The weight, if it can be quantized.

    Raises:
        DataError: otherwise; names the layer.
    """
    if weight.is_meta:
        raise DataError(f"layer '{path}' is on the meta device and has no values; load the model's weights first")
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise DataError(
            f"layer '{path}' has weights of {weight.dtype}; needs floating point; convert with layer.float()"
        )
    if weight.numel() == 0:
        raise DataError(f"layer '{path}' has no weights (shape {list(weight.shape)}); skip it: skip=('{path}',)")
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise DataError(
            f"layer '{path}' has {count:,} NaN or infinite weights of {weight.numel():,}; skip=('{path}',) leaves it"
        )
    return weight


def _gain(matrix: Tensor) -> float:
    largest = max((float(matrix[block].abs().max()) for block in row_blocks(*matrix.shape)), default=0.0)
    if largest == 0.0:
        return 1.0
    exponent = math.frexp(largest)[1]
    return math.ldexp(1.0, min(max(exponent, -100), 100) - 14)  # the largest weight becomes 2**13 to 2**14


def _stacked(ladders: list[Ladders], gain: float) -> Ladders:
    def rows(name: str) -> Tensor | None:
        parts = [getattr(each, name) for each in ladders]
        return None if parts[0] is None else torch.cat(parts)

    return Ladders(ladders[0].bits, rows("step"), rows("start"), rows("zero"), gain)
