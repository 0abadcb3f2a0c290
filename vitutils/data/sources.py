"""Where a data set comes from: found, checked, decoded, kept. Only `vitutils.data` uses this.

The order is: our own cache, raw files in the same folders, a copy on the system, a download.
A file is used only if its checksum, its sizes and its label range are right; a damaged one is
named. No pickle is ever opened: raw files are IDX or CIFAR's binary records, the cache is
safetensors.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torchvision import datasets as tv
from torchvision.datasets.utils import calculate_md5, download_url

from vitutils.files import data_folders, downloading, short, sweep, system_folder, whole_file

TIMEOUT = 10.0  # seconds without an answer, after which a mirror is given up
TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
Found = tuple[dict[str, Tensor], tuple[str, ...], str]  # tensors, class names, origin


class DataError(RuntimeError):
    """A data set is not available; the message says what was tried, and names damaged files."""


@dataclass(frozen=True)
class Source:
    """How one set is found and checked."""

    shape: tuple[int, int, int]  # (C, H, W)
    sizes: tuple[int, int]  # images for training, for test
    num_classes: int
    folder: str  # where torchvision keeps the raw files, below a data folder
    files: tuple[tuple[str, str], ...]  # (name, MD5)
    mirrors: tuple[str, ...]  # addresses, each ending in /
    megabytes: int  # to download
    decode: Callable[[Source, Path, bool], tuple[dict[str, Tensor], tuple[str, ...]]]
    classes: tuple[str, ...] = ()  # empty: the files name them
    system: tuple[str, str] = ("", "")  # folder below the system's data sets, and whose it is
    unpacked: tuple[str, ...] = ()  # SHA-256 of each file's content: the system packs it anew


def find_set(name: str, download: bool) -> Found:
    """The set's tensors, class names and origin, from the first place that has them whole."""
    tried: list[str] = []
    if found := _from_cache(name, tried):
        return found
    if found := _from_raw_files(name, tried) or _from_system(name, tried):
        return _keep(name, found)
    if not download or os.environ.get("VITBOOK_OFFLINE", "0") not in ("", "0"):
        tried.append("download: switched off")
    elif found := _from_download(name, tried):
        return _keep(name, found)
    raise DataError(_advice(name, tried))


def _advice(name: str, tried: list[str]) -> str:
    source = SOURCES[name]
    files = ", ".join(file for file, _ in source.files)
    package, _ = source.system
    return "\n".join(
        [f"The data set {name!r} is not available. Tried, in this order:"]
        + [f"  - {line}" for line in tried]
        + ["What to do, any one of these:"]
        + ([f"  - on Debian: apt-get install dataset-{package}"] if package else [])
        + [
            "  - connect to the network and load it again",
            f"  - put {files} (from {source.mirrors[0]}) into {data_folders()[0] / source.folder}",
            "  - use a set that needs neither: load('digits'), or load_first(..., 'digits')",
        ]
    )


# --- the four places ---


def _from_cache(name: str, tried: list[str]) -> Found | None:
    for path in (folder / f"{name}.safetensors" for folder in data_folders()):
        try:
            tensors, classes, origin = _read_cache(path)
            _check(SOURCES[name], tensors, classes, path)
            return tensors, classes, f"the cache {short(path.parent)} (filled from {origin})"
        except (FileNotFoundError, NotADirectoryError):
            tried.append(f"cache {path}: not there")
        except DataError as error:
            _warn_damaged(error, tried)
    return None


def _from_raw_files(name: str, tried: list[str]) -> Found | None:
    source = SOURCES[name]
    for folder in (folder / source.folder for folder in data_folders()):
        if found := _decode(source, folder, False, f"the files in {short(folder)}", tried):
            return found
        if name.startswith("cifar") and next(folder.glob("cifar-10*py*"), None):
            tried.append(f"{folder}: a Python version of CIFAR is there, but it is a pickle: never opened")
    return None


def _from_system(name: str, tried: list[str]) -> Found | None:
    source = SOURCES[name]
    subfolder, whose = source.system
    if not subfolder:
        return None
    folder = system_folder() / subfolder
    return _decode(source, folder, True, f"{whose}, {folder}", tried)


def _from_download(name: str, tried: list[str]) -> Found | None:
    source = SOURCES[name]
    for mirror in source.mirrors:
        with _scratch_folder() as folder:
            try:
                with downloading(name, source.megabytes):
                    for file, md5 in source.files:
                        _download(mirror + file, folder, file, md5)
            # ValueError: an address that is none; RuntimeError: torchvision's "corrupted".
            except (OSError, HTTPException, RuntimeError, ValueError) as error:
                tried.append(f"download {mirror}{file}: {error}")
                continue
            if found := _decode(source, folder, False, f"a download from {mirror}", tried):
                return found
    return None


def _download(url: str, folder: Path, file: str, md5: str) -> None:
    """torchvision's checked download, without waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        download_url(url, folder, file, md5)
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for half-done downloads: in the cache, or the system's own if that cannot be."""
    parent = data_folders()[0]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        folder = tempfile.TemporaryDirectory(prefix=".download-", dir=parent)
    except OSError:
        folder = tempfile.TemporaryDirectory(prefix="vitbook-")
    with folder as path:
        yield Path(path)


# --- raw files ---


def _decode(source: Source, folder: Path, repacked: bool, origin: str, tried: list[str]) -> Found | None:
    """The set from one folder's raw files; None, the reason in `tried`, if absent or damaged."""
    missing = [file for file, _ in source.files if not os.path.isfile(folder / file)]
    if len(missing) == len(source.files):
        tried.append(f"files in {folder}: not there")
        return None
    try:
        if missing:
            raise DataError(f"{folder} is incomplete: {', '.join(missing)} not there")
        tensors, classes = source.decode(source, folder, repacked)
        _check(source, tensors, classes, folder)
        return tensors, classes, origin
    except DataError as error:
        _warn_damaged(error, tried)
        return None


def _idx_files(source: Source, folder: Path, repacked: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The four gzipped IDX files. repacked: the content's checksum counts, not the packed one's."""
    tensors = {}
    for i, (part, (file, md5)) in enumerate(zip(TENSORS, source.files, strict=True)):
        path = folder / file
        try:
            if not repacked and (got := calculate_md5(path)) != md5:
                raise _damaged(path, f"MD5 {md5}", got)
            raw = gzip.decompress(path.read_bytes())
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(path, "a whole gzip file", error) from error
        if repacked and (got := hashlib.sha256(raw).hexdigest()) != source.unpacked[i]:
            raise _damaged(path, f"content with SHA-256 {source.unpacked[i]}", got)
        tensors[part] = _idx(raw, path)
    for split in ("train", "test"):
        tensors[f"{split}_images"] = tensors[f"{split}_images"].unsqueeze(1)
        tensors[f"{split}_labels"] = tensors[f"{split}_labels"].long()
    return tensors, source.classes


def _idx(raw: bytes, path: Path) -> Tensor:
    """One IDX array: two zeros, 8 (for bytes), the number of axes, their lengths, the bytes."""
    axes = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    sizes = np.frombuffer(raw, ">u4", axes, 4).tolist() if axes and len(raw) >= 4 + 4 * axes else []
    data = np.frombuffer(raw, np.uint8, offset=min(len(raw), 4 + 4 * axes))
    if not sizes or data.size != np.prod(sizes):
        raise _damaged(path, f"an IDX file of {sizes or 'some'} bytes", f"{data.size:,} bytes")
    return torch.from_numpy(data.reshape(sizes).copy())


def _cifar_records(source: Source, folder: Path, repacked: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """CIFAR's binary archive: an image is its label and 3 x 32 x 32 bytes.

    CIFAR-100 has two bytes of label, a coarse one and, last, the fine one that is used.
    """
    ((file, md5),) = source.files
    path = folder / file
    width = 3072 + (1 if source.num_classes == 10 else 2)
    records: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    classes: tuple[str, ...] = ()
    try:
        if (got := calculate_md5(path)) != md5:
            raise _damaged(path, f"MD5 {md5}", got)
        with tarfile.open(path, "r:gz") as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                base = os.path.basename(member.name)
                if base.endswith(".bin"):
                    part = "test" if base.startswith("test") else "train"
                    raw = archive.extractfile(member).read()
                    records[part].append(np.frombuffer(raw, np.uint8).reshape(-1, width))
                elif base in ("batches.meta.txt", "fine_label_names.txt"):
                    classes = tuple(archive.extractfile(member).read().decode().split())
        tensors = {}
        for part, blocks in records.items():
            table = torch.from_numpy(np.concatenate(blocks))  # (N, width)
            tensors[f"{part}_images"] = table[:, -3072:].reshape(-1, 3, 32, 32).contiguous()
            tensors[f"{part}_labels"] = table[:, -3073].long()
    except (EOFError, OSError, ValueError, tarfile.TarError, zlib.error) as error:
        raise _damaged(path, "CIFAR's binary records", error) from error
    return tensors, classes


# --- our own cache ---


def _keep(name: str, found: Found) -> Found:
    """Write the set to the cache: under a temporary name, then renamed, so that no half is seen."""
    tensors, classes, origin = found
    folder, metadata = data_folders()[0], {"classes": json.dumps(classes), "origin": origin}
    metadata["sha256"] = _digest(tensors, metadata)
    try:
        if folder.exists() and not folder.stat().st_mode & 0o222:  # root could write there all the same
            raise PermissionError(f"{short(folder)} is read-only")
        with whole_file(folder / f"{name}.safetensors") as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:  # a full disk, a folder that is not ours
        return tensors, classes, f"{origin} (not cached: {error})"
    return found


def _read_cache(path: Path) -> Found:
    """Read the file once, whole: another process may replace it, or throw it away, at any moment."""
    try:
        raw = path.read_bytes()
        tensors = load(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, SafetensorError) as error:
        raise _damaged(path, "a whole safetensors file", error) from error
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata = header.get("__metadata__", {})
    if missing := [part for part in TENSORS if part not in tensors]:
        raise _damaged(path, f"the tensors {', '.join(TENSORS)}", f"no {', '.join(missing)}")
    expected = metadata.pop("sha256", "none recorded")
    if (got := _digest(tensors, metadata)) != expected:
        raise _damaged(path, f"SHA-256 {expected}", got)
    return tensors, tuple(json.loads(metadata["classes"])), metadata["origin"]


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for part in TENSORS:
        digest.update(f"{part} {tuple(tensors[part].shape)} {tensors[part].dtype}".encode())
        digest.update(tensors[part].numpy())
    return digest.hexdigest()


# --- checks ---


def _check(source: Source, tensors: dict[str, Tensor], classes: tuple, where: Path) -> None:
    """Sizes, number of classes and label range, as the source says. Raises DataError."""
    if len(classes) != source.num_classes:
        raise _damaged(where, f"{source.num_classes} class names", len(classes))
    for part, size in zip(("train", "test"), source.sizes, strict=True):
        images, labels = tensors[f"{part}_images"], tensors[f"{part}_labels"]
        if images.shape != (size, *source.shape):
            raise _damaged(where, f"{part} images {(size, *source.shape)}", tuple(images.shape))
        if labels.shape != (size,):
            raise _damaged(where, f"{size} {part} labels", tuple(labels.shape))
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= source.num_classes:
            raise _damaged(where, f"{part} labels 0..{source.num_classes - 1}", f"{low}..{high}")


def _damaged(path: Path, expected: object, got: object) -> DataError:
    return DataError(f"{path} is damaged: expected {expected}, got {got}")


def _warn_damaged(error: DataError, tried: list[str]) -> None:
    tried.append(str(error))
    warnings.warn(f"{error}. It is passed over.", stacklevel=2)


# --- the sets ---


def _mnist_like(dataset: type[tv.MNIST], megabytes: int, **more: object) -> Source:
    """A set of the MNIST family; names, checksums and mirrors are torchvision's own."""
    return Source(
        shape=(1, 28, 28),
        sizes=(60_000, 10_000),
        num_classes=10,
        folder=f"{dataset.__name__}/raw",
        files=tuple(dataset.resources),
        mirrors=tuple(dataset.mirrors),
        megabytes=megabytes,
        decode=_idx_files,
        classes=tuple(dataset.classes),
        **more,
    )


def _cifar(num_classes: int, md5: str) -> Source:
    """The authors' binary archive, with the MD5 of their page; the Python one is a pickle."""
    return Source(
        shape=(3, 32, 32),
        sizes=(50_000, 10_000),
        num_classes=num_classes,
        folder="",
        files=((f"cifar-{num_classes}-binary.tar.gz", md5),),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        megabytes=170,
        decode=_cifar_records,
    )


SOURCES = {
    "fashion_mnist": _mnist_like(
        tv.FashionMNIST,
        megabytes=31,
        system=("fashion-mnist", "Debian's dataset-fashion-mnist package"),
        unpacked=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "mnist": _mnist_like(tv.MNIST, megabytes=12),
    "kmnist": _mnist_like(tv.KMNIST, megabytes=21),
    "cifar10": _cifar(10, "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": _cifar(100, "03b5dce01913d631647c71ecec9e9cb8"),
}
