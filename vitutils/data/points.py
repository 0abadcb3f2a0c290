"""Sets of point clouds: the book's own, made from 3-D models of objects, and aerial scans if this machine has them.

A cloud is (N, 3) float32: x to the right, y away from you, z up. Letters: M clouds, N points of a cloud, K classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vitutils.data._splits import class_counts, split_off
from vitutils.data.sources import DataError
from vitutils.files import data_folders, short

POINT_SETS = ("solids", "dales_500")
FOLDS = 3
SOLIDS = Path(__file__).resolve().parent.parent / "solids.safetensors"
DALES_CLASSES = ("building", "car", "fence", "pole", "tree")


@dataclass(frozen=True, eq=False, repr=False)
class PointSet:
    """A labelled set of point clouds, split in two by object, all in memory.

    name: as given to `load_points`.  source: where the clouds came from, for people to read.
    train_points, test_points: float32 (M, N, 3), z up.  train_labels, test_labels: int64 (M,), 0..K-1.
    classes: K names.  train_names, test_names: what each object is, for captions; one for each cloud.
    train_sizes, test_sizes: float32 (M, 3), width, depth and height of the objects before they were scaled, in cm;
    NaN where they are not known.
    Raises ValueError for a shape, dtype or label that does not fit, and for points that are NaN or infinite.
    """

    name: str
    train_points: Tensor
    train_labels: Tensor
    test_points: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    train_sizes: Tensor
    test_sizes: Tensor
    source: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            points, labels, names, sizes = (getattr(self, f"{part}_{kind}") for kind in _KINDS)
            where, M = f"{self.name}, {part}", len(labels)
            if points.dtype != torch.float32 or points.dim() != 3 or points.shape[2] != 3:
                got = f"{points.dtype} {tuple(points.shape)}"
                raise ValueError(f"{where}: expected float32 points (M, N, 3), got {got}")
            if labels.dtype != torch.int64 or not len(points) == M == len(names) == len(sizes):
                got = f"{len(points)} clouds, {M} labels ({labels.dtype}), {len(names)} names, {len(sizes)} sizes"
                raise ValueError(f"{where}: expected as many clouds as int64 labels, names and sizes, got {got}")
            if not points.isfinite().all():
                raise ValueError(f"{where}: expected finite coordinates, got NaN or infinity")
            low, high = (int(labels.min()), int(labels.max())) if M else (0, 0)
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"{where}: expected labels 0..{self.num_classes - 1}, got {low}..{high}")

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def num_points(self) -> int:
        """N, the number of points per cloud."""
        return self.train_points.shape[1]

    def summary(self) -> str:
        """One line: name, sizes, points per cloud, classes, source; and clouds per class if these differ a lot."""
        told = class_counts(self.classes, self.train_labels, self.test_labels)
        return (
            f"{self.name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test clouds of "
            f"{self.num_points:,} points, {self.num_classes} classes{told}, from {self.source}"
        )

    def __repr__(self) -> str:
        return f"<PointSet {self.summary()}>"

    def hold_out(self, count: int, seed: int = 0) -> PointSet:
        """A set to choose with: `count` training clouds, in proportion for each class, become its test part.

        Every class keeps at least one cloud on either side. Choose rates on this set, and keep the real test part for
        one last evaluation. Raises ValueError, naming them, if classes have a single cloud, and if count is too small
        or too large.
        """
        held = split_off(self.train_labels, count, seed, self.classes)
        return replace(
            self, name=f"{self.name}, {count:,} held out",
            **_part("train", ~held, *(getattr(self, f"train_{kind}") for kind in _KINDS)),
            **_part("test", held, *(getattr(self, f"train_{kind}") for kind in _KINDS)),
        )  # fmt: skip


_KINDS = ("points", "labels", "names", "sizes")


def _part(part: str, chosen: Tensor, points: Tensor, labels: Tensor, names: tuple[str, ...], sizes: Tensor) -> dict:
    """The fields of one part of a PointSet: of all these clouds the chosen ones, bool (M,)."""
    kept = tuple(name for name, keep in zip(names, chosen.tolist(), strict=True) if keep)
    return {
        f"{part}_points": points[chosen],
        f"{part}_labels": labels[chosen],
        f"{part}_names": kept,
        f"{part}_sizes": sizes[chosen],
    }


def load_points(name: str = "solids", *, fold: int = 0) -> PointSet:
    """A set of point clouds by name: solids or dales_500.

    solids: 356 objects of ten kinds, 1,024 points each, which come with this package; `vitutils/solids.md` says how
    they were made, by whom, and under which licences. Centred, in the unit sphere; z is up, fronts face -y.
    dales_500: 499 pieces of an aerial scan in five classes, `points/dales_500.npz` in a folder of `$VITBOOK_DATA`;
    in metres, centred. It does not come with the package.
    fold: which third of the objects is the test part, 0, 1 or 2; the others are for training. Each object is in
    exactly one, and every class is in proportion.
    Raises ValueError for another name or fold; DataError, naming the file, if it is missing or damaged.
    """
    if name not in POINT_SETS:
        raise ValueError(f"unknown point set {name!r}: expected one of {', '.join(POINT_SETS)}")
    if fold not in range(FOLDS):
        raise ValueError(f"expected a fold from 0 to {FOLDS - 1}, got {fold!r}")
    whole, folds, classes, source = _solids() if name == "solids" else _dales()
    test = folds == fold
    return PointSet(
        name=name, classes=classes, source=source, **_part("train", ~test, *whole), **_part("test", test, *whole)
    )


def _solids() -> tuple[tuple, Tensor, tuple[str, ...], str]:
    """The shipped set: points, labels, names and sizes; fold of each; classes; source."""
    try:
        with safe_open(SOLIDS, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in ("points", "labels", "folds", "sizes")}
            about = file.metadata()
    except Exception as error:  # safetensors has an error of its own for each way to be damaged
        raise DataError(f"{SOLIDS} can't be read: {error}. It comes with vitutils; install that again.") from error
    whole = (tensors["points"].float(), tensors["labels"].long(), tuple(json.loads(about["names"])), tensors["sizes"])
    return whole, tensors["folds"].long(), tuple(json.loads(about["classes"])), about["source"]


def _dales() -> tuple[tuple, Tensor, tuple[str, ...], str]:
    """The aerial scans, split by a drawn order: points, labels, names and sizes; folds; classes; source."""
    places = [folder / "points" / "dales_500.npz" for folder in data_folders()]
    if not (found := [path for path in places if path.is_file()]):
        tried = "\n".join(f"  - {path}: not there" for path in places)
        raise DataError(
            f"The point set 'dales_500' was not found. Tried:\n{tried}\nIt isn't shipped. Put dales_500.npz (x: "
            "float32 (M, N, 3), y: labels 0 to 4) there, or name its folder in VITBOOK_DATA; or use "
            "load_points('solids')."
        )
    try:
        with np.load(found[0], allow_pickle=False) as file:
            points, labels = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]).long()
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{found[0]} is damaged: expected arrays x (M, N, 3) and y (M,), got {error}") from error
    low, high = points.amin(1), points.amax(1)  # (M, 3)
    names = tuple(f"{DALES_CLASSES[label]} {i}" for i, label in enumerate(labels.tolist()))
    folds = folds_of(labels, seed=0)
    return (points, labels, names, 100 * (high - low)), folds, DALES_CLASSES, f"aerial scans, {short(found[0])}"


def folds_of(labels: Tensor, seed: int) -> Tensor:
    """A fold from 0 to 2 for each object, int64 (M,), drawn by chance, with each class in proportion."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    folds, dealt = torch.empty_like(labels), 0
    for label in labels.unique():
        rows = order[labels[order] == label]
        folds[rows] = (torch.arange(len(rows)) + dealt) % FOLDS
        dealt += len(rows)
    return folds


def unit_sphere(points: Tensor) -> Tensor:
    """Move each cloud's mean to the origin and scale its farthest point to distance 1: (..., N, 3) -> the same.

    Raises ValueError if coordinates are NaN or infinite, or if all points of a cloud are the same.
    """
    if not points.isfinite().all():
        raise ValueError("expected finite coordinates, got NaN or infinity")
    centred = points - points.mean(dim=-2, keepdim=True)
    reach = centred.norm(dim=-1).amax(dim=-1)[..., None, None]  # (..., 1, 1)
    span = points.abs().amax(dim=(-2, -1))[..., None, None]
    if (reach <= 1e-6 * span).any():
        raise ValueError("expected points that differ, got a cloud whose points are all the same: it has no size")
    return centred / reach


def sample_surface(triangles: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw points from a surface, uniformly over its area.

    triangles: (F, 3, 3), each of F faces as its three corners.  count: points to draw.
    Returns float64 (count, 3). Faces of no area are never drawn.
    Raises ValueError if there are no faces, if none has an area, or if a corner is NaN or infinite.
    """
    triangles = np.asarray(triangles, np.float64)
    if not len(triangles):
        raise ValueError("expected faces, got none")
    if not np.isfinite(triangles).all():
        raise ValueError("expected finite corners, got NaN or infinity")
    first, along, across = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    areas = np.linalg.norm(np.cross(along, across), axis=1)
    if not areas.sum() > 0:
        raise ValueError(f"expected faces that have an area, got {len(areas)} faces without")
    chosen = rng.choice(len(areas), count, p=areas / areas.sum())
    u = rng.random((count, 2))
    u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)  # the half of the square that lies outside, folded in
    return first[chosen] + u[:, :1] * along[chosen] + u[:, 1:] * across[chosen]
