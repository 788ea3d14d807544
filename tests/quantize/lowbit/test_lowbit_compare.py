"""The table of a comparison: measured figures, rivals at the same stored bits, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lilliput.errors import ConfigError, DataError
from lilliput.quantize import LookupTable, RoundToNearest, SplitConfig, compare, quantize, save_quantized
from lilliput.quantize.lowbit import rivals


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


def test_figures_are_those_of_the_quantized_network(tmp_path):
    model, method = network(), RoundToNearest(bits=3)
    x = torch.randn(50, 48)
    row = compare(model, [method], x)["rtn-3 row"]
    q = quantize(model, method)
    save_quantized(q, tmp_path / "q")
    assert row.file_bytes == (tmp_path / "q").stat().st_size
    assert row.bits_per_weight == q.stored_bits_per_weight()
    pairs = [(model[index].weight, q.module[index].weight) for index in (0, 2)]
    error, square = sum(float((w - d).square().sum()) for w, d in pairs), sum(float(w.square().sum()) for w, _ in pairs)
    assert row.weight_error == pytest.approx(math.sqrt(error / square), rel=1e-5)
    y, z = model(x).detach(), q(x).detach()
    assert row.output_error == pytest.approx(float((y - z).norm() / y.norm()), rel=1e-5)
    assert row.agreement == pytest.approx(float((y.argmax(1) == z.argmax(1)).float().mean()))
    assert row.cosine == pytest.approx(float(nn.functional.cosine_similarity(y, z).mean()), rel=1e-5)
    assert row.quantize_seconds >= 0


def test_a_split_is_held_against_methods_of_the_same_stored_bits():
    table = compare(network(), [SplitConfig()], torch.randn(20, 48))
    assert [row.name for row in table.rows] == ["split-2 row", "rtn-3 row", "rtn-4 row", "lut-12 row"]
    text = str(table)
    assert "bits/weight" in text.splitlines()[0]
    assert "20 output vectors" in text
    alone = compare(network(), [SplitConfig()], torch.randn(20, 48), with_rivals=False)
    assert len(alone.rows) == 1
    named = compare(network(), [RoundToNearest(bits=4), SplitConfig()], torch.randn(20, 48))
    assert sorted(row.name for row in named.rows) == ["lut-12 row", "rtn-3 row", "rtn-4 row", "split-2 row"]


def test_with_labels_a_row_has_its_accuracy():
    model, x = network(), torch.randn(40, 48)
    labels = torch.arange(40) % 5
    table = compare(model, [RoundToNearest(bits=2)], x, labels=labels)
    q = quantize(model, RoundToNearest(bits=2))
    assert table.accuracy == pytest.approx(float((model(x).argmax(1) == labels).float().mean()))
    assert table.rows[0].accuracy == pytest.approx(float((q(x).argmax(1) == labels).float().mean()))
    assert "right %" in str(table)
    assert "right" not in str(compare(model, [RoundToNearest(bits=2)], x))
    with pytest.raises(DataError, match="give one each"):
        compare(model, [RoundToNearest(bits=2)], x, labels=labels[:39])


def test_a_table_is_packed_as_tightly_as_the_split_beside_it():
    for storage, options in (("lut", {}), ("radix", {}), ("dense", {"mask_aware": False})):
        (table,) = [
            rival for rival in rivals(SplitConfig(storage=storage, **options)) if isinstance(rival, LookupTable)
        ]
        assert table.storage == ("radix" if storage == "radix" else "lut")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (SplitConfig(bits=4), ["rtn-5 row", "rtn-6 row", "lut-48 row"]),
        (SplitConfig(bits=8, granularity="tensor"), ["rtn-8 tensor"]),
        (SplitConfig(k=2, bits=1, granularity="group", group_size=32), ["rtn-2 g32", "rtn-3 g32", "lut-4 g32"]),
    ],
)
def test_rivals_follow_the_splits_levels_and_granularity(config, names):
    assert [rival.name for rival in rivals(config)] == names


def test_the_best_table_of_as_many_levels_has_the_least_weight_error():
    table = compare(
        network(),
        [SplitConfig(scale_dtype="float32"), SplitConfig(scale_dtype="float32", fitted=False)],
        torch.randn(9, 48),
    )
    best = table["lut-12 row"].weight_error
    assert best <= table["split-2 row"].weight_error < table["split-2 row members"].weight_error


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, None]:
        return self.layer(x)[:, 0] * scale, None


def test_batches_may_be_tensors_tuples_or_dicts_and_outputs_tuples():
    model = Arguments().eval()
    x = torch.randn(6, 4)
    for data in (x, [(x, 2.0)], [{"x": x, "scale": 3.0}, {"x": x[:2]}]):
        row = compare(model, [LookupTable(levels=2)], data).rows[0]
        assert row.agreement == 1.0
        assert 0 < row.output_error < 2


def test_what_cannot_be_compared_is_refused():
    x = torch.randn(2, 48)
    with pytest.raises(ConfigError, match=r"training mode.*model.eval\(\)"):
        compare(network().train(), [SplitConfig()], x)
    with pytest.raises(ConfigError, match="no config to compare"):
        compare(network(), [], x)
    with pytest.raises(DataError, match="no batch of inputs"):
        compare(network(), [SplitConfig()], [])
    with pytest.raises(KeyError, match="rows are split-2 row"):
        compare(network(), [SplitConfig()], x)["split-3 row"]
