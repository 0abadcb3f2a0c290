"""The studies' results: made by the script that stands here, appended by several processes, never doubled."""

import importlib
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    assert [process.wait(timeout=1800) for process in both] == [0, 0]
    rows = Store(Path("demo.py"), ("who", "n"), folder=tmp_path).rows()
    assert len(rows) == 120
    assert {(row["who"], row["n"]) for row in rows} == {(who, str(n)) for who in "ab" for n in range(60)}


def test_missing_results_say_which_study_writes_them():
    with pytest.raises(FileNotFoundError, match=r"python -m studies\.nonesuch"):
        results.read("nonesuch")


def test_numbers_are_read_as_numbers():
    assert [results.number(text) for text in ("3", "0.25", "vit", "0.1 0.2")] == [3, 0.25, "vit", "0.1 0.2"]


# --- the data-scale study, at its smallest scale ---


# The study's own command, but its process is gone, without a word, once there are so many rows.
DIES = """
import os, runpy
from studies.store import Store
append = Store.append
def last(self, row):
    append(self, row)
    len(self.rows()) < {rows} or os._exit(9)
Store.append = last
runpy.run_module("studies.data_scale", run_name="__main__", alter_sys=True)
"""


def data_scale(folder: Path, *more: str, rows: int = 0) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VITBOOK_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    begin = ["-c", DIES.format(rows=rows)] if rows else ["-m", "studies.data_scale"]
    command = [sys.executable, *begin, "--scale", "smoke", "--folder", str(folder), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A study that was killed after some runs and went on as two processes: its folder, and the rows at the kill."""
    from vitutils import data

    try:
        data.load("fashion_mnist", download=False)
    except data.DataError:
        pytest.skip("Fashion-MNIST is not on this machine")
    folder = tmp_path_factory.mktemp("study")
    store = Store(ROOT / "studies/data_scale.py", importlib.import_module("studies.data_scale").KEY, folder)
    first = data_scale(folder, rows=60)
    assert first.communicate()[1] == "" and first.returncode == 9
    before = store.rows()
    both = [data_scale(folder, "--resume") for _ in range(2)]
    told = [process.communicate(timeout=1800) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    return store, before, told


def test_a_killed_study_goes_on_in_two_processes_and_repeats_nothing(killed_and_resumed):
    store, before, told = killed_and_resumed
    study = importlib.import_module("studies.data_scale")
    rows = store.rows()
    keys = [tuple(row[field] for field in store.key) for row in rows]
    expected = [tuple(str(name[field]) for field in store.key) for (name,) in study.runs(store, "smoke")]
    assert 60 == len(before) < len(rows) and rows[: len(before)] == before
    assert len(set(keys)) == len(keys) and sorted(keys) == sorted(expected)
    done = [stdout.count("scale=smoke") for stdout, _ in told]
    assert sum(done) == len(rows) - len(before)  # the slower to start may find nothing left to do
    about = json.loads(store.json.read_text())
    assert about["script_sha256"] == script_hash(store.script)
    assert about["started"] <= about["finished"] and about["wall_seconds"] >= 0


def test_a_row_of_the_study_comes_out_again(killed_and_resumed):
    store, *_ = killed_and_resumed
    study = importlib.import_module("studies.data_scale")
    names = [name for (name,) in study.runs(store, "smoke") if name["part"] == "main"]
    chosen = [names[0], next(name for name in names if name["start"] == "shapes")]
    for file in (store.folder / ".data_scale").glob("*.pt"):
        file.unlink()  # what a fine-tuned net starts from is trained again where it is gone
    before, threads = store.rows(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = [study.Study(store, "smoke").run(name) for name in chosen]
    finally:
        torch.set_num_threads(threads)
    for row in again:
        saved = next(old for old in before if all(old[field] == str(row[field]) for field in store.key))
        for field in ("accuracy", "loss", "train_accuracy", "train_loss", "share_of_commonest_answer"):
            assert float(saved[field]) == pytest.approx(row[field], abs=2e-3), field


def test_a_study_does_not_start_over_or_go_on_with_another_script(killed_and_resumed, tmp_path):
    store, *_ = killed_and_resumed
    process = data_scale(store.folder)
    assert process.wait(timeout=1800) == 2 and "--resume" in process.stderr.read()
    for file in (store.csv, store.json):
        shutil.copy(file, tmp_path)
    about = json.loads(store.json.read_text()) | {"script_sha256": "0" * 64}
    (tmp_path / "data_scale.json").write_text(json.dumps(about))
    process = data_scale(tmp_path, "--resume")
    assert process.wait(timeout=1800) == 2 and "made by an older data_scale.py" in process.stderr.read()


def test_two_processes_never_claim_the_same_run(tmp_path):
    store = Store(Path("demo.py"), ("net",), folder=tmp_path)
    code = (
        "import sys; from pathlib import Path; from studies.store import Store\n"
        f"with Store(Path('demo.py'), ('net',), folder=Path({str(tmp_path)!r})).claimed({{'net': 'vit'}}) as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout.readline() == "True\n"
    with store.claimed({"net": "vit"}) as mine, store.claimed({"net": "cnn"}) as another:
        assert not mine and another
    holder.kill()
    holder.communicate()
    with store.claimed({"net": "vit"}) as mine:
        assert mine


def test_a_claim_is_given_back_after_an_error_and_holds_against_this_process_too(tmp_path):
    stores = [Store(Path("demo.py"), ("net",), folder=tmp_path) for _ in range(2)]
    with pytest.raises(ValueError, match="of the run"), stores[0].claimed({"net": "vit"}) as mine:
        with stores[1].claimed({"net": "vit"}) as again:
            assert mine and not again
        raise ValueError("of the run")
    with stores[1].claimed({"net": "vit"}) as mine:
        assert mine


def test_the_store_needs_nothing_that_one_system_alone_has(tmp_path, monkeypatch):
    """Windows has no fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("elsewhere", ROOT / "studies/store.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- make results ---


def test_make_results_tells_fresh_from_stale(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("results_script", ROOT / "scripts/results.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for folder in ("studies", "results"):
        (tmp_path / folder).mkdir()
    for name in ("good", "changed", "begun", "lost", "never"):
        (tmp_path / f"studies/{name}.py").write_text(f'"""{name}"""\nKEY = ("seed",)\n')
    (tmp_path / "studies/store.py").write_text("no study\n")
    for name in ("good", "changed", "begun", "lost", "stray"):
        (tmp_path / f"results/{name}.csv").write_text("seed,accuracy\n0,0.5\n1,0.6\n")
    for name in ("good", "changed", "begun"):
        about = {"script_sha256": script_hash(tmp_path / f"studies/{name}.py"), "finished": "2026-11-22T16:40:58+00:00"}
        if name == "begun":
            about["finished"] = None
        (tmp_path / f"results/{name}.json").write_text(json.dumps(about))
    (tmp_path / "studies/changed.py").write_text('"""changed"""\nKEY = ("seed",)\nRATE = 1\n')
    assert script.main(tmp_path) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert sorted(lines) == ["begun", "changed", "good", "lost", "never", "stray"]
    assert lines["good"].endswith("2 rows  2026-11-22  fresh")
    told = {"changed": "stale", "begun": "not at its end", "lost": "does not say", "never": "never run"}
    for name, what in told.items():
        assert what in lines[name] and f"python -m studies.{name}" in lines[name]
    assert "without a studies/stray.py" in lines["stray"]
    for name in ("changed", "begun", "lost", "stray"):
        (tmp_path / f"results/{name}.csv").unlink()
        (tmp_path / f"studies/{name}.py").unlink(missing_ok=True)
    (tmp_path / "studies/never.py").unlink()
    assert script.main(tmp_path) == 0


# --- rows that were trained at the rate their own search chose ---


def test_the_main_runs_took_the_rate_that_the_search_chose():
    for name in ("library", "transfer"):
        study = importlib.import_module(f"studies.{name}")
        store = Store(Path(study.__file__), study.KEY)
        chosen = {net: study.best_rate(store, net) for net in study.NETS}
        taken = {(row["net"], float(row["lr"])) for row in store.rows() if row["part"] == "main"}
        assert taken == set(chosen.items()), name
    pocket = importlib.import_module("studies.pocket")
    store = Store(Path(pocket.__file__), pocket.KEY)
    for row in store.rows():
        recipe, shift = pocket.recipe_of(store, row)
        assert (recipe.lr, shift) == (float(row["lr"]), int(row["shift"])), row["variant"]
        assert (recipe.epochs, recipe.batch_size) == (int(row["epochs"]), int(row["batch_size"])), row["variant"]


def test_the_second_rate_of_chapter_9_did_as_well_in_the_search():
    transfer = importlib.import_module("studies.transfer")
    store = Store(Path(transfer.__file__), transfer.KEY)
    for net, rate in transfer.TIED.items():
        found = {float(r["lr"]): r["accuracy"] for r in store.rows() if (r["part"], r["net"]) == ("search", net)}
        assert rate != transfer.best_rate(store, net) and found[rate] == max(found.values())
        assert {float(r["lr"]) for r in store.rows() if r["part"] == "tied"} == {rate}
