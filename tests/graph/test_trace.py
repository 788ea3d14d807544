import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graph.cases import NETWORKS, OP_CASES, Case, Fn
from lilliput.errors import GraphError, UnsupportedOpError
from lilliput.graph import Op, trace
from lilliput.graph.ops import RULES

ALL = [*OP_CASES, *NETWORKS]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest output: the same kernels run, only fused or spelled differently."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_graph_computes_what_the_module_computes(case: Case):
    model, example = case.model(), case.example()
    with torch.no_grad():
        close(case.graph().run(example), model(example.clone()))


@pytest.mark.parametrize("case", OP_CASES, ids=lambda case: case.name)
def test_each_operator_becomes_the_kinds_its_row_says(case: Case):
    assert tuple(node.op for node in case.graph().nodes) == case.ops


def test_the_rows_cover_every_kind():
    assert {op for case in OP_CASES for op in case.ops} == set(Op) == set(RULES)


@pytest.mark.parametrize("case", [case for case in ALL if case.name != "transformer"], ids=lambda case: case.name)
def test_a_graph_traced_with_batch_1_runs_any_batch_or_refuses(case: Case):
    model, many = case.model(), case.example(batch=5)
    graph = case.graph()
    mixed = any(RULES[node.op].mixes_batch(node) for node in graph.nodes)
    if mixed:
        with pytest.raises(GraphError, match="trace with an example of the batch you need"):
            graph.run(many)
    else:
        with torch.no_grad():
            close(graph.run(many), model(many.clone()))


def test_values_remember_the_module_they_came_from():
    graph = NETWORKS[0].graph()
    conv = next(node for node in graph.nodes if node.op is Op.CONV)
    assert (conv.source, conv.inputs[1]) == ("0.0", "0.0.weight")
    assert graph.values[conv.name].source == "0.0"
    assert next(node.source for node in graph.nodes if node.op is Op.ADD) == "1"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


def test_a_tied_weight_is_held_once_under_its_first_path():
    model = Tied().eval()
    graph = trace(model, torch.randn(1, 4))
    assert set(graph.weights) == {"one.weight", "one.bias", "two.bias"}
    assert graph.weights["one.weight"].data_ptr() == model.one.weight.data_ptr()
    assert graph.cost().params == 16 + 4 + 4


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, x):
        return self.table(x) @ self.table.weight.T


def test_a_head_that_uses_the_embedding_turned_on_its_side_holds_it_once():
    model, x = TiedHead().eval(), torch.tensor([[3, 0, 10]])
    graph = trace(model, x)
    assert [node.op for node in graph.nodes] == [Op.EMBEDDING, Op.LINEAR]
    assert graph.cost().params == 44
    close(graph.run(x), model(x).detach())


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        steps = torch.arange(x.shape[1]).float().cumsum(0)
        return x + self.scale * torch.sin(steps) + torch.ones(5)


def test_what_depends_on_no_input_is_computed_once_whatever_the_operator():
    model, x = Positions().eval(), torch.randn(1, 5)
    graph = trace(model, x)
    assert [node.op for node in graph.nodes] == [Op.ADD, Op.ADD]
    close(graph.run(x), model(x))
    assert graph.cost().params == 0


def test_randomness_in_the_forward_pass_is_refused():
    with pytest.raises(UnsupportedOpError, match="rand"):
        trace(Fn(lambda x: x + torch.rand(3)).eval(), torch.randn(1, 3))


def test_tracing_leaves_the_module_as_it_was():
    model = NETWORKS[1].model()
    before, hooks = copy.deepcopy(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    trace(model, NETWORKS[1].example())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_what_no_output_needs_is_dropped():
    graph = trace(Fn(lambda x: (torch.tanh(x), x.relu())[1]).eval(), torch.randn(1, 3))
    assert [node.op for node in graph.nodes] == [Op.RELU]


def test_two_outputs_come_back_as_a_tuple():
    graph = trace(Fn(lambda x: (x.relu(), x.tanh())).eval(), torch.randn(1, 3))
    x = torch.randn(1, 3)
    relu, tanh = graph.run(x)
    assert torch.equal(relu, x.relu())
    assert torch.equal(tanh, x.tanh())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_in_the_model_is_as_exact_as_the_activation_beside_it(dtype):
    x = torch.randn(1, 50, dtype=dtype)
    module = Fn(lambda x: -(x / 3) * 0.1 + 0.7)
    assert torch.equal(trace(module.eval(), x).run(x), -(x * (1 / 3)) * 0.1 + 0.7)


def test_an_unknown_operator_is_named_with_its_module():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Softsign())).eval()
    with pytest.raises(UnsupportedOpError, match=r"no rule for 'abs.*', module '1\.0'.*docs/ops\.md"):
        trace(model, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.ConvTranspose2d(3, 4, 3), (1, 3, 8, 8), "conv_transpose2d"),
        (nn.Conv3d(1, 2, 3), (1, 1, 4, 4, 4), "conv3d"),
        (nn.ReflectionPad2d(1), (1, 3, 8, 8), "pad.*reflect"),
        (Fn(lambda x: x.clamp(min=-1)), (1, 3), r"clamp to \[-1, None\]"),
        (Fn(lambda x: x / (x + 9)), (1, 3), "division by a tensor"),
        (Fn(lambda x: F.max_pool2d(x, 2, return_indices=True)[1]), (1, 1, 4, 4), "output 1 is used"),
        (nn.Upsample(size=(7, 7)), (1, 3, 5, 5), "whole factors"),
        (nn.AdaptiveMaxPool2d(3), (1, 3, 8, 8), "uneven size"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else None,
)
def test_near_misses_of_known_operators_are_refused_with_the_reason(module, shape, words):
    with pytest.raises(UnsupportedOpError, match=words):
        trace(nn.Sequential(module).eval(), torch.randn(shape))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.1)], ids=["batch_norm", "dropout"])
def test_training_mode_is_refused_with_the_module_and_the_fix(layer):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(layer)).train()
    with pytest.raises(GraphError, match=r"module '1\.0'.*model\.eval\(\)"):
        trace(model, torch.randn(1, 3, 4, 4))


def test_batch_norm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    with pytest.raises(GraphError, match="module '0'.*track_running_stats=True"):
        trace(model, torch.randn(1, 3, 4, 4))


def test_control_flow_on_data_is_refused_with_the_module():
    model = nn.Sequential(nn.ReLU(), Fn(lambda x: x if x.sum() > 0 else -x)).eval()
    with pytest.raises(GraphError, match=r"in module '1':.*must not depend on the data"):
        trace(model, torch.randn(1, 3))


def test_a_shape_that_depends_on_data_is_refused_with_the_module():
    model = nn.Sequential(nn.ReLU(), Fn(lambda x: x[x > 0])).eval()
    with pytest.raises(GraphError, match="module '1'"):
        trace(model, torch.randn(1, 3))


def test_an_input_that_does_not_fit_the_module_is_refused_with_the_module():
    with pytest.raises(GraphError, match="in module '0'"):
        trace(nn.Sequential(nn.Linear(4, 2)).eval(), torch.randn(1, 5))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((torch.zeros(1, 4), torch.zeros(1, 4)), "takes 1 inputs"),
        ((torch.zeros(1, 5),), r"is float32\[1, 5\]; it was traced with float32\[1, 4\]"),
        ((torch.zeros(1, 4, dtype=torch.float64),), "float64"),
    ],
)
def test_run_refuses_inputs_that_do_not_fit(inputs, words):
    graph = trace(nn.Linear(4, 2).eval(), torch.randn(1, 4))
    with pytest.raises(GraphError, match=words):
        graph.run(*inputs)


# Found by looking for trouble


class HiddenAlias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Dropout(0.1), nn.ReLU(inplace=True), nn.Linear(4, 4))

    def forward(self, x):
        h = self.first(x)
        return h + self.body(h)


def test_writing_over_a_dropouts_output_that_is_its_input_is_refused_not_miscomputed():
    with pytest.raises(GraphError, match=r"module 'body\.1' writes over the output of a dropout.*inplace=False"):
        trace(HiddenAlias().eval(), torch.randn(1, 4))


class TwoInputs(nn.Module):
    def forward(self, input, x):
        return F.relu(input) + x * 3


def test_inputs_called_input_and_x_stay_apart():
    one, two = torch.randn(1, 3), torch.randn(1, 3)
    graph = trace(TwoInputs().eval(), (one, two))
    assert len(set(graph.inputs)) == 2
    close(graph.run(one, two), F.relu(one) + two * 3)


class HostileNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu_0 = nn.Parameter(torch.randn(4))
        self.x = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.relu(x) * self.relu_0 + torch.relu(x * 2) + self.x


def test_weights_named_like_nodes_or_inputs_stay_apart():
    model, x = HostileNames().eval(), torch.randn(1, 4)
    graph = trace(model, x)
    close(graph.run(x), model(x).detach())
    assert graph.cost().params == 8


def test_an_output_given_twice_comes_back_twice():
    def twice(x):
        y = x.relu()
        return y, y

    one, two = trace(Fn(twice).eval(), torch.randn(1, 3)).run(torch.ones(1, 3))
    assert torch.equal(one, two)


def test_whole_numbers_stay_whole():
    x = torch.tensor([[1, 2, 3]])
    assert torch.equal(trace(Fn(lambda x: x * 2 + 1).eval(), x).run(x), x * 2 + 1)
    embedding = nn.Embedding(9, 4)
    graph = trace(Fn(lambda x: F.embedding(x + 1, embedding.weight.detach())).eval(), x)
    close(graph.run(x), embedding(x + 1).detach())


@pytest.mark.parametrize(
    "function", [lambda x: x.softmax(-1, dtype=torch.float64), lambda x: x.mean(-1, dtype=torch.float64)]
)
def test_a_change_of_dtype_is_refused(function):
    with pytest.raises(UnsupportedOpError, match=r"float64"):
        trace(Fn(function).eval(), torch.randn(1, 4))


def test_a_weight_for_each_example_of_the_batch_refuses_another_batch():
    per_example = torch.randn(3, 4)
    graph = trace(Fn(lambda x: x + per_example).eval(), torch.randn(3, 4))
    for batch in (1, 6):
        with pytest.raises(GraphError, match="axis 0"):
            graph.run(torch.randn(batch, 4))


def test_padding_of_the_batch_axis_refuses_another_batch():
    graph = trace(Fn(lambda x: F.pad(x, (0, 0, 0, 1))).eval(), torch.randn(1, 4))
    with pytest.raises(GraphError, match="axis 0"):
        graph.run(torch.randn(3, 4))


class Folded(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.register_buffer("mask", torch.rand(4))
        self.first = first

    def forward(self, x):
        return x * (self.scale * self.mask) if self.first else x * (self.mask * self.scale)


@pytest.mark.parametrize("first", [True, False])
def test_a_parameter_folded_with_a_buffer_is_still_counted(first):
    assert trace(Folded(first).eval(), torch.randn(1, 4)).cost().params == 4


def test_a_network_that_does_nothing_costs_its_input():
    cost = trace(nn.Identity().eval(), torch.randn(1, 4)).cost()
    assert (cost.params, cost.macs, cost.sram_bytes) == (0, 0, 4)


def test_a_refusal_is_one_line_on_no_stream(capfd):
    with pytest.raises(GraphError):
        trace(Fn(lambda x: x if x.sum() > 0 else -x).eval(), torch.randn(1, 3))
    assert capfd.readouterr().err == ""
