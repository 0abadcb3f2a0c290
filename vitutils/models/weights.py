"""Pretrained weights: found on this machine or on the Hugging Face hub, and loaded into our ViT.

Only safetensors files are read: no pickle is executed.
"""

import difflib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from urllib.parse import urlsplit

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from vitutils.data.decoding import AsSeen
from vitutils.files import data_folders, downloading
from vitutils.models.conversion import State, config_of, from_timm, load_into, some
from vitutils.models.vit import ViT, ViTConfig

POCKET_FILE = Path(__file__).resolve().parents[1] / "pocket.safetensors"  # written by studies/pocket.py, with its card
POCKET_CONFIG = ViTConfig(
    img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=6, num_heads=4, mlp_ratio=2.0
)


@dataclass(frozen=True)
class Pretrained:
    """A model and what belongs to its checkpoint.

    model: our ViT, in eval mode.  mean, std: per channel, of images scaled to 0..1 (the checkpoint's own).
    transform: the checkpoint's own evaluation transform for one PIL image or uint8 tensor (C, H, W); a PIL image is
    taken as a person sees it (`decoding.as_seen`), whatever its mode.
    source: where it came from.  classes: K names; none if the checkpoint has no head and the model returns features.
    """

    name: str
    model: ViT
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Image.Image | Tensor], Tensor]
    source: str
    classes: tuple[str, ...]


def weight_folders() -> list[Path]:
    """Folders that may hold weights: `weights` under each of the data folders (`$VITBOOK_DATA`)."""
    return [folder / "weights" for folder in data_folders()]


def hub_reachable() -> bool:
    """Say within 5 seconds whether the Hugging Face hub answers; its own client would retry for a minute."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # the proxy knows, we do not
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def find_weights(name: str, repo: str) -> Path:
    """Find NAME.safetensors in `weight_folders()`, in the hub's cache on this machine, or on the hub.

    Raises FileNotFoundError, naming all that was tried.
    """
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # a notice on stderr would stand on the page and fail the build
    places = [folder / f"{name}.safetensors" for folder in weight_folders()]
    for path in places:
        if path.is_file():
            return path
    try:
        return from_hub(name, repo)
    except Exception as error:
        raise FileNotFoundError(
            f"no weights for {name}. Tried: {', '.join(map(str, places))}; the Hugging Face hub, {repo} "
            f"({type(error).__name__}). Connect to a network, or put the file into one of these folders."
        ) from None


def from_hub(name: str, repo: str) -> Path:
    """The file from the hub's cache on this machine, or else a download, which says how large it is and shows progress.

    token=False: the weights are public, and on Colab the hub's client would otherwise ask the reader for a secret.
    Raises what the hub's client raises.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import LocalEntryNotFoundError, disable_progress_bars

    file, known = "model.safetensors", signature(hf_hub_download).parameters
    try:
        return Path(hf_hub_download(repo, file, local_files_only=True))
    except LocalEntryNotFoundError:
        if not hub_reachable():
            raise
    size = get_hf_file_metadata(hf_hub_url(repo, file), token=False).size
    disable_progress_bars()  # its own bar is a widget, which asks other hosts for scripts
    plain = {"tqdm_class": tqdm} if "tqdm_class" in known else {}  # older clients: the announcement, and no bar
    with downloading(name, size / 1e6, answered=True):
        return Path(hf_hub_download(repo, file, token=False, **plain))


def load_pretrained(*names: str) -> Pretrained:
    """Load the first of these plain ViTs that can be found, by timm's names; its `source` names those that could not.

    For a name such as "vit_tiny_patch16_224.augreg_in21k_ft_in1k", it looks for NAME.safetensors in the `weights`
    folders of `$VITBOOK_DATA`, and then on the Hugging Face hub. "pocket" is the book's own small ViT and comes with
    this package: grey images of 28 x 28 pixels, ten classes of Fashion-MNIST.
    A checkpoint without a head (`vit_small_patch16_224.dino`) returns features (B, D) instead of logits.
    Raises ValueError for a name that timm does not know, a damaged file, or an architecture that is not a plain ViT;
    FileNotFoundError, naming all that was tried, if none can be found.
    """
    if not names:
        raise ValueError("expected the name of a model, got none")
    failures = []
    for name in names:
        try:
            found = _load(name)
        except FileNotFoundError as error:
            failures.append((name, str(error)))
            continue
        absent = f" ({' and '.join(other for other, _ in failures)} not found)" if failures else ""
        return replace(found, source=found.source + absent)
    raise FileNotFoundError("\n".join(told for _, told in failures))


def _load(name: str) -> Pretrained:
    if name == "pocket":
        return load_pocket()
    import timm
    from timm.data import ImageNetInfo

    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models() or (tag and name not in timm.list_pretrained()):
        near = difflib.get_close_matches(name, timm.list_pretrained("vit_*"), n=4, cutoff=0.3)
        raise ValueError(f"timm knows no model {name!r}; near it: {some(near)}")
    reference = timm.create_model(name, pretrained=False)
    if type(reference) is not timm.models.VisionTransformer:
        raise ValueError(f"{name} is a {type(reference).__name__}; expected a plain VisionTransformer")
    config = config_of(reference)  # before anything is downloaded
    path = find_weights(name, repo=f"timm/{name}")
    state, _ = read_file(path)
    model = load_into(ViT(config), from_timm(state), origin=str(path))
    checkpoint, transform = transform_of(reference)
    K = reference.num_classes
    classes = tuple(ImageNetInfo().label_descriptions()) if K == 1000 else tuple(map(str, range(K)))
    return Pretrained(name, model.eval(), checkpoint["mean"], checkpoint["std"], transform, str(path), classes)


def transform_of(reference: nn.Module, img_size: int | None = None) -> tuple[dict, Callable]:
    """The data settings of timm's model, and its evaluation transform as `Pretrained.transform` describes it.

    img_size: side of the square images that it returns; None: the checkpoint's own.
    """
    from timm.data import create_transform, resolve_model_data_config

    checkpoint = resolve_model_data_config(reference)
    if img_size is not None:
        checkpoint["input_size"] = (checkpoint["input_size"][0], img_size, img_size)
    transform = create_transform(**checkpoint, is_training=False)
    transform.transforms.insert(0, AsSeen())
    # timm's steps pass a uint8 tensor on as it is, and Normalize, the last of them, refuses it
    transform.transforms.insert(-1, v2.ToDtype(torch.float32, scale=True))
    return checkpoint, transform


def read_file(path: Path) -> tuple[State, dict[str, str]]:
    """Read a safetensors file: its tensors, and the words stored with them. Raises ValueError for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            words = file.metadata() or {}
        return load_file(path), words
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and fetch it again") from None


def load_pocket() -> Pretrained:
    """Load the book's own small ViT, which `studies/pocket.py` trained on Fashion-MNIST; its card is beside it."""
    if not POCKET_FILE.is_file():
        raise FileNotFoundError(f"no {POCKET_FILE}: it comes with the book; install vitutils again")
    state, words = read_file(POCKET_FILE)
    model = load_into(ViT(POCKET_CONFIG), state, origin=str(POCKET_FILE))
    mean, std = (float(words["mean"]),), (float(words["std"]),)
    steps = [AsSeen(grey=True), v2.ToImage(), v2.Grayscale(), v2.Resize(POCKET_CONFIG.img_size, antialias=True)]
    steps += [v2.CenterCrop(POCKET_CONFIG.img_size), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    source = f"the book's own, trained on {words['data']}"
    return Pretrained("pocket", model.eval(), mean, std, v2.Compose(steps), source, tuple(words["classes"].split("|")))
