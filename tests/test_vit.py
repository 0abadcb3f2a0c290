"""The book's ViT: shapes, errors, sizes, and parity with timm, torchvision and vit-pytorch."""

import dataclasses
import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import vit_pytorch
from timm.layers import resample_abs_pos_embed
from torch import nn

from vitutils import check
from vitutils.models import (
    MLP,
    Block,
    ConvStem,
    DistilledViT,
    PatchEmbed,
    SelfAttention,
    ViT,
    ViTConfig,
    conversion,
    init_weights,
    resize_positions,
)

SMALL = ViTConfig(
    img_size=32, patch_size=8, num_classes=10, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2.0
)


def small(**changes) -> ViTConfig:
    return dataclasses.replace(SMALL, **changes)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random and large enough to matter; the scales of norms about 1."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        std = p.shape[1:].numel() ** -0.5 if p.ndim > 1 else 0.02
        start = float((p == 1).all())
        p.copy_(start + max(std, 0.02) * torch.randn(p.shape, generator=generator))
    return model.eval()


def flat_and_lively(shape=(3, 3, 32, 32), seed=1) -> torch.Tensor:
    """Images with noise on the left and one flat colour on the right: the flat patches make `eps` count."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    images[..., shape[-1] // 2 :] = 0.05
    return images


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    return (one(images) - other(images)).abs().max().item()


# --- sizes ---


def test_named_sizes_have_the_papers_parameters():
    expected = {
        "Ti/16": 5_717_416,
        "S/16": 22_050_664,
        "B/16": 86_567_656,
        "B/32": 88_224_232,
        "L/16": 304_326_632,
        "L/32": 306_535_400,
        "H/14": 632_045_800,
    }
    for name, count in expected.items():
        with torch.device("meta"):
            assert check.count_parameters(ViT(ViTConfig.named(name))) == count, name


def test_named_sizes_equal_timms():
    sizes = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}
    pairs = {f"{ours}/16": f"vit_{theirs}_patch16_224" for ours, theirs in sizes.items()}
    for name, theirs in {**pairs, "H/14": "vit_huge_patch14_224"}.items():
        with torch.device("meta"):
            reference = timm.create_model(theirs, num_classes=1000)
            ours = ViT(ViTConfig.named(name))
        assert conversion.config_of(reference) == dataclasses.replace(
            ours.config, img_size=(224, 224)
        )
        shapes = {key: p.shape for key, p in ours.state_dict().items()}
        assert shapes == {key: p.shape for key, p in reference.state_dict().items()}


def test_changes_replace_single_fields():
    config = ViTConfig.named("S/16", num_classes=7, patch_size=8)
    assert (config.num_classes, config.patch_size, config.embed_dim) == (7, 8, 384)
    with pytest.raises(TypeError, match="width"):
        ViTConfig.named("S/16", width=3)


def test_config_is_frozen_and_knows_its_grid():
    config = small(img_size=(16, 40))
    assert config.image_shape == (16, 40) and config.grid == (2, 5)
    assert config.num_prefix_tokens == 1
    assert small(global_pool="avg").num_prefix_tokens == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(img_size=36), ["8", "36 x 36"]),
        (dict(img_size=(32, 30)), ["8", "32 x 30"]),
        (dict(num_heads=5), ["5", "48"]),
        (dict(global_pool="max"), ["token", "avg", "max"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, told):
    with pytest.raises(ValueError) as error:
        small(**changes)
    assert all(part in str(error.value) for part in told)


@pytest.mark.parametrize("name", ["X/16", "B", "B/", "B/x", "b/16", ""])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError) as error:
        ViTConfig.named(name)
    assert all(known in str(error.value) for known in ("Ti", "S", "B", "L", "H", repr(name)))


# --- modules ---


def test_patch_embed_is_patch_times_matrix():
    embed = PatchEmbed(8, 3, 48)
    images = torch.randn(2, 3, 16, 24)
    cut = images.reshape(2, 3, 2, 8, 3, 8).permute(0, 2, 4, 1, 3, 5).reshape(2, 6, 3 * 64)
    expected = cut @ embed.proj.weight.flatten(1).T + embed.proj.bias
    check.check_close(embed(images), expected)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 36, 32), (2, 3, 32, 36)])
def test_patch_embed_refuses_other_shapes_and_says_which(shape):
    with pytest.raises(ValueError, match=str(shape[2])) as error:
        PatchEmbed(8, 3, 48)(torch.zeros(shape))
    assert str(shape) in str(error.value) and "3 channels" in str(error.value)


@pytest.mark.parametrize("bias", [True, False])
def test_attention_equals_torchs_own(bias):
    """nn.MultiheadAttention has the same three matrices in the same order."""
    ours = randomise(SelfAttention(48, 3, qkv_bias=bias))
    theirs = nn.MultiheadAttention(48, 3, bias=True, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias if bias else torch.zeros(3 * 48))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    tokens = torch.randn(2, 7, 48)
    expected, maps = theirs(tokens, tokens, tokens, average_attn_weights=False)
    out, attn = ours(tokens, need_weights=True)
    check.check_close(out, expected)
    check.check_close(attn, maps)
    check.check_close(ours(tokens), expected)


def test_attention_maps_have_rows_that_sum_to_one():
    _, attn = randomise(SelfAttention(48, 3))(3 * torch.randn(2, 7, 48), need_weights=True)
    check.check_shape(attn, (2, 3, 7, 7))
    check.check_rows_sum_to_one(attn)
    assert (attn.sum(dim=-2) - 1).abs().max() > 0.1  # columns do not: the test can tell


def test_mlp_treats_each_token_alone():
    mlp, tokens = MLP(48, 96), torch.randn(2, 7, 48)
    order = torch.randperm(7)
    check.check_close(mlp(tokens)[:, order], mlp(tokens[:, order]))
    expected = mlp.fc2(F.gelu(mlp.fc1(tokens)))
    check.check_close(mlp(tokens), expected)


def test_block_is_pre_norm_with_residuals():
    block, tokens = randomise(Block(SMALL)), torch.randn(2, 7, 48)
    middle = tokens + block.attn(block.norm1(tokens))
    check.check_close(block(tokens), middle + block.mlp(block.norm2(middle)))
    assert block.norm1.eps == block.norm2.eps == 1e-6
    out, attn = block(tokens, need_weights=True)
    check.check_close(out, block(tokens))
    check.check_shape(attn, (2, 3, 7, 7))


# --- the network ---


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_with_and_without_maps_the_logits_agree(pool):
    model = randomise(ViT(small(global_pool=pool)))
    images = flat_and_lively()
    with torch.no_grad():
        logits, attn = model(images, need_weights=True)
        features, same = model.forward_features(images, need_weights=True)
    T = 16 + (pool == "token")
    check.check_shape(attn, (3, 2, 3, T, T))
    check.check_shape(features, (3, T, 48))
    check.check_rows_sum_to_one(attn)
    assert torch.equal(attn, same) and logits.std() > 0.1
    check.check_close(model(images), logits)
    check.check_close(model.forward_features(images), features)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_first_loss_is_ln_k(classes):
    model = ViT(small(num_classes=classes))
    labels = torch.arange(8) % classes
    loss = F.cross_entropy(model(torch.randn(8, 3, 32, 32)), labels).item()
    assert loss == pytest.approx(math.log(classes), abs=1e-6)


def test_a_zero_head_still_learns():
    """The head is zero, not dead: its gradient is not, and one step moves the logits."""
    model = ViT(SMALL)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    F.cross_entropy(model(images), labels).backward()
    assert model.head.weight.grad.abs().max() > 0
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert model(images).std() > 0.01


def test_initialised_as_timm_does_for_the_papers_weights():
    torch.manual_seed(0)
    model = ViT(ViTConfig.named("Ti/16", depth=1))
    expected = {
        "patch_embed.proj.weight": (3 * 16 * 16) ** -0.5,
        "blocks.0.attn.qkv.weight": math.sqrt(2 / (192 + 3 * 192)),
        "blocks.0.mlp.fc1.weight": math.sqrt(2 / (192 + 4 * 192)),
        "pos_embed": 0.02,
    }
    state = model.state_dict()
    for key, std in expected.items():
        assert state[key].std().item() == pytest.approx(std, rel=0.05), key
    biases = [p for key, p in state.items() if key.endswith("bias")]
    assert len(biases) == 9 and not any(p.any() for p in biases)
    assert not state["cls_token"].any() and not state["head.weight"].any()


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_first_block_is_given_tokens_in_order_in_memory(pool):
    """A convolution's output, flattened and transposed, is not: norms and sums on it take longer."""
    assert ViT(small(global_pool=pool)).embed(flat_and_lively()).is_contiguous()


class Halving(PatchEmbed):
    """A patch embedding with an initialisation of its own."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)


@pytest.mark.parametrize("layer", [Halving, partial(Halving), lambda *sizes: Halving(*sizes)])
def test_an_embed_layer_keeps_its_own_initialisation(layer):
    torch.manual_seed(0)
    model = ViT(SMALL, layer)
    assert all((p == 0.5).all() for p in model.patch_embed.parameters())
    assert not model.blocks[0].mlp.fc1.bias.any() and model.blocks[1].attn.qkv.weight.std() > 0.01


@pytest.mark.parametrize("layer", [PatchEmbed, ConvStem, conversion.VitPytorchPatchEmbed])
def test_the_books_embed_layers_start_as_they_did_in_the_studies(layer):
    """Drawn in the order that `ViT.apply(init_weights)` has, over all layers."""
    torch.manual_seed(3)
    model = ViT(SMALL, layer)
    torch.manual_seed(3)
    expected = ViT(SMALL, layer)
    torch.manual_seed(3)
    layer(SMALL.patch_size, SMALL.in_chans, SMALL.embed_dim)  # what torch draws when layers are made
    for _ in range(SMALL.depth):
        Block(SMALL)
    nn.Linear(SMALL.embed_dim, SMALL.num_classes)
    expected.apply(init_weights)
    nn.init.trunc_normal_(expected.pos_embed, std=0.02)
    nn.init.zeros_(expected.head.weight)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))


def test_init_weights_leaves_norms_alone():
    norm = nn.LayerNorm(8)
    nn.init.constant_(norm.bias, 3.0)
    init_weights(norm)
    assert (norm.bias == 3).all() and (norm.weight == 1).all()


def test_images_of_another_size_use_stretched_positions():
    model = randomise(ViT(SMALL))
    images = flat_and_lively((2, 3, 48, 64))
    stretched = ViT(small(img_size=(48, 64))).eval()
    state = model.state_dict()
    state["pos_embed"] = resize_positions(state["pos_embed"], (4, 4), (6, 8))
    stretched.load_state_dict(state)
    assert largest_difference(model, stretched, images) < 1e-6


@pytest.mark.parametrize("make", [ViT, lambda config: ViT(small(global_pool="avg")), DistilledViT])
def test_an_exported_net_takes_any_number_of_images(make):
    model = randomise(make(SMALL))
    exported = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    images = flat_and_lively((5, 3, 32, 32))
    assert largest_difference(exported.module(), model, images) < 1e-6


@pytest.mark.parametrize("D, hidden", [(224, 488), (56, 61), (56, 237), (1152, 4304), (48, 179)])
def test_an_mlp_is_as_wide_as_its_ratio_says_to_the_last_number(D, hidden):
    with torch.device("meta"):
        block = Block(small(embed_dim=D, num_heads=4, mlp_ratio=hidden / D))
        theirs = timm_vit(small(embed_dim=D, num_heads=4, mlp_ratio=(hidden + 0.5) / D))
    assert block.mlp.fc1.out_features == hidden == theirs.blocks[0].mlp.fc1.out_features
    assert round(D * conversion.config_of(theirs).mlp_ratio) == hidden


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="33"):
        ViT(SMALL)(torch.zeros(1, 3, 33, 32))
    with pytest.raises(ValueError, match="3 channels"):
        ViT(SMALL)(torch.zeros(1, 1, 32, 32))


# --- positions ---


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("new", [(8, 8), (3, 2), (4, 6), (14, 9)])
def test_positions_are_stretched_as_timm_does(prefix, new):
    positions = torch.randn(1, prefix + 20, 24)
    ours = resize_positions(positions, (4, 5), new)
    theirs = resample_abs_pos_embed(
        positions, list(new), old_size=[4, 5], num_prefix_tokens=prefix, interpolation="bicubic"
    )
    check.check_close(ours, theirs, tol=1e-6)


def test_same_grid_gives_the_same_positions_and_mode_matters():
    positions = torch.randn(1, 17, 24)
    assert resize_positions(positions, (4, 4), (4, 4)) is positions
    bicubic = resize_positions(positions, (4, 4), (8, 8))
    bilinear = resize_positions(positions, (4, 4), (8, 8), mode="bilinear")
    assert torch.equal(bicubic[:, 0], positions[:, 0])
    assert bilinear[:, 1:].norm() < bicubic[:, 1:].norm()
    half = resize_positions(positions.half(), (4, 4), (8, 8))
    assert half.dtype == torch.float16


@pytest.mark.parametrize("count", [15, 18])
def test_positions_that_do_not_fit_the_grid_are_refused(count):
    with pytest.raises(ValueError, match=f"16 or 17 positions, got {count}"):
        resize_positions(torch.zeros(1, count, 8), (4, 4), (8, 8))


# --- parity: their random weights in ours, and ours in theirs ---


def timm_vit(config: ViTConfig) -> nn.Module:
    """timm's network of these sizes; with mean pooling as ours does it, and no class token."""
    avg = config.global_pool == "avg"
    return timm.models.VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        global_pool=config.global_pool,
        class_token=not avg,
        fc_norm=False,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(img_size=(24, 40)),
        dict(global_pool="avg"),
        dict(qkv_bias=False),
        dict(img_size=(40, 24), global_pool="avg", qkv_bias=False),
        dict(in_chans=1, patch_size=4),
    ],
    ids=str,
)
def test_parity_with_timm(changes):
    config = small(**changes)
    theirs = randomise(timm_vit(config))
    ours = conversion.load_into(ViT(conversion.config_of(theirs)), conversion.from_timm(theirs.state_dict()))
    images = flat_and_lively((3, config.in_chans, *config.image_shape))
    assert theirs(images).std() > 0.1
    assert largest_difference(theirs, ours.eval(), images) < 1e-5

    ours = randomise(ViT(config), seed=5)
    theirs.load_state_dict(conversion.to_timm(ours.state_dict()))
    assert largest_difference(theirs, ours, images) < 1e-5


def test_config_is_read_off_timms_network():
    config = small(img_size=(24, 40), qkv_bias=False, global_pool="avg")
    assert conversion.config_of(timm_vit(config)) == config
    other = timm.create_model(
        "vit_tiny_patch16_224", depth=1, norm_layer=partial(nn.LayerNorm, eps=1e-5)
    )
    assert conversion.config_of(other).norm_eps == 1e-5


def test_parity_with_torchvision():
    theirs = torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=3,
        hidden_dim=48,
        mlp_dim=96,
        num_classes=10,
    )
    randomise(theirs)
    ours = conversion.load_into(ViT(SMALL), conversion.from_torchvision(theirs.state_dict())).eval()
    images = flat_and_lively()
    assert theirs(images).std() > 0.1
    assert largest_difference(theirs, ours, images) < 1e-5

    randomise(ours, seed=5)
    theirs.load_state_dict(conversion.to_torchvision(ours.state_dict()))
    assert largest_difference(theirs, ours, images) < 1e-5


@pytest.mark.parametrize("pool, ours_pool", [("cls", "token"), ("mean", "avg")])
@pytest.mark.parametrize("size", [32, (24, 40)])
def test_parity_with_vit_pytorch(pool, ours_pool, size):
    theirs = vit_pytorch.ViT(
        image_size=size,
        patch_size=8,
        num_classes=10,
        dim=48,
        depth=2,
        heads=3,
        dim_head=16,
        mlp_dim=96,
        pool=pool,
    )
    randomise(theirs)
    config = small(img_size=size, qkv_bias=False, norm_eps=1e-5, global_pool=ours_pool)
    ours = ViT(config, conversion.VitPytorchPatchEmbed)
    conversion.load_into(ours, conversion.from_vit_pytorch(theirs.state_dict())).eval()
    images = flat_and_lively((3, 3, *config.image_shape))
    assert theirs(images).std() > 0.1
    assert largest_difference(theirs, ours, images) < 1e-5

    randomise(ours, seed=5)
    theirs.load_state_dict(conversion.to_vit_pytorch(ours.state_dict()))
    assert largest_difference(theirs, ours, images) < 1e-5


def test_parity_sees_the_three_faults_of_chapter_5():
    """The comparison is worth something: softmax axis, qkv order and eps each push it over 1e-5."""
    theirs = randomise(timm_vit(SMALL))
    state, images = theirs.state_dict(), flat_and_lively()

    right = conversion.load_into(ViT(SMALL), state).eval()
    assert largest_difference(theirs, right, images) < 1e-5

    eps = conversion.load_into(ViT(small(norm_eps=1e-5)), state).eval()
    assert largest_difference(theirs, eps, images) > 1e-4

    swapped = dict(state)
    for key in [key for key in state if "qkv" in key]:
        q, k, v = state[key].chunk(3)
        swapped[key] = torch.cat([k, q, v])
    order = conversion.load_into(ViT(SMALL), swapped).eval()
    assert largest_difference(theirs, order, images) > 1e-2


def test_it_learns_a_few_images_by_heart():
    torch.manual_seed(0)
    model = ViT(SMALL)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
