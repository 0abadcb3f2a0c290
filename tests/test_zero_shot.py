"""Classes by their names: real CLIP and SigLIP code with small random weights, made here by transformers itself."""

import csv
import json

import pytest
import torch
from PIL import Image
from test_photos import alone, folder_of, ran  # noqa: F401

from vitutils.analysis import zero_shot
from vitutils.analysis.zero_shot import load_image_text
from vitutils.cli import photos

transformers = pytest.importorskip("transformers")
WORDS = "a photo of the close-up many discs stripes wide".replace("close-up", "close - up").split()


def saved(path, kind: str = "CLIP"):
    """A folder as transformers writes it: a small network, its tokenizer, its image processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text = tower | dict(vocab_size=len(WORDS) + 3, max_position_embeddings=12, projection_dim=16, eos_token_id=2)
    text |= dict(bos_token_id=1, pad_token_id=0)
    vision = tower | dict(image_size=32, patch_size=8, projection_dim=16)
    config, model = (getattr(transformers, f"{kind}{part}") for part in ("Config", "Model"))
    more = {"projection_dim": 16} if kind == "CLIP" else {}
    model(config(text_config=text, vision_config=vision, **more)).save_pretrained(path)
    names = {word: n for n, word in enumerate(["<pad>", "<s>", "</s>", *dict.fromkeys(WORDS)])}
    made = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    whole.save_pretrained(path)
    if kind == "CLIP":
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def folder(request, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("twins") / request.param, request.param)


def test_logits_are_those_of_the_network_itself(folder):
    found = load_image_text(str(folder))
    photo = Image.effect_noise((50, 40), 90).convert("RGB")
    images = found.transform(photo)[None]
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)(photo, return_tensors="pt")["pixel_values"]
    assert (images - theirs).abs().max() < 0.03  # their resizing rounds otherwise
    head = found.head(("discs", "stripes"), ("a photo of {}",))
    whole = transformers.AutoModel.from_pretrained(folder)
    pad = "max_length" if "Siglip" in folder.name else True
    texts = ["a photo of discs", "a photo of stripes"]
    tokens = found.tokenizer(texts, padding=pad, truncation=True, max_length=12, return_tensors="pt")
    given = {key: tokens[key] for key in ("input_ids", "attention_mask") if key == "input_ids" or pad is True}
    with torch.no_grad():
        got, want = head(found.features(images)), whole(**given, pixel_values=images)
    bias = whole.logit_bias if hasattr(whole, "logit_bias") else 0
    assert torch.allclose(got, want.logits_per_image - bias, atol=1e-4) and found.input_size == (3, 32, 32)


def test_templates_are_averaged_and_underlines_are_spaces(folder):
    found = load_image_text(str(folder))
    one, two = (found.head(("discs", "stripes"), (text,)).linear.weight for text in ("a {}", "many {}"))
    both = found.head(("discs", "stripes"), ("a {}", "many {}")).linear.weight
    scale = found.net.logit_scale.exp()
    assert torch.allclose(both / scale, torch.nn.functional.normalize((one + two) / scale, dim=1), atol=1e-5)
    assert torch.allclose(found.head(("wide_discs",)).linear.weight, found.head(("wide discs",)).linear.weight)
    found.head(("a " * 400, "{}"))  # longer than the text tower reads; braces are no template


def test_the_command_classifies_by_the_names_of_the_folders(folder, tmp_path, capsys):
    pictures, out = folder_of(tmp_path / "f", {"discs": 10, "wide_stripes": 10}), tmp_path / "out"
    onnx = ["--onnx"] * (folder.name == "CLIP")
    assert ran(pictures, "--out", out, "--zero-shot", "--backbone", folder, *onnx) == 0
    said = capsys.readouterr().out
    assert "chosen: zero-shot" in said and "validation: kNN" in said
    files = ["card.md", *["model.int8.onnx", "model.onnx"] * bool(onnx), "report.html", "split.csv"]
    assert sorted(file.name for file in out.iterdir()) == files
    card = (out / "card.md").read_text(encoding="utf-8")
    assert "On the same test photos, kNN" in card and "a photo of a discs" in card
    model = load_image_text(str(folder))
    head = model.head(("discs", "wide_stripes"))
    for row in csv.DictReader((out / "split.csv").open(encoding="utf-8")):
        if row["answer"]:
            with torch.no_grad():
                k = int(head(model.features(model.transform(Image.open(row["file"]))[None])).argmax())
            assert row["answer"] == ("discs", "wide_stripes")[k]


@pytest.mark.parametrize("name", ["pocket", "vit_tiny_patch16_224", "vit_base_patch16_clip_224.openai", "resnet18"])
def test_a_backbone_without_a_text_tower_is_refused_with_names(name, tmp_path, capsys):
    pictures = folder_of(tmp_path / "f", {"a": 4, "b": 4})
    assert ran(pictures, "--out", tmp_path / "out", "--zero-shot", "--backbone", name) == 1
    err = capsys.readouterr().err
    assert "no text tower" in err and zero_shot.DEFAULT in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_others_of_transformers_are_refused_too(tmp_path):
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vit without a text tower"):
        load_image_text(str(tmp_path))


@pytest.mark.parametrize("fault", ["no such folder", "no weights", "no tokenizer"])
def test_what_cannot_be_had_is_told(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(zero_shot, "hub_reachable", lambda: False)
    path = tmp_path / "nowhere"
    if fault != "no such folder":
        saved(path)
        for file in path.glob("*.safetensors" if fault == "no weights" else "tokenizer*"):
            file.unlink()
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        load_image_text(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("more", [["--fine-tune"], ["--size", "64"]])
def test_what_goes_with_training_alone_is_refused(more, tmp_path, capsys):
    pictures = folder_of(tmp_path / "f", {"a": 4, "b": 4})
    assert ran(pictures, "--out", tmp_path / "out", "--zero-shot", *more) == 1
    assert "trains nothing" in capsys.readouterr().err


def test_the_command_and_the_module_have_one_default():
    assert photos.IMAGE_TEXT == zero_shot.DEFAULT


def test_a_processor_that_leaves_sizes_is_refused():
    stored = json.loads('{"size": {"shortest_edge": 8}, "do_center_crop": false, "resample": 3}')
    with pytest.raises(ValueError, match="one size"):
        zero_shot._preprocessing(stored)
