"""Chapter 16's study: what training without labels is worth to a small ViT on CIFAR-10.

Genuine CIFAR-10 at 32 pixels, 50,000 training images. A ViT with patches of 8 pixels, width 64 and 4 blocks is
pre-trained with each method for about equal processor time on one thread (steps were fixed from the time of one step,
measured before), then judged in three ways: kNN and a linear probe on its frozen features, and fine-tuning of all
weights, with 1, 10 and 100 labels a class, drawn anew for each seed, and with all.

Starts: mae, dino, lejepa, rotation (no labels); supervised (all labels, the same time; then the same tests); scratch
(fresh weights, and the same fine-tuning); scratch, equal time (fine-tuned as long as the others' two phases together;
100 labels a class and all).

Parts, in the order they run; each stands for itself:
    search  each method at each peak rate, a third of the steps, seed 100, kNN on 5,000 held-out training images; the
            better of class token and mean of the patches is what the method's later runs read
    tune    the rate of fine-tuning for each start, with 100 labels a class, on the held-out images
    main    every start, seeds 0 1 2, all training images, the test part; nothing is chosen from it
    ratio   MAE with other shares of patches hidden, equal steps, seeds 0 1 2, frozen features

kNN and "all" of the probe know 10,000 labelled images; "all" of fine-tuning knows 50,000. 5,000 test images judge: one
standard error is at most 0.7 points. The predictions were written before a trial of a few steps a method. Other
work ran beside, so `seconds` (of processor time) are rough.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from studies.harness import main
from studies.shared import best, constants, few_digits, grid, rate_names, side_by_side
from studies.store import Store
from vitutils import data, train
from vitutils.analysis.probe import draw_shots, knn_predict, linear_probe
from vitutils.data import Dataset
from vitutils.data.batches import batches, flip_shift, seeded
from vitutils.models import ViT, ViTConfig
from vitutils.training.masked import MAE
from vitutils.training.views import DINO, LeJEPA, Rotation, Views, pretrain

VIT = ViTConfig(img_size=32, patch_size=8, in_chans=3, num_classes=0, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0)
METHODS = {"mae": MAE, "dino": DINO, "lejepa": LeJEPA, "rotation": Rotation}
STEPS = {"mae": 1_300, "dino": 300, "lejepa": 350, "rotation": 950, "supervised": 960}
BATCH = 128
SIDES = (32, 16)  # of large and small views
RATES = (1e-3, 2e-3, 4e-3)
TUNE_RATES = (3e-4, 1e-3, 3e-3)
TUNE_STEPS = {"1": 50, "10": 150, "100": 300, "all": 250}
TUNE_BATCH = {"1": 10, "10": 64, "100": 64, "all": 128}
TUNE_SEARCH_STEPS = 150
SHOTS = {"1": 1, "10": 10, "100": 100}
RATIOS = (0.25, 0.5, 0.9)
SEEDS, SEARCH_SEED = (0, 1, 2), 100
HELD_OUT, KNOWN, JUDGED = 5_000, 10_000, 5_000
POINTS = 5  # of the curve of accuracy over time
STARTS = ("scratch", "mae", "rotation", "lejepa", "dino", "supervised", "scratch, equal time")
KEY = ("part", "start", "variant", "seed")
FIELDS = ("lr", "tune_lr", "pool", "steps", "images", "looked_at", "accuracy", "knn_token", "knn_mean")
FIELDS += ("probe_1", "probe_10", "probe_100", "probe_all", "tune_1", "tune_10", "tune_100", "tune_all")
FIELDS += ("curve", "first_loss", "last_loss", "said", "seconds_before", "seconds")
partial = "its parts come in the order in which the chapter needs them, and every seed has all starts"


def expect(reason: str, **numbers: float) -> dict:
    """A prediction: shares of right answers by the name of the field."""
    return {"expected": numbers, "reason": reason}


predicted = {
    "scratch": expect(
        "an untrained net's kNN is about that of pixels; 250 steps of a small ViT reach the forties",
        accuracy=0.27, probe_1=0.14, probe_10=0.20, probe_100=0.29, probe_all=0.36,
        tune_1=0.13, tune_10=0.21, tune_100=0.31, tune_all=0.44,
    ),
    "mae": expect(
        "three passes are few for MAE, whose features are known to be poor frozen and good when tuned",
        accuracy=0.32, probe_1=0.14, probe_10=0.23, probe_100=0.34, probe_all=0.42,
        tune_1=0.14, tune_10=0.24, tune_100=0.36, tune_all=0.49,
    ),
    "rotation": expect(
        "four classes are learned fast and ask for shapes: the best without labels in so short a time",
        accuracy=0.36, probe_1=0.16, probe_10=0.26, probe_100=0.38, probe_all=0.45,
        tune_1=0.16, tune_10=0.27, tune_100=0.40, tune_all=0.51,
    ),
    "lejepa": expect(
        "crops of one image agree first in colour; no teacher to wait for, so it learns from the first step",
        accuracy=0.36, probe_1=0.17, probe_10=0.27, probe_100=0.37, probe_all=0.43,
        tune_1=0.16, tune_10=0.27, tune_100=0.38, tune_all=0.47,
    ),
    "dino": expect(
        "300 steps are few for a teacher that is a mean over about 100 of them; it will not have collapsed",
        accuracy=0.33, probe_1=0.16, probe_10=0.25, probe_100=0.35, probe_all=0.41,
        tune_1=0.15, tune_10=0.25, tune_100=0.36, tune_all=0.46,
    ),
    "supervised": expect(
        "960 steps with 50,000 labels: what the others have to be held against; its labels help the probe most",
        accuracy=0.50, probe_1=0.28, probe_10=0.43, probe_100=0.50, probe_all=0.53,
        tune_1=0.27, tune_10=0.41, tune_100=0.47, tune_all=0.55,
    ),
    "scratch, equal time": expect(
        "with 100 labels more steps only fit them better; with all, it is supervised training without a break",
        tune_100=0.32, tune_all=0.55,
    ),
    "mae, ratio 0.25": expect("a quarter hidden is soon painted in from neighbours", accuracy=0.31, probe_all=0.41),
    "mae, ratio 0.5": expect("between the two", accuracy=0.32, probe_all=0.42),
    "mae, ratio 0.9": expect("one visible patch of 16 is too little", accuracy=0.31, probe_all=0.40),
}  # fmt: skip


class Answers(nn.Module):
    """An encoder and a linear head on its class token, or on the mean of its patch tokens: images -> logits."""

    def __init__(self, encoder: nn.Module, pool: str):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        self.head = nn.Linear(encoder.config.embed_dim, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(pooled(self.encoder.forward_features(images), self.pool))


def pooled(tokens: Tensor, pool: str) -> Tensor:
    """Features (B, D) of tokens (B, T, D)."""
    return tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(dim=1)


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
    for part in ("train", "test"):
        images, labels = getattr(found, f"{part}_images"), getattr(found, f"{part}_labels")
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        order = sorted(range(len(digests)), key=digests.__getitem__)
        parts |= {f"{part}_images": images[order], f"{part}_labels": labels[order]}
    mean, std = data.channel_statistics(parts["train_images"])
    return replace(found, **parts, mean=mean, std=std)


def part_of(dataset: Dataset, search: bool) -> Dataset:
    """All training images and the first test images; in a search, held-out training images instead of these."""
    images, labels = dataset.train_images, dataset.train_labels
    if search:
        return replace(
            dataset,
            train_images=images[:-HELD_OUT],
            train_labels=labels[:-HELD_OUT],
            test_images=images[-HELD_OUT:],
            test_labels=labels[-HELD_OUT:],
        )
    return replace(dataset, test_images=dataset.test_images[:JUDGED], test_labels=dataset.test_labels[:JUDGED])


def tuned(
    encoder: nn.Module, pool: str, dataset: Dataset, steps: int, lr: float, batch: int, seed: int, watch: int = 0
) -> tuple[nn.Module, list[tuple[float, float]]]:
    """Fine-tune all weights: AdamW, warm-up, cosine, flips and shifts. watch: times to judge it on the way.

    The model, and (seconds, accuracy) at each of these times.
    """
    model, seen, curve, spent = Answers(encoder, pool).train(), 0, [], 0.0
    optimizer = torch.optim.AdamW(train.parameter_groups(model, 0.05), lr=lr, fused=True)
    schedule, augment = train.make_schedule(optimizer, steps, warmup=0.1), flip_shift(pad=4)
    size, began = min(batch, len(dataset.train_labels)), time.process_time()
    with seeded(seed, torch.device("cpu")):
        while seen < steps:
            for images, labels in dataset.batches(size, seed=seed * 100_003 + seen, augment=augment):
                if len(labels) < size or seen == steps:
                    break
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                seen += 1
                if watch and seen % max(1, steps // watch) == 0:
                    spent += time.process_time() - began
                    curve.append((spent, train.evaluate(model, dataset).accuracy))
                    model.train()
                    began = time.process_time()
    return model.eval(), curve


@torch.inference_mode()
def features(encoder: nn.Module, images: Tensor, dataset: Dataset) -> dict[str, Tensor]:
    """Features (N, D) by class token and by mean of the patches."""
    encoder.eval()
    labels, found = torch.zeros(len(images), dtype=torch.int64), {"token": [], "mean": []}
    for part, _ in batches(images, labels, 500, seed=None, mean=dataset.mean, std=dataset.std):
        tokens = encoder.forward_features(part)
        for pool, parts in found.items():
            parts.append(pooled(tokens, pool))
    return {pool: torch.cat(parts).clone() for pool, parts in found.items()}


def right(answers: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    return round((answers == labels).double().mean().item(), 5)


def frozen(encoder: nn.Module, dataset: Dataset, pool: str, seed: int, probes: bool) -> dict:
    """Fields of a row: kNN by both features, and probes by those of `pool` (none: those that kNN finds better)."""
    known = dataset.train_labels[:KNOWN]
    x = features(encoder, dataset.train_images[:KNOWN], dataset)
    new = features(encoder, dataset.test_images, dataset)
    found = {f"knn_{how}": right(knn_predict(x[how], known, new[how]), dataset.test_labels) for how in x}
    pool = pool or max(("token", "mean"), key=lambda how: found[f"knn_{how}"])
    found |= {"pool": pool, "accuracy": found[f"knn_{pool}"]}
    if probes:
        for name, shots in SHOTS.items():
            chosen = draw_shots(known, shots, seed)
            answers, _ = linear_probe(x[pool][chosen], known[chosen], new[pool], seed)
            found[f"probe_{name}"] = right(answers, dataset.test_labels)
        found["probe_all"] = right(linear_probe(x[pool], known, new[pool], seed)[0], dataset.test_labels)
    return found


def fine_tuned(state: dict, dataset: Dataset, pool: str, lr: float, seed: int, extra: dict, watch: int) -> dict:
    """Fields of a row: accuracies after fine-tuning from these weights with each number of labels.

    extra: steps beyond those of `TUNE_STEPS`, by the number of labels; what is not in it is left out.
    """
    found = {}
    for name, more in extra.items():
        part, encoder = dataset, ViT(replace(VIT, in_chans=dataset.image_shape[0]))
        encoder.load_state_dict(state)
        if name != "all":
            chosen = draw_shots(dataset.train_labels[:KNOWN], SHOTS[name], seed)
            images, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
            part = replace(dataset, train_images=images, train_labels=labels)
        steps, watched = TUNE_STEPS[name] + more, watch if name == "all" else 0
        model, curve = tuned(encoder, pool, part, steps, lr, TUNE_BATCH[name], seed, watched)
        found[f"tune_{name}"] = round(train.evaluate(model, dataset).accuracy, 5)
        if watched:
            found["curve"] = " ".join(f"{seconds:.1f}:{accuracy:.4f}" for seconds, accuracy in curve)
    return found


def pretrained(start: str, dataset: Dataset, steps: int, lr: float, seed: int, ratio: float = 0.75) -> tuple:
    """An encoder by one method, and the fields of its row that say how its training went."""
    torch.manual_seed(seed)
    encoder, began = ViT(replace(VIT, in_chans=dataset.image_shape[0])), time.process_time()
    found = {"lr": lr, "steps": steps, "images": len(dataset.train_labels)}
    if start.startswith("scratch"):
        return encoder, found | {"lr": "", "steps": 0, "seconds_before": 0.0}
    if start == "supervised":
        tuned(encoder, "token", dataset, steps, lr, min(BATCH, len(dataset.train_labels)), seed)
        return encoder, found | {"seconds_before": round(time.process_time() - began, 1)}
    how = {"ratio": ratio} if start == "mae" else {"views": Views(sides=SIDES)} if start in ("dino", "lejepa") else {}
    method = METHODS[start](encoder, **how)
    history = pretrain(method, dataset, steps, lr, batch_size=min(BATCH, len(dataset.train_labels)), seed=seed)
    losses, last = [entry["loss"] for entry in history], min(50, steps)
    found |= {"first_loss": round(losses[0], 4), "last_loss": round(sum(losses[-last:]) / last, 4)}
    found |= {"said": getattr(method, "told", str)().replace(",", ";")}
    return encoder, found | {"seconds_before": round(time.process_time() - began, 1)}


def row(found: dict) -> dict:
    """All fields, those that were not measured empty."""
    return {field: found.get(field, "") for field in FIELDS}


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    learned = [start for start in STARTS if not start.startswith("scratch")]
    yield from grid(KEY, part="search", start=learned, variant=rate_names(RATES), seed=SEARCH_SEED)
    tuned_starts = [start for start in STARTS if start != "scratch, equal time"]
    yield from grid(KEY, part="tune", start=tuned_starts, variant=rate_names(TUNE_RATES), seed=SEARCH_SEED)
    yield from grid(KEY, part="main", seed=SEEDS, start=STARTS, variant="")
    yield from grid(KEY, part="ratio", seed=SEEDS, start="mae", variant=[f"ratio {ratio}" for ratio in RATIOS])


def run(store: Store, name: dict) -> dict:
    """Do one run and return its row."""
    part, start, seed, began = name["part"], name["start"], name["seed"], time.process_time()
    dataset = part_of(photos(), part in ("search", "tune"))
    if part == "search":
        lr = float(name["variant"].removeprefix("lr "))
        encoder, found = pretrained(start, dataset, STEPS[start] // 3, lr, seed)
        found |= frozen(encoder, dataset, "", seed, probes=False)
        torch.save(encoder.state_dict(), store.own / f"{start}, lr {lr:g}.pt")
    elif part == "tune":
        found = tune_search(store, name, dataset)
    else:
        found = whole_run(store, name, dataset)
    found["seconds"] = round(time.process_time() - began, 1)
    return name | row(found | {"looked_at": len(dataset.test_labels)})


def chosen(store: Store, start: str) -> dict[str, str]:
    """The best row of a method's search; nothing for fresh weights, whose features are the mean of the patches."""
    if start.startswith("scratch"):
        return {"pool": "mean", "lr": "0"}
    return best(store, len(RATES), part="search", start=start)


def tune_search(store: Store, name: dict, dataset: Dataset) -> dict:
    """Fine-tune what a search made, with 100 labels a class, at one rate; judged on held-out images."""
    start, lr, about = name["start"], float(name["variant"].removeprefix("lr ")), chosen(store, name["start"])
    torch.manual_seed(SEARCH_SEED)
    state = ViT(VIT).state_dict()
    if not start.startswith("scratch"):
        path = store.own / f"{start}, lr {float(about['lr']):g}.pt"
        if not path.exists():
            again = pretrained(start, dataset, STEPS[start] // 3, float(about["lr"]), SEARCH_SEED)[0]
            torch.save(again.state_dict(), path)
        state = torch.load(path, weights_only=True)
    less = {"100": TUNE_SEARCH_STEPS - TUNE_STEPS["100"]}
    found = fine_tuned(state, dataset, about["pool"], lr, SEARCH_SEED, less, 0)
    return {"lr": lr, "tune_lr": lr, "pool": about["pool"], "accuracy": found["tune_100"], **found}


def whole_run(store: Store, name: dict, dataset: Dataset) -> dict:
    """Pre-train, then judge: a row of `main` or `ratio`."""
    part, start, seed = name["part"], name["start"], name["seed"]
    about, ratio = chosen(store, start), 0.75
    if part == "ratio":
        ratio = float(name["variant"].removeprefix("ratio "))
    encoder, found = pretrained(start, dataset, STEPS.get(start, 0), float(about["lr"]), seed, ratio)
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    equal = start == "scratch, equal time"
    if not equal:
        found |= frozen(encoder, dataset, about["pool"], seed, probes=True)
    if part == "ratio":
        return found
    tune_lr = float(best(store, len(TUNE_RATES), part="tune", start=start.partition(",")[0])["lr"])
    more = STEPS["supervised"]
    extra = {"100": more * BATCH // TUNE_BATCH["100"], "all": more} if equal else dict.fromkeys(TUNE_STEPS, 0)
    return found | {"tune_lr": tune_lr} | fine_tuned(state, dataset, about["pool"], tune_lr, seed, extra, POINTS)


def replay(store: Store) -> dict:
    """Each method for a few steps on digits, then kNN and a short fine-tuning."""
    digits = few_digits(32)
    digits = replace(digits, train_images=digits.train_images[:128], train_labels=digits.train_labels[:128])
    rows = {}
    for start in (*METHODS, "supervised"):
        encoder, found = pretrained(start, digits, 4, 1e-3, 0)
        found |= frozen(encoder, digits, "", 0, probes=False)
        model, _ = tuned(encoder, "mean", digits, 4, 1e-3, 32, 0)
        found["tune_all"] = round(train.evaluate(model, digits).accuracy, 5)
        rows[start] = {key: found.get(key, "") for key in ("knn_token", "knn_mean", "tune_all", "last_loss")}
    return side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = ("VIT", "STEPS", "BATCH", "SIDES", "RATES", "TUNE_RATES", "TUNE_STEPS", "TUNE_BATCH", "TUNE_SEARCH_STEPS")
    names += ("RATIOS", "SEEDS", "HELD_OUT", "KNOWN", "JUDGED", "STARTS")
    return {"data": "CIFAR-10", **constants(globals(), *names), "weight_decay": 0.05, "warmup": 0.1, "clip_grad": 1.0}


if __name__ == "__main__":
    main("unlabelled")
