"""Where `make test` runs the notebooks: each alone in an empty folder, as on Colab, with `vitutils` from a wheel.

What stands in for Colab and its pip is in tests/on_colab. Behind each check of an exercise, which the stub must not
pass, come the worked solution and the check once more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import chapter_file
import solutions

KERNEL = "colab"
NOT_YET = """\
assert {title!r} + ": not yet. " in said.stdout and {title!r} + ": pass" not in said.stdout, said.stdout
assert {hint!r} in said.stdout, said.stdout"""
SOLVED = """\
assert said.stdout.endswith({title!r} + ": pass\\n") and "not yet" not in said.stdout, said.stdout"""


def wheel(root: Path, folder: Path) -> Path:
    """Build the package and install it in a folder of its own. Raises ValueError with pip's words where that fails."""
    settings = folder / "setuptools.cfg"  # else the build leaves folders in the book's
    places = f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n"
    settings.write_text(places, encoding="utf-8")
    # Isolated from what the reader has set for pip, not from this environment's setuptools.
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--target", str(folder / "wheel"), str(root)]
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(settings)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ValueError(f"The package cannot be built and installed:\n{done.stdout}")
    return folder / "wheel"


def code(name: str, source: str) -> dict:
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {}, "outputs": [], "source": source}


def with_solutions(path: Path, page: Path) -> dict:
    """The chapter, with the page's worked solutions where the exercises stand."""
    notebook = chapter_file.Chapter.read(path).notebook
    if not page.is_file():
        return notebook
    answers, cells = solutions.read(page).solutions, []
    asked = {found.ids[1]: (number, found) for number, found in solutions.exercises(path).items()}
    for cell in notebook["cells"]:
        if cell.get("id") not in asked:
            cells.append(cell)
            continue
        number, exercise = asked[cell["id"]]
        if number not in answers:
            raise ValueError(f"{page.name} has no section for exercise {number} of its chapter")
        check = f"%%capture said\n{exercise.check.rstrip(';')}"  # a cell that ends in one is not captured
        told = {"title": exercise.title, "hint": f"  Hint: {exercise.hint}\n"}
        cells += [code(f"{cell['id']}-stub", check), code(f"{cell['id']}-not-yet", NOT_YET.format(**told))]
        cells += [code(f"{cell['id']}-solution", answers[number].solution), code(f"{cell['id']}-again", check)]
        cells += [code(f"{cell['id']}-solved", SOLVED.format(**told))]
    return notebook | {"cells": cells}


def prepare(root: Path, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Put the book's notebooks and their kernel into the folder: the copies, and the environment that finds the kernel.

    Raises ValueError where the package cannot be built, or an exercise or its page is out of form.
    """
    copies = []
    for path in chapter_file.notebook_paths(root):
        copy = folder / path.stem / path.name
        copy.parent.mkdir()
        page = root / "book" / "solutions" / f"{path.stem}.md"
        copy.write_text(json.dumps(with_solutions(path, page)), encoding="utf-8")
        copies.append(copy)
    stub = Path(__file__).resolve().parents[1] / "tests" / "on_colab"
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "The Python of these tests, as if on Colab",
        "language": "python",
        "env": {"PYTHONPATH": str(stub), "VITBOOK_STUB_WHEEL": str(wheel(root, folder))},
    }
    spec = folder / "jupyter" / "kernels" / KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(kernel), encoding="utf-8")
    return copies, {"JUPYTER_PATH": str(folder / "jupyter")}
