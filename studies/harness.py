"""What every study is run by: `python -m studies NAME`, or `python -m studies.NAME`.

A study is a module of this folder. It declares
    KEY               the columns that tell its runs apart
    configuration()   its sizes, rates and seeds as plain values, for the .json
    runs(store)       every run in order, as dicts of the key fields; None for one that a search has yet to name
    run(store, name)  does one run and returns its row; raises NotYet where what it needs is not there yet
    replay(store)     a run of a few seconds, for a test: its row has the fields of KEY where results/NAME.csv has it,
                      else it is a miniature and stands in results/NAME.json
and may declare
    predicted         what is expected: {"what": {"expected": numbers, "reason": "why"}}, before the first row
    SCALES            its sizes by name, for --scale
    COMMANDS          functions of the store, each an option of the command line by its name
    work(store)       does all runs by itself, where several processes have to work together
    partial           why the rows that are there are shown before the last run is done
    TOLERANCE         how far a replayed number may lie from the recorded one, if not record.TOLERANCE
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

from studies.record import AGAIN, changes, load, made_by, names, restamp, show, show_replays, store_of
from studies.store import RESULTS, NotYet, Store


def step(study: ModuleType, store: Store, missing: list[dict]) -> tuple[bool, str]:
    """Do the first of these runs that no other process has and that can be done; whether, and why not."""
    why = "a search that no run is left of"
    for name in missing:
        with store.claimed(name) as mine:
            if not mine or store.has(name):
                why = ""  # another process is at work
                continue
            try:
                row = study.run(store, name)
            except NotYet as reason:
                why = why and (str(reason) or "another run")
                continue
            store.append(row)
            print(*(f"{field}={value}" for field, value in row.items() if 0 < len(str(value)) < 60), flush=True)
            return True, ""
    return False, why


def work(study: ModuleType, store: Store) -> None:
    """Do what is missing, one run after the other; several processes share it out between them."""
    while True:
        count, planned = len(store.rows()), list(study.runs(store))
        missing = [name for name in planned if name and not store.has(name)]
        if not missing and None not in planned:
            return
        done, why = step(study, store, missing)
        if not done and why and len(store.rows()) == count:
            raise SystemExit(f"{len(missing)} runs are left, and wait for {why}")
        if not done:
            time.sleep(2)


def carry_out(study: ModuleType, store: Store, processes: int, arguments: list[str]) -> None:
    """Run a study from where it is to its end. Raises SystemExit where its rows were made by other code."""
    if store.rows() and (changed := changes(study, store.about())):
        raise SystemExit(
            f"{store.csv} was made by other code; changed since: {', '.join(changed)}. {AGAIN.format(store=store)}; "
            "or, if that moves no result, see --restamp"
        )
    if not store.rows():
        store.begin(**made_by(study))
    before = len(store.rows())
    if processes > 1:
        command = [sys.executable, "-m", "studies", store.name, *arguments]
        started = [subprocess.Popen(command) for _ in range(processes)]
        if any([process.wait() for process in started]):
            raise SystemExit(f"a process of {store.name} failed: see above")
    elif hasattr(study, "work"):
        study.work(store)
    else:
        work(study, store)
    if len(store.rows()) > before or not store.about()["finished"]:
        store.end()
    print(f"{store.csv}: {len(store.rows())} rows, nothing is missing")


def parser_of(study: ModuleType | None) -> argparse.ArgumentParser:
    """The options of a study, or of all."""
    about = study.__doc__ if study else f"All studies: {', '.join(names())}."
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m studies [NAME]", description=about, formatter_class=kind)
    parser.add_argument("--status", action="store_true", help="say whether the results are those of the present code")
    parser.add_argument("--replay", action="store_true", help="do a small run again and compare it with its record")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the two files are (default: results)")
    if study:
        parser.add_argument("--shards", type=int, default=1, help="share the runs out between so many processes")
        parser.add_argument("--restamp", metavar="REASON", nargs="?", const="", help=restamp.__doc__.partition(".")[0])
        parser.add_argument("--scale", choices=getattr(study, "SCALES", ["cpu"]), default="cpu")
        for name, function in getattr(study, "COMMANDS", {}).items():
            parser.add_argument(f"--{name}", action="store_true", help=function.__doc__)
    return parser


def main(name: str | None = None, arguments: list[str] | None = None) -> int:
    """The command line. name: the study, if it does not stand first in the arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if name is None and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    study = load(name) if name else None
    asked = parser_of(study).parse_args(arguments)
    if asked.status or asked.replay:
        told = show if asked.status else show_replays
        return told([study] if study else [load(other) for other in names()], asked.folder)
    if study is None:
        parser_of(None).print_help()
        return 2
    torch.set_num_threads(1)
    store = store_of(study, asked.folder, asked.scale)
    if asked.restamp is not None:
        restamp(study, store, asked.restamp)
    elif wanted := [function for option, function in getattr(study, "COMMANDS", {}).items() if vars(asked)[option]]:
        for function in wanted:
            function(store)
    else:
        own = ["--folder", str(asked.folder), "--scale", asked.scale]
        carry_out(study, store, asked.shards, own)
    return 0
