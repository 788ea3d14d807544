"""A trained network that a job is given: that of a finished build, or of an exported file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lilliput.errors import DataError, GraphError
from lilliput.evidence import Run

if TYPE_CHECKING:
    import torch

    from lilliput.data import ImageData
    from lilliput.graph import Graph


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

    from lilliput.certify import model_hash
    from lilliput.graph import trace

    run, model, shape = built_network(path)
    graph = trace(model, torch.zeros(1, *shape))
    return Subject(graph, path.resolve().name, run, model_hash(graph))


def built_network(path: Path) -> tuple[Run, torch.nn.Module, tuple[int, int, int]]:
    """The run of a finished build, its float network in evaluation mode, and the shape of one input.

    Raises:
        DataError: no finished build that kept its network.
    """
    from safetensors.torch import load_file

    from lilliput.design import Design

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
    return run, model.eval(), (design.space.channels, side, side)


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


def build_data(subject: Subject) -> ImageData:
    """The images that the build was made with, at the size that its network takes.

    Raises:
        DataError: they are gone, or others by now.
    """
    from lilliput.jobs.build import BuildConfig, data_digest, load_data

    assert subject.build is not None
    known = subject.build.config
    config = BuildConfig(**{each.name: known[each.name] for each in fields(BuildConfig) if each.name in known})
    config = replace(config, quiet=True)
    data = load_data(config, config.image_size)
    if data_digest(data) != subject.build.result("load data")["digest"]:
        raise DataError(
            f"the images of '{config.data}' are not those that {subject.build.path} was built with, so its test images cannot be told "
            "from others; put those back, or give center='zeros' or a .npy file"
        )
    return data if data.input_shape == subject.shape else load_data(config, subject.shape[1])


def class_names(subject: Subject, outputs: int) -> list[str]:
    """Of each output; a number where the build's images are not at hand."""
    if subject.build is not None:
        try:
            names = [str(name) for name in build_data(subject).class_names]
        except DataError:  # the images are elsewhere by now; their names are a nicety
            names = []
        if len(names) == outputs:
            return names
    return [f"output {index}" for index in range(outputs)]
