"""Figures that the reader moves: on the book's pages only, each behind a cell of a notebook.

A notebook holds no HTML, as Colab would not run it; so its own figure stays, and the page gets a second one, in plain
JavaScript, below it. `PLACES` says behind which cell of which page. A figure NAME is book/_static/moving/NAME.js, and
loads when it comes into view, or, where that is more than `LARGE` bytes, when the reader asks for it; moving.js, beside
it, holds what all of them share.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from docutils import nodes
from sphinx.util import logging

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
STILL = "This figure loads when you reach it. It needs JavaScript."
LARGE = 200_000
POCKET = ("pocket/vit.js", "pocket/weights.js", "pocket/images.js")


class Figure(NamedTuple):
    """What a page says of a figure, and the scripts that it needs besides its own, from book/_static."""

    title: str
    try_it: str
    scripts: tuple[str, ...] = ()
    runs: Callable[[], list | dict] | None = None  # what the frame brings, from results/ or computed at build


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


SHOWN = 5  # images that the reader can see; the means are over all


def pocket_images(per_class: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the page *A ViT in your browser*, so many images a class: (B, 1, 28, 28), uint8, and their labels."""
    import torch

    text = (Path(__file__).resolve().parents[1] / "_static" / "pocket" / "images.js").read_text(encoding="utf-8")
    labels = torch.tensor(json.loads(re.search(r"labels: (\[.*?\])", text)[1]))
    pixels = base64.b64decode(re.search(r"pixels: `(.*?)`", text, re.DOTALL)[1])
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    rows = torch.cat([(labels == k).nonzero()[:per_class, 0] for k in labels.unique()])
    return images[rows], labels[rows]


def opinions(model: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Chapter 10's maps of the answers `classes`, a number per patch: {name: (B, rows, columns)}."""
    import torch

    from vitutils.analysis import interpret

    (rows, columns), B, side = model.config.grid, len(images), model.config.patch_size
    attn = interpret.attention_maps(model, images)
    slopes = interpret.input_gradients(model, images, classes)
    place = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns)))
    found = {
        "attention": attn[:, -1].mean(dim=1)[:, 0, 1:],
        "rollout": interpret.rollout(attn)[:, 0, 1:],
        "relevance": interpret.relevance(model, images, classes)[:, 0, 1:],
        "gradient": interpret.per_square(slopes.square().sum(dim=1), side).sqrt(),
        "occlusion": interpret.occlusion(model, images, classes, side),
        "centre": -(place - (rows - 1) / 2).norm(dim=1).expand(B, -1),
        "chance": torch.rand(B, rows, columns, generator=torch.Generator().manual_seed(0)),
    }
    return {name: values.reshape(B, rows, columns) for name, values in found.items()}


@cache
def deletion_curves() -> dict:
    """What each of chapter 10's maps of the pocket ViT covers first, and how the answer's probability falls.

    `orders` and `curves` have a row per map: the squares, highest first, and the probability after 0 to 49 of them.
    """
    import torch

    from vitutils.analysis.attribution import deletion
    from vitutils.models.weights import load_pretrained
    from vitutils.uncertainty import paired_interval

    found, (pixels, labels) = load_pretrained("pocket"), pocket_images()
    model, images, many = (
        found.model.eval().requires_grad_(False),
        torch.stack([*map(found.transform, pixels)]),
        len(pixels),
    )
    classes = model(images).argmax(dim=1)
    maps = opinions(model, images, classes)
    orders = {name: values.flatten(1).argsort(dim=1, descending=True, stable=True) for name, values in maps.items()}
    steps = orders["chance"].shape[1]
    curves = {name: deletion(model, images, classes, values, steps=steps) for name, values in maps.items()}
    areas = {name: curve.mean(dim=1) for name, curve in curves.items()}
    minus = {name: paired_interval(area, areas["chance"]) for name, area in areas.items()}

    def numbers(values: torch.Tensor) -> list[float]:
        return [round(value, 4) for value in values.tolist()]

    return {
        "maps": list(maps),
        "many": many,
        "fill": found.mean[0],
        "mean": [numbers(curve.mean(dim=0)) for curve in curves.values()],
        "areas": [
            {"area": areas[name].mean().item(), "minus": [gap.mean, gap.low, gap.high]} for name, gap in minus.items()
        ],
        "images": [
            {
                "pixels": base64.b64encode(pixels[i].numpy().tobytes()).decode(),
                "answer": found.classes[classes[i]],
                "label": found.classes[labels[i]],
                "orders": [order[i].tolist() for order in orders.values()],
                "curves": [numbers(curve[i]) for curve in curves.values()],
            }
            for i in range(0, many, many // SHOWN)
        ],
    }


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
    "deletion": Figure(
        "Bet on a map",
        "Choose a map, and bet: after how many squares will the probability be down to half? Then cover squares in "
        "the map's order, its highest first. Does the answer fall? Slide to the end for the area, and for what the "
        "map is worth over many images. With one of the five images, most maps never get there: look at the answer "
        "when all of it is covered.",
        runs=deletion_curves,
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
    "notebooks/10_looking_inside": {"deletion-look": "deletion"},
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
