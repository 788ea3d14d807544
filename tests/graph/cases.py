"""Subjects for the graph's tests: one row an op, and the six network families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.graph import Graph, Op, trace

_GRAPHS: dict[str, Graph] = {}


@dataclass(frozen=True)
class Case:
    """A module, the shape of its input, and the kinds its graph must consist of."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ops: tuple[Op, ...]
    integers: int = 0
    """Above 0: the input holds integers below this, not reals."""

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval()
        for module in model.modules():  # running statistics and affine terms that would show a mix-up
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 2)
                    nn.init.uniform_(module.bias, -1, 1)
        return model

    def graph(self) -> Graph:
        """Traced with batch 1, once a process: tracing is most of the time these tests take."""
        if self.name not in _GRAPHS:
            _GRAPHS[self.name] = trace(self.model(), self.example())
        return _GRAPHS[self.name]

    def example(self, batch: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = (batch, *self.shape[1:])
        if self.integers:
            return torch.randint(self.integers, shape, generator=generator)
        return torch.randn(shape, generator=generator)


class Fn(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def seq(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules)


def fn(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Fn(function)


IMAGE = (1, 4, 9, 7)
OP_CASES = [
    Case("conv", lambda: nn.Conv2d(4, 6, 3), IMAGE, (Op.CONV,)),
    Case("conv_strided", lambda: nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), bias=False), IMAGE, (Op.CONV,)),
    Case("conv_dilated_grouped", lambda: nn.Conv2d(4, 8, 3, dilation=2, padding=2, groups=2), IMAGE, (Op.CONV,)),
    Case("conv_depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), IMAGE, (Op.CONV,)),
    Case("conv_same", lambda: nn.Conv2d(4, 6, 3, padding="same"), IMAGE, (Op.CONV,)),
    Case("conv_same_even", lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), IMAGE, (Op.PAD, Op.CONV)),
    Case("conv_1d", lambda: nn.Conv1d(4, 6, 3, 2, 1), (1, 4, 11), (Op.CONV,)),
    Case("linear", lambda: nn.Linear(5, 3), (1, 5), (Op.LINEAR,)),
    Case("linear_sequence", lambda: nn.Linear(5, 3, bias=False), (1, 7, 5), (Op.LINEAR,)),
    Case("batch_norm", lambda: nn.BatchNorm2d(4), IMAGE, (Op.BATCH_NORM,)),
    Case("batch_norm_plain", lambda: nn.BatchNorm2d(4, affine=False), IMAGE, (Op.BATCH_NORM,)),
    Case("layer_norm", lambda: nn.LayerNorm(5), (1, 7, 5), (Op.LAYER_NORM,)),
    Case("embedding", lambda: nn.Embedding(11, 5), (1, 7), (Op.EMBEDDING,), integers=11),
    Case("relu", lambda: nn.ReLU(inplace=True), IMAGE, (Op.RELU,)),
    Case("relu_clamp", fn(lambda x: x.clamp(min=0)), IMAGE, (Op.RELU,)),
    Case("relu6", lambda: nn.ReLU6(), IMAGE, (Op.RELU6,)),
    Case("relu6_clamp", fn(lambda x: torch.clamp(5 * x, 0, 6)), IMAGE, (Op.MUL, Op.RELU6)),
    Case("hard_swish", lambda: nn.Hardswish(inplace=True), IMAGE, (Op.HARD_SWISH,)),
    Case("hard_sigmoid", lambda: nn.Hardsigmoid(), IMAGE, (Op.HARD_SIGMOID,)),
    Case("sigmoid", lambda: nn.Sigmoid(), IMAGE, (Op.SIGMOID,)),
    Case("silu", lambda: nn.SiLU(), IMAGE, (Op.SILU,)),
    Case("tanh", lambda: nn.Tanh(), IMAGE, (Op.TANH,)),
    Case("gelu", lambda: nn.GELU(), IMAGE, (Op.GELU,)),
    Case("gelu_tanh", lambda: nn.GELU("tanh"), IMAGE, (Op.GELU,)),
    Case("leaky_relu", lambda: nn.LeakyReLU(0.1), IMAGE, (Op.LEAKY_RELU,)),
    Case("prelu", lambda: nn.PReLU(4, init=0.3), IMAGE, (Op.PRELU,)),
    Case("hard_tanh", lambda: nn.Hardtanh(-0.5, 1), IMAGE, (Op.HARD_TANH,)),
    Case("hard_tanh_clamp", fn(lambda x: x.clamp(-1, 1)), IMAGE, (Op.HARD_TANH,)),
    Case("softplus", lambda: nn.Softplus(2), IMAGE, (Op.SOFTPLUS,)),
    Case("elu", lambda: nn.ELU(0.7), IMAGE, (Op.ELU,)),
    Case("softmax", lambda: nn.Softmax(-1), (1, 5), (Op.SOFTMAX,)),
    Case("add", fn(lambda x: x + F.relu(x)), IMAGE, (Op.RELU, Op.ADD)),
    Case("add_inplace", fn(lambda x: F.relu(x).add_(x, alpha=0.5)), IMAGE, (Op.RELU, Op.MUL, Op.ADD)),
    Case("sub", fn(lambda x: 1 - x), IMAGE, (Op.SUB,)),
    Case("mul", fn(lambda x: x * x.mean((2, 3), keepdim=True)), IMAGE, (Op.MEAN, Op.MUL)),
    Case("div_neg", fn(lambda x: -(x / 3)), IMAGE, (Op.MUL, Op.MUL)),
    Case("matmul", fn(lambda x: x @ x.transpose(-1, -2)), (1, 3, 4, 5), (Op.PERMUTE, Op.MATMUL)),
    Case("attention", fn(lambda x: F.scaled_dot_product_attention(x, x, x)), (1, 2, 6, 4),
         (Op.PERMUTE, Op.MUL, Op.MATMUL, Op.SOFTMAX, Op.MATMUL)),
    Case("attention_causal", fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), (1, 2, 6, 4),
         (Op.PERMUTE, Op.MUL, Op.MATMUL, Op.ADD, Op.SOFTMAX, Op.MATMUL)),
    Case("max_pool", lambda: nn.MaxPool2d(3, 2, 1), IMAGE, (Op.MAX_POOL,)),
    Case("max_pool_ceil", lambda: nn.MaxPool2d(2, ceil_mode=True), IMAGE, (Op.MAX_POOL,)),
    Case("avg_pool", lambda: nn.AvgPool2d((2, 3)), IMAGE, (Op.AVG_POOL,)),
    Case("avg_pool_padded", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE, (Op.AVG_POOL,)),
    Case("adaptive_even", lambda: nn.AdaptiveAvgPool2d((3, 1)), IMAGE, (Op.AVG_POOL,)),
    Case("adaptive_uneven", lambda: nn.AdaptiveAvgPool2d((4, 3)), IMAGE, (Op.ADAPTIVE_AVG_POOL,)),
    Case("adaptive_max", lambda: nn.AdaptiveMaxPool2d((3, 1)), IMAGE, (Op.MAX_POOL,)),
    Case("mean", fn(lambda x: x.mean((2, 3))), IMAGE, (Op.MEAN,)),
    Case("concat", fn(lambda x: torch.cat([x, -x], 1)), IMAGE, (Op.MUL, Op.CONCAT)),
    Case("stack", fn(lambda x: torch.stack([x, -x], 2)), (1, 4, 5), (Op.MUL, Op.RESHAPE, Op.RESHAPE, Op.CONCAT)),
    Case("pad", lambda: nn.ZeroPad2d((1, 2, 0, 3)), IMAGE, (Op.PAD,)),
    Case("flatten", lambda: nn.Flatten(), IMAGE, (Op.RESHAPE,)),
    Case("reshape", fn(lambda x: x.view(len(x), 2, 2, 63)), IMAGE, (Op.RESHAPE,)),
    Case("squeeze", fn(lambda x: x.unsqueeze(1).squeeze(1) + x[:, None].squeeze(1)), IMAGE,
         (Op.RESHAPE, Op.RESHAPE, Op.RESHAPE, Op.RESHAPE, Op.ADD)),
    Case("permute", fn(lambda x: x.permute(0, 2, 3, 1)), IMAGE, (Op.PERMUTE,)),
    Case("permute_unit_axes", fn(lambda x: x.transpose(0, 1)), (1, 5, 4), (Op.RESHAPE,)),
    Case("slice", fn(lambda x: x[:, 1:4:2, ::2]), IMAGE, (Op.SLICE, Op.SLICE)),
    Case("chunk", fn(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), IMAGE, (Op.SLICE, Op.SLICE, Op.CONCAT)),
    Case("select", fn(lambda x: x[:, 2]), IMAGE, (Op.SLICE, Op.RESHAPE)),
    Case("upsample", lambda: nn.Upsample(scale_factor=2), IMAGE, (Op.UPSAMPLE_NEAREST,)),
    Case("dropout", lambda: nn.Sequential(nn.Dropout(0.5), nn.ReLU()), IMAGE, (Op.RELU,)),
]  # fmt: skip


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = cin * expand
        self.body = nn.Sequential(
            conv_bn(cin, hidden, 1), conv_bn(hidden, hidden, 3, stride, hidden), conv_bn(hidden, cout, 1, act=False)
        )
        self.skips = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


class Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = conv_bn(cin, cout, 3, stride), conv_bn(cout, cout, act=False)
        self.shortcut = conv_bn(cin, cout, 1, stride, act=False) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.one(x)) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_bn(3, channels)
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = F.adaptive_avg_pool2d(x, 1)
        return F.hardswish(x * F.hardsigmoid(self.expand(F.relu(self.reduce(gate)))))


def head(channels: int, classes: int = 10) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]


def mobilenet_v2() -> nn.Module:
    blocks = [InvertedResidual(8, 8, 1), InvertedResidual(8, 16, 2), InvertedResidual(16, 16, 1)]
    return nn.Sequential(conv_bn(3, 8, 3, 2), *blocks, conv_bn(16, 32, 1), *head(32))


def resnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Residual(8, 8, 1), Residual(8, 16, 2), *head(16))


def ds_cnn() -> nn.Module:
    blocks = [conv_bn(8, 8, 3, 1, 8), conv_bn(8, 8, 1), conv_bn(8, 8, 3, 1, 8), conv_bn(8, 8, 1)]
    return nn.Sequential(
        nn.Conv2d(1, 8, (10, 4), 2, (5, 1)), nn.ReLU(), *blocks, nn.AvgPool2d((13, 5)), *head(8, 12)[1:]
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETWORKS = [
    Case("mobilenet_v2", mobilenet_v2, (1, 3, 16, 16), ()),
    Case("resnet", resnet, (1, 3, 16, 16), ()),
    Case("ds_cnn", ds_cnn, (1, 1, 49, 10), ()),
    Case("mlp", seq(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), (1, 1, 8, 8), ()),
    Case("squeeze_excite", lambda: SqueezeExcite(8), (1, 3, 8, 8), ()),
    Case("transformer", transformer, (1, 6, 16), ()),
]
