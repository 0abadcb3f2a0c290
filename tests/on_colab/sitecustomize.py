"""Run where a notebook's Python starts: `vitutils` is there only as a wheel, and only once the setup cell asked pip."""

import os
import sys
from importlib.machinery import PathFinder

# Beside the notebook's folder, which stays empty. What the notebook starts inherits it.
INSTALLED = os.environ.setdefault("VITBOOK_STUB_INSTALLED", os.getcwd() + ".installed")
WHEEL = os.environ["VITBOOK_STUB_WHEEL"]


class FromTheWheel:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "vitutils":
            return None
        if not os.path.exists(INSTALLED):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return PathFinder.find_spec(name, [WHEEL])


sys.meta_path.insert(0, FromTheWheel)
