"""What editors and students do to a notebook before they hand it in: mended and graded, or refused with the reason."""

import copy
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import course
import mend

NAME = "9_small"


def cell(kind, name: str, source: str, **told) -> nbformat.NotebookNode:
    told = {"grade": False, "locked": False, "solution": False, "task": False, "schema_version": 3} | told
    return kind(source, id=name, metadata={"nbgrader": {"grade_id": name, **told}})


def source() -> nbformat.NotebookNode:
    test = {"grade": True, "locked": True}
    cells = [
        new_markdown_cell("# A small assignment", id="title"),
        cell(new_code_cell, "imports", "import math", locked=True),
        cell(new_code_cell, "one", "def one(x):\n    ### BEGIN SOLUTION\n    return x + math.e\n    ### END SOLUTION",
             solution=True),
        cell(new_code_cell, "one-test", "# 2 points: one.\nassert one(1) > 3", points=2, **test),
        cell(new_code_cell, "two", "two = ...\n### BEGIN SOLUTION\ntwo = 2\n### END SOLUTION", solution=True),
        cell(new_code_cell, "two-hidden", "# 3 points, hidden: two.\n### BEGIN HIDDEN TESTS\n"
             "assert two == round(one(2) - math.e)\n### END HIDDEN TESTS", points=3, **test),
        cell(new_markdown_cell, "words", "Why?\n\n<!-- BEGIN SOLUTION -->\nb\n**Rubric**\n<!-- END SOLUTION -->",
             points=4, grade=True, solution=True),
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=cells, metadata=kernel)


@pytest.fixture
def release() -> nbformat.NotebookNode:
    """As nbgrader makes it, but for the checksums."""
    notebook = source()
    for name, text in {
        "one": "def one(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()",
        "two": "two = ...\n# YOUR CODE HERE\nraise NotImplementedError()",
        "two-hidden": "# 3 points, hidden: two.",
        "words": "Why?\n\nYOUR ANSWER HERE",
    }.items():
        of(notebook, name).source = text
    return notebook


def of(notebook, name: str):
    return next(one for one in notebook.cells if one.metadata.get("nbgrader", {}).get("grade_id") == name)


def answered(release) -> nbformat.NotebookNode:
    handin = copy.deepcopy(release)
    of(handin, "one").source = "def one(x):\n    return math.e + x"
    of(handin, "two").source = "two = 1 + 1"
    of(handin, "words").source = "Why?\n\nBecause."
    return handin


# --- what may have happened to it ---


def colab(handin):
    handin.nbformat_minor = 0
    handin.metadata = {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for n, one in enumerate(handin.cells):
        one.pop("id")
        one.metadata |= {"id": f"aB_{n}", "colab": {"base_uri": "https://localhost:8080/"}}


def vscode(handin):
    handin.metadata = {"kernelspec": {"name": "venv", "display_name": ".venv (3.12)", "language": "python"}}
    for one in handin.cells:
        one.metadata["vscode"] = {"languageId": "python"}


def jupyterlab(handin):
    for one in handin.cells:
        one.metadata |= {"trusted": True, "jupyter": {"source_hidden": True}}
        if one.cell_type == "code":
            one.execution_count = 7
            one.outputs = [nbformat.v4.new_output("stream", name="stderr", text="a warning\n")]


def ids_lost(handin):
    for one in handin.cells:
        one.id = new_code_cell().id


def marks_lost(handin):
    for one in handin.cells:
        one.metadata.pop("nbgrader", None)


def marks_and_ids_lost(handin):
    marks_lost(handin)
    ids_lost(handin)


def schema_lost(handin):
    of(handin, "two").metadata.nbgrader = {"grade_id": "two"}


def deleted_test(handin):
    handin.cells.remove(of(handin, "two-hidden"))


def first_cell_deleted(handin):
    handin.cells.remove(of(handin, "imports"))


def early_test(handin):
    test = of(handin, "two-hidden")
    handin.cells.remove(test)
    handin.cells.insert(1, test)


def imports_last(handin):
    imports = of(handin, "imports")
    handin.cells.remove(imports)
    handin.cells.append(imports)


def answers_swapped(handin):
    i, j = handin.cells.index(of(handin, "one")), handin.cells.index(of(handin, "two"))
    handin.cells[i], handin.cells[j] = handin.cells[j], handin.cells[i]


def old_try_above(handin):
    old = copy.deepcopy(of(handin, "two")) | {"source": "two = 3", "id": "another"}
    handin.cells.insert(handin.cells.index(of(handin, "two")), old)


def double_test(handin):
    handin.cells.insert(3, copy.deepcopy(of(handin, "two-hidden")) | {"id": "another"})


def text_test(handin):
    test = of(handin, "two-hidden")
    handin.cells[handin.cells.index(test)] = new_markdown_cell(test.source, metadata=test.metadata, id=test.id)


CHANGES = {  # what is said of it; "" where nbgrader needs no help
    colab: "", vscode: "", jupyterlab: "", ids_lost: "",
    marks_lost: "`two-hidden` had lost its mark", marks_and_ids_lost: "`one` had lost its mark",
    schema_lost: "`two` had another", deleted_test: "`two-hidden` was missing and is back",
    first_cell_deleted: "`imports` was missing and is back",
    early_test: "`two-hidden` was moved, and is back behind", imports_last: "`imports` was moved, and is back before",
    answers_swapped: "`one-test` was moved", old_try_above: "`two` was there 2 times",
    double_test: "`two-hidden` was there 2 times", text_test: "`two-hidden` was of type markdown",
}  # fmt: skip
every = pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])


@every
def test_a_changed_hand_in_runs_and_keeps_its_answers(release, change):
    handin = answered(release)
    change(handin)
    handin = nbformat.reads(json.dumps(handin), as_version=4)
    notes = mend.mend(handin, release)
    assert CHANGES[change] in "; ".join(notes) and bool(notes) == bool(CHANGES[change]), notes
    for known in release.cells:
        if told := known.metadata.get("nbgrader"):
            assert of(handin, told["grade_id"]).metadata.nbgrader == told
            assert of(handin, told["grade_id"]).cell_type == known.cell_type
    assert "Because" in of(handin, "words").source
    nbformat.validate(handin)
    names = {}
    for one in handin.cells:  # the whole hidden test, as nbgrader puts it back
        told = one.metadata.get("nbgrader", {})
        text = of(source(), told["grade_id"]).source if told.get("locked") else one.source
        exec(text if one.cell_type == "code" else "", names)
    assert mend.mend(handin, release) == []  # a second time there is nothing to do


def test_an_answer_that_was_deleted_counts_as_none(release):
    handin = answered(release)
    handin.cells.remove(of(handin, "two"))
    assert mend.mend(handin, release) == ["`two` was missing and counts as not answered"]
    assert of(handin, "two").source == of(release, "two").source


def test_another_notebook_is_refused(release):
    other = new_notebook(cells=[new_markdown_cell("# Something else"), new_code_cell("a = 1")])
    with pytest.raises(mend.Refused, match="begins with '# Something else'"):
        mend.mend(other, release)


NO_NOTEBOOK = {
    "html": b"<html>", "empty": b"", "a list": b"[]", "a link": b'{"url": "https://drive"}', "UTF-16": b"\xff\xfe{\x00",
    "nbformat 5": b'{"nbformat": 5, "nbformat_minor": 0, "cells": [], "metadata": {}}',
    "no cells": b'{"nbformat": 4, "nbformat_minor": 5, "cells": 3, "metadata": {}}',
}  # fmt: skip


@pytest.mark.parametrize("content", NO_NOTEBOOK.values(), ids=NO_NOTEBOOK)
def test_what_is_no_notebook_is_refused_with_the_reason(tmp_path, content):
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(mend.Refused, match=r"a\.ipynb can't be read as a notebook \("):
        mend.read(tmp_path / "a.ipynb")


@pytest.mark.parametrize("old", ["3", "4.0", "4.2", "4.4"])
def test_older_formats_are_read(release, tmp_path, old):
    handin, (major, _, minor) = answered(release), old.partition(".")
    if major == "3":
        text = nbformat.writes(nbformat.convert(handin, 3), version=3)
    else:
        cells = [{key: value for key, value in one.items() if key != "id"} for one in handin.cells]
        text = json.dumps(handin | {"cells": cells, "nbformat_minor": int(minor)})
    (tmp_path / "a.ipynb").write_text("\ufeff" + text, encoding="utf-8")
    assert mend.mend(mend.read(tmp_path / "a.ipynb"), release) == []


def hand_in(root, student: str, content: str, name: str = f"{NAME}.ipynb") -> None:
    folder = root / "submitted" / student / NAME
    folder.mkdir(parents=True)
    (folder / name).write_text(content, encoding="utf-8")


def test_the_command_says_a_line_for_each_student(release, tmp_path, capsys):
    assert mend.main([NAME, "--root", str(tmp_path)]) == 2 and "after zip_collect" in capsys.readouterr().err
    (tmp_path / "release" / NAME).mkdir(parents=True)
    nbformat.write(release, tmp_path / "release" / NAME / f"{NAME}.ipynb")
    right = nbformat.writes(answered(release))
    hand_in(tmp_path, "ada", right)
    hand_in(tmp_path, "ben", right, f"{NAME} (1).ipynb")
    assert mend.main([NAME, "--root", str(tmp_path)]) == 0
    assert (tmp_path / "submitted" / "ada" / NAME / f"{NAME}.ipynb").read_text() == right  # nothing to mend
    hand_in(tmp_path, "cem", "def one(x): ...", "answer.py")
    capsys.readouterr()
    assert mend.main([NAME, "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "ada: as it should be\nben: as it should be\ncem: NOT GRADED: expected" in said and "answer.py" in said


@pytest.mark.slow
def test_nbgrader_gives_all_points_to_each(tmp_path):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: `make course` does it")
    from nbgrader.api import Gradebook

    (tmp_path / NAME).mkdir()
    nbformat.write(source(), tmp_path / NAME / f"{NAME}.ipynb")
    root = tmp_path / "class"
    root.mkdir()
    course.generate(root, [tmp_path / NAME / f"{NAME}.ipynb"], course.ROOT)
    release = nbformat.read(root / "release" / NAME / f"{NAME}.ipynb", as_version=4)
    for change in CHANGES:
        handin = answered(release)
        change(handin)
        hand_in(root, change.__name__, json.dumps(handin))
    assert mend.main([NAME, "--root", str(root)]) == 0
    done = course.nbgrader_in(root).autograde(NAME, "*")
    assert done["success"], done.get("log") or done.get("error")
    with Gradebook(f"sqlite:///{root / 'gradebook.db'}") as book:
        for change in CHANGES:
            grades = book.find_submission_notebook(NAME, NAME, change.__name__).grades
            points = {grade.name: grade.auto_score for grade in grades}
            assert points == {"one-test": 2, "two-hidden": 3, "words": None}, change.__name__
