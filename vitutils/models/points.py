"""Networks for point clouds: one classifier, and four layers, three of which let points exchange information.

Chapter 13 writes out each of these in the same words. Letters: B clouds, N points of a cloud, k neighbours, D width
of a token, h heads, Dh = D / h, G cells along one side of a grid, K classes. `points` (B, N, 3) are coordinates; every
layer is called as layer(tokens, points, near), with tokens (B, N, D) and near (B, N, k) from `nearest`, whether it
needs them or not. Sources: PointNet, Qi et al. 2017 (arXiv 1612.00593); PCT, Guo et al. 2021 (2012.09688); Point
Transformer, Zhao et al. 2021 (2012.09164); Cloud Transformers, Mazur and Lempitsky 2021 (2007.11679).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nearest(points: Tensor, k: int) -> Tensor:
    """The k nearest points of each point, itself included.

    points (B, N, 3) -> indices (B, N, k), the nearest first. Distances are
    computed from differences, because products round too coarsely.
    Raises ValueError unless k is from 1 to N.
    """
    B, N, _ = points.shape
    if not 1 <= k <= N:
        raise ValueError(f"expected k from 1 to {N} points, got {k}")
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(points, points, compute_mode=exact)  # (B, N, N)
    return distances.topk(k, dim=2, largest=False).indices  # (B, N, k)


def of_neighbours(values: Tensor, near: Tensor) -> Tensor:
    """The neighbours' values: values (B, N, D), near (B, N, k).

    Returns (B, N, k, D): at [b, i, j] the values of point i's j-th neighbour.
    """
    B, N, k = near.shape
    first = N * torch.arange(B, device=near.device)  # where each cloud begins
    rows = (near + first[:, None, None]).flatten()  # (B*N*k,)
    return values.flatten(0, 1).index_select(0, rows).reshape(B, N, k, -1)


class PointMLP(nn.Module):
    """PointNet's idea: each point by itself. tokens (B, N, D) -> (B, N, D).

    Points meet only where they are pooled, at the network's end.
    Source: Qi et al. 2017.
    """

    def __init__(self, embed_dim: int, ratio: float = 2.0):
        super().__init__()
        hidden = round(ratio * embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, tokens: Tensor, points: Tensor, near=None) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class OffsetAttention(nn.Module):
    """PCT's global self-attention: every point looks at all points.

    tokens (B, N, D) -> (B, N, D); with need_weights=True also attn (B, N, N),
    whose rows sum to 1: a softmax over the queries (columns sum to 1), then
    rows divided by their sums. The layer passes on the token minus the mean
    of the values. With bias=True far points count less, by a learned width.
    PCT's BatchNorm is left out. Source: PCT, section 3.3.
    """

    def __init__(self, embed_dim: int, bias: bool = False):
        super().__init__()
        D = embed_dim
        self.q = nn.Linear(D, D // 4, bias=False)
        self.k = nn.Linear(D, D // 4, bias=False)
        self.v = nn.Linear(D, D)
        self.proj = nn.Linear(D, D)
        width = nn.Parameter(torch.tensor(0.5)) if bias else None
        self.register_parameter("width", width)

    def forward(self, tokens, points, near=None, need_weights=False):
        q, k, v = self.q(tokens), self.k(tokens), self.v(tokens)
        scores = q @ k.transpose(1, 2)  # (B, N, N)
        if self.width is not None:
            scores = scores - (torch.cdist(points, points) / self.width) ** 2
        attn = scores.softmax(dim=1)  # over the queries
        attn = attn / (attn.sum(dim=2, keepdim=True) + 1e-9)  # rows sum to 1
        offset = tokens - attn @ v  # (B, N, D)
        out = F.gelu(self.proj(offset))
        return (out, attn) if need_weights else out


class VectorAttention(nn.Module):
    """Point Transformer's local attention: each point looks at k neighbours.

    tokens (B, N, D), points (B, N, 3), near (B, N, k) -> (B, N, D); with
    need_weights=True also attn (B, N, k, D): every channel has its own
    weights, which sum to 1 over the neighbours. Uses only differences of
    coordinates. mask (B, N, k): True = may look. Source: Zhao et al. 2021,
    eq. 3.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        D = embed_dim
        self.qkv = nn.Linear(D, 3 * D)
        self.place = nn.Sequential(nn.Linear(3, D), nn.ReLU(), nn.Linear(D, D))
        self.score = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))
        self.proj = nn.Linear(D, D)

    def forward(self, tokens, points, near, need_weights=False, mask=None):
        q, k, v = self.qkv(tokens).chunk(3, dim=2)  # each (B, N, D)
        k, v = of_neighbours(k, near), of_neighbours(v, near)  # (B, N, k, D)
        step = points[:, :, None] - of_neighbours(points, near)
        place = self.place(step)  # (B, N, k, D), of how far and which way
        scores = self.score(q[:, :, None] - k + place)  # (B, N, k, D)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], -math.inf)
        attn = scores.softmax(dim=2)  # over the neighbours, not the channels
        out = self.proj((attn * (v + place)).sum(dim=2))  # (B, N, D)
        return (out, attn) if need_weights else out


def bilinear(places: Tensor, G: int) -> Tensor:
    """The weights of G x G cells at a position: (..., 2) -> (..., G*G).

    places: from -1, the middle of the first cell, to 1, that of the last. At
    most four weights are above 0; they sum to 1.
    """
    cells = torch.arange(G, device=places.device)
    along = (places + 1) / 2 * (G - 1)  # (..., 2), counted in cells
    hat = (1 - (along[..., None] - cells).abs()).clamp_min(0)  # (..., 2, G)
    row, column = hat.unbind(dim=-2)  # each (..., G)
    return (row[..., :, None] * column[..., None, :]).flatten(-2)


def splat(values: Tensor, weights: Tensor) -> Tensor:
    """Put points into cells: values (..., N, D), weights (..., N, G*G).

    Returns (..., G*G, D): in each cell the weighted mean of the points that
    reach it, or 0 if none does.
    """
    total = weights.sum(dim=-2)[..., None]  # (..., G*G, 1)
    return weights.transpose(-2, -1) @ values / total.clamp_min(1e-6)


class CloudTransform(nn.Module):
    """Cloud Transformers' layer: each head puts the points on a small grid.

    tokens (B, N, D), points (B, N, 3) -> (B, N, D). Each head predicts a
    position on the grid for each point, splats the values there, convolves,
    and slices at the same positions. No softmax over points and no map:
    points meet in the cells. A cell holds its mean, in the paper its maximum;
    the paper has 3-D grids too. Raises ValueError if num_heads does not divide
    embed_dim. Source: Mazur and Lempitsky 2021, section 3.
    """

    def __init__(self, embed_dim: int, num_heads: int = 4, grid: int = 8):
        super().__init__()
        self.num_heads, self.grid, D = num_heads, grid, embed_dim
        self.view = nn.Linear(3, 2 * num_heads)  # where a head looks from
        self.shift = nn.Linear(D, 2 * num_heads)  # what the token adds
        self.value = nn.Linear(D, D)
        self.conv = nn.Conv2d(D, D, 3, padding=1, groups=num_heads)
        self.proj = nn.Linear(D, D)

    def places(self, tokens: Tensor, points: Tensor) -> Tensor:
        """Where each head puts each point: (B, h, N, 2), from -1 to 1."""
        B, N, _ = tokens.shape
        places = torch.tanh(self.view(points) + self.shift(tokens))
        return places.reshape(B, N, self.num_heads, 2).transpose(1, 2)

    def forward(self, tokens: Tensor, points: Tensor, near=None) -> Tensor:
        B, N, D = tokens.shape
        h, G = self.num_heads, self.grid
        v = self.value(tokens).reshape(B, N, h, D // h).transpose(1, 2)
        weights = bilinear(self.places(tokens, points), G)  # (B, h, N, G*G)
        cells = splat(v, weights).transpose(2, 3)  # (B, h, Dh, G*G)
        cells = F.gelu(self.conv(cells.reshape(B, D, G, G)))
        cells = cells.reshape(B, h, D // h, G * G).transpose(2, 3)
        sliced = weights @ cells  # (B, h, N, Dh)
        return self.proj(sliced.transpose(1, 2).reshape(B, N, D))


class PointEmbed(nn.Module):
    """Embed coordinates, point by point: (B, N, 3) -> (B, N, D)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(3, embed_dim)
        self.fc2 = nn.Linear(embed_dim, embed_dim)

    def forward(self, points: Tensor, near=None) -> Tensor:
        return self.fc2(F.gelu(self.fc1(points)))


class NeighbourEmbed(nn.Module):
    """Embed what is around each point: (B, N, 3) -> (B, N, D).

    The steps to its neighbours near (B, N, k), each through one MLP, then the
    maximum over them. The point's own position is not used.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.step = PointEmbed(embed_dim)

    def forward(self, points: Tensor, near: Tensor) -> Tensor:
        steps = of_neighbours(points, near) - points[:, :, None]
        return self.step(steps).amax(dim=2)  # (B, N, k, D) -> (B, N, D)


class PointClassifier(nn.Module):
    """Embed, `depth` times tokens + layer(norm(tokens)), pool, classify.

    points (B, N, 3), any N -> logits (B, K). layer and embed are called with
    embed_dim. k: neighbours per point, itself included; 0 if neither layer
    nor embed needs any. The pooled vector holds the maximum of each of
    pool_dim features over the points. Raises ValueError if a cloud has fewer
    than k points.
    """

    def __init__(
        self, layer: Callable[[int], nn.Module], embed_dim: int,
        num_classes: int, k: int = 0, depth: int = 2, pool_dim: int = 256,
        embed: Callable[[int], nn.Module] = PointEmbed,
    ):  # fmt: skip
        super().__init__()
        D, self.k = embed_dim, k
        self.embed = embed(D)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(depth))
        self.layers = nn.ModuleList(layer(D) for _ in range(depth))
        self.norm = nn.LayerNorm(D)
        self.widen = nn.Linear(D, pool_dim)
        self.head = nn.Linear(pool_dim, num_classes)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)  # so that the first loss is ln K

    def forward_features(self, points: Tensor) -> Tensor:
        """Tokens of the points after the last layer: (B, N, D)."""
        near = nearest(points, self.k) if self.k else None
        tokens = self.embed(points, near)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            tokens = tokens + layer(norm(tokens), points, near)
        return tokens

    def forward(self, points: Tensor) -> Tensor:
        tokens = self.norm(self.forward_features(points))
        pooled = F.gelu(self.widen(tokens)).amax(dim=1)  # over points: (B, D')
        return self.head(pooled)
