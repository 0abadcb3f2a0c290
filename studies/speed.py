"""Chapter 14's study: where attention by hand is faster than fused, and our step beside other libraries' ViTs.

Parts:
    attention  one layer's softmax(q k^T / sqrt(Dh)) v, by hand and fused, by tokens, width of a head and batch
    step       a training step (AdamW) and an inference pass of the same sizes in six libraries' hands, at three shapes

One process, one thread, the ways in turn; the order turns by one in each repeat, so that neighbours change. Each way is
run once before its first row, uncounted. Other work ran beside this: `ms` is the time that the processor spent on this
process alone. Compare ways within one repeat. Two threads were not measured.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import cache

import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
import vit_pytorch
from torch import Tensor, nn
from vit_pytorch.simple_vit import SimpleViT

from studies.harness import main
from studies.shared import constants, grid
from studies.store import Store
from vitutils import check
from vitutils.models import SelfAttention, ViT, ViTConfig

TOKENS = ((17, 752), (50, 64), (50, 256), (65, 49), (101, 32), (197, 16))  # tokens, images
HEADS = 4
WIDTHS = (16, 64)  # of a head
SHAPES = {  # side, patch, width, blocks, heads; images a batch
    "28 px, patch 4, D 64": ((28, 4, 64, 4, 4), 256),
    "32 px, patch 4, D 192": ((32, 4, 192, 4, 3), 16),
    "224 px, Ti/16": ((224, 16, 192, 12, 3), 2),
}
CORES = ("fused", "by hand")
NETS = (
    "ours, class token",
    "ours, mean",
    "ours, mean, by hand",
    "vit-pytorch ViT",
    "vit-pytorch SimpleViT",
    "timm",
    "torchvision",
    "transformers",
)
REPEATS = {"attention": 7, "step": 5}
K = 10
KEY = ("part", "shape", "mode", "way", "repeat")
predicted = {
    "attention, training, 50 tokens, heads of 16: by hand, time of fused": {
        "expected": 0.85,
        "reason": "another processor gained 17 % of the whole step; this one has narrower vectors",
    },
    "attention, training, 197 tokens: by hand, time of fused": {
        "expected": 1.4,
        "reason": "the map no longer fits the cache next to the processor",
    },
    "attention, inference: by hand, time of fused, everywhere": {
        "expected": 1.3,
        "reason": "fused keeps scores in the cache, and nothing is kept for a backward pass",
    },
    "step, training, 28 px: time of ours, of the fastest library's": {
        "expected": 1.06,
        "reason": "0.85 times its images on another processor; a first look gave 1.05 here",
    },
    "step, training, 224 px: time of ours, of the fastest library's": {
        "expected": 1.0,
        "reason": "matrix products are most of the work, and all libraries call the same ones",
    },
    "step, inference, 28 px: time of ours, of the fastest library's": {
        "expected": 0.99,
        "reason": "a first look had ours level with timm",
    },
}


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in chapter 2's lines: (B, h, T, Dh) -> the same shape."""
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


class ByHand(SelfAttention):
    """Chapter 5's layer, which never calls the fused kernel."""

    def forward(self, tokens: Tensor, need_weights: bool = False) -> Tensor:
        return super().forward(tokens, need_weights=True)[0]


class Logits(nn.Module):
    """A net of transformers that gives its logits alone."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).logits


def make_net(way: str, side: int, P: int, D: int, depth: int, h: int) -> nn.Module:
    """A fresh net by its name in `NETS`, for images (B, 3, side, side) and 10 classes; the MLP is 4 D wide."""
    if way.startswith("ours"):
        pool = "avg" if "mean" in way else "token"
        sizes = dict(img_size=side, patch_size=P, embed_dim=D, depth=depth, num_heads=h)
        net = ViT(ViTConfig(num_classes=K, global_pool=pool, **sizes))
        for block in net.blocks if way.endswith("by hand") else ():
            block.attn = ByHand(D, h)
        return net
    if way.startswith("vit-pytorch"):
        sizes = dict(image_size=side, patch_size=P, num_classes=K, dim=D, depth=depth, heads=h)
        kind = vit_pytorch.ViT if way.endswith(" ViT") else SimpleViT
        return kind(mlp_dim=4 * D, dim_head=D // h, **sizes)
    if way == "timm":
        sizes = dict(img_size=side, patch_size=P, embed_dim=D, depth=depth, num_heads=h)
        return timm.models.VisionTransformer(num_classes=K, **sizes)
    if way == "torchvision":
        return torchvision.models.VisionTransformer(side, P, depth, h, D, 4 * D, num_classes=K)
    sizes = dict(image_size=side, patch_size=P, hidden_size=D, num_hidden_layers=depth, num_attention_heads=h)
    config = transformers.ViTConfig(num_labels=K, intermediate_size=4 * D, **sizes)
    return Logits(transformers.ViTForImageClassification(config))


def layer(shape: str, mode: str, way: str) -> tuple[Callable, int]:
    """One call of attention, from (B, T, 3, h, Dh) to (B, T, D), and its number of images."""
    T, B, Dh = (int(word) for word in shape.split()[1::2])
    qkv = torch.randn(B, T, 3, HEADS, Dh, requires_grad=mode == "training")
    gradient, core = torch.randn(B, T, HEADS * Dh), by_hand if way == "by hand" else F.scaled_dot_product_attention

    def call() -> None:
        with torch.set_grad_enabled(mode == "training"):
            mixed = core(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(B, T, -1)
        if mode == "training":
            mixed.backward(gradient)
            qkv.grad = None

    return call, B


def whole_step(shape: str, mode: str, way: str) -> tuple[Callable, int]:
    """One training step or one pass of a net, and its number of images."""
    sizes, B = SHAPES[shape]
    net = make_net(way, *sizes).train(mode == "training")
    images, labels = torch.randn(B, 3, sizes[0], sizes[0]), torch.arange(B) % K
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode():
            net(images)

    return train if mode == "training" else infer, B


@cache
def warm(part: str, shape: str, mode: str, way: str) -> tuple[Callable, int]:
    """What a run times, made once a process and run once."""
    torch.manual_seed(0)
    call, B = (layer if part == "attention" else whole_step)(shape, mode, way)
    call()
    return call, B


def run(store: Store, name: dict) -> dict:
    """Time one call."""
    call, B = warm(*(name[field] for field in KEY[:-1]))
    started, wall = time.process_time(), time.perf_counter()
    call()
    spent = time.process_time() - started
    row = name | {"images": B, "ms": round(1e3 * spent, 3), "images_per_second": round(B / spent, 1)}
    return row | {"seconds": round(time.perf_counter() - wall, 4)}


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order: the ways in turn, the first of them another in each repeat."""
    layers = [f"T {T} B {B} Dh {Dh}" for T, B in TOKENS for Dh in WIDTHS]
    for part, shapes, ways in (("attention", layers, CORES), ("step", SHAPES, NETS)):
        for shape in shapes:
            for mode in ("training", "inference"):
                for repeat in range(REPEATS[part]):
                    turn = repeat % len(ways)
                    turned = ways[turn:] + ways[:turn]
                    yield from grid(KEY, part=part, shape=shape, mode=mode, way=turned, repeat=repeat)


def replay(store: Store) -> dict:
    """What does not depend on the machine: parameters of every net, and how far by hand lies from fused."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 50, 16, dtype=torch.float64)
    off = (by_hand(q, k, v) - F.scaled_dot_product_attention(q, k, v)).abs().max().item()
    sizes = SHAPES["28 px, patch 4, D 64"][0]
    parameters = {f"parameters of {way}": check.count_parameters(make_net(way, *sizes)) for way in NETS}
    return parameters | {"by hand differs from fused by more than 1e-12": int(off > 1e-12)}


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    tokens = [[T, B] for T, B in TOKENS]
    return {"tokens": tokens, **constants(globals(), "HEADS", "WIDTHS", "SHAPES", "CORES", "NETS", "REPEATS", "K")}


if __name__ == "__main__":
    main("speed")
