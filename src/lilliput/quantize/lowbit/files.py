"""Quantized networks in safetensors files.

The file holds the state dict of the network: ``PATH.packed.codes``, ``.step``, ``.start`` or ``.zero``, ``.gain`` for each packed weight,
and everything else (biases, norms, what was not quantized) as it is. Tied tensors are written once. Its metadata has one entry,
``lilliput``, of JSON: the version, the layout of each packed layer, and which names are tied to which.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from lilliput.errors import DataError
from lilliput.quantize.lowbit.layers import quantized_layer
from lilliput.quantize.lowbit.model import QuantizedModel
from lilliput.quantize.lowbit.rebuild import Plan, Surgery, storage_key
from lilliput.quantize.lowbit.stored import Layout, StoredWeight, from_tensors

_VERSION = 1


def save_quantized(model: QuantizedModel, path: str | Path) -> None:
    """Write a quantized network; :func:`load_quantized` reads it back to the same bits."""
    tensors, metadata = _content(model)
    save_file(tensors, str(path), metadata)


def stored_bytes(model: QuantizedModel) -> int:
    """The exact size of the file that :func:`save_quantized` writes."""
    return len(save(*_content(model)))


def load_quantized(path: str | Path, like: nn.Module) -> QuantizedModel:
    """Read a quantized network.

    Args:
        path: of a file that :func:`save_quantized` wrote.
        like: a network of the same architecture, before it was quantized; its weights do not matter and are not changed.
    Raises:
        DataError: not such a file, of a later version, or of another architecture (names the layer).
    """
    tensors, about = _read(Path(path))
    surgery = Surgery(like, Plan(tuple(about["attention"]), about["folded"]))
    stored: dict[str, StoredWeight] = {}
    for name, fields in about["layers"].items():
        if name not in surgery.layers:
            raise DataError(
                f"{path}: has layer '{name}', which {type(like).__name__} has not; pass the model that was quantized"
            )
        layer = surgery.layers[name]
        layout = Layout(**{**fields, "shape": tuple(fields["shape"])})
        if tuple(layer.weight.shape) != layout.shape:
            raise DataError(
                f"{path}: layer '{name}' has weights of {list(layout.shape)}, the model {list(layer.weight.shape)}"
            )
        owner = about["tied"].get(name, name)
        if owner not in stored:
            parts = {
                key: tensors[f"{owner}.packed.{key}"]
                for key in StoredWeight.tensor_names
                if f"{owner}.packed.{key}" in tensors
            }
            stored[owner] = from_tensors(layout, parts, owner)
        surgery.replace(name, quantized_layer(layer, stored[owner]))
    result = QuantizedModel(surgery.finish(), surgery.plan)
    aliases = {name: tensors[first] for name, first in about["aliases"].items() if first in tensors}
    try:
        result.module.load_state_dict({**tensors, **aliases})
    except RuntimeError as error:
        raise DataError(f"{path}: does not fit {type(like).__name__}: {' '.join(str(error).split())}") from None
    return result


def _content(model: QuantizedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in model.module.state_dict().items():
        key = storage_key(tensor)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.contiguous()
    owners = {id(packed): path for path, packed in model.stored_weights.items()}
    layers = {path: asdict(layer.packed.layout) for path, layer in model.quantized_layers.items()}
    tied = {path: owners[id(layer.packed)] for path, layer in model.quantized_layers.items()}
    about = {
        "version": _VERSION,
        "layers": layers,
        "tied": {path: owner for path, owner in tied.items() if path != owner},
        "aliases": aliases,
        "attention": model.plan.attention,
        "folded": model.plan.folded,
    }
    return tensors, {"lilliput": json.dumps(about, separators=(",", ":"))}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; save_quantized(model, path) writes one")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); write it again with save_quantized") from None
    if "lilliput" not in metadata:
        raise DataError(f"{path}: a safetensors file without packed layers; save_quantized(model, path) writes them")
    about = json.loads(metadata["lilliput"])
    if about["version"] > _VERSION:
        raise DataError(f"{path}: of version {about['version']}, this package reads up to {_VERSION}; upgrade lilliput")
    return tensors, about
