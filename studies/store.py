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


class NotYet(Exception):
    """What a run needs is not there: a search that is not over, a teacher that is not trained."""


class Store:
    """NAME.csv and NAME.json of one study in a folder.

    key: the columns that tell runs apart.  Rows are dicts of plain values with the same fields each time.
    scale: which of its sizes the study runs at.  Several processes may read, claim and append at once.
    """

    def __init__(self, name: str, key: tuple[str, ...], folder: Path = RESULTS, scale: str = "cpu"):
        self.name, self.key, self.folder, self.scale = name, tuple(key), Path(folder), scale
        self.csv, self.json = (self.folder / f"{name}.{kind}" for kind in ("csv", "json"))
        self.own = self.folder / f".{name}"  # locks, and what runs leave for others
        self._read: tuple[int, list[dict[str, str]]] = (0, [])  # bytes of the file, rows

    def rows(self) -> list[dict[str, str]]:
        """All finished runs, as text fields."""
        size = self.csv.stat().st_size if self.csv.exists() else 0
        if size != self._read[0]:
            with self.csv.open(newline="", encoding="utf-8") as file:
                self._read = size, list(csv.DictReader(file))
        return self._read[1] if size else []

    def find(self, run: dict) -> dict[str, str] | None:
        """The row of this run (told by its key fields), or None."""
        wanted = [str(run[name]) for name in self.key]
        return next((row for row in self.rows() if [row[name] for name in self.key] == wanted), None)

    def has(self, run: dict) -> bool:
        """Whether this run has a row already."""
        return self.find(run) is not None

    def locked(self) -> FileLock:
        """The study's lock, to be held by `with`: one writer at a time."""
        self.own.mkdir(parents=True, exist_ok=True)
        return FileLock(self.own / "writing.lock")

    @contextmanager
    def claimed(self, run: dict) -> Iterator[bool]:
        """Take a run for this process: False where another process has it. A process that dies gives it back."""
        about = "|".join(str(run[name]) for name in self.key)
        self.own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.own / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.lock", timeout=0)
        try:
            lock.acquire()
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
            with self.csv.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                if not file.tell():  # a file with its header alone has no rows either
                    writer.writeheader()
                writer.writerow(row)

    def about(self) -> dict:
        """What the .json says; nothing where there is none."""
        return json.loads(self.json.read_text(encoding="utf-8")) if self.json.exists() else {}

    def write(self, **fields) -> None:
        """Set fields of the .json and leave the others as they are; whoever reads it meanwhile finds it whole."""
        with self.locked():
            text = json.dumps(self.about() | fields, indent=1) + "\n"
            half = self.own / self.json.name
            half.write_text(text, encoding="utf-8", newline="\n")
            half.replace(self.json)

    def begin(self, **fields) -> None:
        """Say who starts, when, and with what (stamp, configuration, predictions), before the first row."""
        commit = ""
        if shutil.which("git"):
            asked = ["git", "rev-parse", "HEAD"]
            commit = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
        self.write(
            script=f"studies/{self.name}.py",
            **fields,
            started=now(),
            finished=None,
            wall_seconds=None,
            commit=commit or None,
            python=platform.python_version(),
            torch=torch.__version__,
            torchvision=torchvision.__version__,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            threads_per_run=torch.get_num_threads(),
        )

    def end(self, **fields) -> None:
        """Say when the last row came, the seconds by the clock since the start (pauses too), and those of all runs."""
        wall = datetime.fromisoformat(now()) - datetime.fromisoformat(self.about()["started"])
        trained = sum(float(row["seconds"]) for row in self.rows())
        self.write(
            finished=now(), wall_seconds=round(wall.total_seconds()), seconds_of_training=round(trained), **fields
        )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
