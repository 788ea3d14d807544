"""SplitQuant's plain form: each layer as k layers of the same kind whose outputs add up.

For toolchains that know affine integers and nothing else: the network computes the same function as before, and whatever they quantize,
each part has the narrow range of its cluster. It costs k matrix products, and k times the codes; ``quantize`` packs the same split into
symbols.

Source: Song and Lin 2025 (arXiv:2501.12428), section 3. Ours: exact k-means; the bias stays whole, in the first part (splitting it saves
nothing: toolchains hold biases in 32 bits); convolutions, embeddings and attention projections too.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lilliput.errors import ConfigError
from lilliput.quantize.lowbit.activations import SplitActivation
from lilliput.quantize.lowbit.layers import Layer
from lilliput.quantize.lowbit.model import checked, scaled
from lilliput.quantize.lowbit.rebuild import Surgery, chosen, inventory, storage_key
from lilliput.quantize.lowbit.splitquant import SplitConfig, assign


class SplitLayer(nn.Module):
    """k layers of one kind whose outputs add up to the original's."""

    def __init__(self, parts: list[Layer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the parts' outputs."""
        return functools.reduce(torch.add, [part(x) for part in self.parts])

    @property
    def weight(self) -> Tensor:
        """The original weight, to the bit."""
        weights = [cast(Tensor, part.weight) for part in self.parts]
        return functools.reduce(torch.add, weights)

    @property
    def bias(self) -> Tensor | None:
        """The original bias."""
        return cast("Tensor | None", self.parts[0].bias)


def split(model: nn.Module, config: SplitConfig) -> nn.Module:
    """A copy of a network whose layers are split into k parts each: the same function, in narrower ranges.

    Layers that share a weight share its parts. Nothing is quantized: of the config, ``k``, ``clusters``, ``split_by`` and which layers
    count, and the bits where the split is by error.

    Raises:
        ConfigError: no layer to split.
        DataError: a weight is NaN, infinite, empty or not floating point (names the layer).
    """
    surgery = Surgery(model, config)
    shared: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    paths = list(chosen(surgery, config))
    if not paths:
        raise ConfigError(
            f"no layer to split: {inventory(model, surgery)}; the config takes {', '.join(config.layers)}"
        )
    for path, layer in paths:
        key = storage_key(layer.weight)
        if key not in shared:
            weight = checked(layer.weight, path).detach()
            shared[key] = [nn.Parameter(part, layer.weight.requires_grad) for part in masked_parts(weight, config)]
        surgery.replace(path, SplitLayer(_parts(layer, shared[key])))
    for path, module in model.named_modules():
        if type(module).__name__ in config.activations:
            surgery.substitute(path, SplitActivation(module, config.k, config.activation_dim))
    return surgery.finish()


def masked_parts(weight: Float[Tensor, "*shape"], config: SplitConfig) -> list[Float[Tensor, "*shape"]]:
    """One tensor for each cluster; where a weight belongs to another cluster it is -0.0.

    Minus zero is what leaves every number as it is when added, minus zero included: the parts add up to the weight bit for bit.
    """
    cluster = assign(scaled(weight), config).reshape(weight.shape)
    neutral = torch.tensor(-0.0, dtype=weight.dtype, device=weight.device)
    return [torch.where(cluster == index, weight, neutral) for index in range(config.k)]


def _parts(layer: Layer, weights: list[nn.Parameter]) -> list[Layer]:
    parts = []
    for index, weight in enumerate(weights):
        part = copy.deepcopy(layer, {id(layer.weight): weight})
        part.weight = weight
        if index > 0 and not isinstance(part, nn.Embedding):
            part.bias = None
        parts.append(part)
    return parts
