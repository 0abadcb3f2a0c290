#!/usr/bin/env bash
# nbgrader 0.9.6, Python 3.11
#
# A test cell that passes earns 0 points when anything in it writes a line to stderr.
#
# nbgrader counts text on stderr like an error. So a right answer loses all points of a test whose assertions hold if
# the answer, or a library below it, calls warnings.warn or logs with the default handler; the feedback shows the
# warning, no failed assertion, and no reason. Whether a library warns depends on its version and on the machine, so one
# hand-in can be graded differently on two of them. Printing to stdout costs nothing.
#
# Output seen:
#   quiet: 2 of 2 points
#   prints: 2 of 2 points
#   warns: 0 of 2 points
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet nbgrader==0.9.6
export PATH="$work/env/bin:$PATH" JUPYTER_PATH= HOME="$work" IPYTHONDIR="$work/ipython"
env/bin/python -W ignore - <<'PY'
import subprocess
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from nbgrader.api import Gradebook

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ANSWERS = {
    "quiet": "def double(x):\n    return 2 * x",
    "prints": "def double(x):\n    print('doubling')\n    return 2 * x",
    "warns": "def double(x):\n    import warnings\n    warnings.warn('doubling')\n    return 2 * x",
}


def cell(name, source, **marks):
    told = {"grade": False, "solution": False, "locked": False, "task": False, "schema_version": 3, "grade_id": name}
    return new_code_cell(source, metadata={"nbgrader": told | marks})


def notebook(answer):
    return new_notebook(
        cells=[
            cell("answer", answer, solution=True),
            cell("test", "assert double(3) == 6", grade=True, locked=True, points=2),
        ],
        metadata=KERNEL,
    )


def nbgrader(*arguments):
    done = subprocess.run(["nbgrader", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def write(path, answer):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(answer), path)


write("source/one/one.ipynb", "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION")
nbgrader("generate_assignment", "one")
for student, answer in ANSWERS.items():
    write(f"submitted/{student}/one/one.ipynb", answer)
nbgrader("autograde", "one")
with Gradebook("sqlite:///gradebook.db") as book:
    points = {name: book.find_submission("one", name).score for name in ANSWERS}
for name, got in points.items():
    print(f"{name}: {got:g} of 2 points")
assert points == {"quiet": 2, "prints": 2, "warns": 0}, points
PY
