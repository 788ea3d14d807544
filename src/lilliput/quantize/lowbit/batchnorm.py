"""Batch norms folded into the layers before them, without data.

In evaluation a batch norm multiplies each channel by a number and adds one, which the layer before it can do itself. Which layer comes
before is in no attribute of a module, so forward passes are traced symbolically; where a module's own code can't be traced (it branches
on values), its children are. A batch norm that no single layer feeds stays as it is.

Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2, eq. 14; SplitQuant (arXiv:2501.12428) folds before it splits, so that clusters
see the weights that run.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from lilliput.errors import ConfigError, DataError

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Foldable = nn.Linear | nn.Conv1d | nn.Conv2d


def foldable_pairs(model: nn.Module) -> dict[str, str]:
    """Path of each layer whose only reader is a batch norm -> path of that batch norm.

    Raises:
        ConfigError: such a batch norm is in training mode, so that its numbers are not settled (names it).
    """
    if not any(isinstance(module, BatchNorm) for module in model.modules()):
        return {}
    times_held = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    pairs = {}
    for layer_path, norm_path in _traced_pairs(model, ""):
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        if times_held[id(layer)] > 1 or times_held[id(norm)] > 1 or norm.running_var is None:
            continue
        if norm.training:
            raise ConfigError(
                f"batch norm '{norm_path}' is in training mode, so it can't be folded; "
                "call model.eval() first, or set fold_batchnorm=False"
            )
        pairs[layer_path] = norm_path
    return pairs


def folded(layer: Foldable, norm: BatchNorm) -> Foldable:
    """A layer that computes what both do, with a bias; the given ones are not changed."""
    assert norm.running_mean is not None, "checked by foldable_pairs"
    assert norm.running_var is not None, "checked by foldable_pairs"
    arguments = (layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(*arguments)
    else:
        weight, bias = fuse_conv_bn_weights(*arguments)
    # Without the old parameters in the memo, they would be copied only to be dropped.
    result = copy.deepcopy(layer, {id(layer.weight): weight, id(layer.bias): bias})
    result.weight, result.bias = weight, bias
    return result


class FoldedBatchNorm(nn.Module):
    """Stands where a batch norm was folded into a linear layer; refuses what would make tokens its channels."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The input.

        Raises:
            DataError: the input has three axes, of which BatchNorm1d normalises the middle one and not the layer's outputs.
        """
        if x.dim() != 2:
            raise DataError(
                "a batch norm was folded into the linear layer before it, which is for inputs of (batch, features); "
                f"got {list(x.shape)}; quantize with fold_batchnorm=False"
            )
        return x


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BatchNorm | Foldable) or super().is_leaf_module(m, module_qualified_name)


def _traced_pairs(module: nn.Module, path: str) -> list[tuple[str, str]]:
    if not any(isinstance(each, BatchNorm) for each in module.modules()) or isinstance(module, BatchNorm):
        return []
    try:
        with torch.no_grad():
            graph = _Tracer().trace(module)
    except Exception:  # what a user's code raises on symbols is anything; nothing is lost, its children are asked
        children = module.named_children()
        return [pair for name, child in children for pair in _traced_pairs(child, f"{path}{name}.")]
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(module.get_submodule(node.target), BatchNorm):
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        called_once = calls[node.target] == 1 and calls[before.target] == 1
        if called_once and _is_foldable(module.get_submodule(str(before.target)), module.get_submodule(node.target)):
            pairs.append((f"{path}{before.target}", f"{path}{node.target}"))
    return pairs


def _is_foldable(layer: nn.Module, norm: nn.Module) -> bool:
    if not isinstance(norm, BatchNorm):
        return False
    if isinstance(layer, nn.Linear):
        return isinstance(norm, nn.BatchNorm1d) and norm.num_features == layer.out_features
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and norm.num_features == layer.out_channels
