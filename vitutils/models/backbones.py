"""Any pre-trained backbone that timm knows, by name: features of an image, a grid of features, transform, licence.

If a checkpoint is a plain ViT, our own class runs it; for anything else (DINOv2, DINOv3, SigLIP, CLIP, EVA-02, BEiT,
Swin, ConvNeXt ...) it is timm's network.
"""

import difflib
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from numbers import Integral

import torch
from PIL import Image
from torch import Tensor, nn

from vitutils.models.conversion import config_of, from_timm, load_into, some
from vitutils.models.vit import ViT
from vitutils.models.weights import find_weights, load_pocket, read_file, transform_of

DEFAULT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
OPEN = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")  # anybody may use the weights, for money too
# What timm's tags say in short; where two stand in a name, the second came after.
DATA = {
    "in1k": "ImageNet-1k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "in12k": "ImageNet-12k",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "sat493m": "SAT-493M",
    "webli": "WebLI",
    "openai": "OpenAI's image-text pairs",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "datacompxl": "DataComp-1B",
    "merged2b": "Merged-2B",
    "m38m": "Merged-38M",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
}
METHODS = {
    "dino": "DINO, without labels",
    "mae": "masked autoencoder",
    "dinov2": "DINOv2, without labels",
    "dinov3": "DINOv3, without labels",
    "siglip": "SigLIP, images with texts",
    "clip": "CLIP, images with texts",
    "mim": "masked image modelling",
    "ijepa": "I-JEPA, without labels",
    "fcmae": "masked autoencoder",
}


class Backbone(nn.Module):
    """A network without its head, and what belongs to its checkpoint. Calling it returns `features`.

    net: our ViT, or timm's model, without a head; in eval mode.  name: timm's, or "pocket".
    transform: the checkpoint's own evaluation transform, for one PIL image (taken as a person sees it) or one uint8
    tensor (C, H, W).  input_size: (C, H, W) of what it returns.  mean, std: per channel, what it normalises with.
    licence: of the weights, from timm's card, or None if that says nothing; `licence_note` puts it in words.
    pretraining: in words, from timm's tag.  source: where the weights came from.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        input_size: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        transform: Callable[[Image.Image | Tensor], Tensor],
        licence: str | None,
        pretraining: str,
        source: str,
    ):
        super().__init__()
        self.net, self.name, self.input_size = net, name, tuple(input_size)
        self.mean, self.std, self.transform = tuple(mean), tuple(std), transform
        self.licence, self.pretraining, self.source = licence, pretraining, source

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)

    @property
    def ours(self) -> bool:
        """Whether the network is the book's own ViT; if not, it is timm's."""
        return isinstance(self.net, ViT)

    @property
    def licence_note(self) -> str:
        """The licence in one sentence, with a warning if it is not an open one."""
        return licence_note(self.licence)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised -> what the head would read (B, D).

        Raises ValueError for images of a shape that the network does not accept.
        """
        if self.ours:
            return self._run(self.net, images)
        found = self._run(lambda x: self.net.forward_head(self.net.forward_features(x), pre_logits=True), images)
        if not isinstance(found, Tensor) or found.ndim != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"{self.name}: expected features (B, D) from its {type(self.net).__name__}, got {got}")
        return found

    def grid(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised -> a feature for each position (B, H', W', D), after the last norm.

        H' and W' count patches (for a Swin or ConvNeXt, the positions of the last stage); class tokens and registers
        are left out. Raises ValueError like `features`, and if the network's positions do not form a grid.
        """
        tokens = self._run(self.net.forward_features, images)
        if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4):
            got = tuple(tokens.shape) if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
            raise ValueError(f"{self.name}: expected tokens (B, T, D) or a map (B, D, H', W'), got {got}")
        if tokens.ndim == 4:
            last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            return tokens if last else tokens.permute(0, 2, 3, 1)
        before = self.net.config.num_prefix_tokens if self.ours else getattr(self.net, "num_prefix_tokens", 0)
        patches = tokens[:, before:]  # (B, N, D)
        rows, columns = self._places(images, patches.shape[1])
        return patches.reshape(len(patches), rows, columns, -1)

    def _places(self, images: Tensor, N: int) -> tuple[int, int]:
        """Rows and columns of the N patches."""
        H, W = images.shape[-2:]
        embed = getattr(self.net, "patch_embed", None)
        if self.ours:
            rows, columns = H // self.net.config.patch_size, W // self.net.config.patch_size
        elif hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size((H, W))
        else:
            rows, columns = getattr(embed, "grid_size", None) or (0, 0)
        if rows * columns != N:
            kind = type(self.net).__name__
            raise ValueError(f"{self.name}: its {kind} gives {N} tokens, which are no grid of {rows} x {columns}")
        return rows, columns

    def _run(self, step: Callable[[Tensor], object], images: Tensor) -> object:
        """What a step of the network gives, or one ValueError where the images are of a shape that it refuses."""
        C, H, W = self.input_size
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != C:
            got = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise ValueError(f"{self.name}: expected images (B, {C}, {H}, {W}), got {got}")
        try:
            return step(images)
        except (AssertionError, RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or tuple(images.shape[2:]) == (H, W):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.name}: expected images (B, {C}, {H}, {W}), got {tuple(images.shape)} ({reason})"
            ) from None

    def extra_repr(self) -> str:
        return f"{self.name}, {self.pretraining}, licence {self.licence}"


def licence_note(licence: str | None) -> str:
    """One sentence about a licence, as timm names it; anything but the usual open ones comes with a warning."""
    if licence is None:
        return "timm states no licence for these weights: ask their authors before you use them"
    if licence in OPEN:
        return f"{licence}: may be used and passed on, for money too"
    if re.search(r"(^|-)nc(-|$)|noncommercial|amlr", licence):
        return f"{licence}: not for commercial use; read it before you use or pass on what you build on these weights"
    return f"{licence}: the maker's own terms; read them before you use or pass on what you build on these weights"


def load_backbone(name: str = DEFAULT, *, img_size: int | None = None, random_weights: bool = False) -> Backbone:
    """Load a backbone by timm's name, such as "vit_small_patch14_dinov2.lvd142m"; "pocket" is the book's own.

    It looks for NAME.safetensors in the `weights` folders of `$VITBOOK_DATA`, and then on the Hugging Face hub.
    img_size: side of the images, if it should differ from the checkpoint's: 224 instead of DINOv2's 518 is far
    cheaper; positions are stretched.  random_weights: load nothing; for tests, and to look at shapes on the meta
    device (`with torch.device("meta"):`). You never get random weights unless you ask for them.
    Raises ValueError for a name that timm does not know, a size that does not fit, a damaged file, or a network that
    gives no features; FileNotFoundError, naming all that was tried, if the weights can't be found or downloaded.
    """
    if img_size is not None and (not isinstance(img_size, Integral) or isinstance(img_size, bool) or img_size < 1):
        raise ValueError(f"expected img_size to be a whole number of pixels, 1 or more, or None, got {img_size!r}")
    if name == "pocket":
        return _pocket(img_size)
    tagged = known_name(name)
    about = _settings(tagged)
    state, source = {}, "random weights, as asked for: it has seen no image"
    if not random_weights:
        path = _weights(tagged, about)
        state, source = read_file(path)[0], str(path)
    with torch.device("meta") if state else nullcontext():  # shapes and settings: the numbers come from the file
        reference = _made(tagged, None)
    net = _ours(reference, state, img_size) or _theirs(reference, tagged, img_size, state, source)
    checkpoint, transform = transform_of(reference, img_size)
    return Backbone(
        net,
        name=name,
        input_size=checkpoint["input_size"],
        mean=checkpoint["mean"],
        std=checkpoint["std"],
        transform=transform,
        licence=about.license,
        pretraining=pretraining(tagged),
        source=source,
    ).eval()


def known_name(name: str) -> str:
    """A name as timm writes it, with its tag if it has one. Raises ValueError, suggesting similar names, otherwise."""
    import timm

    architecture, _, tag = str(name).partition(".")
    if architecture in timm.list_models() and (not tag or name in timm.list_pretrained(f"{architecture}*")):
        about = timm.get_pretrained_cfg(architecture) if not tag else None
        return f"{architecture}.{about.tag}" if about and about.tag else name
    near = difflib.get_close_matches(str(name), timm.list_pretrained(), n=4, cutoff=0.3)
    raise ValueError(f"timm knows no backbone {name!r}; near it: {some(near) or 'none'}")


def pretraining(name: str) -> str:
    """What a network of this name was trained on, in words, as far as timm's tag tells."""
    architecture, _, tag = name.partition(".")
    words = re.split(r"[_.]", f"{architecture}_{tag}")
    told = [METHODS[word] for word in words if word in METHODS]
    then, steps = False, []
    for word in re.split(r"_", tag):
        then = then or word == "ft"
        if word in DATA:
            steps.append(f"then {DATA[word]}" if then and steps else DATA[word])
    return "; ".join([*dict.fromkeys(told), ", ".join(steps)]).strip("; ") or tag or "not said"


def _settings(name: str):
    """timm's settings of a checkpoint; of an architecture without one, empty ones."""
    import timm
    from timm.models import PretrainedCfg

    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _weights(name: str, about):
    """The file with a checkpoint's weights. Raises FileNotFoundError, which says what is the matter with this one."""
    repo = about.hf_hub_id or f"timm/{name}"
    try:
        return find_weights(name, repo=repo if "/" in repo.strip("/") else f"timm/{name}")
    except FileNotFoundError as error:
        why = ""
        if not about.hf_hub_id:
            why = " timm has no safetensors of it" + (f", only {about.url}, a pickle" if about.url else "") + "."
        raise FileNotFoundError(f"{error}{why}") from None


def _made(name: str, img_size: int | None, **how) -> nn.Module:
    """timm's network, with random weights where `how` says nothing else. Raises ValueError where it cannot be made."""
    import timm

    sized = {} if img_size is None else {"img_size": img_size}
    try:
        return timm.create_model(name, **({"pretrained": False} | sized | how))
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **({"pretrained": False} | how))  # a convolution, which takes any size
    except (AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        size = f" for images of {img_size} pixels" if img_size else ""
        raise ValueError(f"timm cannot make {name}{size}: {reason}") from None


def _ours(reference: nn.Module, state: dict[str, Tensor], img_size: int | None) -> ViT | None:
    """Our ViT with these weights (without any: random ones) and no head; None where ours cannot stand for timm's."""
    try:
        config = config_of(reference)
        net = ViT(config)
        if state:
            load_into(net, from_timm(state))
    except ValueError:
        return None  # timm's own loader knows more spellings, and says what does not fit
    if img_size is not None and img_size % config.patch_size:
        raise ValueError(
            f"expected img_size to be a multiple of the patches' {config.patch_size} pixels, got {img_size}"
        )
    net.head, net.config = nn.Identity(), replace(config, num_classes=0)
    return net


def _theirs(reference: nn.Module, name: str, img_size: int | None, state: dict, source: str) -> nn.Module:
    """timm's network with these weights (without any: as it is), no head. Raises ValueError where they do not fit."""
    net = reference
    try:
        if state:
            overlay = {"state_dict": from_timm(state), "custom_load": False}
            net = _made(name, img_size, pretrained=True, pretrained_cfg_overlay=overlay)
        elif img_size is not None:
            net = _made(name, img_size)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{source} does not fit {name}: {reason}" if state else reason) from None
    if not all(hasattr(net, part) for part in ("forward_features", "forward_head", "reset_classifier")):
        raise ValueError(f"{name} is a {type(net).__name__}, which gives no features by timm's functions")
    if getattr(net, "num_classes", 0):
        net.reset_classifier(0)
    return net


def _pocket(img_size: int | None) -> Backbone:
    """The book's own small ViT, for machines without weights and network."""
    found = load_pocket()
    side = found.model.config.image_shape[0]
    if img_size not in (None, side):
        raise ValueError(f"the pocket ViT reads images of {side} pixels, got img_size={img_size}")
    net = found.model
    net.head, net.config = nn.Identity(), replace(net.config, num_classes=0)
    return Backbone(
        net,
        name="pocket",
        input_size=(net.config.in_chans, side, side),
        mean=found.mean,
        std=found.std,
        transform=found.transform,
        licence="mit",
        pretraining="Fashion-MNIST: grey pictures of clothes, 28 x 28 pixels",
        source=found.source,
    ).eval()
