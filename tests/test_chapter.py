"""`make chapter`: what it writes passes the checks of chapters, solutions and tables; a refusal leaves no trace."""

import re
import shutil
from pathlib import Path

import matplotlib
import pytest
import test_pages as on_pages
import test_solutions as on_solutions

matplotlib.use("Agg")

import adopt
import chapter
import chapter_file
import chapter_times
import notebook_rules as rules
import notebooks
import solutions
import tables

ROOT = chapter_file.ROOT
LAST = chapter_file.notebook_paths()[-1].stem
NUMBER = int(LAST[:2]) + 1
NAME = f"{NUMBER}_title"
FILES = ("_toc.yml", "_config.yml", "index.md", "README.md", "CONTRIBUTING.md", "CITATION.cff")
FILES += ("LICENSE", "LICENSE-text")


def copied(root: Path) -> Path:
    for name in FILES:
        shutil.copy(ROOT / name, root)
    left = {"book": "_static", "notebooks": ".ipynb_checkpoints", "vitutils": "*.saf*", "course": "[!R]*"}
    for folder, ignored in left.items():
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", ignored))
    return root


@pytest.fixture
def book(tmp_path) -> Path:
    return copied(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("book"))


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_new_chapter_passes_the_checks_as_it_is(book, monkeypatch):
    monkeypatch.setenv("VITBOOK_SCALE", "smoke")
    chapter.make(book, NAME, "A mirror")
    path, page = book / f"notebooks/{NAME}.ipynb", book / f"book/solutions/{NAME}.md"
    assert rules.check(path, book) == {}
    assert rules.skeleton(chapter_file.Chapter.read(book / f"notebooks/{LAST}.ipynb", book)) == []
    assert chapter_file.Chapter.read(path, book).draft
    left = rules.left_to_do(chapter_file.Chapter.read(path, book))
    assert left.startswith("; a draft: cells to fill in (@@): 10; words: ")
    names: dict = {}
    for cell in chapter_file.Chapter.read(path, book).code:
        exec(compile(chapter_file.tree(cell), cell["id"], "exec"), names)
    # the checks of exercises and solutions, in that copy
    monkeypatch.setattr(solutions, "ROOT", book)
    on_solutions.test_the_check_refuses_the_stub_and_a_wrong_answer_and_takes_the_solution(on_solutions.tell(page))
    on_solutions.test_a_page_has_what_it_needs(page)
    on_solutions.test_a_pages_cells_are_short_and_repeat_the_chapters_to_the_word(page)


@pytest.mark.slow
def test_its_entries_are_made_and_a_published_book_refuses_it(book):
    # The book may have no planned chapter left; one is planned here, and the last chapter leads on to it.
    toc, last = book / "_toc.yml", book / f"notebooks/{LAST}.ipynb"
    leads, found = re.subn(r"\*Next\.\* .*(?=\")", "*Next.* Far sight is in preparation: far.", last.read_text("utf-8"))
    assert found == 1
    last.write_text(leads, encoding="utf-8")
    toc.write_text(toc.read_text(encoding="utf-8") + "  planned:\n    Far sight: see far\n", encoding="utf-8")
    tables.write(book)
    [planned] = [row for row in tables.chapters(book) if not row.name]
    assert f"| {NUMBER} | Far sight *(in preparation)* | see far |" in (book / "book/preface.md").read_text("utf-8")
    changed = chapter.make(book, NAME, planned.title)
    assert on_pages.links_resolve(book) == on_pages.nothing_left_open(book) == []
    assert set(changed) == {f"notebooks/{NAME}.ipynb", f"notebooks/{LAST}.ipynb", f"book/solutions/{NAME}.md",
                            "_toc.yml", *tables.TABLES}  # fmt: skip
    assert tables.faults(book) == []
    assert f"notebooks/{NAME}.ipynb is a draft: a published book has none" in tables.faults(book, drafts=False)
    text = (book / "book/preface.md").read_text(encoding="utf-8")
    assert f"| {NUMBER} | [{planned.title}](../notebooks/{NAME}.ipynb) *(draft)* | {planned.able} |" in text
    assert f"*Next.* [Chapter {NUMBER}](./{NAME}.ipynb): far." in last.read_text("utf-8")
    assert text.count(planned.title) == 1 and planned.title not in (book / "_toc.yml").read_text(encoding="utf-8")
    assert f"/notebooks/{NAME}.ipynb)" in (book / "README.md").read_text(encoding="utf-8")
    assert f"| [{NUMBER}.3](../notebooks/{NAME}.ipynb#exer" in (book / "book/solutions.md").read_text(encoding="utf-8")
    # two in a row, and the times of the others can still be written
    chapter.make(book, f"{NUMBER + 1}_two_words")
    assert [row.title for row in tables.chapters(book) if row.draft][-2:] == [planned.title, "Two words"]
    before = {path: path.read_bytes() for path in chapter_file.notebook_paths(book)}
    for path in before:
        notebooks.write_opening(path, chapter_times.read(book / "book/times.csv"))
    assert {path: path.read_bytes() for path in before} == before


def test_the_tables_follow_the_book_to_another_address(book):
    adopt.adopt(book, "https://github.com/Some-One/Their.Book")
    assert tables.faults(book) == []


@pytest.mark.slow
def test_a_finished_chapter_is_held_to_everything(book):
    chapter.make(book, NAME)
    path = book / f"notebooks/{NAME}.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("*Draft.*", "Soon."), encoding="utf-8")
    assert set(rules.check(path, book)) == {"length_of_prose", "nothing_left_open"}
    with pytest.raises(ValueError, match="not measured"):
        notebooks.write_opening(path, [])


@pytest.mark.parametrize(
    ("name", "title", "says"),
    [
        ("", "", "Which chapter"),
        (f"{NUMBER}_Title", "", "Not a chapter's name"),
        (LAST, "", "exists already"),
        (f"{NUMBER + 1}_title", "", "is not the next one"),
        (NAME, "What | why", "Not a title"),
        (NAME, "Training a ViT", "already"),
        (NAME, "Convnets in nets", "'Convnets': CNN"),
    ],
)
def test_what_is_refused_leaves_no_trace(untouched, name, title, says):
    before = files(untouched)
    with pytest.raises(chapter.Refused, match=says):
        chapter.make(untouched, name, title)
    assert files(untouched) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (f"notebooks/{LAST}.ipynb", "*Next.*", "*Later.*", "'*Next.* '"),
        ("_toc.yml", f"book/solutions/{LAST}", "book/status2", f"- file: book/solutions/{LAST}"),
        ("book/preface.md", "<!-- end -->", "", "book/preface.md"),
    ],
)
def test_a_book_out_of_order_is_left_as_it_is(book, file, old, new, says):
    text = (book / file).read_text(encoding="utf-8")
    assert old in text
    (book / file).write_text(text.replace(old, new), encoding="utf-8")
    before = files(book)
    with pytest.raises((chapter.Refused, ValueError)) as told:
        chapter.make(book, NAME)
    assert says in str(told.value) and files(book) == before


def test_the_command_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("NAME", LAST)
    assert chapter.main([]) == 2
    said = capsys.readouterr().err
    assert f"{LAST} exists already" in said and said.endswith("Nothing was changed.\n")
