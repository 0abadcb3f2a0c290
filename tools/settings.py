"""What a build reads first, looked at before it begins: _config.yml, _toc.yml and the files that it lists.

Jupyter Book says of most of these faults no more than "RuntimeError:". Here the same YAML, its own schema and its own
parser are asked, and their words are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

import notebook_file

SUFFIXES = (".ipynb", ".md", ".rst", "")


def look_at_settings(root: Path) -> list[str]:
    """What is wrong with the book's settings, one line each, by file."""
    found = []
    for name, faults in (("_config.yml", config_faults), ("_toc.yml", toc_faults)):
        try:
            with (root / name).open(encoding="utf-8") as file:
                data = yaml.safe_load(file)
            if not isinstance(data, dict):
                raise ValueError("expected names with values, such as `a: b`")
            found += [f"{name}: {fault}" for fault in faults(root, data)]
        except FileNotFoundError:
            found.append(f"{name}: is not there. To get the book's own back: git checkout {name}")
        except (OSError, ValueError, yaml.YAMLError) as error:
            found.append(f"{name}: {' '.join(str(error).split())}")
    return found


def config_faults(root: Path, data: dict) -> Iterator[str]:
    """Against Jupyter Book's own schema."""
    from jupyter_book.config import get_validator

    for error in get_validator().iter_errors(data):
        yield f"{error.json_path.removeprefix('$.')}: {error.message}"


def toc_faults(root: Path, data: dict) -> Iterator[str]:
    """Its form, by the parser that the build takes; then whether each page is there, and holds something."""
    from sphinx_external_toc.parsing import MalformedError, parse_toc_data

    try:
        pages = list(parse_toc_data(data))
    except (MalformedError, TypeError, AttributeError) as error:
        yield f"{error}"
        return
    for name in pages:
        page = next((path for suffix in SUFFIXES if (path := root / (name + suffix)).is_file()), None)
        if page is None:
            yield f"there is no {name} (.ipynb, .md)"
        elif page.suffix == ".ipynb":
            try:
                notebook_file.read(page)
            except notebook_file.Unreadable as error:
                yield f"{error}"
