"""An encoder of texts with a linear head: a text's mean vector to a score for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.data.bert import BertEncoder
from lilliput.data.texts import TextData
from lilliput.data.wordpiece import WordPiece

Batch = tuple[Tensor, Tensor]
"""Token numbers, and which of them are no padding: what encoders and classifiers of texts are called with."""


class TextClassifier(nn.Module):
    """Token numbers to a score for each class."""

    def __init__(self, encoder: BertEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(
        self, numbers: Int64[Tensor, "text token"], mask: Bool[Tensor, "text token"]
    ) -> Float[Tensor, "text class"]:
        """Scores of the classes."""
        return self.head(self.encoder.embed(numbers, mask))


def text_batches(
    tokens: WordPiece, texts: Sequence[str], batch_size: int = 32, max_tokens: int = 128
) -> Iterator[Batch]:
    """Texts in their order, a batch at a time."""
    for start in range(0, len(texts), batch_size):
        yield tokens.batch(texts[start : start + batch_size], max_tokens)


def by_length(data: TextData) -> TextData:
    """The same texts, short ones first: batches of like length hold little padding."""
    return data.part(sorted(range(len(data)), key=lambda index: len(data.texts[index])))


def fit_head(
    vectors: Float[Tensor, "text feature"], labels: Int64[Tensor, " text"], classes: int, penalty: float = 1e-5
) -> nn.Linear:
    """Logistic regression on vectors that stay as they are: convex, so that it has one answer and needs no seed.

    Args:
        vectors: one a text, of length 1.
        labels: class index of each.
        classes: how many there are.
        penalty: of the squared weights, beside the mean cross entropy; on sentence vectors anything from 1e-6 to 1e-4 does as well.
    """
    head = nn.Linear(vectors.shape[1], classes).double()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    vectors = vectors.double()

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(head(vectors), labels) + penalty * head.weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return head.float().requires_grad_(False)
