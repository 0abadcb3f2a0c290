"""The home page: the built index.html is the page itself, and every number on it is what its source says."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from test_browser_vit import FILES, run_js

import home
import moving
from chapter_file import notebook_paths
from vitutils.models.weights import load_pretrained

ROOT = Path(__file__).resolve().parents[1]
PRINTED = """timm: largest difference 5e-06, logits have standard deviation 1.02
torchvision: largest difference 2e-05, logits have standard deviation 1.00
vit-pytorch, cls: largest difference 6e-06, logits have standard deviation 0.98
vit-pytorch, mean: largest difference 4e-06, logits have standard deviation 0.97
"""


# --- the strip ---


def bold(lines: list[str]) -> list[str]:
    return [re.search(r"\*\*(.+?)\*\*", line)[1] for line in lines]


def test_the_numbers_are_those_of_the_files():
    lines = home.numbers(notebook_paths(ROOT))
    tables = [list(csv.DictReader(path.open(encoding="utf-8"))) for path in (ROOT / "results").glob("*.csv")]
    shipped = [row for row in csv.DictReader((ROOT / "results/pocket.csv").open()) if row["part"] == "main"]
    accuracy = {row["seed"]: float(row["accuracy"]) for row in shipped}
    solved = sum(text.read_text("utf-8").count("\n% Trains:") for text in (ROOT / "book/solutions").glob("*.md"))
    assert bold(lines) == [
        str(len(notebook_paths(ROOT))),
        home.PENDING,
        f"{sum(map(len, tables)):,}",
        f"{100 * accuracy['0']:.1f} %",
        str(solved),
    ]
    spread = f"{100 * np.mean([*accuracy.values()]):.1f} ± {100 * np.std([*accuracy.values()], ddof=1):.1f}"
    assert f" in {len(tables)} studies" in lines[2] and f"({len(accuracy)} seeds: {spread})" in lines[3]


def test_what_is_proved_is_the_largest_difference():
    assert home.proved(PRINTED) == "2 × 10⁻⁵"
    assert home.proved(PRINTED.replace("6e-06", "3e-05")) == "3 × 10⁻⁵"
    for lost in ("timm", "torchvision", "vit-pytorch"):
        with pytest.raises(ValueError, match="expected a largest difference for timm, torchvision and vit-pytorch"):
            home.proved(PRINTED.replace(lost, "other"))


def test_chapter_5_prints_what_is_read():
    cells = json.loads((ROOT / f"{home.PROOF}.ipynb").read_text("utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert 'print(f"{name}: largest difference {off:.0e}", end=", ")' in source
    assert {"timm", "torchvision"} <= {
        *re.findall(r'compare\(f?"([\w-]+)', source)
    } and '"vit-pytorch, {pool}"' in source


# --- the first answer ---


@pytest.fixture(scope="module")
def found() -> dict:
    return home.first_answer()


def test_the_first_answer_is_the_networks(found):
    """The picture, its label and the probabilities, computed again; and it's one of the network's mistakes."""
    pocket, (pixels, labels) = load_pretrained("pocket"), moving.pocket_images(per_class=4)
    i = found["picks"][0]
    assert torch.equal(found["image"], pixels[i, 0]) and found["label"] == pocket.classes[labels[i]]
    with torch.inference_mode():
        whole = pocket.model(torch.stack([*map(pocket.transform, pixels)])).softmax(dim=1)
    rounded = torch.tensor([share for _, share in found["answers"]])
    assert (rounded - whole[i]).abs().max() < 0.01
    wrong = (whole.argmax(dim=1) != labels).nonzero()[:, 0].tolist()
    assert i in wrong and found["wrong"] == len(wrong) and sorted(found["picks"][: len(wrong)]) == wrong
    assert found["many"] == len(pixels)
    assert {labels[k].item() for k in found["picks"]} == {*range(len(pocket.classes))}


def test_the_words_and_bars_say_it(found):
    page = BeautifulSoup(home.frame(found), "html.parser")
    name, share = max(found["answers"], key=lambda pair: pair[1])
    words = page.select_one("#pocket-missing .home-answer").text
    assert words == f"First answer: {name}, {100 * share:.1f}\N{NO-BREAK SPACE}%. The label says {found['label']}."
    bars = [(li.select_one(".pocket-name").text, li.select_one(".pocket-share").text) for li in page.select("li")]
    assert bars == [(each, home.percent(p)) for each, p in found["answers"]]
    assert page.select_one("li.pocket-first .pocket-name").text == name
    raw = base64.b64decode(page.img["src"].partition(",")[2])
    with Image.open(io.BytesIO(raw)) as picture:
        small = np.asarray(picture)[:: home.ZOOM, :: home.ZOOM]
    assert np.array_equal(small, found["image"].numpy()) and found["label"] in page.img["alt"]
    assert (
        f"{found['many']} test images" in page.figcaption.text
        and f"gets {found['wrong']} wrong" in page.figcaption.text
    )


TOOLS = """
const place = (id) => document.getElementById("pocket-" + id);
const pause = (ms = 600) => new Promise((go) => setTimeout(go, ms));
const until = async (there) => { for (let i = 0; i < 300 && !there(); i++) await pause(100); };
const nameOf = (one) => one.src.split("/").pop().replace(".js", "");
const files = () => [...document.scripts].map(nameOf).filter(Boolean).sort();
"""
BEGUN = TOOLS + "await until(() => !place('load').hidden);"
LIVE = BEGUN + """
const result = {before: files()};
place("load").focus();
await until(() => typeof pocketImages !== "undefined" && typeof pocketWeights !== "undefined");
await pause();
result.ahead = files();
result.held = document.activeElement === place("load");
place("load").click();
await until(() => !place("stage").hidden);
const read = () => ({
  answer: place("answer").textContent,
  bars: [...place("bars").children].map((row) => row.querySelector(".pocket-share").textContent),
});
await pause();
Object.assign(result, {first: read(), hidden: place("stage").hidden, missing: !!place("missing")});
Object.assign(result, {focus: document.activeElement.id, status: place("status").textContent});
result.picks = [...place("picks").querySelectorAll("input")].map((one) => one.ariaLabel);
place("clear").click();
await pause();
result.empty = read();
place("draw").dispatchEvent(new KeyboardEvent("keydown", {key: " "}));
await pause();
result.dot = read();
const RESULT = JSON.stringify(result);
"""


def here(found: dict) -> str:
    """The figure's HTML, for a page that stands elsewhere."""
    return home.frame(found).replace("_static/pocket/", f"{FILES.as_uri()}/")


def test_the_live_canvas_gives_the_same_answer(found, tmp_path):
    """Nothing is loaded until the button has the focus; pressed, it gives its place to the canvas, which computes the
    answer itself, from the same files as the page of its own."""
    got = run_js("chromium", tmp_path, LIVE, here(found))
    name, share = max(found["answers"], key=lambda pair: pair[1])
    assert got["before"] == ["home"] and got["held"]
    assert got["ahead"] == sorted(["home", *home.SCRIPTS[:-1]])
    assert not got["hidden"] and not got["missing"]
    assert got["focus"] == "pocket-draw" and got["status"].startswith("Ready")
    first = f"First answer: {name}, {100 * share:.1f}\N{NO-BREAK SPACE}%."
    assert got["first"]["answer"] == f"{first} The label says {found['label']}."
    assert got["first"]["bars"] == [home.percent(p) for _, p in found["answers"]]
    assert len(got["picks"]) == len({*got["picks"]}) == len(found["picks"])
    assert got["empty"]["answer"].endswith("The picture is empty.")
    assert got["dot"]["answer"].endswith("Your own picture has no label.")


TOUCH = BEGUN + """
place("missing").dispatchEvent(new PointerEvent("pointermove", {pointerType: "%s"}));
await pause();
const idle = files().length;
if (%s) place("missing").querySelector("img").click();
await until(() => !place("stage").hidden);
const RESULT = JSON.stringify({idle, hidden: place("stage").hidden, focus: document.activeElement.id});
"""


@pytest.mark.parametrize(("pointer", "taps"), [("mouse", False), ("touch", True)])
def test_a_mouse_that_moves_there_or_a_tap_loads_it(found, tmp_path, pointer, taps):
    """A finger that only scrolls the page does not; and the focus stays where it is."""
    got = run_js("chromium", tmp_path, TOUCH % (pointer, json.dumps(taps)), here(found))
    assert (got["idle"] == 1) == taps and not got["hidden"] and got["focus"] == ""


def test_a_file_that_does_not_load_is_told(found, tmp_path):
    """The picture and its answer stay, and the button can be pressed again."""
    body = BEGUN + """
    place("load").click();
    await until(() => place("load").textContent.startsWith("It"));
    const told = place("load").textContent;
    const shown = place("missing").getClientRects().length > 0;
    const RESULT = JSON.stringify({told, shown, bars: place("missing").querySelectorAll("li").length});
    """
    got = run_js("chromium", tmp_path, body, here(found).replace("vit weights", "vit no-weights"))
    assert got == {"told": "It did not load. Try again", "shown": True, "bars": len(found["answers"])}


def test_the_button_says_what_it_loads_and_is_not_there_without_scripts(found, tmp_path):
    button = BeautifulSoup(home.frame(found), "html.parser").select_one("button.home-load")
    size = sum((FILES / f"{name}.js").stat().st_size for name in home.SCRIPTS)
    assert " ".join(button.text.split()) == f"Draw on it (loads {size / 1e6:.1f} MB)" and button.has_attr("hidden")
    body = TOOLS + 'const RESULT = JSON.stringify(place("load").getClientRects().length);'
    assert run_js("chromium", tmp_path, body, re.sub(r"<script.*?</script>", "", here(found))) == 0


# --- the page ---


def small_book(root: Path) -> Path:
    """The home page with stubs of the pages that it links to; built. The folder of pages."""
    for folder in ("_static", "_ext"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "_config.yml",
        "index.md",
        "book/references.bib",
        "book/vit-in-your-browser.md",
        "book/bibliography.md",
    ):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "vitutils", root / "vitutils", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    stubs = ["preface", "how-to-run", "status", "results", "solutions", "pocket-vit"]
    for stub in stubs:
        (root / f"book/{stub}.md").write_text(f"# {stub.capitalize()}\n\nWords.\n")
    links = re.findall(
        r"glossary\.md#([\w-]+)", "".join(map(Path.read_text, [*root.glob("*.md"), *root.glob("book/*.md")]))
    )
    terms = "".join(f"## {word.replace('-', ' ')}\n\nA term.\n\n" for word in dict.fromkeys(links))
    (root / "book/glossary.md").write_text(f"# Glossary\n\n{terms}")
    (root / "notebooks").mkdir()
    for path in notebook_paths(ROOT):
        if path.stem[:2] in ("01", "05", "10"):
            code = f"print({PRINTED!r}, end='')" if path.stem == Path(home.PROOF).name else "print(1)"
            cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {path.stem}"}]
            cells += [
                {
                    "cell_type": "code",
                    "id": "one",
                    "metadata": {},
                    "source": code,
                    "execution_count": None,
                    "outputs": [],
                }
            ]
            book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
            (root / "notebooks" / path.name).write_text(json.dumps(book))
    files = [f"book/{stub}" for stub in [*stubs, "glossary", "bibliography", "vit-in-your-browser"]]
    files = [*(f"notebooks/{path.stem}" for path in sorted((root / "notebooks").iterdir())), *files]
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n" + "".join(f"- file: {f}\n" for f in files)
    )
    (root / "book/_ext/moving.py").write_text(
        (root / "book/_ext/moving.py").read_text().replace("PLACES = {", "PLACES = {} and {")
    )
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(root),
        "--all",
        "-W",
        "--keep-going",
        "-n",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return root / "_build" / "html"


@pytest.mark.slow
def test_the_built_index_is_the_home_page(tmp_path):
    page = BeautifulSoup((small_book(tmp_path) / "index.html").read_text("utf-8"), "html.parser")
    assert not page.select("meta[http-equiv]") and page.h1.find(string=True) == "Vision Transformers in PyTorch"
    assert page.select_one("meta[property='og:url']")["content"].endswith("/index.html")
    goals = [link["href"] for link in page.select("a.home-button")]
    assert goals[:2] == ["notebooks/01_convolution.html", "book/vit-in-your-browser.html"]
    assert goals[2].startswith("https://colab.research.google.com/github/")
    strip = [strong.text for strong in page.select(".home-numbers strong")]
    assert len(strip) == 5 and strip[:2] == ["3", "2 × 10⁻⁵"] and home.PENDING not in page.text
    assert page.select_one("a.right-next")["href"] == "notebooks/01_convolution.html" and not page.select("a.left-prev")
    assert len(page.select("#book-pdf")) == 1
