"""The published simulation of training on the int8 network itself: float32 tensors that hold integers, rounded half to even.

It is what accuracies in the literature were measured with, and what the integer training step is compared with; it is not what a chip runs.
Per layer, with x, w integers, z zero points and eff = sx * sw / sy:

    y = clamp(round((conv(x - zx, round(w)) + b) * eff) + zy)
    g_acc = g_y * [y before the clamp lies within it, ends included] * eff
    g_b = sum g_acc,  g_w = conv_weight_gradient(x - zx, g_acc),  g_x = conv_transpose(g_acc, round(w))

All gradients are with respect to integers; rounding has derivative 1. Where a tensor is read twice, gradients add up. Quantization-aware
scaling divides g_w by sw**2 and g_b by (sx * sw)**2, so that a step on the codes is the step of the real parameters.

What lies before the first trained layer never changes, so :meth:`FloatMode.freeze` computes it once for a data set.

Source: Lin et al. 2022 (arXiv:2206.15472), sections 3.1 and 3.2, and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from lilliput.errors import ConfigError, UnsupportedOpError
from lilliput.mcu.training.float_ops import RULES, identity, layer, rounded
from lilliput.mcu.training.storage import BIASES, REAL, WEIGHTS, Parameter
from lilliput.mcu.training.update_plan import UpdatePlan, head_of, input_channels, weighted_layers
from lilliput.quantize import interpreter
from lilliput.quantize.qgraph import Conv2d, Linear, QOp, QuantizedGraph

Head = Literal["float", "integer"]
HEAD_ROOM = 8.0
"""A new integer head's largest code stands for so many times its largest initial weight."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """A data set as the trained part of the network sees it: every tensor that crosses the cut."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Any) -> Frozen:
        return Frozen({name: tensor[index] for name, tensor in self.tensors.items()})


class FloatMode:
    """An integer network whose planned parameters can be trained, simulated in floating point.

    Args:
        qgraph: ends in a linear layer, the head; a softmax after it is left out.
        plan: what is trained besides the head.
        num_classes: of a new head with seeded weights; ``None`` keeps the network's own.
        lr: learning rate; with ``qas`` that of the real-valued parameters.
        qas: quantization-aware scaling, off for comparison. A head is always trained at the rate of its real-valued weights.
        storage: what trained parameters are kept as between steps; "float" as published, see ``lilliput.mcu.training.storage``.
        momentum: 0 is plain gradient descent.
        head: "float": real weights, as published. "integer": codes with one scale, kept as ``storage`` says, as on the device.
        rounding: off makes every rounding the identity, so that the loss has the derivatives that are computed.
        dtype: float32 as published; float64 for checks by differences.
        seed: of the new head, and of stochastic rounding.
    Raises:
        ConfigError: an option out of range, or a plan that is not one for this network.
        UnsupportedOpError: an operation without a backward rule between a trained parameter and the loss.
    """

    def __init__(
        self,
        qgraph: QuantizedGraph,
        plan: UpdatePlan,
        *,
        num_classes: int | None = None,
        lr: float | int = 0.01,
        qas: bool = True,
        storage: str = "float",
        momentum: float | int = 0.0,
        head: str = "float",
        rounding: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        plan.check(qgraph)
        if storage not in WEIGHTS:
            raise ConfigError(f"storage='{storage}': must be one of {', '.join(WEIGHTS)}")
        if not rounding and storage != "float":
            raise ConfigError(f"rounding=False, storage='{storage}': integers are always rounded; use storage='float'")
        if head not in get_args(Head):
            raise ConfigError(f"head='{head}': must be one of {', '.join(get_args(Head))}")
        if num_classes is not None and num_classes < 2:
            raise ConfigError(f"num_classes={num_classes}: must be 2 or more")
        if not lr > 0 or not 0 <= momentum < 1:
            raise ConfigError(f"lr={lr}, momentum={momentum}: lr must be above 0, momentum at least 0 and below 1")
        self.qgraph, self.plan, self.lr, self.qas = qgraph, plan, float(lr), qas
        self.rounding, self.dtype, self.momentum = rounding, dtype, float(momentum)
        self._generator = torch.Generator().manual_seed(seed)
        self.head = head_of(qgraph)
        layers = weighted_layers(qgraph)
        self.trained = layers[len(layers) - plan.bias_depth :]
        stop = qgraph.ops.index(self.head)
        self._cut = qgraph.ops.index(self.trained[0]) if self.trained else stop
        self._suffix = qgraph.ops[self._cut : stop]
        made = {op.name for op in self._suffix}
        self._crossing = tuple(
            dict.fromkeys(x for op in (*self._suffix, self.head) for x in op.inputs if x not in made)
        )
        barrier = _without_rule(qgraph, self.trained)
        if barrier is not None:
            raise UnsupportedOpError(
                f"training '{qgraph.name}' has no backward rule for {type(barrier).__name__} '{barrier.name}' (module "
                f"'{barrier.source}'), which lies between a trained parameter and the loss; it has rules for Conv2d, Linear, "
                f"{', '.join(kind.__name__ for kind in RULES)}; use bias_depth={deepest(qgraph)} or less"
            )
        self._weights = {
            op.name: self._tensor(_torch_layout(op)) for op in qgraph.ops if isinstance(op, (Conv2d, Linear))
        }
        self.parameters: dict[str, Parameter] = {}
        """Trained parameters: ``"NAME.weight"`` (convolutions as (out, in, row, column)), ``"NAME.bias"``, ``"head.weight"``, ..."""
        self._weight_rule, self._bias_rule = (WEIGHTS[storage], BIASES[storage]) if rounding else (REAL, REAL)
        for op in self.trained:
            self._add_layer(op)
        self._add_head(head, num_classes)

    # data

    def freeze(self, x: Any, batch: int = 64) -> Frozen:
        """The tensors that enter the trained part, for a whole data set; codes are kept as int8, so they cost what they do on a chip.

        Args:
            x: codes or floats, as :meth:`QuantizedGraph.run` takes them.
            batch: samples at once.
        """
        codes = self.qgraph._codes(x)
        parts = [self._prefix(codes[start : start + batch]) for start in range(0, len(codes), batch)]
        kept = torch.int8 if self.rounding else self.dtype
        return Frozen({name: torch.cat([part[name] for part in parts]).to(kept) for name in self._crossing})

    def logits(self, x: Any, batch: int = 256) -> Float[Tensor, "sample class"]:
        """Real-valued logits of a data set, frozen or not."""
        frozen = self._frozen(x)
        with torch.no_grad():
            used = {name: parameter.used().to(self.dtype) for name, parameter in self.parameters.items()}
            return torch.cat([self._forward(frozen[at : at + batch], used) for at in range(0, len(frozen), batch)])

    def accuracy(self, x: Any, labels: Any) -> float:
        """Share of samples whose largest logit is their label's."""
        targets = _labels(labels)
        return float((self.logits(x).argmax(1) == targets).double().mean())

    # training

    def gradients(self, x: Any, labels: Any) -> tuple[float, dict[str, Tensor]]:
        """Mean cross-entropy of a batch, and its gradients with respect to what the forward pass used: codes, before any scaling.

        Of a weight that is trained in part, the gradient elsewhere is 0.
        """
        used = {name: parameter.used().to(self.dtype).requires_grad_() for name, parameter in self.parameters.items()}
        loss = F.cross_entropy(self._forward(self._frozen(x), used), _labels(labels))
        found = torch.autograd.grad(loss, list(used.values()))
        gradients = {name: self.parameters[name].masked(gradient) for name, gradient in zip(used, found, strict=True)}
        return loss.item(), gradients

    def step(self, x: Any, labels: Any, rate: float | int = 1.0) -> float:
        """One step of gradient descent on a batch; ``rate`` multiplies the learning rate. Returns the loss before it."""
        loss, gradients = self.gradients(x, labels)
        for name, parameter in self.parameters.items():
            parameter.step(gradients[name], self.lr * rate, self.momentum, self._generator)
        return loss

    def fit(
        self,
        x: Any,
        labels: Any,
        *,
        epochs: int,
        batch: int = 8,
        warmup_epochs: float | int = 0,
        cosine: bool = True,
        seed: int = 0,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Train on a data set, in an order drawn anew each epoch. Returns each epoch's mean loss.

        Args:
            x: inputs, frozen or not.
            labels: class indices.
            epochs: passes over the data.
            batch: samples a step; the last of an epoch may be smaller.
            warmup_epochs: the rate rises linearly from 0 over so many.
            cosine: afterwards it falls to 0 as a half cosine; else it stays.
            seed: of the order.
            on_epoch: is called with each epoch's number and loss.
        """
        frozen, targets = self._frozen(x), _labels(labels)
        rng = np.random.default_rng(seed)
        per_epoch = -(-len(frozen) // batch)
        total, warmup = epochs * per_epoch, warmup_epochs * per_epoch
        losses = []
        for epoch in range(epochs):
            order = torch.from_numpy(rng.permutation(len(frozen)))
            seen = 0.0
            for index in range(per_epoch):
                chosen = order[index * batch : (index + 1) * batch]
                rate = _rate(epoch * per_epoch + index, total, warmup, cosine)
                seen += self.step(frozen[chosen], targets[chosen], rate) * len(chosen)
            losses.append(seen / len(frozen))
            if on_epoch is not None:
                on_epoch(epoch, losses[-1])
        return losses

    # the network

    def _frozen(self, x: Any) -> Frozen:
        return x if isinstance(x, Frozen) else self.freeze(x)

    def _prefix(self, codes: np.ndarray) -> dict[str, Tensor]:
        live = {self.qgraph.input: self._tensor(codes)}
        with torch.no_grad():
            for op in self.qgraph.ops[: self._cut]:
                live[op.name] = self._evaluate(op, live, {})
        return {name: live[name] for name in self._crossing}

    def _forward(self, frozen: Frozen, used: Mapping[str, Tensor]) -> Tensor:
        live = {name: tensor.to(self.dtype) for name, tensor in frozen.tensors.items()}
        for op in self._suffix:
            live[op.name] = self._evaluate(op, live, used)
        x = self.qgraph.tensors[self.head.inputs[0]]
        features = (live[x.name] - x.zero_point) * x.scale
        # An integer head's codes stand for code * sw and code * sx * sw; a float head's scales are 1.
        weight, bias = self.parameters["head.weight"].scale, self.parameters["head.bias"].scale
        return F.linear(features, used["head.weight"] * weight, used["head.bias"] * bias)

    def _evaluate(self, op: QOp, live: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> Tensor:
        inputs = [live[name] for name in op.inputs]
        x, y = [self.qgraph.tensors[name] for name in op.inputs], self.qgraph.tensors[op.name]
        if isinstance(op, (Conv2d, Linear)):
            weight = used.get(f"{op.name}.weight", self._weights[op.name])
            bias = used.get(f"{op.name}.bias")
            frozen_bias = self._tensor(op.bias) if bias is None else bias
            return layer(inputs[0], weight, frozen_bias, op, x[0], y, self._factor(op), self.rounding)
        if type(op) in RULES:
            return RULES[type(op)](op, inputs, x, y, rounded if self.rounding else identity)
        codes = [each.round().to(torch.int8).numpy() for each in inputs]
        return self._tensor(interpreter.evaluate(op, codes, self.qgraph))

    def _factor(self, op: Conv2d | Linear) -> Tensor:
        return self._tensor(np.ldexp(op.multiplier.astype(np.float64), op.shift.astype(np.int64) - 31))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.dtype)

    # parameters

    def _add_layer(self, op: Conv2d | Linear) -> None:
        scale = torch.from_numpy(op.weight_scale) if self.qas else torch.ones(len(op.bias), dtype=torch.float64)
        input_scale = self.qgraph.tensors[op.inputs[0]].scale if self.qas else 1.0
        self.parameters[f"{op.name}.bias"] = Parameter(torch.from_numpy(op.bias), self._bias_rule, scale * input_scale)
        channels = self.plan.updates().get(op.name)
        if channels is not None:
            weight = torch.from_numpy(_torch_layout(op))
            per_output = scale.reshape(-1, *(1,) * (weight.ndim - 1))
            selected = torch.from_numpy(_selection(op, channels))
            self.parameters[f"{op.name}.weight"] = Parameter(weight, self._weight_rule, per_output, selected)

    def _add_head(self, kind: str, num_classes: int | None) -> None:
        own, x = self.head, self.qgraph.tensors[self.head.inputs[0]]
        if num_classes is None:
            scales = torch.from_numpy(own.weight_scale)
            weight = torch.from_numpy(own.weight).double() * scales[:, None]
            bias = torch.from_numpy(own.bias).double() * x.scale * scales
        else:
            features = own.weight.shape[1]
            draws = torch.rand(num_classes, features + 1, generator=self._generator, dtype=torch.float64)
            real = (2 * draws - 1) / sqrt(features)
            weight, bias = real[:, :-1], real[:, -1]
        one = torch.ones((), dtype=torch.float64)
        if kind == "float":
            self.parameters["head.weight"] = Parameter(weight, REAL, one)
            self.parameters["head.bias"] = Parameter(bias, REAL, one)
            return
        # Room to grow in a new head; its own keeps nearly the codes it has.
        sw = (HEAD_ROOM if num_classes is not None else 1.0) * weight.abs().max() / 127
        codes, bias_codes = (weight / sw).round(), (bias / (sw * x.scale)).round()
        self.parameters["head.weight"] = Parameter(codes, self._weight_rule, sw)
        self.parameters["head.bias"] = Parameter(bias_codes, self._bias_rule, sw * x.scale)


def deepest(qgraph: QuantizedGraph) -> int:
    """The largest bias depth that gradients reach: operations without a backward rule end it."""
    layers = weighted_layers(qgraph)
    depth = 0
    while depth < len(layers) and _without_rule(qgraph, layers[len(layers) - depth - 1 :]) is None:
        depth += 1
    return depth


def _without_rule(qgraph: QuantizedGraph, trained: Sequence[QOp]) -> QOp | None:
    """An operation that a gradient to a trained layer would have to pass and cannot."""
    moving = {op.name for op in trained}
    for op in qgraph.ops[: qgraph.ops.index(head_of(qgraph))]:
        if moving.intersection(op.inputs):
            moving.add(op.name)
            if not isinstance(op, (Conv2d, Linear)) and type(op) not in RULES:
                return op
    return None


def _torch_layout(op: Conv2d | Linear) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(op.weight, 3, 1)) if isinstance(op, Conv2d) else op.weight


def _selection(op: Conv2d | Linear, channels: Sequence[int]) -> np.ndarray:
    """1 for each weight, in torch's layout, that reads a selected input channel."""
    is_selected = np.zeros(input_channels(op), dtype=np.float64)
    is_selected[list(channels)] = 1
    if isinstance(op, Linear):
        return is_selected[None]
    out, _, _, per_group = op.weight.shape
    return np.repeat(is_selected.reshape(op.groups, per_group), out // op.groups, axis=0)[:, :, None, None]


def _rate(step: int, total: int, warmup: float | int, cosine: bool) -> float:
    """The share of the learning rate at a step: from 0 up over the warm-up, then down as half a cosine."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + cos(pi * (step - warmup) / (total - warmup))) if cosine else 1.0


def _labels(labels: Any) -> Int64[Tensor, " sample"]:
    return torch.as_tensor(np.asarray(labels)).long()
