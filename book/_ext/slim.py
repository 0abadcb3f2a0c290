"""Takes out of the finished pages' style sheets and icon fonts what no page uses, and most bytes out of pictures.

The theme brings rules for some thousands of icons and parts, and fonts with all of the icons: 700 kB, which every
reader would load. A rule goes only where it needs a class whose name is no word of any page and of any script of the
site, so what a script adds later is kept. The pages look the same.

A figure with photos takes half a megabyte as PNG, and a chapter has a dozen. With a palette of its own, 256 colours
and dithering, it takes less than a third, and the eye sees no difference.
"""

from __future__ import annotations

import re
from itertools import groupby, pairwise
from pathlib import Path

import tinycss2
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from PIL import Image

SHEETS = ("styles/*.css", "sphinx-design*.css", "mystnb*.css", "togglebutton*.css", "copybutton*.css")
WORD = re.compile(r"[\w-]+")
LARGE = 20_000  # bytes of a picture that is worth a palette
KEEP = re.compile(r"bs-|fa-\d|fa$")  # put together by Bootstrap's script; the icons' common rules
FACES = re.compile(r"url\(([^)]*/)(fa-[\w-]+)\.woff2\)\s*format\(\"woff2\"\),\s*url\([^)]*\)\s*format\(\"truetype\"\)")


def words_of(site: Path) -> set[str]:
    """Every word of every page and script."""
    files = [p for kind in ("*.html", "*.js") for p in site.rglob(kind) if "katex" not in p.parts]
    return {word for path in files for word in WORD.findall(path.read_text("utf-8", errors="replace"))}


def is_live(selector: list, words: set[str]) -> bool:
    """Whether each class that an element must have is a word; what is inside :not(...) or :is(...) is not counted."""
    needed = [token.value for dot, token in pairwise(selector) if dot == "." and token.type == "ident"]
    return all(name in words or KEEP.match(name) for name in needed)


def slim_rules(rules: list, words: set[str]) -> str:
    """These rules without the selectors that nothing can match."""
    kept = []
    for rule in rules:
        if rule.type == "comment":
            if rule.value.startswith("!"):
                kept.append(rule.serialize())  # a licence
        elif rule.type == "qualified-rule":
            parts = [list(part) for comma, part in groupby(rule.prelude, lambda token: token == ",") if not comma]
            if live := [selector for selector in parts if is_live(selector, words)]:
                head = ",".join(tinycss2.serialize(selector).strip() for selector in live)
                kept.append(head + "{" + tinycss2.serialize(rule.content) + "}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            if inside := slim_rules(tinycss2.parse_rule_list(rule.content, skip_whitespace=True), words):
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}")
        elif rule.type == "at-rule":
            kept.append(rule.serialize())
    return "\n".join(kept)


def slim_sheet(text: str, words: set[str]) -> str:
    rules = tinycss2.parse_stylesheet(text, skip_whitespace=True)
    if any(rule.type == "error" for rule in rules):
        return text
    slimmer = FACES.sub(r'url(\1\2.woff) format("woff")', slim_rules(rules, words)) + "\n"
    return re.sub(r"[^\x00-\x7f]", lambda letter: f"\\{ord(letter[0]):x} ", slimmer)  # icons are written by number


def slim_font(source: Path, target: Path, codes: set[int]) -> None:
    """The font with these characters only. WOFF needs no library beyond fontTools."""
    options = Options(flavor="woff", layout_features=[], notdef_outline=True)
    font = TTFont(source)
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=codes)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(target)


def slim_picture(path: Path) -> None:
    """The PNG with 256 colours of its own; unchanged if it is small, has a palette already, or can be seen through."""
    if path.stat().st_size < LARGE:
        return
    with Image.open(path) as picture:
        opaque = picture.mode in ("RGB", "RGBA") and picture.convert("RGBA").getextrema()[3] == (255, 255)
        fewer = picture.convert("RGB").quantize(256) if opaque else None
    if fewer:
        fewer.save(path, optimize=True)


def slim(app, error):
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    words, texts = words_of(site), []
    for path in sorted({p for pattern in SHEETS for p in (site / "_static").glob(pattern)}):
        texts.append(slim_sheet(path.read_text(encoding="utf-8"), words))
        path.write_text(texts[-1], encoding="utf-8")
        path.with_name(path.name + ".map").unlink(missing_ok=True)  # it describes the sheet as it was
    codes = {int(code, 16) for text in texts for code in re.findall(r"\\(f[0-9a-f]{3}|e[0-9a-f]{3})\b", text)}
    for font in (site / "_static" / "vendor" / "fontawesome" / "webfonts").glob("*.ttf"):
        slim_font(font, font.with_suffix(".woff"), codes | set(range(32, 127)))
        font.unlink()
        font.with_suffix(".woff2").unlink(missing_ok=True)
    for path in (site / "_images").glob("*.png"):
        slim_picture(path)


def setup(app):
    app.connect("build-finished", slim)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
