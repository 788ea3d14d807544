"""What to train within a budget: lower bounds that hold, the exact optimum under the real planner, and plans that fit when counted anew."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from lilliput.errors import BudgetError, ConfigError
from lilliput.mcu.training.contribution import Contribution
from lilliput.mcu.training.optimizer import SGD
from lilliput.mcu.training.search import search_update
from lilliput.mcu.training.step_bounds import FLASH, PREFIX, Steps
from lilliput.mcu.training.train_step import compile_training
from lilliput.mcu.training.update_plan import LayerUpdate, UpdatePlan, input_channels, select_channels, weighted_layers
from mcu.networks import Network
from mcu.training.published_networks import published
from mcu.training.trainable_networks import quantized

RATIOS = (0.5, 1.0)


def eight_layers(image=16):
    """Two inverted residual blocks, the second with its skip connection, between plain convolutions."""
    net = Network("eight", (image, image, 3), 1)
    x = net.conv("x", 8, 3, 2)
    x = net.conv(net.depthwise(net.conv(x, 16), 3), 8)
    skip = x
    x = net.add(skip, net.conv(net.depthwise(net.conv(x, 24), 3), 8))
    net.linear(net.reshape(net.mean(net.conv(x, 12, 3, 2)), 12), 4)
    return net.graph()


def gains(graph, seed, ratios=RATIOS, scale=1.0):
    rng = np.random.default_rng(seed)
    layers = weighted_layers(graph)
    weights = np.sort(rng.gamma(1.5, scale, (len(layers), len(ratios))), axis=1)
    bias = np.concatenate([[0], np.cumsum(rng.normal(0.3, 0.5, len(layers)))])
    names = tuple(op.name for op in layers)
    return Contribution("given", names, ratios, tuple(bias.tolist()), tuple(map(tuple, weights.tolist())))


def sram(graph, plan, **options):
    return compile_training(graph, plan, optimizer=SGD(0.01), **options).sram_bytes


def random_plan(graph, rng):
    layers = weighted_layers(graph)
    depth = int(rng.integers(0, len(layers) + 1))
    updates = []
    for op in layers[len(layers) - depth :]:
        if rng.random() < 0.5:
            count = input_channels(op) if rng.random() < 0.4 else int(rng.integers(1, input_channels(op) + 1))
            updates.append(
                LayerUpdate(op.name, select_channels(op, count / input_channels(op), "random", int(rng.integers(99))))
            )
    return UpdatePlan(depth, tuple(updates))


@pytest.mark.parametrize(
    ("make", "plans", "master"),
    [
        (eight_layers, 10, "int16"),
        (eight_layers, 5, "int8"),
        (lambda: quantized("mobile"), 5, "int16"),
        (lambda: quantized("residual"), 5, "int16"),
        (lambda: published("mbv2-w0.35", 48, 4, 0), 1, "int16"),
    ],
    ids=["eight", "eight-int8", "mobile", "residual", "mbv2"],
)
def test_lower_bounds_never_exceed_what_is_placed(make, plans, master):
    graph, rng = make(), np.random.default_rng(0)
    optimizer = SGD(0.01, master=master)
    steps = Steps(graph, optimizer)
    layers = {op.name: op for op in weighted_layers(graph)}
    tightness = []
    for _ in range(plans):
        plan = random_plan(graph, rng)
        report = compile_training(graph, plan, optimizer=optimizer, schedule="whole").memory_report()
        at = steps.bounds(plan.bias_depth, "whole")
        least = at.bytes + sum(at.added(layers[update.op], update.channels) for update in plan.layers)
        assert least[FLASH] <= report.flash_bytes
        assert least[PREFIX:].max() <= report.sram_bytes
        tightness.append(least[PREFIX:].max() / report.sram_bytes)
    assert np.mean(tightness) > 0.95


@pytest.mark.parametrize("seed", range(2))
def test_the_plan_is_the_best_of_all_by_brute_force_with_the_real_planner(seed):
    graph = eight_layers()
    layers, contribution = weighted_layers(graph), gains(eight_layers(), seed)
    limit = int(np.quantile([sram(graph, UpdatePlan.head_only(graph)), sram(graph, UpdatePlan.full(graph))], 0.86))
    everything = []
    for depth in range(len(layers) + 1):
        names = contribution.layers[len(layers) - depth :]
        tables = contribution.weights[len(layers) - depth :]
        for options in itertools.product(range(3), repeat=depth):
            gain = contribution.bias[depth] + sum(table[o - 1] for table, o in zip(tables, options, strict=True) if o)
            everything.append((gain, depth, {n: RATIOS[o - 1] for n, o in zip(names, options, strict=True) if o}))
    assert len(everything) == sum(3**depth for depth in range(9))
    everything.sort(key=lambda each: -each[0])
    # All that would be better are placed, and refused, until the first fits.
    best = next(
        gain
        for gain, depth, ratios in everything
        if sram(graph, UpdatePlan.from_ratios(graph, depth, ratios), schedule="whole") <= limit
    )
    found = search_update(graph, contribution, sram=limit, schedule="whole")
    assert found.objective == pytest.approx(best, abs=1e-12)
    assert found.objective_bound == found.objective
    assert sram(graph, found, schedule="whole") == found.sram_bytes <= limit


def recounted(step):
    """SRAM of a compiled step from its offsets and arrays alone."""
    program, place = step.program, step.placement
    suffix = max(place.offsets[name] + buffer.bytes for name, buffer in program.buffers.items())
    suffix = max([suffix, *(place.offsets[block.name] + block.size_bytes for block in place.blocks)])
    prefix = 0 if step.prefix is None else step.prefix.arena_bytes
    if prefix and step.prefix.scratch_bytes:
        prefix = -(-prefix // 4) * 4 + step.prefix.scratch_bytes
    # each tensor begins at a word; five before them, a checksum behind; random state, rate, last prediction
    words = sum(-(-parameter.initial.nbytes // 4) for parameter in program.parameters.values()) + 5 + 1 + 3
    return max(suffix, prefix) + 4 * words + step.stack_bytes


@pytest.mark.parametrize(
    ("method", "share", "schedule"),
    [("knapsack", 0.1, "whole"), ("knapsack", 0.5, "whole"), ("evolution", 0.4, "whole")],
)
def test_every_plan_fits_when_counted_anew(method, share, schedule):
    graph = eight_layers()
    least, most = sram(graph, UpdatePlan.head_only(graph)), sram(graph, UpdatePlan.full(graph))
    limit = int(least + share * (most - least))
    plan = search_update(
        graph, gains(graph, 4, (0.25, 0.5, 1.0)), sram=limit, method=method, samples=300, schedule=schedule
    )
    step = compile_training(graph, plan, optimizer=SGD(0.01), sram=limit, schedule=schedule)
    assert recounted(step) == plan.sram_bytes <= limit
    assert plan.method == f"{method} of given"
    plan.check(graph)


def test_the_knapsack_finds_at_least_what_five_thousand_samples_of_evolution_find():
    graph = quantized("mobile")
    limit = int(0.6 * sram(graph, UpdatePlan.full(graph)))
    contribution = gains(graph, 1, (1 / 8, 1 / 4, 1 / 2, 1.0))
    settings = {"sram": limit, "schedule": "whole"}
    exact = search_update(graph, contribution, **settings)
    evolved = search_update(graph, contribution, method="evolution", samples=5000, **settings)
    assert exact.objective_bound == exact.objective
    assert evolved.objective_bound is None
    assert exact.objective >= evolved.objective - 1e-12
    assert evolved.objective > 0.8 * exact.objective


def test_more_memory_never_gains_less_and_enough_gains_all():
    graph = quantized("residual")
    contribution = gains(graph, 7)
    most = sram(graph, UpdatePlan.full(graph))
    objectives = [
        search_update(graph, contribution, sram=int(most * share), schedule="whole").objective
        for share in (0.6, 0.8, 1.0)
    ]
    assert objectives == sorted(objectives)
    unlimited = search_update(graph, contribution)
    depth = unlimited.bias_depth
    assert len(unlimited.layers) == depth
    assert unlimited.objective == pytest.approx(max(
        contribution.bias[k] + sum(row[-1] for row in contribution.weights[len(contribution.layers) - k :])
        for k in range(len(contribution.layers) + 1)
    ))  # fmt: skip


def test_smaller_masters_train_more():
    graph = eight_layers()
    limit = int(0.5 * sram(graph, UpdatePlan.full(graph)))
    wide, narrow = (
        search_update(graph, gains(graph, 2), sram=limit, optimizer=SGD(0.01, master=master))
        for master in ("int16", "int8")
    )
    assert narrow.objective > wide.objective


def test_flash_can_bind():
    graph = eight_layers()
    contribution = gains(graph, 3)
    free = search_update(graph, contribution)
    tight = search_update(graph, contribution, flash=free.flash_bytes - 100)
    assert tight.flash_bytes <= free.flash_bytes - 100
    assert tight.objective < free.objective
    assert tight.objective_bound == tight.objective


def three_layers():
    """So few that planning in tiles is quick."""
    net = Network("three", (24, 24, 3), 1)
    x = net.conv(net.conv(net.conv("x", 8, 3, 2), 8, 3, 2), 16, 3, 2)
    net.linear(net.reshape(net.mean(x), 16), 4)
    return net.graph()


def test_tiles_of_the_frozen_part_make_room_for_training():
    graph = three_layers()
    everything = gains(graph, 5)
    contribution = Contribution("given", everything.layers[-1:], RATIOS, everything.bias[:2], everything.weights[-1:])
    limit = sram(graph, UpdatePlan.head_only(graph)) + 900
    whole = search_update(graph, contribution, sram=limit, schedule="whole")
    tiled = search_update(graph, contribution, sram=limit)
    assert tiled.objective > whole.objective
    assert tiled.objective_bound == tiled.objective
    assert tiled.sram_bytes <= limit


def test_a_budget_below_the_head_alone_is_refused_with_the_bound_and_what_binds():
    graph = three_layers()
    least = sram(graph, UpdatePlan.head_only(graph), schedule="whole")
    message = (
        r"training 'three' with the head alone needs at least [\d,]+ bytes of SRAM.*at '\w+' \(.*try.*schedule='auto'"
    )
    with pytest.raises(BudgetError, match=message):
        search_update(graph, gains(graph, 0), sram=least - 1, schedule="whole")
    assert search_update(graph, gains(graph, 0), sram=least, schedule="whole").sram_bytes <= least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "random"}, "method='random': must be one of knapsack, evolution"),
        ({"schedule": "rows"}, "schedule='rows': must be 'auto', 'whole' or 'smallest'"),
        ({"sram": "much"}, "must be a number"),
    ],
)
def test_refused_options(options, message):
    graph = eight_layers()
    with pytest.raises(ConfigError, match=message):
        search_update(graph, gains(graph, 0), **options)


def test_contributions_of_another_network_are_refused():
    graph = eight_layers()
    other = replace(gains(graph, 0), layers=tuple(f"layer{index}" for index in range(8)))
    with pytest.raises(
        ConfigError, match=r"contributions are of layers layer0.*the last 8 of 'eight' are t0, .*measure them on this"
    ):
        search_update(graph, other)
