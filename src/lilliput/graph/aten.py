"""ATen operators and what each becomes: one rule a row, in the table at the end.

A rule gets the builder and the operator's arguments by name (defaults filled in, and the recorded ``output_shapes``), emits nodes, and
returns the name of its output, or several names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from lilliput.errors import GraphError
from lilliput.graph.graph import Attribute, Op

if TYPE_CHECKING:
    from lilliput.graph.trace import Builder

Arguments = dict[str, Any]
Rule = Callable[["Builder", Arguments], "str | tuple[str, ...]"]


def _pair(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _identity(b: Builder, a: Arguments) -> str:
    return b.name_of(a["self"] if "self" in a else a["input"])


def _unary(op: Op) -> Rule:
    return lambda b, a: b.emit(op, [b.name_of(a["self"])])


def _binary(op: Op) -> Rule:
    def rule(b: Builder, a: Arguments) -> str:
        other = b.name_of(a["other"], beside=a["self"])
        if a.get("alpha", 1) != 1:
            other = b.emit(Op.MUL, [other, b.name_of(a["alpha"], beside=a["self"])])
        return b.emit(op, [b.name_of(a["self"], beside=a["other"]), other])

    return rule


def _conv(b: Builder, a: Arguments) -> str:
    weight = b.name_of(a["weight"])
    rank = len(b.shape(weight)) - 2
    if rank not in (1, 2) or weight not in b.weights:
        raise b.unsupported("only 1-d and 2-d convolutions with stored weights")
    if a.get("transposed"):
        raise b.unsupported("transposed")
    x = b.name_of(a["input"])
    stride, dilation = _pair(a["stride"], rank), _pair(a["dilation"], rank)
    padding = a["padding"]
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, b.shape(weight)[2:], strict=True)]
        if any(total % 2 for total in totals):  # torch pads the odd one after
            edges = [edge for total in reversed(totals) for edge in (total // 2, total - total // 2)]
            x, padding = b.emit(Op.PAD, [x], padding=tuple(edges), value=0.0), 0
        else:
            padding = [total // 2 for total in totals]
    elif padding == "valid":
        padding = 0
    inputs = [x, weight] + ([b.name_of(a["bias"])] if a["bias"] is not None else [])
    return b.emit(Op.CONV, inputs, stride=stride, padding=_pair(padding, rank), dilation=dilation, groups=a["groups"])


def _linear(b: Builder, a: Arguments) -> str:
    inputs = [b.name_of(a["input"]), b.name_of(a["weight"])]
    if inputs[1] not in b.weights:
        raise b.unsupported("weight is computed, not stored")
    return b.emit(Op.LINEAR, inputs + ([b.name_of(a["bias"])] if a["bias"] is not None else []))


def _addmm(b: Builder, a: Arguments) -> str:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise b.unsupported("beta or alpha is not 1")
    return b.emit(Op.ADD, [b.emit(Op.MATMUL, [b.name_of(a["mat1"]), b.name_of(a["mat2"])]), b.name_of(a["self"])])


def _batch_norm(b: Builder, a: Arguments) -> str:
    if a.get("training") or a.get("running_mean") is None:
        raise GraphError(f"batch norm at module '{b.source}' uses batch statistics; call model.eval() before tracing")
    affine = [b.name_of(a[key]) for key in ("weight", "bias") if a[key] is not None]
    stats = [b.name_of(a["running_mean"]), b.name_of(a["running_var"])]
    return b.emit(Op.BATCH_NORM, [b.name_of(a["input"]), *stats, *affine], eps=float(a["eps"]))


def _layer_norm(b: Builder, a: Arguments) -> str:
    affine = [b.name_of(a[key]) for key in ("weight", "bias") if a[key] is not None]
    return b.emit(
        Op.LAYER_NORM,
        [b.name_of(a["input"]), *affine],
        normalized_shape=tuple(a["normalized_shape"]),
        eps=float(a["eps"]),
    )


def _embedding(b: Builder, a: Arguments) -> str:
    return b.emit(Op.EMBEDDING, [b.name_of(a["indices"]), b.name_of(a["weight"])])


def _gelu(b: Builder, a: Arguments) -> str:
    return b.emit(Op.GELU, [b.name_of(a["self"])], approximate=a["approximate"])


def _clamp(b: Builder, a: Arguments) -> str:
    low, high = a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
    x = b.name_of(a["self"])
    if (low, high) in ((0, 6), (0, None)):
        return b.emit(Op.RELU6 if high == 6 else Op.RELU, [x])
    if low is None or high is None or low > high:
        raise b.unsupported(f"clamp to [{low}, {high}]; [0, inf) and two finite bounds are known")
    return b.emit(Op.HARD_TANH, [x], lower=float(low), upper=float(high))


def _leaky_relu(b: Builder, a: Arguments) -> str:
    return b.emit(Op.LEAKY_RELU, [b.name_of(a["self"])], slope=float(a["negative_slope"]))


def _prelu(b: Builder, a: Arguments) -> str:
    weight = b.name_of(a["weight"])
    if weight not in b.weights:
        raise b.unsupported("slope is computed, not stored")
    return b.emit(Op.PRELU, [b.name_of(a["self"]), weight])


def _softplus(b: Builder, a: Arguments) -> str:
    return b.emit(Op.SOFTPLUS, [b.name_of(a["self"])], beta=float(a["beta"]), threshold=float(a["threshold"]))


def _elu(b: Builder, a: Arguments) -> str:
    if (a["scale"], a["input_scale"]) != (1, 1):
        raise b.unsupported("scale or input_scale is not 1")
    return b.emit(Op.ELU, [b.name_of(a["self"])], alpha=float(a["alpha"]))


def _softmax(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    return b.emit(Op.SOFTMAX, [x], dim=a["dim"] % len(b.shape(x)))


def _division(b: Builder, a: Arguments) -> str:
    if not isinstance(a["other"], (int, float)) or a.get("rounding_mode"):
        raise b.unsupported("division by a tensor; by a number is known")
    return b.emit(Op.MUL, [b.name_of(a["self"]), b.name_of(1.0 / a["other"], beside=a["self"])])


def _reversed_sub(b: Builder, a: Arguments) -> str:
    if a["alpha"] != 1:
        raise b.unsupported("alpha is not 1")
    return b.emit(Op.SUB, [b.name_of(a["other"], beside=a["self"]), b.name_of(a["self"])])


def _attention(b: Builder, a: Arguments) -> str:
    """softmax(q k^T / sqrt(d) + mask) v, as PyTorch documents scaled_dot_product_attention."""
    query, key, value = (b.name_of(a[each]) for each in ("query", "key", "value"))
    if a["dropout_p"]:
        raise GraphError(
            f"attention at module '{b.source}' has dropout {a['dropout_p']}; call model.eval() before tracing"
        )
    if a.get("enable_gqa"):
        raise b.unsupported("grouped queries")
    rank = len(b.shape(key))
    turned = b.emit(Op.PERMUTE, [key], dims=(*range(rank - 2), rank - 1, rank - 2))
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(b.shape(query)[-1])
    scores = b.emit(Op.MATMUL, [b.emit(Op.MUL, [query, b.name_of(scale)]), turned])
    if a["is_causal"]:
        length = b.shape(scores)[-2:]
        mask = torch.full(length, -math.inf).triu(1)
        scores = b.emit(Op.ADD, [scores, b.constant(mask)])
    if a["attn_mask"] is not None:
        mask_name = b.name_of(a["attn_mask"])
        if b.metas[mask_name].dtype == torch.bool:
            raise b.unsupported("boolean mask; give a float mask that is added")
        scores = b.emit(Op.ADD, [scores, mask_name])
    return b.emit(Op.MATMUL, [b.emit(Op.SOFTMAX, [scores], dim=rank - 1), value])


def _max_pool(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    rank = len(b.shape(x)) - 2
    kernel = _pair(a["kernel_size"], rank)
    return b.emit(
        Op.MAX_POOL,
        [x],
        kernel=kernel,
        stride=_pair(a["stride"] or kernel, rank),
        padding=_pair(a["padding"], rank),
        dilation=_pair(a["dilation"], rank),
        ceil_mode=bool(a["ceil_mode"]),
    )


def _avg_pool(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    rank = len(b.shape(x)) - 2
    if a.get("divisor_override"):
        raise b.unsupported("divisor_override")
    kernel = _pair(a["kernel_size"], rank)
    return b.emit(
        Op.AVG_POOL,
        [x],
        kernel=kernel,
        stride=_pair(a["stride"] or kernel, rank),
        padding=_pair(a["padding"], rank),
        ceil_mode=bool(a["ceil_mode"]),
        count_include_pad=bool(a["count_include_pad"]),
    )


def _adaptive_pool(op: Op) -> Rule:
    def rule(b: Builder, a: Arguments) -> str:
        x = b.name_of(a["self"])
        rank = len(b.shape(x)) - 2
        output, spatial = _pair(a["output_size"], rank), b.shape(x)[2:]
        if any(size % out for size, out in zip(spatial, output, strict=True)):
            if op is Op.MAX_POOL:
                raise b.unsupported(f"windows of uneven size: {list(spatial)} to {list(output)}")
            return b.emit(Op.ADAPTIVE_AVG_POOL, [x], output=output)
        kernel = tuple(size // out for size, out in zip(spatial, output, strict=True))
        extra: dict[str, Attribute] = {"dilation": (1,) * rank} if op is Op.MAX_POOL else {"count_include_pad": True}
        return b.emit(op, [x], kernel=kernel, stride=kernel, padding=(0,) * rank, ceil_mode=False, **extra)

    return rule


def _mean(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    rank = len(b.shape(x))
    dims = a.get("dim")
    dims = tuple(range(rank)) if dims is None or dims == [] else tuple(sorted(dim % rank for dim in _pair(dims, 1)))
    return b.emit(Op.MEAN, [x], dim=dims, keepdim=bool(a.get("keepdim", False)))


def _concat(b: Builder, a: Arguments) -> str:
    names = [b.name_of(each) for each in a["tensors"]]
    return b.emit(Op.CONCAT, names, dim=a["dim"] % len(b.shape(names[0])))


def _stack(b: Builder, a: Arguments) -> str:
    names = [b.name_of(each) for each in a["tensors"]]
    dim = a["dim"] % (len(b.shape(names[0])) + 1)
    shape = b.shape(names[0])
    return b.emit(Op.CONCAT, [b.reshape(each, (*shape[:dim], 1, *shape[dim:])) for each in names], dim=dim)


def _pad(b: Builder, a: Arguments) -> str:
    if a.get("mode", "constant") != "constant":
        raise b.unsupported(f"padding mode {a['mode']!r}; 'constant' is known")
    return b.emit(Op.PAD, [b.name_of(a["self"])], padding=tuple(a["pad"]), value=float(a["value"] or 0))


def _to_recorded_shape(b: Builder, a: Arguments) -> str:
    """view, reshape, flatten, squeeze and their kin: the exported shape says it all."""
    return b.reshape(b.name_of(a["self"]), a["output_shapes"][0])


def _expand(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    have = b.shape(x)
    want = [have[i - len(a["size"])] if size == -1 else size for i, size in enumerate(a["size"])]
    if tuple(want) == have:
        return x
    if x in b.weights:
        return b.constant(b.weights[x].expand(want).contiguous(), f"{x}.expanded")
    raise b.unsupported("repeats an activation; broadcasting in add and mul is known")


def _transpose(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    rank = len(b.shape(x))
    dims = list(range(rank))
    first, second = a.get("dim0", 0) % rank, a.get("dim1", 1) % rank
    dims[first], dims[second] = second, first
    return _permute(b, {"self": a["self"], "dims": dims})


def _permute(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    rank = len(b.shape(x))
    dims = tuple(dim % rank for dim in a["dims"])
    moved = [dim for dim in dims if b.shape(x)[dim] != 1]
    if moved == sorted(moved):  # only axes of one element change places: no data moves
        return b.reshape(x, [b.shape(x)[dim] for dim in dims])
    turned = b.emit(Op.PERMUTE, [x], dims=dims)
    if x in b.weights and dims == (1, 0):
        b.transposes[turned] = x
    return turned


def _reversed_axes(b: Builder, a: Arguments) -> str:
    return _permute(b, {"self": a["self"], "dims": range(len(b.shape(b.name_of(a["self"]))) - 1, -1, -1)})


def _to_dtype(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    if a["dtype"] not in (None, b.metas[x].dtype):
        raise b.unsupported(
            f"from {b.metas[x].dtype} to {a['dtype']}; give the network inputs of the dtype it computes in"
        )
    return x


def _matmul(b: Builder, a: Arguments) -> str:
    x, other = b.name_of(a["self"]), b.name_of(a.get("other", a.get("mat2")))
    if other in b.transposes and x not in b.weights:  # x @ weight.T is a linear layer, and holds the weight once
        return b.emit(Op.LINEAR, [x, b.transposes[other]])
    return b.emit(Op.MATMUL, [x, other])


def _cut(b: Builder, x: str, dim: int, start: int, stop: int, step: int = 1) -> str:
    size = b.shape(x)[dim]
    start, stop, _ = slice(start, stop, step).indices(size)
    if (start, stop, step) == (0, size, 1):
        return x
    return b.emit(Op.SLICE, [x], dim=dim, start=start, stop=stop, step=step)


def _slice(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    start = 0 if a["start"] is None else a["start"]
    stop = 2**62 if a["end"] is None else a["end"]
    return _cut(b, x, a["dim"] % len(b.shape(x)), start, stop, a["step"])


def _select(b: Builder, a: Arguments) -> str:
    x = b.name_of(a["self"])
    shape = b.shape(x)
    dim = a["dim"] % len(shape)
    index = a["index"] % shape[dim]
    return b.reshape(_cut(b, x, dim, index, index + 1), (*shape[:dim], *shape[dim + 1 :]))


def _split(b: Builder, a: Arguments) -> tuple[str, ...]:
    x = b.name_of(a["self"])
    dim = a["dim"] % len(b.shape(x))
    size = b.shape(x)[dim]
    sizes: Any = -(-size // a["chunks"]) if "chunks" in a else a.get("split_sizes", a.get("split_size"))
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    edges = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    return tuple(_cut(b, x, dim, start, stop) for start, stop in pairwise(edges))


def _unbind(b: Builder, a: Arguments) -> tuple[str, ...]:
    x = b.name_of(a["self"])
    dim = a["dim"] % len(b.shape(x))
    return tuple(_select(b, {"self": a["self"], "dim": dim, "index": i}) for i in range(b.shape(x)[dim]))


def _upsample_nearest(b: Builder, a: Arguments) -> str:
    x = b.name_of(a.get("input", a.get("self")))
    have, want = b.shape(x)[2:], a["output_shapes"][0][2:]
    if any(out % size for size, out in zip(have, want, strict=True)):
        raise b.unsupported(f"from {list(have)} to {list(want)}; whole factors are known")
    return b.emit(Op.UPSAMPLE_NEAREST, [x], factor=tuple(out // size for size, out in zip(have, want, strict=True)))


OPERATORS: dict[str, Rule] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "convolution": _conv,
    "linear": _linear,
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "layer_norm": _layer_norm,
    "embedding": _embedding,
    "relu": _unary(Op.RELU),
    "relu6": _unary(Op.RELU6),
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "hardswish": _unary(Op.HARD_SWISH),
    "hardsigmoid": _unary(Op.HARD_SIGMOID),
    "sigmoid": _unary(Op.SIGMOID),
    "silu": _unary(Op.SILU),
    "tanh": _unary(Op.TANH),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "softplus": _softplus,
    "elu": _elu,
    "softmax.int": _softmax,
    "_softmax": _softmax,
    "add.Tensor": _binary(Op.ADD),
    "add.Scalar": _binary(Op.ADD),
    "sub.Tensor": _binary(Op.SUB),
    "sub.Scalar": _binary(Op.SUB),
    "rsub.Scalar": _reversed_sub,
    "mul.Tensor": _binary(Op.MUL),
    "mul.Scalar": _binary(Op.MUL),
    "div.Tensor": _division,
    "div.Scalar": _division,
    "neg": lambda b, a: b.emit(Op.MUL, [b.name_of(a["self"]), b.name_of(-1.0, beside=a["self"])]),
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool1d": _adaptive_pool(Op.AVG_POOL),
    "adaptive_avg_pool2d": _adaptive_pool(Op.AVG_POOL),
    "adaptive_max_pool2d": _adaptive_pool(Op.MAX_POOL),
    "mean.dim": _mean,
    "mean.default": _mean,
    "cat": _concat,
    "stack": _stack,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "view": _to_recorded_shape,
    "reshape": _to_recorded_shape,
    "_unsafe_view": _to_recorded_shape,
    "flatten": _to_recorded_shape,
    "unflatten": _to_recorded_shape,
    "squeeze": _to_recorded_shape,
    "unsqueeze": _to_recorded_shape,
    "expand": _expand,
    "transpose": _transpose,
    "t": _transpose,
    "permute": _permute,
    "numpy_T": _reversed_axes,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "unbind": _unbind,
    "upsample_nearest1d": _upsample_nearest,
    "upsample_nearest2d": _upsample_nearest,
    "to.dtype": _to_dtype,
    "_to_copy": _to_dtype,
    "dropout": _identity,
    "clone": _identity,
    "alias": _identity,
    "detach": _identity,
    "contiguous": _identity,
    "lift_fresh_copy": _identity,
}
"""ATen operator, with its overload or for all of them, to the rule that emits our nodes."""

MAY_BE_VIEWS = frozenset(
    name.partition(".")[0]
    for name, rule in OPERATORS.items()
    if rule in (_to_recorded_shape, _identity, _to_dtype, _slice)
) | {"expand", "numpy_T", "transpose", "t", "permute", "select", "split", "split_with_sizes", "chunk", "unbind"}
"""Operators whose output may share memory with an input; all others in the table make a new tensor."""
