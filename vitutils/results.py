"""What the studies measured: rows of results/NAME.csv, and results/NAME.json, which says who, when and with what."""

import csv
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = (HERE.parent / "results", HERE / "_results")  # in a clone; in an installed package


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


def read(study: str) -> list[dict]:
    """Return the runs of a study, one dict a run, numbers as numbers. `read("training")` is results/training.csv."""
    with find(f"{study}.csv").open(newline="") as file:
        return [{name: number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def about(study: str) -> dict:
    """Return what stands in results/STUDY.json: configuration, versions, device, commit, seconds."""
    return json.loads(find(f"{study}.json").read_text())
