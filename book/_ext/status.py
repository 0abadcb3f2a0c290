"""Two tables for the page "Status of this build", made anew at each build.

`{last-execution}`: every page whose cells were executed, now or earlier with the result taken from the cache, and what
its execution says of itself: seconds, day, device, scale, versions. `{measured-times}`: the record book/times.csv.

The tables stand in for their directives after all pages have been read, so that they know of every execution, as
MyST-NB's own `{nb-exec-table}` does, which knows neither device nor scale nor versions.
"""

from __future__ import annotations

import importlib.metadata
import platform
import posixpath
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import chapter_times as times
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

RECORD = "book/times.csv"
PACKAGES = ("torch", "torchvision", "timm", "vit-pytorch", "numpy", "scikit-learn", "scikit-image", "matplotlib")
RAN, HAS_TABLE = "ran", "has_status_table"  # what is kept of a page
DASH = "—"


class LastExecution(nodes.General, nodes.Element):
    """Stands where the table of executed pages will be."""


class MeasuredTimes(nodes.General, nodes.Element):
    """Stands where the table of measured times will be."""


class Placeholder(SphinxDirective):
    node: type[nodes.Element]

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(Path(self.env.srcdir) / RECORD))
        NbMetadataCollector.set_doc_data(self.env, self.env.docname, HAS_TABLE, True)
        return [self.node()]


class LastExecutionDirective(Placeholder):
    node = LastExecution


class MeasuredTimesDirective(Placeholder):
    node = MeasuredTimes


def note_what_ran(app, doctree: nodes.document) -> None:
    """Keep what a page's own first line said: Python, torch, device and scale."""
    output = "\n".join(block.astext() for block in doctree.findall(nodes.literal_block))
    NbMetadataCollector.set_doc_data(app.env, app.env.docname, RAN, times.ran(output))


def pages_to_write(app, env) -> list[str]:
    """A page with a table is written again where any page was executed."""
    if not NbMetadataCollector.new_exec_data(env):
        return []
    return [name for name, kept in NbMetadataCollector.get_doc_data(env).items() if kept.get(HAS_TABLE)]


class FillTables(SphinxPostTransform):
    """Put the tables in their places."""

    default_priority = 8  # before links are resolved

    def run(self, **kwargs) -> None:
        for place in list(self.document.findall(LastExecution)):
            place.replace_self(last_execution(self.env.docname, self.env.titles, executed(self.env)))
        for place in list(self.document.findall(MeasuredTimes)):
            rows = times.read(Path(self.env.srcdir) / RECORD)
            place.replace_self(measured_times(self.env.docname, self.env.titles, rows))


# --- what is known of the pages ---


def executed(env) -> dict[str, dict]:
    """For each page with executed cells, chapters first: seconds, day, and what it printed of itself."""
    found = {}
    for name, kept in NbMetadataCollector.get_doc_data(env).items():
        if execution := kept.get("exec_data"):
            ran = kept.get(RAN) or dict.fromkeys(("python", "torch", "device", "scale"), "")
            when = execution["mtime"]
            day = datetime.fromtimestamp(when, timezone.utc).date().isoformat() if when else ""
            found[name] = ran | {"seconds": execution["runtime"], "day": day}
    return dict(sorted(found.items(), key=lambda item: (not number(item[0]), item[0])))


def number(docname: str) -> str:
    """A chapter's number, from its file's name; empty for other pages."""
    found = re.fullmatch(r"notebooks/0*(\d+)_\w+", docname)
    return found[1] if found else ""


def here() -> tuple[str, str]:
    """Python and torch of the environment that builds the pages."""
    return platform.python_version(), version("torch")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- tables ---


def last_execution(parent: str, titles: dict, pages: dict[str, dict]) -> list[nodes.Node]:
    rows = [
        [link(parent, name, titles), *(str(field) for field in fields(page))] for name, page in pages.items()
    ]
    headings = ("page", "seconds", "executed on", "device", "scale", "Python", "torch")
    if not rows:
        return [nodes.paragraph(text="No page was executed in this build.")]
    known = [page["seconds"] for page in pages.values() if page["seconds"] is not None]
    said = f"Together {sum(known):,.0f} seconds. "
    others = [number(name) or name for name, page in pages.items() if page["torch"] and not same(page)]
    said += f"The environment of this build: Python {here()[0]}, "
    said += ", ".join(f"{package} {version(package)}" for package in PACKAGES) + "."
    if others:
        said += f" Executed in another environment: {', '.join(others)}."
    return [table("The last execution of each page", headings, rows), nodes.paragraph(text=said)]


def same(page: dict) -> bool:
    return (page["python"], page["torch"].partition("+")[0]) == (here()[0], here()[1].partition("+")[0])


def fields(page: dict) -> Iterable[str]:
    yield DASH if page["seconds"] is None else f"{page['seconds']:.0f}"
    yield from (page[field] or DASH for field in ("day", "device", "scale", "python", "torch"))


def measured_times(parent: str, titles: dict, rows: list[dict]) -> list[nodes.Node]:
    """A row a chapter, a column for each way it was measured, and what each column was measured with."""
    if not rows:
        return [nodes.paragraph(text="No time was recorded.")]
    columns: dict[tuple, dict[str, dict]] = {}
    for row in sorted(rows, key=lambda row: (times.SCALES.index(row["scale"]), row["data"] == "none", row["device"])):
        way = (row["scale"], row["device"], row["data"] == "none")
        columns.setdefault(way, {})[row["chapter"]] = row
    headings = ["chapter", *(heading(*way) for way in columns)]
    body = []
    for chapter in sorted({row["chapter"] for row in rows}):
        cells = [column.get(chapter) for column in columns.values()]
        texts = [f"{cell['seconds']:.0f}" if cell else DASH for cell in cells]
        body.append([link(parent, f"notebooks/{chapter}", titles), *texts])
    notes = nodes.bullet_list()
    for way, column in columns.items():
        notes += nodes.list_item("", nodes.paragraph(text=f"{heading(*way)}: {circumstances(column.values())}."))
    if not any(scale == "gpu" for scale, *_ in columns):
        notes += nodes.list_item("", nodes.paragraph(text="gpu scale: not measured."))
    return [table("Seconds from the start of the kernel to the last cell", headings, body), notes]


def heading(scale: str, device: str, bundled: bool) -> str:
    return f"{scale} scale, {times.short_device(device)}" + (", nothing downloaded" if bundled else "")


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


def link(parent: str, name: str, titles: dict) -> nodes.Node:
    """A link to a page under its number and title; plain text for a page that the book does not hold."""
    if name not in titles:
        return nodes.Text(name.rpartition("/")[2])
    label = ". ".join(filter(None, (number(name), titles[name].astext())))
    target = {"refdoc": parent, "reftarget": posixpath.relpath(name, posixpath.dirname(parent))}
    found = pending_xref(reftype="doc", refdomain="std", refexplicit=True, refwarn=True, **target)
    found += nodes.inline(text=label)
    return found


def table(title: str, headings: Iterable[str], rows: list[list[nodes.Node | str]]) -> nodes.table:
    headings = list(headings)
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", line(headings))
    group += nodes.tbody("", *(line(row) for row in rows))
    made = nodes.table("", nodes.title(text=title), group)
    made["classes"] += ["colwidths-auto"]
    made["ids"] += [nodes.make_id(title)]
    return made


def line(cells: Iterable[nodes.Node | str]) -> nodes.row:
    whole = nodes.row()
    for cell in cells:
        what = nodes.Text(cell) if isinstance(cell, str) else cell
        whole += nodes.entry("", nodes.paragraph("", "", what))
    return whole


def setup(app):
    app.add_node(LastExecution)
    app.add_node(MeasuredTimes)
    app.add_directive("last-execution", LastExecutionDirective)
    app.add_directive("measured-times", MeasuredTimesDirective)
    app.connect("doctree-read", note_what_ran)
    app.connect("env-updated", pages_to_write)
    app.add_post_transform(FillTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
