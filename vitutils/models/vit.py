"""The Vision Transformer, in five modules. Chapter 5 writes out each of them in the same words.

Letters: B batch, C H W channels, height, width, P patch side, N patches, T tokens, D width,
h heads, Dh = D / h, K classes. Arguments and parameter names are timm's: its checkpoints load.
Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), equations 1 to 4; Ti and S: DeiT (2012.12877).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT. img_size, in pixels, is one number or (height, width).

    mlp_ratio: width of the MLP / embed_dim; the width is rounded.
    global_pool: "token" reads the class token; "avg" takes the mean of the
    normalised patch tokens, and then there is no class token.
    Raises ValueError if the sizes do not fit together.
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
        H, W = self.image_shape
        P, D, h = self.patch_size, self.embed_dim, self.num_heads
        if H % P or W % P:
            raise ValueError(f"patch_size {P} does not divide {H} x {W}")
        if D % h:
            raise ValueError(f"num_heads {h} does not divide embed_dim {D}")
        pool = self.global_pool
        if pool not in ("token", "avg"):
            raise ValueError(f"global_pool must be token or avg, got {pool!r}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        size = self.img_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        H, W = self.image_shape
        return H // self.patch_size, W // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: the class token, or none."""
        return int(self.global_pool == "token")

    @classmethod
    def named(cls, name: str, **changes) -> "ViTConfig":
        """The papers' sizes, such as "Ti/16"; `changes` replace fields."""
        sizes = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12)}
        sizes |= {"L": (1024, 24, 16), "H": (1280, 32, 16)}
        size, _, P = name.partition("/")
        if size not in sizes or not P.isdigit():
            raise ValueError(f"expected {[*sizes]}/patch_size, got {name!r}")
        D, depth, h = sizes[size]
        fields = dict(embed_dim=D, depth=depth, num_heads=h, patch_size=int(P))
        return cls(**fields | changes)


class PatchEmbed(nn.Module):
    """Cut images into patches and project each to a token.

    images (B, C, H, W) -> tokens (B, N, D). Both steps are one convolution
    whose kernel and stride are P. Raises ValueError if C is wrong, or if H or
    W is not a multiple of P.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Conv2d(
            in_chans, embed_dim, kernel_size=patch_size, stride=patch_size
        )

    def forward(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        P = self.patch_size
        if C != self.in_chans or H % P or W % P:
            raise ValueError(
                f"expected {self.in_chans} channels and sides in multiples "
                f"of {P}, got images of shape {tuple(images.shape)}"
            )
        grid = self.proj(images)  # (B, D, H/P, W/P)
        return grid.flatten(2).transpose(1, 2)  # (B, N, D)


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Every token asks (q) every token (k) and takes a weighted mean of values
    (v). tokens (B, T, D) -> (B, T, D); with need_weights=True also attn
    (B, h, T, T), whose rows sum to 1.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, need_weights: bool = False):
        B, T, D = tokens.shape
        h, Dh = self.num_heads, D // self.num_heads
        qkv = self.qkv(tokens).reshape(B, T, 3, h, Dh)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, Dh)
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(Dh)  # (B, h, T, T)
            attn = scores.softmax(dim=-1)  # over the keys
            mixed = attn @ v  # (B, h, T, Dh)
        else:  # the fused path: same result, no map is kept
            mixed = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(mixed.transpose(1, 2).reshape(B, T, D))
        return (out, attn) if need_weights else out


class MLP(nn.Module):
    """Two linear layers and a GELU, applied to each token alone: (B, T, D)."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm Transformer block. (B, T, D) -> (B, T, D).

    tokens + attention(norm(tokens)), then the same with the MLP. With
    need_weights=True it also returns the attention map (B, h, T, T).
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        D, eps = config.embed_dim, config.norm_eps
        self.norm1 = nn.LayerNorm(D, eps=eps)
        self.attn = SelfAttention(D, config.num_heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(D, eps=eps)
        self.mlp = MLP(D, round(D * config.mlp_ratio))

    def forward(self, tokens: Tensor, need_weights: bool = False):
        attended = self.attn(self.norm1(tokens), need_weights)
        update, attn = attended if need_weights else (attended, None)
        tokens = tokens + update
        tokens = tokens + self.mlp(self.norm2(tokens))
        return (tokens, attn) if need_weights else tokens


def resize_positions(
    pos_embed: Tensor, old_grid: tuple, new_grid: tuple, mode: str = "bicubic"
) -> Tensor:
    """Stretch learned positions (1, T, D) from one patch grid to another.

    A class token's vector stays as it is. Bicubic, because bilinear shrinks
    the vectors (DeiT, section 6). Raises ValueError if T does not fit.
    """
    rows, columns = old_grid
    N, T = rows * columns, pos_embed.shape[1]
    if T not in (N, N + 1):
        raise ValueError(f"expected {N} or {N + 1} positions, got {T}")
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    prefix, grid = pos_embed.split([T - N, N], dim=1)
    grid = grid.transpose(1, 2).unflatten(2, old_grid)  # (1, D, rows, columns)
    grid = F.interpolate(grid.float(), new_grid, mode=mode, antialias=True)
    grid = grid.to(pos_embed.dtype).flatten(2).transpose(1, 2)  # (1, N', D)
    return torch.cat([prefix, grid], dim=1)


def init_weights(module: nn.Module) -> None:
    """Initialise one layer; biases start at zero.

    Linear: Xavier. Patch projection: normal, variance 1 / inputs (LeCun).
    The paper's code does the same, but draws q, k and v separately, with
    standard deviation D^-0.5; as one matrix (3D, D) they start at (2D)^-0.5.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        inputs = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=inputs**-0.5)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


class ViT(nn.Module):
    """Vision Transformer. images (B, C, H, W) -> logits (B, K).

    need_weights=True also returns every map: attn (B, depth, h, T, T). Images
    of another size are accepted: positions are stretched to their grid. With
    num_classes 0 there is no head: it returns features (B, D), as in timm. An
    embed_layer of your own keeps its weights, unless its `vit_init` is true.
    """

    def __init__(self, config: ViTConfig, embed_layer=PatchEmbed):
        super().__init__()
        self.config, D = config, config.embed_dim
        prefix, (rows, columns) = config.num_prefix_tokens, config.grid
        T = prefix + rows * columns
        self.patch_embed = embed_layer(config.patch_size, config.in_chans, D)
        cls_token = nn.Parameter(torch.zeros(1, 1, D)) if prefix else None
        self.register_parameter("cls_token", cls_token)
        self.pos_embed = nn.Parameter(torch.zeros(1, T, D))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        K = config.num_classes
        self.head = nn.Linear(D, K) if K else nn.Identity()
        yours = self.patch_embed if embed_layer is not PatchEmbed else None
        for layer in self.children():
            if layer is not yours or getattr(yours, "vit_init", False):
                layer.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)  # so that the first loss is ln K

    def embed(self, images: Tensor) -> Tensor:
        """Patches, class token, positions: (B, T, D) for the first block."""
        tokens = self.patch_embed(images)
        if self.cls_token is not None:
            B = tokens.shape[0]  # len(tokens) would fix it under torch.export
            first = self.cls_token.expand(B, -1, -1)  # (B, 1, D)
            tokens = torch.cat([first, tokens], dim=1)
        grid = tuple(s // self.config.patch_size for s in images.shape[-2:])
        positions = resize_positions(self.pos_embed, self.config.grid, grid)
        return (tokens + positions).contiguous()  # (B, T, D), in order

    def forward_features(self, images: Tensor, need_weights: bool = False):
        """Normalised tokens after the last block (B, T, D), and the maps."""
        tokens, maps = self.embed(images), []
        for block in self.blocks:
            tokens = block(tokens, need_weights)
            if need_weights:
                tokens, attn = tokens
                maps.append(attn)
        tokens = self.norm(tokens)
        return (tokens, torch.stack(maps, 1)) if need_weights else tokens

    def forward(self, images: Tensor, need_weights: bool = False):
        features = self.forward_features(images, need_weights)
        tokens, attn = features if need_weights else (features, None)
        pooled = tokens.mean(1) if self.cls_token is None else tokens[:, 0]
        logits = self.head(pooled)
        return (logits, attn) if need_weights else logits
