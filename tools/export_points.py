"""Write what the page *Attention in 3-D* reads: two clouds, and where each of their points attends.

    .venv/bin/python tools/export_points.py

Trains chapter 13's global and local nets on the training part of `solids` (seed 0, a few minutes), takes two objects of
the test part, and writes into book/_static/points:

    clouds.js   both clouds, and for each net the last layer's attention of every point, in bytes: a script and no JSON
                file, because a page opened from the disk may load scripts but may not fetch files
    still.svg   the same attention of one point of each cloud, from three sides, for where no script runs

The global net's rows are whole; the local net's weights, one set a channel, are their mean over channels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export_pocket import script, write
from vitutils.cli.points import point_net
from vitutils.data.clouds import cloud_batches
from vitutils.data.points import PointSet, load_points
from vitutils.models.points import nearest
from vitutils.models.transformer import train_batches

FOLDER = Path(__file__).resolve().parent.parent / "book" / "_static" / "points"
COUNT, STEPS, LR, SEEN = 192, 300, 3e-3, 128
KINDS = ("chair", "person")  # the first test object of each
NETS = ("global", "local")
VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
NOTICE = """\
Two objects of the set "solids", drawn as points from models of the furniture libraries of Sweet Home 3D: {names}.
Licences and authors: vitutils/solids.md.
Written by tools/export_points.py: do not edit."""


def trained(net: str, found: PointSet):
    """A net of the command line, trained on the training part, in eval mode."""
    torch.manual_seed(0)
    model = point_net(net, found.num_classes)
    train_batches(model, cloud_batches(found.train_points, found.train_labels, 32, SEEN, 0), STEPS, LR)
    return model.eval()


@torch.no_grad()
def attention(model, points: Tensor) -> Tensor:
    """The last layer's attention of every point of one cloud (N, 3): (N, N), rows sum to 1."""
    points = points[None]
    near = nearest(points, model.k) if model.k else None
    tokens = model.embed(points, near)
    for norm, layer in zip(model.norms, model.layers, strict=True):
        out, attn = layer(norm(tokens), points, near, need_weights=True)
        tokens = tokens + out
    if near is None:
        return attn[0]
    rows = torch.zeros(points.shape[1], points.shape[1])
    return rows.scatter(1, near[0], attn[0].mean(dim=2))  # (N, k, D) -> (N, k)


def to_bytes(rows: Tensor) -> np.ndarray:
    """Each row of weights as bytes, 255 for its largest."""
    return (255 * rows / rows.amax(dim=1, keepdim=True)).round().to(torch.uint8).numpy()


def clouds_script(names: list[str], clouds: list[Tensor], maps: dict[str, list[Tensor]], answers: dict) -> str:
    """The text of clouds.js."""
    raw = b"".join((127 * cloud).round().to(torch.int8).numpy().tobytes() for cloud in clouds)
    peaks = {}
    for net in NETS:
        for rows in maps[net]:
            raw += to_bytes(rows).tobytes()
        peaks[net] = [[round(float(v), 4) for v in rows.amax(dim=1)] for rows in maps[net]]
    fields = {"count": COUNT, "kinds": KINDS, "names": names, "nets": NETS, "answers": answers, "peaks": peaks}
    return script("pointClouds", NOTICE.format(names="; ".join(names)), fields, "bytes", raw)


def still(clouds: list[Tensor], maps: list[Tensor], asked: list[int]) -> str:
    """The text of still.svg: each cloud in a row, from the front, the side and above; colour and size are attention."""
    side, parts = 200, []
    for r, (cloud, rows, point) in enumerate(zip(clouds, maps, asked, strict=True)):
        share = (rows[point] / rows[point].max()).tolist()
        for c, (name, across, up) in enumerate((("front", 0, 2), ("side", 1, 2), ("above", 0, 1))):
            x0, y0 = 20 + 220 * c + side / 2, 20 + 240 * r + side / 2
            for i in sorted(range(len(cloud)), key=lambda i: share[i]):
                x, y = x0 + 95 * cloud[i, across].item(), y0 - 95 * cloud[i, up].item()
                colour = VIRIDIS[round(9 * share[i])]
                parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{2 + 3 * share[i]:.1f}" fill="#{colour}"/>')
            x, y = x0 + 95 * cloud[point, across].item(), y0 - 95 * cloud[point, up].item()
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="8" fill="none" stroke="#d55e00" stroke-width="2.5"/>')
            parts.append(f'<text x="{x0:.0f}" y="{y0 + 118:.0f}" text-anchor="middle">{KINDS[r]}, {name}</text>')
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 500" width="680" height="500" role="img" '
        'font-family="sans-serif" font-size="15" stroke="none">',
        "<title>Where one point attends, from three sides</title>",
        "<desc>Two clouds of points, a chair and a person, each from the front, the side and above. One point is "
        "ringed; the others are larger and brighter the more it attends to them.</desc>",
        '<rect width="680" height="500" fill="#fff"/>', *parts, "</svg>", "",
    ])  # fmt: skip


def main() -> int:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = load_points("solids")
    rows = [int((found.test_labels == found.classes.index(kind)).nonzero()[0]) for kind in KINDS]
    clouds, names = [found.test_points[row, :COUNT] for row in rows], [found.test_names[row] for row in rows]
    nets = {net: trained(net, found) for net in NETS}
    maps = {net: [attention(model, cloud) for cloud in clouds] for net, model in nets.items()}
    answers = {
        net: [found.classes[int(model(cloud[None]).argmax())] for cloud in clouds] for net, model in nets.items()
    }
    write(FOLDER / "clouds.js", clouds_script(names, clouds, maps, answers))
    asked = [int(cloud[:, 2].argmax()) for cloud in clouds]  # the highest point
    write(FOLDER / "still.svg", still(clouds, maps["global"], asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
