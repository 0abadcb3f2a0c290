"""The results page: every number from a file, every file shown, every table a table, and the sentences hold.

The page's cells are run here, in this process, as the build runs them in a kernel.
"""

import ast
import csv
import os
import re
import statistics
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

from docutils import nodes
from docutils.core import publish_doctree
from matplotlib.figure import Figure
from myst_parser.parsers.docutils_ import Parser

from vitutils import results

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "results.md"
PAPERS = sorted((ROOT / "book" / "papers").glob("*.csv"))
CELL = re.compile(r"^```\{code-cell\} python\n(?:---\n.*?^---\n)?(.*?)^```$", flags=re.M | re.S)
LISTINGS = ("checkpoints", "deit_teachers", "dino", "swin_backbones")  # a line a row; the others are rows by columns
NOT_SHOWN = {"key", "table", "url", "name", "library", "family"}  # the key and the table stand in captions
# What a file calls something, and what the page calls it.
WORDS = {
    "imagenet": "ImageNet",
    "imagenet_real": "ReaL",
    "vtab": "VTAB",
    "tpuv3_core_days": "TPUv3 core-days",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "pets": "Oxford-IIIT Pets",
    "flowers102": "Oxford Flowers-102",
}


def run(source: str) -> list:
    """What the page's cells show, in order; an assertion of the page that does not hold is raised."""
    shown, names = [], {}
    for number, code in enumerate(CELL.findall(source)):
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    return shown


def read_table(markdown: str) -> nodes.table:
    """The table that MyST makes of an output; whatever else it makes of it is an error."""
    settings = {"myst_enable_extensions": ["colon_fence"], "report_level": 5, "warning_stream": sys.stderr}
    tree = publish_doctree(markdown, parser=Parser(), settings_overrides=settings)
    assert [type(child) for child in tree.children] == [nodes.table], tree.astext()[:300]
    tree.children[0].markdown = markdown
    return tree.children[0]


@pytest.fixture(scope="module")
def source() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(source) -> list:
    before = os.getcwd()
    os.chdir(PAGE.parent)  # as the build does
    try:
        return run(source)
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def tables(shown) -> list[nodes.table]:
    return [read_table(output.data) for output in shown if not isinstance(output, Figure)]


def caption(table: nodes.table) -> str:
    return " ".join(table.next_node(nodes.title).astext().split())


def grid(table: nodes.table) -> dict[tuple[str, str], str]:
    """{(first column, heading): cell}."""
    head, *body = ([entry.astext() for entry in row.findall(nodes.entry)] for row in table.findall(nodes.row))
    return {(row[0], above): cell for row in body for above, cell in zip(head[1:], row[1:], strict=True)}


def records(table: nodes.table, listing: bool) -> list[str]:
    """What belongs together: a line, or a cell with what stands before and above it; each with the caption."""
    head, *body = ([entry.astext() for entry in row.findall(nodes.entry)] for row in table.findall(nodes.row))
    if listing:
        return [" | ".join([caption(table), *row]) for row in body]
    return [" | ".join([caption(table), row[0], above, cell])
            for row in body for above, cell in zip(head[1:], row[1:], strict=True)]


def holds(record: str, row: dict) -> bool:
    """Whether a record has every word and number of a file's row, in one of the ways to write it."""
    numbers = {n.replace(",", "") for n in re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", record)}
    for name, value in row.items():
        if name in NOT_SHOWN or value == "":
            continue
        if isinstance(value, str) and WORDS.get(value, value) not in record:
            return False
        if not isinstance(value, str) and not {f"{value}", f"{value:.2f}", f"{value:.1f}"} & numbers:
            return False
    return True


def test_every_cell_shows_one_table_or_one_figure(shown, source):
    assert len(shown) >= 20 and sum(isinstance(output, Figure) for output in shown) == 3
    assert source.count("    alt: >-") == source.count("  figure:\n") == 3


def test_every_table_has_a_caption_and_a_name_above_every_column(tables):
    for table in tables:
        assert len(caption(table).split()) > 6
        head = next(table.findall(nodes.row))
        assert all(entry.astext().strip() for entry in head.findall(nodes.entry)), caption(table)
        widths = {len(list(row.findall(nodes.entry))) for row in table.findall(nodes.row)}
        assert len(widths) == 1, caption(table)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_file_of_a_paper_is_read_and_shown_to_the_last_number(path, source, tables):
    assert f'paper("{path.stem}")' in source
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    for row in results.read_rows(path):
        assert re.search(rf"^@\w+\{{{row['key']},", bibliography, flags=re.M)
        if path.stem == "imagenet_top1" and row["key"] == "touvron2021":
            continue  # drawn; shown from the two files of that paper
        cited = [table for table in tables if f"#{row['key']})" in table.markdown]
        found = [text for table in cited for text in records(table, path.stem in LISTINGS) if holds(text, row)]
        assert found, row
        if path.stem != "checkpoints":
            assert any(re.search(rf"tables? (\S+ and )?{row['table']}\b", text) for text in found), row


def test_no_number_of_a_paper_is_typed_on_the_page(source):
    printed = set()
    for path in PAPERS:
        with path.open(newline="", encoding="utf-8") as file:
            printed |= {text for row in csv.DictReader(file) for text in row.values()}
    typed = set(re.findall(r"(?<![\w.])\d+\.\d+|\d{1,3}(?:,\d{3})+|\d{5,}", source))
    assert not typed & printed
    assert not {number for number in typed if "," in number or len(number) > 4}


def test_papers_that_print_one_number_agree():
    """DeiT-B, ViT-B/16 and DINO's S/16 stand in more than one file, as they stand in more than one table."""
    top1 = {(r["net"], r["pretraining"], r["resolution"]): r["top1"] for r in results.paper("imagenet_top1")}
    deit = {(r["net"], r["resolution"]): r["top1"] for r in results.paper("deit_distillation") if r["method"] == "none"}
    teachers = {r["teacher"]: r["teacher_top1"] for r in results.paper("deit_teachers")}
    swin = {(r["net"], r["pretraining"], r["resolution"]): r["top1"] for r in results.paper("swin_backbones")}
    assert deit["DeiT-B", 224] == top1["DeiT-B/16", "ImageNet", 224] == teachers["DeiT-B"]
    assert deit["DeiT-B", 224] == swin["DeiT-B", "ImageNet-1k", 224]
    for size in (4, 8, 16):
        assert teachers[f"RegNetY-{size}GF"] == swin[f"RegNetY-{size}GF", "ImageNet-1k", 224]
    linear = {r["net"]: r["linear"] for r in results.paper("dino") if r["method"] == "DINO"}
    assert linear["ViT-S/16"] == next(r["top1"] for r in results.paper("checkpoints") if r["measure"] == "linear probe")


def test_every_study_that_ended_is_shown_with_seeds_device_and_date(tables):
    captions = " ".join(map(caption, tables))
    for path in sorted((ROOT / "results").glob("*.json")):
        about = results.about(path.stem)
        if not about["finished"]:
            continue
        device = "CPU" if about["device"] == "cpu" else about["device"]
        said = rf"\d (seed|repeat)s?; {device},[^;]*; ended {about['finished'][:10]} \(studies/{path.stem}\.py\)"
        assert re.search(said, captions), f"results.md does not show results/{path.stem}.csv, or not when it ended"


def test_measured_numbers_are_those_of_the_rows(tables):
    found = {caption(table): grid(table) for table in tables}
    pocket = [row["accuracy"] for row in results.read("pocket") if row["part"] == "main"]
    cells = next(cells for text, cells in found.items() if "studies/pocket.py" in text)
    spread = f"{100 * statistics.mean(pocket):.1f} ±\xa0{100 * statistics.stdev(pocket):.1f}"
    assert list(cells.values()) == [spread] and len(pocket) == 3


def test_chapters_that_a_table_speaks_of_are_linked(source):
    half = source.partition("## Measured here")[2]
    for part in re.split(r"^### ", half, flags=re.M)[1:]:
        assert re.search(r"\]\((\.\./notebooks/\d\d_\w+\.ipynb|[\w-]+\.md)\)", part), part[:60]
