"""A graph as a module again computes the graph's function, with layers that can be found and replaced."""

import pytest
import torch
from torch import nn

from graph.cases import NETWORKS, OP_CASES
from lilliput.errors import GraphError
from lilliput.graph import GraphNetwork, trace
from lilliput.graph.interpreter import run


@pytest.mark.parametrize("case", [*OP_CASES, *NETWORKS], ids=lambda case: case.name)
def test_outputs_are_the_interpreters(case):
    graph = case.graph()
    if len(graph.outputs) != 1 or len(graph.inputs) != 1:
        pytest.skip("a graph of several inputs or outputs")
    x = torch.randint(case.integers, case.shape) if case.integers else torch.randn(case.shape)
    with torch.no_grad():
        assert torch.equal(GraphNetwork(graph)(x), run(graph, [x])[0])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.table = nn.Linear(4, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.one(x).relu() + self.table)


def test_shared_weights_stay_one_and_everything_is_in_the_state():
    torch.manual_seed(0)
    model = Shared().eval()
    network = GraphNetwork(trace(model, torch.zeros(1, 4)))
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 2
    assert layers[0].weight is layers[1].weight
    assert any(torch.equal(value, model.table) for value in network.state_dict().values())
    x = torch.randn(7, 4)
    torch.testing.assert_close(network(x), model(x).detach())
    with pytest.raises(GraphError, match="was traced with"):
        network(torch.zeros(7, 5))
