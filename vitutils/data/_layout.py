"""What a reader's folder or zip of pictures holds: which files are pictures, of which part and class.

Folders and zips are read by the same rules: both become a list of entries, and `read_layout` makes sense of the list.
"""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from vitutils.data import decoding
from vitutils.data.sources import DataError

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
KNOWN = "train (or training), val (valid, validation, dev), test (testing)"
# What systems leave in folders; files and folders whose names begin with a dot are hidden as well.
SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle", "$recycle.bin"}
SYSTEM |= {"system volume information", "lost+found", "__pycache__"}


@dataclass(frozen=True)
class Packed:
    """A file inside a zip, read in place."""

    archive: Path
    info: zipfile.ZipInfo

    def __str__(self) -> str:
        return f"{self.info.filename} of {self.archive}"


@dataclass(frozen=True)
class Entry:
    """A file or folder: its names below the top, and where it is; None is a folder. picture: whether it is one."""

    names: tuple[str, ...]
    file: Path | Packed | None
    picture: bool = False

    @property
    def ending(self) -> str:
        """The ending of its name, in small letters, with the dot."""
        return os.path.splitext(self.names[-1])[1].lower()


@dataclass(frozen=True)
class Layout:
    """Pictures by part and class. parts: "train" and "test", or "" where they are not split. notes: what to tell."""

    parts: dict[str, dict[str, list[Path | Packed]]]
    notes: tuple[str, ...]

    @property
    def told(self) -> str:
        """The notes in brackets, or nothing."""
        return f" ({'; '.join(self.notes)})" if self.notes else ""


# --- one picture ---


def read_picture(file: Path | Packed, side: int | None = None) -> Image.Image:
    """Decode a picture; see `decoding.decode`. Raises DataError that names the file, and the zip it lies in."""
    if isinstance(file, Path):
        return decoding.decode(file, str(file), side)
    archive = open_zip(file.archive)
    try:
        raw = archive.read(file.info)
    except decoding.UNREADABLE as error:
        told = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot read the image {file} ({told}): download the zip again, or repack it") from None
    return decoding.decode(io.BytesIO(raw), str(file), side)


def content(file: Path | Packed) -> bytes:
    """Checksum and size of a file's bytes. Raises DataError if it cannot be read."""
    if isinstance(file, Packed):
        return f"{file.info.CRC:08x} {file.info.file_size}".encode()
    try:
        raw = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {file} ({type(error).__name__}): repair it or remove it") from None
    return f"{zlib.crc32(raw):08x} {len(raw)}".encode()


@lru_cache(maxsize=8)
def _archive(path: Path, process: int, written: int) -> zipfile.ZipFile:
    """The open archive: each process its own, for a file handle that two share is read at the wrong place."""
    return zipfile.ZipFile(path)


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, to read pictures in place. Raises DataError, which names it, if it is no whole zip."""
    try:
        return _archive(path, os.getpid(), path.stat().st_mtime_ns)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a complete zip file ({error}): delete it and download it again") from None


# --- all that is there ---


def entries(path: Path) -> list[Entry]:
    """What a folder or zip holds, sorted by name, without what is hidden and what systems leave.

    Raises DataError for an encrypted or broken zip, and for a folder that cannot be looked into, or is reached twice.
    """
    found = {entry.names: entry for entry in (_zipped(path) if path.is_file() else _walked(path))}
    # Of two by one name the last, as unpacking would leave it; names in one spelling only now, for those are two files.
    plain = [replace(found[names], names=_plain(names)) for names in sorted(found)]
    return sorted(plain, key=lambda entry: entry.names)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM


def _judged(names: tuple[str, ...], file: Path | Packed) -> Entry:
    """The entry of a file; its content is asked where the ending does not say what it is."""
    ending = os.path.splitext(names[-1])[1].lower()
    if isinstance(file, Path):
        if decoding.looks_like_one(ending):  # a link to nothing too: reading it will tell
            return Entry(names, file, file.is_file() or not file.exists())
        return Entry(names, file, file.is_file() and ending not in decoding.RAW and decoding.is_picture(file))
    if stat.S_ISLNK(file.info.external_attr >> 16):
        return Entry(names, file)
    if decoding.looks_like_one(ending) or ending in decoding.RAW:
        return Entry(names, file, ending not in decoding.RAW)
    with suppress(*decoding.UNREADABLE), open_zip(file.archive).open(file.info) as stream:
        return Entry(names, file, decoding.is_picture(stream))
    return Entry(names, file)  # damaged, or packed in a way that Python does not know


def _walked(folder: Path) -> Iterator[Entry]:
    """A folder's entries. Links are followed, but not to a folder that they lie in; no folder may be reached twice."""
    reached: dict[Path, str] = {}

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot open the folder {error.filename} ({error.strerror})")

    for top, subs, files in os.walk(folder, followlinks=True, onerror=refuse):
        names, real = Path(top).relative_to(folder).parts, Path(os.path.realpath(top))
        if (other := reached.setdefault(real, top)) != top:
            raise DataError(f"{top} and {other} are the same folder (a link): pictures would count twice; keep one")
        shown = [sub for sub in sorted(subs) if not _hidden(sub)]
        subs[:] = [sub for sub in shown if not real.is_relative_to(os.path.realpath(Path(top, sub)))]
        yield from (Entry((*names, sub), None) for sub in subs)
        yield from (_judged((*names, file), Path(top, file)) for file in files if not _hidden(file))


def _zipped(path: Path) -> Iterator[Entry]:
    """A zip's entries, and the folders that they lie in. Backslashes part names too, as some programs write them."""
    above: dict[str, tuple[str, ...]] = {}  # a folder's path -> its names
    for info in open_zip(path).infolist():
        if info.flag_bits & 1:
            raise DataError(f"{path} is encrypted: unpack it, or pack it without a password")
        folder, _, name = info.filename.replace("\\", "/").rpartition("/")
        if folder not in above:
            names = above[folder] = tuple(part for part in folder.split("/") if part not in ("", ".", ".."))
            if not any(map(_hidden, names)):
                yield from (Entry(names[: depth + 1], None) for depth in range(len(names)))
        if name and not _hidden(name) and not any(map(_hidden, above[folder])):
            yield _judged((*above[folder], name), Packed(path, info))


def _plain(names: Iterable[str]) -> tuple[str, ...]:
    """Names in one spelling: an accent may be a letter's own or a mark after it, as macOS writes them."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)


# --- parts and classes ---


def read_layout(path: Path) -> Layout:
    """The parts and classes of a folder or zip of pictures.

    Either parts, each with one folder per class, or class folders only; a single folder around it all is ignored.
    Parts go by any of the names in `KNOWN`, in any case; of three, the second joins the training part. Raises DataError
    for what is none of this, for parts that are not recognised, for folders below the classes that may be parts or
    classes themselves, classes that are empty, alone, or differ between the parts, and for class names that differ in
    case alone.
    """
    found = entries(path)
    found, around = _unwrapped(found)
    place = path.joinpath(*around)
    tops = sorted({entry.names[0] for entry in found if entry.file is None})
    known = [name for name in tops if part_of(name)]
    notes, left, deep = [], [], []
    if len(known) > 1 and any(part_of(name) == "train" for name in known):
        parts, used = _parts(found, known, place, notes, left, deep)
    else:
        parts, used = {"": _classes(found, tops, known, place, left, deep)}, None
    loose = [e for e in found if e.picture and len(e.names) <= (2 if used and e.names[0] in used else 1)]
    beside = [e for e in found if e.picture and used and len(e.names) > 1 and e.names[0] not in known]
    left += _counted(len(loose), "in no class folder") + _counted(len(beside), "outside the parts")
    left += _others(found)
    if deep:
        told = ", ".join(deep[:6]) + ", ..." * (len(deep) > 6)
        notes.append(f"subfolders count as the class that they lie in: {told}")
    if left:
        notes.append(f"left out: {', '.join(left)}")
    return Layout(parts, tuple(notes))


def part_of(name: str) -> str:
    """The part that a folder's name stands for: train, val or test; "" for none."""
    return PARTS.get(name.strip().casefold(), "")


def _parts_in(name: str) -> set[str]:
    """The parts that words of a longer name stand for: train_images, seg-test."""
    return {part_of(word) for word in re.split(r"[^a-z]+", name.casefold()) if part_of(word) and not part_of(name)}


def _unwrapped(found: list[Entry], inside_a_part: bool = False) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries without the folders around everything, and those folders' names."""
    around: tuple[str, ...] = ()
    while True:
        tops = {entry.names[0] for entry in found if entry.file is None}
        inner = [entry for name in tops for entry in _below(found, name)]
        wrapped = len(tops) == 1 and any(entry.file is None for entry in inner)
        wrapped = wrapped and (inside_a_part or not part_of(*tops))
        if not wrapped or any(e.picture and len(e.names) == 1 for e in [*found, *inner]):
            return found, around
        around += tuple(tops)
        found = inner + [entry for entry in found if entry.file and len(entry.names) == 1]


def _parts(
    found: list[Entry], known: list[str], place: Path, notes: list[str], left: list[str], deep: list[str]
) -> tuple[dict[str, dict[str, list]], list[str]]:
    """Train and test, each {class: files}, and the folders' names that were used."""
    named: dict[str, str] = {}
    for name in known:
        if other := named.get(part_of(name)):
            raise DataError(f"{place} has two folders for the same part: {other} and {name}; keep one of them")
        named[part_of(name)] = name
    below = {part: _unwrapped(_below(found, name), inside_a_part=True)[0] for part, name in named.items()}
    train = _tree(below["train"], place / named["train"], deep)
    for part in ("val", "test"):
        if part in named and _is_flat(below[part], set(train)):
            count = sum(entry.picture for entry in below[part])
            left.append(f"{named.pop(part)} ({count} pictures without labels)")
    read = {part: train if part == "train" else _tree(below[part], place / named[part], deep) for part in named}
    for part, classes in read.items():
        if odd := sorted(set(classes) ^ set(train)):
            both = f"{named['train']} and {named[part]}"
            raise DataError(f"{place}: the parts {both} differ in the classes {', '.join(odd)}")
    used = list(named.values())
    if len(read) == 3:
        notes.append(f"{named['train']} and {named['val']} together are the training part")
        read["train"] = {name: files + read["val"][name] for name, files in read["train"].items()}
    if len(read) == 1:
        return {"": read["train"]}, used
    return {"train": read["train"], "test": read["test" if "test" in read else "val"]}, used


def _is_flat(below: list[Entry], classes: set[str]) -> bool:
    """Whether a part has pictures but no labels: no folders, or a single one that is no class."""
    tops = {entry.names[0] for entry in below if entry.file is None}
    return any(entry.picture for entry in below) and (not tops or (len(tops) == 1 and not tops & classes))


def _classes(
    found: list[Entry], tops: list[str], known: list[str], place: Path, left: list[str], deep: list[str]
) -> dict[str, list]:
    """{class: files} of class folders alone; a part's name there stands for pictures without labels, or is a fault."""
    below = {name: _below(found, name) for name in tops}
    looked_through = {name: _unwrapped(below[name], inside_a_part=True)[0] for name in tops}
    folders = {name: {e.names[0] for e in looked_through[name] if e.file is None} for name in tops}
    flat = [name for name in known if part_of(name) != "train" and below[name] and not folders[name]]
    if len(tops) - len(flat) > 1:
        left += [f"{name} ({sum(e.picture for e in below[name]):,} pictures without labels)" for name in flat]
        found = [entry for entry in found if entry.names[0] not in flat]
        tops, known = ([name for name in names if name not in flat] for names in (tops, known))
    if len(tops) == 1 and known and len(folders[tops[0]]) > 1:
        raise DataError(
            f"{place} has only {tops[0]}: expected train and test by any of the names {KNOWN}; or only class folders"
        )
    if len(tops) < 2:
        return _tree(found, place, deep)
    if len(like := {part: name for name in tops for part in _parts_in(name)}) > 1 and "train" in like:
        raise DataError(
            f"{place} has {', '.join(tops)}: if {' and '.join(sorted(like.values()))} are parts, call them "
            f"{KNOWN}; if they are classes, rename them"
        )
    for name in known:
        if part_of(name) != "train" or len(folders[name]) > 1:  # pictures of trains are a class
            raise DataError(
                f"{place} has {', '.join(tops)}: {name} is a part, but there is no other. Expected two or three parts "
                f"by any of the names {KNOWN}; or only class folders"
            )
    return _tree(found, place, deep)


def _below(found: list[Entry], name: str) -> list[Entry]:
    """What a folder at the top holds, as seen from there."""
    return [Entry(e.names[1:], e.file, e.picture) for e in found if e.names[0] == name and len(e.names) > 1]


def _tree(found: list[Entry], place: Path, deep: list[str]) -> dict[str, list[Path | Packed]]:
    """{class: pictures} of the folders at the top, sorted; every class has some. deep: takes their subfolders."""
    classes = sorted({entry.names[0] for entry in found if entry.file is None})
    if len(classes) < 2:
        held = f"one folder, {classes[0]}" if classes else "no folders"
        raise DataError(f"{place} has {held}: expected one per class, two or more, with images in them")
    spellings: dict[str, str] = {}
    for name in classes:
        other = spellings.setdefault(name.strip().casefold(), name)
        if other != name:
            raise DataError(f"{place}: the classes {other} and {name} differ only in case: merge or rename them")
    deep += [folder for folder in _subfolders(found, spellings, place) if folder not in deep]
    read = {}
    for name in classes:
        inside = [entry for entry in found if entry.names[0] == name and entry.file]
        read[name] = [entry.file for entry in inside if entry.picture]
        if not read[name]:
            held = ", ".join(_others(inside)) or "no files"
            kinds = " ".join(IMG_EXTENSIONS)
            raise DataError(f"class {name!r} is empty: {place / name} holds {held}; expected images ({kinds})")
    return read


def _subfolders(found: list[Entry], classes: dict[str, str], place: Path) -> list[str]:
    """The classes' folders with pictures, as CLASS/FOLDER. classes: {name in small letters: name}.

    Raises DataError where one is called like a part, like another class, or like one in another class: they may be
    classes, and what is above them parts. It may be if each class has its pictures in a single folder (CLASS/images/).
    """
    ways = defaultdict(set)
    for entry in found:
        if entry.picture and len(entry.names) > 1:
            ways[entry.names[0]].add(entry.names[1:-1])
    single, first = all(len(way) == 1 for way in ways.values()), {}
    for name in sorted(ways):
        for folder in sorted({folder for way in ways[name] for folder in way}):
            key = folder.strip().casefold()
            other = first.setdefault(key, name)
            if part_of(folder):
                odd = f"{name} holds a folder {folder}, which is the name of a part"
            elif classes.get(key, name) != name:
                odd = f"{name} holds a folder {folder}, which is the name of a class"
            elif other != name and not single:
                odd = f"{other} and {name} both hold a folder {folder}"
            else:
                continue
            raise DataError(
                f"{place}: {odd}. Expected CLASS/ or PART/CLASS/, the pictures directly in the class folders and the "
                f"parts called {KNOWN}"
            )
    return sorted({f"{name}/{way[0]}" for name in ways for way in ways[name] if way})


def _counted(count: int, where: str) -> list[str]:
    return [f"{count:,} picture{'s' if count > 1 else ''} {where}"] if count else []


def _others(found: list[Entry]) -> list[str]:
    """What is there besides pictures, counted by ending."""
    other = [entry for entry in found if entry.file and not entry.picture]
    heic = [entry for entry in other if entry.ending in decoding.HEIC_ENDINGS]
    kinds = Counter(entry.ending or "without ending" for entry in other if entry not in heic)
    ranked = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    told = ", ".join(f"{count:,} {ending}" for ending, count in ranked[:6])
    count, more = sum(kinds.values()), ", ..." if len(kinds) > 6 else ""
    what = "other files" if count > 1 else "other file"
    return [f"{len(heic):,} HEIC photo{'s' if len(heic) > 1 else ''} ({decoding.HEIC_ADVICE})"] * bool(heic) + (
        [f"{count:,} {what} ({told}{more})"] if count else []
    )
