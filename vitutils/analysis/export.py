"""A network that runs without torch: an ONNX file, the same in int8, and what either costs in accuracy and gains in speed.

`to_onnx` writes, `to_int8` makes small, `OnnxModel` runs. torch.onnx and onnxruntime do the work: pip install onnx
onnxscript onnxruntime. The file carries what a user needs: how a picture becomes numbers, the names of the classes.
"""

import copy
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from vitutils.arguments import shape_of
from vitutils.data.decoding import AsSeen
from vitutils.files import whole_file
from vitutils.models.modes import eval_mode
from vitutils.timing import race
from vitutils.uncertainty import binomial_error

FORMAT = "vitutils.onnx 1"
INPUT, OUTPUT = "images", "logits"
MOST = 1.9e9  # bytes of weights: a protobuf file ends at 2 GB
ADVICE = "pip install onnx onnxscript onnxruntime"


def to_onnx(
    network: nn.Module,
    path: Path | str,
    size: int | tuple[int, int, int] | None = None,
    dynamic_size: bool = False,
    *,
    transform: Callable | None = None,
    classes: Sequence[str] | None = None,
    temperature: float | None = None,
) -> Path:
    """Write a network, images (B, C, H, W) -> logits (B, K), as ONNX in float32; any number of images goes.

    It is exported in eval mode and left as it was. size: (C, H, W), or S for (3, S, S); of a `PhotoModel` or `Backbone`
    its own.  dynamic_size: let H and W vary, where the network takes images of other sizes.
    transform, classes, temperature: stored in the file as its preprocessing, names, and what logits are divided by
    before softmax; of a `PhotoModel` its own.
    Raises ValueError, and writes nothing, for a network that does not take this size, gives no logits, cannot be
    exported, or does not answer as in torch; ImportError, with the line that installs it, where a library is missing.
    """
    raise NotImplementedError


def to_int8(source: Path | str, path: Path | str, images: Tensor | None = None) -> Path:
    """Write an ONNX file with the weights of its matrix products in 8 bits: a quarter of the size.

    images: None: activations are brought to 8 bits by their range in each image ("dynamic").  A tensor (N, C, H, W),
    normalised, of 16 to 256 training images: by the range that these have ("static"); convolutions are then in int8 too.
    Raises ValueError for a file that `to_onnx` did not write, or images that it does not take.
    """
    raise NotImplementedError


class OnnxModel:
    """An ONNX file that `to_onnx` or `to_int8` wrote, run by onnxruntime on the CPU. Called, it gives logits.

    path: the file.  threads: how many; None: as torch has now.
    Attributes: `classes` (K names, or none), `temperature`, `input_size` (C, H, W; 0 for a side that may vary),
    `preprocessing` (what was stored of the transform), `transform` (for a PIL picture; None where none was stored).
    Raises FileNotFoundError where there is no file, ValueError for one that is damaged or something else.
    """

    def __init__(self, path: Path | str, threads: int | None = None):
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised, float32 -> logits (B, K). Raises ValueError for images of another shape."""
        raise NotImplementedError

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures, one or more -> probabilities (B, K), rows sum to 1; as `PhotoModel.probabilities`."""
        raise NotImplementedError


def largest_difference(network: Callable, other: Callable, images: Tensor, batches: Sequence[int] = (1, 3, 8)) -> float:
    """The largest difference of two networks' logits on the first images (N, C, H, W), in batches of these sizes."""
    raise NotImplementedError


def runners(network: nn.Module, onnx: Path | str, int8: Path | str) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same network four times, images -> logits: torch in float32 and bfloat16, onnxruntime in float32 and int8."""
    raise NotImplementedError


def speeds(
    network: nn.Module,
    onnx: Path | str,
    int8: Path | str,
    images: Tensor,
    threads: Sequence[int] = (1, 2),
    repeats: int = 7,
) -> list[dict[str, object]]:
    """Images a second of the four `runners` on one batch, taking turns in one process; the median of the repeats.

    images: (B, C, H, W), normalised.  Returns rows: runner, threads, images_per_second, and megabytes of its weights.
    """
    raise NotImplementedError


def accuracies(
    candidates: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, labels: Tensor, batch_size: int = 32
) -> list[dict[str, object]]:
    """Accuracy, 0..1, of each candidate on images (N, C, H, W) with labels (N,), with its sampling error.

    Returns rows: runner, accuracy, error (one standard error of these N images), same (the share of answers that are
    the first candidate's).
    """
    raise NotImplementedError
