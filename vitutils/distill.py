"""Distillation: a student learns from labels and from a trained teacher. Chapter 11 writes it out in the same words.

Give a `Distillation` to `train.fit(..., objective=...)`. Letters: B images, D width, K classes, T the temperature here.
Sources: Hinton et al. 2015 (soft targets); DeiT, Touvron et al. 2021 (hard targets, the distillation token). Parameter
names are timm's: a distilled DeiT's weights load into `DistilledViT`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutils import train
from vitutils.given import checked_number, shape_of
from vitutils.modes import eval_mode
from vitutils.vit import ViT, ViTConfig, resize_positions


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's probabilities are from the teacher's, in nats.

    student, teacher: logits (B, K). KL divergence of the two softmaxes at
    `temperature`, mean over images, times its square, so that the gradient
    keeps its size. Source: Hinton et al. 2015, section 2.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    answer = F.log_softmax(student / temperature, dim=1)
    gap = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return temperature**2 * gap


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher holds most likely.

    student, teacher: logits (B, K). Source: DeiT, equation 3.
    """
    return F.cross_entropy(student, teacher.argmax(dim=1))


class Distillation:
    """(1 - weight) * loss on the labels + weight * loss on the teacher.

    kind: "soft" (uses temperature) or "hard". The teacher, any module from
    images (B, C, H, W) to logits (B, K), is frozen in place; it is in eval
    mode at each call and sees the very images that the student saw. A student
    that returns a pair is asked for the labels by its first logits and for
    the teacher by its second. Raises ValueError for what does not fit.
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
        """The teacher's logits (B, K), in eval mode whoever called train()."""
        with eval_mode(self.teacher):  # afterwards its mode is put back
            return self.teacher.to(images.device)(images)

    def numbers(self) -> dict:
        """What a checkpoint keeps, so that a run resumes as it began."""
        digits = train.digest_net(self.teacher)  # settings and weights
        return {
            "kind": self.kind,
            "weight": self.weight,
            "temperature": self.temperature,
            "teacher": f"{type(self.teacher).__name__} {digits}",
        }


class DistilledViT(ViT):
    """A ViT with a distillation token beside the class token, and its head.

    images (B, C, H, W) -> in train mode two logits (B, K), of the class token
    and of the distillation token; in eval mode their mean (B, K). With
    need_weights=True also attn (B, depth, h, T, T), T = 2 + N.
    Source: DeiT, section 4. Raises ValueError without a class token.
    """

    def __init__(self, config: ViTConfig):
        if config.global_pool != "token":
            raise ValueError("expected global_pool 'token', got 'avg'")
        super().__init__(config)
        D, K = config.embed_dim, config.num_classes
        self.dist_token = nn.Parameter(torch.zeros(1, 1, D))
        own = nn.init.trunc_normal_(torch.empty(1, 1, D), std=0.02)
        first, patches = self.pos_embed.data.tensor_split([1], dim=1)
        self.pos_embed = nn.Parameter(torch.cat([first, own, patches], dim=1))
        self.head_dist = nn.Linear(D, K)
        for parameter in self.head_dist.parameters():
            nn.init.zeros_(parameter)  # so that its first loss is ln K too

    def embed(self, images: Tensor) -> Tensor:
        """Both tokens, patches, positions: (B, 2 + N, D)."""
        patches = self.patch_embed(images)  # (B, N, D)
        tokens = self.cls_token, self.dist_token
        B = patches.shape[0]
        first = [token.expand(B, -1, -1) for token in tokens]
        first = torch.cat(first, dim=1)  # (B, 2, D)
        grid = tuple(s // self.config.patch_size for s in images.shape[-2:])
        own, positions = self.pos_embed.tensor_split([2], dim=1)
        positions = resize_positions(positions, self.config.grid, grid)
        return torch.cat([first + own, patches + positions], dim=1)

    def forward(self, images: Tensor, need_weights: bool = False):
        features = self.forward_features(images, need_weights)
        tokens, attn = features if need_weights else (features, None)
        pair = self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])
        logits = pair if self.training else sum(pair) / 2
        return (logits, attn) if need_weights else logits
