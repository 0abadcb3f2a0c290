"""Write what the page *A ViT in your browser* reads: the pocket ViT's weights, and a few test images.

    .venv/bin/python tools/export_pocket.py

Into book/_static/pocket:

    weights.js   all of vitutils/pocket.safetensors, rounded to 16 bits, and the sizes of the net
    images.js    the first four test images of each class of Fashion-MNIST; left as it is where the set is not there

Both are scripts that hold base64 text, and not binary files, because a page opened from the disk may load scripts but
may not fetch files. The same inputs give the same bytes; a test compares them with what is committed.
"""

from __future__ import annotations

import base64
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from vitutils import data
from vitutils.files import whole_file
from vitutils.models.weights import POCKET_CONFIG, load_pretrained

FOLDER = Path(__file__).resolve().parent.parent / "book" / "_static" / "pocket"
PER_CLASS = 4
FIELDS = ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps")
NOTICE = """\
Fashion-MNIST is Copyright (c) 2017 Zalando SE, and under the MIT License:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def script(name: str, comment: str, fields: dict, payload: str, raw: bytes) -> str:
    """A script that sets `name` to the fields and, as the last of them, base64 text; node may require it too."""
    lines = [f"// {line}".rstrip() for line in comment.splitlines()]
    lines += [f"var {name} = {{"]
    lines += [f"  {key}: {json.dumps(value)}," for key, value in fields.items()]
    lines += [f"  {payload}: `", *textwrap.wrap(base64.b64encode(raw).decode(), 120), "`,", "};"]
    lines += [f'if (typeof module === "object") module.exports = {name};', ""]
    return "\n".join(lines)


def to_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor rounded to 16 bits, by name. Raises ValueError where a number does not fit into them."""
    halves = {name: tensor.half() for name, tensor in state.items()}
    for name, tensor in halves.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected numbers that 16 bits can hold, got {state[name].abs().max():g}")
    return halves


def weights_script() -> str:
    """The text of weights.js."""
    pocket = load_pretrained("pocket")
    halves = to_half(dict(sorted(pocket.model.state_dict().items())))
    config = asdict(POCKET_CONFIG)
    fields = {"config": {name: config[name] for name in FIELDS} | {"mean": pocket.mean[0], "std": pocket.std[0]}}
    fields |= {"classes": pocket.classes, "tensors": {name: half.numel() for name, half in halves.items()}}
    numbers = torch.cat([half.flatten() for half in halves.values()]).numpy().astype("<f2")
    comment = (
        "The pocket ViT's weights, trained on Fashion-MNIST: 16-bit floats, little-endian, in the order of `tensors`.\n"
        "Written by tools/export_pocket.py from vitutils/pocket.safetensors: do not edit."
    )
    return script("pocketWeights", comment, fields, "halves", numbers.tobytes())


def images_script(dataset: data.Dataset) -> str:
    """The text of images.js: the first `PER_CLASS` test images of each class, class by class; none is chosen."""
    rows = [(dataset.test_labels == k).nonzero()[:PER_CLASS, 0] for k in range(dataset.num_classes)]
    index = torch.cat(rows)
    comment = (
        f"The first {PER_CLASS} test images of each class of Fashion-MNIST: 28 x 28 bytes each, row by row.\n"
        f"Written by tools/export_pocket.py: do not edit.\n\n{NOTICE}"
    )
    fields = {"index": index.tolist(), "labels": dataset.test_labels[index].tolist()}
    return script("pocketImages", comment, fields, "pixels", dataset.test_images[index].numpy().tobytes())


def write(path: Path, text: str) -> None:
    """Replace a file in one step, and say so."""
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8", newline="\n")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    write(FOLDER / "weights.js", weights_script())
    try:
        dataset = data.load("fashion_mnist", download=False)
    except data.DataError as error:
        print(f"images.js is left as it is: {error}")
        return 0
    write(FOLDER / "images.js", images_script(dataset))
    return 0


if __name__ == "__main__":
    sys.exit(main())
