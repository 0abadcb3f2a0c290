"""Any backbone of timm's by name: which give features, and what the others say."""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vitutils.analysis import backbone_table
from vitutils.models import backbones
from vitutils.models.backbones import Backbone, licence_note, load_backbone

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
VIT_LIKE = ("vit_*", "deit*", "eva02*", "beit*")
# One of each kind that timm makes: tokens with and without a class token, registers, hybrids, maps of both layouts.
KINDS = {
    TINY: (192, 14),
    "vit_small_patch16_224.dino": (384, 14),
    "vit_small_patch14_reg4_dinov2.lvd142m": (384, 37),
    "vit_small_patch16_dinov3.lvd1689m": (384, 16),
    "vit_base_patch32_clip_224.openai": (768, 7),
    "vit_base_patch32_siglip_256": (768, 8),
    "eva02_tiny_patch14_224.mim_in22k": (192, 16),
    "beit_base_patch16_224": (768, 14),
    "deit_tiny_distilled_patch16_224": (192, 14),
    "vit_tiny_r_s16_p8_224": (192, 7),
    "vitamin_small_224": (384, 14),
    "swin_tiny_patch4_window7_224": (768, 7),
    "swinv2_cr_tiny_224": (768, 7),
    "convnext_atto": (320, 7),
    "resnet18": (512, 7),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """timm's drawing of weights, which on the meta device is slow and draws nothing; and no weights on this machine."""
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)


def on_meta(name: str, **how) -> Backbone:
    with torch.device("meta"):
        return load_backbone(name, random_weights=True, **how)


def shapes(backbone: Backbone) -> tuple[tuple, tuple]:
    images = torch.empty(2, *backbone.input_size, device="meta")
    with torch.no_grad():
        return tuple(backbone.features(images).shape), tuple(backbone.grid(images).shape)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_gives_features_and_a_grid(name):
    D, side = KINDS[name]
    assert shapes(on_meta(name)) == ((2, D), (2, side, side, D))


@pytest.fixture
def shallow(monkeypatch):
    """timm's networks with two blocks in place of twelve to fifty, wherever their class has a depth: a second each."""
    make = timm.create_model

    def created(name, **how):
        try:
            return make(name, depth=2, **how)
        except (TypeError, AssertionError, IndexError):
            return make(name, **how)

    monkeypatch.setattr(timm, "create_model", created)


@pytest.mark.slow
def test_nearly_every_vit_like_name_of_timm_gives_features(shallow):
    names = [name for kind in VIT_LIKE for name in timm.list_pretrained(kind)]
    assert len(names) > 400  # all of them gave features when they were last tried; here every sixth, for the time
    refused = {}
    for name in names[::6]:
        try:
            (B, D), (_, rows, columns, width) = shapes(on_meta(name))
            assert B == 2 and width == D > 1 and rows * columns > 1, name
        except ValueError as error:
            refused[name] = str(error)
    print(refused)
    assert len(refused) <= 10 and all(name in reason for name, reason in refused.items())


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The only folder that is looked in; the hub cannot be reached."""
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path))
    monkeypatch.setattr("vitutils.models.weights.from_hub", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def filled(name: str, **how) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, **how).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.05)
    return net


@pytest.mark.parametrize(
    ("name", "ours"),
    [(TINY, True), ("eva02_tiny_patch14_224.mim_in22k", False), ("deit_tiny_distilled_patch16_224.fb_in1k", False),
     ("convnext_atto.d2_in1k", False)],
)  # fmt: skip
def test_features_are_those_that_timm_gives(name, ours, weights):
    net = filled(name)
    save_file(net.state_dict(), weights / f"{name}.safetensors")
    backbone = load_backbone(name)
    assert backbone.ours is ours and str(weights) in backbone.source and not backbone.training
    images = torch.randn(2, *backbone.input_size)
    with torch.no_grad():
        want = net.forward_head(net.forward_features(images), pre_logits=True)
        assert torch.allclose(backbone(images), want, atol=1e-4)
        tokens, grid = net.forward_features(images), backbone.grid(images)
        places = tokens.permute(0, 2, 3, 1) if tokens.ndim == 4 else tokens[:, net.num_prefix_tokens :]
        assert torch.allclose(grid.flatten(1, 2), places.reshape(2, -1, grid.shape[-1]), atol=1e-4)


def test_another_size_stretches_the_positions(weights):
    for name in (TINY, "eva02_tiny_patch14_224.mim_in22k"):
        save_file(filled(name).state_dict(), weights / f"{name}.safetensors")
        backbone = load_backbone(name, img_size=112)
        picture = Image.new("RGB", (300, 200), "red")
        images = backbone.transform(picture)[None]
        assert images.shape == (1, 3, 112, 112)
        side = 112 // (16 if name == TINY else 14)
        with torch.no_grad():
            assert backbone.grid(images).shape[1:3] == (side, side)


def test_without_weights_one_error_says_where_they_were_looked_for(weights):
    with pytest.raises(FileNotFoundError, match=r"weights.vit_base_patch16_224\.mae\.safetensors.*timm/vit_base"):
        load_backbone("vit_base_patch16_224.mae")
    with pytest.raises(FileNotFoundError, match="no safetensors.*pickle"):
        load_backbone("vit_huge_patch14_gap_224.in1k_ijepa")


@pytest.mark.parametrize("name", ["vit_tinny_patch16_224", "vit_tiny_patch16_224.nobody", "", "Pocket", "../x", None])
def test_an_unknown_name_is_refused_with_names_near_it(name, weights):
    with pytest.raises(ValueError, match="knows no backbone.*near it"):
        load_backbone(name)


def test_files_that_do_not_fit_are_refused(weights):
    save_file({"x": torch.zeros(3)}, weights / f"{TINY}.safetensors")
    with pytest.raises(ValueError, match=f"{TINY}.*does not fit"):
        load_backbone(TINY)
    (weights / f"{TINY}.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="damaged"):
        load_backbone(TINY)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "224", 225])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match="img_size"):
        on_meta(TINY, img_size=size)


def test_images_of_other_shapes_are_refused_by_name():
    backbone = on_meta("eva02_tiny_patch14_224.mim_in22k")
    for shape in ((2, 1, 224, 224), (3, 224, 224), (2, 3, 100, 224)):
        with pytest.raises(ValueError, match=r"eva02_tiny.*expected images \(B, 3, 224, 224\), got"):
            backbone.features(torch.empty(shape, device="meta"))
        with pytest.raises(ValueError, match="eva02_tiny.*expected images"):
            backbone.grid(torch.empty(shape, device="meta"))


def test_a_network_whose_tokens_are_no_grid_still_gives_features():
    backbone = on_meta("naflexvit_base_patch16_gap")
    images = torch.empty(2, *backbone.input_size, device="meta")
    assert backbone.features(images).shape == (2, 768)
    with pytest.raises(ValueError, match="naflexvit_base_patch16_gap.*NaFlexVit"):
        backbone.grid(images)


def test_the_pocket_vit_is_a_backbone_too():
    backbone = load_backbone("pocket")
    images = backbone.transform(Image.new("RGB", (60, 40), "white"))[None]
    assert backbone(images).shape == (1, 64) and backbone.grid(images).shape == (1, 7, 7, 64)
    assert backbone.licence == "mit" and backbone.ours
    with pytest.raises(ValueError, match="28 pixels"):
        load_backbone("pocket", img_size=56)


def test_licences_that_bind_are_told():
    notes = {name: backbones.licence_note(timm.get_pretrained_cfg(name).license) for name in (
        "vit_base_patch16_224.mae", "vit_small_patch16_dinov3.lvd1689m", "vit_small_patch14_dinov2.lvd142m")}
    mae, dinov3, dinov2 = notes.values()
    assert "not for commercial use" in mae and "maker's own terms" in dinov3 and "for money too" in dinov2
    assert "states no licence" in licence_note(None)
    assert "not for commercial" in licence_note("fair-noncommercial-research-license")


def same_row(name: str, row: dict[str, str]) -> bool:
    return {column: str(value) for column, value in backbone_table.describe(name).items()} == row


def test_the_table_has_a_row_for_each_name_and_its_numbers_are_cited():
    rows = backbone_table.read_table()
    assert [row["name"] for row in rows] == list(backbone_table.NAMES) and len(rows) >= 12
    assert all(bool(row["published_in"]) == bool(row["knn"] or row["linear"]) for row in rows)
    assert all(bool(row["none_since"]) != bool(row["published_in"]) for row in rows), "a number, or why there is none"
    by_name = {row["name"]: row for row in rows}
    assert by_name["vit_base_patch16_224.mae"]["open"] == "False"
    assert by_name["vit_small_patch16_dinov3.lvd1689m"]["licence"] == "dinov3-license"
    assert same_row(TINY, by_name[TINY])
    assert {*backbone_table.PUBLISHED, *backbone_table.NONE} == set(backbone_table.NAMES)


def test_a_number_of_a_paper_is_the_one_that_the_book_has():
    from vitutils.results import paper

    dino = {row["net"]: (row["knn"], row["linear"]) for row in paper("dino") if row["method"] == "DINO"}
    assert backbone_table.PUBLISHED["vit_small_patch16_224.dino"][:2] == dino["ViT-S/16"]
    assert backbone_table.PUBLISHED["vit_base_patch16_224.dino"][:2] == dino["ViT-B/16"]


@pytest.mark.slow
def test_the_table_says_what_timm_says_now():
    rows = {row["name"]: row for row in backbone_table.read_table()}
    assert [name for name in backbone_table.NAMES if not same_row(name, rows[name])] == []
