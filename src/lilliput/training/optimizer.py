"""The optimizers on offer."""

from __future__ import annotations

import torch
from torch import nn

from lilliput.errors import ConfigError
from lilliput.training.config import FitConfig


def make_optimizer(model: nn.Module, config: FitConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a config; only tensors with more than one axis decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("the model has no weights that can be trained; set requires_grad on at least one")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One kernel for all tensors: with a tiny network the optimizer is otherwise a large share of a step.
    is_fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=is_fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=is_fused)
