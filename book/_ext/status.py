"""The page "Status of this build": what each execution says of itself, and the record of how long chapters take.

`{nb-exec-table}` is MyST-NB's own: every page whose cells were executed, now or earlier with the result taken from the
cache. Here it gets more columns (device, scale, Python and torch, as each page prints them first), the pages' titles,
and a line below it on the whole build. `{measured-times}` is the record, book/times.csv.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import chapter_times as times
from docutils import nodes
from docutils.statemachine import StringList
from myst_nb.ext import execution_tables
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

RECORD = "book/times.csv"
PACKAGES = ("torch", "torchvision", "timm", "vit-pytorch", "numpy", "scikit-learn", "scikit-image", "matplotlib")
DASH = "—"
MEASURED = "measured-times"
PRINTED = ("device", "scale", "python", "torch")
HEADINGS = {"runtime": "seconds", "mtime": "executed on", "device": "device", "scale": "scale", "python": "Python"}
HEADINGS |= {"torch": "torch"}
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
        for table in list(self.document.findall(nodes.table)):
            if MEASURED in table["classes"]:
                caption(table, "Seconds from the start of the kernel to the last cell")
            if table.next_node(nodes.entry).astext() != "Document":
                continue
            caption(table, "The last execution of each page")
            table.next_node(nodes.entry)[:] = [nodes.paragraph(text="page")]
            body = table.next_node(nodes.tbody)
            body[:] = sorted(body, key=lambda row: not number(row.next_node(pending_xref).astext()))
            for link in list(body.findall(pending_xref)):
                link["refexplicit"] = False  # the text is the page's title
                if chapter := number(link.astext()):
                    link.parent.insert(0, nodes.Text(f"{chapter}. "))
            pages = {name: kept.get("exec_data") for name, kept in NbMetadataCollector.get_doc_data(self.env).items()}
            below = nodes.paragraph(text=environment({name: page for name, page in pages.items() if page}))
            table.parent.insert(table.parent.index(table) + 1, below)


def caption(table: nodes.table, words: str) -> None:
    """Only now, or it would be numbered among the book's tables."""
    table.insert(0, nodes.title(text=words))
    table["ids"].append(nodes.make_id(words))


def environment(pages: dict[str, dict]) -> str:
    """How long all took, the versions of this build, and which pages ran with others."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    here = (platform.python_version(), version("torch").partition("+")[0])
    others = [
        number(name) or name
        for name, page in pages.items()
        if page["torch"] and (page["python"], page["torch"].partition("+")[0]) != here
    ]
    said = (
        f"Together {sum(page['runtime'] or 0 for page in pages.values()):,.0f} seconds. The environment of this build: "
    )
    said += ", ".join([f"Python {here[0]}", *(f"{package} {version(package)}" for package in PACKAGES)]) + "."
    return said + (f" Executed in another environment: {', '.join(others)}." if others else "")


def number(docname: str) -> str:
    """A chapter's number, from its file's name; empty for other pages."""
    found = re.fullmatch(r"notebooks/0*(\d+)_\w+", docname)
    return found[1] if found else ""


class MeasuredTimes(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        record, place = Path(self.env.srcdir) / RECORD, nodes.Element()
        self.env.note_dependency(str(record))
        self.state.nested_parse(StringList(measured_times(times.read(record)).splitlines(), str(record)), 0, place)
        for table in place.findall(nodes.table):
            table["classes"].append(MEASURED)
        return place.children


def measured_times(rows: list[dict]) -> str:
    """A row a chapter, a column for each way it was measured, and what each column was measured with, in Markdown."""
    if not rows:
        return "No time was recorded."
    columns: dict[str, dict[str, dict]] = {}
    for row in sorted(rows, key=lambda row: (times.SCALES.index(row["scale"]), row["data"] == "none", row["device"])):
        heading = f"{row['scale']} scale, {times.short_device(row['device'])}"
        heading += ", nothing downloaded" if row["data"] == "none" else ""
        columns.setdefault(heading, {})[row["chapter"]] = row
    lines = ["| " + " | ".join(["chapter", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for chapter in sorted({row["chapter"] for row in rows}):
        cells = [f"{column[chapter]['seconds']:.0f}" if chapter in column else DASH for column in columns.values()]
        title = f"{number(f'notebooks/{chapter}')}. [](../notebooks/{chapter}.ipynb)"
        lines.append("| " + " | ".join([title, *cells]) + " |")
    lines += ["", *(f"* {heading}: {circumstances(column.values())}." for heading, column in columns.items())]
    return "\n".join(lines + ["* gpu scale: not measured."] * all(row["scale"] != "gpu" for row in rows))


def circumstances(rows: Iterable[dict]) -> str:
    """Device, data, days, versions and notes of these rows, each said once."""
    rows = list(rows)
    said = {
        "on": [row["device"] for row in rows],
        "at hand:": [row["data"] for row in rows],
        "measured on": [row["day"] for row in rows],
        "with": [f"Python {row['python']}, torch {row['torch']}" for row in rows if row["python"]],
        "": notes(rows),
    }
    parts = [f"{word} {' and '.join(sorted(set(filter(None, what))))}" for word, what in said.items() if any(what)]
    return "; ".join(part.strip() for part in parts)


def notes(rows: list[dict]) -> list[str]:
    """The note that most rows have; before each other one, the chapters that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            about.setdefault(row["note"], []).append(number(f"notebooks/{row['chapter']}") or row["chapter"])
    first, *others = sorted(about, key=lambda note: -len(about[note])) or [""]
    more = {note: note.removeprefix(f"{first}; ") for note in others}
    told = [f"chapter{'s' * (len(about[note]) > 1)} {', '.join(about[note])}: {more[note]}" for note in others]
    return ["; ".join(filter(None, [first, *told]))]


def setup(app):
    execution_tables._key2header = HEADINGS
    execution_tables._key2transform = SHOWN
    app.add_directive("measured-times", MeasuredTimes)
    app.connect("doctree-read", note_what_ran)
    app.add_post_transform(Complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
