"""Find the layers of a network, and build a copy in which they are replaced.

The copy is ``copy.deepcopy`` with each old layer mapped to its new one beforehand: wherever a layer is held (twice in the tree, in a
list, in an attribute), the copy holds the new one, and weights that are replaced are never copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from lilliput.errors import DataError
from lilliput.quantize.lowbit.attention import PROJECTIONS, ProjectedAttention
from lilliput.quantize.lowbit.batchnorm import BatchNorm, Foldable, FoldedBatchNorm, foldable_pairs, folded
from lilliput.quantize.lowbit.config import LayerKind, Method
from lilliput.quantize.lowbit.layers import Layer

_KINDS: dict[LayerKind, type[nn.Module]] = {
    "Linear": nn.Linear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Embedding": nn.Embedding,
    "MultiheadAttention": nn.MultiheadAttention,
}


@dataclass(frozen=True)
class Plan:
    """What is done to a network before layers are replaced; a file keeps it, so that loading does the same."""

    attention: tuple[str, ...]
    """Paths of the nn.MultiheadAttention modules whose projections become layers."""
    folded: dict[str, str]
    """Path of a layer -> path of the batch norm that was folded into it."""


class Surgery:
    """Layers of one network by path, and what becomes of them."""

    def __init__(self, model: nn.Module, plan: Method | Plan) -> None:
        """``plan``: what a method does before it quantizes, or what it did when a file was written."""
        self.model = model
        self.layers: dict[str, Layer] = {}
        """Every Linear, Conv1d, Conv2d and Embedding by its first path, projections of attention among them."""
        self._attention: dict[str, ProjectedAttention] = {}
        self._origins: dict[str, nn.Module] = {}  # what the model holds at the path of a layer
        self._new: dict[int, nn.Module] = {}
        self._find_layers(plan)
        self._folded = self._fold_batchnorms(plan)

    @property
    def plan(self) -> Plan:
        """What was done before any layer was replaced."""
        return Plan(tuple(self._attention), self._folded)

    def replace(self, path: str, module: nn.Module) -> None:
        """What stands in the copy where the layer of this path stands in the model."""
        owner, _, name = path.rpartition(".")
        if owner in self._attention and name in PROJECTIONS:
            setattr(self._attention[owner], name, module)
        else:
            self._new[id(self._origins[path])] = module

    def substitute(self, path: str, module: nn.Module) -> None:
        """What stands in the copy where any module stands in the model."""
        self._new[id(self.model.get_submodule(path))] = module

    def finish(self) -> Any:
        """The copy."""
        for path, attention in self._attention.items():
            for name in PROJECTIONS:
                if getattr(attention, name) is self.layers[joined(path, name)]:  # not replaced: it still shares memory
                    setattr(attention, name, copy.deepcopy(getattr(attention, name)))
        result = copy.deepcopy(self.model, dict(self._new))
        for module in result.modules():
            parts = module.modules() if isinstance(module, nn.TransformerEncoder) else ()
            if any(isinstance(part, ProjectedAttention) for part in parts):
                cast(Any, module).use_nested_tensor = False  # nested tensors are for the fused path alone
        return result

    def _find_layers(self, plan: Method | Plan) -> None:
        for path, module in self.model.named_modules():
            if type(module) is nn.MultiheadAttention and _is_projected(path, plan):
                attention = self._attention[path] = ProjectedAttention(module)
                self._new[id(module)] = attention
                for name in PROJECTIONS:
                    self.layers[joined(path, name)] = getattr(attention, name)
            # The out_proj of an attention is of that last type: it is found with the attention, or stays with it.
            elif isinstance(module, Layer) and kind_of(module) and type(module) is not NonDynamicallyQuantizableLinear:
                self.layers[path] = _with_plain_weight(module)
                self._origins[path] = module

    def _fold_batchnorms(self, plan: Method | Plan) -> dict[str, str]:
        pairs: dict[str, str] = {}
        if isinstance(plan, Plan):
            pairs = plan.folded
        elif plan.fold_batchnorm:
            pairs = foldable_pairs(self.model)
        modules = dict(self.model.named_modules())
        for path, norm_path in pairs.items():
            layer, norm = self.layers.get(path), modules.get(norm_path)
            if not isinstance(layer, Foldable) or not isinstance(norm, BatchNorm):
                raise DataError(
                    f"layer '{path}' and batch norm '{norm_path}' are not such modules in {type(self.model).__name__}"
                )
            self.layers[path] = self._new[id(layer)] = folded(layer, norm)
            self._new[id(norm)] = FoldedBatchNorm() if isinstance(layer, nn.Linear) else nn.Identity()
        return pairs


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
    kind = "MultiheadAttention" if owner in surgery.plan.attention else kind_of(layer)
    return kind in method.layers and not is_skipped(path, method)


def is_skipped(path: str, method: Method) -> bool:
    """Whether a pattern names the layer or a module that holds it."""
    parts = path.split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in method.skip)


def storage_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tied weights: the same memory, seen the same way."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def inventory(model: nn.Module, surgery: Surgery) -> str:
    """What a network has, for the message that none of it is wanted."""
    kinds = sorted({str(kind_of(layer)) for layer in surgery.layers.values()})
    name = type(model).__name__
    return (
        f"{name} has layers of kind {', '.join(kinds)}"
        if kinds
        else f"{name} has no Linear, Conv1d, Conv2d or Embedding"
    )


def _with_plain_weight(layer: Layer) -> Layer:
    """The layer, or a copy whose weight is a parameter where it is computed anew at each read (weight norm and its like).

    Ties are told by memory, and what is computed anew has none of its own.
    """
    if not parametrize.is_parametrized(layer):
        return layer
    # Torch's own way back to a plain layer edits the class, which copies share with the given layer.
    base = cast(type[Layer], type(layer).__bases__[0])
    plain = base.__new__(base)
    computed = {
        name: nn.Parameter(getattr(layer, name).detach()) for name in cast(nn.ModuleDict, layer.parametrizations)
    }
    plain.__dict__ |= layer.__dict__ | {"_parameters": {**layer._parameters, **computed}, "_modules": {}}
    return plain


def _is_projected(path: str, plan: Method | Plan) -> bool:
    if isinstance(plan, Plan):
        return path in plan.attention
    return "MultiheadAttention" in plan.layers and not (path and is_skipped(path, plan))


def joined(path: str, name: str) -> str:
    """The path of a child; the root's path is empty."""
    return f"{path}.{name}" if path else name
