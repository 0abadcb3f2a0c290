"""Chapter 7's study: how much data each net needs, and what helps the one that needs more.

    python -m studies.data_scale            runs everything, appends to results/data_scale.csv
    python -m studies.data_scale --resume   goes on with what is missing; start it once a core, all at the same time
    python -m studies.data_scale --scale gpu    more sizes and seeds, CIFAR-10, the same code; smoke: a few seconds

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
`accuracies` are those under shifts (vitutils.shift: mean over four directions), of SHIFTS px, on 2,000 test images.
`collapsed`: more than half of all answers are the same class. Such a run is kept, and told apart.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from studies.store import RESULTS, Store, script_hash
from vitutils import data, train, weights
from vitutils.check import count_parameters
from vitutils.cnn import ConvStem, PixelMLP, SmallCNN
from vitutils.data import Dataset
from vitutils.shift import accuracy_under_shift
from vitutils.vit import ViT, ViTConfig

SIDE = 32
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
STEM_VIT = replace(VIT, depth=3, mlp_ratio=2.5)  # one block less pays for the stem
CNN_WIDTHS = {"cnn": (12, 24, 40, 64), "cnn, equal FLOPs": (8, 12, 24, 64)}
MLP_WIDTHS = {"mlp": (34, 34), "mlp, equal FLOPs": (500, 210)}
IMAGENET = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
IMAGENET_SIDE = 64
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
        fewer=(50,),
        imagenet=(50,),
        flops=(100,),
        search=(50, 100),
        seeds=(0,),
        small_end=50,
        more_seeds=(1,),
        imagenet_share=0.5,
        looked_at=200,
    ),
    "cpu": Scale(
        passes={100: 300, 300: 150, 1_000: 60, 3_000: 36, 10_000: 18, 60_000: 8, 100_000: 4, 300_000: 2},
        sizes={
            "fashion_mnist": (100, 300, 1_000, 3_000, 10_000, 60_000),
            "shapes": (100, 1_000, 10_000, 100_000, 300_000),
        },
        fewer=(100, 1_000, 10_000),
        imagenet=(100, 1_000),
        flops=(1_000, 10_000, 60_000),
        search=(1_000, 10_000),
        seeds=(0, 1, 2),
        small_end=1_000,
        more_seeds=(3, 4),
        imagenet_share=0.1,
    ),
    "gpu": Scale(
        passes={
            100: 600,
            300: 300,
            1_000: 150,
            3_000: 80,
            10_000: 40,
            30_000: 24,
            50_000: 20,
            60_000: 20,
            100_000: 12,
            300_000: 6,
            1_000_000: 3,
        },
        sizes={
            "fashion_mnist": (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000),
            "cifar10": (100, 300, 1_000, 3_000, 10_000, 30_000, 50_000),
            "shapes": (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
        },
        fewer=(100, 1_000, 10_000),
        imagenet=(100, 1_000, 10_000),
        flops=(100, 1_000, 10_000, 60_000),
        search=(1_000, 10_000),
        seeds=(0, 1, 2, 3, 4),
        small_end=1_000,
        more_seeds=(5, 6, 7, 8, 9),
        imagenet_share=1.0,
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


class Enlarged(nn.Module):
    """A net for larger colour images, fed with small grey ones: (B, 1, H, W) -> logits."""

    def __init__(self, model: nn.Module, side: int):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        larger = F.interpolate(images, (self.side, self.side), mode="bilinear")
        return self.model(larger.expand(-1, 3, -1, -1) if images.shape[1] == 1 else larger)


def make_net(net: str, in_chans: int, num_classes: int, seed: int) -> nn.Module:
    """A fresh net; the same seed gives the same weights."""
    torch.manual_seed(seed)
    if net in CNN_WIDTHS:
        return SmallCNN(in_chans, num_classes, CNN_WIDTHS[net]).to(memory_format=torch.channels_last)
    if net in MLP_WIDTHS:
        return PixelMLP(in_chans * SIDE**2, num_classes, MLP_WIDTHS[net])
    if net == "vit-tiny":
        model = weights.load(IMAGENET).model
        model.head = nn.Linear(model.config.embed_dim, num_classes)
        nn.init.zeros_(model.head.weight)
        return Enlarged(model, IMAGENET_SIDE)
    sizes = {"in_chans": in_chans, "num_classes": num_classes}
    return ViT(replace(STEM_VIT, **sizes), ConvStem) if net == "vit, conv stem" else ViT(replace(VIT, **sizes))


@lru_cache(maxsize=1)
def fashion_or_cifar(name: str) -> Dataset:
    """A named set on 32 x 32 pixels, black all round where it is smaller."""
    whole = data.load(name)
    margin = (SIDE - whole.image_shape[-1]) // 2
    padded = {part: F.pad(getattr(whole, part), (margin,) * 4) for part in ("train_images", "test_images")}
    mean, std = statistics(padded["train_images"])
    return replace(whole, **padded, mean=mean, std=std)


def statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation a channel, of the first 60,000 images scaled to 0..1."""
    values = images[:60_000].float() / 255
    return values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))


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
        mean, std = statistics(pictures)
        return Dataset(name, pictures, labels, *grey_shapes(*held), data.SHAPES, mean, std, "studies/data_scale.py")
    whole = fashion_or_cifar(name)
    chosen = whole.hold_out(HELD_OUT)
    if part == "search":
        return chosen.take(train=images, seed=seed)
    if images == len(whole.train_labels):
        return whole
    train_part = chosen.take(train=images, seed=seed)
    return replace(train_part, test_images=whole.test_images, test_labels=whole.test_labels)


class Study:
    """The runs of one scale: which there are, which come next, and how one is done."""

    def __init__(self, store: Store, scale: str):
        self.store, self.name, self.scale = store, scale, SCALES[scale]
        self.device = torch.device("cuda" if scale == "gpu" and torch.cuda.is_available() else "cpu")

    def chosen(self, series: Series, images: int, rows: list[dict]) -> tuple[float, float] | None:
        """The (lr, weight_decay) that the nearer search found best; None while that search is not over."""
        near = min(self.searched(series), key=lambda size: abs(math.log(size / images)))
        found = [
            row
            for row in rows
            if (row["scale"], row["part"], row["images"]) == (self.name, "search", str(near))
            and (row["group"], row["data"], row["net"], row["start"], row["augment"])
            == (series.group, series.data, series.net, series.start, series.augment)
        ]
        if len(found) < len(series.rates("small" if near == self.scale.search[0] else "large")):
            return None
        best = max(found, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
        return float(best["lr"]), float(best["weight_decay"])

    def searched(self, series: Series) -> tuple[int, ...]:
        """The sizes at which a series is searched: two, or the smaller alone for ImageNet's net."""
        return self.scale.search[:1] if series.start == "imagenet" else self.scale.search

    def has_imagenet(self) -> bool:
        """Whether the weights of the ImageNet net can be had."""
        try:
            weights.find_file(IMAGENET, repo=f"timm/{IMAGENET}")
        except FileNotFoundError:
            return False
        return True

    def plan(self, imagenet: bool):
        """Yield (series, part, images, seed, lr, weight_decay) in order; None for the last two: the search decides."""
        whole = [series for series in all_series(self.scale) if imagenet or series.start != "imagenet"]
        blocks = {}
        for series in whole:
            blocks.setdefault((series.group, series.data), []).append(series)
        last = [block for (group, _), block in blocks.items() if group == "imagenet"]
        first = [block for (group, _), block in blocks.items() if group != "imagenet"]
        for block in first:
            yield from self.plan_of(block)
        for block in first:
            for seed in self.scale.more_seeds:
                for series in block:
                    for images in series.sizes:
                        if images <= self.scale.small_end:
                            yield series, "main", images, seed, None, None
        for block in last:
            yield from self.plan_of(block)

    def plan_of(self, block: list[Series]):
        """The searches of a few series, then their runs, the largest first."""
        for images, size in zip(self.scale.search, ("small", "large"), strict=True):
            for series in block:
                if images in self.searched(series):
                    for lr, decay in series.rates(size):
                        yield series, "search", images, SEARCH_SEED, lr, decay
        for seed in self.scale.seeds:
            for images in sorted({images for series in block for images in series.sizes}, reverse=True):
                for series in block:
                    if images in series.sizes:
                        yield series, "main", images, seed, None, None

    def resolved(self, imagenet: bool) -> list[dict]:
        """The key fields of every run that can be named by now."""
        rows, found = self.store.rows(), []
        for series, part, images, seed, lr, decay in self.plan(imagenet):
            if lr is None:
                best = self.chosen(series, images, rows)
                if best is None:
                    continue
                lr, decay = best
            name = {
                "scale": self.name,
                "part": part,
                "group": series.group,
                "data": series.data,
                "net": series.net,
                "start": series.start,
                "augment": series.augment,
                "images": images,
                "lr": lr,
                "weight_decay": decay,
                "seed": seed,
            }
            found.append(name)
        return found

    def pretraining(self, name: dict) -> dict:
        """What tells the run whose weights this one starts from: the same net on the most shapes."""
        seeds = self.scale.seeds
        first = {"scale": self.name, "part": "main", "data": "shapes", "net": name["net"]}
        return first | {"images": max(self.scale.sizes["shapes"]), "seed": seeds[name["seed"] % len(seeds)]}

    def weights_file(self, name: dict) -> Path:
        """Where the weights of such a run are kept."""
        return self.store.folder / f".{self.store.script.stem}" / f"{self.name}_{name['net']}_{name['seed']}.pt"

    def ready(self, name: dict) -> bool:
        """Whether what the run starts from is there: no pre-training is wanted, or it has ended."""
        wanted = self.pretraining(name).items()
        return name["start"] != "shapes" or any(
            all(row[field] == str(value) for field, value in wanted) for row in self.store.rows()
        )

    def load_pretrained(self, model: nn.Module, name: dict) -> None:
        """Give a model all weights but the head's of a net that learned shapes; trained again if its file is gone."""
        first = self.pretraining(name)
        if not self.weights_file(first).exists():
            self.train(next(name for name in self.resolved(imagenet=False) if first.items() <= name.items()))
        saved = torch.load(self.weights_file(first), weights_only=True)
        body = {key: value for key, value in saved.items() if not key.startswith("head.")}
        missing, unexpected = model.load_state_dict(body, strict=False)
        if unexpected or set(missing) != {"head.weight", "head.bias"}:
            raise ValueError(f"{self.weights_file(first)} is not of this net: {missing} missing, {unexpected} too many")

    def train(self, name: dict) -> tuple[nn.Module, Dataset, train.History, float]:
        """Train the net of a run: it, its images, its history, seconds of processor time."""
        dataset = make_data(name["data"], name["images"], name["part"], name["seed"])
        passes = self.scale.passes[name["images"]]
        if name["start"] == "imagenet":
            dataset = replace(dataset, mean=torch.tensor([0.5]), std=torch.tensor([0.5]))
            passes = max(1, round(passes * self.scale.imagenet_share))
        model = make_net(name["net"], dataset.image_shape[0], dataset.num_classes, name["seed"])
        if name["start"] == "shapes":
            self.load_pretrained(model, name)
        recipe = replace(
            RECIPE,
            epochs=passes,
            lr=name["lr"],
            weight_decay=name["weight_decay"],
            augment=AUGMENT[name["augment"]],
            seed=name["seed"],
        )
        # `fit` looks at the other part after each pass: here at 100 training images, as nothing is chosen from it
        watched = replace(dataset, test_images=dataset.train_images[:100], test_labels=dataset.train_labels[:100])
        started = time.process_time()
        history = train.fit(model, watched, recipe, device=self.device)
        seconds = time.process_time() - started
        if self.pretraining(name).items() <= name.items():
            train.save_checkpoint(self.weights_file(name), **model.state_dict())
        return model, dataset, history, seconds

    def run(self, name: dict) -> dict:
        """Do one run and return its row."""
        model, dataset, history, seconds = self.train(name)
        dataset = dataset.take(test=self.scale.looked_at)
        how = {"mean": dataset.mean, "std": dataset.std, "device": self.device}
        result = train.evaluate(model, dataset.test_images, dataset.test_labels, **how)
        fitted = train.evaluate(model, dataset.train_images[:1_000], dataset.train_labels[:1_000], **how)
        commonest = result.logits.argmax(dim=1).bincount().max().item() / len(result.logits)
        moved = [math.nan]
        if name["part"] == "main" and name["data"] != "shapes" and name["start"] != "imagenet":
            few = dataset.take(test=min(SHIFTED_IMAGES, len(dataset.test_labels)))
            moved = accuracy_under_shift(model, few.test_images, few.test_labels, SHIFTS, **how).mean(dim=0).tolist()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.zeros(1, *dataset.image_shape, device=self.device))
        last = history.losses[-50:]
        return {
            **name,
            "parameters": count_parameters(model),
            "mflops": round(counter.get_total_flops() / 1e6, 3),
            "passes": len(history.epochs),
            "steps": len(history.losses),
            "accuracy": round(result.accuracy, 5),
            "loss": round(result.loss, 5),
            "train_accuracy": round(fitted.accuracy, 5),
            "train_loss": round(sum(last) / len(last), 5),
            "accuracies": " ".join(f"{value:.4f}" for value in moved),
            "share_of_commonest_answer": round(commonest, 4),
            "collapsed": int(commonest > 0.5),
            "seconds": round(seconds, 1),
        }


def runs(store: Store, scale: str = "cpu"):
    """Yield the key fields of every run of a scale; those of ImageNet's net where the store holds any of them."""
    held = any(row["start"] == "imagenet" for row in store.rows())
    for name in Study(store, scale).resolved(imagenet=held):
        yield (name,)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    return {
        "side": SIDE,
        "vit": repr(VIT),
        "stem_vit": repr(STEM_VIT),
        "cnn_widths": CNN_WIDTHS,
        "mlp_widths": MLP_WIDTHS,
        "imagenet": IMAGENET,
        "imagenet_side": IMAGENET_SIDE,
        "recipe": RECIPE.numbers(),
        "rates": RATES,
        "more_rates": {" ".join(which): rates for which, rates in MORE_RATES.items()},
        "weight_decays": WEIGHT_DECAYS,
        "held_out": HELD_OUT,
        "shifts": SHIFTS,
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
    expected = len(list(study.plan(imagenet)))
    while True:
        done = {tuple(row[field] for field in KEY) for row in store.rows()}
        named = study.resolved(imagenet)
        missing = [name for name in named if tuple(str(name[field]) for field in KEY) not in done]
        if not missing and len(named) == expected:
            break
        for name in missing:
            if not study.ready(name):
                continue
            with store.claimed(name) as mine:
                if not mine or store.has(name):
                    continue
                row = study.run(name)
                store.append(row)
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
                break
        else:
            time.sleep(2)  # what is left is in the hands of another process
    store.describe(configuration(), sum(float(row["seconds"]) for row in store.rows()))


if __name__ == "__main__":
    main()
