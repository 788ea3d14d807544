"""What training each bias depth and each weight is worth: the gains that a search adds up.

Two ways to find out. *Fine-tuning* trains short runs in floating point, as published: the last k biases against the head alone, and one
layer's weights at one share against the biases of its own depth. *Fisher* needs one backward pass a sample: the mean squared gradient of
the real-valued parameters, which to first order is what a step of gradient descent on one sample, with unit rate, takes off its loss. It
is the trace of the empirical Fisher information, so it adds up over parameters by its nature, where accuracies do by assumption.

Source: Lin et al. 2022 (arXiv:2206.15472), section 3.2 (fine-tuning); Kwon et al. 2024 (TinyTrain, arXiv:2307.09988), for Fisher
information. Ours differs from the latter: it is of parameters in real units, not of activations, so that biases and weights compare.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lilliput.errors import ConfigError, DataError
from lilliput.evidence.atomic import write_json
from lilliput.mcu.training.float_mode import FloatMode, Frozen, deepest
from lilliput.mcu.training.update_plan import UpdatePlan, select_channels, weighted_layers
from lilliput.quantize.qgraph import QuantizedGraph
from lilliput.training.labelled import as_labelled, to_network
from lilliput.training.progress import Bar

RATIOS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""The published shares of input channels."""
METHODS = ("finetune", "fisher")
Samples = tuple[np.ndarray, np.ndarray]
"""int8 codes and class indices."""


@dataclass(frozen=True)
class Contribution:
    """Gains by bias depth, and by layer and share of its input channels. Fine-tuning's are accuracies (0.01 is one point)."""

    method: str
    layers: tuple[str, ...]
    """The last layers with weights, in running order, as many as gradients reach."""
    ratios: tuple[float, ...]
    """Ascending."""
    bias: tuple[float, ...]
    """Of training the last 0, 1, ... biases, over the head alone; the first is 0."""
    weights: tuple[tuple[float, ...], ...]
    """For each layer, of training each share of its weights too, over its bias depth without them."""
    criterion: str = "magnitude+"
    """Which input channels a share is."""
    seed: int = 0
    """Of the criterion, where it is random."""
    baseline: float = 0.0
    """Accuracy of the head alone."""

    def __post_init__(self) -> None:
        count = len(self.layers)
        if len(self.bias) != count + 1 or len(self.weights) != count or self.bias[0] != 0:
            raise ConfigError(
                f"contribution of {count} layers: has {len(self.bias)} bias depths and {len(self.weights)} layers of weights; "
                f"must be {count + 1}, of which the first is 0, and {count}"
            )
        if any(len(gains) != len(self.ratios) for gains in self.weights) or list(self.ratios) != sorted(
            set(self.ratios)
        ):
            raise ConfigError(
                f"contribution: each layer needs one gain for each of the ratios {self.ratios}, which must ascend"
            )
        if not np.isfinite([*self.bias, *(gain for gains in self.weights for gain in gains)]).all():
            raise ConfigError("contribution: every gain must be a finite number")

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Contribution:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing or something else.
        """
        try:
            fields = json.loads(Path(path).read_text())
            fields["weights"] = [tuple(gains) for gains in fields["weights"]]
            known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**known)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
            raise DataError(
                f"{path}: no contribution can be read from it ({fault}); make one with contribution(...).save(path)"
            ) from fault


def contribution(
    qgraph: QuantizedGraph,
    train: Any,
    val: Any,
    method: str = "finetune",
    *,
    num_classes: int | None = None,
    ratios: Sequence[float | int] = RATIOS,
    criterion: str = "magnitude+",
    max_depth: int | None = None,
    epochs: int = 3,
    batch: int = 8,
    lr: float | int = 0.01,
    samples: int = 64,
    seeds: Sequence[int] = (0,),
    cache: str | Path | None = None,
    progress: bool = False,
) -> Contribution:
    """Measure gains on the task that the device will see, or one like it.

    Args:
        qgraph: an int8 network that ends in a linear layer.
        train: samples and labels: an ImageSplit, or a pair of int8 codes or floats, and class indices.
        val: the same, for accuracies; ``fisher`` does not look at it.
        method: "finetune" or "fisher".
        num_classes: of a new head; ``None`` counts them in ``train`` and ``val``.
        ratios: shares of input channels to measure.
        criterion: which input channels a share is; see :func:`lilliput.mcu.training.update_plan.select_channels`.
        max_depth: at most so many layers from the end; ``None`` is as many as gradients reach.
        epochs: of each run; of the head before Fisher's gradients are taken.
        batch: samples a step.
        lr: learning rate with quantization-aware scaling.
        samples: of ``train``, whose gradients Fisher takes.
        seeds: fine-tuning's accuracies are means over them: of new heads and orders.
        cache: a file in which finished runs are kept; a stopped measurement that is begun again with it goes on from there.
        progress: show a bar on standard error.
    Raises:
        ConfigError: an option out of range, or a cache of another measurement.
        DataError: data that do not fit the network.
        UnsupportedOpError: the network does not end in a linear layer.
    """
    if method not in METHODS:
        raise ConfigError(f"method='{method}': must be one of {', '.join(METHODS)}")
    if list(ratios) != sorted(set(ratios)) or not ratios or not 0 < ratios[0] <= ratios[-1] <= 1:
        raise ConfigError(f"ratios={tuple(ratios)}: must ascend, above 0 and at most 1")
    if not seeds or epochs < 1 or samples < 1:
        raise ConfigError(f"seeds={tuple(seeds)}, epochs={epochs}, samples={samples}: at least one of each")
    data, validation = _codes(qgraph, train, "train"), _codes(qgraph, val, "val")
    classes = num_classes or int(max(data[1].max(), validation[1].max())) + 1
    reach = deepest(qgraph)
    depth = reach if max_depth is None else max_depth
    if not 0 <= depth <= reach:
        raise ConfigError(
            f"max_depth={depth}: gradients reach the last {reach} layers of '{qgraph.name}'; must be 0 to {reach}"
        )
    measure = _Measure(
        qgraph,
        data,
        validation,
        classes,
        tuple(float(r) for r in ratios),
        criterion,
        depth,
        epochs,
        batch,
        float(lr),
        samples,
        tuple(seeds),
    )
    with Bar("contribution", measure.runs(method), 0, progress) as bar:
        known = _Cache(None if cache is None else Path(cache), measure.digest(method))
        return measure.finetune(known, bar.advance) if method == "finetune" else measure.fisher(bar.advance)


@dataclass(frozen=True)
class _Measure:
    qgraph: QuantizedGraph
    train: Samples
    val: Samples
    classes: int
    ratios: tuple[float, ...]
    criterion: str
    depth: int
    epochs: int
    batch: int
    lr: float
    samples: int
    seeds: tuple[int, ...]

    def names(self) -> tuple[str, ...]:
        layers = weighted_layers(self.qgraph)
        return tuple(op.name for op in layers[len(layers) - self.depth :])

    def runs(self, method: str) -> int:
        if method == "fisher":
            return self.epochs + min(self.samples, len(self.train[0]))
        return len(self.seeds) * (1 + self.depth * (1 + len(self.ratios)))

    def digest(self, method: str) -> str:
        """Of everything that a run depends on."""
        state = hashlib.blake2b(digest_size=16)
        for array in (*self.train, *self.val, *(op.weight for op in weighted_layers(self.qgraph))):
            state.update(f"{array.dtype}{array.shape}".encode())
            state.update(np.ascontiguousarray(array).data)
        options = (method, self.classes, self.ratios, self.criterion, self.epochs, self.batch, self.lr)
        state.update(repr(options).encode())
        return state.hexdigest()

    # fine-tuning

    def finetune(self, known: _Cache, advance: Callable[[], None]) -> Contribution:
        names, bias, weights = self.names(), [], {}
        for depth in range(self.depth + 1):
            plans = {"bias": UpdatePlan(depth)}
            if depth:
                name = names[self.depth - depth]
                plans |= {
                    f"{name}@{ratio:g}": UpdatePlan.from_ratios(
                        self.qgraph, depth, {name: ratio}, self.criterion, self.seeds[0]
                    )
                    for ratio in self.ratios
                }
            accuracies = self._accuracies(depth, plans, known, advance)
            alone, *others = accuracies
            bias.append(alone)
            if depth:
                weights[names[self.depth - depth]] = tuple(each - alone for each in others)
        return Contribution(
            method="finetune",
            layers=names,
            ratios=self.ratios,
            bias=tuple(each - bias[0] for each in bias),
            weights=tuple(weights[name] for name in names),
            criterion=self.criterion,
            seed=self.seeds[0],
            baseline=bias[0],
        )

    def _accuracies(
        self, depth: int, plans: Mapping[str, UpdatePlan], known: _Cache, advance: Callable[[], None]
    ) -> list[float]:
        """Mean accuracy of each plan over the seeds; what all of one depth share is computed once."""
        frozen: dict[str, Frozen] = {}

        def at(name: str) -> Frozen:
            if name not in frozen:
                x = self.train[0] if name == "train" else self.val[0]
                frozen[name] = FloatMode(self.qgraph, UpdatePlan(depth)).freeze(x)
            return frozen[name]

        means = []
        for label, plan in plans.items():
            found = []
            for seed in self.seeds:
                key = f"{depth} {label} seed {seed}"
                if key not in known.values:
                    mode = self._mode(plan, seed)
                    mode.fit(at("train"), self.train[1], epochs=self.epochs, batch=self.batch, seed=seed)
                    known.add(key, mode.accuracy(at("val"), self.val[1]))
                found.append(known.values[key])
                advance()
            means.append(float(np.mean(found)))
        return means

    def _mode(self, plan: UpdatePlan, seed: int) -> FloatMode:
        return FloatMode(self.qgraph, plan, num_classes=self.classes, lr=self.lr, seed=seed)

    # Fisher

    def fisher(self, advance: Callable[[], None]) -> Contribution:
        """Gradients at a head that has been trained alone, since those at a random one say little about the network below."""
        seed, names = self.seeds[0], self.names()
        head = self._mode(UpdatePlan.head_only(self.qgraph), seed)
        head.fit(
            self.train[0], self.train[1], epochs=self.epochs, batch=self.batch, seed=seed, on_epoch=lambda *_: advance()
        )
        mode = self._mode(UpdatePlan.last(self.qgraph, self.depth), seed)
        for name in ("head.weight", "head.bias"):
            mode.parameters[name].kept = head.parameters[name].kept.clone()
        chosen = np.random.default_rng(seed).permutation(len(self.train[0]))[: self.samples]
        frozen = mode.freeze(self.train[0][chosen])
        sums: dict[str, torch.Tensor] = {}
        for index, label in enumerate(self.train[1][chosen]):
            _, gradients = mode.gradients(frozen[index : index + 1], np.array([label]))
            for name, gradient in gradients.items():
                square = (gradient.double() / mode.parameters[name].scale).square()
                sums[name] = sums.get(name, torch.zeros_like(square)) + square
            advance()
        scores = {name: total / len(chosen) for name, total in sums.items()}
        bias = [float(scores[f"{name}.bias"].sum()) for name in names]
        return Contribution(
            method="fisher",
            layers=names,
            ratios=self.ratios,
            bias=(0.0, *np.cumsum(bias[::-1]).tolist()),
            weights=tuple(self._of_shares(name, scores[f"{name}.weight"]) for name in names),
            criterion=self.criterion,
            seed=self.seeds[0],
            baseline=head.accuracy(*self.val),
        )

    def _of_shares(self, name: str, scores: torch.Tensor) -> tuple[float, ...]:
        op = next(op for op in weighted_layers(self.qgraph) if op.name == name)
        per_group = scores.shape[1]
        groups = getattr(op, "groups", 1)
        by_channel = scores.reshape(groups, len(scores) // groups, per_group, -1).sum((1, 3)).reshape(-1)
        return tuple(
            float(by_channel[list(select_channels(op, ratio, self.criterion, self.seeds[0]))].sum())
            for ratio in self.ratios
        )


class _Cache:
    """Accuracies of finished runs, in a file if there is one."""

    def __init__(self, path: Path | None, digest: str) -> None:
        self.path, self.digest = path, digest
        self.values: dict[str, float] = {}
        if path is not None and path.exists():
            try:
                document = json.loads(path.read_text())
                found, self.values = document["digest"], document["accuracies"]
            except (ValueError, TypeError, KeyError) as fault:
                raise DataError(f"{path}: not a cache of contributions ({fault}); give another path") from fault
            if found != digest:
                raise ConfigError(
                    f"{path} belongs to another measurement (network, data or options differ); remove it or give another path"
                )

    def add(self, key: str, accuracy: float) -> None:
        self.values[key] = accuracy
        if self.path is not None:
            write_json(self.path, {"digest": self.digest, "accuracies": self.values})


def _codes(qgraph: QuantizedGraph, split: Any, what: str) -> Samples:
    data = as_labelled(split, what)
    return qgraph._codes(to_network(data.inputs)), data.labels.numpy()
