"""Networks with trained weights, whose bounds are harder than those of random ones; small enough to be trained in every run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digit_images(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images in 0..1, (1,797, *shape), upsampled for 28x28, and classes."""
    data = load_digits()
    images = torch.from_numpy(data.images)[:, None] / 16
    if 28 in shape or 784 in shape:
        images = nn.functional.interpolate(images, (28, 28), mode="bilinear", align_corners=False)
    return images.reshape(-1, *shape), torch.from_numpy(data.target)


def random_k(dim: int) -> tuple[Tensor, Tensor]:
    """Points of the unit cube, (2,000, dim), each of the class of the nearest of 5 dim leaders."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2000, dim), generator=generator, dtype=torch.float64)
    leaders = torch.randint(10, (5 * dim,), generator=generator)
    return x, leaders[torch.cdist(x, x[: 5 * dim]).argmin(1)]


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [module for a, b in pairwise(widths) for module in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "4-12-3": (lambda: mlp(4, 12, 3), (4,), 0.5),
    "16-16-16-10": (lambda: mlp(16, 16, 16, 10), (16,), 0.1),
    "16-32-32-10": (lambda: mlp(16, 32, 32, 10), (16,), 0.1),
    "16-32x4-10": (lambda: mlp(16, 32, 32, 32, 32, 10), (16,), 0.1),
    "64-32-32-10": (lambda: mlp(64, 32, 32, 10), (64,), 8 / 255),
    "784-20-20-10": (lambda: mlp(784, 20, 20, 10), (784,), 8 / 255),
    "784-20x4-10": (lambda: mlp(784, 20, 20, 20, 20, 10), (784,), 8 / 255),
    "cnn": (cnn, (1, 8, 8), 4 / 255),
    "tanh": (lambda: mlp(64, 32, 32, 10, act=nn.Tanh), (64,), 8 / 255),
    "sigmoid": (lambda: mlp(64, 32, 32, 32, 10, act=nn.Sigmoid), (64,), 8 / 255),
}
"""How it is built, its input's shape, and the radius of the question."""


@cache
def trained(name: str) -> tuple[nn.Module, Tensor]:
    """In float64 and evaluation mode, and a centre; 4-12-3 as torch draws it, around 0."""
    build, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    if name == "4-12-3":
        return model.eval(), torch.zeros(shape, dtype=torch.float64)
    x, y = random_k(16) if shape == (16,) else digit_images(shape)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for some in torch.randperm(1400, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.eval(), torch.full_like(x[0], 0.5) if shape == (16,) else x[1400]
