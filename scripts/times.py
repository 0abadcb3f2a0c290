"""The record of how long chapters take, book/times.csv: take in measurements, write the chapters' openings.

python scripts/times.py add FILE.json     take in rows measured elsewhere: a list of {"chapter": ..., "seconds": ...}
python scripts/times.py openings          write the *Time* paragraph of every chapter from the record

Times are measured by `python scripts/notebooks.py run NOTEBOOK --scale cpu --record`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
sys.path.insert(0, str(Path(__file__).parent))
import chapter_times as times
import notebook_rules as rules

RECORD = Path(__file__).resolve().parents[1] / "book" / "times.csv"


def write_opening(path: Path, rows: list[dict]) -> None:
    """Write a chapter's opening from the record; a draft that was not yet timed is left alone."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if rules.Chapter(notebook, path).draft and not times.longest(rows, path.stem, "cpu"):
        return
    title = notebook["cells"][0]
    title["source"] = times.with_opening(rules.text(title["source"]), rows, path.stem).splitlines(keepends=True)
    path.write_text(rules.dumps(notebook), encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add").add_argument("file", type=Path)
    commands.add_parser("openings")
    given = parser.parse_args(arguments)
    try:
        if given.command == "add":
            times.add(RECORD, json.loads(given.file.read_text(encoding="utf-8")))
        else:
            for path in rules.notebook_paths():
                write_opening(path, times.read(RECORD))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Done: {RECORD.name} holds {len(times.read(RECORD))} rows.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
