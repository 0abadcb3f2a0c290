"""Muon: momentum whose steps have singular values near 1. Chapter 6 writes it out in the same words."""

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Move the singular values of matrices (N, rows, columns) to near 1.

    Each round applies one odd polynomial to all singular values, which
    needs products of matrices only. Its numbers (Jordan et al. 2024) were
    chosen for speed: values end between 0.7 and 1.2, not at 1.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = matrices.mT if tall else matrices
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # values at most 1
    for _ in range(rounds):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weight matrices of hidden layers.

    lr: as for AdamW; steps are scaled to about its size. Biases, norms,
    positions, the patch embedding and the head need another optimizer.
    As `torch.optim.Muon`, but in float32, and equal shapes in one go.
    Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(self, matrices, lr=0.02, weight_decay=0.05, momentum=0.95):
        settings = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(matrices, settings | {"momentum": momentum})
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    shape = tuple(matrix.shape)
                    raise ValueError(f"expected matrices, got shape {shape}")

    @torch.no_grad()
    def step(self, closure=None):
        """Change all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = {}  # shape -> matrices
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in alike.items():
                directions = torch.stack([self.moved(m, group["momentum"]) for m in matrices])
                size = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for matrix, direction in zip(matrices, orthogonalise(directions), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(direction, alpha=size)
        return loss

    def moved(self, matrix: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum: the mean gradient, with this one again."""
        state = self.state[matrix]
        mean = state.setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)
