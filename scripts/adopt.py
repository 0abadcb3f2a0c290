"""Make the book yours: write your repository's address everywhere the old one stands.

    make adopt REPO=https://github.com/me/my-book

The address that is replaced is the one in _config.yml (repository, url). All files are read first
and all new texts worked out; only then is anything written. Standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

# GitHub's rules: an owner has letters, digits, single hyphens; 39 at most, no hyphen at the ends.
OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}"
NAME = r"[A-Za-z0-9._-]{1,100}"
WANTED = re.compile(rf"https://github\.com/(?P<owner>{OWNER})/(?P<name>{NAME})")
CURRENT = re.compile(
    r"^repository:[^\S\n]*\n(?:[ \t#].*\n|\n)*?"
    r"[ \t]+url[ \t]*:[ \t]*['\"]?https://github\.com/([\w.-]+)/([\w.-]+)",
    re.M,
)
SKIP = {"_build", "build", "node_modules", "__pycache__"}
HIDDEN_BUT_OURS = {".ci", ".github"}


class Refused(Exception):
    """The address cannot be used; the message says why."""


def parse(url: str) -> tuple[str, str]:
    """(owner, name) of a repository's address; a last `/` or `.git` is taken off."""
    cleaned = re.sub(r"(\.git)?/?$", "", url)
    match = WANTED.fullmatch(cleaned)
    if not match or match["name"] in {".", ".."}:
        given = f"Not an address of a GitHub repository: {url!r}" if url else "Which repository?"
        raise Refused(f"{given}\nIt looks like this: make adopt REPO=https://github.com/me/my-book")
    return match["owner"], match["name"]


def current(root: Path) -> tuple[str, str]:
    """(owner, name) as _config.yml has them now."""
    match = CURRENT.search((root / "_config.yml").read_text(encoding="utf-8"))
    if not match:
        raise Refused("No `repository: url: https://github.com/...` in _config.yml.")
    return match[1], match[2]


def tracked(root: Path) -> list[Path]:
    """The book's own files: those git does not ignore, or, outside a checkout, all but builds."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    try:
        top = subprocess.run(["git", "-C", str(root), "rev-parse", "--show-prefix"], capture_output=True, text=True)
        listed = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        listed = top = None
    if listed and not listed.returncode and not top.stdout.strip() and listed.stdout:
        paths = [root / name for name in listed.stdout.split("\0") if name]
    else:
        paths = []
        for folder, folders, files in os.walk(root):
            ours = {f for f in folders if not f.startswith(".")} - SKIP
            folders[:] = sorted(ours | HIDDEN_BUT_OURS.intersection(folders))
            paths += [Path(folder, name) for name in files]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def rewrite(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """The text with every form of the old address turned into the new one's."""
    (owner, name), (new_owner, new_name) = old, new
    owner_, name_ = re.escape(owner), re.escape(name)
    # Not inside a longer name: my-book must not touch my-book-data, nor my-book.old.
    ends = r"(?![\w-]|\.(?!git\b)\w)"
    pages = rf"(?<![\w-]){owner_}\.github\.io/{name_}{ends}"
    text = re.sub(pages, f"{new_owner.lower()}.github.io/{new_name}", text, flags=re.I)
    # github.com/o/n, git@github.com:o/n, Colab's /github/o/n/blob, a badge's /status/o/n, bare o/n
    return re.sub(rf"(?<![\w-]){owner_}/{name_}{ends}", f"{new_owner}/{new_name}", text)


def adopt(root: Path, url: str) -> list[Path]:
    """Rewrite all files; returns those that changed. Raises Refused before anything is written."""
    new = parse(url)
    old = current(root)
    changes: dict[Path, bytes] = {}
    for path in tracked(root):
        before = path.read_bytes()
        try:
            text = before.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        after = rewrite(text, old, new).encode("utf-8")
        if after != before:
            changes[path] = after
    fresh: list[tuple[Path, Path]] = []
    try:
        for path, content in changes.items():
            beside = path.with_name(path.name + ".adopt-new")
            fresh.append((beside, path))
            beside.write_bytes(content)
            beside.chmod(path.stat().st_mode & 0o777)
    except OSError:
        for beside, _ in fresh:
            beside.unlink(missing_ok=True)
        raise
    for beside, path in fresh:
        beside.replace(path)
    return sorted(changes)


def main(arguments: list[str]) -> int:
    if "--root" in arguments:
        place = arguments.index("--root")
        root = Path(arguments[place + 1]).resolve()
        arguments = arguments[:place] + arguments[place + 2 :]
    else:
        root = Path(__file__).resolve().parent.parent
    # From make through the environment: no quote in it can then confuse the shell.
    url = arguments[0] if arguments else os.environ.get("REPO", "")
    try:
        changed = adopt(root, url)
    except Refused as refused:
        print(f"{refused}\nNothing was changed.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Could not write: {error}\nNothing was changed.", file=sys.stderr)
        return 1
    if not changed:
        print("That is the address already; nothing to change.")
        return 0
    for path in changed:
        print(f"  {path.relative_to(root)}")
    address = "https://github.com/" + "/".join(parse(url))
    print(f"{len(changed)} files now say {address}. Look at them (git diff), then commit.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
