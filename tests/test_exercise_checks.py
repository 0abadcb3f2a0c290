"""What the exercises' checks say to answers that people might give: wrong ones get a hint, right ones pass.

The answers stand in tests/exercise_answers/chapters_*.py, each a list of (exercise, "right" or "wrong", why, source):

    ANSWERS = [("1.1", "wrong", "adds the kernels up", '''
    def reach(kernels, strides):
        return sum(kernels)
    ''')]

The source takes the place of the learner's cell; the check is the chapter's own. The set-up cells of the chapter's page
of solutions run once; every answer gets a copy of what they leave, so that none can spoil it for the next.
"""

import contextlib
import copy
import functools
import io
import os
import runpy
from collections import Counter
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest

matplotlib.use("Agg")

import torch

import chapter_file
import solutions

FILES = sorted((Path(__file__).parent / "exercise_answers").glob("chapters_*.py"))
ANSWERS = [answer for file in FILES for answer in runpy.run_path(str(file))["ANSWERS"]]
PAGES = {str(int(page.stem[:2])): page for page in sorted(solutions.PAGES.glob("*.md"))}
LEAST = {"wrong": 4, "right": 2}  # of each exercise of a chapter that has answers


def page_of(number: str) -> Path:
    return PAGES[number.partition(".")[0]]


@functools.cache
def asked(page: Path) -> dict[str, solutions.Exercise]:
    return solutions.exercises(solutions.chapter_of(page))


@functools.cache
def set_up(page: Path) -> dict:
    """The names that a page's set-up cells leave."""
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in solutions.read(page).setup:
            exec(compile(cell, page.stem, "exec"), names)
    return names


def apart(names: dict) -> dict:
    """A copy in which tensors and networks can be changed; modules, functions and classes stay what they are."""
    memo = {}
    return {key: value if isinstance(value, ModuleType) else copy.deepcopy(value, memo) for key, value in names.items()}


def say(number: str, source: str) -> str:
    """What the exercise's check prints after a learner's cell."""
    page, said = page_of(number), io.StringIO()
    names = apart(set_up(page))
    torch.manual_seed(0)
    exec(compile(source, f"answer to {number}", "exec"), names)
    with contextlib.redirect_stdout(said):
        exec(compile(asked(page)[number].check, f"check of {number}", "exec"), names)
    return said.getvalue()


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """The smallest scale, one thread, and this process left as it was."""
    threads, state, before = torch.get_num_threads(), torch.get_rng_state(), os.getcwd()
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        patch.setenv("VITBOOK_SCALE", "smoke")
        os.chdir(chapter_file.ROOT / "notebooks")
        yield
        os.chdir(before)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "number, kind, source",
    [pytest.param(number, kind, source, id=f"{number} {kind}: {why}") for number, kind, why, source in ANSWERS],
)
def test_the_check_judges(number, kind, source):
    said = say(number, source)
    if kind == "right":
        assert said.endswith(f"Exercise {number}: pass\n") and "not yet" not in said, said
    else:
        assert said.startswith(f"Exercise {number}: not yet. "), said
        assert said.endswith(f"\n  Hint: {asked(page_of(number))[number].hint}\n"), said
        assert "nothing yet" not in said and "no number yet" not in said, f"there is an answer, but it is told: {said}"


def test_each_exercise_has_enough_answers_and_each_its_own_name():
    assert all(kind in LEAST for _, kind, *_ in ANSWERS)
    names = Counter((number, why) for number, _, why, _ in ANSWERS)
    assert [name for name, times in names.items() if times > 1] == []
    given = Counter((number, kind) for number, kind, *_ in ANSWERS)
    for chapter in {number.partition(".")[0] for number, _ in given}:
        for number in asked(PAGES[chapter]):
            few = {kind: given[number, kind] for kind, least in LEAST.items() if given[number, kind] < least}
            assert not few, f"exercise {number}: {few}, expected at least {LEAST}"


def test_an_answer_that_spoils_the_network_leaves_the_next_a_chance():
    """Exercise 10.3: whoever forgets the copy, sees the hint and mends it, passes."""
    answers = {why: source for number, _, why, source in ANSWERS if number == "10.3"}
    spoilt = answers["no copy"].replace("= net\n", "= vit\n")
    check, page = asked(page_of("10.3"))["10.3"].check, page_of("10.3")
    names, said = apart(set_up(page)), io.StringIO()
    assert "= vit" in spoilt
    with contextlib.redirect_stdout(said):
        for source in (spoilt, check, answers["columns of the output layer"], check):
            exec(compile(source, "10.3", "exec"), names)
    assert said.getvalue().splitlines()[-1] == "Exercise 10.3: pass"
