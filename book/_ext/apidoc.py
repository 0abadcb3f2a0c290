"""Docstrings of this book, as they are written, made into what Sphinx reads.

They are plain text for people: `code` in single backticks, shapes such as (B, N, C*P*P), one line a name
("images: (B, C, H, W), any float range."). Here backticks become code, such lines become a list, and
asterisks and underscores stay what they are.
"""

from __future__ import annotations

import re

# "images: ...", "mean, std: ...", "Returns (B, N, ...).", "Raises ValueError ...": each its own item.
ITEM = re.compile(r"^(?P<names>[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (?P<rest>\S.*)$")
# A second item may begin within a line, after two spaces: "mean, std: float32 (C,).  classes: K names."
WITHIN = re.compile(r"(?<=\S) {2,}(?=[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*: \S)")
PROSE = re.compile(r"^(Returns?|Raises|Source|Yields)\b")
CODE = re.compile(r"``?([^`\n]+)``?")


def as_rst(text: str) -> str:
    """Escape what RST would take for markup; `x` and ``x`` become literal text."""
    pieces, end = [], 0
    for match in CODE.finditer(text):
        pieces += [escape(text[end : match.start()]), f"``{match[1].strip()}``"]
        after = text[match.end() : match.end() + 1]
        pieces.append("\\ " if after.isalnum() else "")
        end = match.end()
    return "".join(pieces) + escape(text[end:])


def escape(text: str) -> str:
    return re.sub(r"([\\*_|])", r"\\\1", text)


def convert(lines: list[str]) -> list[str]:
    """The docstring's lines as RST: paragraphs, with a list where names are explained."""
    out: list[str] = []
    in_list = False
    parts = [part for line in lines for part in WITHIN.sub("\n", line).split("\n")]
    for line in parts:
        item = ITEM.match(line)
        if not line.strip():
            in_list = False
            out.append("")
        elif line.startswith(".. ") or line.lstrip().startswith(">>>"):  # RST of its own
            return lines
        elif item and not PROSE.match(line):
            if not in_list and out and out[-1]:
                out.append("")
            names = ", ".join(f"``{name}``" for name in item["names"].split(", "))
            out.append(f"* {names}: {as_rst(item['rest'])}")
            in_list = True
        elif PROSE.match(line):
            if out and out[-1]:
                out.append("")
            out.append(as_rst(line))
            in_list = False
        else:
            out.append(("  " if in_list else "") + as_rst(line.strip()))
    return out


def on_docstring(app, what, name, obj, options, lines):
    lines[:] = convert(lines)


def on_missing(app, env, node, contnode):
    """A type variable, such as `T`, has no page and needs none."""
    if node.get("refdomain") == "py" and re.fullmatch(r"(.*\.)?[A-Z]", node.get("reftarget", "")):
        return contnode
    return None


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("missing-reference", on_missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
