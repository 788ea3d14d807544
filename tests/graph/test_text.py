import pytest
import torch
from torch import nn

from graph.cases import NETWORKS, OP_CASES, Case
from lilliput.errors import GraphError
from lilliput.graph import from_text, to_text, trace


@pytest.mark.parametrize("case", [*OP_CASES, *NETWORKS], ids=lambda case: case.name)
def test_text_round_trips(case: Case):
    graph = case.graph()
    again = from_text(to_text(graph), graph.weights)
    assert to_text(again) == to_text(graph)
    assert (again.nodes, again.values, again.parameters) == (graph.nodes, graph.values, graph.parameters)
    assert torch.equal(again.run(case.example()), graph.run(case.example()))


def test_without_weights_the_text_still_counts():
    graph = NETWORKS[0].graph()
    assert from_text(str(graph)).cost() == graph.cost()


def test_the_text_of_a_small_network_reads_well():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 2)).eval()
    assert str(trace(model, torch.zeros(1, 1, 4, 4), name="small")) == (
        "graph small\n"
        "input x: float32[1, 1, 4, 4]\n"
        "parameter 0.weight: float32[2, 1, 3, 3]\n"
        "parameter 2.bias: float32[2]\n"
        "parameter 2.weight: float32[2, 8]\n"
        "conv_0 = conv(x, 0.weight) dilation=(1, 1) groups=1 padding=(0, 0) stride=(1, 1) -> float32[1, 2, 2, 2]  # 0\n"
        "reshape_0 = reshape(conv_0) shape=(0, 8) -> float32[1, 8]  # 1\n"
        "linear_0 = linear(reshape_0, 2.weight, 2.bias) -> float32[1, 2]  # 2\n"
        "output linear_0"
    )


def test_a_line_that_is_nothing_is_named():
    with pytest.raises(GraphError, match="line 2 .*'nonsense here'"):
        from_text("graph g\nnonsense here\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("float32[1, 2]  # 2", "float32[1, 3]  # 2"), r"makes float32\[1, 2\], but its value says float32\[1, 3\]"),
        (("conv(x, 0.weight)", "conv(x, 9.weight)"), "reads '9.weight' before it is made"),
        (("linear(reshape_0, 2.weight, 2.bias)", "linear(reshape_0)"), "has 1 inputs"),
        ((" groups=1", ""), "has attributes"),
        (("output linear_0", "output other"), "output 'other' is not made"),
    ],
)
def test_an_illegal_graph_is_refused_with_the_broken_rule(change, words):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 2)).eval()
    text = str(trace(model, torch.zeros(1, 1, 4, 4)))
    assert change[0] in text
    with pytest.raises(GraphError, match=words):
        from_text(text.replace(*change))


def test_a_node_made_twice_is_refused():
    line = "relu_0 = relu(x) -> float32[1, 2]\n"
    with pytest.raises(GraphError, match="node 'relu_0' .* is made twice"):
        from_text(f"graph g\ninput x: float32[1, 2]\n{line}{line}output relu_0")
