"""The studies' results: made by the script that stands here, appended by several processes, never doubled."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from studies.store import RESULTS, Store, script_hash
from vitutils import results

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(path.stem for path in RESULTS.glob("*.csv"))


def test_there_are_results():
    assert "training" in STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_results_come_from_the_present_script(name):
    about = results.about(name)
    script = ROOT / about["script"]
    told = f"results/{name}.csv was made by an older {script.name}: run it again"
    assert about["script_sha256"] == script_hash(script), told
    assert about["commit"] and about["torch"] and about["device"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_study_is_there_once(name):
    study = importlib.import_module(f"studies.{name}")
    store = Store(Path(study.__file__), study.KEY)
    runs = study.runs(store) if inspect.signature(study.runs).parameters else study.runs()
    expected = [tuple(str(run[field]) for field in study.KEY) for run, *_ in runs]
    rows = [tuple(row[field] for field in study.KEY) for row in store.rows()]
    assert sorted(rows) == sorted(expected)
    assert results.about(name)["configuration"] == json.loads(json.dumps(study.configuration()))


def test_a_row_is_found_again_and_other_fields_are_refused(tmp_path):
    store = Store(Path("demo.py"), ("net", "seed"), folder=tmp_path)
    store.append({"net": "vit", "seed": 0, "accuracy": 0.5})
    assert store.has({"net": "vit", "seed": 0}) and not store.has({"net": "vit", "seed": 1})
    with pytest.raises(ValueError, match="has the fields"):
        store.append({"net": "vit", "seed": 1, "loss": 0.5})
    assert len(store.rows()) == 1


def test_two_processes_append_without_harm(tmp_path):
    code = (
        "import sys; from pathlib import Path; from studies.store import Store\n"
        f"store = Store(Path('demo.py'), ('who', 'n'), folder=Path({str(tmp_path)!r}))\n"
        "for n in range(60): store.append({'who': sys.argv[1], 'n': n})\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, who], cwd=ROOT) for who in "ab"]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    rows = Store(Path("demo.py"), ("who", "n"), folder=tmp_path).rows()
    assert len(rows) == 120
    assert {(row["who"], row["n"]) for row in rows} == {(who, str(n)) for who in "ab" for n in range(60)}


def test_missing_results_say_which_study_writes_them():
    with pytest.raises(FileNotFoundError, match=r"python -m studies\.nonesuch"):
        results.read("nonesuch")


def test_numbers_are_read_as_numbers():
    assert [results.number(text) for text in ("3", "0.25", "vit", "0.1 0.2")] == [3, 0.25, "vit", "0.1 0.2"]
