"""Looking inside: maps equal to the models' own, no output changed, no hook left, errors that say what came."""

import itertools
from contextlib import nullcontext

import pytest
import timm
import torch
import vit_pytorch
from torch import nn
from torchvision.models import swin_transformer as tv_swin
from torchvision.models import vision_transformer as tv
from vit_pytorch.recorder import Recorder
from vit_pytorch.simple_vit import SimpleViT

from vitutils.analysis import interpret
from vitutils.models import DistilledViT, ViT, ViTConfig, conversion
from vitutils.models.transformer import RotaryAttention

TIMM = dict(patch_size=8, num_classes=7, embed_dim=48, depth=3, num_heads=3)
THEIRS = dict(patch_size=8, num_classes=7, dim=48, depth=3, heads=3, dim_head=20, mlp_dim=64)


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Weights large enough that maps are far from uniform, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        std = 1.5 * p.shape[1:].numel() ** -0.5 if p.ndim > 1 else 0.1
        p.copy_(float((p == 1).all()) + std * torch.randn(p.shape, generator=generator))
    return model.eval()


def ours(**changes) -> ViT:
    fields = dict(img_size=(24, 40), patch_size=8, num_classes=7, embed_dim=48, depth=3, num_heads=3)
    return lively(ViT(ViTConfig(**fields | changes)))


def theirs(**changes) -> nn.Module:
    return lively(timm.models.VisionTransformer(**dict(img_size=(24, 40)) | TIMM | changes))


# name -> (model, prefix tokens); all for images of 24 x 40, which are 3 x 5 patches
MODELS = {
    "ours": (ours, 1),
    "ours, mean": (lambda: ours(global_pool="avg", qkv_bias=False), 0),
    "timm": (theirs, 1),
    "timm, mean": (lambda: theirs(class_token=False, global_pool="avg"), 0),
    "timm, registers": (lambda: theirs(reg_tokens=4, no_embed_class=True), 5),
    "timm, qk_norm": (lambda: theirs(qk_norm=True, qkv_bias=False), 1),
    "vit-pytorch": (lambda: lively(vit_pytorch.ViT(image_size=(24, 40), **THEIRS)), 1),
    "vit-pytorch, mean": (lambda: lively(vit_pytorch.ViT(image_size=(24, 40), pool="mean", **THEIRS)), 0),
    "SimpleViT": (lambda: lively(SimpleViT(image_size=(24, 40), **THEIRS)), 0),
}
IMAGES = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([3, 5])


def hooks(model: nn.Module) -> int:
    """Count every hook on every module."""
    return sum(len(getattr(m, name)) for m in model.modules() for name in vars(m) if name.endswith("_hooks"))


@pytest.mark.parametrize("name", MODELS)
def test_looking_changes_no_output_and_leaves_no_hook(name):
    make, prefix = MODELS[name]
    model = make()
    T = prefix + 15
    with torch.inference_mode():
        before = model(IMAGES)
        with interpret.recorded(model) as calls:
            during = model(IMAGES)
        assert len(calls) == 3 and calls[0][1].shape[:2] == (2, T)
        maps = interpret.attention_maps(model, IMAGES)
        states = interpret.token_states(model, IMAGES)
        gradients = interpret.input_gradients(model, IMAGES, CLASSES)
        interpret.occlusion(model, IMAGES, CLASSES, side=8)
        after = model(IMAGES)
    assert torch.equal(before, during) and torch.equal(before, after) and hooks(model) == 0
    assert maps.shape == (2, 3, 3, T, T) and not maps.requires_grad
    assert (maps.sum(-1) - 1).abs().max() < 1e-5
    assert states.shape == (2, 4, T, 48)
    assert gradients.shape == IMAGES.shape and gradients.abs().max() > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_several_images_at_once_are_read_as_one_by_one(name):
    model = MODELS[name][0]()
    both = interpret.attention_maps(model, IMAGES)
    alone = torch.cat([interpret.attention_maps(model, image[None]) for image in IMAGES])
    assert (both - alone).abs().max() < 1e-5
    assert (both[0] - both[1]).abs().max() > 0.01


def test_our_maps_are_those_the_model_hands_out():
    for model in (ours(), ours(global_pool="avg", embed_dim=96)):
        with torch.no_grad():
            logits, attn = model(IMAGES, need_weights=True)
        maps = interpret.attention_maps(model, IMAGES)
        assert (maps - attn).abs().max() < 1e-5
        assert attn.amax(-1).mean() > 0.2  # far from uniform
        if model.config.embed_dim == 48:  # the root of Dh is 4, exactly; later layers got the fused path's rounding
            assert torch.equal(maps[:, 0], attn[:, 0])


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("timm")])
def test_timm_s_maps_are_those_of_its_own_slow_path(name):
    model, own = MODELS[name][0](), []
    assert all(layer.fused_attn for layer in interpret.attention_layers(model))
    maps = interpret.attention_maps(model, IMAGES)
    for layer in interpret.attention_layers(model):
        layer.fused_attn = False
        layer.attn_drop.register_forward_hook(lambda _, args, out: own.append(out))
    with torch.no_grad():
        model(IMAGES)
    assert (maps - torch.stack(own, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["vit-pytorch", "vit-pytorch, mean"])
def test_vit_pytorch_s_maps_are_those_of_its_recorder(name):
    model = MODELS[name][0]()
    maps = interpret.attention_maps(model, IMAGES)
    recorder = Recorder(model)
    with torch.no_grad():
        _, own = recorder(IMAGES)
    assert (maps - own).abs().max() < 1e-5
    assert interpret.attention_maps(recorder.eject(), IMAGES).shape == maps.shape


def test_simple_vit_s_maps_are_what_its_softmax_puts_out():
    model, own = MODELS["SimpleViT"][0](), []
    maps = interpret.attention_maps(model, IMAGES)
    for layer in interpret.attention_layers(model):
        layer.attend.register_forward_hook(lambda _, args, out: own.append(out))
    model(IMAGES)
    assert (maps - torch.stack(own, 1)).abs().max() < 1e-5


def test_one_head_as_wide_as_the_model_has_an_identity_for_output():
    model = lively(vit_pytorch.ViT(image_size=(24, 40), **THEIRS | dict(heads=1, dim_head=48)))
    assert interpret.attention_maps(model, IMAGES).shape == (2, 3, 1, 16, 16)


def test_what_cannot_be_read_is_refused_and_left_without_hooks():
    with pytest.raises(ValueError, match="expected attention layers .* got a Linear that has none"):
        interpret.attention_maps(nn.Linear(3, 3), IMAGES)
    rotary = ours()
    for block in rotary.blocks:
        block.attn = RotaryAttention(48, 3)
    dropping = theirs(attn_drop_rate=0.5).train()
    swin = timm.models.swin_transformer.SwinTransformer(img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2))  # fmt: skip  # noqa: E501
    for model, images in ((lively(rotary), IMAGES), (dropping, IMAGES), (lively(swin), torch.randn(1, 3, 32, 32))):
        with pytest.raises(ValueError, match="expected a plain softmax|expected maps of one shape"):
            interpret.attention_maps(model, images)
        assert hooks(model) == 0
    with pytest.raises(ValueError, match="expected blocks"):
        interpret.token_states(nn.Linear(3, 3), IMAGES)
    with pytest.raises(ValueError, match="square patches"):
        interpret.patch_side(vit_pytorch.ViT(image_size=(24, 40), **THEIRS | dict(patch_size=(8, 4))))
    with pytest.raises(ValueError, match="pos_embed"):
        interpret.position_similarity(nn.Linear(3, 3), (2, 2))
    with pytest.raises(ValueError, match="multiples of 8"):
        interpret.patch_grid(ours(), torch.zeros(1, 3, 24, 42))


OTHERS = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3)
UNREADABLE = {  # nets whose attention is more than a softmax of q k, or hidden from a hook -> what is said
    "BEiT": (lambda: timm.models.beit.Beit(**OTHERS), "Attention's projection .* got no call"),
    "EVA02": (lambda: timm.models.eva.Eva(**OTHERS, qkv_fused=False), "Eva that has none"),
    "scaled": (lambda: theirs(**OTHERS, scale_attn_norm=True), "plain softmax"),
    "torchvision": (
        lambda: tv.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=3),
        "VisionTransformer that has none",
    ),
    "torchvision's Swin": (lambda: tv_swin.SwinTransformer([4, 4], 24, [2], [2], [4, 4]), "of one shape"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_attention_that_a_hook_cannot_read_is_named(name):
    make, message = UNREADABLE[name]
    model = lively(make())
    with pytest.raises(ValueError, match=message):
        interpret.attention_maps(model, torch.randn(1, 3, 32, 32))
    assert hooks(model) == 0
    with interpret.recorded(model) if "none" not in message else nullcontext():  # listening alone breaks nothing
        model(torch.randn(1, 3, 32, 32))


def test_a_distilled_net_s_maps_are_its_own():
    torch.manual_seed(0)
    model = lively(DistilledViT(ViTConfig(img_size=(24, 40), **TIMM)))
    expected = model(IMAGES, need_weights=True)[1]
    assert (interpret.attention_maps(model, IMAGES) - expected).abs().max() < 1e-5 and expected.shape[-1] == 17
    assert torch.equal(interpret.attention_maps(model.train(), IMAGES), interpret.attention_maps(model.eval(), IMAGES))


def test_blocks_of_several_shapes_and_a_projection_of_several_layers_are_named():
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"expected 3 states \(B, T, D\), got 3 of shapes"):
        interpret.token_states(timm.models.Cait(**OTHERS), images)
    swin = timm.models.SwinTransformer(img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(1,))
    for model in (swin, tv_swin.SwinTransformer([4, 4], 24, [2], [2], [4, 4])):
        with pytest.raises(ValueError, match="expected blocks"):
            interpret.token_states(model, images)
    model = ours()
    model.patch_embed.proj = nn.Identity()
    with pytest.raises(ValueError, match="one projection of patches of 8 x 8, got None"):
        interpret.filters(model)
    model.patch_embed.proj = nn.Sequential(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 48, 8, 8))
    with pytest.raises(ValueError, match=r"of 8 x 8, got \(48, 3, 3, 3\)"):
        interpret.filters(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_through_all_of_it(dtype):
    model, images = ours().to(dtype), IMAGES.to(dtype)
    maps = interpret.attention_maps(model, images)
    exact = interpret.attention_maps(ours(), IMAGES)
    assert maps.dtype == dtype and (maps[:, 0].float() - exact[:, 0]).abs().max() < 0.2
    far, expected = (interpret.attention_distance(part[:, :1], (3, 5), 8) for part in (maps, exact))
    assert far.dtype == torch.float32 and (far - expected).abs().max() < 1
    found = [
        interpret.rollout(maps),
        interpret.relevance(model, images, CLASSES),
        interpret.token_states(model, images),
        interpret.occlusion(model, images, CLASSES, 8),
        interpret.input_gradients(model, images, CLASSES),
        interpret.deletion(model, images, CLASSES, torch.rand(2, 3, 5).to(dtype)),
        interpret.principal_filters(interpret.filters(model), 3),
        interpret.position_similarity(model, (3, 5)),
    ]
    assert all(part.dtype == dtype and part.isfinite().all() for part in found)


WRONG_IMAGES = {
    "one": (IMAGES[0], r"images \(B, C, H, W\), one or more, got \(3, 24, 40\)"),
    "none": (IMAGES[:0], r"one or more, got \(0, 3"),
    "bytes": (IMAGES.byte(), "float images, normalised .* got torch.uint8"),
    "nan": (IMAGES * torch.nan, "finite images"),
    "elsewhere": (IMAGES.to("meta"), "images on cpu, where the model is, got meta"),
    "half": (IMAGES.half(), "torch.float32, which the model computes in, got torch.float16"),
    "a list": (list(IMAGES), "got a list"),
}
LOOKS = {
    "maps": lambda model, images: interpret.attention_maps(model, images),
    "states": lambda model, images: interpret.token_states(model, images),
    "occlusion": lambda model, images: interpret.occlusion(model, images, CLASSES, 8),
    "gradients": lambda model, images: interpret.input_gradients(model, images, CLASSES),
    "relevance": lambda model, images: interpret.relevance(model, images, CLASSES),
    "deletion": lambda model, images: interpret.deletion(model, images, CLASSES, torch.rand(2, 3, 5)),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_images_that_do_not_fit_are_refused(look, name):
    images, message = WRONG_IMAGES[name]
    model = ours()
    with pytest.raises(ValueError, match=message):
        LOOKS[look](model, images)
    assert hooks(model) == 0


class Wrapped(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = ours(), change

    def forward(self, images):
        return self.change(self.net(images))


@pytest.mark.parametrize("change", [lambda x: (x, x), lambda x: {"logits": x}, lambda x: None, lambda x: x[:, 0]])
def test_what_is_no_logits_is_refused(change):
    for look in ("occlusion", "gradients", "relevance", "deletion"):
        with pytest.raises(ValueError, match=r"expected logits \(B, K\), got .*: wrap the model"):
            LOOKS[look](Wrapped(change), IMAGES)
    assert interpret.attention_maps(Wrapped(change), IMAGES).shape == (2, 3, 3, 16, 16)  # they read no output


MAPS = torch.rand(2, 3, 2, 16, 16).softmax(-1)
SQUARES = torch.rand(2, 3, 5)
MISFITS = {  # what is asked -> what is said
    "classes beyond": (lambda: interpret.occlusion(ours(), IMAGES, CLASSES + 9, 8), "from 0 to 6, got 12 to 14"),
    "classes below": (lambda: interpret.input_gradients(ours(), IMAGES, -CLASSES), "classes from 0 to 6"),
    "one class": (lambda: interpret.occlusion(ours(), IMAGES, CLASSES[:1], 8), r"expected 2 classes, int64 \(B,\)"),
    "float classes": (lambda: interpret.deletion(ours(), IMAGES, CLASSES.float(), SQUARES), "got torch.float32"),
    "no images a pass": (lambda: interpret.occlusion(ours(), IMAGES, CLASSES, 8, size=0), "size to be a whole number"),
    "a fill a column": (lambda: interpret.occlusion(ours(), IMAGES, CLASSES, 8, fill=torch.rand(40)), "a fill that is"),
    "no steps": (lambda: interpret.deletion(ours(), IMAGES, CLASSES, SQUARES, steps=0), "steps to be a whole"),
    "one map": (lambda: interpret.deletion(ours(), IMAGES, CLASSES, SQUARES[0]), "for each of 2 images, got"),
    "maps of fewer": (lambda: interpret.deletion(ours(), IMAGES, CLASSES, SQUARES[:1]), "for each of 2 images, got"),
    "empty maps": (lambda: interpret.deletion(ours(), IMAGES, CLASSES, SQUARES[:, :0]), "for each of 2 images, got"),
    "finer than pixels": (lambda: interpret.deletion(ours(), IMAGES, CLASSES, torch.rand(2, 3, 99)), "squares of 1 p"),
    "nan in a map": (lambda: interpret.deletion(ours(), IMAGES, CLASSES, SQUARES * torch.nan), "without nan"),
    "no side": (lambda: interpret.covers(IMAGES, 0), "side to be a whole number, 1 or more, got 0"),
    "a side below 0": (lambda: interpret.covers(IMAGES, -8), "side to be"),
    "squares of 7": (lambda: interpret.per_square(IMAGES, 7), "divides 24 x 40, got 7"),
    "squares of 0": (lambda: interpret.per_square(IMAGES, 0), "side to be"),
    "maps of one image": (lambda: interpret.rollout(MAPS[0]), r"maps \(B, depth, h, T, T\)"),
    "maps of no layer": (lambda: interpret.rollout(MAPS[:, :0]), r"maps \(B, depth, h, T, T\)"),
    "whole numbers": (lambda: interpret.rollout(MAPS.long()), "got torch.int64"),
    "a larger grid": (lambda: interpret.attention_distance(MAPS, (9, 9), 8), "9 x 9 patches or more tokens, got 16"),
    "no grid": (lambda: interpret.attention_distance(MAPS, (0, 5), 8), "rows to be a whole number"),
    "too many components": (lambda: interpret.principal_filters(interpret.filters(ours()), 49), "for 49 components"),
    "filters that are none": (lambda: interpret.principal_filters(IMAGES[0], 1), r"filters \(D, C, P, P\)"),
    "one vector": (lambda: interpret.similarity(torch.ones(3)), r"float vectors \(..., N, D\)"),
    "another's grid": (lambda: interpret.position_similarity(ours(), (2, 2)), r"own grid, \(3, 5\), got \(2, 2\)"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_in_words(name):
    ask, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        ask()


def test_maps_of_any_kind_of_number_delete_the_same():
    images, classes, model = 1 + torch.rand(1, 3, 24, 40), torch.zeros(1, dtype=torch.long), Marked()
    maps = torch.arange(15).reshape(1, 3, 5)
    expected = interpret.deletion(model, images, classes, maps.float())
    for kind in (torch.int64, torch.float16, torch.uint8):
        assert torch.equal(interpret.deletion(model, images, classes, maps.to(kind)), expected)
    assert torch.equal(interpret.deletion(model, images, classes, maps, fill=torch.zeros(3, 1, 1)), expected)


def test_a_forward_that_fails_leaves_no_hook():
    for look, name in itertools.product((interpret.attention_maps, interpret.token_states), ("ours", "vit-pytorch")):
        model = MODELS[name][0]()
        with pytest.raises(Exception, match="."):
            look(model, torch.zeros(1, 5, 24, 40))
        assert hooks(model) == 0


def test_rollout_by_hand():
    a = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    b = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    eye = torch.eye(2)
    maps = torch.stack([a, b])[None, :, None].expand(1, 2, 3, 2, 2)  # three equal heads
    expected = (b + eye) / 2 @ ((a + eye) / 2)
    assert torch.allclose(interpret.rollout(maps)[0], expected)
    assert not torch.allclose(interpret.rollout(maps)[0], (a + eye) / 2 @ ((b + eye) / 2))


@pytest.mark.parametrize("name", ["ours", "timm", "timm, qk_norm"])
def test_relevance_is_what_loops_over_the_weights_own_gradients_give(name):
    model = MODELS[name][0]()
    twin = theirs(num_classes=7) if name == "ours" else model
    if name == "ours":
        twin.load_state_dict(conversion.to_timm(model.state_dict()))
    attn, expected = [], []
    for block in twin.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, args, out: (out.retain_grad(), attn.append(out))[1])
    logits = twin(IMAGES)
    (logits[0, CLASSES[0]] + logits[1, CLASSES[1]]).backward()
    for b in range(2):
        flow = torch.eye(attn[0].shape[-1])
        for layer in attn:
            gains = [(a * slope).clamp(min=0) for a, slope in zip(layer[b], layer.grad[b], strict=True)]
            flow = flow + sum(gains) / len(gains) @ flow
        expected.append(flow)
    for block in twin.blocks:
        block.attn.fused_attn = True
        block.attn.attn_drop._forward_hooks.clear()
    model.train()
    with torch.inference_mode():
        found = interpret.relevance(model, IMAGES, CLASSES)
    assert torch.allclose(found, torch.stack(expected), rtol=1e-3, atol=1e-5)
    assert model.training and (found - torch.eye(found.shape[-1])).abs().max() > 0.01


def test_distance_of_itself_of_a_neighbour_and_of_a_uniform_map():
    N, rows, columns = 6, 2, 3
    itself = torch.eye(N + 2).expand(1, 1, 1, -1, -1)  # two tokens stand before the patches
    assert interpret.attention_distance(itself, (rows, columns), 8).item() == 0
    uniform = torch.full((1, 1, 1, N + 1, N + 1), 1 / (N + 1))
    places = [(r, c) for r in range(rows) for c in range(columns)]
    by_hand = sum(((a - p) ** 2 + (b - q) ** 2) ** 0.5 for a, b in places for p, q in places) / N**2
    got = interpret.attention_distance(uniform, (rows, columns), 8)
    assert got.shape == (1, 1, 1) and got.item() == pytest.approx(8 * by_hand, rel=1e-5)
    assert interpret.attention_distance(uniform, (columns, rows), 8).item() == pytest.approx(8 * by_hand, rel=1e-5)
    right = torch.zeros(1, 1, 1, N, N)
    right[..., torch.arange(N), torch.tensor([1, 2, 2, 4, 5, 5])] = 1  # to the right, where there is one
    assert interpret.attention_distance(right, (rows, columns), 8).item() == pytest.approx(8 * 4 / 6)
    before = torch.nn.functional.pad(right, (2, 0, 2, 0), value=0.4)  # two more tokens, in front
    assert interpret.attention_distance(before, (rows, columns), 8).item() == pytest.approx(8 * 4 / 6)


@pytest.mark.parametrize("name", MODELS)
def test_filters_make_the_patch_projection_s_own_output(name):
    model = MODELS[name][0]()
    weight = interpret.filters(model)
    assert weight.shape == (48, 3, 8, 8) and interpret.patch_grid(model, IMAGES) == (3, 5)
    embed = getattr(model, "patch_embed", None)
    if embed is not None:
        got, bias = embed(IMAGES), embed.proj.bias
    else:  # without the layer norms around it
        cut, _, linear, _ = model.to_patch_embedding
        got, bias = linear(cut(IMAGES)), linear.bias
    expected = torch.nn.functional.conv2d(IMAGES, weight, bias, stride=8).flatten(2).transpose(1, 2)
    assert (got - expected).abs().max() < 1e-4


def test_principal_filters_find_the_direction_that_the_filters_share():
    direction = torch.nn.functional.normalize(torch.randn(3 * 8 * 8), dim=0)
    weight = 5 * torch.randn(48, 1) * direction + 0.01 * torch.randn(48, 192) + 3  # a common offset is no component
    first = interpret.principal_filters(weight.reshape(48, 3, 8, 8), 4)
    assert first.shape == (4, 3, 8, 8)
    assert (first[0].flatten() @ direction).abs() > 0.99
    assert torch.allclose(first.flatten(1) @ first.flatten(1).T, torch.eye(4), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_position_similarity_is_1_at_the_patch_itself(name):
    model = MODELS[name][0]()
    found = interpret.position_similarity(model, (3, 5))
    assert found.shape == (15, 3, 5)
    assert torch.allclose(found.flatten(1).diagonal(), torch.ones(15), atol=1e-5)
    own = getattr(model, "pos_embed", getattr(model, "pos_embedding", None)).detach().reshape(-1, 48)[-15:]
    expected = torch.cosine_similarity(own[7], own, dim=-1).reshape(3, 5)
    assert torch.allclose(found[7], expected, atol=1e-5)


def test_token_states_begin_with_the_embedding_and_end_before_the_norm():
    model = ours()
    states = interpret.token_states(model, IMAGES)
    with torch.no_grad():
        assert torch.equal(states[:, 0], model.embed(IMAGES))
        assert torch.equal(states[:, 1], model.blocks[0](states[:, 0]))
        assert torch.equal(model.norm(states[:, -1]), model.forward_features(IMAGES))


class Marked(nn.Module):
    """Class 0 sees the sum of the square in row 1, column 2, class 1 nothing."""

    def forward(self, images):
        seen = images[..., 8:16, 16:24].sum((1, 2, 3)) / 100
        return torch.stack([seen, torch.zeros_like(seen)], dim=1)


def test_second_opinions_find_the_one_square_that_counts():
    images, classes, model = 1 + torch.rand(3, 3, 24, 40), torch.zeros(3, dtype=torch.long), Marked()
    drop = interpret.occlusion(model, images, classes, side=8, size=4)
    gradient = interpret.input_gradients(model, images, classes)
    norm = interpret.per_square(gradient.square().sum(1), 8).sqrt()
    for found in (drop, norm):
        assert found.shape == (3, 3, 5)
        assert (found[:, 1, 2] > 0.005).all()
        found[:, 1, 2] = 0
        assert found.abs().max() < 1e-6
    filled = interpret.occlusion(model, images, classes, side=8, fill=images.mean((0, 2, 3))[:, None, None])
    assert (filled[:, 1, 2].abs() < drop.abs().amax((1, 2)) + 1).all() and filled.shape == (3, 3, 5)
    covered = images.clone()
    covered[:, :, 8:16, 16:24] = 0.3
    expected = interpret.log_probability(model, images, classes) - interpret.log_probability(model, covered, classes)
    assert torch.allclose(interpret.occlusion(model, images, classes, 8, fill=0.3)[:, 1, 2], expected, atol=1e-6)


def test_deletion_covers_the_highest_first_and_all_at_last():
    images, classes, model = 1 + torch.rand(2, 3, 24, 40), torch.zeros(2, dtype=torch.long), Marked()
    maps = torch.zeros(2, 3, 5)
    maps[0, 1, 2], maps[1, 1, 2] = 1, -1  # first in one image, last in the other
    curve = interpret.deletion(model, images, classes, maps, fill=0.0, steps=15)
    whole = interpret.log_probability(model, images, classes).exp()
    half = torch.tensor(0.5)
    assert curve.shape == (2, 16) and torch.allclose(curve[:, 0], whole) and torch.allclose(curve[:, -1], half)
    assert torch.allclose(curve[0, 1:], half) and torch.allclose(curve[1, :-1], whole[1].expand(15))
    with pytest.raises(ValueError, match="expected 15 squares"):
        interpret.deletion(model, images, classes, torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match="divides"):
        interpret.occlusion(model, images, classes, side=7)
