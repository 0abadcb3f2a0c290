"""Fine-tuning a pre-trained network, as in chapter 15: rates that fall from layer to layer, adapters, and the loop.

The network is any of timm's, or the book's ViT, whose parameters have timm's names.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from vitutils.arguments import logits_for
from vitutils.data.batches import batch_sizes, per_image, seeded
from vitutils.data.sets import Dataset
from vitutils.files import show_progress
from vitutils.models.modes import modes_kept
from vitutils.training.checkpoint import described, described_data, described_net, restore, save_checkpoint
from vitutils.training.evaluation import History, autocast, evaluate, make_scaler
from vitutils.training.objective import labels_alone
from vitutils.training.recipe import Recipe
from vitutils.training.schedule import make_schedule, parameter_groups

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what peft loads warns there of torch's own affairs

# How timm sorts the parameters of a plain ViT into layers: what stands before the blocks, each block, the last norm.
VIT_LAYERS = {
    "stem": r"^cls_token|reg_token|pos_embed|patch_embed|norm_pre",
    "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99_999,))],
}


def layers_of(net: nn.Module) -> dict[nn.Parameter, int]:
    """The layer of each parameter: 0 before the blocks, then block by block. For timm's networks, and our ViT.

    Raises ValueError for a network whose layers timm does not know.
    """
    from timm.models import group_parameters

    sort = getattr(net, "group_matcher", lambda coarse: VIT_LAYERS)
    layer_of = group_parameters(net, sort(coarse=False), reverse=True)  # name -> layer
    if max(layer_of.values(), default=0) < 2:
        raise ValueError(f"timm knows no layers of a {type(net).__name__}, so their rates cannot differ")
    return {parameter: layer_of[name] for name, parameter in net.named_parameters()}


def layer_groups(
    net: nn.Module, head: nn.Module, lr: float, decay: float = 0.75,
    weight_decay: float = 0.05,
) -> list[dict]:  # fmt: skip
    """Parameter groups for AdamW: the head learns at `lr`, each layer below
    at `decay` times the rate of the layer above it.

    What is frozen is left out. Raises ValueError for a network whose layers
    timm does not know.
    """
    layer_of, groups = layers_of(net), []
    top = max(layer_of.values()) + 1  # the head's
    both = nn.ModuleList([net, head])
    for group in parameter_groups(both, weight_decay):  # with decay, without
        for layer in range(top + 1):
            own = [p for p in group["params"] if layer_of.get(p, top) == layer]
            own = [p for p in own if p.requires_grad]
            rate = lr * decay ** (top - layer)
            groups += [group | {"params": own, "lr": rate}] if own else []
    return groups


def photo_augmentation(side: int) -> Callable[[Tensor], Tensor]:
    """An augmentation for photos (B, C, side, side): a crop of at least half the area, random mirroring, other light.

    These are torchvision's transforms, called once per image. Don't use them on anything that must not be mirrored
    (letters, left and right hands).
    """
    steps = [
        v2.RandomResizedCrop(side, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]
    return per_image(v2.Compose(steps))


def add_lora(net: nn.Module, r: int, image: Tensor) -> nn.Module:
    """Freeze a network; put adapters of rank r beside its attention's layers.

    In place; returns peft's model around it, whose `merge_and_unload()` adds
    the adapters to the weights. image: (1, C, H, W), to check that each is
    reached. Raises ValueError for a network without `qkv` or `proj` in its
    attention, and for one that computes past the adapters.
    """
    from peft import LoraConfig, get_peft_model

    layers = r".*attn\.(qkv|proj)"
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=layers)
    adapted = get_peft_model(net, config)
    if missed := unreached(net, image):
        adapted.unload()
        raise ValueError(
            f"{len(missed)} adapters are no part of what a "
            f"{type(net).__name__} computes, first {missed[0]}: train all "
            "its weights instead"
        )
    return adapted


def unreached(net: nn.Module, image: Tensor) -> list[str]:
    """Names of the trainable parameters that no gradient reaches."""
    own = {n: p for n, p in net.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        net(image.to(next(iter(own.values())).device)).sum().backward()
    missed = [name for name, p in own.items() if p.grad is None]
    net.zero_grad(set_to_none=True)
    return missed


def fine_tune(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    groups: list[dict] | None = None,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | str | None = None,
    report: Callable[[dict], object] | None = None,
) -> History:
    """Train for `recipe.epochs` on the training part, in half precision if the device has it; evaluate each epoch.

    model: images (B, C, H, W) -> logits (B, K).  groups: for AdamW, as `layer_groups` makes them; None: one rate.
    recipe: without mixing, averaged weights or Muon.  checkpoint: a file written after each epoch, from which the same
    call resumes.  report: called after each epoch with its entry in `History.epochs`.
    At the end every module is back in its own mode. Raises ValueError if the recipe has one of these, if there is
    nothing to train, or for a checkpoint of another run; FloatingPointError, with the step, as soon as the loss is not
    finite.
    """
    if recipe.mixup or recipe.cutmix or recipe.ema_decay is not None:
        raise ValueError("fine_tune mixes no images and averages no weights: use `fit`, or a recipe without")
    if recipe.muon_lr is not None:
        raise ValueError(f"fine_tune moves all weights by AdamW, got muon_lr={recipe.muon_lr:g}: use `fit`, or None")
    device, model = torch.device(device), model.to(device)
    groups = groups or parameter_groups(model, recipe.weight_decay)
    trained = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in groups]
    if not any(group["params"] for group in trained):
        raise ValueError("expected parameters to train, got none: all are frozen")
    optimizer = torch.optim.AdamW([g for g in trained if g["params"]], lr=recipe.lr)
    size = len(batch_sizes(len(dataset.train_labels), recipe.batch_size))
    schedule = make_schedule(optimizer, recipe.epochs * size, recipe.warmup, recipe.schedule)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": make_scaler(device)}
    history, about = History(), {}
    if checkpoint:
        about = {"recipe": described(recipe, labels_alone) | {"rates": f"{[g.get('lr', recipe.lr) for g in trained]}"}}
        about |= {"data": described_data(dataset), "net": described_net(model)}
        history = restore(Path(checkpoint), about, device, parts, size)
    done, total = len(history.losses), recipe.epochs * size
    with modes_kept(model), tqdm(total=total, initial=done, leave=False, disable=not show_progress()) as bar:
        for epoch in range(len(history.epochs), recipe.epochs):
            started, before = time.perf_counter(), history.seconds
            model.train()
            with seeded(recipe.seed * 100_003 + epoch, device):
                how = {"seed": recipe.seed * 100_003 + epoch, "augment": recipe.augment, "device": device}
                for images, labels in dataset.batches(recipe.batch_size, **how):
                    _step(images, labels, recipe, history, **parts)
                    bar.update()
            seconds = before + time.perf_counter() - started
            result = evaluate(model, dataset, device=device)
            entry = {"epoch": epoch + 1, "step": len(history.losses), "val_loss": result.loss}
            history.epochs.append(entry | {"val_accuracy": result.accuracy, "seconds": seconds})
            if checkpoint:
                states = {name: part.state_dict() for name, part in parts.items()}
                save_checkpoint(Path(checkpoint), **states, **about, history=asdict(history))
            if report:
                report(history.epochs[-1])
    return history


def _step(images, labels, recipe, history, model, optimizer, schedule, scaler) -> None:
    """Learn from one batch, and note its loss, the rate and the gradient's norm."""
    with autocast(images.device):
        loss = F.cross_entropy(logits_for(model(images), labels), labels, label_smoothing=recipe.label_smoothing)
    value = loss.item()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {value} at step {len(history.losses) + 1}: lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    limit = float("inf") if recipe.clip_grad is None else recipe.clip_grad
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], limit)
    history.losses.append(value)
    history.lrs.append(max(schedule.get_last_lr()))
    history.grad_norms.append(norm.item())
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= scale:  # else a gradient overflowed, and no step was taken
        schedule.step()
