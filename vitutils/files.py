"""Where the book's files are, how to write one whole or not at all, and what a waiting reader sees of a download."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from uuid import uuid4


def data_folders() -> list[Path]:
    """The folders of `$VITBOOK_DATA`, split at os.pathsep, or `~/.cache/vitbook`; see `data.load`."""
    named = [part for part in os.environ.get("VITBOOK_DATA", "").split(os.pathsep) if part]
    return [Path(part).expanduser() for part in named or ["~/.cache/vitbook"]]


def system_folder() -> Path:
    """Where the system keeps data sets: `$VITBOOK_SYSTEM_DATA`, or Debian's folder."""
    return Path(os.environ.get("VITBOOK_SYSTEM_DATA") or "/usr/share/datasets")


def sweep(folder: Path) -> None:
    """Remove from the cache what killed processes left half done, once it is a day old."""
    for path in [*folder.glob(".download-*"), *folder.glob(".*.part")]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def stand_in(used: str, wanted: str) -> None:
    """Print that one thing takes another's place. When the book is built, this line is read: book/_ext/fallbacks.py."""
    print(f"stand-in: {used} in place of {wanted}")


def short(path: Path) -> str:
    """The path with the home folder written ~."""
    home, text = str(Path.home()), str(path)
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block it becomes `path`, so that nobody sees half a file.

    The folder is made. After an error `path` is as it was, and nothing else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid4().hex[:8]}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def show_progress() -> bool:
    """Whether somebody watches: a terminal, Jupyter, Colab or VS Code; not a notebook that a build or a test runs."""
    live = "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ or "google.colab" in sys.modules
    return live or sys.stderr.isatty()


class _OneLine(io.TextIOBase):
    """A library's progress bar, which believes that it writes to stderr: to stdout, each time over the same line.

    The announcement comes before the bar's first sign: a server that does not answer is not announced.
    """

    encoding = "utf-8"

    def __init__(self, announcement: str) -> None:
        self.announcement, self.out, self.shows, self.width = announcement, sys.stdout, show_progress(), 0

    def announce(self) -> None:
        if self.announcement:
            print(self.announcement, file=self.out, flush=True)
            self.announcement = ""

    def write(self, text: str) -> int:
        self.announce()
        if self.shows:
            line = text.replace("\n", "")
            self.width = max(self.width, len(line))
            self.out.write(line)
            self.out.flush()
        return len(text)

    def clear(self) -> None:
        if self.width:
            self.out.write("\r" + " " * self.width + "\r")
            self.out.flush()


@contextmanager
def downloading(name: str, megabytes: float, answered: bool = False) -> Iterator[None]:
    """Around a library's download: say how much it takes once the server answers, and show its bar to a reader.

    answered: the server did already.  What the library writes to stderr goes nowhere else: on a page it would fail the
    build.
    """
    bar = _OneLine(f"downloading {name} once, {megabytes:.0f} MB")
    if answered:
        bar.announce()
    try:
        with redirect_stderr(bar):
            yield
    finally:
        bar.clear()
