"""The networks of ``benchmarks/certify.py``: built and trained here, from a seed, on data that is generated or ships with scikit-learn.

Random-k, as in the evaluations of LipMIP (Jordan and Dimakis 2020, arXiv:2003.01219): 10,000 uniform points of the unit cube, 5 leaders a
dimension among them with random classes, and every point has its leader's class. Digits of 28x28 pixels are the 8x8 ones, upsampled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Data = Literal["random-k", "digits", "none"]
_TRAINED_ON = {"random-k": 7_000, "digits": 1_400}
_CLASSES = 10


@dataclass(frozen=True)
class Cited:
    """Figures of auto_LiRPA measured elsewhere, on another training of the same structure: its bounds say nothing of ours."""

    no_alpha_seconds: float | None = None
    alpha_seconds: float | None = None
    version: str = "0.3.1"
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """A network and the question that is asked of it."""

    name: str
    data: Data
    shape: tuple[int, ...]
    """Of one input, without the batch."""
    build: Callable[[], nn.Module]
    eps: float
    cited: Cited = Cited()
    epochs: int = 30

    def trained(self) -> Trained:
        """From seed 0, in float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
        if self.data == "none":
            return Trained(self, model.eval(), torch.zeros(self.shape), None)
        x, y = random_k(self.shape[0]) if self.data == "random-k" else digits(self.shape)
        count = _TRAINED_ON[self.data]
        fit(model, x[:count], y[:count], self.epochs)
        with torch.no_grad():
            accuracy = float((model(x[count:]).argmax(1) == y[count:]).double().mean())
        centre = x[count] if self.data == "digits" else torch.full(self.shape, 0.5)
        return Trained(self, model, centre, accuracy)


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, and the centre of the ball."""

    subject: Subject
    model: nn.Module
    centre: Tensor
    accuracy: float | None
    """On inputs that it was not trained on."""


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers = [module for a, b in pairwise(widths) for module in (nn.Linear(a, b), act())]
        return nn.Sequential(*layers[:-1])

    return build


def cnn_8x8() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def cnn_28x28() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


SUBJECTS = (
    Subject("4-12-3", "none", (4,), mlp(4, 12, 3), 0.5, Cited(0.03, 2.0)),
    Subject("16-16-16-10", "random-k", (16,), mlp(16, 16, 16, 10), 0.1, Cited(None, 4.3), epochs=10),
    Subject("16-32-32-10", "random-k", (16,), mlp(16, 32, 32, 10), 0.1, Cited(None, 4.2), epochs=10),
    Subject("16-32x4-10", "random-k", (16,), mlp(16, 32, 32, 32, 32, 10), 0.1, Cited(0.40, 7.6), epochs=10),
    Subject("64-32-32-10", "digits", (64,), mlp(64, 32, 32, 10), 8 / 255, Cited(None, 3.6)),
    Subject("784-20-20-10", "digits", (784,), mlp(784, 20, 20, 10), 8 / 255, Cited(0.21, 4.5)),
    Subject("784-20x3-10", "digits", (784,), mlp(784, 20, 20, 20, 10), 8 / 255, Cited(None, 4.9)),
    Subject("784-20x4-10", "digits", (784,), mlp(784, 20, 20, 20, 20, 10), 8 / 255, Cited(None, 7.7)),
    Subject("784-256-256-10", "digits", (784,), mlp(784, 256, 256, 10), 8 / 255, Cited(None, 7.9)),
    Subject("cnn 8x8", "digits", (1, 8, 8), cnn_8x8, 4 / 255, Cited(None, 8.5)),
    Subject("cnn 28x28", "digits", (1, 28, 28), cnn_28x28, 2 / 255, Cited(None, 41.9, note="2,465 MB")),
    Subject("tanh 64-32-32-10", "digits", (64,), mlp(64, 32, 32, 10, act=nn.Tanh), 8 / 255, Cited(None, 7.5, "0.7.1")),
    Subject("sigmoid 64-32x3-10", "digits", (64,), mlp(64, 32, 32, 32, 10, act=nn.Sigmoid), 8 / 255,
            Cited(None, 11.3, "0.7.1"), epochs=50),
)  # fmt: skip


def random_k(dim: int) -> tuple[Tensor, Tensor]:
    """Points (10,000, dim) and classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((10_000, dim), generator=generator)
    leaders = x[torch.randperm(len(x), generator=generator)[: 5 * dim]]
    classes = torch.randint(_CLASSES, (len(leaders),), generator=generator)
    return x, classes[torch.cdist(x, leaders).argmin(1)]


def digits(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images in 0..1, (1,797, *shape), and classes, shuffled: the file goes from one group of writers to the other."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).float()[order, None] / 16
    numbers = torch.tensor(shape).prod()
    if numbers == 784:
        images = nn.functional.interpolate(images, (28, 28), mode="bilinear", align_corners=False)
    return images.reshape(-1, *shape), torch.from_numpy(data.target)[order]


def fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Adam on batches of 64; leaves the network in evaluation mode."""
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    model.eval()
