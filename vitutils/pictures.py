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
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import datasets as tv
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from vitutils import data
from vitutils._progress import downloading
from vitutils._sources import TIMEOUT, data_folders, sweep
from vitutils.data import DataError
from vitutils.folders import class_files

UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,  # an encrypted zip
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
# What a folder's name does not say by itself.
TITLES = {"hymenoptera": "ants and bees", "cifar10_jpeg": "CIFAR-10 recompressed"}
NOTES = {"cifar10_jpeg": "recompressed as JPEG, not the genuine CIFAR-10"}
TITLES |= {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}
TITLES |= {"kmnist": "KMNIST", "shapes": "drawn shapes"}
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
        return self.at(data._rounds(self.labels, seed)[:count])

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

    def summary(self) -> str:
        """One line: title, sizes, classes, source."""
        return (
            f"{self.title}: {len(self.train):,} training and {len(self.test):,} test pictures, "
            f"{len(self.classes)} classes, from {self.source}"
        )


# --- tensors that `vitutils.data` finds ---


def from_tensors(
    name: str, part: str, images: Tensor, labels: Tensor, classes: Sequence[str], source: str
) -> Pictures:
    """Pictures out of uint8 images (N,C,H,W) in memory and their labels (N,)."""
    data._check_pair(images, labels, f"{name}, {part}")
    if images.dtype != torch.uint8:
        raise ValueError(f"{name}, {part}: expected uint8 images, got {images.dtype}")

    def content(i: int) -> bytes:
        return images[i].contiguous().numpy().tobytes()

    return Pictures(name, part, labels, tuple(classes), source, images.__getitem__, content)


def _tensors(name: str, download: bool) -> PictureSet:
    found = data.load(name, download=download)
    train = from_tensors(name, "train", found.train_images, found.train_labels, found.classes, found.source)
    test = from_tensors(name, "test", found.test_images, found.test_labels, found.classes, found.source)
    return PictureSet(name, TITLES.get(name, name), train, test)


def _shapes(name: str, download: bool) -> PictureSet:
    parts = {}
    for part, count, start in (("train", 2_000, 0), ("test", 1_000, 2_000)):
        drawn = data.shapes(count, seed=0, size=64, start=start)
        parts[part] = from_tensors(name, part, drawn.images, drawn.labels, drawn.classes, "vitutils.data.shapes, drawn")
    return PictureSet(name, TITLES[name], **parts)


# --- folders and zips under $VITBOOK_DATA/images ---


def image_folders() -> list[Path]:
    """Folders that may hold sets of photos: `images` under each of the data folders (`$VITBOOK_DATA`)."""
    return [folder / "images" for folder in data_folders()]


def at_hand() -> list[str]:
    """Names of the folders and zips of photos under `image_folders()`, sorted."""
    names = set()
    for folder in image_folders():
        if folder.is_dir():
            names |= {e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")}
            names |= {e.stem for e in folder.iterdir() if e.is_file() and e.suffix == ".zip"}
    return sorted(names)


def find_images(name: str) -> Path:
    """The folder NAME or file NAME.zip under `image_folders()`. Raises DataError that lists what was tried."""
    tried = [folder / file for folder in image_folders() for file in (name, f"{name}.zip")]
    for path in tried:
        if path.is_dir() or path.is_file():
            return path
    raise DataError(f"no pictures named {name!r}. Tried: {', '.join(map(str, tried))}")


def decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Read one picture as RGB. Raises DataError, which names the file, if it cannot be decoded."""
    try:
        with Image.open(source) as file:
            return file.convert("RGB")
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {name} ({type(error).__name__}): mend it or take it away") from None


@lru_cache(maxsize=8)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """The open archive: each process its own, for a file handle that two share is read at the wrong place."""
    return zipfile.ZipFile(path)


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, to read pictures in place. Raises DataError, which names it, if it is no whole zip."""
    try:
        return _archive(path, os.getpid())
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no whole zip file ({error}): delete it and fetch it again") from None


def read_from_zip(path: Path, entry: str) -> Image.Image:
    """Read one picture of a zip file, without unpacking it. Raises DataError that names both."""
    archive = open_zip(path)
    try:
        raw = archive.read(entry)
    except UNREADABLE + (NotImplementedError,) as error:
        kind = type(error).__name__
        raise DataError(f"cannot read the image {entry} of {path} ({kind}): fetch the file again") from None
    return decode(io.BytesIO(raw), f"{entry} of {path}")


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The image files of a zip, sorted by name; hidden ones and macOS's own left out."""
    kept = []
    for entry in open_zip(path).infolist():
        parts = PurePosixPath(entry.filename).parts
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if not entry.is_dir() and not hidden and has_file_allowed_extension(entry.filename, IMG_EXTENSIONS):
            kept.append(entry)
    return sorted(kept, key=lambda entry: entry.filename)


def _zip_parts(path: Path) -> dict[str, dict[str, list[zipfile.ZipInfo]]]:
    """{part: {class: entries}} of a zip; "" is the part of one that is not split."""
    entries = zip_entries(path)
    if not entries:
        raise DataError(f"{path} holds no images: expected train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg")
    names = [PurePosixPath(entry.filename).parts for entry in entries]
    known = {"train", "val", "test"}
    tops = {parts[0] for parts in names}
    if len(tops) == 1 and not tops & known and all(len(parts) > 2 for parts in names):
        names = [parts[1:] for parts in names]  # one folder around everything
    found: dict[str, dict[str, list[zipfile.ZipInfo]]] = {}
    for entry, parts in zip(entries, names, strict=True):
        split, label = (parts[0], parts[1:2]) if parts[0] in known else ("", parts[:1])
        if len(parts) < (3 if split else 2):
            raise DataError(f"{path}: {entry.filename} lies in no class folder: expected train/CLASS/ or CLASS/")
        found.setdefault(split, {}).setdefault(label[0], []).append(entry)
    return found


def _folder_parts(path: Path) -> dict[str, dict[str, list[Path]]]:
    """{part: {class: files}} of a folder; "" is the part of one that is not split."""
    split = [name for name in ("train", "test", "val") if (path / name).is_dir()]
    if "train" in split and len(split) > 1:
        return {name: class_files(path / name) for name in split}
    return {"": class_files(path)}


def _images(name: str) -> PictureSet:
    """The set in the folder NAME or the file NAME.zip."""
    path = find_images(name)
    parts = _zip_parts(path) if path.is_file() else _folder_parts(path)
    held_out = "test" if "test" in parts else "val"
    if "" not in parts and not {"train", held_out} <= set(parts):
        raise DataError(f"{path} has {', '.join(parts)}: expected train and test (or val), or class folders alone")
    parts = parts if "" in parts else {"train": parts["train"], "test": parts[held_out]}
    classes = sorted(next(iter(parts.values())))
    for found in parts.values():
        if odd := sorted(set(found) ^ set(classes)):
            raise DataError(f"{path}: its parts differ in the classes {', '.join(odd)}")
    if len(classes) < 2:
        raise DataError(f"{path} has one class, {classes[0]}: expected two or more folders with images in them")
    source = f"{'the zip file' if path.is_file() else 'the folder'} {data_short(path)}"
    if name in NOTES:
        source += f" ({NOTES[name]})"
    made = {
        part or "train": from_files(name, part or "train", found, classes, source, path)
        for part, found in parts.items()
    }
    if "test" not in made:
        return _split(name, TITLES.get(name, name), made["train"])
    return PictureSet(name, TITLES.get(name, name), made["train"], made["test"])


def from_files(
    name: str, part: str, found: dict[str, list], classes: Sequence[str], source: str, path: Path
) -> Pictures:
    """Pictures out of files, {class: files}: paths, or entries of the zip file `path`."""
    files = [file for label in classes for file in found[label]]
    labels = torch.tensor([k for k, label in enumerate(classes) for _ in found[label]])

    def read(i: int) -> Image.Image:
        file = files[i]
        return read_from_zip(path, file.filename) if isinstance(file, zipfile.ZipInfo) else decode(file, str(file))

    def content(i: int) -> bytes:
        file = files[i]
        if isinstance(file, zipfile.ZipInfo):
            return f"{file.CRC:08x} {file.file_size}".encode()
        return file_content(file)

    return Pictures(name, part, labels, tuple(classes), source, read, content)


def file_content(path: Path | str) -> bytes:
    """Checksum and size of a file's bytes. Raises DataError if it cannot be read."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path} ({type(error).__name__}): mend it or take it away") from None
    return f"{zlib.crc32(raw):08x} {len(raw)}".encode()


def data_short(path: Path) -> str:
    """The path from its data folder on: what two machines have in common."""
    for folder in data_folders():
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return path.name


def _split(name: str, title: str, whole: Pictures) -> PictureSet:
    """Cut a set that has no test part of its own: the same fifth of it every time, classes in balance."""
    held = round(TEST_SHARE * len(whole))
    if held < 1:
        raise DataError(f"{name}: {len(whole)} pictures are too few to keep {TEST_SHARE:.0%} for the test")
    order = data._rounds(whole.labels, SPLIT_SEED)
    source = f"{whole.source} (no official split: a fifth kept for the test, seed {SPLIT_SEED})"
    parts = {
        part: replace(whole.at(chosen.sort().values), part=part, source=source)
        for part, chosen in (("test", order[:held]), ("train", order[held:]))
    }
    return PictureSet(name, title, parts["train"], parts["test"])


def numbered(name: str) -> Pictures:
    """Photos whose file names begin with their label, `INDEX_*.jpg`, in a folder or zip: one part, "test".

    For samples of a checkpoint's own classes: labels are places in its list, and `classes` stays empty.
    Raises DataError for a set that cannot be had, and for a name without a number.
    """
    path = find_images(name)
    if path.is_file():
        files = zip_entries(path)
        names = [PurePosixPath(entry.filename).name for entry in files]
    else:
        files = sorted(p for p in path.rglob("*") if has_file_allowed_extension(p.name, IMG_EXTENSIONS))
        names = [file.name for file in files]
    numbers = [re.match(r"(\d+)_", file) for file in names]
    if not files or None in numbers:
        odd = names[numbers.index(None)] if files else "nothing"
        raise DataError(f"{path} holds {odd}: expected photos named INDEX_*.jpg, INDEX being the label")
    part = from_files(name, "test", {"": files}, [""], f"the file {data_short(path)}", path)
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


def _from_torchvision(name: str, official: Official, root: Path) -> PictureSet:
    made = {}
    for part, opened in official.open(root).items():
        lengths = [len(one) for one in opened]
        where = [(one, i) for one, length in zip(opened, lengths, strict=True) for i in range(length)]
        paths = [
            path[0] if isinstance(path, tuple) else path for one in opened for path in getattr(one, official.files)
        ]
        labels = [label for one in opened for label in getattr(one, official.labels)]
        labels = torch.tensor([label[-1] if isinstance(label, tuple) else label for label in labels])
        if absent := next((path for path in paths if not Path(path).is_file()), None):
            raise FileNotFoundError(f"{absent} is not there")

        def read(i: int, where=where, paths=paths) -> object:
            one, place = where[i]
            try:
                return one[place][0]
            except UNREADABLE as error:
                kind = type(error).__name__
                raise DataError(f"cannot read the image {paths[i]} ({kind}): delete {root / official.folder}") from None

        made[part or "train"] = Pictures(
            name,
            part or "train",
            labels.long(),
            tuple(name[0] if isinstance(name, tuple) else name for name in opened[0].classes),
            f"torchvision's {official.kind.__name__} in {official.folder}",
            read,
            lambda i, paths=paths: file_content(paths[i]),
        )
    if "test" not in made:
        return _split(name, official.title, made["train"])
    return PictureSet(name, official.title, made["train"], made["test"])


# --- by name ---

NAMES = ("flowers102", "pets", "dtd", "eurosat", "cifar10", "cifar100", "fashion_mnist", "mnist", "kmnist")
NAMES += ("imagenette", "digits", "shapes")


def load(name: str, *, download: bool = True) -> PictureSet:
    """A set by name: one of `NAMES`, or a folder or zip of photos under `$VITBOOK_DATA/images`.

    Flowers-102, Pets, DTD, EuroSAT are looked for where torchvision puts them, in each folder of `$VITBOOK_DATA`, and
    then downloaded into the first of them; download=False, or `VITBOOK_OFFLINE=1`, leaves the network alone. Train and
    validation parts are one training part here, as in the papers; EuroSAT has no official split and is cut with a seed.
    Photos of your own: NAME/train/CLASS/*.jpg with test (or val), or NAME/CLASS/*.jpg, or the same inside NAME.zip,
    which is read in place. Raises ValueError for an unknown name, DataError for a set that cannot be had.
    """
    if name in OFFICIAL:
        return _official(name, download)
    if name == "shapes":
        return _shapes(name, download)
    if name in NAMES:
        return _tensors(name, download)
    there = at_hand()
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
