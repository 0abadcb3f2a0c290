"""Data sets by name, and photos to look at.

`load` finds a set without the network if it can: first in the reader's own cache, then in a copy on
the system, and only then does it download torchvision's. Everything is a tensor in memory: small sets are
indexed, not streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from vitutils.data._splits import balanced_order, class_counts, split_off
from vitutils.data.batches import batches, channel_statistics, check_pair
from vitutils.data.sources import SOURCES, DataError, find_set
from vitutils.files import stand_in

DATA_SETS = ("digits", *SOURCES)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A labelled set of images, split in two, all in memory.

    name: as given to `load`.  source: where the images came from, for people to read.
    train_images, test_images: uint8 (N, C, H, W), 0..255.
    train_labels, test_labels: int64 (N,), 0..K-1.  classes: K names.
    mean, std: float32 (C,), of the training images scaled to 0..1.
    Raises ValueError for a shape, dtype or label that does not fit (it gives expected and got).
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    source: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            check_pair(images, labels, f"{self.name}, {part}")
            if images.dtype != torch.uint8:
                raise ValueError(f"{self.name}, {part}: expected uint8 images, got {images.dtype}")
            low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"{self.name}, {part}: expected labels 0..{self.num_classes - 1}, got {low}..{high}")

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.train_images.shape[1:])

    def batches(self, size: int, *, seed: int | None, **how) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of the training part, normalised with `mean` and `std`.

        how: arguments of `data.batches`, which explains what it yields and what `size` and `seed` do.
        """
        parts = self.train_images, self.train_labels
        return batches(*parts, size, seed=seed, mean=self.mean, std=self.std, **how)

    def summary(self) -> str:
        """One line: name, sizes, image shape, classes, source; and images per class if these differ a lot."""
        told = class_counts(self.classes, self.train_labels, self.test_labels)
        return (
            f"{self.name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test "
            f"images of {' x '.join(map(str, self.image_shape))}, {self.num_classes} classes{told}, "
            f"from {self.source}"
        )

    def __repr__(self) -> str:
        return f"<Dataset {self.summary()}>"

    def hold_out(self, count: int, seed: int = 0) -> Dataset:
        """A set to choose with: `count` training images, in proportion for each class, become its test part.

        Every class keeps at least one image on either side. Choose recipes on this set, and keep the real test part for
        one last evaluation. Raises ValueError, naming them, if classes have a single image, and if count is too small
        or too large.
        """
        held = split_off(self.train_labels, count, seed, self.classes)
        return replace(
            self,
            name=f"{self.name}, {count:,} held out",
            train_images=self.train_images[~held],
            train_labels=self.train_labels[~held],
            test_images=self.train_images[held],
            test_labels=self.train_labels[held],
        )

    def take(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """A smaller set with balanced classes: counts differ by at most one until a class runs out.

        train, test: how many images to keep; None keeps that part whole and in its order.
        Images are drawn in rounds of one per class; with the same seed, a smaller draw is the
        beginning of a larger one. mean and std stay those of the whole training part, so that
        runs can be compared. Raises ValueError if you ask for more images than there are.
        """
        kept = {}
        for part, count in (("train", train), ("test", test)):
            if count is None:
                continue
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if not 0 < count <= len(labels):
                raise ValueError(f"{part}: expected 1 to {len(labels)} images, got {count}")
            chosen = balanced_order(labels, seed)[:count]
            kept |= {f"{part}_images": images[chosen], f"{part}_labels": labels[chosen]}
        return replace(self, **kept)


def load(name: str, *, download: bool = True) -> Dataset:
    """A data set by name: digits, fashion_mnist, mnist, kmnist, cifar10, cifar100.

    It looks in this order: the cache in `$VITBOOK_DATA` (you can give several folders, separated by
    os.pathsep; it writes to the first; the default is `~/.cache/vitbook`); raw files in the same
    folders, where torchvision puts them (`FashionMNIST/raw/*.gz`; CIFAR as its authors' binary
    archive, `cifar-10-binary.tar.gz`); the system's copy (Debian's dataset-fashion-mnist); a
    download, which is verified. `digits` comes with scikit-learn and needs none of these.

    download: False, or `VITBOOK_OFFLINE=1` in the environment, means no network.
    If a file is damaged, a warning names it and it is skipped; if it is the cache's, it is replaced.
    Raises ValueError for another name; DataError, naming all that was tried, if the set is not
    available.
    """
    if name not in DATA_SETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(DATA_SETS)}")
    tensors, classes, source = _digits() if name == "digits" else find_set(name, download)
    mean, std = channel_statistics(tensors["train_images"])
    return Dataset(name=name, **tensors, classes=classes, mean=mean, std=std, source=source)


def load_first(*names: str, download: bool = True) -> Dataset:
    """The first of these sets that is available; its `source`, and a printed line, say which ones are not.

    Raises ValueError for an unknown name, before anything is tried; DataError if none is available.
    """
    if not names or (unknown := [name for name in names if name not in DATA_SETS]):
        got = ", ".join(map(repr, unknown)) if names else "none"
        raise ValueError(f"expected names from {', '.join(DATA_SETS)}; got {got}")
    failures: list[str] = []
    for i, name in enumerate(names):
        try:
            found = load(name, download=download)
        except DataError as error:
            failures.append(str(error))
            continue
        if i:
            stand_in(name, absent := " and ".join(names[:i]))
            found = replace(found, source=f"{found.source} ({absent} not available)")
        return found
    raise DataError("\n\n".join(failures))


def _digits() -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, 0..16 scaled to 0..255; split 4 to 1."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    train, test = (torch.from_numpy(indices) for indices in order)
    tensors = {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }
    return tensors, tuple("0123456789"), "scikit-learn's bundled handwritten digits"


def photos(size: int | None = None) -> dict[str, Tensor]:
    """Four photos to look at: cat, coffee, astronaut, rocket; uint8 (3, H, W), 0..255.

    size: None returns each as it is; a number, the middle square shrunk to (3, size, size).
    They come with scikit-image, so no network is needed. All are free to use, according to
    scikit-image's documentation: cat (Chelsea, by Stefan van der Walt) and coffee (by Rachel
    Michetti, courtesy of Pikolo Espresso Bar) are CC0; astronaut (Eileen Collins, NASA) and rocket
    (Falcon 9 with DSCOVR, SpaceX) are in the public domain.
    """
    from skimage import data as bundled

    pictures = {}
    for name in ("cat", "coffee", "astronaut", "rocket"):
        image = torch.from_numpy(getattr(bundled, name)().copy()).permute(2, 0, 1).contiguous()
        if size is not None:
            image = v2.functional.center_crop(image, [min(image.shape[1:])])
            image = v2.functional.resize(image, [size, size], antialias=True)
        pictures[name] = image
    return pictures
