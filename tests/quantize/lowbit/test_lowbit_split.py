"""Splitting a network changes none of its outputs, whatever its layers; what other implementations get wrong is a case here."""

from __future__ import annotations

import copy
import itertools
import struct

import pytest
import torch
from torch import Tensor, nn

from lilliput.errors import ConfigError, DataError
from lilliput.quantize import RoundToNearest, SplitConfig, quantize, split
from lilliput.quantize.lowbit.attention import ProjectedAttention
from lilliput.quantize.lowbit.split import SplitLayer, masked_parts


def outliers(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) ** 3)
    return layer


def zero_bias(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        outliers(layer).bias.zero_()
    return layer


def constant_bias(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        outliers(layer).bias.fill_(0.5)
    return layer


LAYERS = {
    "linear": (lambda: outliers(nn.Linear(12, 7)), (5, 12)),
    "linear, three axes": (lambda: outliers(nn.Linear(12, 7)), (2, 5, 12)),
    # The published code meets a zero bias and leaves the layer whole, without a word.
    "linear, zero bias": (lambda: zero_bias(nn.Linear(12, 7)), (5, 12)),
    "linear, constant bias": (lambda: constant_bias(nn.Linear(12, 7)), (5, 12)),
    "linear, no bias": (lambda: outliers(nn.Linear(12, 7, bias=False)), (5, 12)),
    "linear, one output": (lambda: outliers(nn.Linear(12, 1)), (5, 12)),
    # Its path for convolutions raises TypeError.
    "conv2d": (lambda: outliers(nn.Conv2d(4, 6, 3)), (2, 4, 9, 8)),
    "conv2d, groups, stride, dilation": (
        lambda: outliers(nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)),
        (2, 4, 9, 8),
    ),
    "conv2d, depthwise, reflect": (
        lambda: outliers(nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect")),
        (2, 4, 9, 8),
    ),
    "conv2d, same": (lambda: zero_bias(nn.Conv2d(4, 6, (2, 3), padding="same")), (2, 4, 9, 8)),
    "conv1d, circular": (lambda: outliers(nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular")), (2, 4, 9)),
    "conv1d, groups, dilation": (lambda: outliers(nn.Conv1d(4, 6, 3, groups=2, dilation=3)), (2, 4, 9)),
}


@pytest.mark.parametrize("clusters", ["tensor", "row", "group"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_parts_outputs_add_up_to_the_layers(name, clusters):
    make, shape = LAYERS[name]
    layer = make().eval()
    config = SplitConfig(clusters=clusters, granularity="group", group_size=5)
    parts = split(nn.Sequential(layer), config)
    assert isinstance(parts[0], SplitLayer)
    assert [type(part) for part in parts[0].parts] == [type(layer)] * 3
    x = torch.randn(shape)
    y = layer(x)
    assert (parts(x) - y).abs().max() <= 1e-5 * y.abs().max()  # three sums instead of one: float32 reassociation


def bits_of(x: Tensor) -> list[int]:
    return [struct.unpack("<I", struct.pack("<f", value))[0] for value in x.flatten().tolist()]


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("clusters", ["tensor", "row"])
def test_the_masked_weights_are_disjoint_and_add_up_bit_for_bit(clusters, k):
    torch.manual_seed(0)
    weight = torch.randn(7, 40) ** 3
    weight[0, :4] = torch.tensor([0.0, -0.0, 1e-42, -1e-42])  # both zeros and subnormals
    parts = masked_parts(weight, SplitConfig(k=k, clusters=clusters))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert bits_of(total) == bits_of(weight)
    assert (sum((part != 0).int() for part in parts) == (weight != 0).int()).all()
    ranges = [(float(part[part != 0].min()), float(part[part != 0].max())) for part in parts]
    if clusters == "tensor":
        assert all(below[1] < above[0] for below, above in itertools.pairwise(ranges))


def test_a_split_layer_reads_as_the_original():
    layer = outliers(nn.Linear(12, 7))
    parts = split(nn.Sequential(layer), SplitConfig())[0]
    assert bits_of(parts.weight) == bits_of(layer.weight)
    assert torch.equal(parts.bias, layer.bias)


def test_embeddings_are_split_when_asked_for():
    model = nn.Sequential(outliers(nn.Embedding(9, 6, padding_idx=2)))
    indices = torch.tensor([[0, 8, 2]])
    parts = split(model, SplitConfig(layers=("Embedding",)))
    assert isinstance(parts[0], SplitLayer)
    assert torch.equal(parts(indices), model(indices))
    with pytest.raises(ConfigError, match="no layer to split: Sequential has layers of kind Embedding"):
        split(model, SplitConfig())


def test_attention_is_split_with_its_output_projection():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    parts = split(nn.ModuleDict({"attention": attention}), SplitConfig())["attention"]
    assert isinstance(parts, ProjectedAttention)
    assert all(isinstance(getattr(parts, name), SplitLayer) for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
    x = torch.randn(2, 5, 16)
    for ours, theirs in zip(parts(x, x, x), attention(x, x, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_tied_layers_share_their_parts():
    first, second = outliers(nn.Linear(6, 6)), nn.Linear(6, 6)
    second.weight = first.weight
    parts = split(nn.Sequential(first, second, first), SplitConfig())
    assert parts[0] is parts[2]
    for mine, other in zip(parts[0].parts, parts[1].parts, strict=True):
        assert mine.weight is other.weight


def test_every_run_splits_alike():
    weight = outliers(nn.Linear(40, 30)).weight.detach()
    torch.manual_seed(1)
    once = masked_parts(weight, SplitConfig())
    torch.manual_seed(2)
    again = masked_parts(weight, SplitConfig())
    assert all(torch.equal(mine, other) for mine, other in zip(once, again, strict=True))


def test_quantizing_the_parts_by_any_means_is_the_published_method():
    model = nn.Sequential(outliers(nn.Linear(24, 9)))
    for granularity in ("tensor", "row"):
        config = SplitConfig(granularity=granularity, clusters="tensor", mask_aware=False, storage="dense")
        parts = quantize(split(model, config), RoundToNearest(bits=2, granularity=granularity)).module[0].parts
        packed = quantize(model, config).module[0].packed
        for index, part in enumerate(parts):
            assert torch.equal(part.weight, packed.part(index))


ACTIVATIONS = [
    nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.GELU(), nn.Sigmoid(), nn.ELU(), nn.SiLU(), nn.Tanh(), nn.Hardswish(),
]  # fmt: skip


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: type(activation).__name__)
def test_activations_of_one_value_are_cut_without_effect_and_into_uneven_parts(activation, dim):
    name = type(activation).__name__
    model = nn.Sequential(nn.Conv2d(3, 7, 1), activation, nn.Conv2d(7, 2, 1)).eval()
    parts = split(model, SplitConfig(activations=(name,), activation_dim=dim))
    sizes: list[int] = []
    for part in parts[1].parts:
        part.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[dim]))
    x = torch.randn(2, 3, 4, 5)
    y = parts(x)
    y.sum().backward()  # in-place activations of views would raise here
    torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)
    assert sizes == ([3, 2, 2] if dim == 1 else [2, 2, 1])


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "PReLU", "GLU", "Dropout", "LayerNorm"])
def test_what_looks_at_more_than_one_value_is_not_cut(name):
    with pytest.raises(ConfigError, match=f"activation {name} is not known to act on each value alone"):
        SplitConfig(activations=(name,))


def test_activations_stay_whole_unless_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Softmax(dim=1))
    assert [type(layer) for layer in split(model, SplitConfig())] == [SplitLayer, nn.ReLU, nn.Softmax]


def test_the_model_itself_is_not_touched():
    model = nn.Sequential(outliers(nn.Linear(12, 7)), nn.ReLU(inplace=True), nn.BatchNorm1d(7)).eval()
    before = copy.deepcopy(model.state_dict())
    parts = split(model, SplitConfig(activations=("ReLU",)))
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[1].inplace


def test_weights_that_cannot_be_split_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[1, 2] = torch.nan
    with pytest.raises(DataError, match="layer '1' has 1 NaN or infinite weights of 16"):
        split(model, SplitConfig())
