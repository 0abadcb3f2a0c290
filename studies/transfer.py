"""Chapter 9's study: full fine-tuning at 224 pixels, where the notebook has time for a few steps of small images.

ImageNet's ViT-Tiny, the same net from scratch, and a CNN of its size from scratch, on ants and bees (the 244 training
and 153 test photos of PyTorch's transfer tutorial). It needs two files under $VITBOOK_DATA: the weights, and the photos
as images/hymenoptera.zip or a folder of that name.

Parts, in the order they run:
    search  every net at each peak rate, four fifths of the training photos, judged on the other fifth, seed 100
    main    every net at its best rate, with 5 images a class and with all, seeds 0 1 2; the test part chooses nothing
    tied    the pretrained net again, at the larger of two rates that did equally well in the search
    frozen  kNN and a linear probe on the pretrained net's features, nothing of it trained; the same draws

All nets take the same number of steps on the same batches.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product

import timm
import torch
from torch import nn

from studies.harness import main
from studies.shared import VIT_28, constants, few_digits, grid, judged, rate_names, rate_of, side_by_side
from studies.store import Store
from vitutils import data
from vitutils.analysis import probe
from vitutils.analysis.classifier import without_classifier
from vitutils.data import Dataset
from vitutils.models import ViT, conversion, weights

CHECKPOINT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
PHOTOS = "hymenoptera"
NETS = ("ViT-Tiny, pretrained", "ViT-Tiny, from scratch", "ResNet-10-T, from scratch")
FROZEN = {"ViT-Tiny, kNN": probe.knn_predict, "ViT-Tiny, linear probe": lambda *known: probe.linear_probe(*known)[0]}
RATES = (2e-5, 1e-4, 5e-4, 2e-3)
TIED = {"ViT-Tiny, pretrained": 5e-4}
STEPS, BATCH = 40, 16
SHOTS = (5, "all")
SEEDS, SEARCH_SEED = (0, 1, 2), 100
KEY = ("part", "net", "variant", "seed")
FIELDS = ("lr", "steps", "batch_size", "images", "looked_at", "parameters", "accuracy", "loss")
FIELDS += ("share_of_commonest_answer", "seconds")


def make_net(net: str, K: int, seed: int) -> nn.Module:
    """A net of the study, images (B, 3, 224, 224) -> logits (B, K); the same seed gives the same fresh weights."""
    torch.manual_seed(seed)
    if net.startswith("ResNet"):
        return timm.create_model("resnet10t", num_classes=K)
    pretrained = weights.load_pretrained(CHECKPOINT).model
    model = ViT(replace(pretrained.config, num_classes=K))
    if net.endswith("pretrained"):
        body = {key: value for key, value in pretrained.state_dict().items() if not key.startswith("head.")}
        head = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
        conversion.load_into(model, body | head)
    return model


@lru_cache(maxsize=1)
def photos() -> Dataset:
    """The photos as the checkpoint wants them, in memory."""
    found, one = weights.load_pretrained(CHECKPOINT), data.load_image_set(PHOTOS)
    return data.as_dataset(one.train, one.test, found.transform, found.mean, found.std)


def part_of(dataset: Dataset, places: torch.Tensor, **other: torch.Tensor) -> Dataset:
    """The same set with these training images alone."""
    images, labels = dataset.train_images[places], dataset.train_labels[places]
    return replace(dataset, train_images=images, train_labels=labels, **other)


def held_out(dataset: Dataset, seed: int) -> Dataset:
    """Four fifths of the training images, judged on the other fifth."""
    fit, choose = probe.split_shots(dataset.train_labels, seed)
    other = {"test_images": dataset.train_images[choose], "test_labels": dataset.train_labels[choose]}
    return part_of(dataset, fit, **other)


def drawn(dataset: Dataset, shots: str, seed: int) -> Dataset:
    """So many training images a class, or "all"."""
    return part_of(dataset, probe.draw_shots(dataset.train_labels, None if shots == "all" else int(shots), seed))


def by_accuracy_then_rate(row: dict[str, str]) -> tuple[float, float]:
    """A merit: the highest accuracy; if several tie, the smallest rate."""
    return float(row["accuracy"]), -float(row["lr"])


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    yield from grid(KEY, part="search", net=NETS, variant=rate_names(RATES), seed=SEARCH_SEED)
    shots = [str(count) for count in SHOTS]
    yield from grid(KEY, part="main", seed=SEEDS, variant=shots, net=NETS)
    for seed, variant in product(SEEDS, shots):
        yield from grid(KEY, part="tied", net=list(TIED), variant=variant, seed=seed)
        yield from grid(KEY, part="frozen", net=list(FROZEN), variant=variant, seed=seed)


def run(store: Store, name: dict) -> dict:
    """Train one net, or ask frozen features alone, and return the row."""
    part, net, variant, seed = (name[field] for field in KEY)
    if part == "frozen":
        return name | asked(net, drawn(photos(), variant, seed), features)
    lr = TIED[net] if part == "tied" else rate_of(store, name, RATES, by_accuracy_then_rate, net=net)
    dataset = held_out(photos(), seed) if part == "search" else drawn(photos(), variant, seed)
    return name | trained(make_net(net, dataset.num_classes, seed), dataset, lr, seed)


def trained(model: nn.Module, dataset: Dataset, lr: float, seed: int) -> dict:
    """Train a net: what a row says of it."""
    started = time.process_time()
    probe.train_steps(model, dataset, STEPS, lr, seed, batch_size=BATCH)
    seconds = time.process_time() - started
    found = {"lr": lr, "steps": STEPS, "batch_size": min(BATCH, len(dataset.train_labels))}
    found |= judged(model, dataset, batch_size=50) | {"seconds": round(seconds, 1)}
    return {field: found[field] for field in FIELDS}


@torch.inference_mode()
def features(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """The pretrained net's pooled features (N, D) of uint8 images."""
    net = without_classifier(weights.load_pretrained(CHECKPOINT).model)
    return torch.cat([net(data.normalise(part, dataset.mean, dataset.std)) for part in images.split(50)])


def asked(how: str, dataset: Dataset, features: Callable) -> dict:
    """Ask features alone: what a row says; what belongs to training stays empty."""
    started = time.process_time()
    known, looked_at = (features(images, dataset) for images in (dataset.train_images, dataset.test_images))
    answers = FROZEN[how](known, dataset.train_labels, looked_at)
    found = {
        "images": len(dataset.train_labels),
        "looked_at": len(dataset.test_labels),
        "accuracy": round((answers == dataset.test_labels).double().mean().item(), 5),
        "share_of_commonest_answer": round(answers.bincount().max().item() / len(answers), 4),
        "seconds": round(time.process_time() - started, 1),
    }
    empty = dict.fromkeys(FIELDS, "") | {"steps": 0, "batch_size": 0, "parameters": 0}
    return {field: found.get(field, empty[field]) for field in FIELDS}


def replay(store: Store) -> dict:
    """A small fresh ViT on digits: two ways to ask what it makes of them, then trained."""
    digits = few_digits(28)
    torch.manual_seed(0)
    vit = ViT(VIT_28).eval()

    @torch.inference_mode()
    def pooled(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
        return without_classifier(vit)(data.normalise(images, dataset.mean, dataset.std))

    rows = {how: asked(how, drawn(digits, "5", 0), pooled) for how in FROZEN}
    return side_by_side(rows | {"trained": trained(vit, held_out(digits, 0), RATES[-1], 0)})


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = ("CHECKPOINT", "PHOTOS", "NETS", "RATES", "TIED", "STEPS", "SHOTS", "SEEDS")
    return {**constants(globals(), *names), "frozen": list(FROZEN), "batch_size": BATCH}


if __name__ == "__main__":
    main("transfer")
