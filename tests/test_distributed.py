"""Training in two processes: the same gradients, the same weights after a kill, one clear error and nobody left.

As a script, started by torchrun, this file is what the processes do: `together` and `killed`.
"""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets import ImageFolder

from vitutils import cli, data, distributed, train
from vitutils.cli._run import _device, _write_json
from vitutils.data import folders
from vitutils.models import DistilledViT, SmallCNN, ViT, ViTConfig
from vitutils.models.zoo import named_net
from vitutils.training import loop
from vitutils.training.distill import Distillation

ROOT = Path(__file__).resolve().parent.parent
NET = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=1, num_heads=2)
FEW = data.load("digits").take(train=63, test=41)
# One step over all 63 images: the parts of two ranks, 32 and 31, do not weigh the same.
STEP = train.Recipe(epochs=1, batch_size=63, lr=1e-12, weight_decay=0.0, clip_grad=None, warmup=0.0)
LAST_OF_TWO = replace(STEP, batch_size=61)  # a second step, for which rank 1 has no image of its own
RUN = ["--data", "digits", "--net", "book/4", "--images", "200", "--batch-size", "33", "--epochs", "4"]
RUN += ["--ema-decay", "0.9", "--mixup", "0.2", "--augment", "shift", "--device", "cpu"]


# --- what the processes do ---


def taught() -> dict:
    """A student that returns a pair, and a teacher whose answers would depend on the batch in train mode."""
    student, teacher = DistilledViT(NET), SmallCNN(1, 10, (8,))
    for head in (student.head_dist, teacher.head):
        torch.nn.init.normal_(head.weight, std=0.2)
    return {"model": student, "objective": Distillation(teacher, "soft", weight=0.7, temperature=2.0)}


def gradients(path: Path, recipe: train.Recipe) -> dict:
    """Train, write the gradients of the last step, return the losses and which images passed through this process."""
    seen = []

    def watch(images):
        seen.extend(bytes(image.numpy().tobytes()).hex() for image in images)
        return images

    torch.manual_seed(0)
    torch.set_num_threads(1)  # two threads add up in another order
    how = taught() if path.stem == "taught" else {"model": ViT(NET)}
    model = how["model"]
    torch.nn.init.normal_(model.head.weight, std=0.2)  # a head of zeros would pass no gradient on
    history = train.fit(dataset=FEW, recipe=replace(recipe, augment=watch), **how)
    save_file({name: p.grad for name, p in model.named_parameters()}, path)
    return {"losses": history.losses, "held out": list(history.epochs[0].values())[2:4], "seen": seen}


def said(arguments: list[str]) -> dict:
    """Run the command in this process; return what it printed and how it ended."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code
    return {"code": code, "err": err.getvalue(), "out": out.getvalue()}


def caught(action, error: type[Exception]) -> str:
    try:
        action()
    except error as found:
        return str(found)
    return "nothing raised"


def together(folder: Path) -> None:
    """What is tried with two ranks at work, in one job: starting them takes most of the time."""
    found = {}
    with distributed.joined() as here:
        mine = folder / str(here.rank)
        mine.mkdir()
        for name, recipe in (("step", STEP), ("last", LAST_OF_TWO), ("taught", STEP)):
            found[name] = gradients(mine / f"{name}.safetensors", recipe)
        for case in CASES:
            found[case] = said(faulty(case, folder / case, here.rank))
        cnn, own = SmallCNN(1, 10, (8,)), train.Recipe(epochs=2, batch_size=21)
        drawn = []  # what a layer that draws, as dropout does, gets at each step
        cnn.register_forward_pre_hook(lambda net, _: drawn.append(torch.rand(()).item()) if net.training else None)
        train.fit(cnn, FEW, own, checkpoint=mine / "run.pt")
        found["drawn"] = drawn.copy()
        save_file(cnn.state_dict(), mine / "cnn.safetensors")
        found["resume"] = caught(lambda: train.fit(cnn, FEW, own, checkpoint=mine / "run.pt", resume=True), ValueError)
        full = OSError("No space left on device") if here.first else None
        with mock.patch.object(loop, "save_checkpoint", side_effect=full):
            found["full"] = caught(lambda: train.fit(cnn, FEW, own, checkpoint=mine / "run.pt"), distributed.RankError)
        found["undisturbed"] = said([*RUN, "--out", str(folder / "undisturbed")])
        (folder / f"{here.rank}.json").write_text(json.dumps(found))


def killed(arguments: list[str]) -> None:
    """Run the command; rank 1 is killed in the middle of the third of four epochs, once."""
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        shift, batches = data.flip_shift(pad=2, flip=False), []

        @functools.wraps(shift)  # for the checkpoint it is the same augmentation
        def kill(images):
            batches.append(1)
            if len(batches) == 18:  # 7 an epoch
                os.kill(os.getpid(), signal.SIGKILL)
            return shift(images)

        data.flip_shift = lambda **how: kill
    cli.main(arguments)


# --- how they are started ---


def torchrun(*arguments, restarts: int = 0) -> tuple[int, str]:
    """Run two processes under torch's launcher to their end; return its code and all that was printed.

    Fails if a process that it started, or that one of these started, is still there.
    """
    token = uuid.uuid4().hex
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "TEST_RANKS": token},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output = launcher.communicate(timeout=1800)[0]
    finally:
        left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if token in environ(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        launcher.wait()
    assert not left, output
    return launcher.returncode, output


def environ(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the one job with two ranks at work has written all that it tried."""
    folder = tmp_path_factory.mktemp("ranks")
    for case in CASES:
        flowers(folder / case)
    code, output = torchrun(__file__, "together", folder)
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def found(folder) -> list[dict]:
    """What each rank found."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


# --- bad input ---


def flowers(folder: Path) -> Path:
    """Make a folder of images: two classes, three images each."""
    for name, colour in (("daisy", "white"), ("rose", "red")):
        (folder / name).mkdir(parents=True)
        for n in range(3):
            Image.new("RGB", (20 + n, 16), colour).save(folder / name / f"{n}.png")
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    to = ["--data", str(folder), "--out", str(folder.parent / f"{folder.name} out")]
    return [*to, "--net", "book/8", "--size", "16", "--epochs", "1", "--batch-size", "4", "--device", "cpu", *more]


# What is wrong, and what the one error must begin with; {} is the folder of the case.
CASES = {
    "missing folder": "error: no folder {}/nowhere: expected one with train/CLASS/",
    "missing for rank 1": "error: rank 1: no folder {}/nowhere: expected one with train/CLASS/",
    "empty class": "error: class 'tulip' is empty: {}/tulip holds no files; expected images",
    "unreadable image": "error: cannot read the image {}/rose/1.png (no picture that Pillow knows, ",
    "too few images": "error: too few images for 2 ranks: 1 to train on, 2 held out, 4 a batch; each rank needs",
    "unwritable output": "error: rank 0: [Errno 20] Not a directory: '{}/rose/0.png/out'",
    "wild rate": "error: the loss ",
    "wrong word": "error: argument --batch-size: invalid int value: 'many'; --help lists what there is",
}


def faulty(case: str, folder: Path, rank: int = 0) -> list[str]:
    """Spoil the folder; return the command whose error is the one of this case."""
    if case == "empty class":
        (folder / "tulip").mkdir(exist_ok=True)
    elif case == "unreadable image":
        (folder / "rose" / "1.png").write_bytes(b"\x89PNG cut off")
    missing = case == "missing folder" or (case == "missing for rank 1" and rank == 1)
    more = {
        "missing for rank 1": ["--held-out", "2"],
        "too few images": ["--images", "1"],
        "unwritable output": ["--out", str(folder / "rose" / "0.png" / "out"), "--held-out", "2"],
        "wild rate": ["--lr", "1e30", "--clip-grad", "inf", "--epochs", "9", "--held-out", "2"],
        "wrong word": ["--batch-size", "many"],
    }
    return arguments(folder, *more.get(case, [])) + (["--data", str(folder / "nowhere")] if missing else [])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_every_rank_and_the_first_says_why(case, folder, found):
    message = CASES[case].format(folder / case)
    assert found[0][case]["err"].startswith(message) and found[0][case]["err"].count("error:") == 1
    assert found[1][case]["err"] == found[1][case]["out"] == "", "rank 0 alone speaks"
    assert found[0][case]["code"] == found[1][case]["code"] == (2 if case == "wrong word" else 1)


@pytest.mark.slow
@needs_proc
def test_a_job_that_fails_leaves_nobody(tmp_path):
    code, output = torchrun("-m", "vitutils.train", *faulty("unreadable image", flowers(tmp_path / "flowers")))
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert code != 0 and len(lines) == 1, output
    assert lines[0].startswith(CASES["unreadable image"].format(tmp_path / "flowers"))
    assert "vitutils/" not in output, "no traceback of ours"
    assert not (tmp_path / "flowers out").exists()


# --- good input ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "steps"), [("step", STEP, 1), ("last", LAST_OF_TWO, 2), ("taught", STEP, 1)]
)
def test_two_ranks_have_the_gradients_of_one_process_with_the_whole_batch(name, recipe, steps, folder, found, tmp_path):
    alone = gradients(tmp_path / f"{name}.safetensors", recipe)
    expected = load_file(tmp_path / f"{name}.safetensors")
    assert len(expected) > 10 and max(g.abs().max() for g in expected.values()) > 1e-2
    for rank in (0, 1):
        got = load_file(folder / str(rank) / f"{name}.safetensors")
        assert got.keys() == expected.keys()
        assert max((got[key] - expected[key]).abs().max().item() for key in expected) <= 1e-6
        assert found[rank][name]["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        assert found[rank][name]["held out"] == pytest.approx(alone["held out"], abs=1e-6)
    # Each image passed through one process; the last two also through that which had none left, with weight 0.
    seen = [found[rank][name]["seen"] for rank in (0, 1)]
    if name == "last":
        assert seen[0][-2:] == seen[1][-2:] and (len(seen[0]), len(seen[1])) == (31 + 2, 30 + 2)
    assert sorted(seen[0] + seen[1][: 30 if name == "last" else None]) == sorted(alone["seen"])
    assert len(alone["losses"]) == steps and abs(len(seen[0]) - len(seen[1])) <= 1


@pytest.mark.slow
@needs_proc
def test_a_killed_rank_is_restarted_and_the_result_is_that_of_an_undisturbed_run(folder, found, tmp_path):
    code, output = torchrun(__file__, "killed", *RUN, "--out", tmp_path / "run", "--resume", restarts=1)
    assert code == 0, output
    epochs = [line.split(":")[0] for line in output.splitlines() if line.startswith("epoch ")]
    assert epochs == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"], "the third was begun twice, ended once"
    assert "run.pt yet: from the beginning" in output and f"going on from {tmp_path / 'run' / 'run.pt'}" in output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model.safetensors", "run.json", "run.pt"]
    assert found[0]["undisturbed"]["code"] == 0 and found[1]["undisturbed"]["out"] == ""
    one, other = (load_file(path / "model.safetensors") for path in (tmp_path / "run", folder / "undisturbed"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    about, calm = (json.loads((path / "run.json").read_text()) for path in (tmp_path / "run", folder / "undisturbed"))
    assert about["processes"] == 2 and about["history"]["losses"] == calm["history"]["losses"]


@pytest.mark.slow
def test_ranks_end_with_equal_nets_batchnorm_included_and_draw_each_its_own(folder, found):
    one, other = (load_file(folder / str(rank) / "cnn.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one) and "stages.1.running_mean" in one
    assert len(set(found[0]["drawn"] + found[1]["drawn"])) == 2 * len(found[0]["drawn"]) >= 12


@pytest.mark.slow
def test_what_one_rank_alone_meets_ends_both(folder, found):
    names = [f"{name}.safetensors" for name in ("cnn", "last", "step", "taught")]
    assert sorted(path.name for path in (folder / "1").iterdir()) == names, "rank 1 writes no checkpoint"
    for rank in (0, 1):
        assert found[rank]["resume"].endswith("run.pt has [0, 2] epochs, by rank: all machines must share its folder")
        assert found[rank]["full"] == "rank 0: No space left on device"


# --- one process ---


def test_a_single_process_is_rank_0_of_1():
    with distributed.joined() as here:
        assert here == distributed.here() == distributed.Ranks(0, 1) and here.first
    assert distributed.gather("a") == ["a"] and distributed.agree(lambda: 3, ()) == 3
    with pytest.raises(KeyError):
        distributed.agree(lambda: {}["a"], (KeyError,))


def test_weights_make_the_mean_over_ranks_the_mean_over_images():
    values = torch.arange(7.0)
    for world in (1, 2, 3, 7):
        here = [distributed.Ranks(rank, world) for rank in range(world)]
        mine = [values[list(distributed.share(rank, world, 7))] for rank in range(world)]
        parts = [part.mean() * rank.weight(7) for rank, part in zip(here, mine, strict=True) if len(part)]
        assert sum(parts) / world == pytest.approx(3.0)
        assert sorted(torch.cat(mine).tolist()) == values.tolist() and all(len(part) != 1 for part in mine)
    assert distributed.Ranks(2, 3).weight(2) == 0
    assert distributed.Ranks(0, 1).weight(5) == distributed.Ranks(1, 2).weight(8) == 1


def test_ranks_share_a_batch_and_all_of_it_is_taken():
    images, labels = torch.arange(13.0).reshape(13, 1, 1, 1) / 10, torch.arange(13)
    how = dict(seed=3, mean=0.0, std=1.0)
    whole = [y.tolist() for _, y in data.batches(images, labels, 5, **how)]
    parts = [[y.tolist() for _, y in data.batches(images, labels, 5, rank=r, world=2, **how)] for r in (0, 1)]
    assert parts[0] == [whole[0][0::2], whole[1][0::2], whole[2]]
    assert parts[1] == [whole[0][1::2], whole[1][1::2], whole[2][:2]] and len(whole[2]) == 3
    assert parts[1][2] == whole[2][:2], "a rank for which there are not two is shown the first two"
    with pytest.raises(ValueError, match="0 <= rank < world"):
        data.batches(images, labels, 3, rank=2, world=2, **how)


def test_ranks_draw_their_own_augmentation():
    images, labels = torch.zeros(8, 1, 1, 1), torch.arange(8)
    drawn = [
        [x for x, _ in data.batches(images, labels, 4, seed=0, augment=torch.rand_like, rank=r, world=2)]
        for r in (0, 1)
    ]
    assert len(set(torch.cat(drawn[0] + drawn[1]).flatten().tolist())) == 8


# --- folders of images ---


def test_a_folder_reads_as_torchvision_reads_it(tmp_path):
    folder = flowers(tmp_path / "flowers")
    theirs, ours = ImageFolder(folder), folders.load_folder(folder, 16, test_share=0.34)
    assert list(ours.classes) == theirs.classes and len(ours.train_labels) == 4 and len(ours.test_labels) == 2
    labels = torch.cat([ours.train_labels, ours.test_labels])
    assert sorted(labels.tolist()) == sorted(theirs.targets)
    corner = torch.cat([ours.train_images, ours.test_images])[:, :, 0, 0].tolist()
    assert [pixel[1] for pixel in corner] == [255 * (label == 0) for label in labels]  # white has green, red has none


def test_unreadable_files_are_skipped_only_when_asked(tmp_path):
    folder = flowers(tmp_path / "flowers")
    faulty("unreadable image", folder)
    with pytest.raises(data.DataError, match=r"1\.png"):
        folders.load_folder(folder, 16)
    found = folders.load_folder(folder, 16, skip_unreadable=True, test_share=0.4)
    assert "1 unreadable files skipped" in found.source
    assert len(found.train_labels) + len(found.test_labels) == 5 and found.classes == ("daisy", "rose")
    for n in (0, 2):
        (folder / "rose" / f"{n}.png").write_bytes(b"")
    with pytest.raises(data.DataError, match="class 'rose' is empty: none of its 3 files could be read"):
        folders.load_folder(folder, 16, skip_unreadable=True)


def test_parts_must_name_the_same_classes(tmp_path):
    folder = tmp_path / "flowers"
    flowers(folder / "train")
    for name in ("daisy", "tulip"):
        (folder / "val" / name).mkdir(parents=True)
        Image.new("L", (30, 16), 255).save(folder / "val" / name / "a.JPG")
    with pytest.raises(data.DataError, match="differ in the classes rose, tulip"):
        folders.load_folder(folder, 16)
    (folder / "val" / "tulip").rename(folder / "val" / "rose")
    assert folders.load_folder(folder, 16).test_images.min() == 255, "grey became white"


def test_a_folder_too_large_for_memory_is_refused_before_reading(tmp_path, monkeypatch):
    whole = folders.memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert folders.memory() == whole / 4
    monkeypatch.setattr(folders, "memory", lambda: 1e3)
    with pytest.raises(data.DataError, match=r"6 images of 16 pixels need .* more than half"):
        folders.load_folder(flowers(tmp_path / "flowers"), 16)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(data.DataError, match="has no folders: expected one per class"):
        folders.load_folder(tmp_path, 16)
    (tmp_path / "train").mkdir()
    with pytest.raises(data.DataError, match="has one folder, train: expected one per class, two or more"):
        folders.load_folder(tmp_path, 16)


# --- the command ---


def test_the_command_trains_writes_and_goes_on(tmp_path):
    folder, out = flowers(tmp_path / "flowers"), tmp_path / "flowers out"
    first = said(arguments(folder, "--test", "--clip-grad", "inf"))
    assert first["code"] == 0 and first["err"] == ""
    for line in ("1 process on cpu", "epoch 1/1: held-out loss", "test: loss", "written: "):
        assert line in first["out"]
    about = strictly(out / "run.json")
    assert about["arguments"]["clip_grad"] == "inf", "JSON has no number for it"
    assert about["arguments"]["net"] == "book/8" and len(about["history"]["losses"]) == 1 and about["test"]["loss"] > 0
    state = load_file(out / "model.safetensors")
    named_net("book/8", (3, 16, 16), 2).load_state_dict(state)

    same = arguments(folder, "--clip-grad", "inf")
    assert "run.pt is there: --resume goes on from it" in said(same)["err"]
    other = said([*same, "--seed", "1", "--resume"])["err"]
    assert "holds a run of other arguments (seed: 0 then, 1 now)" in other
    (out / ".run.pt-4711.part").write_bytes(b"half")
    again = said([*same, "--resume"])  # a finished run: nothing is trained, all is written again
    assert again["code"] == 0 and "going on from" in again["out"] and "epoch" not in again["out"]
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(state[key], written[key]) for key in state)
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors", "run.json", "run.pt"]
    old = json.dumps(about | {"arguments": about["arguments"] | {"clip_grad": float("inf")}})
    (out / "run.json").write_text(old)  # as it was written once, with Infinity
    assert said([*same, "--resume"])["code"] == 0 and strictly(out / "run.json")
    Image.new("RGB", (20, 16), "blue").save(folder / "rose" / "0.png")
    told = said([*same, "--resume"])["err"]
    assert "run.pt was written with other images or labels (digest: " in told and told.count("\n") == 1
    _write_json(out / "run.json", {"a": [float("nan"), (-float("inf"), 1.5)], "b": True, "arguments": {}})
    assert strictly(out / "run.json") == {"a": ["nan", ["-inf", 1.5]], "b": True, "arguments": {}}
    (out / "run.json").unlink()
    (out / "run.pt").write_bytes(b"no checkpoint")
    assert "run.pt is not a checkpoint of this loop" in said([*same, "--resume"])["err"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "fashion"], "--data fashion: neither a data set (digits, fashion_mnist"),
        (["--data", "digits"], "--size and --skip-unreadable are for folders of images; digits is a data set"),
        (["--size", "0"], "expected a size of 1 pixel or more, got 0"),
        (["--net", "XL/16"], "--net XL/16: expected book/P, Ti/P"),
        (["--net", "book/0"], "--net book/0: expected"),
        (["--net", "book/5"], "patch_size 5 does not divide 16 x 16"),
        (["--net", "cnn", "--size", "4"], "--net cnn halves its images three times"),
        (["--held-out", "9"], "expected a count between 2 and 2, so that each of 2 classes"),
        (["--images", "99"], "train: expected 1 to"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(tmp_path, more, message):
    end = said(arguments(flowers(tmp_path / "flowers"), *more))
    assert end["code"] == 1 and end["err"].startswith("error: ") and end["err"].count("\n") == 1
    assert message in end["err"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--schedule", "linear"], "argument --schedule: invalid choice: 'linear'"),
        (["--epochs", "0"], "argument --epochs: epochs must be a whole number of 1 or more, 10**9 at most, got 0"),
        (["--epochs", "1.5"], "argument --epochs: invalid int value: '1.5'"),
        (["--lr", "nan"], "got nan"),
        (["--clip-grad=-1"], "argument --clip-grad: clip_grad must be above 0 (or None: no limit), got -1.0"),
        (["--mixup=-0.1"], "mixup must be a finite number of 0 or more, got -0.1"),
        (["--ema-decay", "1"], "ema_decay must be at least 0 and below 1"),
        (["--warmup", "1.5"], "warmup must be between 0 and 1"),
        (["--seed", str(2**40)], "argument --seed: seed must be a whole number between"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_an_argument_that_does_not_fit_is_one_line_and_code_2(tmp_path, more, message):
    end = said(arguments(tmp_path / "nowhere", *more))  # found before anything is read or written
    assert end["code"] == 2 and end["err"].startswith("error: ") and end["err"].count("\n") == 1
    assert message in end["err"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["empty", "cut off", "no arguments", "not text"])
def test_a_broken_run_json_is_refused_in_words(tmp_path, kind):
    out = tmp_path / "flowers out"
    out.mkdir()
    (out / "run.pt").write_bytes(b"not looked at")
    broken = {"empty": b"", "cut off": b'{"argu', "no arguments": b'{"arguments": 3}'}
    (out / "run.json").write_bytes(broken.get(kind, b"\xff\xfe\x00"))
    end = said(arguments(flowers(tmp_path / "flowers"), "--resume", "--held-out", "2"))
    assert end["code"] == 1 and end["err"].count("\n") == 1
    assert "run.json does not hold the arguments of the run in run.pt" in end["err"] and "delete it" in end["err"]
    assert ("it is empty" in end["err"]) == (kind == "empty")
    assert (out / "run.json").read_bytes() == broken.get(kind, b"\xff\xfe\x00")


def strictly(path: Path) -> dict:
    """The file as JSON, without the NaN and Infinity that Python alone reads."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_more_processes_than_gpus_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="torch finds 1 GPU here, and each process needs one of its own"):
        _device("cuda", distributed.Ranks(1, 2))
    with pytest.raises(ValueError, match="several processes cannot share it"):
        _device("mps", distributed.Ranks(1, 2))


def test_named_nets():
    assert isinstance(named_net("cnn", (3, 32, 32), 7), SmallCNN)
    assert named_net("Ti/8", (3, 32, 32), 7).config == ViTConfig.named("Ti/8", img_size=(32, 32), num_classes=7)
    assert named_net("book/7", (1, 28, 28), 10).config.embed_dim == 64


if __name__ == "__main__":
    if sys.argv[1] == "together":
        together(Path(sys.argv[2]))
    else:
        killed(sys.argv[2:])
