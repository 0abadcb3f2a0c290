"""Distillation: a student learns from labels and from a trained teacher. Chapter 11 writes it out in the same words.

Give a `Distillation` to `train.fit(..., objective=...)`. Letters: B images, D width, K classes, T the temperature here.
Sources: Hinton et al. 2015 (soft targets); DeiT, Touvron et al. 2021 (hard targets).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils.arguments import checked_number, shape_of
from vitutils.models.modes import eval_mode
from vitutils.training.digests import digest_net


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's probabilities are from the teacher's, in nats.

    student, teacher: logits (B, K). The KL divergence of the two softmaxes at
    `temperature`, averaged over images, times the temperature squared, so
    that the gradient keeps its size. Source: Hinton et al. 2015, section 2.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    answer = F.log_softmax(student / temperature, dim=1)
    gap = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return temperature**2 * gap


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher finds most likely.

    student, teacher: logits (B, K). Source: DeiT, equation 3.
    """
    return F.cross_entropy(student, teacher.argmax(dim=1))


class Distillation:
    """(1 - weight) * loss on the labels + weight * loss on the teacher.

    kind: "soft" (uses temperature) or "hard". The teacher, any module from
    images (B, C, H, W) to logits (B, K), is frozen in place; it is in eval
    mode at each call and sees exactly the images that the student saw. If the
    student returns a pair of logits, the first is compared with the labels,
    the second with the teacher. Raises ValueError for what does not fit.
    """

    def __init__(
        self,
        teacher: nn.Module,
        kind: str = "hard",
        weight: float = 0.5,
        temperature: float = 1.0,
    ):
        if kind not in ("soft", "hard"):
            raise ValueError(f"kind is 'soft' or 'hard', got {kind!r}")
        if not isinstance(teacher, nn.Module):
            raise ValueError(
                f"expected a teacher that is an nn.Module, got {teacher!r}"
            )
        self.kind = kind
        self.weight = checked_number(
            weight, "a weight from 0 to 1", lambda w: 0 <= w <= 1
        )
        self.temperature = checked_number(
            temperature, "a temperature above 0", lambda t: 0 < t < math.inf
        )
        self.teacher = teacher.requires_grad_(False)

    def __call__(
        self,
        outputs: Tensor | tuple[Tensor, Tensor],
        images: Tensor,
        labels: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        pair = isinstance(outputs, tuple) and len(outputs) == 2
        for_labels, for_teacher = outputs if pair else (outputs, outputs)
        told = self.ask(images)
        student, teacher = shape_of(for_teacher), shape_of(told)
        if student != teacher or not isinstance(told, Tensor):
            raise ValueError(
                f"the student's logits are {student}, the teacher's {teacher}"
            )
        if self.kind == "soft":
            gap = soft_loss(for_teacher, told, self.temperature)
        else:
            gap = hard_loss(for_teacher, told)
        own = F.cross_entropy(
            for_labels, labels, label_smoothing=label_smoothing
        )
        return (1 - self.weight) * own + self.weight * gap

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """The teacher's logits (B, K), in eval mode even after train()."""
        with eval_mode(self.teacher):  # afterwards its mode is restored
            return self.teacher.to(images.device)(images)

    def numbers(self) -> dict:
        """What a checkpoint stores, so that a run resumes as it began."""
        digits = digest_net(self.teacher)  # settings and weights
        return {
            "kind": self.kind,
            "weight": self.weight,
            "temperature": self.temperature,
            "teacher": f"{type(self.teacher).__name__} {digits}",
        }
