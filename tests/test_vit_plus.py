"""ViTPlus: with all off our ViT to the bit; each addition by itself; timm's and vit-pytorch's networks equalled."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer
from vit_pytorch import simple_vit, vit_5

from vitutils.models import ViT, ViTConfig, conversion_plus
from vitutils.models.vit_parts import DropPath, LayerScale, SwiGLU, pad_images, patch_coordinates, rope_angles, rotate
from vitutils.models.vit_plus import ViTPlus, ViTPlusConfig
from vitutils.training import parameter_groups

SMALL = dict(img_size=16, patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0)
EVERYTHING = dict(reg_tokens=2, rope_type="dinov3", qk_norm=True, norm_layer="rmsnorm", swiglu_mlp=True)
EVERYTHING |= dict(init_values=0.5, drop_path_rate=0.2, global_pool="map")
VARIANTS = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "attention pooling": {"global_pool": "map"},
    "registers": {"reg_tokens": 3},
    "patches alone have positions": {"reg_tokens": 3, "no_embed_class": True},
    "rotary": {"rope_type": "dinov3", "pos_embed": "none", "global_pool": "avg", "class_token": True},
    "in whole patches": {"rope_type": "axial", "reg_tokens": 2, "reg_rope_temperature": 10.0},
    "everything": EVERYTHING,
}
each_variant = pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)


def plus(**change):
    """A fresh ViTPlus whose every weight matters, in double precision and eval mode."""
    torch.manual_seed(0)
    return stirred(ViTPlus(ViTPlusConfig(**SMALL | change))).double()


def stirred(model: nn.Module) -> nn.Module:
    """Every weight moved, so that none is 0 or 1, or so small that it would not be missed; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += (0.3 if weight.ndim == 1 else 0.05) * torch.randn(weight.shape, generator=generator)
    return model.eval()


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


# --- all off ---


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("bias", [True, False])
def test_with_all_off_it_is_our_vit_to_the_bit(pool, bias):
    sizes = SMALL | {"global_pool": pool, "qkv_bias": bias}
    nets = []
    for kind, config in ((ViT, ViTConfig), (ViTPlus, ViTPlusConfig)):
        torch.manual_seed(3)
        nets.append(kind(config(**sizes)))
    ours, new = nets
    assert list(ours.state_dict()) == list(new.state_dict())
    for a, b in zip(ours.state_dict().values(), new.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    nn.init.normal_(ours.head.weight)
    new.load_state_dict(ours.state_dict())
    for shape in ((2, 3, 16, 16), (1, 3, 8, 24)):  # its own grid, and stretched positions
        images = noise(*shape, dtype=torch.float32)
        assert torch.equal(ours(images), new(images))
        for a, b in zip(ours(images, need_weights=True), new(images, need_weights=True), strict=True):
            assert torch.equal(a, b)
        (ours(images).square().sum() + new(images).square().sum()).backward()
    for a, b in zip(ours.parameters(), new.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_it_decays_what_our_vit_decays():
    model = plus(**EVERYTHING, pos_embed="learn")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays, kept = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert {"blocks.0.mlp.fc1_g.weight", "attn_pool.q.weight", "patch_embed.proj.weight"} <= decays
    assert {"reg_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "attn_pool.latent"} <= kept


# --- one at a time ---


@each_variant
def test_padding_changes_nothing(change):
    model = plus(**change)
    images = [noise(3, 16, 12), noise(3, 4, 24), noise(3, 20, 4)]
    batch, sizes = pad_images(images)
    assert batch.shape == (3, 3, 20, 24)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(batch, sizes=sizes), alone, atol=1e-9, rtol=0)
    logits, attn = model(batch, need_weights=True, sizes=sizes)
    torch.testing.assert_close(logits, alone, atol=1e-9, rtol=0)
    first = model.config.num_prefix_tokens
    assert attn[1, ..., first + 6 :].abs().max() == 0  # the second image has one row of six patches
    assert (model(batch) - alone).abs().max() > 1e-3  # without sizes the padding is looked at


@pytest.mark.parametrize("sizes", [[[16, 10]], [[16, 20]], [[0, 16]], [[16, 16], [16, 16]], [16, 16]])
def test_sizes_that_do_not_fit_the_batch_are_told(sizes):
    with pytest.raises(ValueError, match="expected sizes .* multiples of 4, at most 16 x 16"):
        plus()(noise(1, 3, 16, 16), sizes=torch.tensor(sizes))


@each_variant
def test_checkpointing_and_intermediates_and_maps_give_the_same(change):
    change = change | {"drop_path_rate": 0.0}
    model, saving = plus(**change), plus(**change, grad_checkpointing=True)
    images = noise(2, 3, 16, 24)
    for net in (model, saving):
        net.train()(images).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None and a.grad.abs().max() > 0, name
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=0)
    logits, attn = model(images, need_weights=True)
    torch.testing.assert_close(logits, model(images), atol=1e-10, rtol=0)
    torch.testing.assert_close(attn.sum(-1), torch.ones_like(attn[..., 0]))
    one, last = model.forward_intermediates(images, (0, -1))
    assert one.shape == last.shape == (2, 24, 4, 6)
    tokens = model.norm(last.flatten(2).transpose(1, 2))
    first = model.config.num_prefix_tokens
    torch.testing.assert_close(tokens, model.forward_features(images)[:, first:])


def test_checkpointing_keeps_less(monkeypatch):
    calls = []
    from vitutils.models import vit_plus

    real = vit_plus.checkpoint
    monkeypatch.setattr(vit_plus, "checkpoint", lambda *a, **how: calls.append(a[0]) or real(*a, **how))
    model = plus(grad_checkpointing=True)
    model(noise(1, 3, 16, 16))
    assert not calls  # in eval mode nothing is computed twice
    model.train()(noise(1, 3, 16, 16))
    assert calls == list(model.blocks)


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    layer, updates = DropPath(0.25), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    found = layer(updates)
    values = found[:, 0, 0]
    assert torch.equal(found, values[:, None, None].expand_as(found))
    assert {round(v, 4) for v in values.tolist()} == {0.0, round(1 / 0.75, 4)}
    assert abs(values.mean() - 1) < 4 * (0.25 / 0.75 / 4000) ** 0.5
    assert torch.equal(layer.eval()(updates), updates)
    rates = [block.drop_path.rate for block in plus(drop_path_rate=0.3, depth=4).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_leaves_out_both_updates_of_a_block():
    block, tokens = plus().blocks[0].train(), noise(2, 7, 24)
    assert (block(tokens) - tokens).abs().max() > 1e-3
    block.drop_path = nn.Sequential()
    block.drop_path.forward = torch.zeros_like
    assert torch.equal(block(tokens), tokens)


def test_registers_start_apart():
    started = ViTPlus(ViTPlusConfig(**SMALL, reg_tokens=3)).reg_token[0]  # as training begins, not stirred
    assert torch.pdist(started).min() > 1e-3


def test_layer_scale_of_zero_leaves_a_block_out():
    model = plus(init_values=0.1)
    tokens = noise(2, 7, 24)
    assert (model.blocks[0](tokens) - tokens).abs().max() > 1e-3
    for one in (model.blocks[0].ls1, model.blocks[0].ls2):
        nn.init.zeros_(one.gamma)
    assert torch.equal(model.blocks[0](tokens), tokens)
    assert torch.equal(LayerScale(4, 0.5)(torch.ones(1, 1, 4)), torch.full((1, 1, 4), 0.5))


def test_swiglu_gates():
    layer = SwiGLU(4, 6)
    nn.init.zeros_(layer.fc1_g.weight)
    nn.init.constant_(layer.fc1_g.bias, -100.0)
    torch.testing.assert_close(layer(torch.randn(1, 2, 4)), layer.fc2.bias.expand(1, 2, 4))


def test_qk_norm_bounds_the_scores():
    weights = plus(qk_norm=True, norm_layer="rmsnorm"), plus()
    for model in weights:
        for block in model.blocks:
            block.attn.qkv.weight.data *= 50
    tokens = noise(2, 9, 24)
    normed, free = (model.blocks[0](tokens, need_weights=True)[1] for model in weights)
    assert free.amax(-1).mean() > 0.95 > 0.8 > normed.amax(-1).mean()


def test_rotary_scores_depend_on_offsets_alone():
    """Moved by two rows and three columns, all dot products stay; a turn changes no length."""
    q, k = noise(1, 2, 12, 16), noise(1, 2, 12, 16)
    places = patch_coordinates((3, 4), to_one=False)
    scores = []
    for shift in ((0, 0), (2, 3)):
        angles = rope_angles(places + torch.tensor(shift), 16, 100.0).double()
        scores.append(rotate(q, angles) @ rotate(k, angles).mT)
        torch.testing.assert_close(rotate(q, angles).norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
    other = rope_angles(places * torch.tensor([1, 2]), 16, 100.0).double()
    assert (rotate(q, other) @ rotate(k, other).mT - scores[0]).abs().max() > 0.1


def test_coordinates_are_patch_centres_from_edge_to_edge():
    one = patch_coordinates((2, 4))
    assert one[:5].tolist() == [[-0.5, -0.75], [-0.5, -0.25], [-0.5, 0.25], [-0.5, 0.75], [0.5, -0.75]]
    own = patch_coordinates((2, 4), torch.tensor([[2, 4], [1, 2]]))
    assert torch.equal(own[0], one)
    assert own[1, :2].tolist() == [[0.0, -0.5], [0.0, 0.5]]
    assert patch_coordinates((2, 3), to_one=False).tolist() == [[r, c] for r in range(2) for c in range(3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"img_size": 18}, "does not divide"),
        ({"global_pool": "map", "num_heads": 5}, "num_heads 5"),
        ({"global_pool": "max"}, "'max'"),
        ({"norm_layer": "batchnorm"}, "norm_layer is one of .*'batchnorm'"),
        ({"pos_embed": "sine"}, "pos_embed is one of"),
        ({"rope_type": "mixed"}, "rope_type is one of"),
        ({"rope_type": "axial", "embed_dim": 18}, "multiple of 4, got 6"),
        ({"drop_path_rate": 1.0}, "drop_path_rate from 0 to below 1, got 0 and 1.0"),
        ({"reg_tokens": -1}, "reg_tokens of 0 or more"),
        ({"class_token": False}, "needs a class token"),
    ],
)
def test_sizes_that_do_not_go_together_are_told(change, said):
    with pytest.raises(ValueError, match=said):
        ViTPlusConfig(**SMALL | change)


# --- the weights of others ---

THEIRS = {
    "vit_small_patch16_dinov3": dict(img_size=48),
    "vit_small_patch16_dinov3_qkvb": dict(img_size=48, global_pool="token", num_classes=7),
    "vit_7b_patch16_dinov3": dict(img_size=48),  # SwiGLU
    "vit_small_patch14_reg4_dinov2": dict(img_size=56),
    "vit_giant_patch14_reg4_dinov2": dict(img_size=56, num_classes=3),  # SwiGLU in one matrix
    "vit_base_patch16_siglip_224.v2_webli": dict(img_size=48),
    "vit_base_patch16_siglip_gap_224": dict(img_size=48),
    "deit3_small_patch16_224": dict(img_size=32),
    "vit_tiny_patch16_224": dict(img_size=32, qk_norm=True, reg_tokens=2, norm_layer="rmsnorm"),
}


def by_timm(name, **more):
    torch.manual_seed(0)
    return stirred(timm.create_model(name, pretrained=False, **dict(depth=2, embed_dim=48, num_heads=3) | more))


@pytest.mark.parametrize(("name", "sizes"), THEIRS.items(), ids=THEIRS)
def test_timms_weights_give_timms_outputs(name, sizes):
    theirs = by_timm(name, **sizes)
    ours = conversion_plus.plus_from_timm(theirs)
    images = noise(2, 3, *ours.config.image_shape, dtype=torch.float32)
    with torch.no_grad():
        want, got = theirs(images), ours(images)
        assert want.std() > 0.05
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images), atol=1e-4, rtol=1e-4)


def test_dinov3_takes_other_sizes_as_timm_does():
    theirs = by_timm("vit_small_patch16_dinov3", img_size=48)
    ours = conversion_plus.plus_from_timm(theirs)
    images = noise(2, 3, 32, 80, dtype=torch.float32)
    assert ours.config.num_prefix_tokens == 5 and ours.pos_embed is None
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


VIT5 = dict(image_size=16, patch_size=4, num_classes=5, dim=48, depth=2, heads=3, mlp_dim=70, dim_head=16)


@pytest.mark.parametrize("change", [{}, {"num_registers": 0}, {"num_classes": 0}, {"channels": 1}])
def test_vit_5s_weights_give_its_outputs(change):
    torch.manual_seed(0)
    theirs = stirred(vit_5.ViT(**VIT5 | change))
    ours = conversion_plus.plus_from_vit_5(theirs)
    images = noise(2, change.get("channels", 3), 16, 16, dtype=torch.float32)
    with torch.no_grad():
        got = ours(images) if theirs.mlp_head is not None else ours.forward_features(images)
        torch.testing.assert_close(got, theirs(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: by_timm("vit_little_patch16_reg4_gap_256", img_size=32), "fc_norm"),
        (lambda: by_timm("eva02_tiny_patch14_224", img_size=28), "RotaryEmbeddingCat"),
        (lambda: by_timm("vit_base_patch16_rope_mixed_224", img_size=32), "RotaryEmbeddingMixed"),
        (lambda: by_timm("vit_so400m_patch16_siglip_256.v2_webli", img_size=32), "GELUTanh"),
        (lambda: by_timm("vit_base_patch16_clip_224", img_size=32), "norm_pre"),
        (lambda: by_timm("vit_tiny_patch16_224", img_size=32, act_layer="silu"), "another activation"),
        (lambda: VisionTransformer(32, 16, 1, 2, 16, 16), "expected timm's VisionTransformer or Eva"),
    ],
    ids=["fc_norm", "cat", "mixed", "tanh", "norm_pre", "silu", "torchvision"],
)
def test_what_vit_plus_lacks_is_told_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        conversion_plus.plus_from_timm(make())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vit_5.ViT(**VIT5 | {"dim_head": 8}), "of another shape"),
        (lambda: vit_5.ViT(**VIT5 | {"image_size": (16, 8)}), "square grid"),
        (lambda: simple_vit.SimpleViT(image_size=16, patch_size=4, num_classes=5, dim=48, depth=1, heads=3, mlp_dim=70),
         "expected vit-pytorch's vit_5.ViT, got a SimpleViT"),
    ],
    ids=["narrow heads", "oblong", "simple"],
)  # fmt: skip
def test_what_is_no_vit_5_of_our_shape_is_told(make, said):
    with pytest.raises(ValueError, match=said):
        conversion_plus.plus_from_vit_5(make())


# --- export ---


OFF = pytest.param({}, marks=pytest.mark.slow, id="all off")


@pytest.mark.parametrize("change", [OFF, pytest.param(EVERYTHING, id="everything")])
def test_batch_and_size_stay_free_under_torch_export(change):
    model, free = plus(**change | {"depth": 1}), torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    program = torch.export.export(model, (noise(2, 3, 20, 28),), dynamic_shapes=shapes).module()
    for shape in ((2, 3, 16, 16), (3, 3, 8, 32)):  # the grid that it was made for, and another
        images = noise(*shape)
        torch.testing.assert_close(program(images), model(images))


@pytest.mark.slow
def test_batch_and_size_stay_free_in_onnx(tmp_path):
    from vitutils.analysis.export import OnnxModel, to_onnx

    model = plus(**EVERYTHING | {"depth": 1}).float()
    run = OnnxModel(to_onnx(model, tmp_path / "plus.onnx", 16, dynamic_size=True))
    for shape in ((1, 3, 16, 16), (3, 3, 8, 32)):
        images = noise(*shape, dtype=torch.float32)
        torch.testing.assert_close(run(images), model(images), atol=1e-4, rtol=1e-4)
