"""How many bytes are alive at each step of a block, as sums of its widths times areas: linear in the widths at a fixed resolution.

Two sets of rules. *graph*: what ``Graph.live_memory(inplace=True)`` counts of the built network, in the order it is written. *chip*: what
the microcontroller's planner reaches for the same network at int8: additions fused into the layer before them and written over the skip
tensor, pooling and 1x1 convolutions in place, the best order of a block's branches, and the kernels' working memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, Literal

import numpy as np

from lilliput.design.block import BlockType
from lilliput.design.terms import Symbol, Term, total
from lilliput.mcu.scratch import depthwise_scratch_bytes

Rules = Literal["graph", "chip"]


@dataclass(frozen=True)
class Form:
    """Bytes alive during one step: maps and the kernel's working memory as terms, and a depthwise kernel's ring of rows."""

    terms: tuple[Term, ...]
    ring: int | None = None
    """The depthwise convolution that runs."""


@dataclass(frozen=True)
class Facts:
    """What is known of a block's sizes, on which it depends what may run in place."""

    is_aligned: bool = True
    """All widths are multiples of 4, which the kernels read as words."""
    in_place: frozenset[int] = frozenset()
    """Convolutions over all channels that may write over their input, by index; ``PROJECTION`` is the shortcut's."""
    is_in_place_certain: bool = True
    """If not, whatever may write over its input is taken to do so: no network needs less."""


PROJECTION = -1


def in_place_claims(
    block: BlockType, symbols: Mapping[Symbol, Any], kernel: Any, *, is_first: bool, stride: int
) -> dict[int, Any]:
    """For each convolution over all channels whether its sizes let it write over its input; sizes may be numbers or arrays.

    The kernels write two output pixels after both windows are read: the result must not overtake what is still to be read. Of a 1x1
    convolution it never does: where the result is longer, they go from the last pixels to the first.
    """
    claims = {}
    for index, row in enumerate(block.convs):
        if row.is_depthwise:
            continue
        source, result = (symbols["out" if w == "in" and not is_first else w] for w in (row.inputs, row.outputs))
        own = kernel if row.kernel is None else row.kernel
        if row.has_stride and is_first and stride == 2:
            claims[index] = ((own == 1) & (result <= 2 * source)) | ((own == 3) & (2 * result <= 3 * source))
        else:
            claims[index] = own == 1
    if block.shortcut == "projection" and is_first:
        claims[PROJECTION] = True
    return claims


@dataclass(frozen=True)
class _Step:
    reads: tuple[str, ...]
    writes: str
    hosts: tuple[str, ...] = ()
    """Of those read, which the result may be written over if nobody needs them afterwards."""
    scratch: tuple[Term, ...] = ()
    ring: int | None = None


@cache
def block_forms(
    block: BlockType,
    rules: Rules,
    *,
    is_first: bool,
    stride: int,
    has_skip: bool,
    facts: Facts,
) -> tuple[tuple[Form, ...], ...]:
    """For each order in which the block may run, the bytes alive at each of its steps.

    Args:
        is_first: the first block of a super block, where the shortcut may project.
        has_skip: whether a shortcut of kind ``same`` is there.
    """
    table = _Table(block, rules, is_first, stride, facts)
    if block.shortcut == "projection" and is_first and not facts.is_in_place_certain:
        orders = [table.body("x", "z")]  # whatever the order, each convolution has its input and its output
    elif block.shortcut == "projection" and is_first:
        count = len(block.convs)
        orders = (
            [table.projected(count)]
            if rules == "graph"
            else [table.projected(after, first) for first in (False, True) for after in range(count + 1)]
        )
    elif (block.shortcut == "projection" and not is_first) or (block.shortcut == "same" and has_skip):
        orders = [table.identity()]
    else:
        orders = [table.body("x", "z")]
    return tuple(dict.fromkeys(tuple(_liveness(steps, table.buffers)) for steps in orders))


class _Table:
    """Steps of one block; buffers by name: ``x`` its input, ``z`` its output."""

    def __init__(self, block: BlockType, rules: Rules, is_first: bool, stride: int, facts: Facts) -> None:
        self.block, self.is_chip, self.is_first, self.facts = block, rules == "chip", is_first, facts
        self.stride = stride if is_first else 1
        self.end = len(block.convs)
        self.buffers = {"x": Term(1, ("in" if is_first else "out",), 0), "z": Term(1, ("out",), self.end)}

    def body(self, source: str, result: str, skip: str | None = None) -> list[_Step]:
        """The convolutions; with a skip tensor, the last takes in the addition where a kernel does that."""
        steps, before = [], source
        for index, row in enumerate(self.block.convs):
            is_last = index == self.end - 1
            after = result if is_last and not row.has_squeeze else f"y{index}"
            self.buffers.setdefault(after, Term(1, (self._symbol(row.outputs),), index + 1))
            fuses = skip is not None and is_last and self.is_chip and not row.is_depthwise and not row.has_squeeze
            if is_last and skip is not None and not fuses and not row.has_squeeze:
                after = "sum"
                self.buffers[after] = self.buffers[result]
            steps.append(self._convolution(index, before, after, skip if fuses else None))
            if row.has_squeeze:
                steps += self._squeeze(after, result if is_last and skip is None else f"q{index}", index)
                after = steps[-1].writes
            before = after
        if skip is not None and before != result:
            steps.append(_Step((before, skip), result, (before, skip)))
        return steps

    def identity(self) -> list[_Step]:
        """The input is added to the result."""
        return self.body("x", "z", skip="x")

    def projected(self, after: int, pools_first: bool = False) -> list[_Step]:
        """The input's projection is made after so many convolutions of the body; the later of the two takes in the addition.

        On a chip the input is pooled as soon as the body's first convolution has read it, over itself; or before, so that the
        convolution may run in place.
        """
        if after == self.end:
            self.buffers["body"] = self.buffers["z"]
            pool, source = self._pool()
            body = self.body("x", "body")
            steps = [*body, *pool]
            if self.is_chip:
                steps = [*pool, *body] if pools_first else [body[0], *pool, *body[1:]]
            return [*steps, *self._projection(source, "z", skip="body")]
        self.buffers["projected"] = self.buffers["z"]
        body = self.body("x", "z", skip="projected")
        pool, source = self._pool()
        projection = self._projection(source, "projected")
        if after == 0:
            return [*pool, *projection, *body]
        # A convolution may be more than one step: what squeezes its output belongs to it.
        first = 1 + sum(1 + 4 * row.has_squeeze for row in self.block.convs[1:after])
        begin = [*pool, body[0]] if pools_first else [body[0], *pool]
        return [*begin, *body[1:first], *projection, *body[first:]]

    def _symbol(self, width: Symbol) -> Symbol:
        return "out" if width == "in" and not self.is_first else width

    def _convolution(self, index: int, before: str, after: str, skip: str | None) -> _Step:
        row = self.block.convs[index]
        if row.is_depthwise:
            return _Step((before,), after, (before,), ring=index if self.is_chip else None)
        kernel = row.kernel if row.kernel is not None else 0
        return self._dense(index, before, after, row.inputs, row.outputs, kernel, skip)

    def _dense(
        self, index: int, before: str, after: str, inputs: Symbol, outputs: Symbol, kernel: int, skip: str | None = None
    ) -> _Step:
        """A convolution over all channels; kernel 0 is the super block's own."""
        if not self.is_chip:
            return _Step((before,), after) if skip is None else _Step((before, skip), after)
        factor = 4 if self.facts.is_aligned else 5
        scratch = [Term(factor * (kernel**2 or 1), (self._symbol(inputs),), None, kernel == 0)]
        if skip is not None:
            scratch.append(Term(2, (self._symbol(outputs),)))
            return _Step((before, skip), after, (skip,) if skip != before else (), tuple(scratch))
        hosts = (before,) if index in self.facts.in_place else ()
        return _Step((before,), after, hosts, tuple(scratch))

    def _squeeze(self, before: str, after: str, index: int) -> list[_Step]:
        wide, narrow = self._symbol(self.block.convs[index].outputs), "squeeze"
        mean, inner, gate = (f"{name}{index}" for name in ("mean", "inner", "gate"))
        self.buffers |= {mean: Term(1, (wide,)), inner: Term(1, (narrow,)), gate: Term(1, (wide,))}
        self.buffers.setdefault(after, self.buffers[before])
        return [
            _Step((before,), mean),
            _Step((mean,), inner),
            _Step((inner,), gate),
            _Step((before, gate), after, (before,)),
        ]

    def _pool(self) -> tuple[list[_Step], str]:
        """Average pooling of the input where the stride is 2, and what the projection then reads."""
        if self.stride == 1:
            return [], "x"
        self.buffers["pooled"] = Term(1, ("in",), self.end)
        return [_Step(("x",), "pooled", ("x",) if self.is_chip else ())], "pooled"

    def _projection(self, source: str, result: str, skip: str | None = None) -> list[_Step]:
        if skip is None or self.is_chip:
            return [self._dense(PROJECTION, source, result, "in", "out", 1, skip)]
        self.buffers["projected"] = self.buffers[result]
        project = self._dense(PROJECTION, source, "projected", "in", "out", 1)
        return [project, _Step((skip, "projected"), result, (skip, "projected"))]


def _liveness(steps: Sequence[_Step], buffers: Mapping[str, Term]) -> list[Form]:
    last = {name: index for index, step in enumerate(steps) for name in step.reads}
    last["z"] = len(steps)
    alive, forms = ["x"], []
    for index, step in enumerate(steps):
        host = next((name for name in step.hosts if last[name] == index), None)
        during = [alive if host is not None else [*alive, step.writes]]
        if host is not None and buffers[host] != buffers[step.writes]:  # the longer of the two counts
            during.append([step.writes if name == host else name for name in alive])
        forms += [Form((*(buffers[name] for name in names), *step.scratch), step.ring) for names in during]
        alive = [name for name in [*alive, step.writes] if last[name] > index]
    return forms


def form_bytes(
    form: Form,
    symbols: Mapping[Symbol, Any],
    map_sides: Sequence[Any],
    kernel: Any = 0,
    block: BlockType | None = None,
    stride: int = 1,
) -> Any:
    """What a form comes to; symbols, own kernel and sides may be whole numbers or arrays.

    Block and stride are those of the depthwise convolution, where the form has one.
    """
    result = total(form.terms, symbols, kernel, [side**2 for side in map_sides])
    if form.ring is None or block is None:
        return result
    row = block.convs[form.ring]
    window = kernel if row.kernel is None else row.kernel
    step = stride if row.has_stride else 1
    return result + depthwise_scratch_bytes(map_sides[form.ring + 1], window, window, step)


def peak_bytes(
    orders: Sequence[Sequence[Form]],
    block: BlockType,
    symbols: Mapping[Symbol, Any],
    kernel: Any,
    map_sides: Sequence[Any],
    stride: int,
) -> Any:
    """The most alive at one step, in the best order."""
    peaks = [
        reduce(np.maximum, [form_bytes(form, symbols, map_sides, kernel, block, stride) for form in forms])
        for forms in orders
    ]
    return reduce(np.minimum, peaks)


def stem_form(rules: Rules, taps: int, channels: int, has_resident_input: bool, is_tiled: bool) -> Form:
    """The first convolution: ``in`` is the image's channels; positions are the image, its piece that is read, the output.

    Whole, the image itself is read. A tile is copied out of an image that stays, or comes in alone.
    """
    terms = [Term(1, ("in",), 1), Term(1, ("out",), 2)]
    if is_tiled and has_resident_input:
        terms.append(Term(1, ("in",), 0))
    if rules == "chip":
        whole = -(-taps // 4) * 4
        terms.append(Term(4 * whole + (whole if channels % 4 else 0), ()))
    return Form(tuple(terms))


def tail_forms(rules: Rules, has_head: bool, last_side: int, is_aligned: bool = True) -> tuple[Form, ...]:
    """After the last block: ``in`` its width, ``out`` the head's, ``classes``; position 0 is the last map."""
    factor = 4 if is_aligned else 5
    scratch = (Term(factor, ("in",)),) if rules == "chip" else ()
    maps = Term(1, ("in",), 0), Term(1, ("out",), 0)
    head: tuple[Form, ...] = ()
    if has_head and rules == "chip" and last_side > 1:  # one pixel runs as a linear layer, whose result lies apart
        head = tuple(Form((each, *scratch)) for each in maps)
    elif has_head:
        head = (Form((*maps, *scratch)),)
    last = "out" if has_head else "in"
    pooled = () if rules == "chip" else (Term(1, (last,)),)
    return (*head, Form((Term(1, (last,), 0), *pooled)), Form((Term(1, (last,)), Term(1, ("classes",)))))
