"""From a trained network and a point to sound bounds of how fast its outputs can change around it, with a report.

The network is what a finished build left, or a file of ``torch.export``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lilliput.errors import ConfigError, DataError, GraphError
from lilliput.evidence import Evidence, Run

if TYPE_CHECKING:
    import torch

    from lilliput.graph import Graph

Clip = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Bound how fast a network's outputs can change around a point: proved from above, met from below.

    Examples:
        lilliput certify runs/digits --center test:0 --eps 8/255 --out runs/cert
        lilliput certify net.pt2 --center x.npy --eps 0.05 --norm 2 --out runs/cert
        lilliput certify net.pt2 --center zeros --eps 0.1 --method ibp --time 60 --out runs/cert
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
    """Seconds, for methods that refine until they are over."""
    seed: int = 0
    """Of the search for points."""
    resume: bool = False
    """Continue an interrupted run of the same config."""
    quiet: bool = False
    """Print nothing but the result."""

    def __post_init__(self) -> None:
        self.radius()  # refuses what is no number
        self.range(is_build=True)
        if not (math.isfinite(self.time) and self.time > 0):
            raise ConfigError(f"time={self.time}: must be seconds above 0; try time=30")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must be 0 or more; try seed=0")
        if not self.out:
            raise ConfigError("out='': must name a directory; try out='runs/cert'")

    def radius(self) -> float:
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
class Subject:
    """A network, with what its run knows about its inputs."""

    graph: Graph
    name: str
    build: Run | None
    digest: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, without the batch."""
        return self.graph.shape(self.graph.inputs[0])[1:]


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


def certify(config: CertifyConfig) -> Run:
    """Do the whole job.

    Returns:
        The finished run; ``artifacts/witness.npy`` is the point where the lower bound was met, ``artifacts/jacobian.npz`` the bounds of
        every element.
    Raises:
        ConfigError: the output directory exists, an option is out of range, or there is no such method.
        DataError: no such network or run, or a center that does not suit it.
        GraphError, UnsupportedOpError: a network that cannot be traced, or an operation without a rule.
    """
    from lilliput.certify import METHODS
    from lilliput.jobs import certify_report

    if config.method not in METHODS:
        raise ConfigError(f"method='{config.method}': must be one of {', '.join(METHODS)}")
    with Run.create(config.out, job="certify", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("load network") as step:
            subject = load_subject(config.model)
            center, where = _center(config, subject)
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


def load_subject(given: str) -> Subject:
    """The network of a finished build, or of a file of ``torch.export``.

    Raises:
        DataError: neither.
        GraphError: the network cannot be traced, or was exported with a batch other than 1.
    """
    path = Path(given)
    if path.is_dir():
        return _of_build(path)
    if not path.is_file():
        raise DataError(f"{given}: there is no such file or run; give a finished build, or a file of torch.export.save")
    return _of_export(path)


def _of_build(path: Path) -> Subject:
    import torch
    from safetensors.torch import load_file

    from lilliput.certify import model_hash
    from lilliput.design import Design
    from lilliput.graph import trace

    run = Run.load(path)
    files = [path / "artifacts" / name for name in ("design.json", "model.safetensors")]
    if run.job != "build" or not all(file.is_file() for file in files):
        raise DataError(f"{path}: is a run of '{run.job}' that keeps no trained network; give a finished build")
    design, weights = Design.from_json(files[0].read_text()), load_file(files[1])
    # The classifier's bias is the last tensor of the network: as many classes as it has numbers.
    classes = len(weights[next(reversed(design.build().state_dict()))])
    model = design.build(classes)
    model.load_state_dict(weights)
    side = design.space.image_size
    graph = trace(model.eval(), torch.zeros(1, design.space.channels, side, side))
    return Subject(graph, path.resolve().name, run, model_hash(graph))


def _of_export(path: Path) -> Subject:
    import torch

    from lilliput.certify import model_hash
    from lilliput.graph import trace

    try:
        program = torch.export.load(path)
    except Exception as error:  # whatever a file that is none of torch.export's makes it raise
        raise DataError(f"{path}: cannot be read as a file of torch.export.save ({type(error).__name__})") from error
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
        raise GraphError(f"{path}: has {len(inputs)} inputs; must have one tensor; wrap it in a module that takes one")
    batch, *shape = (int(size) if isinstance(size, int) else None for size in inputs[0].shape)
    if batch not in (1, None) or None in shape:
        raise GraphError(
            f"{path}: was exported with input {list(inputs[0].shape)}; the first axis must be a batch of 1 (or dynamic) and the others "
            "fixed; export it with an example of batch 1"
        )
    example = torch.zeros((1, *(size for size in shape if size is not None)), dtype=inputs[0].dtype)
    graph = trace(program.module(), example, name=path.stem)
    return Subject(graph, path.stem, None, model_hash(graph))


def _center(config: CertifyConfig, subject: Subject) -> tuple[torch.Tensor, str]:
    """The centre, (*input shape), and in words what it is."""
    import torch

    given = config.center or ("zeros" if subject.build is None else "test:0")
    if given == "zeros":
        return torch.zeros(subject.shape), "zeros"
    if given.startswith("test:"):
        return _test_image(given, subject)
    return _from_file(given, subject), given


def _test_image(given: str, subject: Subject) -> tuple[torch.Tensor, str]:
    if subject.build is None:
        raise ConfigError(f"center='{given}': only a build has test images; give zeros or a .npy file")
    data = build_data(subject)
    number = given.removeprefix("test:")
    if not number.isdigit() or int(number) >= len(data.test):
        raise ConfigError(f"center='{given}': must be test:0 to test:{len(data.test) - 1}")
    images, labels = data.test.tensors()
    truth = data.class_names[int(labels[int(number)])]
    return images[int(number)], f"test image {number} of {data.name} (class {truth})"


def build_data(subject: Subject) -> Any:
    """The images that the build was made with, at the size that its network takes."""
    from lilliput.data import load_images

    assert subject.build is not None
    config = subject.build.config
    options = {name: config[name] for name in ("channels", "seed", "limit")}
    return load_images(config["data"], image_size=subject.shape[1], progress=False, **options)


def _from_file(given: str, subject: Subject) -> torch.Tensor:
    import numpy as np
    import torch

    try:
        values = np.load(given, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"center='{given}': cannot be read as a .npy file ({type(error).__name__}); give zeros, or a file"
        ) from error
    if values.dtype.kind not in "fiu":
        raise DataError(f"center='{given}': is of {values.dtype}; must be numbers")
    if [size for size in values.shape if size != 1] != [size for size in subject.shape if size != 1]:
        raise DataError(
            f"center='{given}': has shape {list(values.shape)}; the network takes {list(subject.shape)}, channels first"
        )
    scale = (
        255 if values.dtype == np.uint8 and subject.build is not None else 1
    )  # pixels, as a build's network sees them
    return torch.from_numpy(values.reshape(subject.shape).astype(np.float64) / scale)


def _digest(center: torch.Tensor) -> str:
    import hashlib

    return hashlib.sha256(center.double().numpy().tobytes()).hexdigest()


def _bound(config: CertifyConfig, run: Run, subject: Subject, center: torch.Tensor, where: str) -> Certified:
    import numpy as np
    import torch

    from lilliput.certify import METHODS, local_lipschitz, lower

    clip = config.range(is_build=subject.build is not None)
    outputs, _ = lower(subject.graph).run(center[None].double())
    said = int(outputs[0].argmax())
    options: dict[str, Any] = {"y": said} if config.outputs == "margins" else {}
    options |= {"norm": config.norm, "outputs": config.outputs, "clip": clip, "seed": config.seed}
    with run.step("bound") as step:
        if not step.done:
            result = local_lipschitz(
                subject.graph, center, config.radius(), method=config.method, time_limit=config.time, **options
            )
            low, high = result.jacobian_bounds()
            np.savez(run.artifact("jacobian.npz"), lower=low.numpy(), upper=high.numpy())
            np.save(run.artifact("witness.npy"), result.witness.numpy())
            loosest = next(iter(METHODS))
            product = local_lipschitz(subject.graph, center, config.radius(), method=loosest, **options)
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
    found, neurons = run.result("bound"), run.result("neurons")
    steepest = int(np.argmax(found["upper"]))
    with np.load(run.artifact("jacobian.npz")) as kept:
        elements = [torch.from_numpy(kept[name][steepest]).reshape(subject.shape) for name in ("lower", "upper")]
    names = _class_names(subject, outputs.shape[1])
    others = [f"{names[said]} less {name}" for index, name in enumerate(names) if index != said]
    return Certified(
        subject, center, where, others if config.outputs == "margins" else names, found["upper"], found["lower"],
        (found["loosest"][0], found["loosest"][1]), found["status"], found["trace"], (elements[0], elements[1]),
        [(name, low, high) for name, low, high in neurons["widest"]], neurons["undecided"], neurons["units"], run.steps["bound"].seconds,
    )  # fmt: skip


def _neurons(config: CertifyConfig, subject: Subject, center: torch.Tensor, clip: Clip | None) -> dict[str, Any]:
    """Bounds of what enters each gate: how many are undecided, and the widest of those."""
    import torch

    from lilliput.certify import Region, lower, preactivations

    network = lower(subject.graph)
    sources = {node.name: node.source for node in subject.graph.nodes}
    region = Region.ball(center.double().flatten()[None], config.radius(), config.norm, clip)
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


def _class_names(subject: Subject, outputs: int) -> list[str]:
    if subject.build is not None:
        try:
            names = [str(name) for name in build_data(subject).class_names]
        except DataError:  # the images are elsewhere by now; their names are a nicety
            names = []
        if len(names) == outputs:
            return names
    return [f"output {index}" for index in range(outputs)]


def _record(run: Run, config: CertifyConfig, made: Certified) -> None:
    upper, lower = max(made.upper), max(made.lower)
    ball = f"l_{config.norm} ball of radius {config.eps} around {made.where}"
    how = f"{config.method}, float64; rounding is not counted"
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
