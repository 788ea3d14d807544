"""A residual block as a small table: its convolutions in order, and what its shortcut does.

Everything that the room knows of a block follows from its table: the widths that count for entropy, multiply-accumulates and parameters by
two counters, bytes of flash, bytes alive at each step, and the network itself. So a block of one's own is a table of one's own.

A block has three widths: ``in`` (of the block before it), ``out`` (its own) and ``mid`` (between). The first block of a super block has the
stride and changes the width; in those after it, ``in`` is ``out``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from lilliput.errors import ConfigError, DataError

Width = Literal["in", "mid", "out"]
WIDTHS = ("in", "mid", "out")
SHORTCUTS = ("none", "same", "projection")
ACTIVATIONS = ("relu", "relu6")


@dataclass(frozen=True, kw_only=True)
class ConvRow:
    """One convolution, its batch norm, and what follows on its output."""

    inputs: Width
    outputs: Width
    kernel: int | None = None
    """Side of its window, odd; ``None`` for the super block's own, which a solver may choose."""
    is_depthwise: bool = False
    """One filter a channel."""
    has_stride: bool = False
    """Whether it is the one with the super block's stride, in the first block."""
    has_activation: bool = True
    """Whether the activation follows at once."""
    has_squeeze: bool = False
    """Whether squeeze-and-excitation follows, with a quarter of the channels (Hu et al. 2018, arXiv:1709.01507)."""


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """A kind of block.

    >>> basic = BlockType(
    ...     name="basic",  # of ResNet-18
    ...     convs=(ConvRow(inputs="in", outputs="mid", has_stride=True), ConvRow(inputs="mid", outputs="out", has_activation=False)),
    ...     shortcut="projection",
    ... )
    >>> basic.has_mid, basic.has_own_kernel
    (True, True)
    """

    name: str
    convs: tuple[ConvRow, ...]
    shortcut: str = "same"
    """What is added to the result. ``none``: nothing; ``same``: the input, where it has the output's shape; ``projection``: that, and in
    the first block the input through a 1x1 convolution (after average pooling where the stride is 2)."""
    activation: str = "relu"
    """``relu`` or ``relu6``."""
    has_final_activation: bool = True
    """Whether the activation follows the addition."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "convs", tuple(self.convs))
        if not self.name or not self.convs:
            raise ConfigError(f"block {self.name!r}: needs a name and at least one convolution")
        if self.shortcut not in SHORTCUTS:
            raise ConfigError(f"block '{self.name}': shortcut={self.shortcut!r} must be one of {', '.join(SHORTCUTS)}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"block '{self.name}': activation={self.activation!r} must be one of {', '.join(ACTIVATIONS)}"
            )
        for index, row in enumerate(self.convs):
            where = f"block '{self.name}', convolution {index}"
            if row.inputs not in WIDTHS or row.outputs not in WIDTHS:
                raise ConfigError(f"{where}: {row.inputs!r} to {row.outputs!r}; widths are {', '.join(WIDTHS)}")
            if row.kernel is not None and (row.kernel < 1 or row.kernel % 2 == 0):
                raise ConfigError(f"{where}: kernel={row.kernel} must be odd; try 3, or None for the super block's")
            if row.is_depthwise and row.inputs != row.outputs:
                raise ConfigError(
                    f"{where}: depthwise from '{row.inputs}' to '{row.outputs}'; must have one width on both sides"
                )
        for index, (before, after) in enumerate(pairwise(self.convs)):
            if before.outputs != after.inputs:
                raise ConfigError(
                    f"block '{self.name}': convolution {index} puts out '{before.outputs}', but the next takes '{after.inputs}'"
                )
        if (self.convs[0].inputs, self.convs[-1].outputs) != ("in", "out"):
            raise ConfigError(
                f"block '{self.name}': goes from '{self.convs[0].inputs}' to '{self.convs[-1].outputs}'; must go from 'in' to 'out'"
            )
        if sum(row.has_stride for row in self.convs) != 1:
            raise ConfigError(f"block '{self.name}': exactly one convolution must have has_stride=True")

    @property
    def has_mid(self) -> bool:
        """Whether it has a width of its own between input and output."""
        return any("mid" in (row.inputs, row.outputs) for row in self.convs)

    @property
    def has_own_kernel(self) -> bool:
        """Whether a convolution takes the super block's kernel."""
        return any(row.kernel is None for row in self.convs)

    @property
    def is_depthwise(self) -> bool:
        """Whether a convolution is."""
        return any(row.is_depthwise for row in self.convs)

    @property
    def has_squeeze(self) -> bool:
        """Whether it has squeeze-and-excitation."""
        return any(row.has_squeeze for row in self.convs)

    def kernel(self, index: int, own: int) -> int:
        """Side of a convolution's window, in a super block whose own is given."""
        row_kernel = self.convs[index].kernel
        return own if row_kernel is None else row_kernel

    def to_plain(self) -> str | dict[str, Any]:
        """As JSON holds it: the name of a published kind, the whole table of another."""
        return self.name if BLOCKS.get(self.name) == self else asdict(self)

    @classmethod
    def from_plain(cls, plain: Any, where: str = "block") -> BlockType:
        """The block that ``to_plain`` wrote.

        Raises:
            DataError: not such data; says where.
        """
        if isinstance(plain, str):
            if plain not in BLOCKS:
                raise DataError(f"{where} kind {plain!r}: must be one of {', '.join(BLOCKS)}, or a table")
            return BLOCKS[plain]
        try:
            return cls(**{**plain, "convs": tuple(ConvRow(**row) for row in plain["convs"])})
        except (TypeError, KeyError, ConfigError) as error:
            raise DataError(f"{where}: not the table of a block ({error})") from None


def squeezed_width(mid: int) -> int:
    """Channels inside squeeze-and-excitation: a quarter, down to a multiple of 8, as the authors' code computes it; 8 at least."""
    return 8 * max(1, round(mid / 4) // 8)


def _bottleneck() -> BlockType:
    return BlockType(
        name="K1KXK1",
        convs=(
            ConvRow(inputs="in", outputs="mid", kernel=1),
            ConvRow(inputs="mid", outputs="mid", has_stride=True),
            ConvRow(inputs="mid", outputs="out", kernel=1, has_activation=False),
        ),
        shortcut="projection",
    )


def _inverted(name: str, has_squeeze: bool) -> BlockType:
    """The projection has no activation (Sandler et al. 2018, arXiv:1801.04381, section 3.2); the authors' own blocks have one."""
    return BlockType(
        name=name,
        convs=(
            ConvRow(inputs="in", outputs="mid", kernel=1),
            ConvRow(inputs="mid", outputs="mid", is_depthwise=True, has_stride=True, has_squeeze=has_squeeze),
            ConvRow(inputs="mid", outputs="out", kernel=1, has_activation=False),
        ),
        shortcut="same",
        activation="relu6",
        has_final_activation=False,
    )


K1KXK1 = _bottleneck()
"""1x1, kxk, 1x1: the bottleneck of ResNet-50."""
K1DWK1 = _inverted("K1DWK1", has_squeeze=False)
"""1x1, depthwise kxk, 1x1: the inverted residual of MobileNetV2."""
K1DWSEK1 = _inverted("K1DWSEK1", has_squeeze=True)
"""The same with squeeze-and-excitation after the depthwise convolution."""
KX = BlockType(
    name="KX",
    convs=(ConvRow(inputs="in", outputs="out", has_stride=True),),
    shortcut="none",
    has_final_activation=False,
)
"""Plain kxk convolutions."""

BLOCKS = {block.name: block for block in (K1KXK1, K1DWK1, K1DWSEK1, KX)}
"""Kinds known by name; any other is a ``BlockType`` of one's own."""
