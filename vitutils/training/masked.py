"""Masked autoencoding: hide most patches, encode the rest, predict what was hidden.

Chapter 16 writes out each class and function in the same words; `patchify` and `unpatchify` are chapter 4's.
Letters: B images, C channels, P patch side, N patches, n visible patches, T tokens, D width of the encoder.
Source: He et al. 2022 (MAE, arXiv 2111.06377), sections 3 and 4.1 and appendix A.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vitutils.models.vit import Block, ViTConfig, init_weights


def patchify(images: Tensor, P: int) -> Tensor:
    """Cut images into flat patches.

    images: (B, C, H, W), any dtype.  P: patch side in pixels.
    Returns (B, N, C*P*P): row-major over the grid, channel first inside.
    Raises ValueError if H or W is not a multiple of P.
    """
    B, C, H, W = images.shape
    if H % P or W % P:
        raise ValueError(f"expected sides in multiples of {P}, got {H} x {W}")
    cut = images.reshape(B, C, H // P, P, W // P, P)
    patches = cut.permute(0, 2, 4, 1, 3, 5)  # (B, H/P, W/P, C, P, P)
    return patches.reshape(B, -1, C * P * P)  # (B, N, C*P*P)


def unpatchify(patches: Tensor, grid: tuple[int, int], C: int) -> Tensor:
    """Put flat patches (B, N, C*P*P) back together: (B, C, H, W).

    grid: rows and columns of patches.  C: channels.  Undoes `patchify`.
    """
    B, N, length = patches.shape
    rows, columns = grid
    P = round((length // C) ** 0.5)
    cut = patches.reshape(B, rows, columns, C, P, P)
    cut = cut.permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, P, columns, P)
    return cut.reshape(B, C, rows * P, columns * P)


def random_masking(
    noise: Tensor, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the patches to hide by sorting noise (B, N), one row per image.

    Returns keep (B, n), the indices of the n = N (1 - ratio) visible patches,
    rounded down; restore (B, N), which undoes the shuffle; and hidden (B, N),
    True where a patch is hidden. Raises ValueError if none or all are hidden.
    """
    N = noise.shape[1]
    n = int(N * (1 - ratio))
    if not 0 < n < N:
        raise ValueError(f"a ratio of {ratio} leaves {n} of {N} visible")
    shuffle = noise.argsort(dim=1)  # the positions, in shuffled order
    restore = shuffle.argsort(dim=1)  # where each went
    return shuffle[:, :n], restore, restore >= n


def pick_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens (B, T, D) at indices (B, n), in that order: (B, n, D)."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch's pixels, both (B, N, 1)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


class Decoder(nn.Module):
    """Tokens of the visible patches in, pixels of every patch out.

    tokens (B, prefix + n, D) and restore (B, N) -> (B, N, C*P*P). All hidden
    patches get the same learned token; positions tell them apart.
    """

    def __init__(self, encoder: ViTConfig, light: ViTConfig):
        super().__init__()
        (rows, columns), D = encoder.grid, light.embed_dim
        self.prefix = encoder.num_prefix_tokens
        T = self.prefix + rows * columns
        self.embed = nn.Linear(encoder.embed_dim, D)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, T, D))
        blocks = (Block(light) for _ in range(light.depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(D, eps=light.norm_eps)
        self.pred = nn.Linear(D, encoder.in_chans * encoder.patch_size**2)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        prefix, visible = tokens[:, : self.prefix], tokens[:, self.prefix :]
        B, n, D = visible.shape
        hidden = self.mask_token.expand(B, restore.shape[1] - n, -1)
        shuffled = torch.cat([visible, hidden], dim=1)  # (B, N, D)
        tokens = torch.cat([prefix, pick_tokens(shuffled, restore)], dim=1)
        tokens = self.norm(self.blocks(tokens + self.pos_embed))
        return self.pred(tokens[:, self.prefix :])


class MAE(nn.Module):
    """Masked autoencoder around a ViT: images (B, C, H, W) -> loss.

    The encoder sees only the visible patches; a light decoder predicts the
    pixels of all. ratio: the share of patches that is hidden. The loss is the
    mean squared error on these.
    normalise: targets are patches minus their mean, divided by their standard
    deviation. noise (B, N), if given, decides what is hidden. With
    need_patches=True also the predicted patches (B, N, C*P*P), and hidden.
    """

    def __init__(
        self, encoder: nn.Module, ratio: float = 0.75, normalise: bool = True,
        decoder_dim: int = 64, decoder_depth: int = 1, decoder_heads: int = 4,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.ratio, self.normalise = encoder, ratio, normalise
        light = replace(
            encoder.config, embed_dim=decoder_dim, depth=decoder_depth,
            num_heads=decoder_heads,
        )  # fmt: skip
        self.decoder = Decoder(encoder.config, light)

    def encode(self, images: Tensor, keep: Tensor) -> Tensor:
        """Normalised tokens of the visible patches: (B, prefix + n, D)."""
        p = self.encoder.config.num_prefix_tokens
        tokens = self.encoder.embed(images)  # with positions added
        visible = pick_tokens(tokens[:, p:], keep)  # (B, n, D)
        tokens = torch.cat([tokens[:, :p], visible], dim=1)
        for block in self.encoder.blocks:
            tokens = block(tokens)
        return self.encoder.norm(tokens)

    def targets(self, images: Tensor) -> Tensor:
        """What the decoder should predict: patches (B, N, C*P*P)."""
        patches = patchify(images, self.encoder.config.patch_size)
        if self.normalise:
            mean, std = patch_statistics(patches)
            patches = (patches - mean) / std
        return patches

    def forward(
        self, images: Tensor, noise: Tensor | None = None,
        need_patches: bool = False,
    ):  # fmt: skip
        rows, columns = self.encoder.config.grid
        if noise is None:
            shape = len(images), rows * columns
            noise = torch.rand(shape, device=images.device)
        keep, restore, hidden = random_masking(noise, self.ratio)
        patches = self.decoder(self.encode(images, keep), restore)
        error = (patches - self.targets(images)).square().mean(dim=-1)
        loss = error[hidden].mean()  # (B, N): the hidden ones alone
        return (loss, patches, hidden) if need_patches else loss
