"""Features of a whole set: run a net over images that need not fit into memory, and keep the result in a file.

The file's key knows the net, its weights, the transform and the set (`_fingerprint`).
"""

import functools
import hashlib
import json
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from tqdm import tqdm

from vitutils.analysis import _fingerprint
from vitutils.arguments import at_least_1
from vitutils.data._official import read_official
from vitutils.data.images import ImagePart, content_of, pixels_of, read_file, stack
from vitutils.files import data_folders, show_progress, whole_file
from vitutils.models.modes import eval_mode
from vitutils.training.evaluation import autocast

VERSION = 3  # of the cache: raise it when `extract` computes something else


@dataclass(frozen=True)
class Features:
    """Features x (N,D), float32, and labels y (N,) of one part of a set, in its order.

    seconds: what computing them took, the first time.  cached: whether they were read from a file now.
    file: where they are kept, or None.
    """

    x: Tensor
    y: Tensor
    seconds: float
    cached: bool
    file: Path | None

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """x and y at these positions."""
        return self.x[places], self.y[places]


def _batches(pictures: ImagePart, transform: Callable, size: int, workers: int) -> Iterator[Tensor]:
    """ImagePart through the transform, batch by batch; with workers as many threads read ahead, a batch each.

    Threads, because they need no pickling: the closures of a set and a reader's own functions go to no other process.
    """

    @torch.no_grad()  # of its own: a thread has not the mode of the one that started it
    def load(start: int) -> Tensor:
        return stack([transform(pictures[i][0]) for i in range(start, min(start + size, len(pictures)))])

    starts = range(0, len(pictures), size)
    if not workers:
        yield from map(load, starts)
        return
    pool, ahead = ThreadPoolExecutor(workers), deque()
    try:
        for start in starts:
            ahead.append(pool.submit(load, start))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def describe_features(net: nn.Module, pictures: ImagePart, transform: Callable, device: torch.device) -> dict[str, str]:
    """What features depend on: the net's code, settings and weights, the transform's, the set's own bytes, versions.

    Raises ValueError where a part of it is not known, as a function of your own; the message says which.
    """
    return {
        "version": str(VERSION),
        "net": type(net).__name__,
        **_computing(net, transform),
        "set": f"{pictures.name}, {pictures.part}",
        "reading": _reading(pictures),
        "pictures": pictures.fingerprint(),
        "device": device.type,
        "surroundings": _fingerprint.surroundings(device),
    }


def _computing(net: nn.Module, transform: Callable) -> dict[str, str]:
    """What the net and the transform are. Raises ValueError where that is not known."""
    return {
        "architecture": _fingerprint.code_of(net),
        "weights": _fingerprint.weights_of(net),
        "transform": _fingerprint.Fingerprint("the transform").of(transform),
    }


def _reading(pictures: ImagePart) -> str:
    """How pictures are read, beside their bytes. Raises ValueError where the reader's own function does that."""
    read, content = pictures.read, pictures.content
    if type(pictures) is ImagePart and isinstance(content, functools.partial):
        held = content.args[-1]
        if content.func is pixels_of and type(held) is Tensor and read == held.__getitem__:
            return f"{tuple(held.shape[1:])} {held.dtype}"
        ours = getattr(read, "func", None) in (read_file, read_official) and read.args[-1] is held
        if content.func is content_of and ours:
            return "files"
    raise _fingerprint.Hidden(f"{pictures.name} is read by your own function")


def extract_features(
    net: nn.Module,
    pictures: ImagePart,
    transform: Callable,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    workers: int = 0,
    cache: bool = True,
    bar: object | None = None,
) -> Features:
    """Run a net that gives features (B,D) over pictures, batch by batch, and keep the features in a file.

    net: `without_classifier(model)`, or any module images (B,C,H,W) -> (B,D); it computes in eval mode on
    `device`; mode and device are restored.
    transform: a picture -> float tensor (C,H,W), normalised as the net was trained.
    workers: 0 reads the pictures when they are needed, and never holds more than one batch of them; more: as many
    threads read ahead, a batch each.
    cache: keep the features under `features` in the first folder of `$VITBOOK_DATA`, in a file named by a hash of what
    they depend on, and read them from there next time. That is done only where all of it is known: nets, transforms
    and sets of installed libraries and of this package. Where one holds your own code (a function, a class, a hook) or
    draws random numbers, or the file cannot be written, they are computed anew each time, and a line says so, once for
    each reason. A damaged file is named in a warning and written anew.
    bar: a progress bar of your own, over many parts, which is moved on in place of one that is made here.
    Raises DataError for a picture that cannot be read; ValueError for features or images of a wrong shape or type.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"expected an nn.Module that gives features (B, D), got a {type(net).__name__}")
    at_least_1(batch_size=batch_size)
    if not isinstance(workers, Integral) or workers < 0:
        raise ValueError(f"expected workers to be a whole number, 0 or more, got {workers!r}")
    if not len(pictures):
        raise ValueError(f"{pictures.name}, {pictures.part}: no pictures to run over")
    device, file, about = torch.device(device), None, {}
    if cache:
        try:
            about = describe_features(net, pictures, transform, device) | {"batch": str(batch_size)}
        except _fingerprint.Hidden as hidden:
            _say_once(f"features are not kept: {hidden}")
    if about:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        file = data_folders()[0] / "features" / f"{key[:32]}.safetensors"
        if found := _read(file, pictures, about):
            return found
    started, drawn = time.perf_counter(), _fingerprint.draws()
    x = _run(net, pictures, transform, device, batch_size, workers, bar)
    found = Features(x, pictures.labels.clone(), time.perf_counter() - started, False, file)
    if not about:
        return found
    if drawn != _fingerprint.draws():
        _say_once("features are not kept: the transform or the net draws random numbers")
    elif not about.items() >= _computing(net, transform).items():
        _say_once("features are not kept: the transform or the net changes while it runs")
    elif not _keep(file, found, about):
        _say_once(f"features are not kept: {file.parent} cannot be written")
    else:
        return found
    return replace(found, file=None)


@functools.cache
def _say_once(text: str) -> None:
    print(text)  # stdout: on a page stderr would fail the build


@torch.no_grad()  # not inference_mode: a table that a module keeps from here could not be trained with
def _run(net, pictures, transform, device, batch_size, workers, bar) -> Tensor:
    loader = _batches(pictures, transform, batch_size, workers)
    home = next((p.device for p in net.parameters()), device)
    number = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    x, done = None, 0
    name, hidden = f"{pictures.name}, {pictures.part}", not show_progress()
    try:
        net.to(device)
        own = tqdm(total=len(pictures), desc=name, unit="image", disable=hidden) if bar is None else nullcontext(bar)
        with eval_mode(net), own as bar:
            for images in loader:
                if not images.is_floating_point():
                    raise ValueError(f"the transform must give float images, normalised, got {images.dtype}")
                with autocast(device):
                    part = net(images.to(device, number))
                if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(images):
                    got = tuple(part.shape) if isinstance(part, Tensor) else f"a {type(part).__name__}"
                    raise ValueError(
                        f"expected features ({len(images)}, D), got {got}: remove the head with "
                        f"without_classifier(net), pool the tokens, or wrap the net so that it returns one tensor"
                    )
                if part.is_complex():
                    raise ValueError(f"expected real features, got {part.dtype}: use the real part or the magnitude")
                part = part.float().cpu()
                if x is None:
                    x = torch.empty(len(pictures), part.shape[1])  # once: nothing else grows with the set
                if part.shape[1] != x.shape[1]:
                    raise ValueError(
                        f"expected features of one width D, got {x.shape[1]} and then {part.shape[1]}: it may not "
                        f"depend on the batch"
                    )
                x[done : done + len(part)] = part
                done += len(part)
                bar.update(len(part))
    finally:
        net.to(home)
    return x


def _digest(x: Tensor, y: Tensor) -> str:
    return hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()


def _read(file: Path, pictures: ImagePart, about: dict[str, str]) -> Features | None:
    """The features in a file, checked; None where it is not there, or damaged, which a warning says."""
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        warnings.warn(f"{file} cannot be read ({error}): computed anew", stacklevel=3)
        return None
    try:
        tensors = load(raw)
        told = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        x, y = tensors["x"], tensors["y"]
        if told["sha256"] != _digest(x, y) or not torch.equal(y, pictures.labels):
            raise ValueError("its checksum differs")
        if {name: told.get(name) for name in about} != about:
            raise ValueError("it holds the features of something else")
        return Features(x, y, float(told["seconds"]), True, file)
    except Exception as error:  # whatever a damaged file brings about
        warnings.warn(f"{file} is damaged ({error}): recomputed", stacklevel=3)
        return None


def _keep(file: Path, found: Features, about: dict[str, str]) -> bool:
    """Write the features under a temporary name, then rename; False where the folder cannot be written."""
    metadata = about | {"sha256": _digest(found.x, found.y), "seconds": repr(found.seconds)}
    try:
        with whole_file(file) as temporary:
            save_file({"x": found.x, "y": found.y}, temporary, metadata)
        return True
    except (OSError, SafetensorError):  # a full disk, a folder that is not ours: the features are there all the same
        return False
