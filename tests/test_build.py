"""`make book`, proved on a small book: nothing stale, nothing executed twice, no fault that passes.

The book is made on the spot, with the real _config.yml, its one notebook counts its own executions.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from nbclient.exceptions import CellTimeoutError

import book as script
import runner
import running
from vitutils import runtime

ROOT = Path(__file__).resolve().parents[1]
COUNT = """\
import os
from pathlib import Path

with open("../.executions", "a") as file:
    file.write("x")
print("word:", Path("../vitutils/word.txt").read_text())
print("scale:", os.environ["VITBOOK_SCALE"])"""
TOC = "format: jb-book\nroot: book/preface\nchapters:\n- file: book/bibliography\n"
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}


class SmallBook:
    """A book of two pages, a bibliography and one notebook."""

    def __init__(self, root: Path):
        self.root = root
        self.environment = os.environ | {
            "VITBOOK_SCALE": "cpu",
            "VITBOOK_DATA": str(root / ".data"),
            "VITBOOK_SYSTEM_DATA": str(root / ".none"),
        }
        for folder in ("_static", "_ext"):
            shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
        for name in ("_config.yml", "book/bibliography.md"):
            shutil.copy(ROOT / name, root / name)
        entries = (ROOT / "book" / "references.bib").read_text(encoding="utf-8").split("\n\n")
        self.write("book/references.bib", "\n\n".join(entries[:3]))  # over a hundred take seconds in each build
        self.write("_toc.yml", f"{TOC}- file: notebooks/01_count\n")
        self.preface()
        self.write("vitutils/word.txt", "first")
        self.write("requirements.txt", "torch\n")
        self.notebook()

    def preface(self, more: str = "") -> None:
        self.write("book/preface.md", f"# Preface\n\nSee [the notebook](../notebooks/01_count.ipynb).\n\n{more}\n")

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def notebook(self, code: str = COUNT, prose: str = "", tags=(), name: str = "01_count", kernelspec=PYTHON) -> None:
        title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# Count\n\n{prose}"}
        cell = {"cell_type": "code", "id": "count", "metadata": {"tags": list(tags)}, "source": code}
        cells = [title, cell | {"execution_count": None, "outputs": []}]
        content = {"cells": cells, "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
        self.write(f"notebooks/{name}.ipynb", json.dumps(content))

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "tools" / "book.py"), "--root", str(self.root)]

    def build(self, code: int = 0) -> str:
        """What a build says, which ends with this exit status."""
        done = subprocess.run(self.command(), env=self.environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout + done.stderr

    def executions(self) -> int:
        return len((self.root / ".executions").read_text())

    def page(self, name: str) -> str:
        return (self.root / "_build" / "html" / name).read_text()


# --- one small book, changed step by step ---------------------------------------------------------

LOOK = """\
import os, sys
import matplotlib
import matplotlib.pyplot as plt

print("len", len("abcdef"), "optimize", sys.flags.optimize, "encoding", sys.stdout.encoding)
print("usetex", plt.rcParams["text.usetex"], plt.rcParams["text.color"], "inline" in matplotlib.get_backend())
print("left", sorted(set(os.environ) & set("JPY_SESSION_NAME PYTEST_ADDOPTS GIT_DIR PYTHONPATH".split())))
print("home", os.path.expanduser("~"))"""


def spoil(small: SmallBook) -> None:
    """Surroundings in which a chapter would fail, or print something else."""
    small.write(".own/nbclient.py", "1 / 0")
    small.write(".own/kernels/python3/kernel.json", json.dumps({"argv": ["false"], "display_name": "no"}))
    small.write(".own/profile_default/startup/00.py", "len = lambda text: 1\nprint('started')")
    small.write(".own/matplotlibrc", "text.usetex: True\ntext.color: white\nnonsense: 1\n")
    own = str(small.root / ".own")
    small.environment |= {
        **dict.fromkeys(["PYTHONPATH", "JUPYTER_PATH", "IPYTHONDIR", "MATPLOTLIBRC"], own),
        **dict.fromkeys(["PYTHONOPTIMIZE", "CI", "FORCE_COLOR"], "1"),
        **dict.fromkeys(["LANG", "LC_ALL"], "C"),
        **dict.fromkeys(["SPHINXOPTS", "PYTEST_ADDOPTS", "JPY_SESSION_NAME"], "--nonsense"),
        **{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "MPLBACKEND": "TkAgg"},
        **{"GIT_DIR": "/nowhere", "TZ": "Nowhere/Nowhere", "HOME": "/proc/nowhere"},
    }


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> SmallBook:
    """Built once, without a fault. The tests that use it run in the order they stand here."""
    small = SmallBook(tmp_path_factory.mktemp("book"))
    spoil(small)
    small.notebook(f"{COUNT}\n{LOOK}")
    small.write(".pytest_cache/README.md", "# pytest's own\n")  # as a test run leaves it: no page of the book
    small.said = small.build()
    return small


@pytest.mark.slow
def test_a_build_says_which_file_to_open_and_makes_the_pages(book):
    index = book.root / "_build" / "html" / "index.html"
    assert index.exists() and str(index) in book.said and index.as_uri() in book.said
    whole = book.page("notebooks/01_count.html")
    home = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    place = f"{home['url'].removeprefix('https://github.com')}/blob/{home['branch']}/notebooks/01_count.ipynb"
    assert f"https://colab.research.google.com/github{place}" in whole
    # What a reader has set does not reach a chapter.
    page = re.sub(r"<[^>]+>", "", whole)
    for line in ("word: first", "len 6 optimize 0 encoding UTF-8", "usetex False black True", "left []"):
        assert line in page, (line, page[-3000:])
    assert f"home {ROOT / '.cache' / 'home'}" in page and "started" not in page


@pytest.mark.slow
def test_nothing_is_executed_twice_and_nothing_is_stale(book):
    said = book.build()
    assert "Nothing changed" in said and "index.html" in said and book.executions() == 1
    book.write("vitutils/word.txt", "second")
    assert "Changed: vitutils." in book.build()
    assert "word: second" in book.page("notebooks/01_count.html") and book.executions() == 2
    # A plain `jupyter-book build` at another scale leaves its outputs in the same cache.
    cache = book.root / "_build" / ".jupyter_cache"
    noted = script.read_json(book.root / "_build" / "execution-key.json")
    assert script.changes(noted, noted["key"], cache) == []
    os.utime(cache / "global.db")
    assert "by another command" in script.changes(noted, noted["key"], cache)[0]
    script.write_json(book.root / "_build" / "execution-key.json", noted | {"cache": script.cache_state(cache)})


def summary(small: SmallBook, *wanted: tuple[str, str]) -> None:
    """A build fails for just these reasons, each one said with its place."""
    said = small.build(code=1).partition("The book was not built")[2]
    assert f": {len(wanted)} problem" in said, said
    for where, what in wanted:
        assert any(where in line and what in line for line in said.splitlines()), (what, said)


@pytest.mark.slow
def test_a_fault_on_a_page_fails_the_build_twice(book):
    book.preface(
        "[gone](gone.md)\n\n[nowhere](bibliography.md#nowhere)\n\n{cite}`nobody1999`\n\n"
        "[Somebody 1998](bibliography.md#somebody1998)\n\n```{nonsense}\n```"
    )
    book.notebook(COUNT + '\n\nimport sys\n\nprint("litter", file=sys.stderr)', "[gone too](../book/gone_too.md)")
    names = ("'gone.md'", "'nowhere'", "nobody1999", "somebody1998", "nonsense")
    for _ in range(2):
        summary(
            book,
            *(("book/preface.md, line", name) for name in names),
            ("notebooks/01_count.ipynb, cell 1 (`title`)", "gone_too"),
            ("notebooks/01_count.ipynb, cell 2 (`count`)", "stderr was found"),
        )
    assert book.executions() == 3  # it ran through: it is not executed again for the faults around it


@pytest.mark.slow
def test_a_fault_in_the_finished_site_fails_the_build(book):
    """What Sphinx does not see: raw HTML, what a cell printed, what a page loads from elsewhere."""
    book.preface(
        '<a href="gone.html">gone</a> <a href="bibliography.html#nowhere">nowhere</a>\n\n'
        '<img src="https://example.org/picture.png" alt="a picture from elsewhere">'
    )
    book.notebook("1 / 0", tags=("raises-exception",))
    summary(
        book,
        ("book/preface.html", "broken link gone.html"),
        ("book/preface.html", "broken link bibliography.html#nowhere"),
        ("book/preface.html", "loads https://example.org/picture.png"),
        ("notebooks/01_count.html", "traceback"),
    )


@pytest.mark.slow
def test_what_left_the_book_is_gone(book):
    book.write("_toc.yml", TOC)
    book.write("book/preface.md", "# Preface\n\nNo notebook any more.\n")
    book.build()
    html = book.root / "_build" / "html"
    assert not (html / "notebooks" / "01_count.html").exists()
    # A page taken away by hand is no longer the success that was noted.
    noted = script.read_json(book.root / "_build" / "book-stamp.json")["site"]
    assert script.site_key(html) == noted
    (html / "book" / "preface.html").unlink()
    assert script.site_key(html) != noted


@pytest.mark.slow
def test_what_stood_in_is_not_published(book):
    book.write("_toc.yml", f"{TOC}- file: notebooks/01_count\n")
    book.notebook("print('stand-in: digits in place of fashion_mnist')")
    book.environment["PUBLISH"] = "1"
    summary(book, ("PUBLISH=1", "handwritten digits in place of Fashion-MNIST"))
    book.environment["FALLBACKS"] = "ok"
    book.build()
    assert "Made with handwritten digits in place of Fashion-MNIST" in book.page("book/bibliography.html")


# --- what an output depends on --------------------------------------------------------------------


@pytest.fixture
def small_key(tmp_path, monkeypatch):
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / ".data"))
    monkeypatch.setenv("VITBOOK_SYSTEM_DATA", str(tmp_path / ".system"))
    monkeypatch.setattr(script, "installed", dict)  # reading all packages' data takes its time
    return lambda: script.execution_key(tmp_path)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vitutils/deep/code.py", "vitutils"),
        ("results/study.csv", "results"),
        ("book/papers/table.csv", "results"),
        ("notebooks/helper.csv", script.BESIDE),
        ("book/_static/block.svg", "drawings"),
        ("requirements.txt", "requirements.txt"),
        (".data/images/cifar10", "data"),
        (".system/fashion-mnist", "data"),
        # jupyter-cache sees a notebook's own edits; the rest comes and goes by itself
        ("notebooks/a.ipynb", None),
        ("vitutils/__pycache__/a.pyc", None),
        (".data/features/1.safetensors", None),
    ],
)
def test_the_execution_key_sees(tmp_path, small_key, name, part):
    (tmp_path / ".data").mkdir()
    before = small_key()
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("1")
    one = small_key()
    assert [key for key in one if one[key] != before[key]] == ([part] if part else [])
    (tmp_path / name).write_text("2")
    assert (small_key() != one) == (part not in (None, "data"))  # of the data, names are enough


def test_the_execution_key_sees_scale_data_folders_and_versions(tmp_path, small_key, monkeypatch):
    keys = [small_key()]
    monkeypatch.setenv("VITBOOK_DATA", f"{tmp_path}/.data/../.data")  # the same in other words
    assert small_key() == keys[0]
    for name, value in (("VITBOOK_SCALE", "smoke"), ("VITBOOK_DATA", os.pathsep.join("ab"))):
        monkeypatch.setenv(name, value)
        keys.append(small_key())
    monkeypatch.setattr(script, "installed", lambda: {"torch": "99"})
    assert len({json.dumps(key) for key in [*keys, small_key()]}) == 4
    monkeypatch.delenv("VITBOOK_SCALE")
    assert small_key()["VITBOOK_SCALE"] == runtime.find_scale(runtime.find_device())  # what the notebooks find


def test_what_a_chapter_writes_beside_itself_does_not_execute_all_anew(tmp_path, small_key, monkeypatch, capsys):
    def stub(root, log, scale):
        """In place of jupyter-book: a chapter that writes beside itself and fetches data, and a finished page."""
        for name in "notebooks/model.pt .data/new _build/.jupyter_cache/global.db _build/html/index.html".split():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(str(time.time_ns()) if name.endswith(".pt") else "")
        return 0, []

    monkeypatch.setattr(script, "build", stub)
    monkeypatch.setattr(script, "look_at_settings", lambda root: [])
    arguments = ["--root", str(tmp_path)]
    assert script.main(arguments) == 0 and script.main(arguments) == 0
    assert "Nothing changed" in capsys.readouterr().out
    (tmp_path / "notebooks" / "model.pt").write_text("by hand")
    assert script.main(arguments) == 0
    assert f"Changed: {script.BESIDE}. " in capsys.readouterr().out


# --- what is asked wrongly ------------------------------------------------------------------------

GOOD_TOC = "format: jb-book\nroot: book/preface\nchapters:\n- file: notebooks/01_count\n"


def settings(root: Path, toc=GOOD_TOC, config="title: A book\n", notebook='{"cells": []}') -> list[str]:
    """What is said of a small book with these settings."""
    for name, text in {"_toc.yml": toc, "_config.yml": config}.items():
        (root / name).write_bytes(text.encode("latin-1"))
    for folder, name, text in (("book", "preface.md", "# A"), ("notebooks", "01_count.ipynb", notebook)):
        (root / folder).mkdir()
        (root / folder / name).write_text(text)
    return script.look_at_settings(root)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"toc": ""}, "_toc.yml: expected names with values"),
        ({"config": "a: gr\u00fcn\n"}, "_config.yml: 'utf-8' codec can't decode byte 0xfc"),
        ({"toc": f"{GOOD_TOC}- file: notebooks/02_gone\n"}, "_toc.yml: there is no notebooks/02_gone"),
        ({"toc": f"{GOOD_TOC}- fil: notebooks/02\n"}, "_toc.yml: entry does not contain one of"),
        ({"config": "title: A\nexecute:\n  timeout: soon\n"}, "_config.yml: execute.timeout: 'soon' is not of type"),
        ({"notebook": "<<<<<<< HEAD"}, "_toc.yml: 01_count.ipynb: is not JSON: Expecting value: line 1"),
    ],
)
def test_settings_that_make_no_book_are_named(tmp_path, given, said):
    (found,) = settings(tmp_path, **given)
    assert said in found and "\n" not in found and found.startswith(("_toc.yml: ", "_config.yml: ")), found


def test_settings_without_a_fault_or_that_are_not_there(tmp_path):
    assert script.look_at_settings(ROOT) == []
    assert settings(tmp_path) == []
    (tmp_path / "_toc.yml").unlink()
    assert "git checkout _toc.yml" in script.look_at_settings(tmp_path)[0]


@pytest.mark.parametrize(
    ("name", "setting", "code", "said"),
    [
        ("book", {}, 1, "The book was not built: 1 problem.\n\n  _toc.yml: expected"),
        ("book", {"VITBOOK_SCALE": "huge"}, 2, "smoke, cpu, gpu"),
        ("book", {running.LIMIT: "soon"}, 2, running.LIMIT),
        ("a%20b", {}, 2, "Rename the folder"),
    ],
)
@pytest.mark.usefixtures("small_key")
def test_what_is_asked_wrongly_is_said_at_once(tmp_path, monkeypatch, capsys, name, setting, code, said):
    monkeypatch.setattr(script, "build", None)
    for variable, value in setting.items():
        monkeypatch.setenv(variable, value)
    root = tmp_path / name
    (root / "_build" / "html").mkdir(parents=True)
    (root / "_build" / "html" / "index.html").write_text("the last book")
    settings(root, toc="")
    assert script.main(["--root", str(root)]) == code
    assert said in "".join(capsys.readouterr()) and (root / "_build" / "html" / "index.html").exists()


def test_how_long_a_cell_may_run():
    """At least four times the slowest whole notebook there has been at that scale (seconds)."""
    slowest = {"smoke": 20, "cpu": 220, "gpu": 360}
    assert all(running.cell_limit(scale, {}) >= 4 * seconds for scale, seconds in slowest.items())
    assert running.cell_limit("cpu", {running.LIMIT: " 7200 "}) == 7200
    for wrong in ("0", "nan", "inf"):
        with pytest.raises(ValueError, match=f"{running.LIMIT} is '{wrong}'; expected the seconds"):
            running.cell_limit("cpu", {running.LIMIT: wrong})


# --- what goes wrong ------------------------------------------------------------------------------

# --- side by side ---------------------------------------------------------------------------------

MEET = """\
import os, time
from pathlib import Path

Path("../.here-{me}").write_text("")
for _ in range(600):
    if Path("../.here-{other}").exists():
        break
    time.sleep(0.1)
met = Path("../.here-{other}").exists()
print("met:", met, "threads:", os.environ.get("OMP_NUM_THREADS"))
Path("../.gone-{me}").write_text("")"""
ALONE = """\
from pathlib import Path

class timing:
    race = staticmethod(lambda work: sorted(path.name for path in Path("..").glob(".gone-*")))

print("gone before:", timing.race({}))"""


@pytest.mark.slow
@pytest.mark.skipif(running.cores() < 2, reason="one core: nothing runs side by side")
def test_chapters_run_side_by_side_but_those_that_measure_time(tmp_path):
    small = SmallBook(tmp_path)
    small.environment = {name: value for name, value in small.environment.items() if name != "OMP_NUM_THREADS"}
    names = ("01_count", "02_measures", "03_meets", "04_fails")
    small.write("_toc.yml", TOC + "".join(f"- file: notebooks/{name}\n" for name in names) + "- file: book/answers\n")
    cell = "```{code-cell} python\n:tags: [hide-input]\nopen('../.ran', 'a').write('once ')\n```\n"
    small.write("book/answers.md", f"---\nfile_format: mystnb\n---\n\n# Answers\n\n{cell}")
    small.notebook(MEET.format(me="1", other="3"))
    small.notebook(ALONE, name="02_measures")
    small.notebook(MEET.format(me="3", other="1"), name="03_meets")
    small.notebook('print("begun")\n1 / 0', name="04_fails")
    said = small.build(code=1)
    assert "04_fails.ipynb: failed; it is executed once more" in said and "  answers.md: executing" in said
    assert "notebooks/04_fails.ipynb, cell 2 (`count`): ZeroDivisionError" in said
    small.notebook("print('mended')", name="04_fails")
    for trace in tmp_path.glob(".here-*"):
        trace.unlink()  # a chapter that ran again would wait for a minute, and say that it met nobody
    said = small.build()
    assert said.count("unchanged, outputs from the cache") >= 2
    pages = {name: re.sub(r"<[^>]+>", "", small.page(f"notebooks/{name}.html")) for name in names}
    assert all("met: True threads: 1" in pages[name] for name in ("01_count", "03_meets")) or running.cores() > 3
    assert "gone before: ['.gone-1', '.gone-3']" in pages["02_measures"].replace("&#39;", "'")
    assert "mended" in pages["04_fails"]
    assert (small.root / ".ran").read_text() == "once " and "5" in small.page("book/answers.html")


@pytest.fixture(scope="module")
def rough(tmp_path_factory) -> SmallBook:
    """Six chapters, five of which fail each in its way, built once, into a folder on another disk."""
    small = SmallBook(tmp_path_factory.mktemp("rough"))
    # All in one build: the real book stops at the first that fails.
    config = (small.root / "_config.yml").read_text()
    small.write("_config.yml", config.replace("raise_on_error: true", "raise_on_error: false"))
    names = ("01_count", "02_killed", "03_slow", "04_exit", "05_r", "06_fails")
    small.write("_toc.yml", TOC + "".join(f"- file: notebooks/{name}\n" for name in names))
    small.notebook('import os\nos.write(1, b"bytes \\xff\\xfe\\n")', kernelspec=PYTHON | {"name": "my-conda-env"})
    small.notebook("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", name="02_killed")
    small.notebook("import time\ntime.sleep(300)", name="03_slow")
    small.notebook("import os\nos._exit(3)", name="04_exit")
    small.notebook(name="05_r", kernelspec={"display_name": "R", "language": "R", "name": "ir"})
    small.notebook('print("so far so good")\n\nvalue = 1 / 0', name="06_fails")
    (small.root.parent / "disk").mkdir()
    (small.root / "_build").symlink_to(small.root.parent / "disk")
    small.environment[running.LIMIT] = "4"  # no other cell does anything that takes time
    small.said = small.build(code=1)
    return small


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("notebooks/02_killed.ipynb, cell 2 (`count`): ", "the kernel was killed (SIGKILL)"),
        ("notebooks/03_slow.ipynb, cell 2 (`count`): ", "ran longer than the 4 seconds"),
        ("notebooks/03_slow.ipynb, cell 2 (`count`): ", "VITBOOK_CELL_TIMEOUT=8 make book"),
        ("notebooks/04_exit.ipynb, cell 2 (`count`): ", "the kernel ended by itself (exit status 3)"),
        ("notebooks/06_fails.ipynb, cell 2 (`count`): ZeroDivisionError", "value = 1 / 0"),
        ("notebooks/05_r.ipynb: ", "is a notebook in R (kernel 'ir'); expected one in Python"),
    ],
)
def test_a_chapter_that_fails_is_named_by_cell_and_cause(rough, where, what):
    lines = [line.strip() for line in rough.said.splitlines()]
    assert any(line.startswith(where) and what in line for line in lines), rough.said
    assert ": 5 problems." in rough.said and "ZMQError" not in rough.said, rough.said


@pytest.mark.slow
def test_neither_a_kernel_of_another_machine_nor_another_disk_stops_a_chapter(rough):
    assert "bytes \ufffd\ufffd" in rough.page("notebooks/01_count.html")
    assert (rough.root / "_build").is_symlink() and (rough.root.parent / "disk" / "html" / "index.html").is_file()
    assert not [fault for fault in script.look_at_pages(rough.root / "_build" / "html") if "link" in fault]


def test_the_last_error_with_words_is_said(tmp_path):
    log = ["Traceback (most recent call last):", "yaml.scanner.ScannerError: mapping values", "RuntimeError: ", ""]
    assert script.problems_in(tmp_path, 1, log) == ["yaml.scanner.ScannerError: mapping values"]
    assert "signal 9" in script.problems_in(tmp_path, -9, log)[-1]
    (long,) = script.problems_in(tmp_path, 1, ["/x/01.ipynb: WARNING: undecodable source characters " + "y" * 100_000])
    assert long.startswith("/x/01.ipynb: undecodable") and len(long) < 600


def test_the_cause_is_said_not_what_came_of_it(tmp_path):
    """After a timeout the kernel's socket may be closed already: a ZMQError came out of it, on a busy machine."""
    attempt, error = runner.Run(nbformat.v4.new_notebook(), tmp_path, limit=3600), OSError("not a socket")
    error.__context__ = CellTimeoutError("A cell timed out")
    said = attempt.words(error)
    assert "longer than the 3600 seconds" in said and "VITBOOK_CELL_TIMEOUT=7200" in said and "ocket" not in said
    assert "did not start" in attempt.words(RuntimeError("Kernel died before replying to kernel_info"))


# --- one at a time, and an end that leaves nothing behind -----------------------------------------

SLEEP = """\
import os, time
from pathlib import Path

Path("../.kernel.new").write_text(str(os.getpid()))
os.replace("../.kernel.new", "../.kernel")
time.sleep(600)"""


def begun(small: SmallBook) -> tuple[subprocess.Popen, int]:
    """A build that has come to the cell that sleeps, and its kernel's process."""
    note, pipe = small.root / ".kernel", subprocess.PIPE
    note.unlink(missing_ok=True)
    process = subprocess.Popen(small.command(), env=small.environment, stdout=pipe, stderr=pipe, text=True)
    while not note.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, int(note.read_text())


def gone(pid: int) -> bool:
    """The process ends, or is a zombie that nobody waits for, within a minute."""
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="ends by a signal")
def test_a_build_that_is_stopped_leaves_no_kernel_and_keeps_what_was_finished(tmp_path):
    small = SmallBook(tmp_path)
    small.write("_toc.yml", f"{TOC}- file: notebooks/01_count\n- file: notebooks/02_sleep\n")
    small.notebook(SLEEP, name="02_sleep")
    first, kernel = begun(small)
    cached = tmp_path / "_build" / ".jupyter_cache"
    while not list(cached.rglob("base.ipynb")):  # the other chapter, which runs beside it
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    try:
        assert f"`make book` (process {first.pid}, since " in small.build(code=2)  # meanwhile
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=1800)
    finally:
        first.kill()
    assert first.returncode == 128 + signal.SIGTERM and "Stopped" in err, (out, err)
    assert gone(kernel)

    # Killed without a chance to say so, it leaves no kernel either, and its lock holds nobody up.
    again, kernel = begun(small)
    again.kill()
    out, _ = again.communicate(timeout=1800)
    assert "Changed" not in out and "01_count.ipynb: unchanged" in out and small.executions() == 1
    assert gone(kernel)
    # Killed while it put a notebook into the cache: half a file.
    key_file = tmp_path / "_build" / "execution-key.json"
    for kept in cached.rglob("base.ipynb"):
        kept.write_text("{")
    script.write_json(key_file, script.read_json(key_file) | {"cache": script.cache_state(cached)})
    small.notebook("print('awake')", name="02_sleep")
    said = small.build()
    assert "Changed" not in said and "01_count.ipynb: executing" in said


def test_a_file_that_cannot_be_read_or_written_is_one_line(tmp_path, capsys):
    def fails():
        raise OSError(28, "No space left on device", str(tmp_path / "_build" / "x"))

    assert running.command(tmp_path, "make book", fails) == 2
    assert capsys.readouterr().err == "\nStopped: _build/x: No space left on device\n"
