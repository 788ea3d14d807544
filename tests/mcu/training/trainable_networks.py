"""Small networks quantized from torch modules, so that scales, codes and multipliers agree: subjects of the training tests."""

import functools

import torch
from torch import nn

from lilliput.quantize import quantize_int8


class Residual(nn.Module):
    """Reads its input three times: twice by layers, once by the sum."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return torch.relu(self.first(x) + self.second(x)) + x


def _modules(name):
    return {
        # strides, kernels of 3, 5 and 7, a pointwise layer, ReLU6 in the clamp, an average pool
        "mobile": lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 12, 1),
            nn.Conv2d(12, 12, 5, stride=2, padding=2, groups=12), nn.ReLU6(), nn.Conv2d(12, 8, 1), nn.ReLU(),
            nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
        ),
        # a dilated and a grouped convolution, a channel multiplier, a hidden linear layer, no padding
        "odd": lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, dilation=2), nn.ReLU(), nn.Conv2d(6, 8, (3, 1), groups=2), nn.ReLU(),
            nn.Conv2d(8, 16, 3, groups=8, padding=(1, 0)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4),
        ),
        "residual": lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 4),
        ),
        # a maximum before the last two layers, through which no gradient passes
        "pooled": lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.Hardswish(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.Softmax(dim=1),
        ),
    }[name]()  # fmt: skip


NAMES = ("mobile", "odd", "residual", "pooled")


@functools.cache
def quantized(name, image=16, seed=0):
    """An int8 network of four classes on images of 3 channels."""
    torch.manual_seed(seed)
    module = _modules(name).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(
                layer.weight, nonlinearity="relu"
            )  # so that features are large enough to learn from
    return quantize_int8(module, images(64, image, seed)[0])


def images(count, image=16, seed=0):
    """Float images with a class that a network can learn: the quadrant of a bright patch."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    x = 0.3 * torch.rand(count, 3, image, image, generator=generator)
    half = image // 2
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        x[index, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.6
    return x, labels
