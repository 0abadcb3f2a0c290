"""`make pdf`: a small book is printed and read back; then it is given faults that must be named.

The tree is a built book in miniature: pages as the theme frames them, with code of 79 columns, a long line of output, a
wide table, a closed box and links of every kind. Where playwright, pikepdf, pypdfium2 or a browser is not there, the
tests that print are skipped and say so; those that only read run everywhere.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path

import pytest

import book
import pages
import pdf

ROOT = Path(__file__).resolve().parents[1]


CODE = [f"value_{n} = " + f"compute(images, {n}, 'a line of code of seventy-nine columns', "[:40] for n in range(60)]
CODE = [(line + "x" * 79)[:79] for line in CODE]
CODE[10:12] = ["for row in rows:", "    row.append(a @ b)  # <&> é"]
LONG = "loss " + ", ".join(f"{n / 7:.4f}" for n in range(60))
CELLS = [[f"r{row}c{column}-measured" for column in range(9)] for row in range(30)]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one red pixel
)
THEME = {
    "pydata_sphinx_theme": "theme/pydata_sphinx_theme/static/styles/pydata-sphinx-theme.css",
    "sphinx_book_theme": "theme/sphinx_book_theme/static/styles/sphinx-book-theme.css",
}


def box(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<div class="highlight-ipython3 notranslate"><div class="highlight"><pre>{text}\n</pre></div></div>'


BODIES = {
    "book/home": """<h1>A small book<a class="headerlink" href="#top">#</a></h1><p>First words.</p>
      <div id="book-pdf"></div>
      <p><a href="second.html#far-below">to a place on the last page</a>
      <a href="../notebooks/04_first.html">to a chapter</a>
      <a href="second.html#code">to the second place of that name</a> <a href="#later">on this page</a>
      <a href="../_modules/vit.html">to a file outside</a>
      <a href="https://example.org/paper">elsewhere</a></p>
      <section id="later"><h2>Later</h2><p style="break-before: page">On a second sheet.</p></section>
      <p id="far-below" hidden>Not shown, but it has a name that the last page shows.</p>""",
    "notebooks/04_first": f"""<h1>Patches</h1><section id="code"><h2>Code</h2>
      <div class="cell docutils container"><div class="cell_input docutils container">{box(chr(10).join(CODE))}</div>
      <div class="cell_output docutils container"><div class="output stream">{box(LONG)}</div></div></div></section>
      <section id="an-answer"><h2>An answer <code>D</code></h2>
      <details><summary>Answer</summary><p>The closed box opens.</p></details>
      <div class="admonition note"><p class="admonition-title">Note</p><p>In a <code>box</code>.</p></div>
      <figure><figcaption><p><span class="caption-text">What to see.</span></p></figcaption></figure>
      <table class="table"><thead><tr><th>a</th></tr></thead><tbody><tr><td>b</td></tr></tbody></table></section>""",
    "book/second": f"""<h1>Numbers</h1><section id="code"><h2>Code</h2>
      <div class="pst-scrollable-table-container"><table class="table">
      <caption><span class="caption-text">Wide.</span></caption>
      <thead><tr>{"".join(f"<th>head{n}</th>" for n in range(9))}</tr></thead><tbody>
      {"".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in CELLS)}
      </tbody></table></div></section>
      <p><img src="../_static/dot.png" alt="" style="width: 2000px; height: 100px"></p>
      <p id="far-below">Far below. <a href="home.html#later">back</a></p>""",
}


# As a closed cell of myst-nb opens: from nothing, in its time.
FADES = "@keyframes fade { from { opacity: 0 } to { opacity: 1 } } details[open] p { animation: fade 60s }"
FADES += " #far-below { break-before: page }"


def frame(body: str, depth: str = "../", printing: str = "print.css") -> str:
    sheets = [*(Path(p).name for p in THEME.values()), "book.css", printing, "more.css"]
    links = "".join(f'<link rel="stylesheet" href="{depth}_static/{name}">' for name in sheets)
    return f"""<!doctype html><html lang="en" data-theme="light">
      <head><meta charset="utf-8"><title>t</title>{links}</head><body><header class="bd-header">Bar of the site</header>
      <div class="bd-container"><div class="bd-container__inner bd-page-width">
      <div class="bd-sidebar-primary">Sidebar</div>
      <main class="bd-main"><div class="bd-content"><div class="bd-article-container">
      <div id="jb-print-docs-body" class="onlyprint"><h1>Twice</h1></div>
      <article class="bd-article"><section id="top">{body}</section></article>
      <footer class="prev-next-footer">Next page</footer></div></div></main></div></div></body></html>"""


def build(root: Path, **changed: str) -> Path:
    """The small book, as if `make book` had just made it."""
    html = root / "_build" / "html"
    for folder in ("book", "notebooks", "_static", "_modules"):
        (html / folder).mkdir(parents=True, exist_ok=True)
    for doc, body in BODIES.items():
        printing = "book.css" if changed.get("without") == doc else "print.css"
        (html / f"{doc}.html").write_text(frame(changed.get(doc, body), printing=printing), encoding="utf-8")
    (html / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=book/home.html" />')
    (html / "_modules" / "vit.html").write_text(frame("<h1>vit</h1>"))
    for package, path in THEME.items():
        found = importlib.util.find_spec(package)
        there = Path(found.origin).parent / path if found else None
        style = there.read_text("utf-8") if there and there.is_file() else ""
        style = re.sub(r"@font-face *\{[^}]*\}", "", style)  # the icons' letters are not here
        (html / "_static" / Path(path).name).write_text(style, encoding="utf-8")
    for name in ("book.css", "print.css"):
        (html / "_static" / name).write_bytes((ROOT / "book" / "_static" / name).read_bytes())
    (html / "_static" / "more.css").write_text(changed.get("more.css", FADES))
    (html / "_static" / "dot.png").write_bytes(base64.b64decode(PIXEL))
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/home\nparts:\n  - caption: Part one & more\n    chapters:\n"
        "      - file: notebooks/04_first\n        sections:\n          - file: book/second\n"
    )
    (root / "_config.yml").write_text(
        "title: A small book\nauthor: Somebody\nrepository: {url: https://example.org/b}\n"
    )
    (root / "CITATION.cff").write_text(
        "title: 'A small book: for tests'\nversion: 1.2.3\ndate-released: 2026-01-02\nkeywords: [small, book]\n"
    )
    book.write_json(root / "_build" / "book-stamp.json", {"key": {}, "sources": "s", "site": book.site_key(html)})
    return html


def need_printer() -> None:
    for module in ("playwright", "pikepdf", "pypdfium2"):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed (requirements-pages.txt; `make pdf` installs it)")
    try:
        pages.find_browser("pdf")
    except pages.NoBrowser as none:
        pytest.skip(str(none))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The small book with its PDF."""
    need_printer()
    root = tmp_path_factory.mktemp("small")
    build(root)
    assert pdf.main(["--root", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def file(root):
    import pikepdf

    with pikepdf.open(root / "_build" / "html" / pdf.NAME) as file:
        yield file


@pytest.fixture(scope="module")
def texts(root) -> list[str]:
    import pypdfium2

    return [page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(root / "_build" / "html" / pdf.NAME)]


def sheet_of(words: str, texts: list[str]) -> int:
    """The one sheet, counted from 0 and after the contents, that shows these words."""
    found = [n for n, text in enumerate(texts) if n > 1 and pdf.squeezed(words) in pdf.squeezed(text)]
    assert len(found) == 1, (words, found)
    return found[0]


def goal(file, place) -> int:
    """The sheet that a link or a bookmark leads to."""
    import pikepdf

    place = file.Root.Dests[place] if isinstance(place, pikepdf.Name) else place
    return pikepdf.Page(place[0]).index


# --- the PDF ---


@pytest.mark.slow
def test_pages_stand_in_order_without_the_frame_of_the_site(texts):
    """Each sheet but the first says its number, and the contents say on which a page begins."""
    order = ["For tests", "Contents", "First words.", "Chapter 4 Patches", "head0", "Far below."]
    found = [next(n for n, text in enumerate(texts) if pdf.squeezed(w) in pdf.squeezed(text)) for w in order]
    assert found == sorted(found) and found[:3] == [0, 1, 2]
    for words in ("Bar of the site", "Sidebar", "Next page", "Twice", "The whole book as one PDF"):
        assert pdf.squeezed(words) not in pdf.squeezed("".join(texts)), words
    for number, text in enumerate(texts[1:], 2):
        assert re.match(rf"(A small book|Contents|Chapter 4: Patches|Numbers)\s*{number}\s", text), text[:80]
    for title, first in zip(("4 Patches", "Numbers"), found[3:5], strict=True):
        assert re.search(rf"{pdf.squeezed(title)}{first + 1}(?!\d)", pdf.squeezed(texts[1])), (title, first, texts[1])


@pytest.mark.slow
def test_bookmarks_lead_to_their_sheets_and_are_folded(file, texts):
    def flat(items, depth=0):
        for one in items:
            assert one.is_closed or not one.children
            yield depth, one.title.replace("\xa0", " "), goal(file, one.destination)
            yield from flat(one.children, depth + 1)

    first, table = (next(n for n, t in enumerate(texts) if n > 1 and words in t) for words in ("Chapter 4:", "Numbers"))
    with file.open_outline() as outline:
        assert list(flat(outline.root)) == [
            (0, "A small book", 0),
            (0, "Contents", 1),
            (0, "A small book", 2),
            (1, "Later", 2),
            (0, "Part one & more", first),
            (1, "Chapter 4 Patches", first),
            (2, "Code", first),
            (2, "An answer D", sheet_of("An answer D", texts)),
            (1, "Numbers", table),
            (2, "Code", table),
        ]


@pytest.mark.slow
def test_links(file, texts):
    """Inside the book to the sheet; outside it as they were; to a file that is not in it, not at all; none to here."""
    links = list(file.pages[2].Annots)
    goals = [goal(file, link.Dest) for link in links if "/Dest" in link]
    table = next(n for n, text in enumerate(texts) if text.startswith("Numbers"))
    assert sheet_of("Far below.", texts) > table  # as its style asks, by its name
    assert goals == [sheet_of("Far below.", texts), sheet_of("Chapter 4 Patches", texts), table, 2]
    assert [str(link.A.URI) for link in links if "/A" in link] == ["https://example.org/paper"]
    assert goal(file, file.pages[sheet_of("Far below.", texts)].Annots[0].Dest) == 2
    inside = [goal(file, link.Dest) for link in file.pages[1].Annots]
    assert inside == [2, sheet_of("Chapter 4 Patches", texts), table]
    every = [link for page in file.pages for link in page.get("/Annots", [])]
    assert all(str(link.A.URI)[:8] == "https://" if "/A" in link else goal(file, link.Dest) > 0 for link in every)


@pytest.mark.slow
def test_metadata_and_tags(file):
    said = {name: str(file.docinfo[f"/{name}"]) for name in ("Title", "Author", "Keywords")}
    assert said == {"Title": "A small book", "Author": "Somebody", "Keywords": "small, book"}
    assert file.Root.Lang == "en" and file.Root.MarkInfo.Marked and file.Root.ViewerPreferences.DisplayDocTitle
    width, height = (round(float(side) * 25.4 / 72) for side in file.pages[0].MediaBox[2:])
    assert (width, height) == (210, 297)


@pytest.mark.slow
def test_it_is_offered_and_stays_so(root, file):
    """The home page links to it; what `make book` noted fits; a second run takes the place of the first."""
    html = root / "_build" / "html"
    page = (html / "book" / "home.html").read_text("utf-8")
    link = re.search(r'<div id="book-pdf"><p><a href="([^"]+)">', page)[1]
    assert (html / "book" / link).resolve() == html / pdf.NAME and f"({len(file.pages)} pages, " in page
    assert book.read_json(root / "_build" / "book-stamp.json")["site"] == book.site_key(html)
    assert book.look_at_pages(html) == []
    assert pdf.offer(html, "") and '<div id="book-pdf"></div>' in (html / "book" / "home.html").read_text("utf-8")


# --- a reader's own printing, from a dark screen ---


@pytest.mark.slow
def test_dark_screen_prints_black_on_white(root):
    from playwright.sync_api import sync_playwright

    look = """() => Array.from(document.querySelectorAll("body, article, article *")).map((node) => {
      const style = getComputedStyle(node); return [node.tagName, style.color, style.backgroundColor]; })"""
    with sync_playwright() as playwright:
        browser = pages.launch(playwright, pages.find_browser("pdf"))
        page = browser.new_page(viewport={"width": 665, "height": 900})
        page.goto((root / "_build/html/notebooks/04_first.html").as_uri())
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        page.emulate_media(media="print", color_scheme="dark")
        seen = page.evaluate(look)
        closed = page.evaluate("document.querySelector('details p').getBoundingClientRect().height")
        page.goto((root / "_build/html/book/home.html").as_uri())
        offered = page.evaluate("document.getElementById('book-pdf').getBoundingClientRect().height")
        browser.close()

    def light(colour: str) -> float:
        numbers = [float(n) for n in re.findall(r"[\d.]+", colour)]
        return 255 if len(numbers) > 3 and numbers[3] == 0 else sum(numbers[:3]) / 3  # no colour: the paper's

    assert len(seen) > 20 and offered == 0
    for tag, ink, ground in seen:
        assert light(ink) < 90 and light(ground) > 240, (tag, ink, ground)
    assert closed > 0  # what opens with a click is printed open


# --- faults ---

FAULTY = {  # a small book with all of these
    "without": "book/second",
    "more.css": """
      html body .bd-article div.highlight pre { overflow: hidden !important; white-space: pre !important; width: 40%; }
      .low { height: 3em; overflow: hidden }
      html body .bd-article table td { white-space: nowrap !important; font-size: 14pt !important }""",
    "book/home": BODIES["book/home"] + '<img src="../_static/gone.png" alt=""><script>nowhere()</script>',
    "notebooks/04_first": BODIES["notebooks/04_first"] + f'<div class="low">{"<p>Low.</p>" * 9}</div>',
    "book/second": BODIES["book/second"] + '<p><span class="math">\\(x^2\\)</span></p>',
}
COMPLAINTS = [
    "notebooks/04_first: cut at the side: <pre> value_0",
    "notebooks/04_first: cut below: <div> Low.",
    "book/second: wider than the paper by",
    f"notebooks/04_first: cut or lost: {CODE[0][:60]}",
    "book/home: did not load gone.png",
    "book/home: a script failed: nowhere is not defined",
    "book/second: the page is not linked to print.css",
    "book/second: formula not typeset: \\(x^2\\)",
]


def test_faults_are_named_and_no_pdf_is_left(tmp_path, capsys):
    need_printer()
    html = build(tmp_path, **FAULTY)
    pdf.offer(html, "an old offer")
    (html / pdf.NAME).write_bytes(b"an old one")
    assert pdf.main(["--root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "No PDF was made" in said
    assert [complaint for complaint in COMPLAINTS if complaint not in said] == [], said
    assert not list(html.glob("*.pdf*"))
    assert '<div id="book-pdf"></div>' in (html / "book" / "home.html").read_text("utf-8")


def test_what_is_missing_is_said_in_words(tmp_path, capsys):
    def refused() -> str:
        assert pdf.main(["--root", str(tmp_path)]) == 2
        return capsys.readouterr().err

    build(tmp_path)
    (tmp_path / "_build" / "html" / "book" / "second.html").unlink()
    assert "Not built: book/second." in refused()
    (tmp_path / "_build" / "html" / "index.html").unlink()
    assert "Run `make book` first" in refused()


def test_the_home_page_has_a_place_for_the_offer_and_no_other():
    root = re.search(r"^root: (\S+)", (ROOT / "_toc.yml").read_text("utf-8"), re.M)
    pages = [ROOT / "index.md", *(ROOT / "book").rglob("*.md")]
    found = [path for path in pages if '<div id="book-pdf"></div>' in path.read_text("utf-8")]
    assert found == [ROOT / f"{root[1]}.md"]


def test_what_prints_the_pages_does_not_make_them_stale():
    """`make pdf` installs packages; `make book` must not build anew for that, which would take the PDF away."""
    lines = (ROOT / "requirements-pages.txt").read_text("utf-8").splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith("#")}
    assert "pikepdf" in names and names <= book.ONLOOKERS
