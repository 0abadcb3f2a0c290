"""Make the book's virtual environment, then run a command inside it.

    python3 tools/env.py --for test tools/test.py

The first run creates `.venv` and installs requirements.txt into it; a stamp inside says what was installed, so that
later runs start at once. The goals `pages` and `pdf` install requirements-pages.txt besides, and `course` installs
requirements-course.txt, each with a stamp of its own.
`.venv` belongs to the Python that made it: another one (`make test PYTHON=python3.13`) gets its own, `.venv-3.13`.

Why not a rule of make with a stamp file: a checkout changes the files' times, and Windows has no make. Why not uv: it
does not read the reader's pip.conf, which may name the only index within reach. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = "requirements.txt"
MORE = {"pages": "requirements-pages.txt", "pdf": "requirements-pages.txt", "course": "requirements-course.txt"}
NEED_GB = 8
SHOWN = re.compile(r"^\s*Downloading .*\(\d{2,}\.\d MB\)|^Installing collected")
# What a failed step printed, and what to say of it: the first that is found.
KNOWN = {
    r"No space left on device|Errno 28\b|quota exceeded|not enough space on the disk": "Disk full while {doing}. The "
    f"environment needs about {NEED_GB} GB, less with the CPU build of torch: see README.md.",
    r"ensurepip is not available|No module named '?(venv|ensurepip)\b": f"This Python ({sys.executable}) has no venv "
    "module. On Debian and Ubuntu:\n\n    sudo apt install python3-venv\n",
    r"ResolutionImpossible|Failed to build|subprocess-exited-with-error": "Failed while {doing}.",
    r"NewConnectionError|NameResolutionError|TimeoutError|Timed? ?out|Max retries exceeded|connection broken by"
    r"|Connection (refused|reset)|Network is unreachable|Temporary failure in name|getaddrinfo failed|ProxyError"
    r"|SSLError|\(from versions: none\)": "No network while {doing}: the package index could not be reached. Check the "
    "connection (and, behind a proxy, HTTPS_PROXY).",
    "": "Failed while {doing}.",
}

# nbformat imports jsonschema, which imports rfc3987-syntax if it is there, as with JupyterLab: 38 grammars, compiled in
# every process anew (3 of its 3.2 seconds), for addresses with letters beyond ASCII. Every Python of .venv reads this.
QUICK = "import sys; sys.modules.setdefault('rfc3987_syntax', None)\n"

# What of the reader's shell does not reach a command, as it would change the book or where packages go: Python's and
# pip's own but for the kept ones; Jupyter, IPython, matplotlib and the tools as this reader, or this shell, set them
# up; another repository's git, as in a hook.
DROPPED = re.compile(
    r"PYTHON|PIP_|JUPYTER_|IPYTHON|JPY_|VSCODE_PID$|MPLBACKEND$|MATPLOTLIBRC$|PYTEST_|RUFF_|SPHINX(OPTS|BUILD)$|NBVAL_"
    r"|SOURCE_DATE_EPOCH$|GIT_(?!CONFIG|SSL|SSH|ASKPASS|TERMINAL|HTTP|PROXY)"
)
KEPT = re.compile(
    r"PYTHON(DONTWRITEBYTECODE|PYCACHEPREFIX|UNBUFFERED|FAULTHANDLER)$|PIP_(CONFIG_FILE|(EXTRA_)?INDEX_URL|NO_INDEX"
    r"|FIND_LINKS|TRUSTED_HOST|\w*CERT|PROXY|KEYRING_PROVIDER|\w*TIMEOUT|\w*RETRIES|\w*CACHE_DIR|\w*CONSTRAINT"
    r"|PREFER_BINARY|USE_\w+)$"
)
OWN_IN_LAB = re.compile(r"JUPYTER_(?!PATH$)|IPYTHON")  # whoever works in JupyterLab keeps their own key bindings
# A relative folder would be another one for each process that a command starts elsewhere, such as the kernels.
FOLDERS = re.compile(
    r"VITBOOK_(SYSTEM_)?DATA$|MPLCONFIGDIR$|SCIKIT_LEARN_DATA$|TMPDIR$|TE?MP$|PYTHONPYCACHEPREFIX$"
    r"|(XDG|HF|HUGGINGFACE|TRANSFORMERS|TORCH|TORCHINDUCTOR|TRITON|CUDA|NUMBA)_(\w+_)?(HOME|CACHE|DIR|CACHE_PATH)$"
    r"|(SSL_CERT|REQUESTS_CA|CURL_CA)_(FILE|DIR|BUNDLE)$"
)


class Problem(Exception):
    """Something the reader can mend; the message says how."""


def surroundings(environ, goal: str = "book", root: Path = ROOT) -> dict[str, str]:
    """The environment of every process that a command starts: the reader's, without what would change the book.

    Kept: what says where packages, data and devices are.
    """
    mine = OWN_IN_LAB if goal == "lab" else KEPT
    found = {n: v for n, v in environ.items() if not DROPPED.match(n) or KEPT.match(n) or mine.match(n)}
    found["PYTHONNOUSERSITE"] = "1"
    found["PYTHONUTF8"] = "1"  # whatever the locale: LANG=C would write and print ASCII
    found["JUPYTER_PREFER_ENV_PATH"] = "1"  # else a kernel installed for the user would run the notebooks
    found["MATPLOTLIBRC"] = os.devnull  # matplotlib's own defaults
    home = found.get("HOME") or os.path.expanduser("~")
    if os.name != "nt":
        if not (os.path.isabs(home) and os.access(f"{home}/.", os.W_OK | os.X_OK)):  # as in a container
            own = Path(root, ".cache", "home")
            print(f"The home folder ({home}) is not there or cannot be written: using {own}", flush=True)
            own.mkdir(parents=True, exist_ok=True)
            home = str(own)
        found["HOME"] = home
    for name in filter(FOLDERS.match, found):
        parts = found[name].split(os.pathsep) if name == "VITBOOK_DATA" else [found[name]]
        found[name] = os.pathsep.join(os.path.abspath(os.path.expanduser(part)) for part in parts if part)
    return found


# --- the environment ------------------------------------------------------------------------------


def python_in(folder: Path) -> str:
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def runs(*command: str) -> bool:
    try:
        return not subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False


def folder_for(root: Path, version) -> Path:
    """This Python's environment: `.venv`, or `.venv-3.13` where `.venv` is another Python's."""
    first, dotted = Path(root, ".venv"), "{}.{}".format(*version)
    try:
        made = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", (first / "pyvenv.cfg").read_text(), re.M)
    except OSError:
        made = None
    return first if not made or made[1] == dotted else first.with_name(f".venv-{dotted}")


def stamp_key(root: Path, version, *names: str) -> str:
    """What an environment depends on; the path too, because the editable install points there."""
    key = hashlib.sha256(repr((version[:2], os.path.realpath(root))).encode())
    for name in (BASE, "pyproject.toml", *names):
        key.update(Path(root, name).read_bytes().replace(b"\r\n", b"\n"))
    return key.hexdigest()


def missing(folder: Path, names: list[str]) -> list[str]:
    """Those of the lists that are not installed as they stand; all of them where the environment does not run."""
    if not runs(python_in(folder), "-c", ""):
        return names
    key = {folder / f"vitbook-{name}": stamp_key(ROOT, sys.version_info, name) for name in names}
    return [path.name[8:] for path, said in key.items() if not path.exists() or path.read_text() != said]


def call(command: list[str], doing: str, log: Path | None = None, **more) -> str:
    """What the command prints, kept in `log`; some of it is shown. Raises Problem where it fails."""
    more |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    output = ""
    with subprocess.Popen(command, cwd=ROOT, encoding="utf-8", errors="replace", **more) as process:
        for line in process.stdout:
            output += line
            if log and SHOWN.search(line):
                print("  " + line.strip()[:110], flush=True)
    if log:
        with contextlib.suppress(OSError):  # the disk may be full
            log.write_text(output, encoding="utf-8")
    if process.returncode:
        raise Problem(explain(output, doing) + (f"\nWhat was printed: {log}" if log else ""))
    return output


def explain(output: str, doing: str) -> str:
    """Why a step failed, from what it printed: in words where the reason is known, then the last errors themselves."""
    words = next(words for pattern, words in KNOWN.items() if re.search(pattern, output, re.I))
    lines = [line for line in output.splitlines() if "error" in line.lower()] or output.splitlines()
    return "\n    ".join([words.format(doing=doing), *(line.strip() for line in lines[-5:])])


def install(folder: Path, name: str) -> None:
    """Install what one list names, into an environment that is made where there is none whole, and note it."""
    stamp, log, python = folder / f"vitbook-{name}", folder / "vitbook-install.log", python_in(folder)
    if not runs(python, "-m", "pip", "--version"):
        print(f"Creating {folder.name} with Python {sys.version.split()[0]}", flush=True)
        free, new = shutil.disk_usage(ROOT).free / 1e9, not folder.exists()
        if free < NEED_GB:
            print(f"Note: {free:.1f} GB free here; torch's default build and the rest need about {NEED_GB}.")
        try:  # pip in a step of its own: `python -m venv` keeps to itself why its pip could not be installed
            call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], f"creating {folder.name}")
            call([python, "-m", "ensurepip", "--upgrade", "--default-pip"], f"creating {folder.name}")
        except Problem:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    print(f"Installing {name} into {folder.name} (minutes the first time; log: {log})", flush=True)
    stamp.unlink(missing_ok=True)
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "-r", str(ROOT / name)]
    settings = os.environ | {"PIP_USER": "0"}  # which a reader's pip.conf may ask for
    call([python, "-m", "pip", "install", *options], f"installing {name}", log, env=settings)
    packages = call([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], f"installing {name}")
    Path(packages.strip(), "vitbook-quick.pth").write_text(QUICK)
    stamp.write_text(stamp_key(ROOT, sys.version_info, name))


@contextlib.contextmanager
def only_one(root: Path):
    """Two `make` at once must not install into one folder. Windows has no such lock, nor have some file systems."""
    with Path(root, BASE).open() as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Another `make` is installing here; waiting for it.", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(goal: str) -> str:
    """The python of a ready environment, made or mended where need be."""
    folder, names = folder_for(ROOT, sys.version_info[:2]), [BASE, *filter(None, [MORE.get(goal)])]
    if missing(folder, names):
        with only_one(ROOT):
            for name in missing(folder, names):
                install(folder, name)
    return python_in(folder)


# --- the command ----------------------------------------------------------------------------------


def run(main) -> int:
    """What main() answers; 141, as of any program, where whoever read its output has gone (`| head -1`)."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is written when Python ends
        return 141


def main(arguments: list[str]) -> int:
    goal = "book"
    if arguments[:1] == ["--for"]:
        goal, arguments = arguments[1], arguments[2:]
    environment = surroundings(os.environ, goal)
    os.environ.clear()
    os.environ.update(environment)
    try:
        python = ensure(goal)
    except BrokenPipeError:
        raise
    except (Problem, OSError) as problem:
        print(f"\n{problem}\nThen run `make {goal}` again: it goes on from here.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. Nothing is lost: `make {goal}` goes on from here.", file=sys.stderr)
        return 130
    if not arguments:
        return 0
    folder = os.path.dirname(python)
    environment |= {"VIRTUAL_ENV": os.path.dirname(folder), "PATH": folder + os.pathsep + environment.get("PATH", "")}
    if os.name == "nt":
        return subprocess.call([python, *arguments], env=environment, cwd=ROOT)
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execve(python, [python, *arguments], environment)


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:])))
