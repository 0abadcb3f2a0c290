"""What several studies share: nets of one size, the best run of a search, what is read off a trained net."""

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from studies.store import NotYet, Store
from vitutils import check, data, train, weights
from vitutils.data import Dataset
from vitutils.vit import ViTConfig

SIDE = 32
SMALL = {"in_chans": 1, "num_classes": 10, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0, "global_pool": "avg"}
VIT_28 = ViTConfig(img_size=28, patch_size=7, embed_dim=64, **SMALL)
VIT_32 = ViTConfig(img_size=SIDE, patch_size=8, embed_dim=32, **SMALL)
IMAGENET = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
IMAGENET_SIDE = 64  # to which 32 x 32 images are enlarged for it


def constants(module: dict, *names: str) -> dict:
    """Constants of a module (its globals()) as plain values for a configuration, each under its name in small letters.

    A recipe is given by its numbers, another dataclass by its repr, in a dict too.
    """

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, train.Recipe):
            return value.numbers()
        return repr(value) if hasattr(value, "__dataclass_fields__") else value

    return {name.lower(): plain(module[name]) for name in names}


def best(store: Store, count: int, merit=lambda row: float(row["accuracy"]), **wanted) -> dict[str, str]:
    """The row with the highest merit among those with the wanted fields; if several tie, the first.

    Raises NotYet while fewer than `count` are there.
    """
    rows = [row for row in store.rows() if all(row[field] == str(value) for field, value in wanted.items())]
    if len(rows) < count:
        raise NotYet(f"the search of {', '.join(map(str, wanted.values()))}: {len(rows)} of {count} runs")
    return max(rows, key=merit)


def lowest_loss(row: dict[str, str]) -> float:
    """A merit: the lower the loss, the higher."""
    return -float(row["loss"])


def accuracy_then_loss(row: dict[str, str]) -> tuple[float, float]:
    """A merit: the highest accuracy; if several tie, the lowest loss."""
    return float(row["accuracy"]), -float(row["loss"])


def commonest(logits: torch.Tensor) -> float:
    """The share of the commonest answer among logits (N, K)."""
    return logits.argmax(dim=1).bincount().max().item() / len(logits)


def judged(model: nn.Module, dataset: Dataset, history: train.History, device="cpu") -> dict:
    """Fields of a row: how a trained net does on the other part of its data set, and how it got there."""
    how = {"mean": dataset.mean, "std": dataset.std, "device": device}
    result = train.evaluate(model, dataset.test_images, dataset.test_labels, **how)
    return {
        "images": len(dataset.train_labels),
        "parameters": check.count_parameters(model),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
        "first_loss": round(history.losses[0], 5),
        "train_loss": round(sum(history.losses[-100:]) / 100, 5),
        "accuracy_by_epoch": " ".join(f"{epoch['val_accuracy']:.4f}" for epoch in history.epochs),
        "share_of_commonest_answer": round(commonest(result.logits), 4),
        "seconds": round(history.seconds, 1),
    }


def few_digits(side: int, train_images: int = 320, test_images: int = 100) -> Dataset:
    """Handwritten digits, enlarged to side x side grey pixels: data for a replay that every machine has."""
    digits = data.load("digits").take(train=train_images, test=test_images)
    parts = (digits.train_images, digits.test_images)
    larger = [F.interpolate(images.float(), (side, side)).byte() for images in parts]
    return replace(digits, train_images=larger[0], test_images=larger[1])


def side_by_side(rows: dict[str, dict]) -> dict:
    """One row of several, for a replay: each field with the name of the row that it is from; no seconds."""
    return {f"{field}, {name}": row[field] for name, row in rows.items() for field in row if field != "seconds"}


# --- images of 32 x 32 pixels, for chapters 7 and 11 ---


@lru_cache(maxsize=1)
def fashion_or_cifar(name: str) -> Dataset:
    """A named set on 32 x 32 pixels, black all round where it is smaller."""
    whole = data.load(name)
    margin = (SIDE - whole.image_shape[-1]) // 2
    padded = {part: F.pad(getattr(whole, part), (margin,) * 4) for part in ("train_images", "test_images")}
    mean, std = statistics(padded["train_images"])
    return replace(whole, **padded, mean=mean, std=std)


def statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation a channel, of the first 60,000 images scaled to 0..1."""
    values = images[:60_000].float() / 255
    return values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))


def unwatched(dataset: Dataset) -> Dataset:
    """The same for `fit`, which looks at the other part after each pass: 100 training images, nothing is chosen."""
    return replace(dataset, test_images=dataset.train_images[:100], test_labels=dataset.train_labels[:100])


class Enlarged(nn.Module):
    """A net for larger colour images, fed with small grey ones: (B, 1, H, W) -> logits."""

    def __init__(self, model: nn.Module, side: int):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        larger = F.interpolate(images, (self.side, self.side), mode="bilinear")
        return self.model(larger.expand(-1, 3, -1, -1) if images.shape[1] == 1 else larger)


@lru_cache
def has_imagenet() -> bool:
    """Whether the weights of the ImageNet net can be had; without them the study leaves it out, and says so."""
    try:
        weights.find_file(IMAGENET, repo=f"timm/{IMAGENET}")
    except FileNotFoundError:
        print(f"no weights of {IMAGENET}: its runs are left out", flush=True)
        return False
    return True
