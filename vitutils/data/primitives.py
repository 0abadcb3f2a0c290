"""Drawn point clouds whose truth is known: spheres, boxes, tori and others, as many as you like.

Everything random about cloud i comes from a generator keyed by the seed and by i, so cloud i doesn't depend on how many
are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitutils.data.points import sample_surface, unit_sphere

PRIMITIVES = ("sphere", "box", "cylinder", "cone", "torus", "pyramid", "capsule", "prism")
ROTATIONS = ("none", "upright", "any")
HOLE = 0.15  # the share of what is left of a surface that one hole takes away
TURN = np.linspace(0, np.pi, 49)


@dataclass(frozen=True, eq=False, repr=False)
class Primitives:
    """Clouds that `primitives` drew, and the truth about each.

    points: float32 (N, P, 3), z up.  labels: int64 (N,), the place in `classes`.  classes: K names.
    rotations: float32 (N, 3, 3), each cloud's R: its points are (upright points) @ R.T.
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    rotations: Tensor

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Primitives: {len(self):,} clouds of {self.points.shape[1]:,} points, {self.num_classes} classes>"


def primitives(
    n: int,
    seed: int,
    points: int = 1024,
    *,
    noise: float = 0.0,
    rotation: str = "none",
    holes: int = 0,
    classes: Sequence[str] = PRIMITIVES,
    start: int = 0,
) -> Primitives:
    """Draw n clouds of one body each: a sphere, box, cylinder, cone, torus, pyramid, capsule or prism.

    seed, start: cloud i of a seed is the same however many you draw; `start` begins with a later cloud than the first.
    points: P, drawn uniformly from the surface; then centred, in the unit sphere.
    noise: standard deviation of the noise that is added to each coordinate after that scaling.
    rotation: "none"; "upright", about z; or "any", all directions equally likely.
    holes: each removes 15 % of the surface, or of what is left of it, around one of its points.
    classes: which bodies, out of `PRIMITIVES`. Lengths and widths of each are drawn too.
    Raises ValueError for anything that cannot be drawn; the message says what can.
    """
    classes = tuple(classes)
    _check(n, seed, start, points, noise, rotation, holes, classes)
    clouds, labels, turns = [], [], []
    for i in range(start, start + n):
        rng = np.random.Generator(np.random.Philox(key=(seed << 64) + i))
        label, body = int(rng.integers(len(classes))), rng.random(2)
        cloud = _pierced(_surface(classes[label], body, points, holes, rng), points, holes, rng)
        cloud = unit_sphere(torch.from_numpy(cloud)).numpy()
        R = _rotation(rotation, rng)
        clouds.append(cloud @ R.T + noise * rng.standard_normal(cloud.shape))
        labels.append(label)
        turns.append(R)
    return Primitives(
        torch.from_numpy(np.stack(clouds)).float(),
        torch.tensor(labels),
        classes,
        torch.from_numpy(np.stack(turns)).float(),
    )


def _check(n, seed, start, points, noise, rotation, holes, classes) -> None:
    if n < 1 or start < 0 or seed < 0 or points < 8:
        raise ValueError(
            f"expected n >= 1, start >= 0, seed >= 0, points >= 8, "
            f"got n={n}, start={start}, seed={seed}, points={points}"
        )
    if not 0 <= noise <= 1:
        raise ValueError(f"expected noise from 0 to 1 (the cloud's radius is 1), got {noise}")
    if rotation not in ROTATIONS:
        raise ValueError(f"expected rotation out of {', '.join(ROTATIONS)}, got {rotation!r}")
    if not 0 <= holes <= 8:
        raise ValueError(f"expected 0 to 8 holes, got {holes}")
    if not classes or (unknown := [name for name in classes if name not in PRIMITIVES]):
        raise ValueError(f"expected classes out of {', '.join(PRIMITIVES)}; got {unknown if classes else 'none'}")


def _surface(name: str, body: np.ndarray, points: int, holes: int, rng: np.random.Generator) -> np.ndarray:
    """Enough points of a body for what the holes take; body: two numbers 0..1, which say how long and wide it is."""
    count = int(np.ceil(points / (1 - HOLE) ** holes)) + holes
    a, b = 0.4 + 0.6 * body
    if name in ("box", "pyramid", "prism"):
        return sample_surface(_hull(name, a, b), count, rng)
    arc = np.stack([np.sin(TURN), np.cos(TURN)], axis=1)  # a half circle, from the top to the bottom
    profile = {
        "sphere": lambda: arc,
        "cylinder": lambda: np.array([[0, b], [a, b], [a, -b], [0, -b]]),
        "cone": lambda: np.array([[0, 2 * b], [a, 0], [0, 0]]),
        "torus": lambda: 0.4 * a * np.stack([np.sin(2 * TURN), np.cos(2 * TURN)], axis=1) + [1, 0],
        "capsule": lambda: np.concatenate([a * arc[:25] + [0, b], a * arc[24:] - [0, b]]),
    }[name]()
    return _revolved(profile, count, rng)


def _hull(name: str, a: float, b: float) -> np.ndarray:
    """The triangles (F, 3, 3) of a box, a pyramid or a three-sided prism."""
    if name == "box":
        low = np.array([(x, y, -b) for x, y in ((-1, -a), (1, -a), (1, a), (-1, a))])
        high = low * [1, 1, -1]
    elif name == "pyramid":
        low = np.array([(x * a, y * a, 0.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
        high = np.tile([0, 0, 2 * b], (4, 1))
    else:
        low = np.array([(-1, 0, 0), (1, 0, 0), (0, 0, 2 * a)]) + [0, -b, 0]
        high = low * [1, -1, 1]
    around = [(i, (i + 1) % len(low)) for i in range(len(low))]
    sides = [face for i, j in around for face in ((low[i], low[j], high[i]), (high[i], low[j], high[j]))]
    ends = [(end[0], end[i], end[i + 1]) for end in (low, high) for i in range(1, len(low) - 1)]
    return np.array(sides + ends, float)


def _revolved(profile: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 3) of the surface that a line of points (radius, height) sweeps about z."""
    first, last = profile[:-1], profile[1:]
    areas = np.linalg.norm(last - first, axis=1) * (first + last)[:, 0]
    piece = rng.choice(len(areas), count, p=areas / areas.sum())
    u, angle = rng.random(count), 2 * np.pi * rng.random(count)
    r0, r1 = first[piece, 0], last[piece, 0]
    # Along a piece, places are as likely as the radius there is large.
    r = np.sqrt(r0**2 + u * (r1**2 - r0**2))
    along = np.where(np.abs(r1 - r0) < 1e-9, u, (r - r0) / np.where(np.abs(r1 - r0) < 1e-9, 1, r1 - r0))
    z = first[piece, 1] + along * (last - first)[piece, 1]
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)


def _pierced(cloud: np.ndarray, points: int, holes: int, rng: np.random.Generator) -> np.ndarray:
    """What holes leave of a cloud, `points` of it."""
    for _ in range(holes):
        away = np.linalg.norm(cloud - cloud[rng.integers(len(cloud))], axis=1)
        cloud = cloud[np.sort(np.argsort(away)[int(HOLE * len(cloud)) :])]
    return cloud[:points]


def _rotation(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix, (3, 3)."""
    if kind == "none":
        return np.eye(3)
    if kind == "upright":
        angle = 2 * np.pi * rng.random()
        return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    w, x, y, z = (quaternion := rng.standard_normal(4)) / np.linalg.norm(quaternion)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
