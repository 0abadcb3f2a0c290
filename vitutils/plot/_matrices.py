"""Matrices as pictures, and tables of which class was taken for which."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitutils.plot._style import WIDTH, finish


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
    columns: Sequence[str] | None = None,
    ticks: bool = True,
    values: bool = False,
) -> Figure:
    """Show matrices (rows, columns) beside each other on one colour scale; signed ones with white at zero.

    names: labels for the rows and columns, instead of their numbers; columns: for the columns, where they differ.
    ticks=False: no numbers there, for pictures laid together in one matrix.
    values=True: the value of each entry is written into it, and stands for a colour bar.
    """
    arrays = [torch.as_tensor(a).detach().cpu().float().numpy() for a in arrays]
    top = max(np.abs(a).max() for a in arrays)
    scale = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if signed else {"vmin": 0, "vmax": top}
    across = min(4, len(arrays))
    down = -(-len(arrays) // across)
    width = WIDTH if across > 1 else 0.75 * WIDTH
    figure, axes = plt.subplots(down, across, figsize=(width, down * (width / across + 0.3)), squeeze=False)
    for n, ax in enumerate(axes.flat):
        ax.grid(False)
        if n >= len(arrays):
            ax.set_axis_off()
            continue
        picture = ax.imshow(arrays[n], interpolation="nearest", **scale)
        ax.set_title(titles[n])
        ax.set_xlabel(xlabel)
        for axis in (ax.xaxis, ax.yaxis):  # rows and columns are counted: no half ones; a narrow panel holds few
            axis.set_major_locator(MaxNLocator(nbins=5 if across > 2 else "auto", integer=True))
        if names:
            ax.set_xticks(range(len(columns or names)), columns or names, rotation=40, ha="right")
            ax.set_yticks(range(len(names)), names)
        if not ticks:
            ax.set(xticks=[], yticks=[])
        if n % across == 0:
            ax.set_ylabel(ylabel)
        if values:
            write_values(ax, arrays[n], width / across)
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
