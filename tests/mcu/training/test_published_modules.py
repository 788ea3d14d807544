"""Each module of the published simulation, forward and backward, from its formulas alone: codes equal, gradients to 1e-5.

With x, w, b codes, z zero points, eff = sx * sw / sy and g the gradient of the output codes:

    acc = conv(x - zx, w) + b, outside the image 0;  y = clamp(round(acc * eff) + zy, -128, 127)
    ga = g * [-128 <= round(acc * eff) + zy <= 127] * eff
    gb = sum ga,  gx = conv_transpose(ga, w),  gw = sum over places of ga times what the tap saw

    y = clamp(round(((x1 - z1) * s1 + (x2 - z2) * s2) / sy) + zy),  g_i = g * mask * s_i / sy
    y = round(mean(x)),  gx = g / (height * width)

Source: Lin et al. 2022 (arXiv:2206.15472), published simulation.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lilliput.mcu.training.float_ops import RULES, layer, rounded
from lilliput.quantize.arithmetic import add_multipliers, mean_multiplier
from lilliput.quantize.parameters import channel_multipliers
from lilliput.quantize.qgraph import Add, AvgPool2d, Conv2d, Mean, QTensor

BATCH = 2


@dataclass(frozen=True)
class Convolution:
    """A layer of the published networks, with random codes."""

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    input_zero: int = -128
    output_zero: int = -128
    """-128 is how a ReLU6 is absorbed by the clamp."""
    image: int = 14

    @property
    def groups(self) -> int:
        return self.inputs if self.depthwise else 1


CONVOLUTIONS = {
    "first, 3x3 stride 2": Convolution(3, 16, 3, 2, input_zero=5, image=32),
    "pointwise, expanding": Convolution(8, 48, 1, input_zero=-9),
    "pointwise, projecting": Convolution(48, 12, 1, output_zero=11),
    "depthwise 3x3": Convolution(24, 24, 3, depthwise=True),
    "depthwise 5x5 stride 2": Convolution(24, 24, 5, 2, depthwise=True),
    "depthwise 7x7": Convolution(24, 24, 7, depthwise=True),
}


class Drawn:
    """Parameters, input and gradient of a convolution; every sum is below 2**24, so float32 holds it."""

    def __init__(self, case: Convolution) -> None:
        rng = np.random.default_rng(sum(map(ord, repr(case))))
        per_group = case.inputs // case.groups
        window = per_group * case.kernel**2
        assert window * 127 * 255 < 2**24
        self.case = case
        self.weight = rng.integers(-127, 128, (case.outputs, per_group, case.kernel, case.kernel), dtype=np.int8)
        self.bias = rng.integers(-3000, 3000, case.outputs, dtype=np.int32)
        self.input_scale, self.output_scale = 0.0235, 0.031
        # so that codes of both ends and beyond are among the outputs
        spread = 70 * math.sqrt(window) * 100 / 90
        self.weight_scale = rng.uniform(0.5, 2, case.outputs) * self.output_scale / self.input_scale / spread
        self.x = rng.integers(-128, 128, (BATCH, case.image, case.image, case.inputs), dtype=np.int8)
        self.places = (case.image + 2 * (case.kernel // 2) - case.kernel) // case.stride + 1
        self.gradient = rng.normal(size=(BATCH, self.places, self.places, case.outputs))

    def ours(self) -> tuple[torch.Tensor, ...]:
        """Output codes, and gradients of input, weight and bias, in the float mode's float32."""
        case = self.case
        multiplier, shift = channel_multipliers(self.input_scale, self.weight_scale, self.output_scale)
        op = Conv2d(
            name="y",
            inputs=("x",),
            weight=np.ascontiguousarray(np.moveaxis(self.weight, 1, -1)),
            bias=self.bias,
            weight_scale=self.weight_scale,
            multiplier=multiplier,
            shift=shift,
            stride=(case.stride, case.stride),
            padding=(case.kernel // 2,) * 4,
            groups=case.groups,
        )
        x_tensor = QTensor("x", self.x.shape[1:], self.input_scale, case.input_zero)
        y_tensor = QTensor("y", self.gradient.shape[1:], self.output_scale, case.output_zero)
        leaves = [torch.from_numpy(each).float().requires_grad_() for each in (self.x, self.weight, self.bias)]
        factor = torch.from_numpy(np.ldexp(multiplier.astype(float), shift - 31)).float()
        y = layer(*leaves, op, x_tensor, y_tensor, factor, True)
        return y.detach(), *torch.autograd.grad(y, leaves, torch.from_numpy(self.gradient).float())

    def published(self, mistake: str = "") -> tuple[torch.Tensor, ...]:
        """The same from the formulas in float64, gradients by loops over the kernel's taps; or with one of the usual mistakes."""
        case, half = self.case, self.case.kernel // 2
        x, weight = torch.from_numpy(self.x).double().permute(0, 3, 1, 2), torch.from_numpy(self.weight).double()
        outside = -case.input_zero if mistake == "pads with code 0" else 0
        centred = F.pad(x - case.input_zero, (half,) * 4, value=outside)
        eff = torch.from_numpy(self.input_scale * self.weight_scale / self.output_scale).float().double()[:, None, None]
        total = F.conv2d(centred, weight, torch.from_numpy(self.bias).double(), case.stride, groups=case.groups)
        before = (total * eff).round() + case.output_zero
        self.before = before
        inside = (before >= -128) & (before <= 127)
        if mistake == "the ends lie outside":
            inside = (before > -128) & (before < 127)
        ga = torch.from_numpy(self.gradient).permute(0, 3, 1, 2) * inside
        if mistake != "no rescaling factor":
            ga = ga * eff
        gx, gw = torch.zeros_like(centred), torch.zeros_like(weight)
        span = case.stride * (self.places - 1) + 1
        for row in range(case.kernel):
            for column in range(case.kernel):
                seen = np.s_[:, :, row : row + span : case.stride, column : column + span : case.stride]
                tap = weight[:, :, row, column]
                if case.depthwise:
                    gw[:, 0, row, column] = (ga * centred[seen]).sum((0, 2, 3))
                    gx[seen] += ga * tap[:, 0, None, None]
                else:
                    gw[:, :, row, column] = torch.einsum("nohw,nihw->oi", ga, centred[seen])
                    gx[seen] += torch.einsum("nohw,oi->nihw", ga, tap)
        gx = gx[:, :, half : half + case.image, half : half + case.image].permute(0, 2, 3, 1)
        return before.clamp(-128, 127).permute(0, 2, 3, 1), gx, gw, ga.sum((0, 2, 3))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_has_the_published_codes_and_gradients(name):
    drawn = Drawn(CONVOLUTIONS[name])
    codes, *expected = drawn.published()
    found, *gradients = drawn.ours()
    assert torch.equal(found.double(), codes)
    for gradient, derived in zip(gradients, expected, strict=True):
        assert relative_error(gradient, derived) <= 1e-5
    before = drawn.before
    assert all((before == end).any() for end in (-128, 127))
    assert (before > 127).any()
    assert (before < -128).any()


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        (name, mistake)
        for name, case in CONVOLUTIONS.items()
        for mistake in ("pads with code 0", "the ends lie outside", "no rescaling factor")
        if mistake != "pads with code 0" or case.kernel > 1
    ],
)
def test_the_usual_mistakes_would_be_seen(name, mistake):
    drawn = Drawn(CONVOLUTIONS[name])
    ours, wrong = drawn.ours(), drawn.published(mistake)
    assert max(relative_error(each, other) for each, other in zip(ours, wrong, strict=True)) > 1e-3


def through_rule(op, inputs, x, y, gradient):
    """Codes and gradients of an operation without weights."""
    leaves = [torch.from_numpy(each).float().requires_grad_() for each in inputs]
    found = RULES[type(op)](op, leaves, x, y, rounded)
    return found.detach(), torch.autograd.grad(found, leaves, torch.from_numpy(gradient).float())


def test_an_addition_has_the_published_codes_and_gradients():
    rng = np.random.default_rng(3)
    scales, zeros, shape = (0.041, 0.017, 0.023), (-7, 12, 4), (6, 6, 16)
    tensors = [QTensor(name, shape, scale, zero) for name, scale, zero in zip("aby", scales, zeros, strict=True)]
    first, second = (rng.integers(-128, 128, (BATCH, *shape), dtype=np.int8) for _ in range(2))
    multiplier, shift = add_multipliers(*scales)
    op = Add(name="y", inputs=("a", "b"), multiplier=multiplier, shift=shift)
    gradient = rng.normal(size=(BATCH, *shape))
    found, gradients = through_rule(op, (first, second), tensors[:2], tensors[2], gradient)
    before = ((first - zeros[0] * 1.0) * scales[0] + (second - zeros[1] * 1.0) * scales[1]) / scales[2]
    before = np.rint(before) + zeros[2]
    assert np.array_equal(found.numpy(), np.clip(before, -128, 127))
    inside = (before >= -128) & (before <= 127)
    assert 0.3 < inside.mean() < 0.9
    for each, scale in zip(gradients, scales[:2], strict=True):
        assert relative_error(each, torch.from_numpy(gradient * inside * scale / scales[2])) <= 1e-5


def test_the_last_average_has_the_published_codes_and_gradients():
    rng = np.random.default_rng(4)
    shape = (7, 7, 24)
    codes = rng.integers(-128, 128, (BATCH, *shape), dtype=np.int8)
    x, y = QTensor("x", shape, 0.0235, -128), QTensor("y", (1, 1, 24), 0.0235, -128)
    multiplier, shift = mean_multiplier(x.scale, y.scale, 49)
    op = Mean(name="y", inputs=("x",), multiplier=multiplier, shift=shift)
    gradient = rng.normal(size=(BATCH, 1, 1, 24))
    found, (of_x,) = through_rule(op, (codes,), [x], y, gradient)
    assert np.array_equal(found.numpy().reshape(BATCH, 24), np.rint(codes.astype(float).mean((1, 2))))
    assert relative_error(of_x, torch.from_numpy(np.broadcast_to(gradient / 49, codes.shape).copy())) <= 1e-5


def test_an_average_pool_has_the_published_codes_and_gradients():
    rng = np.random.default_rng(5)
    codes = rng.integers(-128, 128, (BATCH, 6, 6, 8), dtype=np.int8)
    x, y = QTensor("x", (6, 6, 8), 0.0235, -3), QTensor("y", (3, 3, 8), 0.0235, -3)
    op = AvgPool2d(name="y", inputs=("x",), kernel=(2, 2), stride=(2, 2))
    gradient = rng.normal(size=(BATCH, 3, 3, 8))
    found, (of_x,) = through_rule(op, (codes,), [x], y, gradient)
    means = codes.astype(float).reshape(BATCH, 3, 2, 3, 2, 8).mean((2, 4))
    assert (np.abs(means % 1 - 0.5) < 1e-9).any()  # ties, which go to even codes
    assert np.array_equal(found.numpy(), np.rint(means))
    assert relative_error(of_x, torch.from_numpy(gradient.repeat(2, 1).repeat(2, 2) / 4)) <= 1e-5
