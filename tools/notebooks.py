"""Keep the chapters in order: run them, store what nbval compares, strip the rest, check the rules.

python tools/notebooks.py refresh [NOTEBOOK ...]    run at smoke scale, store the marked outputs
python tools/notebooks.py strip [NOTEBOOK ...]      only take out what must not be stored
python tools/notebooks.py check [NOTEBOOK ...]      say which rules are broken (exit 1 if any)
python tools/notebooks.py run NOTEBOOK --scale cpu  run, change nothing, say how long it took
                                        ... --record  and write that into book/times.csv
                             ... --record --bundled   with no data but what comes with the packages
python tools/notebooks.py times                     write every *Time* paragraph from that file

Without a notebook: the chapters, which are those that `_toc.yml` names; another notebook in that folder is left alone.
The rules are in `notebook_rules.py`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import difflib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
import chapter_file
import chapter_times
import env
import notebook_file
import notebook_rules as rules
import runner
import running
from vitutils.files import data_folders, system_folder, whole_file

RECORD = chapter_file.ROOT / "book" / "times.csv"


def execute(
    path: Path, scale: str, python: str | Path = sys.executable, environment: dict[str, str] | None = None
) -> nbformat.NotebookNode:
    """Run the notebook in its folder; its cells' times land in their metadata.

    The kernel is `python`, its environment what `env.surroundings` leaves of this process's, unless `environment` is
    given. Raises CellExecutionError where a cell fails, its `cell` being the cell's name, and RuntimeError, which names
    the cell, where one takes too long or the kernel dies.
    """
    notebook = nbformat.from_dict(with_ids(path))
    client = runner.Run(notebook, path.parent, running.cell_limit(scale), python, record_timing=True)
    with running.kernels_environment() as settings:
        if environment is not None:
            settings = environment | {"IPYTHONDIR": settings["IPYTHONDIR"]}
        try:
            # stderr: the kernel's own notices; the cells' go another way
            finish(client, env=settings | {"VITBOOK_SCALE": scale}, stderr=subprocess.DEVNULL)
        except ValueError:
            raise
        except Exception as error:
            where = "the start" if client.cell is None else notebook_file.name(notebook.cells[client.cell])
            if isinstance(error, CellExecutionError):
                error.cell = where
                raise
            raise RuntimeError(f"{where}: {client.words(error)}") from error
    return notebook


def finish(client: runner.Run, **more) -> None:
    """Run it to its end, in a thread: in the main one nbclient takes the signals that are to stop this command.

    Raises what went wrong; KeyboardInterrupt, once the kernel and all that it started have ended.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        end = pool.submit(client.finish, **more)
        try:
            while not end.done():
                concurrent.futures.wait([end], timeout=1)  # in steps, else Windows hears of no Ctrl-C
        except KeyboardInterrupt:
            while not end.done():  # a kernel that is only now starting has no process yet
                process = getattr(getattr(client.km, "provisioner", None), "process", None)
                if process is not None:
                    running.end(process)
                concurrent.futures.wait([end], timeout=0.2)
            raise
        end.result()


def with_ids(path: Path) -> dict:
    """The notebook as nbformat 4.5, where every cell has an id: its own, the committed file's, or a new one.

    Colab stores none. A cell is the committed one if its source is, or if it stands in the place of one whose source
    has changed. Raises Unreadable.
    """
    notebook = notebook_file.read(path)
    cells = notebook["cells"]
    taken = {cell.get("id") for cell in cells}
    before = committed(path) if None in taken else []
    old, new = ([(cell["cell_type"], cell["source"].rstrip()) for cell in some] for some in (before, cells))
    for _, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        same_kinds = [kind for kind, _ in old[i:i_end]] == [kind for kind, _ in new[j:j_end]]
        for was, cell in zip(before[i:i_end], cells[j:j_end], strict=True) if same_kinds else ():
            if not cell.get("id") and was.get("id") not in taken:
                cell["id"] = was.get("id")
    names = notebook_file.free_ids({cell.get("id") for cell in cells})
    for cell in cells:
        cell["id"] = cell.get("id") or next(names)
    return notebook | {"nbformat_minor": 5}


def committed(path: Path) -> list[dict]:
    """The cells of the notebook as git has it; none where git knows nothing of it."""
    command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        return notebook_file.read(path, subprocess.run(command, capture_output=True, check=True).stdout)["cells"]
    except (OSError, subprocess.CalledProcessError, notebook_file.Unreadable):
        return []


def seconds(cell: dict) -> float:
    """How long a cell ran."""
    timing = cell["metadata"].get("execution", {})
    try:
        ends = [timing["iopub.execute_input"], timing["shell.execute_reply"]]
    except KeyError:
        return 0.0
    start, end = (datetime.fromisoformat(stamp.replace("Z", "+00:00")) for stamp in ends)
    return (end - start).total_seconds()


def write(path: Path, notebook: dict) -> bool:
    """Store the notebook in its normal form; say whether the file changed."""
    old, new = path.read_text(encoding="utf-8"), notebook_file.dumps(notebook_file.normalise(notebook))
    if old == new:
        return False
    with whole_file(path) as temporary:
        temporary.write_text(new, encoding="utf-8", newline="\n")
    return True


def unfit(notebook: dict) -> list[str]:
    """What only a run shows: pictures without words, noise in marked cells."""
    wrong = []
    for cell in chapter_file.Chapter(notebook, Path()).code:
        outputs = cell["outputs"]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        if pictures and not notebook_file.alt_text(cell):
            wrong.append(f"{notebook_file.name(cell)} draws a picture and has no alt text")
        if len(pictures) > 1:
            wrong.append(f"{notebook_file.name(cell)} draws {len(pictures)} pictures; one figure a cell")
        noise = [output for output in outputs if not notebook_file.is_plain(output)]
        if notebook_file.is_marked(cell) and (noise or not outputs):
            what = noise[0].get("text", "a picture")[:200] if noise else ""
            told = f"gives more than plain text: {what}" if noise else "prints nothing"
            wrong.append(f"{notebook_file.name(cell)} is marked and {told}")
    return wrong


def refresh(path: Path) -> int:
    start = time.perf_counter()
    notebook = execute(path, "smoke")
    took, wrong = time.perf_counter() - start, unfit(notebook)
    if not wrong:
        changed = write(path, notebook)
        print(f"{path.name}: {took:.1f} s, {'stored' if changed else 'nothing new'}")
    return report(path, wrong)


def strip(path: Path) -> int:
    given, notebook = notebook_file.read(path), with_ids(path)
    told = "stripped" if write(path, notebook) else "nothing to strip"
    new = [cell["id"] for was, cell in zip(given["cells"], notebook["cells"], strict=True) if not was.get("id")]
    unnamed = [name for name in new if name.startswith("cell-")]
    told += f"; {len(new)} cells had no id" if new else ""
    told += f", give these a name: {', '.join(unnamed)}" if unnamed else ""
    print(f"{path.name}: {told}")
    return 0


def check(path: Path) -> int:
    wrong = [f"[{key}] {line}" for key, lines in rules.check(path).items() for line in lines]
    wrong += [] if any(line.startswith("[code_is_python]") for line in wrong) else ruff(path)
    if not wrong:
        print(f"{path.name}: all {len(rules.RULES)} rules kept{rules.left_to_do(chapter_file.Chapter.read(path))}")
    return report(path, wrong)


def ruff(path: Path) -> list[str]:
    """What ruff says of the chapter's code, with the rules of notebooks/ruff.toml, wherever the file stands."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json"]
    command += ["--config", "ruff.toml", "--stdin-filename", path.name, "-"]
    notebook, cells = notebook_file.normalise(notebook_file.read(path)), notebook_file.read(path)["cells"]
    given, folder = notebook_file.dumps(notebook).encode(), chapter_file.ROOT / "notebooks"
    done = subprocess.run(command, input=given, capture_output=True, cwd=folder)
    faults = json.loads(done.stdout or "[]")
    where = [f"{notebook_file.name(cells[fault['cell'] - 1])}, line {fault['location']['row']}" for fault in faults]
    return [f"[ruff {f['code']}] {at}: {f['message']}" for f, at in zip(faults, where, strict=True)]


def run(path: Path, scale: str, slowest: int, record: Path | None = None, bundled: bool = False) -> int:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        environment = env.surroundings(os.environ)
        if bundled:
            environment |= {"VITBOOK_DATA": empty, "VITBOOK_SYSTEM_DATA": empty}
            environment |= {"VITBOOK_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": empty}
        after = execute(path, scale, environment=environment)
    took = time.perf_counter() - start
    print(f"{path.name}: {took:.1f} s at scale {scale}, kernel included")
    if record:
        chapter_times.add(record, [measured(path, after, took, "none" if bundled else data_held())])
    for cell in sorted(chapter_file.Chapter(after, path).code, key=seconds, reverse=True)[:slowest]:
        print(f"  {seconds(cell):7.2f} s  {cell['id']}")
    return report(path, unfit(after))


def measured(path: Path, notebook: dict, took: float, held: str) -> dict:
    """A row of the record. Raises ValueError for a notebook that does not say where it ran."""
    outputs = [output for cell in chapter_file.Chapter(notebook, path).code for output in cell["outputs"]]
    printed = [notebook_file.text(output["text"]) for output in outputs if output["output_type"] == "stream"]
    ran = chapter_times.ran("\n".join(printed))
    if ran is None:
        raise ValueError(f"{path.name} prints no line 'Python ..., torch ..., device ..., scale ...'")
    day = datetime.now(timezone.utc).date().isoformat()
    return ran | {"chapter": path.stem, "data": held, "seconds": took, "day": day}


def write_opening(path: Path, rows: list[dict] | None = None) -> int:
    """Write a chapter's *Time* paragraph from the record; a draft that was not yet timed is left alone."""
    rows = chapter_times.read(RECORD) if rows is None else rows
    notebook = notebook_file.read(path)
    if not chapter_file.Chapter(notebook, path).draft or chapter_times.longest(rows, path.stem, "cpu"):
        title = notebook["cells"][0]
        title["source"] = chapter_times.with_opening(title["source"], rows, path.stem)
        write(path, notebook)
    return 0


def data_held() -> str:
    """What the machine holds that a chapter would otherwise download, or go without."""
    folders = data_folders()
    places = {
        "Fashion-MNIST": [system_folder() / "fashion-mnist", *(f / "fashion_mnist.safetensors" for f in folders)],
        "ImageNet weights": [file for f in folders for file in f.glob("weights/*.safetensors")],
        "photos": [place for f in folders for place in [*f.glob("images/*"), f / "imagenette2-160"]],
    }
    return " + ".join(name for name, paths in places.items() if any(path.exists() for path in paths)) or "none"


def report(path: Path, wrong: list[str]) -> int:
    for line in wrong:
        print(f"{path.name}: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for word in ("refresh", "strip", "check", "times"):
        commands.add_parser(word).add_argument("notebooks", nargs="*", type=Path)
    runner = commands.add_parser("run")
    runner.add_argument("notebooks", nargs="+", type=Path)
    runner.add_argument("--scale", choices=("smoke", "cpu", "gpu"), default="cpu")
    runner.add_argument("--slowest", type=int, default=8, help="how many cells to name")
    runner.add_argument("--record", action="store_true", help="write the time into book/times.csv")
    runner.add_argument("--bundled", action="store_true", help="hide all data but what the packages bring")
    given = parser.parse_args(arguments)
    paths = given.notebooks or sorted((chapter_file.ROOT / "notebooks").glob("*.ipynb"))
    if not paths:
        parser.error("there are no notebooks")
    try:
        with running.stoppable():
            return each(paths, given)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("\nStopped.", file=sys.stderr)
        return getattr(stop, "status", 130)


def each(paths: list[Path], given: argparse.Namespace) -> int:
    """Do what is asked with one notebook after the other; 1 if anything is wrong."""
    failed = 0
    for path in paths:
        path = path.resolve()
        if given.command != "run" and chapter_file.beside_the_chapters(path):
            print(f"{path.name}: left alone, _toc.yml does not name it")
            continue
        try:
            if given.command == "run":
                record = RECORD if given.record else None
                failed |= run(path, given.scale, given.slowest, record, given.bundled)
            else:
                work = {"refresh": refresh, "strip": strip, "check": check, "times": write_opening}
                failed |= work[given.command](path)
        except notebook_file.Unreadable as error:  # its name is in it
            print(error, file=sys.stderr)
            failed = 1
        except CellExecutionError as error:
            first = str(error.evalue).partition("\n")[0]
            failed |= report(path, [f"{getattr(error, 'cell', 'a cell')} fails: {error.ename}: {first}\n{error}"])
        except (OSError, RuntimeError, ValueError) as error:
            failed |= report(path, [str(error)])
    return failed


if __name__ == "__main__":
    sys.exit(main())
