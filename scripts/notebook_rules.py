"""The notebook contract: what every chapter promises, as functions that can be tested.

A rule takes a `Chapter` (a notebook's dict, its path, the repository it stands in) and returns the
list of what is wrong, each a sentence that names the cell; an empty list means the rule is kept.
`tests/test_notebooks.py` runs every rule over every notebook, and over a spoiled one that it must
report; `scripts/notebooks.py check` prints the same sentences. It needs the standard library and
PyYAML, so that it also runs where no kernel is; IPython where a cell has a magic, and nbformat
where a file is of an older one. What comes back from Colab, an editor or a student is read by
`read`, which never guesses: it fills in what may be missing, or names the file and the cell.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MARKER = "# NBVAL_CHECK_OUTPUT"
CODE_LINES = 30
LINE_WIDTH = 79
WORDS = (1500, 3000)
ALT_LENGTH = 40
CELL_METADATA = ("keep_output", "mystnb", "tags")
RAW_METADATA = ("format", "raw_mimetype")
KINDS = ("code", "markdown", "raw")
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SETUP = """\
# On Colab this installs the book's helpers; elsewhere it only imports.
try:
    import google.colab  # noqa: F401
    %pip install -q "vitutils @ git+{url}"
except ImportError:
    pass

import vitutils

env = vitutils.setup(seed=0)"""


def text(value: str | list[str]) -> str:
    """A notebook's source or output text, which JSON may hold as a string or a list of lines."""
    return value if isinstance(value, str) else "".join(value)


class Unreadable(ValueError):
    """A file that is no notebook of today; the message, one line, names it, and the cell if it is one's fault."""


def read(path: Path) -> dict:
    """The notebook of a file, whoever wrote it: Colab without ids, Windows with CRLF, an older nbformat.

    What may be missing (metadata, outputs) is filled in, sources are texts with LF; `nbformat` and ids stay as they
    are in the file. Raises Unreadable.
    """

    def no(told: str) -> Unreadable:
        return Unreadable(f"{path.name}: {told}")

    try:
        if path.exists() and not path.is_file():
            raise no("is a folder, a pipe or a device; expected a file")
        stored = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise no(f"there is no such file in {path.parent}") from None
    except UnicodeDecodeError as error:
        raise no(f"is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise no(f"cannot be read: {error.strerror}") from None
    if not stored.strip():
        raise no("is empty; expected a notebook")
    try:
        notebook = json.loads(stored)
    except ValueError as error:
        marks = " It holds the marks of a merge: take one side." if re.search("^<{7} ", stored, flags=re.M) else ""
        raise no(f"is not JSON: {str(error).splitlines()[0]}; expected a notebook.{marks}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells", notebook.get("worksheets")), list):
        raise no("is JSON, but no notebook: it has no list of cells")
    version = notebook.get("nbformat", 4), notebook.get("nbformat_minor", 0)
    if not isinstance(version[0], int) or version[0] > 4:
        raise no(f"is of nbformat {version[0]}; expected 4 or an older one")
    if version[0] < 4:
        notebook = _upgraded(stored, no) | {"nbformat": version[0], "nbformat_minor": version[1]}
    for position, cell in enumerate(notebook["cells"]):
        cell = notebook["cells"][position] = Cell(cell if isinstance(cell, dict) else {"cell_type": cell}, position)
        if fault := _fill(cell):
            raise no(f"{name(cell)} {fault}")
    if not isinstance(notebook.get("metadata"), dict):
        notebook["metadata"] = {}
    return notebook


class Cell(dict):
    """A cell that knows its place: its name where it has no id."""

    def __init__(self, cell: dict, position: int):
        super().__init__(cell)
        self.position = position


def _upgraded(stored: str, no: Callable[[str], Unreadable]) -> dict:
    """A notebook of nbformat 1 to 3 in the shape of 4, by nbformat itself; without the ids that it draws."""
    import nbformat

    try:
        notebook = json.loads(json.dumps(nbformat.convert(nbformat.reader.reads(stored), 4)))
    except Exception as error:  # nbformat raises whatever comes
        raise no(f"is of an older nbformat, which cannot be converted: {str(error).splitlines()[0]}") from None
    for cell in notebook["cells"]:
        cell.pop("id", None)
    return notebook


def _fill(cell: dict) -> str:
    """Put in what a cell may lack, in place; say what is wrong where that does not help."""
    if cell.get("cell_type") not in KINDS:
        return f"is of the kind {cell.get('cell_type')!r:.40}; expected {', '.join(KINDS)}"
    source = cell.get("source", "")
    if not _is_text(source):
        return f"has a source that is no text: {source!r:.40}"
    if cell.get("id", "") is None:
        del cell["id"]
    if not isinstance(cell.get("id", ""), str):
        return f"has an id that is no text: {cell['id']!r:.40}"
    cell["source"] = re.sub(r"\r\n?", "\n", text(source))
    cell["metadata"] = cell["metadata"] if isinstance(cell.get("metadata"), dict) else {}
    if cell["cell_type"] == "code":
        cell["outputs"] = cell.get("outputs") or []
        cell.setdefault("execution_count", None)
        if not isinstance(cell["outputs"], list) or not all(map(_is_output, cell["outputs"])):
            return "has outputs that are none"
    try:
        json.dumps(cell, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate), which no file can: type that character again"
    return _fill_metadata(cell["metadata"])


def _fill_metadata(metadata: dict) -> str:
    """Take out what is null of the metadata that are kept, in place; say what is of another kind than it must be."""
    for holder, key in ((metadata, "mystnb"), (metadata.get("mystnb"), "image")):
        value = (holder or {}).get(key, {})
        if value is None:
            del holder[key]
        elif not isinstance(value, dict):
            return f"has metadata {key!r} that are no mapping: {value!r:.40}"
    alt = alt_text({"metadata": metadata})
    if not isinstance(alt, str):
        return f"has an alt text that is no text: {alt!r:.40}"
    if metadata.get("tags", ()) is None:
        del metadata["tags"]
    tags = metadata.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        return f"has tags that are no list of texts: {tags!r:.40}"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) or isinstance(value, list) and all(isinstance(line, str) for line in value)


def _is_output(output: object) -> bool:
    """Whether it has a kind, printed text that is text, and data by their types, plain text among them as text."""
    if not (isinstance(output, dict) and isinstance(output.get("output_type"), str)):
        return False
    data = output.get("data", {})
    return isinstance(data, dict) and _is_text(output.get("text", "")) and _is_text(data.get("text/plain", ""))


def is_marked(cell: dict) -> bool:
    """Whether the cell's first line asks nbval to compare its output."""
    return cell["cell_type"] == "code" and text(cell["source"]).splitlines()[:1] == [MARKER]


def count(cell: dict) -> int | None:
    """The execution count that is stored: nbval compares no cell that seems never to have run."""
    return 1 if is_marked(cell) else None


WORDS_OF_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
BY_CHANCE = re.compile(r"(?=.*\d)[0-9a-f]{6,}(-[0-9a-f]+)*")  # as Jupyter draws them


def word_id(cell: dict, taken: set[str]) -> str:
    """The cell's id; in place of one that an editor has drawn by chance, the first words of its source."""
    cell_id = cell.get("id", "")
    if WORDS_OF_ID.fullmatch(cell_id) and not BY_CHANCE.fullmatch(cell_id):
        return cell_id
    words = re.findall(r"(?<![a-z])[a-z][a-z0-9]+", text(cell["source"]).removeprefix(MARKER).lower())
    first = "-".join([word for word in words if word not in {"def", "class", "import", "from", "the"}][:3])
    first = first[:60].rstrip("-") or "cell"
    return next(name for n in range(1, 1000) if (name := f"{first}-{n}" if n > 1 else first) not in taken)


def normalise(notebook: dict) -> dict:
    """The notebook as it is stored: outputs only where marked, nothing that a run changes, ids of words."""
    cells, ids = [], free_ids(notebook)
    taken = {cell.get("id", "") for cell in notebook["cells"]}
    for cell in notebook["cells"]:
        kept = CELL_METADATA + (RAW_METADATA if cell["cell_type"] == "raw" else ())
        metadata = {k: cell["metadata"][k] for k in kept if k in cell["metadata"]}
        if is_marked(cell):
            metadata = {"keep_output": True} | metadata  # nbstripout, in an editor, leaves it alone
        else:
            metadata.pop("keep_output", None)
        cell_id = word_id(cell, taken) if cell.get("id") else next(ids)
        new = {"cell_type": cell["cell_type"], "id": cell_id, "metadata": metadata}
        taken.add(cell_id)
        if cell.get("attachments"):  # pasted pictures
            new["attachments"] = cell["attachments"]
        source = re.sub(r"\r\n?", "\n", text(cell["source"])).rstrip()
        if cell["cell_type"] == "code":
            outputs = []
            if is_marked(cell):
                outputs = _joined([plain for output in cell["outputs"] if (plain := _plain(output))])
            new |= {"execution_count": count(cell), "outputs": outputs}
        new["source"] = source.splitlines(keepends=True)
        cells.append(dict(sorted(new.items())))
    return {"cells": cells, "metadata": NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5}


def free_ids(notebook: dict) -> Iterator[str]:
    """Names for cells that have none: cell-1, cell-2, ..., without those that are taken."""
    taken, number = {cell.get("id") for cell in notebook["cells"]}, 0
    while number := number + 1:
        if f"cell-{number}" not in taken:
            yield f"cell-{number}"


def _joined(outputs: list[dict]) -> list[dict]:
    """Printed text in one piece: a slow cell sends it in several, another time in one."""
    joined: list[dict] = []
    for output in outputs:
        if joined and output["output_type"] == joined[-1]["output_type"] == "stream":
            whole = "".join(joined[-1]["text"] + output["text"])
            output = output | {"text": whole.splitlines(keepends=True)}
            joined.pop()
        joined.append(output)
    return joined


def _plain(output: dict) -> dict | None:
    """What is kept of an output: printed text, or the plain text of a value; nothing else."""
    kind = output["output_type"]
    if kind == "stream" and output.get("name", "stdout") == "stdout":
        lines = text(output.get("text", "")).splitlines(keepends=True)
        return {"name": "stdout", "output_type": "stream", "text": lines}
    if kind == "execute_result" and "text/plain" in output.get("data", {}):
        lines = text(output["data"]["text/plain"]).splitlines(keepends=True)
        return {
            "data": {"text/plain": lines},
            "execution_count": None,
            "metadata": {},
            "output_type": "execute_result",
        }
    return None


def dumps(notebook: dict) -> str:
    """The notebook's file, to the byte: one-space indent, letters as they are, a last newline."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def book_url(root: Path = ROOT) -> str:
    """The one repository URL, from `_config.yml`."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"].rstrip("/").removesuffix(".git")


def toc_files(root: Path = ROOT) -> list[str]:
    """Every file that `_toc.yml` names, as written there (mostly without its suffix)."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (str(node[key]) for key in ("file", "root") if key in node)
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    toc = root / "_toc.yml"
    return list(walk(yaml.safe_load(toc.read_text(encoding="utf-8")))) if toc.exists() else []


def notebook_paths(root: Path = ROOT) -> list[Path]:
    """The chapters, in order: the notebooks that `_toc.yml` names and that are there; without it, all of them."""
    found = sorted((root / "notebooks").glob("*.ipynb"))
    if not (root / "_toc.yml").exists():
        return found
    listed = {entry.removesuffix(".ipynb") for entry in toc_files(root)}
    return [path for path in found if f"notebooks/{path.stem}" in listed]


def beside_the_chapters(path: Path) -> bool:
    """Whether a notebook stands in a book's folder `notebooks` and is none of its chapters: a scratch notebook."""
    root = next((folder for folder in path.parents if (folder / "_toc.yml").is_file()), None)
    if root is None or not path.is_file() or not path.is_relative_to(root / "notebooks"):
        return False
    return path not in notebook_paths(root)


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
        notebook = read(path)
        return cls(notebook, path, root, path.read_text(encoding="utf-8"))

    @property
    def cells(self) -> list[dict]:
        return self.notebook["cells"]

    @property
    def number(self) -> int:
        """The chapter's number, from the file name's first digits; 0 where there are none."""
        found = re.match(r"\d+", self.path.name)
        return int(found.group()) if found else 0

    @property
    def draft(self) -> bool:
        """Whether the chapter says that it is being written: a paragraph of its opening begins with *Draft.*"""
        return any(DRAFT.search(text(cell["source"])) for cell in before_setup(self))

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


def name(cell: dict) -> str:
    """What a cell is called in a message: by its id, or its number, from 0, where it has none."""
    named = isinstance(cell.get("id"), str) and cell["id"]
    return f"cell '{named}'" if named else f"cell number {getattr(cell, 'position', '?')}"


def parse(source: str) -> ast.Module:
    """Python's syntax tree, `await` outside of functions included, as a notebook may have it."""
    return compile(source, "<cell>", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@lru_cache(maxsize=4096)
def python(source: str) -> str:
    """A cell's source as Python: for magics, `!` and `?` the calls that IPython makes of them."""
    try:
        parse(source)
    except (SyntaxError, ValueError):
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(source)
    return source


def tree(cell: dict) -> ast.Module:
    """The cell's syntax tree. Raises ValueError, which names the cell, where it is no Python."""
    try:
        return parse(python(text(cell["source"])))
    except SyntaxError as error:
        raise ValueError(f"{name(cell)} is not Python: {error.msg}, line {error.lineno}") from None
    except ValueError as error:  # a null byte
        raise ValueError(f"{name(cell)} is not Python: {error}") from None


def without_code(markdown: str) -> str:
    """Markdown without fenced blocks and code spans."""
    markdown = re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", markdown, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", markdown, flags=re.S)


RULES: dict[str, Callable[[Chapter], list[str]]] = {}


def rule(function: Callable[[Chapter], list[str]]) -> Callable[[Chapter], list[str]]:
    """Register a rule under its name."""
    RULES[function.__name__] = function
    return function


def check(path: Path, root: Path = ROOT) -> dict[str, list[str]]:
    """The rules that the notebook at `path` breaks, with what is wrong."""
    chapter = Chapter.read(path, root)
    if not chapter.cells:
        return {"skeleton": ["has no cells"]}
    if wrong := code_is_python(chapter):  # most other rules look into the code
        return {"code_is_python": wrong}
    found = {key: function(chapter) for key, function in RULES.items()}
    return {key: wrong for key, wrong in found.items() if wrong}


# ---------------------------------------------------------------- the file


@rule
def stored_form(chapter: Chapter) -> list[str]:
    """nbformat 4.5, the python3 kernel, nothing that a run changes, one way of writing."""
    notebook, wrong = chapter.notebook, []
    version = (notebook.get("nbformat"), notebook.get("nbformat_minor"))
    if version != (4, 5):
        wrong.append(f"nbformat is {version[0]}.{version[1]}, not 4.5")
    if notebook.get("metadata") != NOTEBOOK_METADATA:
        wrong.append("the notebook's metadata are not the plain python3 kernel's and nothing else")
    for cell in chapter.cells:
        if cell.get("execution_count") != count(cell):
            wrong.append(f"{name(cell)} stores an execution count that is not {count(cell)}")
        extra = sorted(set(cell["metadata"]) - set(CELL_METADATA))
        if extra:
            wrong.append(f"{name(cell)} carries metadata {', '.join(extra)}")
    if not wrong and chapter.stored not in (None, dumps(normalise(notebook))):
        wrong.append("is not in the stored form: run `scripts/notebooks.py strip` on it")
    return wrong


@rule
def stable_ids(chapter: Chapter) -> list[str]:
    """Every cell has an id of words that no other cell has: links and diffs lean on it."""
    wrong, seen = [], set()
    for position, cell in enumerate(chapter.cells):
        cell_id = cell.get("id")
        if not cell_id:
            wrong.append(f"cell number {position} has no id")
        elif cell_id in seen:
            wrong.append(f"id '{cell_id}' stands twice")
        elif not WORDS_OF_ID.fullmatch(cell_id):
            wrong.append(f"id '{cell_id}' is not lower-case words joined by hyphens")
        elif BY_CHANCE.fullmatch(cell_id):
            wrong.append(f"id '{cell_id}' looks drawn by chance: give it a word")
        seen.add(cell_id)
    return wrong


@rule
def outputs_where_marked(chapter: Chapter) -> list[str]:
    """Outputs are stored in marked cells only, and there they are (text, for nbval to compare)."""
    wrong = []
    for cell in chapter.code:
        outputs = cell.get("outputs", [])
        if is_marked(cell):
            if not outputs:
                wrong.append(f"{name(cell)} is marked but stores no output: run refresh")
            elif any(_plain(output) is None for output in outputs):
                wrong.append(f"{name(cell)} stores more than plain text")
        else:
            if outputs:
                wrong.append(f"{name(cell)} stores an output but is not marked: run strip")
            if MARKER in text(cell["source"]):
                wrong.append(f"{name(cell)} has the marker, but not as its first line")
            if cell["metadata"].get("keep_output"):
                wrong.append(f"{name(cell)} keeps its output but is not marked")
    return wrong


@rule
def every_cell_runs(chapter: Chapter) -> list[str]:
    """No cell is skipped by nbval or expected to stop the reader's run."""
    wrong = []
    for cell in chapter.code:
        tags = set(cell["metadata"].get("tags") or [])
        skipped = re.search(r"#\s*NBVAL_(SKIP|RAISES_EXCEPTION)", text(cell["source"]))
        if skipped or tags & {"nbval-skip", "skip-execution", "raises-exception", "remove-cell"}:
            wrong.append(f"{name(cell)} is skipped, hidden, or stops a run of all cells")
        if not text(cell["source"]).strip():
            wrong.append(f"{name(cell)} is empty")
    return wrong


# ---------------------------------------------------------------- the code


@rule
def code_is_python(chapter: Chapter) -> list[str]:
    """Every code cell can be parsed: nothing unfinished is left in it."""
    wrong = []
    for cell in chapter.code:
        try:
            tree(cell)
        except ValueError as error:
            wrong.append(str(error))
    return wrong


@rule
def setup_cell(chapter: Chapter) -> list[str]:
    """The first code cell is the setup cell, to the letter, with the book's own URL."""
    if not chapter.code:
        return ["has no code cell"]
    first, wrong = chapter.code[0], []
    if first.get("id") != "setup":
        wrong.append(f"the first code cell is {name(first)}, not 'setup'")
    if text(first["source"]) != SETUP.format(url=book_url(chapter.root)):
        wrong.append("the setup cell differs from the one that all chapters share")
    if [cell.get("id") for cell in chapter.cells].count("setup") > 1:
        wrong.append("has more than one setup cell")
    return wrong


def definitions(module: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Classes and public functions at a module's top level."""
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield node


def package_definitions(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """For each name defined in `vitutils`: the modules that define it, with the code's dump."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((root / "vitutils").rglob("*.py")):
        for node in definitions(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(node.name, {})[path.relative_to(root).as_posix()] = ast.dump(node)
    return found


@rule
def written_once(chapter: Chapter) -> list[str]:
    """What the chapter and `vitutils` define under one name is the same, docstring included."""
    package, wrong = package_definitions(chapter.root), []
    for cell in chapter.code:
        for node in definitions(tree(cell)):
            copies = package.get(node.name, {})
            if copies and ast.dump(node) not in copies.values():
                where = " and ".join(copies)
                wrong.append(f"{name(cell)}: {node.name} differs from the one in {where}")
    return wrong


@rule
def cell_length(chapter: Chapter) -> list[str]:
    """At most 30 lines a code cell, a class definition aside; at most 79 characters a line."""
    wrong = []
    for cell in chapter.code:
        lines = text(cell["source"]).splitlines()
        counted = {number for number, line in enumerate(lines, 1) if line.strip()}
        for node in tree(cell).body:
            if isinstance(node, ast.ClassDef):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                counted -= set(range(start, node.end_lineno + 1))
        if len(counted) > CODE_LINES:
            wrong.append(f"{name(cell)} has {len(counted)} lines of code, at most {CODE_LINES}")
        if cell.get("id") == "setup":
            continue  # its URL may be long; `setup_cell` holds every letter of it
        for number, line in enumerate(lines, 1):
            if len(line) > LINE_WIDTH:
                wrong.append(f"{name(cell)}, line {number}: {len(line)} characters")
    return wrong


@rule
def words_between_code(chapter: Chapter) -> list[str]:
    """Never three code cells in a row without a sentence."""
    wrong, run = [], 0
    for cell in chapter.cells:
        run = run + 1 if cell["cell_type"] == "code" else 0
        if run == 3:
            wrong.append(f"{name(cell)} is the third code cell in a row")
    return wrong


STYLE_WORDS = {"figsize", "dpi", "cmap", "facecolor", "edgecolor", "markersize", "linewidth"}


@rule
def no_styling(chapter: Chapter) -> list[str]:
    """Figures are styled in `vitutils.plot` alone: no sizes, colours or pyplot in a chapter."""
    wrong = []
    for cell in chapter.code:
        module = tree(cell)
        for node in ast.walk(module):
            found = None
            if isinstance(node, ast.Call):
                words = {k.arg for k in node.keywords}
                drawing = _dotted(node.func).startswith("plot.")
                banned = STYLE_WORDS | ({"color", "colors", "c"} if drawing else set())
                found = ", ".join(sorted(words & banned))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"#([0-9a-fA-F]{3,4}){1,2}", node.value):
                    found = node.value
            elif isinstance(node, ast.Name) and node.id == "plt":
                found = "plt"
            if found:
                wrong.append(f"{name(cell)} styles a figure: {found}")
        for module_name in _imports(module):
            if module_name.split(".")[0] in {"matplotlib", "pylab", "seaborn"}:
                wrong.append(f"{name(cell)} imports {module_name}: draw with vitutils.plot")
            if module_name.startswith("vitutils.plot."):
                wrong.append(f"{name(cell)} imports {module_name}: import plot, as `plot`")
        for alias in (a for node in ast.walk(module) for a in getattr(node, "names", [])):
            if isinstance(alias, ast.alias) and alias.asname and alias.name.endswith("plot"):
                wrong.append(f"{name(cell)} imports plot as {alias.asname}: call it `plot`")
    return wrong


def _dotted(node: ast.expr) -> str:
    """`a.b.c` for a name or an attribute of one, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = _dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def _imports(module: ast.Module) -> Iterator[str]:
    """The dotted names that a cell imports."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@rule
def only_what_colab_has(chapter: Chapter) -> list[str]:
    """No widgets, no glue, no file of the repository; the scale is read by the setup cell alone."""
    wrong = []
    for cell in chapter.code:
        module = tree(cell)
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.match(r"(\.\.?/)*(results|book|studies|notebooks|tests)/|\.\./", node.value):
                    wrong.append(f"{name(cell)} names {node.value}: Colab has no repository")
        for module_name in _imports(module):
            if re.match(r"tqdm\.(auto|notebook|autonotebook)|ipywidgets|myst_nb", module_name):
                wrong.append(f"{name(cell)} imports {module_name}")
        source = text(cell["source"])
        if re.search(r"\bglue\(", source):
            wrong.append(f"{name(cell)} calls glue")
        if "VITBOOK_" in source:
            wrong.append(f"{name(cell)} reads the book's environment: ask `env`")
        if cell.get("id") != "setup" and python(source) != source:
            wrong.append(f"{name(cell)} has a magic or a shell command")
    return wrong


MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|Users|work|tmp|mnt|content)/\w|\b[A-Z]:\\\w")


@rule
def no_machine_path(chapter: Chapter) -> list[str]:
    """Nothing that exists on one machine only, in a source or a stored output."""
    wrong = []
    for cell in chapter.cells:
        everything = text(cell["source"]) + json.dumps(cell.get("outputs", []))
        found = MACHINE_PATH.search(everything)
        if found:
            wrong.append(f"{name(cell)} holds the path of one machine: {found.group()}…")
    return wrong


@rule
def nothing_left_open(chapter: Chapter) -> list[str]:
    """No placeholder that its author meant to fill in, except in a draft."""
    return [] if chapter.draft else left_open(chapter)


def left_open(chapter: Chapter) -> list[str]:
    """The placeholders that stand in the chapter."""
    pattern = re.compile(r"@@\w*|\b(FIXME|TBD|XXX)\b|[Ll]orem ipsum")
    found = [(name(cell), pattern.search(text(cell["source"]))) for cell in chapter.cells]
    return [f"{where} still holds '{match[0]}'" for where, match in found if match]


def left_to_do(chapter: Chapter) -> str:
    """What keeps a draft from being a chapter, as the end of a sentence; nothing for a chapter that is none."""
    if not chapter.draft:
        return ""
    cells, words = len(left_open(chapter)), word_count(DRAFT.sub("", chapter.prose, count=1))
    return f"; a draft: cells to fill in (@@): {cells}; words: {words:,} of {WORDS[0]:,}"


# ---------------------------------------------------------------- the figures

# Functions of `plot` that draw nothing (names without `plot.`).
NOT_DRAWING = {"style", "use_style", "setup"}


def draws(cell: dict) -> bool:
    """Whether a code cell calls `plot.something(...)` or a `.plot()` method."""
    if cell["cell_type"] != "code":
        return False
    for node in ast.walk(tree(cell)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "plot":
                return True
            parts = _dotted(node.func).split(".")
            if "plot" in parts[:-1] and parts[-1] not in NOT_DRAWING:
                return True
    return False


def alt_text(cell: dict) -> str:
    """The alternative text of a cell's picture."""
    return cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")


@rule
def alt_texts(chapter: Chapter) -> list[str]:
    """A cell that draws says in words what is shown: the axes and the finding, not a file name."""
    wrong, seen = [], {}
    for cell in chapter.code:
        alt = alt_text(cell)
        if draws(cell):
            if not alt:
                wrong.append(f"{name(cell)} draws a figure and has no alt text")
            elif len(alt) < ALT_LENGTH or len(alt.split()) < 7:
                wrong.append(f"{name(cell)}: the alt text '{alt}' says too little")
            elif re.search(r"\S\.(png|svg|jpe?g|gif|webp)\b", alt):
                wrong.append(f"{name(cell)}: the alt text is a file name")
            elif alt in seen:
                wrong.append(f"{name(cell)} has the alt text of {seen[alt]}")
            seen[alt] = name(cell)
        elif alt:
            wrong.append(f"{name(cell)} has alt text but calls nothing of `plot`")
    return wrong


@rule
def captions(chapter: Chapter) -> list[str]:
    """After a cell that draws, at once, its caption `*Figure 4.1.* …`, counted from 1."""
    wrong, number = [], 0
    for cell, following in zip(chapter.cells, [*chapter.cells[1:], None], strict=False):
        caption = None
        if following is not None and following["cell_type"] == "markdown":
            start = r"\*Figure (\d+)\.(\d+)\.\*\s*(.*)"
            caption = re.match(start, text(following["source"]), flags=re.S)
        if draws(cell):
            number += 1
            expected = f"{chapter.number}.{number}"
            if not caption:
                wrong.append(f"{name(cell)} draws figure {expected}, no caption follows it")
            elif f"{int(caption[1])}.{int(caption[2])}" != expected:
                wrong.append(f"{name(following)} is the caption of {expected} by its place")
            elif len(caption[3].split()) < 5:
                wrong.append(f"{name(following)}: the caption says too little")
        elif caption:
            wrong.append(f"{name(following)} is a caption, but {name(cell)} draws nothing")
    for mention in re.finditer(r"[Ff]igure (\d+)\.(\d+)", chapter.prose):
        chapter_number, figure = int(mention[1]), int(mention[2])
        if chapter_number == chapter.number and not 1 <= figure <= number:
            wrong.append(f"the text speaks of figure {mention[1]}.{mention[2]}, which is not there")
    return wrong


# ---------------------------------------------------------------- the prose


@rule
def plain_markdown(chapter: Chapter) -> list[str]:
    """Only Markdown that Colab shows: no MyST directive, role, target; no relative picture."""
    wrong = []
    directive = re.compile(r"^[ \t>]*(```+|~~~+|:::+)[ \t]*\{", flags=re.M)
    patterns = {
        "a MyST block (:::)": re.compile(r"^[ \t>]*:::", flags=re.M),
        "a MyST target": re.compile(r"^\([\w-]+\)=", flags=re.M),
        "a MyST substitution": re.compile(r"\{\{.*?\}\}"),
        "a labelled formula": re.compile(r"\$\$[ \t]*\([\w-]+\)"),
        "a footnote": re.compile(r"\[\^[\w-]+\]"),
    }
    raw = [cell for cell in chapter.cells if cell["cell_type"] == "raw"]
    wrong += [f"{name(cell)} is a raw cell, which no page shows" for cell in raw]
    for cell in chapter.markdown:
        source = text(cell["source"])
        if directive.search(source):
            wrong.append(f"{name(cell)} has a MyST directive")
        if re.search(r"(?<!`)\{[a-z][\w:+.-]*\}`[^`]+`", source):
            wrong.append(f"{name(cell)} has a MyST role")
        plain = without_code(source)
        without_math = re.sub(r"\$\$.*?\$\$(?![ \t]*\()|(?<!\$)\$[^$\n]+\$", "", plain, flags=re.S)
        found = [what for what, pattern in patterns.items() if pattern.search(without_math)]
        wrong += [f"{name(cell)} has {what}" for what in found]
        for picture in re.finditer(r"!\[([^\]]*)\]\(([^)\s]+)", plain):
            if picture[2].startswith("attachment:"):
                wrong.append(f"{name(cell)} has a pasted picture, which the pages leave out: draw it with `plot`")
            elif not re.match(r"https?://|data:", picture[2]):
                wrong.append(f"{name(cell)} shows {picture[2]}, which Colab cannot find")
            if len(picture[1]) < ALT_LENGTH:
                wrong.append(f"{name(cell)} shows {picture[2]} without alt text")
        for tag in re.finditer(r"<\s*/?\s*([a-zA-Z][\w-]*)[^>\n]*>", without_math):
            if tag[1].lower() not in {"details", "summary", "br", "sub", "sup", "kbd"}:
                if not re.match(r"https?|mailto", tag[1]):
                    wrong.append(f"{name(cell)} has HTML: {tag[0]}")
    return wrong


@rule
def length_of_prose(chapter: Chapter) -> list[str]:
    """1,500 to 3,000 words of Markdown, code and formulas not counted; a draft may have fewer."""
    words = word_count(chapter.prose)
    if (WORDS[0] <= words or chapter.draft) and words <= WORDS[1]:
        return []
    return [f"has {words:,} words of prose, not {WORDS[0]:,} to {WORDS[1]:,}"]


def word_count(markdown: str) -> int:
    """Words of prose: without code blocks, formulas, HTML tags and the addresses of links."""
    plain = re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", markdown, flags=re.M | re.S)
    plain = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|<[^>\n]+>|(?<=\])\([^)]*\)", " ", plain, flags=re.S)
    return len(re.findall(r"[^\W_][\w'’.,-]*", plain))


def headings(chapter: Chapter) -> list[tuple[int, str]]:
    """Level and text of each heading, in order; what looks like one in a code block does not."""
    found = []
    for cell in chapter.markdown:
        plain = re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", text(cell["source"]), flags=re.M | re.S)
        found += [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#+) (.*)$", plain, flags=re.M)]
    return found


@rule
def heading_levels(chapter: Chapter) -> list[str]:
    """One H1, at the very start, which may ask; no level left out; no other question; none twice."""
    found, wrong = headings(chapter), []
    top = [title for level, title in found if level == 1]
    first = text(chapter.cells[0]["source"]) if chapter.cells else ""
    if len(top) != 1 or not first.startswith("# "):
        wrong.append(f"has {len(top)} headings of level 1; it needs one, as its first line")
    for (above, _), (level, title) in zip(found, found[1:], strict=False):
        if level > above + 1:
            wrong.append(f"heading '{title}' leaves a level out")
    for position, (level, title) in enumerate(found):
        if level > 1 and title.endswith("?"):
            wrong.append(f"heading '{title}' is a question")
        if title in [other for _, other in found[:position]]:
            wrong.append(f"heading '{title}' stands twice")
    return wrong


@rule
def skeleton(chapter: Chapter) -> list[str]:
    """Promise, You will, Before you start, Time; … Common mistakes, Exercises, Summary, Next."""
    wrong = []
    setup = next((i for i, c in enumerate(chapter.cells) if c.get("id") == "setup"), 0)
    opening = "\n\n".join(text(c["source"]) for c in chapter.cells[:setup] if c["cell_type"] == "markdown")
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", opening) if p.strip()]
    promise = paragraphs[1] if len(paragraphs) > 1 else ""
    if not re.match(r"[^\W\d_]", promise) or not promise.endswith("."):
        wrong.append("no sentence under the title promises what the reader will be able to do")
    position = -1
    for label in ("You will", "Before you start", "Time"):
        found = re.search(rf"(?<!\*)\*{{1,2}}{label}[.:]?\*{{1,2}}", opening)
        if not found:
            wrong.append(f"*{label}* is missing before the setup cell")
        elif found.start() < position:
            wrong.append(f"*{label}* stands too early")
        position = found.start() if found else position
    verbs = re.split(r"\*You will[.:]?\*", opening)[-1].split("*Before you start")[0]
    bullets = len(re.findall(r"^\s*[-*+] ", verbs, flags=re.M))
    things = bullets or len(verbs.split(";" if ";" in verbs else ","))
    if "*You will" in opening and not 3 <= things <= 5:
        wrong.append(f"*You will* names {things} things, not three to five")
    time = re.split(r"\*Time[.:]?\*", opening)[-1].lower()
    for word in ("cpu", "gpu", "minute", "download"):
        if "*Time" in opening and word not in time:
            wrong.append(f"*Time* says nothing about '{word}'")
    titles = [title.lower() for level, title in headings(chapter) if level == 2]
    last = -1
    for title in ("common mistakes", "exercises", "summary", "further reading"):
        if title not in titles:
            wrong.append(f"no heading '## {title.capitalize()}'")
        elif titles.index(title) < last:
            wrong.append(f"'## {title.capitalize()}' stands too early")
        else:
            last = titles.index(title)
    summary = re.split(r"^## .*$", chapter.prose.split("\n## Summary\n")[-1], flags=re.M)[0]
    lines = [line for line in summary.splitlines() if re.match(r"[-*+\d\w]", line)]
    if "summary" in titles and len(lines) != 5:
        wrong.append(f"the summary has {len(lines)} lines, not five")
    return wrong + _ending(chapter)


def _ending(chapter: Chapter) -> list[str]:
    """Further reading cites; the last lines lead to the next chapter, by a link where it exists."""
    final = re.split(r"^## Further reading[ \t]*$", chapter.prose, flags=re.M | re.I)[-1]
    wrong = []
    if "bibliography.md#" not in final:
        wrong.append("Further reading cites nothing of the bibliography")
    line = re.search(r"^\*{0,2}Next\b.*", final, flags=re.M | re.S)
    if not line:
        return [*wrong, "no paragraph at the end starts with *Next*"]
    following = [path.name for path in notebook_paths(chapter.root) if re.match(rf"0*{chapter.number + 1}_", path.name)]
    if following and f"]({following[0]})" not in line[0].replace("(./", "("):
        wrong.append(f"*Next* does not link to {following[0]}")
    return wrong


@rule
def exercises(chapter: Chapter) -> list[str]:
    """One easy, one core, one stretch, numbered, each with a check after it."""
    wrong, expected = [], ["easy", "core", "stretch"]
    pattern = r"\*\*Exercise (\d+)\.(\d+) \((\w+)\)\.\*\*"
    found = list(re.finditer(pattern, chapter.prose))
    if [m[3] for m in found] != expected:
        wrong.append(f"has exercises {[m[3] for m in found]}, not {expected}, in this order")
    for count, match in enumerate(found, 1):
        if (int(match[1]), int(match[2])) != (chapter.number, count):
            wrong.append(f"exercise {match[1]}.{match[2]} should be {chapter.number}.{count}")
    starts = [
        position
        for position, cell in enumerate(chapter.cells)
        if cell["cell_type"] == "markdown" and re.search(pattern, text(cell["source"]))
    ]
    for start, end in zip(starts, [*starts[1:], len(chapter.cells)], strict=False):
        cells = [c for c in chapter.cells[start:end] if c["cell_type"] == "code"]
        if not any("check." in text(c["source"]) for c in cells):
            wrong.append(f"the exercise in {name(chapter.cells[start])} has no check after it")
    return wrong


def before_setup(chapter: Chapter) -> list[dict]:
    """The Markdown cells that open the chapter."""
    at = next((i for i, c in enumerate(chapter.cells) if c.get("id") == "setup"), 0)
    return [cell for cell in chapter.cells[:at] if cell["cell_type"] == "markdown"]


def section(chapter: Chapter, title: str) -> str:
    """What stands under a heading of level 2, up to the next one."""
    after = re.split(rf"^## {title}[ \t]*$", chapter.prose, flags=re.M)[1:]
    return re.split(r"^## ", after[0], flags=re.M)[0].strip() if after else ""


OPENING = {
    "the promise begins 'After this chapter you can'": r"After this chapter you can ",
    "*You will* stands alone": r"\*You will\*$",
    "*You will* is a list, '- …;' and at last '- ….'": r"(?:- [^\n]+;\n)+- [^\n]+\.$",
    "'*Before you start.* ' and a sentence": r"\*Before you start\.\* [A-Z\[]",
    "'*Time.* ' and a sentence": r"\*Time\.\* [A-Z]",
}


@rule
def one_form(chapter: Chapter) -> list[str]:
    """Opening, mistakes, summary and end look the same in every chapter."""
    opening = "\n\n".join(text(cell["source"]) for cell in before_setup(chapter))
    parts = [part.strip() for part in re.split(r"\n\s*\n", opening)][1:6]
    wrong = [
        f"the opening has another form: {form}"
        for (form, pattern), part in zip(OPENING.items(), [*parts, *[""] * 5], strict=False)
        if not re.match(pattern, part)
    ]
    mistakes = section(chapter, "Common mistakes")
    if not mistakes.startswith("**") or re.search(r"^\*\*\d", mistakes, flags=re.M):
        wrong.append("common mistakes begin with their names, '**So and so.**', without numbers")
    if re.findall(r"^(\S+) ", section(chapter, "Summary"), flags=re.M) != [*"1. 2. 3. 4. 5.".split()]:
        wrong.append("the summary is a list numbered from 1 to 5")
    reading, _, following = section(chapter, "Further reading").rpartition("\n\n")
    if not all(line.startswith("- [") for line in reading.splitlines()):
        wrong.append("Further reading is a list, '- [Somebody 2021](…)'")
    if not re.match(r"\*Next\.\* [A-Z\[]", following):
        wrong.append("the last paragraph is '*Next.* ' and a sentence")
    return wrong


@rule
def chapter_links(chapter: Chapter) -> list[str]:
    """Where another chapter is first spoken of, there is a link to it."""
    written = {int(found[0]) for path in notebook_paths(chapter.root)
               if (found := re.match(r"\d+", path.name))}  # fmt: skip
    by_link = r"\[[^\]]*\]\((?:\./)?0*(\d+)_\w+\.ipynb[^)]*\)"
    by_number = r"[Cc]hapters?\s+(\d+(?:(?:,\s+|\s+and\s+|\s+to\s+)\d+)*)"
    linked, wrong = {chapter.number}, []
    for match in re.finditer(f"{by_link}|{by_number}", without_code(chapter.prose)):
        for number in map(int, re.findall(r"\d+", match[1] or match[2])):
            if match[2] and number in written - linked:
                wrong.append(f"speaks of chapter {number} before there is a link to it")
            linked.add(number)
    return wrong


# Terms of the glossary whose words also stand for everyday things: no rule can tell.
EVERYDAY = {"block", "collapse", "interpolation (bicubic)", "kernel", "key", "mask", "rank", "value"}


def glossary(root: Path = ROOT) -> dict[str, str]:
    """The glossary's terms, in small letters, with the anchors that links name."""
    page = root / "book" / "glossary.md"
    source = page.read_text(encoding="utf-8") if page.is_file() else ""
    terms = [term.strip().strip("`").lower() for term in re.findall(r"^## (.*)$", source, re.M)]
    return {term: re.sub(r"[^\w\- ]", "", term).replace(" ", "-") for term in terms}


def terms_and_links(source: str, terms: dict[str, str]) -> list[tuple[int, str, str]]:
    """Where terms and links to the glossary stand: (place, term or "" for a link, anchor).

    Headings, tables, code, formulas and the words of links do not count as places of a term; a
    long term hides the short ones in it ('patch embedding' hides 'patch' and 'embedding').
    """

    def blank(match: re.Match) -> str:
        return " " * len(match[0])

    to_glossary = r"\[[^\]]*\]\([^)\s]*glossary\.md#([\w-]+)\)"
    found = [(link.start(), "", link[1]) for link in re.finditer(to_glossary, source)]
    source = re.sub(r"```.*?```|\$\$.*?\$\$", blank, source, flags=re.S)
    source = re.sub(r"\[[^\]]*\]\([^)]*\)|`[^`\n]*`|\$[^$\n]+\$", blank, source)
    source = re.sub(r"^(?:#|\|).*$", blank, source, flags=re.M)
    for term in sorted(terms.keys() - EVERYDAY, key=lambda term: (-len(term), term)):
        words = "[ -]".join(map(re.escape, re.split(r"[ -]", term)))
        pattern = re.compile(rf"(?<![\w-]){words}(?:e?s)?(?![\w-])", flags=re.I)
        found += [(match.start(), term, terms[term]) for match in pattern.finditer(source)]
        source = pattern.sub(blank, source)
    return sorted(found)


@rule
def glossary_links(chapter: Chapter) -> list[str]:
    """After the opening a term of the glossary is linked where it first stands, and only there.

    Exercises do not count. A link may have other words, `[equivariant](…#equivariance)`.
    """
    terms, opening = glossary(chapter.root), before_setup(chapter)
    linked, missed, again = set(), {}, []
    for cell in chapter.markdown:
        if cell in opening or cell.get("id", "").startswith("exercise"):
            continue
        for _, term, anchor in terms_and_links(text(cell["source"]), terms):
            if term and anchor not in linked:
                missed.setdefault(anchor, f"{name(cell)} has '{term}' without a link")
            elif not term and anchor in linked:
                again.append(f"{name(cell)} links to the glossary's '{anchor}' again")
            elif not term:
                linked.add(anchor)
    return [*missed.values(), *again]


# What this book does not write, and what it writes instead.
ONE_WORD = {
    r"(?<![\w-])[Nn]ets?(?![\w-])": "network",
    r"\b[Cc]onvnets?\b": "CNN",
    r"\b[Pp]retrain\w*": "pre-train",
    r"\btransformers?\b": "Transformer",
    r"\b[Ss]calar products?\b": "dot product",
    r"\blearnt\b": "learned",
    r"\b[Dd]atasets?\b": "data set",
    r"\b(?:color|gray|center|neighbor|behavior|labeled|normaliz|optimiz|initializ|regulariz)\w*":
        "British spelling",
    r"\+-": "±",
}  # fmt: skip


@rule
def one_word(chapter: Chapter) -> list[str]:
    """One word for one thing, British spelling, and ± before a spread, in prose and in alt texts."""
    wrong = []
    for cell in chapter.cells:
        source = text(cell["source"])
        if cell["cell_type"] == "markdown":
            plain = re.sub(r"\]\([^)]*\)|\$\$.*?\$\$|\$[^$\n]+\$", " ", without_code(source), flags=re.S)
        else:
            plain = f"{alt_text(cell)} {'+-' if '+-' in source else ''}"
        wrong += [
            f"{name(cell)} has '{match[0]}': {better}"
            for pattern, better in ONE_WORD.items()
            for match in re.finditer(pattern, plain)
        ]
    return wrong


@rule
def links(chapter: Chapter) -> list[str]:
    """A relative link leads to a file of the repository, and to an anchor that is there."""
    wrong = []
    for cell in chapter.markdown:
        for match in re.finditer(r"\]\(([^)\s]+)[^)]*\)", without_code(text(cell["source"]))):
            target, _, anchor = match[1].partition("#")
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                if target.startswith("http:"):
                    wrong.append(f"{name(cell)}: {target} is not https")
                continue
            path = (chapter.path.parent / target).resolve() if target else chapter.path
            if not path.is_file() or not path.is_relative_to(chapter.root.resolve()):
                wrong.append(f"{name(cell)} links to {target}, which is not in the repository")
            elif anchor and anchor not in anchors(path):
                wrong.append(f"{name(cell)} links to {match[1]}, where '{anchor}' is not")
    return wrong


def anchors(path: Path) -> set[str]:
    """What can stand after `#` in a link: MyST targets, headings, the keys of a bibliography."""
    if path.suffix == ".ipynb":
        source = Chapter.read(path).prose
    else:
        source = path.read_text(encoding="utf-8")
    found = set(re.findall(r"^\(([\w:.-]+)\)=", source, flags=re.M))
    found |= set(re.findall(r"\bid=\"([\w:.-]+)\"", source))
    if "{bibliography}" in source:
        for bibliography in path.parent.glob("*.bib"):
            entries = bibliography.read_text(encoding="utf-8")
            found |= set(re.findall(r"^\s*@\w+\{([^,\s]+),", entries, flags=re.M))
    for title in re.findall(r"^#+ (.*)$", source, flags=re.M):
        found.add(re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-"))
    return found


@rule
def in_the_toc(chapter: Chapter) -> list[str]:
    """The chapter stands in `_toc.yml`, once."""
    listed = [entry.removesuffix(".ipynb") for entry in toc_files(chapter.root)]
    count = listed.count(f"notebooks/{chapter.path.stem}")
    return [] if count == 1 else [f"stands {count} times in _toc.yml, not once"]


def toc_misses(root: Path = ROOT) -> list[str]:
    """Entries of `_toc.yml` for which there is no file (a rule of the book, not of a chapter)."""
    suffixes = ("", ".md", ".ipynb")
    return [
        f"_toc.yml names {entry}, which is not there"
        for entry in toc_files(root)
        if not any((root / f"{entry}{suffix}").is_file() for suffix in suffixes)
    ]


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
    return unread + [
        f"vitutils/models/vit.py: {node.name} is written out in no chapter"
        for node in definitions(module)
        if node.name not in written
    ]
