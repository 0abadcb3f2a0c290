"""vitutils.data: real files, damaged files, a small mirror on this machine, two processes at once.

Debian's Fashion-MNIST is used where it is installed. Everything that is tested on it is also tested
on `tiny`, scikit-learn's digits written as the same four files, so that nothing goes untested
elsewhere. No test leaves this machine.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import queue
import shutil
import socket
import sys
import tarfile
import threading
import time
import urllib.request
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.transforms import v2

from vitutils import data
from vitutils.data import sets, sources, synthetic
from vitutils.data.batches import seeded
from vitutils.files import data_folders

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = [name for name, _ in sources.SOURCES["fashion_mnist"].files]
CIFAR10 = sources.SOURCES["cifar10"]
CLOSED = "http://127.0.0.1:9/"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty cache, no system copy, no network but this machine's own."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("VITBOOK_SYSTEM_DATA", str(tmp_path / "system"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("VITBOOK_OFFLINE", raising=False)
    for name, recipe in list(sources.SOURCES.items()):
        monkeypatch.setitem(sources.SOURCES, name, replace(recipe, mirrors=(CLOSED,)))


# --- a small set, made of files like the big ones ---


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_tiny(folder: Path, arrays=None, mtime: int = 1) -> sources.Source:
    """Write the four files and return the recipe that expects just these."""
    digits = data.load("digits")
    if arrays is None:
        arrays = [getattr(digits, part).numpy() for part in sources.TENSORS]
        arrays = [array.squeeze(1) if array.ndim == 4 else array for array in arrays]
    folder.mkdir(parents=True)
    files, unpacked = [], []
    for name, array in zip(FILES, arrays, strict=True):
        raw = idx(array)
        packed = gzip.compress(raw, 1, mtime=mtime)
        (folder / name).write_bytes(packed)
        files.append((name, hashlib.md5(packed).hexdigest()))
        unpacked.append(hashlib.sha256(raw).hexdigest())
    return replace(
        sources.SOURCES["fashion_mnist"],
        shape=(1, *arrays[0].shape[1:]),
        sizes=(len(arrays[0]), len(arrays[2])),
        folder="Tiny/raw",
        files=tuple(files),
        mirrors=(CLOSED,),
        system=("tiny", "the test's own copy"),
        unpacked=tuple(unpacked),
    )


def register(recipe: sources.Source, monkeypatch) -> None:
    monkeypatch.setitem(sources.SOURCES, "tiny", recipe)
    monkeypatch.setattr(sets, "DATA_SETS", (*sets.DATA_SETS, "tiny"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The folder of the small set's files; `load("tiny")` expects them, and finds them nowhere."""
    register(write_tiny(tmp_path / "files"), monkeypatch)
    return tmp_path / "files"


@pytest.fixture(params=["tiny", "fashion_mnist"])
def installed(request, tmp_path, tiny):
    """(name, folder) of a set that stands where the system keeps it, packed anew as Debian does."""
    if request.param == "tiny":
        folder = tmp_path / "system" / "tiny"
        write_tiny(folder, mtime=2)
        return "tiny", folder
    if not DEBIAN.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    folder = tmp_path / "system" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name in FILES:  # a damaged file will take its link's place
        (folder / name).symlink_to(DEBIAN / name)
    return "fashion_mnist", folder


def same(a: data.Dataset, b: data.Dataset) -> bool:
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in sources.TENSORS)


def left_over(tmp_path) -> list[str]:
    cache = tmp_path / "cache"
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.unlink()
    path.write_bytes(raw)


# --- what a set is ---


def test_digits():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (
        360,
        1,
        8,
        8,
    )
    assert digits.train_images.dtype == torch.uint8 and digits.train_labels.dtype == torch.int64
    assert digits.train_images.max() == 255 and digits.train_images.min() == 0
    assert digits.num_classes == 10 and digits.classes[3] == "3" and digits.image_shape == (1, 8, 8)
    assert same(digits, data.load("digits"))
    shares = digits.test_labels.bincount() / 360
    assert (shares - digits.train_labels.bincount() / 1437).abs().max() < 0.003  # stratified
    pixels = digits.train_images.double() / 255
    assert torch.allclose(digits.mean.double(), pixels.mean(), atol=1e-6)
    assert torch.allclose(digits.std.double(), pixels.std(correction=0), atol=1e-6)
    assert repr(digits) == f"<Dataset {digits.summary()}>" and "\n" not in repr(digits)
    assert "1,437" in repr(digits) and "scikit-learn" in digits.source


def test_dataset_refuses_what_does_not_fit():
    digits = data.load("digits")
    for change, words in [
        ({"train_images": digits.train_images.float()}, "expected uint8 images, got torch.float32"),
        (
            {"train_images": digits.train_images[:, 0]},
            r"expected shape \(N, C, H, W\), got \(1437, 8",
        ),
        (
            {"test_labels": digits.test_labels[1:]},
            r"expected 360 labels, one per image, got \(359,\)",
        ),
        ({"test_labels": digits.test_labels.int()}, "expected int64 labels, got torch.int32"),
        ({"test_labels": digits.test_labels + 1}, r"expected labels 0\.\.9, got 1\.\.10"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace(digits, **change)


def test_take_and_hold_out_keep_classes_in_balance():
    digits = data.load("digits")
    small = digits.take(train=105, test=20, seed=3)
    counts = small.train_labels.bincount(minlength=10)
    assert len(small.train_images) == 105 and counts.max() - counts.min() == 1
    assert sorted(small.train_labels[:10].tolist()) == list(range(10))
    assert torch.equal(digits.take(train=50, seed=3).train_images, small.train_images[:50])
    assert not torch.equal(digits.take(train=50, seed=4).train_images, small.train_images[:50])
    assert torch.equal(digits.take(train=50).test_images, digits.test_images)
    assert torch.equal(small.mean, digits.mean)
    held = digits.hold_out(200)
    assert len(held.train_labels) == 1237 and held.test_labels.bincount().tolist() == [20] * 10
    both = torch.cat([held.train_images, held.test_images]).flatten(1)
    whole = digits.train_images.flatten(1)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, whole.numpy()))
    with pytest.raises(ValueError, match="expected 1 to 360 images, got 361"):
        digits.take(test=361)
    with pytest.raises(ValueError, match="between 10 and 1427, .*got 1437"):
        digits.hold_out(1437)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="'imagenet'.*digits, fashion_mnist, mnist, kmnist, cifar10"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="'imagnet'"):
        data.load_first("digits", "imagnet")
    with pytest.raises(ValueError, match="none"):
        data.load_first()


def test_load_first_says_what_could_not_be_had():
    found = data.load_first("cifar10", "mnist", "digits", download=False)
    assert found.name == "digits"
    assert found.source.endswith("(cifar10 and mnist not available)")
    with pytest.raises(data.DataError, match="(?s)'mnist' is not available.*'kmnist' is not available"):
        data.load_first("mnist", "kmnist", download=False)


# --- where a set comes from ---


def test_system_copy_then_cache(installed, tmp_path):
    name, folder = installed
    first = data.load(name)
    assert str(folder) in first.source and not first.source.startswith("the cache")
    assert left_over(tmp_path) == [f"{name}.safetensors"]
    shutil.rmtree(folder)
    second = data.load(name)
    assert same(first, second) and second.classes == first.classes
    assert second.source.startswith("the cache") and str(folder) in second.source


def test_fashion_mnist_is_fashion_mnist(monkeypatch):
    if not DEBIAN.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    monkeypatch.delenv("VITBOOK_SYSTEM_DATA")
    found = data.load("fashion_mnist")
    assert "Debian's dataset-fashion-mnist package" in found.source and str(DEBIAN) in found.source
    assert found.train_images.shape == (60_000, 1, 28, 28)
    assert found.test_labels.bincount().tolist() == [1000] * 10
    assert found.classes[9] == "Ankle boot" and found.test_labels[0] == 9  # the first test image
    # The figures that everyone uses: mean 0.2860, standard deviation 0.3530.
    assert abs(found.mean.item() - 0.2860) < 1e-4 and abs(found.std.item() - 0.3530) < 1e-4


DAMAGE = [("truncated", file) for file in range(4)] + [("altered", 0), ("absent", 3), ("other content", 1)]


@pytest.mark.parametrize("place", ["system/tiny", "cache/Tiny/raw"])
@pytest.mark.parametrize(("damage", "file"), DAMAGE)
def test_damaged_raw_files_are_named(tiny, tmp_path, place, file, damage):
    folder = tmp_path / place
    shutil.copytree(tiny, folder)
    path = folder / FILES[file]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "altered":
        flip(path, 60)
    elif damage == "absent":
        path.unlink()
    else:  # a whole gzip file with a good CRC: only the checksum of the content can tell
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[-1] ^= 1
        path.write_bytes(gzip.compress(raw))
    with pytest.warns(UserWarning, match=FILES[file]):
        with pytest.raises(data.DataError, match=FILES[file]):
            data.load("tiny")
    assert "tiny.safetensors" not in left_over(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_debian_copy_is_named(installed, tmp_path, damage):
    name, folder = installed
    path = folder / FILES[2]  # the test images: the smaller of the two
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw[: len(raw) // 2])
    if damage == "altered":
        content = bytearray(gzip.decompress(raw))
        content[1000] ^= 1
        path.write_bytes(gzip.compress(content, 1))
    with pytest.warns(UserWarning, match=f"{FILES[2]} is damaged"):
        found = data.load_first(name, "digits")
    assert found.name == "digits" and "not available" in found.source
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda arrays: arrays[1].__setitem__(5, 10), r"train labels 0\.\.9, got 0\.\.10"),
        (lambda arrays: arrays.__setitem__(3, arrays[3][:-1]), "360 test labels"),
        (lambda arrays: arrays.__setitem__(0, arrays[0][:-1]), "train images"),
        (lambda arrays: arrays.__setitem__(2, arrays[2][:, :7]), "test images"),
    ],
)
def test_sizes_and_label_range_are_checked(tmp_path, monkeypatch, wrong, words):
    """Files whose checksums are as expected, but whose content is not a set of this kind."""
    good = write_tiny(tmp_path / "files")
    digits = data.load("digits")
    arrays = [getattr(digits, part).numpy().copy().squeeze() for part in sources.TENSORS]
    wrong(arrays)
    bad = write_tiny(tmp_path / "cache" / "Tiny" / "raw", arrays)
    register(replace(bad, sizes=good.sizes, shape=good.shape), monkeypatch)
    with pytest.warns(UserWarning, match=words), pytest.raises(data.DataError, match=words):
        data.load("tiny")
    assert left_over(tmp_path) == ["Tiny"]


def test_idx_header_that_lies(tmp_path):
    for raw in (
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x01\0\0",
        b"\0\0\x0d\x01\0\0\0\x01\0",
        idx(np.ones(5))[:-1],
    ):
        with pytest.raises(data.DataError, match="some-file"):
            sources._idx(raw, tmp_path / "some-file")
    assert sources._idx(idx(np.ones((2, 3))), tmp_path).tolist() == [[1] * 3] * 2


@pytest.mark.parametrize("damage", ["truncated", "data", "header", "empty", "part", "labels"])
def test_damaged_cache_is_named_and_rebuilt(tiny, tmp_path, damage):
    shutil.copytree(tiny, tmp_path / "system" / "tiny")
    good = data.load("tiny")
    path = tmp_path / "cache" / "tiny.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "data":
        flip(path, -1000)
    elif damage == "header":
        flip(path, path.read_bytes().index(b"origin") + 12)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "part":
        safetensors.torch.save_file({"train_images": good.train_images}, path)
    else:  # checksum and all, but labels out of range
        tensors = {part: getattr(good, part) for part in sources.TENSORS}
        tensors["train_labels"] = tensors["train_labels"] + 1
        sources._keep("tiny", (tensors, good.classes, "elsewhere"))
    with pytest.warns(UserWarning, match=f"{path} is damaged"):
        again = data.load("tiny")
    assert same(good, again) and str(tmp_path / "system") in again.source
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load("tiny").source.startswith("the cache")
    flip(path, -1000)
    shutil.rmtree(tmp_path / "system")
    with pytest.warns(UserWarning), pytest.raises(data.DataError, match=f"{path} is damaged"):
        data.load("tiny")


def test_cache_thrown_away_while_it_is_read(tiny, tmp_path, monkeypatch):
    """Once its bytes are there, the file is not opened again: another process may have taken it away."""
    shutil.copytree(tiny, tmp_path / "system" / "tiny")
    good, read = data.load("tiny"), sources.load

    def take_away_and_read(raw):
        (tmp_path / "cache" / "tiny.safetensors").unlink()
        return read(raw)

    monkeypatch.setattr(sources, "load", take_away_and_read)
    again = data.load("tiny")
    assert same(good, again) and again.source.startswith("the cache")


def test_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "system" / "tiny")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "file" / "cache"))
    found = data.load("tiny")
    assert "not cached" in found.source and str(tmp_path / "file") in found.source
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "save_file", full_disk)
    assert "No space left" in data.load("tiny").source
    assert left_over(tmp_path) == []


def full_disk(tensors, path, metadata):
    Path(path).write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


def test_several_folders_all_searched_first_written(tiny, tmp_path, monkeypatch):
    first, second, third = (tmp_path / name for name in "abc")
    monkeypatch.setenv("VITBOOK_DATA", os.pathsep.join(map(str, (first, second, third))))
    shutil.copytree(tiny, third / "Tiny" / "raw")
    assert str(third) in data.load("tiny").source
    assert [path.name for path in first.iterdir()] == ["tiny.safetensors"] and not second.exists()
    shutil.rmtree(third)
    shutil.move(first, second)
    assert data.load("tiny").source.startswith(f"the cache {second}")
    assert not first.exists()


def test_the_default_folder_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", os.pathsep):
        monkeypatch.setenv("VITBOOK_DATA", value)
        assert data_folders() == [tmp_path / ".cache" / "vitbook"]
    monkeypatch.setenv("VITBOOK_DATA", f"~/here{os.pathsep}/there")
    assert data_folders() == [tmp_path / "here", Path("/there")]


# --- CIFAR: the binary archive, never the pickle ---


def cifar_archive(path: Path, fine: bool) -> str:
    """Ten training images and five for testing; returns the archive's MD5."""
    rng = np.random.default_rng(0)
    names = ["train.bin"] if fine else [f"data_batch_{i}.bin" for i in range(1, 6)]
    members = {}
    for name, count in [*[(name, 10 // len(names)) for name in names], ("test.bin", 5)]:
        labels = [[7, 99 - i] if fine else [9 - i] for i in range(count)]
        pixels = rng.integers(0, 256, (count, 3072))
        members[name] = np.concatenate([labels, pixels], 1).astype(np.uint8).tobytes()
    classes = [f"class{i}" for i in range(100 if fine else 10)]
    members["fine_label_names.txt" if fine else "batches.meta.txt"] = "\n".join(classes).encode()
    members["coarse_label_names.txt"] = b"all\nwrong"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in members.items():
            entry = tarfile.TarInfo(f"cifar/{name}")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name, last", [("cifar10", 5), ("cifar100", 95)])
def test_cifar_binary(tmp_path, monkeypatch, name, last):
    recipe = sources.SOURCES[name]
    path = tmp_path / "cache" / recipe.files[0][0]
    md5 = cifar_archive(path, name == "cifar100")
    small = replace(recipe, sizes=(10, 5), files=((path.name, md5),))
    monkeypatch.setitem(sources.SOURCES, name, small)
    found = data.load(name)
    assert found.train_images.shape == (10, 3, 32, 32) and found.classes[3] == "class3"
    assert found.test_labels.tolist()[-1] == last and found.mean.shape == (3,)
    with tarfile.open(path) as archive:  # the second test image's last byte: blue, bottom right
        raw = archive.extractfile("cifar/test.bin").read()
    width = len(raw) // 5
    assert found.test_images[1, 2, 31, 31] == raw[2 * width - 1]
    assert found.test_images[1, 0, 0, 1] == raw[width + width - 3072 + 1]
    assert same(found, data.load(name))
    (tmp_path / "cache" / f"{name}.safetensors").unlink()
    flip(path, 100)
    with pytest.warns(UserWarning, match=f"{path} is damaged: expected MD5"):
        with pytest.raises(data.DataError):
            data.load(name)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_no_pickle_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(data.DataError, match="it is a pickle: never opened"):
        data.load("cifar10")
    assert not (tmp_path / "exploded").exists()
    for module in (data, sources, synthetic):
        text = Path(module.__file__).read_text()
        assert "import pickle" not in text and "torch.load" not in text


# --- download ---


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; what `doctor` returns for a path is sent in the file's place."""

    doctor = staticmethod(lambda path: None)
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        raw = self.doctor(Path(self.directory) / self.path.lstrip("/"))
        if raw is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(os.path.getsize(self.translate_path(self.path))))
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tiny, monkeypatch):
    """The small set on a server of this machine; gives the server's handler class."""

    class Handler(Mirror):
        asked = []

        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tiny), **kwargs)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    Handler.address = f"http://127.0.0.1:{server.server_port}/"
    recipe = sources.SOURCES["tiny"]
    monkeypatch.setitem(sources.SOURCES, "tiny", replace(recipe, mirrors=(Handler.address,)))
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_is_cached(mirror, tmp_path, capfd):
    before = socket.getdefaulttimeout()
    found = data.load("tiny")
    assert found.source == f"a download from {mirror.address}"
    assert torch.equal(found.test_images, data.load("digits").test_images)
    assert left_over(tmp_path) == ["tiny.safetensors"]
    asked = len(mirror.asked)
    assert data.load("tiny").source.startswith("the cache") and len(mirror.asked) == asked
    assert capfd.readouterr() == ("downloading tiny once, 31 MB\n", "")  # said once, and no bar in the page
    assert socket.getdefaulttimeout() == before


def test_a_reader_sees_a_bar_on_one_line_that_is_gone_at_the_end(mirror, monkeypatch, capfd):
    """In Colab's way: plain text on stdout, over itself, and nothing on stderr."""
    monkeypatch.setenv("JPY_SESSION_NAME", "reader.ipynb")
    data.load("tiny")
    out, err = capfd.readouterr()
    announced, _, bar = out.partition("\n")
    assert announced == "downloading tiny once, 31 MB" and err == ""
    assert "100%" in bar and "\n" not in bar
    *_, last, cursor = bar.split("\r")
    assert len(last) > 20 and last.isspace() and cursor == ""


def test_a_server_that_does_not_answer_is_not_announced(tiny, capfd):
    with pytest.raises(data.DataError, match="is not available"):
        data.load("tiny")
    assert capfd.readouterr().out == ""


def test_what_a_killed_process_left_is_taken_away_when_it_is_a_day_old(mirror, tmp_path):
    cache = tmp_path / "cache"
    for name, age in ((".download-old", 2), (".download-new", 0)):
        (cache / name).mkdir(parents=True)
        (cache / name / FILES[0]).write_bytes(b"half")
        os.utime(cache / name, (time.time() - age * 86_400,) * 2)
    (cache / ".tiny-old.part").write_bytes(b"half")
    os.utime(cache / ".tiny-old.part", (0, 0))
    assert data.load("tiny").source.startswith("a download")
    assert left_over(tmp_path) == [".download-new", "tiny.safetensors"]


def test_download_from_the_second_mirror(mirror, monkeypatch):
    recipe = sources.SOURCES["tiny"]
    both = replace(recipe, mirrors=(CLOSED, mirror.address))
    monkeypatch.setitem(sources.SOURCES, "tiny", both)
    assert data.load("tiny").source == f"a download from {mirror.address}"


@pytest.mark.parametrize("damage", ["truncated", "altered", "page", "gone"])
def test_damaged_download_is_never_cached(mirror, tiny, tmp_path, damage):
    def doctor(path):
        if path.name != FILES[2]:
            return None
        raw = path.read_bytes()
        altered = raw[:500] + bytes([raw[500] ^ 1]) + raw[501:]
        return {"truncated": raw[:500], "altered": altered, "page": b"<html>Log in"}[damage]

    if damage == "gone":
        (tiny / FILES[2]).unlink()
    else:
        mirror.doctor = staticmethod(doctor)
    with pytest.raises(data.DataError, match=f"download {mirror.address}{FILES[2]}: "):
        data.load("tiny")
    assert left_over(tmp_path) == []


def test_a_read_only_folder_stays_as_it_is_even_for_root(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "system" / "tiny")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    monkeypatch.setenv("VITBOOK_DATA", str(locked))
    assert "is read-only" in data.load("tiny").source
    assert list(locked.iterdir()) == []


def test_download_where_the_cache_cannot_be_written(mirror, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "file" / "cache"))
    assert "not cached" in data.load("tiny").source


def test_offline_leaves_the_network_alone(mirror, monkeypatch):
    monkeypatch.setenv("VITBOOK_OFFLINE", "1")
    with pytest.raises(data.DataError, match="download: switched off"):
        data.load("tiny")
    monkeypatch.setenv("VITBOOK_OFFLINE", "0")
    with pytest.raises(data.DataError, match="download: switched off"):
        data.load("tiny", download=False)
    assert mirror.asked == []
    assert data.load("tiny").source.startswith("a download")


def test_a_silent_server_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        recipe = replace(sources.SOURCES["tiny"], mirrors=(address,))
        monkeypatch.setitem(sources.SOURCES, "tiny", recipe)
        with pytest.raises(data.DataError, match=f"download {address}.*timed out"):
            data.load("tiny")


def test_no_network_is_one_clear_error_at_once(tmp_path, monkeypatch):
    """The real address of CIFAR-10, through a proxy that is not there."""
    monkeypatch.setitem(sources.SOURCES, "cifar10", CIFAR10)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which remembers the proxies
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited, to ask again"))
    monkeypatch.setenv("no_proxy", "")
    for kind in ("http", "https"):
        monkeypatch.setenv(f"{kind}_proxy", CLOSED)
    with pytest.raises(data.DataError) as error:
        data.load("cifar10")
    cache = tmp_path / "cache"
    for words in [
        "'cifar10' is not available",
        f"cache {cache / 'cifar10.safetensors'}: not there",
        f"files in {cache}: not there",
        "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz: <urlopen error",
        f"put cifar-10-binary.tar.gz (from https://www.cs.toronto.edu/~kriz/) into {cache}",
        "load('digits')",
    ]:
        assert words in str(error.value)
    assert left_over(tmp_path) == []


# --- two processes ---


def save_slowly(tensors, path, metadata):
    raw = safetensors.torch.save(tensors, metadata)
    with open(path, "wb") as file:
        file.write(raw[: len(raw) // 2])
        file.flush()
        time.sleep(0.05)  # now is the time to look
        file.write(raw[len(raw) // 2 :])


def load_again_and_again(recipe, folder, throws_away, barrier, results):
    os.environ |= {"VITBOOK_DATA": f"{folder}/cache", "VITBOOK_SYSTEM_DATA": f"{folder}/system"}
    warnings.simplefilter("error")  # a damaged file is a warning
    torch.set_num_threads(1)
    sources.SOURCES["tiny"] = recipe
    sources.save_file = save_slowly
    sets.DATA_SETS = (*sets.DATA_SETS, "tiny")
    try:
        barrier.wait(1800)
        for _ in range(10 if throws_away else 100):
            results.put(int(data.load("tiny").train_images.sum()))
            if throws_away:
                (folder / "cache" / "tiny.safetensors").unlink(missing_ok=True)
            else:
                time.sleep(0.005)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


def test_two_processes_at_once(tmp_path):
    """Both write and read one cache while one throws it away: never half a file, never another set."""
    recipe = write_tiny(tmp_path / "system" / "tiny")
    # fork, as DataLoader does: a fresh interpreter takes seconds to import torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=load_again_and_again, args=(recipe, tmp_path, i == 0, barrier, results), daemon=True)
        for i in range(2)
    ]
    for worker in workers:
        worker.start()
    got = []
    while len(got) < 110 and (not results.empty() or any(worker.is_alive() for worker in workers)):
        with contextlib.suppress(queue.Empty):
            got.append(results.get(timeout=1))
    for worker in workers:
        worker.join(1800)
    assert set(got) == {int(data.load("digits").train_images.sum())}
    assert [worker.exitcode for worker in workers] == [0, 0] and len(got) == 110
    assert set(left_over(tmp_path)) <= {"tiny.safetensors"}


# --- photos ---


def test_photos(monkeypatch):
    monkeypatch.setenv("VITBOOK_OFFLINE", "1")
    whole, small = data.photos(), data.photos(64)
    assert list(whole) == list(small) == ["cat", "coffee", "astronaut", "rocket"]
    for name, image in whole.items():
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape) == 3
        assert small[name].shape == (3, 64, 64) and small[name].dtype == torch.uint8
        assert abs(image.float().mean() - small[name].float().mean()) < 30
    assert whole["astronaut"].shape == (3, 512, 512)
    assert not torch.equal(whole["cat"][0], whole["cat"][2])  # colour


# --- shapes ---


def test_shapes_are_the_same_to_the_bit():
    many = data.shapes(300, seed=0)
    assert torch.equal(data.shapes(5, seed=0).images, many.images[:5])
    late = data.shapes(100, seed=0, start=130)
    for part in ("images", "labels", "centres", "radii"):
        assert torch.equal(getattr(late, part), getattr(many, part)[130:230])
    assert not torch.equal(data.shapes(300, seed=1).images, many.images)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    again = data.shapes(300, seed=0)
    torch.set_num_threads(threads)
    assert torch.equal(again.images, many.images)
    # The bits themselves: whoever changes them changes every figure and result drawn from them.
    assert hashlib.sha256(many.images.numpy()).hexdigest()[:16] == "5c87bfb37215e793"


def test_shapes_fit_their_description():
    drawn = data.shapes(4000, seed=2)
    assert drawn.images.shape == (4000, 3, 32, 32) and drawn.images.dtype == torch.uint8
    assert drawn.labels.dtype == torch.int64 and drawn.num_classes == len(data.SHAPES) >= 6
    counts = drawn.labels.bincount(minlength=8)
    assert counts.min() > 400 and counts.max() < 600
    assert drawn.radii.min() >= 0.14 * 32 - 1e-4 and drawn.radii.max() <= 0.24 * 32 + 1e-4
    inside = torch.minimum(drawn.centres, 32 - drawn.centres).min(1).values - drawn.radii
    assert inside.min() > -1e-4
    assert len(drawn) == 4000 and "4,000" in repr(drawn)
    # Colour says nothing about the kind: all classes have the same mean colour, up to chance.
    means = torch.stack([drawn.images[drawn.labels == k].float().mean((0, 2, 3)) for k in range(8)])
    assert (means - means.mean(0)).abs().max() < 10


@pytest.mark.parametrize(
    "positions, low, high",
    [
        ("left", (0, 0), (16, 32)),
        ("right", (16, 0), (32, 32)),
        ("top", (0, 0), (32, 16)),
        ("bottom", (0, 16), (32, 32)),
        ("any", (0, 0), (32, 32)),
    ],
)
def test_shapes_lie_where_they_should(positions, low, high):
    """Found by looking at the pixels: on plain ground, whatever differs from it is the shape."""
    drawn = data.shapes(400, seed=3, positions=positions, background="plain")
    images = drawn.images.int()
    outside = images.flatten(2).mode(2).values  # the ground fills most of every image
    contrast = (images - outside[:, :, None, None]).abs().amax(1)  # (N, H, W)
    assert contrast.flatten(1).amax(1).min() > 60  # the shape stands out in every image
    differs = contrast > 0
    assert differs.flatten(1).sum(1).min() >= 12  # it can be seen
    for image, centre, radius in zip(differs, drawn.centres, drawn.radii, strict=True):
        y, x = image.nonzero(as_tuple=True)
        assert low[0] <= x.min() and x.max() < high[0] and low[1] <= y.min() and y.max() < high[1]
        far = ((x + 0.5 - centre[0]) ** 2 + (y + 0.5 - centre[1]) ** 2).sqrt().max()
        assert 0.9 * radius - 1 < far < radius + 0.51


def test_shapes_under_control():
    left, right = (data.shapes(64, seed=4, positions=side) for side in ("left", "right"))
    assert torch.equal(left.labels, right.labels) and torch.equal(left.radii, right.radii)
    assert torch.allclose(left.centres + torch.tensor([16.0, 0]), right.centres, atol=1e-4)
    corner = left.images[:, :, 0, 31], right.images[:, :, 0, 31]
    assert (corner[0] == corner[1]).float().mean() > 0.9  # the same ground
    box = data.shapes(64, seed=4, positions=((0.2, 0.3), (0.6, 0.6)), scale=(0.3, 0.3), size=64)
    assert (box.radii == 0.3 * 64).all() and torch.allclose(box.centres[:, 1], torch.tensor(38.4))
    assert 12.8 <= box.centres[:, 0].min() and box.centres[:, 0].max() <= 19.2
    middle = data.shapes(64, seed=4, positions="centre", classes=("star", "disc"))
    assert (middle.centres == 16).all() and middle.classes == ("star", "disc")
    assert set(middle.labels.tolist()) == {0, 1}
    plain, textured = (data.shapes(8, 5, background=kind) for kind in ("plain", "textured"))
    assert plain.images[:, :, 0].float().std(2).max() < 1 < textured.images[:, :, 0].float().std(2).min()


@pytest.mark.parametrize(
    "name, area",
    {
        "disc": np.pi,
        "ring": 0.75 * np.pi,
        "half-disc": np.pi / 2,
        "square": 2,
        "cross": 2 * 1.9 * 0.6 - 0.36,
        "diamond": 1,
        "triangle": 0.75 * 3**0.5,
        "star": 1.1226,
    }.items(),
)
def test_edges_are_smooth_and_areas_right(name, area):
    circles = np.array([[32.3, 31.6, 20], [30, 30, 24]], np.float32)
    cover = synthetic._cover(name, circles, np.array([0.1, 0.8]), 64)
    assert np.allclose(cover.sum((1, 2)), area * circles[:, 2] ** 2, rtol=0.03)
    grey = ((cover > 0) & (cover < 1)).sum((1, 2))
    assert (grey > 30).all()  # antialiased


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"n": 0}, "n >= 1.*n=0"),
        ({"size": 4}, "size >= 8.*size=4"),
        ({"classes": ("disc", "blob")}, "from disc, ring.*'blob'"),
        ({"classes": ()}, "got none"),
        ({"background": "white"}, "'textured' or 'plain', got 'white'"),
        ({"scale": (0.3, 0.2)}, "got .0.3, 0.2."),
        ({"positions": "middle"}, "any, left, right.*'middle'"),
        ({"positions": "left", "scale": (0.2, 0.3)}, "room for a scale up to 0.25"),
        ({"positions": ((0, 2), (0, 1))}, "within 0..1"),
    ],
)
def test_shapes_refuses_what_cannot_be_drawn(wrong, words):
    with pytest.raises(ValueError, match=words):
        data.shapes(**{"n": 2, "seed": 0} | wrong)


# --- batches ---


def epoch(*args, **kwargs):
    return list(data.batches(*args, **kwargs))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_batches_cover_an_epoch(digits):
    images, labels = digits.test_images, digits.test_labels
    scale = {"mean": digits.mean, "std": digits.std}
    got = epoch(images, labels, 100, seed=1, **scale)
    assert [tuple(x.shape) for x, _ in got] == [(100, 1, 8, 8)] * 3 + [(60, 1, 8, 8)]
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in got)
    ordered = epoch(images, labels, 360, seed=None, mean=digits.mean, std=digits.std)
    assert torch.equal(ordered[0][1], labels)
    expected = (images.float() / 255 - digits.mean) / digits.std
    assert torch.allclose(ordered[0][0], expected)
    # of a data set: the training part
    first = next(digits.batches(100, seed=1))
    assert torch.equal(first[0], epoch(digits.train_images, digits.train_labels, 100, seed=1, **scale)[0][0])
    # shuffled: the same pairs, each once, in another order
    x, y = (torch.cat(part) for part in zip(*got, strict=True))
    assert not torch.equal(y, labels)
    pairs = sorted(bytes(a.numpy()) + bytes([b]) for a, b in zip(x, y, strict=True))
    assert pairs == sorted(bytes(a.numpy()) + bytes([b]) for a, b in zip(expected, labels, strict=True))
    half = epoch(images[:8], labels[:8], 8, seed=None)[0][0]
    assert torch.allclose(half, images[:8] / 127.5 - 1, atol=1e-6)
    floats = epoch(images[:8] / 255, labels[:8], 8, seed=None)[0][0]
    assert torch.allclose(half, floats, atol=1e-6)


def test_batches_hang_on_the_seed_alone(digits):
    images, labels = digits.test_images, digits.test_labels
    options = dict(size=64, augment=data.flip_shift(1))
    torch.manual_seed(1)
    first = epoch(images, labels, seed=5, **options)
    torch.manual_seed(2)
    second = []
    for batch in data.batches(images, labels, seed=5, **options):
        torch.rand(3)  # what dropout does between two batches
        second.append(batch)
    for (a, b), (c, d) in zip(first, second, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    other = epoch(images, labels, seed=6, **options)
    assert not torch.equal(first[0][1], other[0][1])


def test_batches_leave_the_random_state_alone(digits):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    got = [torch.rand(1)]
    for i, _ in enumerate(data.batches(digits.test_images, digits.test_labels, 90, seed=0, augment=data.flip_shift())):
        if i < 3:
            got.append(torch.rand(1))
    assert torch.equal(torch.cat(got), expected)
    with pytest.raises(ZeroDivisionError):  # an augmentation that fails
        epoch(digits.test_images, digits.test_labels, 9, seed=0, augment=lambda x: x * (1 // 0))
    torch.manual_seed(3)
    with pytest.raises(ZeroDivisionError), seeded(9, torch.device("cpu")):
        torch.rand(1), 1 // 0
    assert torch.equal(torch.rand(4), expected)


def test_flip_shift_is_what_torchvision_does_to_each_image():
    torch.manual_seed(0)
    image = torch.randint(1, 256, (3, 9, 7), dtype=torch.uint8)
    padded = v2.functional.pad(image, [2, 2, 2, 2])
    crops = [padded[:, y : y + 9, x : x + 7] for y in range(5) for x in range(5)]
    possible = {bytes(c.contiguous().numpy()) for c in crops}
    mirrored = {bytes(crop.flip(2).numpy()) for crop in crops}
    batch = image.expand(1000, 3, 9, 7)
    out = data.flip_shift(2)(batch)
    assert out.shape == batch.shape and out.dtype == torch.uint8
    seen = {bytes(x.numpy()) for x in out}
    assert seen == possible | mirrored  # 50 ways, all of them, and no other
    assert {bytes(x.numpy()) for x in data.flip_shift(2, flip=False)(batch)} == possible
    assert torch.equal(data.flip_shift(0, flip=False)(batch), batch)
    assert data.flip_shift(1)(batch.float()).dtype == torch.float32


def test_a_v2_transform_on_a_batch_draws_once_and_per_image_draws_for_each(digits):
    images = digits.test_images[:1].expand(64, 1, 8, 8)
    labels = torch.zeros(64, dtype=torch.int64)
    flip_some = v2.RandomHorizontalFlip()

    def kinds(augment):
        (x, _), *_ = epoch(images, labels, 64, seed=0, augment=augment)
        return len(x.unique(dim=0))

    assert kinds(flip_some) == 1  # the trap
    assert kinds(data.per_image(flip_some)) == 2
    assert kinds(data.flip_shift(0)) == 2


def test_batches_refuse_what_does_not_fit(digits):
    images, labels = digits.test_images, digits.test_labels
    for arguments, words in [
        ((images[:, 0], labels, 8), r"expected shape \(N, C, H, W\), got \(360, 8, 8\)"),
        ((images, labels[:5], 8), r"expected 360 labels.*got \(5,\)"),
        ((images, labels.float(), 8), "expected int64 labels, got torch.float32"),
        ((images.int(), labels, 8), "expected uint8 or float, got torch.int32"),
        ((images, labels, 0), "batch size of 1 or more, got 0"),
    ]:
        with pytest.raises(ValueError, match=words):  # at the call, not at the first batch
            data.batches(*arguments, seed=0)
    with pytest.raises(ValueError, match="expected 1 or 1 values, one per channel, got 3"):
        epoch(images, labels, 8, seed=0, mean=(0.1, 0.2, 0.3))


def test_normalise_and_back():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), torch.tensor([0.2, 0.3, 0.4])
    normal = data.normalise(images, mean, std)
    assert torch.allclose(normal[2, 1], (images[2, 1] / 255 - 0.5) / 0.3, atol=1e-6)
    assert torch.allclose(data.denormalise(normal, mean, std), images / 255, atol=1e-6)
    floats = images / 255
    kept = floats.clone()
    data.normalise(floats, mean, std)
    assert torch.equal(floats, kept)  # nothing is changed in place
    assert data.normalise(images[0], mean, std).shape == (3, 4, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_from_the_cpu_to_the_gpu(digits):
    images, labels = digits.test_images, digits.test_labels
    state = torch.cuda.get_rng_state()
    options = dict(size=64, seed=0, augment=data.flip_shift(), device="cuda")
    first, second = epoch(images, labels, **options), epoch(images.cuda(), labels.cuda(), **options)
    for (a, b), (c, d) in zip(first, second, strict=True):
        assert a.is_cuda and b.is_cuda and torch.equal(a, c) and torch.equal(b, d)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    on_cpu = epoch(images, labels, 64, seed=0)
    assert torch.equal(on_cpu[0][1], first[0][1].cpu())  # the order is the same on every device
