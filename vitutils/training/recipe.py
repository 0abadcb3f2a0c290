"""How to train: the numbers of a recipe and their limits. Nothing here needs torch, so the command line is quick."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral, Real

from vitutils._numbers import plain, shown

SCHEDULES = ("cosine", "constant")
# Numbers of a recipe: what each must be, in words, and whether one is.
LIMITS = {
    "epochs": ("a whole number of 1 or more, 10**9 at most", lambda n: 1 <= n <= 10**9 and n % 1 == 0),
    "batch_size": ("a whole number of 1 or more, 10**9 at most", lambda n: 1 <= n <= 10**9 and n % 1 == 0),
    "lr": ("a finite number above 0", lambda x: 0 < x < float("inf")),
    "muon_lr": ("a finite number above 0 (or None: no Muon)", lambda x: 0 < x < float("inf")),
    "weight_decay": ("a finite number of 0 or more", lambda x: 0 <= x < float("inf")),
    "warmup": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "clip_grad": ("above 0 (or None: no limit)", lambda x: x > 0),
    "label_smoothing": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "mixup": ("a finite number of 0 or more", lambda x: 0 <= x < float("inf")),
    "cutmix": ("a finite number of 0 or more", lambda x: 0 <= x < float("inf")),
    "ema_decay": ("at least 0 and below 1 (or None: no averaging)", lambda x: 0 <= x < 1),
    "seed": ("a whole number between -2**32 and 2**32", lambda n: abs(n) <= 2**32 and n % 1 == 0),
}


def checked(name: str, value: object) -> int | float | None:
    """A number of a recipe as a plain Python number, whatever its type was. Raises ValueError if outside `LIMITS`."""
    what, fits = LIMITS[name]
    number = plain(value)
    if number is None and "None" in what:
        return None
    if isinstance(number, bool) or not isinstance(number, Real) or not fits(number) or 10**308 < number < float("inf"):
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    return int(number) if isinstance(number, Integral) or "whole" in what else float(number)


@dataclass(frozen=True)
class Recipe:
    """How to train. One recipe is fair to two networks only if it suits both, so search for each.

    lr: peak of the schedule.  weight_decay: on weight matrices and filters only.
    muon_lr: peak rate of Muon, which then moves the matrices inside, and AdamW the rest; None: AdamW for all.
    warmup: share of all steps in which the rate rises linearly from (almost) 0 to lr.
    schedule: what follows: "cosine", down to 0 at the last step, or "constant".
    clip_grad: largest norm of the whole gradient, or None.  label_smoothing: 0 to 1.
    mixup, cutmix: their alpha, 0 for off; with both, each batch gets one of the two.
    ema_decay: keep an exponential mean of the weights with this decay per step, evaluate and return it; or None.
    augment: function of a batch of images on the device, before normalisation (`data.flip_shift()`), or None.
    NumPy numbers and tensors with one number become Python's. Raises ValueError for a number outside its limits.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    muon_lr: float | None = None
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: str = "cosine"
    clip_grad: float | None = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None
    augment: Callable | None = None
    seed: int = 0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be 'cosine' or 'constant', got {self.schedule!r}")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment must be a function of a batch of images, or None, got {self.augment!r}")
        object.__setattr__(self, "schedule", str(self.schedule))
        for name in LIMITS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))

    def numbers(self) -> dict:
        """All fields but the augmentation, as plain values that a checkpoint can hold; muon_lr only if there is one."""
        values = asdict(self)
        del values["augment"]
        if self.muon_lr is None:  # as it was before there was such a field: older checkpoints stay good
            del values["muon_lr"]
        return values
