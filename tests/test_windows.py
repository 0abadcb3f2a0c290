"""What Windows does otherwise, tried by calls: names of files, drive letters, lists of folders, zips from there."""

import ntpath
import os
import re
import subprocess
import types
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import env
import running
from vitutils import data
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
    assert [str(folder) for folder in running.data_folders()] == expected


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
