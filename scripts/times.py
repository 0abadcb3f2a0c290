"""The record of how long chapters take, book/times.csv: show it, take in measurements, write the chapters' openings.

python scripts/times.py                   what was measured, a line a chapter
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

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "times.csv"


def show(rows: list[dict]) -> None:
    for row in rows:
        about = f"{row['device']}; data: {row['data']}; {row['day']}"
        print(f"{row['chapter']:22} {row['scale']:6} {row['seconds']:7.1f} s  {about}")


def write_openings(rows: list[dict], root: Path = ROOT) -> list[str]:
    """Write each chapter's opening; say which files changed."""
    changed = []
    for path in rules.notebook_paths(root):
        stored = path.read_text(encoding="utf-8")
        notebook = json.loads(stored)
        title = notebook["cells"][0]
        said = times.with_opening(rules.text(title["source"]), rows, path.stem)
        title["source"] = said.splitlines(keepends=True)
        if rules.dumps(notebook) != stored:
            path.write_text(rules.dumps(notebook), encoding="utf-8")
            changed.append(path.name)
    return changed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("add").add_argument("file", type=Path)
    commands.add_parser("openings")
    given = parser.parse_args(arguments)
    try:
        if given.command == "add":
            times.add(RECORD, json.loads(given.file.read_text(encoding="utf-8")))
        rows = times.read(RECORD)
        if given.command == "openings":
            changed = write_openings(rows)
            print(f"written: {', '.join(changed) or 'nothing, all are true already'}")
        else:
            show(rows)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
