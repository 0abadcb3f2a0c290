"""Loading other people's weights: what is found where, what is refused, and in which words."""

import http.server
import os
import shutil
import threading
import time

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from vitutils import check, data, train
from vitutils.analysis.classifier import with_new_classifier, without_classifier
from vitutils.models import ViT, ViTConfig, conversion, weights

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALL = ViTConfig(
    img_size=16, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A safetensors file as timm writes them, with random weights of ViT-Tiny."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224")
    for p in model.parameters():
        nn.init.normal_(p, std=0.05)
    path = tmp_path_factory.mktemp("made") / f"{NAME}.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An address that never answers (192.0.2.1 is reserved for examples), and an empty hub cache."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://192.0.2.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(monkeypatch, tmp_path, no_network):
    """An empty weights folder, which is the only place to look."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "weights").mkdir(parents=True)
    return tmp_path / "data" / "weights"


@pytest.fixture
def hub(checkpoint, tmp_path, no_network, monkeypatch):
    """A hub on this machine that hands out `checkpoint` as NAME's file; gives the requests it saw, headers included."""
    raw, seen = checkpoint.read_bytes(), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
            if self.path != f"/timm/{NAME}/resolve/main/model.safetensors":
                self.send_error(404)
                return
            self.send_response(200)
            for key, value in {"ETag": '"e1"', "X-Repo-Commit": "a" * 40, "Content-Length": len(raw)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(raw)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield seen
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_once_says_how_much_and_gets_no_token(hub, checkpoint, monkeypatch, capfd):
    """The whole way through the hub's own client; a reader's token and Colab's secrets stay where they are."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = weights.find_weights(NAME, f"timm/{NAME}")
    assert found.read_bytes() == checkpoint.read_bytes()
    megabytes = checkpoint.stat().st_size / 1e6
    assert capfd.readouterr() == (f"downloading {NAME} once, {megabytes:.0f} MB\n", "")
    assert hub and not any("authorization" in headers for *_, headers in hub)
    asked = len(hub)
    assert weights.find_weights(NAME, f"timm/{NAME}") == found and len(hub) == asked
    assert capfd.readouterr() == ("", "")


def test_a_reader_sees_the_hubs_download_move(hub, monkeypatch, capfd):
    monkeypatch.setenv("JPY_SESSION_NAME", "reader.ipynb")
    weights.find_weights(NAME, f"timm/{NAME}")
    out, err = capfd.readouterr()
    assert "100%" in out and out.count("\n") == 1 and err == ""


def test_weights_the_hub_does_not_hold(hub):
    with pytest.raises(FileNotFoundError, match="no weights for nonesuch.*hub, timm/nonesuch"):
        weights.find_weights("nonesuch", "timm/nonesuch")


# --- checkpoints without a head, and architectures that are not ours ---

SIZES = dict(img_size=16, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_heads=3)
BEYOND = {  # what timm's VisionTransformer can be told -> what the error says of it
    "layer scale": (dict(init_values=1e-4), "LayerScale as ls1, LayerScale as ls2"),
    "registers": (dict(reg_tokens=2), "registers"),
    "DeiT III": (dict(no_embed_class=True), "a class token without position"),
    "SwiGLU": (dict(mlp_layer=timm.layers.SwiGLU), "SwiGLU as mlp"),
    "fc_norm": (dict(class_token=False, global_pool="avg"), "LayerNorm as fc_norm.* fc_norm normalises the mean"),
    "both": (dict(global_pool="avg", fc_norm=False), "a class token beside mean pooling"),
    "max": (dict(global_pool="max", fc_norm=False), "pooling 'max'"),
    "map": (dict(global_pool="map"), "AttentionPoolLatent as attn_pool"),
    "no positions": (dict(pos_embed="none"), "no positions"),
    "no last norm": (dict(final_norm=False), "Identity as norm"),
    "no bias": (dict(proj_bias=False), "blocks.0.attn.proj.bias"),
    "oblong": (dict(patch_size=(8, 4)), "patches that are not square"),
    "parallel": (dict(block_fn=timm.models.vision_transformer.ParallelThingsBlock), "ParallelThingsBlock as block$"),
    "no blocks": (dict(depth=0), "no blocks"),
}
WITHIN = {
    "no head": dict(num_classes=0),
    "mean": dict(class_token=False, global_pool="avg", fc_norm=False),
    "any size": dict(dynamic_img_size=True),
    "a width that rounds down": dict(mlp_ratio=4304 / 1152, embed_dim=48),
    "grey, oblong, no qkv bias": dict(in_chans=1, img_size=(16, 24), qkv_bias=False),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_our_vit_cannot_stand_for_is_named(name):
    changes, message = BEYOND[name]
    with pytest.raises(ValueError, match=f"expected a plain ViT.* has .*{message}"):
        conversion.config_of(timm.models.VisionTransformer(**SIZES | changes))


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.filterwarnings("error")
def test_what_our_vit_can_stand_for_computes_the_same(name):
    theirs = timm.models.VisionTransformer(**SIZES | WITHIN[name]).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    config = conversion.config_of(theirs)
    ours = conversion.load_into(ViT(config), theirs.state_dict()).eval()
    images = torch.randn(2, config.in_chans, *config.image_shape)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_the_configuration_of_another_class_is_refused(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    with pytest.raises(ValueError, match=f"plain VisionTransformer, got a {type(net).__name__}"):
        conversion.config_of(net)


def test_a_checkpoint_without_a_head_gives_features(folder):
    name = "vit_small_patch16_224.dino"
    theirs = timm.create_model(name, pretrained=False).eval()
    assert theirs.num_classes == 0
    save_file(theirs.state_dict(), folder / f"{name}.safetensors")
    found = weights.load_pretrained(name)
    assert found.classes == () and found.model.config.num_classes == 0 and isinstance(found.model.head, nn.Identity)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = found.model(images)
        assert features.shape == (1, 384) and torch.allclose(features, theirs(images), atol=1e-4)
        assert torch.equal(without_classifier(found.model)(images), features)
    x, y = torch.randn(9, 384), torch.arange(9) % 3
    assert with_new_classifier(found.model, x, y)(images).shape == (1, 3)


def test_an_architecture_of_other_parts_is_refused_before_anything_is_fetched(folder):
    with pytest.raises(ValueError, match="this VisionTransformer has LayerScale as ls1"):
        weights.load_pretrained("vit_small_patch14_dinov2.lvd142m")


# --- load_into: all or nothing ---


def test_what_does_not_fit_is_listed_and_nothing_is_copied():
    model = ViT(SMALL)
    before = {key: p.clone() for key, p in model.state_dict().items()}
    state = {key: p + 1 for key, p in before.items()}
    del state["norm.weight"]
    state["norm.scale"] = torch.ones(24)
    state["head.weight"] = torch.ones(7, 24)
    with pytest.raises(ValueError) as error:
        conversion.load_into(model, state, origin="a.safetensors")
    told = str(error.value)
    assert "a.safetensors" in told
    assert "1 missing: norm.weight" in told
    assert "1 unexpected: norm.scale" in told
    assert "head.weight (expected (5, 24), got (7, 24))" in told
    assert all(torch.equal(p, before[key]) for key, p in model.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_each_kind_of_misfit_is_enough(change):
    state = ViT(SMALL).state_dict()
    if change == "missing":
        del state["cls_token"]
    elif change == "unexpected":
        state["reg_token"] = torch.zeros(1, 4, 24)
    else:
        state["pos_embed"] = torch.zeros(1, 10, 24)
    with pytest.raises(ValueError, match=f"1 .*{change}"):
        conversion.load_into(ViT(SMALL), state)


def test_weights_whose_norm_stands_behind_the_mean_are_told_so():
    theirs = timm.models.VisionTransformer(**SIZES, class_token=False, global_pool="avg").state_dict()
    with pytest.raises(ValueError, match="2 unexpected: fc_norm.bias, fc_norm.weight.* fc_norm normalises the mean"):
        conversion.load_into(ViT(ViTConfig(16, 8, 3, 5, 24, 2, 3, global_pool="avg")), theirs)


def test_long_lists_are_cut_short():
    with pytest.raises(ValueError, match=r"32 missing: .* and 24 more$"):
        conversion.load_into(ViT(SMALL), {})


def test_what_fits_is_copied_and_the_model_returned():
    model = ViT(SMALL)
    state = {key: torch.randn_like(p) for key, p in model.state_dict().items()}
    assert conversion.load_into(model, state) is model
    assert all(torch.equal(p, state[key]) for key, p in model.state_dict().items())


# --- renaming ---


def test_names_go_over_and_come_back():
    state = ViT(SMALL).state_dict()
    for there, back in (
        (conversion.to_timm, conversion.from_timm),
        (conversion.to_torchvision, conversion.from_torchvision),
    ):
        again = back(there(state))
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], state[key]) for key in state)


def test_block_numbers_of_two_digits_survive():
    theirs = conversion.to_torchvision(ViT(ViTConfig(16, 8, 3, 5, 24, 12, 3)).state_dict())
    assert "encoder.layers.encoder_layer_11.mlp.3.bias" in theirs
    assert "blocks.11.mlp.fc2.bias" in conversion.from_torchvision(theirs)


@pytest.mark.parametrize("key", ["conv1.weight", "blocks.0.ls1.gamma", "fc_norm.weight"])
@pytest.mark.parametrize("rename", [conversion.to_torchvision, conversion.to_vit_pytorch])
def test_keys_without_a_place_are_named(rename, key):
    state = ViT(SMALL).state_dict() | {key: torch.zeros(3)}
    with pytest.raises(ValueError, match=key):
        rename(state)


def test_another_architecture_of_torchvision_is_named():
    with pytest.raises(ValueError, match="2 weights have no place.*: conv1.weight, fc.bias"):
        conversion.from_torchvision({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)})


def test_what_the_other_library_cannot_hold_is_refused():
    averaged = ViT(ViTConfig(16, 8, 3, 5, 24, 2, 3, global_pool="avg")).state_dict()
    unbiased = ViT(ViTConfig(16, 8, 3, 5, 24, 2, 3, qkv_bias=False)).state_dict()
    with pytest.raises(ValueError, match="cls_token"):
        conversion.to_torchvision(averaged)
    with pytest.raises(ValueError, match="qkv.bias"):
        conversion.to_torchvision(unbiased)
    for state in (ViT(SMALL).state_dict(), unbiased):
        with pytest.raises(ValueError, match="qkv bias, and a LayerNorm"):
            conversion.to_vit_pytorch(state)
    with pytest.raises(ValueError, match="to_out.0"):
        conversion.from_vit_pytorch({"cls_token": torch.zeros(1, 24)})
    with pytest.raises(ValueError, match="always has pos_embedding and cls_token"):
        conversion.from_vit_pytorch({"transformer.layers.0.0.to_out.0.weight": torch.zeros(24, 24)})
    with pytest.raises(ValueError, match="no pos_embed"):
        conversion.to_vit_pytorch({"patch_embed.norm_in.weight": torch.zeros(24)})
    with pytest.raises(ValueError, match="patch_size 8 does not divide 12 x 16"):
        conversion.VitPytorchPatchEmbed(8, 3, 24)(torch.zeros(1, 3, 12, 16))


# --- files ---


def test_a_file_in_the_weights_folder_is_loaded(folder, checkpoint):
    path = shutil.copy(checkpoint, folder)
    found = weights.load_pretrained(NAME)
    state = load_file(checkpoint)
    assert found.source == str(path) and found.name == NAME and not found.model.training
    assert all(torch.equal(p, state[key]) for key, p in found.model.state_dict().items())
    assert tuple(found.mean) == (0.5, 0.5, 0.5) == tuple(found.std)


def test_the_transform_belongs_to_the_checkpoint(folder, checkpoint):
    shutil.copy(checkpoint, folder)
    transform = weights.load_pretrained(NAME).transform
    seen = transform(Image.new("RGB", (320, 256), (255, 255, 255)))
    assert seen.shape == (3, 224, 224) and torch.allclose(seen, torch.ones(()))
    cat = data.photos()["cat"]
    image, tensor = Image.fromarray(cat.permute(1, 2, 0).numpy()), transform(cat)
    check.check_shape(tensor, (3, 224, 224), "C H W")
    check.check_close(tensor, transform(image), tol=0.05)  # two ways to round after resizing


def test_every_folder_is_searched_and_the_first_wins(folder, checkpoint, monkeypatch, tmp_path):
    second = tmp_path / "second" / "weights"
    second.mkdir(parents=True)
    roots = [tmp_path / "not there", folder.parent, second.parent]
    monkeypatch.setenv("VITBOOK_DATA", os.pathsep.join(map(str, roots)))
    path = shutil.copy(checkpoint, second)
    assert weights.load_pretrained(NAME).source == str(path)
    first = shutil.copy(checkpoint, folder)
    assert weights.load_pretrained(NAME).source == str(first)


def test_a_truncated_file_is_named(folder, checkpoint):
    path = folder / checkpoint.name
    content = checkpoint.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged") as error:
            weights.load_pretrained(NAME)
        assert str(path) in str(error.value)


def test_a_file_with_a_wrong_key_is_named_with_the_key(folder, checkpoint):
    state = load_file(checkpoint)
    state["blocks.3.mlp.fc3.bias"] = state.pop("blocks.3.mlp.fc2.bias")
    path = folder / checkpoint.name
    save_file(state, path)
    with pytest.raises(ValueError) as error:
        weights.load_pretrained(NAME)
    told = str(error.value)
    assert str(path) in told
    assert "1 missing: blocks.3.mlp.fc2.bias" in told
    assert "1 unexpected: blocks.3.mlp.fc3.bias" in told


def test_no_pickle_is_read(folder, checkpoint):
    torch.save(load_file(checkpoint), folder / checkpoint.name)
    with pytest.raises(ValueError, match="damaged"):
        weights.load_pretrained(NAME)


@pytest.mark.parametrize("name", ["vit_nope", "vit_tiny_patch16_224.nope", "", "../weights"])
def test_unknown_names_are_refused_with_what_is_near(name):
    with pytest.raises(ValueError, match="timm knows no model"):
        weights.load_pretrained(name)


def test_a_misspelt_name_gets_the_right_one():
    with pytest.raises(ValueError, match=NAME):
        weights.load_pretrained("vit_tiny_patch16_224.augreg_in21k_ft_in1")


@pytest.mark.parametrize(
    "name, kind",
    [
        ("resnet18.a1_in1k", "ResNet"),
        ("deit_tiny_distilled_patch16_224.fb_in1k", "VisionTransformerDistilled"),
    ],
)
def test_other_architectures_are_refused(name, kind):
    with pytest.raises(ValueError, match=f"{kind}; expected a plain VisionTransformer"):
        weights.load_pretrained(name)


def test_without_file_and_network_all_that_was_tried_is_named_at_once(folder, monkeypatch):
    def wait(seconds):
        raise AssertionError("waited, to ask again")

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(FileNotFoundError) as error:
        weights.load_pretrained(NAME)
    assert str(folder / f"{NAME}.safetensors") in str(error.value)
    assert f"timm/{NAME}" in str(error.value)


def test_the_real_vit_tiny_knows_a_cat():
    folders = [folder for folder in weights.weight_folders() if (folder / f"{NAME}.safetensors").is_file()]
    if not folders:
        pytest.skip(f"no {NAME}.safetensors in a weights folder of VITBOOK_DATA")
    found = weights.load_pretrained(NAME)
    theirs = timm.create_model("vit_tiny_patch16_224")
    theirs.load_state_dict(load_file(found.source))
    pictures = data.photos()
    with torch.no_grad():
        images = torch.stack([found.transform(picture) for picture in pictures.values()])
        logits = found.model(images)
        assert (logits - theirs.eval()(images)).abs().max() < 1e-4
    best = dict(zip(pictures, logits.argmax(dim=1).tolist(), strict=True))
    assert best["cat"] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert best["coffee"] in (504, 967, 968)  # mug, espresso, cup


# --- the pocket ViT, and the first that can be had ---


def test_the_pocket_vit_is_what_its_card_says(no_network):
    from studies import pocket
    from studies.record import store_of

    assert weights.POCKET_FILE.stat().st_size < 2_000_000
    store = store_of(pocket)
    card = weights.POCKET_FILE.with_suffix(".md").read_text()
    assert card == pocket.card(store), "written by an older study: python -m studies pocket --ship"
    shipped = next(r for r in store.rows() if r["part"] == "main" and int(r["seed"]) == pocket.SHIPPED)
    assert float(shipped["accuracy"]) >= 0.915
    try:
        dataset = data.load("fashion_mnist", download=False).take(test=1000)
    except data.DataError:
        pytest.skip("Fashion-MNIST is not on this machine")
    found = weights.load_pretrained("pocket")
    assert found.classes == dataset.classes and not found.model.training
    assert found.mean == pytest.approx(dataset.mean.tolist(), abs=1e-5)
    result = train.evaluate(
        found.model, dataset.test_images, dataset.test_labels, mean=found.mean, std=found.std
    )
    assert abs(result.accuracy - float(shipped["accuracy"])) < 0.025  # 1,000 of the 10,000: 3 standard errors


def test_the_pocket_vits_transform_takes_pictures_and_tensors(no_network):
    found = weights.load_pretrained("pocket")
    cat = data.photos()["cat"]
    picture = Image.fromarray(cat.permute(1, 2, 0).numpy())
    check.check_shape(found.transform(picture), (1, 28, 28))
    check.check_close(found.transform(picture), found.transform(cat), tol=1e-6)
    grey = torch.randint(256, (1, 28, 28), dtype=torch.uint8)
    check.check_close(found.transform(grey), data.normalise(grey, found.mean, found.std), tol=1e-6)
    check.check_close(found.transform(Image.fromarray(grey[0].numpy())), found.transform(grey), tol=1e-6)
    turned = picture.transpose(Image.Transpose.ROTATE_90)  # as a camera held upright stores it, and says so
    turned.getexif()[0x0112] = 6
    check.check_close(found.transform(turned), found.transform(picture), tol=1e-6)


def test_a_damaged_or_missing_pocket_vit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "POCKET_FILE", tmp_path / "pocket.safetensors")
    with pytest.raises(FileNotFoundError, match="pocket.safetensors: it comes with the book"):
        weights.load_pretrained("pocket")
    (tmp_path / "pocket.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="pocket.safetensors is damaged"):
        weights.load_pretrained("pocket")


def test_the_first_that_can_be_had(folder, checkpoint):
    assert weights.load_pretrained(NAME, "pocket").source.endswith(f"({NAME} not found)")
    shutil.copy(checkpoint, folder)
    first = weights.load_pretrained(NAME, "pocket")
    assert first.name == NAME and "could not" not in first.source
    assert len(first.classes) == 1000 and first.classes[281].startswith("tabby")
    with pytest.raises(ValueError, match="no model 'nonesuch'"):
        weights.load_pretrained("nonesuch", "pocket")
    with pytest.raises(ValueError, match="got none"):
        weights.load_pretrained()


def test_none_can_be_had(folder):
    other = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    with pytest.raises(FileNotFoundError) as error:
        weights.load_pretrained(NAME, other)
    assert NAME in str(error.value) and other in str(error.value)
