"""`make links`: what is collected, how other sites are asked, which answers count; on a server of this machine."""

import http.server
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import links
import notebook_rules as rules

ROOT = Path(__file__).resolve().parents[1]
CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


class Site(http.server.BaseHTTPRequestHandler):
    """/200 and the like answer so; the others as their names say."""

    asked: Counter
    over: threading.Event  # /slow answers only then

    def do_GET(self):
        self.asked[self.command, self.path] += 1
        times = self.asked[self.command, self.path]
        name = self.path.strip("/")
        status = int(name) if name.isdigit() else 200
        if name == "busy":
            status = 503 if times < 3 else 200
        elif name == "headless":
            status = 405 if self.command == "HEAD" else 200
        elif name in ("moved", "elsewhere"):
            status = 301 if name == "moved" else 302
        elif name == "circle":
            status = 302
        elif name == "slow":
            self.over.wait()
            return
        self.send_response(status)
        if name in ("moved", "elsewhere"):
            self.send_header("Location", "/200")
        if name == "circle":
            self.send_header("Location", "/circle")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    handler = type("Handler", (Site,), {"asked": Counter(), "over": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    handler.over.set()
    server.shutdown()
    server.server_close()


def quick(patience: float = 600) -> links.Asker:
    """Asks without pauses. It waits for an answer as long as a busy machine takes."""
    return links.Asker(tries=2, patience=patience, pause=0, backoff=0.01)


# --- asking ---


@pytest.mark.parametrize(
    ("name", "good", "told", "moved"),
    [
        ("200", True, "answered 200", False),
        ("404", False, "answered 404", False),
        ("403", False, "answered 403", False),
        ("busy", True, "answered 200", False),
        ("503", False, "answered 503", False),
        ("headless", True, "answered 200", False),
        ("moved", True, "answered 200", True),
        ("elsewhere", True, "answered 200", False),
        ("circle", False, "sent on in a circle", False),
        ("slow", False, "no answer in time", False),
    ],
)
def test_an_answer(site, name, good, told, moved):
    asker = quick(patience=0.1) if name == "slow" else quick()  # where the answer never comes
    answer = asker.ask(f"{site.address}/{name}")
    assert (answer.good, answer.told) == (good, told)
    assert answer.moved == (f"{site.address}/200" if moved else "")


def test_a_busy_server_is_asked_again_so_often_and_no_more(site):
    quick().ask(f"{site.address}/503")
    assert site.asked == {("HEAD", "/503"): 1, ("GET", "/503"): 3}
    quick().ask(f"{site.address}/200")
    assert site.asked["HEAD", "/200"] == 1 and site.asked["GET", "/200"] == 0


def test_no_connection_is_a_broken_link(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    answer = quick().ask(CLOSED)
    assert not answer.good and answer.told.startswith("no connection")


def test_a_host_is_asked_one_question_at_a_time_and_the_hosts_at_once(monkeypatch):
    """Counted around each question, not in a server: what a server does after its answer is nobody's question."""
    asked, most, lock, both = Counter(), Counter(), threading.Lock(), threading.Barrier(2)

    def ask(self, address, accept=()):
        host = links.host_of(address)
        with lock:
            asked[host] += 1
            most[host] = max(most[host], asked[host])
        if address.endswith("/0"):
            both.wait(600)  # for the other host's first question
        time.sleep(0.02)  # the next one could begin
        with lock:
            asked[host] -= 1
        return links.Answer(True, "answered 200", 200)

    monkeypatch.setattr(links.Asker, "ask", ask)
    addresses = {f"https://{host}.org/{number}": () for host in "ab" for number in range(8)}
    answers = quick().ask_all(addresses)
    assert answers.keys() == addresses.keys() and all(a.good for a in answers.values())
    assert most == {"https://a.org/": 1, "https://b.org/": 1}


# --- collecting ---


def test_addresses_in_a_text():
    text = """See [a](https://a.org/x_(y)), <https://b.org/z>. And https://c.org/d_e, (https://d.org); "https://e.org/?q=1#p".
    url = {https://f.org/g}, | https://g.org | `https://h.org/i`: [![b](https://i.org/b.svg)](https://j.org)"""
    assert links.addresses(text) == [
        "https://a.org/x_(y)", "https://b.org/z", "https://c.org/d_e", "https://d.org", "https://e.org/?q=1#p",
        "https://f.org/g", "https://g.org", "https://h.org/i", "https://i.org/b.svg", "https://j.org",
    ]  # fmt: skip


def test_the_books_own_links_are_collected():
    found = links.collect(ROOT)
    assert "book/references.bib" in found["https://arxiv.org/abs/2010.11929"]
    assert any(files == ["book/papers/checkpoints.csv"] for files in found.values())
    assert any("README.md" in files for files in found.values())
    assert not [address for address in found if not re.fullmatch(r"https://[\w.-]+\.[a-z]+(/\S*)?", address)]


def test_the_books_own_files_that_links_elsewhere_name_are_there():
    found = links.collect(ROOT)
    assert links.missing_own(found, ROOT) == []
    own = [links.own_file(address, *links.home(ROOT)) for address in found]
    assert len([file for file in own if file and file.endswith(".ipynb")]) == len(rules.notebook_paths(ROOT))


def test_every_exception_has_a_reason_and_a_link():
    exceptions, found = links.read_rules(ROOT / links.EXCEPTIONS), links.collect(ROOT)
    unused = [rule for rule in exceptions if not any(rule.pattern.match(address) for address in found)]
    if not links.home(ROOT)[0].startswith("https://github.com/your_org/"):  # a book that was made somebody's own
        unused = [rule for rule in unused if "your_org" not in rule.pattern.pattern]
    assert exceptions and not unused


@pytest.mark.parametrize("entry", ["pattern = 'a'", "pattern = '('\nreason = 'it is so, so'", "reason = 'a b c d e'"])
def test_an_exception_without_a_reason_or_a_pattern_is_refused(tmp_path, entry):
    (tmp_path / "list.toml").write_text(f"[[exception]]\n{entry}\n")
    with pytest.raises(ValueError, match="exception 1"):
        links.read_rules(tmp_path / "list.toml")


# --- the command ---

CONFIG = "repository:\n  url: https://github.com/me/my-book\n  branch: mine\n"
EXCEPTION = "[[exception]]\npattern = '{}'\nreason = 'because it is so'\n"


@pytest.fixture
def small(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_config.yml").write_text(CONFIG)
    return tmp_path


def run(small, capsys) -> tuple[int, str]:
    code = links.main(["--root", str(small)], quick())
    return code, capsys.readouterr().out


def test_the_command_says_what_is_broken_and_where(small, site, capsys):
    at = site.address
    (small / "README.md").write_text(f"[a]({at}/200) [b]({at}/404#place) [c]({at}/403) [d]({at}/moved)")
    (small / "book/page.md").write_text(f"[b]({at}/404) and [e]({at}/500)")
    exceptions = EXCEPTION.format(f"{at}/403") + "accept = [403]\n" + EXCEPTION.format(f"{at}/5")
    (small / links.EXCEPTIONS).write_text(exceptions + EXCEPTION.format("https://nobody"))
    code, said = run(small, capsys)
    assert code == 1
    assert "Other sites: 3 of 4 links are good, on 1 hosts." in said
    assert f"broken: {at}/404: answered 404 (README.md, book/page.md)" in said and said.count("broken:") == 1
    assert f"moved for good: {at}/moved -> {at}/200" in said
    assert f"not asked: 1 like {at}/5 (because it is so)" in said
    assert "exception without a link, delete it: https://nobody" in said
    assert not any(path == "/500" for _, path in site.asked)

    (small / "README.md").write_text(f"[a]({at}/200)")
    (small / "book/page.md").write_text("")
    assert run(small, capsys)[0] == 0


def test_without_a_network_one_line_says_so(small, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    (small / "README.md").write_text(f"[a]({CLOSED}/a) [b]({CLOSED}/b)")
    code, said = run(small, capsys)
    assert code == 2
    assert said.splitlines()[1:] == [
        "No network: 127.0.0.1:9 cannot be reached. Of 2 links to other sites none was checked."
    ]


def test_a_notebook_that_cannot_be_read_is_one_line_and_a_scratch_one_is_not_read(small, capsys):
    (small / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: notebooks/01_one\n")
    for name in ("01_one", "Untitled"):
        (small / f"notebooks/{name}.ipynb").write_text("")
    assert links.main(["--root", str(small)], quick()) == 1
    assert capsys.readouterr().err == "01_one.ipynb: is empty; expected a notebook\n"
    (small / "notebooks/01_one.ipynb").write_text('{"cells": [{"cell_type": "markdown", "source": "x"}]}')
    assert run(small, capsys)[0] == 0


def test_own_files_and_built_pages_are_followed(small, capsys):
    """A badge to a notebook that is not there, a place that no page has, a page whose button opens another notebook."""
    colab = "https://colab.research.google.com/github/me/my-book/blob/mine/notebooks"
    (small / "notebooks/01_one.ipynb").write_text('{"cells": []}')
    (small / "README.md").write_text(f"[one]({colab}/01_one.ipynb) [two]({colab}/02_two.ipynb)")
    (small / links.EXCEPTIONS).write_text(EXCEPTION.format("https://colab"))
    html = small / "_build/html"
    (html / "notebooks").mkdir(parents=True)
    (html / "index.html").write_text('<a href="notebooks/01_one.html#start">one</a>')
    (html / "notebooks/01_one.html").write_text(f'<h1 id="start">One</h1><a href="{colab}/01_one.ipynb">Colab</a>')
    code, said = run(small, capsys)
    assert code == 1 and [line for line in said.splitlines() if line.startswith("broken")] == [
        f"broken: {colab}/02_two.ipynb: no notebooks/02_two.ipynb in the book"
    ]
    (html / "notebooks/01_one.html").write_text(f'<h1 id="end">One</h1><a href="{colab}/1.ipynb">Colab</a>')
    assert links.internal(html, small) == [
        "index.html: broken link notebooks/01_one.html#start (no such place on that page)",
        f"notebooks/01_one.html: {colab}/1.ipynb: no notebooks/1.ipynb in the book",
        f"notebooks/01_one.html: no button that opens {colab}/01_one.ipynb",
    ]
