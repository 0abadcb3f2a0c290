"""What a build reads first, looked at before it begins: _config.yml, _toc.yml and the files that it lists.

Jupyter Book says of most of these faults no more than "RuntimeError:", and waits for ever for a pipe.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import yaml

QUOTE = "'"
SUFFIXES = ("", ".ipynb", ".md", ".rst")
KINDS = {stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISBLK: "device"}


def look_at_kinds(root: Path) -> list[str]:
    """The pipes, sockets and devices where pages are read, each by its name."""
    paths = [path for path in root.iterdir() if not path.name.startswith(".")]
    for name in ("book", "notebooks"):
        for folder, _, files in os.walk(root / name):
            paths += [Path(folder, file) for file in files]
    found = []
    for path in sorted(paths):
        mode = path.stat().st_mode if path.exists() else 0
        kinds = [word for is_kind, word in KINDS.items() if is_kind(mode)]
        found += [f"{path.relative_to(root).as_posix()}: is a {word}; expected a file. Remove it" for word in kinds]
    return found


def look_at_settings(root: Path) -> list[str]:
    """What is wrong with the book's settings, one line each, by file and line."""
    if found := look_at_kinds(root):
        return found
    for name, faults in (("_config.yml", config_faults), ("_toc.yml", toc_faults)):
        try:
            data, tree = read(root / name)
            found += [f"{name}{' '.join(fault.split())}" for fault in faults(root, data, tree)]
        except ValueError as error:
            found.append(f"{name}{' '.join(str(error).split())}")
    return found


def read(path: Path) -> tuple[dict, yaml.Node]:
    """A YAML file's mapping, and its nodes, which know their lines. Raises ValueError with what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8")
        tree, data = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except FileNotFoundError:
        raise ValueError(f": is not there. To get the book's own back: git checkout {path.name}") from None
    except OSError as error:
        raise ValueError(f": cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ValueError(f", line {line}: byte 0x{byte:02x} is not UTF-8. Save the file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        raise ValueError(f", line {line}: {', '.join(filter(None, [error.context, error.problem]))}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f", line {line}: character #x{error.character:04x}: {error.reason}") from None
    except ValueError as error:  # such as a date that there is not
        raise ValueError(f": {error}") from None
    if data is None:
        raise ValueError(": is empty")
    if not isinstance(data, dict):
        word = {list: "list", str: "text"}.get(type(data), type(data).__name__)
        raise ValueError(f", line {tree.start_mark.line + 1}: is a {word}; expected names with values, such as `a: b`")
    return data, tree


def line_of(tree: yaml.Node, path: str) -> str:
    """', line 3' of what stands at 'parts/0/chapters': of the last of these names that is there."""
    line = f", line {tree.start_mark.line + 1}" if path else ""
    for name in filter(None, path.split("/")):
        if isinstance(tree, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in tree.value}
            if name not in pairs:
                break
            key, tree = pairs[name]
            line = f", line {key.start_mark.line + 1}"
        elif isinstance(tree, yaml.SequenceNode) and name.isdigit() and int(name) < len(tree.value):
            tree = tree.value[int(name)]
            line = f", line {tree.start_mark.line + 1}"
        else:
            break
    return line


def config_faults(root: Path, data: dict, tree: yaml.Node) -> list[str]:
    """Against Jupyter Book's own schema."""
    from jupyter_book.config import get_validator

    errors = get_validator().iter_errors(data)
    return [f"{line_of(tree, '/'.join(map(str, e.absolute_path)))}: {e.message}" for e in errors]


def listed(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Each page that a table of contents names, without the end of its file's name, and its line."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from listed(child)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in ("root", "file") and isinstance(value, yaml.ScalarNode):
                name = value.value
                for suffix in SUFFIXES[1:]:
                    name = name.removesuffix(suffix)
                yield name, value.start_mark.line + 1
            else:
                yield from listed(value)


def toc_faults(root: Path, data: dict, tree: yaml.Node) -> list[str]:
    """Its form, by the parser that the build takes; then whether each page is there, once, and holds something."""
    from sphinx_external_toc.parsing import MalformedError, parse_toc_data

    seen, found = {}, []
    for name, line in listed(tree):
        if name in seen:
            found.append(f", line {line}: {name} is listed twice (line {seen[name]})")
        seen.setdefault(name, line)
    try:
        parse_toc_data(data)
    except MalformedError as error:
        if not found:
            what, _, path = str(error).partition(" @ ")  # such as '/parts/0/'
            return [f"{line_of(tree, path.replace(QUOTE, ''))}: {what}"]
    except (TypeError, AttributeError) as error:
        return found or [f": {error}"]
    for name, line in seen.items():
        files = [path for path in (root / (name + suffix) for suffix in SUFFIXES) if path.is_file()]
        if not files:
            found.append(f", line {line}: there is no {name} (.ipynb, .md)")
        elif files[0].suffix == ".ipynb" and not has_cells(files[0]):
            found.append(f", line {line}: {name}.ipynb has no cells")
    return found


def has_cells(path: Path) -> bool:
    """False of a notebook without any; what is no notebook at all is the build's to name."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return True
    return not isinstance(data, dict) or bool(data.get("cells") or data.get("worksheets"))
