"""What was run, as hashes: one for each definition that a study's run, runs, configuration and KEY reach.

A definition is a function, class or constant at the top of a module in studies. Its hash is that of its syntax tree
without docstrings, comments, layout, imports and functions' type hints, so none of these makes results stale. Nor does
the command line, which no run reaches, nor moving a definition to another module. What is reached in vitutils is not
followed: the replay of a row sees to that.
"""

import ast
import hashlib
import json
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOTS = ("KEY", "configuration", "runs", "run")
IGNORED_FIELDS = {"ctx", "kind", "type_comment", "type_params", "returns", "annotation", "simple"}
ALWAYS = ""  # the place of statements that make no name: they run with the module


class Module:
    """A module of studies: the statements that make each of its names, and where its imported names are from."""

    def __init__(self, source: str):
        self.made: dict[str, list[ast.stmt]] = {}
        self.ours: dict[str, tuple[str, str]] = {}  # a name -> the module of studies, the name there ("" for all of it)
        self.theirs: dict[str, str] = {}  # a name from another package -> what that package calls it
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.add_import(node)
        for statement in tree.body:
            for name in names_made(statement):
                self.made.setdefault(name, []).append(statement)

    def add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Note what an import brings."""
        for alias in node.names:
            name = alias.asname or alias.name
            package, _, module = (getattr(node, "module", None) or "").partition(".")
            if isinstance(node, ast.Import) and alias.name.startswith("studies.") and alias.asname:
                self.ours[name] = alias.name.removeprefix("studies."), ""
            elif getattr(node, "level", 0):
                self.ours[name] = (node.module, alias.name) if node.module else (alias.name, "")
            elif package == "studies":
                self.ours[name] = (module, alias.name) if module else (alias.name, "")
            else:
                self.theirs[name] = alias.name


def names_made(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module makes or changes; `ALWAYS` where that cannot be told."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.If) and "__name__" in {getattr(n, "id", "") for n in ast.walk(statement.test)}:
        return set()
    if ignored(statement):
        return set()
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    found = {n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)}
    simple = isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign)
    if simple and not any(isinstance(n, ast.Attribute) for target in targets for n in ast.walk(target)):
        return found
    return found | {ALWAYS}


def ignored(node: object) -> bool:
    """Whether a statement does nothing: an import, a docstring or another lone string, `pass`."""
    lone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return lone or isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def plain(node: object, module: Module, used: set[str]) -> object:
    """A part of a syntax tree as nested lists; the names that it uses are added to `used`."""
    if isinstance(node, list):
        return [plain(item, module, used) for item in node if not ignored(item)]
    if isinstance(node, ast.Constant):
        return ["Constant", repr(node.value)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Attribute) and module.ours.get(getattr(node.value, "id", ""), "..")[1] == "":
        used.add(f"{node.value.id}.{node.attr}")  # of a module of studies
        return node.attr
    if isinstance(node, ast.Name):
        used.add(node.id)
        return module.ours.get(node.id, ("", ""))[1] or module.theirs.get(node.id, node.id)
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in IGNORED_FIELDS)
    kept = [[name, plain(value, module, used)] for name, value in fields if value is not None and value != []]
    return [type(node).__name__, *kept]


@lru_cache
def parsed(source: str) -> Module:
    """The module of a source; the same source is read once."""
    return Module(source)


def code_of(study: str) -> dict[str, str]:
    """The hash of each definition that a study reaches, by its name. Raises FileNotFoundError, SyntaxError."""
    found: dict[str, set[str]] = {}
    waiting, seen = [(study, root) for root in (*ROOTS, ALWAYS)], set()
    while waiting:
        place = where, name = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        module = parsed((FOLDER / f"{where}.py").read_text(encoding="utf-8"))
        first, _, attribute = name.partition(".")
        if first in module.ours:
            other, there = module.ours[first]
            there = there or attribute
            inside = parsed((FOLDER / f"{other}.py").read_text(encoding="utf-8"))
            waiting += [(other, n) for n in (ALWAYS, *([there] if there in inside.made | inside.ours else inside.made))]
        for statement in module.made.get(name, []):
            used: set[str] = set()
            found.setdefault(name, set()).add(json.dumps(plain(statement, module, used)))
            waiting += [(where, other) for other in sorted(used)]
    return {
        name: hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:12]
        for name, texts in sorted(found.items())
    }

