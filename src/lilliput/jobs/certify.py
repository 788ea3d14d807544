"""From a trained network and a point to sound bounds of how fast its outputs can change around it, with a report.

The network is what a finished build left, or a file of ``torch.export``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lilliput.errors import ConfigError, DataError, LilliputError
from lilliput.evidence import Evidence, Run

if TYPE_CHECKING:
    import torch

    from lilliput.jobs.trained_network import Subject

Clip = tuple[float, float]
_CHECKPOINT = "checkpoint.zip"


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Bound how fast a network's outputs can change around a point: proved from above, met from below.

    Examples:
        lilliput certify runs/digits --center test:0 --eps 8/255 --out runs/cert
        lilliput certify net.pt2 --center x.npy --eps 0.05 --norm 2 --out runs/cert
        lilliput certify net.pt2 --center zeros --eps 0.1 --method bab --time 60 --out runs/cert
        lilliput certify net.pt2 --center zeros --eps 0.1 --method bab --time 600 --continues runs/cert --out runs/longer
        lilliput certify runs/digits --center test:3 --eps 2/255 --radius --out runs/cert
    """

    model: Positional[str]
    """The directory of a finished build, or a file of torch.export.save."""
    out: str
    """Directory of the run; it must not exist yet (while the job works it is called OUT.partial)."""
    center: str | None = None
    """test:N (image N of the build's test split), zeros, or a .npy file; if left out, test:0 of a build, else zeros."""
    eps: str = "8/255"
    """Radius of the ball, in the units of the network's input; a number or a fraction."""
    norm: Literal["inf", "1", "2"] = "inf"
    """Of the perturbation."""
    outputs: Literal["rows", "margins"] = "rows"
    """rows: each output. margins: the class that the network gives the center, less each other one."""
    clip: str = "auto"
    """Least and greatest value of an input, as 0,1; or none; auto is 0,1 for a build and none for a file."""
    method: str = "crown"
    """A name of lilliput.certify.METHODS, from product, the loosest and quickest; an unknown one lists them."""
    time: float = 30.0
    """Seconds, for methods that refine until they are over (Ctrl-C ends them before, with what they have); a radius takes as many again."""
    continues: str | None = None
    """A finished run of the same question, by bab or exact, that time or Ctrl-C ended: go on from there; its seconds count in the time."""
    radius: bool = False
    """Certify a radius too: how far the center can be moved before the class that the network gives it could change."""
    rigorous: bool = False
    """Count rounding: the upper bound holds in real arithmetic (piecewise linear gates; product, ibp, recurjac, crown or alpha)."""
    seed: int = 0
    """Of the search for points."""
    resume: bool = False
    """Continue an interrupted run of the same config; of bab and exact at most about 10 seconds are done again."""
    quiet: bool = False
    """Print nothing but the result."""

    def __post_init__(self) -> None:
        self.eps_value()  # refuses what is no number
        self.range(is_build=True)
        if not (math.isfinite(self.time) and self.time > 0):
            raise ConfigError(f"time={self.time}: must be seconds above 0; try time=30")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must be 0 or more; try seed=0")
        if not self.out:
            raise ConfigError("out='': must name a directory; try out='runs/cert'")

    def eps_value(self) -> float:
        """``eps`` as a number."""
        return parse_fraction("eps", self.eps)

    def range(self, is_build: bool) -> Clip | None:
        """``clip`` as numbers."""
        if self.clip in ("auto", "none"):
            return (0.0, 1.0) if self.clip == "auto" and is_build else None
        try:
            low, high = (float(word) for word in self.clip.split(","))
        except ValueError:
            raise ConfigError(
                f"clip='{self.clip}': must be two numbers as 0,1, or none, or auto; try clip='0,1'"
            ) from None
        if not low < high:
            raise ConfigError(f"clip='{self.clip}': the first must be less than the second; try clip='0,1'")
        return low, high


def parse_fraction(name: str, text: str) -> float:
    """A number, or one over another.

    >>> parse_fraction("eps", "51/255")
    0.2
    """
    try:
        above, *below = (float(part) for part in text.split("/"))
        value = above / below[0] if below else above
        if len(below) > 1 or not (math.isfinite(value) and value >= 0):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{name}='{text}': must be a number from 0, or a fraction; try {name}='8/255'") from None
    return value


@dataclass(frozen=True)
class Certified:
    """Everything that was found, as the report needs it."""

    subject: Subject
    center: torch.Tensor
    where: str
    labels: list[str]
    """Of the rows."""
    upper: list[float]
    lower: list[float]
    loosest: tuple[str, float]
    """Name of the oldest method, and its bound."""
    status: str
    trace: list[list[float]]
    elements: tuple[torch.Tensor, torch.Tensor]
    """Bounds of the steepest row's elements, (*input shape)."""
    neurons: list[tuple[str, float, float]]
    """The widest undecided pre-activations: name, lower, upper."""
    undecided: int
    units: int
    seconds: float
    radius: dict[str, Any] | None
    """Of the step "radius", if it was asked for."""


def certify(config: CertifyConfig) -> Run:
    """Do the whole job.

    Returns:
        The finished run; ``artifacts/witness.npy`` is the point where the lower bound was met, ``artifacts/jacobian.npz`` the bounds of
        every element; ``artifacts/checkpoint.zip``, where bab or exact ended with something open, is what to go on from.
    Raises:
        ConfigError: the output directory exists, an option is out of range, or there is no such method.
        DataError: no such network or run, a center that does not suit it, or nothing to continue.
        GraphError, UnsupportedOpError: a network that cannot be traced, or an operation without a rule.
    """
    from lilliput.certify.method import METHODS, REFINING
    from lilliput.jobs import certify_report
    from lilliput.jobs.certify_center import load_center
    from lilliput.jobs.trained_network import load_subject

    if config.method not in METHODS:
        raise ConfigError(f"method='{config.method}': must be one of {', '.join(METHODS)}")
    if config.continues is not None and config.method not in REFINING:
        raise ConfigError(
            f"continues='{config.continues}' with method='{config.method}': must be one of {', '.join(REFINING)}, which can be taken up"
        )
    with Run.create(config.out, job="certify", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("load network") as step:
            subject = load_subject(config.model)
            center, where = load_center(config.center, subject)
            known = {"network": subject.digest, "center": _digest(center)}
            if step.done and step.result != known:
                raise ConfigError(
                    f"{run.path} cannot be resumed: the network or the center has changed since it was begun; "
                    f"remove {run.path} to start anew"
                )
            step.save(known)
        made = _bound(config, run, subject, center, where)
        _record(run, config, made)
        certify_report.write(run, config, made)
    return run


def show(config: CertifyConfig, run: Run) -> None:
    """Print the verdict, the figures under it, and where the report is."""
    from lilliput.evidence.numbers import amount

    assert run.report is not None
    print(run.report.verdict)
    for name in run.report.highlights:
        each = run.evidence[name]
        print(f"  {name:<28} {amount(each.value, each.unit)} ({each.how})")
    print(f"report: {run.path / 'report.html'}")


def _digest(center: torch.Tensor) -> str:
    import hashlib

    return hashlib.sha256(center.double().numpy().tobytes()).hexdigest()


def _bound(config: CertifyConfig, run: Run, subject: Subject, center: torch.Tensor, where: str) -> Certified:
    import numpy as np
    import torch

    from lilliput.certify import METHODS, local_lipschitz, lower
    from lilliput.jobs.trained_network import class_names

    clip = config.range(is_build=subject.build is not None)
    outputs, _ = lower(subject.graph).run(center[None].double())
    said = int(outputs[0].argmax())
    options: dict[str, Any] = {"y": said} if config.outputs == "margins" else {}
    options |= {
        "norm": config.norm,
        "outputs": config.outputs,
        "clip": clip,
        "seed": config.seed,
        "rigorous": config.rigorous,
    }
    with run.step("bound") as step:
        if not step.done:
            with _checkpoint(config, run) as checkpoint, _bar(config) as progress:
                result = local_lipschitz(
                    subject.graph, center, config.eps_value(), method=config.method, time_limit=config.time,
                    progress=progress, is_interruptible=True, checkpoint=checkpoint, **options,
                )  # fmt: skip
            if checkpoint is not None and result.status in ("exact", "bounded"):  # nothing is left to go on from
                checkpoint.unlink(missing_ok=True)
            low, high = result.jacobian_bounds()
            np.savez(run.artifact("jacobian.npz"), lower=low.numpy(), upper=high.numpy())
            np.save(run.artifact("witness.npy"), result.witness.numpy())
            loosest = next(iter(METHODS))
            product = local_lipschitz(subject.graph, center, config.eps_value(), method=loosest, **options)
            step.save(
                {
                    "upper": result.per_output.tolist(),
                    "lower": result.per_output_lower.tolist(),
                    "status": result.status,
                    "trace": [[float(number) for number in row] for row in result.trace],
                    "loosest": [loosest, product.upper],
                }
            )
    with run.step("neurons") as step:
        if not step.done:
            step.save(_neurons(config, subject, center, clip))
    if config.radius:
        with run.step("radius") as step:
            if not step.done:
                step.save(_radius(config, subject, center, said, clip))
    found, neurons = run.result("bound"), run.result("neurons")
    steepest = int(np.argmax(found["upper"]))
    with np.load(run.artifact("jacobian.npz")) as kept:
        elements = [torch.from_numpy(kept[name][steepest]).reshape(subject.shape) for name in ("lower", "upper")]
    names = class_names(subject, outputs.shape[1])
    others = [f"{names[said]} less {name}" for index, name in enumerate(names) if index != said]
    return Certified(
        subject, center, where, others if config.outputs == "margins" else names, found["upper"], found["lower"],
        (found["loosest"][0], found["loosest"][1]), found["status"], found["trace"], (elements[0], elements[1]),
        [(name, low, high) for name, low, high in neurons["widest"]], neurons["undecided"], neurons["units"], run.steps["bound"].seconds,
        {**run.result("radius"), "class": names[said]} if config.radius else None,
    )  # fmt: skip


@contextmanager
def _checkpoint(config: CertifyConfig, run: Run) -> Iterator[Path | None]:
    """The run's file of a refining, begun with that of the run that it continues."""
    from lilliput.certify.method import REFINING
    from lilliput.evidence.atomic import write_bytes

    if config.method not in REFINING:
        yield None
        return
    kept = run.artifact(_CHECKPOINT)
    is_new = not kept.exists()
    if is_new and config.continues is not None:
        before = Run.load(config.continues)
        given = before.path / "artifacts" / _CHECKPOINT
        if not given.is_file():
            raise DataError(
                f"continues='{config.continues}': has no {given.name} among its artifacts; only bab and exact leave one, where they end "
                "with something open; leave --continues away"
            )
        write_bytes(kept, given.read_bytes())
    try:
        yield kept
    except LilliputError:
        if is_new:  # the corrected command must find the name free
            kept.unlink(missing_ok=True)
        raise


def _radius(
    config: CertifyConfig, subject: Subject, center: torch.Tensor, said: int, clip: Clip | None
) -> dict[str, Any]:
    """Radii by the method and by the oldest one, and whether time was over."""
    from lilliput.certify import METHODS, certified_radius

    # Where the ball holds the whole range of the data there is nothing further; without a range, as if it were 1 wide.
    width = 1.0 if clip is None else clip[1] - clip[0]
    most = width * center.numel() ** {"inf": 0.0, "2": 0.5, "1": 1.0}[config.norm]
    options: dict[str, Any] = {"norm": config.norm, "max_eps": most, "clip": clip, "seed": config.seed}
    options["rigorous"] = config.rigorous
    loosest = next(iter(METHODS))
    before = time.perf_counter()
    radius = certified_radius(
        subject.graph, center, said, method=config.method, total_time_limit=config.time, **options
    )
    is_time_over = time.perf_counter() - before >= config.time
    return {
        "certified": radius,
        "loosest": [loosest, certified_radius(subject.graph, center, said, method=loosest, **options)],
        "is_time_over": is_time_over,
        "most": most,
    }


@contextmanager
def _bar(config: CertifyConfig) -> Iterator[Callable[[float, float, float, int], None]]:
    """The seconds that a refining method may take, and how far its bounds are apart; drawn once there is a first entry."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=config.quiet, transient=True) as drawn:
        task = drawn.add_task(config.method, total=config.time, visible=False)

        def note(seconds: float, upper: float, lower: float, open_domains: int) -> None:
            text = f"{config.method}: {lower:.5g} to {upper:.5g}, {open_domains:,} open"
            drawn.update(task, completed=min(seconds, config.time), description=text, visible=True)

        yield note


def _neurons(config: CertifyConfig, subject: Subject, center: torch.Tensor, clip: Clip | None) -> dict[str, Any]:
    """Bounds of what enters each gate: how many are undecided, and the widest of those."""
    import torch

    from lilliput.certify import Region, lower, preactivations

    network = lower(subject.graph)
    sources = {node.name: node.source for node in subject.graph.nodes}
    region = Region.ball(center.double().flatten()[None], config.eps_value(), config.norm, clip)
    with torch.no_grad():
        known = preactivations(network, region)
        slopes = known.slopes(network)
    found: list[tuple[float, str, float, float]] = []
    undecided = 0
    for gate, low, high, (least, greatest) in zip(network.gates, known.lower, known.upper, slopes, strict=True):
        is_open = (least < greatest)[0]
        undecided += int(is_open.sum())
        width = torch.where(is_open, (high - low)[0], 0.0)
        size, unit = width.topk(min(12, len(width)))
        shape = network.shapes[gate.source]
        for each, index in zip(size.tolist(), unit.tolist(), strict=True):
            if each > 0:
                place = ",".join(str(int(axis)) for axis in torch.unravel_index(torch.tensor(index), shape))
                name = f"{sources.get(gate.name) or gate.name}[{place}]"
                found.append((each, name, float(low[0, index]), float(high[0, index])))
    widest = [list(row[1:]) for row in sorted(found, reverse=True)[:12]]
    return {"widest": widest, "undecided": undecided, "units": sum(network.units(i) for i in range(len(network.gates)))}


def _record(run: Run, config: CertifyConfig, made: Certified) -> None:
    upper, lower = max(made.upper), max(made.lower)
    ball = f"l_{config.norm} ball of radius {config.eps} around {made.where}"
    how = f"{config.method}, float64; rounding is {'' if config.rigorous else 'not '}counted"
    unit = "per unit of input"
    name, loosest = made.loosest
    run.record(
        Evidence("lipschitz.upper", upper, unit, "proved", source=ball, detail=how),
        Evidence("lipschitz.lower", lower, unit, "measured", n=1, source="gradient at the point of artifacts/witness.npy"),
        Evidence("lipschitz.gap", upper - lower, unit, "proved", source="upper less lower: the constant is off by no more"),
        Evidence(f"lipschitz.{name}", loosest, unit, "proved", source=f"method '{name}', for comparison"),
        Evidence("neurons.undecided", made.undecided, "neurons", "proved", source=f"at most so many change their slope; {ball}"),
        Evidence("neurons.all", made.units, "neurons", "counted", source="inputs of all gates"),
        Evidence("bound.seconds", made.seconds, "seconds", "measured", n=1, source=f"method {config.method}, with its elements"),
    )  # fmt: skip
    if made.radius is None:
        return
    what = f"l_{config.norm} around {made.where}, class '{made.radius['class']}'"
    name, radius = made.radius["loosest"]
    run.record(
        Evidence("radius.certified", made.radius["certified"], "units of input", "proved", source=what, detail=how),
        Evidence(f"radius.{name}", radius, "units of input", "proved", source=f"method '{name}', for comparison"),
    )
