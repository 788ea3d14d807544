"""Small networks of the families that people put on microcontrollers, and calibration data for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fn(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sum(nn.Module):
    """Adds what two branches make of one input."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Join(Sum):
    """Concatenates their channels instead."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)


def conv_bn(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU6
) -> nn.Module:
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([act()] if act else []))


def inverted_residual(cin: int, cout: int, stride: int) -> nn.Module:
    body = nn.Sequential(
        conv_bn(cin, 3 * cin, 1), conv_bn(3 * cin, 3 * cin, 3, stride, 3 * cin), conv_bn(3 * cin, cout, 1, act=None)
    )
    return Sum(nn.Identity(), body) if stride == 1 and cin == cout else body


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2),
        inverted_residual(8, 8, 1),
        inverted_residual(8, 12, 2),
        inverted_residual(12, 12, 1),
        conv_bn(12, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def resnet() -> nn.Module:
    def block(cin: int, cout: int, stride: int) -> nn.Module:
        body = nn.Sequential(conv_bn(cin, cout, 3, stride, act=nn.ReLU), conv_bn(cout, cout, act=None))
        skip = nn.Identity() if stride == 1 and cin == cout else conv_bn(cin, cout, 1, stride, act=None)
        return nn.Sequential(Sum(body, skip), nn.ReLU())

    return nn.Sequential(
        conv_bn(3, 8, act=nn.ReLU),
        nn.MaxPool2d(2),
        block(8, 8, 1),
        block(8, 16, 2),
        Fn(lambda x: x.mean((2, 3))),
        nn.Linear(16, 5),
    )


def ds_cnn() -> nn.Module:
    blocks = [
        layer
        for _ in range(2)
        for layer in (conv_bn(12, 12, 3, groups=12, act=nn.ReLU), conv_bn(12, 12, 1, act=nn.ReLU))
    ]
    return nn.Sequential(
        nn.Conv2d(1, 12, (10, 4), (2, 2), (4, 1)), nn.BatchNorm2d(12), nn.ReLU(), *blocks, nn.Dropout(0.4),
        nn.AvgPool2d((10, 5)), nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 16),
        nn.Tanh(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 3),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        gates = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.excite(F.relu(self.squeeze(gates))))


def squeeze_excite(gate: Callable[[], nn.Module] = nn.Hardsigmoid) -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 12, 3, 2, act=nn.Hardswish), SqueezeExcite(12, gate()), nn.Flatten(), nn.Linear(12 * 36, 5)
    )


def unet() -> nn.Module:
    """Down, up and a concatenation with what was before."""
    down = nn.Sequential(nn.MaxPool2d(2), conv_bn(8, 8), nn.Upsample(scale_factor=2))
    return nn.Sequential(conv_bn(3, 8), Join(nn.Identity(), down), nn.Conv2d(16, 2, 1))


def conv_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v2": (mobilenet_v2, (3, 16, 16)),
    "resnet": (resnet, (3, 12, 12)),
    "ds_cnn": (ds_cnn, (1, 20, 10)),
    "mlp": (mlp, (20,)),
    "squeeze_excite": (squeeze_excite, (3, 12, 12)),
    "squeeze_excite_sigmoid": (lambda: squeeze_excite(nn.Sigmoid), (3, 12, 12)),
    "unet": (unet, (3, 8, 8)),
    "conv_1d": (conv_1d, (4, 32)),
}


def prepared(build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in evaluation mode with batch statistics of its data and a non-trivial affine; calibration and test data."""
    torch.manual_seed(seed)
    model = build()
    data = torch.randn(192, *shape)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(data[:128])
    return model.eval(), data[:128], data[128:]


def signal_to_noise_db(model: Callable[[Tensor], Tensor], outputs: Tensor, x: Tensor) -> float:
    """10 log10 of the float output's variance over the mean squared difference."""
    with torch.no_grad():
        truth = model(x)
    return float(10 * torch.log10(truth.var() / (truth - outputs).square().mean()))
