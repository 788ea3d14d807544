"""A TensorFlow Lite file as plain tables: tensors, operators, buffers, with every index checked.

What the operators mean is not known here (see ``load``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from lilliput.errors import DataError, UnsupportedOpError
from lilliput.quantize.tflite.flatbuffer import File, Table, root
from lilliput.quantize.tflite.schema import IDENTIFIER, VERSION, TensorType, builtin_name, type_name

MOST_BYTES = 2**31 - 1
"""The format's own limit."""
MOST_AXES = 8
MOST_ELEMENTS = 2**28
"""Of one activation: no microcontroller holds more, and a damaged shape must not become an allocation."""

_DTYPES = {TensorType.INT8: "<i1", TensorType.INT32: "<i4", TensorType.INT64: "<i8"}


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor of the file: constant where its buffer has bytes."""

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    """The shape with -1 for sizes that may change; empty where all are fixed."""
    type: int
    buffer: int
    scale: Float64[np.ndarray, " scales"]
    zero_point: Int64[np.ndarray, " zero_points"]
    axis: int
    """The axis that the scales run along, where there are several."""
    is_sparse: bool
    is_variable: bool

    def __str__(self) -> str:
        return f"tensor {self.index} '{printable(self.name)}' ({type_name(self.type)}{list(self.shape)})"


@dataclass(frozen=True, eq=False)
class FileOperator:
    """An operator of the file."""

    index: int
    code: int
    name: str
    inputs: tuple[int, ...]
    """Tensor indices; -1 where an optional input is left out."""
    outputs: tuple[int, ...]
    options: Table | None
    options_type: int

    def __str__(self) -> str:
        return f"operator {self.index} ({self.name})"


class FileModel:
    """A whole file, its structure checked.

    Raises:
        DataError: not such a file, cut short, or with an index that leads nowhere.
        UnsupportedOpError: several subgraphs (control flow), or weights kept outside the file.
    """

    def __init__(self, data: bytes, what: str) -> None:
        model = root(data, IDENTIFIER, what)
        self.file: File = model.file
        self.what = what
        version = model.integer(0, "I")
        if version != VERSION:
            raise DataError(
                f"{what}: is version {version} of the TensorFlow Lite format; must be {VERSION}; convert it again"
            )
        self._buffers = model.tables(4)
        codes = [_operator_code(table) for table in model.tables(1)]
        subgraphs = model.tables(2)
        if len(subgraphs) != 1:
            raise UnsupportedOpError(
                f"{what}: has {len(subgraphs)} subgraphs; must have one, without control flow (IF, WHILE); "
                "unroll loops before converting"
            )
        graph = subgraphs[0]
        self.tensors = tuple(self._tensor(index, table) for index, table in enumerate(graph.tables(0)))
        self.inputs = self._indices(graph, 1, "the graph's inputs")
        self.outputs = self._indices(graph, 2, "the graph's outputs")
        self.operators = tuple(self._operator(index, table, codes) for index, table in enumerate(graph.tables(3)))

    def is_constant(self, tensor: FileTensor) -> bool:
        """Whether the file holds its values."""
        return self._buffers[tensor.buffer].has(0)

    def constant(self, tensor: FileTensor, reader: FileOperator) -> Shaped[np.ndarray, "..."]:
        """The values of a constant tensor: int8, int32 or int64, in its shape; a view of the file.

        Raises:
            DataError: no values, or not as many as the shape asks for.
            UnsupportedOpError: another kind of number, sparse or outside the file.
        """
        where = f"{self.what}: {reader} reads {tensor}"
        dtype = _DTYPES.get(TensorType(tensor.type)) if tensor.type in TensorType._value2member_map_ else None
        if dtype is None:
            raise UnsupportedOpError(
                f"{where}; constants must be int8, int32 or int64; convert with full-integer quantization"
            )
        if tensor.is_sparse:
            raise UnsupportedOpError(f"{where}, which is sparse; must be dense: convert without sparsity")
        buffer = self._buffers[tensor.buffer]
        if buffer.integer(1, "Q") > 1:
            raise UnsupportedOpError(
                f"{where}, which lies behind the flatbuffer; files above 2 GB are not for microcontrollers"
            )
        values = buffer.numbers(0, "<u1")
        needed = prod(tensor.shape) * np.dtype(dtype).itemsize
        if min(tensor.shape, default=1) < 0 or len(values) != needed or needed == 0:
            raise DataError(
                f"{where}, which has {len(values):,} bytes; its shape takes {needed:,}; convert the model again"
            )
        return values.view(dtype).reshape(tensor.shape)

    def _tensor(self, index: int, table: Table) -> FileTensor:
        shape, signature = (tuple(table.numbers(field, "<i4").tolist()) for field in (0, 7))
        if max(len(shape), len(signature)) > MOST_AXES:
            raise DataError(
                f"{self.what}: tensor {index} has {len(shape)} axes; at most {MOST_AXES}; convert the model again"
            )
        buffer = table.integer(2, "I")
        if buffer >= len(self._buffers):
            raise DataError(
                f"{self.what}: tensor {index} reads buffer {buffer} of {len(self._buffers)}; convert the model again"
            )
        parameters = table.table(4)
        no_numbers = np.zeros(0)
        with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused where the scale is used
            scale = (no_numbers if parameters is None else parameters.numbers(2, "<f4")).astype(np.float64)
        return FileTensor(
            index=index,
            name=table.text(3),
            shape=shape,
            signature=signature,
            type=table.integer(1, "b"),
            buffer=buffer,
            scale=scale,
            zero_point=(no_numbers if parameters is None else parameters.numbers(3, "<i8")).astype(np.int64),
            axis=0 if parameters is None else parameters.integer(6, "i"),
            is_sparse=table.has(6),
            is_variable=table.flag(5),
        )

    def _operator(self, index: int, table: Table, codes: list[tuple[int, str]]) -> FileOperator:
        place = table.integer(0, "I")
        if place >= len(codes):
            raise DataError(
                f"{self.what}: operator {index} is of kind {place} of {len(codes)}; convert the model again"
            )
        code, name = codes[place]
        where = f"operator {index} ({name})"
        inputs = self._indices(table, 1, f"the inputs of {where}", optional=True)
        outputs = self._indices(table, 2, f"the outputs of {where}")
        return FileOperator(index, code, name, inputs, outputs, table.table(4), table.integer(3, "B"))

    def _indices(self, table: Table, field: int, what: str, optional: bool = False) -> tuple[int, ...]:
        indices = tuple(table.numbers(field, "<i4").tolist())
        for index in indices:
            if not (-1 if optional else 0) <= index < len(self.tensors):
                raise DataError(
                    f"{self.what}: {what} name tensor {index} of {len(self.tensors)}; convert the model again"
                )
        return indices


def read_model(path: str | Path) -> FileModel:
    """The structure of a file on disk.

    Raises:
        DataError: no file there, too large, or broken.
        UnsupportedOpError: several subgraphs.
    """
    path = Path(path)
    try:
        length = path.stat().st_size
        if length > MOST_BYTES:
            raise DataError(f"{path}: has {length:,} bytes; a TensorFlow Lite file has at most {MOST_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); give the path of a .tflite file") from None
    return FileModel(data, str(path))


def printable(text: str) -> str:
    """A name from the file that is safe in messages, comments and generated code: one line of plain characters."""
    return "".join(each if (each.isalnum() and each.isascii()) or each in "_.:-/" else "_" for each in text)[:80]


def _operator_code(table: Table) -> tuple[int, str]:
    # Files from before 2020 have the number in an int8 field; later ones fill both, the old one with at most 127.
    code = max(table.integer(0, "b"), table.integer(3, "i"))
    name = builtin_name(code)
    return code, f"CUSTOM {printable(table.text(1))}" if name == "CUSTOM" else name
