"""Notebook files: read whoever wrote them, written in one form.

What comes back from Colab, an editor or a student is read by `read`, which never guesses: it fills in what may be
missing, or names the file and the cell. nbformat's schema says what a cell is, and converts what is older.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

MARKER = "# NBVAL_CHECK_OUTPUT"
CELL_METADATA = {"code": ("mystnb", "tags"), "markdown": ("mystnb", "tags"), "raw": ("format", "raw_mimetype", "tags")}
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NOTEBOOK = {"cells": [], "metadata": NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5}


def text(value: str | list[str]) -> str:
    """A notebook's source or output text, which JSON may hold as a string or a list of lines."""
    return value if isinstance(value, str) else "".join(value)


class Unreadable(ValueError):
    """A file that is no notebook of today; the message, one line, names it, and the cell if it is one's fault."""


def name(cell: dict) -> str:
    """What a cell is called in a message: its id; where it has none, its first words."""
    return f"cell '{cell['id']}'" if cell.get("id") else f"the cell {' '.join(str(cell.get('source')).split())!r:.40}"


def read(path: Path, content: bytes | None = None) -> dict:
    """The notebook of a file, or of its content, whoever wrote it: Colab without ids, an editor on Windows.

    What may be missing (metadata, outputs) is filled in, sources are texts with LF; ids stay as they are in the file.
    Raises Unreadable.
    """

    def no(told: str) -> Unreadable:
        return Unreadable(f"{path.name}: {told}")

    try:
        notebook = json.loads((path.read_bytes() if content is None else content).decode("utf-8-sig"))
    except OSError as error:
        raise no(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise no(f"is not JSON: {error}") from None
    told = notebook if isinstance(notebook, dict) else {}
    if not isinstance(told.get("cells"), list) or told.get("nbformat", 4) != 4:
        raise no("is no notebook of nbformat 4, a list of cells: open it in Jupyter and save it")
    if not isinstance(notebook.get("metadata"), dict):
        notebook["metadata"] = {}
    notebook["cells"] = [_filled(cell if isinstance(cell, dict) else {"source": cell}) for cell in notebook["cells"]]
    from nbformat.validator import ValidationError, get_validator, iter_validate  # seconds: readers of notebooks only

    named = [{"id": "x"} | cell for cell in notebook["cells"]]
    try:
        get_validator(4, 5, name="fastjsonschema").validate(NOTEBOOK | {"cells": named})
    except ValidationError:  # not told where
        for cell, whole in zip(notebook["cells"], named, strict=True):
            kind = cell["cell_type"] if str(cell["cell_type"]) in CELL_METADATA else "raw"
            for fault in iter_validate(whole, f"{kind}_cell", 4, 5, relax_add_props=True):
                where = ".".join(map(str, fault.path)) or "output"
                raise no(f"{name(cell)} has a wrong {where}: {fault.message:.100}") from None
    return notebook


def _filled(cell: dict) -> dict:
    """The cell with what it may lack, in place; an id that nbformat does not allow counts as none."""
    cell.setdefault("cell_type", None)
    metadata = cell["metadata"] if isinstance(cell.get("metadata"), dict) else {}
    cell["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    if not re.fullmatch(r"[\w-]{1,64}", str(cell.get("id") or ""), flags=re.A):
        cell.pop("id", None)
    source = cell.get("source", "")
    with contextlib.suppress(TypeError):  # no text: said by the schema
        source = re.sub(r"\r\n?", "\n", text(source))
    cell["source"] = source
    if cell["cell_type"] == "code":
        count = cell.get("execution_count")
        cell |= {"execution_count": count if isinstance(count, int) else None, "outputs": cell.get("outputs") or []}
    return cell


def alt_text(cell: dict) -> str:
    """The alternative text of a cell's picture."""
    try:
        return str(cell["metadata"]["mystnb"]["image"]["alt"] or "")
    except (KeyError, TypeError):
        return ""


# ---------------------------------------------------------------- writing


def is_marked(cell: dict) -> bool:
    """Whether the cell's first line asks nbval to compare its output."""
    return cell["cell_type"] == "code" and text(cell["source"]).splitlines()[:1] == [MARKER]


def only_shows(source: str) -> bool:
    """Whether code only imports, asserts, or draws with `vitutils.plot` what was computed before."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" and the like
            statements = ast.parse(source).body
    except (SyntaxError, ValueError):  # a magic; a null byte
        return False
    calls = [s.value.func if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) else s for s in statements]
    drawn = [isinstance(call, ast.Attribute) and ast.unparse(call.value) == "plot" for call in calls]
    kinds = (ast.Import, ast.ImportFrom, ast.Assert)
    return bool(statements) and all(plots or isinstance(s, kinds) for plots, s in zip(drawn, statements, strict=True))


def tags(cell: dict) -> list[str]:
    """The cell's tags. What no chapter is about is folded on its page, and a click opens it: setup, imports, the checks
    of exercises, and cells that only draw or only assert."""
    given = cell["metadata"].get("tags") or []
    folded = cell["cell_type"] == "code" and (
        re.fullmatch(r"setup|imports|exercise-.*-check", cell.get("id") or "") or only_shows(text(cell["source"]))
    )
    return given + ["hide-input"] * bool(folded and "hide-input" not in given)


def word_id(cell: dict, taken: set[str]) -> str:
    """The cell's id; in place of one that an editor has drawn by chance, the first words of its source."""
    drawn = r"(?=.*\d)[0-9a-f]{6,}(-[0-9a-f]+)*"
    if re.fullmatch(rf"(?!{drawn}$)[a-z][a-z0-9]*(-[a-z0-9]+)*", cell["id"]):
        return cell["id"]
    words = re.findall(r"(?<![a-z])[a-z][a-z0-9]+", text(cell["source"]).removeprefix(MARKER).lower())
    first = "-".join([word for word in words if word not in {"def", "class", "import", "from", "the"}][:3])
    return next(free_ids(taken, first[:60].rstrip("-") or "cell", first=True))


def free_ids(taken: set[str], stem: str = "cell", first: bool = False) -> Iterator[str]:
    """Names that no cell has: cell-1, cell-2, ...; or, with `first`, the stem itself before stem-2."""
    numbered = (f"{stem}-{number}" if number > first else stem for number in itertools.count(1))
    return (new for new in numbered if new not in taken)


def normalise(notebook: dict) -> dict:
    """The notebook as it is stored: outputs only where marked, nothing that a run changes, ids of words."""
    cells, taken = [], {cell.get("id", "") for cell in notebook["cells"]}
    unnamed = free_ids(frozenset(taken))
    for cell in notebook["cells"]:
        kept = CELL_METADATA[cell["cell_type"]]
        metadata = {key: cell["metadata"][key] for key in kept if key in cell["metadata"]}
        if tags(cell):
            metadata["tags"] = tags(cell)
            if cell["cell_type"] == "code" and "hide-input" in metadata["tags"]:
                metadata["cellView"] = "form"  # the same in Colab, where "Show code" opens it
        if is_marked(cell):
            metadata = {"keep_output": True} | metadata  # nbstripout, in an editor, leaves it alone
        new = {"cell_type": cell["cell_type"], "metadata": metadata}
        new["id"] = word_id(cell, taken) if cell.get("id") else next(unnamed)
        taken.add(new["id"])
        if cell.get("attachments"):  # pasted pictures
            new["attachments"] = cell["attachments"]
        if cell["cell_type"] == "code":  # a count, for nbval compares no cell that seems never to have run
            outputs = _plain(cell["outputs"]) if is_marked(cell) else []
            new |= {"execution_count": 1 if is_marked(cell) else None, "outputs": outputs}
        new["source"] = text(cell["source"]).rstrip().splitlines(keepends=True)
        cells.append(dict(sorted(new.items())))
    return NOTEBOOK | {"cells": cells}


def _plain(outputs: list[dict]) -> list[dict]:
    """What is kept of outputs: printed text, in one piece however it came, and the plain text of a value."""
    kept: list[dict] = []
    for output in filter(is_plain, outputs):
        if output["output_type"] == "stream":
            printed = text(output["text"])
            if kept and kept[-1]["output_type"] == "stream":
                printed = "".join(kept.pop()["text"]) + printed
            kept.append({"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)})
        else:
            data = {"text/plain": text(output["data"]["text/plain"]).splitlines(keepends=True)}
            kept.append({"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"})
    return kept


def is_plain(output: dict) -> bool:
    """Whether an output is printed text, or a value that has a plain text."""
    if output["output_type"] == "stream":
        return output["name"] == "stdout"
    return output["output_type"] == "execute_result" and "text/plain" in output["data"]


def dumps(notebook: dict) -> str:
    """The notebook's file, to the byte: one-space indent, letters as they are, a last newline."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
