"""Ranges from data, and the data that is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import Fn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lilliput.errors import ConfigError, DataError
from lilliput.graph import trace
from lilliput.quantize.calibration import Histogram, calibration_batches, is_pixel_grid, observe_ranges


def ranges_of(data: torch.Tensor, method: str = "minmax", percentile: float | int = 99.99) -> tuple[float, float]:
    graph = trace(Fn(torch.relu), data[:1])
    return observe_ranges(graph, calibration_batches(data), method, percentile)["x"]


def test_minmax_takes_the_extremes_over_all_batches() -> None:
    data = torch.zeros(300, 4)
    data[0, 0], data[299, 3] = -2.5, 7.25
    assert ranges_of(data) == (-2.5, 7.25)


def test_ranges_always_hold_zero() -> None:
    assert ranges_of(torch.full((4, 4), 3.0)) == (0.0, 3.0)
    assert ranges_of(torch.full((4, 4), -3.0)) == (-3.0, 0.0)


def test_percentile_drops_outliers_at_both_ends() -> None:
    data = torch.linspace(-1, 1, 100_000).reshape(-1, 10)
    data[0, 0], data[-1, -1] = -50.0, 100.0
    lower, upper = ranges_of(data, "percentile", 99.9)
    # 0.1 percent of the values are above 0.998; the histogram's bins are 150 / 2048 = 0.07 wide.
    assert upper == pytest.approx(0.998, abs=0.08)
    assert lower == pytest.approx(-0.998, abs=0.08)
    assert ranges_of(data, "percentile", 100) == (-50.0, 100.0)


def test_mse_finds_the_range_that_a_search_over_all_pairs_finds() -> None:
    data = torch.from_numpy(np.random.default_rng(0).standard_t(4, size=(2000, 50)))
    data[0, :2] = torch.tensor([40.0, -30.0])

    def error(lower: float, upper: float) -> float:
        scale = (upper - lower) / 255
        codes = torch.clamp(torch.round(data / scale), round(lower / scale), round(upper / scale))
        return float((data - codes * scale).square().mean())

    lower, upper = ranges_of(data.float(), "mse")
    best = min(error(-a, b) for a in np.linspace(5, 30, 26) for b in np.linspace(5, 40, 36))
    assert error(lower, upper) <= 1.1 * best
    # Clipping the outliers pays: the whole range has a quarter more error at least.
    assert error(lower, upper) < 0.8 * error(*(float(end) for end in torch.aminmax(data)))


def test_mse_keeps_a_range_that_is_evenly_filled() -> None:
    lower, upper = ranges_of(torch.linspace(-1, 1, 10_000).reshape(-1, 10), "mse")
    assert (lower, upper) == pytest.approx((-1, 1), abs=0.02)


def test_a_value_that_never_changes_has_a_histogram_too() -> None:
    histogram = Histogram.empty(0.0, 0.0)
    histogram.add(np.zeros(10))
    assert histogram.percentile(99.0) == (0.0, 0.0)
    assert histogram.least_squared_error() == (0.0, 0.0)


def test_data_comes_in_many_forms() -> None:
    x, labels = torch.arange(24.0).reshape(6, 4), torch.arange(6)
    forms: list[Any] = [
        x,
        x.numpy(),
        x.double().numpy(),
        [x[:2], x[2:]],
        [(x[:2], labels[:2]), (x[2:], labels[2:])],
        DataLoader(TensorDataset(x, labels), batch_size=4),
        (batch for batch in x.split(2)),
        [[x.numpy(), labels.numpy()]],
    ]
    for form in forms:
        assert torch.equal(torch.cat(calibration_batches(form)), x)


def test_large_arrays_are_cut_into_batches() -> None:
    assert [len(batch) for batch in calibration_batches(torch.zeros(300, 2))] == [128, 128, 44]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration is empty; needs at least 1 batch, try 100 to 500 samples of the training data"),
        (torch.zeros(0, 4), r"batch 0 has shape \[0, 4\]; needs a batch axis and 1 sample or more"),
        (torch.zeros(4), r"batch 0 has shape \[4\]; needs a batch axis"),
        (
            [torch.zeros(2, 4), torch.full((2, 4), float("nan"))],
            "batch 1 has NaN or infinite values; all must be finite",
        ),
        ([torch.full((2, 4), float("inf"))], "batch 0 has NaN or infinite values"),
        (
            torch.zeros(2, 4, dtype=torch.uint8),
            "batch 0 has dtype uint8; must be floats scaled as the network takes them",
        ),
        (["a.png"], "batch 0 is a str; must be an array or tensor, or"),
        ("images/", "calibration is a str; must be an array or tensor with a batch axis"),
        ({"x": torch.zeros(2, 4)}, "calibration is a dict; must be"),
        (7, "calibration is a int; must be"),
    ],
)
def test_data_that_cannot_calibrate_is_refused(calibration: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibration_batches(calibration)


def test_unknown_methods_and_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="calibration method 'entropy': must be one of minmax, percentile, mse"):
        ranges_of(torch.zeros(2, 2), "entropy")
    with pytest.raises(ConfigError, match=r"percentile=10: must be above 50 and at most 100; try percentile=99\.99"):
        ranges_of(torch.zeros(2, 2), "percentile", 10)


def test_a_network_that_overflows_on_finite_data_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(model[0].weight, 3e38)
    graph = trace(model, torch.ones(1, 2))
    with pytest.raises(
        DataError, match=r"value 'linear_0' \(module '0'\) is NaN or infinite on calibration batch 1, though"
    ):
        observe_ranges(graph, [torch.zeros(1, 2), torch.ones(1, 2)])


def test_pixels_over_255_are_known_by_their_grid() -> None:
    pixels = torch.arange(256).reshape(4, 64)
    assert is_pixel_grid([pixels / 255])
    assert is_pixel_grid([(pixels / 255).double().float()])
    assert not is_pixel_grid([pixels / 255, torch.tensor([[0.5]])])  # 127.5 / 255
    assert not is_pixel_grid([pixels / 255 * 2])
    assert not is_pixel_grid([pixels / 255 - 0.1])
