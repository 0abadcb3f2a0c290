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

import timm
import torch
from torch import nn

from studies.harness import main
from studies.shared import VIT_28, best, commonest, constants, few_digits, side_by_side
from studies.store import Store
from vitutils import data, pictures, probe, train, weights
from vitutils.check import count_parameters
from vitutils.data import Dataset
from vitutils.vit import ViT

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


def make_net(net: str, K: int, seed: int) -> nn.Module:
    """A net of the study, images (B, 3, 224, 224) -> logits (B, K); the same seed gives the same fresh weights."""
    torch.manual_seed(seed)
    if net.startswith("ResNet"):
        return timm.create_model("resnet10t", num_classes=K)
    pretrained = weights.load(CHECKPOINT).model
    model = ViT(replace(pretrained.config, num_classes=K))
    if net.endswith("pretrained"):
        body = {key: value for key, value in pretrained.state_dict().items() if not key.startswith("head.")}
        head = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
        weights.load_into(model, body | head)
    return model


@lru_cache(maxsize=1)
def photos() -> Dataset:
    """The photos as the checkpoint wants them, in memory."""
    found, one = weights.load(CHECKPOINT), pictures.load(PHOTOS)
    return probe.as_dataset(one.train, one.test, found.transform, found.mean, found.std)


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


def best_rate(store: Store, net: str) -> float:
    """The rate with the highest held-out accuracy; if several tie, the smallest."""
    rows = best(store, len(RATES), lambda row: (float(row["accuracy"]), -float(row["lr"])), part="search", net=net)
    return float(rows["lr"])


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    for net in NETS:
        for lr in RATES:
            yield {"part": "search", "net": net, "variant": f"lr {lr:g}", "seed": SEARCH_SEED}
    for seed in SEEDS:
        for shots in SHOTS:
            for net in NETS:
                yield {"part": "main", "net": net, "variant": str(shots), "seed": seed}
    for seed in SEEDS:
        for shots in SHOTS:
            for net in TIED:
                yield {"part": "tied", "net": net, "variant": str(shots), "seed": seed}
            for net in FROZEN:
                yield {"part": "frozen", "net": net, "variant": str(shots), "seed": seed}


def run(store: Store, name: dict) -> dict:
    """Train one net, or ask frozen features alone, and return the row."""
    part, net, variant, seed = (name[field] for field in KEY)
    if part == "frozen":
        return name | asked(net, drawn(photos(), variant, seed), features)
    if part == "search":
        dataset, lr = held_out(photos(), seed), float(variant.removeprefix("lr "))
    else:
        lr = TIED[net] if part == "tied" else best_rate(store, net)
        dataset = drawn(photos(), variant, seed)
    return name | trained(make_net(net, dataset.num_classes, seed), dataset, lr, seed)


def trained(model: nn.Module, dataset: Dataset, lr: float, seed: int) -> dict:
    """Train a net: what a row says of it."""
    started = time.process_time()
    probe.train_steps(model, dataset, STEPS, lr, seed, batch_size=BATCH)
    seconds = time.process_time() - started
    result = train.evaluate(
        model, dataset.test_images, dataset.test_labels, mean=dataset.mean, std=dataset.std, batch_size=50
    )
    return {
        "lr": lr,
        "steps": STEPS,
        "batch_size": min(BATCH, len(dataset.train_labels)),
        "images": len(dataset.train_labels),
        "looked_at": len(dataset.test_labels),
        "parameters": count_parameters(model),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
        "share_of_commonest_answer": round(commonest(result.logits), 4),
        "seconds": round(seconds, 1),
    }


@torch.inference_mode()
def features(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """The pretrained net's pooled features (N, D) of uint8 images."""
    net = probe.headless(weights.load(CHECKPOINT).model)
    return torch.cat([net(data.normalise(part, dataset.mean, dataset.std)) for part in images.split(50)])


def asked(how: str, dataset: Dataset, features: Callable) -> dict:
    """Ask features alone: what a row says; what belongs to training stays empty."""
    started = time.process_time()
    known, looked_at = (features(images, dataset) for images in (dataset.train_images, dataset.test_images))
    answers = FROZEN[how](known, dataset.train_labels, looked_at)
    return {
        "lr": "",
        "steps": 0,
        "batch_size": 0,
        "images": len(dataset.train_labels),
        "looked_at": len(dataset.test_labels),
        "parameters": 0,
        "accuracy": round((answers == dataset.test_labels).double().mean().item(), 5),
        "loss": "",
        "share_of_commonest_answer": round(answers.bincount().max().item() / len(answers), 4),
        "seconds": round(time.process_time() - started, 1),
    }


def replay(store: Store) -> dict:
    """A small fresh ViT on digits: two ways to ask what it makes of them, then trained."""
    digits = few_digits(28)
    torch.manual_seed(0)
    vit = ViT(VIT_28).eval()

    @torch.inference_mode()
    def pooled(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
        return probe.headless(vit)(data.normalise(images, dataset.mean, dataset.std))

    rows = {how: asked(how, drawn(digits, "5", 0), pooled) for how in FROZEN}
    return side_by_side(rows | {"trained": trained(vit, held_out(digits, 0), RATES[-1], 0)})


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = ("CHECKPOINT", "PHOTOS", "NETS", "RATES", "TIED", "STEPS", "SHOTS", "SEEDS")
    return {**constants(globals(), *names), "frozen": list(FROZEN), "batch_size": BATCH}


if __name__ == "__main__":
    main("transfer")
