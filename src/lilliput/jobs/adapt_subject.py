"""What is adapted, and to what: an int8 network from a run, a file or a float module, and images of its new surroundings as codes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lilliput.errors import ConfigError, DataError
from lilliput.evidence import Run
from lilliput.jobs.int8_model import find_model, load_model

if TYPE_CHECKING:
    import numpy as np

    from lilliput.data import ImageData, ImageSplit
    from lilliput.graph import Graph
    from lilliput.jobs.adapt import AdaptConfig
    from lilliput.quantize import QuantizedGraph

CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Backbone:
    """A pretrained network before it meets its new images."""

    name: str
    network: QuantizedGraph | Graph
    """A float one is quantized with the new training images."""
    build: Run | None
    """Where it came from a build: its images were split with that seed, and its test images must stay unseen."""
    digest: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        from lilliput.quantize import QuantizedGraph

        network = self.network
        if isinstance(network, QuantizedGraph):
            shape = network.tensors[network.input].shape
        else:
            channels, *sides = network.shape(network.inputs[0])[1:]
            shape = (*sides, channels)
        if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
            raise DataError(
                f"'{self.name}' takes inputs of shape {list(shape)}, channels last; adapt is for square images, grey or in colour"
            )
        return shape[0], shape[1], shape[2]


@dataclass(frozen=True, eq=False)
class Task:
    """The network in integers, and its new images as it takes them."""

    qgraph: QuantizedGraph
    data: ImageData
    is_new_head: bool
    train: tuple[np.ndarray, np.ndarray]
    """(image, row, column, channel) int8 and classes; likewise the others."""
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def digest(self) -> str:
        """Of every image and label."""
        digest = hashlib.sha256()
        for codes, labels in (self.train, self.val, self.test):
            digest.update(f"{codes.shape}".encode() + codes.tobytes() + labels.tobytes())
        return digest.hexdigest()


def load_backbone(given: str) -> Backbone:
    """The network of a finished build or deploy, of a .tflite file, or of a file of ``torch.export.save``.

    Raises:
        DataError: none of them.
        GraphError: an exported module that cannot be traced.
    """
    path = Path(given)
    if path.is_file() and path.suffix != ".tflite":
        from lilliput.jobs.trained_network import load_subject

        subject = load_subject(given)
        return Backbone(subject.name, subject.graph, None, subject.digest)
    file, name = find_model(given)
    run = Run.load(path) if path.is_dir() else None
    build = run if run is not None and run.job == "build" else None
    return Backbone(name, load_model(file, name), build, hashlib.sha256(file.read_bytes()).hexdigest())


def load_task(config: AdaptConfig, backbone: Backbone) -> Task:
    """Read and shift the images, and say everything in the network's codes.

    Raises:
        DataError: images that cannot be read, or a network that takes no images.
        ConfigError: no data named and none known; the network's own head for another number of classes.
    """
    from lilliput.mcu.training.linear_head import with_linear_head
    from lilliput.mcu.training.update_plan import head_of
    from lilliput.quantize import QuantizedGraph, quantize_int8

    data = _load_data(config, backbone)
    splits = [_shifted(split, config.shift) for split in (data.train, data.val, data.test)]
    network = backbone.network
    if not isinstance(network, QuantizedGraph):
        network = quantize_int8(network, splits[0].tensors()[0][:CALIBRATION_IMAGES])
    qgraph = with_linear_head(network)
    outputs = len(head_of(qgraph).bias)
    classes = len(data.class_names)
    if config.head == "own" and outputs != classes:
        raise ConfigError(
            f"head='own': '{backbone.name}' tells {outputs} classes apart and '{data.name}' has {classes}; use head='new'"
        )
    is_pixels = isinstance(backbone.network, QuantizedGraph) and backbone.build is None
    train, val, test = (_codes(split, qgraph, is_pixels) for split in splits)
    is_new = config.head == "new" or (config.head == "auto" and outputs != classes)
    return Task(qgraph, data, is_new, train, val, test)


def _load_data(config: AdaptConfig, backbone: Backbone) -> ImageData:
    from lilliput.data import load_images

    rows, _, channels = backbone.image_shape
    known: dict[str, Any] = backbone.build.config if backbone.build is not None else {}
    source = config.data or known.get("data")
    if source is None:
        raise ConfigError(f"data is left out, and '{backbone.name}' is of no build that knows any; try data='digits'")
    of_build = source == known.get("data")
    seed = known["seed"] if of_build else config.seed
    limit = config.limit or (known.get("limit") if of_build else None)
    return load_images(source, image_size=rows, channels=channels, seed=seed, limit=limit, progress=not config.quiet)


def _shifted(split: ImageSplit, shift: str) -> ImageSplit:
    """The same images as another camera, or another way up, would see them."""
    import numpy as np

    from lilliput.data import ImageSplit

    images = split.images
    if shift == "rotate":
        images = np.rot90(images, axes=(1, 2))
    elif shift == "invert":
        images = 255 - images
    return ImageSplit(np.ascontiguousarray(images), split.labels)


def _codes(split: ImageSplit, qgraph: QuantizedGraph, is_pixels: bool) -> tuple[np.ndarray, np.ndarray]:
    """A file made elsewhere takes pixels less 128, as ``deploy`` feeds it; ours take byte / 255 by the input's scale."""
    import numpy as np

    if is_pixels:
        return (split.images.astype(np.int16) - 128).astype(np.int8), split.labels
    return qgraph.quantize_input(split.tensors()[0]), split.labels
