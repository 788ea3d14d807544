"""Local Lipschitz constants: how fast each output can change, anywhere in a ball around a point."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lilliput.certify.checkpoint import Checkpoint, digest
from lilliput.certify.interval import Interval
from lilliput.certify.method import METHODS, REFINING, UNCOUNTED, Problem
from lilliput.certify.model_hash import model_hash
from lilliput.certify.network import Network, lower
from lilliput.certify.region import DUAL, Norm, Region
from lilliput.certify.witness import Witness, search
from lilliput.errors import ConfigError, DataError
from lilliput.graph import Graph, trace

_EXACT = 1e-9
"""Relative gap below which upper and lower bound count as equal: rounding in float64, and no more."""


@dataclass(frozen=True)
class LocalLipschitz:
    """Bounds from both sides. For a batch of centres each figure has a leading axis of centres; for one centre there is none."""

    upper: float | Tensor
    """No point of the region has a row with a larger dual norm: the local Lipschitz constant is at most this."""
    lower: float | Tensor
    """The largest norm met at a point of the region."""
    per_output: Tensor
    """Upper bound of each row, (rows,)."""
    per_output_lower: Tensor
    """Lower bound of each row, (rows,)."""
    witness: Tensor
    """The point where ``lower`` was met, of the input's shape."""
    witnesses: Tensor
    """The point where each row's lower bound was met, (rows, *input)."""
    status: str
    """"exact" where upper and lower agree to 1e-9 for every centre; else "bounded", or why a longer method stopped."""
    trace: list[tuple[float, float, float, int]]
    """(seconds, upper, lower, open domains) as the method went along; the bounds of the worst centre."""
    _jacobian: Callable[[], Interval] = field(repr=False)

    @property
    def gap(self) -> float | Tensor:
        """Upper less lower."""
        return self.upper - self.lower

    def jacobian_bounds(self) -> Interval:
        """Lower and upper bound of every element of the Jacobian over the region, (rows, n) each; computed when asked for."""
        return self._jacobian()


def local_lipschitz(
    model: nn.Module | Graph,
    x0: Tensor,
    eps: float | int,
    norm: str = "inf",
    outputs: str | Tensor = "rows",
    *,
    y: int | Tensor | None = None,
    clip: tuple[float | int, float | int] | None = None,
    method: str = "crown",
    alpha_steps: int = 20,
    time_limit: float | int = 30.0,
    seed: int = 0,
    dtype: str = "float64",
    rigorous: bool = False,
    progress: Callable[[float, float, float, int], None] | None = None,
    is_interruptible: bool = False,
    checkpoint: str | Path | None = None,
) -> LocalLipschitz:
    """Bound ``sup ||J_j(x)||`` over the ball ``||x - x0|| <= eps``, for each row j of the outputs, from above and below.

    ``J_j`` is the gradient of output j (or of a combination of outputs), its norm the dual of the ball's: l_1 for "inf", l_inf for "1",
    l_2 for "2". So in the ball, output j moves by at most ``upper * ||dx||``.

    Args:
        model: in evaluation mode; or its graph, traced with batch 1.
        x0: one centre, of the network's input shape without the batch, or a batch of them with it.
        eps: radius, in the units of the network's input.
        norm: of the perturbation: "inf", "1" or "2".
        outputs: "rows" for each output; "margins" for output y less each other one; or combinations, (rows, outputs).
        y: class of each centre, for "margins".
        clip: least and greatest value that an input can have; the ball is cut to it.
        method: a name in ``METHODS``, from loosest and quickest to tightest.
        alpha_steps: of slope optimisation, for methods that have it.
        time_limit: seconds, for methods that refine until it is over; with a checkpoint, those of earlier calls count.
        seed: of the search for the lower bound.
        dtype: "float64" or "float32" for all arithmetic.
        rigorous: the upper bound holds in real arithmetic for the weights as they are stored: rounding of whatever is computed here is
            counted. On the CPU, for piecewise linear gates, by methods without linear programs. The lower bound stays a measured one.
        progress: called with each entry of the trace as it is made, by methods that refine.
        is_interruptible: an interrupt from the keyboard ends such a method with the bounds that it has, and status "stopped"; otherwise
            it is raised.
        checkpoint: a file in which such a method keeps how far it came, every few seconds and at the end, however that comes. Where it
            exists already the method goes on from it: with more ``time_limit``, as if it had not stopped before; where nothing is left
            to do, the result is there at once. Parents are made.
    Raises:
        ConfigError: an option outside what is allowed; the checkpoint is of another question (network, centres, radius, or any option but
            the time).
        DataError: centres or weights that are NaN or infinite, of the wrong shape, or outside ``clip``; a checkpoint that is damaged.
        GraphError: a model in training mode, or one that is no static graph.
        UnsupportedOpError: an operation without a rule, with its module.
    Source: Shi et al. 2022 (arXiv:2210.07394); for the parts, see the files of this room.

    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> _ = nn.init.constant_(model[0].weight, 3.0)
    >>> local_lipschitz(model, torch.zeros(2), eps=0.1).upper
    6.0
    """
    check_options(float(eps), norm, clip, method, dtype, rigorous, outputs, y)
    precision = torch.float64 if dtype == "float64" else torch.float32
    matrix = outputs if isinstance(outputs, Tensor) else None
    graph = graph_of(model, x0)
    network, centres, is_single = prepared(graph, x0, precision, matrix, rigorous)
    check_centres(centres, clip)
    rows = output_rows(network, outputs, y, len(centres))
    region = Region.ball(centres.flatten(1), float(eps), cast(Norm, norm), clip, rigorous=rigorous)
    kept = None
    if checkpoint is not None:
        if method not in REFINING:
            names = ", ".join(map(repr, REFINING))
            raise ConfigError(
                f"method={method!r} with a checkpoint: it does not refine, so none can be kept; use {names}"
            )
        question = _outputs_question(outputs, y) | {
            "network": model_hash(graph),
            "centre": digest(centres),
            "eps": float(eps),
            "norm": norm,
            "clip": None if clip is None else [float(limit) for limit in clip],
            "method": method,
            "alpha_steps": alpha_steps,
            "seed": seed,
            "dtype": dtype,
        }
        kept = Checkpoint(Path(checkpoint), question)
    problem = Problem(network, region, rows, alpha_steps, float(time_limit), seed, progress, is_interruptible, kept)
    started = time.perf_counter()
    with torch.no_grad():
        answer = METHODS[method](problem)
        witness = search(network, region, rows, seed=seed)
        if answer.witness is not None:
            witness = witness.better(answer.witness)
    if not bool(answer.norm.isfinite().all()):
        raise DataError(
            f"the bound overflows {dtype}: the weights or eps={eps} are too large for it; "
            "try a smaller eps or dtype='float64'"
        )
    seconds = time.perf_counter() - started
    return _result(answer.norm, answer.jacobian, answer.status, answer.trace, witness, network, seconds, is_single)


def _outputs_question(outputs: str | Tensor, y: int | Tensor | None) -> dict[str, object]:
    if isinstance(outputs, Tensor):
        return {"outputs": f"matrix {digest(outputs)}", "y": None}
    return {"outputs": outputs, "y": torch.as_tensor(y).reshape(-1).tolist() if outputs == "margins" else None}


def _result(
    norm: Tensor,
    jacobian: Callable[[], Interval],
    status: str,
    steps: list[tuple[float, float, float, int]],
    witness: Witness,
    network: Network,
    seconds: float,
    is_single: bool,
) -> LocalLipschitz:
    rounding = 1e-9 if network.dtype == torch.float64 else 1e-3
    is_refuted = bool((witness.norm > norm * (1 + rounding) + rounding**2).any())
    # Where terms cancel, what is met can be nothing but rounding; a bound that counts it knows better.
    assert network.rigorous or not is_refuted, "a witness refutes an upper bound"
    # Where both are exact they can cross by a rounding; the lower one gives way, which is sound for it.
    witness = Witness(torch.minimum(witness.norm, norm), witness.point)
    upper = norm.amax(1)
    lower, which = witness.norm.max(1)
    points = witness.point.reshape(*witness.norm.shape, *network.shapes[network.input])
    best = points[torch.arange(len(points), device=points.device), which]
    if bool((upper - lower <= _EXACT * upper.abs()).all()):
        status = "exact"
    steps = steps or [(seconds, float(upper.max()), float(lower.max()), 0)]

    def elements() -> Interval:
        with torch.no_grad():
            low, high = jacobian()
        return (low[0], high[0]) if is_single else (low, high)

    if is_single:
        return LocalLipschitz(
            float(upper[0]), float(lower[0]), norm[0], witness.norm[0], best[0], points[0], status, steps, elements
        )
    return LocalLipschitz(upper, lower, norm, witness.norm, best, points, status, steps, elements)


def check_options(
    eps: float,
    norm: str,
    clip: tuple[float | int, float | int] | None,
    method: str,
    dtype: str,
    rigorous: bool,
    outputs: str | Tensor,
    y: int | Tensor | None,
) -> None:
    """Refuse options outside what is allowed."""
    if not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps={eps}: must be a finite number, 0 or more, in the units of the network's input")
    if norm not in DUAL:
        raise ConfigError(f"norm={norm!r}: must be one of 'inf', '1', '2'")
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: must be one of {', '.join(map(repr, METHODS))}")
    if dtype not in ("float64", "float32"):
        raise ConfigError(f"dtype={dtype!r}: must be 'float64' or 'float32'")
    if rigorous and method in UNCOUNTED:
        counted = ", ".join(repr(name) for name in METHODS if name not in UNCOUNTED)
        raise ConfigError(f"method={method!r} with rigorous=True: {UNCOUNTED[method]}; use one of {counted}")
    if clip is not None and not clip[0] < clip[1]:
        raise ConfigError(f"clip={clip}: the first must be less than the second, as in clip=(0, 1)")
    if isinstance(outputs, str) and outputs not in ("rows", "margins"):
        raise ConfigError(f"outputs={outputs!r}: must be 'rows', 'margins' or a matrix of (rows, outputs)")
    if isinstance(outputs, str) and outputs == "margins" and y is None:
        raise ConfigError("outputs='margins' needs y, the class of each centre; for instance y=3")


def prepared(
    model: nn.Module | Graph, x0: Tensor, precision: torch.dtype, matrix: Tensor | None, rigorous: bool = False
) -> tuple[Network, Tensor, bool]:
    """The lowered network, centres (B, *input) in its precision, and whether one centre without a batch was given."""
    graph = graph_of(model, x0)
    is_single = x0.dim() == len(graph.shape(graph.inputs[0])) - 1
    network = lower(graph, precision, rigorous=rigorous)
    centres = (x0[None] if is_single else x0).to(network.device, precision)
    shape = network.shapes[network.input]
    if tuple(centres.shape[1:]) != shape:
        raise DataError(f"x0 has shape {list(x0.shape)}; the network takes {list(shape)}, or a batch {['B', *shape]}")
    if not bool(centres.isfinite().all()):
        raise DataError("x0 holds NaN or infinite values; a centre must be finite")
    if rigorous and not torch.equal(centres.to(x0.device, x0.dtype).reshape(x0.shape), x0):
        raise DataError(
            f"rigorous=True: x0 is in {x0.dtype} and changes when rounded to {precision}; use dtype='float64', or round x0 first"
        )
    if matrix is not None and (matrix.dim() != 2 or matrix.shape[1] != network.outputs):
        raise DataError(
            f"outputs has shape {list(matrix.shape)}; the network has {network.outputs} outputs, so it must be [rows, {network.outputs}]"
        )
    return network, centres, is_single


def graph_of(model: nn.Module | Graph, x0: Tensor) -> Graph:
    """The network's graph, traced with one of the centres where it is not one already."""
    if not x0.numel():
        raise DataError(f"x0 has shape {list(x0.shape)} and no element; give one centre or a batch of at least 1")
    if isinstance(model, Graph):
        return model
    weight = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), x0)
    _check_weights(model)
    return _traced(model, x0.to(weight.device, weight.dtype))


def _traced(model: nn.Module, x0: Tensor) -> Graph:
    """The graph; whether x0 has no batch axis is told by which of the two the model takes."""
    from lilliput.errors import GraphError

    # A module that names its input's size settles it; a batch of vectors and one image row would look alike to it.
    features = next((m.in_features for m in model.modules() if isinstance(m, nn.Linear)), None)
    try_single_first = x0.dim() in (1, 3) or (x0.dim() == 2 and features is not None and x0.shape[-1] != features)
    orders = [True, False] if try_single_first else [False, True]
    first: GraphError | None = None
    for is_single in orders:
        if not is_single and (x0.dim() < 2 or not len(x0)):
            continue
        try:
            return trace(model, x0[None] if is_single else x0[:1])
        except GraphError as error:
            first = first or error
    assert first is not None
    raise first


def _check_weights(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DataError(f"weight '{name}' holds NaN or infinite values; nothing can be certified of this network")


def check_centres(centres: Tensor, clip: tuple[float | int, float | int] | None) -> None:
    """Refuse centres outside the range of the data."""
    if clip is None:
        return
    low, high = float(centres.min()), float(centres.max())
    # In float32 a pixel of 1 can come out a rounding above it.
    if low < clip[0] - 1e-6 or high > clip[1] + 1e-6:
        raise DataError(
            f"x0 has values from {low:g} to {high:g}, outside clip={clip}; scale x0 or widen clip to the data's range"
        )


def output_rows(network: Network, outputs: str | Tensor, y: int | Tensor | None, centres: int) -> Tensor:
    """Combinations of the outputs for each centre, (centres, rows, outputs)."""
    eye = torch.eye(network.outputs, dtype=network.dtype, device=network.device)
    if isinstance(outputs, Tensor):
        return outputs.to(eye).expand(centres, *outputs.shape)
    if outputs == "rows":
        return eye.expand(centres, *eye.shape)
    labels = torch.as_tensor(y, device=network.device).reshape(-1)
    if len(labels) == 1:
        labels = labels.expand(centres)
    if len(labels) != centres or bool(((labels < 0) | (labels >= network.outputs)).any()):
        raise DataError(
            f"y has {len(labels)} classes from {int(labels.min())} to {int(labels.max())}; "
            f"it needs 1 or {centres} of them, from 0 to {network.outputs - 1}"
        )
    others = torch.stack([eye[torch.arange(network.outputs, device=eye.device) != label] for label in labels])
    return eye[labels][:, None] - others
