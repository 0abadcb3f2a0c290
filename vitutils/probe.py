"""How good are a net's features? kNN, a linear probe, full fine-tuning, with few or many images a class.

Chapter 9 writes out `draw_shots`, `split_shots`, `knn_predict`, `linear_probe`, `train_steps` and `choose_rate` in the
same words. The rest is machinery: `headless` takes a net's head off, `extract` runs it over a set that need not fit
into memory and keeps the features in a file under a key that knows the net, its weights, the transform and the set.
"""

import copy
import functools
import hashlib
import inspect
import json
import os
import tempfile
import time
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from vitutils import _fingerprint, data, train
from vitutils import pictures as sets
from vitutils._progress import show_progress
from vitutils._sources import data_folders
from vitutils.given import (
    at_least_1,
    check_training,
    checked_features,
    checked_labels,
    checked_number,
    checked_rate,
    checked_rates,
    logits_for,
    unit_rows,
)
from vitutils.modes import eval_mode
from vitutils.pictures import Pictures
from vitutils.vit import ViTConfig

# One image of each of many classes is what is meant here; scikit-learn's warning would stand on the page.
warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)

VERSION = 3  # of the cache: raise it when `extract` computes something else
HEADS = ("head", "heads", "fc", "classifier", "mlp_head", "linear_head")  # ours, timm's; torchvision's; vit-pytorch's

# --- what the chapter writes out ---


def draw_shots(labels: Tensor, shots: int | None, seed: int) -> Tensor:
    """Places of `shots` images of each class, or of all it has; None: all.

    For one seed a smaller draw is a part of a larger one.
    """
    labels = checked_labels(labels)
    if shots is not None and shots < 1:
        raise ValueError(f"expected 1 image a class or more, got {shots}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    kept = [order[labels[order] == k][:shots] for k in labels.unique()]
    return torch.cat(kept)


def split_shots(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Places to fit on, places to choose by: a fifth of each class.

    At least one image of each class chooses, but a class's only image
    fits. Raises ValueError where every class has a single image.
    """
    labels = checked_labels(labels)
    if labels.bincount().max() < 2:
        raise ValueError("expected a class of 2 images or more, got 1 each")
    fit, choose = [], []
    for k in labels.unique():
        own = draw_shots(labels, None, seed)
        own = own[labels[own] == k]
        held = min(max(1, len(own) // 5), len(own) - 1)
        choose.append(own[:held])
        fit.append(own[held:])
    return torch.cat(fit), torch.cat(choose)


def knn_predict(
    x: Tensor, y: Tensor, new_x: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Let the k most similar images vote, the more similar the more.

    x (N, D), y (N,): known images. new_x (M, D) -> answers (M,). Similarity
    is the cosine; a vote weighs exp(cosine / temperature), as in DINO.
    Raises ValueError for features or labels that do not fit, or are nan.
    """
    at_least_1(k=k)
    what = "a temperature above 0"
    temperature = checked_number(temperature, what, lambda t: t > 0)
    x, y, new_x = checked_features(x, y, new_x)
    x, new_x, K = unit_rows(x), unit_rows(new_x), int(y.max()) + 1
    answers = []
    for part in new_x.split(1_000):  # never all N x M at once
        cosine, index = (part @ x.T).topk(min(k, len(x)))  # (m, k)
        weights = ((cosine - cosine[:, :1]) / temperature).exp()  # first: 1
        votes = torch.zeros(len(part), K)
        votes.scatter_add_(1, y[index], weights)
        answers.append(votes.argmax(dim=1))
    return torch.cat(answers)


def linear_probe(
    x: Tensor, y: Tensor, new_x: Tensor, seed: int = 0
) -> tuple[Tensor, float]:
    """Logistic regression on features of length 1: answers (M,), and C.

    C, the inverse of the weight penalty, is chosen on a fifth of the known
    images; then the probe is fitted again on all. With one image a class
    there is nothing to choose by, and C = 10. Raises ValueError as
    `knn_predict`, and where there is one class only.
    """

    def fitted(x, y, C):
        return LogisticRegression(C=C, max_iter=1_000).fit(x, y)

    x, y, new_x = checked_features(x, y, new_x, classes=2)
    x, new_x, C = unit_rows(x), unit_rows(new_x), 10.0
    if y.bincount().max() > 1:
        fit, choose = split_shots(y, seed)
        scores = {
            C: fitted(x[fit], y[fit], C).score(x[choose], y[choose])
            for C in (1.0, 10.0, 100.0, 1_000.0)
        }
        C = max(scores, key=scores.get)
    if not len(new_x):
        return y[:0], C
    return torch.tensor(fitted(x, y, C).predict(new_x)), C


def train_steps(
    net: nn.Module, dataset: data.Dataset, steps: int, lr: float,
    seed: int = 0, device: str | torch.device = "cpu", batch_size: int = 32,
) -> nn.Module:  # fmt: skip
    """Train all weights for `steps` batches: AdamW, warm-up, cosine.

    Raises ValueError for no images, a rate of 0, or a net that gives more
    than logits (B, K) for the labels.
    """
    check_training(dataset, steps, batch_size)
    lr, net = checked_rate(lr), net.to(device).train()
    optimizer = torch.optim.AdamW(train.parameter_groups(net, 0.05), lr=lr)
    schedule = train.make_schedule(optimizer, steps, warmup=0.1)
    size, epoch = min(batch_size, len(dataset.train_labels)), 0
    while schedule.last_epoch < steps:
        for images, labels in data.batches(
            dataset.train_images, dataset.train_labels, size,
            seed=1_000 * seed + epoch, device=device,
            mean=dataset.mean, std=dataset.std,
        ):
            if len(labels) < size or schedule.last_epoch == steps:
                break  # a last, smaller batch is left out
            loss = F.cross_entropy(logits_for(net(images), labels), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        epoch += 1
    return net.eval()


def choose_rate(
    make: Callable[[], nn.Module],
    dataset: data.Dataset,
    rates: Sequence[float],
    **how,
) -> float:
    """The rate that does best on a fifth of the training images.

    Of equals the smallest. Raises ValueError for no rates, and where with
    every one of them the loss is not finite.
    """
    fit, choose = split_shots(dataset.train_labels, seed=0)
    images, labels = dataset.train_images, dataset.train_labels
    part = replace(
        dataset, train_images=images[fit], train_labels=labels[fit]
    )
    scores = {}
    for lr in checked_rates(rates):
        net = train_steps(make(), part, lr=lr, **how)
        try:
            scores[lr] = train.evaluate(
                net, images[choose], labels[choose], mean=dataset.mean,
                std=dataset.std, device=how.get("device", "cpu"),
            ).accuracy
        except FloatingPointError:
            continue  # it diverged
    if not scores:
        raise ValueError(f"no rate of {[*rates]} led to a finite loss")
    return max(scores, key=scores.get)


# --- a net without its head ---


class Pooled(nn.Module):
    """timm's net up to what its head reads: images (B,C,H,W) -> features (B,D)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)


class Averaged(nn.Module):
    """A net with two heads, both taken off: the mean of what they read, as the net takes the mean of their logits."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        features = self.net(images)
        return sum(features) / 2 if isinstance(features, tuple) else features  # a pair in train mode


def head_names(net: nn.Module) -> list[str]:
    """The names of a net's head: of a distilled one two. Raises ValueError for a net that has none of `HEADS`."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"expected an nn.Module, got a {type(net).__name__}")
    if "_orig_mod" in net._modules:
        raise ValueError("expected the net itself, got what torch.compile made of it: hand in its _orig_mod")
    for name in HEADS:
        if isinstance(getattr(net, name, None), nn.Module):
            names = [name] + [f"{name}_dist"] * isinstance(getattr(net, f"{name}_dist", None), nn.Module)
            _check_reached(net, names)
            return names
    children = ", ".join(name for name, _ in net.named_children())
    raise ValueError(
        f"{type(net).__name__} has no {', '.join(HEADS)} to take off (it has: {children}); "
        f"hand in a module that gives features (B, D)"
    )


def _check_reached(net: nn.Module, names: list[str]) -> None:
    """Hold that these heads are the last layers of a net and that it reaches them by their names alone."""
    children = dict(net.named_children())
    last = [*children][[*children].index(names[0]) + 1 :] if names[0] in children else []
    if after := [name for name in last if name not in names and any(True for _ in children[name].parameters())]:
        told = f"has {', '.join(after)} after {names[0]}, which may be its head"
    else:
        heads = {id(getattr(net, name)) for name in names}
        held = [(name, value) for name, value in vars(net).items() if isinstance(value, list | tuple)]
        paths = [path for path, module in net.named_modules(remove_duplicate=False) if id(module) in heads]
        paths += [name for name, values in held if heads & {id(value) for value in values}]
        other = [path for path in paths if path not in names]
        own = vars(net).get("forward")
        if not other and (own is None or getattr(own, "__self__", None) is net):
            return
        told = f"reaches {names[0]} as {', '.join(other)} too" if other else f"has a forward of its own: {own}"
    raise ValueError(f"{type(net).__name__} {told}: hand in a module that gives features (B, D)")


def headless(net: nn.Module) -> nn.Module:
    """The net without its head: images (B,C,H,W) -> pooled features (B,D). It shares the net's weights.

    timm's nets say themselves what their head reads (`forward_head(..., pre_logits=True)`). Of any other the module
    named head, heads, fc, classifier, mlp_head or linear_head is left out, all of it: of a head of two layers the
    hidden one too. A distilled net, which has a head and a head_dist, gives the mean of what the two read.
    The net that you hand in is not changed. Raises ValueError for one that has none of these, has layers after it, or
    reaches it in another way too.
    """
    own = getattr(net, "forward_head", None)
    if own is not None and hasattr(net, "forward_features") and "pre_logits" in inspect.signature(own).parameters:
        return Pooled(net)
    names = head_names(net)
    bare = copy.copy(net)
    bare._modules = dict(net._modules) | dict.fromkeys(names, nn.Identity())  # its own table: the net keeps its head
    if "forward" in vars(net):  # bound to the net, with its head
        bare.forward = types.MethodType(net.forward.__func__, bare)
    return bare if len(names) == 1 else Averaged(bare)


def with_new_head(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """A copy of the net whose head is a linear probe: logistic regression on its features x (N,D), labels y (N,).

    The head has a logit for each number from 0 to the largest label; one that no image has is never the answer. Of a
    distilled net both heads are the probe. Raises ValueError for features or labels that do not fit, fewer than three
    classes, or a net whose head is not one linear layer, or none, for features of this width.
    """
    x, y, _ = checked_features(x, y, x)
    if len(y.unique()) < 3:
        raise ValueError(f"expected three classes or more, got {len(y.unique())}")
    names = head_names(net)
    for name in names:
        old = getattr(net, name)
        if not isinstance(old, nn.Linear | nn.Identity) or getattr(old, "in_features", x.shape[1]) != x.shape[1]:
            raise ValueError(f"expected {name} to be one linear layer for features of {x.shape[1]}, got {old}")
    fitted = LogisticRegression(max_iter=1_000).fit(x.numpy(), y.numpy())
    K, net = int(y.max()) + 1, copy.deepcopy(net)
    like = next(net.parameters())
    for name in names:
        head = nn.Linear(x.shape[1], K)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(-1e4)
            head.weight[fitted.classes_] = torch.from_numpy(fitted.coef_).float()
            head.bias[fitted.classes_] = torch.from_numpy(fitted.intercept_).float()
        setattr(net, name, head.to(like.device, like.dtype).train(net.training))
    if isinstance(getattr(net, "config", None), ViTConfig):
        net.config = replace(net.config, num_classes=K)
    elif hasattr(net, "num_classes"):
        net.num_classes = K
    return net


# --- features of a whole set ---


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
        """x and y of these places."""
        return self.x[places], self.y[places]


def _batches(pictures: Pictures, transform: Callable, size: int, workers: int) -> Iterator[Tensor]:
    """Pictures through the transform, batch by batch; with workers as many threads read ahead, a batch each.

    Threads, because they need no pickling: the closures of a set and a reader's own functions go to no other process.
    """

    @torch.no_grad()  # of its own: a thread has not the mode of the one that started it
    def load(start: int) -> Tensor:
        return _stack([transform(pictures[i][0]) for i in range(start, min(start + size, len(pictures)))])

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


def _stack(images: list[Tensor]) -> Tensor:
    """One batch (B,C,H,W). Raises ValueError where the transform gives something else than images of one size."""
    kinds = {(tuple(image.shape), image.dtype) if isinstance(image, Tensor) else type(image) for image in images}
    image = images[0]
    if len(kinds) > 1 or not isinstance(image, Tensor) or image.ndim != 3:
        told = ", ".join(sorted(map(str, kinds))[:3])
        raise ValueError(f"the transform must give tensors (C, H, W) of one size, got {told}")
    return torch.stack(images)


def description(net: nn.Module, pictures: Pictures, transform: Callable, device: torch.device) -> dict[str, str]:
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


def _reading(pictures: Pictures) -> str:
    """How pictures are read, beside their bytes. Raises ValueError where the reader's own function does that."""
    read, content = pictures.read, pictures.content
    if type(pictures) is Pictures and isinstance(content, functools.partial):
        held = content.args[-1]
        if content.func is sets._pixels and type(held) is Tensor and read == held.__getitem__:
            return f"{tuple(held.shape[1:])} {held.dtype}"
        ours = getattr(read, "func", None) in (sets._read, sets._read_official) and read.args[-1] is held
        if content.func is sets._content and ours:
            return "files"
    raise _fingerprint.Hidden(f"{pictures.name} is read by your own function")


def extract(
    net: nn.Module,
    pictures: Pictures,
    transform: Callable,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    workers: int = 0,
    cache: bool = True,
) -> Features:
    """Run a net that gives features (B,D) over pictures, batch by batch, and keep the features in a file.

    net: `headless(model)`, or any module images (B,C,H,W) -> (B,D); it computes in eval mode on
    `device`; mode and device are put back.
    transform: a picture -> float tensor (C,H,W), normalised as the net was trained.
    workers: 0 reads the pictures when they are needed, and never holds more than one batch of them; more: as many
    threads read ahead, a batch each.
    cache: keep the features under `features` in the first folder of `$VITBOOK_DATA`, in a file named by a hash of what
    they depend on, and read them from there next time. That is done only where all of it is known: nets, transforms
    and sets of installed libraries and of this package. Where one holds your own code (a function, a class, a hook) or
    draws random numbers, or the file cannot be written, they are computed anew each time, and a line says so, once for
    each reason. A damaged file is named in a warning and written anew.
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
            about = description(net, pictures, transform, device) | {"batch": str(batch_size)}
        except _fingerprint.Hidden as hidden:
            _say_once(f"features are not kept: {hidden}")
    if about:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        file = data_folders()[0] / "features" / f"{key[:32]}.safetensors"
        if found := _read(file, pictures, about):
            return found
    started, drawn = time.perf_counter(), _fingerprint.draws()
    x = _run(net, pictures, transform, device, batch_size, workers)
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
def _run(net, pictures, transform, device, batch_size, workers) -> Tensor:
    loader = _batches(pictures, transform, batch_size, workers)
    home = next((p.device for p in net.parameters()), device)
    number = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    x, done = None, 0
    name, hidden = f"{pictures.name}, {pictures.part}", not show_progress()
    try:
        net.to(device)
        with eval_mode(net), tqdm(total=len(pictures), desc=name, unit="image", disable=hidden) as bar:
            for images in loader:
                if not images.is_floating_point():
                    raise ValueError(f"the transform must give float images, normalised, got {images.dtype}")
                with train.autocast(device):
                    part = net(images.to(device, number))
                if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(images):
                    got = tuple(part.shape) if isinstance(part, Tensor) else f"a {type(part).__name__}"
                    raise ValueError(
                        f"expected features ({len(images)}, D), got {got}: take the head off with headless(net), pool "
                        f"the tokens, or wrap the net so that it gives one tensor"
                    )
                if part.is_complex():
                    raise ValueError(f"expected real features, got {part.dtype}: give their real part or their size")
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


def _read(file: Path, pictures: Pictures, about: dict[str, str]) -> Features | None:
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
        warnings.warn(f"{file} is damaged ({error}): computed anew", stacklevel=3)
        return None


def _keep(file: Path, found: Features, about: dict[str, str]) -> bool:
    """Write the features under a temporary name, then rename; False where the folder cannot be written."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".features-", suffix=".part", dir=file.parent)
        os.close(handle)
        metadata = about | {"sha256": _digest(found.x, found.y), "seconds": repr(found.seconds)}
        save_file({"x": found.x, "y": found.y}, temporary, metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
        return True
    except (OSError, SafetensorError):  # a full disk, a folder that is not ours: the features are there all the same
        return False
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


# --- images to train on ---


def _as_uint8(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """One image (C,H,W) as uint8, its normalisation undone."""
    if not _stack([image]).is_floating_point():
        raise ValueError(f"the transform must give float images, normalised, got {image.dtype}")
    image = image * data._per_channel(std, image) + data._per_channel(mean, image)
    low, high = image.min().item(), image.max().item()
    if not -0.25 <= low <= high <= 1.25:  # resizing may overshoot a little
        raise ValueError(
            f"expected images within 0..1 once mean {mean} and std {std} are undone, got {low:.2f} to {high:.2f}: give "
            f"those that the transform normalises with"
        )
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def as_dataset(
    train_part: Pictures, test_part: Pictures, transform: Callable, mean: Sequence[float], std: Sequence[float]
) -> data.Dataset:
    """Both parts as uint8 images of the size that `transform` gives, in memory, for training.

    transform: a picture -> normalised tensor (C,H,W); mean, std: what it normalises with, and what training on this
    set will normalise with. Undone, the images are rounded to the 256 levels that they had. Raises ValueError for a
    part without pictures, images of several sizes, and where undoing does not lead back to about 0..1.
    """
    parts = {}
    for part, pictures in (("train", train_part), ("test", test_part)):
        if not len(pictures):
            raise ValueError(f"{pictures.name}, {pictures.part}: no pictures to make a data set of")
        images = [_as_uint8(transform(pictures[i][0]), mean, std) for i in range(len(pictures))]
        parts |= {f"{part}_images": _stack(images), f"{part}_labels": pictures.labels.clone()}
    return data.Dataset(
        name=train_part.name,
        **parts,
        classes=train_part.classes,
        mean=torch.as_tensor(mean, dtype=torch.float32),
        std=torch.as_tensor(std, dtype=torch.float32),
        source=train_part.source,
    )
