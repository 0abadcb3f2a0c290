"""How far an accuracy, or a difference of two, can be trusted: the test images and the seeds are both samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

ONE = math.erf(1 / math.sqrt(2))  # 68.3 %, the share of a normal distribution within one standard deviation


@dataclass(frozen=True)
class Difference:
    """How much better one network is than another: `mean`, its standard `error`, an interval, a two-sided `p`."""

    mean: float
    error: float
    low: float
    high: float
    p: float


def binomial_error(p: float, n: int) -> float:
    """Return the standard error of a share `p` (0 to 1) that was found on `n` images.

    It is half the width of Wilson's 68 % interval: nearly sqrt(p (1 - p) / n), but not 0 where all answers are right.
    Raises ValueError for a share outside 0 to 1 (per cent?), or for no images.
    """
    if not 0 <= p <= 1 or n < 1:
        raise ValueError(f"expected a share from 0 to 1 of at least one image, got {p} of {n}")
    low, high = stats.binomtest(round(p * n), n).proportion_ci(ONE, method="wilson")
    return float(high - low) / 2


def paired_interval(
    correct_a: np.ndarray | Tensor, correct_b: np.ndarray | Tensor, confidence: float = 0.95
) -> Difference:
    """Return accuracy of a minus accuracy of b on the same images, with an interval for other seeds and other images.

    correct_a, correct_b: tensors or arrays, seeds x images, true where the answer was right; the images are the same in
    the same order, the numbers of seeds may differ. A single run has shape (images,): then the interval covers only
    the chance of the images. The variances of seeds and of images are added (Welch and Satterthwaite's degrees of
    freedom).
    Raises ValueError if the shapes do not fit, or for fewer than two images.
    """
    a, b = (np.atleast_2d(_array(correct)).astype(float) for correct in (correct_a, correct_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] < 2 or not len(a) or not len(b):
        raise ValueError(f"expected seeds x images, of the same images (2 or more), got {a.shape} and {b.shape}")
    parts, overlap = [_part(a.mean(axis=0) - b.mean(axis=0))], 0.0
    for runs in (a, b):
        if len(runs) > 1:
            parts.append(_part(runs.mean(axis=1)))
            left = runs - runs.mean(axis=0) - runs.mean(axis=1, keepdims=True) + runs.mean()
            overlap += (left**2).sum() / (len(runs) - 1) / (runs.shape[1] - 1) / runs.size  # counted in both parts
    variance = max(sum(part for part, _ in parts) - overlap, parts[0][0])
    mean, error = float(a.mean() - b.mean()), math.sqrt(variance)
    if not error:
        return Difference(mean, 0.0, mean, mean, 1.0 if mean == 0 else 0.0)
    freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)
    reach = error * float(stats.t.ppf((1 + confidence) / 2, freedom))
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, error, mean - reach, mean + reach, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are, in the same order (Holm 1979); below 0.05 is clear.

    Raises ValueError if one is not a number from 0 to 1.
    """
    found = np.asarray(p_values, dtype=float)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"expected p-values from 0 to 1, got {p_values}")
    order = found.argsort(kind="stable")
    corrected = np.empty_like(found)
    corrected[order] = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1)).clip(max=1)
    return corrected.tolist()


def _array(correct: np.ndarray | Tensor) -> np.ndarray:
    return correct.cpu().numpy() if isinstance(correct, Tensor) else np.asarray(correct)


def _part(values: np.ndarray) -> tuple[float, int]:
    """The variance of a mean of independent values, and how many they are."""
    return float(values.var(ddof=1)) / len(values), len(values)
