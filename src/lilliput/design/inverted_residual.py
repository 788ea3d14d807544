"""A family of inverted-residual image classifiers, from a few hundred parameters up.

Source: Sandler et al. 2018, MobileNetV2 (arXiv:1801.04381), section 3 and table 2: stem, inverted residual blocks (1x1 expansion,
3x3 depthwise, 1x1 linear projection, skip where shapes agree), 1x1 head, average pooling, linear classifier. Ours: depths and widths for
inputs of 8 to 128 pixels, and a head no wider than the classes need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from jaxtyping import Float
from torch import Tensor, nn

from lilliput.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InvertedResidualSpec:
    """One member of the family; equal specs build equal networks."""

    image_size: int
    """Side of the square input in pixels."""
    channels: int
    """Of the input image: 1 or 3."""
    classes: int
    width: int
    """Channels of the stem; stage s has width * 2**s channels."""
    blocks: int
    """Inverted residual blocks a stage; the first of a stage halves the side."""
    expansion: int
    """Hidden channels of a block per input channel."""
    stages: int
    """Number of stages; the stem halves the side too where the image is 32 pixels or more."""

    def __post_init__(self) -> None:
        if self.image_size >> (self.stages + self.stem_stride - 1) < 2:
            raise ConfigError(
                f"image_size={self.image_size} with {self.stages} stages leaves less than 2x2 pixels; try stages={self.stages - 1}"
            )

    @property
    def stem_stride(self) -> int:
        """2 for images of 32 pixels or more, else 1."""
        return 2 if self.image_size >= 32 else 1

    def __str__(self) -> str:
        return f"IR-w{self.width}-e{self.expansion}-b{self.blocks}-s{self.stages}@{self.image_size}"

    def build(self) -> InvertedResidualNet:
        """The network, with torch's default random weights."""
        return InvertedResidualNet(self)


class InvertedResidual(nn.Module):
    """Expand, filter, project; the input is added where it has the output's shape."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers = [] if expansion == 1 else [("expand", _conv_bn(channels_in, hidden, 1))]
        layers.append(("depthwise", _conv_bn(hidden, hidden, 3, stride, groups=hidden)))
        layers.append(("project", _conv_bn(hidden, channels_out, 1, activation=False)))
        self.body = nn.Sequential(OrderedDict(layers))
        self.has_skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Float[Tensor, "batch in_c h w"]) -> Float[Tensor, "batch out_c h2 w2"]:
        """Apply the block."""
        return x + self.body(x) if self.has_skip else self.body(x)


class InvertedResidualNet(nn.Module):
    """A member of the family as a module: images in, class scores (logits) out."""

    def __init__(self, spec: InvertedResidualSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = _conv_bn(spec.channels, spec.width, 3, spec.stem_stride)
        stages, channels = [], spec.width
        for stage in range(spec.stages):
            out = spec.width * 2 ** (stage + 1)
            blocks = [InvertedResidual(channels, out, 2, spec.expansion)]
            blocks += [InvertedResidual(out, out, 1, spec.expansion) for _ in range(spec.blocks - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.head = _conv_bn(channels, 2 * channels, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(2 * channels, spec.classes)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.classifier(self.flatten(self.pool(self.head(self.stages(self.stem(x))))))


def _conv_bn(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[tuple[str, nn.Module]] = [("conv", conv), ("norm", nn.BatchNorm2d(channels_out))]
    if activation:
        layers.append(("relu", nn.ReLU6()))
    return nn.Sequential(OrderedDict(layers))


def members(image_size: int, channels: int, classes: int) -> Iterator[InvertedResidualSpec]:
    """The whole family for one kind of image: about a hundred networks, in no particular order."""
    for width, blocks, expansion, stages in product((4, 6, 8, 12, 16, 24), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4)):
        stem_halvings = 1 if image_size >= 32 else 0
        if image_size >> (stages + stem_halvings) >= 2:
            yield InvertedResidualSpec(
                image_size=image_size,
                channels=channels,
                classes=classes,
                width=width,
                blocks=blocks,
                expansion=expansion,
                stages=stages,
            )
