"""The training loop: its schedule, its groups, what it does with NaN, with checkpoints, with averaging."""

import math
import warnings
from dataclasses import replace
from fractions import Fraction
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import vit_pytorch
from torch import nn
from torchvision import models
from torchvision.models import swin_transformer

from vitutils import data, distributed, train
from vitutils.models import ConvStem, DistilledViT, SmallCNN, ViT, ViTConfig, conversion, transformer
from vitutils.training import checkpoint, digests, evaluation, loop

DIGITS = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=1, num_heads=2)
SHORT = train.Recipe(epochs=3, batch_size=64, lr=2e-3)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").take(train=320, test=100)


def new_vit(seed=0):
    torch.manual_seed(seed)
    return ViT(DIGITS)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_it_learns_and_its_first_loss_is_ln_k(digits):
    model = new_vit()
    history = train.fit(model, digits, replace(SHORT, epochs=15, lr=5e-3))
    assert history.losses[0] == pytest.approx(math.log(10), abs=1e-5)
    assert history.accuracy > 0.6
    assert history.epochs[-1]["step"] == len(history.losses) == len(history.lrs) == len(history.grad_norms) == 75
    assert "15 epochs, 75 steps" in str(history)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(digits):
    first = new_vit()
    train.fit(first, digits, SHORT)
    second = new_vit()
    torch.rand(7)
    train.fit(second, digits, SHORT)
    assert same(weights_of(first), weights_of(second))
    other = new_vit()
    train.fit(other, digits, replace(SHORT, seed=1))
    assert not same(weights_of(first), weights_of(other))


def test_fit_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = new_vit()
    torch.manual_seed(5)
    train.fit(model, digits, replace(SHORT, epochs=1, mixup=0.5))
    assert torch.equal(torch.rand(3), expected)


def test_an_objective_gets_what_the_net_gave_and_saw_and_its_loss_is_the_one_that_is_lowered(digits):
    gave, saw, got = [], [], []

    def objective(outputs, images, labels, label_smoothing):
        got.append((outputs, images, labels, label_smoothing))
        return 3 * train.labels_alone(outputs, images, labels, label_smoothing)

    def watch(net, inputs, outputs):
        if net.training:
            saw.append(inputs[0])
            gave.append(outputs)

    model, plain = new_vit(), new_vit()
    model.register_forward_hook(watch)
    recipe = replace(SHORT, epochs=1, mixup=0.5, label_smoothing=0.1, augment=data.flip_shift(1), clip_grad=None)
    history = train.fit(model, digits, recipe, objective=objective)
    assert len(got) == len(gave) == 5
    assert all(given[0] is outputs for given, outputs in zip(got, gave, strict=True))
    assert all(torch.equal(given[1], images) for given, images in zip(got, saw, strict=True))
    assert all(given[2].shape == (64, 10) and given[3] == 0.1 for given in got)
    once = train.fit(plain, digits, recipe)
    assert history.losses[0] == pytest.approx(3 * once.losses[0], rel=1e-5)
    assert history.grad_norms[0] == pytest.approx(3 * once.grad_norms[0], rel=1e-4)
    assert history.epochs[0]["val_loss"] == pytest.approx(math.log(10), abs=0.2), "evaluation looks at the labels alone"


def test_without_an_objective_it_is_cross_entropy_with_smoothing():
    logits, labels = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    log_p = logits.log_softmax(dim=1)
    expected = -(0.8 * log_p[range(6), labels] + 0.2 * log_p.mean(dim=1)).mean()
    assert train.labels_alone(logits, None, labels, 0.2).item() == pytest.approx(expected.item(), rel=1e-5)
    assert train.labels_alone(logits, None, labels) == nn.functional.cross_entropy(logits, labels)


class Pair(nn.Linear):
    """A net that returns two logits in train mode."""

    def forward(self, images):
        logits = super().forward(images.flatten(1))
        return (logits, logits) if self.training else logits


def test_a_net_that_returns_a_pair_needs_an_objective_that_takes_it(digits):
    with pytest.raises(ValueError, match=r"expected logits \(B, K\), got a tuple: pass an objective that accepts it"):
        train.fit(Pair(64, 10), digits, SHORT)
    second = train.fit(Pair(64, 10), digits, SHORT, objective=lambda pair, *rest: train.labels_alone(pair[1], *rest))
    assert second.losses[-1] < second.losses[0]


def test_a_checkpoint_keeps_the_numbers_of_an_objective_that_has_any(digits, tmp_path):
    class Doubled:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, *given):
            return self.factor * train.labels_alone(*given)

        def numbers(self):
            return {"factor": self.factor}

    path, recipe = tmp_path / "run.pt", replace(SHORT, epochs=1)
    assert checkpoint.described(recipe, train.labels_alone) == recipe.numbers()
    train.fit(new_vit(), digits, recipe, objective=Doubled(2), checkpoint=path)
    with pytest.raises(ValueError, match=r"another recipe \(factor: 2 then, 3 now\): delete it or change back"):
        train.fit(new_vit(), digits, recipe, objective=Doubled(3), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"another recipe \(factor: 2 then, None now; objective: .*Doubled then"):
        train.fit(new_vit(), digits, recipe, checkpoint=path, resume=True)
    train.fit(new_vit(), digits, recipe, checkpoint=path)
    with pytest.raises(ValueError, match=r"another recipe \(factor: None then, 3 now; objective: None then, .*Doubled"):
        train.fit(new_vit(), digits, recipe, objective=Doubled(3), checkpoint=path, resume=True)


class Killed(Exception):
    """Stands for the kill of a process between two steps."""


def killing(after):
    """An augmentation that raises on its `after`-th batch."""
    seen = []

    @wraps(data.flip_shift(1))  # for a checkpoint it is what it wraps
    def augment(images):
        seen.append(1)
        if len(seen) > after:
            raise Killed
        return data.flip_shift(1)(images)

    return augment


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_a_killed_run_resumes_to_the_same_weights_to_the_bit(digits, tmp_path, muon_lr):
    how = {"mixup": 0.2, "cutmix": 0.5, "ema_decay": 0.9, "muon_lr": muon_lr}
    recipe = replace(SHORT, epochs=4, augment=data.flip_shift(1), **how)
    undisturbed = new_vit()
    whole = train.fit(undisturbed, digits, recipe)

    path = tmp_path / "run.pt"
    with pytest.raises(Killed):  # in the middle of the third epoch: 5 batches an epoch
        train.fit(new_vit(), digits, replace(recipe, augment=killing(12)), checkpoint=path)
    resumed = new_vit(seed=9)  # what it starts from must not matter
    history = train.fit(resumed, digits, recipe, checkpoint=path, resume=True)
    assert same(weights_of(undisturbed), weights_of(resumed))
    assert history.losses == whole.losses
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_resuming_a_finished_run_trains_no_further(digits, tmp_path):
    path = tmp_path / "run.pt"
    first, again = new_vit(), new_vit(seed=3)
    train.fit(first, digits, SHORT, checkpoint=path)
    history = train.fit(again, digits, SHORT, checkpoint=path, resume=True)
    assert same(weights_of(first), weights_of(again)) and len(history.losses) == 15


def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_refused(digits, tmp_path):
    path = tmp_path / "run.pt"
    train.fit(new_vit(), digits, replace(SHORT, epochs=1), checkpoint=path)
    with pytest.raises(ValueError, match=r"another recipe \(lr: 0\.002 then, 0\.001 now"):
        train.fit(new_vit(), digits, replace(SHORT, epochs=1, lr=1e-3), checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a checkpoint of this loop"):
        train.fit(new_vit(), digits, replace(SHORT, epochs=1), checkpoint=path, resume=True)


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    train.save_checkpoint(path, value=1)

    def full_disk(parts, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        train.save_checkpoint(path, value=2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    assert torch.load(path, weights_only=True) == {"value": 1}


@pytest.mark.parametrize("bad_step", [1, 8])
def test_a_loss_that_is_not_finite_stops_with_its_step(digits, bad_step):
    calls = []

    def poison(images):
        calls.append(1)
        return images.float() * (float("nan") if len(calls) == bad_step else 1 / 255)

    with pytest.raises(FloatingPointError, match=rf"nan at step {bad_step}, learning rate .*Lower the learning rate"):
        train.fit(new_vit(), digits, replace(SHORT, augment=poison))


def test_decay_falls_on_matrices_alone():
    model = ViT(replace(DIGITS, global_pool="token"))
    decay, keep = train.parameter_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    kept = {names[id(p)] for p in keep["params"]}
    decayed = {names[id(p)] for p in decay["params"]}
    assert decayed == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= kept
    assert len(kept) + len(decayed) == len(names)
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.05, 0.0)


def grouped(model):
    """Names of the parameters that decay, and of those with two sides or more that do not."""
    names = {id(p): name for name, p in model.named_parameters()}
    decay, keep = train.parameter_groups(model, 0.05)
    assert len(decay["params"]) + len(keep["params"]) == len(names)
    return (
        {names[id(p)] for p in decay["params"]},
        {names[id(p)] for p in keep["params"] if p.ndim > 1},
    )


SMALL = dict(image_size=32, patch_size=16, num_classes=4, dim=32, depth=1, heads=2, mlp_dim=32)
TINY, WINDOWS = dict(img_size=32, embed_dim=32, depth=1, num_heads=2), ([4, 4], 16, [1, 1], [1, 2], [8, 8])
V2 = dict(block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2)
TIMMS = dict(img_size=56, embed_dim=16, depths=(1, 1), num_heads=(1, 2))
# how to make a net, and which of its parameters of two sides or more do not decay
NETS = {
    "timm ViT with registers": (
        lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **TINY | {"img_size": 28}),
        {"cls_token", "reg_token", "pos_embed"},
    ),
    "timm BEiT": (
        lambda: timm.create_model("beit_base_patch16_224", **TINY),
        {"cls_token", "blocks.0.attn.relative_position_bias_table"},
    ),
    "timm DeiT": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", **TINY),
        {"cls_token", "dist_token", "pos_embed"},
    ),
    "timm Swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", **TIMMS),
        {f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in (0, 1)},
    ),
    "torchvision ViT": (
        lambda: models.VisionTransformer(32, 16, 1, 2, 32, 64),
        {"class_token", "encoder.pos_embedding"},
    ),
    "torchvision Swin V2": (
        lambda: models.SwinTransformer(*WINDOWS, **V2),
        {f"features.{i}.0.attn.logit_scale" for i in (1, 3)},
    ),
    "torchvision ConvNeXt": (
        lambda: models.ConvNeXt([models.convnext.CNBlockConfig(16, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]),
        {"features.1.0.layer_scale", "features.3.0.layer_scale"},
    ),
    "vit-pytorch ViT": (lambda: vit_pytorch.ViT(**SMALL), {"cls_token", "pos_embedding"}),
}


@pytest.mark.parametrize("name", NETS)
def test_every_librarys_tokens_positions_tables_and_scales_do_not_decay(name):
    make, apart = NETS[name]
    model = make()
    decay, keep = grouped(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.MultiheadAttention)}
    assert keep == apart
    own = {f"{n}.{p}" for n, m in layers.items() for p, v in m.named_parameters(recurse=False) if v.ndim > 1}
    assert decay == own and len(decay) >= 3


class HomeMade(nn.Module):
    """Parameters by every name but the usual ones: their shapes and their owners tell what they are."""

    def __init__(self):
        super().__init__()
        self.summary, self.places = nn.Parameter(torch.zeros(1, 4, 8)), nn.Parameter(torch.zeros(5, 8))
        self.nearness, self.sharpness = nn.Parameter(torch.zeros(9, 2)), nn.Parameter(torch.zeros(2, 1, 1))
        self.layer, self.one, self.filters = nn.Linear(8, 8), nn.Linear(8, 1), nn.Conv2d(3, 1, 1)
        self.table, self.norm = nn.Embedding(5, 8), nn.LayerNorm((8, 4, 4))
        self.root, self.wide = nn.RMSNorm((8, 4)), nn.Conv1d(8, 8, 3)
        self.attention, self.memory = nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.GRU(8, 8)
        self.pair, self.own = nn.Bilinear(4, 4, 2), Own((6, 8))
        self.scale, self.tied = Own((1, 8, 1, 1)), nn.Linear(8, 5, bias=False)
        self.tied.weight = self.table.weight


class Own(nn.Module):
    """A layer of somebody's own with a `weight`."""

    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def test_shape_and_owner_tell_what_decays():
    decay, keep = grouped(HomeMade())
    assert keep == {
        "summary", "places", "nearness", "sharpness", "table.weight", "norm.weight", "norm.bias", "root.weight",
        "attention.bias_k", "attention.bias_v", "scale.weight",
    }  # fmt: skip
    assert decay == {
        "layer.weight", "one.weight", "filters.weight", "wide.weight", "attention.in_proj_weight",
        "attention.out_proj.weight", "memory.weight_ih_l0", "memory.weight_hh_l0", "pair.weight", "own.weight",
    }  # fmt: skip
    assert train.parameter_groups(nn.ReLU(), 0.1)[0]["params"] == []


@pytest.mark.parametrize("name", ["ViT", "DistilledViT", "stem", "norms", "SmallCNN"])
def test_the_books_own_nets_have_the_groups_they_were_trained_with(name):
    config = replace(DIGITS, global_pool="token")
    make = {
        "ViT": lambda: ViT(DIGITS),
        "DistilledViT": lambda: DistilledViT(config),
        "stem": lambda: ViT(config, ConvStem),
        "norms": lambda: ViT(config, conversion.VitPytorchPatchEmbed),
        "SmallCNN": lambda: SmallCNN(1, 10, (8, 16)),
    }
    model, before = make[name](), ([], [])
    for full, parameter in model.named_parameters():
        last = full.rpartition(".")[2]
        before[parameter.ndim < 2 or "token" in last or "pos_embed" in last].append(parameter)
    now = [group["params"] for group in train.parameter_groups(model, 0.05)]
    assert all([*map(id, old)] == [*map(id, new)] for old, new in zip(before, now, strict=True)), "in the same order"


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_schedule_rises_linearly_to_its_peak_and_falls_as_a_cosine(warmup):
    steps, peak = 200, 3e-3
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = train.make_schedule(optimizer, steps, warmup)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    rising = round(warmup * steps)
    for step, rate in enumerate(rates):
        if step < rising:
            expected = peak * (1 / rising + (1 - 1 / rising) * step / (rising - 1))
        else:
            expected = peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        assert rate == pytest.approx(expected, rel=1e-6), step
    assert max(rates) == pytest.approx(peak)


def test_fit_moves_the_rate_after_every_step(digits):
    history = train.fit(new_vit(), digits, replace(SHORT, epochs=4, warmup=0.2))
    assert max(history.lrs) == pytest.approx(SHORT.lr) == history.lrs[3]
    assert history.lrs[0] == pytest.approx(SHORT.lr / 4) and history.lrs[-1] < 0.02 * SHORT.lr


def test_no_pickle_in_a_checkpoint_is_executed(digits, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "run.pt"
    torch.save({"recipe": Trap()}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this loop"):
        train.fit(new_vit(), digits, SHORT, checkpoint=path, resume=True)
    assert not (tmp_path / "executed").exists()


def test_clipping_bounds_the_update_and_reports_the_norm_before(digits):
    history = train.fit(new_vit(), digits, replace(SHORT, epochs=1, clip_grad=1e-3))
    assert min(history.grad_norms) > 1e-3  # the norm before clipping is what is kept
    model = new_vit()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert torch.stack([p.grad.norm() for p in model.parameters()]).norm() <= 1.001e-3


def test_averaged_weights_are_what_is_returned(digits):
    recipe = replace(SHORT, epochs=1, ema_decay=0.999)
    start, plain, averaged = weights_of(new_vit()), new_vit(), new_vit()
    train.fit(plain, digits, replace(recipe, ema_decay=None))
    train.fit(averaged, digits, recipe)
    far = (plain.norm.weight - start["norm.weight"]).norm()
    near = (averaged.norm.weight - start["norm.weight"]).norm()
    assert 0 < near < 0.1 * far


def test_evaluate_takes_the_test_part_of_a_data_set(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    parts = digits.test_images, digits.test_labels
    same = train.evaluate(model, *parts, mean=digits.mean, std=digits.std)
    assert torch.equal(train.evaluate(model, digits).logits, same.logits)
    with pytest.raises(ValueError, match="only a Dataset"):
        train.evaluate(model, digits, parts[1])
    with pytest.raises(ValueError, match="expected a Dataset, or images with labels"):
        train.evaluate(model, *parts)


def test_evaluate_agrees_with_a_plain_loop_and_puts_the_mode_back(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    result = train.evaluate(model, digits.test_images, digits.test_labels, mean=digits.mean, std=digits.std)
    assert model.training
    x = (digits.test_images / 255 - digits.mean.view(1, -1, 1, 1)) / digits.std.view(1, -1, 1, 1)
    with torch.no_grad():
        logits = model.eval()(x)
    assert torch.allclose(result.logits, logits, atol=1e-5)
    assert result.accuracy == pytest.approx((logits.argmax(1) == digits.test_labels).float().mean().item())
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, digits.test_labels).item(), rel=1e-4)


class Halves(nn.Module):
    """A net with a frozen BatchNorm, a layer that acts on its mode as LoRA layers do, and a table that it keeps."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.told = nn.BatchNorm2d(1), nn.Linear(64, 10), []
        self.drop = nn.Dropout(0.5)
        self.norm.eval()
        self.table = None

    def train(self, mode=True):
        self.told.append(mode)
        return super().train(mode)

    def forward(self, images):
        if self.table is None or len(self.table) < len(images):
            self.table = torch.arange(float(len(images)))[:, None] / 1000
        if images.isnan().any():
            raise Killed
        return self.drop(self.layer(self.norm(images).flatten(1))) * (1 + self.table[: len(images)])


def own_modes(model):
    return [module.training for module in model.modules()]


def test_evaluate_puts_every_modules_own_mode_back_after_an_error_too(digits):
    model, how = Halves(), {"mean": digits.mean, "std": digits.std}
    before = own_modes(model)
    assert before == [True, False, True, True]
    train.evaluate(model, digits.test_images, digits.test_labels, **how)
    assert own_modes(model) == before and model.told == [False, True], "switched by train(), not by the flag alone"
    with pytest.raises(Killed):
        train.evaluate(model, digits.test_images / float("nan"), digits.test_labels, **how)
    assert own_modes(model) == before
    model.eval()
    train.evaluate(model, digits.test_images, digits.test_labels, **how)
    assert not any(own_modes(model))


def test_what_a_net_keeps_while_it_is_evaluated_can_be_trained_with(digits):
    model = Halves()
    result = train.evaluate(model, digits.test_images, digits.test_labels, mean=digits.mean, std=digits.std)
    assert not model.table.is_inference() and not result.logits.requires_grad
    train.fit(model, digits, replace(SHORT, epochs=1))
    fresh = Halves()
    transformer.accuracy(fresh, torch.zeros(2, 1, 8, 8), torch.zeros(2))
    assert not fresh.table.is_inference()


def test_fit_trains_what_was_in_train_mode_and_puts_every_mode_back(digits):
    model, seen = Halves(), []
    before, running = own_modes(model), model.norm.running_mean.clone()
    model.layer.register_forward_pre_hook(lambda *_: seen.append(own_modes(model)))

    def careless(epoch):
        model.eval()

    train.fit(model, digits, replace(SHORT, epochs=2), report=careless)
    assert seen[0] == seen[6] == before and seen[5] == [False] * 4, "5 steps, an evaluation, 5 steps, an evaluation"
    assert own_modes(model) == before and torch.equal(model.norm.running_mean, running)

    thawed = Halves().eval()
    train.fit(thawed, digits, replace(SHORT, epochs=1))
    assert not any(own_modes(thawed)) and thawed.norm.running_mean.any(), "of a model in eval mode all is trained"

    def stop(images):
        model.eval()
        raise Killed

    with pytest.raises(Killed):
        train.fit(model, digits, replace(SHORT, augment=stop))
    assert own_modes(model) == before


def overflowing(monkeypatch, scale=2.0**127):
    """Let `fit` scale its loss as on a GPU with float16, and so much that the first gradients overflow."""
    made = []

    def make(device):
        made.append(torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000))
        return made[-1]

    monkeypatch.setattr(loop, "make_scaler", make)
    return made


def test_a_step_that_the_scaler_skips_moves_nothing(digits, monkeypatch):
    recipe = replace(SHORT, epochs=2, warmup=0.3, ema_decay=0.9, clip_grad=None)
    overflowing(monkeypatch)
    moved, models = [], [new_vit(), new_vit()]
    averaged = loop.AveragedModel.update_parameters
    monkeypatch.setattr(loop.AveragedModel, "update_parameters", lambda *a: (moved.append(1), averaged(*a))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where the schedule moves before the optimizer
        history = train.fit(models[0], digits, recipe, objective=lambda *given: 16 * train.labels_alone(*given))
    taken = [math.isfinite(norm) for norm in history.grad_norms]
    assert 2 <= taken.count(False) < 9 and not taken[0] and len(history.lrs) == len(history.losses) == 10
    assert len(moved) == sum(taken) and history.losses[0] == pytest.approx(16 * math.log(10))
    first = taken.index(True)
    assert history.losses[first] == pytest.approx(16 * math.log(10)) != history.losses[first + 1], "weights moved too"
    monkeypatch.undo()
    calm = train.fit(models[1], digits, recipe).lrs
    assert history.lrs == [calm[sum(taken[:step])] for step in range(10)]


def test_a_run_that_skipped_steps_goes_on_to_the_same_weights(digits, tmp_path, monkeypatch):
    recipe, path = replace(SHORT, epochs=3, ema_decay=0.9, augment=data.flip_shift(1)), tmp_path / "run.pt"
    overflowing(monkeypatch)
    whole, resumed = new_vit(), new_vit(seed=4)
    history = train.fit(whole, digits, recipe)
    with pytest.raises(Killed):
        train.fit(new_vit(), digits, replace(recipe, augment=killing(7)), checkpoint=path)
    again = train.fit(resumed, digits, recipe, checkpoint=path, resume=True)
    assert same(weights_of(whole), weights_of(resumed)) and again.lrs == history.lrs
    monkeypatch.undo()  # a GPU's checkpoint on a CPU and the other way round: scaling begins anew, or ends
    longer = replace(recipe, epochs=3)
    train.fit(new_vit(), digits, longer, checkpoint=path, resume=True)
    train.fit(new_vit(), digits, longer, checkpoint=path)
    overflowing(monkeypatch, 2.0)
    assert len(train.fit(new_vit(), digits, longer, checkpoint=path, resume=True).losses) == 15


@pytest.mark.parametrize(
    ("device", "bf16", "half"),
    [("cuda", False, torch.float16), ("cuda", True, torch.bfloat16), ("cpu", False, None)],
)
def test_the_loss_is_scaled_where_half_precision_is_float16(device, bf16, half, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    asked = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: asked.append((device, enabled)))
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: asked.append((device, dtype)))
    train.make_scaler(torch.device(device))
    train.autocast(torch.device(device))
    assert asked == [(device, half == torch.float16)] + ([(device, half)] if half else [])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_trains_as_full_precision_does(digits, half, monkeypatch):
    """What a GPU does, on this CPU: layers in half, the loss scaled for float16; weights, losses, answers in full."""
    made, net, plain, seen = [], new_vit(), new_vit(), []
    with monkeypatch.context() as patch:
        for module in (loop, evaluation):
            patch.setattr(module, "autocast", lambda device: torch.autocast("cpu", dtype=half))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=half == torch.float16)
        patch.setattr(loop, "make_scaler", lambda device: made.append(scaler) or scaler)
        net.blocks[0].mlp.fc1.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
        history = train.fit(net, digits, SHORT)
        answer = train.evaluate(net, digits.test_images, digits.test_labels, mean=digits.mean, std=digits.std)
    assert made and {*seen} == {half} and answer.logits.dtype == torch.float32
    full = train.fit(plain, digits, SHORT)
    assert history.losses == pytest.approx(full.losses, abs=0.03) and history.losses != full.losses
    assert history.grad_norms == pytest.approx(full.grad_norms, rel=0.1), "unscaled before they are clipped"
    assert {p.dtype for p in net.parameters()} == {torch.float32}


INF, NAN = float("inf"), float("nan")
WRONG = {
    "epochs": [0, -1, 2.5, INF, NAN, None, "3", True, np.float64(0.5), torch.tensor([2, 3])],
    "batch_size": [0, -8, 1.5, NAN, None, "64"],
    "lr": [-1e-3, 0, INF, NAN, None, "1e-3", 1j],
    "muon_lr": [-1e-3, 0, INF, NAN, "1e-3"],
    "weight_decay": [-0.1, INF, NAN, None],
    "warmup": [-0.1, 1.1, NAN, INF, None],
    "clip_grad": [0, 0.0, -1.0, NAN, -INF, "1"],
    "label_smoothing": [-0.1, 2.0, NAN, INF, None],
    "mixup": [-0.2, NAN, INF, None],
    "cutmix": [-0.2, NAN, INF, None],
    "ema_decay": [1, 1.0, -0.1, NAN, INF, "0.9"],
    "seed": [0.5, 2**70, NAN, None],
    "schedule": ["linear", None, 3],
    "augment": ["flip", 3],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_recipe_that_cannot_be_meant_is_refused_in_one_line(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=f"^{name} must be .*, got ") as refused:
            train.Recipe(**{name: value})
        assert "\n" not in str(refused.value)


def test_the_ends_of_the_limits_are_allowed():
    train.Recipe(epochs=1, batch_size=1, warmup=0, label_smoothing=1, mixup=0, weight_decay=0, ema_decay=0)
    train.Recipe(seed=-(2**32))
    train.Recipe(clip_grad=None, ema_decay=None, muon_lr=None, warmup=1)
    assert train.Recipe(clip_grad=INF).clip_grad == INF


def test_numbers_of_other_libraries_become_pythons_and_a_checkpoint_holds_them(digits, tmp_path):
    strange = train.Recipe(
        epochs=np.int64(1), batch_size=torch.tensor(64), lr=np.float64(2e-3), weight_decay=np.float32(0.5),
        warmup=Fraction(1, 4), clip_grad=np.array(1.0), label_smoothing=torch.tensor(0.25), mixup=np.int32(0),
        ema_decay=np.float16(0.5), muon_lr=np.float32(0.5), seed=np.uint8(3), schedule=np.str_("cosine"),
    )  # fmt: skip
    numbers = strange.numbers()
    assert {type(value) for value in numbers.values()} == {int, float, str}
    assert (numbers["epochs"], numbers["lr"], numbers["warmup"], numbers["seed"]) == (1, 2e-3, 0.25, 3)
    assert train.Recipe(epochs=3.0).epochs == 3 and type(train.Recipe(epochs=3.0).epochs) is int

    class Weighed:
        """An objective whose own numbers are NumPy's and torch's."""

        def __init__(self, factor):
            self.factor = factor

        def __call__(self, *given):
            return float(self.factor) * train.labels_alone(*given)

        def numbers(self):
            return {"factor": self.factor}

    path = tmp_path / "run.pt"
    for factor in (np.float64(2), torch.tensor(2.0)):
        train.fit(new_vit(), digits, strange, objective=Weighed(factor), checkpoint=path)
        again = train.fit(new_vit(), digits, strange, objective=Weighed(2), checkpoint=path, resume=True)
        assert len(again.losses) == 5
    with pytest.raises(ValueError, match=r"Weighed.numbers\(\) may hold numbers and words, got factor: \[1, 2\]"):
        train.fit(new_vit(), digits, strange, objective=Weighed([1, 2]), checkpoint=path)


def test_a_single_last_image_joins_the_batch_before_it(digits):
    """BatchNorm cannot train on one image of one position."""
    sizes = {(1, 8): [1], (8, 8): [8], (9, 8): [9], (10, 8): [8, 2], (16, 8): [8, 8], (17, 8): [8, 9], (3, 2): [3]}
    sizes |= {(3, 1): [1, 1, 1], (0, 4): []}
    assert {given: data.batch_sizes(*given) for given in sizes} == sizes
    part, shapes = digits.take(train=65, test=20), []
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    net.register_forward_pre_hook(lambda net, x: shapes.append(len(x[0])) if net.training else None)
    history = train.fit(net, part, train.Recipe(epochs=3, batch_size=32, lr=2e-3))
    assert shapes == [32, 33] * 3 and len(history.losses) == 6
    assert history.lrs == train.fit(new_vit(), digits.take(train=64, test=20), train.Recipe(3, 32, 2e-3)).lrs
    seen = torch.cat([y for _, y in data.batches(part.train_images, torch.arange(65), 32, seed=1)])
    assert sorted(seen.tolist()) == list(range(65)), "every image once"
    order = [len(y) for _, y in data.batches(part.train_images, part.train_labels, 32, seed=None)]
    assert order == [32, 32, 1], "in order, for evaluation, nothing joins"


def test_a_digest_stands_for_every_value_and_not_for_how_it_lies_in_memory():
    image = torch.rand(2, 3, 4, 4)
    state = {"a": image, "none": torch.zeros(0, 3), "one": torch.tensor(True), "steps": torch.tensor(3), "extra": [1]}
    lies = state | {"a": image.to(memory_format=torch.channels_last), "steps": torch.tensor([9, 3])[1]}
    assert digests.digest(state) == digests.digest(lies) and len(digests.digest(state)) == 16
    others = [
        {"a": image.flip(0)}, {"a": image.double()}, {"a": image.reshape(2, 3, 16)}, {"none": torch.zeros(0, 2)},
        {"one": torch.tensor(False)}, {"steps": torch.tensor(4)}, {"extra": [2]}, {"more": torch.zeros(0)},
    ]  # fmt: skip
    assert len({digests.digest(state | other) for other in others} | {digests.digest(state)}) == 9


def changed(dataset, name):
    """The data with one value of one tensor moved by the least there is, or one image fewer."""
    value = getattr(dataset, name).clone()
    value.view(-1)[-1] = (value.view(-1)[-1] + 1) % 10 if not value.is_floating_point() else value.view(-1)[-1] + 1e-6
    return replace(dataset, **{name: value})


def test_a_run_goes_on_with_the_same_images_and_labels_alone(digits, tmp_path):
    path, recipe = tmp_path / "run.pt", replace(SHORT, epochs=1)
    train.fit(new_vit(), digits, recipe, checkpoint=path)
    for name in ("train_images", "train_labels", "test_images", "test_labels", "mean", "std"):
        model = new_vit(seed=8)
        before = weights_of(model)
        with pytest.raises(ValueError, match=r"with other images or labels \(digest: \w+ then, \w+ now\): delete it"):
            train.fit(model, changed(digits, name), recipe, checkpoint=path, resume=True)
        assert same(weights_of(model), before), name
    with pytest.raises(ValueError, match="images to train on: 320 then, 300 now; digest"):
        train.fit(new_vit(), digits.take(train=300), recipe, checkpoint=path, resume=True)
    copied = replace(digits, train_images=digits.train_images.clone(), name="copied", source="elsewhere")
    assert len(train.fit(new_vit(), copied, recipe, checkpoint=path, resume=True).losses) == 5


def test_processes_with_other_data_are_refused(digits, tmp_path, monkeypatch):
    def gather(value):
        if not isinstance(value, dict):
            return [value, value]
        return [value, value | {"data": checkpoint.described_data(changed(digits, "train_labels"))}]

    monkeypatch.setattr(distributed, "gather", gather)
    with pytest.raises(ValueError, match=r"not given the same \(digest: \w+ rank 1, \w+ rank 0\)"):
        train.fit(new_vit(), digits, SHORT, checkpoint=tmp_path / "run.pt")


def test_a_checkpoint_is_called_damaged_only_where_it_is(digits, tmp_path, monkeypatch):
    path, recipe = tmp_path / "run.pt", replace(SHORT, epochs=1)
    train.fit(new_vit(), digits, recipe, checkpoint=path)
    whole = path.read_bytes()

    def refused(kind=ValueError):
        with pytest.raises(kind) as error:
            train.fit(new_vit(), digits, recipe, checkpoint=path, resume=True)
        return str(error.value)

    for damage in (b"", b"text", whole[:-100], whole[:5000] + b"0000" + whole[5004:]):
        path.write_bytes(damage)
        assert "is not a checkpoint of this loop, or was cut off" in (told := refused()) and "delete it" in told
    path.write_bytes(whole)
    state = torch.load(path, weights_only=True)
    torch.save(new_vit().state_dict(), path)
    assert refused().endswith("another file of torch's: name another file")
    torch.save([1, 2], path)
    assert refused().endswith("another file of torch's: name another file")
    torch.save(state | {"recipe": state["recipe"] | {"lr": np.float64(2e-3)}}, path)
    assert "it holds objects, not only numbers" in (told := refused()) and "delete" not in told
    torch.save({name: part for name, part in state.items() if name != "data"}, path)
    assert "an older version of this loop" in refused()
    path.write_bytes(whole)
    for error in (PermissionError("not yours"), MemoryError("full"), torch.OutOfMemoryError("full")):
        monkeypatch.setattr(torch, "load", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        assert refused(type(error)) == str(error)
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a format of tomorrow")))
    assert "is whole, but torch" in (told := refused()) and "a format of tomorrow" in told and "delete" not in told


def test_a_checkpoint_of_another_net_leaves_the_model_as_it_was(digits, tmp_path):
    path, recipe = tmp_path / "run.pt", replace(SHORT, epochs=1)
    train.fit(new_vit(), digits, recipe, checkpoint=path)
    other = ViT(replace(DIGITS, mlp_ratio=2.0))  # most of its weights have the same shapes
    before = weights_of(other)
    with pytest.raises(ValueError, match="was written for another net"):
        train.fit(other, digits, recipe, checkpoint=path, resume=True)
    assert same(before, weights_of(other))


def test_mixing_is_per_recipe():
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    unchanged, same_labels = train.make_mixing(SHORT, 10)(images, labels)
    assert unchanged is images and same_labels is labels
    torch.manual_seed(0)
    _, soft = train.make_mixing(replace(SHORT, mixup=0.8, cutmix=1.0), 10)(images, labels)
    assert soft.shape == (8, 10) and torch.allclose(soft.sum(1), torch.ones(8))
    assert ((soft > 0).sum(1) == 2).any()


def test_no_progress_bar_where_nobody_watches(digits, capfd):
    train.fit(new_vit(), digits, replace(SHORT, epochs=1))
    out, err = capfd.readouterr()
    assert out == "" and err == ""
