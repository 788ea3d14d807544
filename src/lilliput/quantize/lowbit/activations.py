"""SplitQuant's activation splitting: one activation module for each chunk of a tensor.

A toolchain that observes ranges gives each copy its own scale and zero point. Only functions of one value may be cut: softmax normalises
over the whole axis, so cutting it would change the function.

Source: Song and Lin 2025 (arXiv:2501.12428), section 3. As published, chunks lie along axis 1: channels of an image's features, but
tokens of (batch, tokens, features); ``dim`` chooses.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from lilliput.errors import ConfigError

ELEMENTWISE = (
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6",
    "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
)  # fmt: skip
"""Activation modules of torch whose output is a function of one value: the same one for every value."""


class SplitActivation(nn.Module):
    """An activation in k copies, each for a chunk along one axis; sizes that k does not divide give uneven chunks."""

    def __init__(self, activation: nn.Module, k: int = 3, dim: int = 1) -> None:
        """Args as :class:`SplitConfig` has them.

        Raises:
            ConfigError: not a function of one value.
        """
        super().__init__()
        check_elementwise(type(activation).__name__)
        self.dim = dim
        self.parts = nn.ModuleList(copy.deepcopy(activation) for _ in range(k))
        for part in self.parts:
            if hasattr(part, "inplace"):
                cast(
                    nn.ReLU, part
                ).inplace = False  # chunks are views of one tensor, which autograd lets nobody overwrite

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The activation of every value."""
        chunks = torch.tensor_split(x, len(self.parts), dim=self.dim)
        return torch.cat([part(chunk) for part, chunk in zip(self.parts, chunks, strict=True)], dim=self.dim)


def check_elementwise(name: str) -> None:
    """Raises ConfigError unless a class of torch.nn is known to be a function of one value."""
    if name not in ELEMENTWISE:
        raise ConfigError(
            f"activation {name} is not known to act on each value alone, so cutting it may change it; can cut {', '.join(ELEMENTWISE)}"
        )
