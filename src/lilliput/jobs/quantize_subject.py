"""What is quantized and what it is tried on: the network of a build, of an exported file or of a BERT folder, with inputs and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lilliput.errors import ConfigError, DataError, GraphError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lilliput.data import TextClassifier, TextData, WordPiece
    from lilliput.jobs.quantize import QuantizeConfig
    from lilliput.jobs.trained_network import Subject

_RANDOM_INPUTS = 256
_BATCH = 64


@dataclass(frozen=True)
class Trial:
    """A float network in evaluation mode, with what it is tried on."""

    name: str
    model: nn.Module
    batches: list[Any]
    """Of inputs, as the model is called with."""
    inputs: str
    """In words what they are."""
    labels: Tensor | None
    """Class of each input, in the order of the batches."""
    skip: tuple[str, ...] = ()
    """Layers that stay float whatever the config says."""

    @property
    def digest(self) -> str:
        """Hash of weights, inputs and labels."""
        import torch

        state = self.model.state_dict().values()
        labels = [] if self.labels is None else [self.labels]
        inputs = [part for batch in self.batches for part in (batch if isinstance(batch, tuple) else (batch,))]
        digest = hashlib.sha256()
        for tensor in (*state, *inputs, *labels):
            digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_trial(config: QuantizeConfig) -> Trial:
    """The network and its inputs.

    Raises:
        DataError: no such network or data, or data that do not suit the network.
        GraphError, UnsupportedOpError: an exported network that cannot be traced.
        ConfigError: texts are missing for a text network, or options that do not go together.
    """
    if (Path(config.model) / "config.json").is_file():
        return _of_texts(config)
    return _of_arrays(config)


def _of_arrays(config: QuantizeConfig) -> Trial:
    from lilliput.graph import GraphNetwork
    from lilliput.jobs.trained_network import built_network, load_subject
    from lilliput.quantize import fold_affine

    if config.head_data is not None:
        raise ConfigError(f"head_data='{config.head_data}': only a folder of a BERT network has a head to fit")
    subject = load_subject(config.model)
    if subject.build is not None:
        model: nn.Module = built_network(Path(config.model))[1]
    else:
        if len(subject.graph.outputs) != 1:
            raise GraphError(f"{config.model}: has {len(subject.graph.outputs)} outputs; must have one")
        model = GraphNetwork(fold_affine(subject.graph))
    inputs, labels, words = _inputs(config, subject)
    return Trial(subject.name, model.eval(), list(inputs.split(_BATCH)), words, labels)


def _inputs(config: QuantizeConfig, subject: Subject) -> tuple[Tensor, Tensor | None, str]:
    import torch

    if config.labels is not None and not (config.data or "").endswith(".npy"):
        raise ConfigError("labels: go with data='x.npy' alone; other data have labels of their own")
    if config.data is None and subject.build is None:
        generator = torch.Generator().manual_seed(config.seed)
        count = min(config.limit, _RANDOM_INPUTS)
        return torch.randn(count, *subject.shape, generator=generator), None, f"{count} random normal inputs"
    if config.data is not None and config.data.endswith(".npy"):
        return _of_files(config, subject)
    from lilliput.data import load_images
    from lilliput.jobs.trained_network import build_data

    if config.data is None:
        data = build_data(subject)
    elif len(subject.shape) != 3 or subject.shape[1] != subject.shape[2]:
        raise DataError(f"data='{config.data}': the network takes {list(subject.shape)}, no square images; give a .npy")
    else:
        data = load_images(config.data, image_size=subject.shape[1], channels=subject.shape[0], seed=config.seed)
    images, labels = data.test.tensors()
    chosen = _chosen(len(images), config.limit, config.seed)
    classes = subject.graph.shape(subject.graph.outputs[0])[-1]
    if len(data.class_names) != classes:
        raise DataError(f"{data.name} has {len(data.class_names)} classes; the network has {classes} outputs")
    return images[chosen], labels[chosen], f"{len(chosen):,} test images of {data.name}"


def _of_files(config: QuantizeConfig, subject: Subject) -> tuple[Tensor, Tensor | None, str]:
    import torch

    values = _array(config.data, "data")
    if values.shape[1:] != subject.shape:
        raise DataError(
            f"data='{config.data}': has shape {list(values.shape)}; the network takes (n, {str(subject.shape)[1:]}"
        )
    chosen = _chosen(len(values), config.limit, config.seed)
    dtype = getattr(torch, subject.graph.values[subject.graph.inputs[0]].dtype)
    labels = None
    if config.labels is not None:
        labels = _array(config.labels, "labels")
        if labels.shape != (len(values),) or labels.is_floating_point():
            raise DataError(
                f"labels='{config.labels}': has {labels.dtype} {list(labels.shape)}; needs {len(values):,} whole numbers"
            )
        labels = labels[chosen].long()
    return values[chosen].to(dtype), labels, f"{len(chosen):,} inputs of {config.data}"


def _array(path: str | None, name: str) -> Tensor:
    import numpy as np
    import torch

    try:
        return torch.from_numpy(np.load(str(path), allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{name}='{path}': cannot be read as a .npy file of numbers ({type(error).__name__})"
        ) from error


def _chosen(count: int, limit: int, seed: int) -> list[int]:
    """Up to ``limit`` of ``count`` places, drawn and in order."""
    import numpy as np

    return sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())


def _of_texts(config: QuantizeConfig) -> Trial:
    import torch

    from lilliput.data import WordPiece
    from lilliput.data.text_classifier import text_batches

    if config.labels is not None:
        raise ConfigError("labels: texts have labels of their own; leave it out")
    model, test = text_network(config)
    tokens = WordPiece.from_folder(config.model)
    batches = list(text_batches(tokens, test.texts, _BATCH, _most_tokens(model)))
    name = Path(config.model).resolve().name
    return Trial(name, model, batches, f"{len(test):,} texts of {test.name}", torch.tensor(test.labels), skip=("head",))


def text_network(config: QuantizeConfig) -> tuple[TextClassifier, TextData]:
    """The encoder with a head that was fitted on some of the texts, and others to test it on, short ones first."""
    import torch

    from lilliput.data import TextClassifier, WordPiece, load_bert, load_texts
    from lilliput.data.text_classifier import by_length, fit_head

    if config.data is None:
        raise ConfigError("data: an encoder of texts needs labelled texts to fit its head on; try data='messages.tsv'")
    texts = load_texts(config.data)
    if config.head_data is None:
        limit = min(config.limit, len(texts) - config.head_texts)
        if limit < 1:
            raise ConfigError(
                f"head_texts={config.head_texts:,}: leaves none of the {len(texts):,} texts of {config.data} to test on; "
                f"try head_texts={len(texts) // 2}"
            )
        learned, test = texts.draws([config.head_texts, limit], config.seed)
    else:
        learned = load_texts(config.head_data)
        if learned.class_names != texts.class_names:
            raise DataError(f"{config.head_data} has classes {learned.class_names}, {config.data} {texts.class_names}")
        (learned,) = learned.draws([min(config.head_texts, len(learned))], config.seed)
        known = set(learned.texts)
        unseen = texts.part([index for index, text in enumerate(texts.texts) if text not in known])
        (test,) = unseen.draws([min(config.limit, len(unseen))], config.seed)
    learned, test = by_length(learned), by_length(test)
    model = TextClassifier(load_bert(config.model), len(texts.class_names)).eval().requires_grad_(False)
    vectors = _vectors(model, WordPiece.from_folder(config.model), learned.texts)
    model.head = fit_head(vectors, torch.tensor(learned.labels), len(texts.class_names))
    return model, test


def _vectors(model: TextClassifier, tokens: WordPiece, texts: Sequence[str]) -> Tensor:
    import torch

    from lilliput.data.text_classifier import text_batches

    batches: Iterable[tuple[Tensor, Tensor]] = text_batches(tokens, texts, _BATCH, _most_tokens(model))
    with torch.no_grad():
        return torch.cat([model.encoder.embed(*batch) for batch in batches])


def _most_tokens(model: TextClassifier) -> int:
    return min(128, model.encoder.config.max_position_embeddings)
