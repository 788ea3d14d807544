"""Find the layers of a network, and build a copy in which they are replaced.

The copy is ``copy.deepcopy`` with each old layer mapped to its new one beforehand: wherever a layer is held (twice in the tree, in a
list, in an attribute), the copy holds the new one, and weights that are replaced are never copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lilliput.quantize.lowbit.attention import PROJECTIONS, ProjectedAttention
from lilliput.quantize.lowbit.config import LayerKind, Method
from lilliput.quantize.lowbit.layers import Layer

_KINDS: dict[LayerKind, type[nn.Module]] = {
    "Linear": nn.Linear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Embedding": nn.Embedding,
    "MultiheadAttention": nn.MultiheadAttention,
}


class Surgery:
    """Layers of one network by path, and what becomes of them."""

    def __init__(self, model: nn.Module, is_projected: Callable[[str, nn.MultiheadAttention], bool]) -> None:
        """``is_projected``: which attention modules show their projections as layers."""
        self.model = model
        self.attention: dict[str, ProjectedAttention] = {}
        """Attention modules that will be replaced, by path."""
        self.layers: dict[str, Layer] = {}
        """Every Linear, Conv1d, Conv2d and Embedding by its first path, projections of ``attention`` among them."""
        self._new: dict[int, nn.Module] = {}
        for path, module in model.named_modules():
            if type(module) is nn.MultiheadAttention and is_projected(path, module):
                attention = self.attention[path] = ProjectedAttention(module)
                self._new[id(module)] = attention
                for name in PROJECTIONS:
                    self.layers[joined(path, name)] = getattr(attention, name)
            elif isinstance(module, Layer) and kind_of(module) is not None:
                self.layers.setdefault(path, module)
        # A projected attention's out_proj is met again as the attention's child, after the attention itself.

    def replace(self, path: str, module: nn.Module) -> None:
        """What stands in the copy where the layer of this path stands in the model."""
        old = self.layers[path]
        self._new[id(old)] = module
        for attention_path, attention in self.attention.items():
            for name in PROJECTIONS:
                if joined(attention_path, name) == path:
                    setattr(attention, name, module)

    def finish(self) -> Any:
        """The copy."""
        for attention in self.attention.values():
            for name in PROJECTIONS:
                layer = getattr(attention, name)
                if id(layer) in {id(each) for each in self.layers.values()}:  # not replaced: still shares memory
                    setattr(attention, name, copy.deepcopy(layer))
        result = copy.deepcopy(self.model, dict(self._new))
        for module in result.modules():
            if isinstance(module, nn.TransformerEncoder) and any(
                isinstance(each, ProjectedAttention) for each in module.modules()
            ):
                module.use_nested_tensor = False  # nested tensors are for the fused path alone
        return result


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer; subclasses count as long as they compute what the kind does."""
    for name, kind in _KINDS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return name
    return None


def chosen(surgery: Surgery, method: Method) -> Iterator[tuple[str, Layer]]:
    """The layers that a method quantizes: of its kinds, not skipped, or tied to one that is chosen."""
    keys = set()
    for path, layer in surgery.layers.items():
        if is_wanted(surgery, method, path, layer):
            keys.add(storage_key(layer.weight))
    for path, layer in surgery.layers.items():
        if storage_key(layer.weight) in keys:
            yield path, layer


def is_wanted(surgery: Surgery, method: Method, path: str, layer: Layer) -> bool:
    """Of a kind that the method quantizes, and not skipped by name."""
    owner = path.rpartition(".")[0]
    kind = "MultiheadAttention" if owner in surgery.attention else kind_of(layer)
    return kind in method.layers and not is_skipped(path, method)


def is_skipped(path: str, method: Method) -> bool:
    """Whether a pattern names the layer or a module that holds it."""
    parts = path.split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in method.skip)


def storage_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tied weights: the same memory, seen the same way."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def joined(path: str, name: str) -> str:
    """The path of a child; the root's path is empty."""
    return f"{path}.{name}" if path else name
