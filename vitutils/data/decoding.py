"""One way to open a picture file, for every loader: as a person sees it.

The result is upright (the camera's orientation tag is applied), has eight bits per channel (deep greys are scaled to
their range, not clipped), and is opaque (transparent areas become white). Of an animation it is the first frame.
"""

import io
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from vitutils.data.sources import DataError

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
    HEIC = True
except ImportError:
    HEIC = False

VERSION = 3  # raise it when a picture comes out otherwise: features that are kept in files are then computed anew
THREAD = 16  # of a picture longer than so many times its width only the middle is kept
# Formats of pictures; no program is started, and no film or page is taken for a picture.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000", "PPM", "TGA", "ICO")
FORMATS += ("ICNS", "PSD", "PCX", "SGI", "QOI", "DDS")
RAW = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")  # Pillow sees their thumbnails
HEIC_ENDINGS = (".heic", ".heif", ".hif")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIC_ADVICE = "to read it: pip install pillow-heif"
UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    SyntaxError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,  # an encrypted zip; NotImplementedError is one: a compression that Python does not know
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
UPRIGHT = {  # the orientation tag -> what undoes the camera's turn
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: Path | str | io.BufferedIOBase, name: str, side: int | None = None) -> Image.Image:
    """Read one picture as RGB, as `as_seen` shows it.

    source: a path, or a file open for reading.  name: the picture's name, for the error.
    side: pixels; the middle square of the picture, resized to (side, side). None: the whole picture in its own size,
    or its middle if it is more than 16 times as long as it is wide.
    Raises DataError, naming the file, if it cannot be decoded or has more pixels than Pillow opens.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags and large pictures; what is wrong raises
            with Image.open(source, formats=_formats()) as file:
                image = as_seen(file)
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise DataError(f"the image {name} has more than {most:,} pixels: shrink it or remove it") from None
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {name} ({_why(source, error)}): repair it or remove it") from None
    if side is None:
        return image
    short, (W, H) = min(image.size), image.size
    left, top = (W - short) / 2, (H - short) / 2
    middle = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=middle)


def as_seen(image: Image.Image) -> Image.Image:
    """The picture upright, opaque and in RGB, whatever the mode of `image`.

    Greys of 16 or 32 bits keep their order: whole numbers are scaled from the smallest of 8, 10, 12, 14 or 16 bits that
    holds them, fractions from 0..1, and anything else from its smallest value to its largest. NaN becomes black. The
    file's metadata are dropped, so that the picture isn't turned again: applied twice, the function changes nothing
    more.
    """
    turn = None
    image.load()  # a TIFF is turned by Pillow as it is loaded, and its tag is taken away
    with suppress(*UNREADABLE):  # broken tags are no reason to lose a picture
        turn = UPRIGHT.get(image.getexif().get(0x0112))
    image = _middle(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(image))
    elif image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}  # not .clear(): the picture that came in may share it
    return image if turn is None else image.transpose(turn)


class AsSeen:
    """`as_seen` as a step of a transform: PIL images become upright, opaque and RGB; tensors pass through.

    grey: grey images keep their single channel, for a network that reads grey.
    """

    def __init__(self, grey: bool = False):
        self.grey = grey

    def __call__(self, picture: object) -> object:
        if not isinstance(picture, Image.Image):
            return picture
        one = self.grey and picture.getbands() in (("1",), ("L",), ("I",), ("F",))
        return as_seen(picture).convert("L" if one else "RGB")

    def __repr__(self) -> str:
        return f"AsSeen(grey={self.grey}, version={VERSION})"


def is_picture(source: Path | str | io.BufferedIOBase) -> bool:
    """Whether this is a picture, judged by its content: the header is read, the pixels are not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(source, formats=_formats()).close()
    except Image.DecompressionBombError:
        return True  # one that can't be fetched: whoever asks for it is told
    except UNREADABLE:
        return False
    return True


def looks_like_one(ending: str) -> bool:
    """Whether files of this ending are pictures, as everybody has it: their content need not be asked."""
    return ending in IMG_EXTENSIONS or (HEIC and ending in HEIC_ENDINGS)


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _why(source: Path | str | io.BufferedIOBase, error: Exception) -> str:
    """Why a picture can't be decoded, in words where there are any, else the kind of error."""
    if not HEIC and _is_heic(source):
        return f"HEIC; {HEIC_ADVICE}"
    with suppress(OSError, ValueError):
        path = Path(source) if isinstance(source, (str, Path)) else None
        if path and not path.exists():
            return "a link to nothing" if path.is_symlink() else "there is no such file"
        if path and path.is_file() and not path.stat().st_size:
            return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "no picture that Pillow knows, whatever its name says"
    return "it ends too early" if "truncated" in str(error).lower() else type(error).__name__


def _is_heic(source: Path | str | io.BufferedIOBase) -> bool:
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                head = file.read(12)
        else:
            source.seek(0)
            head = source.read(12)
    except UNREADABLE:
        return False
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a picture like a thread: enlarged by its shorter side, the rest would fill the memory."""
    W, H = image.size
    most = THREAD * min(W, H)
    if max(W, H) <= most:
        return image
    w, h = min(W, most), min(H, most)
    info = image.info
    image = image.crop(((W - w) // 2, (H - h) // 2, (W + w) // 2, (H + h) // 2))
    image.info = info
    return image


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Greys of more than eight bits as uint8 (H, W)."""
    tags, stored = getattr(image, "tag_v2", {}), np.asarray(image)
    if tags and stored.dtype == np.int32 and tags.get(339, (1,)) == (1,):  # a TIFF's numbers without signs
        stored = stored.view(np.uint32)
    values = stored.astype(np.float64)
    numbers = values[np.isfinite(values)]
    low, high = (numbers.min(), numbers.max()) if numbers.size else (0.0, 0.0)
    whole = image.mode != "F"
    bits = next((bits for bits in (8, 10, 12, 14, 16) if high < 2**bits), None) if whole and low >= 0 else None
    if bits:
        start, end = 0, 2**bits - 1
    elif not whole and low >= 0 and high <= 1:
        start, end = 0, 1
    else:
        start, end = (low, high) if low < high else (min(low, 0), max(high, 0))
    values = np.nan_to_num(values, nan=start, posinf=high, neginf=low)
    shades = np.rint((values - start) / (end - start) * 255).astype(np.uint8)
    if tags.get(262) == 0:  # a TIFF in which 0 is white
        shades = 255 - shades
    hole = image.info.get("transparency")
    return np.where(stored == hole, np.uint8(255), shades) if isinstance(hole, int) else shades
