"""The course grades itself: made-up hand-ins go through nbgrader, and their points are those of handins.yml.

For each assignment nbgrader makes the students' version; hand-ins are made of it, with the cells that handins.yml
replaces, and nbgrader collects and grades them and writes feedback. Where nbgrader is not installed, these tests are
skipped; those that only read the files run everywhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import course
import handins
import notebook_rules as rules

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
    assert sum(course.mark(cell).get("points", 0) for cell in rules.read(path)["cells"]) == 20


@each
def test_the_hand_ins_are_of_every_kind_and_each_test_fails_one(path):
    listed, points = handins.read(path), points_of(rules.read(path)["cells"])
    for kind, least in KINDS.items():
        found = [name for name in listed if name == kind or (kind.endswith("-") and name.startswith(kind))]
        assert len(found) >= least, f"expected {least} of the kind {kind}, got {found}"
    failed = {test for name, one in listed.items() if name.startswith("wrong-") for test in one.fails}
    assert failed == set(points), "each test must fail for a wrong answer"
    for name, one in listed.items():
        lost = points if name == "blank" else one.fails
        assert one.points == sum(points.values()) - sum(points[test] for test in lost), name


# ---------------------------------------------------------------- graded


class Graded:
    """One assignment's hand-ins after nbgrader's generate, collect, autograde and feedback, in a folder."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder, self.name = path, folder, path.stem
        self.handins = handins.read(path)
        course.generate(folder, [path], ROOT)
        self.release = rules.read(folder / "release" / path.stem / path.name)
        self.hand_in()
        self.limit_what_never_ends()
        self.grade()

    def hand_in(self) -> None:
        archive = self.folder / "downloaded" / self.name / "archive"
        archive.mkdir(parents=True)
        for name, one in self.handins.items():
            notebook = handins.make(rules.read(self.path), self.release, name, one)
            (archive / f"{name}-{self.path.name}").write_text(json.dumps(notebook), "utf-8")

    def limit_what_never_ends(self) -> None:
        """A short limit where a cell never ends, and elsewhere none that a busy machine could reach."""
        slow = {test for one in self.handins.values() for test, said in one.fails.items() if said == handins.ENDLESS}
        limit = f"lambda cell: 3 if cell.metadata.get('nbgrader', {{}}).get('grade_id') in {slow} else 900"
        with (self.folder / course.SETTINGS).open("a", encoding="utf-8") as settings:
            settings.write(f"\nc.Execute.timeout_func = {limit}\n")

    def grade(self) -> None:
        from nbgrader.apps import ZipCollectApp

        grader = course.nbgrader_in(self.folder)
        with pytest.MonkeyPatch.context() as here:
            here.chdir(self.folder)
            collect = ZipCollectApp(config=grader.config)
            collect.initialize([self.name])
            collect.start()
        for step in (grader.autograde, grader.generate_feedback):
            done = step(self.name, "*")
            assert done["success"], done.get("log") or done.get("error")

    def grades(self, name: str) -> dict:
        from nbgrader.api import Gradebook

        with Gradebook(f"sqlite:///{self.folder / 'gradebook.db'}") as book:
            found = book.find_submission_notebook(self.name, self.name, name)
            return {grade.name: (grade.auto_score, bool(grade.needs_manual_grade)) for grade in found.grades}

    def said(self, name: str) -> dict[str, str]:
        """What the errors of each cell say."""
        notebook = rules.read(self.folder / "autograded" / name / self.name / self.path.name)
        errors = {}
        for cell in notebook["cells"]:
            found = [one for one in cell.get("outputs", ()) if one["output_type"] == "error"]
            errors[cell.get("id")] = " ".join(f"{one['ename']}: {one['evalue']}" for one in found)
        return errors


@pytest.fixture(scope="module", params=SOURCES, ids=[path.stem for path in SOURCES])
def graded(request, tmp_path_factory):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: `make course` does it")
    return Graded(request.param, tmp_path_factory.mktemp("course"))


@pytest.mark.slow
def test_points_are_those_that_the_list_names(graded):
    cells = rules.read(graded.path)["cells"]
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
    marks = [course.mark(cell) for cell in rules.read(graded.path)["cells"]]
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
    assert rules.read(students) == graded.release, "the students' copy is an old one: run `make course`"
