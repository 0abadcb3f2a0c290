"""A reader's own pictures: seen as a person sees them, split without losing a class, and what is left out is said."""

import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from vitutils import cli, data
from vitutils.data import DataError, decoding, folders, image_sets
from vitutils.data._splits import balanced_order


@pytest.fixture
def home(monkeypatch, tmp_path):
    """The one data folder, with `images` in it; no network."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VITBOOK_OFFLINE", "1")
    (tmp_path / "data" / "images").mkdir(parents=True)
    return tmp_path / "data"


def raw(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def write(path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def dot(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (6, 5), (shade % 256, 100, 200))


def fill(root, counts: dict[str, int], ending: str = ".png", kind: str = "PNG") -> None:
    """Make `counts[name]` pictures in each folder `name` below the root."""
    for name, count in counts.items():
        for i in range(count):
            write(root / name / f"{i:03d}{ending}", raw(dot(i), kind))


def pack(folder, archive, rename=lambda name: name) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.writestr(rename(path.relative_to(folder).as_posix()), path.read_bytes())


def both(home, root):
    """The set at `root` as tensors, from the folder and from a zip: {how: (training labels, test labels, source)}."""
    pack(root, home / "images" / "packed.zip")
    found = {"tensors": folders.load_folder(root, 4)}
    found = {how: (one.train_labels, one.test_labels, one.source) for how, one in found.items()}
    for name in ("loose", "packed"):
        one = data.load_image_set(name)
        found[name] = one.train.labels, one.test.labels, one.source
    return found


# --- a split never loses a class ---


@pytest.mark.parametrize("counts", [(100, 8), (100, 2), (40, 3, 2, 9), (5, 5, 5), (1000, 2, 2)])
def test_every_class_keeps_an_image_on_either_side(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    names = tuple("abcdefgh"[: len(counts)])
    one = data.Dataset("made", images, labels, images, labels, names, torch.zeros(1), torch.ones(1), "here")
    for count in {len(counts), max(len(counts), len(labels) // 5), len(labels) - len(counts)}:
        for seed in (0, 1):
            cut = one.hold_out(count, seed)
            held, kept = (part.bincount(minlength=len(counts)) for part in (cut.test_labels, cut.train_labels))
            assert held.sum() == count and held.min() >= 1 and kept.min() >= 1
            assert (held + kept).tolist() == list(counts)
    share = one.hold_out(max(len(counts), len(labels) // 5)).test_labels.bincount()
    wanted = torch.tensor(counts) * share.sum() / len(labels)
    assert ((share - wanted).abs() < len(counts)).all(), "in proportion, but for the one that a rare class keeps"


def test_a_split_is_in_proportion_and_in_balanced_sets_the_draw_of_the_recorded_studies():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 50, 10]))
    images = torch.zeros(160, 1, 2, 2, dtype=torch.uint8)
    one = data.Dataset("made", images, labels, images, labels, tuple("abc"), torch.zeros(1), torch.ones(1), "here")
    assert one.hold_out(32).test_labels.bincount().tolist() == [20, 10, 2]
    digits = data.load("digits")  # 139 to 146 a class: dealt in rounds each is within one image of its share
    held = torch.zeros(1437, dtype=torch.bool)
    held[balanced_order(digits.train_labels, 0)[:287]] = True
    assert torch.equal(digits.hold_out(287).test_images, digits.train_images[held])


def test_a_class_of_one_image_is_named_with_its_count(home):
    fill(home / "images" / "loose", {"cat": 9, "dog": 1})
    for load in (lambda: folders.load_folder(home / "images" / "loose", 4), lambda: data.load_image_set("loose")):
        with pytest.raises(DataError, match=r"loose.*'dog' \(1\)"):
            load()
    one = data.load("digits").take(train=11)
    with pytest.raises(ValueError, match=r"'1' \(1\)"):
        one.hold_out(10)
    with pytest.raises(ValueError, match="between 10 and 1427, .*got 9"):
        data.load("digits").hold_out(9)


def test_rare_classes_are_split_by_every_loader_and_told(home):
    fill(home / "images" / "loose", {"cat": 100, "dog": 8, "eel": 2})
    for how, (train, test, _) in both(home, home / "images" / "loose").items():
        assert train.bincount().tolist() == [80, 7, 1], how
        assert test.bincount().tolist() == [20, 1, 1], how
    told = folders.load_folder(home / "images" / "loose", 4).summary()
    assert "3 classes (cat 80 + 20, dog 7 + 1, eel 1 + 1), from" in told
    assert "(cat 80 + 20, dog 7 + 1, eel 1 + 1), from" in data.load_image_set("loose").summary()
    assert "(" not in data.load("digits").summary(), "alike: nothing to tell"


def test_many_unlike_classes_are_told_by_the_rarest_and_the_commonest(home):
    fill(home / "images" / "many", {f"c{k:02d}": 5 for k in range(20)} | {"rare": 2})
    assert "21 classes (from rare 1 + 1 to c" in data.load_image_set("many").summary()


def test_the_command_keeps_every_class_or_names_it(tmp_path, capsys):
    fill(tmp_path / "pets", {"cat": 30, "dog": 4})
    more = ["--net", "book/4", "--size", "8", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    cli.main(["--data", str(tmp_path / "pets"), "--out", str(tmp_path / "out"), *more])
    out = capsys.readouterr().out
    assert "27 training and 7 test images of 3 x 8 x 8, 2 classes (cat 24 + 6, dog 3 + 1)" in out
    assert "25 to train on, 2 held out" in out
    cli.main(["--data", str(tmp_path / "pets"), *more, "--out", str(tmp_path / "one"), "--images", "1"])
    assert "1 to train on, 2 held out; none to train on of dog" in capsys.readouterr().out
    fill(tmp_path / "few", {"cat": 30, "dog": 2})
    with pytest.raises(SystemExit):
        cli.main(["--data", str(tmp_path / "few"), "--out", str(tmp_path / "none"), *more])
    error = capsys.readouterr().err
    assert "'dog' (1)" in error and error.count("\n") == 1


@pytest.mark.parametrize("size", [0, 8.5, "8", True, float("nan")])
def test_a_size_that_is_no_count_of_pixels_is_refused(home, size):
    fill(home / "few", {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=f"size of 1 pixel or more, got {size!r}; .* whole"):
        folders.load_folder(home / "few", size)


@pytest.mark.parametrize("share", [0, 1, -1, float("nan"), "0.2", True])
def test_a_share_that_is_none_is_refused(home, share):
    fill(home / "few", {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=f"test_share.*between 0 and 1, got {share!r}"):
        folders.load_folder(home / "few", 4, test_share=share)
    assert folders.load_folder(home / "few", np.int64(4), test_share=np.float32(0.5)).test_labels.tolist() == [0, 1]


def test_no_name_is_not_the_folder_that_one_is_in(home, monkeypatch, capsys):
    fill(home / "few", {"a": 2, "b": 2})
    monkeypatch.chdir(home / "few")
    with pytest.raises(DataError, match="no folder ''"):
        folders.load_folder("", 4)
    assert len(folders.load_folder(".", 4).classes) == 2
    with pytest.raises(SystemExit):
        cli.main(["--data", "", "--net", "book/4", "--out", str(home / "out"), "--device", "cpu"])
    assert "--data '': neither a data set" in capsys.readouterr().err and not (home / "out").exists()


# --- names of parts ---


@pytest.mark.parametrize(
    "names",
    [("Train", "TEST"), ("training", "testing"), ("train", "valid"), ("TRAINING", "Validation"), ("train", "dev")],
)
def test_two_parts_by_any_of_their_names(home, names):
    for n, name in enumerate(names):
        fill(home / "images" / "loose" / name, {"cat": 4 - n, "dog": 4 - n})
    for how, (train, test, _) in both(home, home / "images" / "loose").items():
        assert train.bincount().tolist() == [4, 4] and test.bincount().tolist() == [3, 3], how


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "Testing")])
def test_of_three_parts_the_second_joins_the_first_and_that_is_said(home, names):
    for n, name in enumerate(names):
        fill(home / "images" / "loose" / name, {"cat": 5 - n, "dog": 5 - n})
    for how, (train, test, source) in both(home, home / "images" / "loose").items():
        assert train.bincount().tolist() == [9, 9] and test.bincount().tolist() == [3, 3], how
        assert f"{names[0]} and {names[1]} together are the training part" in source, how


def refused(home, root, words: str) -> None:
    pack(root, home / "images" / "packed.zip")
    for load in (
        lambda: folders.load_folder(root, 4),
        lambda: data.load_image_set(root.name),
        lambda: data.load_image_set("packed"),
    ):
        with pytest.raises(DataError, match=words):
            load()


@pytest.mark.parametrize("names", [("Trainset", "Holdout"), ("train", "evaluation"), ("fold 1", "fold 2", "fold 3")])
def test_parts_that_are_not_recognised_are_refused(home, names):
    root = home / "images" / "loose"
    for name in names:
        fill(root / name, {"cat": 4, "dog": 4})
    refused(home, root, f"{'|'.join(names)}.*train.*test")


@pytest.mark.parametrize("names", [("seg_train", "seg_test", "seg_pred"), ("Train images", "Test images")])
def test_folders_named_much_like_parts_are_refused(home, names):
    root = home / "images" / "loose"
    for name in names[:2]:
        fill(root / name / name, {"cat": 4, "dog": 4})
    fill(root, dict.fromkeys(names[2:], 5))
    refused(home, root, f"{names[0]}.*train.*test")


def test_a_part_alone_is_refused(home):
    fill(home / "images" / "loose" / "train", {"cat": 4, "dog": 4})
    refused(home, home / "images" / "loose", "has only train: expected train and test")


def test_a_part_may_lie_in_a_folder_of_its_own_name(home):
    fill(home / "images" / "loose" / "train" / "train", {"cat": 4, "dog": 4})
    fill(home / "images" / "loose" / "test" / "test", {"cat": 3, "dog": 3})
    for how, (train, test, _) in both(home, home / "images" / "loose").items():
        assert train.bincount().tolist() == [4, 4] and test.bincount().tolist() == [3, 3], how


@pytest.mark.parametrize(
    ("folders_below", "words"),
    [
        ("cat/train cat/test dog/train dog/test", "cat holds a folder test.*part"),
        ("cat/a/Val cat/a/x dog bird", "cat holds a folder Val.*part"),
        ("learn/cat learn/dog exam/cat exam/dog docs", "exam and learn both hold a folder cat"),
        ("learn/Cat learn/Dog exam/cat exam/dog", "exam and learn both hold a folder Cat"),
        ("a/learn/cat a/learn/dog b/exam/cat b/exam/dog", "a and b both hold a folder cat"),
        ("cats dogs sample/cats sample/dogs", "sample holds a folder cats.*class"),
        ("cat cat/masks dog dog/masks", "cat and dog both hold a folder masks"),
        ("train/f1/cat train/f1/dog train/f2/cat train/f2/dog test/cat test/dog", "train: f1 and f2 both hold .* cat"),
        ("train/cat/images train/cat/masks train/dog/images test/cat test/dog", "train: cat and dog both.* images"),
        ("train/cat train/dog test/cat test/dog test/old/cat", "test: old holds a folder cat.*class"),
    ],
)
def test_what_may_be_parts_or_classes_below_the_classes_is_refused(home, folders_below, words):
    root = home / "images" / "loose"
    fill(root, dict.fromkeys(folders_below.split(), 4))
    refused(home, root, f"{words}.*Expected CLASS/.*PART/CLASS/.*training")


@pytest.mark.parametrize("names", [("train", "training", "test"), ("train", "test", "val", "dev")])
def test_two_folders_for_one_part_are_refused(home, names):
    root = home / "images" / "loose"
    for name in names:
        fill(root / name, {"cat": 4, "dog": 4})
    refused(home, root, "two folders for the same part: (train and training|dev and val)")


@pytest.mark.parametrize("inside", ["", "all", "images/more"])
def test_a_flat_test_folder_has_no_labels_and_is_left_out(home, inside):
    root = home / "images" / "loose"
    fill(root / "train", {"cat": 10, "dog": 10})
    fill(root / "test", {inside: 7})
    for how, (train, test, source) in both(home, root).items():
        assert train.bincount().tolist() == [8, 8] and test.bincount().tolist() == [2, 2], how
        assert "test (7 pictures without labels)" in source, how


def test_a_flat_test_folder_beside_the_classes_is_no_class(home):
    root = home / "images" / "loose"
    fill(root, {"cat": 10, "dog": 10, "test": 7})
    for how, (train, _, source) in both(home, root).items():
        assert train.bincount().tolist() == [8, 8], how
        assert "test (7 pictures without labels)" in source, how


def test_a_class_may_be_called_train(home):
    fill(home / "images" / "loose", {"bus": 5, "train": 5, "car": 5})
    for how, (train, _, _) in both(home, home / "images" / "loose").items():
        assert train.bincount().tolist() == [4, 4, 4], how


@pytest.mark.parametrize(
    ("folders_below", "told"),
    [
        ("cat/images dog/images", "cat/images, dog/images"),
        ("cat/cat dog/dog", "cat/cat, dog/dog"),
        ("cat/2019 cat/2020/may dog", "cat/2019, cat/2020"),
        ("PetImages/Cat PetImages/Dog Extra", "PetImages/Cat, PetImages/Dog"),
        ("train/cat/2019 train/dog test/cat test/dog/more", "cat/2019, dog/more"),
    ],
)
def test_classes_may_have_folders_of_their_own_and_that_is_said(home, folders_below, told):
    fill(home / "images" / "loose", dict.fromkeys(folders_below.split(), 5))
    for how, (train, test, source) in both(home, home / "images" / "loose").items():
        assert len(train) + len(test) == 5 * len(folders_below.split()) and train.max() == 1, how
        assert f"subfolders count as the class that they lie in: {told}" in source, how


# --- as a person sees them ---


def decoded(tmp_path, content: bytes, name: str = "a.png") -> np.ndarray:
    """The picture as every loader gives it, uint8 (H, W, 3): each must give the same."""
    write(tmp_path / "one" / name, content)
    return np.array(decoding.decode(tmp_path / "one" / name, name))


def corners() -> Image.Image:
    """Wider than high, its four corners unlike."""
    image = Image.new("RGB", (32, 16))
    for x, y, colour in ((0, 0, "red"), (16, 0, "lime"), (0, 8, "blue"), (16, 8, "white")):
        image.paste(colour, (x, y, x + 16, y + 8))
    return image


TURNED = [*(("JPEG", tag) for tag in range(1, 9)), ("PNG", 6), ("WEBP", 6), ("TIFF", 6)]


@pytest.mark.parametrize(("kind", "tag"), TURNED)
def test_pictures_are_upright_whatever_the_camera_was(tmp_path, tag, kind):
    turn = {6: "ROTATE_90", 8: "ROTATE_270", 3: "ROTATE_180", 2: "FLIP_LEFT_RIGHT", 4: "FLIP_TOP_BOTTOM"}
    turn |= {5: "TRANSPOSE", 7: "TRANSVERSE"}  # what undoes the tag's own turn
    stored = corners().transpose(Image.Transpose[turn[tag]]) if tag in turn else corners()
    exif = Image.Exif()
    exif[0x0112] = tag
    seen = decoded(tmp_path, raw(stored, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    assert seen.shape == (16, 32, 3)
    assert np.abs(seen.astype(int) - np.array(corners())).mean() < 12
    fill(tmp_path / "set", {"a": 3, "b": 3})
    write(tmp_path / "set" / "a" / "000.png", raw(stored, "PNG", exif=exif))
    square = folders.load_folder(tmp_path / "set", 8).train_images
    square = torch.cat([square, folders.load_folder(tmp_path / "set", 8).test_images])
    wanted = torch.tensor([[255, 0, 0], [255, 255, 255]], dtype=torch.uint8)  # red at the left top, white at the right
    assert any(torch.equal(image[:, [0, -1], [0, -1]].T, wanted) for image in square)


KEPT = [("PNG", "LA"), ("PNG", "P"), ("JPEG", "CMYK"), ("TIFF", "I;16"), ("TIFF", "RGBA"), ("WEBP", "RGB")]


@pytest.mark.parametrize(("kind", "mode"), KEPT)
def test_a_picture_is_turned_once_however_often_it_is_seen(kind, mode):
    deep = np.linspace(0, 65535, 16 * 32).reshape(16, 32).astype(np.uint16)
    stored, exif = Image.fromarray(deep) if mode == "I;16" else corners().convert(mode), Image.Exif()
    for tag in (2, 3, 6):
        exif[0x0112] = tag
        file = Image.open(io.BytesIO(raw(stored, kind, exif=exif)))
        file.load()
        before = dict(file.info)
        once, grey = decoding.as_seen(file), decoding.AsSeen(grey=True)(file)
        assert once.size == grey.size == ((16, 32) if tag == 6 else (32, 16))
        for step in (decoding.as_seen, decoding.AsSeen()):
            assert np.array_equal(np.array(step(once)), np.array(once)), tag
        assert np.array_equal(np.array(decoding.AsSeen(grey=True)(grey)), np.array(grey)), tag
        assert file.info == before, "the picture that came in stays as it was"


def test_a_turn_that_xmp_tells_of_is_taken_once():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    file = Image.open(io.BytesIO(raw(corners(), "JPEG", xmp=xmp)))
    once = decoding.as_seen(file)
    assert once.size == (16, 32) and decoding.as_seen(once).size == (16, 32)


def test_a_photo_of_a_set_is_upright_for_a_net_too(home):
    exif = Image.Exif()
    exif[0x0112] = 6
    fill(home / "images" / "phone", {"a": 4, "b": 4})
    for i in range(4):
        write(home / "images" / "phone" / "a" / f"{i:03d}.png", raw(corners(), "PNG", exif=exif))
    seen = data.load_image_set("phone").train[0][0]
    assert seen.size == decoding.AsSeen()(seen).size == (16, 32)


def test_broken_exif_is_no_reason_to_lose_a_picture(tmp_path):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert decoded(tmp_path, raw(corners(), "JPEG", exif=exif), "a.jpg").shape == (16, 32, 3)


RAMP = np.arange(65536, dtype=np.float64).reshape(256, 256)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.uint16), "PNG"),
        (RAMP.astype(">u2"), "TIFF"),
        (RAMP.astype(np.int32), "TIFF"),
        ((RAMP - 32768).astype(np.int32), "TIFF"),
        ((RAMP // 16).astype(np.uint16), "PNG"),  # 12 bits, as cameras and scanners give
        ((RAMP / 65535).astype(np.float32), "TIFF"),
        ((RAMP / 65535 * 1.02 - 0.01).astype(np.float32), "TIFF"),
        ((RAMP * 1e30).astype(np.float32), "TIFF"),
    ],
)
def test_deep_greys_are_scaled_to_their_range(tmp_path, values, kind):
    seen = decoded(tmp_path, raw(Image.fromarray(values), kind), f"a.{kind.lower()}")
    assert seen.mean() == pytest.approx(127.5, abs=0.6) and seen.min() == 0 and seen.max() == 255
    assert (np.diff(seen[:, :, 0].reshape(-1).astype(int)) >= 0).all(), "in order"
    assert (seen[..., 0] == seen[..., 2]).all()


@pytest.mark.parametrize(
    ("values", "shade"),
    [
        (np.full((4, 4), 32768, np.uint16), 128),
        (np.full((4, 4), 0, np.uint16), 0),
        (np.full((4, 4), 0.5, np.float32), 128),
        (np.full((4, 4), 0, np.float32), 0),
        (np.full((4, 4), np.nan, np.float32), 0),
        (np.full((4, 4), 5000, np.float32), 255),
        (np.full((4, 4), 200, np.uint16), 200),  # 8 bits in a deep file
    ],
)
def test_even_deep_greys_have_a_shade(tmp_path, values, shade):
    seen = decoded(tmp_path, raw(Image.fromarray(values), "TIFF"), "a.tiff")
    assert (seen == shade).all()


def test_a_tiff_in_which_0_is_white(tmp_path):
    import tifffile

    for deep in (np.uint16, np.uint8):
        values = (RAMP // (1 if deep is np.uint16 else 257)).astype(deep)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        seen = np.array(decoding.decode(tmp_path / "a.tif", "a"))
        assert seen[0, 0].tolist() == [255] * 3 and seen[-1, -1].tolist() == [0] * 3, deep


def test_a_tiff_of_32_bits_without_signs(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", (RAMP * 65000).astype(np.uint32))
    seen = np.array(decoding.decode(tmp_path / "a.tif", "a"))
    assert seen.mean() == pytest.approx(127.5, abs=0.6) and seen[0, 0, 0] == 0 and seen[-1, -1, 0] == 255


def test_what_is_no_number_spoils_no_picture(tmp_path):
    values = (RAMP / 65535).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    seen = decoded(tmp_path, raw(Image.fromarray(values), "TIFF"), "a.tif")
    assert seen.mean() == pytest.approx(127.5, abs=0.6) and seen[0, :3, 0].tolist() == [0, 255, 0]


def icon(shade: tuple[int, int, int], hole: tuple[int, int]) -> Image.Image:
    """All of one colour; only alpha shows the shape."""
    alpha = Image.new("L", (8, 8), 255)
    alpha.paste(0, (0, 0, *hole))
    image = Image.new("RGBA", (8, 8), (*shade, 255))
    image.putalpha(alpha)
    return image


def transparent(mode: str, hole=(4, 8)) -> tuple[bytes, str]:
    """Black with a hole, stored in this way."""
    image = icon((0, 0, 0), hole)
    if mode in ("RGBA", "LA"):
        return raw(image.convert(mode)), "a.png"
    if mode == "P, bytes":
        few = image.convert("RGB").quantize(2)
        few.putdata([1 if a == 0 else 0 for a in np.array(image)[:, :, 3].reshape(-1)])
        few.putpalette([0, 0, 0, 0, 0, 0])
        return raw(few, "PNG", transparency=bytes([255, 0])), "a.png"
    if mode == "GIF":
        few = Image.new("P", (8, 8), 0)
        few.putpalette([0, 0, 0, 0, 0, 0])
        few.paste(1, (0, 0, *hole))
        return raw(few, "GIF", transparency=1), "a.gif"
    if mode in ("L, tRNS", "1, tRNS", "RGB, tRNS", "I;16, tRNS"):
        plain = Image.new(mode.partition(",")[0], (8, 8), 0)
        mark = {"L": 7, "1": 1, "RGB": (7, 7, 7), "I;16": 7}[plain.mode]
        plain.paste(mark, (0, 0, *hole)) if plain.mode != "I;16" else None
        if plain.mode == "I;16":
            values = np.zeros((8, 8), np.uint16)
            values[: hole[1], : hole[0]] = 7
            plain = Image.fromarray(values)
        return raw(plain, "PNG", transparency=mark), "a.png"
    return raw(image, mode), f"a.{mode.lower()}"


MODES = ["RGBA", "LA", "P, bytes", "GIF", "L, tRNS", "1, tRNS", "RGB, tRNS", "I;16, tRNS", "WEBP", "TIFF"]


@pytest.mark.parametrize("mode", MODES)
def test_transparency_is_laid_on_white(tmp_path, mode):
    if mode == "WEBP":
        content, name = raw(icon((0, 0, 0), (4, 8)), "WEBP", lossless=True, exact=True), "a.webp"
    else:
        content, name = transparent(mode)
    seen = decoded(tmp_path, content, name)
    assert (seen[:, :4] == 255).all() and (seen[:, 4:] == 0).all()


def test_two_icons_differ_by_their_alpha_alone(tmp_path):
    one, other = (decoded(tmp_path, raw(icon((0, 0, 0), hole))) for hole in ((4, 8), (8, 4)))
    assert not np.array_equal(one, other)
    half = icon((0, 0, 0), (0, 0))
    half.putalpha(128)
    assert (decoded(tmp_path, raw(half)) == 127).all()
    assert (np.array(decoding.as_seen(half.convert("RGBa"))) == 127).all()  # premultiplied
    assert (np.array(decoding.as_seen(half.convert("LA").convert("La"))) == 127).all()


def test_other_kinds_of_colour_and_moving_pictures(tmp_path):
    flat = Image.new("RGB", (6, 6), (200, 40, 90))
    for mode in ("CMYK", "YCbCr"):
        seen = decoded(tmp_path, raw(flat.convert(mode), "TIFF" if mode == "CMYK" else "JPEG"), "a.tif")
        assert np.abs(seen.astype(int) - (200, 40, 90)).max() < 8, mode
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        seen = decoded(tmp_path, raw(frames[0], kind, save_all=True, append_images=frames[1:]), f"a.{kind.lower()}")
        assert np.abs(seen.astype(int) - (255, 0, 0)).max() < 8, kind


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 4000)])
def test_a_picture_like_a_thread_is_cropped_before_it_is_enlarged(home, size):
    fill(home / "images" / "loose", {"a": 4, "b": 4})
    for i in range(4):
        write(home / "images" / "loose" / "a" / f"{i:03d}.png", raw(Image.new("RGB", size)))
    made, resize = [], Image.Image.resize

    def watched(self, size, *more, **how):
        made.append(size)
        return resize(self, size, *more, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", watched)
        assert folders.load_folder(home / "images" / "loose", 224).train_images.shape[-1] == 224
    assert set(made) <= {(224, 224)}
    seen = data.load_image_set("loose").train[0][0]
    assert max(seen.size) <= 16 * min(seen.size)


def test_a_picture_too_large_to_open_is_refused_in_words(home, monkeypatch):
    fill(home / "images" / "loose", {"a": 4, "b": 4})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"png has more than 20 pixels"):
        data.load_image_set("loose").train[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow warns here; nothing is wrong yet
    assert data.load_image_set("loose").train[0][0].size == (6, 5)


# --- what is left out is counted ---


@pytest.mark.parametrize(("ending", "kind"), [(".jfif", "JPEG"), (".jpe", "JPEG"), (".gif", "GIF"), ("", "PNG")])
def test_other_endings_are_taken_by_content(home, ending, kind):
    fill(home / "images" / "loose", {"a": 4, "b": 4})
    fill(home / "images" / "loose", {"a": 10, "b": 10}, ending, kind)
    fill(home / "images" / "loose", {"a": 1, "b": 1}, ".JPG", "JPEG")
    for how, (train, test, source) in both(home, home / "images" / "loose").items():
        assert len(train) + len(test) == 30, how
        assert "left out" not in source, how


def test_files_that_are_no_pictures_are_counted_and_hidden_ones_are_not(home):
    root = home / "images" / "loose"
    fill(root, {"a": 5, "b": 5, ".ipynb_checkpoints": 3, "a/.thumbs": 2, "__MACOSX/a": 4, "@eaDir": 2})
    for name in ("._000.png", "Thumbs.db", "desktop.ini", ".DS_Store", "b/Thumbs.db", "b/._x.png", "a/Desktop.ini"):
        write(root / name, b"junk")
    for name in ("a/notes.txt", "b/more.txt", "labels.csv", "a/clip.mp4"):
        write(root / name, b"words, not pixels")
    write(root / "cover.png", raw(dot()))
    for how, (train, test, source) in both(home, root).items():
        assert len(train) + len(test) == 10, how
        assert "4 other files (2 .txt, 1 .csv, 1 .mp4)" in source, how
        assert "1 picture in no class folder" in source, how


def test_heic_says_what_to_install(home, monkeypatch):
    root, heic = home / "images" / "loose", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    fill(root, {"a": 5, "b": 5})
    write(root / "a" / "IMG_1.HEIC", heic)
    monkeypatch.setattr(decoding, "HEIC", False)
    for how, (train, test, source) in both(home, root).items():
        assert len(train) + len(test) == 10, how
        assert "1 HEIC photo (to read it: pip install pillow-heif)" in source, how
    write(home / "images" / "loose" / "a" / "000.png", heic)  # as some programs rename them
    with pytest.raises(DataError, match="000.png.*HEIC.*pip install pillow-heif"):
        folders.load_folder(home / "images" / "loose", 4)
    fill(home / "images" / "all", {"a": 5})
    write(home / "images" / "all" / "b" / "IMG_1.HEIC", heic)
    with pytest.raises(DataError, match="'b' is empty.*1 HEIC photo.*pip install pillow-heif"):
        data.load_image_set("all")


def test_archives_are_found_in_any_case_and_in_any_wrapping(home):
    fill(home / "made", {"a": 5, "b": 5})
    pack(home / "made", home / "images" / "Big.ZIP", lambda name: f"one/two/{name}")
    pack(home / "made", home / "images" / "windows.Zip", lambda name: rf"top\{name}".replace("/", "\\"))
    pack(home / "made", home / "images" / "dots.zip", lambda name: f"./{name}")
    assert image_sets.at_hand() == ["Big", "dots", "windows"]
    for name in image_sets.at_hand():
        one = data.load_image_set(name)
        assert one.classes == ("a", "b") and len(one.train) == 8 and one.train[0][0].size == (6, 5), name
    fill(home / "images" / "around" / "one" / "two", {"a": 5, "b": 5})
    for found in (data.load_image_set("around"), folders.load_folder(home / "images" / "around", 4)):
        assert found.classes == ("a", "b")


def test_class_names_that_differ_in_case_alone_are_refused(home):
    fill(home / "images" / "loose", {"Cat": 4, "cat": 4, "dog": 4})
    refused(home, home / "images" / "loose", "Cat and cat")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_are_followed_but_not_in_circles(home):
    root = home / "images" / "loose"
    fill(home / "elsewhere", {"deep": 5})
    fill(root, {"a": 5, "b": 5})
    (root / "b" / "linked").symlink_to(home / "elsewhere" / "deep", target_is_directory=True)
    (root / "b" / "circle").symlink_to(root, target_is_directory=True)
    one = data.load_image_set("loose")
    assert (torch.cat([one.train.labels, one.test.labels]).bincount()).tolist() == [5, 10]
    (root / "a" / "gone.png").symlink_to(home / "nowhere.png")
    with pytest.raises(DataError, match="gone.png"):
        folders.load_folder(root, 4)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({"cat/more": "dog", "dog/more": "cat"}, "cat/more/more and .*cat are the same folder"),
        ({"cat/more": "dog"}, "dog and .*cat/more are the same folder"),
        ({"cat/x": "../elsewhere", "cat/y": "../elsewhere"}, "cat/y and .*cat/x are the same folder"),
        ({"train/cat": "../elsewhere", "test/cat": "../elsewhere"}, "train/cat and .*test/cat are the same folder"),
        ({"cat/more": "../around", "../around/back": "dog"}, "dog and .*cat/more/back are the same folder"),
    ],
)
def test_a_folder_that_is_reached_twice_is_refused(home, links, words):
    root = home / "images" / "loose"
    fill(root, {"cat": 3, "dog": 3, "../elsewhere": 2, "../around": 2})
    for link, target in links.items():
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to((root / target).resolve(), target_is_directory=True)
    for load in (lambda: folders.load_folder(root, 4), lambda: data.load_image_set("loose")):
        with pytest.raises(DataError, match=words):
            load()


ONE_NAME = [("caf\u00e9", "cafe\u0301"), ("\u1100\u1161", "\uac00")]  # as other systems and as macOS write it


@pytest.mark.parametrize("spellings", ONE_NAME)
def test_no_picture_is_lost_to_a_name_in_two_spellings(home, spellings):
    root = home / "images" / "loose"
    fill(root, {spellings[0]: 3, spellings[1]: 3, "tea": 6})
    for name in spellings:
        write(root / "tea" / f"{name}.png", raw(dot(9)))
    if len(list(root.iterdir())) < 3:
        pytest.skip("here the two are one name")
    for how, (train, test, _) in both(home, root).items():
        assert (train.bincount() + test.bincount()).tolist() in ([6, 8], [8, 6]), how


def test_of_two_files_by_one_name_in_a_zip_the_last_counts(home):
    fill(home / "made", {"a": 5, "b": 5})
    pack(home / "made", home / "images" / "twice.zip")
    with zipfile.ZipFile(home / "images" / "twice.zip", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/000.png", raw(dot(77)))
    one = folders.load_folder(home / "images" / "twice.zip", 4)
    assert len(one.train_labels) + len(one.test_labels) == 10
    assert 77 in torch.cat([one.train_images, one.test_images])[:, 0]


def test_an_encrypted_zip_is_named(home):
    fill(home / "made", {"a": 5, "b": 5})
    pack(home / "made", home / "images" / "locked.zip")
    content = bytearray((home / "images" / "locked.zip").read_bytes())
    place = content.index(b"PK\1\2")
    content[place + 8] |= 1  # the flag, in the list of contents
    (home / "images" / "locked.zip").write_bytes(content)
    with pytest.raises(DataError, match="locked.zip is encrypted"):
        data.load_image_set("locked")


def test_the_command_reads_a_zip_as_well(home):
    fill(home / "made", {"a": 5, "b": 5})
    pack(home / "made", home / "own.zip")
    one, other = (folders.load_folder(home / name, 4) for name in ("own.zip", "made"))
    assert torch.equal(one.train_images, other.train_images) and "zip file" in one.source


# --- every set of one's own is used, or named ---


def test_a_set_named_like_an_official_one_goes_by_its_folder(home):
    fill(home / "images" / "cifar10", {"a": 5, "b": 5})
    assert image_sets.at_hand() == ["images/cifar10"]
    one = data.load_image_set("images/cifar10")
    assert one.classes == ("a", "b") and one.name == "images/cifar10"
    with pytest.raises(DataError, match="images/cifar10"):
        data.load_image_set("cifar10")


def test_own_sets_are_all_there_or_named_with_the_reason(home, tmp_path, monkeypatch, capsys):
    second = tmp_path / "second"
    monkeypatch.setenv("VITBOOK_DATA", os.pathsep.join(map(str, (home, second))))
    for name in ("ants", "birds", "cars", "digits"):
        fill(home / "images" / name, {"a": 5, "b": 5})
    fill(home / "images" / "alone", {"a": 5})
    fill(second / "images" / "birds", {"a": 5, "b": 5})
    write(home / "images" / "old.tar.gz", b"no zip")
    write(home / "images" / "ants.zip", b"no zip")
    write(home / "images" / "IMG_1.jpg", raw(dot(), "JPEG"))
    found = data.load_own_image_sets(first="cars")
    assert list(found) == ["cars", "ants", "birds", "images/digits"]
    said = capsys.readouterr().out.splitlines()
    assert all(line.startswith("not used: ") for line in said) and len(said) == 5
    for words in ("alone.*one folder", "old.tar.gz.*zip", "ants.zip.*ants", "second.*birds.*birds", "1 picture"):
        assert any(re.search(words, line) for line in said), words
    assert list(data.load_own_image_sets(most=2)) == ["ants", "birds"]
    assert "cars" in capsys.readouterr().out
    assert "ants" not in data.load_own_image_sets(skip=["ants"])


def test_a_set_with_more_classes_than_a_draw_has_images(home):
    fill(home / "images" / "many", {f"c{k:02d}": 4 for k in range(30)})
    whole = data.load_image_set("many")
    small = whole.fitting(train=12, test=8)
    assert small.classes == whole.classes[:6] and (len(small.train), len(small.test)) == (12, 6)
    assert small.train.labels.bincount().tolist() == [2] * 6 and small.test.labels.max() == 5
    assert "the first 6 of 30 classes" in small.summary()
    assert small.train.fingerprint() != whole.train.fingerprint()
    same = whole.fitting(train=60, test=30)
    assert same.classes == whole.classes and len(same.train) == 60
    assert torch.equal(same.train.places, whole.take(60, 30).train.places)


def test_a_part_travels_to_processes_that_are_started_anew(home):
    fill(home / "images" / "loose", {"a": 4, "b": 4})
    pack(home / "images" / "loose", home / "images" / "packed.zip")
    for name in ("loose", "packed", "digits"):
        part = data.load_image_set(name).test
        again = pickle.loads(pickle.dumps(part))
        assert np.array_equal(np.asarray(again[1][0]), np.asarray(part[1][0])), name
        assert again.fingerprint() == part.fingerprint()
