"""Which images are drawn and which are split off: classes balanced, or in proportion."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _by_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The indices (N,) of shuffled images, class by class, and the place (N,) of each within its class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turn = torch.cat([torch.arange(int(count)) for count in labels.bincount()])
    return shuffled[labels[shuffled].argsort(stable=True)], turn


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """The indices (N,) of shuffled images, in rounds of one per class, so that any beginning of it is balanced."""
    by_class, turn = _by_class(labels, seed)
    return by_class[turn.argsort(stable=True)]


def split_off(labels: Tensor, count: int, seed: int, classes: Sequence[str]) -> Tensor:
    """Which images to split off, bool (N,): `count`, in proportion, at least one of each class on either side.

    labels: int64 (N,).  classes: their names.  A class without images is skipped.
    Raises ValueError, naming each class with a single image, and if count is too small or large for one of each class.
    """
    counts = labels.bincount(minlength=len(classes))
    if single := [f"{classes[k]!r} (1)" for k in (counts == 1).nonzero().flatten().tolist()]:
        more = f" and {len(single) - 8} more" if len(single) > 8 else ""
        raise ValueError(
            f"1 image to split in {', '.join(single[:8])}{more}: expected 2 or more in every class, one for either "
            f"side; add images or remove the class"
        )
    K = int((counts > 0).sum())
    if not K <= count <= len(labels) - K or not count:
        raise ValueError(
            f"expected a count between {K} and {len(labels) - K}, so that each of {K} classes has an image on either "
            f"side, got {count}"
        )
    by_class, turn = _by_class(labels, seed)
    split = torch.zeros(len(labels), dtype=torch.bool)
    split[by_class[turn < _shares(counts, count)[labels[by_class]]]] = True
    return split


def _shares(counts: Tensor, count: int) -> Tensor:
    """How many images of each class (K,) to split off: in proportion, one at least, never all.

    scikit-learn's stratified split is in proportion too, but leaves a rare class on one side.
    """
    exact = counts * (count / int(counts.sum()))
    # Dealt in rounds, where that is within one image of the proportion: so were the splits of the recorded studies.
    rounds = torch.cat([torch.arange(int(n)) for n in counts]).argsort(stable=True)[:count]
    dealt = torch.arange(len(counts)).repeat_interleave(counts)[rounds].bincount(minlength=len(counts))
    if ((dealt - exact).abs() < 1).all() and ((dealt > 0) & (dealt < counts) | (counts == 0)).all():
        return dealt
    low, high = counts.clamp(max=1), (counts - 1).clamp(min=0)
    shares = exact.floor().long().clamp(low, high)
    while missing := count - int(shares.sum()):
        open_ = shares < high if missing > 0 else shares > low
        lacking = torch.where(open_, exact - shares, -torch.inf if missing > 0 else torch.inf)
        shares[lacking.argmax() if missing > 0 else lacking.argmin()] += 1 if missing > 0 else -1
    return shares


def class_counts(classes: Sequence[str], train_labels: Tensor, test_labels: Tensor) -> str:
    """Images per class, training + test, in brackets; "" if no class has more than twice as many as another."""
    train, test = (labels.bincount(minlength=len(classes)) for labels in (train_labels, test_labels))
    if all(len(n) == 0 or n.max() <= 2 * n.min() for n in (train, test)):
        return ""
    told = [f"{name} {n:,} + {m:,}" for name, n, m in zip(classes, train.tolist(), test.tolist(), strict=True)]
    order = (train + test).argsort(stable=True).tolist()
    return f" ({', '.join(told)})" if len(told) <= 12 else f" (from {told[order[0]]} to {told[order[-1]]})"
