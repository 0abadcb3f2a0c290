"""Print the built book into one PDF: `make pdf`.

    .venv/bin/python tools/pdf.py [--root FOLDER] [--paper A4|Letter]

The pages of `_toc.yml` are opened in the Chromium or Chrome of this machine, put into one document in their order, and
printed at once with the style of `book/_static/print.css`: so the browser itself makes the bookmarks, the tags for
screen readers, the links within the book and the foot of each sheet. Added are a title page and contents with page
numbers. A link to a page that is not in the PDF (a module's source) is no link there.

Nothing may be cut. Each page is first laid out as wide as the paper, and whatever sticks out or is hidden is named.
Each line of the pages' boxes of code and output is then looked for in the text of the page's sheets, in order. One that
is missing fails the command, and no PDF is left behind.

Only when the file stands in `_build/html` is the offer written into the built home page (`<div id="book-pdf">`), and
the success that tools/book.py noted is noted anew, so that `make book` with nothing changed keeps both. After a
change it builds all pages afresh, which takes away the PDF and the offer together: the link is never dead.
"""

from __future__ import annotations

import argparse
import html as markup
import json
import os
import re
import sys
import time
import unicodedata
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from sphinx_external_toc.parsing import parse_toc_yaml

import book
import pages as browser_pages
import running
from vitutils.files import whole_file

NAME = "vision-transformers-in-pytorch.pdf"
PAPERS = {"A4": (210, 297), "Letter": (215.9, 279.4)}  # mm
SIDE = 17  # mm, the margin of print.css
OFFER = re.compile(r'(<div id="book-pdf">).*?(</div>)', re.S)


class Problem(ValueError):
    """Something the reader can mend; the message says how."""


def contents(root: Path) -> list[tuple[str, str]]:
    """(part, page) in the order of _toc.yml; the root page comes first, in a part without a name."""
    toc = parse_toc_yaml(root / "_toc.yml")

    def under(doc: str) -> list[str]:
        return [doc, *(one for part in toc[doc].subtrees for item in part.items if item in toc for one in under(item))]

    parts = [(part.caption or "", doc) for part in toc.root.subtrees for doc in part.items if doc in toc]
    return [("", toc.root.docname), *((caption, one) for caption, doc in parts for one in under(doc))]


def check_built(root: Path, html: Path, docs: list[str]) -> None:
    """Problem unless every page of the contents has been built."""
    if not (html / "index.html").is_file():
        raise Problem(f"No built book in {html}.\nRun `make book` first: `make pdf` prints what it has built.")
    if missing := [doc for doc in docs if not (html / f"{doc}.html").is_file()]:
        raise Problem(f"Not built: {', '.join(missing)}.\n_toc.yml names them. Run `make book`, then `make pdf`.")
    if not (root / "_build" / "book-stamp.json").is_file():
        print("Note: the last build did not pass, or was not made by `make book`. Printing what is there.")


def home(html: Path) -> Path:
    """The page that index.html leads to."""
    found = re.search(r'http-equiv="Refresh" content="0; url=([^"]+)"', (html / "index.html").read_text("utf-8"))
    return html / found[1] if found else html / "index.html"


# --- Printing -------------------------------------------------------------------------------------

# One page, ready to be moved into the book: all opened, drawn and set; and what is wrong with it.
TAKE = r"""async (chapter) => {
  await document.fonts.ready;
  const faults = [], article = document.querySelector("article") || document.body;
  const all = (selector) => Array.from(article.querySelectorAll(selector));
  if (!Array.from(document.styleSheets).some((sheet) => /\/print\.css/.test(sheet.href)))
    faults.push("the page is not linked to print.css (html_css_files in _config.yml)");
  for (const image of all("img")) {
    image.loading = "eager";
    await image.decode().catch(() => faults.push("did not load " + image.src.split("/").pop()));
  }
  for (const box of all("details")) box.open = true;
  for (const box of all("pre"))  // a short piece of code stays on one sheet
    if (box.textContent.trim().split("\n").length <= 16) box.style.breakInside = "avoid";
  for (const caption of all("div.cell + p.book-caption")) {  // so do a figure and the caption below its cell
    const image = Array.from(caption.previousElementSibling.querySelectorAll("img")).pop();
    if (!image) continue;
    const whole = document.createElement("div"), last = image.closest("a") || image;
    whole.style.breakInside = "avoid";
    last.before(whole);
    whole.append(last, caption);
  }
  for (const one of all(".math"))
    if (!one.querySelector(".katex") || one.querySelector(".katex-error"))
      faults.push("formula not typeset: " + one.textContent.trim().slice(0, 60));
  // A formula's second form, for screen readers, would be selected along with the first: they get its TeX instead.
  for (const one of all(".katex")) {
    one.setAttribute("role", "img");
    one.setAttribute("aria-label", (one.querySelector("annotation") || one).textContent);
    for (const second of one.querySelectorAll(".katex-mathml")) second.remove();
  }
  for (const part of all("[hidden]"))  // a name that it has may be one that another page shows
    if (!part.getClientRects().length) part.remove();
  for (const link of all(".headerlink")) link.remove();
  const heading = article.querySelector("h1"), words = (node) => node.textContent.replace(/\s+/g, " ").trim();
  const title = heading ? words(heading) : document.title;
  if (heading && chapter)
    heading.insertAdjacentHTML("afterbegin", `<span class="chapter">Chapter ${chapter}&nbsp;</span>`);

  // What is wider than the paper, or hidden in a box that would scroll on a screen.
  const right = article.getBoundingClientRect().right, outside = [];
  const say = (node, what) => outside.push(`${what}: <${node.tagName.toLowerCase()}> ${words(node).slice(0, 60)}`);
  for (const node of all("*")) {
    if (node.closest("svg") || !node.getClientRects().length) continue;
    const box = node.getBoundingClientRect(), style = getComputedStyle(node), formula = node.closest(".katex");
    if (box.width < 2 || style.visibility === "hidden" || style.clipPath !== "none") continue;
    const over = Math.round(box.right - right);
    if (over > (formula ? 8 : 1)) say(node, `wider than the paper by ${over} px`);  // a formula's last letter may lean
    else if (formula) continue;
    else if (style.overflowX !== "visible" && node.scrollWidth > node.clientWidth + 1) say(node, "cut at the side");
    else if (style.overflowY !== "visible" && node.scrollHeight > node.clientHeight + 4) say(node, "cut below");
  }
  // What would not survive as text: addresses as seen from here, drawings, choices made.
  for (const node of all("a[href]")) node.setAttribute("href", node.href);
  for (const node of all("img[src]")) node.setAttribute("src", node.src);
  for (const node of all("canvas")) node.dataset.drawn = node.toDataURL();
  for (const node of all("input")) node.toggleAttribute("checked", node.checked);
  const styles = Array.from(document.querySelectorAll("link[rel=stylesheet], style"), (node) => {
    if (node.href) node.setAttribute("href", node.href);
    return node.outerHTML;
  });
  return { title, html: article.outerHTML, styles, faults: [...faults, ...outside.slice(0, 5)] };
}"""

# All pages in one document. Returns how many links lead to files that are not in it: these are links no more.
JOIN = """async ([pages, front, style]) => {
  const place = document.querySelector(".bd-article-container") || document.body, names = new Map();
  for (let node = place; node !== document.body; node = node.parentNode) node.parentNode.replaceChildren(node);
  place.innerHTML = front;
  for (const text of new Set([...pages.flatMap((page) => page.styles), style]))
    document.head.insertAdjacentHTML("beforeend", text);
  for (const [number, page] of pages.entries()) {
    const box = document.createElement("div");
    box.innerHTML = page.html;
    box.id = "page-" + number;
    for (const url of page.urls) names.set(url, box.id);
    for (const node of box.querySelectorAll("[id]")) {  // of two places with one name the first keeps it
      const url = page.urls[0] + "#" + node.id;
      if (document.getElementById(node.id)) node.id += "-" + number;
      if (!names.has(url)) names.set(url, node.id);
    }
    for (const node of box.querySelectorAll("h1, h2, h3, h4, h5"))  // a bookmark's level: parts are above pages
      node.ariaLevel = Number(node.tagName[1]) + page.below;
    const part = `<p class="part" role="heading" aria-level="1">${page.part}</p>`;
    if (page.part) box.insertAdjacentHTML("afterbegin", part);
    place.append(box);
  }
  let dropped = 0;
  for (const link of place.querySelectorAll("a[href^='file:']")) {
    const [url, anchor] = link.href.split("#"), name = names.get(`${url}#${decodeURIComponent(anchor || "")}`);
    let target = document.getElementById(name || names.get(url));
    while (target && !(target.id && target.getClientRects().length)) target = target.parentElement;  // not on paper
    if (!target) dropped += link.getClientRects().length > 0;
    target ? link.setAttribute("href", "#" + target.id) : link.removeAttribute("href");
  }
  for (const canvas of place.querySelectorAll("canvas[data-drawn]")) {
    const image = new Image();
    image.src = canvas.dataset.drawn;
    await image.decode();
    canvas.getContext("2d").drawImage(image, 0, 0);
  }
  await Promise.all(Array.from(document.images, (image) => image.decode().catch(() => 0)));
  await document.fonts.ready;
  return dropped;
}"""
NUMBER = (
    """(numbers) => document.querySelectorAll("#book-contents b").forEach((b, n) => (b.textContent = numbers[n]))"""
)
STYLE = """<style>
  @page { @bottom-left { FOOT } @bottom-right { FOOT; content: counter(page) } }
  @page front { @bottom-right { content: none } }
  #book-front { page: front; height: 235mm; display: flex; flex-direction: column; justify-content: space-between }
  #book-front h1 { font-size: 28pt; font-weight: 600; margin: 30mm 0 4mm }
  #book-front p { margin: 0 0 1.5mm }
  #book-front img { width: 100%; margin: 8mm 0 }
  #book-contents { font-size: 9pt; line-height: 1.3 }
  #book-contents h1 { font-size: 20pt; font-weight: 600; margin: 0 0 4mm }
  #book-contents p { font-weight: 600; font-size: 10.5pt; margin: 3.5mm 0 1mm; break-after: avoid }
  #book-contents div { display: flex; align-items: baseline; gap: 2mm; margin: 0 0 0.5mm; break-inside: avoid }
  #book-contents i { flex: 1; border-bottom: 0.6pt dotted #777 }
  #book-contents b { font-weight: 400; min-width: 6mm; text-align: right; font-variant-numeric: tabular-nums }
  #book-front a, #book-contents a { color: #000; text-decoration: none }
  .part, .chapter { display: block; margin: 0; font-size: 10pt; line-height: 1.45; color: #333; break-after: avoid }
  h1, h2, h3, h4 { padding-top: 3px }  /* a letter that reaches into the sheet before stands in its bookmark twice */
</style>""".replace("FOOT", "font: 8pt -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; color: #444")


def print_book(root: Path, html: Path, pages: list, paper: str) -> tuple[bytes, list[dict], int]:
    """(the PDF as the browser makes it; its pages: doc, title, foot, sheets, faults; how many links are left out)."""
    import playwright.sync_api as playwright

    path = browser_pages.find_browser("pdf")
    width, height = PAPERS[paper]
    how = {"width": f"{width}mm", "height": f"{height}mm", "print_background": True}
    with playwright.sync_playwright() as driver:
        browser = browser_pages.launch(driver, path)
        try:
            view = {"width": int((width - 2 * SIDE) / 25.4 * 96), "height": 900}
            context, above, leaves = browser.new_context(viewport=view, color_scheme="light"), "", []
            for part, doc in pages:
                named = {"below": bool(part), "part": markup.escape(part) if part != above else ""}
                leaves.append(take(context, html, doc) | named)
                above = part
            page = context.new_page()
            page.emulate_media(media="print")
            page.goto(home(html).as_uri(), timeout=60_000)
            dropped = page.evaluate(JOIN, [leaves, title_page(root, html) + contents_page(leaves), style(leaves)])
            starts = first_sheets(page.pdf(**how), leaves)
            page.evaluate(NUMBER, [sheet + 1 for sheet in starts])
            pdf = page.pdf(**how, tagged=True, outline=True)
        except playwright.Error as error:
            raise Problem(f"The book could not be printed: {first_line(error)}") from error
        finally:
            browser.close()
    if first_sheets(pdf, leaves) != starts:
        raise Problem("The numbers in the contents are not the sheets': two prints of the book differ.")
    for leaf, ends in zip(leaves, pairwise(starts), strict=True):
        leaf["sheets"] = range(*ends)
    return pdf, leaves, dropped


def take(context, html: Path, doc: str) -> dict:
    """A page of the book, as text to be put into the whole, and what is wrong with it."""
    url, faults, page = (html / f"{doc}.html").as_uri(), [], context.new_page()
    page.on("pageerror", lambda error: faults.append(f"a script failed: {first_line(error)}"))
    page.on("requestfailed", lambda request: faults.append(f"did not load {request.url.rpartition('/')[2]}"))
    page.emulate_media(media="print")
    page.goto(url, timeout=60_000)
    found = re.fullmatch(r"notebooks/0*(\d+)_\w+", doc)
    told = page.evaluate(TAKE, found and found[1])
    page.close()
    names = {"label": told["title"], "foot": told["title"]}
    if found:
        names = {"label": f"{found[1]}  {told['title']}", "foot": f"Chapter {found[1]}: {told['title']}"}
    urls = [url, (html / "index.html").as_uri()] if html / f"{doc}.html" == home(html) else [url]
    return told | names | {"doc": doc, "urls": urls, "faults": list(dict.fromkeys(faults + told["faults"]))}


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def about(root: Path) -> dict[str, str]:
    """What the book says of itself, in _config.yml and CITATION.cff: the PDF's own data, and the title page's lines."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    cff = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    run = book.read_json(root / "_build" / "execution-key.json").get("key", {})
    torch = "".join(version for version in run.get("versions", []) if version.startswith("torch "))
    made = f"Its notebooks were executed to make these pages, at {run.get('VITBOOK_SCALE')} scale, with {torch}."
    return {
        "Title": config["title"],
        "Author": config["author"],
        "Subject": " ".join(cff.get("abstract", "").split()),
        "Keywords": ", ".join(cff.get("keywords", [])),
        "Creator": "make pdf",
        "subtitle": cff["title"].partition(":")[2].strip().capitalize(),
        "edition": f"Version {cff['version']}, {cff['date-released']}",
        "made": made if torch else "",
        "url": config["repository"]["url"],
    }


def title_page(root: Path, html: Path) -> str:
    said = {name: markup.escape(text) for name, text in about(root).items()}
    picture, cc = html / "_static" / "home.png", "https://creativecommons.org/licenses/by/4.0/"
    lines = [said["edition"], said["made"], f'<a href="{said["url"]}">{said["url"].removeprefix("https://")}</a>']
    lines.append(f'Code: MIT License. Prose and figures: <a href="{cc}">CC BY 4.0</a>.')
    return f"""<section id="book-front"><div><h1>{said["Title"]}</h1><p style="font-size: 15pt">{said["subtitle"]}</p>
      {f'<img alt="" src="{picture.as_uri()}">' if picture.is_file() else ""}
      <p style="font-size: 12pt">{said["Author"]}</p></div>
      <div>{"".join(f"<p>{line}</p>" for line in lines if line)}</div></section>"""


def contents_page(leaves: list[dict]) -> str:
    """Each page's title, a link to it, and a place for its number."""
    lines = []
    for n, leaf in enumerate(leaves):
        label = markup.escape(leaf["label"]).replace("  ", "&ensp;")
        lines.append(f"<p>{leaf['part']}</p>" if leaf["part"] else "")
        lines.append(f'<div><a href="#page-{n}">{label}</a><i></i><b></b></div>')
    return f'<section id="book-contents"><h1>Contents</h1>{"".join(lines)}</section>'


def style(leaves: list[dict]) -> str:
    """The style of what is added here. Each page names itself at the foot of its sheets."""
    rules = ""
    for name, foot in [("book-contents", "Contents"), *((f"page-{n}", leaf["foot"]) for n, leaf in enumerate(leaves))]:
        words = json.dumps(foot, ensure_ascii=False).replace("<", r"\3c ")
        rules += f"@page {name} {{ @bottom-left {{ content: {words} }} }} #{name} {{ page: {name} }}"
    return STYLE.replace("</style>", rules + "</style>")


def first_sheets(pdf: bytes, leaves: list[dict]) -> list[int]:
    """On which sheet each page begins, counted from 0; and how many sheets there are."""
    import pikepdf

    with pikepdf.open(BytesIO(pdf)) as file:
        goals = [file.Root.Dests[f"/page-{n}"][0] for n in range(len(leaves))]
        return [*(pikepdf.Page(goal).index for goal in goals), len(file.pages)]


def finish(pdf: bytes, root: Path) -> bytes:
    """The file with the book's own data, its bookmarks folded."""
    import pikepdf

    def fold(items):
        for item in items:
            item.is_closed = True
            fold(item.children)

    with pikepdf.open(BytesIO(pdf)) as file, BytesIO() as written:
        for name, text in about(root).items():
            if name[0].isupper():
                file.docinfo[f"/{name}"] = text
        file.Root.PageMode = pikepdf.Name.UseOutlines
        with file.open_outline() as outline:
            fold(outline.root)
        file.save(written, object_stream_mode=pikepdf.ObjectStreamMode.generate)
        return written.getvalue()


# --- Is anything cut or lost? ---------------------------------------------------------------------


def squeezed(text: str) -> str:
    """Without spaces: a line may be wrapped. Ligatures as letters; PDFium says U+FFFE for a hyphen at a line's end."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text.replace("\ufffe", "-")))


def missing_lines(html: Path, pdf: bytes, leaves: list[dict]) -> tuple[int, list[str]]:
    """(lines of the built pages' boxes of code and output, those that their sheets do not have, in order)."""
    import pypdfium2

    count, lost, file = 0, [], pypdfium2.PdfDocument(pdf)
    for leaf in leaves:
        text, at = "", 0
        for sheet in leaf["sheets"]:  # a line may go on on the next sheet: the foot must not stand in it
            foot = squeezed(f"{leaf['foot']}{sheet + 1}")
            text += squeezed(file[sheet].get_textpage().get_text_range()).removeprefix(foot)
        article = BeautifulSoup((html / f"{leaf['doc']}.html").read_text(encoding="utf-8"), "html.parser").article
        boxes = (line for box in article.find_all("pre") for line in box.get_text().splitlines())
        for line in filter(str.strip, boxes):
            count, here = count + 1, text.find(squeezed(line), at)
            at = at if here < 0 else here + len(squeezed(line))
            lost += [f"{leaf['doc']}: cut or lost: {line}"] if here < 0 else []
    return count, lost


# --- The command ----------------------------------------------------------------------------------


def offer(html: Path, said: str) -> bool:
    """Write this into the built home page's place for it. False where there is none."""
    page = home(html)
    old = page.read_text(encoding="utf-8")
    told, places = OFFER.subn(lambda found: found[1] + said + found[2], old)
    if told != old:
        with whole_file(page) as new:
            new.write_text(told, encoding="utf-8")
    return bool(places)


def make(root: Path, html: Path, paper: str) -> int:
    """Print, check, put in place; a Problem leaves no PDF and no offer behind."""
    pages = contents(root)
    check_built(root, html, [doc for _, doc in pages])
    stamp_file, begun = root / "_build" / "book-stamp.json", time.monotonic()
    noted = book.read_json(stamp_file)
    whole = noted.get("site") == book.site_key(html)
    offer(html, "")
    (html / NAME).unlink(missing_ok=True)
    try:
        print(f"Printing {len(pages)} pages of {html} on {paper}", flush=True)
        pdf, leaves, dropped = print_book(root, html, pages, paper)
        count, lost = missing_lines(html, pdf, leaves)
        faults = [f"{leaf['doc']}: {fault}" for leaf in leaves for fault in leaf["faults"]] + lost
        if faults:
            more = f"\n  and {len(faults) - 30} more" if len(faults) > 30 else ""
            raise Problem("No PDF was made:\n\n  " + "\n  ".join(faults[:30]) + more)
        pdf, sheets = finish(pdf, root), leaves[-1]["sheets"].stop
        with whole_file(html / NAME) as new:
            new.write_bytes(pdf)
        link = Path(os.path.relpath(html / NAME, home(html).parent)).as_posix()
        said = f'<p><a href="{link}">The whole book as one PDF</a> ({sheets} pages, {len(pdf) / 1e6:.0f} MB)</p>'
        if not offer(html, said):
            print(f'Note: {home(html)} has no <div id="book-pdf"></div>, so nothing offers the PDF.')
    finally:
        if whole:  # what `make book` left, and what was done here: nothing that it would have to build again
            book.write_json(stamp_file, noted | {"site": book.site_key(html)})
    print(
        f"{count} lines of code and output are in it, whole. "
        f"Links to files that are not in it, most of them to a picture's own file, were left out: {dropped}."
    )
    print(f"{sheets} sheets, {len(pdf) / 1e6:.1f} MB, {time.monotonic() - begun:.0f} s: {html / NAME}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the book's folder")
    parser.add_argument("--paper", choices=sorted(PAPERS), default="A4")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    return running.command(root, "make pdf", lambda: make(root, root / "_build" / "html", options.paper))


if __name__ == "__main__":
    sys.exit(main())
