"""What a waiting reader sees: how much a download takes, and a bar on one line that is gone when it is done."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


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
