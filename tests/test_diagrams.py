"""The numbers in the drawings of book/_static are what the book's code computes."""

import inspect
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from vit_pytorch import MAE
from vit_pytorch.vit_for_small_dataset import SPT

from vitutils.models import ViT, ViTConfig
from vitutils.models.attention import attention
from vitutils.models.conversion import VIT_PYTORCH
from vitutils.models.points import PointClassifier, PointMLP, bilinear, nearest, splat
from vitutils.models.recall import recall_batch
from vitutils.models.swin import Swin, SwinConfig
from vitutils.models.transformer import Encoder, look_ups, rotate
from vitutils.training.masked import MAE as MaskedAutoencoder
from vitutils.training.masked import pick_tokens, random_masking
from vitutils.training.views import DINO, Views

STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"
SVG = "{http://www.w3.org/2000/svg}"


def read(name: str) -> ET.Element:
    return ET.parse(STATIC / f"{name}.svg").getroot()


def part(drawing: ET.Element, name: str) -> list[ET.Element]:
    """The groups of a drawing that have this class."""
    return [group for group in drawing.iter(f"{SVG}g") if group.get("class") == name]


def texts(group: ET.Element) -> list[str]:
    return [node.text.replace("−", "-") for node in group.iter(f"{SVG}text")]


def grid(group: ET.Element) -> list[list[str]]:
    """What a group's boxes contain, row by row as they are drawn."""
    rows: dict[float, list[str]] = {}
    for box, text in zip(group.iter(f"{SVG}rect"), texts(group), strict=True):
        rows.setdefault(float(box.get("y")), []).append(text)
    return list(rows.values())


def matrix(drawing: ET.Element, name: str) -> torch.Tensor:
    (group,) = part(drawing, name)
    return torch.tensor([[float(number) for number in row] for row in grid(group)])


def test_queries_keys_and_values_as_matrices():
    drawing = read("qkv-matrices")
    q, k, v = matrix(drawing, "q"), matrix(drawing, "kt").T, matrix(drawing, "v")
    assert torch.equal(matrix(drawing, "scores"), q @ k.T) and not torch.equal(q @ k.T, k @ q.T)
    out, attn = attention(q, k, v)
    for name, expected in {"attn": attn, "out": out}.items():
        torch.testing.assert_close(matrix(drawing, name), expected, atol=0.005, rtol=0)
    torch.testing.assert_close(matrix(drawing, "attn").sum(1), torch.ones(3))  # as printed, too
    results = {"Kᵀ": (q @ k.T)[0, 1], "V": out[0, 0]}
    (sums,) = part(drawing, "sums")
    for line, (other, result) in zip(texts(sums), results.items(), strict=True):
        _, formula = line.split(f"of {other}: ")
        terms, printed = formula.split(" = ")
        total = sum(float(a) * float(b) for a, b in (term.split("·") for term in terms.split(" + ")))
        assert total == pytest.approx(float(printed)) == pytest.approx(result.item(), abs=0.005)


def test_one_step_of_an_lstm():
    drawing = read("lstm-step")
    numbers = {name: matrix(drawing, name) for name in ("cell", "f", "i", "g", "o", "next", "state")}
    cell = torch.nn.LSTMCell(1, 1, dtype=torch.double)
    for weight in cell.parameters():
        torch.nn.init.zeros_(weight)
    before = torch.cat([numbers["i"], numbers["f"], numbers["g"], numbers["o"]]).double().flatten()
    cell.bias_ih.data = before.logit()  # what the sigmoids turn into the numbers drawn
    cell.bias_ih.data[2] = before[2].atanh()
    zero = torch.zeros(1, 1, dtype=torch.double)
    state, new = cell(zero, (zero, numbers["cell"].double()))
    for name, expected in {"next": new, "state": state}.items():
        torch.testing.assert_close(numbers[name].double(), expected.detach(), atol=0.005, rtol=0)


def test_a_question_finds_its_pair():
    drawing = read("recall")
    keys, values, answers, place = recall_batch(1, 4, torch.Generator().manual_seed(3))
    assert matrix(drawing, "keys").tolist() == keys.tolist()
    assert matrix(drawing, "values").tolist() == values[:, :-1].tolist()  # the question has none
    assert torch.equal(matrix(drawing, "weights"), F.one_hot(place, 5).float())
    assert matrix(drawing, "answer").tolist() == [answers.tolist()]


def test_heads_are_cut_by_reshape_and_permute():
    drawing = read("head-axes")
    tokens = matrix(drawing, "tokens")
    T, D = tokens.shape
    assert torch.equal(tokens, torch.arange(T * D).float().reshape(T, D))
    assert torch.equal(matrix(drawing, "cut"), tokens)
    h = len(part(drawing, "right"))
    right = tokens.reshape(T, h, D // h).permute(1, 0, 2)
    for name, expected in {"right": right, "wrong": tokens.reshape(h, T, D // h)}.items():
        drawn = torch.stack([torch.tensor([[float(n) for n in row] for row in grid(g)]) for g in part(drawing, name)])
        assert torch.equal(drawn, expected), name
    colour = {}  # one per token, wherever its numbers are drawn
    for name in ("tokens", "cut", "right", "wrong"):
        for group in part(drawing, name):
            for box, number in zip(group.iter(f"{SVG}rect"), texts(group), strict=True):
                colour.setdefault(int(number) // D, set()).add(box.get("fill"))
    assert all(len(fills) == 1 for fills in colour.values()) and len(set().union(*colour.values())) == T


def test_one_layer_is_cut_into_queries_keys_and_values():
    drawing = read("qkv-cut")
    rows = matrix(drawing, "row")
    T, h = len(rows), len(part(drawing, "q"))
    assert torch.equal(rows, torch.arange(rows.numel()).float().reshape(T, -1))
    cut = rows.reshape(1, T, 3, h, -1).permute(2, 0, 3, 1, 4)[:, 0]  # as SelfAttention does
    for name, heads in zip("qkv", cut, strict=True):
        for group, expected in zip(part(drawing, name), heads, strict=True):
            assert torch.equal(torch.tensor([[float(n) for n in row] for row in grid(group)]), expected), name


def test_windows_become_columns():
    drawing = read("unfold")
    image, kernel = matrix(drawing, "image"), matrix(drawing, "kernel")
    windows = F.unfold(image[None, None], 2)[0]
    assert torch.equal(matrix(drawing, "windows"), windows)
    assert torch.equal(matrix(drawing, "outputs"), kernel @ windows)
    formula, printed = texts(drawing)[-1].removeprefix("first window: ").split(" = ")
    terms = [[float(number) for number in term.split("·")] for term in formula.split(" + ")]
    assert torch.equal(torch.tensor(terms).T, torch.stack([kernel[0], windows[:, 0]]))
    assert float(printed) == (kernel @ windows)[0, 0]


def test_weights_of_three_layers():
    drawing, n = read("three-layers"), 6
    near = torch.arange(n)[:, None].sub(torch.arange(n)).abs() <= 1
    kernel = torch.tensor([[[1.0, 2, 3]]])
    convolution = F.conv1d(torch.eye(n)[:, None], kernel, padding=1)[:, 0].T
    shown = {name: matrix(drawing, name) for name in ("dense", "locally", "convolution")}
    assert torch.equal(shown["convolution"], convolution)
    assert torch.equal(shown["locally"] != 0, near) and (shown["dense"] != 0).all()
    for name, layer in shown.items():
        count = len(layer[layer != 0].unique())
        assert f"{count} weights" in texts(drawing), name
    assert shown["locally"].unique().tolist() == list(range(17)) and len(shown["dense"].unique()) == n * n


def test_pooling_of_a_row_that_moves():
    drawing = read("pool-shift")
    row, moved = (torch.tensor([float(n) for n in texts(group)]) for group in part(drawing, "row"))
    assert torch.equal(moved, row.roll(1))
    for n, pixels in enumerate((row, moved)):
        dense = torch.maximum(pixels, pixels.roll(-1))  # rolls: the last pixel comes back in front
        blurred = (dense.roll(1) + 2 * dense + dense.roll(-1)) / 4
        for kind, pooled in {"max": dense[::2], "blur": blurred[::2]}.items():
            assert [float(number) for number in texts(part(drawing, kind)[n])] == pooled.tolist()


@pytest.mark.parametrize(("side", "stride"), [("one", 1), ("two", 2)])
def test_how_far_two_layers_see(side, stride):
    (half,) = part(read("strided-field"), side)
    pixels = torch.zeros(1, 1, 9, requires_grad=True)
    ones = torch.ones(1, 1, 3)
    F.conv1d(F.conv1d(pixels, ones, stride=stride), ones)[0, 0, 0].backward()
    seen = int((pixels.grad > 0).sum())
    (image,) = part(half, "image")
    assert texts(image) == [str(n + 1) for n in range(seen)] and f"{seen} pixels" in texts(half)


def test_four_look_ups_in_one_sequence():
    drawing = read("look-ups")
    ids, answers = next(look_ups(asked=4, batch=1, seed=0))
    keys, values = ids[0, 1:].T
    drawn = {
        name: [int(n) for group in part(drawing, name) for n in texts(group)] for name in ("keys", "values", "answers")
    }
    assert drawn == {"keys": keys.tolist(), "values": (values - 16).tolist(), "answers": answers[0].tolist()}
    fills = {name: [box.get("fill") for box in part(drawing, name)[0].iter(f"{SVG}rect")] for name in drawn}
    assert [fills["keys"][drawn["keys"].index(k)] for k in range(4)] == fills["answers"]  # one colour per key
    assert fills["values"] == fills["keys"]


def test_shapes_in_an_encoder():
    drawn = [text for text in texts(read("encoder")) if text.startswith("(")]
    B, T, D, K = 2, 5, 8, 3
    net, tokens = Encoder(torch.nn.Linear(4, D), D, K), torch.randn(B, T, 4)
    kept = []
    for module in (net.embed, net.blocks, net.norm, net.head):
        module.register_forward_hook(lambda module, inputs, output: kept.append((inputs[0].shape, output.shape)))
    net(tokens)
    embedded, blocks, normed, (pooled, logits) = kept[0][1], kept[1][1], kept[2][1], kept[3]
    names = {(B, T, D): "(B, T, D)", (B, D): "(B, D)", (B, K): "(B, K)"}
    assert drawn == [names[tuple(shape)] for shape in (embedded, blocks, normed, pooled, logits)]


def test_the_loop_of_training_has_the_order_of_the_chapters():
    cells = json.loads((STATIC.parents[1] / "notebooks" / "06_training.ipynb").read_text(encoding="utf-8"))["cells"]
    (loop,) = ["".join(cell["source"]) for cell in cells if cell["id"] == "bare"]
    calls = [text for text in texts(read("training-loop")) if re.fullmatch(r"\w+\.\w+|\w+_", text)]
    at = [loop.rindex(f"{call}(") for call in calls]
    assert len(calls) == 6 and at == sorted(at)


def test_an_image_is_cut_into_rows():
    drawing = read("patchify")
    image = matrix(drawing, "image")
    assert torch.equal(image, torch.arange(16.0).reshape(4, 4))
    rows = image.reshape(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)  # as patchify does
    assert torch.equal(matrix(drawing, "rows"), rows)
    assert torch.equal(matrix(drawing, "wrong"), image.reshape(4, 4))
    patches = [torch.tensor([[float(n) for n in row] for row in grid(group)]) for group in part(drawing, "patch")]
    assert torch.equal(torch.stack(patches), rows.reshape(4, 2, 2))
    fills = {int(text): set() for text in texts(part(drawing, "image")[0])}
    for name in ("image", "patch", "rows", "wrong"):
        for group in part(drawing, name):
            for box, number in zip(group.iter(f"{SVG}rect"), texts(group), strict=True):
                fills[int(number)].add(box.get("fill"))
    assert [{fill for n in row for fill in fills[int(n)]} for row in rows.tolist()] == [
        fills[0],
        fills[2],
        fills[8],
        fills[10],
    ]


def test_the_maps_of_a_stem_of_convolutions():
    maps = part(read("early-convs"), "map")
    grid_ = torch.empty(1, 3, 224, 224, device="meta")
    shapes = [(3, 224)]
    for width in (24, 48, 96, 192):
        grid_ = torch.nn.Conv2d(grid_.shape[1], width, 3, stride=2, padding=1, device="meta")(grid_)
        shapes.append((width, grid_.shape[-1]))
    said = [texts(group) for group in maps]
    assert said == [[f"{side} × {side}", f"{width}"] for width, side in [*shapes, ("D", shapes[-1][1])]]
    drawn = [float(next(group.iter(f"{SVG}rect")).get("width")) for group in maps]
    assert drawn == sorted(drawn, reverse=True)


def test_the_stages_of_swin():
    drawing, config = read("swin-stages"), SwinConfig()
    with torch.device("meta"):
        grids = Swin(config).pyramid(torch.empty(1, 3, 224, 224))
    said = [text for text in texts(drawing) if not text.startswith("stage")]
    for n, (tokens, stage) in enumerate(zip(grids, part(drawing, "stage"), strict=True)):
        _, H, W, D = tokens.shape
        along = H // config.window_size
        image, window, token = (float(box.get("width")) for box in stage.iter(f"{SVG}rect"))
        assert image / window == pytest.approx(along, rel=1e-3) and window / token == pytest.approx(7, rel=1e-3)
        assert len([*stage.iter(f"{SVG}path")]) == along - 1
        windows = f"{along**2} window" + "s" * (along > 1)
        assert said[4 * n : 4 * n + 4] == [f"{H} × {W}", f"D = {D}", windows, f"{config.depths[n]} blocks"]


def arrows(group: ET.Element, kind: str) -> torch.Tensor:
    """The arrows of a kind, (n, 2), in pixels, y upwards."""
    paths = [path.get("d") for path in group.iter(f"{SVG}path") if path.get("class") == kind]
    ends = torch.tensor([[float(n) for n in re.findall(r"-?[\d.]+", path)] for path in paths])
    return (ends[:, 2:] - ends[:, :2]) * torch.tensor([1.0, -1.0])


def turned(vector: torch.Tensor, pair: int, position: int) -> torch.Tensor:
    """A pair of numbers that rotary attention turns, in queries of width 8."""
    queries = torch.zeros(position + 1, 8)
    queries[:, 2 * pair : 2 * pair + 2] = vector
    return rotate(queries)[position, 2 * pair : 2 * pair + 2]


def test_rotary_positions_turn_pairs():
    drawing = read("rope")
    rates = [float(text.split("· ")[1]) for text in texts(drawing) if text.startswith("m ·")]
    for pair, rate in enumerate(rates):
        angle = torch.atan2(*turned(torch.tensor([1.0, 0.0]), pair, 1).flip(0))
        assert angle.item() == pytest.approx(rate, rel=1e-3)
    for pair in (0, 1):
        (group,) = part(drawing, f"pair-{pair}")
        drawn = arrows(group, "turn")
        expected = torch.stack([turned(drawn[0], pair, m) for m in range(len(drawn))])
        torch.testing.assert_close(drawn, expected, atol=0.3, rtol=0)


def test_rotary_positions_keep_the_dot_product_at_an_offset():
    drawing, products = read("rope"), []
    length = arrows(part(drawing, "pair-0")[0], "turn")[0].norm()
    meetings = part(drawing, "meeting")
    vectors = [[arrows(group, kind)[0] / length for kind in "qk"] for group in meetings]
    positions = [[int(group.get(f"data-{name}")) for name in ("query", "key")] for group in meetings]
    assert positions[0][0] - positions[0][1] == positions[1][0] - positions[1][1]
    for n in (0, 1):  # the later picture is the earlier, turned by the difference of the positions
        moved = turned(vectors[0][n], 0, positions[1][n] - positions[0][n])
        torch.testing.assert_close(vectors[1][n], moved, atol=0.005, rtol=0)
    for group, (q, k) in zip(meetings, vectors, strict=True):
        products.append(float(texts(group)[0].removeprefix("dot product ")))
        assert products[-1] == pytest.approx((q @ k).item(), abs=0.01)
    assert products[0] == products[1]


def test_the_kernel_slides():
    numbers = [float(t) for t in texts(read("sliding-kernel")) if re.fullmatch(r"-?\d", t)]
    image, kernel, answer = (torch.tensor(n) for n in (numbers[:36], numbers[36:45], numbers[45:]))
    found = F.conv2d(image.reshape(1, 1, 6, 6), kernel.reshape(1, 1, 3, 3))
    assert torch.equal(found, answer.reshape(1, 1, 4, 4))


def test_the_tour_names_the_chapters_variants():
    drawing = read("library-tour")
    names = {node.text for node in drawing.iter(f"{SVG}tspan")}
    cells = json.loads((STATIC.parents[1] / "notebooks" / "08_vit_pytorch.ipynb").read_text(encoding="utf-8"))["cells"]
    (build,) = ("".join(cell["source"]) for cell in cells if cell["id"] == "tour-build")
    built = re.findall(r'^    "(.+?)": ', build, flags=re.M)
    assert names == {part for name in built for part in name.split(" and ")} - {"ViT"}
    told: dict[str, str] = {}
    for node in drawing.iter(f"{SVG}tspan"):
        told[node.text] = told.get(node.text, "") + node.tail
    assert f"{build.split('num_register_tokens=')[1][0]} more learned tokens" in told["registers"]
    assert "patch_dropout=0.5" in build and "1/2" in told["patch dropout"]
    assert inspect.signature(MAE).parameters["masking_ratio"].default == 1 - 1 / 4 and "1/4" in told["MAE"]
    shifted = SPT(dim=8, patch_size=2, channels=1).to_patch_tokens[1].normalized_shape[0] // 2**2 - 1
    assert f"{shifted} shifted copies" in told["SPT"]


def test_the_names_of_weights_are_those_of_the_conversion():
    rows = part(read("weights-names"), "row")
    names = [tuple(name.replace(".i.", ".{i}.") for name in texts(row)) for row in rows]
    assert sorted(names) == sorted((theirs, ours) for ours, theirs in VIT_PYTORCH.items())
    plain = dict(ViT(ViTConfig()).named_modules())
    for row, (_, ours) in zip(rows, names, strict=True):
        coloured = next(row.iter(f"{SVG}rect")).get("stroke") == "#D55E00"
        assert coloured == (ours.startswith("patch_embed.norm") and ours not in plain), ours


def spots(group: ET.Element) -> tuple[torch.Tensor, list[str]]:
    """A group's circles: their middles (n, 2) in pixels of the group, x before y, and their colours."""
    circles = list(group.iter(f"{SVG}circle"))
    corner = [float(group.get(f"data-{axis}")) for axis in "xy"]
    middles = [[float(circle.get(f"c{axis}")) for axis in "xy"] for circle in circles]
    return torch.tensor(middles) - torch.tensor(corner), [circle.get("fill") for circle in circles]


def test_who_sees_whom_in_four_layers():
    drawing, seen = read("points-meet"), {}
    for kind in ("mlp", "global", "local", "splat"):
        (group,) = part(drawing, kind)
        middles, fills = spots(group)
        (ringed,) = [n for n, circle in enumerate(group.iter(f"{SVG}circle")) if circle.get("r") == "6"]
        seen[kind] = {n for n, fill in enumerate(fills) if fill == fills[ringed]}
    cells = bilinear((middles - 12.5) / 62.5 - 1, 6)  # 6 x 6 cells of 25 pixels
    shares = (cells @ cells[ringed] > 0).nonzero()[:, 0]
    near = nearest(torch.cat([middles, torch.zeros(len(middles), 1)], dim=1)[None], 4)[0, ringed]
    assert seen == {
        "mlp": {ringed}, "global": {*range(len(middles))}, "local": {*near.tolist()}, "splat": {*shares.tolist()}
    }  # fmt: skip
    counts = [text for text in texts(drawing) if text[0].isdigit()]
    assert counts == [f"{len(middles)} points", f"{len(near)} nearest", f"{len(shares)} share cells"]


def test_two_points_share_a_cell():
    drawing = read("splat-slice")
    (before,), (after,) = part(drawing, "splat"), part(drawing, "slice")
    weights = bilinear((spots(before)[0].flip(1) - 30) / 60 - 1, 3)  # rows before columns; cells of 60 pixels
    values = torch.tensor([[float(text)] for text in texts(before)])
    cells = splat(values, weights)
    assert torch.equal(matrix(drawing, "cells"), cells.reshape(3, 3))
    assert torch.equal(torch.tensor([[float(text)] for text in texts(after)]), weights @ cells)
    assert torch.equal(spots(after)[0], spots(before)[0])


def test_shapes_in_a_network_for_points():
    B, N, D, wide, K = 2, 5, 8, 16, 3
    net, points, shapes = PointClassifier(PointMLP, D, K, pool_dim=wide), torch.randn(B, N, 3), []
    for module in (net.embed, net.layers[-1], net.widen, net.head):
        module.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    net.head.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    net(points)
    letters = {B: "B", N: "N", 3: "3", D: "D", wide: "D′"}
    expected = [f"({', '.join(letters[n] for n in shape)})" for shape in (points.shape, *shapes[:-1])]
    drawing = read("point-frame")
    assert [text for text in texts(drawing) if text.startswith("(")] == [*expected, "(B, K)"]
    assert shapes[-1] == (B, K) and f"{len(net.layers)} times" in texts(drawing)


def test_a_masked_autoencoder_hides_shuffles_and_restores():
    drawing = read("mae")
    shuffled = [int(text) for text in texts(part(drawing, "visible")[0])]
    noise = torch.ones(1, 16)
    noise[0, shuffled] = torch.arange(4) / 8
    ratio = inspect.signature(MaskedAutoencoder).parameters["ratio"].default
    keep, restore, hidden = random_masking(noise, ratio)
    assert keep[0].tolist() == shuffled
    gaps = torch.cat([keep[:, :, None], torch.full((1, 12, 1), -1)], dim=1)
    back = ["m" if n < 0 else str(n) for n in pick_tokens(gaps, restore).flatten().tolist()]
    assert texts(part(drawing, "restored")[0]) == back
    counted = [text for text in texts(part(drawing, "loss")[0]) if text]
    assert counted == [str(n) for n in hidden[0].nonzero().flatten().tolist()]
    coloured = [box.get("stroke") == "#0072B2" for box in part(drawing, "image")[0].iter(f"{SVG}rect")]
    assert coloured == (~hidden[0]).tolist()


def test_the_numbers_of_dino_are_its_defaults():
    drawn = " ".join(read("dino").itertext())
    defaults = {name: p.default for name, p in inspect.signature(DINO).parameters.items()}
    assert re.findall(r"temperature ([\d.]+)", " ".join(texts(read("dino")))) == [
        str(defaults["student_temp"]),
        str(defaults["teacher_temp"]),
    ]
    momentum = defaults["momentum"]
    assert f"{momentum} × teacher" in drawn and f"{1 - momentum:.2f} × student" in drawn
    large, views = Views().large, len(Views()(torch.rand(1, 1, 28, 28)))
    pairs = sum(g != v for g in range(large) for v in range(views))
    assert f"{views} views: {large} large" in drawn and f"the {pairs} pairs" in drawn


def test_an_adapter_is_drawn_to_scale():
    drawing, r = read("lora"), 4
    layer = timm.create_model("vit_tiny_patch16_224", depth=1).blocks[0].attn.qkv
    out, width = layer.weight.shape
    expected = {"W": (out, width), "B": (out, r), "A": (r, width)}
    for name, shape in expected.items():
        ((box,),) = (list(group.iter(f"{SVG}rect")) for group in part(drawing, name))
        assert (2 * int(box.get("height")), 2 * int(box.get("width"))) == shape
        assert f"{shape[0]} × {shape[1]}" in texts(drawing)
    both = r * (out + width)
    told = {f"{layer.weight.numel():,} numbers", f"{both:,} numbers in B and A"}
    assert told <= set(texts(drawing))
    assert texts(drawing)[-1] == f"{100 * both / layer.weight.numel():.1f} % of those in W"
