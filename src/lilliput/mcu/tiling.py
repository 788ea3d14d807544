"""The first layers of a network tile by tile: another integer graph that computes the same bytes in less memory.

Two schedules. :class:`Patches`: each tile of a map is computed from the part of the image that it depends on; what neighbours share (the
halo) is computed again for each. :class:`Rows`: every map is computed a few rows at a time, each when the next layer needs it, and keeps
the rows that will be read again, so that nothing is computed twice.

Boxes are exact integers, clipped where a map truly ends; a window is padded there and nowhere else. So any kernel, stride, dilation,
padding and residual goes, and any grid, even or not. The result is an ordinary :class:`QuantizedGraph` of ``Crop``, the layers on tiles,
and ``Paste``: the integer interpreter says what it computes, and everything that reads graphs reads it.

Source: Lin et al. 2021, MCUNetV2 (arXiv:2110.15352), section 3.1, for patches; exact boxes and rows that are kept are ours (the published
code pads every tile to one size, and crops no residuals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lilliput.errors import ConfigError
from lilliput.mcu.tiles import Interval, input_interval, tile_bounds
from lilliput.quantize.qgraph import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Crop,
    Lookup,
    MaxPool2d,
    Mul,
    Pad,
    Paste,
    QOp,
    QTensor,
    QuantizedGraph,
    UpsampleNearest,
)


@dataclass(frozen=True)
class Patches:
    """Tiles, each computed from the image on its own."""

    split: str
    """Operation whose output is put together from the tiles; what comes after it runs as a whole."""
    grid: tuple[int, int]
    """Tiles down and across."""

    def __str__(self) -> str:
        return f"{self.grid[0]}x{self.grid[1]} patches to '{self.split}'"


@dataclass(frozen=True)
class Rows:
    """Whole rows, each computed when the next layer needs it; every layer keeps the rows that will be read again."""

    split: str
    """Operation whose output is put together row by row."""
    height: int = 1
    """Most rows of a map that are computed at once."""

    def __str__(self) -> str:
        return f"{self.height} row{'s' if self.height > 1 else ''} at a time to '{self.split}'"


Schedule = Patches | Rows


@dataclass(frozen=True)
class Box:
    """Rows and columns of a map."""

    rows: Interval
    columns: Interval

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def within(self, outer: Box) -> Box:
        """The same in coordinates of another box that holds it."""
        top, left = outer.rows[0], outer.columns[0]
        return Box((self.rows[0] - top, self.rows[1] - top), (self.columns[0] - left, self.columns[1] - left))


@dataclass(frozen=True, eq=False)
class Tiling:
    """A network and the graph that computes it tile by tile."""

    whole: QuantizedGraph
    schedule: Schedule
    graph: QuantizedGraph
    roles: Mapping[str, str]
    """For each tensor that belongs to a tile, what it is whichever the tile: the same for the same layer of every tile."""
    part_of: Mapping[str, str]
    """For each tensor that belongs to a tile, the tensor of the whole network that it is a part of."""
    image_boxes: tuple[Box, ...]
    """What each tile reads of the image."""
    output_boxes: tuple[Box, ...]
    """The tile of the map that it makes."""

    @property
    def halo_macs(self) -> int:
        """Multiply-accumulates done again because tiles overlap; below zero where strides leave out more than that."""
        return self.graph.macs - self.whole.macs


def splits(graph: QuantizedGraph) -> tuple[str, ...]:
    """Operations up to which a network may run tile by tile, in running order.

    Such an operation's output is an image; everything before it can be computed on parts of images; and nothing after it reads any of that,
    or the input.
    """
    readers = _readers(graph)
    return tuple(op.name for op in graph.ops if _can_split(graph, op, readers))


def _readers(graph: QuantizedGraph) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for op in graph.ops:
        for name in op.inputs:
            found.setdefault(name, set()).add(op.name)
    return found


def _can_split(graph: QuantizedGraph, op: QOp, readers: Mapping[str, set[str]]) -> bool:
    shape = graph.tensors[op.name].shape
    if len(shape) != 3 or shape[0] * shape[1] == 1:  # nothing to cut
        return False
    stage = _stage(graph, op.name)
    inside = {each.name for each in stage}
    before = (inside | {graph.input}) - {op.name}
    reads_image = any(graph.input in each.inputs for each in stage)
    is_closed = all(readers.get(name, set()) <= inside for name in before) and not before.intersection(graph.outputs)
    return reads_image and is_closed and all(_can_tile(each, graph) for each in stage)


def tile(graph: QuantizedGraph, schedule: Schedule, *, streams_input: bool = False) -> Tiling:
    """The graph that computes the same outputs tile by tile.

    Args:
        graph: the network.
        schedule: where to split it, and into what.
        streams_input: the image is not in memory: every part is copied in when it is needed. Otherwise whole rows of it are read in place.
    Raises:
        ConfigError: the network cannot be split there, or not into so many tiles.
    """
    made_by = {op.name: op for op in graph.ops}
    if schedule.split not in made_by or not _can_split(graph, made_by[schedule.split], _readers(graph)):
        near = ", ".join(splits(graph)[-6:]) or "none: its first operation needs the whole image"
        raise ConfigError(
            f"'{graph.name}' cannot run tile by tile to '{schedule.split}': something after it reads what comes before it, or an operation "
            f"needs the whole map; splits: {near}"
        )
    height, width, _ = graph.tensors[schedule.split].shape
    if isinstance(schedule, Patches):
        down, across = schedule.grid
        if not (1 <= down <= height and 1 <= across <= width):
            raise ConfigError(
                f"grid {down}x{across} on '{schedule.split}', which is {height}x{width}: "
                f"must be 1 to {height} down and 1 to {width} across"
            )
        return _Patching(graph, schedule, streams_input).tiling()
    if not 1 <= schedule.height <= height:
        raise ConfigError(
            f"{schedule.height} rows at a time on '{schedule.split}', which has {height}: must be 1 to {height}"
        )
    return _Streaming(graph, schedule, streams_input).tiling()


@dataclass(frozen=True)
class Outlook:
    """What can be said of a schedule without making its graph."""

    halo_macs: int
    """Multiply-accumulates done again because tiles overlap."""
    least_bytes: int
    """Less than any program of it takes; good enough to leave hopeless schedules out."""


def outlook(graph: QuantizedGraph, schedule: Schedule, *, streams_input: bool) -> Outlook:
    """Halos and a lower bound on memory. Tiles of padding alone are not noticed."""
    stage = _stage(graph, schedule.split)
    image = 0 if streams_input else graph.tensors[graph.input].bytes
    map_bytes = graph.tensors[schedule.split].bytes
    if isinstance(schedule, Rows):
        in_few = (
            graph.tensors[schedule.split].shape[0] <= 2 * schedule.height
        )  # then not all rows are kept at the same time
        return Outlook(0, image + map_bytes + (0 if in_few else _least_window_bytes(graph, stage, streams_input)))
    # Boxes are rows times columns, so the area of all tiles of a layer is the sum of their heights times the sum of their widths.
    sums, largest = [], []
    for axis in (0, 1):
        total: dict[str, int] = {}
        most: dict[str, int] = {}
        # The map is not in memory yet while its very first tile is computed.
        is_line = schedule.grid[1 - axis] == 1
        for number, output in enumerate(tile_bounds(graph.tensors[schedule.split].shape[axis], schedule.grid[axis])):
            needed: dict[str, Interval] = {schedule.split: output}
            for op in reversed(stage):
                for name in op.inputs:
                    read = _read(op, needed[op.name], graph.tensors[name].shape[axis], axis)
                    needed[name] = _union(needed.get(name), read)
            for name, span in needed.items():
                total[name] = total.get(name, 0) + span[1] - span[0]
                if number > 0 or not is_line:
                    most[name] = max(most.get(name, 0), span[1] - span[0])
        sums.append(total)
        largest.append(most)
    halo, tile_bytes = 0, 0
    for op in stage:
        height, width, channels = graph.tensors[op.name].shape
        source = op.inputs[0]
        made, used = largest[0].get(op.name, 0) * largest[1].get(op.name, 0) * channels, 0
        if source != graph.input or streams_input:
            used = largest[0].get(source, 0) * largest[1].get(source, 0) * graph.tensors[source].shape[2]
        is_pixel_by_pixel = not isinstance(op, Conv2d) or op.is_depthwise or op.weight.shape[1:3] == (1, 1)
        tile_bytes = max(tile_bytes, max(made, used) if is_pixel_by_pixel else made + used)
        if op.name in graph.op_macs:
            area = sums[0][op.name] * sums[1][op.name]
            halo += graph.op_macs[op.name] // (height * width) * (area - height * width)
    return Outlook(halo, image + map_bytes + tile_bytes)


def _least_window_bytes(graph: QuantizedGraph, stage: Sequence[QOp], streams_input: bool) -> int:
    """Rows that stay when the tallest window of each map moves on: halfway through, they are all in memory."""
    rows: dict[str, int] = {}
    for op in stage:
        kernel, stride, dilation, _ = _windows(op, 0)
        reach = (kernel - 1) * dilation + 1
        for name in op.inputs:
            if reach > stride and (name != graph.input or streams_input):
                rows[name] = max(rows.get(name, 0), min(reach - stride, graph.tensors[name].shape[0]))
    return sum(count * graph.tensors[name].bytes // graph.tensors[name].shape[0] for name, count in rows.items())


def _stage(graph: QuantizedGraph, split: str) -> list[QOp]:
    """The operations that the split's output is made by, in running order."""
    needed, stage = {split}, []
    for op in reversed(graph.ops):
        if op.name in needed:
            stage.append(op)
            needed.update(op.inputs)
    return stage[::-1]


def _can_tile(op: QOp, graph: QuantizedGraph) -> bool:
    shapes = [graph.tensors[name].shape for name in (*op.inputs, op.name)]
    if not all(len(shape) == 3 for shape in shapes):
        return False
    if isinstance(op, (Add, Mul)):
        return shapes[0][:2] == shapes[1][:2]  # no factor that needs the whole map
    if isinstance(op, Concat):
        return op.axis == 2
    return isinstance(op, (Conv2d, AvgPool2d, MaxPool2d, Lookup, Pad, UpsampleNearest))


# What an operation on a part of its output reads, and how it is padded there


def _windows(op: QOp, axis: int) -> tuple[int, int, int, int]:
    """Kernel, stride, dilation and padding before, along rows (0) or columns (1)."""
    if isinstance(op, Conv2d):
        return op.weight.shape[1 + axis], op.stride[axis], op.dilation[axis], op.padding[axis]
    if isinstance(op, MaxPool2d):
        return op.kernel[axis], op.stride[axis], op.dilation[axis], op.padding[axis]
    if isinstance(op, AvgPool2d):
        return op.kernel[axis], op.stride[axis], 1, op.padding[axis]
    return 1, 1, 1, op.padding[axis] if isinstance(op, Pad) else 0


def _read(op: QOp, output: Interval, side: int, axis: int) -> Interval:
    """The interval of an input of this side that an interval of the output is made of; empty where it is made of padding alone."""
    if isinstance(op, UpsampleNearest):
        factor = op.factor[axis]
        return output[0] // factor, -(-output[1] // factor)
    kernel, stride, dilation, before = _windows(op, axis)
    return input_interval(output, kernel, stride, before, side, dilation)


def _padding(op: QOp, output: Interval, read: Interval, axis: int) -> tuple[int, int]:
    """Padding before and after: how far the windows reach beyond what is read, which is only where the map ends."""
    kernel, stride, dilation, before = _windows(op, axis)
    first = output[0] * stride - before
    last = (output[1] - 1) * stride - before + (kernel - 1) * dilation
    return read[0] - first, max(0, last + 1 - read[1])  # the last columns of a map may be read by no window


def _ends(span: Interval) -> Interval:
    """Its first index and its last."""
    return span[0], span[1] - 1


def _union(first: Interval | None, second: Interval) -> Interval:
    return second if first is None else (min(first[0], second[0]), max(first[1], second[1]))


class _Tiler:
    """Makes the operations and tensors of tiles."""

    def __init__(self, graph: QuantizedGraph, schedule: Schedule, streams_input: bool) -> None:
        self.whole, self.schedule, self.streams_input = graph, schedule, streams_input
        self.split = schedule.split
        self.stage = _stage(graph, schedule.split)
        inside = {op.name for op in self.stage}
        self.rest = [op for op in graph.ops if op.name not in inside]
        self.tensors = {
            name: tensor for name, tensor in graph.tensors.items() if name not in inside or name == self.split
        }
        self.ops: list[QOp] = []
        self.roles: dict[str, str] = {}
        self.part_of: dict[str, str] = {}

    def side(self, name: str, axis: int) -> int:
        return self.whole.tensors[name].shape[axis]

    def all_of(self, name: str) -> Box:
        return Box((0, self.side(name, 0)), (0, self.side(name, 1)))

    def emit(self, op: QOp, size: tuple[int, int], like: str, role: str) -> str:
        """One more operation, whose output is a part of ``like``."""
        tensor = self.whole.tensors[like]
        self.ops.append(op)
        self.tensors[op.name] = QTensor(
            op.name, (*size, tensor.shape[2]), tensor.scale, tensor.zero_point, tensor.source
        )
        self.roles[op.name] = role
        self.part_of[op.name] = like
        return op.name

    def compute(self, op: QOp, name: str, inputs: Sequence[str], reads: Sequence[Box], output: Box) -> str:
        """The operation on a tile: padded only where the map ends."""
        if isinstance(op, UpsampleNearest):
            return self._upsample(op, name, inputs[0], reads[0], output)
        if isinstance(op, (Conv2d, AvgPool2d, MaxPool2d, Pad)):
            (top, bottom), (left, right) = (
                _padding(op, span, part, axis)
                for axis, (span, part) in enumerate(
                    zip((output.rows, output.columns), (reads[0].rows, reads[0].columns), strict=True)
                )
            )
            op = replace(op, padding=(top, left, bottom, right))
        return self.emit(replace(op, name=name, inputs=tuple(inputs)), output.size, op.name, op.name)

    def _upsample(self, op: UpsampleNearest, name: str, source: str, read: Box, output: Box) -> str:
        factor = op.factor
        made = Box(
            (read.rows[0] * factor[0], read.rows[1] * factor[0]),
            (read.columns[0] * factor[1], read.columns[1] * factor[1]),
        )
        if made == output:
            return self.emit(replace(op, name=name, inputs=(source,)), output.size, op.name, op.name)
        whole = self.emit(replace(op, name=f"{name}+", inputs=(source,)), made.size, op.name, f"{op.name}+")
        return self.crop(name, whole, output.within(made), op.name, op.name)

    def crop(self, name: str, source: str, box: Box, like: str, role: str) -> str:
        op = Crop(
            name=name, inputs=(source,), source=self.whole.tensors[like].source, top=box.rows[0], left=box.columns[0]
        )
        return self.emit(op, box.size, like, role)

    def paste(
        self, name: str, piece: str, base: str | None, at: tuple[int, int], size: tuple[int, int], like: str, role: str
    ) -> str:
        inputs = (piece,) if base is None else (piece, base)
        op = Paste(name=name, inputs=inputs, source=self.whole.tensors[like].source, top=at[0], left=at[1])
        return self.emit(op, size, like, role)

    def made(self, image_boxes: Sequence[Box], output_boxes: Sequence[Box]) -> Tiling:
        graph = QuantizedGraph(
            self.whole.name, self.whole.input, self.whole.outputs, self.tensors, (*self.ops, *self.rest)
        )
        return Tiling(
            self.whole, self.schedule, graph, self.roles, self.part_of, tuple(image_boxes), tuple(output_boxes)
        )


class _Patching(_Tiler):
    """Every tile from the image on its own."""

    def tiling(self) -> Tiling:
        assert isinstance(self.schedule, Patches)
        height, width, _ = self.whole.tensors[self.split].shape
        down, across = (
            tile_bounds(side, count) for side, count in zip((height, width), self.schedule.grid, strict=True)
        )
        tiles = [Box(rows, columns) for rows in down for columns in across]
        image_boxes = []
        base: str | None = None
        for number, output in enumerate(tiles):
            boxes, reads = self._boxes(output)
            image_boxes.append(boxes[self.whole.input])
            piece = self._tile(number, boxes, reads)
            is_last = number == len(tiles) - 1
            name = self.split if is_last else f"{self.split}#{number}"
            at = (output.rows[0], output.columns[0])
            base = self.paste(name, piece, base, at, (height, width), self.split, f"{self.split}#")
        self.roles.pop(self.split)
        return self.made(image_boxes, tiles)

    def _boxes(self, output: Box) -> tuple[dict[str, Box], dict[tuple[str, int], Box]]:
        """The part of each tensor that a tile needs, and what each operation reads of its inputs."""
        needed: dict[str, Box] = {self.split: output}
        reads: dict[tuple[str, int], Box] = {}
        for op in reversed(self.stage):
            box = needed[op.name]
            for index, name in enumerate(op.inputs):
                rows, columns = (
                    _read(op, span, self.side(name, axis), axis) for axis, span in enumerate((box.rows, box.columns))
                )
                if rows[0] >= rows[1] or columns[0] >= columns[1]:
                    raise ConfigError(
                        f"{self.schedule}: a tile of '{op.name}' would be padding alone; take fewer tiles"
                    )
                reads[op.name, index] = read = Box(rows, columns)
                known = needed.get(name)
                needed[name] = (
                    read if known is None else Box(_union(known.rows, read.rows), _union(known.columns, read.columns))
                )
        return needed, reads

    def _tile(self, number: int, boxes: Mapping[str, Box], reads: Mapping[tuple[str, int], Box]) -> str:
        """Operations of one tile. A part of a tensor is taken as soon as nobody of this tile needs the rest of it any more."""
        source = self.whole.input
        self.crop(f"{source}@{number}", source, boxes[source], source, f"{source}@")
        cropped: dict[tuple[str, Box], str] = {}
        readers: dict[str, list[int]] = {}
        for position, op in enumerate(self.stage):
            for index, name in enumerate(op.inputs):
                if reads[op.name, index] == boxes[name]:
                    readers.setdefault(name, []).append(position)
        due: dict[int, list[tuple[str, Box]]] = {}
        for position, op in enumerate(self.stage):
            for index, name in enumerate(op.inputs):
                read = reads[op.name, index]
                if read != boxes[name]:
                    before = [each for each in readers.get(name, []) if each < position]
                    due.setdefault(max(before) + 1 if before else position, []).append((name, read))
        for position, op in enumerate(self.stage):
            for name, read in due.get(position, []):
                if (name, read) not in cropped:
                    part = f"{name}@{number}-{len(cropped)}"
                    role = f"{name}@-{len(cropped)}"
                    cropped[name, read] = self.crop(part, f"{name}@{number}", read.within(boxes[name]), name, role)
            inputs = [
                cropped.get((name, reads[op.name, index]), f"{name}@{number}") for index, name in enumerate(op.inputs)
            ]
            parts = [reads[op.name, index] for index in range(len(op.inputs))]
            self.compute(op, f"{op.name}@{number}", inputs, parts, boxes[op.name])
        return f"{self.split}@{number}"


@dataclass(frozen=True)
class _Event:
    """Some rows of a tensor are computed, or read from the image."""

    name: str
    op: QOp | None
    rows: Interval
    parts: tuple[Interval, ...]
    """The rows that it reads of each input."""


@dataclass(frozen=True)
class _Held:
    """Rows of a tensor in memory: the tensor that holds them, and which rows these are."""

    name: str
    rows: Interval


class _Streaming(_Tiler):
    """A few rows at a time, each computed when the first reader needs it, every tensor keeping the rows that will still be read."""

    def tiling(self) -> Tiling:
        assert isinstance(self.schedule, Rows)
        self.made_by = {op.name: op for op in self.stage}
        events = self._events()
        self.first_needed = self._first_needed(events)
        self.window_rows = self._window_rows(events)
        self.held: dict[str, _Held] = {}
        height, width, _ = self.whole.tensors[self.split].shape
        image = self.whole.input
        if not self.streams_input:
            self.held[image] = _Held(image, (0, self.side(image, 0)))
        base: str | None = None
        image_boxes, output_boxes = [], []
        rows_read = (0, 0)
        for number, event in enumerate(events):
            for name, part in zip(event.op.inputs if event.op else (), event.parts, strict=True):
                rows_read = _union(rows_read if rows_read[1] else None, part) if name == image else rows_read
            if event.name != self.split:
                self._hold(number, event)
                continue
            piece = self._compute(number, event)
            name = self.split if event.rows[1] == height else f"{self.split}#{number}"
            base = self.paste(name, piece, base, (event.rows[0], 0), (height, width), self.split, f"{self.split}#")
            image_boxes.append(Box(rows_read, (0, self.side(image, 1))))
            output_boxes.append(Box(event.rows, (0, width)))
            rows_read = (0, 0)
        self.roles.pop(self.split)
        return self.made(image_boxes, output_boxes)

    def _events(self) -> list[_Event]:
        """Rows in the order in which they are computed: each as late as its first reader allows."""
        assert isinstance(self.schedule, Rows)
        step = self.schedule.height
        done = dict.fromkeys((self.whole.input, *self.made_by), 0)
        skipped = {name: self._rows_never_read(name) for name in done}
        events: list[_Event] = []

        def demand(name: str, stop: int) -> None:
            op = self.made_by.get(name)
            while done[name] < stop:
                first = done[name]
                while first in skipped[name]:
                    first += 1
                rows = (first, min(first + step, stop))
                done[name] = rows[1]
                if rows[0] >= rows[1]:
                    continue
                parts = []
                for each in op.inputs if op is not None else ():
                    assert op is not None
                    part = _read(op, rows, self.side(each, 0), 0)
                    if part[0] >= part[1]:
                        raise ConfigError(
                            f"{self.schedule}: rows of '{name}' would be padding alone; take more at a time"
                        )
                    if each != self.whole.input or self.streams_input:
                        demand(each, part[1])
                    parts.append(part)
                events.append(_Event(name, op, rows, tuple(parts)))

        demand(self.split, self.side(self.split, 0))
        return events

    def _rows_never_read(self, name: str) -> frozenset[int]:
        """Rows that strides leave out."""
        if name == self.split:
            return frozenset()
        used: set[int] = set()
        for op in self.stage:
            if name in op.inputs:
                kernel, stride, dilation, before = _windows(op, 0)
                if isinstance(op, UpsampleNearest):
                    return frozenset()
                side, taps = self.side(name, 0), range(self.side(op.name, 0))
                used.update(y * stride - before + k * dilation for y in taps for k in range(kernel))
                # What is read begins and ends where the map does, even where no tap of a window that reaches beyond falls on that row.
                used.update(row for y in taps for row in _ends(_read(op, (y, y + 1), side, 0)))
        return frozenset(range(self.side(name, 0))) - used

    def _first_needed(self, events: Sequence[_Event]) -> list[int]:
        """For each event the first row of its tensor that it or a later one reads or makes."""
        first: dict[str, int] = {}
        found = [0] * len(events)
        for number in reversed(range(len(events))):
            event = events[number]
            found[number] = min(first.get(event.name, event.rows[0]), event.rows[0])
            for name, part in zip(event.op.inputs if event.op else (), event.parts, strict=True):
                first[name] = min(first.get(name, part[0]), part[0])
        return found

    def _window_rows(self, events: Sequence[_Event]) -> dict[str, int]:
        """Rows of each tensor that are in memory at once; 0 where no row stays while the next one is made."""
        largest: dict[str, int] = {}
        keeps: set[str] = set()
        for number, event in enumerate(events):
            first = self.first_needed[number]
            largest[event.name] = max(largest.get(event.name, 0), event.rows[1] - first)
            if first < event.rows[0]:
                keeps.add(event.name)
        return {name: rows if name in keeps else 0 for name, rows in largest.items()}

    def _hold(self, number: int, event: _Event) -> None:
        """Compute the rows and put them after those that stay."""
        name, rows = event.name, event.rows
        if not self.window_rows[name]:
            self.held[name] = _Held(self._compute(number, event), rows)
            return
        size = (self.window_rows[name], self.side(name, 1))
        before, first = self.held.get(name), self.first_needed[number]
        window: str | None = None
        if before is not None and first < before.rows[1]:
            window = before.name
            if first > before.rows[0]:
                outer = Box(before.rows, (0, size[1]))
                kept = Box((first, before.rows[1]), (0, size[1])).within(outer)
                tail = self.crop(f"{name}@{number}<", before.name, kept, name, f"{name}@<")
                window = self.paste(f"{name}@{number}^", tail, None, (0, 0), size, name, f"{name}@^")
            else:
                first = before.rows[0]
        piece = self._compute(number, event)
        pasted = self.paste(f"{name}@{number}=", piece, window, (rows[0] - first, 0), size, name, f"{name}@^")
        self.held[name] = _Held(pasted, (first, rows[1]))

    def _compute(self, number: int, event: _Event) -> str:
        """The rows by themselves."""
        name, op = event.name, event.op
        if op is None:
            return self.crop(f"{name}@{number}", name, Box(event.rows, (0, self.side(name, 1))), name, f"{name}@")
        inputs, boxes = [], []
        for index, (source, part) in enumerate(zip(op.inputs, event.parts, strict=True)):
            holder, columns = self.held[source], (0, self.side(source, 1))
            box = Box(part, columns)
            inner = box.within(Box(holder.rows, columns))
            if inner.rows == (0, self.tensors[holder.name].shape[0]):
                inputs.append(holder.name)
            else:
                inputs.append(self.crop(f"{name}@{number}:{index}", holder.name, inner, source, f"{name}@:{index}"))
            boxes.append(box)
        return self.compute(op, f"{name}@{number}", inputs, boxes, Box(event.rows, (0, self.side(name, 1))))
