"""Chapter 8's study: vit-pytorch's ViT and the book's, equal sizes and equal care, and each departure by itself.

Parts, in the order they run:
    search  every net at each peak rate, 6,000 training images of Fashion-MNIST, held-out images, seed 100
    main    every net at its best rate, the same number of images, 3 seeds, the test part; nothing is chosen from it

The nets: vit-pytorch's ViT; ours; ours with one of the library's choices at a time; the library's with our positions.
All have mean pooling, the same sizes, and the rate that did best for them. One thread a run. Other work
ran beside these, so `seconds` are no measurement: the chapter times a step by itself.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import vit_pytorch
from torch import nn

from studies.harness import main
from studies.shared import VIT_28 as VIT
from studies.shared import constants, few_digits, grid, judged, rate_names, rate_of, side_by_side, told
from studies.store import Store
from vitutils import data, train
from vitutils.data import Dataset
from vitutils.models import ViT, conversion

RECIPE = train.Recipe(
    epochs=10, batch_size=64, lr=2e-3, weight_decay=0.05, warmup=0.1, clip_grad=1.0, augment=data.flip_shift(pad=0)
)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)
IMAGES = 6_000
HELD_OUT = 5_000
NETS = (
    "library",
    "ours",
    "ours, two more norms",
    "ours, positions of std 1",
    "ours, torch's first weights",
    "library, positions of std 0.02",
)
KEY = ("part", "net", "variant", "seed")
FIELDS = ("lr", "epochs", "images", "parameters", "accuracy", "loss", "first_loss", "train_loss")
FIELDS += ("accuracy_by_epoch", "share_of_commonest_answer", "seconds")


def library_vit() -> nn.Module:
    """vit-pytorch's ViT in the sizes of `VIT`; its heads are told to be as wide as ours."""
    return vit_pytorch.ViT(
        image_size=VIT.img_size,
        patch_size=VIT.patch_size,
        channels=VIT.in_chans,
        num_classes=VIT.num_classes,
        dim=VIT.embed_dim,
        depth=VIT.depth,
        heads=VIT.num_heads,
        dim_head=VIT.embed_dim // VIT.num_heads,
        mlp_dim=int(VIT.embed_dim * VIT.mlp_ratio),
        pool="mean",
    )


def make_net(net: str, seed: int) -> nn.Module:
    """A fresh net by its name in `NETS`; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if net.startswith("library"):
        model = library_vit()
        if net == "library, positions of std 0.02":
            nn.init.trunc_normal_(model.pos_embedding, std=0.02)
        return model
    if net == "ours, two more norms":
        return ViT(VIT, conversion.VitPytorchPatchEmbed)
    model = ViT(VIT)
    if net == "ours, positions of std 1":
        nn.init.normal_(model.pos_embed)
    if net == "ours, torch's first weights":
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
    return model


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    yield from grid(KEY, part="search", net=NETS, variant=rate_names(RATES), seed=100)
    yield from grid(KEY, part="main", net=NETS, variant="best", seed=SEEDS)


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    searched = name["part"] == "search"
    lr = rate_of(store, name, RATES, net=name["net"])
    whole = data.load("fashion_mnist")
    dataset = (whole.hold_out(HELD_OUT) if searched else whole).take(train=IMAGES)
    return name | trained(name["net"], dataset, replace(RECIPE, seed=name["seed"], lr=lr))


def trained(net: str, dataset: Dataset, recipe: train.Recipe) -> dict:
    """Train a net: what a row says of it."""
    model = make_net(net, recipe.seed)
    history = train.fit(model, dataset, recipe)
    found = {"lr": recipe.lr} | judged(model, dataset) | told(history)
    return {field: found[field] for field in FIELDS}


def replay(store: Store) -> dict:
    """Two nets, a few steps on digits."""
    recipe = replace(RECIPE, epochs=2, batch_size=16)
    return side_by_side({net: trained(net, few_digits(28), recipe) for net in ("library", "ours, two more norms")})


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "data": "fashion_mnist",
        **constants(globals(), "VIT", "NETS", "RATES", "SEEDS", "IMAGES", "HELD_OUT"),
        "recipe": {**RECIPE.numbers(), "augment": "flips"},
        "scored_on": {"search": "held-out training images", "main": "the test part"},
    }


if __name__ == "__main__":
    main("library")
