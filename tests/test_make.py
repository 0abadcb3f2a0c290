"""The Makefile, the environment it makes, and what a newcomer reads when that fails.

Where the real thing can be had (an old Python, a dead network), the test takes it.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import env
import pages
import pdf
import running

ROOT = Path(__file__).resolve().parents[1]
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=cwd, env=plain | environment, capture_output=True, text=True)


def interpreters(*versions: str) -> list[str]:
    """Those of these Pythons that are on this machine and run."""
    pyenv = Path("~/.pyenv/versions").expanduser()
    found = {v: [shutil.which(f"python{v}"), *map(str, pyenv.glob(f"{v}.*/bin/python"))] for v in versions}
    return [name for names in found.values() for name in names if name and env.runs(name, "-c", "")]


def test_make_alone_says_what_there_is():
    lines = make().stdout.splitlines()
    assert sorted(re.findall(r"^  make (\S+)\s+\S", "\n".join(lines), re.M)) == sorted(TARGETS)


@pytest.mark.parametrize("python", ["python3.99", *interpreters("2.7", "3.6", "3.9", "3.14")])
@pytest.mark.parametrize("goal", ["test", "clean"])
def test_a_python_that_is_not_there_or_of_the_wrong_age(python, goal):
    done = make(goal, f"PYTHON={python}", cwd=ROOT)
    said = "No python3.99 here" if python == "python3.99" else "Python too "
    assert done.returncode == 2 and said in done.stderr and f"make {goal} PYTHON=python3.12" in done.stderr
    assert "3.10 to 3.13" in done.stderr and "Traceback" not in done.stderr and "SyntaxError" not in done.stderr


# --- make clean ---

KEPT = {"Makefile", "tools", "requirements.txt", "vitutils", "book"}


@pytest.fixture
def built(tmp_path) -> Path:
    """A checkout with all that `make clean` removes."""
    for name in ("_build/html", ".venv/bin", ".venv-3.13/bin", "vitutils/a/__pycache__", "book", "build", "tools"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("Makefile", "tools/clean.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize("given", ["ALL=no", "ALL=1"])
def test_clean_keeps_the_environments_unless_it_is_told_to(built, given):
    done = make("clean", given, cwd=built)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in built.iterdir()} == KEPT | ({".venv", ".venv-3.13"} if given != "ALL=1" else set())
    assert list((built / "vitutils").rglob("*")) == [built / "vitutils" / "a"]


@pytest.mark.skipif(os.name == "nt", reason="links of Unix")
def test_clean_leaves_a_link_to_another_disk_and_removes_one_to_nowhere(built):
    shutil.rmtree(built / "_build")
    (built / "vitutils" / "disk" / "html").mkdir(parents=True)
    (built / "_build").symlink_to("vitutils/disk")
    assert make("clean", cwd=built).returncode == 0
    assert (built / "_build").is_symlink() and not list((built / "vitutils" / "disk").iterdir())
    (built / "_build").unlink()
    (built / "_build").symlink_to("nowhere")
    assert make("clean", cwd=built).returncode == 0 and not (built / "_build").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_clean_takes_nothing_from_a_command_at_work(built):
    with running.alone(built, "make book"):
        done = make("clean", cwd=built)
        assert done.returncode == 2 and f"`make book` (process {os.getpid()}, since " in done.stderr
    assert (built / "_build" / "html").is_dir()
    with env.only_one(built):
        done = make("clean", "ALL=1", cwd=built)
        assert done.returncode == 2 and "installing" in done.stderr and (built / ".venv").is_dir()


@pytest.mark.parametrize("script", [pages, pdf])
def test_no_two_commands_work_on_one_build(tmp_path, capsys, script):
    (tmp_path / "_build" / "html").mkdir(parents=True)
    site = ["--site", str(tmp_path / "_build" / "html")] if script is pages else ["--root", str(tmp_path)]
    with running.alone(tmp_path, "make book"):
        assert script.main(site) == 2
    assert "`make book` (process" in capsys.readouterr().err


# --- the environment ---

# An index nobody answers at, and nothing else that pip could fall back on.
DEAD = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
DEAD |= {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}


def new_project(root: Path) -> Path:
    """A folder with env.py and empty lists of requirements: an environment takes seconds."""
    (root / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "env.py", root / "tools")
    for name in {env.BASE, *env.MORE.values(), "pyproject.toml"}:
        (root / name).write_text("")
    return root


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Path:
    """One such folder for the tests that follow each other, in the order they stand here."""
    return new_project(tmp_path_factory.mktemp("story") / "project")


def prepare(root: Path, *command: str, goal: str = "test", **environment: str):
    words = [sys.executable, str(root / "tools" / "env.py"), "--for", goal, *command]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_no_network_then_ready(story):
    log, listed = story / ".venv" / "vitbook-install.log", story / "requirements.txt"
    listed.write_text("a-package-that-is-not-there\n")
    done = prepare(story, **DEAD)
    assert done.returncode == 2 and "No network while installing requirements.txt" in done.stderr
    assert "make test" in done.stderr and "Traceback" not in done.stderr
    assert str(log) in done.stderr and "a-package-that-is-not-there" in log.read_text()
    listed.write_text("# nothing\n")
    done = prepare(story, "-c", "import sys; print(sys.prefix)")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(story / ".venv"), done.stderr
    # nothing compiles the grammars of addresses: a package of that name is an ImportError there
    done = prepare(story, "-c", "import sys; print(sys.modules['rfc3987_syntax'])", **DEAD)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    done = prepare(story, "-c", "print('ran'); raise SystemExit(7)", **DEAD)
    assert (done.returncode, done.stdout) == (7, "ran\n"), done.stderr


def test_what_a_stamp_and_a_folder_depend_on(tmp_path):
    """Another list, another Python, and another place: the editable install points to the old one."""
    one, two = new_project(tmp_path / "one"), new_project(tmp_path / "two")
    keys = [env.stamp_key(one, (3, 12)), env.stamp_key(two, (3, 12)), env.stamp_key(one, (3, 13))]
    (one / "requirements.txt").write_text("more\n")
    assert len({*keys, env.stamp_key(one, (3, 12))}) == 4
    assert env.folder_for(one, (3, 12)) == one / ".venv"
    (one / ".venv").mkdir()
    (one / ".venv" / "pyvenv.cfg").write_text("home = /usr\nversion_info = 3.11.7.final.0\n")
    assert env.folder_for(one, (3, 11)) == one / ".venv" and env.folder_for(one, (3, 13)) == one / ".venv-3.13"


@pytest.mark.slow
def test_pages_and_pdf_install_more_and_an_environment_that_does_not_run_is_made_again(story):
    """A second list with a stamp of its own: what is wrong with it stops `make pages`, never `make test`."""
    more = story / "requirements-pages.txt"
    more.write_text("a-package-that-is-not-there\n")
    done = prepare(story, goal="pages", **DEAD)
    assert done.returncode == 2 and "No network while installing requirements-pages.txt" in done.stderr
    assert prepare(story, "-c", "print('ran')", **DEAD).stdout == "ran\n"
    more.write_text("# nothing\n")
    (story / ".venv" / "bin" / "python").unlink()  # as where the system's Python was removed
    done = prepare(story, goal="pdf")
    assert done.returncode == 0 and "Creating .venv" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"^Installing (\S+)", done.stdout, re.M) == ["requirements.txt", "requirements-pages.txt"]


def wheel(path: Path, **files: str | bytes) -> str:
    with zipfile.ZipFile(path / "small-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(f"small/{name}.py", content)
        file.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr("small-1.0.dist-info/WHEEL", tags)
        file.writestr("small-1.0.dist-info/RECORD", "")
    return f"{path}/small-1.0-py3-none-any.whl\n"


@pytest.mark.slow
def test_what_is_installed_lands_in_the_environment(story, tmp_path):
    """Wherever the reader has other packages put."""
    (story / "requirements.txt").write_text(wheel(tmp_path, __init__="how = 'found'"))
    where = str(tmp_path / "elsewhere")
    (tmp_path / "pip.conf").write_text("[global]\nrequire-virtualenv = true\n[install]\nuser = true\n")
    settings = {f"PIP_{name}": where for name in ("PREFIX", "TARGET", "ROOT", "SRC")}
    settings |= {f"PIP_{name}": "1" for name in ("USER", "DRY_RUN", "REQUIRE_VIRTUALENV", "REQUIRE_HASHES")}
    settings |= {"PYTHONPATH": "/nowhere", "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error"}
    settings |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_NO_CACHE_DIR": "1"}
    done = prepare(story, "-c", "import small, sys; print(small.how, sys.flags.optimize)", **settings)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "found 0", done.stdout + done.stderr
    assert not (tmp_path / "elsewhere").exists()


# --- the reader's surroundings ---

def test_what_of_the_reader_s_settings_reaches_a_command(tmp_path, monkeypatch):
    """A folder is the one that was meant where the command was called: the kernels work in notebooks/."""
    monkeypatch.chdir(tmp_path)
    home = {"HOME": str(tmp_path)}
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = {"PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", "JUPYTER_PREFER_ENV_PATH": "1", "MATPLOTLIBRC": os.devnull}
    out = dict.fromkeys("PYTHONPATH PIP_USER JUPYTER_PATH IPYTHONDIR MPLBACKEND PYTEST_ADDOPTS GIT_DIR".split(), "x")
    kept = dict.fromkeys("LANG HF_TOKEN VITBOOK_SCALE PIP_CONFIG_FILE PIP_INDEX_URL GIT_SSL_CAINFO".split(), "x")
    found = env.surroundings(home | out | kept | {"HF_HOME": "./y/../x", "VITBOOK_DATA": f"data{os.pathsep}~/more"})
    folders = {"HF_HOME": f"{tmp_path}/x", "VITBOOK_DATA": f"{tmp_path}/data{os.pathsep}{tmp_path}/more"}
    assert found == home | kept | ours | folders and env.surroundings(found) == found
    # In JupyterLab a reader's own start-up files are theirs.
    assert env.surroundings(home | out, "lab") == home | ours | {"IPYTHONDIR": "x"}


@pytest.mark.skipif(os.name == "nt", reason="a Unix user's home")
def test_a_user_without_a_home_gets_one(tmp_path, capsys):
    found = env.surroundings({"HOME": "/proc/nowhere"}, root=tmp_path)
    assert Path(found["HOME"]) == tmp_path / ".cache" / "home" and os.access(found["HOME"], os.W_OK)
    assert "(/proc/nowhere) is not there" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
def test_a_reader_who_went_away_is_no_fault():
    """As `| head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "import sys, env; sys.exit(env.run(lambda: print('kept')))"]
    done = subprocess.run(command, cwd=ROOT / "tools", text=True, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# --- what can go wrong ---


@pytest.mark.parametrize(
    ("output", "start"),
    [
        # A slow line first, then the disk: the disk is what stopped it.
        ("WARNING: Retrying after connection broken by 'ReadTimeoutError'\nERROR: [Errno 28] x", "Disk full"),
        ("ERROR: NewConnectionError('Temporary failure in name resolution')", "No network"),
        ("WARNING: Retrying (ReadTimeoutError)\nERROR: ResolutionImpossible: for help visit", "Failed while"),
        ("ERROR: something nobody thought of", "Failed while"),
        ("The environment was not created successfully because ensurepip is not available.", "This Python"),
    ],
)
def test_what_pip_says_in_plain_words(output, start):
    message = env.explain(output, "installing requirements.txt")
    assert message.startswith(start) and message.endswith(output.splitlines()[-1])
