"""Chapter 9's study: full fine-tuning at 224 pixels, where the notebook has time for a few steps of small images.

    python -m studies.transfer             runs what is missing, appends to results/transfer.csv

ImageNet's ViT-Tiny, the same net from scratch, and a CNN of its size from scratch, on ants and bees (the 244 training
and 153 test photos of PyTorch's transfer tutorial). It needs two files under $VITBOOK_DATA: the weights, and the photos
as images/hymenoptera.zip or a folder of that name.

Parts, in the order they run:
    search  every net at each peak rate, four fifths of the training photos, judged on the other fifth, seed 100
    main    every net at its best rate, with 5 images a class and with all, seeds 0 1 2; the test part chooses nothing
    tied    the pretrained net again, at the larger of two rates that did equally well in the search
    frozen  kNN and a linear probe on the pretrained net's features, nothing of it trained; the same draws

All nets take the same number of steps on the same batches. Two processes may run it at once; one thread each.
"""

import argparse
import time
from dataclasses import replace

import timm
import torch
from torch import nn

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


def photos() -> Dataset:
    """The photos as the checkpoint wants them, in memory."""
    found, one = weights.load(CHECKPOINT), pictures.load(PHOTOS)
    return probe.as_dataset(one.train, one.test, found.transform, found.mean, found.std)


def part_of(dataset: Dataset, places: torch.Tensor, **other: torch.Tensor) -> Dataset:
    """The same set with these training images alone."""
    images, labels = dataset.train_images[places], dataset.train_labels[places]
    return replace(dataset, train_images=images, train_labels=labels, **other)


def best_rate(store: Store, net: str) -> float:
    """The rate with the highest held-out accuracy, of several the smallest; waits while another process searches."""
    while True:
        rows = [row for row in store.rows() if row["part"] == "search" and row["net"] == net]
        if len(rows) == len(RATES):
            return float(max(rows, key=lambda row: (float(row["accuracy"]), -float(row["lr"])))["lr"])
        time.sleep(5)


def runs():
    """Yield (key fields,) of every run, in order."""
    for net in NETS:
        for lr in RATES:
            yield ({"part": "search", "net": net, "variant": f"lr {lr:g}", "seed": SEARCH_SEED},)
    for seed in SEEDS:
        for shots in SHOTS:
            for net in NETS:
                yield ({"part": "main", "net": net, "variant": str(shots), "seed": seed},)
    for seed in SEEDS:
        for shots in SHOTS:
            for net in TIED:
                yield ({"part": "tied", "net": net, "variant": str(shots), "seed": seed},)
            for net in FROZEN:
                yield ({"part": "frozen", "net": net, "variant": str(shots), "seed": seed},)


def run(store: Store, name: dict, dataset: Dataset) -> dict:
    """Train one net and return its row."""
    if name["part"] == "frozen":
        return run_frozen(name, dataset)
    seed = name["seed"]
    if name["part"] == "search":
        lr = float(name["variant"].removeprefix("lr "))
        fit, choose = probe.split_shots(dataset.train_labels, seed)
        held = {"test_images": dataset.train_images[choose], "test_labels": dataset.train_labels[choose]}
        dataset = part_of(dataset, fit, **held)
    else:
        lr = TIED[name["net"]] if name["part"] == "tied" else best_rate(store, name["net"])
        shots = None if name["variant"] == "all" else int(name["variant"])
        dataset = part_of(dataset, probe.draw_shots(dataset.train_labels, shots, seed))
    model = make_net(name["net"], dataset.num_classes, seed)
    started = time.process_time()
    probe.train_steps(model, dataset, STEPS, lr, seed, batch_size=BATCH)
    seconds = time.process_time() - started
    result = train.evaluate(
        model, dataset.test_images, dataset.test_labels, mean=dataset.mean, std=dataset.std, batch_size=50
    )
    commonest = result.logits.argmax(dim=1).bincount().max().item() / len(result.logits)
    return {
        **name,
        "lr": lr,
        "steps": STEPS,
        "batch_size": min(BATCH, len(dataset.train_labels)),
        "images": len(dataset.train_labels),
        "looked_at": len(dataset.test_labels),
        "parameters": count_parameters(model),
        "accuracy": round(result.accuracy, 5),
        "loss": round(result.loss, 5),
        "share_of_commonest_answer": round(commonest, 4),
        "seconds": round(seconds, 1),
    }


@torch.inference_mode()
def features(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """The pretrained net's pooled features (N, D) of uint8 images."""
    net = probe.headless(weights.load(CHECKPOINT).model)
    return torch.cat([net(data.normalise(part, dataset.mean, dataset.std)) for part in images.split(50)])


def run_frozen(name: dict, dataset: Dataset) -> dict:
    """Ask the features alone, and return the row; what belongs to training stays empty."""
    shots = None if name["variant"] == "all" else int(name["variant"])
    dataset = part_of(dataset, probe.draw_shots(dataset.train_labels, shots, name["seed"]))
    started = time.process_time()
    known, asked = (features(images, dataset) for images in (dataset.train_images, dataset.test_images))
    answers = FROZEN[name["net"]](known, dataset.train_labels, asked)
    return {
        **name,
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


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "checkpoint": CHECKPOINT,
        "photos": PHOTOS,
        "nets": NETS,
        "frozen": list(FROZEN),
        "rates": RATES,
        "tied": TIED,
        "steps": STEPS,
        "batch_size": BATCH,
        "shots": SHOTS,
        "seeds": SEEDS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    store = Store(__file__, KEY)
    if not store.json.exists():
        store.describe(configuration(), 0, finished=False)
    dataset = photos()
    for (name,) in runs():
        with store.claimed(name) as mine:
            if mine and not store.has(name):
                row = run(store, name, dataset)
                store.append(row)
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    rows = store.rows()
    if len(rows) == len(list(runs())):
        store.describe(configuration(), sum(float(row["seconds"]) for row in rows))


if __name__ == "__main__":
    main()
