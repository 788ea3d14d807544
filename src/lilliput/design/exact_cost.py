"""What the built network costs at any image size: parameters, and multiply-accumulates of convolutions and classifier alone."""

from __future__ import annotations

from lilliput.design.structure import Structure
from lilliput.errors import ConfigError
from lilliput.evidence import Cost


def exact_cost(structure: Structure, image_size: int, num_classes: int) -> Cost:
    """MACs and parameters of ``Design.build(num_classes)`` on an image, from the structure alone.

    Convolutions pad by half their kernel, so a stride of 2 halves a side and rounds up.

    Raises:
        ConfigError: a structure that cannot be built, or sizes below 1.
    """
    check_buildable(structure, num_classes)
    if image_size < 1:
        raise ConfigError(f"image_size={image_size}: must be at least 1")
    side = -(-image_size // structure.stem_stride)
    macs = side**2 * structure.stem * structure.channels * structure.stem_kernel**2
    params = structure.stem * (structure.channels * structure.stem_kernel**2 + 2)
    channels = structure.stem
    for block in structure.blocks:
        out_side = -(-side // block.stride)
        b, o, middle = block.bottleneck, block.out, block.bottleneck**2 * block.kernel**2
        repeats = block.layers - 1
        macs += side**2 * channels * b + out_side**2 * (middle + b * o + channels * o)
        macs += repeats * out_side**2 * (2 * b * o + middle)
        params += channels * b + middle + b * o + channels * o + 4 * b + 4 * o
        params += repeats * (2 * b * o + middle + 4 * b + 2 * o)
        side, channels = out_side, o
    return Cost(macs=macs + channels * num_classes, params=params + (channels + 1) * num_classes)


def check_buildable(structure: Structure, num_classes: int) -> None:
    """Raise ConfigError unless every block is a plain bottleneck, there is no head, and there are classes."""
    if num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: must be at least 1")
    kinds = sorted({block.kind for block in structure.blocks} - {"K1KXK1"})
    if kinds or structure.head:
        what = ", ".join(kinds) if kinds else f"a head of {structure.head} channels"
        raise ConfigError(
            f"structure with {what}: networks are built of K1KXK1 blocks without a head; others are only scored"
        )
