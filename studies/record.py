"""Which code made the results of a study, whether it still gives them, and how other code is told to be the same."""

import csv
import importlib
import json
import re
import time
from pathlib import Path
from types import ModuleType

import torch

from studies import stamp
from studies.store import RESULTS, Store, now

NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?|nan", re.I)
COUNTED = re.compile("accurac|share|heads")  # shares of a few hundred images: one answer more moves them
TOLERANCE = 0.006  # of a number, or of 1: on a machine without AVX a loss came out 0.0035 away
AGAIN = "To run it again, delete {store.csv.name} and {store.json.name}, then: python -m studies {store.name}"


def names() -> list[str]:
    """The studies: those modules of this folder that say which columns tell their runs apart."""
    modules = sorted(Path(__file__).parent.glob("[!.]*.py"))
    return [path.stem for path in modules if re.search(rb"^KEY\b", path.read_bytes(), re.M)]


def load(name: str) -> ModuleType:
    """A study by its name. Raises SystemExit that lists those there are."""
    if name not in names():
        raise SystemExit(f"no study {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"studies.{name}")


def store_of(study: ModuleType, folder: Path = RESULTS, scale: str = "cpu") -> Store:
    """The rows of a study."""
    return Store(study.__name__.rpartition(".")[2], study.KEY, folder, scale)


def plain(value: object) -> object:
    """What JSON gives back."""
    return json.loads(json.dumps(value))


def made_by(study: ModuleType) -> dict:
    """What goes into the .json to say what was run: code, configuration, and predictions where there are any.

    Raises SystemExit for a prediction without a number or a reason.
    """
    name, predicted = study.__name__.rpartition(".")[2], getattr(study, "predicted", {})
    for what, row in predicted.items():
        if not (row.get("reason") and NUMBER.search(str(row.get("expected")))):
            raise SystemExit(f'{name}: predicted {what!r} needs "expected", with a number, and "reason"; got {row}')
    made = {"stamp": stamp.code_of(name), "configuration": plain(study.configuration())}
    return made | ({"predicted": plain(predicted)} if predicted else {})


def changes(study: ModuleType, about: dict) -> list[str]:
    """What is not as the .json says: names of definitions, "configuration", "predicted"."""
    now, was = made_by(study), about.get("stamp", {})
    code = [name for name in now["stamp"] | was if now["stamp"].get(name) != was.get(name)]
    return sorted(code) + [name for name in ("configuration", "predicted") if now.get(name) != about.get(name)]


# --- one small row, again ---


def close(got: str, wanted: str, tolerance: float) -> bool:
    """Whether two numbers are the same: whole ones exactly, others within the tolerance, a share of them or of 1."""
    if got == wanted or "." not in got + wanted:
        return got == wanted
    return abs(float(got) - float(wanted)) <= tolerance * max(1, abs(float(wanted)))


def differences(row: dict, recorded: dict, tolerance: float) -> list[str]:
    """Where a replayed row is not the recorded one; seconds do not count."""
    if list(row) != list(recorded):
        return [f"fields {list(row)} instead of {list(recorded)}"]
    found = []
    for field in row.keys() - {"seconds"}:
        got, wanted = str(row[field]), str(recorded[field])
        pairs = zip(NUMBER.findall(got), NUMBER.findall(wanted), strict=False)
        allowed = tolerance * (10 if COUNTED.search(field) else 1)
        if NUMBER.sub("", got) != NUMBER.sub("", wanted) or not all(close(*pair, allowed) for pair in pairs):
            found.append(f"{field} is {got} instead of {wanted}")
    return sorted(found)


def is_real(row: dict, store: Store) -> bool:
    """Whether a replayed row is one of the .csv; else it is a miniature, and stands in the .json."""
    return set(store.key) <= row.keys()


def replayed(study: ModuleType, store: Store) -> tuple[dict, list[str]]:
    """Do the small run of a study again, on one thread: its row, and where it differs from the recorded one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = plain(study.replay(store))
    finally:
        torch.set_num_threads(threads)
    recorded = store.find(row) if is_real(row, store) else store.about().get("replay")
    if recorded is None:
        return row, ["no row of it is recorded"]
    return row, differences(row, recorded, getattr(study, "TOLERANCE", TOLERANCE))


def restamp(study: ModuleType, store: Store, reason: str) -> None:
    """Stamp the present code onto results that other code made.

    reason: has to name all that changed, and "replay" where a miniature is not what is recorded, or nothing is. Raises
    SystemExit where it does not, where a replayed row of the .csv moved, and where predictions changed.
    """
    about, (row, moved) = store.about(), replayed(study, store)
    changed = changes(study, about) + ["replay"] * bool(moved)
    if not changed:
        print(f"{store.json}: nothing has changed")
        return
    final = "predicted" in changed or (moved and is_real(row, store))
    unsaid = [name for name in changed if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", reason)]
    if final or unsaid:
        told = [f"{store.json} stays as it is. Changed: {', '.join(changed)}", *(f"  replay: {line}" for line in moved)]
        if not final:
            told.append(f'If that moves no result, say why; name also: {", ".join(unsaid)}: --restamp "NAME: renamed"')
        raise SystemExit("\n".join([*told, AGAIN.format(store=store)]))
    note = {"when": now(), "changed": changed, "reason": reason}
    row = {"replay": row} if moved else {}
    store.write(**made_by(study), **row, restamped=[*about.get("restamped", []), note])


# --- what there is ---


def damage(store: Store) -> str:
    """What is wrong with the files of a study themselves, as a merge, an editor or a disk leaves it; "" if nothing."""
    try:
        about = store.about()
    except (OSError, ValueError) as error:
        return f"{store.json.name} is damaged: {error}"
    kinds = {"finished": str | None, "stamp": dict}
    if not isinstance(about, dict) or not all(isinstance(about[k], kind) for k, kind in kinds.items() if k in about):
        return f"{store.json.name} is damaged: expected an object with a stamp and a day or null, finished"
    if not store.csv.exists():
        return ""
    try:
        with store.csv.open(newline="", encoding="utf-8") as file:
            wrong = faults(list(csv.reader(file)), store.key, bool(about.get("finished")))
    except (OSError, ValueError, csv.Error) as error:
        wrong = str(error)
    return f"{store.csv.name} is damaged: {wrong}" if wrong else ""


def faults(lines: list[list[str]], key: tuple[str, ...], ended: bool) -> str:
    """The first fault of a table: its header, a line that has not its fields, a run that stands twice; "" if none."""
    if not lines:
        return "it is empty; expected a header and rows"
    header, seen = lines[0], set()
    if lacking := [name for name in key if name not in header]:
        return f"the header lacks {', '.join(lacking)}"
    if ended and len(lines) == 1:
        return "it has no rows, but the study ended"
    for number, line in enumerate(lines[1:], 2):
        if line and len(line) != len(header):
            return f"line {number} has {len(line)} fields, not {len(header)}"
        run = tuple(line[header.index(name)] for name in key) if line else None
        if line and run in seen:
            return f"line {number} is the run of a line before"
        seen.add(run)
    return ""


def state(study: ModuleType, store: Store) -> tuple[str, str]:
    """(day on which the rows of a study ended, what is wrong or "fresh")."""
    about = store.about()
    ended = (about.get("finished") or "-")[:10]
    if not store.rows():
        return ended, f"never run: python -m studies {store.name}"
    if changed := changes(study, about):
        return ended, f"stale, changed since: {', '.join(changed)}. {AGAIN.format(store=store)}"
    left = sum(run is None or not store.has(run) for run in study.runs(store))
    if left or not about.get("finished"):
        kind = "partial" if getattr(study, "partial", "") else "not at its end"
        return ended, f"{kind}, {left} runs are left: python -m studies {store.name}"
    return ended, "fresh"


def show(studies: list[ModuleType], folder: Path) -> int:
    """Print one line a study: rows, when they ended, and what is wrong. Returns 1 if anything is."""
    wrong = False
    for store, study in ((store_of(study, folder), study) for study in studies):
        if told := damage(store):
            print(f"{store.name:16} {told}. Take it from git: git checkout -- {store.csv} {store.json}")
            wrong = True
            continue
        ended, told = state(study, store)
        wrong |= told != "fresh" and not told.startswith("partial")
        print(f"{store.name:16} {len(store.rows()):5} rows  {ended:10}  {told}")
    for name in sorted({path.stem for path in folder.glob("[!.]*.csv")} - set(names())):
        wrong = True
        print(f"{name:16} results without a studies/{name}.py: delete them")
    return int(wrong)


def show_replays(studies: list[ModuleType], folder: Path) -> int:
    """Print what the replayed row of each study gives. Returns 1 if any is not the recorded one."""
    wrong = False
    for store, study in ((store_of(study, folder), study) for study in studies):
        started = time.perf_counter()
        _, moved = replayed(study, store)
        wrong |= bool(moved)
        print(f"{store.name:16} {time.perf_counter() - started:5.1f} s  {'; '.join(moved) or 'the same'}", flush=True)
    return int(wrong)
