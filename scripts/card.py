"""Draw the picture that a link to the book shows elsewhere, book/_static/card.png: the cat's patches and the title."""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from vitutils import data, plot

WIDTH, HEIGHT = 1200, 630
P, ROWS, GAP = 32, 7, 5
TITLE = "Vision\nTransformers\nin PyTorch"
LINE = "A book that runs: from convolution\nto attention, one notebook a chapter"


def patches_apart(photo: np.ndarray) -> np.ndarray:
    """The photo cut into patches with white between them. (H, W, C) -> larger (H, W, C)"""
    step = P + GAP
    apart = np.ones((ROWS * step - GAP, ROWS * step - GAP, 3))
    for row in range(ROWS):
        for column in range(ROWS):
            cut = photo[row * P : (row + 1) * P, column * P : (column + 1) * P]
            apart[row * step : row * step + P, column * step : column * step + P] = cut
    return apart


def main() -> None:
    plot.use_style()
    photo = data.photos(size=P * ROWS)["cat"].permute(1, 2, 0).numpy() / 255
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white", layout="none")
    side = 2 * (ROWS * (P + GAP) - GAP) / HEIGHT  # each pixel of the photo becomes two by two
    axes = figure.add_axes([0.05, (1 - side) / 2, side * HEIGHT / WIDTH, side])
    axes.imshow(patches_apart(photo), interpolation="nearest")
    axes.axis("off")
    figure.text(0.52, 0.84, TITLE, fontsize=50, weight="bold", color="#0b3d63", va="top", linespacing=1.1)
    figure.text(0.522, 0.28, LINE, fontsize=19.5, color="#333333", va="top", linespacing=1.4)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    target = Path(__file__).resolve().parent.parent / "book" / "_static" / "card.png"
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
    print(target, f"{target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
