"""What chapter 15 runs on, with and without weights and photos; and a set written out as a folder of files."""

from pathlib import Path

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from vitutils.data.image_sets import load_image_set
from vitutils.data.images import ImagePart, ImageSet
from vitutils.data.sources import DataError
from vitutils.files import stand_in
from vitutils.models.backbones import Backbone, load_backbone

PHOTOS = ("hymenoptera", "imagenette")  # the second is torchvision's to download
SMALL = ("fashion_mnist", "digits")  # what the pocket ViT can read


def first_set(*names: str) -> ImageSet:
    """The first of these sets that can be loaded; a folder that does not exist is skipped.

    Raises the last one's DataError, or ValueError, if none can.
    """
    for name in names:
        try:
            found = load_image_set(name)
            if name in SMALL[1:]:
                stand_in(name, SMALL[0])
            return found
        except (DataError, ValueError):  # ValueError: no such set, as where a reader's own folder is missing
            if name == names[-1]:
                raise
    raise ValueError("expected the name of a set or more, got none")


def backbone_and_photos(img_size: int | None = None) -> tuple[Backbone, ImageSet]:
    """ImageNet's ViT-Tiny, and ants and bees, or else Imagenette; without weights or photos, small grey stand-ins.

    Ants and bees are read from a folder or zip of yours, Imagenette is downloaded (99 MB). The stand-ins are the
    pocket ViT and Fashion-MNIST or digits; it was trained on Fashion-MNIST, so its numbers there prove nothing. Prints
    what was left out.  img_size: side of the ViT-Tiny's images, if it should differ from 224; see `load_backbone`.
    """
    try:
        backbone = load_backbone(img_size=img_size)
    except FileNotFoundError as error:
        return _instead(error)
    try:
        return backbone, first_set(*PHOTOS)
    except (DataError, ValueError) as error:
        return _instead(error)


def _instead(error: Exception) -> tuple[Backbone, ImageSet]:
    print("left out:", str(error).split(". ")[0].splitlines()[0])
    stand_in("the pocket ViT", "ViT-Tiny and photos")
    return load_backbone("pocket"), first_set(*SMALL)


def write_folder(pictures: ImagePart, folder: Path) -> list[Path]:
    """Write pictures as FOLDER/CLASS/NUMBER.jpg, or .png if one is under 64 pixels; returns the files, in order."""
    files = []
    for i in range(len(pictures)):
        picture, label = pictures[i]
        picture = picture if isinstance(picture, Image.Image) else to_pil_image(picture)
        name = str(pictures.classes[label]).replace("/", " or ")
        file = folder / name / f"{i:03}{'.png' if min(picture.size) < 64 else '.jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, quality=92)
        files.append(file)
    return files
