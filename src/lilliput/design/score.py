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

from lilliput.design.count import reference_cost
from lilliput.design.structure import Structure
from lilliput.errors import ConfigError

PENALTIES = ("paper", "reference", "all")
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
        image_size: side of the square input; where a stride of 2 meets an odd side, it rounds up.
        alpha: a weight for each resolution stage; ``None`` is 8 for the last and 1 for the others.
        as_published: take over a slip of the authors' code, in which a map that went through squeeze-and-excitation has side 1; the
            published figures of networks of ``K1DWSEK1`` blocks are to be had no other way. Other networks score the same.
    Raises:
        ConfigError: a number of weights that does not go with the structure, or no image.
    """
    if image_size < 1:
        raise ConfigError(f"image_size={image_size}: must be at least 1")
    log_widths, stages = 0.0, []
    side, channels, layers = image_size, structure.channels, 0
    for stride, out, widths, is_squeezed in _layers(structure):
        if stride == 2 and layers:
            stages.append(_stage(side, channels, layers, log_widths))
        side = 1 if as_published and is_squeezed else -(-side // stride)
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
    the standard deviation, with the first two super blocks left out (all counted where the blocks are depthwise). ``"all"``: exp of the
    variance of all depths.
    """
    first = first_penalised(penalty_kind(kind), any(block.kind.is_depthwise for block in structure.blocks))
    depths = [block.layers for block in structure.blocks][first:]
    if not depths:
        return 1.0
    spread = np.std(depths) if kind == "reference" else np.var(depths)
    return exp(min(float(spread), MOST_VARIANCE))


def first_penalised(kind: str, is_depthwise: bool) -> int:
    """Index of the first super block whose depth a penalty compares."""
    return {"all": 0, "paper": 1, "reference": 0 if is_depthwise else 2}[kind]


def penalty_kind(kind: str) -> str:
    """The name of a depth penalty, checked."""
    if kind not in PENALTIES:
        raise ConfigError(f"depth_penalty={kind!r}: must be one of {', '.join(PENALTIES)}")
    return kind


def _layers(structure: Structure) -> list[tuple[int, int, tuple[int, ...], bool]]:
    """Of each block in order: stride, output channels, widths of its convolutions (shortcuts do not count), whether it has an SE."""
    stem_widths: tuple[int, ...] = (structure.channels * structure.stem_kernel**2,)
    rows = [(structure.stem_stride, structure.stem, stem_widths, False)]
    channels = structure.stem
    for block in structure.blocks:
        for index in range(block.layers):
            names = {"in": channels, "mid": block.mid, "out": block.out}
            widths = tuple(
                block.kind.kernel(position, block.kernel) ** 2 * (1 if row.is_depthwise else names[row.inputs])
                for position, row in enumerate(block.kind.convs)
            )
            rows.append((block.stride if index == 0 else 1, block.out, widths, block.kind.has_squeeze))
            channels = block.out
    if structure.head:
        rows.append((1, structure.head, (channels,), False))
    return rows


def _stage(side: int, channels: int, layers: int, log_widths: float) -> StageScore:
    return StageScore(
        log(channels * side**2) * log_widths / 2, side, channels, layers, layers / exp(log_widths / layers)
    )
