"""What the commands share while they run: limits, one at a time, an end that leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

import env

LIMIT = "VITBOOK_CELL_TIMEOUT"
# Seconds a cell may run. The slowest whole chapter took 20 s, 220 s and 6 minutes here; a machine that is four times
# slower, and busy with something else, has to pass. gpu leaves room for a processor that runs those sizes.
LIMITS = {"smoke": 600, "cpu": 3_600, "gpu": 14_400}


def cell_limit(scale: str, environment: Mapping[str, str] = os.environ) -> float:
    """Seconds that a cell may run at this scale. Raises ValueError where VITBOOK_CELL_TIMEOUT is no number above 0."""
    given = environment.get(LIMIT, "").strip()
    with contextlib.suppress(ValueError):
        limit = float(given or LIMITS[scale])
        if 0 < limit < float("inf"):
            return limit
    raise ValueError(f"{LIMIT} is {given!r}; expected the seconds that a cell may run, such as {LIMITS[scale]}")


def cores() -> int:
    """The cores this process may use: in a container fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


@contextlib.contextmanager
def kernels_environment() -> Iterator[dict[str, str]]:
    """The environment of a process that starts kernels: env.surroundings, without the user's IPython start-up files."""
    with tempfile.TemporaryDirectory(prefix="vitbook-", ignore_cleanup_errors=True) as profile:
        yield env.surroundings(os.environ) | {"IPYTHONDIR": profile}


class Busy(Exception):
    """Another command is at work in this folder; the message says which."""


@contextlib.contextmanager
def alone(root: Path, what: str) -> Iterator[None]:
    """Hold the book's one lock. Raises Busy where another command holds it; a process that died holds nothing."""
    folder = root / "_build"
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(2, f"a link to {os.readlink(folder)}, which is not there: mount that disk", "_build")
    folder.mkdir(exist_ok=True)
    lock, holder = FileLock(folder / ".lock", timeout=0), folder / ".lock-holder"
    try:
        with contextlib.suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another command"
        raise Busy(f"{who} is at work in {root}. Wait until it has ended, or stop it.") from None
    try:
        holder.write_text(f"`{what}` (process {os.getpid()}, since {time.strftime('%H:%M')})", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: the same as Ctrl-C, with another exit status."""

    def __init__(self, number: int):
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that what stands in `finally` is done."""

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)  # once: a second one must not cut short the cleaning up
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)):
            if signal.getsignal(number) is signal.SIG_DFL:  # not where `nohup` has it ignored
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(process: subprocess.Popen, patience: float = 3.0) -> None:
    """End a process and all that it started, kernels and their workers too; they have groups of their own."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        top.suspend()  # it starts nothing more while they are counted
        below = top.children(recursive=True)
        top.kill()
        for end_it in ("terminate", "kill"):
            for one in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(one, end_it)()
            _, below = psutil.wait_procs(below, timeout=patience)
    process.wait()


def in_words(error: OSError, root: Path) -> str:
    """What a command says of a file that it could not read or write, in one line: a full disk, a closed folder."""
    path = str(error.filename or type(error).__name__)
    return f"{os.path.relpath(path, root) if os.path.isabs(path) else path}: {error.strerror or error}"


def command(root: Path, what: str, main: Callable[[], int]) -> int:
    """The exit status of main(), run alone; 2 with words for what is asked wrongly or cannot be read or written."""
    try:
        with stoppable(), alone(root, what):
            return main()
    except BrokenPipeError:  # nobody reads what is said: env.run ends quietly
        raise
    except (Busy, ValueError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"\nStopped: {in_words(error, root)}", file=sys.stderr)
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("\nStopped. What ran to its end is kept.", file=sys.stderr)
        return getattr(stop, "status", 130)
    return 2
