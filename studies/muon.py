"""Chapter 6's other optimizer: both of its nets with AdamW alone, and with Muon for the matrices inside.

Nets, images and the rest of the recipe are those of studies/training.py, and so is AdamW's peak rate, which that study
chose among five. Muon gets its own, chosen likewise; AdamW's rate for what is left to it stays. (The first five rates
began at .005, which led .01 for the ViT: .04 and .08 then made way for two lower ones, before either had run. When .02
was the CNN's best, .04 came back, for both.)

Parts, in the order they run:
    search    both nets at each peak rate of Muon, 3 epochs, held-out training images, seed 100
    main      both nets, both optimizers, 2 epochs and 4, all 60,000 training images, 3 seeds, the test part

One thread a run; `seconds` are the processor's, of training alone. Other work ran beside this.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from studies import training
from studies.harness import main
from studies.shared import best, constants, few_digits, grid, judged, rate_names, rate_of, side_by_side, told, unwatched
from studies.store import Store
from studies.training import HELD_OUT, RECIPE, SEARCH_EPOCHS, SEEDS, make_net
from vitutils import data, train
from vitutils.data import Dataset

NETS = ("vit", "cnn")
RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
KEY = ("part", "net", "optimizer", "variant", "epochs", "seed")
partial = "its arms come in the order in which they decide; the last, Muon for 4 epochs, decides nothing here"
FIELDS = ("lr", "muon_lr", "steps", "accuracy", "loss", "train_loss", "share_of_commonest_answer", "seconds")
predicted = {
    "vit, AdamW, 2 epochs": {"expected": 86.2, "reason": "three epochs had 87.3, eleven 89.1"},
    "vit, AdamW, 4 epochs": {"expected": 87.9, "reason": "likewise"},
    "vit, Muon, 2 epochs": {
        "expected": 87.9,
        "reason": "in the race Muon was worth about a point at equal time, in the first epochs perhaps more",
    },
    "vit, Muon, 4 epochs": {"expected": 89.0, "reason": "the same point"},
    "cnn, AdamW, 2 epochs": {"expected": 90.3, "reason": "three epochs had 91.1"},
    "cnn, AdamW, 4 epochs": {"expected": 91.4, "reason": "likewise; eleven had 92.1"},
    "cnn, Muon, 2 epochs": {"expected": 90.7, "reason": "BatchNorm evens out directions already: less to gain"},
    "cnn, Muon, 4 epochs": {"expected": 91.6, "reason": "likewise"},
    "seconds of a step, Muon's over AdamW's": {
        "expected": {"vit": 1.12, "cnn": 1.08},
        "reason": "sixteen small matrices and five rounds of products for each, beside a batch of 64 images",
    },
    "vit, Muon, 2 epochs minus AdamW, 4 epochs": {"expected": 0.0, "reason": "the two above"},
}


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    search = {"optimizer": "Muon", "epochs": SEARCH_EPOCHS, "seed": 100}
    yield from grid(KEY, part="search", net=NETS, variant=rate_names(RATES), **search)
    for optimizer, epochs in (("AdamW", 2), ("Muon", 2), ("AdamW", 4), ("Muon", 4)):
        yield from grid(KEY, part="main", seed=SEEDS, net=NETS, epochs=epochs, optimizer=optimizer, variant="best")


def recipe_of(store: Store, name: dict) -> train.Recipe:
    """The recipe of a run: in the search its own rate of Muon, else the one with the highest accuracy there."""
    net, chosen = name["net"], {"variant": "best"}
    lr = rate_of(Store("training", training.KEY), chosen, training.RATES, net=net)
    recipe = replace(RECIPE, seed=name["seed"], epochs=name["epochs"], lr=lr)
    if name["optimizer"] == "AdamW":
        return recipe
    if name["part"] == "search":
        return replace(recipe, muon_lr=float(name["variant"].removeprefix("lr ")))
    return replace(recipe, muon_lr=float(best(store, len(RATES), part="search", net=net)["muon_lr"]))


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    whole = data.load("fashion_mnist")
    dataset = whole if name["part"] == "main" else whole.hold_out(HELD_OUT)
    return name | trained(name["net"], dataset, recipe_of(store, name))


def trained(net: str, dataset: Dataset, recipe: train.Recipe) -> dict:
    """Train a net: what a row says of it."""
    model, started = make_net(net, recipe.seed), time.process_time()
    history = train.fit(model, unwatched(dataset), recipe)
    seconds = round(time.process_time() - started, 1)
    found = {"lr": recipe.lr, "muon_lr": recipe.muon_lr or 0.0} | judged(model, dataset) | told(history)
    return {field: found[field] for field in FIELDS[:-1]} | {"seconds": seconds}


def replay(store: Store) -> dict:
    """Both nets with Muon, a few steps on digits."""
    recipe = replace(RECIPE, epochs=2, batch_size=16, muon_lr=0.02)
    rows = {net: trained(net, few_digits(28), recipe) for net in NETS}
    return side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = ("NETS", "RATES", "SEARCH_EPOCHS", "SEEDS", "HELD_OUT", "RECIPE")
    return {"data": "fashion_mnist", **constants(globals(), *names)}


if __name__ == "__main__":
    main("muon")
