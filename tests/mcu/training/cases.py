"""Small networks, one a kind of operation that a gradient passes, quantized after training as users' networks are."""

from collections.abc import Callable

import torch
from torch import nn

from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize import quantize_int8
from lilliput.quantize.qgraph import QuantizedGraph


def _body(*layers: nn.Module, channels: int, size: int = 7) -> Callable[[], nn.Module]:
    """A first layer, what is to be tested, a convolution after it, a head."""

    def make() -> nn.Module:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *layers, nn.Conv2d(channels, 5, 1), head)

    return make


class Residual(nn.Module):
    """A skip connection whose two sides have different scales, behind a layer that is trained through both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(6, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head((x + self.inner(x)).mean((2, 3)))


class FanOut(nn.Module):
    """One tensor read by three operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head(((self.one(x) + x) + self.two(x)).mean((2, 3)))


class Flattened(nn.Module):
    """Linear layers after a flattened image, as in small keyword and digit networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.hidden, self.head = nn.Linear(36, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.first(x)).flatten(1))))


CASES: dict[str, Callable[[], nn.Module]] = {
    "pointwise": _body(nn.Conv2d(6, 9, 1), nn.ReLU6(), channels=9),
    "3x3": _body(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), channels=8),
    "3x3 stride 2, one-sided padding": _body(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 8, 3, stride=2), channels=8),
    "3x3 dilated": _body(nn.Conv2d(6, 8, 3, padding=2, dilation=2), nn.ReLU(), channels=8),
    "grouped": _body(nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.ReLU(), channels=8),
    "oblong": _body(nn.Conv2d(6, 8, (1, 4), stride=(2, 3), padding=(0, 2)), channels=8),
    "depthwise 3x3": _body(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(), channels=6),
    "depthwise 5x5 stride 2": _body(nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6), channels=6),
    "depthwise multiplied": _body(nn.Conv2d(6, 12, 3, padding=1, groups=6), channels=12),
    "average pool": _body(nn.Conv2d(6, 8, 1), nn.AvgPool2d(2), channels=8),
    "average pool, overlapping and padded": _body(
        nn.Conv2d(6, 8, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), channels=8
    ),
    "residual": Residual,
    "fan-out of three": FanOut,
    "flattened": Flattened,
}


def quantized(name: str, size: int = 7, seed: int = 0) -> QuantizedGraph:
    """The network of a case, random and quantized on random images."""
    torch.manual_seed(seed)
    model = CASES[name]().eval()
    return quantize_int8(model, torch.randn(16, 3, size, size))


def sparse(qgraph: QuantizedGraph, bias_depth: int = 12, layers: int = 2) -> UpdatePlan:
    """The first pointwise convolutions of the last blocks, as published schemes have them."""
    found = weighted_layers(qgraph)[-bias_depth:]
    first = [op.name for op in found if op.weight.shape[1:3] == (1, 1) and op.weight.shape[0] > op.weight.shape[3]]
    return UpdatePlan.from_ratios(qgraph, bias_depth, dict.fromkeys(first[:layers], 0.5))
