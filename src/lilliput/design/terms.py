"""What a block costs, as sums of products of its widths: from its table, by two counters.

The same terms are counted for one structure in whole numbers (``count.py``), for many at once (``evaluate.py``) and in logarithms
(``relaxation.py``), so the three cannot disagree.

*reference*: the authors' code. Every convolution, and 3 per value of its output (batch norm 2, ReLU 1, even where there is none); average
pooling in a shortcut 1 per input value; squeeze-and-excitation has parameters and no multiply-accumulates; no classifier.
*exact*: the network that is built. Multiply-accumulates of convolutions, trainable parameters, and the bytes of its constants on a chip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lilliput.design.block import BlockType

Counter = str
"""``reference`` or ``exact``."""
COUNTERS = ("reference", "exact")
Quantity = Literal["macs", "params", "flash_bytes"]

CHANNEL_BYTES = 12
"""Flash of an output channel of an int8 layer besides its weights: bias, multiplier, shift."""
TABLE_BYTES = 256
"""Flash of a function of one code, as squeeze-and-excitation has one."""

Symbol = str
"""A width of the block (``in``, ``mid``, ``out``), ``squeeze`` for the width inside squeeze-and-excitation, or ``same``: the input's width
where it is the output's, else 0."""


@dataclass(frozen=True)
class Term:
    """coefficient * product of symbols * area of the map at a position * (own kernel squared, or 1)."""

    coefficient: int
    symbols: tuple[Symbol, ...]
    position: int | None = None
    """0: the block's input; i + 1: the output of convolution i; ``None``: no map, area 1."""
    has_kernel: bool = False


def total(terms: Iterable[Term], symbols: Mapping[Symbol, Any], kernel: Any, areas: Sequence[Any]) -> Any:
    """Their sum; symbols, own kernel and areas may be whole numbers or arrays."""
    result: Any = 0
    for term in terms:
        value: Any = term.coefficient
        for symbol in term.symbols:
            value = value * symbols[symbol]
        if term.has_kernel:
            value = value * kernel**2
        result = result + (value if term.position is None else value * areas[term.position])
    return result


@cache
def block_terms(
    block: BlockType, quantity: Quantity, counter: Counter, *, is_first: bool, stride: int
) -> tuple[Term, ...]:
    """One block of a super block: its first, or one of the others, whose ``in`` is ``out``."""
    terms: list[Term] = []
    for index, row in enumerate(block.convs):
        i, o = (_symbol(width, is_first) for width in (row.inputs, row.outputs))
        weight = (o,) if row.is_depthwise else (i, o)
        taps = 1 if row.kernel is None else row.kernel**2
        terms += _layer(quantity, counter, weight, o, index + 1, taps, row.kernel is None)
        if row.has_squeeze:
            terms += _squeeze(quantity, counter, o)
    has_pool = stride == 2 and is_first
    if block.shortcut == "projection" and is_first:
        terms += _layer(quantity, counter, ("in", "out"), "out", len(block.convs), 1, False)
    if counter == "reference" and quantity == "macs" and has_pool and block.shortcut != "none":
        terms.append(Term(1, ("in" if block.shortcut == "projection" else "same",), 0))
    return tuple(terms)


def _symbol(width: Symbol, is_first: bool) -> Symbol:
    return "out" if width == "in" and not is_first else width


def _layer(
    quantity: Quantity,
    counter: Counter,
    weight: tuple[Symbol, ...],
    out: Symbol,
    position: int | None,
    taps: int,
    has_kernel: bool,
) -> list[Term]:
    """A convolution with its batch norm."""
    if quantity == "macs":
        values = [Term(3, (out,), position)] if counter == "reference" else []
        return [Term(taps, weight, position, has_kernel), *values]
    extra = 2 if quantity == "params" else CHANNEL_BYTES
    return [Term(taps, weight, None, has_kernel), Term(extra, (out,))]


def _squeeze(quantity: Quantity, counter: Counter, width: Symbol) -> list[Term]:
    """Two 1x1 convolutions on one pixel; ours have a bias, theirs a batch norm each."""
    pair = Term(2, (width, "squeeze"))
    if quantity == "macs":
        return [pair] if counter == "exact" else []
    if quantity == "params":
        each = 2 if counter == "reference" else 1
        return [pair, Term(each, (width,)), Term(each, ("squeeze",))]
    return [pair, Term(CHANNEL_BYTES, (width,)), Term(CHANNEL_BYTES, ("squeeze",)), Term(TABLE_BYTES, ())]


def stem_terms(quantity: Quantity, counter: Counter, taps: int) -> tuple[Term, ...]:
    """The first convolution: ``out`` is its width, position 1 its output, ``taps`` its window times the image's channels."""
    return tuple(_layer(quantity, counter, ("out",), "out", 1, taps, False))


def head_terms(quantity: Quantity, counter: Counter) -> tuple[Term, ...]:
    """A 1x1 convolution after the last block, from ``in`` to ``out``."""
    return tuple(_layer(quantity, counter, ("in", "out"), "out", 1, 1, False))


def classifier_terms(quantity: Quantity, counter: Counter) -> tuple[Term, ...]:
    """A linear layer from ``in`` features to ``out`` classes; the reference counts none."""
    if counter == "reference":
        return ()
    bias = {"macs": 0, "params": 1, "flash_bytes": CHANNEL_BYTES}[quantity]
    return (Term(1, ("in", "out")), *([Term(bias, ("out",))] if bias else []))
