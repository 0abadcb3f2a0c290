"""torchvision's own sets of images, downloaded once by torchvision, and read from its folders."""

from __future__ import annotations

import io
import os
import shutil
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from PIL import Image
from torchvision import datasets as tv

from vitutils.data._layout import read_picture
from vitutils.data.images import ImagePart, ImageSet, content_of, split_whole
from vitutils.data.sources import TIMEOUT, DataError
from vitutils.files import data_folders, downloading, sweep


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


def load_official(name: str, download: bool) -> ImageSet:
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
            [f"The set {name!r} ({official.title}, {official.megabytes} MB) is not available. Tried, in this order:"]
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


def read_official(folder: Path, files: Sequence[Path], i: int) -> Image.Image:
    try:
        return read_picture(files[i])
    except DataError as error:
        raise DataError(f"{str(error).partition(': repair it')[0]}: delete {folder}") from None


def _from_torchvision(name: str, official: Official, root: Path) -> ImageSet:
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

        made[part or "train"] = ImagePart(
            name,
            part or "train",
            labels.long(),
            tuple(name[0] if isinstance(name, tuple) else name for name in opened[0].classes),
            f"torchvision's {official.kind.__name__} in {official.folder}",
            partial(read_official, root / official.folder, paths),
            partial(content_of, paths),
        )
    if "test" not in made:
        return split_whole(name, official.title, made["train"])
    return ImageSet(name, official.title, made["train"], made["test"])
