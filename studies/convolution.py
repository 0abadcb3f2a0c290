"""Chapter 1's study: what nets of about equal size make of moved images, permuted pixels, and far pixels.

    python -m studies.convolution              runs what is missing, appends to results/convolution.csv
    python -m studies.convolution --shard 0/2  every second run; start both shards at once on two cores

Tasks:
    sides             grey drawn shapes on the left; tested there, and moved to the right by up to half the width
    shifted           4,000 Fashion-MNIST images, 16 px in the middle of 32; test images moved by 0 to 8 px
    permuted          the same images, all pixels reordered by one fixed permutation
    permuted shapes   the shapes on the left, likewise
    blobs             two blobs, of one colour or of two; one net for all distances, tested at each

Parts, in the order they run:
    search    every net of every task at each peak rate, seed 100; held-out data, never moved; the best is used below
    main      every net of every task, 3 seeds, on the test part; nothing is chosen from it

Every net of a task sees the same images as often, with the same schedule. One thread a run; `seconds` are of
processor time, training and the look at held-out images after each epoch.
The best rate is that of the highest held-out accuracy; for blobs, that of the lowest held-out loss, as their accuracy
is mostly that of distances which a shallow stack cannot answer, so luck.
`accuracy` is that on the test part as it is; `accuracies` depends on the task: for sides, one a move to the right (the
last one is the shapes on the right); for each shift, the mean over four directions; for each distance; elsewhere the
same number again.
"""

import argparse
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from studies.store import Store
from vitutils import data, train
from vitutils.blobs import two_blobs
from vitutils.check import count_parameters
from vitutils.cnn import ConvStack, PixelMLP, SmallCNN, blur_pooling
from vitutils.data import Dataset
from vitutils.shift import accuracy_under_shift
from vitutils.vit import ViT, ViTConfig

SIDE = 32  # of every grey image, in pixels
OBJECT = 16  # side of a Fashion-MNIST image on it: moved by 8 px it is still whole
MLP_WIDTHS = (34, 34)
CNN_WIDTHS = (12, 24, 40, 64)
VIT = ViTConfig(
    img_size=SIDE,
    patch_size=8,
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    depth=4,
    num_heads=4,
    mlp_ratio=2.0,
    global_pool="avg",
)
BLOB_VIT = replace(VIT, img_size=(6, 36), patch_size=3, in_chans=3, num_classes=2, depth=2)
BLOB_WIDTH = 16
DILATIONS = {"depth 2": (1,) * 2, "depth 4": (1,) * 4, "depth 8": (1,) * 8, "depth 4, dilated": (1, 2, 4, 8)}
KINDS = ("disc", "square", "triangle", "cross")
SHIFTS = tuple(range(9))
MOVES = tuple(range(0, 17, 2))  # of the shapes on the left, in pixels; a patch is 8 wide, the CNN's strides make 16
DISTANCES = (2, 4, 6, 8, 12, 16, 20, 24)
RECIPE = train.Recipe(batch_size=64, weight_decay=0.05, warmup=0.1, clip_grad=1.0)
EPOCHS = {"sides": 8, "shifted": 8, "permuted": 8, "permuted shapes": 8, "blobs": 4}
IMAGES = {"sides": 4_000, "shifted": 4_000, "permuted": 4_000, "permuted shapes": 4_000, "blobs": 19_200}
TEST_IMAGES = {"sides": 2_000, "shifted": 1_500, "permuted": 1_500, "permuted shapes": 2_000, "blobs": 3_200}
NETS = {
    "sides": ("mlp", "cnn", "vit"),
    "shifted": ("mlp", "cnn", "vit", "cnn, blur pooling"),
    "permuted": ("mlp", "cnn", "vit"),
    "permuted shapes": ("mlp", "cnn", "vit"),
    "blobs": (*DILATIONS, "vit"),
}
RATES = {"blobs": (1e-3, 3e-3, 1e-2), "other": (1e-3, 3e-3, 1e-2, 3e-2)}
SEEDS = (0, 1, 2)
KEY = ("part", "task", "net", "lr", "seed")


def make_net(task: str, net: str, seed: int) -> torch.nn.Module:
    """A fresh net; the same seed gives the same weights."""
    torch.manual_seed(seed)
    K = {"sides": len(KINDS), "permuted shapes": len(KINDS), "blobs": 2}.get(task, 10)
    if task == "blobs":
        return ViT(BLOB_VIT) if net == "vit" else ConvStack(3, K, BLOB_WIDTH, DILATIONS[net])
    if net == "mlp":
        return PixelMLP(SIDE * SIDE, K, MLP_WIDTHS)
    if net == "vit":
        return ViT(replace(VIT, num_classes=K))
    model = SmallCNN(1, K, CNN_WIDTHS)
    return blur_pooling(model) if net == "cnn, blur pooling" else model


def in_memory(name: str, train_part: tuple, test_part: tuple, classes: tuple) -> Dataset:
    """A Dataset of two pairs (uint8 images, labels), with the training part's mean and standard deviation."""
    values = train_part[0].float() / 255
    mean, std = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    return Dataset(name, *train_part, *test_part, classes, mean, std, "studies/convolution.py")


def grey_shapes(n: int, seed: int, positions: str) -> tuple:
    """Grey drawn shapes of four kinds on plain ground, (n, 1, 32, 32), and their labels."""
    drawn = data.shapes(n, seed, SIDE, positions=positions, classes=KINDS, background="plain")
    return drawn.images.float().mean(dim=1, keepdim=True).round().byte(), drawn.labels


def on_canvas(images: torch.Tensor) -> torch.Tensor:
    """Shrink (or enlarge) images to 16 px and set them in the middle of 32 x 32 black pixels."""
    small = F.interpolate(images.float(), (OBJECT, OBJECT), mode="bilinear", antialias=True)
    margin = (SIDE - OBJECT) // 2
    return F.pad(small.round().clamp(0, 255), (margin,) * 4).byte()


def permute_pixels(images: torch.Tensor) -> torch.Tensor:
    """Reorder the pixels of every image by the one permutation that seed 0 draws."""
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    return images.flatten(2)[:, :, order].reshape(images.shape)


def make_data(task: str, part: str, seed: int) -> Dataset:
    """The images of a run. In the search, the test part is held-out data; in the main part, it is the test data."""
    n, m = IMAGES[task], TEST_IMAGES[task]
    change = permute_pixels if task.startswith("permuted") else (lambda images: images)
    if task in ("sides", "permuted shapes"):
        images, labels = grey_shapes(n, 0, "left")
        held, held_labels = grey_shapes(m, 1 if part == "search" else 2, "left")
        return in_memory(task, (change(images), labels), (change(held), held_labels), KINDS)
    if task == "blobs":
        images, labels, _ = two_blobs(n, DISTANCES, seed)
        held = two_blobs(m, DISTANCES, 1_001 if part == "search" else 1_000)
        return in_memory(task, (images, labels), held[:2], ("two colours", "one colour"))
    fashion = data.load("fashion_mnist")
    fashion = (fashion.hold_out(5_000) if part == "search" else fashion).take(train=n, test=m)
    return in_memory(
        task,
        (change(on_canvas(fashion.train_images)), fashion.train_labels),
        (change(on_canvas(fashion.test_images)), fashion.test_labels),
        fashion.classes,
    )


def measure(task: str, part: str, model: torch.nn.Module, dataset: Dataset) -> tuple[list[float], float]:
    """The run's accuracies (which ones depends on the task), and the share of the commonest answer."""
    how = {"mean": dataset.mean, "std": dataset.std}
    result = train.evaluate(model, dataset.test_images, dataset.test_labels, **how)
    answers = result.logits.argmax(dim=1)
    commonest = answers.bincount().max().item() / len(answers)
    if task == "sides" and part == "main":
        moved = (dataset.test_images.roll(move, dims=3) for move in MOVES)  # plain ground, nothing crosses the edge
        return [train.evaluate(model, images, dataset.test_labels, **how).accuracy for images in moved], commonest
    if task == "shifted" and part == "main":
        found = accuracy_under_shift(model, dataset.test_images, dataset.test_labels, SHIFTS, **how)
        return found.mean(dim=0).tolist(), commonest
    if task == "blobs":
        *_, distance = two_blobs(TEST_IMAGES[task], DISTANCES, 0)  # the distances take turns, whatever the seed
        correct = (answers == dataset.test_labels).double()
        return [correct[distance == d].mean().item() for d in DISTANCES], commonest
    return [result.accuracy], commonest


def best_rate(store: Store, task: str, net: str) -> float:
    """The peak rate with the highest held-out accuracy in the search, of equals the one with the lowest held-out loss.

    For blobs the loss alone counts. Waits while the other shard still searches.
    """
    expected = len(RATES.get(task, RATES["other"]))
    while True:
        rows = [row for row in store.rows() if (row["part"], row["task"], row["net"]) == ("search", task, net)]
        if len(rows) == expected:
            merits = [(0.0 if task == "blobs" else float(row["accuracy"]), -float(row["loss"])) for row in rows]
            return float(rows[merits.index(max(merits))]["lr"])
        print(f"waiting for the search of {task}, {net}: {len(rows)} of {expected} runs", flush=True)
        time.sleep(20)


def runs(store: Store):
    """Yield the key fields of every run, in order; a run of the main part is known once its search is over."""
    for task, nets in NETS.items():
        for net in nets:
            for lr in RATES.get(task, RATES["other"]):
                yield ({"part": "search", "task": task, "net": net, "lr": lr, "seed": 100},)
    for seed in SEEDS:
        for task, nets in NETS.items():
            for net in nets:
                yield ({"part": "main", "task": task, "net": net, "lr": best_rate(store, task, net), "seed": seed},)


def run(name: dict) -> dict:
    """Train one net and return its row."""
    part, task, net, seed = name["part"], name["task"], name["net"], name["seed"]
    dataset = make_data(task, part, seed)
    model = make_net(task, net, seed)
    recipe = replace(RECIPE, epochs=EPOCHS[task], lr=name["lr"], seed=seed)
    started = time.process_time()
    history = train.fit(model, dataset, recipe)
    seconds = time.process_time() - started
    accuracies, commonest = measure(task, part, model, dataset)
    return {
        **name,
        "parameters": count_parameters(model),
        "epochs": recipe.epochs,
        "images": len(dataset.train_labels),
        "accuracy": round(history.accuracy, 5),
        "loss": round(history.epochs[-1]["val_loss"], 6),
        "accuracies": " ".join(f"{value:.4f}" for value in accuracies),
        "train_loss": round(sum(history.losses[-50:]) / 50, 5),
        "share_of_commonest_answer": round(commonest, 4),
        "seconds": round(seconds, 1),
    }


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "side": SIDE,
        "object": OBJECT,
        "mlp_widths": MLP_WIDTHS,
        "cnn_widths": CNN_WIDTHS,
        "vit": repr(VIT),
        "blob_vit": repr(BLOB_VIT),
        "blob_width": BLOB_WIDTH,
        "dilations": DILATIONS,
        "kinds": KINDS,
        "shifts": SHIFTS,
        "moves": MOVES,
        "distances": DISTANCES,
        "recipe": RECIPE.numbers(),
        "epochs": EPOCHS,
        "images": IMAGES,
        "test_images": TEST_IMAGES,
        "nets": NETS,
        "rates": RATES,
        "seeds": SEEDS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th run, starting with the I-th")
    shard, shards = map(int, parser.parse_args().shard.split("/"))
    torch.set_num_threads(1)
    store = Store(__file__, KEY)
    for n, (name,) in enumerate(runs(store)):
        if n % shards != shard or store.has(name):
            continue
        row = run(name)
        store.append(row)
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    store.describe(configuration(), sum(float(row["seconds"]) for row in store.rows()))


if __name__ == "__main__":
    main()
