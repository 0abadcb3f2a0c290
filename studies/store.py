"""Rows of a study on disk: one run, one row, appended as the run ends; a study that was killed goes on where it was."""

import csv
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import torch
import torchvision
from filelock import FileLock, Timeout

RESULTS = Path(__file__).resolve().parent.parent / "results"


def script_hash(script: Path) -> str:
    """SHA-256 of a study's script, whatever its line ends: in its .json it tells results of an older script."""
    return hashlib.sha256(Path(script).read_bytes().replace(b"\r\n", b"\n")).hexdigest()


class Store:
    """results/NAME.csv and results/NAME.json of one study.

    key: the columns that tell runs apart.  Rows are dicts of plain values with the same fields each time.
    Two processes may append at once: each takes a lock on the file.
    """

    def __init__(self, script: Path, key: tuple[str, ...], folder: Path = RESULTS):
        self.script, self.key, self.folder = Path(script), key, folder
        self.csv = folder / f"{self.script.stem}.csv"
        self.json = folder / f"{self.script.stem}.json"

    def rows(self) -> list[dict[str, str]]:
        """All finished runs, as text fields."""
        if not self.csv.exists():
            return []
        with self.csv.open(newline="") as file:
            return list(csv.DictReader(file))

    def has(self, run: dict) -> bool:
        """Whether this run (its key fields) has a row already."""
        wanted = [str(run[name]) for name in self.key]
        return any([row[name] for name in self.key] == wanted for row in self.rows())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study's lock file: one writer at a time."""
        self.folder.mkdir(exist_ok=True)
        with FileLock(self.folder / f".{self.script.stem}.lock"):
            yield

    @contextmanager
    def claimed(self, run: dict) -> Iterator[bool]:
        """Take a run for this process: False where another process has it. A process that dies gives it back."""
        about = "|".join(str(run[name]) for name in self.key)
        folder = self.folder / f".{self.script.stem}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / hashlib.sha256(about.encode()).hexdigest()[:16])
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def append(self, row: dict) -> None:
        """Add one finished run. Raises ValueError where its fields are not those of the rows before it."""
        with self.locked():
            before = self.rows()
            if before and list(before[0]) != list(row):
                raise ValueError(f"{self.csv} has the fields {list(before[0])}, this row has {list(row)}")
            with self.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                if not before:
                    writer.writeheader()
                writer.writerow(row)

    def describe(
        self, configuration: dict, seconds: float, finished: bool = True, device: str | None = None
    ) -> None:
        """Write who, when and with what: configuration, script hash, commit, versions, device, seconds of all runs.

        finished: False at the start of a study, so that its first row already has a script it belongs to; the second
        time gives the end, and the seconds by the clock between the two (a pause of the study among them).
        device: where it ran, if not here.
        """
        commit = ""
        if shutil.which("git"):
            asked = ["git", "rev-parse", "HEAD"]
            commit = subprocess.run(asked, capture_output=True, text=True, cwd=self.script.parent).stdout.strip()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        started = json.loads(self.json.read_text()).get("started", now) if self.json.exists() else now
        wall = datetime.fromisoformat(now) - datetime.fromisoformat(started)
        about = {
            "script": f"studies/{self.script.name}",
            "script_sha256": script_hash(self.script),
            "configuration": configuration,
            "started": started,
            "finished": now if finished else None,
            "wall_seconds": round(wall.total_seconds()) if finished else None,
            "commit": commit or None,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "device": device or (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"),
            "threads_per_run": torch.get_num_threads(),
            "seconds_of_training": round(seconds),
        }
        with self.locked():
            self.json.write_text(json.dumps(about, indent=1) + "\n")
