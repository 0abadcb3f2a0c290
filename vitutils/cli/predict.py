"""The command `python -m vitutils.predict`: classes and probabilities of photos, by a model of `vitutils.photos`."""

import argparse
import os
import sys
from pathlib import Path

from vitutils.cli import ArgumentError, _Parser
from vitutils.cli.photos import _whole

HELP = """What is in these photos? A line for each: the likeliest classes and their probabilities.

    python -m vitutils.predict runs/my-photos new.jpg another.jpg

DIR is what `python -m vitutils.photos` wrote with --out. With --onnx its model.onnx is used, or the .onnx file that DIR
names, run by onnxruntime. The model knows its classes alone: to a photo of anything else
it gives one of them too.
"""


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command. It raises ArgumentError, a ValueError, for arguments that do not fit."""
    command = _Parser(
        prog="python -m vitutils.predict", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("model", type=Path, metavar="DIR", help="the folder with model.safetensors, or that file")
    command.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    command.add_argument("--top", type=_whole(1), default=3, metavar="N", help="classes a photo (default: 3)")
    command.add_argument("--onnx", action="store_true", help="use model.onnx, or the .onnx file that DIR names")
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run the command. A photo that cannot be read is named on stderr, the others are answered; the code is then 1."""
    try:
        options = command_line().parse_args(arguments)
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    from vitutils.analysis.export import OnnxModel
    from vitutils.analysis.photo_model import load_photo_model
    from vitutils.data.decoding import decode
    from vitutils.data.sources import DataError

    try:
        if options.onnx:
            model = OnnxModel(options.model / "model.onnx" if options.model.is_dir() else options.model)
            if model.transform is None or not model.classes:
                raise ValueError(f"{model.path} holds no preprocessing or no names of classes: write it by `to_onnx`")
        else:
            model = load_photo_model(options.model)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    failed = 0
    for photo in options.photos:
        try:
            if photo.is_dir():
                raise DataError(f"{photo} is a folder: name the photos in it, such as {photo / '*.jpg'}")
            if not photo.exists():
                raise DataError(f"no photo {photo}: expected the name of a file; look for a slip in it")
            found = model.probabilities([decode(photo, str(photo))])[0]
        except DataError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        best = found.topk(min(options.top, len(found)))
        answers = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        try:
            print(f"{photo}: " + ", ".join(f"{model.classes[k]} {p:.1%}" for p, k in answers), flush=True)
        except BrokenPipeError:  # nobody reads on, as with `| head`; Python would say so once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            break
    sys.exit(failed)
