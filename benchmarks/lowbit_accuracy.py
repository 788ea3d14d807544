"""What a few bits do to two text classifiers, by each method of low-bit weights: accuracy, agreement, errors of the scores.

    python benchmarks/lowbit_accuracy.py emotion --data DIR [--epochs 4] [--json FILE]
    python benchmarks/lowbit_accuracy.py minilm --data DIR --minilm FOLDER [--draws 3] [--size 500] [--json FILE]

emotion: a BERT of two layers of width 128 (BERT-Tiny's shape), trained here from nothing on the 16,000 texts of emotion_train.txt with a
vocabulary of their words; tested on the 2,000 of emotion_test.txt. minilm: the published all-MiniLM-L6-v2 (--minilm is its folder) with a
logistic head on 650 messages of SMSSpamCollection.tsv, tested on three disjoint draws of 500 others. DIR holds the data files.

Embeddings, norms, biases and the head of minilm stay float. Bits are those of the file, with steps and starts, for each quantized weight.
Errors of scores are root of squares over root of squares against the float network's. Rows that lose stay in.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.data import BertEncoder, TextClassifier, TextData, WordPiece, load_bert, load_texts
from lilliput.data.bert import BertConfig
from lilliput.data.text_classifier import by_length, fit_head, text_batches
from lilliput.data.wordpiece import words
from lilliput.quantize import HalfQuadratic, LookupTable, RoundToNearest, SplitConfig, quantize
from lilliput.quantize.lowbit.config import Method

BatchList = list[tuple[Tensor, Tensor]]

AS_PUBLISHED = SplitConfig(mask_aware=False, clusters="tensor", storage="dense")
SPLITS: list[Method] = [
    AS_PUBLISHED,
    SplitConfig(mask_aware=False),
    SplitConfig(fitted=False, storage="radix"),
    SplitConfig(storage="radix"),
]
RIVALS: list[Method] = [
    RoundToNearest(bits=2),
    HalfQuadratic(bits=2),
    LookupTable(levels=4),
    RoundToNearest(bits=3),
    HalfQuadratic(bits=3),
    RoundToNearest(bits=4),
    LookupTable(levels=12, storage="radix"),
    LookupTable(levels=16),
    HalfQuadratic(bits=4),
]


def tiny_tokens(texts: TextData, least: int = 3) -> WordPiece:
    """A vocabulary of the words that come so often, and of letters for the rest."""
    counts = Counter(word for text in texts.texts for word in words(text))
    letters = sorted({letter for word in counts for letter in word})
    known = [word for word, count in counts.most_common() if count >= least and word not in letters]
    return WordPiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *known))


def train_tiny(data: TextData, tokens: WordPiece, epochs: int, seed: int = 0, batch_size: int = 32) -> TextClassifier:
    """A classifier of BERT-Tiny's shape, trained from nothing: AdamW, one cycle to 1e-3, one word in ten hidden."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokens.vocabulary),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=128,
    )
    model = TextClassifier(BertEncoder(config), len(data.class_names))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
    nn.init.normal_(model.head.weight, std=1.0)  # on vectors of length 1
    steps = epochs * math.ceil(len(data) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    rows = [tokens.encode(text, 64) for text in data.texts]
    unknown = tokens.vocabulary.index("[UNK]")
    for _ in range(epochs):
        for chosen in _alike(rows, batch_size):
            numbers = torch.zeros(len(chosen), max(len(rows[index]) for index in chosen), dtype=torch.int64)
            for place, index in enumerate(chosen):
                numbers[place, : len(rows[index])] = torch.tensor(rows[index])
            mask = numbers > 0  # [PAD] is number 0
            numbers = numbers.masked_fill((torch.rand(numbers.shape) < 0.1) & (numbers > 3), unknown)
            loss = F.cross_entropy(model(numbers, mask), torch.tensor([data.labels[index] for index in chosen]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def _alike(rows: list[list[int]], batch_size: int) -> list[list[int]]:
    """Batches of texts of like length, in random order."""
    order = sorted(torch.randperm(len(rows)).tolist(), key=lambda index: len(rows[index]) // 4)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches)).tolist()]


def vectors_of(model: TextClassifier, batches: BatchList) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.encoder.embed(*batch) for batch in batches])


def table(model: TextClassifier, methods: list[Method], batches: BatchList, labels: Tensor, draw: Tensor) -> list[Any]:
    """A row for the float network and for each method; accuracies of each draw apart."""
    wanted = vectors_of(model, batches)
    scores = model.head(wanted).detach()
    draws = int(draw.max()) + 1

    def shares(right: Tensor) -> list[float]:
        return [100 * float(right[draw == index].double().mean()) for index in range(draws)]

    rows = [
        {"method": "float", "bits": 32.0, "accuracy": shares(scores.argmax(1) == labels), "agreement": 100.0,
         "error": 0.0, "cosine": 1.0, "seconds": 0.0}
    ]  # fmt: skip
    print_row(rows[0])
    for method in methods:
        start = time.process_time()
        quantized = quantize(model, method)
        seconds = time.process_time() - start
        unpacked = copy.deepcopy(model)  # once, and not at every batch: the same numbers
        for path, stored in quantized.stored_weights.items():
            unpacked.get_submodule(path).weight.data = stored.dequantize()
        vectors = vectors_of(unpacked, batches)
        found = unpacked.head(vectors).detach()
        rows.append(
            {
                "method": method.name + (" dense" if method.storage == "dense" else ""),
                "bits": quantized.stored_bits_per_weight(),
                "accuracy": shares(found.argmax(1) == labels),
                "agreement": 100 * float((found.argmax(1) == scores.argmax(1)).double().mean()),
                "error": float((found - scores).norm() / scores.norm()),
                "cosine": float(F.cosine_similarity(vectors, wanted).mean()),
                "seconds": seconds,
            }
        )
        print_row(rows[-1])
    return rows


def print_row(row: dict[str, Any]) -> None:
    accuracy = row["accuracy"]
    mean = sum(accuracy) / len(accuracy)
    each = f" ({', '.join(f'{value:.1f}' for value in accuracy)})" if len(accuracy) > 1 else ""
    print(
        f"| `{row['method']}` | {row['bits']:.2f} | {mean:.2f}{each} | {row['agreement']:.2f} | {row['error']:.4f} "
        f"| {row['cosine']:.4f} | {row['seconds']:.1f} |",
        flush=True,
    )


def emotion(data: Path, epochs: int) -> list[Any]:
    train, test = load_texts(data / "emotion_train.txt"), by_length(load_texts(data / "emotion_test.txt"))
    tokens = tiny_tokens(train)
    start = time.process_time()
    model = train_tiny(train, tokens, epochs)
    print(f"trained in {time.process_time() - start:.0f} CPU-seconds, {len(tokens.vocabulary):,} pieces")
    batches = list(text_batches(tokens, test.texts, 64))
    methods = [*RIVALS, *SPLITS, SplitConfig(bits=4, storage="radix"), RoundToNearest(bits=8)]
    return table(model, methods, batches, torch.tensor(test.labels), torch.zeros(len(test), dtype=torch.int64))


def minilm(data: Path, folder: Path, draws: int, size: int, seed: int = 0) -> list[Any]:
    learned, *tests = load_texts(data / "SMSSpamCollection.tsv").draws([650, *[size] * draws], seed)
    tokens, encoder = WordPiece.from_folder(folder), load_bert(folder)
    model = TextClassifier(encoder, len(learned.class_names)).eval()
    learned = by_length(learned)
    known = vectors_of(model, list(text_batches(tokens, learned.texts, 64)))
    model.head = fit_head(known, torch.tensor(learned.labels), len(learned.class_names))
    texts = [text for test in tests for text in test.texts]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    labels = torch.tensor([label for test in tests for label in test.labels])[order]
    draw = torch.arange(draws).repeat_interleave(size)[order]
    print(f"larger class: {100 * float((labels == labels.mode().values).double().mean()):.1f} % of {len(labels)}")
    batches = list(text_batches(tokens, [texts[index] for index in order], 64))
    # The head is float: the study is of the encoder, as are the published ones.
    methods = [replace(method, skip=("head",)) for method in [*RIVALS, *SPLITS]]
    return table(model, methods, batches, labels, draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["emotion", "minilm"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--size", type=int, default=500, help="texts of a draw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.study == "minilm" and options.minilm is None:
        parser.error("minilm needs --minilm FOLDER, with config.json, model.safetensors and vocab.txt")
    print("| method | bits a weight | accuracy % | agreement % | error of scores | cosine | CPU s to quantize |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    if options.study == "emotion":
        rows = emotion(options.data, options.epochs)
    else:
        rows = minilm(options.data, options.minilm, options.draws, options.size)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
