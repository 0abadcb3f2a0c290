"""Open the built pages in Chromium, and in Firefox where it is there, and hold them against what their readers need.

    .venv/bin/python tools/pages.py [--only WORD] [--site FOLDER]

A server on this machine serves _build/html. Of each page it is asked: does it call another host, log an error, miss a
file; does axe-core find a fault, light, dark (colours), and at a phone's width (all but colours); how much does it
weigh; are its pictures sharp and its formulas set; does it scroll sideways on a phone; can all of it be used by
keyboard; do previous and next lead where the table of contents says; what would a link to it show elsewhere; does what
a reader can move answer to keys and mouse (moved.py). Once for the site: does the search find. Firefox is asked, at a
phone's width, for other hosts, errors, files, pictures, formulas and sideways scrolling, and what moves has to say
there what it says in Chromium. A table of the figures, then every fault; exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import http.server
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx_external_toc.parsing import parse_toc_yaml

import moved
import running

ROOT = Path(__file__).resolve().parent.parent
BARE, WHOLE = 1_200_000, 2_500_000  # bytes of a page without and with its figures, before any compression
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CARD = "_static/card.png"
TERMS = {  # what a reader may look for, and a page that must be among the answers
    "equivariance": "notebooks/01_convolution.html",
    "softmax": "notebooks/02_attention.html",
    "distillation": "notebooks/11_distillation.html",
    "rollout": "notebooks/10_looking_inside.html",
}
PATIENCE = 120_000  # milliseconds until a page or a search counts as stuck: a busy machine is no fault of a page
SOURCES = 3  # how many pages of source code are opened, the largest: one template makes them all
TABS = 400  # the most stops of the Tab key that a page is followed for
FIGURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg"}
NO_BROWSER = """No Chromium or Chrome on this machine (looked for: {names}).
    Debian, Ubuntu:  sudo apt install chromium        macOS:  brew install --cask chromium
or name one that is elsewhere:  CHROME=/path/to/chrome make {goal}"""
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge"]
ELSEWHERE = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
]
FIREFOX = [
    "firefox-esr",
    "firefox",
    "/Applications/Firefox.app/Contents/MacOS/firefox",
    r"C:\Program Files\Mozilla Firefox\firefox.exe",
]
NO_FIREFOX = (
    "No Firefox here (Debian: sudo apt install firefox-esr; or FIREFOX=/path): the pages are opened in Chromium only."
)
PREFERENCES = {"ui.prefersReducedMotion": 1}  # this protocol cannot ask for it page by page


class NoBrowser(ValueError):
    """There is none; the message says how to get one."""


def named_or_usual(variable: str, usual: list[str]) -> str | None:
    """The program that the environment's variable names, else the first of the usual ones that is there, else None.
    Raises NoBrowser where the named one is not there."""
    if named := os.environ.get(variable):
        if found := shutil.which(named):
            return found
        raise NoBrowser(f"{variable}={named} is not there, or cannot be run.")
    return next(filter(None, map(shutil.which, usual)), None)


def find_browser(goal: str = "pages") -> str:
    """The browser to drive: what CHROME names, else one of the usual names. Raises NoBrowser."""
    if found := named_or_usual("CHROME", BROWSERS + ELSEWHERE):
        return found
    raise NoBrowser(NO_BROWSER.format(names=", ".join(BROWSERS), goal=goal))


def find_firefox() -> str | None:
    """The Firefox to drive: what FIREFOX names, else one of the usual names, else None. Raises NoBrowser."""
    return named_or_usual("FIREFOX", FIREFOX)


def launch(playwright, browser: str):
    """Start it. Its sandbox needs a user who is not root."""
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=browser, args=[*flags, "--disable-dev-shm-usage"])


def launch_firefox(playwright, browser: str):
    """Start a Firefox as everyone has it, by WebDriver BiDi: playwright's own Firefox is a download of its own. Raises
    NoBrowser where it does not start, or speaks another version of that protocol than playwright."""
    from playwright.sync_api import Error

    try:
        running = playwright.firefox.launch(
            executable_path=browser, channel="moz-firefox", firefox_user_prefs=PREFERENCES, timeout=PATIENCE
        )
        running.new_context(viewport=PHONE).close()
    except Error as error:
        raise NoBrowser(
            f"{browser} cannot be driven, so the pages are opened in Chromium only: {error.message.splitlines()[0]}"
        ) from None
    return running


# --- the site -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(site: Path) -> Iterator[str]:
    """The folder over http, at an address of its own, as long as the block lasts."""
    quiet = {"protocol_version": "HTTP/1.1", "log_message": lambda *words: None}
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), quiet)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site))) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


def pages_of(site: Path) -> list[str]:
    """Every page a reader can come to, the index first. Not the theme's templates, not a page that only redirects; of
    the pages of source code the largest."""
    found = []
    for path in sorted(site.rglob("*.html"), key=lambda path: -path.stat().st_size):
        name = path.relative_to(site).as_posix()
        if not name.startswith("_static/") and 'http-equiv="Refresh"' not in path.read_text("utf-8")[:600]:
            found.append(name)
    sources = [name for name in found if name.startswith("_modules/") and name != "_modules/index.html"]
    return sorted({*found} - {*sources[SOURCES:]}, key=lambda name: ("/" in name, name.startswith("_modules"), name))


def order_of(root: Path) -> list[str]:
    """The pages in the order of the table of contents."""
    return [f"{re.sub(r'[.](md|ipynb)$', '', name)}.html" for name in parse_toc_yaml(root / "_toc.yml")]


# --- one page -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What was measured on one page, and what is wrong with it."""

    page: str
    bare: int = 0  # bytes without figures
    whole: int = 0  # bytes with them
    elsewhere: int = 0  # requests to other hosts
    axe: dict[str, int] = field(default_factory=dict)  # violations, by appearance
    pictures: int = 0
    formulas: int = 0
    stops: int = 0  # of the Tab key
    moved: dict[str, moved.Part] = field(default_factory=dict)  # what moves, and what it said
    faults: list[str] = field(default_factory=list)


class Tab:
    """A page in a fresh context (nothing cached), whose requests and errors are written down."""

    def __init__(self, browser, base: str, **options):
        self.base, self.context = base, browser.new_context(reduced_motion="reduce", **options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.asked: dict[str, str] = {}  # path: kind
        self.others: list[str] = []
        self.errors: list[str] = []
        self.page.route(lambda url: not url.startswith((base, "data:", "blob:")), self.refuse)
        self.page.on("request", self.note)
        self.page.on("response", lambda r: r.status >= 400 and self.errors.append(f"{r.status}: {self.short(r.url)}"))
        self.page.on("pageerror", lambda error: self.errors.append(f"script error: {error}"))
        self.page.on("console", self.hear)

    def short(self, url: str) -> str:
        return url.removeprefix(self.base)

    def refuse(self, route):
        self.others.append(route.request.url)
        route.abort()

    def note(self, request):
        if request.url.startswith(self.base):
            self.asked.setdefault(unquote(urlsplit(request.url).path[1:]), request.resource_type)

    def hear(self, message):
        # A missing file and a refused host are named elsewhere, with their address.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(f"console: {message.text[:200]}")

    def open(self, name: str):
        self.page.goto(self.base + name, wait_until="load")
        self.page.evaluate((Path(__file__).parent / "pages.js").read_text(encoding="utf-8") + "; null")
        self.page.evaluate("look.settle()")
        self.page.wait_for_timeout(150)

    def ask(self, what: str, *given):
        return self.page.evaluate(f"(given) => look.{what}(...given)", list(given))

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.context.close()


@functools.cache
def axe_script() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


# Whether colours can be read takes axe-core four fifths of its time: asked light and dark, not again on a phone; and in
# the dark nothing else is.
RULES = {
    "dark": "runOnly: {type: 'rule', values: ['color-contrast', 'link-in-text-block']}",
    "phone": "rules: {'color-contrast': {enabled: false}}",
}


def axe(tab: Tab, appearance: str = "light") -> list[str]:
    """axe-core's violations, one line each: of all of its rules, or of those that this appearance can change."""
    if not tab.page.evaluate("!!window.axe"):
        tab.page.evaluate(axe_script() + "; null")
        tab.ask("thin")
    options = f"{{resultTypes: ['violations'], preload: false, {RULES.get(appearance, '')}}}"
    found = tab.page.evaluate(f"axe.run(document, {options}).then((done) => done.violations)")
    lines = []
    for rule in found:
        where = "; ".join(" ".join(map(str, node["target"])) for node in rule["nodes"][:2])
        lines.append(f"{rule['id']}, {len(rule['nodes'])} times: {rule['help']} ({where})")
    return lines


def weigh(tab: Tab, site: Path, seen: Seen) -> list[str]:
    """Bytes of all that the page loaded: `bare` without pictures, `whole` with them."""
    for name in tab.asked:
        path = site / (name or "index.html")
        if not path.is_file():
            continue
        size = path.stat().st_size
        seen.whole += size
        if path.suffix.lower() not in FIGURES:
            seen.bare += size
    faults = [f"weighs {seen.bare / 1e3:,.0f} kB without its figures"] if seen.bare > BARE else []
    return faults + ([f"weighs {seen.whole / 1e3:,.0f} kB with its figures"] if seen.whole > WHOLE else [])


def keyboard(tab: Tab, seen: Seen) -> list[str]:
    """The Tab key goes first to the skip link, then to search, colours, contents and text, and can be seen there."""
    faults, wanted = [], {"search", "theme", "sidebar", "content"}
    tab.page.evaluate("scrollTo(0, 0); document.activeElement?.blur()")
    for number in range(TABS):
        tab.page.keyboard.press("Tab")
        stop = tab.ask("stop")
        if stop is None:
            break
        seen.stops += 1
        if number == 0 and not stop["skip"]:
            faults.append(f"the first Tab goes to {stop['label']}, not to a skip link")
        wanted -= {name for name in wanted if stop[name]}
        if not stop["there"] or not stop["ring"]:
            faults.append(f"focus {'without a mark' if stop['there'] else 'out of sight'}: {stop['label']}")
    return list(dict.fromkeys(faults + [f"the Tab key does not reach the {name}" for name in sorted(wanted)]))[:8]


def use(tab: Tab) -> list[str]:
    """Open what opens, so that what it loads is seen; Escape closes it again."""
    faults, page = [], tab.page
    page.keyboard.press("Control+k")
    if page.locator("dialog#pst-search-dialog").count():
        if not page.locator("dialog#pst-search-dialog[open], input[name=q]:focus").count():
            faults.append("Ctrl+K does not open the search")
        page.keyboard.press("Escape")
        if page.locator("dialog#pst-search-dialog[open]").count():
            faults.append("Escape does not close the search")
    for toggle in page.locator(".article-header-buttons [data-bs-toggle=dropdown]:visible").all():
        toggle.click()
        opened = toggle.get_attribute("aria-expanded")
        page.keyboard.press("Escape")
        if (opened, toggle.get_attribute("aria-expanded")) != ("true", "false"):
            faults.append("a menu does not open, or Escape does not close it")
    return faults


def drawer(tab: Tab) -> list[str]:
    """On a phone the contents are behind a button: it opens them, Escape closes them."""
    button, dialog = tab.page.locator("button.primary-toggle:visible"), tab.page.locator("dialog[open]")
    if not button.count():
        return []
    button.first.click()
    faults = [] if dialog.count() else ["the contents do not open on a phone"]
    tab.page.keyboard.press("Escape")
    return faults + (["Escape does not close the contents on a phone"] if dialog.count() else [])


def neighbours(tab: Tab, name: str, order: list[str]) -> list[str]:
    """Previous and next lead where the table of contents says."""
    if name not in order:
        return []
    place, faults = order.index(name), []
    wanted = {"left-prev": order[place - 1] if place else "", "right-next": (order + [""])[place + 1]}
    for kind, goal in wanted.items():
        found = tab.short(tab.ask("link", f"a.{kind}"))
        if found != goal:
            faults.append(f"{kind.split('-')[1]} leads to '{found}', expected '{goal}'")
    return faults


def check_page(browser, base: str, site: Path, name: str, order: list[str]) -> Seen:
    """All that is asked of one page."""
    seen = Seen(name)
    with Tab(browser, base, viewport=DESK, color_scheme="light") as tab:
        tab.open(name)
        seen.faults += weigh(tab, site, seen)
        seen.faults += tab.ask("head", CARD) + tab.ask("pictures") + tab.ask("formulas")
        seen.pictures = tab.page.locator("main img").count()
        seen.formulas = tab.page.locator("span.math, div.math").count()
        seen.faults += neighbours(tab, name, order)
        appearances = {"light": axe(tab)}
        tab.page.emulate_media(color_scheme="dark")
        tab.page.evaluate("document.documentElement.dataset.theme = 'dark'")
        appearances["dark"] = axe(tab, "dark")
        tab.page.emulate_media(color_scheme="light")
        tab.page.evaluate("document.documentElement.dataset.theme = 'light'")
        seen.faults += keyboard(tab, seen) + use(tab)
    with Tab(browser, base, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True) as phone:
        phone.open(name)
        appearances["phone"] = axe(phone, "phone")
        seen.faults += [f"at 390 px: {fault}" for fault in phone.ask("sideways") + drawer(phone)]
    others, errors = use_parts(browser, base, site, name, seen)
    for appearance, violations in appearances.items():
        seen.axe[appearance] = len(violations)
        seen.faults += [f"axe, {appearance}: {violation}" for violation in violations]
    note(seen, tab.others + phone.others + others, tab.errors + phone.errors + errors)
    return seen


def note(seen: Seen, others: list[str], errors: list[str]) -> None:
    """Requests to other hosts, and errors, each of them once."""
    seen.elsewhere = len(others)
    seen.faults += [f"asks another host: {url}" for url in dict.fromkeys(others)]
    seen.faults += dict.fromkeys(errors)


def use_parts(browser, base: str, site: Path, name: str, seen: Seen) -> tuple[list[str], list[str]]:
    """Move what can be moved on a page, if anything can. Returns requests to other hosts, and errors."""
    if not moved.MOVES.search((site / name).read_text(encoding="utf-8")):
        return [], []
    with Tab(browser, base, viewport=DESK) as tab:
        tab.open(name)
        seen.moved = moved.use(tab)
    seen.faults += [fault for part in seen.moved.values() for fault in part.faults]
    return tab.others, tab.errors


def check_in_firefox(browser, base: str, site: Path, name: str) -> Seen:
    """What may be different in another browser, of one page."""
    seen = Seen(name)
    with Tab(browser, base, viewport=PHONE) as phone:
        phone.open(name)
        seen.faults += phone.ask("shown") + phone.ask("formulas")
        seen.faults += [f"at 390 px: {fault}" for fault in phone.ask("sideways")]
    others, errors = use_parts(browser, base, site, name, seen)
    note(seen, phone.others + others, phone.errors + errors)
    seen.faults = [f"in Firefox: {fault}" for fault in seen.faults]
    return seen


# --- the search ---------------------------------------------------------------------------------------------------


def check_search(browser, base: str, terms: dict[str, str]) -> list[str]:
    """The search leads to the right page."""
    faults = []
    for term, goal in terms.items():
        with Tab(browser, base, viewport=DESK) as tab:
            tab.page.goto(f"{base}search.html?q={term}", wait_until="load")
            try:
                tab.page.wait_for_selector("#search-results .search-summary:not(:empty)", timeout=PATIENCE)
                tab.page.wait_for_function("!window.Search || Search._pulse_status < 0", timeout=PATIENCE)
            except Exception:  # playwright's own TimeoutError
                faults.append(f"the search for '{term}' does not end")
                continue
            links = tab.page.locator("#search-results li a").evaluate_all("found => found.map((a) => a.href)")
            pages = [tab.short(url).partition("?")[0].partition("#")[0] for url in links]
            if goal not in pages:
                instead = ", ".join(pages[:4]) or "nothing"
                faults.append(f"the search for '{term}' does not find {goal}; it finds {instead}")
            faults += [f"the search asks another host: {url}" for url in tab.others] + tab.errors
    return [f"search.html: {fault}" for fault in dict.fromkeys(faults)]


# --- the command --------------------------------------------------------------------------------------------------


def shared(site: Path, start: Callable, jobs: list[str], work: Callable) -> dict[str, object]:
    """{job: work(browser, base, job)}, the work shared by two browsers, each of which start(playwright) brings."""
    from playwright.sync_api import sync_playwright

    waiting, done = iter(jobs), {}

    def drive(base: str) -> None:
        with sync_playwright() as playwright:
            try:
                browser = start(playwright)
                for job in waiting:
                    done[job] = work(browser, base, job)
                    print(".", end="", flush=True)
            except BaseException:
                list(waiting)  # the other one stops as well
                raise

    with server(site) as base, concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(drive, [base, base]))
    return done


def try_firefox(site: Path, rows: list[Seen], firefox: str | None) -> list[str]:
    """The faults in Firefox, where what moves has to say what it said in Chromium (`rows`); none, and a line that says
    why, where there is none, or one that cannot be driven."""
    if not firefox:
        print(f"\n{NO_FIREFOX}")
        return []
    print(f"\nOpening them in {firefox}", flush=True)
    jobs, faults = largest_first(site, [row.page for row in rows]), []
    try:
        done = shared(
            site,
            lambda playwright: launch_firefox(playwright, firefox),
            jobs,
            lambda running, base, name: check_in_firefox(running, base, site, name),
        )
    except NoBrowser as error:
        print(error)
        return []
    for row in rows:
        unlike = [f"in Firefox other than in Chromium: {line}" for line in moved.apart(row.moved, done[row.page].moved)]
        faults += [f"{row.page}: {fault}" for fault in done[row.page].faults + unlike]
    return faults


def largest_first(site: Path, names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: -(site / name).stat().st_size)


COLUMNS = "kB bare | with figures | elsewhere | axe light | dark | phone | pictures | formulas | Tab stops"


def table(rows: list[Seen]) -> str:
    """The figures, a line a page."""
    lines = [f"| page | {COLUMNS} |", "|---|" + "---:|" * (COLUMNS.count("|") + 1)]
    for row in rows:
        sizes = " | ".join(f"{size / 1e3:,.0f}" for size in (row.bare, row.whole))
        marks = " | ".join(str(row.axe[name]) for name in ("light", "dark", "phone"))
        counts = f"{row.pictures} | {row.formulas} | {row.stops}"
        lines.append(f"| {row.page} | {sizes} | {row.elsewhere} | {marks} | {counts} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html", help="the built pages")
    parser.add_argument("--only", default="", help="only pages with this in their name")
    options = parser.parse_args(arguments)
    where = options.site.absolute().parent
    if where.name == "_build":
        return running.command(where.parent, "make pages", lambda: look(options))
    return look(options)


def look(options: argparse.Namespace) -> int:
    """Open the pages and say what is wrong with them; 1 for faults. Raises ValueError without pages, or a browser."""
    site = options.site.resolve()
    if not (site / "index.html").is_file():
        raise ValueError(f"No built pages in {site}: run `make book` first.")
    browser = find_browser()
    began = time.monotonic()
    names = [name for name in pages_of(site) if options.only in name]
    firefox = find_firefox()
    print(f"Opening {len(names)} pages in {browser}", flush=True)
    terms, order = {} if options.only else TERMS, order_of(ROOT)

    def work(running, base: str, name: str):
        return check_page(running, base, site, name, order) if name else check_search(running, base, terms)

    jobs = ["", *largest_first(site, names)]  # the search first
    seen = shared(site, lambda playwright: launch(playwright, browser), jobs, work)
    rows = [seen[name] for name in names]
    print(f"\n{table(rows)}")
    faults = [f"{row.page}: {fault}" for row in rows for fault in row.faults] + seen[""]
    faults += try_firefox(site, rows, firefox)
    if faults:
        print(f"\n{len(faults)} faults:\n")
        print("\n".join(f"  {fault}" for fault in faults))
        return 1
    finds = ", and the search finds" if terms else ""
    print(f"\nNo fault on {len(rows)} pages{finds}. {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
