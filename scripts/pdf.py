"""Print the built book into one PDF: `make pdf`.

    .venv/bin/python scripts/pdf.py [--root FOLDER] [--paper A4|Letter]

Each page of `_toc.yml` is printed from `_build/html` by the Chromium or Chrome of this machine, with the style of
`book/_static/print.css`, and the sheets are bound in the order of the contents: a title page, the contents with page
numbers, bookmarks for parts, pages and sections, a number at the foot of each sheet. A link to another page of the book
leads to its place in the PDF; a link to a page that is not in it (a module's source) is no link there.

Nothing may be cut. Before a page is printed, it is laid out as wide as the paper, and whatever sticks out or is hidden
is named. After binding, each line of code in the sources, and each line of the pages' code and output boxes, is looked
for in the text of its sheets, in order. One that is missing fails the command, and no PDF is left behind.

The file becomes `_build/html/vision-transformers-in-pytorch.pdf`, so that a published site carries it. Only then is
the offer written into the built home page (`<div id="book-pdf">` in book/preface.md, empty until then), and the success
that scripts/book.py noted is noted anew: `make book` with nothing changed keeps both. `make book` after a change builds
all pages afresh, which takes away the PDF and the offer together: the link is never dead, and never leads to an old
book.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import html as markup
import json
import os
import re
import sys
import time
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import unquote, urldefrag

sys.path.insert(0, str(Path(__file__).parent))
import pages as browser_pages
import running

import book

NAME = "vision-transformers-in-pytorch.pdf"
PAPERS = {"A4": (210, 297), "Letter": (215.9, 279.4)}  # mm
TOP, SIDE, FOOT = 18, 17, 20  # mm, the margins of print.css
MM = 72 / 25.4  # points
OFFER = re.compile(r'(<div id="book-pdf">).*?(</div>)', re.S)


class Problem(Exception):
    """Something the reader can mend; the message says how."""


# --- What is to be printed ------------------------------------------------------------------------


@dataclass
class Sheets:
    """One page of the book, printed."""

    doc: str
    title: str
    pdf: bytes
    sections: list[tuple[str, str]] = field(default_factory=list)  # (anchor, title) of the second level
    stand_in: dict[str, str] = field(default_factory=dict)  # anchor: the section around it
    faults: list[str] = field(default_factory=list)


def contents(root: Path) -> list[tuple[str, list[str]]]:
    """(part, its pages) in the order of _toc.yml; the root page comes first, in a part without a name."""
    import yaml

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))

    def files(entries: list[dict]) -> list[str]:
        found = []
        for entry in entries or []:
            if "file" in entry:
                found.append(re.sub(r"\.(md|ipynb)$", "", entry["file"]))
            found += files(entry.get("sections", []))
        return found

    parts = [("", [toc["root"]])]
    parts += [(part.get("caption", ""), files(part.get("chapters", []))) for part in toc.get("parts", [])]
    if "chapters" in toc:
        parts.append(("", files(toc["chapters"])))
    return parts


def numbered(doc: str, title: str) -> str:
    """'notebooks/04_patches' -> '4  An image as a sequence': the text speaks of chapter 4."""
    number = chapter(doc)
    return f"{number}  {title}" if number else title


def chapter(doc: str) -> int | None:
    found = re.fullmatch(r"notebooks/(\d\d)_\w+", doc)
    return int(found[1]) if found else None


def check_built(root: Path, html: Path, docs: list[str]) -> None:
    """Problem unless every page of the contents has been built."""
    if not (html / "index.html").is_file():
        raise Problem(f"No built book in {html}.\nRun `make book` first: `make pdf` prints what it has built.")
    missing = [doc for doc in docs if not (html / f"{doc}.html").is_file()]
    if missing:
        raise Problem(
            f"Not built: {', '.join(missing)}.\n_toc.yml names {len(docs)} pages, {html} has "
            f"{len(docs) - len(missing)} of them. Run `make book`, then `make pdf`."
        )
    if not (root / "_build" / "book-stamp.json").is_file():
        print("Note: the last build did not pass, or was not made by `make book`. Printing what is there.")


def places_wanted(html: Path, docs: list[str]) -> dict[str, set[str]]:
    """Page: the anchors on it that other pages link to."""
    wanted: dict[str, set[str]] = {doc: set() for doc in docs}
    for doc in docs:
        path = html / f"{doc}.html"
        for url in book.Page(path.read_text(encoding="utf-8")).links:
            target, anchor = place_of(url, path, html)
            if target in wanted and anchor:
                wanted[target].add(anchor)
    return wanted


def place_of(url: str, page: Path, html: Path) -> tuple[str | None, str]:
    """(page of the book or None, anchor) of a link that stands on `page`."""
    if url.startswith("file:"):
        url = re.sub(r"^file://[^/]*", "", url)
    elif book.HAS_SCHEME.match(url):
        return None, ""
    place, anchor = urldefrag(url)
    place = unquote(place.partition("?")[0])
    path = Path(os.path.normpath(page.parent / place)) if place else page
    if path == html / "index.html":
        path = home(html)
    if not path.is_relative_to(html) or path.suffix != ".html":
        return None, ""
    return path.relative_to(html).with_suffix("").as_posix(), unquote(anchor)


def home(html: Path) -> Path:
    """The page that index.html leads to."""
    found = re.search(r'http-equiv="Refresh" content="0; url=([^"]+)"', (html / "index.html").read_text("utf-8"))
    return html / found[1] if found else html / "index.html"


# --- Printing -------------------------------------------------------------------------------------


async def launch(playwright):
    try:
        path = browser_pages.find_browser("pdf")
    except browser_pages.NoBrowser as none:
        raise Problem(str(none)) from None
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # its sandbox needs a user who is not root
    flags = ["--no-sandbox"] if root else []
    try:
        return await playwright.chromium.launch(executable_path=path, args=[*flags, "--disable-dev-shm-usage"])
    except Exception as error:  # playwright's own kinds differ between its versions
        raise Problem(f"{path} did not start: {str(error).strip().splitlines()[0]}") from error


# Wait for the formulas, the letters and the pictures; open what opens; say where the sections are.
PREPARE = """async ([wanted, chapter]) => {
  await document.fonts.ready;
  const faults = [], article = document.querySelector("article") || document.body;
  if (!Array.from(document.styleSheets).some((sheet) => /\\/print\\.css/.test(sheet.href)))
    faults.push("the page is not linked to print.css (html_css_files in _config.yml)");
  for (const image of document.images) {
    image.loading = "eager";
    await image.decode().catch(() => {
      if (article.contains(image)) faults.push("did not load " + image.src.split("/").pop());
    });
  }
  for (const box of article.querySelectorAll("details")) box.open = true;
  // A short piece of code stays on one sheet; a long one may go on on the next.
  for (const box of article.querySelectorAll("pre"))
    if (box.textContent.trim().split("\\n").length <= 16) box.style.breakInside = "avoid";
  // A figure and the caption below its cell stay together.
  for (const caption of article.querySelectorAll("div.cell + p.book-caption")) {
    const pictures = caption.previousElementSibling.querySelectorAll("img");
    if (!pictures.length) continue;
    const whole = document.createElement("div"), image = pictures[pictures.length - 1];
    const last = image.closest("a") || image;
    whole.style.breakInside = "avoid";
    last.before(whole);
    whole.append(last, caption);
  }
  for (const one of article.querySelectorAll(".math"))
    if (!one.querySelector(".katex") || one.querySelector(".katex-error"))
      faults.push("formula not typeset: " + one.textContent.trim().slice(0, 60));
  // The formulas' second form, for screen readers: unseen, and it would be selected along with the first.
  for (const one of article.querySelectorAll(".katex-mathml")) one.remove();
  const heading = article.querySelector("h1");
  const words = (node) => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll(".headerlink").forEach((link) => link.remove());
    return copy.textContent.replace(/\\s+/g, " ").trim();
  };
  const title = heading ? words(heading) : document.title;
  const sections = Array.from(article.querySelectorAll("section > section[id] > h2"))
    .map((h2) => [h2.parentNode.id, words(h2)]);
  const standIn = {}, links = document.createElement("div");
  // Chromium notes only the places that a link of the same page leads to: so each wanted one gets such a link.
  links.style.display = "none";
  for (const id of new Set([...sections.map((one) => one[0]), ...wanted])) {
    const place = document.getElementById(id);
    if (!place) continue;
    const around = place.closest("section[id]");
    standIn[id] = around ? around.id : "";
    for (const name of [id, standIn[id]]) {
      if (!name) continue;
      const link = document.createElement("a");
      link.setAttribute("href", "#" + name);
      links.append(link);
    }
  }
  document.body.append(links);
  if (heading && chapter) {
    const line = document.createElement("p");
    line.textContent = "Chapter " + chapter;
    line.style.cssText = "margin: 0; font-size: 10pt; color: #333; break-after: avoid";
    heading.before(line);
  }
  return { title, sections, standIn, faults };
}"""

# What is wider than the paper, or hidden in a box that would scroll on a screen.
STICKS_OUT = """() => {
  const article = document.querySelector("article") || document.body;
  const right = article.getBoundingClientRect().right, found = [];
  const say = (node, what) => found.push(
    what + ": <" + node.tagName.toLowerCase() + "> " + node.textContent.trim().replace(/\\s+/g, " ").slice(0, 60));
  for (const node of article.querySelectorAll("*")) {
    if (node.closest("svg") || !node.getClientRects().length) continue;
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    if (box.width < 2 || style.visibility === "hidden" || style.clipPath !== "none") continue;
    const slack = node.closest(".katex") ? 8 : 1.5;  // a formula's last letter may lean over the line's end
    if (box.right > right + slack) say(node, "wider than the paper by " + Math.round(box.right - right) + " px");
    else if (node.closest(".katex")) continue;
    else if (style.overflowX !== "visible" && node.scrollWidth > node.clientWidth + 1) say(node, "cut at the side");
    else if (style.overflowY !== "visible" && node.scrollHeight > node.clientHeight + 4) say(node, "cut below");
  }
  return found.slice(0, 5);
}"""


async def print_one(context, html: Path, doc: str, wanted: set[str], paper: str) -> Sheets:
    path = html / f"{doc}.html"
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"a script failed: {str(error).splitlines()[0]}"))
    page.on("requestfailed", lambda request: faults.append(f"did not load {request.url.rpartition('/')[2]}"))
    try:
        await page.emulate_media(media="print", color_scheme="light")
        await page.goto(path.as_uri(), wait_until="load", timeout=60_000)
        told = await page.evaluate(PREPARE, [sorted(wanted), chapter(doc)])
        faults += told["faults"] + await page.evaluate(STICKS_OUT)
        width, height = PAPERS[paper]
        pdf = await page.pdf(width=f"{width}mm", height=f"{height}mm", margin=margins(), print_background=True)
    except Exception as error:
        raise Problem(f"{doc}.html could not be printed: {str(error).strip().splitlines()[0]}") from error
    finally:
        await page.close()
    return Sheets(doc, told["title"], pdf, told["sections"], told["standIn"], faults)


def margins() -> dict:
    return {"top": f"{TOP}mm", "right": f"{SIDE}mm", "bottom": f"{FOOT}mm", "left": f"{SIDE}mm"}


async def print_text(context, text: str, paper: str) -> bytes:
    """A page of ours, printed to the edge: its own style says where its margins are."""
    width, height = PAPERS[paper]
    page = await context.new_page()
    await page.set_content(text, wait_until="load")
    pdf = await page.pdf(width=f"{width}mm", height=f"{height}mm", print_background=True)
    await page.close()
    return pdf


async def print_book(root: Path, html: Path, parts: list, paper: str) -> tuple[list[Sheets], bytes]:
    """All sheets in their order, title page and contents first, and as many sheets with nothing but their foot."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        raise Problem("playwright is not installed: `make pdf` installs it (requirements-pages.txt).") from None
    docs = [doc for _, pages in parts for doc in pages]
    wanted = places_wanted(html, docs)
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        try:
            width = int((PAPERS[paper][0] - 2 * SIDE) / 25.4 * 96)
            context = await browser.new_context(viewport={"width": width, "height": 900})
            turns = asyncio.Semaphore(max(1, min(4, os.cpu_count() or 1)))

            async def in_turn(doc: str) -> Sheets:
                async with turns:
                    return await print_one(context, html, doc, wanted[doc], paper)

            printed = await asyncio.gather(*map(in_turn, docs))
            title = Sheets("", "Title", await print_text(context, title_page(root, html, paper), paper))
            listed = Sheets("", "Contents", b"")
            for _ in range(2):  # the first time only to see how many sheets the contents take
                sheets = [title, listed, *printed]
                listed.pdf = await print_text(context, contents_page(html, parts, sheets), paper)
            return sheets, await print_text(context, feet(sheets, paper), paper)
        finally:
            await browser.close()


# --- The sheets of our own: title, contents, feet -------------------------------------------------

LETTERS = 'font-family: -apple-system, BlinkMacSystemFont, "Segoe UI", "Helvetica Neue", Arial, sans-serif'
STYLE = f"""<style>
  @page {{ margin: {TOP + 6}mm {SIDE}mm {FOOT}mm }}
  body {{ margin: 0; {LETTERS}; font-size: 10pt; line-height: 1.45; color: #000 }}
  a {{ color: #000; text-decoration: none }}
  h1 {{ font-size: 28pt; font-weight: 600; line-height: 1.15; margin: 0 0 4mm }}
  h2 {{ font-size: 10.5pt; font-weight: 600; margin: 3.5mm 0 1mm; break-after: avoid }}
  .line {{ display: flex; align-items: baseline; gap: 2mm; margin: 0 0 0.5mm; break-inside: avoid }}
  .line {{ font-size: 9pt; line-height: 1.3 }}
  .line i {{ flex: 1; border-bottom: 0.6pt dotted #777 }}
  .line b {{ font-weight: 400; font-variant-numeric: tabular-nums }}
  .low p {{ margin: 0 0 1.5mm; font-size: 9.5pt }}
</style>"""


def about(root: Path) -> dict[str, str]:
    """What the book says of itself, in _config.yml and CITATION.cff."""
    import yaml

    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    cff_file = root / "CITATION.cff"
    cff = yaml.safe_load(cff_file.read_text(encoding="utf-8")) if cff_file.is_file() else {}
    run = book.read_json(root / "_build" / "execution-key.json").get("key", {})
    return {
        "title": config["title"],
        "subtitle": cff.get("title", "").partition(":")[2].strip().capitalize(),
        "author": config.get("author", ""),
        "version": str(cff.get("version", "")),
        "date": str(cff.get("date-released", "")),
        "year": str(config.get("copyright", "")),
        "url": config.get("repository", {}).get("url", ""),
        "abstract": " ".join(cff.get("abstract", "").split()),
        "keywords": ", ".join(cff.get("keywords", [])),
        "scale": run.get("VITBOOK_SCALE", ""),
        "torch": next((v for v in run.get("versions", []) if v.startswith("torch ")), ""),
    }


def title_page(root: Path, html: Path, paper: str) -> str:
    said = {name: markup.escape(text) for name, text in about(root).items()}
    picture, height = html / "_static" / "home.png", PAPERS[paper][1] - TOP - FOOT - 8
    image = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
    lines = [
        f"Version {said['version']}, {said['date']}" if said["version"] else said["year"],
        f"Its notebooks were executed to make these pages, at {said['scale']} scale, with {said['torch']}."
        if said["scale"] and said["torch"]
        else "",
        f'<a href="{said["url"]}">{said["url"].removeprefix("https://")}</a>' if said["url"] else "",
        'Code: MIT License. Prose and figures: <a href="https://creativecommons.org/licenses/by/4.0/">CC BY 4.0</a>.',
    ]
    return f"""<!doctype html><html lang="en"><title>Title</title>{STYLE}
      <div style="height: {height}mm; display: flex; flex-direction: column">
      <div style="flex: 1"></div><h1>{said["title"]}</h1>
      <p style="font-size: 15pt; margin: 0 0 12mm; color: #333">{said["subtitle"]}</p>
      {f'<img alt="" style="width: 100%" src="data:image/png;base64,{image}">' if image else ""}
      <p style="font-size: 12pt; margin: 12mm 0 0">{said["author"]}</p><div style="flex: 2"></div>
      <div class="low">{"".join(f"<p>{line}</p>" for line in lines if line)}</div></div>"""


def first_sheets(sheets: list[Sheets]) -> list[int]:
    """Where each of them begins, counted from 1; and one past the end."""
    begins = [1]
    for one in sheets:
        begins.append(begins[-1] + count(one.pdf))
    return begins


def count(pdf: bytes) -> int:
    from pypdf import PdfReader

    return len(PdfReader(BytesIO(pdf)).pages) if pdf else 1


def contents_page(html: Path, parts: list, sheets: list[Sheets]) -> str:
    begins = {one.doc: (one.title, first) for one, first in zip(sheets, first_sheets(sheets), strict=False)}
    lines = ["<h1 style='font-size: 20pt'>Contents</h1>"]
    for caption, docs in parts:
        lines.append(f"<h2>{markup.escape(caption)}</h2>" if caption else "")
        for doc in docs:
            title, first = begins[doc]
            link = f'<a href="{(html / f"{doc}.html").as_uri()}">{markup.escape(numbered(doc, title))}</a>'
            lines.append(f'<div class="line">{link}<i></i><b>{first}</b></div>')
    return f'<!doctype html><html lang="en"><title>Contents</title>{STYLE}{"".join(lines)}'


def feet(sheets: list[Sheets], paper: str) -> str:
    """A sheet for each sheet: the running title and the number, in the lower margin."""
    width, height = PAPERS[paper]
    rows, number = [], 0
    for one in sheets:
        name = f"Chapter {chapter(one.doc)}: {one.title}" if chapter(one.doc) else one.title
        for _ in range(count(one.pdf)):
            number += 1
            text = f"<span>{markup.escape(name)}</span><span>{number}</span>" if number > 1 else ""
            rows.append(f"<section><div>{text}</div></section>")
    return f"""<!doctype html><html lang="en"><title>Feet</title><style>
      @page {{ margin: 0 }} body {{ margin: 0; {LETTERS} }}
      section {{ height: {height - 0.5}mm; position: relative; break-after: page; overflow: hidden }}
      section:last-child {{ break-after: auto }}
      div {{ position: absolute; left: {SIDE}mm; right: {SIDE}mm; bottom: {FOOT * 0.42:.1f}mm; display: flex;
        justify-content: space-between; font-size: 8pt; color: #444 }}
    </style>{"".join(rows)}"""


# --- Binding --------------------------------------------------------------------------------------


def bind(root: Path, html: Path, parts: list, sheets: list[Sheets], foot: bytes):
    """All sheets in one PdfWriter, with feet, links, bookmarks and metadata."""
    from pypdf import PdfReader, PdfWriter

    writer, spots = PdfWriter(), {}
    for one, first in zip(sheets, first_sheets(sheets), strict=False):
        reader = PdfReader(BytesIO(one.pdf))
        spots |= {(one.doc, anchor): spot for anchor, spot in read_spots(reader, first - 1).items()}
        spots[one.doc, ""] = (first - 1, None)
        for anchor, around in one.stand_in.items():
            if (one.doc, anchor) not in spots and (one.doc, around) in spots:
                spots[one.doc, anchor] = spots[one.doc, around]
        for page in reader.pages:
            name_targets(page, (html / f"{one.doc}.html").as_uri())
        writer.append(reader, import_outline=False)
    stamp(writer, PdfReader(BytesIO(foot)))
    dropped = lead_links(writer, html, spots)
    bookmarks(writer, parts, sheets, spots)
    describe(writer, about(root))
    writer.compress_identical_objects()
    return writer, dropped


def read_spots(reader, offset: int) -> dict[str, tuple[int, float | None]]:
    """Anchor: (sheet of the book, height on it) for all places that Chromium noted."""
    sheet = {page.indirect_reference.idnum: number for number, page in enumerate(reader.pages)}
    found = {}
    for name, spot in reader.named_destinations.items():
        page = sheet.get(spot.page.idnum) if hasattr(spot.page, "idnum") else None
        if page is not None:
            found[unquote(str(name).removeprefix("/"))] = (page + offset, spot.top)
    return found


def name_targets(page, url: str) -> None:
    """A link inside the page, '#sizes', becomes one with the page's address: all are led alike, later."""
    from pypdf.generic import DictionaryObject, NameObject, TextStringObject

    for link in page.get("/Annots", []):
        link = link.get_object()
        if "/Dest" in link:
            action = DictionaryObject({NameObject("/S"): NameObject("/URI")})
            action[NameObject("/URI")] = TextStringObject(url + "#" + str(link["/Dest"]).removeprefix("/"))
            link[NameObject("/A")] = action
            del link["/Dest"]


def lead_links(writer, html: Path, spots: dict) -> int:
    """Links to pages of the book lead to their sheets. Links to other files are taken out; how many were there?"""
    from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject

    dropped = 0
    for page in writer.pages:
        kept = ArrayObject()
        for one in page.get("/Annots", []):
            link = one.get_object()
            url = str(link.get("/A", {}).get("/URI", ""))
            if url.startswith("file:"):
                target, anchor = place_of(url, html / "index.html", html)
                spot = spots.get((target, anchor)) or spots.get((target, ""))
                if spot is None:
                    dropped += 1
                    continue
                top = NullObject() if spot[1] is None else FloatObject(round(float(spot[1]) + 6, 1))
                goal = [writer.pages[spot[0]].indirect_reference, NameObject("/XYZ"), NullObject(), top, NullObject()]
                link[NameObject("/Dest")] = ArrayObject(goal)
                del link["/A"]
            kept.append(one)
        if "/Annots" in page:
            page[NameObject("/Annots")] = kept
    return dropped


def stamp(writer, feet) -> None:
    """Lay a foot over each sheet, as a form: what stands on the sheet is not read or written anew."""
    from pypdf.generic import (
        ArrayObject,
        DecodedStreamObject,
        DictionaryObject,
        NameObject,
        StreamObject,
    )

    before, after = DecodedStreamObject(), DecodedStreamObject()
    before.set_data(b"q\n")
    after.set_data(b"\nQ\nq /BookFoot Do Q\n")
    before, after = writer._add_object(before), writer._add_object(after)
    for page, foot in zip(writer.pages, feet.pages, strict=True):
        form = StreamObject()
        form.set_data(foot.get_contents().get_data())
        form.update(
            {
                NameObject("/Type"): NameObject("/XObject"),
                NameObject("/Subtype"): NameObject("/Form"),
                NameObject("/BBox"): foot.mediabox,
                NameObject("/Resources"): foot["/Resources"].clone(writer),
            }
        )
        old = page["/Contents"]
        old = list(old) if isinstance(old, ArrayObject) else [page.raw_get("/Contents")]
        page[NameObject("/Contents")] = ArrayObject([before, *old, after])
        resources = DictionaryObject(page["/Resources"].get_object())
        forms = DictionaryObject(resources.get("/XObject", DictionaryObject()).get_object())
        forms[NameObject("/BookFoot")] = writer._add_object(form.flate_encode())
        resources[NameObject("/XObject")] = forms
        page[NameObject("/Resources")] = resources


def bookmarks(writer, parts: list, sheets: list[Sheets], spots: dict) -> None:
    from pypdf.generic import Fit

    def mark(title, place, parent=None):
        sheet, top = place
        fit = Fit.xyz(left=None, top=None if top is None else round(float(top) + 6, 1), zoom=None)
        return writer.add_outline_item(title=title, page_number=sheet, parent=parent, fit=fit, is_open=False)

    begins = first_sheets(sheets)
    by_doc = {one.doc: one for one in sheets}
    mark("Title", (0, None))
    mark("Contents", (begins[1] - 1, None))
    for caption, docs in parts:
        above = mark(caption, spots[docs[0], ""]) if caption and docs else None
        for doc in docs:
            page = mark(numbered(doc, by_doc[doc].title), spots[doc, ""], above)
            for anchor, title in by_doc[doc].sections:
                mark(title, spots.get((doc, anchor), spots[doc, ""]), page)


def describe(writer, said: dict[str, str]) -> None:
    from pypdf.generic import BooleanObject, DictionaryObject, NameObject, TextStringObject

    writer.add_metadata(
        {
            "/Title": said["title"],
            "/Author": said["author"],
            "/Subject": said["abstract"] or said["subtitle"],
            "/Keywords": said["keywords"],
            "/Creator": "make pdf",
            "/Producer": "Chromium and pypdf",
            "/CreationDate": time.strftime("D:%Y%m%d%H%M%SZ", time.gmtime()),
        }
    )
    top = writer._root_object
    top[NameObject("/Lang")] = TextStringObject("en")
    top[NameObject("/PageMode")] = NameObject("/UseOutlines")
    top[NameObject("/ViewerPreferences")] = DictionaryObject({NameObject("/DisplayDocTitle"): BooleanObject(True)})


# --- Is anything cut, or left behind? -------------------------------------------------------------


class Boxes(HTMLParser):
    """The lines of the page's boxes of code and of output: each <pre> of the article."""

    def __init__(self, text: str):
        super().__init__()
        self.inside, self.depth, self.texts = False, 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "article":
            self.inside = True
        elif tag == "pre" and self.inside:
            self.depth += 1
            self.texts.append("")

    def handle_endtag(self, tag):
        if tag == "article":
            self.inside = False
        elif tag == "pre" and self.depth:
            self.depth -= 1

    def handle_data(self, data):
        if self.depth:
            self.texts[-1] += data


def source_lines(html: Path, doc: str) -> list[str]:
    """The lines of code in the page's source as it was built: code cells, or fenced blocks."""
    notebook, page = html / "_sources" / f"{doc}.ipynb", html / "_sources" / f"{doc}.md"
    if notebook.is_file():
        hidden = {"remove-cell", "remove-input"}
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cells = [c for c in cells if not hidden & set(c.get("metadata", {}).get("tags", []))]
        blocks = []
        for cell in cells:
            text = "".join(cell["source"])
            blocks += [text] if cell["cell_type"] == "code" else fenced(text)
    elif page.is_file():
        blocks = fenced(page.read_text(encoding="utf-8"))
    else:
        return []
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def fenced(text: str) -> list[str]:
    """The code that a Markdown text shows: its fenced blocks, and of the directives (in braces) those that are code."""
    found = re.findall(r"^[ >]*(```+|~~~+)([^\n`]*)\n(.*?)^[ >]*\1[ \t]*$", text, re.M | re.S)
    page_hides = re.match(r"---\n(?:.*\n)*? +remove_code_source: true\n(?:.*\n)*?---\n", text)
    blocks = []
    for _, info, body in found:
        body = re.sub(r"^[ >]*> ?", "", body, flags=re.M)
        directive = re.match(r"\{([\w-]+)\}", info.strip())
        if not directive:
            blocks.append(body)
            continue
        options = re.match(r"(?:---\n(?:.*\n)*?---\n|(?::[\w-]+:.*\n)*)", body)[0]
        cell_hides = re.search(r"remove-(cell|input)|remove_code_source: true", options)
        hidden = directive[1] == "code-cell" and (page_hides or cell_hides)
        if directive[1] in ("code", "code-block", "code-cell") and not hidden:
            blocks.append(body.removeprefix(options))
    return blocks


def squeezed(text: str) -> str:
    """Without spaces, so that a line may be wrapped; ligatures as letters."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def missing_lines(lines: list[str], text: str) -> list[str]:
    """Those lines that do not stand in the text, one after the other. Both lose their spaces."""
    at, lost = 0, []
    for line in lines:
        wanted = squeezed(line)
        here = text.find(wanted, at)
        if here < 0:
            lost.append(line)
        else:
            at = here + len(wanted)
    return lost


def check_page(html: Path, one: Sheets) -> tuple[int, int, list[str]]:
    """(lines of code, lines of all boxes, what is missing) of one page, read back from its printed sheets."""
    from pypdf import PdfReader

    text = squeezed("".join(page.extract_text() + "\n" for page in PdfReader(BytesIO(one.pdf)).pages))
    sources = source_lines(html, one.doc)
    shown = Boxes((html / f"{one.doc}.html").read_text(encoding="utf-8")).texts
    shown = [line for box in shown for line in box.splitlines() if line.strip()]
    lost = dict.fromkeys(missing_lines(sources, text) + missing_lines(shown, text))
    return len(sources), len(shown), [f"{one.doc}: cut or lost: {line}" for line in lost]


def check_lines(html: Path, sheets: list[Sheets]) -> tuple[int, int, list[str]]:
    """The same of all pages; reading takes a second for fifteen sheets, so all cores read a large book."""
    pages = [one for one in sheets if one.doc]
    if sum(len(one.pdf) for one in pages) < 2_000_000:
        told = [check_page(html, one) for one in pages]
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            told = list(pool.map(check_page, [html] * len(pages), pages))
    code, boxes, lost = zip(*told, strict=True)
    return sum(code), sum(boxes), [line for lines in lost for line in lines]


def left_behind(pdf: bytes, root: Path) -> list[str]:
    """Addresses in the PDF that lead to a machine, and links without a goal."""
    from pypdf import PdfReader

    found, reader = [], PdfReader(BytesIO(pdf))
    there = {page.indirect_reference.idnum for page in reader.pages}
    for number, page in enumerate(reader.pages, 1):
        for link in page.get("/Annots", []):
            link = link.get_object()
            url = str(link.get("/A", {}).get("/URI", ""))
            if re.match(r"file:|https?://(localhost|127\.|\[::1\]|0\.0\.0\.0)", url) or str(root) in url:
                found.append(f"sheet {number}: a link to {url}")
            if "/Dest" in link and link["/Dest"][0].idnum not in there:
                found.append(f"sheet {number}: a link to no sheet")
    for plain in (str(root).encode(), b"file://"):
        if plain in pdf:
            found.append(f"the file holds {plain.decode()}")
    return list(dict.fromkeys(found))


# --- The offer on the home page -------------------------------------------------------------------


def offer(html: Path, name: str, sheets: int, size: int) -> bool:
    """Write the link into the built home page. False where it has no place for it."""
    page = home(html)
    text = page.read_text(encoding="utf-8")
    link = Path(os.path.relpath(html / name, page.parent)).as_posix()
    said = f'<p><a href="{link}">The whole book as one PDF</a> ({sheets} pages, {size / 1e6:.0f} MB)</p>'
    told, places = OFFER.subn(lambda found: found[1] + said + found[2], text)
    if told != text:
        new = page.with_name(page.name + ".tmp")
        new.write_text(told, encoding="utf-8")
        new.replace(page)
    return bool(places)


def withdraw(html: Path, name: str) -> None:
    """No PDF, no offer: take both away, the offer first."""
    page = home(html)
    text = page.read_text(encoding="utf-8")
    plain = OFFER.sub(r"\1\2", text)
    if plain != text:
        page.write_text(plain, encoding="utf-8")
    (html / name).unlink(missing_ok=True)


# --- The command ----------------------------------------------------------------------------------


def make(root: Path, html: Path, paper: str) -> None:
    """Print, bind, check, put in place; a Problem leaves no PDF and no offer behind."""
    parts = contents(root)
    docs = [doc for _, pages in parts for doc in pages]
    check_built(root, html, docs)
    stamp_file, begun = root / "_build" / "book-stamp.json", time.monotonic()
    noted = book.read_json(stamp_file)
    whole = noted.get("site") == book.site_key(html)
    withdraw(html, NAME)
    try:
        print(f"Printing {len(docs)} pages of {html} on {paper}", flush=True)
        sheets, foot = asyncio.run(print_book(root, html, parts, paper))
        faults = [f"{one.doc}: {fault}" for one in sheets for fault in one.faults]
        code, boxes, lost = check_lines(html, sheets)
        writer, dropped = bind(root, html, parts, sheets, foot)
        file = BytesIO()
        writer.write(file)
        pdf = file.getvalue()
        faults += lost + left_behind(pdf, root)
        if faults:
            more = f"\n  and {len(faults) - 30} more" if len(faults) > 30 else ""
            raise Problem("No PDF was made:\n\n  " + "\n  ".join(faults[:30]) + more)
        new = html / (NAME + ".tmp")
        try:
            new.write_bytes(pdf)
            new.replace(html / NAME)
        finally:
            new.unlink(missing_ok=True)
        if not offer(html, NAME, len(writer.pages), len(pdf)):
            print(f'Note: {home(html)} has no <div id="book-pdf"></div>, so nothing offers the PDF.')
    finally:
        if whole:  # what `make book` left, and what was done here: nothing that it would have to build again
            book.write_json(stamp_file, noted | {"site": book.site_key(html)})
    print(
        f"{code} lines of code and {boxes} lines of code and output boxes are in it, whole. "
        f"Links to files that are not in it, most of them to a picture's own file, were left out: {dropped}."
    )
    marks = sum(1 + len(one.sections) for one in sheets) + sum(bool(caption) for caption, _ in parts)
    print(
        f"{len(writer.pages)} sheets, {marks} bookmarks, {len(pdf) / 1e6:.1f} MB, "
        f"{time.monotonic() - begun:.0f} s: {html / NAME}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the book's folder")
    parser.add_argument("--paper", choices=sorted(PAPERS), default="A4")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    try:
        with running.alone(root, "make pdf"):
            make(root, root / "_build" / "html", options.paper)
    except running.Busy as busy:
        print(busy, file=sys.stderr)
        return 2
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. No PDF was made.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
