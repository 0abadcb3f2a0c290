"""The pages of worked solutions: their form, their cells, what their checks refuse, and the hints.

Every page is run here as the build runs it, in this process and at the smallest scale. The chapters themselves, with
stubs and with solutions, are run by `test_exercises.py`.
"""

import ast
import contextlib
import difflib
import io
import json
import os
import re
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

import torch

from vitutils import data
from vitutils.data import sets

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import notebook_rules as rules
import solutions

PAGES = sorted(solutions.PAGES.glob("*.md"))
NUMBERS = [(page, number) for page in PAGES for number in solutions.exercises(solutions.chapter_of(page))]
LOADING = [page for page in PAGES if re.search(r"""load\w*\(['"]fashion_mnist""", "".join(solutions.read(page).setup))]
LONGEST_RUN = 6  # so many words and signs of a solution, in one piece, may stand in its hint


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
@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize("page", LOADING, ids=lambda page: page.stem)
def test_a_page_is_set_up_without_fashion_mnist_too(page, scale, monkeypatch):
    def load(name, **options):
        if name == "fashion_mnist":
            raise data.DataError("not here")
        return whole(name, **options)

    whole = data.load
    for module in (data, sets):  # `load_first` asks in the second
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setenv("VITBOOK_SCALE", scale)
    page = solutions.read(page)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with matplotlib.rc_context():
        said = run(page.setup[0], {})
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    assert re.search("digits|shapes", said) and "fashion_mnist" not in said.replace("(fashion_mnist could not", "")


# --- the form ---


def test_a_page_a_chapter_a_section_an_exercise():
    assert [page.stem for page in PAGES] == [path.stem for path in rules.notebook_paths()]
    for page in PAGES:
        asked, read = solutions.exercises(solutions.chapter_of(page)), solutions.read(page)
        assert list(read.solutions) == list(asked) == [f"{int(page.stem[:2])}.{n}" for n in (1, 2, 3)]
        assert [s.level for s in read.solutions.values()] == [e.level for e in asked.values()]
        assert read.source.startswith(f"---\nfile_format: mystnb\n---\n\n# Solutions to chapter {int(page.stem[:2])}\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_what_it_needs(page):
    chapter, read = rules.Chapter.read(solutions.chapter_of(page)), solutions.read(page)
    part = chapter.prose.partition("## Exercises\n")[2].partition("\n## ")[0]
    assert f"[worked solutions](../book/solutions/{page.name})" in part
    for number, asked in solutions.exercises(chapter.path).items():
        answer = read.solutions[number]
        assert asked.title == f"Exercise {number}"
        assert answer.check == asked.check, f"run: python scripts/solutions.py copy book/solutions/{page.name}"
        hidden = ["hide-input" in metadata.get("tags", []) for metadata in answer.metadata]
        assert hidden == [n == 1 for n in range(len(hidden))]
        assert f"[The exercise](../../notebooks/{page.stem}.ipynb#exercises)" in answer.words
        assert 15 <= rules.word_count(answer.words) <= 160
        assert not tells(asked.hint, answer.solution), f"{number}: the hint tells: {tells(asked.hint, answer.solution)}"
        assert 12 <= len(asked.hint.split()) <= 45 and asked.hint[-1] in ".?" and "\n" not in asked.hint
        for cell, metadata in zip(answer.cells, answer.metadata, strict=True):
            if rules.draws({"cell_type": "code", "source": cell}):
                assert metadata["mystnb"]["image"]["alt"] and metadata["mystnb"]["figure"]["caption"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_cells_are_short_and_repeat_the_chapters_to_the_word(page):
    """A helper that the page's setup, or a cell after a check, defines and the chapter or vitutils too."""
    read, chapter = solutions.read(page), solutions.chapter_of(page)
    theirs = {name: ast.dump(ast.parse(code).body[0]) for name, code in solutions.helpers(chapter).items()}
    package, answers = rules.package_definitions(), read.solutions.values()
    again = [*read.setup, *(cell for answer in answers for cell in answer.after)]
    for node in (node for cell in again for node in rules.definitions(ast.parse(cell))):
        told = f"{node.name} differs from the chapter's; run: python scripts/solutions.py copy"
        assert ast.dump(node) == theirs.get(node.name, ast.dump(node)), told
        copies = package.get(node.name, {})
        assert not copies or ast.dump(node) in copies.values(), f"{node.name} differs from vitutils"
    for cell in [*read.setup, *(cell for answer in answers for cell in answer.cells)]:
        lines = [line for line in cell.splitlines() if line.strip()]
        assert len(lines) <= rules.CODE_LINES + ("class " in cell) * 15, cell
        assert max(map(len, lines)) <= rules.LINE_WIDTH, max(lines, key=len)


def words_of(code: str) -> list[str]:
    """The words and signs of a solution, without comments, docstrings and the line that the stub has too."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body.pop(0)
    bodies = [node.body if isinstance(node, ast.FunctionDef) else [node] for node in tree.body]
    plain = "\n".join(ast.unparse(statement) for body in bodies for statement in body)
    return re.findall(r"\w+(?:\.\d+)?|[^\w\s]", plain)


def tells(hint: str, solution: str) -> str:
    """The longest piece of a solution that stands in its hint, if it is too long."""
    said, words = re.findall(r"\w+(?:\.\d+)?|[^\w\s]", hint), words_of(solution)
    _, start, size = difflib.SequenceMatcher(None, said, words, autojunk=False).find_longest_match()
    return " ".join(words[start : start + size]) if size > LONGEST_RUN else ""


def test_a_hint_that_tells_is_seen():
    hint = "back = places[:, None] - places; it must be at least 0 and below window"  # of an earlier edition
    assert tells(hint, solutions.read(PAGES[1]).solutions["2.1"].solution)


# --- the script ---


def test_copy_brings_a_page_up_to_date(tmp_path, monkeypatch):
    page = tmp_path / PAGES[0].name
    whole = PAGES[0].read_text(encoding="utf-8")
    old = 'assert got is not None, "reach returns nothing yet"'
    assert whole.count(old) == 1
    page.write_text(whole.replace(old, "assert got"), encoding="utf-8")
    assert solutions.copy(page) and page.read_text(encoding="utf-8") == whole
    assert not solutions.copy(page)


def test_copy_fills_check_cells_that_are_empty(tmp_path):
    page, whole = tmp_path / PAGES[0].name, PAGES[0].read_text(encoding="utf-8")
    first, *_, last = solutions.read(PAGES[0]).solutions.values()
    empty = whole
    for answer in (first, last):
        assert empty.count(answer.check) == 1
        empty = empty.replace(answer.check + "\n", "")
    page.write_text(empty, encoding="utf-8")
    assert solutions.copy(page) and page.read_text(encoding="utf-8") == whole
    assert not solutions.copy(page)


def test_a_page_out_of_form_is_named(tmp_path):
    page, whole = tmp_path / PAGES[0].name, PAGES[0].read_text(encoding="utf-8")
    for fault in (whole.replace("## Exercise 1.2 (core):", "## Exercise 1.2:"), whole + "\n## More\n\nWords.\n"):
        page.write_text(fault, encoding="utf-8")
        with pytest.raises(ValueError, match="expected one section an exercise"):
            solutions.read(page)


# --- chapters that come back ---


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A copy of chapter 5 and its page; `change(function)` stores what the function makes of the chapter's cells."""
    for name in ("notebooks/05_vit_from_scratch.ipynb", "book/solutions/05_vit_from_scratch.md"):
        (tmp_path / "copy" / name).parent.mkdir(parents=True)
        (tmp_path / "copy" / name).write_bytes((rules.ROOT / name).read_bytes())
    monkeypatch.setattr(solutions, "ROOT", tmp_path / "copy")
    page = tmp_path / "copy/book/solutions/05_vit_from_scratch.md"

    def change(function):
        notebook = rules.read(solutions.chapter_of(page))
        notebook["cells"] = [function(cell) for cell in notebook["cells"]]
        solutions.chapter_of(page).write_text(json.dumps(notebook), encoding="utf-8")
        return page

    return change


def test_magics_in_a_chapter_do_not_stop_its_page(chapter):
    def ask(cell):
        return cell | {"source": cell["source"] + "\nnn.Linear?\nx = !ls"} if cell["cell_type"] == "code" else cell

    page = chapter(ask)
    assert solutions.helpers(solutions.chapter_of(page)) == solutions.helpers(solutions.chapter_of(PAGES[4]))
    assert len(solutions.solved(page)) == len(solutions.solved(PAGES[4]))


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("has no id: run `scripts/notebooks.py strip` on it", lambda cell: {**cell, "id": ""}),
        ("is not Python", lambda cell: {**cell, "source": cell["source"] + "\n)"}),
    ],
)
def test_a_chapter_that_cannot_be_used_is_one_line(chapter, capsys, told, change):
    page = chapter(change)
    assert solutions.main(["copy", str(page)]) == 1
    said = capsys.readouterr().err
    assert "05_vit_from_scratch.ipynb: " in said and told in said and said.count("\n") == 1
    assert page.read_bytes() == PAGES[4].read_bytes()
