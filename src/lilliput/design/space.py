"""Which structures a solver may choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Bool, Float, Int64

from lilliput.design.structure import Structure, SuperBlock
from lilliput.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Structures of one kind of block at one image size: free are stem, widths, bottlenecks, kernels and depths.

    A member is also a row of whole numbers, ``stem, out_1..out_M, bottleneck_1..M, kernel_1..M, layers_1..M``: what the solver works on.
    """

    image_size: int
    strides: tuple[int, ...]
    """Of the stem and of every super block; 1 or 2."""
    kernels: tuple[int, ...]
    channel_step: int
    """Widths are multiples of it."""
    stem_max: int
    out_max: int
    growth_max: int
    """Most that a super block may multiply the width."""
    bottleneck_ratio_max: int
    """Most that a bottleneck may divide its super block's width (before rounding to a multiple of the step)."""
    first_layers_max: int
    """Most blocks in the first super block."""
    layers_max: int
    """Most blocks in any other super block."""
    channels: int
    """Of the input image."""

    @classmethod
    def bottleneck(
        cls,
        image_size: int = 224,
        strides: Sequence[int] = (2, 2, 2, 2, 1, 2),
        kernels: Sequence[int] = (3, 5),
        channel_step: int = 8,
        *,
        stem_max: int = 32,
        out_max: int = 2048,
        growth_max: int = 4,
        bottleneck_ratio_max: int = 10,
        first_layers_max: int = 3,
        layers_max: int = 64,
        channels: int = 3,
    ) -> SearchSpace:
        """The published space of 1x1, kxk, 1x1 bottlenecks, with its constants; widths never fall from one super block to the next.

        Raises:
            ConfigError: an option outside what is allowed, or sizes that do not go together.
        Source: DeepMAD (arXiv:2303.02165), the authors' ``space_k1kxk1``. Ours differs: a bound on the depth of every super block.
        """
        return cls(
            image_size=image_size,
            strides=tuple(strides),
            kernels=tuple(sorted(set(kernels))),
            channel_step=channel_step,
            stem_max=stem_max,
            out_max=out_max,
            growth_max=growth_max,
            bottleneck_ratio_max=bottleneck_ratio_max,
            first_layers_max=first_layers_max,
            layers_max=layers_max,
            channels=channels,
        )

    def __post_init__(self) -> None:
        for name in ("image_size", "channel_step", "growth_max", "bottleneck_ratio_max", "first_layers_max",
                     "layers_max", "channels"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if len(self.strides) < 2 or any(stride not in (1, 2) for stride in self.strides):
            raise ConfigError(
                f"strides={self.strides}: must be 1 or 2 for the stem and each super block; try (2, 2, 2, 2, 1, 2)"
            )
        if not self.kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ConfigError(f"kernels={self.kernels}: must be odd; try (3, 5)")
        for name in ("stem_max", "out_max"):
            if getattr(self, name) < self.channel_step:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least channel_step={self.channel_step}")
        total = prod(self.strides)
        if self.image_size % total:
            nearest = max(1, round(self.image_size / total)) * total
            raise ConfigError(
                f"image_size={self.image_size}: must be a multiple of the total stride {total}; try image_size={nearest}"
            )
        for index, (side, allowed) in enumerate(zip(self.input_sides, self.allowed_kernels, strict=True), start=1):
            if not allowed:
                raise ConfigError(
                    f"kernels={self.kernels}: none fits super block {index}, whose input is {side}x{side} (1.5 kernels must); "
                    "try a larger image_size or fewer strides of 2"
                )

    @property
    def depth(self) -> int:
        """Number of super blocks, M."""
        return len(self.strides) - 1

    @property
    def input_sides(self) -> tuple[int, ...]:
        """Side of each super block's input map."""
        return tuple(self.image_size // prod(self.strides[: index + 1]) for index in range(self.depth))

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Super blocks up to the end of each resolution stage; the stem is number 0."""
        return (*(index for index in range(self.depth) if self.strides[index + 1] == 2), self.depth)

    @property
    def stage_sides(self) -> tuple[int, ...]:
        """Side of each resolution stage's output map."""
        return tuple(self.image_size // prod(self.strides[: end + 1]) for end in self.stage_ends)

    @property
    def allowed_kernels(self) -> tuple[tuple[int, ...], ...]:
        """Kernels of each super block: 1.5 of them must fit its input."""
        return tuple(tuple(k for k in self.kernels if 1.5 * k <= side) for side in self.input_sides)

    @property
    def layer_limits(self) -> tuple[int, ...]:
        """Most blocks of each super block."""
        return (self.first_layers_max,) + (self.layers_max,) * (self.depth - 1)

    def structure(self, member: Int64[np.ndarray, "variable"]) -> Structure:
        """The structure of a row of numbers."""
        stem, rest = int(member[0]), member[1:].reshape(4, self.depth).T
        return Structure(
            stem=stem,
            stem_stride=self.strides[0],
            channels=self.channels,
            blocks=tuple(
                SuperBlock(
                    out=int(out), bottleneck=int(bottleneck), kernel=int(kernel), stride=stride, layers=int(layers)
                )
                for (out, bottleneck, kernel, layers), stride in zip(rest, self.strides[1:], strict=True)
            ),
        )

    def bottleneck_floor(self, out: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """Least bottleneck for a width: a tenth of it, rounded to the nearest multiple of the step (halves to even), at least one step."""
        nearest = np.rint(out / (self.bottleneck_ratio_max * self.channel_step)).astype(np.int64)
        return self.channel_step * np.maximum(1, nearest)

    def contains(self, members: Int64[np.ndarray, "member variable"]) -> Bool[np.ndarray, "member"]:
        """Which rows are members: steps, bounds, growth, monotone widths, kernels that fit."""
        m = self.depth
        columns = np.ascontiguousarray(members.T)  # reductions over the few variables are slow, over many members fast
        widths, outs, bottlenecks = columns[: 1 + 2 * m], columns[1 : 1 + m], columns[1 + m : 1 + 2 * m]
        kernels, layers = columns[1 + 2 * m : 1 + 3 * m], columns[1 + 3 * m :]
        legal = columns[0] <= self.stem_max
        for rule in (
            widths >= self.channel_step,
            widths % self.channel_step == 0,
            outs <= self.out_max,
            outs <= self.growth_max * columns[:m],
            outs[1:] >= outs[:-1],
            bottlenecks <= outs,
            bottlenecks >= self.bottleneck_floor(outs),
            layers >= 1,
            layers <= np.array(self.layer_limits)[:, None],
        ):
            legal = legal & rule.all(axis=0)
        for index, allowed in enumerate(self.allowed_kernels):
            legal &= np.isin(kernels[index], allowed)
        return legal

    def rounded(self, members: Float[np.ndarray, "member variable"]) -> Int64[np.ndarray, "member variable"]:
        """The nearest rows that keep to steps and bounds, with monotone widths; kernels must be whole and allowed already."""
        m, step = self.depth, self.channel_step
        whole = np.rint(members).astype(np.int64)
        whole[:, : 1 + 2 * m] = step * np.maximum(1, np.rint(members[:, : 1 + 2 * m] / step).astype(np.int64))
        whole[:, 0] = np.minimum(whole[:, 0], self.stem_max // step * step)
        whole[:, 1 : 1 + m] = np.maximum.accumulate(
            np.minimum(whole[:, 1 : 1 + m], self.out_max // step * step), axis=1
        )
        for index in range(1, 1 + m):
            whole[:, index] = np.minimum(whole[:, index], self.growth_max * whole[:, index - 1])
            out, bottleneck = whole[:, index], whole[:, m + index]
            whole[:, m + index] = np.clip(bottleneck, self.bottleneck_floor(out), out)
        whole[:, 1 + 3 * m :] = np.clip(whole[:, 1 + 3 * m :], 1, np.array(self.layer_limits))
        return whole
