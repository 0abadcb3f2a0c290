"""What Windows does otherwise, tried by calls: names of files, drive letters, lists of folders, zips, line ends."""

import ntpath
import os
import re
import subprocess
import types
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import book
import chapter_file
import env
import notebook_rules as rules
import solutions
from studies import record, stamp
from vitutils import data, results
from vitutils.files import data_folders

ROOT = Path(__file__).resolve().parent.parent
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", flags=re.I)
ODD = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]$')


def faults(names: list[str]) -> list[str]:
    """Names that a checkout on Windows refuses, cuts or takes for one another."""
    seen, wrong = {}, []
    for name in names:
        odd = any(RESERVED.fullmatch(part) or ODD.search(part) for part in name.split("/"))
        if odd or len(name) > 150 or seen.setdefault(name.lower(), name) != name:
            wrong.append(name)
    return wrong


def test_every_file_of_the_book_can_be_checked_out():
    wrong = ["aux.py", "a/con", "b.", "c ", "d:e", "what?", "f\\g", "x" * 151, "Same"]
    assert faults(["same", "console.py", *wrong]) == wrong
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert faults(listed.stdout.strip("\0").split("\0")) == []


def test_drive_letters_are_no_separators_in_a_list_of_folders(monkeypatch):
    monkeypatch.setattr(os, "pathsep", ";")
    monkeypatch.setenv("VITBOOK_DATA", r"C:\data;D:\more data;")
    expected = [r"C:\data", r"D:\more data"]
    assert [str(folder) for folder in data_folders()] == expected


def test_folders_are_made_whole_by_the_rules_of_windows(monkeypatch):
    monkeypatch.setenv("USERPROFILE", r"C:\Users\me")
    monkeypatch.setattr(env, "os", types.SimpleNamespace(path=ntpath, pathsep=";", name="nt", devnull="nul"))
    given = {"VITBOOK_DATA": r"C:\data;~\more;D:/other;\\server\share", "HF_HOME": "~/hf"}
    found = env.surroundings(given)
    assert found["VITBOOK_DATA"] == r"C:\data;C:\Users\me\more;D:\other;\\server\share"
    assert found["HF_HOME"] == r"C:\Users\me\hf"


@pytest.mark.parametrize("top", ["C:\\Users\\me\\", "..\\..\\", "\\\\server\\share\\", "pets\\"])
def test_a_zip_packed_on_windows_is_read_and_nothing_is_unpacked(tmp_path, monkeypatch, top):
    """Also with classes that no file on Windows may be called like."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path))
    (tmp_path / "images").mkdir()
    with zipfile.ZipFile(tmp_path / "images" / "own.zip", "w") as file:
        for name in ("aux", "con"):
            for n in range(3):
                info = zipfile.ZipInfo("entry")
                info.filename = f"{top}{name}\\{n}.png"  # the constructor would turn the backslashes
                with file.open(info, "w") as entry:
                    Image.new("RGB", (4, 4)).save(entry, "PNG")
    own = data.load_image_set("own")
    assert own.classes == ("aux", "con") and own.train[0][0].size == (4, 4)
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "own.zip"]


# --- line ends ---

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
def test_git_gives_lf_on_windows_too():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
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
    path = chapter_file.notebook_paths()[3]
    assert rules.check(windows / path.relative_to(ROOT), windows) == {}
    page = sorted(solutions.PAGES.glob("*.md"))[0]
    read, there = solutions.read(page), solutions.read(windows / page.relative_to(ROOT))
    assert (read.setup, read.solutions) == (there.setup, there.solutions)
