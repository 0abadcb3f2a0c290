"""The page *A ViT in your browser*: its JavaScript against PyTorch, its files, and what it does when it is used.

Node and Chromium both compute where they are there; where one is not, its tests are skipped and say so. The page is
opened from the disk, as a reader may open it, so nothing here needs a server.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import export_pocket
from vitutils import data
from vitutils.models import ViT
from vitutils.models.weights import POCKET_CONFIG, load_pretrained

ROOT = Path(__file__).resolve().parents[1]

FILES = ROOT / "book" / "_static" / "pocket"
PAGE = ROOT / "book" / "vit-in-your-browser.md"
COUNT, MAPS = 100, 8  # images computed; of these with maps
EXACT = 1e-5  # JavaScript against PyTorch with the same 16-bit weights, in double precision
ROUNDED = 1e-2  # the same against the weights before they were rounded

NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ENGINES = {"node": NODE, "chromium": CHROMIUM}


def need(engine: str) -> str:
    """The engine's path, or skip."""
    if not ENGINES[engine]:
        pytest.skip(f"no {engine} on this machine")
    return ENGINES[engine]


@cache
def dataset() -> data.Dataset:
    return data.load_first("fashion_mnist", "digits", download=False)


@cache
def images() -> torch.Tensor:
    """(COUNT, 28, 28) uint8: test images, and three that no data set holds: black, white, noise."""
    some = dataset().test_images[: COUNT - 3].float()
    some = torch.nn.functional.interpolate(some, size=(28, 28)).round().byte()[:, 0]
    noise = torch.randint(0, 256, (1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.cat([some, torch.zeros_like(noise), torch.full_like(noise, 255), noise])


@cache
def by_torch(rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits (COUNT, K) and maps (COUNT, depth, h, T, T), in double precision."""
    pocket = load_pretrained("pocket")
    model = ViT(POCKET_CONFIG).eval()
    state = pocket.model.state_dict()
    model.load_state_dict(export_pocket.to_half(state) if rounded else state)
    pixels = (images()[:, None].double() / 255 - pocket.mean[0]) / pocket.std[0]
    with torch.no_grad():
        logits, attn = model.double()(pixels, need_weights=True)
    return logits.numpy(), attn.numpy()


COMPUTE = """
const S = 28, model = pocketViT.load(pocketWeights), bytes = pocketViT.bytes(IMAGES), results = [], ms = [];
for (let i = 0; i < bytes.length; i += S * S) {
  const pixels = Float32Array.from(bytes.subarray(i, i + S * S), (v) => v / 255), begun = performance.now();
  const {logits, attn} = pocketViT.forward(model, pixels);
  ms.push(performance.now() - begun);
  results.push({logits: [...logits], attn});
}
let refused = "";
try { pocketViT.forward(model, new Float32Array(783)); } catch (error) { refused = error.message; }
const maps = results.slice(0, MAPS).flatMap((r) => r.attn.flatMap((layer) => layer.map((map) => [...map])));
const RESULT = JSON.stringify({logits: results.map((r) => r.logits), maps, ms, refused});
"""


def run_js(engine: str, folder: Path, body: str, html: str = "") -> dict:
    """Run a script that sets RESULT, in node or on a page of its own with `html` before it; RESULT as JSON."""
    program = need(engine)
    place = folder / f"run-{engine}"
    if engine == "node":
        place = place.with_suffix(".js")
        place.write_text(body + "\nprocess.stdout.write(RESULT);", encoding="utf-8")
        command = [program, str(place)]
    else:
        place = place.with_suffix(".html")
        end = 'document.body.innerHTML = "<pre>@@" + btoa(unescape(encodeURIComponent(RESULT))) + "@@</pre>";'
        script = f"<script>(async () => {{{body}\n{end}}})();</script>"
        place.write_text(f"<!doctype html><meta charset=utf-8><body>{html}{script}", encoding="utf-8")
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1000,1400", "--virtual-time-budget=600000"]
        command += ["--dump-dom", place.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    said = done.stdout
    if engine == "chromium":
        found = re.search(r"@@([\w+/=]+)@@", said)
        assert found, f"the page gave no result: {said[-500:]} {done.stderr[-500:]}"
        said = base64.b64decode(found[1]).decode()
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(said)


def compute(engine: str, files: Path, folder: Path, count: int = COUNT) -> dict:
    """What the JavaScript in `files` computes for the first `count` images."""
    packed = base64.b64encode(images()[:count].numpy().tobytes()).decode()
    body = f'const IMAGES = "{packed}", MAPS = {MAPS};\n{COMPUTE}'
    html = ""
    if engine == "node":
        names = {"pocketViT": "vit.js", "pocketWeights": "weights.js"}
        body = "".join(f"const {k} = require({json.dumps(str(files / v))});\n" for k, v in names.items()) + body
    else:
        html = "".join(f'<script src="{(files / name).as_uri()}"></script>' for name in ("vit.js", "weights.js"))
    got = run_js(engine, folder, body, html)
    T = POCKET_CONFIG.grid[0] * POCKET_CONFIG.grid[1] + 1
    shape = (min(count, MAPS), POCKET_CONFIG.depth, POCKET_CONFIG.num_heads, T, T)
    return got | {"logits": np.array(got["logits"]), "maps": np.array(got["maps"]).reshape(shape)}


def away(got: dict, rounded: bool) -> dict[str, float]:
    """The largest differences from PyTorch."""
    logits, maps = by_torch(rounded)
    count = len(got["logits"])
    return {
        "logits": float(np.abs(got["logits"] - logits[:count]).max()),
        "maps": float(np.abs(got["maps"] - maps[: len(got["maps"])]).max()),
    }


# --- what it computes ---


@pytest.fixture(scope="module", params=ENGINES)
def computed(request, tmp_path_factory) -> dict:
    count = 12 if request.param == "chromium" and NODE else COUNT  # one of the two computes all
    return compute(request.param, FILES, tmp_path_factory.mktemp(request.param), count)


@pytest.mark.slow
def test_logits_and_maps_are_pytorchs(computed, record_property):
    """With the same weights, nothing but rounding is left."""
    assert computed["logits"].shape in ((COUNT, 10), (12, 10))
    error = away(computed, rounded=True)
    record_property("largest differences", error)
    assert error["logits"] < EXACT and error["maps"] < EXACT, error


@pytest.mark.slow
def test_sixteen_bits_change_little(computed, record_property):
    """Against the weights as they are in vitutils: logits move by less than a hundredth, no first answer changes."""
    error = away(computed, rounded=False)
    record_property("largest differences", error)
    assert error["logits"] < ROUNDED and error["maps"] < ROUNDED, error
    assert error["logits"] > 10 * EXACT  # else the test above would not tell the two apart
    first = computed["logits"].argmax(1)
    assert (first == by_torch(False)[0].argmax(1)[: len(first)]).all()


@pytest.mark.slow
def test_rows_of_maps_sum_to_1(computed):
    assert np.abs(computed["maps"].sum(-1) - 1).max() < 1e-6


@pytest.mark.slow
def test_time_of_an_image(computed, record_property):
    """Recorded; asserted is only what no busy machine would break, a mistake would."""
    record_property("milliseconds an image, median", float(np.median(computed["ms"])))
    assert min(computed["ms"]) < 500, computed["ms"]


@pytest.mark.slow
def test_a_picture_of_another_size_is_refused(computed):
    assert computed["refused"] == "expected 784 pixels, got 783"


FAULTS = [  # what stands in vit.js, what stands there instead
    ("tokens = add(tokens, update);", "tokens = update;"),
    ("Math.sqrt(Dh)", "Math.sqrt(D)"),
    ("1 + (x < 0 ? -erf : erf)", "1 + erf"),
    ("0.254829592", "0.2548"),
    ("variance + eps", "variance"),
    ("(y % P) * P + (x % P)", "(x % P) * P + (y % P)"),
    ("(S / P) + Math.floor(x / P)", "(S / P) + Math.floor(y / P)"),
    ("- config.mean", ""),
    ("e - 25", "e - 24"),
    ("2 ** -24 * m", "0"),
    ("raw[at + 1] << 8", "raw[at + 1] << 7"),
    ("bits >> 15 ? -size : size", "size"),
    ("), w.pos_embed", "), w.pos_embed.map(() => 0)"),
    ("...w.cls_token, ...tokens", "...tokens, ...w.cls_token"),
    ("q = head * Dh, k = D + q, v = D + k", "q = head * Dh, k = D + q, v = k"),
    ("attn.set(softmax(scores", "attn.set((scores"),
    ("first, \"norm\"", "first, \"blocks.5.norm2\""),
    ("tokens.slice(0, config.embed_dim)", "tokens.slice(config.embed_dim, 2 * config.embed_dim)"),
]


@pytest.mark.slow
@pytest.mark.parametrize("old, new", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_seen(old, new, tmp_path):
    need("node")
    text = (FILES / "vit.js").read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old} no longer stands in vit.js once"
    (tmp_path / "vit.js").write_text(text.replace(old, new), encoding="utf-8")
    shutil.copy(FILES / "weights.js", tmp_path)
    error = away(compute("node", tmp_path, tmp_path, count=4), rounded=True)
    assert not (error["logits"] < EXACT and error["maps"] < EXACT), error


# --- the files ---


def test_what_is_committed_is_what_the_script_writes():
    told = "vitutils/pocket.safetensors or the script changed: run tools/export_pocket.py"
    assert (FILES / "weights.js").read_text(encoding="utf-8") == export_pocket.weights_script(), told
    if dataset().name == "fashion_mnist":
        assert (FILES / "images.js").read_text(encoding="utf-8") == export_pocket.images_script(dataset()), told


def test_images_carry_their_licence_and_are_not_chosen():
    text = (FILES / "images.js").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 Zalando SE" in text and "The above copyright notice" in text
    labels = json.loads(re.search(r"labels: (\[.*\]),", text)[1])
    assert labels == [k for k in range(10) for _ in range(export_pocket.PER_CLASS)]


def test_the_script_replaces_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_pocket, "FOLDER", tmp_path / "new")
    monkeypatch.setattr(export_pocket.data, "load", lambda *_, **__: dataset())
    assert export_pocket.main() == 0 == export_pocket.main()
    there = {path.name for path in (tmp_path / "new").iterdir()}
    assert there == {"weights.js", "images.js"} and "weights.js" in capsys.readouterr().out


def test_the_script_without_fashion_mnist(tmp_path, monkeypatch, capsys):
    def none(*_, **__):
        raise data.DataError("no such set here")

    monkeypatch.setattr(export_pocket, "FOLDER", tmp_path)
    monkeypatch.setattr(export_pocket.data, "load", none)
    (tmp_path / "images.js").write_text("as before")
    assert export_pocket.main() == 0
    assert (tmp_path / "images.js").read_text() == "as before"
    assert "no such set here" in capsys.readouterr().out


def test_a_number_too_large_for_sixteen_bits_is_refused():
    with pytest.raises(ValueError, match="big: expected numbers that 16 bits can hold, got 70000"):
        export_pocket.to_half({"small": torch.ones(2), "big": torch.tensor([7e4])})


def test_small_and_asks_nobody():
    sizes = {path.name: path.stat().st_size for path in FILES.iterdir()}
    assert set(sizes) == {"vit.js", "weights.js", "images.js", "page.js", "page.css", "home.js"}
    assert sum(sizes.values()) < 1_000_000 and sizes["vit.js"] < 7_000, sizes
    for name in ("vit.js", "page.js", "page.css", "home.js"):
        text = (FILES / name).read_text(encoding="utf-8")
        asks = r"\beval\b|\bFunction\(|\bfetch\b|XMLHttpRequest|\bimport\b|WebSocket|sendBeacon|url\(|https?:"
        assert not re.search(asks, text), f"{name} may ask another host, or evaluate text"
    for line in (FILES / "vit.js").read_text(encoding="utf-8").splitlines():
        assert len(line) <= 79, line  # it is printed on the page


# --- the page ---


def frame() -> str:
    """The page's own HTML, its scripts and style taken from where they are."""
    html = re.search(r"^```\{raw\} html\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
    return html.replace("../_static/pocket/", FILES.as_uri() + "/")


def test_the_page_holds_what_its_script_fills():
    script = (FILES / "page.js").read_text(encoding="utf-8")
    wanted = set(re.findall(r'place\("(\w+)"\)', script))
    there = set(re.findall(r'id="pocket-(\w+)"', frame()))
    assert wanted and wanted <= there, wanted - there


def test_only_this_page_loads_it():
    assert "pocket/" not in (ROOT / "_config.yml").read_text(encoding="utf-8")
    others = [p for p in ROOT.glob("book/*.md") if p != PAGE and "_static/pocket/" in p.read_text(encoding="utf-8")]
    assert not others


def test_the_page_says_what_is_tested_here():
    text = PAGE.read_text(encoding="utf-8")
    assert all(number in text for number in (f"{COUNT} images", f"{EXACT:.5f}", f"{ROUNDED:.2f}"))


USE = """
const el = (id) => document.getElementById("pocket-" + id), wait = (ms) => new Promise((r) => setTimeout(r, ms));
const all = (selector) => [...document.querySelectorAll(selector)], errors = [];
addEventListener("error", (event) => errors.push(event.message));
await new Promise((r) => (document.readyState === "complete" ? r() : addEventListener("load", r)));
const draw = el("draw"), seen = {};
const cells = all("#pocket-grid [role=gridcell]"), picks = all("input[name=pocket-pick]");
const key = (node, key, more) => node.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
const pointer = (node, type, x, y, more) => node.dispatchEvent(
  new PointerEvent(type, {clientX: x, clientY: y, bubbles: true, pointerType: "mouse", button: 0, ...more}));
const lit = () => [...draw.getContext("2d").getImageData(0, 0, 28, 28).data].filter((v, i) => i % 4 === 0 && v).length;
const maps = () => all("#pocket-maps canvas").map((c) => c.getAttribute("aria-label")).join("; ");
const note = async (name) => {
  for (let i = 0; i < 500 && el("answer").getAttribute("aria-busy") === "true"; i++) await wait(20);
  seen[name] = {
    answer: el("answer").textContent, from: el("from").textContent, where: el("where").textContent, lit: lit(),
    shares: all("#pocket-bars .pocket-share").map((s) => s.textContent), maps: maps(),
    checked: picks.findIndex((p) => p.checked),
    selected: cells.findIndex((c) => c.getAttribute("aria-selected") === "true"),
    stops: cells.filter((c) => c.tabIndex === 0).length, pressed: el("class").getAttribute("aria-pressed"),
    picture: draw.toDataURL() === el("seen").toDataURL(),
  };
};
await note("start");
picks[39].click(); await note("picked");
pointer(cells[24], "pointerenter"); await note("scrolled");
pointer(cells[24], "pointermove"); await note("hovered");
pointer(el("grid"), "pointerleave"); await note("left");
pointer(cells[30], "pointermove", 0, 0, {pointerType: "touch"}); await note("touched");
cells[24].click(); await note("tapped");
cells[24].focus(); key(cells[24], "ArrowRight"); await note("right");
key(document.activeElement, "ArrowDown"); await note("down");
key(document.activeElement, "Home"); await note("home");
key(document.activeElement, "ArrowLeft"); await note("edge");
key(document.activeElement, "End"); await note("end");
el("class").click(); await note("class");
const box = draw.getBoundingClientRect();
pointer(draw, "pointermove", box.left + 100, box.top + 100); await note("no button");
pointer(draw, "pointerdown", box.left + 20, box.top + 20);
pointer(draw, "pointermove", box.left + 230, box.top + 20);
pointer(draw, "pointerup", box.left + 230, box.top + 20);
pointer(draw, "pointermove", box.left + 230, box.top + 230); await note("drawn");
picks[39].click(); await note("again");
el("clear").click(); await note("cleared");
key(draw, "ArrowUp"); await note("moved");
key(draw, " "); await note("dot");
key(draw, "ArrowUp", {shiftKey: true}); key(draw, "ArrowUp", {shiftKey: true}); await note("line");
all("input[name=pocket-pen]")[2].click(); el("width").value = 7;
for (let i = 0; i < 6; i++) key(draw, "ArrowDown", {shiftKey: true});
await note("erased");
const named = (n) => n.getAttribute("aria-label") || (n.closest("label") || n).textContent.trim();
const controls = all("#pocket-stage canvas, #pocket-stage input, #pocket-stage button, [role=gridcell]");
const nameless = controls.filter((n) => n.getAttribute("aria-hidden") !== "true" && !named(n));
const RESULT = JSON.stringify({
  seen, errors, hidden: el("stage").hidden, missing: Boolean(el("missing")), maps: all("#pocket-maps canvas").length,
  picks: picks.length, cells: cells.length, nameless: nameless.map((n) => n.outerHTML.slice(0, 80)),
  loads: all("[src], link[href]").map((n) => n.src || n.href),
});
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> dict:
    return run_js("chromium", tmp_path_factory.mktemp("page"), USE, frame())


@pytest.mark.slow
def test_the_page_is_filled(used):
    assert used["errors"] == [] and not used["hidden"] and not used["missing"] and used["nameless"] == []
    assert (used["maps"], used["picks"], used["cells"]) == (24, 40, 49)
    assert {url.rpartition("/")[0] for url in used["loads"]} == {FILES.as_uri()}, used["loads"]
    start = used["seen"]["start"]
    assert start["checked"] == 0 and start["from"] == "the class token" and start["pressed"] == "true"
    assert start["maps"].count("from the class token") == 24
    assert all(step["picture"] for step in used["seen"].values())


@pytest.mark.slow
def test_picking_is_answered_as_torch_answers(used):
    """The answer and the bars on the page are the net's for that image."""
    text = (FILES / "images.js").read_text(encoding="utf-8")
    packed = re.search(r"pixels: `\n(.*?)`", text, re.S)[1]
    pixels = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(40, 1, 28, 28) / 255
    pocket = load_pretrained("pocket")
    with torch.no_grad():
        logits = pocket.model(torch.tensor((pixels - pocket.mean[0]) / pocket.std[0], dtype=torch.float32))
    labels = json.loads(re.search(r"labels: (\[.*\]),", text)[1])
    for name, i in (("start", 0), ("picked", 39), ("again", 39)):
        seen, shares = used["seen"][name], logits[i].softmax(0).tolist()
        first = int(logits[i].argmax())
        said = f"First answer: {pocket.classes[first]}, {100 * shares[first]:.1f}\xa0%."
        assert seen["answer"].startswith(said), seen
        agrees = "The label says the same." if first == labels[i] else f"The label says {pocket.classes[labels[i]]}."
        assert seen["answer"].endswith(agrees)
        shown = [0.0 if s.startswith("<") else float(s.removesuffix(" %")) for s in seen["shares"]]
        assert np.abs(np.array(shown) / 100 - shares).max() < 0.002
        assert seen["checked"] == i


@pytest.mark.slow
def test_asking_by_pointer_touch_and_keys(used):
    seen = used["seen"]
    assert seen["picked"]["selected"] == -1 and seen["picked"]["stops"] == 1
    assert seen["hovered"]["from"] == "row 4, column 4" and seen["hovered"]["selected"] == -1
    assert seen["hovered"]["maps"].count("from row 4, column 4") == 24
    assert seen["hovered"]["pressed"] == "false" and seen["hovered"]["answer"] == seen["picked"]["answer"]
    for name in ("scrolled", "left", "touched"):
        assert seen[name]["maps"] == seen["picked"]["maps"] != seen["hovered"]["maps"]
    assert seen["tapped"]["from"] == "row 4, column 4" and seen["tapped"]["selected"] == 24
    walk = {"right": (4, 5), "down": (5, 5), "home": (5, 1), "edge": (5, 1), "end": (5, 7)}
    for name, (row, column) in walk.items():
        assert seen[name]["from"] == f"row {row}, column {column}", name
        assert seen[name]["selected"] == 7 * (row - 1) + column - 1 and seen[name]["stops"] == 1
    assert seen["class"]["from"] == "the class token" and seen["class"]["maps"] == seen["picked"]["maps"]


@pytest.mark.slow
def test_the_maps_are_the_nets(used):
    """The place and the weight named for each map are the largest of torch's row."""
    text = (FILES / "images.js").read_text(encoding="utf-8")
    packed = re.search(r"pixels: `\n(.*?)`", text, re.S)[1]
    pixels = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(40, 1, 28, 28)[39:] / 255
    pocket = load_pretrained("pocket")
    with torch.no_grad():
        x = torch.tensor((pixels - pocket.mean[0]) / pocket.std[0], dtype=torch.float32)
        attn = pocket.model(x, need_weights=True)[1][0]  # (depth, h, T, T)
    for name, token in (("picked", 0), ("hovered", 25), ("end", 35)):
        for i, words in enumerate(used["seen"][name]["maps"].split("; Layer ")):
            row, said = attn[i // 4, i % 4, token], float(re.search(r"([\d.]+) %", words)[1]) / 100
            assert f"{i // 4 + 1}, head {i % 4 + 1}," in words
            assert abs(said - float(row.max())) < 0.002, words
            place = re.search(r"most to (?:row (\d), column (\d)|the class token)", words)
            token_said = 7 * (int(place[1]) - 1) + int(place[2]) if place[1] else 0
            assert float(row.max() - row[token_said]) < 0.002, words


@pytest.mark.slow
def test_drawing_by_pointer_and_keys(used):
    seen = used["seen"]
    assert seen["no button"]["lit"] == seen["class"]["lit"] and seen["no button"]["answer"] == seen["class"]["answer"]
    assert seen["drawn"]["lit"] > seen["no button"]["lit"] and "You changed the picture" in seen["drawn"]["answer"]
    assert seen["drawn"]["maps"] != seen["no button"]["maps"]
    assert seen["again"]["lit"] == seen["picked"]["lit"]
    assert seen["cleared"]["lit"] == 0 and seen["cleared"]["checked"] == -1
    assert seen["cleared"]["answer"].endswith("The picture is empty.")
    assert seen["line"]["answer"].endswith("Your own picture has no label.")
    assert seen["moved"]["lit"] == 0 and seen["moved"]["where"] == "Pen at row 13, column 14, of 28."
    assert 0 < seen["dot"]["lit"] < seen["line"]["lit"] and seen["line"]["shares"] != seen["cleared"]["shares"]
    assert seen["erased"]["lit"] == 0


@pytest.mark.slow
def test_without_its_script_a_sentence_says_what_would_be_here(tmp_path):
    html = re.sub(r"<script.*?</script>", "", frame())
    body = "const p = (id) => document.getElementById('pocket-' + id), shown = (n) => n.getClientRects().length > 0;"
    body += "const told = shown(p('missing')) && p('missing').textContent;"
    body += "const RESULT = JSON.stringify({stage: shown(p('stage')), told});"
    got = run_js("chromium", tmp_path, body, html)
    assert got["stage"] is False and "needs JavaScript" in got["told"]


@pytest.mark.slow
def test_a_file_that_did_not_load_is_told(tmp_path):
    body = 'await new Promise((r) => addEventListener("load", r));'
    body += "const p = (id) => document.getElementById('pocket-' + id);"
    body += "const RESULT = JSON.stringify({hidden: p('stage').hidden, told: p('missing').textContent});"
    got = run_js("chromium", tmp_path, body, frame().replace("weights.js", "no-weights.js"))
    assert got == {"hidden": True, "told": "A file of this page did not load. Load the page again."}
