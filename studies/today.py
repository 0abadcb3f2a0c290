"""Chapter 17's study: what each change since the ViT of 2020 is worth on 4,000 photos of CIFAR-10, and all together.

Photos, held-out photos, recipe: those of studies/swin.py (4,000 training photos in the order of a hash of their pixels,
mirrored and moved by up to 4 px, batches of 32), here 8 passes. The search judges by 1,000 held-out training photos,
the main part by the first 4,000 test photos.

Nets: four blocks of width 48 with 4 heads on patches of 4 px, 64 of them; about 80,000 parameters.
    2020        class token, learned positions, LayerNorm, GELU
    one change  as `CHANGES` has it; SwiGLU with two thirds of the hidden width, so that the parameters stay the same
    all         every change at once, but pooling by attention, as DINOv3 has none
    + Muon      torch's Muon moves the matrices of the blocks, AdamW the rest; Muon's steps are scaled to the size of
                AdamW's (match_rms_adamw), so that both have the same rates

Equal care: for each net the peak rates of `RATES`, seed 100, half the passes; then seeds 0, 1, 2 at the best.
Parts, in the order in which they decide: main, its own search before each net; then `limit`: the largest rate of
`LADDER` at which two passes end with held-out accuracy above `TRAINS`, at a constant rate, with neither warm-up nor
clipping; `speed`: `ROUNDS` steps of a net and of that of 2020 in turn, medians of processor time and of the ratio.

`right`: how many of each fortieth of the test photos a net gets right. `sizes`: accuracy on the first 1,000 test photos
enlarged or shrunk to each side of `SIDES`. Of 200 test photos, after the last block: `norms`, the longest patch token
over the median, mean over photos; `looked_at_most`, the attention that one patch gets from all tokens over an equal
share, mean of the largest over photos, heads and blocks; `logit`, the largest score before rotation and softmax;
`on_registers`, the share of the patches' attention that registers get. One thread a run; `seconds` and `step_ms` are of
processor time. Other work ran beside, so only the steps of `speed` can be compared between nets.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies import shared
from studies.harness import main
from studies.store import Store
from studies.swin import BLOCKS, IMAGES, RECIPE, part_of, photos
from vitutils import check, data, train
from vitutils.data import Dataset
from vitutils.models.modes import eval_mode
from vitutils.models.vit_plus import ViTPlus, ViTPlusConfig
from vitutils.training.schedule import make_schedule

PASSES, LIMIT_PASSES = 8, 2
RATES = (1e-3, 3e-3, 1e-2)
LADDER = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
TRAINS = 0.2
ROUNDS = 30
SEEDS, SEARCH_SEED = (0, 1, 2), 100
SIDES = (16, 24, 32, 40, 48, 64)
SIZES = {"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 48, "depth": 4, "num_heads": 4}
MLP_RATIO = 2.0
CHANGES = {
    "LayerScale": {"init_values": 0.1},
    "stochastic depth": {"drop_path_rate": 0.1},
    "QK norm": {"qk_norm": True},
    "RMSNorm": {"norm_layer": "rmsnorm"},
    "SwiGLU": {"swiglu_mlp": True, "mlp_ratio": MLP_RATIO * 2 / 3},
    "registers": {"reg_tokens": 4},
    "rotary": {"rope_type": "dinov3", "pos_embed": "none"},
    "attention pooling": {"global_pool": "map"},
}
ALL = {name: value for change in CHANGES.values() for name, value in change.items() if value != "map"}
NETS = ("2020", "all", "rotary", "registers", "2020 + Muon", "all + Muon")
NETS += tuple(name for name in CHANGES if name not in NETS)
LIMITED = ("2020", "QK norm", "LayerScale", "RMSNorm", "all")
KEY = ("part", "net", "variant", "seed")
FIELDS = ("lr", "steps", "parameters", "looked_at", "trained", "accuracy", "loss", "train_loss", "sizes")
FIELDS += ("norms", "looked_at_most", "logit", "on_registers", "right", "step_ms", "times_2020", "seconds")

partial = "its networks come one after the other, and each can be compared with that of 2020 as soon as it is there"
predicted = {
    "2020": {"expected": 36.0, "reason": "chapter 12's ViT of 40 channels had 37.1 % after 10 passes; a class token"},
    "all minus 2020": {
        "expected": 0.5,
        "reason": "most changes were made for large networks and long training; rotary positions may help, LayerScale "
        "and stochastic depth cost at 1,000 steps",
    },
    "rotary minus 2020": {
        "expected": 1.5,
        "reason": "64 learned vectors have to find out from 4,000 photos which patches are neighbours; angles say so",
    },
    "LayerScale minus 2020": {"expected": -0.5, "reason": "updates start at a tenth; four blocks need no help"},
    "stochastic depth minus 2020": {
        "expected": -0.5,
        "reason": "no network of 80,000 parameters overfits in 8 passes; noise costs",
    },
    "QK norm minus 2020": {"expected": 0.5, "reason": "lets a higher rate through, and scores start larger"},
    "RMSNorm minus 2020": {"expected": 0.0, "reason": "the mean that it leaves in is one of 48 directions"},
    "SwiGLU minus 2020": {"expected": 0.5, "reason": "Shazeer's tables: a little better at equal parameters"},
    "registers minus 2020": {"expected": 0.0, "reason": "outliers need large networks (Darcet: from ViT-L on)"},
    "attention pooling minus 2020": {
        "expected": 0.5,
        "reason": "the query can weigh all patches after the last block; 19,000 more parameters",
    },
    "Muon minus AdamW: 2020, all": {
        "expected": [2.0, 2.0],
        "reason": "records for short training were set with it; 1,000 steps is where early speed counts",
    },
    "longest token over the median: 2020, registers": {
        "expected": [1.6, 1.6],
        "reason": "no outliers at this size, so registers have nothing to take over; Darcet's were ten times",
    },
    "share of patches' attention on 4 registers of 69 tokens": {
        "expected": 0.10,
        "reason": "an equal share is 0.058; a place without content is convenient",
    },
    "points lost at 48 px: 2020, rotary": {
        "expected": [4.0, 2.5],
        "reason": "stretched positions are vectors never seen in training; angles from -1 to 1 stay in their range",
    },
    "largest rate that trains: 2020, QK norm, LayerScale, RMSNorm, all": {
        "expected": [0.03, 0.1, 0.1, 0.03, 0.1],
        "reason": "QK norm bounds the scores, LayerScale makes early updates small; without warm-up",
    },
    "a step of all over one of 2020": {
        "expected": 1.5,
        "reason": "twenty steps on digits had 1.5 beside other work, before any photo: many small operations a block",
    },
    "differences from 2020 that are clear after Holm, of 8": {
        "expected": 2,
        "reason": "three seeds of 4,000 photos tell apart about 1.5 points; rotary and one more",
    },
}


def config_of(net: str) -> ViTPlusConfig:
    """The configuration of a net by its name."""
    name = net.removesuffix(" + Muon")
    change = (CHANGES | {"2020": {}, "all": ALL})[name]
    return ViTPlusConfig(**SIZES | {"mlp_ratio": MLP_RATIO} | change)


def make_net(net: str, seed: int, in_chans: int = 3) -> ViTPlus:
    """A fresh net by its name; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return ViTPlus(replace(config_of(net), in_chans=in_chans))


def optimizers_of(model: nn.Module, recipe: train.Recipe, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the matrices of the blocks, and AdamW for the rest."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if muon else []
    taken = {id(p) for p in matrices}
    groups = train.parameter_groups(model, recipe.weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    found = [torch.optim.AdamW(groups, lr=recipe.lr)]
    if muon:
        how = {"weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        found.append(torch.optim.Muon(matrices, lr=recipe.lr, **how))
    return found


def fit(model: nn.Module, dataset: Dataset, recipe: train.Recipe, muon: bool = False) -> tuple[list[float], bool]:
    """Train; the loss of each step, and whether all were finite: it stops at the first that is not."""
    torch.manual_seed(recipe.seed)
    steps = recipe.epochs * math.ceil(len(dataset.train_labels) / recipe.batch_size)
    optimizers, losses = optimizers_of(model, recipe, muon), []
    schedules = [make_schedule(one, steps, recipe.warmup, recipe.schedule) for one in optimizers]
    model.train()
    for epoch in range(recipe.epochs):
        how = {"seed": recipe.seed * 100_003 + epoch, "augment": recipe.augment}
        for x, y in dataset.batches(recipe.batch_size, **how):
            loss = F.cross_entropy(model(x), y)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return losses, False
            for one in optimizers:
                one.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
            for one, schedule in zip(optimizers, schedules, strict=True):
                one.step()
                schedule.step()
    return losses, True


def scaled(images: Tensor, side: int) -> Tensor:
    """uint8 images on side x side pixels."""
    if images.shape[-1] == side:
        return images
    larger = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return larger.round().clamp(0, 255).byte()


@torch.no_grad()
def looked_inside(model: ViTPlus, x: Tensor) -> dict:
    """Fields of a row: outliers among tokens, attention and scores. x: normalised images (B, C, H, W)."""
    kept, hooks = {}, []
    for i, block in enumerate(model.blocks):
        for one in "qk":  # what is normalised, or would be
            layer = getattr(block.attn, f"{one}_norm")
            hooks.append(layer.register_forward_hook(lambda *given, at=(i, one): kept.update({at: given[-1]})))
    with eval_mode(model):
        grid = model.forward_intermediates(x, [-1])[0]  # (B, D, rows, columns)
        attn = model.forward_features(x, need_weights=True)[1]  # (B, depth, h, T, T)
    for hook in hooks:
        hook.remove()
    scores = [kept[i, "q"] @ kept[i, "k"].mT for i in range(len(model.blocks))]  # before rotation
    first, R = model.config.num_prefix_tokens, model.config.reg_tokens
    norms = grid.flatten(2).norm(dim=1)  # (B, N)
    received = attn.mean(dim=3)[..., first:] * attn.shape[-1]  # (B, depth, h, N); 1 = an equal share
    registers = attn[..., first:, first - R : first].sum(dim=-1).mean().item()
    return {
        "norms": round((norms.amax(1) / norms.median(1).values).mean().item(), 3),
        "looked_at_most": round(received.amax(-1).mean().item(), 3),
        "logit": round(max(one.abs().max().item() for one in scores) / math.sqrt(model.config.head_dim), 2),
        "on_registers": round(registers, 4) if R else "",
    }


def trained(net: str, seed: int, dataset: Dataset, recipe: train.Recipe, look: bool) -> dict:
    """Train a net: what a row says of it."""
    model = make_net(net, seed, dataset.image_shape[0])
    started = time.process_time()
    losses, finite = fit(model, dataset, recipe, muon=net.endswith("Muon"))
    spent = time.process_time() - started
    found = {"steps": len(losses), "parameters": check.count_parameters(model), "trained": int(finite)}
    found |= {
        "train_loss": round(sum(losses[-100:]) / len(losses[-100:]), 5),
        "step_ms": round(1e3 * spent / len(losses), 2),
    }
    if finite:
        try:
            judged = shared.judged(model, dataset)
        except FloatingPointError:
            return {field: (found | {"trained": 0}).get(field, "") for field in FIELDS}
        right = judged["logits"].argmax(dim=1) == dataset.test_labels
        found |= judged | {"right": " ".join(str(part.sum().item()) for part in right.tensor_split(BLOCKS))}
        found["trained"] = int(judged["accuracy"] > TRAINS)
    if finite and look:
        how = {"mean": dataset.mean, "std": dataset.std}
        images, labels = dataset.test_images[:1000], dataset.test_labels[:1000]
        at = [train.evaluate(model, scaled(images, side), labels, **how).accuracy for side in SIDES]
        found["sizes"] = " ".join(f"{accuracy:.4f}" for accuracy in at)
        found |= looked_inside(model, data.normalise(images[:200].float() / 255, dataset.mean, dataset.std))
    return {field: found.get(field, "") for field in FIELDS}


def speed(net: str, seed: int, dataset: Dataset) -> dict:
    """Fields of a row: the median step of a net, and of its ratio to that of 2020 a moment later."""
    x, y = next(iter(dataset.batches(RECIPE.batch_size, seed=seed)))
    models = [make_net(name, seed, dataset.image_shape[0]).train() for name in (net, "2020")]
    optimizers = [optimizers_of(models[0], RECIPE, net.endswith("Muon")), optimizers_of(models[1], RECIPE, False)]
    spent: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for model, own, times in zip(models, optimizers, spent, strict=True):
            started = time.process_time()
            for one in own:
                one.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            for one in own:
                one.step()
            times.append(time.process_time() - started)
    ratios = [mine / base for mine, base in zip(*spent, strict=True)]
    found = {"steps": ROUNDS, "parameters": check.count_parameters(models[0])}
    found |= {"step_ms": round(1e3 * median(spent[0]), 2), "times_2020": round(median(ratios), 3)}
    return {field: found.get(field, "") for field in FIELDS}


def runs(store: Store) -> Iterator[dict]:
    """Yield the key fields of every run, in order."""
    for net in NETS:
        yield from shared.grid(KEY, part="search", net=net, variant=shared.rate_names(RATES), seed=SEARCH_SEED)
        yield from shared.grid(KEY, part="main", net=net, variant="", seed=SEEDS)
    yield from shared.grid(KEY, part="limit", net=LIMITED, variant=shared.rate_names(LADDER), seed=SEARCH_SEED)
    yield from shared.grid(KEY, part="speed", net=NETS, variant="", seed=SEEDS[0])


def merit(row: dict[str, str]) -> tuple[float, float]:
    """The highest accuracy; if several tie, the lowest loss; last what did not train."""
    return shared.by_accuracy_then_loss(row) if row["accuracy"] else (-1.0, 0.0)


def run(store: Store, name: dict) -> dict:
    """Train one net and return its row."""
    main_part, limit = name["part"] == "main", name["part"] == "limit"
    dataset, started = part_of(photos(), search=not main_part), time.process_time()
    if name["part"] == "speed":
        found = speed(name["net"], name["seed"], dataset)
        return name | found | {"seconds": round(time.process_time() - started, 1)}
    lr = shared.rate_of(store, name, RATES, merit, net=name["net"])
    recipe = replace(RECIPE, lr=lr, seed=name["seed"], epochs=PASSES if main_part else PASSES // 2)
    if limit:
        recipe = replace(recipe, epochs=LIMIT_PASSES, warmup=0.0, schedule="constant", clip_grad=None)
    found = trained(name["net"], name["seed"], dataset, recipe, look=main_part)
    return name | found | {"lr": lr, "seconds": round(time.process_time() - started, 1)}


def replay(store: Store) -> dict:
    """Two nets, a few steps on digits."""
    digits, rows = shared.few_digits(32).take(train=96, test=30), {}
    for net in ("2020", "all + Muon"):
        row = trained(net, 0, digits, replace(RECIPE, lr=3e-3, epochs=1), look=True)
        rows[net] = {
            field: row[field] for field in FIELDS if field not in ("right", "step_ms", "seconds") and row[field] != ""
        }
    return shared.side_by_side(rows)


def configuration() -> dict:
    """The frozen configuration as plain values, for the .json."""
    names = "PASSES LIMIT_PASSES RATES LADDER TRAINS ROUNDS SEEDS SEARCH_SEED SIDES BLOCKS SIZES MLP_RATIO CHANGES ALL"
    return shared.constants(globals(), *names.split(), "NETS", "LIMITED", "RECIPE") | {"images": IMAGES}


if __name__ == "__main__":
    main("today")
