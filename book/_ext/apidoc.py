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
EMPHASIS = re.compile(r"(?<![\w*])\*(?=\S)([^*]+)(?<=\S)\*(?![\w*])")


def as_rst(text: str) -> str:
    """`x` and ``x`` become literal text, *x* stays emphasis; all else that RST would take for markup is escaped."""
    pieces, end = [], 0
    for match in CODE.finditer(text):
        pieces += [escape(text[end : match.start()]), f"``{match[1].strip()}``"]
        after = text[match.end() : match.end() + 1]
        pieces.append("\\ " if after.isalnum() else "")
        end = match.end()
    return "".join(pieces) + escape(text[end:])


def escape(text: str) -> str:
    pieces = EMPHASIS.split(text)  # outside, inside, outside, ...
    pieces = [re.sub(r"([\\*_|])", r"\\\1", piece) for piece in pieces]
    return "".join(f"*{piece}*" if i % 2 else piece for i, piece in enumerate(pieces))


def convert(lines: list[str]) -> list[str]:
    """The docstring's lines as RST: paragraphs, with a list where names are explained."""
    parts = [part for line in lines for part in WITHIN.sub("\n", line).split("\n")]
    if any(part.startswith(".. ") for part in parts):  # RST of its own
        return lines
    blocks: list[list[str]] = []  # [mark, text]: a paragraph, or an item of a list
    ended = True
    for part in parts:
        item = ITEM.match(part)
        if not part.strip():
            ended = True
        elif item and not PROSE.match(part):
            names = ", ".join(f"``{name}``" for name in item["names"].split(", "))
            blocks.append([f"* {names}: ", item["rest"]])
            ended = False
        elif ended or PROSE.match(part):
            blocks.append(["", part.strip()])
            ended = False
        else:
            blocks[-1][1] += " " + part.strip()
    out: list[str] = []
    for (mark, text), following in zip(blocks, [*blocks[1:], None], strict=True):
        out.append(mark + as_rst(text))
        if following and not (mark and following[0]):  # a blank line, but not between items
            out.append("")
    return out


def on_docstring(app, what, name, obj, options, lines):
    lines[:] = convert(lines)


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", on_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
