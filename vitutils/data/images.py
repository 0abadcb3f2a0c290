"""Sets of images of any size, read one at a time, for pre-trained networks.

`vitutils.data.sets` holds small images of one size as tensors in memory. Photos differ in size and would not fit:
here a set is a pair of torch `Dataset`s of (picture, label), which read a picture when you ask for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vitutils.data import decoding
from vitutils.data._layout import Packed, content, read_picture
from vitutils.data._splits import balanced_order, class_counts, split_off
from vitutils.data.batches import check_pair, per_channel
from vitutils.data.sets import Dataset
from vitutils.data.sources import DataError

TEST_SHARE = 0.2  # of a set that has no test part of its own
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False, repr=False)
class ImagePart(torch.utils.data.Dataset):
    """One part of a set: `part[i]` is (picture, label), read when you ask for it.

    A picture is a PIL image in RGB, or a uint8 tensor (C, H, W) if the set is a tensor.
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
        return f"<ImagePart {self.name}, {self.part}: {len(self):,} of {len(self.classes)} classes, from {self.source}>"

    def at(self, indices: Sequence[int] | Tensor) -> ImagePart:
        """The pictures at these positions, in this order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, labels=self.labels[indices], places=self.places[indices])

    def take(self, count: int | None, seed: int = 0) -> ImagePart:
        """At most `count` pictures with balanced classes, drawn with `seed`; all if count is None or larger."""
        if count is not None and count < 1:
            raise ValueError(f"expected a count of 1 or more, or None, got {count}")
        if count is None or count >= len(self):
            return self
        return self.at(balanced_order(self.labels, seed)[:count])

    def fingerprint(self) -> str:
        """A hash of the pictures' bytes, their labels and order, and the class names: another set has another hash."""
        digest = hashlib.sha256(repr((self.name, self.part, self.classes)).encode())
        digest.update(self.labels.numpy())
        for place in self.places.tolist():
            digest.update(self.content(place))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A set in two parts. title: its name for people."""

    name: str
    title: str
    train: ImagePart
    test: ImagePart

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.train.classes

    @property
    def source(self) -> str:
        """Where it came from."""
        return self.train.source

    def take(self, train: int | None, test: int | None, seed: int = 0) -> ImageSet:
        """A smaller set: at most this many of each part, with balanced classes; None keeps all."""
        return replace(self, train=self.train.take(train, seed), test=self.test.take(test, seed))

    def fitting(self, train: int, test: int, seed: int = 0) -> ImageSet:
        """Like `take`, but if there are too many classes for these numbers it keeps the first ones, as `source` says.

        A class needs two pictures to train on and one to test on.
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
        """One line: title, sizes, classes, source; and pictures per class if these differ a lot."""
        told = class_counts(self.classes, self.train.labels, self.test.labels)
        return (
            f"{self.title}: {len(self.train):,} training and {len(self.test):,} test pictures, "
            f"{len(self.classes)} classes{told}, from {self.source}"
        )


def from_tensors(
    name: str, part: str, images: Tensor, labels: Tensor, classes: Sequence[str], source: str
) -> ImagePart:
    """A part out of uint8 images (N,C,H,W) in memory and their labels (N,)."""
    check_pair(images, labels, f"{name}, {part}")
    if images.dtype != torch.uint8:
        raise ValueError(f"{name}, {part}: expected uint8 images, got {images.dtype}")
    return ImagePart(name, part, labels, tuple(classes), source, images.__getitem__, partial(pixels_of, images))


def pixels_of(images: Tensor, i: int) -> bytes:
    return images[i].contiguous().numpy().tobytes()


def from_files(
    name: str, part: str, found: dict[str, list[Path | Packed]], classes: Sequence[str], source: str
) -> ImagePart:
    """A part out of files, {class: files}: paths, or files in a zip."""
    files = [file for label in classes for file in found[label]]
    labels = torch.tensor([k for k, label in enumerate(classes) for _ in found[label]])
    return ImagePart(name, part, labels, tuple(classes), source, partial(read_file, files), partial(content_of, files))


def read_file(files: Sequence[Path | Packed], i: int) -> Image.Image:
    return read_picture(files[i])


def content_of(files: Sequence[Path | Packed], i: int) -> bytes:
    """What a fingerprint knows of a file: its bytes, and how they are decoded."""
    return content(files[i]) + f" {decoding.VERSION}".encode()


def split_whole(name: str, title: str, whole: ImagePart) -> ImageSet:
    """Cut a set that has no test part of its own: the same fifth of it every time, each class in proportion."""
    count = max(len(whole.classes), round(TEST_SHARE * len(whole)))
    try:
        held = split_off(whole.labels, count, SPLIT_SEED, whole.classes)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    source = f"{whole.source} (no official split: a fifth kept for the test, seed {SPLIT_SEED})"
    parts = {
        part: replace(whole.at(chosen.nonzero().flatten()), part=part, source=source)
        for part, chosen in (("test", held), ("train", ~held))
    }
    return ImageSet(name, title, parts["train"], parts["test"])


def stack(images: list[Tensor]) -> Tensor:
    """One batch (B,C,H,W). Raises ValueError where the transform gives something else than images of one size."""
    kinds = {(tuple(image.shape), image.dtype) if isinstance(image, Tensor) else type(image) for image in images}
    image = images[0]
    if len(kinds) > 1 or not isinstance(image, Tensor) or image.ndim != 3:
        told = ", ".join(sorted(map(str, kinds))[:3])
        raise ValueError(f"the transform must give tensors (C, H, W) of one size, got {told}")
    return torch.stack(images)


def _as_uint8(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """One image (C,H,W) as uint8, its normalisation undone."""
    if not stack([image]).is_floating_point():
        raise ValueError(f"the transform must give float images, normalised, got {image.dtype}")
    image = image * per_channel(std, image) + per_channel(mean, image)
    low, high = image.min().item(), image.max().item()
    if not -0.25 <= low <= high <= 1.25:  # resizing may overshoot a little
        raise ValueError(
            f"expected images within 0..1 once mean {mean} and std {std} are undone, got {low:.2f} to {high:.2f}: give "
            f"those that the transform uses"
        )
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def as_dataset(
    train_part: ImagePart, test_part: ImagePart, transform: Callable, mean: Sequence[float], std: Sequence[float]
) -> Dataset:
    """Both parts as uint8 images of the size that `transform` gives, in memory, for training.

    transform: a picture -> normalised tensor (C,H,W); mean, std: what it normalises with, and what training on this
    set will normalise with. Undone, the images are rounded to the 256 levels that they had. Raises ValueError for a
    part without pictures, images of several sizes, and where undoing does not lead back to about 0..1.
    """
    parts = {}
    for part, pictures in (("train", train_part), ("test", test_part)):
        if not len(pictures):
            raise ValueError(f"{pictures.name}, {pictures.part}: no pictures to make a data set from")
        images = [_as_uint8(transform(pictures[i][0]), mean, std) for i in range(len(pictures))]
        parts |= {f"{part}_images": stack(images), f"{part}_labels": pictures.labels.clone()}
    return Dataset(
        name=train_part.name,
        **parts,
        classes=train_part.classes,
        mean=torch.as_tensor(mean, dtype=torch.float32),
        std=torch.as_tensor(std, dtype=torch.float32),
        source=train_part.source,
    )
