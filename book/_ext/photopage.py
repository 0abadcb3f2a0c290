"""What the page "Your photos in your browser" loads: onnxruntime-web, a network, and a line on both.

Written into the built pages' _static/photos, and only where the book has that page. Each is a script that holds packed
bytes as base64, because a page opened from the disk may load scripts but may not fetch files:

    about.js    what there is and how large; small, loaded with the page
    runtime.js  onnxruntime-web, from its npm package of a pinned version and checksum; kept in .cache
    model.js    ViT-Tiny with weights in 8 bits, or the pocket ViT where the weights cannot be had; kept in .cache

Without a network, and nothing in .cache, the book is built all the same: about.js then says why there is no runtime.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
import textwrap
import urllib.request
from pathlib import Path

PAGE = "book/photos-in-your-browser"
VERSION = "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # sha512
REGISTRY = "https://registry.npmjs.org"
PARTS = {"code": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
NETWORKS = ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "pocket")
CREDITS = {
    NETWORKS[0]: "ViT-Tiny (AugReg), trained on ImageNet-21k and ImageNet-1k, as timm has it. Apache License 2.0.",
    NETWORKS[1]: "The book's pocket ViT, trained on Fashion-MNIST; MIT License.",
}
LICENCE = """\
onnxruntime-web {version}, from its npm package. MIT License. Copyright (c) Microsoft Corporation

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


class NoRuntime(Exception):
    """It cannot be had; the message says why."""


# --- what is loaded ---


def runtime(cache: Path) -> dict[str, bytes]:
    """The two files of onnxruntime-web, from `cache`, or the npm registry. Raises NoRuntime."""
    folder = cache / f"onnxruntime-web-{VERSION}"
    if all((folder / name).is_file() for name in PARTS.values()):
        return {part: (folder / name).read_bytes() for part, name in PARTS.items()}
    registry = os.environ.get("npm_config_registry", REGISTRY).rstrip("/")
    address = f"{registry}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    try:
        with urllib.request.urlopen(address, timeout=15) as answer:
            raw = answer.read()
    except OSError as error:
        raise NoRuntime(f"{address} could not be loaded ({type(error).__name__})") from None
    return unpacked(raw, folder)


def unpacked(raw: bytes, folder: Path) -> dict[str, bytes]:
    """The package's two files, held against the checksum, and kept in a folder."""
    if base64.b64encode(hashlib.sha512(raw).digest()).decode() != INTEGRITY:
        raise NoRuntime(f"onnxruntime-web {VERSION} came with another checksum than the one that the book names")
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:gz") as package:
        found = {part: package.extractfile(f"package/dist/{name}").read() for part, name in PARTS.items()}
    for part, name in PARTS.items():
        _keep(folder / name, found[part])
    return found


def network(cache: Path) -> tuple[str, bytes]:
    """The name and the ONNX file of the first network whose weights can be had, its weights in 8 bits."""
    import onnxruntime
    import torch

    from vitutils.analysis import export
    from vitutils.models.weights import load_pretrained

    found = load_pretrained(*NETWORKS)
    key = hashlib.sha256(Path(export.__file__).read_bytes() + torch.__version__.encode())
    key.update(f"{onnxruntime.__version__} {found.name}".encode())
    for value in found.model.state_dict().values():
        key.update(value.numpy().tobytes())
    file = cache / "photos-page" / f"{found.name}-{key.hexdigest()[:16]}.onnx"
    if not file.is_file():
        config = found.model.config
        size = (config.in_chans, *config.image_shape)
        whole = file.with_suffix(".float32")
        try:
            export.to_onnx(found.model, whole, size, transform=found.transform, classes=found.classes)
            export.to_int8(whole, file, how="weights")
        finally:
            whole.unlink(missing_ok=True)
    return found.name, file.read_bytes()


def words_of(model: bytes) -> dict:
    """What `to_onnx` stored in the file."""
    import onnx

    stored = {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props}
    return json.loads(stored["vitutils"])


# --- as scripts ---


def script(name: str, comment: str, fields: dict, packed: dict[str, bytes]) -> str:
    """A script that sets `name` to the fields and to gzipped bytes as base64."""
    lines = [f"// {line}".rstrip() for line in comment.splitlines()] + [f"var {name} = {{"]
    lines += [f"  {key}: {json.dumps(value)}," for key, value in fields.items()]
    for key, raw in packed.items():
        coded = base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode()
        lines += [f"  {key}: `", *textwrap.wrap(coded, 10_000), "`,"]
    return "\n".join([*lines, "};", ""])


def scripts(cache: Path) -> dict[str, str]:
    """The page's scripts, by name; without a runtime only the one that says so."""
    try:
        parts = runtime(cache)
    except NoRuntime as error:
        return {"about.js": script("photosAbout", "Written when the book was built.", {"missing": str(error)}, {})}
    name, model = network(cache)
    found = {
        "runtime.js": script("photosRuntime", LICENCE.format(version=VERSION), {}, parts),
        "model.js": script("photosModel", CREDITS[name], {"words": words_of(model)}, {"onnx": model}),
    }
    fields = {"missing": "", "name": name, "megabytes": round(sum(map(len, found.values())) / 1e6, 1)}
    return {"about.js": script("photosAbout", "Written when the book was built.", fields, {})} | found


def _keep(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(raw)
    new.replace(path)


def write(app, error) -> None:
    if error or app.builder.format != "html" or PAGE not in app.env.found_docs:
        return
    folder = Path(app.outdir) / "_static" / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts(Path(app.srcdir) / ".cache").items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
