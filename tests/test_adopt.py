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
EXAMPLES = set(map(Path, adopt.EXAMPLES))  # full of addresses that are nobody's
START = ("first-owner", "first-book")  # what the copies say, whoever has adopted the book
OTHERS = {"pytorch/pytorch", "pytorch/vision", "huggingface/pytorch-image-models", "lucidrains/vit-pytorch"}
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
    """The book's files, without git and without what builds leave, under an address that is nobody's."""
    root = tmp_path / "book-copy"
    for path in adopt.tracked(ROOT):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    adopt.adopt(root, "https://github.com/" + "/".join(START), adopt.MAIN)
    return root


REPOSITORY = re.compile(
    r"(?:(?<![\w-])(?:github|raw\.githubusercontent)\.com[/:]|/github/|/status/)([\w-]+)/([\w.-]*[\w-])"
    r"|(?<![\w-])([\w-]+)\.github\.io/([\w.-]*[\w-])"
)


def addresses(root: Path) -> dict[str, list[str]]:
    """Each `owner/name` that has the owner or the name of the book's own repository, and the files it stands in."""
    owner, name = (part.lower() for part in adopt.current(root))
    found: dict[str, list[str]] = {}
    for path, text in texts(root).items():
        if path in EXAMPLES:
            continue
        for match in REPOSITORY.finditer(re.sub(r"REPO=\S+", "", text)):
            there = tuple(part.removesuffix(".git") for part in match.groups() if part)
            alike = there[0].lower() == owner or there[1].lower() == name
            if alike and "/".join(there) not in OTHERS - {f"{owner}/{name}"}:
                found.setdefault("/".join(there), []).append(str(path))
    return found


def one_address(root: Path) -> None:
    seen, own = addresses(root), "/".join(adopt.current(root))
    assert "_config.yml" in seen.pop(own, []), "the pattern is wrong"
    assert not seen, f"not the one address {own}: {seen}"


def test_there_is_one_address():
    one_address(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["jane/vision", "jane-doe/book", "me/atlas", "pytorch/atlas", "jane/jane.github.io"])
def test_names_that_others_have_are_no_second_one(copy, place):
    """Others' names that the book cites, and those of its examples, are no second address."""
    adopt.adopt(copy, f"https://github.com/{place}")
    one_address(copy)
    assert wrong(copy, tuple(place.split("/")), adopt.MAIN) == []
    adopt.adopt(copy, "https://github.com/ann/course", "2.0")
    assert wrong(copy, ("ann", "course"), "2.0") == []


def test_every_setup_cell_and_badge_says_it():
    owner, name = adopt.current(ROOT)
    book = texts(ROOT)
    for path in [p for p in book if p.suffix == ".ipynb"] + [
        Path("README.md"),
        Path("CITATION.cff"),
    ]:
        assert f"github.com/{owner}/{name}" in book[path], f"{path} does not give the address"


@pytest.mark.slow
def test_a_second_address_would_be_seen(copy):
    owner, name = adopt.current(copy)
    (copy / "book" / "stray.md").write_text(f"See https://github.com/someone-else/{name}.\n")
    assert any("someone-else" in place for place in addresses(copy))
    (copy / "book" / "stray.md").write_text(f"See https://github.com/{owner}/other-name.\n")
    assert any("other-name" in place for place in addresses(copy))


@pytest.mark.slow
def test_adopting_leaves_no_trace_and_can_be_done_again(copy):
    old, first = adopt.current(copy), texts(copy)
    before = first
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
            if path in EXAMPLES:
                continue
            assert "/".join(old) not in text, f"{path} still says {'/'.join(old)}"
            assert text.count("/".join(pair)) >= before[path].count("/".join(old)), path
        old, before = pair, after
    # Nothing but the address differs: back to the first one gives the first texts.
    adopt.adopt(copy, "https://github.com/" + "/".join(START))
    assert texts(copy) == first


@pytest.mark.slow
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
        if path not in EXAMPLES:
            found += [f"{path}: the first address"] if "/".join(adopt.FIRST) in book[path] else []
    return found


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.slow
def test_all_of_the_book_says_the_new_address_the_folder_and_the_branch(copy):
    again = ("b", "my-book-2")
    for pair, branch in [(("me", "my-book"), adopt.MAIN), (again, "trunk"), (again, "rel/2.0")]:
        done = run(copy, "https://github.com/" + "/".join(pair), branch)
        assert done.returncode == 0 and f"branch {branch}" in done.stdout, done.stderr
        assert wrong(copy, pair, branch) == []
    assert wrong(copy, again, "rel/2.0") == []  # and without a branch, the one that _config.yml has
    run(copy, URL)
    assert wrong(copy, ("me", "my-book"), "rel/2.0") == []


@pytest.mark.slow
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
    assert wrong(copy, ("me", "my-book"), adopt.MAIN) == []
    assert "nothing to change" in run(copy, URL).stdout


@pytest.mark.slow
def test_a_branch_that_was_written_into_the_configuration_goes_everywhere(copy):
    edit(copy, "_config.yml", "  branch: main", "  branch: another")
    run(copy, URL)
    assert wrong(copy, ("me", "my-book"), "another") == []


@pytest.mark.slow
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
    # its name is a folder's too, and that of its successor may begin with it
    assert adopt.rewrite("cd me.github.io", site, book) == "cd me.github.io"
    twice = adopt.rewrite(adopt.rewrite(text, book, ("Me", "book")), site, ("Me", "book"))
    assert twice == "https://me.github.io/book/a.html github.com/Me/book.git"


def test_a_folder_may_hold_names_that_are_not_utf8(tmp_path, capsys):
    for root in (tmp_path / "plain", tmp_path / "checkout"):
        root.mkdir()
        for name in ("_config.yml", os.fsdecode(b"f\xfcr.md")):
            try:
                (root / name).write_text("repository:\n  url: https://github.com/old/book\n")
            except OSError:
                pytest.skip("this file system wants UTF-8")
        if root.name == "checkout":
            subprocess.run(["git", "init", "-q", str(root)], check=True)
        assert adopt.main(["--root", str(root), URL]) == 0
        assert "f\ufffdr.md" in capsys.readouterr().out
        assert all("me/my-book" in path.read_text() for path in root.iterdir() if path.is_file())


def test_another_repository_s_git_does_not_choose_the_branch(tmp_path, monkeypatch):
    """As in a git hook, which sets GIT_DIR."""
    for name, branch in (("own", "trunk"), ("other", "strange")):
        subprocess.run(["git", "init", "-q", "-b", branch, str(tmp_path / name)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert adopt.choose_branch(tmp_path / "own", "") == "trunk"


@pytest.mark.slow
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
    assert wrong(copy, ("me", "my-book"), adopt.MAIN)
    adopt.adopt(copy, URL)
    assert wrong(copy, ("me", "my-book"), adopt.MAIN) == []


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


@pytest.mark.slow
def test_a_clone_that_was_adopted_passes_the_quick_tests(clone):
    """Under the longest name, where lines grow, and on a branch that only the checkout knows of, if main is no more."""
    done = run(clone, "https://github.com/" + "/".join(LONG))
    assert done.returncode == 0, done.stderr
    assert wrong(clone, LONG, "trunk" if HERE == adopt.MAIN else HERE) == []
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
