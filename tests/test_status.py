"""How long chapters take: the record, the openings made from it, and the status page of a small book."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch

import chapter_file
import chapter_times as times
import notebook_file
import notebooks
import status
import vitutils
from vitutils.data import _official, sources

ROOT = chapter_file.ROOT
RECORD = times.read(ROOT / "book" / "times.csv")
CHAPTERS = {path.stem: chapter_file.Chapter.read(path) for path in chapter_file.notebook_paths()}
WRITTEN = [name for name, chapter in CHAPTERS.items() if not chapter.draft]  # a draft need not be measured yet
ROW = {"chapter": "01_one", "scale": "cpu", "device": "cpu, 2 threads", "data": "none", "seconds": 70.0}
ROW |= {"day": "2026-01-01", "python": "3.11.7", "torch": "2.9.0", "note": "while it rained"}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_chapter_s_opening_and_budget_agree_with_the_record(name):
    title = notebook_file.text(CHAPTERS[name].cells[0]["source"])
    assert times.with_opening(title, RECORD, name) == title, f"{name}: run `python tools/notebooks.py times`"
    for scale, most in (("smoke", 20), ("cpu", 180), ("gpu", 360)):
        most *= 1.3  # the budget is a quiet machine's; the record's notes say what else ran
        row = times.longest(RECORD, name, scale)
        assert row or scale == "gpu", f"{name} was not measured at {scale} scale"
        assert not row or row["seconds"] <= most, f"{name}: {row['seconds']} s at {scale} scale, budget {most}"


def test_the_record_names_no_chapter_that_is_not_there():
    assert {row["chapter"] for row in RECORD} <= set(CHAPTERS)


def megabytes_of(name: str) -> float:
    """What a checkpoint's file takes: four bytes a parameter."""
    import timm

    with torch.device("meta"):
        net = timm.create_model(name)
    return sum(p.numel() for p in net.parameters()) * 4 / 1e6


def test_megabytes_in_the_openings_are_those_of_the_sources():
    tiny = megabytes_of("vit_tiny_patch16_224")
    large = sum(_official.OFFICIAL[name].megabytes for name in ("flowers102", "pets", "dtd", "eurosat"))
    large += sum(sources.SOURCES[name].megabytes for name in ("cifar10", "cifar100"))
    single = (sources.SOURCES["fashion_mnist"].megabytes, _official.OFFICIAL["imagenette"].megabytes)
    known = {f"{size:.0f} MB" for size in (*single, tiny, tiny + megabytes_of("resnet10t"))}
    known.add(f"{large / 1000:.1f} GB")
    for name, chapter in CHAPTERS.items():
        said = set(re.findall(r"[\d.]+ [MG]B", times.TIME.search(notebook_file.text(chapter.cells[0]["source"]))[0]))
        assert said <= known, f"{name} says {said - known}; known are {known}"
        code = "\n".join(notebook_file.text(cell["source"]) for cell in chapter.code)
        asked = r"""(?:data|pictures)\.load\w*\(\s*["']fashion_mnist|weights\.load\w*\(\W*\w*|backbone_and_photos"""
        loads = [load for load in re.findall(asked, code) if "pocket" not in load]  # which comes with the package
        assert bool(said) == bool(loads), f"{name}: downloads said: {said or 'nothing'}"


def test_the_line_that_a_chapter_prints_is_understood(capsys, monkeypatch):
    monkeypatch.setenv("VITBOOK_SCALE", "smoke")
    vitutils.setup(seed=3)
    found = times.ran("before\n" + capsys.readouterr().out + "after\n")
    assert (found["scale"], found["torch"]) == ("smoke", torch.__version__) and len(found) == 4
    line = "Python 3.12.1, torch 2.9.0+cu126, device {}, scale gpu, seed 0"
    assert times.ran(line.format("cuda (NVIDIA H100 80GB HBM3)"))["device"] == "NVIDIA H100 80GB HBM3"
    assert times.ran(line.format("cpu (1 threads)"))["device"] == "cpu, 1 thread"
    assert times.ran("nothing of the kind") is None


def test_what_a_run_is_recorded_with(tmp_path, monkeypatch):
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VITBOOK_SYSTEM_DATA", str(tmp_path / "system"))
    assert notebooks.data_held() == "none"
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "net.safetensors").touch()
    (tmp_path / "system" / "fashion-mnist").mkdir(parents=True)
    assert notebooks.data_held() == "Fashion-MNIST + ImageNet weights"


def test_minutes_and_devices_in_words():
    assert [times.minutes(seconds) for seconds in (3, 63, 64)] == ["half a minute", "1 minute", "1.5 minutes"]
    devices = {"cpu, 2 threads": "two cores", "NVIDIA H100 80GB HBM3": "an H100", "Tesla T4": "a T4"}
    assert {device: times.short_device(device) for device in devices} == devices


def test_the_record_keeps_the_last_measurement_of_each_kind(tmp_path):
    path = tmp_path / "times.csv"
    times.add(path, [ROW, ROW | {"scale": "smoke", "seconds": 5}])
    times.add(path, [ROW | {"seconds": 80.04}, ROW | {"data": "photos", "seconds": 130}])
    rows = times.read(path)
    assert [(row["scale"], row["data"], row["seconds"]) for row in rows] == [
        ("smoke", "none", 5), ("cpu", "none", 80), ("cpu", "photos", 130),
    ]  # fmt: skip
    assert times.longest(rows, "01_one", "cpu")["seconds"] == 130 and times.longest(rows, "01_one", "gpu") is None
    with pytest.raises(ValueError, match="expected"):
        times.add(path, [ROW | {"scale": "huge"}])


def test_an_opening_is_written_and_downloads_stay():
    title = "# One\n\n*You will* see.\n\n*Time:* long ago.\nDownloaded: 5 MB\nof images."
    mended = times.with_opening(title, [ROW], "01_one")
    said = "*Time.* About 1.5 minutes on two cores (cpu scale); gpu scale not measured. Downloaded: 5 MB\nof images."
    assert mended == "# One\n\n*You will* see.\n\n" + said
    with pytest.raises(ValueError, match="not measured"):
        times.with_opening(title, [ROW | {"scale": "gpu"}], "01_one")
    with pytest.raises(ValueError, match="Downloaded"):
        times.with_opening("# One\n\n*Time:* soon.", [ROW], "01_one")


# --- a small book ---

CONF = f"""\
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
project = "Small"
extensions = ["myst_nb", "status"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
exclude_patterns = ["_build", "jupyter_execute", ".*"]
suppress_warnings = ["mystnb.unknown_mime_type"]
"""
LINE = "Python 3.1, torch 0.4, device cuda (NVIDIA H100 80GB HBM3), scale gpu, seed 0"


def notebook(title: str, code: str) -> str:
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {title}"},
        {"cell_type": "code", "id": "c", "metadata": {}, "source": code, "execution_count": None, "outputs": []},
    ]
    whole = {"cells": cells, "metadata": notebook_file.NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5}
    return notebook_file.dumps(whole)


def build(root: Path) -> list[list[str]]:
    """The cells of the status page's rows, as text."""
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-n", root, root / "_build"]
    made = subprocess.run(command, capture_output=True)
    assert made.returncode == 0, made.stdout + made.stderr
    page = (root / "_build" / "book" / "status.html").read_text(encoding="utf-8")
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.S) for row in re.findall(r"<tr.*?</tr>", page, flags=re.S)]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


@pytest.mark.slow
def test_the_status_page_of_a_small_book(tmp_path):
    """One page says where it ran, one does not."""
    for name, text in {
        "conf.py": CONF,
        "index.md": "# Book\n\n```{toctree}\nnotebooks/01_one\nnotebooks/10_ten\nbook/status\n```\n",
        "book/status.md": "# Status\n\n```{nb-exec-table}\n```\n\n```{measured-times}\n```\n",
        "notebooks/01_one.ipynb": notebook("One", f'print("{LINE}")'),
        "notebooks/10_ten.ipynb": notebook("Ten", "print(1)"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    times.add(tmp_path / "book/times.csv", [ROW, ROW | {"scale": "gpu", "device": "Tesla T4", "seconds": 9.6}])
    headings, one, ten, measured, row = build(tmp_path)
    assert headings == ["page", "seconds", "executed on", "device", "scale", "Python", "torch"]
    assert one[0] == "1. One" and one[3:] == ["NVIDIA H100 80GB HBM3", "gpu", "3.1", "0.4"]
    assert re.fullmatch(r"\d+", one[1]) and re.fullmatch(r"\d{4}-\d\d-\d\d", one[2])
    assert ten[0] == "10. Ten" and ten[3:] == ["—"] * 4
    ways = ["cpu scale, two cores", "gpu scale, a T4"]
    assert measured == ["chapter", *(f"{way}, nothing downloaded" for way in ways)]
    assert row == ["1. One", "70", "10"]
    page = (tmp_path / "_build" / "book" / "status.html").read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in page and str(tmp_path) not in page


def test_the_table_of_times_says_what_each_was_measured_with():
    assert status.measured_times([]) == "No time was recorded."
    said = status.measured_times([ROW, ROW | {"chapter": "09_nine"}, ROW | {"chapter": "10_ten", "note": "at night"}])
    assert "01_one.ipynb) | 70 |" in said and "gpu scale: not measured." in said
    assert "while it rained (chapters 1, 9)." in said and "at night (chapter 10)." in said
