"""Numbers that pages read from files: what the studies measured, and what papers print.

A study leaves rows in results/NAME.csv, and results/NAME.json says when and with what. Numbers from papers are
in book/papers/NAME.csv, each row with the paper's key in book/references.bib and the table it is from.
"""

import csv
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = (HERE.parent / "results", HERE / "_results")  # in a clone; in an installed package
PAPERS = (HERE.parent / "book" / "papers", HERE / "_papers")


def find(file: str) -> Path:
    """Find a results file. Raises FileNotFoundError that names the study which writes it."""
    for folder in FOLDERS:
        if (folder / file).is_file():
            return folder / file
    study = file.partition(".")[0]
    raise FileNotFoundError(f"no results/{file}; in a clone of the book, `python -m studies.{study}` writes it")


def number(text: str) -> int | float | str:
    """Read a field as int, else float, else leave it text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def read_rows(path: Path) -> list[dict]:
    """Read a CSV file: one dict per row, numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def read(study: str) -> list[dict]:
    """Return the runs of a study, one dict per run, numbers as numbers. `read("training")` is results/training.csv."""
    return read_rows(find(f"{study}.csv"))


def about(study: str) -> dict:
    """Return what is in results/STUDY.json: configuration, versions, device, commit, seconds."""
    return json.loads(find(f"{study}.json").read_text(encoding="utf-8"))


def paper(table: str) -> list[dict]:
    """Return numbers that papers print, one dict per row: `paper("imagenet_top1")` is book/papers/imagenet_top1.csv.

    Each row has the paper's `key` in book/references.bib and the `table` of the paper that it is from.
    Raises FileNotFoundError for an unknown name; the message lists those there are.
    """
    tables = {file.stem: file for folder in reversed(PAPERS) for file in sorted(folder.glob("*.csv"))}
    if table not in tables:
        raise FileNotFoundError(f"no table {table!r} of papers; there are: {', '.join(sorted(tables)) or 'none'}")
    return read_rows(tables[table])
