"""Fine-tuning: rates by layer, adapters that are reached, a loop that goes on from its checkpoint."""

from dataclasses import replace

import pytest
import timm
import timm.optim
import torch
from torch import nn
from torchvision.models import VisionTransformer

from vitutils import data
from vitutils.analysis import photo_model as pm
from vitutils.models import ViT, ViTConfig
from vitutils.models.backbones import load_backbone
from vitutils.training.finetune import add_lora, fine_tune, layer_groups, photo_augmentation, unreached
from vitutils.training.recipe import Recipe

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2}
OURS = ViTConfig(num_classes=0, **SMALL)
RECIPE = Recipe(epochs=3, batch_size=8, lr=1e-2)


def timms(**more):
    return timm.models.VisionTransformer(num_classes=0, **(SMALL | more))


def few(count: int = 20, side: int = 32) -> data.Dataset:
    """Bright and dark pictures."""
    labels = torch.arange(count) % 2
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (count, 3, side, side), generator=generator) + 120 * labels[:, None, None, None]
    half = torch.full((3,), 0.5)
    parts = {"train_images": images.byte(), "train_labels": labels, "test_images": images.byte(), "test_labels": labels}
    return data.Dataset(name="few", **parts, classes=("dark", "bright"), mean=half, std=half, source="drawn")


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(ViT(OURS), nn.Linear(16, 2))


@pytest.mark.parametrize("net", [ViT(OURS), timms()], ids=["ours", "timm"])
def test_the_rates_are_those_of_timm(net):
    """timm's own function, on its network, gives the scales; the head stands one layer above the last norm."""
    head = nn.Linear(16, 2)
    groups = layer_groups(net, head, lr=2.0, decay=0.5, weight_decay=0.1)
    rate = {p: group["lr"] for group in groups for p in group["params"]}
    whole = timm.models.VisionTransformer(num_classes=2, **SMALL)
    timms_own = timm.optim.param_groups_layer_decay(whole, layer_decay=0.5)
    scale = {p: group["lr_scale"] for group in timms_own for p in group["params"]}
    expected = {name: 2.0 * scale[p] for name, p in whole.named_parameters() if not name.startswith("head")}
    assert {name: rate[p] for name, p in net.named_parameters()} == expected
    assert {rate[p] for p in head.parameters()} == {2.0}
    decays = {group["weight_decay"] for group in groups if any(p is head.weight for p in group["params"])}
    assert decays == {0.1} and all(g["weight_decay"] == 0 for g in groups if any(p is head.bias for p in g["params"]))


def test_frozen_parameters_are_in_no_group():
    net = ViT(OURS)
    net.blocks[0].requires_grad_(False)
    held = {p for group in layer_groups(net, nn.Linear(16, 2), 1.0) for p in group["params"]}
    assert not held & set(net.blocks[0].parameters()) and held >= set(net.blocks[1].parameters())


def test_a_network_whose_layers_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="no layers of a Sequential"):
        layer_groups(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2), 1.0)


@pytest.mark.parametrize("net", [ViT(OURS), timms()], ids=["ours", "timm"])
def test_an_adapter_begins_as_nothing_is_trained_alone_and_can_be_merged(net):
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = net(image).detach()
    names = {name for name, _ in net.named_parameters()}
    adapted = add_lora(net, 2, image[:1])
    assert torch.equal(net(image), before)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert len(trained) == 3 * 2 * 2 and all("attn" in name and "lora_" in name for name in trained)
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_()
    changed = net(image)
    assert not torch.allclose(changed, before, atol=1e-3)
    adapted.merge_and_unload()
    assert torch.allclose(net(image), changed, atol=1e-4)
    assert {name for name, _ in net.named_parameters()} == names


def test_a_network_that_computes_past_its_adapters_is_refused_and_left_as_it_was():
    net = timm.create_model("eva02_tiny_patch14_224", num_classes=0, depth=1, img_size=28)
    with pytest.raises(ValueError, match="2 adapters are no part of what a Eva computes"):
        add_lora(net, 2, torch.zeros(1, 3, 28, 28))
    assert not any("lora_" in name for name, _ in net.named_parameters())


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="[Tt]arget modules"):
        add_lora(timm.create_model("resnet10t"), 2, torch.zeros(1, 3, 32, 32))


def test_torchvisions_fused_attention_reads_past_an_adapter():
    """What chapter 15 shows: the day it no longer holds, the page has to change."""
    from peft import LoraConfig, get_peft_model

    net = VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=2)
    nn.init.normal_(net.heads.head.weight)
    get_peft_model(net, LoraConfig(r=2, target_modules=["out_proj", "mlp.0"]))
    missed = unreached(net, torch.randn(1, 3, 32, 32))
    assert len(missed) == 2 and all("out_proj" in name for name in missed)


def test_it_learns_and_the_rates_of_the_groups_are_kept():
    net = model()
    groups = layer_groups(net[0], net[1], 1e-2, decay=0.01)
    stem, head = net[0].patch_embed.proj.weight.detach().clone(), net[1].weight.detach().clone()
    history = fine_tune(net.eval(), few(), RECIPE, groups)
    assert history.accuracy == 1 and len(history.losses) == 3 * 3
    moved = (net[0].patch_embed.proj.weight - stem).abs().max(), (net[1].weight - head).abs().max()
    assert 0 < moved[0] < 1e-3 * moved[1]
    assert not net.training


def test_it_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path):
    whole, part, file = model(), model(), tmp_path / "run.pt"
    augmented = replace(RECIPE, augment=data.flip_shift(2))
    fine_tune(whole, few(), augmented)

    def stop(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(part, few(), augmented, checkpoint=file, report=stop)
    again = model(seed=1)
    history = fine_tune(again, few(), augmented, checkpoint=file)
    assert len(history.losses) == 9
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_other_rates_is_refused(tmp_path):
    net = model()
    fine_tune(net, few(), RECIPE, layer_groups(net[0], net[1], 1e-2, 0.5), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="another recipe"):
        fine_tune(net, few(), RECIPE, layer_groups(net[0], net[1], 1e-2, 0.9), checkpoint=tmp_path / "run.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mixup": 0.2}, "mixes no images"),
        ({"ema_decay": 0.9}, "averages no weights"),
        ({"muon_lr": 0.02}, "by AdamW, got muon_lr=0.02"),
    ],
)
def test_what_it_does_not_do_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        fine_tune(model(), few(), replace(RECIPE, **change))


def test_nothing_to_train_and_a_loss_that_is_not_finite_are_told():
    with pytest.raises(ValueError, match="all are frozen"):
        fine_tune(model().requires_grad_(False), few(), RECIPE)
    broken = model()
    nn.init.constant_(broken[1].bias, float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        fine_tune(broken, few(), RECIPE)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_augmentation_draws_once_an_image(channels):
    ramp = torch.arange(32).repeat(8, channels, 32, 1).byte()
    torch.manual_seed(0)
    found = photo_augmentation(32)(ramp)
    assert found.shape == ramp.shape and found.dtype == torch.uint8
    assert len(found.unique(dim=0)) == 8


def test_adapters_in_a_photo_model_leave_a_file_that_is_read_again(tmp_path):
    backbone = load_backbone("pocket")
    tuned = pm.PhotoModel(backbone, pm.LinearHead(64, 2), ("a", "b"))
    adapted = add_lora(backbone.net, 2, torch.zeros(1, *backbone.input_size))
    gray = few(side=28)
    gray = replace(gray, train_images=gray.train_images[:, :1], test_images=gray.test_images[:, :1])
    fine_tune(tuned, replace(gray, mean=gray.mean[:1], std=gray.std[:1]), replace(RECIPE, epochs=1))
    adapted.merge_and_unload()
    (tmp_path / "model.safetensors").write_bytes(pm.packed(tuned, {}))
    again, image = pm.load_photo_model(tmp_path), torch.randn(2, *backbone.input_size)
    assert torch.allclose(again(image), tuned.eval()(image), atol=1e-5)
