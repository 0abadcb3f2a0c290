"""The command `python -m vitutils.photos`: a folder of your own photos, one folder per class, becomes a model."""

import argparse
import sys
from itertools import pairwise
from pathlib import Path

from vitutils.cli import ArgumentError, _Parser

HELP = """From a folder of your own photos to a model that you can use.

    python -m vitutils.photos my-photos --out runs/my-photos
    python -m vitutils.predict runs/my-photos new.jpg another.jpg

FOLDER is a folder or its zip with CLASS/ folders, two or more, or with train/CLASS/ and test/CLASS/. The photos are
checked (unreadable ones, copies, rare classes), split without a copy on both sides, and run through a pre-trained
network once. On its features kNN and a linear probe are fitted; with --fine-tune the network is trained too, from that
probe on: all its weights with smaller steps in lower layers, or, with --fine-tune lora, adapters beside them. What does
best on the validation part is judged on the test part, once.

files in --out
  report.html             what was found in the folder, accuracy per class with intervals, confusion, mistakes
  model.safetensors       backbone and head, for `python -m vitutils.predict`
  card.md                 what the model is, how it was made, what it may be used for
  split.csv               each photo's part, and what the model answers for those of the test part
  model.onnx              with --onnx: the model for onnxruntime, without torch; model.int8.onnx: in 8 bits

With --zero-shot nothing is fitted: the folders' names are the classes, and a network trained on images with texts says
which of them a photo is nearest to; kNN on the same features stands beside it. --backbone is then a name on the Hugging
Face hub, or a folder that transformers wrote. Such a model is kept only with --onnx.

Ctrl-C loses nothing but the last minute: give the same command again. Features are kept under the first folder of
$VITBOOK_DATA. Weights are looked for there, then on the Hugging Face hub; where there are none, the pocket ViT that
comes with the book is used instead, and the report says so.
"""
IMAGE_TEXT = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"  # of --zero-shot
BACKBONE = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
HOW = ("all", "lora")  # what --fine-tune trains


def _whole(least: int, most: int = 10**6):
    """What reads an option that is a whole number within limits."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least:,} to {most:,}, got {text!r}")
        return value

    return read


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 0.45:
        raise argparse.ArgumentTypeError(f"expected a share from 0.05 to 0.45, got {text!r}")
    return value


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command. It raises ArgumentError, a ValueError, for arguments that do not fit."""
    command = _Parser(
        prog="python -m vitutils.photos", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="your photos, one folder a class; or a zip")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the files are written")
    names = f"any of timm's (default: {BACKBONE}; with --zero-shot {IMAGE_TEXT})"
    command.add_argument("--backbone", metavar="NAME", help=names)
    command.add_argument(
        "--size", type=_whole(16, 2_048), metavar="PX", help="side of the images (default: backbone's)"
    )
    command.add_argument("--test-share", type=_share, default=0.2, metavar="S", help="of the photos (default: 0.2)")
    command.add_argument("--seed", type=_whole(0), default=0, help="of the split (default: 0)")
    command.add_argument(
        "--fine-tune",
        nargs="?",
        choices=HOW,
        const=HOW[0],
        help="train the network too (minutes on a CPU): all weights, or adapters (lora)",
    )
    command.add_argument("--epochs", type=_whole(1, 1_000), default=5, help="of --fine-tune (default: 5)")
    command.add_argument("--batch-size", type=_whole(1, 4_096), default=32, metavar="B", help="(default: 32)")
    command.add_argument("--zero-shot", action="store_true", help="classify by the names of the classes alone")
    command.add_argument("--onnx", action="store_true", help="write the model for onnxruntime too, also in int8")
    command.add_argument("--device", choices=("cpu", "cuda", "mps"), help="(default: what torch finds)")
    return command


def _told_apart(arguments: list[str]) -> list[str]:
    """The arguments with `all` after a bare --fine-tune, so that it does not take FOLDER for its own."""
    found = []
    for one, after in pairwise([*arguments, "-"]):
        bare = one == "--fine-tune" and (after.startswith("-") or Path(after).exists() or len(Path(after).parts) > 1)
        found += [one, HOW[0]] if bare and after not in HOW else [one]
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Bad input ends it with one line that begins with `error:`, and nothing is written.

    The code is 2 for an argument that does not fit, 1 for anything else that was found wrong, 130 after Ctrl-C.
    Arguments are read before torch is loaded.
    """
    try:
        options = command_line().parse_args(_told_apart(sys.argv[1:] if arguments is None else arguments))
        options.backbone = options.backbone or (IMAGE_TEXT if options.zero_shot else BACKBONE)
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    try:
        from vitutils.cli._photos import run

        sys.exit(run(options))
    except KeyboardInterrupt:
        print("\nStopped. What was computed is kept: the same command goes on from there.", file=sys.stderr, flush=True)
        sys.exit(130)
