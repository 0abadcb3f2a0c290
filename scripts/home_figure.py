"""Draw the picture of the home page and the README, book/_static/home.png, with the book's own figure function."""

from pathlib import Path

from vitutils import data, plot

P, ROWS = 32, 7


def main() -> None:
    plot.use_style()
    photo = data.photos(size=P * ROWS)["cat"]  # (C, H, W)
    cut = photo.reshape(3, ROWS, P, ROWS, P)
    patches = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)  # (N, C, P, P)
    target = Path(__file__).resolve().parent.parent / "book" / "_static" / "home.png"
    plot.patch_grid(photo, patches, (ROWS, ROWS)).savefig(target, dpi=180)
    print(target)


if __name__ == "__main__":
    main()
