"""A call of a C kernel as data, and the few shapes of C that its parameters are written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lilliput.errors import UnsupportedOpError
from lilliput.quantize.qgraph import QOp, QTensor

Tensors = Mapping[str, QTensor]


@dataclass(frozen=True, eq=False)
class ConstantTable:
    """A flat array of integers that goes to flash."""

    name: str
    """Its whole name in C: the call's symbol, an underscore, what it holds."""
    c_type: str
    values: np.ndarray

    @property
    def bytes(self) -> int:
        """Size in flash."""
        return self.values.nbytes


@dataclass(frozen=True, eq=False)
class KernelCall:
    """One call of a kernel, as C generation writes it."""

    function: str
    params_type: str
    params: str
    """Initializer of the constant parameter struct; it names the constants."""
    constants: tuple[ConstantTable, ...]
    scratch_bytes: int
    macs: int
    """What an instrumented kernel counts: multiply-accumulates with a weight of the network, padding included. Left out are the zeros
    that fill up a machine word and the second pixel of a pair where an image ends in a single one."""


def bare_call(function: str, params_type: str, params: str) -> KernelCall:
    """A call that needs no constants, no scratch, and multiplies nothing by a weight."""
    return KernelCall(function, params_type, params, (), 0, 0)


def window_fields(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], top: int, left: int
) -> dict[str, int]:
    """The eight fields of every sliding window."""
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left")
    return dict(zip(names, (*kernel, *stride, *dilation, top, left), strict=True))


def struct_c(fields: Mapping[str, object]) -> str:
    """A struct's initializer."""
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def array_c(values: list[int]) -> str:
    """An array's initializer."""
    return "{" + ", ".join(map(str, values)) + "}"


def check_sizes(op: QOp, *sizes: int) -> None:
    """The kernels hold sizes in 16 bits and count with signs."""
    if max(sizes) >= 2**15:
        raise UnsupportedOpError(
            f"'{op.name}' ({type(op).__name__}, module '{op.source}') has a size of {max(sizes):,}; "
            "the kernels take up to 32,767; use smaller images"
        )
