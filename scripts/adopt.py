"""Make the book yours: write your repository's address everywhere the old one stands.

    make adopt REPO=https://github.com/me/my-book
    make adopt REPO=https://github.com/me/my-book BRANCH=trunk

Replaced is the book's first address, and each that stands where only its own can: in _config.yml, in the setup cells,
in the badges and the `git clone` of README.md, in CITATION.cff. So what a hand edit or a broken run has left half done
is finished. BRANCH is the one that badges, buttons and workflows name; without it, _config.yml's, or, where the
checkout has no such branch, the checkout's own. All files are read first and all new texts worked out; only then is
anything written. Standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import env

# GitHub's rules: an owner has letters, digits, single hyphens; 39 at most, no hyphen at the ends.
OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}"
NAME = r"[A-Za-z0-9._-]{1,100}"
HOST = r"https://(?:www\.)?github\.com/|(?:ssh://)?git@github\.com[:/]"
WANTED = re.compile(rf"(?:(?i:{HOST}))(?P<owner>{OWNER})/(?P<name>{NAME})")
EXAMPLE = "It looks like this: make adopt REPO=https://github.com/me/my-book"
FIRST = ("your_org", "vit-book")
MAIN = "main"
CURRENT = re.compile(
    r"(?P<before>^repository:[^\S\n]*\n(?:[ \t#].*\n|\n)*?[ \t]+url[ \t]*:[ \t]*)"
    r"(?P<value>['\"]?https://github\.com/([\w.-]+)/([\w.-]+)[^\s'\"]*['\"]?|[^\s#]+)",
    re.M,
)
BRANCH = re.compile(
    r"(?P<before>^repository:[^\S\n]*\n(?:[ \t#].*\n|\n)*?[ \t]+branch[ \t]*:[ \t]*)['\"]?(?P<value>[^\s'\"#]+)['\"]?",
    re.M,
)
# Where the book names itself, and nobody else: file patterns, and the owner and name there.
ITSELF = {
    "CITATION.cff": re.compile(r"^repository-code:.*github\.com/([\w.-]+)/([\w.-]+)", re.M),
    "README.md": re.compile(r"git clone \S*github\.com[/:]([\w.-]+)/([\w.-]+)|/github/([\w.-]+)/([\w.-]+)/blob/"),
    "book/how-to-run.md": re.compile(r"git clone \S*github\.com[/:]([\w.-]+)/([\w.-]+)"),
    "notebooks/*.ipynb": re.compile(r"vitutils @ git\+https://github\.com/([\w.-]+)/([\w.-]+)"),
}
BADGE = re.compile(r"colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/([^\s)]+?)/notebooks/")
TRIGGER = re.compile(r"^([ \t]*branches:[ \t]*\[)([^\]\n]*)(\])", re.M)
# Full of addresses that are examples: nobody's.
EXAMPLES = (
    "book/_ext/pagehead.py", "scripts/adopt.py", "tests/test_adopt.py", "tests/test_links.py", "tests/test_rendered.py",
)  # fmt: skip
SKIP = {"_build", "build", "node_modules", "__pycache__"}
HIDDEN_BUT_OURS = {".ci", ".github"}


class Refused(Exception):
    """The address cannot be used; the message says why."""


class HalfDone(Exception):
    """Some files could be written and some not; the message says which, and what to do."""


def parse(url: str) -> tuple[str, str]:
    """(owner, name) of a repository's address, as a browser or `git clone` takes it; a last `/` or `.git` is cut."""
    url = url.strip()
    cleaned = re.sub(r"(\.git)?/?$", "", url)
    match = WANTED.fullmatch(cleaned)
    if match and match["name"] not in {".", ".."}:
        return match["owner"], match["name"]
    told = f"Not an address of a GitHub repository: {url!r}" if url else "Which repository?"
    host = re.match(r"(?:[a-z]+://)?(?:[\w.-]+@)?([\w-]+(?:\.[\w-]+)+)[:/]", url, flags=re.I)
    if host and not re.fullmatch(r"(www\.)?github\.com", host[1], flags=re.I):
        told += f"\nThe badges, the buttons and the published pages know GitHub alone, not {host[1]}."
    raise Refused(f"{told}\n{EXAMPLE}")


def check_branch(branch: str) -> str:
    """A branch's name that can stand in an address and in YAML. Raises Refused for any other."""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*(?:/[\w-][\w.-]*)*", branch, flags=re.A) or re.search(r"\.\.|\.$", branch):
        raise Refused(f"Not a branch that an address can name: {branch!r}; expected letters, digits, . _ - and /")
    return branch


def current(root: Path) -> tuple[str, str]:
    """(owner, name) as _config.yml has them now."""
    match = CURRENT.search((root / "_config.yml").read_text(encoding="utf-8"))
    if not match or not match[3]:
        raise Refused("No `repository: url: https://github.com/...` in _config.yml.")
    return match[3], match[4].removesuffix(".git")


def own_addresses(root: Path, texts: dict[Path, str]) -> set[tuple[str, str]]:
    """Every (owner, name) by which the book calls itself."""
    found = {FIRST}
    config = CURRENT.search(texts[root / "_config.yml"])
    if config and config[3]:
        found.add((config[3], config[4]))
    for pattern, named in ITSELF.items():
        for path in root.glob(pattern):
            found |= {tuple(g for g in match.groups() if g) for match in named.finditer(texts.get(path, ""))}
    return {(owner, name.removesuffix(".git").rstrip(".")) for owner, name in found}


def own_branches(root: Path, texts: dict[Path, str]) -> set[str]:
    """Every branch that the book calls its own."""
    found = {MAIN} | {match["value"] for match in BRANCH.finditer(texts[root / "_config.yml"])}
    found |= set(BADGE.findall(texts.get(root / "README.md", "")))
    return found


def git(root: Path, *arguments: str) -> str:
    """What git says of a checkout; nothing where there is none. Names may be of any bytes, as `os.walk` gives them."""
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, env=env.surroundings(os.environ, root=str(root)))
    except OSError:
        return ""
    return os.fsdecode(done.stdout).strip() if not done.returncode else ""


def choose_branch(root: Path, config: str) -> str:
    """The branch in _config.yml. If that is still the first one, and the checkout has none of that name: its own."""
    named = BRANCH.search(config)
    branch = named["value"] if named else MAIN
    here = git(root, "symbolic-ref", "--short", "refs/remotes/origin/HEAD").partition("/")[2]
    here = here or git(root, "symbolic-ref", "--short", "HEAD")
    known = git(root, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", "refs/remotes").split()
    if git(root, "rev-parse", "--show-prefix"):  # a folder of somebody's other repository
        return branch
    if branch != MAIN or not here or {MAIN, f"origin/{MAIN}"}.intersection(known):
        return branch
    return here


def tracked(root: Path) -> list[Path]:
    """The book's own files: those git does not ignore, or, outside a checkout, all but builds."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed and not git(root, "rev-parse", "--show-prefix"):
        paths = [root / name for name in listed.split("\0") if name]
    else:
        paths = []
        for folder, folders, files in os.walk(root):
            ours = {f for f in folders if not f.startswith(".")} - SKIP
            folders[:] = sorted(ours | HIDDEN_BUT_OURS.intersection(folders))
            paths += [Path(folder, name) for name in files]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def pages(owner: str, name: str) -> str:
    """Where GitHub Pages serves a repository, without `https://`."""
    site = f"{owner.lower()}.github.io"
    return site if name.lower() == site else f"{site}/{name}"


def rewrite(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """The text with every form of the old address turned into the new one's."""
    (owner, name), (new_owner, new_name) = old, new
    owner_, name_ = re.escape(owner), re.escape(name)
    # Not inside a longer name: my-book must not touch my-book-data, nor my-book.old.
    ends = r"(?![\w-]|\.(?!git\b)\w)"
    served, there = pages(owner, name), pages(new_owner, new_name)
    # A site without a folder has the name of its repository, which `cd` names too: an address begins with https://
    begins = r"(?<=://)" if "/" not in served else rf"(?<![\w-])(?<!{owner_}/)"
    done = rf"(?!{re.escape(there[len(served):])}{ends})" if there.startswith(f"{served}/") else ""
    text = re.sub(rf"{begins}{re.escape(served)}{done}{ends}", there, text, flags=re.I)
    # github.com/o/n, git@github.com:o/n, Colab's /github/o/n/blob, a badge's /status/o/n, bare o/n
    # but not the example of how to adopt
    return re.sub(rf"(?<![\w-])(?<!REPO=https://github\.com/){owner_}/{name_}{ends}", f"{new_owner}/{new_name}", text)


def rename(text: str, new: tuple[str, str], branches: set[str], branch: str) -> str:
    """The text of the new address with its folder and its branch: `cd` after `git clone`, /blob/main/, ?branch=."""
    place, name = re.escape("/".join(new)), new[1]
    clone = rf"(git clone \S*{place}(?:\.git)?/?[^\S\n]*(?:\n|&&|;)[^\S\n]*cd[^\S\n]+)[\w.-]+"
    text = re.sub(clone, rf"\g<1>{name}", text)
    old = "|".join(map(re.escape, sorted(branches - {branch}, key=len, reverse=True)))
    if not old:
        return text
    text = re.sub(rf"({place}/(?:blob|tree|raw|edit)/)(?:{old})(?=/)", rf"\g<1>{branch}", text)
    return re.sub(rf"({place}[^\s\"'<>()]*[?&]branch=)(?:{old})(?![\w./-])", rf"\g<1>{branch}", text)


def quoted(branch: str) -> str:
    """A branch as YAML takes it for a text: 2.0, yes and null are none."""
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*", branch) and branch.lower() not in YAML_WORDS
    return branch if plain else f'"{branch}"'


YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def configured(text: str, new: tuple[str, str], branch: str) -> str:
    """_config.yml with the address and the branch, whatever stood there. Raises Refused if it has none."""
    if not CURRENT.search(text):
        raise Refused("No `repository: url: https://github.com/...` in _config.yml.")
    text = CURRENT.sub(lambda match: f"{match['before']}https://github.com/{'/'.join(new)}", text, count=1)
    return BRANCH.sub(lambda match: match["before"] + quoted(branch), text, count=1)


def triggered(text: str, branches: set[str], branch: str) -> str:
    """A workflow that runs for the branch."""

    def named(match: re.Match) -> str:
        words = [word.strip() for word in match[2].split(",")]
        words = [quoted(branch) if word.strip("'\"") in branches else word for word in words]
        return match[1] + ", ".join(dict.fromkeys(words)) + match[3]

    return TRIGGER.sub(named, text)


def adopt(root: Path, url: str, branch: str = "") -> list[Path]:
    """Rewrite all files; returns those that changed. Raises Refused before anything is written."""
    new = parse(url)
    texts: dict[Path, str] = {}
    for path in tracked(root):
        if path.relative_to(root).as_posix() not in EXAMPLES:
            try:
                texts[path] = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue  # a picture
    config = root / "_config.yml"
    if config not in texts:
        raise Refused(f"No _config.yml in {root}: not the folder of the book.")
    branch = check_branch(branch.strip() or choose_branch(root, texts[config]))
    olds, branches = own_addresses(root, texts) - {new}, own_branches(root, texts)
    changes: dict[Path, bytes] = {}
    for path, before in texts.items():
        after = configured(before, new, branch) if path == config else before
        for old in sorted(olds):
            after = rewrite(after, old, new)
        after = rename(after, new, branches, branch)
        if path.parent == root / ".github" / "workflows":
            after = triggered(after, branches, branch)
        if after != before:
            changes[path] = after.encode("utf-8")
    write(root, changes)
    return sorted(changes)


def write(root: Path, changes: dict[Path, bytes]) -> None:
    """Put all new texts beside the old ones, then in their places; _config.yml last."""
    fresh: list[tuple[Path, Path]] = []
    try:
        for path in sorted(changes, key=lambda path: (path == root / "_config.yml", path)):
            beside = path.with_name(path.name + ".adopt-new")
            fresh.append((beside, path))
            beside.write_bytes(changes[path])
            beside.chmod(path.stat().st_mode & 0o777)
        for done, (beside, path) in enumerate(fresh):
            try:
                beside.replace(path)
            except OSError as error:
                if not done:
                    raise
                told = f"{done} of {len(fresh)} files say the new address, not {path.relative_to(root)} and the rest."
                raise HalfDone(f"Could not write: {error}\n{told}\nMend that, then give the command again.") from None
    finally:
        for beside, _ in fresh:
            beside.unlink(missing_ok=True)


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
        changed = adopt(root, url, os.environ.get("BRANCH", ""))
    except Refused as refused:
        print(f"{refused}\nNothing was changed.", file=sys.stderr)
        return 2
    except HalfDone as half:
        print(half, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Could not write: {error}\nNothing was changed.", file=sys.stderr)
        return 1
    if not changed:
        print("That is the address already, everywhere; nothing to change.")
        return 0
    for path in changed:
        print("  " + os.fsencode(path.relative_to(root)).decode("utf-8", "replace"))
    named = BRANCH.search((root / "_config.yml").read_text(encoding="utf-8"))
    address = "https://github.com/" + "/".join(parse(url)) + (f", branch {named['value']}" if named else "")
    print(f"{len(changed)} files now say {address}. Look at them (git diff), then commit.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
