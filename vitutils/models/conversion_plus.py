"""Weights of today's architectures in our `ViTPlus`: timm's VisionTransformer and Eva (DINOv3), vit-pytorch's vit_5.

The tables say which name is which. Three things take more than a new name: DINOv3 keeps the biases of queries and
values apart; a gated MLP may hold both projections in one matrix; and vit_5 pairs channels 2i and 2i + 1 for its rotary
positions, where ours pairs i and i + Dh/2, so the rows of queries and keys are put in that order, which leaves their
dot products as they were. Whatever does not fit raises an error that names it.
"""

import math
import re

import torch
from torch import Tensor, nn

from vitutils.models.conversion import State, load_into, rename, some
from vitutils.models.modes import eval_mode
from vitutils.models.vit_plus import ViTPlus, ViTPlusConfig

# our name -> timm's Eva; {i} is the number of the block. What is not here has the same name
EVA = {"blocks.{i}.ls1.gamma": "blocks.{i}.gamma_1", "blocks.{i}.ls2.gamma": "blocks.{i}.gamma_2"}
# our name -> vit-pytorch's vit_5
VIT_5 = {
    "cls_token": "cls_token",
    "reg_token": "register_tokens",
    "pos_embed": "pos_embedding",
    "patch_embed.proj": "to_patch_embedding.1",
    "blocks.{i}.norm1.weight": "transformer.layers.{i}.0.norm.g",
    "blocks.{i}.attn.qkv": "transformer.layers.{i}.0.to_qkv",
    "blocks.{i}.attn.q_norm.weight": "transformer.layers.{i}.0.q_norm.g",
    "blocks.{i}.attn.k_norm.weight": "transformer.layers.{i}.0.k_norm.g",
    "blocks.{i}.attn.proj": "transformer.layers.{i}.0.to_out.0",
    "blocks.{i}.ls1.gamma": "transformer.ls1.{i}",
    "blocks.{i}.norm2.weight": "transformer.layers.{i}.1.net.0.g",
    "blocks.{i}.mlp.fc1": "transformer.layers.{i}.1.net.1",
    "blocks.{i}.mlp.fc2": "transformer.layers.{i}.1.net.4",
    "blocks.{i}.ls2.gamma": "transformer.ls2.{i}",
    "norm.weight": "transformer.norm.g",
    "head": "mlp_head",
}
# Kinds of layers in timm's networks that ours computes alike; where one stands may still be refused
KNOWN = "VisionTransformer Eva PatchEmbed Block EvaBlock Attention EvaAttention AttentionPoolLatent Mlp GluMlp SwiGLU"
KNOWN += " RotaryEmbeddingDinoV3 LayerNorm RmsNorm RMSNorm LayerScale GELU SiLU Linear Conv2d Dropout DropPath Identity"
KNOWN += " ModuleList Sequential"


def plus_from_timm(theirs: nn.Module) -> ViTPlus:
    """A `ViTPlus` with the weights of timm's VisionTransformer or Eva and the same outputs; in eval mode.

    It handles registers, LayerScale, QK norm, RMSNorm, gated MLPs, attention pooling and DINOv3's rotary positions.
    Raises ValueError, naming what `ViTPlus` lacks, or if the outputs for one image differ.
    """
    if has := _beyond_ours(theirs):
        raise ValueError(f"ViTPlus cannot stand for this {type(theirs).__name__}: it has {some(has)}")
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("periods")}
    block = "blocks.{i}."
    apart = {key: value for key, value in state.items() if re.fullmatch(r"blocks\.\d+\.gamma_[12]", key)}
    state = {key: value for key, value in state.items() if key not in apart}
    state |= rename(apart, {old: new for new, old in EVA.items()})
    for i in range(len(theirs.blocks)):
        _unpack(state, block.format(i=i))
    ours = load_into(ViTPlus(_config_of(theirs, state)), state, "timm's weights").eval()
    return _proved(ours, theirs)


def _unpack(state: State, block: str) -> None:
    """One block's biases of queries and values, and a packed gated MLP, as our layers hold them. In place."""
    if f"{block}attn.q_bias" in state:
        q, v = (state.pop(f"{block}attn.{name}_bias") for name in "qv")
        state[f"{block}attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    wide, narrow = (state.get(f"{block}mlp.fc{n}.weight") for n in "12")
    if wide is not None and len(wide) == 2 * narrow.shape[1]:
        for kind in ("weight", "bias"):
            if f"{block}mlp.fc1.{kind}" in state:
                gate, value = state.pop(f"{block}mlp.fc1.{kind}").chunk(2)
                state |= {f"{block}mlp.fc1_g.{kind}": gate, f"{block}mlp.fc1_x.{kind}": value}


def _config_of(theirs: nn.Module, state: State) -> ViTPlusConfig:
    """The configuration of a timm network whose parts are known; state: its weights under our names."""
    first, patch, D = theirs.blocks[0], theirs.patch_embed, theirs.embed_dim
    rope = getattr(theirs, "rope", None)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    scale = state.get("blocks.0.ls1.gamma")
    return ViTPlusConfig(
        img_size=tuple(patch.img_size),
        patch_size=patch.patch_size[0],
        in_chans=patch.proj.in_channels,
        num_classes=theirs.num_classes,
        embed_dim=D,
        depth=len(theirs.blocks),
        num_heads=first.attn.num_heads,
        mlp_ratio=state["blocks.0.mlp.fc2.weight"].shape[1] / D,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        global_pool=theirs.global_pool,
        norm_eps=first.norm1.eps,
        class_token="cls_token" in state,
        reg_tokens=registers,
        pos_embed="none" if theirs.pos_embed is None else "learn",
        no_embed_class=theirs.no_embed_class,
        rope_type=None if rope is None else "dinov3",
        rope_temperature=100.0 if rope is None else rope.temperature,
        norm_layer="layernorm" if "norm.bias" in state else "rmsnorm",
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        init_values=None if scale is None else 1e-5,
        swiglu_mlp="blocks.0.mlp.fc1_g.weight" in state,
        drop_path_rate=getattr(theirs.blocks[-1].drop_path1, "drop_prob", 0.0),
    )


def _beyond_ours(theirs: nn.Module) -> list[str]:
    """What a timm network has that `ViTPlus` lacks, in words."""
    known = type(theirs).__name__ in ("VisionTransformer", "Eva")
    if not (known and type(theirs).__module__.startswith("timm.")):
        return [f"the class {type(theirs).__name__}; expected timm's VisionTransformer or Eva"]
    kinds = {type(part).__name__ for part in theirs.modules()}
    if unknown := sorted(kinds - {*KNOWN.split()}):
        return unknown
    norms = [part for part in theirs.modules() if "Norm" in type(part).__name__]
    mlps = [block.mlp for block in theirs.blocks]
    rope = getattr(theirs, "rope", None)
    rotary = ("rotate_half", True), ("normalize_coords", "separate"), ("grid_offset", 0), ("grid_indexing", "ij")
    same = {"heads": {block.attn.num_heads for block in theirs.blocks}, "eps": {norm.eps for norm in norms}}
    told = {
        "no blocks": not len(theirs.blocks),
        "norms of several kinds": len({type(norm).__name__ for norm in norms}) > 1,
        "an approximate GELU": any(getattr(part, "approximate", "none") != "none" for part in theirs.modules()),
        "MLPs with another activation": any(
            type(mlp.act).__name__ != ("GELU" if type(mlp).__name__ == "Mlp" else "SiLU") for mlp in mlps
        ),
        "a gate that is last": any(getattr(mlp, "gate_last", False) for mlp in mlps),
        f"pooling {theirs.global_pool!r}": theirs.global_pool not in ("token", "avg", "map"),
        "pooling over registers": getattr(theirs, "pool_include_prefix", False),
        "a norm after pooling (fc_norm)": type(theirs.fc_norm).__name__ != "Identity",
        "no norm before pooling": type(theirs.norm).__name__ == "Identity",
        "rotary positions of another kind": rope is not None
        and (rope.temperature is None or any(getattr(rope, name) != value for name, value in rotary)),
        "patches that are not square": len({*theirs.patch_embed.patch_size}) > 1,
    }
    told |= {f"blocks that differ in {name}": len(values) > 1 for name, values in same.items()}
    return [name for name, there in told.items() if there]


def _proved(ours: ViTPlus, theirs: nn.Module) -> ViTPlus:
    """Ours, if one image of noise gives the same output in both; else ValueError."""
    with eval_mode(theirs), torch.no_grad():
        image = torch.rand(1, ours.config.in_chans, *ours.config.image_shape)
        got, want = ours(image), theirs(image)
    if got.shape != want.shape or (got - want).abs().max() > 1e-3 * max(1, want.abs().max()):
        raise ValueError("the weights fit, but one image gives another output: this network has a part that ours lacks")
    return ours


def plus_from_vit_5(theirs: nn.Module) -> ViTPlus:
    """A `ViTPlus` with the weights of vit-pytorch's `vit_5.ViT` and the same outputs; in eval mode.

    Without a head, vit_5 returns all its tokens: compare `forward_features`. Raises ValueError for other networks.
    """
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("rotary_emb.")}
    if not hasattr(theirs, "rotary_emb") or not state.keys() >= {"transformer.ls1.0", "transformer.norm.g"}:
        raise ValueError(
            f"expected vit-pytorch's vit_5.ViT, got a {type(theirs).__name__} of {type(theirs).__module__}"
        )
    state = rename(state, {old: new for new, old in VIT_5.items()})
    attention, (P, W) = theirs.transformer.layers[0][0], theirs.patch_size
    D, R, h = state["cls_token"].shape[1], theirs.num_registers, attention.heads
    N = len(state["pos_embed"]) - 1 - R
    side = math.isqrt(N)
    if P != W or side**2 != N:
        raise ValueError(f"expected square patches on a square grid, got patches of {P} x {W} pixels, {N} of them")
    for name in ("cls_token", "reg_token", "pos_embed"):
        if name in state:
            state[name] = state[name][None]  # theirs have no batch axis
    if state["patch_embed.proj.weight"].shape[1] % P**2:
        raise ValueError("expected patches flattened as rows, columns, channels")
    cut = state["patch_embed.proj.weight"].unflatten(1, (P, P, -1))  # rows, columns, channels
    state["patch_embed.proj.weight"] = cut.permute(0, 3, 1, 2)
    for i in range(len(theirs.transformer.layers)):
        _paired(state, f"blocks.{i}.attn.", h)
    head = theirs.mlp_head
    config = ViTPlusConfig(
        img_size=side * P,
        patch_size=P,
        in_chans=cut.shape[-1],
        num_classes=0 if head is None else head.out_features,
        embed_dim=D,
        depth=len(theirs.transformer.layers),
        num_heads=h,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / D,
        qkv_bias=False,
        norm_eps=1e-24,  # theirs divides by the length itself
        reg_tokens=R,
        rope_type="axial",
        rope_temperature=_base(theirs.rotary_emb.patch_inv_freq),
        reg_rope_temperature=_base(theirs.rotary_emb.reg_inv_freq),
        norm_layer="rmsnorm",
        qk_norm=True,
        init_values=1e-4,
    )
    return load_into(ViTPlus(config), state, "vit_5's weights").eval()


def _base(frequencies: Tensor) -> float:
    """The temperature of frequencies that fall from 1 as temperature^(-i / count)."""
    count = len(frequencies)
    return 1.0 if count < 2 else float(f"{frequencies[1].double() ** -count:.6g}")


def _paired(state: State, attention: str, num_heads: int) -> None:
    """Queries and keys with channels 0, 2, 4, ... first, then 1, 3, 5, ...: vit_5's pairs as ours. In place."""
    weight = state[f"{attention}qkv.weight"].unflatten(0, (3, num_heads, -1)).clone()  # (3, h, Dh, D)
    order = torch.arange(weight.shape[2]).reshape(-1, 2).T.flatten()
    weight[:2] = weight[:2, :, order]
    state[f"{attention}qkv.weight"] = weight.flatten(0, 2)
    for name in ("q_norm.weight", "k_norm.weight"):
        state[attention + name] = state[attention + name][order]
