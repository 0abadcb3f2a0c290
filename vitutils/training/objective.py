"""The loss of a network without a teacher, and the mixing of its images."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from vitutils.training.recipe import Recipe


def labels_alone(outputs: Tensor, images: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The objective of a network without a teacher: cross-entropy of logits (B, K) with the labels."""
    check_outputs(outputs)
    return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)


def check_outputs(outputs: object, K: int | None = None) -> None:
    """Check that they are logits (B, K), by shape only: values would have to be copied from the device."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"expected logits (B, K), got a {type(outputs).__name__}: pass an objective that accepts it")
    if outputs.ndim != 2 or (K is not None and outputs.shape[1] < K):
        wanted = "K" if K is None else K
        raise ValueError(f"expected logits (B, {wanted}), got {tuple(outputs.shape)}: give the net a head of {wanted}")


def make_mixing(recipe: Recipe, num_classes: int) -> Callable:
    """torchvision's MixUp and CutMix as the recipe asks: a function of (images, labels); with neither, the identity."""
    kinds = [(v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix)]
    chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    if not chosen:
        return lambda images, labels: (images, labels)
    return v2.RandomChoice(chosen)
