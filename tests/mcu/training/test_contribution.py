"""Gains by fine-tuning and by Fisher information."""

import json

import numpy as np
import pytest
import torch

from lilliput.errors import ConfigError, DataError
from lilliput.mcu.training.contribution import RATIOS, Contribution, contribution
from lilliput.mcu.training.float_mode import FloatMode
from lilliput.mcu.training.update_plan import UpdatePlan, select_channels, weighted_layers
from mcu.training.trainable_networks import images, quantized

TRAIN, VAL = images(32, seed=21), images(40, seed=22)


def finetune(**options):
    settings = {"ratios": (0.5, 1.0), "epochs": 1, "lr": 0.3, "num_classes": 4} | options
    return contribution(quantized("mobile"), TRAIN, VAL, **settings)


def test_fine_tunings_gains_are_differences_of_accuracies():
    graph = quantized("mobile")
    found = finetune(max_depth=2)
    names = [op.name for op in weighted_layers(graph)][-2:]
    assert found.layers == tuple(names)

    def accuracy(plan):
        mode = FloatMode(graph, plan, num_classes=4, lr=0.3, seed=0)
        mode.fit(*TRAIN, epochs=1, batch=8, seed=0)
        return mode.accuracy(*VAL)

    head = accuracy(UpdatePlan.head_only(graph))
    assert found.baseline == pytest.approx(head)
    assert found.bias == pytest.approx((0, accuracy(UpdatePlan(1)) - head, accuracy(UpdatePlan(2)) - head))
    deep = accuracy(UpdatePlan.from_ratios(graph, 2, {names[0]: 0.5})) - accuracy(UpdatePlan(2))
    assert found.weights[0][0] == pytest.approx(deep)
    last = accuracy(UpdatePlan.from_ratios(graph, 1, {names[1]: 1.0})) - accuracy(UpdatePlan(1))
    assert found.weights[1][1] == pytest.approx(last)


def test_a_stopped_measurement_goes_on_from_its_cache(tmp_path, monkeypatch):
    cache = tmp_path / "runs.json"
    runs = []
    fit = FloatMode.fit

    def counted(self, *args, **options):
        runs.append(self.plan)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return fit(self, *args, **options)

    monkeypatch.setattr(FloatMode, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        finetune(max_depth=1, cache=cache, seeds=(0, 1))
    assert len(json.loads(cache.read_text())["accuracies"]) == 3
    resumed = finetune(max_depth=1, cache=cache, seeds=(0, 1))
    assert len(runs) == 4 + (2 * 4 - 3)
    assert resumed == finetune(max_depth=1, seeds=(0, 1))
    with pytest.raises(ConfigError, match="belongs to another measurement.*remove it or give another path"):
        finetune(max_depth=1, cache=cache, lr=0.1)
    cache.write_text("[]")
    with pytest.raises(DataError, match="not a cache of contributions"):
        finetune(max_depth=1, cache=cache)


def test_fisher_is_the_mean_squared_gradient_of_the_real_parameters():
    graph = quantized("odd")
    found = contribution(graph, TRAIN, VAL, "fisher", ratios=(0.25, 1.0), samples=5, epochs=1, num_classes=4)
    layers = weighted_layers(graph)
    head = FloatMode(graph, UpdatePlan.head_only(graph), num_classes=4, lr=0.01)
    head.fit(*TRAIN, epochs=1, batch=8)
    mode = FloatMode(graph, UpdatePlan.full(graph), num_classes=4)
    for name in ("head.weight", "head.bias"):
        mode.parameters[name].kept = head.parameters[name].kept
    chosen = np.random.default_rng(0).permutation(32)[:5]
    bias, weight = np.zeros(len(layers)), np.zeros((len(layers), 2))
    for index in chosen:
        _, gradients = mode.gradients(TRAIN[0][index : index + 1], TRAIN[1][index : index + 1])
        for number, op in enumerate(layers):
            sw, sx = op.weight_scale, graph.tensors[op.inputs[0]].scale
            bias[number] += ((gradients[f"{op.name}.bias"].double().numpy() / (sw * sx)) ** 2).sum() / 5
            gradient = gradients[f"{op.name}.weight"].double().numpy()
            square = (gradient / sw.reshape(-1, *(1,) * (gradient.ndim - 1))) ** 2
            weight[number, 1] += square.sum() / 5
            part = FloatMode(graph, UpdatePlan.from_ratios(graph, len(layers), {op.name: 0.25}), num_classes=4)
            weight[number, 0] += part.parameters[f"{op.name}.weight"].masked(torch.from_numpy(square)).sum().item() / 5
            assert len(select_channels(op, 0.25)) >= 1
    assert found.bias == pytest.approx((0, *np.cumsum(bias[::-1])), rel=1e-5)
    assert np.array(found.weights) == pytest.approx(weight, rel=1e-5)
    assert (np.diff(np.array(found.weights), axis=1) >= 0).all()


def test_measurements_are_repeatable_and_files_give_them_back(tmp_path):
    first, second = (finetune(max_depth=1, seeds=(0, 1)) for _ in range(2))
    assert first == second
    first.save(tmp_path / "contribution.json")
    assert Contribution.load(tmp_path / "contribution.json") == first
    with pytest.raises(DataError, match=r"no contribution can be read.*make one with contribution"):
        Contribution.load(tmp_path / "none.json")


def test_the_reach_ends_at_what_has_no_backward_rule():
    graph = quantized("pooled")
    found = contribution(graph, TRAIN, VAL, "fisher", samples=2, epochs=1, num_classes=4)
    assert found.layers == (weighted_layers(graph)[-1].name,)
    with pytest.raises(ConfigError, match="max_depth=2: gradients reach the last 1 layers"):
        contribution(graph, TRAIN, VAL, "fisher", max_depth=2)


def test_a_bar_is_shown_on_request(capsys):
    finetune(max_depth=1, progress=True)
    shown = capsys.readouterr()
    assert "contribution" in shown.err
    assert "4/4" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method='guess': must be one of finetune, fisher"),
        ({"ratios": (1, 0.5)}, r"ratios=\(1, 0.5\): must ascend"),
        ({"ratios": (0, 0.5)}, "must ascend, above 0"),
        ({"seeds": ()}, r"seeds=\(\)"),
        ({"max_depth": 99}, "max_depth=99: gradients reach the last 6 layers"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ConfigError, match=message):
        finetune(**options)


def test_a_malformed_contribution_is_refused():
    with pytest.raises(ConfigError, match="has 2 bias depths and 1 layers of weights; must be 3"):
        Contribution("given", ("a", "b"), (1.0,), (0.0, 1.0), ((1.0,),))
    with pytest.raises(ConfigError, match="one gain for each of the ratios"):
        Contribution("given", ("a",), (0.5, 1.0), (0.0, 1.0), ((1.0,),))
    with pytest.raises(ConfigError, match="finite"):
        Contribution("given", ("a",), (1.0,), (0.0, float("nan")), ((1.0,),))
    assert RATIOS == (0.125, 0.25, 0.5, 1.0)
