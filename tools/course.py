"""Make the course: assignments that nbgrader grades, from one source notebook each.

    make course
    .venv/bin/python tools/course.py --tidy course/1_convolution/1_convolution.ipynb

Writes _build/course: `release`, which students get; `source`, which they don't; the gradebook and the settings that
nbgrader needs; `guide.md` for whoever teaches. The students' notebooks also go into course/students, from which Colab
opens them. With `--tidy`, it only puts source notebooks into the form in which they are stored.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import itertools
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import chapter_file
import course_guide
import env
import mend
import notebook_file
import notebook_rules as rules
import running
import tables

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "nbgrader_config.py"
HIDDEN = re.compile(r"^### BEGIN HIDDEN TESTS\n(.*?)^### END HIDDEN TESTS$", re.M | re.S)
SOLUTION = re.compile(r"^[ \t]*(?:### |<!-- )BEGIN SOLUTION.*?\n(.*?)^[ \t]*(?:### |<!-- )END SOLUTION", re.M | re.S)
IN_WORDS = "<details><summary>The figure in words</summary>\n\n"
MARKS = {"grade_id", "grade", "solution", "locked", "task", "schema_version"}


class Refused(ValueError):
    """No course can be made of this; the message says why."""


# ---------------------------------------------------------------- source notebooks


def sources(root: Path = ROOT) -> list[Path]:
    """The assignments' source notebooks, in order."""
    return sorted(root.glob("course/[1-9]_*/[1-9]_*.ipynb"))


def badge(root: Path, name: str) -> str:
    """The button that opens a student's notebook on Colab."""
    where = chapter_file.book_url(root).removeprefix("https://github.com/")
    branch = chapter_file.config(root)["repository"]["branch"]
    address = f"https://colab.research.google.com/github/{where}/blob/{branch}/course/students/{name}.ipynb"
    return f"{tables.BADGE}({address})"


def mark(cell: dict) -> dict:
    """What nbgrader is told of a cell; {} for one that it leaves alone."""
    return cell["metadata"].get("nbgrader") or {}


def stored(notebook: dict) -> str:
    """A source notebook's file: in the form of a chapter's, with nbgrader's metadata, and its names as cell ids."""
    for cell in notebook["cells"]:
        cell["id"] = mark(cell).get("grade_id") or cell.get("id")
    plain = notebook_file.normalise(notebook)
    for cell, old in zip(plain["cells"], notebook["cells"], strict=True):
        if mark(old):
            cell["metadata"] = {"nbgrader": dict(sorted(mark(old).items()))} | cell["metadata"]
    return notebook_file.dumps(plain)


def faults(path: Path, root: Path = ROOT) -> list[str]:
    """What keeps a source notebook from being an assignment, a sentence for each cell."""
    notebook = notebook_file.read(path)
    cells = notebook["cells"]
    found = [] if path.parent.name == path.stem else [f"stands in {path.parent.name}, not in a folder of its own name"]
    ids = [cell.get("id") for cell in cells]
    found += [f"cell '{one}': there are two of that name" for one in sorted({i for i in ids if ids.count(i) > 1})]
    if badge(root, path.stem) not in notebook_file.text(cells[0]["source"]) if cells else True:
        found.append(f"the first cell has no button for Colab; expected: {badge(root, path.stem)}")
    for cell, after in itertools.zip_longest(cells, cells[1:], fillvalue={}):
        found += [f"{notebook_file.name(cell)}: {fault}" for fault in _faults_of(cell) + _faults_of_form(cell, after)]
    if not found and path.read_text(encoding="utf-8") != stored(notebook):
        found.append("not in the stored form: tools/course.py --tidy writes it")
    return found


def _faults_of_form(cell: dict, after: dict) -> list[str]:
    """Lines that are too long, and figures that nobody describes to whoever can't see them."""
    if cell["cell_type"] != "code":
        return []
    source = notebook_file.text(cell["source"])
    long = [line.strip() for line in source.splitlines() if len(line) > rules.LINE_WIDTH]
    found = [f"has a line of more than {rules.LINE_WIDTH} characters: {line}" for line in long]
    try:
        drawn = rules.draws(cell)
    except ValueError:  # no Python: told elsewhere
        drawn = False
    if drawn and not notebook_file.text(after.get("source", "")).startswith(IN_WORDS):
        found.append(f"draws a figure, but the cell after it doesn't begin with {IN_WORDS.strip()}")
    return found


def _faults_of(cell: dict) -> list[str]:
    told, source, found = mark(cell), notebook_file.text(cell["source"]), []
    if not told:
        return ["has a region of a solution or of hidden tests, but isn't marked"] * ("### BEGIN" in source)
    if not MARKS <= set(told):
        return [f"nbgrader's metadata lack {', '.join(sorted(MARKS - set(told)))}"]
    if told["grade_id"] != cell.get("id"):
        found.append(f"is called {told['grade_id']!r} in nbgrader's metadata")
    if told["grade"] and not isinstance(told.get("points"), int):
        found.append("is graded, but has no points")
    if told["solution"] and not SOLUTION.search(source):
        found.append("has no BEGIN SOLUTION and END SOLUTION")
    if told["grade"] and told["solution"] and "**Rubric**" not in source:
        found.append("is graded by hand, but has no **Rubric**")
    if told["grade"] and not told["solution"]:
        found += _faults_of_test(source, told.get("points"))
    return found


def _faults_of_test(source: str, points: object) -> list[str]:
    opening = course_guide.KNOWN.match(source)
    if not opening:
        return ["must begin with '# 2 points: ' (', hidden' or ', partly hidden') and what it judges, in one line"]
    if points is not None and int(opening[1]) != points:
        return [f"says {opening[1]} points, has {points}"]
    try:
        last = ast.parse(source).body[-1:]
    except SyntaxError as error:
        return [f"isn't Python: {error.msg}, line {error.lineno}"]
    if last and isinstance(last[0], ast.Expr):
        return ["ends in a value, which nbgrader would take for the points: end it in an assert"]
    return []


def leaks(source: Path, release: Path) -> list[str]:
    """Lines of the solutions and hidden tests that stand in a students' notebook, and marks of such regions."""
    whole = "\n".join(notebook_file.text(cell["source"]) for cell in notebook_file.read(source)["cells"])
    cells = [notebook_file.text(cell["source"]) for cell in notebook_file.read(release)["cells"]]
    shown = {line.strip() for cell in cells for line in cell.splitlines()}
    secret = {line.strip() for text in SOLUTION.findall(whole) + HIDDEN.findall(whole) for line in text.splitlines()}
    public = {line.strip() for line in SOLUTION.sub("", HIDDEN.sub("", whole)).splitlines()}
    marks = {line for line in shown if re.search("(BEGIN|END) (SOLUTION|HIDDEN)", line)}
    return sorted(marks | (secret & shown) - public)


# ---------------------------------------------------------------- what is written


def nbgrader_in(folder: Path):
    """nbgrader at work in a course's folder, with the settings of that folder."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config
    from traitlets.config.loader import PyFileConfigLoader

    # nbgrader calls alembic, which stands beside this Python, by its name.
    beside = os.path.dirname(sys.executable)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    settings = Config(PyFileConfigLoader(SETTINGS, path=str(folder)).load_config())
    settings.CourseDirectory.root = str(folder)
    return NbGraderAPI(config=settings)


def generate(folder: Path, paths: list[Path], root: Path) -> None:
    """Fill a folder with sources, settings and what nbgrader makes of them. Raises Refused with nbgrader's words."""
    shutil.copy(root / "course" / SETTINGS, folder)
    shutil.copy(mend.__file__, folder)
    for path in paths:
        (folder / "source" / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / "source" / path.stem)
    grader = nbgrader_in(folder)
    for path in paths:
        done = grader.generate_assignment(path.stem)
        if not done["success"]:
            raise Refused(f"nbgrader can't make {path.name}:\n{done.get('log') or done.get('error')}")


def make(root: Path, paths: list[Path]) -> Path:
    """Write _build/course and course/students; returns the first. Raises Refused, and nothing is written."""
    told = [f"{path.relative_to(root)}: {fault}" for path in paths for fault in faults(path, root)]
    if told or not paths:
        raise Refused("\n".join([*told, "Nothing was made."]) if told else "There is no assignment in course/.")
    target = root / "_build" / "course"
    if any((target / made).exists() for made in ("submitted", "autograded")):
        raise Refused(f"{target} holds hand-ins or grades. Move that folder elsewhere first; this one is made anew.")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="course-") as new:
        folder = Path(new, "course")
        folder.mkdir()
        generate(folder, paths, root)
        (folder / "guide.md").write_text(course_guide.write(root, paths), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        folder.replace(target)
    students = root / "course" / "students"
    students.mkdir(exist_ok=True)
    for path in paths:
        shutil.copyfile(target / "release" / path.stem / path.name, students / path.name)
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder")
    parser.add_argument("--tidy", nargs="+", type=Path, metavar="FILE", help="only put source notebooks into form")
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    if given.tidy:
        return running.command(root, "tools/course.py --tidy", lambda: tidy(given.tidy))
    return running.command(root, "make course", lambda: whole(root))


def tidy(paths: list[Path]) -> int:
    for path in paths:
        path.write_text(stored(notebook_file.read(path)), encoding="utf-8")
    return 0


def whole(root: Path) -> int:
    """Make the course of all assignments, and say where it is. Raises Refused, and nothing is written."""
    if not importlib.util.find_spec("nbgrader"):
        raise Refused("nbgrader isn't installed here: `make course` does it (requirements-course.txt)")
    target = make(root, sources(root))
    print(f"For students:  {target / 'release'}\nFor teachers:  {target} (the guide: {target / 'guide.md'})")
    return 0


if __name__ == "__main__":
    sys.exit(env.run(main))
