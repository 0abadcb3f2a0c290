"""Begin a chapter: a notebook and a page of solutions that pass every check, and their entries.

    make chapter NAME=18_registers TITLE="Registers"

The text comes from tools/skeleton; what its author has to fill in begins with @@. The chapter is a draft until the
paragraph *Draft.* is taken out of its opening: until then it may be short, hold @@ and have no measured time, and
`tools/tables.py --no-drafts` keeps it from being published. All files are written, or none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from myst_nb.core.read import read_myst_markdown_notebook

import chapter_file
import notebook_file
import notebook_rules as rules
import tables

SKELETON = Path(__file__).parent / "skeleton"
NAME = re.compile(r"\d\d_[a-z][a-z0-9]*(_[a-z0-9]+)*")


class Refused(Exception):
    """No chapter can be made of this; the message says why."""


def last(root: Path) -> str:
    """The name of the chapter with the highest number in `_toc.yml`."""
    names = [Path(entry).stem for entry in chapter_file.toc_files(root) if re.match(r"notebooks/\d+_", entry)]
    if not names:
        raise Refused("There is no chapter in _toc.yml that a new one could follow.")
    return max(names, key=lambda name: int(name.partition("_")[0]))


def check_given(root: Path, name: str, title: str) -> None:
    """Raise Refused for a name that is no chapter's, exists, or has not the next number; for a title that is none."""
    number = int(last(root).partition("_")[0]) + 1
    example = f'make chapter NAME={number:02}_registers TITLE="Registers"'
    if not NAME.fullmatch(name):
        given = f"Not a chapter's name: {name!r}." if name else "Which chapter?"
        raise Refused(f"{given} Two digits, then small letters and digits in words joined by _:\n  {example}")
    there = [file for file in (f"notebooks/{name}.ipynb", f"book/solutions/{name}.md") if (root / file).exists()]
    there += [f"_toc.yml: {entry}" for entry in chapter_file.toc_files(root) if Path(entry).stem == name]
    if there:
        raise Refused(f"{name} exists already: {', '.join(there)}.")
    if int(name[:2]) != number:
        wrong = "taken" if 0 < int(name[:2]) < number else "not the next one"
        raise Refused(f"The number {name[:2]} is {wrong}. Chapters are numbered without a gap:\n  {example}")
    if not re.match(r"\w", title) or not title.isprintable() or re.search(r"[][|<>*_`$\\{}#@]", title):
        raise Refused(f"Not a title: {title!r}. One line of plain words, without any of [ ] | < > * _ ` $ \\ {{ }} # @")
    if title in [row.title for row in tables.chapters(root) if row.name]:
        raise Refused(f"There is a chapter with the title {title!r} already.")


def notebook(source: str, setup: str) -> dict:
    """The skeleton, a text notebook whose cells carry their ids as metadata, as it is stored."""
    cells = read_myst_markdown_notebook(source, add_source_map=False).cells
    for cell in cells:
        cell["id"] = cell["metadata"].pop("id")
        cell["source"] = setup if cell["id"] == "setup" else cell["source"]
    return notebook_file.normalise({"cells": cells})


def with_entry(toc: str, after: str, entry: str) -> str:
    """The text of `_toc.yml` with an entry below another, at its depth. Raises Refused where that one is missing."""
    line = re.compile(rf"^( *- file: ){re.escape(after)}(\.\w+)?[ \t]*(#.*)?\n", flags=re.M)
    if len(line.findall(toc)) != 1:
        raise Refused(f"_toc.yml: expected one line '- file: {after}', to put {entry} below it.")
    return line.sub(lambda found: f"{found[0]}{found[1]}{entry}\n", toc)


def no_longer_planned(toc: str, title: str, previous: str, name: str) -> str:
    """The text of `_toc.yml` in which what a planned chapter promised is the promise of the chapter that is there."""
    planned = re.search(rf"""^    ["']?{re.escape(title)}["']?: (.*\n)""", toc, flags=re.M)
    if not planned:
        return toc
    toc = toc.replace(planned[0], "")
    promise = rf"\g<0>    {name}: " + planned[1].replace("\\", r"\\")
    with_one, found = re.subn(rf"^    {re.escape(previous)}: .*\n", promise, toc, count=1, flags=re.M)
    return with_one if found else re.sub(r"^  able:\n", promise, toc, count=1, flags=re.M)


def lead_on(path: Path, name: str) -> str:
    """The chapter before, whose last paragraph leads to the new one."""
    chapter = chapter_file.Chapter.read(path)
    link = f"*Next.* [Chapter {int(name[:2])}](./{name}.ipynb)"
    for cell in reversed(chapter.markdown):
        source = notebook_file.text(cell["source"])
        told = re.search(r"^\*Next\.\* .* is in preparation(: .+)\Z", source, flags=re.M | re.S)
        following = link + (told[1] if told else " goes on from here.")
        new = re.sub(r"^\*Next\.\* .*\Z", lambda _, line=following: line, source, flags=re.M | re.S)
        if new != source:
            cell["source"] = new.splitlines(keepends=True)
            return notebook_file.dumps(notebook_file.normalise(chapter.notebook))
    raise Refused(f"{path.name}: expected a last paragraph that begins with '*Next.* '")


@contextlib.contextmanager
def all_or_none(paths: Iterable[Path]) -> Iterator[None]:
    """Put the files back as they were if anything goes wrong."""
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        raise


def make(root: Path, name: str, title: str = "") -> list[str]:
    """Write a chapter and its entries; say which files are new or changed. Raises Refused, and nothing is written."""
    title = " ".join(title.split()) or name[3:].replace("_", " ").capitalize()
    check_given(root, name, title)
    previous = last(root)
    words = {"NUMBER": str(int(name[:2])), "NAME": name, "TITLE": title}
    words |= {"PREVIOUS": previous, "PREVIOUS_NUMBER": str(int(name[:2]) - 1)}

    def filled(file: str) -> str:
        return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], (SKELETON / file).read_text(encoding="utf-8"))

    fresh = notebook(filled("chapter.md"), rules.SETUP.format(url=chapter_file.book_url(root)))
    checks = [notebook_file.text(cell["source"]) for cell in fresh["cells"] if cell["id"].endswith("-check")]
    words |= {f"CHECK_{number}": check for number, check in enumerate(checks[-3:], 1)}
    path, before, toc = root / f"notebooks/{name}.ipynb", root / f"notebooks/{previous}.ipynb", root / "_toc.yml"
    entries = with_entry(toc.read_text(encoding="utf-8"), f"notebooks/{previous}", f"notebooks/{name}")
    entries = with_entry(entries, f"book/solutions/{previous}", f"book/solutions/{name}")
    entries = no_longer_planned(entries, title, previous, name)
    new = {path: notebook_file.dumps(fresh), root / f"book/solutions/{name}.md": filled("solutions.md")}
    new |= {before: lead_on(before, name), toc: entries}
    with all_or_none([*new, *(root / file for file in tables.TABLES)]):
        for file, content in new.items():
            file.write_text(content, encoding="utf-8", newline="\n")
        changed = tables.write(root)
        if broken := rules.check(path, root):
            raise Refused("\n".join(line for wrong in broken.values() for line in wrong))
    return [*(str(file.relative_to(root)) for file in new), *changed]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default=os.environ.get("NAME", ""), help="as in 18_registers")
    parser.add_argument("--title", default=os.environ.get("TITLE", ""), help="else made from the name")
    given = parser.parse_args(arguments)
    try:
        written = make(chapter_file.ROOT, given.name, given.title)
    except (Refused, OSError, ValueError) as refused:
        print(f"{refused}\nNothing was changed.", file=sys.stderr)
        return 2
    print("\n".join(f"  {file}" for file in written))
    print("A draft. Fill in what begins with @@ in the first two of these; CONTRIBUTING.md, Add a chapter, says how.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
