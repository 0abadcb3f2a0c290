"""Made-up hand-ins of the course's assignments: what handins.yml lists, made from source and release.

    .venv/bin/python tools/handins.py 1_convolution FOLDER

writes each of them into FOLDER as NAME-1_convolution.ipynb, to try out grading. In Python, `read` gives an assignment's
hand-ins, `make` the notebook of one of them, as a student would hand it in.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import notebook_file

ENDLESS = "CellTimeoutError"  # what nbgrader says of a cell that it stopped
MARKER = re.compile(r"^[ \t]*(### |<!-- )(BEGIN|END) SOLUTION.*\n?", re.M)


@dataclass(frozen=True)
class Cell:
    """One cell that a hand-in replaces: its name, its source, and why a student might write that.

    fails: the tests that this makes fail, each with words of the message that it then gives.
    """

    name: str
    why: str
    source: str
    fails: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HandIn:
    """points: what nbgrader must give for the tests, without the answers in words."""

    points: int
    cells: tuple[Cell, ...] = ()

    @property
    def fails(self) -> dict[str, str]:
        return {test: said for cell in self.cells for test, said in cell.fails.items()}


def read(path: Path) -> dict[str, HandIn]:
    """The hand-ins of the assignment with this source notebook. Raises ValueError for what is no such list."""
    listed = path.parent / "handins.yml"
    found = {}
    for name, told in yaml.safe_load(listed.read_text(encoding="utf-8")).items():
        try:
            cells = tuple(Cell(**cell) for cell in told.get("cells", ()))
            found[name] = HandIn(points=told["points"], cells=cells)
        except (TypeError, KeyError, AttributeError) as error:
            form = "points and cells (name, why, source, fails)"
            raise ValueError(f"{listed}: {name}: expected {form}: {error}") from None
    return found


def solved(cell: dict) -> str:
    """What the source's solution looks like in a hand-in; of an answer in words, without the rubric."""
    plain = MARKER.sub("", notebook_file.text(cell["source"]))
    return plain.partition("**Rubric**")[0].rstrip()


def make(source: dict, release: dict, name: str, handin: HandIn) -> dict:
    """The notebook that a student hands in: the release with answers in it; `blank` is the release as it is.

    Raises ValueError for a cell that is not one of those that students fill in.
    """
    notebook = copy.deepcopy(release)
    if name == "blank":
        return notebook
    marks = [(cell, cell["metadata"].get("nbgrader", {})) for cell in source["cells"]]
    answers = {mark["grade_id"]: solved(cell) for cell, mark in marks if mark.get("solution")}
    given = {cell.name: cell.source.rstrip() for cell in handin.cells}
    if unknown := sorted(set(given) - set(answers)):
        raise ValueError(f"{name}: no cell to fill in is called {', '.join(unknown)}; expected {', '.join(answers)}")
    for cell in notebook["cells"]:
        told = cell["metadata"].get("nbgrader", {}).get("grade_id")
        cell["source"] = (answers | given).get(told, cell["source"])
    return notebook


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    course = Path(__file__).resolve().parents[1] / "course"
    names = sorted(path.parent.name for path in course.glob("*/handins.yml"))
    if len(given) != 2 or given[0] not in names:
        print(f"expected an assignment ({', '.join(names)}) and a folder, got: {' '.join(given)}", file=sys.stderr)
        return 2
    file = f"{given[0]}.ipynb"
    source, release = notebook_file.read(course / given[0] / file), notebook_file.read(course / "students" / file)
    folder = Path(given[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, handin in read(course / given[0] / file).items():
        made = folder / f"{name}-{file}"
        made.write_text(json.dumps(make(source, release, name, handin)), encoding="utf-8")
        print(f"{handin.points:2} points  {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
