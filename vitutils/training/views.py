"""Learning from two views of an image: DINO with a teacher, LeJEPA without; and rotation prediction, the old idea.

Chapter 16 writes out the classes and functions of DINO and LeJEPA in the same words. All methods are modules from
images (B, C, H, W), normalised, to a loss; `pretrain` runs any of them, MAE too. Letters: V views, B images, D width,
K outputs. Sources: Caron et al. 2021 (DINO, 2104.14294), algorithm 1; Balestriero and LeCun 2025 (LeJEPA, 2511.08544);
Gidaris et al. 2018 (rotation, 1803.07728).
"""

import copy
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.data.batches import seeded
from vitutils.data.sets import Dataset
from vitutils.models.modes import modes_kept
from vitutils.training.schedule import make_schedule, parameter_groups


def random_crops(images: Tensor, size: int, scale: tuple[float, float]) -> Tensor:
    """A crop of each image, stretched to size x size, half of them mirrored.

    images (B, C, H, W) -> (B, C, size, size). scale: smallest and largest share of an image's area that its crop shows.
    Each image gets a crop of its own, of the image's proportions.
    """
    B, low, high = len(images), *scale
    side = torch.empty(B, device=images.device).uniform_(low, high).sqrt()
    centre = (torch.rand(B, 2, device=images.device) * 2 - 1) * (1 - side)[:, None]
    mirror = torch.where(torch.rand(B, device=images.device) < 0.5, -1, 1)
    turn = torch.zeros(B, 2, 3, device=images.device)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, :, 2] = side * mirror, side, centre
    grid = F.affine_grid(turn, [B, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, strength: float = 0.4, grey: float = 0.2) -> Tensor:
    """Change contrast, brightness and colour of each image at random; a share `grey` of them loses its colour.

    images (B, C, H, W), normalised -> the same shape. strength: the largest change of
    contrast, as a share, and of brightness, in standard deviations.
    """
    B, C = images.shape[:2]

    def by_chance(channels):
        return torch.empty(B, channels, 1, 1, device=images.device).uniform_(-strength, strength)

    lit = images * (1 + by_chance(1)) + by_chance(1) + by_chance(C) / 2
    colourless = torch.rand(B, 1, 1, 1, device=images.device) < grey
    return torch.where(colourless, lit.mean(dim=1, keepdim=True).expand_as(lit), lit)


class Views:
    """Large and small crops of each image, recoloured: images (B, C, H, W) -> V batches, the large ones first.

    large, small: how many of each.  sides: of a large and a small one, in pixels.  scales: the smallest and the largest
    share of the image that a large one shows, and a small one.
    """

    def __init__(self, large: int = 2, small: int = 2, sides=(24, 12), scales=((0.4, 1.0), (0.1, 0.4))):
        self.large, self.small, self.sides, self.scales = large, small, sides, scales

    def __call__(self, images: Tensor) -> list[Tensor]:
        sides = [self.sides[0]] * self.large + [self.sides[1]] * self.small
        scales = [self.scales[0]] * self.large + [self.scales[1]] * self.small
        return [recolour(random_crops(images, *how)) for how in zip(sides, scales, strict=True)]


def embed_views(model: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """The model's answers to each of V views, as a list; views of one size go through it together."""
    answers = []
    while len(answers) < len(views):
        first = views[len(answers)]
        alike = [v for v in views[len(answers) :] if v.shape == first.shape]
        answers += model(torch.cat(alike)).chunk(len(alike))
    return answers


class DINOHead(nn.Module):
    """Features (B, D) -> K outputs between -1 and 1: an MLP, then cosines.

    The last layer compares the bottleneck's direction with K learned ones.
    """

    def __init__(self, D: int, K: int, hidden=192, bottleneck=64):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        self.directions = nn.Parameter(torch.randn(K, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        z = F.normalize(self.mlp(features), dim=-1)
        return z @ F.normalize(self.directions, dim=-1).T  # (B, K)


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor,
    student_temp: float = 0.1, teacher_temp: float = 0.04,
) -> Tensor:  # fmt: skip
    """Cross-entropy of the student's answers with the teacher's, in nats.

    student (V, B, K), teacher (G, B, K): outputs. View g of the teacher is
    the same crop as view g of the student; such pairs are left out.
    centre (K,): subtracted from the teacher's. Source: DINO, algorithm 1.
    """
    targets = ((teacher.detach() - centre) / teacher_temp).softmax(dim=-1)
    answers = (student / student_temp).log_softmax(dim=-1)
    pairs = [
        -(targets[g] * answers[v]).sum(dim=-1).mean()
        for g in range(len(targets))
        for v in range(len(answers))
        if g != v
    ]
    return torch.stack(pairs).mean()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters a step towards the student's, in place.

    The step is a share 1 - momentum of the way: an exponential mean.
    """
    for mean, new in zip(
        teacher.parameters(), student.parameters(), strict=True
    ):
        mean.lerp_(new, 1 - momentum)


def entropies(probabilities: Tensor) -> tuple[float, float]:
    """In nats: the mean entropy of the rows (B, K); the entropy of their mean.

    The second is never smaller. Their difference is how much an answer tells
    about which image it was: 0 if every image gets the same answer.
    """
    mean = probabilities.mean(dim=0)
    each = torch.special.entr(probabilities).sum(dim=-1).mean().item()
    return each, torch.special.entr(mean).sum().item()


def verdict(each: float, together: float, K: int) -> str:
    """What two entropies of K outputs say: alive, or how it collapsed."""
    if together - each > 0.05 * math.log(K):
        return "alive"
    if each > 0.95 * math.log(K):
        return "collapsed: uniform"
    if each < 0.05 * math.log(K):
        return "collapsed: one output"
    return "collapsed: one answer for all"


class DINO(nn.Module):
    """Self-distillation: a student learns from a mean of its own past.

    images (B, C, H, W) -> loss. The teacher is a moving mean of the student,
    sees only the large views, and gets no gradient. centring keeps one output
    from winning, sharpening (a teacher_temp below student_temp) keeps the
    answers from becoming uniform. Call after_step() after each optimizer step.
    """

    def __init__(
        self, encoder: nn.Module, K: int = 256, views: Callable | None = None,
        momentum: float = 0.99, centring: bool = True,
        student_temp: float = 0.1, teacher_temp: float = 0.04,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.momentum = encoder, momentum
        self.views = views or Views()
        self.head = DINOHead(encoder.config.embed_dim, K)
        self.centring = centring
        self.temps = dict(student_temp=student_temp, teacher_temp=teacher_temp)
        student = nn.Sequential(self.encoder, self.head)
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(K))
        self.entropies = (math.nan, math.nan)

    def forward(self, images: Tensor) -> Tensor:
        views = self.views(images)
        with torch.no_grad():
            large = views[: self.views.large]
            teacher = torch.stack(embed_views(self.teacher.eval(), large))
        features = embed_views(self.encoder, views)
        student = self.head(torch.stack(features))  # (V, B, K)
        loss = dino_loss(student, teacher, self.centre, **self.temps)
        sharp = (teacher - self.centre) / self.temps["teacher_temp"]
        self.entropies = entropies(sharp.softmax(dim=-1).flatten(0, 1))
        self.seen = teacher.mean(dim=(0, 1))  # (K,)
        return loss

    def after_step(self) -> None:
        """The teacher follows the student, the centre follows the teacher."""
        follow(self.teacher[0], self.encoder, self.momentum)
        follow(self.teacher[1], self.head, self.momentum)
        if self.centring:
            self.centre.lerp_(self.seen, 0.1)

    def told(self) -> str:
        """The entropies of the teacher's last answers, and a verdict."""
        (each, together), K = self.entropies, len(self.centre)
        return (
            f"entropy {each:.2f}, of the mean {together:.2f}, ln K "
            f"{math.log(K):.2f}: {verdict(each, together, K)}"
        )


def sigreg(z: Tensor, slices: int = 128, knots: int = 17) -> Tensor:
    """How far the rows of z (B, D) are from a standard normal cloud.

    Along random directions, the mean of exp(i t z) is compared with that of
    a normal distribution, exp(-t^2 / 2), for t from -5 to 5, and the squared
    differences are summed, weighted by the same curve. In vit-pytorch's form.
    """
    directions = torch.randn(slices, z.shape[1], device=z.device)
    directions = F.normalize(directions, dim=1)
    t = torch.linspace(-5, 5, knots, device=z.device)
    normal = (-0.5 * t.square()).exp()  # (knots,)
    angles = (z @ directions.T)[:, :, None] * t  # (B, slices, knots)
    real, imaginary = angles.cos().mean(dim=0), angles.sin().mean(dim=0)
    gap = (real - normal).square() + imaginary.square()  # (slices, knots)
    return torch.trapezoid(gap * normal, t, dim=-1).mean()


class LeJEPA(nn.Module):
    """Views that agree, in a cloud that must stay normal: no teacher needed.

    images (B, C, H, W) -> loss: (1 - weight) times the mean squared distance
    of each view's z from the mean of the image's large views, plus weight * B
    times `sigreg`. Source: Balestriero and LeCun 2025.
    """

    def __init__(
        self, encoder: nn.Module, D: int = 32, views: Callable | None = None,
        weight: float = 0.05,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.weight = encoder, weight
        self.views = views or Views()
        wide = encoder.config.embed_dim
        self.head = nn.Sequential(
            nn.Linear(wide, 192), nn.BatchNorm1d(192), nn.GELU(),
            nn.Linear(192, D),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        views = embed_views(self.encoder, self.views(images))
        z = self.head(torch.cat(views)).unflatten(0, (len(views), -1))
        centre = z[: self.views.large].mean(dim=0)  # (B, D)
        apart = (z - centre).square().mean()
        B = z.shape[1]
        normal = B * torch.stack([sigreg(view) for view in z]).mean()
        self.parts = apart.item(), normal.item(), z[0].std(dim=0).mean().item()
        return (1 - self.weight) * apart + self.weight * normal

    def told(self) -> str:
        """Both parts of the loss, and the spread: 0 if it collapsed."""
        apart, normal, spread = self.parts
        told = f"apart {apart:.3f}, not normal {normal:.2f}"
        return f"{told}, spread {spread:.2f}"


class Rotation(nn.Module):
    """By how many quarter turns was the image turned? images -> loss.

    Source: Gidaris et al. 2018.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.embed_dim, 4)

    def forward(self, images: Tensor) -> Tensor:
        images = random_crops(images, images.shape[-1], (0.5, 1.0))
        turns = torch.arange(len(images), device=images.device) % 4
        turned = torch.stack([x.rot90(int(k), (1, 2)) for x, k in zip(images, turns, strict=True)])
        logits = self.head(self.encoder(turned))
        self.accuracy = (logits.argmax(dim=1) == turns).double().mean().item()
        return F.cross_entropy(logits, turns)

    def told(self) -> str:
        """The share of the last answers that were right."""
        return f"turns told {self.accuracy:.0%}, chance 25 %"


def pretrain(
    method: nn.Module,
    dataset: Dataset,
    steps: int,
    lr: float,
    *,
    batch_size: int = 128,
    weight_decay: float = 0.05,
    seed: int = 0,
    device: torch.device | str = "cpu",
    every: int = 0,
    report: Callable[[dict], object] | None = None,
) -> list[dict]:
    """Train a method on images whose labels it never sees; an entry per step: loss, processor seconds, entropies.

    AdamW, warm-up over a tenth of the steps, a cosine to 0, gradients of length 1 at most. method: images (B, C, H, W)
    -> loss; it may have after_step(), and told(), whose line is printed with the loss at every `every`-th step.
    A smaller last batch of an epoch is left out. report: called with each entry. At the end every module is back in its
    own mode. Raises ValueError for fewer images than a batch; FloatingPointError, with the step, as soon as the loss
    is not finite.
    """
    device, count = torch.device(device), len(dataset.train_images)
    if not 1 < batch_size <= count:
        raise ValueError(f"expected a batch of 2 to {count} images, as many as there are, got {batch_size}")
    if steps < 1:
        raise ValueError(f"expected 1 step or more, got {steps}")
    learned = [p for p in method.to(device).parameters() if p.requires_grad]
    groups = parameter_groups(method, weight_decay)
    groups = [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=device.type in ("cpu", "cuda"))
    schedule, history, started = make_schedule(optimizer, steps, warmup=0.1), [], time.process_time()
    with modes_kept(method), seeded(seed, device):
        method.train()
        for images in endless(dataset, batch_size, seed, device):
            loss = method(images)
            if not torch.isfinite(loss):
                step = len(history) + 1
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
            getattr(method, "after_step", lambda: None)()
            entry = {"step": len(history) + 1, "loss": loss.item(), "seconds": time.process_time() - started}
            history.append(entry | {"entropies": getattr(method, "entropies", None)})
            _tell(method, history[-1], every, report)
            if len(history) == steps:
                return history


def _tell(method, entry, every, report) -> None:
    if every and entry["step"] % every == 0:
        told = getattr(method, "told", lambda: "")()
        print(f"step {entry['step']:4d}  loss {entry['loss']:.4f}  {told}".rstrip())
    if report:
        report(entry)


def endless(dataset: Dataset, size: int, seed: int, device):
    """Normalised batches (size, C, H, W) without labels, epoch after epoch."""
    epoch = 0
    while True:
        for images, _ in dataset.batches(size, seed=seed * 100_003 + epoch, device=device):
            if len(images) >= size:
                yield images[:size]
        epoch += 1
