"""The notebooks as `make test` runs them, each alone in an empty folder, as on Colab; and Colab itself, simulated.

The simulation (slow) is a fresh virtual environment with a stub `google.colab`. It sees torch, numpy and their like,
linked from the environment that runs this test, and neither `vitutils` nor vit-pytorch. Git is told to find the book's
URL in a copy of this working tree, so that the setup cell, which is that of all chapters, runs to the letter.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import chapter_file
import colab
import notebook_file
import notebook_rules as rules
import notebooks as command

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same thing
    import tomli as tomllib

specification = importlib.util.spec_from_file_location("the_tests", chapter_file.ROOT / "tools" / "test.py")
the_tests = importlib.util.module_from_spec(specification)
specification.loader.exec_module(the_tests)

PROJECT = tomllib.loads((chapter_file.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Colab's own packages that the book uses, and what runs its notebooks; what these need comes along.
COLAB = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image", "matplotlib", "timm", "safetensors"),
    *("tqdm", "ipykernel", "pip"),
)
BROUGHT = ("vitutils", "vit_pytorch", "einops")  # by the setup cell, and by nothing else
HERE_ONLY = ("pytest", "jupyter_book")  # by nothing
PROBE = """\
import importlib, json
names = ["vitutils", "vit_pytorch", "torch", "numpy"]
print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))
"""


def with_dependencies(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions of these names and all that they need, here and now."""
    found, seen = {}, set()
    waiting = [(name, "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            assert name not in names, f"{name} is not installed"
            continue
        for line in found[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed.name, wanted) for wanted in ("", *needed.extras)]
    return found


def link_packages(folder: Path) -> None:
    """Fill the folder with links to Colab's packages and their metadata."""
    folder.mkdir()
    for distribution in with_dependencies(COLAB).values():
        for entry in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (folder / entry).exists():
                (folder / entry).symlink_to(distribution.locate_file(entry))


def copy_repository(folder: Path) -> None:
    """A git repository of what the working tree holds now, less what is ignored."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=chapter_file.ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if (chapter_file.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(chapter_file.ROOT / name, folder / name)
    settings = ("user.name=test", "user.email=test@example.org", "commit.gpgsign=false")
    git = ["git", *(word for setting in settings for word in ("-c", setting))]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "The book"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)


class Colab:
    """The environment."""

    def __init__(self, folder: Path):
        self.folder = folder
        fresh = [sys.executable, "-m", "venv", "--without-pip", folder / "env"]
        subprocess.run(fresh, check=True)
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = folder / "env" / scripts / "python"
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GIT_DIR", "GIT_WORK_TREE")
        }
        self.environment |= {
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{(folder / 'repository').as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": chapter_file.book_url(),
        }
        self.site = Path(self.ask("import sysconfig; print(sysconfig.get_path('purelib'))"))
        stub = self.site / "google" / "colab" / "__init__.py"
        stub.parent.mkdir(parents=True)
        stub.write_text("", encoding="utf-8")
        link_packages(folder / "colab")
        (self.site / "colab.pth").write_text(str(folder / "colab"), encoding="utf-8")
        lacking = "import sys; from importlib.util import find_spec as find\n"
        lacking += "print(*[name for name in sys.argv[1:] if not find(name)])"
        self.lacking = self.ask(lacking, *BROUGHT, *HERE_ONLY).split()
        (folder / "repository").mkdir()
        copy_repository(folder / "repository")

    def ask(self, question: str, *arguments: str) -> str:
        """What a line of Python prints there."""
        command = [self.python, "-c", question, *arguments]
        more = {"capture_output": True, "text": True, "check": True, "cwd": self.folder}
        return subprocess.run(command, env=self.environment, **more).stdout.strip()


def notebook_of(*sources: str) -> dict:
    cells = [colab.code(f"cell-{number}", source) for number, source in enumerate(sources)]
    return {"cells": cells, "metadata": notebook_file.NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5}


@pytest.mark.slow
def test_the_setup_cell_brings_what_colab_lacks_and_replaces_nothing(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("Colab's setup cell needs git, which is not installed here")
    reach = [sys.executable, "-m", "pip", "--timeout", "30", "--retries", "0", "index", "versions"]
    if subprocess.run([*reach, "vit-pytorch"], capture_output=True).returncode:
        pytest.skip("no network: pip cannot reach a package index to install vit-pytorch from")
    simulated = Colab(tmp_path)
    assert simulated.lacking == [*BROUGHT, *HERE_ONLY]
    (tmp_path / "alone").mkdir()
    path = tmp_path / "alone" / "04_x.ipynb"
    setup = rules.SETUP.format(url=chapter_file.book_url())
    path.write_text(notebook_file.dumps(notebook_of(setup, PROBE)), encoding="utf-8")
    done = command.execute(path, "smoke", simulated.python, simulated.environment)
    files = {name: Path(file) for name, file in json.loads(done.cells[-1].outputs[0].text).items()}
    for name in ("vitutils", "vit_pytorch"):
        assert files[name].is_relative_to(simulated.site)
    for name in ("torch", "numpy"):
        assert files[name].is_relative_to(tmp_path / "colab"), f"{name} was replaced"
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions(path=[str(simulated.site)])}
    assert {"vitutils", "vit-pytorch"} <= installed
    replaced = {name for name in installed if name.lower() in with_dependencies(COLAB)}
    assert not replaced, f"the setup cell replaced Colab's {', '.join(replaced)}"


def test_the_package_asks_for_nothing_that_replaces_what_colab_has():
    """Lower bounds only: a pin or a ceiling would change torch or numpy under a running kernel."""
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    assert {"torch", "numpy", "vit-pytorch"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators <= {">="}, f"{requirement} is not a lower bound"


# --- what every chapter's source promises ---


def code_of(path: Path) -> list[tuple[str, str]]:
    """(where, source) of a notebook's code cells or of a Python file; magics are left out."""
    if path.suffix == ".py":
        return [(path.name, path.read_text(encoding="utf-8"))]
    cells = chapter_file.Chapter.read(path).code
    return [(f"{path.name}, {cell['id']}", ast.unparse(chapter_file.tree(cell))) for cell in cells]


SOURCES = [*chapter_file.notebook_paths(), *sorted((chapter_file.ROOT / "vitutils").rglob("*.py"))]
COMES_ALONG = with_dependencies((*(Requirement(line).name for line in PROJECT["dependencies"]), "ipykernel"))
OWNERS = importlib.metadata.packages_distributions()


def undeclared(source: str) -> set[str]:
    """Modules that a source imports, in whatever branch, and that neither Python nor the setup cell brings."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    roots = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    roots -= {"vitutils", "google", "pillow_heif"}  # the last is taken where a reader has installed it
    owners = {root: {re.sub(r"[-_.]+", "-", owner).lower() for owner in OWNERS.get(root, [])} for root in roots}
    return {root for root in roots if not owners[root] & set(COMES_ALONG)}


def test_an_import_in_a_branch_that_is_not_taken_is_seen():
    assert undeclared("import os, numpy.linalg\nif False:\n    from pytest import mark\n    import nowhere") == {
        "pytest", "nowhere",
    }  # fmt: skip
    assert undeclared("from PIL import Image\nimport google.colab\nfrom vitutils import data") == set()


ASKS = {
    "an account or a token": r"notebook_login|\blogin\(|userdata|HF_TOKEN|\bapi_key|wandb|kaggle|\btoken=(?!False)\S",
    "the reader's drive": r"drive\.mount|google\.colab\.auth|authenticate_user",
    "an answer, and waits": r"\binput\(|getpass",
}


def asks_for(source: str) -> list[str]:
    return [what for what, pattern in ASKS.items() if re.search(pattern, source)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_imports_come_with_the_setup_cell_and_nothing_asks_for_an_account(path):
    for where, source in code_of(path):
        assert not undeclared(source), f"{where}: not in pyproject.toml's dependencies"
        assert not asks_for(source), where


def test_what_asks_is_seen():
    assert asks_for("notebook_login()\nhf_hub_download(repo, file, token=secret)") == ["an account or a token"]
    assert asks_for("from google.colab import drive\ndrive.mount('/content/drive')") == ["the reader's drive"]
    assert asks_for("key = getpass.getpass()") == ["an answer, and waits"]
    assert asks_for("hf_hub_download(a, token=False)\ncls_token = 1\npick(cls_token=True)\nout = net(input=x)") == []


# (chapter, cell): why it computes on the CPU
ON_CPU = {
    ("06_training", "mistake-nan-show"): "is made to stop in its first steps",
    ("09_pretrained", "load-net"): "the pocket net over 1,437 digits, where nothing else can be had",
}
HEAVY = {"train.fit", "train.evaluate", "probe.extract"}


def without_device(source: str) -> list[str]:
    """Calls that train, evaluate or extract and do not say on which device."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    heavy = [call for call in calls if ast.unparse(call.func) in HEAVY]
    return [ast.unparse(call.func) for call in heavy if not {k.arg for k in call.keywords} & {"device", None}]


@pytest.mark.parametrize("path", chapter_file.notebook_paths(), ids=lambda path: path.stem)
def test_a_gpu_is_used_where_there_is_one(path):
    sources = code_of(path)
    wrong = {where: calls for where, source in sources if (calls := without_device(source))}
    for chapter, cell in ON_CPU:
        wrong.pop(f"{chapter}.ipynb, {cell}", None)
    assert not wrong, f"says no device, so it is the CPU: {wrong}"
    whole = "\n".join(source for _, source in sources)
    if re.search(r"\.backward\(|\btrain\.fit\(", whole):
        assert "env.device" in whole, f"{path.name} trains, and never on env.device"


def test_a_call_without_a_device_is_seen():
    assert without_device("train.fit(net, dataset, recipe)\nprobe.extract(net, x, device=env.device)") == ["train.fit"]
    assert without_device("train.evaluate(net, *parts, **how)\nclassifier.fit(x, y)") == []


# --- how `make test` runs them ---

EXERCISE = """check.exercise("Exercise 4.1", lambda: answer == 42, hint="six times seven");"""
PAGE = """# Solutions

## Exercise 4.1 (easy): the answer

% Trains: counting
% Wrong: "42" -> "41"

```{code-cell} python
answer = 42
```

```{code-cell} python
CHECK
```
""".replace("CHECK", EXERCISE)
PACKAGE = {
    "__init__": "def setup(seed):\n    return 'ready'\n",
    "check": """def exercise(name, test, hint):
    print(f"{name}: pass" if test() else f"{name}: not yet. Wrong.\\n  Hint: {hint}")\n""",
}
NONE_YET = "try:\n    import vitutils\nexcept ModuleNotFoundError:\n    pass\nelse:\n    raise AssertionError(vitutils)"
CELLS = {  # source, what it prints, whether it passes
    "as-on-colab": ("import google.colab\nimport os, sys\nassert len(os.listdir()) == 1", "", True),
    "is-this-python": (f"assert sys.executable == {sys.executable!r}", "", True),
    "is-small": ("assert os.environ['VITBOOK_SCALE'] == 'smoke'", "", True),
    "not-yet-there": (NONE_YET, "", True),
    "another-package": ("%pip install -q other", "", True),
    "not-there-either": (NONE_YET, "", True),
    "setup": (rules.SETUP.format(url=chapter_file.book_url()), "", True),
    "from-the-wheel": ("assert vitutils.__path__[0].endswith(os.path.join('wheel', 'vitutils')), vitutils", "", True),
    "unmarked": ("print(id(object()))", "", True),
    "same": (f"{notebook_file.MARKER}\nprint(env)", "ready\n", True),
    "different": (f"{notebook_file.MARKER}\nprint(env)", "steady\n", False),
    "nothing-stored": (f"{notebook_file.MARKER}\nprint(env)", "", False),
    "raises": ("assert 1 == 2", "", False),
}


@pytest.fixture
def small_book(tmp_path, monkeypatch) -> Path:
    """A book of one chapter with one exercise and of a scratch notebook; its package as if installed."""
    root = tmp_path / "book"
    (root / "notebooks").mkdir(parents=True)
    (root / "book" / "solutions").mkdir(parents=True)
    (root / "_toc.yml").write_text("format: jb-book\nroot: a\nchapters:\n- file: notebooks/04_x\n", encoding="utf-8")
    cells = []
    for name, (source, printed, _) in CELLS.items():
        stored = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
        count = 1 if source.startswith(notebook_file.MARKER) else None
        cells.append(colab.code(name, source) | {"outputs": stored, "execution_count": count})
    asked = {"cell_type": "markdown", "id": "asked", "metadata": {}, "source": "**Exercise 4.1 (easy).** What is it?"}
    stub, check = "from vitutils import check\n\nanswer = ...", EXERCISE
    cells += [asked, colab.code("stub", stub), colab.code("check", check)]
    notebook = notebook_of() | {"cells": cells}
    (root / "notebooks" / "04_x.ipynb").write_text(notebook_file.dumps(notebook), encoding="utf-8")
    (root / "notebooks" / "Untitled.ipynb").write_text("for x in", encoding="utf-8")
    (root / "book" / "solutions" / "04_x.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "wheel" / "vitutils").mkdir(parents=True)
    for name, source in PACKAGE.items():
        (tmp_path / "wheel" / "vitutils" / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(colab, "wheel", lambda root, folder: tmp_path / "wheel")
    return root


def test_a_scratch_notebook_is_neither_linted_nor_run(small_book, monkeypatch):
    called = []
    monkeypatch.setattr(the_tests, "ROOT", small_book)
    monkeypatch.setattr(the_tests.subprocess, "call", lambda command, **options: called.append(command) or 0)
    monkeypatch.setattr(the_tests, "call", lambda command, settings: called.append(command) or 0)
    assert the_tests.main([]) == the_tests.main(["--all", "-x"]) == 0
    ruff, some, _, every = called
    assert ruff[ruff.index("notebooks/Untitled.ipynb") - 1] == "--extend-exclude"
    for pytests in (some, every):
        assert [Path(word).name for word in pytests if word.endswith(".ipynb")] == ["04_x.ipynb"]
    assert "not slow" in some and not {"not slow", "--all"} & {*every} and every[-1] == "-x"


def test_a_book_that_cannot_be_prepared_is_one_message(small_book, monkeypatch, capsys):
    monkeypatch.setattr(the_tests, "ROOT", small_book)
    monkeypatch.setattr(the_tests, "lint", lambda: 0)
    (small_book / "book" / "solutions" / "04_x.md").write_text("# None\n")
    assert the_tests.main([]) == 2
    assert "04_x.md has no section for exercise 4.1" in capsys.readouterr().err


@pytest.mark.slow
def test_nbval_sees_what_it_should(small_book, tmp_path):
    """Of cells and exercises with faults, the options of `tools/test.py` let none pass."""
    page = small_book / "book" / "solutions" / "04_x.md"
    page.write_text(PAGE.replace("answer = 42", "answer = 41"), encoding="utf-8")
    (tmp_path / "alone").mkdir()
    (copy,), settings = colab.prepare(small_book, tmp_path / "alone")
    arguments = ["-p", "no:cacheprovider", "-rA", *the_tests.NBVAL, copy.name]
    environment = os.environ | settings | the_tests.SMALL
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=copy.parent, env=environment, capture_output=True, text=True)
    outcomes = re.findall(r"^(PASSED|FAILED) \S+::Cell (\d+)", done.stdout, flags=re.M)
    found = [outcome == "PASSED" for outcome, _ in sorted(outcomes, key=lambda pair: int(pair[1]))]
    assert found == [good for *_, good in CELLS.values()] + [True] * 5 + [False], done.stdout


@pytest.mark.slow
def test_the_wheel_holds_what_the_package_reads(tmp_path):
    """Built from this folder, which it leaves as it was."""
    before = set(chapter_file.ROOT.iterdir())
    package = colab.wheel(chapter_file.ROOT, tmp_path) / "vitutils"
    for folder, pattern in (("vitutils", "*.py"), ("results", "*.csv"), ("book/papers", "*.csv")):
        inside = {path.name for path in package.rglob(pattern)}
        assert {path.name for path in (chapter_file.ROOT / folder).rglob(pattern)} <= inside, folder
    assert set(chapter_file.ROOT.iterdir()) == before
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyproject.toml").write_text("[project]\nname = 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="The package cannot be built"):
        colab.wheel(tmp_path / "broken", tmp_path)
