"""Features and what is read off them: heads taken off, a cache that knows its inputs, memory, probes."""

import functools
import multiprocessing
import os
import re
import sys
import threading
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models, tv_tensors
from torchvision.transforms import v2
from vit_pytorch import ViT as LibraryViT
from vit_pytorch.simple_vit import SimpleViT

from vitutils import data
from vitutils.analysis import probe
from vitutils.analysis.classifier import Pooled, with_new_classifier, without_classifier
from vitutils.analysis.features import _say_once, describe_features, extract_features
from vitutils.data import decoding
from vitutils.data.images import from_tensors
from vitutils.models import DistilledViT, SmallCNN, ViT, ViTConfig, weights

SMALL = ViTConfig(
    img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0
)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path))
    return tmp_path / "features"


def small_vit(seed=0, **changes):
    torch.manual_seed(seed)
    return ViT(ViTConfig(**(SMALL.__dict__ | changes)))


def transform(mean=0.5):
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([mean], [0.5])])


def made_set(count=40, name="made", change=0, classes=2):
    """Images whose brightness says their class, with noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator) + 60 * labels[:, None, None, None]
    images[0, 0, 0, 0] += change
    names = [str(k) for k in range(classes)]
    return from_tensors(name, "train", images.to(torch.uint8), labels, names, "here")


# --- the head comes off ---


def test_ours_gives_what_its_head_reads_and_keeps_it():
    for pool in ("token", "avg"):
        net = small_vit(global_pool=pool).eval()
        nn.init.normal_(net.head.weight)
        images = torch.randn(3, 1, 8, 8)
        features = without_classifier(net)(images)
        assert features.shape == (3, 16)
        assert torch.equal(net.head(features), net(images))  # the net still has its head
        assert set(net.state_dict()) - set(without_classifier(net).state_dict()) == {"head.weight", "head.bias"}


def test_other_libraries_nets():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    resnet = timm.create_model("resnet10t").eval()
    library = LibraryViT(image_size=32, patch_size=16, num_classes=4, dim=12, depth=1, heads=2, mlp_dim=12).eval()
    heads = {
        vit: (vit.head, 192),
        resnet: (resnet.fc, 512),
        library: (library.mlp_head, 12),
    }
    torchs = models.resnet18().eval()
    heads[torchs] = (torchs.fc, 512)
    small = SmallCNN(3, 4, (8, 16)).eval()
    heads[small] = (small.head, 16)
    for net, (head, width) in heads.items():
        with torch.no_grad():
            features = without_classifier(net)(images)
            assert features.shape == (2, width)
            torch.testing.assert_close(head(features), net(images))


def test_a_net_without_a_known_head_is_refused():
    with pytest.raises(ValueError, match="Sequential has no head.*0, 1"):
        without_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_a_probe_can_be_the_new_head():
    net, part = small_vit().eval(), made_set(90, classes=3)
    found = extract_features(without_classifier(net), part, transform())
    new = with_new_classifier(net, found.x, found.y)
    images = torch.stack([transform()(part[i][0]) for i in range(len(part))])
    assert (new(images).argmax(dim=1) == part.labels).float().mean() > 0.9
    assert new.head.out_features == 3 and net.head.out_features == 5
    with pytest.raises(ValueError, match="three classes"):
        with_new_classifier(net, found.x, found.y % 2)


def distilled(**changes):
    torch.manual_seed(0)
    net = DistilledViT(replace(SMALL, **changes))
    for head in (net.head, net.head_dist):
        nn.init.normal_(head.weight)
    return net


def test_a_distilled_net_gives_the_mean_of_what_its_heads_read():
    for K in (5, 16):  # 16: as many classes as features, where a head left on goes unnoticed
        net, images = distilled(num_classes=K), torch.randn(3, 1, 8, 8)
        bare = without_classifier(net)
        expected = net.forward_features(images)[:, :2].mean(dim=1)
        for mode in (True, False):  # in train mode the net itself gives a pair
            torch.testing.assert_close(bare.train(mode)(images), expected)
        assert not any("head" in name for name in bare.state_dict()) and net.head_dist.out_features == K
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32).eval()
    assert without_classifier(theirs)(torch.randn(2, 3, 32, 32)).shape == (2, 192)


def test_heads_of_other_names_and_signatures():
    simple = SimpleViT(
        image_size=8, patch_size=4, num_classes=4, dim=12, depth=1, heads=2, mlp_dim=12, channels=1
    ).eval()
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(simple.linear_head(without_classifier(simple)(images)), simple(images))

    class Own(nn.Module):
        """Has timm's two names, not timm's meaning."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 3)

        def forward_features(self, images):
            return images.flatten(1)

        def forward_head(self, features):
            return self.head(features)

        def forward(self, images):
            return self.forward_head(self.forward_features(images))

    assert torch.equal(without_classifier(Own())(images), images.flatten(1))
    with pytest.raises(ValueError, match="expected an nn.Module, got a function"):
        without_classifier(lambda images: images)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(small_vit, torch.float32), (small_vit, torch.bfloat16), (distilled, torch.float32), (distilled, torch.float16)],
)
def test_a_new_head_answers_with_the_labels_whatever_they_are(make, dtype):
    net, part = make().eval(), made_set(90, classes=3)
    found = extract_features(without_classifier(net), part, transform())
    labels = torch.tensor([3, 7, 9])[found.y]
    net.blocks[1].eval(), net.train(), net.blocks[0].eval()
    new = with_new_classifier(net.to(dtype), found.x.to(dtype), labels)
    assert new.training and not new.blocks[0].training and new.config.num_classes == 10
    images = torch.stack([transform()(part[i][0]) for i in range(len(part))]).to(dtype)
    logits = new.eval()(images)
    assert logits.shape == (90, 10) and logits.dtype == dtype and set(logits.argmax(1).tolist()) <= {3, 7, 9}
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.9
    assert F.cross_entropy(logits.float(), labels).isfinite()


def test_a_new_head_is_refused_where_it_does_not_fit():
    x, y = torch.randn(9, 16), torch.arange(9) % 3
    with pytest.raises(ValueError, match=r"features of 8, got Linear\(in_features=16"):
        with_new_classifier(small_vit(), x[:, :8], y)
    with pytest.raises(ValueError, match="expected heads to be one linear layer"):
        with_new_classifier(models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=3), x, y)
    resnet = timm.create_model("resnet10t", num_classes=5)
    assert with_new_classifier(resnet, torch.randn(9, 512), y).fc.out_features == 3 and resnet.num_classes == 5
    with pytest.raises(ValueError, match="labels from 0, got -1: leave out"):
        with_new_classifier(small_vit(), x, y - 1)


# --- features ---


def test_features_are_those_of_the_net_in_eval_mode_and_modes_come_back():
    net, part = small_vit(), made_set()
    net.blocks[0].eval()  # a mode of its own
    bare = without_classifier(net)
    found = extract_features(bare, part, transform(), batch_size=7)
    with torch.no_grad():
        expected = bare(torch.stack([transform()(part[i][0]) for i in range(len(part))]))
    torch.testing.assert_close(found.x, expected)
    assert torch.equal(found.y, part.labels) and not found.cached and found.seconds > 0
    assert net.training and not net.blocks[0].training and net.blocks[1].training


def test_a_net_that_was_taken_to_another_device_comes_home():
    class Traveller(nn.Flatten):
        """Says where it is asked to go, and stays: there is one device here."""

        def __init__(self):
            super().__init__()
            self.weight, self.asked = nn.Parameter(torch.zeros(1)), []

        def to(self, device):
            self.asked.append(torch.device(device))
            return self

    net = Traveller()
    extract_features(net, made_set(4), transform(), device="cpu:0", cache=False)
    assert net.asked == [torch.device("cpu:0"), torch.device("cpu")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_net_comes_back_from_the_gpu():
    net = small_vit()
    what = without_classifier(net), made_set(4), transform()
    on_gpu = extract_features(*what, device="cuda", cache=False).x
    assert next(net.parameters()).device.type == "cpu"
    assert (on_gpu - extract_features(*what, cache=False).x).abs().max() < 0.1


def test_batch_norm_uses_its_running_means():
    net = SmallCNN(1, 2, (4,))
    one = extract_features(without_classifier(net), made_set(), transform(), batch_size=1, cache=False)
    many = extract_features(without_classifier(net), made_set(), transform(), batch_size=40, cache=False)
    torch.testing.assert_close(one.x, many.x)
    assert net.stages[1].num_batches_tracked == 0


def test_the_second_time_they_are_read_from_the_file(folder):
    net = without_classifier(small_vit())
    first = extract_features(net, made_set(), transform())
    again = extract_features(net, made_set(), transform())
    assert again.cached and torch.equal(first.x, again.x) and torch.equal(first.y, again.y)
    assert again.seconds == first.seconds and os.listdir(folder) == [first.file.name]


def test_another_input_is_another_key(folder):
    def keys(net=None, part=None, how=None):
        net = net if net is not None else without_classifier(small_vit())
        found = extract_features(net, part or made_set(), how or transform())
        assert not found.cached
        return found.file.name

    changed = small_vit()
    with torch.no_grad():
        changed.blocks[1].mlp.fc2.bias[3] += 1e-6
    heads = small_vit(num_heads=4)  # the same weights, cut into other heads
    heads.load_state_dict(small_vit().state_dict())
    seen = [
        keys(),
        keys(net=without_classifier(small_vit(seed=1))),
        keys(net=without_classifier(changed)),
        keys(net=without_classifier(heads)),
        keys(how=transform(mean=0.4)),
        keys(part=made_set(change=1)),
        keys(part=made_set(name="other")),
        keys(part=made_set().at(range(39, -1, -1))),
    ]
    assert len(set(seen)) == len(seen)


class Scaled(nn.Module):
    """A net with no weights, and one number that nobody declared."""

    def __init__(self, factor=1.0, step=None):
        super().__init__()
        self.flat, self.bag, self.step = nn.Flatten(), {"factor": factor}, step

    def forward(self, images):
        found = self.flat(images)[:, :4] * self.bag["factor"]
        return self.step(found) if self.step else found


FACTOR = 1.0


def stretched(image, by=1.0):
    return image / 255 * by


class Stretch:
    """A transform whose repr says nothing of its settings."""

    def __init__(self, by=1.0):
        self.by = by

    def __call__(self, image):
        return image / 255 * self.by

    def __repr__(self):
        return "Stretch()"


class SecretSlots:
    """A transform whose setting neither repr nor pickle shows."""

    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by

    def __call__(self, image):
        return image / 255 * self.by

    def __getstate__(self):
        return ()


def hooked(make):
    net = Scaled()
    make(net)
    return net


def pushed(by):
    return hooked(lambda net: net.flat.register_forward_hook(lambda module, given, out: out * by))


def patched_forward(by):
    net = Scaled()
    net.forward = lambda images: images.flatten(1)[:, :4] * by
    return net


def bent(by):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.ones_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    torch.nn.utils.parametrize.register_parametrization(net[1], "weight", Scaled(by).bag_times())
    return net


class Times(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, weight):
        return weight * self.by


Scaled.bag_times = lambda self: Times(self.bag["factor"])


def normed(eps):
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64, eps=eps))


def headed(heads):
    net = small_vit(num_heads=heads)
    net.load_state_dict(small_vit().state_dict())
    return without_classifier(net)


def attended(scale):
    net = timm.models.VisionTransformer(img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=2)
    for p in net.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    net.blocks[0].attn.fused_attn, net.blocks[0].attn.scale = False, scale
    return without_classifier(net)


def cast(dtype):
    return without_classifier(small_vit().to(dtype))


# name -> two nets, or two transforms, that give other features; each once with 1.0 and once with 2.0
NETS = {
    "a number in a dictionary": lambda v: Scaled(v),
    "a function among the settings": lambda v: Scaled(step=lambda x: x * v),
    "a forward hook": pushed,
    "a forward put on the net": patched_forward,
    "a parametrisation": bent,
    "eps": lambda v: normed(1e-5 if v == 1 else 1.0),
    "heads": lambda v: headed(2 if v == 1 else 4),
    "scale": attended,
    "dtype": lambda v: cast(torch.float32 if v == 1 else torch.bfloat16),
    "an activation": lambda v: nn.Sequential(nn.Flatten(), nn.ReLU() if v == 1 else nn.GELU()),
}
HOWS = {
    "a lambda": lambda v: lambda image: image / 255 * v,
    "a partial in a partial": lambda v: functools.partial(functools.partial(stretched), by=v),
    "a Lambda in a Compose": lambda v: v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Lambda(lambda x: x * v)]),
    "a setting that repr and pickle hide": SecretSlots,
    "a bound method": lambda v: Stretch(v).__call__,
    "a net": lambda v: v2.Compose([v2.ToDtype(torch.float32, scale=True), nn.Conv2d(1, 1, 1), Stretch(v)]),
    "blur": lambda v: v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianBlur(3, (v, v))]),
}


def never_stale(first, second):
    """(net, transform), twice: the second's features are its own, whether kept or computed."""
    part = made_set(6)
    before = extract_features(first[0], part, first[1]).x
    found = extract_features(second[0], part, second[1])
    fresh = extract_features(second[0], part, second[1], cache=False).x
    assert not torch.equal(before, fresh), "the test itself is wrong: nothing has changed"
    assert torch.equal(found.x, fresh) and not found.cached


@pytest.mark.parametrize("name", NETS)
def test_a_net_that_computes_something_else_is_not_read_from_the_file(name):
    torch.manual_seed(0)
    never_stale((NETS[name](1.0), transform()), (NETS[name](2.0), transform()))


@pytest.mark.parametrize("name", HOWS)
def test_a_transform_that_does_something_else_is_not_read_from_the_file(name):
    nets = []
    for value in (1.0, 2.0):
        torch.manual_seed(0)
        nets.append((nn.Flatten(), HOWS[name](value)))
    never_stale(*nets)


# name -> (what is changed, where, into what): nothing that is handed to `extract` says so
CHANGES = {
    "a library's method": (nn.Flatten, "forward", lambda self, images: images.flatten(1) + 1),
    "a library's function": (F, "relu", lambda found, inplace=False: found - 1),
    "one library function for another": (F, "relu", F.selu),
    "one library method for another": (nn.ReLU, "forward", nn.Softsign.forward),
    "our own function": (decoding, "as_seen", lambda picture, grey=False: picture.rotate(180)),
    "our own method": (decoding.AsSeen, "__call__", lambda self, picture: picture.rotate(180)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_library_that_is_changed_behind_its_back_is_seen(name, monkeypatch):
    part, net = made_set(6), nn.Sequential(nn.Flatten(), nn.ReLU())
    how = v2.Compose([v2.ToPILImage(), decoding.AsSeen(grey=True), v2.ToImage(), transform(0.0)])
    before = extract_features(net, part, how)
    assert before.file and extract_features(net, part, how).cached
    monkeypatch.setattr(*CHANGES[name])
    found, fresh = extract_features(net, part, how), extract_features(net, part, how, cache=False).x
    assert torch.equal(found.x, fresh) and not torch.equal(before.x, fresh) and found.file is None


class OwnLinear(nn.Linear):
    """A library's layer but for one line."""

    def forward(self, images):
        return super().forward(images) * FACTOR


def own_bound(net):
    net.forward = types.MethodType(lambda self, images: images.flatten(1) * FACTOR, net)
    return net


def with_global_hook(images, given=None, out=None):
    return None if out is None else out * FACTOR


def parametrised(net):
    nn.utils.parametrize.register_parametrization(net[1], "weight", OwnTimes())
    return net


class OwnTimes(nn.Module):
    def forward(self, weight):
        return weight * FACTOR


def hooked_layer(net):
    net.register_forward_hook(with_global_hook)
    return net


# name -> (net or None, transform or None) made with the path of a file that holds 1.0, then 2.0; FACTOR goes along
OUTSIDE = {
    "a Lambda": lambda path: (None, v2.Compose([transform(), v2.Lambda(lambda image: image * FACTOR)])),
    "a partial in a Lambda": lambda path: (None, v2.Compose([transform(), v2.Lambda(load_times(path))])),
    "a layer deep in a net": lambda path: (nn.Sequential(nn.Flatten(), nn.Sequential(OwnLinear(64, 2))), None),
    "a method on the net": lambda path: (own_bound(nn.Flatten()), None),
    "a hook on a layer": lambda path: (nn.Sequential(nn.Flatten(), hooked_layer(nn.Tanh())), None),
    "a parametrisation": lambda path: (parametrised(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))), None),
}


def load_times(path):
    return functools.partial(times_file, path)


def times_file(path, image):
    return image * float(np.load(path))


def set_outside(path, value, monkeypatch):
    np.save(path, value)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", value)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_the_readers_own_code_reads_may_change(name, folder, tmp_path, monkeypatch):
    part, path = made_set(6), str(tmp_path / "number.npy")
    set_outside(path, 1.0, monkeypatch)
    torch.manual_seed(0)
    net, how = OUTSIDE[name](path)
    net, how = net or nn.Flatten(), how or transform()
    before = extract_features(net, part, how)
    set_outside(path, 2.0, monkeypatch)
    found = extract_features(net, part, how)
    assert not torch.equal(found.x, before.x) and not found.cached and found.file is None and not folder.exists()


def test_sets_that_the_reader_reads_himself_are_computed_anew():
    part = made_set(6)
    others = functools.partial(part.content.func, torch.zeros(6, 1, 8, 8, dtype=torch.uint8))
    for changes in ({"read": lambda i: part.read(i)}, {"content": lambda i: b""}, {"content": others}):
        asked = replace(part, **changes)
        assert not any(extract_features(nn.Flatten(), asked, transform()).cached for _ in range(2))


def test_pixels_of_another_shape_are_other_pictures():
    images = torch.arange(128, dtype=torch.uint8)
    shapes = ((2, 1, 8, 8), (2, 1, 4, 16))
    net = nn.Sequential(nn.AvgPool2d((2, 4)), nn.Flatten())
    for shape in shapes:
        part = from_tensors("made", "train", images.reshape(shape), torch.arange(2), ["a", "b"], "here")
        found = extract_features(net, part, transform())
        assert torch.equal(found.x, extract_features(net, part, transform(), cache=False).x) and not found.cached


KNOWN = {  # what libraries and this package wrote is kept, whatever it holds of theirs
    "ours": lambda: (without_classifier(small_vit()), None),
    "ours, distilled": lambda: (without_classifier(distilled()), None),
    "a CNN of ours": lambda: (without_classifier(SmallCNN(1, 2, (4,))), None),
    "timm's": lambda: (attended(1.0), None),
    "vit-pytorch's": lambda: (
        without_classifier(
            LibraryViT(image_size=8, patch_size=4, num_classes=4, dim=8, depth=1, heads=2, mlp_dim=8, channels=1)
        ),
        None,
    ),
    "torchvision's": lambda: (models.squeezenet1_1(num_classes=3), models.SqueezeNet1_1_Weights.DEFAULT.transforms()),
    "the pocket network": lambda: (without_classifier(POCKET.model), POCKET.transform),
    "timm's transform": lambda: (
        nn.Flatten(),
        v2.Compose([v2.ToPILImage(), v2.RGB(), timm.data.create_transform(8, is_training=False)]),
    ),
    "transforms in transforms": lambda: (
        nn.Flatten(),
        v2.Compose([transform(), v2.Compose([transform_of_a_dtype(), v2.Lambda(F.relu)])]),
    ),
}
POCKET = weights.load_pretrained("pocket")


def transform_of_a_dtype():
    return v2.ToDtype({tv_tensors.Image: torch.float32, "others": None})


@pytest.mark.parametrize("name", KNOWN)
def test_what_libraries_and_we_wrote_is_kept(name, capsys):
    _say_once.cache_clear()
    part = made_set(4)
    if name == "torchvision's":
        colour = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        part = from_tensors("made", "train", colour, part.labels[:2], "ab", "")
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(KNOWN[name]())
    first, again = (extract_features(net, part, how or transform()) for net, how in made)
    assert first.file and again.cached and torch.equal(first.x, again.x), capsys.readouterr().out


def test_a_mode_or_a_hook_that_is_on_everywhere_is_computed_with():
    part, net = made_set(4), nn.Sequential(nn.Flatten(), nn.ReLU())
    before = extract_features(net, part, transform())
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, out: out + 1)
    try:
        assert not torch.equal(extract_features(net, part, transform()).x, before.x)
    finally:
        hook.remove()
    with Plus():
        assert not torch.equal(extract_features(net, part, transform()).x, before.x)
    assert extract_features(net, part, transform()).cached


class Plus(TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        return out + 1 if function is F.relu else out


def test_compiled_nets_are_computed_anew():
    part = made_set(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(nn.Flatten(), torch.zeros(1, 1, 8, 8))
    compiled = nn.Sequential(nn.Flatten())
    compiled._compiled_call_impl = lambda images: images.flatten(1)  # what its compile() puts there, after seconds
    for net in (traced, compiled):
        with pytest.raises(ValueError, match="the net"):
            describe_features(net, part, transform(), torch.device("cpu"))


def test_autocast_and_number_formats_are_seen():
    net, part = without_classifier(small_vit()), made_set(6)
    before = extract_features(net, part, transform()).x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extract_features(net, part, transform())
    assert not found.cached and not torch.equal(found.x, before)


def test_batches_count_where_a_net_looks_at_its_neighbours():
    class Centred(nn.Module):
        def forward(self, images):
            found = images.flatten(1)
            return found - found.mean(dim=0)

    part = made_set(6)
    two = [extract_features(Centred(), part, stretched, batch_size=size) for size in (6, 2)]
    assert not two[1].cached and not torch.equal(two[0].x, two[1].x)


def noisy(image):
    return image / 255 + torch.randn(1)


UNSEEN = {
    "a function": (lambda: noisy, "the transform holds your own function noisy"),
    "a class in a Compose": (lambda: v2.Compose([transform(), Stretch()]), "your own class Stretch"),
    "a method": (lambda: Stretch().__call__, "the transform holds a method"),
    "a partial": (lambda: functools.partial(stretched, by=2.0), "your own function stretched"),
    "a library's function that reads": (lambda: setting(os.getenv), "the function getenv"),
    "a library's class that reads": (lambda: setting(functools.partial(np.memmap, "x")), "the class memmap"),
    "a library's random function": (lambda: v2.Compose([transform(), v2.Lambda(F.dropout)]), "random numbers"),
    "a random flip": (lambda: v2.Compose([v2.RandomHorizontalFlip(), transform()]), "random numbers"),
    "a lock": (lambda: setting(threading.Lock()), "holds a lock"),
    "a module": (lambda: setting(sys), "holds a module"),
    "dropout in forward": (transform, "the net holds your own class Scaled"),
}


def setting(value):
    """A library's transform that somebody hung something onto."""
    how = transform()
    how.extra = value
    return how


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_is_computed_anew_and_said_once(name, folder, capsys):
    _say_once.cache_clear()
    make, reason = UNSEEN[name]
    net = Scaled(step=F.dropout) if name == "dropout in forward" else nn.Flatten()
    for _ in range(2):
        found = extract_features(net, made_set(4), make())
        assert not found.cached and found.file is None
    told = capsys.readouterr().out
    assert re.match(f"features are not kept: .*{reason}", told) and told.count("\n") == 1
    assert not folder.exists()


def test_modes_and_the_order_of_a_set_do_not_count():
    part, names, net = made_set(4), [f"name {i}" for i in range(50)], small_vit().train()
    extract_features(net, part, setting(set(names)))
    assert extract_features(net.eval(), part, setting(set(reversed(names)))).cached


def test_a_file_under_another_name_is_not_believed(folder):
    part = made_set(6)
    first, second = (extract_features(nn.Flatten(), part, transform(mean)) for mean in (0.5, 0.4))
    second.file.write_bytes(first.file.read_bytes())
    with pytest.warns(UserWarning, match="something else"):
        again = extract_features(nn.Flatten(), part, transform(0.4))
    assert torch.equal(again.x, second.x)


def test_pictures_read_ahead_need_no_other_process(monkeypatch):
    """Where processes start anew (macOS, Windows, Python 3.14) nothing of a set's closures could go to one."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        part, how = made_set(23), lambda image: image / 255
        alone = extract_features(nn.Flatten(), part, how, batch_size=4, cache=False)
        ahead = extract_features(nn.Flatten(), part, how, batch_size=4, workers=2, cache=False)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert torch.equal(alone.x, ahead.x)
    with pytest.raises(ZeroDivisionError):  # a picture's own error comes through
        extract_features(nn.Flatten(), part, lambda image: 1 / 0, workers=2, cache=False)


def test_a_damaged_file_is_named_and_written_anew(folder):
    net = without_classifier(small_vit())
    first = extract_features(net, made_set(), transform())
    whole = first.file.read_bytes()
    wrong = bytearray(whole)
    wrong[-3] ^= 255  # still a safetensors file
    for raw in (whole[:50], b"", bytes(wrong)):
        first.file.write_bytes(raw)
        with pytest.warns(UserWarning, match=f"{first.file.name} is damaged"):
            again = extract_features(net, made_set(), transform())
        assert not again.cached and torch.equal(again.x, first.x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert extract_features(net, made_set(), transform()).cached
    assert os.listdir(folder) == [first.file.name]


def test_nothing_half_written_stays(folder, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    found = extract_features(without_classifier(small_vit()), made_set(), transform())
    assert found.file is None and found.x.shape == (40, 16) and os.listdir(folder) == []


def test_what_is_no_feature_or_no_image_is_refused():
    net, part = small_vit(), made_set()
    with pytest.raises(ValueError, match=r"features \(40, D\), got \(40, 5, 16\)"):
        bare = without_classifier(net)
        bare.forward = bare.forward_features
        extract_features(bare, part, transform(), cache=False)
    with pytest.raises(ValueError, match=r"tensors \(C, H, W\) of one size, got"):
        extract_features(without_classifier(net), part, v2.RandomChoice([v2.Resize(8), v2.Resize(4)]), cache=False)
    with pytest.raises(ValueError, match="no pictures"):
        extract_features(without_classifier(net), part.at([]), transform(), cache=False)
    with pytest.raises(ValueError, match="float images, normalised, got torch.uint8"):
        extract_features(without_classifier(net), part, lambda image: image, cache=False)
    with pytest.raises(ValueError, match="expected an nn.Module"):
        extract_features(lambda images: images.flatten(1), part, transform())
    for wrong in ({"batch_size": 0}, {"batch_size": 2.5}, {"workers": -1}, {"workers": 1.5}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} to be a whole number, . or more, got"):
            extract_features(net, part, transform(), **wrong)
    with pytest.raises(ValueError, match="expected real features, got torch.complex64"):
        extract_features(Scaled(step=torch.fft.fft), part, transform(), cache=False)
    for size in (39, 24):  # D is the size of the batch: 39 and 1, 24 and 16
        with pytest.raises(ValueError, match=f"features of one width D, got {size} and then {40 - size}"):
            extract_features(Scaled(step=lambda x: x @ x.T), part, transform(), batch_size=size, cache=False)
    for give in (lambda x: (x, x), lambda x: {"x": x}, lambda x: None, lambda x: x[:2]):
        with pytest.raises(ValueError, match=r"expected features \(40, D\), got"):
            extract_features(Scaled(step=give), part, transform(), cache=False)


def test_twenty_thousand_pictures_do_not_grow_in_memory():
    """Held all at once they would be 60 MB of floats; what may grow is the features, 0.3 MB."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc to read this process's memory from")
    count, seen = 20_000, []

    class Tiny(nn.Module):
        def forward(self, images):
            with open("/proc/self/statm") as file:
                seen.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            return images.flatten(1)[:, :4]

    made = torch.arange(768, dtype=torch.uint8).reshape(3, 16, 16)
    part = data.ImagePart(
        "stream", "train", torch.zeros(count, dtype=torch.int64), ("a", "b"), "made", lambda i: made + (i % 7), bytes
    )
    found = extract_features(Tiny(), part, lambda image: image / 255, batch_size=500, cache=False)
    assert found.x.shape == (count, 4) and len(seen) == 40
    assert max(seen[10:]) - seen[9] < 15e6


# --- shots, probes ---


def test_shots_are_drawn_by_class_and_grow():
    labels = torch.tensor([0] * 10 + [1] * 3 + [3] * 10)
    few, more = probe.draw_shots(labels, 2, seed=5), probe.draw_shots(labels, 5, seed=5)
    assert labels[few].bincount().tolist() == [2, 2, 0, 2] and labels[more].bincount().tolist() == [5, 3, 0, 5]
    assert set(few.tolist()) <= set(more.tolist())
    assert set(few.tolist()) != set(probe.draw_shots(labels, 2, seed=6).tolist())
    assert sorted(probe.draw_shots(labels, None, seed=5).tolist()) == list(range(23))
    with pytest.raises(ValueError, match="1 image per class or more, got 0"):
        probe.draw_shots(labels, 0, seed=0)


def test_a_split_keeps_every_class_on_both_sides():
    labels = torch.tensor([0] * 10 + [1] * 2)
    fit, choose = probe.split_shots(labels, seed=0)
    assert labels[fit].bincount().tolist() == [8, 1] and labels[choose].bincount().tolist() == [2, 1]
    assert sorted(torch.cat([fit, choose]).tolist()) == list(range(12))
    fit, choose = probe.split_shots(torch.tensor([0, 0, 1]), seed=0)  # a class's only image fits
    assert sorted(fit.tolist()) in ([0, 2], [1, 2]) and len(choose) == 1
    with pytest.raises(ValueError, match="2 images in at least one class, got 1"):
        probe.split_shots(torch.tensor([0, 1, 3]), seed=0)
    x, y = torch.eye(4), torch.tensor([0, 0, 1, 2])  # a single image chooses
    assert probe.linear_probe(x, y, x)[0].shape == (4,)


def test_knn_agrees_with_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(200, 6, generator=generator), torch.randn(2_300, 6, generator=generator)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0)

    def weigh(distance):
        return torch.tensor((1 - distance) / 0.07).exp().numpy()

    theirs = KNeighborsClassifier(20, metric="cosine", weights=weigh).fit(x, y).predict(new)
    ours = probe.knn_predict(x, y, new)
    assert (ours == torch.tensor(theirs)).float().mean() > 0.999
    assert probe.knn_predict(x[:3], y[:3], new).shape == (2_300,)  # fewer images than k
    assert torch.equal(probe.knn_predict(x, y, 100 * new), ours)  # the length of a vector does not count


X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
WRONG = {  # name -> (x, y, new_x) and what is said of it
    "nan": ((X.clone().fill_diagonal_(torch.nan), Y, X), "got nan or inf in 4 of 12 known"),
    "inf among the new": ((X, Y, X * torch.inf), "of 12 new ones"),
    "none": ((X[:0], Y[:0], X), r"one or more, got torch.int64 of shape \(0,\)"),
    "rank": ((X[0], Y, X), r"expected features \(N, D\) for 12 labels"),
    "tokens": ((X[:, None], Y, X), r"expected features \(N, D\)"),
    "other widths": ((X, Y, X[:, :3]), r"expected features \(N, D\)"),
    "no width": ((X[:, :0], Y, X[:, :0]), r"expected features \(N, D\)"),
    "other counts": ((X, Y[:5], X), r"for 5 labels.*\(12, 4\)"),
    "labels in a column": ((X, Y[:, None], X), r"labels \(N,\)"),
    "float labels": ((X, Y.float(), X), "whole numbers, one or more, got torch.float32"),
    "a label left out": ((X, Y - 1, X), "labels from 0, got -1"),
    "complex": ((X.to(torch.complex64), Y, X), "real features"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("ask", [probe.knn_predict, probe.linear_probe])
def test_features_that_do_not_fit_are_refused(ask, name):
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        ask(*given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_features_of_any_type_are_taken(dtype):
    x = (10 * X).round().to(dtype)
    asked = (x.t().contiguous().t(), Y.to(torch.uint8), x[::2])  # not contiguous
    assert torch.equal(probe.knn_predict(*asked), probe.knn_predict(x.float(), Y, x[::2].float()))
    assert torch.equal(probe.linear_probe(*asked)[0], probe.linear_probe(x.float(), Y, x[::2].float())[0])


def test_no_new_features_one_class_and_a_sharp_temperature():
    assert probe.knn_predict(X, Y, X[:0]).shape == probe.linear_probe(X, Y, X[:0])[0].shape == (0,)
    assert probe.knn_predict(X, torch.full((12,), 4), X).tolist() == [4] * 12
    with pytest.raises(ValueError, match=r"2 classes or more, got 1: \[4\]"):
        probe.linear_probe(X, torch.full((12,), 4), X)
    assert torch.equal(probe.knn_predict(X, Y, X, temperature=1e-3), Y)  # exp(1 / 0.001) is no number
    for wrong in ({"k": 0}, {"k": 2.5}, {"temperature": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="expected .* got"):
            probe.knn_predict(X, Y, X, **wrong)


@pytest.mark.parametrize("labels", [Y[:0], Y[:, None], Y.float(), Y - 1])
def test_labels_that_are_none_are_refused(labels):
    for draw in (lambda: probe.draw_shots(labels, 1, seed=0), lambda: probe.split_shots(labels, seed=0)):
        with pytest.raises(ValueError, match="expected labels"):
            draw()


def test_the_probe_chooses_its_penalty_without_the_new_images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 30, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    new = torch.randn(400, 30, generator=generator)
    truth = (new[:, 0] + new[:, 1] > 0).long()
    answers, C = probe.linear_probe(x, y, new)
    assert (answers == truth).float().mean() > 0.85 and C in (1.0, 10.0, 100.0, 1_000.0)
    assert probe.linear_probe(x, y, new[:1])[1] == C
    lengths = torch.logspace(-3, 3, 400)[:, None]
    assert torch.equal(probe.linear_probe(lengths[:120] * x, y, lengths * new)[0], answers)  # no length counts
    apart = probe.linear_probe(x, 3 * y + 1, new)[0]  # labels need not begin at 0
    assert set(apart.tolist()) == {1, 4}


def test_with_one_image_of_each_of_two_classes_the_probe_answers_as_the_nearest_does():
    generator = torch.Generator().manual_seed(0)
    x, new, y = torch.randn(2, 64, generator=generator), torch.randn(300, 64, generator=generator), torch.tensor([1, 0])
    x[0, :32] = x[1, :32] + 1e-4  # features that hardly differ: a scaler would blow them up
    answers, C = probe.linear_probe(x, y, new)
    assert torch.equal(answers, probe.knn_predict(x, y, new, k=1)) and C == 10  # nothing to choose by


def test_training_learns():
    part = made_set(60)
    dataset = data.as_dataset(part, part, transform(), (0.5,), (0.5,))
    net = probe.train_steps(small_vit(num_classes=2), dataset, steps=40, lr=3e-3)
    seen = net(data.normalise(dataset.train_images, 0.5, 0.5)).argmax(dim=1)
    assert (seen == part.labels).float().mean() > 0.9 and not net.training
    same = probe.train_steps(small_vit(num_classes=2), dataset, steps=40, lr=3e-3)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), same.state_dict().values(), strict=True))


def test_what_cannot_be_trained_with_is_refused():
    part = made_set(20)
    dataset = data.as_dataset(part, part, transform(), (0.5,), (0.5,))
    none = replace(dataset, train_images=dataset.train_images[:0], train_labels=dataset.train_labels[:0])
    how = dict(steps=1, lr=1e-3)
    for net, chosen, changes, message in (
        (small_vit(), none, {}, "no images to train on"),
        (small_vit(num_classes=1), dataset, {}, "expected classes from 0 to 0, got 0 to 1"),
        (distilled(), dataset, {}, "got a tuple: wrap the model"),
        (Pooled(small_vit()), dataset, {"batch_size": 0}, "batch_size to be a whole number, 1 or more, got 0"),
        (small_vit(), dataset, {"steps": 0}, "steps to be"),
        (small_vit(), dataset, {"lr": 0.0}, "rate above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            probe.train_steps(net, chosen, **how | changes)


def test_a_set_to_train_on_is_made_or_refused():
    part, bent = made_set(4), lambda image: v2.functional.normalize(image / 255, [0.5], [0.01])
    for given, message in (
        ((part, part.at([]), transform(), (0.5,), (0.5,)), "no pictures"),
        ((part, part, bent, (0.5,), (0.5,)), "give those that the transform uses"),
        ((part, part, lambda image: image, (0.5,), (0.5,)), "float images, normalised, got torch.uint8"),
        ((part, part, lambda image: (image, 1), (0.5,), (0.5,)), r"tensors \(C, H, W\)"),
        ((part, part, transform(), (0.5, 0.5), (0.5,)), "expected 1 or 1 values"),
    ):
        with pytest.raises(ValueError, match=message):
            data.as_dataset(*given)


def test_training_takes_as_many_steps_as_asked(monkeypatch):
    part, taken = made_set(20), []
    dataset = data.as_dataset(part, part, transform(), (0.5,), (0.5,))
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (taken.append(1), step(self, *a))[1])
    for size, steps in ((32, 3), (8, 7)):  # all images in one batch; two whole batches an epoch
        taken.clear()
        probe.train_steps(small_vit(num_classes=2), dataset, steps=steps, lr=1e-3, batch_size=size)
        assert len(taken) == steps


def test_images_to_train_on_are_those_the_net_saw():
    part = made_set()
    dataset = data.as_dataset(part, part.at([1, 2]), transform(), (0.5,), (0.5,))
    assert all(torch.equal(dataset.train_images[i], part[i][0]) for i in range(len(part)))
    assert torch.equal(dataset.test_labels, part.labels[1:3])
    seen = data.normalise(dataset.train_images, dataset.mean, dataset.std)
    torch.testing.assert_close(seen[3], transform()(part[3][0]))
