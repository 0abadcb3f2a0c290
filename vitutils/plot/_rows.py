"""A row, a bar or a point per name: runs, intervals, shares, clusters."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from vitutils.plot._style import COLOURS, WIDTH, draw_levels, finish, look


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
