"""The networks of the book by name, as the command line takes them."""

import re

import torch
from torch import nn

from vitutils.models.cnn import SmallCNN
from vitutils.models.vit import ViT, ViTConfig


def named_net(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return an untrained network by name (book/P, Ti/P, cnn, ...) for images (C, H, W).

    Raises ValueError for an unknown name, or sizes that do not fit.
    """
    C, H, W = image_shape
    if name == "cnn":
        if min(H, W) < 8:
            raise ValueError(f"--net cnn halves its images three times: expected 8 x 8 pixels or more, got {H} x {W}")
        return SmallCNN(C, num_classes, (16, 40, 64)).to(memory_format=torch.channels_last)
    size, _, P = name.partition("/")
    if size not in ("book", "Ti", "S", "B", "L", "H") or not re.fullmatch("0*[1-9][0-9]{0,5}", P):
        raise ValueError(f"--net {name}: expected book/P, Ti/P, S/P, B/P, L/P or H/P with patches of P pixels, or cnn")
    fit = dict(img_size=(H, W), in_chans=C, num_classes=num_classes)
    if size == "book":
        sizes = dict(embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0, global_pool="avg")
        return ViT(ViTConfig(patch_size=int(P), **sizes, **fit))
    return ViT(ViTConfig.named(name, **fit))
