"""Weights of other libraries in our ViT, and back: timm, torchvision, vit-pytorch.

timm: our parameter names are its own. torchvision: other names, same numbers. vit-pytorch: other names, no qkv bias,
a LayerNorm before and after the patch projection, and pixels of a patch in another order; `VitPytorchPatchEmbed`
stands in for our patch embedding then. Only safetensors files are read: no pickle is executed.
"""

import difflib
import os
import re
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

from vitutils._progress import downloading
from vitutils._sources import data_folders
from vitutils.decoding import AsSeen
from vitutils.vit import ViT, ViTConfig

State = dict[str, Tensor]

POCKET_FILE = Path(__file__).resolve().with_name("pocket.safetensors")  # written by studies/pocket.py, with its card
POCKET_CONFIG = ViTConfig(
    img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=6, num_heads=4, mlp_ratio=2.0
)

# our name -> torchvision's; {i} is the number of the block
TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "blocks.{i}.norm1": "encoder.layers.encoder_layer_{i}.ln_1",
    "blocks.{i}.attn.qkv.weight": "encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight",
    "blocks.{i}.attn.qkv.bias": "encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias",
    "blocks.{i}.attn.proj": "encoder.layers.encoder_layer_{i}.self_attention.out_proj",
    "blocks.{i}.norm2": "encoder.layers.encoder_layer_{i}.ln_2",
    "blocks.{i}.mlp.fc1": "encoder.layers.encoder_layer_{i}.mlp.0",
    "blocks.{i}.mlp.fc2": "encoder.layers.encoder_layer_{i}.mlp.3",
    "norm": "encoder.ln",
    "head": "heads.head",
}
# our name -> vit-pytorch's
VIT_PYTORCH = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embedding",
    "patch_embed.norm_in": "to_patch_embedding.1",
    "patch_embed.proj": "to_patch_embedding.2",
    "patch_embed.norm_out": "to_patch_embedding.3",
    "blocks.{i}.norm1": "transformer.layers.{i}.0.norm",
    "blocks.{i}.attn.qkv": "transformer.layers.{i}.0.to_qkv",
    "blocks.{i}.attn.proj": "transformer.layers.{i}.0.to_out.0",
    "blocks.{i}.norm2": "transformer.layers.{i}.1.net.0",
    "blocks.{i}.mlp.fc1": "transformer.layers.{i}.1.net.1",
    "blocks.{i}.mlp.fc2": "transformer.layers.{i}.1.net.4",
    "norm": "transformer.norm",
    "head": "mlp_head",
}


class VitPytorchPatchEmbed(nn.Module):
    """vit-pytorch's patch embedding: flatten (rows, columns, channels), LayerNorm, Linear, LayerNorm.

    images (B, C, H, W) -> tokens (B, N, D). Not the paper's: use it as `ViT(config, VitPytorchPatchEmbed)`.
    """

    vit_init = True  # the ViT initialises it with its own layers

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.norm_in = nn.LayerNorm(in_chans * patch_size**2)
        self.proj = nn.Linear(in_chans * patch_size**2, embed_dim)
        self.norm_out = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        P = self.patch_size
        if H % P or W % P:
            raise ValueError(f"patch_size {P} does not divide {H} x {W}")
        cut = images.reshape(B, C, H // P, P, W // P, P)
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, P * P * C)  # (B, N, P*P*C), channel last
        return self.norm_out(self.proj(self.norm_in(patches)))


def rename(state: State, table: dict[str, str]) -> State:
    """Rename every key of `state` by a table of prefixes, in which {i} stands for a block's number.

    Raises ValueError that lists the keys no row of the table covers.
    """
    rows = [
        (re.compile(re.escape(old).replace(r"\{i\}", r"(\d+)") + r"(\.\w+)?$"), new) for old, new in table.items()
    ]
    renamed, unexpected = {}, []
    for key, tensor in state.items():
        for pattern, new in rows:
            if found := pattern.match(key):
                *block, suffix = found.groups()
                renamed[new.replace("{i}", block[0] if block else "") + (suffix or "")] = tensor
                break
        else:
            unexpected.append(key)
    if unexpected:
        raise ValueError(f"{len(unexpected)} weights have no place in this architecture: {some(unexpected)}")
    return renamed


def some(names: list[str], most: int = 8) -> str:
    """Name at most `most` of the names, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def from_timm(state: State) -> State:
    """timm -> ours. The names are the same; dict in, dict out, so that all three libraries read alike."""
    return dict(state)


def to_timm(state: State) -> State:
    """ours -> timm."""
    return dict(state)


def from_torchvision(state: State) -> State:
    """torchvision -> ours. Raises ValueError for keys that its plain VisionTransformer does not have."""
    return rename(state, {theirs: ours for ours, theirs in TORCHVISION.items()})


def to_torchvision(state: State) -> State:
    """ours -> torchvision. It knows only the class token and biased qkv; anything else raises ValueError."""
    for needed in ("cls_token", "blocks.0.attn.qkv.bias"):
        if needed not in state:
            raise ValueError(f"torchvision's VisionTransformer always has {needed}, these weights do not")
    return rename(state, TORCHVISION)


def from_vit_pytorch(state: State) -> State:
    """vit-pytorch's ViT -> `ViT(config, VitPytorchPatchEmbed)` with qkv_bias=False and norm_eps=1e-5.

    Raises ValueError for keys of another architecture, or where its heads have no output projection.
    """
    if not any(key.endswith("to_out.0.weight") for key in state):
        raise ValueError("no weights named to_out.0: one head as wide as the model has no output projection, ours has")
    if absent := [name for name in ("pos_embedding", "cls_token") if name not in state]:
        raise ValueError(f"vit-pytorch's ViT always has {' and '.join(absent)}, these weights do not")
    ours = rename(state, {theirs: ours for ours, theirs in VIT_PYTORCH.items()})
    ours["pos_embed"] = ours["pos_embed"][None]  # theirs is (T, D)
    ours["cls_token"] = ours["cls_token"][None]  # theirs is (1, D), and (0, D) with mean pooling
    if ours["cls_token"].numel() == 0:
        del ours["cls_token"]
    return ours


def to_vit_pytorch(state: State) -> State:
    """`ViT(config, VitPytorchPatchEmbed)` -> vit-pytorch's ViT. Raises ValueError for weights it has no place for."""
    theirs = rename(state, VIT_PYTORCH)
    biased = [key for key in theirs if key.endswith("to_qkv.bias")]
    if biased or "patch_embed.norm_in.weight" not in state:
        raise ValueError("vit-pytorch's ViT has no qkv bias, and a LayerNorm before its patch projection")
    if "pos_embed" not in state:
        raise ValueError("vit-pytorch's ViT always has positions, these weights have no pos_embed")
    theirs["pos_embedding"] = theirs["pos_embedding"][0]
    D = theirs["pos_embedding"].shape[-1]
    theirs["cls_token"] = theirs["cls_token"][0] if "cls_token" in theirs else torch.zeros(0, D)
    return theirs


def about_fc_norm(told: str) -> str:
    """A sentence more for an error that names timm's `fc_norm`; "" for others."""
    if "fc_norm" not in told:
        return ""
    return ". fc_norm normalises the mean of the tokens; our ViT normalises each token first, as timm's fc_norm=False"


def load_into(model: nn.Module, state: State, origin: str = "these weights") -> nn.Module:
    """Copy a state dict into a model and return the model; all or nothing.

    Raises ValueError that lists what is missing, what is unexpected and what has another shape.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} (expected {tuple(own[key].shape)}, got {tuple(state[key].shape)})"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(parts.values()):
        told = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in parts.items() if names)
        raise ValueError(f"{origin} do not fit this model. {told}{about_fc_norm(told)}")
    model.load_state_dict(state)
    return model


@dataclass(frozen=True)
class Pretrained:
    """A model and what belongs to its checkpoint.

    model: our ViT, in eval mode.  mean, std: per channel, of images scaled to 0..1 (the checkpoint's own).
    transform: the checkpoint's own evaluation transform for one PIL image or (C,H,W) uint8 tensor; a PIL image is taken
    as a person sees it (`decoding.as_seen`), whatever its mode.
    source: where it came from.  classes: K names; none where the checkpoint has no head, and the model gives features.
    """

    name: str
    model: ViT
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Image.Image | Tensor], Tensor]
    source: str
    classes: tuple[str, ...]


def folders() -> list[Path]:
    """Folders that may hold weights: `weights` under each of the data folders (`$VITBOOK_DATA`)."""
    return [folder / "weights" for folder in data_folders()]


def config_of(timm_model: nn.Module) -> ViTConfig:
    """Read our configuration off timm's VisionTransformer.

    Raises ValueError, which lists what it has, for one that our ViT cannot stand for: another class, layer scale,
    registers, normalised queries, gated MLPs, other activations, poolings or positions.
    """
    import timm

    kind = type(timm_model)
    if kind is not timm.models.VisionTransformer:
        raise ValueError(f"expected timm's plain VisionTransformer, got a {kind.__name__}")
    patch, D = timm_model.patch_embed, timm_model.embed_dim
    has = _beyond_ours(timm_model)
    if not has:
        first = timm_model.blocks[0]
        hidden = first.mlp.fc1.out_features
        config = ViTConfig(
            img_size=tuple(patch.img_size),
            patch_size=patch.patch_size[0],
            in_chans=patch.proj.in_channels,
            num_classes=timm_model.num_classes,
            embed_dim=D,
            depth=len(timm_model.blocks),
            num_heads=first.attn.num_heads,
            mlp_ratio=hidden / D,
            qkv_bias=first.attn.qkv.bias is not None,
            global_pool=timm_model.global_pool,
            norm_eps=first.norm1.eps,
        )
        with torch.device("meta"):  # shapes without numbers
            ours = ViT(config).state_dict()
        ours = {(name, tensor.shape) for name, tensor in ours.items()}
        theirs = {(name, tensor.shape) for name, tensor in timm_model.state_dict().items()}
        has = [f"another shape or number of {name}" for name, _ in ours ^ theirs]
    if has:
        told = f"expected a plain ViT, as in the paper; this VisionTransformer has {some(sorted({*has}))}"
        raise ValueError(told + about_fc_norm(told))
    return config


PLAIN = {  # what stands at each place of timm's ViT and its blocks where it computes as ours does
    "block": ("Block",),
    "attn": ("Attention",),
    "mlp": ("Mlp",),
    "mlp.act": ("GELU",),
    "norm1": ("LayerNorm",),
    "norm2": ("LayerNorm",),
}
PLAIN |= dict.fromkeys(("ls1", "ls2", "attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"), ("Identity", "NoneType"))
PLAIN_NET = {"norm": ("LayerNorm",), "patch_embed.proj": ("Conv2d",), "attn_pool": ("NoneType",)}
PLAIN_NET |= dict.fromkeys(("norm_pre", "fc_norm", "patch_embed.norm"), ("Identity", "NoneType"))


def _beyond_ours(net: nn.Module) -> list[str]:
    """What timm's VisionTransformer has that our ViT lacks, in words."""
    layers = {(name, type(_inside(net, name)).__name__): kinds for name, kinds in PLAIN_NET.items()}
    for block in net.blocks:
        own = {name: type(block if name == "block" else _inside(block, name)).__name__ for name in PLAIN}
        layers |= {(name, kind): PLAIN[name] for name, kind in own.items()}
    found = [f"{kind} as {name}" for (name, kind), kinds in layers.items() if kind not in kinds]
    found = [told for told in found if told.endswith(" as block")] or found  # another block has other parts
    if found or not len(net.blocks):
        return found or ["no blocks"]
    numbers = {(b.attn.num_heads, b.norm1.eps, b.norm2.eps, b.mlp.act.approximate) for b in net.blocks}
    before = getattr(net, "num_prefix_tokens", 0)
    told = {
        "blocks or norms that differ in heads or eps": len(numbers) > 1 or len({net.norm.eps, *min(numbers)[1:3]}) > 1,
        "an approximate GELU": min(numbers)[3] != "none",
        f"pooling {net.global_pool!r}": net.global_pool not in ("token", "avg"),
        "a class token beside mean pooling": net.global_pool == "avg" and before > 0,
        "registers": getattr(net, "num_reg_tokens", 0) > 0,
        "a class token without position": getattr(net, "no_embed_class", False) and before > 0,
        "no positions": net.pos_embed is None,
        "patches that are not square": len(set(net.patch_embed.patch_size)) != 1,
    }
    return [name for name, there in told.items() if there]


def _inside(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


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


def find_file(name: str, repo: str) -> Path:
    """Find NAME.safetensors in `folders()`, in the hub's cache on this machine, or on the hub.

    Raises FileNotFoundError that names all that was tried.
    """
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # a notice on stderr would stand on the page and fail the build
    places = [folder / f"{name}.safetensors" for folder in folders()]
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
    """The file from the hub's cache on this machine, else from the hub, which says how much and shows its bar.

    token=False: the weights are public, and on Colab the hub's client would ask the reader for a secret.
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


def load(name: str) -> Pretrained:
    """Load a pretrained plain ViT by its timm name, such as "vit_tiny_patch16_224.augreg_in21k_ft_in1k"; or "pocket".

    Looks for NAME.safetensors in the `weights` folders of `$VITBOOK_DATA`, then asks the Hugging Face hub. "pocket" is
    the book's own small ViT and comes with this package: grey images of 28 x 28 pixels, ten classes of Fashion-MNIST.
    A checkpoint without a head (`vit_small_patch16_224.dino`) gives features (B, D) in place of logits.
    Raises ValueError for a name timm does not know, a damaged file, or an architecture that is not a plain ViT;
    FileNotFoundError, naming all that was tried, where the weights can be had from neither.
    """
    if name == "pocket":
        return load_pocket()
    import timm
    from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models() or (tag and name not in timm.list_pretrained()):
        near = difflib.get_close_matches(name, timm.list_pretrained("vit_*"), n=4, cutoff=0.3)
        raise ValueError(f"timm knows no model {name!r}; near it: {some(near)}")
    reference = timm.create_model(name, pretrained=False)
    if type(reference) is not timm.models.VisionTransformer:
        raise ValueError(f"{name} is a {type(reference).__name__}; expected a plain VisionTransformer")
    config = config_of(reference)  # before anything is downloaded
    path = find_file(name, repo=f"timm/{name}")
    state, _ = read_file(path)
    model = load_into(ViT(config), from_timm(state), origin=str(path))
    recipe = resolve_model_data_config(reference)
    transform = create_transform(**recipe, is_training=False)
    transform.transforms.insert(0, AsSeen())
    # timm's steps pass a uint8 tensor on as it is, and Normalize, the last of them, refuses it
    transform.transforms.insert(-1, v2.ToDtype(torch.float32, scale=True))
    K = reference.num_classes
    classes = tuple(ImageNetInfo().label_descriptions()) if K == 1000 else tuple(map(str, range(K)))
    return Pretrained(name, model.eval(), recipe["mean"], recipe["std"], transform, str(path), classes)


def read_file(path: Path) -> tuple[State, dict[str, str]]:
    """Read a safetensors file: its tensors, and the words stored with them. Raises ValueError for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            words = file.metadata() or {}
        return load_file(path), words
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and fetch it again") from None


def load_pocket() -> Pretrained:
    """Load the book's own small ViT, which `studies/pocket.py` trained on Fashion-MNIST; see its card beside it."""
    if not POCKET_FILE.is_file():
        raise FileNotFoundError(f"no {POCKET_FILE}: it comes with the book; install vitutils again")
    state, words = read_file(POCKET_FILE)
    model = load_into(ViT(POCKET_CONFIG), state, origin=str(POCKET_FILE))
    mean, std = (float(words["mean"]),), (float(words["std"]),)
    steps = [AsSeen(grey=True), v2.ToImage(), v2.Grayscale(), v2.Resize(POCKET_CONFIG.img_size, antialias=True)]
    steps += [v2.CenterCrop(POCKET_CONFIG.img_size), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    source = f"the book's own, trained on {words['data']}"
    return Pretrained("pocket", model.eval(), mean, std, v2.Compose(steps), source, tuple(words["classes"].split("|")))


def load_first(*names: str) -> Pretrained:
    """Load the first of these that can be had; its `source` says which could not.

    Raises ValueError for an unknown name or a damaged file; FileNotFoundError if none can be had.
    """
    if not names:
        raise ValueError("expected the name of a model, got none")
    failures = []
    for name in names:
        try:
            found = load(name)
        except FileNotFoundError as error:
            failures.append((name, str(error)))
            continue
        absent = f" ({' and '.join(other for other, _ in failures)} could not be had)" if failures else ""
        return replace(found, source=found.source + absent)
    raise FileNotFoundError("\n".join(told for _, told in failures))
