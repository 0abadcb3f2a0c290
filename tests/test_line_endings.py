"""Windows' line ends: a checkout has LF everywhere, and where an editor has put CRLF nothing is read or judged anew."""

import shutil
import subprocess
from pathlib import Path

import pytest

import book
import notebook_rules as rules
import solutions
from studies import record, stamp
from vitutils import results

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("_config.yml", "_toc.yml", "README.md", "studies/*.py", "results/*", "book/**/*.md", "book/references.bib")
KEPT += ("book/papers/*.csv", "vitutils/**/*.py", "notebooks/*.ipynb")


@pytest.fixture
def windows(tmp_path) -> Path:
    """The book's texts as an editor on Windows leaves them: every line ends with CRLF."""
    for path in (path for pattern in KEPT for path in ROOT.glob(pattern) if path.is_file()):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="not a checkout")
def test_git_gives_lf_on_windows_too():
    listed = subprocess.run(["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        about, _, name = line.partition("\t")
        data = name.startswith("results/") and name.endswith(".csv")  # which ends with CRLF everywhere
        assert about.startswith("i/-text") or ("-text" if data else "eol=lf") in about, line


def test_nothing_is_read_or_judged_anew_for_its_line_ends(windows, monkeypatch):
    kept = [path.relative_to(windows) for path in book.files_under(windows, "vitutils", "results", "book/papers")]
    assert len({book.digest_files(root, [root / path for path in kept]) for root in (windows, ROOT)}) == 1
    here = {name: stamp.code_of(name) for name in record.names()}
    monkeypatch.setattr(stamp, "FOLDER", windows / "studies")
    assert {name: stamp.code_of(name) for name in here} == here and here
    for path in [*sorted(ROOT.glob("results/*.csv"))[:2], *sorted(ROOT.glob("book/papers/*.csv"))[:1]]:
        assert str(results.read_rows(windows / path.relative_to(ROOT))) == str(results.read_rows(path))
    path = rules.notebook_paths()[3]
    assert rules.check(windows / path.relative_to(ROOT), windows) == {}
    page = sorted(solutions.PAGES.glob("*.md"))[0]
    read, there = solutions.read(page), solutions.read(windows / page.relative_to(ROOT))
    assert (read.setup, read.solutions) == (there.setup, there.solutions)
