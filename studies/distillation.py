"""Chapter 11's study: does a small ViT learn more when a teacher tells it what it thinks?

    python -m studies.distillation            runs everything, appends to results/distillation.csv
    python -m studies.distillation --resume   goes on with what is missing; start it once a core, all at the same time
    python -m studies.distillation --scale smoke    a few seconds, other files: give it a --folder

Data: Fashion-MNIST on 32 x 32 black pixels; flips. Student: the ViT of chapter 7 with a class token. Teachers:
    cnn         the CNN of chapter 7, trained on all 60,000 images, anew for each seed
    vit         the book's pocket ViT, about as accurate; one net for all seeds
    imagenet    a ViT-Tiny pre-trained on ImageNet, frozen, images enlarged to 64 px, logistic regression on
                20,000 of the images; where its weights can be had
    cnn, same images    the CNN, trained on the very images that the student gets, at 1,000 images
    labels      none: the teacher's place is taken by the label, a check that a second token alone does not do it
Kinds: none, soft, hard, token (a distillation token, hard labels). With a flip an image has two views: each teacher's
logits for both are computed once and looked up.

Parts, in the order they run: search and main for cnn and vit; the CNN that has seen no more than its student; rate:
at 60,000 images, those whose search chose another rate than the student without a teacher, at that student's rate;
unlabelled: the teacher knows 1,000 labels, the student sees 60,000 images and no label; two tokens for the labels;
longer: three times as many passes; imagenet, at 1,000 images; more seeds there. At last a row of `answers` for each
size and seed, the share of test images on which two nets decide differently, and one of `time`: milliseconds of a step.

Equal care: eight tries for each teacher and kind, at 1,000 and at 10,000 images (there with half the passes), seed
100: two rates, and four settings of what the kind has (none: label smoothing; soft: weight, temperature; hard and
token: weight, label smoothing). imagenet and labels have no search of their own and take what vit and cnn found best;
the CNN that has seen no more than its student is searched at 1,000 images alone. 5,000 held-out images decide; the CNN
that teaches in the search has not seen them, the pocket ViT has. The highest accuracy wins, of equals the lowest loss;
60,000 images take the choice of 10,000. Every student of one size makes the same number of steps, with the same images
in the same order. One thread a run; `seconds` are of processor time.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from studies.data_scale import AUGMENT, CNN_WIDTHS, FLIPS, HELD_OUT, IMAGENET, IMAGENET_SIDE, VIT, Enlarged
from studies.data_scale import fashion_or_cifar as pictures
from studies.store import RESULTS, Store, script_hash
from vitutils import lens, train, weights
from vitutils.cnn import SmallCNN
from vitutils.data import Dataset
from vitutils.distill import Distillation, DistilledViT
from vitutils.probe import headless
from vitutils.shift import accuracy_under_shift
from vitutils.timing import race
from vitutils.vit import ViT

CONFIG = replace(VIT, global_pool="token")
RECIPE = train.Recipe(batch_size=128, warmup=0.1, clip_grad=1.0, augment=AUGMENT[FLIPS])
TEACHER_RECIPE = replace(RECIPE, batch_size=64)
SEARCH_SEED = 100
SHIFTS = (0, 1, 2, 4)
SHIFTED_IMAGES = 1_000
LOOKED_AT = 500  # test images for attention distance and for the cosine of the two tokens
KINDS = ("soft", "hard", "token")
# A first look without a teacher, on held-out images, said: 1e-2 before 3e-3 and 3e-2, and decay 0.5 before 0.05
RATES = (1e-2, 2e-2)
WEIGHT_DECAY = 0.5
SETTINGS = {
    "none": [{"label_smoothing": s} for s in (0.0, 0.05, 0.1, 0.2)],
    "soft": [
        {"weight": 0.1, "temperature": 3.0},  # what DeiT took
        {"weight": 0.5, "temperature": 3.0},
        {"weight": 0.9, "temperature": 3.0},
        {"weight": 0.9, "temperature": 1.0},
    ],
    "hard": [{"weight": w, "label_smoothing": s} for w in (0.5, 0.9) for s in (0.0, 0.1)],
}
SETTINGS["token"] = SETTINGS["hard"]
PROBED = 20_000  # images for the linear head of the net from ImageNet
LONGER = 3  # times as many passes, in the part of that name
TIMED_BATCHES, TIMED_REPEATS = 20, 9
KEY = ("scale", "part", "images", "labels", "teacher", "kind", "lr", "weight_decay", "label_smoothing", "weight")
KEY += ("temperature", "seed")


@dataclass(frozen=True)
class Try:
    """One way to train a student. weight: of the teacher's part in the loss."""

    lr: float
    weight_decay: float = WEIGHT_DECAY
    label_smoothing: float = 0.0
    weight: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale. passes: how often each training image is seen, by the number of them."""

    passes: dict[int, int]
    teacher_passes: dict[int, int]
    search_passes: dict[int, int]
    seeds: tuple[int, ...]
    more_seeds: tuple[int, ...]
    labels: int  # of the unlabelled part
    teachers_know: tuple[int, int]  # images of the CNN that teaches in the search, and in the main part
    looked_at: int | None = None  # test or held-out images, None for all


SCALES = {
    "smoke": Scale(
        passes={100: 2, 200: 2, 400: 1},
        teacher_passes={100: 2, 200: 2, 400: 2},
        search_passes={100: 1, 200: 1},
        seeds=(0,),
        more_seeds=(1,),
        labels=100,
        teachers_know=(400, 400),
        looked_at=200,
    ),
    "cpu": Scale(
        passes={1_000: 50, 10_000: 14, 60_000: 7},
        teacher_passes={1_000: 60, 10_000: 18, 55_000: 8, 60_000: 8},
        search_passes={1_000: 50, 10_000: 7},
        seeds=(0, 1, 2),
        more_seeds=(3, 4),
        labels=1_000,
        teachers_know=(55_000, 60_000),
    ),
}
SAME = "cnn, same images"
# The CNN's own rate and weight decay: those that chapter 7's search chose, by training images
TEACHER_TRIES = {1_000: (1e-2, 0.05), 10_000: (3e-3, 0.5), 55_000: (3e-3, 0.5), 60_000: (3e-3, 0.5)}


@lru_cache(maxsize=2)
def whole_set(images: int | None) -> Dataset:
    """Fashion-MNIST on 32 x 32; at smoke scale its first images alone."""
    return pictures("fashion_mnist") if images is None else pictures("fashion_mnist").take(train=images)


def make_data(whole: Dataset, images: int, part: str, seed: int) -> Dataset:
    """The images of a run; its other part is held-out images in the search, test images else, as in chapter 7."""
    count = len(whole.train_labels)
    if part != "search" and images == count:
        return whole
    chosen = whole.hold_out(min(HELD_OUT, count // 4))
    drawn = chosen.take(train=min(images, len(chosen.train_labels)), seed=seed)
    if part == "search":
        return drawn
    return replace(drawn, test_images=whole.test_images, test_labels=whole.test_labels)


def key_of(image: Tensor) -> int:
    """A number that tells a uint8 image from all others."""
    return hash(image.numpy().tobytes())


@lru_cache(maxsize=1)
def places(count: int | None) -> dict[int, int]:
    """Where each view of each training image stands: image i at 2 i, its mirror image at 2 i + 1."""
    images = whole_set(count).train_images
    found = {}
    for i, (image, mirrored) in enumerate(zip(images, images.flip(3).contiguous(), strict=True)):
        found.setdefault(key_of(image), 2 * i)
        found.setdefault(key_of(mirrored), 2 * i + 1)
    return found


class Looked(nn.Module):
    """A teacher that has answered all views before: normalised images (B, 1, 32, 32) -> its logits (B, K).

    views: (2 N, K). Raises KeyError for an image that is no view of a training image.
    """

    def __init__(self, views: Tensor, count: int | None, mean: Tensor, std: Tensor):
        super().__init__()
        self.views, self.places = views, places(count)
        self.scale, self.offset = 255 * std.view(-1, 1, 1), 255 * mean.view(-1, 1, 1)

    def rows(self, images: Tensor) -> list[int]:
        pixels = (images * self.scale + self.offset).round().byte().contiguous()
        return [self.places[key_of(image)] for image in pixels]

    def forward(self, images: Tensor) -> Tensor:
        return self.views[self.rows(images)]


class Both(nn.Module):
    """The objective of a check: the second token has no teacher, it is asked for the label like the first."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, outputs, images: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        first, second = outputs
        own = F.cross_entropy(first, labels, label_smoothing=label_smoothing)
        return (1 - self.weight) * own + self.weight * F.cross_entropy(second, labels)


def logits_of(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logits (N, K) for uint8 images."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    return train.evaluate(model, images, labels, mean=mean, std=std).logits


class Study:
    """The runs of one scale: which there are, which come next, and how one is done."""

    def __init__(self, store: Store, scale: str):
        self.store, self.name, self.scale = store, scale, SCALES[scale]
        self.count = None if scale == "cpu" else max(self.scale.passes)
        self.small, self.large, self.all = sorted(self.scale.passes)

    # --- which runs there are ---

    def tries(self, kind: str) -> list[Try]:
        """The eight tries of a kind."""
        return [Try(lr=lr, **setting) for lr in RATES for setting in SETTINGS[kind]]

    def name_of(self, part, images, teacher, kind, way: Try, seed, labels=None) -> dict:
        """The key fields of a run."""
        first = {"scale": self.name, "part": part, "images": images, "labels": labels or images}
        return first | {"teacher": teacher, "kind": kind} | asdict(way) | {"seed": seed}

    def teacher_of(self, teacher: str, part: str, images: int, seed: int) -> dict:
        """The key fields of the run that makes a teacher."""
        if teacher != SAME:
            images = self.scale.teachers_know[0 if teacher == "cnn" and part == "search" else 1]
        if teacher in ("vit", "imagenet"):  # one net for all seeds
            return self.name_of("teacher", images, teacher, "teacher", Try(0.0, 0.0), 0)
        lr, decay = TEACHER_TRIES.get(images, (3e-3, 0.05))
        return self.name_of("teacher", images, teacher, "teacher", Try(lr, decay), seed)

    def chosen(self, images: int, teacher: str, kind: str, rows: list[dict]) -> Try | None:
        """The best of the search that goes for this size; None while it is not over."""
        size = self.small if images == self.small or teacher == SAME else self.large
        teacher = {"labels": "cnn", "imagenet": "vit"}.get(teacher, teacher)
        wanted = {"scale": self.name, "part": "search", "images": str(size), "teacher": teacher, "kind": kind}
        found = [row for row in rows if wanted.items() <= row.items()]
        if len(found) < len(self.tries(kind)):
            return None
        best = max(found, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
        return Try(**{field: float(best[field]) for field in Try.__dataclass_fields__})

    def search(self, images: int, variants: list[tuple[str, str]]):
        """Yield the eight tries of each variant at one size."""
        for teacher, kind in variants:
            for way in self.tries(kind):
                yield self.name_of("search", images, teacher, kind, way, SEARCH_SEED)

    def main(self, sizes, seeds, variants: list[tuple[str, str]]):
        """Yield (images, teacher, kind, seed) of the main runs; the search decides how each is trained."""
        for seed in seeds:
            for images in sizes:
                for teacher, kind in variants:
                    yield images, teacher, kind, seed

    def plan(self, imagenet: bool):
        """Yield all runs in order, as key fields, or (images, teacher, kind, seed, part) where a search decides."""
        scale, sizes = self.scale, (self.all, self.large, self.small)
        first = [("", "none")] + [(teacher, kind) for teacher in ("cnn", "vit") for kind in KINDS]
        same = [(SAME, kind) for kind in KINDS]

        yield from self.search(self.large, first)
        yield from self.main(sizes[:1], scale.seeds, first)
        yield from self.search(self.small, first)
        yield from self.main(sizes[1:], scale.seeds, first)
        yield from self.search(self.small, same)
        yield from self.main(sizes[2:], scale.seeds, same)
        for seed in scale.seeds:
            for teacher, kind in first[1:]:
                yield self.all, teacher, kind, seed, "rate"
        yield from self.unlabelled(scale.seeds)
        yield from self.main(sizes[:1], scale.seeds, [("labels", "token")])
        for seed in scale.seeds:
            yield self.large, "", "none", seed, "longer"
            yield self.large, "cnn", "soft", seed, "longer"
        if imagenet:
            yield from self.main(sizes[2:], scale.seeds, [("imagenet", kind) for kind in KINDS])
        yield from self.main(sizes[2:], scale.more_seeds, first)

    def unlabelled(self, seeds):
        """Yield the runs in which the labels are few: (images, teacher, kind, seed, part)."""
        for seed in seeds:
            yield self.all, SAME, "soft", seed, "unlabelled"
            yield self.small, "", "none", seed, "unlabelled"

    def resolved(self, imagenet: bool) -> list[dict | None]:
        """The key fields of every run in order, each teacher before its first student; None for one not known yet."""
        rows, found, seen = self.store.rows(), [], set()

        def add(name: dict) -> None:
            if (key := tuple(name.values())) not in seen:
                seen.add(key)
                found.append(name)

        for entry in self.plan(imagenet):
            if isinstance(entry, dict):
                name = entry
            else:
                images, teacher, kind, seed, part = (*entry, "main")[:5]
                few = part == "unlabelled"
                way = self.chosen(images, teacher, kind, rows)
                if part == "rate" and way is not None:
                    alone = self.chosen(images, "", "none", rows)
                    if way.lr == alone.lr:
                        continue
                    way = replace(way, lr=alone.lr)
                if way is not None and few and images == self.all:
                    way = replace(way, weight=1.0, temperature=3.0 if kind == "soft" else 1.0)
                labels = self.scale.labels if few else images
                name = way and self.name_of(part, images, teacher, kind, way, seed, labels)
            if name is None:
                found.append(None)
                continue
            if (wanted := self.needs(name)) is not None:
                add(wanted)
            add(name)
        for seed in (*self.scale.seeds, *self.scale.more_seeds):
            for images in (self.all, self.large, self.small)[2 * (seed in self.scale.more_seeds) :]:
                add(self.name_of("answers", images, "", "", Try(0.0, 0.0), seed))
        add(self.name_of("time", self.all, "", "", Try(0.0, 0.0), 0))
        return found

    def needs(self, name: dict) -> dict | None:
        """The teacher's run that a student waits for."""
        if name["teacher"] in ("", "labels") or name["part"] == "teacher":
            return None
        return self.teacher_of(name["teacher"], name["part"], name["labels"], name["seed"])

    def ready(self, name: dict, named: list[dict | None]) -> bool:
        """Whether what a run needs is there: its teacher; for a comparison of answers, all of its size and seed."""
        if name["part"] == "time":
            return None not in named and all(self.store.has(other) for other in named if other != name)
        if name["part"] == "answers":
            size = (name["images"], name["seed"])
            about = [other for other in named if other and other["part"] == "main"]
            return None not in named and all(
                self.store.has(other) for other in about if (other["images"], other["seed"]) == size
            )
        wanted = self.needs(name)
        return wanted is None or self.store.has(wanted)

    # --- teachers ---

    def file(self, name: dict) -> Path:
        """Where what a run leaves for others is kept."""
        about = "_".join(str(name[field]).replace(", ", "-").replace(" ", "-") for field in KEY)
        return self.store.folder / f".{self.store.script.stem}" / f"{about}.pt"

    def load(self, name: dict) -> dict[str, Tensor]:
        """What a run left; done again where its file is gone."""
        if not self.file(name).exists():
            self.run(name)
        return torch.load(self.file(name), weights_only=True)

    def make_teacher(self, name: dict) -> tuple[nn.Module, Dataset, Tensor, Tensor, slice]:
        """A trained teacher, the images it learned, the mean and std that it wants, the pixels that it looks at."""
        whole, everything = whole_set(self.count), slice(None)
        if name["teacher"] == "vit":
            pocket = weights.load("pocket")
            return pocket.model, whole, torch.tensor(pocket.mean), torch.tensor(pocket.std), slice(2, 30)
        if name["teacher"] == "imagenet":
            net = weights.load(IMAGENET).model
            half = torch.tensor([0.5])
            part = whole.take(train=min(PROBED, len(whole.train_labels)))
            x = logits_of(Enlarged(headless(net), IMAGENET_SIDE), part.train_images, half, half)
            probe = LogisticRegression(C=0.1, max_iter=3_000).fit(x.numpy(), part.train_labels.numpy())
            net.head = nn.Linear(net.config.embed_dim, whole.num_classes)
            with torch.no_grad():
                net.head.weight.copy_(torch.from_numpy(probe.coef_))
                net.head.bias.copy_(torch.from_numpy(probe.intercept_))
            return Enlarged(net, IMAGENET_SIDE), whole, half, half, everything
        part = "search" if name["seed"] == SEARCH_SEED else "main"
        dataset = make_data(whole, name["images"], part, name["seed"])
        passes = self.scale.teacher_passes[name["images"]]
        decay = name["weight_decay"]
        recipe = replace(TEACHER_RECIPE, epochs=passes, lr=name["lr"], weight_decay=decay, seed=name["seed"])
        torch.manual_seed(name["seed"])
        model = SmallCNN(1, whole.num_classes, CNN_WIDTHS["cnn"]).to(memory_format=torch.channels_last)
        train.fit(model, unwatched(dataset), recipe)
        return model, dataset, dataset.mean, dataset.std, everything

    def run_teacher(self, name: dict) -> dict:
        """Make a teacher, keep its logits for all views of all training images and for the test images."""
        model, dataset, mean, std, side = self.make_teacher(name)
        whole = whole_set(self.count)

        def ask(images: Tensor) -> Tensor:
            return logits_of(model, images[..., side, side], mean, std)

        wanted = torch.arange(len(whole.train_labels))
        if name["teacher"] == "imagenet":  # the large net is asked about the images of its own students alone
            drawn = [make_data(whole, self.small, "main", seed).train_images for seed in self.scale.seeds]
            where = places(self.count)
            wanted = torch.tensor(sorted({where[key_of(image)] // 2 for images in drawn for image in images}))
        views = torch.full((len(whole.train_labels), 2, whole.num_classes), torch.nan)
        views[wanted, 0], views[wanted, 1] = ask(whole.train_images[wanted]), ask(whole.train_images[wanted].flip(3))
        views = views.flatten(0, 1)
        test = ask(whole.test_images[: self.scale.looked_at])
        labels = whole.test_labels[: len(test)]
        train.save_checkpoint(self.file(name), views=views, test=test)
        own = ask(dataset.train_images[:1_000]).argmax(dim=1) == dataset.train_labels[:1_000]
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy": round((test.argmax(dim=1) == labels).double().mean().item(), 5),
            "loss": round(F.cross_entropy(test, labels).item(), 5),
            "train_accuracy": round(own.double().mean().item(), 5),
        }

    # --- students ---

    def passes(self, name: dict) -> int:
        """How often a student sees each image: in the unlabelled part all make the steps of the largest size."""
        if name["part"] == "search":
            return self.scale.search_passes[name["images"]]
        if name["part"] == "longer":
            return LONGER * self.scale.passes[name["images"]]
        if name["part"] == "unlabelled":
            steps = self.scale.passes[self.all] * math.ceil(self.all / RECIPE.batch_size)
            return math.ceil(steps / math.ceil(name["images"] / RECIPE.batch_size))
        return self.scale.passes[name["images"]]

    def run_student(self, name: dict) -> dict:
        """Train a student and look at it."""
        dataset = make_data(whole_set(self.count), name["images"], name["part"], name["seed"])
        torch.manual_seed(name["seed"])
        model = DistilledViT(CONFIG) if name["kind"] == "token" else ViT(CONFIG)
        objective, told = train.labels_alone, {}
        if name["teacher"] == "labels":
            objective = Both(name["weight"])
        elif name["teacher"]:
            kept = self.load(self.needs(name))
            teacher = Looked(kept["views"], self.count, dataset.mean, dataset.std)
            kind = "hard" if name["kind"] == "token" else name["kind"]
            objective = Distillation(teacher, kind, name["weight"], name["temperature"])
            told = self.told(kept, dataset)
        recipe = replace(
            RECIPE,
            epochs=self.passes(name),
            lr=name["lr"],
            weight_decay=name["weight_decay"],
            label_smoothing=name["label_smoothing"],
            seed=name["seed"],
        )
        history = train.fit(model, unwatched(dataset), recipe, objective=objective)
        first = slice(self.scale.looked_at)
        dataset = replace(dataset, test_images=dataset.test_images[first], test_labels=dataset.test_labels[first])
        how = {"mean": dataset.mean, "std": dataset.std}
        result = train.evaluate(model, dataset.test_images, dataset.test_labels, **how)
        fitted = train.evaluate(model, dataset.train_images[:1_000], dataset.train_labels[:1_000], **how)
        answers = result.logits.argmax(dim=1)
        row = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "passes": recipe.epochs,
            "steps": len(history.losses),
            "accuracy": round(result.accuracy, 5),
            "loss": round(result.loss, 5),
            "train_accuracy": round(fitted.accuracy, 5),
            "collapsed": int(answers.bincount().max().item() > len(answers) / 2),
        }
        if name["part"] == "search":
            return row | told
        kept_answers = {"answers": answers.byte()}
        if name["teacher"] not in ("", "labels"):
            agree = kept["test"][: len(answers)].argmax(dim=1) == answers
            told["agreement"] = round(agree.double().mean().item(), 5)
        x = (dataset.test_images[:LOOKED_AT].float() / 255 - how["mean"].view(-1, 1, 1)) / how["std"].view(-1, 1, 1)
        if name["kind"] == "token":
            right = []
            for which, head in (("class", OneHead(model, 0)), ("distillation", OneHead(model, 1))):
                decided = logits_of(head, dataset.test_images, **how).argmax(dim=1)
                kept_answers[f"{which} head"] = decided.byte()
                right.append((decided == dataset.test_labels).double().mean().item())
            told["heads"] = " ".join(f"{value:.5f}" for value in right)
            told["cosines"] = " ".join(f"{value:.4f}" for value in cosines(model, x))
        train.save_checkpoint(self.file(name), **kept_answers)
        few = dataset.take(test=min(SHIFTED_IMAGES, len(dataset.test_labels)))
        moved = accuracy_under_shift(model, few.test_images, few.test_labels, SHIFTS, **how).mean(dim=0)
        distances = lens.attention_distance(lens.attention_maps(model.eval(), x), CONFIG.grid, CONFIG.patch_size)
        row["accuracies"] = " ".join(f"{value:.4f}" for value in moved)
        row["distances"] = " ".join(f"{value:.3f}" for value in distances.mean(dim=(0, 2)))
        return row | told

    def told(self, kept: dict[str, Tensor], dataset: Dataset) -> dict:
        """What the teacher says of the student's training images, both views: how often the label, how surely."""
        where = places(self.count)
        rows = [where[key_of(image)] for image in dataset.train_images]
        rows += [where[key_of(image)] for image in dataset.train_images.flip(3).contiguous()]
        logits = kept["views"][rows]
        right = (logits.argmax(dim=1) == dataset.train_labels.repeat(2)).double().mean().item()
        confidence = logits.softmax(dim=1).amax(dim=1).double().mean().item()
        return {"told_right": round(right, 5), "told_confidence": round(confidence, 5)}

    # --- comparisons ---

    def run_answers(self, name: dict, named: list[dict | None]) -> dict:
        """The share of test images on which two of a size and seed decide differently."""
        test = whole_set(self.count).test_labels[: self.scale.looked_at]
        answers = {"labels": test}
        for teacher in ("cnn", "vit"):
            kept = self.load(self.teacher_of(teacher, "main", name["images"], name["seed"]))
            answers[f"{teacher} teacher"] = kept["test"].argmax(dim=1)
        for other in named:
            if other is None or other["part"] != "main" or other["teacher"] not in ("", "cnn", "vit"):
                continue
            if (other["images"], other["seed"]) == (name["images"], name["seed"]):
                student = f"{other['teacher']} {other['kind']}".strip()
                for which, values in self.load(other).items():
                    answers[student if which == "answers" else f"{student}, {which}"] = values
        differ = [
            [round((a.long() != b.long()).double().mean().item(), 5) for b in answers.values()]
            for a in answers.values()
        ]
        return {"details": json.dumps({"nets": list(answers), "differ": differ})}

    def run_time(self) -> dict:
        """Milliseconds of a training step with each teacher at work, side by side."""
        images = RECIPE.batch_size * TIMED_BATCHES // 2
        dataset = unwatched(whole_set(self.count).take(train=min(images, self.all)))
        recipe = replace(RECIPE, epochs=2, lr=RATES[0])
        teachers = {"cnn": SmallCNN(1, 10, CNN_WIDTHS["cnn"]).to(memory_format=torch.channels_last)}
        teachers["vit"] = Cropped(weights.load("pocket").model)
        if self.has_imagenet():
            net = weights.load(IMAGENET).model
            net.head = nn.Linear(net.config.embed_dim, 10)
            teachers["imagenet"] = Enlarged(net, IMAGENET_SIDE)
        candidates = {"none": lambda: train.fit(ViT(CONFIG), dataset, recipe)}
        for name, teacher in teachers.items():
            objective = Distillation(teacher, "soft", 0.5, 3.0)
            candidates[f"{name} soft"] = lambda objective=objective: train.fit(
                ViT(CONFIG), dataset, recipe, objective=objective
            )
        objective = Distillation(teachers["cnn"], "hard", 0.5)
        candidates["cnn hard"] = lambda: train.fit(ViT(CONFIG), dataset, recipe, objective=objective)
        candidates["cnn token"] = lambda: train.fit(DistilledViT(CONFIG), dataset, recipe, objective=objective)
        repeats = TIMED_REPEATS if self.name == "cpu" else 1
        steps = 2 * math.ceil(len(dataset.train_labels) / RECIPE.batch_size)
        seconds = race(candidates, repeats=repeats)
        ms = {name: [round(1_000 * s / steps, 3) for s in values] for name, values in seconds.items()}
        return {"details": json.dumps(ms), "steps": steps}

    def has_imagenet(self) -> bool:
        """Whether the weights of the ImageNet net can be had."""
        try:
            weights.find_file(IMAGENET, repo=f"timm/{IMAGENET}")
        except FileNotFoundError:
            return False
        return True

    def run(self, name: dict, named: list[dict | None] = ()) -> dict:
        """Do one run and return its row."""
        started = time.process_time()
        part = name["part"]
        if part == "teacher":
            found = self.run_teacher(name)
        elif part == "answers":
            found = self.run_answers(name, named)
        elif part == "time":
            found = self.run_time()
        else:
            found = self.run_student(name)
        return (
            name
            | {field: found.get(field, "") for field in FIELDS}
            | {"seconds": round(time.process_time() - started, 1)}
        )


FIELDS = ("parameters", "passes", "steps", "accuracy", "loss", "train_accuracy", "collapsed", "told_right")
FIELDS += ("told_confidence", "agreement", "heads", "cosines", "distances", "accuracies", "details")


class OneHead(nn.Module):
    """A distilled student judged by one of its tokens: 0 the class token, 1 the distillation token."""

    def __init__(self, model: DistilledViT, place: int):
        super().__init__()
        self.model, self.place = model, place

    def forward(self, images: Tensor) -> Tensor:
        head = (self.model.head, self.model.head_dist)[self.place]
        return head(self.model.forward_features(images)[:, self.place])


class Cropped(nn.Module):
    """The pocket ViT looks at the inner 28 x 28 pixels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[..., 2:30, 2:30])


def unwatched(dataset: Dataset) -> Dataset:
    """The same for `fit`, which looks at the other part after each pass: 100 training images, nothing is chosen."""
    return replace(dataset, test_images=dataset.train_images[:100], test_labels=dataset.train_labels[:100])


@torch.inference_mode()
def cosines(model: DistilledViT, x: Tensor) -> list[float]:
    """Cosine of class token and distillation token, at the input and after each block, mean over images x."""
    tokens, found = model.eval().embed(x), []
    for block in [nn.Identity(), *model.blocks]:
        tokens = block(tokens)
        found.append(F.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=1).mean().item())
    return found


def runs(store: Store, scale: str = "cpu"):
    """Yield the key fields of every run of a scale; those of the ImageNet net where the store holds any of them."""
    held = any(row["teacher"] == "imagenet" for row in store.rows())
    for name in Study(store, scale).resolved(imagenet=held):
        yield (name,)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "student": repr(CONFIG),
        "recipe": RECIPE.numbers(),
        "teacher_recipe": TEACHER_RECIPE.numbers(),
        "cnn_widths": CNN_WIDTHS["cnn"],
        "teacher_tries": {str(images): way for images, way in TEACHER_TRIES.items()},
        "imagenet": IMAGENET,
        "imagenet_side": IMAGENET_SIDE,
        "rates": RATES,
        "weight_decay": WEIGHT_DECAY,
        "settings": SETTINGS,
        "held_out": HELD_OUT,
        "shifts": SHIFTS,
        "shifted_images": SHIFTED_IMAGES,
        "looked_at": LOOKED_AT,
        "longer": LONGER,
        "probed": PROBED,
        "timed": [TIMED_BATCHES, TIMED_REPEATS],
        "scales": {name: repr(scale) for name, scale in SCALES.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on with a study that has rows already")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the two files go (default: results)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(__file__, KEY, folder=asked.folder)
    if store.csv.exists() and not asked.resume:
        parser.error(f"{store.csv} holds {len(store.rows())} runs: go on with --resume, or delete it to start anew")
    if store.csv.exists() and store.json.exists():
        if json.loads(store.json.read_text())["script_sha256"] != script_hash(store.script):
            parser.error(f"{store.csv} was made by an older {store.script.name}: delete it and {store.json.name}")
    else:
        store.describe(configuration(), 0, finished=False)
    study = Study(store, asked.scale)
    imagenet = study.has_imagenet()
    if not imagenet:
        print(f"no weights of {IMAGENET}: its runs are left out", flush=True)
    while True:
        named = study.resolved(imagenet)
        done = {tuple(row[field] for field in KEY) for row in store.rows()}
        missing = [name for name in named if name and tuple(str(name[field]) for field in KEY) not in done]
        if not missing:
            break
        for name in missing:
            if not study.ready(name, named):
                continue
            with store.claimed(name) as mine:
                if not mine or store.has(name):
                    continue
                row = study.run(name, named)
                store.append(row)
                print(*(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
                break
        else:
            time.sleep(2)  # what is left is in the hands of another process
    store.describe(configuration(), sum(float(row["seconds"]) for row in store.rows()))


if __name__ == "__main__":
    main()
