"""Build the book: execute the notebooks, render the pages, hold them against the rules.

    .venv/bin/python scripts/book.py [--root FOLDER]

What plain `jupyter-book build` does not do, and this does:

* Its cache sees the notebooks' text only. Here an *execution key* is kept of all else that an
  output depends on (vitutils, results, the papers' numbers, drawings, requirements, scale, versions, data at
  hand); where it changed, the cache is thrown away.
* It can pass over a cell that failed, the second time most of all. Here every page is read anew
  (`--all`), a failure leaves no mark of success, and only an unchanged success is not built again.
* It knows the links that MyST resolved. Here every link, picture and script of the rendered pages
  is followed; a page that shows a traceback or stderr, or asks another host for anything, fails.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

sys.path.insert(0, str(Path(__file__).parent))
import env
import running
from settings import look_at_settings

# Everything whose version may change what a cell prints or draws.
PACKAGES = [
    "torch",
    "torchvision",
    "timm",
    "vit-pytorch",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
]
PACKAGES += ["matplotlib", "pillow", "safetensors", "ipykernel"]
# What `make pages` and `make pdf` bring with them: it looks at finished pages and changes none.
ONLOOKERS = {"playwright", "greenlet", "pyee", "axe-playwright-python", "pikepdf", "lxml", "pypdfium2"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
WARNING = re.compile(r"^(?:(?P<where>.*?): )?(?P<kind>WARNING|ERROR|CRITICAL|SEVERE): (?P<what>.*)$")
EXECUTED = re.compile(r"^(?P<path>.*\.(?:ipynb|md)): (?P<what>Executing|Executed|Using cached) notebook(?P<rest>.*)")
NOISE = re.compile(r"\[IPKernelApp\] WARNING")
ERROR = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Warning|Interrupt|Exit|Kernel|Timeout)\b(:|$)|^\w+ error:$")
PAGE = re.compile(r"^(?:reading sources|writing output)\.\.\. \[ *\d+%\] (?P<page>\S+)")
# A notebook's warning stands at line 10000 * (cell number) + line.
CELL_LINE = 10_000
LONGEST = 500  # characters of one problem: an undecodable notebook is all of it a line
BESIDE = "files beside the notebooks"
UNFINISHED = "a build that did not come to its end"  # in place of the cache's state, while a build is at work


# --- What an output depends on --------------------------------------------------------------------


def digest_files(root: Path, paths: list[Path]) -> str:
    key = hashlib.sha256()
    for path in sorted(paths):
        key.update(path.relative_to(root).as_posix().encode() + b"\0")
        key.update(hashlib.sha256(content(path).replace(b"\r\n", b"\n")).digest())  # an editor's line ends
    return key.hexdigest()


def content(path: Path) -> bytes:
    """A file's bytes. A link that leads nowhere is where it leads; a pipe would be waited for, and never read."""
    if path.is_file():
        return path.read_bytes()
    return os.fsencode(os.readlink(path)) if path.is_symlink() else b""


def files_under(root: Path, *names: str) -> list[Path]:
    """All files of these folders (or these files), without caches and hidden ones."""
    found = []
    for name in names:
        top = root / name
        if top.is_file():
            found.append(top)
        for folder, folders, files in os.walk(top):
            hidden = {"__pycache__"} | {f for f in folders if f.startswith(".") or f.endswith(".egg-info")}
            folders[:] = sorted(set(folders) - hidden)
            found += [Path(folder, f) for f in files if not f.startswith(".") and not f.endswith(".pyc")]
    return found


def resolved_scale() -> str:
    """The scale that the notebooks will run at. An unknown one is a ValueError, before any of them runs."""
    scale = os.environ.get("VITBOOK_SCALE", "")
    if scale in {"smoke", "cpu", "gpu"}:
        return scale
    from vitutils.runtime import find_device, find_scale  # decided in one place; imports torch: seconds

    return find_scale(find_device())


def data_at_hand() -> list:
    """Which data sets and weights could be read from disk: names only, and where."""
    seen = []
    for folder in map(Path.resolve, [*running.data_folders(), running.system_folder()]):
        names = []
        for part in (folder, folder / "images", folder / "weights"):
            if part.is_dir():
                # the features that chapters keep for themselves, under a key of all they depend on, are no data
                found = (p.name for p in part.iterdir() if not p.name.startswith(".") and p.name != "features")
                names += sorted(f"{part.name}/{name}" for name in found)
        seen.append([str(folder), names])
    return seen


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def beside_notebooks(root: Path) -> list[Path]:
    return [path for path in files_under(root, "notebooks") if path.suffix != ".ipynb"]


def what_a_run_may_change(root: Path) -> dict:
    """The part of the key that is taken again after a run: data that a chapter fetched, files that it wrote."""
    return {"data": data_at_hand(), BESIDE: digest_files(root, beside_notebooks(root))}


def execution_key(root: Path) -> dict:
    """All that an executed cell depends on, besides the notebook (jupyter-cache sees that)."""
    drawings = [p for p in files_under(root, "book/_static") if p.suffix == ".svg"]  # plot.diagram shows them
    return {
        "vitutils": digest_files(root, files_under(root, "vitutils")),
        "results": digest_files(root, files_under(root, "results", "book/papers")),
        "drawings": digest_files(root, drawings),
        "requirements.txt": digest_files(root, files_under(root, "requirements.txt")),
        "VITBOOK_SCALE": resolved_scale(),
        "versions": [sys.version.split()[0], *(f"{p} {version_of(p)}" for p in PACKAGES)],
        **what_a_run_may_change(root),
    }


def page_sources(root: Path) -> str:
    """All that the finished pages depend on besides the cells' outputs."""
    skip = {"_build", "build", "tests", "studies", "node_modules", "__pycache__"}
    tops = [p.name for p in root.iterdir() if not p.name.startswith(".") and p.name not in skip]
    tops = [name for name in tops if not name.endswith(".egg-info")]
    others = (d for d in importlib.metadata.distributions() if d.name.lower().replace("_", "-") not in ONLOOKERS)
    installed = sorted(f"{d.name} {d.version}" for d in others)
    paths = set(files_under(root, *tops)) - set(beside_notebooks(root))  # those are in the execution key
    return digest_files(root, list(paths)) + hashlib.sha256(repr(installed).encode()).hexdigest()


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
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=1), encoding="utf-8")
    new.replace(path)


# --- Building and reading what the build says -----------------------------------------------------


# Ends when this script does, however that ends; the kernels see to it themselves. It reads what `build` never writes.
JUPYTER_BOOK = """
import os, threading

def wait():
    os.read(0, 1)
    os._exit(1)

threading.Thread(target=wait, daemon=True).start()
from jupyter_book.cli.main import main

main()
"""


def build(root: Path, log: Path, scale: str = "cpu") -> tuple[int, list[str]]:
    """Run jupyter-book; keep all it says in `log`, show what a waiting reader wants to know."""
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", str(root)]
    command += ["--all", "-W", "--keep-going", "-n", "--path-output", str(root)]
    limits = {running.LIMIT: str(running.cell_limit(scale))}
    lines = []
    with log.open("w", encoding="utf-8") as file, running.kernels_environment() as environment:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=environment | limits,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to this script alone, which ends the rest
        )
        try:
            for line in process.stdout:
                line = ANSI.sub("", line.rstrip("\n"))
                if NOISE.match(line):
                    continue
                lines.append(line)
                file.write(line + "\n")
                if seen := EXECUTED.match(line):
                    name = Path(seen["path"]).name
                    if seen["what"] == "Executing":
                        print(f"  {name}: executing", flush=True)
                    elif seconds := re.search(r"in ([\d.]+) seconds", seen["rest"]):
                        print(f"  {name}: {float(seconds[1]):.0f} s", flush=True)
                    else:
                        print(f"  {name}: unchanged, outputs from the cache", flush=True)
            return process.wait(), lines
        finally:
            running.end(process)
            process.stdin.close()
            process.stdout.close()


def cell_name(root: Path, where: str) -> str:
    """'…/04_patches.ipynb:20003' -> 'notebooks/04_patches.ipynb, cell 2 (`setup`)'."""
    path, _, line = where.rpartition(":") if re.search(r":\d+$", where) else (where, "", "")
    short = Path(path).as_posix()
    if Path(path).is_absolute() and Path(path).is_relative_to(root):
        short = Path(path).relative_to(root).as_posix()
    if not line:
        return short
    if not path.endswith(".ipynb"):
        return f"{short}, line {line}"
    number = int(line) // CELL_LINE
    cells = read_json(Path(path)).get("cells", [])
    if not 0 < number <= len(cells):
        return short
    return f"{short}, cell {number} (`{cells[number - 1].get('id', '')}`)"


def crash(lines: list[str]) -> str:
    """The error that ended Sphinx, and the page it was at; empty where none did, or where runner.py has said it."""
    start = next((i for i, line in enumerate(lines) if line.startswith("Exception occurred:")), None)
    if start is None:
        return ""
    until = next((i for i, line in enumerate(lines[start:], start) if line.startswith("The full traceback")), None)
    errors = [line for line in lines[start + 1 : until] if ERROR.match(line)] or lines[start + 1 : until]
    what = errors[-1].strip() if errors else "it stopped without a word"
    if what.startswith("myst_nb.core.execute.base.ExecutionError"):
        return ""
    pages = [found["page"] for line in lines[:start] if (found := PAGE.match(line))]
    if env.DISK.search(what):
        what = f"Disk full ({what}). Free some space, or let _build be a link to another disk"
    return f"{pages[-1]}: {what}" if pages else what


def problems_in(root: Path, code: int, lines: list[str]) -> list[str]:
    """Everything that failed, in a reader's words, each once."""
    found: list[str] = []
    for line in lines:
        match = WARNING.match(line)
        if not match:
            continue
        where, what = match["where"] or "", match["what"].removesuffix(" [mystnb.exec]")
        if "Executing notebook failed" in what or "Notebook exception traceback saved" in what:
            continue  # book/_ext/runner.py has said why, and in which cell
        what = what if len(what) <= LONGEST else what[:LONGEST] + " …"
        item = f"{cell_name(root, where)}: {what}" if where else what
        if item not in found:
            found.append(item)
    if code and (ended := crash(lines)):
        found.append(ended)
    if code and not found:
        errors = [line for line in lines if ERROR.match(line)]
        errors = ([line for line in errors if not line.rstrip().endswith(":")] or errors)[-1:]
        reasons = errors or [line for line in lines if re.search(r"\b(error|exception)\b", line, re.I)]
        found = [line.strip() for line in (reasons or lines)[-5:] if line.strip()] or ["it stopped without a word"]
    if code < 0:
        found.append(f"jupyter-book itself was ended by signal {-code}, as by a system that runs out of memory")
    return found


# --- Looking at the pages -------------------------------------------------------------------------


OFFLINE = "the book must be readable without the network"
ELSEWHERE = re.compile(r"^(https?:)?//")
HAS_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|//)")
CSS_LOADS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")


class Page(HTMLParser):
    """Collects a page's anchors, its links, and what it loads."""

    LOADS = {"img", "script", "iframe", "source", "video", "audio", "embed", "object", "track"}

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.faults: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        classes = found.get("class", "").split()
        if "traceback" in classes:
            self.faults.append("shows a traceback; catch the error in the cell and print its message")
        if "stderr" in classes:
            self.faults.append("shows stderr output")
        if "application/vnd.jupyter.widget" in found.get("type", ""):
            self.faults.append("holds a widget, which loads scripts from another host: use plain tqdm")
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel", "") not in (
            "canonical",
            "next",
            "prev",
            "search",
            "index",
        ):
            self.loads.append(found.get("href", ""))
        elif tag in self.LOADS:
            self.loads += [found[name] for name in ("src", "data", "poster") if found.get(name)]

    handle_startendtag = handle_starttag


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
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or not target.is_relative_to(html):
                found.append(f"{name}: broken link {url}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                found.append(f"{name}: broken link {url} (no such place on that page)")
    for path in sorted(html.rglob("*.css")):
        for url in CSS_LOADS.findall(path.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{path.relative_to(html).as_posix()}: loads {url}; {OFFLINE}")
    return list(dict.fromkeys(found))


# --- The command ----------------------------------------------------------------------------------


def say_where(html: Path) -> None:
    index = html / "index.html"
    print(f"\nThe book: {index}\nOpen this address in a browser:\n\n    {index.as_uri()}\n")
    print(f"From another machine: python3 -m http.server -d {os.path.relpath(html)}")


def unnameable(root: Path) -> str:
    """Why jupyter-cache could not open its database here: it writes the path into an address. '' where it can."""
    if not re.search(r"\?|%[0-9A-Fa-f]{2}", str(root)):
        return ""
    return f"The book cannot be built in {root}: its cache misreads `?` and `%20` in a path. Rename the folder."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    here = Path(__file__).parent.parent
    parser.add_argument("--root", type=Path, default=here, help="the book's folder")
    root = parser.parse_args(arguments).root.resolve()
    if hasattr(os, "umask"):
        os.umask(os.umask(0o022) & 0o077)  # what is written here has to be read again
    os.environ.update(env.with_folders(env.with_home(dict(os.environ), env.ROOT)))
    if why := unnameable(root):
        print(why, file=sys.stderr)
        return 2
    try:
        with running.stoppable(), running.alone(root, "make book"):
            return make(root)
    except BrokenPipeError:  # nobody reads what is said
        raise
    except running.Busy as busy:
        print(busy, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"\nThe book was not built.\n\n  {running.in_words(error, root)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("\nStopped. The notebooks that ran to their end are kept.", file=sys.stderr)
        return getattr(stop, "status", 130)


def say_problems(problems: list[str], most: int = 40) -> int:
    count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
    print(f"\nThe book was not built: {count}.\n")
    for problem in problems[:most]:
        print(f"  {problem}")
    if len(problems) > most:
        print(f"  and {len(problems) - most} more")
    return 1


def changes(noted: dict, key: dict, cache: Path) -> list[str]:
    """What is not as it was when the cache was written, in words; nothing where there is no cache."""
    if not cache.exists():
        return []
    old = noted.get("key", {})
    changed = [name for name in key if old.get(name) != key[name]]
    if not changed and noted.get("cache") != cache_state(cache):
        changed = [UNFINISHED if noted.get("cache") == UNFINISHED else "the cache, by another command"]
    return changed


def make(root: Path) -> int:
    """Build what is not built already. The exit status: 0, 1 for faults of the book, 2 for what is asked wrongly."""
    target = root / "_build"
    html, cache, log = target / "html", target / ".jupyter_cache", target / "book.log"
    key_file, stamp_file = target / "execution-key.json", target / "book-stamp.json"
    begun = time.monotonic()

    try:
        key = execution_key(root)
        running.cell_limit(key["VITBOOK_SCALE"])
    except ValueError as error:
        print(error)
        return 2
    sources = page_sources(root)
    if read_json(stamp_file) == {"key": key, "sources": sources, "site": site_key(html)}:
        print("Nothing changed since the last build.")
        say_where(html)
        return 0
    if problems := look_at_settings(root):
        return say_problems(problems)

    stamp_file.unlink(missing_ok=True)
    if changed := changes(read_json(key_file), key, cache):
        word = "Left" if changed == [UNFINISHED] else "Changed"
        print(f"{word}: {', '.join(changed)}. All notebooks are executed anew.")
        shutil.rmtree(cache)
    # A page that left the table of contents must not stay behind.
    for folder in (html, target / "jupyter_execute", target / ".doctrees"):
        shutil.rmtree(folder, ignore_errors=True)

    print(f"Building the book at scale {key['VITBOOK_SCALE']} (log: {log})", flush=True)
    write_json(key_file, {"key": key, "cache": UNFINISHED})
    try:
        code, lines = build(root, log, key["VITBOOK_SCALE"])
    finally:
        # What a notebook fetched or wrote belongs to what it was executed with.
        key |= what_a_run_may_change(root)
        write_json(key_file, {"key": key, "cache": cache_state(cache)})
    problems = problems_in(root, code, lines)
    if not problems:
        problems = look_at_pages(html)
    if problems:
        say_problems(problems)
        print(f"\nAll that was printed: {log}")
        return 1
    write_json(stamp_file, {"key": key, "sources": sources, "site": site_key(html)})
    print(f"Built in {time.monotonic() - begun:.0f} s.")
    say_where(html)
    return 0


if __name__ == "__main__":
    env.streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal may know less than a path or an error says
    sys.exit(env.run(main))
