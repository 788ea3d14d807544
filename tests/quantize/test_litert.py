"""Operations against what LiteRT's reference kernels answered.

``litert.json`` was recorded once, with ai-edge-litert 2.3.0 and its reference resolver (the plain kernels, not the fast ones), from
one-operation int8 models: for each case the input codes, scales and zero points, and the codes that came out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.quantize import QTensor, QuantizedGraph
from lilliput.quantize.arithmetic import add_multipliers, mean_multiplier, quantize_multiplier
from lilliput.quantize.interpreter import evaluate
from lilliput.quantize.qgraph import Add, AvgPool2d, Clamp, MaxPool2d, Mean, Mul, QOp, Softmax
from lilliput.quantize.softmax import softmax_parameters

CASES = json.loads((Path(__file__).parent / "litert.json").read_text())


def _operation(case: dict[str, Any], tensors: list[QTensor]) -> QOp:
    *inputs, y = tensors
    names = tuple(tensor.name for tensor in inputs)
    kind = case["kind"]
    lower = {0: -128, 1: y.zero_point, 3: y.zero_point}[case.get("activation", 0)]
    upper = min(127, y.zero_point + int(6 / y.scale + 0.5)) if case.get("activation") == 3 else 127
    clamp = Clamp(lower=lower, upper=upper)
    if kind == "add":
        multiplier, shift = add_multipliers(inputs[0].scale, inputs[1].scale, y.scale)
        return Add(name=y.name, inputs=names, multiplier=multiplier, shift=shift, clamp=clamp)
    if kind == "mul":
        q, exponent = quantize_multiplier(inputs[0].scale * inputs[1].scale / y.scale)
        return Mul(name=y.name, inputs=names, multiplier=q, shift=exponent, clamp=clamp)
    if kind == "mean":
        q, exponent = mean_multiplier(inputs[0].scale, y.scale, inputs[0].shape[0] * inputs[0].shape[1])
        return Mean(name=y.name, inputs=names, multiplier=q, shift=exponent)
    if kind == "softmax":
        q, exponent, diff_min = softmax_parameters(inputs[0].scale)
        return Softmax(name=y.name, inputs=names, multiplier=q, shift=exponent, diff_min=diff_min)
    pool = {"avg_pool": AvgPool2d, "max_pool": MaxPool2d}[kind]
    kernel, stride, padding = (tuple(case[key]) for key in ("kernel", "stride", "padding"))
    return pool(name=y.name, inputs=names, kernel=kernel, stride=stride, padding=padding)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']}{index}" for index, case in enumerate(CASES)])
def test_codes_equal_those_of_the_reference_kernels(case: dict[str, Any]) -> None:
    shapes = [*case["shapes"], case["output_shape"]]
    names = [*(f"x{index}" for index in range(len(case["shapes"]))), "y"]
    tensors = [
        QTensor(name, tuple(shape), scale, zero_point)
        for name, shape, (scale, zero_point) in zip(names, shapes, case["params"], strict=True)
    ]
    codes = [
        np.array([x], dtype=np.int8).reshape(1, *shape) for x, shape in zip(case["inputs"], case["shapes"], strict=True)
    ]
    op = _operation(case, tensors)
    graph = _pair_graph(op, tensors)
    expected = np.array(case["output"], dtype=np.int8).reshape(1, *case["output_shape"])
    np.testing.assert_array_equal(evaluate(op, codes, graph), expected)


def _pair_graph(op: QOp, tensors: list[QTensor]) -> QuantizedGraph:
    """A graph that holds the operation's tensors; a second input is made from the first, and not used."""
    from lilliput.quantize.qgraph import Lookup

    table = np.arange(-128, 128).astype(np.int8)
    extra = [Lookup(name=t.name, inputs=(tensors[0].name,), table=table, function="any") for t in tensors[1:-1]]
    return QuantizedGraph("case", tensors[0].name, (op.name,), {t.name: t for t in tensors}, (*extra, op))


def test_the_record_covers_each_operation() -> None:
    assert {case["kind"] for case in CASES} == {"add", "mul", "mean", "softmax", "avg_pool", "max_pool"}
