"""The look of every figure: colours, markers, sizes; names in the margin, legends that cover nothing."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
WIDTH = 7.5  # inches; the text column of the page


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


def short_number(value: float) -> str:
    """A number in few letters, for an axis: 300, 1k, 1024, 60k, 1.3M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return min(f"{value / size:g}{letter}", f"{value:g}", key=len)
    return f"{value:g}"


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
