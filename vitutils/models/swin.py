"""Swin: attention in windows that shift. Chapter 12 writes out each class and function in the same words.

Letters: B batch, H W rows and columns of tokens, Mh Mw those of a window, M = Mh * Mw, nW windows, D width, h heads,
Dh = D / h. Tokens stay on their grid, (B, H, W, D). Parameter names are timm's. Sources: Liu et al. 2021 (arXiv
2103.14030), sections 3.1 to 3.3; Swin V2: Liu et al. 2022 (arXiv 2111.09883), section 3. Stochastic depth is left out.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.models.vit import MLP, init_weights

Pair = tuple[int, int]


def pair(size: int | Pair) -> Pair:
    """A size as (rows, columns); one number stands for both."""
    return (size, size) if isinstance(size, int) else tuple(size)


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin; the defaults are Swin-T's at 224 pixels.

    depths, num_heads: one number per stage; stage i has width embed_dim * 2^i.
    window_size: one side, or (rows, columns). shift, mask: whether every
    second block shifts its windows, and whether a mask then keeps apart what
    the shift has brought together. position: "relative" (a bias per head
    and offset), "absolute" (a vector per patch, for images of img_size) or
    "none". version: 1 or 2. Raises ValueError if sizes do not fit together,
    and for any other position or version.
    """

    img_size: int | Pair = 224
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | Pair = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5
    shift: bool = True
    mask: bool = True
    position: str = "relative"
    version: int = 1

    def __post_init__(self):
        if len(self.depths) != len(self.num_heads):
            got = f"{len(self.depths)} and {len(self.num_heads)}"
            raise ValueError(
                f"expected as many depths as num_heads, got {got}"
            )
        for D, h in zip(self.widths, self.num_heads, strict=True):
            if D % h:
                raise ValueError(f"num_heads {h} does not divide width {D}")
        if min(pair(self.window_size)) < 1:
            got = f"got {self.window_size}"
            raise ValueError(f"expected a window_size of 1 or more, {got}")
        if self.position not in ("relative", "absolute", "none"):
            raise ValueError(
                "expected position relative, absolute or none, "
                f"got {self.position!r}"
            )
        if self.version not in (1, 2):
            raise ValueError(f"expected version 1 or 2, got {self.version!r}")

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


def window_partition(tokens: Tensor, window: Pair) -> Tensor:
    """Cut a grid of tokens into windows: (B, H, W, D) -> (B, nW, M, D).

    Windows are in order row by row, and so are the tokens in each.
    Raises ValueError if the window does not divide the grid.
    """
    B, H, W, D = tokens.shape
    Mh, Mw = window
    if H % Mh or W % Mw:
        raise ValueError(f"windows of {Mh} x {Mw} do not divide {H} x {W}")
    cut = tokens.reshape(B, H // Mh, Mh, W // Mw, Mw, D)
    return cut.transpose(2, 3).reshape(B, -1, Mh * Mw, D)


def window_reverse(windows: Tensor, window: Pair, grid: Pair) -> Tensor:
    """Put windows (B, nW, M, D) back on their grid: (B, H, W, D)."""
    B, D = windows.shape[0], windows.shape[-1]
    (H, W), (Mh, Mw) = grid, window
    cut = windows.reshape(B, H // Mh, W // Mw, Mh, Mw, D)
    return cut.transpose(2, 3).reshape(B, H, W, D)


def relative_position_index(window: Pair) -> Tensor:
    """The number of the offset between any two tokens of a window: (M, M).

    Entry (i, j) belongs to the offset of token i from token j. Row offsets
    run from -(Mh - 1) to Mh - 1, column offsets likewise; offsets are
    numbered row by row, from 0.
    """
    Mh, Mw = window
    row = torch.arange(Mh).repeat_interleave(Mw)  # of each token, (M,)
    column = torch.arange(Mw).repeat(Mh)
    down = row[:, None] - row[None, :] + Mh - 1  # (M, M), from 0
    right = column[:, None] - column[None, :] + Mw - 1
    return down * (2 * Mw - 1) + right


def shifted_mask(grid: Pair, window: Pair, shift: Pair) -> Tensor:
    """Which tokens of a shifted window may look at each other.

    (nW, M, M), True = may look. The roll has moved the first rows after the
    last ones, and the first columns after the last: two tokens of a window
    belong together if no such seam lies between them.
    """
    labels = []
    for side, M, s in zip(grid, window, shift, strict=True):
        place = torch.arange(side)
        labels.append((place >= side - M).long() + (place >= side - s).long())
    regions = 3 * labels[0][:, None] + labels[1]  # (H, W), nine regions
    inside = window_partition(regions[None, :, :, None], window)[0, :, :, 0]
    return inside[:, :, None] == inside[:, None, :]


class WindowAttention(nn.Module):
    """Self-attention within each window, with a bias per head and offset.

    windows (B, nW, M, D) -> (B, nW, M, D); mask (nW, M, M), True = may look.
    With need_weights=True also attn (B, nW, h, M, M). relative=False: no bias.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        window_size: Pair,
        qkv_bias: bool = True,
        relative: bool = True,
    ):
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.relative = relative
        if relative:
            self.make_bias()
            index = relative_position_index(window_size)
            name = "relative_position_index"
            self.register_buffer(name, index, persistent=False)

    def make_bias(self) -> None:
        """Make one learned number per offset and head."""
        Mh, Mw = self.window_size
        table = torch.empty((2 * Mh - 1) * (2 * Mw - 1), self.num_heads)
        nn.init.trunc_normal_(table, std=0.02)
        self.relative_position_bias_table = nn.Parameter(table)

    def bias(self) -> Tensor:
        """What is added to the scores: (h, M, M)."""
        table = self.relative_position_bias_table
        return table[self.relative_position_index].permute(2, 0, 1)

    def project(self, windows: Tensor) -> Tensor:
        """Queries, keys and values side by side: (B, nW, M, 3 D)."""
        return self.qkv(windows)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled dot products of (B, nW, h, M, Dh): (B, nW, h, M, M)."""
        return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])

    def forward(
        self,
        windows: Tensor,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ):
        B, nW, M, D = windows.shape
        h = self.num_heads
        qkv = self.project(windows).reshape(B, nW, M, 3, h, D // h)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, nW, h, M, Dh)
        scores = self.scores(q, k)
        if self.relative:
            scores = scores + self.bias()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -math.inf)
        attn = scores.softmax(dim=-1)  # over the keys of the window
        mixed = (attn @ v).transpose(2, 3).reshape(B, nW, M, D)
        out = self.proj(mixed)
        return (out, attn) if need_weights else out


class SwinBlock(nn.Module):
    """Pre-norm block with attention in windows.

    tokens (B, H, W, D) -> the same shape. With shift (0, 0) windows start at
    the grid's corner, otherwise that many rows and columns further on: the
    grid is rolled back by the shift, and if
    `masked`, a mask keeps apart what the roll has brought together. A grid
    that the window does not divide is padded with zeros, which serve as keys.
    """

    attention = WindowAttention

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        config: SwinConfig,
        shift: Pair,
    ):
        super().__init__()
        D, eps = embed_dim, config.norm_eps
        self.window_size, self.shift = pair(config.window_size), shift
        self.masked = config.mask
        self.norm1 = nn.LayerNorm(D, eps=eps)
        self.attn = self.attention(
            D,
            num_heads,
            self.window_size,
            config.qkv_bias,
            config.position == "relative",
        )
        self.norm2 = nn.LayerNorm(D, eps=eps)
        self.mlp = MLP(D, round(D * config.mlp_ratio))

    def attend(self, tokens: Tensor) -> Tensor:
        """Pad, roll, cut, attend, and undo all of it: (B, H, W, D)."""
        _, H, W, _ = tokens.shape
        Mh, Mw = window = self.window_size
        tokens = F.pad(tokens, (0, 0, 0, -W % Mw, 0, -H % Mh))
        grid = tokens.shape[1:3]
        sides = zip(self.shift, window, grid, strict=True)
        down, right = (s if M < side else 0 for s, M, side in sides)
        mask = None
        if down or right:
            tokens = tokens.roll((-down, -right), dims=(1, 2))
            if self.masked:
                mask = shifted_mask(grid, window, (down, right))
                mask = mask.to(tokens.device)
        windows = self.attn(window_partition(tokens, window), mask)
        tokens = window_reverse(windows, window, grid)
        if down or right:
            tokens = tokens.roll((down, right), dims=(1, 2))
        return tokens[:, :H, :W]

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchMerging(nn.Module):
    """Merge each 2 x 2 tokens into one of twice the width.

    (B, H, W, D) -> (B, H/2, W/2, 2 D). The four are joined column by column:
    upper left, lower left, upper right, lower right. A grid with an odd side
    gets a row or column of zeros.
    """

    def __init__(self, embed_dim: int, norm_eps: float = 1e-5):
        super().__init__()
        D = embed_dim
        self.norm = nn.LayerNorm(4 * D, eps=norm_eps)
        self.reduction = nn.Linear(4 * D, 2 * D, bias=False)

    def neighbours(self, tokens: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H/2, W/2, 4 D)."""
        B, H, W, D = tokens.shape
        tokens = F.pad(tokens, (0, 0, 0, W % 2, 0, H % 2))
        cut = tokens.reshape(B, (H + 1) // 2, 2, (W + 1) // 2, 2, D)
        return cut.permute(0, 1, 3, 4, 2, 5).flatten(3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.reduction(self.norm(self.neighbours(tokens)))


class GridEmbed(nn.Module):
    """Patches as tokens that stay on their grid, normalised.

    images (B, C, H, W) -> tokens (B, H/P, W/P, D). Raises ValueError if H or
    W is not a multiple of P.
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        P, D = config.patch_size, config.embed_dim
        self.proj = nn.Conv2d(config.in_chans, D, kernel_size=P, stride=P)
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        (H, W), P = images.shape[-2:], self.proj.stride[0]
        if H % P or W % P:
            expected = f"expected sides in multiples of {P}"
            raise ValueError(f"{expected}, got {H} x {W}")
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Patch merging, except in the first stage, then blocks in pairs.

    The second block of each pair shifts its windows by half their side.
    """

    def __init__(self, config: SwinConfig, number: int):
        super().__init__()
        D, h = config.widths[number], config.num_heads[number]
        Block, Merging = SwinBlock, PatchMerging
        if config.version == 2:
            Block, Merging = SwinBlockV2, PatchMergingV2
        eps, first = config.norm_eps, number == 0
        self.downsample = nn.Identity() if first else Merging(D // 2, eps)
        Mh, Mw = pair(config.window_size)
        half = (Mh // 2, Mw // 2) if config.shift else (0, 0)
        self.blocks = nn.Sequential(
            *(
                Block(D, h, config, half if i % 2 else (0, 0))
                for i in range(config.depths[number])
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(self.downsample(tokens))


class Swin(nn.Module):
    """Swin Transformer. images (B, C, H, W) -> logits (B, K).

    Accepts images of any size that patch_size divides, or of img_size alone if
    position is "absolute"; raises ValueError for others. num_classes 0: no
    head, features (B, 2^(stages - 1) D).
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config, D = config, config.widths[-1]
        self.patch_embed = GridEmbed(config)
        H, W = (s // config.patch_size for s in pair(config.img_size))
        absolute = config.position == "absolute"
        place = torch.zeros(1, H, W, config.embed_dim)
        pos_embed = nn.Parameter(place) if absolute else None
        self.register_parameter("pos_embed", pos_embed)
        stages = range(len(config.depths))
        self.layers = nn.ModuleList(Stage(config, i) for i in stages)
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        K = config.num_classes
        self.head = nn.Linear(D, K) if K else nn.Identity()
        self.apply(init_weights)
        if absolute:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)  # so that the first loss is ln K

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Tokens after each stage: (B, H/P, W/P, D), (B, H/2P, W/2P, 2D)."""
        tokens, found = self.patch_embed(images), []
        if self.pos_embed is not None:
            made_for = pair(self.config.img_size)
            if tuple(images.shape[-2:]) != made_for:
                expected = "absolute positions for images of {} x {}"
                got = "{} x {}".format(*images.shape[-2:])
                raise ValueError(f"{expected.format(*made_for)}, got {got}")
            tokens = tokens + self.pos_embed
        for stage in self.layers:
            tokens = stage(tokens)
            found.append(tokens)
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's tokens, normalised: (B, H, W, D)."""
        return self.norm(self.pyramid(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images).mean(dim=(1, 2)))


class WindowAttentionV2(WindowAttention):
    """Swin V2's attention: cosine scores, and a bias for any offset.

    Scores are cosines times a learned factor per head, at most 100; keys have
    no bias. A small network computes what is added to the scores, between 0
    and 16, from the offset on a logarithmic scale.
    """

    def __init__(self, embed_dim: int, num_heads: int, *sizes, **options):
        super().__init__(embed_dim, num_heads, *sizes, **options)
        factor = torch.full((num_heads, 1, 1), math.log(10))
        self.logit_scale = nn.Parameter(factor)

    def make_bias(self) -> None:
        """Make the network from offsets (rows, columns) to heads' biases."""
        first, last = nn.Linear(2, 512), nn.Linear(512, self.num_heads, False)
        self.cpb_mlp = nn.Sequential(first, nn.ReLU(), last)
        sides = [
            8 * torch.arange(1.0 - M, M) / max(M - 1, 1)  # -8 .. 8
            for M in self.window_size
        ]
        offsets = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
        offsets = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(8)
        name = "relative_coords_table"
        self.register_buffer(name, offsets.flatten(0, 1), persistent=False)

    def bias(self) -> Tensor:
        """What is added to the scores: (h, M, M)."""
        table = self.cpb_mlp(self.relative_coords_table)  # (offsets, h)
        table = table[self.relative_position_index].permute(2, 0, 1)
        return 16 * table.sigmoid()

    def project(self, windows: Tensor) -> Tensor:
        """Queries, keys and values side by side: (B, nW, M, 3 D)."""
        if self.qkv.bias is None:
            return self.qkv(windows)
        q, k, v = self.qkv.bias.chunk(3)
        bias = torch.cat([q, torch.zeros_like(k), v])
        return F.linear(windows, self.qkv.weight, bias)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled cosines of (B, nW, h, M, Dh): (B, nW, h, M, M)."""
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        return cosine * self.logit_scale.clamp(max=math.log(100)).exp()


class SwinBlockV2(SwinBlock):
    """Swin V2's block: each part is normalised before it is added."""

    attention = WindowAttentionV2

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.norm1(self.attend(tokens))
        return tokens + self.norm2(self.mlp(tokens))


class PatchMergingV2(PatchMerging):
    """Swin V2's merging: normalised after the projection."""

    def __init__(self, embed_dim: int, norm_eps: float = 1e-5):
        super().__init__(embed_dim, norm_eps)
        self.norm = nn.LayerNorm(2 * embed_dim, eps=norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.reduction(self.neighbours(tokens)))
