"""Remove what was built, unless another command is at work on it.

    make clean          _build, build, the tools' caches
    make clean ALL=1    the environments too

Standard library only: what it removes is what the other commands run in.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

BUILT = ["build", ".pytest_cache", ".ruff_cache"]
ENVIRONMENTS = [".venv", ".venv-3.*", "vitutils.egg-info"]
CODE = ["vitutils", "tests", "tools", "notebooks", "book", "studies", "course"]
CACHES = {"__pycache__", ".ipynb_checkpoints"}


@contextlib.contextmanager
def held(path, who):
    """Hold another command's lock (tools/running.py, tools/env.py). Raises OSError where that command has it."""
    with path.open() if path.exists() else contextlib.nullcontext() as file:
        try:
            import fcntl

            if file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{who} is at work in {path.parent}. Wait until it has ended, or stop it.") from None
        except (ImportError, OSError):  # Windows removes no open file anyway; a file system without locks
            pass
        yield


def remove(path):
    """A file, a folder with all that is in it, a link (never what it leads to)."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def clean(root, everything):
    build, holder = root / "_build", root / "_build" / ".lock-holder"
    with contextlib.ExitStack() as locks:
        locks.enter_context(held(build / ".lock", holder.read_text() if holder.exists() else "another command"))
        if everything:
            locks.enter_context(held(root / "requirements.txt", "a `make` that is installing"))
        # A link to another disk stays, and is emptied.
        found = [*build.iterdir()] if build.is_symlink() and build.is_dir() else [build] * os.path.lexists(build)
        found += [path for pattern in BUILT + ENVIRONMENTS * everything for path in root.glob(pattern)]
        found += [path for name in CODE for path in (root / name).rglob("*") if path.name in CACHES]
        for path in found:
            remove(path)


if __name__ == "__main__":
    try:
        clean(Path(__file__).resolve().parents[1], os.environ.get("ALL", "").strip().lower() in ("1", "yes"))
    except OSError as error:
        sys.exit(f"{error}")
