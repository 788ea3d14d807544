"""Small networks and data that the training tests share; in a module, so that other processes can import them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Batch norm and dropout: state and randomness that a resumed run must get right."""

    def __init__(self, classes: int = 3, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.conv(x)))))
        return self.head(self.dropout(x.flatten(1)))


def small_cnn(seed: int = 0, dropout: float = 0.3) -> SmallCnn:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallCnn(dropout=dropout)


def mlp(inputs: int = 64, classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, classes))


def stripes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy 8x8 byte images with a bright row, a bright column, or neither, and which of the three it is."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 90, (count, 1, 8, 8))
    labels = np.arange(count) % 3
    for image, label, place in zip(images, labels, random.integers(1, 7, count), strict=True):
        if label == 0:
            image[0, place, :] += 120
        elif label == 1:
            image[0, :, place] += 120
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
