"""The command `python -m vitutils.train`: any net of the book on any data set or folder of images, as `--help` says."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from vitutils.training.recipe import LIMITS, SCHEDULES, Recipe, checked

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
DATA = ("digits", "fashion_mnist", "mnist", "kmnist", "cifar10", "cifar100")
AUGMENT = {  # -> what `data.flip_shift` is given
    "none": None,
    "flip": {"pad": 0},
    "shift": {"pad": 2, "flip": False},
    "flip-shift": {"pad": 2},
}


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
            return checked(name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command; every number of `training.Recipe` is an option of the same name.

    It raises ArgumentError, a ValueError, for arguments that do not fit.
    """
    command = _Parser(
        prog="python -m vitutils.train",
        description=HELP.format(names=" ".join(DATA)),
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
    for field in fields(Recipe):
        option, off = "--" + field.name.replace("_", "-"), "; inf for none" if field.name == "clip_grad" else ""
        how = {"default": field.default, "help": f"(default: {field.default}{off})"}
        if field.name in LIMITS:
            kind = int if field.name in ("epochs", "batch_size", "seed") else float
            command.add_argument(option, type=_number(field.name, kind), **how)
        elif field.name == "schedule":
            command.add_argument(option, choices=SCHEDULES, **how)
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Bad input ends it, in every process, with one line that begins with `error:`.

    The code is 2 for an argument that does not fit, 1 for anything else that was found wrong. Arguments are read before
    torch is loaded.
    """
    try:
        options = command_line().parse_args(arguments)
    except ArgumentError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    from vitutils.cli._run import run

    run(options)
