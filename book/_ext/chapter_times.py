"""How long chapters take: the line that each of them prints first, the record of measured times, words for minutes.

The record is book/times.csv. `tools/notebooks.py run --record` writes its rows, `tools/notebooks.py times` the
*Time* paragraph of every chapter; the page "Status of this build" shows it.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

FIELDS = ("chapter", "scale", "device", "data", "seconds", "day", "python", "torch", "note")
KEY = FIELDS[:4]  # what tells two measurements apart: a new one takes the place of an old one
SCALES = ("smoke", "cpu", "gpu")
# What vitutils.setup prints; its test compares.
SETUP = re.compile(
    r"Python (?P<python>\S+), torch (?P<torch>\S+), device (?P<device>\w+ \(.+?\)), scale (?P<scale>\w+), seed \d+"
)
TIME = re.compile(r"^\*Time[.:]?\*[.:]?[ \n](?:(?!\n\n).)*?(?P<downloads>Downloaded.*?)(?=\n\n|\Z)", flags=re.M | re.S)
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 6: "six", 8: "eight"}


def ran(output: str) -> dict[str, str] | None:
    """Read python, torch, device and scale off what a chapter printed; None where it printed no such line."""
    if not (found := SETUP.search(output)):
        return None
    kind, name = found["device"][:-1].split(" (", 1)
    device = name if kind == "cuda" else f"{kind}, {re.sub('^1 threads$', '1 thread', name)}"
    return found.groupdict() | {"device": device}


def read(path: Path) -> list[dict]:
    """The record's rows. Raises ValueError that names a row with other fields, an unknown scale, or no time."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [checked(row, f"{path.name}, row {number}") for number, row in enumerate(csv.DictReader(file), 1)]


def checked(row: dict, where: str) -> dict:
    """The row, its seconds a number. Raises ValueError for one that cannot stand in the record."""
    number = re.fullmatch(r"\d+(\.\d+)?", row.get("seconds") or "")
    if set(row) != set(FIELDS) or row["scale"] not in SCALES or not number or not float(number[0]):
        expected = f"the fields {', '.join(FIELDS)}, a scale out of {', '.join(SCALES)}, and seconds above 0"
        raise ValueError(f"{where}: expected {expected}; got {row}")
    return row | {"seconds": float(row["seconds"])}


def add(path: Path, rows: list[dict]) -> None:
    """Put measurements into the record, each in the place of the one that it repeats; other fields are left out.

    The file is whole or as it was before.
    """
    fresh = [checked({field: str(row.get(field, "")) for field in FIELDS}, f"new row {row}") for row in rows]
    kept = {tuple(row[field] for field in KEY): row for row in [*read(path), *fresh]}
    new = path.with_name(path.name + ".new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for _, row in sorted(kept.items(), key=lambda item: (item[0][0], SCALES.index(item[0][1]), item[0][2:])):
            writer.writerow(row | {"seconds": f"{row['seconds']:.1f}"})
    new.replace(path)


def minutes(seconds: float) -> str:
    """Half a minute, 1 minute, 1.5 minutes, 2 minutes: up to the next half. Small noise goes down: 61 s is a minute."""
    halves = max(1, math.ceil(seconds / 30 - 0.1))
    return "half a minute" if halves == 1 else f"{halves / 2:g} minute" + "s" * (halves > 2)


def longest(rows: list[dict], chapter: str, scale: str) -> dict | None:
    """The row of this chapter and scale that took longest, whatever data it had; None where it was not measured."""
    found = [row for row in rows if (row["chapter"], row["scale"]) == (chapter, scale)]
    return max(found, key=lambda row: row["seconds"], default=None)


def short_device(device: str) -> str:
    """'cpu, 2 threads' -> 'two cores'; 'NVIDIA H100 80GB HBM3' -> 'an H100'; 'Tesla T4' -> 'a T4'."""
    if found := re.fullmatch(r"cpu, (\d+) threads?", device):
        count = int(found[1])
        return f"{NUMBERS.get(count, count)} core" + "s" * (count > 1)
    if found := re.match(r"(?:NVIDIA |Tesla |GeForce |RTX )+(\w+)", device):
        return f"{'an' if found[1][0] in 'AEFHILMNORSX' else 'a'} {found[1]}"
    return device


def with_opening(markdown: str, rows: list[dict], chapter: str) -> str:
    """The title cell with its *Time* paragraph as the record has it; what it says of downloads stays.

    Raises ValueError where the record has no cpu row, and where no such paragraph goes on with "Downloaded".
    """
    found = TIME.search(markdown)
    if not found:
        raise ValueError(f"{chapter}: expected a paragraph '*Time.* ... Downloaded: ...'")
    cpu, gpu = (longest(rows, chapter, scale) for scale in ("cpu", "gpu"))
    if cpu is None:
        raise ValueError(f"{chapter} was not measured at cpu scale: tools/notebooks.py run --record")
    said = f"*Time.* About {minutes(cpu['seconds'])} on {short_device(cpu['device'])} (cpu scale)"
    also = f", {minutes(gpu['seconds'])} on {short_device(gpu['device'])} (gpu scale)." if gpu else ""
    said += also or "; gpu scale not measured."
    return markdown[: found.start()] + f"{said} {found['downloads']}" + markdown[found.end() :]
