"""Write an assignment's source notebook in the format of Otter-Grader, for `otter assign` (tried with 7.0.0).

    python tools/to_otter.py course/1_convolution/1_convolution.ipynb 1_convolution_otter.ipynb

See course/otter.md for what to do then, and for what does not come along.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell

HIDDEN = re.compile(r"^### (BEGIN|END) HIDDEN TESTS\n?", re.M)
CODE = re.compile(r"^(\s*)### (BEGIN|END) SOLUTION", re.M)
WORDS = re.compile(r"<!-- BEGIN SOLUTION -->\n(.*)<!-- END SOLUTION -->", re.S)


def silent(source: str) -> str:
    """A test in which no expression shows its value: Otter runs doctests, and they fail where anything is shown."""
    lines, waiting = source.splitlines(keepends=True), list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = f"{line[: node.col_offset]}_ = {line[node.col_offset :]}"
        elif not isinstance(node, ast.FunctionDef | ast.ClassDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return "".join(lines)


def test_of(cell: dict, points: int, hidden: bool) -> nbformat.NotebookNode:
    head = f'""" # BEGIN TEST CONFIG\npoints: {points}\nhidden: {str(hidden).lower()}\n""" # END TEST CONFIG\n'
    return new_code_cell(head + silent(HIDDEN.sub("", cell["source"])))


def question(
    name: str, cell: dict, given: list[dict], tests: list[tuple[dict, int, bool]], points: int | None
) -> list[nbformat.NotebookNode]:
    """The cells of one answer, in code with what is given after it and its tests, or in words."""
    name = name.replace("-", "_")
    if cell["cell_type"] == "markdown":
        text, model = WORDS.sub("", cell["source"]).rstrip(), WORDS.search(cell["source"])[1].strip()
        raw = f"# BEGIN QUESTION\nname: {name}\nmanual: true\npoints: {points}"
        middle = [new_markdown_cell(text), new_raw_cell("# BEGIN SOLUTION"), new_markdown_cell(model)]
        return [new_raw_cell(raw), *middle, new_raw_cell("# END SOLUTION"), new_raw_cell("# END QUESTION")]
    middle = [new_raw_cell("# BEGIN SOLUTION"), new_code_cell(CODE.sub(r"\1# \2 SOLUTION", cell["source"]))]
    end = [new_raw_cell("# END SOLUTION"), *(new_code_cell(one["source"]) for one in given)]
    if tests:
        end += [new_raw_cell("# BEGIN TESTS"), *(test_of(*test) for test in tests), new_raw_cell("# END TESTS")]
    return [new_raw_cell(f"# BEGIN QUESTION\nname: {name}"), *middle, *end, new_raw_cell("# END QUESTION")]


def convert(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same assignment, for Otter."""
    first = "# ASSIGNMENT CONFIG\nexport_cell: false\ncheck_all_cell: false\nshow_question_points: true"
    out, waiting = [new_raw_cell(first)], None

    def close() -> None:
        nonlocal waiting
        if waiting:
            out.extend(question(*waiting))
        waiting = None

    for cell in notebook.cells:
        told = cell.metadata.get("nbgrader", {})
        if told.get("solution"):
            close()
            waiting = told["grade_id"], cell, [], [], told.get("points")
        elif told.get("grade"):
            waiting[3].append((cell, told["points"], "HIDDEN TESTS" in cell["source"]))
        elif told and waiting and cell.cell_type == "code" and not waiting[3]:
            waiting[2].append(cell)  # given between an answer and its tests
        else:
            close()
            out.append(new_code_cell(cell["source"]) if cell.cell_type == "code" else new_markdown_cell(cell["source"]))
    close()
    return nbformat.v4.new_notebook(cells=out, metadata=notebook.metadata)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    source, target = map(Path, given)
    nbformat.write(convert(nbformat.read(source, as_version=4)), target)
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
