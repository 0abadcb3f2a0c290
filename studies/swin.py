"""Chapter 12's study: which part of Swin is worth what, on CIFAR-10, for nets of about 55,000 parameters.

Data: 4,000 training photos, 10 passes, mirrored and moved by up to 4 px; photos stand in the order of a hash of their
pixels (studies/small_scale.py), so that it does not matter where they came from. Where CIFAR-10 cannot be had, the
study does not run. The search judges by 1,000 held-out training photos; the main part by the first 4,000 test photos.

Nets
    window M, SHIFT, POSITION   two stages of two blocks on patches of 2 px (16 x 16 and 8 x 8 tokens), windows of 4 or
                                8; the second block of a stage shifts: not at all, without the mask, or with it; no
                                positions, a learned vector a patch, or a relative bias
    flat or pyramid, global or window 4   patches of 4 px (8 x 8 tokens), shift and mask and relative bias: four blocks
                                at one width, or two and two with a merging between; attention over all or in windows
    vit                         patches of 4 px, global attention, learned positions, the mean of the tokens
    cnn                         chapter 6's kind

Equal care: for each net the peak rates of `RATES`, seed 100, half the passes; then seeds 0, 1, 2 at the best. One
recipe. A first try, 3 passes in batches of 64, left Swin and ViT at 25 to 30 % of the held-out photos, too little to
tell anything apart: hence batches of 32 and more passes, before any test photo was looked at. Parts in the order in
which they decide: the shift and the mask, ViT and CNN; pyramid against window; the other positions; windows of 8.
`right`: how many of each fortieth of the test photos a net gets right. `moved`: accuracy on 500 test photos moved right
or down by each of `SHIFTS` px. One thread a run; `seconds` are of processor time.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn
from torchvision.transforms import v2

from studies import shared
from studies.harness import main
from studies.small_scale import by_hash
from studies.store import Store
from vitutils import data, train
from vitutils.analysis.equivariance import accuracy_under_shift
from vitutils.data import Dataset
from vitutils.models import SmallCNN, ViT, ViTConfig
from vitutils.models.swin import Swin, SwinConfig

IMAGES = {"train": 4_000, "held_out": 1_000, "test": 4_000, "moved": 500}
PASSES = 10
RATES = (1e-3, 3e-3, 1e-2)
SEEDS, SEARCH_SEED = (0, 1, 2), 100
SHIFTS = (0, 1, 2, 4, 8)
BLOCKS = 40
RECIPE = train.Recipe(batch_size=32, weight_decay=0.05, warmup=0.1, clip_grad=1.0, augment=data.flip_shift(pad=4))
SMALL = {"img_size": 32, "num_classes": 10, "mlp_ratio": 2.0}
TWO_STAGES = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
ONE_STAGE = {"embed_dim": 40, "depths": (4,), "num_heads": (4,)}
CNN = (16, 36, 52, 72)
SHIFTING = {
    "no shift": {"shift": False},
    "shift, no mask": {"mask": False},
    "shift and mask": {},
}
POSITIONS = ("relative", "none", "absolute")
PYRAMID = ("flat, global", "flat, window 4", "pyramid, global", "pyramid, window 4")
KEY = ("part", "net", "variant", "seed")
FIELDS = ("lr", "steps", "parameters", "looked_at", "accuracy", "loss", "train_accuracy", "moved", "right", "seconds")


def windows(side: int, *positions: str) -> tuple[str, ...]:
    """The names of the nets with windows of a side: each way of shifting with each kind of positions."""
    return tuple(f"window {side}, {shift}, {position}" for position in positions for shift in SHIFTING)


DECIDING = (*windows(4, "relative"), "vit", "cnn")
ORDER = (DECIDING, PYRAMID, windows(4, "none", "absolute"), windows(8, *POSITIONS))
predicted = {
    "cnn": {"expected": 60.0, "reason": "48 % after 190 steps of the first try; here 1,250 half as large"},
    "vit": {"expected": 43.0, "reason": "30 % after 190 steps; a ViT on 1,000 photos had 31 to 34 % in 960"},
    "window 4, shift and mask, relative": {
        "expected": 42.0,
        "reason": "27 % after 190 steps, 34 % after 625: behind the ViT at first, as it has to learn through a merging"
        ", and level with it at the end",
    },
    "the mask: window 4, relative, with minus without": {
        "expected": 0.0,
        "reason": "without it a border window sees the opposite border too, whose offsets the bias can learn to play "
        "down, and flips and shifts keep the border dull: less than the spread of three seeds (0.7)",
    },
    "the shift: window 4, relative, with mask minus no shift": {
        "expected": 0.7,
        "reason": "the merging joins neighbours across windows anyway, so two blocks have little left to join; the "
        "paper has 1.1 points on ImageNet with twelve blocks",
    },
    "relative minus none: window 4, shift and mask": {
        "expected": 2.5,
        "reason": "the paper has 1.2 points over none; without positions a window is a bag of patches of 2 px, and "
        "only the merging and the windows themselves tell place",
    },
    "absolute minus none: window 4, shift and mask": {"expected": 1.5, "reason": "the paper has 0.4; small data"},
    "window 8 minus window 4: shift and mask, relative": {
        "expected": -0.5,
        "reason": "more to look at, but a larger table to learn from as few photos",
    },
    "pyramid minus flat, mean over both windows": {
        "expected": 1.5,
        "reason": "merging halves the grid as pooling does in a CNN, at equal parameters",
    },
    "window minus global, mean over flat and pyramid": {
        "expected": 0.0,
        "reason": "8 x 8 tokens are few: the windows save time, not errors",
    },
    "points lost by a move of 4 px: vit, window 4, shift and mask, cnn": {
        "expected": [3.0, 2.5, 2.0],
        "reason": "all were trained on photos moved by up to 4 px; 4 is a multiple of every patch",
    },
    "pairs of the three ways of shifting that are clear after Holm, of 18": {
        "expected": 1,
        "reason": "differences of about a point with three seeds and 4,000 photos",
    },
}


def config_of(net: str) -> SwinConfig:
    """The sizes of a Swin by its name."""
    if net in PYRAMID:
        layout, _, window = net.partition(", ")
        stages = TWO_STAGES if layout == "pyramid" else ONE_STAGE
        return SwinConfig(patch_size=4, window_size=4 if window == "window 4" else 8, **SMALL, **stages)
    window, shift, position = net.removeprefix("window ").rsplit(", ", 1)[0].split(", ", 1) + [net.rsplit(", ", 1)[1]]
    how = SHIFTING[shift] | {"position": position}
    return SwinConfig(patch_size=2, window_size=int(window), **SMALL, **TWO_STAGES, **how)


def make_net(net: str, seed: int, in_chans: int = 3) -> nn.Module:
    """A fresh net by its name; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if net == "cnn":
        return SmallCNN(in_chans, 10, CNN).to(memory_format=torch.channels_last)
    if net == "vit":
        sizes = {"embed_dim": 40, "depth": 4, "num_heads": 4, "global_pool": "avg"}
        return ViT(ViTConfig(patch_size=4, in_chans=in_chans, **SMALL, **sizes))
    return Swin(replace(config_of(net), in_chans=in_chans))


@lru_cache(maxsize=1)
def photos() -> Dataset:
    """CIFAR-10 by its name, else its pictures in a folder or zip, in the order of a hash of the pixels."""
    try:
        found = data.load("cifar10")
    except data.DataError:
        half = (0.5, 0.5, 0.5)
        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(half, half)]
        one = data.load_image_set("images/cifar10")
        found = data.as_dataset(one.train, one.test, v2.Compose(steps), half, half)
    parts = {}
    for part, many in (("train", IMAGES["train"] + IMAGES["held_out"]), ("test", IMAGES["test"])):
        images, labels = by_hash(getattr(found, f"{part}_images"), getattr(found, f"{part}_labels"))
        parts |= {f"{part}_images": images[:many], f"{part}_labels": labels[:many]}
    mean, std = shared.statistics(parts["train_images"])
    return replace(found, **parts, mean=mean, std=std)


def part_of(dataset: Dataset, search: bool) -> Dataset:
    """Training photos, and what judges: held-out training photos in the search, else the test photos."""
    many, found = IMAGES["train"], {}
    for field in ("images", "labels"):
        values = getattr(dataset, f"train_{field}")
        found[f"train_{field}"] = values[:many]
        found[f"test_{field}"] = values[many:] if search else getattr(dataset, f"test_{field}")
    return replace(dataset, **found)


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    for nets in ORDER:
        for net in nets:
            yield from shared.grid(KEY, part="search", net=net, variant=shared.rate_names(RATES), seed=SEARCH_SEED)
        yield from shared.grid(KEY, part="main", seed=SEEDS, net=nets, variant="")


def trained(model: nn.Module, dataset: Dataset, recipe: train.Recipe, look_at_moved: bool = True) -> dict:
    """Train a net: what a row says of it."""
    history = train.fit(model, shared.unwatched(dataset), recipe)
    found = shared.told(history) | shared.judged(model, dataset) | shared.fitted(model, dataset)
    right = found["logits"].argmax(dim=1) == dataset.test_labels
    found["right"] = " ".join(str(block.sum().item()) for block in right.tensor_split(BLOCKS))
    if look_at_moved:
        images, labels = dataset.test_images[: IMAGES["moved"]], dataset.test_labels[: IMAGES["moved"]]
        how = {"mean": dataset.mean, "std": dataset.std, "directions": ("right", "down")}
        moved = accuracy_under_shift(model, images, labels, SHIFTS, **how).mean(dim=0)
        found["moved"] = " ".join(f"{accuracy:.4f}" for accuracy in moved.tolist())
    return {field: found.get(field, "") for field in FIELDS}


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    search = name["part"] == "search"
    dataset = part_of(photos(), search)
    lr = shared.rate_of(store, name, RATES, shared.by_accuracy_then_loss, net=name["net"])
    recipe = replace(RECIPE, lr=lr, seed=name["seed"], epochs=PASSES // 2 if search else PASSES)
    started = time.process_time()
    found = trained(make_net(name["net"], name["seed"]), dataset, recipe, look_at_moved=not search)
    return name | found | {"lr": lr, "seconds": round(time.process_time() - started, 1)}


def replay(store: Store) -> dict:
    """Some nets, a few steps on digits."""
    rows, digits = {}, shared.few_digits(32)
    for net in ("window 4, shift, no mask, absolute", "window 4, shift and mask, relative", "flat, window 4"):
        recipe = replace(RECIPE, lr=1e-2, epochs=1, batch_size=32)
        row = trained(make_net(net, 0, in_chans=1), digits.take(train=160), recipe, look_at_moved=False)
        rows[net] = {field: value for field, value in row.items() if field != "right" and value != ""}
    return shared.side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "IMAGES PASSES RATES SEEDS SEARCH_SEED SHIFTS BLOCKS RECIPE SMALL TWO_STAGES ONE_STAGE CNN SHIFTING PYRAMID"
    return shared.constants(globals(), *names.split()) | {"order": [list(nets) for nets in ORDER]}


if __name__ == "__main__":
    main("swin")
