"""The rooms of vitutils: imports go down from level to level, without circles, and load no more than they need."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Room or module -> its level; what one of them imports stands on its own level or below.
LEVELS = {"_numbers": 0, "arguments": 0, "check": 0, "distributed": 0, "files": 0, "results": 0, "uncertainty": 0}
LEVELS |= {"": 1, "plot": 1, "data": 1, "runtime": 2, "models": 2, "timing": 2, "vit": 3, "training": 3}
LEVELS |= {"train": 4, "analysis": 4, "cli": 5, "points": 5, "photos": 5, "predict": 5}


def imports(path: Path, root: Path) -> set[str]:
    """The modules of vitutils that a file imports, in functions too; not where it is run as a command."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    commands = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test)]
    left_out = {id(inner) for node in commands for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in left_out:
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "vitutils"}
        elif isinstance(node, ast.ImportFrom) and id(node) not in left_out and f"{node.module}".startswith("vitutils"):
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                place = root.joinpath(*name.split("."))
                found.add(name if place.is_dir() or place.with_suffix(".py").is_file() else node.module)
    return found


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """{module: modules that it imports}; packages by their own name."""
    files = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in root.glob("vitutils/**/*.py")}
    return {name.removesuffix(".__init__"): imports(path, root) for path, name in files.items()}


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def faults(found: dict[str, set[str]]) -> list[str]:
    """What is wrong with a graph: an import upwards, a model that knows more than models, a circle."""
    wrong = [
        f"{module} imports {other}"
        for module, others in sorted(found.items())
        for other in sorted(others)
        if LEVELS[room(other)] > LEVELS[room(module)] and module != "vitutils"
        or (room(module) == "models" != room(other) and module != "vitutils.models.weights")
    ]
    try:  # a package hands on names of its modules, which is no circle
        within = {m: {o for o in others if not m.startswith(f"{o}.")} for m, others in found.items()}
        TopologicalSorter(within).prepare()
    except CycleError as error:
        wrong.append("a circle: " + " -> ".join(error.args[1]))
    return wrong


def test_imports_go_down_and_not_in_circles():
    assert faults(graph()) == []
    assert len(graph()) > 30


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("plot.py", "def late():\n    from vitutils.models import ViT", "vitutils.plot imports vitutils.models"),
        ("models/cnn.py", "from vitutils import files", "vitutils.models.cnn imports vitutils.files"),
        ("files.py", "import vitutils.check\n", None),
        ("check.py", "from vitutils.files import sweep\n", "a circle"),
    ],
)
def test_another_import_is_told(tmp_path, file, line, said):
    for path, text in {
        "__init__.py": "", "plot.py": "", "check.py": "", "files.py": "from vitutils import check", "models/cnn.py": "",
        "models/__init__.py": "from vitutils.models.cnn import ViT",
    }.items():
        (tmp_path / "vitutils" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vitutils" / path).write_text(text)
    assert faults(graph(tmp_path)) == []
    with (tmp_path / "vitutils" / file).open("a") as where:
        where.write(f"\n{line}\n")
    told = faults(graph(tmp_path))
    assert told == [] if said is None else len(told) == 1 and told[0].startswith(said)


def loaded(code: str) -> set[str]:
    """Which of the heavy libraries a fresh Python has loaded after this code."""
    heavy = ("torch", "torchvision", "numpy", "matplotlib", "sklearn", "PIL")
    told = f"import sys\n{code}\nprint('loaded:', *[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert "loaded:" in done.stdout, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


COMMAND = """import runpy
sys.argv[1:] = {}
try: runpy.run_module("vitutils.train", run_name="__main__")
except SystemExit: pass"""
ENOUGH = ["--data", "digits", "--net", "cnn", "--out", "x"]


@pytest.mark.parametrize(
    "code",
    [
        "import vitutils",
        COMMAND.format(["--help"]),
        COMMAND.format([*ENOUGH, "--lr", "-1"]),
        COMMAND.format([*ENOUGH, "--device", "abacus"]),
    ],
    ids=["import", "help", "number", "choice"],
)
def test_what_needs_no_torch_does_not_load_it(code):
    assert loaded(code) == set()


@pytest.mark.slow
def test_the_command_loads_the_loop_once_and_nothing_to_draw_with():
    command = COMMAND.format([*ENOUGH, "--data", "no-such-set"])
    code = f"{command}\nassert 'vitutils.training.loop' in sys.modules and 'vitutils.train' not in sys.modules"
    assert "torch" in (found := loaded(code)) and "matplotlib" not in found


def test_the_command_names_the_data_sets_and_short_names_lead_to_the_rooms():
    from vitutils import cli, data, train, vit
    from vitutils.models import ViT
    from vitutils.training.loop import fit

    assert cli.DATA == data.DATA_SETS
    assert vit.ViT is ViT and train.fit is fit
