"""Make the book yours: write your repository's address everywhere the old one stands.

    make adopt REPO=https://github.com/me/my-book
    make adopt REPO=https://github.com/me/my-book BRANCH=trunk

Replaced are the book's first address and that of _config.yml, and whatever stands where only the book's own can: in
_config.yml, the setup cells, the badges and the `git clone` of README.md, CITATION.cff. So what a hand edit or a
broken run has left half done is finished. BRANCH is the one that badges, buttons and workflows name; without it,
_config.yml's, or, where the checkout has no such branch, the checkout's own. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import env

# GitHub's rules: an owner has letters, digits, single hyphens; 39 at most, no hyphen at the ends.
WANTED = re.compile(
    r"(?:https://(?:www\.)?github\.com/|(?:ssh://)?git@github\.com[:/])"
    r"(?P<owner>[a-z0-9](?:-?[a-z0-9]){0,38})/(?P<name>[\w.-]{1,100}?)(?:\.git)?/?",
    re.I | re.A,
)
FIRST, MAIN = "your_org/vit-book", "main"
URL = re.compile(r"(?m)(^repository:(?:\s+#[^\n]*|\s+branch:[^\n]*)*\s+url:[ \t]*)([^\s#]+)")
BRANCH = re.compile(r"(?m)(^repository:(?:\s+#[^\n]*|\s+url:[^\n]*)*\s+branch:[ \t]*)['\"]?([^\s'\"#]+)['\"]?")
CITED = re.compile(r"(?m)^repository-code:.*github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?[\"']?\s*$")
# Where the book names itself, and nobody else: which files, what stands there, what will.
PLACES = (
    ("_config.yml", URL, r"\g<1>https://github.com/{owner}/{name}"),
    ("_config.yml", BRANCH, r"\g<1>{quoted}"),
    ("CITATION.cff", r"(?m)^(repository-code:\s*\"?)https://[^\s\"]+", r"\g<1>https://github.com/{owner}/{name}"),
    ("*.md", r"(git clone )\S*github\.com\S+(\s+cd )\S+", r"\g<1>https://github.com/{owner}/{name}\g<2>{name}"),
    ("README.md", r"(?<=colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/\S+?(?=/notebooks/)",
     "{owner}/{name}/blob/{branch}"),
    ("notebooks/*.ipynb", r"(?<=vitutils @ git\+https://github\.com/)[\w.-]+/[\w.-]+", "{owner}/{name}"),
)  # fmt: skip
# Full of addresses that are examples: nobody's.
EXAMPLES = (
    "book/_ext/pagehead.py", "scripts/adopt.py", "tests/test_adopt.py", "tests/test_links.py", "tests/test_rendered.py",
)  # fmt: skip
SKIP = re.compile(r"(^|/)(_build|build|node_modules|__pycache__|\.(?!github/|ci/)[^/]+/)")


class Refused(Exception):
    """The address or the branch cannot be used; the message says why."""


def parse(url: str) -> tuple[str, str]:
    """(owner, name) of a repository's address, as a browser or `git clone` takes it; a last `/` or `.git` is cut."""
    match = WANTED.fullmatch(url.strip())
    if not match or match["name"] in {".", ".."}:
        raise Refused(
            f"Not an address of a GitHub repository: {url!r}. The badges, the buttons and the published pages know no "
            "other host.\nIt looks like this: make adopt REPO=https://github.com/me/my-book"
        )
    return match["owner"], match["name"]


def check_branch(branch: str) -> str:
    """A branch's name that can stand in an address and in YAML. Raises Refused for any other."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*(?:/[\w-][\w.-]*)*", branch, flags=re.A) or re.search(r"\.\.|\.$", branch):
        raise Refused(f"Not a branch that an address can name: {branch!r}; expected letters, digits, . _ - and /")
    return branch


def current(root: Path) -> tuple[str, str]:
    """(owner, name) as _config.yml has them now; any address may stand there."""
    match = URL.search((root / "_config.yml").read_text(encoding="utf-8"))
    if not match:
        raise Refused(f"No `repository: url:` in {root / '_config.yml'}.")
    found = re.search(r"([\w.-]+)/([\w.-]+?)(?:\.git)?/?['\"]?$", match[2])
    return (found[1], found[2]) if found else tuple(FIRST.split("/"))


def git(root: Path, *arguments: str) -> str:
    """What git says, or nothing: the folder may be no checkout, and a machine may be without git."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, env=env.surroundings(os.environ))
    except OSError:
        return ""
    return os.fsdecode(done.stdout).strip() if not done.returncode else ""


def is_checkout(root: Path) -> bool:
    """Whether this folder is a repository itself, not a part of somebody's other one."""
    return bool(git(root, "rev-parse", "--git-dir")) and not git(root, "rev-parse", "--show-prefix")


def choose_branch(root: Path) -> str:
    """The branch in _config.yml. If that is still the first one, and the checkout has none of that name: its own."""
    named = BRANCH.search((root / "_config.yml").read_text(encoding="utf-8"))
    branch, here = named[2] if named else MAIN, git(root, "symbolic-ref", "--short", "HEAD")
    if branch != MAIN or not here or not is_checkout(root) or git(root, "branch", "--all", "--list", MAIN, f"*/{MAIN}"):
        return branch
    return here


def tracked(root: Path) -> list[Path]:
    """The book's own files: those git does not ignore, or, outside a checkout, all but builds."""
    if is_checkout(root):
        names = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    else:
        names = [name for path in root.rglob("*") if not SKIP.search(name := path.relative_to(root).as_posix())]
    return sorted(p for p in (root / name for name in names if name) if p.is_file() and not p.is_symlink())


def rewrite(text: str, old: str, new: str) -> str:
    """The text with the old owner/name turned into the new one: github.com/o/n, git@github.com:o/n, o.github.io/n."""
    if old.partition("/")[0].lower() not in text.lower():
        return text
    # Not inside a longer name: my-book must not touch my-book-data, nor my-book.old; nor the example of how to adopt.
    ends = r"(?![\w-]|\.(?!git\b)\w)"
    served = re.escape(old.replace("/", ".github.io/", 1).lower())
    text = re.sub(rf"(?<![\w.-]){served}{ends}", new.replace("/", ".github.io/", 1).lower(), text, flags=re.I)
    return re.sub(rf"(?<![\w.-])(?<!REPO=https://github\.com/){re.escape(old)}{ends}", new, text)


def adopted(name: str, text: str, olds: set[str], words: dict[str, str], was: str) -> str:
    """The new text of one file."""
    for pattern, place, new in PLACES:
        if Path(name).match(pattern):
            text = re.sub(place, new.format(**words), text)
    for old in sorted(olds):
        text = rewrite(text, old, "{owner}/{name}".format(**words))
    own = re.escape("{owner}/{name}".format(**words))
    before = "|".join(map(re.escape, sorted({was, MAIN}, key=len, reverse=True)))
    text = re.sub(rf"({own}/(?:blob|tree|raw|edit)/)(?:{before})(?=/)", rf"\g<1>{words['branch']}", text)
    text = re.sub(rf"({own}\S*[?&]branch=)(?:{before})(?![\w./-])", rf"\g<1>{words['branch']}", text)
    if name.startswith(".github/workflows/"):
        text = re.sub(rf"(?m)(^\s*branches:[^\n]*?[\s\[,])['\"]?(?:{before})['\"]?(?=[\],\s])",
                      rf"\g<1>{words['quoted']}", text)  # fmt: skip
    return text


def adopt(root: Path, url: str, branch: str = "") -> list[Path]:
    """Rewrite all files; returns those that changed. Raises Refused before anything is written."""
    owner, name = parse(url)
    if not (root / "_config.yml").is_file():
        raise Refused(f"No _config.yml in {root}: not the folder of the book.")
    olds = {FIRST, "/".join(current(root))}
    if (root / "CITATION.cff").is_file():  # _config.yml may have been changed by hand before
        olds |= set(CITED.findall((root / "CITATION.cff").read_text(encoding="utf-8")))
    olds -= {f"{owner}/{name}"}
    was = BRANCH.search((root / "_config.yml").read_text(encoding="utf-8"))
    branch = check_branch(branch.strip() or choose_branch(root))
    quoted = branch if branch == MAIN else f'"{branch}"'  # 2.0, yes and null are no texts in YAML
    words = {"owner": owner, "name": name, "branch": branch, "quoted": quoted}
    changes: dict[Path, bytes] = {}
    for path in tracked(root):
        inside = path.relative_to(root).as_posix()
        try:
            before = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        after = before if inside in EXAMPLES else adopted(inside, before, olds, words, was[2] if was else MAIN)
        if after != before:
            changes[path] = after.encode("utf-8")
    write(changes, last=root / "_config.yml")
    return sorted(changes)


def write(changes: dict[Path, bytes], last: Path) -> None:
    """Put all new texts beside the old ones, then in their places; _config.yml last, so that a new run finishes it."""
    beside = {path: path.with_name(path.name + ".adopt-new") for path in sorted(changes, key=lambda p: (p == last, p))}
    try:
        for path, new in beside.items():
            new.write_bytes(changes[path])
            shutil.copymode(path, new)
        for path, new in beside.items():
            new.replace(path)
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=env.ROOT, help="the book's folder")
    # From make through the environment: no quote in it can then confuse the shell.
    parser.add_argument("url", nargs="?", default=os.environ.get("REPO", ""))
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    try:
        changed = adopt(root, given.url, os.environ.get("BRANCH", ""))
        branch = choose_branch(root)
    except Refused as refused:
        print(f"{refused}\nNothing was changed.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Could not write: {error}\nMend that, then give the command again: it does the rest.", file=sys.stderr)
        return 1
    if not changed:
        print("That is the address already, everywhere; nothing to change.")
        return 0
    for path in changed:
        print("  " + os.fsencode(path.relative_to(root)).decode("utf-8", "replace"))
    address = f"https://github.com/{'/'.join(parse(given.url))}, branch {branch}"
    print(f"{len(changed)} files now say {address}. Look at them (git diff), then commit.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
