"""Execute pages before jupyter-book reads them, several at once, into the cache that it looks in.

jupyter-book executes one notebook after another, and two threads on two cores are far from twice as fast as one. So
chapters and pages of solutions run side by side here, each with its share of the cores. Left to jupyter-book: those
that measure time, which must have the machine to themselves, and those that fail here, for it says where and why.

    python tools/ahead.py PAGE OUT    one of them, by `ahead`; ends when its standard input closes
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig

import chapter_file
import running

TIMES = re.compile(r"timing\.(race|clock)\(|\bthreads=")
MOST = 4  # at once: each holds a gigabyte or two


def measures_time(notebook: nbformat.NotebookNode) -> bool:
    """Whether a cell compares seconds, which a neighbour would change."""
    return any(cell.cell_type == "code" and TIMES.search(cell.source) for cell in notebook.cells)


def read(path: Path) -> nbformat.NotebookNode | None:
    """A page as the notebook that MyST-NB makes of it, whose hash is the cache's key; None if it runs nothing."""
    content = path.read_text(encoding="utf-8")
    reader = create_nb_reader(str(path), MdParserConfig(), NbParserConfig(), content)
    return reader and reader.read(content)


def left(root: Path, cache) -> list[Path]:
    """The pages that can run side by side and whose outputs the cache does not have: chapters first."""
    pages = [root / f"{entry}.md" for entry in chapter_file.toc_files(root)]
    found = []
    for path in [*chapter_file.notebook_paths(root), *(path for path in pages if path.exists())]:
        try:
            notebook = read(path)
        except Exception:  # jupyter-book says what is wrong with it
            continue
        if notebook and not measures_time(notebook):
            try:
                cache.match_cache_notebook(notebook)
            except (KeyError, ValueError):  # a ValueError is a cache that a killed build left half-written
                found.append(path)
    return found


def ahead(root: Path, scale: str) -> None:
    """Execute what can run side by side; on one core, on a GPU or with a single page, nothing."""
    if scale == "gpu" or running.cores() < 2:
        return
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    cache = get_cache(root / "_build" / ".jupyter_cache")
    waiting, at_once = left(root, cache), min(MOST, running.cores())
    if len(waiting) < 2:
        return
    running_now: dict[subprocess.Popen, tuple[Path, Path]] = {}
    with tempfile.TemporaryDirectory(prefix="vitbook-") as folder, running.kernels_environment() as environment:
        environment[running.LIMIT] = str(running.cell_limit(scale))
        environment.setdefault("OMP_NUM_THREADS", str(running.cores() // at_once))
        try:
            while waiting or running_now:
                while waiting and len(running_now) < at_once:
                    path = waiting.pop(0)
                    out = Path(folder, path.name)
                    command = [sys.executable, __file__, str(path), str(out)]
                    silent = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                    started = subprocess.Popen(command, env=environment, start_new_session=True, **silent)
                    running_now[started] = path, out
                    print(f"  {path.name}: executing", flush=True)
                for process in [process for process in running_now if process.poll() is not None]:
                    path, out = running_now.pop(process)
                    process.stdin.close()
                    if process.returncode:
                        print(f"  {path.name}: failed; it is executed once more, by itself", flush=True)
                        continue
                    told = json.loads(out.read_text(encoding="utf-8"))
                    notebook, data = nbformat.from_dict(told["notebook"]), {"execution_seconds": told["seconds"]}
                    cache.add_nb_to_project(str(path))
                    cache.cache_notebook_bundle(
                        CacheBundleIn(notebook, str(path), data=data), check_validity=False, overwrite=True
                    )
                    print(f"  {path.name}: {told['seconds']:.0f} s", flush=True)
                time.sleep(0.2)
        finally:
            for process in running_now:
                running.end(process)
                process.stdin.close()


def execute(path: Path, out: Path) -> None:
    """Run one notebook; write it, with its seconds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
    import runner

    notebook, begun = read(path), time.perf_counter()
    runner.Run(notebook, path.parent, float(os.environ[running.LIMIT]), record_timing=False).finish()
    seconds = time.perf_counter() - begun
    out.write_text(json.dumps({"notebook": notebook, "seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    execute(Path(sys.argv[1]), Path(sys.argv[2]))
