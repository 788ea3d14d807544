"""Search spaces for small images on microcontrollers, with the choices that a person would otherwise have to make.

Inverted residuals (depthwise convolutions are what a chip has memory for) and widths in steps of 4 (the kernels read words). Objectives of
different stride patterns cannot be compared, for their stages differ; so patterns are tried in order, from the one that keeps most of the
image to the one that keeps least, and rho from 0.5 upwards: the smaller a network must be, the earlier it has to give up pixels, and the
less wide it can be for its depth.

Source: ours. On digits at 16 pixels (two seeds), by multiply-accumulates: 1 M (1, 2, 1, 2) 99.5 %; 250 k (2, 2, 2) at rho 0.5 99.6 %,
(1, 2, 1, 2) at rho 0.7 99.3 %; 60 k (2, 2, 2) at rho 0.5 98.7 %, (1, 2, 1, 2) at rho 1.5 97.4 %. On CIFAR-10 at 32 pixels (12 epochs, two
seeds), 3 M: (1, 2, 2, 1, 2) 66 %, (2, 2, 2) 65 %, (2, 1, 2, 1, 2) 63 %, (2, 2, 1, 2) 62 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2

from lilliput.design.space import SearchSpace
from lilliput.errors import ConfigError

SMALLEST_IMAGE = 8
CHIP_RHOS = (0.5, 0.7, 1.0, 1.5, 2.2, 3.3)
"""In the order to try them."""
_STEM_HALVES_FROM = 64
"""Images of this side and more always lose half of it in the stem."""


def chip_strides(image_size: int) -> tuple[tuple[int, ...], ...]:
    """Stride patterns for an image, in the order to try them: of the stem and each super block.

    The first has a last map of 4 to 7 pixels and a super block of stride 1 before the last, as the published spaces; the others halve
    from the stem on, the last of them once more.

    Raises:
        ConfigError: an image below 8 pixels.

    >>> chip_strides(16)
    ((1, 2, 1, 2), (2, 2, 2))
    >>> chip_strides(96)
    ((2, 2, 2, 1, 2), (2, 2, 2, 2), (2, 2, 2, 2, 2))
    """
    if image_size < SMALLEST_IMAGE:
        raise ConfigError(f"image_size={image_size}: must be at least {SMALLEST_IMAGE} pixels; try image_size=16")
    halvings = floor(log2(image_size / 4))
    stem = 1 if image_size < _STEM_HALVES_FROM else 2
    first = (stem, *(2,) * (halvings - stem), 1, 2)
    coarser = [(2,) * count for count in (halvings, halvings + 1) if count >= 3]
    return (first, *coarser) if coarser else (first, (1, 2, 2))


def chip_spaces(
    image_sizes: Sequence[int],
    strides: Sequence[int],
    channels: int,
    num_classes: int,
    *,
    kernels: Sequence[int] = (3, 5),
    squeeze: bool = False,
    redistribute: bool = False,
) -> tuple[SearchSpace, ...]:
    """A space for each input side, with one stride pattern, so that objectives may be compared.

    Raises:
        ConfigError: sizes that do not go together.
    """
    return tuple(
        SearchSpace.inverted_residual(
            image_size,
            strides,
            kernels,
            channel_step=4,
            squeeze=squeeze,
            redistribute=redistribute,
            stem_min=4,
            out_max=512,
            layers_max=12,
            channels=channels,
            num_classes=num_classes,
        )
        for image_size in image_sizes
    )


def resolutions(image_size: int) -> tuple[int, ...]:
    """Input sides that a design may choose from where it is free to: the whole, three quarters, half; multiples of 4.

    >>> resolutions(96)
    (96, 72, 48)
    """
    sizes = (image_size, image_size * 3 // 4 // 4 * 4, image_size // 2 // 4 * 4)
    return tuple(dict.fromkeys(size for size in sizes if size >= SMALLEST_IMAGE or size == image_size))
