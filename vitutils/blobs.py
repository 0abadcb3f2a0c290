"""Two coloured blobs, of one colour or of two: a question about pixels that lie far apart. Chapter 1 writes it out."""

import torch
from torch import Tensor


def check_room(n: int, distances: list, size: tuple) -> None:
    """Hold that two blobs at these distances, whole numbers, fit into images of this size. Raises ValueError."""
    H, W = size
    if n < 1 or not len(distances):
        raise ValueError(f"expected one image or more and one distance or more, got {n} and {list(distances)}")
    wrong = [d for d in distances if d != int(d) or not 1 <= d <= W - 5]
    if H < 3 or wrong:
        raise ValueError(f"expected H of 3 or more and whole distances from 1 to {W - 5}, got {H} x {W}, {wrong}")


def two_blobs(
    n: int, distances: list, seed: int, size: tuple = (6, 36)
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw two 3 x 3 blobs in one row: of one colour (1) or of two (0).

    distances: steps from the last column of one blob to the first of the
    other; they and the labels take turns, so that all are in balance.
    Returns uint8 images (n, 3, H, W), labels (n,), each distance (n,).
    Raises ValueError where there is no room: H is 3 or more, a distance from
    1 to W - 5.
    """
    check_room(n, distances, size)
    generator = torch.Generator().manual_seed(seed)

    def draw(upto):  # one whole number an image, from 0 to upto - 1
        return (torch.rand(n, generator=generator) * upto).long()

    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    (H, W), image = size, torch.arange(n)
    labels = image % 2
    distance = torch.tensor(distances)[image // 2 % len(distances)]
    first, other = draw(4), draw(3)
    second = torch.where(labels == 1, first, (first + 1 + other) % 4)
    row, left = draw(H - 2), draw(W - 4 - distance)
    images = torch.zeros(n, 3, H, W, dtype=torch.uint8)
    for colour, start in (first, left), (second, left + 2 + distance):
        pixel = (255 * colours[colour]).byte()  # (n, 3)
        for y in range(3):
            for x in range(3):
                images[image, :, row + y, start + x] = pixel
    return images, labels, distance
