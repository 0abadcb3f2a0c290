"""The page *Your photos in your browser*: its scripts, its arithmetic against Pillow's, its answers in Chromium.

The npm package is not fetched here: what needs it is skipped where .cache does not hold it (`make book` puts it there).
"""

import base64
import functools
import gzip
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_browser_vit import run_js

import photopage
from vitutils.analysis import export
from vitutils.analysis.export import OnnxModel

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "book" / "_static" / "photos"
PAGE = ROOT / f"{photopage.PAGE}.md"
CACHE = ROOT / ".cache"
EXACT = 1e-3  # of probabilities, the page's against onnxruntime's in Python


def frame(folder: str) -> str:
    """The page's own HTML, its files taken from a folder."""
    html = re.search(r"^```\{raw\} html\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
    return html.replace("../_static/photos/", folder)


def photo(W: int, H: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with soft and hard edges."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((W, H), Image.Resampling.BICUBIC)).copy()
    pixels[H // 4 : H // 2, W // 3 : W // 2] = 255
    return Image.fromarray(pixels).convert(mode)


# --- the scripts ---


def unpacked(text: str, key: str) -> bytes:
    return gzip.decompress(base64.b64decode(re.search(rf"  {key}: `\n(.*?)`", text, re.S)[1]))


@pytest.fixture
def pocket(monkeypatch):
    """The page's scripts around the pocket ViT, with a runtime that is none."""
    monkeypatch.setattr(photopage, "NETWORKS", ("pocket",))
    monkeypatch.setattr(photopage, "runtime", lambda cache: {"code": b"code", "wasm": b"\0wasm"})


def test_the_scripts_hold_what_they_are_made_of(pocket, tmp_path):
    made = photopage.scripts(tmp_path)
    assert set(made) == {"about.js", "runtime.js", "model.js"} and len(made["about.js"]) < 1_000
    assert unpacked(made["runtime.js"], "wasm") == b"\0wasm" and "MIT License" in made["runtime.js"]
    (tmp_path / "m.onnx").write_bytes(unpacked(made["model.js"], "onnx"))
    run = OnnxModel(tmp_path / "m.onnx")
    words = json.loads(re.search(r"^  words: (\{.*\}),$", made["model.js"], re.M)[1])
    assert run.int8 == "weights" and words == run.words and words["classes"][0] == "T-shirt/top"
    total = round(sum(len(text) for name, text in made.items() if name != "about.js") / 1e6, 1)
    assert f"megabytes: {total}," in made["about.js"] and 'missing: ""' in made["about.js"]
    assert photopage.scripts(tmp_path) == made  # the same bytes, from the cache
    assert sorted(path.suffix for path in (tmp_path / "photos-page").iterdir()) == [".onnx"]


def test_without_a_network_the_page_says_so_and_nothing_breaks(tmp_path, monkeypatch):
    def none(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", none)
    made = photopage.scripts(tmp_path)
    assert list(made) == ["about.js"] and "could not be loaded (URLError)" in made["about.js"]
    assert not list(tmp_path.iterdir())


def package() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as made:
        for name in photopage.PARTS.values():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            made.addfile(entry, io.BytesIO(name.encode()))
    return raw.getvalue()


def test_another_package_than_the_pinned_one_is_not_taken(tmp_path, monkeypatch):
    raw = package()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(raw))
    assert "another checksum" in photopage.scripts(tmp_path)["about.js"] and not list(tmp_path.iterdir())
    sum512 = base64.b64encode(photopage.hashlib.sha512(raw).digest()).decode()
    monkeypatch.setattr(photopage, "INTEGRITY", sum512)
    found = photopage.runtime(tmp_path)
    assert found == {part: name.encode() for part, name in photopage.PARTS.items()}
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked twice"))
    assert photopage.runtime(tmp_path) == found


@pytest.mark.parametrize(
    ("builder", "pages", "error", "written"),
    [("html", {photopage.PAGE}, None, True), ("html", {"book/api"}, None, False),
     ("latex", {photopage.PAGE}, None, False), ("html", {photopage.PAGE}, ValueError(), False)],
)  # fmt: skip
def test_only_a_book_with_the_page_gets_the_scripts(builder, pages, error, written, tmp_path, monkeypatch):
    monkeypatch.setattr(photopage, "scripts", lambda cache: {"about.js": "x"})
    made = types.SimpleNamespace
    app = made(builder=made(format=builder), env=made(found_docs=pages), outdir=tmp_path, srcdir=tmp_path)
    photopage.write(app, error)
    assert (tmp_path / "_static" / "photos" / "about.js").exists() == written


def test_the_page_loads_little_before_it_is_asked_and_asks_nobody():
    html = frame("")
    assert re.findall(r'src="(.*?)"', html) == ["about.js", "photos.js", "page.js"]
    assert sum(path.stat().st_size for path in FILES.iterdir()) < 40_000
    for path in FILES.iterdir():
        text = path.read_text(encoding="utf-8")
        asks = r"\beval\b|\bFunction\(|\bfetch\b|XMLHttpRequest|WebSocket|sendBeacon|url\(|https?:"
        assert not re.search(asks, text), f"{path.name} may ask another host, or evaluate text"
    wanted = set(re.findall(r'place\("(\w+)"\)', (FILES / "page.js").read_text(encoding="utf-8")))
    assert wanted <= set(re.findall(r'id="photos-(\w+)"', html))


# --- the arithmetic ---

HOW = {"resize": 62, "interpolation": "bicubic", "crop": [56, 56], "grey": False, "first": "picture"}
HOW |= {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
SHAPES = [(200, 131), (131, 200), (62, 62), (40, 33), (63, 120), (57, 110)]


@pytest.mark.parametrize("more", [{}, {"interpolation": "bilinear"}, {"resize": [56, 56]}, {"crop": [41, 41]}])
def test_pixels_are_pillows(more, tmp_path):
    if not shutil.which("node"):
        pytest.skip("no node on this machine")
    how, pictures = HOW | more, [photo(*shape, seed=n) for n, shape in enumerate(SHAPES)]
    given = [[*picture.size, base64.b64encode(picture.tobytes()).decode()] for picture in pictures]
    body = (FILES / "photos.js").read_text(encoding="utf-8")
    body += f"\nconst HOW = {json.dumps(how)}, GIVEN = {json.dumps(given)};"
    body += """
    const RESULT = JSON.stringify(GIVEN.map(([W, H, text]) => {
      const pixels = new Uint8ClampedArray(Buffer.from(text, "base64"));
      return Buffer.from(photos.prepare(pixels, W, H, HOW).buffer).toString("base64");
    }));"""
    for picture, text in zip(pictures, run_js("node", tmp_path, body), strict=True):
        want = export.transform_from(how)(picture)
        got = torch.from_numpy(np.frombuffer(base64.b64decode(text), np.float32).copy()).reshape(want.shape)
        away = (got - want).abs()
        if isinstance(how["resize"], list):  # sides shrunk unlike: Pillow 13 may begin with the columns, see photos.js
            assert away.mean() < 2e-3, (picture.size, away.mean())
        else:
            assert away.max() < 1e-5, (picture.size, away.max())


# --- the answers ---


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page's frame and scripts with the true runtime, served on this machine; what it was asked for."""
    if not all((CACHE / f"onnxruntime-web-{photopage.VERSION}" / name).is_file() for name in photopage.PARTS.values()):
        pytest.skip("onnxruntime-web is not in .cache: `make book` fetches it")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(FILES, folder / "photos")
    for name, text in photopage.scripts(CACHE).items():
        (folder / "photos" / name).write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{frame('photos/')}", encoding="utf-8")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(folder))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}/index.html"
        serving.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("from_disk", [False, True], ids=["served", "from the disk"])
def test_the_page_answers_as_onnxruntime_does(site, from_disk, tmp_path):
    sync = pytest.importorskip("playwright.sync_api")
    from pages import NoBrowser, find_browser, launch

    folder, address = site
    pictures = {"wide.png": photo(400, 300), "tall.png": photo(230, 400, seed=1)}
    pictures["clear.png"] = photo(300, 300, "RGBA", 2)
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    (tmp_path / "none.png").write_text("no picture")
    model = (folder / "photos" / "model.js").read_text(encoding="utf-8")
    (tmp_path / "m.onnx").write_bytes(unpacked(model, "onnx"))
    run = OnnxModel(tmp_path / "m.onnx")
    try:
        browser = find_browser()
    except NoBrowser as error:
        pytest.skip(str(error))
    asked, errors = [], []
    with sync.sync_playwright() as playwright:
        chromium = launch(playwright, browser)
        page = chromium.new_page()
        page.set_default_timeout(600_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((folder / "index.html").as_uri() if from_disk else address)
        page.set_input_files("#photos-files", tmp_path / "wide.png")
        page.wait_for_function("document.getElementById('photos-state').textContent.includes('waits')")
        assert not [url for url in asked if "runtime.js" in url or "model.js" in url]  # nothing unasked
        page.focus("#photos-load")
        page.keyboard.press("Enter")
        page.wait_for_selector("#photos-list > li[data-probabilities]")
        page.set_input_files("#photos-files", [tmp_path / name for name in ("tall.png", "none.png", "clear.png")])
        page.wait_for_function("document.getElementById('photos-state').textContent === '3 photos answered.'")
        found = page.eval_on_selector_all(
            "#photos-list > li",
            "found => found.map((li) => [li.textContent, JSON.parse(li.dataset.probabilities || 'null')])",
        )
        chromium.close()
    assert not errors and not [url for url in asked if not url.startswith((address[:20], "file:", "blob:", "data:"))]
    assert [name for text, _ in found[::-1] for name in (*pictures, "none.png") if name in text] == [
        "wide.png", "tall.png", "none.png", "clear.png"]  # fmt: skip
    exact = EXACT if run.words["preprocessing"]["first"] == "picture" else 0.02  # the pocket ViT's resize is torch's
    for text, got in found:
        name = next(name for name in (*pictures, "none.png") if name in text)
        if name == "none.png":
            assert got is None and "no picture" in text
            continue
        want = run.probabilities([Image.open(tmp_path / name)])[0]
        assert (torch.tensor(got) - want).abs().max() < exact, (name, (torch.tensor(got) - want).abs().max())
        assert run.classes[int(want.argmax())].split(",")[0] in text


@pytest.mark.parametrize("fault", ["no runtime", "no file"])
@pytest.mark.slow
def test_a_page_without_its_files_says_so(fault, tmp_path):
    shutil.copytree(FILES, tmp_path / "photos")
    if fault == "no runtime":
        text = photopage.script("photosAbout", "", {"missing": "no network"}, {})
        (tmp_path / "photos" / "about.js").write_text(text, encoding="utf-8")
    body = 'await new Promise((r) => addEventListener("load", r));'
    body += "const p = (id) => document.getElementById('photos-' + id);"
    body += "const RESULT = JSON.stringify({hidden: p('stage').hidden, told: p('missing').textContent});"
    got = run_js("chromium", tmp_path, body, frame((tmp_path / "photos").as_uri() + "/"))
    assert got["hidden"] and ("no network" if fault == "no runtime" else "did not load") in got["told"]
