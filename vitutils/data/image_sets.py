"""Named sets of pictures of any size, read one at a time: what pretrained nets are tried on.

`vitutils.data` holds small images of one size as tensors in memory. Photos differ in size and do not fit into memory:
here a set is a pair of torch `Dataset`s, of (picture, label), that read a picture when it is asked for. Flowers-102,
Pets, DTD and EuroSAT are torchvision's own classes; CIFAR, Fashion-MNIST, digits and drawn shapes come from
`vitutils.data`; any folder or zip of photos under `$VITBOOK_DATA/images` is a set under its own name.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import re
import shutil
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets as tv

from vitutils.data import decoding, sets, synthetic
from vitutils.data._layout import Packed, content, entries, read_layout, read_picture
from vitutils.data.sources import TIMEOUT, DataError, data_folders, sweep
from vitutils.files import downloading

# What a folder's name does not say by itself.
TITLES = {"cifar10_jpeg": "CIFAR-10 recompressed"}
NOTES = {"cifar10_jpeg": "recompressed as JPEG, not the genuine CIFAR-10"}
TITLES |= {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}
TITLES |= {"kmnist": "KMNIST", "shapes": "drawn shapes"}
ARCHIVES = {".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
TEST_SHARE = 0.2  # of a set that has no test part of its own
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False, repr=False)
class Pictures(torch.utils.data.Dataset):
    """One part of a set: `part[i]` is (picture, label), read when asked for.

    A picture is a PIL image in RGB, or a uint8 tensor (C,H,W) where the set is a tensor.
    labels: int64 (N,), 0..K-1.  classes: K names.  source: where the pictures came from, for people to read.
    """

    name: str
    part: str
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    read: Callable[[int], object] = field(repr=False)  # place in the whole part -> picture
    content: Callable[[int], bytes] = field(repr=False)  # place in the whole part -> bytes that change with it
    places: Tensor = None  # which of the whole part these are

    def __post_init__(self):
        if self.places is None:
            object.__setattr__(self, "places", torch.arange(len(self.labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}, {self.part}: picture {index} of {len(self)}")
        return self.read(int(self.places[index])), int(self.labels[index])

    def __repr__(self) -> str:
        return f"<Pictures {self.name}, {self.part}: {len(self):,} of {len(self.classes)} classes, from {self.source}>"

    def at(self, indices: Sequence[int] | Tensor) -> Pictures:
        """The pictures at these places, in this order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, labels=self.labels[indices], places=self.places[indices])

    def take(self, count: int | None, seed: int = 0) -> Pictures:
        """At most `count` pictures, classes in balance, drawn with `seed`; all of them where count is None or more."""
        if count is not None and count < 1:
            raise ValueError(f"expected a count of 1 or more, or None, got {count}")
        if count is None or count >= len(self):
            return self
        return self.at(sets._rounds(self.labels, seed)[:count])

    def fingerprint(self) -> str:
        """A hash of the pictures' own bytes, their labels and order, and the class names: another set, another hash."""
        digest = hashlib.sha256(repr((self.name, self.part, self.classes)).encode())
        digest.update(self.labels.numpy())
        for place in self.places.tolist():
            digest.update(self.content(place))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class PictureSet:
    """A set in two parts. title: its name for people."""

    name: str
    title: str
    train: Pictures
    test: Pictures

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.train.classes

    @property
    def source(self) -> str:
        """Where it came from."""
        return self.train.source

    def take(self, train: int | None, test: int | None, seed: int = 0) -> PictureSet:
        """A smaller set: at most so many of each part, classes in balance; None keeps all."""
        return replace(self, train=self.train.take(train, seed), test=self.test.take(test, seed))

    def fitting(self, train: int, test: int, seed: int = 0) -> PictureSet:
        """`take`, and of a set with more classes than that has room for only the first of them, which `source` says.

        There is room for a class with two pictures to train on and one to test on.
        """
        K, most = len(self.classes), max(1, min(train // 2, test))
        if K <= most:
            return self.take(train, test, seed)
        source = f"{self.source}, the first {most} of {K} classes"
        parts = {}
        for part, whole in (("train", self.train), ("test", self.test)):
            kept = whole.at((whole.labels < most).nonzero().flatten())
            parts[part] = replace(kept, classes=self.classes[:most], source=source)
        return replace(self, **parts).take(train, test, seed)

    def summary(self) -> str:
        """One line: title, sizes, classes, source; and pictures a class where they are unlike."""
        told = sets.class_counts(self.classes, self.train.labels, self.test.labels)
        return (
            f"{self.title}: {len(self.train):,} training and {len(self.test):,} test pictures, "
            f"{len(self.classes)} classes{told}, from {self.source}"
        )


# --- tensors that `vitutils.data` finds ---


def from_tensors(
    name: str, part: str, images: Tensor, labels: Tensor, classes: Sequence[str], source: str
) -> Pictures:
    """Pictures out of uint8 images (N,C,H,W) in memory and their labels (N,)."""
    sets._check_pair(images, labels, f"{name}, {part}")
    if images.dtype != torch.uint8:
        raise ValueError(f"{name}, {part}: expected uint8 images, got {images.dtype}")
    return Pictures(name, part, labels, tuple(classes), source, images.__getitem__, partial(_pixels, images))


def _pixels(images: Tensor, i: int) -> bytes:
    return images[i].contiguous().numpy().tobytes()


def _tensors(name: str, download: bool) -> PictureSet:
    found = sets.load(name, download=download)
    train = from_tensors(name, "train", found.train_images, found.train_labels, found.classes, found.source)
    test = from_tensors(name, "test", found.test_images, found.test_labels, found.classes, found.source)
    return PictureSet(name, TITLES.get(name, name), train, test)


def _shapes(name: str, download: bool) -> PictureSet:
    parts = {}
    for part, count, start in (("train", 2_000, 0), ("test", 1_000, 2_000)):
        drawn = synthetic.shapes(count, seed=0, size=64, start=start)
        parts[part] = from_tensors(name, part, drawn.images, drawn.labels, drawn.classes, "vitutils.data.shapes, drawn")
    return PictureSet(name, TITLES[name], **parts)


# --- folders and zips under $VITBOOK_DATA/images ---


def image_folders() -> list[Path]:
    """Folders that may hold sets of photos: `images` under each of the data folders (`$VITBOOK_DATA`)."""
    return [folder / "images" for folder in data_folders()]


def at_hand() -> list[str]:
    """Names of the folders and zips of photos under `image_folders()`, sorted, as `load` takes them.

    One that is called like an official set goes by `images/NAME`.
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
    return f"{OWN}{name}" if name in NAMES else name


def find_images(name: str) -> Path:
    """The folder NAME or file NAME.zip under `image_folders()`. Raises DataError that lists what was tried."""
    for folder in image_folders():
        for path in _own_paths():
            if path.parent == folder and _called(path).removeprefix(OWN) == name.removeprefix(OWN):
                return path
    tried = [folder / file.removeprefix(OWN) for folder in image_folders() for file in (name, f"{name}.zip")]
    raise DataError(f"no pictures named {name!r}. Tried: {', '.join(map(str, tried))}")


def _images(name: str) -> PictureSet:
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
        return _split(name, title, made["train"])
    return PictureSet(name, title, made["train"], made["test"])


def from_files(
    name: str, part: str, found: dict[str, list[Path | Packed]], classes: Sequence[str], source: str
) -> Pictures:
    """Pictures out of files, {class: files}: paths, or files in a zip."""
    files = [file for label in classes for file in found[label]]
    labels = torch.tensor([k for k, label in enumerate(classes) for _ in found[label]])
    return Pictures(name, part, labels, tuple(classes), source, partial(_read, files), partial(_content, files))


def _read(files: Sequence[Path | Packed], i: int) -> Image.Image:
    return read_picture(files[i])


def _content(files: Sequence[Path | Packed], i: int) -> bytes:
    """What a fingerprint knows of a file: its bytes, and how they are decoded."""
    return content(files[i]) + f" {decoding.VERSION}".encode()


def data_short(path: Path) -> str:
    """The path from its data folder on: what two machines have in common."""
    for folder in data_folders():
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return path.name


def _split(name: str, title: str, whole: Pictures) -> PictureSet:
    """Cut a set that has no test part of its own: the same fifth of it every time, each class in proportion."""
    count = max(len(whole.classes), round(TEST_SHARE * len(whole)))
    try:
        held = sets.split_off(whole.labels, count, SPLIT_SEED, whole.classes)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    source = f"{whole.source} (no official split: a fifth kept for the test, seed {SPLIT_SEED})"
    parts = {
        part: replace(whole.at(chosen.nonzero().flatten()), part=part, source=source)
        for part, chosen in (("test", held), ("train", ~held))
    }
    return PictureSet(name, title, parts["train"], parts["test"])


def numbered(name: str) -> Pictures:
    """Photos whose file names begin with their label, `INDEX_*.jpg`, in a folder or zip: one part, "test".

    For samples of a checkpoint's own classes: labels are places in its list, and `classes` stays empty.
    Raises DataError for a set that cannot be had, and for a name without a number.
    """
    path = find_images(name)
    found = [entry for entry in entries(path) if entry.picture]
    files, names = [entry.file for entry in found], [entry.names[-1] for entry in found]
    numbers = [re.match(r"(\d+)_", file) for file in names]
    if not files or None in numbers:
        odd = names[numbers.index(None)] if files else "nothing"
        raise DataError(f"{path} holds {odd}: expected photos named INDEX_*.jpg, INDEX being the label")
    part = from_files(name, "test", {"": files}, [""], f"the file {data_short(path)}")
    return replace(part, labels=torch.tensor([int(number[1]) for number in numbers]), classes=())


def imagenet_photos(*, download: bool = True) -> Pictures:
    """Photos labelled by their place among ImageNet's 1,000 classes, to try a checkpoint on.

    `imagenet_sample_250` where it is under `$VITBOOK_DATA/images`, else the validation part of Imagenette, which holds
    ten of the classes. Raises DataError where neither can be had.
    """
    if "imagenet_sample_250" in at_hand():
        return numbered("imagenet_sample_250")
    part = load("imagenette", download=download).test
    return replace(part, labels=torch.tensor(IMAGENETTE)[part.labels], classes=())


# --- torchvision's own sets ---


@dataclass(frozen=True)
class Official:
    """A set of torchvision's that is downloaded once. parts: how its splits become ours; none: we split it."""

    kind: type
    title: str
    folder: str  # below the data folder, as torchvision names it
    megabytes: int
    parts: dict[str, tuple[str, ...]]
    files: str  # torchvision's attribute with the paths of the pictures
    labels: str = "_labels"
    size: str = ""  # for a set that comes in several

    def open(self, root: Path) -> dict[str, list]:
        """torchvision's objects for each of our parts. Raises what torchvision raises."""
        if not self.parts:
            return {"": [self.kind(root)]}
        how = {"size": self.size} if self.size else {}
        return {part: [self.kind(root, split=split, **how) for split in splits] for part, splits in self.parts.items()}

    def download(self, root: Path) -> None:
        """Let torchvision fetch, check and unpack it below `root`."""
        some = {"split": self.parts["train"][0]} if self.parts else {}
        some |= {"size": self.size} if self.size else {}
        self.kind(root, download=True, **some)


TRAIN_VAL_TEST = {"train": ("train", "val"), "test": ("test",)}
TRAIN_VAL = {"train": ("train",), "test": ("val",)}
PETS = {"train": ("trainval",), "test": ("test",)}
OFFICIAL = {
    "flowers102": Official(tv.Flowers102, "Flowers-102", "flowers-102", 345, TRAIN_VAL_TEST, "_image_files"),
    "pets": Official(tv.OxfordIIITPet, "Oxford-IIIT Pets", "oxford-iiit-pet", 811, PETS, "_images"),
    "dtd": Official(tv.DTD, "DTD (split 1)", "dtd", 625, TRAIN_VAL_TEST, "_image_files"),
    "eurosat": Official(tv.EuroSAT, "EuroSAT", "eurosat", 95, {}, "samples", "targets"),
    "imagenette": Official(
        tv.Imagenette, "Imagenette", "imagenette2-160", 99, TRAIN_VAL, "_samples", "_samples", size="160px"
    ),
}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # its ten classes' places among ImageNet's 1,000


def _official(name: str, download: bool) -> PictureSet:
    official, tried = OFFICIAL[name], []
    for root in data_folders():
        if not (root / official.folder).is_dir():
            tried.append(f"{root / official.folder}: not there")
            continue
        try:
            return _from_torchvision(name, official, root)
        except Exception as error:  # torchvision raises whatever a half-copied set makes it trip over
            tried.append(f"{root / official.folder}: incomplete ({_reason(error)}); delete it")
    if not download or os.environ.get("VITBOOK_OFFLINE", "0") not in ("", "0"):
        tried.append("download: switched off")
    elif not (data_folders()[0] / official.folder).exists():
        try:
            _fetch(name, official, data_folders()[0])
            return _from_torchvision(name, official, data_folders()[0])
        except (OSError, HTTPException, RuntimeError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            tried.append(f"download by torchvision: {_reason(error)}")
    raise DataError(
        "\n".join(
            [f"The set {name!r} ({official.title}, {official.megabytes} MB) cannot be had. Tried, in this order:"]
            + [f"  - {line}" for line in tried]
            + [
                "What to do: connect to the network and load it again, or copy torchvision's folder "
                f"{official.folder} into {data_folders()[0]}."
            ]
        )
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _fetch(name: str, official: Official, root: Path) -> None:
    """Download into a scratch folder and rename what came, so that an interrupted download leaves nothing behind."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < 3e6 * official.megabytes:  # the archive, what is unpacked, and some room
        raise OSError(f"{root} has {free / 1e6:,.0f} MB free, about {3 * official.megabytes:,} are needed")
    sweep(root)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            with downloading(name, official.megabytes), redirect_stdout(io.StringIO()):
                official.download(Path(scratch))
            os.replace(Path(scratch) / official.folder, root / official.folder)
    finally:
        socket.setdefaulttimeout(before)


def _read_official(folder: Path, files: Sequence[Path], i: int) -> Image.Image:
    try:
        return read_picture(files[i])
    except DataError as error:
        raise DataError(f"{str(error).partition(': mend it')[0]}: delete {folder}") from None


def _from_torchvision(name: str, official: Official, root: Path) -> PictureSet:
    made = {}
    for part, opened in official.open(root).items():
        paths = [
            Path(path[0] if isinstance(path, tuple) else path)
            for one in opened
            for path in getattr(one, official.files)
        ]
        labels = [label for one in opened for label in getattr(one, official.labels)]
        labels = torch.tensor([label[-1] if isinstance(label, tuple) else label for label in labels])
        if absent := next((path for path in paths if not path.is_file()), None):
            raise FileNotFoundError(f"{absent} is not there")

        made[part or "train"] = Pictures(
            name,
            part or "train",
            labels.long(),
            tuple(name[0] if isinstance(name, tuple) else name for name in opened[0].classes),
            f"torchvision's {official.kind.__name__} in {official.folder}",
            partial(_read_official, root / official.folder, paths),
            partial(_content, paths),
        )
    if "test" not in made:
        return _split(name, official.title, made["train"])
    return PictureSet(name, official.title, made["train"], made["test"])


# --- by name ---

NAMES = ("flowers102", "pets", "dtd", "eurosat", "cifar10", "cifar100", "fashion_mnist", "mnist", "kmnist")
NAMES += ("imagenette", "digits", "shapes")
OWN = "images/"  # before the name of a set of one's own that is called like one of these


def load(name: str, *, download: bool = True) -> PictureSet:
    """A set by name: one of `NAMES`, or a folder or zip of photos under `$VITBOOK_DATA/images`.

    Flowers-102, Pets, DTD, EuroSAT are looked for where torchvision puts them, in each folder of `$VITBOOK_DATA`, and
    then downloaded into the first of them; download=False, or `VITBOOK_OFFLINE=1`, leaves the network alone. Train and
    validation parts are one training part here, as in the papers; EuroSAT has no official split and is cut with a seed.
    Photos of your own: NAME/train/CLASS/*.jpg with test (or val), or NAME/CLASS/*.jpg, or the same inside NAME.zip,
    which is read in place; `folders.load_folder` says how parts may be called. One that is called like an official set
    is had as images/NAME. Raises ValueError for an unknown name, DataError for a set that cannot be had.
    """
    there = at_hand()
    if name in NAMES:
        try:
            if name in OFFICIAL:
                return _official(name, download)
            return _shapes(name, download) if name == "shapes" else _tensors(name, download)
        except DataError as error:
            if f"{OWN}{name}" not in there:
                raise
            told = f"{error}\n  - the pictures in {find_images(OWN + name)} are had as {OWN + name!r}"
            raise DataError(told) from None
    if name.removeprefix(OWN) in there:
        name = name.removeprefix(OWN)
    if name not in there:
        known = [*NAMES, *there]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"unknown set {name!r}: expected one of {', '.join(known)}{hint}")
    return _images(name)


def load_all(names: Sequence[str], *, download: bool = True) -> dict[str, PictureSet]:
    """Those of the sets that can be had, {name: set}; for each other one a printed line says why not."""
    found = {}
    for name in names:
        try:
            found[name] = load(name, download=download)
        except DataError as error:
            lines = str(error).splitlines()
            reason = next((line.strip(" -") for line in reversed(lines) if line.startswith("  - ")), "")
            print(f"left out: {lines[0].split(' Tried')[0]} {reason}".rstrip())
    return found


def load_own(
    *, first: str | None = None, skip: Collection[str] = (), most: int | None = None
) -> dict[str, PictureSet]:
    """Every set of photos of your own under `image_folders()`, {name: set}; each that is not used is named and why.

    first: the set to begin with, where it is there; the others follow by name.  skip: names to pass over in silence.
    most: at most so many sets. Not used are, besides, sets that cannot be read, one whose name another set has that is
    found first, archives that are no zip, and pictures in no folder.
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
