"""Local Lipschitz constants: bounds and CPU seconds of every method, beside auto_LiRPA's on the same networks in the same run.

    OMP_NUM_THREADS=1 python benchmarks/certify.py [--auto-lirpa CHECKOUT [--deps DIR]] [--only NAME] [--seconds 8] [--json FILE]

Each network is trained here, from a seed. The figures are upper bounds of the largest output's l_1 gradient norm in an l_inf ball around
one centre. CPU seconds are of this process on one thread, after a call that is not counted; "bound" is the bounds of all outputs on a
network that is lowered already, which is the work that the peer is timed at; "call" is ``local_lipschitz`` as a user calls it, with its
lower bound and its witness. Every bound is held against 10,000 points of the ball and hill climbing by torch's own gradients; one that is
exceeded is a failure, and the exit code says so. Without a checkout, seconds cited for auto_LiRPA on networks of the same structure stand
beside ours; its bounds there were of other weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

import auto_lirpa
from certify_networks import SUBJECTS, Subject, Trained, digits
from certify_tables import Figure, Radii, Row, summary, table
from gradient_samples import sampled
from lilliput.certify import METHODS, Network, Problem, Region, certified_radius, local_lipschitz, lower
from lilliput.errors import ConfigError
from lilliput.graph import Graph, trace

QUICK = ("product", "ibp", "recurjac", "crown", "alpha")
REFINING = ("bab", "exact")
"""Timed once, and stopped after ``--seconds``."""
MEMORY = ("784-256-256-10", "cnn 28x28")
"""Networks whose peak memory is measured, each time in a process of its own."""
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--auto-lirpa", type=Path, help="a checkout of its repository")
    parser.add_argument("--deps", type=Path, help="a folder with appdirs, tqdm and graphviz, which it imports")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--seconds", type=float, default=8.0, help="for bab and exact, each on each network")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [subject for subject in SUBJECTS if arguments.only in subject.name]
    if not chosen:
        raise SystemExit(
            f"no network's name contains {arguments.only!r}; they are {', '.join(s.name for s in SUBJECTS)}"
        )
    checkout = None if arguments.auto_lirpa is None else (arguments.auto_lirpa, arguments.deps)
    library = None if checkout is None else auto_lirpa.load(*checkout)
    rows = []
    for subject in chosen:
        rows.append(measure(subject, arguments.seconds, library, checkout))
        print(table(rows[-1]), flush=True)
    print(summary(rows))
    peer = "not measured" if library is None else library.__version__
    print(
        f"\ntorch {torch.__version__}, float64; auto_LiRPA {peer}, float32; CPU seconds in all: {time.process_time():,.0f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([_plain(row) for row in rows], indent=2) + "\n")
    failures = [failure for row in rows for failure in row.failures()]
    if failures:
        raise SystemExit("\n".join(["", "failed:", *failures]))


def measure(
    subject: Subject, limit: float, library: ModuleType | None, checkout: tuple[Path, Path | None] | None
) -> Row:
    """Train, bound by every method of both sides, and sample."""
    trained = subject.trained()
    graph = trace(trained.model, trained.centre[None])
    ours = {name: our_figure(name, graph, trained, limit) for name in (*QUICK, *REFINING)} | {
        "crown, rigorous": rigorous_figure(graph, trained)
    }
    outputs = len(ours["crown"].per_output)
    peer: dict[str, Figure] = {}
    if library is not None:
        peer = {mode: peer_figure(library, trained, outputs, mode) for mode in auto_lirpa.MODES}
    megabytes = {}
    if subject.name in MEMORY:
        sides = [("ours", name) for name in ("crown", "alpha")]
        sides += [("auto_LiRPA", mode) for mode, figure in peer.items() if figure.per_output]
        megabytes = {name: peak_megabytes(trained, side, name, outputs, checkout) for side, name in sides}
    has_more = subject.name == "64-32-32-10"
    share = batch_share(graph, trained) if has_more else None
    found = radii(graph, trained) if has_more else None
    return Row(subject, trained.accuracy, sampled(trained).tolist(), ours, peer, megabytes, share, found)


def our_figure(name: str, graph: Graph, trained: Trained, limit: float) -> Figure:
    """One method on one network."""
    eps = trained.subject.eps
    network = lower(graph)
    problem = problem_of(network, trained, limit)

    def bound() -> Tensor:
        with torch.no_grad():
            return METHODS[name](problem).norm[0]

    if name in REFINING:
        started = time.process_time()
        try:
            found = local_lipschitz(graph, trained.centre, eps, method=name, time_limit=limit)
        except ConfigError as error:  # enumeration is of piecewise linear networks alone, and says so
            return Figure(name, status=str(error).split(";")[0])
        seconds = time.process_time() - started
        return Figure(name, found.per_output.tolist(), seconds, seconds, found.status)
    per_output, seconds = timed(bound)
    _, call_seconds = timed(lambda: local_lipschitz(graph, trained.centre, eps, method=name).per_output)
    return Figure(name, per_output.tolist(), seconds, call_seconds)


def rigorous_figure(graph: Graph, trained: Trained) -> Figure:
    """CROWN with rounding counted."""

    def call() -> Tensor:
        return local_lipschitz(graph, trained.centre, trained.subject.eps, rigorous=True).per_output

    try:
        per_output, seconds = timed(call)
    except ConfigError as error:
        return Figure("crown, rigorous", status=str(error).split(";")[0])
    return Figure("crown, rigorous", per_output.tolist(), call_seconds=seconds)


def problem_of(network: Network, trained: Trained, limit: float = 30.0) -> Problem:
    """All outputs in the ball."""
    region = Region.ball(trained.centre.double().flatten()[None], trained.subject.eps, "inf")
    rows = torch.eye(network.outputs, dtype=torch.float64)[None]
    return Problem(network, region, rows, time_limit=limit)


def peer_figure(library: ModuleType, trained: Trained, outputs: int, mode: auto_lirpa.Mode) -> Figure:
    """auto_LiRPA in one mode; with which options, or how all of them failed."""
    said = []
    for options in auto_lirpa.OPTIONS:
        try:
            peer = auto_lirpa.Peer(library, trained.model, trained.centre, outputs, trained.subject.eps, options)
            per_output, seconds = timed(partial(peer.constants, mode))
        except Exception as error:  # whatever it raises is what is to be recorded
            said.append(f"fails: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        return Figure(
            mode, per_output.tolist(), seconds, status="; ".join([*said, *(f"{k}={v}" for k, v in options.items())])
        )
    return Figure(mode, status="; ".join(said))


def timed(run: Callable[[], T], enough: float = 0.2) -> tuple[T, float]:
    """The result, and the median CPU seconds of as many calls as fill ``enough``; a first call is not counted."""
    run()
    seconds: list[float] = []
    while not seconds or (sum(seconds) < enough and len(seconds) < 15):
        started = time.process_time()
        result = run()
        seconds.append(time.process_time() - started)
    return result, statistics.median(seconds)


def batch_share(graph: Graph, trained: Trained) -> float:
    """32 centres in one call over 32 calls, in CPU seconds; their bounds are compared first."""
    images, _ = digits(trained.subject.shape)
    centres, eps = images[-32:], trained.subject.eps
    together, seconds = timed(lambda: local_lipschitz(graph, centres, eps).per_output)
    alone, singly = timed(lambda: torch.stack([local_lipschitz(graph, x, eps).per_output for x in centres]))
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)
    return seconds / singly


def radii(graph: Graph, trained: Trained, images: int = 100) -> Radii:
    """By CROWN, beside the product of norms."""
    x, y = digits(trained.subject.shape)
    x, y = x[-images:], y[-images:]
    started = time.process_time()
    crown = certified_radius(graph, x, y, clip=(0, 1))
    seconds = time.process_time() - started
    product = certified_radius(graph, x, y, clip=(0, 1), method="product")
    assert isinstance(crown, Tensor)
    assert isinstance(product, Tensor)
    right = product > 0
    return Radii(
        int(right.sum()),
        float(crown[right].median()),
        float((crown[right] / product[right]).median()),
        seconds / images,
    )


def peak_megabytes(
    trained: Trained, side: str, method: str, outputs: int, checkout: tuple[Path, Path | None] | None
) -> float:
    """Largest resident size of a fresh process that computes one bound."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        path = Path(folder) / "model.pt"
        torch.save(trained.model, path)
        eps = trained.subject.eps
        return pool.apply(_peak, (path, trained.centre, eps, side, method, outputs, checkout))


def _peak(
    path: Path,
    centre: Tensor,
    eps: float,
    side: str,
    method: str,
    outputs: int,
    checkout: tuple[Path, Path | None] | None,
) -> float:
    torch.set_num_threads(1)
    model = torch.load(path, weights_only=False)
    if side == "ours":
        local_lipschitz(model, centre, eps, method=method)
    else:
        assert checkout is not None
        library = auto_lirpa.load(*checkout)
        for options in auto_lirpa.OPTIONS:
            try:
                auto_lirpa.Peer(library, model, centre, outputs, eps, options).constants(method)
                break
            except Exception:  # recorded where it was timed
                continue
    # Not getrusage: its maximum is handed down by the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _plain(row: Row) -> dict[str, object]:
    figures = {side: {name: asdict(figure) for name, figure in getattr(row, side).items()} for side in ("ours", "peer")}
    return {
        "network": row.subject.name, "eps": row.subject.eps, "accuracy": row.accuracy, "sampled": row.sampled, **figures,
        "megabytes": row.megabytes, "batch_share": row.batch_share, "radii": None if row.radii is None else asdict(row.radii),
    }  # fmt: skip


if __name__ == "__main__":
    main()
