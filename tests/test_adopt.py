"""`make adopt`: one repository address in the whole book, and one command that changes it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "adopt.py"

spec = importlib.util.spec_from_file_location("adopt", SCRIPT)
adopt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(adopt)

EXAMPLES = Path("tests/test_adopt.py")  # full of addresses that are nobody's
MALFORMED = [
    "",
    "my-book",
    "me/my-book",
    "github.com/me/my-book",
    "http://github.com/me/my-book",
    "https://gitlab.com/me/my-book",
    "https://github.com/me",
    "https://github.com/me/",
    "https://github.com//my-book",
    "https://github.com/me/my-book/tree/main",
    "https://github.com/me/my book",
    "https://github.com/me/my-book?tab=readme",
    "https://github.com/me_too/my-book",
    "https://github.com/-you/my-book",
    "https://github.com/me/..",
    "https://github.com.evil.org/me/my-book",
    "https://github.com/me/my-book\nhttps://github.com/me/other",
    'https://github.com/me/"; touch hacked; "',
    "$(touch hacked)",
]


def texts(root: Path) -> dict[Path, str]:
    """Every text file of the book, by its path inside it."""
    found = {}
    for path in adopt.tracked(root):
        try:
            found[path.relative_to(root)] = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
    return found


def run(root: Path, url: str) -> subprocess.CompletedProcess:
    """As `make adopt REPO=...` runs it: the address comes through the environment."""
    command = [sys.executable, str(SCRIPT), "--root", str(root)]
    return subprocess.run(command, env=os.environ | {"REPO": url}, capture_output=True, text=True, cwd=root)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The book's files, without git and without what builds leave."""
    root = tmp_path / "book-copy"
    for path in adopt.tracked(ROOT):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return root


def addresses(root: Path) -> dict[str, list[str]]:
    """Every address of the book's own repository, and the files it stands in."""
    owner, name = adopt.current(root)
    own = re.compile(
        rf"[\w.:/@-]*github(?:usercontent)?\.(?:com|io)[/:](?:[\w./-]*/)?(?:{owner}/[\w.-]*[\w-]|[\w-]+/{name}(?![\w-]))",
        re.I,
    )
    found: dict[str, list[str]] = {}
    for path, text in texts(root).items():
        if path == EXAMPLES:
            continue
        for match in own.findall(text):
            found.setdefault(match, []).append(str(path))
    return found


def test_there_is_one_address():
    owner, name = adopt.current(ROOT)
    seen = addresses(ROOT)
    assert seen, "no address found at all: the pattern is wrong"
    for url, files in seen.items():
        assert re.search(rf"{owner}/{name}(\.git)?$", url), f"{url} in {files} is not the one address"
    said = {str(path) for path, text in texts(ROOT).items() if f"{owner}/{name}" in text}
    assert "_config.yml" in said


def test_every_setup_cell_and_badge_says_it():
    owner, name = adopt.current(ROOT)
    book = texts(ROOT)
    for path in [p for p in book if p.suffix == ".ipynb"] + [
        Path("README.md"),
        Path("CITATION.cff"),
    ]:
        assert f"github.com/{owner}/{name}" in book[path], f"{path} does not give the address"


def test_a_second_address_would_be_seen(copy):
    owner, name = adopt.current(copy)
    (copy / "book" / "stray.md").write_text(f"See https://github.com/someone-else/{name}.\n")
    assert any("someone-else" in url for url in addresses(copy))
    (copy / "book" / "stray.md").write_text(f"See https://github.com/{owner}/other-name.\n")
    assert any("other-name" in url for url in addresses(copy))


def test_adopting_leaves_no_trace_and_can_be_done_again(copy):
    old = adopt.current(copy)
    before = texts(copy)
    for pair, end in [
        (("Me-2", "my.book"), ""),
        (("a-class", "vit-course"), "/"),
        (("b", "vit-course-2"), ".git"),
    ]:
        url = "https://github.com/" + "/".join(pair) + end
        done = run(copy, url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert adopt.current(copy) == pair
        after = texts(copy)
        assert after.keys() == before.keys()
        for path, text in after.items():
            assert "/".join(old) not in text, f"{path} still says {'/'.join(old)}"
            assert text.count("/".join(pair)) >= before[path].count("/".join(old)), path
        old, before = pair, after
    # Nothing but the address differs: back to the first one gives the first texts.
    first = adopt.current(ROOT)
    for path, text in texts(copy).items():
        assert adopt.rewrite(text, old, first) == (ROOT / path).read_bytes().decode("utf-8"), path


def test_adopting_the_same_address_changes_nothing(copy):
    run(copy, "https://github.com/me/my-book")
    before = texts(copy)
    done = run(copy, "https://github.com/me/my-book")
    assert done.returncode == 0 and "nothing to change" in done.stdout
    assert texts(copy) == before


@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_address_is_refused_and_changes_nothing(tmp_path, url):
    config = "repository:\n  url: https://github.com/old/book\n"
    (tmp_path / "_config.yml").write_text(config)
    (tmp_path / "README.md").write_text("https://github.com/old/book\n")
    done = run(tmp_path, url)
    assert done.returncode == 2, done.stdout
    assert "https://github.com/me/my-book" in done.stderr and "Nothing was changed" in done.stderr
    assert (tmp_path / "_config.yml").read_text() == config
    assert (tmp_path / "README.md").read_text() == "https://github.com/old/book\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "_config.yml"]


def test_every_form_of_the_address_and_nothing_else():
    old, new = ("old", "book"), ("Me", "my-book")
    for before, after in [
        ("https://github.com/old/book", "https://github.com/Me/my-book"),
        ("git+https://github.com/old/book.git@main", "git+https://github.com/Me/my-book.git@main"),
        ("git@github.com:old/book.git", "git@github.com:Me/my-book.git"),
        (
            "research.google.com/github/old/book/blob/",
            "research.google.com/github/Me/my-book/blob/",
        ),
        ("https://old.github.io/book/", "https://me.github.io/my-book/"),
        ("workflow/status/old/book/tests.yml", "workflow/status/Me/my-book/tests.yml"),
        ("See github.com/old/book.", "See github.com/Me/my-book."),
        ("github.com/old/book-data", "github.com/old/book-data"),
        ("github.com/old/book.data", "github.com/old/book.data"),
        ("github.com/very-old/book", "github.com/very-old/book"),
        ("the old book, threshold/book", "the old book, threshold/book"),
    ]:
        assert adopt.rewrite(before, old, new) == after


def test_a_file_that_cannot_be_written_leaves_all_as_it_was(tmp_path, monkeypatch):
    for name in ("_config.yml", "a.md", "b.md"):
        (tmp_path / name).write_text("repository:\n  url: https://github.com/old/book\n")
    write = Path.write_bytes

    def full(path, content):
        if path.name.startswith("b.md"):
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        adopt.adopt(tmp_path, "https://github.com/me/my-book")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["_config.yml", "a.md", "b.md"]
    assert all("old/book" in p.read_text() for p in tmp_path.iterdir())
