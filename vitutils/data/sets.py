"""Images for the book: data sets, photos, drawn shapes, and batches of them.

`load` finds a set without the network if it can: in the reader's own cache, in a copy the system
holds, and only then in torchvision's download. Everything is a tensor in memory: small sets are
indexed, not streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from vitutils.data.sources import RECIPES, DataError, find
from vitutils.distributed import share

NAMES = ("digits", *RECIPES)


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
            _check_pair(images, labels, f"{self.name}, {part}")
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

    def summary(self) -> str:
        """One line: name, sizes, image shape, classes, source; and images a class where they are unlike."""
        told = class_counts(self.classes, self.train_labels, self.test_labels)
        return (
            f"{self.name}: {len(self.train_labels):,} training and {len(self.test_labels):,} test "
            f"images of {' x '.join(map(str, self.image_shape))}, {self.num_classes} classes{told}, "
            f"from {self.source}"
        )

    def __repr__(self) -> str:
        return f"<Dataset {self.summary()}>"

    def hold_out(self, count: int, seed: int = 0) -> Dataset:
        """A set for choosing: `count` training images, each class in proportion, become its test part.

        Every class keeps an image on either side. Choose recipes on this one; keep the real test part for one last
        evaluation. Raises ValueError that names the classes of one image, and for a count that is too small or large.
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
        """A smaller set, its classes in balance: counts differ by one at most while none runs out.

        train, test: how many images to keep; None keeps that part whole and in its order.
        A drawn part is dealt in rounds of one image a class; for one seed, a smaller draw is the
        beginning of a larger one. mean and std stay those of the whole training part, so that
        runs can be compared. Raises ValueError if more images are asked for than there are.
        """
        kept = {}
        for part, count in (("train", train), ("test", test)):
            if count is None:
                continue
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if not 0 < count <= len(labels):
                raise ValueError(f"{part}: expected 1 to {len(labels)} images, got {count}")
            chosen = _rounds(labels, seed)[:count]
            kept |= {f"{part}_images": images[chosen], f"{part}_labels": labels[chosen]}
        return replace(self, **kept)


def load(name: str, *, download: bool = True) -> Dataset:
    """A data set by name: digits, fashion_mnist, mnist, kmnist, cifar10, cifar100.

    Looked for in this order: the cache in `$VITBOOK_DATA` (several folders may be named, split at
    os.pathsep; the first is written to; unset, it is `~/.cache/vitbook`); raw files in the same
    folders, where torchvision puts them (`FashionMNIST/raw/*.gz`; CIFAR as its authors' binary
    archive, `cifar-10-binary.tar.gz`); the system's copy (Debian's dataset-fashion-mnist); a
    download, checked. `digits` comes with scikit-learn and needs none of these.

    download: False, or `VITBOOK_OFFLINE=1` in the environment, leaves the network alone.
    A damaged file is named in a warning, passed over, and written anew where it is the cache's.
    Raises ValueError for another name; DataError, naming all that was tried, if the set cannot be
    had.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(NAMES)}")
    tensors, classes, source = _digits() if name == "digits" else find(name, download)
    mean, std = channel_statistics(tensors["train_images"])
    return Dataset(name=name, **tensors, classes=classes, mean=mean, std=std, source=source)


def load_first(*names: str, download: bool = True) -> Dataset:
    """The first of these sets that can be had; its `source` says which ones could not.

    Raises ValueError for an unknown name, before anything is tried; DataError if none can be had.
    """
    if not names or (unknown := [name for name in names if name not in NAMES]):
        got = ", ".join(map(repr, unknown)) if names else "none"
        raise ValueError(f"expected names out of {', '.join(NAMES)}; got {got}")
    failures: list[str] = []
    for i, name in enumerate(names):
        try:
            found = load(name, download=download)
        except DataError as error:
            failures.append(str(error))
            continue
        absent = f" ({' and '.join(names[:i])} could not be had)" if i else ""
        return replace(found, source=found.source + absent)
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

    size: None gives each as it is; a number, the middle square shrunk to (3, size, size).
    Bundled with scikit-image, no network. Free to use, as scikit-image's documentation says of
    each: cat (Chelsea, by Stefan van der Walt) and coffee (by Rachel Michetti, courtesy of Pikolo
    Espresso Bar) are CC0; astronaut (Eileen Collins, NASA) and rocket (Falcon 9 with DSCOVR,
    SpaceX) are in the public domain.
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


# --- batches ---


def batch_sizes(count: int, size: int) -> list[int]:
    """How many images each batch of an epoch of training has: `size`, and in the last what is left.

    A single image that is left joins the batch before it: BatchNorm has no spread to learn from in one image, and
    refuses it where it has one position a channel.
    """
    full, left = divmod(count, size)
    if left == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size] * full + [left] * (left > 0)


def batches(
    images: Tensor,
    labels: Tensor,
    size: int,
    *,
    seed: int | None,
    augment: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
    mean: float | Sequence[float] | Tensor = 0.5,
    std: float | Sequence[float] | Tensor = 0.5,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: float images (b, C, H, W), normalised, and int64 labels (b,), on `device`.

    images: uint8 (N, C, H, W), 0..255, or float, 0..1.  labels: int64 (N,).
    size: images a batch; the last one takes what is left, as `batch_sizes` says.
    seed: the order, and what `augment` draws; give each epoch another. None: in order, for evaluation; then the last
    batch may have one image.
    augment: function of a batch on `device`, before normalisation, in the images' own dtype.
    mean, std: per channel, of images scaled to 0..1; the defaults map 0..1 to -1..1.
    rank, world: of several processes, each takes its part of every batch (`distributed.share`). Where there are too
    few for all to have two, some have none of their own: they get its first two images, and `Ranks.weight` is 0.
    The same seed gives the same batches on one device, whatever was drawn before, and torch's own
    random state stays as it was. Raises ValueError for shapes or dtypes that do not fit.

    A trap: torchvision's v2 transforms draw once a call, so that on a batch *every image gets the
    same crop and flip* (pytorch/vision issue 8484). Use `flip_shift()`, or
    `per_image(transform)`, which calls any v2 transform once an image.
    """
    _check_pair(images, labels)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images: expected uint8 or float, got {images.dtype}")
    if size < 1:
        raise ValueError(f"expected a batch size of 1 or more, got {size}")
    if not 0 <= rank < world:
        raise ValueError(f"expected 0 <= rank < world, got rank {rank} of {world}")
    return _batches(images, labels, size, seed, augment, torch.device(device), mean, std, rank, world)


def _batches(images, labels, size, seed, augment, device, mean, std, rank, world):
    count = len(labels)
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    order = torch.arange(count) if seed is None else torch.randperm(count, generator=generator)
    for batch in order.split(size if seed is None else batch_sizes(count, size)):
        chosen = batch[list(share(rank, world, len(batch))) or slice(2)]
        picked = images[chosen.to(images.device)].to(device)
        targets = labels[chosen.to(labels.device)].to(device)
        if augment is not None:
            with seeded(int(torch.randint(2**62, (), generator=generator)) + rank, device):
                picked = augment(picked)
        yield normalise(picked, mean, std), targets


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers, on the CPU and `device`, start from `seed` here and go on as before after."""
    side = None if device.type == "cpu" else getattr(torch, device.type)  # torch.cuda, torch.mps
    where = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    before = torch.get_rng_state()
    with where:
        before_side = side and side.get_rng_state()
        torch.default_generator.manual_seed(seed)
        if side:
            side.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        with where:
            if side:
                side.set_rng_state(before_side)


def flip_shift(pad: int = 2, flip: bool = True) -> Callable[[Tensor], Tensor]:
    """An augmentation for `batches`: each image mirrored or not, and shifted by up to `pad` pixels.

    What torchvision's RandomCrop(padding=pad) and RandomHorizontalFlip do to an image, done to a
    batch with one draw *per image*, in one gather: 0.1 s for 60,000 images of 28 x 28 on one core,
    where calling the two transforms once an image takes 2.3 s. What comes in from outside is 0.
    flip: leave it off where left and right mean something (digits, letters).
    """

    def augment(images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        device = images.device
        shift = torch.randint(2 * pad + 1, (2, B, 1), device=device)
        rows = torch.arange(H, device=device) + shift[0]  # (B, H)
        columns = torch.arange(W, device=device).expand(B, W)
        if flip:
            mirrored = torch.rand(B, 1, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        columns = columns + shift[1]  # (B, W)
        padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
        pixels = rows[:, :, None] * (W + 2 * pad) + columns[:, None, :]  # (B, H, W)
        pixels = pixels.reshape(B, 1, H * W).expand(B, C, H * W)
        return padded.gather(2, pixels).reshape(B, C, H, W)

    return augment


def per_image(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An augmentation for `batches` out of any torchvision v2 transform, called once an image."""
    return lambda images: torch.stack([transform(image) for image in images])


def normalise(
    images: Tensor,
    mean: float | Sequence[float] | Tensor = 0.5,
    std: float | Sequence[float] | Tensor = 0.5,
) -> Tensor:
    """(images - mean) / std per channel. images: (..., C, H, W), uint8 0..255 or float 0..1."""
    if not images.is_floating_point():
        images = images / 255
    return (images - _per_channel(mean, images)).div_(_per_channel(std, images))


def denormalise(
    images: Tensor,
    mean: float | Sequence[float] | Tensor = 0.5,
    std: float | Sequence[float] | Tensor = 0.5,
) -> Tensor:
    """Undo `normalise`, for showing: float (..., C, H, W), clipped to 0..1."""
    return (images * _per_channel(std, images) + _per_channel(mean, images)).clamp(0, 1)


def _per_channel(value: float | Sequence[float] | Tensor, images: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    if len(value) not in (1, images.shape[-3]):
        raise ValueError(f"expected 1 or {images.shape[-3]} values, one a channel, got {len(value)}")
    return value


def _check_pair(images: Tensor, labels: Tensor, what: str = "images") -> None:
    if images.ndim != 4:
        raise ValueError(f"{what}: expected shape (N, C, H, W), got {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{what}: expected {len(images)} labels, one an image, got {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"{what}: expected int64 labels, got {labels.dtype}")


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of images scaled to 0..1, from a count of each value."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)  # (C, 256)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().float()


# --- draws and splits ---


def _by_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The indices (N,) of shuffled images, class by class, and the place (N,) of each within its class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turn = torch.cat([torch.arange(int(count)) for count in labels.bincount()])
    return shuffled[labels[shuffled].argsort(stable=True)], turn


def _rounds(labels: Tensor, seed: int) -> Tensor:
    """The indices (N,) of shuffled images, dealt in rounds of one a class: for a draw in balance."""
    by_class, turn = _by_class(labels, seed)
    return by_class[turn.argsort(stable=True)]


def split_off(labels: Tensor, count: int, seed: int, classes: Sequence[str]) -> Tensor:
    """Which images to split off, bool (N,): `count` of them, each class in proportion and with one on either side.

    labels: int64 (N,).  classes: their names.  A class without images is passed over.
    Raises ValueError that names each class of one image, and for a count too small or large for one of each class.
    """
    counts = labels.bincount(minlength=len(classes))
    if single := [f"{classes[k]!r} (1)" for k in (counts == 1).nonzero().flatten().tolist()]:
        more = f" and {len(single) - 8} more" if len(single) > 8 else ""
        raise ValueError(
            f"of {', '.join(single[:8])}{more} there is 1 image to split: expected 2 or more of every class, one for "
            f"either side; add images or take the class away"
        )
    K = int((counts > 0).sum())
    if not K <= count <= len(labels) - K or not count:
        raise ValueError(
            f"expected a count between {K} and {len(labels) - K}, so that each of {K} classes has an image on either "
            f"side, got {count}"
        )
    by_class, turn = _by_class(labels, seed)
    split = torch.zeros(len(labels), dtype=torch.bool)
    split[by_class[turn < _shares(counts, count)[labels[by_class]]]] = True
    return split


def _shares(counts: Tensor, count: int) -> Tensor:
    """How many images of each class (K,) to split off: in proportion, one at least, never all.

    scikit-learn's stratified split is in proportion too, but leaves a rare class on one side.
    """
    exact = counts * (count / int(counts.sum()))
    # Dealt in rounds, where that is within one image of the proportion: so were the splits of the recorded studies.
    rounds = torch.cat([torch.arange(int(n)) for n in counts]).argsort(stable=True)[:count]
    dealt = torch.arange(len(counts)).repeat_interleave(counts)[rounds].bincount(minlength=len(counts))
    if ((dealt - exact).abs() < 1).all() and ((dealt > 0) & (dealt < counts) | (counts == 0)).all():
        return dealt
    low, high = counts.clamp(max=1), (counts - 1).clamp(min=0)
    shares = exact.floor().long().clamp(low, high)
    while missing := count - int(shares.sum()):
        open_ = shares < high if missing > 0 else shares > low
        lacking = torch.where(open_, exact - shares, -torch.inf if missing > 0 else torch.inf)
        shares[lacking.argmax() if missing > 0 else lacking.argmin()] += 1 if missing > 0 else -1
    return shares


def class_counts(classes: Sequence[str], train_labels: Tensor, test_labels: Tensor) -> str:
    """Images a class, training + test, in brackets; nothing where no class has more than twice those of another."""
    train, test = (labels.bincount(minlength=len(classes)) for labels in (train_labels, test_labels))
    if all(len(n) == 0 or n.max() <= 2 * n.min() for n in (train, test)):
        return ""
    told = [f"{name} {n:,} + {m:,}" for name, n, m in zip(classes, train.tolist(), test.tolist(), strict=True)]
    order = (train + test).argsort(stable=True).tolist()
    return f" ({', '.join(told)})" if len(told) <= 12 else f" (from {told[order[0]]} to {told[order[-1]]})"
