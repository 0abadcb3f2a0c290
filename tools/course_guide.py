"""The guide for whoever teaches the course: course/guide.md, and each assignment's own with what its files say.

Written once, in the source notebook and in handins.yml, are the tests, the wrong answers and the rubric; from them the
guide's tables are made.
"""

from __future__ import annotations

import re
from pathlib import Path

import handins
import notebook_file

KNOWN = re.compile(r"# (\d+) points?(, hidden|, partly hidden)?: (.*)")
SECTION = re.compile(r"^## (.*) \(\d+ points.*\)$", re.M)
MODEL = re.compile(r"<!-- BEGIN SOLUTION -->\n(.*)<!-- END SOLUTION -->", re.S)


def marked(notebook: dict) -> list[tuple[str, dict, str]]:
    """(name, nbgrader's metadata, source) of every cell that nbgrader knows."""
    found = [(cell["metadata"].get("nbgrader", {}), notebook_file.text(cell["source"])) for cell in notebook["cells"]]
    return [(mark["grade_id"], mark, source) for mark, source in found if mark]


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |" for line in lines)


def tests_table(notebook: dict) -> str:
    rows = []
    for name, mark, source in marked(notebook):
        if mark["grade"] and not mark["solution"]:
            points, hidden, judged = KNOWN.match(source).groups()
            rows.append((f"`{name}`", points, (hidden or ", visible")[2:], judged[0].upper() + judged[1:]))
        elif mark["grade"]:
            rows.append((f"`{name}`", mark["points"], "by hand", "An answer in words: see the rubric."))
    return table(("test", "points", "", "what it judges"), rows)


def answers_table(listed: dict[str, handins.HandIn]) -> str:
    """The answers that the tests have been tried with."""
    rows = []
    for name, handin in listed.items():
        for cell in handin.cells:
            lost = ", ".join(f"`{test}`" for test in cell.fails) or "none"
            rows.append((f"`{cell.name}`", " ".join(cell.why.split()), lost, name))
    rows.sort(key=lambda row: row[2] == "none")
    return table(("answer", "what was handed in", "tests that it fails", "hand-in"), rows)


def rubrics(notebook: dict) -> str:
    parts = []
    for name, mark, source in marked(notebook):
        if mark["grade"] and mark["solution"]:
            model = MODEL.search(source)[1].strip()
            parts.append(f"#### `{name}`, {mark['points']} points\n\n**A good answer.** {model}")
    return "\n\n".join(parts)


def section(path: Path) -> str:
    """One assignment's part of the guide."""
    notebook = notebook_file.read(path)
    title = notebook_file.text(notebook["cells"][0]["source"]).partition("\n")[0].removeprefix("# ")
    own = (path.parent / "guide.md").read_text(encoding="utf-8").strip()
    listed = handins.read(path)
    totals = table(("hand-in", "points of the tests"), [(name, one.points) for name, one in listed.items()])
    return "\n\n".join([
        f"## {title}", own,
        "### What each test judges", tests_table(notebook),
        "### Answers that the tests know", answers_table(listed),
        "### Answers in words", rubrics(notebook),
        "### Made-up hand-ins", "nbgrader gives them these points, without the answers in words:", totals,
    ])


def write(root: Path, paths: list[Path]) -> str:
    """The whole guide."""
    general = (root / "course" / "guide.md").read_text(encoding="utf-8").strip()
    return "\n\n".join([general, *map(section, paths)]) + "\n"
