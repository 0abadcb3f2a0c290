"""The pages around the chapters: links, citations, pictures, and a README true to the word.

Each rule reads the sources and says what is wrong. It is held against the book as it is (nothing
is wrong) and against a copy with one fault, which it must report.
"""

from __future__ import annotations

import itertools
import re
import shutil
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from docutils import nodes
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from pybtex.database import parse_file

import tables
from apidoc import convert
from bookcite import short_name
from chapter_file import broken_links, config, headings, notebook_paths, said, slugify, tokens
from markers import without_markers
from notebook_file import read
from notebook_rules import other_words
from pagehead import pages_address
from previews import PAGE, meanings, preview

ROOT = Path(__file__).resolve().parents[1]

PARTS = ("book", "notebooks", "tools", "vitutils", ".github", "index.md", "README.md", "CONTRIBUTING.md")
PARTS += ("Makefile", "_config.yml", "_toc.yml", "CITATION.cff", "pyproject.toml")
PARTS += (".pre-commit-config.yaml", "LICENSE", "LICENSE-text")
SVG = "{http://www.w3.org/2000/svg}"
RULES: dict[str, Callable[[Path], list[str]]] = {}


def rule(function: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    RULES[function.__name__] = function
    return function


# --- reading ---


def texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Every page and every notebook's Markdown."""
    pages = [*sorted(root.glob("book/*.md")), *sorted(root.glob("book/solutions/*.md"))]
    for path in [*pages, *(root / name for name in ("index.md", "README.md", "CONTRIBUTING.md"))]:
        yield path, path.read_text(encoding="utf-8")
    for path in notebook_paths(root):
        yield path, "\n\n".join(c["source"] for c in read(path)["cells"] if c["cell_type"] == "markdown")


def links(root: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, text, target) of every link in Markdown."""
    for path, markdown in texts(root):
        words, target = "", ""
        for token, _ in tokens(markdown):
            if token.type == "link_open":
                words, target = "", token.attrs["href"]
            elif token.type == "link_close":
                yield path, " ".join(words.split()), target
            words += token.content or " "


def bibliography(root: Path) -> dict:
    return dict(parse_file(str(root / "book" / "references.bib")).entries.items())


# --- the rules ---


@rule
def sources_are_whole(root: Path) -> list[str]:
    """An entry has what a reader needs to find it, and its key is the first author, the year, b for a second one."""
    wrong = []
    for key, entry in bibliography(root).items():
        missing = [f for f in ("title", "year", "url") if not entry.fields.get(f)]
        if missing or not entry.persons.get("author"):
            wrong.append(f"{key}: no {', '.join(missing or ['author'])}")
            continue
        if not entry.fields["url"].startswith("https://"):
            wrong.append(f"{key}: {entry.fields['url']} is not https")
        plain = unicodedata.normalize("NFKD", short_name(entry).split(" et al")[0].split(" and ")[0])
        name = re.sub(r"[^a-z]", "", re.sub(r"\d{4}b?$", "", plain).lower())
        first = name + entry.fields["year"]
        if key != first and not (key == first + "b" and first in bibliography(root)):
            wrong.append(f"{key}: expected the key {name}{entry.fields['year']}")
    return wrong


@rule
def citations_resolve(root: Path) -> list[str]:
    """A citation leads to an entry, and says the author and the year that stand there."""
    entries, wrong = bibliography(root), []
    for path, words, target in links(root):
        page, _, key = target.partition("#")
        if Path(page).name != "bibliography.md" or not key:
            continue
        if key not in entries:
            wrong.append(f"{path.name}: no source {key} in references.bib")
        elif re.search(r"\b(19|20)\d\d\b", words) and short_name(entries[key]) not in words:
            wrong.append(f"{path.name}: '{words}' leads to {short_name(entries[key])}")
    return wrong


@rule
def links_resolve(root: Path) -> list[str]:
    """A link within the book leads to a file and a place that are there."""
    pages = [(path, markdown) for path, markdown in texts(root) if path.suffix == ".md"]
    return [f"{path.name} {line}" for path, markdown in pages for line in broken_links(path, markdown, root)]


@rule
def github_shows_what_can_be_read(root: Path) -> list[str]:
    """GitHub shows a page's source: where that holds directives, README and the guide link to the published page."""
    site, wrong = pages_address(config(root)["repository"]["url"]), []
    for path, _, target in links(root):
        if path.parent != root or path.name == "index.md":  # the book's own first page is read as built
            continue
        page = re.sub(r"[.]html$", ".md", target.removeprefix(site)).partition("#")[0] or "_toc.yml"
        there = (root / page).is_file()
        if target.startswith(site) and not there:
            wrong.append(f"{path.name}: {target} is none of the book's pages")
        elif there and page == target.partition("#")[0] and "\n```{" in (root / page).read_text(encoding="utf-8"):
            wrong.append(f"{path.name}: GitHub shows {page} with its directives; link to {site}{page[:-3]}.html")
    return wrong


@rule
def glossary_serves(root: Path) -> list[str]:
    """Terms in alphabetical order, each explained, and linked from a page or a chapter."""
    page = (root / "book" / "glossary.md").read_text(encoding="utf-8")
    terms = [title for level, title in headings(page) if level == 2]
    names = [slugify(term).replace("_", " ").replace("-", " ") for term in terms]
    wrong = [f"'{b}' comes after '{a}'" for a, b in itertools.pairwise(names) if b < a]
    explained = re.split(r"^## .*$", page, flags=re.M)[1:]
    short = [term for term, words in zip(terms, explained, strict=True) if len(words.split()) < 8]
    wrong += [f"'{term}' is not explained" for term in short]
    linked = {target.partition("#")[2] for path, _, target in links(root)
              if path.name != "glossary.md" and "glossary.md#" in target}  # fmt: skip
    return wrong + [f"nothing links to '{term}'" for term in terms if slugify(term) not in linked]


@rule
def pages_use_one_word(root: Path) -> list[str]:
    """The words that chapters use (`one_word` in tools/notebook_rules.py); *italics* may name others."""
    pages = [root / "index.md", *sorted(root.glob("book/*.md"))]
    plain = {path.name: said(path.read_text(encoding="utf-8"), {"em"}) for path in pages}
    return [f"{name} {line}" for name, words in plain.items() for line in other_words(words)]


@rule
def diagrams_speak(root: Path) -> list[str]:
    """An SVG has a title and a description, a white ground, letters for a phone, and asks no other host."""
    wrong = []
    for path in sorted((root / "book" / "_static").rglob("*.svg")):
        tree, source = ET.parse(path).getroot(), path.read_text(encoding="utf-8")
        bare = [tag for tag in ("title", "desc") if len((tree.findtext(f"{SVG}{tag}") or "").strip()) < 5]
        wrong += [f"{path.name} has no <{tag}>" for tag in bare]
        ground = tree.find(f"{SVG}rect")
        if ground is None or ground.get("fill") != "#fff":
            wrong.append(f"{path.name} has no white ground: it would vanish on a dark page")
        if re.search(r"https?://|<script|@import", source.replace('xmlns="http://www.w3.org/2000/svg"', "")):
            wrong.append(f"{path.name} loads something from elsewhere")
        if path.parent.name == "_static":
            width = float(tree.get("viewBox").split()[2])
            wrong += [f"{path.name} is {width:.0f} wide"] if width > 680 else []
            small = [px for px in re.findall(r"font-size: *([\d.]+)", source) if float(px) < 15]
            wrong += [f"{path.name} has letters of {px} px" for px in small]
    return wrong


@rule
def lines_show_on_every_screen(root: Path) -> list[str]:
    """No line of the book's own style sheets is thinner than a pixel: at 1x, Firefox draws none of those."""
    sheets = [path for path in (root / "book" / "_static").rglob("*.css") if "katex" not in path.parts]
    thin = re.compile(r"(?:border|shadow|outline)[\w-]*:[^;}]*?(?<![\d.])0?[.]\d+px[^;}]*")
    return [f"{path.name}: {found[0]}" for path in sheets for found in thin.finditer(path.read_text(encoding="utf-8"))]


@rule
def diagrams_are_shown(root: Path) -> list[str]:
    """A diagram that a chapter asks for is there, and every diagram stands on a page or in a chapter."""
    there = {p.stem for p in (root / "book" / "_static").glob("*.svg")} - {"logo", "favicon"}
    pages = "".join(markdown for _, markdown in texts(root))
    shown = set(re.findall(r"_static/([\w-]+)\.svg", pages))
    wrong = []
    for path in notebook_paths(root):
        code = "".join(c["source"] for c in read(path)["cells"] if c["cell_type"] == "code")
        asked = set(re.findall(r"""\bdiagram\(["']([\w-]+)["']\)""", code))
        wrong += [f"{path.name}: no diagram {name}" for name in sorted(asked - there)]
        shown |= asked
    return wrong + [f"{name}.svg is shown nowhere" for name in sorted(there - shown)]


@rule
def pictures_speak(root: Path) -> list[str]:
    """A picture on a page is there, and its alt text says what it shows."""
    wrong = []
    for path, markdown in texts(root):
        if path.suffix != ".md":
            continue
        found = [(m[1], m[2]) for m in re.finditer(r"!\[([^\]]*)\]\(([^)\s]+)\)", markdown)]
        for m in re.finditer(r"^```\{(?:figure|image)\} (\S+)\n(.*?)^```", markdown, re.M | re.S):
            alt = re.search(r"^:alt: (.*)$", m[2], flags=re.M)
            found.append((alt[1] if alt else "", m[1]))
        for alt, source in found:
            badge = source.endswith("/colab-badge.svg")
            if not source.startswith("https:") and not (path.parent / source).is_file():
                wrong.append(f"{path.name}: {source} is not there")
            if len(alt.split()) < (3 if badge else 8) or re.search(r"\.(png|svg)\b", alt):
                wrong.append(f"{path.name}: alt text of {source} says too little")
    return wrong


@rule
def commands_are_the_makefiles(root: Path) -> list[str]:
    """The README names every target of the Makefile and no other; no page names another."""
    there = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), flags=re.M)) - {"help"}
    wrong = []
    for name in ("README.md", "CONTRIBUTING.md", "book/how-to-run.md", "book/preface.md"):
        code = [token.content for token, _ in tokens((root / name).read_text(encoding="utf-8"))
                if token.type in ("fence", "code_inline")]  # fmt: skip
        said = set(re.findall(r"(?m)(?:^|\s)make ([a-z]+)\b", "\n".join(code)))
        wrong += [f"{name}: there is no `make {word}`" for word in sorted(said - there)]
        if name in ("README.md", "book/how-to-run.md"):
            wrong += [f"{name}: says nothing of `make {word}`" for word in sorted(there - said)]
    return wrong


@rule
def variables_are_real(root: Path) -> list[str]:
    """An environment variable that a page tells of is read somewhere in the code."""
    files = [path for room in ("vitutils", "tools") for path in root.glob(f"{room}/**/*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    return [
        f"{path.name}: nothing reads {name}"
        for path, markdown in texts(root)
        for name in sorted(set(re.findall(r"VITBOOK_[A-Z_]+", markdown)))
        if not re.search(rf"\b{name}\b", code)
    ]


@rule
def tables_are_those_of_the_toc(root: Path) -> list[str]:
    """README, preface and solutions list every chapter and every exercise, as `_toc.yml` and the pages have them."""
    return tables.faults(root)


@rule
def nothing_left_open(root: Path) -> list[str]:
    """No marker for something to be filled in later, except in a draft and its solutions, and in code spans."""
    drafts = {row.name for row in tables.chapters(root) if row.draft}
    return [
        f"{path.name}: {mark} is still to be filled in"
        for path, markdown in texts(root)
        for mark in re.findall(r"@@|\bTODO\b|\bFIXME\b|\bXXX\b", said(markdown, set()))
        if path.stem not in drafts
    ]


@rule
def every_module_has_its_page(root: Path) -> list[str]:
    """Each public module of vitutils is on the API page, or the package that hands on its names is; so is a
    package that hands on the names of private modules."""
    page = (root / "book" / "api.md").read_text(encoding="utf-8")
    said, unsaid = set(re.findall(r"^\.\. automodule:: ([\w.]+)$", page, flags=re.M)), []
    said |= {"vitutils", *(f"vitutils.{name}" for name in ("runtime", "train", "vit"))}  # by other names
    for path in sorted(root.glob("vitutils/**/*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        whole = module.removesuffix(".__init__")
        if whole != module and whole not in said and f"from {whole}._" in path.read_text(encoding="utf-8"):
            unsaid.append(f"api.md: no section on {whole}")
        package = path.with_name("__init__.py").read_text(encoding="utf-8") if module.rpartition(".")[0] in said else ""
        handed_on = f"from {module} import" in package or f'"{path.stem}": (' in package
        if module not in said and not path.stem.startswith("_") and not handed_on:
            unsaid.append(f"api.md: no section on {module}")
    return unsaid


@rule
def citation_file_is_true(root: Path) -> list[str]:
    """CITATION.cff: the fields the format asks for, the package's version, the book's address."""
    cff = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    needed = ("cff-version", "message", "title", "authors", "version", "date-released", "license")
    wrong = [f"CITATION.cff: no {field}" for field in needed if not cff.get(field)]
    version = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(), flags=re.M)[1]
    if cff.get("version") != version:
        wrong.append(f"CITATION.cff: version {cff.get('version')}, pyproject.toml has {version}")
    url = config(root)["repository"]["url"]
    if cff.get("repository-code") != url:
        wrong.append(f"CITATION.cff: {cff.get('repository-code')}, _config.yml has {url}")
    return wrong


# --- the book as it is, and with one fault ---


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    assert RULES[name](ROOT) == []


FAULTS = [  # rule, file, what stands there, what stands there instead, part of the complaint
    ("sources_are_whole", "book/references.bib", "@misc{ba2016,", "@misc{ba2015,", "ba2016"),
    ("citations_resolve", "book/glossary.md", "#vaswani2017", "#vaswani2071", "vaswani2071"),
    ("citations_resolve", "book/glossary.md", "[He et al. 2016]", "[Hu et al. 2016]", "He et al. 2016"),
    ("links_resolve", "book/notation.md", "glossary.md#token)", "glossary.md#tokens)", "tokens"),
    ("links_resolve", "README.md", "](CONTRIBUTING.md)", "](CONTRIBUTE.md)", "CONTRIBUTE.md"),
    (
        "github_shows_what_can_be_read",
        "README.md",
        "https://your_org.github.io/vit-book/book/status.html",
        "book/status.md",
        "book/status.html",
    ),
    ("github_shows_what_can_be_read", "README.md", "book/results.html", "book/result.html", "book/result.html"),
    ("glossary_serves", "book/glossary.md", "## Stride", "## A stride", "a stride"),
    ("glossary_serves", "book/glossary.md", "One pass of the training over all training images.", "", "Epoch"),
    ("glossary_serves", "notebooks/08_vit_pytorch.ipynb", "#patch-dropout", "#dropout", "Patch dropout"),
    ("pages_use_one_word", "book/preface.md", "a small network in PyTorch", "a small net in PyTorch", "'net': network"),
    ("diagrams_speak", "book/_static/vit-block.svg", ">One pre-norm block</title>", "></title>", "title"),
    ("diagrams_speak", "book/_static/vit-model.svg", 'fill="#fff"/>', 'fill="none"/>', "ground"),
    ("diagrams_speak", "book/_static/multi-head.svg", "font-size: 15px", "font-size: 9px", "9 px"),
    ("lines_show_on_every_screen", "book/_static/pocket/page.css", "border-width: 1px", "border-width: 0.5px", "0.5px"),
    ("diagrams_are_shown", "notebooks/02_attention.ipynb", "local-global", "global-local", "no diagram global-local"),
    ("diagrams_are_shown", "notebooks/04_patches.ipynb", "early-convs", "vit-block", "early-convs.svg is shown"),
    ("pictures_speak", "README.md", "![A photo", "![](a.png) ![A photo", "a.png"),
    ("pictures_speak", "book/preface.md", ":alt: ", ":alt: home.png\n:x: ", "home.png"),
    ("commands_are_the_makefiles", "Makefile", "\nlint:", "\nstyle:", "make lint"),
    ("commands_are_the_makefiles", "README.md", "make lab", "make labs", "make labs"),
    ("variables_are_real", "README.md", "VITBOOK_SCALE", "VITBOOK_SIZE", "VITBOOK_SIZE"),
    ("tables_are_those_of_the_toc", "notebooks/04_patches.ipynb", "# An image as a sequence", "# Images", "preface.md"),
    ("tables_are_those_of_the_toc", "book/solutions.md", "boolean masks, broadcasting", "masks", "solutions.md"),
    ("nothing_left_open", "README.md", "# Vision", "# @@TITLE@@ Vision", "README.md"),
    ("nothing_left_open", "book/solutions/04_patches.md", "% Trains", "@@ More.\n\n% Trains", "04_patches.md"),
    ("every_module_has_its_page", "book/api.md", ".. automodule:: vitutils.plot", ".. module:: plot", "plot"),
    ("citation_file_is_true", "CITATION.cff", 'version: "0.1.0"', 'version: "0.2.0"', "0.2.0"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / part).is_file():
            shutil.copy(ROOT / part, folder / part)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name, file, old, new, complaint", FAULTS, ids=lambda x: str(x)[:40])
def test_rule_sees_a_fault(name, file, old, new, complaint, copy):
    path = copy / file
    whole = path.read_text(encoding="utf-8")
    assert old in whole, f"the fault of {name} no longer fits {file}"
    try:
        path.write_text(whole.replace(old, new), encoding="utf-8")
        found = RULES[name](copy)
    finally:
        path.write_text(whole, encoding="utf-8")
    assert any(complaint in line for line in found), found


def test_every_rule_has_been_seen_failing():
    assert {fault[0] for fault in FAULTS} == set(RULES)


# --- the two small extensions ---


def test_short_names():
    entries = bibliography(ROOT)
    assert short_name(entries["dosovitskiy2021"]) == "Dosovitskiy et al. 2021"
    assert short_name(entries["loshchilov2019"]) == "Loshchilov and Hutter 2019"
    assert short_name(entries["hunter2007"]) == "Hunter 2007"
    assert short_name(entries["vanderwalt2014"]) == "van der Walt et al. 2014"


def test_docstrings_become_rst():
    lines = convert(
        [
            "Cut `images` into *flat",
            "patches* of C*P*P numbers.",
            "",
            "images: (B, C, H, W).  patch_size, in_chans: whole numbers, `P` and C.",
            "    at least 1",
            "Raises ValueError if H does not fit.",
        ]
    )
    assert lines == [
        r"Cut ``images`` into *flat patches* of C\*P\*P numbers.",
        "",
        "* ``images``: (B, C, H, W).",
        "* ``patch_size``, ``in_chans``: whole numbers, ``P`` and C. at least 1",
        "",
        "Raises ValueError if H does not fit.",
    ]


def test_a_chapter_has_its_own_number():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    numbered = [page["file"] for part in toc["parts"] if part.get("numbered") for page in part["chapters"]]
    assert [int(Path(name).name[:2]) for name in numbered] == [*range(1, len(numbered) + 1)]
    assert [ROOT / f"{name}.ipynb" for name in numbered] == notebook_paths(ROOT)


def test_a_glossary_entry_becomes_the_title_of_its_links():
    entries = {
        "key": "The vector $k$ of a *token* (Kingma and Ba 2015b), `D` wide. It is compared. " + "More. " * 60,
        "softmax": "Turns numbers into weights: $e^{x_i}$. It sums to 1.",
        "formula-alone": "$e^{x_i}$ is all there is.",
    }
    page = "\n\n".join(f"## {name.replace('-', ' ')}\n\n{text}\n\nAnother paragraph." for name, text in entries.items())
    settings = {"myst_enable_extensions": ["dollarmath"], "report_level": 5}
    found = meanings(publish_doctree(f"# Glossary\n\n{page}", parser=Parser(), settings_overrides=settings))
    assert found["key"].startswith("The vector k of a token, D wide. It is compared. More. More.")
    assert 200 < len(found["key"]) <= 240 and found["key"].endswith("More.")
    assert found["softmax"] == "Turns numbers into weights: \N{HORIZONTAL ELLIPSIS}"
    assert found["formula-alone"] == ""


def test_links_to_the_glossary_alone_get_a_title():
    app = type("App", (), {"glossary": {"key": "A vector."}})
    places = ["../book/glossary.html#key", "../book/glossary.html#door", "../book/notation.html#key", "#key", ""]
    links = [nodes.reference("", "a key", refuri=place) for place in places]
    page = nodes.paragraph("", "", *links)
    preview(app, page, PAGE)
    assert [link.get("reftitle") for link in links] == [None] * 5
    preview(app, page, "notebooks/02_attention")
    assert [link.get("reftitle") for link in links] == ["A vector.", None, None, None, None]


def test_every_term_of_the_glossary_has_a_title():
    source = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
    settings = {"myst_enable_extensions": ["dollarmath"], "report_level": 5, "warning_stream": False}
    settings["myst_suppress_warnings"] = ["myst.xref_missing"]
    found = meanings(publish_doctree(source, parser=Parser(), settings_overrides=settings))
    assert len(found) > 100
    assert [term for term, told in found.items() if len(told) < 20] == []


@pytest.mark.parametrize(
    "source, shown",
    [
        ("# NBVAL_CHECK_OUTPUT\nx = 1", "x = 1"),
        ("import copy  # noqa: F401 - you will want it\ny", "import copy\ny"),
        ("def f(\n    x,\n):  # fmt: skip\n    return x", "def f(\n    x,\n):\n    return x"),
        ("# fmt: off\nx = [1,\n     2]\n# fmt: on\ny", "x = [1,\n     2]\ny"),
        ("x = 1  # (B, T, D)\n# a word on noqa, and why", "x = 1  # (B, T, D)\n# a word on noqa, and why"),
        ("s = '# NBVAL_CHECK_OUTPUT'", "s = '# NBVAL_CHECK_OUTPUT'"),
    ],
)
def test_a_reader_sees_no_word_to_a_tool(source, shown):
    assert without_markers(source) == shown
