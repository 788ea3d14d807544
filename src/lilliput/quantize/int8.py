"""From a float network to an integer graph, after training (post-training quantization).

The steps, in order: trace; fold batch norms and constants into their neighbours; watch the value ranges on calibration data; lower each
node to an integer operation, channels last. While lowering,

- a ReLU or ReLU6 that alone reads a layer becomes that layer's clamp;
- zero padding that only convolutions read becomes their padding, on each side its own;
- a run of functions of one value (sigmoid, hard-swish, ``x + 3``, ...) becomes one table of 256 codes;
- a value that only a concatenation reads is made in the concatenation's scale; any other input of it is changed by a table;
- a mean over the whole image, however it was spelled, rescales; other average pooling passes codes through;
- flattening an image keeps the device's order (height, width, channel), and the linear layer after it has its columns permuted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from lilliput.errors import ConfigError, DataError, UnsupportedOpError
from lilliput.graph import Graph, trace
from lilliput.graph.ops import RULES
from lilliput.quantize.calibration import calibration_batches, check_shapes, is_pixel_grid, observe_ranges
from lilliput.quantize.fold import fold_affine
from lilliput.quantize.lower import SUPPORTED_OPS, lower
from lilliput.quantize.parameters import Parameters, activation_parameters
from lilliput.quantize.qgraph import QuantizedGraph


def quantize_int8(
    model_or_graph: nn.Module | Graph,
    calibration: Any,
    *,
    method: str = "minmax",
    percentile: float | int = 99.99,
    per_channel: bool = True,
    input_scale: float | int | None = None,
    input_zero_point: int | None = None,
) -> QuantizedGraph:
    """Quantize a trained network to int8 weights and activations.

    Args:
        model_or_graph: a module in evaluation mode, or its graph; one float32 input.
        calibration: an array or tensor with a batch axis, or an iterable of batches or of (batch, labels), as the network takes
            them. 100 to 500 samples of the training data will do.
        method: how ranges are chosen from what was seen: "minmax", "percentile" or "mse".
        percentile: for that method: 50 to 100.
        per_channel: weight scales for each output channel; False gives each layer one, as a baseline.
        input_scale: of the input, with ``input_zero_point``, where the device's sensor fixes them. Left out, inputs that are
            pixels / 255 get 1/255 and -128 (code = pixel - 128), others what the method finds.
        input_zero_point: -128 to 127.
    Returns:
        A graph that runs on integers alone.
    Raises:
        UnsupportedOpError: an operation without an integer rule, by name and module path.
        DataError: calibration that is empty, misshapen, NaN or infinite, or a network with such weights.
        GraphError: a layer whose sums could leave 32 bits.
        ConfigError: an option outside its range.
    Source: Jacob et al. 2018 (arXiv:1712.05877); arithmetic of the TensorFlow Lite int8 specification.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    >>> q = quantize_int8(model, torch.rand(32, 1, 4, 4))
    >>> [type(op).__name__ for op in q.ops], q.run(torch.rand(5, 1, 4, 4)).shape
    (['Conv2d', 'Reshape', 'Linear'], (5, 2))
    """
    forced = _forced_input(input_scale, input_zero_point)
    batches = calibration_batches(calibration)
    graph = _as_graph(model_or_graph, batches[0])
    value = graph.values[graph.inputs[0]]
    _refuse_unsupported(graph)
    _refuse_broken_weights(graph)
    check_shapes(batches, value.shape, value.dtype)
    folded = fold_affine(graph)
    ranges = observe_ranges(folded, batches, method, percentile)
    if forced is None and is_pixel_grid(batches):
        forced = Parameters(float(np.float32(1 / 255)), -128)
    return lower(folded, ranges, forced or activation_parameters(*ranges[value.name]), per_channel)


def _forced_input(scale: float | int | None, zero_point: int | None) -> Parameters | None:
    if scale is None and zero_point is None:
        return None
    if scale is None or zero_point is None:
        raise ConfigError(
            f"input_scale={scale}, input_zero_point={zero_point}: give both or neither; for pixels / 255 give 1/255 and -128"
        )
    if not (np.isfinite(scale) and scale > 0):
        raise ConfigError(f"input_scale={scale}: must be above 0 and finite")
    if not -128 <= zero_point <= 127:
        raise ConfigError(f"input_zero_point={zero_point}: must be -128 to 127")
    return Parameters(float(np.float32(scale)), int(zero_point))


def _as_graph(model_or_graph: nn.Module | Graph, batch: Any) -> Graph:
    if isinstance(model_or_graph, Graph):
        graph = model_or_graph
    else:
        for name, parameter in model_or_graph.named_parameters():
            if parameter.dtype != batch.dtype:
                raise DataError(
                    f"weight '{name}' is {str(parameter.dtype).removeprefix('torch.')} and the calibration data "
                    f"{str(batch.dtype).removeprefix('torch.')}; give the network in float32: model.float()"
                )
        tensor = next(iter(model_or_graph.parameters()), batch)
        graph = trace(model_or_graph, batch[:1].to(tensor.device))
    if len(graph.inputs) != 1:
        raise UnsupportedOpError(
            f"int8 quantization takes networks with one input; '{graph.name}' has {len(graph.inputs)}: {', '.join(graph.inputs)}"
        )
    return graph.replace(weights={name: tensor.detach().cpu() for name, tensor in graph.weights.items()})


def _refuse_unsupported(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op not in SUPPORTED_OPS:
            raise UnsupportedOpError(
                f"int8 quantization has no rule for '{node.op}' (value '{node.name}', module '{node.source}'); "
                f"it has rules for {', '.join(sorted(SUPPORTED_OPS))}"
            )
        if RULES[node.op].mixes_batch(node):
            raise UnsupportedOpError(
                f"int8 quantization: '{node.op}' (value '{node.name}', module '{node.source}') uses axis 0 as more than a batch; "
                "each sample must be computed by itself, with the batch as the first axis"
            )


def _refuse_broken_weights(graph: Graph) -> None:
    for name, tensor in graph.weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DataError(f"weight '{name}' has NaN or infinite values; train again or load another checkpoint")
