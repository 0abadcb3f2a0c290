"""The page "Status of this build": what each execution says of itself, and the record of how long chapters take.

`{nb-exec-table}` is MyST-NB's own: every page whose cells were executed, now or earlier with the result taken from the
cache. Here it gets more columns (device, scale, Python and torch, as each page prints them first), the pages' titles,
and a line below it on the whole build. `{measured-times}` is the record, book/times.csv.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from myst_nb.ext import execution_tables
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

import chapter_times as times

RECORD = "book/times.csv"
PACKAGES = ("torch", "torchvision", "timm", "vit-pytorch", "numpy", "scikit-learn", "scikit-image", "matplotlib")
DASH = "—"
PRINTED = {"device": "device", "scale": "scale", "python": "Python", "torch": "torch"}
HEADINGS = {"runtime": "seconds", "mtime": "executed on"} | PRINTED
SHOWN = dict.fromkeys(PRINTED, lambda word: word or DASH)
SHOWN["runtime"] = lambda seconds: DASH if seconds is None else f"{seconds:.0f}"
SHOWN["mtime"] = lambda when: datetime.fromtimestamp(when, timezone.utc).date().isoformat() if when else DASH


def note_what_ran(app, doctree: nodes.document) -> None:
    """Put what a page's own first line said beside what MyST-NB keeps of its execution."""
    if kept := NbMetadataCollector.get_doc_data(app.env)[app.env.docname].get("exec_data"):
        output = "\n".join(block.astext() for block in doctree.findall(nodes.literal_block))
        kept |= times.ran(output) or dict.fromkeys(PRINTED, "")


class Complete(SphinxPostTransform):
    """Chapters first, under their numbers and titles; and what is to be said of all."""

    default_priority = 8  # after MyST-NB's, which has the same and is registered before; links are resolved later

    def run(self, **kwargs) -> None:
        for table in [t for t in self.document.findall(nodes.table) if t.next_node(nodes.entry).astext() == "Document"]:
            table.next_node(nodes.entry)[:] = [nodes.paragraph(text="page")]
            body = table.next_node(nodes.tbody)
            body[:] = sorted(body, key=lambda row: not number(row.next_node(pending_xref).astext()))
            for link in list(body.findall(pending_xref)):
                link["refexplicit"] = False  # the text is the page's title
                if chapter := number(link.astext()):
                    link.parent.insert(0, nodes.Text(f"{chapter}. "))
            pages = [kept.get("exec_data") for kept in NbMetadataCollector.get_doc_data(self.env).values()]
            seconds = sum(page["runtime"] or 0 for page in pages if page)
            said = f"Together {seconds:,.0f} seconds. The environment of this build: {versions()}."
            table.parent.insert(table.parent.index(table) + 1, nodes.paragraph(text=said))


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def number(docname: str) -> str:
    """A chapter's number, from its file's name; empty for other pages."""
    found = re.fullmatch(r"(?:notebooks/)?0*(\d+)_\w+", docname)
    return found[1] if found else ""


class MeasuredTimes(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        record, place = Path(self.env.srcdir) / RECORD, nodes.Element()
        self.env.note_dependency(str(record))
        self.state.nested_parse(StringList(measured_times(times.read(record)).splitlines(), str(record)), 0, place)
        return place.children


def measured_times(rows: list[dict]) -> str:
    """A row a chapter, a column for each way it was measured, and what they were measured with, in Markdown."""
    if not rows:
        return "No time was recorded."
    columns: dict[str, dict[str, float]] = {}
    with_what: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (times.SCALES.index(row["scale"]), row["data"] == "none", row["device"])):
        heading = f"{row['scale']} scale, {times.short_device(row['device'])}"
        heading += ", nothing downloaded" if row["data"] == "none" else ""
        columns.setdefault(heading, {})[row["chapter"]] = row["seconds"]
        said = [f"{heading}: on {row['device']}", row["data"] and f"at hand: {row['data']}", f"on {row['day']}"]
        said += [row["python"] and f"with Python {row['python']}, torch {row['torch']}", row["note"]]
        with_what.setdefault("; ".join(filter(None, said)), []).append(number(row["chapter"]))
    lines = ["| " + " | ".join(["chapter", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for chapter in sorted({row["chapter"] for row in rows}):
        cells = [f"{column[chapter]:.0f}" if chapter in column else DASH for column in columns.values()]
        lines.append("| " + " | ".join([f"{number(chapter)}. [](../notebooks/{chapter}.ipynb)", *cells]) + " |")
    for said, chapters in with_what.items():
        which = f" (chapter{'s' * (len(chapters) > 1)} {', '.join(chapters)})"
        lines += ["", f"* {said}{which * (set(chapters) != {number(row['chapter']) for row in rows})}."]
    return "\n".join(lines + ["", "* gpu scale: not measured."] * all(row["scale"] != "gpu" for row in rows))


def setup(app):
    execution_tables._key2header = HEADINGS
    execution_tables._key2transform = SHOWN
    app.add_directive("measured-times", MeasuredTimes)
    app.connect("doctree-read", note_what_ran)
    app.add_post_transform(Complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
