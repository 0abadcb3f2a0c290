"""A link to the glossary says what the term means before it is followed: its first sentences, as the link's title.

Browsers show a title under the pointer, and screen readers can read it out; no script is needed. The glossary's own
links to itself have none: the meaning stands a few lines away.
"""

from __future__ import annotations

import re

from docutils import nodes

PAGE = "book/glossary"
LONG = 240  # characters
FORMULA = "\0"
SOURCES = re.compile(r" \([^()]*\b\d{4}b?\)")


def meaning(section: nodes.section) -> str:
    """The first sentences under a term, at most about `LONG` characters, without sources; cut before a formula."""
    for paragraph in section.findall(nodes.paragraph):
        said = ""
        for node in paragraph.findall(lambda node: isinstance(node, (nodes.Text, nodes.math))):
            if isinstance(node, nodes.math):
                said += node.astext() if re.fullmatch(r"[\w ,+-]+", node.astext()) else FORMULA
            elif not isinstance(node.parent, nodes.math):
                said += node.astext()
        sentences = re.split(r"(?<=[.?!])\s+", SOURCES.sub("", " ".join(said.split())))
        told = sentences.pop(0)
        while sentences and len(told) + len(sentences[0]) < LONG and FORMULA not in told:
            told += f" {sentences.pop(0)}"
        before, formula, _ = told.partition(FORMULA)
        return f"{before.rstrip()} \N{HORIZONTAL ELLIPSIS}" if before and formula else before
    return ""


def meanings(glossary: nodes.document) -> dict[str, str]:
    """What each term means, by its anchors."""
    return {anchor: meaning(section) for section in glossary.findall(nodes.section) for anchor in section["ids"]}


def learn(app, env) -> None:
    """Read the glossary once, when all pages are read."""
    app.glossary = meanings(env.get_doctree(PAGE)) if PAGE in env.all_docs else {}


def preview(app, doctree: nodes.document, page: str) -> None:
    """Give each link of a page to the glossary its title."""
    if page == PAGE:
        return
    for link in doctree.findall(nodes.reference):
        place, _, anchor = link.get("refuri", "").partition("#")
        if place.endswith("glossary.html") and app.glossary.get(anchor):
            link["reftitle"] = app.glossary[anchor]


def setup(app) -> dict:
    app.connect("env-updated", learn)
    app.connect("doctree-resolved", preview)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
