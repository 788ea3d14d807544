"""Folding changes a graph's nodes and not its function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import FAMILIES, Fn, Sum, prepared
from torch import Tensor, nn

from lilliput.errors import UnsupportedOpError
from lilliput.graph import Graph, Op, trace
from lilliput.quantize import fold_affine

CONSTANT = torch.linspace(0.5, 2.0, 6)


def kinds(graph: Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes]


class Channels(nn.Module):
    def __init__(self, shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(CONSTANT.reshape(shape))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale)


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], list[str]]] = [
    ("conv then norm", lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), (3, 5, 5), ["conv"]),
    ("norm of an input", lambda: nn.BatchNorm2d(3), (3, 5, 5), ["conv"]),
    ("norm before conv", lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1)), (3, 5, 5), ["conv", "conv"]),
    ("two norms", lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), (3, 5, 5), ["conv"]),
    ("linear then norm", lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,), ["linear"]),
    ("norm then linear", lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2)), (6,), ["relu", "linear"]),
    ("norm of a vector", lambda: nn.BatchNorm1d(6), (6,), ["reshape", "conv", "reshape"]),
    ("1-d conv then norm", lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (3, 9), ["conv"]),
    ("times a number", lambda: nn.Sequential(nn.Conv2d(3, 6, 1), Fn(lambda x: x * 0.5 - 3)), (3, 5, 5), ["conv"]),
    ("a number minus", lambda: nn.Sequential(nn.Linear(3, 6), Fn(lambda x: 2 - x)), (3,), ["linear"]),
    ("a number alone", lambda: Fn(lambda x: x + 3), (3, 5, 5), ["add"]),
    ("times channels", lambda: nn.Sequential(nn.Conv2d(3, 6, 1), Channels((6, 1, 1), torch.mul)), (3, 5, 5), ["conv"]),
    ("plus channels", lambda: Channels((1, 6, 1, 1), torch.add), (6, 5, 5), ["conv"]),
    ("channels minus", lambda: Channels((6, 1, 1), lambda x, c: c - x), (6, 5, 5), ["conv"]),
    ("linear times channels", lambda: nn.Sequential(nn.Linear(3, 6), Channels((6,), torch.mul)), (3,), ["linear"]),
]  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_folding_keeps_the_function_and_leaves_these_nodes(
    build: Callable[[], nn.Module], shape: tuple[int, ...], expected: list[str]
) -> None:
    model, data, _ = prepared(build, shape)
    graph = trace(model, data[:1])
    folded = fold_affine(graph)
    assert kinds(folded) == expected
    torch.testing.assert_close(folded.run(data), graph.run(data), rtol=1e-5, atol=1e-5)


def test_a_layer_that_others_read_too_keeps_its_weights() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 1)
    model = nn.Sequential(conv, Sum(nn.Identity(), nn.BatchNorm2d(6).eval())).eval()
    graph = trace(model, torch.randn(1, 3, 4, 4))
    folded = fold_affine(graph)
    assert kinds(folded) == ["conv", "conv", "add"]
    assert folded.weights["0.weight"] is graph.weights["0.weight"]
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(folded.run(x), graph.run(x))


def test_one_convolution_under_two_norms_is_folded_once_for_each() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            nn.init.uniform_(self.a.weight, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.conv(torch.relu(self.a(self.conv(x)))))

    torch.manual_seed(0)
    graph = trace(Twice().eval(), torch.randn(1, 3, 4, 4))
    folded = fold_affine(graph)
    assert kinds(folded) == ["conv", "relu", "conv"]
    assert len(folded.weights) == 4
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(folded.run(x), graph.run(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_networks_keep_their_function(name: str) -> None:
    model, data, test = prepared(*FAMILIES[name])
    folded = fold_affine(trace(model, data[:1]))
    assert all(node.op is not Op.BATCH_NORM for node in folded.nodes)
    with torch.no_grad():
        torch.testing.assert_close(folded.run(test), model(test), rtol=1e-4, atol=1e-5)


def test_the_original_graph_is_not_changed() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)).eval(), torch.randn(1, 3, 4, 4))
    before, weights = str(graph), {name: tensor.clone() for name, tensor in graph.weights.items()}
    fold_affine(graph)
    assert str(graph) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in graph.weights.items())


def test_a_constant_for_each_pixel_is_refused() -> None:
    graph = trace(nn.Sequential(Channels((1, 1, 6), torch.add)), torch.randn(1, 3, 5, 6))
    message = r"'add' of \[1, 3, 5, 6\] with a constant of shape \[1, 1, 6\] \(value 'add_0', module '0'\); it takes one number"
    with pytest.raises(UnsupportedOpError, match=message):
        fold_affine(graph)
