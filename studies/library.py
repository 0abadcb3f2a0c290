"""Chapter 8's study: vit-pytorch's ViT and the book's, equal sizes and equal care, and each departure by itself.

    python -m studies.library              runs what is missing, appends to results/library.csv
    python -m studies.library --shard 0/2  every second run; start both shards at once on two cores

Parts, in the order they run:
    search  every net at each peak rate, 6,000 training images of Fashion-MNIST, held-out images, seed 100
    main    every net at its best rate, the same number of images, 3 seeds, the test part; nothing is chosen from it

The nets: vit-pytorch's ViT; ours; ours with one of the library's choices at a time; the library's with our positions.
All have mean pooling, the same sizes, and the rate that did best for them. One thread a run. Other work
ran beside these, so `seconds` are no measurement: the chapter times a step by itself.
"""

import argparse
import time
from dataclasses import replace

import torch
import vit_pytorch
from torch import nn

from studies.store import Store
from vitutils import check, data, train, weights
from vitutils.vit import ViT, ViTConfig

VIT = ViTConfig(
    img_size=28,
    patch_size=7,
    in_chans=1,
    num_classes=10,
    embed_dim=64,
    depth=4,
    num_heads=4,
    mlp_ratio=2.0,
    global_pool="avg",
)
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
        return ViT(VIT, weights.VitPytorchPatchEmbed)
    model = ViT(VIT)
    if net == "ours, positions of std 1":
        nn.init.normal_(model.pos_embed)
    if net == "ours, torch's first weights":
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
    return model


def best_rate(store: Store, net: str) -> float:
    """The peak rate with the highest held-out accuracy in the search; waits while the other shard still searches."""
    while True:
        rows = [row for row in store.rows() if row["part"] == "search" and row["net"] == net]
        if len(rows) == len(RATES):
            break
        print(f"waiting for the search of {net}: {len(rows)} of {len(RATES)} runs", flush=True)
        time.sleep(20)
    return float(max(rows, key=lambda row: float(row["accuracy"]))["lr"])


def runs(store: Store):
    """Yield (key fields, peak rate or None for the best) of every run, in order."""
    for net in NETS:
        for lr in RATES:
            yield {"part": "search", "net": net, "variant": f"lr {lr:g}", "seed": 100}, lr
    for net in NETS:
        for seed in SEEDS:
            yield {"part": "main", "net": net, "variant": "best", "seed": seed}, None


def run(store: Store, name: dict, lr: float | None) -> dict:
    """Train one net and return its row."""
    whole = data.load("fashion_mnist")
    dataset = (whole.hold_out(HELD_OUT) if name["part"] == "search" else whole).take(train=IMAGES)
    recipe = replace(RECIPE, seed=name["seed"], lr=lr or best_rate(store, name["net"]))
    model = make_net(name["net"], name["seed"])
    history = train.fit(model, dataset, recipe)
    result = train.evaluate(model, dataset.test_images, dataset.test_labels, mean=dataset.mean, std=dataset.std)
    largest_class = result.logits.argmax(1).bincount(minlength=10).max().item() / len(result.logits)
    return {
        **name,
        "lr": recipe.lr,
        "epochs": recipe.epochs,
        "images": len(dataset.train_labels),
        "parameters": check.count_parameters(model),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
        "first_loss": round(history.losses[0], 5),
        "train_loss": round(sum(history.losses[-100:]) / 100, 5),
        "accuracy_by_epoch": " ".join(f"{epoch['val_accuracy']:.4f}" for epoch in history.epochs),
        "share_of_commonest_answer": round(largest_class, 4),
        "seconds": round(history.seconds, 1),
    }


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "data": "fashion_mnist",
        "vit": repr(VIT),
        "nets": NETS,
        "recipe": {**RECIPE.numbers(), "augment": "flips"},
        "rates": RATES,
        "seeds": SEEDS,
        "images": IMAGES,
        "held_out": HELD_OUT,
        "scored_on": {"search": "held-out training images", "main": "the test part"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th run, starting with the I-th")
    shard, shards = map(int, parser.parse_args().shard.split("/"))
    torch.set_num_threads(1)
    store = Store(__file__, KEY)
    waiting = [entry for n, entry in enumerate(runs(store)) if n % shards == shard and not store.has(entry[0])]
    for name, lr in waiting:
        row = run(store, name, lr)
        store.append(row)
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    store.describe(configuration(), sum(float(row["seconds"]) for row in store.rows()))


if __name__ == "__main__":
    main()
