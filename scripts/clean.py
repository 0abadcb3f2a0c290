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
CODE = ["vitutils", "tests", "scripts", "notebooks", "book", "studies"]
CACHES = {"__pycache__", ".ipynb_checkpoints"}


class Busy(Exception):
    """Another command is at work here; the message says which."""


@contextlib.contextmanager
def held(path, who):
    """Hold a lock of another command's (scripts/running.py, scripts/env.py). Raises Busy where that command has it."""
    try:
        import fcntl

        file = path.open()
    except (ImportError, OSError):  # on Windows an open file cannot be removed anyway; without the file nobody holds it
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{who()} is at work in {path.parent}. Wait until it has ended, or stop it.") from None
        except OSError:  # a file system without locks
            pass
        yield


def remove(path):
    """A file, a folder with all that is in it, a link (never what it leads to), or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def remove_build(folder):
    """A link to another disk stays, and is emptied; one that leads to no folder goes."""
    if folder.is_symlink() and folder.is_dir():
        for path in folder.iterdir():
            remove(path)
    else:
        remove(folder)


def clean(root, everything):
    holder, listed = root / "_build" / ".lock-holder", root / "requirements.txt"

    def named():
        return holder.read_text(encoding="utf-8") if holder.exists() else "another command"

    with contextlib.ExitStack() as locks:
        locks.enter_context(held(root / "_build" / ".lock", named))
        if everything:
            locks.enter_context(held(listed, lambda: "a `make` that is installing"))
        remove_build(root / "_build")
        for pattern in BUILT + (ENVIRONMENTS if everything else []):
            for path in root.glob(pattern):
                remove(path)
        for name in CODE:
            for folder, folders, _ in os.walk(root / name):
                for cache in CACHES.intersection(folders):
                    folders.remove(cache)
                    remove(Path(folder, cache))


def main():
    root, word = Path(__file__).resolve().parent.parent, os.environ.get("ALL", "").strip()
    everything = word.lower() in ("1", "yes")
    if not everything and word.lower() not in ("", "0", "no", "false", "off"):
        print(f"ALL={word}: the environments are kept. ALL=1 removes them.")
    try:
        clean(root, everything)
    except (Busy, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
