"""Products with packed weights, without the dequantized matrix.

For a few inputs a product reads its weights and does little else: reading 2 to 4 bits a weight instead of 32 is the gain, if unpacking
costs less than reading did. ``matmul.c`` has the kernels; activations stay float32, so results are those of the dequantized weight up to
the order of sums. For many inputs rows are decoded to tiles that stay in cache, and torch multiplies.

In C and not in Numba: looking a level up is one permutation of a vector register, which Numba has no word for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from lilliput.errors import ConfigError
from lilliput.quantize.lowbit.native import Native, native, native_or_reason
from lilliput.quantize.lowbit.packing import bits_for, radix
from lilliput.quantize.lowbit.stored import DenseWeight, RadixWeight, StoredWeight

Kernel = Literal["auto", "c", "torch"]
"""'c': the compiled kernels wherever :func:`can_compute` says so; 'torch': dequantize, then multiply; 'auto': 'c' where it compiles."""

MANY_INPUTS = 64
"""From so many inputs on, decoding to a tile costs less than looking levels up again for every few inputs (measured: see the benchmark)."""

_MANY_FOR_PLAIN = 8  # formats that no vector reads: torch multiplies better than the plain loop

_TILE_WEIGHTS = 2**17  # 512 KB of float32: half of a usual second-level cache
_WEIGHTS_PER_THREAD = 2**20  # some 0.1 ms of work; starting a thread takes a fifth of that
_DTYPES = {
    "codes": (torch.uint8,),
    "step": (torch.float16, torch.float32),
    "start": (torch.float16, torch.float32),
    "zero": (torch.uint8,),
    "gain": (torch.float32,),
}


def linear(x: Float[Tensor, "*batch in"], packed: StoredWeight, bias: Tensor | None) -> Float[Tensor, "*batch out"]:
    """``x @ weight.T + bias`` by the compiled kernels.

    Args:
        x: float32 on the CPU; any strides.
        packed: a weight (out, in) in any format.
        bias: float32 (out,) or None.
    Raises:
        ToolchainError: the kernels can't be compiled.
    """
    kernels = native()
    description = _described(packed, kernels)
    columns, lanes = packed.layout.columns, description.lanes
    inputs = x.detach().reshape(-1, columns).contiguous()
    many = len(inputs) >= (MANY_INPUTS if lanes else _MANY_FOR_PLAIN)
    if lanes:
        sums = description.needs_sums and not many
        ordered = torch.empty(len(inputs), -(-columns // (8 * lanes)) * (8 + sums) * lanes)
        kernels.order(inputs.data_ptr(), len(inputs), columns, lanes, sums, ordered.data_ptr())
        inputs = ordered
    bias = None if bias is None else bias.detach().contiguous()
    result = (_by_tiles if many else _directly)(kernels, description, inputs, bias)
    return result.reshape(*x.shape[:-1], packed.layout.rows)


def can_compute(x: Tensor, packed: StoredWeight, bias: Tensor | None) -> bool:
    """Whether the compiled kernels can stand in for dequantizing: plain float32 on the CPU, no gradient asked for, nothing traced."""
    if type(x) is not Tensor or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    buffers = packed._buffers  # attributes of a module cost as much as the rest of this function
    types = {name: buffer.dtype for name, buffer in buffers.items() if buffer is not None}
    return (
        all(dtype in _DTYPES[name] for name, dtype in types.items())
        and packed.codes.device.type == "cpu"
        and (bias is None or bias.dtype == torch.float32)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def is_compiled(kernel: Kernel) -> bool:
    """Whether a layer with that choice has compiled kernels; compiles them if need be."""
    return kernel != "torch" and isinstance(native_or_reason(), Native)


def check_kernel(kernel: str) -> None:
    """Raises ConfigError for an unknown choice, ToolchainError for 'c' where it can't be compiled."""
    if kernel not in get_args(Kernel):
        raise ConfigError(f"kernel={kernel!r}: must be 'auto', 'c' or 'torch'; try 'auto'")
    if kernel == "c":
        native()


def kernel_name(kernel: Kernel) -> str:
    """What computes, for people: ``c (cc, AVX-512)``, or ``torch`` and why."""
    if kernel == "torch":
        return "torch"
    found = native_or_reason()
    return found.name if isinstance(found, Native) else f"torch ({found})"


class _Weight(ctypes.Structure):
    """``Weight`` of ``matmul.c``."""

    _fields_ = (
        ("codes", ctypes.c_size_t),
        ("step", ctypes.c_size_t),
        ("start", ctypes.c_size_t),
        ("zero", ctypes.c_size_t),
        ("gain", ctypes.c_size_t),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("shared", ctypes.c_int64),
        ("ladders", ctypes.c_int64),
        ("first_ladder", ctypes.c_int64),
        ("used_ladders", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("symbol_bits", ctypes.c_int64),
        ("digits", ctypes.c_int64),
        ("step_half", ctypes.c_int64),
        ("start_half", ctypes.c_int64),
    )


@dataclass(frozen=True)
class _Description:
    """A packed weight as C sees it."""

    buffers: tuple[tuple[int, torch.dtype], ...]
    """Addresses and types that this is true of."""
    weights: tuple[_Weight, ...]
    """One for each tensor whose sum the weight is."""
    addresses: tuple[int, ...]
    """Of ``weights``."""
    lanes: int
    """Of the order that activations must have; 0: their own."""
    needs_sums: bool


# Kept because describing costs as much as a small product.
_descriptions: WeakKeyDictionary[StoredWeight, _Description] = WeakKeyDictionary()


def _described(packed: StoredWeight, kernels: Native) -> _Description:
    buffers = tuple((b.data_ptr(), b.dtype) for b in packed._buffers.values() if b is not None)
    known = _descriptions.get(packed)
    if known is None or known.buffers != buffers:
        known = _descriptions[packed] = _describe(packed, kernels, buffers)
    return known


def _describe(packed: StoredWeight, kernels: Native, buffers: tuple[tuple[int, torch.dtype], ...]) -> _Description:
    layout, codes, position = packed.layout, packed.codes, packed.ladders.position
    is_dense = isinstance(packed, DenseWeight)
    digits, symbol_bits = 1, layout.bits if is_dense else bits_for(layout.level_count)
    if isinstance(packed, RadixWeight):
        digits, symbol_bits = radix(layout.level_count)
    shared: dict[str, Any] = {
        "step": _address(packed.step),
        "start": _address(packed.start),
        "zero": _address(packed.zero),
        "gain": _address(packed.gain),
        "rows": layout.rows,
        "columns": layout.columns,
        "row_bytes": codes.shape[-1],
        "group_size": layout.group_size,
        "groups": position.shape[1],
        "shared": len(position) == 1,
        "ladders": layout.k,
        "used_ladders": 1 if is_dense else layout.k,
        "bits": layout.bits,
        "symbol_bits": symbol_bits,
        "digits": digits,
        "step_half": _is_half(packed.step),
        "start_half": _is_half(packed.start),
    }
    if is_dense:
        weights = tuple(_Weight(codes=_address(codes[i]), first_ladder=i, **shared) for i in range(layout.k))
    else:
        weights = (_Weight(codes=_address(codes), first_ladder=0, **shared),)
    addresses = tuple(ctypes.addressof(weight) for weight in weights)
    return _Description(
        buffers, weights, addresses, kernels.lanes(addresses[0]), bool(kernels.needs_sums(addresses[0]))
    )


def _is_half(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.float16


def _address(tensor: Tensor | None) -> int:
    assert tensor is None or tensor.is_contiguous(), "buffers are contiguous: pack and from_tensors make them so"
    return 0 if tensor is None else tensor.data_ptr()


def _directly(kernels: Native, description: _Description, inputs: Tensor, bias: Tensor | None) -> Tensor:
    rows, batch = description.weights[0].rows, len(inputs)
    threads = min(torch.get_num_threads(), inputs.numel() * rows // _WEIGHTS_PER_THREAD + 1)
    total: Tensor | None = None
    for weight in description.addresses:
        result = torch.empty(batch, rows)
        added = bias.data_ptr() if bias is not None and total is None else None
        if kernels.product(weight, description.lanes, inputs.data_ptr(), batch, added, result.data_ptr(), threads):
            raise MemoryError(f"no memory for a row of {description.weights[0].columns:,} weights")
        total = result if total is None else total.add_(result)
    assert total is not None, "a weight has at least one tensor"
    return total


def _by_tiles(kernels: Native, description: _Description, inputs: Tensor, bias: Tensor | None) -> Tensor:
    rows, width = description.weights[0].rows, inputs.shape[1]
    height = max(16, _TILE_WEIGHTS // max(1, width))
    tile = torch.empty(min(height, rows), width)
    result = torch.empty(len(inputs), rows)
    for first in range(0, rows, height):
        last = min(first + height, rows)
        for index, weight in enumerate(description.addresses):
            if kernels.decode(weight, description.lanes, first, last, tile.data_ptr(), index > 0):
                raise MemoryError("no memory for a table of levels")
        result[:, first:last] = inputs @ tile[: last - first].T
    return result if bias is None else result.add_(bias)
