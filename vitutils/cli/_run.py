"""What the command does once its arguments are read: load, train, write."""

import argparse
import json
import math
import os
import platform
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save
from tqdm import tqdm

from vitutils import check, data, distributed, runtime
from vitutils.cli import AUGMENT
from vitutils.data import folders
from vitutils.files import whole_file
from vitutils.models.zoo import named_net
from vitutils.training.evaluation import evaluate
from vitutils.training.loop import fit
from vitutils.training.recipe import Recipe

FREE = ("out", "resume", "device", "test")  # the arguments that may differ when a run goes on
# What bad input raises; anything else is a fault of ours and shows its traceback.
MISTAKES = (ValueError, OSError, FloatingPointError, data.DataError, distributed.RankError)


def run(options: argparse.Namespace) -> None:
    """Carry out the command, in all processes that torchrun started. Exits with 1 for bad input."""
    with distributed.joined() as ranks:
        try:
            _run(options, ranks)
        except MISTAKES as error:
            if ranks.first:
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)  # in here: the processes are left in order only after a good end


def _run(options: argparse.Namespace, ranks: distributed.Ranks) -> None:
    """Load, train, write. What can be wrong with the input is found before the first step, on all ranks at once."""
    checkpoint = options.out / "run.pt"

    def say(line: str) -> None:
        if ranks.first:
            tqdm.write(line)
            sys.stdout.flush()

    def prepare() -> tuple:
        numbers = {f.name: getattr(options, f.name) for f in fields(Recipe) if f.name != "augment"}
        how = AUGMENT[options.augment]
        recipe = Recipe(**numbers, augment=how and data.flip_shift(**how))
        device = _device(options.device, ranks)
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
        distributed.agree(lambda: _load(options) if os.environ.get("LOCAL_RANK", "0") == "0" else None, MISTAKES)
    recipe, device, whole, part, model = distributed.agree(prepare, MISTAKES)
    say(whole.summary())
    say(_parts(whole, part))
    told = f"{ranks.world} processes" if ranks.world > 1 else "1 process"
    say(f"{options.net}: {check.count_parameters(model):,} parameters; {told} on {device.type}")
    if options.resume:
        say(f"going on from {checkpoint}" if checkpoint.exists() else f"no {checkpoint} yet: from the beginning")

    history = fit(
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
        test = evaluate(model, whole, device=device)
        found["test"] = {"loss": test.loss, "accuracy": test.accuracy, "images": len(whole.test_labels)}
        say(f"test: loss {test.loss:.4f}, accuracy {test.accuracy:.2%}, {len(whole.test_labels):,} images")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_file(options.out / "model.safetensors") as temporary:
        temporary.write_bytes(save(weights))
    _write_json(options.out / "run.json", _about(options, ranks, device) | found)
    say(f"written: {options.out / 'model.safetensors'}, run.json")


def _parts(whole: data.Dataset, part: data.Dataset) -> str:
    """How many images there are to train on and held out, and which classes got none."""
    there = set(part.train_labels.tolist())
    none = [name for k, name in enumerate(whole.classes) if k not in there]
    lost = f"; none to train on of {', '.join(none[:8])}{', ...' * (len(none) > 8)}" if none else ""
    return f"{len(part.train_labels):,} to train on, {len(part.test_labels):,} held out{lost}"


def _device(asked: str | None, ranks: distributed.Ranks) -> torch.device:
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


def _about(options: argparse.Namespace, ranks: distributed.Ranks, device: torch.device) -> dict:
    """What run.json says of a run besides its outcome."""
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {
        "arguments": arguments,
        "processes": ranks.world,
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _begin(options: argparse.Namespace, ranks: distributed.Ranks, device: torch.device) -> None:
    """Open the folder of the run. Raises ValueError where a run of other arguments began in it and would go on."""
    options.out.mkdir(parents=True, exist_ok=True)
    about, file = _about(options, ranks, device), options.out / "run.json"
    if (options.out / "run.pt").exists() and file.exists():
        then, now = _strict(_read_arguments(file)), _strict(about["arguments"])
        changed = [f"{name}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
        if changed := [told for told in changed if told.partition(":")[0] not in FREE]:
            raise ValueError(f"{options.out} holds a run of other arguments ({'; '.join(changed)}): change them back")
    for left in options.out.glob(".*.part"):  # half-written files of a killed run
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
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
