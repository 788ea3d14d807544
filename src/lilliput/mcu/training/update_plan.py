"""Which parameters of an integer network are trained: so many biases from the end, and some input channels of some weights.

Layers with weights are numbered in running order without the head, the last linear layer, which is always trained. A bias needs no stored
activation, a weight needs the input channels it reads; so the two are chosen apart, and a weight by the input channel.

Source: Lin et al. 2022 (arXiv:2206.15472), section 3.2, sparse update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64

from lilliput.errors import ConfigError, UnsupportedOpError
from lilliput.quantize.qgraph import Conv2d, Linear, QuantizedGraph, Reshape, Softmax

Criterion = Literal["magnitude+", "magnitude-", "random"]


@dataclass(frozen=True)
class LayerUpdate:
    """A layer whose weights are trained, in part or whole."""

    op: str
    """Name of a convolution or linear layer."""
    channels: tuple[int, ...]
    """Selected input channels, ascending; of a depthwise convolution its channels."""

    def __post_init__(self) -> None:
        if not self.channels or list(self.channels) != sorted(set(self.channels)) or self.channels[0] < 0:
            raise ConfigError(
                f"update of '{self.op}': channels {self.channels}; must be one or more, ascending, each once"
            )


@dataclass(frozen=True)
class UpdatePlan:
    """What is trained besides the head."""

    bias_depth: int
    """The last so many layers with weights have their biases trained."""
    layers: tuple[LayerUpdate, ...] = ()
    """Layers whose weights are trained, in running order; all within the bias depth."""
    method: str = "given"
    """How it was found."""
    objective: float | None = None
    """Sum of the contributions that a search maximised."""
    objective_bound: float | None = None
    """No plan within the budget has a larger sum; equal to ``objective`` where the search is exact."""
    sram_bytes: int | None = None
    """As counted when it was chosen."""
    flash_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.bias_depth < 0:
            raise ConfigError(f"bias_depth={self.bias_depth}: must be 0 or more")
        names = [update.op for update in self.layers]
        if len(set(names)) != len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"weights of '{name}' are updated twice; name each layer once")

    @classmethod
    def head_only(cls, qgraph: QuantizedGraph) -> UpdatePlan:
        """Nothing but the head."""
        head_of(qgraph)
        return cls(0)

    @classmethod
    def last(cls, qgraph: QuantizedGraph, k: int) -> UpdatePlan:
        """Biases and all weights of the last ``k`` layers."""
        layers = weighted_layers(qgraph)
        if not 0 <= k <= len(layers):
            raise ConfigError(
                f"k={k}: '{qgraph.name}' has {len(layers)} layers besides the head; must be 0 to {len(layers)}"
            )
        chosen = layers[len(layers) - k :]
        return cls(k, tuple(LayerUpdate(op.name, tuple(range(input_channels(op)))) for op in chosen))

    @classmethod
    def full(cls, qgraph: QuantizedGraph) -> UpdatePlan:
        """Every bias and weight."""
        return cls.last(qgraph, len(weighted_layers(qgraph)))

    @classmethod
    def from_ratios(
        cls,
        qgraph: QuantizedGraph,
        bias_depth: int,
        ratios: Mapping[str, float | int],
        criterion: str = "magnitude+",
        seed: int = 0,
    ) -> UpdatePlan:
        """A share of the input channels of each named layer.

        Args:
            bias_depth: the last so many layers have their biases trained.
            ratios: operation name -> share of its input channels, above 0 and at most 1.
            criterion: which channels; see :func:`select_channels`.
            seed: of the choice where it is random.
        Raises:
            ConfigError: a ratio out of range, a layer that is not one, or one outside the bias depth.
        """
        order = {op.name: op for op in weighted_layers(qgraph)}
        for name in ratios:
            if name not in order:
                raise ConfigError(
                    f"'{name}' is no layer with weights of '{qgraph.name}' besides the head; it has {', '.join(order)}"
                )
        updates = tuple(
            LayerUpdate(name, select_channels(op, ratios[name], criterion, seed))
            for name, op in order.items()
            if name in ratios
        )
        plan = cls(bias_depth, updates)
        plan.check(qgraph)
        return plan

    def check(self, qgraph: QuantizedGraph) -> None:
        """Whether it is a plan for this network.

        Raises:
            ConfigError: a layer or channel that the network lacks, or a weight outside the bias depth.
            UnsupportedOpError: the network does not end in a linear layer.
        """
        layers = weighted_layers(qgraph)
        if self.bias_depth > len(layers):
            raise ConfigError(
                f"bias_depth={self.bias_depth}: '{qgraph.name}' has {len(layers)} layers besides the head; must be at most that"
            )
        numbers = {op.name: number for number, op in enumerate(layers)}
        first = len(layers) - self.bias_depth
        last = -1
        for update in self.layers:
            if update.op not in numbers:
                raise ConfigError(
                    f"'{update.op}' is no layer with weights of '{qgraph.name}' besides the head; it has {', '.join(numbers)}"
                )
            number = numbers[update.op]
            if number < first:
                raise ConfigError(
                    f"weights of '{update.op}' (layer {number}) lie outside the bias depth {self.bias_depth}, which begins at layer "
                    f"{first}; use bias_depth={len(layers) - number} or more"
                )
            if number <= last:
                raise ConfigError(
                    f"updates of '{update.op}' are out of running order; list layers as the network runs them"
                )
            last = number
            channels = input_channels(layers[number])
            if update.channels[-1] >= channels:
                raise ConfigError(
                    f"'{update.op}' has {channels} input channels; channel {update.channels[-1]} is none of them"
                )

    def updates(self) -> dict[str, tuple[int, ...]]:
        """Selected channels by operation name."""
        return {update.op: update.channels for update in self.layers}


def head_of(qgraph: QuantizedGraph) -> Linear:
    """The last linear layer: its results are the logits.

    Raises:
        UnsupportedOpError: there is none, or something other than a softmax comes after it.
    """
    head = next((op for op in reversed(qgraph.ops) if isinstance(op, (Linear, Conv2d))), None)
    if not isinstance(head, Linear):
        what = (
            "no layer with weights" if head is None else f"a convolution, '{head.name}' (module '{head.source}'), last"
        )
        raise UnsupportedOpError(
            f"training '{qgraph.name}': it has {what}; the last layer must be linear, on pooled features"
        )
    for op in qgraph.ops[qgraph.ops.index(head) + 1 :]:
        if not isinstance(op, (Softmax, Reshape)):
            raise UnsupportedOpError(
                f"training '{qgraph.name}': {type(op).__name__} '{op.name}' (module '{op.source}') comes after the last linear layer; "
                "only a softmax may"
            )
    return head


def weighted_layers(qgraph: QuantizedGraph) -> tuple[Conv2d | Linear, ...]:
    """Convolutions and linear layers in running order, without the head."""
    head = head_of(qgraph)
    return tuple(op for op in qgraph.ops if isinstance(op, (Conv2d, Linear)) and op is not head)


def input_channels(op: Conv2d | Linear) -> int:
    """How many input channels (or features) a layer reads."""
    return op.weight.shape[3] * op.groups if isinstance(op, Conv2d) else op.weight.shape[1]


def weights_per_channel(op: Conv2d | Linear) -> int:
    """How many weights read one input channel; in a grouped convolution those of its group alone."""
    if isinstance(op, Linear):
        return op.weight.shape[0]
    out, kernel_height, kernel_width, _ = op.weight.shape
    return out // op.groups * kernel_height * kernel_width


def channel_norms(op: Conv2d | Linear) -> Float64[np.ndarray, " channel"]:
    """L2 norm of the codes of the weights that read each input channel."""
    squares = np.square(op.weight.astype(np.float64))
    if isinstance(op, Linear):
        return np.sqrt(squares.sum(axis=0))
    out, _, _, per_group = op.weight.shape
    grouped = squares.reshape(op.groups, out // op.groups, -1, per_group)
    return np.sqrt(grouped.sum(axis=(1, 2)).reshape(-1))


def select_channels(
    op: Conv2d | Linear, ratio: float | int, criterion: str = "magnitude+", seed: int = 0
) -> tuple[int, ...]:
    """Input channels to train: int(channels * ratio) of them, at least one.

    Args:
        ratio: above 0, at most 1.
        criterion: "magnitude+" takes those with the largest norm of weight codes (the first of equals), "magnitude-" the smallest,
            "random" any.
        seed: for "random"; layers of different names draw differently.
    Source: Lin et al. 2022 (arXiv:2206.15472), published code; at least one channel is ours (theirs may select none).
    """
    if not 0 < ratio <= 1:
        raise ConfigError(
            f"ratio {ratio} of '{op.name}': must be above 0 and at most 1; leave the layer out to update none of it"
        )
    if criterion not in get_args(Criterion):
        raise ConfigError(f"criterion='{criterion}': must be one of {', '.join(get_args(Criterion))}")
    channels = input_channels(op)
    count = max(1, int(channels * ratio))
    if criterion == "random":
        order = np.random.default_rng([seed, *op.name.encode()]).permutation(channels)
    else:
        norms = channel_norms(op)
        order = np.argsort(-norms if criterion == "magnitude+" else norms, kind="stable")
    return tuple(sorted(int(channel) for channel in order[:count]))
