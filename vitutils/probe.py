"""How good are a net's features? kNN, a linear probe, full fine-tuning, with few or many images a class.

Chapter 9 writes out `draw_shots`, `split_shots`, `knn_predict`, `linear_probe`, `train_steps` and `choose_rate` in the
same words. The rest is machinery: `headless` takes a net's head off, `extract` runs it over a set that need not fit
into memory and keeps the features in a file under a key that knows the net, its weights, the transform and the set.
"""

import copy
import hashlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vitutils import data, train
from vitutils._progress import show_progress
from vitutils._sources import data_folders
from vitutils.modes import eval_mode
from vitutils.pictures import Pictures

VERSION = 1  # of the cache: raise it when `extract` computes something else
HEADS = ("head", "heads", "fc", "classifier", "mlp_head")  # ours and timm's; torchvision's; vit-pytorch's

# --- what the chapter writes out ---


def draw_shots(labels: Tensor, shots: int | None, seed: int) -> Tensor:
    """Places of `shots` images of each class, or of all it has; None: all.

    For one seed a smaller draw is a part of a larger one.
    """
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
    """
    x, new_x, K = F.normalize(x), F.normalize(new_x), int(y.max()) + 1
    answers = []
    for part in new_x.split(1_000):  # never all N x M at once
        cosine, index = (part @ x.T).topk(min(k, len(x)))  # (m, k)
        votes = torch.zeros(len(part), K)
        votes.scatter_add_(1, y[index], (cosine / temperature).exp())
        answers.append(votes.argmax(dim=1))
    return torch.cat(answers)


def linear_probe(
    x: Tensor, y: Tensor, new_x: Tensor, seed: int = 0
) -> tuple[Tensor, float]:
    """Logistic regression on standardised features: answers (M,), and C.

    C, the inverse of the weight penalty, is chosen on a fifth of the known
    images; then the probe is fitted again on all. With one image a class
    there is nothing to choose by, and C = 0.1.
    """

    def fitted(x, y, C):
        classifier = LogisticRegression(C=C, max_iter=1_000)
        return make_pipeline(StandardScaler(), classifier).fit(x, y)

    x, y, new_x = x.numpy(), y.numpy(), new_x.numpy()
    C = 0.1
    if torch.tensor(y).bincount().max() > 1:
        fit, choose = split_shots(torch.tensor(y), seed)
        scores = {
            C: fitted(x[fit], y[fit], C).score(x[choose], y[choose])
            for C in (1e-3, 1e-2, 1e-1, 1.0)
        }
        C = max(scores, key=scores.get)
    return torch.tensor(fitted(x, y, C).predict(new_x)), C


def train_steps(
    net: nn.Module,
    dataset: data.Dataset,
    steps: int,
    lr: float,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> nn.Module:
    """Train all weights for `steps` batches: AdamW, warm-up, cosine."""
    net = net.to(device).train()
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
            loss = F.cross_entropy(net(images), labels)
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
    """The rate that does best on a fifth of the training images."""
    fit, choose = split_shots(dataset.train_labels, seed=0)
    images, labels = dataset.train_images, dataset.train_labels
    part = replace(
        dataset, train_images=images[fit], train_labels=labels[fit]
    )
    scores = {}
    for lr in rates:
        net = train_steps(make(), part, lr=lr, **how)
        scores[lr] = train.evaluate(
            net, images[choose], labels[choose], device=how["device"],
            mean=dataset.mean, std=dataset.std,
        ).accuracy
    return max(scores, key=scores.get)


# --- a net without its head ---


class Pooled(nn.Module):
    """timm's net up to what its head reads: images (B,C,H,W) -> features (B,D)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_head(self.net.forward_features(images), pre_logits=True)


def headless(net: nn.Module) -> nn.Module:
    """The net without its head: images (B,C,H,W) -> pooled features (B,D). It shares the net's weights.

    timm's nets say themselves what their head reads (`forward_head(..., pre_logits=True)`). Of any other the module
    named head, heads, fc, classifier or mlp_head is left out, all of it: of a head of two layers the hidden one too.
    The net that you hand in is not changed. Raises ValueError for one that has none of these.
    """
    if hasattr(net, "forward_head") and hasattr(net, "forward_features"):
        return Pooled(net)
    named = [name for name in HEADS if isinstance(getattr(net, name, None), nn.Module)]
    if not named:
        children = ", ".join(name for name, _ in net.named_children())
        raise ValueError(
            f"{type(net).__name__} has no {', '.join(HEADS)} to take off (it has: {children}); "
            f"hand in a module that gives features (B, D)"
        )
    bare = copy.copy(net)
    bare._modules = dict(net._modules) | {named[0]: nn.Identity()}  # a table of its own: the net keeps its head
    return bare


def with_new_head(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """A copy of our net whose head is a linear probe: logistic regression on its features x (N,D), labels y (N,)."""
    fitted = LogisticRegression(max_iter=1_000).fit(x.numpy(), y.numpy())
    if len(fitted.classes_) < 3:
        raise ValueError(f"expected three classes or more, got {len(fitted.classes_)}")
    net = copy.deepcopy(net)
    net.head = nn.Linear(x.shape[1], len(fitted.classes_))
    with torch.no_grad():
        net.head.weight.copy_(torch.from_numpy(fitted.coef_))
        net.head.bias.copy_(torch.from_numpy(fitted.intercept_))
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


class _Transformed(torch.utils.data.Dataset):
    """Pictures, each through the transform."""

    def __init__(self, pictures: Pictures, transform: Callable):
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture, _ = self.pictures[index]
        return self.transform(picture)


def _stack(images: list[Tensor]) -> Tensor:
    """One batch (B,C,H,W). Raises ValueError where the transform gives something else than images of one size."""
    kinds = {(tuple(image.shape), image.dtype) if isinstance(image, Tensor) else type(image) for image in images}
    image = images[0]
    if len(kinds) > 1 or not isinstance(image, Tensor) or image.ndim != 3:
        told = ", ".join(sorted(map(str, kinds))[:3])
        raise ValueError(f"the transform must give tensors (C, H, W) of one size, got {told}")
    return torch.stack(images)


def description(net: nn.Module, pictures: Pictures, transform: Callable, device: torch.device) -> dict[str, str]:
    """What features depend on: the net's architecture and weights, the transform, the set's own bytes.

    Raises ValueError for a transform whose repr gives an address instead of its settings: no key could know it.
    """
    settings = repr(transform)
    if re.search(r" at 0x[0-9a-fA-F]+", settings):
        raise ValueError(
            f"the transform says nothing of its settings ({settings[:120]}): use torchvision's, write a __repr__, "
            f"or pass cache=False"
        )
    plain = (int, float, bool, str, tuple, type(None))
    layers = [
        [name, type(layer).__name__, {k: repr(v) for k, v in vars(layer).items() if isinstance(v, plain)}]
        for name, layer in net.named_modules()
    ]
    for _, _, values in layers:
        values.pop("training", None)
    weights = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return {
        "version": str(VERSION),
        "architecture": hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest(),
        "net": type(net).__name__,
        "weights": weights.hexdigest(),
        "transform": settings,
        "set": f"{pictures.name}, {pictures.part}",
        "pictures": pictures.fingerprint(),
        "device": device.type,
    }


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
    workers: 0 reads the pictures in this process, and never holds more than one batch of them; more read ahead.
    cache: keep the features under `features` in the first folder of `$VITBOOK_DATA`, in a file named by a hash of what
    they depend on, and read them from there next time. A damaged file is named in a warning and written anew.
    Raises DataError for a picture that cannot be read; ValueError for features or images of a wrong shape.
    """
    device, file = torch.device(device), None
    if cache:
        about = description(net, pictures, transform, device)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        file = data_folders()[0] / "features" / f"{key[:32]}.safetensors"
        if found := _read(file, pictures):
            return found
    started = time.perf_counter()
    x = _run(net, pictures, transform, device, batch_size, workers)
    found = Features(x, pictures.labels.clone(), time.perf_counter() - started, False, file)
    if cache and not _keep(file, found, about):
        found = Features(found.x, found.y, found.seconds, False, None)
    return found


@torch.no_grad()  # not inference_mode: a table that a module keeps from here could not be trained with
def _run(net, pictures, transform, device, batch_size, workers) -> Tensor:
    if not len(pictures):
        raise ValueError(f"{pictures.name}, {pictures.part}: no pictures to run over")
    loader = DataLoader(_Transformed(pictures, transform), batch_size, num_workers=workers, collate_fn=_stack)
    home = next((p.device for p in net.parameters()), device)
    x, done = None, 0
    name, hidden = f"{pictures.name}, {pictures.part}", not show_progress()
    try:
        net.to(device)
        with eval_mode(net), tqdm(total=len(pictures), desc=name, unit="image", disable=hidden) as bar:
            for images in loader:
                with train.autocast(device):
                    part = net(images.to(device)).float().cpu()
                if part.ndim != 2 or len(part) != len(images):
                    raise ValueError(
                        f"expected features ({len(images)}, D), got {tuple(part.shape)}: take the head off with "
                        f"headless(net), or pool the tokens"
                    )
                if x is None:
                    x = torch.empty(len(pictures), part.shape[1])  # once: nothing else grows with the set
                x[done : done + len(part)] = part
                done += len(part)
                bar.update(len(part))
    finally:
        net.to(home)
    return x


def _digest(x: Tensor, y: Tensor) -> str:
    return hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()


def _read(file: Path, pictures: Pictures) -> Features | None:
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
        about = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        x, y = tensors["x"], tensors["y"]
        if about["sha256"] != _digest(x, y) or not torch.equal(y, pictures.labels):
            raise ValueError("its checksum differs")
        return Features(x, y, float(about["seconds"]), True, file)
    except (SafetensorError, KeyError, ValueError, UnicodeDecodeError) as error:
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


def as_dataset(
    train_part: Pictures, test_part: Pictures, transform: Callable, mean: Sequence[float], std: Sequence[float]
) -> data.Dataset:
    """Both parts as uint8 images of the size that `transform` gives, in memory, for training.

    transform: a picture -> normalised tensor (C,H,W); mean, std: what it normalises with, and what training on this
    set will normalise with. Undone, the images are rounded to the 256 levels that they had.
    """
    parts = {}
    for part, pictures in (("train", train_part), ("test", test_part)):
        images = [
            data.denormalise(transform(pictures[i][0]), mean, std).mul_(255).round_().to(torch.uint8)
            for i in range(len(pictures))
        ]
        parts |= {f"{part}_images": _stack(images), f"{part}_labels": pictures.labels.clone()}
    return data.Dataset(
        name=train_part.name,
        **parts,
        classes=train_part.classes,
        mean=torch.as_tensor(mean, dtype=torch.float32),
        std=torch.as_tensor(std, dtype=torch.float32),
        source=train_part.source,
    )
