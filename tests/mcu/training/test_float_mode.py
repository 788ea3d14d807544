"""The published simulation: against an independent derivation by autograd, by differences, and its laws."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lilliput.errors import ConfigError, UnsupportedOpError
from lilliput.mcu.training.float_mode import FloatMode
from lilliput.mcu.training.float_ops import RULES, identity, layer, rounded
from lilliput.mcu.training.update_plan import UpdatePlan, weighted_layers
from lilliput.quantize.qgraph import Add, AvgPool2d, Conv2d, Linear, Mean, Reshape
from mcu.training.trainable_networks import NAMES, images, quantized


def full(name):
    graph = quantized(name)
    return UpdatePlan.last(graph, 1) if name == "pooled" else UpdatePlan.full(graph)


def through(x, values):
    """The values, with the derivative of x."""
    return x + (values - x).detach()


def independent(graph, x, parameters, head):
    """The equations of the paper in plain autograd and float64, channels first, from scales instead of multipliers."""
    live = {}
    tensor = graph.tensors[graph.input]
    live[graph.input] = torch.from_numpy(graph.quantize_input(x).astype(np.float64)).permute(0, 3, 1, 2)
    for op in graph.ops:
        y = graph.tensors[op.name]
        inputs = [live[name] for name in op.inputs]
        scales = [graph.tensors[name].scale for name in op.inputs]
        zeros = [graph.tensors[name].zero_point for name in op.inputs]
        if op.name == head.name:
            return F.linear((inputs[0] - zeros[0]) * scales[0], parameters["head.weight"], parameters["head.bias"])
        if isinstance(op, (Conv2d, Linear)):
            weight = torch.from_numpy(op.weight.astype(np.float64))
            weight = parameters.get(f"{op.name}.weight", weight.movedim(3, 1) if isinstance(op, Conv2d) else weight)
            bias = parameters.get(f"{op.name}.bias", torch.from_numpy(op.bias.astype(np.float64)))
            centred = inputs[0] - zeros[0]
            if isinstance(op, Conv2d):
                top, left, bottom, right = op.padding
                padded = F.pad(centred, (left, right, top, bottom))
                total = F.conv2d(padded, weight, bias, op.stride, 0, op.dilation, op.groups)
            else:
                total = F.linear(centred, weight, bias)
            factor = torch.from_numpy(op.weight_scale) * scales[0] / y.scale
            real = total * (factor[:, None, None] if isinstance(op, Conv2d) else factor)
        elif isinstance(op, Add):
            real = sum((v - z) * s for v, z, s in zip(inputs, zeros, scales, strict=True)) / y.scale
        elif isinstance(op, Mean):
            real = (inputs[0] - zeros[0]).mean((2, 3)) * scales[0] / y.scale
            real = real.reshape(-1, y.shape[-1], *(1,) * (len(y.shape) - 1))
        elif isinstance(op, AvgPool2d):
            real = F.avg_pool2d(inputs[0], op.kernel, op.stride) - zeros[0]
        elif isinstance(op, Reshape):
            moved = inputs[0].permute(0, 2, 3, 1) if inputs[0].ndim == 4 else inputs[0]
            live[op.name] = moved.reshape(len(moved), *y.shape)
            continue
        else:
            codes = graph.activations(x)[op.name].astype(np.float64)
            live[op.name] = torch.from_numpy(codes).permute(0, 3, 1, 2)
            continue
        if isinstance(op, (Mean, AvgPool2d)):  # means of codes: ties go to even codes
            before = through(real, (real + y.zero_point).round() - y.zero_point) + y.zero_point
        else:
            before = through(real, real.round()) + y.zero_point
        inside = (before >= op.clamp.lower) & (before <= op.clamp.upper)
        live[op.name] = torch.where(inside, before, before.detach().clamp(op.clamp.lower, op.clamp.upper))
    raise AssertionError(tensor)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_every_gradient_equal_an_independent_derivation(name):
    graph = quantized(name)
    x, labels = images(6, seed=3)
    mode = FloatMode(graph, full(name), num_classes=4)
    loss, gradients = mode.gradients(x, labels)
    leaves = {key: parameter.kept.clone().requires_grad_() for key, parameter in mode.parameters.items()}
    expected = F.cross_entropy(independent(graph, x, leaves, mode.head), labels)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    found = dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values())), strict=True))
    assert gradients.keys() == found.keys()
    for key, gradient in gradients.items():
        # float32 sums of some hundred products: 1e-5 of the largest
        torch.testing.assert_close(gradient.double(), found[key], rtol=1e-5, atol=1e-5 * found[key].abs().max().item())
        assert found[key].abs().max() > 0


def alone(op, graph, activations, is_rounded):
    """One operation's codes from the integer network's own inputs."""
    x, y = [graph.tensors[name] for name in op.inputs], graph.tensors[op.name]
    inputs = [torch.from_numpy(activations[name].astype(np.float64)) for name in op.inputs]
    if isinstance(op, (Conv2d, Linear)):
        weight = torch.from_numpy(op.weight.astype(np.float64))
        weight = weight.movedim(3, 1) if isinstance(op, Conv2d) else weight
        factor = torch.from_numpy(np.ldexp(op.multiplier.astype(float), op.shift - 31))
        return layer(inputs[0], weight, torch.from_numpy(op.bias.astype(np.float64)), op, x[0], y, factor, is_rounded)
    return RULES[type(op)](op, inputs, x, y, rounded if is_rounded else identity)


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_gives_the_integer_networks_codes_but_for_ties(name):
    """Half to even here; there half away, or first to 2**shift and then to whole codes, which moves ties by half of that."""
    graph = quantized(name)
    activations = graph.activations(images(16, seed=1)[0])
    checked = 0
    for op in graph.ops:
        if isinstance(op, (Conv2d, Linear)) or type(op) in RULES:
            real, codes = (alone(op, graph, activations, is_rounded).numpy() for is_rounded in (False, True))
            difference = np.abs(codes - activations[op.name])
            shift = op.shift[2] if isinstance(op, Add) else np.max(getattr(op, "shift", -30))
            is_tie = np.abs(real - np.floor(real) - 0.5) < 2.0 ** (min(shift, 0) - 1) + 1e-6
            assert not difference[~is_tie].any(), op.name
            assert difference.max() <= 1
            assert is_tie.mean() < 0.3
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("name", ["mobile", "odd", "residual"])
def test_gradients_are_the_derivatives_when_nothing_is_rounded(name):
    graph = quantized(name)
    x, labels = images(3, seed=5)
    mode = FloatMode(graph, full(name), num_classes=4, rounding=False, dtype=torch.float64)
    frozen = mode.freeze(x)
    _, gradients = mode.gradients(frozen, labels)
    rng = np.random.default_rng(0)
    for key, parameter in mode.parameters.items():
        direction = torch.from_numpy(rng.choice([-1.0, 1.0], parameter.kept.shape))
        start, step = parameter.kept.clone(), 1e-6 * max(1.0, parameter.kept.abs().mean().item())
        losses = []
        for sign in (1, -1):
            parameter.kept = start + sign * step * direction
            losses.append(mode.gradients(frozen, labels)[0])
        parameter.kept = start
        slope = (gradients[key] * direction).sum().item()
        # activations that cross an end of the clamp within the step bend the loss: 1e-3 of the gradient's length
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(
            slope, abs=1e-3 * gradients[key].norm().item() + 1e-9
        ), key


def test_a_scaled_step_on_codes_is_the_step_of_the_real_parameters():
    graph = quantized("mobile")
    x, labels = images(8, seed=2)
    mode = FloatMode(graph, full("mobile"), num_classes=4, lr=0.05)
    before = {key: parameter.kept.clone() for key, parameter in mode.parameters.items()}
    _, gradients = mode.gradients(x, labels)
    mode.step(x, labels)
    for op in weighted_layers(graph):
        sw, sx = torch.from_numpy(op.weight_scale), graph.tensors[op.inputs[0]].scale
        for kind, scale in (("weight", sw[:, None, None, None]), ("bias", sw * sx)):
            key = f"{op.name}.{kind}"
            # d loss / d real = d loss / d code / scale, so the real parameter scale * code moves by lr times that
            real = before[key] * scale - 0.05 * gradients[key].double() / scale
            torch.testing.assert_close(mode.parameters[key].kept * scale, real, rtol=1e-6, atol=1e-9)  # kept in float32


def largest_channels(op, share):
    """Which weights (out, in, row, column) belong to the input channels of largest norm; a depthwise layer's channels are its filters."""
    weight = np.moveaxis(op.weight, -1, 1).astype(float)
    axis = 0 if op.groups > 1 else 1
    norms = np.sqrt((weight**2).sum(tuple(each for each in range(4) if each != axis)))
    chosen = np.argsort(-norms, kind="stable")[: int(len(norms) * share)]
    mask = np.zeros(weight.shape)
    mask[(chosen,) if axis == 0 else (slice(None), chosen)] = 1
    return torch.from_numpy(mask)


@pytest.mark.parametrize(
    ("depth", "shares"),
    [(6, dict.fromkeys(range(6), 1)), (5, {2: 1 / 2, 3: 1 / 4, 4: 1}), (3, {})],
    ids=["full", "sparse", "three biases"],
)
def test_three_steps_end_where_the_papers_equations_do(depth, shares):
    """Gradient, then mask, then scaling, then a plain step, each time on the rounded weights of the step before."""
    graph, lr = quantized("mobile"), 0.2
    layers = weighted_layers(graph)
    x, labels = images(8, seed=6)
    plan = UpdatePlan.from_ratios(graph, depth, {layers[number].name: share for number, share in shares.items()})
    mode = FloatMode(graph, plan, num_classes=4, lr=lr)
    kept = {key: parameter.kept.clone() for key, parameter in mode.parameters.items()}
    start = {key: each.clone() for key, each in kept.items()}
    scales, masks = {}, {}
    for number, op in enumerate(layers):
        sw, sx = torch.from_numpy(op.weight_scale), graph.tensors[op.inputs[0]].scale
        scales |= {f"{op.name}.weight": sw[:, None, None, None], f"{op.name}.bias": sw * sx}
        masks[f"{op.name}.weight"] = largest_channels(op, shares.get(number, 0))
    for _ in range(3):
        mode.step(x, labels)
        leaves = {key: each.clone().requires_grad_() for key, each in kept.items()}
        used = {key: through(leaf, leaf.round()) if key in masks else leaf for key, leaf in leaves.items()}
        loss = F.cross_entropy(independent(graph, x, used, mode.head), labels)
        for key, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            kept[key] -= lr * gradient * masks.get(key, 1) / scales.get(key, torch.ones(())) ** 2
    expected = {f"{op.name}.bias" for op in layers[len(layers) - depth :]} | {"head.weight", "head.bias"}
    assert kept.keys() == expected | {f"{layers[number].name}.weight" for number in shares}
    for key, parameter in mode.parameters.items():
        moved = kept[key] - start[key]
        assert (parameter.kept - start[key] - moved).norm() <= 1e-4 * moved.norm(), key
        if key in masks:
            has_moved = parameter.kept != start[key]
            assert not has_moved[masks[key] == 0].any(), key
            assert has_moved[masks[key] == 1].double().mean() > 0.5, key  # dead outputs have no gradient
    changed = sum(int((mode.parameters[key].used() != start[key]).sum()) for key in masks if key in start)
    assert (changed > 20) == bool(shares)  # so the later steps ran with other integers


@pytest.mark.parametrize(("qas", "is_changed"), [(False, False), (True, True)])
def test_without_scaling_no_integer_weight_changes(qas, is_changed):
    graph = quantized("mobile")
    x, labels = images(32, seed=2)
    mode = FloatMode(graph, full("mobile"), num_classes=4, lr=0.05, qas=qas)
    weights = [
        parameter for key, parameter in mode.parameters.items() if key.endswith("weight") and key != "head.weight"
    ]
    before = [parameter.used() for parameter in weights]
    for _ in range(3):
        mode.step(x, labels)
    changed = sum(int((parameter.used() != old).sum()) for parameter, old in zip(weights, before, strict=True))
    assert (changed > 0) == is_changed


def test_scaling_restores_the_ratio_of_weight_to_gradient():
    graph = quantized("mobile")
    mode = FloatMode(graph, full("mobile"), num_classes=4)
    _, gradients = mode.gradients(*images(1, seed=4))
    raw, scaled = [], []
    for op in weighted_layers(graph):
        parameter, gradient = mode.parameters[f"{op.name}.weight"], gradients[f"{op.name}.weight"].double()
        scale = parameter.scale
        raw.append(torch.log10(parameter.kept.norm() / gradient.norm()).item())
        scaled.append(torch.log10((parameter.kept * scale).norm() / (gradient / scale).norm()).item())
    assert np.mean(raw) - np.mean(scaled) > 3  # scales are near 1e-2: sw**-2 is 4 powers of ten
    assert np.std(raw) < 2


def test_only_selected_input_channels_move():
    graph = quantized("odd")
    names = [op.name for op in weighted_layers(graph)]
    plan = UpdatePlan.from_ratios(graph, 4, {names[1]: 0.5, names[2]: 0.25, names[3]: 0.3})
    mode = FloatMode(graph, plan, num_classes=4, lr=0.1)
    before = {key: parameter.kept.clone() for key, parameter in mode.parameters.items()}
    assert f"{names[0]}.bias" in before
    assert f"{names[0]}.weight" not in before
    for _ in range(2):
        mode.step(*images(16, seed=7))
    for update in plan.layers:
        op = next(op for op in graph.ops if op.name == update.op)
        moved = (mode.parameters[f"{update.op}.weight"].kept != before[f"{update.op}.weight"]).numpy()
        # the input channel that each weight reads, by a walk over outputs
        reads = np.zeros(moved.shape, dtype=int)
        groups, per_group = getattr(op, "groups", 1), moved.shape[1]
        for out in range(moved.shape[0]):
            for index in range(per_group):
                reads[out, index] = out // (moved.shape[0] // groups) * per_group + index
        assert set(np.unique(reads[moved])) == set(update.channels)


def test_a_bias_depth_trains_no_layer_below_it():
    graph = quantized("mobile")
    plan = UpdatePlan(2)
    mode = FloatMode(graph, plan)
    names = [op.name for op in weighted_layers(graph)]
    assert list(mode.parameters) == [f"{names[-2]}.bias", f"{names[-1]}.bias", "head.weight", "head.bias"]
    assert list(mode.freeze(images(2)[0]).tensors) == [graph.ops[graph.ops.index(mode.trained[0])].inputs[0]]


def test_momentum_and_plain_steps_are_torchs_own():
    graph = quantized("residual")
    x, labels = images(8, seed=2)
    for momentum in (0.0, 0.9):
        mode = FloatMode(graph, UpdatePlan.head_only(graph), num_classes=4, lr=0.3, momentum=momentum)
        weight = mode.parameters["head.weight"].kept.clone().requires_grad_()
        bias = mode.parameters["head.bias"].kept.clone().requires_grad_()
        optimizer = torch.optim.SGD([weight, bias], lr=0.3, momentum=momentum)
        tensor = graph.tensors[mode.head.inputs[0]]
        features = (mode.freeze(x).tensors[tensor.name].double() - tensor.zero_point) * tensor.scale
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(features, weight, bias), labels).backward()
            optimizer.step()
            mode.step(x, labels)
        torch.testing.assert_close(mode.parameters["head.weight"].kept, weight.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("storage", "head"), [("float", "float"), ("int16", "integer"), ("int8", "integer")])
def test_training_learns_and_is_repeatable(storage, head):
    graph = quantized("mobile")
    train, test = images(64, seed=11), images(64, seed=12)
    results = []
    for _ in range(2):
        mode = FloatMode(graph, full("mobile"), num_classes=4, lr=0.3, storage=storage, head=head, seed=1)
        losses = mode.fit(*train, epochs=4, batch=8, warmup_epochs=1, seed=1)
        results.append((losses, mode.accuracy(*test)))
    assert results[0] == results[1]
    losses, accuracy = results[0]
    assert losses[-1] < losses[0] / 2
    assert accuracy > 0.9


def test_an_integer_head_starts_as_the_networks_own_and_a_new_one_has_room():
    graph = quantized("residual")
    x, _ = images(12, seed=9)
    own = [FloatMode(graph, UpdatePlan.head_only(graph), head=head, storage="int16") for head in ("float", "integer")]
    logits = [mode.logits(x) for mode in own]
    assert (logits[0].argmax(1) == logits[1].argmax(1)).all()
    real = graph.dequantize(graph.run(x))
    assert np.abs(logits[0].numpy() - real).max() <= 1.5 * graph.tensors[graph.outputs[0]].scale
    fresh = FloatMode(graph, UpdatePlan.head_only(graph), num_classes=7, head="integer", storage="int16")
    assert fresh.parameters["head.weight"].used().abs().max() == 16  # 127 / 8, rounded
    assert fresh.logits(x).shape == (12, 7)


def test_the_schedule_rises_from_zero_and_falls_to_zero():
    graph = quantized("residual")
    mode = FloatMode(graph, UpdatePlan.head_only(graph))
    rates = []
    mode.step = lambda x, labels, rate: rates.append(rate) or 0.0
    mode.fit(*images(16), epochs=4, batch=4, warmup_epochs=1)
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[10] == pytest.approx(0.5)  # half way through 12 steps of cosine
    rates.clear()
    mode.fit(*images(16), epochs=1, batch=4, cosine=False)
    assert rates == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "int4"}, "storage='int4': must be one of float, int16, int8, nearest, truncate"),
        ({"head": "fp"}, "head='fp': must be one of float, integer"),
        ({"num_classes": 1}, "num_classes=1: must be 2 or more"),
        ({"lr": 0}, "lr=0, momentum=0.0: lr must be above 0"),
        ({"momentum": 1}, "momentum=1: lr must be above 0, momentum at least 0 and below 1"),
        ({"rounding": False, "storage": "int16"}, "rounding=False, storage='int16'.*use storage='float'"),
    ],
)
def test_refused_options_name_what_is_allowed(options, message):
    graph = quantized("residual")
    with pytest.raises(ConfigError, match=message):
        FloatMode(graph, UpdatePlan.head_only(graph), **options)


def test_what_has_no_backward_rule_may_lie_below_the_trained_layers_and_nowhere_else():
    graph = quantized("pooled")
    FloatMode(graph, UpdatePlan.last(graph, 1))
    with pytest.raises(UnsupportedOpError, match=r"no backward rule for Lookup.*use bias_depth=1 or less"):
        FloatMode(graph, UpdatePlan.last(graph, 2))
