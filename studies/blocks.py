"""Chapter 3's study: norms, warm-up and depth; heads; positions and length. Small nets of width 32, on one thread.

Families of runs, each first with `search` (every rate once, held-out data, seed 100; the rate with the lowest loss
there is used below) and then with `main` (the best rate, 3 seeds, test data):
    norms      handwritten digits as 8 rows of pixels; pre- and post-norm, with and without warm-up, depth 2 to 12
    heads      1 to 16 heads at one width: look-ups in a dictionary, 1 and 4 at once; and the digits
    positions  four kinds of positions on two tasks that order decides, tested at lengths beyond those of training
and `rates`: pre- and post-norm, with and without warm-up, depth 12, at every rate, 3 seeds, test data.

`train_loss` is the mean of the last 20 steps, `curve` the mean loss of every tenth of the steps; `accuracy_by_length`
lists length:accuracy. Learned positions are stretched where there are more tokens than positions.
"""

import copy
import time
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from studies.harness import main
from studies.shared import by_loss, commonest, constants, grid, rate_names, rate_of
from studies.store import Store
from vitutils import data
from vitutils.models.transformer import (
    Encoder,
    PairEmbedding,
    accuracy,
    after_marker,
    look_ups,
    shuffled,
    stretch_positions,
    train_batches,
    which_first,
)

D, BATCH, SEEDS, SEARCH_SEED = 32, 64, (0, 1, 2), 100
HELD_OUT, EVALUATED = 287, 2_000
DEPTHS, DEEPEST = (2, 4, 6, 8, 12), 12
ARMS = {
    "pre-norm, warm-up": ("pre", 0.2),
    "pre-norm, no warm-up": ("pre", 0.0),
    "post-norm, warm-up": ("post", 0.2),
    "post-norm, no warm-up": ("post", 0.0),
}
HEADS = (1, 2, 4, 8, 16)
POSITIONS = ("none", "sinusoidal", "learned", "rotary")
NORM_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
WARMUP = 0.1  # in the families heads and positions
STEPS = {"digits": 200, "1 look-up": 400, "4 look-ups": 400, "which first": 300, "after marker": 800}
TASKS = {"1 look-up": 1, "4 look-ups": 4}
ORDERED = {
    "which first": (which_first, range(8, 17), (8, 16, 24, 32, 48, 64), 2),
    "after marker": (after_marker, (9, 17), (9, 17, 25, 33, 49, 65), 8),
}
KEY = ("family", "part", "task", "arm", "depth", "variant", "seed")


def digit_rows(held_out: bool) -> tuple[torch.Tensor, ...]:
    """Training rows (N, 8, 8) and labels; rows and labels to evaluate on, held out of these or the test part."""
    dataset = data.load("digits")
    if held_out:
        dataset = dataset.hold_out(HELD_OUT)
    train, test = (
        data.normalise(images, dataset.mean, dataset.std)[:, 0]
        for images in (dataset.train_images, dataset.test_images)
    )
    return train, dataset.train_labels, test, dataset.test_labels


def make(name: dict) -> tuple[nn.Module, float]:
    """The net of a run and its share of warm-up; the same seed gives the same weights."""
    torch.manual_seed(name["seed"])
    task, arm, depth = name["task"], name["arm"], name["depth"]
    if name["family"] == "norms":
        norm, warmup = ARMS[arm]
        return Encoder(nn.Linear(8, D), D, 10, depth, norm=norm, max_len=8), warmup
    if name["family"] == "positions":
        classes = ORDERED[task][3]
        longest = max(ORDERED[task][1])
        return Encoder(nn.Embedding(10, D), D, classes, depth, positions=arm, max_len=longest), WARMUP
    if task == "digits":
        return Encoder(nn.Linear(8, D), D, 10, depth, num_heads=arm, max_len=8), WARMUP
    asked = TASKS[task]
    net = Encoder(PairEmbedding(25, D), D, 8 * asked, depth, num_heads=arm, positions="none", pool="first")
    return nn.Sequential(net, nn.Unflatten(1, (asked, 8))), WARMUP


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    families = {
        "norms": [("digits", arm, depth) for depth in DEPTHS for arm in ARMS],
        "heads": [("4 look-ups", h, 1) for h in HEADS] + [("1 look-up", h, 1) for h in HEADS]
        + [("digits", h, 2) for h in HEADS],
        "positions": [(task, arm, 2) for task in ORDERED for arm in POSITIONS],
    }
    for family, cells in families.items():
        names = rate_names(NORM_RATES if family == "norms" else RATES)
        for part, variants, seeds in (("search", names, (SEARCH_SEED,)), ("main", ["best"], SEEDS)):
            for seed, cell, variant in product(seeds, cells, variants):
                yield dict(zip(KEY, (family, part, *cell, variant, seed), strict=True))
    about = {"family": "norms", "part": "rates", "task": "digits", "depth": DEEPEST}
    yield from grid(KEY, **about, seed=SEEDS, arm=list(ARMS), variant=rate_names(NORM_RATES))


@torch.inference_mode()
def measure(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float, float]:
    """Loss, accuracy, and the share of the commonest answer."""
    logits = net(inputs).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten()).item(), accuracy(net, inputs, targets), commonest(logits)


def by_length(net: Encoder, task: str, seed: int) -> str:
    """Accuracy at each tested length, as length:accuracy."""
    stream, _, lengths, _ = ORDERED[task]
    found = []
    for T in lengths:
        longer = copy.deepcopy(net)
        if net.positions == "learned" and len(net.pos_embed) < T:
            longer.pos_embed = nn.Parameter(stretch_positions(net.pos_embed.detach(), T))
        found.append(f"{T}:{accuracy(longer, *next(stream([T], EVALUATED, seed))):.4f}")
    return " ".join(found)


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    task, search = name["task"], name["part"] == "search"
    wanted = {field: name[field] for field in ("family", "task", "arm", "depth")}
    lr = rate_of(store, name, NORM_RATES if name["family"] == "norms" else RATES, by_loss, **wanted)
    fresh = 20_000 if search else 10_000
    if task == "digits":
        inputs, targets, *evaluated = digit_rows(held_out=search)
        batches = shuffled(inputs, targets, BATCH, name["seed"])
    elif task in TASKS:
        batches = look_ups(TASKS[task], BATCH, name["seed"])
        evaluated = next(look_ups(TASKS[task], EVALUATED, fresh))
    else:
        stream, lengths, *_ = ORDERED[task]
        batches, evaluated = stream(lengths, BATCH, name["seed"]), next(stream([max(lengths)], EVALUATED, fresh))
    net, warmup = make(name)
    start = time.perf_counter()
    losses = train_batches(net, batches, STEPS[task], lr, warmup)
    seconds = time.perf_counter() - start
    loss, right, share = measure(net, *evaluated)
    tenths = torch.tensor(losses).reshape(10, -1).mean(dim=1)
    return {
        **name,
        "lr": lr,
        "warmup": warmup,
        "steps": STEPS[task],
        "accuracy": round(right, 5),
        "loss": round(loss, 5),
        "train_loss": round(sum(losses[-20:]) / 20, 5),
        "curve": " ".join(f"{value:.4f}" for value in tenths.tolist()),
        "accuracy_by_length": by_length(net, task, fresh) if task in ORDERED else "",
        "share_of_commonest_answer": round(share, 4),
        "seconds": round(seconds, 1),
    }


def replay(store: Store) -> dict:
    """The first run: digits, two blocks with pre-norm."""
    return run(store, next(runs(store)))


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "BATCH SEEDS SEARCH_SEED HELD_OUT EVALUATED DEPTHS ARMS HEADS POSITIONS NORM_RATES RATES WARMUP STEPS"
    return {
        "embed_dim": D,
        **constants(globals(), *names.split()),
        "trained_at": {task: list(row[1]) for task, row in ORDERED.items()},
        "tested_at": {task: list(row[2]) for task, row in ORDERED.items()},
    }


if __name__ == "__main__":
    main("blocks")
