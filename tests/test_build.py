"""`make book`, proved on a small book: nothing stale, nothing executed twice, no fault that passes.

The book is made on the spot, with the real _config.yml, its one notebook counts its own executions.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient.exceptions import CellTimeoutError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
import runner
import running

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "book.py"

spec = importlib.util.spec_from_file_location("book_script", SCRIPT)
book_script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book_script)

COUNT = """\
import os
from pathlib import Path

with open("../.executions", "a") as file:
    file.write("x")
print("word:", Path("../vitutils/word.txt").read_text())
print("scale:", os.environ["VITBOOK_SCALE"])"""


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
        for name in ("_config.yml", "book/references.bib", "book/bibliography.md"):
            shutil.copy(ROOT / name, root / name)
        self.write("_toc.yml", "format: jb-book\nroot: book/preface\nchapters:\n")
        with (root / "_toc.yml").open("a") as toc:
            toc.write("- file: notebooks/01_count\n- file: book/bibliography\n")
        self.write("book/preface.md", self.preface())
        self.write("vitutils/word.txt", "first")
        self.write("requirements.txt", "torch\n")
        self.notebook()

    def preface(self, more: str = "") -> str:
        return f"# Preface\n\nSee [the notebook](../notebooks/01_count.ipynb).\n\n{more}\n"

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def notebook(
        self, prose: str = "It counts.", code: str = COUNT, tags: tuple = (), name: str = "01_count", **metadata
    ) -> None:
        cells = [
            {
                "cell_type": "markdown",
                "id": "title",
                "metadata": {},
                "source": f"# Count\n\n{prose}",
            },
            {
                "cell_type": "code",
                "id": "count",
                "metadata": {"tags": list(tags)},
                "source": code,
                "execution_count": None,
                "outputs": [],
            },
        ]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        content = {"cells": cells, "metadata": {"kernelspec": kernel} | metadata}
        content |= {"nbformat": 4, "nbformat_minor": 5}
        self.write(f"notebooks/{name}.ipynb", json.dumps(content))

    def command(self) -> list[str]:
        return [sys.executable, str(SCRIPT), "--root", str(self.root)]

    def build(self) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(), env=self.environment, capture_output=True, text=True, timeout=1800)

    def executions(self) -> int:
        file = self.root / ".executions"
        return len(file.read_text()) if file.exists() else 0

    def page(self, name: str) -> str:
        return (self.root / "_build" / "html" / name).read_text()


LOOK = """\
import os, sys
import matplotlib
import matplotlib.pyplot as plt

print("len", len("abcdef"), "optimize", sys.flags.optimize, "encoding", sys.stdout.encoding)
print("usetex", plt.rcParams["text.usetex"], plt.rcParams["text.color"], "inline" in matplotlib.get_backend())
print("left", sorted(set(os.environ) & set("JPY_SESSION_NAME PYTEST_ADDOPTS GIT_DIR PYTHONPATH".split())))
print("home", os.path.expanduser("~"), os.access(os.path.expanduser("~"), os.W_OK))
open("../.umlaut", "w").write("ü")"""


def spoil(small: SmallBook) -> None:
    """Surroundings in which a chapter would fail, or print something else."""
    small.write(".own/nbclient.py", "1 / 0")
    small.write(".own/start.py", "1 / 0")
    small.write(".own/kernels/python3/kernel.json", json.dumps({"argv": ["false"], "display_name": "no"}))
    small.write(".own/profile_default/startup/00.py", "len = lambda text: 1\nprint('started')")
    small.write(".own/profile_default/ipython_kernel_config.py", "c.IPKernelApp.exec_lines = ['len = lambda text: 2']")
    small.write(".own/matplotlibrc", "text.usetex: True\ntext.color: white\nnonsense: 1\n")
    own = str(small.root / ".own")
    small.environment |= {
        **dict.fromkeys(["PYTHONPATH", "JUPYTER_PATH", "IPYTHONDIR", "MATPLOTLIBRC"], own),
        **dict.fromkeys(["PYTHONOPTIMIZE", "PYTHONSAFEPATH", "CI", "GITHUB_ACTIONS", "FORCE_COLOR"], "1"),
        **dict.fromkeys(["LANG", "LC_ALL"], "C"),
        "PYTHONSTARTUP": f"{own}/start.py",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "TkAgg",
        "SPHINXOPTS": "--nonsense",
        "PYTEST_ADDOPTS": "--nonsense",
        "GIT_DIR": "/nowhere",
        "TZ": "Nowhere/Nowhere",
        "JPY_SESSION_NAME": "a notebook with a terminal",
        "HOME": "/proc/nowhere",
    }


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> SmallBook:
    """Built once, without a fault. The tests that use it run in the order they stand here."""
    small = SmallBook(tmp_path_factory.mktemp("book"))
    spoil(small)
    small.notebook(code=f"{COUNT}\n{LOOK}")
    left = small.root / ".pytest_cache" / "README.md"  # as a test run leaves it: no page of the book
    left.parent.mkdir()
    left.write_text("# pytest's own\n")
    done = small.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert small.executions() == 1
    small.first = done
    return small


@pytest.mark.slow
def test_a_build_says_which_file_to_open(book):
    index = book.root / "_build" / "html" / "index.html"
    assert index.exists()
    assert str(index) in book.first.stdout and index.as_uri() in book.first.stdout
    assert "word: first" in book.page("notebooks/01_count.html")


@pytest.mark.slow
def test_what_a_reader_has_set_does_not_reach_a_chapter(book):
    page = re.sub(r"<[^>]+>", "", book.page("notebooks/01_count.html"))
    for line in (
        "len 6 optimize 0 encoding UTF-8",
        "usetex False black True",
        "left []",
        f"home {ROOT / '.cache' / 'home'} True",
    ):
        assert line in page, (line, page[-3000:])
    assert (book.root / ".umlaut").read_text(encoding="utf-8") == "ü"
    assert "started" not in page and "The home folder (/proc/nowhere)" in book.first.stdout


@pytest.mark.slow
def test_the_button_of_a_chapter_opens_its_notebook_in_colab(book):
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    place = f"{repository['url'].removeprefix('https://github.com')}/blob/{repository['branch']}/notebooks/01_count.ipynb"
    assert f"https://colab.research.google.com/github{place}" in book.page("notebooks/01_count.html")


@pytest.mark.slow
def test_unchanged_it_executes_nothing(book):
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert book.executions() == 1
    assert "Nothing changed" in done.stdout
    assert (book.root / "_build" / "html" / "index.html").as_uri() in done.stdout


@pytest.mark.slow
def test_no_stale_output(book):
    """After each of these edits the notebook runs anew and its page shows the new output."""
    before = book.executions()
    book.write("vitutils/word.txt", "second")
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert "Changed: vitutils." in done.stdout
    assert book.executions() == before + 1
    assert "word: second" in book.page("notebooks/01_count.html")

    book.environment["VITBOOK_SCALE"] = "smoke"
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert book.executions() == before + 2
    assert "scale: smoke" in book.page("notebooks/01_count.html")

    book.write("requirements.txt", "torch>=2\n")
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert book.executions() == before + 3


@pytest.mark.slow
def test_a_cache_that_another_command_wrote_is_not_trusted(book):
    """A plain `jupyter-book build` at another scale leaves its outputs in the same cache."""
    before = book.executions()
    book.write("book/preface.md", book.preface("More."))
    os.utime(book.root / "_build" / ".jupyter_cache" / "global.db")
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert "the cache, by another command" in done.stdout
    assert book.executions() == before + 1


def summary(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, done.stdout
    assert "The book was not built" in done.stdout
    return done.stdout.partition("The book was not built")[2]


@pytest.mark.slow
def test_a_fault_on_a_page_fails_the_build_twice(book):
    book.write(
        "book/preface.md",
        book.preface(
            "[gone](gone.md)\n\n[nowhere](bibliography.md#nowhere)\n\n{cite}`nobody1999`\n\n"
            "[Somebody 1998](bibliography.md#somebody1998)\n\n```{nonsense}\n```"
        ),
    )
    book.notebook(
        prose="[gone too](../book/gone_too.md)",
        code=COUNT + '\n\nimport sys\n\nprint("litter", file=sys.stderr)',
    )
    before = book.executions()
    for _ in range(2):
        said = summary(book.build())
        assert ": 7 problems." in said, said
        for where, what in [
            ("book/preface.md, line", "'gone.md'"),
            ("book/preface.md, line", "'nowhere'"),
            ("book/preface.md, line", "nobody1999"),
            ("book/preface.md, line", "somebody1998"),
            ("book/preface.md, line", "nonsense"),
            ("notebooks/01_count.ipynb, cell 1 (`title`)", "gone_too"),
            ("notebooks/01_count.ipynb, cell 2 (`count`)", "stderr was found"),
        ]:
            assert any(where in line and what in line for line in said.splitlines()), (what, said)
    # The cell ran through: it is not executed again for the faults around it.
    assert book.executions() == before + 1


@pytest.mark.slow
def test_a_fault_in_the_finished_site_fails_the_build(book):
    """What Sphinx does not see: raw HTML, what a cell printed, what a page loads from elsewhere."""
    book.write(
        "book/preface.md",
        book.preface(
            '<a href="gone.html">gone</a> <a href="bibliography.html#nowhere">nowhere</a>\n\n'
            '<img src="https://example.org/picture.png" alt="a picture from elsewhere">'
        ),
    )
    book.notebook(code="1 / 0", tags=("raises-exception",))
    said = summary(book.build())
    assert ": 4 problems." in said, said
    for where, what in [
        ("book/preface.html", "broken link gone.html"),
        ("book/preface.html", "broken link bibliography.html#nowhere"),
        ("book/preface.html", "loads https://example.org/picture.png"),
        ("notebooks/01_count.html", "traceback"),
    ]:
        assert any(where in line and what in line for line in said.splitlines()), (what, said)


@pytest.mark.slow
def test_a_failing_cell_fails_the_build_twice(book):
    book.write("book/preface.md", book.preface())
    book.notebook(code='print("so far so good")\n\nvalue = 1 / 0')
    for _ in range(2):
        said = summary(book.build())
        assert ": 1 problem." in said, said
        assert "notebooks/01_count.ipynb, cell 2 (`count`): ZeroDivisionError" in said
        assert "value = 1 / 0" in said


@pytest.mark.slow
def test_mended_it_builds_again_and_what_left_the_book_is_gone(book):
    book.write("_toc.yml", "format: jb-book\nroot: book/preface\nchapters:\n")
    with (book.root / "_toc.yml").open("a") as toc:
        toc.write("- file: book/bibliography\n")
    book.write("book/preface.md", "# Preface\n\nNo notebook any more.\n")
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert not (book.root / "_build" / "html" / "notebooks" / "01_count.html").exists()
    # A page taken away by hand is no longer the success that was noted.
    html, stamp = book.root / "_build" / "html", book.root / "_build" / "book-stamp.json"
    noted = json.loads(stamp.read_text())["site"]
    assert book_script.site_key(html) == noted
    (html / "book" / "preface.html").unlink()
    assert book_script.site_key(html) != noted


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vitutils/deep/code.py", "vitutils"),
        ("vitutils/weights.bin", "vitutils"),
        ("results/study.csv", "results"),
        ("book/papers/table.csv", "results"),
        ("notebooks/helper.csv", book_script.BESIDE),
        ("book/_static/block.svg", "drawings"),
        ("requirements.txt", "requirements.txt"),
        (".data/images/cifar10", "data"),
        (".system/fashion-mnist", "data"),
    ],
)
def test_the_execution_key_sees(tmp_path, monkeypatch, name, part):
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / ".data"))
    monkeypatch.setenv("VITBOOK_SYSTEM_DATA", str(tmp_path / ".system"))
    before = book_script.execution_key(tmp_path)
    assert before == book_script.execution_key(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("1")
    one = book_script.execution_key(tmp_path)
    assert [key for key in one if one[key] != before[key]] == [part]
    if part != "data":  # of the data, names are enough: they are checked when they are read
        (tmp_path / name).write_text("2")
        assert book_script.execution_key(tmp_path)[part] != one[part]


def test_the_execution_key_sees_scale_data_folders_and_versions(tmp_path, monkeypatch):
    monkeypatch.setenv("VITBOOK_DATA", "a")
    keys = []
    for scale in ("smoke", "cpu", "gpu"):
        monkeypatch.setenv("VITBOOK_SCALE", scale)
        keys.append(book_script.execution_key(tmp_path))
    monkeypatch.setenv("VITBOOK_DATA", os.pathsep.join("ab"))
    keys.append(book_script.execution_key(tmp_path))
    monkeypatch.setattr(book_script, "version_of", lambda package: "99")
    keys.append(book_script.execution_key(tmp_path))
    assert len({json.dumps(key) for key in keys}) == 5


GOOD_TOC = "format: jb-book\nroot: book/preface\nchapters:\n- file: notebooks/01_count\n"


def settings(root: Path, toc: bytes | str = GOOD_TOC, config: bytes | str = "title: A book\n") -> list[str]:
    """What is said of a small book with these settings; None in place of a file that is not there."""
    for name, text in {"_toc.yml": toc, "_config.yml": config}.items():
        if text is not None:
            (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    for folder, name, text in (("book", "preface.md", "# A"), ("notebooks", "01_count.ipynb", '{"cells": [{}]}')):
        (root / folder).mkdir(exist_ok=True)
        if not (root / folder / name).exists():
            (root / folder / name).write_text(text)
    return book_script.look_at_settings(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, ": is not there"),
        ("", ": is empty"),
        ("# only a remark\n", ": is empty"),
        ("- a\n- b\n", ", line 1: is a list"),
        ("just words\n", ", line 1: is a text"),
        ("a: 1\nb: [1\nc: 2\n", ", line 3: "),
        ("a: 1\n\tb: 2\n", ", line 2: "),
        ("a: 1\nb: \x07\n", ", line 2: "),
        ("a: 1\nb: 2026-13-45\n", ": month must be in 1..12"),
        ("a: 1\n# gr\u00fcn\n".encode("latin-1"), ", line 2: byte 0xfc is not UTF-8"),
        ("a: 1\n".encode("utf-16"), ", line 1: byte 0xff is not UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["toc", "config"])
def test_settings_that_cannot_be_read_are_named_by_file_and_line(tmp_path, name, text, said):
    (found,) = settings(tmp_path, **{name: text})
    assert found.startswith(f"_{name}.yml{said}") and "\n" not in found, found


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("toc", f"{GOOD_TOC}- file: book/preface\n", "_toc.yml, line 5: book/preface is listed twice (line 2)"),
        ("toc", f"{GOOD_TOC}- file: notebooks/01_count.ipynb\n", "_toc.yml, line 5: notebooks/01_count is listed"),
        ("toc", f"{GOOD_TOC}- file: notebooks/02_gone\n", "_toc.yml, line 5: there is no notebooks/02_gone"),
        ("toc", f"{GOOD_TOC}- fil: notebooks/02\n", "_toc.yml, line 5: entry does not contain one of"),
        ("toc", f"{GOOD_TOC}- notebooks/02\n", "_toc.yml, line 5: entry not a mapping type"),
        ("toc", f"{GOOD_TOC}- file:\n", "_toc.yml, line 5: "),
        ("toc", "format: jb-book\nchapters:\n- file: book/preface\n", "_toc.yml, line 1: 'root' key not found"),
        ("toc", "format: jb-buch\nroot: book/preface\n", "_toc.yml: 'format' key value not recognised"),
        ("config", "title: A\nexecute:\n  timeout: soon\n", "_config.yml, line 3: 'soon' is not of type 'number'"),
        ("config", "title: A\nexecute:\n", "_config.yml, line 2: None is not of type 'object'"),
    ],
)
def test_settings_that_make_no_book_are_named_by_file_and_line(tmp_path, name, text, said):
    (found,) = settings(tmp_path, **{name: text})
    assert found.startswith(said) and "\n" not in found, found


def test_settings_without_a_fault(tmp_path):
    assert settings(tmp_path) == [] and book_script.look_at_settings(ROOT) == []
    for text in ('{"cells": []}', '{"nbformat": 4}'):
        (tmp_path / "notebooks" / "01_count.ipynb").write_text(text)
        assert settings(tmp_path) == ["_toc.yml, line 4: notebooks/01_count.ipynb has no cells"]
    (tmp_path / "notebooks" / "01_count.ipynb").write_text("<<<<<<< HEAD")  # the build names what is wrong with it
    assert settings(tmp_path) == []


def test_a_build_with_broken_settings_ends_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setattr(book_script, "build", None)
    settings(tmp_path, toc="")
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").write_text("the last book")
    assert book_script.main(["--root", str(tmp_path)]) == 1
    assert "The book was not built: 1 problem.\n\n  _toc.yml: is empty" in capsys.readouterr().out
    assert (tmp_path / "_build" / "html" / "index.html").exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes and sockets of Unix")
@pytest.mark.parametrize("name", ["book/notes.md", "notebooks/01_count.ipynb", "_toc.yml", "book/_static/a.svg", "x"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe"])
def test_a_build_does_not_wait_for_a_pipe(tmp_path, monkeypatch, name, kind):
    settings(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # a socket's name is short
        socket.socket(socket.AF_UNIX).bind(path.name)
    else:
        os.mkfifo(tmp_path / ".pipe")
        path.symlink_to(tmp_path / ".pipe")
    assert book_script.look_at_settings(tmp_path) == [f"{name}: is a {kind.split()[-1]}; expected a file. Remove it"]


@pytest.mark.parametrize("name", ["what?", "a%20b", "50%af"])
def test_a_folder_that_the_cache_cannot_name_is_refused(tmp_path, monkeypatch, capsys, name):
    """jupyter-cache writes the path into an address, where these marks mean something else."""
    monkeypatch.setattr(book_script, "build", None)
    root = tmp_path / name
    root.mkdir()
    settings(root)
    assert book_script.main(["--root", str(root)]) == 2
    said = capsys.readouterr().err
    assert str(root) in said and "Rename" in said and "Traceback" not in said
    (tmp_path / "100% ä#").mkdir()
    assert book_script.unnameable(tmp_path / "100% ä#") == ""


def test_a_build_that_nobody_reads_any_more_is_not_said_to_have_failed(tmp_path, monkeypatch, capsys):
    def gone(root):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(book_script, "make", gone)
    with pytest.raises(BrokenPipeError):  # env.run ends quietly
        book_script.main(["--root", str(tmp_path)])
    assert "not built" not in capsys.readouterr().err


def test_the_last_error_with_words_is_said(tmp_path):
    log = ["Traceback (most recent call last):", "yaml.scanner.ScannerError: mapping values are not allowed here",
           "", "The above exception was the direct cause", "RuntimeError: ", "", "RuntimeError:"]  # fmt: skip
    (found,) = book_script.problems_in(tmp_path, 1, log)
    assert found == "yaml.scanner.ScannerError: mapping values are not allowed here"
    assert book_script.problems_in(tmp_path, 1, ["RuntimeError:"]) == ["RuntimeError:"]


def stub_build(root, log, scale="cpu"):
    """In place of jupyter-book: a chapter that writes beside itself and fetches data, and a finished page."""
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "notebooks" / "model.pt").write_text(str(time.time_ns()))
    Path(os.environ["VITBOOK_DATA"]).mkdir(exist_ok=True)
    (Path(os.environ["VITBOOK_DATA"]) / "fetched").write_text("")
    for name in (".jupyter_cache/global.db", "html/index.html"):
        (root / "_build" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "_build" / name).write_text("")
    return 0, []


def test_what_a_chapter_writes_beside_itself_does_not_execute_all_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / ".data"))
    monkeypatch.setattr(book_script, "build", stub_build)
    monkeypatch.setattr(book_script, "look_at_settings", lambda root: [], raising=False)
    arguments = ["--root", str(tmp_path)]
    assert book_script.main(arguments) == 0
    capsys.readouterr()
    assert book_script.main(arguments) == 0
    assert "Nothing changed" in capsys.readouterr().out
    (tmp_path / "vitutils").mkdir()
    (tmp_path / "vitutils" / "a.py").write_text("")
    (tmp_path / "notebooks" / "model.pt").write_text("by hand")
    assert book_script.main(arguments) == 0
    assert f"Changed: vitutils, {book_script.BESIDE}. " in capsys.readouterr().out


def test_an_unset_scale_is_what_the_notebooks_find(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.delenv("VITBOOK_SCALE", raising=False)
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert book_script.execution_key(tmp_path)["VITBOOK_SCALE"] == ("gpu" if found else "cpu")
    monkeypatch.setenv("VITBOOK_SCALE", "huge")
    assert book_script.main(["--root", str(tmp_path)]) == 2
    assert "smoke, cpu, gpu" in capsys.readouterr().out


def test_notebooks_and_caches_are_not_in_the_key(tmp_path, monkeypatch):
    """jupyter-cache sees a notebook's own edits; the rest comes and goes by itself."""
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / ".data"))
    (tmp_path / ".data").mkdir()
    before = book_script.execution_key(tmp_path)
    names = ("notebooks/a.ipynb", "vitutils/__pycache__/a.pyc", "vitutils/.hidden", ".data/features/1.safetensors")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert book_script.execution_key(tmp_path) == before
    # The same folder in other words.
    monkeypatch.setenv("HOME", str(tmp_path))
    for same in (f"{tmp_path}/notebooks/../.data", "~/.data"):
        monkeypatch.setenv("VITBOOK_DATA", same)
        assert book_script.execution_key(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="pipes and links of Unix")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    names = ["vitutils/pipe", "vitutils/link", "vitutils/loop"]
    (tmp_path / "vitutils").mkdir()
    os.mkfifo(tmp_path / names[0])
    for name, place in zip(names[1:], ("nowhere", "loop"), strict=True):
        (tmp_path / name).symlink_to(place)
    paths = [tmp_path / name for name in names]
    assert sorted(book_script.files_under(tmp_path, "vitutils")) == sorted(paths)
    before = book_script.digest_files(tmp_path, paths)
    paths[1].unlink()
    paths[1].symlink_to("elsewhere")
    assert book_script.digest_files(tmp_path, paths) != before


def test_changed_is_said_of_what_changed(tmp_path):
    """Never of a first build, never of what is the same; a build that was cut off is not another command's."""
    key, cache = {"vitutils": "1", "data": []}, tmp_path / "cache"
    assert book_script.changes({}, key, cache) == []
    cache.mkdir()
    (cache / "global.db").write_text("")
    state = book_script.cache_state(cache)
    assert book_script.changes({"key": key, "cache": state}, key, cache) == []
    assert book_script.changes({"key": key | {"data": [1]}, "cache": state}, key, cache) == ["data"]
    assert book_script.changes({"key": key, "cache": state - 1}, key, cache) == ["the cache, by another command"]
    assert book_script.changes({"key": key, "cache": book_script.UNFINISHED}, key, cache) == [book_script.UNFINISHED]


# --- What goes wrong, and what a reader has set ---------------------------------------------------

@pytest.fixture(scope="module")
def rough(tmp_path_factory) -> SmallBook:
    """Five chapters, four of which fail each in its way, built once, into a folder on another disk."""
    small = SmallBook(tmp_path_factory.mktemp("rough"))
    root = small.root
    # All five in one build: the real book stops at the first that fails.
    config = (root / "_config.yml").read_text()
    assert "raise_on_error: true" in config
    small.write("_config.yml", config.replace("raise_on_error: true", "raise_on_error: false"))
    with (root / "_toc.yml").open("a") as toc:
        toc.write("".join(f"- file: notebooks/{name}\n" for name in ("02_killed", "03_slow", "04_exit", "05_r")))
    far = {"display_name": "Python (my-env)", "language": "python", "name": "my-conda-env"}
    small.notebook(code='import os\nos.write(1, b"bytes \\xff\\xfe\\n")', kernelspec=far)
    small.notebook(name="02_killed", code="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    small.notebook(name="03_slow", code="import time\ntime.sleep(300)")
    small.notebook(name="04_exit", code="import os\nos._exit(3)")
    small.notebook(name="05_r", kernelspec={"display_name": "R", "language": "R", "name": "ir"})

    os.mkfifo(root / "vitutils" / "pipe")
    (root / "vitutils" / "gone").symlink_to("nowhere")
    (root.parent / "disk").mkdir()
    (root / "_build").symlink_to(root.parent / "disk")
    small.environment[running.LIMIT] = "4"  # no other cell does anything that takes time
    command = f"umask 0777; exec {' '.join(map(str, small.command()))}"
    shell = ["sh", "-c", command]
    small.done = subprocess.run(shell, env=small.environment, capture_output=True, text=True, timeout=1800)
    small.said = small.done.stdout
    return small


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("notebooks/02_killed.ipynb, cell 2 (`count`): ", "the kernel was killed (SIGKILL)"),
        ("notebooks/03_slow.ipynb, cell 2 (`count`): ", "ran longer than the 4 seconds"),
        ("notebooks/03_slow.ipynb, cell 2 (`count`): ", "VITBOOK_CELL_TIMEOUT=8 make book"),
        ("notebooks/04_exit.ipynb, cell 2 (`count`): ", "the kernel ended by itself (exit status 3)"),
        ("notebooks/05_r.ipynb: ", "is a notebook in R (kernel 'ir'); expected one in Python"),
    ],
)
def test_a_chapter_that_fails_is_named_by_cell_and_cause(rough, where, what):
    assert rough.done.returncode == 1, rough.said + rough.done.stderr
    lines = [line.strip() for line in rough.said.splitlines()]
    assert any(line.startswith(where) and what in line for line in lines), rough.said
    assert ": 4 problems." in rough.said, rough.said
    assert "ZMQError" not in rough.said and "Traceback" not in rough.said + rough.done.stderr


@pytest.mark.slow
def test_neither_a_kernel_of_another_machine_nor_a_byte_that_is_no_text_stops_a_chapter(rough):
    assert "bytes \ufffd\ufffd" in rough.page("notebooks/01_count.html")


@pytest.mark.slow
def test_build_may_be_a_link_to_another_disk(rough):
    assert (rough.root / "_build").is_symlink() and (rough.root.parent / "disk" / "html" / "index.html").is_file()
    assert not [fault for fault in book_script.look_at_pages(rough.root / "_build" / "html") if "link" in fault]


def test_a_page_that_sphinx_cannot_read_is_named(tmp_path):
    """Not its own last words, which are always the same. The log is a real one's, of a notebook with merge marks."""
    log = (
        "reading sources... [ 67%] book/preface\nreading sources... [100%] notebooks/01_count\n\n"
        "Exception occurred:\n  File \"/x/nbformat/reader.py\", line 25, in parse_json\n"
        "    raise NotJSONError(message) from e\n"
        "nbformat.reader.NotJSONError: Notebook does not appear to be JSON: '<<<<<<< HEAD\\n{\"cells\"...\n"
        "The full traceback has been saved in /tmp/sphinx-err-eqnhv1hq.log, if you want to report the issue.\n"
        "Please also report this if it was a user error, so that a better error message can be provided next time.\n"
        "Traceback (most recent call last):\nRuntimeError: \n====\nThere was an error in building your book.\n"
    ).splitlines()
    (found,) = book_script.problems_in(tmp_path, 1, log)
    assert found.startswith("notebooks/01_count: nbformat.reader.NotJSONError: Notebook does not appear to be JSON")
    no_space = "OSError: [Errno 28] No space left on device"
    full = [line.replace("nbformat.reader.NotJSONError: Note", no_space) for line in log]
    assert "notebooks/01_count: Disk full" in book_script.problems_in(tmp_path, 1, full)[0]
    early = ["Traceback (most recent call last):", '  File "x", line 1', "ModuleNotFoundError: No module named 'x'"]
    assert book_script.problems_in(tmp_path, 1, early) == ["ModuleNotFoundError: No module named 'x'"]
    assert "signal 9" in book_script.problems_in(tmp_path, -9, ["Running Jupyter-Book"])[-1]


def test_a_problem_is_a_line_not_a_notebook(tmp_path):
    log = [f"/x/01.ipynb: WARNING: undecodable source characters, replacing with '?': {'y' * 100_000}"]
    (found,) = book_script.problems_in(tmp_path, 1, log)
    assert "undecodable" in found and len(found) < 600


def test_the_cause_is_said_not_what_came_of_it(tmp_path):
    """After a timeout the kernel's socket may be closed already: a ZMQError came out of it, on a busy machine."""
    attempt = runner.Run(nbformat.v4.new_notebook(), tmp_path, limit=3600)
    try:
        try:
            raise CellTimeoutError("A cell timed out")
        except CellTimeoutError:
            raise OSError("Socket operation on non-socket")  # noqa: B904 - as it happens there
    except OSError as error:
        said = attempt.words(error)
    assert "longer than the 3600 seconds" in said and "VITBOOK_CELL_TIMEOUT=7200" in said and "ocket" not in said
    assert "did not start" in attempt.words(RuntimeError("Kernel died before replying to kernel_info"))
    assert attempt.words(ValueError("a\n  b")) == "ValueError: a b"


@pytest.mark.parametrize("left", ["nothing", "half"])
def test_a_notebook_half_put_into_the_cache_is_executed_again(tmp_path, left):
    """A build may be killed between the record and the end of its file."""
    store = get_cache(str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    store.cache_notebook_bundle(CacheBundleIn(notebook, "01.ipynb"), check_validity=False)
    runner.forget_half_kept(store, notebook)
    assert len(store.list_cache_records()) == 1
    (kept,) = tmp_path.rglob("base.ipynb")
    kept.unlink() if left == "nothing" else kept.write_text(kept.read_text()[:50])
    runner.forget_half_kept(store, notebook)
    assert store.list_cache_records() == []
    runner.forget_half_kept(store, notebook)
    store.cache_notebook_bundle(CacheBundleIn(notebook, "01.ipynb"), check_validity=False, overwrite=True)


# --- One at a time, and an end that leaves nothing behind -----------------------------------------

SLEEP = """\
import os, time
from pathlib import Path

Path("../.kernel.new").write_text(str(os.getpid()))
os.replace("../.kernel.new", "../.kernel")
time.sleep(600)"""


def begun(small: SmallBook) -> tuple[subprocess.Popen, int]:
    """A build that has come to the cell that sleeps, and its kernel's process."""
    note = small.root / ".kernel"
    note.unlink(missing_ok=True)
    process = subprocess.Popen(
        small.command(), env=small.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
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
    with (tmp_path / "_toc.yml").open("a") as toc:
        toc.write("- file: notebooks/02_sleep\n")
    small.notebook(name="02_sleep", code=SLEEP)
    first, kernel = begun(small)
    try:
        second = small.build()  # meanwhile
        assert second.returncode == 2 and "Traceback" not in second.stderr
        assert f"`make book` (process {first.pid}, since " in second.stderr
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
    small.notebook(name="02_sleep", code="print('awake')")
    done = small.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Left: {book_script.UNFINISHED}" in done.stdout and "Changed" not in done.stdout
    assert small.executions() == 2


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_the_block_once(name):
    number = getattr(signal, name)
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, usual)  # these tests may run under `nohup` themselves
    try:
        with pytest.raises(KeyboardInterrupt) as seen, running.stoppable():
            try:
                signal.raise_signal(number)
            finally:
                if name != "SIGINT":
                    signal.raise_signal(number)  # while it is cleaned up
        assert getattr(seen.value, "status", 130) == 128 + number
        assert signal.getsignal(number) == usual
        signal.signal(number, signal.SIG_IGN)  # as `nohup` does
        with running.stoppable():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


def test_ending_a_process_ends_what_it_started():
    """Groups of their own as kernels have, and a child of a child."""
    code = "import subprocess, sys, time\n"
    code += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    code += "print(p.pid, flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    running.end(process)
    process.stdout.close()
    assert process.poll() is not None and gone(child)
    running.end(process)  # nothing to do


def test_one_command_at_a_time(tmp_path):
    with running.alone(tmp_path, "make book"):
        with pytest.raises(running.Busy, match=rf"`make book` \(process {os.getpid()}, since \d\d:\d\d\) is at work"):
            with running.alone(tmp_path, "make test"):
                pass
    with running.alone(tmp_path, "make test"):
        pass


@pytest.mark.parametrize("kind", ["file", "link"])
def test_build_that_is_no_folder(tmp_path, capsys, kind):
    where = tmp_path / "_build"
    where.write_text("x") if kind == "file" else where.symlink_to("/nowhere/disk")
    assert book_script.main(["--root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "_build" in said and ("/nowhere/disk, which is not there" if kind == "link" else "File exists") in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (28, "Disk full while writing _build/x"),
        (122, "Disk full"),
        (30, "_build/x cannot be read or written (Read-only"),
        (13, "(Permission denied"),
        (5, "_build/x: "),
    ],
)
def test_a_file_that_cannot_be_written(tmp_path, number, words):
    assert words in running.in_words(OSError(number, os.strerror(number), str(tmp_path / "_build" / "x")), tmp_path)


# --- Limits ---------------------------------------------------------------------------------------


def test_how_long_a_cell_may_run():
    """At least four times the slowest whole notebook there has been at that scale (seconds)."""
    for scale, slowest in {"smoke": 20, "cpu": 220, "gpu": 360}.items():
        assert running.cell_limit(scale, {}) >= 4 * slowest
        assert running.cell_limit(scale, {running.LIMIT: " 7200 "}) == 7200
    for wrong in ("abc", "0", "-1", "nan", "inf", "1h"):
        with pytest.raises(ValueError, match=f"{running.LIMIT} is '{wrong}'; expected the seconds"):
            running.cell_limit("cpu", {running.LIMIT: wrong})


def test_a_limit_that_is_none_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setenv(running.LIMIT, "soon")
    assert book_script.main(["--root", str(tmp_path)]) == 2
    assert running.LIMIT in capsys.readouterr().out
