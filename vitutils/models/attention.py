"""Attention as chapter 2 writes it out.

Letters: B batch, T tokens, D width, Dh width of a query or key. Each class and function is in the chapter in the same
words. Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys that the mask allows; rows without any are 0.

    scores (..., Tq, Tk). mask has a shape that broadcasts to theirs: either
    boolean, True = may look; or numbers to add, -inf = may not look.
    """
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    else:
        scores = scores + mask
    nowhere = scores.isneginf().all(dim=-1, keepdim=True)
    attn = scores.masked_fill(nowhere, 0.0).softmax(dim=-1)
    return attn.masked_fill(nowhere, 0.0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention: a weighted mean of values for each query.

    q (..., Tq, Dh), k (..., Tk, Dh), v (..., Tk, Dv) -> out (..., Tq, Dv) and
    attn (..., Tq, Tk), whose rows sum to 1. mask: see masked_softmax. A query
    that may look nowhere gets weights and an output of 0, as it does in
    F.scaled_dot_product_attention.
    """
    scores = q @ k.transpose(-2, -1)  # (..., Tq, Tk)
    scores = scores / math.sqrt(q.shape[-1])
    if mask is None:
        attn = scores.softmax(dim=-1)  # over the keys
    else:
        attn = masked_softmax(scores, mask)
    return attn @ v, attn


class AttentionLayer(nn.Module):
    """Self-attention with one head: tokens (B, T, D) -> (B, T, D).

    With need_weights=True it also returns attn (B, T, T); without, the fused
    kernel computes the same output and returns no map.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, need_weights: bool = False):
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)  # each (B, T, D)
        if need_weights:
            mixed, attn = attention(q, k, v)
            return self.proj(mixed), attn
        q, k, v = (x.unsqueeze(1) for x in (q, k, v))  # (B, 1, T, D)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.squeeze(1))
