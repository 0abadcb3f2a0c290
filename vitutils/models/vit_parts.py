"""Parts that Vision Transformers have been given since 2020; chapter 17 explains and tests each.

Letters as in vit.py. Sources: LayerScale, Touvron et al. 2021 (CaiT); stochastic depth, Huang et al. 2016; SwiGLU,
Shazeer 2020; rotary positions in two directions, Heo et al. 2024; attention pooling, Zhai et al. 2022; images of
several sizes in a batch, Dehghani et al. 2023 (NaViT).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.models.vit import MLP, resize_positions


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor, small at first: (B, T, D)."""

    def __init__(self, embed_dim: int, init_values: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init_values))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gamma * tokens


class DropPath(nn.Module):
    """In training, leave out an update for some images of a batch.

    updates (B, T, D) -> (B, T, D): 0 with probability `rate`, else divided by
    1 - rate, so that the mean stays the same.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, updates: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return updates
        keep = torch.rand(updates.shape[0], 1, 1, device=updates.device)
        return updates * (keep >= self.rate) / (1 - self.rate)


class SwiGLU(nn.Module):
    """An MLP in which one projection gates another: (B, T, D)."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1_g = nn.Linear(embed_dim, hidden_dim)
        self.fc1_x = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1_g(tokens)) * self.fc1_x(tokens))


def patch_coordinates(grid: tuple[int, int], own=None, to_one: bool = True, device=None) -> Tensor:
    """Row and column of each patch: (N, 2), row by row.

    to_one: patch centres from -1 to 1 across the image, else whole numbers.
    own: rows and columns (B, 2) that are an image's own, where the rest of
    the grid is padding; then (B, N, 2).
    """
    axes = []
    for axis, count in enumerate(grid):
        place = torch.arange(count, device=device).float()
        if to_one:
            counts = count if own is None else own[:, axis, None]  # (B, 1)
            place = (2 * place + 1) / counts - 1  # (count,) or (B, count)
        axes.append(place)
    pair = torch.broadcast_tensors(axes[0][..., None], axes[1][..., None, :])
    return torch.stack(pair, dim=-1).flatten(-3, -2)


def rope_angles(places: Tensor, head_dim: int, temperature: float) -> Tensor:
    """The angle of each pair of channels, in radians.

    places (..., N, A): N positions along A axes -> (..., N, Dh/2). Each axis
    gets an equal share of the pairs; their frequencies fall from 1 towards
    1 / temperature.
    """
    count = head_dim // (2 * places.shape[-1])
    powers = torch.arange(count, device=places.device) / count
    return (places[..., None] * temperature**-powers).flatten(-2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of channels: x (B, h, T, Dh) by angles (..., T, Dh/2).

    Channel i and channel i + Dh/2 are a pair, a point in a plane. The angles
    are in radians.
    """
    first, second = x.chunk(2, dim=-1)  # each (B, h, T, Dh/2)
    cos, sin = angles.cos(), angles.sin()
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat(turned, dim=-1).type_as(x)


class AttentionPool(nn.Module):
    """One learned query looks at all tokens: (B, T, D) -> (B, D).

    config: a `ViTPlusConfig`. mask (B, T), True = may be looked at. Source: Zhai et al. 2022.
    """

    def __init__(self, config):
        super().__init__()
        D, self.num_heads = config.embed_dim, config.num_heads
        self.latent = nn.Parameter(torch.randn(1, 1, D) * D**-0.5)
        self.q, self.kv = nn.Linear(D, D), nn.Linear(D, 2 * D)
        self.proj, self.norm = nn.Linear(D, D), config.norm(D)
        self.mlp = MLP(D, round(D * config.mlp_ratio))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        B, T, D = tokens.shape
        h, Dh = self.num_heads, D // self.num_heads
        q = self.q(self.latent).reshape(1, 1, h, Dh).transpose(1, 2)
        k, v = self.kv(tokens).reshape(B, T, 2, h, Dh).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        q = q.expand(B, -1, -1, -1)  # (B, h, 1, Dh)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        pooled = self.proj(mixed.transpose(1, 2).reshape(B, D))
        return pooled + self.mlp(self.norm(pooled))


def pad_images(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (C, H, W) of several sizes -> one batch, 0 below and to the right, and their sizes (B, 2)."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(dim=0).tolist()
    padded = [F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    return torch.stack(padded), sizes


def own_patches(sizes: Tensor, shape: tuple, patch_size: int) -> tuple[Tensor, Tensor]:
    """Each padded image's own rows and columns (B, 2), and which of all patches are its own (B, N), row by row.

    sizes (B, 2): height and width in pixels; shape: the batch's. Raises ValueError for sizes that do not fit it.
    """
    (H, W), P = shape[-2:], patch_size
    wrong = sizes.shape != (shape[0], 2) or (sizes % P).any() or (sizes < P).any()
    if wrong or (sizes > torch.tensor([H, W], device=sizes.device)).any():
        expected = f"expected sizes ({shape[0]}, 2) in multiples of {P}, at most {H} x {W}"
        raise ValueError(f"{expected}, got {sizes.tolist()}")
    own = sizes // P
    below = torch.arange(H // P, device=own.device) < own[:, :1]  # (B, rows)
    right = torch.arange(W // P, device=own.device) < own[:, 1:]  # (B, columns)
    return own, (below[:, :, None] & right[:, None, :]).flatten(1)


def stretch_each(patches: Tensor, made_for: tuple, grid: tuple, own: Tensor | None) -> Tensor:
    """Learned positions (1, N, D) stretched to a grid; with own (B, 2) to each image's own, 0 where it is padding."""
    if own is None and not torch.compiler.is_exporting():
        return resize_positions(patches, made_for, grid)
    if own is None:  # without its shortcut for the grid that it was made for, which would become a guard
        old = patches.transpose(1, 2).unflatten(2, made_for).float()  # (1, D, rows, columns)
        new = F.interpolate(old, grid, mode="bicubic", antialias=True)
        return new.to(patches.dtype).flatten(2).transpose(1, 2)
    found = []
    for rows, columns in own.tolist():
        one = resize_positions(patches, made_for, (rows, columns)).unflatten(1, (rows, columns))
        found.append(F.pad(one, (0, 0, 0, grid[1] - columns, 0, grid[0] - rows)).flatten(1, 2))
    return torch.cat(found)


def token_angles(config, grid: tuple, own: Tensor | None, device: torch.device) -> Tensor | None:
    """Rotary angles of all tokens in radians, (T, Dh/2), or (B, 1, T, Dh/2) where images have their own grids.

    config: a `ViTPlusConfig`; if it has no rotary positions, the result is None. The class token is not turned, nor
    are registers, unless the configuration gives them a temperature: register i then turns by i times its frequencies.
    """
    if config.rope_type is None:
        return None
    to_one, Dh = config.rope_type == "dinov3", config.head_dim
    places = patch_coordinates(grid, own, to_one, device)
    places = 2 * math.pi * places if to_one else places
    angles = rope_angles(places, Dh, config.rope_temperature)  # (..., N, Dh/2)
    prefix = angles.new_zeros(config.num_prefix_tokens, Dh // 2)
    if config.reg_rope_temperature is not None:
        numbers = torch.arange(config.reg_tokens, device=device)[:, None].float()  # (R, 1)
        turned = rope_angles(numbers, Dh, config.reg_rope_temperature)
        prefix = torch.cat([prefix[: config.has_class_token], turned])
    angles = torch.cat([prefix.expand(*angles.shape[:-2], -1, -1), angles], dim=-2)
    return angles[:, None] if angles.ndim == 3 else angles
