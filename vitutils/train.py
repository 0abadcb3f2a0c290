"""Train and evaluate a classifier: one loop for every net of the book, ViT, CNN or another.

The model is known through `nn.Module` alone: images (B, C, H, W) in, logits (B, K) out.
From the command line `python -m vitutils.train --help`; in several processes `torchrun ... -m vitutils.train`.
Source of the choices: Dosovitskiy et al. 2021, appendix B; DeiT (2012.12877), table 9.
"""

import copy
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from tqdm import tqdm

from vitutils import plot
from vitutils import ranks as processes
from vitutils._progress import show_progress
from vitutils._told import digest, digest_net, told_of  # noqa: F401 - digest_net is for `distill`
from vitutils.data import Dataset, batch_sizes, batches, seeded
from vitutils.given import checked_labels, logits_for, plain, shown
from vitutils.modes import eval_mode, modes_kept, own_modes, set_modes

SCHEDULES = ("cosine", "constant")
# Numbers of a recipe: what each must be, in words, and whether one is.
LIMITS = {
    "epochs": ("a whole number of 1 or more, 10**9 at most", lambda n: 1 <= n <= 10**9 and n % 1 == 0),
    "batch_size": ("a whole number of 1 or more, 10**9 at most", lambda n: 1 <= n <= 10**9 and n % 1 == 0),
    "lr": ("a finite number above 0", lambda x: 0 < x < float("inf")),
    "weight_decay": ("a finite number of 0 or more", lambda x: 0 <= x < float("inf")),
    "warmup": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "clip_grad": ("above 0 (or None: no limit)", lambda x: x > 0),
    "label_smoothing": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "mixup": ("a finite number of 0 or more", lambda x: 0 <= x < float("inf")),
    "cutmix": ("a finite number of 0 or more", lambda x: 0 <= x < float("inf")),
    "ema_decay": ("at least 0 and below 1 (or None: no averaging)", lambda x: 0 <= x < 1),
    "seed": ("a whole number between -2**32 and 2**32", lambda n: abs(n) <= 2**32 and n % 1 == 0),
}


def checked(name: str, value: object) -> int | float | None:
    """A number of a recipe as Python's own, whatever library's it was. Raises ValueError for one out of `LIMITS`."""
    what, fits = LIMITS[name]
    number = plain(value)
    if number is None and "None" in what:
        return None
    if isinstance(number, bool) or not isinstance(number, Real) or not fits(number) or 10**308 < number < float("inf"):
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    return int(number) if isinstance(number, Integral) or "whole" in what else float(number)


@dataclass(frozen=True)
class Recipe:
    """How to train. Two nets with one recipe get equal care only where the recipe suits both: search for each.

    lr: peak of the schedule.  weight_decay: AdamW's, on weight matrices and filters alone.
    warmup: share of all steps in which the rate rises linearly from (almost) 0 to lr.
    schedule: what follows: "cosine", down to 0 at the last step, or "constant".
    clip_grad: largest norm of the whole gradient, or None.  label_smoothing: 0 to 1.
    mixup, cutmix: their alpha, 0 for off; with both, each batch gets one of the two.
    ema_decay: keep an exponential mean of the weights with this decay a step, evaluate and return that; or None.
    augment: function of a batch of images on the device, before normalisation (`data.flip_shift()`), or None.
    NumPy's numbers and tensors of one number become Python's. Raises ValueError for a number out of its limits.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: str = "cosine"
    clip_grad: float | None = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None
    augment: Callable[[Tensor], Tensor] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be 'cosine' or 'constant', got {self.schedule!r}")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment must be a function of a batch of images, or None, got {self.augment!r}")
        object.__setattr__(self, "schedule", str(self.schedule))
        for name in LIMITS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))

    def numbers(self) -> dict:
        """All fields but the augmentation, as plain values that a checkpoint can hold."""
        values = asdict(self)
        del values["augment"]
        return values


class Evaluation(NamedTuple):
    """Mean cross-entropy in nats, accuracy 0..1, and the logits (N, K) on the CPU."""

    loss: float
    accuracy: float
    logits: Tensor


@dataclass
class History:
    """What happened in a run: one entry a batch in losses, lrs and grad_norms, one a finished epoch in epochs.

    Where float16 let a gradient overflow, its norm is not finite, no step was taken, and the next has the same rate.
    epochs: dicts with epoch, step, val_loss, val_accuracy, and the seconds of training so far (evaluation left out).
    """

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Accuracy after the last epoch, 0..1, on the held-out part."""
        return self.epochs[-1]["val_accuracy"]

    @property
    def seconds(self) -> float:
        """Seconds of training, evaluation left out."""
        return self.epochs[-1]["seconds"] if self.epochs else 0.0

    def __str__(self) -> str:
        if not self.epochs:
            return "no finished epoch"
        return (
            f"{len(self.epochs)} epochs, {len(self.losses)} steps, {self.seconds:.0f} s: "
            f"held-out loss {self.epochs[-1]['val_loss']:.3f}, accuracy {self.accuracy:.1%}"
        )

    def plot(self) -> plot.Figure:
        """Draw the training loss a step and the held-out accuracy an epoch."""
        steps = [e["step"] for e in self.epochs]
        accuracy = [100 * e["val_accuracy"] for e in self.epochs]
        return plot.history({"run": self.losses}, {"run": (steps, accuracy)}, ylabel="held-out accuracy, %")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters for AdamW: those that decay, those that do not.

    The weights that a layer multiplies by decay: matrices and filters.
    Biases, tokens, positions and tables do not: they are offsets, and nearer
    to 0 no simpler. Nor do scales, of norms or others: at 0 they let nothing
    through.
    """
    decays = {}  # a parameter that two modules share is asked about once
    for module in model.modules():
        layer = isinstance(module, nn.Linear | nn.Conv2d)
        apart = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False):
            shape = parameter.shape  # (1, D, 1, 1) is a vector, not a matrix
            matrix = layer or shape.numel() > max(shape, default=1)
            multiplies = "weight" in name and parameter.ndim > 1 and matrix
            decays.setdefault(parameter, multiplies and not apart)
    decay = [parameter for parameter, yes in decays.items() if yes]
    keep = [parameter for parameter, yes in decays.items() if not yes]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    steps: int,
    warmup: float,
    kind: str = "cosine",
) -> LRScheduler:
    """Linear warm-up over the first `warmup` share of `steps`; then a
    cosine to 0, or with kind="constant" no change.

    Call `.step()` after each step of the optimizer.
    """
    rising = round(warmup * steps)
    if kind == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=max(1, steps - rising))
    else:
        after = ConstantLR(optimizer, factor=1.0)
    if rising == 0:
        return after
    linear = LinearLR(
        optimizer, start_factor=1 / rising, total_iters=max(1, rising - 1)
    )
    return SequentialLR(optimizer, [linear, after], milestones=[rising])


def make_mixing(recipe: Recipe, num_classes: int) -> Callable:
    """torchvision's MixUp and CutMix as the recipe asks: a function of (images, labels); neither changes nothing."""
    kinds = [(v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix)]
    chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    if not chosen:
        return lambda images, labels: (images, labels)
    return v2.RandomChoice(chosen)


def autocast(device: torch.device):
    """Half precision on a GPU (bfloat16 where it has it, else float16); full precision elsewhere."""
    if device.type != "cuda":
        return nullcontext()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", dtype=torch.bfloat16 if bf16 else torch.float16)


def make_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Scale the loss where `autocast` takes float16, so that small gradients do not vanish; elsewhere do nothing."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.amp.GradScaler(device.type, enabled=half)


@torch.no_grad()  # not inference_mode: a table that a module keeps from here could not be trained with
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, mean, std, device="cpu", batch_size: int = 500
) -> Evaluation:
    """Evaluate on uint8 images (N, C, H, W) and int64 labels (N,), in eval mode; each module's own is put back after.

    mean, std: per channel, those that the model was trained with.
    Raises ValueError for no images, labels that are no classes, and a model that gives anything but logits (B, K) with
    a place for each; FloatingPointError where the loss is not finite, for then argmax is no answer.
    """
    device, labels = torch.device(device), _labels_of(images, labels)
    with eval_mode(model), autocast(device):
        parts = [
            logits_for(model(x), y).float().cpu()
            for x, y in batches(images, labels, batch_size, seed=None, device=device, mean=mean, std=std)
        ]
    logits = torch.cat(parts)
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = losses.mean().item()
    if not math.isfinite(loss):
        count = (~losses.isfinite()).sum().item()
        raise FloatingPointError(f"the loss of {count} of {len(losses)} images is not finite: the model has diverged")
    accuracy = (logits.argmax(dim=1) == labels).double().mean().item()
    return Evaluation(loss, accuracy, logits)


def _labels_of(images: Tensor, labels: Tensor) -> Tensor:
    """Labels (N,) of images (N, C, H, W) as int64 on the CPU. Raises ValueError for none, and for what is no class."""
    labels = checked_labels(labels)
    if len(images) != len(labels):
        raise ValueError(f"expected {len(images)} labels, one an image, got {len(labels)}")
    return labels


def save_checkpoint(path: Path, **parts) -> None:
    """Write a checkpoint in one piece: to a temporary name, then renamed, so that no half-written file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(parts, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def labels_alone(outputs: Tensor, images: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The objective of a net that has no teacher: cross-entropy of logits (B, K) with the labels."""
    _check_outputs(outputs)
    return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)


def _check_outputs(outputs: object, K: int | None = None) -> None:
    """Hold that they are logits (B, K). Shapes alone are looked at: values would have to come from the device."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"expected logits (B, K), got a {type(outputs).__name__}: pass an objective that takes it")
    if outputs.ndim != 2 or (K is not None and outputs.shape[1] < K):
        wanted = "K" if K is None else K
        raise ValueError(f"expected logits (B, {wanted}), got {tuple(outputs.shape)}: give the net a head of {wanted}")


def described(recipe: Recipe, objective: Callable) -> dict:
    """What a checkpoint keeps of how it was trained: recipe, augmentation, objective and its own numbers.

    A function is kept as `_told.told_of` sees it: name, code, and the numbers, words and functions it was made with.

    Raises ValueError for numbers of the objective that a checkpoint cannot hold: anything but numbers, words and None.
    """
    own = {name: plain(value) for name, value in getattr(objective, "numbers", dict)().items()}
    odd = [f"{name}: {value!r}" for name, value in own.items() if not isinstance(value, Real | str | None)]
    if odd:
        raise ValueError(f"{type(objective).__name__}.numbers() may hold numbers and words, got {'; '.join(odd)}")
    if recipe.augment is not None:
        own["augment"] = told_of(recipe.augment)
    if objective is not labels_alone:
        own["objective"] = type(objective).__qualname__ if hasattr(objective, "numbers") else told_of(objective)
    return recipe.numbers() | own


def described_net(net: nn.Module) -> dict:
    """What a checkpoint keeps of a net besides its weights: the names of what is frozen, if anything is."""
    names = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    few = ", ".join(names) if len(names) <= 3 else f"{len(names)} parameters, {digest({'names': names})}"
    return {"frozen": few} if names else {}


def described_data(dataset: Dataset) -> dict:
    """What a checkpoint keeps of the images, labels and classes that it was trained and judged on."""
    names = ("train_images", "train_labels", "test_images", "test_labels", "mean", "std")
    return {
        "images to train on": len(dataset.train_labels),
        "held out": len(dataset.test_labels),
        "digest": digest({name: getattr(dataset, name) for name in names} | {"classes": tuple(dataset.classes)}),
    }


def load_checkpoint(path: Path, recipe: Recipe, device: torch.device, objective: Callable = labels_alone) -> dict:
    """Read a checkpoint written by `fit` (no pickle is executed).

    Raises ValueError for a damaged file, one that is no such checkpoint, and one written under another recipe or
    objective (the message says which field); OSError and MemoryError as they come.
    """
    state = _read_checkpoint(path, device)
    if changed := _changed(state["recipe"], described(recipe, objective)):
        raise ValueError(f"{path} was written under another recipe ({changed}): delete it or change back")
    return state


def _read_checkpoint(path: Path, device: torch.device) -> dict:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not _whole(path):
            told = f"{path} is not a checkpoint of this loop, or was cut off ({type(error).__name__})"
            raise ValueError(f"{told}: delete it, or name another file") from None
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to execute what stands in it
            raise ValueError(f"{path} is not a checkpoint of this loop: it holds objects, not numbers alone") from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is whole, but torch {torch.__version__} cannot read it ({reason})") from None
    parts = ("recipe", "history", "model")
    if not isinstance(state, dict) or not all(isinstance(state.get(name), dict) for name in parts):
        raise ValueError(f"{path} is not a checkpoint of this loop, but another file of torch's: name another file")
    if "data" not in state:
        raise ValueError(
            f"{path} was written by an older version of this loop and does not say which images it was trained on: "
            f"delete it, or go on with that version"
        )
    if not all(isinstance(state.get(name, {}), dict) for name in ("data", "net")):
        raise ValueError(f"{path} is not a checkpoint of this loop, but another file of torch's: name another file")
    return state


def _whole(path: Path) -> bool:
    """Whether a file is an archive of which nothing is missing."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _changed(one: dict, other: dict, first: str = "then", second: str = "now") -> str:
    """The fields that differ, in words; empty where none does."""
    differ = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    return "; ".join(f"{key}: {one.get(key)} {first}, {other.get(key)} {second}" for key in differ)


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
    images are those that the model saw: augmented, mixed, normalised. Evaluation looks at the labels alone.
    checkpoint: a file written after each epoch; with resume=True a run goes on from it, to the same weights (bit for
    bit on a CPU, with one rank or two) as if it had never stopped. With recipe.ema_decay the model holds the averaged
    weights at the end.
    report: called after each epoch with its entry in `History.epochs`.
    Modes: a model in train mode is trained as it is, so that a BatchNorm that you put in eval mode stays frozen; a
    model in eval mode is put in train mode, all of it. At the end, or after an error, every module has its own again.
    A last batch of one image joins the one before it (`data.batch_sizes`).

    Under torchrun, inside `ranks.joined()`, every rank makes this call with the same arguments. recipe.batch_size is
    that of all ranks together: each takes its part of every batch, and the gradient is the mean over the whole of it.
    So the number of ranks changes rounding and what is drawn at random (augmentation, dropout, mixing), and for nets
    with BatchNorm the images that its means are taken over: a rank's own. Rank 0 writes the checkpoint; all read it.

    Raises FloatingPointError, with the step, once a loss is not finite; ValueError for a checkpoint of another
    recipe, augmentation, objective, net or teacher, of other frozen parameters, or of other classes or images (every
    byte of them counts), for fewer images than ranks, an empty part, and a model without logits for each class or
    without parameters to train. What only one rank meets is a `ranks.RankError` on all.
    """
    if resume and not checkpoint:
        raise ValueError("resume=True goes on from a checkpoint: say which, checkpoint=PATH")
    for part, labels in {"to train on": dataset.train_labels, "held out": dataset.test_labels}.items():
        if not len(labels):
            raise ValueError(f"{dataset.name}: expected images {part}, one or more, got none")
    parameters = [*model.parameters()]
    if not any(p.requires_grad for p in parameters):
        got = f"{len(parameters)}, all frozen: set requires_grad of those to train" if parameters else "none"
        raise ValueError(f"expected parameters to train, got {got}")
    with modes_kept(model):
        if not model.training:
            model.train()
        return _fit(model, dataset, recipe, objective, device, checkpoint, resume, report)


def _fit(model, dataset, recipe, objective, device, checkpoint, resume, report) -> History:
    """`fit`, with the model in the modes in which it is to be trained."""
    device, ranks, modes = torch.device(device), processes.here(), own_modes(model)
    model.to(device)
    images, labels = dataset.train_images, dataset.train_labels
    ranks.check_enough({"to train on": len(labels), "held out": len(dataset.test_labels), "a batch": recipe.batch_size})
    sizes = batch_sizes(len(labels), recipe.batch_size)
    steps_per_epoch = len(sizes)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=device.type in ("cpu", "cuda")
    )
    schedule = make_schedule(optimizer, recipe.epochs * steps_per_epoch, recipe.warmup, recipe.schedule)
    scaler = make_scaler(device)
    mix = make_mixing(recipe, dataset.num_classes)
    averaged = None
    if recipe.ema_decay is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    history = History()
    parallel = model if ranks.world == 1 else DistributedDataParallel(model)

    # What a checkpoint holds besides the history: everything that changes from step to step.
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    if averaged is not None:
        stateful["averaged"] = averaged
    about = {}  # and what it says of the run
    if checkpoint:
        about["recipe"] = processes.agree(lambda: described(recipe, objective), (ValueError,))
        about |= {"data": described_data(dataset), "net": described_net(model)}
        _check_alike(about)
    if resume:
        history = processes.agree(
            lambda: _restore(Path(checkpoint), about, device, stateful, steps_per_epoch), (ValueError, OSError)
        )
        if len(found := set(processes.gather(len(history.epochs)))) > 1:
            raise ValueError(f"{checkpoint} has {sorted(found)} epochs, by rank: all machines must share its folder")

    hidden = not (ranks.first and show_progress())
    bar = tqdm(total=recipe.epochs * steps_per_epoch, initial=len(history.losses), leave=False, disable=hidden)
    for epoch in range(len(history.epochs), recipe.epochs):
        set_modes(modes)
        started, elapsed = time.perf_counter(), history.seconds
        recent: list[tuple[Tensor, Tensor]] = []  # losses and norms not yet read off the device, or off the ranks
        with seeded(recipe.seed * 100_003 + epoch + ranks.rank * 1_000_000_007, device):
            parts = batches(
                images,
                labels,
                recipe.batch_size,
                seed=recipe.seed * 100_003 + epoch,
                augment=recipe.augment,
                device=device,
                mean=dataset.mean,
                std=dataset.std,
                rank=ranks.rank,
                world=ranks.world,
            )
            for step, (x, y) in enumerate(parts):
                weight = ranks.weight(sizes[step])
                x, y = mix(x, y)
                with autocast(device):
                    outputs = parallel(x)
                    if not recent and objective is labels_alone:
                        _check_outputs(outputs, dataset.num_classes)
                    loss = weight * objective(outputs, x, y, recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                limit = float("inf") if recipe.clip_grad is None else recipe.clip_grad
                norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
                history.lrs.append(schedule.get_last_lr()[0])
                scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                if scaler.get_scale() >= scale:  # else a gradient overflowed and no step was taken
                    schedule.step()
                    if averaged is not None:
                        averaged.update_parameters(model)
                recent.append((loss.detach(), norm.detach()))
                if len(recent) == 25 or (device.type == "cpu" and ranks.world == 1):
                    _record(history, recent)
                bar.update()
            _record(history, recent)
        elapsed += time.perf_counter() - started
        try:
            val_loss, val_accuracy = _held_out(averaged if averaged is not None else model, dataset, device)
        except FloatingPointError as error:
            told = f"the held-out loss is not finite after step {len(history.losses)} ({error})"
            raise FloatingPointError(f"{told}. Lower the learning rate, or lengthen the warm-up") from None
        history.epochs.append(
            {
                "epoch": epoch + 1,
                "step": len(history.losses),
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": elapsed,
            }
        )
        bar.set_postfix_str(f"held-out accuracy {val_accuracy:.1%}")
        if checkpoint:
            states = {name: part.state_dict() for name, part in stateful.items()} if ranks.first else {}
            states |= about | {"history": asdict(history)}
            processes.agree(
                lambda states=states: save_checkpoint(Path(checkpoint), **states) if ranks.first else None,
                (OSError, RuntimeError),
            )
        if report:
            report(history.epochs[-1])
    bar.close()
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    return history


def _check_alike(about: dict) -> None:
    """Raise ValueError where some process was given another recipe, teacher or other images than this one."""
    for rank, theirs in enumerate(processes.gather(about)):
        for part in about:
            if changed := _changed(theirs[part], about[part], f"rank {rank}", f"rank {processes.here().rank}"):
                raise ValueError(f"the processes were not given the same ({changed})")


def _restore(path: Path, about: dict, device: torch.device, stateful: dict, steps_per_epoch: int) -> History:
    """Give every part its state in the checkpoint and return the history; an empty one where there is no file.

    The model stays as it was where the checkpoint is refused.
    """
    if not path.exists():
        return History()
    saved = _read_checkpoint(path, device)
    if changed := _changed(saved["recipe"], about["recipe"]):
        raise ValueError(f"{path} was written under another recipe ({changed}): delete it or change back")
    if changed := _changed(saved["data"], about["data"]):
        raise ValueError(f"{path} was written with other images or labels ({changed}): delete it or change back")
    if changed := _changed(saved.get("net", {}), about["net"]):
        raise ValueError(f"{path} was written for a net with other frozen parameters ({changed}): delete it")
    model, before = stateful["model"], copy.deepcopy(stateful["model"].state_dict())
    try:
        for name, part in stateful.items():
            if name != "scaler" or saved[name]:  # empty where it was written without float16: begin anew
                part.load_state_dict(saved[name])
        history = History(**saved["history"])
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        model.load_state_dict(before)
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":")
        raise ValueError(f"{path} was written for another net ({reason}): delete it or change back") from None
    if len(history.losses) != len(history.epochs) * steps_per_epoch:
        told = f"{len(history.losses)} steps in {len(history.epochs)} epochs, now {steps_per_epoch} an epoch"
        raise ValueError(f"{path} was written by another version of this loop ({told}): delete it")
    return history


def _held_out(model: nn.Module, dataset: Dataset, device: torch.device) -> tuple[float, float]:
    """Loss and accuracy on the test part: each rank evaluates its share of the images, and all get the whole."""
    ranks = processes.here()
    how = {"mean": dataset.mean, "std": dataset.std, "device": device}
    if ranks.world == 1:
        result = evaluate(model, dataset.test_images, dataset.test_labels, **how)
        return result.loss, result.accuracy
    for buffer in model.buffers():  # BatchNorm's running means: those of rank 0, which writes the checkpoint
        torch.distributed.broadcast(buffer, 0)
    mine = slice(ranks.rank, None, ranks.world)
    result = processes.agree(
        lambda: evaluate(model, dataset.test_images[mine], dataset.test_labels[mine], **how),
        (FloatingPointError, ValueError),
    )
    weight = len(result.logits) / len(dataset.test_labels)
    parts = processes.gather((weight * result.loss, weight * result.accuracy))
    return sum(loss for loss, _ in parts), sum(accuracy for _, accuracy in parts)


def _record(history: History, recent: list[tuple[Tensor, Tensor]]) -> None:
    """Move losses and gradient norms from the device into the history; raise at the first loss that is not finite."""
    world = processes.here().world
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


if __name__ == "__main__":
    from vitutils.cli import main

    main()
