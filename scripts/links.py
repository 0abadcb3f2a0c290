"""Ask every other site that the book links to whether the page is still there, and follow all links within the book.

    make links                   or: .venv/bin/python scripts/links.py [--list]

Collected from the pages, the notebooks, README, CONTRIBUTING, the bibliography, the citation file, the papers' tables
and the docstrings. Asked politely: one question at a time to a host, a pause between two, three more tries for a busy
or broken server, which may say itself how long to wait. book/link-exceptions.toml lists what is treated apart, and why.
Links to the book's own repository are looked up in the working tree; those within the built pages are followed where
the book was built. Exit status 1 for a broken link, 2 without a network.

Sphinx's linkcheck builder is not used: it sees no README and no citation file, runs only as a build of its own, and its
exceptions have no reasons and never grow old.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import requests
import yaml
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

sys.path.insert(0, str(Path(__file__).parent))
import notebook_rules

import book

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where Sphinx brings the same thing
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
EXCEPTIONS = "book/link-exceptions.toml"
SOURCES = ("book/*.md", "book/solutions/*.md", "README.md", "CONTRIBUTING.md", "CITATION.cff")
SOURCES += ("book/references.bib", "book/papers/*.csv", "vitutils/*.py", "vitutils/*.md", "studies/*.py")
LINK = re.compile(r"https?://[^\s<>\"'`\\|{}^\[\]]+")
AGENT = "Mozilla/5.0 (compatible; link check of a book; one question at a time)"
BUSY = (429, 500, 502, 503, 504)
PERMANENT = (301, 308)


# --- what the book links to ---


def text_of(path: Path) -> str:
    """What of a file may hold links for readers: a notebook's cells, a module's docstrings, else all."""
    if path.suffix == ".ipynb":
        return "\n".join(cell["source"] for cell in notebook_rules.read(path)["cells"])
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse(content)) if isinstance(node, kinds)]
        return "\n".join(ast.get_docstring(node) or "" for node in nodes)
    return content


def addresses(text: str) -> list[str]:
    """Every address in a text, without the punctuation that ends a sentence and a bracket that it did not open."""
    found = []
    for match in LINK.finditer(text):
        address = match[0]
        while address[-1] in ".,;:!?*)_":
            if address[-1] == ")" and address.count("(") >= address.count(")"):
                break
            address = address[:-1]
        # [a](https://a.org)(b) or a table's cell: what follows an unopened bracket is not the address
        depth = 0
        for place, letter in enumerate(address):
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if depth < 0:
                address = address[:place]
                break
        found.append(address)
    return found


def collect(root: Path) -> dict[str, list[str]]:
    """{address: the files that name it}; an address's #part is left off, as no page is read.

    Raises ValueError for a chapter that cannot be read.
    """
    found: dict[str, list[str]] = {}
    pages = {path for pattern in SOURCES for path in root.glob(pattern)}
    for path in sorted(pages | {*notebook_rules.notebook_paths(root)}):
        for address in addresses(text_of(path)):
            files = found.setdefault(urldefrag(address)[0], [])
            if path.relative_to(root).as_posix() not in files:
                files.append(path.relative_to(root).as_posix())
    return dict(sorted(found.items()))


# --- the book's own address ---


def home(root: Path) -> tuple[str, str]:
    """The book's repository and branch, from _config.yml."""
    repository = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    return repository["url"].rstrip("/").removesuffix(".git"), repository["branch"]


def own_file(address: str, url: str, branch: str) -> str | None:
    """The file of the book that an address on GitHub or Colab shows; None for any other address."""
    owner = urlsplit(url).path
    for start in (f"{url}/blob/{branch}/", f"https://colab.research.google.com/github{owner}/blob/{branch}/"):
        if address.startswith(start):
            return unquote(address[len(start) :].partition("?")[0])
    return None


def missing_own(found: Iterable[str], root: Path) -> list[str]:
    """Addresses of the book's own files that are not there."""
    url, branch = home(root)
    named = {address: own_file(address, url, branch) for address in found}
    lacking = {address: file for address, file in named.items() if file and not (root / file).is_file()}
    return [f"{address}: no {file} in the book" for address, file in lacking.items()]


def internal(html: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the built pages: links within the book, #places included, and to its own files elsewhere."""
    wrong = book.look_at_pages(html)
    for path in sorted(html.rglob("*.html")):
        links = book.Page(path.read_text(encoding="utf-8")).links
        name = path.relative_to(html).as_posix()
        wrong += [f"{name}: {told}" for told in missing_own(dict.fromkeys(urldefrag(link)[0] for link in links), root)]
        notebook = root / Path(name).with_suffix(".ipynb")
        url, branch = home(root)
        if notebook.is_file():
            shown = f"https://colab.research.google.com/github{urlsplit(url).path}/blob/{branch}/"
            shown += notebook.relative_to(root).as_posix()
            wrong += [] if shown in links else [f"{name}: no button that opens {shown}"]
    return wrong


# --- exceptions ---


@dataclass(frozen=True)
class Rule:
    """An exception: which addresses, which answers count as good (none: they are not asked), and why."""

    pattern: re.Pattern
    reason: str
    accept: tuple[int, ...] = ()


def read_rules(path: Path) -> list[Rule]:
    """The list of exceptions. Raises ValueError for one without a reason, or with a pattern that is none."""
    if not path.is_file():
        return []
    rules = []
    for number, entry in enumerate(tomllib.loads(path.read_text(encoding="utf-8")).get("exception", []), 1):
        if len(str(entry.get("reason", "")).split()) < 4 or set(entry) - {"pattern", "reason", "accept"}:
            raise ValueError(f"{path.name}, exception {number}: expected pattern, a reason of some words, and accept")
        try:
            pattern = re.compile(entry["pattern"])
        except (KeyError, re.error) as error:
            raise ValueError(f"{path.name}, exception {number}: no pattern to match with ({error})") from None
        rules.append(Rule(pattern, entry["reason"], tuple(entry.get("accept", ()))))
    return rules


# --- asking ---


@dataclass(frozen=True)
class Answer:
    """What became of a question. status: 0 where nothing came back.  moved: the new address, if for good."""

    good: bool
    told: str
    status: int = 0
    moved: str = ""


class Patient(Retry):
    """Waits as long as a server asks for, but no longer than a minute."""

    def get_retry_after(self, response) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, 60)


class Asker:
    """Asks for pages: HEAD once, and where that fails GET, with retries.

    tries: how often again.  patience: seconds until an answer.  pause: seconds between two questions to a host.
    backoff: seconds before the second try, twice as long before each one more.
    """

    def __init__(self, tries: int = 3, patience: float = 20, pause: float = 0.5, backoff: float = 2):
        self.patience, self.pause = patience, pause
        self.session = requests.Session()
        self.session.headers["User-Agent"] = AGENT
        how = {"backoff_factor": backoff, "status_forcelist": BUSY, "raise_on_status": False}
        retry = Patient(tries, redirect=10, allowed_methods={"GET"}, **how)
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=32))

    def ask(self, address: str, accept: tuple[int, ...] = ()) -> Answer:
        for method in ("HEAD", "GET"):
            time.sleep(self.pause)
            try:
                with self.session.request(
                    method, address, timeout=self.patience, allow_redirects=True, stream=True
                ) as response:
                    status, steps = response.status_code, [step.status_code for step in response.history]
            except requests.RequestException as error:
                answer = Answer(False, reason(error))
                continue
            moved = response.url if steps and all(step in PERMANENT for step in steps) else ""
            answer = Answer(status < 400 or status in accept, f"answered {status}", status, moved)
            if answer.good:
                break
        return answer

    def ask_all(self, wanted: dict[str, tuple[int, ...]]) -> dict[str, Answer]:
        """An answer for each address; the hosts at once, the addresses of one host one after another."""
        hosts: dict[str, list[str]] = {}
        for address in wanted:
            hosts.setdefault(host_of(address), []).append(address)
        with ThreadPoolExecutor(16) as pool:
            parts = pool.map(lambda group: [(one, self.ask(one, wanted[one])) for one in group], hosts.values())
            return dict(answer for part in parts for answer in part)

    def reaches_any(self, hosts: Iterable[str]) -> bool:
        """Whether any of these hosts answers at all: whether there is a network. No retries."""
        for host in hosts:
            try:
                requests.head(host, timeout=min(5, self.patience), headers={"User-Agent": AGENT})
                return True
            except requests.RequestException:
                continue
        return False


def host_of(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/"


def reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.TooManyRedirects):
        return "sent on in a circle"
    return f"no connection ({type(error).__name__})"


# --- the command ---


def main(arguments: list[str] | None = None, asker: Asker | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder")
    parser.add_argument("--list", action="store_true", help="only list the addresses; ask nobody")
    given = parser.parse_args(arguments)
    root, asker = given.root.resolve(), asker or Asker()
    try:
        rules = read_rules(root / EXCEPTIONS)
        found = collect(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if given.list:
        for address, files in found.items():
            print(f"{address}  {', '.join(files)}")
        return 0

    broken = missing_own(found, root)
    html = root / "_build" / "html"
    if html.is_dir():
        wrong = internal(html, root)
        broken += wrong
        print(f"Within the built pages: {len(wrong)} broken.")
    else:
        print("The book is not built: links within its pages are followed after `make book`.")

    rule_of = {address: next((r for r in rules if r.pattern.match(address)), None) for address in found}
    wanted = {a: rule.accept if rule else () for a, rule in rule_of.items() if rule is None or rule.accept}
    hosts = [host for host, _ in Counter(map(host_of, wanted)).most_common()]
    answers: dict[str, Answer] = {}
    if wanted and not asker.reaches_any(hosts[:3]):
        names = ", ".join(urlsplit(host).netloc for host in hosts[:3])
        print(f"No network: {names} cannot be reached. Of {len(wanted)} links to other sites none was checked.")
    elif wanted:
        answers = asker.ask_all(wanted)
        bad = {address: answer for address, answer in answers.items() if not answer.good}
        broken += [f"{address}: {answer.told} ({', '.join(found[address])})" for address, answer in bad.items()]
        good = len(wanted) - len(bad)
        print(f"Other sites: {good} of {len(wanted)} links are good, on {len(hosts)} hosts.")
        for address, answer in answers.items():
            if answer.good and answer.moved:
                print(f"  moved for good: {address} -> {answer.moved}")
    for rule in rules:
        count = sum(one is rule for one in rule_of.values())
        if not count:
            print(f"  exception without a link, delete it: {rule.pattern.pattern}")
        elif not rule.accept:
            print(f"  not asked: {count} like {rule.pattern.pattern} ({rule.reason})")
    for told in broken:
        print(f"broken: {told}")
    return 1 if broken else 0 if answers or not wanted else 2


if __name__ == "__main__":
    sys.exit(main())
