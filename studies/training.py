"""Chapter 6's study: a small ViT and a CNN of equal cost on Fashion-MNIST, and what each part of the recipe does.

    python -m studies.training              runs what is missing, appends to results/training.csv
    python -m studies.training --shard 0/2  every second run; start both shards at once on two cores

Parts, in the order they run:
    search    both nets at each peak rate, 3 epochs, held-out training images, seed 100; the best rate is used below
    main      both nets, all 60,000 training images, 3 seeds, evaluated on the test part; nothing is chosen from it
    ablation  the ViT on 6,000 training images, one change of the recipe at a time, 3 seeds, held-out images
    longer    the same with twice the epochs, with and without flips, 3 seeds, held-out images

One thread a run, so that two runs do not disturb each other; `seconds` are of training with that one thread.
"""

import argparse
import time
from dataclasses import replace

import torch

from studies.store import Store
from vitutils import data, train
from vitutils.cnn import SmallCNN
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


def make_net(net: str, seed: int) -> torch.nn.Module:
    """A fresh ViT or CNN; the same seed gives the same weights. The CNN in the memory layout it is faster in."""
    torch.manual_seed(seed)
    if net == "vit":
        return ViT(VIT)
    return SmallCNN(1, 10, CNN_WIDTHS).to(memory_format=torch.channels_last)


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
    """Yield (key fields, recipe changes, training images or None for all) of every run, in order."""
    for net in ("vit", "cnn"):
        for lr in RATES:
            yield (
                {"part": "search", "net": net, "variant": f"lr {lr:g}", "seed": 100},
                {"lr": lr, "epochs": SEARCH_EPOCHS},
                None,
            )
    for seed in SEEDS:
        for net in ("vit", "cnn"):
            yield {"part": "main", "net": net, "variant": "best", "seed": seed}, {}, None
    for part, variants in (("ablation", ABLATION), ("longer", LONGER)):
        for seed in SEEDS:
            for variant, changes in variants.items():
                yield {"part": part, "net": "vit", "variant": variant, "seed": seed}, changes, ABLATION_IMAGES


def run(store: Store, name: dict, changes: dict, images: int | None) -> dict:
    """Train one net and return its row."""
    whole = data.load("fashion_mnist")
    dataset = whole if name["part"] == "main" else whole.hold_out(HELD_OUT)
    if images:
        dataset = dataset.take(train=images)
    recipe = replace(RECIPE, seed=name["seed"])
    if name["part"] != "search":
        recipe = replace(recipe, lr=best_rate(store, name["net"]))
    recipe = replace(recipe, **changes)
    model = make_net(name["net"], name["seed"])
    history = train.fit(model, dataset, recipe)
    result = train.evaluate(model, dataset.test_images, dataset.test_labels, mean=dataset.mean, std=dataset.std)
    largest_class = result.logits.argmax(1).bincount(minlength=10).max().item() / len(result.logits)
    return {
        **name,
        "lr": recipe.lr,
        "epochs": recipe.epochs,
        "images": len(dataset.train_labels),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
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
        "cnn_widths": CNN_WIDTHS,
        "recipe": {**RECIPE.numbers(), "augment": "flips"},
        "search_epochs": SEARCH_EPOCHS,
        "rates": RATES,
        "seeds": SEEDS,
        "held_out": HELD_OUT,
        "ablation_images": ABLATION_IMAGES,
        "ablation": list(ABLATION),
        "longer": list(LONGER),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th run, starting with the I-th")
    shard, shards = map(int, parser.parse_args().shard.split("/"))
    torch.set_num_threads(1)
    store = Store(__file__, KEY)
    waiting = [entry for n, entry in enumerate(runs(store)) if n % shards == shard and not store.has(entry[0])]
    for name, changes, images in waiting:
        row = run(store, name, changes, images)
        store.append(row)
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    store.describe(configuration(), sum(float(row["seconds"]) for row in store.rows()))


if __name__ == "__main__":
    main()
