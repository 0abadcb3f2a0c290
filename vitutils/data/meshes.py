"""Your own objects: a folder of meshes or point clouds, one sub-folder a class, becomes a `PointSet`.

Meshes (.obj, .ply, .off, .stl) and clouds in .ply are read by trimesh, clouds in .xyz by numpy.
"""

from __future__ import annotations

import zlib
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitutils.data._layout import PARTS
from vitutils.data._splits import split_off
from vitutils.data.points import PointSet, _part, sample_surface, unit_sphere
from vitutils.data.sources import DataError

ENDINGS = (".obj", ".ply", ".off", ".stl", ".xyz")


def read_cloud(file: Path | str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Read one mesh or cloud of points: float32 (count, 3), centred, in the unit sphere; and its size (3,).

    A mesh (.obj, .ply, .off, .stl) gives points of its surface, each part of it equally likely; a .ply without faces
    and an .xyz (a line a point, x y z first, split by spaces or commas) `count` of their points, none twice. Axes stay
    as they are in the file, and the size along each is in the file's units. The same file name and seed give the same
    points.
    Raises DataError, which names the file, where it can't be read, has no faces or no points, fewer points than count,
    coordinates that are NaN or infinite, or points that are all the same.
    """
    file = Path(file)
    rng = np.random.default_rng([seed, zlib.crc32(file.name.encode())])
    try:
        vertices, triangles = _read_xyz(file) if file.suffix.lower() == ".xyz" else _read_mesh(file)
        if triangles is not None:
            points = sample_surface(triangles, count, rng)
        else:
            points = vertices
            if not np.isfinite(points).all():
                raise ValueError("expected finite coordinates, got NaN or infinity")
            if len(points) < count:
                raise ValueError(f"expected {count:,} points or more, got {len(points):,}; ask for fewer points")
            points = points[rng.permutation(len(points))[:count]]
        cloud = unit_sphere(torch.from_numpy(points)).float()
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    return cloud, torch.from_numpy(np.ptp(points, axis=0)).float()


def _read_mesh(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (M, 3), and the triangles (F, 3, 3) of all its parts; None for a cloud of points."""
    import trimesh

    try:
        scene = trimesh.load_scene(file, process=False, skip_materials=True)
        meshes = [part for part in scene.dump() if len(part.vertices)]
        faces = [np.asarray(part.triangles) for part in meshes if len(getattr(part, "faces", ()))]
        points = [np.asarray(part.vertices, float) for part in meshes]
    except Exception as error:  # what trimesh raises for a damaged file depends on where it is damaged
        raise ValueError(f"can't be read as {file.suffix.lower()}: {type(error).__name__}: {error}") from error
    if not points:
        raise ValueError("expected points or faces, got none: it is empty, or no file of this kind")
    if not faces and file.suffix.lower() != ".ply":
        raise ValueError(
            f"expected faces, got {sum(map(len, points)):,} points without; save a cloud of points as .ply or .xyz"
        )
    return np.concatenate(points), np.concatenate(faces) if faces else None


def _read_xyz(file: Path) -> tuple[np.ndarray, None]:
    """The first three numbers of each line, (M, 3); lines that begin with # don't count."""
    try:
        lines = file.read_text(encoding="utf-8-sig").replace(",", " ").replace(";", " ").splitlines()
        table = np.loadtxt(lines, comments="#", ndmin=2) if any(line.strip() for line in lines) else np.empty((0, 3))
    except (OSError, ValueError) as error:
        raise ValueError(f"can't be read as .xyz, a line a point with x y z first: {error}") from error
    if not len(table):
        raise ValueError("expected points, got none")
    if table.shape[1] < 3:
        raise ValueError(f"expected x, y and z on each line, got {table.shape[1]} numbers")
    return table[:, :3].astype(float), None


def load_cloud_folder(
    folder: Path | str, points: int = 1024, *, test_share: float = 0.2, seed: int = 0
) -> PointSet:
    """Read objects from FOLDER/CLASS/*, or from FOLDER/train/CLASS/* and FOLDER/test/CLASS/*.

    points: number per object, as `read_cloud` draws them.  test_share: the share of the objects that becomes the test
    part if there are no parts, in proportion for each class and with at least one on either side. All points of a file
    are on the same side.
    Raises ValueError for numbers that don't fit; DataError, naming the folder, class or file, if something is missing,
    empty or unreadable, if a class has a single object, if there are fewer than two classes, or if the parts' classes
    differ.
    """
    if not isinstance(points, Integral) or isinstance(points, bool) or points < 8:
        raise ValueError(f"expected 8 points or more of each object, got {points!r}")
    if not isinstance(test_share, Real) or not 0 < test_share < 1:
        raise ValueError(f"expected a test_share between 0 and 1, got {test_share!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: expected one with a folder for each class")
    below = _folders(folder)
    parts = {PARTS.get(path.name.lower()): path for path in below}
    if None in parts or set(parts) - {"train", "test"} or not parts:
        parts = {"": folder}
    elif len(parts) < 2 or len(parts) < len(below):
        raise DataError(f"{folder}: expected train and test, one of each; got {', '.join(path.name for path in below)}")
    found = {part: _classes(path) for part, path in parts.items()}
    if len(found) == 2 and list(found["train"]) != list(found["test"]):
        differ = sorted(set(found["train"]) ^ set(found["test"]))
        raise DataError(f"{folder}: expected the same classes in train and test, got {', '.join(differ)} in one alone")
    classes = tuple(next(iter(found.values())))
    read = {part: _read(own, points, seed) for part, own in found.items()}
    if "" in read:
        whole = read[""]
        count = max(len(classes), round(test_share * len(whole[1])))
        try:
            test = split_off(whole[1], min(count, len(whole[1]) - len(classes)), seed, classes)
        except ValueError as error:
            raise DataError(f"{folder}: {str(error).replace('image', 'object')}") from None
        sides = _part("train", ~test, *whole) | _part("test", test, *whole)
    else:
        sides = {}
        for part, whole in read.items():
            sides |= _part(part, torch.ones(len(whole[1]), dtype=torch.bool), *whole)
    return PointSet(name=folder.resolve().name, classes=classes, source=f"the folder {folder}", **sides)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The files of each class, {class: files}. Raises DataError for an empty class and for fewer than two."""
    found = {}
    for path in _folders(folder):
        files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in ENDINGS and p.name[0] != ".")
        if not files:
            raise DataError(f"class {path.name!r} is empty: no {', '.join(ENDINGS)} in {path}")
        found[path.name] = files
    if len(found) < 2:
        loose = [p.name for p in folder.iterdir() if p.suffix.lower() in ENDINGS]
        more = f"; {len(loose)} files such as {loose[0]} lie in no class" if loose else ""
        raise DataError(
            f"{folder}: expected two classes or more, each a folder of its own, got {', '.join(found) or 'none'}{more}"
        )
    return found


def _read(found: dict[str, list[Path]], points: int, seed: int) -> tuple[Tensor, Tensor, tuple[str, ...], Tensor]:
    """Points, labels, names and sizes of all files."""
    clouds, labels, names = [], [], []
    for label, (name, files) in enumerate(found.items()):
        for file in files:
            clouds.append(read_cloud(file, points, seed))
            labels.append(label)
            names.append(f"{name}/{file.name}")
    return (
        torch.stack([cloud for cloud, _ in clouds]), torch.tensor(labels), tuple(names),
        torch.stack([size for _, size in clouds]),
    )  # fmt: skip
