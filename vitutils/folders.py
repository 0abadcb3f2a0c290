"""Your own images: a folder with one folder a class becomes a `Dataset`, all in memory as uint8."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension
from torchvision.transforms import v2

from vitutils.data import DataError, Dataset, channel_statistics

SPLITS = (("train", "test"), ("train", "val"))


def memory() -> float:
    """Return the bytes of memory that this process may count on: under torchrun the ranks of a machine share its own.

    Infinity where the system does not say.
    """
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")
    return whole / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def class_files(folder: Path) -> dict[str, list[Path]]:
    """Return the image files below each class folder, sorted: {class: files}. Raises DataError for an empty class."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        held = f"one folder, {classes[0]}" if classes else "no folders"
        raise DataError(f"{folder} has {held}: expected one a class, two or more, with images in them")
    found = {}
    for name in classes:
        paths = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        found[name] = [path for path in paths if has_file_allowed_extension(path.name, IMG_EXTENSIONS)]
        if not found[name]:
            held = f"{len(paths)} other files" if paths else "no files"
            kinds = " ".join(IMG_EXTENSIONS)
            raise DataError(f"class {name!r} is empty: {folder / name} holds {held}; expected images ({kinds})")
    return found


def read_image(path: Path, size: int) -> Tensor:
    """Return one image as uint8 (3, size, size): shorter side to `size`, middle square.

    Raises DataError, which names the file, if it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kind = type(error).__name__
        raise DataError(f"cannot read the image {path} ({kind}): mend it, take it away, or --skip-unreadable") from None
    image = v2.functional.resize(image, [size], antialias=True)
    return v2.functional.center_crop(image, [size, size])


def read_classes(found: dict[str, list[Path]], size: int, skip_unreadable: bool) -> tuple[Tensor, Tensor, list[Path]]:
    """Return images (N, 3, size, size), labels (N,), and the files passed over."""
    images, labels, skipped = [], [], []
    for label, (name, paths) in enumerate(found.items()):
        before = len(images)
        for path in paths:
            try:
                images.append(read_image(path, size))
                labels.append(label)
            except DataError:
                if not skip_unreadable:
                    raise
                skipped.append(path)
        if len(images) == before:
            raise DataError(f"class {name!r} is empty: none of its {len(paths)} files could be read")
    return torch.stack(images), torch.tensor(labels), skipped


def load_folder(
    folder: Path | str, size: int, *, skip_unreadable: bool = False, test_share: float = 0.2, seed: int = 0
) -> Dataset:
    """Read images from FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val), or from FOLDER/CLASS/*.

    size: pixels; the shorter side is shrunk to it, the middle square kept.  In the last case `test_share` of the
    images, classes in balance, become the test part.  skip_unreadable: pass over damaged files; `source` counts them.
    Raises DataError, which names the folder, class or file, for what is missing, empty or unreadable, for classes
    that differ between the parts, and for more than half of this machine's memory.
    """
    folder = Path(folder)
    if size < 1:
        raise ValueError(f"expected a size of 1 pixel or more, got {size}")
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: expected one with train/CLASS/ and test/CLASS/, or CLASS/, in it")
    for names in SPLITS:
        if all((folder / name).is_dir() for name in names):
            parts = [class_files(folder / name) for name in names]
            break
    else:
        parts = [class_files(folder)]
    if len({tuple(part) for part in parts}) > 1:
        odd = sorted(set(parts[0]) ^ set(parts[1]))
        raise DataError(f"{folder}: the parts {' and '.join(names)} differ in the classes {', '.join(odd)}")
    count = sum(len(paths) for part in parts for paths in part.values())
    needed, there = 2 * count * 3 * size * size, memory()  # twice: `hold_out` copies, and both are kept
    if needed > there / 2:
        raise DataError(
            f"{folder}: {count:,} images of {size} pixels need {needed / 1e9:.1f} GB, more than half of the "
            f"{there / 1e9:.1f} GB for this process; take a smaller size or fewer images"
        )
    read = [read_classes(part, size, skip_unreadable) for part in parts]
    skipped = sum(len(paths) for _, _, paths in read)
    images, labels, _ = read[0]
    mean, std = channel_statistics(images)
    whole = Dataset(
        name=folder.name,
        train_images=images,
        train_labels=labels,
        test_images=read[-1][0],
        test_labels=read[-1][1],
        classes=tuple(parts[0]),
        mean=mean,
        std=std.clamp_min(1 / 255),  # a channel in which all images are alike would be divided by 0
        source=f"the folder {folder}" + (f" ({skipped} unreadable files skipped)" if skipped else ""),
    )
    if len(parts) == 2:
        return whole
    held = round(test_share * len(labels))
    if not 0 < held < len(labels):
        raise DataError(f"{folder}: {len(labels)} images are too few to keep {test_share:.0%} for the test")
    return whole.hold_out(held, seed)
