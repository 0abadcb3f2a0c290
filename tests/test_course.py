"""The course grades itself: made-up hand-ins go through nbgrader, and their points are those of handins.yml.

For each assignment nbgrader makes the students' version; hand-ins are made of it, with the cells that handins.yml
replaces, and nbgrader collects and grades them and writes feedback. Where nbgrader is not installed, these tests are
skipped; those that only read the files run everywhere.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

import adopt
import chapter_file
import course
import course_guide
import env
import handins
import notebook_file
import to_otter

ROOT = Path(__file__).resolve().parents[1]
SOURCES = course.sources(ROOT)
KINDS = {"blank": 1, "right": 1, "right-": 1, "wrong-": 2, "endless": 1, "breaks-": 1}
each = pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])


def points_of(cells: list[dict]) -> dict[str, int]:
    """The points of each test that runs by itself."""
    marks = [course.mark(cell) for cell in cells]
    return {mark["grade_id"]: mark["points"] for mark in marks if mark.get("grade") and not mark["solution"]}


@each
def test_a_source_is_an_assignment(path):
    assert course.faults(path, ROOT) == []
    assert sum(course.mark(cell).get("points", 0) for cell in notebook_file.read(path)["cells"]) == 20


@each
def test_the_hand_ins_are_of_every_kind_and_each_test_fails_one(path):
    listed, points = handins.read(path), points_of(notebook_file.read(path)["cells"])
    for kind, least in KINDS.items():
        found = [name for name in listed if name == kind or (kind.endswith("-") and name.startswith(kind))]
        assert len(found) >= least, f"expected {least} of the kind {kind}, got {found}"
    failed = {test for name, one in listed.items() if name.startswith("wrong-") for test in one.fails}
    assert failed == set(points), "each test must fail for a wrong answer"
    for name, one in listed.items():
        lost = points if name == "blank" else one.fails
        assert one.points == sum(points.values()) - sum(points[test] for test in lost), name


def cell_of(notebook: dict, name: str) -> dict:
    return next(cell for cell in notebook["cells"] if cell.get("id") == name)


def spoil(name: str, old: str, new: str):
    """A change of one cell's source."""

    def change(notebook: dict) -> None:
        cell = cell_of(notebook, name)
        assert old in cell["source"]
        cell["source"] = cell["source"].replace(old, new)

    return change


def spoil_mark(name: str, **changes):
    """A change of what nbgrader is told of one cell; None takes a field away."""

    def change(notebook: dict) -> None:
        mark = cell_of(notebook, name)["metadata"]["nbgrader"]
        mark.update(changes)
        for field in [field for field, value in mark.items() if value is None]:
            del mark[field]

    return change


@pytest.mark.parametrize("change, complaint", [
    (spoil("title", "colab.research", "example"), "no button for Colab"),
    (spoil("split", "### BEGIN SOLUTION", ""), "'split': has no BEGIN SOLUTION"),
    (spoil("where-words", "**Rubric**", "Rubric"), "'where-words': is graded by hand, but has no **Rubric**"),
    (spoil("split-test", "# 1 point: ", "# "), "'split-test': must begin with"),
    (spoil("split-test", "# 1 point: ", "# 2 points: "), "'split-test': says 2 points, has 1"),
    (spoil("split-test", "\nassert miss", "\nmiss\n# assert"), "'split-test': ends in a value"),
    (spoil("split-test", "assert miss", "assert assert"), "'split-test': isn't Python"),
    (spoil_mark("split-test", points=None), "'split-test': is graded, but has no points"),
    (spoil_mark("split", task=None), "'split': nbgrader's metadata lack task"),
    (spoil_mark("split", grade_id="turn"), "'turn': there are two of that name"),
    (spoil_mark("split", grade_id="other"), "'split': is called 'other'"),
    (lambda notebook: cell_of(notebook, "split")["metadata"].clear(), "'split': has a region"),
    (spoil("split-test", "# 1 point: ", "# 1 point: " + 70 * "x"), "'split-test': has a line of more than 79"),
    (spoil("where-figure", "The figure in words", "More"), "'where': draws a figure, but the cell after it"),
    (lambda notebook: notebook["cells"].remove(cell_of(notebook, "where-figure")), "'where': draws a figure"),
    (lambda notebook: notebook["cells"].clear(), "no button for Colab"),
    (lambda notebook: cell_of(notebook, "split").update(execution_count=3), "not in the stored form"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_source_lacks_is_said_by_cell(change, complaint, tmp_path):
    notebook = notebook_file.read(SOURCES[0])
    change(notebook)
    path = tmp_path / SOURCES[0].stem / SOURCES[0].name
    path.parent.mkdir()
    if "two of that name" in complaint:
        cell_of(notebook, "split")["id"] = "turn"
    path.write_text(notebook_file.dumps(notebook), "utf-8")
    assert any(complaint in fault for fault in course.faults(path, ROOT)), course.faults(path, ROOT)


@each
def test_a_leak_is_found(path, tmp_path):
    """The source as it stands holds all that a release must not."""
    found = course.leaks(path, path)
    students = ROOT / "course" / "students" / path.name
    assert any("BEGIN SOLUTION" in line for line in found) and any("BEGIN HIDDEN" in line for line in found)
    assert course.leaks(path, students) == []
    notebook, secrets = notebook_file.read(students), [line for line in found if not line.startswith(("###", "<!--"))]
    for secret in secrets:
        notebook["cells"][1]["source"] = f"x = 1\n    {secret}"
        (tmp_path / path.name).write_text(json.dumps(notebook), "utf-8")
        assert course.leaks(path, tmp_path / path.name) == [secret]


def a_root(folder: Path) -> Path:
    """A book's folder with the first assignment alone."""
    shutil.copytree(SOURCES[0].parent, folder / "course" / SOURCES[0].parent.name)
    for name in ("_config.yml", f"course/{course.SETTINGS}", "course/guide.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_hand_ins_and_grades_are_not_overwritten(tmp_path):
    root = a_root(tmp_path)
    (root / "_build" / "course" / "submitted").mkdir(parents=True)
    with pytest.raises(course.Refused, match="holds hand-ins or grades"):
        course.make(root, course.sources(root))
    assert [path.name for path in (root / "_build").rglob("*")] == ["course", "submitted"]


def test_nothing_is_written_if_an_assignment_is_out_of_form(tmp_path, capsys):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: `make course` does it")
    root = a_root(tmp_path)
    notebook = notebook_file.read(course.sources(root)[0])
    spoil_mark("split-test", points=None)(notebook)
    course.sources(root)[0].write_text(notebook_file.dumps(notebook), "utf-8")
    assert course.main(["--root", str(root)]) == 2
    assert "1_convolution.ipynb: cell 'split-test': is graded, but has no points" in capsys.readouterr().err
    assert not [*(root / "_build").glob("[!.]*")] and not (root / "course" / "students").exists()


def test_adopt_reaches_the_buttons(tmp_path):
    root = a_root(tmp_path)
    [path] = course.sources(root)
    students = root / "course" / "students" / path.name
    students.parent.mkdir()
    shutil.copy(ROOT / "course" / "students" / path.name, students)
    adopt.adopt(root, "https://github.com/me/my-book", "trunk")
    assert course.faults(path, root) == []
    for notebook in (notebook_file.read(path), notebook_file.read(students)):
        title, setup = (cell_of(notebook, name)["source"] for name in ("title", "setup"))
        assert "/github/me/my-book/blob/trunk/course/students/1_convolution.ipynb)" in title
        assert "github.com/me/my-book" in setup


def test_the_guide_holds_what_the_files_say():
    guide = course_guide.write(ROOT, SOURCES)
    for path in SOURCES:
        cells = notebook_file.read(path)["cells"]
        assert f"\n## {notebook_file.text(cells[0]['source']).splitlines()[0][2:]}\n" in guide
        assert all(f"| `{test}` | {points} |" in guide for test, points in points_of(cells).items())
        assert all(" ".join(cell.why.split()) in guide for one in handins.read(path).values() for cell in one.cells)
        for heading in ("Aims", "Timing", "Common wrong answers", "What to change each year"):
            assert f"### {heading}\n" in (path.parent / "guide.md").read_text("utf-8")


def test_a_hand_in_names_cells_that_are_there():
    source = notebook_file.read(SOURCES[0])
    wrong = handins.HandIn(points=0, cells=(handins.Cell("split-test", "no answer", "pass"),))
    with pytest.raises(ValueError, match="no cell to fill in is called split-test; expected correlate, split"):
        handins.make(source, source, "wrong", wrong)


def settings():
    from traitlets.config import Config

    found = Config()
    exec((ROOT / "course" / course.SETTINGS).read_text("utf-8"), {"get_config": lambda: found})
    return found


def test_the_hand_ins_are_written_for_whoever_tries_out_grading(tmp_path, capsys):
    folder = tmp_path / "downloaded" / "archive"
    assert handins.main(["1_convolution", str(folder)]) == 0
    listed = handins.read(SOURCES[0])
    assert {path.name for path in folder.iterdir()} == {f"{name}-1_convolution.ipynb" for name in listed}
    assert f"{listed['right'].points} points" in capsys.readouterr().out
    assert "### BEGIN" not in (folder / "right-1_convolution.ipynb").read_text("utf-8")
    assert handins.main(["7_other", str(folder)]) == 2
    assert "expected an assignment (1_convolution, " in capsys.readouterr().err


def test_a_test_for_otter_shows_no_values():
    source = "torch.manual_seed(1)\nfor n in range(3):\n    max(n, 2)\n\ndef f():\n    max(1, 2)\n\nassert f"
    made = to_otter.silent(source)
    assert made == source.replace("torch.m", "_ = torch.m").replace("    max(n", "    _ = max(n")


@each
def test_tests_and_given_code_come_along_to_otter(path):
    """Assignments 1 and 6 give code between an answer and its tests."""
    source = nbformat.read(path, as_version=4)
    marked = [(cell.metadata.get("nbgrader", {}), cell) for cell in source.cells if cell.cell_type == "code"]
    made = [cell.source for cell in to_otter.convert(source).cells]
    tests = [mark for mark, _ in marked if mark.get("grade") and not mark["solution"]]
    assert sum("# BEGIN TEST CONFIG" in one for one in made) == len(tests) > 0
    assert sum(one == "# BEGIN TESTS" for one in made) <= sum(one.startswith("# BEGIN QUESTION") for one in made)
    given = [cell.source for mark, cell in marked if not mark.get("grade") and not mark.get("solution")]
    assert [one for one in made if one in given] == given


def test_only_answers_and_tests_are_stopped_soon():
    """The first import takes minutes on a busy machine, and a hand-in that stops there has no points at all."""
    from nbformat.v4 import new_code_cell

    limit = settings().Execute.timeout_func
    soon = [limit(new_code_cell(metadata={"nbgrader": {"grade": g, "solution": not g}})) for g in (True, False)]
    late = [limit(new_code_cell()), limit(new_code_cell(metadata={"nbgrader": {"grade": False, "solution": False}}))]
    assert soon == [60, 60] and late == [600, 600]


@pytest.mark.parametrize("file, student", [
    ("ada-1_convolution.ipynb", "ada"),
    ("ada.lovelace@example.org-4_training_well.ipynb", "ada.lovelace@example.org"),
    ("lovelaceada_123_4567_1_convolution-2.ipynb", "lovelaceada_123_4567"),
    ("lovelaceada_LATE_123_4567_1_convolution.ipynb", "lovelaceada_LATE_123_4567"),
    ("Ada Lovelace_123_assignsubmission_file/1_convolution.ipynb", "Ada Lovelace_123_assignsubmission_file"),
    ("ada/1_convolution (1).ipynb", "ada"),
    ("1_convolution.ipynb", None),
    ("ada-1_convolution.txt", None),
    ("ada-homework.ipynb", None),
])
def test_a_files_name_says_whose_it_is(file, student):
    path = f"/home/t/class/downloaded/1_convolution/extracted/{file}"
    found = re.match(settings().FileNameCollectorPlugin.named_regexp, path)
    assert (found and found["student_id"]) == student
    assert not found or found["file_id"] in ("1_convolution", "4_training_well")


def test_make_course_installs_nbgrader():
    assert "\nnbgrader>=" in (ROOT / env.MORE["course"]).read_text("utf-8")


def test_the_website_holds_nothing_of_the_course():
    assert not [entry for entry in chapter_file.toc_files(ROOT) if entry.startswith("course/")]
    pages = (ROOT / ".github" / "workflows" / "pages.yml").read_text("utf-8")
    assert re.findall(r"^\s*path: (_build\S*)", pages, re.M) == ["_build/html"]


# ---------------------------------------------------------------- graded


class Graded:
    """One assignment's hand-ins after nbgrader's generate, collect, autograde and feedback, in a folder."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder, self.name = path, folder, path.stem
        self.handins = handins.read(path)
        course.generate(folder, [path], ROOT)
        self.release = notebook_file.read(folder / "release" / path.stem / path.name)
        self.hand_in()
        self.grade()

    def hand_in(self) -> None:
        archive = self.folder / "downloaded" / self.name / "archive"
        archive.mkdir(parents=True)
        for name, one in self.handins.items():
            notebook = handins.make(notebook_file.read(self.path), self.release, name, one)
            (archive / f"{name}-{self.path.name}").write_text(json.dumps(notebook), "utf-8")

    def limit(self, seconds: int, tests: set[str]) -> None:
        """How long these tests may take; all else has longer than a busy machine needs."""
        limit = f"lambda cell: {seconds} if cell.metadata.get('nbgrader', {{}}).get('grade_id') in {tests} else 900"
        with (self.folder / course.SETTINGS).open("a", encoding="utf-8") as settings:
            settings.write(f"\nc.Execute.timeout_func = {limit}\n")

    def grade(self) -> None:
        from nbgrader.apps import ZipCollectApp

        endless = {name: {test for test, said in one.fails.items() if said == handins.ENDLESS}
                   for name, one in self.handins.items()}  # fmt: skip
        with pytest.MonkeyPatch.context() as here:
            here.chdir(self.folder)
            collect = ZipCollectApp(config=course.nbgrader_in(self.folder).config)
            collect.initialize([self.name])
            collect.start()
        for name, tests in endless.items():
            self.limit(3 if tests else 900, tests or {"none"})
            self.succeeds(course.nbgrader_in(self.folder).autograde, name)
        self.succeeds(course.nbgrader_in(self.folder).generate_feedback, "*")

    def succeeds(self, step, student: str) -> None:
        done = step(self.name, student)
        assert done["success"], done.get("log") or done.get("error")

    def grades(self, name: str) -> dict:
        from nbgrader.api import Gradebook

        with Gradebook(f"sqlite:///{self.folder / 'gradebook.db'}") as book:
            found = book.find_submission_notebook(self.name, self.name, name)
            return {grade.name: (grade.auto_score, bool(grade.needs_manual_grade)) for grade in found.grades}

    def said(self, name: str) -> dict[str, str]:
        """What the errors of each cell say."""
        notebook = notebook_file.read(self.folder / "autograded" / name / self.name / self.path.name)
        errors = {}
        for cell in notebook["cells"]:
            found = [one for one in cell.get("outputs", ()) if one["output_type"] == "error"]
            errors[cell.get("id")] = " ".join(f"{one['ename']}: {one['evalue']}" for one in found)
        return errors


# Two assignments can be graded side by side (`-n 2 --dist loadgroup`); the tests of one share what was graded.
ONE_BY_ONE = [pytest.param(path, marks=pytest.mark.xdist_group(path.stem), id=path.stem) for path in SOURCES]


@pytest.fixture(scope="module", params=ONE_BY_ONE)
def graded(request, tmp_path_factory):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: `make course` does it")
    return Graded(request.param, tmp_path_factory.mktemp("course"))


@pytest.mark.slow
def test_points_are_those_that_the_list_names(graded):
    cells = notebook_file.read(graded.path)["cells"]
    points = points_of(cells)
    for name, one in graded.handins.items():
        lost = set(points) if name == "blank" else set(one.fails)
        got = {test: score for test, (score, _) in graded.grades(name).items() if test in points}
        assert got == {test: 0 if test in lost else most for test, most in points.items()}, name
        assert sum(got.values()) == one.points, name
        said = graded.said(name)
        for test, words in one.fails.items():
            assert words in said[test], f"{name}, {test}: {said[test]}"


@pytest.mark.slow
def test_answers_in_words_wait_for_the_teacher_unless_there_is_none(graded):
    marks = [course.mark(cell) for cell in notebook_file.read(graded.path)["cells"]]
    words = [mark["grade_id"] for mark in marks if mark.get("grade") and mark["solution"]]
    assert words
    for name in words:
        assert graded.grades("right")[name] == (None, True)
        assert graded.grades("blank")[name] == (0, False)


@pytest.mark.slow
def test_feedback_says_why_a_point_is_lost(graded):
    for name, one in graded.handins.items():
        page = (graded.folder / "feedback" / name / graded.name / f"{graded.name}.html").read_text("utf-8")
        for words in one.fails.values():
            assert words in re.sub(r"<[^>]+>", "", page), f"{name}: {words}"


@pytest.mark.slow
def test_the_release_holds_no_solution_and_no_hidden_test(graded):
    assert course.leaks(graded.path, graded.folder / "release" / graded.name / graded.path.name) == []
    students = ROOT / "course" / "students" / graded.path.name
    assert notebook_file.read(students) == graded.release, "the students' copy is an old one: run `make course`"
