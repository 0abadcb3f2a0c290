"""Write the *Time* paragraph of every chapter from the record of how long they take, book/times.csv.

    python scripts/times.py openings

Times are measured by `python scripts/notebooks.py run NOTEBOOK --scale cpu --record`; a row that was measured elsewhere
is put into the file by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
sys.path.insert(0, str(Path(__file__).parent))
import chapter_times as times
import notebook_rules as rules

RECORD = rules.ROOT / "book" / "times.csv"


def write_opening(path: Path, rows: list[dict]) -> None:
    """Write a chapter's opening from the record; a draft that was not yet timed is left alone."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if rules.Chapter(notebook, path).draft and not times.longest(rows, path.stem, "cpu"):
        return
    title = notebook["cells"][0]
    title["source"] = times.with_opening(rules.text(title["source"]), rows, path.stem).splitlines(keepends=True)
    path.write_text(rules.dumps(notebook), encoding="utf-8", newline="\n")


def main(arguments: list[str]) -> int:
    if arguments != ["openings"]:
        print(__doc__)
        return 2
    try:
        for path in rules.notebook_paths():
            write_opening(path, times.read(RECORD))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
