"""Convolutional networks, and what they are compared with.

Chapter 1 writes out most of them in the same words, chapter 6 `SmallCNN`, chapter 7 `ConvStem`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Stages of 3 x 3 convolution, BatchNorm, ReLU, 2 x 2 max-pooling.

    images (B, C, H, W) -> logits (B, K). One stage per width; H, W are
    halved in each. The last feature map is averaged over positions.
    """

    def __init__(self, in_chans: int, num_classes: int, widths: tuple):
        super().__init__()
        stages, width_before = [], in_chans
        for width in widths:
            stages += [
                nn.Conv2d(width_before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            width_before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width_before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.stages(images)  # (B, width, H / 2^stages, W / 2^stages)
        return self.head(grid.mean(dim=(2, 3)))  # (B, K)


class PixelMLP(nn.Module):
    """Linear layers over all pixels, with a ReLU after each but the last.

    images (B, C, H, W) -> logits (B, K); pixels is C * H * W.
    """

    def __init__(self, pixels: int, num_classes: int, widths: tuple):
        super().__init__()
        layers, width_before = [], pixels
        for width in widths:
            layers += [nn.Linear(width_before, width), nn.ReLU()]
            width_before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width_before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images.flatten(1)))


class LocallyConnected(nn.Module):
    """Like a 3 x 3 convolution, but with its own filter at every position.

    images (B, C, H, W) -> (B, out_chans, H, W), for one size (H, W) only.
    """

    def __init__(self, in_chans: int, out_chans: int, size: tuple):
        super().__init__()
        self.size = H, W = size
        shape = (H * W, out_chans, 9 * in_chans)
        self.weight = nn.Parameter(torch.randn(shape) / (9 * in_chans) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_chans, H * W))

    def forward(self, images: Tensor) -> Tensor:
        windows = F.unfold(images, 3, padding=1)  # (B, 9*C, H*W)
        out = torch.einsum("bip,poi->bop", windows, self.weight) + self.bias
        return out.unflatten(2, self.size)  # (B, out_chans, H, W)


class BlurPool(nn.Module):
    """Low-pass filter, then keep every second position: H and W are halved.

    (B, C, H, W) -> (B, C, H/2, W/2). The filter is (1, 2, 1) / 4 along
    rows and along columns, the same for every channel; nothing is learned.
    Source: Zhang 2019.
    """

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row))

    def forward(self, grid: Tensor) -> Tensor:
        C = grid.shape[1]
        kernels = self.kernel.expand(C, 1, 3, 3)  # one filter per channel
        return F.conv2d(grid, kernels, stride=2, padding=1, groups=C)


def blur_pooling(model: nn.Module) -> nn.Module:
    """Replace each 2 x 2 max-pooling, in place, with one that filters.

    The maximum is taken at every position; BlurPool then skips positions.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.MaxPool2d):
            dense = nn.MaxPool2d(2, stride=1)
            setattr(model, name, nn.Sequential(dense, BlurPool()))
        else:
            blur_pooling(child)
    return model


class ConvStack(nn.Module):
    """3 x 3 convolutions of stride 1, then the mean over all positions.

    images (B, C, H, W) -> logits (B, K). One layer per entry of dilations:
    (1, 1, 1) stacks three plain ones. BatchNorm and ReLU follow each.
    """

    def __init__(
        self, in_chans: int, num_classes: int, width: int, dilations: tuple
    ):
        super().__init__()
        layers, width_before = [], in_chans
        for d in dilations:
            layers += [
                nn.Conv2d(
                    width_before, width, 3, padding=d, dilation=d, bias=False
                ),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            width_before = width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(width)  # rescales the means to size 1
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.layers(images)  # (B, width, H, W)
        return self.head(self.norm(grid.mean(dim=(2, 3))))  # (B, K)


class ConvStem(nn.Module):
    """Tokens from a few convolutions: images (B, C, H, W) -> (B, N, D).

    3 x 3 convolutions of stride 2 with BatchNorm and ReLU, each twice as wide
    as the one before, until one position covers a patch; then a 1 x 1
    convolution. Replaces `PatchEmbed`: `ViT(config, ConvStem)`. Source: Xiao
    et al. 2021. Raises ValueError unless patch_size is a power of two.
    """

    vit_init = True  # the ViT initialises it with its own layers

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        stages = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 2**stages:
            raise ValueError(
                f"patch_size must be a power of two, got {patch_size}"
            )
        layers, width_before = [], in_chans
        for stage in range(stages):
            width = embed_dim // 2 ** (stages - 1 - stage)
            layers += [
                nn.Conv2d(width_before, width, 3, 2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            width_before = width
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width_before, embed_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.proj(self.layers(images))  # (B, D, H / P, W / P)
        return grid.flatten(2).transpose(1, 2)  # (B, N, D)
