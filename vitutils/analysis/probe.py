"""How good are a net's features? kNN, a linear probe, full fine-tuning, with few or many images per class.

Chapter 9 writes out all but the last, `train_steps`, in the same words.
"""

import warnings

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from vitutils import data
from vitutils import training as train
from vitutils.arguments import (
    at_least_1,
    check_training,
    checked_features,
    checked_labels,
    checked_number,
    checked_rate,
    logits_for,
    unit_rows,
)

# One image of each of many classes is what is meant here; scikit-learn's warning would stand on the page.
warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)


def draw_shots(labels: Tensor, shots: int | None, seed: int) -> Tensor:
    """Positions of `shots` images of each class; None: of all its images.

    A class with fewer gives all. With one seed, a smaller draw is part of a
    larger one.
    """
    labels = checked_labels(labels)
    if shots is not None and shots < 1:
        raise ValueError(f"expected 1 image per class or more, got {shots}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    kept = [order[labels[order] == k][:shots] for k in labels.unique()]
    return torch.cat(kept)


def split_shots(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to fit on, and positions to choose by: a fifth per class.

    Each class has at least one image to choose by, but a class's only image
    is for fitting. Raises ValueError if no class has two images.
    """
    labels = checked_labels(labels)
    if labels.bincount().max() < 2:
        raise ValueError("expected 2 images in at least one class, got 1")
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
    """Let the k most similar images vote; closer ones count for more.

    x (N, D), y (N,): known images. new_x (M, D) -> answers (M,). Similarity
    is the cosine; a vote weighs exp(cosine / temperature), as in DINO.
    Raises ValueError if features and labels do not match, or are nan.
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
    images; then the probe is fitted again on all. With one image per class
    there is nothing to choose by, and C = 10. Raises ValueError like
    `knn_predict`, and if there is only one class.
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
        for images, labels in dataset.batches(
            size, seed=1_000 * seed + epoch, device=device
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
