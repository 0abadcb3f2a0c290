"""Attention as chapter 2 writes it out, and the recall task on which it stands beside an LSTM.

Letters: B batch, T tokens, D width, Dh width of a query or key. Each class and function is in the chapter in the same
words. Sources: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1; Hochreiter and Schmidhuber 1997 for the LSTM.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys that the mask lets through; a row of none is 0.

    scores (..., Tq, Tk). mask, of a shape that broadcasts to them: boolean,
    True = may look; or numbers to add, -inf = may not.
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
    """Scaled dot-product attention: for each query a weighted mean of values.

    q (..., Tq, Dh), k (..., Tk, Dh), v (..., Tk, Dv) -> out (..., Tq, Dv) and
    attn (..., Tq, Tk), whose rows sum to 1. mask: see masked_softmax. A query
    that may look nowhere gets weights and an output of 0, as torch's does.
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

    With need_weights=True also attn (B, T, T); without, the fused kernel
    computes the same and hands back no map.
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


NUM_KEYS, NUM_VALUES = 64, 16
NO_VALUE = NUM_VALUES  # stands beside the key that is asked for


def recall_batch(
    B: int, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw B sequences of (key, value) pairs, and one question each.

    Returns keys (B, T), values (B, T), answers (B,) and place (B,), where T is
    pairs + 1. The last token is the question: a key of the sequence, with
    NO_VALUE. The answer is the value that stood beside that key, at `place`.
    The keys of a sequence differ; its values are drawn freely.
    """
    keys = torch.rand(B, NUM_KEYS, generator=generator).topk(pairs).indices
    values = torch.randint(NUM_VALUES, (B, pairs), generator=generator)
    place = torch.randint(pairs, (B, 1), generator=generator)
    asked, answers = keys.gather(1, place), values.gather(1, place)
    keys = torch.cat([keys, asked], dim=1)
    empty = torch.full((B, 1), NO_VALUE)
    values = torch.cat([values, empty], dim=1)
    return keys, values, answers[:, 0], place[:, 0]


class PairEmbed(nn.Module):
    """Key and value, one token: the sum of an embedding of each.

    keys (B, T), values (B, T) -> tokens (B, T, D).
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.key = nn.Embedding(NUM_KEYS, embed_dim)
        self.value = nn.Embedding(NUM_VALUES + 1, embed_dim)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        return self.key(keys) + self.value(values)


class RecallAttention(nn.Module):
    """One attention layer: the last token asks, all tokens are looked at.

    keys (B, T), values (B, T) -> logits (B, NUM_VALUES); need_weights=True
    adds attn (B, 1, T). No positions: the order of the pairs cannot matter.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed = PairEmbed(embed_dim)
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(embed_dim, embed_dim)
        self.v = nn.Linear(embed_dim, embed_dim)
        self.head = nn.Linear(embed_dim, NUM_VALUES)

    def forward(
        self, keys: Tensor, values: Tensor, need_weights: bool = False
    ):
        tokens = self.embed(keys, values)  # (B, T, D)
        q = self.q(tokens[:, -1:])  # (B, 1, D)
        out, attn = attention(q, self.k(tokens), self.v(tokens))
        logits = self.head(out[:, 0])  # (B, NUM_VALUES)
        return (logits, attn) if need_weights else logits


class RecallLSTM(nn.Module):
    """An LSTM reads the pairs in order and answers after the question.

    keys (B, T), values (B, T) -> logits (B, NUM_VALUES). forget_bias is added
    to the bias of the forget gate: with 3 the gate starts nearly open.
    """

    def __init__(self, embed_dim: int, forget_bias: float = 0.0):
        super().__init__()
        self.embed = PairEmbed(embed_dim)
        self.lstm = nn.LSTM(embed_dim, embed_dim, batch_first=True)
        forget = slice(embed_dim, 2 * embed_dim)  # gates i, f, g, o
        self.lstm.bias_ih_l0.data[forget] += forget_bias
        self.head = nn.Linear(embed_dim, NUM_VALUES)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(keys, values))  # (B, T, D)
        return self.head(states[:, -1])  # (B, NUM_VALUES)


def train_recall(
    model: nn.Module, pairs: int, lr: float, steps: int, seed: int
) -> tuple[list[float], list[float]]:
    """Train in place; every step draws 128 new sequences.

    Returns the loss and the accuracy on each step's batch, before the step,
    on sequences drawn afresh: with more than a few pairs hardly any is met
    twice.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, pct_start=0.1, cycle_momentum=False
    )
    losses, accuracies = [], []
    for _ in range(steps):
        batch = recall_batch(128, pairs, generator)
        keys, values, answers, _ = (part.to(device) for part in batch)
        logits = model(keys, values)
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        right = logits.argmax(dim=1) == answers
        accuracies.append(right.float().mean().item())
    return losses, accuracies
