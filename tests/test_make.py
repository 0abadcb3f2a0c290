"""The Makefile, the environment it makes, and what a newcomer reads when that fails.

Where the real thing can be had (an old Python, a dead network, a full disk), the test takes it.
"""

import ast
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "env.py"
TARGETS = ["help", "book", "test", "test-all", "pages", "pdf", "lint", "lab", "results", "clean", "adopt"]
TARGETS += ["links", "chapter"]

spec = importlib.util.spec_from_file_location("env_script", SCRIPT)
env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(env)


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=cwd, env=plain | environment, capture_output=True, text=True)


def interpreters(*versions: str) -> list[str]:
    """Those of these Pythons that are on this machine and run."""
    found = []
    for version in versions:
        names = [shutil.which(f"python{version}")]
        pyenv = Path("~/.pyenv/versions").expanduser()
        names += sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))
        found += [name for name in names if name and env.runs([name, "-c", ""])][:1]
    return found


# --- make --------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("help",)])
def test_make_alone_says_what_there_is(arguments):
    done = make(*arguments)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for target in TARGETS:
        assert sum(bool(re.match(rf"  make {target}\s+\S", line)) for line in lines) == 1, target
    assert sum(line.startswith("  make ") for line in lines) == len(TARGETS)


def test_every_target_is_in_the_help():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    assert sorted(phony) == sorted(TARGETS)
    assert sorted(re.findall(r"^([a-z-]+):", text, re.M)) == sorted(TARGETS)


def test_a_python_that_is_not_there():
    done = make("book", "PYTHON=python3.99")
    assert done.returncode != 0
    assert "No python3.99 here" in done.stderr and "make book PYTHON=python3.12" in done.stderr


@pytest.fixture
def built(tmp_path) -> Path:
    """A checkout with all that `make clean` removes."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("clean.py", "env.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    for name in ("_build/html", ".venv/bin", ".venv-3.13/bin", "vitutils/a/__pycache__", "book", "build"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").write_text("")
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path


KEPT = {"Makefile", "scripts", "requirements.txt", "vitutils", "book"}


@pytest.mark.parametrize("given", [(), ("ALL=",), ("ALL=0",), ("ALL=no",), ("ALL=false",), ("ALL=2",)])
def test_clean_keeps_the_environments(built, given):
    done = make("clean", *given, cwd=built)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in built.iterdir()} == KEPT | {".venv", ".venv-3.13"}
    assert list((built / "vitutils").rglob("*")) == [built / "vitutils" / "a"]
    assert ("ALL=2: " in done.stdout) == (given == ("ALL=2",))


@pytest.mark.parametrize("word", ["1", "yes"])
def test_clean_all_does_not(built, word):
    assert make("clean", f"ALL={word}", cwd=built).returncode == 0
    assert {path.name for path in built.iterdir()} == KEPT


@pytest.mark.skipif(os.name == "nt", reason="links of Unix")
def test_clean_leaves_a_link_to_another_disk_and_removes_one_to_nowhere(built):
    shutil.rmtree(built / "_build")
    disk = built / "vitutils" / "disk"
    (disk / "html").mkdir(parents=True)
    (disk / ".lock").write_text("")
    (disk / "elsewhere").symlink_to(built / "book")
    (built / "_build").symlink_to("vitutils/disk")
    assert make("clean", cwd=built).returncode == 0
    assert (built / "_build").is_symlink() and not list(disk.iterdir()) and (built / "book").is_dir()
    for nowhere in ("vitutils/gone", "_build", "requirements.txt"):
        (built / "_build").unlink(missing_ok=True)
        (built / "_build").symlink_to(nowhere)
        (built / "build").mkdir(exist_ok=True)
        done = make("clean", cwd=built)
        assert done.returncode == 0, done.stderr
        assert not (built / "_build").is_symlink() and not (built / "build").exists()
        assert (built / "requirements.txt").is_file()


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_clean_waits_for_nobody_and_takes_nothing_from_a_build(built, monkeypatch):
    """Nor an environment from a `make` that is installing."""
    before = sorted(built.rglob("*"))
    sys.path.insert(0, str(ROOT / "scripts"))
    import running

    with running.alone(built, "make book"):
        done = make("clean", cwd=built)
        assert done.returncode == 2
        assert f"`make book` (process {os.getpid()}, since " in done.stderr and "is at work" in done.stderr
    (built / "_build" / ".lock").unlink(missing_ok=True)
    assert sorted(built.rglob("*")) == before
    with env.only_one(str(built), "test"):
        done = make("clean", "ALL=1", cwd=built)
        assert done.returncode == 2 and "installing" in done.stderr
        assert (built / ".venv").is_dir()
    assert make("clean", "ALL=1", cwd=built).returncode == 0


# --- Which Python --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters("2.7", "3.6", "3.8", "3.9", "3.14") or [None])
def test_a_real_python_of_the_wrong_age(python):
    if python is None:
        pytest.skip("no Python older than 3.10 or newer than 3.13 on this machine")
    done = make("test", f"PYTHON={python}")
    assert done.returncode == 2
    assert re.search(r"Python too (old|new): found \d\.\d+ \(.*\), needs 3\.10 to 3\.13", done.stderr)
    assert re.search(r"make test PYTHON=python3\.1[0-3]", done.stderr)
    assert "Traceback" not in done.stderr and "SyntaxError" not in done.stderr


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 11, 7), (3, 12), (3, 13, 9)])
def test_a_python_of_the_right_age(version):
    env.check_version(version)


@pytest.mark.parametrize(("version", "word"), [((3, 9, 18), "old"), ((2, 7), "old"), ((3, 14), "new")])
def test_a_python_of_the_wrong_age(version, word):
    with pytest.raises(env.Problem) as seen:
        env.check_version(version, "lab", find=lambda name: name == "python3.13")
    message = str(seen.value)
    assert f"Python too {word}: found {version[0]}.{version[1]}" in message
    assert "needs 3.10 to 3.13" in message and "make lab PYTHON=python3.13" in message
    with pytest.raises(env.Problem, match=r"None of these was found(.|\n)*PYTHON=python3.12"):
        env.check_version(version, "test", find=lambda name: None)


def test_an_old_python_can_read_the_script():
    """Python 2.7 has to get through the whole file before it runs the line that refuses it."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 4))
    modern = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Nonlocal)
    for node in ast.walk(tree):
        assert not isinstance(node, modern), f"line {node.lineno}: too new for an old Python"
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.args, node.args.vararg, node.args.kwarg]
            assert not node.args.kwonlyargs and not node.returns, node.name
            assert all(not a.annotation for a in given if a), node.name


# --- The environment --------------------------------------------------


def new_project(root: Path) -> Path:
    """A folder with env.py and an empty list of requirements: an environment takes seconds."""
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "scripts")
    (root / "requirements.txt").write_text("# nothing\n")
    (root / "requirements-pages.txt").write_text("# nothing\n")
    (root / "pyproject.toml").write_text("")
    return root


@pytest.fixture
def project(tmp_path) -> Path:
    return new_project(tmp_path / "project")


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Path:
    """One such folder for the five tests that follow each other, in the order they stand here."""
    return new_project(tmp_path_factory.mktemp("story") / "project")


# An index nobody answers at, and nothing else that pip could fall back on.
DEAD = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_RETRIES": "0",
    "PIP_NO_CACHE_DIR": "1",
}


def prepare(root: Path, *command: str, python: str = sys.executable, goal: str = "test", **environment: str):
    return subprocess.run(
        [python, str(root / "scripts" / "env.py"), "--for", goal, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.slow
def test_an_interrupted_install_leaves_no_stamp(story):
    """pip hangs on a server that never answers, and is killed."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(1800)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        (story / "requirements.txt").write_text("a-package-that-is-not-there\n")
        process = subprocess.Popen(
            [sys.executable, str(story / "scripts" / "env.py")],
            env=os.environ | DEAD | {"PIP_INDEX_URL": url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            connection, _ = server.accept()  # pip asks: the install is under way
            time.sleep(0.2)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        connection.close()
    assert (story / ".venv").is_dir()
    assert not (story / ".venv" / env.STAMP).exists()


@pytest.mark.slow
def test_no_network_then_ready_then_changed(story):
    stamp, log = story / ".venv" / env.STAMP, story / ".venv" / env.LOG
    done = prepare(story, **DEAD)
    assert done.returncode == 2
    assert "No network while installing requirements.txt" in done.stderr
    assert "make test" in done.stderr and "Traceback" not in done.stderr
    assert str(log) in done.stderr and "127.0.0.1" in log.read_text()
    assert not stamp.exists()

    (story / "requirements.txt").write_text("# nothing\n")
    done = prepare(story, "-c", "import sys; print(sys.prefix)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(story / ".venv")
    assert stamp.exists()

    written = stamp.stat().st_mtime_ns
    done = prepare(story, "-c", "print('ran')", **DEAD)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert stamp.stat().st_mtime_ns == written

    for name in ("pyproject.toml", "requirements.txt"):
        (story / name).write_text("# changed\n")
        assert "Installing" in prepare(story, **DEAD).stdout, name
        assert prepare(story, **DEAD).stdout == "", name

    # What its command answers is what make gets to know.
    assert prepare(story, "-c", "raise SystemExit(7)").returncode == 7


@pytest.mark.slow
def test_pages_and_pdf_install_more_and_the_others_do_not(story):
    """A second list with a stamp of its own: what is wrong with it stops `make pages`, never `make test`."""
    more, log = story / "requirements-pages.txt", story / ".venv" / env.LOG
    more.write_text("a-package-that-is-not-there\n")
    assert prepare(story, **DEAD).returncode == 0
    done = prepare(story, goal="pages", **DEAD)
    assert done.returncode == 2 and "No network while installing requirements-pages.txt" in done.stderr
    assert "make pages" in done.stderr and str(log) in done.stderr
    assert prepare(story, **DEAD).stdout == ""

    more.write_text("# nothing\n")
    assert "Installing requirements-pages.txt" in prepare(story, goal="pdf").stdout
    for goal in ("pages", "pdf", "test"):
        assert prepare(story, "-c", "print('ran')", goal=goal, **DEAD).stdout == "ran\n", goal
    more.write_text("# changed\n")
    assert re.findall(r"Installing (\S+)", prepare(story, goal="pages").stdout) == ["requirements-pages.txt"]
    (story / "requirements.txt").write_text("# changed once more\n")
    done = prepare(story, goal="pages")
    assert re.findall(r"Installing (\S+)", done.stdout) == ["requirements.txt", "requirements-pages.txt"]
    (story / ".venv" / "bin" / "python").unlink()  # as where the system's Python was removed
    done = prepare(story, goal="pages")
    assert done.returncode == 0 and "Creating .venv" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"Installing (\S+)", done.stdout) == ["requirements.txt", "requirements-pages.txt"]


def small_wheel(path: Path, **files: str | bytes) -> Path:
    """A wheel of one package, `small` 1.0."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(f"small/{name}", content)
        file.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr("small-1.0.dist-info/WHEEL", tags)
        file.writestr("small-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["variables", "pip.conf"])
def test_what_is_installed_lands_in_the_environment(story, tmp_path, how):
    """Wherever the reader has other packages put. Their index, which may be the only one within reach, is kept."""
    wheel = small_wheel(tmp_path / "small-1.0-py3-none-any.whl", **{"__init__.py": f"how = {how!r}"})
    (story / "requirements.txt").write_text(f"{wheel}\n")
    where = str(tmp_path / "elsewhere")
    settings = DEAD | {"PIP_NO_DEPS": "0"}
    if how == "variables":
        settings |= {f"PIP_{name}": where for name in ("PREFIX", "TARGET", "ROOT", "SRC")}
        settings |= {f"PIP_{name}": "1" for name in ("USER", "DRY_RUN", "REQUIRE_VIRTUALENV", "REQUIRE_HASHES")}
    else:
        lines = "[global]\nrequire-virtualenv = true\nindex-url = http://127.0.0.1:9/of-pip-conf\n"
        lines += f"[install]\nuser = true\ntarget = {where}\nprefix = {where}\n"
        (tmp_path / "pip.conf").write_text(lines)
        settings = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    for old in (story / ".venv").glob("lib*/python*/site-packages/small*"):
        shutil.rmtree(old)
    done = prepare(story, "-c", "import small; print(small.how)", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == how
    assert not (tmp_path / "elsewhere").exists()
    if how == "pip.conf":
        (story / "requirements.txt").write_text("a-package-that-is-not-there\n")
        assert "No network" in prepare(story, **settings).stderr
        assert "/of-pip-conf" in (story / ".venv" / env.LOG).read_text()


@pytest.mark.slow
def test_a_reader_s_python_settings_do_not_keep_make_from_starting(story):
    (story / "requirements.txt").write_text("# nothing\n")
    shutil.copy(ROOT / "Makefile", story)
    (story / "scripts" / "test.py").write_text("import sys; print('optimize', sys.flags.optimize)")
    settings = {"PYTHONHOME": "/nowhere", "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error", "PYTHONPATH": "/nowhere"}
    done = make("lint", f"PYTHON={sys.executable}", cwd=story, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "optimize 0"


@pytest.mark.slow
def test_a_half_made_environment_is_made_again(story):
    (story / ".venv" / env.STAMP).unlink()
    for pip in (story / ".venv").glob("lib*/python*/site-packages/pip"):
        shutil.rmtree(pip)
    done = prepare(story, "-m", "pip", "--version")
    assert done.returncode == 0, done.stderr
    assert "Creating .venv" in done.stdout


@pytest.mark.slow
def test_another_real_python_gets_another_folder(story):
    own = "{}.{}".format(*sys.version_info)
    others = interpreters(*sorted({"3.10", "3.11", "3.12", "3.13"} - {own}))
    if not others:
        pytest.skip("only one Python of 3.10 to 3.13 on this machine")
    say = "import sys; print(sys.prefix, *sys.version_info[:2])"
    done = prepare(story, "-c", say, python=others[0])
    prefix, major, minor = done.stdout.splitlines()[-1].rsplit(" ", 2)
    assert f"{major}.{minor}" != own
    assert prefix == str(story / f".venv-{major}.{minor}")
    done = prepare(story, "-c", say, python=sys.executable)
    assert done.stdout.splitlines()[-1].startswith(str(story / ".venv") + " ")


def test_another_python_gets_another_folder(tmp_path):
    assert env.folder_for(str(tmp_path), (3, 12)) == str(tmp_path / ".venv")
    (tmp_path / ".venv").mkdir()
    assert env.folder_for(str(tmp_path), (3, 12)) == str(tmp_path / ".venv")
    for text in ("version = 3.11.7\n", "home = /usr\nversion_info = 3.11.7.final.0\n"):
        (tmp_path / ".venv" / "pyvenv.cfg").write_text(text)
        assert env.folder_for(str(tmp_path), (3, 11, 2)) == str(tmp_path / ".venv")
        assert env.folder_for(str(tmp_path), (3, 13, 0)) == str(tmp_path / ".venv-3.13")
        assert env.folder_for(str(tmp_path), (3, 1, 0)) == str(tmp_path / ".venv-3.1")


def test_the_stamp_knows_its_place(tmp_path):
    """A folder that was moved has an editable install that points to the old place."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("requirements.txt", "pyproject.toml"):
            (tmp_path / name / file).write_text("")
    keys = {env.stamp_key(str(tmp_path / name), (3, 12)) for name in ("one", "two")}
    assert len(keys) == 2
    assert env.stamp_key(str(tmp_path / "one"), (3, 13)) not in keys


# --- The reader's surroundings --------------------------------------------------


OUT = """PYTHONHOME PYTHONSTARTUP PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONWARNINGS PYTHONINSPECT PYTHONUSERBASE PYTHONPATH
PYTHONIOENCODING PYTHONVERBOSE PYTHONPROFILEIMPORTTIME PYTHONDEVMODE PYTHON_GIL PIP_USER PIP_PREFIX PIP_TARGET PIP_ROOT
PIP_REQUIRE_VIRTUALENV PIP_DRY_RUN PIP_NO_DEPS PIP_PYTHON PIP_NO_BINARY PIP_REQUIREMENT JUPYTER_PATH JUPYTER_CONFIG_DIR
JUPYTER_CONFIG_PATH JUPYTER_DATA_DIR IPYTHONDIR IPYTHON_DIR JPY_SESSION_NAME JPY_PARENT_PID VSCODE_PID MPLBACKEND
SPHINXOPTS PYTEST_ADDOPTS PYTEST_PLUGINS PYTEST_DISABLE_PLUGIN_AUTOLOAD RUFF_OUTPUT_FILE RUFF_CONFIG GIT_DIR
GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX""".split()
IN = """PATH LANG LC_ALL TZ CI GITHUB_ACTIONS TMPDIR HTTPS_PROXY CHROME CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_HOME
VITBOOK_DATA VITBOOK_SCALE VITBOOK_CELL_TIMEOUT PYTHONHASHSEED PYTHONDONTWRITEBYTECODE PIP_CONFIG_FILE PIP_INDEX_URL
PIP_EXTRA_INDEX_URL PIP_NO_INDEX PIP_FIND_LINKS PIP_CERT PIP_PROXY PIP_TRUSTED_HOST PIP_CONSTRAINT PIP_NO_CACHE_DIR
PIP_TIMEOUT GIT_CONFIG_COUNT GIT_SSL_CAINFO SOURCE_DATE_EPOCH""".split()


def test_what_of_the_reader_s_settings_reaches_a_command(tmp_path):
    home = {"HOME": str(tmp_path)}
    numbers = dict.fromkeys(("PYTHONHASHSEED", "SOURCE_DATE_EPOCH"), "7")
    found = env.surroundings(home | dict.fromkeys(OUT + IN, "x") | {"PYTHONPATH": "/nowhere"} | numbers)
    ours = {"PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", "JUPYTER_PREFER_ENV_PATH": "1", "MATPLOTLIBRC": os.devnull}
    paths = {name: os.path.abspath("x") for name in ("TMPDIR", "HF_HOME", "VITBOOK_DATA")}
    assert found == home | dict.fromkeys(IN, "x") | ours | paths | numbers
    assert env.surroundings(found) == found
    # In JupyterLab a reader's own key bindings and start-up files are theirs.
    lab = env.surroundings(home | dict.fromkeys(OUT, "x") | {"PYTHONPATH": "/nowhere"}, "lab")
    kept = ["JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_DATA_DIR", "IPYTHONDIR", "IPYTHON_DIR"]
    assert lab == home | ours | dict.fromkeys(kept, "x")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("PYTHONHASHSEED", ["0", "random", "4294967295"], ["abc", "-1", "4294967296", "1.5"]),
        ("SOURCE_DATE_EPOCH", ["0", "1700000000"], ["abc", "-x", "1e9", "\u0663", "9" * 30]),
    ],
)
def test_a_number_that_is_none_does_not_keep_a_command_from_starting(tmp_path, capsys, name, good, bad):
    home = {"HOME": str(tmp_path)}
    for text in good:
        assert env.surroundings(home | {name: text})[name] == text
    assert not capsys.readouterr().out
    for text in bad:
        assert name not in env.surroundings(home | {name: text})
        assert f"{name} is {text!r}" in capsys.readouterr().out
    assert name not in env.surroundings(home | {name: ""}) and not capsys.readouterr().out


WRITER = "import sys; sys.path.insert(0, {0!r}); import env; sys.exit(env.run(lambda: {1}))"


@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
@pytest.mark.parametrize(
    ("body", "shut", "code"),
    [
        ("print('x' * 100_000)", "", 141),
        ("print('kept for the end')", "", 141),
        ("sys.exit(7)", "", 7),
        ("print('x') or sys.stdout.flush() or 3", ">&-", 3),
        ("print('x', file=sys.stderr) or sys.stderr.flush() or 4", "<&- >&- 2>&-", 4),
        ("5 if sys.stdin and open('/dev/null').fileno() > 2 else 1", "<&- >&- 2>&-", 5),
    ],
)
def test_a_reader_who_went_away_is_no_fault(body, shut, code):
    """As `| head -1` does; and an output that was closed from the beginning."""
    reading, writing = os.pipe()
    os.close(reading)
    program = WRITER.format(str(SCRIPT.parent), body)
    command = ["sh", "-c", f'exec "$0" -c "$1" {shut}', sys.executable, program]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


FOLDERS = """VITBOOK_SYSTEM_DATA HF_HOME HF_HUB_CACHE TORCH_HOME TRITON_CACHE_DIR XDG_CACHE_HOME XDG_CONFIG_HOME
XDG_DATA_HOME MPLCONFIGDIR SCIKIT_LEARN_DATA TMPDIR SSL_CERT_FILE REQUESTS_CA_BUNDLE PYTHONPYCACHEPREFIX""".split()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_the_one_that_was_meant_where_the_command_was_called(tmp_path, monkeypatch, name):
    """The build works in the book's folder, its kernels in notebooks/: both have to find the same one."""
    monkeypatch.chdir(tmp_path)
    home = {"HOME": str(tmp_path)}
    cases = {"a": "a", "./b/../c": "c", "~/d": "d", "..": "..", f"{tmp_path}/e": "e", "~none-such/f": "~none-such/f"}
    for given, meant in cases.items():
        assert env.surroundings(home | {name: given})[name] == os.path.normpath(tmp_path / meant), given
    assert env.surroundings(home | {name: ""}).get(name, "") == ""


def test_each_of_the_data_folders_is_the_one_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = {"HOME": str(tmp_path)}
    found = env.surroundings(home | {"VITBOOK_DATA": os.pathsep.join(["data", "", "~/more", "/a/b", "~"])})
    assert found["VITBOOK_DATA"].split(os.pathsep) == [f"{tmp_path}/data", f"{tmp_path}/more", "/a/b", str(tmp_path)]
    assert env.surroundings(home | {"VITBOOK_DATA": ""})["VITBOOK_DATA"] == ""


def test_only_the_book_s_own_folders_are_imported_from(tmp_path):
    parts = [str(tmp_path / "vitutils"), str(tmp_path), f"{tmp_path}-other", "/nowhere", ""]
    found = env.surroundings({"PYTHONPATH": os.pathsep.join(parts)}, root=str(tmp_path))
    assert found["PYTHONPATH"].split(os.pathsep) == parts[:2]


@pytest.mark.skipif(os.name == "nt", reason="a Unix user's home")
def test_a_user_without_a_home_gets_one(tmp_path, capsys):
    own = tmp_path / "book" / ".cache" / "home"
    (tmp_path / "file").write_text("")
    for home in (str(tmp_path / "file"), str(tmp_path / "not-there"), "/proc/nowhere", "relative"):
        closed = {"HOME": home, "XDG_CACHE_HOME": str(tmp_path / "file" / "x")}
        found = env.surroundings(closed, root=str(tmp_path / "book"))
        assert found["HOME"] == str(own) and own.is_dir() and "XDG_CACHE_HOME" not in found
        assert f"({home}) is not there" in capsys.readouterr().out
    assert env.surroundings({"HOME": str(own)})["HOME"] == str(own)
    assert os.path.isdir(env.surroundings({}, root=str(tmp_path / "book"))["HOME"])  # unset: the system knows one
    assert not capsys.readouterr().out or os.environ.get("HOME") is None


@pytest.mark.parametrize("goal", ["test", "pages", "pdf"])
def test_no_two_commands_work_on_one_build(tmp_path, monkeypatch, capsys, goal):
    sys.path.insert(0, str(ROOT / "scripts"))
    import running

    specification = importlib.util.spec_from_file_location(f"{goal}_script", ROOT / "scripts" / f"{goal}.py")
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, script)
    specification.loader.exec_module(script)
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").write_text("")
    arguments = {"test": [], "pages": ["--site", str(tmp_path / "_build" / "html")], "pdf": ["--root", str(tmp_path)]}
    if goal == "test":
        monkeypatch.setattr(script, "ROOT", tmp_path)
        monkeypatch.setattr(script, "lint", lambda: 0)
    with running.alone(tmp_path, "make book"):
        assert script.main(arguments[goal]) == 2
    assert "`make book` (process" in capsys.readouterr().err


# --- What can go wrong --------------------------------------------------


DEBIAN = """\
The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command.

    apt install python3.11-venv
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_no_venv_module(project, module):
    """An empty module in its place: Python then says that it has none (Debian lacks ensurepip)."""
    (project / "shadow" / module).mkdir(parents=True)
    (project / "shadow" / module / "__init__.py").write_text("")
    done = prepare(project, PYTHONPATH=str(project / "shadow"))
    assert done.returncode == 2
    assert "has no venv module" in done.stderr and "sudo apt install python3-venv" in done.stderr
    assert "make test" in done.stderr and "Traceback" not in done.stderr
    assert not (project / ".venv").exists()


def on_a_small_disk(root: Path, size: str, **environment: str):
    """Run env.py with `root` on a disk of that size, in a name space of its own."""
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1" && cp -r "$2/." "$1"'
    mount += ' && exec "$3" "$1/scripts/env.py" --for test'
    source = root.with_name("source")
    root.rename(source)
    root.mkdir()
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", str(root), str(source), sys.executable],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


can_mount = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "-rm", "sh", "-c", "mount -t tmpfs t /mnt"], capture_output=True).returncode != 0,
    reason="this system lets nobody mount a small disk to fill",
)


@pytest.mark.slow
@can_mount
def test_a_disk_that_is_full_before_pip_is_there(project):
    done = on_a_small_disk(project, "4m")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Disk full while creating" in done.stderr and "8 GB" in done.stderr


@pytest.mark.slow
@can_mount
def test_a_disk_that_fills_while_pip_installs(project, tmp_path):
    """A package of 200 MB (zeros: a small file) onto a disk of 100 MB."""
    wheel = tmp_path / "big-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("big/zeros.bin", bytes(200_000_000))
        file.writestr("big-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: big\nVersion: 1.0\n")
        file.writestr(
            "big-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr("big-1.0.dist-info/RECORD", "")
    (project / "requirements.txt").write_text(f"{wheel}\n")
    done = on_a_small_disk(project, "100m", **DEAD)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Disk full while installing requirements.txt" in done.stderr
    assert "8 GB" in done.stderr and "No network" not in done.stderr
    assert "GB free here" in done.stdout  # said beforehand, too


@pytest.mark.parametrize(
    ("output", "start"),
    [
        (
            "ERROR: Could not install packages: [Errno 28] No space left on device",
            "Disk full",
        ),
        ("OSError: [Errno 122] Disk quota exceeded", "Disk full"),
        # A slow line first, then the disk: the disk is what stopped it.
        (
            "WARNING: Retrying after connection broken by 'ReadTimeoutError'\n[Errno 28] x",
            "Disk full",
        ),
        ("NewConnectionError('Temporary failure in name resolution')", "No network"),
        (
            "pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out. ReadTimeout",
            "No network",
        ),
        (
            "WARNING: Retrying (ReadTimeoutError)\nERROR: ResolutionImpossible: for help visit",
            "Failed while",
        ),
        ("ERROR: something nobody thought of", "Failed while"),
        (DEBIAN, "This Python"),
    ],
)
def test_what_pip_says_in_plain_words(output, start):
    message = env.explain(output, "/some/log", "book", "installing requirements.txt")
    assert message.startswith(start)
    assert "/some/log" in message or output == DEBIAN
    if start == "Failed while":
        assert "ERROR" in message


# --- make lab --------------------------------------------------------------


def test_lab_serves_what_the_notebooks_link_to():
    """Chapters link to pages in the folder beside theirs: asked of the server's own file manager, without a server."""
    from jupyter_server.services.contents.largefilemanager import LargeFileManager

    recipe = re.search(r"^lab:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)[1]
    words = recipe.partition("-m jupyter lab")[2].split()
    given = dict(word.partition("=")[::2] for word in words)
    assert list(given) == ["--ServerApp.root_dir", "--LabApp.default_url"], words  # a folder by itself becomes the root
    served = LargeFileManager(root_dir=str(ROOT / given["--ServerApp.root_dir"]))
    first = given["--LabApp.default_url"]
    assert first.startswith("/lab/tree/") and served.dir_exists(first.removeprefix("/lab/tree/"))
    linked = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        linked |= set(re.findall(r"\]\((\.\./[^)#\s]+)", path.read_text(encoding="utf-8")))
    assert len(linked) > 5
    assert [name for name in sorted(linked) if not served.file_exists(os.path.normpath(f"notebooks/{name}"))] == []


@pytest.mark.parametrize("page", ["README.md", "book/how-to-run.md"])
def test_the_pages_say_the_same_without_make(page):
    commands = re.findall(r"`(jupyter lab[^`]*)`", (ROOT / page).read_text(encoding="utf-8"))
    assert commands == ["jupyter lab --LabApp.default_url=/lab/tree/notebooks"]


# --- Continuous integration --------------------------------------------------


def test_ci_run_calls_both_commands(tmp_path):
    """With a stub for make, for apt-get (it fails) and shared data beside the checkout."""
    root = tmp_path / "checkout"
    (root / ".ci").mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", root / ".ci" / "run")
    (root / "scripts").mkdir()
    (root / "scripts" / "env.py").write_text("import sys\nprint('env', *sys.argv[1:])\n")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, body in [
        ("apt-get", "exit 100"),
        ("id", "echo 0"),
        ("a-browser", "exit 0"),
        (
            "make",
            'echo "make $1 at ${VITBOOK_SCALE:-unset} with $VITBOOK_DATA"; exit ${STUB_MAKE:-0}',
        ),
    ]:
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VITBOOK")}
    environment["PATH"] = f"{stubs}{os.pathsep}{environment['PATH']}"
    environment["CHROME"] = "a-browser"
    done = subprocess.run([str(root / ".ci" / "run")], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    data = f"{root}/.cache/vitbook:{tmp_path}/shared/data"
    commands = [
        f"make test-all at unset with {data}",
        f"make book at cpu with {data}",
        f"make pages at unset with {data}",
        f"make pdf at unset with {data}",
        "env --for pages -m pytest -q tests/test_rendered.py tests/test_pdf.py",
    ]
    assert [line for line in done.stdout.splitlines() if line.startswith(("make ", "env "))] == commands
    assert "dataset-fashion-mnist could not be installed" in done.stdout
    assert "chromium could not be installed" not in done.stdout  # there is a browser
    done = subprocess.run([str(root / ".ci" / "run")], env=environment | {"STUB_MAKE": "3"}, capture_output=True)
    assert done.returncode == 3


@pytest.mark.parametrize("name", ["tests.yml", "pages.yml"])
def test_workflows_call_make(name):
    import yaml

    flow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step.get("run", "") for step in steps)
    wanted = {"tests.yml": "make test", "pages.yml": "make book"}[name]
    assert wanted in commands
    assert set(re.findall(r"make ([a-z-]+)", commands)) <= set(TARGETS)
    if name == "pages.yml":
        assert commands.index("make book") < commands.index("make pages")
    if name == "tests.yml":
        versions = flow["jobs"]["test"]["strategy"]["matrix"]["python"]
        assert versions == ["3.10", "3.11", "3.12", "3.13"]
    else:
        uploads = [step["with"]["path"] for step in steps if "upload-pages" in step.get("uses", "")]
        assert uploads == ["_build/html"]
