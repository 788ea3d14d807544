"""Which parameters are trained: numbering, channels, and refusals."""

import numpy as np
import pytest

from lilliput.errors import ConfigError, UnsupportedOpError
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.update_plan import (
    LayerUpdate,
    UpdatePlan,
    channel_norms,
    head_of,
    input_channels,
    select_channels,
    weighted_layers,
    weights_per_channel,
)
from mcu.networks import Network, ds_cnn, resnet8


def grouped(seed=0):
    """A plain, a depthwise and a grouped convolution, one linear layer, and the head."""
    net = Network("grouped", (6, 6, 3), seed)
    x = net.depthwise(net.conv("x", 8, 3))
    grouped = net.conv(x, 8, 1)
    op = net.ops[-1]
    weight = np.ascontiguousarray(op.weight[:, :, :, :2])
    net.ops[-1] = type(op)(**{**vars(op), "weight": weight, "groups": 4})
    x = net.reshape(net.mean(grouped), 8)
    net.linear(net.linear(x, 5), 3)
    return net.graph()


def test_layers_are_numbered_in_running_order_without_the_head():
    graph = ds_cnn(0)
    assert [op.name for op in weighted_layers(graph)] == [f"t{index}" for index in range(9)]
    assert head_of(graph).name == graph.ops[-1].name


def test_every_weight_reads_exactly_one_input_channel():
    for op in weighted_layers(grouped()):
        assert input_channels(op) * weights_per_channel(op) == op.weight.size
        assert len(channel_norms(op)) == input_channels(op)


def test_norms_are_those_of_the_weights_that_read_the_channel():
    conv, depthwise, split, linear = weighted_layers(grouped())
    codes = [op.weight.astype(float) for op in (conv, depthwise, split, linear)]
    assert np.allclose(channel_norms(conv)[1], np.sqrt((codes[0][..., 1] ** 2).sum()))
    assert np.allclose(channel_norms(depthwise)[5], np.sqrt((codes[1][5] ** 2).sum()))
    # channel 5 of 8 in 4 groups is the second of group 2, which makes outputs 4 and 5
    assert np.allclose(channel_norms(split)[5], np.sqrt((codes[2][4:6, 0, 0, 1] ** 2).sum()))
    assert np.allclose(channel_norms(linear)[2], np.sqrt((codes[3][:, 2] ** 2).sum()))


@pytest.mark.parametrize(("ratio", "count"), [(1, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_a_ratio_takes_the_whole_part_and_at_least_one(ratio, count):
    op = weighted_layers(grouped())[1]
    assert len(select_channels(op, ratio)) == count


def test_magnitude_takes_the_ends_of_the_same_order_and_random_is_seeded():
    op = weighted_layers(grouped())[1]
    largest, smallest = select_channels(op, 0.5), select_channels(op, 0.5, "magnitude-")
    assert set(largest) | set(smallest) == set(range(8))
    norms = channel_norms(op)
    assert norms[list(largest)].min() >= norms[list(smallest)].max()
    draws = {select_channels(op, 0.5, "random", seed) for seed in range(20)}
    assert len(draws) > 3
    assert select_channels(op, 0.5, "random", 3) == select_channels(op, 0.5, "random", 3)


def test_plans_made_of_a_graph():
    graph = grouped()
    names = [op.name for op in weighted_layers(graph)]
    assert UpdatePlan.head_only(graph) == UpdatePlan(0, ())
    assert UpdatePlan.full(graph) == UpdatePlan.last(graph, 4)
    last = UpdatePlan.last(graph, 2)
    assert (last.bias_depth, [update.op for update in last.layers]) == (2, names[2:])
    plan = UpdatePlan.from_ratios(graph, 3, {names[3]: 0.25, names[1]: 0.5})
    assert [update.op for update in plan.layers] == [names[1], names[3]]  # running order, whatever the mapping's
    assert len(plan.updates()[names[3]]) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: UpdatePlan.from_ratios(g, 1, {"t0": 1.0}), r"weights of 't0' \(layer 0\) lie outside the bias depth 1.*bias_depth=4"),
        (lambda g: UpdatePlan.from_ratios(g, 4, {"t0": 0}), "ratio 0 of 't0': must be above 0 and at most 1"),
        (lambda g: UpdatePlan.from_ratios(g, 4, {"t0": 1.5}), "ratio 1.5 of 't0'"),
        (lambda g: UpdatePlan.from_ratios(g, 4, {"t6": 1}), "'t6' is no layer with weights.*it has t0, t1, t2, t5"),
        (lambda g: UpdatePlan.from_ratios(g, 4, {"t0": 1}, "largest"), "criterion='largest': must be one of magnitude"),
        (lambda g: UpdatePlan.last(g, 5), "k=5: 'grouped' has 4 layers"),
        (lambda g: UpdatePlan(5).check(g), "bias_depth=5: 'grouped' has 4 layers"),
        (lambda g: UpdatePlan(-1), "bias_depth=-1: must be 0 or more"),
        (lambda g: UpdatePlan(4, (LayerUpdate("t0", (3,)),)).check(g), "'t0' has 3 input channels; channel 3"),
        (lambda g: UpdatePlan(4, (LayerUpdate("t0", (0,)),) * 2), "weights of 't0' are updated twice"),
        (lambda g: UpdatePlan(4, (LayerUpdate("t1", (0,)), LayerUpdate("t0", (0,)))).check(g), "out of running order"),
        (lambda g: LayerUpdate("t0", (2, 1)), r"channels \(2, 1\); must be one or more, ascending"),
        (lambda g: LayerUpdate("t0", ()), "must be one or more"),
        (lambda g: SGD(lr=float("nan")), "lr=nan: must be finite and above 0"),
        (lambda g: SGD(lr=0), "lr=0: must be"),
    ],
)  # fmt: skip
def test_refusals_name_the_fix(make, message):
    with pytest.raises(ConfigError, match=message):
        make(grouped())


def test_a_network_must_end_in_a_linear_layer():
    net = Network("convs", (4, 4, 2), 0)
    net.conv("x", 3)
    with pytest.raises(UnsupportedOpError, match=r"it has a convolution, 't0' \(module 'layers.0'\), last"):
        UpdatePlan.full(net.graph())
    net = Network("pooled", (4, 4, 2), 0)
    net.lookup(net.linear(net.reshape(net.mean("x"), 2), 3))
    with pytest.raises(UnsupportedOpError, match="Lookup 't3'.*comes after the last linear layer"):
        head_of(net.graph())


def test_residual_networks_count_the_shortcut_convolutions():
    assert len(weighted_layers(resnet8(0))) == 9
