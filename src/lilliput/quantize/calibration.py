"""Ranges of activations from sample data: what each int8 tensor has to cover.

Three methods. *minmax* takes the extremes seen. *percentile* cuts a share of the values off at either end. *mse* cuts where the squared
error of quantizing (rounding inside the range plus clipping outside it) is smallest. The last two look at a histogram of each value,
made in a second pass over the data. Every range is widened to hold zero, so that padding and ReLU are exact.

Source: percentile and MSE calibration as in Krishnamoorthi 2018 (arXiv:1806.08342) and Wu et al. 2020 (arXiv:2004.09602), section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lilliput.errors import ConfigError, DataError
from lilliput.graph import Graph
from lilliput.graph.interpreter import run

Method = Literal["minmax", "percentile", "mse"]
Range = tuple[float, float]

BATCH = 128
"""Most samples that go through the float network at once."""
HISTOGRAM_BINS = 2048


def observe_ranges(
    graph: Graph, batches: Sequence[Tensor], method: str = "minmax", percentile: float | int = 99.99
) -> dict[str, Range]:
    """(lower, upper) of every value of the graph over the batches; lower <= 0 <= upper.

    Args:
        graph: with one input.
        batches: as :func:`calibration_batches` gives them.
        method: "minmax", "percentile" or "mse".
        percentile: 50 to 100; this share of a value's elements lies at or below the upper end, and at or above the lower one.
    Raises:
        ConfigError: unknown method, percentile outside its range.
        DataError: a value of the network becomes NaN or infinite, naming value, module and batch.
    """
    if method not in get_args(Method):
        raise ConfigError(f"calibration method {method!r}: must be one of {', '.join(get_args(Method))}")
    if not 50 < percentile <= 100:
        raise ConfigError(f"percentile={percentile}: must be above 50 and at most 100; try percentile=99.99")
    extremes = _extremes(graph, batches)
    if method == "minmax":
        return extremes
    histograms = {name: Histogram.empty(*extremes[name]) for name in extremes}
    for batch in batches:
        run(graph, (batch,), observe=lambda name, tensor: histograms[name].add(tensor.double().cpu().numpy()))
    if method == "percentile":
        return {name: histogram.percentile(percentile) for name, histogram in histograms.items()}
    return {name: histogram.least_squared_error() for name, histogram in histograms.items()}


def calibration_batches(calibration: Any) -> list[Tensor]:
    """Calibration data of any accepted form as a list of float batches of at most 128 samples.

    Args:
        calibration: one array or tensor with a batch axis, or an iterable (list, data loader) of such batches or of (batch, labels).
    Raises:
        DataError: nothing in it, or a batch that is empty, no float array, NaN or infinite; names the batch.
    """
    items = [calibration] if isinstance(calibration, (Tensor, np.ndarray)) else calibration
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise DataError(
            f"calibration is a {type(calibration).__name__}; must be an array or tensor with a batch axis, "
            "or an iterable of batches or of (batch, labels)"
        )
    batches: list[Tensor] = []
    for index, item in enumerate(items):
        batch = _batch(item, index)
        batches += [part.contiguous() for part in batch.split(BATCH)]
    if not batches:
        raise DataError("calibration is empty; needs at least 1 batch, try 100 to 500 samples of the training data")
    return batches


def check_shapes(batches: Sequence[Tensor], shape: tuple[int, ...], dtype: str) -> None:
    """Refuse batches that the traced input does not fit.

    Raises:
        DataError: naming the first batch that differs, and both shapes.
    """
    for index, batch in enumerate(batches):
        if tuple(batch.shape[1:]) != shape[1:]:
            raise DataError(
                f"calibration batch {index} has shape {list(batch.shape)}; the network takes "
                f"(batch, {', '.join(map(str, shape[1:]))}), with a batch axis first"
            )
    if dtype != "float32":
        raise DataError(f"the network's input is {dtype}; int8 quantization takes float32 inputs")


def is_pixel_grid(batches: Sequence[Tensor]) -> bool:
    """Whether all samples are uint8 pixels over 255: within [0, 1], each a multiple of 1/255."""
    for batch in batches:
        steps = batch.double() * 255
        near = (steps - steps.round()).abs() <= 1e-3
        if not bool((near & (steps >= -1e-3) & (steps <= 255 + 1e-3)).all()):
            return False
    return True


def _batch(item: Any, index: int) -> Tensor:
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item))
    if not isinstance(item, Tensor):
        raise DataError(
            f"calibration batch {index} is a {type(item).__name__}; must be an array or tensor, or (array, labels)"
        )
    if not item.is_floating_point():
        raise DataError(
            f"calibration batch {index} has dtype {str(item.dtype).removeprefix('torch.')}; must be floats "
            "scaled as the network takes them (pixels / 255 for a network trained on that)"
        )
    if item.dim() < 2 or len(item) == 0:
        raise DataError(
            f"calibration batch {index} has shape {list(item.shape)}; needs a batch axis and 1 sample or more"
        )
    item = item.detach().to(torch.float32)
    if not bool(torch.isfinite(item).all()):
        raise DataError(
            f"calibration batch {index} has NaN or infinite values; all must be finite, remove those samples"
        )
    return item


def _extremes(graph: Graph, batches: Sequence[Tensor]) -> dict[str, Range]:
    seen: dict[str, Range] = {}
    for index, batch in enumerate(batches):

        def observe(name: str, tensor: Tensor, index: int = index) -> None:
            lower, upper = (float(each) for each in torch.aminmax(tensor))
            if not np.isfinite([lower, upper]).all():
                raise DataError(
                    f"value '{name}' (module '{graph.values[name].source}') is NaN or infinite on calibration batch {index}, "
                    "though the batch is finite; check the network's weights"
                )
            old = seen.get(name, (0.0, 0.0))
            seen[name] = (min(old[0], lower), max(old[1], upper))

        run(graph, (batch,), observe=observe)
    return seen


@dataclass
class Histogram:
    """Counts and sums of a value's elements in equal bins over its range. Elements equal to zero are many (ReLU) and never err."""

    lower: float
    upper: float
    counts: Float64[np.ndarray, " bins"]
    sums: Float64[np.ndarray, " bins"]

    @classmethod
    def empty(cls, lower: float, upper: float) -> Histogram:
        """No elements yet."""
        return cls(lower, upper, np.zeros(HISTOGRAM_BINS), np.zeros(HISTOGRAM_BINS))

    def add(self, values: Float[np.ndarray, " ..."]) -> None:
        """Count more elements; they lie within the range."""
        values = values.ravel()
        width = (self.upper - self.lower) / HISTOGRAM_BINS or 1.0
        bins = np.clip((values - self.lower) / width, 0, HISTOGRAM_BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=HISTOGRAM_BINS)
        self.sums += np.bincount(bins, weights=values, minlength=HISTOGRAM_BINS)

    def percentile(self, percentile: float | int) -> Range:
        """The range without (100 - percentile) percent of the elements at either end, as fine as the bins."""
        edges = np.linspace(self.lower, self.upper, HISTOGRAM_BINS + 1)
        below = np.cumsum(self.counts) / max(self.counts.sum(), 1.0)
        upper = edges[1 + np.searchsorted(below, percentile / 100 - 1e-12)] if percentile < 100 else self.upper
        lower = edges[np.searchsorted(below, 1 - percentile / 100, side="right")] if percentile < 100 else self.lower
        return min(float(lower), 0.0), max(float(upper), 0.0)

    def least_squared_error(self) -> Range:
        """The range whose 256 codes give the smallest squared error; first the upper end is moved, then the lower."""
        filled = self.counts > 0
        counts, centres = self.counts[filled], self.sums[filled] / self.counts[filled]
        shares = np.linspace(0.2, 1.0, 161)

        def error(lower: float, upper: float) -> float:
            scale = (upper - lower) / 255 or 1.0
            codes = np.clip(np.round(centres / scale), np.round(lower / scale), np.round(upper / scale))
            return float((counts * (centres - codes * scale) ** 2).sum())

        lower, upper = self.lower, self.upper
        upper = min((float(upper * share) for share in shares[::-1]), key=lambda end: error(lower, end))
        lower = min((float(lower * share) for share in shares[::-1]), key=lambda end: error(end, upper))
        return lower, upper
