"""Learning without labels: MAE, DINO, LeJEPA against the libraries' pieces, and what a fault in them would change."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitutils import data
from vitutils.models import ViT, ViTConfig
from vitutils.training import masked, views
from vitutils.training.masked import MAE, patchify, pick_tokens, random_masking, unpatchify

CONFIG = ViTConfig(
    img_size=16, patch_size=4, in_chans=3, num_classes=0, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").take(train=64, test=20)


def tiny(dataset, **changes):
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return ViT(replace(CONFIG, **sizes | changes))


# --- masked autoencoder ---


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.9])
def test_masking_is_that_of_transformers(ratio):
    from transformers import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    theirs = ViTMAEEmbeddings(ViTMAEConfig(image_size=16, patch_size=4, hidden_size=8, mask_ratio=ratio))
    noise, tokens = torch.rand(3, 16), torch.randn(3, 16, 8)
    kept, mask, back = theirs.random_masking(tokens, noise)
    keep, restore, hidden = random_masking(noise, ratio)
    assert torch.equal(pick_tokens(tokens, keep), kept)
    assert torch.equal(restore, back) and torch.equal(hidden, mask.bool())


def test_unshuffling_puts_each_token_back():
    keep, restore, hidden = random_masking(torch.rand(4, 30), 0.6)
    tokens = torch.randn(4, 30, 5)
    back = pick_tokens(torch.cat([pick_tokens(tokens, keep), torch.full((4, 18, 5), 7.0)], 1), restore)
    assert torch.equal(back[~hidden], tokens[~hidden]) and (back[hidden] == 7).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.97])
def test_a_ratio_that_hides_none_or_all_is_refused(ratio):
    with pytest.raises(ValueError, match=r"of 16 visible"):
        random_masking(torch.rand(1, 16), ratio)


def test_patches_come_back_and_are_normalised_each():
    images = torch.rand(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert torch.equal(unpatchify(patches, (2, 3), 3), images)
    mean, std = masked.patch_statistics(patches)
    normal = (patches - mean) / std
    assert normal.mean(-1).abs().max() < 1e-5 and (normal.std(-1) - 1).abs().max() < 1e-3


def their_mae(normalise):
    """transformers' MAE with the weights of ours."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(1)
    ours = MAE(ViT(CONFIG), normalise=normalise, decoder_dim=16, decoder_depth=2, decoder_heads=2)
    for p in ours.parameters():
        nn.init.normal_(p, std=0.2)
    about = ViTMAEConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, norm_pix_loss=normalise, layer_norm_eps=1e-6, mask_ratio=0.75,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(about).eval()
    vit, decoder, body, top = ours.encoder, ours.decoder, theirs.vit, theirs.decoder
    body.embeddings.cls_token.data = vit.cls_token.data
    body.embeddings.position_embeddings.data = vit.pos_embed.data
    body.embeddings.patch_embeddings.projection.load_state_dict(vit.patch_embed.proj.state_dict())
    layers = [m for m in body.modules() if type(m).__name__ == "ViTMAELayer"]
    copy_blocks(vit.blocks, layers)
    norm = body.layernorm if hasattr(body, "layernorm") else body.norm
    norm.load_state_dict(vit.norm.state_dict())
    top.decoder_embed.load_state_dict(decoder.embed.state_dict())
    top.mask_token.data, top.decoder_pos_embed.data = decoder.mask_token.data, decoder.pos_embed.data
    copy_blocks(decoder.blocks, [m for m in top.modules() if type(m).__name__ == "ViTMAELayer"])
    top.decoder_norm.load_state_dict(decoder.norm.state_dict())
    order = torch.arange(48).reshape(3, 4, 4).permute(1, 2, 0).flatten()  # channel last inside a patch
    top.decoder_pred.weight.data = decoder.pred.weight.data[order]
    top.decoder_pred.bias.data = decoder.pred.bias.data[order]
    return ours.eval(), theirs, order


def copy_blocks(ours, theirs):
    """By the order in which transformers registers the linear layers and norms of a block."""
    assert len(ours) == len(theirs) > 0
    for block, layer in zip(ours, theirs, strict=True):
        named = dict(layer.named_modules())

        def find(*ends, named=named):
            return next(module for name, module in named.items() if name.endswith(ends))

        qkv = block.attn.qkv
        for part, ends in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))):
            find(*ends).weight.data = qkv.weight.data.chunk(3)[part]
            find(*ends).bias.data = qkv.bias.data.chunk(3)[part]
        find("attention.output.dense", "o_proj").load_state_dict(block.attn.proj.state_dict())
        find("intermediate.dense", "fc1").load_state_dict(block.mlp.fc1.state_dict())
        rest = [m for n, m in named.items() if n in ("output.dense", "mlp.fc2")]
        rest[0].load_state_dict(block.mlp.fc2.state_dict())
        find("layernorm_before").load_state_dict(block.norm1.state_dict())
        find("layernorm_after").load_state_dict(block.norm2.state_dict())


@pytest.mark.parametrize("normalise", [False, True])
def test_mae_is_that_of_transformers(normalise):
    ours, theirs, order = their_mae(normalise)
    images, noise = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    with torch.no_grad():
        loss, guess, hidden = ours(images, noise, need_patches=True)
        expected = theirs(images, noise=noise)
    assert (guess[..., order] - expected.logits).abs().max() < 1e-4
    assert abs(loss - expected.loss) < 1e-5 * expected.loss
    assert torch.equal(hidden, expected.mask.bool())


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_hidden_pixels_cannot_reach_the_encoder_nor_visible_ones_the_loss(pool):
    torch.manual_seed(0)
    mae, noise = MAE(ViT(replace(CONFIG, global_pool=pool)), normalise=False), torch.rand(2, 16)
    images = torch.rand(2, 3, 16, 16)
    keep, _, hidden = random_masking(noise, 0.75)
    changed = patchify(images, 4)
    changed[hidden] = 0.5
    others = unpatchify(changed, (4, 4), 3)
    assert torch.equal(mae.encode(images, keep), mae.encode(others, keep))
    loss, guess, _ = mae(images, noise, need_patches=True)
    guess.retain_grad()
    loss.backward()
    assert (guess.grad[~hidden] == 0).all() and (guess.grad[hidden] != 0).any()


def test_the_encoder_knows_where_a_patch_is_from():
    torch.manual_seed(0)
    mae, grey = MAE(ViT(CONFIG)), torch.zeros(1, 3, 16, 16)
    first, last = mae.encode(grey, torch.arange(4)[None]), mae.encode(grey, torch.arange(12, 16)[None])
    assert (first - last).abs().max() > 1e-3


# --- DINO ---


def test_one_pair_has_the_loss_of_vit_pytorch():
    from vit_pytorch.dino import loss_fn

    student, teacher, centre = torch.randn(2, 6, 9), torch.randn(2, 6, 9), torch.randn(9)
    how = {"teacher_temp": 0.04, "student_temp": 0.1}
    pairs = [loss_fn(teacher[g], student[1 - g], centers=centre, **how) for g in (0, 1)]
    ours = views.dino_loss(student, teacher, centre)
    assert abs(ours - sum(pairs) / 2) < 1e-5 * ours


def test_no_view_is_compared_with_itself():
    student, teacher = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    alone = views.dino_loss(student[:2], teacher, torch.zeros(5))
    for g in (0, 1):  # change view g of the teacher, and of the student: their own pair must not count
        moved = teacher.clone()
        moved[g] = student[g] * 9
        pair = -(moved[g].div(0.04).softmax(-1) * student[1 - g].div(0.1).log_softmax(-1)).sum(-1).mean()
        rest = -(moved[1 - g].div(0.04).softmax(-1) * student[g].div(0.1).log_softmax(-1)).sum(-1).mean()
        assert abs(views.dino_loss(student[:2], moved, torch.zeros(5)) - (pair + rest) / 2) < 1e-5
    assert views.dino_loss(student, teacher, torch.zeros(5)) != alone


def test_uniform_answers_cost_ln_k_and_the_teacher_gets_no_gradient():
    out = torch.zeros(2, 3, 4_096, requires_grad=True)
    loss = views.dino_loss(out, out, torch.zeros(4_096))
    assert f"{loss:.4f}" == "8.3178"
    teacher = torch.randn(2, 3, 7, requires_grad=True)
    views.dino_loss(torch.randn(2, 3, 7, requires_grad=True), teacher, torch.zeros(7)).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.full((6, 8), 1 / 8), "collapsed: uniform"),
        (F.one_hot(torch.full((6,), 3), 8).float(), "collapsed: one output"),
        (torch.tensor([0.5, 0.3, 0.2, 0, 0, 0, 0, 0]).expand(6, 8), "collapsed: one answer for all"),
        (F.one_hot(torch.arange(6), 8).float(), "alive"),
    ],
)
def test_each_collapse_is_told_from_the_entropies(rows, said):
    each, together = views.entropies(rows)
    assert each <= together + 1e-6 and views.verdict(each, together, 8) == said


def test_the_teacher_is_a_mean_of_students_and_only_after_a_step(digits):
    model = views.DINO(tiny(digits), K=16, views=views.Views(sides=(8, 4)), momentum=0.75)
    images = data.normalise(digits.train_images[:8], digits.mean, digits.std)
    before = [p.clone() for p in model.teacher.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), [*model.encoder.parameters(),
               *model.head.parameters()], strict=True))  # fmt: skip
    model.train()(images).backward()
    assert not model.teacher.training and all(p.grad is None for p in model.teacher.parameters())
    with torch.no_grad():
        for p in [*model.encoder.parameters(), *model.head.parameters()]:
            p.add_(1.0)
    model.after_step()
    moved = [new - old for new, old in zip(model.teacher.parameters(), before, strict=True)]
    assert all((m - 0.25).abs().max() < 1e-5 for m in moved)
    assert (model.centre - 0.1 * model.seen).abs().max() < 1e-6


# --- LeJEPA ---


def test_sigreg_is_that_of_vit_pytorch():
    from vit_pytorch.lejepa import sigreg_loss

    z = torch.randn(40, 6) * 1.7 + 0.3
    for seed in range(3):
        torch.manual_seed(seed)
        theirs = sigreg_loss(z, num_slices=64)
        torch.manual_seed(seed)
        assert abs(views.sigreg(z, slices=64) - theirs) < 1e-5 * theirs


def test_sigreg_tells_a_normal_cloud_from_a_point_and_from_a_line():
    torch.manual_seed(0)
    normal = torch.randn(2_000, 8)
    clouds = {"point": torch.zeros(2_000, 8), "line": normal[:, :1] * torch.ones(8), "wide": 3 * normal}
    good = views.sigreg(normal)
    assert all(views.sigreg(z) > 10 * good for z in clouds.values())


# --- views and the loop ---


def test_views_have_their_sizes_and_each_image_a_crop_of_its_own():
    torch.manual_seed(0)
    images = torch.rand(1, 3, 16, 16).expand(6, 3, 16, 16)
    found = views.Views(large=2, small=3, sides=(16, 8))(images)
    assert [tuple(v.shape) for v in found] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)] * 3
    assert not torch.allclose(found[0], found[1])
    crops = views.random_crops(images, 16, (0.2, 0.9))
    apart = [min((c - crops[0]).abs().max(), (c - crops[0].flip(2)).abs().max()) for c in crops[1:]]
    assert min(apart) > 1e-3  # not only mirrored


def test_a_whole_crop_is_the_image_or_its_mirror():
    torch.manual_seed(0)
    images = torch.rand(8, 1, 8, 8)
    for crop, image in zip(views.random_crops(images, 8, (1.0, 1.0)), images, strict=True):
        assert min((crop - image).abs().max(), (crop - image.flip(2)).abs().max()) < 1e-5


def test_views_of_one_size_go_through_together_and_come_back_in_order():
    found = [torch.full((2, 1, side, side), float(n)) for n, side in enumerate((4, 4, 2))]
    calls = []

    def model(x):
        calls.append(len(x))
        return x.mean(dim=(1, 2, 3))

    assert [a.tolist() for a in views.embed_views(model, found)] == [[0, 0], [1, 1], [2, 2]] and calls == [4, 2]


METHODS = {
    "mae": MAE,
    "dino": lambda vit: views.DINO(vit, K=16, views=views.Views(sides=(8, 4))),
    "lejepa": lambda vit: views.LeJEPA(vit, D=4, views=views.Views(sides=(8, 4))),
    "rotation": views.Rotation,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_without_labels_and_the_same_way_twice(digits, name, capsys):
    blind = replace(digits, train_labels=torch.zeros_like(digits.train_labels))
    runs = []
    for dataset in (digits, blind):
        torch.manual_seed(0)
        method = METHODS[name](tiny(digits))
        before = method.encoder.blocks[0].mlp.fc1.weight.clone()
        history = views.pretrain(method.eval(), dataset, 3, 1e-2, batch_size=16, every=3)
        runs.append([entry["loss"] for entry in history])
        assert not torch.equal(before, method.encoder.blocks[0].mlp.fc1.weight) and not method.training
    assert runs[0] == runs[1] and all(map(math.isfinite, runs[0]))
    assert capsys.readouterr().out.startswith("step    3  loss ")


@pytest.mark.parametrize("batch", [1, 65])
def test_a_batch_that_cannot_be_is_refused(digits, batch):
    with pytest.raises(ValueError, match="batch of 2 to 64"):
        views.pretrain(MAE(tiny(digits)), digits, 1, 1e-3, batch_size=batch)


def test_a_loss_that_is_not_finite_stops_the_run(digits):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images):
            return self.weight.sum() * math.nan

    with pytest.raises(FloatingPointError, match="step 1"):
        views.pretrain(Broken(), digits, 2, 1e-3, batch_size=16)


def test_an_epoch_whose_last_batch_is_one_longer_does_not_run_for_ever(digits):
    part = replace(digits, train_images=digits.train_images[:9], train_labels=digits.train_labels[:9])
    assert len(views.pretrain(MAE(tiny(digits)), part, 2, 1e-3, batch_size=8)) == 2
