"""The studies: results of what stands here, a row of each again, runs shared out, killed, resumed and never doubled."""

import importlib.util
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from torch import nn

from studies import harness, record, stamp
from studies.store import RESULTS, Store
from vitutils import results
from vitutils.models import vit

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(path.stem for path in RESULTS.glob("*.csv"))


def test_there_are_results():
    assert STUDIES == record.names()


# --- results of what stands here ---


@pytest.mark.parametrize("name", STUDIES)
def test_results_come_from_the_present_study(name):
    study = record.load(name)
    told = record.state(study, record.store_of(study))[1]  # of its code, configuration, and every run
    assert told == "fresh" or hasattr(study, "partial") and told.startswith("partial, ")
    about = results.about(name)
    assert about["script"] == f"studies/{name}.py" and about["commit"] and about["torch"] and about["device"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_study_is_there_once(name):
    study = record.load(name)
    store = record.store_of(study)
    rows = [tuple(row[field] for field in study.KEY) for row in store.rows()]
    expected = [tuple(str(run[field]) for field in study.KEY) for run in study.runs(store) if run]
    if hasattr(study, "partial"):
        expected = [run for run in expected if run in rows]
    assert sorted(rows) == sorted(expected)


QUICK = ("blocks", "throughput", "training", "transfer")  # seconds each; the others in `make test-all`


def slow_but(names: list[str], quick: tuple[str, ...]) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in names]


@pytest.mark.parametrize("name", slow_but(STUDIES, QUICK))
def test_a_small_row_of_a_study_comes_out_again(name):
    study = record.load(name)
    assert record.replayed(study, record.store_of(study))[1] == []


SEE_POSITIONS = ["transfer", "training", "library", "data_scale", "distillation", "convolution"]


@pytest.mark.parametrize("name", slow_but(SEE_POSITIONS, ("transfer",)))
def test_a_row_is_another_where_positions_start_otherwise(name, monkeypatch):
    """Another line in vitutils, which no study's code shows: the first weights of `pos_embed`."""

    def init(module: vit.ViT, *arguments, **how):
        real(module, *arguments, **how)
        nn.init.trunc_normal_(module.pos_embed, std=0.5)

    real = vit.ViT.__init__
    monkeypatch.setattr(vit.ViT, "__init__", init)
    study = record.load(name)
    moved = record.replayed(study, record.store_of(study))[1]
    assert any("loss" in line for line in moved)


# --- what is part of the stamp, and what is not ---

TOY = '''"""A study for a test."""

import math
from studies.bits import RATES, scaled as enlarged

KEY = ("part", "lr", "seed")
SEEDS = (0, 1)  # two
UNUSED = 1


def configuration():
    return {"seeds": SEEDS}


def runs(store):
    """All of them."""
    for lr in RATES:
        for seed in SEEDS:
            yield {"part": "main", "lr": lr, "seed": seed}


def run(store, name: dict) -> dict:
    value = enlarged(name["lr"]) + math.sqrt(name["seed"])
    return name | {"value": value, "seconds": 0.1}


def replay(store):
    return run(store, next(runs(store)))


if __name__ == "__main__":
    print("no part of it")
'''
BITS = '"""Shared."""\nRATES = (0.1, 0.2)\n\n\ndef scaled(x):\n    return 2 * x\n\n\ndef other():\n    return 1\n'


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A function that writes a study of two modules (each text changed as asked), and gives it and its store."""
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "studies" / "store.py", tmp_path)
    monkeypatch.setattr(stamp, "FOLDER", tmp_path)

    def write(*changes: tuple[str, str]):
        texts = {"toy": TOY, "bits": BITS}
        for before, after in changes:
            assert any(before in text for text in texts.values())
            texts = {name: text.replace(before, after) for name, text in texts.items()}
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
            spec = importlib.util.spec_from_file_location(f"studies.{name}", tmp_path / f"{name}.py")
            monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
        for name in ("bits", "toy"):
            module = sys.modules[f"studies.{name}"]
            module.__spec__.loader.exec_module(module)
        return module, record.store_of(module, tmp_path / "results")

    return write


MOVED = {
    "a seed": [("SEEDS = (0, 1)", "SEEDS = (0, 2)")],
    "a rate in shared code": [("RATES = (0.1, 0.2)", "RATES = (0.1, 0.3)")],
    "shared code": [("return 2 * x", "return 3 * x")],
    "the run": [("math.sqrt", "math.exp")],
    "another function under the same name": [("scaled as enlarged", "other as enlarged")],
    "a value changed after it was made": [("UNUSED = 1", 'UNUSED = 1\nKEY += ("more",)')],
    "a statement with an effect": [("UNUSED = 1", "UNUSED = 1\nprint(end='')")],
    "an effect in shared code": [("def other", "print(end='')\n\n\ndef other")],
}
UNMOVED = {
    "a docstring": [('"""All of them."""', '"""Every one of them."""'), ('"""A study for a test."""', '"""Toy."""')],
    "no docstring": [('    """All of them."""\n', "")],
    "a comment and layout": [("# two", "# seeds"), ("(0, 1)", "(\n    0,\n    1,\n)"), ("0.1, 0.2", "1e-1, 2e-1")],
    "the order of imports": [("import math\n", ""), ("as enlarged\n", "as enlarged\nimport math\n")],
    "the name that an import is given": [("scaled as enlarged", "scaled"), ("enlarged(", "scaled(")],
    "the way of an import": [
        ("import math\n", "import math\nfrom studies import bits\n"),
        ("import RATES,", "import"),
        ("in RATES", "in bits.RATES"),
    ],
    "type hints of a function": [("name: dict) -> dict", "name)")],
    "the command line": [('print("no part of it")', 'print("nor this")')],
    "what no run reaches": [("UNUSED = 1", "UNUSED = 2"), ("    return 1\n", "    return 2\n")],
    "line ends": [("\n", "\r\n")],
}


@pytest.mark.parametrize("change", MOVED)
def test_another_study_has_another_stamp(toy, change):
    before = record.made_by(toy()[0])
    assert record.changes(toy(*MOVED[change])[0], before)


@pytest.mark.parametrize("change", UNMOVED)
def test_a_study_that_is_written_otherwise_has_the_same_stamp(toy, change):
    before = record.made_by(toy()[0])
    assert record.changes(toy(*UNMOVED[change])[0], before) == []


def test_code_may_move_to_a_shared_module(toy):
    before = record.made_by(toy()[0])
    function = "def run(" + TOY.partition("def run(")[2].partition("\n\n\n")[0] + "\n"
    moved = toy(
        (function, ""),
        ("import RATES, scaled as enlarged", "import RATES, run"),
        ('"""Shared."""\n', '"""Shared."""\nimport math\n\n\n' + function.replace("enlarged", "scaled")),
    )
    assert record.changes(moved[0], before) == []


def test_a_configuration_that_vitutils_changed_is_told(toy):
    study, store = toy()
    about = record.made_by(study)
    study.configuration = lambda: {"seeds": (0, 1), "width": 3}
    assert record.changes(study, about) == ["configuration"]


# --- a study at work ---


def complete(study, store):
    harness.carry_out(study, store, 1, [])
    return store


def test_a_study_runs_to_its_end_and_once(toy, capsys):
    study, store = toy()
    store = complete(study, store)
    about = store.about()
    assert len(store.rows()) == 4 and about["finished"] and about["seconds_of_training"] == 0
    assert record.state(study, store)[1] == "fresh" and record.replayed(study, store)[1] == []
    complete(study, store)
    assert store.about() == about and len(store.rows()) == 4
    assert "4 rows, nothing is missing" in capsys.readouterr().out


def test_a_study_goes_on_where_it_was_but_not_with_other_code(toy, monkeypatch):
    monkeypatch.setattr(record, "names", lambda: ["toy"])
    study, store = toy()
    complete(study, store)
    store.csv.write_text("".join(store.csv.read_text().splitlines(keepends=True)[:3]))
    assert "2 runs are left" in record.state(study, store)[1]
    partial, store = toy(("UNUSED = 1", 'UNUSED = 1\npartial = "it takes hours"'))
    assert record.state(partial, store)[1] == "partial, 2 runs are left: python -m studies toy"
    assert record.show([partial], store.folder) == 0 and record.show([study], store.folder) == 1
    other, store = toy(("math.sqrt", "math.exp"))
    assert "changed since: run." in record.state(other, store)[1]
    with pytest.raises(SystemExit, match=r"changed since: run\. To run it again, delete toy.csv and toy.json"):
        complete(other, store)
    assert len(store.rows()) == 2
    study, store = toy()
    assert len(complete(study, store).rows()) == 4


def test_a_run_waits_for_what_it_needs_and_a_study_that_waits_for_nothing_ends(toy):
    study, store = toy(
        ("from studies.bits", "from studies.store import NotYet\nfrom studies.bits"),
        ("    value", '    if name["lr"] == 0.1 and len(store.rows()) < 2:\n        raise NotYet\n    value'),
    )
    assert [row["lr"] for row in complete(study, store).rows()] == ["0.2", "0.2", "0.1", "0.1"]
    study, store = toy(
        ("from studies.bits", "from studies.store import NotYet\nfrom studies.bits"),
        ("    value", '    if name["lr"] == 0.1:\n        raise NotYet("a teacher")\n    value'),
    )
    for file in (store.csv, store.json):
        file.unlink()
    with pytest.raises(SystemExit, match="2 runs are left, and wait for a teacher"):
        complete(study, store)


# --- predictions ---

SURE = 'UNUSED = 1\npredicted = {"value at 0.1": {"expected": 0.2, "reason": "twice the rate"}}\n'


def test_predictions_are_kept_and_may_not_change_once_there_are_rows(toy):
    study, store = toy(("UNUSED = 1\n", SURE))
    assert complete(study, store).about()["predicted"] == study.predicted
    later, store = toy(("UNUSED = 1\n", SURE.replace("0.2,", "0.3,")))
    assert record.changes(later, store.about()) == ["predicted"]
    without, store = toy()
    assert record.changes(without, store.about()) == ["predicted"]
    with pytest.raises(SystemExit, match="stays as it is"):
        record.restamp(later, store, "predicted: I know better now")
    assert store.about()["predicted"] == study.predicted


@pytest.mark.parametrize("row", ['{"expected": "more", "reason": "so"}', '{"expected": 1}', '{"reason": "so"}'])
def test_a_prediction_has_a_number_and_a_reason(toy, row):
    study, store = toy(("UNUSED = 1\n", f'UNUSED = 1\npredicted = {{"value": {row}}}\n'))
    with pytest.raises(SystemExit, match="predicted 'value' needs"):
        complete(study, store)
    assert not store.json.exists() and not store.csv.exists()


# --- other code, the same results ---

RENAMED = [("SEEDS", "TWO_SEEDS")]


def test_a_rename_is_stamped_by_naming_it(toy):
    study, store = toy()
    complete(study, store)
    before = store.csv.read_bytes()
    renamed, store = toy(*RENAMED)
    with pytest.raises(SystemExit, match="Changed: SEEDS, TWO_SEEDS, configuration, runs"):
        record.restamp(renamed, store, "SEEDS: another name")
    assert "stale" in record.state(renamed, store)[1]
    record.restamp(renamed, store, "SEEDS is TWO_SEEDS now, in configuration and runs")
    assert record.state(renamed, store)[1] == "fresh" and store.csv.read_bytes() == before
    note = store.about()["restamped"][-1]
    assert "TWO_SEEDS" in note["changed"] and note["reason"].startswith("SEEDS is TWO_SEEDS")


def test_a_replayed_row_of_the_table_that_moved_is_not_stamped(toy):
    study, store = toy()
    complete(study, store)
    about = store.about()
    moved, store = toy(("return 2 * x", "return 3 * x"))
    with pytest.raises(SystemExit, match=r"replay: value is 0\.3\d* instead of 0\.2"):
        record.restamp(moved, store, "scaled: nothing; replay: nothing")
    assert store.about() == about


def test_a_miniature_is_recorded_and_told_when_it_moves(toy):
    mini = ("return run(store, next(runs(store)))", 'return {"value": enlarged(1.5), "count": 3}')
    study, store = toy(mini)
    complete(study, store)
    assert record.replayed(study, store)[1] == ["no row of it is recorded"]
    with pytest.raises(SystemExit, match="name also: replay"):
        record.restamp(study, store, "")
    record.restamp(study, store, "replay: the first")
    assert store.about()["replay"] == {"value": 3.0, "count": 3} and record.replayed(study, store)[1] == []
    about = store.about()
    record.restamp(study, store, "")
    assert store.about() == about  # nothing has changed
    other, store = toy(mini, ("return 2 * x", "return 2.1 * x"))
    assert record.replayed(other, store)[1] == ["value is 3.1500000000000004 instead of 3.0"]


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [(0.5, "0.505", True), (0.5, "0.52", False), (1000.0, "1005.0", True), (36180, "36181", False), (7, "7", True),
     ("8:0.9000 16:0.500", "8:0.9010 16:0.500", True), ("8:0.9 16:0.5", "8:0.9", False), ("0.1 0.2", "0.1 0.9", False),
     (float("nan"), "nan", True), ("", "", True), ("vit", "cnn", False), ("lr 0.1", "lr 0.1", True),
     (0.5, "nan", False)],
)
def test_numbers_may_differ_by_the_tolerance_and_nothing_else(got, wanted, same):
    assert (record.differences({"x": got, "seconds": 1}, {"x": wanted, "seconds": 9}, 0.01) == []) == same
    assert record.differences({"accuracy": 0.5}, {"accuracy": "0.55"}, 0.01) == []
    assert record.differences({"x": got}, {"y": wanted}, 0.01)


# --- rows on disk ---


def test_a_row_is_found_again_and_other_fields_are_refused(tmp_path):
    store = Store("demo", ("net", "seed"), folder=tmp_path)
    store.append({"net": "vit", "seed": 0, "accuracy": 0.5})
    assert store.has({"net": "vit", "seed": 0}) and not store.has({"net": "vit", "seed": 1})
    with pytest.raises(ValueError, match="has the fields"):
        store.append({"net": "vit", "seed": 1, "loss": 0.5})
    assert len(store.rows()) == 1


def test_a_file_with_its_header_alone_gets_no_second_one(tmp_path):
    store = Store("small", ("net",), tmp_path)
    store.csv.write_text("net,loss\n")
    store.append({"net": "vit", "loss": 0.5})
    assert store.rows() == [{"net": "vit", "loss": "0.5"}]


def test_a_row_that_another_process_appends_is_seen(tmp_path):
    one, other = (Store("demo", ("n",), folder=tmp_path) for _ in range(2))
    for n in range(3):
        one.append({"n": n})
        assert len(other.rows()) == len(one.rows()) == n + 1


def test_rows_are_written_by_one_at_a_time(tmp_path):
    store = Store("demo", ("n",), folder=tmp_path)
    with store.locked(), pytest.raises(TimeoutError):
        FileLock(store.own / "writing.lock", timeout=0).acquire()


def hold(folder, pipe):
    with Store("demo", ("net",), folder=folder).claimed({"net": "vit"}) as mine:
        pipe.send(mine)
        pipe.recv()


def test_two_processes_never_claim_the_same_run(tmp_path):
    store = Store("demo", ("net",), folder=tmp_path)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    here, there = context.Pipe()
    holder = context.Process(target=hold, args=(tmp_path, there), daemon=True)
    holder.start()
    assert here.recv()
    with store.claimed({"net": "vit"}) as mine, store.claimed({"net": "cnn"}) as another:
        assert not mine and another
    holder.kill()
    holder.join()
    with store.claimed({"net": "vit"}) as mine:
        assert mine


def test_missing_results_say_which_study_writes_them():
    with pytest.raises(FileNotFoundError, match=r"python -m studies\.nonesuch"):
        results.read("nonesuch")


def test_numbers_are_read_as_numbers():
    assert [results.number(text) for text in ("3", "0.25", "vit", "0.1 0.2")] == [3, 0.25, "vit", "0.1 0.2"]


# --- the command line ---


def test_make_results_tells_fresh_from_stale(capsys, monkeypatch, tmp_path):
    for path in (path for path in RESULTS.glob("*.*") if path.is_file()):  # a study at work has a folder there
        shutil.copy(path, tmp_path)
    arguments = ["--status", "--folder", str(tmp_path)]
    assert harness.main(arguments=arguments) == 0
    said = capsys.readouterr().out
    assert said.count(" fresh\n") + said.count("  partial, ") == len(STUDIES)
    (tmp_path / "stray.csv").write_text("a,b\n")
    (tmp_path / "recall.csv").unlink()
    monkeypatch.setattr(record.load("library"), "SEEDS", (0, 1))
    monkeypatch.setattr(record.load("blocks"), "WARMUP", 0.2)
    assert harness.main(arguments=arguments) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "results without a studies/stray.py" in lines["stray"]
    assert "never run: python -m studies recall" in lines["recall"]
    for name in ("library", "blocks"):
        assert "stale, changed since: configuration. To run it again, delete" in lines[name]
    assert lines["training"].endswith("52 rows  2026-11-22  fresh")
    assert harness.main("blocks", arguments) == 1 and len(capsys.readouterr().out.splitlines()) == 2


ROWS = "part,lr,seed,value\n" + "".join(f"main,{lr},{seed},1.0\n" for lr in (0.1, 0.2) for seed in (0, 1))
DAMAGED = {  # what a file holds, and what is said of it
    "no object": ("json", b"[]", "toy.json is damaged: expected an object"),
    "a number": ("json", b"5", "toy.json is damaged: expected an object"),
    "no day": ("json", b'{"finished": 5}', "toy.json is damaged: expected an object"),
    "no stamp": ("json", b'{"finished": null, "stamp": []}', "toy.json is damaged: expected an object"),
    "half a json": ("json", b'{"finished"', "toy.json is damaged: Expecting ':'"),
    "json that is not UTF-8": ("json", b'{"finished": "\xfc"}', "toy.json is damaged: 'utf-8' codec"),
    "a csv that is not UTF-8": ("csv", ROWS.replace("main", "m\xfcin").encode("latin-1"), "damaged: 'utf-8'"),
    "an empty csv": ("csv", b"", "toy.csv is damaged: it is empty"),
    "a header alone": ("csv", ROWS.splitlines()[0].encode(), "toy.csv is damaged: it has no rows"),
    "no key": ("csv", b"part,lr,value\nmain,0.1,1.0\n", "toy.csv is damaged: the header lacks seed"),
    "marks of a merge": ("csv", (ROWS + "=======\n" + "main,0.2,2,1.0\n").encode(), "line 6 has 1 fields, not 4"),
    "marks at its head": ("csv", ("<<<<<<< HEAD\n" + ROWS).encode(), "damaged: the header lacks part, lr, seed"),
    "half a row": ("csv", ROWS[:-6].encode(), "toy.csv is damaged: line 5 has 3 fields, not 4"),
    "a row too wide": ("csv", (ROWS + "main,0.3,0,1,2\n").encode(), "toy.csv is damaged: line 6 has 5 fields, not 4"),
    "a row twice": ("csv", (ROWS + "main,0.2,1,2.0\n").encode(), "damaged: line 6 is the run of a line before"),
    "a folder": ("csv", None, "toy.csv is damaged: [Errno 21] Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize("damage", [None, *DAMAGED])
def test_damaged_results_are_one_line(toy, capsys, monkeypatch, damage):
    study, store = toy()
    monkeypatch.setattr(record, "names", lambda: ["toy"])
    store.csv.write_text(ROWS, encoding="utf-8")
    store.write(**record.made_by(study), finished="2026-11-29T00:00:00+00:00")
    if damage is not None:
        kind, content, told = DAMAGED[damage]
        path = getattr(store, kind)
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)
    assert record.show([study], store.folder) == (damage is not None)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and (told if damage else "    4 rows  2026-11-29  fresh\n") in said


def test_what_a_system_leaves_beside_the_studies_is_none(tmp_path, monkeypatch):
    (tmp_path / "._toy.py").write_bytes(b"\x00\x05\x16\x07\xff\nKEY")  # a Mac, on another's disk
    (tmp_path / "toy.py").write_bytes(b"# m\xfc\nKEY = ()\n")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert record.names() == ["toy"]


def test_a_study_is_called_by_its_name(capsys):
    with pytest.raises(SystemExit, match="no study 'nonesuch'; there are: blocks, convolution"):
        harness.main(arguments=["nonesuch"])
    with pytest.raises(SystemExit) as ended:
        harness.main("pocket", ["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and all(f"--{word}" in told for word in ("shards", "restamp", "ship", "cpu"))
    assert harness.main(arguments=[]) == 2 and "transfer" in capsys.readouterr().out


# --- killed, and gone on with in two processes ---

DIES = """
import os
from studies import harness
from studies.store import Store
append = Store.append
def last(self, row):
    append(self, row)
    len(self.rows()) < 10 or os._exit(9)
Store.append = last
harness.main("toy")
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_in_two_processes_and_repeats_nothing(toy, tmp_path):
    study, store = toy(("SEEDS = (0, 1)", "SEEDS = tuple(range(20))"))
    there = tmp_path / "there"
    shutil.copytree(ROOT / "studies", there / "studies", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("toy.py", "bits.py"):
        shutil.copy(tmp_path / name, there / "studies")

    def command(*how: str) -> subprocess.CompletedProcess:
        words = [sys.executable, *how, "--folder", str(store.folder)]
        return subprocess.run(words, cwd=there, capture_output=True, text=True)

    first = command("-c", DIES)
    assert first.returncode == 9 and first.stderr == ""
    before = list(store.rows())
    resumed = command("-m", "studies", "toy", "--shards", "2")
    assert resumed.returncode == 0, resumed
    rows = store.rows()
    keys = [tuple(row[field] for field in store.key) for row in rows]
    expected = [tuple(str(name[field]) for field in store.key) for name in study.runs(store)]
    assert 10 == len(before) and rows[:10] == before and sorted(keys) == sorted(expected)
    assert resumed.stdout.count("part=main") == len(rows) - len(before) == 30
    about = store.about()
    assert record.changes(study, about) == []
    assert about["started"] <= about["finished"] and about["wall_seconds"] >= 0


# --- rows that were trained at the rate their own search chose ---


def test_the_main_runs_took_the_rate_that_the_search_chose():
    for name in ("library", "transfer"):
        study = record.load(name)
        store = record.store_of(study)
        for row in store.rows():
            if row["part"] == "main":
                merit = {"merit": study.by_accuracy_then_rate} if name == "transfer" else {}
                assert float(row["lr"]) == study.rate_of(store, row, study.RATES, net=row["net"], **merit), name
    pocket = record.load("pocket")
    store = record.store_of(pocket)
    for row in store.rows():
        recipe, shift = pocket.recipe_of(store, row | {"seed": int(row["seed"])})
        assert (recipe.lr, shift) == (float(row["lr"]), int(row["shift"])), row["variant"]
        assert (recipe.epochs, recipe.batch_size) == (int(row["epochs"]), int(row["batch_size"])), row["variant"]


def test_the_second_rate_of_chapter_9_did_as_well_in_the_search():
    transfer = record.load("transfer")
    rows = record.store_of(transfer).rows()
    for net, rate in transfer.TIED.items():
        found = {float(r["lr"]): r["accuracy"] for r in rows if (r["part"], r["net"]) == ("search", net)}
        taken = {float(r["lr"]) for r in rows if (r["part"], r["net"]) == ("main", net)}
        assert rate not in taken and found[rate] == max(found.values())
        assert {float(r["lr"]) for r in rows if r["part"] == "tied"} == {rate}
