"""Executes the notebooks of a build: in a kernel of this Python, within a limit, each failure in a reader's words.

MyST-NB's cached execution knows two ways to fail: an error in a cell and a timeout. A kernel that was killed, or one
that did not start, ends the build in a traceback that names neither chapter nor cell; after a timeout the error at
hand may be one of the kernel's sockets. Here whatever happens is reported at its cell, in one line.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

LIMIT = "VITBOOK_CELL_TIMEOUT"  # seconds a cell may run; scripts/running.py sets it by the scale
LONGEST = 400  # characters of an error's message
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class OnePython(KernelSpecManager):
    """Every kernel is this Python, whatever kernels the machine has, and whatever name a notebook brings."""

    def __init__(self, python: str | Path = sys.executable):
        super().__init__()
        self.python = str(python)

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class Run(NotebookClient):
    """One notebook's execution. It knows in which cell it is, and what became of its kernel's process."""

    def __init__(self, notebook, folder: str | Path, limit: float | None, python=sys.executable, **more):
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OnePython(python))
        super().__init__(
            notebook, km=manager, timeout=limit, resources={"metadata": {"path": str(folder)}}, **more
        )
        self.cell, self.process = None, None
        self.on_notebook_start = self.note_process
        self.on_cell_start = self.note_cell

    def note_process(self, notebook) -> None:
        self.process = getattr(self.km.provisioner, "process", None)

    def note_cell(self, cell, cell_index: int) -> None:
        self.cell = cell_index

    def finish(self, **more) -> None:
        """Run it to its end. Raises what went wrong."""
        kernelspec = self.nb.metadata.get("kernelspec", {})
        language = kernelspec.get("language") or self.nb.metadata.get("language_info", {}).get("name") or "python"
        if language.lower() not in ("python", "python3", "ipython"):
            raise ValueError(f"is a notebook in {language} (kernel {kernelspec.get('name')!r}); expected one in Python")
        self.execute(cleanup_kc=True, **more)  # it is our manager: nbclient would leave the kernel running

    def words(self, error: BaseException) -> str:
        """What went wrong, in one line, and where it can be mended what to do."""
        known = (CellExecutionError, CellTimeoutError, DeadKernelError)
        causes = list(chain(error))
        error = next((cause for cause in causes if isinstance(cause, known)), error)
        if isinstance(error, CellExecutionError):
            return said(error)
        if isinstance(error, CellTimeoutError):
            return (
                f"CellTimeoutError: ran longer than the {self.timeout:g} seconds that a cell may take. "
                f"On a slower or busy machine raise the limit: {LIMIT}={2 * self.timeout:.0f} make book"
            )
        if isinstance(error, DeadKernelError) or "Kernel died" in str(error):
            return f"DeadKernelError: the kernel {self.end()}"
        return shorten(f"{type(error).__name__}: {error}")

    def end(self) -> str:
        """How the kernel's process ended."""
        if self.process is None:
            return "did not start. What it said of it stands in the log of the build"
        code = self.process.poll()
        if code == -getattr(signal, "SIGKILL", 9):
            return (
                "was killed (SIGKILL), as a system does that runs out of memory. Close other programs, "
                "or take smaller sizes: VITBOOK_SCALE=smoke make book"
            )
        if code is not None and code < 0:
            return f"was ended by a signal ({signal.Signals(-code).name})"
        return "ended by itself" + (f" (exit status {code})" if code is not None else "")


def chain(error: BaseException | None):
    """The error and what it came from."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 2] + " …"


def said(error: CellExecutionError) -> str:
    """The error of a cell, and the line of the cell that led to it."""
    what = f"{error.ename}: {shorten(error.evalue)}" if error.evalue else error.ename
    arrows = re.findall(r"^-+> ?(\d+) (.*)$", ANSI.sub("", error.traceback), re.M)
    return f"{what} (line {arrows[0][0]}: {arrows[0][1].strip()})" if arrows else what


def run(client, notebook, cwd: str, timeout: float, **_):
    """In place of jupyter-cache's `single_nb_execution`: `client` is MyST-NB's, which knows the page."""
    from jupyter_cache.executors.utils import ExecutionResult

    limit = float(os.environ.get(LIMIT) or timeout)
    begun = time.perf_counter()
    failure, attempt = None, Run(notebook, cwd, limit, record_timing=False)  # times would change the cache's key
    try:
        attempt.finish()
    except Exception as error:  # whatever it is, it is said where it happened
        failure = error
        line = 1 if attempt.cell is None else client.cell_line(attempt.cell)
        client.logger.error(attempt.words(error), subtype="exec", line=line)
    return ExecutionResult(notebook, cwd, time.perf_counter() - begun, failure, str(failure))


def forget_half_kept(store, notebook) -> None:
    """A build that was stopped while it put a notebook into the cache left a record without its file, or half of it."""
    from jupyter_cache.cache.db import NbCacheRecord

    record = None
    with suppress(KeyError):
        record = store.match_cache_notebook(notebook)
    if record is None:
        return
    try:
        store.get_cache_bundle(record.pk)
    except (KeyError, ValueError):  # no file; no JSON, or not the form of a notebook
        shutil.rmtree(Path(store.path, "executed", record.hashkey), ignore_errors=True)
        NbCacheRecord.remove_record(record.pk, store.db)


def setup(app):
    import myst_nb.core.execute as execution
    from myst_nb.core.execute import cache

    class Client(cache.NotebookClientCache):
        def start_client(self):
            forget_half_kept(cache.get_cache(self.nb_config.execution_cache_path), self.notebook)
            cache.single_nb_execution = lambda notebook, **how: run(self, notebook, **how)
            super().start_client()

    execution.NotebookClientCache = Client
    return {"parallel_read_safe": False, "parallel_write_safe": True}
