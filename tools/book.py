"""Build the book: execute the notebooks, render the pages, hold them against the rules.

    .venv/bin/python tools/book.py [--root FOLDER]

What plain `jupyter-book build` does not do, and this does:

* It executes one notebook after another. Here chapters that measure no time run side by side first (`ahead.py`).
* Its cache sees the notebooks' text only. Here an *execution key* is kept of all else that an output depends on
  (vitutils, results, the papers' numbers, drawings, requirements, scale, versions, data at hand); where it changed, the
  cache is thrown away.
* It can pass over a cell that failed, the second time most of all. Here every page is read anew (`--all`), a failure
  leaves no mark of success, and only an unchanged success is not built again.
* It knows the links that MyST resolved. Here every link, picture and script of the rendered pages is followed; a page
  that shows a traceback or stderr, or asks another host for anything, fails.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import ahead
import env
import running
from settings import look_at_settings
from vitutils.files import data_folders, system_folder, whole_file

# Everything whose version may change what a cell prints or draws.
PACKAGES = "torch torchvision timm vit-pytorch numpy scipy scikit-learn scikit-image matplotlib pillow safetensors"
PACKAGES += " ipykernel"
# What `make pages` and `make pdf` bring with them: it looks at finished pages and changes none.
ONLOOKERS = {"playwright", "greenlet", "pyee", "axe-playwright-python", "pikepdf", "lxml", "pypdfium2"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
WARNING = re.compile(r"^(?:(?P<where>.*?): )?(?P<kind>WARNING|ERROR|CRITICAL|SEVERE): (?P<what>.*)$")
EXECUTED = re.compile(r"^.*[/\\](?P<name>.+\.\w+): (?P<what>Execut\w+|Using cached) notebook( in (?P<seconds>\d+))?")
ERROR = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Kernel|Timeout)\b(: .*\S|$)")
CELL_LINE = 10_000  # a notebook's warning stands at line 10000 * (cell number) + line
LONGEST = 500  # characters of one problem: an undecodable notebook is all of it a line
BESIDE = "files beside the notebooks"
PUBLISHING = ("PUBLISH", "FALLBACKS")  # what book/_ext/fallbacks.py is asked for

# --- what an output depends on --------------------------------------------------------------------


def digest_files(root: Path, paths: Iterable[Path]) -> str:
    key = hashlib.sha256()
    for path in sorted(paths):
        key.update(path.relative_to(root).as_posix().encode() + b"\0")
        key.update(hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).digest())  # an editor's line ends
    return key.hexdigest()


def files_under(root: Path, *names: str) -> list[Path]:
    """All files of these folders (or these files), without caches and hidden ones."""
    found = [root / name for name in names]
    for name in names:
        for folder, folders, files in os.walk(root / name):
            folders[:] = [f for f in folders if not f.startswith(".") and not f.endswith((".egg-info", "__pycache__"))]
            found += [Path(folder, f) for f in files if not f.startswith(".") and not f.endswith(".pyc")]
    return [path for path in found if path.is_file()]


def resolved_scale() -> str:
    """The scale that the notebooks will run at. An unknown one is a ValueError, before any of them runs."""
    scale = os.environ.get("VITBOOK_SCALE", "")
    if scale in running.LIMITS:
        return scale
    from vitutils.runtime import find_device, find_scale  # decided in one place; imports torch: seconds

    return find_scale(find_device())


def data_at_hand() -> list:
    """Which data sets and weights could be read from disk: names only, and where."""
    seen = []
    for folder in map(Path.resolve, [*data_folders(), system_folder()]):
        parts = [part for part in (folder, folder / "images", folder / "weights") if part.is_dir()]
        # the features that chapters keep for themselves, under a key of all they depend on, are no data
        found = [p for part in parts for p in part.iterdir() if not p.name.startswith(".") and p.name != "features"]
        seen.append([str(folder), sorted(p.relative_to(folder).as_posix() for p in found)])
    return seen


def installed() -> dict[str, str]:
    return {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}


def beside_notebooks(root: Path) -> list[Path]:
    return [path for path in files_under(root, "notebooks") if path.suffix != ".ipynb"]


def what_a_run_may_change(root: Path) -> dict:
    """The part of the key that is taken again after a run: data that a chapter fetched, files that it wrote."""
    return {"data": data_at_hand(), BESIDE: digest_files(root, beside_notebooks(root))}


def execution_key(root: Path) -> dict:
    """All that an executed cell depends on, besides the notebook (jupyter-cache sees that)."""
    versions = installed()
    drawings = [p for p in files_under(root, "book/_static") if p.suffix == ".svg"]  # plot.diagram shows them
    return {
        "vitutils": digest_files(root, files_under(root, "vitutils")),
        "results": digest_files(root, files_under(root, "results", "book/papers")),
        "drawings": digest_files(root, drawings),
        "requirements.txt": digest_files(root, files_under(root, "requirements.txt")),
        "VITBOOK_SCALE": resolved_scale(),
        "versions": [sys.version.split()[0], *(f"{p} {versions.get(p)}" for p in PACKAGES.split())],
        **what_a_run_may_change(root),
    }


def page_sources(root: Path) -> str:
    """All that the finished pages depend on besides the cells' outputs."""
    skip = {"_build", "build", "tests", "studies", "node_modules", "__pycache__"}
    tops = [p.name for p in root.iterdir() if not p.name.startswith(".") and p.name not in skip]
    others = sorted(item for item in installed().items() if item[0] not in ONLOOKERS)
    paths = set(files_under(root, *(t for t in tops if not t.endswith(".egg-info")))) - set(beside_notebooks(root))
    return digest_files(root, paths) + hashlib.sha256(repr(others).encode()).hexdigest()


def cache_state(cache: Path) -> int:
    """When jupyter-cache last wrote; a plain `jupyter-book build` in between shows, whatever it ran with."""
    database = cache / "global.db"
    return database.stat().st_mtime_ns if database.exists() else 0


def site_key(html: Path) -> str:
    """What stands in the output folder: names, sizes, times."""
    stats = ((p.relative_to(html).as_posix(), p.stat()) for p in sorted(html.rglob("*")) if p.is_file())
    return hashlib.sha256(repr([(n, s.st_size, s.st_mtime_ns) for n, s in stats]).encode()).hexdigest()


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value) -> None:
    with whole_file(path) as new:
        new.write_text(json.dumps(value, indent=1), encoding="utf-8")


# --- building, and reading what the build says ----------------------------------------------------


# Ends when this script does, however that ends; the kernels see to it themselves. It reads what `build` never writes.
JUPYTER_BOOK = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from jupyter_book.cli.main import main
main()
"""


def build(root: Path, log: Path, scale: str = "cpu") -> tuple[int, list[str]]:
    """Run jupyter-book; keep all it says in `log`, show what a waiting reader wants to know."""
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", str(root)]
    command += ["--all", "-W", "--keep-going", "-n", "--path-output", str(root)]
    lines = []
    with log.open("w", encoding="utf-8") as file, running.kernels_environment() as environment:
        environment[running.LIMIT] = str(running.cell_limit(scale))
        # A session of its own: Ctrl-C comes to this script alone, which ends the rest.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            command, cwd=root, env=environment, encoding="utf-8", errors="replace", start_new_session=True, **pipes
        )
        try:
            for line in process.stdout:
                line = ANSI.sub("", line.rstrip("\n"))
                lines.append(line)
                file.write(line + "\n")
                if seen := EXECUTED.match(line):
                    cached = "unchanged, outputs from the cache" if seen["what"] == "Using cached" else "executing"
                    print(f"  {seen['name']}: {seen['seconds'] + ' s' if seen['seconds'] else cached}", flush=True)
            return process.wait(), lines
        finally:
            running.end(process)
            process.stdin.close()
            process.stdout.close()


def cell_name(root: Path, where: str) -> str:
    """'…/04_patches.ipynb:20003' -> 'notebooks/04_patches.ipynb, cell 2 (`setup`)'."""
    path, _, line = where.rpartition(":") if re.search(r":\d+$", where) else (where, "", "")
    short = Path(path).as_posix().removeprefix(f"{root.as_posix()}/")
    if not line:
        return short
    if not path.endswith(".ipynb"):
        return f"{short}, line {line}"
    number, cells = int(line) // CELL_LINE, read_json(Path(path)).get("cells", [])
    if not 0 < number <= len(cells):
        return short
    return f"{short}, cell {number} (`{cells[number - 1].get('id', '')}`)"


def problems_in(root: Path, code: int, lines: list[str]) -> list[str]:
    """Everything that failed, in a reader's words, each once; the last error with words where Sphinx itself ended."""
    found: list[str] = []
    for match in filter(None, map(WARNING.match, lines)):
        where, what = match["where"] or "", match["what"].removesuffix(" [mystnb.exec]")
        if "Executing notebook failed" in what or "Notebook exception traceback saved" in what:
            continue  # book/_ext/runner.py has said why, and in which cell
        what = what if len(what) <= LONGEST else what[:LONGEST] + " …"
        found.append(f"{cell_name(root, where)}: {what}" if where else what)
    if code and ("Exception occurred:" in lines or not found):
        errors = [line.strip() for line in lines if ERROR.match(line.strip())]
        errors = errors or [line for line in lines if "error" in line.lower()] or lines
        if not any("myst_nb.core.execute.base.ExecutionError" in line for line in errors):
            found += errors[-1:] or ["it stopped without a word"]
    if code < 0:
        found.append(f"jupyter-book itself was ended by signal {-code}, as by a system that runs out of memory")
    return list(dict.fromkeys(found))


# --- looking at the pages -------------------------------------------------------------------------

OFFLINE = "the book must be readable without the network"
ELSEWHERE = re.compile(r"^(https?:)?//")
HAS_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|//)")
LOADS = {"img", "script", "iframe", "source", "video", "audio", "embed", "object", "track", "link"}
NO_LOADS = {"canonical", "next", "prev", "search", "index"}  # links of a page's head
FAULTS = {
    "traceback": "shows a traceback; catch the error in the cell and print its message",
    "stderr": "shows stderr output",
    "application/vnd.jupyter.widget": "holds a widget, which loads scripts from another host: use plain tqdm",
}


class Page(HTMLParser):
    """Collects a page's anchors, its links, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads, self.faults = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        words = found.get("class", "").split() + re.findall("application/vnd.jupyter.widget", found.get("type", ""))
        self.faults += [FAULTS[word] for word in words if word in FAULTS]
        if tag == "a":
            self.links += [found["href"]] * ("href" in found)
        elif tag in LOADS and found.get("rel") not in NO_LOADS:
            names = ["href"] if tag == "link" else ["src", "data", "poster"]
            self.loads += [found[name] for name in names if found.get(name)]


def look_at_pages(html: Path) -> list[str]:
    """Broken links, other hosts, tracebacks: what is wrong with the rendered site."""
    html = html.resolve()  # _build may be a link to another disk
    files = [path for path in sorted(html.rglob("*.html")) if path.parts[len(html.parts)] != "_static"]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in files}
    found = []
    for path, page in pages.items():
        name = path.relative_to(html).as_posix()
        found += [f"{name}: {fault}" for fault in page.faults]
        found += [f"{name}: loads {url}; {OFFLINE}" for url in page.loads if ELSEWHERE.match(url)]
        for url in page.links + page.loads:
            if HAS_SCHEME.match(url):
                continue
            place, anchor = urldefrag(url)
            target = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or not target.is_relative_to(html):
                found.append(f"{name}: broken link {url}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                found.append(f"{name}: broken link {url} (no such place on that page)")
    return list(dict.fromkeys(found))


# --- the command ----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=env.ROOT, help="the book's folder")
    root = parser.parse_args(arguments).root.resolve()
    known = env.surroundings(os.environ).items()  # folders by their whole paths, a home that can be written
    os.environ.update({name: value for name, value in known if name in os.environ or name == "HOME"})
    if re.search(r"\?|%[0-9A-Fa-f]{2}", str(root)):  # jupyter-cache writes the path into a database's address
        print(f"The book cannot be built in {root}: its cache misreads `?` and `%20` in a path. Rename the folder.")
        return 2
    return running.command(root, "make book", partial(make, root))


def say_where(html: Path) -> int:
    index = html / "index.html"
    print(f"\nThe book: {index}\nOpen this address in a browser:\n\n    {index.as_uri()}\n")
    print(f"From another machine: python3 -m http.server -d {os.path.relpath(html)}")
    return 0


def say_problems(problems: list[str], most: int = 40) -> int:
    print(f"\nThe book was not built: {len(problems)} problem{'s' * (len(problems) > 1)}.\n")
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    print("\n".join(f"  {problem}" for problem in problems[:most] + more))
    return 1


def changes(noted: dict, key: dict, cache: Path) -> list[str]:
    """What is not as it was when the cache was written, in words; nothing where there is no cache."""
    if not cache.exists():
        return []
    changed = [name for name in key if noted.get("key", {}).get(name) != key[name]]
    if not changed and noted.get("cache") != cache_state(cache):
        changed = ["the cache, by another command or by a build that did not come to its end"]
    return changed


def make(root: Path) -> int:
    """Build what is not built already. The exit status: 0, or 1 for faults of the book. ValueError: asked wrongly."""
    target, begun = root / "_build", time.monotonic()
    html, cache, log = target / "html", target / ".jupyter_cache", target / "book.log"
    key_file, stamp_file = target / "execution-key.json", target / "book-stamp.json"
    key, sources = execution_key(root), page_sources(root)
    running.cell_limit(key["VITBOOK_SCALE"])
    asked = {name: os.environ.get(name, "") for name in PUBLISHING}
    if read_json(stamp_file) == {"key": key, "sources": sources, "asked": asked, "site": site_key(html)}:
        print("Nothing changed since the last build.")
        return say_where(html)
    if problems := look_at_settings(root):
        return say_problems(problems)

    stamp_file.unlink(missing_ok=True)
    if changed := changes(read_json(key_file), key, cache):
        print(f"Changed: {', '.join(changed)}. All notebooks are executed anew.")
        shutil.rmtree(cache)
    # A page that left the table of contents must not stay behind.
    for folder in (html, target / "jupyter_execute", target / ".doctrees"):
        shutil.rmtree(folder, ignore_errors=True)

    print(f"Building the book at scale {key['VITBOOK_SCALE']} (log: {log})", flush=True)
    write_json(key_file, {"key": key, "cache": cache_state(cache)})
    try:
        ahead.ahead(root, key["VITBOOK_SCALE"])
        code, lines = build(root, log, key["VITBOOK_SCALE"])
    finally:
        # What a notebook fetched or wrote belongs to what it was executed with.
        key |= what_a_run_may_change(root)
        write_json(key_file, {"key": key, "cache": cache_state(cache)})
    if problems := problems_in(root, code, lines) or look_at_pages(html):
        say_problems(problems)
        print(f"\nAll that was printed: {log}")
        return 1
    write_json(stamp_file, {"key": key, "sources": sources, "asked": asked, "site": site_key(html)})
    print(f"Built in {time.monotonic() - begun:.0f} s.")
    return say_where(html)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal may know less than a path or an error says
    sys.exit(env.run(main))
