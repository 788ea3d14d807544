"""Multi-head attention with its projections as layers of their own.

``nn.MultiheadAttention`` keeps its three input projections in one matrix and hands it, and the weight of ``out_proj``, to a fused
function: no layer's ``forward`` is called, so replacing layers has no effect or an error. Here each projection is called, in evaluation
too; the encoder layers of torch, which would bypass attention altogether, take their plain path because ``in_proj_bias`` is None.

Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2, with the options and argument meanings of ``torch.nn.MultiheadAttention``.
"""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import DataError
from lilliput.quantize.lowbit.layers import copied

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class ProjectedAttention(nn.Module):
    """The same function as a ``nn.MultiheadAttention``, by way of four linear layers.

    The layers share memory with the given module until they are replaced.
    """

    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = attention.embed_dim, attention.num_heads, attention.dropout
        self.batch_first, self.add_zero_attn = attention.batch_first, attention.add_zero_attn
        width = attention.embed_dim
        if attention.in_proj_weight is None:
            weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        else:
            weights = [attention.in_proj_weight[first : first + width] for first in (0, width, 2 * width)]
        bias = attention.in_proj_bias
        biases = [None] * 3 if bias is None else [bias[first : first + width] for first in (0, width, 2 * width)]
        self.q_proj, self.k_proj, self.v_proj = (_linear(*each) for each in zip(weights, biases, strict=True))
        self.out_proj: nn.Module = attention.out_proj
        self.bias_k, self.bias_v = copied(attention.bias_k), copied(attention.bias_v)
        self.train(attention.training)

    def forward(
        self,
        query: Float[Tensor, "*query"],
        key: Float[Tensor, "*key"],
        value: Float[Tensor, "*value"],
        key_padding_mask: Shaped[Tensor, "*padding"] | None = None,
        need_weights: bool = True,
        attn_mask: Shaped[Tensor, "*mask"] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output, and weights where asked for, as ``torch.nn.MultiheadAttention`` returns them."""
        if is_causal and attn_mask is None:
            raise DataError("is_causal=True is a hint about attn_mask, which is None; pass the causal mask too")
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        k, v, appended = self._appended(k, v)
        mask = self._mask(attn_mask, key_padding_mask, appended, q)
        q, k, v = (self._heads(x) for x in (q, k, v))
        p = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) / sqrt(q.shape[-1])
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, dim=-1), p)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed, weights = F.scaled_dot_product_attention(q, k, v, mask, p), None
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not is_batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _appended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with the learned and zero ones that the options ask for, and how many."""
        batch, length, width = k.shape
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, width)], dim=1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, width)], dim=1)
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return k, v, k.shape[1] - length

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, appended: int, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, (batch, heads or 1, queries, keys)."""
        total: Tensor | None = None
        if attn_mask is not None:
            mask = F.pad(_additive(attn_mask, q.dtype), (0, appended))
            total = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask
        if padding is not None:
            mask = F.pad(_additive(padding, q.dtype), (0, appended))[:, None, None]
            total = mask if total is None else total + mask
        return total

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    return layer
