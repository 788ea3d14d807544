"""A quantized network computes what its dequantized weights say, in every kind of layer, and says what it could not quantize."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from lilliput.errors import ConfigError, DataError
from lilliput.quantize import (
    HalfQuadratic,
    LookupTable,
    QuantizedModel,
    RoundToNearest,
    SplitConfig,
    load_quantized,
    quantize,
    save_quantized,
    split,
)
from lilliput.quantize.lowbit.attention import ProjectedAttention
from lilliput.quantize.lowbit.config import Method
from lilliput.quantize.lowbit.files import stored_bytes
from lilliput.quantize.lowbit.stored import DenseWeight, LutWeight, RadixWeight

METHODS: list[Method] = [
    SplitConfig(),
    SplitConfig(storage="radix", granularity="tensor"),
    SplitConfig(storage="dense", mask_aware=False, clusters="tensor"),
    SplitConfig(bits=8, granularity="group", group_size=7),
    RoundToNearest(bits=3),
    RoundToNearest(bits=1, zero_point="middle"),
    LookupTable(levels=12, storage="radix"),
    HalfQuadratic(bits=2, group_size=16),
]
ids = {"ids": lambda method: f"{method.name} {method.storage}"}


def seeded(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) ** 3 / 5)
    return layer.eval()


LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), (5, 12)),
    "linear, no bias": (lambda: nn.Linear(13, 7, bias=False), (2, 5, 13)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, groups=2), (2, 4, 9, 8)),
    "conv2d, reflect": (lambda: nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="reflect", groups=4), (2, 4, 9, 8)),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (4, 9, 8)),
    "conv1d, circular": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (2, 4, 9)),
}


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@pytest.mark.parametrize("method", METHODS, **ids)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_its_dequantized_weight(name, method):
    make, shape = LAYERS[name]
    layer = seeded(make())
    q = quantize(nn.Sequential(layer), method).use_kernel("torch").module[0]
    weight = q.packed.dequantize()
    assert weight.shape == layer.weight.shape
    x = torch.randn(shape)
    assert torch.equal(q(x), with_weight(layer, weight)(x))
    assert 0 < (weight - layer.weight).norm() < 1.2 * layer.weight.norm()


def test_a_root_that_is_a_layer_is_quantized():
    layer = seeded(nn.Linear(12, 7))
    q = quantize(layer, RoundToNearest(bits=8))
    torch.testing.assert_close(q(torch.eye(12)), layer(torch.eye(12)), rtol=0, atol=0.02)


def test_embeddings_join_when_asked_for():
    model = nn.Sequential(seeded(nn.Embedding(20, 8, padding_idx=1)), seeded(nn.Linear(8, 3)))
    indices = torch.tensor([[0, 19, 1]])
    q = quantize(model, SplitConfig(layers=("Linear", "Embedding")))
    assert list(q.quantized_layers) == ["0", "1"]
    assert torch.equal(q.module[0](indices), q.module[0].weight[indices])
    assert list(quantize(model, SplitConfig()).quantized_layers) == ["1"]


ATTENTION = [
    {}, {"bias": False}, {"batch_first": True}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True}, {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
]  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_attention_shown_as_layers_is_torchs_attention(options, need_weights):
    attention = seeded(nn.MultiheadAttention(8, 2, **options))
    ours = ProjectedAttention(attention)
    first = options.get("batch_first", False)
    q, k, v = (torch.randn(3, n, d) for n, d in ((4, 8), (5, options.get("kdim", 8)), (5, options.get("vdim", 8))))
    if not first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.tensor([[False] * 5, [False, False, True, True, True], [True] + [False] * 4])
    masks: list[dict] = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2)},
        {"attn_mask": torch.randn(6, 4, 5), "key_padding_mask": torch.zeros(3, 5).masked_fill(padding, -torch.inf)},
        {"attn_mask": torch.randn(4, 5), "average_attn_weights": False},
    ]
    for mask in masks:
        got = ours(q, k, v, need_weights=need_weights, **mask)
        expected = attention(q, k, v, need_weights=need_weights, **mask)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-5)
        if need_weights:
            torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-5)
        else:
            assert got[1] is None
    alone = ours(q[:, 0] if not first else q[0], *((x[:, 0] if not first else x[0]) for x in (k, v)))
    expected = attention(q[:, 0] if not first else q[0], *((x[:, 0] if not first else x[0]) for x in (k, v)))
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_a_causal_hint_without_a_mask_is_refused_as_torch_does():
    x = torch.randn(4, 2, 8)
    with pytest.raises(DataError, match="pass the causal mask too"):
        ProjectedAttention(nn.MultiheadAttention(8, 2))(x, x, x, is_causal=True)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("padded", [True, False])
def test_encoders_use_the_packed_weights_in_evaluation_too(mode, padded):
    """Torch's encoder bypasses the forward of its layers in evaluation; the expected outputs are its own, with dequantized weights."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True), 2)
    getattr(encoder, mode)()
    x = torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    for layers in (("Linear", "MultiheadAttention"), ("Linear",), ("MultiheadAttention",)):
        q = quantize(encoder, SplitConfig(layers=layers)).module
        expected = copy.deepcopy(encoder)
        with torch.no_grad():
            for ours, theirs in zip(q.layers, expected.layers, strict=True):
                if "MultiheadAttention" in layers:
                    projections = (ours.self_attn.q_proj, ours.self_attn.k_proj, ours.self_attn.v_proj)
                    theirs.self_attn.in_proj_weight.copy_(torch.cat([each.weight for each in projections]))
                    theirs.self_attn.out_proj.weight.copy_(ours.self_attn.out_proj.weight)
                if "Linear" in layers:
                    theirs.linear1.weight.copy_(ours.linear1.weight)
                    theirs.linear2.weight.copy_(ours.linear2.weight)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that its nested tensors are a prototype
                got, wanted = q(x, src_key_padding_mask=padding), expected(x, src_key_padding_mask=padding)
        kept = slice(None) if padding is None else ~padding
        torch.testing.assert_close(got[kept], wanted[kept], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got[kept], encoder(x, src_key_padding_mask=padding)[kept], atol=1e-3)


class TiedDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.decoder = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, indices: Tensor) -> Tensor:
        return self.decoder(self.inner(self.embedding(indices)))


def test_tied_weights_are_packed_and_stored_once(tmp_path):
    model = seeded(TiedDecoder())
    q = quantize(model, SplitConfig())  # a tied embedding follows its decoder
    assert list(q.quantized_layers) == ["embedding", "inner", "decoder"]
    assert q.module.embedding.packed is q.module.decoder.packed
    assert list(q.stored_weights) == ["embedding", "inner"]
    assert q.quantized_weight_count == 11 * 6 + 6 * 6
    untied = copy.deepcopy(model)
    untied.decoder.weight = nn.Parameter(untied.decoder.weight.detach().clone())
    assert stored_bytes(quantize(untied, SplitConfig(layers=("Linear", "Embedding")))) > stored_bytes(q) + 60
    save_quantized(q, tmp_path / "q")
    back = load_quantized(tmp_path / "q", like=TiedDecoder().eval())
    assert back.module.embedding.packed is back.module.decoder.packed
    assert torch.equal(back(torch.tensor([[3, 10]])), q(torch.tensor([[3, 10]])))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.again = [self.layer]  # held outside the tree of modules as well

    def forward(self, x: Tensor) -> Tensor:
        return self.again[0](self.layer(x))


def test_a_layer_held_in_two_places_is_replaced_in_both():
    q = quantize(seeded(Shared()), SplitConfig())
    assert q.module.again[0] is q.module.layer
    assert list(q.quantized_layers) == ["layer"]


class FunctionalTie(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)

    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.linear(self.embedding(indices), self.embedding.weight)


def test_code_that_reads_a_layers_weight_reads_the_dequantized_one():
    q = quantize(seeded(FunctionalTie()), RoundToNearest(bits=2, layers=("Embedding",)))
    weight = q.module.embedding.packed.dequantize()
    torch.testing.assert_close(q(torch.arange(9)), weight @ weight.T)


def test_weights_that_are_computed_at_each_read_are_not_taken_for_tied(tmp_path):
    """Each read of a parametrized weight may lie where the last one did."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)) for _ in range(4))).eval()
    q = quantize(model, RoundToNearest(bits=8))
    assert len(q.stored_weights) == 4
    x = torch.randn(5, 6)
    torch.testing.assert_close(q(x), model(x), rtol=0, atol=0.03)
    torch.testing.assert_close(split(model, SplitConfig())(x), model(x), rtol=1e-5, atol=1e-5)
    save_quantized(q, tmp_path / "q")
    assert torch.equal(load_quantized(tmp_path / "q", like=model)(x), q(x))


def test_the_model_is_not_changed_and_shares_no_memory():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12), nn.Linear(8, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    q = quantize(model, SplitConfig(skip=("0.self_attn.out_proj",)))
    assert "0.self_attn.out_proj" not in q.quantized_layers
    with torch.no_grad():
        for tensor in (*q.parameters(), *q.buffers()):
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert isinstance(model[0].self_attn, nn.MultiheadAttention)


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (("1",), ["0.0", "0.2"]),
        (("0",), ["1"]),
        (("0.*",), ["1"]),
        (("*.2", "1"), ["0.0"]),
        (("nothing",), ["0.0", "0.2", "1"]),
    ],
)
def test_layers_are_skipped_by_pattern(skip, left):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))
    assert list(quantize(model, SplitConfig(skip=skip)).quantized_layers) == left


def test_quantizing_twice_gives_the_same_bytes():
    model = nn.Sequential(seeded(nn.Linear(40, 30)))
    for method in METHODS:
        torch.manual_seed(1)
        once = quantize(model, method).state_dict()
        torch.manual_seed(2)
        again = quantize(model, method).state_dict()
        assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_floats_keep_their_type(dtype):
    model = nn.Sequential(seeded(nn.Linear(16, 8)), seeded(nn.Conv1d(8, 4, 1))).to(dtype)
    model = nn.Sequential(model[0], nn.Unflatten(1, (8, 1)), model[1])
    q = quantize(model, RoundToNearest(bits=8))
    x = torch.randn(3, 16, dtype=dtype)
    assert q(x).dtype == dtype
    torch.testing.assert_close(q(x), model(x), rtol=0.1, atol=0.1)


def test_gradients_reach_inputs_and_biases():
    q = quantize(nn.Sequential(seeded(nn.Linear(6, 3))), SplitConfig())
    x = torch.randn(2, 6, requires_grad=True)
    q(x).sum().backward()
    torch.testing.assert_close(x.grad, q.module[0].weight.sum(dim=0).expand(2, 6))
    assert q.module[0].bias.grad.tolist() == [2.0] * 3


# Bits of a weight by the definition of each storage, for rows of 384 and no bias: codes, and float16 steps and starts.
BITS = [
    (SplitConfig(), LutWeight, 4 + 3 * 32 / 384),
    (SplitConfig(mask_aware=False), LutWeight, 4 + 3 * 24 / 384),
    (SplitConfig(storage="radix"), RadixWeight, 174 * 8 / 384 + 3 * 32 / 384),  # 77 words of 18 bits are 174 bytes
    (SplitConfig(mask_aware=False, storage="dense"), DenseWeight, 6 + 3 * 24 / 384),
    (SplitConfig(bits=4, scale_dtype="float32"), LutWeight, 6 + 3 * 64 / 384),
    (RoundToNearest(bits=3), LutWeight, 3 + 24 / 384),
    (RoundToNearest(bits=4, granularity="tensor"), LutWeight, 4),
    (LookupTable(levels=12), LutWeight, 4 + 12 * 16 / 384),
    (HalfQuadratic(bits=3), LutWeight, 3 + 32 / 64),
]


@pytest.mark.parametrize(("method", "kind", "bits"), BITS, ids=lambda each: getattr(each, "name", ""))
def test_reported_bits_are_those_of_the_file(method, kind, bits, tmp_path):
    torch.manual_seed(0)
    q = quantize(nn.Sequential(nn.Linear(384, 1024, bias=False)), method)
    assert isinstance(q.module[0].packed, kind)
    assert q.stored_bits_per_weight() == pytest.approx(bits, rel=1e-3)
    save_quantized(q, tmp_path / "q")
    assert (tmp_path / "q").stat().st_size * 8 / (384 * 1024) == pytest.approx(q.stored_bits_per_weight(), rel=0.02)


def test_nibbles_take_at_most_4_point_3_bits_from_384_inputs():
    for columns in (384, 1536):
        q = quantize(nn.Sequential(nn.Linear(columns, 64)), SplitConfig())
        assert q.stored_bits_per_weight() <= 4.3


REFUSED = [
    (
        nn.Sequential(nn.ReLU()),
        ConfigError,
        "no layer to quantize: Sequential has no Linear, Conv1d, Conv2d or Embedding",
    ),
    (nn.Sequential(nn.Embedding(3, 2)), ConfigError, "has layers of kind Embedding; the config takes Linear"),
    (nn.Sequential(nn.Linear(3, 2, device="meta")), DataError, "layer '0' is on the meta device"),
    (nn.ModuleDict({"head": nn.Linear(0, 2)}), DataError, "layer 'head' has no weights"),
]


@pytest.mark.parametrize(("model", "error", "message"), REFUSED)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_cannot_be_quantized_is_named(model, error, message):
    with pytest.raises(error, match=message):
        quantize(model, SplitConfig())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named_by_layer(value):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 1, enable_nested_tensor=False)
    with torch.no_grad():
        model.layers[0].self_attn.in_proj_weight[9, 3] = value
    with pytest.raises(
        DataError, match=r"layer 'layers.0.self_attn.k_proj' has 1 NaN or infinite weights of 64; skip="
    ):
        quantize(model, SplitConfig())
    quantize(model, SplitConfig(skip=("layers.0.self_attn.k_proj",)))


def test_integer_weights_are_named_by_layer():
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DataError, match="layer '0' has weights of torch.int8; needs floating point"):
        quantize(model, SplitConfig())


def test_print_shows_levels_and_bits():
    text = str(quantize(nn.Sequential(nn.Linear(384, 8)), SplitConfig()))
    assert "3,072 weights at 4.2" in text
    assert "LutWeight([8, 384], 12 levels" in text
    assert isinstance(quantize(nn.Sequential(nn.Linear(384, 8)), SplitConfig()), QuantizedModel)
