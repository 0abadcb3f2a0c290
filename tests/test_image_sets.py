"""Sets of pictures: torchvision's on-disk layouts, folders and zips of photos, downloads that fail."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from vitutils import data
from vitutils.data import DataError, _official, image_sets
from vitutils.data.images import from_tensors


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty data folder, which is the only place to look; no network."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VITBOOK_OFFLINE", "1")
    (tmp_path / "data" / "images").mkdir(parents=True)
    return tmp_path / "data"


def picture(seed: int, size=(24, 18)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def jpeg(seed: int, **how) -> bytes:
    buffer = io.BytesIO()
    picture(seed, **how).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


# --- torchvision's layouts, read by torchvision's classes ---


def make_flowers(root, monkeypatch):
    from scipy.io import savemat

    base = root / "flowers-102"
    for i in range(1, 7):
        write(base / "jpg" / f"image_{i:05d}.jpg", jpeg(i, size=(20 + i, 30)))
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2, 3, 1, 2, 3])})
    savemat(base / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([5, 6])})
    files = dict(tv.Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (name, hashlib.md5((base / name).read_bytes()).hexdigest())
    monkeypatch.setattr(tv.Flowers102, "_file_dict", files)


def make_pets(root):
    base = root / "oxford-iiit-pet"
    rows = {"trainval": ["Abyssinian_1 1 1 1", "american_bulldog_2 2 2 1"], "test": ["Abyssinian_3 1 1 1"]}
    for n, (split, lines) in enumerate(rows.items()):
        write(base / "annotations" / f"{split}.txt", "\n".join(lines).encode())
        for i, line in enumerate(lines):
            write(base / "images" / f"{line.split()[0]}.jpg", jpeg(10 * n + i))


def make_dtd(root):
    base = root / "dtd" / "dtd"
    for n, split in enumerate(("train", "val", "test")):
        names = [f"{label}/{label}_{n}.jpg" for label in ("banded", "woven")]
        write(base / "labels" / f"{split}1.txt", "\n".join(names).encode())
        for i, name in enumerate(names):
            write(base / "images" / name, jpeg(10 * n + i))


def make_eurosat(root, each=10):
    for k, label in enumerate(("Forest", "River")):
        for i in range(each):
            write(root / "eurosat" / "2750" / label / f"{label}_{i}.jpg", jpeg(100 * k + i, size=(64, 64)))


def test_flowers_from_the_mat_files(folder, monkeypatch):
    make_flowers(folder, monkeypatch)
    found = data.load_image_set("flowers102")
    assert (len(found.train), len(found.test), len(found.classes)) == (4, 2, 102)  # train and validation together
    assert found.train.labels.tolist() == [0, 1, 2, 0] and found.test.labels.tolist() == [1, 2]
    image, label = found.test[1]
    assert image.size == (26, 30) and image.mode == "RGB" and label == 2
    assert "torchvision's Flowers102" in found.source


def test_pets_from_the_annotation_lists(folder):
    make_pets(folder)
    found = data.load_image_set("pets")
    assert found.classes == ("Abyssinian", "American Bulldog")
    assert found.train.labels.tolist() == [0, 1] and found.test.labels.tolist() == [0]
    assert found.test[0][0].size == (24, 18)


def test_dtd_joins_train_and_validation(folder):
    make_dtd(folder)
    found = data.load_image_set("dtd")
    assert found.classes == ("banded", "woven") and (len(found.train), len(found.test)) == (4, 2)
    assert found.train.labels.tolist() == [0, 1, 0, 1]


def test_eurosat_is_split_by_seed_and_says_so(folder):
    make_eurosat(folder)
    found = data.load_image_set("eurosat")
    assert (len(found.train), len(found.test)) == (16, 4)
    assert found.train.labels.bincount().tolist() == [8, 8] and found.test.labels.bincount().tolist() == [2, 2]
    assert "no official split" in found.source and "seed 0" in found.source
    again = data.load_image_set("eurosat")
    assert torch.equal(found.test.places, again.test.places)
    assert not set(found.test.places.tolist()) & set(found.train.places.tolist())


def test_imagenette_is_labelled_by_place_in_imagenet(folder):
    from timm.data import ImageNetInfo

    synsets = sorted(tv.Imagenette._WNID_TO_CLASS)
    assert [ImageNetInfo().label_names()[k] for k in _official.IMAGENETTE] == synsets
    for n, part in enumerate(("train", "val")):
        for k, synset in enumerate(synsets):
            write(folder / "imagenette2-160" / part / synset / f"{n}.JPEG", jpeg(10 * n + k))
    found = data.load_image_set("imagenette")
    assert found.classes[:2] == ("tench", "English springer") and (len(found.train), len(found.test)) == (10, 10)
    photos = data.imagenet_photos()
    assert photos.labels.tolist() == list(_official.IMAGENETTE) and photos[3][1] == 491
    write(folder / "made" / "0007_n0_x.jpg", jpeg(1))
    zipped(folder, name="imagenet_sample_250")
    assert data.imagenet_photos().labels.tolist() == [7]  # the sample goes first


def test_a_set_that_lost_a_picture_is_incomplete(folder):
    make_dtd(folder)
    (folder / "dtd" / "dtd" / "images" / "woven" / "woven_2.jpg").unlink()
    with pytest.raises(DataError, match=r"'dtd'.*625 MB.*(?s:.)*woven_2.jpg is not there.*delete it"):
        data.load_image_set("dtd")


def test_a_damaged_picture_of_torchvision_names_its_file(folder):
    make_pets(folder)
    (folder / "oxford-iiit-pet" / "images" / "Abyssinian_3.jpg").write_bytes(jpeg(1)[:80])
    with pytest.raises(DataError, match="Abyssinian_3.jpg"):
        data.load_image_set("pets").test[0]


# --- downloads ---


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; `server(name, bytes)` gives the address under which it hands them out."""
    site = tmp_path / "site"
    site.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(site))

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=running.serve_forever, daemon=True).start()

    def give(name: str, raw: bytes) -> str:
        (site / name).write_bytes(raw)
        return f"http://127.0.0.1:{running.server_port}/{name}"

    yield give
    running.shutdown()
    running.server_close()


def packed(root, top: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(root / top, arcname=os.path.basename(top))
    return buffer.getvalue()


@pytest.fixture
def online(folder, monkeypatch):
    monkeypatch.delenv("VITBOOK_OFFLINE")
    return folder


def test_a_download_is_checked_unpacked_and_kept(online, server, tmp_path, monkeypatch, capsys):
    make_dtd(tmp_path / "made")
    raw = packed(tmp_path / "made", "dtd/dtd")
    monkeypatch.setattr(tv.DTD, "_URL", server("dtd.tar.gz", raw))
    monkeypatch.setattr(tv.DTD, "_MD5", hashlib.md5(raw).hexdigest())
    assert len(data.load_image_set("dtd").train) == 4
    captured = capsys.readouterr()
    assert captured.out == "downloading dtd once, 625 MB\n" and captured.err == ""
    assert sorted(os.listdir(online)) == ["dtd", "images"]
    monkeypatch.setattr(tv.DTD, "_URL", "http://127.0.0.1:9/none")  # it is not fetched twice
    assert len(data.load_image_set("dtd").test) == 2


def test_a_broken_archive_leaves_nothing_and_says_what_was_tried(online, server, monkeypatch):
    monkeypatch.setattr(tv.DTD, "_URL", server("dtd.tar.gz", b"no archive"))
    with pytest.raises(DataError) as raised:
        data.load_image_set("dtd")
    for told in ("'dtd'", "625 MB", str(online / "dtd"), "download by torchvision: RuntimeError", "What to do"):
        assert told in str(raised.value)
    assert os.listdir(online) == ["images"]


def test_a_second_archive_that_fails_takes_the_first_with_it(online, server, tmp_path, monkeypatch):
    make_pets(tmp_path / "made")
    good = packed(tmp_path / "made", "oxford-iiit-pet/images")
    sources = (
        (server("images.tar.gz", good), hashlib.md5(good).hexdigest()),
        (server("annotations.tar.gz", good[:50]), hashlib.md5(good).hexdigest()),
    )
    monkeypatch.setattr(tv.OxfordIIITPet, "_RESOURCES", sources)
    with pytest.raises(DataError, match="811 MB"):
        data.load_image_set("pets")
    assert os.listdir(online) == ["images"]


def test_no_network_is_not_asked(folder):
    with pytest.raises(DataError, match="download: switched off"):
        data.load_image_set("flowers102")
    with pytest.raises(DataError, match="download: switched off"):
        data.load_image_set("eurosat", download=False)


def test_what_cannot_be_had_is_left_out_in_one_line_each(folder, capsys):
    make_dtd(folder)
    found = data.load_image_sets(["pets", "dtd", "cifar100"])
    assert list(found) == ["dtd"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("left out: ") for line in lines)
    assert "Oxford-IIIT Pets, 811 MB" in lines[0] and "switched off" in lines[0] and "cifar100" in lines[1]


# --- photos of one's own ---


def make_photos(root, parts=("train", "val"), each=3):
    for part in parts:
        for k, label in enumerate(("ants", "bees")):
            for i in range(each):
                write(root / part / label / f"{label}{i}.jpg", jpeg(100 * k + 10 * len(part) + i))


def zipped(folder, top: str = "", name="mine") -> None:
    with zipfile.ZipFile(folder / "images" / f"{name}.zip", "w") as archive:
        for path in sorted((folder / "made").rglob("*.*")):
            archive.write(path, os.path.join(top, path.relative_to(folder / "made")))


def test_folder_and_zip_give_the_same_pictures(folder):
    make_photos(folder / "images" / "loose")
    make_photos(folder / "made")
    zipped(folder, top="around")
    loose, packed = data.load_image_set("loose"), data.load_image_set("mine")
    assert loose.classes == packed.classes == ("ants", "bees")
    assert (len(packed.train), len(packed.test)) == (6, 6)
    for part in ("train", "test"):
        for (a, label), (b, same) in zip(getattr(loose, part), getattr(packed, part), strict=True):
            assert label == same and a.mode == "RGB" and np.array_equal(np.array(a), np.array(b))
    assert "zip file images/mine.zip" in packed.source and "folder images/loose" in loose.source
    assert sorted(os.listdir(folder / "images")) == ["loose", "mine.zip"]  # nothing was unpacked
    assert image_sets.at_hand() == ["loose", "mine"]


def test_without_parts_a_fifth_is_kept_for_the_test(folder):
    make_photos(folder / "made", parts=("",), each=5)
    zipped(folder)
    found = data.load_image_set("mine")
    assert (len(found.train), len(found.test)) == (8, 2) and "no official split" in found.source
    assert found.test.labels.tolist() == [0, 1]


def test_recompressed_cifar_says_that_it_is_not_cifar(folder):
    make_photos(folder / "images" / "cifar10_jpeg")
    found = data.load_image_set("cifar10_jpeg")
    assert "recompressed" in found.title and "not the genuine CIFAR-10" in found.source


def test_the_title_of_ants_and_bees_is_theirs_alone(folder):
    make_photos(folder / "images" / "hymenoptera")
    assert data.load_image_set("hymenoptera").title == "ants and bees"
    for part in ("train", "val"):
        (folder / "images" / "hymenoptera" / part / "ants").rename(folder / "images" / "hymenoptera" / part / "wasps")
    assert data.load_image_set("hymenoptera").title == "hymenoptera"


def test_labels_from_file_names(folder):
    for name in ("0003_n01_cat.jpg", "0120_n02_dog.jpg"):
        write(folder / "made" / name, jpeg(len(name)))
    zipped(folder)
    part = image_sets.numbered("mine")
    assert part.labels.tolist() == [3, 120] and part[1][0].size == (24, 18)
    write(folder / "made" / "readme.jpg", jpeg(1))
    zipped(folder, name="odd")
    with pytest.raises(DataError, match="readme.jpg.*INDEX"):
        image_sets.numbered("odd")


def test_damaged_pictures_name_their_file(folder):
    make_photos(folder / "images" / "loose")
    broken = folder / "images" / "loose" / "val" / "bees" / "bees1.jpg"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=f"{broken}.*repair it"):
        data.load_image_set("loose").test[4]
    make_photos(folder / "made")
    zipped(folder)
    path = folder / "images" / "mine.zip"
    raw = bytearray(path.read_bytes())
    start = raw.index(b"train/ants/ants1.jpg") + 60
    raw[start : start + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="train/ants/ants1.jpg of .*mine.zip"):
        data.load_image_set("mine").train[1]


def test_what_is_no_set_is_refused(folder):
    (folder / "images" / "cut.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(DataError, match="cut.zip is not a complete zip file"):
        data.load_image_set("cut")
    make_photos(folder / "images" / "odd")
    write(folder / "images" / "odd" / "val" / "wasps" / "w.jpg", jpeg(1))
    with pytest.raises(DataError, match="differ in the classes wasps"):
        data.load_image_set("odd")
    make_photos(folder / "images" / "half", parts=("train",))
    with pytest.raises(DataError, match="half"):
        data.load_image_set("half")
    write(folder / "made" / "train" / "loose.jpg", jpeg(1))
    zipped(folder, name="flat")
    with pytest.raises(DataError, match="flat.zip has one folder, train: expected one per class"):
        data.load_image_set("flat")
    with pytest.raises(ValueError, match="unknown set 'flowers'.*near it: flowers102"):
        data.load_image_set("flowers")


# --- tensors, parts, fingerprints ---


def test_small_sets_are_tensors(folder):
    digits, shapes = data.load_image_set("digits"), data.load_image_set("shapes")
    image, label = digits.train[0]
    assert image.dtype == torch.uint8 and image.shape == (1, 8, 8) and label == digits.train.labels[0]
    assert shapes.train[0][0].shape == (3, 64, 64) and len(shapes.classes) == 8
    assert not torch.equal(shapes.train[0][0], shapes.test[0][0])
    assert "scikit-learn" in digits.summary() and "1,437 training and 360 test" in digits.summary()


def test_smaller_parts_are_in_balance_and_keep_their_pictures(folder):
    part = data.load_image_set("digits").train
    few = part.take(20, seed=1)
    assert few.labels.bincount().tolist() == [2] * 10 and len(part.take(None)) == len(part)
    twice = few.at([3, 5])
    place = int(few.places[5])
    assert torch.equal(twice[1][0], part[place][0]) and twice[1][1] == part[place][1]
    with pytest.raises(ValueError, match="count of 1 or more"):
        part.take(0)
    with pytest.raises(IndexError):
        twice[2]


def test_the_fingerprint_knows_pixels_labels_and_order(folder):
    make_photos(folder / "images" / "loose")
    before = data.load_image_set("loose").train
    assert before.fingerprint() == data.load_image_set("loose").train.fingerprint()
    prints = {before.fingerprint(), before.at([1, 0]).fingerprint(), data.load_image_set("loose").test.fingerprint()}
    path = folder / "images" / "loose" / "train" / "ants" / "ants0.jpg"
    path.write_bytes(jpeg(999))
    prints.add(data.load_image_set("loose").train.fingerprint())
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for labels in ([0, 1], [1, 0]):
        args = ("made", "train", images, torch.tensor(labels), ("a", "b"), "here")
        prints.add(from_tensors(*args).fingerprint())
    images[1, 0, 3, 3] = 1
    prints.add(from_tensors(*args).fingerprint())
    assert len(prints) == 7
