"""Which structures a solver may choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from lilliput.design import geometry
from lilliput.design.block import BLOCKS, K1DWK1, K1DWSEK1, K1KXK1, KX, BlockType
from lilliput.design.structure import Structure, SuperBlock
from lilliput.design.terms import COUNTERS
from lilliput.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Structures of one kind of block at one image size: free are stem, widths, kernels and depths.

    A member is also a row of whole numbers, ``stem, out_1..out_M, mid_1..M, kernel_1..M, layers_1..M``: what the solver works on. Where the
    block has no width of its own between input and output, ``mid`` is idle and stays at one step.
    """

    block: BlockType
    image_size: int
    strides: tuple[int, ...]
    """Of the stem and of every super block; 1 or 2."""
    kernels: tuple[int, ...]
    channel_step: int
    """Widths are multiples of it."""
    stem_min: int
    stem_max: int
    out_max: int
    growth_max: float | int
    """Most that a super block may multiply the width."""
    mid_ratio: tuple[float | int, float | int]
    """Least and most of ``mid`` for each channel of ``out``, before rounding to the nearest step."""
    first_layers_max: int
    """Most blocks in the first super block."""
    layers_max: int
    """Most blocks in any other super block."""
    channels: int
    """Of the input image."""
    num_classes: int
    """Of the classifier, which the exact counter and the flash of a chip charge for."""
    head: int
    """Channels of a 1x1 convolution after the last block; 0 for none."""
    counter: str
    """What the budget's multiply-accumulates and parameters mean: the authors' ``reference``, or ``exact``: of the built network."""
    redistributes: bool = False
    """Receptive-field redistribution: before the map of an eighth of the image's side, windows above 1x1 only where a stride needs them.

    Tiles of that map then depend on less of the image, so that patches recompute less; kernels and depths after it make up for it.
    Super blocks of stride 1 before it have 1x1 windows, those of stride 2 the smallest kernel and one block.
    Source: Lin et al. 2021, MCUNetV2 (arXiv:2110.15352), section 3.2."""

    @classmethod
    def bottleneck(
        cls,
        image_size: int = 224,
        strides: Sequence[int] = (2, 2, 2, 2, 1, 2),
        kernels: Sequence[int] = (3, 5),
        channel_step: int = 8,
        *,
        stem_min: int | None = None,
        stem_max: int = 32,
        out_max: int = 2048,
        growth_max: float | int = 4,
        mid_ratio: tuple[float | int, float | int] = (0.1, 1),
        first_layers_max: int = 3,
        layers_max: int = 64,
        channels: int = 3,
        num_classes: int = 1000,
        counter: str = "reference",
    ) -> SearchSpace:
        """The published space of 1x1, kxk, 1x1 bottlenecks, with its constants; widths never fall from one super block to the next.

        Raises:
            ConfigError: an option outside what is allowed, or sizes that do not go together.
        Source: DeepMAD (arXiv:2303.02165), the authors' ``space_k1kxk1``. Ours differs: a bound on the depth of every super block.
        """
        return cls(
            block=K1KXK1, image_size=image_size, strides=tuple(strides), kernels=tuple(sorted(set(kernels))), channel_step=channel_step,
            stem_min=channel_step if stem_min is None else stem_min, stem_max=stem_max, out_max=out_max, growth_max=growth_max,
            mid_ratio=mid_ratio, first_layers_max=first_layers_max, layers_max=layers_max, channels=channels, num_classes=num_classes,
            head=0, counter=counter,
        )  # fmt: skip

    @classmethod
    def inverted_residual(
        cls,
        image_size: int = 224,
        strides: Sequence[int] = (2, 2, 2, 2, 1, 2),
        kernels: Sequence[int] = (3, 5, 7),
        channel_step: int = 8,
        *,
        squeeze: bool = False,
        stem_min: int = 16,
        stem_max: int = 32,
        out_max: int = 1280,
        growth_max: float | int = 4,
        mid_ratio: tuple[float | int, float | int] = (1.5, 6.0),
        first_layers_max: int = 3,
        layers_max: int = 32,
        channels: int = 3,
        num_classes: int = 1000,
        head: int = 0,
        counter: str = "exact",
        redistribute: bool = False,
    ) -> SearchSpace:
        """1x1, depthwise kxk, 1x1 inverted residuals; squeeze-and-excitation and receptive-field redistribution are options.

        Raises:
            ConfigError: an option outside what is allowed, or sizes that do not go together.
        Source: DeepMAD (arXiv:2303.02165), the authors' ``space_k1dwsek1`` for the ranges. Ours differs: ``mid`` in steps of channels, not
        of a tenth of the width; widths never fall; depths are bounded; by default the built network is what is counted.
        """
        return cls(
            block=K1DWSEK1 if squeeze else K1DWK1, image_size=image_size, strides=tuple(strides), kernels=tuple(sorted(set(kernels))),
            channel_step=channel_step, stem_min=stem_min, stem_max=stem_max, out_max=out_max, growth_max=growth_max, mid_ratio=mid_ratio,
            first_layers_max=first_layers_max, layers_max=layers_max, channels=channels, num_classes=num_classes, head=head,
            counter=counter, redistributes=redistribute,
        )  # fmt: skip

    @classmethod
    def plain(
        cls,
        image_size: int = 32,
        strides: Sequence[int] = (1, 1, 2, 2),
        kernels: Sequence[int] = (3, 5),
        channel_step: int = 8,
        *,
        stem_max: int = 64,
        out_max: int = 1024,
        growth_max: float | int = 4,
        layers_max: int = 16,
        channels: int = 3,
        num_classes: int = 10,
        counter: str = "exact",
    ) -> SearchSpace:
        """Plain kxk convolutions without shortcuts.

        Raises:
            ConfigError: an option outside what is allowed, or sizes that do not go together.
        """
        return cls(
            block=KX, image_size=image_size, strides=tuple(strides), kernels=tuple(sorted(set(kernels))), channel_step=channel_step,
            stem_min=channel_step, stem_max=stem_max, out_max=out_max, growth_max=growth_max, mid_ratio=(1, 1),
            first_layers_max=layers_max, layers_max=layers_max, channels=channels, num_classes=num_classes, head=0, counter=counter,
        )  # fmt: skip

    @classmethod
    def custom(cls, block: BlockType, image_size: int, strides: Sequence[int], **options: Any) -> SearchSpace:
        """Structures of a block of one's own; options are the fields of the class, by default those of ``bottleneck``.

        Raises:
            ConfigError: an unknown option, one outside what is allowed, or sizes that do not go together.
        """
        base = asdict(cls.bottleneck(image_size, strides)) | {"counter": "exact", "mid_ratio": (0.1, 6)}
        unknown = sorted(set(options) - set(base))
        if unknown:
            raise ConfigError(f"search space options {', '.join(unknown)}: there are {', '.join(sorted(base))}")
        return cls(**{**base, "block": block, **options})

    def __post_init__(self) -> None:
        for name in ("strides", "kernels", "mid_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("image_size", "channel_step", "growth_max", "first_layers_max", "layers_max", "channels",
                     "num_classes"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.counter not in COUNTERS:
            raise ConfigError(f"counter={self.counter!r}: must be one of {', '.join(COUNTERS)}")
        if len(self.strides) < 2 or any(stride not in (1, 2) for stride in self.strides):
            raise ConfigError(
                f"strides={self.strides}: must be 1 or 2 for the stem and each super block; try (2, 2, 2, 2, 1, 2)"
            )
        if not self.kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ConfigError(f"kernels={self.kernels}: must be odd; try (3, 5)")
        if not self.block.has_own_kernel:
            object.__setattr__(self, "kernels", (1,))  # all its windows are fixed: nothing to choose
        if len(self.mid_ratio) != 2 or not 0 < self.mid_ratio[0] <= self.mid_ratio[1]:
            raise ConfigError(f"mid_ratio={self.mid_ratio}: must be (least, most), above 0; try (1.5, 6)")
        for name in ("stem_min", "stem_max", "out_max"):
            if getattr(self, name) < self.channel_step:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least channel_step={self.channel_step}")
        if self.stem_range[0] > self.stem_range[1]:
            raise ConfigError(
                f"stem_min={self.stem_min}, stem_max={self.stem_max}: no multiple of channel_step={self.channel_step} between"
            )
        if self.head < 0:
            raise ConfigError(f"head={self.head}: must be 0 (none) or its number of channels")
        for index, (side, allowed) in enumerate(zip(self.input_sides, self.allowed_kernels, strict=True), start=1):
            if not allowed:
                raise ConfigError(
                    f"kernels={self.kernels}: none fits super block {index}, whose input is {side}x{side} (the smallest must); "
                    "try a larger image_size or fewer strides of 2"
                )

    @property
    def depth(self) -> int:
        """Number of super blocks, M."""
        return len(self.strides) - 1

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the image, then after each stride."""
        return geometry.sides(self.image_size, self.strides)

    @property
    def input_sides(self) -> tuple[int, ...]:
        """Side of each super block's input map."""
        return self.sides[1:-1]

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Super blocks up to the end of each resolution stage; the stem is number 0."""
        return (*(index for index in range(self.depth) if self.strides[index + 1] == 2), self.depth)

    @property
    def stage_sides(self) -> tuple[int, ...]:
        """Side of each resolution stage's output map."""
        return tuple(self.sides[end + 1] for end in self.stage_ends)

    @property
    def allowed_kernels(self) -> tuple[tuple[int, ...], ...]:
        """Kernels of each super block: 1.5 of them must fit its input; where none does, the smallest, if it is no larger than the map."""
        found = []
        for side, stride, is_early in zip(self.input_sides, self.strides[1:], self._is_early, strict=True):
            fitting = tuple(k for k in self.kernels if k == 1 or 1.5 * k <= side)
            fitting = fitting or tuple(k for k in self.kernels[:1] if k <= side)
            if is_early:
                fitting = (1,) if stride == 1 else fitting[:1]
            found.append(fitting)
        return tuple(found)

    @property
    def _is_early(self) -> tuple[bool, ...]:
        """Super blocks whose receptive field is redistributed to later ones: their input is larger than an eighth of the image."""
        return tuple(self.redistributes and prod(self.strides[: index + 1]) < 8 for index in range(self.depth))

    @property
    def layer_limits(self) -> tuple[int, ...]:
        """Most blocks of each super block."""
        limits = (self.first_layers_max,) + (self.layers_max,) * (self.depth - 1)
        is_single = (early and stride == 2 for early, stride in zip(self._is_early, self.strides[1:], strict=True))
        return tuple(1 if single else limit for single, limit in zip(is_single, limits, strict=True))

    @property
    def is_aligned(self) -> bool:
        """Whether all widths are multiples of 4."""
        return self.channel_step % 4 == 0

    @property
    def stem_range(self) -> tuple[int, int]:
        """Least and most channels of the stem, in whole steps."""
        step = self.channel_step
        return -(-self.stem_min // step) * step, self.stem_max // step * step

    def structure(self, member: Int64[np.ndarray, "variable"]) -> Structure:
        """The structure of a row of numbers."""
        stem, rest = int(member[0]), member[1:].reshape(4, self.depth).T
        return Structure(
            stem=stem,
            stem_stride=self.strides[0],
            channels=self.channels,
            head=self.head,
            blocks=tuple(
                SuperBlock(
                    out=int(out), mid=int(mid), kernel=int(kernel), stride=stride, layers=int(layers), kind=self.block
                )
                for (out, mid, kernel, layers), stride in zip(rest, self.strides[1:], strict=True)
            ),
        )

    def mid_limits(self, out: Int64[np.ndarray, "..."]) -> tuple[Int64[np.ndarray, "..."], Int64[np.ndarray, "..."]]:
        """Least and most of ``mid`` for widths: the ratios, rounded to the nearest step (halves to even), at least one step."""
        step = self.channel_step
        if not self.block.has_mid:
            return np.full_like(out, step), np.full_like(out, step)
        low, high = (
            # A tenth of 360 is 36.0 and must stay a tie: products are cleaned of the last digits' noise first.
            step * np.maximum(1, np.rint(np.round(out * ratio / step, 9)).astype(np.int64))
            for ratio in self.mid_ratio
        )
        return low, high

    def contains(self, members: Int64[np.ndarray, "member variable"]) -> Bool[np.ndarray, "member"]:
        """Which rows are members: steps, bounds, growth, monotone widths, kernels that fit."""
        m, (stem_low, stem_high) = self.depth, self.stem_range
        columns = np.ascontiguousarray(members.T)  # reductions over the few variables are slow, over many members fast
        widths, outs, mids = columns[: 1 + 2 * m], columns[1 : 1 + m], columns[1 + m : 1 + 2 * m]
        kernels, layers = columns[1 + 2 * m : 1 + 3 * m], columns[1 + 3 * m :]
        low, high = self.mid_limits(outs)
        legal = (columns[0] >= stem_low) & (columns[0] <= stem_high)
        for rule in (
            widths >= self.channel_step,
            widths % self.channel_step == 0,
            outs <= self.out_max,
            outs <= self.growth_max * columns[:m],
            outs[1:] >= outs[:-1],
            mids >= low,
            mids <= high,
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
        whole[:, 0] = np.clip(whole[:, 0], *self.stem_range)
        whole[:, 1 : 1 + m] = np.maximum.accumulate(
            np.minimum(whole[:, 1 : 1 + m], self.out_max // step * step), axis=1
        )
        for index in range(1, 1 + m):
            most = (self.growth_max * whole[:, index - 1]) // step * step
            whole[:, index] = np.minimum(whole[:, index], most.astype(np.int64))
            whole[:, m + index] = np.clip(whole[:, m + index], *self.mid_limits(whole[:, index]))
        whole[:, 1 + 3 * m :] = np.clip(whole[:, 1 + 3 * m :], 1, np.array(self.layer_limits))
        return whole

    def member(self, structure: Structure) -> Int64[np.ndarray, "variable"]:
        """The row of a structure, which need not be a member."""
        rows = np.array([[b.out, b.mid, b.kernel, b.layers] for b in structure.blocks], dtype=np.int64)
        return np.concatenate([[structure.stem], rows.T.reshape(-1)]).astype(np.int64)

    def count_upper_bound(self) -> int:
        """Rows within the bounds of each number alone: at least as many as there are members."""
        low, high = self.stem_range
        outs = self.out_max // self.channel_step
        mids = outs if self.block.has_mid else 1
        if self.block.has_mid:
            _, most = self.mid_limits(np.array([self.out_max // self.channel_step * self.channel_step]))
            mids = int(most[0]) // self.channel_step
        kernels = prod(len(allowed) for allowed in self.allowed_kernels)
        stems = (high - low) // self.channel_step + 1
        return stems * (outs * mids) ** self.depth * kernels * prod(self.layer_limits)

    def check_patches(self, patches: geometry.Patches) -> None:
        """Raise ConfigError unless the schedule goes with the space's super blocks and sides."""
        geometry.patched_side(self.sides, patches)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**vars(self), "block": self.block.to_plain()}

    @classmethod
    def from_plain(cls, data: Any) -> SearchSpace:
        """The space that ``to_plain`` wrote.

        Raises:
            DataError: not such data.
        """
        try:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
            }
            return cls(**{**fields, "block": BlockType.from_plain(data["block"], "search space: block")})
        except (TypeError, KeyError, AttributeError, ConfigError) as error:
            known = ", ".join(BLOCKS)
            raise DataError(
                f"search space: not what to_plain() writes ({error}); blocks are {known} or a table"
            ) from None
