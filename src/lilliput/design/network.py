"""A structure as a plain module: images in, class scores out."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from lilliput.design.exact_cost import check_buildable
from lilliput.design.structure import Structure


class BottleneckNet(nn.Module):
    """Stem, super blocks of 1x1, kxk, 1x1 residual blocks, average pooling, linear classifier.

    Source: the authors' ``ResK1KXK1`` (github.com/alibaba/lightweight-neural-architecture-search): the first block of each super block has
    a 1x1 convolution in its shortcut, after average pooling where it halves the side. Ours differs: odd sides round up, as convolutions do.
    """

    def __init__(self, structure: Structure, num_classes: int) -> None:
        super().__init__()
        check_buildable(structure, num_classes)
        self.structure = structure
        self.stem = _conv_bn(structure.channels, structure.stem, structure.stem_kernel, structure.stem_stride)
        channels, super_blocks = structure.stem, []
        for block in structure.blocks:
            run = [Bottleneck(channels, block.bottleneck, block.out, block.kernel, block.stride, has_projection=True)]
            run += [Bottleneck(block.out, block.bottleneck, block.out, block.kernel) for _ in range(block.layers - 1)]
            super_blocks.append(nn.Sequential(*run))
            channels = block.out
        self.blocks = nn.Sequential(*super_blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images."""
        return self.classifier(self.flatten(self.pool(self.blocks(self.stem(x)))))


class Bottleneck(nn.Module):
    """Narrow, filter, widen; the input, projected where asked, is added before the last ReLU."""

    def __init__(
        self, channels: int, bottleneck: int, out: int, kernel: int, stride: int = 1, has_projection: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_bn(channels, bottleneck, 1),
            _conv_bn(bottleneck, bottleneck, kernel, stride),
            _conv_bn(bottleneck, out, 1, activation=False),
        )
        shortcut: list[nn.Module] = []
        if stride == 2:
            shortcut.append(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False))
        if has_projection:
            shortcut.append(_conv_bn(channels, out, 1, activation=False))
        self.shortcut = nn.Sequential(*shortcut)
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "batch in_c h w"]) -> Float[Tensor, "batch out_c h2 w2"]:
        """Apply the block."""
        return self.relu(self.body(x) + self.shortcut(x))


def _conv_bn(channels: int, out: int, kernel: int, stride: int = 1, activation: bool = True) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)),
        ("norm", nn.BatchNorm2d(out)),
    ]
    if activation:
        layers.append(("relu", nn.ReLU()))
    return nn.Sequential(OrderedDict(layers))
