"""What the book's figures write: no name of a line, no legend and no tick covers what is drawn, or another one."""

from __future__ import annotations

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

matplotlib.use("agg")
from vitutils import plot


@pytest.fixture(autouse=True)
def style():
    plot.use_style()
    yield
    plt.close("all")


def drawn(figure):
    figure.draw_without_rendering()
    return figure


def test_a_name_of_a_level_stands_beside_the_axes():
    figure = drawn(plot.lines([1, 2, 3], {"one": [50, 50.5, 50]}, xlabel="x", ylabel="y", reference={"coin toss": 50}))
    (name,) = figure.axes[0].texts
    assert name.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1
    assert name.get_window_extent().x1 <= figure.bbox.x1


def test_the_levels_of_panels_are_named_once():
    figure = drawn(plot.layer_dots({"a": np.ones((3, 2)), "b": np.ones((3, 2))}, ylabel="y", reference={"uniform": 1}))
    assert [len(ax.texts) for ax in figure.axes] == [0, 1]


def test_the_legend_of_panels_has_the_names_of_all():
    figure = plot.panels([1, 2], {"a": {"one": [1, 2]}, "b": {"one": [1, 2], "two": [2, 1]}}, xlabel="x", ylabel="y")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "two"]


@pytest.mark.parametrize("many", [1, 3, 24])
def test_dots_have_half_a_row_of_margin(many):
    figure = plot.dots({f"row {n}": [n, n + 1] for n in range(many)}, xlabel="x")
    assert sorted(figure.axes[0].get_ylim()) == [pytest.approx(-0.6), pytest.approx(many - 0.4)]


def test_a_legend_covers_no_line():
    x = np.arange(9)
    free = plot.lines(x, {"one": x * 0, "two": x * 0 + 0.1, "three": x}, xlabel="x", ylabel="y")
    assert free.axes[0].get_legend() and not free.legends
    full = {f"line {n}": 5 * (-1.0) ** (x + n) * (1 + n) for n in range(6)}
    figure = drawn(plot.lines(x, full, xlabel="x", ylabel="y"))
    assert not figure.axes[0].get_legend()
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].get_window_extent().y1


@pytest.mark.parametrize(
    "names", [["pre", "post"], [f"{at}-norm, {how}" for at in ("pre", "post") for how in ("warm-up", "no warm-up")]]
)
def test_a_legend_of_means_stays_within_the_figure(names):
    figure = drawn(plot.mean_lines({"a": {name: {1: [1], 2: [2]} for name in names}}, xlabel="x", ylabel="y"))
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("value", "letters"), [(300, "300"), (1000, "1k"), (1024, "1024"), (1500, "1.5k"), (60_000, "60k"), (1.3e6, "1.3M")]
)
def test_a_number_takes_the_fewest_letters(value, letters):
    assert plot.short_number(value) == letters


@pytest.mark.parametrize("many", [1, 2, 4])
def test_ticks_of_a_heatmap_stand_apart(many):
    figure = drawn(plot.matrices([np.eye(17)] * many, ["map"] * many, xlabel="key", ylabel="query"))
    for ax in figure.axes[:many]:
        low, high = ax.get_xlim()
        at = [label for label in ax.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in at]
        assert len(boxes) > 2 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize(("x", "whole"), [(range(1, 6), True), ([0.5, 1.0, 2.5], False)])
def test_ticks_over_counted_steps_are_whole(x, whole):
    (ax,) = drawn(plot.lines(x, {"one": list(x)}, xlabel="x", ylabel="y")).axes
    low, high = ax.get_xlim()
    assert all(tick == int(tick) for tick in ax.get_xticks() if low <= tick <= high) == whole


def test_rows_and_columns_of_a_matrix_have_names_of_their_own():
    (ax,) = drawn(plot.matrices([np.eye(2, 3)], [""], names=["a", "b"], columns=["c", "d", "e"], values=True)).axes
    shown = [[label.get_text() for label in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels())]
    assert shown == [["a", "b"], ["c", "d", "e"]]


def test_small_probabilities_keep_a_digit():
    answers = [[("one", 0.62), ("two", 0.004)]]
    figure = drawn(plot.top_answers([grey()], ["picture"], answers))
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == ["one  62%", "two  0.4%"]


def grey():
    return torch.zeros(3, 8, 8)


def test_a_group_of_points_has_one_look_in_all_panels():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    figure = drawn(
        plot.scatter({"left": {"a": points, "b": points + 1}, "right": {"b": points}}, xlabel="x", ylabel="y")
    )
    looks = {}
    for ax in figure.axes:
        for line in ax.get_lines():
            looks.setdefault(line.get_label(), set()).add((line.get_color(), line.get_marker()))
    assert [len(found) for found in looks.values()] == [1, 1] and looks["a"] != looks["b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert figure.axes[0].get_lines()[1].get_xydata().tolist() == [[1, 2], [3, 4]]
