"""Pictures that occur twice, or nearly: found by a hash of what they show, and kept on one side of a split.

If a picture is in the training part and a copy of it (smaller, recompressed, brighter, grey, mirrored, turned by a
quarter) in the test part, the test is easier than the real world.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vitutils.data._splits import split_off

SIDE = 8  # of the grid whose neighbours are compared: 128 bits
FAR = 16  # bits: copies differ in no more
LIKE = 0.98  # the correlation of two thumbnails that show the same
THUMB = 18  # pixels, side of the thumbnails
ROWS = 1_000  # never all N x N distances at once


def thumbnail(picture: Image.Image) -> np.ndarray:
    """The whole picture, grey and squeezed into a square: float32 (18, 18), 0..1."""
    # BOX takes the nearest pixels of a tiny picture: mirrored, it would not give the mirrored thumbnail
    how = Image.Resampling.BOX if min(picture.size) >= 2 * THUMB else Image.Resampling.BILINEAR
    small = picture.convert("L").resize((THUMB, THUMB), how)
    return np.asarray(small, dtype=np.float32) / 255


def hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Which of two neighbours is brighter, to the right and below: thumbnails (N, 18, 18) -> +1 or -1, (N, 128).

    This is the difference hash, which survives scaling, compression and changes of brightness. Half the number of bits
    minus half the dot product of two rows is the number of bits in which they differ.
    """
    grid = thumbnails.reshape(len(thumbnails), SIDE + 1, 2, SIDE + 1, 2).mean(axis=(2, 4))  # (N, 9, 9)
    right, below = np.diff(grid, axis=2)[:, :SIDE], np.diff(grid, axis=1)[:, :, :SIDE]
    bits = np.concatenate([right.reshape(len(grid), -1), below.reshape(len(grid), -1)], axis=1) > 0
    return np.where(bits, 1, -1).astype(np.float32)


def find_duplicates(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that show the same thing: thumbnails (N, 18, 18).

    Two pictures do if their hashes differ in at most 16 of 128 bits and their thumbnails have a correlation of 0.98 or
    more, with one of them mirrored or turned by quarters if necessary. Measured on 647 photos: different ones differ in
    25 bits or more, and all copies at half the size or at JPEG quality 30 are found. Copies that are cropped by a tenth
    are mostly missed.
    """
    thumbnails = np.asarray(thumbnails, dtype=np.float32)
    if not len(thumbnails):
        return []
    plain, flat = hashes(thumbnails), _centred(thumbnails)
    pairs = set()
    for turned in _turns(thumbnails):
        turned_hashes, turned_flat = hashes(turned), _centred(turned)
        for start in range(0, len(plain), ROWS):
            differ = (plain.shape[1] - plain[start : start + ROWS] @ turned_hashes.T) / 2
            for i, j in np.argwhere(differ <= FAR):
                i += start
                if i < j and flat[i] @ turned_flat[j] >= LIKE:
                    pairs.add((int(i), int(j)))
    return sorted(pairs)


def _turns(thumbnails: np.ndarray) -> list[np.ndarray]:
    """The pictures turned by 0, 1, 2, 3 quarters, and the same mirrored."""
    turned = [np.rot90(thumbnails, k, axes=(1, 2)) for k in range(4)]
    return turned + [turn[:, :, ::-1] for turn in turned]


def _centred(thumbnails: np.ndarray) -> np.ndarray:
    """Rows whose products are correlations, (N, 324); of two blank pictures the correlation is 1."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    blank = length[:, 0] < 1e-3
    flat = flat / np.maximum(length, 1e-3)
    flat[blank] = flat.shape[1] ** -0.5
    return flat


def groups(count: int, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """A group number for each of `count` pictures, (N,): copies of copies share a group; most pictures have their own.

    Groups are numbered in the order of their first pictures.
    """
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, found = connected_components(graph, directed=False)
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[first.argsort()] = np.arange(len(first))
    return torch.from_numpy(rank[number.reshape(-1)])


def split_groups(labels: Tensor, group: Tensor, share: float, seed: int, classes: Sequence[str]) -> Tensor:
    """Which pictures to split off, bool (N,): about `share` of each class, and only whole groups.

    A group whose pictures have different labels is not split off: it would only measure that the labels contradict each
    other. Raises ValueError, naming each class with fewer than two groups of its own.
    """
    _, first, place = np.unique(group.numpy(), return_index=True, return_inverse=True)
    place = torch.from_numpy(place.reshape(-1))  # of each picture's group
    none = torch.zeros(len(first), dtype=labels.dtype)
    lowest = none.scatter_reduce(0, place, labels, "amin", include_self=False)
    highest = none.scatter_reduce(0, place, labels, "amax", include_self=False)
    free = lowest == highest
    chosen, free_labels = torch.zeros(len(first), dtype=torch.bool), lowest[free]
    there = int((free_labels.bincount() > 0).sum())
    missing = [repr(classes[k]) for k in range(len(classes)) if not (free_labels == k).any()]
    if missing:
        raise ValueError(f"every picture of {', '.join(missing[:8])} is a copy of one in another class")
    count = min(max(there, round(share * len(free_labels))), len(free_labels) - there)
    chosen[free] = split_off(free_labels, max(1, count), seed, classes)
    return chosen[place]
