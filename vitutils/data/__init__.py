"""Images for the book: data sets, photos, drawn shapes, batches of them; sets of pictures of any size; your own.

`load` finds a set without the network if it can: in the reader's own cache, in a copy the system
holds, and only then in torchvision's download. Everything is a tensor in memory: small sets are
indexed, not streamed.
"""

from vitutils.data.sets import (
    NAMES,
    Dataset,
    batch_sizes,
    batches,
    channel_statistics,
    class_counts,
    denormalise,
    flip_shift,
    load,
    load_first,
    normalise,
    per_image,
    photos,
    seeded,
    split_off,
)
from vitutils.data.sources import DataError
from vitutils.data.synthetic import SHAPES, Shapes, shapes, two_blobs

__all__ = [
    "NAMES",
    "SHAPES",
    "DataError",
    "Dataset",
    "Shapes",
    "batch_sizes",
    "batches",
    "channel_statistics",
    "class_counts",
    "denormalise",
    "flip_shift",
    "load",
    "load_first",
    "normalise",
    "per_image",
    "photos",
    "seeded",
    "shapes",
    "split_off",
    "two_blobs",
]
