"""Images and point clouds for the book: data sets, photos, drawn shapes, batches; sets of any size; your own.

`load` finds a set without the network if it can: first in the reader's own cache, then in a copy on
the system, and only then does it download torchvision's. Everything is a tensor in memory: small sets are
indexed, not streamed. `load_image_set` gives images of any size, read one at a time.
"""

from vitutils.data.batches import (
    batch_sizes,
    batches,
    channel_statistics,
    denormalise,
    flip_shift,
    normalise,
    per_image,
)
from vitutils.data.image_sets import imagenet_photos, load_image_set, load_image_sets, load_own_image_sets
from vitutils.data.images import ImagePart, ImageSet, as_dataset
from vitutils.data.meshes import load_cloud_folder, read_cloud
from vitutils.data.points import POINT_SETS, PointSet, load_points, sample_surface, unit_sphere
from vitutils.data.primitives import PRIMITIVES, Primitives, primitives
from vitutils.data.sets import DATA_SETS, Dataset, load, load_first, photos
from vitutils.data.sources import DataError
from vitutils.data.synthetic import SHAPES, Shapes, shapes, two_blobs

__all__ = [
    "DATA_SETS",
    "POINT_SETS",
    "PRIMITIVES",
    "SHAPES",
    "DataError",
    "Dataset",
    "ImagePart",
    "ImageSet",
    "PointSet",
    "Primitives",
    "Shapes",
    "as_dataset",
    "batch_sizes",
    "batches",
    "channel_statistics",
    "denormalise",
    "flip_shift",
    "imagenet_photos",
    "load",
    "load_cloud_folder",
    "load_first",
    "load_image_set",
    "load_image_sets",
    "load_own_image_sets",
    "load_points",
    "normalise",
    "per_image",
    "photos",
    "primitives",
    "read_cloud",
    "sample_surface",
    "shapes",
    "two_blobs",
    "unit_sphere",
]
