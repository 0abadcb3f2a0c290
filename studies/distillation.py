"""Chapter 11's study: does a small ViT learn more when a teacher tells it what it thinks?

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

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from studies import shared, students, teachers
from studies.harness import main
from studies.store import NotYet, Store
from studies.teachers import SEARCH_SEED, key_of, logits_of, make_data, places, whole_set
from vitutils import train
from vitutils.data import Dataset
from vitutils.models import SmallCNN

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
LONGER = 3  # times as many passes, in the part of that name
TIMED_BATCHES, TIMED_REPEATS = 20, 9
KEY = ("scale", "part", "images", "labels", "teacher", "kind", "lr", "weight_decay", "label_smoothing", "weight")
KEY += ("temperature", "seed")
FIELDS = ("parameters", "passes", "steps", "accuracy", "loss", "train_accuracy", "collapsed", "told_right")
FIELDS += ("told_confidence", "agreement", "heads", "cosines", "distances", "accuracies", "details")


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
        passes={100: 2, 200: 2, 400: 1}, teacher_passes={100: 2, 200: 2, 400: 2}, search_passes={100: 1, 200: 1},
        seeds=(0,), more_seeds=(1,), labels=100, teachers_know=(400, 400), looked_at=200,
    ),
    "cpu": Scale(
        passes={1_000: 50, 10_000: 14, 60_000: 7},
        teacher_passes={1_000: 60, 10_000: 18, 55_000: 8, 60_000: 8},
        search_passes={1_000: 50, 10_000: 7},
        seeds=(0, 1, 2), more_seeds=(3, 4), labels=1_000, teachers_know=(55_000, 60_000),
    ),
}
SAME = "cnn, same images"
# The CNN's own rate and weight decay: those that chapter 7's search chose, by training images
TEACHER_TRIES = {1_000: (1e-2, 0.05), 10_000: (3e-3, 0.5), 55_000: (3e-3, 0.5), 60_000: (3e-3, 0.5)}


class Study:
    """The runs of one scale: which there are, which come next, and how one is done."""

    def __init__(self, store: Store):
        self.store, self.name, self.scale = store, store.scale, SCALES[store.scale]
        self.count = None if self.name == "cpu" else max(self.scale.passes)
        self.small, self.large, self.all = sorted(self.scale.passes)

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

    def chosen(self, images: int, teacher: str, kind: str) -> Try:
        """The best of the search that goes for this size. Raises NotYet while it is not over."""
        size = self.small if images == self.small or teacher == SAME else self.large
        teacher = {"labels": "cnn", "imagenet": "vit"}.get(teacher, teacher)
        wanted = {"scale": self.name, "part": "search", "images": size, "teacher": teacher, "kind": kind}
        found = shared.best(self.store, len(self.tries(kind)), shared.by_accuracy_then_loss, **wanted)
        return Try(**{field: float(found[field]) for field in Try.__dataclass_fields__})

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

    def way(self, part: str, images: int, teacher: str, kind: str) -> Try | None:
        """How a search decided that a run is trained; None for one that would repeat another. Raises NotYet."""
        way = self.chosen(images, teacher, kind)
        if part == "rate":
            alone = self.chosen(images, "", "none")
            return None if way.lr == alone.lr else replace(way, lr=alone.lr)
        if part == "unlabelled" and images == self.all:
            return replace(way, weight=1.0, temperature=3.0 if kind == "soft" else 1.0)
        return way

    def resolved(self, imagenet: bool) -> list[dict | None]:
        """The key fields of every run in order, each teacher before its first student; None for one not known yet."""
        found = []
        for entry in self.plan(imagenet):
            if not isinstance(entry, dict):
                images, teacher, kind, seed, part = (*entry, "main")[:5]
                try:
                    way = self.way(part, images, teacher, kind)
                except NotYet:
                    found.append(None)
                    continue
                if way is None:
                    continue
                labels = self.scale.labels if part == "unlabelled" else images
                entry = self.name_of(part, images, teacher, kind, way, seed, labels)
            found += [name for name in (self.needs(entry), entry) if name and name not in found]
        for seed in (*self.scale.seeds, *self.scale.more_seeds):
            for images in (self.all, self.large, self.small)[2 * (seed in self.scale.more_seeds) :]:
                found.append(self.name_of("answers", images, "", "", Try(0.0, 0.0), seed))
        return [*found, self.name_of("time", self.all, "", "", Try(0.0, 0.0), 0)]

    def needs(self, name: dict) -> dict | None:
        """The teacher's run that a student waits for."""
        if name["teacher"] in ("", "labels") or name["part"] == "teacher":
            return None
        return self.teacher_of(name["teacher"], name["part"], name["labels"], name["seed"])

    def wait(self, name: dict) -> None:
        """Raise NotYet where what a run needs is not there: its teacher; all others for a comparison of all."""
        needed = [self.needs(name)] if self.needs(name) else []
        if name["part"] in ("time", "answers"):
            needed = [other for other in runs(self.store) if other != name]
            if None in needed:
                raise NotYet("a search")
        if name["part"] == "answers":
            size = (name["images"], name["seed"])
            needed = [other for other in needed if other["part"] == "main" and (other["images"], other["seed"]) == size]
        if left := [other for other in needed if not self.store.has(other)]:
            raise NotYet(f"{len(left)} other runs")

    def file(self, name: dict) -> Path:
        """Where what a run leaves for others is kept."""
        about = "_".join(str(name[field]).replace(", ", "-").replace(" ", "-") for field in KEY)
        return self.store.own / f"{about}.pt"

    def load(self, name: dict) -> dict[str, Tensor]:
        """What a run left; done again where its file is gone."""
        if not self.file(name).exists():
            self.run(name)
        return torch.load(self.file(name), weights_only=True)

    def run_teacher(self, name: dict) -> dict:
        """Make a teacher, keep its logits for all views of all training images and for the test images."""
        whole = whole_set(self.count)
        model, dataset, mean, std, side = teachers.make_teacher(name, whole, self.scale.teacher_passes)

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

    def passes(self, name: dict) -> int:
        """How often a student sees each image: in the unlabelled part all make the steps of the largest size."""
        if name["part"] == "search":
            return self.scale.search_passes[name["images"]]
        if name["part"] == "longer":
            return LONGER * self.scale.passes[name["images"]]
        if name["part"] == "unlabelled":
            steps = self.scale.passes[self.all] * math.ceil(self.all / students.RECIPE.batch_size)
            return math.ceil(steps / math.ceil(name["images"] / students.RECIPE.batch_size))
        return self.scale.passes[name["images"]]

    def run_student(self, name: dict) -> dict:
        """Train a student and look at it."""
        dataset = make_data(whole_set(self.count), name["images"], name["part"], name["seed"])
        kept = self.load(self.needs(name)) if name["teacher"] not in ("", "labels") else {}
        teacher = teachers.Looked(kept["views"], self.count, dataset.mean, dataset.std) if kept else None
        dataset = students.first_test(dataset, self.scale.looked_at)
        model, row = students.student(name, dataset, teacher, self.passes(name))
        answers, told = row.pop("logits").argmax(dim=1), self.told(kept, dataset) if kept else {}
        if name["part"] == "search":
            return row | told
        if kept:
            agree = kept["test"][: len(answers)].argmax(dim=1) == answers
            told["agreement"] = round(agree.double().mean().item(), 5)
        looked, heads = students.look_into(model, dataset)
        train.save_checkpoint(self.file(name), answers=answers.byte(), **heads)
        return row | looked | told

    def told(self, kept: dict[str, Tensor], dataset: Dataset) -> dict:
        """What the teacher says of the student's training images, both views: how often the label, how surely."""
        where = places(self.count)
        rows = [where[key_of(image)] for image in dataset.train_images]
        rows += [where[key_of(image)] for image in dataset.train_images.flip(3).contiguous()]
        logits = kept["views"][rows]
        right = (logits.argmax(dim=1) == dataset.train_labels.repeat(2)).double().mean().item()
        confidence = logits.softmax(dim=1).amax(dim=1).double().mean().item()
        return {"told_right": round(right, 5), "told_confidence": round(confidence, 5)}

    def run_answers(self, name: dict) -> dict:
        """The share of test images on which two of a size and seed decide differently."""
        test = whole_set(self.count).test_labels[: self.scale.looked_at]
        answers = {"labels": test}
        for teacher in ("cnn", "vit"):
            kept = self.load(self.teacher_of(teacher, "main", name["images"], name["seed"]))
            answers[f"{teacher} teacher"] = kept["test"].argmax(dim=1)
        for other in runs(self.store):
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

    def run_time(self, name: dict) -> dict:
        """Milliseconds of a training step with each teacher at work, side by side."""
        images = min(students.RECIPE.batch_size * TIMED_BATCHES // 2, self.all)
        repeats = TIMED_REPEATS if self.name == "cpu" else 1
        steps, ms = students.time_steps(whole_set(self.count).take(train=images), RATES[0], repeats)
        return {"details": json.dumps(ms), "steps": steps}

    def run(self, name: dict) -> dict:
        """Do one run and return its row."""
        started = time.process_time()
        own = {"teacher": self.run_teacher, "answers": self.run_answers, "time": self.run_time}
        found = own.get(name["part"], self.run_student)(name)
        seconds = round(time.process_time() - started, 1)
        return name | {field: found.get(field, "") for field in FIELDS} | {"seconds": seconds}


def runs(store: Store) -> list[dict | None]:
    """The key fields of every run of a scale, in order; None for one that a search has yet to name."""
    held = any(row["teacher"] == "imagenet" for row in store.rows())
    return Study(store).resolved(held or shared.has_imagenet())


def run(store: Store, name: dict) -> dict:
    """Do one run and return its row. Raises NotYet where what it needs is not there."""
    Study(store).wait(name)
    return Study(store).run(name)


def replay(store: Store) -> dict:
    """A few steps of two students on digits, with a small fresh CNN for a teacher."""
    digits, rows = shared.few_digits(32), {}
    torch.manual_seed(0)
    teacher = SmallCNN(1, 10, teachers.CNN_WIDTHS["cnn"])
    for kind, weight, temperature in (("soft", 0.5, 3.0), ("token", 0.5, 1.0)):
        name = Study(store).name_of("main", 320, "cnn", kind, Try(1e-2, 0.5, 0.1, weight, temperature), 0)
        model, row = students.student(name, digits, teacher, passes=3)
        del row["logits"]
        rows[kind] = row | students.look_into(model, digits)[0]
    return shared.side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        **shared.constants(globals(), "RATES", "WEIGHT_DECAY", "SETTINGS", "LONGER", "SCALES"),
        "recipe": teachers.RECIPE.numbers(),
        "teacher_recipe": teachers.TEACHER_RECIPE.numbers(),
        "imagenet": shared.IMAGENET,
        "imagenet_side": shared.IMAGENET_SIDE,
        "held_out": teachers.HELD_OUT,
        "probed": teachers.PROBED,
        "shifts": students.SHIFTS,
        "shifted_images": students.SHIFTED_IMAGES,
        "looked_at": students.LOOKED_AT,
        "student": repr(students.CONFIG),
        "cnn_widths": teachers.CNN_WIDTHS["cnn"],
        "teacher_tries": {str(images): way for images, way in TEACHER_TRIES.items()},
        "timed": [TIMED_BATCHES, TIMED_REPEATS],
    }


if __name__ == "__main__":
    main("distillation")
