"""Weights of other libraries in our ViT, and back: timm, torchvision, vit-pytorch; in our Swin: the first two.

timm: our parameter names are its own. torchvision: other names, same numbers. vit-pytorch: other names, no qkv bias,
a LayerNorm before and after the patch projection, and pixels of a patch in another order; `VitPytorchPatchEmbed`
stands in for our patch embedding then.
"""

import re

import torch
from torch import Tensor, nn

from vitutils.models.vit import ViT, ViTConfig

State = dict[str, Tensor]

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

    Raises ValueError, listing the keys that no row of the table covers.
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
    """torchvision -> ours. Raises ValueError for keys that torchvision's plain VisionTransformer does not have."""
    return rename(state, {theirs: ours for ours, theirs in TORCHVISION.items()})


def to_torchvision(state: State) -> State:
    """ours -> torchvision. Raises ValueError unless there is a class token and qkv has a bias, as it needs both."""
    for needed in ("cls_token", "blocks.0.attn.qkv.bias"):
        if needed not in state:
            raise ValueError(f"torchvision's VisionTransformer always has {needed}, these weights do not")
    return rename(state, TORCHVISION)


def from_vit_pytorch(state: State) -> State:
    """vit-pytorch's ViT -> `ViT(config, VitPytorchPatchEmbed)` with qkv_bias=False and norm_eps=1e-5.

    Raises ValueError for keys of another architecture, or if its heads have no output projection.
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


SWIN_BUFFERS = ("relative_position_index", "relative_coords_table")  # constants, which our Swin computes for itself


def swin_from_torchvision(state: State) -> State:
    """torchvision's SwinTransformer, version 1 or 2 -> our `Swin`. Raises ValueError for keys of anything else."""
    ours, unexpected = {}, []
    for key, tensor in state.items():
        part = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        if key.endswith(SWIN_BUFFERS):
            continue
        if part is None:
            if not re.match(r"(norm|head)\.", key):
                unexpected.append(key)
            ours[key] = tensor
            continue
        number, rest = int(part[1]), part[2]
        if number == 0:
            ours[{"0": "patch_embed.proj", "2": "patch_embed.norm"}[rest[0]] + rest[1:]] = tensor
        elif number % 2:
            block = re.sub(r"^(\d+\.mlp)\.([03])", lambda m: f"{m[1]}.fc{1 if m[2] == '0' else 2}", rest)
            ours[f"layers.{number // 2}.blocks.{block}"] = tensor
        else:
            ours[f"layers.{number // 2}.downsample.{rest}"] = tensor
    if unexpected:
        raise ValueError(f"{len(unexpected)} weights have no place in a Swin: {some(unexpected)}")
    return ours


def swin_from_timm(state: State) -> State:
    """timm's SwinTransformer -> our `Swin`: the names are the same, except for the head's."""
    return {re.sub(r"^head\.fc\.", "head.", key): x for key, x in state.items() if not key.endswith(SWIN_BUFFERS)}


def load_into(model: nn.Module, state: State, origin: str = "these weights") -> nn.Module:
    """Copy a state dict into a model and return the model; all or nothing.

    Raises ValueError, listing what is missing, what is unexpected and what has another shape.
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


def config_of(timm_model: nn.Module) -> ViTConfig:
    """Read our configuration off timm's VisionTransformer.

    Raises ValueError if it has something that our ViT lacks, and lists it: another class, layer scale, registers,
    normalised queries, gated MLPs, other activations, pooling or positions.
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
