"""Make the book yours: write your repository's address everywhere the old one stands.

    make adopt REPO=https://github.com/me/my-book
    make adopt REPO=https://github.com/me/my-book BRANCH=trunk

Replaced are the address of _config.yml, which is written last, and the book's first one. BRANCH is the one that badges,
buttons and workflows name; without it, _config.yml's. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# GitHub's rules: an owner has letters, digits, single hyphens; 39 at most, no hyphen at the ends.
WANTED = re.compile(
    r"(?:https://(?:www\.)?github\.com/|(?:ssh://)?git@github\.com[:/])"
    r"(?P<owner>[a-z0-9](?:-?[a-z0-9]){0,38})/(?P<name>(?!\.\.?(?:/|$))[\w.-]{1,100}?)(?:\.git)?/?",
    re.I | re.A,
)
FIRST, MAIN = "your_org/vit-book", "main"
URL = r"(?m)(^repository:(?:\s+#[^\n]*|\s+branch:[^\n]*)*\s+url:[ \t]*)([^\s#]+)"
BRANCH = r"(?m)(^repository:(?:\s+#[^\n]*|\s+url:[^\n]*)*\s+branch:[ \t]*)['\"]?([^\s'\"#]+)['\"]?"
SUFFIXES = {".md", ".yml", ".cff", ".ipynb", ".py", ".toml"}
EXAMPLES = {"pagehead.py", "adopt.py", "test_adopt.py", "test_links.py", "test_rendered.py"}  # addresses of nobody


class Refused(Exception):
    """The address or the branch cannot be used; the message says why."""


def parse(url: str) -> tuple[str, str]:
    """(owner, name) of a repository's address, as a browser or `git clone` takes it; a last `/` or `.git` is cut."""
    if match := WANTED.fullmatch(url.strip()):
        return match["owner"], match["name"]
    raise Refused(
        f"Not an address of a GitHub repository: {url!r}. The badges, the buttons and the published pages know no "
        "other host.\nIt looks like this: make adopt REPO=https://github.com/me/my-book"
    )


def check_branch(branch: str) -> str:
    """A branch's name that can stand in an address and in YAML. Raises Refused for any other."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*(?:/[\w-][\w.-]*)*", branch, flags=re.A) or re.search(r"\.\.|\.$", branch):
        raise Refused(f"Not a branch that an address can name: {branch!r}; expected letters, digits, . _ - and /")
    return branch


def texts(root: Path) -> dict[Path, str]:
    """The book's own files that can name it, with their line ends; _config.yml last."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in ("_build", "build") and (f[0] != "." or f in (".github", ".ci"))]
        for path in (Path(folder, name) for name in names):
            if path.suffix in SUFFIXES and path.name not in EXAMPLES and not path.is_symlink():
                found[path] = path.read_bytes().decode("utf-8")
    return dict(sorted(found.items(), key=lambda item: (item[0] == root / "_config.yml", item[0])))


def rewrite(text: str, old: str, new: str) -> str:
    """The text with the old owner/name turned into the new one: github.com/o/n, git@github.com:o/n, o.github.io/n."""
    # Not inside a longer name: my-book must not touch my-book-data, nor my-book.old; nor the example of how to adopt.
    ends = r"(?![\w-]|\.(?!git\b)\w)"
    served = re.escape(old.replace("/", ".github.io/", 1).lower())
    text = re.sub(rf"(?<![\w.-]){served}{ends}", new.replace("/", ".github.io/", 1).lower(), text, flags=re.I)
    return re.sub(rf"(?<![\w.-])(?<!REPO=https://github\.com/){re.escape(old)}{ends}", new, text)


def adopted(path: Path, text: str, olds: set[str], words: dict[str, str], was: str) -> str:
    """The new text of one file."""
    if path.name == "_config.yml":
        text = re.sub(URL, rf"\g<1>https://github.com/{words['new']}", text)
        text = re.sub(BRANCH, rf"\g<1>{words['quoted']}", text)
    for old in sorted(olds):
        text = rewrite(text, old, words["new"])
    text = re.sub(rf"(git clone \S+/{re.escape(words['new'])}\s+cd )\S+", rf"\g<1>{words['name']}", text)
    own, before = re.escape(words["new"]), "|".join(map(re.escape, sorted({was, MAIN}, key=len, reverse=True)))
    text = re.sub(rf"({own}/(?:blob|tree|raw|edit)/)(?:{before})(?=/)", rf"\g<1>{words['branch']}", text)
    text = re.sub(rf"({own}\S*[?&]branch=)(?:{before})(?![\w./-])", rf"\g<1>{words['branch']}", text)
    if path.parent.name == "workflows":
        ours = rf"(?m)(^\s*branches:[^\n]*?[\s\[,])['\"]?(?:{before})['\"]?(?=[\],\s])"
        text = re.sub(ours, rf"\g<1>{words['quoted']}", text)
    return text


def adopt(root: Path, url: str, branch: str = "") -> list[Path]:
    """Rewrite all files; returns those that changed. Raises Refused before anything is written."""
    owner, name = parse(url)
    config = root / "_config.yml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    now, was = re.search(URL, text), re.search(BRANCH, text)
    if not now:
        raise Refused(f"No `repository: url:` in {config}: not the folder of the book.")
    stands = re.search(r"([\w.-]+/[\w.-]+?)(?:\.git)?/?['\"]?$", now[2])
    olds = {FIRST, stands[1] if stands else FIRST} - {f"{owner}/{name}"}
    was = was[2] if was else MAIN
    branch = check_branch(branch.strip() or was)
    words = {"new": f"{owner}/{name}", "name": name, "branch": branch}
    words["quoted"] = branch if branch == MAIN else f'"{branch}"'  # 2.0, yes and null are no texts in YAML
    files = {path: (before, adopted(path, before, olds, words, was)) for path, before in texts(root).items()}
    changed = [path for path, (before, after) in files.items() if after != before]
    for path in changed:  # _config.yml last: what stopped half-way is finished by the same command
        new = path.with_name(f"{path.name}.adopt-new")
        try:
            new.write_bytes(files[path][1].encode("utf-8"))
            new.chmod(path.stat().st_mode)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    return changed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder")
    # From make through the environment: no quote in it can then confuse the shell.
    parser.add_argument("url", nargs="?", default=os.environ.get("REPO", ""))
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    try:
        changed = adopt(root, given.url, os.environ.get("BRANCH", ""))
    except Refused as refused:
        print(f"{refused}\nNothing was changed.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Could not write: {error}\nMend that, then give the command again: it does the rest.", file=sys.stderr)
        return 1
    if not changed:
        print("That is the address already, everywhere; nothing to change.")
        return 0
    print("".join(f"  {path.relative_to(root).as_posix()}\n" for path in changed), end="")
    branch = re.search(BRANCH, (root / "_config.yml").read_text(encoding="utf-8"))
    address = f"https://github.com/{'/'.join(parse(given.url))}, branch {branch[2] if branch else MAIN}"
    print(f"{len(changed)} files now say {address}. Look at them (git diff), then commit.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
