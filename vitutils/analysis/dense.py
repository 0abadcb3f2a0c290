"""What a backbone's grid of features contains: colours, foreground, a class for each pixel.

A grid is what `Backbone.grid` returns: one feature per position of each image, (B, H', W', D).
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from vitutils.arguments import unit_rows
from vitutils.models.modes import eval_mode


@torch.no_grad()
def grids(backbone: nn.Module, images: Tensor, batch_size: int = 16) -> Tensor:
    """Images (B, C, H, W), normalised -> grids (B, H', W', D) on the CPU, a batch at a time."""
    with eval_mode(backbone):
        return torch.cat([backbone.grid(part).float().cpu() for part in images.split(batch_size)])


def pca_colours(grid: Tensor) -> Tensor:
    """Grids (B, H', W', D) -> colours (B, 3, H', W'), 0..1: red, green and blue are the three main directions.

    One PCA for all images, so that a colour means the same in each; a direction's sign is arbitrary. The 2 % lowest
    and highest values are clipped. Raises ValueError for fewer than four positions, or a D below 3.
    """
    B, rows, columns, D = grid.shape
    if B * rows * columns < 4 or D < 3:
        raise ValueError(f"expected four places or more with 3 features or more, got {tuple(grid.shape)}")
    found = PCA(3, random_state=0).fit_transform(grid.reshape(-1, D).numpy())
    low, high = np.quantile(found, [0.02, 0.98], axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return torch.from_numpy(scaled).float().reshape(B, rows, columns, 3).permute(0, 3, 1, 2)


def patch_labels(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """The most common class at each position: masks (B, H, W) -> (B, H', W'). H' and W' have to divide H and W."""
    (B, H, W), (rows, columns) = masks.shape, grid
    if H % rows or W % columns:
        raise ValueError(f"expected a grid that divides masks of {H} x {W}, got {rows} x {columns}")
    cells = masks.reshape(B, rows, H // rows, columns, W // columns).transpose(2, 3).flatten(3)
    return F.one_hot(cells).sum(dim=3).argmax(dim=3)


def foreground(known: Tensor, inside: Tensor, grid: Tensor, k: int = 5) -> Tensor:
    """What share of the k most similar known positions is foreground, 0..1: grids (B, H', W', D) -> (B, H', W').

    known: grids (A, H', W', D) of images whose foreground is known.  inside: bool (A, H', W').
    Raises ValueError if nothing or everything is foreground.
    """
    if inside.all() or not inside.any():
        raise ValueError("expected known places inside and outside of the foreground, got one kind alone")
    x, y = unit_rows(known.flatten(0, 2)).numpy(), inside.flatten().numpy()
    votes = KNeighborsClassifier(min(k, len(y)), metric="cosine").fit(x, y)
    found = votes.predict_proba(unit_rows(grid.flatten(0, 2)).numpy())[:, 1]
    return torch.from_numpy(found).float().reshape(grid.shape[:3])


def fit_segmenter(grid: Tensor, masks: Tensor, C: float = 10.0) -> LogisticRegression:
    """A linear head for single positions, fitted to grids (B, H', W', D) and masks (B, H, W)."""
    labels = patch_labels(masks, grid.shape[1:3])
    return LogisticRegression(C=C, max_iter=500).fit(unit_rows(grid.flatten(0, 2)).numpy(), labels.flatten().numpy())


def segment(head: LogisticRegression, grid: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of every pixel: grids (B, H', W', D) -> masks (B, H, W); the logits are enlarged, bilinear."""
    logits = head.decision_function(unit_rows(grid.flatten(0, 2)).numpy())
    if logits.ndim == 1:  # scikit-learn gives one column for two classes
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    stacked = torch.from_numpy(logits).float().reshape(*grid.shape[:3], -1).permute(0, 3, 1, 2)
    answers = F.interpolate(stacked, size, mode="bilinear", align_corners=False).argmax(dim=1)
    return torch.from_numpy(head.classes_)[answers]


def mean_iou(masks: Tensor, answers: Tensor) -> float:
    """Mean over classes of intersection over union, 0..1, counted over all pixels of all images (B, H, W).

    A class that is in neither is left out.
    """
    if masks.shape != answers.shape:
        raise ValueError(f"expected answers {tuple(masks.shape)}, a class for each pixel, got {tuple(answers.shape)}")
    return float(jaccard_score(masks.flatten().numpy(), answers.flatten().numpy(), average="macro"))
