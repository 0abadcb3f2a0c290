"""Ask every other site that the book links to whether the page is still there: `make links`.

    .venv/bin/python tools/links.py [--root FOLDER]

Sphinx's own linkcheck builder asks, one question at a time. It reads the pages without executing them, into
_build/linkcheck; what it is to leave out or how long to wait is set in _config.yml, under `linkcheck_`. Added here: the
links of files that are no pages (README, citation file, the papers' tables, the studies' docstrings); a DOI is looked
up at doi.org, as some publishers refuse programs. Exit status 1 for a broken link, 2 without a network. `make book`
follows the links within the pages.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import yaml
from jupyter_book.sphinx import build_sphinx
from sphinx.builders.linkcheck import CheckExternalLinksBuilder, Hyperlink

ROOT = Path(__file__).resolve().parents[1]
NO_PAGES = ("README.md", "CONTRIBUTING.md", "CITATION.cff", "book/papers/*.csv", "vitutils/*.md", "studies/*.py")
LINK = re.compile(r"https?://[^\s<>\"'`\\|{}^\[\](),]+")
DOI = re.compile(r"https://doi\.org/(10\..+)")
DOI_LOOKUP = "https://doi.org/api/handles/{}"


class LinkCheck(CheckExternalLinksBuilder):
    """The builder, with the links of files that are no pages; asks nobody where there is no network."""

    def finish(self) -> None:
        root = Path(self.srcdir)
        for path in sorted(path for pattern in NO_PAGES for path in root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for found in LINK.findall(line):
                    address = found.rstrip(".;:!?*_")
                    self.hyperlinks.setdefault(address, Hyperlink(address, name, str(path), number))
        ignored = [re.compile(pattern) for pattern in self.config.linkcheck_ignore]
        others = [address for address in self.hyperlinks if address.startswith(("http://", "https://"))]
        asked = [address for address in others if not any(pattern.match(address) for pattern in ignored)]
        hosts = [host for host, _ in Counter(urljoin(address, "/") for address in asked).most_common(3)]
        if hosts and not any(map(answers, hosts)):
            names = ", ".join(urlsplit(host).netloc for host in hosts)
            print(f"No network: {names} cannot be reached. Of {len(asked)} links to other sites none was checked.")
            self.app.statuscode = 2
            return
        super().finish()


def answers(host: str) -> bool:
    try:
        requests.head(host, timeout=5)
        return True
    except requests.RequestException:
        return False


def doi(app, uri: str) -> str | None:
    """Where doi.org says whether this DOI exists, without sending on to the publisher."""
    found = DOI.match(uri)
    return DOI_LOOKUP.format(found[1]) if found else None


def setup(app) -> None:
    app.add_builder(LinkCheck, override=True)
    app.connect("linkcheck-process-uri", doi)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder")
    root = parser.parse_args(arguments).root.resolve()
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    out = root / "_build" / "linkcheck"
    report = out / "output.json"
    report.unlink(missing_ok=True)
    print("Reading the pages and asking other sites, one question at a time", flush=True)
    extensions = [*config["sphinx"]["config"]["extensions"], "links"]
    code = build_sphinx(
        root,
        out,
        path_config=root / "_config.yml",
        noconfig=True,
        confoverrides={"extensions": extensions, "nb_execution_mode": "off", "latex_individualpages": False},
        doctreedir=out / ".doctrees",
        builder="linkcheck",
        really_quiet=True,
    )
    if not report.is_file():
        return code if isinstance(code, int) else 1
    rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    counts = Counter(row["status"] for row in rows)
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    for row in rows:
        place, moved = f"({row['filename']}, line {row['lineno']})", row["status"] == "redirected"
        if row["status"] in ("broken", "timeout") or moved and row["code"] in (301, 308):
            print(f"{'moved for good' if moved else 'broken'}: {row['uri']}: {row['info']} {place}")
    return 1 if counts["broken"] or counts["timeout"] else 0


if __name__ == "__main__":
    sys.exit(main())
