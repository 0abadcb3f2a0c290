"""The notebook contract: what every chapter promises, as functions that can be tested.

A rule takes a `Chapter` (a notebook's dict, its path, the repository it stands in) and says what is wrong, each a
sentence that names the cell. `tests/test_notebooks.py` runs every rule over every notebook, and over a spoiled one that
it must report; `tools/notebooks.py check` prints the same sentences, and ruff's.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

from chapter_file import (
    DRAFT,
    ROOT,
    Chapter,
    book_url,
    broken_links,
    definitions,
    headings,
    notebook_paths,
    package_definitions,
    python,
    said,
    slugify,
    toc_files,
    tokens,
    tree,
    word_count,
)
from notebook_file import alt_text, dumps, is_marked, name, normalise, text

CODE_LINES = 30
LINE_WIDTH = 79
WORDS = (1500, 3000)
ALT_LENGTH = 40
SETUP = """\
# On Colab this installs the book's helpers; elsewhere it only imports.
try:
    import google.colab  # noqa: F401
    %pip install -q "vitutils @ git+{url}"
except ImportError:
    pass

import vitutils

env = vitutils.setup(seed=0)"""


RULES: dict[str, Callable[[Chapter], list[str]]] = {}


def rule(function: Callable[[Chapter], Iterator[str]]) -> Callable[[Chapter], list[str]]:
    """Register a rule under its name."""
    RULES[function.__name__] = wraps(function)(lambda chapter: list(dict.fromkeys(function(chapter))))
    return RULES[function.__name__]


def check(path: Path, root: Path = ROOT) -> dict[str, list[str]]:
    """The rules that the notebook at `path` breaks, with what is wrong."""
    chapter = Chapter.read(path, root)
    if not chapter.cells:
        return {"skeleton": ["has no cells"]}
    if wrong := code_is_python(chapter):  # most other rules look into the code
        return {"code_is_python": wrong}
    found = {key: function(chapter) for key, function in RULES.items()}
    return {key: wrong for key, wrong in found.items() if wrong}


# ---------------------------------------------------------------- the file and its code


@rule
def stored_form(chapter: Chapter) -> Iterator[str]:
    """nbformat 4.5, the plain python3 kernel, outputs and counts where marked and only there, ids of words."""
    normal, ids = normalise(chapter.notebook), [cell.get("id") for cell in chapter.cells]
    odd = [name(cell) for cell, new in zip(chapter.cells, normal["cells"], strict=True)
           if {**cell, "source": text(cell["source"])} != {**new, "source": text(new["source"])}]  # fmt: skip
    same = all(chapter.notebook.get(key) == normal[key] for key in ("nbformat", "nbformat_minor", "metadata"))
    if odd or not same or chapter.stored not in (None, dumps(normal)):
        yield f"is not as it is stored ({', '.join(odd[:4]) or 'its metadata'}): run `tools/notebooks.py strip` on it"
    yield from (f"id '{one}' stands twice" for one in dict.fromkeys(ids) if one and ids.count(one) > 1)
    yield from (f"{name(c)} is marked and stores no output: run refresh" for c in chapter.code
                if is_marked(c) and not c["outputs"])  # fmt: skip


@rule
def code_is_python(chapter: Chapter) -> Iterator[str]:
    """Every code cell can be parsed: nothing unfinished is left in it."""
    for cell in chapter.code:
        try:
            tree(cell)
        except ValueError as error:
            yield str(error)


@rule
def setup_cell(chapter: Chapter) -> Iterator[str]:
    """The first code cell, and no other, is the setup cell, to the letter, with the book's own URL."""
    setup = [cell for cell in chapter.code if cell.get("id") == "setup"]
    if setup != chapter.code[:1] or not setup:
        yield "has no cell 'setup' as its first code cell, and only there"
    elif text(setup[0]["source"]) != SETUP.format(url=book_url(chapter.root)):
        yield "the setup cell differs from the one that all chapters share"


@rule
def written_once(chapter: Chapter) -> Iterator[str]:
    """What the chapter and `vitutils` define under one name is the same, docstring included."""
    package = package_definitions(chapter.root)
    for cell in chapter.code:
        for node in definitions(tree(cell)):
            copies = package.get(node.name, {})
            if copies and ast.dump(node) not in copies.values():
                yield f"{name(cell)}: {node.name} differs from the one in {' and '.join(copies)}"


def untaught(root: Path = ROOT) -> list[str]:
    """Classes and functions of `vitutils/models/vit.py` that no chapter writes out in full."""
    written, unread = set(), []
    for path in notebook_paths(root):
        for cell in Chapter.read(path, root).code:
            try:
                written |= {node.name for node in definitions(tree(cell))}
            except ValueError as error:
                unread.append(f"{path.name}: {error}")
    module = ast.parse((root / "vitutils" / "models" / "vit.py").read_text(encoding="utf-8"))
    left = [node.name for node in definitions(module) if node.name not in written]
    return unread + [f"vitutils/models/vit.py: {node} is written out in no chapter" for node in left]


@rule
def cell_length(chapter: Chapter) -> Iterator[str]:
    """At most 30 lines a code cell, a class aside; 79 characters a line; and after two code cells a sentence."""
    row = 0
    for cell in chapter.cells:
        row = row + 1 if cell["cell_type"] == "code" else 0
        if row == 3:
            yield f"{name(cell)} is the third code cell in a row: say a sentence in between"
        if not row or cell.get("id") == "setup":  # whose URL may be long; `setup_cell` holds every letter of it
            continue
        lines = text(cell["source"]).splitlines()
        classes = [node for node in tree(cell).body if isinstance(node, ast.ClassDef)]
        free = {n for node in classes for n in range(node.lineno - len(node.decorator_list), node.end_lineno + 1)}
        length = sum(bool(line.strip()) and n not in free for n, line in enumerate(lines, 1))
        if length > CODE_LINES:
            yield f"{name(cell)} has {length} lines of code, at most {CODE_LINES}"
        for n, line in enumerate(lines, 1):
            if len(line) > LINE_WIDTH:
                yield f"{name(cell)}, line {n} has {len(line)} characters, at most {LINE_WIDTH}"


@rule
def runs_anywhere(chapter: Chapter) -> Iterator[str]:
    """Every cell runs, for any reader: nothing skipped, no magic, no file of the repository or of one machine.

    Which modules no chapter imports, notebooks/ruff.toml says.
    """
    here = re.compile(r"(?<![\w.:/])/(home|root|Users|work|tmp|mnt|content)/\w|\b[A-Z]:\\\w")
    for cell in chapter.cells:
        source = text(cell["source"])
        if found := here.search(source + json.dumps(cell.get("outputs", []))):
            yield f"{name(cell)} holds the path of one machine: {found[0]}…"
        if cell["cell_type"] != "code" or cell.get("id") == "setup":
            continue
        tags = {"nbval-skip", "skip-execution", "raises-exception", "remove-cell"} & {*cell["metadata"].get("tags", [])}
        if tags or re.search(r"#\s*NBVAL_(SKIP|RAISES_EXCEPTION)", source) or not source.strip():
            yield f"{name(cell)} is empty, skipped, hidden, or stops a run of all cells"
        if python(source) != source:
            yield f"{name(cell)} has a magic or a shell command"
        if found := re.search(r"""["'](\.\.?/|(results|book|studies|notebooks|tests)/)[^"']*""", source):
            yield f"{name(cell)} names {found[0][1:]}: Colab has no repository"
        if "VITBOOK_" in source:
            yield f"{name(cell)} reads the book's environment: ask `env`"


@rule
def nothing_left_open(chapter: Chapter) -> Iterator[str]:
    """No placeholder that its author meant to fill in, except in a draft."""
    yield from () if chapter.draft else left_open(chapter)


def left_open(chapter: Chapter) -> list[str]:
    """The placeholders that stand in the chapter."""
    found = [(name(cell), re.search(r"@@\w*|\b(FIXME|TBD|XXX)\b", text(cell["source"]))) for cell in chapter.cells]
    return [f"{where} still holds '{match[0]}'" for where, match in found if match]


def left_to_do(chapter: Chapter) -> str:
    """What keeps a draft from being a chapter, as the end of a sentence; nothing for a chapter that is none."""
    if not chapter.draft:
        return ""
    cells, words = len(left_open(chapter)), word_count(DRAFT.sub("", chapter.prose, count=1))
    return f"; a draft: cells to fill in (@@): {cells}; words: {words:,} of {WORDS[0]:,}"


# ---------------------------------------------------------------- the figures


def draws(cell: dict) -> bool:
    """Whether a code cell calls `plot.something(...)` or a `.plot()` method."""
    nodes = ast.walk(tree(cell)) if cell["cell_type"] == "code" else ()
    called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    return any(re.search(r"(^|\.)plot\.(?!use_style$)\w+$|\.plot$", one) for one in called)


@rule
def alt_texts(chapter: Chapter) -> Iterator[str]:
    """A cell that draws says in words what is shown: the axes and the finding; no two the same."""
    seen: dict[str, str] = {}
    for cell in filter(draws, chapter.code):
        alt = alt_text(cell)
        if not alt:
            yield f"{name(cell)} draws a figure and has no alt text"
        elif len(alt) < ALT_LENGTH or len(alt.split()) < 7:
            yield f"{name(cell)}: the alt text '{alt}' says too little"
        elif alt in seen:
            yield f"{name(cell)} has the alt text of {seen[alt]}"
        seen[alt] = name(cell)


@rule
def captions(chapter: Chapter) -> Iterator[str]:
    """After a cell that draws, at once, its caption `*Figure 4.1.* …`, counted from 1."""
    number = 0
    for cell, following in itertools.pairwise([*chapter.cells, {"source": ""}]):
        caption = re.match(r"\*Figure (\d+\.\d+)\.\*((?:\s+\S+){5})?", text(following["source"]))
        if draws(cell):
            number += 1
            expected = f"{chapter.number}.{number}"
            if not caption or caption[1] != expected:
                yield f"{name(cell)} draws figure {expected}; expected below it: '*Figure {expected}.* What to see'"
            elif not caption[2]:
                yield f"{name(following)}: the caption says too little"
        elif caption:
            yield f"{name(following)} is a caption, but {name(cell)} draws nothing"
    for figure in re.findall(rf"[Ff]igure 0*{chapter.number}\.(\d+)", chapter.prose):
        if not 1 <= int(figure) <= number:
            yield f"the text speaks of figure {chapter.number}.{figure}, which is not there"


# ---------------------------------------------------------------- the prose

ONLY_MYST = {
    "fence": "a MyST directive", "colon_fence": "a MyST block (:::)", "myst_role": "a MyST role",
    "myst_target": "a MyST target", "math_block_label": "a labelled formula", "footnote_ref": "a footnote",
    "substitution_inline": "a MyST substitution", "substitution_block": "a MyST substitution",
    "myst_line_comment": "a MyST comment",
}  # fmt: skip


@rule
def plain_markdown(chapter: Chapter) -> Iterator[str]:
    """Only Markdown that Colab shows: no MyST, no picture of the repository, little HTML."""
    for cell in chapter.cells:
        if cell["cell_type"] == "raw":
            yield f"{name(cell)} is a raw cell, which no page shows"
        for token, _ in tokens(text(cell["source"])) if cell["cell_type"] == "markdown" else ():
            if token.type in ONLY_MYST and (token.type != "fence" or token.info.startswith("{")):
                yield f"{name(cell)} has {ONLY_MYST[token.type]}, which Colab shows as it is written"
            elif token.type == "image":
                if token.attrs["src"].startswith("attachment:"):
                    yield f"{name(cell)} has a pasted picture, which the pages leave out: draw it with `plot`"
                elif not token.attrs["src"].startswith("https:"):
                    yield f"{name(cell)} shows {token.attrs['src']}, which Colab cannot find"
                elif len(token.content) < ALT_LENGTH:
                    yield f"{name(cell)} shows {token.attrs['src']} without alt text"
            elif token.type in ("html_inline", "html_block"):
                tags = re.findall(r"<\s*/?\s*(?!(?:details|summary|br|su[bp]|kbd)\b)[a-zA-Z][^>]*>", token.content)
                yield from (f"{name(cell)} has HTML: {tag}" for tag in tags)


@rule
def length_of_prose(chapter: Chapter) -> Iterator[str]:
    """1,500 to 3,000 words of Markdown, code and formulas not counted; a draft may have fewer."""
    words = word_count(chapter.prose)
    if words > WORDS[1] or words < WORDS[0] and not chapter.draft:
        yield f"has {words:,} words of prose, not {WORDS[0]:,} to {WORDS[1]:,}"


# What a chapter consists of, in this order, from its first letter to its last.
PARTS = {
    "a title, '# ...', as the first line": r"\A# [^\n]+\n\n",
    "below it one sentence, 'After this chapter you can ….'": r"\GAfter this chapter you can [^\n]*(\n[^\n]+)*\.\n\n",
    "'*You will*' alone, then three to five lines '- …;', the last '- ….'":
        r"^\*You will\*\n\n(- [^\n]+;\n){2,4}- [^\n]+\.\n",
    "'*Before you start.* ' and a sentence": r"^\*Before you start\.\* [A-Z\[]",
    "'*Time.* ' and minutes on a CPU, on a GPU, and what is downloaded":
        r"^\*Time\.\* (?i:(?=[^\n]*minute)(?=[^\n]*cpu)(?=[^\n]*gpu)(?=[^\n]*download))",
    "'## Common mistakes', and each by its name, '**So and so.** '": r"^## Common mistakes\n\n\*\*(?!\d)[^\n]",
    "'## Exercises'": r"^## Exercises\n",
    "'## Summary' and a list numbered from 1 to 5": r"^## Summary\n\n1\. .+\n2\. .+\n3\. .+\n4\. .+\n5\. [^\n]+\n\n",
    "'## Further reading' and a list, '- [Somebody 2021](../book/bibliography.md#…)'":
        r"\G## Further reading\n\n- \[[^\]]+\]\([^)]*bibliography\.md#",
    "'*Next.* ' and a sentence, as the last paragraph": r"^\*Next\.\* [A-Z\[][^\n]*(\n[^\n]+)*\Z",
}  # fmt: skip


@rule
def skeleton(chapter: Chapter) -> Iterator[str]:
    """The parts that every chapter has, in one order and one form; the last leads to the next chapter."""
    prose, at = chapter.prose.strip(), 0
    for part, pattern in PARTS.items():
        start = re.compile(pattern.removeprefix(r"\G"), flags=re.M)
        found = start.match(prose, at) if pattern.startswith(r"\G") else start.search(prose, at)
        if not found:
            yield f"expected, after {prose[:at].split()[-3:] or 'nothing'}: {part}"
        at = found.end() if found else at
    following = [p.name for p in notebook_paths(chapter.root) if re.match(rf"0*{chapter.number + 1}_", p.name)]
    if following and f"({following[0]})" not in prose[at - 400 :].replace("(./", "("):
        yield f"*Next.* does not link to {following[0]}"
    titles = [title for _, title in headings(chapter.prose)]
    yield from (f"heading '{title}' stands twice" for title in dict.fromkeys(titles) if titles.count(title) > 1)
    if [level for level, _ in headings(chapter.prose)].count(1) > 1:
        yield "has more than one heading of level 1"


EXERCISE = re.compile(r"\*\*Exercise (\d+\.\d+) \((\w+)\)\.\*\*")


@rule
def exercises(chapter: Chapter) -> Iterator[str]:
    """One easy, one core, one stretch, numbered. (tools/solutions.py reads the stub and the check after each.)"""
    expected = [(f"{chapter.number}.{n}", level) for n, level in enumerate(("easy", "core", "stretch"), 1)]
    found = EXERCISE.findall(chapter.prose)
    if found != expected:
        yield f"has exercises {found}, not {expected}"


# Terms of the glossary whose words also stand for everyday things: no rule can tell.
EVERYDAY = {"block", "collapse", "interpolation (bicubic)", "kernel", "key", "mask", "rank", "value"}


@rule
def glossary_links(chapter: Chapter) -> Iterator[str]:
    """After the opening a term of the glossary is linked where it first stands; exercises do not count.

    A link may have other words, `[equivariant](…#equivariance)`. A long term hides the short ones in it.
    """
    page = (chapter.root / "book" / "glossary.md").read_text(encoding="utf-8")
    terms = {title.strip("`").lower(): slugify(title) for level, title in headings(page) if level == 2}
    words = [re.escape(term) for term in sorted(terms.keys() - EVERYDAY, key=len, reverse=True)]
    any_term = "|".join(words).replace(r"\ ", "[ \n-]").replace(r"\-", "[ \n-]")
    pattern = re.compile(rf"<[^>]*glossary\.md#([\w-]+)>|<[^>]*>|(?<![\w-])({any_term})(?:e?s)?(?![\w-])", flags=re.I)
    linked: set[str] = set()
    for cell in chapter.markdown:
        if cell in chapter.opening or cell.get("id", "").startswith("exercise"):
            continue
        for anchor, term in pattern.findall(said(text(cell["source"]))):
            term = re.sub("[ \n]", " ", term.lower())
            anchor = anchor or next((terms[t] for t in (term, term.replace("-", " ")) if t in terms), term)
            if term and anchor not in linked:
                yield f"{name(cell)} has '{term}' without a link: write [{term}](../book/glossary.md#{anchor}) there"
            linked.add(anchor)


# What this book does not write, and what it writes instead.
ONE_WORD = {
    r"(?<![\w-])[Nn]ets?(?![\w-])": "network",
    r"\b[Cc]onvnets?\b": "CNN",
    r"\b[Pp]retrain\w*": "pre-train",
    r"\btransformers?\b": "Transformer",
    r"\b[Ss]calar products?\b": "dot product",
    r"\blearnt\b": "learned",
    r"\b[Dd]atasets?\b": "data set",
    r"\b(?:color|gray|center|neighbor|behavior|labeled|normaliz|optimiz|initializ|regulariz)\w*": "British spelling",
    r"\+-": "±",
}


def other_words(plain: str) -> list[str]:
    """Words that this book does not write, each with what it writes instead."""
    plain = re.sub(r"<[^>]*>", " ", plain)
    return [f"has '{m[0]}': {better}" for word, better in ONE_WORD.items() for m in re.finditer(word, plain)]


@rule
def one_word(chapter: Chapter) -> Iterator[str]:
    """One word for one thing, British spelling, and ± before a spread, in prose and in alt texts."""
    for cell in chapter.cells:
        source = text(cell["source"])
        code = f"{alt_text(cell)} {'+-' if '+-' in source else ''}"
        plain = said(source, set()) if cell["cell_type"] == "markdown" else code
        yield from (f"{name(cell)} {line}" for line in other_words(plain))


@rule
def links(chapter: Chapter) -> Iterator[str]:
    """A relative link leads to a file of the repository, and to an anchor that is there; _toc.yml names the chapter."""
    for cell in chapter.markdown:
        broken = broken_links(chapter.path, text(cell["source"]), chapter.root)
        yield from (f"{name(cell)} {line}" for line in broken)
    if f"notebooks/{chapter.path.stem}" not in toc_files(chapter.root):
        yield "does not stand in _toc.yml"
