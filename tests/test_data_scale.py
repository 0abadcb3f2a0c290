"""What chapter 7 brings: the stem of convolutions, numbers that papers print, curves with the spread of their runs."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
import torch.nn.functional as F

matplotlib.use("Agg")

from vitutils import check, plot, results
from vitutils.models import ConvStem, PatchEmbed, ViT, ViTConfig

ROOT = Path(__file__).resolve().parent.parent


# --- the stem ---


@pytest.mark.parametrize(("patch_size", "side", "width"), [(2, 8, 16), (4, 20, 16), (8, 32, 32), (16, 64, 48)])
def test_the_stem_gives_the_tokens_that_patches_give(patch_size, side, width):
    images = torch.randn(2, 3, side, 2 * side)
    tokens = ConvStem(patch_size, 3, width)(images)
    assert tokens.shape == PatchEmbed(patch_size, 3, width)(images).shape
    assert tokens.shape == (2, 2 * (side // patch_size) ** 2, width)


def test_the_stem_is_the_convolutions_it_names():
    torch.manual_seed(0)
    stem, images = ConvStem(8, 1, 32), torch.randn(3, 1, 32, 32)
    weights = [p for p in stem.parameters() if p.ndim == 4]
    assert [tuple(w.shape) for w in weights] == [(8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (32, 32, 1, 1)]
    norms, last_bias = 2 * (8 + 16 + 32), 32
    assert check.count_parameters(stem) == sum(w.numel() for w in weights) + norms + last_bias
    grid = images
    for weight in weights[:3]:
        grid = F.conv2d(grid, weight, stride=2, padding=1)  # no bias
        mean, var = grid.mean(dim=(0, 2, 3), keepdim=True), grid.var(dim=(0, 2, 3), keepdim=True, correction=0)
        grid = ((grid - mean) / (var + 1e-5).sqrt()).clamp(min=0)  # fresh BatchNorm in training, then ReLU
    grid = F.conv2d(grid, weights[3], stem.proj.bias)
    rows = [grid[:, :, y, x] for y in range(4) for x in range(4)]  # row by row, as patches are
    check.check_close(stem(images), torch.stack(rows, dim=1), tol=1e-5)


@pytest.mark.parametrize("patch_size", [0, 1, 3, 7, 12])
def test_the_stem_refuses_a_side_that_halving_does_not_reach(patch_size):
    with pytest.raises(ValueError, match=rf"power of two, got {patch_size}$"):
        ConvStem(patch_size, 1, 32)


def test_a_vit_with_a_stem_trains_every_parameter():
    config = ViTConfig(img_size=32, patch_size=8, in_chans=1, num_classes=5, embed_dim=32, depth=2, num_heads=4)
    model = ViT(replace(config, global_pool="avg"), ConvStem)
    torch.nn.init.normal_(model.head.weight)  # at zero it would let no gradient through
    F.cross_entropy(model(torch.randn(4, 1, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# --- numbers from papers ---


def test_papers_numbers_carry_a_key_of_the_bibliography():
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.M))
    tables = sorted((ROOT / "book" / "papers").glob("*.csv"))
    assert tables
    for table in tables:
        rows = results.paper(table.stem)
        assert rows and {row["key"] for row in rows} <= keys
        assert all(row["table"] for row in rows)


def test_table_5_of_the_vit_paper():
    rows = [row for row in results.paper("imagenet_top1") if row["key"] == "dosovitskiy2021"]
    top1 = {(row["net"], row["pretraining"]): row["top1"] for row in rows}
    assert len(top1) == len(rows) == 14 and ("ViT-H/14", "ImageNet") not in top1
    assert top1["ViT-B/16", "ImageNet"] == 77.91 and top1["ViT-H/14", "JFT-300M"] == 88.04
    assert {row["images"] for row in rows} == {1_300_000, 14_000_000, 303_000_000}


def test_an_unknown_table_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"no table 'nonesuch' of papers; there are: .*imagenet_top1"):
        results.paper("nonesuch")


def test_papers_are_found_in_an_installed_package(monkeypatch, tmp_path):
    installed = tmp_path / "_papers"
    installed.mkdir()
    (installed / "demo.csv").write_text("key,table,top1\nka2020,2,81.5\n", encoding="utf-8")
    monkeypatch.setattr(results, "PAPERS", (tmp_path / "book" / "papers", installed))
    assert results.paper("demo") == [{"key": "ka2020", "table": 2, "top1": 81.5}]


def test_papers_travel_with_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^packages = \[[^]]*"vitutils\._papers"', project, flags=re.M)
    assert '"vitutils._papers" = "book/papers"' in project and '"vitutils._papers" = ["*.csv"]' in project


# --- curves with the spread of their runs ---


def bars(ax):
    """Each curve of a panel: its points, and the ends of its bars (None where it has none)."""
    found = []
    for line, _, sticks in (container.lines for container in ax.containers):
        ends = [segment[:, 1].tolist() for segment in sticks[0].get_segments()] if sticks else None
        found.append((line.get_xdata().tolist(), line.get_ydata().tolist(), ends))
    return found


def test_mean_lines_draws_means_and_one_std_either_way():
    ax = plot.mean_lines({"": {"a": {100: [1, 3], 10: [4, 5, 6]}}}, xlabel="x", ylabel="y").axes[0]
    [(x, y, ends)] = bars(ax)
    assert x == [10, 100] and y == [5, 2]
    assert ends == [pytest.approx([4, 6]), pytest.approx([2 - 2**0.5, 2 + 2**0.5])]
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["10", "100"]


def test_mean_lines_sets_bars_apart_and_leaves_single_runs_where_they_are():
    several = plot.mean_lines({"": {"a": {10: [1, 2]}, "b": {10: [1, 2]}}}, xlabel="x", ylabel="y").axes[0]
    (left,), (right,) = (x for x, _, _ in bars(several))
    assert left < 10 < right < 11
    single = plot.mean_lines({"": {"a": {10: [1]}, "b": {10: [2]}}}, xlabel="x", ylabel="y").axes[0]
    assert [x for x, _, _ in bars(single)] == [[10], [10]] and [e for _, _, e in bars(single)] == [None, None]


def test_mean_lines_gives_a_name_its_look_in_every_panel_and_one_legend():
    parts = {"one": {"a": {1: [1]}, "b": {1: [2]}}, "two": {"b": {1: [3]}, "c": {1: [4]}}, "three": {"a": {1: [0]}}}
    figure = plot.mean_lines(parts, xlabel="x", ylabel="y", looks={"b": 5}, reference=0)
    marks = [[container.lines[0].get_marker() for container in ax.containers] for ax in figure.axes[:3]]
    a, b, c = (plot.look(n)["marker"] for n in (0, 5, 2))
    assert marks == [[a, b], [b, c], [a]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert len({ax.get_ylim() for ax in figure.axes[:3]}) == 1
    apart = plot.mean_lines(parts, xlabel="x", ylabel="y", share_y=False)
    assert len({ax.get_ylim() for ax in apart.axes[:3]}) == 3


def test_short_numbers():
    numbers = (0.5, 300, 1_000, 2_500, 60_000, 1_300_000, 303_000_000)
    assert [plot.short_number(n) for n in numbers] == ["0.5", "300", "1k", "2.5k", "60k", "1.3M", "303M"]
