"""The same numbers as torchao and optimum-quanto, where they are installed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lilliput.quantize import RoundToNearest, quantize


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 32)).eval()


def ours(**options: object) -> tuple[Tensor, Tensor]:
    """Dequantized weight, and the largest step."""
    layer = quantize(network(), RoundToNearest(scale_dtype="float32", **options)).module[0]  # type: ignore[arg-type]
    return layer.weight, layer.packed.step.max() * layer.packed.gain


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["row", "group"])
@pytest.mark.filterwarnings("ignore")
def test_torchao_rounds_to_the_same_weights(granularity, bits):
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError, reason="torchao is not installed")
    from torchao.quantization.granularity import PerAxis, PerGroup

    shares = PerAxis(0) if granularity == "row" else PerGroup(64)
    for mapping, zero_point in (("ASYMMETRIC", "integer"), ("SYMMETRIC", "middle")):
        config = quantization.IntxWeightOnlyConfig(
            getattr(torch, f"int{bits}"),
            granularity=shares,
            mapping_type=getattr(quantization.MappingType, mapping),
            scale_dtype=torch.float32,
        )
        model = network()
        quantization.quantize_(model, config)
        theirs = model[0].weight.dequantize()
        weight, step = ours(bits=bits, granularity=granularity, group_size=64, zero_point=zero_point)
        difference = (weight - theirs).abs()
        if mapping == "ASYMMETRIC":
            assert torch.equal(weight, theirs)
        else:
            # The largest weight of a set lies half a step from two codes: the last bit of a division decides.
            assert difference.max() <= 1.001 * step
            assert (difference > 1e-6).double().mean() <= 1 / 64


@pytest.mark.parametrize(("bits", "name"), [(2, "qint2"), (4, "qint4")])
@pytest.mark.filterwarnings("ignore")
def test_quanto_rounds_to_the_same_weights(bits, name):
    quanto = pytest.importorskip("optimum.quanto", exc_type=ImportError, reason="optimum-quanto is not installed")
    model = copy.deepcopy(network())
    quanto.quantize(model, weights=getattr(quanto, name))
    quanto.freeze(model)
    # Its groups are of 128 where a row has more, and its zero is a float.
    weight, _ = ours(bits=bits, granularity="group", group_size=128, zero_point="float")
    torch.testing.assert_close(weight, model[0].weight.dequantize(), rtol=0, atol=1e-6)
