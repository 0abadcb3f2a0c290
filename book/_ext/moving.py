"""Figures that the reader moves: on the book's pages only, each behind a cell of a notebook.

A notebook holds no HTML, as Colab would not run it; so its own figure stays, and the page gets a second one, in plain
JavaScript, below it. `PLACES` says behind which cell of which page. A figure NAME is book/_static/moving/NAME.js, and
loads when it comes into view, or, where that is more than `LARGE` bytes, when the reader asks for it; moving.js, beside
it, holds what all of them share.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.util import logging

LOG = logging.getLogger(__name__)
STILL = "Where scripts run, you can move this figure here."
LARGE = 200_000
POCKET = ("pocket/vit.js", "pocket/weights.js", "pocket/images.js")


class Figure(NamedTuple):
    """What a page says of a figure, and the scripts that it needs besides its own, from book/_static."""

    title: str
    try_it: str
    scripts: tuple[str, ...] = ()
    runs: Callable[[], list[dict]] | None = None  # what the frame brings from results/


def schedule_runs() -> list[dict]:
    """The ViT's recorded runs on 6,000 images, by peak rate and schedule; accuracy by epoch where it was recorded."""
    from vitutils import results

    arms = {"base": 0, "no warm-up": 1, "constant rate after warm-up": 2}
    found = [(arms[row["variant"]], row) for row in results.read("training")
             if row["part"] == "ablation" and row["variant"] in arms]  # fmt: skip
    arms = {"unchanged": 0, "constant rate": 2}
    found += [(arms[row["arm"]], row) for row in results.read("recipe")
              if row["part"] == "search" and row["arm"] in arms]  # fmt: skip
    names = ("warm-up, then cosine", "cosine alone", "warm-up, then constant")
    return [
        {
            "schedule": names[arm],
            "lr": row["lr"],
            "accuracy": row["accuracy"],
            "byEpoch": [float(word) for word in str(row.get("accuracy_by_epoch", "")).split()],
        }
        for arm, row in found
    ]


FIGURES = {
    "dictionary": Figure(
        "Turn the query",
        "Drag the arrow, or use the sliders. At length 0 the answer is the mean of all five values. Which length "
        "makes the lookup sharp? And what does even a long query answer when it points between two keys? Without the "
        "division the same query acts as if it were √Dh times as long.",
    ),
    "slide": Figure(
        "Slide a shape under fixed patches",
        "Drag the boot, use the arrow keys on it, or the sliders. Both layers have the same kernel: one computes it at "
        "every pixel, the other, like the ViT's first layer, once per patch. How much of each answer moves along? "
        "After which moves is nothing left over?",
    ),
    "shift": Figure(
        "Shift the windows",
        "Pick a token, in either picture, by pointer or with the arrow keys; then slide the shift. The strong colour "
        "marks the tokens that it may see; equal numbers are one region. Which tokens see only three others? What "
        "changes without the mask, and what with a plain block before this one?",
    ),
    "walk": Figure(
        "Walk one image through a ViT",
        "Go step by step, and pick a patch by pointer or with the arrow keys. A second copy of the image, with that "
        "patch inverted, goes through the same network: how many tokens has the change reached? At which step does "
        "that number grow? And what if attention is left out?",
        POCKET,
    ),
    "shuffle": Figure(
        "Shuffle the patches",
        "Drag a patch onto another to swap the two, or pick two, one after the other (with keys: arrows, then "
        "Enter). Then take the positions away and do it again: the bars freeze.",
        POCKET,
    ),
    "rates": Figure(
        "Choose a rate and a schedule",
        "Guess before you look: at which peak rate does a constant schedule do best, and how far behind the cosine is "
        "it there? Then set both. Each question mark is a setting that this chapter's studies recorded; it shows its "
        "result once you have chosen it.",
        runs=schedule_runs,
    ),
}
PLACES = {  # page: {cell: figure}
    "notebooks/01_convolution": {"sides-study": "slide"},
    "notebooks/02_attention": {"dictionary": "dictionary"},
    "notebooks/04_patches": {"blind-look": "shuffle"},
    "notebooks/05_vit_from_scratch": {"plan-look": "walk"},
    "notebooks/06_training": {"schedule-look": "rates"},
    "notebooks/12_swin": {"mask-look": "shift"},
}


def frame(name: str, static: str, folder: Path) -> str:
    """The HTML of one figure. static: the way from the page to the site's _static, which is made from `folder`."""
    figure = FIGURES[name]
    scripts = [*figure.scripts, f"moving/{name}.js"]
    size = sum((folder / script).stat().st_size for script in scripts)
    ask = f' data-megabytes="{size / 1e6:.1f}"' if size > LARGE else ""
    if figure.runs:
        ask += f" data-runs='{escape(json.dumps(figure.runs()))}'"
    data = f'data-figure="{name}" data-scripts="{" ".join(static + script for script in scripts)}"{ask}'
    return f"""<link rel="stylesheet" href="{static}moving/moving.css">
<figure class="moving" id="moving-{name}" {data}>
<figcaption><strong>{escape(figure.title)}.</strong> {escape(figure.try_it)}</figcaption>
<p class="moving-still">{STILL}</p>
</figure>
<script src="{static}moving/moving.js" defer></script>
"""


def is_caption(node: nodes.Node) -> bool:
    return isinstance(node, nodes.paragraph) and node.astext().startswith("Figure ")


def place(app, doctree: nodes.document) -> None:
    """Put each of this page's figures behind its cell, or behind the caption that follows the cell."""
    page = app.env.docname
    if not (wanted := PLACES.get(page)):
        return
    with open(app.env.doc2path(page), encoding="utf-8") as file:
        ids = [cell.get("id") for cell in json.load(file)["cells"]]
    cells = {
        ids[node["cell_index"]]: node
        for node in doctree.findall(nodes.container)
        if node.get("nb_element") == "cell_code"
    }
    for cell, name in wanted.items():
        if cell not in cells:
            LOG.warning(
                "book/_ext/moving.py puts the figure %r behind the code cell %r, which is not there", name, cell,
                location=page,
            )  # fmt: skip
            continue
        parent, at = cells[cell].parent, cells[cell].parent.index(cells[cell]) + 1
        if at < len(parent) and is_caption(parent[at]):
            at += 1
        html = frame(name, "../" * page.count("/") + "_static/", Path(app.srcdir, "book", "_static"))
        parent.insert(at, nodes.raw("", html, format="html"))


def setup(app):
    app.connect("doctree-read", place)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
