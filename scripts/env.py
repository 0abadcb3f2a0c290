"""Make the book's virtual environment, then run a command inside it.

    python3 scripts/env.py --for test scripts/test.py

The first run creates `.venv` and installs requirements.txt into it; a stamp inside says what was
installed, so that later runs start at once. The goals `pages` and `pdf` install requirements-pages.txt
besides, with a stamp of its own: the other commands neither need it nor notice. `.venv` belongs to the
Python that made it: another one (`make test PYTHON=python3.13`) gets its own folder, `.venv-3.13`, and
neither ever stands in for the other.

Standard library only, and no syntax that Python 2.7 does not know: an interpreter that is too old
has to get far enough to say so in words.
"""
# ruff: noqa: UP010, UP030, UP032

from __future__ import print_function

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys

LOWEST, HIGHEST = (3, 10), (3, 13)
NEED_GB = 8
STAMP = "vitbook-stamp"
LOG = "vitbook-install.log"
BASE = "requirements.txt"
MORE = {"pages": "requirements-pages.txt", "pdf": "requirements-pages.txt"}  # goal: what it needs besides
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

DISK = re.compile(
    r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b"
    r"|not enough space on the disk",
    re.I,
)
CONFLICT = re.compile(r"ResolutionImpossible|Failed to build|subprocess-exited-with-error", re.I)
NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Max retries exceeded"
    r"|connection broken by|Connection refused|Connection reset|Network is unreachable"
    r"|Name or service not known|Temporary failure in name resolution|getaddrinfo failed"
    r"|ProxyError|SSLError|IncompleteRead|\(from versions: none\)",
    re.I,
)
NO_VENV = re.compile(r"ensurepip is not available|No module named '?(venv|ensurepip)\b", re.I)
DOWNLOADS = re.compile(r"^\s*Downloading .*\(\d{2,}\.\d MB\)|^Installing collected")


# What may reach a command from the reader's shell, and what may not: see `surroundings`.
KEPT_PYTHON = "DONTWRITEBYTECODE|PYCACHEPREFIX|HASHSEED|UNBUFFERED|FAULTHANDLER|PATH"
KEPT_PIP = (
    "CONFIG_FILE|(EXTRA_)?INDEX_URL|NO_INDEX|FIND_LINKS|TRUSTED_HOST|CERT|CLIENT_CERT|PROXY|KEYRING_PROVIDER"
    "|(DEFAULT_)?TIMEOUT|RETRIES|RESUME_RETRIES|CACHE_DIR|NO_CACHE_DIR|CONSTRAINT|BUILD_CONSTRAINT|PREFER_BINARY"
    "|USE_FEATURE|USE_DEPRECATED"
)
DROPPED = re.compile(
    # Python's own, pip's: all but those
    r"PYTHON(?!({0})$)|PIP_(?!({1})$)"
    # Jupyter, IPython and matplotlib as this reader has set them up, or as this shell was started by them
    r"|JUPYTER_|IPYTHON|JPY_|VSCODE_PID$|MPLBACKEND$|MATPLOTLIBRC$"
    # tools that are run: their options come from the command
    r"|PYTEST_|RUFF_|SPHINXOPTS$|SPHINXBUILD$|NBVAL_"
    # another repository's, as in a git hook
    r"|GIT_(DIR|WORK_TREE|IMPLICIT_WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|COMMON_DIR"
    r"|PREFIX|NAMESPACE|SHALLOW_FILE|GRAFT_FILE|EXTERNAL_DIFF|(NO)?GLOB_PATHSPECS|LITERAL_PATHSPECS)$".format(
        KEPT_PYTHON, KEPT_PIP
    )
)
# Where data, weights, caches and certificates are. A relative one would be another folder for each process that a
# command starts elsewhere: the kernels work in notebooks/, pip in the book's folder.
FOLDERS = re.compile(
    r"VITBOOK_(SYSTEM_)?DATA$|XDG_(CONFIG|CACHE|DATA|STATE)_HOME$|XDG_RUNTIME_DIR$|MPLCONFIGDIR$|SCIKIT_LEARN_DATA$"
    r"|HF_(HOME|HUB_CACHE|ASSETS_CACHE|XET_CACHE|TOKEN_PATH|DATASETS_CACHE)$|HUGGINGFACE_HUB_CACHE$|TRANSFORMERS_CACHE$"
    r"|TORCH_(HOME|EXTENSIONS_DIR)$|TORCHINDUCTOR_CACHE_DIR$|TRITON_(HOME|CACHE_DIR|DUMP_DIR)$|CUDA_CACHE_PATH$"
    r"|NUMBA_CACHE_DIR$|PYTHONPYCACHEPREFIX$|(TMPDIR|TEMP|TMP)$|(SSL_CERT|REQUESTS_CA|CURL_CA)_(FILE|DIR|BUNDLE)$"
)
LISTS = ("VITBOOK_DATA",)  # several folders, split at os.pathsep
# With anything else than a number up to this, Python does not start, or Sphinx ends in a traceback.
NUMBERS = {"PYTHONHASHSEED": 2**32 - 1, "SOURCE_DATE_EPOCH": 10**11 - 1}
OWN_IN_LAB = re.compile(r"JUPYTER_(?!PATH$)|IPYTHON")  # whoever works in JupyterLab keeps their own key bindings


class Problem(Exception):
    """Something the reader can mend; the message says how."""


def writable(folder):
    """Can something be put into this folder, made where need be?"""
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def surroundings(environ, goal="book", root=ROOT):
    """The environment of every process that a command starts: the reader's, without what would change the book.

    The one place for it, used by this script, book.py, test.py and notebooks.py. What a reader has set for other work
    (start-up files, other folders to import or install from, a matplotlibrc, `python -O` that drops every assert)
    must not reach a chapter. Kept: what says where packages, data and devices are.
    """
    found = {}
    for name, value in environ.items():
        if not DROPPED.match(name) or (goal == "lab" and OWN_IN_LAB.match(name)):
            found[name] = value
    inside = [os.path.realpath(part) for part in found.pop("PYTHONPATH", "").split(os.pathsep) if part]
    inside = [part for part in inside if (part + os.sep).startswith(os.path.realpath(root) + os.sep)]
    if inside:
        found["PYTHONPATH"] = os.pathsep.join(inside)
    found["PYTHONNOUSERSITE"] = "1"
    found["PYTHONUTF8"] = "1"  # whatever the locale: LANG=C would write and print ASCII
    found["JUPYTER_PREFER_ENV_PATH"] = "1"  # else a kernel installed for the user would run the notebooks
    found["MATPLOTLIBRC"] = os.devnull  # matplotlib's own defaults
    for name in sorted(NUMBERS):
        text = found.get(name)
        if text is not None and not valid(name, text):
            del found[name]
            if text:
                print("{0} is {1!r}, which is no number for it: left out".format(name, text))
                sys.stdout.flush()
    found = with_folders(with_home(found, root))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR"):
        if name in found and not writable(found[name]):
            del found[name]
    return found


def valid(name, text):
    if (name, text) == ("PYTHONHASHSEED", "random"):
        return True
    return bool(re.match(r"[0-9]{1,11}\Z", text)) and int(text) <= NUMBERS[name]


def with_folders(environ):
    """The folders that it names, each by its whole path: a relative one begins where the command was called."""
    for name in environ:
        if FOLDERS.match(name):
            parts = environ[name].split(os.pathsep) if name in LISTS else [environ[name]]
            environ[name] = os.pathsep.join(whole(part, environ.get("HOME")) for part in parts if part)
    return environ


def whole(path, home):
    """The path with `~` written out, and made absolute."""
    if home and re.match(r"~($|[/{0}])".format(re.escape(os.sep)), path):
        path = home + path[1:]
    return os.path.abspath(os.path.expanduser(path))


def with_home(environ, root):
    """A home folder that can be written: a user without one (in a container, say) gets a folder of the book."""
    if os.name == "nt":
        return environ
    home = environ.get("HOME") or os.path.expanduser("~")
    if os.path.isabs(home) and os.path.isdir(home) and writable(home):
        environ["HOME"] = home
        return environ
    own = os.path.join(root, ".cache", "home")
    print("The home folder ({0}) is not there or cannot be written: using {1}".format(home, own))
    sys.stdout.flush()
    if not os.path.isdir(own):
        os.makedirs(own)
    old = os.path.join(home, ".cache", "vitbook")
    if "VITBOOK_DATA" not in environ and os.path.isdir(old):
        environ["VITBOOK_DATA"] = os.pathsep.join([os.path.join(own, ".cache", "vitbook"), old])
    environ["HOME"] = own
    return environ


def dotted(version):
    return ".".join(str(part) for part in version[:2])


def on_path(name):
    """The first executable of that name on PATH that runs (pyenv leaves names that do not)."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK) and runs([path, "-c", ""]):
            return path
    return None


def runs(command):
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call(command, stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


def check_version(version, goal="book", find=on_path):
    """Raise Problem unless LOWEST <= version <= HIGHEST."""
    version = tuple(version[:2])
    if LOWEST <= version <= HIGHEST:
        return
    word = "old" if version < LOWEST else "new"
    wanted = ["python3.12", "python3.11", "python3.13", "python3.10"]
    here = [name for name in wanted if find(name)]
    if here:
        hint = "Found on this machine: try\n\n    make {0} PYTHON={1}".format(goal, here[0])
    else:
        hint = (
            "None of these was found on this machine. Install one (python.org, or your system's\n"
            "packages), then try\n\n    make {0} PYTHON=python3.12".format(goal)
        )
    raise Problem(
        "Python too {0}: found {1} ({2}), needs {3} to {4}.\n{5}".format(
            word, dotted(version), sys.executable, dotted(LOWEST), dotted(HIGHEST), hint
        )
    )


def python_in(folder):
    if os.name == "nt":
        return os.path.join(folder, "Scripts", "python.exe")
    return os.path.join(folder, "bin", "python")


def version_of(folder):
    """(major, minor) of a virtual environment, None where its pyvenv.cfg does not say."""
    try:
        with open(os.path.join(folder, "pyvenv.cfg")) as lines:
            found = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", lines.read(), re.M)
    except OSError:
        return None
    return (int(found.group(1)), int(found.group(2))) if found else None


def folder_for(root, version):
    """This Python's environment: `.venv`, or `.venv-3.13` where `.venv` is another Python's."""
    first = os.path.join(root, ".venv")
    if not os.path.isdir(first) or version_of(first) in (None, tuple(version[:2])):
        return first
    return first + "-" + dotted(version)


def stamp_key(root, version, *names):
    """What an environment depends on; the path too, because the editable install points there."""
    key = hashlib.sha256(repr((dotted(version), os.path.realpath(root))).encode("utf-8"))
    for name in (BASE, "pyproject.toml") + names:
        with open(os.path.join(root, name), "rb") as file:
            key.update(file.read().replace(b"\r\n", b"\n"))
    return key.hexdigest()


def layers(root, version, goal):
    """What this goal needs, in order: (file to install, name of its stamp, what the stamp must say)."""
    found = [(BASE, STAMP, stamp_key(root, version))]
    if goal in MORE:
        name = MORE[goal]
        stamp = STAMP + "-" + os.path.splitext(name)[0].split("-")[-1]
        found.append((name, stamp, stamp_key(root, version, name)))
    return found


def says(folder, stamp, key):
    try:
        with open(os.path.join(folder, stamp)) as file:
            return file.read().strip() == key
    except OSError:
        return False


def missing(folder, wanted):
    """Those of the layers that are not installed; all of them where the environment does not run."""
    left = [layer for layer in wanted if not says(folder, layer[1], layer[2])]
    if left[:1] != wanted[:1] and not runs([python_in(folder), "-c", ""]):
        return wanted
    return left


def explain(output, log, goal, doing):
    """One message for a failed step, from what it printed (which is kept in `log`, or None)."""
    flat = " ".join(output.split())
    again = "Then run `make {0}` again: it goes on from here.".format(goal)
    kept = "\nWhat was printed: {0}".format(log) if log else ""
    if DISK.search(flat):
        return (
            "Disk full while {0}.\n"
            "The environment needs about {1} GB (less with the CPU build of torch: see\n"
            "README.md). `pip cache purge` often frees some; for a full /tmp: TMPDIR=/other.\n"
            "{2}{3}"
        ).format(doing, NEED_GB, again, kept)
    if NO_VENV.search(flat):
        return (
            "This Python ({0}) has no venv module.\n"
            "On Debian and Ubuntu:\n\n    sudo apt install python3-venv\n\n"
            "(for another than the system's own Python: python{1}-venv). {2}"
        ).format(sys.executable, dotted(sys.version_info), again)
    if NETWORK.search(flat) and not CONFLICT.search(flat):
        return (
            "No network while {0}: the package index could not be reached.\n"
            "Check the connection (and, behind a proxy, HTTPS_PROXY). {1}{2}"
        ).format(doing, again, kept)
    lines = [line for line in output.splitlines() if "error" in line.lower()]
    lines = lines or output.splitlines()
    return "Failed while {0}:\n    {1}{2}".format(doing, "\n    ".join(lines[-5:]), kept)


def pip_environment(python):
    """The environment for pip. A reader's pip.conf says where packages come from, not where they go."""
    environment = dict(os.environ)
    _, listed = run_logged([python, "-m", "pip", "config", "list"], None)
    for section in ("install", "global"):
        for key, value in re.findall(r"^{0}\.([\w-]+)=(['\"].*['\"])$".format(section), listed, re.M):
            name = "PIP_" + key.upper().replace("-", "_")
            if not DROPPED.match(name):
                environment.setdefault(name, " ".join(ast.literal_eval(value).split()))
    environment["PIP_CONFIG_FILE"] = os.devnull
    return environment


def run_logged(command, log, show=None, environment=None):
    """Run; keep all output in `log`, show lines that `show` matches. Returns (code, output)."""
    kept = []
    try:
        file = open(log, "a") if log else None
    except OSError:  # the disk may be full
        file = None
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment,
        universal_newlines=True,
        errors="replace",
    )
    for line in process.stdout:
        kept.append(line)
        if show and show.search(line):
            print("  " + line.strip()[:110])
            sys.stdout.flush()
        try:
            if file:
                file.write(line)
        except OSError:
            file = None
    code = process.wait()
    try:
        if file:
            file.close()
    except OSError:
        pass
    return code, "".join(kept)


def create(folder, goal):
    """A virtual environment with pip in it; one that is whole already is left as it is."""
    if runs([python_in(folder), "-m", "pip", "--version"]):
        return
    new = not os.path.exists(folder)
    print("Creating {0} with Python {1}".format(os.path.relpath(folder, ROOT), dotted(sys.version_info)))
    sys.stdout.flush()
    # Pip in a step of its own: `python -m venv` keeps to itself why its pip could not be installed.
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", folder],
        [python_in(folder), "-m", "ensurepip", "--upgrade", "--default-pip"],
    ):
        code, output = run_logged(command, None)
        if code:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise Problem(explain(output, None, goal, "creating " + folder))


def install(folder, goal, name=BASE):
    log = os.path.join(folder, LOG)
    if os.path.exists(log):
        os.remove(log)
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEED_GB and not runs(
        [python_in(folder), "-c", "import importlib.util as u; assert u.find_spec('torch')"]
    ):
        print("Note: {0:.1f} GB free here; torch's default build and the rest need about {1}.".format(free, NEED_GB))
    print(
        "Installing {0} into {1} (minutes the first time; log: {2})".format(
            name, os.path.relpath(folder, ROOT), os.path.relpath(log, ROOT)
        )
    )
    sys.stdout.flush()
    command = [
        python_in(folder),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "-r",
        os.path.join(ROOT, name),
    ]
    code, output = run_logged(command, log, show=DOWNLOADS, environment=pip_environment(python_in(folder)))
    if code:
        raise Problem(explain(output, log, goal, "installing " + name))


def only_one(root, goal):
    """Hold a lock while installing: two `make` at once must not write into one folder."""
    try:
        import fcntl
    except ImportError:
        return None
    file = open(os.path.join(root, "requirements.txt"))
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("Another `make` is installing here; waiting for it.")
            sys.stdout.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    return file


def ensure(root=ROOT, goal="book"):
    """The python of a ready environment, made or mended where need be."""
    check_version(sys.version_info, goal)
    folder = folder_for(root, sys.version_info)
    wanted = layers(root, sys.version_info, goal)
    if missing(folder, wanted):
        lock = only_one(root, goal)
        for name, stamp, key in missing(folder, wanted):
            stamp = os.path.join(folder, stamp)
            if os.path.exists(stamp):
                os.remove(stamp)
            create(folder, goal)
            install(folder, goal, name)
            with open(stamp + ".new", "w") as file:
                file.write(key + "\n")
            os.rename(stamp + ".new", stamp)
        if lock:
            lock.close()
    return python_in(folder)


def streams():
    """Fill in what was closed (`>&-`): the next file that is opened would take its number, and get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))


def run(main):
    """What main() answers; 141, as of any program, where whoever read its output has gone (`| head -1`)."""
    streams()
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is written when Python ends
        return 141


def main(arguments):
    goal = "book"
    if arguments[:1] == ["--for"]:
        goal, arguments = arguments[1], arguments[2:]
    try:
        check_version(sys.version_info, goal)
        environment = surroundings(os.environ, goal)
        os.environ.clear()
        os.environ.update(environment)
        python = ensure(ROOT, goal)
    except Problem as problem:
        print("\n{0}".format(problem), file=sys.stderr)
        return 2
    except OSError as error:
        if getattr(error, "errno", None) != 28:
            raise
        print(
            "\n" + explain("Errno 28", None, goal, "preparing the environment"),
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "\nStopped. Nothing is lost: `make {0}` goes on from here.".format(goal),
            file=sys.stderr,
        )
        return 130
    if not arguments:
        return 0
    folder = os.path.dirname(python)
    environment["VIRTUAL_ENV"] = os.path.dirname(folder)
    environment["PATH"] = folder + os.pathsep + environment.get("PATH", "")
    command = [python] + arguments
    sys.stdout.flush()
    if os.name == "nt":
        return subprocess.call(command, env=environment, cwd=ROOT)
    os.chdir(ROOT)
    os.execve(python, command, environment)


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:])))
