"""A small network trained on scikit-learn's digits, the same in every test."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn


def digits(count: int, start: int = 1400) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 64) in 0..1 that the network was not trained on, and classes."""
    data = load_digits()
    images, labels = torch.from_numpy(data.data) / 16, torch.from_numpy(data.target)
    return images[start : start + count], labels[start : start + count]


@cache
def trained_mlp() -> nn.Module:
    """64-32-32-10, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    x, y = digits(1400, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        for some in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.eval()
