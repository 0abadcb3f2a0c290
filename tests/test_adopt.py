"""`make adopt`: one repository address in the whole book, and one command that changes it."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

import adopt

ROOT = Path(__file__).resolve().parents[1]
START = "https://github.com/first-owner/first-book"  # what the copy says, whoever has adopted the book


def texts(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): text for path, text in adopt.texts(root).items()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The book's files that can name it, under an address that is nobody's."""
    root = tmp_path_factory.mktemp("adopt") / "book-copy"
    for path in adopt.texts(ROOT):
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
    for place, new, end in [("a/course", "", "/"), ("b/course-2", "trunk", ".git"), ("jane/v", "2.0", "")]:
        monkeypatch.setenv("BRANCH", new)  # as make gives it
        branch = new or branch
        monkeypatch.setenv("REPO", f"https://github.com/{place}{end}")
        assert adopt.main(["--root", str(copy)]) == 0
        assert f"https://github.com/{place}, branch {branch}" in capsys.readouterr().out
        assert wrong(copy, place, branch) == []
    assert adopt.main(["--root", str(copy)]) == 0 and "nothing to change" in capsys.readouterr().out
    adopt.adopt(copy, START, adopt.MAIN)
    assert texts(copy) == first


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("_config.yml", f"url: {START}", "url: git@github.com:me/my-book.git  # mine"),
        ("_config.yml", "  branch: main", "  branch: trunk"),
        ("notebooks/04_patches.ipynb", "first-owner/first-book", "me/my-book"),
    ],
)
def test_what_a_hand_edit_began_is_finished(copy, name, old, new):
    text = (copy / name).read_bytes().decode()
    assert old in text
    (copy / name).write_bytes(text.replace(old, new).replace("\n", "\r\n").encode())  # an editor of Windows
    adopt.adopt(copy, "https://github.com/me/my-book")
    left, after = wrong(copy, "me/my-book", "trunk" if "trunk" in new else adopt.MAIN), (copy / name).read_bytes()
    adopt.adopt(copy, START, adopt.MAIN)
    (copy / name).write_bytes(text.encode())
    assert left == [] and after.count(b"\n") == after.count(b"\r\n")


@pytest.mark.parametrize(
    "url",
    ["", "me/my-book", "https://gitlab.com/me/my-book", "https://github.com/me/", "https://github.com/me/a/tree/main"]
    + ["https://github.com/me_too/my-book", "https://github.com/me/..", 'https://github.com/me/"; touch hacked; "'],
)
def test_a_malformed_address_is_refused_and_changes_nothing(tmp_path, capsys, url):
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://github.com/old/book\n")
    assert adopt.main(["--root", str(tmp_path), url]) == 2
    said = capsys.readouterr().err
    assert "REPO=https://github.com/me/my-book" in said and "no other host" in said and "Nothing was changed" in said
    assert "old/book" in (tmp_path / "_config.yml").read_text() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("start", ["HTTPS://GitHub.com/", " https://www.github.com/", "git@github.com:"])
def test_an_address_is_taken_as_browsers_and_git_give_it(start):
    for end in ("", "/", ".git"):
        assert adopt.parse(f"{start}Me/my-book{end}") == ("Me", "my-book")


@pytest.mark.parametrize("branch", ["a b", "a..b", "main\n"])
def test_a_branch_that_no_address_can_name_is_refused(branch):
    with pytest.raises(adopt.Refused, match="letters, digits"):
        adopt.check_branch(branch)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("git+https://github.com/old/book.git@main", "git+https://github.com/Me/my-book.git@main"),
        ("https://old.github.io/book/a.html", "https://me.github.io/my-book/a.html"),
        ("github.com/old/book-data github.com/old/book.data very-old/book old book", None),
    ],
)
def test_every_form_of_the_address_and_nothing_else(before, after):
    assert adopt.rewrite(before, "old/book", "Me/my-book") == (after or before)


def test_a_run_that_broke_leaves_nothing_half_written_and_can_be_finished(tmp_path, monkeypatch, capsys):
    for name in ("_config.yml", "a.md", "b.md"):
        (tmp_path / name).write_text("repository:\n  url: https://github.com/old/book\n")
    works = Path.write_bytes

    def fails(path, data):
        if path.name.startswith("b.md"):
            works(path, data[:9])
            raise OSError(28, "No space left on device")
        return works(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    assert adopt.main(["--root", str(tmp_path), "https://github.com/me/my-book"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_config.yml", "a.md", "b.md"]
    assert all("https://github.com/old/book" in (tmp_path / name).read_text() for name in ("_config.yml", "b.md"))
    monkeypatch.undo()
    assert adopt.main(["--root", str(tmp_path), "https://github.com/me/my-book"]) == 0
    assert all("me/my-book" in path.read_text() for path in tmp_path.iterdir())
