"""The published accounting, against the numbers of the published schemes and against sums by hand."""

import pytest

from lilliput.mcu.training.accounting import extra_memory
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from mcu.networks import Network
from mcu.training.published_networks import BLOCKS, SCHEMES, published, ratios_of


@pytest.fixture(scope="module")
def networks():
    return {name: published(name) for name in BLOCKS}


@pytest.mark.parametrize(("name", "layers", "weights", "macs"), [
    ("mbv2-w0.35", 51, 238_688, 16.65e6), ("mcunet-5fps", 42, 463_216, 22.45e6), ("proxyless-w0.3", 60, 320_816, 18.62e6),
])  # fmt: skip
def test_the_networks_are_the_published_ones(networks, name, layers, weights, macs):
    convs = weighted_layers(networks[name])
    assert len(convs) == layers
    assert sum(op.weight.size for op in convs) == weights
    assert sum(networks[name].op_macs[op.name] for op in convs) == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize(("name", "scheme"), [(name, index) for name in SCHEMES for index in range(5)])
def test_every_published_scheme_needs_what_was_published(networks, name, scheme):
    graph = networks[name]
    depth, numbers, shares, kib = SCHEMES[name][scheme]
    plan = UpdatePlan.from_ratios(graph, depth, ratios_of(weighted_layers(graph), numbers, shares))
    assert extra_memory(graph, plan).kib == pytest.approx(kib, abs=0.01)


@pytest.mark.parametrize(("name", "full", "biases", "last_12", "last_6"), [
    ("mbv2-w0.35", 1306.4, 134.2, 223.7, 129.5),
    ("mcunet-5fps", 1400.4, 121.3, 448.05, 276.3),
    ("proxyless-w0.3", 1210.7, 113.4, 266.4, 139.3),
])  # fmt: skip
def test_full_bias_and_last_layer_updates_need_what_was_published(networks, name, full, biases, last_12, last_6):
    graph = networks[name]
    everything = len(weighted_layers(graph))
    plans = [UpdatePlan.full(graph), UpdatePlan(everything), UpdatePlan.last(graph, 12), UpdatePlan.last(graph, 6)]
    for plan, kib in zip(plans, (full, biases, last_12, last_6), strict=True):
        assert extra_memory(graph, plan).kib == pytest.approx(kib, abs=0.051)  # published to one decimal


def test_bits_by_hand():
    net = Network("hand", (4, 5, 6), 0)
    x = net.conv("x", 3, 3)  # 4x5x3
    x = net.depthwise(x)  # 4x5x3
    net.linear(net.reshape(net.mean(x), 3), 2)
    graph = net.graph()
    counted = extra_memory(graph, UpdatePlan.from_ratios(graph, 2, {"t0": 0.5, "t1": 1}))
    assert counted.mask_bits == 2 * 4 * 5 * 3
    assert counted.bias_bits == 32 * (3 + 3)
    assert counted.weight_bits == 8 * (3 * 3 * 3 * 3 + 3 * 3 * 3)  # 3 of 6 input channels; all 3 channels
    assert counted.activation_bits == 8 * (3 + 4 * 5 * 3 + 4 * 5 * 3)
    head = extra_memory(graph, UpdatePlan.head_only(graph))
    assert (head.bits, head.kib) == (8 * 3, 3 / 1024)


def test_a_channel_multiplier_counts_the_channels_that_are_read():
    net = Network("multiplier", (4, 4, 3), 0)
    x = net.conv("x", 6, 3, depthwise=True)
    net.linear(net.reshape(net.mean(x), 6), 2)
    graph = net.graph()
    counted = extra_memory(graph, UpdatePlan.from_ratios(graph, 1, {"t0": 0.7}))
    assert counted.weight_bits == 8 * 2 * 2 * 9
    assert counted.activation_bits == 8 * (6 + 2 * 16)
