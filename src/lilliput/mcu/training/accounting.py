"""The published count of what training needs beside inference, "extra memory", so that schemes can be compared with the literature.

It is no peak: it sums what the backward pass keeps, as if all of it were alive together and nothing else were. Gradients, the head's
weights, the input and the label are counted as nothing. What a chip really needs is in a training step's memory report.

Source: Lin et al. 2022 (arXiv:2206.15472) and its published code, whose rules are, in bits:

- each layer within the bias depth: a mask bit an output element, 32 a bias;
- each layer whose weights are trained: 8 for every element of its selected input channels, 8 a trained weight;
- the head: 8 for every feature it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from lilliput.mcu.training.update_plan import UpdatePlan, head_of, weighted_layers, weights_per_channel
from lilliput.quantize.qgraph import QuantizedGraph


@dataclass(frozen=True)
class ExtraMemory:
    """The published count for one update plan; whole bits, since masks are counted by the bit."""

    mask_bits: int
    bias_bits: int
    weight_bits: int
    activation_bits: int
    """Kept inputs of trained weights, and the head's."""

    @property
    def bits(self) -> int:
        """All of it."""
        return self.mask_bits + self.bias_bits + self.weight_bits + self.activation_bits

    @property
    def kib(self) -> float:
        """All of it in units of 1,024 bytes."""
        return self.bits / 8 / 1024


def extra_memory(qgraph: QuantizedGraph, plan: UpdatePlan) -> ExtraMemory:
    """What a plan keeps for the backward pass by the published rules.

    Raises:
        ConfigError: the plan is not one for this network.
    """
    plan.check(qgraph)
    layers, updates = weighted_layers(qgraph), plan.updates()
    masks = biases = weights = 0
    activations = 8 * qgraph.tensors[head_of(qgraph).inputs[0]].shape[-1]
    for op in layers[len(layers) - plan.bias_depth :]:
        masks += prod(qgraph.tensors[op.name].shape)
        biases += 32 * len(op.bias)
        channels = len(updates.get(op.name, ()))
        weights += 8 * channels * weights_per_channel(op)
        activations += 8 * channels * prod(qgraph.tensors[op.inputs[0]].shape[:-1])
    return ExtraMemory(masks, biases, weights, activations)
