"""How long chapters take: the record, the openings made from it, and the status page of a small book."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
import chapter_times as times
import notebook_rules as rules
import status

import notebooks as command
import vitutils
from vitutils.data import official, sources

ROOT = rules.ROOT
RECORD = times.read(ROOT / "book" / "times.csv")
CHAPTERS = {path.stem: rules.Chapter.read(path) for path in rules.notebook_paths()}
WRITTEN = [name for name, chapter in CHAPTERS.items() if not chapter.draft]  # a draft need not be measured yet
ROW = {"chapter": "01_one", "scale": "cpu", "device": "cpu, 2 threads", "data": "none", "seconds": 70.0}
ROW |= {"day": "2026-01-01", "python": "3.11.7", "torch": "2.9.0", "note": "while it rained"}


def time_paragraph(chapter: rules.Chapter) -> str:
    return times.TIME.search(rules.text(chapter.cells[0]["source"]))[0]


# --- the book's own record and openings ---


@pytest.mark.parametrize("name", WRITTEN)
def test_an_opening_says_what_the_record_says(name):
    title = rules.text(CHAPTERS[name].cells[0]["source"])
    told = f"{name}: run `python scripts/times.py openings`"
    assert times.with_opening(title, RECORD, name) == title, told


@pytest.mark.parametrize("name", WRITTEN)
def test_every_chapter_was_measured_at_smoke_and_cpu_scale_within_its_budget(name):
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
    sets = ("flowers102", "pets", "dtd", "eurosat")
    large = sum(official.OFFICIAL[name].megabytes for name in sets)
    large += sum(sources.SOURCES[name].megabytes for name in ("cifar10", "cifar100"))
    known = {
        f"{sources.SOURCES['fashion_mnist'].megabytes} MB",
        f"{official.OFFICIAL['imagenette'].megabytes} MB",
        f"{tiny:.0f} MB",
        f"{tiny + megabytes_of('resnet10t'):.0f} MB",
        f"{large / 1000:.1f} GB",
    }
    for name, chapter in CHAPTERS.items():
        said = set(re.findall(r"[\d.]+ [MG]B", time_paragraph(chapter)))
        assert said <= known, f"{name} says {said - known}; known are {known}"
        code = "\n".join(rules.text(cell["source"]) for cell in chapter.code)
        loads = re.search(r"""(data|pictures)\.load\w*\(\s*["']fashion_mnist|weights\.load""", code)
        assert bool(said) == bool(loads and "pocket" not in loads[0]), f"{name}: downloads said: {said or 'nothing'}"


# --- the functions ---


def test_the_line_that_a_chapter_prints_is_understood(capsys, monkeypatch):
    monkeypatch.setenv("VITBOOK_SCALE", "smoke")
    vitutils.setup(seed=3)
    found = times.ran("before\n" + capsys.readouterr().out + "after\n")
    assert found["scale"] == "smoke" and found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        count = torch.get_num_threads()
        assert found["device"] == f"cpu, {count} thread" + "s" * (count > 1)
    line = "Python 3.12.1, torch 2.9.0+cu126, device cuda (NVIDIA H100 80GB HBM3), scale gpu, seed 0"
    assert times.ran(line)["device"] == "NVIDIA H100 80GB HBM3"
    assert times.ran("nothing of the kind") is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "half a minute"), (32, "half a minute"), (34, "1 minute"), (63, "1 minute"), (64, "1.5 minutes")]
    + [(91, "1.5 minutes"), (120, "2 minutes"), (170, "3 minutes")],
)
def test_minutes(seconds, said):
    assert times.minutes(seconds) == said


def test_devices_in_words():
    assert times.short_device("cpu, 2 threads") == "two cores"
    assert times.short_device("cpu, 1 thread") == "one core"
    assert times.short_device("NVIDIA H100 80GB HBM3") == "an H100"
    assert times.short_device("Tesla T4") == "a T4"
    assert times.short_device("mps, 8 threads") == "mps, 8 threads"


def test_the_record_keeps_the_last_measurement_of_each_kind(tmp_path):
    path = tmp_path / "times.csv"
    times.add(path, [ROW, ROW | {"scale": "smoke", "seconds": 5}])
    times.add(path, [ROW | {"seconds": 80.04}, ROW | {"data": "photos", "seconds": 130}])
    rows = times.read(path)
    assert [(row["scale"], row["data"], row["seconds"]) for row in rows] == [
        ("smoke", "none", 5), ("cpu", "none", 80), ("cpu", "photos", 130),
    ]  # fmt: skip
    assert times.longest(rows, "01_one", "cpu")["seconds"] == 130
    assert times.longest(rows, "01_one", "gpu") is None
    before = path.read_bytes()
    for bad in ({"scale": "huge"}, {"seconds": "soon"}, {"seconds": -1}):
        with pytest.raises(ValueError, match="expected"):
            times.add(path, [ROW | bad])
    assert path.read_bytes() == before


def test_an_opening_is_written_and_downloads_stay():
    title = "# One\n\n*You will* see.\n\n*Time:* long ago.\nDownloaded: 5 MB\nof images."
    mended = times.with_opening(title, [ROW], "01_one")
    said = "*Time.* About 1.5 minutes on two cores (cpu scale); gpu scale not measured. Downloaded: 5 MB\nof images."
    assert mended == "# One\n\n*You will* see.\n\n" + said
    gpu = ROW | {"scale": "gpu", "device": "NVIDIA H100 80GB HBM3", "seconds": 20}
    mended = times.with_opening(mended, [ROW, gpu], "01_one")
    assert "on two cores (cpu scale), half a minute on an H100 (gpu scale). Downloaded: 5 MB" in mended
    assert times.with_opening(mended, [ROW, gpu], "01_one") == mended
    with pytest.raises(ValueError, match="not measured"):
        times.with_opening(title, [gpu], "01_one")
    with pytest.raises(ValueError, match="Downloaded"):
        times.with_opening("# One\n\n*Time:* soon.\n\nDownloaded: 5 MB", [ROW], "01_one")


def test_data_held(tmp_path):
    environment = {"VITBOOK_DATA": str(tmp_path / "data"), "VITBOOK_SYSTEM_DATA": str(tmp_path / "system")}
    assert command.data_held(environment) == "none"
    (tmp_path / "data/weights").mkdir(parents=True)
    (tmp_path / "data/weights/net.safetensors").touch()
    (tmp_path / "system/fashion-mnist").mkdir(parents=True)
    assert command.data_held(environment) == "Fashion-MNIST + ImageNet weights"


# --- a small book ---

CONF = """\
import sys
sys.path.insert(0, {extensions!r})
project = "Small"
extensions = ["myst_nb", "status"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
exclude_patterns = ["_build", "jupyter_execute", ".*"]
suppress_warnings = ["mystnb.unknown_mime_type"]
"""
LINE = "Python {}, torch {}, device cuda (NVIDIA H100 80GB HBM3), scale gpu, seed 0"
STATUS = "# Status\n\n```{nb-exec-table}\n```\n\n```{measured-times}\n```\n"


def notebook(title: str, code: str) -> str:
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {title}"},
        {"cell_type": "code", "id": "c", "metadata": {}, "source": code, "execution_count": None, "outputs": []},
    ]
    return rules.dumps({"cells": cells, "metadata": rules.NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5})


def build(root: Path) -> list[list[str]]:
    """Build what changed; the cells of the status page's rows, as text."""
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-n", str(root), str(root / "_build")],
        capture_output=True, text=True, timeout=1800, env=os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"},
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    page = (root / "_build" / "book" / "status.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr.*?</tr>", page, flags=re.S)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.S) for row in rows]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


@pytest.fixture
def small(tmp_path):
    here = ".".join(map(str, sys.version_info[:3]))
    (tmp_path / "conf.py").write_text(CONF.format(extensions=str(ROOT / "book" / "_ext")))
    for name, text in {
        "index.md": "# Book\n\n```{toctree}\nnotebooks/01_one\nnotebooks/10_ten\nbook/status\n```\n",
        "book/status.md": STATUS,
        "notebooks/01_one.ipynb": notebook("One", f'print("{LINE.format(here, torch.__version__)}")'),
        "notebooks/10_ten.ipynb": notebook("Ten", "print(1)"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.slow
def test_the_status_page_of_a_small_book(small):
    """One page says where it ran, one does not; then one is executed anew, the other comes from the cache."""
    times.add(small / "book/times.csv", [ROW, ROW | {"scale": "gpu", "device": "Tesla T4", "seconds": 9.6}])
    headings, one, ten, measured, row = build(small)
    assert headings == ["page", "seconds", "executed on", "device", "scale", "Python", "torch"]
    where = ["NVIDIA H100 80GB HBM3", "gpu", sys.version.split()[0], torch.__version__]
    assert one[0] == "1. One" and one[3:] == where
    assert re.fullmatch(r"\d+", one[1]) and re.fullmatch(r"\d{4}-\d\d-\d\d", one[2])
    assert ten[0] == "10. Ten" and ten[3:] == ["—"] * 4
    ways = ["cpu scale, two cores", "gpu scale, a T4"]
    assert measured == ["chapter", *(f"{way}, nothing downloaded" for way in ways)]
    assert row == ["1. One", "70", "10"]
    page = small / "_build" / "book" / "status.html"
    assert "Executed in another environment" not in page.read_text() and str(small) not in page.read_text()

    (small / "notebooks/10_ten.ipynb").write_text(notebook("Ten", f'print("{LINE.format("3.1", "0.4")}")'))
    times.add(small / "book/times.csv", [ROW | {"seconds": 71.2}])
    _, again, ten, _, row = build(small)
    assert again == one and ten[3:] == ["NVIDIA H100 80GB HBM3", "gpu", "3.1", "0.4"]
    assert "Executed in another environment: 10." in page.read_text() and row == ["1. One", "71", "10"]


def test_without_a_gpu_or_any_record_the_page_says_so():
    assert status.measured_times([]) == "No time was recorded."
    said = status.measured_times([times.checked(ROW | {"seconds": "70"}, "row")])
    assert "01_one.ipynb) | 70 |" in said and "while it rained." in said and "gpu scale: not measured." in said


def test_a_note_that_few_rows_have_says_which():
    odd = {"chapter": "09_nine", "note": "while it rained; at night"}
    rows = [ROW, ROW | {"chapter": "02_two"}, ROW | odd, ROW | {"note": ""}]
    assert status.notes(rows) == ["while it rained; chapter 9: at night"]
    assert status.notes([ROW | {"note": ""}]) == [""]


def test_scripts_times_takes_in_what_was_measured_elsewhere(tmp_path, monkeypatch, capsys):
    import times as script

    monkeypatch.setattr(script, "RECORD", tmp_path / "times.csv")
    row = {"chapter": "01_one", "scale": "gpu", "device": "Tesla T4", "seconds": 9, "date": "2026-02-03", "timm": "1"}
    (tmp_path / "new.json").write_text(json.dumps([row]))
    assert script.main(["add", str(tmp_path / "new.json")]) == 0
    assert [row["day"] for row in times.read(tmp_path / "times.csv")] == ["2026-02-03"]
    (tmp_path / "new.json").write_text(json.dumps([{"chapter": "01_one"}]))
    assert script.main(["add", str(tmp_path / "new.json")]) == 1
    assert "expected a scale" in capsys.readouterr().err
