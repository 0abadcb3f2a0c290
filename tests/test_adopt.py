"""`make adopt`: one repository address in the whole book, and one command that changes it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "adopt.py"

spec = importlib.util.spec_from_file_location("adopt", SCRIPT)
adopt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(adopt)

HERE = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["branch"]
EXAMPLES = Path("tests/test_adopt.py")  # full of addresses that are nobody's
MALFORMED = [
    "",
    "my-book",
    "me/my-book",
    "github.com/me/my-book",
    "http://github.com/me/my-book",
    "https://gitlab.com/me/my-book",
    "git@gitlab.com:me/my-book.git",
    "https://codeberg.org/me/my-book",
    "https://github.example.edu/me/my-book",
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


def run(root: Path, url: str, branch: str = "") -> subprocess.CompletedProcess:
    """As `make adopt REPO=... BRANCH=...` runs it: both come through the environment."""
    command = [sys.executable, str(SCRIPT), "--root", str(root)]
    given = os.environ | {"REPO": url, "BRANCH": branch}
    return subprocess.run(command, env=given, capture_output=True, text=True, cwd=root)


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
        back = adopt.rename(adopt.rewrite(text, old, first), first, set(), HERE)
        assert back == (ROOT / path).read_bytes().decode("utf-8"), path


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


@pytest.mark.parametrize("host", ["gitlab.com", "codeberg.org", "github.example.edu"])
def test_another_host_is_named(host):
    for url in (f"https://{host}/me/my-book", f"git@{host}:me/my-book.git", f"HTTPS://{host}/me"):
        with pytest.raises(adopt.Refused, match=f"know GitHub alone, not {re.escape(host)}"):
            adopt.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/Me/my-book.git/",
        "  https://github.com/Me/my-book\n",
        "HTTPS://GitHub.com/Me/my-book",
        "https://www.github.com/Me/my-book",
        "git@github.com:Me/my-book.git",
        "ssh://git@github.com/Me/my-book",
    ],
)
def test_an_address_is_taken_as_browsers_and_git_give_it(url):
    assert adopt.parse(url) == ("Me", "my-book")


# --- what has to agree after it ---

URL = "https://github.com/me/my-book"


def wrong(root: Path, pair: tuple[str, str], branch: str) -> list[str]:
    """What of the book does not say this address, this folder and this branch."""
    found, book, place = [], texts(root), "/".join(pair)
    config = yaml.safe_load(book[Path("_config.yml")])["repository"]
    found += [f"_config.yml: {config}"] if config != {"url": f"https://github.com/{place}", "branch": branch} else []
    for name in ("README.md", "book/how-to-run.md"):
        cloned = re.findall(r"git clone (\S+)\ncd (\S+)", book[Path(name)])
        found += [f"{name}: {cloned}"] if cloned != [(f"https://github.com/{place}", pair[1])] else []
    badges = re.findall(r"\(https://colab\S+/github/(\S+)/blob/(\S+)/notebooks/", book[Path("README.md")])
    found += [f"README.md: {set(badges)}"] if set(badges) != {(place, branch)} else []
    for path in book:
        if path.suffix == ".ipynb":
            found += [] if f"git+https://github.com/{place}\\" in book[path] else [f"{path}: setup cell"]
        if path.parent == Path(".github/workflows"):
            push = yaml.safe_load(book[path])[True]["push"]  # YAML reads `on` as true
            found += [] if push == {"branches": [branch]} else [f"{path}: {push}"]
        if path != EXAMPLES and path != Path("scripts/adopt.py"):
            found += [f"{path}: the first address"] if "/".join(adopt.FIRST) in book[path] else []
    return found


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new), encoding="utf-8")


def test_all_of_the_book_says_the_new_address_the_folder_and_the_branch(copy):
    for pair, branch in [(("me", "my-book"), HERE), (("b", "my-book-2"), "trunk"), (("b", "my-book-2"), "rel/2.0")]:
        done = run(copy, "https://github.com/" + "/".join(pair), branch)
        assert done.returncode == 0 and f"branch {branch}" in done.stdout, done.stderr
        assert wrong(copy, pair, branch) == []
    assert wrong(copy, pair, "rel/2.0") == []  # and without a branch, the one that _config.yml has
    run(copy, URL)
    assert wrong(copy, ("me", "my-book"), "rel/2.0") == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("_config.yml", "url: https://github.com/{old}", "url: https://github.com/me/my-book"),
        ("_config.yml", "url: https://github.com/{old}", "url: https://github.com/me/my-book.git  # mine"),
        ("_config.yml", "url: https://github.com/{old}", "url: git@github.com:me/my-book.git"),
        ("README.md", "git clone https://github.com/{old}", "git clone https://github.com/me/my-book"),
        ("README.md", "{old}", "somebody/else"),
        ("CITATION.cff", "{old}", "me/my-book"),
        ("notebooks/04_patches.ipynb", "{old}", "me/my-book"),
    ],
)
def test_what_a_hand_edit_began_is_finished(copy, name, old, new):
    edit(copy, name, old.format(old="/".join(adopt.current(copy))), new)
    done = run(copy, URL)
    assert done.returncode == 0, done.stderr
    assert wrong(copy, ("me", "my-book"), HERE) == []
    assert "nothing to change" in run(copy, URL).stdout


def test_a_branch_that_was_written_into_the_configuration_goes_everywhere(copy):
    edit(copy, "_config.yml", f"  branch: {HERE}", "  branch: another")
    run(copy, URL)
    assert wrong(copy, ("me", "my-book"), "another") == []


def test_windows_line_ends_stay_and_hide_nothing(copy):
    for path in texts(copy):
        whole = (copy / path).read_bytes()
        (copy / path).write_bytes(whole.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    changed = adopt.adopt(copy, URL, "trunk")
    assert len(changed) > 15
    for path in texts(copy):
        whole = (copy / path).read_bytes()
        assert whole.count(b"\n") == whole.count(b"\r\n"), path
        (copy / path).write_bytes(whole.replace(b"\r\n", b"\n"))
    assert wrong(copy, ("me", "my-book"), "trunk") == []


@pytest.mark.parametrize("branch", ["a b", "-x", "a..b", "a/", "/a", "a.", "a#b", "a:b", "main\n"])
def test_a_branch_that_no_address_can_name_is_refused(branch):
    with pytest.raises(adopt.Refused, match="letters, digits"):
        adopt.check_branch(branch)


@pytest.mark.parametrize("branch", ["2.0", "yes", "null", "007"])
def test_a_branch_stays_a_text_in_yaml(branch):
    config = "repository:\n  url: https://github.com/a/b\n  branch: main\n"
    found = yaml.safe_load(adopt.configured(config, ("a", "b"), branch))
    assert found == {"repository": {"url": "https://github.com/a/b", "branch": branch}}
    flow = adopt.triggered("on:\n  push:\n    branches: ['main', 'x/**']\n", {"main"}, branch)
    assert yaml.safe_load(flow)[True] == {"push": {"branches": [branch, "x/**"]}}


def test_a_site_of_an_owner_has_no_folder():
    book, site = ("old", "book"), ("Me", "me.github.io")
    text = "https://old.github.io/book/a.html github.com/old/book.git"
    there = "https://me.github.io/a.html github.com/Me/me.github.io.git"
    assert adopt.rewrite(text, book, site) == there
    assert adopt.rewrite(there, site, book) == text
    assert adopt.rewrite(there, site, ("Me", "book")) == "https://me.github.io/book/a.html github.com/Me/book.git"


def test_a_run_that_broke_in_the_middle_says_so_and_can_be_finished(copy, monkeypatch):
    replace, written = Path.replace, []

    def locked(path, target):
        if len(written) == 5:
            raise PermissionError(13, "in use by another program", str(target))
        written.append(target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", locked)
    with pytest.raises(adopt.HalfDone, match="5 of [0-9]+ files say the new address"):
        adopt.adopt(copy, URL)
    monkeypatch.undo()
    assert not list(copy.rglob("*.adopt-new"))
    assert wrong(copy, ("me", "my-book"), HERE)
    adopt.adopt(copy, URL)
    assert wrong(copy, ("me", "my-book"), HERE) == []


# --- in a clone ---

LONG = ("A-University-With-A-Long-Name-In-Letters", "vision-transformers-in-pytorch-a-course-in-one-term.2027")
QUICK = ["tests/test_adopt.py", "tests/test_links.py", "tests/test_pages.py", "tests/test_notebooks.py"]
WHICH = "one_address or configuration_goes or own_files or exception or setup_cell or (test_rule and not links_resolve)"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone on a branch of its own, as a fork whose branch is not main; what is not yet committed is in it too."""
    root = tmp_path_factory.mktemp("fork") / "clone"
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), str(root)], check=True)
    for path in adopt.tracked(ROOT):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for command in (["branch", "-m", "trunk"], ["remote", "remove", "origin"], ["reset", "-q"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def test_a_clone_that_was_adopted_passes_the_quick_tests(clone):
    """Under the longest name, where lines grow, and on a branch that only the checkout knows of."""
    done = run(clone, "https://github.com/" + "/".join(LONG))
    assert done.returncode == 0, done.stderr
    assert wrong(clone, LONG, "trunk") == []
    there = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK, "-k", WHICH],
        cwd=clone, capture_output=True, text=True, env=os.environ | {"VITBOOK_SCALE": "smoke"},
    )  # fmt: skip
    assert there.returncode == 0, there.stdout[-3000:] + there.stderr[-1000:]
    lint = subprocess.run([sys.executable, "scripts/test.py", "--lint"], cwd=clone, capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout


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
