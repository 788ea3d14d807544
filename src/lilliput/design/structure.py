"""The structure of a network: a stem and super blocks, each a run of identical residual blocks.

A structure says widths, kernels, strides and depths, nothing more; it has no weights and no input size. It reads the published
structure files of the reference implementation and goes to JSON and back.

Source: Shen et al. 2023, DeepMAD (arXiv:2303.02165); file format: github.com/alibaba/lightweight-neural-architecture-search.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lilliput.design.block import K1DWK1, K1DWSEK1, K1KXK1, BlockType
from lilliput.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import nn

_FORMAT = "lilliput.structure"
_FORMAT_VERSION = 1
_STEM_CLASS = "ConvKXBNRELU"
_SUPER_CLASSES = {f"SuperRes{kind.name}": kind for kind in (K1KXK1, K1DWK1, K1DWSEK1)}
_BLOCK_NUMBERS = ("out", "mid", "kernel", "stride", "layers")
_LONGEST_TEXT = 100_000


@dataclass(frozen=True, kw_only=True)
class SuperBlock:
    """A run of identical residual blocks; the first has the stride and changes the width."""

    out: int
    """Output channels of every block."""
    mid: int
    """Channels between: of the middle convolution. Idle where the kind of block has no such width."""
    kernel: int
    """Side of the convolutions that have no fixed one; odd."""
    stride: int
    """1 or 2, of the first block only."""
    layers: int
    """Number of blocks."""
    kind: BlockType = K1KXK1
    """The blocks' table."""

    def __post_init__(self) -> None:
        for name in ("out", "mid", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"super block {name}={getattr(self, name)}: must be at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"super block kernel={self.kernel}: must be odd; try 3 or 5")
        if self.stride not in (1, 2):
            raise ConfigError(f"super block stride={self.stride}: must be 1 or 2")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Stem, super blocks and, where there is one, a last 1x1 convolution."""

    stem: int
    """Output channels of the first convolution."""
    blocks: tuple[SuperBlock, ...]
    channels: int = 3
    """Of the input image."""
    stem_kernel: int = 3
    stem_stride: int = 2
    head: int = 0
    """Output channels of a 1x1 convolution after the last block; 0 where there is none."""

    def __post_init__(self) -> None:
        for name in ("stem", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"structure {name}={getattr(self, name)}: must be at least 1")
        if self.head < 0:
            raise ConfigError(f"structure head={self.head}: must be 0 (none) or its number of channels")
        if self.stem_kernel < 1 or self.stem_kernel % 2 == 0:
            raise ConfigError(f"structure stem_kernel={self.stem_kernel}: must be odd; try 3")
        if self.stem_stride not in (1, 2):
            raise ConfigError(f"structure stem_stride={self.stem_stride}: must be 1 or 2")
        if not self.blocks:
            raise ConfigError("structure without super blocks: needs at least one")

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stem, then of each super block."""
        return (self.stem_stride, *(block.stride for block in self.blocks))

    @property
    def layers(self) -> int:
        """Convolutions from input to output, shortcuts not counted."""
        return 1 + sum(len(block.kind.convs) * block.layers for block in self.blocks) + (self.head > 0)

    def __str__(self) -> str:
        """Such as ``K1DWK1-12-24x1-24x1-52x3``: kind, stem, width and number of each super block's blocks."""
        kinds = "+".join(dict.fromkeys(block.kind.name for block in self.blocks))
        head = f"-{self.head}" if self.head else ""
        return f"{kinds}-{self.stem}-{'-'.join(f'{b.out}x{b.layers}' for b in self.blocks)}{head}"

    def build(self, num_classes: int) -> nn.Module:
        """The network, with random weights.

        Raises:
            ConfigError: fewer than 1 class.
        """
        from lilliput.design.network import StructureNet

        return StructureNet(self, num_classes)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        rows = [{**vars(block), "kind": block.kind.to_plain()} for block in self.blocks]
        fields = {name: getattr(self, name) for name in ("stem", "channels", "stem_kernel", "stem_stride", "head")}
        return {"format": _FORMAT, "version": _FORMAT_VERSION, **fields, "blocks": rows}

    def to_json(self) -> str:
        """Text that ``from_json`` reads."""
        return json.dumps(self.to_plain(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Structure:
        """The structure that ``to_json`` wrote.

        Raises:
            DataError: not such a text; the message names the field.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise DataError(f"structure: not JSON ({error}); it must be what to_json() writes") from None
        return cls.from_plain(data)

    @classmethod
    def from_plain(cls, data: Any) -> Structure:
        """The structure that ``to_plain`` wrote.

        Raises:
            DataError: not such data; the message names the field.
        """
        data = dict(data) if isinstance(data, dict) else {}
        if data.pop("format", None) != _FORMAT:
            raise DataError(f'structure: JSON without "format": "{_FORMAT}"; it must be what to_json() writes')
        version = data.pop("version", None)
        if version != _FORMAT_VERSION:
            raise DataError(f"structure: format version {version!r}; this release reads version {_FORMAT_VERSION}")
        rows = data.pop("blocks", None)
        if not isinstance(rows, list):
            raise DataError("structure: 'blocks' must be a list of super blocks")
        blocks = []
        for index, row in enumerate(rows):
            where = f"blocks[{index}]"
            if not isinstance(row, dict):
                raise DataError(f"{where}: {row!r} is not an object; needs {', '.join((*_BLOCK_NUMBERS, 'kind'))}")
            kind = BlockType.from_plain(row.get("kind"), f"{where}: super block")
            fields = _checked({k: v for k, v in row.items() if k != "kind"}, where, _BLOCK_NUMBERS)
            blocks.append(_made(where, SuperBlock, {**fields, "kind": kind}))
        fields = _checked(data, "structure", ("stem", "channels", "stem_kernel", "stem_stride", "head"))
        return _made("structure", cls, {**fields, "blocks": tuple(blocks)})

    @classmethod
    def from_reference(cls, text: str) -> Structure:
        """The first network of a ``best_structures`` text of the reference implementation, or a bare list of its blocks.

        Only literals are read, nothing is run.

        Raises:
            DataError: not such a text; the message names the block and the key.

        >>> Structure.from_reference('''[{'class': 'ConvKXBNRELU', 'in': 3, 'out': 32, 's': 2, 'k': 3},
        ...     {'class': 'SuperResK1KXK1', 'in': 32, 'out': 64, 'btn': 16, 's': 2, 'k': 5, 'L': 2}]''').layers
        7
        """
        rows = _reference_rows(text)
        stem = _conv(rows[0], "block 0")
        width, head, blocks = stem["out"], 0, []
        for index, row in enumerate(rows[1:], start=1):
            where = f"block {index}"
            kind = _reference_class(row, where)
            if index == len(rows) - 1 and kind == _STEM_CLASS:
                conv = _conv(row, where)
                if (conv["k"], conv["s"]) != (1, 1):
                    raise DataError(f"{where}: the last convolution has k={conv['k']}, s={conv['s']}; must be k=1, s=1")
                _chained(conv["in"], width, where)
                head = conv["out"]
                continue
            if kind not in _SUPER_CLASSES:
                raise DataError(
                    f"{where}: class {kind!r} between super blocks; must be one of {', '.join(_SUPER_CLASSES)}"
                )
            row = _reference_numbers(row, where, ("in", "out", "btn", "s", "k", "L"))
            _chained(row["in"], width, where)
            fields = {
                "out": row["out"], "mid": row["btn"], "kernel": row["k"], "stride": row["s"], "layers": row["L"]
            }  # fmt: skip
            blocks.append(_made(where, SuperBlock, {**fields, "kind": _SUPER_CLASSES[kind]}))
            width = row["out"]
        return _made(
            "structure",
            cls,
            {
                "stem": stem["out"],
                "blocks": tuple(blocks),
                "channels": stem["in"],
                "stem_kernel": stem["k"],
                "stem_stride": stem["s"],
                "head": head,
            },
        )


def _checked(row: dict[str, Any], where: str, numbers: tuple[str, ...]) -> dict[str, Any]:
    for name in numbers:
        if name not in row:
            raise DataError(f"{where}: no {name!r}; needs {', '.join(numbers)}")
        if not isinstance(row[name], int) or isinstance(row[name], bool):
            raise DataError(f"{where}: {name}={row[name]!r} must be a whole number")
    unknown = sorted(set(row) - set(numbers))
    if unknown:
        raise DataError(f"{where}: unknown {', '.join(map(repr, unknown))}; has {', '.join(numbers)}")
    return row


def _made(where: str, kind: Any, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None


def _reference_rows(text: str) -> list[Any]:
    if len(text) > _LONGEST_TEXT:
        raise DataError(f"reference structure of {len(text):,} characters; the longest read is {_LONGEST_TEXT:,}")
    try:
        data = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(
            f"reference structure is not a Python literal ({error}); it must be a dict with 'best_structures' or a list of blocks"
        ) from None
    if isinstance(data, dict):
        if not isinstance(data.get("best_structures"), list) or not data["best_structures"]:
            raise DataError(f"reference structure has keys {sorted(map(str, data))}; needs a list 'best_structures'")
        data = data["best_structures"][0]
    if not isinstance(data, list) or len(data) < 2:
        raise DataError("reference structure must be a list of at least two blocks: a convolution, then super blocks")
    return data


def _reference_class(row: Any, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("class"), str):
        raise DataError(f"{where}: {row!r} must be a dict with a 'class'")
    if row["class"] != _STEM_CLASS and row["class"] not in _SUPER_CLASSES:
        raise DataError(
            f"{where}: unknown class {row['class']!r}; known are {', '.join((_STEM_CLASS, *_SUPER_CLASSES))}"
        )
    return row["class"]


def _reference_numbers(row: dict[str, Any], where: str, names: tuple[str, ...]) -> dict[str, int]:
    return _checked({key: row[key] for key in names if key in row}, where, names)


def _conv(row: Any, where: str) -> dict[str, int]:
    if _reference_class(row, where) != _STEM_CLASS:
        raise DataError(f"{where}: class {row['class']!r} where a {_STEM_CLASS!r} must be")
    return _reference_numbers(row, where, ("in", "out", "s", "k"))


def _chained(given: int, expected: int, where: str) -> None:
    if given != expected:
        raise DataError(f"{where}: in={given}, but the block before it puts out {expected} channels")
