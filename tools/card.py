"""Draw the cat's patches twice into book/_static: home.png, for the home page and the README, and card.png, which a
link to the book shows elsewhere."""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from vitutils import data, plot

STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"
WIDTH, HEIGHT = 1200, 630
P, ROWS = 32, 7
TITLE = "Vision\nTransformers\nin PyTorch"
LINE = "A book that runs: from convolution\nto attention, one notebook a chapter"


def main() -> None:
    plot.use_style()
    photo = data.photos(size=P * ROWS)["cat"]  # (C, H, W)
    patches = photo.reshape(3, ROWS, P, ROWS, P).permute(1, 3, 0, 2, 4).flatten(0, 1)  # (N, C, P, P)
    plot.patch_grid(photo, patches, (ROWS, ROWS)).savefig(STATIC / "home.png", dpi=180)
    sheet, _ = plot.patch_sheet(patches, ROWS)
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white", layout="none")
    side = 2 * sheet.shape[1] / HEIGHT  # each pixel of the photo becomes two by two
    axes = figure.add_axes([0.05, (1 - side) / 2, side * HEIGHT / WIDTH, side])
    axes.imshow(plot.to_picture(sheet), interpolation="nearest")
    axes.axis("off")
    figure.text(0.52, 0.84, TITLE, fontsize=50, weight="bold", color="#0b3d63", va="top", linespacing=1.1)
    figure.text(0.522, 0.28, LINE, fontsize=19.5, color="#333333", va="top", linespacing=1.4)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    card = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    card.save(STATIC / "card.png", optimize=True)


if __name__ == "__main__":
    main()
