"""A book and its chapters as their parsers see them: what `_toc.yml` names, a notebook's parts, Markdown, links.

`notebook_file.py` reads and writes the files; `notebook_rules.py` says what a chapter has to keep to.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import yaml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.anchors.index import slugify
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from sphinx_external_toc.parsing import parse_toc_yaml

from notebook_file import name, read, text

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- the book


def config(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))


def book_url(root: Path = ROOT) -> str:
    """The one repository URL, from `_config.yml`."""
    return config(root)["repository"]["url"].rstrip("/").removesuffix(".git")


def toc_files(root: Path = ROOT) -> list[str]:
    """Every file that `_toc.yml` names, without its suffix, in order."""
    toc = root / "_toc.yml"
    return [re.sub(r"\.(md|ipynb)$", "", file) for file in parse_toc_yaml(toc)] if toc.exists() else []


def notebook_paths(root: Path = ROOT) -> list[Path]:
    """The chapters, in order: the notebooks that `_toc.yml` names and that are there; without it, all of them."""
    found, listed = sorted((root / "notebooks").glob("*.ipynb")), toc_files(root)
    return [path for path in found if f"notebooks/{path.stem}" in listed] if (root / "_toc.yml").exists() else found


def beside_the_chapters(path: Path) -> bool:
    """Whether a notebook stands in a book's folder `notebooks` and is none of its chapters: a scratch notebook."""
    root = next((folder for folder in path.parents if (folder / "_toc.yml").is_file()), None)
    inside = root is not None and path.is_file() and path.is_relative_to(root / "notebooks")
    return inside and path not in notebook_paths(root)


DRAFT = re.compile(r"^\*Draft\.\*.*$", flags=re.M)


@dataclass
class Chapter:
    """A notebook, where it stands, and what the rules ask of it."""

    notebook: dict
    path: Path
    root: Path = ROOT
    stored: str | None = None  # the file, to the letter; None for a notebook that is in no file

    @classmethod
    def read(cls, path: Path, root: Path = ROOT) -> Chapter:
        return cls(read(path), path, root, path.read_text(encoding="utf-8"))

    @property
    def cells(self) -> list[dict]:
        return self.notebook["cells"]

    @property
    def number(self) -> int:
        """The chapter's number, from the file name's first digits; 0 where there are none."""
        found = re.match(r"\d+", self.path.name)
        return int(found[0]) if found else 0

    @property
    def opening(self) -> list[dict]:
        """The Markdown cells before the setup cell."""
        at = next((i for i, cell in enumerate(self.cells) if cell.get("id") == "setup"), 0)
        return [cell for cell in self.cells[:at] if cell["cell_type"] == "markdown"]

    @property
    def draft(self) -> bool:
        """Whether the chapter says that it is being written: a paragraph of its opening begins with *Draft.*"""
        return any(DRAFT.search(text(cell["source"])) for cell in self.opening)

    @property
    def code(self) -> list[dict]:
        return [cell for cell in self.cells if cell["cell_type"] == "code"]

    @property
    def markdown(self) -> list[dict]:
        return [cell for cell in self.cells if cell["cell_type"] == "markdown"]

    @property
    def prose(self) -> str:
        """All Markdown, one blank line between cells."""
        return "\n\n".join(text(cell["source"]) for cell in self.markdown)


# ---------------------------------------------------------------- Python and Markdown, as their parsers see them


@lru_cache(maxsize=4096)
def python(source: str) -> str:
    """A cell's source as Python: `pass` for the lines that are IPython's own, magics and `!`, where there are any."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M)
    return source


def tree(cell: dict) -> ast.Module:
    """The cell's syntax tree. Raises ValueError, which names the cell, where it is no Python."""
    try:
        return ast.parse(python(text(cell["source"])))
    except (SyntaxError, ValueError) as error:  # the latter for a null byte
        told = f"{error.msg}, line {error.lineno}" if isinstance(error, SyntaxError) else error
        raise ValueError(f"{name(cell)} is not Python: {told}") from None


def definitions(module: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Classes and public functions at a module's top level."""
    for node in module.body:
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.ClassDef) or function and not node.name.startswith("_"):
            yield node


def package_definitions(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """For each name defined in `vitutils`: the modules that define it, with the code's dump."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((root / "vitutils").rglob("*.py")):
        for node in definitions(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(node.name, {})[path.relative_to(root).as_posix()] = ast.dump(node)
    return found


@lru_cache
def parser():
    """MyST's own, as the book is built; a directive in it is not run."""
    extensions = {"dollarmath", "colon_fence", "substitution"}
    return create_md_parser(MdParserConfig(enable_extensions=extensions), RendererHTML)


@lru_cache(maxsize=4096)
def tokens(markdown: str) -> list[tuple[Token, frozenset[str]]]:
    """Markdown in pieces, in order, each with the kinds of pieces that it stands in, as {"table", "link"}."""
    found, within = [], []
    for block in parser().parse(markdown):
        for token in [block, *(block.children or [])]:
            if token.nesting == -1:
                within.pop()
            found.append((token, frozenset(within)))
            if token.nesting == 1:
                within.append(token.type.removesuffix("_open"))
    return found


def said(markdown: str, without: set[str] = frozenset({"heading", "table", "link"})) -> str:
    """What a reader reads as prose: no code, no formulas; a link's address, as <...>, before its words."""
    words = []
    for token, within in tokens(markdown):
        if token.type == "link_open":
            words.append(f"<{token.attrs['href']}>")
        elif token.type == "text" and not within & without:
            words.append(token.content)
        elif token.type in ("code_inline", "math_inline", "text", "softbreak", "inline"):
            words.append("\n" if token.type == "inline" else " ")
    return "".join(words)


def word_count(markdown: str) -> int:
    """Words of prose, as MyST counts them: without code, formulas and the addresses of links."""
    found: dict = {}
    parser().parse(markdown, found)
    return found.get("wordcount", {}).get("words", 0)


def headings(markdown: str) -> list[tuple[int, str]]:
    """Level and text of each heading, in order."""
    level, found = 0, []
    for token, within in tokens(markdown):
        level = int(token.tag[1]) if token.type == "heading_open" else level
        found += [(level, token.content)] if token.type == "inline" and "heading" in within else []
    return found


@lru_cache
def anchors(path: Path, changed: int) -> set[str]:
    """What can stand after `#` in a link to a file as it was then: MyST targets, headings, a bibliography's keys."""
    source = Chapter.read(path).prose if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    found = {token.content for token, _ in tokens(source) if token.type == "myst_target"}
    found |= {slugify(title) for _, title in headings(source)} | set(re.findall(r"\bid=\"([\w:.-]+)\"", source))
    for bibliography in path.parent.glob("*.bib") if "{bibliography}" in source else ():
        found |= set(re.findall(r"^@\w+\{([^,\s]+),", bibliography.read_text(encoding="utf-8"), flags=re.M))
    return found


def broken_links(path: Path, markdown: str, root: Path) -> Iterator[str]:
    """Links in a file's Markdown that lead to no file of the repository, or to no place in it, or are not https."""
    for token, _ in tokens(markdown):
        target, _, anchor = token.attrs.get("href", "").partition("#")
        if token.type != "link_open" or re.match(r"(https|mailto):", target):
            continue
        place = (path.parent / unquote(target)).resolve() if target else path
        if target.startswith("http:"):
            yield f"links to {target}, which is not https"
        elif not place.is_file() or not place.is_relative_to(root.resolve()):
            yield f"links to {target}, which is not in the repository"
        elif anchor and place.suffix in (".md", ".ipynb"):
            if unquote(anchor) not in anchors(place, place.stat().st_mtime_ns):
                yield f"links to {target}#{anchor}, where '{anchor}' is not"
