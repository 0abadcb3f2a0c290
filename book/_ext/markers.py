"""Leaves out of the pages what a code cell says to tools: nbval's marker, `noqa`, `fmt: skip`.

A reader who copies the cell gets it without them, too; the notebook keeps them.
"""

from __future__ import annotations

import re

from docutils import nodes

MARKERS = re.compile(r"\A# NBVAL_\w+\n|[ \t]*# (?:noqa|fmt: (?:skip|on|off)|type: ignore)\b[^\n]*")


def without_markers(source: str) -> str:
    """The cell's source as a reader needs it. A line that was a marker alone goes; other lines stay where they are."""
    alone = re.compile(rf"^(?:{MARKERS.pattern.split('|', 1)[1]})\n", flags=re.M)
    return MARKERS.sub("", alone.sub("", source))


def clean(app, doctree: nodes.document) -> None:
    """Of every code cell on a page."""
    for cell in doctree.findall(lambda node: "cell_input" in getattr(node, "attributes", {}).get("classes", ())):
        for block in cell.findall(nodes.literal_block):
            new = without_markers(block.astext())
            block.rawsource, block.children = new, []
            block += nodes.Text(new)


def setup(app) -> dict:
    app.connect("doctree-read", clean)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
