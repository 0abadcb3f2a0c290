"""A transformer encoder, piece by piece, and the small tasks that show what each piece is for.

Chapter 3 writes out each of these in the same words. Letters: B batch, T tokens, D width,
h heads, Dh = D / h, K classes. Chapter 5 assembles the same parts into a Vision Transformer.
Sources: Vaswani et al. 2017 (1706.03762); Ba et al. 2016 (1607.06450); Xiong et al. 2020
(2002.04745); rotary positions: Su et al. 2021 (2104.09864).
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.models.vit import MLP, SelfAttention, init_weights


def layer_norm(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6
) -> Tensor:
    """Normalise each token over its D values. (B, T, D) -> (B, T, D).

    The variance is the biased one, divided by D; eps is inside the root.
    weight, bias: (D,), a learned scale and shift. Source: Ba et al. 2016.
    """
    mean = tokens.mean(dim=-1, keepdim=True)  # (B, T, 1)
    centred = tokens - mean
    variance = centred.square().mean(dim=-1, keepdim=True)  # (B, T, 1)
    return centred / torch.sqrt(variance + eps) * weight + bias


def sinusoidal_positions(T: int, D: int, scale: float = 1.0) -> Tensor:
    """Sines and cosines for T positions, (T, D); wavelengths from 2 pi up.

    The longest is 2 pi 10000^(1 - 2/D) positions: 11,247 pi for D = 32.
    scale multiplies the positions: below 1 they move closer together. Raises
    ValueError if D is odd. Source: Vaswani et al. 2017, section 3.5.
    """
    if D % 2:
        raise ValueError(f"expected an even width, got D = {D}")
    steps = scale * torch.arange(T, dtype=torch.float32)[:, None]  # (T, 1)
    rates = 10_000 ** (-torch.arange(0, D, 2) / D)  # (D / 2,)
    angles = steps * rates  # (T, D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def stretch_positions(table: Tensor, T: int) -> Tensor:
    """Stretch learned positions (L, D) to T positions, (T, D), linearly.

    The first one stays the first, and the last one the last.
    """
    columns = table.transpose(0, 1)[None]  # (1, D, L)
    longer = F.interpolate(columns, T, mode="linear", align_corners=True)
    return longer[0].transpose(0, 1)  # (T, D)


def rotate(vectors: Tensor, scale: float = 1.0) -> Tensor:
    """Rotate each pair of numbers by an angle that grows with the position.

    vectors (..., T, Dh), queries or keys; the same shape comes back. The dot
    product of two rotated vectors depends on how far apart they are, not on
    where they are; scale multiplies the positions. Raises ValueError if Dh is
    odd. Source: Su et al. 2021, eq. 34.
    """
    T, Dh = vectors.shape[-2:]
    waves = sinusoidal_positions(T, Dh, scale).to(vectors)  # (T, Dh)
    sin, cos = waves[:, 0::2], waves[:, 1::2]  # each (T, Dh / 2)
    x, y = vectors[..., 0::2], vectors[..., 1::2]
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)
    return turned.flatten(-2)  # (..., T, Dh)


class RotaryAttention(SelfAttention):
    """Self-attention that rotates queries and keys by their position.

    tokens (B, T, D) -> (B, T, D); with need_weights=True also attn
    (B, h, T, T). It has the same parameters as SelfAttention. scale multiplies
    the positions, for longer sequences than in training.
    """

    scale = 1.0

    def forward(self, tokens: Tensor, need_weights: bool = False):
        B, T, D = tokens.shape
        h, Dh = self.num_heads, D // self.num_heads
        qkv = self.qkv(tokens).reshape(B, T, 3, h, Dh)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, Dh)
        q, k = rotate(q, self.scale), rotate(k, self.scale)
        scores = q @ k.transpose(-2, -1) / math.sqrt(Dh)
        attn = scores.softmax(dim=-1)  # (B, h, T, T)
        out = self.proj((attn @ v).transpose(1, 2).reshape(B, T, D))
        return (out, attn) if need_weights else out


class NormBlock(nn.Module):
    """Transformer block, with its norms before or after each addition.

    norm="pre":  x + f(norm(x)); norm="post": norm(x + f(x)). f is first
    attention, then the MLP. (B, T, D) -> (B, T, D). Raises ValueError for
    any other norm.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, hidden_dim: int,
        norm: str = "pre", attention: type = SelfAttention,
    ):  # fmt: skip
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"expected norm pre or post, got {norm!r}")
        self.norm = norm
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = MLP(embed_dim, hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.norm == "pre":
            tokens = tokens + self.attn(self.norm1(tokens))
            return tokens + self.mlp(self.norm2(tokens))
        tokens = self.norm1(tokens + self.attn(tokens))
        return self.norm2(tokens + self.mlp(tokens))


class Encoder(nn.Module):
    """Embedding, positions, blocks, pooling, head. inputs -> logits (B, K).

    embed: a module, inputs -> tokens (B, T, D). positions: "none",
    "sinusoidal", "learned" (for at most max_len tokens) or "rotary".
    pool: "mean" over all tokens, or the "first". Raises ValueError for any
    other word, and for more than max_len tokens if positions are learned.
    """

    def __init__(
        self, embed: nn.Module, embed_dim: int, num_classes: int,
        depth: int = 2, num_heads: int = 4, norm: str = "pre",
        positions: str = "learned", max_len: int = 64, pool: str = "mean",
    ):  # fmt: skip
        super().__init__()
        if positions not in ("none", "sinusoidal", "learned", "rotary"):
            kinds = "none, sinusoidal, learned or rotary"
            raise ValueError(f"expected positions {kinds}, got {positions!r}")
        if pool not in ("mean", "first"):
            raise ValueError(f"expected pool mean or first, got {pool!r}")
        self.embed, self.positions, self.pool = embed, positions, pool
        attention = RotaryAttention if positions == "rotary" else SelfAttention
        sizes = embed_dim, num_heads, 2 * embed_dim
        self.blocks = nn.Sequential(
            *(NormBlock(*sizes, norm, attention) for _ in range(depth))
        )
        last = nn.LayerNorm(embed_dim, eps=1e-6)
        self.norm = last if norm == "pre" else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(init_weights)
        if positions == "learned":
            start = torch.randn(max_len, embed_dim) * 0.5**0.5
            self.pos_embed = nn.Parameter(start)  # as large as the sinusoids

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs)  # (B, T, D)
        T, D = tokens.shape[1:]
        if self.positions == "sinusoidal":
            tokens = tokens + sinusoidal_positions(T, D).to(tokens)
        elif self.positions == "learned":
            if T > len(self.pos_embed):
                raise ValueError(
                    f"{T} tokens, but {len(self.pos_embed)} learned positions"
                )
            tokens = tokens + self.pos_embed[:T]
        tokens = self.norm(self.blocks(tokens))
        pooled = tokens.mean(1) if self.pool == "mean" else tokens[:, 0]
        return self.head(pooled)


def train_batches(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    warmup: float = 0.1,
) -> list[float]:
    """Train with AdamW for `steps` batches; return the loss of each step.

    The rate rises over the first `warmup` share of the steps, multiplied by a
    cosine that falls from the first step on: with warmup=0.2 it peaks at
    0.91 lr. Logits are (B, ..., K), targets (B, ...).
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    losses = []
    for step, (inputs, targets) in zip(range(steps), batches, strict=False):
        rising = min(1.0, (step + 1) / max(1, warmup * steps))
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * rising * falling
        logits = model(inputs.to(device)).flatten(0, -2)
        loss = F.cross_entropy(logits, targets.to(device).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of right answers, 0 to 1. Logits (B, ..., K), targets (B, ...)."""
    device = next(model.parameters()).device
    answers = model(inputs.to(device)).argmax(dim=-1).cpu()
    return (answers == targets).double().mean().item()


def shuffled(
    inputs: Tensor, targets: Tensor, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: epoch after epoch, each in another order.

    An incomplete last batch of an epoch is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(inputs), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            yield inputs[chosen], targets[chosen]


class PairEmbedding(nn.Module):
    """Embed tokens that carry two symbols: ids (B, T, 2) -> (B, T, D).

    The two vectors are added: a token is its key plus its value.
    """

    def __init__(self, symbols: int, embed_dim: int):
        super().__init__()
        self.table = nn.Embedding(symbols, embed_dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(dim=2)


def look_ups(
    asked: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """A dictionary of 16 keys, each with one of 8 values, in any order.

    Yields ids (B, 17, 2) and the values of keys 0 to asked - 1, (B, asked).
    Keys are symbols 0 to 15, values 16 to 23; the first token is a question
    mark, symbol 24 twice, and the answer is read there.
    """
    generator = torch.Generator().manual_seed(seed)
    question = torch.full((batch, 1, 2), 24)
    while True:
        keys = torch.rand(batch, 16, generator=generator).argsort(dim=1)
        values = torch.randint(8, (batch, 16), generator=generator)
        pairs = torch.stack([keys, 16 + values], dim=2)  # (B, 16, 2)
        place = keys.argsort(dim=1)[:, :asked]  # where keys 0, 1, ... stand
        yield torch.cat([question, pairs], 1), values.gather(1, place)


def which_first(
    lengths: Iterable[int], batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Does symbol 0 stand before symbol 1? ids (B, T), targets (B,): 1 or 0.

    One 0, one 1, and random symbols from 2 to 9 at the other positions, so
    which symbols occur says nothing about the answer. The batches take the
    lengths T in turn.
    """
    generator, lengths = torch.Generator().manual_seed(seed), tuple(lengths)
    while True:
        for T in lengths:
            ids = torch.randint(2, 10, (batch, T), generator=generator)
            chance = torch.rand(batch, T, generator=generator)
            places = chance.argsort(dim=1)[:, :2]  # (B, 2)
            ids.scatter_(1, places, torch.arange(2).expand(batch, 2))
            yield ids, (places[:, 0] < places[:, 1]).long()


def after_marker(
    lengths: Iterable[int], batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Which symbol, 0 to 7, follows the marker, 8? ids (B, T), targets (B,).

    Each of the eight occurs (T - 1) / 8 times, so counting symbols doesn't
    help. The batches take the lengths T in turn, each 1 + a multiple of 8.
    """
    generator, lengths = torch.Generator().manual_seed(seed), tuple(lengths)
    while True:
        for T in lengths:
            symbols = torch.arange(T - 1) % 8
            chance = torch.rand(batch, T - 1, generator=generator)
            rest = symbols[chance.argsort(dim=1)]  # (B, T - 1)
            place = torch.randint(T - 1, (batch, 1), generator=generator)
            later = torch.arange(T - 1) >= place
            ids = torch.full((batch, T), 8)
            ids[:, :-1] = torch.where(later, ids[:, :-1], rest)
            ids[:, 1:] = torch.where(later, rest, ids[:, 1:])
            yield ids, rest.gather(1, place)[:, 0]
