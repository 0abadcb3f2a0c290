"""Training: the recipe, its schedule, the loop, checkpoints, and a teacher's part in the loss."""

from vitutils.training.digests import digest_net
from vitutils.training.distill import Distillation, hard_loss, soft_loss
from vitutils.training.loop import (
    Evaluation,
    History,
    Recipe,
    autocast,
    evaluate,
    fit,
    labels_alone,
    load_checkpoint,
    make_mixing,
    make_scaler,
    make_schedule,
    parameter_groups,
    save_checkpoint,
)

__all__ = [
    "Distillation",
    "Evaluation",
    "History",
    "Recipe",
    "autocast",
    "digest_net",
    "evaluate",
    "fit",
    "hard_loss",
    "labels_alone",
    "load_checkpoint",
    "make_mixing",
    "make_scaler",
    "make_schedule",
    "parameter_groups",
    "save_checkpoint",
    "soft_loss",
]
