"""Chapter 15's study: what each part of a fine-tuning recipe is worth on a hundred photos.

ImageNet's ViT-Tiny at 112 pixels, 100 photos to learn from, drawn three times. Two sets: CIFAR-10 (10 photos a class,
enlarged from 32 pixels; it is no part of what the network was pre-trained on) and ants and bees (50 photos a class;
both are classes of ImageNet, so pre-training may have shown these very photos).

Arms, each with one thing more than the one before:
    probe         logistic regression on frozen features of length 1, C chosen on a fifth of the photos
    plain         all weights at one rate, a new head that starts at 0, warm-up, cosine
    decay         each layer learns at 0.75 times the rate of the one above it
    head first    the probe is the head that training starts from
    augmentation  crops, mirror images, other light
    LoRA 4, 16    as the one before, but the backbone is frozen and adapters of that rank learn, with the head

Parts, in the order they run, one set after the other:
    search  four arms at each of three rates, one draw (seed 100), judged on other training photos
    main    every arm at its best rate, seeds 0 1 2, on the test part; nothing is chosen from it
Augmentation takes the rate of head first, and LoRA 16 that of LoRA 4.

`right` is an x and a hexadecimal number, whose binary digits say for each test photo whether its answer was right: so
arms can be compared photo by photo. One thread; other work ran beside, so `seconds` (of processor time) are rough.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.harness import main
from studies.shared import by_accuracy_then_loss, constants, few_digits, grid, rate_names, rate_of, side_by_side
from studies.store import Store
from vitutils import check, data, train
from vitutils.analysis import photo_model as pm
from vitutils.analysis.probe import draw_shots, linear_probe
from vitutils.data import Dataset
from vitutils.models.backbones import Backbone, load_backbone
from vitutils.training.finetune import add_lora, fine_tune, layer_groups, photo_augmentation

BACKBONE = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SIDE = 112
SETS = {  # photos a class to learn from, photos to choose a rate by, photos of the test part
    "CIFAR-10": {"shots": 10, "held_out": 200, "test": 500},
    "ants and bees": {"shots": 50, "held_out": 144, "test": 153},
}
PLACES = {"CIFAR-10": ("cifar10", "images/cifar10"), "ants and bees": ("hymenoptera",)}
ARMS = ("plain", "decay", "head first", "augmentation", "LoRA 4", "LoRA 16")
SEARCHED_BY = {"augmentation": "head first", "LoRA 16": "LoRA 4"}  # the others search for themselves
RATES = {"all": (3e-5, 1e-4, 3e-4), "LoRA": (3e-4, 1e-3, 3e-3)}
DECAY = 0.75
SEEDS, SEARCH_SEED = (0, 1, 2), 100
RECIPE = train.Recipe(epochs=5, batch_size=16, weight_decay=0.05, warmup=0.1, clip_grad=1.0)
KEY = ("part", "set", "arm", "variant", "seed")
FIELDS = ("lr", "steps", "images", "looked_at", "trained", "accuracy", "loss", "right", "seconds")
partial = "its arms come in the order of the recipe, and each can be compared with the ones before"
predicted = {
    "CIFAR-10, probe": {"expected": 0.62, "reason": "chapter 11's probe had 77 % at 128 px with ten times the photos"},
    "CIFAR-10, plain": {"expected": 0.60, "reason": "a new head and few photos: about the probe, less if spoiled"},
    "CIFAR-10, decay minus plain": {"expected": 0.02, "reason": "the lower layers keep what they know"},
    "CIFAR-10, head first minus decay": {"expected": 0.03, "reason": "no random first steps; 35 steps are few"},
    "CIFAR-10, augmentation minus head first": {"expected": 0.01, "reason": "five passes teach nothing by heart"},
    "CIFAR-10, LoRA 4 minus augmentation": {"expected": 0.0, "reason": "papers find it level with full fine-tuning"},
    "CIFAR-10, LoRA 16 minus LoRA 4": {"expected": 0.0, "reason": "rank hardly mattered in the LoRA paper"},
    "CIFAR-10, augmentation minus probe": {"expected": 0.04, "reason": "the whole recipe has to be worth its time"},
    "ants and bees, probe": {"expected": 0.90, "reason": "97 % at 224 px, 75 % at 80 px (chapter 9)"},
    "ants and bees, plain": {"expected": 0.89, "reason": "at 80 px it was 3 points above the probe, at 224 px level"},
    "ants and bees, decay minus plain": {"expected": 0.01, "reason": "as on CIFAR-10, with less to gain"},
    "ants and bees, head first minus decay": {"expected": 0.01, "reason": "two classes: a head is soon learned"},
    "ants and bees, augmentation minus head first": {"expected": 0.0, "reason": "as on CIFAR-10"},
    "ants and bees, LoRA 4 minus augmentation": {"expected": 0.0, "reason": "as on CIFAR-10"},
    "ants and bees, LoRA 16 minus LoRA 4": {"expected": 0.0, "reason": "as on CIFAR-10"},
    "ants and bees, augmentation minus probe": {"expected": 0.01, "reason": "153 test photos will not show it"},
}


@lru_cache(maxsize=2)
def photos(name: str) -> Dataset:
    """A set at 112 pixels, as the checkpoint wants it, in memory: all photos that any draw takes or is judged by."""
    sizes, backbone = SETS[name], load_backbone(BACKBONE, img_size=SIDE)
    for place in PLACES[name]:
        try:
            one = data.load_image_set(place)
            break
        except data.DataError:
            if place == PLACES[name][-1]:
                raise
    pool = None if name == "ants and bees" else 1_000
    one = one.take(train=pool, test=sizes["test"], seed=0)
    return data.as_dataset(one.train, one.test, backbone.transform, backbone.mean, backbone.std)


def drawn(dataset: Dataset, name: str, seed: int, search: bool) -> Dataset:
    """The photos of one draw. search: judged on training photos that this draw does not hold, not on the test part."""
    sizes = SETS[name]
    chosen = draw_shots(dataset.train_labels, sizes["shots"], seed)
    images, labels = dataset.train_images, dataset.train_labels
    part = replace(dataset, train_images=images[chosen], train_labels=labels[chosen])
    if not search:
        return part
    others = torch.ones(len(labels), dtype=torch.bool)
    others[chosen] = False
    left = others.nonzero().flatten()
    left = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[: sizes["held_out"]]]
    return replace(part, test_images=images[left], test_labels=labels[left])


@torch.inference_mode()
def features(backbone: nn.Module, images: Tensor, dataset: Dataset) -> Tensor:
    """Features (N, D) of uint8 images."""
    return torch.cat([backbone(data.normalise(part, dataset.mean, dataset.std)) for part in images.split(50)])


def probed(backbone: nn.Module, dataset: Dataset, seed: int) -> pm.LinearHead:
    """The probe as a head, its C chosen on a fifth of the training photos."""
    x, y = features(backbone, dataset.train_images, dataset).clone(), dataset.train_labels
    _, C = linear_probe(x, y, x[:0], seed)
    return pm.fit_linear(x, y, dataset.num_classes, C)


class Answers(nn.Module):
    """A backbone and a head: images (B, C, H, W) -> logits (B, K)."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def trained(backbone: Backbone, dataset: Dataset, arm: str, lr: float, seed: int) -> tuple[nn.Module, int, int]:
    """A model by one arm of the recipe; the steps made and the parameters trained."""
    if arm == "probe":
        head = probed(backbone, dataset, seed)
        return Answers(backbone, head).eval(), 0, check.count_parameters(head)
    lora, D = arm.startswith("LoRA"), features(backbone, dataset.train_images[:1], dataset).shape[1]
    augmented = arm == "augmentation" or lora
    torch.manual_seed(seed)
    if arm in ("plain", "decay"):
        head = nn.Linear(D, dataset.num_classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        head = probed(backbone, dataset, seed)
    if lora:
        add_lora(backbone.net, int(arm.split()[1]), torch.zeros(1, *dataset.train_images.shape[1:]))
    side = dataset.train_images.shape[-1]
    recipe = replace(RECIPE, lr=lr, seed=seed, augment=photo_augmentation(side) if augmented else None)
    groups = layer_groups(backbone.net, head, lr, DECAY) if arm not in ("plain",) and not lora else None
    model = Answers(backbone, head)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    brief = replace(dataset, test_images=dataset.test_images[:2], test_labels=dataset.test_labels[:2])
    history = fine_tune(model, brief, recipe, groups)
    return model.eval(), len(history.losses), count


def told(model: nn.Module, dataset: Dataset) -> dict:
    """How a model does on the other part of its set."""
    logits = train.evaluate(model, dataset, batch_size=50).logits
    right = logits.argmax(dim=1) == dataset.test_labels
    return {
        "images": len(dataset.train_labels),
        "looked_at": len(right),
        "accuracy": round(right.double().mean().item(), 5),
        "loss": round(F.cross_entropy(logits, dataset.test_labels).item(), 5),
        "right": f"x{int(''.join(map(str, right.int().tolist())), 2):x}",
    }


def row(backbone: Backbone, dataset: Dataset, arm: str, lr: float, seed: int) -> dict:
    """Train one arm: what a row says of it."""
    started = time.process_time()
    model, steps, count = trained(backbone, dataset, arm, lr, seed)
    found = told(model, dataset) | {"lr": lr or "", "steps": steps, "trained": count}
    found["seconds"] = round(time.process_time() - started, 1)
    return {field: found[field] for field in FIELDS}


def rates(arm: str) -> tuple[float, ...]:
    """The rates that an arm's search tries."""
    return RATES["LoRA" if arm.startswith("LoRA") else "all"]


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    for name in SETS:
        yield from grid(KEY, part="main", set=name, arm="probe", variant="", seed=SEEDS)
        for arm in ARMS:
            if arm not in SEARCHED_BY:
                yield from grid(KEY, part="search", set=name, arm=arm, variant=rate_names(rates(arm)), seed=SEARCH_SEED)
            yield from grid(KEY, part="main", set=name, arm=arm, variant="", seed=SEEDS)


def run(store: Store, name: dict) -> dict:
    """Train one arm on one draw and return the row."""
    lr = 0.0
    if name["arm"] != "probe":
        found = {"set": name["set"], "arm": SEARCHED_BY.get(name["arm"], name["arm"])}
        lr = rate_of(store, name, rates(name["arm"]), by_accuracy_then_loss, **found)
    dataset = drawn(photos(name["set"]), name["set"], name["seed"], name["part"] == "search")
    return name | row(load_backbone(BACKBONE, img_size=SIDE), dataset, name["arm"], lr, name["seed"])


def replay(store: Store) -> dict:
    """Two arms of the recipe on few digits, with the pocket ViT."""
    digits = few_digits(28)
    digits = replace(digits, train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    return side_by_side(
        {arm: row(load_backbone("pocket"), digits, arm, 3e-4, 0) for arm in ("probe", "head first", "LoRA 4")}
    )


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = ("BACKBONE", "SIDE", "SETS", "ARMS", "SEARCHED_BY", "RATES", "DECAY", "SEEDS", "RECIPE")
    return {**constants(globals(), *names), "augment": "photo_augmentation, from the arm of that name on"}


if __name__ == "__main__":
    main("finetune")
