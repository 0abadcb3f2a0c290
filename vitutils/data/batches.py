"""Batches of images in memory, what is done to them on the way, and back for showing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from vitutils.distributed import share


def batch_sizes(count: int, size: int) -> list[int]:
    """How many images each batch of a training epoch has: `size`; the last one has what is left.

    If a single image is left, it joins the batch before it: BatchNorm can't measure a spread on one image, and raises
    an error if that image has only one position per channel.
    """
    full, left = divmod(count, size)
    if left == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size] * full + [left] * (left > 0)


def batches(
    images: Tensor,
    labels: Tensor,
    size: int,
    *,
    seed: int | None,
    augment: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
    mean: float | Sequence[float] | Tensor = 0.5,
    std: float | Sequence[float] | Tensor = 0.5,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: float images (b, C, H, W), normalised, and int64 labels (b,), on `device`.

    images: uint8 (N, C, H, W), 0..255, or float, 0..1.  labels: int64 (N,).
    size: images per batch; the last one takes what is left, as `batch_sizes` explains.
    seed: decides the order and what `augment` draws; use a new one for each epoch. None: in order, for evaluation; then
    the last batch may have one image.
    augment: function of a batch on `device`, before normalisation, in the images' own dtype.
    mean, std: per channel, of images scaled to 0..1; the defaults map 0..1 to -1..1.
    rank, world: with several processes, each takes its part of every batch (`distributed.share`). If a batch is too
    small to give each of them two images, some get none of their own: they get its first two, with `Ranks.weight` 0.
    The same seed gives the same batches on one device, whatever was drawn before, and torch's own
    random state stays as it was. Raises ValueError for shapes or dtypes that do not fit.

    A trap: torchvision's v2 transforms draw once per call, so that on a batch *every image gets the
    same crop and flip* (pytorch/vision issue 8484). Use `flip_shift()`, or
    `per_image(transform)`, which calls any v2 transform once per image.
    """
    check_pair(images, labels)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images: expected uint8 or float, got {images.dtype}")
    if size < 1:
        raise ValueError(f"expected a batch size of 1 or more, got {size}")
    if not 0 <= rank < world:
        raise ValueError(f"expected 0 <= rank < world, got rank {rank} of {world}")
    return _batches(images, labels, size, seed, augment, torch.device(device), mean, std, rank, world)


def _batches(images, labels, size, seed, augment, device, mean, std, rank, world):
    count = len(labels)
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    order = torch.arange(count) if seed is None else torch.randperm(count, generator=generator)
    for batch in order.split(size if seed is None else batch_sizes(count, size)):
        chosen = batch[list(share(rank, world, len(batch))) or slice(2)]
        picked = images[chosen.to(images.device)].to(device)
        targets = labels[chosen.to(labels.device)].to(device)
        if augment is not None:
            with seeded(int(torch.randint(2**62, (), generator=generator)) + rank, device):
                picked = augment(picked)
        yield normalise(picked, mean, std), targets


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, random numbers on the CPU and `device` start from `seed`; afterwards they go on as before."""
    side = None if device.type == "cpu" else getattr(torch, device.type)  # torch.cuda, torch.mps
    where = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    before = torch.get_rng_state()
    with where:
        before_side = side and side.get_rng_state()
        torch.default_generator.manual_seed(seed)
        if side:
            side.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        with where:
            if side:
                side.set_rng_state(before_side)


def flip_shift(pad: int = 2, flip: bool = True) -> Callable[[Tensor], Tensor]:
    """An augmentation for `batches`: each image mirrored or not, and shifted by up to `pad` pixels.

    It does to a batch what torchvision's RandomCrop(padding=pad) and RandomHorizontalFlip do to an
    image, with one draw *per image*, in one gather: 0.1 s for 60,000 images of 28 x 28 on one core;
    calling the two transforms once per image takes 2.3 s. Pixels that move in from outside are 0.
    flip: leave it off if left and right mean something (digits, letters).
    """

    def augment(images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        device = images.device
        shift = torch.randint(2 * pad + 1, (2, B, 1), device=device)
        rows = torch.arange(H, device=device) + shift[0]  # (B, H)
        columns = torch.arange(W, device=device).expand(B, W)
        if flip:
            mirrored = torch.rand(B, 1, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        columns = columns + shift[1]  # (B, W)
        padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
        pixels = rows[:, :, None] * (W + 2 * pad) + columns[:, None, :]  # (B, H, W)
        pixels = pixels.reshape(B, 1, H * W).expand(B, C, H * W)
        return padded.gather(2, pixels).reshape(B, C, H, W)

    return augment


def per_image(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An augmentation for `batches` made from any torchvision v2 transform, called once per image."""
    return lambda images: torch.stack([transform(image) for image in images])


def normalise(
    images: Tensor,
    mean: float | Sequence[float] | Tensor = 0.5,
    std: float | Sequence[float] | Tensor = 0.5,
) -> Tensor:
    """(images - mean) / std per channel. images: (..., C, H, W), uint8 0..255 or float 0..1."""
    if not images.is_floating_point():
        images = images / 255
    return (images - per_channel(mean, images)).div_(per_channel(std, images))


def denormalise(
    images: Tensor,
    mean: float | Sequence[float] | Tensor = 0.5,
    std: float | Sequence[float] | Tensor = 0.5,
) -> Tensor:
    """Undo `normalise`, for showing: float (..., C, H, W), clipped to 0..1."""
    return (images * per_channel(std, images) + per_channel(mean, images)).clamp(0, 1)


def per_channel(value: float | Sequence[float] | Tensor, images: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    if len(value) not in (1, images.shape[-3]):
        raise ValueError(f"expected 1 or {images.shape[-3]} values, one per channel, got {len(value)}")
    return value


def check_pair(images: Tensor, labels: Tensor, what: str = "images") -> None:
    if images.ndim != 4:
        raise ValueError(f"{what}: expected shape (N, C, H, W), got {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{what}: expected {len(images)} labels, one per image, got {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"{what}: expected int64 labels, got {labels.dtype}")


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of images scaled to 0..1, from a count of each value."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)  # (C, 256)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().float()
