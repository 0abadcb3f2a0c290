"""The checks of `make pages`: each holds on a small page that is right, and reports the one fault that another has.

They need what `make pages` installs, and a browser.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
from fontTools.ttLib import TTFont
from PIL import Image

import pages
import slim
from pagehead import pages_address

ROOT = Path(__file__).resolve().parents[1]

ORDER = ["first.html", "page.html", "last.html"]
KATEX = '<link rel="stylesheet" href="_static/katex/katex.min.css">'
KATEX += '<script defer src="_static/katex/katex.min.js"></script>'
GOOD = f"""<!DOCTYPE html>
<html lang="en" data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A page that is right</title>
<meta name="description" content="A small page on which nothing is wrong, so that one fault can be planted.">
<meta property="og:title" content="A page"><meta property="og:description" content="On which nothing is wrong.">
<meta property="og:url" content="https://me.github.io/book/page.html">
<meta property="og:image" content="https://me.github.io/book/{pages.CARD}">
<meta property="og:image:alt" content="A cat in patches"><meta name="twitter:card" content="summary_large_image">
<link rel="icon" href="data:,">{KATEX}<script src="_static/formulas.js"></script>
<style>
  body {{ color: #222; background: #fff; margin: 0; overflow-wrap: anywhere; }}
  html[data-theme=dark] body {{ color: #ddd; background: #111; }}
  html[data-theme=dark] a {{ color: #9cf; }}
  a {{ color: #0b57c2; }}
  :focus {{ outline: 3px solid #888; }}
  .wide {{ overflow-x: auto; }}
  main img {{ max-width: 100%; }}
</style></head><body>
<a href="#main-content">Skip to main content</a>
<dialog id="pst-search-dialog" aria-label="Search"><label>Find <input type="search" name="word"></label></dialog>
<header><button class="search-button__button">Search</button> <button class="theme-switch-button">Color mode</button>
<nav aria-label="Main"><a href="first.html">First</a></nav></header>
<main id="main-content"><article><h1>Right</h1>
<p>A formula, <span class="math">\\(\\frac{{a}}{{b}}\\)</span>, and <a href="last.html">a link</a>. It costs $5.</p>
<p>A line that fits on a phone because it is broken where the page ends.</p>
<div class="math">\\[x \\leftarrow x + 1\\]</div>
<img src="_images/large.png" width="100" height="100" alt="A grey square">
<div class="wide" tabindex="0" role="region" aria-label="Code"><pre style="width: 900px">code, `\\(raw\\)`</pre></div>
</article>
<a class="left-prev" href="first.html">previous</a> <a class="right-next" href="last.html">next</a></main>
<script>
  addEventListener("keydown", (event) => {{
    const dialog = document.querySelector("dialog");
    if (event.ctrlKey && event.key === "k") {{ dialog.showModal(); event.preventDefault(); }}
  }});
</script></body></html>
"""
SEARCH = """<!DOCTYPE html><html lang="en"><head><title>Search</title><link rel="icon" href="data:,"></head><body>
<div id="search-results"></div><script>
  const term = new URLSearchParams(location.search).get("q");
  const found = term === "softmax" ? "<li><a href='page.html?highlight=softmax'>A page</a></li>" : "";
  const said = found ? "found 1 page" : "Your search did not match any documents.";
  document.querySelector("#search-results").innerHTML = `<p class="search-summary">${said}</p><ul>${found}</ul>`;
</script></body></html>"""
# name: (what is changed, into what, what the report must say)
FAULTS = {
    "a picture from elsewhere": (
        "_images/large.png",
        "https://example.org/x.png",
        "asks another host: https://example",
    ),
    "a script error": ("<script>\n", "<script>\nnothing();\n", "script error: nothing is not defined"),
    "a missing file": ('href="data:,"', 'href="icon.png"', "404: icon.png"),
    "grey on white": ("color: #222", "color: #bbb", "axe, light: color-contrast"),
    "grey on black": ("color: #ddd", "color: #333", "axe, dark: color-contrast"),
    "a button without a name": ("Color mode</button>", "</button>", "axe, light: button-name"),
    "a button without a name on a phone": (
        "Color mode</button>",
        "Color mode</button><button class='phone' style='width: 3em; height: 3em'></button>"
        "<style>@media (min-width: 500px) { .phone { display: none } }</style>",
        "axe, phone: button-name",
    ),
    "no alt text": (' alt="A grey square"', "", "large.png has no alt text"),
    "a picture that is not there": ("_images/large.png", "_images/gone.png", "gone.png does not show"),
    "a picture too coarse": ('width="100" height="100"', 'width="150"', "not sharp at 2x: 200 pixels in 150"),
    "a formula that is not set": (KATEX, "", "formula not typeset"),
    "TeX in the text": ("It costs $5", "It costs $x_i$", "raw TeX in the text: . It costs $x_i$"),
    "a word too wide": ("overflow-wrap: anywhere", "white-space: nowrap", "at 390 px: scrolls sideways"),
    "a box no key reaches": ('class="wide" tabindex="0"', 'class="wide"', "scrolls, but not by keyboard: div.wide"),
    "no description": ('<meta name="description"', '<meta name="none"', "description of 0 letters"),
    "a card without an address": ("https://me.github.io/book/_static", "_static", "og:image is no whole address"),
    "a wrong neighbour": ('"right-next" href="last', '"right-next" href="first', "next leads to 'first.html'"),
    "no skip link": ('<a href="#main-content">Skip to main content</a>', "", "not to a skip link"),
    "a focus without a mark": (":focus { outline: 3px solid #888", ":focus { outline: none", "focus without a mark"),
    "a focus out of sight": ('<a href="first', '<a style="position: fixed; left: -99px" href="first', "out of sight"),
    "a search no key opens": ('event.key === "k"', 'event.key === "j"', "Ctrl+K does not open the search"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "_images").mkdir()
    Image.new("L", (200, 200), 0x99).save(folder / "_images" / "large.png")
    shutil.copytree(ROOT / "book" / "_static", folder / "_static")
    (folder / "search.html").write_text(SEARCH)
    (folder / "page.html").write_text(GOOD)
    return folder


@pytest.fixture(scope="module")
def driver():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make pages` does it")
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def look(site, driver):
    """A function that opens a page with this text, and says what was seen."""
    pytest.importorskip("axe_playwright_python", reason="axe is not installed: `make pages` does it")
    try:
        browser = pages.find_browser()
    except pages.NoBrowser as error:
        pytest.skip(str(error))
    with pages.server(site) as base:
        running = pages.launch(driver, browser)

        def see(text: str) -> pages.Seen:
            (site / "page.html").write_text(text)
            return pages.check_page(running, base, site, "page.html", ORDER)

        def use(text: str) -> dict:
            seen = pages.Seen("page.html")
            (site / "page.html").write_text(text)
            assert pages.use_parts(running, base, site, "page.html", seen) == ([], [])
            return seen.moved

        see.use = use
        see.search = lambda terms: pages.check_search(running, base, terms)
        yield see


@pytest.mark.slow
def test_a_page_that_is_right(look, site):
    seen = look(GOOD)
    assert seen.faults == []
    assert (seen.elsewhere, seen.pictures, seen.formulas) == (0, 1, 2)
    assert seen.axe == {"light": 0, "dark": 0, "phone": 0}
    loaded = ["page.html", "_static/formulas.js", "_static/katex/katex.min.css", "_static/katex/katex.min.js"]
    least = sum((site / name).stat().st_size for name in loaded)
    fonts = sum(path.stat().st_size for path in (site / "_static" / "katex" / "fonts").iterdir())
    assert least < seen.bare <= least + fonts  # the fonts that its formulas need
    assert seen.whole - seen.bare == (site / "_images" / "large.png").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported(look, name, monkeypatch):
    before, after, said = FAULTS[name]
    if not said.startswith("axe"):
        monkeypatch.setattr(pages, "axe", lambda *given: [])  # it takes longest, and is not what is asked
    assert before in GOOD
    faults = look(GOOD.replace(before, after, 1)).faults
    assert any(said in fault for fault in faults), faults


@pytest.mark.slow
def test_a_page_too_heavy(look, monkeypatch):
    monkeypatch.setattr(pages, "axe", lambda *given: [])
    monkeypatch.setattr(pages, "BARE", 200_000)
    monkeypatch.setattr(pages, "WHOLE", 300_000)
    faults = look(GOOD).faults
    assert [fault.partition(" kB ")[2] for fault in faults] == ["without its figures", "with its figures"]


@pytest.mark.slow
def test_the_search(look):
    assert look.search({"softmax": "page.html"}) == []
    assert look.search({"softmax": "last.html"}) == [
        "search.html: the search for 'softmax' does not find last.html; it finds page.html"
    ]
    assert "finds nothing" in look.search({"dropout": "page.html"})[0]


# --- in Firefox ---------------------------------------------------------------------------------------------------

IN_FIREFOX = ["a picture from elsewhere", "a script error", "a missing file", "a picture that is not there"]
IN_FIREFOX += ["a formula that is not set", "a word too wide", "a box no key reaches"]


@pytest.fixture(scope="module")
def fox(site, driver):
    """A function that opens a page with this text in Firefox, and says what was seen. Not every Firefox speaks the
    protocol of this playwright: Debian's 140 does not, its 153 does."""
    if not (found := pages.find_firefox()):
        pytest.skip(pages.NO_FIREFOX)
    with pages.server(site) as base:
        try:
            running = pages.launch_firefox(driver, found)
        except pages.NoBrowser as why:
            pytest.skip(str(why))

        def see(text: str) -> pages.Seen:
            (site / "page.html").write_text(text)
            return pages.check_in_firefox(running, base, site, "page.html")

        yield see
        running.close()


@pytest.mark.slow
def test_a_page_that_is_right_in_firefox(fox):
    seen = fox(moving())
    assert seen.faults == []
    assert [step for step in seen.moved["try-stage"].said if "click" in step] == ["4. a click on 'More'"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_FIREFOX)
def test_a_fault_is_reported_in_firefox(fox, name):
    before, after, said = FAULTS[name]
    assert any(said in fault and fault.startswith("in Firefox: ") for fault in fox(GOOD.replace(before, after)).faults)


@pytest.mark.slow
def test_a_firefox_that_does_not_run_is_told(driver, tmp_path):
    broken = tmp_path / "firefox"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(pages.NoBrowser, match="firefox cannot be driven"):
        pages.launch_firefox(driver, str(broken))


# --- what a reader moves ------------------------------------------------------------------------------------------

STAGE = """<div id="try-stage"><label>Much <input type="range" max="3" value="1"></label>
<button type="button">More</button><p id="much">1</p>
<canvas width="90" height="90" tabindex="0" role="application" aria-label="A board"></canvas></div>
<script>
  const much = document.querySelector("#much"), stage = document.querySelector("#try-stage");
  stage.querySelector("[type=range]").addEventListener("input", (event) => { much.textContent = event.target.value; });
  stage.querySelector("button").addEventListener("click", () => { much.textContent = Number(much.textContent) + 1; });
  stage.querySelector("canvas").addEventListener("pointermove", (event) => {
    if (event.buttons) event.target.getContext("2d").fillRect(event.offsetX, event.offsetY, 9, 9);
  });
</script>"""
STILL = {  # what is changed, into what, what the report must say
    "a slider no key moves": ('type="range"', 'type="range" onkeydown="return false"', "no key moves 'Much'"),
    "a button that does nothing": ('addEventListener("click"', 'addEventListener("klick"', "no click changes what"),
    "a board that can't be dragged": ("event.buttons", "false", "dragging changes nothing"),
    "a part that does not open": ('id="try-stage"', 'id="try-stage" hidden', "try-stage does not start"),
}


def moving(text: str = STAGE) -> str:
    return GOOD.replace("</article>", text + "<p id='try-missing'></p></article>")


@pytest.mark.slow
def test_what_moves_is_used_and_says_what_it_shows(look):
    part = look.use(moving())["try-stage"]
    assert part.faults == []
    assert list(part.said)[1:] == [
        "1. ArrowRight on 'Much'", "2. Enter on 'More'", "3. ArrowRight n Space on 'A board'",
        "4. a click on 'More'", "at last"]  # fmt: skip
    assert [re.search(r"More ?(\d)", words)[1] for words in part.said.values()] == list("123344")


@pytest.mark.slow
@pytest.mark.parametrize("name", STILL)
def test_what_does_not_move_is_reported(look, name, monkeypatch):
    if "does not start" in STILL[name][2]:
        monkeypatch.setattr(pages.moved, "STARTED", 500)
    before, after, said = STILL[name]
    assert before in STAGE
    faults = look.use(moving(STAGE.replace(before, after)))["try-stage"].faults
    assert any(said in fault for fault in faults), faults


@pytest.mark.slow
def test_a_part_that_loads_when_asked_is_asked(look):
    text = moving(STAGE.replace('id="try-stage"', 'id="try-stage" hidden'))
    button = "<button onclick=\"document.getElementById('try-stage').hidden = false\">Load</button>"
    assert look.use(text.replace("<p id='try-missing'>", f"<p id='try-missing'>{button}"))["try-stage"].faults == []


def test_two_browsers_that_say_different_things():
    def part(*words: str) -> dict:
        return {"a": pages.moved.Part(dict(zip(("at first", "1. a click", "at last"), words, strict=False)))}

    assert pages.moved.apart(part("0 of 4", "1 of 4", "x"), part("0 of 4", "2 of 4", "x")) == []
    assert pages.moved.apart(part("0 of 4", "1 of 4", "x"), part("0 of 4", "1 of 4", "y")) == [
        "a, at last: 'x' against 'y'"
    ]
    assert pages.moved.apart(part("0 of 4"), {}) == ["a, at first: '0 of 4' against 'nothing'"]


# --- without a browser --------------------------------------------------------------------------------------------


def test_which_pages_there_are(tmp_path):
    sources = [f"_modules/{letter}.html" for letter in "abcde"]
    for size, name in enumerate(["index.html", "a.html", "book/b.html", "_static/theme.html", *sources]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<html></html>" + " " * size)
    (tmp_path / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=book/b.html" />')
    assert pages.pages_of(tmp_path) == ["a.html", "book/b.html", *sources[-pages.SOURCES :]]


def test_no_browser_is_said_in_words(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pages, "ELSEWHERE", [])
    site = tmp_path / "_build" / "html"
    site.mkdir(parents=True)
    assert pages.main(["--site", str(site)]) == 2
    assert "run `make book` first" in capsys.readouterr().err
    (site / "index.html").write_text("<html></html>")
    assert pages.main(["--site", str(site)]) == 2
    assert "sudo apt install chromium" in capsys.readouterr().err
    monkeypatch.setenv("CHROME", "/not/there")
    with pytest.raises(pages.NoBrowser, match="CHROME=/not/there is not there"):
        pages.find_browser()


def test_no_firefox_is_said_in_a_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FIREFOX", raising=False)
    monkeypatch.setattr(pages, "FIREFOX", ["firefox-esr", "firefox"])
    assert pages.find_firefox() is None
    assert pages.try_firefox(tmp_path, [], None) == []
    assert capsys.readouterr().out.strip() == pages.NO_FIREFOX
    monkeypatch.setenv("FIREFOX", "/not/there")
    with pytest.raises(pages.NoBrowser, match="FIREFOX=/not/there is not there"):
        pages.find_firefox()


def test_only_what_nothing_needs_goes_from_a_style_sheet():
    sheet = "/*! licence */.used{a:b}.unused{a:b}.used .unused,p.used{a:b}"
    sheet += "@media print{.unused{a:b}}@media print{.unused,.used{a:b}}:not(.unused){a:b}#id>a[class*=un]{a:b}"
    sheet += "@font-face{font-family:x}"
    assert slim.slim_sheet(sheet, {"used"}).split("\n") == [
        "/*! licence */",
        ".used{a:b}",
        "p.used{a:b}",
        "@media print{.used{a:b}}",
        ":not(.unused){a:b}",
        "#id>a[class*=un]{a:b}",
        "@font-face{font-family:x}",
        "",
    ]


def test_a_picture_with_photos_gets_a_palette_and_looks_the_same(tmp_path):
    photo = Image.fromarray(skimage.data.chelsea())  # a cat
    for name, picture in {"photo": photo, "small": photo.resize((90, 60)), "glass": photo.copy()}.items():
        picture.putalpha(128) if name == "glass" else None
        picture.save(tmp_path / f"{name}.png")
    before = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        slim.slim_picture(path)
    after = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(after[name] == before[name] for name in ("small", "glass"))
    assert len(after["photo"]) < 0.5 * len(before["photo"])
    with Image.open(tmp_path / "photo.png") as seen:
        apart = np.abs(np.asarray(seen.convert("RGB"), float) - np.asarray(photo, float))
    assert seen.size == photo.size and apart.mean() < 4  # of 255
    slim.slim_picture(tmp_path / "photo.png")
    assert (tmp_path / "photo.png").read_bytes() == after["photo"]


@pytest.mark.slow
def test_the_icons_that_pages_show_stay_in_the_theme(tmp_path):
    """On the theme's own files: the sheet and the font keep the sun, which a page shows, and not the anchor."""
    theme = Path(pytest.importorskip("pydata_sphinx_theme").__file__).parent / "theme/pydata_sphinx_theme/static"
    shutil.copytree(theme, tmp_path / "_static")
    (tmp_path / "page.html").write_text('<i class="fa-solid fa-sun"></i>')
    slim.slim(SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path), None)
    sheet = (tmp_path / "_static/styles/pydata-sphinx-theme.css").read_text(encoding="ascii")
    font = tmp_path / "_static/vendor/fontawesome/webfonts/fa-solid-900.woff"
    letters = TTFont(font).getBestCmap()
    assert re.search(r'\.fa-sun:before\{content:"\\f185 ?"\}', sheet) and ".fa-anchor" not in sheet
    assert f"{font.name}) format" in sheet and "woff2" not in sheet
    assert 0xF185 in letters and 0xF13D not in letters
    assert font.stat().st_size < 20_000 and len(sheet) < 200_000


@pytest.mark.parametrize(
    ("repository", "address"),
    [
        ("https://github.com/Me/my-book", "https://me.github.io/my-book/"),
        ("https://github.com/me/my.book.git", "https://me.github.io/my.book/"),
        ("https://github.com/Me/me.github.io", "https://me.github.io/"),
        ("https://example.org/book", "https://example.org/book/"),
    ],
)
def test_the_address_of_the_pages(repository, address):
    assert pages_address(repository) == address
