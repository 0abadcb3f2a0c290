"""Point clouds: the shipped set and its card, drawn bodies, folders of meshes and clouds, and the command."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from safetensors import safe_open
from safetensors.torch import save_file

from vitutils import data
from vitutils.cli import points as command
from vitutils.data import points as points_module

ROOT = Path(__file__).resolve().parents[1]
CARD = (ROOT / "vitutils" / "solids.md").read_text(encoding="utf-8")


# --- the shipped set ---


def test_the_folds_of_solids_share_no_object_and_are_all_of_it():
    parts = [data.load_points("solids", fold=fold) for fold in range(3)]
    names = [set(part.test_names) for part in parts]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    whole = set.union(*names)
    for part in parts:
        assert set(part.train_names) | set(part.test_names) == whole
        assert len(part.train_names) + len(part.test_names) == len(whole) >= 350
        assert part.test_labels.bincount(minlength=10).min() >= 7
        counts = part.train_labels.bincount() + part.test_labels.bincount()
        assert (part.test_labels.bincount() - counts / 3).abs().max() < 2


def test_solids_are_centred_in_the_unit_sphere_upright_and_of_known_size():
    found = data.load_points("solids")
    points = torch.cat([found.train_points, found.test_points])
    assert points.shape[1:] == (1024, 3) and points.dtype == torch.float32 and 8 <= found.num_classes <= 10
    assert points.mean(dim=1).abs().max() < 1e-3
    assert (points.norm(dim=2).amax(dim=1) - 1).abs().max() < 1e-3
    standing = [i for i, name in enumerate(found.train_names) if name.startswith(("Male", "Mannequin"))]
    low, high = found.train_points[standing].amin(1), found.train_points[standing].amax(1)
    assert len(standing) >= 2 and ((high - low).argmax(dim=1) == 2).all()  # z is up
    assert (found.train_sizes[standing, 2] > 150).all()
    # The proportions of the clouds are those of the sizes.
    shape = (found.train_points.amax(1) - found.train_points.amin(1)) / found.train_sizes
    assert (shape.amax(1) / shape.median(1).values).median() < 1.1


def test_no_two_solids_are_the_same_cloud():
    found = data.load_points("solids")
    points = torch.cat([found.train_points, found.test_points]).flatten(1)
    assert len(points.unique(dim=0)) == len(points)


def test_the_card_counts_and_credits_every_object():
    with safe_open(points_module.SOLIDS, "pt") as file:
        about, labels = file.metadata(), file.get_tensor("labels").long()
        folds = file.get_tensor("folds")
    classes, names = json.loads(about["classes"]), json.loads(about["names"])
    for k, name in enumerate(classes):
        shares = [int(((labels == k) & (folds == fold)).sum()) for fold in range(3)]
        assert f"| {name} | {sum(shares)} | {' | '.join(map(str, shares))} |" in CARD
    assert CARD.startswith(f"# Solids\n\n{len(names)} objects of {len(classes)} kinds")
    for name in names:
        _, key, creator = re.fullmatch(r"(.*?) \((\S+?), (.*)\)", name).groups()
        library, _, model = key.partition("/")
        section = CARD.split(f"### {library}: ")[1].split("\n#")[0]
        assert f"(`{model}`)" in section, key
        if library.startswith("BlendSwap"):
            assert f"(`{model}`) by {creator}" in section, key
    for licence in ("publicdomain/zero/1.0/", "licenses/by/3.0/)", "licenses/by/3.0/us/"):
        assert licence in CARD


def test_the_list_names_each_object_once():
    text = re.sub(r"#.*", "", (ROOT / "tools" / "solids.txt").read_text(encoding="utf-8"))
    library, found = "", []
    for word in text.split():
        if word.endswith(":"):
            library = word
        elif not word.startswith("["):
            found.append(library + word)
    assert len(found) == len(set(found))
    left_out = CARD.split("## Left out as copies")[1].split("##")[0].count("\n- ")
    assert len(found) - left_out == int(re.search(r"(\d+) objects of", CARD)[1])


def test_another_name_or_fold_is_refused():
    with pytest.raises(ValueError, match="unknown point set 'chairs': expected one of solids, dales_500"):
        data.load_points("chairs")
    with pytest.raises(ValueError, match="expected a fold from 0 to 2, got 3"):
        data.load_points(fold=3)


def test_a_damaged_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(points_module, "SOLIDS", tmp_path / "solids.safetensors")
    with pytest.raises(data.DataError, match="solids.safetensors can't be read"):
        data.load_points()
    (tmp_path / "solids.safetensors").write_bytes(b"no")
    with pytest.raises(data.DataError, match="solids.safetensors can't be read"):
        data.load_points()


def test_held_out_objects_come_from_the_training_part():
    found = data.load_points()
    held = found.hold_out(60)
    assert len(held.test_names) == 60 and not set(held.test_names) & set(held.train_names)
    assert set(held.test_names) | set(held.train_names) == set(found.train_names)
    assert held.test_labels.unique().numel() == found.num_classes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_points": torch.zeros(2, 5, 2)}, "expected float32 points"),
        ({"train_points": torch.full((2, 5, 3), torch.nan)}, "NaN or infinity"),
        ({"train_labels": torch.tensor([0, 2])}, r"expected labels 0\.\.1, got 0\.\.2"),
        ({"train_names": ("a",)}, "as many clouds as"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(change, said):
    labels, sizes = torch.tensor([0, 1]), torch.ones(2, 3)
    cloud = {f"{part}_points": torch.zeros(2, 5, 3) for part in ("train", "test")}
    fields = cloud | {"train_labels": labels, "test_labels": labels, "train_names": ("a", "b")}
    fields |= {"test_names": ("a", "b"), "train_sizes": sizes, "test_sizes": sizes}
    fields |= {"classes": ("x", "y"), "name": "n", "source": "s"}
    data.PointSet(**fields)
    with pytest.raises(ValueError, match=said):
        data.PointSet(**fields | change)


def test_dales_is_found_in_the_data_folders_and_split_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setenv("VITBOOK_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match="dales_500.npz: not there") as told:
        data.load_points("dales_500")
    assert "VITBOOK_DATA" in str(told.value)
    (tmp_path / "points").mkdir()
    file = tmp_path / "points" / "dales_500.npz"
    points = np.random.default_rng(0).normal(size=(30, 16, 3)).astype(np.float32)
    np.savez(file, x=points, y=np.arange(30) % 5)
    parts = [data.load_points("dales_500", fold=fold) for fold in range(3)]
    assert [part.test_labels.bincount().tolist() for part in parts] == [[2] * 5] * 3
    assert torch.cat([part.test_points for part in parts]).sum() == pytest.approx(points.sum(), abs=1e-3)
    np.savez(file, x=points)
    with pytest.raises(data.DataError, match="is damaged"):
        data.load_points("dales_500")


# --- drawing and scaling ---


def test_points_are_drawn_by_area_and_never_from_faces_without():
    triangles = np.array([
        [(0, 0, 0), (1, 0, 0), (0, 1, 0)],
        [(0, 0, 5), (3, 0, 5), (0, 3, 5)],  # nine times as large
        [(9, 9, 9), (9, 9, 9), (9, 9, 9)],
    ], float)  # fmt: skip
    found = data.sample_surface(triangles, 20_000, np.random.default_rng(0))
    assert (found[:, 2] == 5).mean() == pytest.approx(0.9, abs=0.01)
    assert found.max() <= 5 and (found[:, :2].sum(1) <= 3 + 1e-9).all()
    assert found[found[:, 2] == 5, :2].mean(0) == pytest.approx([1, 1], abs=0.03)


@pytest.mark.parametrize(
    ("triangles", "said"),
    [(np.zeros((0, 3, 3)), "got none"), (np.zeros((2, 3, 3)), "an area"), (np.full((1, 3, 3), np.inf), "NaN or inf")],
)
def test_no_surface_is_refused(triangles, said):
    with pytest.raises(ValueError, match=said):
        data.sample_surface(triangles, 4, np.random.default_rng(0))


def test_unit_sphere_centres_and_scales_each_cloud():
    points = 40 * torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(0)) + 100
    found = data.unit_sphere(points)
    assert found.mean(1).abs().max() < 1e-5
    assert torch.allclose(found.norm(dim=2).amax(1), torch.ones(3))
    with pytest.raises(ValueError, match="all the same"):
        data.unit_sphere(torch.full((1, 5, 3), 7.3))
    with pytest.raises(ValueError, match="NaN"):
        data.unit_sphere(torch.full((1, 5, 3), torch.nan))


# --- drawn bodies ---


@pytest.mark.parametrize("name", data.PRIMITIVES)
def test_each_body_has_the_points_of_its_surface(name):
    found = data.primitives(2, 3, 2048, classes=[name]).points
    assert found.shape == (2, 2048, 3) and found.mean(1).abs().max() < 1e-5
    radius, z = found[..., :2].norm(dim=2), found[..., 2]
    if name == "sphere":
        assert (found.norm(dim=2) - 1).abs().max() < 0.08
    if name == "torus":
        assert radius.min() > 0.2  # a hole in the middle
    if name in ("cone", "pyramid"):
        assert (z.amax(1) > -z.amin(1)).all()  # more of it below the middle than above
    if name == "box":
        side = found.abs() / found.abs().amax(1, keepdim=True)
        assert (side.amax(2) > 0.9).all()


def test_a_cloud_does_not_depend_on_how_many_are_drawn():
    many = data.primitives(6, 1, 64, noise=0.02, rotation="any", holes=2)
    few = data.primitives(2, 1, 64, noise=0.02, rotation="any", holes=2, start=3)
    assert torch.equal(few.points, many.points[3:5]) and torch.equal(few.labels, many.labels[3:5])
    assert not torch.equal(many.points, data.primitives(6, 2, 64).points)


def test_rotations_are_told_and_upright_ones_keep_the_heights():
    plain, upright, any_ = (data.primitives(4, 5, 128, rotation=kind) for kind in ("none", "upright", "any"))
    for turned in (upright, any_):
        assert torch.allclose(plain.points @ turned.rotations.mT, turned.points, atol=1e-5)
        assert torch.allclose(turned.rotations.det(), torch.ones(4), atol=1e-5)
    assert torch.allclose(upright.points[..., 2], plain.points[..., 2], atol=1e-5)
    assert (any_.points[..., 2] - plain.points[..., 2]).abs().max() > 0.1


def test_noise_and_holes_are_as_asked():
    clean, noisy = data.primitives(8, 0, 512), data.primitives(8, 0, 512, noise=0.05)
    assert (noisy.points - clean.points).std() == pytest.approx(0.05, rel=0.05)
    one = data.primitives(1, 0, 2048, classes=["sphere"]).points[0]
    holed = data.primitives(1, 0, 2048, classes=["sphere"], holes=1).points[0]
    probe = data.primitives(1, 9, 256, classes=["sphere"]).points[0]
    assert torch.cdist(probe, one).amin(1).max() < 0.2 < torch.cdist(probe, holed).amin(1).max()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 0}, "n >= 1"), ({"points": 2}, "points >= 8"), ({"noise": -1}, "noise"),
        ({"rotation": "up"}, "rotation"),
        ({"holes": 9}, "0 to 8 holes"), ({"classes": ["ball"]}, "sphere, box"), ({"classes": []}, "none"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_drawn_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        data.primitives(**{"n": 1, "seed": 0} | wrong)


# --- files ---


@pytest.mark.parametrize("ending", ["obj", "ply", "off", "stl"])
def test_a_mesh_gives_points_of_its_surface(tmp_path, ending):
    box = trimesh.creation.box((4, 2, 1))
    box.export(tmp_path / f"box.{ending}")
    points, size = data.read_cloud(tmp_path / f"box.{ending}", 256)
    assert points.shape == (256, 3) and size == pytest.approx(torch.tensor([4.0, 2, 1]), rel=0.05)
    assert (points.norm(dim=1).max() - 1).abs() < 1e-5
    assert torch.equal(points, data.read_cloud(tmp_path / f"box.{ending}", 256)[0])


def test_clouds_give_their_own_points_each_once(tmp_path):
    own = np.random.default_rng(0).normal(size=(40, 3)).round(3)
    trimesh.PointCloud(own).export(tmp_path / "cloud.ply")
    (tmp_path / "cloud.xyz").write_text("# x y z red\n" + "\n".join(f"{x}, {y}, {z}, 7" for x, y, z in own))
    for name in ("cloud.ply", "cloud.xyz"):
        points, _ = data.read_cloud(tmp_path / name, 40)
        expected = data.unit_sphere(torch.from_numpy(own)).float()
        assert torch.allclose(points.sort(0).values, expected.sort(0).values, atol=1e-5)
        with pytest.raises(data.DataError, match=rf"{name}: expected 41 points or more, got 40"):
            data.read_cloud(tmp_path / name, 41)


PLY = "ply\nformat ascii 1.0\nelement vertex {n}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "expected faces, got 3 points without"),
        ("a.obj", "", "got none"),
        ("a.obj", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "NaN or infinity"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "can't be read as .obj"),
        ("a.obj", "v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n", "faces that have an area"),
        ("a.off", "OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "expected faces"),
        ("a.stl", "hello", "got none"),
        ("a.ply", "no ply", "can't be read as .ply"),
        ("a.ply", PLY.format(n=8) + "0 0 0\n" * 8, "all the same"),
        ("a.ply", PLY.format(n=8) + "0 0 inf\n" * 8, "NaN or infinity"),
        ("a.ply", PLY.format(n=2) + "0 0 0\n1 1 1\n", "expected 8 points or more, got 2"),
        ("a.xyz", "", "expected points, got none"),
        ("a.xyz", "1 2\n3 4\n", "got 2 numbers"),
        ("a.xyz", "1 2 3\nfour 5 6\n", "can't be read as .xyz"),
        ("a.xyz", "1 2 3\n" * 9, "all the same"),
        ("a.xyz", "1 2 nan\n" * 9, "NaN or infinity"),
        ("a.obj", None, "can't be read"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(data.DataError, match=rf"{name}: .*{said}"):
        data.read_cloud(tmp_path / name, 8)


def make_folder(folder: Path, count: int = 6) -> Path:
    """Balls and boxes, as .obj, .ply and .stl."""
    for i in range(count):
        bodies = {"ball": trimesh.creation.icosphere(1, 1 + i), "box": trimesh.creation.box((3, 1 + i, 1))}
        for name, mesh in bodies.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            ending = ("obj", "ply", "stl")[i % 3]
            mesh.export(folder / name / f"{name}{i}.{ending}")
    return folder


def test_a_folder_is_split_by_object(tmp_path):
    found = data.load_cloud_folder(make_folder(tmp_path / "own"), 64)
    assert found.classes == ("ball", "box") and found.name == "own"
    assert (len(found.train_labels), len(found.test_labels)) == (10, 2)
    assert not set(found.train_names) & set(found.test_names) and found.test_labels.tolist() == [0, 1]
    for part in ("train", "test"):
        make_folder(tmp_path / "parts" / part, 2)
    found = data.load_cloud_folder(tmp_path / "parts", 64)
    assert (len(found.train_labels), len(found.test_labels)) == (4, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: [p.unlink() for p in (f / "box").iterdir()], "class 'box' is empty"),
        (lambda f: (f / "box").rename(f.parent / "box"), "expected two classes or more.* got ball"),
        (lambda f: [p.unlink() for p in sorted((f / "box").iterdir())[1:]], "1 object to split"),
        (lambda f: (f / "box" / "bad.ply").write_text("x"), "bad.ply: can't be read"),
        (lambda f: f.rename(f.parent / "gone"), "no folder"),
        (lambda f: [make_folder(f / "train", 1), [p.rename(f.parent / p.name) for p in (f / "ball", f / "box")]],
         "expected train and test"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_told(tmp_path, change, said):
    folder = make_folder(tmp_path / "own", 2)
    change(folder)
    with pytest.raises(data.DataError, match=said):
        data.load_cloud_folder(folder, 32)


def test_files_without_a_class_are_told(tmp_path):
    trimesh.creation.box().export(tmp_path / "a.obj")
    with pytest.raises(data.DataError, match="1 files such as a.obj lie in no class"):
        data.load_cloud_folder(tmp_path, 32)


# --- the command ---


@pytest.mark.parametrize("net", command.WIDTHS)
def test_the_command_trains_judges_and_writes(tmp_path, capsys, net):
    folder, out = make_folder(tmp_path / "own"), tmp_path / "out"
    command.main([str(folder), "--out", str(out), "--net", net, "--points", "128", "--steps", "3"])
    told = capsys.readouterr().out
    assert re.search(r"test: \d+\.\d% of 2 objects, sampling error \d+\.\d points", told)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    right = [one["class"] == one["answer"] for one in result["objects"]]
    assert result["accuracy"] == sum(right) / 2 and result["sampling_error"] > 0
    model = command.point_net(net, 2)
    with safe_open(out / "model.safetensors", "pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        assert json.loads(file.metadata()["classes"]) == ["ball", "box"]
    found = data.load_cloud_folder(folder, 128)
    answers = [found.classes[k] for k in command.judge(model, found.test_points)]
    assert answers == [one["answer"] for one in result["objects"]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "--out", "{out}"], 1, "error: no folder nowhere"),
        (["{folder}", "--out", "{full}"], 1, "model.safetensors is there"),
        (["solids", "--points", "512", "--out", "{out}"], 1, "are for folders"),
        (["{folder}", "--out", "{out}", "--points", "10"], 2, "expected a whole number, 128 or more; got '10'"),
        (["{folder}", "--out", "{out}", "--lr", "nan"], 2, "between 0 and 1"),
        (["{folder}"], 2, "--out"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, arguments, code, said):
    folder = make_folder(tmp_path / "own", 2)
    (tmp_path / "full").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "full" / "model.safetensors")
    places = {"folder": folder, "out": tmp_path / "out", "full": tmp_path / "full"}
    with pytest.raises(SystemExit) as ended:
        command.main([argument.format(**places) for argument in arguments])
    assert ended.value.code == code and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_point_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.load_points().name = "other"
