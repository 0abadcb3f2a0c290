"""Chapter 6's study: a small ViT and a CNN of equal cost on Fashion-MNIST, and what each part of the recipe does.

Parts, in the order they run:
    search    both nets at each peak rate, 3 epochs, held-out training images, seed 100; the best rate is used below
    main      both nets, all 60,000 training images, 3 seeds, evaluated on the test part; nothing is chosen from it
    ablation  the ViT on 6,000 training images, one change of the recipe at a time, 3 seeds, held-out images
    longer    the same with twice the epochs, with and without flips, 3 seeds, held-out images

One thread a run, so that two runs do not disturb each other; `seconds` are of training with that one thread.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from studies.harness import main
from studies.shared import VIT_28 as VIT
from studies.shared import constants, few_digits, grid, judged, rate_names, rate_of, side_by_side, told
from studies.store import Store
from vitutils import data, train
from vitutils.data import Dataset
from vitutils.models import SmallCNN, ViT

CNN_WIDTHS = (16, 40, 64)
FLIPS, FLIPS_AND_SHIFTS = data.flip_shift(pad=0), data.flip_shift(pad=2)
RECIPE = train.Recipe(epochs=11, batch_size=64, lr=2e-3, weight_decay=0.05, warmup=0.1, clip_grad=1.0, augment=FLIPS)
SEARCH_EPOCHS = 3
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (0, 1, 2)
HELD_OUT = 5_000
ABLATION_IMAGES = 6_000
ABLATION = {
    "base": {},
    "no warm-up": {"warmup": 0.0},
    "constant rate after warm-up": {"schedule": "constant"},
    "no clipping": {"clip_grad": None},
    "no weight decay": {"weight_decay": 0.0},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "averaged weights (EMA)": {"ema_decay": 0.995},
    "mixup and cutmix": {"mixup": 0.2, "cutmix": 1.0},
    "no flips": {"augment": None},
    "flips and shifts": {"augment": FLIPS_AND_SHIFTS},
}
LONGER = {
    "22 epochs": {"epochs": 22},
    "22 epochs, no flips": {"epochs": 22, "augment": None},
}
KEY = ("part", "net", "variant", "seed")
FIELDS = ("lr", "epochs", "images", "accuracy", "loss", "train_loss", "accuracy_by_epoch")
FIELDS += ("share_of_commonest_answer", "seconds")


def make_net(net: str, seed: int) -> torch.nn.Module:
    """A fresh ViT or CNN; the same seed gives the same weights. The CNN in the memory layout it is faster in."""
    torch.manual_seed(seed)
    if net == "vit":
        return ViT(VIT)
    return SmallCNN(1, 10, CNN_WIDTHS).to(memory_format=torch.channels_last)


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    nets = ("vit", "cnn")
    yield from grid(KEY, part="search", net=nets, variant=rate_names(RATES), seed=100)
    yield from grid(KEY, part="main", seed=SEEDS, net=nets, variant="best")
    yield from grid(KEY, part="ablation", net="vit", seed=SEEDS, variant=list(ABLATION))
    yield from grid(KEY, part="longer", net="vit", seed=SEEDS, variant=list(LONGER))


def recipe_of(store: Store, name: dict) -> train.Recipe:
    """The recipe of a run: in the search its own rate, else the one with the highest held-out accuracy there."""
    recipe = replace(RECIPE, seed=name["seed"], lr=rate_of(store, name, RATES, net=name["net"]))
    changes = {"search": {"epochs": SEARCH_EPOCHS}} | ABLATION | LONGER
    return replace(recipe, **changes.get("search" if name["part"] == "search" else name["variant"], {}))


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    recipe = recipe_of(store, name)
    whole = data.load("fashion_mnist")
    dataset = whole if name["part"] == "main" else whole.hold_out(HELD_OUT)
    if name["part"] in ("ablation", "longer"):
        dataset = dataset.take(train=ABLATION_IMAGES)
    return name | trained(name["net"], dataset, recipe)


def trained(net: str, dataset: Dataset, recipe: train.Recipe) -> dict:
    """Train a net: what a row says of it."""
    model = make_net(net, recipe.seed)
    history = train.fit(model, dataset, recipe)
    found = {"lr": recipe.lr} | judged(model, dataset) | told(history)
    return {field: found[field] for field in FIELDS}


def replay(store: Store) -> dict:
    """The ViT in two recipes and the CNN, a few steps on digits."""
    rows = {}
    for net, variant in (("vit", "base"), ("vit", "mixup and cutmix"), ("cnn", "base")):
        recipe = replace(RECIPE, epochs=2, batch_size=16, **ABLATION[variant])
        rows[f"{net}, {variant}"] = trained(net, few_digits(28), recipe)
    return side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "data": "fashion_mnist",
        **constants(globals(), "VIT", "CNN_WIDTHS", "SEARCH_EPOCHS", "RATES", "SEEDS", "HELD_OUT", "ABLATION_IMAGES"),
        "recipe": {**RECIPE.numbers(), "augment": "flips"},
        "ablation": list(ABLATION),
        "longer": list(LONGER),
    }


if __name__ == "__main__":
    main("training")
