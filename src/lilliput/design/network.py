"""A structure as a plain module: images in, class scores out."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from lilliput.design.block import BlockType, ConvRow, squeezed_width
from lilliput.design.structure import Structure, SuperBlock
from lilliput.errors import ConfigError

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class StructureNet(nn.Module):
    """Stem, super blocks of residual blocks, a last 1x1 convolution where there is one, average pooling, linear classifier.

    Source: the authors' ``ResK1KXK1`` and its kin (github.com/alibaba/lightweight-neural-architecture-search): the first block of a super
    block of bottlenecks has a 1x1 convolution in its shortcut, after average pooling where it halves the side. Ours differs: odd sides
    round up, as convolutions do; an inverted residual has a skip only where shapes agree, and ends without an activation (MobileNetV2).
    """

    def __init__(self, structure: Structure, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes={num_classes}: must be at least 1")
        self.structure = structure
        activation = _ACTIVATIONS[structure.blocks[0].kind.activation]
        self.stem = _conv_bn(
            structure.channels, structure.stem, structure.stem_kernel, structure.stem_stride, activation=activation
        )
        channels, super_blocks = structure.stem, []
        for block in structure.blocks:
            run = [ResidualBlock(block, channels, is_first=True)]
            run += [ResidualBlock(block, block.out, is_first=False) for _ in range(block.layers - 1)]
            super_blocks.append(nn.Sequential(*run))
            channels = block.out
        self.blocks = nn.Sequential(*super_blocks)
        self.head = _conv_bn(channels, structure.head, 1, activation=activation) if structure.head else nn.Sequential()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(structure.head or channels, num_classes)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images."""
        return self.classifier(self.flatten(self.pool(self.head(self.blocks(self.stem(x))))))


class ResidualBlock(nn.Module):
    """One block of a super block, as its table says."""

    def __init__(self, block: SuperBlock, channels: int, is_first: bool) -> None:
        super().__init__()
        kind, stride = block.kind, block.stride if is_first else 1
        widths = {"in": channels, "mid": block.mid, "out": block.out}
        layers: list[tuple[str, nn.Module]] = []
        for index, row in enumerate(kind.convs):
            layers.append((f"conv{index}", _row(kind, row, index, widths, block.kernel, stride)))
            if row.has_squeeze:
                layers.append((f"squeeze{index}", SqueezeExcite(widths[row.outputs])))
        self.body = nn.Sequential(OrderedDict(layers))
        self.shortcut: nn.Module | None = _shortcut(kind, channels, block.out, stride, is_first)
        self.activation = _ACTIVATIONS[kind.activation]() if kind.has_final_activation else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in_c h w"]) -> Float[Tensor, "batch out_c h2 w2"]:
        """Apply the block."""
        result = self.body(x)
        return self.activation(result if self.shortcut is None else result + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Each channel times a gate between 0 and 1 that the means of all channels decide.

    Source: Hu et al. 2018 (arXiv:1709.01507), section 3; ours has a hard sigmoid (Howard et al. 2019, arXiv:1905.02244, section 5.2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = squeezed_width(channels)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Hardsigmoid()
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Scale the channels."""
        return x * self.gate(x)


def _row(kind: BlockType, row: ConvRow, index: int, widths: dict[str, int], own_kernel: int, stride: int) -> nn.Module:
    is_last = index == len(kind.convs) - 1
    activates = row.has_activation and not (is_last and kind.has_final_activation)
    return _conv_bn(
        widths[row.inputs],
        widths[row.outputs],
        kind.kernel(index, own_kernel),
        stride if row.has_stride else 1,
        groups=widths[row.inputs] if row.is_depthwise else 1,
        activation=_ACTIVATIONS[kind.activation] if activates else None,
    )


def _shortcut(kind: BlockType, channels: int, out: int, stride: int, is_first: bool) -> nn.Module | None:
    if kind.shortcut == "projection" and is_first:
        pool = [nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)] if stride == 2 else []
        return nn.Sequential(*pool, _conv_bn(channels, out, 1))
    has_skip = kind.shortcut != "none" and stride == 1 and channels == out
    return nn.Identity() if has_skip else None


def _conv_bn(
    channels: int,
    out: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)),
        ("norm", nn.BatchNorm2d(out)),
    ]
    if activation is not None:
        layers.append(("act", activation()))
    return nn.Sequential(OrderedDict(layers))
