"""Drawn images whose truth is known: coloured shapes on a textured background. Used by `vitutils.data`.

Everything random about image i comes from a counter-based generator keyed by the seed and by i's
block of 64, so image i does not depend on how many are drawn. Drawing uses only + - * / sqrt, min
and max on each pixel by itself, so neither block size nor number of threads can change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHAPES = ("disc", "ring", "square", "triangle", "cross", "diamond", "star", "half-disc")
BLOCK = 64  # images drawn together: small enough to stay in the processor's cache
GRID = 5  # random heights per side that the ground's slow texture runs through
SIDES = {  # positions by name: the part of the image that holds the whole shape, (x0, x1), (y0, y1)
    "any": ((0.0, 1.0), (0.0, 1.0)),
    "left": ((0.0, 0.5), (0.0, 1.0)),
    "right": ((0.5, 1.0), (0.0, 1.0)),
    "top": ((0.0, 1.0), (0.0, 0.5)),
    "bottom": ((0.0, 1.0), (0.5, 1.0)),
    "centre": ((0.5, 0.5), (0.5, 0.5)),
}
Range = tuple[float, float]


@dataclass(frozen=True, eq=False, repr=False)
class Shapes:
    """Images that `shapes` drew, and the truth about each.

    images: uint8 (N, 3, H, W).  labels: int64 (N,), indices into `classes`.  classes: K names.
    centres: float32 (N, 2), x from the left, y from the top, in pixels; the corner is (0, 0).
    radii: float32 (N,), in pixels: of the circle around the shape.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    centres: Tensor
    radii: Tensor

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"<Shapes: {len(self):,} images of {size}, {self.num_classes} classes>"


def shapes(
    n: int,
    seed: int,
    size: int = 32,
    *,
    positions: str | tuple[Range, Range] = "any",
    scale: Range = (0.14, 0.24),
    background: str = "textured",
    classes: Sequence[str] = SHAPES,
    start: int = 0,
) -> Shapes:
    """Draw n images of one coloured shape each, on a textured background.

    seed, start: image i of a seed is the same to the bit however many you draw; `start` begins with
    a later image than the first (a test part, or the next thousand).  size: H = W, in pixels.
    positions: "any", "left", "right", "top", "bottom": the whole shape lies in that part; "centre";
    or ((x0, x1), (y0, y1)): where its centre lies, as fractions of the image from the left and from
    the top (the shape may then extend beyond the edge).
    scale: smallest and largest radius of the circle around the shape, as fractions of the image.
    background: "textured" (a tone in slow waves, with grain) or "plain" (one tone).
    classes: which shapes, out of `SHAPES`.

    Kind, colours, background and a rotation of up to 20 degrees do not depend on position and scale:
    two calls that differ only in `positions` show the same shapes in other positions. Colour says
    nothing about the kind. Raises ValueError for anything that cannot be drawn, and says what can.
    """
    classes = tuple(classes)
    region = _check(n, seed, start, size, positions, scale, background, classes)
    images = np.empty((n, 3, size, size), np.uint8)
    labels = np.empty(n, np.int64)
    circles = np.empty((n, 3), np.float32)  # x, y, radius
    first, done = start // BLOCK, 0
    while done < n:
        draw = _Draws(seed, first, size)
        low = start + done - first * BLOCK
        here = slice(low, min(BLOCK, low + n - done))
        there = slice(done, done + here.stop - here.start)
        labels[there] = np.minimum(draw.kind[here] * len(classes), len(classes) - 1)
        circles[there] = _circles(draw, here, size, region, positions in SIDES, scale)
        kinds = np.array([SHAPES.index(name) for name in classes])[labels[there]]
        _paint(images[there], kinds, circles[there], draw, here, background)
        first, done = first + 1, there.stop
    return Shapes(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        classes,
        torch.from_numpy(circles[:, :2].copy()),
        torch.from_numpy(circles[:, 2].copy()),
    )


def _check(n, seed, start, size, positions, scale, background, classes) -> tuple[Range, Range]:
    if n < 1 or start < 0 or seed < 0 or size < 8:
        raise ValueError(
            f"expected n >= 1, start >= 0, seed >= 0, size >= 8, got n={n}, start={start}, seed={seed}, size={size}"
        )
    if not classes or (unknown := [name for name in classes if name not in SHAPES]):
        raise ValueError(f"expected classes from {', '.join(SHAPES)}; got {unknown if classes else 'none'}")
    if background not in ("textured", "plain"):
        raise ValueError(f"expected background 'textured' or 'plain', got {background!r}")
    if not 0 < scale[0] <= scale[1] <= 0.5:
        raise ValueError(f"expected scale (low, high), 0 < low <= high <= 0.5, got {scale}")
    if isinstance(positions, str):
        if positions not in SIDES:
            raise ValueError(f"expected a position from {', '.join(SIDES)}, or two ranges, got {positions!r}")
        region = SIDES[positions]
        room = min(high - low for low, high in region)
        if positions != "centre" and 2 * scale[1] > room:
            raise ValueError(f"positions={positions!r} has room for a scale up to {room / 2}, got {scale}")
        return region
    (x0, x1), (y0, y1) = positions
    if not (0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1):
        raise ValueError(f"expected positions ((x0, x1), (y0, y1)) within 0..1, got {positions}")
    return positions


class _Draws:
    """Everything random about one block of images, always drawn for the whole block."""

    def __init__(self, seed: int, block: int, size: int) -> None:
        rng = np.random.Generator(np.random.Philox(key=(seed << 64) + block))
        uniform = rng.random((14, BLOCK))
        self.kind, self.x, self.y, self.scale, self.turn, self.bright, self.gap = uniform[:7]
        self.tints = uniform[7:13].reshape(2, 3, BLOCK).astype(np.float32)
        self.waves = rng.random((BLOCK, GRID, GRID), np.float32)
        self.grain = rng.integers(0, 256, (BLOCK, size, size), np.uint8)


def _circles(draw: _Draws, here: slice, size: int, region, inside: bool, scale: Range) -> np.ndarray:
    """Centre and radius of each shape in pixels, (b, 3)."""
    radius = scale[0] + draw.scale[here] * (scale[1] - scale[0])
    ends = []
    for (low, high), u in zip(region, (draw.x[here], draw.y[here]), strict=True):
        margin = np.minimum(radius, (high - low) / 2) if inside else 0 * radius
        ends.append(low + margin + u * (high - low - 2 * margin))
    return (np.stack([*ends, radius], 1) * size).astype(np.float32)


def _paint(out, kinds, circles, draw: _Draws, here: slice, background: str) -> None:
    """Ground, then the shape over it, each pixel's share by how much of it the shape covers. out:
    (b, 3, H, W)."""
    size = out.shape[-1]
    one = np.float32(1)
    # Brightness: the shape's lies at least 0.32 from the ground's; both lie within 0.1 to 0.9.
    bright = draw.bright[here].astype(np.float32)
    other = bright + np.float32(0.4) + np.float32(0.2) * draw.gap[here].astype(np.float32)
    other = np.where(other >= 1, other - one, other)
    bright, other = (np.float32(0.1) + np.float32(0.8) * value for value in (bright, other))
    tints = draw.tints[:, :, here] - draw.tints[:, :, here].mean(1, keepdims=True)
    ground = (bright + np.float32(0.3) * tints[0]).T[:, :, None, None]  # (b, 3, 1, 1)
    colour = (other + np.float32(0.8) * tints[1]).T[:, :, None, None]

    cover = np.empty((len(kinds), 1, size, size), np.float32)
    for kind in np.unique(kinds):
        chosen = kinds == kind
        cover[chosen, 0] = _cover(SHAPES[kind], circles[chosen], draw.turn[here][chosen], size)
    if background == "textured":
        texture = np.float32(0.3) * (_waves(draw.waves[here], size) - np.float32(0.5))
        texture += np.float32(0.12 / 255) * (draw.grain[here] - np.float32(127.5))
        ground = ground + texture[:, None]
    np.clip(ground, 0, 1, out=ground)
    pixels = cover * (np.clip(colour, 0, 1) - ground)  # (b, 3, H, W)
    pixels += ground
    pixels *= np.float32(255)
    pixels += np.float32(0.5)
    out[...] = pixels


def _waves(heights: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation of (b, GRID, GRID) heights to (b, H, W)."""
    place = np.arange(size, dtype=np.float32) * np.float32((GRID - 1) / (size - 1))
    left = np.minimum(place.astype(np.int64), GRID - 2)
    share = place - left.astype(np.float32)
    rows = heights[:, left] + share[:, None] * (heights[:, left + 1] - heights[:, left])
    return rows[:, :, left] + share * (rows[:, :, left + 1] - rows[:, :, left])


def _cover(name: str, circles: np.ndarray, turn: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel a shape covers, 0..1, (b, H, W): 1/2 where its edge meets the pixel's
    middle."""
    x, y, radius = (column[:, None, None] for column in circles.T)
    # cos and sin of a turn by 2 atan(t): exact arithmetic, the same on every machine.
    t = ((2 * turn - 1) * 0.176).astype(np.float32)[:, None, None]
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    middle = np.arange(size, dtype=np.float32) + np.float32(0.5)
    across, down = (middle - x) / radius, (middle[:, None] - y) / radius
    edge = _edge(name, across * cos + down * sin, down * cos - across * sin)
    return np.clip(np.float32(0.5) - edge * radius, 0, 1)


def _edge(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the edge, negative inside; the shape fills the unit circle. x right, y down."""
    circle = np.sqrt(x * x + y * y) - np.float32(1)
    if name == "disc":
        return circle
    if name == "ring":
        return np.abs(circle + np.float32(0.25)) - np.float32(0.25)
    if name == "half-disc":
        edge = -y
    elif name == "square":
        edge = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.7071)
    elif name == "cross":
        x, y = np.abs(x), np.abs(y)
        edge = np.maximum(np.maximum(x, y) - np.float32(0.95), np.minimum(x, y) - np.float32(0.3))
    elif name == "diamond":  # half as wide as high; 0.894, 0.447: the edge's normal
        edge = np.float32(0.8944) * np.abs(x) + np.float32(0.4472) * (np.abs(y) - np.float32(1))
    elif name == "triangle":  # three lines at distance 1/2, each turned by a third
        slanted = np.float32(0.866) * np.abs(x) - np.float32(0.5) * y
        edge = np.maximum(slanted, y) - np.float32(0.5)
    else:  # star: inside at least four of the five lines that a pentagram is drawn with
        normals = ((0, 1), (0.9511, 0.309), (0.5878, -0.809), (-0.5878, -0.809), (-0.9511, 0.309))
        best = second = np.full_like(x, -np.inf)
        for nx, ny in normals:
            line = np.float32(nx) * x + np.float32(ny) * y
            second = np.maximum(second, np.minimum(best, line))
            best = np.maximum(best, line)
        edge = second - np.float32(0.309)
    return np.maximum(edge, circle)  # a sharp corner's soft edge does not reach beyond it


# --- two blobs: chapter 1 writes this out ---


def check_room(n: int, distances: list, size: tuple) -> None:
    """Check that two blobs at these distances, whole numbers, fit into images of this size; else raise ValueError."""
    H, W = size
    if n < 1 or not len(distances):
        raise ValueError(f"expected one image or more and one distance or more, got {n} and {list(distances)}")
    wrong = [d for d in distances if d != int(d) or not 1 <= d <= W - 5]
    if H < 3 or wrong:
        raise ValueError(f"expected H of 3 or more and whole distances from 1 to {W - 5}, got {H} x {W}, {wrong}")


def two_blobs(
    n: int, distances: list, seed: int, size: tuple = (6, 36)
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw two 3 x 3 blobs in one row: of one colour (1) or of two (0).

    distances: steps from the last column of one blob to the first of the
    other. Distances and labels alternate, so each occurs equally often.
    Returns uint8 images (n, 3, H, W), labels (n,) and distances (n,).
    Raises ValueError if there is no room: H must be at least 3, and a
    distance from 1 to W - 5.
    """
    check_room(n, distances, size)
    generator = torch.Generator().manual_seed(seed)

    def draw(upto):  # one integer per image, from 0 to upto - 1
        return (torch.rand(n, generator=generator) * upto).long()

    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    (H, W), image = size, torch.arange(n)
    labels = image % 2
    distance = torch.tensor(distances)[image // 2 % len(distances)]
    first, other = draw(4), draw(3)
    second = torch.where(labels == 1, first, (first + 1 + other) % 4)
    row, left = draw(H - 2), draw(W - 4 - distance)
    images = torch.zeros(n, 3, H, W, dtype=torch.uint8)
    for colour, start in (first, left), (second, left + 2 + distance):
        pixel = (255 * colours[colour]).byte()  # (n, 3)
        for y in range(3):
            for x in range(3):
                images[image, :, row + y, start + x] = pixel
    return images, labels, distance
