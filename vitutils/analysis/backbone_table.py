"""Backbones side by side: parameters, FLOPs, pre-training, licence, and what was published about their features.

`python -m vitutils.analysis.backbone_table > vitutils/backbones.csv` makes the file that comes with the package again.
"""

import csv
import sys
from pathlib import Path

import torch

from vitutils.models.backbones import OPEN, known_name, load_backbone
from vitutils.timing import count_flops

FILE = Path(__file__).resolve().parents[1] / "backbones.csv"
NAMES = (
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "vit_small_patch16_224.dino",
    "vit_base_patch16_224.dino",
    "vit_base_patch16_224.mae",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_siglip_224.v2_webli",
    "eva02_small_patch14_224.mim_in22k",
    "beit_base_patch16_224.in22k_ft_in22k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "convnext_tiny.fb_in22k_ft_in1k",
    "convnext_tiny.dinov3_lvd1689m",
)
# ImageNet-1k accuracy in % of kNN and of a linear classifier on frozen features, and where it is printed: the paper's
# key in the bibliography and its table, or the authors' own page. All at 224 pixels. MAE's is by its authors' PyTorch
# code; their paper, which used another, has 68.0.
DINOV2, MAE = "https://github.com/facebookresearch/dinov2", "https://github.com/facebookresearch/mae, FINETUNE.md"
PUBLISHED = {
    "vit_small_patch16_224.dino": (74.5, 77.0, "caron2021, table 2"),
    "vit_base_patch16_224.dino": (76.1, 78.2, "caron2021, table 2"),
    "vit_base_patch16_224.mae": ("", 67.8, MAE),
    "vit_small_patch14_dinov2.lvd142m": (79.0, 81.1, DINOV2),
    "vit_small_patch14_reg4_dinov2.lvd142m": (79.1, 80.9, DINOV2),
    "vit_base_patch14_dinov2.lvd142m": (82.1, 84.5, DINOV2),
    "vit_base_patch14_reg4_dinov2.lvd142m": (82.0, 84.6, DINOV2),
    "vit_base_patch16_clip_224.openai": ("", 80.2, "radford2021, table 10"),
}
# Why its authors have neither number; a network with one of the two is reported with that one alone.
LABELS = "trained on ImageNet's labels; its authors report that accuracy"
REAL = "its authors report it with other labels, ImageNet-ReaL"
NONE = {
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": LABELS,
    "vit_small_patch16_224.augreg_in21k_ft_in1k": LABELS,
    "deit3_small_patch16_224.fb_in22k_ft_in1k": LABELS,
    "vit_small_patch16_dinov3.lvd1689m": REAL,
    "vit_base_patch16_siglip_224.v2_webli": "its authors report zero-shot accuracy, by the classes' names",
    "eva02_small_patch14_224.mim_in22k": "its authors report it fine-tuned",
    "beit_base_patch16_224.in22k_ft_in22k": LABELS,
    "swin_tiny_patch4_window7_224.ms_in1k": LABELS,
    "convnext_tiny.fb_in22k_ft_in1k": LABELS,
    "convnext_tiny.dinov3_lvd1689m": REAL,
}
COLUMNS = ("name", "network", "parameters", "side", "gflops", "features", "pretraining", "licence", "open", "knn")
COLUMNS += ("linear", "published_in", "none_since")


def describe(name: str) -> dict[str, object]:
    """A backbone's row: `COLUMNS` -> value; nothing is loaded; the shapes come from the meta device.

    parameters: without the head.  side: of the images, in pixels.  gflops: of one image, by torch's FlopCounterMode (a
    multiplication and an addition are two), see `timing.count_flops`.  features: D.  open: whether the licence is one
    of the usual open ones. knn, linear: published, in %, or empty; of neither, none_since says why.
    """
    name = known_name(name)
    with torch.device("meta"):
        backbone = load_backbone(name, random_weights=True)
        image = torch.empty(1, *backbone.input_size)
        flops = count_flops(backbone, image)
        D = backbone(image).shape[1]
    knn, linear, where = PUBLISHED.get(name, ("", "", ""))
    values = name, "ours" if backbone.ours else f"timm's {type(backbone.net).__name__}"
    values += sum(p.numel() for p in backbone.parameters()), backbone.input_size[1], round(flops / 1e9, 2), D
    values += backbone.pretraining, backbone.licence or "not stated", backbone.licence in OPEN, knn, linear, where
    values += (NONE.get(name, ""),)
    return dict(zip(COLUMNS, values, strict=True))


def read_table() -> list[dict[str, str]]:
    """The rows of the file that comes with the package, in the order of `NAMES`, as text."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    rows = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for each in NAMES:
        rows.writerow(describe(each))
        sys.stdout.flush()
