"""Write the *Time* paragraph of every chapter from the record of how long they take, book/times.csv.

    python scripts/times.py openings

Times are measured by `python scripts/notebooks.py run NOTEBOOK --scale cpu --record`; a row that was measured elsewhere
is put into the file by hand.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
import chapter_times as times
import notebook_rules as rules


def write_opening(path: Path, rows: list[dict]) -> None:
    """Write a chapter's opening from the record; a draft that was not yet timed is left alone."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if rules.Chapter(notebook, path).draft and not times.longest(rows, path.stem, "cpu"):
        return
    title = notebook["cells"][0]
    title["source"] = times.with_opening(rules.text(title["source"]), rows, path.stem).splitlines(keepends=True)
    path.write_text(rules.dumps(notebook), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    try:
        for chapter in rules.notebook_paths():
            write_opening(chapter, times.read(rules.ROOT / "book" / "times.csv"))
    except (OSError, ValueError) as problem:
        sys.exit(str(problem))
