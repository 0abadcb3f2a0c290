"""All figures of the book: one style, one function per kind of figure. Notebooks choose only data and words.

Colours are Okabe and Ito's for categories, viridis for magnitudes, a zero-centred map for signed values; a marker or a
line style always says what the colour says. The background is opaque white, so that dark pages change no data.
Every function returns the matplotlib Figure, closed; a cell that ends in the call shows it once.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
WIDTH = 7.5  # inches; the text column of the page
HERE = Path(__file__).resolve().parent
DIAGRAMS = (HERE.parent / "book" / "_static", HERE / "_diagrams")  # in a clone; in an installed package


def use_style() -> None:
    """Set the book's matplotlib style: legible at column width, white ground, figures sharp on dense screens.

    It starts from matplotlib's own defaults, not from a matplotlibrc, whose LaTeX, dark style or white text would
    reach the figures.
    """
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 200,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "image.cmap": "viridis",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
        }
    )
    try:  # figures sharp at twice the density, in notebooks alone
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    except ImportError:
        pass


def look(index: int) -> dict:
    """Colour, marker and line style of category `index`: three ways to tell it from its neighbours."""
    n = index % len(COLOURS)
    return {"color": COLOURS[n], "marker": MARKERS[n], "linestyle": DASHES[n]}


def finish(figure: Figure) -> Figure:
    """Hand the figure back closed: as the last value of its cell a notebook shows it, once.

    A `plt.show()` here would draw it twice: once shown, once as the cell's value.
    """
    plt.close(figure)
    return figure


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


def draw_curve(ax, x: Sequence[float], values: Sequence, name: str, index: int) -> None:
    """Draw one curve (len(x),), or the mean of several runs (runs, len(x)) with a band of +- 1 std."""
    values = np.asarray(values, dtype=float)
    mean = values.mean(axis=0) if values.ndim == 2 else values
    ax.plot(x, mean, label=name, markevery=max(1, len(x) // 12), markersize=4, **look(index))
    if values.ndim == 2 and len(values) > 1:
        std = values.std(axis=0, ddof=1)
        ax.fill_between(x, mean - std, mean + std, color=look(index)["color"], alpha=0.18, linewidth=0)


def lines(
    x: Sequence[float],
    curves: Mapping[str, Sequence],
    *,
    xlabel: str,
    ylabel: str,
    log: str = "",
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Draw one line per name over common x; a curve of shape (runs, len(x)) is drawn as mean and a band of +- 1 std.

    log: any of "x", "y", "xy". reference: horizontal lines with names.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.4))
    for n, (name, values) in enumerate(curves.items()):
        draw_curve(ax, x, values, name, n)
    draw_levels(ax, reference or {})
    if "x" in log:
        ax.set_xscale("log")
        if len(x) <= 8:  # few places: name them, no powers of ten
            ax.set_xticks(x, [f"{value:g}" for value in x])
            ax.minorticks_off()
    if "y" in log:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        place_legend(ax)
    return finish(figure)


def draw_levels(ax: Axes, levels: Mapping[str, float], *, names: bool = True) -> None:
    """Draw a dotted line at each level, with its name in the margin, where nothing is drawn that it could cover."""
    for name, level in levels.items():
        ax.axhline(level, color="0.35", linestyle=":", linewidth=1.2)
        if names:
            ax.annotate(name, (1, level), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                        ha="left", va="center", color="0.25")  # fmt: skip


def place_legend(ax: Axes) -> None:
    """Put the legend where it covers no line: within the axes if there is room, else above them."""
    legend = ax.legend()
    ax.figure.draw_without_rendering()  # before, the legend has no place
    box = legend.get_window_extent()
    paths = [line.get_transform().transform_path(line.get_path()) for line in ax.get_lines()]
    if any(path.intersects_bbox(box, filled=False) for path in paths):
        handles, names = ax.get_legend_handles_labels()
        legend.remove()
        ax.figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)))


def panels(
    x: Sequence[float],
    parts: Mapping[str, Mapping[str, Sequence]],
    *,
    xlabel: str,
    ylabel: str,
    log: str = "",
    reference: float | None = None,
    columns: int = 3,
    share_y: bool = True,
) -> Figure:
    """Draw the curves of `lines` in several panels that share both axes: {title: {name: values}}.

    A name has one look in all panels; the first panel has the legend of all. reference: a dotted horizontal line.
    share_y=False: each panel has its own vertical axis, for titles that name different quantities.
    """
    columns = min(columns, len(parts))
    rows = -(-len(parts) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.4 + 2.4 * rows), sharex=True, sharey=share_y, squeeze=False
    )
    names = list(dict.fromkeys(name for curves in parts.values() for name in curves))
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    for ax, (title, curves) in zip(axes.flat, parts.items(), strict=False):
        for name, values in curves.items():
            draw_curve(ax, x, values, name, names.index(name))
        if reference is not None:
            ax.axhline(reference, color="0.35", linestyle=":", linewidth=1.2)
        ax.set(title=title, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
        if "x" in log and len(x) <= 8:  # few places: name them, no powers of ten
            ax.set_xticks(x, [short_number(value) for value in x])
            ax.xaxis.minorticks_off()
    if len(names) > 1:
        pairs = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes.flat]
        shown = {name: handle for handle, name in itertools.chain(*pairs)}
        axes[0, 0].legend([shown[name] for name in names], names, fontsize=8.5)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return finish(figure)


def draw_runs(ax, runs: Mapping[float, Sequence[float]], name: str, category: int, aside: float) -> None:
    """Draw one curve over x: means of runs; where runs repeat, bars of +- 1 std, all moved by the factor `aside`."""
    x = sorted(runs)
    values = [np.asarray(runs[place], dtype=float) for place in x]
    repeated = any(len(v) > 1 for v in values)
    std = [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values] if repeated else None
    places = np.array(x) * (aside if repeated else 1)
    how = {"label": name, "markersize": 4.5, "capsize": 2.5, "elinewidth": 1} | look(category)
    ax.errorbar(places, [v.mean() for v in values], std, **how)


def mean_lines(
    parts: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    *,
    xlabel: str,
    ylabel: str,
    looks: Mapping[str, int] | None = None,
    reference: float | None = None,
    columns: int = 2,
    share_y: bool = True,
    ticks: Sequence[float] = (),
) -> Figure:
    """Draw runs over x on a log axis, one panel per title: {title: {name: {x: values of the runs}}}.

    Each curve has its own x and any number of runs at each: a line through the means, a bar of +- 1 std where there are
    two or more. Curves with bars stand a little apart along x, so that no bar covers another. looks: the category of a
    name, where figures share them; other names are counted as they come. reference: a dotted horizontal line.
    share_y=False: each panel has its own vertical axis. ticks: where to write numbers on the horizontal axis, as far
    as a panel reaches; left out, at every x there is.
    """
    names = list(dict.fromkeys(name for curves in parts.values() for name in curves))
    category = {name: n for n, name in enumerate(names)} | dict(looks or {})
    columns = min(columns, len(parts))
    rows = -(-len(parts) // columns)
    size = (WIDTH, 0.5 + (3.1 if columns < 3 else 2.5) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=share_y, squeeze=False)
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    shown = {}
    for ax, (title, curves) in zip(axes.flat, parts.items(), strict=False):
        for name, runs in curves.items():
            draw_runs(ax, runs, name, category[name], 1.05 ** (names.index(name) - (len(names) - 1) / 2))
        if reference is not None:
            ax.axhline(reference, color="0.35", linestyle=":", linewidth=1.2)
        places = sorted({x for runs in curves.values() for x in runs})
        if ticks:
            places = [tick for tick in ticks if places[0] <= tick <= places[-1]]
        ax.set(title=title, xscale="log")
        ax.set_xticks(places, [short_number(x) for x in places])
        ax.minorticks_off()
        shown |= {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    if len(shown) > 1:
        columns = len(shown) if len(shown) < 5 else 3
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=columns, fontsize=9)
    return finish(figure)


def short_number(value: float) -> str:
    """A number in few letters, for an axis: 300, 1k, 1024, 60k, 1.3M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return min(f"{value / size:g}{letter}", f"{value:g}", key=len)
    return f"{value:g}"


def stacked(parts: Mapping[str, Mapping[str, float]], *, xlabel: str) -> Figure:
    """Draw one bar per name, made of named parts end to end: {bar: {part: length}}. Parts have hatches and colours."""
    figure, ax = plt.subplots(figsize=(WIDTH, 1.1 + 0.42 * len(parts)))
    names = list(dict.fromkeys(name for bar in parts.values() for name in bar))
    hatches = ("", "//", "..", "xx", "\\\\", "++", "--")
    for n, name in enumerate(names):
        lengths = np.array([bar.get(name, 0.0) for bar in parts.values()])
        before = np.array([sum(bar.get(other, 0.0) for other in names[:n]) for bar in parts.values()])
        colour = COLOURS[n % len(COLOURS)]
        hatch = hatches[(n + n // len(COLOURS)) % len(hatches)]  # another one when a colour comes again
        ax.barh(list(parts), lengths, left=before, label=name, color=colour, hatch=hatch, edgecolor="white")
    ax.set_axisbelow(True)  # no grid across the bars
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    figure.legend(ncols=min(4, len(names)), loc="outside upper center")  # over the names of the bars too
    return finish(figure)


def dots(
    results: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    reference: float | None = None,
    looks: Sequence[int] | None = None,
) -> Figure:
    """One row per name: every run as a small dot, their mean as a bar across, +- 1 std as a line.

    reference: where to draw a dotted vertical line, or None. looks: the category of each row, where rows share one.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 0.6 + 0.42 * len(results)))
    for n, (runs, category) in enumerate(zip(results.values(), looks or range(len(results)), strict=True)):
        runs = np.asarray(runs, dtype=float)
        colour, marker = look(category)["color"], look(category)["marker"]
        ax.plot(runs, np.full(len(runs), n), linestyle="", marker=marker, color=colour, alpha=0.55)
        std = runs.std(ddof=1) if len(runs) > 1 else 0.0
        ax.errorbar(runs.mean(), n, xerr=std, color=colour, capsize=4, marker="|", markersize=16)
    if reference is not None:
        ax.axvline(reference, color="0.35", linestyle=":", linewidth=1.2)
    ax.set_yticks(range(len(results)), list(results))
    ax.set_ylim(len(results) - 0.4, -0.6)  # half a row of margin, however many there are
    ax.set_xlabel(xlabel)
    return finish(figure)


def intervals(
    parts: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    xlabel: str,
    reference: float | None = 0.0,
    looks: Mapping[str, int] | None = None,
    share_x: bool = True,
) -> Figure:
    """Draw a value and its interval per row, panels side by side: {title: {row: (value, low, high)}}.

    Rows are those of all panels together, in the order they come; a panel leaves out what it lacks. A value without
    an interval has equal ends. reference: a dotted vertical line. looks: the category of a row, where rows share one.
    share_x=False: each panel has its own horizontal axis.
    """
    names = list(dict.fromkeys(name for rows in parts.values() for name in rows))
    category = dict.fromkeys(names, 0) | dict(looks or {})
    size = (WIDTH, 1.0 + 0.28 * len(names))
    figure, axes = plt.subplots(1, len(parts), figsize=size, sharex=share_x, sharey=True, squeeze=False)
    for ax, (title, rows) in zip(axes.flat, parts.items(), strict=True):
        for name, (value, low, high) in rows.items():
            how = {"capsize": 2.5, "elinewidth": 1.4, "markersize": 5} | look(category[name]) | {"linestyle": ""}
            ax.errorbar(value, names.index(name), xerr=[[value - low], [high - value]], **how)
        if reference is not None:
            ax.axvline(reference, color="0.35", linestyle=":", linewidth=1.2)
        ax.set_title(title)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(xlabel, fontsize=10)
    return finish(figure)


def scatter(parts: Mapping[str, Mapping[str, torch.Tensor]], *, xlabel: str, ylabel: str) -> Figure:
    """Draw points on a plane, panels side by side: {title: {name: points (n, 2)}}. Each panel has its own axes.

    A name has one colour and one marker in all panels; the legend above them has each name once.
    """
    names = list(dict.fromkeys(name for groups in parts.values() for name in groups))
    figure, axes = plt.subplots(1, len(parts), figsize=(WIDTH, 0.6 + WIDTH / max(2, len(parts))), squeeze=False)
    for ax, (title, groups) in zip(axes.flat, parts.items(), strict=True):
        for name, points in groups.items():
            points = torch.as_tensor(points).detach().cpu().double().numpy()
            how = look(names.index(name)) | {"linestyle": "", "markersize": 4}
            ax.plot(*points.T, **how, alpha=0.7, label=name)
        ax.set_title(title)
        ax.tick_params(labelsize=8.5)
    shown = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=min(4, len(shown)), fontsize=9)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return finish(figure)


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (K,K) of counts, in per cent of each row. Rows: the true class; columns: the answer."""
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.82 * WIDTH))
    ax.grid(False)
    picture = ax.imshow(share, vmin=0, vmax=100)
    for row, column in np.ndindex(*share.shape):
        if share[row, column] >= 0.5:
            colour = "black" if share[row, column] > 60 else "white"
            ax.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="answer", ylabel="true class")
    figure.colorbar(picture, label="per cent of the true class", shrink=0.8)
    return finish(figure)


def matrices(
    arrays: Sequence[torch.Tensor],
    titles: Sequence[str],
    *,
    xlabel: str = "",
    ylabel: str = "",
    signed: bool = False,
    label: str = "",
    names: Sequence[str] | None = None,
    ticks: bool = True,
    values: bool = False,
) -> Figure:
    """Show matrices (rows, columns) beside each other on one colour scale; signed ones with white at zero.

    names: labels for the rows and columns of square matrices, instead of their numbers.
    ticks=False: no numbers there, for pictures laid together in one matrix.
    values=True: the value of each entry is written into it, and stands for a colour bar.
    """
    arrays = [torch.as_tensor(a).detach().cpu().float().numpy() for a in arrays]
    top = max(np.abs(a).max() for a in arrays)
    scale = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if signed else {"vmin": 0, "vmax": top}
    columns = min(4, len(arrays))
    rows = -(-len(arrays) // columns)
    width = WIDTH if columns > 1 else 0.75 * WIDTH
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * (width / columns + 0.3)), squeeze=False)
    for n, ax in enumerate(axes.flat):
        ax.grid(False)
        if n >= len(arrays):
            ax.set_axis_off()
            continue
        picture = ax.imshow(arrays[n], interpolation="nearest", **scale)
        ax.set_title(titles[n])
        ax.set_xlabel(xlabel)
        for axis in (ax.xaxis, ax.yaxis):  # rows and columns are counted: no half ones; a narrow panel holds few
            axis.set_major_locator(MaxNLocator(nbins=5 if columns > 2 else "auto", integer=True))
        if names:
            ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
            ax.set_yticks(range(len(names)), names)
        if not ticks:
            ax.set(xticks=[], yticks=[])
        if n % columns == 0:
            ax.set_ylabel(ylabel)
        if values:
            write_values(ax, arrays[n], width / columns)
    if not values:
        figure.colorbar(picture, ax=axes, label=label, shrink=0.8)
    return finish(figure)


def write_values(ax, array: np.ndarray, inches: float) -> None:
    """Write each entry of a matrix on its own colour, black on light and white on dark, as large as its cell allows."""
    picture = ax.images[-1]
    size = min(12, 30 * inches / max(array.shape))
    for place in np.ndindex(*array.shape):
        red, green, blue, _ = picture.cmap(picture.norm(array[place]))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        colour = "black" if light else "white"
        ax.text(place[1], place[0], f"{array[place]:g}", ha="center", va="center", color=colour, fontsize=size)


def history(
    runs: Mapping[str, Sequence[float]], val: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, ylabel: str
) -> Figure:
    """Training loss per step (left) and a validation measure against the step (right), one line a run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    for n, (name, losses) in enumerate(runs.items()):
        window = max(1, len(losses) // 60)
        steps = np.arange(len(losses) // window) * window + window / 2
        smooth = np.asarray(losses[: len(steps) * window]).reshape(-1, window).mean(axis=1)
        left.plot(steps, smooth, label=name, markevery=0.2, **{**look(n), "markersize": 4})
    for n, (name, (x, y)) in enumerate(val.items()):
        right.plot(x, y, label=name, **{**look(n), "markersize": 4})
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel=ylabel)
    if len(runs) > 1:
        left.legend()
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


def layer_dots(
    parts: Mapping[str, torch.Tensor], *, ylabel: str, reference: Mapping[str, float] | None = None
) -> Figure:
    """One panel per title, one dot per head above its layer: {title: values (depth, h)}; the panels share their axes.

    reference: horizontal lines with names.
    """
    figure, axes = plt.subplots(1, len(parts), figsize=(WIDTH, 3.0), sharex=True, sharey=True, squeeze=False)
    for n, (ax, (title, values)) in enumerate(zip(axes.flat, parts.items(), strict=True)):
        values = torch.as_tensor(values).detach().cpu().float().numpy()
        layers = np.repeat(np.arange(1, len(values) + 1), values.shape[1])
        ax.plot(layers, values.flatten(), **look(n) | {"linestyle": "", "markersize": 5}, alpha=0.8)
        draw_levels(ax, reference or {}, names=n == len(parts) - 1)
        ax.set(title=title, xlabel="layer")
    axes[0, 0].set(ylabel=ylabel, ylim=(0, None))  # once all panels have drawn: they share it
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


def reliability(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Draw accuracy against confidence, a dot per bin, (confidence, accuracy, images), with bars of +- 1 std error."""
    sure, right, count = (np.array(column, dtype=float) for column in zip(*bins, strict=True))
    error = np.sqrt(right * (1 - right) / count)
    figure, ax = plt.subplots(figsize=(0.62 * WIDTH, 0.55 * WIDTH))
    ax.plot([0, 1], [0, 1], color="0.35", linestyle=":", linewidth=1.2, label="perfectly calibrated")
    ax.errorbar(sure, right, error, label="one bin of images", markersize=5, capsize=3, elinewidth=1, **look(0))
    ax.set(xlabel="mean confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
    ax.legend(loc="upper left")
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
