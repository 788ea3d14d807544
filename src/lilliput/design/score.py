"""What DeepMAD maximises and what it limits, for one structure, exactly.

Convolutions i = 1..N in order have width w_i = c_i k_i^2 / g_i (input channels, kernel, groups). A resolution stage t is a maximal run of
one resolution: it ends before each block of stride 2, and at the end. With A_t half the sum of log w_i over *all* layers up to its end,

    entropy of stage t:   H_t = log(C_t r_t^2) A_t              C_t channels and r_t side of its output map
    effectiveness:        rho_t = D_t / exp(2 A_t / D_t)        D_t layers up to its end
    objective:            sum_t alpha_t H_t - weight * penalty(L)

Entropy is a proxy for what a network can learn, and comparable only between networks of one kind of block. It is not accuracy.

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165), and the authors' code where the two differ (said at each function).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from lilliput.design.structure import Structure, SuperBlock
from lilliput.errors import ConfigError

PENALTIES = ("paper", "reference")
MOST_VARIANCE = 60.0
"""The depth variance at which exp(variance) is held: no network near it is ever chosen, and nothing overflows."""


@dataclass(frozen=True)
class StageScore:
    """One resolution stage."""

    entropy: float
    side: int
    """Pixels of the output map's side."""
    channels: int
    layers: int
    """Convolutions from the input to the stage's end."""
    rho: float


@dataclass(frozen=True)
class Score:
    """A structure at one image size."""

    entropy: float
    """Sum over stages of alpha_t H_t."""
    stages: tuple[StageScore, ...]
    rho: float
    """The largest over the stages."""
    macs: int
    """Of the reference's counter, as the published budgets mean it: convolutions, 2 per value of a batch norm, 1 of a ReLU or pooled
    shortcut; squeeze-and-excitation and classifier not counted. ``exact_cost`` counts what the built network does."""
    params: int
    """Of the reference's counter: weights and 2 per channel of a batch norm; the classifier not counted."""


def score(
    structure: Structure, image_size: int, alpha: Sequence[float | int] | None = None, *, as_published: bool = False
) -> Score:
    """Entropy, effectiveness and costs of a structure.

    Args:
        structure: what to score.
        image_size: side of the square input; a multiple of the structure's total stride.
        alpha: a weight for each resolution stage; ``None`` is 8 for the last and 1 for the others.
        as_published: take over a slip of the authors' code, in which a map that went through squeeze-and-excitation has side 1; the
            published figures of networks of ``K1DWSEK1`` blocks are to be had no other way. Other networks score the same.
    Raises:
        ConfigError: an image size or a number of weights that does not go with the structure.
    """
    if image_size < 1 or image_size % structure.total_stride:
        nearest = max(1, round(image_size / structure.total_stride)) * structure.total_stride
        raise ConfigError(
            f"image_size={image_size}: must be a multiple of the total stride {structure.total_stride}; try image_size={nearest}"
        )
    log_widths, stages = 0.0, []
    side, channels, layers = image_size, structure.channels, 0
    for stride, out, widths, is_squeezed in _layers(structure):
        if stride == 2 and layers:
            stages.append(_stage(side, channels, layers, log_widths))
        side = 1 if side == 1 or (as_published and is_squeezed) else side // stride
        log_widths += sum(log(width) for width in widths)
        layers += len(widths)
        channels = out
    stages.append(_stage(side, channels, layers, log_widths))
    weights = stage_weights(alpha, len(stages))
    entropy = sum(weight * stage.entropy for weight, stage in zip(weights, stages, strict=True))
    macs, params = reference_cost(structure, image_size)
    return Score(entropy, tuple(stages), max(stage.rho for stage in stages), macs, params)


def stage_weights(alpha: Sequence[float | int] | None, stages: int) -> tuple[float, ...]:
    """The weights of the stages, checked; 1, ..., 1, 8 where none are given."""
    if alpha is None:
        return (1.0,) * (stages - 1) + (8.0,)
    if len(alpha) != stages or min(alpha) < 0 or not np.isfinite(alpha).all():
        example = ",".join(["1"] * (stages - 1) + ["8"])
        raise ConfigError(
            f"alpha={tuple(alpha)}: must be {stages} numbers of at least 0, one per resolution stage; try alpha=({example})"
        )
    return tuple(float(weight) for weight in alpha)


def depth_penalty(structure: Structure, kind: str = "paper") -> float:
    """How uneven the super blocks are in depth.

    ``"paper"``: exp of the variance of the depths from the second super block on. ``"reference"``: what the authors' code computes, exp of
    the standard deviation, with the first two super blocks left out (all counted where the blocks are depthwise).
    """
    depths = [block.layers for block in structure.blocks]
    if penalty_kind(kind) == "paper":
        return exp(min(float(np.var(depths[1:])), MOST_VARIANCE)) if depths[1:] else 1.0
    if structure.blocks[0].kind == "K1KXK1":
        depths = depths[2:]
    return exp(min(float(np.std(depths)), MOST_VARIANCE)) if depths else 1.0


def penalty_kind(kind: str) -> str:
    """The name of a depth penalty, checked."""
    if kind not in PENALTIES:
        raise ConfigError(f"depth_penalty={kind!r}: must be one of {', '.join(PENALTIES)}")
    return kind


def reference_cost(structure: Structure, image_size: int) -> tuple[int, int]:
    """Multiply-accumulates and parameters as the authors' code counts them, classifier not counted."""
    side, channels = image_size, structure.channels
    taps = structure.stem_kernel**2 * channels
    area = (side // structure.stem_stride) ** 2
    macs, params = area * structure.stem * (taps + 3), structure.stem * (taps + 2)
    side, channels = side // structure.stem_stride, structure.stem
    for block in structure.blocks:
        for index in range(block.layers):
            stride = block.stride if index == 0 else 1
            block_macs, block_params = _block_cost(block, channels, stride, side, index == 0)
            macs, params = macs + block_macs, params + block_params
            side, channels = side // stride, block.out
    if structure.head:
        macs += side**2 * structure.head * (channels + 3)
        params += structure.head * (channels + 2)
    return macs, params


def _block_cost(block: SuperBlock, channels: int, stride: int, side: int, is_first: bool) -> tuple[int, int]:
    """One residual block: three convolutions with batch norm, three ReLUs, shortcut."""
    b, o, pixels, out_pixels = block.bottleneck, block.out, side**2, (side // stride) ** 2
    taps = block.kernel**2 * (b if block.kind == "K1KXK1" else 1)
    macs = pixels * b * (channels + 3) + out_pixels * (b * (taps + 3) + o * (b + 3))
    params = b * (channels + 2) + b * (taps + 2) + o * (b + 2)
    if block.kind == "K1DWSEK1":
        squeezed = max(1, round(b / 4) // 8) * 8
        params += squeezed * (b + 2) + b * (squeezed + 2)
    if stride == 2 and (block.kind == "K1KXK1" or channels == o):
        macs += pixels * channels
    if block.kind == "K1KXK1" and is_first:  # even where the widths agree
        macs += out_pixels * o * (channels + 3)
        params += o * (channels + 2)
    return macs, params


def _layers(structure: Structure) -> list[tuple[int, int, tuple[int, ...], bool]]:
    """Of each block in order: stride, output channels, widths of its convolutions (shortcuts do not count), whether it has an SE."""
    stem_widths: tuple[int, ...] = (structure.channels * structure.stem_kernel**2,)
    rows = [(structure.stem_stride, structure.stem, stem_widths, False)]
    channels = structure.stem
    for block in structure.blocks:
        middle = block.kernel**2 * (block.bottleneck if block.kind == "K1KXK1" else 1)
        for index in range(block.layers):
            widths = (channels, middle, block.bottleneck)
            rows.append((block.stride if index == 0 else 1, block.out, widths, block.kind == "K1DWSEK1"))
            channels = block.out
    if structure.head:
        rows.append((1, structure.head, (channels,), False))
    return rows


def _stage(side: int, channels: int, layers: int, log_widths: float) -> StageScore:
    return StageScore(
        log(channels * side**2) * log_widths / 2, side, channels, layers, layers / exp(log_widths / layers)
    )
