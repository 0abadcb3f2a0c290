"""Swin: windows, mask and bias against attention computed naively, and the whole against torchvision and timm."""

import math
from dataclasses import replace

import pytest
import timm
import torch
from torchvision.models import swin_transformer as theirs

from vitutils.models import conversion
from vitutils.models import swin as module
from vitutils.models.swin import (
    PatchMerging,
    Swin,
    SwinBlock,
    SwinConfig,
    WindowAttention,
    WindowAttentionV2,
    relative_position_index,
    shifted_mask,
    window_partition,
    window_reverse,
)
from vitutils.training import parameter_groups

SMALL = SwinConfig(
    img_size=32, patch_size=2, num_classes=5, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4
)


def shaken(model):
    """Every weight moved, so that no part is at zero; in eval mode, in double precision."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(block, tokens):
    """The same as block.attend, one token at a time: it sees what lies in its true, shifted window."""
    (B, H, W, D), (Mh, Mw), (down, right) = tokens.shape, block.window_size, block.shift
    attn, out = block.attn, torch.empty_like(tokens)
    h = attn.num_heads
    table = attn.relative_position_bias_table
    for r in range(H):
        for c in range(W):
            seen = [
                (y, x)
                for y in range(H)
                for x in range(W)
                if (y - down) // Mh == (r - down) // Mh and (x - right) // Mw == (c - right) // Mw
            ]
            here = torch.stack([tokens[:, y, x] for y, x in seen], 1)
            q = attn.qkv(tokens[:, r, c])[:, None, :D].reshape(B, 1, h, D // h).transpose(1, 2)
            k, v = (attn.qkv(here)[..., i * D : (i + 1) * D].reshape(B, -1, h, D // h).transpose(1, 2) for i in (1, 2))
            offsets = [(r - y + Mh - 1) * (2 * Mw - 1) + c - x + Mw - 1 for y, x in seen]
            scores = q @ k.mT / math.sqrt(D // h) + table[offsets].T[:, None]
            out[:, r, c] = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, D))
    return out


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (2, 0), (2, 3)], ids=str)
@pytest.mark.parametrize("window", [(4, 4), (3, 4), (2, 6)], ids=str)
def test_shifted_windows_are_attention_over_the_true_region(window, shift):
    shift = tuple(min(s, M - 1) for s, M in zip(shift, window, strict=True))
    block = shaken(SwinBlock(8, 2, replace(SMALL, window_size=window), shift))
    tokens = noise(2, 12, 12, 8)
    assert torch.allclose(block.attend(tokens), naive(block, tokens), atol=1e-12)
    block.masked = False
    assert torch.allclose(block.attend(tokens), naive(block, tokens), atol=1e-12) == (shift == (0, 0))


def rolled_forward(block, tokens):
    """The fault: the grid is rolled on instead of back."""
    down, right = block.shift
    window, mask = block.window_size, shifted_mask(tokens.shape[1:3], block.window_size, block.shift)
    windows = block.attn(window_partition(tokens.roll((down, right), (1, 2)), window), mask)
    return window_reverse(windows, window, tokens.shape[1:3]).roll((-down, -right), (1, 2))


def test_planted_faults_are_seen(monkeypatch):
    block = shaken(SwinBlock(8, 2, replace(SMALL, window_size=(3, 4)), (1, 2)))
    tokens = noise(1, 12, 12, 8)
    right = naive(block, tokens)
    assert not torch.allclose(rolled_forward(block, tokens), right, atol=1e-3)
    index = relative_position_index((3, 4))
    block.attn.relative_position_index = index.T
    assert not torch.allclose(block.attend(tokens), right, atol=1e-3)
    block.attn.relative_position_index = index
    monkeypatch.setattr(module, "shifted_mask", lambda grid, M, shift: shifted_mask((6, 24), M, shift))
    assert not torch.allclose(block.attend(tokens), right, atol=1e-3)


def test_windows_lose_nothing_and_say_what_does_not_fit():
    tokens = noise(2, 6, 8, 3)
    windows = window_partition(tokens, (3, 4))
    assert windows.shape == (2, 4, 12, 3)
    assert torch.equal(windows[:, 1], tokens[:, :3, 4:].flatten(1, 2))
    assert torch.equal(window_reverse(windows, (3, 4), (6, 8)), tokens)
    with pytest.raises(ValueError, match="4 x 4 do not divide 6 x 8"):
        window_partition(tokens, (4, 4))


def test_a_window_as_large_as_the_grid_is_not_shifted():
    block = shaken(SwinBlock(8, 2, SMALL, (2, 2)))
    tokens, found = noise(1, 4, 8, 8), {}
    for block.shift in [(2, 2), (0, 2), (0, 0)]:
        found[block.shift] = block.attend(tokens)
    assert torch.equal(found[2, 2], found[0, 2])
    assert not torch.allclose(found[2, 2], found[0, 0])


def test_merging_is_a_strided_convolution():
    merging = shaken(PatchMerging(3))
    merging.norm = torch.nn.Identity()
    weight = merging.reduction.weight.reshape(6, 2, 2, 3)  # out, column, row, channel
    tokens = noise(2, 6, 4, 3)
    conv = torch.nn.functional.conv2d(tokens.permute(0, 3, 1, 2), weight.permute(0, 3, 2, 1), stride=2)
    assert torch.allclose(merging(tokens), conv.permute(0, 2, 3, 1), atol=1e-12)
    assert merging(noise(1, 5, 3, 3)).shape == (1, 3, 2, 6)


def of_torchvision(config):
    """torchvision's class in these sizes."""
    torch.manual_seed(0)
    parts = {1: {}, 2: {"block": theirs.SwinTransformerBlockV2, "downsample_layer": theirs.PatchMergingV2}}
    P, M = config.patch_size, config.window_size
    sizes = {"window_size": [M, M] if isinstance(M, int) else list(M), "num_classes": config.num_classes}
    made = theirs.SwinTransformer(
        [P, P], config.embed_dim, list(config.depths), list(config.num_heads), **sizes, **parts[config.version]
    )
    return shaken(made)


def ours(config, state):
    return conversion.load_into(Swin(config), state).double().eval()


@pytest.mark.parametrize("side", [(32, 32), (16, 48), (30, 36), (6, 10)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"window_size": (3, 5)}, {"version": 2}], ids=str)
def test_torchvisions_swin_takes_and_gives_the_same(changes, side):
    config = replace(SMALL, **changes)
    peer, images = of_torchvision(config), noise(2, 3, *side)
    model = ours(config, conversion.swin_from_torchvision(peer.state_dict()))
    expected = peer(images)
    assert expected.std(dim=0).max() > 1e-2  # else the logits do not depend on the images
    # torchvision masks by -100 in place of minus infinity
    assert torch.allclose(model(images), expected, atol=1e-9)


def of_timm(size):
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4)}
    return shaken(timm.models.SwinTransformer(img_size=size, num_classes=5, **sizes))


def test_timms_swin_where_the_window_divides_the_grid():
    peer, images = of_timm(32), noise(2, 3, 32, 32)
    model = ours(SMALL, conversion.swin_from_timm(peer.state_dict()))
    assert torch.allclose(model(images), peer(images), atol=1e-9)


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_the_real_sizes_have_torchvisions_parameters(name):
    with torch.device("meta"):
        peer = getattr(theirs, name)().state_dict()
        config = SwinConfig() if name == "swin_t" else SwinConfig(window_size=8, version=2)
        state = Swin(config).state_dict()
    found = conversion.swin_from_torchvision(peer)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in state.items()}


def test_weights_of_another_kind_are_refused_by_name():
    with pytest.raises(ValueError, match="no place in a Swin: conv_proj.weight"):
        conversion.swin_from_torchvision({"conv_proj.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_heads": (3, 4)}, "num_heads 3 does not divide width 8"),
        ({"depths": (2,)}, "got 1 and 2"),
        ({"window_size": 0}, "expected a window_size of 1 or more, got 0"),
        ({"position": "rotary"}, "expected position relative, absolute or none, got 'rotary'"),
        ({"version": 3}, "expected version 1 or 2, got 3"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_sizes_that_do_not_fit_are_named(changes, told):
    with pytest.raises(ValueError, match=told):
        replace(SMALL, **changes)


def test_images_that_patches_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 2, got 31 x 32"):
        Swin(SMALL)(torch.zeros(1, 3, 31, 32))
    with pytest.raises(ValueError, match=r"images of 32 x 32.*got 16 x 16"):
        Swin(replace(SMALL, position="absolute"))(torch.zeros(1, 3, 16, 16))


def test_positions_tell_where_a_patch_is():
    for position, knows in {"none": False, "relative": True, "absolute": True}.items():
        torch.manual_seed(0)
        model = Swin(replace(SMALL, shift=False, position=position, depths=(1,), num_heads=(2,)))
        with torch.no_grad():
            tokens = noise(1, 16, 16, 8).float()
            turned = tokens.flip(1, 2)
            if position == "absolute":
                tokens, turned = tokens + model.pos_embed, turned + model.pos_embed
            out, other = (model.layers[0](x) for x in (tokens, turned))
        assert torch.allclose(out, other.flip(1, 2), atol=1e-5) != knows


def test_the_first_loss_is_that_of_a_guess():
    assert Swin(SMALL)(noise(2, 3, 32, 32).float()).abs().max() == 0


@pytest.mark.parametrize("ratio", [2.0, 1.5])
def test_the_mlp_is_as_wide_as_its_ratio_says(ratio):
    for block in (block for stage in Swin(replace(SMALL, mlp_ratio=ratio)).layers for block in stage.blocks):
        assert block.mlp.fc1.out_features == ratio * block.norm1.normalized_shape[0]


def test_v2s_factor_ends_at_100():
    layer = WindowAttentionV2(8, 2, (2, 2))
    q = noise(1, 1, 2, 4, 4).float()
    for asked, got in ((10.0, 10.0), (100.0, 100.0), (1_000.0, 100.0)):
        layer.logit_scale.data.fill_(math.log(asked))
        assert layer.scores(q, q).diagonal(dim1=-2, dim2=-1).mean().item() == pytest.approx(got, rel=1e-4)


def test_need_weights_gives_the_maps():
    layer = shaken(WindowAttention(8, 2, (2, 3)))
    windows, mask = noise(2, 4, 6, 8), shifted_mask((4, 6), (2, 3), (1, 1))
    out, attn = layer(windows, mask, need_weights=True)
    assert torch.equal(out, layer(windows, mask))
    assert attn.shape == (2, 4, 2, 6, 6)
    assert torch.allclose(attn.sum(-1), torch.ones(2, 4, 2, 6, dtype=torch.float64))
    assert attn.permute(0, 2, 1, 3, 4)[:, :, ~mask].eq(0).all()


@pytest.mark.parametrize("version", [1, 2])
def test_weight_decay_leaves_bias_tables_and_scales_alone(version):
    model = Swin(replace(SMALL, version=version))
    decays, keeps = (group["params"] for group in parameter_groups(model, 0.05))
    named = {parameter: name for name, parameter in model.named_parameters()}
    kept = {named[parameter].rsplit(".", 1)[1] for parameter in keeps}
    offsets = {1: "relative_position_bias_table", 2: "logit_scale"}
    assert kept == {"weight", "bias", offsets[version]}  # weight: of a norm
    assert {named[parameter].rsplit(".", 2)[1] for parameter in decays} >= {"qkv", "proj", "fc1", "reduction"}


def test_the_pyramid_halves_its_grids_and_rounds_up():
    grids = Swin(replace(SMALL, depths=(2, 2, 1), num_heads=(2, 2, 2))).pyramid(noise(2, 3, 20, 36).float())
    assert [tuple(grid.shape) for grid in grids] == [(2, 10, 18, 8), (2, 5, 9, 16), (2, 3, 5, 32)]
