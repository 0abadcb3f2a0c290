"""ONNX files: equal to torch in any batch and size, refused clearly where that cannot be, small in int8."""

import json
from functools import partial

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vitutils.analysis import export
from vitutils.analysis import photo_model as pm
from vitutils.analysis.export import OnnxModel, accuracies, largest_difference, to_int8, to_onnx
from vitutils.models import SmallCNN, ViT, ViTConfig
from vitutils.models.backbones import load_backbone
from vitutils.models.swin import Swin, SwinConfig
from vitutils.models.weights import load_pocket

SIDE = 32


def shaken(net: nn.Module) -> nn.Module:
    """Every weight moved, so that no part is at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit(pool="token", **more):
    sizes = dict(img_size=SIDE, patch_size=8, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    return shaken(ViT(ViTConfig(**sizes, global_pool=pool, **more)))


def by_timm(name="vit_tiny_patch16_224", **more):
    torch.manual_seed(0)
    return shaken(timm.create_model(name, num_classes=5, **more))


def swin(**more):
    sizes = dict(img_size=SIDE, patch_size=2, num_classes=5, embed_dim=8, depths=(2, 2), num_heads=(2, 4))
    return shaken(Swin(SwinConfig(**sizes, window_size=4, **more)))


def photos(kind="linear", temperature=1.7):
    nearest = pm.fit_nearest(noise(9, 64), torch.arange(9) % 3, 3, 5)
    head = shaken(pm.LinearHead(64, 3)) if kind == "linear" else nearest
    return pm.PhotoModel(load_backbone("pocket"), head, ("cat, tabby", "dog <b>", "häm"), temperature).eval()


CNN = partial(SmallCNN, 3, 5, (8, 16))
# network, (C, H, W), whether it takes other sizes
NETS = {
    "vit": (vit, (3, SIDE, SIDE), True),
    "vit mean, not square": (partial(vit, "avg"), (3, SIDE, 2 * SIDE), True),
    "swin": (swin, (3, SIDE, SIDE), False),
    "swin v2": (partial(swin, version=2), (3, SIDE, SIDE), False),
    "cnn": (lambda: shaken(CNN()), (3, SIDE, SIDE), True),
    "pocket": (lambda: load_pocket().model, (1, 28, 28), True),
    "timm vit": (partial(by_timm, depth=2, img_size=SIDE), (3, SIDE, SIDE), False),
    "timm vit, dynamic": (partial(by_timm, depth=2, img_size=SIDE, dynamic_img_size=True), (3, SIDE, SIDE), True),
    "photos, linear": (photos, (1, 28, 28), False),
    "photos, nearest": (partial(photos, "nearest"), (1, 28, 28), False),
}


def seldom(name, quick):
    """An export takes seconds: the rest of a list waits for `make test-all`."""
    return pytest.param(name, marks=() if name in quick else pytest.mark.slow)


@pytest.mark.parametrize("name", [seldom(name, ("vit", "pocket", "photos, nearest")) for name in NETS])
def test_onnxruntime_answers_as_torch_does_in_any_batch(name, tmp_path):
    make, size, dynamic = NETS[name]
    net = make()
    run = OnnxModel(to_onnx(net, tmp_path / "net.onnx", size, dynamic))
    images = noise(8, *size)
    assert largest_difference(net, run, images, (1, 3, 8)) < 1e-4
    assert run(images[:0]).shape == (0, run(images).shape[1])
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    if dynamic:
        C, H, W = size
        for h, w in ((2 * H, W), (H, 3 * W)):
            assert largest_difference(net, run, noise(3, C, h, w), (1, 3)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fewer"),  # blocks: the shifted window of Swin is in its second; an export takes seconds for each
    [
        ("swin_tiny_patch4_window7_224", {"depths": (2, 1, 1, 1)}),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}),
        ("vit_tiny_patch16_224", {"depth": 2}),
    ],
)
def test_timms_own_networks(name, fewer, tmp_path):
    net = by_timm(name, **fewer)
    run = OnnxModel(to_onnx(net, tmp_path / "net.onnx", 224, dynamic_size="convnext" in name))
    images = noise(8, 3, 224, 224)
    scale = max(1.0, net(images).abs().max().item())
    assert largest_difference(net, run, images) < 1e-4 * scale


def test_the_network_is_left_as_it_was(tmp_path):
    net = nn.Sequential(vit(), nn.Dropout(0.5), nn.Linear(5, 4))
    net.train()
    net[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = OnnxModel(to_onnx(net, tmp_path / "net.onnx", SIDE))
    assert net.training and net[1].training and not net[0].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert largest_difference(net, run, noise(8, 3, SIDE, SIDE)) < 1e-4  # no dropout, and eval mode in torch too


@pytest.mark.parametrize("dtype", [torch.bfloat16, *(seldom(d, ()) for d in (torch.float16, torch.float64))])
def test_another_precision_is_written_in_float32(dtype, tmp_path):
    net = CNN().eval().to(dtype)
    run = OnnxModel(to_onnx(net, tmp_path / "net.onnx", SIDE))
    images = noise(3, 3, SIDE, SIDE)
    assert (run(images) - as_float32(net)(images)).abs().max() < 1e-4
    assert {p.dtype for p in net.parameters()} == {dtype}


def as_float32(net):
    again = CNN().eval()
    again.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    return again


class Gives(nn.Module):
    """A network that gives what it is told to give."""

    def __init__(self, make):
        super().__init__()
        self.make, self.net = make, nn.Linear(3, 5)

    def forward(self, images):
        return self.make(self.net(images.mean((2, 3))), images)


REFUSED = {
    "a tuple": (Gives(lambda x, _: (x, x)), SIDE, {}, r"expected logits \(B, K\), got a tuple"),
    "a map": (Gives(lambda x, images: images), SIDE, {}, r"got \(2, 3, 32, 32\)"),
    "a size": (vit(), 30, {}, "multiples of 8"),
    "no size": (vit(), None, {}, "expected the size"),
    "half a size": (vit(), (3, SIDE), {}, "expected the size"),
    "names": (vit(), SIDE, {"classes": "abcd"}, "expected 5 names"),
    "one size": (by_timm(depth=1, img_size=SIDE), SIDE, {"dynamic_size": True}, "dynamic_img_size=True"),
    "one size of ours": (swin(position="absolute"), SIDE, {"dynamic_size": True}, "images of one size only"),
    "chance": (Gives(lambda x, _: x + torch.rand_like(x)), SIDE, {}, "otherwise than torch"),
    "no network": (lambda x: x, SIDE, {}, "an nn.Module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(name, tmp_path, capfd):
    net, size, more, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as error:
        to_onnx(net, tmp_path / "net.onnx", size, **more)
    assert not list(tmp_path.iterdir()) and "\n" not in str(error.value) and len(str(error.value)) < 500
    assert capfd.readouterr().err == ""


def test_what_is_there_stays_where_writing_fails(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"mine")
    with pytest.raises(ValueError):
        to_onnx(vit(), tmp_path / "net.onnx", 30)
    assert (tmp_path / "net.onnx").read_bytes() == b"mine"


def test_too_large_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MOST", 1_000)
    with pytest.raises(ValueError, match="2 GB"):
        to_onnx(vit(), tmp_path / "net.onnx", SIDE)


def test_without_the_libraries_the_line_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript onnxruntime"):
        to_onnx(vit(), tmp_path / "net.onnx", SIDE)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        OnnxModel(tmp_path / "net.onnx")


# --- what the file carries ---


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A photo model, and its three files."""
    folder, model = tmp_path_factory.mktemp("onnx"), photos()
    to_onnx(model, folder / "model.onnx")
    for how in ("dynamic", "weights"):
        to_int8(folder / "model.onnx", folder / f"{how}.onnx", how=how)
    to_int8(folder / "model.onnx", folder / "static.onnx", noise(16, 1, 28, 28))
    return model, folder


def pictures():
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (3, 50, 70, 4), generator=generator, dtype=torch.uint8).numpy()
    return [Image.fromarray(made[0][..., :3]), Image.fromarray(made[1]), Image.fromarray(made[2][..., 0])]


def test_a_photo_model_is_whole_in_its_file(written):
    model, folder = written
    run = OnnxModel(folder / "model.onnx", threads=1)
    assert run.classes == model.classes and run.temperature == 1.7 and run.input_size == (1, 28, 28)
    assert torch.allclose(run.probabilities(pictures()), model.probabilities(pictures()), atol=1e-5)


@pytest.mark.parametrize("name", ["pocket", "vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "convnext_atto"])
def test_the_preprocessing_comes_back_from_plain_values(name):
    from vitutils.models.weights import transform_of

    transform = load_pocket().transform
    if name != "pocket":
        with torch.device("meta"):
            net = timm.create_model(name)
        transform = transform_of(net)[1]
    again = export.transform_from(json.loads(json.dumps(export.preprocessing_of(transform))))
    for picture in pictures():
        assert torch.allclose(again(picture), transform(picture), rtol=0, atol=1e-6)  # the order of two divisions


def test_a_step_that_plain_values_do_not_say_is_not_stored():
    from torchvision.transforms import v2

    assert export.preprocessing_of(v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.Lambda(lambda x: x)])) is None
    assert export.preprocessing_of(None) is None


def test_a_file_without_preprocessing_says_so(tmp_path):
    run = OnnxModel(to_onnx(vit(), tmp_path / "net.onnx", SIDE))
    assert run.transform is None and run.classes == ()
    with pytest.raises(ValueError, match="holds no preprocessing"):
        run.probabilities(pictures())


@pytest.mark.parametrize("raw", [b"", b"half of a file", None])
def test_other_files_are_refused(raw, tmp_path):
    import onnx

    file = tmp_path / "x.onnx"
    info = onnx.helper.make_tensor_value_info("x", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", [info], [
        onnx.helper.make_tensor_value_info("y", 1, [1])])  # fmt: skip
    plain = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    file.write_bytes(plain.SerializeToString() if raw is None else raw)
    with pytest.raises(ValueError, match="x.onnx is no ONNX file that"):
        OnnxModel(file)
    with pytest.raises(FileNotFoundError, match="to_onnx"):
        OnnxModel(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize(
    "images", [noise(2, 3, 28, 28), noise(2, 1, 28, 30), noise(1, 28, 28), torch.ones(1, 1, 28, 28).int(), None, "x"]
)
def test_images_of_another_shape_are_refused(images, written):
    with pytest.raises(ValueError, match=r"expected images \(B, 1, 28, 28\), floats"):
        OnnxModel(written[1] / "model.onnx")(images)


def test_a_size_that_the_network_cannot_cut_is_refused(tmp_path):
    run = OnnxModel(to_onnx(vit(), tmp_path / "net.onnx", SIDE, dynamic_size=True))
    assert run.input_size == (3, 0, 0)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        run(noise(1, 1, SIDE, SIDE))


# --- int8 ---


@pytest.mark.parametrize("how", export.WAYS)
def test_int8_is_smaller_and_answers_nearly_the_same(how, written):
    model, folder = written
    run, images = OnnxModel(folder / f"{how}.onnx"), noise(16, 1, 28, 28)
    want = model(images).detach()
    away = (run(images) - want).abs().max() / want.std()
    assert run.int8 == how and run.classes == model.classes and run.temperature == model.temperature
    assert (folder / f"{how}.onnx").stat().st_size < 0.5 * (folder / "model.onnx").stat().st_size
    assert 1e-6 < away < (0.05 if how == "weights" else 0.5), away


@pytest.mark.parametrize("how", export.WAYS)
def test_an_answer_does_not_hang_on_the_other_images(how, written):
    run, images = OnnxModel(written[1] / f"{how}.onnx"), noise(4, 1, 28, 28)
    images[1:] *= 20
    assert torch.allclose(run(images)[:1], run(images[:1]), atol=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"how": "int4"}, "expected how"),
        ({"how": "static"}, "calibrated on images"),
        ({"how": "dynamic", "images": noise(16, 1, 28, 28)}, "calibrated on images"),
        ({"images": noise(16, 3, 28, 28)}, "expected images"),
        ({"images": noise(0, 1, 28, 28)}, "got none"),
    ],
)
def test_int8_asked_wrongly(more, said, written, tmp_path):
    with pytest.raises(ValueError, match=said):
        to_int8(written[1] / "model.onnx", tmp_path / "new.onnx", **more)
    assert not list(tmp_path.iterdir())


def test_int8_of_int8_is_refused(written, tmp_path):
    with pytest.raises(ValueError, match="in int8 already"):
        to_int8(written[1] / "dynamic.onnx", tmp_path / "new.onnx")


# --- speeds and accuracies ---


def test_speeds_are_told_for_each_runner_and_number_of_threads(written):
    model, folder = written
    before = torch.get_num_threads()
    files = {"int8": folder / "dynamic.onnx", "int8 weights": folder / "weights.onnx"}
    rows = export.speeds(model, folder / "model.onnx", files, noise(2, 1, 28, 28), threads=(1, 2), repeats=3)
    names = ["torch float32", "torch bfloat16", "onnxruntime float32", "onnxruntime int8", "onnxruntime int8 weights"]
    assert [(row["runner"], row["threads"]) for row in rows] == [(name, count) for count in (1, 2) for name in names]
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in rows)
    assert torch.get_num_threads() == before and {p.dtype for p in model.parameters()} == {torch.float32}


def test_runners_answer_alike_and_in_bfloat16_not_quite(written):
    model, folder = written
    found = export.runners(model, folder / "model.onnx", folder / "dynamic.onnx")
    images = noise(8, 1, 28, 28)
    want = found["torch float32"](images)
    assert (found["onnxruntime float32"](images) - want).abs().max() < 1e-4
    assert 1e-4 < (found["torch bfloat16"](images) - want).abs().max() < 0.3 * want.std() + 0.3


def test_accuracies_count_and_have_an_error():
    right = nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    wrong = nn.functional.one_hot(torch.tensor([0, 1, 1, 1]), 3).float()
    images = torch.arange(4.0)[:, None]
    rows = accuracies(
        {"a": lambda x: right[x[:, 0].long()], "b": lambda x: wrong[x[:, 0].long()]},
        images, torch.tensor([0, 1, 2, 0]), batch_size=3,
    )  # fmt: skip
    assert [(row["accuracy"], row["same"]) for row in rows] == [(1.0, 1.0), (0.5, 0.5)]
    assert all(0.05 < row["error"] < 0.3 for row in rows)
    with pytest.raises(ValueError, match="as many labels"):
        accuracies({}, images, torch.zeros(3))
