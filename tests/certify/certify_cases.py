"""Subjects for the room's tests: a small network around each kind of node, and plain multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fn(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.two(F.relu(self.one(x)))))


@dataclass(frozen=True)
class NetCase:
    """A network, its input's shape without batch, and a radius at which gates are undecided."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    eps: float = 0.1
    slack: float = 1e-9
    """Relative to the largest element of the Jacobian: rounding of sums of a few hundred float64 terms."""

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(3)
        model = self.build().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -0.3, 0.3)
        return model.to(dtype)

    def centre(self, count: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return torch.randn(
            (*(() if count is None else (count,)), *self.shape), generator=generator, dtype=torch.float64
        )


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, seed: int = 0, gain: float = 1.0) -> nn.Sequential:
    """Weights as torch draws them, times ``gain``, in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), act()]
    model = nn.Sequential(*layers[:-1]).double().eval()
    for parameter in model.parameters():
        parameter.data *= gain
    return model


def gate(act: Callable[[], nn.Module], scale: float = 3.0) -> Callable[[], nn.Module]:
    """Two hidden layers, spread so that every piece of the gate is met."""
    return lambda: nn.Sequential(
        nn.Linear(5, 8), Fn(lambda x: scale * x), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)
    )


def conv(*middle: nn.Module, features: int, first: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(first or nn.Conv2d(2, 4, 3, padding=1), *middle, nn.Flatten(), nn.Linear(features, 3))


IMAGE = (2, 6, 5)
CASES = [
    NetCase("relu", gate(nn.ReLU), (5,)),
    NetCase("leaky_relu", gate(lambda: nn.LeakyReLU(0.2)), (5,)),
    NetCase("leaky_relu_negative", gate(lambda: nn.LeakyReLU(-0.5)), (5,)),
    NetCase("prelu", gate(lambda: nn.PReLU(8, init=0.3)), (5,)),
    NetCase("relu6", gate(nn.ReLU6, 8.0), (5,)),
    NetCase("hard_tanh", gate(lambda: nn.Hardtanh(-0.5, 1.0)), (5,)),
    # torch's own gradient of it holds 1/6 in float32, whatever the dtype
    NetCase("hard_sigmoid", gate(nn.Hardsigmoid, 6.0), (5,), slack=1e-7),
    NetCase("hard_swish", gate(nn.Hardswish, 6.0), (5,)),
    NetCase("tanh", gate(nn.Tanh), (5,)),
    NetCase("sigmoid", gate(nn.Sigmoid), (5,)),
    NetCase("silu", gate(nn.SiLU), (5,)),
    NetCase("gelu", gate(nn.GELU), (5,)),
    NetCase("gelu_tanh", gate(lambda: nn.GELU("tanh")), (5,)),
    NetCase("softplus", gate(lambda: nn.Softplus(2)), (5,)),
    NetCase("elu", gate(nn.ELU), (5,)),
    NetCase("elu_steep", gate(lambda: nn.ELU(2.0)), (5,)),
    NetCase("conv_strided", lambda: conv(nn.ReLU(), nn.Conv2d(4, 6, 3, 2), nn.ReLU(), features=24), IMAGE),
    NetCase("conv_unreached", lambda: conv(nn.ReLU(), features=8, first=nn.Conv2d(2, 4, 2, stride=4)), IMAGE),
    NetCase("conv_dilated_grouped",
            lambda: conv(nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2), nn.ReLU(), features=120), IMAGE),
    NetCase("conv_1d", lambda: nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 7)),
    NetCase("batch_norm", lambda: conv(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                                       features=48), IMAGE),
    NetCase("residual", lambda: conv(Residual(4), features=120), IMAGE),
    NetCase("avg_pool", lambda: conv(nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), features=36), IMAGE),
    NetCase("adaptive_avg_pool", lambda: conv(nn.ReLU(), nn.AdaptiveAvgPool2d((4, 2)), features=32), IMAGE),
    NetCase("mean", lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Fn(lambda x: x.mean((2, 3))), nn.Linear(4, 3)), IMAGE),
    NetCase("max_pool", lambda: conv(nn.MaxPool2d(2), features=24), IMAGE),
    NetCase("max_pool_overlapping", lambda: conv(nn.ReLU(), nn.MaxPool2d(3, 2, 1), features=36), IMAGE),
    NetCase("max_pool_ceil_dilated", lambda: conv(nn.MaxPool2d(2, 2, 1, dilation=2, ceil_mode=True), features=48), IMAGE),
    NetCase("concat", lambda: conv(Fn(lambda x: torch.cat([x.relu(), x, -x.tanh()], 1)), features=360), IMAGE),
    NetCase("slice_permute", lambda: conv(nn.ReLU(), Fn(lambda x: x[:, 1:, ::2].permute(0, 2, 3, 1)), features=45), IMAGE),
    NetCase("arithmetic", lambda: conv(Fn(lambda x: 1 - 2 * x + x.relu() / 3 - x.mean((2, 3), keepdim=True)), features=120), IMAGE),
    NetCase("pad_upsample", lambda: conv(nn.ConstantPad2d((1, 0, 0, 2), 0.5), nn.ReLU(), nn.Upsample(scale_factor=2),
                                         features=768), IMAGE, 0.05),
    NetCase("matmul_dropout", lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(), nn.ReLU(), Fn(_times_constant)), (5,)),
    NetCase("shared_relu", lambda: (lambda r: nn.Sequential(nn.Linear(5, 8), r, nn.Linear(8, 8), r, nn.Linear(8, 3)))(nn.ReLU()),
            (5,), 0.5),
]  # fmt: skip


def _times_constant(x: Tensor) -> Tensor:
    return x @ torch.linspace(-1, 1, 18, dtype=x.dtype).reshape(6, 3)
