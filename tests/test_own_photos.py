"""What chapter 15 runs on: the set that can be had, and a set written out as a folder."""

import pytest
import torch
from PIL import Image

from vitutils.analysis import own_photos
from vitutils.data.images import from_tensors


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("VITBOOK_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_folder_that_is_not_there_is_passed_over():
    assert own_photos.first_set("images/nothing", "digits").name == "digits"
    with pytest.raises(ValueError, match="images/nothing"):
        own_photos.first_set("digits-and-more", "images/nothing")
    with pytest.raises(ValueError, match="got none"):
        own_photos.first_set()


def test_without_weights_the_pocket_vit_stands_in_and_says_so(capsys, monkeypatch):
    def none(*_, **__):
        raise FileNotFoundError("no weights. Look elsewhere")

    real = own_photos.load_backbone
    monkeypatch.setattr(own_photos, "load_backbone", lambda *name, **more: real(*name, **more) if name else none())
    monkeypatch.setattr(own_photos, "SMALL", ("digits",))
    backbone, photos = own_photos.backbone_and_photos()
    assert backbone.name == "pocket" and photos.name == "digits"
    assert capsys.readouterr().out == "left out: no weights\nstand-in: the pocket ViT in place of ViT-Tiny and photos\n"


@pytest.mark.parametrize(("side", "suffix"), [(28, ".png"), (80, ".jpg")])
def test_pictures_are_written_by_class(side, suffix, tmp_path):
    images = torch.full((3, 3, side, side), 60, dtype=torch.uint8)
    part = from_tensors("few", "train", images, torch.tensor([1, 0, 1]), ("cat", "shirt/coat"), "drawn")
    files = own_photos.write_folder(part, tmp_path / "out")
    told = [file.relative_to(tmp_path / "out").as_posix() for file in files]
    assert told == [f"shirt or coat/000{suffix}", f"cat/001{suffix}", f"shirt or coat/002{suffix}"]
    with Image.open(files[0]) as picture:
        assert picture.size == (side, side) and abs(picture.convert("RGB").getpixel((5, 5))[0] - 60) < 3
