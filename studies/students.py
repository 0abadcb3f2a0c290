"""The students of the study of distillation: how one is trained, and what is looked at in it."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.shared import IMAGENET, IMAGENET_SIDE, VIT_32, Enlarged, fitted, has_imagenet, judged, told, unwatched
from studies.teachers import CNN_WIDTHS, RECIPE, Cropped, logits_of
from vitutils import data, train
from vitutils.analysis import interpret
from vitutils.analysis.equivariance import accuracy_under_shift
from vitutils.data import Dataset
from vitutils.models import DistilledViT, SmallCNN, ViT, weights
from vitutils.timing import race
from vitutils.training.distill import Distillation

CONFIG = replace(VIT_32, global_pool="token")
SHIFTS = (0, 1, 2, 4)
SHIFTED_IMAGES = 1_000
LOOKED_AT = 500  # test images for attention distance and for the cosine of the two tokens
FIELDS = ("parameters", "passes", "steps", "accuracy", "loss", "train_accuracy", "collapsed", "logits")


class Both(nn.Module):
    """The objective of a check: the second token has no teacher, it is asked for the label like the first."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, outputs, images: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        first, second = outputs
        own = F.cross_entropy(first, labels, label_smoothing=label_smoothing)
        return (1 - self.weight) * own + self.weight * F.cross_entropy(second, labels)


class OneHead(nn.Module):
    """A distilled student judged by one of its tokens: 0 the class token, 1 the distillation token."""

    def __init__(self, model: DistilledViT, place: int):
        super().__init__()
        self.model, self.place = model, place

    def forward(self, images: Tensor) -> Tensor:
        head = (self.model.head, self.model.head_dist)[self.place]
        return head(self.model.forward_features(images)[:, self.place])


@torch.inference_mode()
def cosines(model: DistilledViT, x: Tensor) -> list[float]:
    """Cosine of class token and distillation token, at the input and after each block, mean over images x."""
    tokens, found = model.eval().embed(x), []
    for block in [nn.Identity(), *model.blocks]:
        tokens = block(tokens)
        found.append(F.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=1).mean().item())
    return found


def first_test(dataset: Dataset, count: int | None) -> Dataset:
    """The same with the first test images alone."""
    return replace(dataset, test_images=dataset.test_images[:count], test_labels=dataset.test_labels[:count])


def student(name: dict, dataset: Dataset, teacher: nn.Module | None, passes: int) -> tuple[nn.Module, dict]:
    """Train a student: it, and what a row says of it, with its logits for the test images."""
    torch.manual_seed(name["seed"])
    model = DistilledViT(CONFIG) if name["kind"] == "token" else ViT(CONFIG)
    objective = Both(name["weight"]) if name["teacher"] == "labels" else train.labels_alone
    if teacher is not None:
        kind = "hard" if name["kind"] == "token" else name["kind"]
        objective = Distillation(teacher, kind, name["weight"], name["temperature"])
    how = {field: name[field] for field in ("lr", "weight_decay", "label_smoothing", "seed")}
    history = train.fit(model, unwatched(dataset), replace(RECIPE, epochs=passes, **how), objective=objective)
    row = told(history) | judged(model, dataset) | fitted(model, dataset)
    return model, {field: row[field] for field in FIELDS}


def look_into(model: nn.Module, dataset: Dataset) -> tuple[dict, dict[str, Tensor]]:
    """More fields of a student's row: under shifts, its attention, its two tokens; and the answers of its two heads."""
    how, found, heads = {"mean": dataset.mean, "std": dataset.std}, {}, {}
    x = data.normalise(dataset.test_images[:LOOKED_AT], **how)
    if isinstance(model, DistilledViT):
        for place, which in enumerate(("class head", "distillation head")):
            heads[which] = logits_of(OneHead(model, place), dataset.test_images, **how).argmax(dim=1).byte()
        right = [(heads[which].long() == dataset.test_labels).double().mean().item() for which in heads]
        found["heads"] = " ".join(f"{value:.5f}" for value in right)
        found["cosines"] = " ".join(f"{value:.4f}" for value in cosines(model, x))
    few = dataset.take(test=min(SHIFTED_IMAGES, len(dataset.test_labels)))
    moved = accuracy_under_shift(model, few.test_images, few.test_labels, SHIFTS, **how).mean(dim=0)
    distances = interpret.attention_distance(interpret.attention_maps(model.eval(), x), CONFIG.grid, CONFIG.patch_size)
    found["accuracies"] = " ".join(f"{value:.4f}" for value in moved)
    found["distances"] = " ".join(f"{value:.3f}" for value in distances.mean(dim=(0, 2)))
    return found, heads


def time_steps(dataset: Dataset, lr: float, repeats: int) -> tuple[int, dict[str, list[float]]]:
    """How many steps were timed, and milliseconds of each with each teacher at work, side by side."""
    dataset, recipe = unwatched(dataset), replace(RECIPE, epochs=2, lr=lr)
    cnn = SmallCNN(1, 10, CNN_WIDTHS["cnn"]).to(memory_format=torch.channels_last)
    soft = {"cnn": cnn, "vit": Cropped(weights.load_pretrained("pocket").model)}
    if has_imagenet():
        net = weights.load_pretrained(IMAGENET).model
        net.head = nn.Linear(net.config.embed_dim, 10)
        soft["imagenet"] = Enlarged(net, IMAGENET_SIDE)
    tries = {"none": (ViT, train.labels_alone)}
    tries |= {f"{which} soft": (ViT, Distillation(net, "soft", 0.5, 3.0)) for which, net in soft.items()}
    hard = Distillation(cnn, "hard", 0.5)
    tries |= {"cnn hard": (ViT, hard), "cnn token": (DistilledViT, hard)}
    candidates = {
        which: lambda kind=kind, objective=objective: train.fit(kind(CONFIG), dataset, recipe, objective=objective)
        for which, (kind, objective) in tries.items()
    }
    steps = 2 * math.ceil(len(dataset.train_labels) / RECIPE.batch_size)
    seconds = race(candidates, repeats=repeats)
    return steps, {which: [round(1_000 * s / steps, 3) for s in values] for which, values in seconds.items()}
