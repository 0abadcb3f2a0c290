"""Looking inside a Vision Transformer: maps, distances, norms; the second opinions are in `attribution`.

Chapter 10 writes out most of it in the same words. It reads our ViT, timm's VisionTransformer and vit-pytorch's ViT and
SimpleViT through nn.Module alone, with fused attention on: maps are computed again from queries and keys.
Hooks only read; they are gone afterwards, and outputs stay the same to the bit.
Letters: B images, C H W, P patch side, N patches, T tokens, D width, h heads, Dh head width; depth counts blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.analysis.attribution import (  # noqa: F401  handed on
    check_maps,
    cover,
    covers,
    deletion,
    input_gradients,
    log_probability,
    occlusion,
    per_square,
)
from vitutils.arguments import at_least_1, check_images, logits_for
from vitutils.models.modes import eval_mode

# projection to q, k, v; number of heads; what the heads' results go through next
ATTENTION_PARTS = (("qkv", "num_heads", "proj"), ("to_qkv", "heads", "to_out"))


def attention_parts(layer: nn.Module) -> tuple[nn.Module, int, nn.Module]:
    """Return an attention layer's qkv projection, head count and output.

    Raises ValueError for a module that lacks one of the three.
    """
    for names in ATTENTION_PARTS:  # ours and timm's; vit-pytorch's
        found = [getattr(layer, name, None) for name in names]
        if isinstance(found[0], nn.Linear) and None not in found:
            return tuple(found)
    name = type(layer).__name__
    raise ValueError(f"expected {ATTENTION_PARTS}, got a {name}")


def check_siblings(model: nn.Module, layers: list[nn.Module]) -> None:
    """Check that of a stack of blocks either all attention layers can be read, or none. Raises ValueError."""
    readable = set(layers)
    for stack in model.modules():
        if not isinstance(stack, nn.Sequential | nn.ModuleList):
            continue
        blocks = [set(block.modules()) for block in stack]
        other = [block for block in blocks if not block & readable]
        heads = [m for block in other for m in block if hasattr(m, "num_heads") or hasattr(m, "heads")]
        if heads and len(other) < len(blocks):
            told = f"{len(blocks) - len(other)} of {len(blocks)}, and a {type(heads[0]).__name__}"
            raise ValueError(f"expected attention of one kind in every block, got it in {told}")


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Return the attention layers, in order. Raises ValueError for none."""
    layers = []
    for module in model.modules():
        try:
            attention_parts(module)
            layers.append(module)
        except ValueError:
            pass
    if not layers:
        raise ValueError(
            f"expected attention layers with one of {ATTENTION_PARTS}, "
            f"got a {type(model).__name__} that has none"
        )
    check_siblings(model, layers)
    return layers


@contextmanager
def recorded(model: nn.Module) -> Iterator[list]:
    """Keep what passes through every attention layer while the block runs.

    Yields a list. Each call of a layer adds [layer, qkv, mixed] to it: the
    output of its projection (B, T, 3*h*Dh), and its heads' results side by
    side (B, T, h*Dh). qkv is None if a layer does not call its projection
    (BEiT). The hooks only read, and are removed after the block.
    """
    calls, hooks, waiting = [], [], {}

    def keep_qkv(layer):
        return lambda _, args, out: waiting.update({layer: out})

    def keep_mixed(layer):
        return lambda _, args: calls.append(
            [layer, waiting.pop(layer, None), args[0]]
        )

    try:
        for layer in attention_layers(model):
            qkv, _, out = attention_parts(layer)
            hooks.append(qkv.register_forward_hook(keep_qkv(layer)))
            hooks.append(out.register_forward_pre_hook(keep_mixed(layer)))
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def split_heads(layer: nn.Module, qkv: Tensor) -> Tensor:
    """Cut (B, T, 3*h*Dh) into q, k, v: (3, B, h, T, Dh).

    q and k are normalised where the layer does so (timm's qk_norm).
    Raises ValueError for any other layout.
    """
    h = attention_parts(layer)[1]
    if qkv is None or qkv.ndim != 3 or qkv.shape[-1] % (3 * h):
        got = "no call" if qkv is None else tuple(qkv.shape)
        name = f"{type(layer).__name__}'s projection"
        raise ValueError(f"expected {name} (B, T, 3*{h}*Dh), got {got}")
    q, k, v = qkv.unflatten(-1, (3, h, -1)).permute(2, 0, 3, 1, 4)
    if hasattr(layer, "q_norm"):
        q, k = layer.q_norm(q), layer.k_norm(k)
    return torch.stack([q, k, v])


def relative_gap(got: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the second's largest number; inf if their shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    largest = expected.abs().amax().clamp_min(torch.finfo(expected.dtype).tiny)
    return ((got - expected).abs().amax() / largest).item()


def check_attention(maps: Tensor, grid: tuple[int, int] | None = None) -> None:
    """Check that maps are (B, depth, h, T, T), with T at least the number of patches of `grid`. Raises ValueError."""
    shape = tuple(maps.shape)
    if maps.ndim != 5 or shape[-1] != shape[-2] or 0 in shape[1:] or not maps.is_floating_point():
        raise ValueError(f"expected maps (B, depth, h, T, T), got {maps.dtype} of shape {shape}")
    if grid is not None:
        at_least_1(rows=grid[0], columns=grid[1])
        if grid[0] * grid[1] > shape[-1]:
            raise ValueError(f"expected maps of {grid[0]} x {grid[1]} patches or more tokens, got {shape[-1]}")


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> Tensor:
    """Every head's map in every layer: (B, depth, h, T, T), rows sum to 1.

    Raises ValueError if a map is not the one that the layer used (with masks,
    rotary positions, or dropout in train mode), or if the layers' maps differ
    in shape: such a model cannot be read this way.
    """
    check_images(model, images)
    with recorded(model) as calls:
        model(images)
    maps = []
    for layer, qkv, mixed in calls:
        q, k, v = split_heads(layer, qkv)
        scale = getattr(layer, "scale", q.shape[-1] ** -0.5)
        attn = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        again = (attn @ v).transpose(1, 2).flatten(2)  # (B, T, h*Dh)
        off = relative_gap(again, mixed)
        if not off < 3 * torch.finfo(again.dtype).eps ** 0.5:  # nor if nan
            name = type(layer).__name__
            raise ValueError(
                f"expected a plain softmax of q k, got a {name} whose result "
                f"differs by {off:.1%}: masks, positions in q k, dropout?"
            )
        maps.append(attn)
    if len(shapes := {tuple(attn.shape) for attn in maps}) != 1:
        raise ValueError(f"expected maps of one shape, got {sorted(shapes)}")
    return torch.stack(maps, dim=1)


def rollout(maps: Tensor) -> Tensor:
    """Follow attention back to the input. (B, depth, h, T, T) -> (B, T, T).

    Row i: the share of each input token in output token i, if every block
    kept half of each token and took the other half from the mean of its
    heads; values and MLPs are left out. Rows sum to 1.
    Source: Abnar and Zuidema 2020.
    """
    check_attention(maps)
    itself = torch.eye(maps.shape[-1]).to(maps)  # the residual connection
    steps = (maps.mean(dim=2) + itself) / 2  # (B, depth, T, T)
    flow, *later = steps.unbind(dim=1)
    for step in later:
        flow = step @ flow
    return flow


def relevance(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Follow the attention that raises the class's logit: (B, T, T).

    Row i: how much reaches output token i from each input token. In each
    layer, attention weights are multiplied by the logit's gradient for them;
    what is above 0 is averaged over heads. The identity stands for the
    residual connection; rows do not sum to 1. Source: Chefer et al. 2021.
    """
    check_images(model, images, classes)
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        maps = attention_maps(model, pixels.detach())  # (B, depth, h, T, T)
        with recorded(model) as calls:
            logits = logits_for(model(pixels), classes)
        score = logits.gather(1, classes.clone()[:, None]).sum()
        slopes = torch.autograd.grad(score, [mixed for *_, mixed in calls])
    flow = torch.eye(maps.shape[-1]).to(maps).expand_as(maps[:, 0, 0])
    for n, (layer, qkv, _) in enumerate(calls):
        v = split_heads(layer, qkv.detach())[2]  # (B, h, T, Dh)
        slope = slopes[n].unflatten(-1, (v.shape[1], -1)).transpose(1, 2)
        gain = maps[:, n] * (slope @ v.transpose(-2, -1))  # (B, h, T, T)
        flow = flow + gain.clamp_min(0).mean(dim=1) @ flow
    return flow


def attention_distance(maps: Tensor, grid: tuple, patch_size: int) -> Tensor:
    """How far a patch looks, in pixels. (B, depth, h, T, T) -> (B, depth, h).

    The distance between the centres of two patches, weighted by attention,
    averaged over the query patches. grid: rows, columns. Tokens before the
    patches are left out. Source: Dosovitskiy et al. 2021, figure 7.
    """
    check_attention(maps, grid)
    rows, columns = grid
    N, maps = rows * columns, maps.float()
    attn = maps[..., -N:, -N:]
    attn = attn / attn.sum(dim=-1, keepdim=True)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    places = patch_size * places.to(maps)  # (N, 2)
    distances = torch.cdist(places, places)  # (N, N)
    return (attn * distances).sum(dim=-1).mean(dim=-1)


def patch_side(model: nn.Module) -> int:
    """Return P, the side of a patch. Raises ValueError for a model whose patches are not square or not found."""
    if (embed := getattr(model, "patch_embed", None)) is not None:  # ours, timm's
        size = getattr(embed, "patch_size", None)
    else:  # vit-pytorch's first step is einops' Rearrange
        steps = getattr(model, "to_patch_embedding", ())
        first = next(iter(steps), None) if isinstance(steps, nn.Sequential) else None
        lengths = getattr(first, "axes_lengths", {})
        size = lengths.get("p1"), lengths.get("p2")
    sides = {size} if isinstance(size, int) else set(size or [None])
    if len(sides) != 1 or None in sides:
        raise ValueError(f"expected square patches (patch_embed or to_patch_embedding), got {size} in {type(model)}")
    return sides.pop()


def patch_grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return rows and columns of patches for images (B, C, H, W). Raises ValueError if P does not divide H and W."""
    if images.ndim < 2:
        raise ValueError(f"expected images (B, C, H, W), got {tuple(images.shape)}")
    P, (H, W) = patch_side(model), images.shape[-2:]
    if H % P or W % P:
        raise ValueError(f"expected sides in multiples of {P}, got {H} x {W}")
    return H // P, W // P


def filters(model: nn.Module) -> Tensor:
    """Return the patch projection as pictures: (D, C, P, P). Raises ValueError if it is not one layer."""
    P = patch_side(model)
    found = getattr(model, "patch_embed", getattr(model, "to_patch_embedding", None))
    weight = next((m.weight.detach() for m in found.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    if weight is not None and weight.ndim == 2 and weight.shape[1] % P**2 == 0:
        weight = weight.unflatten(1, (P, P, -1)).permute(0, 3, 1, 2)
    if weight is None or tuple(weight.shape[2:]) != (P, P):
        got = None if weight is None else tuple(weight.shape)
        raise ValueError(f"expected one projection of patches of {P} x {P}, got {got} in a {type(found).__name__}")
    return weight


def principal_filters(weight: Tensor, count: int) -> Tensor:
    """Return the first principal components of filters (D, C, P, P): (count, C, P, P), each of length 1.

    Source: Dosovitskiy et al. 2021, figure 7, left. Raises ValueError for more components than there are.
    """
    at_least_1(count=count)
    if weight.ndim != 4 or not weight.isfinite().all() or count > min(len(weight), weight[0].numel()):
        raise ValueError(f"expected finite filters (D, C, P, P) for {count} components, got {tuple(weight.shape)}")
    flat = weight.flatten(1).cpu().double()  # (D, C*P*P)
    components = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh
    return components[:count].unflatten(1, weight.shape[1:]).to(weight)


def similarity(vectors: Tensor) -> Tensor:
    """The cosine of every pair: (..., N, D) -> (..., N, N)."""
    if vectors.ndim < 2 or not vectors.is_floating_point():
        got = f"{vectors.dtype} of shape {tuple(vectors.shape)}"
        raise ValueError(f"expected float vectors (..., N, D), got {got}")
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.transpose(-2, -1)


def position_similarity(model: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Return the cosine similarity of each patch's position to all: (N, rows, columns). `grid`: the model's own.

    Source: Dosovitskiy et al. 2021, figure 7, centre. Raises ValueError for a model without such vectors.
    """
    positions = getattr(model, "pos_embed", getattr(model, "pos_embedding", None))
    at_least_1(rows=grid[0], columns=grid[1])
    N, embed = grid[0] * grid[1], getattr(model, "patch_embed", None)
    own = getattr(getattr(model, "config", None), "grid", getattr(embed, "grid_size", None))
    if own is not None and tuple(own) != tuple(grid):
        raise ValueError(f"expected the model's own grid, {tuple(own)}, got {tuple(grid)}")
    if not isinstance(positions, Tensor) or positions.ndim not in (2, 3) or positions.shape[-2] < N:
        got = tuple(positions.shape) if isinstance(positions, Tensor) else positions
        raise ValueError(f"expected pos_embed or pos_embedding for {N} patches, got {got} in {type(model).__name__}")
    patches = positions.detach().reshape(-1, positions.shape[-1])[-N:]
    return similarity(patches).unflatten(1, grid)


@torch.no_grad()
def token_states(model: nn.Module, images: Tensor) -> Tensor:
    """Return the tokens before each block, and after the last: (B, depth + 1, T, D), before the final norm.

    Their length, `.norm(dim=-1)`, shows outliers (Darcet et al. 2024). Raises ValueError for a model without blocks, or
    whose blocks pass on tensors of several shapes.
    """
    check_images(model, images)
    inner = getattr(model, "transformer", model)
    pairs = [layer for layer in getattr(inner, "layers", ()) if isinstance(layer, nn.ModuleList) and len(layer)]
    stack = getattr(inner, "blocks", None) or [pair[0] for pair in pairs]
    several = isinstance(stack, nn.Sequential | nn.ModuleList | list) and len(stack) > 0
    if not several or not isinstance(getattr(inner, "norm", None), nn.Module):
        raise ValueError(f"expected blocks or transformer.layers, and a norm after them, got a {type(model).__name__}")
    states, hooks = [], []
    try:
        for module in (*stack, inner.norm):
            hooks.append(module.register_forward_pre_hook(lambda _, args: states.append(args[0] if args else None)))
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    shapes = {tuple(state.shape) if isinstance(state, Tensor) else None for state in states}
    if len(states) != len(stack) + 1 or len(shapes) > 1 or None in shapes or len(min(shapes)) != 3:
        raise ValueError(f"expected {len(stack) + 1} states (B, T, D), got {len(states)} of shapes {shapes}")
    return torch.stack(states, dim=1)
