"""The worked solutions: the pages of `book/solutions`, held against the chapters' exercises.

python tools/solutions.py copy [PAGE ...]    copy the chapters' check cells and helpers into the pages

A page has its setup cells, then one section an exercise: a heading, two comments ("% Trains: ..." for the table of all
exercises, "% Wrong: 'this' -> 'that'" for a change of the solution that the check must refuse), a text, the cell that
solves it, the chapter's own check cell to the letter, and perhaps more. `tests/test_solutions.py` holds the pages to
that and runs them; `make test` runs the chapters with their stubs and with the solutions (`tools/colab.py`).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mdit_py_plugins.anchors.index import slugify
from myst_nb.core.read import read_myst_markdown_notebook

import chapter_file
import notebook_file
import notebook_rules as rules

ROOT = chapter_file.ROOT
PAGES = ROOT / "book" / "solutions"
HEADING = re.compile(r"^## (.*)$", flags=re.M)
TITLE = re.compile(r"Exercise (\d+\.\d+) \((\w+)\): (\S.*)")
STRING = r"""("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
NOTES = re.compile(rf"^% Trains: (\S.*)\n% Wrong: {STRING} -> {STRING}\n", flags=re.M)


@dataclass
class Exercise:
    """What a chapter asks: the level, the stub's cell, the check's cell, the hint that the check gives."""

    level: str
    stub: str
    check: str
    hint: str
    title: str  # as the check prints it
    ids: tuple[str, str]  # of the two cells


@dataclass
class Solution:
    """What a page answers: the level, a short name, the words before the first cell, the code cells in order."""

    level: str
    name: str
    words: str
    cells: list[str]
    metadata: list[dict]  # of the cells
    anchor: str  # what a link to the section ends in
    trains: str  # what the exercise is about, for the table of all exercises
    wrong: tuple[str, str]  # what stands in the solution, and what there makes it wrong

    @property
    def solution(self) -> str:
        return self.cells[0]

    @property
    def check(self) -> str:
        return self.cells[1]

    @property
    def after(self) -> list[str]:
        return self.cells[2:]


@dataclass
class Page:
    """A page of solutions: its setup cells, and its sections by the exercise's number."""

    path: Path
    source: str
    setup: list[str]
    solutions: dict[str, Solution] = field(default_factory=dict)


def code_in(source: str) -> list:
    """The code cells of a piece of a page."""
    cells = read_myst_markdown_notebook(source, add_source_map=False).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def exercises(path: Path) -> dict[str, Exercise]:
    """A chapter's exercises by number. Raises ValueError where one is not a stub cell and a check cell after it, or
    cells have no ids, as Colab stores them."""
    found, cells = {}, chapter_file.Chapter.read(path).cells
    if unnamed := [cell for cell in cells if not cell.get("id")]:
        where = notebook_file.name(unnamed[0])
        raise ValueError(f"{path.name}: {where} has no id: run `tools/notebooks.py strip` on it")
    for position, cell in enumerate(cells):
        match = rules.EXERCISE.search(cell["source"])
        if cell["cell_type"] != "markdown" or not match:
            continue
        stub, check = ([*cells, {}, {}])[position + 1 : position + 3]
        if {stub.get("cell_type"), check.get("cell_type")} != {"code"} or "check.exercise(" not in check["source"]:
            raise ValueError(f"{path.name}: expected a stub and a check after exercise {match[1]}")
        calls = [node for node in ast.walk(parsed(path, check)) if isinstance(node, ast.Call)]
        call = next(node for node in calls if ast.unparse(node.func) == "check.exercise")
        name, hint = call.args[0], next((k.value for k in call.keywords if k.arg == "hint"), None)
        if not isinstance(name, ast.Constant) or not isinstance(hint, ast.Constant):
            where = notebook_file.name(check)
            raise ValueError(f"{path.name}: expected check.exercise(name, test, hint=...) in {where}")
        ids = (stub["id"], check["id"])
        found[match[1]] = Exercise(match[2], stub["source"], check["source"], hint.value, name.value, ids)
    return found


def read(path: Path) -> Page:
    """Take a page apart. Raises ValueError for a section that is not an exercise's, or has no two cells."""
    source = path.read_text(encoding="utf-8")
    before, *sections = HEADING.split(source)
    page = Page(path, source, [cell.source for cell in code_in(before)])
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        match, cells, notes = TITLE.fullmatch(title), code_in(text), NOTES.search(text)
        if not match or len(cells) < 2 or match[1] in page.solutions:
            raise ValueError(f"{path.name}: expected one section an exercise, with a solution and its check: '{title}'")
        if not notes:
            form = """% Trains: what, with what\n% Wrong: "some of the solution" -> "what makes it wrong\""""
            raise ValueError(f"{path.name}: expected under '{title}', on two lines:\n{form}")
        words = NOTES.sub("", text).partition("```{code-cell}")[0]
        code, metadata = [cell.source for cell in cells], [cell.metadata for cell in cells]
        wrong = ast.literal_eval(notes[2]), ast.literal_eval(notes[3])
        page.solutions[match[1]] = Solution(
            match[2], match[3], words, code, metadata, slugify(title), notes[1], wrong
        )
    return page


def chapter_of(page: Path) -> Path:
    return ROOT / "notebooks" / f"{page.stem}.ipynb"


def helpers(path: Path) -> dict[str, str]:
    """The functions and classes that a chapter defines outside of its exercises: {name: source}."""
    own = {cell_id for asked in exercises(path).values() for cell_id in asked.ids}
    cells = [cell for cell in chapter_file.Chapter.read(path).code[1:] if cell["id"] not in own]
    nodes = [(cell, node) for cell in cells for node in chapter_file.definitions(parsed(path, cell))]
    return {node.name: ast.get_source_segment(chapter_file.python(cell["source"]), node) for cell, node in nodes}


def parsed(path: Path, cell: dict) -> ast.Module:
    """A chapter's cell as a syntax tree. Raises ValueError that names chapter and cell where it is no Python."""
    try:
        return chapter_file.tree(cell)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def copy(path: Path) -> bool:
    """Put the chapter's check cells and helpers into its page, where they stand; say whether the page changed."""
    page, asked = read(path), exercises(chapter_of(path))
    new = page.source
    for number, answer in page.solutions.items():
        start = new.index(f"## Exercise {number} ")
        end = start + new[start:].index(answer.solution) + len(answer.solution)
        if answer.check:
            at, check = new.index(answer.check, end), asked[number].check
        else:  # an empty cell: in front of the fence that closes it
            at, check = new.index("\n```", new.index("```{code-cell}", end)) + 1, asked[number].check + "\n"
        new = new[:at] + check + new[at + len(answer.check) :]
    theirs = helpers(chapter_of(path))
    for cell in page.setup + [cell for answer in page.solutions.values() for cell in answer.after]:
        for node in chapter_file.definitions(ast.parse(cell)):
            if node.name in theirs:
                new = new.replace(ast.get_source_segment(cell, node), theirs[node.name])
    if new != page.source:
        path.write_text(new, encoding="utf-8", newline="\n")
    return new != page.source


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("copy",))
    parser.add_argument("pages", nargs="*", type=Path)
    given = parser.parse_args(arguments)
    failed = 0
    for page in [p.resolve() for p in given.pages] or sorted(PAGES.glob("*.md")):
        try:
            print(f"{page.name}: {'copied' if copy(page) else 'nothing new'}")
        except (OSError, ValueError) as error:
            print(f"{page.name}: not copied. {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
