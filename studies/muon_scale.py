"""Chapter 7's question again, with chapter 6's newer recipe: does the CNN still lead if Muon trains both?

Data, the CNN and the ViT on patches of 8, passes and the search are those of studies/small_scale.py, at its smallest
size, on 1,000, 10,000 and (nearly) all images. The recipe is another: Muon for the matrices inside and AdamW for the
rest, both at the one rate that is searched, and flips and shifts by up to 2 pixels. Equal care: each net has a search
of its own on each set at each number of images.

The numbers of images come in the order in which they decide. One thread a run; `seconds` are of processor time.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from studies import shared
from studies.harness import main
from studies.small_scale import NETS, PASSES, SEARCH_SEED, make_data, make_net, measured, search
from studies.store import Store
from vitutils import data, train

NETS = NETS[:2]
SETS = ("fashion_mnist", "cifar10")
IMAGES = (10_000, 1_000, 50_000)
RECIPE = train.Recipe(batch_size=64, warmup=0.1, clip_grad=1.0, augment=data.flip_shift(pad=2))
FIRST_RATES = (1e-3, 3e-3, 1e-2)
SEEDS = (0, 1, 2)
KEY = ("part", "data", "net", "images", "lr", "weight_decay", "seed")
partial = "its numbers of images come in the order in which they decide, and each can be read by itself"


def expect(reason: str, cnn: float, vit: float) -> dict:
    """A prediction: mean test accuracy in per cent of the two nets, and why."""
    return {"expected": dict(zip(NETS, (cnn, vit), strict=True)), "reason": reason}


FASTER = "chapter 6's first rows: Muon fits in three passes what AdamW fits in five; the ViT fits least and gains most"
predicted = {
    "fashion_mnist, 1,000 images": expect(
        "shifts cost the ViT 1.7 points here with AdamW, as it could not fit them; with Muon it can", 85.0, 79.0
    ),
    "cifar10, 1,000 images": expect("shifts are new photos, which both lack", 54.0, 38.0),
    "fashion_mnist, 10,000 images": expect(FASTER, 90.2, 86.5),
    "cifar10, 10,000 images": expect(FASTER, 68.0, 52.0),
    "fashion_mnist, 50,000 images": expect(FASTER, 92.2, 90.0),
    "cifar10, 50,000 images": expect(FASTER, 75.0, 61.0),
    "pairs of which the ViT leads": {
        "expected": "0 of 6",
        "reason": "the distance halves at most; nearest comes the ViT on 50,000 clothes",
    },
}


def runs(store: Store) -> Iterator[dict | None]:
    """Yield the key fields of every run, in order; None for one whose search is not over."""
    for images in IMAGES:
        for which in SETS:
            about = {"data": which, "images": images}
            found = {net: search(store, about | {"net": net}, FIRST_RATES) for net in NETS}
            for net, (pairs, _) in found.items():
                for lr, decay in pairs:
                    yield ordered(about, part="search", net=net, lr=lr, weight_decay=decay, seed=SEARCH_SEED)
            for seed in SEEDS:
                for net, (pairs, over) in found.items():
                    lr, decay = pairs[0]
                    name = ordered(about, part="main", net=net, lr=lr, weight_decay=decay, seed=seed)
                    yield name if over else None


def ordered(about: dict, **more) -> dict:
    """The key fields in their order."""
    return {field: (about | more)[field] for field in KEY}


def recipe_of(name: dict) -> train.Recipe:
    """One rate for both optimizers, whose steps have about the same size."""
    how = {field: name[field] for field in ("lr", "weight_decay", "seed")}
    return replace(RECIPE, epochs=PASSES[name["images"]], muon_lr=name["lr"], **how)


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    dataset = make_data(name)
    model = make_net(name["net"], "37k", dataset.image_shape[0], dataset.num_classes, name["seed"])
    started = time.process_time()
    history = train.fit(model, shared.unwatched(dataset), recipe_of(name))
    seconds = round(time.process_time() - started, 1)
    return name | measured(model, dataset, history) | {"seconds": seconds}


def replay(store: Store) -> dict:
    """A few steps of both nets on digits."""
    digits, rows = shared.few_digits(shared.SIDE), {}
    for net in NETS:
        recipe = replace(RECIPE, epochs=2, batch_size=16, lr=1e-2, muon_lr=1e-2)
        model = make_net(net, "37k", 1, 10, 0)
        row = measured(model, digits, train.fit(model, shared.unwatched(digits), recipe))
        rows[net] = {field: value for field, value in row.items() if field != "right"}
    return shared.side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "NETS SETS IMAGES RECIPE FIRST_RATES SEEDS SEARCH_SEED PASSES"
    return shared.constants(globals(), *names.split()) | {"shift": 2}


if __name__ == "__main__":
    main("muon_scale")
