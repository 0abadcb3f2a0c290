"""Say which results are stale against the script that made them.

    make results

One line a study (studies/NAME.py with a KEY): its rows in results/NAME.csv, when they ended, and what is wrong, with
the command that mends it. Exit status 1 if anything is. Standard library only; a test compares every row besides.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def studies(root: Path) -> list[str]:
    """Names of the scripts that are studies: those that say which columns tell their runs apart."""
    found = (root / "studies").glob("*.py")
    return sorted(path.stem for path in found if re.search(r"^KEY\b", path.read_text(encoding="utf-8"), re.M))


def state(root: Path, name: str) -> tuple[int, str, str | None]:
    """(rows, day they ended, what is wrong or None) of one study."""
    script, table, about = root / f"studies/{name}.py", root / f"results/{name}.csv", root / f"results/{name}.json"
    again = f"python -m studies.{name}"
    if not table.exists():
        return 0, "-", f"never run: {again}"
    with table.open(newline="", encoding="utf-8") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    try:
        told = json.loads(about.read_text(encoding="utf-8"))
        made_by, ended = told["script_sha256"], told["finished"]
    except (OSError, ValueError, KeyError) as error:
        problem = f"results/{name}.json does not say which script made them ({type(error).__name__})"
        return rows, "-", f"{problem}: delete results/{name}.csv, then {again}"
    source = script.read_bytes().replace(b"\r\n", b"\n")  # as studies.store, which imports torch, hashes it
    if made_by != hashlib.sha256(source).hexdigest():
        return rows, (ended or "-")[:10], f"stale, the script has changed since: delete both files, then {again}"
    if not ended:
        return rows, "-", f"not at its end: {again}" + (" --resume" if b"--resume" in source else "")
    return rows, ended[:10], None


def main(root: Path = ROOT) -> int:
    states = {name: state(root, name) for name in studies(root)}
    strays = sorted({path.stem for path in (root / "results").glob("*.csv")} - set(states))
    for name, (rows, ended, problem) in states.items():
        print(f"{name:16} {rows:5} rows  {ended:10}  {problem or 'fresh'}")
    for name in strays:
        print(f"{name:16} results without a studies/{name}.py: delete them")
    return 1 if strays or any(problem for *_, problem in states.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
