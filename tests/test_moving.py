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

import export_pocket
from vitutils.models import ViT
from vitutils.models.attention import attention
from vitutils.models.swin import shifted_mask, window_partition
from vitutils.models.weights import POCKET_CONFIG, load_pretrained

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
        const RESULT = JSON.stringify({{KEYS, VALUES, ends: [lengthAt(0), lengthAt(100)], scaled: all(true), not: all(false)}});
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
        const [{SIDE, M, sees, reaches, numbered}] = scripts, shifts = [...Array(M).keys()], tokens = [...Array(SIDE * SIDE).keys()];
        const all = (what) => [true, false].map((masked) => shifts.map((s) => tokens.map((i) => what(i, s, masked).map(Number))));
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


POCKET = ["pocket/vit.js", "pocket/weights.js", "pocket/images.js"]
WALK = """
const [vit, weights, images, {stepsOf, inverted, apart, words}] = scripts, model = vit.load(weights), {config} = model;
const all = vit.bytes(images.pixels), S = config.img_size, D = config.embed_dim;
const pixelsOf = (i) => Float32Array.from(all.subarray(i * S * S, (i + 1) * S * S), (v) => v / 255);
const [one, two] = [0, 21].map(pixelsOf), changed = inverted(one, 24, config);
const runs = [[one, true], [changed, true], [one, false], [changed, false], [two, false]].map(([p, mix]) => vit.forward(model, p, mix));
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
        const order = shuffled(N, 1), moved = arranged(one, order, model.config), logits = (net, p) => [...vit.forward(net, p).logits];
        const RESULT = JSON.stringify({order, again: shuffled(N, 1), other: shuffled(N, 2), one: [...one], moved: [...moved],
          with: [logits(model, one), logits(model, moved)], without: [logits(blind(model), one), logits(blind(model), moved)]});
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
