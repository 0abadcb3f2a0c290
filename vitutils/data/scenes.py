"""Scenes of several drawn shapes, with the true class of every pixel. Used by `vitutils.data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitutils.data.synthetic import BLOCK, Shapes, _cover, _Draws, shapes

KINDS = ("disc", "square", "cross", "star")


@dataclass(frozen=True, eq=False, repr=False)
class Scenes:
    """Drawn scenes. images: uint8 (N, 3, H, W).  masks: int64 (N, H, W), the place in `classes`; "ground" is 0."""

    images: Tensor
    masks: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"<Scenes: {len(self):,} images of {size}, {len(self.classes)} classes>"


def coverage(drawn: Shapes, seed: int, start: int = 0) -> Tensor:
    """How much of each pixel the shape covers, 0..1, float32 (N, H, W), in images that `shapes` drew.

    seed, start: as `shapes` got them.
    """
    size, parts, done = drawn.images.shape[-1], [], 0
    circles = torch.cat([drawn.centres, drawn.radii[:, None]], dim=1).numpy()
    while done < len(drawn):
        block, low = divmod(start + done, BLOCK)
        count = min(BLOCK - low, len(drawn) - done)
        turn = _Draws(seed, block, 8).turn[low : low + count]  # drawn before what depends on the size
        labels = drawn.labels[done : done + count].numpy()
        part = np.empty((count, size, size), np.float32)
        for k in np.unique(labels):
            own = labels == k
            part[own] = _cover(drawn.classes[k], circles[done : done + count][own], turn[own], size)
        parts.append(part)
        done += count
    return torch.from_numpy(np.concatenate(parts))


def scenes(
    n: int, seed: int, size: int = 112, *, count: int = 3, scale: tuple[float, float] = (0.14, 0.24),
    classes: Sequence[str] = KINDS,
) -> Scenes:  # fmt: skip
    """Draw n scenes of `count` shapes on one textured background; a later shape hides the ones below it.

    A pixel belongs to a shape that covers at least half of it. The same seed gives the same scenes, whatever n is.
    Raises ValueError like `shapes`, and for a count below 1.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"expected a count of 1 shape a scene or more, got {count!r}")
    images, masks = None, torch.zeros(max(n, 0), size, size, dtype=torch.int64)
    for layer in range(count):
        own = seed * count + layer
        drawn = shapes(n, own, size, scale=scale, classes=classes)
        inside = coverage(drawn, own) >= 0.5
        images = drawn.images.clone() if images is None else torch.where(inside[:, None], drawn.images, images)
        masks = torch.where(inside, drawn.labels[:, None, None] + 1, masks)
    return Scenes(images, masks, ("ground", *classes))
