"""Chapter 1's study: what nets of about equal size make of moved images, permuted pixels, and far pixels.

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

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from studies.harness import main
from studies.shared import VIT_32 as VIT
from studies.shared import best, by_accuracy_then_loss, by_loss, constants, grid, judged, side_by_side, statistics, told
from studies.store import NotYet, Store
from vitutils import data, train
from vitutils.analysis.equivariance import accuracy_under_shift
from vitutils.data import Dataset
from vitutils.data.synthetic import two_blobs
from vitutils.models import ConvStack, PixelMLP, SmallCNN, ViT, blur_pooling

SIDE = 32  # of every grey image, in pixels
OBJECT = 16  # side of a Fashion-MNIST image on it: moved by 8 px it is still whole
MLP_WIDTHS = (34, 34)
CNN_WIDTHS = (12, 24, 40, 64)
BLOB_VIT = replace(VIT, img_size=(6, 36), patch_size=3, in_chans=3, num_classes=2, depth=2)
LARGER = 35  # times what positions are drawn with: a standard deviation of 0.7 instead of 0.02, as sinusoids have
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
    "sides": ("mlp", "cnn", "vit", "vit, large positions"),
    "shifted": ("mlp", "cnn", "vit", "cnn, blur pooling"),
    "permuted": ("mlp", "cnn", "vit"),
    "permuted shapes": ("mlp", "cnn", "vit"),
    "blobs": (*DILATIONS, "vit"),
}
RATES = {"blobs": (1e-3, 3e-3, 1e-2), "other": (1e-3, 3e-3, 1e-2, 3e-2)}
SEEDS = (0, 1, 2)
KEY = ("part", "task", "net", "lr", "seed")
FIELDS = ("parameters", "epochs", "images", "accuracy", "loss", "accuracies", "train_loss")
FIELDS += ("share_of_commonest_answer", "seconds")


def make_net(task: str, net: str, seed: int) -> torch.nn.Module:
    """A fresh net; the same seed gives the same weights."""
    torch.manual_seed(seed)
    K = {"sides": len(KINDS), "permuted shapes": len(KINDS), "blobs": 2}.get(task, 10)
    if task == "blobs":
        return ViT(BLOB_VIT) if net == "vit" else ConvStack(3, K, BLOB_WIDTH, DILATIONS[net])
    if net == "mlp":
        return PixelMLP(SIDE * SIDE, K, MLP_WIDTHS)
    if net.startswith("vit"):
        model = ViT(replace(VIT, num_classes=K))
        model.pos_embed.data *= LARGER if net == "vit, large positions" else 1
        return model
    model = SmallCNN(1, K, CNN_WIDTHS)
    return blur_pooling(model) if net == "cnn, blur pooling" else model


def in_memory(name: str, train_part: tuple, test_part: tuple, classes: tuple) -> Dataset:
    """A Dataset of two pairs (uint8 images, labels), with the training part's mean and standard deviation."""
    return Dataset(name, *train_part, *test_part, classes, *statistics(train_part[0]), "studies/convolution.py")


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


def make_data(task: str, part: str, seed: int, n: int, m: int) -> Dataset:
    """n images of a run, and m: in the search, held-out data; in the main part, test data."""
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


def measure(task: str, part: str, model: torch.nn.Module, dataset: Dataset, logits: torch.Tensor) -> list[float]:
    """The run's accuracies; which ones depends on the task. logits: for the test images as they are."""
    how = {"mean": dataset.mean, "std": dataset.std}
    right = (logits.argmax(dim=1) == dataset.test_labels).double()
    if task == "sides" and part == "main":
        moved = (dataset.test_images.roll(move, dims=3) for move in MOVES)  # plain ground, nothing crosses the edge
        return [train.evaluate(model, images, dataset.test_labels, **how).accuracy for images in moved]
    if task == "shifted" and part == "main":
        return accuracy_under_shift(model, dataset.test_images, dataset.test_labels, SHIFTS, **how).mean(dim=0).tolist()
    if task == "blobs":
        *_, distance = two_blobs(len(dataset.test_labels), DISTANCES, 0)  # they take turns, whatever the seed
        return [right[distance == d].mean().item() for d in DISTANCES]
    return [right.mean().item()]


def best_rate(store: Store, task: str, net: str) -> float:
    """The peak rate with the highest held-out accuracy in the search; if several tie, the one with the lowest loss.

    For blobs the loss alone counts.
    """
    merit, count = by_loss if task == "blobs" else by_accuracy_then_loss, len(RATES.get(task, RATES["other"]))
    return float(best(store, count, merit, part="search", task=task, net=net)["lr"])


def runs(store: Store) -> Iterator[dict | None]:
    """Yield the key fields of every run, in order; None for one of the main part whose search is not over."""
    for task, nets in NETS.items():
        yield from grid(KEY, part="search", task=task, net=nets, lr=RATES.get(task, RATES["other"]), seed=100)
    for seed in SEEDS:
        for task, net in ((task, net) for task, nets in NETS.items() for net in nets):
            try:
                yield {"part": "main", "task": task, "net": net, "lr": best_rate(store, task, net), "seed": seed}
            except NotYet:
                yield None


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    part, task, net, lr, seed = (name[field] for field in KEY)
    dataset = make_data(task, part, seed, IMAGES[task], TEST_IMAGES[task])
    return name | trained(part, task, net, dataset, replace(RECIPE, epochs=EPOCHS[task], lr=lr, seed=seed))


def trained(part: str, task: str, net: str, dataset: Dataset, recipe: train.Recipe) -> dict:
    """Train a net: what a row says of it."""
    model = make_net(task, net, recipe.seed)
    started = time.process_time()
    history = train.fit(model, dataset, recipe)
    seconds = time.process_time() - started
    found = told(history, last=50) | judged(model, dataset)
    found |= {"loss": round(history.epochs[-1]["val_loss"], 6), "seconds": round(seconds, 1)}
    accuracies = measure(task, part, model, dataset, found["logits"])
    found["accuracies"] = " ".join(f"{value:.4f}" for value in accuracies)
    return {field: found[field] for field in FIELDS}


def replay(store: Store) -> dict:
    """A few steps of the ViT and the CNN with shapes that move, and of a dilated stack with blobs."""
    recipe, rows = replace(RECIPE, epochs=2, batch_size=16, lr=3e-3), {}
    for task, net in (("sides", "vit"), ("sides", "cnn"), ("blobs", "depth 4, dilated")):
        rows[net] = trained("main", task, net, make_data(task, "main", 0, 320, 96), recipe)
    return side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "SIDE OBJECT MLP_WIDTHS CNN_WIDTHS VIT LARGER BLOB_VIT BLOB_WIDTH DILATIONS KINDS SHIFTS MOVES DISTANCES"
    return constants(globals(), *names.split(), "RECIPE", "EPOCHS", "IMAGES", "TEST_IMAGES", "NETS", "RATES", "SEEDS")


if __name__ == "__main__":
    main("convolution")
