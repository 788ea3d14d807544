"""BERT encoders from their published files, in plain torch.

A folder holds ``config.json``, ``model.safetensors`` and ``vocab.txt``, as Hugging Face lays them out (all-MiniLM-L6-v2 is one: 6 layers of
width 384, 22.7 million parameters, embeddings of sentences). Modules have the names of the file's tensors, and every projection is an
``nn.Linear``, so that what reads or rewrites layers finds them.

Source: Devlin et al. 2019 (arXiv:1810.04805), section 3, and Vaswani et al. 2017 (arXiv:1706.03762); Reimers and Gurevych 2019
(arXiv:1908.10084), section 3, for the mean over tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import DataError

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes, by the names of ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise DataError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_act not in _ACTIVATIONS:
            raise DataError(f"hidden_act={self.hidden_act!r}: has {', '.join(_ACTIVATIONS)}")


class BertEncoder(nn.Module):
    """Token numbers to one vector a token; :meth:`embed` to one vector a text."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(
        self, numbers: Int64[Tensor, "text token"], mask: Bool[Tensor, "text token"]
    ) -> Float[Tensor, "text token feature"]:
        """The last layer's vector of each token; those of padding mean nothing.

        Raises:
            DataError: more tokens than the network has positions.
        """
        if numbers.shape[1] > self.config.max_position_embeddings:
            raise DataError(
                f"{numbers.shape[1]} tokens: this network has {self.config.max_position_embeddings} positions; cut texts"
            )
        hidden = self.embeddings(numbers)
        for layer in cast(nn.ModuleList, self.encoder["layer"]):
            hidden = layer(hidden, mask[:, None, None])
        return hidden

    def embed(
        self, numbers: Int64[Tensor, "text token"], mask: Bool[Tensor, "text token"]
    ) -> Float[Tensor, "text feature"]:
        """The mean vector of each text's tokens, of length 1."""
        return pooled(self(numbers, mask), mask)


def pooled(
    hidden: Float[Tensor, "text token feature"], mask: Bool[Tensor, "text token"]
) -> Float[Tensor, "text feature"]:
    """The mean over the tokens that are no padding, of length 1."""
    weight = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1), dim=1)


def load_bert(folder: str | Path) -> BertEncoder:
    """Read a network in evaluation mode; its pooler and heads, where the file has any, are left out.

    Raises:
        DataError: a file is missing or damaged, or tensors don't fit the config (names them).
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / name}: no such file; needs a folder of a BERT network as Hugging Face lays it out"
            )
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if given.get("model_type", "bert") != "bert" or given.get("position_embedding_type", "absolute") != "absolute":
        raise DataError(
            f"{folder}: a network of type {given.get('model_type')!r}; reads 'bert' with absolute positions"
        )
    known = {field.name for field in fields(BertConfig)}
    try:
        config = BertConfig(**{name: value for name, value in given.items() if name in known})
        tensors = load_file(folder / "model.safetensors")
    except (TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: {error}; download its files again") from None
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    with torch.device("meta"):
        model = BertEncoder(config)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise DataError(
            f"{folder}: model.safetensors lacks {', '.join(missing[:3])} and {max(len(missing) - 3, 0)} more tensors"
        )
    try:
        model.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)
    except RuntimeError as error:
        raise DataError(
            f"{folder}: {' '.join(str(error).split())}; config.json and model.safetensors must be of one network"
        ) from None
    return model.eval()


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, numbers: Tensor) -> Tensor:
        positions = torch.arange(numbers.shape[1], device=numbers.device)
        kinds = torch.zeros_like(numbers)  # one text at a time, no pairs
        total = self.word_embeddings(numbers) + self.position_embeddings(positions) + self.token_type_embeddings(kinds)
        return self.LayerNorm(total)


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part(hidden).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class _Output(nn.Module):
    """Linear, residual, norm."""

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(config), "output": _Output(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.activation = _ACTIVATIONS[config.hidden_act]()
        self.output = _Output(config.intermediate_size, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.attention["output"](self.attention["self"](hidden, mask), hidden)
        return self.output(self.activation(self.intermediate["dense"](hidden)), hidden)
