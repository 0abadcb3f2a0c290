"""A build without the real data: it says so on top, its figures don't carry captions of others, and it isn't published.

Where something stands in for data or weights that could not be had, the cell prints `stand-in: X in place of Y`. That
line is all that is read here. Every page then has an announcement. A figure that depends on such a cell is named as
what it is, and the caption that was written about the real data is folded. `PUBLISH=1` makes it an error, unless
`FALLBACKS=ok`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import symtable
from collections.abc import Iterable

from docutils import nodes
from sphinx.util import logging

from moving import is_caption

LOG = logging.getLogger(__name__)
LINE = re.compile(r"^stand-in: (.+ in place of .+)$", re.M)
TITLES = {"digits": "handwritten digits", "fashion_mnist": "Fashion-MNIST", "pocket": "the pocket ViT"}
SMOKE = "smoke scale (few images and steps) in place of cpu scale"


# --- which figures ---


def uses(statement: ast.stmt) -> set[str]:
    """The notebook's names that a statement reads; a loop's own variables are not among them."""
    tables, found = [symtable.symtable(ast.unparse(statement), "cell", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        outside = table.get_type() == "module"
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (outside or s.is_global())}
    loops = [node.target for node in ast.walk(statement) if isinstance(node, ast.For)]
    return found - {node.id for target in loops for node in ast.walk(target) if isinstance(node, ast.Name)}


def makes(statement: ast.stmt) -> set[str]:
    """The notebook's names that a statement gives a value, or changes: `rows.append(x)` changes `rows`."""
    table = symtable.symtable(ast.unparse(statement), "cell", "exec")
    found = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    for node in [] if isinstance(statement, ast.FunctionDef | ast.ClassDef) else ast.walk(statement):
        if isinstance(node, ast.Expr):  # a call alone on its line changes what it belongs to
            node = getattr(node.value, "func", None)
            node = node if isinstance(node, ast.Attribute) else None
        elif not isinstance(getattr(node, "ctx", None), ast.Store):
            continue
        while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
            node = node.func if isinstance(node, ast.Call) else node.value
            found |= {node.id} if isinstance(node, ast.Name) else set()
    return found


def dependent(cells: Iterable[str], printed: dict[int, str]) -> dict[int, str]:
    """What stood in, for each cell whose last line, which draws the figure, uses what the cells in `printed` made.

    Directly or by way of other names. In a cell that printed it, what the line names is where it begins, else all.
    """
    carried: dict[str, str] = {}
    found, modules = {}, set()
    for number, source in enumerate(cells):
        try:
            statements = ast.parse(source).body
        except SyntaxError:  # the setup cell's %pip
            continue
        said, here = printed.get(number, ""), ""
        words = {"stand-in", *re.split("; | in place of | and ", said)}
        begun = [s for s in statements if any(word in ast.unparse(s) for word in words - {""})] or statements
        for statement in statements:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                modules |= makes(statement)
                continue
            made, read = makes(statement) - modules, uses(statement) - modules
            here = joined(said * (statement in begun), *(carried.get(name, "") for name in sorted(read)))
            if here:
                carried |= dict.fromkeys(made, here)
            elif isinstance(statement, ast.Assign | ast.FunctionDef):  # made anew
                carried = {name: words for name, words in carried.items() if name not in made}
        if here:
            found[number] = here
    return found


def joined(*said: str) -> str:
    return "; ".join(dict.fromkeys(word for each in said for word in each.split("; ") if word))


# --- what is said of them ---


def readable(said: str) -> str:
    """With the names of sets as the book's text has them."""
    return re.sub(r"\b(" + "|".join(TITLES) + r")\b", lambda found: TITLES[found[1]], said)


def look(app, doctree: nodes.document) -> None:
    """Note what stood in on this page, and rewrite the captions of what depends on it."""
    page = app.env.docname
    cells = [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code"]
    printed = {}
    for cell in cells:
        streams = [block.astext() for block in cell.findall(nodes.literal_block) if "stream" in block["classes"]]
        if said := LINE.findall("\n".join(streams)):
            printed[cell["cell_index"]] = joined(*said)
    if not printed:
        return
    app.env.metadata[page]["stand_ins"] = joined(*printed.values())
    path = app.env.doc2path(page)
    if not str(path).endswith(".ipynb"):
        return
    with open(path, encoding="utf-8") as file:
        sources = ["".join(cell["source"]) * (cell["cell_type"] == "code") for cell in json.load(file)["cells"]]
    found = dependent(sources, printed)
    for cell in cells:
        if said := found.get(cell["cell_index"]):
            rename(cell, f"Drawn in this build with {readable(said)}.")


def rename(cell: nodes.container, said: str) -> None:
    """Put this in place of the caption of the cell's figure, which is folded, and before the picture's description."""
    images = list(cell.findall(nodes.image))
    for image in images:
        image["alt"] = f"{said} Written about the real data: {image.get('alt', '')}"
    after = cell.next_node(siblings=True, descend=False)
    if not images or after is None or not is_caption(after):
        return
    written, after.children = after.children, []
    number = written.pop(0) if isinstance(written[0], nodes.emphasis) else nodes.Text("")
    after += [number, nodes.Text(f" {said} What the text says of results is about the real data.")]
    fold = nodes.raw("", "<details><summary>The caption with the real data</summary>", format="html")
    body = nodes.paragraph("", "", *written)
    after.parent[after.parent.index(after) + 1 : after.parent.index(after) + 1] = [
        fold, body, nodes.raw("", "</details>", format="html"),
    ]  # fmt: skip


# --- what is said of the build ---


def missing(app) -> str:
    """What stood in, in all of this build; empty if nothing did."""
    scale = SMOKE if os.environ.get("VITBOOK_SCALE") == "smoke" else ""
    return readable(joined(scale, *(kept.get("stand_ins", "") for kept in app.env.metadata.values())))


def refuse(app, env) -> None:
    """With PUBLISH=1 a build with stand-ins fails, in one line that says what to do."""
    if os.environ.get("PUBLISH") and os.environ.get("FALLBACKS") != "ok" and (said := missing(app)):
        LOG.error(
            "PUBLISH=1, but this build lacks real data. Let the machine download it, or put it where README.md says "
            "(Offline, and where data come from), and build at cpu or gpu scale. To publish it as it is, with a notice "
            "on every page: make book PUBLISH=1 FALLBACKS=ok. It has %s.",
            said,
        )


def announce(app, page: str, template: str, context: dict, doctree) -> None:
    """Put it where the theme shows announcements."""
    if said := missing(app):
        context["theme_announcement"] = f"Made with {said}. What the text says of results is about the real data."


def setup(app) -> dict:
    app.connect("doctree-read", look)
    app.connect("env-check-consistency", refuse)
    app.connect("html-page-context", announce)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
