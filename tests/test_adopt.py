"""`make adopt`: one repository address in the whole book, and one command that changes it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import adopt

ROOT = Path(__file__).resolve().parents[1]
START = "https://github.com/first-owner/first-book"  # what the copy says, whoever has adopted the book


def texts(root: Path) -> dict[str, str]:
    """Every text file of the book, by its path inside it."""
    raw = {path.relative_to(root).as_posix(): path.read_bytes() for path in adopt.tracked(root)}
    return {name: text.decode() for name, text in raw.items() if b"\0" not in text and name not in adopt.EXAMPLES}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The book's files, without git and without what builds leave, under an address that is nobody's."""
    root = tmp_path_factory.mktemp("adopt") / "book-copy"
    for path in adopt.tracked(ROOT):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    adopt.adopt(root, START, adopt.MAIN)
    return root


def wrong(root: Path, place: str, branch: str) -> list[str]:
    """What of the book does not say this address, this folder and this branch."""
    book, name = texts(root), place.rpartition("/")[2]
    home = {"url": f"https://github.com/{place}", "branch": branch}
    found = [] if yaml.safe_load(book["_config.yml"])["repository"] == home else ["_config.yml"]
    for page in ("README.md", "book/how-to-run.md"):
        found += [page] * (re.findall(r"git clone (\S+)\s+cd (\S+)", book[page]) != [(home["url"], name)])
    badges = re.findall(r"\(https://colab\S+/github/(\S+)/blob/(\S+)/notebooks/", book["README.md"])
    found += ["badges"] * (set(badges) != {(place, branch)}) + ["cff"] * (home["url"] not in book["CITATION.cff"])
    for path, text in book.items():
        if path.endswith(".ipynb"):
            found += [path] * (f"git+https://github.com/{place}\\" not in text)
        if path.startswith(".github/workflows"):
            found += [path] * (yaml.safe_load(text)[True]["push"] != {"branches": [branch]})  # YAML reads `on` as true
        found += [path for old in (adopt.FIRST, START.partition(".com/")[2]) if old != place and old in text]
    return found


def test_all_of_the_book_says_the_new_address_and_back_again(copy, monkeypatch, capsys):
    first, branch = texts(copy), adopt.MAIN
    ways = [("a-class/vit-course", "", "/"), ("b/vit-course-2", "trunk", ".git"), ("jane/vision", "2.0", "")]
    for place, new, end in ways:
        monkeypatch.setenv("BRANCH", new)  # as make gives it
        branch = new or branch
        monkeypatch.setenv("REPO", f"https://github.com/{place}{end}")
        assert adopt.main(["--root", str(copy)]) == 0
        assert f"https://github.com/{place}, branch {branch}" in capsys.readouterr().out
        assert wrong(copy, place, branch) == []
    assert adopt.main(["--root", str(copy)]) == 0 and "nothing to change" in capsys.readouterr().out
    adopt.adopt(copy, START, adopt.MAIN)
    assert texts(copy) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("_config.yml", f"url: {START}", "url: https://github.com/me/my-book.git  # mine"),
        ("_config.yml", f"url: {START}", "url: git@github.com:me/my-book.git"),
        ("_config.yml", "  branch: main", "  branch: trunk"),
        ("README.md", START, "https://github.com/me/my-book"),
        ("README.md", "first-owner/first-book", "somebody/else"),
        ("notebooks/04_patches.ipynb", "first-owner/first-book", "me/my-book"),
    ],
)
def test_what_a_hand_edit_began_is_finished(copy, name, old, new):
    text = (copy / name).read_text(encoding="utf-8")
    assert old in text
    (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    adopt.adopt(copy, "https://github.com/me/my-book")
    left = wrong(copy, "me/my-book", "trunk" if "trunk" in new else adopt.MAIN)
    adopt.adopt(copy, START, adopt.MAIN)
    if (name, "somebody/else") == ("README.md", new):  # not in the text, where it may be somebody's
        (copy / name).write_text(text, encoding="utf-8")
    assert left == []


@pytest.mark.slow
def test_windows_line_ends_stay_and_hide_nothing(copy):
    for path in adopt.tracked(copy):
        if b"\0" not in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert len(adopt.adopt(copy, "https://github.com/me/my-book", "trunk")) > 15
    assert wrong(copy, "me/my-book", "trunk") == []
    assert all(text.count("\n") == text.count("\r\n") for text in texts(copy).values())


@pytest.mark.parametrize(
    "url",
    ["", "me/my-book", "http://github.com/me/my-book", "https://gitlab.com/me/my-book", "git@gitlab.com:me/my-book.git"]
    + ["https://github.com/me/", "https://github.com/me/my-book/tree/main", "https://github.com/me/my book"]
    + ["https://github.com/me_too/my-book", "https://github.com/-you/my-book", "https://github.com/me/.."]
    + ["https://github.com.evil.org/me/my-book", f"{START}\n{START}", 'https://github.com/me/"; touch hacked; "'],
)
def test_a_malformed_address_is_refused_and_changes_nothing(tmp_path, capsys, url):
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://github.com/old/book\n")
    assert adopt.main(["--root", str(tmp_path), url]) == 2
    said = capsys.readouterr().err
    assert "REPO=https://github.com/me/my-book" in said and "no other host" in said and "Nothing was changed" in said
    assert "old/book" in (tmp_path / "_config.yml").read_text() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("end", ["", "/", ".git", ".git/"])
@pytest.mark.parametrize("start", ["HTTPS://GitHub.com/", " https://www.github.com/", "git@github.com:", "ssh://git@github.com/"])
def test_an_address_is_taken_as_browsers_and_git_give_it(start, end):
    assert adopt.parse(f"{start}Me/my-book{end}") == ("Me", "my-book")


@pytest.mark.parametrize("branch", ["a b", "-x", "a..b", "a/", "/a", "a.", "a#b", "main\n"])
def test_a_branch_that_no_address_can_name_is_refused(branch):
    with pytest.raises(adopt.Refused, match="letters, digits"):
        adopt.check_branch(branch)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("git+https://github.com/old/book.git@main", "git+https://github.com/Me/my-book.git@main"),
        ("git@github.com:old/book.git", "git@github.com:Me/my-book.git"),
        ("https://old.github.io/book/a.html", "https://me.github.io/my-book/a.html"),
        ("workflow/status/old/book/tests.yml", "workflow/status/Me/my-book/tests.yml"),
        ("See github.com/old/book.", "See github.com/Me/my-book."),
        ("github.com/old/book-data github.com/old/book.data very-old/book old book", None),
    ],
)
def test_every_form_of_the_address_and_nothing_else(before, after):
    assert adopt.rewrite(before, "old/book", "Me/my-book") == (after or before)


def test_the_branch_of_a_checkout(tmp_path, monkeypatch):
    """Where it has no main; another repository's git does not choose it, as in a git hook, which sets GIT_DIR."""
    for name, branch in (("own", "trunk"), ("other", "strange")):
        subprocess.run(["git", "init", "-q", "-b", branch, str(tmp_path / name)], check=True)
    (tmp_path / "own" / "_config.yml").write_text("repository:\n  url: https://github.com/old/book\n  branch: main\n")
    (tmp_path / "own" / os.fsdecode(b"f\xfcr.md")).write_text("github.com/old/book")  # a name that is not UTF-8
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert adopt.choose_branch(tmp_path / "own") == "trunk"
    assert len(adopt.adopt(tmp_path / "own", "https://github.com/me/my-book")) == 2


@pytest.mark.parametrize("breaks", ["write_bytes", "replace"])
def test_a_run_that_broke_leaves_nothing_half_written_and_can_be_finished(tmp_path, monkeypatch, capsys, breaks):
    for name in ("_config.yml", "a.md", "b.md"):
        (tmp_path / name).write_text("repository:\n  url: https://github.com/old/book\n")
    works = getattr(Path, breaks)

    def fails(path, argument):
        if path.name.startswith("b.md"):
            raise OSError(28, "No space left on device")
        return works(path, argument)

    monkeypatch.setattr(Path, breaks, fails)
    assert adopt.main(["--root", str(tmp_path), "https://github.com/me/my-book"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_config.yml", "a.md", "b.md"]
    assert ("old/book" in (tmp_path / "a.md").read_text()) == (breaks == "write_bytes")
    monkeypatch.undo()
    assert adopt.main(["--root", str(tmp_path), "https://github.com/me/my-book"]) == 0
    assert all("me/my-book" in path.read_text() for path in tmp_path.iterdir())
