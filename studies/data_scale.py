"""Chapter 7's study: how much data each net needs, and what helps the one that needs more.

    python -m studies data_scale --scale gpu    more sizes and seeds, CIFAR-10, the same code; smoke: a few seconds

Data: Fashion-MNIST on 32 x 32 black pixels, and grey drawn shapes of eight kinds on textured ground, anew for each
seed. In the search, 5,000 held-out images decide (Fashion-MNIST: from its training part; they are left out of training
at every size but the full one). The test part is looked at once, at the end of a run.

A series is a net, where it starts, and an augmentation. Its groups, in the order they run:
    nets        MLP, CNN, ViT, ViT with a convolutional stem, of about equal size; on clothes, then on shapes
    start       ViT and CNN that first learned the most shapes, then clothes, in the same recipe
    augment     ViT and CNN with shifts beside flips, on clothes
    flops       CNN and MLP that cost about what the ViT costs, on clothes
    imagenet    a ViT-Tiny pre-trained on ImageNet, its input enlarged to 64 px; where its weights can be had. It sees
                a tenth of the images in training, and has half the search

Equal care: for every series a search over peak rate and weight decay at two sizes, seed 100, held-out images; each
other size takes the choice of the nearer of the two. The best is the highest accuracy, of equals the lowest loss.
Every net sees the same images, as often, in the same order, to the end of the same schedule: nothing is stopped early.
One thread a run; `seconds` are of processor time.
`accuracies` are those under shifts (vitutils.analysis.equivariance: mean over four directions), of SHIFTS px, on 2,000
test images.
`collapsed`: more than half of all answers are the same class. Such a run is kept, and told apart.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from studies import shared
from studies.harness import main
from studies.shared import IMAGENET, IMAGENET_SIDE, SIDE, best
from studies.shared import VIT_32 as VIT
from studies.store import NotYet, Store
from vitutils import data, timing, train
from vitutils.analysis.equivariance import accuracy_under_shift
from vitutils.data import Dataset
from vitutils.models import ConvStem, PixelMLP, SmallCNN, ViT, weights

STEM_VIT = replace(VIT, depth=3, mlp_ratio=2.5)  # one block less pays for the stem
CNN_WIDTHS = {"cnn": (12, 24, 40, 64), "cnn, equal FLOPs": (8, 12, 24, 64)}
MLP_WIDTHS = {"mlp": (34, 34), "mlp, equal FLOPs": (500, 210)}
FLIPS, FLIPS_AND_SHIFTS = "flips", "flips and shifts"
AUGMENT = {FLIPS: data.flip_shift(pad=0), FLIPS_AND_SHIFTS: data.flip_shift(pad=2)}
RECIPE = train.Recipe(batch_size=64, warmup=0.1, clip_grad=1.0)
WEIGHT_DECAYS = (0.05, 0.5)
RATES = {"scratch": (3e-3, 1e-2, 3e-2), "shapes": (1e-3, 3e-3, 1e-2), "imagenet": (3e-5, 1e-4, 3e-4)}
# Where the best of a search lay at the edge of the rates, one more rate was tried beyond it, for every net alike.
MORE_RATES = {("fashion_mnist", "small"): (1e-1,), ("shapes", "small"): (1e-3,), ("shapes", "large"): (1e-3,)}
SEARCH_SEED = 100
HELD_OUT = 5_000
SHIFTS = (0, 1, 2, 4)
SHIFTED_IMAGES = 2_000
SHAPES_TEST, SHAPES_HELD_OUT = 10_000, 5_000
KEY = ("scale", "part", "group", "data", "net", "start", "augment", "images", "lr", "weight_decay", "seed")
FIELDS = ("parameters", "mflops", "passes", "steps", "accuracy", "loss", "train_accuracy", "train_loss", "accuracies")
FIELDS += ("share_of_commonest_answer", "collapsed")


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale. passes: how often each training image is seen, by the number of them."""

    passes: dict[int, int]
    sizes: dict[str, tuple[int, ...]]  # by data set; the first three or so are the small end
    fewer: tuple[int, ...]  # for start and augment
    imagenet: tuple[int, ...]
    flops: tuple[int, ...]
    search: tuple[int, int]
    seeds: tuple[int, ...]
    small_end: int  # up to this many images, more_seeds as well
    more_seeds: tuple[int, ...]
    imagenet_share: float  # of the passes
    looked_at: int | None = None  # test or held-out images, None for all


SCALES = {
    "smoke": Scale(
        passes={50: 2, 100: 2, 200: 1},
        sizes={"fashion_mnist": (50, 100), "shapes": (50, 200)},
        fewer=(50,), imagenet=(50,), flops=(100,), search=(50, 100), seeds=(0,), small_end=50, more_seeds=(1,),
        imagenet_share=0.5, looked_at=200,
    ),
    "cpu": Scale(
        passes={100: 300, 300: 150, 1_000: 60, 3_000: 36, 10_000: 18, 60_000: 8, 100_000: 4, 300_000: 2},
        sizes={
            "fashion_mnist": (100, 300, 1_000, 3_000, 10_000, 60_000),
            "shapes": (100, 1_000, 10_000, 100_000, 300_000),
        },
        fewer=(100, 1_000, 10_000), imagenet=(100, 1_000), flops=(1_000, 10_000, 60_000), search=(1_000, 10_000),
        seeds=(0, 1, 2), small_end=1_000, more_seeds=(3, 4), imagenet_share=0.1,
    ),
    "gpu": Scale(
        passes={100: 600, 300: 300, 1_000: 150, 3_000: 80, 10_000: 40, 30_000: 24, 50_000: 20, 60_000: 20}
        | {100_000: 12, 300_000: 6, 1_000_000: 3},
        sizes={
            "fashion_mnist": (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000),
            "cifar10": (100, 300, 1_000, 3_000, 10_000, 30_000, 50_000),
            "shapes": (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
        },
        fewer=(100, 1_000, 10_000), imagenet=(100, 1_000, 10_000), flops=(100, 1_000, 10_000, 60_000),
        search=(1_000, 10_000), seeds=(0, 1, 2, 3, 4), small_end=1_000, more_seeds=(5, 6, 7, 8, 9), imagenet_share=1.0,
    ),
}
NETS = ("mlp", "cnn", "vit", "vit, conv stem")


@dataclass(frozen=True)
class Series:
    """One curve: a net from one start with one augmentation, on one data set, at some sizes."""

    group: str
    data: str
    net: str
    start: str
    augment: str
    sizes: tuple[int, ...]

    def searched(self, scale: Scale) -> tuple[int, ...]:
        """The sizes at which it is searched: two, or the smaller alone for ImageNet's net."""
        return scale.search[:1] if self.start == "imagenet" else scale.search

    def rates(self, size: str) -> list[tuple[float, float]]:
        """Every (lr, weight_decay) of its search at the "small" or the "large" of the two sizes."""
        decays = WEIGHT_DECAYS[:1] if self.start == "imagenet" else WEIGHT_DECAYS
        more = MORE_RATES.get((self.data, size), ()) if self.start == "scratch" else ()
        return [(lr, decay) for decay in decays for lr in RATES[self.start] + more]


@lru_cache
def can_be_had(name: str) -> bool:
    """Whether the images are at hand or can be fetched; the study does without CIFAR-10, and says so."""
    if name == "cifar10":
        try:
            data.load(name)
        except data.DataError as error:
            print(f"left out: {error}", flush=True)
            return False
    return True


def all_series(scale: Scale) -> list[Series]:
    """The curves of a scale, in the order they run."""
    found = []
    for which, sizes in scale.sizes.items():
        if not can_be_had(which):
            continue
        found += [Series("nets", which, net, "scratch", FLIPS, sizes) for net in NETS]
    for net in ("vit", "cnn"):
        found.append(Series("start", "fashion_mnist", net, "shapes", FLIPS, scale.fewer))
    for net in ("vit", "cnn"):
        found.append(Series("augment", "fashion_mnist", net, "scratch", FLIPS_AND_SHIFTS, scale.fewer))
    for net in ("cnn, equal FLOPs", "mlp, equal FLOPs"):
        found.append(Series("flops", "fashion_mnist", net, "scratch", FLIPS, scale.flops))
    found.append(Series("imagenet", "fashion_mnist", "vit-tiny", "imagenet", FLIPS, scale.imagenet))
    return found


def make_net(net: str, in_chans: int, num_classes: int, seed: int) -> nn.Module:
    """A fresh net; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if net in CNN_WIDTHS:
        return SmallCNN(in_chans, num_classes, CNN_WIDTHS[net]).to(memory_format=torch.channels_last)
    if net in MLP_WIDTHS:
        return PixelMLP(in_chans * SIDE**2, num_classes, MLP_WIDTHS[net])
    if net == "vit-tiny":
        model = weights.load_pretrained(IMAGENET).model
        model.head = nn.Linear(model.config.embed_dim, num_classes)
        nn.init.zeros_(model.head.weight)
        return shared.Enlarged(model, IMAGENET_SIDE)
    sizes = {"in_chans": in_chans, "num_classes": num_classes}
    return ViT(replace(STEM_VIT, **sizes), ConvStem) if net == "vit, conv stem" else ViT(replace(VIT, **sizes))


@lru_cache(maxsize=2)
def grey_shapes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey drawn shapes, uint8 (count, 1, 32, 32), and their labels."""
    images, labels = [], []
    for start in range(0, count, 20_000):
        drawn = data.shapes(min(20_000, count - start), seed, SIDE, start=start)
        images.append(drawn.images.float().mean(dim=1, keepdim=True).round().byte())
        labels.append(drawn.labels)
    return torch.cat(images), torch.cat(labels)


def make_data(name: str, images: int, part: str, seed: int) -> Dataset:
    """Training images of a run; its other part is held-out images in the search, test images in the main part."""
    if name == "shapes":
        pictures, labels = grey_shapes(images, seed)
        held = (SHAPES_HELD_OUT, 90_001) if part == "search" else (SHAPES_TEST, 90_002)
        mean, std = shared.statistics(pictures)
        return Dataset(name, pictures, labels, *grey_shapes(*held), data.SHAPES, mean, std, "studies/data_scale.py")
    whole = shared.fashion_or_cifar(name)
    chosen = whole.hold_out(HELD_OUT)
    if part == "search":
        return chosen.take(train=images, seed=seed)
    if images == len(whole.train_labels):
        return whole
    train_part = chosen.take(train=images, seed=seed)
    return replace(train_part, test_images=whole.test_images, test_labels=whole.test_labels)


def chosen(store: Store, series: Series, images: int) -> tuple[float, float]:
    """The (lr, weight_decay) that the nearer search found best. Raises NotYet while that search is not over."""
    scale = SCALES[store.scale]
    near = min(series.searched(scale), key=lambda size: abs(math.log(size / images)))
    count = len(series.rates("small" if near == scale.search[0] else "large"))
    wanted = {field: getattr(series, field) for field in ("group", "data", "net", "start", "augment")}
    row = best(store, count, shared.by_accuracy_then_loss, scale=store.scale, part="search", images=near, **wanted)
    return float(row["lr"]), float(row["weight_decay"])


def plan(scale: Scale, imagenet: bool) -> Iterator[tuple]:
    """Yield (series, part, images, seed, its (lr, weight_decay) or None where the search decides) in order."""
    blocks = {}
    for series in all_series(scale):
        blocks.setdefault((series.group, series.data), []).append(series)
    last = [block for (group, _), block in blocks.items() if group == "imagenet" and imagenet]
    first = [block for (group, _), block in blocks.items() if group != "imagenet"]
    for block in first:
        yield from plan_of(block, scale)
    for block in first:
        for seed in scale.more_seeds:
            for series in block:
                for images in series.sizes:
                    if images <= scale.small_end:
                        yield series, "main", images, seed, None
    for block in last:
        yield from plan_of(block, scale)


def plan_of(block: list[Series], scale: Scale) -> Iterator[tuple]:
    """The searches of a few series, then their runs, the largest first."""
    for images, size in zip(scale.search, ("small", "large"), strict=True):
        for series in block:
            if images in series.searched(scale):
                for way in series.rates(size):
                    yield series, "search", images, SEARCH_SEED, way
    for seed in scale.seeds:
        for images in sorted({images for series in block for images in series.sizes}, reverse=True):
            for series in block:
                if images in series.sizes:
                    yield series, "main", images, seed, None


def runs(store: Store) -> Iterator[dict | None]:
    """Yield the key fields of every run of a scale, in order; None for one whose search is not over."""
    held = any(row["start"] == "imagenet" for row in store.rows())
    for series, part, images, seed, way in plan(SCALES[store.scale], held or shared.has_imagenet()):
        about = (series.group, series.data, series.net, series.start, series.augment, images)
        try:
            way = way or chosen(store, series, images)
        except NotYet:
            yield None
        else:
            yield dict(zip(KEY, (store.scale, part, *about, *way, seed), strict=True))


def pretraining(store: Store, name: dict) -> dict:
    """What tells the run whose weights this one starts from: the same net on the most shapes."""
    scale = SCALES[store.scale]
    first = {"scale": store.scale, "part": "main", "data": "shapes", "net": name["net"]}
    return first | {"images": max(scale.sizes["shapes"]), "seed": scale.seeds[name["seed"] % len(scale.seeds)]}


def weights_file(store: Store, name: dict) -> Path:
    """Where the weights of such a run are kept."""
    return store.own / f"{store.scale}_{name['net']}_{name['seed']}.pt"


def load_pretrained(store: Store, model: nn.Module, name: dict) -> None:
    """Give a model all weights but the head's of a net that learned shapes; trained again if its file is gone."""
    first = pretraining(store, name)
    file = weights_file(store, first)
    if not file.exists():
        trained(store, next(name for name in runs(store) if name and first.items() <= name.items()))
    saved = torch.load(file, weights_only=True)
    body = {key: value for key, value in saved.items() if not key.startswith("head.")}
    missing, unexpected = model.load_state_dict(body, strict=False)
    if unexpected or set(missing) != {"head.weight", "head.bias"}:
        raise ValueError(f"{file} is not of this net: {missing} missing, {unexpected} too many")


def device_of(store: Store) -> torch.device:
    """Where a scale runs."""
    return torch.device("cuda" if store.scale == "gpu" and torch.cuda.is_available() else "cpu")


def trained(store: Store, name: dict) -> tuple[nn.Module, Dataset, train.History, float]:
    """Train the net of a run: it, its images, its history, seconds of processor time."""
    dataset = make_data(name["data"], name["images"], name["part"], name["seed"])
    passes = SCALES[store.scale].passes[name["images"]]
    if name["start"] == "imagenet":
        dataset = replace(dataset, mean=torch.tensor([0.5]), std=torch.tensor([0.5]))
        passes = max(1, round(passes * SCALES[store.scale].imagenet_share))
    model = make_net(name["net"], dataset.image_shape[0], dataset.num_classes, name["seed"])
    if name["start"] == "shapes":
        load_pretrained(store, model, name)
    augment, seed = AUGMENT[name["augment"]], name["seed"]
    how = {"epochs": passes, "lr": name["lr"], "weight_decay": name["weight_decay"], "augment": augment, "seed": seed}
    started = time.process_time()
    history = train.fit(model, shared.unwatched(dataset), replace(RECIPE, **how), device=device_of(store))
    seconds = time.process_time() - started
    if pretraining(store, name).items() <= name.items():
        train.save_checkpoint(weights_file(store, name), **model.state_dict())
    return model, dataset, history, seconds


def measured(model: nn.Module, dataset: Dataset, history: train.History, shifted: bool, device="cpu") -> dict:
    """What a row says of a trained net."""
    found = shared.told(history, last=50) | shared.judged(model, dataset, device=device)
    found |= shared.fitted(model, dataset, device=device)
    moved = [math.nan]
    if shifted:
        few = dataset.take(test=min(SHIFTED_IMAGES, len(dataset.test_labels)))
        how = {"mean": dataset.mean, "std": dataset.std, "device": device}
        moved = accuracy_under_shift(model, few.test_images, few.test_labels, SHIFTS, **how).mean(dim=0).tolist()
    found["accuracies"] = " ".join(f"{value:.4f}" for value in moved)
    image = torch.zeros(1, *dataset.image_shape, device=device)
    found["mflops"] = round(timing.count_flops(model, image) / 1e6, 3)
    return {field: found[field] for field in FIELDS}


def run(store: Store, name: dict) -> dict:
    """Do one run and return its row. Raises NotYet where what it starts from is not trained."""
    if name["start"] == "shapes":
        best(store, 1, **pretraining(store, name))
    model, dataset, history, seconds = trained(store, name)
    dataset = dataset.take(test=SCALES[store.scale].looked_at)
    shifted = name["part"] == "main" and name["data"] != "shapes" and name["start"] != "imagenet"
    return name | measured(model, dataset, history, shifted, device_of(store)) | {"seconds": round(seconds, 1)}


def replay(store: Store) -> dict:
    """A few steps of three nets on digits, and the look of two drawn shapes."""
    digits, rows = shared.few_digits(SIDE), {}
    for net in ("vit", "vit, conv stem", "cnn"):
        model = make_net(net, 1, 10, 0)
        recipe = replace(RECIPE, epochs=2, batch_size=16, lr=1e-2, augment=AUGMENT[FLIPS_AND_SHIFTS])
        rows[net] = measured(model, digits, train.fit(model, shared.unwatched(digits), recipe), shifted=True)
    pixels = " ".join(f"{value:.3f}" for value in grey_shapes(2, 0)[0].double().mean(dim=(1, 2, 3)))
    return shared.side_by_side(rows) | {"mean pixels of shapes": pixels}


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "SIDE VIT STEM_VIT CNN_WIDTHS MLP_WIDTHS IMAGENET IMAGENET_SIDE RECIPE RATES WEIGHT_DECAYS HELD_OUT SHIFTS"
    more = {" ".join(which): rates for which, rates in MORE_RATES.items()}
    return {**shared.constants(globals(), *names.split(), "SCALES"), "more_rates": more}


if __name__ == "__main__":
    main("data_scale")
