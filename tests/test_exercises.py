"""What the checks of the exercises must not be written like. The chapters are run with them: see scripts/colab.py."""

import ast
from pathlib import Path

import pytest

import notebook_rules as rules
import solutions

PAGES = sorted(solutions.PAGES.glob("*.md"))


def trees(path: Path) -> list[ast.Module]:
    """All code of a chapter or a page of solutions."""
    if path.suffix == ".ipynb":
        return [rules.tree(cell) for cell in rules.Chapter.read(path).code]
    return [ast.parse(cell.source) for cell in solutions.code_in(path.read_text(encoding="utf-8"))]


def identities(module: ast.Module) -> list[str]:
    """Comparisons `is True` and `is False`: NumPy's and torch's truth values fail them, whatever they say."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            sides = [side.value for side in [node.left, *node.comparators] if isinstance(side, ast.Constant)]
            found += [ast.unparse(node)] if any(isinstance(side, bool) for side in sides) else []
    return found


@pytest.mark.parametrize("path", [*rules.notebook_paths(), *PAGES], ids=lambda path: path.name)
def test_nothing_asks_whether_a_number_is_the_object_true(path):
    assert identities(ast.parse("a is None; True is b; c is not False")) == ["True is b", "c is not False"]
    assert [found for tree in trees(path) for found in identities(tree)] == []
