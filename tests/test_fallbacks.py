"""A build without the real data says so, captions no figure with what it doesn't show, and isn't published."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes

import fallbacks
from chapter_file import notebook_paths
from notebook_file import read
from vitutils import data

ROOT = Path(__file__).resolve().parents[1]
LOST = "digits in place of fashion_mnist"
PAGE = "notebooks/01_drawn"


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    for name in ("PUBLISH", "FALLBACKS", "VITBOOK_SCALE"):
        monkeypatch.delenv(name, raising=False)


# --- which figures depend on what stood in ---

LOAD = 'from vitutils import data, plot\nmany = 3\nset = data.load_first("fashion_mnist", "digits")\n'
LOAD += 'photo = data.photos()["cat"]'
STORIES = {
    "drawn from it": (["plot.images(set.images)"], True),
    "by way of other names": (["x = set.images\ny = x[:2]", "plot.images(y)"], True),
    "through a function": (["def some():\n    return set.images", "plot.images(some())"], True),
    "through what it was added to": (
        ["rows = []\nfor n in range(3):\n    rows.append(set.images)", "plot.rows(rows)"],
        True,
    ),
    "as an item": (["rows = {}\nrows['a'] = set.images", "plot.rows(rows)"], True),
    "in a comprehension": (["plot.images([image for image in set.images])"], True),
    "something else": (["plot.images(photo)"], False),
    "from the same cell": (["plot.lines(many)"], False),
    "a name made anew": (["set = results.read('study')", "plot.lines(set)"], False),
    "a loop's variable": (["for set in range(3):\n    print(set)", "plot.lines([1])"], False),
    "a function's own name": (["def f(set):\n    return set", "plot.lines(f(1))"], False),
    "only printed before": (["print(set)", "print(1)\nplot.lines([1])", "print(2)"], False),
    "a module that worked on it": (["plot.images(set.images)\nprint('x')", "plot.lines([1])"], False),
}


@pytest.mark.parametrize("story", STORIES)
def test_a_figure_is_known_by_what_it_is_drawn_from(story):
    cells, expected = STORIES[story]
    cells = ["%pip install x", "from vitutils import results", LOAD, *cells]
    found = fallbacks.dependent(cells, {2: LOST})
    assert (found.get(len(cells) - 1, "") == LOST) is expected, found


def test_two_stand_ins_are_both_named():
    cells = [
        LOAD,
        'try:\n    net = load()\nexcept OSError:\n    net = 0\n    print("stand-in: b in place of a")',
        "draw(net, set)",
    ]
    assert fallbacks.dependent(cells, {0: LOST, 1: "b in place of a"})[2] == f"b in place of a; {LOST}"
    assert fallbacks.dependent(["a = first()\nb = 1", "draw(b)"], {0: LOST})[1] == LOST  # unnamed: all of the cell


def handlers(source: str) -> list[ast.ExceptHandler]:
    """What a cell does where data or weights are missing, and goes on with something else."""
    code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ExceptHandler) and node.type]
    kinds = ("DataError", "FileNotFoundError")
    return [h for h in found if any(kind in ast.unparse(h.type) for kind in kinds) and makes_do(h)]


def makes_do(handler: ast.ExceptHandler) -> bool:
    """Something other than None takes the place of what is missing."""
    given = [node.value for part in handler.body for node in ast.walk(part) if isinstance(node, ast.Assign)]
    return any(not (isinstance(value, ast.Constant) and value.value is None) for value in given)


@pytest.mark.parametrize("path", notebook_paths(ROOT), ids=lambda path: path.stem)
def test_every_chapter_says_what_stands_in(path):
    cells = [cell["source"] for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    silent = [ast.unparse(h) for source in cells for h in handlers(source) if "stand-in: " not in ast.unparse(h)]
    assert not silent


def test_a_chapter_that_says_nothing_is_found():
    cell = "try:\n    x = load()\nexcept data.DataError:\n    x = drawn()"
    assert len(handlers(cell)) == 1 and not handlers(cell.replace("drawn()", "None"))


def test_loading_says_what_stands_in(capsys):
    data.load_first("mnist", "digits", download=False)
    assert fallbacks.LINE.findall(capsys.readouterr().out) == ["digits in place of mnist"]
    data.load_first("digits", "mnist", download=False)
    assert capsys.readouterr().out == ""


# --- what the page says ---


def cell(index: int, *inside: nodes.Node) -> nodes.container:
    return nodes.container("", *inside, nb_element="cell_code", cell_index=index)


def chapter(folder: Path, printed: str) -> SimpleNamespace:
    """A chapter that loads, draws from what it loaded, and draws a photo; its doctree as MyST-NB has it."""
    cells = [LOAD, "plot.images(set.images)", "plot.images(photo)"]
    path = folder / "drawn.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [source]} for source in cells]}))
    tree = nodes.section(
        "",
        cell(0, nodes.literal_block(printed, printed, classes=["output", "stream"])),
        cell(1, nodes.image(alt="Shirts in a row.")),
        nodes.paragraph("", "", nodes.emphasis("", "Figure 1.1."), nodes.Text(" Shirts.")),
        cell(2, nodes.image(alt="A cat.")),
        nodes.paragraph("", "", nodes.emphasis("", "Figure 1.2."), nodes.Text(" A cat.")),
    )
    env = SimpleNamespace(docname=PAGE, doc2path=lambda page: path, metadata={PAGE: {}, "other": {}})
    app = SimpleNamespace(env=env, tree=tree)
    fallbacks.look(app, tree)
    return app


def test_a_caption_is_about_the_figure_that_was_drawn(tmp_path):
    tree = chapter(tmp_path, f"10 images\nstand-in: {LOST}\n").tree
    assert [type(node).__name__ for node in tree] == [
        "container", "container", "paragraph", "raw", "paragraph", "raw", "container", "paragraph"
    ]  # fmt: skip
    shown, folded = tree[2].astext(), tree[4].astext()
    assert shown.startswith("Figure 1.1. Drawn in this build with handwritten digits in place of Fashion-MNIST.")
    assert "Shirts" not in shown and folded.strip() == "Shirts."
    assert tree[3].astext().startswith("<details><summary>") and tree[5].astext() == "</details>"
    alts = [image["alt"] for image in tree.findall(nodes.image)]
    assert alts[0].startswith("Drawn in this build with handwritten digits") and alts[1] == "A cat."
    assert tree[-1].astext() == "Figure 1.2. A cat."


def test_with_the_real_data_nothing_is_said(tmp_path):
    app = chapter(tmp_path, "60,000 images, no stand-in: they are all real\n")
    assert len(app.tree) == 5 and app.tree[2].astext() == "Figure 1.1. Shirts."
    fallbacks.announce(app, PAGE, "page.html", context := {}, None)
    assert context == {} and app.env.metadata == {PAGE: {}, "other": {}}


# --- what the build says ---


def test_every_page_says_it_on_top(tmp_path, monkeypatch):
    app = chapter(tmp_path, f"stand-in: {LOST}\n")
    fallbacks.announce(app, "other", "page.html", context := {}, None)
    assert context["theme_announcement"].startswith("Made with handwritten digits in place of Fashion-MNIST. ")
    monkeypatch.setenv("VITBOOK_SCALE", "smoke")
    assert fallbacks.missing(app).startswith("smoke scale")


@pytest.mark.parametrize(
    ("wishes", "printed", "refused"),
    [
        ({}, f"stand-in: {LOST}", False),
        ({"PUBLISH": "1"}, f"stand-in: {LOST}", True),
        ({"PUBLISH": "1"}, "all real", False),
        ({"PUBLISH": "1", "VITBOOK_SCALE": "smoke"}, "all real", True),
        ({"PUBLISH": "1", "FALLBACKS": "ok"}, f"stand-in: {LOST}", False),
        ({"PUBLISH": "1", "FALLBACKS": "no"}, f"stand-in: {LOST}", True),
    ],
)
def test_publishing_refuses_stand_ins_unless_told(wishes, printed, refused, tmp_path, monkeypatch, caplog):
    for name, value in wishes.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    monkeypatch.setattr(fallbacks.LOG, "error", lambda text, *given: said.append(text % given))
    app = chapter(tmp_path, printed)
    fallbacks.refuse(app, app.env)
    assert len(said) == refused
    if refused:
        assert "make book PUBLISH=1 FALLBACKS=ok" in said[0] and " in place of " in said[0]


def test_the_published_book_is_built_so():
    assert "make book PYTHON=python PUBLISH=1\n" in (ROOT / ".github" / "workflows" / "pages.yml").read_text()
