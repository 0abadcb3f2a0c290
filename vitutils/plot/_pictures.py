"""Images, their patches, maps over them, point clouds, and the drawings of the book."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from vitutils.plot._style import COLOURS, WIDTH, finish

HERE = Path(__file__).resolve().parents[1]
DIAGRAMS = (HERE.parent / "book" / "_static", HERE / "_diagrams")  # in a clone; in an installed package


class Diagram:
    """A hand-made drawing; as the last value of its cell a notebook shows it."""

    def __init__(self, svg: str):
        self.svg = svg

    def _repr_svg_(self) -> str:
        return self.svg


def diagram(name: str) -> Diagram:
    """Show a drawing of the book: `diagram("vit-block")` is book/_static/vit-block.svg.

    Raises FileNotFoundError for an unknown name; the message lists those there are.
    """
    drawings = {file.stem: file for folder in reversed(DIAGRAMS) for file in sorted(folder.glob("*.svg"))}
    if name not in drawings:
        raise FileNotFoundError(f"no diagram {name!r}; there are: {', '.join(sorted(drawings)) or 'none'}")
    return Diagram(drawings[name].read_text(encoding="utf-8"))


def to_picture(image: torch.Tensor) -> np.ndarray:
    """Turn (C,H,W), (H,W) or (H,W,3), uint8 or float 0..1, into what imshow takes: (H,W) grey or (H,W,3)."""
    array = image.detach().cpu()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.permute(1, 2, 0)
    array = array.numpy()
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


def show_picture(axes, image: torch.Tensor, title: str = "") -> None:
    """Draw one image on the axes: no ticks, no grid, sharp pixels; grey images from black (0) to white."""
    picture = to_picture(image)
    top = 255 if picture.dtype == np.uint8 else 1.0
    grey = {"cmap": "gray", "vmin": 0, "vmax": top} if picture.ndim == 2 else {}
    axes.imshow(picture, interpolation="nearest", **grey)
    axes.set_title(title)
    axes.set_axis_off()


def images(pictures: Sequence[torch.Tensor], titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Show images in rows. pictures: tensors (C,H,W), uint8 or float 0..1. titles: one each, or none."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = WIDTH / columns
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (cell + (0.35 if titles else 0))), squeeze=False)
    for n, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if n < len(pictures):
            show_picture(ax, pictures[n], titles[n] if titles else "")
            ax.title.set_fontsize(8.5 if columns > 5 else 10)
    return finish(figure)


def patch_sheet(patches: torch.Tensor, columns: int) -> tuple[torch.Tensor, np.ndarray]:
    """Set patches (N,C,P,P) apart on one white picture (C,H,W), and say where each one's corner is, (N,2) as x, y."""
    N, C, P = patches.shape[:3]
    gap = max(1, P // 6)
    corners = np.array([(n % columns, n // columns) for n in range(N)]) * (P + gap)
    width, height = corners.max(axis=0) + P
    white = 1.0 if patches.is_floating_point() else 255
    sheet = torch.full((C, height, width), white).to(patches)
    for patch, (x, y) in zip(patches, corners, strict=True):
        sheet[:, y : y + P, x : x + P] = patch
    return sheet, corners


def patch_grid(image: torch.Tensor, patches: torch.Tensor, grid: tuple[int, int]) -> Figure:
    """Show an image with its patch grid (left), and its patches set apart and numbered in order (right).

    image: (C,H,W). patches: (N,C,P,P), as the caller cut them. grid: rows and columns of patches.
    """
    (rows, columns), P = grid, patches.shape[-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 0.52 * WIDTH * rows / columns + 0.3))
    show_picture(left, image, f"{rows} x {columns} patches")
    left.hlines(P * np.arange(1, rows) - 0.5, -0.5, P * columns - 0.5, color="white", linewidth=0.8)
    left.vlines(P * np.arange(1, columns) - 0.5, -0.5, P * rows - 0.5, color="white", linewidth=0.8)
    sheet, corners = patch_sheet(patches, columns)
    show_picture(right, sheet, f"a sequence of {len(patches)}")
    label = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for n, (x, y) in enumerate(corners):
        right.text(x, y, n, fontsize=6, ha="left", va="top", bbox=label)
    return finish(figure)


def patch_rows(images: torch.Tensor, patches: torch.Tensor, names: Sequence[str]) -> Figure:
    """Show each image (B,C,H,W) at the left of a row, its patches (B,N,C,P,P) in order beside it."""
    B, N, _, P = patches.shape[:4]
    ratio = N / 2.6  # a patch is shown at 2.6 / 4 of its size in the image, for N = 16
    figure, axes = plt.subplots(
        B, 2, figsize=(WIDTH, B * 0.2 + B * WIDTH / (ratio + 1)), width_ratios=[1, ratio], squeeze=False
    )
    for b, (left, right) in enumerate(axes):
        show_picture(left, images[b], names[b])
        left.title.set_fontsize(8.5)
        sheet, corners = patch_sheet(patches[b], N)
        show_picture(right, sheet)
        for n, (x, y) in enumerate(corners):
            right.add_patch(plt.Rectangle((x - 0.5, y - 0.5), P, P, fill=False, edgecolor="0.5", linewidth=0.6))
            right.text(x + P / 2 - 0.5, y - 1, n, fontsize=8, ha="center", va="bottom")
    return finish(figure)


def map_rows(rows: Sequence[tuple[str, torch.Tensor, Sequence[torch.Tensor]]], titles: Sequence[str]) -> Figure:
    """Show one row per case: an image and maps of it, each map on a scale of its own, from its lowest to its highest.

    rows: (name, image (C,H,W), maps (rows,columns)). titles: one per column of maps.
    """
    columns = 1 + len(titles)
    cell = min(WIDTH / columns, 1.9)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(cell * columns, 0.35 + (cell + 0.1) * len(rows)), squeeze=False
    )
    for n, (name, image, maps) in enumerate(rows):
        show_picture(axes[n, 0], image, name)
        axes[n, 0].title.set_fontsize(8.5)
        for ax, values, title in zip(axes[n, 1:], maps, titles, strict=True):
            ax.imshow(torch.as_tensor(values).detach().cpu().float().numpy(), interpolation="nearest")
            ax.set_axis_off()
            if n == 0:
                ax.set_title(title, fontsize=8.5)
    return finish(figure)


def top_answers(
    pictures: Sequence[torch.Tensor], titles: Sequence[str], answers: Sequence[Sequence[tuple[str, float]]]
) -> Figure:
    """Show images with a net's most probable answers beside each, two images per row: bars of (name, probability)."""
    rows = -(-len(pictures) // 2)
    figure, axes = plt.subplots(rows, 4, figsize=(WIDTH, 1.75 * rows), width_ratios=[1, 1.25, 1, 1.25], squeeze=False)
    for ax in axes.flat[2 * len(pictures) :]:
        ax.set_axis_off()
    cells = zip(axes.reshape(-1, 2), pictures, titles, answers, strict=False)
    for (left, right), picture, title, bars in cells:
        show_picture(left, picture, title)
        left.title.set_fontsize(8.5)
        names, shares = [name for name, _ in bars], [share for _, share in bars]
        right.barh(range(len(bars)), shares, color=COLOURS[5], edgecolor=COLOURS[0])
        for n, name in enumerate(names):
            short = name if len(name) < 24 else name[:22] + "\u2026"
            share = f"{shares[n]:.{1 if shares[n] < 0.01 else 0}%}"
            right.text(0.02, n, f"{short}  {share}", va="center", fontsize=7.5)
        right.set(xlim=(0, 1), yticks=[], xticks=[0, 0.5, 1])
        right.invert_yaxis()
        right.tick_params(labelsize=7.5)
    figure.supxlabel("probability", fontsize=9)
    return finish(figure)


SIDES = {"from the front": (0, 2, 1, 1), "from the side": (1, 2, 0, -1), "from above": (0, 1, 2, -1)}


def clouds(rows: Sequence[tuple], mark: Sequence[int] | None = None) -> Figure:
    """Draw point clouds from three sides, one per row: (title, points (N, 3)) or (title, points, values (N,)).

    z is up. Without values the near points are dark and the far ones light; with them the colour says the value, on a
    scale of the row's own, and the largest are drawn last. mark: the index of one point in each row, drawn as a cross.
    """
    figure, axes = plt.subplots(len(rows), 3, figsize=(WIDTH, 2.3 * len(rows) + 0.2), squeeze=False)
    for n, (title, points, *values) in enumerate(rows):
        points = torch.as_tensor(points).detach().cpu().double().numpy()
        shown = torch.as_tensor(values[0]).detach().cpu().double().numpy() if values else None
        middle, reach = (points.max(axis=0) + points.min(axis=0)) / 2, 0.53 * np.ptp(points, axis=0).max()
        for ax, (side, (across, up, depth, sign)) in zip(axes[n], SIDES.items(), strict=True):
            away = sign * points[:, depth]  # how far from the eye
            order = (-away if shown is None else shown).argsort(kind="stable")
            colour, kind = (away, "Greys_r") if shown is None else (shown, "viridis_r")
            spread = np.ptp(colour) or 1.0
            low, high = (colour.min() - 0.1 * spread, colour.max() + 0.6 * spread) if shown is None else (0, None)
            drawn = ax.scatter(
                *points[order][:, [across, up]].T, c=colour[order], s=7, cmap=kind, vmin=low, vmax=high, linewidths=0
            )
            if mark is not None:
                ax.plot(*points[mark[n], [across, up]], "X", color=COLOURS[1], markersize=9, markeredgecolor="white")
            ax.set(aspect="equal", xticks=[], yticks=[], title=side if n == 0 else "")
            ax.set_xlim(middle[across] - reach, middle[across] + reach)
            ax.set_ylim(middle[up] - reach, middle[up] + reach)
            ax.grid(False)
            ax.spines[:].set_visible(False)
        axes[n, 0].set_ylabel(title)
        if shown is not None:
            figure.colorbar(drawn, ax=axes[n].tolist(), shrink=0.8, pad=0.01)
    return finish(figure)
