"""A network for handwritten digits whose last layers are trained, compiled and simulated once for several test files."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lilliput.errors import LilliputError
from lilliput.mcu import find_toolchain
from lilliput.mcu.boards import find_board
from lilliput.mcu.training.host_library import HostModel
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.rate import warmup_cosine
from lilliput.mcu.training.train_step import TrainingLog, TrainStep, compile_training
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize import quantize_int8
from lilliput.quantize.qgraph import QuantizedGraph

STEPS = 64


def has(board: str, toolchain: str) -> bool:
    try:
        find_toolchain(find_board(board), toolchain)
    except LilliputError:
        return False
    return True


needs_cc = pytest.mark.skipif(not has("host", "host-cc"), reason="no C compiler on the host")
needs_qemu = pytest.mark.skipif(
    not has("mps2-an500", "gcc-qemu"), reason="arm-none-eabi-gcc or qemu-system-arm is missing"
)
needs_unicorn = pytest.mark.skipif(not has("mps2-an500", "zig-unicorn"), reason="ziglang or unicorn is missing")


class DigitNet(nn.Module):
    """An inverted bottleneck with a skip connection, as in the networks that sparse update was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6())
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.project(self.depthwise(self.expand(x)))).mean((2, 3)))


@cache
def digits() -> tuple[QuantizedGraph, np.ndarray, np.ndarray]:
    """A network for handwritten digits, untrained but for its quantization, and samples as codes with labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images.reshape(-1, 1, 8, 8) / 8 - 1, dtype=torch.float32)
    torch.manual_seed(0)
    qgraph = quantize_int8(DigitNet().eval(), x[:64])
    return qgraph, qgraph.quantize_input(x[:STEPS]), labels[:STEPS].astype(np.int64)


@cache
def compiled(master: str = "int16", **options) -> TrainStep:
    """Three layers and the head, of two layers some channels alone; the stem is frozen."""
    qgraph, _, _ = digits()
    names = [layer.name for layer in weighted_layers(qgraph)]
    plan = UpdatePlan.from_ratios(qgraph, 3, {names[1]: 1.0, names[2]: 0.5, names[3]: 0.25})
    return compile_training(
        qgraph, plan, num_classes=10, optimizer=SGD(0.05, master=master), sram="256KB", flash="1MB", **options
    )


@cache
def simulated(master: str = "int16") -> TrainingLog:
    """All steps, with a schedule."""
    _, x, y = digits()
    return compiled(master).simulate(x, y, rates=warmup_cosine(STEPS, 8))


def train(model: HostModel, x: np.ndarray, y: np.ndarray, rates: np.ndarray) -> tuple[list[int], list[int]]:
    losses, predictions = [], []
    for codes, label, rate in zip(x, y, rates, strict=True):
        model.set_rate(int(rate))
        losses.append(model.train_step(codes, int(label)))
        predictions.append(model.predicted)
    return losses, predictions
