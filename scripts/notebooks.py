"""Keep the chapters in order: run them, store what nbval compares, strip the rest, check the rules.

python scripts/notebooks.py refresh [NOTEBOOK ...]    run at smoke scale, store the marked outputs
python scripts/notebooks.py strip [NOTEBOOK ...]      only take out what must not be stored
python scripts/notebooks.py check [NOTEBOOK ...]      say which rules are broken (exit 1 if any)
python scripts/notebooks.py run NOTEBOOK --scale cpu  run, change nothing, say how long it took
                                        ... --record  and write that into book/times.csv
                             ... --record --bundled   with no data but what comes with the packages

Without a notebook: all of `notebooks/`. The rules are in `notebook_rules.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
sys.path.insert(0, str(Path(__file__).parent))
import chapter_times
import notebook_rules as rules

RECORD = rules.ROOT / "book" / "times.csv"


class OnePython(KernelSpecManager):
    """Every kernel is this Python, whatever kernels are installed on the machine."""

    def __init__(self, python: str | Path):
        super().__init__()
        self.python = str(python)

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def execute(
    path: Path,
    scale: str,
    python: str | Path = sys.executable,
    environment: dict[str, str] | None = None,
) -> nbformat.NotebookNode:
    """Run the notebook in its folder; its cells' times land in their metadata.

    The kernel is `python`, its environment this process's unless `environment` is given.
    Raises CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OnePython(python)),
        timeout=1800,
        record_timing=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    with tempfile.TemporaryDirectory() as profile:  # no start-up files of the user's IPython
        settings = {"VITBOOK_SCALE": scale, "IPYTHONDIR": profile}
        client.execute(
            cleanup_kc=True,  # it is our manager, so nbclient would leave the kernel running
            env=dict(os.environ if environment is None else environment) | settings,
            stderr=subprocess.DEVNULL,  # the kernel's own notices; the cells' go another way
        )
    return notebook


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
    old, new = path.read_text(encoding="utf-8"), rules.dumps(rules.normalise(notebook))
    if old == new:
        return False
    temporary = path.with_suffix(".tmp")
    temporary.write_text(new, encoding="utf-8")
    temporary.replace(path)
    return True


def unfit(notebook: dict) -> list[str]:
    """What only a run shows: pictures without words, noise in marked cells."""
    wrong = []
    for cell in rules.Chapter(notebook, Path()).code:
        outputs = cell.get("outputs", [])
        pictures = [o for o in outputs if "image/png" in o.get("data", {})]
        if pictures and not rules.alt_text(cell):
            wrong.append(f"{rules.name(cell)} draws a picture and has no alt text")
        if len(pictures) > 1:
            wrong.append(f"{rules.name(cell)} draws {len(pictures)} pictures; one figure a cell")
        if rules.is_marked(cell):
            noise = [output for output in outputs if rules._plain(output) is None]
            if noise:
                what = rules.text(noise[0].get("text", "a picture"))[:200]
                wrong.append(f"{rules.name(cell)} is marked and gives more than plain text: {what}")
            if not outputs:
                wrong.append(f"{rules.name(cell)} is marked and prints nothing")
    return wrong


def changed_outputs(before: dict, after: dict) -> list[str]:
    """Marked cells whose output in this run is not the stored one."""
    stored, found = rules.normalise(before)["cells"], rules.normalise(after)["cells"]
    return [
        f"{rules.name(new)} gives another output than the stored one"
        for old, new in zip(stored, found, strict=True)
        if rules.is_marked(new) and old["outputs"] != new["outputs"]
    ]


def refresh(path: Path) -> int:
    start = time.perf_counter()
    notebook = execute(path, "smoke")
    took, wrong = time.perf_counter() - start, unfit(notebook)
    if not wrong:
        changed = write(path, notebook)
        print(f"{path.name}: {took:.1f} s, {'stored' if changed else 'nothing new'}")
    return report(path, wrong)


def strip(path: Path) -> int:
    notebook = nbformat.read(path, as_version=4)
    print(f"{path.name}: {'stripped' if write(path, notebook) else 'nothing to strip'}")
    return 0


def check(path: Path) -> int:
    broken = rules.check(path)
    if not broken:
        print(f"{path.name}: all {len(rules.RULES)} rules kept")
    return report(path, [f"[{key}] {line}" for key, wrong in broken.items() for line in wrong])


def run(path: Path, scale: str, slowest: int, record: Path | None = None, bundled: bool = False) -> int:
    before, start = nbformat.read(path, as_version=4), time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        environment = dict(os.environ)
        if bundled:
            environment |= {"VITBOOK_DATA": empty, "VITBOOK_SYSTEM_DATA": empty}
            environment |= {"VITBOOK_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": empty}
        held = data_held(environment)
        after = execute(path, scale, environment=environment)
    took = time.perf_counter() - start
    print(f"{path.name}: {took:.1f} s at scale {scale}, kernel included")
    if record:
        chapter_times.add(record, [measured(path, after, took, held)])
    for cell in sorted(rules.Chapter(after, path).code, key=seconds, reverse=True)[:slowest]:
        print(f"  {seconds(cell):7.2f} s  {cell['id']}")
    return report(path, unfit(after) + changed_outputs(before, after))


def printed(notebook: dict) -> str:
    """All that its cells printed."""
    outputs = [output for cell in rules.Chapter(notebook, Path()).code for output in cell.get("outputs", [])]
    return "\n".join(rules.text(output["text"]) for output in outputs if output["output_type"] == "stream")


def measured(path: Path, notebook: dict, took: float, held: str) -> dict:
    """A row of the record. Raises ValueError for a notebook that does not say where it ran."""
    ran = chapter_times.ran(printed(notebook))
    if ran is None:
        raise ValueError(f"{path.name} prints no line 'Python ..., torch ..., device ..., scale ...'")
    day = datetime.now(timezone.utc).date().isoformat()
    return ran | {"chapter": path.stem, "data": held, "seconds": took, "day": day}


def data_held(environment: dict[str, str]) -> str:
    """What the machine holds that a chapter would otherwise download, or go without."""
    folders = environment.get("VITBOOK_DATA") or str(Path("~/.cache/vitbook").expanduser())
    folders = [Path(folder) for folder in folders.split(os.pathsep) if folder]
    system = Path(environment.get("VITBOOK_SYSTEM_DATA") or "/usr/share/datasets")
    places = {
        "Fashion-MNIST": [system / "fashion-mnist", *(f / "fashion_mnist.safetensors" for f in folders)],
        "ImageNet weights": [p for f in folders for p in f.glob("weights/*.safetensors")],
        "photos": [p for f in folders for p in [*f.glob("images/*"), f / "imagenette2-160"]],
    }
    return " + ".join(name for name, paths in places.items() if any(p.exists() for p in paths)) or "none"


def report(path: Path, wrong: list[str]) -> int:
    for line in wrong:
        print(f"{path.name}: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for word in ("refresh", "strip", "check"):
        commands.add_parser(word).add_argument("notebooks", nargs="*", type=Path)
    runner = commands.add_parser("run")
    runner.add_argument("notebooks", nargs="+", type=Path)
    runner.add_argument("--scale", choices=("smoke", "cpu", "gpu"), default="cpu")
    runner.add_argument("--slowest", type=int, default=8, help="how many cells to name")
    runner.add_argument("--record", action="store_true", help="write the time into book/times.csv")
    runner.add_argument("--bundled", action="store_true", help="hide all data but what the packages bring")
    given = parser.parse_args(arguments)
    paths = given.notebooks or rules.notebook_paths()
    if not paths:
        parser.error("there are no notebooks")
    failed = 0
    for path in paths:
        path = path.resolve()
        try:
            if given.command == "run":
                record = RECORD if given.record else None
                failed |= run(path, given.scale, given.slowest, record, given.bundled)
            else:
                failed |= {"refresh": refresh, "strip": strip, "check": check}[given.command](path)
        except (CellExecutionError, ValueError) as error:
            failed |= report(path, [str(error)])
    return failed


if __name__ == "__main__":
    sys.exit(main())
