"""Batch norms are folded where that changes nothing, and left where it would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lilliput.errors import ConfigError, DataError
from lilliput.quantize import RoundToNearest, SplitConfig, load_quantized, quantize, save_quantized, split
from lilliput.quantize.lowbit.batchnorm import foldable_pairs

FINE = RoundToNearest(bits=8, zero_point="float", granularity="group", group_size=2, scale_dtype="float32")
"""So fine that a fold into the wrong layer shows."""


def lively(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return y + self.norm2(self.conv2(y))


class Branches(nn.Module):
    """Its own code looks at values, so only its children can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv, self.norm = Block(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return self.norm(self.conv(y)) if y.sum() > -1e9 else y


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)))


IMAGE = (2, 3, 6, 6)
NETWORKS = [
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGE, {"0": "1"}),
    (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 6), {"0": "1"}),
    (lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()), (5, 3), {"0": "1"}),
    (Block, IMAGE, {"conv1": "norm1", "conv2": "norm2"}),
    (lambda: nn.Sequential(Block(), nn.Conv2d(4, 2, 1)), IMAGE, {"0.conv1": "0.norm1", "0.conv2": "0.norm2"}),
    (Branches, IMAGE, {"block.conv1": "block.norm1", "block.conv2": "block.norm2"}),
    (TwoReaders, IMAGE, {}),
    (UsedTwice, IMAGE, {}),
    (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), IMAGE, {}),
    (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), IMAGE, {}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape", "pairs"), NETWORKS)
def test_a_fold_changes_no_output(make, shape, pairs, tmp_path):
    model = lively(make())
    assert foldable_pairs(model) == pairs
    x = torch.randn(shape)
    y = model(x)
    q = quantize(model, FINE)
    assert q.plan.folded == pairs
    left = sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in q.modules())
    assert left == sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules()) - len(pairs)
    torch.testing.assert_close(q(x), y, rtol=0, atol=0.02 * float(y.abs().max()))
    torch.testing.assert_close(split(model, SplitConfig())(x), y, rtol=1e-4, atol=1e-4)
    save_quantized(q, tmp_path / "q")
    assert torch.equal(load_quantized(tmp_path / "q", like=make().eval())(x), q(x))


def test_levels_are_those_of_the_folded_weights():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    norm = model[1]
    expected = model[0].weight * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).reshape(4, 1, 1, 1)
    torch.testing.assert_close(quantize(model, FINE).module[0].weight, expected, rtol=0, atol=0.01)
    kept = quantize(model, RoundToNearest(bits=8, fold_batchnorm=False))
    torch.testing.assert_close(kept.module[0].weight, model[0].weight, rtol=0, atol=0.01)


def test_a_skipped_layer_is_folded_and_stays_float():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    q = quantize(model, RoundToNearest(bits=8, skip=("0",)))
    x = torch.randn(IMAGE)
    torch.testing.assert_close(q.module[0](x), model[:2](x), rtol=1e-4, atol=1e-5)


def test_a_norm_in_training_mode_is_named():
    with pytest.raises(ConfigError, match=r"batch norm '1' is in training mode.*model.eval\(\)"):
        quantize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), SplitConfig())


def test_a_norm_over_tokens_is_not_mistaken_for_one_over_features():
    """Tokens and features are both 4: the shapes alone can't tell, so the folded network refuses such an input."""
    model = lively(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    q = quantize(model, SplitConfig())
    with pytest.raises(
        DataError, match=r"for inputs of \(batch, features\); got \[2, 4, 4\]; quantize with fold_batchnorm=False"
    ):
        q(torch.randn(2, 4, 3))
    assert quantize(model, SplitConfig(fold_batchnorm=False))(torch.randn(2, 4, 3)).shape == (2, 4, 4)
