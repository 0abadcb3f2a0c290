"""Look at every photo of a folder once, before anything is computed: which can be read, and which are unusual."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitutils.data._layout import Packed, open_zip, read_picture
from vitutils.data.decoding import UNREADABLE, UPRIGHT
from vitutils.data.duplicates import thumbnail
from vitutils.data.sources import DataError

SMALL = 64  # pixels: photos with a shorter side are called small
FLAT = 0.02  # of 1, five shades of 256: what differs less all over is called blank


@dataclass(frozen=True)
class Survey:
    """What was found. kept: indices of the photos that can be read.  thumbnails: theirs, (len(kept), 18, 18).

    unreadable: index -> why.  turned: indices of the photos that the camera's orientation tag turns.  small: indices of
    those with a side below 64 pixels.
    """

    kept: tuple[int, ...]
    thumbnails: np.ndarray
    unreadable: dict[int, str]
    turned: tuple[int, ...]
    small: tuple[int, ...]

    @property
    def blank(self) -> frozenset[int]:
        """Which of the thumbnails have a single shade, or nearly: a lens cap, an empty scan."""
        return frozenset(np.flatnonzero(np.ptp(self.thumbnails, axis=(1, 2)) < FLAT).tolist())


def look_at(files: Sequence[Path | Packed], seen: Callable[[], object] = lambda: None) -> Survey:
    """Decode every file once. seen: called after each, to move a progress bar."""
    kept, thumbnails, unreadable, turned, small = [], [], {}, [], []
    for i, file in enumerate(files):
        try:
            picture = read_picture(file)
            kept.append(i)
            thumbnails.append(thumbnail(picture))
            if min(picture.size) < SMALL:
                small.append(i)
            if _tag(file) in UPRIGHT:
                turned.append(i)
        except DataError as error:
            unreadable[i] = str(error)
        seen()
    stacked = np.stack(thumbnails) if thumbnails else np.zeros((0, 18, 18), np.float32)
    return Survey(tuple(kept), stacked, unreadable, tuple(turned), tuple(small))


def _tag(file: Path | Packed) -> int | None:
    """The orientation tag of a photo, or None."""
    with suppress(*UNREADABLE, DataError):
        source = file if isinstance(file, Path) else io.BytesIO(open_zip(file.archive).read(file.info))
        with Image.open(source) as picture:
            return picture.getexif().get(0x0112)
    return None
