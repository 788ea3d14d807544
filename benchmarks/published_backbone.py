"""Read the int8 networks of the published training experiments.

They lie in github.com/mit-han-lab/tiny-training as ``algorithm/assets/mcu_models/*.pkl`` (MIT licence) and are not part of this project.
The files are pickles in a zip archive; only numpy arrays and plain values are let in.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lilliput.errors import DataError
from lilliput.quantize.arithmetic import add_multipliers, mean_multiplier
from lilliput.quantize.parameters import BIAS_MAX, channel_multipliers
from lilliput.quantize.qgraph import Add, Clamp, Conv2d, Linear, Mean, QOp, QTensor, QuantizedGraph, Reshape

_ALLOWED = {"_reconstruct", "scalar", "ndarray", "dtype"}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how old pickles spell the bytes of an array
            return super().find_class(module, name)
        if module in ("numpy", "numpy.core.multiarray") and name in _ALLOWED:
            return getattr(np if module == "numpy" else np._core.multiarray, name)
        raise DataError(f"a published backbone holds numpy arrays and plain values; this one wants {module}.{name}")


def load_backbone(path: Path, image: int) -> QuantizedGraph:
    """The network at an image size; input code = pixel - 128, three channels. Its head has 1,000 classes."""
    with zipfile.ZipFile(path) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(inside) as file:
            network = _Arrays(file).load()
    builder = _Builder(path.stem, network["first_conv"], image)
    x = builder.conv("x", network["first_conv"])
    for block in network["blocks"]:
        skip = x
        for part in ("pointwise1", "depthwise", "pointwise2"):
            if block[part] is not None:
                x = builder.conv(x, block[part])
        if block["residual"] is not None:
            x = builder.add(skip, x, block["residual"]["params"])
    if network["feature_mix"] is not None:
        x = builder.conv(x, network["feature_mix"])
    builder.head(x, network["classifier"])
    return QuantizedGraph(path.stem, "x", (builder.ops[-1].name,), builder.tensors, tuple(builder.ops))


class _Builder:
    def __init__(self, name: str, first: dict[str, Any], image: int) -> None:
        params = first["params"]
        self.tensors = {"x": QTensor("x", (image, image, 3), float(params["x_scale"]), int(params["x_zero"]))}
        self.ops: list[QOp] = []

    def conv(self, x: str, layer: dict[str, Any]) -> str:
        kernel = layer["kernel_size"] if isinstance(layer["kernel_size"], tuple) else (layer["kernel_size"],) * 2
        padding = (kernel[0] // 2, kernel[1] // 2) * 2
        stride = (int(layer["stride"]),) * 2
        height, width, _ = self.tensors[x].shape
        shape = tuple(
            (size + before + after - window) // step + 1
            for size, before, after, window, step in zip(
                (height, width), padding[:2], padding[2:], kernel, stride, strict=True
            )
        )
        fields = self._weights(x, layer)
        fields["weight"] = np.ascontiguousarray(np.moveaxis(fields["weight"], 1, -1))
        y = self._tensor((*shape, int(layer["out_channel"])), layer["params"])
        self.ops.append(
            Conv2d(name=y, inputs=(x,), stride=stride, padding=padding, groups=int(layer["groups"]), **fields)
        )
        return y

    def add(self, skip: str, x: str, params: dict[str, Any]) -> str:
        y = self._tensor(self.tensors[x].shape, params)
        multiplier, shift = add_multipliers(self.tensors[skip].scale, self.tensors[x].scale, self.tensors[y].scale)
        self.ops.append(Add(name=y, inputs=(skip, x), multiplier=multiplier, shift=shift, clamp=Clamp()))
        return y

    def head(self, x: str, layer: dict[str, Any]) -> None:
        height, width, channels = self.tensors[x].shape
        same = {"y_scale": self.tensors[x].scale, "y_zero": self.tensors[x].zero_point}
        pooled = self._tensor((1, 1, channels), same)
        multiplier, shift = mean_multiplier(same["y_scale"], same["y_scale"], height * width)
        self.ops.append(Mean(name=pooled, inputs=(x,), multiplier=multiplier, shift=shift))
        flat = self._tensor((channels,), same)
        self.ops.append(Reshape(name=flat, inputs=(pooled,)))
        fields = self._weights(flat, layer)
        fields["weight"] = fields["weight"].reshape(len(fields["weight"]), -1)
        logits = self._tensor((len(fields["weight"]),), layer["params"])
        self.ops.append(Linear(name=logits, inputs=(flat,), **fields))

    def _weights(self, x: str, layer: dict[str, Any]) -> dict[str, Any]:
        params = layer["params"]
        scale = np.asarray(params["w_scales"], dtype=np.float64)
        weight, bias = (np.asarray(params[name], dtype=np.float64) for name in ("weight", "bias"))
        # A channel of hardly any weights has a bias near the end of int32: with twice the scale, half of both.
        magnitude = np.abs(weight).reshape(len(weight), -1).sum(axis=1)
        coarser = 2.0 ** np.ceil(np.log2(np.maximum(1, (np.abs(bias) + 256 * magnitude) / BIAS_MAX)))
        weight = np.rint(weight / coarser.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.int8)
        bias, scale = np.rint(bias / coarser).astype(np.int32), scale * coarser
        multiplier, shift = channel_multipliers(self.tensors[x].scale, scale, float(params["y_scale"]))
        return {
            "weight": weight,
            "bias": bias,
            "weight_scale": scale,
            "multiplier": multiplier,
            "shift": shift,
        }

    def _tensor(self, shape: tuple[int, ...], params: dict[str, Any]) -> str:
        name = f"t{len(self.ops)}"
        self.tensors[name] = QTensor(name, shape, float(params["y_scale"]), int(params["y_zero"]))
        return name
