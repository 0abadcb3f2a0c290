"""Look over the hand-ins of an assignment before nbgrader grades them, and mend what it would pass over in silence.

    python mend.py 1_convolution [--root FOLDER]

`make course` puts a copy of this file beside nbgrader_config.py. FOLDER is that place, after `nbgrader zip_collect`: it
holds `release` and `submitted`. For each hand-in one line says that it is as it should be, what was mended, or why it
can't be graded. The files as they were handed in stay in `downloaded`.

What nbgrader 0.9.6 does by itself: it clears outputs, puts back tests that were changed, and reads notebooks of Colab,
VS Code and JupyterLab with or without cell ids, and those of nbformat 3 and 4. What it does not do: where its marks are
gone it gives no points and says nothing; a test before its answer fails; a cell that is there twice stops it.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import uuid
import warnings
from pathlib import Path

import nbformat

DEFINED = re.compile(r"^(?:(?:async )?def|class) (\w+)|^(\w+)\s*(?::[^=\n]+)?=(?!=)", re.M)


class Refused(Exception):
    """This hand-in can't be graded; the message says why, and what to ask the student for."""


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook of nbformat 1 to 4 as one of nbformat 4. Raises Refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing cell ids: they are made anew
            notebook = nbformat.reads(path.read_text(encoding="utf-8-sig"), as_version=4)
        return notebook if isinstance(notebook.cells, list) else notebook["no cells"]
    except Exception as error:  # nbformat raises many kinds for what is no notebook
        said = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        raise Refused(f"{path.name} can't be read as a notebook ({said}). Ask for the .ipynb file itself.") from None


def mark(cell: dict) -> dict:
    told = cell["metadata"].get("nbgrader")
    return told if isinstance(told, dict) else {}


def is_test(cell: dict) -> bool:
    return bool(mark(cell).get("grade")) and not mark(cell).get("solution")


def is_answer(cell: dict) -> bool:
    return bool(mark(cell).get("solution"))


def first_line(cell: dict) -> str:
    return cell["source"].strip().partition("\n")[0].strip()


def defined(cell: dict) -> set[str]:
    """Names of functions, classes and variables at the top of a code cell."""
    return {one or other for one, other in DEFINED.findall(cell["source"])} if cell["cell_type"] == "code" else set()


def alike(cell: dict, known: dict) -> bool:
    """Whether a cell without marks is the release's `known`: by its id, its text, or what it defines."""
    if cell.get("id") == known.get("id"):
        return True
    if cell["cell_type"] != known["cell_type"]:
        return False
    if is_answer(known) and known["cell_type"] == "code":
        return bool(defined(cell) & defined(known))
    same = cell["source"].strip() == known["source"].strip()
    return same or bool(first_line(known)) and first_line(cell) == first_line(known)


def match(cells: list, wanted: list, notes: list[str]) -> dict[str, dict]:
    """Each marked cell of the release, by its name, to the hand-in's own cell; what is in neither is left out."""
    found, names = {}, [mark(known)["grade_id"] for known in wanted]
    for name in names:
        here = [cell for cell in cells if mark(cell).get("grade_id") == name]
        if len(here) > 1:
            notes.append(f"`{name}` was there {len(here)} times: the last one counts")
        if here:
            found[name] = here[-1]
    taken = [id(cell) for cell in cells if mark(cell).get("grade_id") in names]
    for name, known in zip(names, wanted, strict=True):
        free = [cell for cell in cells if id(cell) not in taken and alike(cell, known)]
        if name not in found and free:
            # Its id says it; of several with the same text or names, the last has the last word.
            found[name] = next((cell for cell in free if cell.get("id") == known.get("id")), free[-1])
            taken.append(id(found[name]))
            notes.append(f"`{name}` had lost its mark")
    return found


def put_back(cells: list, wanted: list, found: dict[str, dict], notes: list[str]) -> None:
    """Cells that are missing, from the release, each behind the one before it there."""
    before = None
    for known in wanted:
        name = mark(known)["grade_id"]
        if name not in found:
            found[name] = copy.deepcopy(known)
            at = next(i for i, cell in enumerate(cells) if cell is before) + 1 if before is not None else 0
            cells.insert(at, found[name])
            what = "counts as not answered" if is_answer(known) else "is back"
            notes.append(f"`{name}` was missing and {what}")
        before = found[name]


def in_order(cells: list, wanted: list, found: dict[str, dict], notes: list[str]) -> None:
    """Given cells before what needs them, tests behind what they test; answers stay where they are."""

    def place(cell: dict) -> int:
        return next(i for i, one in enumerate(cells) if one is cell)

    def move(known: dict, others: list, last: bool) -> None:
        name = mark(known)["grade_id"]
        cell, places = found[name], [place(found[mark(other)["grade_id"]]) for other in others]
        if places and (place(cell) < max(places) if last else place(cell) > min(places)):
            anchor = cells[max(places) if last else min(places)]
            cells.pop(place(cell))
            cells.insert(place(anchor) + last, cell)
            notes.append(f"`{name}` was moved, and is back {'behind' if last else 'before'} what it belongs to")

    for i, known in enumerate(wanted):
        if not is_test(known) and not is_answer(known):
            move(known, wanted[i + 1 :], last=False)
    for i, known in enumerate(wanted):
        if is_test(known):
            move(known, [other for other in wanted[:i] if not is_test(other)], last=True)


def mend(handin: nbformat.NotebookNode, release: nbformat.NotebookNode) -> list[str]:
    """Change a hand-in into one that nbgrader grades as it was meant; returns what was mended. Raises Refused."""
    notes, cells = [], handin.cells
    wanted = [cell for cell in release.cells if mark(cell)]
    found = match(cells, wanted, notes)
    if not any(is_answer(known) and mark(known)["grade_id"] in found for known in wanted):
        begins = next((first_line(cell) for cell in cells if cell["source"].strip()), "nothing")
        raise Refused(f"no answer of this assignment is in it; it begins with {begins!r}. Is it another notebook?")
    put_back(cells, wanted, found, notes)
    in_order(cells, wanted, found, notes)
    for known in wanted:
        cell, told = found[mark(known)["grade_id"]], mark(known)
        if cell["cell_type"] != known["cell_type"]:
            notes.append(f"`{told['grade_id']}` was of type {cell['cell_type']}")
            new = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}[known["cell_type"]]
            fresh = new(cell["source"], metadata=cell["metadata"])
            cells[next(i for i, one in enumerate(cells) if one is cell)] = cell = found[told["grade_id"]] = fresh
        kept = ("grade", "solution", "locked", "schema_version")
        lost = {key for key in kept if mark(cell).get(key) != told.get(key)}
        if lost and mark(cell).get("grade_id"):
            notes.append(f"`{told['grade_id']}` had another {', '.join(sorted(lost))}")
        cell["metadata"]["nbgrader"], cell["id"] = copy.deepcopy(told), known.get("id")
    ours = {id(cell) for cell in found.values()}
    for cell in cells:
        if id(cell) not in ours:
            if mark(cell).get("grade_id") and mark(cell)["grade_id"] not in found:
                notes.append(f"`{mark(cell)['grade_id']}` is no cell of this assignment")
            cell["metadata"].pop("nbgrader", None)
            cell["id"] = uuid.uuid4().hex[:8]
    handin.nbformat, handin.nbformat_minor = 4, 5
    return notes


def look(folder: Path, release: Path) -> list[str]:
    """Mend what one student handed in, in its folder; returns what was mended. Raises Refused."""
    path, notes = folder / release.name, []
    if not path.is_file():
        there = sorted(folder.glob("*.ipynb"))
        if len(there) != 1:
            names = ", ".join(one.name for one in sorted(folder.iterdir())) or "nothing"
            raise Refused(f"expected {release.name}, found {names}. Ask for the notebook as a file.")
        notes.append(f"was called {there[0].name}")
        path = there[0]
    handin = read(path)
    notes += mend(handin, read(release))
    if notes:
        path.replace(folder / release.name)
        new = folder / f"{release.name}.new"
        new.write_text(nbformat.writes(handin), encoding="utf-8")
        new.replace(folder / release.name)
    return notes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("assignment", help="its name, such as 1_convolution")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the folder that holds release and submitted")
    given = parser.parse_args(arguments)
    release = given.root / "release" / given.assignment / f"{given.assignment}.ipynb"
    folders = sorted(given.root.glob(f"submitted/*/{given.assignment}"))
    if not release.is_file() or not folders:
        missing = release if not release.is_file() else given.root / "submitted" / "*" / given.assignment
        print(f"There is no {missing}. Run this where nbgrader_config.py is, after zip_collect.", file=sys.stderr)
        return 2
    refused = 0
    for folder in folders:
        try:
            notes = look(folder, release)
            print(f"{folder.parent.name}: {'mended: ' + '; '.join(notes) if notes else 'as it should be'}")
        except Refused as error:
            refused += 1
            print(f"{folder.parent.name}: NOT GRADED: {error}")
    print(f"{len(folders)} hand-ins, {refused} that can't be graded")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
