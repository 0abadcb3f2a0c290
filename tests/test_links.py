"""`make links`: Sphinx's linkcheck on a small book, against a server of this machine."""

import http.server
import threading
from pathlib import Path

import pytest

import links

CONFIG = """\
title: Small
repository: {url: https://github.com/me/my-book, branch: main}
sphinx:
  config:
    extensions: [myst_nb, jupyter_book, sphinx_external_toc]
    linkcheck_ignore: ['https://(colab|github)', 'https://nobody']
    linkcheck_report_timeouts_as_broken: false
    linkcheck_timeout: 5
"""
PAGE = """\
# One

[good]({at}/good#here) [dead]({at}/dead) [moved]({at}/moved) [no such place]({at}/good#gone) [busy]({at}/busy)
[DOI](https://doi.org/10.1/a) [here](#one)
"""
ANSWERS = {"good": 200, "moved": 301, "busy": 503}


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = ANSWERS.get(self.path.strip("/"), 404)
        body = b'<p id="here">words</p>' if status == 200 else b""
        self.send_response(status)
        if status == 301:
            self.send_header("Location", "/good")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def book(root: Path, page: str, readme: str = "") -> list[str]:
    files = {"_config.yml": CONFIG, "_toc.yml": "format: jb-book\nroot: index\n", "index.md": page, "README.md": readme}
    for name, text in files.items():
        (root / name).write_text(text)
    return ["--root", str(root)]


def test_what_is_dead_or_moved_is_named_with_its_place(tmp_path, site, monkeypatch, capsys):
    monkeypatch.setattr(links, "DOI_LOOKUP", site + "/{}")
    arguments = book(tmp_path, PAGE.format(at=site), readme=f"See {site}/lost.")
    assert links.main(arguments) == 1
    said = capsys.readouterr().out
    broken = [line.removeprefix("broken: ") for line in said.splitlines() if line.startswith("broken: ")]
    expected = [f"{site}/dead", f"{site}/good#gone", f"{site}/lost", f"{site}/10.1/a"]
    assert sorted(line.partition(": ")[0] for line in broken) == sorted(expected)
    assert f"{site}/dead: 404" in said and "(index.md, line 3)" in said and "(README.md, line 1)" in said
    assert f"moved for good: {site}/moved: {site}/good" in said


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    closed = "http://127.0.0.1:9"  # the discard port: nobody listens
    assert links.main(book(tmp_path, f"# One\n\n[a]({closed}/a) [b]({closed}/b) [here](#one)")) == 2
    said = capsys.readouterr().out
    assert "No network: 127.0.0.1:9 cannot be reached. Of 2 links to other sites none was checked." in said
    assert "broken" not in said
