"""Your own images: a folder or zip with one folder per class becomes a `Dataset`, all in memory as uint8."""

import os
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitutils.data._layout import Packed, read_layout, read_picture
from vitutils.data.sets import Dataset, channel_statistics
from vitutils.data.sources import DataError


def memory() -> float:
    """Return the bytes of memory that this process can count on; under torchrun, the ranks of a machine share it.

    Infinity if the system does not say.
    """
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")
    return whole / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def read_image(file: Path | Packed, size: int) -> Tensor:
    """Return one image as uint8 (3, size, size): its middle square, as a person sees it, resized to `size`.

    Raises DataError, naming the file, if it cannot be decoded.
    """
    try:
        return torch.from_numpy(np.array(read_picture(file, size))).permute(2, 0, 1)
    except DataError as error:
        raise DataError(f"{error}, or --skip-unreadable") from None


def read_classes(
    found: dict[str, list[Path | Packed]], size: int, skip_unreadable: bool
) -> tuple[Tensor, Tensor, list[Path | Packed]]:
    """Return images (N, 3, size, size), labels (N,), and the files that were skipped."""
    images, labels, skipped = [], [], []
    for label, (name, files) in enumerate(found.items()):
        before = len(images)
        for file in files:
            try:
                images.append(read_image(file, size))
                labels.append(label)
            except DataError:
                if not skip_unreadable:
                    raise
                skipped.append(file)
        if len(images) == before:
            raise DataError(f"class {name!r} is empty: none of its {len(files)} files could be read")
    return torch.stack(images), torch.tensor(labels), skipped


def load_folder(
    folder: Path | str, size: int, *, skip_unreadable: bool = False, test_share: float = 0.2, seed: int = 0
) -> Dataset:
    """Read images from FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or from FOLDER/CLASS/*; or from a zip of the same.

    The parts are called train or training; val, valid, validation or dev; test or testing, in upper or lower case.
    There are two or three of them; if there are three, the second joins the training part. Without parts, `test_share`
    of the images becomes the test part, in proportion for each class, with at least one image on either side.

    size: pixels; the middle square of each image is resized to it.  skip_unreadable: skip damaged files.
    `source` says what was joined, skipped or left out: files that aren't images, images outside a class folder or
    without labels. Hidden files, and those that operating systems leave behind, do not count.
    Raises ValueError if size is not a whole number above 0, or a share is not between 0 and 1.
    Raises DataError, naming the folder, class or file, if something is missing, empty or unreadable, if classes differ
    between the parts or have a single image to split, if parts are not recognised or lie below the classes, if links
    reach a folder twice, or if the images need more than half of this machine's memory.
    """
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise ValueError(f"expected a size of 1 pixel or more, got {size!r}; it is a whole number")
    if not isinstance(test_share, Real) or not 0 < test_share < 1:
        raise ValueError(f"expected a test_share between 0 and 1, got {test_share!r}")
    given, folder = str(folder), Path(folder)  # Path("") is the folder that one is in
    zipped = folder.is_file()
    if not given or not folder.is_dir() and not (zipped and folder.suffix.lower() == ".zip"):
        wanted = "one with train/CLASS/ and test/CLASS/, or CLASS/, or its zip"
        raise DataError(f"no folder {given or repr(given)}: expected {wanted}")
    layout = read_layout(folder)
    count = sum(len(files) for part in layout.parts.values() for files in part.values())
    needed, there = 2 * count * 3 * size * size, memory()  # twice: `hold_out` copies, and both are kept
    if needed > there / 2:
        raise DataError(
            f"{folder}: {count:,} images of {size} pixels need {needed / 1e9:.1f} GB, more than half of the "
            f"{there / 1e9:.1f} GB for this process; use a smaller size or fewer images"
        )
    read = [read_classes(part, size, skip_unreadable) for part in layout.parts.values()]
    skipped = sum(len(files) for _, _, files in read)
    images, labels, _ = read[0]
    mean, std = channel_statistics(images)
    whole = Dataset(
        name=folder.stem if zipped else folder.name,
        train_images=images,
        train_labels=labels,
        test_images=read[-1][0],
        test_labels=read[-1][1],
        classes=tuple(next(iter(layout.parts.values()))),
        mean=mean,
        std=std.clamp_min(1 / 255),  # a channel in which all images are alike would be divided by 0
        source=f"the {'zip file' if zipped else 'folder'} {folder}{layout.told}"
        + (f" ({skipped} unreadable files skipped)" if skipped else ""),
    )
    if len(layout.parts) == 2:
        return whole
    try:
        return whole.hold_out(max(len(whole.classes), round(test_share * len(labels))), seed)
    except ValueError as error:
        raise DataError(f"{folder}: {error}") from None
