#!/usr/bin/env bash
# nbformat 5.10.4, jsonschema 4.26.0, rfc3987-syntax 1.1.0, lark 1.3.1, Python 3.11
#
# `import nbformat` takes about twelve times as long once JupyterLab is installed, in every process.
#
# nbformat imports jsonschema, and that imports rfc3987_syntax where it finds it. JupyterLab brings it (by
# jupyter-events, which asks for jsonschema[format-nongpl]). The package's one module compiles 38 grammars, one per kind
# of address, with a parser generator while it is imported: nothing is kept on disk, nothing waits for the first use,
# and nbformat never checks an address. The notebook's own test runner, nbval, pays it once in each of its processes.
# jsonschema takes an ImportError there in its stride, as it is an optional part.
#
# Output seen (seconds of the processor):
#   import nbformat: 0.27 s; with rfc3987-syntax installed: 3.26 s
#   a format checker without it knows "uri" and no "iri"; nbformat validates as before
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet nbformat==5.10.4 jsonschema==4.26.0 rfc3986-validator==0.1.1
cat >seconds.py <<'PY'
import subprocess
import sys

CODE = "import time; import nbformat; print(time.process_time())"
took = [float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout) for _ in range(4)]
print(min(took[1:]))  # the first one compiles to byte code
PY
before=$(env/bin/python seconds.py)
env/bin/pip install --quiet rfc3987-syntax==1.1.0 lark==1.3.1
after=$(env/bin/python seconds.py)
env/bin/python - "$before" "$after" <<'PY'
import sys

sys.modules["rfc3987_syntax"] = None  # importing it is an ImportError from here on
import nbformat
from jsonschema import FormatChecker

before, after = map(float, sys.argv[1:])
print(f"import nbformat: {before:.2f} s; with rfc3987-syntax installed: {after:.2f} s")
assert after > 5 * before
assert "uri" in FormatChecker.checkers and "iri" not in FormatChecker.checkers
nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]))
print('a format checker without it knows "uri" and no "iri"; nbformat validates as before')
PY
