"""`make adopt`: one repository address in the whole book, and one command that changes it."""

import os
import re
import shutil
import subprocess
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


@pytest.mark.slow
def test_windows_line_ends_stay_and_hide_nothing(copy, tmp_path):
    own = shutil.copytree(copy, tmp_path / "book")  # the other tests share the copy
    for path, text in adopt.texts(own).items():
        path.write_bytes(text.replace("\n", "\r\n").encode())
    adopt.adopt(own, "https://github.com/me/my-book", "trunk")
    assert wrong(own, "me/my-book", "trunk") == []
    assert all(text.count("\n") == text.count("\r\n") for text in texts(own).values())


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


# --- a fork's first push ---

GH = """#!/bin/sh
echo "$GH_REPO: $*" >> "$ASKED"
case "$1 $2" in
"pr list") echo "$CLOSED" ;;
"pr create") exit "$REFUSED" ;;
esac
"""


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def pushed(copy, tmp_path, monkeypatch):
    """A fork's clone, as the runner checks it out; the fork itself; what to call for the workflow's steps."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "REPO", "BRANCH", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    book, fork, clone, bin_ = (tmp_path / name for name in ("book", "fork", "clone", "bin"))
    shutil.copytree(copy, book)
    shutil.copy2(ROOT / "Makefile", book)
    shutil.copy2(ROOT / "tools" / "adopt.py", book / "tools")
    bin_.mkdir()
    (bin_ / "gh").write_text(GH)
    (bin_ / "gh").chmod(0o755)
    for command in ("init -q -b main", "add -A", "-c user.name=me -c user.email=me@here commit -qm book"):
        git(book, *command.split())
    git(tmp_path, "clone", "-q", "--bare", "book", "fork")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "adopt.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["propose"]["steps"] if "run" in step]

    def run(repository: str, closed: int = 0, refused: int = 0) -> tuple[int, str, str]:
        """Exit status, what was printed, what gh was asked."""
        shutil.rmtree(clone, ignore_errors=True)
        (tmp_path / "asked").write_text("")
        git(tmp_path, "clone", "-q", "fork", "clone")
        told = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": repository, "GITHUB_REF_NAME": "main"}
        told |= {"GH_REPO": repository, "ASKED": str(tmp_path / "asked"), "CLOSED": str(closed)}
        told |= {"REFUSED": str(refused), "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
        said = ""
        for step in steps:
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
            done = subprocess.run(command, cwd=clone, env=os.environ | told, capture_output=True, text=True)
            said += done.stdout + done.stderr
            if done.returncode:
                break
        return done.returncode, said, (tmp_path / "asked").read_text()

    return clone, fork, run


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="runs on GitHub's Ubuntu")
def test_a_forks_first_push_proposes_its_own_address_once(pushed):
    clone, fork, run = pushed
    code, said, asked = run("Ada/vit-class")
    assert code == 0, said
    assert "Ada/vit-class: pr create --base main --head adopt/Ada/vit-class --title" in asked
    git(clone, "checkout", "-q", "origin/adopt/Ada/vit-class")
    assert wrong(clone, "Ada/vit-class", "main") == []
    # GitHub lets no workflow push a change of a workflow.
    changed = git(clone, "diff", "--name-only", "main").split()
    assert "README.md" in changed and not [name for name in changed if name.startswith(".github/workflows")]
    code, said, asked = run("Ada/vit-class")  # the next push, with the request still open
    assert (code, asked) == (0, "") and "::notice::" in said
    git(fork, "update-ref", "refs/heads/main", "refs/heads/adopt/Ada/vit-class")  # merged
    code, said, asked = run("Ada/vit-class")
    assert (code, asked) == (0, "") and "nothing to change" in said


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="runs on GitHub's Ubuntu")
def test_a_fork_that_may_not_open_the_request_or_closed_it(pushed):
    _, fork, run = pushed
    code, said, asked = run("ada/vit-class", closed=1)  # and its branch deleted
    assert code == 0 and "pr create" not in asked and git(fork, "branch", "--list", "adopt/*") == ""
    code, said, asked = run(START.partition(".com/")[2])  # not a fork: the address is its own
    assert (code, asked) == (0, "") and git(fork, "branch", "--list", "adopt/*") == ""
    code, said, asked = run("ada/vit-class", refused=1)
    assert code == 1 and "https://github.com/ada/vit-class/compare/main...adopt/ada/vit-class?expand=1" in said
    assert "adopt/ada/vit-class" in git(fork, "branch", "--list", "adopt/*")
