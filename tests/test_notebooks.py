"""The notebook contract: every chapter keeps every rule, and every rule can be seen broken.

The rules are functions in `scripts/notebook_rules.py`. Here each runs over the real chapters, and
over a small made-up book: as it stands no rule complains; spoiled in one place, the rule that is
about that place must say so, in words that name it.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import notebook_rules as rules

import notebooks as command

CHAPTERS = rules.notebook_paths()
URL = "https://github.com/your_org/vit-book"


# ---------------------------------------------------------------- the real chapters


def test_there_are_chapters():
    assert CHAPTERS, "notebooks/ is empty: the tests below would pass over nothing"


@pytest.mark.parametrize("key", rules.RULES)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps(path, key):
    wrong = rules.RULES[key](rules.Chapter.read(path))
    assert not wrong, rules.RULES[key].__doc__ + "\n  " + "\n  ".join(wrong)


def test_the_toc_names_only_what_is_there():
    assert rules.toc_files(), "_toc.yml names nothing"
    assert not rules.toc_misses()


def test_what_the_package_holds_of_the_vit_a_chapter_writes_out():
    assert not rules.untaught(rules.ROOT)


# ---------------------------------------------------------------- a made-up book

CLASS = '''\
class Half(nn.Module):
    """Halve the images."""

    def forward(self, images):
        return images / 2
'''
PAGES = {
    "_config.yml": f"repository:\n  url: {URL}\n",
    "_toc.yml": "root: index\nparts:\n- chapters:\n  - file: notebooks/04_made_up\n",
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


def markdown(cell_id: str, source: str) -> dict:
    lines = source.splitlines(keepends=True)
    return {"cell_type": "markdown", "id": cell_id, "metadata": {}, "source": lines}


def code(cell_id: str, source: str, alt: str = "", prints: str = "") -> dict:
    metadata: dict = {"mystnb": {"image": {"alt": alt}}} if alt else {}
    outputs = []
    if prints:
        metadata["keep_output"] = True
        outputs = [{"name": "stdout", "output_type": "stream", "text": [prints]}]
    return {
        "cell_type": "code",
        "execution_count": 1 if source.startswith(rules.MARKER) else None,
        "id": cell_id,
        "metadata": metadata,
        "outputs": outputs,
        "source": source.splitlines(keepends=True),
    }


def good_notebook() -> dict:
    cells = [
        markdown("opening", OPENING),
        code("setup", rules.SETUP.format(url=URL)),
        markdown("claim", f"## Halving\n\nOne class is [enough](../book/glossary.md#patch-size): "
                          f"`{{x}}`, $x_{{1}} < 2$, and **half**.\n\n{FILLER}"),
        code("half-class", CLASS.rstrip()),
        code("half-look", "plot.images([image, Half()(image)])", alt=ALT),
        markdown("half-caption", CAPTION),
        code("half-check", '# NBVAL_CHECK_OUTPUT\nprint("half")', prints="half\n"),
        markdown("mistakes", "## Common mistakes\n\n**Halving twice.** See Figure 4.1."),
        markdown("exercises", "## Exercises\n\n**Exercise 4.1 (easy).** Halve once."),
        code("easy-check", "check.equal(1, 1)"),
        markdown("core", "**Exercise 4.2 (core).** Halve twice."),
        code("core-check", "check.equal(1, 1)"),
        markdown("stretch", "**Exercise 4.3 (stretch).** Never stop halving."),
        code("stretch-check", "check.equal(1, 1)"),
        markdown("end", "## Summary\n\n1. Half\n2. is\n3. not\n4. a\n5. whole.\n\n## Further reading\n\n"
                        "- [Somebody 2021](../book/bibliography.md#somebody2021): halves.\n\n"
                        "*Next.* A quarter, in preparation."),
    ]  # fmt: skip
    metadata = copy.deepcopy(rules.NOTEBOOK_METADATA)
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def book(tmp_path) -> rules.Chapter:
    """A small book with one chapter that keeps every rule."""
    for name, source in PAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    path = tmp_path / "notebooks" / "04_made_up.ipynb"
    path.parent.mkdir()
    path.write_text(rules.dumps(good_notebook()), encoding="utf-8")
    return rules.Chapter.read(path, tmp_path)


def test_the_made_up_book_keeps_every_rule(book):
    assert rules.check(book.path, book.root) == {}
    assert rules.toc_misses(book.root) == []
    assert rules.untaught(book.root) == []


# Each case: the rule, what the complaint must say, and how the good chapter is spoiled.
CASES: list[tuple[str, str, Callable[[rules.Chapter], None]]] = []


def case(key: str, says: str):
    def keep(spoil):
        CASES.append((key, says, spoil))
        return spoil

    return keep


def cell(book: rules.Chapter, cell_id: str) -> dict:
    return next(c for c in book.cells if c["id"] == cell_id)


def replace(cell_id: str, old: str, new: str):
    """A spoiler: in one cell, `old` becomes `new` (and `old` must be there)."""

    def spoil(book):
        found = cell(book, cell_id)
        source = rules.text(found["source"])
        assert old in source
        found["source"] = source.replace(old, new).splitlines(keepends=True)

    return spoil


def append(cell_id: str, more: str):
    """A spoiler: one cell's source goes on."""

    def spoil(book):
        found = cell(book, cell_id)
        found["source"] = (rules.text(found["source"]) + more).splitlines(keepends=True)

    return spoil


def insert(after: str, *new: dict):
    """A spoiler: cells more, after the one named."""

    def spoil(book):
        position = book.cells.index(cell(book, after)) + 1
        book.cells[position:position] = copy.deepcopy(list(new))

    return spoil


def drop(cell_id: str):
    return lambda book: book.cells.remove(cell(book, cell_id))


def metadata(cell_id: str, **values):
    return lambda book: cell(book, cell_id)["metadata"].update(values)


def on_disk(name: str, old: str, new: str):
    """A spoiler: another file of the book changes."""

    def spoil(book):
        source = (book.root / name).read_text(encoding="utf-8")
        assert old in source
        (book.root / name).write_text(source.replace(old, new), encoding="utf-8")

    return spoil


# -- the file


@case("stored_form", "nbformat is 4.4")
def _(book):
    book.notebook["nbformat_minor"] = 4


@case("stored_form", "metadata are not the plain python3 kernel's")
def _(book):
    book.notebook["metadata"]["kernelspec"]["name"] = "my-venv"


@case("stored_form", "'half-look' stores an execution count that is not None")
def _(book):
    cell(book, "half-look")["execution_count"] = 7


@case("stored_form", "'half-check' stores an execution count that is not 1")
def _(book):
    cell(book, "half-check")["execution_count"] = None


@case("stored_form", "not in the stored form")
def _(book):
    book.stored = json.dumps(book.notebook, indent=2, ensure_ascii=False) + "\n"


@case("stable_ids", "'claim' stands twice")
def _(book):
    cell(book, "mistakes")["id"] = "claim"


@case("stable_ids", "looks drawn by chance")
def _(book):
    cell(book, "mistakes")["id"] = "b33fca1e"


@case("stable_ids", "not lower-case words")
def _(book):
    cell(book, "mistakes")["id"] = "Fj3kd_9sLLas"


@case("stable_ids", "number 3 has no id")
def _(book):
    del book.cells[3]["id"]


@case("outputs_where_marked", "'half-class' stores an output but is not marked")
def _(book):
    cell(book, "half-class")["outputs"] = cell(book, "half-check")["outputs"]


@case("outputs_where_marked", "'half-check' is marked but stores no output")
def _(book):
    cell(book, "half-check")["outputs"] = []


@case("outputs_where_marked", "stores more than plain text")
def _(book):
    picture = {"data": {"image/png": ""}, "metadata": {}, "output_type": "display_data"}
    cell(book, "half-check")["outputs"].append(picture)


CASES += [
    ("stored_form", "'half-look' carries metadata collapsed", metadata("half-look", collapsed=1)),
    ("outputs_where_marked", "not as its first line", append("half-look", f"\n{rules.MARKER}")),
    ("outputs_where_marked", "keeps its output", metadata("half-look", keep_output=True)),
    ("every_cell_runs", "'half-look' is skipped", append("half-look", "\n# NBVAL_SKIP")),
    ("every_cell_runs", "stops a run", metadata("half-look", tags=["raises-exception"])),
    ("every_cell_runs", "'void' is empty", insert("claim", code("void", ""))),
]

# -- the code

CASES += [
    ("code_is_python", "'half-look' is not Python: invalid syntax, line 3", append("half-look", "\n\nfor x in")),
    ("code_is_python", "'half-look' is not Python", append("half-look", "\nx = \\0")),
    ("only_what_colab_has", "'half-look' has a magic", append("half-look", "\nfiles = !ls")),
    ("only_what_colab_has", "'half-look' has a magic", append("half-look", "\nnn.Linear?")),
    ("only_what_colab_has", "'half-look' has a magic", append("half-look", "\n?nn.Linear")),
    ("only_what_colab_has", "'half-look' has a magic", append("half-look", "\nif image:\n    !pip install x")),
    ("only_what_colab_has", "'asked' has a magic", insert("claim", code("asked", "%%bash\nls"))),
    ("only_what_colab_has", "'asked' has a magic", insert("claim", code("asked", "%%writefile x.py\nclass Half: 1"))),
    ("plain_markdown", "'claim' has a pasted picture", append("claim", f"\n\n![{ALT}](attachment:x.png)")),
    ("plain_markdown", "'old' is a raw cell", insert("claim", markdown("old", "x") | {"cell_type": "raw"})),
    ("setup_cell", "differs from the one", replace("setup", "seed=0", "seed=1")),
    ("setup_cell", "differs from the one", on_disk("_config.yml", URL, f"{URL}-2")),
    ("setup_cell", "the first code cell is cell 'early'", insert("opening", code("early", "1"))),
    ("setup_cell", "more than one", insert("claim", code("setup", "1"))),
    ("written_once", "Half differs from the one in vitutils/models/vit.py",
     replace("half-class", "images / 2", "images / 3")),
    ("written_once", "Half differs from the one in vitutils/models/vit.py",
     replace("half-class", "Halve the images.", "Halve an image.")),
    ("written_once", "load differs from the one in vitutils/data/sets.py and vitutils/models/weights.py",
     append("half-look", "\n\ndef load(name):\n    return (name,)")),
    ("cell_length", "'half-look' has 31 lines of code", append("half-look", "\n\nx = 1" * 30)),
    ("cell_length", "'half-look', line 2: 80 characters", append("half-look", "\n#" + "x" * 79)),
    ("words_between_code", "'second' is the third code cell in a row",
     insert("half-check", code("first", "1"), code("second", "2"))),
    ("no_styling", "figsize", replace("half-look", "])", "], figsize=(4, 4))")),
    ("no_styling", "color", replace("half-look", "])", "], color='red')")),
    ("no_styling", "#E69F00", replace("half-look", "])", "], '#E69F00')")),
    ("no_styling", "plt", append("half-look", "\nplt.style.use('ggplot')")),
    ("no_styling", "imports matplotlib.pyplot",
     append("half-look", "\nfrom matplotlib import pyplot as p")),
    ("no_styling", "import plot, as `plot`",
     append("half-look", "\nfrom vitutils.plot import images")),
    ("no_styling", "plot as draw", append("half-look", "\nfrom vitutils import plot as draw")),
    ("only_what_colab_has", "tqdm.auto", append("half-look", "\nfrom tqdm.auto import tqdm")),
    ("only_what_colab_has", "ipywidgets", append("half-look", "\nimport ipywidgets as w")),
    ("only_what_colab_has", "glue", append("half-look", "\nglue('name', 1)")),
    ("only_what_colab_has", "environment",
     append("half-look", "\nimport os\nos.environ['VITBOOK_SCALE']")),
    ("only_what_colab_has", "names ../results/x.csv",
     append("half-look", "\nopen('../results/x.csv')")),
    ("only_what_colab_has", "names results/x.csv", append("half-look", "\nopen('results/x.csv')")),
    ("only_what_colab_has", "a magic", append("half-look", "\n%matplotlib inline")),
    ("nothing_left_open", "'claim' still holds '@@ACCURACY'", append("claim", " It got @@ACCURACY.")),
    ("nothing_left_open", "still holds 'FIXME'", append("half-look", "  # FIXME: slow")),
    ("no_machine_path", "/home/m…", append("half-look", "\nopen('/home/me/cat.png')")),
    ("no_machine_path", "/Users/m…", append("claim", "\n\nIt lies in `/Users/me`.")),
]  # fmt: skip


@case("no_machine_path", "'half-check' holds the path of one machine")
def _(book):
    cell(book, "half-check")["outputs"][0]["text"] = ["read /home/me/data\n"]


# -- the figures

CASES += [
    ("alt_texts", "has no alt text", metadata("half-look", mystnb={})),
    ("alt_texts", "says too little", metadata("half-look", mystnb={"image": {"alt": "A plot."}})),
    ("alt_texts", "says too little",
     metadata("half-look", mystnb={"image": {"alt": "_images/" + "0123456789abcdef" * 4}})),
    ("alt_texts", "is a file name",
     metadata("half-look", mystnb={"image": {"alt": "the one two three four five six picture "
                                                    "in half.png"}})),
    ("alt_texts", "has the alt text of cell 'half-look'",
     insert("half-check", code("again", "history.plot()", alt=ALT))),
    ("alt_texts", "'half-class' has alt text but calls nothing",
     metadata("half-class", mystnb={"image": {"alt": ALT}})),
    ("captions", "'half-look' draws figure 4.1, no caption", drop("half-caption")),
    ("captions", "'half-caption' is the caption of 4.1",
     replace("half-caption", "Figure 4.1", "Figure 4.2")),
    ("captions", "'half-caption' is the caption of 4.1",
     replace("half-caption", "Figure 4.1", "Figure 5.1")),
    ("captions", "says too little", replace("half-caption", CAPTION, "*Figure 4.1.* Dark.")),
    ("captions", "'half-class' draws nothing", drop("half-look")),
    ("captions", "figure 4.2, which is not there", append("claim", " See figure 4.2.")),
    ("captions", "'again' draws figure 4.2", insert("half-check", code("again", "h.plot()"))),
]  # fmt: skip

# -- the prose

CASES += [
    ("plain_markdown", "a MyST directive", append("claim", "\n\n```{note}\nHalf.\n```")),
    ("plain_markdown", "a MyST directive", append("claim", "\n\n:::{note}\nHalf.\n:::")),
    ("plain_markdown", "a MyST block", append("claim", "\n\n::: tip\nHalf.\n:::")),
    ("plain_markdown", "a MyST role", append("claim", " {cite}`somebody2021`")),
    ("plain_markdown", "a MyST target", append("claim", "\n\n(half)=\nHalf.")),
    ("plain_markdown", "a MyST substitution", append("claim", " {{ version }}")),
    ("plain_markdown", "a labelled formula", append("claim", "\n\n$$\nx\n$$ (half)")),
    ("plain_markdown", "a footnote", append("claim", " Half.[^1]\n\n[^1]: Not whole.")),
    ("plain_markdown", "Colab cannot find", append("claim", f"\n\n![{ALT}](../half.svg)")),
    ("plain_markdown", "without alt text", append("claim", "\n\n![](https://a.org/half.svg)")),
    ("plain_markdown", "HTML: <div class=tip>", append("claim", "\n\n<div class=tip>Half.</div>")),
    ("length_of_prose", "words of prose", replace("claim", FILLER, "")),
    ("length_of_prose", "words of prose", append("claim", FILLER * 2)),
    ("heading_levels", "2 headings of level 1", append("claim", "\n\n# Whole")),
    ("heading_levels", "0 headings of level 1", replace("opening", "# Half", "## Half")),
    ("heading_levels", "'Deep' leaves a level out", append("claim", "\n\n#### Deep")),
    ("heading_levels", "is a question", append("claim", "\n\n## Why half?")),
    ("heading_levels", "stands twice", append("claim", "\n\n## Halving")),
    ("skeleton", "promises", replace("opening", "After this chapter", "- After this chapter")),
    ("skeleton", "*You will* is missing", replace("opening", "*You will*", "You will")),
    ("skeleton", "*Before you start* is missing", replace("opening", "*Before", "*Long before")),
    ("skeleton", "*Time* is missing", replace("opening", "*Time.*", "*Hours.*")),
    ("skeleton", "names 6 things", replace("opening", "- look;", "- look;\n- smell;\n- taste;\n- hear;")),
    ("skeleton", "the summary has 4 lines", replace("end", "3. not\n", "")),
    ("skeleton", "says nothing about 'gpu'", replace("opening", " or a GPU", "")),
    ("skeleton", "'## Common mistakes'", replace("mistakes", "## Common", "## Uncommon")),
    ("skeleton", "'## Summary'", replace("end", "## Summary", "## In short")),
    ("skeleton", "'## Summary' stands too early",
     replace("mistakes", "## Common mistakes", "## Summary\n\nHalf.\n\n## Common mistakes")),
    ("skeleton", "'## Further reading'", replace("end", "## Further", "## Less")),
    ("skeleton", "cites nothing", replace("end", "bibliography.md#somebody2021", "x.md")),
    ("skeleton", "starts with *Next*", replace("end", "*Next.*", "*Later.*")),
    ("one_form", "promise begins", replace("opening", "After this chapter you can", "You will")),
    ("one_form", "*You will* stands alone", replace("opening", "*You will*", "*You will* now")),
    ("one_form", "*You will* is a list", replace("opening", "- halve;", "- halve,")),
    ("one_form", "'*Before you start.* '", replace("opening", "start.* N", "start*: n")),
    ("one_form", "'*Time.* '", replace("opening", "*Time.*", "*Time*:")),
    ("one_form", "mistakes begin", replace("mistakes", "**Halving", "**1. Halving")),
    ("one_form", "mistakes begin", replace("mistakes", "**Halving twice.**", "Halving twice.")),
    ("one_form", "numbered from 1 to 5", replace("end", "2. is", "- is")),
    ("one_form", "Further reading is", replace("end", "- [Somebody", "[Somebody")),
    ("one_form", "'*Next.* '", replace("end", "*Next.* A", "*Next*: a")),
    ("glossary_links", "has 'patch size' without",
     replace("claim", "One class", "The patch size: one class")),
    ("glossary_links", "has 'patch size' without",
     replace("claim", "[enough](../book/glossary.md#patch-size)", "Two patch sizes")),
    ("glossary_links", "'patch-size' again",
     append("mistakes", " The [patch](../book/glossary.md#patch-size).")),
    ("glossary_links", "has 'whole' without",
     on_disk("book/glossary.md", "## Patch", "## Whole\n\nNot half.\n\n## Patch")),
    ("one_word", "'net': network", append("claim", " A net is halved.")),
    ("one_word", "'pretrained': pre-train", append("claim", " It is pretrained.")),
    ("one_word", "'transformer': Transformer", append("claim", " A transformer is halved.")),
    ("one_word", "'gray': British", metadata("half-look", mystnb={"image": {"alt": f"{ALT} gray"}})),
    ("one_word", "'+-': ±", append("half-check", "\nprint('1 +- 2')")),
    ("one_word", "'+-': ±", append("claim", " 1 +- 2")),
    ("exercises", "['easy', 'core', 'hard']", replace("stretch", "stretch", "hard")),
    ("exercises", "['easy', 'core']", drop("stretch")),
    ("exercises", "exercise 4.9 should be 4.3", replace("stretch", "4.3", "4.9")),
    ("exercises", "'core' has no check", replace("core-check", "check.equal", "print")),
    ("links", "../book/nothing.md, which is not in", append("claim", " [x](../book/nothing.md)")),
    ("links", "../../other.md, which is not in", append("claim", " [x](../../other.md)")),
    ("links", "where 'nobody1999' is not",
     append("claim", " [x](../book/bibliography.md#nobody1999)")),
    ("links", "http://a.org is not https", append("claim", " [x](http://a.org)")),
    ("in_the_toc", "stands 0 times",
     on_disk("_toc.yml", "  - file: notebooks/04_made_up\n", "  - file: index\n")),
]  # fmt: skip


def another_chapter(book: rules.Chapter, name: str) -> None:
    """A chapter more: its file, which nobody reads, and its line in the table of contents."""
    (book.root / "notebooks" / f"{name}.ipynb").write_text("{}", encoding="utf-8")
    with (book.root / "_toc.yml").open("a", encoding="utf-8") as toc:
        toc.write(f"  - file: notebooks/{name}\n")


@case("chapter_links", "speaks of chapter 6 before")
def _(book):
    another_chapter(book, "06_more")
    append("claim", " See chapters 4 and 6, then [more](./06_more.ipynb).")(book)


def test_a_chapter_that_was_linked_may_be_spoken_of(book):
    another_chapter(book, "06_more")
    append("claim", " See [more](./06_more.ipynb); chapter 6 says more, chapter 99 is unwritten.")(book)
    assert rules.RULES["chapter_links"](book) == []


@pytest.mark.parametrize("words", ["`net`", "$net$", "[half](../book/net.md)", "EfficientNet, subnet", "a Transformer"])
def test_names_are_not_prose(book, words):
    append("claim", f" {words}")(book)
    assert rules.RULES["one_word"](book) == []


@pytest.mark.parametrize("where", ["exercises", "opening"])
def test_a_term_may_stand_without_a_link(book, where):
    append(where, " Patch size.")(book)
    for cell_id, words in (("claim", "\n\n### Patch size\n\n| patch size |\n\n`patch size`"),):
        source = rules.text(cell(book, cell_id)["source"])
        cell(book, cell_id)["source"] = f"{words}\n\n{source}".strip().splitlines(keepends=True)
    assert rules.RULES["glossary_links"](book) == []


@case("skeleton", "does not link to 05_next.ipynb")
def _(book):
    another_chapter(book, "05_next")


@pytest.mark.parametrize(
    ("key", "says", "spoil"),
    [pytest.param(*c, id=f"{c[0]}-{number}") for number, c in enumerate(CASES)],
)
def test_a_spoiled_chapter_is_reported(book, key, says, spoil):
    assert rules.RULES[key](book) == []
    spoil(book)
    wrong = rules.RULES[key](book)
    assert any(says in line for line in wrong), wrong


def test_the_title_of_a_chapter_may_be_a_question(book):
    opening = book.cells[0]
    lines = rules.text(opening["source"]).splitlines()
    opening["source"] = "\n".join(["# When does it win?", *lines[1:]])
    assert rules.RULES["heading_levels"](book) == []


def test_every_rule_is_seen_broken():
    assert {key for key, _, _ in CASES} == set(rules.RULES)


def test_a_toc_entry_without_a_file_is_reported(book):
    on_disk("_toc.yml", "04_made_up", "03_never_written")(book)
    assert rules.toc_misses(book.root) == ["_toc.yml names notebooks/03_never_written, which is not there"]


def test_a_class_that_no_chapter_writes_out_is_reported(book):
    on_disk("vitutils/models/vit.py", "class Half", "class Third")(book)
    assert rules.untaught(book.root) == ["vitutils/models/vit.py: Third is written out in no chapter"]


# ---------------------------------------------------------------- the command

RUN = [
    code("plain", "import sys\nprint('not kept')\nprint('nor this', file=sys.stderr)"),
    code("marked", f"{rules.MARKER}\nprint('naïve')\n(1, 2)", prints="old\n"),
]


def stored(path: Path, *cells: dict) -> Path:
    notebook = good_notebook() | {"cells": copy.deepcopy(list(cells))}
    path.write_text(rules.dumps(notebook), encoding="utf-8")
    return path


@pytest.mark.slow
def test_refresh_stores_marked_outputs_and_nothing_else(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb", *RUN)
    assert command.main(["run", str(path), "--scale", "smoke"]) == 1  # 'old' is not what it gives
    assert "'marked' gives another output" in capsys.readouterr().err
    assert command.main(["refresh", str(path)]) == 0
    plain, marked = rules.Chapter.read(path).cells
    assert plain["outputs"] == [] and plain["execution_count"] is None
    assert marked["outputs"][0]["text"] == ["naïve\n"]
    assert marked["outputs"][1]["data"] == {"text/plain": ["(1, 2)"]}
    assert marked["metadata"] == {"keep_output": True}
    assert "naïve" in path.read_text(encoding="utf-8")
    assert rules.stored_form(rules.Chapter.read(path)) == []


def test_printed_text_counts_as_one_piece_however_it_came():
    (cell,) = [cell for cell in RUN if cell["id"] == "marked"]
    whole = cell | {"outputs": [{"output_type": "stream", "name": "stdout", "text": "one\nhalf, half\n"}]}
    parts = cell | {
        "outputs": [
            {"output_type": "stream", "name": "stdout", "text": ["one\n", "half, "]},
            {"output_type": "stream", "name": "stdout", "text": "half\n"},
        ]
    }
    notebooks = [{"cells": [one]} for one in (whole, parts)]
    assert command.changed_outputs(*notebooks) == []
    parts["outputs"].append({"output_type": "stream", "name": "stdout", "text": "more\n"})
    assert command.changed_outputs(*notebooks) == ["cell 'marked' gives another output than the stored one"]


@pytest.mark.slow
def test_refresh_leaves_the_file_alone_where_a_cell_fails(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb", code("broken", "raise ValueError('half')"))
    before = path.read_bytes()
    assert command.main(["refresh", str(path)]) == 1
    assert capsys.readouterr().err.startswith("04_x.ipynb: cell 'broken' fails: ValueError: half\n")
    assert path.read_bytes() == before


@pytest.mark.slow
def test_refresh_refuses_noise_and_pictures_without_words(tmp_path, capsys):
    noisy = code("noisy", f"{rules.MARKER}\nimport warnings\nwarnings.warn('x')", prints="old\n")
    silent = code("silent", f"{rules.MARKER}\nx = 1", prints="old\n")
    drawn = "from IPython.display import Image, display\ndisplay(Image(b'\\x89PNG\\r\\n\\x1a\\n'))"
    path = stored(tmp_path / "04_x.ipynb", noisy, silent, code("drawn", drawn))
    before = path.read_bytes()
    assert command.main(["refresh", str(path)]) == 1
    said = capsys.readouterr().err
    assert "'noisy' is marked and gives more than plain text" in said
    assert "'silent' is marked and prints nothing" in said
    assert "'drawn' draws a picture and has no alt text" in said
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_notebook_without_ids_can_be_run(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb", code("", "1 / 0"))
    notebook = json.loads(path.read_text(encoding="utf-8")) | {"nbformat_minor": 0}
    del notebook["cells"][0]["id"]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert command.main(["run", str(path), "--scale", "smoke"]) == 1
    assert capsys.readouterr().err.startswith("04_x.ipynb: cell 'cell-1' fails: ZeroDivisionError: division by zero\n")


@pytest.mark.slow
def test_a_run_that_ends_otherwise_is_one_line_too(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb", code("a", "import os; os._exit(3)"))
    before = path.read_bytes()
    assert command.main(["refresh", str(path)]) == 1
    told = capsys.readouterr().err
    assert told == "04_x.ipynb: cell 'a': DeadKernelError: the kernel ended by itself (exit status 3)\n"
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


def test_strip_takes_out_what_an_editor_leaves(tmp_path):
    path = stored(tmp_path / "04_x.ipynb", *RUN)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    clean = path.read_bytes()
    notebook["metadata"]["language_info"]["version"] = "3.13.1"
    for number, found in enumerate(notebook["cells"], 1):
        found["execution_count"] = number
        found["metadata"]["execution"] = {"iopub.status.busy": "2026-01-01"}
    notebook["cells"][0]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["not kept\n"]}]
    path.write_text(json.dumps(notebook, indent=2), encoding="utf-8")
    assert rules.stored_form(rules.Chapter.read(path))
    assert command.main(["strip", str(path)]) == 0
    assert path.read_bytes() == clean


def test_strip_gives_words_for_ids_that_an_editor_drew(tmp_path):
    cells = [code("8aa33d2c-11d0-4f0e-9bd0-52d9c0a5d7a1", "def mirror(images):\n    return images"),
             markdown("Fj3kd_9sLLas", "## A mirror loses nothing"), markdown("a-good-one", "## A mirror loses"),
             code("b33fca1e", "mirror(images)"), code("c33fca1e", "mirror(images)"), code("d33fca1e", "1")]  # fmt: skip
    path = stored(tmp_path / "04_x.ipynb", *cells)
    assert command.main(["strip", str(path)]) == 0
    chapter = rules.Chapter.read(path)
    named = ["mirror-images-return", "mirror-loses-nothing", "a-good-one", "mirror-images", "mirror-images-2", "cell"]
    assert [cell["id"] for cell in chapter.cells] == named
    assert rules.stable_ids(chapter) == []


def test_a_cell_that_is_not_python_is_named(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb", code("half-typed", "x = = 1"))
    assert command.main(["check", str(path)]) == 1
    said = "04_x.ipynb: [code_is_python] cell 'half-typed' is not Python: invalid syntax, line 1"
    assert said in capsys.readouterr().err


def test_check_exits_with_what_is_broken(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb", *RUN)
    assert command.main(["check", str(path)]) == 1
    assert "[setup_cell]" in capsys.readouterr().err


# ---------------------------------------------------------------- notebooks that come back


PICTURE = {"x.png": {"image/png": "iVBORw0KGgo="}}
COLAB = {"colab": {"provenance": [], "gpuType": "T4"}, "accelerator": "GPU", "kernelspec": {"name": "python3"}}
MAGICS = "x = !ls\nnn.Linear?\n?x\nif x:\n    %time y = 1", "%%writefile a.py\nclass A: pass", "%%bash\nls |", "await x"


def given_back(book: rules.Chapter, change) -> Path:
    """The made-up book's chapter as somebody sends it: `change` is done to the file's JSON."""
    notebook = json.loads(book.path.read_text(encoding="utf-8"))
    book.path.write_text(json.dumps(change(notebook) or notebook), encoding="utf-8")
    return book.path


def in_git(book: rules.Chapter) -> None:
    git = ["git", "-C", str(book.root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)


def as_colab_stores_it(notebook):
    notebook |= {"nbformat_minor": 0, "metadata": COLAB}
    for cell in notebook["cells"]:
        cell["metadata"]["id"] = f"{cell.pop('id')[:3]}XyZ_9"
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "half\n"}]


def test_colab_takes_the_ids_and_strip_gives_them_back(book, capsys):
    clean = book.path.read_bytes()
    in_git(book)
    path = given_back(book, as_colab_stores_it)
    assert command.main(["check", str(path)]) == 1
    assert "nbformat is 4.0, not 4.5" in capsys.readouterr().err
    assert command.main(["strip", str(path)]) == 0
    assert path.read_bytes() == clean and "15 cells had no id" in capsys.readouterr().out

    def and_changed(notebook):
        as_colab_stores_it(notebook)
        notebook["cells"][3]["source"] = ["class Half: pass"]  # a cell that was worked on
        notebook["cells"].append(code("", "more"))  # and one that is new

    assert command.main(["strip", str(given_back(book, and_changed))]) == 0
    assert "give these a name: cell-1" in capsys.readouterr().out
    ids = [cell["id"] for cell in rules.Chapter.read(path).cells]
    assert ids == [cell["id"] for cell in json.loads(clean)["cells"]] + ["cell-1"]


def test_without_git_cells_get_names_that_are_free(book, capsys):
    def colab(notebook):
        as_colab_stores_it(notebook)
        notebook["cells"][1]["id"] = "cell-2"

    path = given_back(book, colab)
    before = [cell["source"] for cell in rules.read(path)["cells"]]
    assert command.main(["strip", str(path)]) == 0
    after = rules.read(path)["cells"]
    assert [cell["source"] for cell in after] == before
    assert "give these a name: cell-1, cell-" in capsys.readouterr().out
    assert [cell["id"] for cell in after][:4] == ["cell-1", "cell-2", "cell-3", "cell-4"]
    assert rules.stable_ids(rules.Chapter.read(path)) == []


def test_windows_line_ends_inside_cells_are_taken_out(book):
    clean = book.path.read_bytes()

    def windows(notebook):
        for cell in notebook["cells"]:
            cell["source"] = rules.text(cell["source"]).replace("\n", "\r\n")

    path = given_back(book, windows)
    assert set(rules.check(path, book.root)) == {"stored_form"}
    assert command.main(["strip", str(path)]) == 0 and path.read_bytes() == clean
    path.write_bytes(b"\xef\xbb\xbf" + clean.replace(b"\n", b"\r\n"))  # and in the file, with Notepad's mark before it
    assert set(rules.check(path, book.root)) == {"stored_form"}
    assert command.main(["strip", str(path)]) == 0 and path.read_bytes() == clean


def test_strip_keeps_pasted_pictures_raw_cells_and_what_is_not_python(book):
    new = [markdown("pasted", "![x](attachment:x.png)") | {"attachments": PICTURE}]
    new += [{"cell_type": "raw", "id": "raw", "metadata": {"format": "text/html"}, "source": "<b>x</b>"}]
    new += [code(f"magic-{number}", source) for number, source in enumerate((*MAGICS, "for x in", "x = 'a\\d\u2028b'"))]
    path = given_back(book, lambda notebook: notebook["cells"].extend(new))
    assert command.main(["strip", str(path)]) == 0
    found = {cell["id"]: cell for cell in rules.read(path)["cells"]}
    assert found["pasted"]["attachments"] == PICTURE and found["raw"]["metadata"] == {"format": "text/html"}
    assert [found[cell["id"]]["source"] for cell in new] == [rules.text(cell["source"]) for cell in new]


@pytest.mark.parametrize("source", MAGICS)
def test_what_ipython_understands_can_be_parsed(source):
    assert rules.tree(code("x", source)).body


def test_unfinished_code_is_one_line_with_notebook_and_cell(book, capsys):
    append("half-look", "\nfor x in")(book)
    book.path.write_text(rules.dumps(book.notebook), encoding="utf-8")
    assert command.main(["check", str(book.path)]) == 1
    said = capsys.readouterr().err
    assert said == "04_made_up.ipynb: [code_is_python] cell 'half-look' is not Python: invalid syntax, line 2\n"
    assert "04_made_up.ipynb: cell 'half-look' is not Python" in rules.untaught(book.root)[0]


def test_what_is_left_out_is_filled_in(book):
    def bare(notebook):
        notebook.pop("metadata")
        for cell in notebook["cells"]:
            cell["source"] = rules.text(cell["source"])
            if not rules.is_marked(cell) and not rules.alt_text(cell):
                cell.pop("metadata"), cell.pop("outputs", None), cell.pop("execution_count", None)

    clean = book.path.read_bytes()
    path = given_back(book, bare)
    assert set(rules.check(path, book.root)) == {"stored_form"}
    assert command.main(["strip", str(path)]) == 0 and path.read_bytes() == clean


OLD = {
    "metadata": {"name": "x"},
    "nbformat": 3,
    "nbformat_minor": 0,
    "worksheets": [{"metadata": {}, "cells": [
        {"cell_type": "heading", "level": 2, "source": ["Half"], "metadata": {}},
        {"cell_type": "code", "input": ["x = !ls\n", "x"], "language": "python", "collapsed": False, "metadata": {},
         "prompt_number": 3, "outputs": [{"output_type": "pyout", "prompt_number": 3, "text": ["2"], "metadata": {}}]},
    ]}],
}  # fmt: skip


def test_an_older_nbformat_is_converted(tmp_path, capsys):
    path = tmp_path / "04_x.ipynb"
    path.write_text(json.dumps(OLD), encoding="utf-8")
    assert command.main(["check", str(path)]) == 1
    assert "04_x.ipynb: [stored_form] nbformat is 3.0, not 4.5" in capsys.readouterr().err
    assert command.main(["strip", str(path)]) == 0
    assert "04_x.ipynb: stripped, from nbformat 3; 2 cells had no id" in capsys.readouterr().out
    heading, cell = rules.read(path)["cells"]
    assert (heading["id"], heading["source"]) == ("cell-1", "## Half")
    assert (cell["id"], cell["source"], cell["outputs"]) == ("cell-2", "x = !ls\nx", [])
    assert rules.stored_form(rules.Chapter.read(path)) == []


def test_an_id_that_stands_twice_is_named_and_left(book, capsys):
    path = given_back(book, lambda notebook: notebook["cells"].append(notebook["cells"][2]))
    assert command.main(["strip", str(path)]) == 0 and command.main(["check", str(path)]) == 1
    assert "04_made_up.ipynb: [stable_ids] id 'claim' stands twice" in capsys.readouterr().err
    assert rules.read(path)["cells"][-1] == rules.read(path)["cells"][2]


NO_NOTEBOOKS = {
    "there is no such file": None,
    "is empty": b" \n",
    "is not JSON: Expecting value": b"nonsense",
    "marks of a merge": b'{\n<<<<<<< HEAD\n "cells": []\n}',
    "is JSON, but no notebook": b"[1]",
    "has no list of cells": b'{"cells": {}}',
    "is not UTF-8 (byte 0)": '{"cells": []}'.encode("utf-16"),
    "is of nbformat 5": b'{"cells": [], "nbformat": 5}',
    "cannot be converted": b'{"worksheets": [{}], "nbformat": 3}',
    "cell number 0 is of the kind 'sql'": b'{"cells": [{"cell_type": "sql"}]}',
    "cell number 1 is of the kind 7": b'{"cells": [{"cell_type": "raw"}, 7]}',
    "cell 'a' has a source that is no text: 3": b'{"cells": [{"cell_type": "code", "id": "a", "source": 3}]}',
    "cell number 0 has an id that is no text": b'{"cells": [{"cell_type": "code", "id": [4]}]}',
    "cell 'a' has outputs that are none": b'{"cells": [{"cell_type": "code", "id": "a", "outputs": [1]}]}',
} | {
    f"cell {which} {told}": json.dumps({"cells": [{"cell_type": "code", "source": "x"} | more]}).encode()
    for which, told, more in [
        ("number 0", "has metadata 'mystnb' that are no mapping: 'x'", {"metadata": {"mystnb": "x"}}),
        ("'a'", "has metadata 'image' that are no mapping: [1]", {"id": "a", "metadata": {"mystnb": {"image": [1]}}}),
        ("number 0", "has an alt text that is no text: 5", {"metadata": {"mystnb": {"image": {"alt": 5}}}}),
        ("number 0", "has tags that are no list of texts: 5", {"metadata": {"tags": 5}}),
        ("number 0", "has tags that are no list of texts: [{}]", {"metadata": {"tags": [{}]}}),
        ("number 0", "has outputs that are none", {"outputs": 5}),
        ("'d'", "has outputs that are none",
         {"id": "d", "outputs": [{"output_type": "stream", "text": None}]}),
        ("'e'", "has outputs that are none",
         {"id": "e", "outputs": [{"output_type": "stream", "text": [1]}]}),
        ("'f'", "has outputs that are none",
         {"id": "f", "outputs": [{"output_type": "execute_result", "data": None}]}),
        ("'b'", "has outputs that are none",
         {"id": "b", "outputs": [{"output_type": "display_data", "data": {"text/plain": 1}}]}),
        ("'c'", "has outputs that are none", {"id": "c", "outputs": [{"output_type": None}]}),
        ("number 0", "holds half a character", {"source": "x = '\ud83d'"}),
        ("'g'", "holds half a character", {"id": "g", "metadata": {"tags": ["\udc00"]}}),
    ]
}  # fmt: skip


@pytest.mark.parametrize("word", ["check", "strip", "refresh", "run"])
@pytest.mark.parametrize("told", NO_NOTEBOOKS)
def test_what_is_no_notebook_is_one_line(tmp_path, capsys, word, told):
    path = tmp_path / "04_x.ipynb"
    if (content := NO_NOTEBOOKS[told]) is not None:
        path.write_bytes(content)
    assert command.main([word, str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("04_x.ipynb: ") and told in err and err.count("\n") == 1, err
    assert [p.name for p in tmp_path.iterdir()] == ([] if content is None else [path.name])
    assert content is None or path.read_bytes() == content


def test_null_is_as_good_as_nothing(book, capsys):
    """What an editor or a script writes as null is filled in as if it were not there."""
    def nulls(notebook):
        for cell in notebook["cells"]:
            if "mystnb" not in cell["metadata"]:
                cell["metadata"] |= {"mystnb": None, "tags": None}
        notebook["cells"][2]["id"] = None

    path = given_back(book, nulls)
    wrong = rules.check(path, book.root)
    assert "cell number 2 has no id" in wrong["stable_ids"]
    assert not any("?" in line for lines in wrong.values() for line in lines)
    assert command.main(["strip", str(path)]) == 0
    assert set(rules.check(path, book.root)) <= {"stable_ids"}
    nothing = given_back(book, lambda notebook: notebook["cells"][3]["metadata"].update(mystnb={"image": None}))
    assert rules.alt_text(rules.read(nothing)["cells"][3]) == ""


def test_a_cell_without_an_id_has_a_number(book):
    path = given_back(book, lambda notebook: notebook["cells"].append({"cell_type": "code", "source": "%ls\n"}))
    number = len(rules.read(path)["cells"]) - 1
    assert f"cell number {number} has a magic or a shell command" in rules.check(path, book.root)["only_what_colab_has"]


def test_a_notebook_without_cells_is_one_line(tmp_path, capsys):
    path = stored(tmp_path / "04_x.ipynb")
    assert command.main(["check", str(path)]) == 1
    assert capsys.readouterr().err == "04_x.ipynb: [skeleton] has no cells\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_a_pipe_is_not_waited_for(tmp_path, capsys, monkeypatch):
    os.mkfifo(tmp_path / "04_x.ipynb")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it would wait for ever"))
    assert command.main(["check", str(tmp_path / "04_x.ipynb")]) == 1
    assert capsys.readouterr().err == "04_x.ipynb: is a folder, a pipe or a device; expected a file\n"


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    path = stored(tmp_path / "04_x.ipynb", code("untidy", "x = 1\n\n"))
    before = path.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        command.write(path, rules.read(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


@pytest.mark.parametrize("name", ["Untitled.ipynb", "04_made_up (1).ipynb", ".ipynb_checkpoints/04_made_up.ipynb"])
def test_a_scratch_notebook_beside_the_chapters_is_left_alone(book, capsys, name):
    scratch = book.path.parent / name
    scratch.parent.mkdir(exist_ok=True)
    scratch.write_bytes(b"")
    for word in ("check", "strip", "refresh"):
        assert command.main([word, str(scratch)]) == 0
        assert f"{scratch.name}: left alone, _toc.yml does not name it" in capsys.readouterr().out
    assert scratch.read_bytes() == b"" and rules.notebook_paths(book.root) == [book.path]
    assert rules.check(book.path, book.root) == {} and rules.untaught(book.root) == []


def test_all_chapters_are_those_of_the_table_of_contents(book, capsys, monkeypatch):
    monkeypatch.setattr(rules, "ROOT", book.root)
    monkeypatch.setattr(rules, "toc_misses", lambda: ["_toc.yml names notebooks/05_lost, which is not there"])
    (book.path.parent / "Untitled.ipynb").write_bytes(b"")
    assert command.main(["strip"]) == 1
    out, err = capsys.readouterr()
    assert "04_made_up.ipynb: nothing to strip" in out and "Untitled.ipynb: left alone" in out and "05_lost" in err
