"""`make book`, proved on a small book: nothing stale, nothing executed twice, no fault that passes.

The book is made on the spot, with the real _config.yml, its one notebook counts its own executions.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import links

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

    def notebook(self, prose: str = "It counts.", code: str = COUNT, tags: tuple = ()) -> None:
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
        content = {"cells": cells, "metadata": {"kernelspec": kernel}}
        content |= {"nbformat": 4, "nbformat_minor": 5}
        self.write("notebooks/01_count.ipynb", json.dumps(content))

    def build(self) -> subprocess.CompletedProcess:
        command = [sys.executable, str(SCRIPT), "--root", str(self.root)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=1800)

    def executions(self) -> int:
        file = self.root / ".executions"
        return len(file.read_text()) if file.exists() else 0

    def page(self, name: str) -> str:
        return (self.root / "_build" / "html" / name).read_text()


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> SmallBook:
    """Built once, without a fault. The tests that use it run in the order they stand here."""
    small = SmallBook(tmp_path_factory.mktemp("book"))
    left = small.root / ".pytest_cache" / "README.md"  # as a test run leaves it: no page of the book
    left.parent.mkdir()
    left.write_text("# pytest's own\n")
    done = small.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert small.executions() == 1
    small.first = done
    return small


def test_a_build_says_which_file_to_open(book):
    index = book.root / "_build" / "html" / "index.html"
    assert index.exists()
    assert str(index) in book.first.stdout and index.as_uri() in book.first.stdout
    assert "word: first" in book.page("notebooks/01_count.html")


def test_the_button_of_a_chapter_opens_its_notebook_in_colab(book):
    assert links.internal(book.root / "_build" / "html", book.root) == []
    url, branch = links.home(ROOT)
    place = f"{url.removeprefix('https://github.com')}/blob/{branch}/notebooks/01_count.ipynb"
    assert f"https://colab.research.google.com/github{place}" in book.page("notebooks/01_count.html")


def test_unchanged_it_executes_nothing(book):
    done = book.build()
    assert done.returncode == 0, done.stdout
    assert book.executions() == 1
    assert "Nothing changed" in done.stdout
    assert (book.root / "_build" / "html" / "index.html").as_uri() in done.stdout


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


def test_a_failing_cell_fails_the_build_twice(book):
    book.write("book/preface.md", book.preface())
    book.notebook(code='print("so far so good")\n\nvalue = 1 / 0')
    for _ in range(2):
        said = summary(book.build())
        assert ": 1 problem." in said, said
        assert "notebooks/01_count.ipynb, cell 2 (`count`): ZeroDivisionError" in said
        assert "value = 1 / 0" in said


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
        ("notebooks/helper.csv", "results"),
        ("book/_static/block.svg", "drawings"),
        ("requirements.txt", "requirements.txt"),
        (".data/images/cifar10", "data"),
    ],
)
def test_the_execution_key_sees(tmp_path, monkeypatch, name, part):
    monkeypatch.setenv("VITBOOK_SCALE", "cpu")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / ".data"))
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
    before = book_script.execution_key(tmp_path)
    for name in ("notebooks/a.ipynb", "vitutils/__pycache__/a.pyc", "vitutils/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert book_script.execution_key(tmp_path) == before
