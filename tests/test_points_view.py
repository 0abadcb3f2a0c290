"""The page *Attention in 3-D*: its frame, its numbers, and, in a browser, turning and picking."""

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vitutils import data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tests"))
from test_browser_vit import run_js  # noqa: E402

import export_points  # noqa: E402

FILES = ROOT / "book" / "_static" / "points"
PAGE = ROOT / "book" / "points-in-3d.md"


def numbers() -> dict:
    """The fields of clouds.js, `bytes` decoded."""
    text = (FILES / "clouds.js").read_text(encoding="utf-8")
    fields = {key: json.loads(value) for key, value in re.findall(r"^  (\w+): ([^`].*),$", text, re.M)}
    packed = re.search(r"bytes: `\n(.*?)`", text, re.S)[1]
    return fields | {"bytes": np.frombuffer(base64.b64decode(packed), np.uint8)}


def maps() -> np.ndarray:
    """(nets, kinds, N, N), bytes."""
    found = numbers()
    N, kinds, nets = found["count"], len(found["kinds"]), len(found["nets"])
    return found["bytes"][3 * N * kinds :].reshape(nets, kinds, N, N)


def frame() -> str:
    """The page's own HTML, its files taken from where they are."""
    html = re.search(r"^```\{raw\} html\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
    return html.replace("../_static/points/", FILES.as_uri() + "/")


def test_the_clouds_are_test_objects_of_solids():
    found, solids = numbers(), data.load_points("solids")
    N = found["count"]
    clouds = found["bytes"].view(np.int8)[: 3 * N * len(found["kinds"])].reshape(-1, N, 3) / 127
    for cloud, name, kind in zip(clouds, found["names"], found["kinds"], strict=True):
        row = solids.test_names.index(name)
        assert solids.classes[solids.test_labels[row]] == kind
        assert solids.test_labels[:row].eq(solids.test_labels[row]).sum() == 0  # the first of its class
        assert np.abs(cloud - solids.test_points[row, :N].numpy()).max() < 0.005


def test_every_row_of_attention_has_its_largest_at_255_and_sums_to_1():
    found, rows = numbers(), maps()
    assert (rows.max(-1) == 255).all()
    peaks = np.array([found["peaks"][net] for net in found["nets"]])  # (nets, kinds, N)
    sums = (rows / 255 * peaks[..., None]).sum(-1)
    assert np.abs(sums - 1).max() < 0.06, np.abs(sums - 1).max()  # of bytes
    local = rows[found["nets"].index("local")]
    assert ((local > 0).sum(-1) <= 8).all() and (rows[found["nets"].index("global")] > 0).sum(-1).mean() > 30


def test_attention_is_that_of_the_layers():
    """`attention` gives the maps of the pass that answers: the output of the same layers on the same tokens."""
    torch.manual_seed(0)
    points = torch.randn(40, 3)
    for net in export_points.NETS:
        model = export_points.point_net(net, 4).eval()
        rows = export_points.attention(model, points)
        assert rows.shape == (40, 40) and torch.allclose(rows.sum(1), torch.ones(40), atol=1e-5)
        assert ((rows > 0).sum(1) <= 8).all() == (net == "local")


def test_the_page_holds_what_its_script_fills_and_asks_no_other_host():
    script = (FILES / "page.js").read_text(encoding="utf-8")
    wanted = set(re.findall(r'place\("(\w+)"\)', script))
    assert wanted and wanted <= set(re.findall(r'id="points-(\w+)"', frame()))
    assert len(script.splitlines()) < 300
    for name in ("page.js", "clouds.js", "page.css"):
        text = (FILES / name).read_text(encoding="utf-8")
        assert not re.search(r"\beval\b|\bFunction\(|\bfetch\b|XMLHttpRequest|\bimport\b|WebSocket|url\(|https?:", text)
    others = [p for p in ROOT.glob("book/*.md") if p != PAGE and "_static/points/" in p.read_text(encoding="utf-8")]
    assert not others and "points/" not in (ROOT / "_config.yml").read_text(encoding="utf-8")


def test_a_picture_stands_where_no_script_runs():
    assert '<div id="points-stage" class="points" data-clouds=' in frame() and " hidden>" in frame()
    assert re.search(r'<img src="[^"]+still.svg" [^>]*\s*alt="[^"]{60,}">', frame())
    still = (FILES / "still.svg").read_text(encoding="utf-8")
    assert "<title>" in still and "<desc>" in still
    shown = numbers()
    assert still.count("<circle") == 3 * len(shown["kinds"]) * (shown["count"] + 1)


USE = """
const el = (id) => document.getElementById("points-" + id), wait = (ms) => new Promise((r) => setTimeout(r, ms));
const errors = [], seen = {};
addEventListener("error", (event) => errors.push(event.message));
for (let i = 0; i < 25000 && el("stage").hidden; i++) await wait(20);  // virtual ms
const canvas = el("canvas");
const note = async (name) => { seen[name] = {said: el("said").textContent, picture: canvas.toDataURL(),
  answer: el("answer").textContent, label: canvas.getAttribute("aria-label")}; };
const key = (k) => canvas.dispatchEvent(new KeyboardEvent("keydown", {key: k, bubbles: true, cancelable: true}));
const pointer = (type, x, y, kind) => {
  const box = canvas.getBoundingClientRect(), at = {clientX: box.left + x, clientY: box.top + y};
  canvas.dispatchEvent(new PointerEvent(type, {...at, bubbles: true, pointerType: kind || "mouse", button: 0}));
};
await note("start");
key("ArrowLeft"); await note("left"); key("ArrowRight"); await note("back");
key("ArrowUp"); await note("up"); key("ArrowDown");
key("n"); await note("next"); key("p"); await note("previous");
pointer("pointerdown", 200, 200); pointer("pointermove", 260, 220); pointer("pointerup", 260, 220);
await note("dragged");
pointer("pointermove", 300, 300); await note("let go");
const w = canvas.clientWidth / 2;
pointer("pointerdown", w, w, "touch"); pointer("pointerup", w, w, "touch"); await note("tapped");
document.querySelectorAll("[name=points-nets]")[1].click(); await note("local");
document.querySelectorAll("[name=points-kinds]")[1].click(); await note("other");
const loads = [...document.querySelectorAll("[src], link[href]")].map((n) => n.src || n.href);
const RESULT = JSON.stringify({seen, errors, still: el("still").hidden, stage: el("stage").hidden, loads});
"""


@pytest.mark.slow
def test_turning_and_picking_in_a_browser(tmp_path):
    used = run_js("chromium", tmp_path, USE, frame())
    seen = used["seen"]
    assert used["errors"] == [] and used["still"] and not used["stage"]
    assert {url.rpartition("/")[0] for url in used["loads"]} == {FILES.as_uri()}
    assert seen["start"]["picture"] != seen["left"]["picture"] and seen["start"]["picture"] == seen["back"]["picture"]
    assert seen["up"]["picture"] != seen["start"]["picture"]
    assert seen["left"]["said"] == seen["start"]["said"] != seen["next"]["said"]
    assert seen["previous"] == seen["start"]
    assert seen["dragged"]["picture"] != seen["start"]["picture"] and seen["dragged"]["said"] == seen["start"]["said"]
    assert seen["let go"] == seen["dragged"]
    assert seen["tapped"]["said"] != seen["dragged"]["said"]
    assert int(re.search(r"; (\d+) point", seen["local"]["said"])[1]) <= 8
    assert seen["other"]["answer"] != seen["local"]["answer"] and "person" in seen["other"]["label"]
    said = re.fullmatch(r"Point (\d+) of 192 attends most .*, with ([\d.]+) %; .*", seen["start"]["said"])
    assert float(said[2]) == pytest.approx(100 * numbers()["peaks"]["global"][0][int(said[1]) - 1], abs=0.06)
