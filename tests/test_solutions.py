"""The pages of worked solutions: their form, their cells, what their checks refuse, and the hints.

Every page is run here as the build runs it, in this process and at the smallest scale. The chapters themselves, with
stubs and with solutions, are run by `make test` (`tools/colab.py`).
"""

import ast
import contextlib
import io
import os
import re
import warnings
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

import torch

import chapter_file
import notebook_rules as rules
import solutions
from vitutils import data
from vitutils.data import sets

PAGES = sorted(solutions.PAGES.glob("*.md"))
NUMBERS = [(page, number) for page in PAGES for number in solutions.exercises(solutions.chapter_of(page))]
LOADING = [page for page in PAGES if re.search(r"""load\w*\(['"]fashion_mnist""", "".join(solutions.read(page).setup))]


def run(code: str, names: dict) -> str:
    """What a cell prints; a warning, or anything on stderr, would fail the build of the page."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(code, "cell", "exec"), names)
    assert not err.getvalue()
    return out.getvalue()


def tell(page: Path) -> tuple[dict, dict, dict]:
    """A page's exercises, what their checks said, and its solutions; by number.

    A check speaks three times: (with the stub, with a wrong answer, solved).
    """
    said, page = {}, solutions.read(page)
    asked = solutions.exercises(solutions.chapter_of(page.path))
    threads, state, before = torch.get_num_threads(), torch.get_rng_state(), os.getcwd()
    scale = os.environ.get("VITBOOK_SCALE")
    os.environ["VITBOOK_SCALE"] = "smoke"
    os.chdir(page.path.parent)  # as the build does
    try:
        with matplotlib.rc_context():
            names: dict = {"__name__": "__main__"}
            for cell in page.setup:
                run(cell, names)
            for number, answer in page.solutions.items():
                old, new = answer.wrong
                assert answer.solution.count(old) == 1, f"{number}: '{old}' (% Wrong) is not once in the solution"
                outcomes = []
                for attempt in (asked[number].stub, answer.solution.replace(old, new)):
                    apart = dict(names)
                    run(attempt, apart)
                    outcomes.append(run(answer.check, apart))
                run(answer.solution, names)
                said[number] = (*outcomes, run(answer.check, names))
                for cell in answer.after:
                    run(cell, names)
    finally:
        os.chdir(before)
        os.environ.pop("VITBOOK_SCALE") if scale is None else os.environ.update(VITBOOK_SCALE=scale)
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    return asked, said, page.solutions


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def told(request):
    return tell(request.param)


def test_the_check_refuses_the_stub_and_a_wrong_answer_and_takes_the_solution(told):
    asked, said, answers = told
    for number, (stub, wrong, solved) in said.items():
        for text in (stub, wrong):
            assert f"Exercise {number}: not yet. " in text and f"Exercise {number}: pass" not in text, text
            assert text.endswith(f"\n  Hint: {asked[number].hint}\n")
        assert solved.endswith(f"Exercise {number}: pass\n") and "not yet" not in solved
        if "..." in asked[number].stub:  # a gap for a value, or a function that returns nothing yet
            if "return" in answers[number].solution or "def " not in asked[number].stub:
                assert "nothing yet\n" in stub or "no number yet\n" in stub, stub


@pytest.mark.slow
@pytest.mark.parametrize("page", LOADING, ids=lambda page: page.stem)
def test_a_page_is_set_up_without_fashion_mnist_too(page, monkeypatch):
    """At the scale that asks for most images."""

    def load(name, **options):
        if name == "fashion_mnist":
            raise data.DataError("not here")
        return whole(name, **options)

    whole = data.load
    for module in (data, sets):  # `load_first` asks in the second
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setenv("VITBOOK_SCALE", "gpu")
    page = solutions.read(page)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with matplotlib.rc_context():
        said = run(page.setup[0], {})
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    said = re.sub(r"in place of fashion_mnist|[(]fashion_mnist not available", "", said)
    assert re.search("digits|shapes", said) and "fashion_mnist" not in said


# --- the form ---


def test_a_page_a_chapter_a_section_an_exercise():
    assert [page.stem for page in PAGES] == [path.stem for path in chapter_file.notebook_paths()]
    for page in PAGES:
        asked, read = solutions.exercises(solutions.chapter_of(page)), solutions.read(page)
        assert list(read.solutions) == list(asked) == [f"{int(page.stem[:2])}.{n}" for n in (1, 2, 3)]
        assert [s.level for s in read.solutions.values()] == [e.level for e in asked.values()]
        assert read.source.startswith(f"---\nfile_format: mystnb\n---\n\n# Solutions to chapter {int(page.stem[:2])}\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_what_it_needs(page):
    chapter, read = chapter_file.Chapter.read(solutions.chapter_of(page)), solutions.read(page)
    part = chapter.prose.partition("## Exercises\n")[2].partition("\n## ")[0]
    assert f"[worked solutions](../book/solutions/{page.name})" in part
    for number, asked in solutions.exercises(chapter.path).items():
        answer = read.solutions[number]
        assert asked.title == f"Exercise {number}"
        assert answer.check == asked.check, f"run: python tools/solutions.py copy book/solutions/{page.name}"
        hidden = ["hide-input" in metadata.get("tags", []) for metadata in answer.metadata]
        assert hidden == [n == 1 for n in range(len(hidden))]
        assert f"[The exercise](../../notebooks/{page.stem}.ipynb#exercises)" in answer.words
        assert 15 <= chapter_file.word_count(answer.words) <= 160
        assert 12 <= len(asked.hint.split()) <= 45 and asked.hint[-1] in ".?" and "\n" not in asked.hint
        for cell, metadata in zip(answer.cells, answer.metadata, strict=True):
            if rules.draws({"cell_type": "code", "source": cell}):
                assert metadata["mystnb"]["image"]["alt"] and metadata["mystnb"]["figure"]["caption"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_cells_are_short_and_repeat_the_chapters_to_the_word(page):
    """A helper that the page's setup, or a cell after a check, defines and the chapter or vitutils too."""
    read, chapter = solutions.read(page), solutions.chapter_of(page)
    theirs = {name: ast.dump(ast.parse(code).body[0]) for name, code in solutions.helpers(chapter).items()}
    package, answers = chapter_file.package_definitions(), read.solutions.values()
    again = [*read.setup, *(cell for answer in answers for cell in answer.after)]
    for node in (node for cell in again for node in chapter_file.definitions(ast.parse(cell))):
        told = f"{node.name} differs from the chapter's; run: python tools/solutions.py copy"
        assert ast.dump(node) == theirs.get(node.name, ast.dump(node)), told
        copies = package.get(node.name, {})
        assert not copies or ast.dump(node) in copies.values(), f"{node.name} differs from vitutils"
    for cell in [*read.setup, *(cell for answer in answers for cell in answer.cells)]:
        lines = [line for line in cell.splitlines() if line.strip()]
        assert len(lines) <= rules.CODE_LINES + ("class " in cell) * 15, cell
        assert max(map(len, lines)) <= rules.LINE_WIDTH, max(lines, key=len)


# --- how a check must not be written ---


def trees(path: Path) -> list[ast.Module]:
    """All code of a chapter or a page of solutions."""
    if path.suffix == ".ipynb":
        return [chapter_file.tree(cell) for cell in chapter_file.Chapter.read(path).code]
    return [ast.parse(cell.source) for cell in solutions.code_in(path.read_text(encoding="utf-8"))]


def identities(module: ast.Module) -> list[str]:
    """Comparisons `is True` and `is False`: NumPy's and torch's truth values fail them, whatever they say."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            sides = [side.value for side in [node.left, *node.comparators] if isinstance(side, ast.Constant)]
            found += [ast.unparse(node)] if any(isinstance(side, bool) for side in sides) else []
    return found


@pytest.mark.parametrize("path", [*chapter_file.notebook_paths(), *PAGES], ids=lambda path: path.name)
def test_nothing_asks_whether_a_number_is_the_object_true(path):
    assert identities(ast.parse("a is None; True is b; c is not False")) == ["True is b", "c is not False"]
    assert [found for tree in trees(path) for found in identities(tree)] == []


# --- the script ---


def test_copy_brings_a_page_up_to_date(tmp_path):
    """A check that is an old one; cells that are still empty."""
    page, whole = tmp_path / PAGES[0].name, PAGES[0].read_text(encoding="utf-8")
    first, *_, last = solutions.read(PAGES[0]).solutions.values()
    old = {'assert got is not None, "reach returns nothing yet"': "assert got"}
    for changes in (old, {answer.check + "\n": "" for answer in (first, last)}):
        given = whole
        for before, after in changes.items():
            assert given.count(before) == 1
            given = given.replace(before, after)
        page.write_text(given, encoding="utf-8")
        assert solutions.copy(page) and page.read_text(encoding="utf-8") == whole
        assert not solutions.copy(page)


def test_a_page_out_of_form_is_named(tmp_path):
    page, whole = tmp_path / PAGES[0].name, PAGES[0].read_text(encoding="utf-8")
    for fault in (whole.replace("## Exercise 1.2 (core):", "## Exercise 1.2:"), whole + "\n## More\n\nWords.\n"):
        page.write_text(fault, encoding="utf-8")
        with pytest.raises(ValueError, match="expected one section an exercise"):
            solutions.read(page)
