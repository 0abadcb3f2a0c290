"""The tables of chapters and exercises in README.md, book/preface.md and book/solutions.md, made from `_toc.yml`.

python tools/tables.py            write them
python tools/tables.py --check    say which are out of date (exit 1 if any)
                         --no-drafts    and which chapters are drafts

A table stands between `<!-- NAME: made by tools/tables.py -->` and `<!-- end -->`. Titles are the chapters' first
headings. What a reader will be able to do is said under `meta: able` of `_toc.yml`, else by the chapter's promise;
`meta: planned` holds the chapters to come. Exercises are those of the pages in book/solutions.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

import chapter_file
import notebook_file
import solutions

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"

OPENING = re.compile(r"# ([^\n]+)\n\n(?:After this chapter you can )?(\S.*?)\s*(?:\n\n|\Z)", flags=re.S)


@dataclass
class Row:
    """A chapter in a table; one that is planned has no name yet."""

    number: int
    title: str
    able: str
    name: str = ""
    draft: bool = False

    @property
    def mark(self) -> str:
        return " *(draft)*" if self.draft else "" if self.name else " *(in preparation)*"


def chapters(root: Path) -> list[Row]:
    """The chapters of `_toc.yml`, in its order, and then the planned ones that nobody has written yet."""
    told = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")).get("meta", {})
    rows = []
    for entry in chapter_file.toc_files(root):
        if entry.startswith("notebooks/"):
            chapter = chapter_file.Chapter.read(root / f"{entry}.ipynb", root)
            opening = OPENING.match("".join(notebook_file.text(cell["source"]) for cell in chapter.cells[:1]))
            if not opening:
                raise ValueError(f"{chapter.path.name}: expected a title, '# ...', and under it the promise")
            title, promise = opening[1].strip(), " ".join(opening[2].split()).rstrip(".")
            able = told.get("able", {}).get(chapter.path.stem, "still being written" if "@@" in promise else promise)
            rows.append(Row(chapter.number, title, able, chapter.path.stem, chapter.draft))
    written = {row.title for row in rows}
    planned = [pair for pair in (told.get("planned") or {}).items() if pair[0] not in written]
    return rows + [Row(number, *pair) for number, pair in enumerate(planned, len(rows) + 1)]


def readme(root: Path) -> str:
    """Number, title, and where to run it; which are still to come."""
    branch = chapter_file.config(root)["repository"]["branch"]
    book = chapter_file.book_url(root).removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{book}/blob/{branch}/notebooks"
    rows = chapters(root)
    lines = [f"| {r.number} | {r.title}{r.mark} | {BADGE}({colab}/{r.name}.ipynb) |" for r in rows if r.name]
    table = "\n".join(["| no. | chapter | run it |", "|---|---|---|", *lines])
    coming = [row.number for row in rows if not row.name]
    if coming:
        joined = "to" if coming[2:] else "and"
        several = f"Chapters {coming[0]} {joined} {coming[-1]} are" if coming[1:] else f"Chapter {coming[0]} is"
        table += f"\n\n{several} in preparation; the [preface](book/preface.md) lists them all."
    return table


def preface(root: Path) -> str:
    """Number, title with a link, and what a reader will be able to do."""
    lines = ["| no. | chapter | what you will be able to do |", "|---|---|---|"]
    for row in chapters(root):
        title = f"[{row.title}](../notebooks/{row.name}.ipynb)" if row.name else row.title
        lines.append(f"| {row.number} | {title}{row.mark} | {row.able} |")
    return "\n".join(lines)


def exercises(root: Path) -> str:
    """Number with a link, level, what it trains, and its solution."""
    lines = ["| no. | level | what it trains | solution |", "|---|---|---|---|"]
    for entry in chapter_file.toc_files(root):
        if entry.startswith("book/solutions/"):
            page = solutions.read(root / f"{entry}.md")
            for number, answer in page.solutions.items():
                exercise = f"[{number}](../notebooks/{page.path.stem}.ipynb#exercises)"
                solution = f"[{answer.name}](solutions/{page.path.name}#{answer.anchor})"
                lines.append(f"| {exercise} | {answer.level} | {answer.trains} | {solution} |")
    return "\n".join(lines)


TABLES = {"README.md": readme, "book/preface.md": preface, "book/solutions.md": exercises}


def fresh(root: Path) -> dict[Path, str]:
    """The three pages as they should be. Raises ValueError for a page without the two marks of a table."""
    pages = {}
    for file, make in TABLES.items():
        source = (root / file).read_text(encoding="utf-8")
        whole = re.compile(rf"(<!-- {make.__name__}: made by tools/tables.py -->\n\n).*?(\n\n<!-- end -->)", re.S)
        if len(whole.findall(source)) != 1:
            raise ValueError(f"{file}: expected one table, below '<!-- {make.__name__}: made by tools/tables.py -->'")
        table = make(root)
        pages[root / file] = whole.sub(lambda marks, table=table: marks[1] + table + marks[2], source)
    return pages


def write(root: Path = chapter_file.ROOT) -> list[str]:
    """Write the tables; say which files changed."""
    stale = {path: text for path, text in fresh(root).items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return [str(path.relative_to(root)) for path in stale]


def faults(root: Path = chapter_file.ROOT, drafts: bool = True) -> list[str]:
    """Tables that are out of date and, unless `drafts` are let through, chapters that are not finished."""
    wrong = [
        f"{path.relative_to(root)}: its table is out of date: run `python tools/tables.py`"
        for path, text in fresh(root).items()
        if path.read_text(encoding="utf-8") != text
    ]
    unfinished = [row for row in chapters(root) if row.draft and not drafts]
    return wrong + [f"notebooks/{row.name}.ipynb is a draft: a published book has none" for row in unfinished]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table is out of date")
    parser.add_argument("--no-drafts", action="store_true", help="as --check, and exit 1 where a chapter is a draft")
    given = parser.parse_args(arguments)
    try:
        if given.check or given.no_drafts:
            wrong = faults(drafts=not given.no_drafts)
            print("\n".join(wrong) or "The tables are those of _toc.yml.", file=sys.stderr if wrong else sys.stdout)
            return bool(wrong)
        print(f"written: {', '.join(write()) or 'nothing, all are true already'}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
