"""SplitQuant: cut the weights into clusters and give each its own ladder.

A few outliers stretch the range of a whole layer and leave the others few codes. Clusters (lower, middle, upper for k = 3) have narrow
ranges each. As published, a cluster is a copy of the tensor with zeros elsewhere, so its range must hold zero; here a weight's symbol names
its cluster as well, so that a cluster's range may be that of its members alone (``mask_aware``).

Source: Song and Lin 2025 (arXiv:2501.12428), section 3. Ours: exact k-means (theirs is scikit-learn's, without a seed), mask-aware ranges,
splits by least quantization error, and symbols in place of three dense tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lilliput.errors import ConfigError
from lilliput.quantize.lowbit.activations import check_elementwise
from lilliput.quantize.lowbit.affine import nearest_symbols, start_ladders, zero_ladders
from lilliput.quantize.lowbit.config import Granularity, Method, check_bits, is_finer
from lilliput.quantize.lowbit.fit import best_fit
from lilliput.quantize.lowbit.granularity import columns_per_set, per_set, spread
from lilliput.quantize.lowbit.kmeans import exact_kmeans
from lilliput.quantize.lowbit.ladders import Encoded
from lilliput.quantize.lowbit.least_error import least_error_cuts


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Method):
    """Split weights into clusters, each with its own ladder (SplitQuant)."""

    k: int = 3
    """Clusters, 2 to 16; the paper's lower, middle and upper are 3."""
    bits: int = 2
    """Bits of a weight's code within its cluster, 1 to 8."""
    clusters: Granularity | None = None
    """Which weights are clustered together, as the granularity where None; as published: 'tensor' (linear) and 'row' (convolutions)."""
    mask_aware: bool = True
    """Levels for a cluster's members alone; False is as published: ranges that hold zero, for three dense tensors."""
    fitted: bool = True
    """Start and step fitted to the members by least squares, not their range alone; read only where mask_aware."""
    split_by: Literal["kmeans", "error"] = "kmeans"
    """'kmeans' (published, exact here) or 'error': boundaries moved to minimise the squared error after quantization."""
    activations: tuple[str, ...] = ()
    """Activation modules that split() cuts too, such as 'ReLU' or 'GELU'; only functions of one value can be cut."""
    activation_dim: int = 1
    """Axis along which activations are cut: 1 is channels of images, -1 features of tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self.bits)
        if not 2 <= self.k <= 16:
            raise ConfigError(f"k={self.k}: must be 2 to 16 clusters; try k=3")
        if self.split_by not in ("kmeans", "error"):
            raise ConfigError(f"split_by={self.split_by!r}: must be 'kmeans' or 'error'; try 'kmeans'")
        for name in self.activations:
            check_elementwise(name)
        if self.clusters not in (None, "tensor", "row", "group"):
            raise ConfigError(f"clusters={self.clusters!r}: must be 'tensor', 'row' or 'group'; try 'row'")
        if self.clusters is not None and is_finer(self.clusters, self.granularity):
            raise ConfigError(
                f"clusters={self.clusters!r} are finer than granularity={self.granularity!r}, so that clusters of different "
                f"weights would share a range; try granularity={self.clusters!r}"
            )
        if self.storage == "dense" and self.mask_aware:
            raise ConfigError(
                "storage='dense' holds masked zeros, which a mask-aware range may not reach; "
                "try mask_aware=False, or storage='lut' for smaller files"
            )

    @property
    def name(self) -> str:
        """``split-2 row``, and what is not the default."""
        marks = [] if self.mask_aware and self.fitted else ["members" if self.mask_aware else "zeros"]
        if self.split_by == "error":
            marks.append("by error")
        if self.k != 3:
            marks.append(f"k={self.k}")
        if self.clusters not in (None, self.granularity):
            marks.append(f"{self.clusters} clusters")
        return " ".join([f"split-{self.bits}", self.where, *marks])

    @property
    def cluster_granularity(self) -> Granularity:
        """``clusters``, or what stands in for it."""
        return self.granularity if self.clusters is None else self.clusters

    def encode(self, weight: Tensor, gain: float) -> Encoded:
        """Symbols and ladders of a matrix."""
        return encode_clusters(weight, assign(weight, self), self)


def encode_clusters(
    weight: Float[Tensor, "rows columns"], cluster: UInt8[Tensor, "rows columns"], config: SplitConfig
) -> Encoded:
    """Symbols and ladders for a given cluster of each weight."""

    def per_range(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        return per_set(values, config.granularity, config.group_size, lambda sets: reduce(sets, dim=1, keepdim=True))

    members = [cluster == index for index in range(config.k)]
    lower = [per_range(torch.where(member, weight, torch.inf), torch.amin) for member in members]
    upper = [per_range(torch.where(member, weight, -torch.inf), torch.amax) for member in members]
    ranges = torch.cat(lower, dim=2), torch.cat(upper, dim=2), config.bits, config.torch_scale_dtype
    ladders = start_ladders(*ranges) if config.mask_aware else zero_ladders(*ranges)
    width = columns_per_set(config.granularity, config.group_size, weight.shape[1])
    if config.mask_aware and config.fitted:
        ladders = best_fit(weight, cluster, [ladders, zero_ladders(*ranges)], width, config.torch_scale_dtype)
    return Encoded(nearest_symbols(weight, ladders, cluster, width), ladders, width)


def boundaries(weight: Float[Tensor, "rows columns"], config: SplitConfig) -> Float[Tensor, "set_rows groups cuts"]:
    """Where neighbouring clusters meet, ascending, in float64; one set for each that is clustered together."""

    def of_sets(sets: Tensor) -> Tensor:
        return torch.from_numpy(exact_kmeans(sets.numpy(force=True), config.k).boundaries).to(weight.device)

    cuts = per_set(weight, config.cluster_granularity, config.group_size, of_sets)
    if config.split_by == "kmeans":
        return cuts

    def squared_error(cuts: Tensor) -> Tensor:
        encoded = encode_clusters(weight, clusters_between(weight, cuts, config), config)
        return (encoded.dequantize() - weight).square_()

    return least_error_cuts(weight, cuts, squared_error, config.cluster_granularity, config.group_size)


def assign(weight: Float[Tensor, "rows columns"], config: SplitConfig) -> UInt8[Tensor, "rows columns"]:
    """The cluster of each weight, 0 (lower) to k - 1 (upper)."""
    return clusters_between(weight, boundaries(weight, config), config)


def clusters_between(
    weight: Float[Tensor, "rows columns"], cuts: Float[Tensor, "set_rows groups cuts"], config: SplitConfig
) -> UInt8[Tensor, "rows columns"]:
    """The cluster of each weight: how many boundaries lie below it.

    A weight on a boundary is in the cluster below, but for the last boundary, where it is in the cluster above: as published for k = 3,
    lower: w <= b0, middle: b0 < w < b1, upper: w >= b1.
    """
    rows, columns = weight.shape
    at = spread(cuts, config.cluster_granularity, config.group_size, rows, columns)
    cluster = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    for index in range(config.k - 2):
        cluster += weight > at[..., index]
    # Equal boundaries (fewer distinct values than clusters) must not let a weight skip the clusters between.
    return torch.where(weight >= at[..., config.k - 2], config.k - 1, cluster).to(torch.uint8)
