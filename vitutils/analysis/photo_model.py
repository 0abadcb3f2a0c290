"""A classifier of your own photos: a backbone with a head, its probabilities, and its file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from vitutils.arguments import unit_rows
from vitutils.models.backbones import Backbone, load_backbone
from vitutils.models.modes import eval_mode
from vitutils.models.weights import read_file

KS = (1, 5, 20)  # of kNN
CS = (1.0, 10.0, 100.0, 1_000.0)  # of the linear probe: the inverse of its weight penalty
VOTE = 0.07  # a neighbour's vote weighs exp(cosine / VOTE), as in DINO
FORMAT = "vitutils.photos 1"


class LinearHead(nn.Module):
    """Features (B, D), scaled to length 1 -> logits (B, K): from logistic regression, perhaps trained further."""

    def __init__(self, D: int, K: int):
        super().__init__()
        self.linear = nn.Linear(D, K)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(F.normalize(features, dim=1))


class NearestHead(nn.Module):
    """Features (B, D) -> logits (B, K): the log of each class's share of the k nearest photos' votes."""

    def __init__(self, N: int, D: int, K: int, k: int):
        super().__init__()
        self.K, self.k = K, k
        self.register_buffer("x", torch.zeros(N, D))
        self.register_buffer("y", torch.zeros(N, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        cosine, index = (F.normalize(features, dim=1) @ self.x.T).topk(min(self.k, len(self.x)), dim=1)  # (B, k)
        weights = ((cosine - cosine[:, :1]) / VOTE).exp()
        votes = weights.new_zeros(features.shape[0], self.K)  # len(features) would fix it under torch.export
        votes = votes.scatter_add(1, self.y[index], weights)
        return ((votes + 0.1) / (votes + 0.1).sum(1, keepdim=True)).log()  # a class without a vote is not impossible


def fit_linear(x: Tensor, y: Tensor, K: int, C: float) -> LinearHead:
    """The linear probe: logistic regression on features x (N, D) of length 1, labels y (N,) below K, as a head."""
    fitted = LogisticRegression(C=C, max_iter=2_000).fit(unit_rows(x).numpy(), y.numpy())
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    if len(fitted.classes_) == 2:  # scikit-learn gives one row, for the second of the two
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    head = LinearHead(x.shape[1], K)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.fill_(-1e4)  # a class that no photo has is never the answer
        head.linear.weight[fitted.classes_] = weight
        head.linear.bias[fitted.classes_] = bias
    return head


def fit_nearest(x: Tensor, y: Tensor, K: int, k: int) -> NearestHead:
    """kNN among features x (N, D), labels y (N,) below K, as a head."""
    head = NearestHead(len(x), x.shape[1], K, k)
    head.x.copy_(unit_rows(x))
    head.y.copy_(y)
    return head


class PhotoModel(nn.Module):
    """A classifier of photos. Called, images (B, C, H, W) -> logits (B, K); `probabilities` takes pictures.

    temperature: what the logits are divided by before softmax, so that answers given with 80 % are right in 80 of 100.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, classes: Sequence[str], temperature: float = 1.0):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.classes, self.temperature = tuple(classes), float(temperature)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.features(images))

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures, one or more -> probabilities (B, K), rows sum to 1."""
        device = next(self.parameters()).device
        images = torch.stack([self.backbone.transform(picture) for picture in pictures])
        with eval_mode(self):
            return (self(images.to(device)).float() / self.temperature).softmax(dim=1).cpu()


def packed(model: PhotoModel, about: dict) -> bytes:
    """The model as the bytes of one safetensors file, and what is needed to read it. about: more to keep, as JSON."""
    head = model.head
    kind = {"kind": "linear", "D": head.linear.in_features} if isinstance(head, LinearHead) else {
        "kind": "nearest", "N": len(head.x), "D": head.x.shape[1], "k": head.k}  # fmt: skip
    words = {
        "format": FORMAT,
        "backbone": model.backbone.name,
        "img_size": model.backbone.input_size[1],
        "classes": list(model.classes),
        "head": kind,
        "temperature": model.temperature,
        "about": about,
    }
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    return save(state, {"vitutils": json.dumps(words)})


def load_photo_model(path: Path | str) -> PhotoModel:
    """Read a model that `python -m vitutils.photos` wrote: its file, or the folder with its model.safetensors.

    Nothing else is needed, no network and no weights. Raises FileNotFoundError where there is none, ValueError for a
    file that is damaged or something else.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: expected the folder that `python -m vitutils.photos` wrote with --out")
    state, words = read_file(file)
    try:
        told = json.loads(words["vitutils"])
        if told["format"] != FORMAT:
            raise ValueError(f"its format is {told['format']!r}, expected {FORMAT!r}")
        size = None if told["backbone"] == "pocket" else told["img_size"]
        backbone = load_backbone(told["backbone"], img_size=size, random_weights=True)
        how, K = told["head"], len(told["classes"])
        linear = how["kind"] == "linear"
        head = LinearHead(how["D"], K) if linear else NearestHead(how["N"], how["D"], K, how["k"])
        model = PhotoModel(backbone, head, told["classes"], told["temperature"])
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{file} is not a model written by `python -m vitutils.photos` ({reason})") from None
    return model.eval()


# --- how good the answers are ---


class ClassResult(NamedTuple):
    """One class on the test photos: how many there are, how many were found, the 95 % interval of that share.

    precision: of the photos given this class, the share that are right; nan if there are none.
    """

    name: str
    photos: int
    right: int
    low: float
    high: float
    precision: float


def interval(right: int, photos: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, 0..1; for no photos, all of it."""
    if not photos:
        return 0.0, 1.0
    low, high = binomtest(right, photos).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def confusion(y: Tensor, answers: Tensor, K: int) -> Tensor:
    """Counts (K, K): rows are what a photo shows, columns what it was called."""
    return (y * K + answers).bincount(minlength=K * K).reshape(K, K)


def by_class(y: Tensor, answers: Tensor, classes: Sequence[str]) -> list[ClassResult]:
    """The result of each class, in the classes' order."""
    counts = confusion(y, answers, len(classes))
    found = []
    for k, name in enumerate(classes):
        photos, right, called = int(counts[k].sum()), int(counts[k, k]), int(counts[:, k].sum())
        found.append(ClassResult(name, photos, right, *interval(right, photos), right / called if called else np.nan))
    return found


def balanced_accuracy(y: Tensor, answers: Tensor) -> float:
    """The mean over classes of the share found, 0..1: a class of few photos counts as much as one of many."""
    return float(np.mean([(answers[y == k] == k).double().mean().item() for k in y.unique()]))


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """What to divide logits (N, K) by so that their log-loss on labels y (N,) is least; between 0.05 and 20.

    Guo et al. 2017. One number for all classes: it changes how sure the answers are, not what they are. Few photos
    say little about it, so it is pulled towards 1, by a normal prior on its logarithm with a deviation of 0.5.
    """

    def loss(log_t: float) -> float:
        prior = (log_t / 0.5) ** 2 / 2 / len(y)
        return F.cross_entropy(logits.double() / np.exp(log_t), y).item() + prior

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


class Bin(NamedTuple):
    """Answers that were about equally sure: how many, their mean probability, the share that was right."""

    count: int
    sure: float
    right: float


def calibration_bins(probabilities: Tensor, y: Tensor, bins: int = 10) -> tuple[float, list[Bin]]:
    """The expected calibration error, 0..1, and the bins it is made of: those of equal width that hold an answer.

    probabilities: (N, K).  y: (N,). On few photos the error is above 0 by chance alone.
    """
    sure, answers = probabilities.max(dim=1)
    place = (sure * bins).long().clamp(max=bins - 1)
    found = []
    for b in range(bins):
        own = place == b
        if own.any():
            right = (answers[own] == y[own]).double().mean().item()
            found.append(Bin(int(own.sum()), sure[own].mean().item(), right))
    return sum(b.count * abs(b.sure - b.right) for b in found) / len(y), found
