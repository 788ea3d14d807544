"""Whole data sets: one certificate for each input, on all cores or a cluster, kept line by line so that an interruption loses little.

The engine is joblib's: ``n_jobs`` runs inputs in processes on this machine; within ``joblib.parallel_config(backend="dask")`` or
``"ray"`` they run where that backend runs things. Each line is a pure function of the network, the input, the settings and the seed, so
every engine leaves the same file, unless a method stops by the clock.

The file is JSON lines. The first names the network (a hash of its graph and weights) and the settings; each other one holds the input's
index, a hash of its values and class, and what was found.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.certify.lipschitz import check_centres, check_options, local_lipschitz, prepared
from lilliput.certify.model_hash import model_hash
from lilliput.certify.radius import certified_radius, check_total_time_limit
from lilliput.errors import ConfigError, DataError
from lilliput.graph import Graph, trace
from lilliput.training.progress import Bar

Line = dict[str, Any]
_LINES_PER_JOB = 4
"""Inputs handed out at once to each process; after them their lines are written."""


def certify_each(
    model: nn.Module | Graph,
    X: Tensor,
    eps: float | int,
    norm: str = "inf",
    outputs: str = "rows",
    *,
    out: str | Path,
    y: Tensor | None = None,
    clip: tuple[float | int, float | int] | None = None,
    method: str = "crown",
    alpha_steps: int = 20,
    time_limit: float | int = 30.0,
    total_time_limit: float | int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    n_jobs: int | None = None,
    progress: bool = True,
) -> list[Line]:
    """``local_lipschitz`` of each input, one line each in ``out``; lines that it holds already are not computed again.

    Args:
        model: in evaluation mode; or its graph, traced with batch 1.
        X: inputs, (inputs, *input shape); may have grown since the file was begun.
        eps, norm, outputs, clip, method, alpha_steps, time_limit, dtype: as ``local_lipschitz``.
        out: the file; parents are made.
        y: class of each input, for "margins".
        total_time_limit: seconds for this call; when they are over no input is begun any more, and the lines that there are are returned.
            Each line is the same whatever the limit. Begun again, the call goes on where it stopped.
        seed: input i uses seed + i.
        n_jobs: processes; -1 for one a core; ``None`` is joblib's default, 1 unless ``joblib.parallel_config`` says otherwise.
        progress: draw a bar on the error stream.
    Returns:
        The lines in the order of the inputs, fewer where ``total_time_limit`` was over: ``input``, ``sha256``, ``upper``, ``lower``,
            ``per_output``, ``per_output_lower``, ``status``.
    Raises:
        ConfigError: the file is of another network or other settings; an option outside what is allowed.
        DataError: the file is damaged, or holds another input or class at some index; and as ``local_lipschitz``.
        GraphError, UnsupportedOpError: as ``local_lipschitz``.
    """
    check_options(float(eps), norm, clip, method, dtype, False, outputs, y)
    options = {"alpha_steps": alpha_steps, "time_limit": float(time_limit), "dtype": dtype}
    settings = {"eps": float(eps), "norm": norm, "outputs": outputs, "clip": clip, "method": method, **options}
    work = _Work("lipschitz", settings, seed)
    return _each(work, model, X, y, Path(out), n_jobs, progress, total_time_limit)


def radius_each(
    model: nn.Module | Graph,
    X: Tensor,
    y: Tensor,
    norm: str = "inf",
    *,
    out: str | Path,
    max_eps: float | int = 1.0,
    clip: tuple[float | int, float | int] | None = None,
    method: str = "crown",
    tolerance: float = 0.02,
    alpha_steps: int = 20,
    time_limit: float | int = 30.0,
    total_time_limit: float | int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    n_jobs: int | None = None,
    progress: bool = True,
) -> list[Line]:
    """``certified_radius`` of each input, one line each in ``out``, as ``certify_each``.

    Returns:
        The lines in the order of the inputs, fewer where ``total_time_limit`` was over: ``input``, ``sha256``, ``y``, ``radius``.
    """
    check_options(float(max_eps), norm, clip, method, dtype, False, "margins", y)
    options = {"tolerance": tolerance, "alpha_steps": alpha_steps, "time_limit": float(time_limit), "dtype": dtype}
    settings = {"max_eps": float(max_eps), "norm": norm, "clip": clip, "method": method, **options}
    return _each(_Work("radius", settings, seed), model, X, y, Path(out), n_jobs, progress, total_time_limit)


class _Work:
    """What is done for each input; small, and can be sent to another process."""

    def __init__(self, what: str, settings: dict[str, Any], seed: int) -> None:
        self.what, self.seed = what, seed
        clip: tuple[float | int, float | int] | None = settings["clip"]
        self.clip = None if clip is None else (float(clip[0]), float(clip[1]))
        # A list, as it is read back from the file.
        self.settings = {**settings, "clip": None if self.clip is None else list(self.clip)}

    def header(self, graph: Graph) -> Line:
        return {"certify": self.what, "model": model_hash(graph), "seed": self.seed, "settings": self.settings}

    def __call__(self, graph: Graph, index: int, x: Tensor, y: int | None) -> Line:
        options = {**self.settings, "seed": self.seed + index, "clip": self.clip}
        line: Line = {"input": index, "sha256": _input_hash(x, y)}
        if self.what == "radius":
            assert y is not None
            return line | {"y": y, "radius": certified_radius(graph, x, y, **options)}
        found = local_lipschitz(graph, x, y=y, **options)
        return line | {
            "upper": found.upper,
            "lower": found.lower,
            "per_output": found.per_output.tolist(),
            "per_output_lower": found.per_output_lower.tolist(),
            "status": found.status,
        }


def _input_hash(x: Tensor, y: int | None) -> str:
    values = x.detach().cpu().double().contiguous()
    return hashlib.sha256(f"{tuple(values.shape)} {y}".encode() + values.numpy().tobytes()).hexdigest()[:16]


def _each(
    work: _Work,
    model: nn.Module | Graph,
    X: Tensor,
    y: Tensor | None,
    out: Path,
    n_jobs: int | None,
    progress: bool,
    total_time_limit: float | int | None,
) -> list[Line]:
    check_total_time_limit(total_time_limit)
    deadline = math.inf if total_time_limit is None else time.perf_counter() + float(total_time_limit)
    _, centres, is_single = prepared(model, X, torch.float64, None)
    if is_single:
        raise DataError(f"X has shape {list(X.shape)}: give inputs, {['inputs', *X.shape]}; for one, X[None]")
    check_centres(centres, work.clip)
    if y is not None and tuple(y.shape) != (len(X),):
        raise DataError(f"y has shape {list(y.shape)}; must be one class for each of {len(X)} inputs")
    labels: list[int | None] = [None] * len(X) if y is None else [int(label) for label in y]
    graph = model if isinstance(model, Graph) else _traced(model, X)
    header = work.header(graph)
    known = _read(out, header)
    for index, line in known.items():
        if index < len(X) and line["sha256"] != _input_hash(X[index], labels[index]):
            raise DataError(
                f"{out}: input {index} is not the one it was begun with; give the same inputs, in order, or another file"
            )
    missing = [index for index in range(len(X)) if index not in known]
    if not known:
        _begin(out, header)
    items = [(index, X[index].detach().cpu().clone(), labels[index]) for index in missing]
    for line in _computed(work, graph, items, out, n_jobs, Bar("certifying", len(X), len(known), progress), deadline):
        known[line["input"]] = line
    return [known[index] for index in range(len(X)) if index in known]


def _traced(model: nn.Module, X: Tensor) -> Graph:
    weight = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), X)
    return trace(model, X[:1].to(weight.device, weight.dtype))


def _computed(
    work: _Work,
    graph: Graph,
    items: list[tuple[int, Tensor, int | None]],
    out: Path,
    n_jobs: int | None,
    bar: Bar,
    deadline: float,
) -> list[Line]:
    from joblib import Parallel, delayed, effective_n_jobs

    lines: list[Line] = []
    with out.open("a", encoding="utf-8") as file, bar, Parallel(n_jobs=n_jobs) as parallel:
        # With a deadline, one at a time for each process: it is overrun by no more than one input takes.
        at_once = effective_n_jobs(n_jobs) * (_LINES_PER_JOB if math.isinf(deadline) else 1)
        for start in range(0, len(items), at_once):
            if time.perf_counter() >= deadline:
                break
            found = parallel(delayed(work)(graph, *item) for item in items[start : start + at_once])
            # In the order of the inputs whichever came first, so that the file is the same on every engine.
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in found))
            file.flush()
            os.fsync(file.fileno())
            lines += found
            bar.advance(len(found))
    return lines


def _begin(out: Path, header: Line) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(header) + "\n", encoding="utf-8")


def _read(out: Path, header: Line) -> dict[int, Line]:
    """Lines by index; a last line that was cut off is removed from the file."""
    if not out.exists() or out.stat().st_size == 0:
        return {}
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        first, *lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()] or [None]
        known = {int(line["input"]): line for line in lines}
        complete = all(isinstance(line["sha256"], str) for line in lines)
        if not (isinstance(first, dict) and "certify" in first and complete):
            raise ValueError("its first line is no header")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out}: is not a file of certificates ({error}); give another name") from error
    for name, now in header.items():
        if first.get(name) != now:
            raise ConfigError(
                f"{out}: was begun with {_difference(name, first.get(name), now)}; give another file, or the same again"
            )
    if len(whole) < len(content):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return known


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        name, then, now = next((key, then.get(key), now[key]) for key in now if then.get(key) != now[key])
    if name == "model":
        return "another network"
    return f"{name}={then!r} and not {now!r}"
