"""Executes the notebooks of a build: in a kernel of this Python, within a limit, each failure in a reader's words.

MyST-NB's cached execution knows two ways to fail: an error in a cell and a timeout. A kernel that was killed, or one
that did not start, ends the build in a traceback that names neither chapter nor cell; after a timeout the error at
hand may be one of the kernel's sockets. Here whatever happens is reported at its cell, in one line.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

LIMIT = "VITBOOK_CELL_TIMEOUT"  # seconds a cell may run; tools/running.py sets it by the scale
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
        super().__init__(notebook, km=manager, timeout=limit, resources={"metadata": {"path": str(folder)}}, **more)
        self.cell, self.process = None, None
        self.on_notebook_start = lambda notebook: setattr(self, "process", manager.provisioner.process)
        self.on_cell_start = lambda cell, cell_index: setattr(self, "cell", cell_index)

    def finish(self, **more) -> None:
        """Run it to its end. Raises what went wrong."""
        kernelspec = self.nb.metadata.get("kernelspec", {})
        language = kernelspec.get("language") or self.nb.metadata.get("language_info", {}).get("name") or "python"
        if language.lower() not in ("python", "python3", "ipython"):
            raise ValueError(f"is a notebook in {language} (kernel {kernelspec.get('name')!r}); expected one in Python")
        self.execute(cleanup_kc=True, **more)  # it is our manager: nbclient would leave the kernel running

    def words(self, error: BaseException) -> str:
        """What went wrong, in one line, and where it can be mended what to do."""
        causes, cause = [], error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        known = (CellExecutionError, CellTimeoutError, DeadKernelError)
        error = next((cause for cause in causes if isinstance(cause, known)), error)
        if isinstance(error, CellExecutionError):
            arrows = re.findall(r"^-+> ?(\d+) (.*)$", ANSI.sub("", error.traceback), re.M)
            line = f" (line {arrows[0][0]}: {arrows[0][1].strip()})" if arrows else ""
            return shorten(f"{error.ename}: {error.evalue}".removesuffix(": ")) + line
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
        if code == -9:
            return (
                "was killed (SIGKILL), as a system does that runs out of memory. Close other programs, "
                "or take smaller sizes: VITBOOK_SCALE=smoke make book"
            )
        return f"ended by itself (exit status {code})"


def shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 2] + " …"


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


def setup(app):
    import myst_nb.core.execute as execution
    from myst_nb.core.execute import cache

    class Client(cache.NotebookClientCache):
        def start_client(self):
            cache.single_nb_execution = lambda notebook, **how: run(self, notebook, **how)
            try:
                super().start_client()
            except (KeyError, ValueError):  # a build was killed while it put a notebook into the cache
                cache.get_cache(self.nb_config.execution_cache_path).clear_cache()
                super().start_client()

    execution.NotebookClientCache = Client
    return {"parallel_read_safe": False, "parallel_write_safe": True}
