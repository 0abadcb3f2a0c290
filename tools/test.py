"""Run every check of the book: ruff, then the tests and the notebooks in one pytest run.

    .venv/bin/python tools/test.py [--lint | --all] [pytest's own options]

Tests marked `slow` run with `--all` alone, which is `make test-all`.
The notebooks run at the smallest scale (`VITBOOK_SCALE=smoke`), two at a time with one thread each:
two torch processes of two threads each would stand in each other's way on two cores.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import chapter_file
import colab
import env
import running

ROOT = Path(__file__).resolve().parent.parent
# Every cell must run; what a marked cell prints must be what it stores.
NBVAL = ("--nbval-lax", f"--nbval-kernel-name={colab.KERNEL}", f"--nbval-cell-timeout={running.LIMITS['smoke']}")
SMALL = {"VITBOOK_SCALE": "smoke", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def lint() -> int:
    # No `ruff format`: a class stands in a notebook (79 columns) and in vitutils (100) in the same
    # words, and the formatter would break the lines of the two differently.
    print("ruff", flush=True)
    command = [sys.executable, "-m", "ruff", "check", "--quiet"]
    chapters = chapter_file.notebook_paths(ROOT)
    scratch = {*ROOT.glob("notebooks/*.ipynb")} - {*chapters}  # a reader's own, unfinished or not
    for name in [".venv-*", ".cache", *sorted(f"notebooks/{path.name}" for path in scratch)]:
        command += ["--extend-exclude", name]
    command.append(".")
    return subprocess.call(command, cwd=ROOT, env=env.surroundings(os.environ))


def call(command: list[str], settings: dict[str, str]) -> int:
    """Run pytest, and leave nothing of it behind when this is stopped."""
    with running.kernels_environment() as environment:
        process = subprocess.Popen(command, cwd=ROOT, env=environment | settings | SMALL)
        try:
            return process.wait()
        except running.Stopped:
            raise
        except KeyboardInterrupt:  # pytest has had it as well, and says how far it came
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            raise
        finally:
            running.end(process)


def main(arguments: list[str]) -> int:
    if code := lint():
        print("\nFaults above. Many are mended by: .venv/bin/python -m ruff check --fix .")
        return code
    if "--lint" in arguments:
        print("All clean.")
        return 0
    every = "--all" in arguments
    return running.command(ROOT, f"make test{'-all' * every}", lambda: test(every, arguments))


def test(every: bool, arguments: list[str]) -> int:
    """Run pytest over all. Raises ValueError where the notebooks or the package cannot be prepared."""
    limit, workers = running.cell_limit("smoke"), max(2, min(4, running.cores()))
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "tools.where_time_went"]
    command += [*NBVAL, f"--nbval-cell-timeout={limit:.0f}", "-n", str(workers)]
    command += ["--dist", "loadfile", "--no-loadscope-reorder", *([] if every else ["-m", "not slow"])]
    with tempfile.TemporaryDirectory(prefix="vitbook-", ignore_cleanup_errors=True) as folder:
        print("the package", flush=True)
        notebooks, settings = colab.prepare(ROOT, Path(folder))
        print(f"pytest: tests/ and {len(notebooks)} notebooks at smoke scale, {workers} at a time", flush=True)
        # The longest first: one that starts last is waited for.
        tests = sorted(ROOT.glob("tests/test_*.py"), key=lambda path: path.stat().st_size, reverse=True)
        rest = [argument for argument in arguments if argument != "--all"]
        return call([*command, *map(str, [*notebooks, *tests]), *rest], settings)


if __name__ == "__main__":
    sys.exit(env.run(lambda: main(sys.argv[1:])))
