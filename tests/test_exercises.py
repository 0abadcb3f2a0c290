"""Every chapter from its first cell to its last, with each exercise twice: the stub, then the worked solution.

The untouched stub must not pass, its hint must be printed and nothing raised; in the same place, with the chapter's own
names around it, the solution must pass. Figures are left out. All in this process: no kernel starts, so it is cheap.
"""

import ast
import contextlib
import io
import os
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import notebook_rules as rules
import solutions

PAGES = sorted(solutions.PAGES.glob("*.md"))


def run(page: Path) -> dict[str, str]:
    """What each of the chapter's check cells prints, before and after its solution: {cell's name: text}."""
    names, said = {"__name__": "__main__"}, {}
    for name, tree in solutions.solved(page):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(tree, f"{page.stem}, {name}", "exec"), names)
        said[name] = out.getvalue()
    return said


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """The smallest scale, and this process left as it was."""
    monkeypatch.setenv("VITBOOK_SCALE", "smoke")
    threads, state, before = torch.get_num_threads(), torch.get_rng_state(), os.getcwd()
    os.chdir(rules.ROOT / "notebooks")
    with matplotlib.rc_context():
        yield
    os.chdir(before)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_stubs_do_not_pass_and_solutions_do_in_their_chapter(page, quiet):
    said = run(page)
    for number, exercise in solutions.exercises(solutions.chapter_of(page)).items():
        first, then = said[exercise.ids[1]], said[f"{exercise.ids[1]}, solved"]
        assert f"Exercise {number}: not yet. " in first and f"Exercise {number}: pass" not in first, first
        assert f"  Hint: {exercise.hint}\n" in first, first
        assert then.endswith(f"Exercise {number}: pass\n") and "not yet" not in then, then


def test_there_are_as_many_pages_as_chapters():
    assert [page.stem for page in PAGES] == [path.stem for path in rules.notebook_paths()]


def identities(module: ast.Module) -> list[str]:
    """Comparisons `is True` and `is False`: NumPy's and torch's truth values fail them, whatever they say."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            sides = [side.value for side in [node.left, *node.comparators] if isinstance(side, ast.Constant)]
            found += [ast.unparse(node)] if any(isinstance(side, bool) for side in sides) else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_cell_asks_whether_a_number_is_the_object_true(page):
    assert identities(ast.parse("a is None; True is b; c is not False")) == ["True is b", "c is not False"]
    assert [found for _, tree in solutions.solved(page) for found in identities(tree)] == []


def test_the_package_and_the_scripts_do_not_either():
    for folder in ("vitutils", "scripts", "book/_ext"):
        for path in (rules.ROOT / folder).rglob("*.py"):
            assert identities(ast.parse(path.read_text(encoding="utf-8"))) == [], path
