"""The ViT of today: what has been added since 2020, one argument each. Chapter 17 explains them one by one.

Letters as in vit.py, whose modules stay as they are; R registers. Arguments and parameter names are timm's. With all of
them off, `ViTPlus` has the weights of `ViT` (same seed) and gives its outputs. Sources, beside those of vit_parts.py:
QK norm, Dehghani et al. 2023; RMSNorm, Zhang and Sennrich 2019; registers, Darcet et al. 2024.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitutils.models import vit_parts as parts
from vitutils.models.vit import MLP, PatchEmbed, SelfAttention, ViTConfig, init_weights
from vitutils.models.vit_parts import DropPath, LayerScale, SwiGLU, rotate

NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


@dataclass(frozen=True)
class ViTPlusConfig(ViTConfig):
    """Sizes of a ViT, and what was added to it; all of that is off by default.

    global_pool: also "map", attention pooling. class_token: None means only
    where global_pool is "token".  pos_embed: "learn" or "none";
    no_embed_class: learned positions for the patches only.  rope_type: "dinov3" counts
    from -1 to 1 across each image, "axial" in whole patches; it may stand
    beside pos_embed. reg_rope_temperature: rotates registers by their number.
    drop_path_rate: of the last block; it grows from 0 at the first.
    init_values: LayerScale's. Raises ValueError where these do not fit.
    """

    class_token: bool | None = None
    reg_tokens: int = 0
    pos_embed: str = "learn"
    no_embed_class: bool = False
    rope_type: str | None = None
    rope_temperature: float = 100.0
    reg_rope_temperature: float | None = None
    norm_layer: str = "layernorm"
    qk_norm: bool = False
    init_values: float | None = None
    swiglu_mlp: bool = False
    drop_path_rate: float = 0.0
    grad_checkpointing: bool = False

    def __post_init__(self):
        if self.global_pool == "map":
            replace(self, global_pool="avg")  # makes the other checks
        else:
            super().__post_init__()
        kinds = {"pos_embed": ("learn", "none"), "norm_layer": (*NORMS,), "rope_type": (None, "dinov3", "axial")}
        for name, values in kinds.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {values}, got {getattr(self, name)!r}")
        if self.reg_tokens < 0 or not 0 <= self.drop_path_rate < 1:
            got = f"{self.reg_tokens} and {self.drop_path_rate}"
            raise ValueError(f"expected reg_tokens of 0 or more, and a drop_path_rate from 0 to below 1, got {got}")
        if self.global_pool == "token" and not self.has_class_token:
            raise ValueError('global_pool "token" needs a class token, got class_token=False')
        if self.rope_type and self.head_dim % 4:
            raise ValueError(f"rotary positions need heads whose width is a multiple of 4, got {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands first."""
        return self.global_pool == "token" if self.class_token is None else self.class_token

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: class token and registers."""
        return self.has_class_token + self.reg_tokens

    def norm(self, width: int) -> nn.Module:
        """A fresh layer that normalises the last axis."""
        return NORMS[self.norm_layer](width, eps=self.norm_eps)


class SelfAttentionPlus(SelfAttention):
    """Self-attention with QK norm, rotary positions and a mask.

    tokens (B, T, D) -> (B, T, D); with need_weights=True also attn
    (B, h, T, T). angles (T, Dh/2) or (B, 1, T, Dh/2), in radians. mask (B, T),
    True = may be looked at.
    """

    def __init__(self, config: ViTPlusConfig):
        super().__init__(config.embed_dim, config.num_heads, config.qkv_bias)
        norm = config.norm if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(config.head_dim), norm(config.head_dim)

    def forward(self, tokens: Tensor, need_weights=False, angles=None, mask=None):
        B, T, D = tokens.shape
        h, Dh = self.num_heads, D // self.num_heads
        qkv = self.qkv(tokens).reshape(B, T, 3, h, Dh)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, Dh)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        allowed = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(Dh)  # (B, h, T, T)
            if mask is not None:
                scores = scores.masked_fill(~allowed, -math.inf)
            attn = scores.softmax(dim=-1)  # over the keys
            mixed = attn @ v  # (B, h, T, Dh)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out = self.proj(mixed.transpose(1, 2).reshape(B, T, D))
        return (out, attn) if need_weights else out


class BlockPlus(nn.Module):
    """Pre-norm block with LayerScale and stochastic depth: (B, T, D)."""

    def __init__(self, config: ViTPlusConfig, drop_path: float = 0.0):
        super().__init__()
        D, init = config.embed_dim, config.init_values
        kind = SwiGLU if config.swiglu_mlp else MLP
        self.norm1, self.attn = config.norm(D), SelfAttentionPlus(config)
        self.ls1 = nn.Identity() if init is None else LayerScale(D, init)
        self.norm2 = config.norm(D)
        self.mlp = kind(D, round(D * config.mlp_ratio))
        self.ls2 = nn.Identity() if init is None else LayerScale(D, init)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, need_weights=False, angles=None, mask=None):
        attended = self.attn(self.norm1(tokens), need_weights, angles, mask)
        update, attn = attended if need_weights else (attended, None)
        tokens = tokens + self.drop_path(self.ls1(update))
        update = self.ls2(self.mlp(self.norm2(tokens)))
        tokens = tokens + self.drop_path(update)
        return (tokens, attn) if need_weights else tokens


class ViTPlus(nn.Module):
    """The ViT of today. images (B, C, H, W) -> logits (B, K).

    sizes (B, 2): height and width of each image in pixels, where the batch was
    padded below and to the right (`pad_images`); no token looks at the
    padding. Raises ValueError if they do not fit. need_weights=True also
    returns attn (B, depth, h, T, T). num_classes 0: no head, features (B, D).
    """

    def __init__(self, config: ViTPlusConfig):
        super().__init__()
        self.config, D, R = config, config.embed_dim, config.reg_tokens
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, D)
        N = math.prod(config.grid)
        T = N if config.no_embed_class else N + config.num_prefix_tokens
        learned = {
            "cls_token": config.has_class_token and torch.zeros(1, 1, D),
            "reg_token": R and 0.02 * torch.randn(1, R, D),
            "pos_embed": config.pos_embed == "learn" and torch.zeros(1, T, D),
        }
        for name, start in learned.items():
            self.register_parameter(name, nn.Parameter(start) if isinstance(start, Tensor) else None)
        rates = torch.linspace(0, config.drop_path_rate, config.depth).tolist()
        self.blocks = nn.ModuleList(BlockPlus(config, rate) for rate in rates)
        self.norm, K = config.norm(D), config.num_classes
        self.attn_pool = parts.AttentionPool(config) if config.global_pool == "map" else None
        self.head = nn.Linear(D, K) if K else nn.Identity()
        self.apply(init_weights)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)  # so that the first loss is ln K

    def positions(self, grid: tuple, own: Tensor | None) -> Tensor:
        """Learned positions for a grid, (1, T, D); for each image's own grid, (B, T, D)."""
        before = self.pos_embed.shape[1] - math.prod(self.config.grid)
        first, patches = self.pos_embed[:, :before], self.pos_embed[:, before:]
        patches = parts.stretch_each(patches, self.config.grid, grid, own)
        return torch.cat([first.expand(patches.shape[0], -1, -1), patches], dim=1)

    def embed(self, images: Tensor, own: Tensor | None = None) -> Tensor:
        """Class token, registers, patches, with learned positions: (B, T, D) for the first block."""
        patches = self.patch_embed(images)
        prefix = [t.expand(patches.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is None:
            return torch.cat([*prefix, patches], dim=1)
        positions = self.positions(self._grid(images), own)
        if self.config.no_embed_class:
            return torch.cat([*prefix, patches + positions], dim=1)
        return torch.cat([*prefix, patches], dim=1) + positions

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return tuple(side // self.config.patch_size for side in images.shape[-2:])

    def _own(self, images: Tensor, sizes: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Each image's own rows and columns (B, 2), and which tokens aren't padding (B, T)."""
        if sizes is None:
            return None, None
        own, real = parts.own_patches(sizes.to(images.device), images.shape, self.config.patch_size)
        return own, F.pad(real, (self.config.num_prefix_tokens, 0), value=True)

    def _blocks(self, tokens: Tensor, *given):
        """Yield the tokens after each block, and its map or None."""
        save = self.config.grad_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            found = checkpoint(block, tokens, *given, use_reentrant=False) if save else block(tokens, *given)
            tokens, attn = found if given[0] else (found, None)
            yield tokens, attn

    def _prepared(self, images: Tensor, need_weights: bool, sizes: Tensor | None) -> tuple:
        """What the first block is given: tokens, need_weights, angles, mask."""
        (own, mask), device = self._own(images, sizes), images.device
        angles = parts.token_angles(self.config, self._grid(images), own, device)
        return self.embed(images, own), need_weights, angles, mask

    def forward_intermediates(self, images: Tensor, indices=None, sizes: Tensor | None = None) -> list[Tensor]:
        """Patch tokens after chosen blocks, each (B, D, rows, columns), not normalised. indices: None, all blocks."""
        found = [tokens for tokens, _ in self._blocks(*self._prepared(images, False, sizes))]
        wanted = range(len(found)) if indices is None else indices
        patches = [found[i][:, self.config.num_prefix_tokens :] for i in wanted]
        return [tokens.transpose(1, 2).unflatten(2, self._grid(images)) for tokens in patches]

    def forward_features(self, images: Tensor, need_weights: bool = False, sizes: Tensor | None = None):
        """Normalised tokens after the last block (B, T, D); with need_weights=True also the maps."""
        given, maps = self._prepared(images, need_weights, sizes), []
        tokens = given[0]
        for after, attn in self._blocks(*given):
            tokens = after
            maps.append(attn)
        tokens = self.norm(tokens)
        return (tokens, torch.stack(maps, dim=1)) if need_weights else tokens

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector for each image: (B, T, D) -> (B, D); registers and padding do not count."""
        if self.config.global_pool == "token":
            return tokens[:, 0]
        first = self.config.num_prefix_tokens
        patches, real = tokens[:, first:], None if mask is None else mask[:, first:]
        if self.attn_pool is not None:
            return self.attn_pool(patches, real)
        if real is None:
            return patches.mean(1)
        return (patches * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)

    def forward(self, images: Tensor, need_weights: bool = False, sizes: Tensor | None = None):
        features = self.forward_features(images, need_weights, sizes)
        tokens, attn = features if need_weights else (features, None)
        logits = self.head(self.pool(tokens, self._own(images, sizes)[1]))
        return (logits, attn) if need_weights else logits
