"""What was given and cannot be meant: refused in words, or taken as what it is; never a silent wrong answer."""

from dataclasses import replace
from functools import partial, wraps
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.transforms import v2

from vitutils import cli, data, train
from vitutils.analysis import interpret, probe
from vitutils.analysis.classifier import with_new_classifier, without_classifier
from vitutils.models.zoo import named_net
from vitutils.training.distill import Distillation

NAN = float("nan")
SHORT = train.Recipe(epochs=1, batch_size=64, lr=2e-3)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").take(train=128, test=50)


def linear(K=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, K))


class Gives(nn.Module):
    """A net that gives something of its own, made from its logits, in eval mode alone or always."""

    def __init__(self, change, always=True, K=10):
        super().__init__()
        self.inner, self.change, self.always = linear(K), change, always

    def forward(self, images):
        logits = self.inner(images)
        return self.change(logits) if self.always or not self.training else logits


# --- numbers to train with ---


def test_a_rate_may_be_any_librarys_number_and_stays_as_it_was(digits):
    plain = probe.train_steps(linear(), digits, steps=2, lr=float(torch.tensor(1e-2)))
    for lr in (torch.tensor(1e-2), np.float32(1e-2), np.array(1e-2, dtype=np.float32)):
        net = probe.train_steps(linear(), digits, steps=2, lr=lr)
        assert torch.equal(net[1].weight, plain[1].weight) and float(lr) == float(np.float32(1e-2))


@pytest.mark.parametrize("lr", ["a", True, NAN, -1, torch.tensor([1e-3, 1e-3]), 10**400], ids=range(6))
def test_a_rate_that_is_none_is_refused(digits, lr):
    with pytest.raises(ValueError, match="expected a learning rate above 0, got"):
        probe.train_steps(linear(), digits, steps=1, lr=lr)


HUGE = [{"epochs": 10**400}, {"batch_size": 10**5000}, {"lr": 10**400}, {"mixup": 10**400}]


@pytest.mark.parametrize("changes", HUGE, ids=range(4))
def test_numbers_too_large_to_be_meant_are_refused(changes):
    with pytest.raises(ValueError, match=f"^{[*changes][0]} must be .*, got .{{1,60}}$"):
        train.Recipe(**changes)


# --- what a net gives ---


def judged(net, part, labels=None):
    labels = part.test_labels if labels is None else labels
    return train.evaluate(net, part.test_images, labels, mean=part.mean, std=part.std)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_logits_that_are_not_finite_are_no_accuracy(digits, value):
    for rows in (slice(None), slice(3, 4)):

        def spoil(logits, rows=rows):
            logits = logits.clone()
            logits[rows] = value
            return logits

        count = len(range(50)[rows])
        with pytest.raises(FloatingPointError, match=rf"{count} of 50 images"):
            judged(Gives(spoil), digits)
        with pytest.raises(FloatingPointError, match=r"after step 2.*of 50 images"):
            train.fit(Gives(spoil, always=False), digits, SHORT)
    masked = Gives(lambda logits: logits.index_fill(1, torch.tensor([9]), -float("inf")))
    few = digits.test_labels != 9  # a class that is masked out is nobody's
    seen = train.evaluate(masked, digits.test_images[few], digits.test_labels[few], mean=digits.mean, std=digits.std)
    assert np.isfinite(seen.loss)


def test_a_run_whose_last_step_diverges_writes_no_weights(tmp_path, capsys):
    given = ["--data", "digits", "--net", "book/4", "--images", "40", "--batch-size", "40", "--epochs", "1"]
    with pytest.raises(SystemExit) as end:
        cli.main([*given, "--device", "cpu", "--lr", "1e30", "--warmup", "0", "--out", str(tmp_path)])
    told = capsys.readouterr()
    assert end.value.code == 1 and "error: the held-out loss is not finite after step 1" in told.err
    assert "accuracy" not in told.out and not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "run.pt").exists()


OUTPUTS = {
    "a tuple": (Gives(lambda x: (x, x), always=False), r"expected logits \(B, K\), got a tuple"),
    "a dict": (Gives(lambda x: {"logits": x}, always=False), "got a dict"),
    "an object": (Gives(lambda x: SimpleNamespace(logits=x), always=False), "got a SimpleNamespace"),
    "nothing": (Gives(lambda x: None, always=False), "got a NoneType"),
    "maps": (Gives(lambda x: x[:, :, None, None], always=False), r"got \(50, 10, 1, 1\)"),
    "few logits": (Gives(lambda x: x[:, :5], always=False), "classes from 0 to 4"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_no_logits_in_eval_mode_is_refused(digits, name):
    net, message = OUTPUTS[name]
    with pytest.raises(ValueError, match=message):
        judged(net, digits)
    with pytest.raises(ValueError, match=message):
        train.fit(net, digits, SHORT)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_what_is_no_logits_in_train_mode_is_refused(digits, mixup):
    for net, message in (
        (Gives(lambda x: x[:, :5]), r"expected logits \(B, 10\), got \(64, 5\)"),
        (Gives(lambda x: x[:, :, None, None]), r"expected logits \(B, 10\), got \(64, 10, 1, 1\)"),
        (Gives(lambda x: x[0]), r"expected logits \(B, 10\), got \(10,\)"),
        (Gives(lambda x: {"logits": x}), "got a dict"),
        (nn.Flatten(), "expected parameters to train, got none"),
        (linear().requires_grad_(False), "expected parameters to train, got 2, all frozen"),
    ):
        with pytest.raises(ValueError, match=message):
            train.fit(net, digits, replace(SHORT, mixup=mixup))


def test_labels_that_are_none_are_not_passed_over(digits):
    wrong = {
        r"labels from 0, got -100": digits.test_labels.index_fill(0, torch.tensor([3]), -100),
        r"classes from 0 to 9, got 0 to 10": digits.test_labels.index_fill(0, torch.tensor([3]), 10),
        "whole numbers": digits.test_labels.float(),
        "expected 50 labels.*got 49": digits.test_labels[:-1],
    }
    for message, labels in wrong.items():
        with pytest.raises(ValueError, match=message):
            judged(linear(), digits, labels)
    with pytest.raises(ValueError, match="one or more"):
        train.evaluate(linear(), digits.test_images[:0], digits.test_labels[:0], mean=digits.mean, std=digits.std)
    for part in ("train", "test"):
        none = {f"{part}_images": digits.test_images[:0], f"{part}_labels": digits.test_labels[:0]}
        with pytest.raises(ValueError, match="one or more"):
            train.fit(linear(), replace(digits, **none), SHORT)


# --- a run goes on as it began ---


class Scaled(nn.Module):
    """A net whose factor stands neither in its weights nor in its repr."""

    def __init__(self, factor=1.0, act=torch.relu):
        super().__init__()
        self.inner, self.factor, self.act = linear(), factor, act

    def forward(self, images):
        return self.factor * self.act(self.inner(images))


def weighed(factor):
    def loss(outputs, images, labels, smoothing):
        return factor * nn.functional.cross_entropy(outputs, labels)

    return loss


def frozen(*names):
    net = linear()
    net[1].requires_grad_(True)
    for name in names:
        net.get_parameter(name).requires_grad_(False)
    return net


def deaf(teacher):
    return Distillation(teacher, "soft")


ANOTHER = {  # what a run began with, and what must not go on with it
    "augment": ({"augment": data.flip_shift(1)}, {"augment": data.flip_shift(2)}),
    "augment begun": ({}, {"augment": data.flip_shift(1)}),
    "lambda": ({"augment": lambda x: x.flip(-1)}, {"augment": lambda x: x.flip(-2)}),
    "partial": ({"augment": partial(torch.roll, shifts=1)}, {"augment": partial(torch.roll, shifts=2)}),
    "transform": ({"augment": v2.RandomHorizontalFlip(0.1)}, {"augment": v2.RandomHorizontalFlip(0.9)}),
    "objective": ({"objective": weighed(1.0)}, {"objective": weighed(2.0)}),
    "teacher": ({"objective": deaf(Scaled(1.0))}, {"objective": deaf(Scaled(2.0))}),
    "layer": (
        {"objective": deaf(nn.Sequential(linear(), nn.ReLU()))},
        {"objective": deaf(nn.Sequential(linear(), nn.GELU()))},
    ),
    "classes": ({}, {"classes": tuple("9876543210")}),
    "frozen": ({"net": frozen("1.bias")}, {"net": frozen("1.weight")}),
    "thawed": ({"net": frozen("1.bias")}, {"net": frozen()}),
}


def go(digits, path, resume, augment=None, objective=train.labels_alone, classes=None, net=None):
    part = replace(digits, classes=classes or digits.classes)
    recipe, net = replace(SHORT, augment=augment), net if net is not None else linear()
    return train.fit(net, part, recipe, objective=objective, checkpoint=path, resume=resume)


@pytest.mark.parametrize("name", ANOTHER)
def test_a_run_does_not_go_on_as_another(name, digits, tmp_path):
    then, now = ANOTHER[name]
    go(digits, tmp_path / "run.pt", False, **then)
    with pytest.raises(ValueError, match="was written (under another recipe|with other images|for a net with other)"):
        go(digits, tmp_path / "run.pt", True, **now)
    assert len(go(digits, tmp_path / "run.pt", True, **then).losses) == 2


def test_a_run_goes_on_with_the_same_written_anew(digits, tmp_path):
    def same(factor):
        calls = []

        def watch(images):  # what it keeps while it runs does not count
            calls.append(1)
            return (images * factor).to(images.dtype)

        return {"augment": watch, "objective": deaf(Scaled(factor).train(factor > 5)), "net": frozen("1.bias")}

    go(digits, tmp_path / "run.pt", False, **same(1.0))
    assert len(go(digits, tmp_path / "run.pt", True, **same(1.0)).losses) == 2
    wrapped = same(1.0)
    wrapped["augment"] = wraps(wrapped["augment"])(lambda images: images)
    assert len(go(digits, tmp_path / "run.pt", True, **wrapped).losses) == 2, "a wrapper is what it wraps"


def test_a_checkpoint_whose_parts_are_of_other_kinds_is_none(digits, tmp_path):
    path = tmp_path / "run.pt"
    go(digits, path, False)
    state = torch.load(path, weights_only=True)
    for part, wrong in (("recipe", [1]), ("recipe", None), ("data", [1]), ("net", 3), ("history", [1]), ("model", 1)):
        torch.save(state | {part: wrong}, path)
        with pytest.raises(ValueError, match="run.pt (is not a checkpoint|was written)"):
            go(digits, path, True)


# --- features, distillation, nets without heads ---


def features(scale=1.0):
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    return x * scale, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


@pytest.mark.parametrize("scale", [1e25, 1e37, 1e-13, 1e-37])
def test_how_long_features_are_does_not_count(scale):
    x, y = features()
    for scales in ((scale, 1.0), (1.0, scale), (scale, scale)):
        answers = probe.knn_predict(scales[0] * x[:20], y[:20], scales[1] * x[20:], k=3)
        assert torch.equal(answers, probe.knn_predict(x[:20], y[:20], x[20:], k=3))
    zero = probe.knn_predict(x[:20] * torch.arange(20)[:, None].clamp(max=1), y[:20], 0 * x[20:], k=3)
    assert zero.shape == (10,)


def test_features_may_be_arrays():
    x, y = features()
    expected = probe.knn_predict(x[:20], y[:20], x[20:], k=3)
    assert torch.equal(probe.knn_predict(x[:20].numpy(), y[:20].numpy(), x[20:].numpy(), k=np.int64(3)), expected)
    for name, value in (("k", True), ("k", "a"), ("k", None), *[("temperature", wrong) for wrong in ("a", None, NAN)]):
        with pytest.raises(ValueError, match="expected .*, got"):
            probe.knn_predict(x, y, x, **{name: value})
    for wrong in ("a", None, [[1, "a"]], 3):
        with pytest.raises(ValueError, match="expected features"):
            probe.knn_predict(x, y, wrong)


def test_a_teaching_that_cannot_be_meant_is_refused(digits):
    for wrong in ({"weight": "a"}, {"weight": None}, {"weight": True}, {"temperature": "a"}, {"temperature": None}):
        teacher = linear()
        with pytest.raises(ValueError, match="expected a (weight from 0 to 1|temperature above 0), got"):
            Distillation(teacher, **wrong)
        assert teacher[1].weight.requires_grad
    for wrong in (lambda images: images, None, linear):
        with pytest.raises(ValueError, match="expected a teacher that is an nn.Module, got"):
            Distillation(wrong)
    kinds = {"a tuple": lambda x: (x, x), "a dict": lambda x: {"a": x}, "a NoneType": lambda x: None}
    for message, change in kinds.items():
        with pytest.raises(ValueError, match=rf"the student's logits are \(64, 10\), the teacher's {message}"):
            train.fit(linear(), digits, SHORT, objective=Distillation(Gives(change)))
        if message != "a tuple":
            with pytest.raises(ValueError, match=rf"the student's logits are {message}, the teacher's \(64, 10\)"):
                train.fit(Gives(change), digits, SHORT, objective=Distillation(linear()))
    with pytest.raises(ValueError, match="the student's logits are a tuple"):
        train.fit(Gives(lambda x: (x, x, x)), digits, SHORT, objective=Distillation(linear()))


@pytest.mark.parametrize("name", ["book/²", "book/", "Ti/٣x", "book/-1", "B/1.5", "²/4", f"book/{'9' * 5000}"])
def test_a_net_by_no_name_is_refused(name):
    with pytest.raises(ValueError, match="expected"):
        named_net(name, (1, 8, 8), 10)


class Small(nn.Module):
    """A net with a head that is reached in one of several ways."""

    def __init__(self, how="plain"):
        super().__init__()
        self.body, self.fc = nn.Flatten(), nn.Linear(64, 5)
        if how == "hidden":
            self.out = nn.Linear(5, 3)
        if how == "alias":
            self.last = self.fc
        if how == "list":
            self.steps = [self.body, self.fc]
        if how == "layers":
            self.layers = nn.Sequential(self.body, self.fc)
        if how == "lambda":
            self.forward = lambda images: self.fc(self.body(images))
        if how == "bound":
            self.forward = MethodType(Small.forward, self)

    def forward(self, images):
        return self.fc(self.body(images))


COMPILED = pytest.param("compiled", marks=pytest.mark.slow)  # which imports for seconds


@pytest.mark.parametrize("how", ["hidden", "alias", "list", "layers", "lambda", COMPILED])
def test_a_head_that_would_stay_is_refused(how):
    net = torch.compile(Small()) if how == "compiled" else Small(how)
    x, y = torch.randn(30, 64), torch.arange(30) % 3
    for take in (lambda: without_classifier(net), lambda: with_new_classifier(net, x, y)):
        with pytest.raises(ValueError, match=r"fc|compile|lambda"):
            take()


@pytest.mark.parametrize("how", ["plain", "bound"])
def test_a_head_is_gone_or_new_whichever_way_forward_is_bound(how):
    net, images = Small(how), torch.randn(30, 1, 8, 8)
    before = net(images)
    assert torch.equal(without_classifier(net)(images), images.flatten(1))
    assert with_new_classifier(net, images.flatten(1), torch.arange(30) % 3)(images).shape == (30, 3)
    assert torch.equal(net(images), before)


# --- looking inside ---


def test_maps_of_a_part_of_the_layers_are_refused():
    net = timm.create_model("convit_tiny", img_size=32, patch_size=16, embed_dim=8, depth=3, local_up_to_layer=2).eval()
    with pytest.raises(ValueError, match="GPSA"):
        interpret.attention_maps(net, torch.randn(1, 3, 32, 32))


def test_second_opinions_leave_batch_norm_as_it_was():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.9)).train()
    images, classes, before = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), net[0].running_mean.clone()
    for look in (
        lambda: interpret.deletion(net, images, classes, torch.rand(4, 2, 2)),
        lambda: interpret.occlusion(net, images, classes, 4),
        lambda: interpret.input_gradients(net, images, classes),
        lambda: interpret.log_probability(net, images, classes),
    ):
        torch.manual_seed(0)
        first = look()
        assert net.training and torch.equal(net[0].running_mean, before)
        if first.ndim < 3 and first.shape[-1] == 4:
            assert torch.equal(first, look()), "no dropout"


def test_what_second_opinions_cannot_take_is_refused():
    net, images, classes = linear(3).eval(), torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    maps = torch.rand(2, 2, 2)
    for change in (
        {"model": lambda images: images}, {"model": None}, {"images": "a"}, {"images": images.numpy()},
        {"classes": [0, 1]}, {"classes": "a"}, {"classes": None}, {"classes": classes.numpy()},
        {"maps": "a"}, {"maps": None}, {"maps": maps.numpy()}, {"fill": "a"}, {"fill": None}, {"fill": NAN},
    ):  # fmt: skip
        given = {"model": net, "images": images, "classes": classes, "maps": maps, "fill": 0.0} | change
        with pytest.raises(ValueError, match="expected"):
            interpret.deletion(**given)
        if "maps" in change:
            continue
        del given["maps"]
        with pytest.raises(ValueError, match="expected"):
            interpret.occlusion(**given, side=4)
        if "fill" not in change:
            del given["fill"]
            with pytest.raises(ValueError, match="expected"):
                interpret.input_gradients(**given)
