"""Quantized networks in files: the same bits back, the bytes that were reported, errors that name the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lilliput.errors import DataError
from lilliput.quantize import (
    HalfQuadratic,
    LookupTable,
    QuantizedModel,
    RoundToNearest,
    SplitConfig,
    load_quantized,
    quantize,
    save_quantized,
)
from lilliput.quantize.lowbit.files import stored_bytes

CONFIGS = [
    SplitConfig(),
    SplitConfig(storage="radix", granularity="tensor"),
    SplitConfig(storage="dense", mask_aware=False, clusters="tensor"),
    SplitConfig(bits=4, granularity="group", scale_dtype="float32"),
    RoundToNearest(bits=3),
    LookupTable(levels=12, storage="radix"),
    HalfQuadratic(bits=2),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(32, 5)).eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name} {config.storage}")
def test_a_saved_network_loads_back_to_the_same_outputs_and_has_the_reported_size(config, tmp_path):
    q = quantize(network(), config)
    path = tmp_path / "q.safetensors"
    save_quantized(q, path)
    assert path.stat().st_size == stored_bytes(q)
    x = torch.randn(2, 7, 32)
    other = network()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(load_quantized(path, like=other)(x), q(x))


def saved(model: nn.Module, path) -> QuantizedModel:
    q = quantize(model, SplitConfig())
    save_quantized(q, path)
    return q


def test_another_architecture_is_refused_by_layer(tmp_path):
    saved(nn.Sequential(nn.Linear(8, 4)), tmp_path / "q")
    with pytest.raises(DataError, match=r"layer '0' has weights of \[4, 8\], the model \[4, 9\]"):
        load_quantized(tmp_path / "q", nn.Sequential(nn.Linear(9, 4)))
    with pytest.raises(DataError, match="has layer '0', which Linear has not"):
        load_quantized(tmp_path / "q", nn.Linear(8, 4))
    with pytest.raises(DataError, match=r"does not fit Sequential: .*1\.weight"):
        load_quantized(tmp_path / "q", nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)))


def test_what_is_no_quantized_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_quantized(tmp_path / "text", nn.Linear(8, 4))
    with pytest.raises(DataError, match="no such file"):
        load_quantized(tmp_path / "none", nn.Linear(8, 4))
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(4, 8)}, tmp_path / "plain")
    with pytest.raises(DataError, match="without packed layers"):
        load_quantized(tmp_path / "plain", nn.Linear(8, 4))
