"""Make the point set "solids" and its card from the furniture libraries of Sweet Home 3D.

    apt-get install sweethome3d-furniture
    .venv/bin/python tools/make_solids.py [--furniture FOLDER]

Reads the libraries (zip files of OBJ models with a catalogue) and tools/solids.txt, which names the models of each
class; writes vitutils/solids.safetensors, and the table and lists of vitutils/solids.md. The same libraries give the
same points (safetensors writes the fields of its header in any order). Takes two minutes and needs trimesh.

What it does with a model: turn it as the catalogue says, stretch it to the catalogue's width, depth and height (as the
program does), put z up, draw points from its surface, each part of it equally likely, centre them, scale them to the
unit sphere. Then it leaves out shapes that are there twice, and shares the others out to three folds.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from vitutils.data.points import FOLDS, sample_surface, unit_sphere
from vitutils.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "solids.txt"
POINTS, SEED = 1_024, 0
ALIKE = 1.10  # two clouds count as one shape if they are less than this times as far apart as two draws of one surface
LICENCES = {  # library: who, licence, its text
    "BlendSwap-CC-0": ("the contributors to Blend Swap", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "BlendSwap-CC-BY": ("the contributors to Blend Swap", "CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
    "KatorLegaz": ("Andrew Kator & Jennifer Legaz", "CC BY 3.0 US", "https://creativecommons.org/licenses/by/3.0/us/"),
    "Reallusion": ("Reallusion, http://www.reallusion.com", "CC BY 3.0 US", "https://creativecommons.org/licenses/by/3.0/us/"),
    "Scopia": (
        "Emmanuel Puybaret / eTeks <info@eteks.com> and Scopia Visual Interfaces Systems, s.l., http://www.scopia.es",
        "CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/",
    ),
}  # fmt: skip


@dataclass
class Solid:
    """One object. cloud: (P, 3) in the unit sphere; spare: (2 P, 3), other points of the same surface."""

    label: str
    library: str
    model: str
    name: str
    creator: str
    address: str  # where it was taken from, if its own licence file says so
    licence: str
    size: tuple[float, float, float]  # width, depth, height in cm
    cloud: np.ndarray
    spare: np.ndarray

    @property
    def key(self) -> str:
        return f"{self.library}/{self.model}"


def wanted() -> dict[str, list[tuple[str, str]]]:
    """What solids.txt names: {class: [(library, model)]}."""
    found: dict[str, list[tuple[str, str]]] = {}
    library = ""
    for word in re.sub(r"#.*", "", LIST.read_text(encoding="utf-8")).split():
        if word.startswith("["):
            models = found.setdefault(word.strip("[]"), [])
        elif word.endswith(":"):
            library = word[:-1]
        else:
            models.append((library, word))
    return found


def catalogue(library: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """A library's catalogue: {model: {field: value}}."""
    entries: dict[str, dict[str, str]] = {}
    text = library.read("PluginFurnitureCatalog.properties").decode("latin-1").replace("\\u20ac", "€")
    for field, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, re.MULTILINE):
        entries.setdefault(number, {})[field] = value
    return {Path(entry["model"]).stem: entry for entry in entries.values()}


def read_triangles(library: zipfile.ZipFile, entry: dict[str, str]) -> np.ndarray:
    """A model's faces, (F, 3, 3), in cm, z up, as the program shows it."""
    raw = library.read(entry["model"].lstrip("/"))
    mesh = trimesh.load(io.BytesIO(raw), file_type="obj", force="mesh", process=False, skip_materials=True)
    triangles = np.asarray(mesh.triangles, np.float64)
    if "modelRotation" in entry:
        triangles = triangles @ np.array(entry["modelRotation"].split(), float).reshape(3, 3).T
    size = np.array([float(entry[side]) for side in ("width", "height", "depth")])
    extent = np.ptp(triangles.reshape(-1, 3), axis=0)
    x, y, z = np.moveaxis(triangles * (size / np.maximum(extent, 1e-9)), -1, 0)
    return np.stack([x, -z, y], axis=-1)  # there y is up and the front looks to z


def own_licence(library: zipfile.ZipFile, entry: dict[str, str], licence: str) -> tuple[str, str]:
    """The address and the licence in the file that lies beside a model; the library's licence where there is none."""
    folder = str(Path(entry["model"].lstrip("/")).parent) + "/"
    texts = {name: library.read(name).decode("utf-8", "replace") for name in library.namelist()
             if name.startswith(folder) and "licen" in name.removeprefix(folder).lower()}  # fmt: skip
    for name, text in sorted(texts.items()):
        if re.search(r"share.?alike|by-sa|non.?commercial|by-nc|no.?deriv|by-nd", text, re.IGNORECASE):
            raise SystemExit(f"{name}: a licence that does not allow this use")
        number = re.search(r"(\d+) - ", name.removeprefix(folder)) or re.search(r"blends/view/(\d+)", text)
        if "Creative Commons Attribution 3.0" in text:
            licence = "CC BY 3.0"
        return f"https://www.blendswap.com/blend/{number[1]}" if number else "", licence
    return "", licence


def make(folder: Path) -> list[Solid]:
    """Every object of the list, in its order."""
    solids: list[Solid] = []
    libraries = {name: zipfile.ZipFile(folder / f"{name}.sh3f") for name in LICENCES}
    entries = {name: catalogue(library) for name, library in libraries.items()}
    for label, models in wanted().items():
        for library, model in models:
            entry = entries[library][model]
            triangles = read_triangles(libraries[library], entry)
            rng = np.random.default_rng([SEED, zlib.crc32(f"{library}/{model}".encode())])
            drawn = sample_surface(triangles, 3 * POINTS, rng)
            address, licence = own_licence(libraries[library], entry, LICENCES[library][1])
            solids.append(
                Solid(
                    label, library, model, entry["name"], entry["creator"], address, licence,
                    tuple(float(entry[side]) for side in ("width", "depth", "height")),
                    unit_sphere(torch.from_numpy(drawn[:POINTS])).numpy(), drawn[POINTS:],
                )
            )  # fmt: skip
    return solids


# --- shapes that are there twice ---


def fitted(points: np.ndarray, stretched: bool) -> np.ndarray:
    """Points with their box in the middle; in the unit sphere, or stretched to the unit cube."""
    low, high = points.min(0), points.max(0)
    points = points - (low + high) / 2
    return points / np.maximum((high - low) / 2, 1e-9) if stretched else points / np.linalg.norm(points, axis=1).max()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The Chamfer distance of two clouds: from each point to the nearest of the other cloud, on average."""
    return (cKDTree(one).query(other)[0].mean() + cKDTree(other).query(one)[0].mean()) / 2


def turns(points: np.ndarray) -> list[np.ndarray]:
    """Points turned about the vertical by quarters, and the mirrored ones."""
    x, y, z = points.T
    plain = [np.stack(axes, axis=1) for axes in ((x, y, z), (-y, x, z), (-x, -y, z), (y, -x, z))]
    return plain + [cloud * [-1, 1, 1] for cloud in plain]


def alike(solids: list[Solid], stretched: bool) -> dict[tuple[int, int], float]:
    """Pairs of objects, the earlier first, that are one shape: how many times as far apart as two draws of one surface.

    The best of eight turns and mirrors counts. stretched: pairs of a class that would be one shape if both were
    stretched to one box.
    """
    clouds = [fitted(solid.spare, stretched) for solid in solids]  # each (2 P, 3): two draws
    boxes = [np.ptp(cloud, axis=0) for cloud in clouds]
    draws = [apart(cloud[:POINTS], cloud[POINTS:]) for cloud in clouds]
    trees = [cKDTree(cloud[:POINTS]) for cloud in clouds]
    found = {}
    for j, solid in enumerate(solids):
        turned = [(cloud, np.ptp(cloud, axis=0)) for cloud in turns(clouds[j][POINTS:])]
        for i in range(j):
            if stretched and solids[i].label != solid.label:
                continue
            far = (draws[i] + draws[j]) / 2
            could = [
                cloud for cloud, box in turned  # a few points tell most pairs apart
                if np.abs(box - boxes[i]).max() < 0.3 and trees[i].query(cloud[:200])[0].mean() < 1.5 * ALIKE * far
            ]  # fmt: skip
            ratio = min((apart(clouds[i][:POINTS], cloud) / far for cloud in could), default=np.inf)
            if ratio < ALIKE:
                found[i, j] = ratio
    return found


def without_copies(solids: list[Solid]) -> tuple[list[Solid], list[tuple[Solid, Solid, float]]]:
    """The objects without those that have the shape of an earlier one; and those, each with the one that stays."""
    dropped: dict[int, tuple[int, float]] = {}
    for (i, j), ratio in sorted(alike(solids, stretched=False).items()):
        if i not in dropped and j not in dropped:
            dropped[j] = i, ratio
    kept = [solid for j, solid in enumerate(solids) if j not in dropped]
    return kept, [(solids[j], solids[i], ratio) for j, (i, ratio) in sorted(dropped.items())]


def share_out(solids: list[Solid]) -> tuple[list[int], list[list[Solid]]]:
    """A fold for each object, classes in proportion, stretched copies together; and the groups of such copies."""
    group = list(range(len(solids)))
    for i, j in sorted(alike(solids, stretched=True)):
        old, new = group[j], group[i]
        group = [new if g == old else g for g in group]
    members = {g: [i for i, other in enumerate(group) if other == g] for g in dict.fromkeys(group)}
    rng, folds, total = np.random.default_rng(SEED), [0] * len(solids), Counter()
    for label in dict.fromkeys(solid.label for solid in solids):
        own = [rows for rows in members.values() if solids[rows[0]].label == label]
        counts = Counter()
        for place in sorted(rng.permutation(len(own)), key=lambda place: -len(own[place])):
            fold = min(range(FOLDS), key=lambda fold: (counts[fold], total[fold], fold))
            for row in own[place]:
                folds[row] = fold
            counts[fold] += len(own[place])
            total[fold] += len(own[place])
    return folds, [[solids[row] for row in rows] for rows in members.values() if len(rows) > 1]


# --- what is written ---


def save(solids: list[Solid], folds: list[int], path: Path) -> None:
    classes = list(dict.fromkeys(solid.label for solid in solids))
    tensors = {
        "points": torch.from_numpy(np.stack([solid.cloud for solid in solids])).half(),
        "labels": torch.tensor([classes.index(solid.label) for solid in solids], dtype=torch.uint8),
        "folds": torch.tensor(folds, dtype=torch.uint8),
        "sizes": torch.tensor([solid.size for solid in solids], dtype=torch.float32),
    }
    about = {
        "classes": json.dumps(classes),
        "names": json.dumps([f"{solid.name} ({solid.key}, {solid.creator})" for solid in solids]),
        "source": "the furniture libraries of Sweet Home 3D, CC BY 3.0 and CC0: see vitutils/solids.md",
        "licence": "CC BY 3.0, CC BY 3.0 US and CC0 1.0; authors and changes are told in vitutils/solids.md",
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, about)


def card(text: str, solids: list[Solid], folds: list[int], copies: list, groups: list) -> str:
    """The text of solids.md with its table and lists made anew; its sentences, numbers in them too, stay."""
    table = ["| class | objects | " + " | ".join(f"fold {fold}" for fold in range(FOLDS)) + " |"]
    table.append("| --- " * (2 + FOLDS) + "|")
    for label in [*dict.fromkeys(solid.label for solid in solids), "together"]:
        own = [fold for solid, fold in zip(solids, folds, strict=True) if label in (solid.label, "together")]
        table.append(f"| {label} | {len(own)} | " + " | ".join(str(own.count(fold)) for fold in range(FOLDS)) + " |")
    twice = [f"- {gone.key}: as {stays.key} ({ratio:.2f})" for gone, stays, ratio in copies]
    near = ["- " + ", ".join(solid.key for solid in group) for group in groups]
    places = {r"\| class .*?\|(?=\n\n)": "\n".join(table), r"### .*(?=\n\n## Left out)": credit(solids)}
    places |= {r"(?<=## Left out as copies\n\n).*?(?=\n\n## )": "\n".join(twice)}
    places |= {r"(?<=## Kept in one fold\n\n).*(?=\n\Z)": "\n".join(near)}
    for place, lines in places.items():
        text = re.sub(place, lambda _, lines=lines: lines, text, count=1, flags=re.S)
    return text


def credit(solids: list[Solid]) -> str:
    """Every object with its author and licence, by library."""
    lines = []
    for library, (authors, licence, address) in LICENCES.items():
        own = [solid for solid in solids if solid.library == library]
        lines += ["", f"### {library}: {len(own)} objects", "", f"By {authors}. [{licence}]({address}).", ""]
        for label in dict.fromkeys(solid.label for solid in own):
            told = []
            for solid in (solid for solid in own if solid.label == label):
                name = f"[{solid.name}]({solid.address})" if solid.address else solid.name
                by = "" if solid.creator in (library, "Kator Legaz") else f" by {solid.creator}"
                other = "" if solid.licence == licence else f", {solid.licence}"
                told.append(f"{name} (`{solid.model}`){by}{other}")
            lines.append(f"- **{label}**: {'; '.join(told)}.")
    return "\n".join(lines).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--furniture", type=Path, default=Path("/usr/share/sweethome3d/furniture"))
    folder = parser.parse_args().furniture
    if missing := [name for name in LICENCES if not (folder / f"{name}.sh3f").is_file()]:
        print(f"{folder}: no {', '.join(missing)}; on Debian: apt-get install sweethome3d-furniture", file=sys.stderr)
        return 1
    solids, copies = without_copies(make(folder))
    folds, groups = share_out(solids)
    path = ROOT / "vitutils" / "solids.safetensors"
    save(solids, folds, path)
    page = path.with_suffix(".md")
    text = card(page.read_text(encoding="utf-8"), solids, folds, copies, groups)
    page.write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(solids)} objects, {len(copies)} copies left out, {len(groups)} groups of stretched copies")
    return 0


if __name__ == "__main__":
    sys.exit(main())
