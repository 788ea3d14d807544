"""BERT networks compute what their authors' code computes; expected vectors are those of Hugging Face's transformers 5.24."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lilliput.data.bert import BertConfig, BertEncoder, load_bert, pooled
from lilliput.errors import DataError

SIZES = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 16,
}  # fmt: skip
NUMBERS = torch.tensor([[2, 7, 29, 13, 3], [2, 9, 3, 0, 0]])


def tensors() -> dict[str, Tensor]:
    """Numbers by formula, in the order of names, that the expected vectors were computed with."""
    model = BertEncoder(BertConfig(**SIZES))
    result = {}
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) ** 2 * 0.37 + index) / 2
        result[name] = (name.endswith("LayerNorm.weight") + wave).reshape(parameter.shape).float()
    return result


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"], **SIZES}))
    save_file({**tensors(), "pooler.dense.bias": torch.zeros(8)}, tmp_path / "model.safetensors")
    return tmp_path


def test_vectors_are_those_of_transformers(folder):
    hidden = load_bert(folder)(NUMBERS, NUMBERS != 0)
    third = [1.84368, -0.81568, -0.17828, -1.24691, 1.81149, 0.26337, -0.87302, 1.35864]
    padded = [0.43767, 0.66356, 0.20074, -0.74201, 0.8797, 0.73093, -1.51257, 0.15403]
    torch.testing.assert_close(hidden[0, 2], torch.tensor(third), rtol=0, atol=2e-5)
    torch.testing.assert_close(hidden[1, 0], torch.tensor(padded), rtol=0, atol=2e-5)


def test_padding_changes_nothing(folder):
    model = load_bert(folder)
    alone = model.embed(NUMBERS[1:, :3], NUMBERS[1:, :3] != 0)
    torch.testing.assert_close(model.embed(NUMBERS, NUMBERS != 0)[1:], alone, rtol=1e-5, atol=1e-6)


def test_texts_are_means_of_their_tokens_with_length_one():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    got = pooled(hidden, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.8]]))


def test_names_with_a_prefix_are_read(folder):
    save_file({f"bert.{name}": tensor for name, tensor in tensors().items()}, folder / "model.safetensors")
    assert load_bert(folder)(NUMBERS, NUMBERS != 0).shape == (2, 5, 8)


def test_what_does_not_fit_is_named(folder):
    model = load_bert(folder)
    with pytest.raises(DataError, match="17 tokens: this network has 16 positions"):
        model(torch.zeros(1, 17, dtype=torch.int64), torch.ones(1, 17, dtype=torch.bool))
    short = tensors()
    del short["encoder.layer.1.output.dense.bias"]
    save_file(short, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"lacks encoder.layer.1.output.dense.bias"):
        load_bert(folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="download its files again"):
        load_bert(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match="a network of type 'gpt2'; reads 'bert'"):
        load_bert(folder)
    with pytest.raises(DataError, match=r"config.json: no such file"):
        load_bert(folder / "elsewhere")
