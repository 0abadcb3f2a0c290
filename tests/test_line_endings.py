"""Windows' line ends: a checkout has LF everywhere, and where an editor has put CRLF nothing is read or judged anew."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from studies import record, stamp
from vitutils import results

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import notebook_rules as rules
import solutions

import book

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("_config.yml", "_toc.yml", "README.md", "studies/*.py", "results/*", "book/**/*.md", "book/references.bib")
KEPT += ("book/papers/*.csv", "vitutils/**/*.py", "notebooks/*.ipynb")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Path:
    """The book's texts as an editor on Windows leaves them: every line ends with CRLF."""
    root = tmp_path_factory.mktemp("windows")
    for path in (path for pattern in KEPT for path in ROOT.glob(pattern) if path.is_file()):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return root


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="not a checkout")
def test_git_gives_lf_on_windows_too(tmp_path):
    """A clone with the settings of Git for Windows, of what is committed, with the attributes as they stand here."""
    git("-c", "core.autocrlf=true", "clone", "-q", "--no-checkout", str(ROOT), str(tmp_path / "clone"))
    (tmp_path / "clone/.git/info/attributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    git("-C", str(tmp_path / "clone"), "-c", "core.autocrlf=true", "checkout", "-q", "HEAD", "--", ".")
    wrong = []
    for line in git("-C", str(tmp_path / "clone"), "ls-files", "--eol").splitlines():
        about, _, name = line.partition("\t")
        stored, here = (word.partition("/")[2] for word in about.split()[:2])
        text = not name.startswith("results/") or not name.endswith(".csv")  # which csv ends with CRLF everywhere
        if stored != here or text and here not in ("lf", "-text", "none"):
            wrong.append(line)
    assert not wrong, "\n".join(wrong)


def test_a_study_is_not_stale_for_its_line_ends(windows, monkeypatch):
    here = {name: stamp.code_of(name) for name in record.names()}
    monkeypatch.setattr(stamp, "FOLDER", windows / "studies")
    assert b"\r\n" in (windows / "studies/training.py").read_bytes()
    assert {name: stamp.code_of(name) for name in here} == here and here


def test_the_build_executes_nothing_anew_for_line_ends(windows):
    names = ("vitutils", "results", "book/papers")
    kept = [path.relative_to(windows) for path in book.files_under(windows, *names)]
    digests = {book.digest_files(root, [root / path for path in kept]) for root in (windows, ROOT)}
    assert len(digests) == 1


def test_rows_notebooks_and_pages_are_read_the_same(windows):
    for path in sorted((ROOT / "results").glob("*.csv")) + sorted((ROOT / "book/papers").glob("*.csv")):
        assert str(results.read_rows(windows / path.relative_to(ROOT))) == str(results.read_rows(path))
    for path in rules.notebook_paths()[3:5]:
        assert rules.check(windows / path.relative_to(ROOT), windows) == {}
    for page in solutions.PAGES.glob("*.md"):
        read, there = solutions.read(page), solutions.read(windows / page.relative_to(ROOT))
        assert (read.setup, read.solutions) == (there.setup, there.solutions)
