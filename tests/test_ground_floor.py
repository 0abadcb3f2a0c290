"""setup, the checks, the figures: what every chapter stands on."""

import dataclasses
import sys

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import vitutils
from vitutils import check, plot


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_setup_reads_the_scale_and_picks_by_it(monkeypatch, capsys, scale):
    monkeypatch.setenv("VITBOOK_SCALE", scale)
    env = vitutils.setup(seed=3)
    assert env.scale == scale and env.pick(smoke="smoke", cpu="cpu", gpu="gpu") == scale
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and torch.__version__ in line and f"scale {scale}" in line and env.device.type in line
    with pytest.raises(dataclasses.FrozenInstanceError):
        env.scale = "other"


def test_an_unset_scale_follows_the_device(monkeypatch):
    monkeypatch.delenv("VITBOOK_SCALE", raising=False)
    env = vitutils.setup()
    assert env.scale == ("cpu" if env.device.type == "cpu" else "gpu")


def test_an_unknown_scale_lists_the_three(monkeypatch):
    monkeypatch.setenv("VITBOOK_SCALE", "huge")
    with pytest.raises(ValueError, match="'huge'; expected one of: smoke, cpu, gpu"):
        vitutils.setup()


def test_setup_seeds_python_numpy_and_torch():
    import random

    def draw():
        vitutils.setup(seed=7)
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    assert draw() == draw()


def test_check_shape_says_expected_and_got():
    check.check_shape(torch.zeros(2, 3), (2, 3), "B D")
    with pytest.raises(AssertionError, match=r"expected shape \(2, 4\) \(B D\), got \(2, 3\)"):
        check.check_shape(torch.zeros(2, 3), (2, 4), "B D")


def test_check_close_returns_the_difference_or_says_it():
    assert check.check_close(torch.tensor([1.0]), torch.tensor([1.0 + 2**-20])) == pytest.approx(2**-20)
    with pytest.raises(AssertionError, match=r"largest difference 1.00e-01"):
        check.check_close(torch.tensor([1.0]), torch.tensor([1.1]))
    with pytest.raises(AssertionError, match="expected shape"):
        check.check_close(torch.zeros(2), torch.zeros(1))
    with pytest.raises(AssertionError):
        check.check_close(torch.tensor([float("nan")]), torch.tensor([0.0]))


def test_check_rows_sum_to_one_knows_the_axis():
    scores = torch.randn(2, 3, 4, 4)
    check.check_rows_sum_to_one(scores.softmax(-1))
    with pytest.raises(AssertionError, match="over the keys"):
        check.check_rows_sum_to_one(scores.softmax(-2))


def test_checks_say_what_came_whatever_came():
    nothing, one = torch.zeros(0, 3), torch.ones(2, 3)
    for wrong, message in (
        (lambda: check.check_shape((one, one), (2, 3)), r"expected shape \(2, 3\), got a tuple, not a tensor"),
        (lambda: check.check_shape(None, (2, 3)), "got a NoneType"),
        (lambda: check.check_close(nothing, nothing), "nothing to compare"),
        (lambda: check.check_close(one, [1.0]), "to compare with, got a list"),
        (lambda: check.check_close(one, one + 1j), "largest difference 1.00e"),
        (lambda: check.check_close(one * torch.inf, -one * torch.inf), "largest difference inf"),
        (lambda: check.check_close(one * torch.nan, one * torch.nan), "largest difference nan"),
        (lambda: check.check_rows_sum_to_one(nothing.T), r"got the shape \(3, 0\)"),
        (lambda: check.check_rows_sum_to_one((one / 3, one)), "got a tuple"),
        (lambda: check.check_rows_sum_to_one(one * torch.nan), "over the keys"),
        (lambda: check.check_rows_sum_to_one(torch.tensor([[2.0, -1.0]])), "weights of 0 or more, got -1.0e.00"),
    ):
        with pytest.raises(AssertionError, match=message):
            wrong()
    assert check.check_close(one * torch.inf, one * torch.inf) == 0
    assert check.check_close(one.bool(), one.int()) == 0
    for kind in (torch.float16, torch.bfloat16):
        check.check_rows_sum_to_one(torch.randn(2, 3, 50, 50, dtype=kind).softmax(-1))
    check.check_rows_sum_to_one(torch.eye(3).long())


@pytest.mark.parametrize(
    "use, keys, numbers",
    [
        (lambda q, k: q @ k.T, 6, 36 + 24),  # the map; k.T shows the memory of k
        (lambda q, k: [q @ part.T for part in k.split(2)], 2, 36 + 24),  # the map in pieces
        (lambda q, k: [(q @ part.T).sum() for part in k.split(2)], 2, 12 + 3 + 24),
        (lambda q, k: torch.einsum("td,nd->tn", q, k[1:4]), 3, 18 + 24),
        (lambda q, k: k - k.mean(dim=0), 0, 4 + 24),
        (lambda q, k: q[:, None] * k[:2], 2, 48 + 24 + 24),  # the memories of q and k
        (lambda q, k: torch.nn.functional.scaled_dot_product_attention(q, k, k), 6, 24),
    ],
)
def test_pieces_counts_the_keys_of_a_product_and_the_numbers_alive(use, keys, numbers):
    q, k = torch.randn(6, 4), torch.randn(6, 4)
    with check.Pieces(k) as seen:
        kept = use(q, k)
    assert kept is not None and (seen.keys, seen.numbers) == (keys, numbers)


def test_pieces_refuses_keys_that_share_their_memory():
    with pytest.raises(ValueError, match=r"use keys\.clone\(\)"):
        check.Pieces(torch.randn(2, 6, 4)[0])


def test_count_parameters_counts_what_trains():
    layer = torch.nn.Linear(3, 4)
    layer.bias.requires_grad_(False)
    assert check.count_parameters(layer) == 12


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    def __repr__(self):
        raise RecursionError("no words")


def raised(error: Exception):
    raise error


# What a check may give back, and whether that is a pass; the words are what is printed.
YES, NO = torch.tensor(True), torch.tensor(False)
ANSWERS = [
    (lambda: None, True, "pass"),
    (lambda: True, True, "pass"),
    (lambda: np.float64(1) < 2, True, "pass"),
    (lambda: YES, True, "pass"),
    (lambda: torch.ones(2, 3) == 1, True, "pass"),
    (lambda: np.arange(3) < 3, True, "pass"),
    (lambda: [True, YES, np.True_], True, "pass"),
    (lambda: 1, True, "pass"),
    (lambda: False, False, "Hint: look"),
    (lambda: np.float64(1) > 2, False, "not the expected one"),
    (lambda: NO, False, "not the expected one"),
    (lambda: torch.tensor([[False]]), False, "not the expected one"),
    (lambda: torch.arange(3) > 0, False, "in some places"),
    (lambda: np.arange(3) > 0, False, "in some places"),
    (lambda: (True, NO), False, "in some places"),
    (lambda: 0, False, "not the expected one"),
    (lambda: 0.0, False, "not the expected one"),
    (lambda: torch.zeros(2), False, "not the expected one"),
    (lambda: [], False, "nothing was compared"),
    (lambda: torch.zeros(0) == 0, False, "nothing was compared"),
    (lambda: np.zeros(0) == 0, False, "nothing was compared"),
    (lambda: float("nan"), False, "nan"),
    (lambda: np.float32("nan"), False, "nan"),
    (lambda: torch.tensor([1.0, torch.nan]), False, "nan"),
    (lambda: NotImplemented, False, "neither true nor false"),
    (lambda: ..., False, "neither true nor false"),
    (lambda: "wrong", False, "neither true nor false"),
    (lambda: (x == 0 for x in [1]), False, "neither true nor false"),
    (lambda: check.check_close, False, "neither true nor false"),
    (lambda: check.check_shape(None, (1,)), False, "not yet"),
    (lambda: 1 / 0, False, "ZeroDivisionError"),
    (lambda: sys.exit(3), False, "SystemExit: 3"),
    (lambda: raised(Speechless()), False, "not yet. Speechless\n"),
    (lambda: Speechless(), False, "not yet. RecursionError"),
    (lambda: "ab" * 5000, False, "ab" * 50),
    (lambda: raised(ValueError("half \ud83d")), False, "ValueError: half \\ud83d"),
]


@pytest.mark.parametrize(("test", "passed", "words"), ANSWERS)
def test_exercise_says_pass_or_a_hint_and_never_raises(capsys, test, passed, words):
    assert check.exercise("Exercise 0.1", test, hint="look") is passed
    said = capsys.readouterr().out
    assert words in said and said.startswith("Exercise 0.1: pass" if passed else "Exercise 0.1: not yet. "), said
    assert passed or said.endswith("\n  Hint: look\n") and said.count("\n") == 2 and len(said) < 360


FIGURES = {
    "images": lambda: plot.images([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 3, ["a", "b", "c"]),
    "lines": lambda: plot.lines(
        [1, 2, 3], {"a": [1, 2, 3], "b": [[1, 2, 3], [2, 3, 4]]}, xlabel="x", ylabel="y", log="x", reference={"r": 2}
    ),
    "dots": lambda: plot.dots({"a": [1, 2, 3], "b": [2]}, xlabel="x"),
    "intervals": lambda: plot.intervals(
        {"left": {"a": (1, 0, 2), "b": (0, 0, 0)}, "right": {"b": (1, 0, 3)}}, xlabel="x", looks={"b": 1}
    ),
    "confusion": lambda: plot.confusion(np.array([[9, 1], [2, 8]]), ["cat", "dog"]),
    "matrices": lambda: plot.matrices([torch.randn(4, 4)] * 5, list("abcde"), signed=True, label="value"),
    "history": lambda: plot.history({"a": [3, 2, 1] * 40}, {"a": ([40, 80, 120], [1, 2, 3])}, ylabel="y"),
    "mean_lines": lambda: plot.mean_lines(
        {"left": {"a": {1: [1, 2], 10: [3]}}, "right": {"b": {1: [1]}}}, xlabel="x", ylabel="y"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_on_a_white_ground_and_is_closed(name):
    plot.use_style()
    figure = FIGURES[name]()
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert matplotlib.pyplot.get_fignums() == []
    figure.canvas.draw()


def test_the_style_starts_from_matplotlib_s_defaults():
    """A reader's matplotlibrc may want LaTeX, white text, a dark ground, another image."""
    with matplotlib.rc_context():
        plot.use_style()
        ours = dict(matplotlib.rcParams)
        own = {"text.usetex": True, "text.color": "white", "axes.labelcolor": "white", "axes.facecolor": "black"}
        matplotlib.rcParams.update(own | {"image.origin": "lower", "lines.linewidth": 9})
        plot.use_style()
        assert dict(matplotlib.rcParams) == ours


def test_neighbouring_categories_differ_in_more_than_colour():
    looks = [plot.look(n) for n in range(len(plot.COLOURS))]
    for key in ("color", "marker", "linestyle"):
        assert len({str(one[key]) for one in looks}) == len(looks)


def test_rows_of_dots_look_alike_where_they_share_a_category():
    runs = {"a, here": [1, 2], "b, here": [2, 3], "a, there": [3, 4]}
    drawn = [line for line in plot.dots(runs, xlabel="x", looks=[0, 1, 0]).axes[0].lines if len(line.get_xdata()) == 2]
    shown = [(line.get_color(), line.get_marker()) for line in drawn if line.get_marker() in plot.MARKERS]
    assert len(shown) == 3 and shown[0] == shown[2] != shown[1]
    with pytest.raises(ValueError):
        plot.dots(runs, xlabel="x", looks=[0, 1])


def test_intervals_stand_in_the_row_of_their_name_with_both_ends():
    figure = plot.intervals({"left": {"a": (1, 0, 2), "b": (4, 4, 4)}, "right": {"b": (1, -1, 3)}}, xlabel="x")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    for ax, expected in ((left, [(1, 0, 0, 2), (4, 1, 4, 4)]), (right, [(1, 1, -1, 3)])):
        found = []
        for line, _, (sticks,) in (container.lines for container in ax.containers):
            (low, _), (high, _) = sticks.get_segments()[0]
            found.append((line.get_xdata()[0], line.get_ydata()[0], low, high))
        assert found == expected


def test_grey_and_colour_pictures_reach_imshow_in_its_shape():
    assert plot.to_picture(torch.zeros(1, 5, 6)).shape == (5, 6)
    assert plot.to_picture(torch.zeros(3, 5, 6)).shape == (5, 6, 3)
    assert plot.to_picture(torch.zeros(5, 6)).shape == (5, 6)


def test_a_diagram_is_a_drawing_of_the_book():
    shown = plot.diagram("vit-block")._repr_svg_()
    assert shown.startswith("<svg") and "<title" in shown
    with pytest.raises(FileNotFoundError, match="no diagram 'block'; there are: .*vit-block"):
        plot.diagram("block")


def test_panels_share_their_axes_and_give_a_name_one_look():
    parts = {"left": {"a": [[1, 2], [3, 6]], "b": [1, 2]}, "right": {"b": [0, 9]}}
    figure = plot.panels([10, 20], parts, xlabel="x", ylabel="y", reference=0.5)
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["left", "right"] and left.get_ylim() == right.get_ylim()
    a, b = left.get_lines()[:2]
    assert list(a.get_ydata()) == [2, 4], "several runs are drawn as their mean"
    assert right.get_lines()[0].get_color() == b.get_color() != a.get_color()
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"]


def test_panels_of_different_quantities_have_their_own_vertical_axes():
    parts = {"metres": {"a": [1, 2]}, "seconds": {"a": [100, 900]}}
    left, right = plot.panels([10, 20], parts, xlabel="x", ylabel="", share_y=False).axes
    assert left.get_ylim()[1] < 10 < right.get_ylim()[0] and left.get_xlim() == right.get_xlim()


@pytest.mark.parametrize("count", [3, 9])
def test_panels_name_few_places_of_a_log_axis(count):
    x = [28 * 2**i for i in range(count)]
    (ax,) = plot.panels(x, {"seconds": {"a": x}}, xlabel="x", ylabel="y", log="xy").axes
    assert ([label.get_text() for label in ax.get_xticklabels()] == [str(v) for v in x]) == (count == 3)


def test_rows_and_columns_of_a_matrix_have_whole_numbers():
    """Four heads wide, matplotlib's own ticks stand at -0.5, 0.5, ..."""
    ax, _ = plot.matrices([torch.eye(4)], [""]).axes
    for ticks in (ax.get_xticks(), ax.get_yticks()):
        assert (ticks == ticks.round()).all(), ticks


def test_a_matrix_may_name_its_rows_and_columns():
    words = ["a", "floating", "point"]
    ax, _ = plot.matrices([torch.eye(3)], [""], names=words).axes
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == words


def test_a_matrix_may_show_its_values_readable_on_every_colour():
    plot.use_style()
    figure = plot.matrices([torch.tensor([[0, 8], [1, 2]]), torch.zeros(2, 2)], ["", ""], values=True)
    assert len(figure.axes) == 2  # the numbers say what a colour bar would
    written = {(text.get_position(), text.get_text(), text.get_color()) for text in figure.axes[0].texts}
    dark, light = {((0, 0), "0", "white"), ((0, 1), "1", "white"), ((1, 1), "2", "white")}, {((1, 0), "8", "black")}
    assert written == dark | light


def test_stacked_bars_stand_end_to_end():
    figure = plot.stacked({"short": {"a": 1, "b": 2}, "long": {"b": 5, "c": 1}}, xlabel="ms")
    spans = {(round(bar.get_x(), 6), bar.get_width()) for bar in figure.axes[0].patches if bar.get_width()}
    assert spans == {(0, 1), (1, 2), (0, 5), (5, 1)}


def test_no_two_parts_of_stacked_bars_look_the_same():
    figure = plot.stacked({"bar": {str(n): 1 for n in range(20)}}, xlabel="ms")
    assert len({(part.get_facecolor(), part.get_hatch()) for part in figure.axes[0].patches}) == 20


def test_numbers_on_an_axis_stand_as_far_as_its_panel_reaches():
    parts = {"one": {"a": {2: [1], 30: [2]}}, "two": {"a": {100: [1], 900: [2]}}}
    figure = plot.mean_lines(parts, xlabel="x", ylabel="y", ticks=(1, 5, 10, 200, 1_000))
    assert [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes] == [["5", "10"], ["200"]]
