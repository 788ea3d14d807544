"""Monotonicity: whether an output only rises, or only falls, while one feature moves over its range and the others stay.

Certified by the sign of one element of the Jacobian over the segment; refuted by points on it that the model itself evaluates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lilliput.certify.lipschitz import check_options, prepared
from lilliput.certify.method import METHODS, Problem
from lilliput.certify.network import Network
from lilliput.certify.region import Region
from lilliput.errors import ConfigError, DataError
from lilliput.graph import Graph

Verdict = Literal["increasing", "decreasing", "violated", "unknown"]
Expected = Literal["increasing", "decreasing", "either"]
_POINTS = 65
"""On each segment, its ends among them."""
_DOMAINS_AT_ONCE = 128
_VISIBLE = 1e-6
"""Relative to the outputs' size: smaller differences may be rounding of the model's own arithmetic, and prove nothing."""


@dataclass(frozen=True)
class Violation:
    """Points of one row that differ in one feature alone, in the order of that feature, and what the model says of them.

    Two points where a direction is expected: the output goes the other way. Three otherwise: it rises and falls.
    """

    row: int
    feature: int
    points: Tensor
    """(2 or 3, *input shape), in the model's own precision."""
    outputs: Tensor
    """(2 or 3,), of the one output."""


@dataclass(frozen=True)
class Monotonicity:
    """A verdict for each row and feature."""

    verdicts: tuple[tuple[Verdict, ...], ...]
    """By row, then by feature in the order of ``features``."""
    features: tuple[int, ...]
    lower: Tensor
    """Least slope of the output in the feature over its range, (rows, features)."""
    upper: Tensor
    """Greatest slope, (rows, features)."""
    violations: tuple[Violation, ...]

    def share(self, verdict: Verdict) -> dict[int, float]:
        """Share of the rows with this verdict, by feature."""
        rows = len(self.verdicts)
        return {
            feature: sum(row[place] == verdict for row in self.verdicts) / rows
            for place, feature in enumerate(self.features)
        }


def monotonicity(
    model: nn.Module | Graph,
    X: Tensor,
    features: Sequence[int] | None = None,
    *,
    low: float | int | Tensor | None = None,
    high: float | int | Tensor | None = None,
    output: int = 0,
    expect: str = "either",
    method: str = "crown",
    alpha_steps: int = 20,
    time_limit: float | int = 30.0,
    seed: int = 0,
    dtype: str = "float64",
) -> Monotonicity:
    """Say of each row and feature: increasing, decreasing, violated (with points that show it) or unknown.

    Args:
        model: in evaluation mode; or its graph, traced with batch 1.
        X: rows, (rows, *input shape).
        features: positions in the flattened input; all of them if left out.
        low: least value of the features, one for all or one each, (features,); if left out, the least in X.
        high: greatest value, likewise.
        output: which output.
        expect: "either" says what the output does, and "violated" where it rises and falls; "increasing" or "decreasing" says
            "violated" wherever it goes the other way at all.
        method: of the Jacobian's bounds, a name of ``METHODS``.
        alpha_steps: for methods that have them.
        time_limit: seconds for all bounds of up to 128 segments, for methods that refine.
        seed: for methods with random choices.
        dtype: "float64" or "float32" for the bounds; violations are always evaluated by the model as it is.
    Raises:
        ConfigError: an option outside what is allowed.
        DataError: rows that do not suit the network, or a range that is empty or not finite.
        GraphError, UnsupportedOpError: as ``local_lipschitz``.
    Source: Shi et al. 2022 (arXiv:2210.07394), section 4.4, where rows are certified or not. Ours adds the refutation.

    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> monotonicity(model, torch.zeros(1, 2), low=-1, high=1).verdicts
    (('increasing', 'decreasing'),)
    """
    check_options(0.0, "inf", None, method, dtype, False, "rows", None)
    if expect not in ("either", "increasing", "decreasing"):
        raise ConfigError(f"expect={expect!r}: must be 'either', 'increasing' or 'decreasing'")
    network, rows, is_single = prepared(model, X, torch.float64 if dtype == "float64" else torch.float32, None)
    if is_single:
        raise DataError(f"X has shape {list(X.shape)}: give rows, {['rows', *X.shape]}; for one, X[None]")
    if not 0 <= output < network.outputs:
        raise ConfigError(f"output={output}: the network has {network.outputs}; must be 0 to {network.outputs - 1}")
    chosen = tuple(range(network.inputs)) if features is None else tuple(int(each) for each in features)
    if not chosen or min(chosen) < 0 or max(chosen) >= network.inputs:
        raise ConfigError(f"features={list(chosen)}: must be some of 0 to {network.inputs - 1}")
    flat = rows.flatten(1)
    at = list(chosen)
    least = _edge(flat[:, at].amin(0) if low is None else low, flat, chosen, "low")
    most = _edge(flat[:, at].amax(0) if high is None else high, flat, chosen, "high")
    if bool((least > most).any()):
        raise DataError(f"low={least.tolist()} is above high={most.tolist()} for a feature; swap them")
    options = (alpha_steps, float(time_limit), seed)
    with torch.no_grad():
        lower, upper = _slopes(network, flat, at, least, most, output, method, options)
        verdicts, violations = _judge(
            model, network, flat, at, (least, most), output, cast(Expected, expect), (lower, upper)
        )
    return Monotonicity(verdicts, chosen, lower, upper, violations)


def _edge(value: float | int | Tensor, flat: Tensor, features: Sequence[int], name: str) -> Tensor:
    edge = torch.as_tensor(value, dtype=flat.dtype, device=flat.device)
    if edge.dim() > 1 or (edge.dim() == 1 and len(edge) != len(features)):
        raise DataError(
            f"{name} has shape {list(edge.shape)}; must be one number, or one for each of {len(features)} features"
        )
    if not bool(edge.isfinite().all()):
        raise DataError(f"{name} holds NaN or infinite values; a feature's range must be finite")
    return edge.expand(len(features))


def _slopes(
    network: Network,
    flat: Tensor,
    features: list[int],
    least: Tensor,
    most: Tensor,
    output: int,
    method: str,
    options: tuple[int, float, int],
) -> tuple[Tensor, Tensor]:
    """Bounds of the output's slope in each feature, (rows, features); one domain for each pair."""
    place = torch.tensor(features, device=flat.device).repeat(len(flat))
    domains = torch.arange(len(place), device=flat.device)
    lower, upper = flat.repeat_interleave(len(features), 0), flat.repeat_interleave(len(features), 0)
    lower[domains, place], upper[domains, place] = least.repeat(len(flat)), most.repeat(len(flat))
    centre = (lower + upper) / 2
    row = flat.new_zeros((len(place), 1, network.outputs))
    row[:, 0, output] = 1.0
    found = []
    for some in domains.split(_DOMAINS_AT_ONCE):
        radius = float((upper[some] - centre[some]).max())
        region = Region(centre[some], radius, "inf", lower[some], upper[some])
        low, high = METHODS[method](Problem(network, region, row[some], *options)).jacobian()
        here = torch.arange(len(some), device=flat.device), torch.zeros_like(some), place[some]
        found.append(torch.stack([low[here], high[here]]))
    low, high = torch.cat(found, 1).reshape(2, len(flat), len(features))
    return low, high


def _judge(
    model: nn.Module | Graph,
    network: Network,
    flat: Tensor,
    features: list[int],
    edges: tuple[Tensor, Tensor],
    output: int,
    expect: Expected,
    slopes: tuple[Tensor, Tensor],
) -> tuple[tuple[tuple[Verdict, ...], ...], tuple[Violation, ...]]:
    """What the bounds decide, and for the rest what the model shows."""
    verdicts: list[tuple[Verdict, ...]] = []
    violations: list[Violation] = []
    for index, row in enumerate(flat):
        said: list[Verdict] = []
        for place, feature in enumerate(features):
            rises, falls = bool(slopes[0][index, place] >= 0), bool(slopes[1][index, place] <= 0)
            # A slope of 0 all along is both, and agrees with what is expected.
            certified: Verdict = "unknown"
            if rises or falls:
                certified = "increasing" if rises and not (falls and expect == "decreasing") else "decreasing"
            if certified != "unknown" and expect in ("either", certified):
                said.append(certified)
                continue
            ends = float(edges[0][place]), float(edges[1][place])
            violation = _violation(model, network, row, (index, feature), ends, output, expect)
            if violation is not None:
                violations.append(violation)
            said.append("unknown" if violation is None else "violated")
        verdicts.append(tuple(said))
    return tuple(verdicts), tuple(violations)


def _violation(
    model: nn.Module | Graph,
    network: Network,
    row: Tensor,
    where: tuple[int, int],
    ends: tuple[float, float],
    output: int,
    expect: Expected,
) -> Violation | None:
    values = torch.linspace(*ends, _POINTS, dtype=row.dtype, device=row.device)
    points = row.repeat(_POINTS, 1)
    points[:, where[1]] = values
    points = points.reshape(-1, *network.shapes[network.input]).to(_dtype(model))
    outputs = _evaluated(model, points, output)
    signed = -outputs if expect == "decreasing" else outputs
    wrong = _turning(outputs) if expect == "either" else _falling(signed)
    if wrong is None:
        return None
    # Once more, each by itself: a batch may be summed in another order.
    shown = torch.cat([_evaluated(model, points[each : each + 1], output) for each in wrong])
    steps = shown.diff()
    visible = _VISIBLE * shown.abs().amax()
    is_shown = {
        "increasing": steps[0] < -visible,
        "decreasing": steps[0] > visible,
        "either": steps[0] * steps[-1] < 0 and steps.abs().amin() > visible,
    }[expect]
    return Violation(*where, points[list(wrong)], shown) if bool(is_shown) else None


def _falling(outputs: Tensor) -> tuple[int, int] | None:
    """The pair, in order, that falls the most."""
    before, which = outputs.cummax(0)
    drop = before - outputs
    last = int(drop.argmax())
    return (int(which[last]), last) if drop[last] > 0 else None


def _turning(outputs: Tensor) -> tuple[int, int, int] | None:
    """Three, in order, of which the middle one is above both or below both by the most."""
    best: tuple[float, tuple[int, int, int]] | None = None
    for sign in (1, -1):
        signed = sign * outputs
        left, first = signed.cummin(0)
        right, last = signed.flip(0).cummin(0)
        height = torch.minimum(signed - left, signed - right.flip(0))
        peak = int(height.argmax())
        triple = int(first[peak]), peak, len(outputs) - 1 - int(last.flip(0)[peak])
        if height[peak] > 0 and (best is None or float(height[peak]) > best[0]):
            best = float(height[peak]), triple
    return None if best is None else best[1]


def _dtype(model: nn.Module | Graph) -> torch.dtype:
    tensors = model.weights.values() if isinstance(model, Graph) else (*model.parameters(), *model.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float64)


def _evaluated(model: nn.Module | Graph, points: Tensor, output: int) -> Tensor:
    outputs = model.run(points) if isinstance(model, Graph) else model(points)
    assert isinstance(outputs, Tensor)
    return outputs.flatten(1)[:, output]
