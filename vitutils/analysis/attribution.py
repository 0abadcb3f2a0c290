"""What an answer depends on: gradients, occlusion, deletion. None looks at attention, so they work for CNNs too.

Chapter 10 writes out most of it in the same words, as second opinions on its maps.
Letters: B images, C H W, S squares.
"""

import torch
from torch import Tensor, nn

from vitutils.arguments import at_least_1, check_images, logits_for, shown
from vitutils.models.modes import eval_mode


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Check that maps (B, rows, columns) cut each of the images (B, C, H, W) into squares. Raises ValueError."""
    H, W = images.shape[-2:]
    if not isinstance(maps, Tensor):
        raise ValueError(f"expected maps (B, rows, columns), got {shown(maps)}")
    if maps.ndim != 3 or len(maps) != len(images) or 0 in maps.shape or maps.is_complex():
        raise ValueError(f"expected a map (rows, columns) for each of {len(images)} images, got {tuple(maps.shape)}")
    rows, columns = maps.shape[1:]
    side = max(1, W // columns)
    if (rows * side, columns * side) != (H, W):
        squares = (H // side) * (W // side)
        raise ValueError(f"expected {squares} squares of {side} pixels in {H} x {W}, got maps of {rows} x {columns}")
    if maps.isnan().any():
        raise ValueError("expected maps without nan, which can't be ranked")


def cover(fill: float | Tensor, images: Tensor) -> Tensor:
    """The value that covers a square, in the images' dtype: one for all, or one per channel (C, 1, 1)."""
    try:
        fill = torch.as_tensor(fill).to(images)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"expected a fill that is a number or a tensor of them, got {shown(fill)}") from None
    if not fill.isfinite().all():
        raise ValueError(f"expected a fill of finite numbers, got {shown(fill)}")
    if fill.numel() != 1 and tuple(fill.shape[-3:]) != (images.shape[1], 1, 1):
        raise ValueError(f"expected a fill that is one number or ({images.shape[1]}, 1, 1), got {tuple(fill.shape)}")
    return fill


def log_probability(
    model: nn.Module, images: Tensor, classes: Tensor
) -> Tensor:
    """The log-probability of one class per image: (B,), in eval mode.

    Raises ValueError if the inputs do not fit, or the model has no logits."""
    check_images(model, images)
    with eval_mode(model):  # afterwards its mode is restored
        every = logits_for(model(images), classes).log_softmax(dim=-1)
    return every.gather(1, classes[:, None])[:, 0]


def input_gradients(
    model: nn.Module, images: Tensor, classes: Tensor
) -> Tensor:
    """How the class's log-probability changes with each pixel: (B, C, H, W).

    The parameters' gradients stay as they are. Source: Simonyan et al. 2014.
    """
    check_images(model, images, classes)
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        total = log_probability(model, pixels, classes.clone()).sum()
        return torch.autograd.grad(total, pixels)[0]


def per_square(values: Tensor, side: int) -> Tensor:
    """Sum over squares: (..., H, W) -> (..., H/side, W/side).

    Raises ValueError if the side does not divide H and W.
    """
    at_least_1(side=side)
    H, W = values.shape[-2:]
    if H % side or W % side:
        raise ValueError(f"expected a side that divides {H} x {W}, got {side}")
    cut = values.unflatten(-1, (W // side, side))
    return cut.unflatten(-3, (H // side, side)).sum(dim=(-3, -1))


def covers(images: Tensor, side: int) -> Tensor:
    """One mask per square of side x side, row by row: bool (S, 1, H, W).

    Raises ValueError if the side does not divide H and W.
    """
    at_least_1(side=side)
    H, W = images.shape[-2:]
    if H % side or W % side:
        raise ValueError(f"expected a side that divides {H} x {W}, got {side}")
    rows, columns = H // side, W // side
    S = rows * columns
    masks = torch.eye(S, dtype=torch.bool, device=images.device)
    masks = masks.reshape(S, 1, rows, columns)
    return masks.repeat_interleave(side, -2).repeat_interleave(side, -1)


@torch.no_grad()
def occlusion(
    model: nn.Module, images: Tensor, classes: Tensor, side: int,
    fill: float = 0.0, size: int = 128,
) -> Tensor:  # fmt: skip
    """Cover each square: how far does the log-probability of the class fall?

    Returns (B, H/side, W/side). fill: the covering value, in the images' own
    units. size: images per forward pass. Source: Zeiler and Fergus 2014.
    """
    check_images(model, images)
    at_least_1(size=size)
    B, masks, fill = len(images), covers(images, side), cover(fill, images)
    pairs = torch.cartesian_prod(torch.arange(B), torch.arange(len(masks)))
    whole, covered = log_probability(model, images, classes), []
    for pair in pairs.to(images.device).split(size):
        b, s = pair.unbind(1)
        hidden = torch.where(masks[s], fill, images[b])
        covered.append(log_probability(model, hidden, classes[b]))
    drop = whole[:, None] - torch.cat(covered).unflatten(0, (B, -1))
    return drop.unflatten(1, (images.shape[-2] // side, -1))


@torch.no_grad()
def deletion(
    model: nn.Module, images: Tensor, classes: Tensor, maps: Tensor,
    fill: float = 0.0, steps: int = 10,
) -> Tensor:  # fmt: skip
    """The class's probability as squares are covered, a map's highest first.

    maps (B, rows, columns), one number per square -> (B, steps + 1). Column i
    has the share i / steps covered. The mean over columns is the area.
    Raises ValueError if cells are not squares. Source: Petsiuk et al. 2018.
    """
    check_images(model, images)
    check_maps(maps, images)
    at_least_1(steps=steps)
    masks = covers(images, images.shape[-1] // maps.shape[-1])
    S, fill, maps = len(masks), cover(fill, images), maps.to(images.device)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    curve = []
    for step in range(steps + 1):
        chosen = order[:, : S * step // steps]
        hidden = torch.stack([masks[squares].any(0) for squares in chosen])
        left = torch.where(hidden, fill, images)
        curve.append(log_probability(model, left, classes).exp())
    return torch.stack(curve, dim=1)
