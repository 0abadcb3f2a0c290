"""Arguments of functions: in the form needed, or an error that says what was expected, what came and what to do.

Used by `training` and `analysis`, and by the chapters that write out parts of them. All raise ValueError.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils._numbers import at_least_1, checked_number, checked_rate, plain, shown  # noqa: F401

NOT_ASKED = object()


def checked_labels(labels: Tensor) -> Tensor:
    """Labels (N,), whole numbers from 0 of any integer type, as int64 in the machine's own memory."""
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or not len(labels) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"expected labels (N,), whole numbers, one or more, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.detach().cpu().long()
    if labels.min() < 0:
        raise ValueError(f"expected labels from 0, got {labels.min().item()}: leave out images without a label")
    return labels


def checked_features(x: Tensor, y: Tensor, new_x: Tensor, classes: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Features x (N, D) and new_x (M, D) as float32, labels y (N,) as int64, all in the machine's own memory.

    Any real type goes, half precision too, and M may be 0. classes: how many different labels there must be.
    """
    y, x, new_x = checked_labels(y), _as_tensor(x), _as_tensor(new_x)
    shapes = tuple(x.shape), tuple(new_x.shape)
    if x.ndim != 2 or new_x.ndim != 2 or x.shape[1] != new_x.shape[1] or not x.shape[1] or len(x) != len(y):
        raise ValueError(f"expected features (N, D) for {len(y)} labels, and new ones (M, D), got {shapes}")
    if x.is_complex() or new_x.is_complex():
        raise ValueError(f"expected real features, got {x.dtype} and {new_x.dtype}")
    x, new_x = (part.detach().cpu().float() for part in (x, new_x))
    for name, part in {"known": x, "new": new_x}.items():
        if not part.isfinite().all():
            rows = (~part.isfinite()).any(dim=1).sum().item()
            raise ValueError(f"expected finite features, got nan or inf in {rows} of {len(part)} {name} ones")
    if (found := len(y.unique())) < classes:
        raise ValueError(f"expected images of {classes} classes or more, got {found}: {y.unique().tolist()}")
    return x, y, new_x


def _as_tensor(x: object) -> Tensor:
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"expected features as a tensor (N, D), got {shown(x)}") from None


def unit_rows(x: Tensor) -> Tensor:
    """Rows (N, D) scaled to length 1, however long or short they are; rows of zeros stay zero."""
    largest = x.abs().amax(dim=1, keepdim=True)  # squares of the largest numbers overflow, of the smallest vanish
    return F.normalize(torch.where(largest > 0, x / largest, x))


def shape_of(outputs: object) -> tuple | str:
    """The shape of a tensor; of anything else, what it is, in words."""
    return tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"


def check_images(model: nn.Module, images: Tensor, classes: object = NOT_ASKED) -> None:
    """Check that the model can take images (B, C, H, W): finite floats of its own dtype, on its own device."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a model that is an nn.Module, got {shown(model)}")
    if classes is not NOT_ASKED and not isinstance(classes, Tensor):
        raise ValueError(f"expected classes, int64 (B,), got {shown(classes)}")
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.numel():
        got = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(f"expected images (B, C, H, W), one or more, got {got}")
    if not images.is_floating_point():
        raise ValueError(f"expected float images, normalised as the model was trained, got {images.dtype}")
    own = [p for p in model.parameters() if p.is_floating_point()]
    if own and images.device not in {p.device for p in own}:
        raise ValueError(f"expected images on {own[0].device}, where the model is, got {images.device}: move them")
    cast = torch.is_autocast_enabled(images.device.type) if images.device.type != "meta" else True
    if own and not cast and images.dtype not in {p.dtype for p in own}:
        raise ValueError(f"expected images as {own[0].dtype}, which the model computes in, got {images.dtype}")
    if images.device.type != "meta" and not images.isfinite().all():
        raise ValueError("expected finite images, got nan or inf among the pixels")


def logits_for(outputs: Tensor, classes: Tensor) -> Tensor:
    """A model's output, where it is logits (B, K) that have a place for every one of the classes (B,)."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(f"expected logits (B, K), got {got}: wrap the model so that it gives its logits alone")
    B, K = outputs.shape
    if not isinstance(classes, Tensor):
        raise ValueError(f"expected {B} classes, int64 (B,), got {shown(classes)}")
    if classes.shape != (B,) or classes.dtype != torch.int64:
        raise ValueError(f"expected {B} classes, int64 (B,), got {classes.dtype} of shape {tuple(classes.shape)}")
    if B and not 0 <= classes.min() <= classes.max() < K:
        raise ValueError(f"expected classes from 0 to {K - 1}, got {classes.min().item()} to {classes.max().item()}")
    return outputs


def check_training(dataset, steps: int, batch_size: int) -> None:
    """Check that there is a set to train on, and that steps and batch size are usable numbers."""
    at_least_1(steps=steps, batch_size=batch_size)
    if not len(dataset.train_labels):
        raise ValueError(f"{dataset.name}: no images to train on")
