"""What several studies share: nets of one size, the best run of a search, what is read off a trained net."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from studies.store import NotYet, Store
from vitutils import check, data, train
from vitutils.data import Dataset
from vitutils.models import ViTConfig, weights

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


def grid(key: tuple[str, ...], **values) -> Iterator[dict]:
    """Yield every combination of the values (each one, or a sequence), the last name's values in turn first.

    The fields of each come in the order of key.
    """
    choices = [value if isinstance(value, tuple | list | range) else [value] for value in values.values()]
    for chosen in product(*choices):
        found = dict(zip(values, chosen, strict=True))
        yield {field: found[field] for field in key}


def rate_names(rates: tuple[float, ...]) -> list[str]:
    """The variants of a search over peak rates."""
    return [f"lr {lr:g}" for lr in rates]


def by_accuracy(row: dict[str, str]) -> float:
    """A merit: the higher the accuracy, the higher."""
    return float(row["accuracy"])


def by_loss(row: dict[str, str]) -> float:
    """A merit: the lower the loss, the higher."""
    return -float(row["loss"])


def by_accuracy_then_loss(row: dict[str, str]) -> tuple[float, float]:
    """A merit: the highest accuracy; if several tie, the lowest loss."""
    return by_accuracy(row), by_loss(row)


def best(store: Store, count: int, merit=by_accuracy, **wanted) -> dict[str, str]:
    """The row with the highest merit among those with the wanted fields; if several tie, the first.

    Raises NotYet while fewer than `count` are there.
    """
    rows = [row for row in store.rows() if all(row[field] == str(value) for field, value in wanted.items())]
    if len(rows) < count:
        raise NotYet(f"{', '.join(map(str, wanted.values()))}: {len(rows)} of {count} runs")
    return max(rows, key=merit)


def rate_of(store: Store, name: dict, rates: tuple[float, ...], merit=by_accuracy, **wanted) -> float:
    """The peak rate of a run: that of a variant "lr 0.01", else the best one of a search that tried these rates."""
    if name["variant"].startswith("lr "):
        return float(name["variant"].removeprefix("lr "))
    return float(best(store, len(rates), merit, part="search", **wanted)["lr"])


def commonest(logits: torch.Tensor) -> float:
    """The share of the commonest answer among logits (N, K)."""
    return logits.argmax(dim=1).bincount().max().item() / len(logits)


def judged(model: nn.Module, dataset: Dataset, **how) -> dict:
    """Fields of a row: how a net does on the other part of its data set. how: goes to `train.evaluate`."""
    how = {"mean": dataset.mean, "std": dataset.std} | how
    result = train.evaluate(model, dataset.test_images, dataset.test_labels, **how)
    return {
        "images": len(dataset.train_labels),
        "looked_at": len(dataset.test_labels),
        "parameters": check.count_parameters(model),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
        "share_of_commonest_answer": round(commonest(result.logits), 4),
        "collapsed": int(commonest(result.logits) > 0.5),
        "logits": result.logits,
    }


def told(history: train.History, last: int = 100) -> dict:
    """Fields of a row: how a net came to be. last: steps that `train_loss` is the mean of."""
    return {
        "epochs": len(history.epochs),
        "passes": len(history.epochs),
        "steps": len(history.losses),
        "first_loss": round(history.losses[0], 5),
        "train_loss": round(sum(history.losses[-last:]) / min(last, len(history.losses)), 5),
        "accuracy_by_epoch": " ".join(f"{epoch['val_accuracy']:.4f}" for epoch in history.epochs),
        "seconds": round(history.seconds, 1),
    }


def fitted(model: nn.Module, dataset: Dataset, **how) -> dict:
    """A field of a row: the accuracy on the first 1,000 training images."""
    images, labels = dataset.train_images[:1_000], dataset.train_labels[:1_000]
    result = train.evaluate(model, images, labels, mean=dataset.mean, std=dataset.std, **how)
    return {"train_accuracy": round(result.accuracy, 5)}


def few_digits(side: int) -> Dataset:
    """320 and 100 handwritten digits, enlarged to side x side grey pixels: for a replay, as every machine has them."""
    digits = data.load("digits").take(train=320, test=100)
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
        weights.find_weights(IMAGENET, repo=f"timm/{IMAGENET}")
    except FileNotFoundError:
        print(f"no weights of {IMAGENET}: its runs are left out", flush=True)
        return False
    return True
