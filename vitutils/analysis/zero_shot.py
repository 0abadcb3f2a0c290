"""Classes by their names alone: a network trained on images with texts gives features for both.

Loaded by transformers, by a name on the Hugging Face hub or from a folder. Radford et al. 2021 (CLIP), section 3.1.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vitutils.analysis.export import needed, transform_from
from vitutils.analysis.photo_model import LinearHead
from vitutils.models.backbones import Backbone
from vitutils.models.weights import hub_reachable

DEFAULT = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
KNOWN = (DEFAULT, "openai/clip-vit-base-patch16", "google/siglip-base-patch16-224", "google/siglip2-base-patch16-224")
TEMPLATES = ("a photo of a {}", "a photo of the {}", "a close-up photo of a {}", "a photo of many {}")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


class ImageText(Backbone):
    """A backbone with a text tower: `features` of images and `text_features` of texts are in one space."""

    def __init__(self, net: nn.Module, tokenizer, **about):
        super().__init__(net, **about)
        self.tokenizer = tokenizer

    @property
    def licence_note(self) -> str:
        return f"read it at https://huggingface.co/{self.name} before you use or pass on what you build on it"

    def features(self, images: Tensor) -> Tensor:
        found = self._run(lambda x: self.net.get_image_features(pixel_values=x), images)
        return getattr(found, "pooler_output", found)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts, one or more -> features (N, D); texts that are too long for the text tower are cut."""
        length = self.net.config.text_config.max_position_embeddings
        pad = "max_length" if self.net.config.model_type.startswith("siglip") else True  # as they were trained
        tokens = self.tokenizer(list(texts), padding=pad, truncation=True, max_length=length, return_tensors="pt")
        tokens = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens and pad is True} or {
            "input_ids": tokens["input_ids"]}  # fmt: skip
        found = self.net.get_text_features(**{key: value.to(self.net.device) for key, value in tokens.items()})
        return getattr(found, "pooler_output", found)

    def head(self, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> LinearHead:
        """Features -> logits: the cosine with each class's texts, times the network's own scale.

        A class is the mean over templates of its texts' features, each of length 1; `_` in a name becomes a space.
        """
        rows = []
        for name in classes:
            texts = [template.format(name.replace("_", " ")) for template in templates]
            row = nn.functional.normalize(self.text_features(texts), dim=1).mean(dim=0)
            rows.append(nn.functional.normalize(row, dim=0))
        made = LinearHead(len(rows[0]), len(rows))
        with torch.no_grad():
            made.linear.weight.copy_(torch.stack(rows) * self.net.logit_scale.exp())
            made.linear.bias.zero_()
        return made


def load_image_text(name: str = DEFAULT) -> ImageText:
    """Load a CLIP or SigLIP by its name on the Hugging Face hub, or from a folder that transformers wrote.

    Raises ValueError for a network without a text tower, with names of some that have one; FileNotFoundError where it
    can't be loaded; ImportError without transformers. Only safetensors are read.
    """
    needed("transformers")
    import timm
    import transformers

    some = f"with one are {', '.join(KNOWN)}"
    if name == "pocket" or name.partition(".")[0] in timm.list_models():
        raise ValueError(f"{name} has no text tower here: timm's checkpoints hold the images' half alone; {some}")
    local = {"local_files_only": Path(name).is_dir() or not hub_reachable()}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name, **local)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise ValueError(f"{name} is a {config.model_type} without a text tower; {some}")
        net = transformers.AutoModel.from_pretrained(name, use_safetensors=True, **local).float().eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **local)
        found = _preprocessing(transformers.AutoImageProcessor.from_pretrained(name, **local).to_dict())
    except OSError as error:
        raise FileNotFoundError(f"{name} not found on the Hugging Face hub or this machine: {_line(error)}; "
                                f"known names: {', '.join(KNOWN)}") from None  # fmt: skip
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # transformers makes one without its files
        raise FileNotFoundError(f"{name} is incomplete: its tokenizer has no words; fetch its folder again")
    if not hasattr(net, "get_text_features") or not hasattr(net, "get_image_features"):
        raise ValueError(f"{name} is a {type(net).__name__}, which gives no features of texts; {some}")
    return ImageText(
        net,
        tokenizer,
        name=name,
        input_size=(3, *found["crop"]),
        mean=found["mean"],
        std=found["std"],
        transform=transform_from(found),
        licence=None,
        pretraining=f"{config.model_type}, images with texts",
        source=name,
    ).eval()


def _preprocessing(stored: dict) -> dict:
    """What transformers stores of an image processor, as `transform_from` reads it."""
    size = stored["size"]
    whole = [size["height"], size["width"]] if "height" in size else size["shortest_edge"]
    cut = stored.get("crop_size") if stored.get("do_center_crop") else None
    crop = [cut["height"], cut["width"]] if cut else whole
    if not isinstance(crop, list):
        raise ValueError("its images are not brought to one size, which this command needs")
    how = {"interpolation": RESAMPLE[int(stored["resample"])], "grey": False, "first": "picture"}
    return {"resize": whole, "crop": crop, "mean": stored["image_mean"], "std": stored["image_std"]} | how


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
