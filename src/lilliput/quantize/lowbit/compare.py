"""Methods side by side on one network and the same inputs: what each stores, and what it does to weights and outputs.

SplitQuant at 2 bits and 3 clusters stores 3.6 to 4 bits a weight (6 as three dense tensors), so its fair rivals are methods of 3 and 4 bits
and the best codebook of 12 levels, not 2-bit rounding: :func:`rivals` adds them to a comparison that holds a split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import ConfigError, DataError
from lilliput.quantize.lowbit.config import Method, Storage
from lilliput.quantize.lowbit.files import stored_bytes
from lilliput.quantize.lowbit.lookup_table import LookupTable
from lilliput.quantize.lowbit.model import QuantizedModel, quantize
from lilliput.quantize.lowbit.rebuild import Surgery, storage_key
from lilliput.quantize.lowbit.round_to_nearest import RoundToNearest
from lilliput.quantize.lowbit.splitquant import SplitConfig


@dataclass(frozen=True)
class ComparedMethod:
    """One row of a comparison."""

    name: str
    """Method, bits and granularity: ``split-2 row``."""
    storage: str
    """How symbols are stored."""
    bits_per_weight: float
    """Of the quantized weights, with their steps and tables."""
    file_bytes: int
    """Of the whole network's file."""
    weight_error: float
    """Root of squared errors over root of squares, of all quantized weights."""
    output_error: float
    """The same, of the outputs."""
    cosine: float
    """Mean cosine between each output vector and that of the original."""
    agreement: float
    """Share of output vectors whose largest entry is at the same place; 1.0 for single outputs."""
    quantize_seconds: float
    """Process time that quantizing took."""
    accuracy: float | None = None
    """Share of output vectors whose largest entry is at the label's place; None without labels."""


@dataclass(frozen=True)
class Comparison:
    """A table; ``print`` shows it."""

    float_bytes: int
    """Bytes of the original's state, tied tensors once."""
    outputs: int
    """Output vectors that errors and agreement were measured on."""
    rows: tuple[ComparedMethod, ...]
    """In the order of the configs, rivals last."""
    accuracy: float | None = None
    """Of the original; None without labels."""

    def __getitem__(self, name: str) -> ComparedMethod:
        """The first row of a name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name}: rows are {', '.join(row.name for row in self.rows)}")

    def __str__(self) -> str:
        head = (
            "method",
            "storage",
            "bits/weight",
            "file bytes",
            "weight err",
            "output err",
            "cosine",
            "agree %",
            *(["right %"] if self.accuracy is not None else []),
            "CPU s",
        )
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            lines.append(
                (
                    row.name,
                    row.storage,
                    f"{row.bits_per_weight:.3f}",
                    f"{row.file_bytes:,}",
                    f"{row.weight_error:.4f}",
                    f"{row.output_error:.4f}",
                    f"{row.cosine:.4f}",
                    f"{100 * row.agreement:.2f}",
                    *([f"{100 * row.accuracy:.2f}"] if row.accuracy is not None else []),
                    f"{row.quantize_seconds:.2f}",
                )
            )
        widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
        text = [
            "  ".join(
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        right = "" if self.accuracy is None else f", {100 * self.accuracy:.2f} % right"
        last = f"float: {self.float_bytes:,} bytes{right}; {self.outputs:,} output vectors"
        return "\n".join([*(line.rstrip() for line in text), last])


def compare(
    model: nn.Module, configs: Sequence[Method], data: Any, with_rivals: bool = True, labels: Tensor | None = None
) -> Comparison:
    """Quantize a network by each config and measure.

    Args:
        model: in evaluation mode; called with each batch, its output a tensor or a tuple that starts with one.
        configs: methods, one row each.
        data: one batch (a tensor), or an iterable of batches: a tensor, a tuple of arguments or a dict of them.
        with_rivals: add the rows of :func:`rivals` for every split, unless they are there.
        labels: index of the right entry of each output vector, for accuracies.
    Raises:
        ConfigError: no config, or the model is in training mode.
        DataError: no batch, outputs that are no tensors, or as many labels as there are no output vectors.
    """
    if model.training:
        raise ConfigError("the model is in training mode, where outputs vary; call model.eval() first")
    methods = list(configs)
    if not methods:
        raise ConfigError("no config to compare; try [SplitConfig(), RoundToNearest(bits=4)]")
    if with_rivals:
        for config in list(methods):
            methods += [
                rival for rival in (rivals(config) if isinstance(config, SplitConfig) else []) if rival not in methods
            ]
    batches = [data] if isinstance(data, Tensor) else list(data)
    if not batches:
        raise DataError("no batch of inputs to compare outputs on; pass a tensor, or an iterable of them")
    wanted = _outputs(model, batches)
    if labels is not None and labels.shape != wanted.shape[:1]:
        raise DataError(f"labels of shape {list(labels.shape)} for {len(wanted):,} output vectors; give one each")
    float_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _unique(model.state_dict().values()))
    rows = tuple(_measure(model, method, batches, wanted, labels) for method in methods)
    return Comparison(float_bytes, len(wanted), rows, _accuracy(wanted, labels))


def rivals(config: SplitConfig) -> list[Method]:
    """What a split should be held against: rounding at the whole bits around what it stores, and the best codebook of as many levels."""
    levels = config.k << config.bits
    fewer = min(math.floor(math.log2(levels)), 8)
    shared: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("granularity", "group_size", "scale_dtype", "layers", "skip", "fold_batchnorm")
    }
    result: list[Method] = [RoundToNearest(bits=bits, **shared) for bits in (fewer, fewer + 1) if bits <= 8]
    if levels <= 256:
        packed: Storage = "radix" if config.storage == "radix" else "lut"  # as tightly as the split itself
        result.append(LookupTable(levels=levels, storage=packed, **shared))
    return result


def _measure(
    model: nn.Module, method: Method, batches: list[Any], wanted: Tensor, labels: Tensor | None
) -> ComparedMethod:
    start = time.process_time()
    quantized = quantize(model, method)
    seconds = time.process_time() - start
    outputs = _outputs(quantized, batches)
    return ComparedMethod(
        name=method.name,
        storage=method.storage,
        bits_per_weight=quantized.stored_bits_per_weight(),
        file_bytes=stored_bytes(quantized),
        weight_error=weight_error(model, quantized),
        output_error=float((outputs - wanted).norm() / wanted.norm()),
        cosine=float(F.cosine_similarity(outputs, wanted, dim=1).mean()),
        agreement=float((outputs.argmax(dim=1) == wanted.argmax(dim=1)).double().mean()),
        quantize_seconds=seconds,
        accuracy=_accuracy(outputs, labels),
    )


def _accuracy(outputs: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None else float((outputs.argmax(dim=1) == labels).double().mean())


def weight_error(model: nn.Module, quantized: QuantizedModel) -> float:
    """Root of squared errors over root of squares, of all quantized weights together; tied ones once."""
    surgery = Surgery(model, quantized.plan)
    errors, squares = 0.0, 0.0
    for path, stored in quantized.stored_weights.items():
        weight = surgery.layers[path].weight.detach().double()
        errors += float((stored.dequantize() - weight).square().sum())
        squares += float(weight.square().sum())
    return math.sqrt(errors / squares) if squares else 0.0


def _outputs(model: nn.Module, batches: list[Any]) -> Tensor:
    """Output vectors of all batches, (vectors, features), float64."""
    results = []
    with torch.no_grad():
        for batch in batches:
            output = _called(model, batch)
            if isinstance(output, tuple | list):
                output = output[0]
            if not isinstance(output, Tensor):
                raise DataError(
                    f"the model returns {type(output).__name__}; needs a tensor, or a tuple that starts with one"
                )
            results.append(output.double().reshape(-1, output.shape[-1] if output.dim() > 1 else 1))
    return torch.cat(results)


def _called(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({storage_key(each): each for each in tensors}.values())
