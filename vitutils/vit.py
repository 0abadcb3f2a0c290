"""The Vision Transformer, in five modules. Chapter 5 writes out each of them in the same words.

Letters: B batch, C H W channels, height, width, P patch side, N patches, T tokens, D width, h heads, Dh = D / h,
K classes. Constructor arguments and parameter names are timm's, so that its checkpoints load as they are.
Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), equations 1 to 4 and table 1; DeiT (2012.12877) for Ti and S.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT. img_size and patch_size in pixels; img_size is one number or (height, width).

    global_pool: "token" reads the class token, "avg" the mean of the patch tokens (then there is no class token).
    Raises ValueError where sizes do not fit together.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    global_pool: str = "token"
    norm_eps: float = 1e-6

    def __post_init__(self):
        height, width = self.image_shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"img_size must be a multiple of patch_size {self.patch_size}, got {height} x {width}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads {self.num_heads}, got {self.embed_dim}")
        if self.global_pool not in ("token", "avg"):
            raise ValueError(f"global_pool must be 'token' or 'avg', got {self.global_pool!r}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_shape[0] // self.patch_size, self.image_shape[1] // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that stand before the patches: 1 with a class token, else 0."""
        return int(self.global_pool == "token")

    @classmethod
    def named(cls, name: str, **changes) -> "ViTConfig":
        """Return the papers' sizes: "Ti/16", "S/16", "B/32", "L/16", "H/14"; `changes` replace single fields."""
        sizes = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}
        size, _, patch = name.partition("/")
        if size not in sizes or not patch.isdigit():
            raise ValueError(f"expected one of {', '.join(sizes)} and a patch size, as in 'Ti/16'; got {name!r}")
        embed_dim, depth, num_heads = sizes[size]
        fields = dict(patch_size=int(patch), embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        return cls(**{**fields, **changes})


class PatchEmbed(nn.Module):
    """Cut images into patches and project each to a token: one strided convolution.

    images (B, C, H, W) -> tokens (B, N, D). Raises ValueError if C differs or H or W is not a multiple of P.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        if C != self.in_chans or H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f"expected {self.in_chans} channels and sides that are multiples of {self.patch_size}, "
                f"got images of shape {tuple(images.shape)}"
            )
        grid = self.proj(images)  # (B, D, H/P, W/P)
        return grid.flatten(2).transpose(1, 2)  # (B, N, D)


class SelfAttention(nn.Module):
    """Multi-head self-attention: every token asks (q) every token (k) and takes a weighted mean of values (v).

    tokens (B, T, D) -> (B, T, D); with need_weights=True also attn (B, h, T, T), whose rows sum to 1.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, need_weights: bool = False):
        B, T, D = tokens.shape
        qkv = self.qkv(tokens).reshape(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, Dh)
        if not need_weights:  # the fused path: same result, no map is kept
            mixed, attn = F.scaled_dot_product_attention(q, k, v), None
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, h, T, T)
            attn = scores.softmax(dim=-1)  # over the keys
            mixed = attn @ v
        out = self.proj(mixed.transpose(1, 2).reshape(B, T, D))  # heads side by side again
        return (out, attn) if need_weights else out


class MLP(nn.Module):
    """Two linear layers with a GELU between, applied to each token alone. (B, T, D) -> (B, T, D)."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: tokens + attention(norm), then tokens + MLP(norm). (B, T, D) -> (B, T, D).

    With need_weights=True it also returns the attention map (B, h, T, T).
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        D = config.embed_dim
        self.norm1 = nn.LayerNorm(D, eps=config.norm_eps)
        self.attn = SelfAttention(D, config.num_heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = MLP(D, int(D * config.mlp_ratio))

    def forward(self, tokens: Tensor, need_weights: bool = False):
        attended = self.attn(self.norm1(tokens), need_weights)
        update, attn = attended if need_weights else (attended, None)
        tokens = tokens + update
        tokens = tokens + self.mlp(self.norm2(tokens))
        return (tokens, attn) if need_weights else tokens


def resize_positions(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], mode="bicubic") -> Tensor:
    """Stretch learned positions (1, T, D) from one patch grid to another; a class token's position stays as it is.

    Bicubic, because bilinear shrinks the vectors (DeiT, section 6). Raises ValueError if T does not fit old_grid.
    """
    rows, columns = old_grid
    prefix = pos_embed.shape[1] - rows * columns
    if prefix not in (0, 1):
        raise ValueError(f"expected {rows * columns} or {rows * columns + 1} positions, got {pos_embed.shape[1]}")
    if old_grid == new_grid:
        return pos_embed
    grid = pos_embed[:, prefix:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid.float(), size=new_grid, mode=mode, antialias=True).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


class ViT(nn.Module):
    """Vision Transformer. images (B, C, H, W) -> logits (B, K).

    need_weights=True also returns every attention map: attn (B, depth, h, T, T).
    Images of another size than config.img_size are accepted: the positions are stretched to their grid.
    """

    def __init__(self, config: ViTConfig, embed_layer=PatchEmbed):
        super().__init__()
        self.config = config
        D, (rows, columns) = config.embed_dim, config.grid
        self.patch_embed = embed_layer(config.patch_size, config.in_chans, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D)) if config.num_prefix_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_prefix_tokens + rows * columns, D))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.head = nn.Linear(D, config.num_classes)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.zeros_(self.head.weight)  # all classes equally likely at first: the first loss is ln K

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block: patches, class token, positions. (B, T, D)."""
        tokens = self.patch_embed(images)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        grid = images.shape[-2] // self.config.patch_size, images.shape[-1] // self.config.patch_size
        return tokens + resize_positions(self.pos_embed, self.config.grid, grid)

    def forward_features(self, images: Tensor, need_weights: bool = False):
        """Return the normalised tokens after the last block (B, T, D), with need_weights=True also the maps."""
        tokens, maps = self.embed(images), []
        for block in self.blocks:
            tokens = block(tokens, need_weights)
            if need_weights:
                tokens, attn = tokens
                maps.append(attn)
        tokens = self.norm(tokens)
        return (tokens, torch.stack(maps, dim=1)) if need_weights else tokens

    def forward(self, images: Tensor, need_weights: bool = False):
        features = self.forward_features(images, need_weights)
        tokens, attn = features if need_weights else (features, None)
        pooled = tokens[:, 0] if self.cls_token is not None else tokens.mean(dim=1)
        logits = self.head(pooled)
        return (logits, attn) if need_weights else logits


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as the paper's code does: Xavier for linear layers, LeCun for the patch projection."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
