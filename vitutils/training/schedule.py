"""Which parameters decay, and how the learning rate changes. Chapter 6 has the same code."""

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters for AdamW: those that decay, those that do not.

    The weights that a layer multiplies by decay: matrices and filters.
    Biases, tokens, positions and tables do not: they are offsets, and 0 is
    no simpler than any other. Nor do scales, of norms or others: at 0 they
    let nothing through.
    """
    decays = {}  # a parameter that two modules share is asked about once
    for module in model.modules():
        layer = isinstance(module, nn.Linear | nn.Conv2d)
        apart = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False):
            shape = parameter.shape  # (1, D, 1, 1) is a vector, not a matrix
            matrix = layer or shape.numel() > max(shape, default=1)
            multiplies = "weight" in name and parameter.ndim > 1 and matrix
            decays.setdefault(parameter, multiplies and not apart)
    decay = [parameter for parameter, yes in decays.items() if yes]
    keep = [parameter for parameter, yes in decays.items() if not yes]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    steps: int,
    warmup: float,
    kind: str = "cosine",
) -> LRScheduler:
    """Linear warm-up over the first `warmup` share of `steps`; then a
    cosine to 0, or with kind="constant" no change.

    Call `.step()` after each step of the optimizer.
    """
    rising = round(warmup * steps)
    if kind == "cosine":
        after = CosineAnnealingLR(optimizer, T_max=max(1, steps - rising))
    else:
        after = ConstantLR(optimizer, factor=1.0)
    if rising == 0:
        return after
    linear = LinearLR(
        optimizer, start_factor=1 / rising, total_iters=max(1, rising - 1)
    )
    return SequentialLR(optimizer, [linear, after], milestones=[rising])
