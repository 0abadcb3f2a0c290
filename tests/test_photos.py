"""From a folder of photos to a model: copies, splits, faults of the folder, what is written and what it answers."""

import csv
import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from vitutils.analysis import photo_model as pm
from vitutils.cli import photos as command
from vitutils.cli import predict
from vitutils.cli._photos import _told
from vitutils.data import duplicates
from vitutils.data.decoding import decode
from vitutils.data.sources import DataError
from vitutils.data.survey import Survey, look_at
from vitutils.models.backbones import load_backbone


def drawn(seed: int, kind: int) -> Image.Image:
    """A picture of its own for each seed: kind 0 is dark with a bright disc, kind 1 bright with dark stripes."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 90, (6, 7, 3), dtype=np.uint8))
    coarse = coarse.resize((96, 80), Image.Resampling.BICUBIC)
    image = ImageOps.invert(coarse) if kind else coarse
    draw, (x, y) = ImageDraw.Draw(image), random.integers(10, 40, 2).tolist()
    if kind:
        for n in range(4):
            draw.line((x + 12 * n, 0, x + 12 * n, 80), fill=(20, 20, 20), width=5)
    else:
        draw.ellipse((x, y, x + 30, y + 30), fill=(250, 240, 200))
    return image


def folder_of(path, counts: dict[str, int]):
    """A folder with so many drawn photos of each class; the classes take turns in kind."""
    for k, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for n in range(count):
            drawn(1_000 * k + n, k % 2).save(path / name / f"{n:03}.png")
    return path


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A data folder of its own, no weights and no hub."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("vitutils.models.weights.from_hub", lambda *_: (_ for _ in ()).throw(OSError("no network")))


def ran(*arguments) -> int:
    """The exit code of the command with these arguments."""
    with pytest.raises(SystemExit) as end:
        command.main([str(argument) for argument in arguments])
    return end.value.code or 0


# --- copies ---


def encoded(image) -> bytes:
    raw = io.BytesIO()
    image.save(raw, "JPEG", quality=40)
    return raw.getvalue()


def recompressed(image):
    return Image.open(io.BytesIO(encoded(image)))


COPIES = {
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2)),
    "recompressed": recompressed,
    "grey": ImageOps.grayscale,
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.rotate(90, expand=True),
    "upside down": lambda image: image.rotate(180),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=list(COPIES))
def test_copies_are_found_and_other_photos_are_not(change):
    photos = [drawn(n, n % 2) for n in range(40)]
    copies = [change(photos[n]) for n in (4, 8)]
    thumbnails = np.stack([duplicates.thumbnail(image) for image in [*photos, *copies]])
    assert duplicates.find_duplicates(thumbnails) == [(4, 40), (8, 41)]


@pytest.mark.parametrize("side", [8, 17, 19, 28, 35])
def test_copies_of_tiny_pictures_are_found(side):
    random = np.random.default_rng(0)
    tiny = [Image.fromarray(random.integers(0, 256, (side, side), dtype=np.uint8)) for _ in range(6)]
    copies = [ImageOps.mirror(tiny[1]), tiny[3].rotate(90)]
    thumbnails = np.stack([duplicates.thumbnail(image) for image in [*tiny, *copies]])
    assert duplicates.find_duplicates(thumbnails) == [(1, 6), (3, 7)]


def test_no_photos_and_blank_ones_are_no_trouble():
    assert duplicates.find_duplicates(np.zeros((0, 18, 18))) == []
    blank = [Image.new("L", (30, 20), 0), Image.new("L", (90, 90), 255), drawn(0, 0)]
    assert duplicates.find_duplicates(np.stack([duplicates.thumbnail(image) for image in blank])) == [(0, 1)]


def test_copies_of_copies_are_one_group():
    assert duplicates.groups(6, [(1, 4), (4, 5)]).tolist() == [0, 1, 2, 3, 1, 1]
    assert duplicates.groups(2, []).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_on_one_side_and_every_class_on_both(seed):
    labels = torch.tensor([0] * 20 + [1] * 8 + [2] * 3)
    pairs = [(0, 1), (1, 2), (3, 20), (21, 22)]
    group = duplicates.groups(len(labels), pairs)
    chosen = duplicates.split_groups(labels, group, 0.3, seed, ("a", "b", "c"))
    assert all(chosen[i] == chosen[j] for i, j in pairs) and not chosen[3]  # 3 and 20 contradict each other
    assert set(labels[chosen].tolist()) == set(labels[~chosen].tolist()) == {0, 1, 2}
    again = duplicates.split_groups(labels[5:], group[5:], 0.3, seed, ("a", "b", "c"))  # numbers with gaps
    assert again.shape == (26,) and again.any()


def test_a_class_whose_photos_are_all_copies_of_another_is_named():
    group = duplicates.groups(4, [(0, 3)])
    with pytest.raises(ValueError, match="'b'"):
        duplicates.split_groups(torch.tensor([0, 0, 0, 1]), group, 0.3, 0, ("a", "b"))


def test_what_is_odd_in_a_folder_is_seen(tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    drawn(0, 0).save(tmp_path / "turned.jpg", exif=tag)
    drawn(1, 0).save(tmp_path / "plain.jpg")
    Image.new("L", (9, 200)).save(tmp_path / "narrow.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "plain.jpg").read_bytes()[:300])
    files, seen = sorted(tmp_path.iterdir()), []
    found = look_at(files, lambda: seen.append(1))
    names = [file.name for file in files]
    assert len(seen) == 4 and [names[i] for i in found.kept] == ["narrow.png", "plain.jpg", "turned.jpg"]
    assert [names[i] for i in found.turned] == ["turned.jpg"] and [names[i] for i in found.small] == ["narrow.png"]
    assert [names[i] for i in found.unreadable] == ["broken.jpg"] and found.thumbnails.shape == (3, 18, 18)


WHY = {
    "empty": (lambda file: file.write_bytes(b""), "the file is empty"),
    "a page": (lambda file: file.write_bytes(b"<html>"), "no picture that Pillow knows"),
    "half": (lambda file: file.write_bytes(encoded(drawn(0, 0))[:700]), "it ends too early"),
    "a dead link": (lambda file: file.symlink_to("nowhere.jpg"), "a link to nothing"),
    "gone": (lambda file: None, "there is no such file"),
}


@pytest.mark.parametrize(("make", "said"), WHY.values(), ids=list(WHY))
def test_why_a_photo_cannot_be_read_is_told_in_words(make, said, tmp_path):
    make(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=rf"x\.jpg \({said}.*\): repair it or remove it"):
        decode(tmp_path / "x.jpg", "x.jpg")


# --- heads, probabilities, files ---


def blobs(K: int, D: int = 8, count: int = 30):
    random = torch.Generator().manual_seed(0)
    y = torch.arange(K).repeat_interleave(count)
    return torch.eye(D)[y] + 0.2 * torch.randn(len(y), D, generator=random), y


@pytest.mark.parametrize("K", [2, 3])
def test_the_linear_head_answers_as_scikit_learn_does(K):
    x, y = blobs(K)
    head = pm.fit_linear(x, y, K, 10.0)
    fitted = pm.LogisticRegression(C=10.0, max_iter=2_000).fit(pm.unit_rows(x).numpy(), y.numpy())
    want = fitted.predict_proba(pm.unit_rows(x).numpy())
    assert np.allclose(head(x).softmax(1).detach().numpy(), want, atol=1e-5)
    assert torch.allclose(head(7 * x), head(x), atol=1e-4)  # features count by their direction


def test_a_class_without_photos_is_never_the_answer():
    x, y = blobs(2)
    for head in (pm.fit_linear(x, 2 * y, 4, 1.0), pm.fit_nearest(x, 2 * y, 4, 5)):
        assert head(x).shape == (60, 4) and set(head(x).argmax(1).tolist()) == {0, 2}


def test_the_nearest_head_votes_as_the_book_does():
    from vitutils.analysis.probe import knn_predict

    x, y = blobs(4)
    new = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for k in (1, 5, 20):
        assert torch.equal(pm.fit_nearest(x, y, 4, k)(new).argmax(1), knn_predict(x, y, new, k=k))


def test_the_temperature_undoes_what_made_logits_too_sure():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4_000, 3, generator=random)
    y = torch.multinomial(logits.softmax(1), 1, generator=random).flatten()
    assert pm.fit_temperature(5 * logits, y) == pytest.approx(5, rel=0.1)
    few = pm.fit_temperature(logits[:2], logits[:2].argmin(1))  # both wrong: alone they would ask for the largest
    assert 1 < few < 5
    sharp, calm = (pm.calibration_bins((scale * logits).softmax(1), y)[0] for scale in (5, 1))
    assert sharp > 0.15 > 0.03 > calm


def test_results_by_class_are_counted():
    y, answers = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    first, second, third = pm.by_class(y, answers, ("a", "b", "c"))
    assert (first.photos, first.right, first.precision) == (3, 2, 1.0)
    assert (second.photos, second.right) == (2, 2) and second.precision == pytest.approx(2 / 3)
    assert (third.photos, third.low, third.high) == (0, 0.0, 1.0) and first.low < 2 / 3 < first.high
    assert pm.confusion(y, answers, 3).tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert pm.balanced_accuracy(y, answers) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("kind", ["linear", "nearest"])
def test_a_model_comes_back_from_its_file(kind, tmp_path):
    nearest = pm.fit_nearest(torch.rand(9, 64), torch.arange(9) % 2, 2, 5)
    head = pm.LinearHead(64, 2) if kind == "linear" else nearest
    model = pm.PhotoModel(load_backbone("pocket"), head, ("cat", "dog <b>"), 1.7).eval()
    (tmp_path / "model.safetensors").write_bytes(pm.packed(model, {"seed": 0}))
    again = pm.load_photo_model(tmp_path)
    photos = [drawn(0, 0), drawn(1, 1)]
    assert again.classes == model.classes and torch.equal(again.probabilities(photos), model.probabilities(photos))
    assert torch.allclose(again.probabilities(photos).sum(1), torch.ones(2))


@pytest.mark.parametrize("raw", [b"", b"half of a file", None])
def test_other_files_are_no_model(raw, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw if raw is not None else pm.save({"x": torch.zeros(2)}, {"vitutils": "{}"}))
    with pytest.raises(ValueError, match="model.safetensors"):
        pm.load_photo_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="vitutils.photos"):
        pm.load_photo_model(tmp_path / "nowhere")


# --- the command ---


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with faults, and what the command made of it with the pocket ViT."""
    home = tmp_path_factory.mktemp("photos")
    folder = folder_of(home / "my <b>photos", {"discs": 30, "stripes & more": 14})
    ImageOps.mirror(drawn(0, 0)).save(folder / "discs" / "copy.png")
    drawn(2, 0).save(folder / "stripes & more" / "wrong label.png")
    (folder / "discs" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITBOOK_DATA", str(home / "data"))
        patch.setattr("vitutils.models.weights.from_hub", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        code = ran(folder, "--out", home / "out")
    return folder, home / "out", code


def test_the_files_are_there_and_no_other(done):
    folder, out, code = done
    assert code == 0 and sorted(file.name for file in out.iterdir()) == [
        "card.md", "model.safetensors", "report.html", "split.csv"]  # fmt: skip


def test_copies_are_on_one_side_and_the_bad_file_is_named(done):
    folder, out, _ = done
    rows = {row["file"]: row for row in csv.DictReader((out / "split.csv").open(encoding="utf-8"))}
    part = {name.removeprefix(str(folder))[1:]: row["part"] for name, row in rows.items()}
    assert part["discs/copy.png"] == part["discs/000.png"]
    assert part["stripes & more/wrong label.png"] == part["discs/002.png"] == "train"
    assert part["discs/broken.jpg"].startswith("unreadable") and len(part) == 47
    answered = [row for row in rows.values() if row["answer"]]
    assert {row["part"] for row in answered} == {"test"} and 8 <= len(answered) <= 10


def test_the_report_asks_no_other_host_and_says_first_that_the_pocket_vit_stood_in(done):
    page = (done[1] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?(https?:)?//""", page) and "<script" not in page
    assert page.index("pocket ViT") < page.index("<h1>")
    assert "my <b>photos" not in page and "my &lt;b&gt;photos" in page and "stripes &amp; more" in page
    assert "different labels" in page and "broken.jpg" in page and "prefers-color-scheme:dark" in page
    assert all('alt="' in image for image in re.findall("<img [^>]*>", page))


def test_the_model_is_used_without_weights_or_network(done, capsys):
    folder, out, _ = done
    photos = [folder / "discs" / "000.png", folder / "discs" / "broken.jpg", folder / "stripes & more" / "000.png"]
    with pytest.raises(SystemExit) as end:
        predict.main([str(out), *map(str, photos)])
    told = capsys.readouterr()
    assert end.value.code == 1 and told.err.startswith("error: cannot read") and told.err.count("\n") == 1
    lines = told.out.splitlines()
    assert len(lines) == 2 and all(re.search(r"(discs|stripes & more) \d+\.\d%, ", line) for line in lines)


def test_the_answers_end_quietly_where_nobody_reads_on(done, monkeypatch, capsys):
    def gone(*_):
        raise BrokenPipeError

    folder, out, _ = done
    put = []
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=gone, flush=gone))
    monkeypatch.setattr("os.dup2", lambda *places: put.append(places[1]))
    with pytest.raises(SystemExit) as end:
        predict.main([str(out), *[str(folder / "discs" / "000.png")] * 2])
    assert end.value.code == 0 and put == [1]


def test_the_features_are_computed_once(done, tmp_path, monkeypatch, capsys):
    folder, out, _ = done
    monkeypatch.setenv("VITBOOK_DATA", str(out.parent / "data"))
    monkeypatch.setattr("vitutils.analysis.features._run", lambda *_: pytest.fail("computed again"))
    assert ran(folder, "--out", tmp_path / "again", "--backbone", "pocket") == 0
    assert (tmp_path / "again" / "split.csv").read_text() == (out / "split.csv").read_text()


def test_a_stop_loses_no_chunk_that_is_done(tmp_path, monkeypatch, capsys):
    from vitutils.analysis import features

    folder, run, seen = folder_of(tmp_path / "f", {"a": 10, "b": 10}), features._run, []

    def stops(net, pictures, *rest):
        seen.append(len(pictures))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run(net, pictures, *rest)

    monkeypatch.setattr("vitutils.cli._photos.CHUNK", 8)
    monkeypatch.setattr(features, "_run", stops)
    assert ran(folder, "--out", tmp_path / "out", "--backbone", "pocket") == 130
    assert "Stopped" in capsys.readouterr().err and not list((tmp_path / "out").glob("*"))
    assert ran(folder, "--out", tmp_path / "out", "--backbone", "pocket") == 0
    assert seen == [8, 8, 8, 4]  # the first chunk was there


def test_a_test_part_of_your_own_is_kept_and_copies_of_it_are_not_trained_on(tmp_path):
    folder_of(tmp_path / "f" / "train", {"a": 12, "b": 12})
    folder_of(tmp_path / "f" / "test", {"a": 1, "b": 4})  # the same seeds: all are copies of training photos
    assert ran(tmp_path / "f", "--out", tmp_path / "out", "--backbone", "pocket") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "split.csv").open(encoding="utf-8")))
    parts = [row["part"] for row in rows if "/train/" in row["file"].replace("\\", "/")]
    assert parts.count("left out") == 5 and "test" not in parts
    assert sum(row["part"] == "test" for row in rows) == 5


@pytest.mark.parametrize(
    ("how", "name"), [([], "fine-tuning"), (["all"], "fine-tuning"), (["lora"], "LoRA")], ids=["bare", "all", "lora"]
)
def test_fine_tuning_goes_on_from_the_probe(how, name, tmp_path, capsys):
    folder = folder_of(tmp_path / "f", {"a": 10, "b": 10})
    where = ["--out", tmp_path / "out", "--backbone", "pocket", "--epochs", 1]
    code = ran("--fine-tune", *how, folder, *where)
    told = capsys.readouterr().out
    assert code == 0 and f"validation: {name}" in told and "epoch 1/1" in told
    assert ("adapters of rank" in told) == (how == ["lora"])
    assert not (tmp_path / "out" / "fine-tune.pt").exists()


@pytest.mark.parametrize("arguments", [["f", "--fine-tune"], ["--fine-tune", "--out", "o"], ["--fine-tune", "a/f"]])
def test_a_bare_fine_tune_trains_all(arguments):
    at = arguments.index("--fine-tune")
    assert command._told_apart(arguments) == [*arguments[: at + 1], "all", *arguments[at + 1 :]]


FAULTS = {
    "nothing there": ({}, "no folder"),
    "one class": ({"a": 5}, "one folder, a"),
    "a class of two": ({"a": 9, "b": 2}, "class 'b' has 2 photos"),
    "small classes": ({"a": 9, "b": 2, "c": 1}, "class 'b' has 2 photos, class 'c' has 1 photo:"),
}


@pytest.mark.parametrize(("counts", "said"), FAULTS.values(), ids=list(FAULTS))
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(counts, said, tmp_path, capsys):
    folder_of(tmp_path / "f", counts)
    assert ran(tmp_path / "f", "--out", tmp_path / "out", "--backbone", "pocket") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_copies_do_not_make_a_class_large_enough(tmp_path, capsys):
    folder = folder_of(tmp_path / "f", {"a": 9, "b": 1})
    for n in range(4):
        drawn(1_000, 1).save(folder / "b" / f"copy{n}.jpg")
    assert ran(folder, "--out", tmp_path / "out", "--backbone", "pocket") == 1
    assert "class 'b' has 1 photo that are no copies" in capsys.readouterr().err.replace("photos", "photo")


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path, capsys):
    folder = folder_of(tmp_path / "f", {"a": 4, "b": 4})
    (tmp_path / "file").write_text("mine")
    for out, said in ((tmp_path / "file", "is a file"), (folder / "a", "lies inside"), (folder, "lies inside")):
        assert ran(folder, "--out", out, "--backbone", "pocket") == 1
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine" and sorted(p.name for p in folder.iterdir()) == ["a", "b"]


ARGUMENTS = {
    "none": [],
    "no out": ["f"],
    "epochs": ["f", "--out", "o", "--epochs", "0"],
    "share": ["f", "--out", "o", "--test-share", "0.9"],
    "size": ["f", "--out", "o", "--size", "x"],
    "device": ["f", "--out", "o", "--device", "abacus"],
    "fine-tune": ["f", "--out", "o", "--fine-tune", "some"],
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_arguments_that_do_not_fit_are_told_in_one_line(arguments, capsys):
    assert ran(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_an_unknown_backbone_is_no_reason_to_take_another(tmp_path, capsys):
    folder = folder_of(tmp_path / "f", {"a": 4, "b": 4})
    assert ran(folder, "--out", tmp_path / "out", "--backbone", "vit_tinny") == 1
    assert "near it" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_help_needs_no_torch():
    from test_rooms import COMMAND, loaded

    for name in ("photos", "predict"):
        assert loaded(COMMAND.format(["--help"]).replace("vitutils.train", f"vitutils.{name}")) == set()
    assert "vitutils.photos" not in sys.modules


def test_blank_photos_and_contradicting_labels_are_told():
    flat, plain = np.full((18, 18), 0.4, np.float32), duplicates.thumbnail(drawn(0, 0))
    survey = Survey((0, 1, 2, 3), np.stack([flat, flat + 0.01, plain, plain]), {}, (), ())
    assert survey.blank == {0, 1} and Survey((), np.zeros((0, 18, 18)), {}, (), ()).blank == set()
    blank, wrong = _told(torch.tensor([0, 1, 0, 1]), [(2, 3)], ["a/w.png", "b/x.png"])
    assert "blank" in blank and "a/w.png, b/x.png" in blank and wrong.startswith("1 pair ")
    assert _told(torch.tensor([0, 1, 0, 0]), [(2, 3)], []) == []


def test_blank_photos_are_no_copies_and_an_earlier_run_s_model_goes(tmp_path, capsys):
    folder, out = folder_of(tmp_path / "f", {"a": 5, "b": 5}), tmp_path / "out"
    for name in "ab":
        Image.new("RGB", (80, 60)).save(folder / name / "cap.png")
    out.mkdir()
    for name in ("model.onnx", "mine.onnx"):  # `predict --onnx` would answer with the classes of another run
        (out / name).write_bytes(b"")
    assert ran(folder, "--out", out, "--backbone", "pocket") == 0
    told = capsys.readouterr().out
    assert "a/cap.png, b/cap.png" in told and "different labels" not in told
    assert "different labels" not in (out / "report.html").read_text(encoding="utf-8")
    assert "removed: " in told and not (out / "model.onnx").exists() and (out / "mine.onnx").exists()


def test_what_is_no_photo_is_told_apart_from_a_broken_one(done, capsys):
    folder, out, _ = done
    with pytest.raises(SystemExit) as end:
        predict.main([str(out), str(folder / "discs"), str(folder / "nothing.jpg")])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and len(lines) == 2
    assert "is a folder" in lines[0] and lines[1].startswith("error: no photo") and "cannot read" not in lines[1]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_told_before_any_work(device, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("vitutils.cli._photos._photos", lambda *_: pytest.fail("work begun"))
    assert ran(folder_of(tmp_path / "f", {"a": 1}), "--out", tmp_path / "o", "--device", device) == 1
    assert f"--device {device}: torch finds none" in capsys.readouterr().err


# --- without torch, and without training ---


def test_onnx_files_stand_beside_and_are_used_alone(tmp_path, monkeypatch, capsys):
    folder, out = folder_of(tmp_path / "f", {"a, b": 10, "c <d>": 10}), tmp_path / "out"
    assert ran(folder, "--out", out, "--backbone", "pocket", "--onnx") == 0
    assert {"model.onnx", "model.int8.onnx", "model.safetensors"} <= {file.name for file in out.iterdir()}
    page, card = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "card.md"))
    for text in (page, card):
        assert "model.int8.onnx 0." in text and "In int8" in text and "95 % interval" in text.replace("&nbsp;", " ")
        away = re.search(r"difference of logits between ONNX and torch, \d+ test photos: (\S+)\.", text)[1]
        assert float(away) < 1e-4
    rows = [row for row in csv.DictReader((out / "split.csv").open(encoding="utf-8")) if row["answer"]]
    right = sum(row["answer"] == row["class"] for row in rows)
    assert abs(int(re.search(r"In int8 (\d+) of", card)[1]) - right) <= 2
    capsys.readouterr()
    answers = []
    for more in ([out], [out, "--onnx"], [out / "model.onnx", "--onnx"]):
        with pytest.raises(SystemExit) as end:
            predict.main([str(part) for part in [more[0], folder / "a, b" / "000.png", *more[1:]]])
        assert end.value.code == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2] and "%" in answers[0]
    (out / "model.onnx").unlink()
    with pytest.raises(SystemExit) as end:
        predict.main([str(out), str(folder / "a, b" / "000.png"), "--onnx"])
    assert end.value.code == 1 and "no " in capsys.readouterr().err


def test_onnx_without_its_libraries_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    folder = folder_of(tmp_path / "f", {"a": 4, "b": 4})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("vitutils.cli._photos._photos", lambda *_: pytest.fail("work begun"))
    assert ran(folder, "--out", tmp_path / "out", "--backbone", "pocket", "--onnx") == 1
    assert "pip install onnx" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_where_the_export_fails_nothing_is_written(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("torch.onnx.export cannot write this network")

    folder = folder_of(tmp_path / "f", {"a": 4, "b": 4})
    monkeypatch.setattr("vitutils.cli._onnx.to_int8", fails)
    monkeypatch.setattr("vitutils.cli._onnx.to_onnx", lambda *_: None)
    assert ran(folder, "--out", tmp_path / "out", "--backbone", "pocket", "--onnx") == 1
    assert "cannot write this network" in capsys.readouterr().err and not (tmp_path / "out").exists()
