"""The pocket ViT: the small Vision Transformer that travels with the book, trained on Fashion-MNIST.

    python -m studies.pocket               runs what is missing of the parts below, appends to results/pocket.csv
    python -m studies.pocket --cpu         the run of seed 0 once more, on the CPU (part "cpu")
    python -m studies.pocket --ship        writes vitutils/pocket.safetensors and its card from the run of seed 0

Parts, in the order they run. Everything is chosen on 5,000 held-out training images, in single runs of seed 100:
    rates    peak rate x shifts, 12 epochs
    extras   the best of these for 30 epochs, with one thing more each
    main     the best of these on all 60,000 training images, seeds 0 1 2; the test part is looked at, nothing is chosen
             from it but this: first runs, with batches of 256, were broken off after 22 of 30 epochs, at 90.8 to
             91.5 % of the test images; since then batches of 128, which cost a CPU the same, at the rate chosen for 256

Several processes may run it at once: each takes the next run that none has. Every run keeps a checkpoint after each
epoch, and goes on from it when it was killed. Seed 0 is shipped, whatever the others give.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from studies.store import RESULTS, Store
from vitutils import data, train
from vitutils.check import count_parameters
from vitutils.runtime import find_device
from vitutils.vit import ViT
from vitutils.weights import POCKET_CONFIG, POCKET_FILE

RECIPE = train.Recipe(epochs=30, batch_size=256, weight_decay=0.05, warmup=0.1, clip_grad=1.0)
SEARCH_EPOCHS = 12
MAIN_BATCH = 128
RATES = (1e-3, 2e-3, 4e-3)
SHIFTS = (0, 1, 2)  # pixels, at most; every image is mirrored or not as well
EXTRAS = {
    "nothing more": {},
    "mixup and cutmix": {"mixup": 0.2, "cutmix": 1.0},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "weight decay 0.2": {"weight_decay": 0.2},
    "averaged weights (EMA)": {"ema_decay": 0.998},
}
SEEDS, SEARCH_SEED, SHIPPED = (0, 1, 2), 100, 0
HELD_OUT = 5_000
KEY = ("part", "variant", "seed")


def runs(store: Store):
    """Yield (key fields,) of every run, in order; the one on the CPU where the store holds it."""
    for lr in RATES:
        for shift in SHIFTS:
            yield ({"part": "rates", "variant": f"lr {lr:g}, shift {shift}", "seed": SEARCH_SEED},)
    for extra in EXTRAS:
        yield ({"part": "extras", "variant": extra, "seed": SEARCH_SEED},)
    for seed in SEEDS:
        yield ({"part": "main", "variant": "best", "seed": seed},)
    if any(row["part"] == "cpu" for row in store.rows()):
        yield ({"part": "cpu", "variant": "best", "seed": SHIPPED},)


def best(store: Store, part: str, count: int) -> dict[str, str]:
    """The row of a part with the highest held-out accuracy; waits while other processes still work on it."""
    while len(rows := [row for row in store.rows() if row["part"] == part]) < count:
        time.sleep(2)
    return max(rows, key=lambda row: float(row["accuracy"]))


def recipe_of(store: Store, name: dict) -> tuple[train.Recipe, int]:
    """The recipe of a run, and its largest shift in pixels."""
    if name["part"] == "rates":
        lr, shift = name["variant"].removeprefix("lr ").split(", shift ")
        changes, extra = {"epochs": SEARCH_EPOCHS}, {}
    else:
        first = best(store, "rates", len(RATES) * len(SHIFTS))
        lr, shift = first["lr"], first["shift"]
        chosen = name["variant"] if name["part"] == "extras" else best(store, "extras", len(EXTRAS))["variant"]
        changes, extra = {}, EXTRAS[chosen]
    if name["part"] in ("main", "cpu"):
        changes["batch_size"] = MAIN_BATCH
    changes |= {"lr": float(lr), "augment": data.flip_shift(pad=int(shift)), "seed": name["seed"]}
    return replace(RECIPE, **changes, **extra), int(shift)


def weights_file(store: Store, name: dict) -> Path:
    """Where a run keeps its checkpoint, and what it learned in the end."""
    return store.folder / ".pocket" / f"{name['part']}-{name['seed']}.safetensors"


def run(store: Store, name: dict, device: torch.device) -> dict:
    """Train one net and return its row; of a main run, keep the weights."""
    dataset = data.load("fashion_mnist")
    if name["part"] in ("rates", "extras"):
        dataset = dataset.hold_out(HELD_OUT)
    recipe, shift = recipe_of(store, name)
    torch.manual_seed(name["seed"])
    model = ViT(POCKET_CONFIG)
    file = weights_file(store, name)
    checkpoint = file.with_name("-".join(map(str, name.values())).replace(" ", "_") + ".pt")
    history = train.fit(model, dataset, recipe, device=device, checkpoint=checkpoint, resume=True, report=tell(name))
    result = train.evaluate(
        model, dataset.test_images, dataset.test_labels, mean=dataset.mean, std=dataset.std, device=device
    )
    if name["part"] in ("main", "cpu"):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, file)
    checkpoint.unlink(missing_ok=True)
    return {
        **name,
        "lr": recipe.lr,
        "shift": shift,
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "images": len(dataset.train_labels),
        "parameters": count_parameters(model),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
        "train_loss": round(sum(history.losses[-100:]) / 100, 5),
        "accuracy_by_epoch": " ".join(f"{epoch['val_accuracy']:.4f}" for epoch in history.epochs),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "seconds": round(history.seconds, 1),
    }


def tell(name: dict):
    """A function that prints how far a run is, one line an epoch."""
    about = " ".join(map(str, name.values()))
    return lambda epoch: print(
        f"{about}: epoch {epoch['epoch']}, {epoch['val_accuracy']:.2%}, {epoch['seconds']:.0f} s", flush=True
    )


def ship(store: Store) -> None:
    """Write the net of seed 0 as safetensors, with what `weights.load` needs to know, and its card."""
    file = weights_file(store, {"part": "main", "seed": SHIPPED})
    if not file.exists():
        raise SystemExit(f"no {file}: it is written by the main run of seed {SHIPPED}; delete its row and run it again")
    dataset = data.load("fashion_mnist")
    about = {
        "name": "pocket",
        "data": "Fashion-MNIST",
        "mean": f"{dataset.mean.item():.6f}",
        "std": f"{dataset.std.item():.6f}",
        "classes": "|".join(dataset.classes),
        "licence": "MIT",
    }
    save_file(load_file(file), POCKET_FILE, about)
    POCKET_FILE.chmod(0o644)
    POCKET_FILE.with_suffix(".md").write_text(card(store))
    print(f"{POCKET_FILE}: {POCKET_FILE.stat().st_size:,} bytes")


def card(store: Store) -> str:
    """The model card, its numbers from the rows."""
    rows = {int(row["seed"]): row for row in store.rows() if row["part"] == "main"}
    accuracies = torch.tensor([100 * float(rows[seed]["accuracy"]) for seed in SEEDS])
    recipe, shift = recipe_of(store, {"part": "main", "variant": "best", "seed": SHIPPED})
    extra = best(store, "extras", len(EXTRAS))["variant"]
    return CARD.format(
        row=rows[SHIPPED],
        config=POCKET_CONFIG,
        recipe=recipe,
        shift="a pixel" if shift == 1 else f"{shift} pixels",
        extra="" if extra == "nothing more" else f"{extra}, ",
        accuracy=100 * float(rows[SHIPPED]["accuracy"]),
        count=len(SEEDS),
        mean=accuracies.mean(),
        std=accuracies.std(),
        parameters=int(rows[SHIPPED]["parameters"]),
        kilobytes=POCKET_FILE.stat().st_size / 1e3,
    )


CARD = """\
# The pocket ViT

A small Vision Transformer that travels with this book, for chapters that need a trained one where no ImageNet weights
can be had. `vitutils.weights.load("pocket")` gives it; `vitutils/pocket.safetensors` ({kilobytes:,.0f} kB) holds it.
This card is written by `studies/pocket.py`, which trained it.

- **Network.** The `ViT` of chapter 5: {config.img_size} x {config.img_size} grey pixels, patches of
  {config.patch_size} x {config.patch_size}, width {config.embed_dim}, {config.depth} blocks, {config.num_heads} heads,
  MLP ratio {config.mlp_ratio:g}, class token; {parameters:,} parameters.
- **Data.** Fashion-MNIST, all 60,000 training images of ten kinds of clothing (Xiao et al. 2017, MIT licence).
  Nothing else: no ImageNet, no photos, no colour.
- **Recipe.** AdamW, {recipe.epochs} epochs, batches of {recipe.batch_size}, peak rate {recipe.lr:g}, weight decay
  {recipe.weight_decay:g}, a tenth of the steps to warm up, then a cosine to 0, gradient clipped at
  {recipe.clip_grad:g}; images mirrored or not, and shifted by at most {shift}; {extra}seed {row[seed]}. Rate, shifts
  and extras were chosen on 5,000 held-out training images, with batches of 256; the batches were halved after first
  runs, broken off, had shown their test accuracy.
- **Accuracy.** {accuracy:.2f} % of the 10,000 test images; {count} seeds: {mean:.2f} % +- {std:.2f}. This one is
  seed {row[seed]}, whatever the others gave. Trained on: {row[device]}, {row[seconds]} s.
- **Limits.** It knows ten classes, drawn light on black, centred, 28 pixels wide. It is not trained to say that a
  picture shows none of them. Its features suit such pictures and should not be expected to suit photographs; chapter 9
  measures how far they carry. It is for learning how such a net works, and for nothing else.
- **Licence.** MIT, as the code.
"""


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "data": "fashion_mnist",
        "vit": repr(POCKET_CONFIG),
        "recipe": RECIPE.numbers(),
        "search_epochs": SEARCH_EPOCHS,
        "main_batch": MAIN_BATCH,
        "rates": RATES,
        "shifts": SHIFTS,
        "extras": EXTRAS,
        "seeds": SEEDS,
        "shipped": SHIPPED,
        "held_out": HELD_OUT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="seed 0 once more, on the CPU")
    parser.add_argument("--ship", action="store_true", help="write vitutils/pocket.safetensors and its card")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the two files go (default: results)")
    asked = parser.parse_args()
    store = Store(__file__, KEY, folder=asked.folder)
    if asked.ship:
        return ship(store)
    device = torch.device("cpu") if asked.cpu else find_device()
    if device.type == "cuda":
        torch.set_num_threads(1)  # several processes share one GPU; the CPU only feeds it
    if not store.json.exists():
        store.describe(configuration(), 0, finished=False)
    planned = [{"part": "cpu", "variant": "best", "seed": SHIPPED}] if asked.cpu else [name for (name,) in runs(store)]
    for name in planned:
        with store.claimed(name) as mine:
            if mine and not store.has(name):
                store.append(run(store, name, device))
    rows = store.rows()
    if len(rows) >= len(list(runs(store))):
        ran_on = next(row["device"] for row in rows if row["part"] == "main")
        store.describe(configuration(), sum(float(row["seconds"]) for row in rows), device=ran_on)


if __name__ == "__main__":
    main()
