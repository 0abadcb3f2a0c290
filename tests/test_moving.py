"""The figures that the reader moves: where they stand, that their numbers are the book's, and that they can be moved.

What they compute is asked of node, or of Chromium where that is missing; the last tests use the figures in Chromium.
"""

from __future__ import annotations

import json
import math
import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from docutils import nodes
from docutils.utils import new_document
from test_browser_vit import ENGINES, run_js
from torch import nn

import export_pocket
from vitutils import results
from vitutils.analysis import equivariance, interpret
from vitutils.models import ViT
from vitutils.models.attention import attention
from vitutils.models.swin import shifted_mask, window_partition
from vitutils.models.weights import POCKET_CONFIG, load_pretrained
from vitutils.training.schedule import make_schedule
from vitutils.uncertainty import binomial_error, paired_interval

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "book" / "_static"
FILES = STATIC / "moving"
sys.path.append(str(ROOT / "book" / "_ext"))
import moving  # noqa: E402

PLACED = [(page, cell, name) for page, cells in moving.PLACES.items() for cell, name in cells.items()]


# --- where they stand ---


def placed(page: str, without: str = "") -> nodes.document:
    """The page's code cells, each followed by a caption and a sentence, after the extension has been there."""
    cells = json.loads((ROOT / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    document = new_document("page")
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code" and cell["id"] != without:
            document += nodes.container(nb_element="cell_code", cell_index=i, ids=[cell["id"]])
            document += [nodes.paragraph(text="Figure 1.1. Look."), nodes.paragraph(text="Then go on.")]
    env = SimpleNamespace(docname=page, doc2path=lambda name: str(ROOT / f"{name}.ipynb"))
    moving.place(SimpleNamespace(env=env, srcdir=str(ROOT)), document)
    return document


@pytest.mark.parametrize(("page", "cell", "name"), PLACED)
def test_a_figure_stands_behind_its_cell_and_the_caption(page, cell, name):
    found = list(placed(page).children)
    at = next(i for i, node in enumerate(found) if cell in node.get("ids", []))
    assert isinstance(found[at + 2], nodes.raw) and f'id="moving-{name}"' in found[at + 2].astext()
    assert found[at + 3].astext() == "Then go on."
    assert sum(isinstance(node, nodes.raw) for node in found) == len(moving.PLACES[page])


def test_a_cell_that_is_gone_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(moving, "LOG", SimpleNamespace(warning=lambda text, *given, **_: told.append(text % given)))
    page, cell, name = PLACED[0]
    assert not list(placed(page, without=cell).findall(nodes.raw))
    assert len(told) == 1 and cell in told[0] and name in told[0]


def test_a_page_without_figures_is_left_alone():
    document = new_document("page")
    moving.place(SimpleNamespace(env=SimpleNamespace(docname="book/preface")), document)
    assert not document.children


def test_frames_hold_what_their_scripts_need():
    assert {name for *_, name in PLACED} == set(moving.FIGURES)
    for name in moving.FIGURES:
        html = moving.frame(name, "../_static/", STATIC)
        for path in re.findall(r"\.\./_static/([\w./-]+)", html):
            assert (STATIC / path).is_file(), path
        assert moving.STILL in html and "<figcaption><strong>" in html
        heavy = sum((STATIC / path).stat().st_size for path in moving.FIGURES[name].scripts) > moving.LARGE
        assert ("data-megabytes=" in html) == heavy


def test_plain_short_and_asking_no_other_host():
    for path in FILES.glob("*.js"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert len(text.splitlines()) < 300, path.name
        asks = r"\beval\b|\bFunction\(|\bfetch\b|XMLHttpRequest|\bimport\b|WebSocket|sendBeacon|innerHTML|https?:"
        assert not re.search(asks, text), path.name
    assert "url(" not in (FILES / "moving.css").read_text(encoding="utf-8")


# --- their numbers are the book's ---


def evaluate(folder: Path, files: list[str], body: str) -> dict:
    """Run a body with the exports of `files` in `scripts`; it sets RESULT."""
    if ENGINES["node"]:
        loads = [f"require({json.dumps(str(STATIC / name))})" for name in files]
        return run_js("node", folder, f"const scripts = [{', '.join(loads)}];\n{body}")
    html = "<script>var scripts = [], module;</script>"
    for name in files:
        html += f'<script>module = {{}};</script><script src="{(STATIC / name).as_uri()}"></script>'
        html += "<script>scripts.push(module.exports);</script>"
    return run_js("chromium", folder, body, html)


def cell_source(page: str, cell: str) -> str:
    cells = json.loads((ROOT / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join(next(c for c in cells if c["id"] == cell)["source"])


def test_the_query_gets_the_answers_of_attention_and_of_the_chapters_figure(tmp_path):
    seen = {}
    plot = SimpleNamespace(lines=lambda x, curves, **_: seen.update(x=x, curves=curves))
    scope = {"torch": torch, "attention": attention, "plot": plot}
    exec(cell_source("notebooks/02_attention", "dictionary"), scope)
    around = [int(v) for v in seen["x"]]
    lengths = [0, *(int(re.search(r"\d+", name)[0]) for name in seen["curves"])]
    body = f"""
        const [{{KEYS, VALUES, attend, lengthAt}}] = scripts, ask = {json.dumps([around, lengths])};
        const all = (scaled) => ask[1].map((length) => ask[0].map((degrees) => attend(degrees, length, scaled)));
        const RESULT = JSON.stringify({{KEYS, VALUES,
          ends: [lengthAt(0), lengthAt(100)], scaled: all(true), not: all(false)}});
    """
    got = evaluate(tmp_path, ["moving/dictionary.js"], body)
    keys, values = scope["keys"].double(), scope["values"].double()
    assert got["VALUES"] == values[:, 0].tolist()
    assert np.allclose([[math.cos(math.radians(k)), math.sin(math.radians(k))] for k in got["KEYS"]], keys, atol=1e-6)
    assert got["ends"] == pytest.approx([0, 300])
    angles = torch.tensor(around).double().deg2rad()
    for name, more in (("scaled", 1.0), ("not", math.sqrt(2))):
        for length, curve in zip(lengths, got[name], strict=True):
            q = more * length * torch.stack([angles.cos(), angles.sin()], dim=-1)
            answer, weights = attention(q, keys, values)
            assert np.abs(np.array([one["weights"] for one in curve]) - weights.numpy()).max() < 1e-4
            assert np.abs(np.array([one["answer"] for one in curve]) - answer[:, 0].numpy()).max() < 1e-4
    for length, curve in zip(lengths[1:], seen["curves"].values(), strict=True):
        drawn = np.array([one["answer"] for one in got["scaled"][lengths.index(length)]])
        assert np.abs(drawn - curve.numpy()).max() < 5e-3  # single precision, times 300


def shape_and_layers(folder: Path, patch: int) -> tuple[dict, dict[int, nn.Module]]:
    """What slide.js computes for patches of this side, and its two layers in torch, in double precision, by stride."""
    body = f"""
        const [{{SIDE, FAR, image, kernel, answer, compare}}] = scripts, P = {patch}, moves = [];
        for (let dx = -FAR; dx <= FAR; dx++) moves.push([0, dx], ...[-FAR, -3, 0, 4].map((dy) => [dx, dy]));
        const RESULT = JSON.stringify({{SIDE, FAR, moves, kernel: [...kernel(P)],
          still: [1, P].map((stride) => [...answer(image(0, 0), P, stride)]),
          found: moves.map(([dx, dy]) => ({{image: [...image(dx, dy)], ways: [1, P].map((stride) => {{
            const {{now, left, error, by}} = compare(dx, dy, P, stride);
            return {{now: [...now], left: [...left], error, by}};
          }})}}))}});
    """
    got = evaluate(folder, ["moving/slide.js"], body)
    layers = {}
    for stride in (1, patch):
        conv = nn.Conv2d(1, 1, patch, stride=stride, bias=False).double()
        with torch.no_grad():
            conv.weight.copy_(torch.tensor(got["kernel"]).reshape(1, 1, patch, patch))
        before, after = (patch // 2, patch // 2 - 1) if stride == 1 else (0, 0)
        layers[stride] = nn.Sequential(nn.ZeroPad2d((before, after, before, after)), conv)
    return got, layers


@pytest.mark.parametrize("patch", [4, 8])
def test_a_shape_is_answered_as_convolutions_of_two_strides_answer_it(tmp_path, patch):
    got, layers = shape_and_layers(tmp_path, patch)
    side, errors = got["SIDE"], {}
    half = patch // 2
    assert got["kernel"] == [*[-2 / patch**2] * half, *[2 / patch**2] * half] * patch  # the right half minus the left
    first = torch.tensor(got["found"][got["moves"].index([0, 0])]["image"]).double().reshape(1, 1, side, side)
    for (dx, dy), found in zip(got["moves"], got["found"], strict=True):
        image = equivariance.shift(first, dx, dy)
        assert image.sum() == first.sum() and found["image"] == image.flatten().tolist()  # all of it stays in the frame
        for (stride, layer), still, way in zip(layers.items(), got["still"], found["ways"], strict=True):
            with torch.no_grad():
                expected, before = layer(image), layer(first)
            assert np.allclose(still, before.flatten(), atol=1e-12)
            assert np.allclose(way["now"], expected.flatten(), atol=1e-12)
            assert np.allclose(way["left"], (expected - equivariance.shift(before, *way["by"])).flatten(), atol=1e-12)
            whole = [{math.floor(d / stride), math.ceil(d / stride)} for d in (dx, dy)]
            least = min((expected - equivariance.shift(before, x, y)).norm() for x in whole[0] for y in whole[1])
            assert way["error"] == pytest.approx((least / before.norm()).item(), abs=1e-12)
            errors[dx, dy, stride] = way["error"]
    # all of the answer moves along: at stride 1 always, else after whole patches, and after no other move
    assert {move for move, error in errors.items() if error == 0} == {
        (dx, dy, s) for dx, dy, s in errors if dx % s == dy % s == 0
    }
    wide = torch.zeros(1, 1, 3 * side, 3 * side).double()  # as much black round it as the chapter's function leaves out
    wide[..., side : 2 * side, side : 2 * side] = first
    for stride, layer in layers.items():
        for direction, (x, y) in {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}.items():
            expected = equivariance.equivariance_error(layer, wide, range(got["FAR"] + 1), direction=direction)
            ours = [errors[x * s, y * s, stride] for s in range(got["FAR"] + 1)]
            assert np.abs(expected.numpy() - ours).max() < 1e-12


def may_look(shift: int, masked: bool, side: int, M: int) -> torch.Tensor:
    """(N, N), by the block's own functions: token i of the image may look at token j."""
    numbers = torch.arange(side**2).reshape(1, side, side, 1).roll((-shift, -shift), dims=(1, 2))
    windows = window_partition(numbers, (M, M))[0, :, :, 0]  # (nW, M * M) tokens of the image
    mask = shifted_mask((side, side), (M, M), (shift, shift))
    look = torch.zeros(side**2, side**2, dtype=torch.bool)
    for tokens, allowed in zip(windows, mask if masked else torch.ones_like(mask), strict=True):
        look[tokens[:, None], tokens] = allowed
    return look


def test_every_token_sees_what_swins_mask_lets_it_see(tmp_path):
    body = """
        const [{SIDE, M, sees, reaches, numbered}] = scripts, shifts = [...Array(M).keys()],
          tokens = [...Array(SIDE * SIDE).keys()];
        const all = (what) => [true, false].map((masked) =>
          shifts.map((s) => tokens.map((i) => what(i, s, masked).map(Number))));
        const RESULT = JSON.stringify({SIDE, M, sees: all(sees), reaches: all(reaches), regions: shifts.map(numbered)});
    """
    got = evaluate(tmp_path, ["moving/shift.js"], body)
    side, M = got["SIDE"], got["M"]
    plain = may_look(0, True, side, M)
    for kind, masked in enumerate((True, False)):
        for shift in range(M):
            look = may_look(shift, masked, side, M)
            assert np.array_equal(got["sees"][kind][shift], look.int().numpy())
            assert np.array_equal(got["reaches"][kind][shift], (look.int() @ plain.int() > 0).int().numpy())
    for shift in range(M):  # the numbers that it prints are the regions
        regions = torch.tensor(got["regions"][shift])
        assert torch.equal(regions[:, None] == regions, may_look(shift, True, side, M))
        assert regions.unique().tolist() == list(range(1, 5 if shift == 0 else 10))


def test_rates_are_the_schedules_and_runs_are_those_of_the_studies(tmp_path):
    runs = moving.schedule_runs()
    body = f"""
        const [{{RATES, SCHEDULES, EPOCHS, STEPS, WARMUP, HELD_OUT, rateAt, recorded}}] = scripts,
          runs = {json.dumps(runs)};
        const curves = [9, 200, STEPS].map((n) => SCHEDULES.map((s) =>
          [...Array(n).keys()].map((step) => rateAt(step, n, s, 0.004))));
        const RESULT = JSON.stringify({{RATES, SCHEDULES, EPOCHS, WARMUP, HELD_OUT, curves,
          table: SCHEDULES.map((s) => RATES.map((r) => recorded(runs, r, s)))}});
    """
    got = evaluate(tmp_path, ["moving/rates.js"], body)
    kinds = [("cosine", got["WARMUP"]), ("cosine", 0.0), ("constant", got["WARMUP"])]
    for curves in got["curves"]:
        for (kind, warmup), curve in zip(kinds, curves, strict=True):
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.004)
            schedule, expected = make_schedule(optimizer, len(curve), warmup, kind), []
            for _ in curve:
                expected.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            assert np.abs(np.subtract(curve, expected)).max() < 1e-8
    ablation = [row for row in results.read("training") if row["part"] == "ablation"]
    at = got["RATES"].index(ablation[0]["lr"])
    for k, variant in enumerate(("base", "no warm-up", "constant rate after warm-up")):
        rows = [row for row in ablation if row["variant"] == variant]
        extra = [r["accuracy"] for r in results.read("recipe") if variant == "base" and r["part"] == "search"
                 and r["arm"] == "unchanged" and r["lr"] == ablation[0]["lr"]]  # fmt: skip
        accuracies = np.array([row["accuracy"] for row in rows] + extra)
        found = got["table"][k][at]
        assert found["mean"] == pytest.approx(accuracies.mean()) and found["std"] == pytest.approx(
            accuracies.std(ddof=1)
        )
        assert found["images"] == pytest.approx(
            binomial_error(accuracies.mean(), got["HELD_OUT"]), abs=2e-6
        )  # it rounds to whole images
        assert [len(run["byEpoch"]) for run in found["runs"]] == [got["EPOCHS"]] * len(rows) + [0] * len(extra)
    # no run is left out for want of a place
    assert sum(len(cell["runs"]) for line in got["table"] for cell in line) == len(runs) == 15


POCKET = ["pocket/vit.js", "pocket/weights.js", "pocket/images.js"]
WALK = """
const [vit, weights, images, {stepsOf, inverted, apart, words}] = scripts, model = vit.load(weights), {config} = model;
const all = vit.bytes(images.pixels), S = config.img_size, D = config.embed_dim;
const pixelsOf = (i) => Float32Array.from(all.subarray(i * S * S, (i + 1) * S * S), (v) => v / 255);
const [one, two] = [0, 21].map(pixelsOf), changed = inverted(one, 24, config);
const runs = [[one, true], [changed, true], [one, false], [changed, false], [two, false]]
  .map(([p, mix]) => vit.forward(model, p, mix));
const counts = ([a, b]) => a.steps.map((tokens, i) => apart(tokens, b.steps[i], D).filter((gap) => gap > 0).length);
const RESULT = JSON.stringify({
  one: [...one], changed: [...changed], steps: runs[0].steps.map((tokens) => [...tokens]),
  far: runs[0].steps.map((tokens, i) => apart(tokens, runs[1].steps[i], D)),
  counts: counts(runs), without: counts(runs.slice(2)), logits: runs.slice(2).map((r) => [...r.logits]),
  list: stepsOf(config), told: stepsOf(config).map((step) => words(step, true, config)),
});
"""


@cache
def pocket() -> tuple[ViT, float, float]:
    """The network with the page's 16-bit weights, in double precision; mean and standard deviation of its pixels."""
    found = load_pretrained("pocket")
    model = ViT(POCKET_CONFIG).eval()
    model.load_state_dict(export_pocket.to_half(found.model.state_dict()))
    return model.double(), found.mean[0], found.std[0]


def prepared(pixels: list[float]) -> torch.Tensor:
    _, mean, std = pocket()
    return ((torch.tensor(pixels).double() - mean) / std).reshape(1, 1, 28, 28)


def by_torch(pixels: list[float]) -> list[torch.Tensor]:
    """The tokens (T, D) at first, after each attention and after each MLP."""
    model = pocket()[0]
    steps = []
    with torch.no_grad():
        tokens = model.embed(prepared(pixels))
        steps.append(tokens[0])
        for block in model.blocks:
            mixed = tokens + block.attn(block.norm1(tokens))
            tokens = block(tokens)
            steps += [mixed[0], tokens[0]]
    return steps


def test_the_walk_shows_the_tokens_of_the_network(tmp_path):
    got = evaluate(tmp_path, [*POCKET, "moving/walk.js"], WALK)
    T, D, depth = 50, POCKET_CONFIG.embed_dim, POCKET_CONFIG.depth
    ours, other = by_torch(got["one"]), by_torch(got["changed"])
    assert len(ours) == len(got["steps"]) == 2 * depth + 1
    for tokens, theirs in zip(ours, got["steps"], strict=True):
        assert np.abs(np.array(theirs).reshape(T, D) - tokens.numpy()).max() < 1e-3
    for tokens, changed, far in zip(ours, other, got["far"], strict=True):
        expected = (tokens - changed).norm(dim=1) / tokens.norm(dim=1)
        assert np.abs(np.array(far) - expected.numpy()).max() < 1e-4
    # one patch is inverted, and no more
    patches = (torch.tensor(got["one"]) - torch.tensor(got["changed"])).reshape(7, 4, 7, 4).abs().sum(dim=(1, 3))
    assert patches.nonzero().tolist() == [[3, 3]]
    # only attention mixes tokens
    assert got["counts"] == [1] + [T] * (2 * depth) and got["without"] == [1] * (2 * depth + 1)
    assert got["logits"][0] == got["logits"][1] == got["logits"][2]  # without it, the image does not count
    # every step is told, with the tokens at which it ends
    ends = [step["at"] for step in got["list"] if "at" in step]
    assert ends == [*range(2 * depth + 1), 2 * depth] and all(len(told) == 3 for told in got["told"])


def test_shuffled_patches_move_the_answer_only_with_positions(tmp_path):
    body = """
        const [vit, weights, images, {blind, arranged, shuffled}] = scripts, model = vit.load(weights), S = 28, N = 49;
        const all = vit.bytes(images.pixels), one = Float32Array.from(all.subarray(0, S * S), (v) => v / 255);
        const order = shuffled(N, 1), moved = arranged(one, order, model.config),
          logits = (net, p) => [...vit.forward(net, p).logits];
        const RESULT = JSON.stringify({order, again: shuffled(N, 1), other: shuffled(N, 2),
          one: [...one], moved: [...moved],
          with: [logits(model, one), logits(model, moved)],
            without: [logits(blind(model), one), logits(blind(model), moved)]});
    """
    got = evaluate(tmp_path, [*POCKET, "moving/shuffle.js"], body)
    order = got["order"]
    assert sorted(order) == list(range(49)) and order == got["again"] != got["other"]
    patches = torch.tensor(got["one"]).reshape(7, 4, 7, 4).transpose(1, 2).reshape(49, 16)
    moved = torch.tensor(got["moved"]).reshape(7, 4, 7, 4).transpose(1, 2).reshape(49, 16)
    assert torch.equal(moved, patches[order])
    model = pocket()[0]
    with torch.no_grad():
        kept = model.pos_embed.clone()
        for name in ("with", "without"):
            for pixels, logits in zip((got["one"], got["moved"]), got[name], strict=True):
                assert np.abs(model(prepared(pixels))[0].numpy() - logits).max() < 1e-3
            model.pos_embed.zero_()
        model.pos_embed.copy_(kept)
    gaps = {name: np.abs(np.subtract(*got[name])).max() for name in ("with", "without")}
    assert gaps["without"] < 1e-4 < 1 < gaps["with"]


def test_squares_are_covered_in_the_order_of_the_chapters_maps(tmp_path):
    data = moving.deletion_curves()
    found = load_pretrained("pocket")
    vit, fresh = found.model.eval().requires_grad_(False), ViT(POCKET_CONFIG).eval()
    images = torch.stack([*map(found.transform, moving.pocket_images()[0])])
    classes = vit(images).argmax(dim=1)
    scope = vars(interpret) | {
        "vit": vit,
        "fresh": fresh,
        "images": images,
        "classes": classes,
        "grid": (7, 7),
        "side": 4,
    }
    scope["maps"] = {
        "trained": interpret.attention_maps(vit, images),
        "untrained": interpret.attention_maps(fresh, images),
    }
    scope["in_batches"] = lambda look, model, *batch: look(model, *batch)
    exec(cell_source("notebooks/10_looking_inside", "opinions"), scope)
    shown = range(0, len(images), len(images) // len(data["images"]))
    for name, *orders in zip(data["maps"], *(one["orders"] for one in data["images"]), strict=True):
        expected = scope["opinions"][name].flatten(1).argsort(dim=1, descending=True, stable=True)
        assert orders == expected[list(shown)].tolist(), name
    areas = {}
    for name in ("rollout", "chance"):
        k, fall = data["maps"].index(name), interpret.deletion(vit, images, classes, scope["opinions"][name], steps=49)
        areas[name] = fall.mean(dim=1)
        for i, one in zip(shown, data["images"], strict=True):
            assert np.abs(fall[i].numpy() - one["curves"][k]).max() < 1e-4
        assert np.abs(fall.mean(dim=0).numpy() - data["mean"][k]).max() < 1e-4
    never = [sum(min(curve) >= curve[0] / 2 for curve in one["curves"]) for one in data["images"]]
    assert max(never) > len(data["maps"]) / 2 and sum(count > 0 for count in never) == 1  # as the frame says
    gap, told = paired_interval(areas["rollout"], areas["chance"]), data["areas"][data["maps"].index("rollout")]
    assert [told["area"], *told["minus"]] == pytest.approx(
        [areas["rollout"].mean().item(), gap.mean, gap.low, gap.high]
    )
    # the picture that the page shows is the one that the network answers
    body = f"""
        const [{{halved, area, covered, pixelsOf}}] = scripts, data = {json.dumps(data)}, counts = [0, 1, 7, 30, 49];
        const RESULT = JSON.stringify({{counts, halved: [[1, 0.6, 0.4, 0.7], [0.8, 0.5, 0.4]].map(halved),
          areas: data.images.map((one) => one.curves.map(area)),
          left: data.images.map(({{pixels, orders}}) => orders.map((order) =>
            counts.map((n) => [...covered(pixelsOf(pixels), order, n, data.fill)])))}});
    """
    got = evaluate(tmp_path, ["moving/deletion.js"], body)
    assert got["halved"] == [2, None]
    for one, own, left in zip(data["images"], got["areas"], got["left"], strict=True):
        answer = found.classes.index(one["answer"])
        batch = (torch.tensor(left).reshape(-1, 1, 28, 28) - found.mean[0]) / found.std[0]
        seen = vit(batch.float()).softmax(dim=-1)[:, answer].reshape(len(own), -1)
        assert np.abs(seen.numpy() - np.array(one["curves"])[:, got["counts"]]).max() < 1e-3
        assert own == pytest.approx([sum(curve) / len(curve) for curve in one["curves"]])


# --- and they can be moved ---

USE = """
const wait = (ms) => new Promise((r) => setTimeout(r, ms)), errors = [], seen = {};
addEventListener("error", (event) => errors.push(event.message));
const at = (name) => document.getElementById("moving-" + name);
const find = (name, selector) => [...at(name).querySelectorAll(selector)];
const starts = ["walk", "shuffle"].map((name) => ["vit", "weights"].filter((file) =>
  document.querySelector(`script[src*="/${file}.js"]`)).length);
for (const name of NAMES) {
  at(name).scrollIntoView();
  for (let i = 0; i < 500 && !at(name).querySelector(".moving-still button, .moving-stage"); i++) await wait(20);
  at(name).querySelector(".moving-still button")?.click();
  for (let i = 0; i < 2000 && !("ready" in at(name).dataset); i++) await wait(20);
}
const note = async (name, key) => { await wait(400); seen[key] = at(name).querySelector("[role=status]").textContent; };
const slide = (name, i, value) => { const input = find(name, "[type=range]")[i];
  input.value = value; input.dispatchEvent(new Event("input")); };
const key = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const pointer = (node, type, box, x, y) => node.dispatchEvent(new PointerEvent(type, {
  clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true,
    pointerType: "touch", button: 0}));

await note("dictionary", "start");
slide("dictionary", 0, 72); slide("dictionary", 1, 100); await note("dictionary", "sharp");
slide("dictionary", 1, 0); await note("dictionary", "none");
const handle = find("dictionary", ".moving-handle")[0], box = handle.ownerSVGElement.getBoundingClientRect();
pointer(handle, "pointerdown", box, 0.5, 0.1); await note("dictionary", "up");
pointer(handle, "pointermove", box, 0.1, 0.5); await note("dictionary", "left");
pointer(handle, "pointerup", box, 0.1, 0.5);
pointer(handle, "pointermove", box, 0.5, 0.9); await note("dictionary", "let go");
seen.direction = find("dictionary", "[type=range]")[0].value;

await note("slide", "still");
const image = find("slide", "[role=application]")[0];
image.scrollIntoView({block: "center"}); image.focus();
for (const k of ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"]) key(k);
await note("slide", "two right");
for (let i = 0; i < 9; i++) key("ArrowRight");
await note("slide", "whole patch");
const frame = image.getBoundingClientRect(), hand = find("slide", ".moving-handle")[0];
pointer(hand, "pointerdown", frame, 0.6, 0.5); pointer(hand, "pointermove", frame, 0.6 - 13 / 32, 0.5 + 3 / 32);
await note("slide", "slid by hand");
pointer(hand, "pointerup", frame, 0.6, 0.5); pointer(hand, "pointermove", frame, 0.6, 0.5);
slide("slide", 1, -4); await note("slide", "by slider");
find("slide", "[type=radio]")[1].click(); slide("slide", 0, -4); await note("slide", "smaller patches");

await note("shift", "two");
find("shift", "[role=gridcell]")[0].click(); await note("shift", "corner");
key("ArrowRight"); key("ArrowDown"); key("ArrowUp"); key("ArrowUp"); await note("shift", "walked");
slide("shift", 0, 0); await note("shift", "no shift");
slide("shift", 0, 2); find("shift", "[type=checkbox]")[0].click(); await note("shift", "no mask");
find("shift", "[type=radio]")[1].click(); await note("shift", "two blocks");
find("shift", "[role=grid]")[1].querySelector("[role=gridcell]").click(); await note("shift", "in the second");

await note("rates", "first");
find("rates", "[type=radio]")[2].click(); slide("rates", 0, 3); await note("rates", "constant");
find("rates", "[type=radio]")[1].click(); slide("rates", 0, 0); await note("rates", "nobody");

await note("deletion", "whole");
slide("deletion", 0, 5); slide("deletion", 1, 7); await note("deletion", "seven");
slide("deletion", 1, 49); await note("deletion", "all");
seen.tried = find("deletion", "li").map((n) => n.textContent);
find("deletion", "[type=radio]")[6].click(); slide("deletion", 1, 1); await note("deletion", "by chance");
find("deletion", "button")[0].click(); await note("deletion", "another");

await note("walk", "image");
find("walk", ".moving-buttons button")[1].click(); find("walk", ".moving-buttons button")[1].click();
  await note("walk", "tokens");
slide("walk", 0, 3); await note("walk", "attention");
const maps = () => find("walk", ".moving-maps canvas").map((c) => c.getAttribute("aria-label"));
seen.maps = maps();
find("walk", "[aria-pressed]")[0].click(); seen["class maps"] = maps();
find("walk", "[role=gridcell]")[0].click(); key("ArrowDown"); seen["picked maps"] = maps();
find("walk", "[type=checkbox]")[0].click(); slide("walk", 0, 15); await note("walk", "without attention");

await note("shuffle", "intact");
const cells = find("shuffle", "[role=gridcell]");
cells[10].scrollIntoView({block: "center"});
const middle = (i) => cells[i].getBoundingClientRect();
for (const [i, type] of [[10, "down"], [24, "up"]]) pointer(cells[i], "pointer" + type, middle(i), 0.5, 0.5);
await note("shuffle", "dragged");
cells[24].focus(); key("Enter"); await note("shuffle", "picked");
for (const k of ["ArrowUp", "ArrowUp", "Enter"]) key(k);
await note("shuffle", "by keys");
find("shuffle", ".moving-buttons button")[0].click(); await note("shuffle", "shuffled");
find("shuffle", "[type=checkbox]")[0].click(); await note("shuffle", "without positions");
find("shuffle", ".moving-buttons button")[1].click(); await note("shuffle", "put back");

const named = (n) => n.getAttribute("aria-label") || (n.closest("label") || n).textContent.trim();
const nameless = NAMES.flatMap((name) => find(name, "svg, canvas, input, button, [role=gridcell]"))
  .filter((n) => n.getAttribute("aria-hidden") !== "true" && !named(n)).map((n) => n.outerHTML.slice(0, 80));
const loads = [...document.querySelectorAll("[src], link[href]")].map((n) => n.src || n.href);
const RESULT = JSON.stringify({seen, errors, nameless, loads, starts,
  stops: find("shift", "[role=gridcell][tabindex='0']").length,
    wide: document.documentElement.scrollWidth - innerWidth});
"""


def together() -> str:
    """The frames of all figures, their files taken from where they are."""
    frames = "".join(moving.frame(name, STATIC.as_uri() + "/", STATIC) for name in moving.FIGURES)
    return f"<script>const NAMES = {json.dumps(list(moving.FIGURES))};</script>{frames}"


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> dict:
    return run_js("chromium", tmp_path_factory.mktemp("moving"), USE, together())


@pytest.mark.slow
def test_all_load_and_name_their_parts(used):
    assert used["errors"] == [] and used["nameless"] == [] and used["wide"] <= 0
    assert used["starts"] == [0, 0]  # the network is loaded when it is asked for
    assert all(url.startswith(STATIC.as_uri()) for url in used["loads"])
    assert len(used["loads"]) == len(set(used["loads"])) + 2 * (len(moving.FIGURES) - 1)  # the shared two, a frame


@pytest.mark.slow
def test_the_query_is_turned_by_sliders_and_by_hand(used):
    seen = used["seen"]
    assert "100.0 % of the weight on the key whose value is 3; the answer is 3.00" in seen["sharp"]
    assert "20.0 % of the weight" in seen["none"] and "the answer is 3.00" in seen["none"]
    assert "at 90 degrees" in seen["up"] and "at 180 degrees" in seen["left"]
    assert seen["let go"] == seen["left"] and used["seen"]["direction"] == "180"


@pytest.mark.slow
def test_a_shape_is_moved_by_keys_by_hand_and_by_sliders(used):
    seen = used["seen"]
    assert "Moved 0 to the right, 0 down" in seen["still"] and "Not moved" in seen["still"]
    assert "Moved 2 to the right, 0 down. Error at stride 1: 0.00; at stride 8: 0.68" in seen["two right"]
    assert "Moved 8 to the right, 0 down" in seen["whole patch"] and "at stride 8: 0.00" in seen["whole patch"]
    assert "Moved -5 to the right, 3 down" in seen["slid by hand"]
    assert "Moved -5 to the right, -4 down" in seen["by slider"]  # it was let go before
    assert "Moved -4 to the right, -4 down" in seen["smaller patches"] and "stride 4: 0.00" in seen["smaller patches"]


@pytest.mark.slow
def test_windows_are_shifted_and_tokens_picked(used):
    seen = used["seen"]
    assert "row 1, column 1, shift 2" in seen["corner"] and "may see 4 of the 16" in seen["corner"]
    assert "row 1, column 2" in seen["walked"]  # not past the edge
    assert "may see 16 of the 16" in seen["no shift"] and "may see 16 of the 16" in seen["no mask"]
    assert "depends on" in seen["two blocks"] and used["stops"] == 2
    assert "row 3, column 3" in seen["in the second"]


@pytest.mark.slow
def test_rates_and_schedules_are_chosen(used):
    seen = used["seen"]
    assert "Peak rate 0.002, warm-up, then cosine: 84.0\u00a0% in a single run" in seen["first"]
    assert re.search(r"0.004, warm-up, then constant: [\d.]+ ± [\d.]+\s% over 3 seeds", seen["constant"])
    assert "0.0005, cosine alone: no run was recorded" in seen["nobody"]


@pytest.mark.slow
def test_squares_are_covered_and_a_bet_stands(used):
    seen, data = used["seen"], moving.deletion_curves()
    one, two = data["images"][:2]
    for name, count, curve in (
        ("whole", 0, one["curves"][0]),
        ("seven", 7, one["curves"][0]),
        ("all", 49, one["curves"][0]),
        ("by chance", 1, one["curves"][6]),
        ("another", 0, two["curves"][6]),
    ):
        assert f"{count} of 49 squares covered" in seen[name], name
        shown = float(re.search(r"covered: .*? ([\d.]+) %", seen[name])[1])
        assert shown == pytest.approx(100 * curve[count], abs=0.06), name
    assert "Halved" not in seen["whole"] and "your bet was 5" in seen["all"] and "your bet" not in seen["another"]
    assert len(seen["tried"]) == 1 and re.search(r"^attention: .*; area .*, minus chance", seen["tried"][0])


@pytest.mark.slow
def test_an_image_is_walked_through_the_network(used):
    seen = used["seen"]
    assert "1 of 50 tokens" in seen["image"] and "1 of 50 tokens" in seen["tokens"] and "Tokens" in seen["tokens"]
    assert "50 of 50 tokens" in seen["attention"] and "1 of 50 tokens" in seen["without attention"]
    assert len(seen["maps"]) == POCKET_CONFIG.num_heads
    for name, token in (
        ("maps", "row 4, column 4"),
        ("class maps", "the class token"),
        ("picked maps", "row 2, column 1"),
    ):
        assert all(f"from {token}, most to " in words for words in seen[name]), seen[name]


@pytest.mark.slow
def test_patches_are_swapped_by_hand_and_by_keys(used):
    seen = used["seen"]
    assert "0 of 49 patches moved" in seen["intact"]
    assert "2 of 49 patches moved" in seen["dragged"] and "picked" in seen["picked"]
    assert seen["by keys"] == seen["intact"]
    assert "With positions, 4" in seen["shuffled"] and "rounding" not in seen["shuffled"]
    assert "Without positions, 4" in seen["without positions"]
    assert "rounding" in seen["without positions"] or "not at all" in seen["without positions"]
    answers = [re.search(r"first answer .*? %", seen[name])[0] for name in ("without positions", "put back")]
    assert answers[0] == answers[1]
