"""Sets of images of any size by name: torchvision's own, those of `data.load`, drawn shapes, and photos of your own.

Flowers-102, Pets, DTD and EuroSAT are torchvision's classes; any folder or zip of photos under `$VITBOOK_DATA/images`
is a set under its own name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vitutils.data import decoding
from vitutils.data._layout import entries, read_layout
from vitutils.data._official import IMAGENETTE, OFFICIAL, load_official
from vitutils.data.images import ImagePart, ImageSet, from_files, from_tensors, split_whole
from vitutils.data.sets import load
from vitutils.data.sources import DataError
from vitutils.data.synthetic import shapes
from vitutils.files import data_folders

# What a folder's name does not say by itself.
TITLES = {"cifar10_jpeg": "CIFAR-10 recompressed"}
NOTES = {"cifar10_jpeg": "recompressed as JPEG, not the genuine CIFAR-10"}
TITLES |= {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}
TITLES |= {"kmnist": "KMNIST", "shapes": "drawn shapes"}
ARCHIVES = {".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}


def _tensors(name: str, download: bool) -> ImageSet:
    found = load(name, download=download)
    train = from_tensors(name, "train", found.train_images, found.train_labels, found.classes, found.source)
    test = from_tensors(name, "test", found.test_images, found.test_labels, found.classes, found.source)
    return ImageSet(name, TITLES.get(name, name), train, test)


def _shapes(name: str, download: bool) -> ImageSet:
    parts = {}
    for part, count, start in (("train", 2_000, 0), ("test", 1_000, 2_000)):
        drawn = shapes(count, seed=0, size=64, start=start)
        parts[part] = from_tensors(name, part, drawn.images, drawn.labels, drawn.classes, "vitutils.data.shapes, drawn")
    return ImageSet(name, TITLES[name], **parts)


# --- folders and zips under $VITBOOK_DATA/images ---


def image_folders() -> list[Path]:
    """Folders that may hold sets of photos: `images` under each of the data folders (`$VITBOOK_DATA`)."""
    return [folder / "images" for folder in data_folders()]


def at_hand() -> list[str]:
    """Names of the folders and zips of photos under `image_folders()`, sorted, as `load_image_set` accepts them.

    If one has the name of an official set, it appears as `images/NAME`.
    """
    return sorted({_called(path) for path in _own_paths()})


def _own_paths() -> list[Path]:
    """The folders and zips of photos, in the order in which they are looked for."""
    found = [path for folder in image_folders() if folder.is_dir() for path in sorted(folder.iterdir())]
    found = [path for path in found if not path.name.startswith(".") and path.name != "__MACOSX"]
    return [path for path in found if path.is_dir()] + [path for path in found if _is_zip(path)]


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def _called(path: Path) -> str:
    """The name by which a set of one's own is loaded."""
    name = path.stem if _is_zip(path) else path.name
    return f"{OWN}{name}" if name in IMAGE_SETS else name


def find_images(name: str) -> Path:
    """The folder NAME or file NAME.zip under `image_folders()`. Raises DataError, listing what was tried."""
    for folder in image_folders():
        for path in _own_paths():
            if path.parent == folder and _called(path).removeprefix(OWN) == name.removeprefix(OWN):
                return path
    tried = [folder / file.removeprefix(OWN) for folder in image_folders() for file in (name, f"{name}.zip")]
    raise DataError(f"no pictures named {name!r}. Tried: {', '.join(map(str, tried))}")


def _images(name: str) -> ImageSet:
    """The set in the folder NAME or the file NAME.zip."""
    path = find_images(name)
    layout = read_layout(path)
    classes = tuple(next(iter(layout.parts.values())))
    title = "ants and bees" if (name, classes) == ("hymenoptera", ("ants", "bees")) else TITLES.get(name, name)
    source = f"{'the zip file' if path.is_file() else 'the folder'} {data_short(path)}"
    if name in NOTES:
        source += f" ({NOTES[name]})"
    source += layout.told
    made = {
        part or "train": from_files(name, part or "train", found, classes, source)
        for part, found in layout.parts.items()
    }
    if "test" not in made:
        return split_whole(name, title, made["train"])
    return ImageSet(name, title, made["train"], made["test"])


def data_short(path: Path) -> str:
    """The path from its data folder on: what two machines have in common."""
    for folder in data_folders():
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return path.name


def numbered(name: str) -> ImagePart:
    """Photos whose file names begin with their label, `INDEX_*.jpg`, in a folder or zip: one part, "test".

    For samples of a checkpoint's own classes: labels are indices into its list, and `classes` stays empty.
    Raises DataError if the set is not available, or a file name has no number.
    """
    path = find_images(name)
    found = [entry for entry in entries(path) if entry.picture]
    files, names = [entry.file for entry in found], [entry.names[-1] for entry in found]
    numbers = [re.match(r"(\d+)_", file) for file in names]
    if not files or None in numbers:
        odd = names[numbers.index(None)] if files else "nothing"
        raise DataError(f"{path} holds {odd}: expected photos named INDEX_*.jpg, where INDEX is the label")
    part = from_files(name, "test", {"": files}, [""], f"the file {data_short(path)}")
    return replace(part, labels=torch.tensor([int(number[1]) for number in numbers]), classes=())


def imagenet_photos(*, download: bool = True) -> ImagePart:
    """Photos labelled with the indices of ImageNet's 1,000 classes, to try a checkpoint on.

    `imagenet_sample_250` if it is under `$VITBOOK_DATA/images`; otherwise the validation part of Imagenette, which has
    ten of the classes. Raises DataError if neither is available.
    """
    if "imagenet_sample_250" in at_hand():
        return numbered("imagenet_sample_250")
    part = load_image_set("imagenette", download=download).test
    return replace(part, labels=torch.tensor(IMAGENETTE)[part.labels], classes=())


# --- by name ---

IMAGE_SETS = ("flowers102", "pets", "dtd", "eurosat", "cifar10", "cifar100", "fashion_mnist", "mnist", "kmnist")
IMAGE_SETS += ("imagenette", "digits", "shapes")
OWN = "images/"  # before the name of a set of one's own that is called like one of these


def load_image_set(name: str, *, download: bool = True) -> ImageSet:
    """A set by name: one of `IMAGE_SETS`, or a folder or zip of photos under `$VITBOOK_DATA/images`.

    It looks for Flowers-102, Pets, DTD and EuroSAT where torchvision puts them, in each folder of `$VITBOOK_DATA`, and
    then downloads them into the first; download=False, or `VITBOOK_OFFLINE=1`, means no network. Train and validation
    parts form one training part, as in the papers; EuroSAT has no official split and is split with a seed.
    Photos of your own: NAME/train/CLASS/*.jpg with test (or val), or NAME/CLASS/*.jpg, or the same inside NAME.zip,
    which is read in place; `folders.load_folder` lists the names of parts. If your set has the name of an official one,
    call it images/NAME. Raises ValueError for an unknown name, DataError for a set that is not available.
    """
    there = at_hand()
    if name in IMAGE_SETS:
        try:
            if name in OFFICIAL:
                return load_official(name, download)
            return _shapes(name, download) if name == "shapes" else _tensors(name, download)
        except DataError as error:
            if f"{OWN}{name}" not in there:
                raise
            told = f"{error}\n  - the pictures in {find_images(OWN + name)} are had as {OWN + name!r}"
            raise DataError(told) from None
    if name.removeprefix(OWN) in there:
        name = name.removeprefix(OWN)
    if name not in there:
        known = [*IMAGE_SETS, *there]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"unknown set {name!r}: expected one of {', '.join(known)}{hint}")
    return _images(name)


def load_image_sets(names: Sequence[str], *, download: bool = True) -> dict[str, ImageSet]:
    """Those of the sets that are available, {name: set}; for each of the others it prints one line that says why."""
    found = {}
    for name in names:
        try:
            found[name] = load_image_set(name, download=download)
        except DataError as error:
            lines = str(error).splitlines()
            reason = next((line.strip(" -") for line in reversed(lines) if line.startswith("  - ")), "")
            print(f"left out: {lines[0].split(' Tried')[0]} {reason}".rstrip())
    return found


def load_own_image_sets(
    *, first: str | None = None, skip: Collection[str] = (), most: int | None = None
) -> dict[str, ImageSet]:
    """Every set of your own photos under `image_folders()`, {name: set}; it prints which ones it doesn't use, and why.

    first: the set to begin with, if it is there; the others follow by name.  skip: names to leave out without a word.
    most: the largest number of sets. It also leaves out sets that cannot be read, a second set of the same name,
    archives that are not zips, and pictures outside a folder.
    """
    used, unused = {}, []
    for path in _own_paths():
        name = _called(path)
        if name in skip:
            continue
        if find_images(name) != path:
            unused.append((path, f"{path} has the name of {find_images(name)}, which is found first"))
            continue
        used[name] = path
    found = {}
    for name in sorted(used, key=lambda name: (name != first, name.removeprefix(OWN))):
        if most is not None and len(found) >= most:
            unused.append((used[name], f"{most} of your own at most at this scale"))
            continue
        try:
            found[name] = _images(name)
        except DataError as error:
            unused.append((used[name], str(error).splitlines()[0]))
    for folder in image_folders():
        rest = [path for path in sorted(folder.glob("[!.]*")) if path.is_file() and not _is_zip(path)]
        archives = [path for path in rest if path.suffix.lower() in ARCHIVES]
        unused += [(path, "expected a folder or a zip file") for path in archives]
        if loose := sum(decoding.is_picture(path) for path in rest if path not in archives):
            pictures = "1 picture" if loose == 1 else f"{loose:,} pictures"
            unused.append((folder, f"{pictures} in no folder: expected images/NAME/CLASS/"))
    for path, why in unused:
        print(f"not used: {data_short(path)}: {why.removeprefix(f'{path}: ')}")
    return found
