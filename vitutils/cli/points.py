"""The command `python -m vitutils.points`: train a net of chapter 13 on a folder of objects, as `--help` says."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

HELP = """Train a net of chapter 13 on a folder of meshes or point clouds, and judge it on objects that it never saw.

    python -m vitutils.points furniture/ --out runs/furniture
    python -m vitutils.points solids --net local --out runs/solids

data
  a folder    one folder inside for each class, with .obj, .ply, .off, .stl or .xyz files, one an object; or train/CLASS
              and test/CLASS. Meshes give points of their surface; .xyz, and .ply without faces, are clouds already
  solids      the book's own set

nets (--net)
  mlp         every point by itself, then a maximum (PointNet's idea)
  global      every point attends to all (PCT)
  local       every point attends to its 8 neighbours (Point Transformer)
  splat       points meet in the cells of small grids (Cloud Transformers)

At each step the net sees an eighth of the points of each object, drawn anew, stretched and shaken a little. It is
judged by the mean of its answers to all eight parts. The test part is looked at once, at the end.

files in --out
  model.safetensors   the trained weights; their metadata say net, width, classes and points
  result.json         arguments, accuracy with its sampling error, each test object with its label and the answer
"""
DRAWS = 8
NEIGHBOURS = 8
WIDTHS = {"mlp": 40, "global": 46, "local": 32, "splat": 36}  # about equal in parameters, as in chapter 13's study


def whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    """What reads an option that is a whole number."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            told = f"{least} or more" if most == float("inf") else f"{least} to {most:.0f}"
            raise argparse.ArgumentTypeError(f"expected a whole number, {told}; got {text!r}")
        return value

    return read


def real(low: float, high: float) -> Callable[[str], float]:
    """What reads an option that is a number between two others."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"expected a number between {low:g} and {high:g}, got {text!r}")
        return value

    return read


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    command = argparse.ArgumentParser(
        prog="python -m vitutils.points", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("data", metavar="FOLDER", help="a folder of objects, or solids")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the net and result are written")
    command.add_argument("--net", choices=WIDTHS, default="local", help="(default: local)")
    command.add_argument("--points", type=whole(128), default=1024, metavar="N", help="of each object (default: 1024)")
    command.add_argument("--test-share", type=real(0, 1), metavar="S", help="of the objects (default: 0.2)")
    command.add_argument("--turned", action="store_true", help="turn training objects about the up axis, any angle")
    command.add_argument("--up", choices="xyz", default="z", help="the axis that points up (default: z)")
    command.add_argument("--steps", type=whole(1), default=300, metavar="N", help="(default: 300)")
    command.add_argument("--batch-size", type=whole(1), default=32, metavar="N", help="(default: 32)")
    command.add_argument("--lr", type=real(0, 1), default=3e-3, help="peak learning rate (default: 0.003)")
    command.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="(default: 0)")
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Bad input ends it with one line that begins with `error:` and the code 1; 2 for an argument."""
    options = command_line().parse_args(arguments)
    from vitutils.data import DataError

    try:
        run(options)
    except (ValueError, OSError, FloatingPointError, DataError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def run(options: argparse.Namespace) -> None:
    """Load, train, test, write. What can be wrong with the input is found before the first step."""
    import torch
    from safetensors.torch import save

    from vitutils import check
    from vitutils.data.clouds import cloud_batches
    from vitutils.files import whole_file
    from vitutils.models.transformer import train_batches
    from vitutils.uncertainty import binomial_error

    if (options.out / "model.safetensors").exists():
        raise ValueError(f"{options.out / 'model.safetensors'} is there: take another --out")
    found = load(options)
    print(found.summary(), flush=True)
    torch.manual_seed(options.seed)
    model = point_net(options.net, found.num_classes)
    seen, batch = found.num_points // DRAWS, min(options.batch_size, len(found.train_labels))
    print(f"{options.net}: {check.count_parameters(model):,} parameters; {seen} points of {batch} objects a step")
    about = "xyz".index(options.up) if options.turned else None
    batches = cloud_batches(found.train_points, found.train_labels, batch, seen, options.seed, about)
    losses = train_batches(model, batches, options.steps, options.lr)
    if not torch.tensor(losses).isfinite().all():
        raise FloatingPointError(f"the loss became {losses[-1]}; take a smaller --lr")
    answers = judge(model, found.test_points)
    right = answers == found.test_labels
    accuracy, n = right.double().mean().item(), len(right)
    error = binomial_error(accuracy, n)
    print(f"test: {accuracy:.1%} of {n} objects, sampling error {100 * error:.1f} points")
    about = {"net": options.net, "embed_dim": str(WIDTHS[options.net]), "classes": json.dumps(found.classes)}
    about["points"] = str(seen)
    result = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "accuracy": accuracy, "sampling_error": error, "loss": losses[-1], "source": found.source,
        "objects": [
            {"name": name, "class": found.classes[label], "answer": found.classes[answer]}
            for name, label, answer in zip(found.test_names, found.test_labels, answers, strict=True)
        ],
    }  # fmt: skip
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with whole_file(options.out / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8", newline="\n")
    with whole_file(options.out / "model.safetensors") as temporary:
        temporary.write_bytes(save(weights, about))
    print(f"written: {options.out / 'model.safetensors'}, result.json")


def load(options: argparse.Namespace):
    """The PointSet that the options ask for."""
    from vitutils.data.meshes import load_cloud_folder
    from vitutils.data.points import load_points

    if options.data == "solids":
        if options.test_share is not None or options.points != 1024:
            raise ValueError("--test-share and --points are for folders; solids has 1,024 points and a test part")
        return load_points("solids")
    share = 0.2 if options.test_share is None else options.test_share
    return load_cloud_folder(Path(options.data).expanduser(), options.points, test_share=share, seed=options.seed)


def point_net(net: str, num_classes: int):
    """A fresh net by its name, as --help lists them."""
    from vitutils.models import points as models

    layer = {
        "mlp": models.PointMLP,
        "global": models.OffsetAttention,
        "local": models.VectorAttention,
        "splat": partial(models.CloudTransform, num_heads=3),
    }[net]
    return models.PointClassifier(layer, WIDTHS[net], num_classes, k=NEIGHBOURS if net == "local" else 0)


def judge(model, points):
    """The class (N,) that the net gives each cloud (N, P, 3): by the mean of its answers to eight parts."""
    import torch

    model.eval()
    with torch.inference_mode():
        parts = points[:, : points.shape[1] // DRAWS * DRAWS].chunk(DRAWS, dim=1)
        chances = [torch.cat([model(some).softmax(1) for some in part.split(32)]) for part in parts]
        return torch.stack(chances).mean(0).argmax(1)
