"""Takes the setup cell's command, and no other; from then on `vitutils` can be imported (see sitecustomize.py)."""

import os
import re
import sys
from pathlib import Path

book = re.fullmatch(r"vitutils @ git\+https://github\.com/[\w.-]+/[\w.-]+", sys.argv[-1])
if sys.argv[1:-1] != ["install", "-q"] or not book:
    sys.exit(f"expected the setup cell's `install -q 'vitutils @ git+https://...'`, got {sys.argv[1:]}")
Path(os.environ["VITBOOK_STUB_INSTALLED"]).touch()
