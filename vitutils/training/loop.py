"""Train a classifier: one loop for every network of the book, ViT, CNN or another.

All that the loop knows of the model is `nn.Module`: images (B, C, H, W) in, logits (B, K) out.
Source of the choices: Dosovitskiy et al. 2021, appendix B; DeiT (2012.12877), table 9.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from vitutils import distributed
from vitutils.data.batches import batch_sizes, seeded
from vitutils.data.sets import Dataset
from vitutils.files import show_progress
from vitutils.models.modes import modes_kept, own_modes, set_modes
from vitutils.training.checkpoint import check_alike, described, described_data, described_net, restore, save_checkpoint
from vitutils.training.evaluation import History, autocast, evaluate, make_scaler
from vitutils.training.muon import make_optimizers
from vitutils.training.objective import check_outputs, labels_alone, make_mixing
from vitutils.training.recipe import Recipe
from vitutils.training.schedule import make_schedule


def fit(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    objective: Callable[[Tensor, Tensor, Tensor, float], Tensor] = labels_alone,
    device: torch.device | str = "cpu",
    checkpoint: Path | str | None = None,
    resume: bool = False,
    report: Callable[[dict], object] | None = None,
) -> History:
    """Train `model` in place on the training part of `dataset`; after each epoch, evaluate it on the other part.

    Pass `dataset.hold_out(n)` to choose a recipe, and keep the test part for one last evaluation.
    objective: (what the model returns, images, labels, label_smoothing) -> loss; `distill.Distillation` adds a teacher.
    The images are those that the model saw: augmented, mixed, normalised. Evaluation uses the labels only.
    checkpoint: a file written after each epoch; with resume=True a run continues from it and ends with the same weights
    (bit for bit on a CPU, with one rank or two) as if it had never stopped. With recipe.ema_decay the model has the
    averaged weights at the end.
    report: called after each epoch with its entry in `History.epochs`.
    Modes: a model in train mode is trained as it is, so a BatchNorm that you put in eval mode stays frozen; a model in
    eval mode is put in train mode, all of it. At the end, even after an error, every module is back in its own mode.
    If the last batch would have a single image, it joins the one before it (`data.batch_sizes`).

    Under torchrun, inside `distributed.joined()`, every rank makes this call with the same arguments.
    recipe.batch_size is that of all ranks together: each takes its part of every batch, and the gradient is the mean
    over the whole batch. So the number of ranks changes the rounding and what is drawn at random (augmentation,
    dropout, mixing); for networks with BatchNorm, it also changes which images its means are taken over: each rank's
    own. Rank 0 writes the checkpoint; all ranks read it.

    Raises FloatingPointError, with the step, as soon as a loss is not finite; ValueError for a checkpoint of another
    recipe, augmentation, objective, network or teacher, of other frozen parameters, or of other classes or images
    (every byte counts), for fewer images than ranks, for an empty part, and for a model that has no logit for each
    class or no parameters to train. An error on one rank is a `distributed.RankError` on all the others.
    """
    if resume and not checkpoint:
        raise ValueError("resume=True continues from a checkpoint: name it with checkpoint=PATH")
    for part, labels in {"to train on": dataset.train_labels, "held out": dataset.test_labels}.items():
        if not len(labels):
            raise ValueError(f"{dataset.name}: expected images {part}, one or more, got none")
    parameters = [*model.parameters()]
    if not any(p.requires_grad for p in parameters):
        got = f"{len(parameters)}, all frozen: set requires_grad on those to train" if parameters else "none"
        raise ValueError(f"expected parameters to train, got {got}")
    with modes_kept(model):
        if not model.training:
            model.train()
        return _fit(model, dataset, recipe, objective, device, checkpoint, resume, report)


def _fit(model, dataset, recipe, objective, device, checkpoint, resume, report) -> History:
    """`fit`, with the model in the modes in which it is to be trained."""
    run = Run(model, dataset, recipe, objective, torch.device(device))
    about = _about(run) if checkpoint else {}
    if resume:
        run.resume(Path(checkpoint), about)
    history, ranks = run.history, run.ranks
    total, hidden = recipe.epochs * len(run.sizes), not (ranks.first and show_progress())
    bar = tqdm(total=total, initial=len(history.losses), leave=False, disable=hidden)
    for epoch in range(len(history.epochs), recipe.epochs):
        started, before = time.perf_counter(), history.seconds
        run.epoch(epoch, bar)
        judged = run.judge(before + time.perf_counter() - started)
        bar.set_postfix_str(f"held-out accuracy {judged['val_accuracy']:.1%}")
        if checkpoint:
            states = run.states() | about | {"history": asdict(history)} if ranks.first else {}
            distributed.agree(
                lambda states=states: save_checkpoint(Path(checkpoint), **states) if ranks.first else None,
                (OSError, RuntimeError),
            )
        if report:
            report(judged)
    bar.close()
    if run.averaged is not None:
        model.load_state_dict(run.averaged.module.state_dict())
    return history


def _about(run: "Run") -> dict:
    """What a checkpoint says of the run, beside its state. Raises ValueError where the processes differ in it."""
    about = {"recipe": distributed.agree(lambda: described(run.recipe, run.objective), (ValueError,))}
    about |= {"data": described_data(run.dataset), "net": described_net(run.model)}
    check_alike(about)
    return about


@dataclass
class Run:
    """What one call of `fit` works on. Made on the device, with a fresh optimizer and an empty history."""

    model: nn.Module
    dataset: Dataset
    recipe: Recipe
    objective: Callable
    device: torch.device
    history: History = field(default_factory=History)

    def __post_init__(self):
        recipe, dataset, self.ranks = self.recipe, self.dataset, distributed.here()
        self.modes, count = own_modes(self.model), len(dataset.train_labels)
        self.model.to(self.device)
        counts = {"to train on": count, "held out": len(dataset.test_labels), "a batch": recipe.batch_size}
        self.ranks.check_enough(counts)
        self.sizes = batch_sizes(count, recipe.batch_size)
        self.optimizers = make_optimizers(self.model, recipe, fused=self.device.type in ("cpu", "cuda"))
        how = recipe.epochs * len(self.sizes), recipe.warmup, recipe.schedule
        self.schedules = [make_schedule(optimizer, *how) for optimizer in self.optimizers]
        self.scaler, self.mix = make_scaler(self.device), make_mixing(recipe, dataset.num_classes)
        self.averaged = None
        if recipe.ema_decay is not None:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self.parallel = self.model if self.ranks.world == 1 else DistributedDataParallel(self.model)

    def stateful(self) -> dict:
        """What a checkpoint holds besides the history: everything that changes from step to step."""
        parts = {name: getattr(self, name) for name in ("model", "scaler", "averaged")}
        parts |= dict(zip(("optimizer", "muon"), self.optimizers, strict=False))
        parts |= dict(zip(("schedule", "muon_schedule"), self.schedules, strict=False))
        return {name: part for name, part in parts.items() if part is not None}

    def states(self) -> dict:
        """The state of each of these."""
        return {name: part.state_dict() for name, part in self.stateful().items()}

    def resume(self, checkpoint: Path, about: dict) -> None:
        """Go on from a checkpoint, where there is one; all ranks from the same."""
        how = about, self.device, self.stateful(), len(self.sizes)
        self.history = distributed.agree(lambda: restore(checkpoint, *how), (ValueError, OSError))
        if len(found := set(distributed.gather(len(self.history.epochs)))) > 1:
            raise ValueError(f"{checkpoint} has {sorted(found)} epochs, by rank: all machines must share its folder")

    def epoch(self, epoch: int, bar: tqdm) -> None:
        """Train for one epoch, whose number also draws order, augmentation and dropout."""
        set_modes(self.modes)
        recipe, dataset, ranks = self.recipe, self.dataset, self.ranks
        seed = recipe.seed * 100_003 + epoch
        how = {"augment": recipe.augment, "device": self.device, "rank": ranks.rank, "world": ranks.world}
        recent: list[tuple[Tensor, Tensor]] = []  # losses and norms not yet read off the device, or off the ranks
        with seeded(seed + ranks.rank * 1_000_000_007, self.device):
            parts = dataset.batches(recipe.batch_size, seed=seed, **how)
            for step, (x, y) in enumerate(parts):
                recent.append(self.step(x, y, ranks.weight(self.sizes[step]), check=not recent))
                if len(recent) == 25 or (self.device.type == "cpu" and ranks.world == 1):
                    record(self.history, recent)
                bar.update()
            record(self.history, recent)

    def step(self, x: Tensor, y: Tensor, weight: float, check: bool) -> tuple[Tensor, Tensor]:
        """Learn from one batch; its loss and the norm of its gradient, still on the device."""
        recipe, scaler = self.recipe, self.scaler
        x, y = self.mix(x, y)
        with autocast(self.device):
            outputs = self.parallel(x)
            if check and self.objective is labels_alone:
                check_outputs(outputs, self.dataset.num_classes)
            loss = weight * self.objective(outputs, x, y, recipe.label_smoothing)
        self.model.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)
        limit = float("inf") if recipe.clip_grad is None else recipe.clip_grad
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.history.lrs.append(self.schedules[0].get_last_lr()[0])
        scale = scaler.get_scale()
        for optimizer in self.optimizers:
            scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:  # else a gradient overflowed and no step was taken
            for schedule in self.schedules:
                schedule.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.model)
        return loss.detach(), norm.detach()

    def judge(self, seconds: float) -> dict:
        """Evaluate on the held-out part; the epoch's entry in the history. seconds: of training so far."""
        history = self.history
        try:
            loss, accuracy = held_out(self.model if self.averaged is None else self.averaged, self.dataset, self.device)
        except FloatingPointError as error:
            told = f"the held-out loss is not finite after step {len(history.losses)} ({error})"
            raise FloatingPointError(f"{told}. Lower the learning rate, or lengthen the warm-up") from None
        entry = {"epoch": len(history.epochs) + 1, "step": len(history.losses), "val_loss": loss}
        history.epochs.append(entry | {"val_accuracy": accuracy, "seconds": seconds})
        return history.epochs[-1]


def held_out(model: nn.Module, dataset: Dataset, device: torch.device) -> tuple[float, float]:
    """Loss and accuracy on the test part: each rank evaluates its share of the images, and all get the whole."""
    ranks = distributed.here()
    if ranks.world == 1:
        result = evaluate(model, dataset, device=device)
        return result.loss, result.accuracy
    for buffer in model.buffers():  # BatchNorm's running means: those of rank 0, which writes the checkpoint
        torch.distributed.broadcast(buffer, 0)
    mine = slice(ranks.rank, None, ranks.world)
    share = replace(dataset, test_images=dataset.test_images[mine], test_labels=dataset.test_labels[mine])
    result = distributed.agree(lambda: evaluate(model, share, device=device), (FloatingPointError, ValueError))
    weight = len(result.logits) / len(dataset.test_labels)
    parts = distributed.gather((weight * result.loss, weight * result.accuracy))
    return sum(loss for loss, _ in parts), sum(accuracy for _, accuracy in parts)


def record(history: History, recent: list[tuple[Tensor, Tensor]]) -> None:
    """Move losses and gradient norms from the device into the history; raise at the first loss that is not finite."""
    world = distributed.here().world
    if world > 1 and recent:  # the loss of a batch is the mean over the ranks
        losses = torch.stack([loss for loss, _ in recent])
        torch.distributed.all_reduce(losses)
        recent[:] = [(loss / world, norm) for loss, (_, norm) in zip(losses, recent, strict=True)]
    for loss, norm in recent:
        value = loss.item()
        if not torch.isfinite(loss):
            step = len(history.losses) + 1
            raise FloatingPointError(
                f"the loss is {value} at step {step}, learning rate {history.lrs[step - 1]:.1e}. Lower the learning "
                f"rate, lengthen the warm-up, or clip the gradient; check the inputs for NaN."
            )
        history.losses.append(value)
        history.grad_norms.append(norm.item())
    recent.clear()
