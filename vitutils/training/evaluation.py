"""How well a model does: its loss and accuracy on labelled images, and what happened in a run."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.arguments import checked_labels, logits_for
from vitutils.data.batches import batches
from vitutils.data.sets import Dataset
from vitutils.models.modes import eval_mode


class Evaluation(NamedTuple):
    """Mean cross-entropy in nats, accuracy 0..1, and the logits (N, K) on the CPU."""

    loss: float
    accuracy: float
    logits: Tensor


@dataclass
class History:
    """What happened in a run: one entry per batch in losses, lrs and grad_norms, one per finished epoch in epochs.

    If a gradient overflowed in float16, its norm is not finite, no step was taken, and the next has the same rate.
    epochs: dicts with epoch, step, val_loss, val_accuracy, and the seconds of training so far (without evaluation).
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
        """Seconds of training, without evaluation."""
        return self.epochs[-1]["seconds"] if self.epochs else 0.0

    def __str__(self) -> str:
        if not self.epochs:
            return "no finished epoch"
        return (
            f"{len(self.epochs)} epochs, {len(self.losses)} steps, {self.seconds:.0f} s: "
            f"held-out loss {self.epochs[-1]['val_loss']:.3f}, accuracy {self.accuracy:.1%}"
        )

    def plot(self):
        """Draw the training loss per step and the held-out accuracy per epoch; returns the figure."""
        from vitutils import plot  # matplotlib, for those who draw

        steps = [e["step"] for e in self.epochs]
        accuracy = [100 * e["val_accuracy"] for e in self.epochs]
        return plot.history({"run": self.losses}, {"run": (steps, accuracy)}, ylabel="held-out accuracy, %")


def autocast(device: torch.device):
    """Half precision on a GPU (bfloat16 if it supports that, otherwise float16); full precision elsewhere."""
    if device.type != "cuda":
        return nullcontext()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", dtype=torch.bfloat16 if bf16 else torch.float16)


def make_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Scale the loss if `autocast` uses float16, so that small gradients do not vanish; otherwise do nothing."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.amp.GradScaler(device.type, enabled=half)


@torch.no_grad()  # not inference_mode: a table that a module keeps from here could not be trained with
def evaluate(
    model: nn.Module,
    images: Dataset | Tensor,
    labels: Tensor | None = None,
    *,
    mean=None,
    std=None,
    device="cpu",
    batch_size: int = 500,
) -> Evaluation:
    """Evaluate on the test part of a `Dataset`, in eval mode; afterwards each module is back in its own mode.

    Or on uint8 images (N, C, H, W) and int64 labels (N,), which need mean and std, per channel: those that the model
    was trained with.
    Raises ValueError if there are no images, if labels are not classes, or if the model returns anything but logits
    (B, K) with a column for each class; FloatingPointError if the loss is not finite, since argmax then means nothing.
    """
    if isinstance(images, Dataset):
        if any(one is not None for one in (labels, mean, std)):
            raise ValueError("expected only a Dataset, which has labels, mean and std, or images with all three")
        images, labels, mean, std = images.test_images, images.test_labels, images.mean, images.std
    elif labels is None or mean is None or std is None:
        raise ValueError("expected a Dataset, or images with labels, mean=... and std=...")
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
        raise ValueError(f"expected {len(images)} labels, one per image, got {len(labels)}")
    return labels
