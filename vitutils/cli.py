"""The command `python -m vitutils.train`: any net of the book on any data set or folder of images, as `--help` says."""

import argparse
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from vitutils import check, data, runtime
from vitutils import distributed as processes
from vitutils.data import folders
from vitutils.models.cnn import SmallCNN
from vitutils.models.vit import ViT, ViTConfig
from vitutils.training import loop

HELP = """Train a net of the book, in one process or in several.

    python -m vitutils.train --data fashion_mnist --net book/7 --epochs 5 --out runs/first
    torchrun --standalone --nproc-per-node 2 -m vitutils.train --data flowers/ --net Ti/16 --size 224 --out runs/flowers

nets (--net)
  book/P                  chapter 6's ViT with patches of P pixels: D 64, 4 blocks, 4 heads
  Ti/P S/P B/P L/P H/P    the papers' sizes, with a class token
  cnn                     chapter 6's CNN

data (--data)
  a name                  {names}
  a folder, or its zip    with train/CLASS/ and test/CLASS/ (or val/CLASS/), or with CLASS/ alone; of three parts
                          train and val together are trained on

A part of the training images is held out, each class in proportion; after each epoch the net is judged on it. What is
written is the net after the last epoch. The test part is looked at once, at the end, and only with --test.

files in --out
  run.json                arguments, versions, and at the end the history
  run.pt                  checkpoint after each epoch; --resume goes on from it, to the same weights
  model.safetensors       the trained weights

Under torchrun each process takes its part of every batch, and --batch-size is that of all together. Process 0 alone
prints and writes. With --max-restarts give --resume too, so that what is started anew goes on from run.pt.
"""
AUGMENT = {
    "none": None,
    "flip": data.flip_shift(pad=0),
    "shift": data.flip_shift(pad=2, flip=False),
    "flip-shift": data.flip_shift(pad=2),
}
FREE = ("out", "resume", "device", "test")  # the arguments that may differ when a run goes on
# What bad input raises; anything else is a fault of ours and shows its traceback.
MISTAKES = (ValueError, OSError, FloatingPointError, data.DataError, processes.RankError)


class ArgumentError(ValueError):
    """An argument of the command that does not fit."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Raise instead of printing, as every rank parses and one shall speak."""
        raise ArgumentError(f"{message}; --help lists what there is")


def _number(name: str, kind: type) -> Callable[[str], float]:
    """What reads the option of a recipe's number, within the recipe's own limits."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {text!r}") from None
        try:
            return loop.checked(name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command; every number of `loop.Recipe` is an option of the same name.

    It raises ArgumentError, a ValueError, for arguments that do not fit.
    """
    command = _Parser(
        prog="python -m vitutils.train",
        description=HELP.format(names=" ".join(data.DATA_SETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--data", required=True, help="name of a data set, or a folder or zip")
    command.add_argument("--net", required=True, help="name of a net, as above")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the run is written")
    command.add_argument("--resume", action="store_true", help="go on from DIR/run.pt if it is there")
    command.add_argument("--images", type=int, metavar="N", help="train on N images, classes in balance (default: all)")
    command.add_argument("--held-out", type=int, metavar="N", help="images to judge by (default: a tenth, 1 a class)")
    command.add_argument("--test", action="store_true", help="at the end, evaluate once on the test part")
    command.add_argument("--size", type=int, metavar="PX", help="side to bring a folder's images to (default: 64)")
    command.add_argument("--skip-unreadable", action="store_true", help="pass over a folder's damaged images")
    command.add_argument("--augment", choices=AUGMENT, default="none", help="of the training images (default: none)")
    command.add_argument("--device", choices=("cpu", "cuda", "mps"), help="(default: what torch finds)")
    for field in fields(loop.Recipe):
        option, off = "--" + field.name.replace("_", "-"), "; inf for none" if field.name == "clip_grad" else ""
        how = {"default": field.default, "help": f"(default: {field.default}{off})"}
        if field.name in loop.LIMITS:
            kind = int if field.name in ("epochs", "batch_size", "seed") else float
            command.add_argument(option, type=_number(field.name, kind), **how)
        elif field.name == "schedule":
            command.add_argument(option, choices=loop.SCHEDULES, **how)
    return command


def named_net(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return a fresh net by name (book/P, Ti/P, cnn, ...) for images (C, H, W). Raises ValueError if none fits."""
    C, H, W = image_shape
    if name == "cnn":
        if min(H, W) < 8:
            raise ValueError(f"--net cnn halves its images three times: expected 8 x 8 pixels or more, got {H} x {W}")
        return SmallCNN(C, num_classes, (16, 40, 64)).to(memory_format=torch.channels_last)
    size, _, P = name.partition("/")
    if size not in ("book", "Ti", "S", "B", "L", "H") or not re.fullmatch("0*[1-9][0-9]{0,5}", P):
        raise ValueError(f"--net {name}: expected book/P, Ti/P, S/P, B/P, L/P or H/P with patches of P pixels, or cnn")
    fit = dict(img_size=(H, W), in_chans=C, num_classes=num_classes)
    if size == "book":
        sizes = dict(embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0, global_pool="avg")
        return ViT(ViTConfig(patch_size=int(P), **sizes, **fit))
    return ViT(ViTConfig.named(name, **fit))


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Bad input ends it, in every process, with one line that begins with `error:`.

    The code is 2 for an argument that does not fit, 1 for anything else that was found wrong.
    """
    with processes.joined() as ranks:
        try:
            _run(command_line().parse_args(arguments), ranks)
        except MISTAKES as error:
            if ranks.first:
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _run(options: argparse.Namespace, ranks: processes.Ranks) -> None:
    """Load, train, write. What can be wrong with the input is found before the first step, on all ranks at once."""
    checkpoint = options.out / "run.pt"

    def say(line: str) -> None:
        if ranks.first:
            tqdm.write(line)
            sys.stdout.flush()

    def prepare() -> tuple:
        numbers = {f.name: getattr(options, f.name) for f in fields(loop.Recipe) if f.name != "augment"}
        recipe, device = loop.Recipe(**numbers, augment=AUGMENT[options.augment]), _device(options.device, ranks)
        if checkpoint.exists() and not options.resume:
            raise ValueError(f"{checkpoint} is there: --resume goes on from it; or take another --out")
        whole = _load(options)
        tenth = max(len(whole.train_labels) // 10, len(whole.train_labels.unique()))
        held = options.held_out if options.held_out is not None else tenth
        part = whole.hold_out(held).take(train=options.images)
        ranks.check_enough({"to train on": len(part.train_labels), "held out": held, "a batch": recipe.batch_size})
        torch.manual_seed(options.seed)
        model = named_net(options.net, whole.image_shape, whole.num_classes)
        if ranks.first:
            _begin(options, ranks, device)
        return recipe, device, whole, part, model

    if options.data in data.DATA_SETS:  # it may have to be downloaded: by one process a machine
        processes.agree(lambda: _load(options) if os.environ.get("LOCAL_RANK", "0") == "0" else None, MISTAKES)
    recipe, device, whole, part, model = processes.agree(prepare, MISTAKES)
    say(whole.summary())
    there = set(part.train_labels.tolist())
    none = [name for k, name in enumerate(whole.classes) if k not in there]
    lost = f"; none to train on of {', '.join(none[:8])}{', ...' * (len(none) > 8)}" if none else ""
    say(f"{len(part.train_labels):,} to train on, {len(part.test_labels):,} held out{lost}")
    told = f"{ranks.world} processes" if ranks.world > 1 else "1 process"
    say(f"{options.net}: {check.count_parameters(model):,} parameters; {told} on {device.type}")
    if options.resume:
        say(f"going on from {checkpoint}" if checkpoint.exists() else f"no {checkpoint} yet: from the beginning")

    history = loop.fit(
        model,
        part,
        recipe,
        device=device,
        checkpoint=checkpoint,
        resume=options.resume,
        report=lambda epoch: say(
            f"epoch {epoch['epoch']}/{recipe.epochs}: held-out loss {epoch['val_loss']:.4f}, "
            f"accuracy {epoch['val_accuracy']:.2%}, {epoch['seconds']:.0f} s of training"
        ),
    )
    if not ranks.first:
        return
    found = {"history": asdict(history)}
    if options.test:
        how = {"mean": whole.mean, "std": whole.std, "device": device}
        test = loop.evaluate(model, whole.test_images, whole.test_labels, **how)
        found["test"] = {"loss": test.loss, "accuracy": test.accuracy, "images": len(whole.test_labels)}
        say(f"test: loss {test.loss:.4f}, accuracy {test.accuracy:.2%}, {len(whole.test_labels):,} images")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _write(options.out / "model.safetensors", lambda path: path.write_bytes(save(weights)))
    _write_json(options.out / "run.json", _about(options, ranks, device) | found)
    say(f"written: {options.out / 'model.safetensors'}, run.json")


def _device(asked: str | None, ranks: processes.Ranks) -> torch.device:
    """The device of this process; on CUDA one GPU each."""
    kind = asked or runtime.find_device().type
    if kind == "mps" and ranks.world > 1:
        if asked:
            raise ValueError("--device mps: several processes cannot share it; take --device cpu")
        kind = "cpu"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch finds none here")
    if kind != "cuda":
        return torch.device(kind)
    index, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= there:
        told = f"torch finds {there} GPUs here" if there != 1 else "torch finds 1 GPU here"
        raise ValueError(f"--device cuda: {told}, and each process needs one of its own")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _load(options: argparse.Namespace) -> data.Dataset:
    """The data that the options ask for, whole."""
    if options.data in data.DATA_SETS:
        if options.size is not None or options.skip_unreadable:
            raise ValueError(f"--size and --skip-unreadable are for folders of images; {options.data} is a data set")
        return data.load(options.data)
    folder = Path(options.data).expanduser()
    if not options.data or os.sep not in options.data and not folder.exists():
        known = ", ".join(data.DATA_SETS)
        told = options.data or "''"
        raise data.DataError(f"--data {told}: neither a data set ({known}) nor a folder or zip here")
    size = 64 if options.size is None else options.size
    return folders.load_folder(folder, size, skip_unreadable=options.skip_unreadable)


def _about(options: argparse.Namespace, ranks: processes.Ranks, device: torch.device) -> dict:
    """What run.json says of a run besides its outcome."""
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {
        "arguments": arguments,
        "processes": ranks.world,
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _begin(options: argparse.Namespace, ranks: processes.Ranks, device: torch.device) -> None:
    """Open the folder of the run. Raises ValueError where a run of other arguments began in it and would go on."""
    options.out.mkdir(parents=True, exist_ok=True)
    about, file = _about(options, ranks, device), options.out / "run.json"
    if (options.out / "run.pt").exists() and file.exists():
        then, now = _strict(_read_arguments(file)), _strict(about["arguments"])
        changed = [f"{name}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
        if changed := [told for told in changed if told.partition(":")[0] not in FREE]:
            raise ValueError(f"{options.out} holds a run of other arguments ({'; '.join(changed)}): change them back")
    for left in options.out.glob(".*.[0-9]*"):  # half-written files of a killed run
        left.unlink()
    _write_json(file, about)


def _read_arguments(file: Path) -> dict:
    """The arguments in a run.json. Raises ValueError for a file that does not hold them."""
    try:
        arguments = json.loads(file.read_text(encoding="utf-8"))["arguments"]
        if not isinstance(arguments, dict):
            raise TypeError("arguments is no object")
        return arguments
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        told = "it is empty" if not file.stat().st_size else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{file} does not hold the arguments of the run in run.pt ({told}): delete it, and give the same arguments "
            f"as then; or take another --out"
        ) from None


def _strict(value: object) -> object:
    """The value as JSON can hold it: numbers that are not finite, which JSON has not, as the words inf, -inf, nan."""
    if isinstance(value, dict):
        return {name: _strict(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, value: dict) -> None:
    """Write strict JSON in one piece."""
    text = json.dumps(_strict(value), indent=1, allow_nan=False) + "\n"
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write(path: Path, writer) -> None:
    """Write a file in one piece: to a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
