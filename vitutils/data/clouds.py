"""Point clouds for training and testing: batches with a few points of each, and clouds turned or cut in half."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def turn(points: Tensor, degrees: float | Tensor, axis: int = 2) -> Tensor:
    """Turn clouds about one axis, 0 to 2: points (B, N, 3), degrees one number, or one per cloud (B,)."""
    angles = torch.as_tensor(degrees, dtype=points.dtype, device=points.device).expand(len(points)) * (math.pi / 180)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # (B, 1)
    one, other = (axis + 1) % 3, (axis + 2) % 3
    turned = points.clone()
    turned[..., one] = cos * points[..., one] - sin * points[..., other]
    turned[..., other] = sin * points[..., one] + cos * points[..., other]
    return turned


def half(points: Tensor, axis: int, sign: int = 1) -> Tensor:
    """Keep the half of each cloud that lies furthest along an axis, or, with sign -1, the other way: (B, N/2, 3)."""
    order = (sign * points[..., axis]).argsort(dim=1, descending=True)  # (B, N)
    kept = order[:, : points.shape[1] // 2, None].expand(-1, -1, 3)
    return points.gather(1, kept)


def cloud_batches(
    points: Tensor, labels: Tensor, batch: int, count: int, seed: int, turned: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: clouds in a new order each epoch, `count` points of each drawn anew, stretched and shaken.

    points (M, N, 3), labels (M,) -> (batch, count, 3), (batch,). Each axis is stretched by 0.8 to 1.25, each coordinate
    moved by noise of standard deviation 0.01. turned: the axis about which each cloud is turned by any angle, or none.
    Raises ValueError if a cloud has fewer points, or if there are fewer clouds than a batch needs.
    """
    M, N, _ = points.shape
    if not (1 <= count <= N and 1 <= batch <= M):
        raise ValueError(f"expected up to {M} clouds of up to {N} points, got {batch} of {count}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(M, generator=generator)
        for chosen in order[: M // batch * batch].split(batch):
            some = torch.rand(batch, N, generator=generator).argsort(dim=1)[:, :count]  # (batch, count)
            drawn = points[chosen].gather(1, some[..., None].expand(-1, -1, 3))
            stretch = 0.8 * (1.25 / 0.8) ** torch.rand(batch, 1, 3, generator=generator)
            drawn = drawn * stretch + 0.01 * torch.randn(drawn.shape, generator=generator)
            if turned is not None:
                drawn = turn(drawn, 360 * torch.rand(batch, generator=generator), turned)
            yield drawn, labels[chosen]
