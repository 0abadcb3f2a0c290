"""Lines over an axis: one each, in panels, or as means of runs with their spread."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitutils.plot._style import WIDTH, draw_levels, finish, look, place_legend, short_number


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
    if all(float(value).is_integer() for value in x):  # counted: no half steps
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        if sum(map(len, shown)) > 75 and len(shown) == 4:  # too long for one row
            columns = 2
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=columns, fontsize=9)
    return finish(figure)


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
