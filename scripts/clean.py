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
    """Hold another command's lock (scripts/running.py, scripts/env.py). Raises Busy where that command has it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows removes no open file anyway; no file: nobody holds it
            import fcntl

            file = stack.enter_context(path.open())
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{who()} is at work in {path.parent}. Wait until it has ended, or stop it.") from None
        yield


def remove(path):
    """A file, a folder with all that is in it, a link (never what it leads to), or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def clean(root, everything):
    build, holder = root / "_build", root / "_build" / ".lock-holder"
    with contextlib.ExitStack() as locks:
        named = lambda: holder.read_text(encoding="utf-8") if holder.exists() else "another command"  # noqa: E731
        locks.enter_context(held(build / ".lock", named))
        if everything:
            locks.enter_context(held(root / "requirements.txt", lambda: "a `make` that is installing"))
        # A link to another disk stays, and is emptied; one that leads to no folder goes.
        for path in [*build.iterdir()] if build.is_symlink() and build.is_dir() else [build]:
            remove(path)
        for pattern in BUILT + ENVIRONMENTS * everything:
            for path in root.glob(pattern):
                remove(path)
        for name in CODE:
            for folder, folders, _ in os.walk(root / name):
                for cache in CACHES.intersection(folders):
                    folders.remove(cache)
                    remove(Path(folder, cache))


def main():
    word = os.environ.get("ALL", "").strip().lower()
    if word not in ("", "0", "no", "false", "off", "1", "yes"):
        print(f"ALL={word}: the environments are kept. ALL=1 removes them.")
    try:
        clean(Path(__file__).resolve().parents[1], word in ("1", "yes"))
    except (Busy, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
