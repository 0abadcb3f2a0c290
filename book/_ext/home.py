"""The home page: a first answer of the network that can run there, and a strip of numbers, all computed at build.

`{first-answer}` shows one test image with what the pocket ViT says of it: a picture and words. The live canvas takes
their place once the reader asks for it (book/_static/pocket/home.js). `{home-numbers}` counts chapters, exercises and
recorded runs, and takes the largest difference that chapter 5 printed when this book was built.
"""

from __future__ import annotations

import base64
import io
import json
import re
from html import escape
from pathlib import Path
from statistics import mean, stdev

from docutils import nodes
from docutils.statemachine import StringList
from PIL import Image
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from moving import pocket_images

LOG = logging.getLogger(__name__)
POCKET = Path(__file__).resolve().parents[1] / "_static" / "pocket"
PROOF = "notebooks/05_vit_from_scratch"
EXERCISE = re.compile(r"\*\*Exercise \d+\.\d+")
DIFFERENCE = re.compile(r"^(timm|torchvision|vit-pytorch).*: largest difference (\S+),", re.M)
PENDING = "PROVED"  # stands in the strip until chapter 5 has been read
ZOOM = 18  # screen pixels a pixel of the image, in the file
SCRIPTS = ("vit", "weights", "images", "page")  # of book/_static/pocket; the last one starts the canvas

FRAME = """<link rel="stylesheet" href="_static/pocket/page.css">
<link rel="stylesheet" href="_static/home.css">
<figure class="home-try" aria-labelledby="home-try-title">
<p id="home-try-title" class="home-title">A small ViT and its answer</p>
<div id="pocket-missing" class="pocket">
  <div class="pocket-row">
    <div class="pocket-left"><img src="{picture}" alt="{alt}" width="{side}" height="{side}">
      <button id="pocket-load" class="home-load" type="button" data-scripts="{scripts}" hidden>Draw on it
        (loads&nbsp;{megabytes}&nbsp;MB)</button></div>
    <div class="pocket-right"><p class="home-answer">{words}</p>
      <ul class="pocket-bars">{bars}</ul></div>
  </div>
</div>
<div id="pocket-stage" class="pocket" data-picks="{picks}" hidden>
  <div class="pocket-row">
    <div class="pocket-left pocket-board">
      <canvas id="pocket-draw" width="28" height="28" tabindex="0" role="application"
        aria-label="Picture to draw on" aria-describedby="pocket-keys"></canvas>
      <span id="pocket-pen"></span>
    </div>
    <div class="pocket-right">
      <p id="pocket-answer" class="home-answer" role="status"></p>
      <ul id="pocket-bars" class="pocket-bars"></ul>
    </div>
  </div>
  <div class="home-picks"><fieldset><legend class="visually-hidden">Pick a test image</legend>
    <div id="pocket-picks"></div></fieldset>
    <button id="pocket-clear" type="button">Clear</button></div>
  <p id="pocket-keys" class="visually-hidden">With keys: arrows move the pen, the space bar draws a dot, Shift and an
    arrow draw a line.</p>
  <p id="pocket-where" class="visually-hidden" aria-live="polite"></p>
</div>
<p id="pocket-status" class="visually-hidden" role="status"></p>
<figcaption><span class="home-live">Draw on it, or pick another.</span> It knows ten kinds of clothes and nothing else,
so whatever you draw, it names a garment. Of the {many} test images on its
<a href="book/vit-in-your-browser.html">own page</a> it gets {wrong} wrong, among them the one it begins with.
</figcaption>
</figure>
<script src="_static/pocket/home.js" defer></script>
"""


def percent(share: float) -> str:
    """As the page's own script writes it."""
    return ("< 0.1" if share < 0.0005 else f"{100 * share:.1f}") + " %"


def first_answer() -> dict:
    """What the network of the page says of its images: `image` (28, 28), `answers`, `label`, `picks`, `many`, `wrong`.

    The image is the one of its mistakes of which it is least sure. `answers` are (class, probability), with the weights
    rounded to 16 bits, as the page has them. To pick from are all mistakes, then one image of each other class.
    """
    import torch

    from vitutils.models.weights import load_pretrained

    found, (pixels, labels) = load_pretrained("pocket"), pocket_images(per_class=4)
    model = found.model.eval()
    model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    with torch.inference_mode():
        shares = model(torch.stack([*map(found.transform, pixels)])).softmax(dim=1)
    sure, answers = shares.max(dim=1)
    wrong = sorted((answers != labels).nonzero()[:, 0].tolist(), key=lambda i: sure[i].item())
    others = [(labels == k).nonzero()[0, 0].item() for k in labels.unique() if k not in labels[wrong]]
    i = wrong[0]
    return {
        "image": pixels[i, 0],
        "answers": list(zip(found.classes, shares[i].tolist(), strict=True)),
        "label": found.classes[labels[i]],
        "picks": wrong + others,
        "many": len(labels),
        "wrong": len(wrong),
    }


def frame(found: dict) -> str:
    """The figure's HTML."""
    name, share = max(found["answers"], key=lambda pair: pair[1])
    whole = percent(share).replace(" ", "\N{NO-BREAK SPACE}")  # in one line wherever the text breaks
    said = f"First answer: {name}, {whole}. The label says {found['label']}."
    bars = "".join(
        f'<li{" class=pocket-first" * (each == name)}><span class="pocket-name">{escape(each)}</span>'
        f'<span class="pocket-bar" aria-hidden="true"><span style="width: {100 * p:.2f}%"></span></span>'
        f'<span class="pocket-share">{escape(percent(p))}</span></li>'
        for each, p in found["answers"]
    )
    picture = Image.fromarray(found["image"].numpy())
    with io.BytesIO() as file:
        picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
    size = sum((POCKET / f"{name}.js").stat().st_size for name in SCRIPTS)
    alt = f"A small grey test image of clothing, 28 by 28 pixels, labelled {found['label']}."
    return FRAME.format(
        picture=f"data:image/png;base64,{data}", alt=alt, side=ZOOM * picture.width // 2, words=said, bars=bars,
        picks=" ".join(map(str, found["picks"])), many=found["many"], wrong=found["wrong"],
        scripts=" ".join(SCRIPTS), megabytes=f"{size / 1e6:.1f}",
    )  # fmt: skip


class FirstAnswer(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", frame(first_answer()), format="html")]


# --- the strip of numbers ---


def numbers(chapters: list[Path]) -> list[str]:
    """A line of Markdown for each number, the number in bold; chapter 5's is still open."""
    from vitutils import results

    cells = [cell for path in chapters for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    exercises = sum(len(EXERCISE.findall("".join(cell["source"]))) for cell in cells if cell["cell_type"] == "markdown")
    studies = sorted(path.stem for path in results.FOLDERS[0].glob("*.csv"))
    runs = sum(len(results.read(study)) for study in studies)
    pocket = {row["seed"]: 100 * row["accuracy"] for row in results.read("pocket") if row["part"] == "main"}
    spread = f"{mean(pocket.values()):.1f} ± {stdev(pocket.values()):.1f}"
    return [
        f"**{len(chapters)}** chapters, [executed](book/status.md) to make these pages",
        f"**{PENDING}** at most between our logits and those of [three libraries](notebooks/05_vit_from_scratch.ipynb)",
        f"**{runs:,}** recorded runs in {len(studies)} studies behind the [results](book/results.md)",
        f"**{pocket[0]:.1f} %** of 10,000 test images right: the [network above](book/pocket-vit.md) "
        f"({len(pocket)} seeds: {spread})",
        f"**{exercises}** exercises that check themselves, with [solutions](book/solutions.md)",
    ]


class Numbers(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        docs = sorted(doc for doc in self.env.found_docs if doc.startswith("notebooks/"))
        lines = [f"- {line}" for line in numbers([Path(self.env.doc2path(doc)) for doc in docs])]
        place = nodes.container(classes=["home-numbers"])
        self.state.nested_parse(StringList(lines, "home.py"), 0, place)
        return [place]


def proved(text: str) -> str:
    """The largest of the differences that chapter 5 printed, as '5 × 10⁻⁶'. Raises ValueError unless all three did."""
    found = DIFFERENCE.findall(text)
    if len({name for name, _ in found}) < 3:
        raise ValueError(f"expected a largest difference for timm, torchvision and vit-pytorch, found {found}")
    most, _, power = f"{max(float(value) for _, value in found):.0e}".partition("e")
    return f"{most} × 10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def fill(app, doctree: nodes.document, page: str) -> None:
    """Put chapter 5's number in, now that all pages are read."""
    for strong in [node for node in doctree.findall(nodes.strong) if node.astext() == PENDING]:
        blocks = app.env.get_doctree(PROOF).findall(nodes.literal_block) if PROOF in app.env.found_docs else ()
        try:
            strong.children = [nodes.Text(proved("\n".join(block.astext() for block in blocks)))]
        except ValueError as error:
            LOG.warning("the home page shows what chapter 5 proved: %s", error, location=page)


def setup(app):
    app.add_directive("first-answer", FirstAnswer)
    app.add_directive("home-numbers", Numbers)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
