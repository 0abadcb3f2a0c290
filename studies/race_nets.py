"""What chapter 6's race is run with: augmentations, a net of Keras' example, and our entry's net."""

import math
from functools import partial

import torch
import torch.nn.functional as F
import vit_pytorch
from torch import Tensor, nn

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 0))  # rows, columns


# --- what an entry does to images: uint8 (B, 1, 28, 28) -> float in 0..1 ---


def as_is(images: Tensor, generator: torch.Generator) -> Tensor:
    """No augmentation."""
    return images.float() / 255


def flips(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images).float() / 255


def between(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Evenly drawn numbers."""
    return low + (high - low) * torch.rand(count, generator=generator)


def warped(images: Tensor, generator: torch.Generator, area=(1.0, 1.0), ratio=1.0, zoom=0.0, turn=0.0) -> Tensor:
    """Mirrored by chance, and read off a part that is cropped, zoomed and turned, each image by its own draw.

    area: share of the image that a crop keeps, from and to.  ratio: largest of its sides' ratio.  zoom: by how much, in
    or out, at most.  turn: by how many radians at most.
    """
    B = len(images)
    draw = partial(between, count=B, generator=generator)
    side, long = draw(*area).sqrt() * (1 + draw(-zoom, zoom)), draw(-math.log(ratio), math.log(ratio)).div(2).exp()
    width, height, angle = (side * long).clamp(max=1 + zoom), (side / long).clamp(max=1 + zoom), draw(-turn, turn)
    free = [(1 - extent).clamp(min=0) * draw(-1, 1) for extent in (width, height)]  # where the crop may lie
    width = width * torch.where(torch.rand(B, generator=generator) < 0.5, -1.0, 1.0)
    rows = [
        torch.stack([width * angle.cos(), -height * angle.sin(), free[0]], dim=1),
        torch.stack([width * angle.sin(), height * angle.cos(), free[1]], dim=1),
    ]
    grid_of = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float() / 255, grid_of, padding_mode="border", align_corners=False)


def timm_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of 8 to 100 % of the image, flips, brightness and contrast changed by up to 40 %."""
    images = warped(images, generator, area=(0.08, 1.0), ratio=4 / 3)
    bright, contrast = (between(0.6, 1.4, len(images), generator).view(-1, 1, 1, 1) for _ in range(2))
    images = (images * bright).clamp(0, 1)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return (middle + (images - middle) * contrast).clamp(0, 1)


# --- nets ---


class KerasViT(nn.Module):
    """The ViT of Keras' example: no class token; all tokens, side by side, go to a large head."""

    def __init__(self):
        super().__init__()
        sizes = dict(image_size=72, patch_size=6, channels=1, num_classes=10, dim=64, depth=8, heads=4, mlp_dim=128)
        net = vit_pytorch.ViT(dim_head=64, dropout=0.1, **sizes)
        self.embed, self.blocks = net.to_patch_embedding, net.transformer
        self.places = nn.Parameter(net.pos_embedding.detach()[1:].clone())
        layers = [nn.Dropout(0.5), nn.Linear(144 * 64, 2_048), nn.GELU(), nn.Dropout(0.5)]
        self.head = nn.Sequential(*layers, nn.Linear(2_048, 1_024), nn.GELU(), nn.Dropout(0.5), nn.Linear(1_024, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(images) + self.places).flatten(1))


def library_vit(**sizes) -> nn.Module:
    """A ViT of vit-pytorch for one channel and ten classes."""
    return vit_pytorch.ViT(channels=1, num_classes=10, **sizes)


class PlacedAttention(nn.Module):
    """Self-attention with a learned bias for each head and offset between patches, which starts local.

    tokens (B, T, D) -> (B, T, D), for a grid of `side` x `side` tokens. Head k starts with its largest bias at the k-th
    of nine neighbours, so that the layer starts like a convolution of 3 x 3 (ConViT, 2103.10697), and may leave there.
    local: how fast the bias falls with the squared distance from that neighbour; 0 starts without a preference.
    """

    def __init__(self, D: int, num_heads: int, side: int, local: float):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.stack([row.flatten(), column.flatten()], dim=1)  # (T, 2)
        offset = place[None] - place[:, None] + side - 1  # from a query to a key, (T, T, 2)
        self.register_buffer("index", offset[..., 0] * (2 * side - 1) + offset[..., 1], persistent=False)
        around = torch.cartesian_prod(torch.arange(1 - side, side), torch.arange(1 - side, side))
        aims = torch.tensor(NEIGHBOURS)[torch.arange(num_heads) % len(NEIGHBOURS)]
        far = (around[None] - aims[:, None]).square().sum(dim=-1)
        self.bias = nn.Parameter(-local * far.float())  # (h, offsets)

    def forward(self, tokens: Tensor) -> Tensor:
        B, T, D = tokens.shape
        qkv = self.qkv(tokens).view(B, T, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, Dh)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + self.bias[:, self.index]
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, T, D))


class PatchMLP(nn.Module):
    """Patches to tokens: a linear layer, and beside it one with a hidden layer of `hidden` ReLUs (0: none).

    images (B, 1, side, side) -> (B, T, D). With `patches` (N, P * P) given, both start on whitened patches: every
    direction in which patches differ comes in with about the same strength, however small it is.
    """

    def __init__(self, P: int, D: int, hidden: int, patches: Tensor | None):
        super().__init__()
        self.P, self.linear = P, nn.Linear(P * P, D)
        self.hidden, self.out = (nn.Linear(P * P, hidden), nn.Linear(hidden, D)) if hidden else (None, None)
        nn.init.zeros_(self.linear.bias)
        if hidden:
            nn.init.xavier_uniform_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        if patches is not None:
            self.whiten(patches)

    @torch.no_grad()
    def whiten(self, patches: Tensor) -> None:
        """Start on the directions of a sample of patches, each divided by its spread (and a little more)."""
        centred = patches - patches.mean(dim=0)
        variance, directions = torch.linalg.eigh(centred.T @ centred / len(patches))
        white = (directions / (variance + 0.1).sqrt()).T  # (P * P, P * P)
        layers = {self.linear: nn.init.orthogonal_(torch.empty(len(self.linear.weight), len(white)))}
        if self.hidden is not None:
            layers[self.hidden] = F.normalize(torch.randn(len(self.hidden.weight), len(white)), dim=1)
        for layer, mixing in layers.items():
            layer.weight.copy_(mixing @ white)
            layer.bias.copy_(-layer.weight @ patches.mean(dim=0))

    def forward(self, images: Tensor) -> Tensor:
        patches = cut(images, self.P)
        tokens = self.linear(patches)
        return tokens if self.hidden is None else tokens + self.out(self.hidden(patches).relu())


def cut(images: Tensor, P: int) -> Tensor:
    """images (B, 1, side, side) -> patches (B, T, P * P), row by row."""
    B, side = len(images), images.shape[-1] // P
    return images.view(B, side, P, side, P).transpose(2, 3).reshape(B, side * side, P * P)


class RaceViT(nn.Module):
    """Our entry: images (B, 1, 28, 28) -> logits (B, 10); norm first, no class token, the mean of the tokens."""

    def __init__(self, P: int, D: int, depth: int, num_heads: int, hidden: int, local: float, patches: Tensor | None):
        super().__init__()
        side = 28 // P
        self.embed = PatchMLP(P, D, hidden, patches)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, side * side, D))
        self.attention = nn.ModuleList(PlacedAttention(D, num_heads, side, local) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(D, 2 * D), nn.ReLU(), nn.Linear(2 * D, D)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(2 * depth + 1))
        self.head = nn.Linear(D, 10)
        for layer in (m for part in (self.attention, self.mlps, self.head) for m in part.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images) + self.pos_embed
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            tokens = tokens + attention(self.norms[2 * i](tokens))
            tokens = tokens + mlp(self.norms[2 * i + 1](tokens))
        return self.head(self.norms[-1](tokens).mean(dim=1))
