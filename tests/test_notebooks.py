"""The notebook contract: every chapter keeps every rule, and every rule can be seen broken.

The rules are functions in `tools/notebook_rules.py`. Here each runs over the real chapters, and over a small made-up
book: as it stands no rule complains; spoiled in one place, the rule that is about that place must say so.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import chapter_file
import notebook_file
import notebook_rules as rules
import notebooks as command

CHAPTERS = chapter_file.notebook_paths()
URL = "https://github.com/your_org/vit-book"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_every_rule(path):
    assert rules.check(path) == {}


def test_the_chapters_write_the_whole_vit_out():
    assert CHAPTERS and rules.untaught() == []


# ---------------------------------------------------------------- a made-up book

CLASS = '''\
class Half(nn.Module):
    """Halve the images."""

    def forward(self, images):
        return images / 2
'''
PAGES = {
    "_config.yml": f"repository:\n  url: {URL}\n",
    "_toc.yml": "format: jb-book\nroot: index\nparts:\n- caption: All\n  chapters:\n  - file: notebooks/04_made_up\n",
    "index.md": "# A book\n",
    "book/bibliography.md": "# Bibliography\n\n```{bibliography}\n:all:\n```\n",
    "book/references.bib": "@article{somebody2021,\n  title = {Half}\n}\n",
    "book/glossary.md": "# Glossary\n\n## Patch size\n\nThe side of a patch.\n",
    "vitutils/models/vit.py": f"from torch import nn\n\n\n{CLASS}",
    "vitutils/data/sets.py": "def load(name):\n    return name\n",
    "vitutils/models/weights.py": "def load(name):\n    return [name]\n",
}
OPENING = """\
# Half an image

After this chapter you can halve an image and say what is left.

*You will*

- halve;
- look;
- check.

*Before you start.* Nothing is needed.

*Time.* About 1 minute on a CPU or a GPU; nothing is downloaded."""
FILLER = "These plain words fill the page. " * 260 + "The end."
CAPTION = "*Figure 4.1.* The halved image is darker than the image itself."
ALT = "Two grey images side by side, axes in pixels; the right one is half as bright."
END = """\
## Summary

1. Half
2. is
3. not
4. a
5. whole.

## Further reading

- [Somebody 2021](../book/bibliography.md#somebody2021): halves.

*Next.* A quarter, in preparation."""


def markdown(cell_id: str, source: str) -> dict:
    return {"cell_type": "markdown", "id": cell_id, "metadata": {}, "source": source.splitlines(keepends=True)}


def code(cell_id: str, source: str, alt: str = "", prints: str = "", tags: list[str] | None = None) -> dict:
    metadata = {"mystnb": {"image": {"alt": alt}}} if alt else {"keep_output": True} if prints else {}
    metadata |= {"tags": tags} if tags else {}
    metadata |= {"cellView": "form"} if "hide-input" in (tags or []) else {}
    outputs = [{"name": "stdout", "output_type": "stream", "text": [prints]}] if prints else []
    count = 1 if source.startswith(notebook_file.MARKER) else None
    cell = {"cell_type": "code", "execution_count": count, "metadata": metadata, "outputs": outputs}
    return markdown(cell_id, source) | cell


def notebook(*cells: dict) -> dict:
    cells = [dict(sorted(cell.items())) for cell in copy.deepcopy(cells)]
    return {"cells": cells, "metadata": notebook_file.NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5}


def stored(path: Path, *cells: dict) -> Path:
    path.write_text(notebook_file.dumps(notebook(*cells)), encoding="utf-8")
    return path


GOOD = [
    markdown("opening", OPENING),
    code("setup", rules.SETUP.format(url=URL), tags=["hide-input"]),
    markdown("claim", "## Halving\n\nOne class is [enough](../book/glossary.md#patch-size): "
                      f"`{{x}}`, $x_{{1}} < 2$, and **half**.\n\n{FILLER}"),
    code("half-class", CLASS.rstrip()),
    code("half-look", "plot.images([image, Half()(image)])", alt=ALT, tags=["hide-input"]),
    markdown("half-caption", CAPTION),
    code("half-check", '# NBVAL_CHECK_OUTPUT\nprint("half")', prints="half\n"),
    markdown("mistakes", "## Common mistakes\n\n**Halving twice.** See Figure 4.1."),
    markdown("exercises", "## Exercises\n\n**Exercise 4.1 (easy).** Halve once."),
    code("easy-check", "check.equal(1, 1)"),
    markdown("core", "**Exercise 4.2 (core).** Halve twice."),
    code("core-check", "check.equal(1, 1)"),
    markdown("stretch", "**Exercise 4.3 (stretch).** Never stop halving."),
    code("stretch-check", "check.equal(1, 1)"),
    markdown("end", END),
]  # fmt: skip


@pytest.fixture
def book(tmp_path) -> chapter_file.Chapter:
    """A small book with one chapter that keeps every rule."""
    for name, source in PAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    return chapter_file.Chapter.read(stored(tmp_path / "notebooks" / "04_made_up.ipynb", *GOOD), tmp_path)


# What spoils the good chapter; each returns a function of it.


def cell(book: chapter_file.Chapter, cell_id: str) -> dict:
    return next(cell for cell in book.cells if cell["id"] == cell_id)


def replace(cell_id: str, old: str, new: str):
    def spoil(book):
        found = cell(book, cell_id)
        assert old in found["source"]
        found["source"] = found["source"].replace(old, new)

    return spoil


def append(cell_id: str, more: str):
    return lambda book: cell(book, cell_id).update(source=cell(book, cell_id)["source"] + more)


def insert(after: str, *new: dict):
    new = [one | {"source": notebook_file.text(one["source"])} for one in new]
    return lambda book: book.cells.__setitem__(slice(at := book.cells.index(cell(book, after)) + 1, at), new)


def drop(cell_id: str):
    return lambda book: book.cells.remove(cell(book, cell_id))


def change(cell_id: str, **values):
    return lambda book: cell(book, cell_id).update(values)


def alt(words: str):
    return change("half-look", metadata={"mystnb": {"image": {"alt": words}}})


def on_disk(name: str, old: str, new: str):
    def spoil(book):
        source = (book.root / name).read_text(encoding="utf-8")
        assert old in source
        (book.root / name).write_text(source.replace(old, new), encoding="utf-8")

    return spoil


def another_chapter(book: chapter_file.Chapter) -> None:
    (book.root / "notebooks" / "05_next.ipynb").write_text("{}", encoding="utf-8")
    with (book.root / "_toc.yml").open("a", encoding="utf-8") as toc:
        toc.write("  - file: notebooks/05_next\n")


PICTURE = {"data": {"image/png": ""}, "metadata": {}, "output_type": "display_data"}
CASES = {  # each case: what the complaint must say, and how the good chapter is spoiled
    "stored_form": [
        ("its metadata", lambda book: book.notebook.update(nbformat_minor=4)),
        ("its metadata", lambda book: setattr(book, "stored", json.dumps(book.notebook, indent=2))),
        ("cell 'half-look'", change("half-look", metadata={"collapsed": True})),
        ("cell 'half-check'", lambda book: cell(book, "half-check")["outputs"].append(PICTURE)),
        ("cell 'b33fca1e'", change("mistakes", id="b33fca1e")),
        ("the cell 'class Half", lambda book: cell(book, "half-class").pop("id")),
        ("id 'claim' stands twice", change("mistakes", id="claim")),
        ("'half-check' is marked and stores no output", change("half-check", outputs=[])),
    ],
    "code_is_python": [
        ("'half-look' is not Python: invalid syntax, line 3", append("half-look", "\n\nfor x in")),
    ],
    "setup_cell": [
        ("differs from the one", on_disk("_config.yml", URL, f"{URL}-2")),
        ("as its first code cell", insert("opening", code("early", "1"))),
        ("only there", insert("claim", code("setup", "1"))),
    ],
    "written_once": [
        ("Half differs from the one in vitutils/models/vit.py", replace("half-class", "the images.", "an image.")),
        ("load differs from the one in vitutils/data/sets.py and vitutils/models/weights.py",
         append("half-look", "\n\ndef load(name):\n    return (name,)")),
    ],
    "cell_length": [
        ("'half-look' has 31 lines of code", append("half-look", "\n\nx = 1" * 30)),
        ("'half-look', line 2 has 80 characters", append("half-look", "\n#" + "x" * 79)),
        ("'second' is the third code cell in a row", insert("half-check", code("first", "1"), code("second", "2"))),
    ],
    "runs_anywhere": [
        ("'half-look' is empty, skipped", append("half-look", "\n# NBVAL_SKIP")),
        ("'half-look' is empty, skipped", change("half-look", metadata={"tags": ["raises-exception"]})),
        ("'void' is empty", insert("claim", code("void", ""))),
        ("'asked' has a magic", insert("claim", code("asked", "%%writefile x.py\nclass Half: 1"))),
        ("names ../results/x.csv", append("half-look", "\nopen('../results/x.csv')")),
        ("environment", append("half-look", "\nos.environ['VITBOOK_SCALE']")),
        ("/home/m…", append("half-look", "\nopen('/home/me/cat.png')")),
        ("'half-check' holds the path", lambda book: cell(book, "half-check")["outputs"][0].update(text="/home/me")),
    ],
    "nothing_left_open": [
        ("'claim' still holds '@@ACCURACY'", append("claim", " It got @@ACCURACY.")),
    ],
    "alt_texts": [
        ("has no alt text", change("half-look", metadata={})),
        ("says too little", alt("A plot.")),
        ("has the alt text of cell 'half-look'", insert("half-check", code("again", "history.plot()", alt=ALT))),
    ],
    "captions": [
        ("'half-look' draws figure 4.1", drop("half-caption")),
        ("'half-look' draws figure 4.1", replace("half-caption", "Figure 4.1", "Figure 4.2")),
        ("'again' draws figure 4.2", insert("half-check", code("again", "h.plot()"))),
        ("says too little", replace("half-caption", CAPTION, "*Figure 4.1.* Dark.")),
        ("'half-class' draws nothing", drop("half-look")),
        ("figure 4.2, which is not there", append("claim", " See figure 4.2.")),
    ],
    "plain_markdown": [
        ("a MyST directive", append("claim", "\n\n```{note}\nHalf.\n```")),
        ("a MyST block", append("claim", "\n\n:::{note}\nHalf.\n:::")),
        ("a footnote", append("claim", " Half.[^1]\n\n[^1]: Not whole.")),
        ("Colab cannot find", append("claim", f"\n\n![{ALT}](../half.svg)")),
        ("without alt text", append("claim", "\n\n![](https://a.org/half.svg)")),
        ("'claim' has a pasted picture", append("claim", f"\n\n![{ALT}](attachment:x.png)")),
        ("'old' is a raw cell", insert("claim", markdown("old", "x") | {"cell_type": "raw"})),
        ("HTML: <div class=tip>", append("claim", "\n\n<div class=tip>Half.</div>")),
    ],
    "length_of_prose": [
        ("words of prose", replace("claim", FILLER, "")),
        ("words of prose", append("claim", FILLER * 2)),
    ],
    "skeleton": [
        ("a title", replace("opening", "# Half", "## Half")),
        ("'*You will*' alone", replace("opening", "- look;", "- look;\n- smell;\n- taste;\n- hear;")),
        ("'*Time.* '", replace("opening", " or a GPU", "")),
        ("'**So and so.** '", replace("mistakes", "**Halving", "**1. Halving")),
        ("'## Summary'", replace("end", "3. not\n", "")),
        ("does not link to 05_next.ipynb", another_chapter),
        ("more than one heading of level 1", append("claim", "\n\n# Whole")),
        ("heading 'Halving' stands twice", append("claim", "\n\n## Halving")),
    ],
    "exercises": [
        ("('4.3', 'hard')", replace("stretch", "stretch", "hard")),
    ],
    "glossary_links": [
        ("has 'patch size' without", replace("claim", "One class", "The patch\nsize: one class")),
        ("has 'patch size' without", replace("claim", "[enough](../book/glossary.md#patch-size)", "Two patch sizes")),
        ("has 'whole' without", on_disk("book/glossary.md", "## Patch", "## Whole\n\nNot half.\n\n## Patch")),
    ],
    "one_word": [
        ("'net': network", append("claim", " A net is halved.")),
        ("'gray': British", alt(f"{ALT} gray")),
        ("'+-': ±", append("half-check", "\nprint('1 +- 2')")),
    ],
    "links": [
        ("../book/nothing.md, which is not in", append("claim", " [x](../book/nothing.md)")),
        ("../../other.md, which is not in", append("claim", " [x](../../other.md)")),
        ("where 'nobody1999' is not", append("claim", " [x](../book/bibliography.md#nobody1999)")),
        ("http://a.org, which is not https", append("claim", " [x](http://a.org)")),
        ("does not stand in _toc.yml", on_disk("_toc.yml", "notebooks/04_made_up", "book/glossary")),
    ],
}  # fmt: skip


def test_every_rule_is_seen_broken_and_none_complains_of_the_good_book(book):
    assert set(CASES) == set(rules.RULES)
    assert rules.check(book.path, book.root) == {} and rules.untaught(book.root) == []
    on_disk("vitutils/models/vit.py", "class Half", "class Third")(book)
    assert rules.untaught(book.root) == ["vitutils/models/vit.py: Third is written out in no chapter"]


@pytest.mark.parametrize(("key", "says", "spoil"), [(key, *case) for key, cases in CASES.items() for case in cases])
def test_a_spoiled_chapter_is_reported(book, key, says, spoil):
    spoil(book)
    wrong = rules.RULES[key](book)
    assert any(says in line for line in wrong), wrong


@pytest.mark.parametrize("words", ["`net`", "$net$", "[half](../book/glossary.md)", "EfficientNet, subnet",
                                   "a Transformer", "\n\n### Patch size\n\n| patch size |\n|---|\n| x |"])  # fmt: skip
def test_names_are_not_prose(book, words):
    replace("claim", "## Halving", f"## Halving\n\n{words}")(book)
    append("exercises", " Patch size.")(book)
    assert rules.one_word(book) == rules.glossary_links(book) == []


@pytest.mark.parametrize(("source", "says"), [
    ("from matplotlib import pyplot as p\np", "draw with it"), ("from tqdm.auto import tqdm\ntqdm", "shows nothing"),
    ("from vitutils.plot import images\nimages", "ICN003"), ("from vitutils import plot as draw\ndraw", "ICN001"),
    ("import os", "F401"), ("nobody", "F821"),
])  # fmt: skip
def test_ruff_is_asked_too(tmp_path, source, says):
    path = stored(tmp_path / "04_x.ipynb", markdown("a", "a"), code("b", "1 + 1"), code("c", f"\n{source}"))
    lines = [line for line in command.ruff(path) if "I001" not in line]
    assert [line for line in lines if says in line and "cell 'c', line 2: " in line], lines


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_refresh_stores_marked_outputs_and_nothing_else(tmp_path):
    plain = code("plain", "import sys\nprint('not kept')\nprint('nor this', file=sys.stderr)")
    path = stored(tmp_path / "04_x.ipynb", plain,
                  code("marked", f"{notebook_file.MARKER}\nprint('naïve')\n(1, 2)", prints="old\n"))  # fmt: skip
    assert command.main(["refresh", str(path)]) == 0
    plain, marked = notebook_file.read(path)["cells"]
    assert plain["outputs"] == [] and plain["execution_count"] is None
    assert marked["outputs"][0]["text"] == ["naïve\n"] and marked["metadata"] == {"keep_output": True}
    assert marked["outputs"][1]["data"] == {"text/plain": ["(1, 2)"]}
    assert rules.stored_form(chapter_file.Chapter.read(path)) == []


DRAWN = "from IPython.display import Image, display\ndisplay(Image(b'\\x89PNG\\r\\n\\x1a\\n'))"
MARKED = f"{notebook_file.MARKER}\n"


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([("a", "raise ValueError('half')")], ["cell 'a' fails: ValueError: half\n"]),
        ([("", "1 / 0")], ["cell 'cell-1' fails: ZeroDivisionError: division by zero\n"]),
        ([("a", "import os; os._exit(3)")], ["'a': DeadKernelError: the kernel ended by itself (exit status 3)\n"]),
        ([("a", MARKED + "import warnings\nwarnings.warn('x')"), ("b", MARKED + "x = 1"), ("c", DRAWN)],
         ["'a' is marked and gives more than", "'b' is marked and prints nothing", "'c' draws a picture and has no"]),
    ],
)  # fmt: skip
def test_refresh_leaves_a_file_alone_that_it_cannot_store(tmp_path, capsys, cells, says):
    path = stored(tmp_path / "04_x.ipynb", *(code(name, source, prints="old\n") for name, source in cells))
    before = path.read_bytes()
    assert command.main(["refresh", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("04_x.ipynb: cell ") and [line for line in says if line not in told] == [], told
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(("word", "number"), [("run", signal.SIGINT), ("refresh", signal.SIGTERM)])
def test_a_signal_stops_all_and_leaves_no_kernel(tmp_path, capsys, word, number):
    """The kernel sends it to this process, as a reader or a queue does while a cell runs."""
    pid = tmp_path / "pid"
    source = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\nos.kill(os.getppid(), {int(number)})"
    first = stored(tmp_path / "04_x.ipynb", code("stops", source + "\ntime.sleep(120)"))
    second = stored(tmp_path / "05_x.ipynb", code("next", f"open({str(tmp_path / 'next')!r}, 'w')"))
    before = first.read_bytes()
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    old = signal.signal(number, usual)  # these tests may run under `nohup` themselves
    try:
        assert command.main([word, str(first), str(second)]) == 128 + number
    finally:
        signal.signal(number, old)
    assert capsys.readouterr().err == "\nStopped.\n"
    assert first.read_bytes() == before and not (tmp_path / "next").exists()
    assert not psutil.pid_exists(int(pid.read_text()))


def test_strip_gives_words_for_ids_that_an_editor_drew(tmp_path):
    cells = [code("8aa33d2c-11d0-4f0e-9bd0-52d9c0a5d7a1", "def mirror(images):\n    return images"),
             markdown("Fj3kd_9sLLas", "## A mirror loses nothing"), markdown("a-good-one", "## A mirror loses"),
             code("c33fca1e", "mirror(images)"), code("d33fca1e", "1")]  # fmt: skip
    path = stored(tmp_path / "04_x.ipynb", *cells)
    assert command.main(["strip", str(path)]) == 0
    named = ["mirror-images-return", "mirror-loses-nothing", "a-good-one", "mirror-images", "cell"]
    assert [cell["id"] for cell in notebook_file.read(path)["cells"]] == named


# ---------------------------------------------------------------- notebooks that come back

COLAB = {"colab": {"provenance": [], "gpuType": "T4"}, "accelerator": "GPU", "kernelspec": {"name": "python3"}}
MAGICS = "x = !ls\nnn.Linear?\n?x\nif x:\n    %time y = 1", "%%writefile a.py\nclass A: pass", "%%bash\nls |", "await x"


def given_back(book: chapter_file.Chapter, change) -> Path:
    """The made-up book's chapter as somebody sends it: `change` is done to the file's JSON."""
    whole = json.loads(book.path.read_text(encoding="utf-8"))
    change(whole)
    book.path.write_text(json.dumps(whole), encoding="utf-8")
    return book.path


def from_colab(notebook):
    notebook |= {"nbformat_minor": 0, "metadata": COLAB}
    for cell in notebook["cells"]:
        cell["metadata"]["id"] = f"{cell.pop('id')[:3]}XyZ_9"
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "half\n"}]


@pytest.mark.parametrize(
    ("source", "folded"),
    [
        ("import math\nfrom torch import nn", True),
        ("plot.dots(\n    runs, xlabel='accuracy')", True),
        ("assert len(runs) == 3\nassert max(runs) < 1\nplot.dots(runs)", True),
        ("runs = train()\nplot.dots(runs)", False),
        ("train()\nassert True", False),
        ("print(plot.dots(runs))", False),
        ("plotted.dots(runs)", False),
        ("...  # your code", False),
        ("%pip install numpy", False),
        ("# nothing yet", False),
    ],
)
def test_what_only_draws_or_only_asserts_is_folded(source, folded):
    done = notebook_file.normalise(notebook(code("look", source)))["cells"][0]["metadata"]
    assert (done.get("tags") == ["hide-input"]) == folded == (done.get("cellView") == "form")


def test_colab_takes_the_ids_and_strip_gives_them_back(book, capsys):
    clean = book.path.read_bytes()
    git = ["git", "-C", str(book.root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    path = given_back(book, from_colab)
    assert "is not as it is stored" in rules.check(path, book.root)["stored_form"][0]
    assert command.main(["strip", str(path)]) == 0
    assert path.read_bytes() == clean and "15 cells had no id" in capsys.readouterr().out

    def and_changed(notebook):
        from_colab(notebook)
        notebook["cells"][3]["source"] = ["class Half: pass"]  # a cell that was worked on
        notebook["cells"].append(code("", "more"))  # and one that is new

    assert command.main(["strip", str(given_back(book, and_changed))]) == 0
    assert "give these a name: cell-1" in capsys.readouterr().out
    assert [cell["id"] for cell in notebook_file.read(path)["cells"]] == [cell["id"] for cell in GOOD] + ["cell-1"]


def windows(notebook):
    for cell in notebook["cells"]:
        cell["source"] = notebook_file.text(cell["source"]).replace("\n", "\r\n")


def bare(notebook):
    notebook.pop("metadata")
    for cell in notebook["cells"]:
        cell["source"] = notebook_file.text(cell["source"])
        if not notebook_file.is_marked(cell) and not notebook_file.alt_text(cell):
            cell.pop("metadata"), cell.pop("outputs", None), cell.pop("execution_count", None)


def after_a_run(notebook):
    notebook["metadata"] = {"language_info": {"name": "python", "version": "3.13.1"}}
    for number, cell in enumerate(notebook["cells"], 1):
        cell["metadata"]["execution"] = {"iopub.status.busy": "2026-01-01"}
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [*cell["outputs"], PICTURE]}


@pytest.mark.parametrize("change", [windows, bare, after_a_run])
def test_strip_mends_what_editors_do(book, change):
    clean = book.path.read_bytes()
    path = given_back(book, change)
    assert set(rules.check(path, book.root)) == {"stored_form"}
    assert command.main(["strip", str(path)]) == 0 and path.read_bytes() == clean
    path.write_bytes(b"\xef\xbb\xbf" + clean.replace(b"\n", b"\r\n"))  # CRLF in the file, Notepad's mark before it
    assert set(rules.check(path, book.root)) == {"stored_form"}
    assert command.main(["strip", str(path)]) == 0 and path.read_bytes() == clean


def test_strip_keeps_pasted_pictures_raw_cells_and_what_is_not_python(book):
    pasted = {"x.png": {"image/png": "iVBORw0KGgo="}}
    new = [markdown("pasted", "![x](attachment:x.png)") | {"attachments": pasted}]
    new += [{"cell_type": "raw", "id": "raw", "metadata": {"format": "text/html"}, "source": "<b>x</b>"}]
    new += [code(f"magic-{number}", source) for number, source in enumerate((*MAGICS, "for x in", "x = 'a\\d\u2028b'"))]
    path = given_back(book, lambda notebook: notebook["cells"].extend(new))
    assert command.main(["strip", str(path)]) == 0
    found = {cell["id"]: cell for cell in notebook_file.read(path)["cells"]}
    assert found["pasted"]["attachments"] == pasted and found["raw"]["metadata"] == {"format": "text/html"}
    assert [found[cell["id"]]["source"] for cell in new] == [notebook_file.text(cell["source"]) for cell in new]


def holding(**more) -> bytes:
    return json.dumps({"cells": [{"cell_type": "code", "source": "x"} | more]}).encode()


NO_NOTEBOOKS = [
    ("cannot be read: No such file", None),
    ("is not JSON: Expecting value", b"nonsense"),
    ("is no notebook of nbformat 4", b'{"worksheets": [], "nbformat": 3, "cells": []}'),
    ("cell 'a' has a wrong cell_type", holding(id="a", cell_type="sql")),
    ("cell 'a' has a wrong source: 3", holding(id="a", source=3)),
    ("cell 'a' has a wrong outputs.0: 1", holding(id="a", outputs=[1])),
]


@pytest.mark.parametrize(("told", "content"), NO_NOTEBOOKS)
def test_what_is_no_notebook_is_one_line(tmp_path, capsys, told, content):
    path = tmp_path / "04_x.ipynb"
    if content is not None:
        path.write_bytes(content)
    for word in ("check", "strip", "refresh", "run"):
        assert command.main([word, str(path)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("04_x.ipynb: ") and told in err and err.count("\n") == 1, err
        assert [p.name for p in tmp_path.iterdir()] == ([] if content is None else [path.name])
        assert content is None or path.read_bytes() == content


def test_a_notebook_without_cells_is_one_line(tmp_path, capsys):
    assert command.main(["check", str(stored(tmp_path / "04_x.ipynb"))]) == 1
    assert capsys.readouterr().err == "04_x.ipynb: [skeleton] has no cells\n"


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    path = stored(tmp_path / "04_x.ipynb", code("untidy", "x = 1\n\n"))
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        command.write(path, notebook_file.read(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


@pytest.mark.parametrize("name", ["Untitled.ipynb", "04_made_up (1).ipynb", ".ipynb_checkpoints/04_made_up.ipynb"])
def test_a_scratch_notebook_beside_the_chapters_is_left_alone(book, capsys, monkeypatch, name):
    monkeypatch.setattr(chapter_file, "ROOT", book.root)
    scratch = book.path.parent / name
    scratch.parent.mkdir(exist_ok=True)
    scratch.write_bytes(b"")
    for word in ("check", "strip", "refresh"):
        assert command.main([word, str(scratch)]) == 0
        assert f"{scratch.name}: left alone, _toc.yml does not name it" in capsys.readouterr().out
    assert scratch.read_bytes() == b"" and chapter_file.notebook_paths(book.root) == [book.path]
    assert command.main(["strip"]) == 0  # all chapters
    assert "04_made_up.ipynb: nothing to strip" in capsys.readouterr().out


COMPILE = """
import sys
import vitutils
env = vitutils.setup(seed=0)
import nbformat
cells = {cell.id: cell.source for cell in nbformat.read(sys.argv[1], 4).cells}
exec(cells["imports"])
stack = [Block(ViTConfig(img_size=28, in_chans=1, patch_size=7, embed_dim=32, depth=1, num_heads=2))]
x = torch.randn(2, 17, 32)
median_ratio = lambda seconds, slow, fast: np.median(seconds[slow]) / np.median(seconds[fast])
exec(cells["compiled"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "says"), [(None, "times as fast"), ("no_compiler_of_this_name", "not compiled: Invalid")]
)
def test_the_compiling_cell_says_nothing_on_stderr(tmp_path, compiler, says):
    # A cache that is warm hides what the first compilation warns of: a CUDA toolkit without a GPU, for one.
    if compiler is None and not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("no C++ compiler here")
    (tmp_path / "toolkit").mkdir()
    settings = (
        os.environ
        | {
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cold"),
            "CUDA_HOME": str(tmp_path / "toolkit"),
            "VITBOOK_SCALE": "cpu",
        }
        | ({"CXX": compiler} if compiler else {})
    )
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE, chapter_file.ROOT / "notebooks" / "14_speed.ipynb"],
        env=settings,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and says in ran.stdout and ran.stderr == "", ran
