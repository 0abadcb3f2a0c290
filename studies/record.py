"""Which code made the results of a study, whether it still gives them, and how other code is told to be the same."""

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


def names() -> list[str]:
    """The studies: those modules of this folder that say which columns tell their runs apart."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in modules if re.search(r"^KEY\b", path.read_text(encoding="utf-8"), re.M)]


def load(name: str) -> ModuleType:
    """A study by its name. Raises SystemExit that lists those there are."""
    if name not in names():
        raise SystemExit(f"no study {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"studies.{name}")


def store_of(study: ModuleType, folder: Path = RESULTS, scale: str = "cpu") -> Store:
    """The rows of a study."""
    return Store(study.__name__.rpartition(".")[2], study.KEY, folder, scale)


# --- what was run ---


def plain(value: object) -> object:
    """What JSON gives back."""
    return json.loads(json.dumps(value))


def stamp_of(study: ModuleType, folder: Path = stamp.FOLDER) -> dict:
    """What goes into the .json to say what was run: code, configuration, predictions."""
    name = study.__name__.rpartition(".")[2]
    predicted = getattr(study, "predicted", None)
    for what, row in (predicted or {}).items():
        if not (row.get("reason") and NUMBER.search(str(row.get("expected")))):
            raise SystemExit(f'{name}: predicted {what!r} needs "expected", with a number, and "reason"; got {row}')
    made = {"stamp": stamp.code_of(name, folder), "configuration": plain(study.configuration())}
    return made | ({"predicted": plain(predicted)} if predicted else {})


def changes(study: ModuleType, about: dict, folder: Path = stamp.FOLDER) -> list[str]:
    """What is not as the .json says: names of definitions, "configuration", "predicted"."""
    now = stamp_of(study, folder)
    others = [name for name in ("configuration", "predicted") if now.get(name) != about.get(name)]
    return stamp.changes(about.get("stamp", {}), now["stamp"]) + others


# --- one small row, again ---


def differences(row: dict, recorded: dict, tolerance: float) -> list[str]:
    """Where a replayed row is not the recorded one: whole numbers and words the same, others within the tolerance."""

    def close(got: str, wanted: str) -> bool:
        if got == wanted or not (got + wanted).count("."):
            return got == wanted
        return abs(float(got) - float(wanted)) <= tolerance * max(1, abs(float(wanted)))

    if list(row) != list(recorded):
        return [f"fields {list(row)} instead of {list(recorded)}"]
    found = []
    for field in row.keys() - {"seconds"}:
        got, wanted = str(row[field]), str(recorded[field])
        pairs = zip(NUMBER.findall(got), NUMBER.findall(wanted), strict=False)
        if NUMBER.sub("", got) != NUMBER.sub("", wanted) or not all(close(*pair) for pair in pairs):
            found.append(f"{field} is {got} instead of {wanted}")
    return sorted(found)


def replayed(study: ModuleType, store: Store) -> tuple[dict, dict | None, list[str]]:
    """Do the small run of a study again, on one thread: its row, the recorded one, and where they differ.

    Recorded is the row of the .csv, or for a miniature the one in the .json.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = study.replay(store)
    finally:
        torch.set_num_threads(threads)
    recorded = store.find(row) if set(store.key) <= row.keys() else store.about().get("replay")
    if recorded is None:
        return row, None, [f"nothing is recorded: python -m studies {store.name} --restamp"]
    return row, recorded, differences(row, recorded, getattr(study, "TOLERANCE", 0.01))


def restamp(study: ModuleType, store: Store, reason: str) -> None:
    """Stamp the present code onto results that other code made.

    reason: has to name all that changed; "replay" too where a miniature gives something else. Raises SystemExit where
    it does not, and where the replayed row of the .csv moved.
    """
    about, (row, recorded, moved) = store.about(), replayed(study, store)
    real = set(store.key) <= row.keys()
    changed = changes(study, about) + ["replay"] * bool(moved and recorded)
    missing = [name for name in changed if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", reason)]
    if missing or (real and moved):
        told = "".join(f"\n  replay: {line}" for line in moved)
        say = "; ".join(f"{name}: renamed" for name in missing)
        raise SystemExit(
            f"results/{store.name}.json stays as it is. Changed: {', '.join(changed)}{told}\n"
            + (f'If that moves no result, say of each why: --restamp "{say}". Else d' if not (real and moved) else "D")
            + "elete the .csv and the .json, and run the study again."
        )
    fields = {} if real else {"replay": plain(row)}
    if changed:
        note = {"when": now(), "changed": changed, "reason": reason}
        fields |= {**stamp_of(study), "restamped": [*about.get("restamped", []), note]}
    store.write(**fields)


# --- what there is ---


def state(name: str) -> tuple[int, str, str]:
    """(rows, day they ended, what is wrong or "fresh") of one study."""
    study = load(name)
    store = store_of(study)
    rows, about = len(store.rows()), store.about()
    again, ended = f"python -m studies {name}", (about.get("finished") or "-")[:10]
    if not rows:
        return rows, ended, f"never run: {again}"
    if "stamp" not in about:
        return rows, ended, f"results/{name}.json does not say what made them: delete both files, then {again}"
    if changed := changes(study, about):
        return rows, ended, f"stale, changed since: {', '.join(changed)}; delete both files, then {again}"
    left = sum(run is None or not store.has(run) for run in study.runs(store))
    if left or not about["finished"]:
        return rows, ended, f"not at its end, {left} runs are left: {again}"
    return rows, ended, "fresh"


def show(asked: list[str]) -> int:
    """Print one line a study: rows, when they ended, and what is wrong. Returns 1 if anything is."""
    states = {name: state(name) for name in asked}
    for name, (rows, ended, told) in states.items():
        print(f"{name:16} {rows:>5} rows  {ended:10}  {told}")
    strays = sorted({path.stem for path in RESULTS.glob("*.csv")} - set(names()))
    for name in strays:
        print(f"{name:16} results without a studies/{name}.py: delete them")
    return int(bool(strays) or any(told != "fresh" for *_, told in states.values()))


def replay_all(asked: list[str], folder: Path) -> int:
    """Print what the replayed row of each study gives. Returns 1 if any is not the recorded one."""
    found = {}
    for name in asked:
        started = time.perf_counter()
        *_, found[name] = replayed(load(name), store_of(load(name), folder))
        told = "; ".join(found[name]) or "the same"
        print(f"{name:16} {time.perf_counter() - started:5.1f} s  {told}", flush=True)
    return int(any(found.values()))
